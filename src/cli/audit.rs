//! `audit`: who did what when, and whether the record of it is whole.

use crate::audit::{ChainHead, Checkpoint, HeadProof};
use crate::cli::args::{self, ListArgs, subject_key};
use crate::cli::error::CliError;
use crate::cli::extends::{Kept, Shown, check, wire_chain};
use crate::cli::forward::{Forward, forward};
use crate::cli::input::confirm;
use crate::cli::names::{Names, Noun};
use crate::cli::output::{Col, Output, note};
use crate::cli::profile::write_private;
use crate::cli::receipt::{ids, public_keys, trim};
use crate::cli::session::Session;
use crate::cli::text::Moment;
use crate::cli::values::wire;
use crate::clock::{Clock, SystemClock, Timestamp};
use crate::grpc::pb;
use clap::{Args, Subcommand};
use data_encoding::HEXLOWER;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};

const ENTRY: &[Col] = &[
    Col("POSITION", "position"),
    Col("TIME", "time"),
    Col("ACTOR", "actor_id"),
    Col("ACTION", "action"),
    Col("OUTCOME", "outcome"),
    Col("SUBJECT UID", "subject_uid|nonzero"),
    Col("CLASS", "class_id|class"),
    Col("FIELDS", "field_ids|field"),
    Col("PURPOSE", "purpose_id|purpose"),
    Col("RECIPIENT", "recipient_id|recipient"),
    Col("OBJECT", "object"),
];

const ACCESS: &[Col] = &[
    Col("SUBJECT", "subject"),
    Col("SUBJECT UID", "subject_uid"),
    Col("FIELDS", "field_ids|field"),
    Col("PURPOSES", "purpose_ids|purpose"),
    Col("RECIPIENTS", "recipient_ids|recipient"),
    Col("READS", "read_count"),
    Col("FIRST", "first_time"),
    Col("LAST", "last_time"),
];

/// `audit`
#[derive(Debug, Subcommand)]
pub enum Audit {
    /// List entries of one chain, in the order of the chain
    #[command(after_help = "Examples:
  pii-vault audit list --chain reads --subject u-17
  pii-vault audit list --actor 12 --from 2026-11-01 --to 2026-11-02 --limit 0 --json")]
    List {
        /// changes, or reads
        #[arg(long, value_parser = args::audit_chain, default_value = "changes")]
        chain: i32,
        /// Only about this live subject
        #[arg(long)]
        subject: Option<String>,
        /// Only about this number of a subject, as in receipts
        #[arg(long, default_value_t = 0, hide_default_value = true)]
        subject_uid: i64,
        /// Only by this access key (its actor number); may be repeated
        #[arg(long = "actor", value_delimiter = ',')]
        actors: Vec<u64>,
        /// Only with this purpose; may be repeated
        #[arg(long = "purpose", short = 'p', value_delimiter = ',')]
        purposes: Vec<String>,
        /// Only for this recipient; may be repeated
        #[arg(long = "recipient", value_delimiter = ',')]
        recipients: Vec<String>,
        /// Only this action, such as fields.get; may be repeated
        #[arg(long = "action", value_delimiter = ',')]
        actions: Vec<String>,
        /// Only at or after this
        #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
        from: Option<Moment>,
        /// Only before this
        #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
        to: Option<Moment>,
        #[command(flatten)]
        list: ListArgs,
    },
    /// Of which subjects which fields were read, and by whom: what a lost access key is about
    #[command(
        after_help = "`access-key list` shows the actor number of a key. Erased subjects have a number and no id.

Example:
  pii-vault audit access --actor 12 --from 2026-11-01 --to 2026-11-02 --limit 0 --json"
    )]
    Access {
        /// Only by this access key (its actor number); may be repeated
        #[arg(long = "actor", value_delimiter = ',')]
        actors: Vec<u64>,
        /// Only at or after this
        #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
        from: Option<Moment>,
        /// Only before this
        #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
        to: Option<Moment>,
        #[command(flatten)]
        list: ListArgs,
    },
    /// Follow entries as they come
    #[command(after_help = "Example:
  pii-vault audit follow --chain reads --json")]
    Follow {
        /// changes, or reads
        #[arg(long, value_parser = args::audit_chain, default_value = "changes")]
        chain: i32,
        /// First position to show; 0: only what comes from now on
        #[arg(long, default_value_t = 0)]
        start: u64,
    },
    /// Hand entries on to where others keep them: standard output, a file, syslog, or OpenTelemetry
    #[command(
        after_help = "Both chains, from the first entry that is kept, then from where the last run ended, each entry at least once. A
receiver that is away is tried again; the vault never waits for it. A record that a receiver of OTLP rejects stops it.

Examples:
  pii-vault audit forward --cursor /var/lib/pii-vault-audit/cursor --to syslog://siem.example:601
  pii-vault audit forward --cursor /var/lib/pii-vault-audit/otlp --to otlps://collector.example:4317 --to-ca ca.pem
  pii-vault audit forward --cursor cursor --once > audit.jsonl"
    )]
    Forward(Forward),
    /// Let the server recompute its chains, compare them with checkpoints that others kept, or check a checkpoint alone
    #[command(
        after_help = "With --against everything in FILE (a checkpoint, proofs, or the file of an external anchor, a line each) is checked
here with the vault's public key: its signatures, that of a checkpoint which the server signs now, and proofs that this one
goes on from every head in FILE. A history that was replaced, with its checkpoints, does not, whatever the server says. The
server also recomputes its chains. An operator's key compares the chains of all tenants.
With --checkpoint nothing is asked of a server: the signature and the Merkle root (or the proof) are checked with
the vault's public key alone. Exit code 7 when something is not right.

Examples:
  pii-vault audit verify
  pii-vault audit verify --against /mnt/other/anchor.jsonl --public-key vault-keys.txt
  pii-vault audit verify --checkpoint checkpoint.json --public-key vault-keys.txt"
    )]
    Verify(Verify),
    /// Fetch the newest signed checkpoint: a Merkle root over the heads of all chains (whole for operators, proofs of its
    /// own heads for a tenant)
    #[command(
        after_help = "The whole checkpoint is for operator keys; a tenant's key gets the proofs that the heads of its own chains are in
it, one on a line. `audit verify --checkpoint` checks both.

Examples:
  pii-vault audit checkpoint --output checkpoint.json
  pii-vault audit checkpoint --at 2026-11-21"
    )]
    Checkpoint {
        /// The last one of that day, such as 2026-11-21 [default: the newest]
        #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
        at: Option<Moment>,
        /// File for the checkpoint [default: standard output]
        #[arg(long, short = 'o', value_name = "FILE")]
        output: Option<PathBuf>,
        /// File for the proofs that the tenant's heads are in it, a line for each chain
        #[arg(long, value_name = "FILE")]
        proof: Option<PathBuf>,
    },
    /// Remove whole segments of the read audit that are past their retention, with a second operator's word
    #[command(
        after_help = "Entries are removed by the clock (`audit.retention_days`) unless `audit.automatic_prune` is false. A time within
the retention is refused. Without --approval the refusal names the reference that the approval needs; --dry-run tells what
would go. The checkpoint that covers what was removed goes to --output, or to standard output.

Examples:
  pii-vault audit prune --before 2025-01-01 --dry-run
  pii-vault approval request --verb audit --reference 'prune the read audit before 2025-01-01T00:00:00.000Z'
  pii-vault audit prune --before 2025-01-01 --approval 5e0c1d6e-0000-4000-8000-000000000000 --output pruned.json"
    )]
    Prune {
        /// Entries before this go, where their whole segment is older
        #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
        before: Moment,
        /// The approval, granted by another operator
        #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
        approval: String,
        /// File for the checkpoint that covers what was removed
        #[arg(long, short = 'o', value_name = "FILE")]
        output: Option<PathBuf>,
        /// Only tell what would go
        #[arg(long, visible_alias = "dry-run")]
        validate_only: bool,
    },
    /// People whose reading alarms: mark, unmark, list
    #[command(subcommand)]
    Decoy(Decoy),
}

/// `audit decoy`
#[derive(Debug, Subcommand)]
pub enum Decoy {
    /// Mark a made-up person: whoever reads them leaves an alarm. Readers cannot tell
    #[command(
        after_help = "Needs the verb `access`. Make a person as any other first; nobody has a reason to read them.

Example:
  pii-vault audit decoy mark u-9431"
    )]
    Mark {
        /// Who
        subject: String,
    },
    /// End that
    #[command(after_help = "Example:
  pii-vault audit decoy unmark u-9431")]
    Unmark {
        /// Who
        subject: String,
    },
    /// All decoys of the tenant
    #[command(after_help = "Example:
  pii-vault audit decoy list --json")]
    List,
}

#[derive(Debug, Args)]
pub struct Verify {
    /// A checkpoint or a proof from `audit checkpoint`, to check without a server
    #[arg(long, value_name = "FILE", requires = "public_keys")]
    checkpoint: Option<PathBuf>,
    /// Checkpoints or proofs that others kept: the server's chains must go on from them
    #[arg(long, value_name = "FILE", requires = "public_keys", conflicts_with = "checkpoint")]
    against: Option<PathBuf>,
    /// Public key of the vault, or a file with keys; may be repeated
    #[arg(long = "public-key", short = 'k', value_name = "KEY")]
    public_keys: Vec<String>,
}

const VERDICT: &[Col] = &[
    Col("TENANT", "tenant_number"),
    Col("CHAIN", "chain"),
    Col("WHOLE", "valid"),
    Col("FROM", "first_position"),
    Col("TO", "last_position"),
    Col("FIRST BAD", "bad_position|nonzero"),
    Col("COMPARED", "compared|nonzero"),
    Col("PRUNED", "pruned|nonzero"),
    Col("HEAD", "head"),
];

const DECOY: &[Col] =
    &[Col("SUBJECT", "subject"), Col("SUBJECT UID", "subject_uid"), Col("SINCE", "create_time"), Col("BY", "actor_id")];

const PRUNED: &[Col] = &[Col("SEGMENTS", "segment_count"), Col("KEPT SINCE", "kept_time")];

/// Heads in one call: AuditService takes so many.
const HEADS: usize = 50_000;

/// The heads of checkpoints and proofs, a line each, in the order of the file. What an interrupted write left is no line.
fn heads_in(path: &Path, keys: &[[u8; 32]]) -> Result<Kept, CliError> {
    let bytes = fs::read(path).map_err(CliError::io(path.display().to_string()))?;
    let mut kept = Kept { at: Timestamp(0), vault: String::new(), heads: Vec::new() };
    for line in trim(&bytes).split(|byte| *byte == b'\n') {
        match (Checkpoint::from_json(line, keys), HeadProof::from_json(line, keys)) {
            (Ok(checkpoint), _) => kept.add(path, checkpoint.at(), checkpoint.vault(), checkpoint.heads())?,
            (Err(_), Ok(proof)) => kept.add(path, proof.at(), proof.vault(), &[proof.head()])?,
            (Err(_), Err(_))
                if !kept.heads.is_empty() && serde_json::from_slice::<serde_json::Value>(line).is_err() =>
            {
                note(&format!("{}: a line that is cut off was left out", path.display()));
            }
            (Err(e), Err(_)) => {
                let ids = ids(keys);
                return Err(CliError::CheckFailed(format!("{}: {e} (keys: {ids})", path.display())));
            }
        }
    }
    Ok(kept)
}

impl Kept {
    fn add(&mut self, path: &Path, at: Timestamp, vault: &str, heads: &[ChainHead]) -> Result<(), CliError> {
        if !self.vault.is_empty() && self.vault != vault {
            return Err(CliError::CheckFailed(format!("{}: its checkpoints are of two vaults", path.display())));
        }
        self.at = self.at.max(at);
        self.vault = vault.to_owned();
        self.heads.extend_from_slice(heads);
        Ok(())
    }
}

/// `audit verify`, by the server; with heads that others kept.
async fn verify_there(s: &Session, a: Verify) -> Result<(), CliError> {
    let Some(path) = &a.against else {
        let request = pb::VerifyAuditRequest { tenant: s.tenant(), against: Vec::new() };
        let answer = s.patient().audit().verify_audit(request).await?.into_inner();
        match s.out.json {
            true => s.out.document(&wire(&answer))?,
            false => s.out.table(&answer.chains, VERDICT, &Names::default())?,
        }
        return if answer.valid {
            Ok(())
        } else {
            Err(CliError::CheckFailed("a chain of the audit is not whole".into()))
        };
    };
    let keys = public_keys(&a.public_keys)?;
    let mut kept = heads_in(path, &keys)?;
    kept.heads.retain(|one| one.head.seq > 0);
    kept.heads.sort_by_key(|one| (one.tenant, one.chain, one.head.seq));
    kept.heads.dedup();
    if kept.heads.is_empty() {
        return Err(CliError::CheckFailed("there is no head of any chain in it: nothing is proven".into()));
    }
    let wire_head = |one: &ChainHead| pb::AuditHead {
        tenant_number: one.tenant.0,
        chain: wire_chain(one.chain),
        position: one.head.seq,
        hash: one.head.hash.to_vec().into(),
    };
    let (mut valid, mut chains, mut shown) = (true, Vec::new(), Shown::default());
    for part in kept.heads.chunks(HEADS) {
        let request = pb::VerifyAuditRequest { tenant: s.tenant(), against: part.iter().map(wire_head).collect() };
        let answer = s.patient().audit().verify_audit(request).await?.into_inner();
        let part = Kept { heads: part.to_vec(), ..kept.clone() };
        valid &= answer.valid;
        // Where the server says itself that something is wrong, it proves nothing.
        if answer.valid {
            shown.add(check(&part, &answer, &keys, SystemClock::new().now())?);
        }
        chains.extend(answer.chains);
    }
    if s.out.json {
        let answer = pb::VerifyAuditResponse { valid: valid && shown.wrong.is_empty(), chains, extensions: Vec::new() };
        let mut told = wire(&answer);
        told["checked_here"] = shown.json();
        s.out.document(&told)?;
    } else {
        s.out.table(&chains, VERDICT, &Names::default())?;
        s.out.line(&format!(
            "\nChecked here: the audit goes on from {} heads; {} by the server's word alone (signed before there were proofs), {} pruned, \
             {} of other tenants not answered for.",
            shown.proven, shown.by_word, shown.pruned, shown.unanswered
        ))?;
    }
    let failed = |why: String| Err(CliError::CheckFailed(why));
    match shown.wrong.first() {
        _ if !valid => {
            failed("a chain of the audit is not whole, or does not go on from a checkpoint that others kept".into())
        }
        Some(first) => failed(format!("{first}; {} such in all", shown.wrong.len())),
        None if shown.proven + shown.by_word == 0 => {
            failed("none of its heads lies in what is kept of the audit: nothing is proven".into())
        }
        None => Ok(()),
    }
}

/// `audit verify --checkpoint` needs no server.
pub fn needs_server(command: &Audit) -> bool {
    !matches!(command, Audit::Verify(Verify { checkpoint: Some(_), .. }))
}

/// `audit verify --checkpoint`
pub fn verify_here(out: Output, command: Audit) -> Result<(), CliError> {
    let Audit::Verify(Verify { checkpoint: Some(path), public_keys: texts, .. }) = command else {
        return Err(CliError::Unexpected("this command needs a server".into()));
    };
    let keys = public_keys(&texts)?;
    let Kept { at, heads, .. } = heads_in(&path, &keys)?;
    if out.json {
        let heads: Vec<_> = heads
            .iter()
            .map(|h| {
                json!({ "tenant": h.tenant.0, "chain": h.chain.name(),
            "seq": h.head.seq, "hash": HEXLOWER.encode(&h.head.hash) })
            })
            .collect();
        return out.document(&json!({ "valid": true, "at": at.rfc3339(), "heads": heads }));
    }
    out.line(&format!("The signature is right; made at {}.", at.rfc3339()))?;
    let row = |h: &crate::audit::ChainHead| {
        vec![h.tenant.0.to_string(), h.chain.name().to_string(), h.head.seq.to_string(), HEXLOWER.encode(&h.head.hash)]
    };
    out.rows(&["TENANT", "CHAIN", "LAST", "HASH"], heads.iter().map(row).collect())
}

/// `audit`
pub async fn audit(s: &Session, yes: bool, command: Audit) -> Result<(), CliError> {
    match command {
        Audit::List { chain, subject, subject_uid, actors, purposes, recipients, actions, from, to, list } => {
            let request = pb::ListEntriesRequest {
                chain,
                key: subject.as_deref().map(subject_key),
                subject_uid,
                actor_ids: actors,
                purpose_ids: s.numbers(Noun::Purpose, &purposes).await?,
                recipient_ids: s.numbers(Noun::Recipient, &recipients).await?,
                actions,
                start_time: args::at(s, from),
                end_time: args::at(s, to),
                tenant: s.tenant(),
                page_size: 0,
                page_token: String::new(),
                context: None,
            };
            let page = list
                .pages(|page_size, page_token| {
                    let mut client = s.audit();
                    let request = pb::ListEntriesRequest { page_size, page_token, ..request.clone() };
                    async move {
                        let answer = client.list_entries(request).await?.into_inner();
                        Ok((answer.entries, answer.next_page_token))
                    }
                })
                .await?;
            let names = if s.out.json { Names::default() } else { s.names_if_any().await };
            s.out.list("entries", &page, ENTRY, &names)
        }
        Audit::Access { actors, from, to, list } => {
            let request = pb::ReportAccessRequest {
                actor_ids: actors,
                start_time: args::at(s, from),
                end_time: args::at(s, to),
                tenant: s.tenant(),
                page_size: 0,
                page_token: String::new(),
            };
            let page = list
                .pages(|page_size, page_token| {
                    let mut client = s.patient().audit();
                    let request = pb::ReportAccessRequest { page_size, page_token, ..request.clone() };
                    async move {
                        let answer = client.report_access(request).await?.into_inner();
                        Ok((answer.accesses, answer.next_page_token))
                    }
                })
                .await?;
            let names = if s.out.json { Names::default() } else { s.names_if_any().await };
            s.out.list("accesses", &page, ACCESS, &names)
        }
        Audit::Follow { chain, start } => {
            let request =
                pb::FollowEntriesRequest { chain, start_position: start, tenant: s.tenant(), until_now: false };
            let names = if s.out.json { Names::default() } else { s.names_if_any().await };
            let mut stream = s.patient().audit().follow_entries(request).await?.into_inner();
            while let Some(answer) = stream.message().await? {
                if s.out.json {
                    for entry in &answer.entries {
                        s.out.json_line(&wire(entry))?;
                    }
                } else {
                    s.out.lines(&answer.entries, ENTRY, &names)?;
                }
            }
            Ok(())
        }
        Audit::Forward(a) => forward(s, a).await,
        Audit::Verify(a) => verify_there(s, a).await,
        Audit::Prune { before, approval, output, validate_only } => {
            let before_time = args::at(s, Some(before));
            if !validate_only {
                confirm(yes, "Entries of the read audit are removed for good")?;
            }
            let request = pb::PruneAuditRequest { before_time, approval, validate_only };
            let answer = s.patient().audit().prune_audit(request).await?.into_inner();
            if let Some(path) = &output {
                write_private(path, &answer.checkpoint)?;
            }
            s.out.record(&answer, PRUNED, &Names::default())
        }
        Audit::Decoy(Decoy::Mark { subject }) => {
            let request = pb::MarkDecoyRequest { subject, tenant: s.tenant() };
            let answer = s.audit().mark_decoy(request).await?.into_inner();
            s.out.record(&answer.decoy.unwrap_or_default(), DECOY, &Names::default())
        }
        Audit::Decoy(Decoy::Unmark { subject }) => {
            let request = pb::UnmarkDecoyRequest { subject, tenant: s.tenant() };
            let answer = s.audit().unmark_decoy(request).await?.into_inner();
            s.out.record(&answer.decoy.unwrap_or_default(), DECOY, &Names::default())
        }
        Audit::Decoy(Decoy::List) => {
            let request = pb::ListDecoysRequest { tenant: s.tenant() };
            let answer = s.audit().list_decoys(request).await?.into_inner();
            if s.out.json {
                s.out.document(&wire(&answer))
            } else {
                s.out.table(&answer.decoys, DECOY, &Names::default())
            }
        }
        Audit::Checkpoint { at, output, proof } => {
            let request = pb::GetCheckpointRequest { tenant: s.tenant(), time: args::at(s, at) };
            let answer = s.audit().get_checkpoint(request).await?.into_inner();
            let proofs = answer.proofs.join(&b'\n');
            if let Some(path) = &proof {
                write_private(path, &proofs)?;
            }
            // The whole checkpoint is for operators; a tenant's key gets the proofs of its own heads.
            let document = if answer.checkpoint.is_empty() { &proofs[..] } else { &answer.checkpoint[..] };
            match output {
                Some(path) => write_private(&path, document),
                None => s.out.raw(document).and_then(|()| s.out.raw(b"\n")),
            }
        }
    }
}
