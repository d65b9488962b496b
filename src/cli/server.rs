//! Commands of the machine that the vault is on: init, serve, healthcheck, doctor, prove. They read the configuration and
//! need no access key.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use crate::causes::causes;
use crate::cli::error::CliError;
use crate::cli::output::Output;
use crate::cli::recovery::RecoveryArgs;
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, Profile};
use crate::server::doctor::{Answers, Verdict, examine, strict_refusals};
use crate::server::hardening::{Swapping, lock_memory};
use crate::server::promises::{Kept, promises};
use crate::server::prove::prove;
use crate::server::run::{Ports, run, tls};
use crate::server::{Node, init, signals};

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
        Config::load(self.config.as_deref(), std::env::vars(), &self.set).map_err(|e| CliError::Usage(causes(&e)))
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

pub fn unexpected(error: impl std::error::Error) -> CliError {
    CliError::Unexpected(causes(&error))
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
            return Err(CliError::Usage(format!("profile strict: {}: {}", swapping.meaning(), swapping.todo())));
        }
        tracing::warn!("{}: {}", swapping.meaning(), swapping.todo());
    }
    let state = tls(&config).map_err(unexpected)?;
    let stop = signals({
        let (state, args) = (state.clone(), args.config);
        move || {
            if let Some(state) = &state
                && let Err(error) = state.reload()
            {
                tracing::error!(error = causes(&error), "the certificates were not reloaded");
            }
            match args.load() {
                Ok(config) => {
                    if let Err(error) = level.set(&config.log.level) {
                        tracing::error!(error = causes(&error), "the log level was not changed");
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
        // Behind the first line stands what is to be known although it serves.
        200 => out.line(body.trim().replacen("ok", "ready", 1).as_str()),
        _ => Err(CliError::CheckFailed(format!("not ready: {}", body.trim()))),
    }
}

pub async fn doctor(out: Output, args: Doctor) -> Result<(), CliError> {
    let config = args.config.load()?;
    let answers = Answers { confirm_clock: args.confirm_clock, accept_audit_loss: args.accept_audit_loss };
    let findings = examine(&config, answers, Arc::new(SystemClock::new())).await.map_err(CliError::CheckFailed)?;
    let promises = promises(&config, &findings);
    if out.json {
        let found = findings.iter().map(|f| {
            let costs: Vec<_> = f.costs.iter().map(|adversary| adversary.id()).collect();
            json!({ "verdict": f.verdict.as_str(), "about": f.about, "finding": f.because, "change": f.todo, "costs": costs })
        });
        let kept = promises.iter().map(|p| {
            let (id, promise) = (p.adversary.id(), p.adversary.promise());
            json!({ "adversary": id, "promise": promise, "kept": p.kept.as_str(), "because": p.because, "change": p.change })
        });
        out.document(&json!({ "findings": found.collect::<Vec<_>>(), "promises": kept.collect::<Vec<_>>() }))?;
    } else {
        let table = findings.iter().map(|f| vec![f.verdict.as_str().to_owned(), f.about.clone(), f.text()]).collect();
        out.rows(&["VERDICT", "ABOUT", "FINDING"], table)?;
        out.line("\nWhat the threat model promises, as this vault is set up now:\n")?;
        for promise in &promises {
            out.line(&format!("{:>3}  {}", promise.adversary.id(), promise.adversary.promise()))?;
            let because = if promise.kept == Kept::Yes { "" } else { "because " };
            out.line(&format!("     {}, {because}{}", promise.kept.as_str(), promise.because))?;
            if !promise.change.is_empty() {
                out.line(&format!("     change {}", promise.change))?;
            }
        }
    }
    match findings.iter().filter(|finding| finding.verdict == Verdict::Bad).count() {
        0 => Ok(()),
        1 => Err(CliError::CheckFailed("1 finding is bad".into())),
        bad => Err(CliError::CheckFailed(format!("{bad} findings are bad"))),
    }
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
    let rollback = accepted.map_err(|error| CliError::CheckFailed(causes(&error)))?;
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
