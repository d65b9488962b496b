//! Entries of the audit as log records of OpenTelemetry (OTLP/gRPC). A record that the receiver rejects is an error, never
//! passed over.

use std::path::Path;
use std::time::Duration;

use tonic::Code;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use crate::causes::causes;
use crate::cli::entries::EntryLines;
use crate::cli::error::CliError;
use crate::cli::output::note;
use crate::clock::{Clock, SystemClock};
use crate::grpc::pb;

/// The messages and clients of OpenTelemetry's own proto files.
pub mod proto {
    // Generated code: its style is prost's and tonic's.
    #![allow(clippy::all, clippy::pedantic, rustdoc::all, missing_docs)]
    include!(concat!(env!("OUT_DIR"), "/otlp.rs"));
    pub use opentelemetry::proto::collector::logs::v1 as collector;
    pub use opentelemetry::proto::common::v1 as common;
    pub use opentelemetry::proto::logs::v1 as logs;
    pub use opentelemetry::proto::resource::v1 as resource;
}

use proto::collector::ExportLogsServiceRequest;
use proto::collector::logs_service_client::LogsServiceClient;
use proto::common::{AnyValue, InstrumentationScope, KeyValue, any_value};
use proto::logs::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber};
use proto::resource::Resource;

/// A receiver.
pub struct Otlp {
    client: LogsServiceClient<Channel>,
    resource: Resource,
    /// It said something about records that it took.
    warned: bool,
    form: EntryLines,
}

fn text(text: impl Into<String>) -> Option<AnyValue> {
    Some(AnyValue { value: Some(any_value::Value::StringValue(text.into())) })
}

fn number(number: u64) -> Option<AnyValue> {
    Some(AnyValue { value: Some(any_value::Value::IntValue(number.cast_signed())) })
}

fn pair(key: &str, value: Option<AnyValue>) -> KeyValue {
    KeyValue { key: key.into(), value, ..KeyValue::default() }
}

/// One entry: the body is its JSON, as the other sinks have it; what is filtered by is an attribute too.
fn record(entry: &pb::AuditEntry, observed_ms: i64, form: &mut EntryLines) -> LogRecord {
    use pb::AuditOutcome as O;
    let (severity, name) = match entry.outcome() {
        O::DataLoss => (SeverityNumber::Fatal, "FATAL"),
        O::Failed => (SeverityNumber::Error, "ERROR"),
        O::Denied | O::Held | O::Invalid => (SeverityNumber::Warn, "WARN"),
        _ => (SeverityNumber::Info, "INFO"),
    };
    let nanos = |seconds: i64, nanos: i64| u64::try_from(seconds.saturating_mul(1_000_000_000) + nanos).unwrap_or(0);
    let chain = if entry.chain() == pb::AuditChain::Reads { "reads" } else { "changes" };
    let mut attributes = vec![
        pair("pii_vault.chain", text(chain)),
        pair("pii_vault.position", number(entry.position)),
        pair("pii_vault.actor_id", number(entry.actor_id)),
    ];
    let mut body = Vec::new();
    form.entry(entry, &mut body);
    let body = String::from_utf8(body).expect("JSON is text");
    if entry.subject_uid != 0 {
        attributes.push(pair("pii_vault.subject_uid", number(entry.subject_uid.cast_unsigned())));
    }
    LogRecord {
        time_unix_nano: entry.time.as_ref().map_or(0, |at| nanos(at.seconds, at.nanos.into())),
        observed_time_unix_nano: nanos(0, observed_ms.saturating_mul(1_000_000)),
        severity_number: severity as i32,
        severity_text: name.into(),
        body: text(body),
        attributes,
        event_name: entry.action.clone(),
        ..LogRecord::default()
    }
}

impl Otlp {
    /// A receiver at `http://HOST:PORT` or `https://HOST:PORT`; connects with the first records.
    pub fn open(url: &str, ca: Option<&Path>, tenant: &str, patience: Duration) -> Result<Self, CliError> {
        let bad = |why: String| CliError::Usage(format!("--to {url}: {why}"));
        let mut endpoint = Endpoint::from_shared(url.to_owned()).map_err(|error| bad(causes(&error)))?;
        endpoint = endpoint.connect_timeout(patience).timeout(patience);
        if url.starts_with("https:") {
            let ca = ca.ok_or_else(|| bad("needs --to-ca: who signs the receiver's certificate".into()))?;
            let pem = std::fs::read(ca).map_err(CliError::io(ca.display().to_string()))?;
            let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
            endpoint = endpoint.tls_config(tls).map_err(|error| bad(causes(&error)))?;
        }
        let mut attributes = vec![pair("service.name", text("pii-vault"))];
        if !tenant.is_empty() {
            attributes.push(pair("pii_vault.tenant", text(tenant)));
        }
        let resource = Resource { attributes, ..Resource::default() };
        Ok(Otlp {
            client: LogsServiceClient::new(endpoint.connect_lazy()),
            resource,
            warned: false,
            form: EntryLines::default(),
        })
    }

    /// Hands entries on; when this returns the receiver has taken all of them.
    ///
    /// # Errors
    /// `Connect` where the same may go well later, `CheckFailed` where the receiver rejects records or the call itself.
    pub async fn take(&mut self, entries: &[pb::AuditEntry]) -> Result<(), CliError> {
        let observed = SystemClock::new().now().0;
        let scope = InstrumentationScope {
            name: "pii-vault.audit".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            ..InstrumentationScope::default()
        };
        let log_records = entries.iter().map(|entry| record(entry, observed, &mut self.form)).collect();
        let scope_logs = vec![ScopeLogs { scope: Some(scope), log_records, ..ScopeLogs::default() }];
        let resource = Some(self.resource.clone());
        let request = ExportLogsServiceRequest {
            resource_logs: vec![ResourceLogs { resource, scope_logs, ..ResourceLogs::default() }],
        };
        let answer = self.client.export(request).await.map_err(|status| {
            let what = format!("the receiver of OTLP: {:?} {}", status.code(), printable(status.message()));
            if passes(status.code()) { CliError::Connect(what) } else { CliError::CheckFailed(what) }
        })?;
        let Some(partial) = answer.into_inner().partial_success else { return Ok(()) };
        let said = printable(&partial.error_message);
        if partial.rejected_log_records != 0 {
            let first = entries.first().map_or(0, |entry| entry.position);
            return Err(CliError::CheckFailed(format!(
                "the receiver of OTLP rejected {} of {} records from position {first} on, and nothing is passed over: {said}",
                partial.rejected_log_records,
                entries.len()
            )));
        }
        if !said.is_empty() && !std::mem::replace(&mut self.warned, true) {
            note(&format!("the receiver of OTLP took the records and says: {said}"));
        }
        Ok(())
    }
}

/// Codes after which the same is sent again: OTLP specification 1.x, "Failures".
fn passes(code: Code) -> bool {
    use Code as C;
    matches!(
        code,
        C::Cancelled
            | C::DeadlineExceeded
            | C::ResourceExhausted
            | C::Aborted
            | C::OutOfRange
            | C::Unavailable
            | C::DataLoss
    )
}

/// What another program said, for a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_receiver_that_is_silent_or_garbled_takes_nothing() {
        use tokio::io::AsyncWriteExt as _;
        for garbled in [false, true] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            tokio::spawn(async move {
                let mut kept = Vec::new();
                while let Ok((mut stream, _)) = listener.accept().await {
                    if garbled {
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nOK").await;
                    }
                    kept.push(stream);
                }
            });
            let mut otlp = Otlp::open(&url, None, "", Duration::from_millis(300)).unwrap();
            let answer = otlp.take(&[pb::AuditEntry::default()]).await;
            assert!(matches!(answer, Err(CliError::Connect(_) | CliError::CheckFailed(_))), "{garbled}: {answer:?}");
        }
    }

    #[test]
    fn texts_of_others_are_made_harmless() {
        assert_eq!(printable("a\u{1b}[31mb\nc"), "a [31mb c");
        assert_eq!(printable(&"x".repeat(1_000)).len(), 300);
    }
}
