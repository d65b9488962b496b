//! The tables of a policy file that say what is stored: the file itself, its controller, categories, classes and fields.

use super::key::{Kind, REQUIRED, Section, key, later};
use super::tables_credential::CREDENTIALS;
use super::tables_promise::*;
use super::tables_use::*;
use super::words::{BASES, PURPOSE_KINDS, TYPES, VALIDATORS, WEEKDAYS};

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
        key("recipient", Kind::Many(&RECIPIENT), "none", "Who else may be given values; a closed list.", ""),
        key("age", Kind::One(&AGE), "no limit", "The age limit.", ""),
        key("clock", Kind::Many(&CLOCK), "none", "Time limits of requests.", ""),
        key(
            "holidays",
            Kind::Dates,
            "[]",
            "Days that are no business days, besides `weekend`.",
            "[2026-01-26, 2026-08-15]",
        ),
        key(
            "weekend",
            Kind::Choices(WEEKDAYS),
            "[\"saturday\", \"sunday\"]",
            "Days of the week without business.",
            "[\"sunday\"]",
        ),
        key("nominee", Kind::One(&NOMINEE), "nobody", "Who may exercise a person's rights in their place.", ""),
        key("transfer", Kind::One(&TRANSFER), "no rule", "What it takes for data to cross a border.", ""),
        key("analytics", Kind::One(&ANALYTICS), "no aggregates", "Counts over groups of people.", ""),
        key("archives", Kind::One(&ARCHIVES), "not stated", "How long archives are kept.", ""),
        key("storage", Kind::One(&STORAGE), "not stated", "The named host of the data.", ""),
        key("claim", Kind::Many(&CLAIM), "none", "What the published text claims, sentence by sentence.", ""),
        later("audit", "Retention of the audit."),
    ],
};

pub(super) const CONTROLLER: Section = Section {
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

pub(super) const POLICY: Section = Section {
    path: "policy",
    doc: "The published text that this file keeps. For people; decides nothing.",
    keys: &[
        key("title", Kind::Text { max: 200 }, "not stated", "Title of the text.", "\"Privacy Policy\""),
        key("url", Kind::Text { max: 400 }, "not stated", "Where it is published.", "\"https://example.com/privacy\""),
        key("updated", Kind::Date, "not stated", "Date that the text carries.", "2026-05-20"),
        key("notified", Kind::Date, "not stated", "The day on which people were told of this version.", "2026-05-20"),
        key(
            "effective",
            Kind::Date,
            "at once",
            "The day on which this version takes effect, in `time_zone`. It is not applied before.",
            "2026-06-19",
        ),
        key(
            "minimum_notice",
            Kind::Period,
            "none",
            "Shortest time between the two where a change is material.",
            "\"30d\"",
        ),
    ],
};

pub(super) const RESERVED: Section = Section {
    path: "reserved",
    doc: "Numbers name data for ever. A number that leaves the file must be listed here, and stay listed.",
    keys: &[
        key("classes", Kind::Numbers { min: 1, max: 16 }, "[]", "Numbers of former classes.", "[3]"),
        key("fields", Kind::Numbers { min: 1, max: 1023 }, "[]", "Numbers of former fields.", "[7, 8]"),
        key("purposes", Kind::Numbers { min: 1, max: 255 }, "[]", "Numbers of former purposes.", "[4]"),
        key("roles", Kind::Numbers { min: 1, max: 999 }, "[]", "Numbers of former roles.", "[2]"),
        key("plans", Kind::Numbers { min: 1, max: 999 }, "[]", "Numbers of former plans.", "[2]"),
        key("recipients", Kind::Numbers { min: 1, max: 255 }, "[]", "Numbers of former recipients.", "[2]"),
    ],
};

pub(super) const CATEGORY: Section = Section {
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
        key(
            "bases",
            Kind::Choices(BASES),
            "any",
            "The only lawful bases on which data of the category is used.",
            "[\"contract\", \"consent\"]",
        ),
    ],
};

pub(super) const CLASS: Section = Section {
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

pub(super) const HOLD: Section = Section {
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

pub(super) const FIELD: Section = Section {
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
        key(
            "consent",
            Kind::Name,
            "none",
            "A value is written only while the person consents to this purpose.",
            "\"notifications\"",
        ),
    ],
};
