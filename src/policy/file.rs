//! The records of a policy file, each value with its line; `parse` makes them.

use super::claim::ClaimKind;
use super::due::Within;
pub use super::finding::{Finding, Severity};
use super::mask::Mask;
use super::period::Period;
use crate::access::{VerbSet, View};
use crate::ids::{Name, SubjectId};
use jiff::civil::{Date, Weekday};
use serde::Serialize;

/// A value and the line it stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At<T> {
    pub value: T,
    pub line: u32,
}

impl<T> std::ops::Deref for At<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

/// A list of names, or all there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Names {
    All,
    These(Vec<At<Name>>),
}

impl Names {
    pub(super) fn list(&self) -> &[At<Name>] {
        match self {
            Names::All => &[],
            Names::These(list) => list,
        }
    }
    /// The names as text; `*` for all.
    pub fn words(&self) -> Vec<String> {
        match self {
            Names::All => vec!["*".into()],
            Names::These(list) => list.iter().map(|name| name.value.to_string()).collect(),
        }
    }
    pub(super) fn is_nothing(&self) -> bool {
        matches!(self, Names::These(list) if list.is_empty())
    }
}

macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($variant),* }
        impl $name {
            /// As a policy file writes it.
            pub const fn name(self) -> &'static str {
                match self { $($name::$variant => $text),* }
            }
            /// Reads what a policy file writes.
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some($name::$variant),)* _ => None }
            }
        }
    };
}
choice!(/// Type of a field's values.
    FieldType { Text = "text", Data = "data", Integer = "integer", Number = "number", Flag = "flag", Date = "date", Time = "time" });
choice!(/// Form that a text must have.
    Validator { None = "none", Email = "email", PhoneE164 = "phone_e164", Url = "url", Name = "name", Ip = "ip" });
choice!(/// Lawful basis of a purpose.
Basis {
    Contract = "contract", Consent = "consent", LegalObligation = "legal_obligation",
    LegitimateInterests = "legitimate_interests", VitalInterests = "vital_interests", PublicTask = "public_task",
});
choice!(/// From when a hold is counted.
    HoldFrom { Origin = "origin", Erase = "erase" });
choice!(/// What a recipient is.
    RecipientKind { Processor = "processor", Controller = "controller", Authority = "authority" });
choice!(/// The most telling view of a recipient.
    RecipientView { Plain = "plain", Masked = "masked", Tokens = "tokens" });
choice!(/// What lets data leave a region.
    Transfer { Adequacy = "adequacy", Scc = "scc", Bcr = "bcr", Consent = "consent", Derogation = "derogation" });
choice!(/// What people and authorities ask for.
RequestKind {
    Access = "access", Correct = "correct", Erase = "erase", Restrict = "restrict", Object = "object",
    Portability = "portability", Nominate = "nominate", Withdraw = "withdraw", Grievance = "grievance", Dpa = "dpa",
    Incident = "incident",
});

/// `[controller]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Controller {
    pub name: String,
    pub contact: String,
    pub address: Option<String>,
    pub officer: Option<String>,
    pub authority: Option<String>,
}

/// `[policy]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PublishedText {
    pub title: Option<String>,
    pub url: Option<String>,
    /// `YYYY-MM-DD`
    pub updated: Option<String>,
}

choice!(/// Of what a one-time code is made.
    CodeAlphabet { Digits = "digits", Letters = "letters" });

/// `[credentials]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    pub class: At<Name>,
    pub password_min_length: u32,
    pub password_common: bool,
    pub lock_tries: u32,
    pub lock_seconds: u32,
    pub source_tries: u32,
    pub api_key_prefix: At<Name>,
    pub code_length: u32,
    pub code_alphabet: CodeAlphabet,
    pub code_life_seconds: u32,
    pub code_tries: u32,
}

/// When a version was announced and when it takes effect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Notice {
    pub notified: Option<At<Date>>,
    pub effective: Option<At<Date>>,
    pub minimum: Option<At<Period>>,
}

/// `[reserved]`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reserved {
    pub classes: Vec<At<u16>>,
    pub fields: Vec<At<u16>>,
    pub purposes: Vec<At<u16>>,
    pub roles: Vec<At<u16>>,
    pub plans: Vec<At<u16>>,
    pub recipients: Vec<At<u16>>,
}

/// What every numbered record of the file has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Permanent number; its line stands for the record's.
    pub number: At<u16>,
    pub name: At<Name>,
    pub title: Option<String>,
}

/// `[[category]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Category {
    pub name: At<Name>,
    pub title: Option<String>,
    pub promised: Option<At<Period>>,
    /// Empty: any.
    pub bases: Vec<At<Basis>>,
}

/// `[[class]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Class {
    pub head: Head,
    /// `None`: the file does not say. `Some(None)`: it says `none`.
    pub retention: Option<At<Option<Period>>>,
    pub max_retention: Option<At<Period>>,
    pub grace: Option<At<Period>>,
    pub hold: Option<Hold>,
}

/// `[class.hold]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    pub name: Name,
    pub basis: String,
    pub keep: At<Period>,
    pub from: HoldFrom,
    pub purpose: At<Name>,
}

/// `[[field]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    pub head: Head,
    pub class: At<Name>,
    pub category: Option<At<Name>>,
    pub kind: At<FieldType>,
    pub max_length: Option<At<u32>>,
    pub validator: At<Validator>,
    pub searchable: At<bool>,
    pub unique: At<bool>,
    pub many: At<bool>,
    pub mask: Option<At<Mask>>,
    pub retired: bool,
    /// Purpose to which the person must have consented before a value is written.
    pub consent: Option<At<Name>>,
}

/// `[[purpose]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purpose {
    pub head: Head,
    pub kind: Option<At<String>>,
    pub basis: At<Basis>,
    pub allowed: Fields,
    pub view: View,
    pub approval: bool,
    pub reference: bool,
    pub reason: bool,
    pub recipient: bool,
    pub objection: Option<At<bool>>,
    pub consent_since: Option<At<Date>>,
    pub consent_lasts: Option<At<Period>>,
    pub basis_for: Vec<BasisFor>,
}

/// `[[purpose.basis_for]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BasisFor {
    pub category: At<Name>,
    pub basis: At<Basis>,
}

/// `[[recipient]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipient {
    pub head: Head,
    pub kind: RecipientKind,
    pub region: Option<At<Name>>,
    pub dpa: Option<At<String>>,
    pub dpa_expires: Option<At<Date>>,
    pub transfer: Option<At<Transfer>>,
    pub purposes: Names,
    pub gets: Fields,
    pub view: At<RecipientView>,
    pub channels: Vec<At<Name>>,
}

/// `[age]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Age {
    pub limit: At<u32>,
    pub birth: Option<At<Name>>,
    pub attested: Option<At<Name>>,
}

/// `[[clock]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clock {
    pub line: u32,
    pub requests: Vec<At<RequestKind>>,
    pub within: At<Within>,
    pub regions: Vec<At<Name>>,
}

/// `[nominee]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nominee {
    pub scopes: Vec<At<RequestKind>>,
    pub lasts: Option<At<Period>>,
}

/// `[transfer]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransferRule {
    pub line: u32,
    pub inside: Vec<At<Name>>,
    pub groups: Vec<At<Transfer>>,
}

/// `[analytics]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Analytics {
    pub threshold: At<u32>,
    pub fields: Vec<At<Name>>,
}

/// `[archives]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archives {
    pub horizon: Option<At<Period>>,
    pub data: Option<At<Period>>,
}

/// `[[claim]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub line: u32,
    pub section: String,
    pub kind: At<ClaimKind>,
    pub about: Names,
    pub value: Option<At<String>>,
    pub recipient: Option<At<Name>>,
}

/// Fields named by class, one by one, and exceptions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fields {
    pub classes: Names,
    pub fields: Vec<At<Name>>,
    pub except: Vec<At<Name>>,
}

/// `[[role]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    pub head: Head,
    pub grants: Vec<RoleGrant>,
}

/// `[[role.grant]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleGrant {
    pub line: u32,
    pub verbs: VerbSet,
    pub touches: Fields,
    pub purposes: Names,
    pub view: View,
    /// `None`: every subject.
    pub groups: Option<Vec<SubjectId>>,
}

/// `[[plan]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub head: Head,
    pub retention: Vec<PlanRetention>,
}

/// `[[plan.retention]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanRetention {
    pub class: At<Name>,
    pub at_least: Option<At<Period>>,
    pub at_most: Option<At<Period>>,
}

/// A whole file, well formed; not yet checked for sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub region: Option<At<Name>>,
    pub time_zone: At<String>,
    pub forbidden: Vec<At<String>>,
    pub controller: Controller,
    pub policy: PublishedText,
    pub notice: Notice,
    pub reserved: Reserved,
    pub credentials: Option<Credentials>,
    pub categories: Vec<Category>,
    pub classes: Vec<Class>,
    pub fields: Vec<Field>,
    pub purposes: Vec<Purpose>,
    pub roles: Vec<Role>,
    pub plans: Vec<Plan>,
    pub recipients: Vec<Recipient>,
    pub age: Option<Age>,
    pub clocks: Vec<Clock>,
    pub holidays: Vec<At<Date>>,
    /// `None`: Saturday and Sunday.
    pub weekend: Option<Vec<Weekday>>,
    pub nominee: Option<Nominee>,
    pub transfer: Option<TransferRule>,
    pub analytics: Option<Analytics>,
    pub archives: Option<Archives>,
    /// Name of the host.
    pub storage: Option<At<String>>,
    pub claims: Vec<Claim>,
}
