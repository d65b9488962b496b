//! What the vault answers, as a status: code and reason for each outcome, and nothing that a caller chose.

use std::time::Duration;

use tonic::{Code, Status};

use crate::grpc::reason::Reason;
use crate::grpc::status::*;
use crate::keyring::keeper::KeeperError;
use crate::keyring::{KeyringError, TenantKeyState};
use crate::storage::StoreError;
use crate::vault::{DenialKind, VaultError, Violation};

impl From<VaultError> for Status {
    fn from(error: VaultError) -> Status {
        match error {
            VaultError::Invalid(violations) => bad(Reason::FieldInvalid, violations),
            VaultError::ValueInvalid(violations) => bad(Reason::ValueInvalid, violations),
            VaultError::UnknownField(violations) => bad(Reason::SchemaUnknownField, violations),
            VaultError::PolicyInvalid(violations) => bad(Reason::PolicyInvalid, violations),
            VaultError::PageToken => page_token_invalid(),
            VaultError::RequestIdReused => {
                wrong_state(Reason::RequestIdReused, "the request id was used with another body", &[])
            }
            VaultError::NotSupported(field) => not_supported(field),
            VaultError::Denied { kind, rule } => match kind {
                DenialKind::NotPermitted => denied(Reason::NotPermitted, &rule),
                DenialKind::PurposeNotGranted => denied(Reason::PurposeNotGranted, &rule),
                DenialKind::PurposeNotAllowed => denied(Reason::PurposeNotAllowed, &rule),
                DenialKind::ViewNotGranted => denied(Reason::ViewNotGranted, &rule),
                DenialKind::ApprovalNeeded => denied(Reason::ApprovalNeeded, &rule),
                DenialKind::RecipientUnlisted => denied(Reason::RecipientUnlisted, &rule),
                DenialKind::DpaExpired => denied(Reason::DpaExpired, &rule),
                DenialKind::ConsentMissing => {
                    wrong_state(Reason::ConsentMissing, "the purpose needs a consent", &[("rule", &rule)])
                }
                DenialKind::TestTenantOnly => {
                    wrong_state(Reason::TestTenantOnly, "only TEST tenants may do this", &[("rule", &rule)])
                }
            },
            VaultError::NotFound => not_found(),
            VaultError::SubjectErased => status(Code::NotFound, Reason::SubjectErased, "the subject was erased", &[]),
            VaultError::KeysNotReady(state) => keys_not_ready(state),
            VaultError::TenantErased => tenant_erased(),
            VaultError::AlreadyExists => status(Code::AlreadyExists, Reason::AlreadyExists, "already exists", &[]),
            VaultError::UniqueTaken { field } => {
                let field = field.to_string();
                status(Code::AlreadyExists, Reason::UniqueTaken, "the value is taken", &[("field_id", &field)])
            }
            VaultError::SubjectClosed => wrong_state(Reason::SubjectClosed, "the subject is closed", &[]),
            VaultError::Held { class, hold } => {
                let (class, hold) = (class.to_string(), hold.map(|hold| hold.to_string()));
                let mut meta = vec![("class_id", class.as_str())];
                meta.extend(hold.as_deref().map(|hold| ("hold", hold)));
                wrong_state(Reason::ClassHeld, "a legal hold keeps the class", &meta)
            }
            VaultError::WrongState(what) => wrong_state(Reason::WrongState, what, &[]),
            VaultError::EtagStale => aborted(Reason::EtagStale, "the etag is not the present one"),
            VaultError::Conflict => aborted(Reason::Conflict, "concurrent changes won; retry"),
            VaultError::Quota(what) => status(Code::ResourceExhausted, Reason::Quota, what, &[]),
            VaultError::ReadBreadth { limit } => status(
                Code::ResourceExhausted,
                Reason::ReadBreadth,
                "this key may touch no more different people in this hour",
                &[("subjects_per_hour", &limit.to_string())],
            ),
            VaultError::Busy { retry_ms } => {
                busy("too much is waiting; nothing was done", Duration::from_millis(retry_ms.into()))
            }
            VaultError::ClockUnsafe => {
                wrong_state(Reason::ClockUnsafe, "the clock waits for an operator's confirmation", &[])
            }
            VaultError::AuditUnavailable => {
                let delay = Duration::from_secs(1);
                retry_later(Code::Unavailable, Reason::AuditUnavailable, "the audit cannot be written", delay, &[])
            }
            VaultError::RootKey(error) => {
                wrong_state(Reason::RootKeyUnavailable, "the root key cannot be had", &[("rule", &error.to_string())])
            }
            VaultError::NoThreads(_) => logged(&error),
            VaultError::DataLoss => data_loss(),
            VaultError::Keyring(error) => keyring(error),
            VaultError::Store(error) => store(error),
        }
    }
}

/// `INVALID_ARGUMENT`: a page token that does not belong to this query.
pub fn page_token_invalid() -> Status {
    status(Code::InvalidArgument, Reason::PageTokenInvalid, "the page token does not belong to this query", &[])
}

/// `INVALID_ARGUMENT`: too many of something; the limit is in the metadata.
pub fn limit_exceeded(field: &'static str, limit: usize) -> Status {
    let limit = limit.to_string();
    let meta = [("field", field), ("limit", limit.as_str())];
    status(Code::InvalidArgument, Reason::LimitExceeded, "more than one request may have", &meta)
}

fn bad(reason: Reason, violations: Vec<Violation>) -> Status {
    bad_fields(reason, violations.into_iter().map(|v| (v.path, v.rule)).collect())
}

fn tenant_erased() -> Status {
    status(Code::NotFound, Reason::TenantErased, "the tenant was erased", &[])
}

fn keys_not_ready(state: TenantKeyState) -> Status {
    match state {
        // The keyring turned ready between two looks: the call may simply be repeated.
        TenantKeyState::Ready => busy("the tenant is being opened", Duration::from_millis(100)),
        TenantKeyState::DatabaseBehind => {
            wrong_state(Reason::DatabaseBehind, "the tenant's database is older than its keeper", &[])
        }
        TenantKeyState::KeeperBehind => {
            wrong_state(Reason::KeeperBehind, "the tenant's keeper is older than its database", &[])
        }
        TenantKeyState::TenantErased => tenant_erased(),
    }
}

fn keyring(error: KeyringError) -> Status {
    let no_slots = || {
        let delay = Duration::from_secs(5);
        retry_later(Code::ResourceExhausted, Reason::NoKeySlots, "no recorded key slot is left", delay, &[])
    };
    match error {
        KeyringError::Refused { state, .. } => keys_not_ready(state),
        KeyringError::UnknownTenant { .. } => not_found(),
        KeyringError::OtherKey { .. } | KeyringError::Damaged { .. } => data_loss(),
        KeyringError::Full { .. } | KeyringError::Uncovered { .. } => no_slots(),
        KeyringError::WrongKek
        | KeyringError::NoSigningKey
        | KeyringError::NumberTaken { .. }
        | KeyringError::Recovery(_) => logged(&error),
        KeyringError::Stopped => closed(),
        KeyringError::Store(error) => store(error),
        KeyringError::Keeper(KeeperError::ReplicaAway { .. } | KeeperError::NoReplica) => {
            busy("a keeper replica is away; nothing was done", Duration::from_secs(5))
        }
        KeyringError::Keeper(KeeperError::Newer { .. }) => keys_not_ready(TenantKeyState::DatabaseBehind),
        KeyringError::Keeper(KeeperError::Unsure { .. }) => keys_not_ready(TenantKeyState::KeeperBehind),
        KeyringError::Keeper(KeeperError::Tombstoned { .. }) => tenant_erased(),
        KeyringError::Keeper(_) => logged(&error),
    }
}

fn store(error: StoreError) -> Status {
    match error {
        StoreError::Conflict(_) => aborted(Reason::Conflict, "concurrent changes won; retry"),
        StoreError::Busy => busy("too many writes are waiting; nothing was done", Duration::from_millis(50)),
        StoreError::DiskFull => {
            let delay = Duration::from_secs(30);
            retry_later(Code::ResourceExhausted, Reason::DiskFull, "the disk is full", delay, &[])
        }
        StoreError::Closed { .. } => closed(),
        StoreError::Damaged { .. } => {
            let status = data_loss();
            logged(&error);
            status
        }
        StoreError::Refused { .. } | StoreError::Newer { .. } | StoreError::Engine(_) => logged(&error),
    }
}

fn closed() -> Status {
    retry_later(Code::Unavailable, Reason::StoreClosed, "a write error closed the store", Duration::from_secs(30), &[])
}

/// The chain goes to the log, the caller hears `INTERNAL`. The texts of these errors hold no values.
fn logged(error: &(dyn std::error::Error + 'static)) -> Status {
    tracing::error!(error = %error, source = ?error.source(), "a call failed inside");
    internal()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::status::reason_of;
    use crate::ids::FieldNo;
    use tonic_types::StatusExt;

    #[test]
    fn an_outcome_keeps_its_code_and_reason() {
        for (error, code, reason) in [
            (VaultError::invalid("a", "b"), Code::InvalidArgument, "FIELD_INVALID"),
            (VaultError::ValueInvalid(vec![]), Code::InvalidArgument, "VALUE_INVALID"),
            (VaultError::UnknownField(vec![]), Code::InvalidArgument, "SCHEMA_UNKNOWN_FIELD"),
            (VaultError::PageToken, Code::InvalidArgument, "PAGE_TOKEN_INVALID"),
            (VaultError::RequestIdReused, Code::FailedPrecondition, "REQUEST_ID_REUSED"),
            (VaultError::NotSupported("x"), Code::Unimplemented, "NOT_SUPPORTED"),
            (VaultError::NotFound, Code::NotFound, "NOT_FOUND"),
            (VaultError::SubjectErased, Code::NotFound, "SUBJECT_ERASED"),
            (VaultError::UniqueTaken { field: FieldNo(1) }, Code::AlreadyExists, "UNIQUE_TAKEN"),
            (VaultError::EtagStale, Code::Aborted, "ETAG_STALE"),
            (VaultError::Conflict, Code::Aborted, "CONFLICT"),
            (VaultError::Busy { retry_ms: 5 }, Code::ResourceExhausted, "BUSY"),
            (VaultError::AuditUnavailable, Code::Unavailable, "AUDIT_UNAVAILABLE"),
            (VaultError::DataLoss, Code::DataLoss, "DATA_LOSS"),
            (VaultError::Store(StoreError::DiskFull), Code::ResourceExhausted, "DISK_FULL"),
            (VaultError::denied(DenialKind::NotPermitted, "r"), Code::PermissionDenied, "NOT_PERMITTED"),
            (VaultError::denied(DenialKind::TestTenantOnly, "r"), Code::FailedPrecondition, "TEST_TENANT_ONLY"),
        ] {
            let status = Status::from(error);
            assert_eq!((status.code(), reason_of(&status).as_deref()), (code, Some(reason)));
        }
    }

    #[test]
    fn what_may_be_repeated_says_when() {
        let status = Status::from(VaultError::Busy { retry_ms: 20 });
        let delay = status.get_error_details().retry_info().and_then(|r| r.retry_delay);
        assert_eq!(delay, Some(Duration::from_millis(20)));
    }
}
