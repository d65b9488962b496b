//! A policy file against the version before it: numbers keep their meaning, and what will move is said.

use super::file::{At, Field, File, Head};
use super::lint::{Lint, max_length};
use crate::ids::Name;

/// The number of the class that holds credentials.
fn credentials_class(file: &File) -> Option<u16> {
    let name = &file.credentials.as_ref()?.class.value;
    file.classes.iter().find(|c| c.head.name.value == *name).map(|c| c.head.number.value)
}

impl<'a> Lint<'a> {
    pub(super) fn changes(&mut self, before: &File) {
        let now = self.file;
        if let Some(was) = credentials_class(before)
            && credentials_class(now) != Some(was)
        {
            let line = now.credentials.as_ref().map_or(1, |c| c.class.line);
            let message = format!("credentials are kept in class number {was}; they cannot be moved");
            self.say(line, "credentials.class", "credentials-moved", message);
        }
        let (old, new) = (&before.reserved, &now.reserved);
        self.numbers(
            "class",
            before.classes.iter().map(|c| &c.head),
            &old.classes,
            now.classes.iter().map(|c| &c.head),
            &new.classes,
        );
        self.numbers(
            "field",
            before.fields.iter().map(|f| &f.head),
            &old.fields,
            now.fields.iter().map(|f| &f.head),
            &new.fields,
        );
        self.numbers(
            "purpose",
            before.purposes.iter().map(|p| &p.head),
            &old.purposes,
            now.purposes.iter().map(|p| &p.head),
            &new.purposes,
        );
        self.numbers(
            "role",
            before.roles.iter().map(|r| &r.head),
            &old.roles,
            now.roles.iter().map(|r| &r.head),
            &new.roles,
        );
        self.numbers(
            "plan",
            before.plans.iter().map(|p| &p.head),
            &old.plans,
            now.plans.iter().map(|p| &p.head),
            &new.plans,
        );
        self.numbers(
            "recipient",
            before.recipients.iter().map(|r| &r.head),
            &old.recipients,
            now.recipients.iter().map(|r| &r.head),
            &new.recipients,
        );
        self.notice(before);
        if before.time_zone.value != now.time_zone.value {
            let message = "the ends of months and years that are running will move".into();
            self.say(now.time_zone.line, "time_zone", "zone-changed", message);
        }
        for class in &now.classes {
            let Some(was) = before.classes.iter().find(|c| c.head.number.value == class.head.number.value) else {
                continue;
            };
            if was.retention.map(|r| r.value).unwrap_or(None) != class.retention.map(|r| r.value).unwrap_or(None) {
                let line = class.retention.map_or(class.head.number.line, |r| r.line);
                let message = format!("stored values of class `{}` will end at another time", *class.head.name);
                self.say(line, "class.retention", "retention-changed", message);
            }
        }
        for field in &now.fields {
            let Some(was) = before.fields.iter().find(|f| f.head.number.value == field.head.number.value) else {
                continue;
            };
            self.field_change(was, before, field);
        }
    }

    fn field_change(&mut self, was: &Field, before: &File, field: &'a Field) {
        let number = field.head.number;
        let class_no = |file: &File, name: &Name| {
            file.classes.iter().find(|c| c.head.name.value == *name).map(|c| c.head.number.value)
        };
        let moved = class_no(before, &was.class) != class_no(self.file, &field.class);
        let mut reused = |line: u32, key: &str, what: &str| {
            let message =
                format!("number {} had another {what}: stored values would not fit; take a new number", number.value);
            self.say(line, key, "number-reused", message);
        };
        if was.kind.value != field.kind.value {
            reused(field.kind.line, "field.type", "type");
        }
        if was.many.value != field.many.value {
            reused(field.many.line, "field.many", "`many`");
        }
        if moved {
            reused(field.class.line, "field.class", "class");
        }
        let search_on = field.searchable.value && !was.searchable.value;
        let unique_on = field.unique.value && !was.unique.value;
        // The validator decides how a value is normalised before it is indexed.
        let other_form = field.searchable.value && was.validator.value != field.validator.value;
        if search_on || unique_on || other_form {
            let message = format!(
                "values of field number {} are not indexed anew by this version; take a new number",
                number.value
            );
            self.say(field.searchable.line, "field.searchable", "search-changed", message);
        }
        if max_length(field) < max_length(was) {
            let line = field.max_length.map_or(number.line, |at| at.line);
            let message = "stored values may be longer; they stay as they are".into();
            self.say(line, "field.max_length", "length-shrunk", message);
        }
    }

    fn numbers<'b>(
        &mut self,
        what: &str,
        before: impl Iterator<Item = &'b Head>,
        reserved_before: &[At<u16>],
        now: impl Iterator<Item = &'a Head>,
        reserved: &[At<u16>],
    ) {
        let now: Vec<&Head> = now.collect();
        let is_reserved = |n: u16| reserved.iter().any(|r| r.value == n);
        for was in before {
            let number = was.number.value;
            match now.iter().find(|h| h.number.value == number) {
                None if !is_reserved(number) => {
                    let message = format!("{what} `{}` left the file: add its number {number} here", *was.name);
                    self.say(1, &format!("reserved.{}", plural(what)), "number-dropped", message);
                }
                Some(is) if is.name.value != was.name.value => {
                    let (key, line) = (format!("{what}.name"), is.name.line);
                    // Grants and audits say the number of a purpose, a role, a plan: another name is another thing.
                    if matches!(what, "field" | "class") {
                        let message =
                            format!("number {number} was `{}`: its values stay and have the new name", *was.name);
                        self.say(line, &key, "renamed", message);
                    } else {
                        let message = format!("number {number} was `{}`; take a new number", *was.name);
                        self.say(line, &key, "number-reused", message);
                    }
                }
                _ => {}
            }
        }
        for number in reserved_before.iter().map(|r| r.value) {
            if !is_reserved(number) {
                let message = format!("{what} number {number} was reserved and must stay so");
                self.say(1, &format!("reserved.{}", plural(what)), "number-dropped", message);
            }
        }
    }
}

fn plural(what: &str) -> String {
    if what == "class" { "classes".into() } else { format!("{what}s") }
}

#[cfg(test)]
mod tests {
    use super::super::file::Severity;
    use super::super::lint::lint;
    use super::super::testing::{SOUND, parse};
    use super::*;

    #[test]
    fn each_change_is_compared_with_the_version_before() {
        let cases: &[(&str, &str, &str)] = &[
            ("type = \"data\"", "type = \"text\"", "number-reused"),
            (
                "category = \"person\"\ntype = \"data\"\nmax_length = 1000\nmany = true",
                "category = \"person\"\ntype = \"data\"\nmax_length = 1000",
                "number-reused",
            ),
            ("class = \"content\"\ncategory = \"log\"", "class = \"billing\"\ncategory = \"person\"", "number-reused"),
            ("name = \"service\"", "name = \"serving\"", "number-reused"),
            ("name = \"enterprise\"", "name = \"large\"", "number-reused"),
            ("number = 1\nname = \"app\"", "number = 2\nname = \"app\"", "number-dropped"),
            ("name = \"invoice\"", "name = \"bill\"", "renamed"),
            ("validator = \"email\"", "validator = \"none\"\nmax_length = 254", "search-changed"),
            ("type = \"data\"\nmax_length = 1000", "type = \"data\"\nmax_length = 999", "length-shrunk"),
            ("retention = \"90d\"", "retention = \"80d\"", "retention-changed"),
            ("time_zone = \"UTC\"", "time_zone = \"Asia/Kolkata\"", "zone-changed"),
        ];
        let before = parse(SOUND);
        for (from, to, rule) in cases {
            let text = SOUND.replacen(from, to, 1).replace("purposes = [\"service\"]", "purposes = [\"*\"]");
            let found: Vec<_> = lint(&parse(&text), Some(&before)).into_iter().map(|f| f.rule).collect();
            assert!(found.contains(rule), "{to}: {found:?}");
        }
        // The other way: search turned on where it was not.
        let without = SOUND.replacen("searchable = true\nunique = true\n", "", 1);
        assert!(lint(&before, Some(&parse(&without))).iter().any(|f| f.rule == "search-changed"));
        assert_eq!(lint(&parse(&without), Some(&before)), []);
    }

    #[test]
    fn a_number_is_never_forgotten() {
        let with = |reserved: &str| {
            let field = SOUND.find("[[field]]\nnumber = 3").unwrap();
            let end = SOUND.find("[[purpose]]").unwrap();
            let less = format!("{}{}", &SOUND[..field], &SOUND[end..]).replacen(
                "[controller]",
                &format!("{reserved}\n[controller]"),
                1,
            );
            parse(&less.replace("classes = [\"content\", \"billing\"]", "classes = [\"*\"]"))
        };
        let errors = |now: &File, before: &File| {
            lint(now, Some(before))
                .into_iter()
                .filter(|f| f.severity == Severity::Error)
                .map(|f| (f.key, f.rule))
                .collect::<Vec<_>>()
        };
        let (silent, listed) = (with(""), with("[reserved]\nfields = [3]"));
        assert_eq!(errors(&silent, &parse(SOUND)), [("reserved.fields".into(), "number-dropped")]);
        assert_eq!(errors(&listed, &parse(SOUND)), []);
        assert_eq!(errors(&silent, &listed), [("reserved.fields".into(), "number-dropped")]);
    }
}
