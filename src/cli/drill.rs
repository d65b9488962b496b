//! `pii-vault drill`: a restore that is only tried, and the check of what it reported.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};
use serde_json::{Value as Json, json};

use crate::cli::error::CliError;
use crate::cli::output::Output;
use crate::cli::receipt::{self, trim};
use crate::cli::restore::{public_keys, read_key_file};
use crate::cli::server::{ConfigArgs, unexpected};
use crate::clock::{Clock, SystemClock};
use crate::ids::ObjectId;
use crate::server::drill::{self, DrillReport, drill, keep_report, signing_key};
use crate::server::restore::RestoreRequest;

/// Tries a restore in a folder of its own, opens everyone, and destroys it: whether the archives would bring all back
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:
  pii-vault drill --config pii-vault.toml --recovery-key recovery.key
  pii-vault drill --from /mnt/copy-of-backups --recovery-key recovery.key
  pii-vault drill verify backups/drills/20261121T023000Z.json --public-key vault-keys.txt

Needs no server, no keeper and no root key, so it also runs on a machine that is offline, where the recovery key is. It needs
room for a second database. No value is printed. On the vault's machine the server may go on; the report is compared with
the live vault, signed with the vault's key, and stays in backups/drills. Exit code 7 if somebody would be lost or
somebody erased would come back."
)]
pub struct Drill {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    config: ConfigArgs,
    /// Archive, or folder of archives [default: the folder of the configuration]
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// File of a private recovery key; may be repeated
    #[arg(long, value_name = "FILE", required = true)]
    recovery_key: Vec<PathBuf>,
    /// Folder of the key archive, if it is not beside the data
    #[arg(long, value_name = "DIR")]
    keys: Option<PathBuf>,
    /// Public signing key of the vault in hexadecimal, or a file of them; a recovery key's file has it
    #[arg(long, value_name = "KEY|FILE")]
    public_key: Vec<String>,
    /// Receipts of erasures that the ledger may not have: files, or folders with *.json
    #[arg(long, value_name = "PATH")]
    receipts: Vec<PathBuf>,
    /// Folder to work in, below which one is made and destroyed [default: the system's for temporary files]
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check a signed report with public keys alone; needs no server
    #[command(after_help = "Exit code 7 when it is not right, or says that not everyone came back.

Example:
  pii-vault drill verify backups/drills/20261121T023000Z.json --public-key vault-keys.txt")]
    Verify(Verify),
}

#[derive(Debug, Args)]
struct Verify {
    /// File with the report
    file: PathBuf,
    /// A public key, or a file with some; may be repeated
    #[arg(long = "public-key", value_name = "KEY", required = true)]
    public_keys: Vec<String>,
}

pub async fn try_restore(out: Output, args: Drill) -> Result<(), CliError> {
    if let Some(Command::Verify(verify)) = args.command {
        return check(out, &verify);
    }
    let config = args.config.load()?;
    let (mut identities, mut public) = (Vec::new(), public_keys(&args.public_key)?);
    for path in &args.recovery_key {
        let (more, marks) = read_key_file(path)?;
        identities.extend(more);
        public.extend(marks);
    }
    let from = args.from.unwrap_or_else(|| config.backups_dir());
    let request = RestoreRequest {
        from,
        identities,
        keys: args.keys,
        public_keys: public,
        receipts: args.receipts,
        ..RestoreRequest::default()
    };
    let scratch =
        args.scratch.unwrap_or_else(std::env::temp_dir).join(format!("pii-vault-drill-{}", ObjectId::random()));
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let report = drill(request, &scratch, Some(&config), clock).await.map_err(unexpected)?;
    // Kept where the vault is: nowhere else does anybody look for it.
    let mut kept = None;
    if config.backups_dir().exists() {
        let signing = signing_key(&config, &report.vault).await;
        kept = Some((keep_report(&config.backups_dir(), &report, signing.as_ref()).map_err(unexpected)?, signing));
    }
    tell(out, &report)?;
    if let Some((path, signing)) = kept.filter(|_| !out.json) {
        out.line(&format!("report    {}", path.display()))?;
        out.line(&match signing {
            Some(signing) => format!("signed    with the vault's key {}", signing.key_id()),
            None => "signed    by nobody: keeper and root key of this vault are not here".to_owned(),
        })?;
    }
    match report.holds {
        true => Ok(()),
        false => Err(CliError::CheckFailed("these archives do not bring everyone back".into())),
    }
}

fn tell(out: Output, report: &DrillReport) -> Result<(), CliError> {
    if out.json {
        return out.document(&serde_json::to_value(report).map_err(unexpected)?);
    }
    out.line(&format!("data      {}", report.restored.data))?;
    out.line(&format!("keys      {}", report.restored.keys))?;
    let rows = report.tried.tenants.iter().map(|tried| {
        let restored = report.restored.tenants.iter().find(|one| one.tenant == tried.tenant);
        vec![
            tried.tenant.clone(),
            tried.living.to_string(),
            tried.living_opened.to_string(),
            restored.map_or(0, |one| one.lost).to_string(),
            tried.erased.to_string(),
            tried.erased_opened.to_string(),
        ]
    });
    out.rows(&["TENANT", "LIVING", "OPENED", "CLASSES LOST", "ERASED SINCE", "OF THEM OPENED"], rows.collect())?;
    if !report.live.is_empty() {
        let rows = report.live.iter().map(|one| {
            let counts = [one.live, one.restored, one.came_since, one.gone_since, one.missing];
            [one.tenant.clone()].into_iter().chain(counts.iter().map(u64::to_string)).collect()
        });
        out.line("")?;
        let heads = ["TENANT", "LIVE NOW", "RESTORED", "CAME SINCE", "GONE SINCE", "MISSING"];
        out.rows(&heads, rows.collect())?;
    }
    out.line(if report.holds { "Everyone living comes back, nobody erased does." } else { "This is not all of them." })
}

/// `drill verify`: needs no server.
fn check(out: Output, a: &Verify) -> Result<(), CliError> {
    let keys = receipt::public_keys(&a.public_keys)?;
    let bytes = std::fs::read(&a.file).map_err(CliError::io(a.file.display().to_string()))?;
    let (report, key) = drill::verify(trim(&bytes), &keys)
        .map_err(|error| CliError::CheckFailed(format!("the report is not right: {error}")))?;
    let holds = report["holds"] == true;
    if out.json {
        out.document(&json!({ "valid": true, "key_id": key, "report": report }))?;
    } else {
        out.line(&format!("The signature is right (key {key})."))?;
        let sum = |what: &str| {
            let tenants = report["tried"]["tenants"].as_array().into_iter().flatten();
            tenants.filter_map(|tenant| tenant[what].as_u64()).sum::<u64>()
        };
        let text = |value: &Json| crate::cli::text::printable(value.as_str().unwrap_or("unknown"));
        out.pairs([
            ("vault", text(&report["vault"])),
            ("tried", text(&report["tried_at"])),
            ("data of", text(&report["archive_made_at"])),
            ("people", format!("{} of {} opened", sum("living_opened"), sum("living"))),
            ("erased", format!("{} of {} classes opened", sum("erased_opened"), sum("erased"))),
            ("verdict", if holds { "everyone living came back, nobody erased did" } else { "not everyone" }.to_owned()),
        ])?;
    }
    match holds {
        true => Ok(()),
        false => Err(CliError::CheckFailed("the report says that not everyone came back".into())),
    }
}
