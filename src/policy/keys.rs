//! Every key of a policy file, once: the parser refuses what is not here, and the JSON Schema and the tables of
//! `docs/POLICY.md` are written from it, so that the three cannot disagree.

use serde_json::{Map, Value as Json, json};

/// One key of a table.
pub struct Key {
    pub name: &'static str,
    pub kind: Kind,
    /// What holds when it is absent; [`REQUIRED`] for keys that must be there.
    pub default: &'static str,
    pub doc: &'static str,
    /// As it is written in a file, after `key = `; empty for tables.
    pub example: &'static str,
}

/// The default of a key that must be there.
pub const REQUIRED: &str = "required";

/// What a key holds.
pub enum Kind {
    /// One line of text for people, 1 to `max` characters.
    Text {
        max: u32,
    },
    /// A name: `[a-z][a-z0-9_-]*`, at most 63 characters.
    Name,
    Integer {
        min: i64,
        max: i64,
    },
    Flag,
    /// `"90d"`, `"18mo"`, `"7y"`.
    Period,
    /// A period or `"none"`.
    PeriodOrNone,
    /// A TOML date: `2026-05-20`.
    Date,
    /// The name of a time zone in the IANA database.
    Zone,
    /// `email`, `phone`, `card`, `name`, `hidden` or `last:N`.
    Mask,
    Choice(&'static [&'static str]),
    Choices(&'static [&'static str]),
    Names,
    /// Names, or `["*"]` for all there are.
    NamesOrAll,
    Numbers {
        min: i64,
        max: i64,
    },
    /// Ids that the tenant's application chose, as in `SubjectId`.
    Ids,
    /// A table.
    One(&'static Section),
    /// An array of tables.
    Many(&'static Section),
    /// Known, but nothing enforces it yet: refused by name, so that no file promises what nobody keeps.
    Later,
}

/// A table of the file.
pub struct Section {
    /// As in the heading, e.g. `role.grant`; empty for the file itself.
    pub path: &'static str,
    pub doc: &'static str,
    pub keys: &'static [Key],
}

impl Section {
    pub(super) fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|k| k.name == name)
    }
}

const fn key(name: &'static str, kind: Kind, default: &'static str, doc: &'static str, example: &'static str) -> Key {
    Key { name, kind, default, doc, example }
}
const fn later(name: &'static str, doc: &'static str) -> Key {
    Key { name, kind: Kind::Later, default: "-", doc, example: "" }
}

/// Types of fields.
pub const TYPES: &[&str] = &["text", "data", "integer", "number", "flag", "date", "time"];
/// Validators of text.
pub const VALIDATORS: &[&str] = &["none", "email", "phone_e164", "url", "name", "ip"];
/// Lawful bases.
pub const BASES: &[&str] =
    &["contract", "consent", "legal_obligation", "legitimate_interests", "vital_interests", "public_task"];
/// Kinds of purposes, for the list of the forbidden.
pub const PURPOSE_KINDS: &[&str] = &[
    "service",
    "security",
    "payment",
    "messaging",
    "support",
    "legal",
    "analytics",
    "marketing",
    "advertising",
    "sale",
];
/// Names of verbs; equal to `access::Verb::ALL`, which a test checks.
pub const VERBS: &[&str] = &[
    "read",
    "write",
    "delete",
    "find",
    "export",
    "erase",
    "hold",
    "release",
    "subject",
    "group",
    "request",
    "approve",
    "audit",
    "access",
    "policy",
    "operate",
    "verify",
    "credential",
];

/// The file.
pub const FILE: Section = Section {
    path: "",
    doc: "Keys before the first table, and the tables there are.",
    keys: &[
        key("format", Kind::Integer { min: 1, max: 1 }, REQUIRED, "Format of this file.", "1"),
        key(
            "region",
            Kind::Name,
            "not stated",
            "Where the controller says the data is. A tenant that is pinned to another region refuses the file.",
            "\"eu-central-1\"",
        ),
        key(
            "time_zone",
            Kind::Zone,
            REQUIRED,
            "IANA time zone in which months and years of retention and holds are counted. Days are always 24 h.",
            "\"Europe/Rome\"",
        ),
        key(
            "forbidden",
            Kind::Choices(PURPOSE_KINDS),
            "[]",
            "Kinds of purposes that may never be declared; a purpose with that kind or that name is an error.",
            "[\"sale\", \"advertising\"]",
        ),
        key("controller", Kind::One(&CONTROLLER), REQUIRED, "Who answers for the data.", ""),
        key("policy", Kind::One(&POLICY), "nothing stated", "The published text that this file keeps.", ""),
        key(
            "reserved",
            Kind::One(&RESERVED),
            "nothing reserved",
            "Numbers that were used once and never may be again.",
            "",
        ),
        key("category", Kind::Many(&CATEGORY), "none", "Categories of data as the published text names them.", ""),
        key(
            "class",
            Kind::Many(&CLASS),
            REQUIRED,
            "Retention classes: what lives and dies together, under one key.",
            "",
        ),
        key("field", Kind::Many(&FIELD), REQUIRED, "Fields: every value the vault accepts.", ""),
        key("purpose", Kind::Many(&PURPOSE), REQUIRED, "What values are used for; a closed list.", ""),
        key("role", Kind::Many(&ROLE), "none", "Roles that access keys are given.", ""),
        key("plan", Kind::Many(&PLAN), "none", "Plans of the tenant's customers: which retention a group may set.", ""),
        key(
            "credentials",
            Kind::One(&CREDENTIALS),
            "no credentials are kept",
            "Passwords, API keys and codes of the tenant's own users.",
            "",
        ),
        later("recipient", "Recipients, their agreements, fields and views."),
        later("claim", "What the published text claims, sentence by sentence."),
        later("age", "The age limit."),
        later("clock", "Clocks of requests."),
        later("holidays", "Days that are no business days."),
        later("analytics", "The smallest group of an aggregate."),
        later("consent", "How consent is asked for and recorded."),
        later("archives", "The horizon of key archives."),
        later("storage", "The named host of the data."),
        later("audit", "Retention of the audit."),
    ],
};

/// Of what a code is made.
pub const CODE_ALPHABETS: &[&str] = &["digits", "letters"];

const CREDENTIALS: Section = Section {
    path: "credentials",
    doc: "Passwords, API keys and codes of the tenant's own users: values of one class, which no call reads out.",
    keys: &[
        key(
            "class",
            Kind::Name,
            REQUIRED,
            "The class that holds them: they are erased, held and expired with it. It cannot be changed later.",
            "\"account\"",
        ),
        key(
            "password_min_length",
            Kind::Integer { min: 8, max: 64 },
            "8",
            "Fewest characters of a new password (NIST SP 800-63B asks for 8, and for 15 where there is no second factor).",
            "12",
        ),
        key(
            "password_common",
            Kind::Flag,
            "false",
            "Whether one of the 30,000 most common passwords is accepted as a new one.",
            "true",
        ),
        key(
            "lock_tries",
            Kind::Integer { min: 3, max: 100 },
            "10",
            "Wrong passwords in a row after which a subject waits `lock_seconds` before the next is looked at. From the third on it waits a little: 1 s, then twice as long each time.",
            "5",
        ),
        key(
            "lock_seconds",
            Kind::Integer { min: 60, max: 86_400 },
            "900",
            "The longest wait, in seconds. Nobody is locked out for good by a stranger.",
            "3600",
        ),
        key(
            "source_tries",
            Kind::Integer { min: 10, max: 100_000 },
            "100",
            "Wrong tries of one source in a day, over all subjects, after which it waits `lock_seconds` each time.",
            "50",
        ),
        key(
            "api_key_prefix",
            Kind::Name,
            "\"key\"",
            "What API keys begin with, so that scanners for leaked secrets know them; at most 16 characters, no hyphen.",
            "\"acme\"",
        ),
        key("code_length", Kind::Integer { min: 6, max: 64 }, "6", "Characters of a one-time code.", "8"),
        key(
            "code_alphabet",
            Kind::Choice(CODE_ALPHABETS),
            "\"digits\"",
            "Of what one-time codes are made; `letters` are digits and letters that nobody takes for one another.",
            "\"letters\"",
        ),
        key(
            "code_life_seconds",
            Kind::Integer { min: 60, max: 604_800 },
            "900",
            "How long a one-time code works, in seconds.",
            "86400",
        ),
        key("code_tries", Kind::Integer { min: 1, max: 20 }, "5", "Wrong tries after which a one-time code ends.", "3"),
    ],
};

const CONTROLLER: Section = Section {
    path: "controller",
    doc: "Who answers for the data; printed in receipts and exports.",
    keys: &[
        key("name", Kind::Text { max: 200 }, REQUIRED, "Legal name.", "\"JennyERP Inc.\""),
        key(
            "contact",
            Kind::Text { max: 200 },
            REQUIRED,
            "Where people turn to: a role's address or a page, not a private person's.",
            "\"contact@example.com\"",
        ),
        key("address", Kind::Text { max: 400 }, "not stated", "Postal address.", "\"1 Example Street, Prato\""),
        key(
            "officer",
            Kind::Text { max: 200 },
            "not stated",
            "Contact of the data protection officer.",
            "\"dpo@example.com\"",
        ),
        key(
            "authority",
            Kind::Text { max: 200 },
            "not stated",
            "Authority that takes complaints.",
            "\"Garante per la protezione dei dati personali\"",
        ),
    ],
};

const POLICY: Section = Section {
    path: "policy",
    doc: "The published text that this file keeps. For people; decides nothing.",
    keys: &[
        key("title", Kind::Text { max: 200 }, "not stated", "Title of the text.", "\"Privacy Policy\""),
        key("url", Kind::Text { max: 400 }, "not stated", "Where it is published.", "\"https://example.com/privacy\""),
        key("updated", Kind::Date, "not stated", "Date that the text carries.", "2026-05-20"),
        later("notified", "When people were told."),
        later("effective", "When it takes effect."),
        later("minimum_notice", "Days between the two."),
    ],
};

const RESERVED: Section = Section {
    path: "reserved",
    doc: "Numbers name data for ever. A number that leaves the file must be listed here, and stay listed.",
    keys: &[
        key("classes", Kind::Numbers { min: 1, max: 16 }, "[]", "Numbers of former classes.", "[3]"),
        key("fields", Kind::Numbers { min: 1, max: 1023 }, "[]", "Numbers of former fields.", "[7, 8]"),
        key("purposes", Kind::Numbers { min: 1, max: 255 }, "[]", "Numbers of former purposes.", "[4]"),
        key("roles", Kind::Numbers { min: 1, max: 999 }, "[]", "Numbers of former roles.", "[2]"),
        key("plans", Kind::Numbers { min: 1, max: 999 }, "[]", "Numbers of former plans.", "[2]"),
    ],
};

const CATEGORY: Section = Section {
    path: "category",
    doc: "When there is one, every field must belong to one.",
    keys: &[
        key("name", Kind::Name, REQUIRED, "Name that fields refer to.", "\"account_data\""),
        key("title", Kind::Text { max: 200 }, "the name", "Words of the published text.", "\"Account information\""),
        key(
            "promised",
            Kind::Period,
            "no promise",
            "The longest time that the text promises to keep it. A class of its fields that keeps longer is an error.",
            "\"90d\"",
        ),
    ],
};

const CLASS: Section = Section {
    path: "class",
    doc: "A subject has one data key per class. Fields of a class expire by one rule and are erased together.",
    keys: &[
        key("number", Kind::Integer { min: 1, max: 16 }, REQUIRED, "Permanent number.", "1"),
        key("name", Kind::Name, REQUIRED, "Name.", "\"content\""),
        key("title", Kind::Text { max: 200 }, "the name", "For people.", "\"Messages and calls\""),
        key(
            "retention",
            Kind::PeriodOrNone,
            "\"none\", with a warning",
            "How long a value is kept from its origin time. Longer than two years: shredded at the end of its month, else at the end of its day.",
            "\"90d\"",
        ),
        key("max_retention", Kind::Period, "no limit", "No plan may extend the retention beyond it.", "\"60d\""),
        key(
            "grace",
            Kind::Period,
            "erased at once",
            "Time between the closing of a subject and the erasure of this class, in which it can be reopened.",
            "\"30d\"",
        ),
        key("hold", Kind::One(&HOLD), "no hold", "Legal duty to keep the class when its subject is erased.", ""),
    ],
};

const HOLD: Section = Section {
    path: "class.hold",
    doc: "A held class survives the erasure of its subject, readable for one purpose only, and erases itself at the end.",
    keys: &[
        key("name", Kind::Name, REQUIRED, "Name, printed in receipts.", "\"tax-law-in\""),
        key(
            "basis",
            Kind::Text { max: 400 },
            REQUIRED,
            "The law, printed in receipts.",
            "\"Income-tax Act, section 44AA\"",
        ),
        key("keep", Kind::Period, REQUIRED, "How long.", "\"7y\""),
        key(
            "from",
            Kind::Choice(&["origin", "erase"]),
            "\"origin\"",
            "Counted from the origin time of each value, or from the erasure.",
            "\"origin\"",
        ),
        key(
            "purpose",
            Kind::Name,
            REQUIRED,
            "The only purpose for which a held class can be read.",
            "\"legal_obligation\"",
        ),
    ],
};

const FIELD: Section = Section {
    path: "field",
    doc: "A value for a field that is not declared is refused.",
    keys: &[
        key("number", Kind::Integer { min: 1, max: 1023 }, REQUIRED, "Permanent number.", "2"),
        key("name", Kind::Name, REQUIRED, "Name; may change, the number may not.", "\"email\""),
        key("title", Kind::Text { max: 200 }, "the name", "For people.", "\"Email address\""),
        key("class", Kind::Name, REQUIRED, "Class it lives in; permanent.", "\"account\""),
        key("category", Kind::Name, "none", "Category it belongs to.", "\"account_data\""),
        key("type", Kind::Choice(TYPES), REQUIRED, "Type of its values; permanent.", "\"text\""),
        key(
            "max_length",
            Kind::Integer { min: 1, max: 1_048_576 },
            "email 254, phone_e164 16, url 2048, ip 45; else required for text and data",
            "Longest value: Unicode scalar values of a text (at most 262,144), bytes of data.",
            "254",
        ),
        key("validator", Kind::Choice(VALIDATORS), "\"none\"", "Form that a text must have.", "\"email\""),
        key(
            "searchable",
            Kind::Flag,
            "false",
            "Subjects can be found by the exact value. For text, integer and date, in a class without retention.",
            "true",
        ),
        key("unique", Kind::Flag, "false", "No two subjects may have the same value. Needs `searchable`.", "true"),
        key("many", Kind::Flag, "false", "A subject has many of them (items), each with its own origin time.", "true"),
        key("mask", Kind::Mask, "cannot be shown masked", "What a masked view shows. For text.", "\"email\""),
        key(
            "retired",
            Kind::Flag,
            "false",
            "No longer written; what is stored can be read, exported and erased.",
            "true",
        ),
        later("consent", "Consent that a write needs."),
        later("minimum_age", "Age rule on a date of birth."),
    ],
};

const PURPOSE: Section = Section {
    path: "purpose",
    doc: "A call names one purpose. It must be here, in the caller's grant, and allow the field.",
    keys: &[
        key("number", Kind::Integer { min: 1, max: 255 }, REQUIRED, "Permanent number.", "1"),
        key("name", Kind::Name, REQUIRED, "Name; permanent like the number.", "\"service\""),
        key("title", Kind::Text { max: 200 }, "the name", "For people.", "\"Running the platform\""),
        key("kind", Kind::Choice(PURPOSE_KINDS), "not stated", "Kind, compared with `forbidden`.", "\"service\""),
        key(
            "basis",
            Kind::Choice(BASES),
            REQUIRED,
            "Lawful basis. Consent cannot be recorded by this version, so every call for such a purpose is denied.",
            "\"contract\"",
        ),
        key("classes", Kind::NamesOrAll, "[]", "Classes whose fields are allowed.", "[\"account\", \"content\"]"),
        key("fields", Kind::Names, "[]", "Single fields that are allowed besides.", "[\"email\"]"),
        key("except", Kind::Names, "[]", "Fields that are not allowed although their class is.", "[\"phone\"]"),
        key(
            "view",
            Kind::Choice(&["plain", "masked"]),
            "\"plain\"",
            "The most telling view that the purpose justifies.",
            "\"masked\"",
        ),
        key("approval", Kind::Flag, "false", "Needs the approval of a second person.", "true"),
        key("reference", Kind::Flag, "false", "Needs the reference of a case.", "true"),
        key("reason", Kind::Flag, "false", "Needs a reason in words.", "true"),
        later("recipients", "Recipients of the purpose."),
    ],
};

const ROLE: Section = Section {
    path: "role",
    doc: "An access key has roles. A call is allowed when one grant of one role covers all of it.",
    keys: &[
        key("number", Kind::Integer { min: 1, max: 999 }, REQUIRED, "Permanent number.", "1"),
        key("name", Kind::Name, REQUIRED, "Name; permanent like the number.", "\"app\""),
        key("title", Kind::Text { max: 200 }, "the name", "For people.", "\"The application\""),
        key("grant", Kind::Many(&GRANT), REQUIRED, "What the role may do.", ""),
    ],
};

const GRANT: Section = Section {
    path: "role.grant",
    doc: "Everything named in one grant belongs together.",
    keys: &[
        key("verbs", Kind::Choices(VERBS), REQUIRED, "What may be done.", "[\"read\", \"write\"]"),
        key(
            "classes",
            Kind::NamesOrAll,
            "[]",
            "Classes whose fields may be touched, those declared later included.",
            "[\"account\"]",
        ),
        key("fields", Kind::Names, "[]", "Single fields besides.", "[\"invoice\"]"),
        key("except", Kind::Names, "[]", "Fields that are not granted although their class is.", "[\"phone\"]"),
        key("purposes", Kind::NamesOrAll, "[]", "Purposes that may be named.", "[\"service\"]"),
        key("view", Kind::Choice(&["plain", "masked"]), "\"plain\"", "The most telling view.", "\"masked\""),
        key("groups", Kind::Ids, "every subject", "Only subjects of these groups.", "[\"customer-17\"]"),
        later("recipients", "Recipients that may be named."),
        later("subjects_per_hour", "Bulk-read guard."),
    ],
};

const PLAN: Section = Section {
    path: "plan",
    doc: "A group of subjects (a customer's account) has at most one plan. Without one, nothing can be overridden.",
    keys: &[
        key("number", Kind::Integer { min: 1, max: 999 }, REQUIRED, "Permanent number.", "1"),
        key("name", Kind::Name, REQUIRED, "Name that a group states.", "\"enterprise\""),
        key("title", Kind::Text { max: 200 }, "the name", "For people.", "\"Enterprise\""),
        key(
            "retention",
            Kind::Many(&PLAN_RETENTION),
            "[]",
            "Classes whose retention a group of this plan may set.",
            "",
        ),
    ],
};

const PLAN_RETENTION: Section = Section {
    path: "plan.retention",
    doc: "Bounds of an override; a group without one has the retention of the class.",
    keys: &[
        key("class", Kind::Name, REQUIRED, "The class; it must have a retention.", "\"content\""),
        key("at_least", Kind::Period, "\"1d\"", "Shortest override.", "\"7d\""),
        key("at_most", Kind::Period, "the class's `max_retention`, else its retention", "Longest override.", "\"2y\""),
    ],
};

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
        Kind::Mask => json!({"type": "string", "pattern": "^(email|phone|card|name|hidden|last:[1-8])$"}),
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
        Kind::Date => "date".into(),
        Kind::Zone => "time zone".into(),
        Kind::Mask => "`email`, `phone`, `card`, `name`, `hidden`, `last:1` to `last:8`".into(),
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
        assert_eq!(VERBS, Verb::ALL.iter().map(|v| v.name()).collect::<Vec<_>>());
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
