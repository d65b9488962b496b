//! The signed list of a data archive's files. It is written last, so an archive without one is not whole; a file that was
//! changed, exchanged for another archive's or added is seen by its SHA-256.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::clock::Timestamp;
use crate::crypto::document::canonical;
use crate::crypto::sign::{Domain, Signing, key_id, verify};
use crate::ids::VaultId;
use crate::keyring::ledger::LedgerHead;
use crate::recovery::layout::MANIFEST;

const FORMAT: &str = "pii-vault data archive v1";
/// A manifest lists a database, a ledger and segments of 32 MiB: more than this nobody wrote.
const MOST_BYTES: u64 = 16 << 20;

/// One file of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileMark {
    /// Path in the archive, with `/`.
    pub name: String,
    pub bytes: u64,
    /// SHA-256, hexadecimal.
    pub sha256: String,
}

/// What an archive is and holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: String,
    /// Hexadecimal.
    vault: String,
    /// When it was begun, milliseconds since 1970.
    pub made_at: Timestamp,
    /// When it is to be deleted: `made_at` and the horizon of that day.
    pub expires_at: Timestamp,
    /// Version of the program that wrote it.
    pub program: String,
    /// Version of the database's schema.
    pub schema: u32,
    /// Where its copy of the ledger ends.
    pub ledger_entries: u64,
    /// Hash of the ledger's last batch, hexadecimal.
    pub ledger_head: String,
    /// By name.
    pub files: Vec<FileMark>,
}

/// A manifest whose signature is right for the key that it names; whose key that is, the caller decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedManifest {
    pub manifest: Manifest,
    pub public_key: [u8; 32],
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OnDisk {
    manifest: Manifest,
    public_key: String,
    signature: String,
}

/// Why an archive is refused. The name of the file is in it, never a value.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("{name} cannot be read")]
    Io {
        name: String,
        #[source]
        source: io::Error,
    },
    /// There is no manifest: the archive was never finished, or is none.
    #[error("{MANIFEST} is missing: the archive was never finished")]
    Missing,
    #[error("{MANIFEST}: {what}")]
    Form { what: &'static str },
    /// Its contents or its key were changed.
    #[error("{MANIFEST}: its signature is wrong")]
    Forged,
    #[error("{MANIFEST}: signed by the key {key}, which is not among the keys to trust")]
    Stranger { key: String },
    #[error("{name} is missing")]
    FileMissing { name: String },
    #[error("{name} is not listed in {MANIFEST}")]
    FileUnknown { name: String },
    /// Damaged, cut off, or another archive's.
    #[error("{name} is not the file that {MANIFEST} lists")]
    FileOther { name: String },
}

fn failed(name: &str) -> impl FnOnce(io::Error) -> ManifestError + '_ {
    move |source| ManifestError::Io { name: name.to_owned(), source }
}

/// Length and SHA-256 of a file, read from the disk; `more` is told of each part's bytes and stops it with `false`
/// (`Interrupted`). Blocking.
pub fn hash_file(path: &Path, more: &mut dyn FnMut(u64) -> bool) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buf = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let n = file.read(&mut buf)?;
        if n == 0 {
            return Ok((bytes, HEXLOWER.encode(&hash.finalize())));
        }
        hash.update(&buf[..n]);
        bytes += n as u64;
        if !more(n as u64) {
            return Err(io::ErrorKind::Interrupted.into());
        }
    }
}

impl Manifest {
    /// A manifest over these files, which are sorted here.
    pub fn new(
        vault: VaultId,
        made_at: Timestamp,
        expires_at: Timestamp,
        schema: u32,
        ledger: LedgerHead,
        mut files: Vec<FileMark>,
    ) -> Self {
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Manifest {
            format: FORMAT.into(),
            vault: HEXLOWER.encode(&vault.0),
            made_at,
            expires_at,
            program: env!("CARGO_PKG_VERSION").into(),
            schema,
            ledger_entries: ledger.seq,
            ledger_head: HEXLOWER.encode(&ledger.hash),
            files,
        }
    }

    /// Whose archive it is.
    pub fn vault(&self) -> Option<VaultId> {
        Some(VaultId(HEXLOWER.decode(self.vault.as_bytes()).ok()?.try_into().ok()?))
    }

    /// Where its copy of the ledger ends.
    pub fn ledger(&self) -> Option<LedgerHead> {
        let hash = HEXLOWER.decode(self.ledger_head.as_bytes()).ok()?.try_into().ok()?;
        Some(LedgerHead { seq: self.ledger_entries, hash })
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// The file's contents, signed: Ed25519 in the domain of archives over the canonical JSON (RFC 8785).
    pub fn sign(&self, signing: &Signing) -> Vec<u8> {
        let signature = HEXLOWER.encode(&signing.sign(Domain::Archive, &canonical(self)));
        canonical(&OnDisk { manifest: self.clone(), public_key: HEXLOWER.encode(&signing.public()), signature })
    }
}

impl SignedManifest {
    /// Reads what `sign` wrote and checks the signature by the key that it names.
    pub fn from_json(bytes: &[u8]) -> Result<Self, ManifestError> {
        let form = |what| ManifestError::Form { what };
        let it: OnDisk = serde_json::from_slice(bytes).map_err(|_| form("it is not a manifest of a data archive"))?;
        if it.manifest.format != FORMAT {
            return Err(form("another version of the program wrote it"));
        }
        let fixed = |text: &str| HEXLOWER.decode(text.as_bytes()).ok();
        let public_key: [u8; 32] =
            fixed(&it.public_key).and_then(|b| b.try_into().ok()).ok_or(form("its key has no right form"))?;
        let signature: [u8; 64] =
            fixed(&it.signature).and_then(|b| b.try_into().ok()).ok_or(form("its signature has no right form"))?;
        if !verify(&public_key, Domain::Archive, &canonical(&it.manifest), &signature) {
            return Err(ManifestError::Forged);
        }
        if it.manifest.vault().is_none() || it.manifest.ledger().is_none() {
            return Err(form("vault or ledger have no right form"));
        }
        if it.manifest.files.iter().any(|file| !plain(&file.name)) {
            return Err(form("a file's name leads out of the archive"));
        }
        Ok(SignedManifest { manifest: it.manifest, public_key })
    }

    /// Reads the manifest of the archive in `dir`. Blocking.
    pub fn read(dir: &Path) -> Result<Self, ManifestError> {
        let mut bytes = Vec::new();
        match File::open(dir.join(MANIFEST)) {
            Ok(file) => file.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(failed(MANIFEST))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(ManifestError::Missing),
            Err(e) => return Err(failed(MANIFEST)(e)),
        };
        if bytes.len() as u64 > MOST_BYTES {
            return Err(ManifestError::Form { what: "it is too long" });
        }
        Self::from_json(&bytes)
    }

    /// One of these keys signed it.
    pub fn signed_by(&self, trusted: &[[u8; 32]]) -> Result<(), ManifestError> {
        match trusted.contains(&self.public_key) {
            true => Ok(()),
            false => Err(ManifestError::Stranger { key: key_id(&self.public_key) }),
        }
    }

    /// Every listed file is there and is the one that was listed, and nothing else is. Reads all; `more` as in
    /// `hash_file`. Blocking.
    pub fn check_files(&self, dir: &Path, more: &mut dyn FnMut(u64) -> bool) -> Result<(), ManifestError> {
        let listed: BTreeSet<&str> = self.manifest.files.iter().map(|file| file.name.as_str()).collect();
        let mut there = Vec::new();
        names(dir, dir, &mut there).map_err(failed("the archive"))?;
        for name in there.iter().filter(|name| name.as_str() != MANIFEST) {
            if !listed.contains(name.as_str()) {
                return Err(ManifestError::FileUnknown { name: name.clone() });
            }
        }
        for file in &self.manifest.files {
            let name = || file.name.clone();
            match hash_file(&dir.join(&file.name), more) {
                Ok((bytes, sha256)) if bytes == file.bytes && sha256 == file.sha256 => {}
                Ok(_) => return Err(ManifestError::FileOther { name: name() }),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    return Err(ManifestError::FileMissing { name: name() });
                }
                Err(e) => return Err(failed(&file.name)(e)),
            }
        }
        Ok(())
    }
}

/// A path that stays below its directory.
fn plain(name: &str) -> bool {
    !name.is_empty()
        && !name.contains('\\')
        && name.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

/// Names of all files below `dir`, relative to `root`, with `/`.
fn names(root: &Path, dir: &Path, out: &mut Vec<String>) -> io::Result<()> {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(dir)?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
    entries.sort();
    for path in entries {
        if path.symlink_metadata()?.is_dir() {
            names(root, &path, out)?;
        } else {
            let inside = path.strip_prefix(root).unwrap_or(&path);
            out.push(inside.to_string_lossy().into_owned());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive() -> (tempfile::TempDir, Signing) {
        let dir = tempfile::tempdir().unwrap();
        let signing = Signing::generate();
        std::fs::create_dir(dir.path().join("read-audit")).unwrap();
        let mut files = Vec::new();
        for name in ["vault.db", "ledger", "read-audit/0000000001.readlog"] {
            std::fs::write(dir.path().join(name), name).unwrap();
            let (bytes, sha256) = hash_file(&dir.path().join(name), &mut |_| true).unwrap();
            files.push(FileMark { name: name.into(), bytes, sha256 });
        }
        let ledger = LedgerHead { seq: 3, hash: [4; 32] };
        let manifest = Manifest::new(VaultId([7; 16]), Timestamp(1), Timestamp(2), 1, ledger, files);
        assert_eq!((manifest.vault(), manifest.ledger()), (Some(VaultId([7; 16])), Some(ledger)));
        std::fs::write(dir.path().join(MANIFEST), manifest.sign(&signing)).unwrap();
        (dir, signing)
    }

    fn check(dir: &Path) -> Result<(), ManifestError> {
        SignedManifest::read(dir)?.check_files(dir, &mut |_| true)
    }

    #[test]
    fn what_was_written_is_accepted_and_its_key_is_named() {
        let (dir, signing) = archive();
        check(dir.path()).unwrap();
        let read = SignedManifest::read(dir.path()).unwrap();
        read.signed_by(&[[1; 32], signing.public()]).unwrap();
        let stranger = read.signed_by(&[[1; 32]]).unwrap_err();
        assert!(stranger.to_string().contains(&signing.key_id()), "{stranger}");
    }

    #[test]
    fn a_damaged_manifest_is_refused_at_every_byte() {
        let (dir, _) = archive();
        let good = std::fs::read(dir.path().join(MANIFEST)).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(SignedManifest::from_json(&bad).is_err(), "byte {at}");
            assert!(SignedManifest::from_json(&good[..at]).is_err(), "cut at {at}");
        }
        std::fs::remove_file(dir.path().join(MANIFEST)).unwrap();
        assert!(matches!(check(dir.path()), Err(ManifestError::Missing)));
    }

    #[test]
    fn a_file_that_is_changed_missing_or_added_is_named() {
        let (dir, _) = archive();
        let path = dir.path().join("ledger");
        for bad in [&b"ledgeR"[..], b"ledge", b"ledger+", b""] {
            std::fs::write(&path, bad).unwrap();
            let error = check(dir.path()).unwrap_err();
            assert!(matches!(&error, ManifestError::FileOther { name } if name == "ledger"), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(check(dir.path()), Err(ManifestError::FileMissing { name }) if name == "ledger"));
        std::fs::write(&path, "ledger").unwrap();
        // A log beside the database would change what it says.
        std::fs::write(dir.path().join("vault.db-wal"), "x").unwrap();
        assert!(matches!(check(dir.path()), Err(ManifestError::FileUnknown { name }) if name == "vault.db-wal"));
    }

    #[test]
    fn names_stay_in_the_archive() {
        for bad in ["", "/etc/passwd", "../x", "a/../b", "a//b", ".", "a\\b"] {
            assert!(!plain(bad), "{bad}");
        }
        assert!(plain("read-audit/0000000001.readlog"));
    }
}
