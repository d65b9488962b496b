//! The tables of a policy file that say what data is used for and by whom: purposes, recipients, roles and plans.

use super::key::{Kind, REQUIRED, Section, key, later};
use super::words::{BASES, PURPOSE_KINDS, RECIPIENT_KINDS, TRANSFERS, VERBS};

pub(super) const PURPOSE: Section = Section {
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
            "Lawful basis. With `consent` a call needs the person's consent on record (`rights consent`).",
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
        key("recipient", Kind::Flag, "false", "Values leave the caller: a call names the recipient.", "true"),
        key(
            "objection",
            Kind::Flag,
            "true for `legitimate_interests` and for kind `marketing`, else false",
            "A person may object; then calls for it are denied.",
            "true",
        ),
        key(
            "consent_since",
            Kind::Date,
            "any",
            "Consents given before this day were given to other terms and do not count.",
            "2026-03-22",
        ),
        key(
            "consent_lasts",
            Kind::Period,
            "until withdrawn",
            "How long a consent counts after it was given or last confirmed by use.",
            "\"1y\"",
        ),
        key("basis_for", Kind::Many(&BASIS_FOR), "none", "Another lawful basis for the data of one category.", ""),
    ],
};

pub(super) const BASIS_FOR: Section = Section {
    path: "purpose.basis_for",
    doc: "The lawful basis can differ by category within one purpose.",
    keys: &[
        key("category", Kind::Name, REQUIRED, "The category.", "\"content\""),
        key("basis", Kind::Choice(BASES), REQUIRED, "Its basis.", "\"consent\""),
    ],
};

pub(super) const RECIPIENT: Section = Section {
    path: "recipient",
    doc: "Somebody else who is given values. A call that names a recipient gets only what is here; who is not here is refused.",
    keys: &[
        key("number", Kind::Integer { min: 1, max: 255 }, REQUIRED, "Permanent number.", "1"),
        key("name", Kind::Name, REQUIRED, "Name; permanent like the number.", "\"stripe\""),
        key("title", Kind::Text { max: 200 }, "the name", "For people.", "\"Stripe Payments Europe\""),
        key(
            "kind",
            Kind::Choice(RECIPIENT_KINDS),
            "\"processor\"",
            "A processor acts for the controller and needs an agreement; a controller or an authority answers for itself.",
            "\"processor\"",
        ),
        key("region", Kind::Name, "not stated", "Where it processes.", "\"eu-central-1\""),
        key(
            "dpa",
            Kind::Text { max: 200 },
            "none: an error for a processor",
            "Reference of the data processing agreement.",
            "\"DPA 2026-04\"",
        ),
        key("dpa_expires", Kind::Date, "open end", "Last day of the agreement, in `time_zone`.", "2027-12-31"),
        key(
            "transfer",
            Kind::Choice(TRANSFERS),
            "none",
            "What lets data leave the regions of `[transfer]`.",
            "\"scc\"",
        ),
        key(
            "purposes",
            Kind::NamesOrAll,
            REQUIRED,
            "The only purposes for which it is given values.",
            "[\"payments\"]",
        ),
        key("classes", Kind::NamesOrAll, "[]", "Classes of whose fields it is given values.", "[\"content\"]"),
        key("fields", Kind::Names, "[]", "Single fields besides.", "[\"email\"]"),
        key("except", Kind::Names, "[]", "Fields that it is not given although their class is.", "[\"phone\"]"),
        key(
            "view",
            Kind::Choice(&["plain", "masked", "tokens"]),
            "\"plain\"",
            "The most telling view. Tokens are not made by this version: reads for such a recipient are refused by that name.",
            "\"masked\"",
        ),
        key(
            "channels",
            Kind::Names,
            "[]",
            "Channels of communication that it carries, compared with the claims.",
            "[\"sms\"]",
        ),
    ],
};

pub(super) const ROLE: Section = Section {
    path: "role",
    doc: "An access key has roles. A call is allowed when one grant of one role covers all of it.",
    keys: &[
        key("number", Kind::Integer { min: 1, max: 999 }, REQUIRED, "Permanent number.", "1"),
        key("name", Kind::Name, REQUIRED, "Name; permanent like the number.", "\"app\""),
        key("title", Kind::Text { max: 200 }, "the name", "For people.", "\"The application\""),
        key("grant", Kind::Many(&GRANT), REQUIRED, "What the role may do.", ""),
    ],
};

pub(super) const GRANT: Section = Section {
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

pub(super) const PLAN: Section = Section {
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

pub(super) const PLAN_RETENTION: Section = Section {
    path: "plan.retention",
    doc: "Bounds of an override; a group without one has the retention of the class.",
    keys: &[
        key("class", Kind::Name, REQUIRED, "The class; it must have a retention.", "\"content\""),
        key("at_least", Kind::Period, "\"1d\"", "Shortest override.", "\"7d\""),
        key("at_most", Kind::Period, "the class's `max_retention`, else its retention", "Longest override.", "\"2y\""),
    ],
};
