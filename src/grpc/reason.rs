//! The closed list of reasons that an error may carry in `google.rpc.ErrorInfo`. A reason is part of the API: clients
//! branch on it, so a name never changes its meaning. `docs/ERRORS.md` has one anchor for each; a test compares the two.

/// `ErrorInfo.domain` of every error.
pub const DOMAIN: &str = "pii-vault";

macro_rules! reasons {
    ($($(#[$doc:meta])+ $variant:ident = $text:literal,)+) => {
        /// Why a call was refused or failed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[$doc])+ $variant,)+
        }

        impl Reason {
            /// Every reason there is, in the order of `docs/ERRORS.md`.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)+];

            /// The reason of that text.
            pub fn of(text: &str) -> Option<Reason> {
                Reason::ALL.iter().copied().find(|reason| reason.as_str() == text)
            }

            /// The text that goes on the wire.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Reason::$variant => $text,)+
                }
            }
        }
    };
}

reasons! {
    // The request itself.
    /// A field of the request breaks a rule of the API (missing, two of one, a bad form); see the field violations.
    FieldInvalid = "FIELD_INVALID",
    /// A call's metadata is malformed: `grpc-timeout` or `authorization`.
    MetadataInvalid = "METADATA_INVALID",
    /// A personal value breaks its field's type, length or validator. The value is never repeated.
    ValueInvalid = "VALUE_INVALID",
    /// The field number or name is not in the tenant's schema.
    SchemaUnknownField = "SCHEMA_UNKNOWN_FIELD",
    /// The class, purpose, recipient or role number is not in the tenant's policy.
    PolicyUnknownNumber = "POLICY_UNKNOWN_NUMBER",
    /// A policy file was refused; the violations name the lines.
    PolicyInvalid = "POLICY_INVALID",
    /// The new policy contradicts what is stored: a number reused, a class with data taken away.
    PolicyConflict = "POLICY_CONFLICT",
    /// The page token is damaged, too old, or belongs to another query.
    PageTokenInvalid = "PAGE_TOKEN_INVALID",
    /// The request id was used within 24 h with another body.
    RequestIdReused = "REQUEST_ID_REUSED",
    /// More items, bytes or numbers in one request than the API allows.
    LimitExceeded = "LIMIT_EXCEEDED",
    /// A message is larger than the server decodes or encodes (4 MiB).
    MessageTooLarge = "MESSAGE_TOO_LARGE",
    /// The request asks for something that this version does not do yet; the metadata names the request field.
    NotSupported = "NOT_SUPPORTED",
    /// No service or method of this name is served here.
    MethodUnknown = "METHOD_UNKNOWN",

    // Who calls and what they may.
    /// No credential, or one that is unknown, wrong, revoked or expired; which of these is not told.
    CredentialInvalid = "CREDENTIAL_INVALID",
    /// The credential is bound to a client certificate that this connection did not present.
    CertificateMismatch = "CERTIFICATE_MISMATCH",
    /// No grant of the credential's roles covers the verb, class, field or group.
    NotPermitted = "NOT_PERMITTED",
    /// The credential's grants do not include the purpose.
    PurposeNotGranted = "PURPOSE_NOT_GRANTED",
    /// The policy does not allow the purpose for the class or field.
    PurposeNotAllowed = "PURPOSE_NOT_ALLOWED",
    /// The view asked for shows more than the grant or the policy allows.
    ViewNotGranted = "VIEW_NOT_GRANTED",
    /// The purpose needs the subject's consent and there is none.
    ConsentMissing = "CONSENT_MISSING",
    /// The recipient is not listed in the policy for this purpose.
    RecipientUnlisted = "RECIPIENT_UNLISTED",
    /// The data processing agreement with the recipient is over.
    DpaExpired = "DPA_EXPIRED",
    /// The action needs an approval by a second principal, and none (or a used, expired or foreign one) was given.
    ApprovalNeeded = "APPROVAL_NEEDED",
    /// The action exists for TEST tenants only.
    TestTenantOnly = "TEST_TENANT_ONLY",

    // The state of what was asked for.
    /// There is no such thing in this tenant. Another tenant's object gives the same answer.
    NotFound = "NOT_FOUND",
    /// The subject or class was erased. Told inside its own tenant only.
    SubjectErased = "SUBJECT_ERASED",
    /// The tenant was erased, or its erasure has begun.
    TenantErased = "TENANT_ERASED",
    /// A thing of this name exists already.
    AlreadyExists = "ALREADY_EXISTS",
    /// The value of a unique field is taken in this tenant; whose it is is not told.
    UniqueTaken = "UNIQUE_TAKEN",
    /// The subject is closed and takes no writes.
    SubjectClosed = "SUBJECT_CLOSED",
    /// A hold keeps the class; administrators see which one.
    ClassHeld = "CLASS_HELD",
    /// The object is not in a state in which this can be done (cancelled, finished, released).
    WrongState = "WRONG_STATE",
    /// A root key cannot be read where the configuration says that it is; the metadata says why.
    RootKeyUnavailable = "ROOT_KEY_UNAVAILABLE",
    /// The etag is not the present one: read again, decide again.
    EtagStale = "ETAG_STALE",
    /// Concurrent changes won several times in a row; safe to retry.
    Conflict = "CONFLICT",

    // How much and how soon.
    /// A quota of the tenant is used up.
    Quota = "QUOTA",
    /// The credential has touched as many different people in an hour as its roles allow.
    ReadBreadth = "READ_BREADTH",
    /// A queue is full or too many calls are in flight. Nothing was done; retry after the delay in RetryInfo.
    Busy = "BUSY",
    /// The deadline passed. A write may have happened all the same: repeat it with its request id.
    DeadlineExceeded = "DEADLINE_EXCEEDED",
    /// The disk under the database or the audit is full. Reads go on.
    DiskFull = "DISK_FULL",
    /// No recorded key slot is left; more are being made.
    NoKeySlots = "NO_KEY_SLOTS",

    // The state of the server.
    /// The vault is sealed: the provider of its root key is away for longer than the configuration lets it serve without.
    Sealed = "SEALED",
    /// The server is shutting down; connect again.
    Closing = "CLOSING",
    /// The database is older than the keeper: a rollback. The tenant is refused until it is restored.
    DatabaseBehind = "DATABASE_BEHIND",
    /// The keeper is older than the database. The tenant is refused until another replica or an archive is given.
    KeeperBehind = "KEEPER_BEHIND",
    /// The clock jumped; what depends on time waits for an operator's word.
    ClockUnsafe = "CLOCK_UNSAFE",
    /// The audit log cannot be written, so the call was not done.
    AuditUnavailable = "AUDIT_UNAVAILABLE",
    /// The store stopped after a write error; the server must be restarted.
    StoreClosed = "STORE_CLOSED",
    /// Stored bytes do not open or do not fit together. An alarm was counted.
    DataLoss = "DATA_LOSS",
    /// A defect of the server. The log has the request id.
    Internal = "INTERNAL",
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_reason_has_its_anchor_in_the_manual_and_no_other() {
        let manual = include_str!("../../docs/ERRORS.md");
        let anchors: Vec<&str> = manual.lines().filter_map(|line| line.strip_prefix("### ")).collect();
        let listed: Vec<&str> = Reason::ALL.iter().map(|r| r.as_str()).collect();
        assert_eq!(anchors, listed, "docs/ERRORS.md and Reason differ in names or order");
        assert_eq!(listed.iter().collect::<BTreeSet<_>>().len(), listed.len(), "a reason is there twice");
    }

    #[test]
    fn the_form_of_a_reason_is_that_of_error_info() {
        // google.rpc.ErrorInfo: at most 63 characters of [A-Z][A-Z0-9_]+[A-Z0-9].
        for reason in Reason::ALL {
            let text = reason.as_str();
            assert!(text.len() <= 63 && text.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'), "{text}");
        }
    }
}
