//! The tables of a policy file that say what people were promised: age, request clocks, nominees, transfers, archives,
//! and the claims of the published text.

use super::claim::CLAIMS;
use super::key::{Kind, REQUIRED, Section, key};
use super::words::{REQUESTS, TRANSFERS};

pub(super) const AGE: Section = Section {
    path: "age",
    doc: "Nobody under the limit: a date of birth that makes the person younger is not written, and neither is a `no`.",
    keys: &[
        key(
            "limit",
            Kind::Integer { min: 1, max: 120 },
            REQUIRED,
            "Youngest age in years, by the calendar of `time_zone`.",
            "16",
        ),
        key("birth", Kind::Name, "none", "Field of type date that holds the date of birth.", "\"date_of_birth\""),
        key(
            "attested",
            Kind::Name,
            "none",
            "Field of type flag in which the person says to be old enough.",
            "\"old_enough\"",
        ),
    ],
};

pub(super) const CLOCK: Section = Section {
    path: "clock",
    doc: "By when a request must be answered. The clock starts when the request arrives and ends in the tenant's time zone.",
    keys: &[
        key("requests", Kind::Choices(REQUESTS), REQUIRED, "Kinds of requests.", "[\"access\", \"erase\"]"),
        key(
            "within",
            Kind::Within,
            REQUIRED,
            "Hours, days of 24 h, business days (to the end of the last one) or months of the calendar, at most 999.",
            "\"5bd\"",
        ),
        key(
            "regions",
            Kind::Names,
            "every region without a clock of its own",
            "Only for people whose group is in one of these regions.",
            "[\"us-ca\"]",
        ),
    ],
};

pub(super) const NOMINEE: Section = Section {
    path: "nominee",
    doc: "A person may name another who exercises their rights.",
    keys: &[
        key(
            "scopes",
            Kind::Choices(REQUESTS),
            REQUIRED,
            "Requests that a nominee may make.",
            "[\"access\", \"erase\"]",
        ),
        key("lasts", Kind::Period, "until revoked", "Longest time for which one is named.", "\"5y\""),
    ],
};

pub(super) const TRANSFER: Section = Section {
    path: "transfer",
    doc: "A group or a recipient in another region than these needs a basis.",
    keys: &[
        key("inside", Kind::Names, REQUIRED, "Regions that need none.", "[\"eu-central-1\", \"it\"]"),
        key("groups", Kind::Choices(TRANSFERS), "[]", "Bases that count for a group outside.", "[\"scc\"]"),
    ],
};

pub(super) const ANALYTICS: Section = Section {
    path: "analytics",
    doc: "Counts leave the vault only for groups of people that are large enough.",
    keys: &[
        key("threshold", Kind::Integer { min: 2, max: 100_000 }, REQUIRED, "Fewest people in a group.", "20"),
        key("fields", Kind::Names, REQUIRED, "Fields by whose values people are grouped.", "[\"country\"]"),
    ],
};

pub(super) const ARCHIVES: Section = Section {
    path: "archives",
    doc: "How long what was erased can lie in archives.",
    keys: &[
        key(
            "horizon",
            Kind::Period,
            "30d",
            "Key archives are kept this long; `archives_expire_at` of receipts follows from it.",
            "\"30d\"",
        ),
        key("data", Kind::Period, "not stated", "Data archives are kept this long.", "\"90d\""),
    ],
};

pub(super) const STORAGE: Section = Section {
    path: "storage",
    doc: "Where the controller says the database lies; the report compares it with the node.",
    keys: &[key("host", Kind::Text { max: 200 }, REQUIRED, "Name of the host.", "\"Supabase PostgreSQL\"")],
};

pub(super) const CLAIM: Section = Section {
    path: "claim",
    doc: "One claim a sentence of the published text. The linter compares claims with each other and with the rules.",
    keys: &[
        key("section", Kind::Text { max: 40 }, REQUIRED, "Section of the text.", "\"5\""),
        key("kind", Kind::Choice(CLAIMS), REQUIRED, "What is claimed; see the list of claims.", "\"retention\""),
        key(
            "about",
            Kind::NamesOrAll,
            "[]",
            "What it is about: categories, fields, purposes, requests, channels, by its kind.",
            "[\"content\"]",
        ),
        key("value", Kind::Text { max: 200 }, "none", "How much, how long, which; by its kind.", "\"90d\""),
        key("recipient", Kind::Name, "none", "Who is given the data; for `shares`.", "\"stripe\""),
    ],
};
