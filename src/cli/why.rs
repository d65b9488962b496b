//! `test-access` and `why`: what would be decided, by which rule of which policy version, without doing it.

use crate::cli::args::{self, ContextArgs, SelectArgs};
use crate::cli::error::CliError;
use crate::cli::names::{Names, Noun};
use crate::cli::output::{Col, Output};
use crate::cli::session::Session;
use crate::cli::text::printable;
use crate::cli::values::wire;
use crate::grpc::pb;
use clap::Args;

/// Who would call, about what, and why.
#[derive(Debug, Args)]
struct Caller {
    /// Name of the key that would call [default: the one in use]
    #[arg(long)]
    key: Option<String>,
    #[command(flatten)]
    select: SelectArgs,
    #[command(flatten)]
    context: ContextArgs,
    /// With which view: plain, masked, token
    #[arg(long, value_parser = args::view)]
    view: Option<i32>,
}

impl Caller {
    /// What the vault would decide for that verb, about that subject or in that group.
    async fn ask(
        self,
        s: &Session,
        verb: i32,
        subject: String,
        group: String,
    ) -> Result<pb::TestAccessResponse, CliError> {
        let request = pb::TestAccessRequest {
            access_key: self.key.unwrap_or_default(),
            verb,
            select: self.select.select(s).await?,
            context: self.context.context(s).await?,
            view: self.view.unwrap_or(0),
            group,
            subject,
        };
        Ok(s.access().test_access(request).await?.into_inner())
    }
}

/// `test-access`
#[derive(Debug, Args)]
#[command(after_help = "Exit code 0 when it would be allowed, 4 when not.

Examples:
  pii-vault test-access read -f email -p marketing
  pii-vault test-access read --key 7Q3K2M -c billing -p support --view plain
  pii-vault test-access export -p service --subject usr_123")]
pub struct TestAccess {
    /// What would be done: read, write, delete, find, export, erase, hold, release, subject, group, ...
    #[arg(value_parser = args::verb)]
    verb: i32,
    #[command(flatten)]
    caller: Caller,
    /// In which group the subject is
    #[arg(long, conflicts_with = "subject")]
    group: Option<String>,
    /// The subject: its group, consents, objections, restrictions, holds and age count
    #[arg(long)]
    subject: Option<String>,
}

/// `test-access`
pub async fn test_access(s: &Session, a: TestAccess) -> Result<(), CliError> {
    let answer = a.caller.ask(s, a.verb, a.subject.unwrap_or_default(), a.group.unwrap_or_default()).await?;
    print_decisions(s.out, &answer, &s.names_if_any().await)?;
    if answer.allowed { Ok(()) } else { Err(CliError::WouldBeDenied) }
}

fn print_decisions(out: Output, answer: &pb::TestAccessResponse, names: &Names) -> Result<(), CliError> {
    if out.json {
        return out.document(&wire(answer));
    }
    let cols = [
        Col("FIELD", "field_id|field"),
        Col("ALLOWED", "allowed"),
        Col("VIEW", "view"),
        Col("REASON", "reason"),
        Col("RULE", "rule"),
        Col("POLICY LINE", "policy_line|nonzero"),
    ];
    out.table(&answer.decisions, &cols, names)
}

/// `why`
#[derive(Debug, Args)]
#[command(after_help = "Names the rule, the version of the policy and the line of its file, for this person: consents,
objections, restrictions, holds and age count. Exit code 0 when everything would be allowed, 4 when not.

Examples:
  pii-vault why usr_123 -p marketing
  pii-vault why usr_123 -f email -p delivery --recipient mailer
  pii-vault why usr_123 -f phone -p support --key 7Q3K2M --verb export")]
pub struct Why {
    /// Id of the subject
    subject: String,
    /// What would be done: read, write, delete, find, export
    #[arg(long, value_parser = args::verb, default_value = "read")]
    verb: i32,
    #[command(flatten)]
    caller: Caller,
}

/// `why`
pub async fn why(s: &Session, a: Why) -> Result<(), CliError> {
    let answer = a.caller.ask(s, a.verb, a.subject, String::new()).await?;
    if s.out.json {
        s.out.document(&wire(&answer))?;
    } else {
        let names = s.names_if_any().await;
        for decision in &answer.decisions {
            s.out.line(&sentence(decision, answer.policy_version, &names))?;
        }
    }
    if answer.allowed { Ok(()) } else { Err(CliError::WouldBeDenied) }
}

/// `email: no, consent-missing: ... (policy version 3, line 120)`
fn sentence(decision: &pb::AccessDecision, version: u32, names: &Names) -> String {
    let what = match decision.field_id {
        0 => String::new(),
        number => format!("{}: ", names.name(Noun::Field, number)),
    };
    let answer = match (decision.allowed, decision.view()) {
        (false, _) => "no",
        (true, pb::View::Plain) => "yes, plain",
        (true, pb::View::Masked) => "yes, masked",
        (true, _) => "yes",
    };
    let line = if decision.policy_line == 0 { String::new() } else { format!(", line {}", decision.policy_line) };
    printable(&format!("{what}{answer}. {} (policy version {version}{line})", decision.rule))
}
