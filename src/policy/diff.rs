//! What differs between two policy files, key by key. Tables are told apart by their permanent number, so that moving one
//! is no change and a renamed one is the same one; tables without a number are compared by what they say.

use super::parse::MAX_BYTES;
use super::records::Lines;
use toml::de::{DeTable, DeValue};

/// One key, or one table, that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Table, such as `class` or `role.grant`; empty: the file itself.
    pub table: String,
    /// Its permanent number; 0: it has none.
    pub number: u16,
    /// Its name; empty: it has none.
    pub name: String,
    /// Key in the table; empty: the whole table came or went.
    pub key: String,
    /// What was, as TOML; `None`: it was not there.
    pub before: Option<String>,
    /// What is, as TOML; `None`: it is not there.
    pub after: Option<String>,
    /// Line in the former file; 0: it was not there.
    pub line_before: u32,
    /// Line in the later file; 0: it is not there.
    pub line_after: u32,
}

/// Compares two files, by the lines of the later one; what went comes last, by the lines of the former. `None` where one of
/// them is no TOML.
pub fn diff(before: &str, after: &str) -> Option<Vec<Change>> {
    if before.len().max(after.len()) > MAX_BYTES {
        return None;
    }
    let (old, new) = (DeTable::parse(before).ok()?, DeTable::parse(after).ok()?);
    let sides = Sides { before: Lines::of(before), after: Lines::of(after) };
    let mut found = Vec::new();
    let file = Of { table: String::new(), number: 0, name: String::new() };
    tables(&file, Some(old.get_ref()), Some(new.get_ref()), &sides, &mut found);
    found.sort_by_key(|c: &Change| (c.line_after == 0, c.line_after, c.line_before));
    Some(found)
}

struct Sides {
    before: Lines,
    after: Lines,
}

/// Which table a key is in.
#[derive(Clone)]
struct Of {
    table: String,
    number: u16,
    name: String,
}

impl Of {
    fn inner(&self, key: &str) -> String {
        if self.table.is_empty() { key.to_owned() } else { format!("{}.{key}", self.table) }
    }
}

type Value<'a> = toml::Spanned<DeValue<'a>>;

fn tables(of: &Of, before: Option<&DeTable<'_>>, after: Option<&DeTable<'_>>, sides: &Sides, found: &mut Vec<Change>) {
    let keys = |table: Option<&DeTable<'_>>| -> Vec<String> {
        table.into_iter().flat_map(|t| t.keys()).map(|k| k.get_ref().to_string()).collect()
    };
    let mut all = keys(after);
    for key in keys(before) {
        if !all.contains(&key) {
            all.push(key);
        }
    }
    for key in all {
        let (was, is) = (before.and_then(|t| t.get(key.as_str())), after.and_then(|t| t.get(key.as_str())));
        match (was.map(Value::get_ref), is.map(Value::get_ref)) {
            (a, b) if is_list(a) || is_list(b) => lists(of, &key, was, is, sides, found),
            // `[reserved]` and the like; a table in braces is one value.
            (Some(DeValue::Table(a)), Some(DeValue::Table(b))) if of.table.is_empty() => {
                let of = Of { table: key, ..of.clone() };
                tables(&of, Some(a), Some(b), sides, found);
            }
            _ => push(of, &key, was, is, sides, found),
        }
    }
}

fn is_list(value: Option<&DeValue<'_>>) -> bool {
    matches!(value, Some(DeValue::Array(all)) if all.iter().any(|one| one.get_ref().is_table()))
}

/// Arrays of tables: by number where they have one, else those that say the same on both sides are left out and the rest
/// are compared in their order.
fn lists(of: &Of, key: &str, was: Option<&Value<'_>>, is: Option<&Value<'_>>, sides: &Sides, found: &mut Vec<Change>) {
    let mut old: Vec<&Value<'_>> = items(was);
    let mut new: Vec<&Value<'_>> = items(is);
    old.retain(|one| match new.iter().position(|other| shown(one.get_ref()) == shown(other.get_ref())) {
        Some(at) => {
            new.remove(at);
            false
        }
        None => true,
    });
    let numbered = |one: &Value<'_>| number(one.get_ref());
    for one in &new {
        let no = numbered(one);
        let partner = match no {
            Some(_) => old.iter().position(|other| numbered(other) == no),
            None => old.iter().position(|other| numbered(other).is_none()),
        };
        let partner = partner.map(|at| old.remove(at));
        let named = Of {
            table: of.inner(key),
            number: no.unwrap_or(of.number),
            name: text_of(one.get_ref(), "name").unwrap_or_else(|| of.name.clone()),
        };
        match (partner.map(|p| p.get_ref()), one.get_ref()) {
            (Some(DeValue::Table(a)), DeValue::Table(b)) => tables(&named, Some(a), Some(b), sides, found),
            _ => push(&named, "", None, Some(one), sides, found),
        }
    }
    for one in old {
        let named = Of {
            table: of.inner(key),
            number: numbered(one).unwrap_or(of.number),
            name: text_of(one.get_ref(), "name").unwrap_or_else(|| of.name.clone()),
        };
        push(&named, "", Some(one), None, sides, found);
    }
}

fn items<'v, 'a>(value: Option<&'v Value<'a>>) -> Vec<&'v Value<'a>> {
    match value.map(Value::get_ref) {
        Some(DeValue::Array(all)) => all.iter().collect(),
        _ => Vec::new(),
    }
}

fn push(of: &Of, key: &str, was: Option<&Value<'_>>, is: Option<&Value<'_>>, sides: &Sides, found: &mut Vec<Change>) {
    let (before, after) = (was.map(|v| shown(v.get_ref())), is.map(|v| shown(v.get_ref())));
    if before == after {
        return;
    }
    found.push(Change {
        table: of.table.clone(),
        number: of.number,
        name: of.name.clone(),
        key: key.to_owned(),
        before,
        after,
        line_before: was.map_or(0, |v| sides.before.line(v.span().start)),
        line_after: is.map_or(0, |v| sides.after.line(v.span().start)),
    });
}

fn number(value: &DeValue<'_>) -> Option<u16> {
    match value.get("number").map(Value::get_ref) {
        Some(DeValue::Integer(n)) => n.as_str().parse().ok(),
        _ => None,
    }
}

fn text_of(value: &DeValue<'_>, key: &str) -> Option<String> {
    Some(value.get(key)?.get_ref().as_str()?.to_owned())
}

/// A value on one line; keys in alphabetical order, so that their order in the file is no change.
fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(n) => n.as_str().to_owned(),
        DeValue::Float(n) => n.as_str().to_owned(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(at) => at.to_string(),
        DeValue::Array(all) => {
            format!("[{}]", all.iter().map(|one| shown(one.get_ref())).collect::<Vec<_>>().join(", "))
        }
        DeValue::Table(table) => {
            let mut all: Vec<String> =
                table.iter().map(|(key, one)| format!("{} = {}", key.get_ref(), shown(one.get_ref()))).collect();
            all.sort();
            format!("{{ {} }}", all.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::SOUND;
    use super::*;

    fn changes(from: &str, to: &str) -> Vec<String> {
        let after = SOUND.replacen(from, to, 1);
        assert_ne!(after, SOUND);
        let all = diff(SOUND, &after).unwrap();
        all.into_iter().map(|c| format!("{} {} {} {:?} {:?}", c.table, c.number, c.key, c.before, c.after)).collect()
    }

    #[test]
    fn a_key_is_named_with_its_table_number_and_lines() {
        assert_eq!(
            changes("retention = \"90d\"", "retention = \"30d\""),
            [r#"class 2 retention Some("\"90d\"") Some("\"30d\"")"#]
        );
        let after = SOUND.replacen("retention = \"90d\"", "\nretention = \"30d\"", 1);
        let one = &diff(SOUND, &after).unwrap()[0];
        assert_eq!(one.line_after, one.line_before + 1);
        assert_eq!(one.name, "content");
        assert_eq!(
            changes("time_zone = \"UTC\"", "time_zone = \"Asia/Kolkata\""),
            [r#" 0 time_zone Some("\"UTC\"") Some("\"Asia/Kolkata\"")"#]
        );
    }

    #[test]
    fn what_comes_and_goes_is_one_change_and_moving_is_none() {
        assert_eq!(diff(SOUND, SOUND).unwrap(), []);
        let (a, b) = ("[[plan]]\nnumber = 1\nname = \"a\"\n", "[[plan]]\nnumber = 2\nname = \"b\"\n");
        assert_eq!(diff(&format!("{a}{b}"), &format!("{b}\n{a}")).unwrap(), []);
        let went = diff(&format!("{a}{b}"), b).unwrap();
        assert_eq!((went.len(), went[0].number, went[0].name.as_str()), (1, 1, "a"));
        assert_eq!((went[0].line_before, went[0].line_after, went[0].after.as_deref()), (1, 0, None));
        // Tables without a number: one of three goes, the others are not compared with their former neighbours.
        let (x, y, z) = ("[[claim]]\nkind = \"x\"\n", "[[claim]]\nkind = \"y\"\n", "[[claim]]\nkind = \"z\"\n");
        let went = diff(&format!("{x}{y}{z}"), &format!("{x}{z}")).unwrap();
        assert_eq!(went.len(), 1);
        assert_eq!(went[0].before.as_deref(), Some("{ kind = \"y\" }"));
        assert_eq!(diff("x = [", ""), None);
    }
}
