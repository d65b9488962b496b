//! The shipped files and the reference page against the code. `UPDATE_DOCS=1 cargo test policy::tests` writes the
//! generated parts anew.

use super::compiled::Policy;
use super::file::{File, Finding, Severity};
use super::{keys, lint};
use crate::access::{Verb, View};
use crate::ids::{Name, PolicyVersion};
use serde_json::{Value as Json, json};

const SHIPPED: [(&str, &str); 3] = [
    ("jina-connect", include_str!("../../examples/tenants/jina-connect.toml")),
    ("jiwa-ai", include_str!("../../examples/tenants/jiwa-ai.toml")),
    ("jenny-erp", include_str!("../../examples/tenants/jenny-erp.toml")),
];
const PAGE: &str = include_str!("../../docs/POLICY.md");
const SCHEMA: &str = include_str!("../../docs/policy.schema.json");

/// The shipped file of that tenant.
pub(super) fn shipped(tenant: &str) -> &'static str {
    SHIPPED.iter().find(|(name, _)| *name == tenant).unwrap().1
}

fn compile(text: &str) -> (Policy, Vec<Finding>) {
    Policy::compile(text, PolicyVersion(1), None)
        .unwrap_or_else(|f| panic!("{}", f.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))
}
fn name(text: &str) -> Name {
    Name::parse("name", text).unwrap()
}

/// Compares a shipped file with what the code says, or writes it if asked to.
fn same_or_update(path: &str, shipped: &str, now: &str) {
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(format!("{}/{path}", env!("CARGO_MANIFEST_DIR")), now).unwrap();
    } else {
        assert!(shipped == now, "{path} is not what the code says: UPDATE_DOCS=1 cargo test policy::tests");
    }
}

#[test]
fn nobody_can_take_a_users_api_key_for_an_access_key() {
    let jina = SHIPPED[0].1;
    for (prefix, good) in [("acme", true), ("pvault", true), ("pv", false), ("pv_acme", false), ("a-b", false)] {
        let text = jina.replace("api_key_prefix = \"jina\"", &format!("api_key_prefix = \"{prefix}\""));
        assert_ne!(text, jina);
        assert_eq!(Policy::compile(&text, PolicyVersion(1), None).is_ok(), good, "{prefix}");
    }
}

#[test]
fn the_shipped_files_apply() {
    for (tenant, text) in SHIPPED {
        let (policy, findings) = compile(text);
        assert!(findings.iter().all(|f| f.severity != Severity::Error), "{tenant}");
        assert!(policy.fields().count() >= 5 && policy.roles().len() >= 4, "{tenant}");
        // A company that answers for people's data names a role's address, never a private person's.
        assert!(!text.contains("gmail"), "{tenant}");
        let again = Policy::compile(text, PolicyVersion(2), Some(&policy));
        assert!(again.is_ok(), "{tenant}: a file follows itself");
    }
}

#[test]
fn jina_connect_keeps_what_it_promised() {
    let (policy, _) = compile(SHIPPED[0].1);
    let class = |text: &str| policy.class_by_name(&name(text)).unwrap();
    let field = |text: &str| policy.field_by_name(&name(text)).unwrap();
    let allows = |purpose: &str, f: &str| policy.purpose_by_name(&name(purpose)).unwrap().fields.has(field(f).no.0);
    // jc01: account data is name, email, phone, organisation.
    let account: Vec<&str> =
        policy.fields().filter(|f| f.class == class("account").no).map(|f| f.name.as_str()).collect();
    assert_eq!(account, ["name", "email", "phone", "organisation"]);
    assert!(field("email").searchable && field("email").unique && field("phone").searchable);
    // jc04: content is for delivery and analytics, and for what the law demands.
    for purpose in policy.purposes() {
        let lawful = ["delivery", "analytics", "legal_obligation", "legal_request", "protect_rights"];
        assert_eq!(
            purpose.fields.has(field("message").no.0),
            lawful.contains(&purpose.name.as_str()),
            "{}",
            purpose.name
        );
    }
    assert!(!allows("marketing", "phone"));
    // jc09: authorities only with a case and a second person.
    for purpose in ["legal_request", "protect_rights"] {
        let rule = policy.purpose_by_name(&name(purpose)).unwrap();
        assert!(rule.needs_approval && rule.needs_reference);
    }
    // jc17, jc18.
    assert_eq!(class("content").retention.unwrap().to_string(), "90d");
    let hold = class("billing").hold.as_ref().unwrap();
    assert_eq!((hold.name.as_str(), hold.keep.to_string().as_str()), ("tax-law-in", "7y"));
    let ninety_one = super::period::Period::Days(91);
    assert!(policy.check_override(Some(&name("enterprise")), class("content").no, ninety_one).is_ok());
    assert!(policy.check_override(Some(&name("standard")), class("content").no, ninety_one).is_err());
    // Support sees hints: every account field has a mask.
    let support = policy.role_by_name(&name("support")).unwrap();
    assert!(support.grants.iter().filter(|g| g.verbs.has(Verb::Read)).all(|g| g.max_view == View::Masked));
    assert!(policy.fields().filter(|f| f.class == class("account").no).all(|f| f.mask.is_some()));
}

#[test]
fn jiwa_ai_and_jenny_erp_keep_what_they_promised() {
    let (jiwa, _) = compile(SHIPPED[1].1);
    assert_eq!(jiwa.field_by_name(&name("website_text")).unwrap().max_length, 2000);
    let token = jiwa.class_by_name(&name("instagram_token")).unwrap();
    assert_eq!((token.retention, token.max_retention), (Some(super::period::Period::Days(60)), token.retention));
    assert!(jiwa.purpose_by_name(&name("publish")).unwrap().needs_reference);
    let (jenny, _) = compile(SHIPPED[2].1);
    let grace = |class: &str| jenny.class_by_name(&name(class)).unwrap().grace.map(|g| g.to_string());
    assert_eq!(grace("account").as_deref(), Some("30d"));
    assert_eq!(grace("invoices"), None);
    assert_eq!(jenny.region().unwrap().as_str(), "eu-central-1");
    assert!(jenny.purpose_by_name(&name("marketing")).is_none());
}

#[test]
fn every_example_of_the_page_applies() {
    let blocks: Vec<&str> = PAGE.split("```toml\n").skip(1).map(|b| b.split("```").next().unwrap()).collect();
    let (whole, parts) = blocks.split_first().expect("the page has a complete file");
    assert!(parts.len() >= 3 && PAGE.matches("```toml").count() == blocks.len());
    assert_eq!(compile(whole).1, [], "the first example is sound");
    // The others add to it: one by one, and all together.
    for part in parts {
        compile(&format!("{whole}\n{part}"));
    }
    compile(&format!("{whole}\n{}", parts.join("\n")));
}

#[test]
fn every_example_of_a_key_is_a_value_of_it() {
    for section in keys::sections() {
        for key in section.keys.iter().filter(|k| !k.example.is_empty()) {
            // Other keys are missing there; what counts is that this one is right.
            let parts: Vec<&str> = section.path.split('.').filter(|p| !p.is_empty()).collect();
            let mut text: String = (1..=parts.len()).map(|n| heading(&parts[..n].join("."))).collect();
            text += &format!("{} = {}\n", key.name, key.example);
            let line = parts.len() as u32 + 1;
            let findings = File::parse(&text).expect_err("most keys are missing");
            let of_this: Vec<_> = findings.iter().filter(|f| f.line == line && f.rule != "missing-key").collect();
            assert!(of_this.is_empty(), "{text}{of_this:?}");
        }
    }
}

fn repeated(path: &str) -> bool {
    let many = |k: &keys::Key| matches!(k.kind, keys::Kind::Many(inner) if inner.path == path);
    keys::sections().iter().any(|s| s.keys.iter().any(many))
}
fn heading(path: &str) -> String {
    if repeated(path) { format!("[[{path}]]\n") } else { format!("[{path}]\n") }
}

#[test]
fn the_page_lists_every_key_and_every_rule() {
    let start = PAGE.find("## Every key").unwrap_or(PAGE.len());
    let mut page = PAGE[..start].trim_end().to_owned();
    page += "\n\n## Every key\n\nAn unknown key is an error with its line. Keys that say *not enforced by this version* are refused by name, so that no\n";
    page += "file promises what nothing keeps.\n\n";
    page += &keys::markdown();
    page +=
        "## Every claim\n\nWhat `[[claim]]` can say. A claim that nobody here keeps is noted as outside the vault.\n\n";
    page += &super::claim::markdown();
    page += "\n";
    page += "## Every finding\n\nErrors keep a file from being applied; `tenant lint` exits with 7. Warnings do not, except with `--deny warnings`.\n\n";
    page += "| Finding | Severity | Meaning |\n|---|---|---|\n";
    for (rule, severity, says) in lint::RULES {
        page += &format!("| `{rule}` | {} | {says} |\n", format!("{severity:?}").to_lowercase());
    }
    same_or_update("docs/POLICY.md", PAGE, &page);
}

#[test]
fn the_schema_is_that_of_the_parser() {
    let now = serde_json::to_string_pretty(&keys::json_schema()).unwrap() + "\n";
    same_or_update("docs/policy.schema.json", SCHEMA, &now);
}

#[test]
fn the_shipped_files_fit_the_schema_and_broken_ones_do_not() {
    let schema = keys::json_schema();
    for (tenant, text) in SHIPPED {
        let value = as_json(text);
        assert_eq!(mismatch(&schema, &value, tenant), None);
        let broken = as_json(&text.replacen("time_zone", "timezone", 1));
        assert!(mismatch(&schema, &broken, tenant).is_some());
        let broken = as_json(&text.replacen("type = \"text\"", "type = \"string\"", 1));
        assert!(mismatch(&schema, &broken, tenant).is_some());
    }
}

fn as_json(text: &str) -> Json {
    fn plain(value: toml::Value) -> Json {
        match value {
            toml::Value::String(s) => json!(s),
            toml::Value::Integer(n) => json!(n),
            toml::Value::Float(n) => json!(n),
            toml::Value::Boolean(b) => json!(b),
            toml::Value::Datetime(d) => json!(d.to_string()),
            toml::Value::Array(a) => a.into_iter().map(plain).collect(),
            toml::Value::Table(t) => Json::Object(t.into_iter().map(|(k, v)| (k, plain(v))).collect()),
        }
    }
    plain(toml::Value::Table(text.parse().unwrap()))
}

/// Where the value does not fit, by the keywords that our schema uses (patterns are left to the parser).
fn mismatch(schema: &Json, value: &Json, path: &str) -> Option<String> {
    if let Some(any) = schema["anyOf"].as_array() {
        return if any.iter().any(|s| mismatch(s, value, path).is_none()) { None } else { Some(path.into()) };
    }
    if let Some(constant) = schema.get("const") {
        return (constant != value).then(|| path.into());
    }
    if let Some(list) = schema["enum"].as_array() {
        return (!list.contains(value)).then(|| path.into());
    }
    let fits = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.as_i64().is_some_and(|n| {
            schema["minimum"].as_i64().is_none_or(|min| n >= min)
                && schema["maximum"].as_i64().is_none_or(|max| n <= max)
        }),
        Some("boolean") => value.is_boolean(),
        other => panic!("{path}: the schema uses {other:?}"),
    };
    if !fits {
        return Some(path.into());
    }
    if let (Some(items), Some(list)) = (schema.get("items"), value.as_array()) {
        return list.iter().find_map(|v| mismatch(items, v, path));
    }
    let object = value.as_object()?;
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str);
    if let Some(missing) = required.into_iter().find(|key| !object.contains_key(*key)) {
        return Some(format!("{path}.{missing}"));
    }
    object.iter().find_map(|(key, v)| match schema["properties"].get(key) {
        Some(inner) => mismatch(inner, v, &format!("{path}.{key}")),
        None => Some(format!("{path}.{key}")),
    })
}
