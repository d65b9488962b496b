//! What a key of a policy file can be.

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
    /// `"24h"`, `"30d"`, `"5bd"`, `"1mo"`.
    Within,
    /// A TOML date: `2026-05-20`.
    Date,
    /// TOML dates.
    Dates,
    /// The name of a time zone in the IANA database.
    Zone,
    /// `email`, `phone`, `card`, `name`, `hidden`, `last:N` or `pattern:##**`.
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

pub(super) const fn key(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    doc: &'static str,
    example: &'static str,
) -> Key {
    Key { name, kind, default, doc, example }
}
pub(super) const fn later(name: &'static str, doc: &'static str) -> Key {
    Key { name, kind: Kind::Later, default: "-", doc, example: "" }
}
