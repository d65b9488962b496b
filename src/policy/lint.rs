//! Finds what makes no sense in a policy file, by itself and against the version before it. Errors keep the file from
//! being applied; warnings say what will surprise. `docs/POLICY.md` lists the rules; no rule knows a tenant.

use super::file::{
    At, Basis, BasisFor, Class, Field, FieldType, Fields, File, Finding, Head, Names, Purpose, TransferRule, Validator,
};
pub use super::finding::RULES;
use super::period::Period;
use crate::access::{Verb, View};
use crate::ids::Name;

/// Most characters of a text.
const MAX_TEXT: u32 = 262_144;

/// Checks a file, and its changes against the version before. By line; errors first within a line.
pub fn lint(file: &File, previous: Option<&File>) -> Vec<Finding> {
    let mut lint = Lint { file, found: Vec::new() };
    lint.heads();
    lint.fields();
    lint.classes();
    lint.purposes();
    lint.roles();
    lint.plans();
    lint.credentials();
    lint.promises();
    lint.claims();
    if let Some(previous) = previous {
        lint.changes(previous);
    }
    lint.found.sort_by(|a, b| (a.line, b.severity).cmp(&(b.line, a.severity)));
    lint.found
}

/// The longest value of a field, by itself or by its validator; `None` where the file must say it and does not.
pub(super) fn max_length(field: &Field) -> Option<u32> {
    match (field.max_length, field.kind.value, field.validator.value) {
        (Some(said), ..) => Some(said.value),
        (None, FieldType::Text, Validator::Email) => Some(254),
        (None, FieldType::Text, Validator::PhoneE164) => Some(16),
        (None, FieldType::Text, Validator::Url) => Some(2048),
        (None, FieldType::Text, Validator::Ip) => Some(45),
        (None, FieldType::Text | FieldType::Data, _) => None,
        (None, ..) => Some(0),
    }
}

/// The basis on which a purpose allows a field.
pub(super) fn basis_of(purpose: &Purpose, field: &Field) -> Basis {
    let of_category = |b: &&BasisFor| field.category.as_ref().is_some_and(|c| c.value == b.category.value);
    purpose.basis_for.iter().find(of_category).map_or(purpose.basis.value, |b| b.basis.value)
}

pub(super) struct Lint<'a> {
    pub(super) file: &'a File,
    found: Vec<Finding>,
}

impl<'a> Lint<'a> {
    pub(super) fn say(&mut self, line: u32, key: &str, rule: &'static str, message: String) {
        let (_, severity, _) =
            RULES.iter().find(|(name, ..)| *name == rule).expect("every rule used here is listed above");
        self.found.push(Finding { severity: *severity, line, key: key.to_owned(), rule, message });
    }

    fn heads(&mut self) {
        let file = self.file;
        let reserved = &file.reserved;
        self.records("class", file.classes.iter().map(|c| &c.head), &reserved.classes);
        self.records("field", file.fields.iter().map(|f| &f.head), &reserved.fields);
        self.records("purpose", file.purposes.iter().map(|p| &p.head), &reserved.purposes);
        self.records("role", file.roles.iter().map(|r| &r.head), &reserved.roles);
        self.records("plan", file.plans.iter().map(|p| &p.head), &reserved.plans);
        self.records("recipient", file.recipients.iter().map(|r| &r.head), &reserved.recipients);
        for (i, category) in file.categories.iter().enumerate() {
            if file.categories[..i].iter().any(|c| c.name.value == category.name.value) {
                let message = format!("category `{}` is there already", *category.name);
                self.say(category.name.line, "category.name", "duplicate-name", message);
            }
        }
    }

    fn records(&mut self, what: &str, heads: impl Iterator<Item = &'a Head>, reserved: &[At<u16>]) {
        let mut seen: Vec<&Head> = Vec::new();
        for head in heads {
            let number = head.number.value;
            if let Some(other) = seen.iter().find(|h| h.number.value == number) {
                let message =
                    format!("number {number} belongs to {what} `{}` in line {}", *other.name, other.number.line);
                self.say(head.number.line, &format!("{what}.number"), "duplicate-number", message);
            }
            if let Some(other) = seen.iter().find(|h| h.name.value == head.name.value) {
                let message = format!("`{}` is there already, in line {}", *head.name, other.name.line);
                self.say(head.name.line, &format!("{what}.name"), "duplicate-name", message);
            }
            if reserved.iter().any(|r| r.value == number) {
                let message = format!("number {number} is reserved: it meant something else once");
                self.say(head.number.line, &format!("{what}.number"), "number-reserved", message);
            }
            seen.push(head);
        }
    }

    pub(super) fn class(&self, name: &Name) -> Option<&'a Class> {
        self.file.classes.iter().find(|c| c.head.name.value == *name)
    }

    pub(super) fn unknown(&mut self, key: &str, what: &str, name: &At<Name>) {
        self.say(name.line, key, "unknown-name", format!("there is no {what} `{}`", name.value));
    }

    fn fields(&mut self) {
        for field in &self.file.fields {
            self.field(field);
        }
    }

    fn field(&mut self, field: &'a Field) {
        let name = &field.head.name;
        let text = field.kind.value == FieldType::Text;
        let sized = text || field.kind.value == FieldType::Data;
        let kind = field.kind.value.name();
        match max_length(field) {
            None => {
                let message = format!("`{}` must say how long a value may be", **name);
                self.say(field.kind.line, "field.max_length", "length-missing", message);
            }
            Some(length) if text && length > MAX_TEXT => {
                let line = field.max_length.map_or(field.kind.line, |at| at.line);
                self.say(
                    line,
                    "field.max_length",
                    "length-too-large",
                    format!("a text has at most {MAX_TEXT} characters"),
                );
            }
            Some(_) => {}
        }
        if let Some(length) = field.max_length.filter(|_| !sized) {
            self.say(length.line, "field.max_length", "wrong-type", format!("type {kind} has no length"));
        }
        if field.validator.value != Validator::None && !text {
            self.say(field.validator.line, "field.validator", "wrong-type", "validators are for text".into());
        }
        if let Some(mask) = field.mask.filter(|_| !text) {
            self.say(mask.line, "field.mask", "wrong-type", "masks are for text".into());
        }
        let searchable = field.searchable.value;
        if searchable && !matches!(field.kind.value, FieldType::Text | FieldType::Integer | FieldType::Date) {
            let message = format!("type {kind} cannot be searched for; text, integer and date can");
            self.say(field.searchable.line, "field.searchable", "wrong-type", message);
        }
        if searchable && field.many.value {
            let message = "items cannot be searched for".into();
            self.say(field.searchable.line, "field.searchable", "searchable-many", message);
        }
        if field.unique.value && !searchable {
            let message = format!("`{}` must be searchable to be unique", **name);
            self.say(field.unique.line, "field.unique", "unique-not-searchable", message);
        }
        let class = self.class(&field.class);
        if class.is_none() {
            self.unknown("field.class", "class", &field.class);
        }
        if let Some(class) = class.filter(|c| searchable && c.retention.is_some_and(|r| r.value.is_some())) {
            let message = format!(
                "class `{}` has a retention: an index entry of `{}` would stay guessable after its value's end",
                *class.head.name, **name
            );
            self.say(field.searchable.line, "field.searchable", "searchable-retention", message);
        }
        self.category(field, class);
        if !self.file.purposes.iter().any(|p| names(&p.allowed, field)) {
            let message = format!("no purpose allows `{}`: it can be neither read nor written", **name);
            self.say(field.head.number.line, "field", "never-allowed", message);
        }
    }

    fn category(&mut self, field: &'a Field, class: Option<&'a Class>) {
        let Some(said) = &field.category else {
            if !self.file.categories.is_empty() {
                let message = format!("`{}` belongs to no category", *field.head.name);
                self.say(field.head.number.line, "field.category", "no-category", message);
            }
            return;
        };
        let Some(category) = self.file.categories.iter().find(|c| c.name.value == said.value) else {
            return self.unknown("field.category", "category", said);
        };
        let (Some(promised), Some(class)) = (category.promised, class) else { return };
        let too_long = match class.retention.and_then(|r| r.value) {
            Some(kept) => kept.longer_than(promised.value),
            None => true,
        };
        if too_long {
            let message = format!(
                "class `{}` is kept longer than the {} that category `{}` promises in line {}",
                *class.head.name, promised.value, said.value, promised.line
            );
            self.say(field.class.line, "field.class", "retention-longer-than-promised", message);
        }
    }

    fn credentials(&mut self) {
        let Some(credentials) = &self.file.credentials else { return };
        if self.class(&credentials.class.value).is_none() {
            self.unknown("credentials.class", "class", &credentials.class);
        }
        let prefix = &credentials.api_key_prefix;
        let text = prefix.value.as_str();
        // As `auth::KeyPrefix` has it: nobody may take a user's key for an access key of the vault.
        if text.len() > 16 || text.contains('-') || text.split('_').next() == Some("pv") {
            let message = "must have at most 16 characters, no hyphen, and not begin with `pv`, as access keys do";
            let message = message.to_owned();
            self.say(prefix.line, "credentials.api_key_prefix", "wrong-value", message);
        }
    }

    fn classes(&mut self) {
        for class in &self.file.classes {
            let name = &class.head.name;
            let of_class: Vec<&Field> = self.file.fields.iter().filter(|f| f.class.value == name.value).collect();
            let credentials = self.file.credentials.as_ref().is_some_and(|c| c.class.value == name.value);
            if of_class.is_empty() && !credentials {
                self.say(class.head.number.line, "class", "empty-class", format!("no field is in class `{}`", **name));
            }
            let retention = class.retention.and_then(|r| r.value.map(|value| At { value, line: r.line }));
            if class.retention.is_none() {
                let message =
                    format!("class `{}` does not say how long it is kept; say \"none\" if there is no end", **name);
                self.say(class.head.number.line, "class.retention", "retention-missing", message);
            }
            if let (Some(kept), Some(max)) = (retention, class.max_retention)
                && kept.longer_than(max.value)
            {
                self.say(kept.line, "class.retention", "retention-over-maximum", format!("longer than {}", max.value));
            }
            let Some(hold) = &class.hold else { continue };
            if let Some(kept) = retention.filter(|kept| hold.keep.longer_than(kept.value)) {
                let message = format!("shorter than the {} that hold `{}` must keep it", hold.keep.value, hold.name);
                self.say(kept.line, "class.retention", "retention-shorter-than-hold", message);
            }
            match self.file.purposes.iter().find(|p| p.head.name.value == hold.purpose.value) {
                None => self.unknown("class.hold.purpose", "purpose", &hold.purpose),
                Some(purpose) => {
                    let refused = of_class.iter().find(|f| !names(&purpose.allowed, f));
                    if let Some(field) = refused {
                        let message = format!(
                            "purpose `{}` does not allow the held field `{}`",
                            hold.purpose.value, *field.head.name
                        );
                        self.say(hold.purpose.line, "class.hold.purpose", "hold-purpose", message);
                    }
                }
            }
        }
    }

    /// Names in a list of fields that are not there.
    pub(super) fn refer(&mut self, path: &str, said: &'a Fields) {
        for class in said.classes.list() {
            if self.class(class).is_none() {
                self.unknown(&format!("{path}.classes"), "class", class);
            }
        }
        for (key, list) in [("fields", &said.fields), ("except", &said.except)] {
            for field in list {
                if !self.file.fields.iter().any(|f| f.head.name.value == field.value) {
                    self.unknown(&format!("{path}.{key}"), "field", field);
                }
            }
        }
    }

    fn purposes(&mut self) {
        for purpose in &self.file.purposes {
            let (name, line) = (&purpose.head.name, purpose.head.number.line);
            self.refer("purpose", &purpose.allowed);
            let forbidden = |word: &str| self.file.forbidden.iter().find(|f| f.value == word);
            let kind = purpose.kind.as_ref().map(|k| k.value.as_str());
            if let Some(rule) = kind.and_then(forbidden).or_else(|| forbidden(name.as_str())) {
                let message = format!("`{}` may not be declared: line {} forbids `{}`", **name, rule.line, rule.value);
                self.say(line, "purpose", "forbidden-purpose", message);
            }
            let allowed: Vec<&Field> = self.file.fields.iter().filter(|f| names(&purpose.allowed, f)).collect();
            if allowed.is_empty() {
                self.say(line, "purpose", "empty-purpose", format!("`{}` allows no field", **name));
            }
            if purpose.view == View::Masked {
                self.masks("purpose.view", line, &allowed);
            }
        }
    }

    /// Fields of a masked view that have no mask.
    fn masks(&mut self, key: &str, line: u32, fields: &[&Field]) {
        if let Some(field) = fields.iter().find(|f| f.mask.is_none()) {
            let message = format!("`{}` has no mask, so a masked view of it is denied", *field.head.name);
            self.say(line, key, "mask-missing", message);
        }
    }

    fn roles(&mut self) {
        for role in &self.file.roles {
            for grant in &role.grants {
                self.refer("role.grant", &grant.touches);
                for purpose in grant.purposes.list() {
                    if !self.file.purposes.iter().any(|p| p.head.name.value == purpose.value) {
                        self.unknown("role.grant.purposes", "purpose", purpose);
                    }
                }
                let values = [Verb::Read, Verb::Write, Verb::Delete, Verb::Find, Verb::Export];
                let touches: Vec<Verb> = values.into_iter().filter(|v| grant.verbs.has(*v)).collect();
                let Some(verb) = touches.first() else { continue };
                let nothing = grant.touches.classes.is_nothing() && grant.touches.fields.is_empty();
                if nothing {
                    let message = format!("`{}` is granted for no field", verb.name());
                    self.say(grant.line, "role.grant.classes", "grant-without-fields", message);
                }
                if grant.purposes.is_nothing() {
                    let message = format!("`{}` is granted for no purpose", verb.name());
                    self.say(grant.line, "role.grant.purposes", "grant-without-purpose", message);
                }
                if nothing || grant.purposes.is_nothing() {
                    continue;
                }
                let fields: Vec<&Field> = self.file.fields.iter().filter(|f| names(&grant.touches, f)).collect();
                for purpose in self.file.purposes.iter().filter(|p| among(&grant.purposes, &p.head.name)) {
                    if !fields.iter().any(|f| names(&purpose.allowed, f)) {
                        let message = format!("purpose `{}` allows none of the granted fields", *purpose.head.name);
                        self.say(grant.line, "role.grant.purposes", "grant-in-vain", message);
                    }
                }
                if grant.view == View::Masked && touches.iter().any(|v| matches!(v, Verb::Read | Verb::Export)) {
                    self.masks("role.grant.view", grant.line, &fields);
                }
            }
        }
    }

    fn plans(&mut self) {
        for plan in &self.file.plans {
            for (i, rule) in plan.retention.iter().enumerate() {
                let Some(class) = self.class(&rule.class) else {
                    self.unknown("plan.retention.class", "class", &rule.class);
                    continue;
                };
                let key = "plan.retention";
                let usual = class.retention.and_then(|r| r.value);
                if plan.retention[..i].iter().any(|r| r.class.value == rule.class.value) {
                    let message = format!("class `{}` is overridden twice", rule.class.value);
                    self.say(rule.class.line, key, "override-without-retention", message);
                }
                let Some(usual) = usual else {
                    let message = format!("class `{}` has no retention to override", rule.class.value);
                    self.say(rule.class.line, key, "override-without-retention", message);
                    continue;
                };
                let at_most = rule.at_most.or(class.max_retention).map_or(usual, |at| at.value);
                let line = rule.at_most.map_or(rule.class.line, |at| at.line);
                if let Some(max) = class.max_retention.filter(|max| at_most.longer_than(max.value)) {
                    self.say(line, key, "retention-over-maximum", format!("longer than {}", max.value));
                }
                if let Some(least) = rule.at_least.filter(|least| least.longer_than(at_most)) {
                    self.say(least.line, key, "override-empty", format!("longer than {at_most}"));
                }
                let least = rule.at_least.map_or(Period::Days(1), |at| at.value);
                if let Some(hold) = class.hold.as_ref().filter(|hold| hold.keep.longer_than(least)) {
                    let message =
                        format!("shorter than the {} that hold `{}` must keep it", hold.keep.value, hold.name);
                    self.say(rule.class.line, key, "retention-shorter-than-hold", message);
                }
            }
        }
    }
}

pub(super) fn among(said: &Names, name: &Name) -> bool {
    match said {
        Names::All => true,
        Names::These(list) => list.iter().any(|n| n.value == *name),
    }
}

/// A region that is not listed is outside, and so is one that is not stated.
pub(super) fn is_outside(rule: &TransferRule, region: Option<&Name>) -> bool {
    region.is_none_or(|region| rule.inside.iter().all(|n| n.value != *region))
}

/// Whether a list of fields has this one.
pub(super) fn names(said: &Fields, field: &Field) -> bool {
    let listed = |list: &[At<Name>]| list.iter().any(|n| n.value == field.head.name.value);
    (among(&said.classes, &field.class) || listed(&said.fields)) && !listed(&said.except)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{SOUND, parse};
    use super::*;

    fn rules(text: &str) -> Vec<&'static str> {
        lint(&parse(text), None).into_iter().map(|f| f.rule).collect()
    }

    #[test]
    fn a_sound_file_has_no_finding() {
        assert_eq!(lint(&parse(SOUND), None), []);
        assert_eq!(lint(&parse(SOUND), Some(&parse(SOUND))), []);
    }

    #[test]
    fn each_rule_finds_its_mistake() {
        let cases: &[(&str, &str, &str)] = &[
            ("number = 2\nname = \"message\"", "number = 1\nname = \"message\"", "duplicate-number"),
            ("name = \"message\"", "name = \"email\"", "duplicate-name"),
            ("[controller]", "[reserved]\nfields = [2]\n[controller]", "number-reserved"),
            ("class = \"account\"", "class = \"acount\"", "unknown-name"),
            ("category = \"log\"", "category = \"logs\"", "unknown-name"),
            ("classes = [\"content\", \"billing\"]", "classes = [\"content\", \"billing\", \"x\"]", "unknown-name"),
            (
                "classes = [\"content\", \"billing\"]",
                "classes = [\"content\", \"billing\"]\nfields = [\"x\"]",
                "unknown-name",
            ),
            ("purposes = [\"service\"]", "purposes = [\"servce\"]", "unknown-name"),
            ("purpose = \"legal\" }", "purpose = \"none\" }", "unknown-name"),
            ("class = \"content\"\nat_least", "class = \"contents\"\nat_least", "unknown-name"),
            ("type = \"data\"\nmax_length = 1000", "type = \"flag\"\nmax_length = 1000", "wrong-type"),
            ("type = \"data\"", "type = \"data\"\nmask = \"name\"", "wrong-type"),
            ("type = \"data\"", "type = \"data\"\nvalidator = \"url\"", "wrong-type"),
            ("type = \"data\"", "type = \"data\"\nsearchable = true", "wrong-type"),
            ("type = \"text\"\nmax_length = 1000", "type = \"text\"", "length-missing"),
            ("type = \"text\"\nmax_length = 1000", "type = \"text\"\nmax_length = 262145", "length-too-large"),
            ("searchable = true\n", "", "unique-not-searchable"),
            (
                "type = \"text\"\nmax_length = 1000",
                "type = \"text\"\nmax_length = 1000\nsearchable = true",
                "searchable-many",
            ),
            ("retention = \"none\"", "retention = \"90d\"", "searchable-retention"),
            ("retention = \"7y\"", "retention = \"6y\"", "retention-shorter-than-hold"),
            ("retention = \"90d\"", "retention = \"91d\"", "retention-longer-than-promised"),
            (
                "category = \"person\"\ntype = \"text\"",
                "category = \"log\"\ntype = \"text\"",
                "retention-longer-than-promised",
            ),
            (
                "retention = \"90d\"\nmax_retention = \"1y\"",
                "retention = \"90d\"\nmax_retention = \"80d\"",
                "retention-over-maximum",
            ),
            ("at_most = \"1y\"", "at_most = \"2y\"", "retention-over-maximum"),
            ("class = \"content\"\nat_least", "class = \"account\"\nat_least", "override-without-retention"),
            ("at_least = \"1d\"", "at_least = \"2y\"", "override-empty"),
            ("category = \"log\"\n", "", "no-category"),
            ("name = \"service\"\nbasis", "name = \"service\"\nkind = \"sale\"\nbasis", "forbidden-purpose"),
            (
                "[[role]]",
                "[[purpose]]\nnumber = 3\nname = \"sale\"\nbasis = \"contract\"\nclasses = [\"account\"]\n[[role]]",
                "forbidden-purpose",
            ),
            ("classes = [\"content\", \"billing\"]", "fields = [\"email\"]", "hold-purpose"),
            ("purposes = [\"service\"]\n", "", "grant-without-purpose"),
            ("classes = [\"account\"]\npurposes", "purposes", "grant-without-fields"),
            ("retention = \"none\"\n", "", "retention-missing"),
            ("classes = [\"account\", \"content\"]", "classes = [\"content\"]", "never-allowed"),
            (
                "[[field]]\nnumber = 1",
                "[[class]]\nnumber = 4\nname = \"usage\"\nretention = \"90d\"\n[[field]]\nnumber = 1",
                "empty-class",
            ),
            ("classes = [\"account\", \"content\"]", "", "empty-purpose"),
            ("purposes = [\"service\"]", "purposes = [\"service\", \"legal\"]", "grant-in-vain"),
            ("basis = \"contract\"", "basis = \"consent\"", ""),
            ("mask = \"email\"\n\n[[field]]", "[[field]]", ""),
            (
                "classes = [\"account\", \"content\"]",
                "classes = [\"account\", \"content\"]\nview = \"masked\"",
                "mask-missing",
            ),
        ];
        for (from, to, rule) in cases {
            let text = SOUND.replacen(from, to, 1);
            assert_ne!(text, SOUND, "{from}");
            let found = rules(&text);
            assert!(if rule.is_empty() { found.is_empty() } else { found.contains(rule) }, "{to}: {found:?}");
        }
    }

    #[test]
    fn findings_are_in_order_and_serialise() {
        let text = SOUND.replacen("retention = \"none\"\n", "", 1);
        let found = lint(&parse(&text), None);
        assert!(found.windows(2).all(|w| w[0].line <= w[1].line));
        let json = serde_json::to_value(&found[0]).unwrap();
        assert_eq!(json["severity"], "warning");
        assert_eq!(json["rule"], "retention-missing");
        assert_eq!(json["key"], "class.retention");
        assert_eq!(json["line"], 18);
    }
}
