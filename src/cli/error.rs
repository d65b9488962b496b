//! What can go wrong in a command, how it is told, and with which exit code the program ends.

use crate::cli::text::printable;
use crate::grpc::pb;
use serde_json::{Value as Json, json};
use std::fmt::Write as _;
use std::io;
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Where the reasons are explained; an anchor is added.
const MANUAL: &str = "docs/ERRORS.md";

/// The exit codes and what they mean, as `help exit-codes` and docs/CLI.md print them.
pub const EXIT_CODES: &[(u8, &str)] = &[
    (0, "done"),
    (1, "unexpected: a defect, damaged data, a file that cannot be read or written"),
    (2, "usage: wrong arguments or input, INVALID_ARGUMENT, OUT_OF_RANGE, UNIMPLEMENTED"),
    (3, "not found, or erased: NOT_FOUND"),
    (4, "denied: UNAUTHENTICATED, PERMISSION_DENIED; test-access or a verdict says no"),
    (5, "conflict or wrong state: FAILED_PRECONDITION, ABORTED, ALREADY_EXISTS"),
    (6, "unavailable, busy or too late: UNAVAILABLE, RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED, CANCELLED"),
    (7, "a check failed: receipt, audit, export checksum, policy lint"),
    (8, "a batch was done in part: see its output for the elements that failed"),
    (9, "not confirmed: nothing was done"),
];

/// What an error must name.
#[derive(Debug, Default)]
pub struct LastIds {
    /// `x-request-id` of the last call, by which the server's log knows it.
    pub call: String,
    /// `request_id` of the last write that can be repeated with `--request-id`.
    pub write: String,
}

/// Why a command did not end well.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Arguments, configuration or standard input are not as they must be. Never holds a value.
    #[error("{0}")]
    Usage(String),
    /// A file or stream of this machine.
    #[error("{what}: {source}")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
    /// The server said no, or was not reached.
    #[error("{0}")]
    Status(Box<Status>),
    /// TLS or the address cannot be used.
    #[error("{0}")]
    Connect(String),
    /// Something that was checked is not right.
    #[error("{0}")]
    CheckFailed(String),
    /// test-access: it would be denied.
    #[error("it would be denied")]
    WouldBeDenied,
    /// password verify and its like: what was presented is not right.
    #[error("the verdict is no")]
    VerdictNo,
    /// Some elements of a batch failed; the output says which.
    #[error("{failed} of {total} failed")]
    Partly { failed: usize, total: usize },
    /// An operation ended badly.
    #[error("{0}")]
    Unexpected(String),
    /// The person at the terminal said no.
    #[error("not confirmed, nothing was done")]
    NotConfirmed,
}

/// Ends well when a verdict is OK.
pub fn right(verdict: i32) -> Result<(), CliError> {
    if verdict == pb::Verdict::Ok as i32 { Ok(()) } else { Err(CliError::VerdictNo) }
}

impl From<Status> for CliError {
    fn from(status: Status) -> Self {
        CliError::Status(Box::new(status))
    }
}

impl CliError {
    /// For `map_err`: a problem with a file or stream, named.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> CliError {
        move |source| CliError::Io { what: what.into(), source }
    }

    /// Names the server in an error that no server made: it was not reached, or went away.
    pub fn at_server(self, server: &str) -> CliError {
        match self {
            CliError::Status(status)
                if status.code() == Code::Unavailable && status.get_error_details().error_info().is_none() =>
            {
                CliError::from(Status::unavailable(format!("no answer from {server}: {}", with_causes(&status))))
            }
            other => other,
        }
    }

    /// Whoever read our output went away; that is not an error.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, CliError::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
    }

    /// The exit code; see [`EXIT_CODES`].
    pub fn exit_code(&self) -> u8 {
        match self {
            CliError::Usage(_) => 2,
            CliError::Io { .. } | CliError::Unexpected(_) => 1,
            CliError::Connect(_) => 6,
            CliError::CheckFailed(_) => 7,
            CliError::WouldBeDenied | CliError::VerdictNo => 4,
            CliError::Partly { .. } => 8,
            CliError::NotConfirmed => 9,
            CliError::Status(status) => exit_code_of(status.code()),
        }
    }

    /// What standard error gets: one line and, where there is one, a hint. With `json` one JSON object instead.
    /// `last` has the ids of the last call and write.
    pub fn tell(&self, json: bool, last: &LastIds) -> String {
        match self {
            CliError::Status(status) if json => format!("{}\n", status_json(status, last)),
            CliError::Status(status) => status_text(status, last),
            other if json => {
                let error = json!({ "code": other.word(), "message": printable(&other.to_string()) });
                format!("{}\n", json!({ "error": error }))
            }
            other => format!("error: {}\n", printable(&other.to_string())),
        }
    }

    fn word(&self) -> &'static str {
        match self {
            CliError::Usage(_) => "USAGE",
            CliError::Io { .. } => "IO",
            CliError::Status(_) => "STATUS",
            CliError::Connect(_) => "CONNECT",
            CliError::CheckFailed(_) => "CHECK_FAILED",
            CliError::WouldBeDenied => "WOULD_BE_DENIED",
            CliError::VerdictNo => "VERDICT_NO",
            CliError::Partly { .. } => "PARTLY",
            CliError::Unexpected(_) => "UNEXPECTED",
            CliError::NotConfirmed => "NOT_CONFIRMED",
        }
    }
}

/// The exit code for a gRPC code.
fn exit_code_of(code: Code) -> u8 {
    match code {
        Code::Ok => 0,
        Code::Unknown | Code::Internal | Code::DataLoss => 1,
        Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented => 2,
        Code::NotFound => 3,
        Code::Unauthenticated | Code::PermissionDenied => 4,
        Code::FailedPrecondition | Code::Aborted | Code::AlreadyExists => 5,
        Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded | Code::Cancelled => 6,
    }
}

/// `NOT_FOUND` and so on: the name that gRPC gives a code.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

struct Told {
    code: &'static str,
    reason: String,
    message: String,
    metadata: Vec<(String, String)>,
    violations: Vec<(String, String)>,
    retry_ms: Option<u64>,
    request_id: String,
}

fn told(status: &Status, request_id: &str) -> Told {
    let details = status.get_error_details();
    let info = details.error_info();
    let mut metadata: Vec<(String, String)> =
        info.map(|i| i.metadata.iter().map(|(k, v)| (k.clone(), v.clone())).collect()).unwrap_or_default();
    metadata.sort();
    let from_server = status.metadata().get("x-request-id").and_then(|v| v.to_str().ok());
    // Without details the status was made on this side: say what the transport said, down to its root.
    let message = if info.is_some() { status.message().to_string() } else { with_causes(status) };
    Told {
        code: code_name(status.code()),
        reason: info.map(|i| i.reason.clone()).unwrap_or_default(),
        message,
        metadata,
        violations: details
            .bad_request()
            .map(|b| b.field_violations.iter().map(|v| (v.field.clone(), v.description.clone())).collect())
            .unwrap_or_default(),
        retry_ms: details.retry_info().and_then(|r| r.retry_delay).map(|d| d.as_millis() as u64),
        request_id: from_server.unwrap_or(request_id).to_string(),
    }
}

fn with_causes(status: &Status) -> String {
    let mut message = status.message().to_string();
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        let text = cause.to_string();
        if !message.contains(&text) {
            let _ = write!(message, ": {text}");
        }
        source = cause.source();
    }
    message
}

fn status_text(status: &Status, last: &LastIds) -> String {
    let told = told(status, &last.call);
    let mut line = format!("error: {}", told.code);
    if !told.reason.is_empty() {
        let _ = write!(line, " {}", told.reason);
    }
    let _ = write!(line, ": {}", told.message);
    for (path, rule) in &told.violations {
        // The first violation is also the message; it need not be said twice.
        if !told.message.contains(rule.as_str()) || !told.message.contains(path.as_str()) {
            let _ = write!(line, "; {path}: {rule}");
        }
    }
    for (key, value) in told.metadata.iter().filter(|(key, _)| key != "request_id") {
        let _ = write!(line, "; {key}: {value}");
    }
    if let Some(ms) = told.retry_ms {
        let _ = write!(line, "; retry after {ms} ms");
    }
    if !told.request_id.is_empty() {
        let _ = write!(line, " (request {})", told.request_id);
    }
    let mut text = printable(&line);
    text.push('\n');
    if let Some(id) = repeatable(status, last) {
        let _ = writeln!(text, "hint: it may have been done all the same; a repeat with --request-id {id} is safe");
    }
    let hint = hint(&told.reason, status.code());
    match (hint.is_empty(), told.reason.is_empty()) {
        (true, true) => {}
        (false, true) => _ = writeln!(text, "hint: {hint}"),
        (true, false) => _ = writeln!(text, "hint: see {}", anchor(&told.reason)),
        (false, false) => _ = writeln!(text, "hint: {hint}; see {}", anchor(&told.reason)),
    }
    text
}

fn status_json(status: &Status, last: &LastIds) -> Json {
    let told = told(status, &last.call);
    let violations: Vec<Json> =
        told.violations.iter().map(|(path, rule)| json!({ "path": path, "rule": rule })).collect();
    let metadata: serde_json::Map<String, Json> =
        told.metadata.into_iter().map(|(k, v)| (k, Json::String(v))).collect();
    let help = if told.reason.is_empty() { String::new() } else { anchor(&told.reason) };
    json!({ "error": {
        "code": told.code, "reason": told.reason, "message": told.message, "metadata": metadata,
        "violations": violations, "retry_ms": told.retry_ms, "request_id": told.request_id, "help": help,
        "repeat_with_request_id": repeatable(status, last),
    }})
}

/// The request id of a write whose outcome is not known.
fn repeatable<'a>(status: &Status, last: &'a LastIds) -> Option<&'a str> {
    let open = matches!(status.code(), Code::DeadlineExceeded | Code::Unavailable | Code::Cancelled | Code::Unknown);
    (open && !last.write.is_empty()).then_some(last.write.as_str())
}

fn anchor(reason: &str) -> String {
    format!("{MANUAL}#{}", printable(&reason.to_ascii_lowercase()))
}

fn hint(reason: &str, code: Code) -> &'static str {
    match reason {
        "CREDENTIAL_INVALID" => {
            "check --credential-file, PII_VAULT_ACCESS_KEY or the profile (`pii-vault profile show`)"
        }
        "CERTIFICATE_MISMATCH" => "give the certificate the key is bound to with --client-cert and --client-key",
        "NOT_PERMITTED" | "PURPOSE_NOT_GRANTED" | "PURPOSE_NOT_ALLOWED" | "VIEW_NOT_GRANTED" => {
            "`pii-vault test-access` says which rule decides, `pii-vault whoami` what the key may"
        }
        "APPROVAL_NEEDED" => "`pii-vault approval request`, then let another person approve it and pass --approval",
        "SCHEMA_UNKNOWN_FIELD" | "POLICY_UNKNOWN_NUMBER" => "`pii-vault schema` lists names and numbers",
        "POLICY_INVALID" | "POLICY_CONFLICT" => "`pii-vault tenant lint FILE` shows the lines",
        "SUBJECT_ERASED" => "an erased id starts a new life only with `put --mode recreate`",
        "CLASS_HELD" => "`pii-vault hold list` shows the holds, `pii-vault erase preview` what they keep",
        "ETAG_STALE" | "CONFLICT" => "read again, then repeat with the new etag",
        "REQUEST_ID_REUSED" => "use a new --request-id for another request",
        "DEADLINE_EXCEEDED" => "give more time with --timeout",
        "BUSY" | "CLOSING" => "repeat it a little later",
        "SEALED" => "the operator must give the vault its root key",
        "INTERNAL" | "DATA_LOSS" => "tell the operator the request id",
        _ if code == Code::Unavailable => "check --server, --ca and whether the server runs",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::reason::Reason;
    use crate::grpc::status::{bad_fields, busy, denied};
    use std::time::Duration;

    #[test]
    fn every_code_has_its_exit_code_and_every_exit_code_its_meaning() {
        for n in 0..17 {
            let code = exit_code_of(Code::from(n));
            assert!(EXIT_CODES.iter().any(|(c, _)| *c == code), "{n}");
        }
        let manual = include_str!("../../docs/CLI.md");
        for (code, meaning) in EXIT_CODES {
            let row = format!("| {code} | {meaning} |");
            assert!(manual.contains(&row), "docs/CLI.md lacks the row: {row}");
        }
    }

    fn ids(call: &str) -> LastIds {
        LastIds { call: call.into(), write: String::new() }
    }

    #[test]
    fn a_write_whose_outcome_is_unknown_tells_how_to_repeat_it() {
        let last = LastIds { call: "c".into(), write: "w-1".into() };
        let text = CliError::from(crate::grpc::status::deadline_exceeded()).tell(false, &last);
        assert!(text.contains("--request-id w-1"), "{text}");
        let text = CliError::from(denied(Reason::NotPermitted, "r")).tell(false, &last);
        assert!(!text.contains("w-1"), "{text}");
    }

    #[test]
    fn one_line_says_code_reason_rule_and_request() {
        let text = CliError::from(denied(Reason::PurposeNotGranted, "role support, grant 1")).tell(false, &ids("r-1"));
        let line = text.lines().next().unwrap();
        assert_eq!(
            line,
            "error: PERMISSION_DENIED PURPOSE_NOT_GRANTED: not permitted; rule: role support, grant 1 (request r-1)"
        );
        assert!(text.contains("docs/ERRORS.md#purpose_not_granted"), "{text}");
        assert_eq!(text.lines().count(), 2);
    }

    #[test]
    fn violations_and_retry_are_told_and_escapes_are_not_passed_on() {
        let list =
            vec![("values[0].text".into(), "too long".into()), ("values[1].date".into(), "no day\u{1b}[2J".into())];
        let error = CliError::from(bad_fields(Reason::ValueInvalid, list));
        assert_eq!(error.exit_code(), 2);
        let text = error.tell(false, &ids(""));
        assert!(
            text.starts_with("error: INVALID_ARGUMENT VALUE_INVALID: values[0].text: too long; values[1].date"),
            "{text}"
        );
        assert!(!text.contains('\u{1b}'));
        let error = CliError::from(busy("too many calls", Duration::from_millis(250)));
        let value: Json = serde_json::from_str(&error.tell(true, &ids("r-2"))).unwrap();
        assert_eq!(value["error"]["retry_ms"], 250);
        assert_eq!(value["error"]["request_id"], "r-2");
        assert_eq!(error.exit_code(), 6);
    }

    #[test]
    fn every_reason_has_an_anchor() {
        let manual = include_str!("../../docs/ERRORS.md").to_ascii_lowercase();
        for reason in Reason::ALL {
            let name = anchor(reason.as_str());
            let (_, fragment) = name.split_once('#').unwrap();
            assert!(manual.contains(&format!("### {fragment}\n")), "{name}");
        }
    }
}
