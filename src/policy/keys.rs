//! Every key of a policy file, once: the parser refuses what is not here, and the JSON Schema and the tables of
//! `docs/POLICY.md` are written from it, so that the three cannot disagree.

pub use super::key::*;
use super::tables::FILE;
use serde_json::{Map, Value as Json, json};

/// Every table of the file, the file itself first.
pub fn sections() -> Vec<&'static Section> {
    fn walk(section: &'static Section, all: &mut Vec<&'static Section>) {
        all.push(section);
        for key in section.keys {
            if let Kind::One(inner) | Kind::Many(inner) = key.kind {
                walk(inner, all);
            }
        }
    }
    let mut all = Vec::new();
    walk(&FILE, &mut all);
    all
}

const NAME_PATTERN: &str = "^[a-z][a-z0-9_-]{0,62}$";
const PERIOD_PATTERN: &str = "^[1-9][0-9]{0,4}(d|mo|y)$";
const WITHIN_PATTERN: &str = "^[1-9][0-9]{0,2}(h|d|bd|mo)$";

/// The JSON Schema (draft 2020-12) of a policy file, for editors; shipped as `docs/policy.schema.json`.
pub fn json_schema() -> Json {
    let mut schema = section_schema(&FILE);
    let object = schema.as_object_mut().expect("section_schema answers an object");
    object.insert("$schema".into(), json!("https://json-schema.org/draft/2020-12/schema"));
    object.insert("title".into(), json!("pii-vault policy file"));
    schema
}

fn section_schema(section: &Section) -> Json {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for key in section.keys {
        if matches!(key.kind, Kind::Later) {
            continue;
        }
        let mut one = kind_schema(&key.kind);
        if let Some(object) = one.as_object_mut() {
            object.insert("description".into(), json!(format!("{} Default: {}.", key.doc, key.default)));
        }
        properties.insert(key.name.into(), one);
        if key.default == REQUIRED {
            required.push(key.name);
        }
    }
    json!({"type": "object", "description": section.doc, "properties": properties, "required": required, "additionalProperties": false})
}

fn kind_schema(kind: &Kind) -> Json {
    match kind {
        Kind::Text { max } => json!({"type": "string", "minLength": 1, "maxLength": max}),
        Kind::Name => json!({"type": "string", "pattern": NAME_PATTERN}),
        Kind::Integer { min, max } => json!({"type": "integer", "minimum": min, "maximum": max}),
        Kind::Flag => json!({"type": "boolean"}),
        Kind::Period => json!({"type": "string", "pattern": PERIOD_PATTERN}),
        Kind::PeriodOrNone => json!({"type": "string", "pattern": "^([1-9][0-9]{0,4}(d|mo|y)|none)$"}),
        Kind::Date => json!({"type": "string", "format": "date"}),
        Kind::Zone => json!({"type": "string"}),
        Kind::Mask => {
            json!({"type": "string", "pattern": "^(email|phone|card|name|hidden|last:[1-8]|pattern:[#*]{2,32})$"})
        }
        Kind::Choice(choices) => json!({"enum": choices}),
        Kind::Choices(choices) => json!({"type": "array", "items": {"enum": choices}, "uniqueItems": true}),
        Kind::Names => json!({"type": "array", "items": {"type": "string", "pattern": NAME_PATTERN}}),
        Kind::NamesOrAll => {
            json!({"anyOf": [{"const": ["*"]}, {"type": "array", "items": {"type": "string", "pattern": NAME_PATTERN}}]})
        }
        Kind::Numbers { min, max } => {
            json!({"type": "array", "items": {"type": "integer", "minimum": min, "maximum": max}, "uniqueItems": true})
        }
        Kind::Ids => json!({"type": "array", "items": {"type": "string", "pattern": "^[A-Za-z0-9_.:@+-]{1,128}$"}}),
        Kind::One(section) => section_schema(section),
        Kind::Many(section) => json!({"type": "array", "items": section_schema(section)}),
        Kind::Within => json!({"type": "string", "pattern": WITHIN_PATTERN}),
        Kind::Dates => json!({"type": "array", "items": {"type": "string", "format": "date"}, "uniqueItems": true}),
        Kind::Later => json!(false),
    }
}

/// The reference tables of `docs/POLICY.md`.
pub fn markdown() -> String {
    let mut out = String::new();
    for section in sections() {
        let repeated = sections()
            .iter()
            .flat_map(|s| s.keys)
            .any(|k| matches!(k.kind, Kind::Many(inner) if inner.path == section.path));
        out += &match (section.path, repeated) {
            ("", _) => "### The file\n".to_owned(),
            (path, true) => format!("### `[[{path}]]`\n"),
            (path, false) => format!("### `[{path}]`\n"),
        };
        out += &format!("\n{}\n\n| Key | Type | Default | Meaning | Example |\n|---|---|---|---|---|\n", section.doc);
        for key in section.keys {
            let example =
                if key.example.is_empty() { String::new() } else { format!("`{} = {}`", key.name, key.example) };
            out += &format!(
                "| `{}` | {} | {} | {} | {example} |\n",
                key.name,
                kind_words(&key.kind),
                key.default,
                key.doc
            );
        }
        out.push('\n');
    }
    out
}

fn kind_words(kind: &Kind) -> String {
    let quoted = |choices: &[&str]| choices.iter().map(|c| format!("`{c}`")).collect::<Vec<_>>().join(", ");
    match kind {
        Kind::Text { max } => format!("text, at most {max} characters"),
        Kind::Name => "name".into(),
        Kind::Integer { min, max } if min == max => format!("{min}"),
        Kind::Integer { min, max } => format!("{min} to {max}"),
        Kind::Flag => "true or false".into(),
        Kind::Period => "period".into(),
        Kind::PeriodOrNone => "period or `none`".into(),
        Kind::Within => "time limit".into(),
        Kind::Date => "date".into(),
        Kind::Dates => "list of dates".into(),
        Kind::Zone => "time zone".into(),
        Kind::Mask => "`email`, `phone`, `card`, `name`, `hidden`, `last:1` to `last:8`, `pattern:##****##`".into(),
        Kind::Choice(choices) => format!("one of {}", quoted(choices)),
        Kind::Choices(choices) => format!("list of {}", quoted(choices)),
        Kind::Names => "list of names".into(),
        Kind::NamesOrAll => "list of names, or `[\"*\"]`".into(),
        Kind::Numbers { min, max } => format!("list of {min} to {max}"),
        Kind::Ids => "list of ids".into(),
        Kind::One(section) => format!("table `[{}]`", section.path),
        Kind::Many(section) => format!("tables `[[{}]]`", section.path),
        Kind::Later => "**not enforced by this version: refused**".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Verb;

    #[test]
    fn verbs_are_those_of_access() {
        assert_eq!(super::super::words::VERBS, Verb::ALL.iter().map(|v| v.name()).collect::<Vec<_>>());
    }

    #[test]
    fn no_table_says_a_key_twice() {
        for section in sections() {
            for (i, key) in section.keys.iter().enumerate() {
                assert!(section.keys[..i].iter().all(|k| k.name != key.name), "{}.{}", section.path, key.name);
            }
        }
    }
}
