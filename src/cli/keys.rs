//! `keys`: keys as objects to look after, their rotations and the signed records of these.

use std::fs;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use crate::cli::args::{self, ListArgs, WriteArgs};
use crate::cli::error::CliError;
use crate::cli::input;
use crate::cli::names::{Names, Noun};
use crate::cli::ops::{OPERATION, follow};
use crate::cli::output::{Col, Output, Page};
use crate::cli::profile::write_private;
use crate::cli::receipt::{public_keys, trim};
use crate::cli::session::Session;
use crate::cli::text::Moment;
use crate::cli::values::wire;
use crate::grpc::pb;
use crate::receipt::rotation::RotationRecord;

/// `keys`
#[derive(Debug, Subcommand)]
pub enum Keys {
    /// Kind, version, age and period of keys, how much they sealed and what is left; no key is ever shown
    #[command(after_help = "Examples:
  pii-vault keys status
  pii-vault --tenant acme keys status --kind index")]
    Status {
        /// Only this kind; may be repeated: root, tenant-root, tree, index, digest, data, expiry, signing, ...
        #[arg(long = "kind", value_parser = args::key_kind)]
        kinds: Vec<i32>,
        /// Also tell where the root key comes from and how the keeper is (operator key)
        #[arg(long)]
        seal: bool,
    },
    /// Begin the rotation of a key; an operation finishes it
    #[command(
        after_help = "root goes over to the key that root_kek_next in the server's configuration names; take that into root_kek afterwards. root,
signing, access-key-pepper and page-token are the vault's own: operator key, no --tenant. After a rotation of signing write the
new public key (`pii-vault receipt keys`) beside the recovery key. After a rotation of data make a backup: older ones need the key
archive beside them. After a rotation of access-key-pepper issue every access key anew, operators' keys first.

Examples:
  pii-vault keys rotate root --wait
  pii-vault keys rotate signing
  pii-vault --tenant acme keys rotate tenant-root
  pii-vault --tenant acme keys rotate tree --wait
  pii-vault --tenant acme keys rotate data --class account --per-second 500
  pii-vault --tenant acme keys rotate data --subject u-17
  pii-vault keys rotate index --wait
  pii-vault keys rotate password-pepper --reset-at +180d
  pii-vault keys rotate access-key-pepper --revoke-at +30d
  pii-vault keys rotate page-token"
    )]
    Rotate(Rotate),
    /// Go over to the root key of another provider, online: the one that root_kek_next names
    #[command(
        after_help = "Write root_kek_next into the server's configuration first. It is read again for this call, no restart is needed; take it
into root_kek afterwards.

Examples:
  pii-vault keys move --to transit --wait
  pii-vault keys move --to aws-kms --wait
  pii-vault keys move --to credential --wait"
    )]
    Move {
        /// Kind of the provider: file, environment, credential, passphrase, transit, pkcs11, aws-kms
        #[arg(long, value_name = "PROVIDER")]
        to: String,
        /// Wait until it is finished
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// Do what is to be done about a key that somebody else may know, and tell what cannot be undone
    #[command(
        after_help = "KIND: root, tenant-root, data, index, password-pepper, access-key-pepper, page-token, signing, or access-key with its name. Nothing is changed with
--validate-only. `pii-vault audit access` lists who was read.

Examples:
  pii-vault keys compromised access-key 7Q3K2M --since 2026-11-20T08:00:00Z
  pii-vault keys compromised root --since -2d --validate-only
  pii-vault --tenant acme keys compromised data --class account"
    )]
    Compromised(Compromised),
    /// Split a passphrase into shares, of which any THRESHOLD bring it back; needs no server
    #[command(
        after_help = "Writes share-1.share, share-2.share, ... of mode 600 into a new directory: one for each holder, none on the vault's machine. For a
start the holders put theirs into the directory that root_kek = { provider = \"shares\", directory = ... } names; the start waits
until there are enough. The passphrase is read from standard input, or from a file.

Example:
  pii-vault keys split --shares 5 --threshold 3 --output shares < passphrase"
    )]
    Split(Split),
    /// Rotations that ended, with their signed records
    #[command(after_help = "Examples:
  pii-vault keys records
  pii-vault --tenant acme keys records --output acme-rotations.jsonl")]
    Records {
        /// File to write, one signed record a line
        #[arg(long, short = 'o', value_name = "FILE")]
        output: Option<PathBuf>,
        #[command(flatten)]
        list: ListArgs,
    },
    /// Check records of rotations with the vault's public keys alone, without a server
    #[command(
        after_help = "The keys: as `pii-vault receipt verify` takes them; `pii-vault receipt keys --output FILE` makes a file. Exit code 7 when one
of them is not right.

Example:
  pii-vault keys verify acme-rotations.jsonl --public-key vault-keys.txt"
    )]
    Verify(Verify),
}

/// `keys rotate`
#[derive(Debug, Args)]
pub struct Rotate {
    /// root, tenant-root, tree, data, index, signing, password-pepper, access-key-pepper, page-token
    #[arg(value_parser = args::key_kind)]
    kind: i32,
    /// data: only this class, by name or number; may be repeated
    #[arg(long = "class", value_name = "CLASS")]
    classes: Vec<String>,
    /// data: only this subject
    #[arg(long, value_name = "SUBJECT")]
    subject: Option<String>,
    /// data: most subjects a second; 0: as fast as it goes
    #[arg(long, value_name = "N", default_value_t = 0)]
    per_second: u32,
    /// password-pepper: when passwords still under the former pepper must be set anew [default: never]
    #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
    reset_at: Option<Moment>,
    /// access-key-pepper: when access keys still under the former pepper are revoked [default: never]
    #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
    revoke_at: Option<Moment>,
    /// Wait until it is finished
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    write: WriteArgs,
}

/// `keys split`
#[derive(Debug, Args)]
pub struct Split {
    /// How many shares, at most 32
    #[arg(long, value_name = "N")]
    shares: u8,
    /// How many of them bring the passphrase back, at least 2
    #[arg(long, value_name = "K")]
    threshold: u8,
    /// Directory to make, for the shares
    #[arg(long, short = 'o', value_name = "DIR")]
    output: PathBuf,
    /// File with the passphrase [default: standard input]
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

/// `keys compromised`
#[derive(Debug, Args)]
pub struct Compromised {
    /// root, tenant-root, data, index, password-pepper, access-key-pepper, page-token, signing, access-key
    kind: String,
    /// access-key: its name
    access_key: Option<String>,
    /// Since when it may be known [default: since ever]
    #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
    since: Option<Moment>,
    /// data: only this class, by name or number; may be repeated
    #[arg(long = "class", value_name = "CLASS")]
    classes: Vec<String>,
    /// data: only this subject
    #[arg(long, value_name = "SUBJECT")]
    subject: Option<String>,
    /// Tell only, change nothing
    #[arg(long, visible_alias = "dry-run")]
    validate_only: bool,
}

/// `keys verify`
#[derive(Debug, Args)]
pub struct Verify {
    /// One record, or one a line
    file: PathBuf,
    /// Public key of the vault, or a file with keys; may be repeated
    #[arg(long = "public-key", short = 'k', value_name = "KEY", required = true)]
    public_keys: Vec<String>,
}

const KEY: &[Col] = &[
    Col("KIND", "kind"),
    Col("VERSION", "version|nonzero"),
    Col("STATE", "state"),
    Col("MADE", "create_time"),
    Col("PERIOD (DAYS)", "period_days|nonzero"),
    Col("ROTATE BY", "rotate_by_time"),
    Col("SEALS", "seal_count|nonzero"),
    Col("KEYS", "key_count"),
    Col("LEFT", "left_count|nonzero"),
];

/// `keys`
pub async fn keys(s: &Session, yes: bool, command: Keys) -> Result<(), CliError> {
    match command {
        Keys::Status { kinds, seal } => status(s, kinds, seal).await,
        Keys::Rotate(rotate) => {
            let class_ids = s.numbers(Noun::Class, &rotate.classes).await?;
            let key = |subject| pb::SubjectKey { key: Some(pb::subject_key::Key::Subject(subject)) };
            let request = pb::RotateKeysRequest {
                kind: rotate.kind,
                class_ids,
                key: rotate.subject.map(key),
                per_second: rotate.per_second,
                reset_time: args::at(s, rotate.reset_at),
                revoke_time: args::at(s, rotate.revoke_at),
                ..Default::default()
            };
            begin(s, yes, request, &rotate.write, rotate.wait).await
        }
        Keys::Move { to, wait, write } => {
            let kind = pb::KeyKind::Root as i32;
            begin(s, yes, pb::RotateKeysRequest { kind, provider: to, ..Default::default() }, &write, wait).await
        }
        Keys::Compromised(args) => compromised(s, yes, args).await,
        Keys::Records { output, list } => records(s, output, list).await,
        Keys::Split(args) => split(s.out, args),
        Keys::Verify(args) => verify(s.out, args),
    }
}

async fn begin(
    s: &Session,
    yes: bool,
    request: pb::RotateKeysRequest,
    write: &WriteArgs,
    wait: bool,
) -> Result<(), CliError> {
    input::confirm(yes || write.validate_only, "This begins the rotation of a key; it cannot be taken back")?;
    let validate_only = write.validate_only;
    let request = pb::RotateKeysRequest { tenant: s.tenant(), request_id: write.id(s), validate_only, ..request };
    let answer = s.keys().rotate_keys(request).await?.into_inner();
    if wait && !answer.operation.is_empty() {
        let last = follow(s, &answer.operation, false).await?;
        return s.out.record(&last, OPERATION, &Names::default());
    }
    if s.out.json {
        return s.out.document(&json!({ "operation": answer.operation }));
    }
    s.out.record(&answer, &[Col("OPERATION", "operation")], &Names::default())
}

async fn compromised(s: &Session, yes: bool, a: Compromised) -> Result<(), CliError> {
    let (kind, access_key) = match (a.kind.as_str(), a.access_key) {
        ("access-key", Some(key)) => (0, key),
        ("access-key", None) => return Err(CliError::Usage("access-key: say which, by its name".into())),
        (kind, None) => (args::key_kind(kind).map_err(CliError::Usage)?, String::new()),
        (_, Some(_)) => return Err(CliError::Usage("only access-key takes a name".into())),
    };
    input::confirm(yes || a.validate_only, "This revokes or rotates keys at once; it cannot be taken back")?;
    let key = |subject| pb::SubjectKey { key: Some(pb::subject_key::Key::Subject(subject)) };
    let request = pb::RespondToCompromiseRequest {
        kind,
        access_key,
        tenant: s.tenant(),
        since: args::at(s, a.since),
        class_ids: s.numbers(Noun::Class, &a.classes).await?,
        key: a.subject.map(key),
        validate_only: a.validate_only,
    };
    let answer = s.patient().keys().respond_to_compromise(request).await?.into_inner();
    if s.out.json {
        return s.out.document(&wire(&answer));
    }
    let cols =
        [Col("STEP", "step"), Col("TENANT", "tenant"), Col("OPERATION", "operation"), Col("BY HAND", "by_hand|mark")];
    s.out.table(&answer.steps, &cols, &Names::default())?;
    let lists = [
        ("What cannot be undone", &answer.cannot_undo),
        ("Recipients who may have to be told", &answer.recipients),
        ("Archives from that time, to be destroyed by hand when they are not needed", &answer.archives),
    ];
    for (head, lines) in lists.into_iter().filter(|(_, lines)| !lines.is_empty()) {
        s.out.line(&format!("\n{head}:"))?;
        for line in lines {
            s.out.line(&format!("  {}", crate::cli::text::printable(line)))?;
        }
    }
    let pruned = if answer.complete { "" } else { "; entries of that time were pruned, there may have been more" };
    s.out.line(&format!("\nRead since: {} subjects in {} calls{pruned}.", answer.subjects_read, answer.calls))
}

async fn status(s: &Session, kinds: Vec<i32>, seal: bool) -> Result<(), CliError> {
    let status = match seal {
        true => Some(s.keys().get_seal_status(pb::GetSealStatusRequest {}).await?.into_inner()),
        false => None,
    };
    let answer = s.keys().list_keys(pb::ListKeysRequest { tenant: s.tenant(), kinds }).await?.into_inner();
    if s.out.json {
        let mut told = wire(&answer);
        if let Some(status) = &status {
            told["seal"] = wire(status);
        }
        return s.out.document(&told);
    }
    if let Some(status) = &status {
        let cols = [
            Col("SEALED", "sealed"),
            Col("ROOT KEY FROM", "root_provider"),
            Col("KEEPER", "keeper"),
            Col("ASSURANCE", "assurance"),
            Col("REPLICAS", "replicas.name"),
            Col("AVAILABLE", "replicas.available"),
            Col("AWAY BECAUSE", "replicas.reason"),
            Col("COVERED BY ARCHIVES", "covered"),
            Col("REFUSED TENANTS", "refused.tenant"),
            Col("BECAUSE", "refused.state"),
        ];
        s.out.record(status, &cols, &Names::default())?;
        s.out.line("")?;
    }
    s.out.list("keys", &Page { items: answer.keys, more: false }, KEY, &Names::default())
}

async fn records(s: &Session, output: Option<PathBuf>, list: ListArgs) -> Result<(), CliError> {
    let tenant = s.tenant();
    let page = list
        .pages(|page_size, page_token| {
            let mut client = s.keys();
            let request = pb::ListRotationsRequest { tenant: tenant.clone(), page_size, page_token };
            async move {
                let answer = client.list_rotations(request).await?.into_inner();
                Ok((answer.rotations, answer.next_page_token))
            }
        })
        .await?;
    if let Some(path) = output {
        let mut lines = Vec::new();
        for one in &page.items {
            lines.extend_from_slice(&one.record);
            lines.push(b'\n');
        }
        return write_private(&path, &lines);
    }
    let read = |one: &pb::Rotation| serde_json::from_slice::<serde_json::Value>(&one.record).unwrap_or_default();
    if s.out.json {
        let all: Vec<_> = page.items.iter().map(read).collect();
        return s.out.document(&json!({ "rotations": all }));
    }
    let rows = page.items.iter().map(|one| {
        let signed = read(one);
        let text = |path: &str| match signed.pointer(path) {
            Some(serde_json::Value::String(text)) => crate::cli::text::printable(text),
            Some(other) => other.to_string(),
            None => String::new(),
        };
        let parts = ["kind", "scope", "from/number", "to/number", "moved", "lost", "fate", "ended_at", "operation"];
        parts.iter().map(|part| text(&format!("/body/{part}"))).collect()
    });
    let heads = ["KIND", "ONLY", "OLD", "NEW", "MOVED", "LOST", "OLD IS", "ENDED", "OPERATION"];
    s.out.rows(&heads, rows.collect())
}

/// `keys split`: needs no server.
pub fn split(out: Output, a: Split) -> Result<(), CliError> {
    let read = match &a.passphrase_file {
        Some(path) => zeroize::Zeroizing::new(fs::read(path).map_err(CliError::io(path.display().to_string()))?),
        None => input::whole("the passphrase")?,
    };
    let text = read.strip_suffix(b"\n").unwrap_or(&read);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    if text.is_empty() {
        return Err(CliError::Usage("a passphrase is not empty".into()));
    }
    let shares =
        crate::keyring::root::shares::split(text, a.threshold, a.shares).map_err(|e| CliError::Usage(e.to_string()))?;
    fs::create_dir(&a.output).map_err(CliError::io(a.output.display().to_string()))?;
    let mut files = Vec::new();
    for (number, share) in shares.iter().enumerate() {
        let path = a.output.join(format!("share-{}.share", number + 1));
        write_private(&path, share.as_bytes())?;
        files.push(path.display().to_string());
    }
    if out.json {
        return out.document(&json!({ "threshold": a.threshold, "files": files }));
    }
    for file in files {
        out.line(&file)?;
    }
    out.line(&format!(
        "Any {} of them bring the passphrase back. Give each to another holder and delete it here.",
        a.threshold
    ))
}

/// `keys verify`: needs no server.
pub fn verify(out: Output, a: Verify) -> Result<(), CliError> {
    let keys = public_keys(&a.public_keys)?;
    let bytes = fs::read(&a.file).map_err(CliError::io(a.file.display().to_string()))?;
    let mut verified = Vec::new();
    for (number, line) in trim(&bytes).split(|byte| *byte == b'\n').enumerate() {
        let wrong = |e| CliError::CheckFailed(format!("the record in line {} is not right: {e}", number + 1));
        verified.push(RotationRecord::verify(trim(line), &keys).map_err(wrong)?);
    }
    if out.json {
        let all: Vec<_> = verified.iter().map(|one| json!({ "key_id": one.key_id, "record": one.record })).collect();
        return out.document(&json!({ "valid": true, "rotations": all }));
    }
    for one in verified {
        out.line(&format!("The signature is right (key {}).", one.key_id))?;
        let text: Vec<String> = one.record.render().lines().map(crate::cli::text::printable).collect();
        out.line(&text.join("\n"))?;
        out.line("")?;
    }
    Ok(())
}
