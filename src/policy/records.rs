//! From a table whose shape was checked to the records of a policy file: a getter finds what it expects, and what is
//! absent has its default.

use super::claim::ClaimKind;
use super::due::Within;
use super::file::*;
use super::mask::Mask;
use super::period::Period;
use super::words::WEEKDAYS;
use crate::access::{Verb, View};
use crate::ids::{Name, SubjectId};
use jiff::civil::{Date, Weekday};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Byte offsets of line starts.
pub(super) struct Lines(Vec<usize>);

impl Lines {
    pub(super) fn of(text: &str) -> Lines {
        Lines(
            std::iter::once(0)
                .chain(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i + 1))
                .collect(),
        )
    }
    pub(super) fn line(&self, offset: usize) -> u32 {
        self.0.partition_point(|start| *start <= offset) as u32
    }
}

pub(super) struct Table<'a> {
    pub(super) table: &'a DeTable<'a>,
    pub(super) line: u32,
    pub(super) lines: &'a Lines,
}

impl<'a> Table<'a> {
    /// A key's value and the line of the key.
    fn get(&self, key: &str) -> Option<At<&'a DeValue<'a>>> {
        let (name, value) = self.table.get_key_value(key)?;
        Some(At { value: value.get_ref(), line: self.lines.line(name.span().start) })
    }
    fn read<T>(&self, key: &str, read: impl Fn(&DeValue<'a>) -> Option<T>) -> Option<At<T>> {
        let at = self.get(key)?;
        Some(At { value: read(at.value).expect("the first pass checked the shape of every key"), line: at.line })
    }
    fn must<T>(&self, key: &str, read: impl Fn(&DeValue<'a>) -> Option<T>) -> At<T> {
        self.read(key, read).expect("the first pass checked that required keys are there")
    }
    fn or<T>(&self, key: &str, default: T, read: impl Fn(&DeValue<'a>) -> Option<T>) -> At<T> {
        self.read(key, read).unwrap_or(At { value: default, line: self.line })
    }
    fn string(&self, key: &str) -> Option<String> {
        self.read(key, |v| v.as_str().map(str::to_owned)).map(|at| at.value)
    }
    fn flag(&self, key: &str) -> At<bool> {
        self.or(key, false, DeValue::as_bool)
    }
    fn items<T>(&self, key: &str, read: impl Fn(&DeValue<'a>) -> Option<T>) -> Vec<At<T>> {
        let Some(array) = self.get(key).and_then(|at| at.value.as_array()) else { return Vec::new() };
        let one = |v: &Spanned<DeValue<'a>>| At {
            value: read(v.get_ref()).expect("the first pass checked every item"),
            line: self.lines.line(v.span().start),
        };
        array.iter().map(one).collect()
    }
    fn tables(&self, key: &str) -> Vec<Table<'a>> {
        let Some(array) = self.get(key).and_then(|at| at.value.as_array()) else { return Vec::new() };
        let one = |v: &'a Spanned<DeValue<'a>>| {
            Some(Table { table: v.get_ref().as_table()?, line: self.lines.line(v.span().start), lines: self.lines })
        };
        array.iter().filter_map(one).collect()
    }
    fn table(&self, key: &str) -> Option<Table<'a>> {
        let at = self.get(key)?;
        Some(Table { table: at.value.as_table()?, line: at.line, lines: self.lines })
    }
    fn names(&self, key: &str) -> Vec<At<Name>> {
        self.items(key, name)
    }
    fn names_or_all(&self, key: &str) -> Names {
        let all = self
            .get(key)
            .and_then(|at| at.value.as_array())
            .is_some_and(|a| a.iter().any(|v| v.get_ref().as_str() == Some("*")));
        if all { Names::All } else { Names::These(self.names(key)) }
    }
    fn head(&self) -> Head {
        Head { number: self.must("number", small), name: self.must("name", name), title: self.string("title") }
    }
    fn fields(&self) -> Fields {
        Fields { classes: self.names_or_all("classes"), fields: self.names("fields"), except: self.names("except") }
    }
    fn view(&self) -> View {
        let masked = self.get("view").is_some_and(|at| at.value.as_str() == Some("masked"));
        if masked { View::Masked } else { View::Plain }
    }
}

fn name(value: &DeValue<'_>) -> Option<Name> {
    Name::parse("name", value.as_str()?).ok()
}
fn small(value: &DeValue<'_>) -> Option<u16> {
    u16::try_from(integer(value)?).ok()
}
fn a_period(value: &DeValue<'_>) -> Option<Period> {
    Period::parse(value.as_str()?)
}
fn owned(value: &DeValue<'_>) -> Option<String> {
    value.as_str().map(str::to_owned)
}

/// A day without a time, in the years 1 to 9999.
pub(super) fn a_date(value: &DeValue<'_>) -> Option<Date> {
    let at = value.as_datetime().filter(|d| d.time.is_none() && d.offset.is_none())?;
    let date = at.date?;
    let (year, month, day) =
        (i16::try_from(date.year).ok()?, i8::try_from(date.month).ok()?, i8::try_from(date.day).ok()?);
    Date::new(year, month, day).ok().filter(|d| d.year() > 0)
}

pub(super) fn integer(value: &DeValue<'_>) -> Option<i64> {
    let number = value.as_integer()?;
    i64::from_str_radix(number.as_str(), number.radix()).ok()
}

/// The file of a root table.
pub(super) fn file(root: &Table<'_>) -> File {
    let controller = root.table("controller").expect("the first pass checked that required keys are there");
    let policy = root.table("policy");
    let reserved = root.table("reserved");
    let numbers = |key| reserved.as_ref().map(|t| t.items(key, small)).unwrap_or_default();
    let must_text = |key| controller.must(key, owned).value;
    File {
        region: root.read("region", name),
        time_zone: root.must("time_zone", owned),
        forbidden: root.items("forbidden", owned),
        controller: Controller {
            name: must_text("name"),
            contact: must_text("contact"),
            address: controller.string("address"),
            officer: controller.string("officer"),
            authority: controller.string("authority"),
        },
        notice: policy.as_ref().map_or_else(Notice::default, |t| Notice {
            notified: t.read("notified", a_date),
            effective: t.read("effective", a_date),
            minimum: t.read("minimum_notice", a_period),
        }),
        policy: policy.map_or_else(PublishedText::default, |t| PublishedText {
            title: t.string("title"),
            url: t.string("url"),
            updated: t.read("updated", |v| v.as_datetime().map(ToString::to_string)).map(|at| at.value),
        }),
        reserved: Reserved {
            classes: numbers("classes"),
            fields: numbers("fields"),
            purposes: numbers("purposes"),
            roles: numbers("roles"),
            plans: numbers("plans"),
            recipients: numbers("recipients"),
        },
        credentials: root.table("credentials").as_ref().map(credentials),
        categories: root.tables("category").iter().map(category).collect(),
        classes: root.tables("class").iter().map(class).collect(),
        fields: root.tables("field").iter().map(field).collect(),
        purposes: root.tables("purpose").iter().map(purpose).collect(),
        roles: root.tables("role").iter().map(role).collect(),
        plans: root.tables("plan").iter().map(plan).collect(),
        recipients: root.tables("recipient").iter().map(recipient).collect(),
        age: root.table("age").map(|t| Age {
            limit: t.must("limit", |v| u32::try_from(integer(v)?).ok()),
            birth: t.read("birth", name),
            attested: t.read("attested", name),
        }),
        clocks: root.tables("clock").iter().map(clock).collect(),
        holidays: root.items("holidays", a_date),
        weekend: root.get("weekend").map(|_| root.items("weekend", weekday).into_iter().map(|at| at.value).collect()),
        nominee: root
            .table("nominee")
            .map(|t| Nominee { scopes: t.items("scopes", request), lasts: t.read("lasts", a_period) }),
        transfer: root.table("transfer").map(|t| TransferRule {
            line: t.line,
            inside: t.names("inside"),
            groups: t.items("groups", transfer),
        }),
        analytics: root.table("analytics").map(|t| Analytics {
            threshold: t.must("threshold", |v| u32::try_from(integer(v)?).ok()),
            fields: t.names("fields"),
        }),
        archives: root
            .table("archives")
            .map(|t| Archives { horizon: t.read("horizon", a_period), data: t.read("data", a_period) }),
        storage: root.table("storage").map(|t| t.must("host", owned)),
        claims: root.tables("claim").iter().map(claim).collect(),
    }
}

fn request(value: &DeValue<'_>) -> Option<RequestKind> {
    RequestKind::parse(value.as_str()?)
}
fn transfer(value: &DeValue<'_>) -> Option<Transfer> {
    Transfer::parse(value.as_str()?)
}
fn basis(value: &DeValue<'_>) -> Option<Basis> {
    Basis::parse(value.as_str()?)
}
fn weekday(value: &DeValue<'_>) -> Option<Weekday> {
    let at = WEEKDAYS.iter().position(|day| Some(*day) == value.as_str())?;
    Weekday::from_monday_zero_offset(at as i8).ok()
}

fn recipient(t: &Table<'_>) -> Recipient {
    Recipient {
        head: t.head(),
        kind: t.or("kind", RecipientKind::Processor, |v| RecipientKind::parse(v.as_str()?)).value,
        region: t.read("region", name),
        dpa: t.read("dpa", owned),
        dpa_expires: t.read("dpa_expires", a_date),
        transfer: t.read("transfer", transfer),
        purposes: t.names_or_all("purposes"),
        gets: t.fields(),
        view: t.or("view", RecipientView::Plain, |v| RecipientView::parse(v.as_str()?)),
        channels: t.names("channels"),
    }
}

fn clock(t: &Table<'_>) -> Clock {
    Clock {
        line: t.line,
        requests: t.items("requests", request),
        within: t.must("within", |v| Within::parse(v.as_str()?)),
        regions: t.names("regions"),
    }
}

fn claim(t: &Table<'_>) -> Claim {
    Claim {
        line: t.line,
        section: t.must("section", owned).value,
        kind: t.must("kind", |v| ClaimKind::parse(v.as_str()?)),
        about: t.names_or_all("about"),
        value: t.read("value", owned),
        recipient: t.read("recipient", name),
    }
}

fn credentials(t: &Table<'_>) -> Credentials {
    let number = |key, default| t.or(key, default, |v| u32::try_from(integer(v)?).ok()).value;
    let prefix = Name::parse("name", "key").expect("three small letters are a name");
    Credentials {
        class: t.must("class", name),
        password_min_length: number("password_min_length", 8),
        password_common: t.flag("password_common").value,
        lock_tries: number("lock_tries", 10),
        lock_seconds: number("lock_seconds", 900),
        source_tries: number("source_tries", 100),
        api_key_prefix: t.or("api_key_prefix", prefix, name),
        code_length: number("code_length", 6),
        code_alphabet: t.or("code_alphabet", CodeAlphabet::Digits, |v| CodeAlphabet::parse(v.as_str()?)).value,
        code_life_seconds: number("code_life_seconds", 900),
        code_tries: number("code_tries", 5),
    }
}

fn category(t: &Table<'_>) -> Category {
    Category {
        name: t.must("name", name),
        title: t.string("title"),
        promised: t.read("promised", a_period),
        bases: t.items("bases", basis),
    }
}

fn class(t: &Table<'_>) -> Class {
    let none_or_period = |v: &DeValue<'_>| if v.as_str() == Some("none") { Some(None) } else { a_period(v).map(Some) };
    Class {
        head: t.head(),
        retention: t.read("retention", none_or_period),
        max_retention: t.read("max_retention", a_period),
        grace: t.read("grace", a_period),
        hold: t.table("hold").map(|h| Hold {
            name: h.must("name", name).value,
            basis: h.must("basis", owned).value,
            keep: h.must("keep", a_period),
            from: h.or("from", HoldFrom::Origin, |v| HoldFrom::parse(v.as_str()?)).value,
            purpose: h.must("purpose", name),
        }),
    }
}

fn field(t: &Table<'_>) -> Field {
    Field {
        head: t.head(),
        class: t.must("class", name),
        category: t.read("category", name),
        kind: t.must("type", |v| FieldType::parse(v.as_str()?)),
        max_length: t.read("max_length", |v| u32::try_from(integer(v)?).ok()),
        validator: t.or("validator", Validator::None, |v| Validator::parse(v.as_str()?)),
        searchable: t.flag("searchable"),
        unique: t.flag("unique"),
        many: t.flag("many"),
        mask: t.read("mask", |v| Mask::parse(v.as_str()?)),
        retired: t.flag("retired").value,
        consent: t.read("consent", name),
    }
}

fn purpose(t: &Table<'_>) -> Purpose {
    Purpose {
        head: t.head(),
        kind: t.read("kind", owned),
        basis: t.must("basis", basis),
        allowed: t.fields(),
        view: t.view(),
        approval: t.flag("approval").value,
        reference: t.flag("reference").value,
        reason: t.flag("reason").value,
        recipient: t.flag("recipient").value,
        objection: t.read("objection", DeValue::as_bool),
        consent_since: t.read("consent_since", a_date),
        consent_lasts: t.read("consent_lasts", a_period),
        basis_for: t.tables("basis_for").iter().map(basis_for).collect(),
    }
}

fn basis_for(t: &Table<'_>) -> BasisFor {
    BasisFor { category: t.must("category", name), basis: t.must("basis", basis) }
}

fn role(t: &Table<'_>) -> Role {
    Role { head: t.head(), grants: t.tables("grant").iter().map(grant).collect() }
}

fn grant(t: &Table<'_>) -> RoleGrant {
    RoleGrant {
        line: t.line,
        verbs: t.items("verbs", |v| Verb::parse(v.as_str()?)).into_iter().map(|at| at.value).collect(),
        touches: t.fields(),
        purposes: t.names_or_all("purposes"),
        view: t.view(),
        groups: t.get("groups").map(|_| {
            t.items("groups", |v| SubjectId::parse("group", v.as_str()?).ok()).into_iter().map(|at| at.value).collect()
        }),
    }
}

fn plan(t: &Table<'_>) -> Plan {
    let one = |r: &Table<'_>| PlanRetention {
        class: r.must("class", name),
        at_least: r.read("at_least", a_period),
        at_most: r.read("at_most", a_period),
    };
    Plan { head: t.head(), retention: t.tables("retention").iter().map(one).collect() }
}
