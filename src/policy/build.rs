//! From the records of a file to the rules of a policy: names become numbers.

use super::due::{Calendar, start_of};
use super::file::{Basis, Class, Credentials, Field, Fields, File, Names, PlanRetention, Purpose, Recipient};
use super::lint::{self, is_outside};
use super::period::Period;
use super::rules::{
    AgeField, ClassRule, ClockRule, CredentialRule, FieldRule, HoldRule, OverrideRule, PurposeRule, RecipientRule,
};
use crate::access::{FieldSet, PurposeSet};
use crate::clock::Timestamp;
use crate::ids::{ClassNo, FieldNo, Name, PurposeNo, RecipientNo};
use jiff::civil::{Date, Weekday};
use jiff::tz::TimeZone;

pub(super) fn put<T>(table: &mut Vec<Option<T>>, number: u16, rule: T) {
    let at = usize::from(number);
    if table.len() <= at {
        table.resize_with(at + 1, || None);
    }
    table[at] = Some(rule);
}

pub(super) fn field_rule(field: &Field, class: ClassNo, spread: &Spread<'_>) -> FieldRule {
    let age = spread.file.age.as_ref();
    let is = |said: Option<&super::file::At<Name>>| said.is_some_and(|n| n.value == field.head.name.value);
    FieldRule {
        no: FieldNo(field.head.number.value),
        name: field.head.name.value.clone(),
        title: field.head.title.clone(),
        class,
        kind: field.kind.value,
        max_length: lint::max_length(field).unwrap_or(0),
        validator: field.validator.value,
        searchable: field.searchable.value,
        unique: field.unique.value,
        many: field.many.value,
        mask: field.mask.map(|m| m.value),
        retired: field.retired,
        consent: field.consent.as_ref().and_then(|purpose| spread.purpose_no(purpose)),
        age: match age {
            Some(age) if is(age.birth.as_ref()) => Some(AgeField::Birth),
            Some(age) if is(age.attested.as_ref()) => Some(AgeField::Attested),
            _ => None,
        },
        line: field.head.number.line,
    }
}

pub(super) fn class_rule(class: &Class, spread: &Spread<'_>) -> ClassRule {
    ClassRule {
        no: ClassNo(class.head.number.value as u8),
        name: class.head.name.value.clone(),
        title: class.head.title.clone(),
        retention: class.retention.and_then(|r| r.value),
        max_retention: class.max_retention.map(|r| r.value),
        grace: class.grace.map(|g| g.value),
        hold: class.hold.as_ref().and_then(|h| {
            Some(HoldRule {
                name: h.name.clone(),
                basis: h.basis.clone(),
                keep: h.keep.value,
                from: h.from,
                purpose: spread.purpose_no(&h.purpose)?,
                line: h.keep.line,
            })
        }),
        fields: spread.of_class(&class.head.name),
        line: class.head.number.line,
    }
}

pub(super) fn credential_rule(said: &Credentials, spread: &Spread<'_>) -> Option<CredentialRule> {
    Some(CredentialRule {
        class: spread.class_no(&said.class)?,
        password_min_length: said.password_min_length,
        password_common: said.password_common,
        lock_tries: said.lock_tries,
        lock_seconds: said.lock_seconds,
        source_tries: said.source_tries,
        api_key_prefix: said.api_key_prefix.value.clone(),
        code_length: said.code_length,
        code_alphabet: said.code_alphabet,
        code_life_seconds: said.code_life_seconds,
        code_tries: said.code_tries,
    })
}

pub(super) fn override_rule(rule: &PlanRetention, file: &File) -> Option<OverrideRule> {
    let class = file.classes.iter().find(|c| c.head.name.value == rule.class.value)?;
    let usual = class.retention.and_then(|r| r.value)?;
    let at_most = rule.at_most.or(class.max_retention).map_or(usual, |at| at.value);
    Some(OverrideRule {
        class: ClassNo(class.head.number.value as u8),
        at_least: rule.at_least.map_or(Period::Days(1), |at| at.value),
        at_most,
        line: rule.class.line,
    })
}

pub(super) fn purpose_rule(p: &Purpose, spread: &Spread<'_>, zone: &TimeZone) -> PurposeRule {
    let kind = p.kind.as_ref().map(|k| k.value.clone());
    let is = |word: &str| kind.as_deref() == Some(word);
    let fields = spread.fields(&p.allowed);
    let by_consent = |field: &&Field| lint::basis_of(p, field) == Basis::Consent;
    let consent: FieldSet = spread.file.fields.iter().filter(by_consent).map(|f| f.head.number.value).collect();
    PurposeRule {
        no: PurposeNo(p.head.number.value),
        name: p.head.name.value.clone(),
        title: p.head.title.clone(),
        basis: p.basis.value,
        consent: consent.and(&fields),
        fields,
        max_view: p.view,
        needs_approval: p.approval,
        needs_reference: p.reference,
        needs_reason: p.reason,
        needs_recipient: p.recipient,
        objectable: p.objection.map_or(p.basis.value == Basis::LegitimateInterests || is("marketing"), |o| o.value),
        lawful: p.basis.value == Basis::LegalObligation || is("legal"),
        kind,
        consent_since: p.consent_since.and_then(|day| start_of(day.value, zone)),
        consent_lasts: p.consent_lasts.map(|period| period.value),
        line: p.head.number.line,
    }
}

pub(super) fn recipient_rule(r: &Recipient, spread: &Spread<'_>, zone: &TimeZone) -> RecipientRule {
    let outside =
        spread.file.transfer.as_ref().is_some_and(|rule| is_outside(rule, r.region.as_ref().map(|at| &at.value)));
    RecipientRule {
        no: RecipientNo(r.head.number.value),
        name: r.head.name.value.clone(),
        title: r.head.title.clone(),
        kind: r.kind,
        region: r.region.as_ref().map(|at| at.value.clone()),
        dpa: r.dpa.as_ref().map(|at| at.value.clone()),
        dpa_ends: r.dpa_expires.and_then(|day| day_after(day.value, zone)),
        transfer: r.transfer.map(|at| at.value),
        stranded: outside && r.transfer.is_none(),
        purposes: spread.purposes(&r.purposes),
        fields: spread.fields(&r.gets),
        view: r.view.value,
        line: r.head.number.line,
    }
}

/// The first moment after a day.
fn day_after(day: Date, zone: &TimeZone) -> Option<Timestamp> {
    start_of(day.tomorrow().ok()?, zone)
}

pub(super) fn clock_rules(file: &File) -> Box<[ClockRule]> {
    let rule = |c: &super::file::Clock| ClockRule {
        requests: c.requests.iter().map(|r| r.value).collect(),
        within: c.within.value,
        regions: c.regions.iter().map(|r| r.value.clone()).collect(),
        line: c.line,
    };
    file.clocks.iter().map(rule).collect()
}

pub(super) fn calendar(file: &File) -> Calendar {
    let weekend = file.weekend.clone().unwrap_or_else(|| vec![Weekday::Saturday, Weekday::Sunday]);
    Calendar::new(file.holidays.iter().map(|day| day.value).collect(), weekend)
}

/// Names to numbers.
pub(super) struct Spread<'a> {
    pub(super) file: &'a File,
}

impl Spread<'_> {
    pub(super) fn class_no(&self, name: &Name) -> Option<ClassNo> {
        let class = self.file.classes.iter().find(|c| c.head.name.value == *name)?;
        Some(ClassNo(class.head.number.value as u8))
    }
    pub(super) fn purpose_no(&self, name: &Name) -> Option<PurposeNo> {
        let purpose = self.file.purposes.iter().find(|p| p.head.name.value == *name)?;
        Some(PurposeNo(purpose.head.number.value))
    }
    pub(super) fn field_no(&self, name: &Name) -> Option<FieldNo> {
        let field = self.file.fields.iter().find(|f| f.head.name.value == *name)?;
        Some(FieldNo(field.head.number.value))
    }
    pub(super) fn of_class(&self, class: &Name) -> FieldSet {
        self.file.fields.iter().filter(|f| f.class.value == *class).map(|f| f.head.number.value).collect()
    }
    pub(super) fn fields(&self, said: &Fields) -> FieldSet {
        self.file.fields.iter().filter(|f| lint::names(said, f)).map(|f| f.head.number.value).collect()
    }
    pub(super) fn purposes(&self, said: &Names) -> PurposeSet {
        self.file.purposes.iter().filter(|p| lint::among(said, &p.head.name)).map(|p| p.head.number.value).collect()
    }
}
