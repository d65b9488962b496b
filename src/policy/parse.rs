//! Reads a policy file: TOML into plain records, each value with its line. What is wrong is a [`Finding`] that names
//! line and key and never shows a value. Whether the records make sense together is for `lint`.

use super::due::Within;
use super::file::*;
use super::finding::{Finding, Severity};
use super::key::{Key, Kind, REQUIRED, Section};
use super::mask::Mask;
use super::period::{self, Period};
use super::records::{self, Lines, a_date, integer};
use super::tables::FILE;
use crate::ids::{Name, SubjectId};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The longest file that is read, in bytes.
pub const MAX_BYTES: usize = 1024 * 1024;
/// After this many findings reading stops.
const MAX_FINDINGS: usize = 100;

impl File {
    /// Reads the text.
    ///
    /// # Errors
    /// Everything that is not well formed, at most 100 findings, by line; all are errors.
    pub fn parse(text: &str) -> Result<File, Vec<Finding>> {
        let lines = Lines::of(text);
        let mut findings = Findings { list: Vec::new() };
        if text.len() > MAX_BYTES {
            findings.error(1, "file", "too-long", "a policy file has at most 1 MiB".into());
            return Err(findings.list);
        }
        let root = match DeTable::parse(text) {
            Ok(root) => root,
            Err(e) => {
                let line = e.span().map_or(1, |span| lines.line(span.start));
                findings.error(line, "file", "syntax", format!("not TOML: {}", plain(e.message())));
                return Err(findings.list);
            }
        };
        check_table(&FILE, "", root.get_ref(), 1, &lines, &mut findings);
        if !findings.list.is_empty() {
            findings.list.sort_by_key(|f| f.line);
            return Err(findings.list);
        }
        Ok(records::file(&records::Table { table: root.get_ref(), line: 1, lines: &lines }))
    }
}

struct Findings {
    list: Vec<Finding>,
}

impl Findings {
    fn error(&mut self, line: u32, key: &str, rule: &'static str, message: String) {
        if self.list.len() < MAX_FINDINGS {
            self.list.push(Finding { severity: Severity::Error, line, key: key.to_owned(), rule, message });
        }
    }
}

/// A key as written, safe to print: keys may hold anything.
fn plain(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

// First pass: the shape of every table against `keys`, all findings at once.

fn check_table(section: &Section, path: &str, table: &DeTable<'_>, line: u32, lines: &Lines, out: &mut Findings) {
    for (name, value) in table {
        let at = lines.line(name.span().start);
        let shown = join(path, &plain(name.get_ref()));
        match section.key(name.get_ref()) {
            None => {
                let known: Vec<&str> = section.keys.iter().map(|k| k.name).collect();
                let hint = nearest(name.get_ref(), &known).map(|k| format!("; is `{k}` meant?")).unwrap_or_default();
                out.error(at, &shown, "unknown-key", format!("there is no such key{hint}"));
            }
            Some(Key { kind: Kind::Later, .. }) => {
                out.error(at, &shown, "not-enforced", "not enforced by this version, so it cannot be promised".into());
            }
            Some(key) => check_value(key, &shown, value, at, lines, out),
        }
    }
    for key in section.keys.iter().filter(|k| k.default == REQUIRED) {
        if !table.contains_key(key.name) {
            out.error(line, &join(path, key.name), "missing-key", "must be there".into());
        }
    }
}

fn check_value(key: &Key, path: &str, value: &Spanned<DeValue<'_>>, at: u32, lines: &Lines, out: &mut Findings) {
    let line = |v: &Spanned<DeValue<'_>>| lines.line(v.span().start);
    match (&key.kind, value.get_ref()) {
        (Kind::One(section), DeValue::Table(table)) => check_table(section, path, table, at, lines, out),
        (Kind::Many(section), DeValue::Array(array)) if array.iter().all(|v| v.get_ref().is_table()) => {
            if array.is_empty() && key.default == REQUIRED {
                out.error(at, path, "missing-key", "must have at least one".into());
            }
            for one in array {
                if let DeValue::Table(table) = one.get_ref() {
                    check_table(section, path, table, line(one), lines, out);
                }
            }
        }
        (
            Kind::Names | Kind::NamesOrAll | Kind::Numbers { .. } | Kind::Ids | Kind::Choices(_) | Kind::Dates,
            DeValue::Array(array),
        ) => {
            let all = matches!(key.kind, Kind::NamesOrAll)
                && array.len() == 1
                && array.iter().all(|v| v.get_ref().as_str() == Some("*"));
            let mut seen = Vec::new();
            for one in array {
                match expected_item(&key.kind, one.get_ref()) {
                    Some(expected) if !all => {
                        out.error(line(one), path, "wrong-value", format!("must hold {expected}"))
                    }
                    _ => {}
                }
                let value = one.get_ref();
                let text = value.as_str().map(str::to_owned);
                let text = text.or(value.as_integer().map(|n| n.to_string()));
                let text = text.or(value.as_datetime().map(|d| d.to_string()));
                if seen.contains(&text) {
                    out.error(line(one), path, "said-twice", "says the same thing twice".into());
                }
                seen.push(text);
            }
        }
        (kind, value) => {
            if let Some(expected) = expected_value(kind, value) {
                out.error(at, path, "wrong-value", format!("must be {expected}"));
            }
        }
    }
}

/// What an item of a list should have been, if it is not.
fn expected_item(kind: &Kind, item: &DeValue<'_>) -> Option<String> {
    let text = item.as_str();
    let (good, expected) = match kind {
        Kind::Names | Kind::NamesOrAll => (
            text.is_some_and(|t| Name::parse("name", t).is_ok()),
            "names ([a-z][a-z0-9_-]*, at most 63 characters)".into(),
        ),
        Kind::Ids => (
            text.is_some_and(|t| SubjectId::parse("group", t).is_ok()),
            "ids (1 to 128 characters of A-Z a-z 0-9 _ - . : @ +)".into(),
        ),
        Kind::Choices(choices) => (text.is_some_and(|t| choices.contains(&t)), format!("only {}", choices.join(", "))),
        Kind::Numbers { min, max } => {
            (integer(item).is_some_and(|n| (*min..=*max).contains(&n)), format!("whole numbers from {min} to {max}"))
        }
        Kind::Dates => (a_date(item).is_some(), "dates without quotes, like 2026-01-26".into()),
        _ => (false, "something else".into()),
    };
    (!good).then_some(expected)
}

/// What a value should have been, if it is not.
fn expected_value(kind: &Kind, value: &DeValue<'_>) -> Option<String> {
    let text = value.as_str();
    let (good, expected) = match kind {
        Kind::Text { max } => (
            text.is_some_and(|t| {
                !t.trim().is_empty() && t.chars().count() <= *max as usize && !t.chars().any(char::is_control)
            }),
            format!("one line of text with 1 to {max} characters"),
        ),
        Kind::Name => (
            text.is_some_and(|t| Name::parse("name", t).is_ok()),
            "a name: [a-z][a-z0-9_-]*, at most 63 characters".into(),
        ),
        Kind::Integer { min, max } => {
            (integer(value).is_some_and(|n| (*min..=*max).contains(&n)), format!("a whole number from {min} to {max}"))
        }
        Kind::Flag => (value.is_bool(), "true or false".into()),
        Kind::Period => (
            text.is_some_and(|t| Period::parse(t).is_some()),
            "a period like \"90d\", \"18mo\", \"7y\", at most 100 years".into(),
        ),
        Kind::PeriodOrNone => (
            text.is_some_and(|t| t == "none" || Period::parse(t).is_some()),
            "\"none\" or a period like \"90d\", \"18mo\", \"7y\", at most 100 years".into(),
        ),
        Kind::Within => (
            text.is_some_and(|t| Within::parse(t).is_some()),
            "a time limit like \"24h\", \"30d\", \"5bd\" (business days), \"1mo\", at most 999".into(),
        ),
        Kind::Date => (a_date(value).is_some(), "a date without quotes, like 2026-05-20".into()),
        Kind::Zone => {
            (text.is_some_and(|t| period::zone(t).is_some()), "an IANA time zone, like \"Asia/Jakarta\"".into())
        }
        Kind::Mask => (
            text.is_some_and(|t| Mask::parse(t).is_some()),
            "one of email, phone, card, name, hidden, last:1 to last:8, pattern:##****## (# is shown, at most half)"
                .into(),
        ),
        Kind::Choice(choices) => (text.is_some_and(|t| choices.contains(&t)), format!("one of {}", choices.join(", "))),
        Kind::Choices(_) | Kind::Names | Kind::NamesOrAll | Kind::Numbers { .. } | Kind::Ids | Kind::Dates => {
            (false, "a list".into())
        }
        Kind::One(_) => (false, "a table".into()),
        Kind::Many(_) => (false, "tables with a heading in double brackets".into()),
        Kind::Later => (false, "absent".into()),
    };
    (!good).then_some(expected)
}

/// The known word at most two edits away.
fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    if word.len() > 40 {
        return None;
    }
    known.iter().map(|k| (distance(word.as_bytes(), k.as_bytes()), *k)).filter(|(d, _)| *d <= 2).min().map(|(_, k)| k)
}

fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let cost = if x == y { corner } else { 1 + corner.min(row[j]).min(row[j + 1]) };
            corner = row[j + 1];
            row[j + 1] = cost;
        }
    }
    row[b.len()]
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub const SMALL: &str = r#"format = 1
time_zone = "UTC"

[controller]
name = "Example"
contact = "privacy@example.com"

[[class]]
number = 1
name = "account"
retention = "none"

[[field]]
number = 1
name = "email"
class = "account"
type = "text"
validator = "email"

[[purpose]]
number = 1
name = "service"
basis = "contract"
classes = ["*"]
"#;

    fn errors(text: &str) -> Vec<(u32, String, &'static str)> {
        File::parse(text).expect_err("must be refused").into_iter().map(|f| (f.line, f.key, f.rule)).collect()
    }
    fn one(text: &str) -> (u32, String, &'static str) {
        let all = errors(text);
        assert_eq!(all.len(), 1, "{all:?}");
        all.into_iter().next().unwrap()
    }

    #[test]
    fn a_small_file_is_read_with_its_lines() {
        let file = File::parse(SMALL).unwrap();
        assert_eq!(file.classes[0].head.number, At { value: 1, line: 9 });
        assert_eq!(file.fields[0].head.name.line, 15);
        assert_eq!(file.fields[0].validator.value, Validator::Email);
        assert_eq!(file.purposes[0].allowed.classes, Names::All);
        assert_eq!(file.classes[0].retention.unwrap().value, None);
    }

    #[test]
    fn an_unknown_key_is_an_error_with_its_line() {
        let text = SMALL.replace("retention = \"none\"", "retentoin = \"none\"");
        let findings = File::parse(&text).unwrap_err();
        assert_eq!(
            (findings[0].line, findings[0].key.as_str(), findings[0].rule),
            (11, "class.retentoin", "unknown-key")
        );
        assert!(findings[0].message.contains("`retention`"), "{}", findings[0].message);
        assert_eq!(one(&format!("colour = 1\n{SMALL}")), (1, "colour".into(), "unknown-key"));
        assert_eq!(one(&format!("{SMALL}\n[surprise]\nx = 1\n")), (26, "surprise".into(), "unknown-key"));
    }

    #[test]
    fn what_nobody_enforces_is_refused_by_name() {
        assert_eq!(one(&format!("{SMALL}\n[audit]\nretention = \"1y\"\n")), (26, "audit".into(), "not-enforced"));
    }

    #[test]
    fn wrong_values_are_named_and_not_shown() {
        let cases = [
            ("number = 1\nname = \"account\"", "number = 17\nname = \"account\"", 9, "class.number"),
            ("name = \"account\"\nretention", "name = \"Secret Words\"\nretention", 10, "class.name"),
            ("retention = \"none\"", "retention = \"secret\"", 11, "class.retention"),
            ("type = \"text\"", "type = \"secret\"", 17, "field.type"),
            ("type = \"text\"", "type = [\"secret\"]", 17, "field.type"),
            ("time_zone = \"UTC\"", "time_zone = \"Secret/Place\"", 2, "time_zone"),
            ("format = 1", "format = 2", 1, "format"),
            ("classes = [\"*\"]", "classes = [\"*\", \"account\"]", 24, "purpose.classes"),
            ("classes = [\"*\"]", "classes = \"account\"", 24, "purpose.classes"),
            ("classes = [\"*\"]", "classes = [\"*\"]\napproval = \"secret\"", 25, "purpose.approval"),
            ("contact = \"privacy@example.com\"", "contact = \" \"", 6, "controller.contact"),
        ];
        for (from, to, line, key) in cases {
            let text = SMALL.replace(from, to);
            assert_ne!(text, SMALL, "{from}");
            let findings = File::parse(&text).unwrap_err();
            assert_eq!((findings[0].line, findings[0].key.as_str()), (line, key), "{to}");
            assert!(!findings[0].to_string().to_lowercase().contains("secret"), "{}", findings[0]);
        }
    }

    #[test]
    fn a_missing_key_is_named_with_its_table() {
        assert_eq!(one(&SMALL.replace("type = \"text\"\n", "")), (13, "field.type".into(), "missing-key"));
        assert_eq!(one(&SMALL.replace("time_zone = \"UTC\"\n", "")).1, "time_zone");
        assert_eq!(
            one(&SMALL.replace("contact = \"privacy@example.com\"\n", "")),
            (4, "controller.contact".into(), "missing-key")
        );
    }

    #[test]
    fn broken_toml_has_a_line() {
        assert_eq!(one("format = 1\nx = [\n").2, "syntax");
        assert_eq!(one("format = 1\nformat = 1\n"), (2, "file".into(), "syntax"));
        assert_eq!(one(&"#".repeat(MAX_BYTES + 1)).2, "too-long");
    }

    #[test]
    fn dates_that_do_not_exist_are_refused() {
        assert_eq!(errors(&format!("{SMALL}\n[policy]\nupdated = 2026-02-30\n"))[0].0, 27);
        assert_eq!(one(&format!("{SMALL}\n[policy]\nupdated = 2026-02-28T00:00:00Z\n")).1, "policy.updated");
        let file = File::parse(&format!("{SMALL}\n[policy]\nupdated = 2028-02-29\n")).unwrap();
        assert_eq!(file.policy.updated.as_deref(), Some("2028-02-29"));
    }

    #[test]
    fn every_error_is_found_in_one_go() {
        let text =
            SMALL.replace("type = \"text\"", "typ = \"text\"").replace("basis = \"contract\"", "basis = \"greed\"");
        let rules: Vec<_> = errors(&text).into_iter().map(|(line, _, rule)| (line, rule)).collect();
        assert_eq!(rules, [(13, "missing-key"), (17, "unknown-key"), (23, "wrong-value")]);
    }

    proptest! {
        #[test]
        fn t40_no_text_panics_the_parser(text in "\\PC{0,300}") {
            let _ = File::parse(&text);
        }

        #[test]
        fn t40_no_damaged_file_panics_the_parser(at in 0usize..400, cut in 0usize..20, insert in "[\\[\\]\"=\n a-z0-9{}.]{0,6}") {
            let at = at.min(SMALL.len());
            let end = (at + cut).min(SMALL.len());
            let _ = File::parse(&format!("{}{insert}{}", &SMALL[..at], &SMALL[end..]));
        }
    }
}
