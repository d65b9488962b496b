//! Arguments that many commands share, and how they become parts of requests.

use crate::cli::error::CliError;
use crate::cli::input;
use crate::cli::names::Noun;
use crate::cli::output::Page;
use crate::cli::session::Session;
use crate::cli::text::Moment;
use crate::grpc::convert::wire_time;
use crate::grpc::pb;
use clap::Args;
use std::future::Future;
use tonic::Status;

/// Which subject.
#[derive(Debug, Args)]
pub struct KeyArgs {
    /// Id of the subject
    #[arg(value_name = "SUBJECT", required_unless_present = "by")]
    pub subject: Option<String>,
    /// Find the subject by a unique field; its value is the first line of standard input
    #[arg(long, value_name = "FIELD", conflicts_with = "subject")]
    pub by: Option<String>,
}

impl KeyArgs {
    /// The key of the request; with `--by` this reads a line of standard input.
    pub async fn key(&self, s: &Session) -> Result<pb::SubjectKey, CliError> {
        let key = match (&self.subject, &self.by) {
            (Some(subject), _) => pb::subject_key::Key::Subject(subject.clone()),
            (None, Some(field)) => {
                let field_id = s.number(Noun::Field, field).await?;
                let text = input::line(field)?.to_string();
                pb::subject_key::Key::Unique(pb::UniqueValue { field_id, text })
            }
            (None, None) => return Err(CliError::Usage("name a subject".into())),
        };
        Ok(pb::SubjectKey { key: Some(key) })
    }
}

/// The key of a request by a subject's id.
pub fn subject_key(subject: &str) -> pb::SubjectKey {
    pb::SubjectKey { key: Some(pb::subject_key::Key::Subject(subject.to_string())) }
}

/// Why somebody wants the data.
#[derive(Debug, Args)]
pub struct ContextArgs {
    /// Purpose of the call, by name or number
    #[arg(help_heading = "Access context", long, short = 'p', value_name = "PURPOSE")]
    pub purpose: Option<String>,
    /// Recipient the data goes to, by name or number
    #[arg(help_heading = "Access context", long, value_name = "RECIPIENT")]
    pub recipient: Option<String>,
    /// Why, in words; sealed in the audit
    #[arg(help_heading = "Access context", long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Number of a case or ticket; sealed in the audit
    #[arg(help_heading = "Access context", long, value_name = "TEXT")]
    pub reference: Option<String>,
    /// Name of an approval to use up
    #[arg(help_heading = "Access context", long, value_name = "APPROVAL")]
    pub approval: Option<String>,
    /// Subject id of the nominee who exercises the right
    #[arg(help_heading = "Access context", long, value_name = "SUBJECT")]
    pub acting_for: Option<String>,
}

impl ContextArgs {
    /// The context of the request.
    pub async fn context(&self, s: &Session) -> Result<Option<pb::AccessContext>, CliError> {
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        Ok(Some(pb::AccessContext {
            purpose_id: s.opt_number(Noun::Purpose, &self.purpose).await?,
            recipient_id: s.opt_number(Noun::Recipient, &self.recipient).await?,
            reason: text(&self.reason),
            reference: text(&self.reference),
            approval: text(&self.approval),
            acting_for: text(&self.acting_for),
        }))
    }
}

/// Which fields.
#[derive(Debug, Args)]
pub struct SelectArgs {
    /// Field by name or number; may be repeated [default: all that the key may see]
    #[arg(long = "field", short = 'f', value_name = "FIELD", value_delimiter = ',')]
    pub fields: Vec<String>,
    /// Every single-valued field of a class; may be repeated
    #[arg(long = "class", short = 'c', value_name = "CLASS", value_delimiter = ',')]
    pub classes: Vec<String>,
}

impl SelectArgs {
    /// The selector of the request; none when nothing was named.
    pub async fn select(&self, s: &Session) -> Result<Option<pb::Selector>, CliError> {
        if self.fields.is_empty() && self.classes.is_empty() {
            return Ok(None);
        }
        Ok(Some(pb::Selector {
            field_ids: s.numbers(Noun::Field, &self.fields).await?,
            fields: None,
            class_ids: s.numbers(Noun::Class, &self.classes).await?,
        }))
    }
}

/// How a write repeats and whether it happens.
#[derive(Debug, Args)]
pub struct WriteArgs {
    /// UUID that makes a repeat safe for 24 h [default: a new one]
    #[arg(long, value_name = "UUID")]
    pub request_id: Option<String>,
    /// Check everything, change nothing
    #[arg(long, visible_alias = "dry-run")]
    pub validate_only: bool,
}

impl WriteArgs {
    /// The request id. The session remembers it: after a timeout whoever asked must know it to repeat the write.
    pub fn id(&self, s: &Session) -> String {
        let id = self.request_id.clone().unwrap_or_else(new_id);
        s.wrote(&id);
        id
    }
}

/// A request id for a write that is not repeated by hand.
pub fn new_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// How much of a list.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Most elements to show; 0: all
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    pub limit: usize,
    /// Elements to ask for in one call, at most 1,000
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(i32).range(1..=1_000))]
    pub page_size: i32,
}

impl ListArgs {
    /// Calls for pages until there are enough or no more.
    pub async fn pages<T, F>(&self, mut call: impl FnMut(i32, String) -> F) -> Result<Page<T>, CliError>
    where
        F: Future<Output = Result<(Vec<T>, String), Status>>,
    {
        let mut items = Vec::new();
        let mut token = String::new();
        loop {
            let left = if self.limit == 0 { usize::MAX } else { self.limit - items.len() };
            let size = self.page_size.min(i32::try_from(left).unwrap_or(i32::MAX));
            let (page, next) = call(size, token).await?;
            let over = page.len() > left;
            items.extend(page.into_iter().take(left));
            let full = self.limit != 0 && items.len() >= self.limit;
            if next.is_empty() || full {
                return Ok(Page { items, more: over || !next.is_empty() });
            }
            token = next;
        }
    }
}

/// A point in time for the wire.
pub fn at(s: &Session, moment: Option<Moment>) -> Option<prost_types::Timestamp> {
    moment.map(|m| wire_time(m.resolve(s.now())))
}

/// Makes a clap value parser for an enum of the API: its names without prefix, in lower case with hyphens.
macro_rules! wire_enum {
    ($(#[$doc:meta])* $name:ident, $type:ty, $prefix:literal) => {
        $(#[$doc])*
        pub fn $name(text: &str) -> Result<i32, String> {
            let wanted = concat!($prefix, "_").to_string() + &text.to_ascii_uppercase().replace('-', "_");
            if let Some(found) = <$type>::from_str_name(&wanted).filter(|e| *e as i32 != 0) {
                return Ok(found as i32);
            }
            let known = (1..64).filter_map(|n| <$type>::try_from(n).ok());
            let known = known.map(|e| e.as_str_name()[$prefix.len() + 1..].to_ascii_lowercase().replace('_', "-"));
            Err(format!("one of {}", known.collect::<Vec<_>>().join(", ")))
        }
    };
}
wire_enum!(
    /// plain, masked, token
    view, pb::View, "VIEW");
wire_enum!(
    /// upsert, create, update, recreate
    write_mode, pb::WriteMode, "WRITE_MODE");
wire_enum!(
    /// exact, prefix, suffix, domain
    term_kind, pb::TermKind, "TERM_KIND");
wire_enum!(
    /// json, csv
    export_format, pb::ExportFormat, "EXPORT_FORMAT");
wire_enum!(
    /// active, closed, frozen, erasing, restricted, erased
    subject_state, pb::SubjectState, "SUBJECT_STATE");
wire_enum!(
    /// active, closed, erasing, erased
    group_state, pb::GroupState, "GROUP_STATE");
wire_enum!(
    /// scheduled, pending, erased, partly-held, held, cancelled
    erasure_status, pb::ErasureStatus, "ERASURE_STATUS");
wire_enum!(
    /// subject, group, class, fields, items, former, tenant
    erasure_kind, pb::ErasureKind, "ERASURE_KIND");
wire_enum!(
    /// erased, restricted, expired, consent-withdrawn, objected, restored
    event_kind, pb::EventKind, "EVENT_KIND");
wire_enum!(
    /// active, released, ended
    hold_state, pb::HoldState, "HOLD_STATE");
wire_enum!(
    /// read, write, delete, find, ...
    verb, pb::Verb, "VERB");
wire_enum!(
    /// active, revoked, expired, unconfirmed
    key_state, pb::AccessKeyState, "ACCESS_KEY_STATE");
wire_enum!(
    /// pending, approved, denied, used, expired
    approval_state, pb::ApprovalState, "APPROVAL_STATE");
wire_enum!(
    /// changes, reads
    audit_chain, pb::AuditChain, "AUDIT_CHAIN");
wire_enum!(
    /// pending, running, succeeded, failed, cancelled
    operation_state, pb::OperationState, "OPERATION_STATE");
wire_enum!(
    /// erasure, index-rotation, ...
    operation_kind, pb::OperationKind, "OPERATION_KIND");
wire_enum!(
    /// root, tenant-root, index, ...
    key_kind, pb::KeyKind, "KEY_KIND");
wire_enum!(
    /// live, test
    tenant_kind, pb::TenantKind, "TENANT_KIND");
wire_enum!(
    /// active, suspended, ...
    tenant_state, pb::TenantState, "TENANT_STATE");

wire_enum!(
    /// active, revoked, expired
    api_key_state, pb::ApiKeyState, "API_KEY_STATE");
wire_enum!(
    /// digits, letters
    code_alphabet, pb::CodeAlphabet, "CODE_ALPHABET");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enums_go_by_short_names() {
        assert_eq!(erasure_status("partly-held"), Ok(pb::ErasureStatus::PartlyHeld as i32));
        assert_eq!(view("plain"), Ok(1));
        assert_eq!(view("unspecified").unwrap_err(), "one of plain, masked, token");
        assert!(verb("fly").unwrap_err().starts_with("one of read, write"));
    }

    #[tokio::test]
    async fn pages_end_at_the_limit_or_with_the_list() {
        let call = |size: i32, token: String| async move {
            let from: i32 = token.parse().unwrap_or(0);
            let items: Vec<i32> = (from..(from + size).min(5)).collect();
            let next = from + items.len() as i32;
            Ok((items, if next < 5 { next.to_string() } else { String::new() }))
        };
        let list = |limit| ListArgs { limit, page_size: 2 };
        let page = list(0).pages(call).await.unwrap();
        assert_eq!((page.items, page.more), (vec![0, 1, 2, 3, 4], false));
        let page = list(3).pages(call).await.unwrap();
        assert_eq!((page.items, page.more), (vec![0, 1, 2], true));
        let page = list(5).pages(call).await.unwrap();
        assert_eq!((page.items.len(), page.more), (5, false));
    }
}
