//! `ops` and `keys`: work that goes on by itself, and keys as objects to look after.

use crate::cli::args::{self, ListArgs, WriteArgs};
use crate::cli::error::CliError;
use crate::cli::input;
use crate::cli::names::Names;
use crate::cli::output::{Col, Page};
use crate::cli::session::Session;
use crate::cli::text::Moment;
use crate::cli::values::wire;
use crate::grpc::convert::wire_time;
use crate::grpc::pb;
use clap::Subcommand;
use serde_json::json;

pub const OPERATION: &[Col] = &[
    Col("OPERATION", "operation"),
    Col("KIND", "kind"),
    Col("STATE", "state"),
    Col("DONE", "done_count"),
    Col("OF", "total_count|nonzero"),
    Col("CREATED", "create_time"),
    Col("UPDATED", "update_time"),
    Col("ENDED", "end_time"),
    Col("REASON", "error.reason"),
];

/// `ops`
#[derive(Debug, Subcommand)]
pub enum Ops {
    /// List operations, newest first
    #[command(after_help = "Example:
  pii-vault ops list --state running --state failed")]
    List {
        /// Only this state; may be repeated
        #[arg(long = "state", value_parser = args::operation_state)]
        states: Vec<i32>,
        /// Only this kind; may be repeated
        #[arg(long = "kind", value_parser = args::operation_kind)]
        kinds: Vec<i32>,
        #[command(flatten)]
        list: ListArgs,
    },
    /// Show one operation
    #[command(after_help = "Example:
  pii-vault ops show 0b9c6c1e-53a5-4f8e-9a51-2b7d3a1f6a10")]
    Show {
        /// Name of the operation
        operation: String,
    },
    /// Follow an operation to its end
    #[command(after_help = "Exit code 0 when it ended well, 1 when it failed, 5 when it was cancelled.

Example:
  pii-vault ops watch 0b9c6c1e-53a5-4f8e-9a51-2b7d3a1f6a10")]
    Watch {
        /// Name of the operation
        operation: String,
    },
    /// Stop an operation where that is possible; what is done stays done
    #[command(after_help = "Example:
  pii-vault ops cancel 0b9c6c1e-53a5-4f8e-9a51-2b7d3a1f6a10")]
    Cancel {
        /// Name of the operation
        operation: String,
    },
    /// Whether the server trusts its clock; nothing ends by time until it does (operator key)
    #[command(after_help = "Example:
  pii-vault ops clock")]
    Clock,
    /// Say that the server's clock is right although it jumped; what is due then ends (operator key)
    #[command(
        after_help = "The time is that of this machine, or of another clock that you trust; the server refuses when
its own differs by more than five minutes.

Examples:
  pii-vault ops confirm-clock
  pii-vault ops confirm-clock --time 2027-03-01T12:00:00Z --yes"
    )]
    ConfirmClock {
        /// What the time is [default: the time of this machine]
        #[arg(long, value_parser = Moment::parse)]
        time: Option<Moment>,
    },
}

const CLOCK: &[Col] = &[
    Col("TRUSTED", "trusted|mark"),
    Col("SERVER TIME", "server_time"),
    Col("JUMPED TO", "seen_time"),
    Col("EXPECTED", "expected_time"),
];

/// `ops`
pub async fn ops(s: &Session, yes: bool, command: Ops) -> Result<(), CliError> {
    let none = Names::default();
    match command {
        Ops::List { states, kinds, list } => {
            let tenant = s.tenant();
            let page = list
                .pages(|page_size, page_token| {
                    let mut client = s.operations();
                    let (states, kinds, tenant) = (states.clone(), kinds.clone(), tenant.clone());
                    let request = pb::ListOperationsRequest { states, kinds, tenant, page_size, page_token };
                    async move {
                        let answer = client.list_operations(request).await?.into_inner();
                        Ok((answer.operations, answer.next_page_token))
                    }
                })
                .await?;
            s.out.list("operations", &page, OPERATION, &none)
        }
        Ops::Show { operation } => {
            let request = pb::GetOperationRequest { operation, tenant: s.tenant() };
            let answer = s.operations().get_operation(request).await?.into_inner();
            s.out.record(&answer.operation.unwrap_or_default(), OPERATION, &none)
        }
        Ops::Watch { operation } => {
            let last = follow(s, &operation, s.out.json).await?;
            if s.out.json { Ok(()) } else { s.out.record(&last, OPERATION, &none) }
        }
        Ops::Cancel { operation } => {
            let request = pb::CancelOperationRequest { operation, tenant: s.tenant(), request_id: args::new_id() };
            let answer = s.operations().cancel_operation(request).await?.into_inner();
            s.out.record(&answer.operation.unwrap_or_default(), OPERATION, &none)
        }
        Ops::Clock => {
            let answer = s.operations().get_clock(pb::GetClockRequest {}).await?.into_inner();
            s.out.record(&answer.clock.unwrap_or_default(), CLOCK, &none)
        }
        Ops::ConfirmClock { time } => {
            input::confirm(yes, "What is due by the server's clock is erased once it is confirmed")?;
            let time = time.map_or(s.now(), |time| time.resolve(s.now()));
            let request = pb::ConfirmClockRequest { time: Some(wire_time(time)), request_id: args::new_id() };
            let answer = s.operations().confirm_clock(request).await?.into_inner();
            s.out.record(&answer.clock.unwrap_or_default(), CLOCK, &none)
        }
    }
}

/// Follows an operation to its end, with a bar on a terminal; with `lines` each state is a line of JSON.
pub async fn follow(s: &Session, operation: &str, lines: bool) -> Result<pb::Operation, CliError> {
    let request = pb::WatchOperationRequest { operation: operation.to_string(), tenant: s.tenant() };
    let mut stream = s.patient().operations().watch_operation(request).await?.into_inner();
    let bar = s.out.progress(0, "steps");
    let mut last = pb::Operation::default();
    while let Some(answer) = stream.message().await? {
        last = answer.operation.unwrap_or_default();
        if lines {
            s.out.json_line(&wire(&last))?;
        }
        if last.total_count > 0 {
            bar.set_length(last.total_count);
        }
        bar.set_position(last.done_count);
    }
    bar.finish_and_clear();
    match last.state() {
        pb::OperationState::Failed => {
            let reason = last.error.as_ref().map(|e| e.reason.clone()).unwrap_or_default();
            Err(CliError::Unexpected(format!("operation {operation} failed: {reason}")))
        }
        pb::OperationState::Cancelled => Err(CliError::from(tonic::Status::aborted("the operation was cancelled"))),
        pb::OperationState::Succeeded => Ok(last),
        _ => Err(CliError::from(tonic::Status::unavailable("the stream ended before the operation did"))),
    }
}

/// `keys`
#[derive(Debug, Subcommand)]
pub enum Keys {
    /// Ages of keys, how much they sealed, and whether the vault is sealed; no key is ever shown
    #[command(after_help = "Examples:
  pii-vault keys status
  pii-vault --tenant acme keys status --kind index")]
    Status {
        /// Only this kind; may be repeated: root, tenant-root, index, digest, data, expiry, pepper, page-token, signing
        #[arg(long = "kind", value_parser = args::key_kind)]
        kinds: Vec<i32>,
        /// Also tell where the root key comes from and how the keeper is (operator key)
        #[arg(long)]
        seal: bool,
    },
    /// Begin the rotation of a key; an operation finishes it
    #[command(after_help = "Examples:
  pii-vault keys rotate index --wait
  pii-vault --tenant acme keys rotate tenant-root
  pii-vault keys rotate password-pepper --reset-at +180d")]
    Rotate {
        /// index, tenant-root, password-pepper
        #[arg(value_parser = args::key_kind)]
        kind: i32,
        /// password-pepper: when passwords still under the former pepper must be set anew [default: never]
        #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
        reset_at: Option<Moment>,
        /// Wait until it is finished
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        write: WriteArgs,
    },
}

/// `keys`
pub async fn keys(s: &Session, yes: bool, command: Keys) -> Result<(), CliError> {
    match command {
        Keys::Status { kinds, seal } => {
            let status = match seal {
                true => Some(s.keys().get_seal_status(pb::GetSealStatusRequest {}).await?.into_inner()),
                false => None,
            };
            let answer = s.keys().list_keys(pb::ListKeysRequest { tenant: s.tenant(), kinds }).await?.into_inner();
            if s.out.json {
                let mut told = wire(&answer);
                if let Some(status) = &status {
                    told["seal"] = wire(status);
                }
                return s.out.document(&told);
            }
            if let Some(status) = &status {
                let cols = [
                    Col("SEALED", "sealed"),
                    Col("ROOT KEY FROM", "root_provider"),
                    Col("KEEPER", "keeper"),
                    Col("ASSURANCE", "assurance"),
                    Col("REPLICAS", "replicas.name"),
                    Col("AVAILABLE", "replicas.available"),
                    Col("COVERED BY ARCHIVES", "covered"),
                    Col("REFUSED TENANTS", "refused.tenant"),
                    Col("BECAUSE", "refused.state"),
                ];
                s.out.record(status, &cols, &Names::default())?;
                s.out.line("")?;
            }
            let cols = [
                Col("KIND", "kind"),
                Col("VERSION", "version|nonzero"),
                Col("STATE", "state"),
                Col("MADE", "create_time"),
                Col("ROTATE BY", "rotate_by_time"),
                Col("SEALS", "seal_count|nonzero"),
                Col("KEYS", "key_count"),
                Col("LEFT", "left_count|nonzero"),
            ];
            s.out.list("keys", &Page { items: answer.keys, more: false }, &cols, &Names::default())
        }
        Keys::Rotate { kind, reset_at, wait, write } => {
            input::confirm(yes || write.validate_only, "This begins the rotation of a key; it cannot be taken back")?;
            let request = pb::RotateKeysRequest {
                kind,
                tenant: s.tenant(),
                request_id: write.id(s),
                validate_only: write.validate_only,
                reset_time: args::at(s, reset_at),
            };
            let answer = s.keys().rotate_keys(request).await?.into_inner();
            if wait && !answer.operation.is_empty() {
                let last = follow(s, &answer.operation, false).await?;
                return s.out.record(&last, OPERATION, &Names::default());
            }
            if s.out.json {
                return s.out.document(&json!({ "operation": answer.operation }));
            }
            s.out.record(&answer, &[Col("OPERATION", "operation")], &Names::default())
        }
    }
}
