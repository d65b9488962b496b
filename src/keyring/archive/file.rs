//! A key archive file: segments one after the other. Read whole and checked before anything of it is used. Blocking.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::clock::Timestamp;
use crate::crypto::keys::NodeKeys;
use crate::crypto::recovery::{RecoveryError, RecoveryIdentity, open_leaves};
use crate::ids::{Generation, Ordinal, TenantNo, VaultId};
use crate::keyring::archive::segment::{self, Header};
use crate::keyring::ledger::ReadAt;
use crate::keyring::tree;

/// Why a key archive is refused. The file is named by whoever shows this.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("could not be read or written: {0}")]
    Io(#[from] io::Error),
    #[error("damaged at byte {offset}: {what}")]
    Damaged { offset: u64, what: &'static str },
    #[error("it belongs to another vault")]
    OtherVault,
    #[error("it belongs to tenant {found}")]
    OtherTenant { found: TenantNo },
    /// Segments of several files, or not all of one.
    #[error("segment {number} is not of this file, or one before it is missing")]
    Mixed { number: u32 },
    #[error("it has expired on {}", .at.rfc3339())]
    Expired { at: Timestamp },
    #[error(transparent)]
    Key(#[from] RecoveryError),
}

/// A segment in a file.
#[derive(Debug, Clone)]
pub struct Place {
    pub header: Header,
    pub offset: u64,
    pub len: usize,
}

/// What reading a file to its end found.
#[derive(Debug)]
pub struct Scan {
    pub segments: Vec<Place>,
    /// Bytes of whole segments.
    pub whole: u64,
    /// What lies behind them, if anything does.
    pub rest: Option<&'static str>,
}

/// Name of a tenant's file in the folder of the key archive.
pub fn file_name(tenant: TenantNo) -> String {
    format!("{}.keys", tenant.0)
}

/// The tenant whose file this name is.
pub fn tenant_of(name: &str) -> Option<TenantNo> {
    let no = TenantNo(name.strip_suffix(".keys")?.parse().ok()?);
    (file_name(no) == name).then_some(no)
}

/// Reads and checks segments until the end or until something is wrong.
///
/// # Errors
/// `Io`; `OtherVault`, `OtherTenant`, `Mixed` for a right segment in the wrong place.
pub fn scan(path: &Path, vault: VaultId, tenant: TenantNo, public_keys: &[[u8; 32]]) -> Result<Scan, ArchiveError> {
    let file = File::open(path)?;
    let total = file.metadata()?.len();
    let mut reader = io::BufReader::with_capacity(1 << 20, file);
    let mut scan = Scan { segments: Vec::new(), whole: 0, rest: None };
    let mut bytes = Vec::new();
    while scan.whole < total {
        bytes.resize(8.min((total - scan.whole) as usize), 0);
        reader.read_exact(&mut bytes)?;
        let found = segment::length(&bytes).and_then(|len| match len as u64 > total - scan.whole {
            true => Err("it is cut off"),
            false => Ok(len),
        });
        let len = match found {
            Ok(len) => len,
            Err(what) => {
                scan.rest = Some(what);
                break;
            }
        };
        bytes.resize(len, 0);
        reader.read_exact(&mut bytes[8..])?;
        match Header::decode(&bytes, public_keys) {
            Ok((header, _)) => {
                if header.vault != vault {
                    return Err(ArchiveError::OtherVault);
                }
                if header.tenant != tenant {
                    return Err(ArchiveError::OtherTenant { found: header.tenant });
                }
                let number = header.number;
                let first = scan.segments.first().map_or(header.file, |first| first.header.file);
                if number as usize != scan.segments.len() || header.file != first {
                    return Err(ArchiveError::Mixed { number });
                }
                scan.segments.push(Place { header, offset: scan.whole, len });
                scan.whole += len as u64;
            }
            Err(what) => {
                scan.rest = Some(what);
                break;
            }
        }
    }
    Ok(scan)
}

impl Scan {
    /// Leaves 0 to here, exclusive, have a record.
    pub fn leaves(&self) -> u32 {
        let numbers: std::collections::BTreeSet<u32> =
            self.segments.iter().flat_map(|s| &s.header.leaves).map(|(leaf, _)| leaf.0 - tree::leaf(0).0).collect();
        numbers.iter().zip(0..).take_while(|(number, wanted)| **number == *wanted).count() as u32
    }
    /// The latest expiry of anything that was ever sealed for the tenant.
    pub fn latest_expiry(&self) -> Option<Timestamp> {
        self.segments.iter().map(|s| s.header.latest_expiry).max()
    }
}

/// A key archive that a restore may use: whole, of this vault and tenant, signed, not expired.
#[derive(Debug)]
pub struct Archive {
    path: PathBuf,
    file: File,
    public_keys: Vec<[u8; 32]>,
    segments: Vec<Place>,
    /// The file ends in a record that was never acknowledged, or it was copied while it grew.
    pub torn: bool,
}

/// Where a leaf's latest record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    pub segment: usize,
    pub index: usize,
    pub generation: Generation,
}

impl Archive {
    /// Opens and checks.
    ///
    /// # Errors
    /// Everything that [`ArchiveError`] names, but `Key`.
    pub fn open(
        path: &Path,
        vault: VaultId,
        tenant: TenantNo,
        public_keys: &[[u8; 32]],
        now: Timestamp,
    ) -> Result<Self, ArchiveError> {
        let scan = scan(path, vault, tenant, public_keys)?;
        // Whoever copies a file that grows may get a part of its last segment, and no byte of it can be wrong.
        let torn = match scan.rest {
            None => false,
            Some("it is cut off") if scan.whole > 0 => true,
            Some(what) => return Err(ArchiveError::Damaged { offset: scan.whole, what }),
        };
        if let Some(at) = scan.segments.iter().map(|s| s.header.expires_at).min().filter(|at| *at <= now) {
            return Err(ArchiveError::Expired { at });
        }
        let (path, file) = (path.to_owned(), File::open(path)?);
        Ok(Archive { path, file, public_keys: public_keys.to_vec(), segments: scan.segments, torn })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
    pub fn segments(&self) -> &[Place] {
        &self.segments
    }
    /// When the first of its records was sealed, and from when on a restore refuses it.
    pub fn times(&self) -> Option<(Timestamp, Timestamp)> {
        let sealed = self.segments.iter().map(|s| s.header.sealed_at).min()?;
        Some((sealed, self.segments.iter().map(|s| s.header.expires_at).min()?))
    }
    /// The highest generation that anything in it has.
    pub fn generation(&self) -> Generation {
        let all = self.segments.iter().map(|s| s.header.tree);
        all.max().unwrap_or(Generation(0))
    }
    /// The latest record of each leaf: a birth that was not committed is recorded and made again.
    pub fn index(&self) -> BTreeMap<Ordinal, Record> {
        let mut all = BTreeMap::new();
        for (segment, place) in self.segments.iter().enumerate() {
            for (index, (leaf, generation)) in place.header.leaves.iter().enumerate() {
                all.insert(*leaf, Record { segment, index, generation: *generation });
            }
        }
        all
    }

    /// Opens the records of one segment, in the order of its header.
    pub fn open_segment(&self, number: usize, identities: &[RecoveryIdentity]) -> Result<Vec<NodeKeys>, ArchiveError> {
        let place = &self.segments[number];
        let mut bytes = vec![0; place.len];
        let n = self.file.read_at(place.offset, &mut bytes)?;
        let damaged = |what| ArchiveError::Damaged { offset: place.offset, what };
        let (header, sealed) = Header::decode(&bytes[..n], &self.public_keys).map_err(damaged)?;
        if header != place.header {
            return Err(damaged("it changed while it was read"));
        }
        Ok(open_leaves(identities, sealed, header.leaves.len())?)
    }
}
