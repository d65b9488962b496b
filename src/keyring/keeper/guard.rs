//! A keeper in a hardware security module: each root that is written to a slot is sealed once more, by a key object that
//! the module makes for that one write and that never leaves it. What overwrites the slot has the object destroyed, after
//! the file was synced and before the sync is answered: copies of the file open nothing then, also beside the present token.
//!
//! This is a medium under the file keeper, which reads and writes plain root records and knows nothing of it. On disk a
//! guarded record is: the first 56 bytes of a root record with format 2, object id 16, nonce 12, sealed 76 (the wrapped root
//! and a tag), SHA-256 over these 160 bytes; the rest zero. Block 15 names the file: magic 8, random name 16, SHA-256 of both.
//!
//! An object's id begins with its generation. After a slot was written, the tenant's objects that no slot names any more
//! are destroyed, up to the highest generation in its slots and no further: beside an old copy of the file, whose slots
//! name objects that are gone, nothing is ever destroyed. A root whose object is gone reads as torn.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::block::{self, BLOCK, FIRST, RECORD, Record};
use super::file::ROOTS;
use super::medium::{BlockFile, Directory, Medium};
use super::{RootBlock, WRAPPED};
use crate::crypto::random;
use crate::ids::{Generation, TenantNo};

const NONCE: usize = 12;
const ID: usize = 16;
/// Format byte of a guarded record, and where it stands.
const GUARDED: u8 = 2;
const FORMAT_AT: usize = 29;
/// The header of a root record, to which the seal is bound.
const HEADER: usize = 56;
const SEALED_AT: usize = HEADER + ID + NONCE;
const SEALED_END: usize = SEALED_AT + WRAPPED + 16;
const DIGEST: usize = 32;
/// Block that names the file.
const NAME_BLOCK: u64 = FIRST - 1;
const NAME_MAGIC: &[u8; 8] = b"pvguard1";

/// Id of a key object: generation u64, 8 random bytes.
pub type ObjectId = [u8; ID];

/// Key objects that can be made, used and destroyed, and not read. Blocking.
pub trait Objects: Send + Sync {
    /// Makes one, durably.
    fn make(&self, label: &str, id: &ObjectId) -> io::Result<()>;
    /// AES-256-GCM: ciphertext and tag.
    fn seal(&self, label: &str, id: &ObjectId, nonce: [u8; NONCE], aad: &[u8], plain: &[u8]) -> io::Result<Vec<u8>>;
    /// What `seal` sealed; `None` where the object is not there, or did not seal this.
    fn unseal(
        &self,
        label: &str,
        id: &ObjectId,
        nonce: [u8; NONCE],
        aad: &[u8],
        sealed: &[u8],
    ) -> io::Result<Option<Zeroizing<Vec<u8>>>>;
    /// All of a label.
    fn list(&self, label: &str) -> io::Result<Vec<ObjectId>>;
    /// Destroys one for good; one that is not there is as good.
    fn destroy(&self, label: &str, id: &ObjectId) -> io::Result<()>;
}

/// What guards a keeper's roots beside their files.
#[derive(Clone)]
pub struct Guard {
    pub objects: Arc<dyn Objects>,
    /// First word of the objects' labels.
    pub label: String,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Guard({})", self.label)
    }
}

/// Directories as media, guarded where there is a guard.
pub fn media(paths: &[PathBuf], guard: Option<&Guard>) -> Vec<Arc<dyn Medium>> {
    let one = |path: &PathBuf| -> Arc<dyn Medium> {
        let plain = Directory::new(path);
        match guard {
            Some(guard) => Arc::new(GuardedMedium::new(Arc::new(plain), guard.clone())),
            None => Arc::new(plain),
        }
    };
    paths.iter().map(one).collect()
}

impl Guard {
    /// Destroys every object of the keeper replica in `dir`; its files are left. Nobody may have it open. May be repeated.
    pub fn forget(&self, dir: &Path) -> io::Result<()> {
        let Some(file) = Directory::new(dir).open(ROOTS)? else { return Ok(()) };
        let Some(name) = name_of(&*file)? else { return Ok(()) };
        for tenant in tenants(file.size()? / BLOCK) {
            self.destroy_all(&name, tenant)?;
        }
        Ok(())
    }

    fn label(&self, name: &[u8; ID], tenant: TenantNo) -> String {
        format!("{} {} {}", self.label, data_encoding::HEXLOWER.encode(name), tenant.0)
    }

    /// The record in clear; as it lies there where its object is gone.
    fn clear(&self, name: &[u8; ID], tenant: TenantNo, record: [u8; RECORD]) -> io::Result<[u8; RECORD]> {
        let Some(it) = guarded(&record) else { return Ok(record) };
        let opened = self.objects.unseal(&self.label(name, tenant), &it.id, it.nonce, it.header, it.sealed)?;
        let Some(wrapped) = opened else { return Ok(record) };
        let block = RootBlock {
            tenant: TenantNo(u32::from_be_bytes(it.header[24..28].try_into().expect("4 bytes of 56"))),
            generation: Generation(u64::from_be_bytes(it.header[32..40].try_into().expect("8 bytes of 56"))),
            kek: it.header[40..56].try_into().expect("16 bytes of 56"),
            wrapped: wrapped.to_vec(),
        };
        Ok(block::root(block::vault_of(&record), &block).unwrap_or(record))
    }

    fn destroy_all(&self, name: &[u8; ID], tenant: TenantNo) -> io::Result<()> {
        let label = self.label(name, tenant);
        self.objects.list(&label)?.iter().try_for_each(|id| self.objects.destroy(&label, id))
    }
}

fn tenants(blocks: u64) -> impl Iterator<Item = TenantNo> {
    (0..blocks.saturating_sub(FIRST).div_ceil(2)).map(|no| TenantNo(no as u32))
}

fn name_of(file: &dyn BlockFile) -> io::Result<Option<[u8; ID]>> {
    let mut bytes = [0; 8 + ID + DIGEST];
    let n = file.read_at(NAME_BLOCK * BLOCK, &mut bytes)?;
    Ok(name_in(&bytes[..n]))
}

fn name_in(bytes: &[u8]) -> Option<[u8; ID]> {
    let (text, digest) = bytes.split_at_checked(8 + ID)?;
    let right = text.starts_with(NAME_MAGIC) && Sha256::digest(text).as_slice() == digest;
    right.then(|| text[8..].try_into().expect("16 bytes of 24"))
}

/// Every root record that was ever written to the files, as whoever has copies of all of them and the present token reads
/// them: `(file, offset, bytes)` of each write.
#[cfg(any(test, feature = "testing"))]
pub fn readable(guard: &Guard, written: &[(String, u64, Vec<u8>)]) -> Vec<[u8; RECORD]> {
    let name = |file: &str| {
        let mut all = written.iter().rev().filter(|(other, at, _)| other == file && *at == NAME_BLOCK * BLOCK);
        all.find_map(|(_, _, bytes)| name_in(bytes))
    };
    let opened = written.iter().filter_map(|(file, offset, bytes)| {
        let (tenant, record) = (tenant_at(*offset)?, bytes.get(..RECORD)?.try_into().ok()?);
        guard.clear(&name(file)?, tenant, record).ok()
    });
    opened.collect()
}

/// A medium whose roots are guarded.
pub struct GuardedMedium {
    inner: Arc<dyn Medium>,
    guard: Guard,
}

impl GuardedMedium {
    pub fn new(inner: Arc<dyn Medium>, guard: Guard) -> Self {
        GuardedMedium { inner, guard }
    }

    fn file(&self, inner: Arc<dyn BlockFile>, name: [u8; ID]) -> Arc<dyn BlockFile> {
        Arc::new(GuardedFile { inner, guard: self.guard.clone(), name, dirty: Mutex::default() })
    }
}

impl Medium for GuardedMedium {
    fn place(&self) -> String {
        self.inner.place()
    }

    fn guarded(&self) -> bool {
        true
    }

    fn open(&self, name: &str) -> io::Result<Option<Arc<dyn BlockFile>>> {
        let Some(file) = self.inner.open(name)? else { return Ok(None) };
        if name != ROOTS {
            return Ok(Some(file));
        }
        let unguarded = || io::Error::other("its roots are not guarded by a token");
        let name = name_of(&*file)?.ok_or_else(unguarded)?;
        // A token that is away is told now, not at the first tenant.
        self.guard.objects.list(&self.guard.label(&name, TenantNo::VAULT))?;
        Ok(Some(self.file(file, name)))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn BlockFile>> {
        let file = self.inner.create(name)?;
        if name != ROOTS {
            return Ok(file);
        }
        let name = random::bytes::<ID>();
        let mut bytes = NAME_MAGIC.to_vec();
        bytes.extend_from_slice(&name);
        let digest = Sha256::digest(&bytes);
        bytes.extend_from_slice(&digest);
        file.grow(FIRST * BLOCK)?;
        file.write_at(NAME_BLOCK * BLOCK, &bytes)?;
        file.sync()?;
        Ok(self.file(file, name))
    }

    fn sync_names(&self) -> io::Result<()> {
        self.inner.sync_names()
    }
}

/// What was written since the last sync.
#[derive(Default)]
struct Dirty {
    tenants: BTreeSet<TenantNo>,
    /// Everything was overwritten at once.
    wiped: bool,
}

struct GuardedFile {
    inner: Arc<dyn BlockFile>,
    guard: Guard,
    name: [u8; ID],
    dirty: Mutex<Dirty>,
}

/// A guarded record's parts.
struct Sealed<'a> {
    header: &'a [u8],
    id: ObjectId,
    nonce: [u8; NONCE],
    sealed: &'a [u8],
}

fn guarded(record: &[u8; RECORD]) -> Option<Sealed<'_>> {
    let whole = record[FORMAT_AT] == GUARDED
        && Sha256::digest(&record[..SEALED_END]).as_slice() == &record[SEALED_END..SEALED_END + DIGEST]
        && record[SEALED_END + DIGEST..].iter().all(|b| *b == 0);
    whole.then(|| Sealed {
        header: &record[..HEADER],
        id: record[HEADER..HEADER + ID].try_into().expect("16 bytes of 512"),
        nonce: record[HEADER + ID..SEALED_AT].try_into().expect("12 bytes of 512"),
        sealed: &record[SEALED_AT..SEALED_END],
    })
}

fn generation_of(id: &ObjectId) -> u64 {
    u64::from_be_bytes(id[..8].try_into().expect("8 bytes of 16"))
}

/// The tenant of a block that starts at `offset`.
fn tenant_at(offset: u64) -> Option<TenantNo> {
    let block = offset / BLOCK;
    let whole = offset.is_multiple_of(BLOCK) && block >= FIRST;
    whole.then(|| TenantNo(((block - FIRST) / 2) as u32))
}

impl GuardedFile {
    fn label(&self, tenant: TenantNo) -> String {
        self.guard.label(&self.name, tenant)
    }

    fn raw(&self, at: u64) -> io::Result<[u8; RECORD]> {
        let mut record = [0; RECORD];
        let n = self.inner.read_at(at, &mut record)?;
        record[n..].fill(0); // beyond the end nothing was ever written
        Ok(record)
    }

    /// The record as it shall lie there: sealed by an object of its own if it is a root.
    fn guard(&self, tenant: TenantNo, record: [u8; RECORD]) -> io::Result<[u8; RECORD]> {
        let Record::Root(root) = block::decode(block::vault_of(&record), &record) else { return Ok(record) };
        let (label, mut id) = (self.label(tenant), [0; ID]);
        id[..8].copy_from_slice(&root.generation.0.to_be_bytes());
        random::fill(&mut id[8..]);
        self.guard.objects.make(&label, &id)?;
        let nonce = random::bytes::<NONCE>();
        let mut out = [0; RECORD];
        out[..HEADER].copy_from_slice(&record[..HEADER]);
        out[FORMAT_AT] = GUARDED;
        let sealed = self.guard.objects.seal(&label, &id, nonce, &out[..HEADER], &root.wrapped)?;
        if sealed.len() != WRAPPED + 16 {
            return Err(io::Error::other("the token sealed a root into another length"));
        }
        out[HEADER..HEADER + ID].copy_from_slice(&id);
        out[HEADER + ID..SEALED_AT].copy_from_slice(&nonce);
        out[SEALED_AT..SEALED_END].copy_from_slice(&sealed);
        let digest = Sha256::digest(&out[..SEALED_END]);
        out[SEALED_END..SEALED_END + DIGEST].copy_from_slice(&digest);
        Ok(out)
    }

    /// Destroys the tenant's objects that no slot names any more; see the module for how far.
    fn sweep(&self, tenant: TenantNo, wiped: bool) -> io::Result<()> {
        let (mut named, mut tombstone) = (Vec::new(), false);
        for slot in 0..2 {
            let record = self.raw((FIRST + 2 * u64::from(tenant.0) + slot) * BLOCK)?;
            named.extend(guarded(&record).map(|it| it.id));
            tombstone |= matches!(block::decode(block::vault_of(&record), &record), Record::Tombstone(_));
        }
        let highest = named.iter().map(generation_of).max();
        let most = if tombstone || wiped { Some(u64::MAX) } else { highest };
        let Some(most) = most else { return Ok(()) };
        let label = self.label(tenant);
        for id in self.guard.objects.list(&label)? {
            if !named.contains(&id) && generation_of(&id) <= most {
                self.guard.objects.destroy(&label, &id)?;
            }
        }
        Ok(())
    }
}

impl BlockFile for GuardedFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let Some(tenant) = tenant_at(offset).filter(|_| buf.len() == RECORD) else {
            return self.inner.read_at(offset, buf);
        };
        buf.copy_from_slice(&self.guard.clear(&self.name, tenant, self.raw(offset)?)?);
        Ok(RECORD)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (Some(tenant), true) = (tenant_at(offset), bytes.len() as u64 == BLOCK) else {
            // Whoever writes more than a block at once overwrites all there is; own blocks come one at a time.
            self.dirty.lock().wiped |= bytes.len() as u64 > BLOCK;
            return self.inner.write_at(offset, bytes);
        };
        let record = bytes[..RECORD].try_into().expect("the first of a block");
        let mut block = bytes.to_vec();
        block[..RECORD].copy_from_slice(&self.guard(tenant, record)?);
        self.dirty.lock().tenants.insert(tenant);
        self.inner.write_at(offset, &block)
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()?;
        let mut dirty = self.dirty.lock();
        if dirty.wiped {
            tenants(self.inner.size()? / BLOCK).try_for_each(|tenant| self.sweep(tenant, true))?;
        }
        dirty.tenants.iter().try_for_each(|tenant| self.sweep(*tenant, false))?;
        *dirty = Dirty::default();
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        self.inner.size()
    }

    fn grow(&self, len: u64) -> io::Result<()> {
        self.inner.grow(len)
    }
}
