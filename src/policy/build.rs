//! From the records of a file to the rules of a policy: names become numbers.

use super::file::{Class, Credentials, Field, Fields, File, Names, PlanRetention};
use super::lint;
use super::period::Period;
use super::rules::{ClassRule, CredentialRule, FieldRule, HoldRule, OverrideRule};
use crate::access::{FieldSet, PurposeSet};
use crate::ids::{ClassNo, FieldNo, Name, PurposeNo};

pub(super) fn put<T>(table: &mut Vec<Option<T>>, number: u16, rule: T) {
    let at = usize::from(number);
    if table.len() <= at {
        table.resize_with(at + 1, || None);
    }
    table[at] = Some(rule);
}

pub(super) fn field_rule(field: &Field, class: ClassNo) -> FieldRule {
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
