//! `backup`: archives of a vault that serves, and the check of one without a server.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};
use serde_json::json;

use crate::causes::causes;
use crate::cli::error::CliError;
use crate::cli::names::Names;
use crate::cli::ops;
use crate::cli::output::{Col, Output, Page};
use crate::cli::receipt::public_keys;
use crate::cli::restore::read_key_file;
use crate::cli::server::unexpected;
use crate::cli::session::Session;
use crate::cli::{args, input};
use crate::clock::SystemClock;
use crate::crypto::sign::key_id;
use crate::grpc::pb;
use crate::ids::ObjectId;
use crate::recovery::manifest::ManifestError;
use crate::recovery::verify::{ArchiveReport, VerifyError, check_archive};
use crate::server::drill::{DrillReport, drill};
use crate::server::prove::TenantProof;
use crate::server::restore::RestoreRequest;

const BACKUP: &[Col] = &[
    Col("BACKUP", "backup"),
    Col("STATE", "state"),
    Col("MADE", "create_time"),
    Col("DELETED AFTER", "expire_time"),
    Col("BYTES", "bytes"),
];

/// `backup`
#[derive(Debug, Subcommand)]
pub enum Backup {
    /// Write a data archive: database, read audit and ledger, while the server goes on
    #[command(
        after_help = "The folder is backup.directory of the server's configuration. Keep archives as long as you like: no root
opens their key trees. With the recovery key and the key archive beside them they open again.

Examples:
  pii-vault backup data --wait
  pii-vault --json backup data"
    )]
    Data(Wait),
    /// Write the key archive anew
    #[command(after_help = "Example:
  pii-vault backup keys --wait")]
    Keys(Wait),
    /// Both, in the order that loses nobody: what the server does each night
    #[command(after_help = "Example:
  pii-vault backup all --wait")]
    All(Wait),
    /// The catalogue: data archives, the newest first
    #[command(after_help = "Example:
  pii-vault backup list")]
    List,
    /// Delete archives whose horizon is over, all but the newest whole one
    #[command(after_help = "The server does the same after each backup.

Examples:
  pii-vault backup prune --validate-only
  pii-vault backup prune --yes")]
    Prune {
        /// Only say what would go
        #[arg(long)]
        validate_only: bool,
    },
    Verify(Verify),
}

#[derive(Debug, Args)]
pub struct Wait {
    /// Wait until it is finished, with a bar on a terminal
    #[arg(long)]
    wait: bool,
}

/// Check an archive without a server and without any key of the vault: signature, every file, every page of the database
#[derive(Debug, Args)]
#[command(
    after_help = "With --public-key it must be signed by one of these keys; without, the key's id is shown for you to compare.
Exit code 7 when something is not right.

Examples:
  pii-vault backup verify /backups/20261121T020000Z --public-key vault-keys.txt
  pii-vault backup verify /backups/20261121T020000Z --recovery-key recovery.key
  pii-vault backup verify /backups/20261121T020000Z --json"
)]
pub struct Verify {
    /// Folder of the archive
    dir: PathBuf,
    /// Public key of the vault, or a file with keys; may be repeated
    #[arg(long = "public-key", short = 'k', value_name = "KEY")]
    public_keys: Vec<String>,
    /// Also try everyone's keys: file of a private recovery key, on a machine where it may be; may be repeated
    #[arg(long, value_name = "FILE")]
    recovery_key: Vec<PathBuf>,
    /// Folder of the key archive, if it is not beside the archive
    #[arg(long, value_name = "DIR", requires = "recovery_key")]
    keys: Option<PathBuf>,
}

/// `backup`
pub async fn backup(s: &Session, yes: bool, command: Backup) -> Result<(), CliError> {
    let none = Names::default();
    match command {
        Backup::Data(wait) => create(s, pb::BackupPart::Data, wait).await,
        Backup::Keys(wait) => create(s, pb::BackupPart::Keys, wait).await,
        Backup::All(wait) => create(s, pb::BackupPart::Unspecified, wait).await,
        Backup::List => {
            let answer = s.backups().list_backups(pb::ListBackupsRequest {}).await?.into_inner();
            if s.out.json {
                return s.out.document(&crate::cli::values::wire(&answer));
            }
            s.out.table(&answer.backups, BACKUP, &none)?;
            s.out.line(&format!("in {}, kept {} days", answer.directory, answer.horizon_days))
        }
        Backup::Prune { validate_only } => {
            input::confirm(yes || validate_only, "This deletes archives whose horizon is over")?;
            let answer = s.backups().prune_backups(pb::PruneBackupsRequest { validate_only }).await?.into_inner();
            s.out.list("backups", &Page { items: answer.backups, more: false }, BACKUP, &none)
        }
        Backup::Verify(_) => Err(CliError::Unexpected("this command needs no server".into())),
    }
}

async fn create(s: &Session, part: pb::BackupPart, wait: Wait) -> Result<(), CliError> {
    let request = pb::CreateBackupRequest { part: part as i32, request_id: args::new_id() };
    let answer = s.backups().create_backup(request).await?.into_inner();
    if wait.wait {
        let last = ops::follow(s, &answer.operation, false).await?;
        return s.out.record(&last, ops::OPERATION, &Names::default());
    }
    s.out.record(&answer, &[Col("OPERATION", "operation")], &Names::default())
}

/// Restores the archive into a folder of its own, opens everyone and destroys it.
async fn rehearse(
    from: PathBuf,
    recovery_key: &[PathBuf],
    keys: Option<PathBuf>,
    public_key: &[u8; 32],
) -> Result<DrillReport, CliError> {
    let (mut identities, mut public_keys) = (Vec::new(), vec![*public_key]);
    for path in recovery_key {
        let (more, marks) = read_key_file(path)?;
        identities.extend(more);
        public_keys.extend(marks);
    }
    let request = RestoreRequest { from, identities, keys, public_keys, ..RestoreRequest::default() };
    let scratch = std::env::temp_dir().join(format!("pii-vault-verify-{}", ObjectId::random()));
    let report = drill(request, &scratch, None, Arc::new(SystemClock::new())).await.map_err(unexpected)?;
    match report.holds {
        true => Ok(report),
        false => Err(CliError::CheckFailed("not everyone of this archive opens with the recovery key".into())),
    }
}

/// `backup verify`: needs no server.
pub async fn verify(out: Output, a: Verify) -> Result<(), CliError> {
    let trusted = match a.public_keys.is_empty() {
        true => None,
        false => Some(public_keys(&a.public_keys)?),
    };
    let bar = out.progress(0, "bytes");
    let checked = check_archive(&a.dir, trusted.as_deref(), &mut |bytes| {
        bar.inc(bytes);
        true
    });
    bar.finish_and_clear();
    let ArchiveReport { manifest, public_key, .. } = checked.map_err(|error| match error {
        VerifyError::Manifest(ManifestError::Io { .. }) => CliError::Usage(causes(&error)),
        error => CliError::CheckFailed(format!("{}: {}", a.dir.display(), causes(&error))),
    })?;
    let people = match a.recovery_key.is_empty() {
        true => None,
        false => Some(rehearse(a.dir.clone(), &a.recovery_key, a.keys, &public_key).await?),
    };
    let key = key_id(&public_key);
    let trust = if trusted.is_some() { "one of the keys given" } else { "compare it with the one you published" };
    if out.json {
        return out.document(&json!({
            "valid": true, "key_id": key, "trusted": trusted.is_some(), "made": manifest.made_at.rfc3339(),
            "expires": manifest.expires_at.rfc3339(), "files": manifest.files.len(), "bytes": manifest.bytes(),
            "ledger_entries": manifest.ledger_entries, "schema": manifest.schema,
            "people": people.as_ref().map(|one| serde_json::to_value(&one.tried.tenants).unwrap_or_default()),
        }));
    }
    if let Some(report) = &people {
        let sum = |count: fn(&TenantProof) -> u64| report.tried.tenants.iter().map(count).sum::<u64>();
        out.line(&format!("{} of {} people open with the recovery key", sum(|t| t.living_opened), sum(|t| t.living)))?;
    }
    out.pairs([
        ("archive", "whole: every file is the one that was written, every page of the database is sound".to_owned()),
        ("made", manifest.made_at.rfc3339()),
        ("deleted after", manifest.expires_at.rfc3339()),
        ("files", format!("{} with {} bytes", manifest.files.len(), manifest.bytes())),
        ("ledger", format!("{} entries, chain and signatures right", manifest.ledger_entries)),
        ("signed by", format!("{key} ({trust})")),
    ])
}
