//! Builds `tonic::Status` with google.rpc details. Every error that leaves the server is made here, so that each has a
//! code, a reason out of the closed list and, at most, numbers and names of rules: never a value or a subject id.

use crate::grpc::reason::{DOMAIN, Reason};
use std::collections::HashMap;
use std::time::Duration;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

/// One pair of `ErrorInfo.metadata`: the key is fixed in the program, the value a number, a rule's name, a line.
pub type Meta<'a> = (&'static str, &'a str);

/// A status with ErrorInfo. `message` is for people, fixed in the program; nothing that a caller chose goes in.
pub fn status(code: Code, reason: Reason, message: &str, meta: &[Meta<'_>]) -> Status {
    Status::with_error_details(code, message, details(reason, meta))
}

/// The same with RetryInfo: nothing was done, the caller may repeat the call after `delay`.
pub fn retry_later(code: Code, reason: Reason, message: &str, delay: Duration, meta: &[Meta<'_>]) -> Status {
    let mut details = details(reason, meta);
    details.set_retry_info(Some(delay));
    Status::with_error_details(code, message, details)
}

/// `INVALID_ARGUMENT` for one request field: `field` is its path in the request (`values[3].field_id`), `rule` the rule
/// it breaks.
pub fn bad_field(field: impl Into<String>, rule: impl Into<String>) -> Status {
    bad_fields(Reason::FieldInvalid, vec![(field.into(), rule.into())])
}

/// `INVALID_ARGUMENT` with all the violations that were found, as (path, rule).
pub fn bad_fields(reason: Reason, violations: Vec<(String, String)>) -> Status {
    let violations: Vec<FieldViolation> =
        violations.into_iter().map(|(field, rule)| FieldViolation::new(field, rule)).collect();
    // The first one is repeated in the message: many clients show nothing else.
    let message = match violations.first() {
        Some(v) => format!("{}: {}", v.field, v.description),
        None => "the request is not valid".into(),
    };
    let mut details = details(reason, &[]);
    details.set_bad_request(violations);
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// `RESOURCE_EXHAUSTED`: a queue is full; nothing was done.
pub fn busy(message: &str, delay: Duration) -> Status {
    retry_later(Code::ResourceExhausted, Reason::Busy, message, delay, &[])
}

/// `UNAVAILABLE`: the server is going away; another connection may reach another one.
pub fn closing() -> Status {
    retry_later(Code::Unavailable, Reason::Closing, "the server is shutting down", Duration::from_secs(1), &[])
}

/// `DEADLINE_EXCEEDED`, whether the client's deadline or the server's cap was over.
pub fn deadline_exceeded() -> Status {
    status(Code::DeadlineExceeded, Reason::DeadlineExceeded, "the deadline passed", &[])
}

/// `NOT_FOUND`: absent and another tenant's are this same answer, byte for byte.
pub fn not_found() -> Status {
    status(Code::NotFound, Reason::NotFound, "not found", &[])
}

/// `UNAUTHENTICATED`: unknown, wrong, revoked and expired credentials are this same answer, byte for byte.
pub fn credential_invalid() -> Status {
    status(Code::Unauthenticated, Reason::CredentialInvalid, "the credential is missing or not valid", &[])
}

/// `PERMISSION_DENIED` naming the rule that decided.
pub fn denied(reason: Reason, rule: &str) -> Status {
    status(Code::PermissionDenied, reason, "not permitted", &[("rule", rule)])
}

/// `FAILED_PRECONDITION`.
pub fn wrong_state(reason: Reason, message: &str, meta: &[Meta<'_>]) -> Status {
    status(Code::FailedPrecondition, reason, message, meta)
}

/// `ABORTED`: lost to a concurrent change; safe to retry.
pub fn aborted(reason: Reason, message: &str) -> Status {
    status(Code::Aborted, reason, message, &[])
}

/// `UNIMPLEMENTED`: a request field whose capability is not there yet is refused by name, never ignored.
pub fn not_supported(field: &str) -> Status {
    status(Code::Unimplemented, Reason::NotSupported, "not supported by this version", &[("field", field)])
}

/// `DATA_LOSS`: one opaque message, whatever did not open. Each is counted: somebody should look.
pub fn data_loss() -> Status {
    metrics::counter!(crate::telemetry::DAMAGED).increment(1);
    status(Code::DataLoss, Reason::DataLoss, "stored data could not be opened", &[])
}

/// `INTERNAL`: a defect; the chain is in the log under the request id.
pub fn internal() -> Status {
    status(Code::Internal, Reason::Internal, "internal error", &[])
}

/// The reason a status carries, for tests and for the client side.
pub fn reason_of(status: &Status) -> Option<String> {
    status.get_error_details().error_info().map(|info| info.reason.clone())
}

fn details(reason: Reason, meta: &[Meta<'_>]) -> ErrorDetails {
    let meta: HashMap<String, String> = meta.iter().map(|(k, v)| ((*k).to_string(), (*v).to_string())).collect();
    ErrorDetails::with_error_info(reason.as_str(), DOMAIN, meta)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_violation_names_field_and_rule() {
        let status = bad_field("values[2].text", "must not be longer than the field allows");
        assert_eq!(status.code(), Code::InvalidArgument);
        let details = status.get_error_details();
        assert_eq!(details.error_info().unwrap().domain, DOMAIN);
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "values[2].text");
    }

    #[test]
    fn busy_says_when_to_come_back() {
        let status = busy("too many calls", Duration::from_millis(250));
        assert_eq!(status.get_error_details().retry_info().unwrap().retry_delay, Some(Duration::from_millis(250)));
        assert_eq!(reason_of(&status).as_deref(), Some("BUSY"));
    }

    #[test]
    fn missing_and_foreign_are_one_answer() {
        assert_eq!(not_found().details(), not_found().details());
        assert_eq!(credential_invalid().details(), credential_invalid().details());
    }
}
