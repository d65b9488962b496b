//! Commands of the machine that the vault is on: init, serve, healthcheck, doctor, prove. They read the configuration and
//! need no access key.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use crate::cli::error::CliError;
use crate::cli::output::Output;
use crate::cli::recovery::RecoveryArgs;
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, Profile, RootKekSource};
use crate::keyring::TenantKeyState;
use crate::keyring::keeper::inspect;
use crate::server::doctor::{Verdict, look, strict_refusals};
use crate::server::hardening::{Swapping, forbid_dumps, lock_memory};
use crate::server::prove::prove;
use crate::server::run::{Ports, run, tls};
use crate::server::{Node, NodeError, init, signals};
use crate::storage::readlog::ReadLogError;

/// Where the configuration is.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// Configuration file [env: PII_VAULT_CONFIG]
    #[arg(long, value_name = "FILE", env = "PII_VAULT_CONFIG", hide_env = true)]
    config: Option<PathBuf>,
    /// One key of the configuration, over file and environment; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("must be KEY=VALUE, such as listen.address=127.0.0.1:7443")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl ConfigArgs {
    pub fn load(&self) -> Result<Config, CliError> {
        Config::load(self.config.as_deref(), std::env::vars(), &self.set).map_err(|e| CliError::Usage(chain(&e)))
    }
}

/// Makes a new vault: keeper, database, signing key and the first operator's access key
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pii-vault init --config /etc/pii-vault/pii-vault.toml --operator-key-file operator.key
  pii-vault init --config pii-vault.toml --operator-key-file operator.key --recovery-out recovery.key
  pii-vault init --set data_dir=data --set keeper.paths=keeper --set root_kek.provider=file --set root_kek.path=root.key

A root key file that is not there is made. Nothing that exists is overwritten. Keep the root key, the keeper and the data
on different disks. A recovery key is made and shown once; with it and a copy of the backups folder everyone living comes
back after the loss of all of that. Keep it offline: it opens what was archived before an erasure, until that expires.")]
pub struct Init {
    #[command(flatten)]
    config: ConfigArgs,
    /// File for the first operator's access key (mode 600); without it the key is printed once
    #[arg(long, value_name = "FILE")]
    operator_key_file: Option<PathBuf>,
    #[command(flatten)]
    recovery: RecoveryArgs,
}

/// Serves until SIGTERM or SIGINT; SIGHUP reads certificates again
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pii-vault serve --config /etc/pii-vault/pii-vault.toml
  pii-vault serve --config /etc/pii-vault/pii-vault.toml --check-config")]
pub struct Serve {
    #[command(flatten)]
    config: ConfigArgs,
    /// Check the configuration, list everything wrong with it, and end
    #[arg(long)]
    check_config: bool,
}

/// Asks a running server on this machine whether it is ready
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pii-vault healthcheck --config /etc/pii-vault/pii-vault.toml")]
pub struct Healthcheck {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Looks at configuration, keeper, keys and machine, and says what is wrong and what to do
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pii-vault doctor --config /etc/pii-vault/pii-vault.toml
  pii-vault doctor --config /etc/pii-vault/pii-vault.toml --confirm-clock
  pii-vault doctor --config /etc/pii-vault/pii-vault.toml --accept-audit-loss")]
pub struct Doctor {
    #[command(flatten)]
    config: ConfigArgs,
    /// The machine's clock is right as it is now: values end by it again after a jump
    #[arg(long)]
    confirm_clock: bool,
    /// The read audit is what it is now, although it lacks entries that a checkpoint names: noted for good in the audit
    #[arg(long)]
    accept_audit_loss: bool,
}

/// Tries the present keys on an old copy of the database files, and counts what opens
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pii-vault prove --config /etc/pii-vault/pii-vault.toml --copy /backups/2026-11-20

DIR holds vault.db and, where there was one, vault.db-wal, or archives: of a key archive it says until when the recovery
key opens it. The server must not be running: the vault is opened by one
process at a time. Ends with 7 if anything of an erased subject opened.")]
pub struct Prove {
    #[command(flatten)]
    config: ConfigArgs,
    /// Directory with the copy
    #[arg(long, value_name = "DIR")]
    copy: PathBuf,
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

pub fn unexpected(error: impl std::error::Error) -> CliError {
    CliError::Unexpected(chain(&error))
}

pub async fn init_vault(out: Output, args: Init) -> Result<(), CliError> {
    let config = args.config.load()?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    if let Some(path) = args.operator_key_file.as_ref().filter(|path| path.exists()) {
        return Err(CliError::Usage(format!("{} exists already", path.display())));
    }
    let recovery = args.recovery.prepare(out)?;
    let made = init(&config, &recovery.recipients, clock).await.map_err(unexpected)?;
    let public = data_encoding::HEXLOWER.encode(&made.public_key);
    recovery.finish(&made.vault.to_string(), &public)?;
    let in_file = match &args.operator_key_file {
        Some(path) => {
            crate::cli::quickstart::write_private(path, &made.operator_key)?;
            Some(path.display().to_string())
        }
        None => None,
    };
    if out.json {
        let mut document = json!({ "vault": made.vault.to_string(), "public_key": public });
        document["recovery_recipients"] = recovery.texts().into();
        if let Some(key) = recovery.unseen() {
            document["recovery_key"] = key.as_str().into();
        }
        match in_file {
            Some(path) => document["operator_key_file"] = path.into(),
            None => document["operator_key"] = made.operator_key.as_str().into(),
        }
        return out.document(&document);
    }
    out.line(&format!("vault       {}", made.vault))?;
    out.line(&format!("public key  {public}"))?;
    match in_file {
        Some(path) => out.line(&format!("operator    access key written to {path}"))?,
        None => {
            out.line(&format!("operator    {}", made.operator_key.as_str()))?;
            out.line("            shown this once: keep it in a password store")?;
        }
    }
    out.line("")?;
    out.line("Publish the public key: receipts and checkpoints are verified with it.")?;
    recovery.tell(out)
}

pub async fn serve(out: Output, args: Serve) -> Result<(), CliError> {
    let config = args.config.load()?;
    let problems = config.check();
    if args.check_config {
        for problem in &problems {
            out.line(&format!("{}: {}", problem.key, problem.rule))?;
        }
        return match problems.len() {
            0 => out.line("the configuration can be served"),
            n => Err(CliError::Usage(format!("{n} problems"))),
        };
    }
    if let Some(problem) = problems.first() {
        let more = if problems.len() > 1 { " (--check-config lists all)" } else { "" };
        return Err(CliError::Usage(format!("{}: {}{more}", problem.key, problem.rule)));
    }
    if let Some(refusal) = strict_refusals(&config).first() {
        return Err(CliError::Usage(format!("{refusal} (profile strict; `pii-vault doctor` lists all)")));
    }
    let level = crate::telemetry::init_logging(&config.log.level, config.log.format).map_err(unexpected)?;
    let metrics = crate::telemetry::init_metrics().map_err(unexpected)?;
    let swapping = lock_memory();
    if swapping == Swapping::Possible {
        if config.profile == Profile::Strict {
            return Err(CliError::Usage(format!("profile strict: {}", swapping.advice())));
        }
        tracing::warn!("{}", swapping.advice());
    }
    let state = tls(&config).map_err(unexpected)?;
    let stop = signals({
        let (state, args) = (state.clone(), args.config);
        move || {
            if let Some(state) = &state
                && let Err(error) = state.reload()
            {
                tracing::error!(error = chain(&error), "the certificates were not reloaded");
            }
            match args.load() {
                Ok(config) => {
                    if let Err(error) = level.set(&config.log.level) {
                        tracing::error!(error = chain(&error), "the log level was not changed");
                    }
                }
                Err(error) => tracing::error!(%error, "the configuration was not read again"),
            }
        }
    })
    .map_err(CliError::io("signals"))?;
    let ports = Ports::bind(&config).await.map_err(unexpected)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    run(&config, ports, state, clock, Some(metrics), stop).await.map_err(unexpected)
}

pub async fn healthcheck(out: Output, args: Healthcheck) -> Result<(), CliError> {
    let config = args.config.load()?;
    let probed = crate::grpc::ops::probe(config.ops.address, "/readyz", Duration::from_secs(3));
    let (status, body) = probed.map_err(CliError::io(config.ops.address.to_string()))?;
    match status {
        200 => out.line("ready"),
        _ => Err(CliError::CheckFailed(format!("not ready: {}", body.trim()))),
    }
}

pub async fn doctor(out: Output, args: Doctor) -> Result<(), CliError> {
    let config = args.config.load()?;
    // (verdict, what, what to do)
    let mut rows: Vec<(&str, String, String)> = Vec::new();
    for problem in config.check() {
        rows.push(("bad", problem.key, problem.rule));
    }
    for path in &config.keeper.paths {
        for finding in inspect(path, &config.data_dir) {
            rows.push((if finding.severe() { "bad" } else { "doubtful" }, "keeper.paths".into(), finding.to_string()));
        }
    }
    for finding in look(&config, SystemClock::new().now()) {
        let verdict = match finding.verdict {
            Verdict::Good => "good",
            Verdict::Doubtful => "doubtful",
            Verdict::Bad => "bad",
        };
        rows.push((verdict, finding.about.clone(), finding.text()));
    }
    if config.keeper.paths.len() == 1 {
        let advice = "one replica: a second on another disk keeps the vault when that disk dies";
        rows.push(("doubtful", "keeper.paths".into(), advice.into()));
    }
    if let Some(RootKekSource::File { path }) = &config.root_kek
        && path.starts_with(&config.data_dir)
    {
        rows.push(("bad", "root_kek.path".into(), "the root key lies with the data: a thief of one has both".into()));
    }
    let swapping = lock_memory();
    let verdict = match swapping {
        Swapping::Possible if config.profile == Profile::Strict => "bad",
        Swapping::Possible => "doubtful",
        Swapping::Locked | Swapping::Nowhere => "good",
    };
    rows.push((verdict, "memory".into(), swapping.advice().into()));
    match forbid_dumps() {
        Ok(()) => rows.push(("good", "core dumps".into(), "switched off by the program".into())),
        Err(error) => rows.push(("bad", "core dumps".into(), format!("not switched off: {error}; set LimitCORE=0"))),
    }
    let clock = Arc::new(SystemClock::new());
    let opened = match args.accept_audit_loss {
        true => Node::open_accepting_loss(&config, clock).await,
        false => Node::open(&config, clock).await,
    };
    match opened {
        Ok(node) => {
            node.vault.watch_clock().await.map_err(unexpected)?;
            if args.confirm_clock {
                node.vault.confirm_clock_here().await.map_err(unexpected)?;
            }
            if node.vault.clock_jump().is_some() {
                let what = "jumped since the vault last saw it: set it, or confirm it with --confirm-clock";
                rows.push(("bad", "clock".into(), what.into()));
            }
            if !node.vault.has_recovery() {
                let what = "no recovery key: whoever loses keeper or root key loses everyone";
                rows.push(("doubtful", "recovery".into(), what.into()));
            }
            let states = node.keyring.states();
            for (tenant, state) in &states {
                if *state != TenantKeyState::Ready && *state != TenantKeyState::TenantErased {
                    rows.push(("bad", format!("tenant {tenant}"), format!("{}: {}", state.name(), state.advice())));
                }
            }
            let rows_of = node.store.tenants().await.map_err(unexpected)?;
            let known = node.keyring.keeper().tenants().await.map_err(unexpected)?;
            for orphan in known.iter().filter(|no| rows_of.iter().all(|row| row.no != **no)) {
                let what = "only the keeper knows it: its creation was never committed, or the database is older";
                rows.push(("doubtful", format!("tenant {orphan}"), what.into()));
            }
            rows.push(("good", "vault".into(), format!("opens; {} tenants", states.len().saturating_sub(1))));
            node.close().await;
        }
        Err(error @ NodeError::ReadLog(ReadLogError::Truncated { .. } | ReadLogError::Replaced { .. })) => {
            let what =
                format!("{}; if its files are gone for good, accept that with --accept-audit-loss", chain(&error));
            rows.push(("bad", "audit".into(), what));
        }
        Err(error) => rows.push(("bad", "vault".into(), chain(&error))),
    }
    let bad = rows.iter().filter(|(verdict, ..)| *verdict == "bad").count();
    if out.json {
        let list: Vec<_> = rows.iter().map(|(v, k, t)| json!({ "verdict": v, "about": k, "finding": t })).collect();
        out.document(&json!({ "findings": list }))?;
    } else {
        let table = rows.into_iter().map(|(v, k, t)| vec![v.to_owned(), k, t]).collect();
        out.rows(&["VERDICT", "ABOUT", "FINDING"], table)?;
    }
    if bad > 0 { Err(CliError::CheckFailed(format!("{bad} findings are bad"))) } else { Ok(()) }
}

/// Go on with a database that is older than the keeper saw it, where that undoes nothing
#[derive(Debug, Args)]
#[command(
    after_help = "For a database file that was put back from a copy while nothing was erased, revoked or held since: only then is it
done, and the writes since are lost for good. Otherwise `pii-vault restore` is the way. The server must not be running.

Example:
  pii-vault accept-rollback --config /etc/pii-vault/pii-vault.toml"
)]
pub struct AcceptRollback {
    #[command(flatten)]
    config: ConfigArgs,
}

pub async fn accept_rollback(out: Output, yes: bool, args: AcceptRollback) -> Result<(), CliError> {
    let config = args.config.load()?;
    crate::cli::input::confirm(yes, "This goes on without the writes that the older database lacks")?;
    let accepted = Node::accept_rollback(&config, Arc::new(SystemClock::new())).await;
    let rollback = accepted.map_err(|error| CliError::CheckFailed(chain(&error)))?;
    if out.json {
        return out.document(&json!({ "missing": rollback.missing, "seen_at": rollback.seen_at.rfc3339() }));
    }
    out.line(&format!(
        "the vault goes on without {} entries; the keeper had seen them at {}",
        rollback.missing,
        rollback.seen_at.rfc3339()
    ))
}

pub async fn prove_copy(out: Output, args: Prove) -> Result<(), CliError> {
    let config = args.config.load()?;
    let node = Node::open(&config, Arc::new(SystemClock::new())).await.map_err(unexpected)?;
    let proof = prove(&node, &args.copy).await;
    node.close().await;
    let proof = proof.map_err(unexpected)?;
    if out.json {
        out.document(&serde_json::to_value(&proof).map_err(unexpected)?)?;
    } else {
        let rows = proof.tenants.iter().map(|t| {
            vec![
                t.tenant.clone(),
                format!("{} / {}", t.copy_generation, t.present_generation),
                if t.old_tree_opens { "opens" } else { "does not open" }.into(),
                format!("{} of {}", t.living_opened, t.living),
                format!("{} of {}", t.erased_opened, t.erased),
                t.values_opened.to_string(),
            ]
        });
        let head = ["TENANT", "GENERATION COPY / NOW", "OLD TREE", "LIVING OPEN", "ERASED CLASSES OPEN", "VALUES"];
        out.rows(&head, rows.collect())?;
        for archive in &proof.key_archives {
            let what = match (&archive.opens_until, &archive.refused) {
                (Some(until), _) => {
                    format!("{} slots; opens with the recovery key alone, until {}", archive.slots, until.rfc3339())
                }
                (_, why) => format!("refused: {}", why.as_deref().unwrap_or("it is empty")),
            };
            out.line(&format!("key archive of tenant {}: {what}", archive.tenant))?;
        }
    }
    match proof.holds {
        true => Ok(()),
        false => Err(CliError::CheckFailed("something of an erased subject opened, or a living one did not".into())),
    }
}
