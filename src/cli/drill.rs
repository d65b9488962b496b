//! `pii-vault drill`: a restore that is only tried.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use crate::cli::error::CliError;
use crate::cli::output::Output;
use crate::cli::restore::{public_keys, read_key_file};
use crate::cli::server::{ConfigArgs, unexpected};
use crate::clock::{Clock, SystemClock};
use crate::ids::ObjectId;
use crate::server::drill::{DrillReport, drill, keep_report};
use crate::server::restore::RestoreRequest;

/// Tries a restore in a folder of its own, opens everyone, and destroys it: whether the archives would bring all back
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pii-vault drill --config pii-vault.toml --recovery-key recovery.key
  pii-vault drill --from /mnt/copy-of-backups --recovery-key recovery.key

Needs no server, no keeper and no root key, so it also runs on a machine that is offline, where the recovery key is. It needs
room for a second database. No value is printed. On the vault's machine the report stays in backups/drills. The server
may go on. Exit code 7 if somebody would be lost or somebody erased would come back.")]
pub struct Drill {
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

pub async fn try_restore(out: Output, args: Drill) -> Result<(), CliError> {
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
    let report = drill(request, &scratch, clock).await.map_err(unexpected)?;
    let kept = match config.backups_dir().exists() {
        true => Some(keep_report(&config.backups_dir(), &report).map_err(unexpected)?),
        false => None,
    };
    tell(out, &report)?;
    if let Some(path) = kept.filter(|_| !out.json) {
        out.line(&format!("report    {}", path.display()))?;
    }
    if report.holds { Ok(()) } else { Err(CliError::CheckFailed("these archives do not bring everyone back".into())) }
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
    out.line(if report.holds { "Everyone living comes back, nobody erased does." } else { "This is not all of them." })
}
