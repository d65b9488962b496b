//! What the vault answers instead of doing what was asked. Variants name the outcome; nothing here holds a value or an
//! id that a caller chose.

use crate::access::Verb;
use crate::audit::Outcome;
use crate::auth::Kind;
use crate::ids::{ClassNo, FieldNo, ObjectId};
use crate::keyring::{KeyringError, SwapError};
use crate::policy::compiled::{Ask, Decision, Policy, Rule};
use crate::storage::StoreError;
use crate::vault::call::Call;

/// One thing wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Path in the request, e.g. `values[3]`.
    pub path: String,
    /// The field of the policy concerned, where there is one.
    pub field: Option<FieldNo>,
    /// The rule that it breaks, for a person; never the value.
    pub rule: String,
}

impl Violation {
    pub fn new(path: impl Into<String>, rule: impl Into<String>) -> Self {
        Violation { path: path.into(), field: None, rule: rule.into() }
    }
}

/// Why something is not permitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DenialKind {
    /// The credential has no grant for the verb, field or group.
    NotPermitted,
    /// The credential has no grant for the purpose.
    PurposeNotGranted,
    /// The policy does not allow the purpose for the field.
    PurposeNotAllowed,
    /// The credential may see less than was asked for.
    ViewNotGranted,
    /// A second principal must approve first.
    ApprovalNeeded,
    /// The purpose is based on consent, and there is none on record.
    ConsentMissing,
    /// The policy does not list the recipient for the purpose or field, or lets data go there on no basis.
    RecipientUnlisted,
    /// The agreement with the recipient is over.
    DpaExpired,
    /// Only TEST tenants have a clock that can be moved.
    TestTenantOnly,
}

#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    #[error("the request is not valid")]
    Invalid(Vec<Violation>),
    /// A value breaks a rule of its field.
    #[error("a value is not valid")]
    ValueInvalid(Vec<Violation>),
    /// A field number or name that the policy does not have.
    #[error("a field is not in the schema")]
    UnknownField(Vec<Violation>),
    /// The policy file has errors.
    #[error("the policy is not valid")]
    PolicyInvalid(Vec<Violation>),
    #[error("page token of another query")]
    PageToken,
    #[error("the request id was used with another body")]
    RequestIdReused,
    /// A capability that this version does not have; named, never ignored.
    #[error("{0} is not supported by this version")]
    NotSupported(&'static str),
    #[error("not permitted: {rule}")]
    Denied { kind: DenialKind, rule: String },
    /// Absent, or another tenant's: the two are one answer.
    #[error("not found")]
    NotFound,
    #[error("the subject is erased")]
    SubjectErased,
    /// The tenant's keys are not in order: what to do next is in the state.
    #[error("the tenant's keys are not in order")]
    KeysNotReady(crate::keyring::TenantKeyState),
    #[error("the tenant is erased")]
    TenantErased,
    #[error("already exists")]
    AlreadyExists,
    #[error("a unique value belongs to another subject")]
    UniqueTaken { field: FieldNo },
    #[error("the subject is closed")]
    SubjectClosed,
    #[error("a legal hold keeps class {class}")]
    /// The hold is named to who may place one; a policy's own hold has no name.
    Held { class: ClassNo, hold: Option<ObjectId> },
    #[error("wrong state: {0}")]
    WrongState(&'static str),
    #[error("the etag is stale")]
    EtagStale,
    #[error("conflict with other changes")]
    Conflict,
    #[error("quota reached: {0}")]
    Quota(&'static str),
    /// The key has touched as many different people in this hour as it may.
    #[error("a key's limit of different people in an hour is reached: {limit}")]
    ReadBreadth { limit: u32 },
    /// Nothing was done; try again after so many milliseconds.
    #[error("busy")]
    Busy { retry_ms: u32 },
    #[error("the clock is not trusted until an operator confirms it")]
    ClockUnsafe,
    #[error("the audit cannot be written")]
    AuditUnavailable,
    /// The operating system gives no threads for checking keys.
    #[error("no threads for checking access keys")]
    NoThreads(#[source] std::sync::Arc<std::io::Error>),
    /// A root key cannot be read where the configuration says that it is.
    #[error("the root key cannot be had: {0}")]
    RootKey(#[source] crate::keyring::root::RootError),
    /// A stored value does not open or is not what was stored.
    #[error("stored data does not open")]
    DataLoss,
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    #[error(transparent)]
    Store(StoreError),
}

impl From<StoreError> for VaultError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict(_) => VaultError::Conflict,
            StoreError::Busy => VaultError::Busy { retry_ms: 50 },
            other => VaultError::Store(other),
        }
    }
}

impl From<SwapError> for VaultError {
    fn from(error: SwapError) -> Self {
        match error {
            SwapError::Conflict(_) => VaultError::Conflict,
            SwapError::Busy => VaultError::Busy { retry_ms: 50 },
            SwapError::KeeperAway(error) => VaultError::Keyring(error.into()),
            SwapError::Refused(state) => VaultError::KeysNotReady(state),
            SwapError::Store(error) => error.into(),
            SwapError::Tree(error) => {
                tracing::error!(%error, "keys could not be dropped");
                VaultError::DataLoss
            }
            SwapError::Unfinished { .. } | SwapError::Unclear | SwapError::Stopped(_) => {
                VaultError::Busy { retry_ms: 1_000 }
            }
        }
    }
}

impl From<crate::auth::Denial> for VaultError {
    fn from(denial: crate::auth::Denial) -> Self {
        match denial.rule {
            crate::auth::Rule::TenantForeign => VaultError::NotFound,
            rule => VaultError::denied(DenialKind::NotPermitted, rule.to_string()),
        }
    }
}

impl VaultError {
    /// One violation at `path`.
    pub fn invalid(path: impl Into<String>, rule: impl Into<String>) -> Self {
        VaultError::Invalid(vec![Violation::new(path, rule)])
    }
    /// A hold keeps the class; which one is told to who may place holds.
    pub(crate) fn held(call: &Call, class: ClassNo, hold: Option<ObjectId>) -> Self {
        let told = call.principal.kind == Kind::Operator || call.permit(Verb::Hold).is_ok();
        VaultError::Held { class, hold: hold.filter(|_| told) }
    }
    pub fn denied(kind: DenialKind, rule: impl Into<String>) -> Self {
        VaultError::Denied { kind, rule: rule.into() }
    }

    /// What the policy's decision says to a caller: the rule's name, its line and an explanation by names.
    pub fn refused(policy: &Policy, ask: &Ask<'_>, field: FieldNo, decision: &Decision) -> Self {
        let Decision::Deny(denial) = decision else { return VaultError::NotFound };
        let kind = match denial.rule {
            Rule::UnknownField
            | Rule::VerbNotGranted
            | Rule::FieldNotGranted
            | Rule::GroupNotGranted
            | Rule::FieldRetired => DenialKind::NotPermitted,
            Rule::PurposeNotGranted => DenialKind::PurposeNotGranted,
            Rule::UnknownPurpose
            | Rule::PurposeNotAllowed
            | Rule::HeldForAnotherPurpose
            | Rule::TooYoung
            | Rule::Restricted
            | Rule::Objected
            | Rule::ReferenceNeeded
            | Rule::ReasonNeeded => DenialKind::PurposeNotAllowed,
            Rule::RecipientNeeded | Rule::RecipientUnlisted | Rule::TransferBasisMissing => {
                DenialKind::RecipientUnlisted
            }
            Rule::DpaExpired => DenialKind::DpaExpired,
            Rule::ConsentMissing => DenialKind::ConsentMissing,
            Rule::ApprovalNeeded => DenialKind::ApprovalNeeded,
            Rule::ViewNotGranted | Rule::NoMask | Rule::TokensNotMade => DenialKind::ViewNotGranted,
        };
        let line = if denial.line > 0 { format!(" (line {} of the policy)", denial.line) } else { String::new() };
        let rule = format!("{}: {}{line}", denial.rule.name(), policy.explain(ask, field, decision));
        VaultError::Denied { kind, rule }
    }

    /// How the audit calls it.
    pub fn outcome(&self) -> Outcome {
        match self {
            VaultError::Denied { .. } => Outcome::Denied,
            VaultError::NotFound | VaultError::SubjectErased | VaultError::TenantErased => Outcome::NotFound,
            VaultError::DataLoss => Outcome::DataLoss,
            VaultError::Keyring(KeyringError::OtherKey { .. } | KeyringError::Damaged { .. }) => Outcome::DataLoss,
            _ => Outcome::Failed,
        }
    }
}
