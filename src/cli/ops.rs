//! `ops`: work that goes on by itself.

use crate::cli::args::{self, ListArgs};
use crate::cli::error::CliError;
use crate::cli::input;
use crate::cli::names::Names;
use crate::cli::output::Col;
use crate::cli::session::Session;
use crate::cli::text::Moment;
use crate::cli::values::wire;
use crate::grpc::convert::wire_time;
use crate::grpc::pb;
use clap::Subcommand;

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
    /// Stop a rotation of root key, tree or data keys where it is, until it is resumed
    #[command(after_help = "Example:
  pii-vault ops pause 0b9c6c1e-53a5-4f8e-9a51-2b7d3a1f6a10")]
    Pause {
        /// Name of the operation
        operation: String,
    },
    /// Go on with an operation that was paused
    #[command(after_help = "Example:
  pii-vault ops resume 0b9c6c1e-53a5-4f8e-9a51-2b7d3a1f6a10")]
    Resume {
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
        Ops::Pause { operation } => {
            let request = pb::PauseOperationRequest { operation, tenant: s.tenant(), request_id: args::new_id() };
            let answer = s.operations().pause_operation(request).await?.into_inner();
            s.out.record(&answer.operation.unwrap_or_default(), OPERATION, &none)
        }
        Ops::Resume { operation } => {
            let request = pb::ResumeOperationRequest { operation, tenant: s.tenant(), request_id: args::new_id() };
            let answer = s.operations().resume_operation(request).await?.into_inner();
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
