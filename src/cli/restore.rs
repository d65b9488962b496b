//! `pii-vault restore`: everyone living of an archive comes back, nobody erased since does.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use zeroize::Zeroizing;

use crate::cli::error::CliError;
use crate::cli::output::Output;
use crate::cli::server::{ConfigArgs, unexpected};
use crate::cli::text::printable;
use crate::clock::{Clock, SystemClock};
use crate::crypto::recovery::RecoveryIdentity;
use crate::recovery::restore::{Report, RestoreError};
use crate::server::restore::{RestoreFailed, RestoreRequest, restore};

/// Brings everyone living back from an archive, and nobody who was erased since
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pii-vault restore --config pii-vault.toml --from backups --recovery-key recovery.key --dry-run
  pii-vault restore --config pii-vault.toml --from backups --recovery-key recovery.key --ledger-through 512
  pii-vault restore --config pii-vault.toml --from /mnt/archives/20261120T020000Z --live

DIR is one data archive, a folder of archives (the newest is taken) or a copy of a data directory. With --recovery-key the
keys come from the key archive beside it; with --live from the tree and keeper that are still there. What was erased since
is erased again, from the ledger and from --receipts. Everything is put together in a folder of its own first; the live
files are replaced in one last step, and what they were stays in `replaced` in the data directory.

Where the keeper is lost nothing says where the ledger ends: --ledger-through N is your word that nothing was decided after
its entry N. Without it every access key stays stopped until `pii-vault recovery confirm`. Scheduled erasures wait for that
in any case. The server must not be running.")]
pub struct Restore {
    #[command(flatten)]
    config: ConfigArgs,
    /// Archive, folder of archives, or copy of a data directory
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// File of a private recovery key; may be repeated
    #[arg(long, value_name = "FILE", required_unless_present = "live")]
    recovery_key: Vec<PathBuf>,
    /// Use the tree and the keeper that are still there
    #[arg(long, conflicts_with = "recovery_key")]
    live: bool,
    /// Folder of the key archive, if it is not beside the data
    #[arg(long, value_name = "DIR")]
    keys: Option<PathBuf>,
    /// Public signing key of the vault in hexadecimal, or a file of them; a recovery key's file has it
    #[arg(long, value_name = "KEY|FILE")]
    public_key: Vec<String>,
    /// Another copy of the ledger; the longest counts
    #[arg(long, value_name = "FILE")]
    ledger: Vec<PathBuf>,
    /// The ledger ends there: nothing was decided after entry N
    #[arg(long, value_name = "N")]
    ledger_through: Option<u64>,
    /// Receipts of erasures that the ledger may not have: files, or folders with *.json
    #[arg(long, value_name = "PATH")]
    receipts: Vec<PathBuf>,
    /// Go on although keys of living subjects are missing: they are lost
    #[arg(long)]
    accept_lost: bool,
    /// Do not look at the keeper that is there
    #[arg(long, conflicts_with = "live")]
    ignore_keeper: bool,
    /// Change nothing: say what would come back, what is erased again, what is lost and why
    #[arg(long)]
    dry_run: bool,
}

/// What a file of a recovery key holds: private keys, and the vault's public ones in its comments.
pub fn read_key_file(path: &PathBuf) -> Result<(Vec<RecoveryIdentity>, Vec<[u8; 32]>), CliError> {
    let text = std::fs::read_to_string(path).map_err(CliError::io(path.display().to_string()))?;
    let text = Zeroizing::new(text);
    let identities =
        RecoveryIdentity::parse_file(&text).map_err(|error| CliError::Usage(format!("{}: {error}", path.display())))?;
    let marks = text.lines().filter_map(|line| line.strip_prefix("# public signing key:"));
    Ok((identities, marks.filter_map(hex_key).collect()))
}

fn hex_key(text: &str) -> Option<[u8; 32]> {
    data_encoding::HEXLOWER_PERMISSIVE.decode(text.trim().as_bytes()).ok()?.try_into().ok()
}

pub fn public_keys(texts: &[String]) -> Result<Vec<[u8; 32]>, CliError> {
    let mut keys = Vec::new();
    for text in texts {
        match hex_key(text) {
            Some(key) => keys.push(key),
            None => {
                let file = std::fs::read_to_string(text).map_err(CliError::io(text.clone()))?;
                let lines = file.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
                let read: Option<Vec<[u8; 32]>> = lines.map(hex_key).collect();
                keys.extend(read.ok_or_else(|| CliError::Usage(format!("{text} holds no public keys")))?);
            }
        }
    }
    Ok(keys)
}

pub async fn restore_vault(out: Output, args: Restore) -> Result<(), CliError> {
    let config = args.config.load()?;
    let (mut identities, mut public) = (Vec::new(), public_keys(&args.public_key)?);
    for path in &args.recovery_key {
        let (more, marks) = read_key_file(path)?;
        identities.extend(more);
        public.extend(marks);
    }
    let request = RestoreRequest {
        from: args.from,
        identities,
        keys: args.keys,
        public_keys: public,
        ledgers: args.ledger,
        through: args.ledger_through,
        receipts: args.receipts,
        accept_lost: args.accept_lost,
        ignore_keeper: args.ignore_keeper,
        dry_run: args.dry_run,
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let report = restore(&config, request, clock, Box::new(|_| true)).await.map_err(failed)?;
    if out.json {
        return out.document(&serde_json::to_value(&report).map_err(unexpected)?);
    }
    tell(out, &report)
}

fn failed(error: RestoreFailed) -> CliError {
    match error {
        RestoreFailed::Restore(RestoreError::Lost { .. }) => CliError::CheckFailed(error.to_string()),
        error => unexpected(error),
    }
}

fn tell(out: Output, report: &Report) -> Result<(), CliError> {
    out.line(&format!("data      {}", report.data))?;
    out.line(&format!("keys      {}", report.keys))?;
    let until = report.ledger_until.map_or("no entry".to_owned(), |at| format!("the last of {}", at.rfc3339()));
    out.line(&format!("ledger    {} entries, {until}", report.ledger_entries))?;
    if !report.tail_known {
        out.line(&format!(
            "          nothing says that it ends there: what was decided later is not known. If nothing was, add\n\
             {:10}--ledger-through {}; hand in receipts of later erasures with --receipts",
            "", report.ledger_entries
        ))?;
    }
    if report.receipts_new + report.receipts_of_many > 0 {
        out.line(&format!(
            "receipts  {} classes that the ledger did not have; {} receipts about several subjects name nobody",
            report.receipts_new, report.receipts_of_many
        ))?;
    }
    let rows = report.tenants.iter().map(|tenant| {
        let number = |n: u64| if tenant.erased { "-".to_owned() } else { n.to_string() };
        let why = if tenant.erased { "the tenant was erased".to_owned() } else { tenant.why.join("; ") };
        vec![
            tenant.tenant.clone(),
            number(tenant.subjects),
            number(tenant.keys_opened),
            number(tenant.erased_again),
            number(tenant.lost),
            why,
        ]
    });
    out.rows(&["TENANT", "SUBJECTS", "KEYS OPENED", "ERASED AGAIN", "LOST", "WHY"], rows.collect())?;
    if report.dry_run {
        return out.line("Nothing was changed.");
    }
    let again = &report.decided_again;
    out.line(&format!(
        "again     {} holds placed, {} released, {} access keys revoked, {} roles emptied, {} erasures scheduled, {} \
         cancelled, {} refusals of people",
        again.holds_placed,
        again.holds_released,
        again.keys_revoked,
        again.roles_emptied,
        again.schedules_placed,
        again.schedules_cancelled,
        again.refusals
    ))?;
    for role in &again.roles {
        out.line(&format!(
            "role      {role} allows nothing: it was narrowed since, define it again",
            role = printable(role)
        ))?;
    }
    out.line(&format!("public    {}", report.public_key))?;
    out.line("")?;
    out.line("Restored. Add the public key above to those that you publish and to the file of the recovery key.")?;
    if again.keys_stopped > 0 {
        out.line(&format!("{} access keys are stopped until `pii-vault recovery confirm`.", again.keys_stopped))?;
    }
    out.line("Scheduled erasures wait for `pii-vault recovery confirm`.")
}
