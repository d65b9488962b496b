//! The rules of a policy in force, one type a record of the file, with numbers where the file has names.

use super::due::Within;
use super::file::{
    Basis, CodeAlphabet, FieldType, HoldFrom, RecipientKind, RecipientView, RequestKind, Transfer, Validator,
};
use super::mask::Mask;
use super::period::Period;
use crate::access::{FieldSet, PurposeSet, VerbSet, View};
use crate::clock::Timestamp;
use crate::ids::{ClassNo, FieldNo, Name, PurposeNo, RecipientNo, RoleNo, SubjectId};

/// Rules of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldRule {
    pub no: FieldNo,
    pub name: Name,
    pub title: Option<String>,
    pub class: ClassNo,
    pub kind: FieldType,
    /// Unicode scalar values of a text, bytes of data, 0 for other types.
    pub max_length: u32,
    pub validator: Validator,
    pub searchable: bool,
    pub unique: bool,
    /// A subject has items of it, not one value.
    pub many: bool,
    pub mask: Option<Mask>,
    /// Takes no writes any more.
    pub retired: bool,
    /// Written only while the person consents to this purpose.
    pub consent: Option<PurposeNo>,
    /// What the age limit says about its values.
    pub age: Option<AgeField>,
    /// Line of the policy file.
    pub line: u32,
}

/// What a field says about a person's age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgeField {
    /// The date of birth.
    Birth,
    /// The person says to be old enough.
    Attested,
}

/// Rules of a class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassRule {
    pub no: ClassNo,
    pub name: Name,
    pub title: Option<String>,
    /// How long a value is kept from its origin; `None`: until it is erased.
    pub retention: Option<Period>,
    /// No override is longer.
    pub max_retention: Option<Period>,
    /// Between the closing of a subject and the erasure of this class.
    pub grace: Option<Period>,
    pub hold: Option<HoldRule>,
    /// Its single-valued and its many-valued fields.
    pub fields: FieldSet,
    pub line: u32,
}

/// Legal duty to keep a class when its subject is erased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldRule {
    pub name: Name,
    pub basis: String,
    pub keep: Period,
    pub from: HoldFrom,
    /// The only purpose for which the held class can be read.
    pub purpose: PurposeNo,
    pub line: u32,
}

/// Rules of a purpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PurposeRule {
    pub no: PurposeNo,
    pub name: Name,
    pub title: Option<String>,
    pub basis: Basis,
    /// Fields it allows.
    pub fields: FieldSet,
    /// The most telling view it justifies.
    pub max_view: View,
    pub needs_approval: bool,
    pub needs_reference: bool,
    pub needs_reason: bool,
    pub needs_recipient: bool,
    pub kind: Option<String>,
    /// Fields that it allows on the basis of consent.
    pub consent: FieldSet,
    /// A person may object to it.
    pub objectable: bool,
    /// The law demands it: a restriction, or an age below the limit, does not stop it.
    pub lawful: bool,
    /// Consents given before do not count.
    pub consent_since: Option<Timestamp>,
    /// How long a consent counts from the day it was given or last confirmed by use.
    pub consent_lasts: Option<Period>,
    pub line: u32,
}

/// A role of the file. Its groups are ids of the tenant's application: whoever serves it finds their numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleRule {
    pub no: RoleNo,
    pub name: Name,
    pub title: Option<String>,
    pub grants: Box<[GrantRule]>,
    pub line: u32,
}

/// A grant of a role, spread out over the fields of this policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantRule {
    pub fields: FieldSet,
    pub purposes: PurposeSet,
    pub verbs: VerbSet,
    pub max_view: View,
    /// `None`: every subject.
    pub groups: Option<Box<[SubjectId]>>,
    pub line: u32,
}

/// A plan of the tenant's customers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanRule {
    pub no: u16,
    pub name: Name,
    pub title: Option<String>,
    pub overrides: Box<[OverrideRule]>,
    pub line: u32,
}

/// Bounds in which a group may set the retention of a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverrideRule {
    pub class: ClassNo,
    pub at_least: Period,
    pub at_most: Period,
    pub line: u32,
}

/// Rules of the credentials of the tenant's users; what each means stands in `docs/POLICY.md`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialRule {
    /// The class whose values they are.
    pub class: ClassNo,
    /// Fewest Unicode scalar values of a new password.
    pub password_min_length: u32,
    /// Whether a password of the list of common ones is accepted.
    pub password_common: bool,
    /// Wrong passwords in a row until a subject waits longest.
    pub lock_tries: u32,
    /// The longest wait.
    pub lock_seconds: u32,
    /// Wrong tries of a source in a day until it waits.
    pub source_tries: u32,
    /// At most 16 characters, without a hyphen.
    pub api_key_prefix: Name,
    pub code_length: u32,
    pub code_alphabet: CodeAlphabet,
    pub code_life_seconds: u32,
    pub code_tries: u32,
}

/// Rules of a recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecipientRule {
    pub no: RecipientNo,
    pub name: Name,
    pub title: Option<String>,
    pub kind: RecipientKind,
    pub region: Option<Name>,
    pub dpa: Option<String>,
    /// First moment after the agreement; `None`: an open end.
    pub dpa_ends: Option<Timestamp>,
    pub transfer: Option<Transfer>,
    /// It is in a region that needs a basis, and has none.
    pub stranded: bool,
    pub purposes: PurposeSet,
    pub fields: FieldSet,
    pub view: RecipientView,
    pub line: u32,
}

/// The age limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgeRule {
    /// In years.
    pub limit: u32,
    pub line: u32,
}

/// A time limit of requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClockRule {
    pub requests: Box<[RequestKind]>,
    pub within: Within,
    /// Empty: everybody who has no clock of their region's.
    pub regions: Box<[Name]>,
    pub line: u32,
}

/// Who may exercise a person's rights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NomineeRule {
    pub scopes: Box<[RequestKind]>,
    pub lasts: Option<Period>,
}

/// Counts over groups of people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnalyticsRule {
    /// Fewest people in a group.
    pub threshold: u32,
    /// Fields by whose values people are grouped.
    pub fields: FieldSet,
    pub line: u32,
}

/// How long archives are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchivesRule {
    pub horizon: Option<Period>,
    pub data: Option<Period>,
}
