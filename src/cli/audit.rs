//! `audit`: who did what when, and whether the record of it is whole.

use crate::audit::{Checkpoint, HeadProof};
use crate::cli::args::{self, ListArgs, subject_key};
use crate::cli::error::CliError;
use crate::cli::forward::{Forward, forward};
use crate::cli::names::{Names, Noun};
use crate::cli::output::{Col, Output};
use crate::cli::profile::write_private;
use crate::cli::receipt::{ids, public_keys, trim};
use crate::cli::session::Session;
use crate::cli::text::Moment;
use crate::cli::values::wire;
use crate::grpc::pb;
use clap::{Args, Subcommand};
use data_encoding::HEXLOWER;
use serde_json::json;
use std::fs;
use std::path::PathBuf;

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
    /// Hand entries on to where others keep them: standard output, a file, or syslog
    #[command(
        after_help = "Both chains, from the first entry that is kept, then from where the last run ended, each entry at least once. A
receiver that is away is tried again; the vault never waits for it.

Examples:
  pii-vault audit forward --cursor /var/lib/pii-vault-audit/cursor --to syslog://siem.example:601
  pii-vault audit forward --cursor cursor --once > audit.jsonl"
    )]
    Forward(Forward),
    /// Let the server recompute its chains, or check a checkpoint without a server
    #[command(
        after_help = "With --checkpoint nothing is asked of a server: the signature and the Merkle root (or the proof) are checked with
the vault's public key alone. Exit code 7 when something is not right.

Examples:
  pii-vault audit verify
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
}

#[derive(Debug, Args)]
pub struct Verify {
    /// A checkpoint or a proof from `audit checkpoint`, to check without a server
    #[arg(long, value_name = "FILE", requires = "public_keys")]
    checkpoint: Option<PathBuf>,
    /// Public key of the vault, or a file with keys; may be repeated
    #[arg(long = "public-key", short = 'k', value_name = "KEY", requires = "checkpoint")]
    public_keys: Vec<String>,
}

/// `audit verify --checkpoint` needs no server.
pub fn needs_server(command: &Audit) -> bool {
    !matches!(command, Audit::Verify(Verify { checkpoint: Some(_), .. }))
}

/// `audit verify --checkpoint`
pub fn verify_here(out: Output, command: Audit) -> Result<(), CliError> {
    let Audit::Verify(Verify { checkpoint: Some(path), public_keys: texts }) = command else {
        return Err(CliError::Unexpected("this command needs a server".into()));
    };
    let keys = public_keys(&texts)?;
    let bytes = fs::read(&path).map_err(CliError::io(path.display().to_string()))?;
    let (mut at, mut heads) = (crate::clock::Timestamp(0), Vec::new());
    // A checkpoint is one line, a tenant's proofs are a line for each chain.
    for line in trim(&bytes).split(|byte| *byte == b'\n') {
        match (Checkpoint::from_json(line, &keys), HeadProof::from_json(line, &keys)) {
            (Ok(checkpoint), _) => {
                at = checkpoint.at();
                heads.extend_from_slice(checkpoint.heads());
            }
            (Err(_), Ok(proof)) => {
                at = proof.at();
                heads.push(proof.head());
            }
            (Err(e), Err(_)) => {
                let ids = ids(&keys);
                return Err(CliError::CheckFailed(format!("{}: {e} (keys: {ids})", path.display())));
            }
        }
    }
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
pub async fn audit(s: &Session, command: Audit) -> Result<(), CliError> {
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
        Audit::Verify(_) => {
            let answer = s.patient().audit().verify_audit(pb::VerifyAuditRequest { tenant: s.tenant() }).await?;
            let answer = answer.into_inner();
            if s.out.json {
                s.out.document(&wire(&answer))?;
            } else {
                let cols = [
                    Col("CHAIN", "chain"),
                    Col("WHOLE", "valid"),
                    Col("FROM", "first_position"),
                    Col("TO", "last_position"),
                    Col("FIRST BAD", "bad_position|nonzero"),
                    Col("HEAD", "head"),
                ];
                s.out.table(&answer.chains, &cols, &Names::default())?;
            }
            if answer.valid { Ok(()) } else { Err(CliError::CheckFailed("a chain of the audit is not whole".into())) }
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
