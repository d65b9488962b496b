//! Floor 9, the command line: parses arguments, talks to a server through the generated client, prints, and ends with
//! an exit code. It decides nothing that the server decides.
//!
//! Files see each other in one direction: `text`, `global`, `error`, `json`, `names`, then `output`, `profile`, `session`, `input`,
//! `args`, `values`, then a file for each family of commands.

mod access;
mod api_key;
mod args;
mod audit;
mod backup;
mod batch;
mod bench;
mod code;
mod constants;
mod count;
mod drill;
mod entries;
mod erase;
mod error;
mod evidence;
mod export;
mod extends;
mod forward;
mod global;
mod hold;
mod input;
mod json;
mod keeper;
mod keys;
mod names;
mod ops;
pub mod otlp;
mod output;
mod password;
pub mod people;
mod policy;
mod profile;
mod profiles;
pub mod quickstart;
mod receipt;
mod records;
mod recovery;
mod report;
mod restore;
mod rights;
mod samples;
mod sarif;
mod schema;
mod server;
mod session;
mod subjects;
mod tenant;
mod text;
mod values;
mod why;

use crate::cli::error::{CliError, EXIT_CODES, LastIds};
use crate::cli::global::GlobalArgs;
use crate::cli::output::Output;
use crate::cli::profile::{ProfileFile, Settings, process_env};
use crate::cli::session::Session;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use parking_lot::Mutex;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

/// An encrypted vault for personal data whose erasures hold against restored backups.
#[derive(Debug, Parser)]
#[command(name = "pii-vault", version, max_term_width = 110)]
#[command(
    after_help = "Flags win over the environment (PII_VAULT_SERVER, _CA, _ACCESS_KEY, _ACCESS_KEY_FILE, _PROFILE, ...), the
environment over the profile, the profile over defaults. Values and keys are read from standard input and files, never
from arguments. `pii-vault help exit-codes` lists the exit codes.

A first session:
  pii-vault profile set dev --server https://127.0.0.1:7443 --ca ca.pem --credential-file key.txt
  pii-vault whoami
  pii-vault schema
  echo '{\"email\":\"ana@example.com\"}' | pii-vault put u-17 -p service
  pii-vault get u-17 -p service
  pii-vault erase subject u-17 --wait --receipt u-17.receipt.json
  pii-vault receipt verify u-17.receipt.json --public-key vault-keys.txt"
)]
pub struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Quickstart(quickstart::Quickstart),
    Init(server::Init),
    Serve(server::Serve),
    Healthcheck(server::Healthcheck),
    Doctor(server::Doctor),
    Prove(server::Prove),
    Restore(Box<restore::Restore>),
    /// The recovery key, and what a restore left to confirm
    #[command(subcommand)]
    Recovery(Box<recovery::Recovery>),
    AcceptRollback(server::AcceptRollback),
    Drill(drill::Drill),
    /// Named servers and credentials
    #[command(subcommand)]
    Profile(profiles::ProfileCommand),
    /// Who the access key is and what it may do
    Whoami,
    /// Names and numbers of fields, classes and purposes; constants for programs
    Schema(schema::Schema),
    /// Tenants and their policies
    #[command(subcommand)]
    Tenant(Box<tenant::Tenant>),
    /// Keys that may call the vault
    #[command(subcommand)]
    AccessKey(access::AccessKey),
    /// Roles and what they allow
    #[command(subcommand)]
    Role(access::Role),
    /// A second person's word for one call
    #[command(subcommand)]
    Approval(Box<access::Approval>),
    /// Whether a call would be allowed, and which rule decides
    TestAccess(why::TestAccess),
    /// Why somebody's fields may be had or not: the rule, the policy version, the line
    Why(why::Why),
    /// Write fields of a subject
    Put(records::Put),
    /// Read fields of a subject
    Get(records::Get),
    /// Delete fields of a subject, which is not an erasure
    Delete(records::Delete),
    /// Items of many-valued fields: messages, invoices
    #[command(subcommand)]
    Item(records::Item),
    /// Write or read many subjects
    #[command(subcommand)]
    Batch(batch::Batch),
    /// Find subjects by a searchable field
    Find(records::Find),
    /// Everything about a subject as one document
    Export(export::Export),
    /// Subjects without their values
    #[command(subcommand)]
    Subject(subjects::Subject),
    /// Groups: the accounts of the tenant's customers
    #[command(subcommand)]
    Group(subjects::Group),
    /// Erase for good, now or later
    #[command(subcommand)]
    Erase(Box<erase::Erase>),
    /// Legal holds
    #[command(subcommand)]
    Hold(hold::Hold),
    /// API keys of the tenant's own users
    #[command(subcommand)]
    ApiKey(Box<api_key::ApiKey>),
    /// One-time codes, recovery codes and TOTP of the tenant's own users
    #[command(subcommand)]
    Code(Box<code::Code>),
    /// Passwords of the tenant's own users
    #[command(subcommand)]
    Password(Box<password::Password>),
    /// What people decide and ask for: consent, objection, restriction, requests
    #[command(subcommand)]
    Rights(Box<rights::Rights>),
    /// How many people have which value, in groups that are large enough
    Count(count::Count),
    /// Signed receipts of erasures
    #[command(subcommand)]
    Receipt(receipt::Receipt),
    /// What the published text claims, and what is true; signed
    Report(report::Report),
    /// A bundle for an auditor, who checks it on a machine of his own
    Evidence(evidence::Evidence),
    /// Who did what when
    #[command(subcommand)]
    Audit(audit::Audit),
    /// Work that goes on by itself
    #[command(subcommand)]
    Ops(ops::Ops),
    /// Keys as objects to look after
    #[command(subcommand)]
    Keys(Box<keys::Keys>),
    /// Archives: make, list, check, delete
    #[command(subcommand)]
    Backup(backup::Backup),
    /// The erasable store of tenant roots and its replicas
    #[command(subcommand)]
    Keeper(keeper::Keeper),
    /// How fast this build is on this machine, as ratios to bare floors
    Bench(Box<bench::Bench>),
    /// Completion script for a shell
    #[command(after_help = "Examples:
  pii-vault completions bash > /etc/bash_completion.d/pii-vault
  pii-vault completions zsh > ~/.zfunc/_pii-vault")]
    Completions {
        /// bash, elvish, fish, powershell, zsh
        shell: clap_complete::Shell,
    },
    /// What the exit codes mean
    ExitCodes,
}

/// The program: `main` calls this and ends with what it answers.
pub fn main() -> ExitCode {
    let matches = program().get_matches();
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(e) => e.exit(),
    };
    let json = cli.global.json;
    // Every command may hold an access key or values. Where the kernel refuses it, `doctor` says so.
    let _ = crate::server::hardening::forbid_dumps();
    let last = Arc::new(Mutex::new(LastIds::default()));
    let Err(error) = run(cli, last.clone()) else { return ExitCode::SUCCESS };
    if error.is_broken_pipe() {
        return ExitCode::SUCCESS;
    }
    let told = error.tell(json, &last.lock());
    let _ = std::io::stderr().write_all(told.as_bytes());
    ExitCode::from(error.exit_code())
}

fn program() -> clap::Command {
    let table: String = EXIT_CODES.iter().map(|(code, meaning)| format!("\n  {code:>2}  {meaning}")).collect();
    let about = format!("What the exit codes mean:\n{table}");
    Cli::command().mut_subcommand("exit-codes", |c| c.long_about(about))
}

fn run(cli: Cli, last: Arc<Mutex<LastIds>>) -> Result<(), CliError> {
    let Cli { global, command } = cli;
    let out = Output { json: global.json };
    // What needs no server.
    let command = match command {
        Command::Profile(command) => return profiles::profile(out, &global, command),
        Command::Tenant(command) if !tenant::needs_server(&command) => return tenant::lint_here(out, *command),
        Command::Audit(command) if !audit::needs_server(&command) => return audit::verify_here(out, command),
        Command::Report(ref args) if args.offline().is_some() => {
            return args.offline().map_or(Ok(()), |verify| report::verify(out, verify));
        }
        Command::Evidence(ref args) if args.offline().is_some() => {
            return args.offline().map_or(Ok(()), |verify| evidence::verify(out, verify));
        }
        Command::Receipt(receipt::Receipt::Verify(args)) => return receipt::verify(out, args),
        Command::Keys(command) => match *command {
            keys::Keys::Verify(args) => return keys::verify(out, args),
            keys::Keys::Split(args) => return keys::split(out, args),
            command => Command::Keys(Box::new(command)),
        },
        Command::Completions { shell } => return completions(out, shell),
        Command::Quickstart(args) => return on_this_machine(args.run()),
        Command::Init(args) => return on_this_machine(server::init_vault(out, args)),
        Command::Serve(args) => return on_this_machine(server::serve(out, args)),
        Command::Healthcheck(args) => return on_this_machine(server::healthcheck(out, args)),
        Command::Doctor(args) => return on_this_machine(server::doctor(out, args)),
        Command::Prove(args) => return on_this_machine(server::prove_copy(out, args)),
        Command::Restore(args) => return on_this_machine(restore::restore_vault(out, *args)),
        Command::Recovery(args) => return on_this_machine(recovery::recovery(out, *args)),
        Command::Drill(args) => return on_this_machine(drill::try_restore(out, args)),
        Command::AcceptRollback(args) => return on_this_machine(server::accept_rollback(out, global.yes, args)),
        Command::Backup(backup::Backup::Verify(args)) => return on_this_machine(backup::verify(out, args)),
        Command::Keeper(keeper::Keeper::Add(args)) => return on_this_machine(keeper::add(out, args)),
        Command::Bench(bench) => return bench.run(out),
        Command::Password(command) => match *command {
            password::Password::Calibrate(args) => return password::calibrate(out, args),
            command => Command::Password(Box::new(command)),
        },
        Command::ExitCodes => return exit_codes(out),
        command => command,
    };
    // Another part of the process may have chosen a provider already; they are all ring.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::io("tokio runtime"))?;
    runtime.block_on(async {
        let path = profile::path(&process_env);
        let file = path.as_deref().map_or(Ok(ProfileFile::default()), ProfileFile::load)?;
        let path = path.unwrap_or_default();
        let settings = Settings::resolve(&global, &process_env, &file, &path)?;
        let session = Session::open(settings, out, last)?;
        call(&session, global.yes, command).await.map_err(|e| e.at_server(&session.settings.server))
    })
}

async fn call(s: &Session, yes: bool, command: Command) -> Result<(), CliError> {
    match command {
        Command::Whoami => access::whoami(s).await,
        Command::Schema(a) => schema::schema(s, a).await,
        Command::Tenant(c) => tenant::tenant(s, yes, *c).await,
        Command::AccessKey(c) => access::access_key(s, yes, c).await,
        Command::Role(c) => access::role(s, c).await,
        Command::Approval(c) => access::approval(s, *c).await,
        Command::TestAccess(a) => why::test_access(s, a).await,
        Command::Why(a) => why::why(s, a).await,
        Command::Put(a) => records::put(s, a).await,
        Command::Get(a) => records::get(s, a).await,
        Command::Delete(a) => records::delete(s, yes, a).await,
        Command::Item(c) => records::item(s, yes, c).await,
        Command::Batch(c) => batch::batch(s, c).await,
        Command::Find(a) => records::find(s, a).await,
        Command::Export(a) => export::export(s, a).await,
        Command::Subject(c) => subjects::subject(s, c).await,
        Command::Group(c) => subjects::group(s, c).await,
        Command::Erase(c) => erase::erase(s, yes, *c).await,
        Command::Hold(c) => hold::hold(s, yes, c).await,
        Command::Password(c) => password::password(s, yes, *c).await,
        Command::ApiKey(c) => api_key::api_key(s, yes, *c).await,
        Command::Code(c) => code::code(s, yes, *c).await,
        Command::Rights(c) => rights::rights(s, *c).await,
        Command::Report(a) => report::report(s, a).await,
        Command::Evidence(a) => evidence::evidence(s, a).await,
        Command::Count(a) => count::count(s, a).await,
        Command::Receipt(c) => receipt::receipt(s, c).await,
        Command::Audit(c) => audit::audit(s, yes, c).await,
        Command::Ops(c) => ops::ops(s, yes, c).await,
        Command::Keys(c) => keys::keys(s, yes, *c).await,
        Command::Backup(c) => backup::backup(s, yes, c).await,
        Command::Keeper(c) => keeper::keeper(s, yes, c).await,
        // These need no server and were done before.
        Command::Profile(_)
        | Command::Completions { .. }
        | Command::ExitCodes
        | Command::Quickstart(_)
        | Command::Init(_)
        | Command::Serve(_)
        | Command::Healthcheck(_)
        | Command::Doctor(_)
        | Command::Prove(_)
        | Command::Restore(_)
        | Command::Recovery(_)
        | Command::AcceptRollback(_)
        | Command::Drill(_)
        | Command::Bench(_) => Ok(()),
    }
}

/// Runs what serves or opens the vault itself: on all cores.
fn on_this_machine(work: impl Future<Output = Result<(), CliError>>) -> Result<(), CliError> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    runtime().map_err(CliError::io("tokio runtime"))?.block_on(work)
}

/// Threads on all cores, which keep nothing of a call on their stacks while they wait.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .on_thread_park(crate::crypto::stack::wipe_idle_stack)
        .build()
}

fn completions(out: Output, shell: clap_complete::Shell) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut program(), "pii-vault", &mut script);
    out.raw(&script)
}

fn exit_codes(out: Output) -> Result<(), CliError> {
    if out.json {
        let list: Vec<_> = EXIT_CODES.iter().map(|(c, m)| serde_json::json!({ "code": c, "meaning": m })).collect();
        return out.document(&serde_json::json!({ "exit_codes": list }));
    }
    out.rows(&["CODE", "MEANING"], EXIT_CODES.iter().map(|(c, m)| vec![c.to_string(), (*m).to_string()]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_sound() {
        program().debug_assert();
    }

    #[test]
    fn every_command_shows_an_example() {
        fn walk(command: &clap::Command, path: &str, missing: &mut Vec<String>) {
            let subs: Vec<_> = command.get_subcommands().filter(|c| c.get_name() != "help").collect();
            for sub in &subs {
                walk(sub, &format!("{path} {}", sub.get_name()), missing);
            }
            let help = command.get_after_help().map(|h| h.to_string()).unwrap_or_default();
            let has = help.contains(&format!("pii-vault {}", path.trim())) || help.contains(command.get_name());
            if subs.is_empty() && !has {
                missing.push(path.to_string());
            }
        }
        let mut missing = Vec::new();
        walk(&program(), "", &mut missing);
        // Without arguments there is nothing to show.
        missing.retain(|p| {
            ![" whoami", " exit-codes", " profile list", " profile show", " profile use", " profile remove"]
                .contains(&p.as_str())
        });
        assert_eq!(missing, Vec::<String>::new());
    }

    #[test]
    fn no_command_takes_a_value_or_a_key_as_an_argument() {
        fn walk(command: &clap::Command) {
            for argument in command.get_arguments() {
                let id = argument.get_id().as_str();
                assert!(!["value", "text", "access_key_text", "password", "token", "secret"].contains(&id), "{id}");
            }
            command.get_subcommands().for_each(walk);
        }
        walk(&program());
    }
}
