//! `hold`: legal holds keep classes from an erasure.

use crate::cli::args::{self, ContextArgs, ListArgs, WriteArgs};
use crate::cli::error::CliError;
use crate::cli::input;
use crate::cli::names::{Names, Noun};
use crate::cli::output::{Col, note};
use crate::cli::session::Session;
use crate::cli::text::Moment;
use crate::cli::values::wire;
use crate::grpc::pb;
use clap::Subcommand;

const HOLD: &[Col] = &[
    Col("HOLD", "hold"),
    Col("STATE", "state"),
    Col("SUBJECT", "subject"),
    Col("GROUP", "group"),
    Col("CLASSES", "class_ids|class"),
    Col("LEGAL BASIS", "legal_basis"),
    Col("READABLE FOR", "purpose_id|purpose"),
    Col("PLACED", "create_time"),
    Col("UNTIL", "end_time"),
    Col("RELEASED", "release_time"),
];

/// `hold`
#[derive(Debug, Subcommand)]
pub enum Hold {
    /// Place a hold on a subject or a group
    #[command(after_help = "Examples:
  pii-vault hold place u-17 --basis litigation-2026-17 -p legal_request --class billing --until +365d
  pii-vault hold place --group acme --basis tax-audit-2026 -p legal_request")]
    Place {
        /// Id of the subject
        #[arg(required_unless_present = "group")]
        subject: Option<String>,
        /// A group instead of a subject: its present subjects and those to come
        #[arg(long, conflicts_with = "subject")]
        group: Option<String>,
        /// Class to keep; may be repeated [default: all]
        #[arg(long = "class", short = 'c', value_delimiter = ',')]
        classes: Vec<String>,
        /// Why, such as litigation-2026-17; printed in receipts
        #[arg(long, value_name = "NAME")]
        basis: String,
        /// When it ends by itself [default: when it is released]
        #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
        until: Option<Moment>,
        #[command(flatten)]
        context: ContextArgs,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// Release a hold; erasures that waited for it are done then
    #[command(after_help = "Example:
  pii-vault hold release 0b9c6c1e-53a5-4f8e-9a51-2b7d3a1f6a10 --reason 'case closed'")]
    Release {
        /// Name of the hold
        hold: String,
        #[command(flatten)]
        context: ContextArgs,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// List holds, newest first
    #[command(after_help = "Example:
  pii-vault hold list --subject u-17 --state active --state released")]
    List {
        /// Only those of this subject
        #[arg(long)]
        subject: Option<String>,
        /// Only those of this group
        #[arg(long)]
        group: Option<String>,
        /// Only this state; may be repeated [default: active]
        #[arg(long = "state", value_parser = args::hold_state)]
        states: Vec<i32>,
        #[command(flatten)]
        list: ListArgs,
    },
}

/// `hold`
pub async fn hold(s: &Session, yes: bool, command: Hold) -> Result<(), CliError> {
    match command {
        Hold::Place { subject, group, classes, basis, until, context, write } => {
            let target = match (&subject, group) {
                (Some(subject), _) => pb::place_hold_request::Target::Key(args::subject_key(subject)),
                (None, group) => pb::place_hold_request::Target::Group(group.unwrap_or_default()),
            };
            let context = context.context(s).await?;
            let request = pb::PlaceHoldRequest {
                target: Some(target),
                class_ids: s.numbers(Noun::Class, &classes).await?,
                legal_basis: basis,
                purpose_id: context.as_ref().map_or(0, |c| c.purpose_id),
                end_time: args::at(s, until),
                context,
                request_id: write.id(s),
                validate_only: write.validate_only,
            };
            let answer = s.erasures().place_hold(request).await?.into_inner();
            s.out.record(&answer.hold.unwrap_or_default(), HOLD, &s.names_if_any().await)
        }
        Hold::Release { hold, context, write } => {
            input::confirm(
                yes || write.validate_only,
                "This releases a hold; erasures that wait for it are done at once",
            )?;
            let request = pb::ReleaseHoldRequest {
                hold,
                context: context.context(s).await?,
                request_id: write.id(s),
                validate_only: write.validate_only,
            };
            let answer = s.erasures().release_hold(request).await?.into_inner();
            if s.out.json {
                return s.out.document(&wire(&answer));
            }
            s.out.record(&answer.hold.unwrap_or_default(), HOLD, &s.names_if_any().await)?;
            for erasure in &answer.erasures {
                note(&format!("erasure {erasure} goes on now"));
            }
            Ok(())
        }
        Hold::List { subject, group, states, list } => {
            let key = subject.as_deref().map(args::subject_key);
            let group = group.unwrap_or_default();
            let page = list
                .pages(|page_size, page_token| {
                    let mut client = s.erasures();
                    let (key, group, states) = (key.clone(), group.clone(), states.clone());
                    let request = pb::ListHoldsRequest { key, group, states, page_size, page_token };
                    async move {
                        let answer = client.list_holds(request).await?.into_inner();
                        Ok((answer.holds, answer.next_page_token))
                    }
                })
                .await?;
            let names = if s.out.json { Names::default() } else { s.names_if_any().await };
            s.out.list("holds", &page, HOLD, &names)
        }
    }
}
