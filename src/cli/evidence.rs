//! `evidence`: a bundle for an auditor, and its check on a machine that knows nothing but the vault's public key.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufReader, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use crate::cli::args;
use crate::cli::error::CliError;
use crate::cli::output::{Output, note};
use crate::cli::receipt::{ids, public_keys, trim};
use crate::cli::session::Session;
use crate::cli::text::{Moment, printable};
use crate::evidence::{self, LIMITS, MANIFEST, MAX_FILES, Part, Verdict};
use crate::grpc::pb;

/// Folders of a bundle; none is in another.
const FOLDERS: [&str; 3] = ["audit", "drills", "policy"];

/// `evidence`
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "A folder with everything that shows how a tenant's data was kept in a period: policies, the report, receipts of erasures,
records of rotations, inventory of keys, checkpoints of the audit with proofs that each extends the one before, settings, list
of software, and index.html for reading. No value of a person is in it. A key of the tenant with the verb audit is enough; with
an operator's key (--tenant) also the vault's own keys, rotations and settings are in it, and with --drills the reports of
restores that were tried, which name every tenant. The folder must not exist.

Give the auditor the folder and, by another way, the public key (`pii-vault receipt keys --output vault-keys.txt`).

Examples:
  pii-vault evidence --from 2026-10-01 --to 2026-11-01 --output october
  pii-vault --tenant acme evidence --from 2026-01-01 --drills --output acme-2026
  pii-vault evidence --drill backups/drills/20261121T023000Z.json --output evidence
  pii-vault evidence verify october --public-key vault-keys.txt"
)]
pub struct Evidence {
    #[command(subcommand)]
    command: Option<Command>,
    /// The period: at or after this [default: since the tenant was made]
    #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
    from: Option<Moment>,
    /// Before this [default: until now]
    #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
    to: Option<Moment>,
    /// Folder to make
    #[arg(long, short = 'o', value_name = "DIR", required = true)]
    output: Option<PathBuf>,
    /// Signed report of a drill in the period; may be repeated
    #[arg(long = "drill", value_name = "FILE")]
    drill_files: Vec<PathBuf>,
    /// Also the reports of drills that the server keeps (operator key): they name every tenant
    #[arg(long)]
    drills: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check a bundle with public keys alone; needs no server
    #[command(
        after_help = "Checks the signed manifest, that each file is there with its bytes and none is too many, every document's own signature,
the chain of signing keys, the proofs between checkpoints, and that all of it is about one vault, tenant and period. Prints
what was checked, and what that does not prove. Exit code 7 when something is not right.

The key: as `receipt verify` takes it, got by another way than the bundle. The newest one is best; an older one is enough where
the chain of signing keys leads from it to the one that signed.

Example:
  pii-vault evidence verify october --public-key vault-keys.txt"
    )]
    Verify(Verify),
}

/// `evidence verify`
#[derive(Debug, Args)]
pub struct Verify {
    /// Folder of the bundle
    dir: PathBuf,
    /// Public key of the vault, or a file with keys; may be repeated
    #[arg(long = "public-key", short = 'k', value_name = "KEY", required = true)]
    public_keys: Vec<String>,
}

impl Evidence {
    /// `evidence verify`, which needs no server.
    pub fn offline(&self) -> Option<&Verify> {
        self.command.as_ref().map(|Command::Verify(verify)| verify)
    }
}

/// The folder while it is written: under another name until it is whole.
struct Folder {
    path: PathBuf,
    part: PathBuf,
    open: Option<(PathBuf, fs::File)>,
    files: usize,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> CliError {
    CliError::io(path.display().to_string())
}

impl Folder {
    /// Where it is written first; neither may be there.
    fn part_of(path: &Path) -> Result<PathBuf, CliError> {
        let mut name =
            path.file_name().ok_or_else(|| CliError::Usage("--output: not a folder's name".into()))?.to_owned();
        name.push(".part");
        let part = path.with_file_name(name);
        for path in [path, &part] {
            if path.symlink_metadata().is_ok() {
                return Err(CliError::Usage(format!(
                    "{}: it is there already; nothing is overwritten",
                    path.display()
                )));
            }
        }
        Ok(part)
    }

    fn new(path: &Path) -> Result<Self, CliError> {
        let part = Self::part_of(path)?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&part).map_err(at(&part))?;
        Ok(Folder { path: path.to_owned(), part, open: None, files: 0 })
    }

    fn begin(&mut self, name: &str) -> Result<(), CliError> {
        self.close()?;
        self.files += 1;
        let known = name == MANIFEST || Part::of(name).is_some();
        if !known || self.files > MAX_FILES {
            return Err(CliError::Unexpected("the server named a file that no bundle has".into()));
        }
        let path = self.part.join(name);
        if let Some(parent) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(at(parent))?;
        }
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(at(&path))?;
        self.open = Some((path, file));
        Ok(())
    }

    fn write(&mut self, data: &[u8]) -> Result<(), CliError> {
        match &mut self.open {
            Some((path, file)) => file.write_all(data).map_err(at(path)),
            None if data.is_empty() => Ok(()),
            None => Err(CliError::Unexpected("the server sent bytes of no file".into())),
        }
    }

    fn close(&mut self) -> Result<(), CliError> {
        match self.open.take() {
            Some((path, file)) => file.sync_all().map_err(at(&path)),
            None => Ok(()),
        }
    }

    fn finish(&mut self, manifest: &[u8]) -> Result<(), CliError> {
        self.begin(MANIFEST)?;
        self.write(manifest)?;
        self.close()?;
        fs::rename(&self.part, &self.path).map_err(at(&self.path))
    }
}

/// `evidence`
pub async fn evidence(s: &Session, a: Evidence) -> Result<(), CliError> {
    let output = a.output.ok_or_else(|| CliError::Usage("--output: say where".into()))?;
    Folder::part_of(&output)?;
    let mut drills = Vec::new();
    for path in &a.drill_files {
        drills.push(trim(&fs::read(path).map_err(at(path))?).to_vec().into());
    }
    let request = pb::ExportEvidenceRequest {
        tenant: s.tenant(),
        start_time: args::at(s, a.from),
        end_time: args::at(s, a.to),
        drills,
        stored_drills: a.drills,
    };
    let mut stream = s.patient().evidence().export_evidence(request).await?.into_inner();
    let mut folder = Folder::new(&output)?;
    let written = async {
        while let Some(piece) = stream.message().await? {
            if !piece.manifest.is_empty() {
                return folder.finish(&piece.manifest);
            }
            if !piece.path.is_empty() {
                folder.begin(&piece.path)?;
            }
            folder.write(&piece.data)?;
        }
        Err(CliError::Unexpected("the stream ended before the bundle did".into()))
    };
    if let Err(error) = written.await {
        let _ = fs::remove_dir_all(&folder.part);
        return Err(error);
    }
    let keys = s.erasures().get_receipt_keys(pb::GetReceiptKeysRequest {}).await?.into_inner().keys;
    let keys: Vec<[u8; 32]> = keys.iter().filter_map(|key| key.public_key.as_ref().try_into().ok()).collect();
    let verdict = look(&output, &keys)?;
    if s.out.json {
        return s.out.document(&json!({ "output": output.display().to_string(), "bundle": verdict }));
    }
    note(&format!(
        "it verifies with the server's key {}; read {}",
        verdict.key_id,
        output.join("index.html").display()
    ));
    s.out.line(&format!("{}: {} files", output.display(), folder.files))
}

/// Every file below a folder, by its path in it. Nothing but folders and plain files may be there.
fn list(dir: &Path, prefix: &str, names: &mut BTreeSet<String>) -> Result<(), CliError> {
    let refused = |path: &Path, why: &str| CliError::CheckFailed(format!("{}: {why}", path.display()));
    for entry in fs::read_dir(dir).map_err(at(dir))? {
        let entry = entry.map_err(at(dir))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(at(&path))?;
        let name = entry.file_name().into_string().map_err(|_| refused(&path, "its name is no text"))?;
        let name = format!("{prefix}{name}");
        match (kind.is_dir(), kind.is_file()) {
            (true, _) if prefix.is_empty() && FOLDERS.contains(&name.as_str()) => {
                list(&path, &format!("{name}/"), names)?
            }
            (false, true) if names.len() <= MAX_FILES => drop(names.insert(name)),
            _ => return Err(refused(&path, "a bundle has nothing like it")),
        }
    }
    Ok(())
}

/// Checks the bundle in a folder.
fn look(dir: &Path, keys: &[[u8; 32]]) -> Result<Verdict, CliError> {
    if !dir.symlink_metadata().map_err(at(dir))?.is_dir() {
        return Err(CliError::CheckFailed(format!("{}: not a folder", dir.display())));
    }
    let mut names = BTreeSet::new();
    list(dir, "", &mut names)?;
    let open = |name: &str| {
        let flags = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
        let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(dir.join(name))?;
        Ok(BufReader::with_capacity(64 << 10, file))
    };
    evidence::verify(&names, open, keys)
        .map_err(|refused| CliError::CheckFailed(format!("the bundle is not right: {refused} (keys: {})", ids(keys))))
}

/// `evidence verify`
pub fn verify(out: Output, a: &Verify) -> Result<(), CliError> {
    let keys = public_keys(&a.public_keys)?;
    let verdict = look(&a.dir, &keys)?;
    if out.json {
        let keys: Vec<String> = keys.iter().map(crate::crypto::sign::key_id).collect();
        return out.document(&json!({ "valid": true, "given_keys": keys, "bundle": verdict, "not_proven": LIMITS }));
    }
    let about = &verdict.about;
    let by = match &verdict.by_chain_from {
        None => "which was given".to_owned(),
        Some(first) => format!("to which the chain of signing keys leads from {first}, which was given"),
    };
    out.line(&format!("The bundle is right: signed by key {}, {by}.", verdict.key_id))?;
    out.line("")?;
    out.pairs([
        ("Tenant", format!("{} (number {})", printable(&about.tenant), about.tenant_no)),
        ("Vault", printable(&about.vault)),
        ("Period", format!("{} until before {}", about.from, about.to)),
        ("Made", format!("{} by {}", about.made_at, printable(&about.program))),
    ])?;
    out.line("")?;
    let rows = verdict.checked.iter().map(|one| vec![one.what.to_owned(), one.count.to_string(), one.how.clone()]);
    out.rows(&["WHAT", "HOW MANY", "CHECKED"], rows.collect())?;
    out.line("\nNot in it:")?;
    for one in &verdict.left_out {
        out.line(&format!("  {}: {}", printable(&one.what), printable(&one.why)))?;
    }
    out.line("\nWhat this does not prove:")?;
    for limit in LIMITS {
        out.line(&format!("  {limit}"))?;
    }
    Ok(())
}
