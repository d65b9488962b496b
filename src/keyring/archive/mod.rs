//! The key archive: per tenant a file with the keys of every leaf, sealed to the recovery recipients. With it and the
//! offline recovery key a database whose keeper or root KEK is lost opens again.
//!
//! **The covering rule**: a slot may be given only when its present key is in a durable record. So a leaf is recorded
//! before it is born, and a dropped slot waits until the file was rewritten. Since a data key never changes in its slot,
//! the file on disk always opens every subject of the database beside it.
//!
//! Erased keys stay in older copies of the file until those expire. So every record says from when on a restore refuses
//! it, and the file is rewritten whole and replaced at least every half of that time.

pub mod file;
mod rewrite;
pub mod segment;
pub mod setting;

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use crate::clock::{Clock, Timestamp};
use crate::crypto::random;
use crate::crypto::recovery::{RecoveryRecipient, seal_leaves};
use crate::crypto::sign::Signing;
use crate::ids::*;
use crate::keyring::tree::OpenNode;
pub use file::{Archive, ArchiveError};
pub use rewrite::Rewritten;
use segment::{Header, MOST_LEAVES};
pub use setting::{RecoverySetting, SettingRefused};

/// A leaf that is to be recorded, in clear.
pub struct NewLeaf {
    pub ordinal: Ordinal,
    pub node: OpenNode,
}

/// The leaves could not be recorded: their slots are not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the key archive cannot be written")]
pub struct CoveringError;

/// What is known of a tenant's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileState {
    file: [u8; 16],
    len: u64,
    segments: u32,
    /// Leaves 0 to here, exclusive, are recorded.
    pub leaves: u32,
    /// Generation of the tree when the file was last written whole.
    pub generation: Generation,
    /// When it was last written whole.
    pub written: Timestamp,
    /// From then on no record that was ever written opens by a restore.
    pub latest_expiry: Timestamp,
    epoch: u32,
}

/// See the module. One for all tenants of a running vault.
pub struct KeyArchive {
    dir: PathBuf,
    vault: VaultId,
    clock: Arc<dyn Clock>,
    horizon_days: u32,
    /// As the database has it, until the signing key is known.
    unchecked: Option<Vec<u8>>,
    present: RwLock<Option<Present>>,
    signing: RwLock<Option<Arc<Signing>>>,
    /// Every key that this vault's files may be signed with, the present one first.
    public_keys: RwLock<Vec<[u8; 32]>>,
    files: Mutex<HashMap<TenantNo, Option<FileState>>>,
    /// For mutants: says that leaves are recorded, and records nothing.
    #[cfg(test)]
    pub(super) lies: std::sync::atomic::AtomicBool,
}

/// The setting with its recipients parsed.
struct Present {
    setting: RecoverySetting,
    recipients: Vec<RecoveryRecipient>,
}

impl KeyArchive {
    /// Over a folder, which is made when the first file is, and the setting that the database holds. A restore refuses
    /// records older than `horizon_days`.
    pub fn new(
        dir: PathBuf,
        vault: VaultId,
        setting: Option<Vec<u8>>,
        horizon_days: u32,
        clock: Arc<dyn Clock>,
    ) -> Self {
        KeyArchive {
            dir,
            vault,
            clock,
            horizon_days,
            unchecked: setting,
            present: RwLock::new(None),
            signing: RwLock::new(None),
            public_keys: RwLock::new(Vec::new()),
            files: Mutex::new(HashMap::new()),
            #[cfg(test)]
            lies: std::sync::atomic::AtomicBool::new(false),
        }
    }

    /// Gives the key that signs, once it was read from the keeper; checks the setting under it and those before it.
    pub fn unlock(&self, signing: Arc<Signing>, public_keys: &[[u8; 32]]) -> Result<(), SettingRefused> {
        if let Some(bytes) = &self.unchecked {
            self.put_setting(RecoverySetting::verify(self.vault, bytes, public_keys)?)?;
        }
        self.sign_as(signing, public_keys);
        Ok(())
    }

    /// Signs with this key from now on; files signed with any of `public_keys` count.
    pub fn sign_as(&self, signing: Arc<Signing>, public_keys: &[[u8; 32]]) {
        *self.public_keys.write() = public_keys.to_vec();
        *self.signing.write() = Some(signing);
    }

    /// Seals to these recipients from now on. The caller has stored the setting, and rewrites every tenant's file.
    pub fn put_setting(&self, setting: RecoverySetting) -> Result<(), SettingRefused> {
        let recipients = setting.recipients()?;
        *self.present.write() = Some(Present { setting, recipients });
        Ok(())
    }

    /// The present setting; `None` in a vault made without one.
    pub fn setting(&self) -> Option<RecoverySetting> {
        self.present.read().as_ref().map(|present| present.setting.clone())
    }

    /// Whether there is a recovery key at all. If not, dropped slots are given again at once and nothing is recorded.
    pub fn active(&self) -> bool {
        self.present.read().as_ref().is_some_and(|present| !present.recipients.is_empty())
    }

    /// Folder of the files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
    fn path(&self, tenant: TenantNo) -> PathBuf {
        self.dir.join(file::file_name(tenant))
    }
    /// A rewritten file grows here until it replaces the one before.
    fn next_path(&self, tenant: TenantNo) -> PathBuf {
        self.dir.join(format!("{}.keys.new", tenant.0))
    }

    /// What is known of a tenant's file; `None` where there is none that counts. Blocking.
    pub fn state(&self, tenant: TenantNo) -> Option<FileState> {
        let path = self.path(tenant);
        if let Some(known) = self.files.lock().get(&tenant) {
            let there = std::fs::metadata(&path).map(|meta| meta.len());
            // A longer one ends in what was never acknowledged.
            return known.filter(|state| there.as_ref().is_ok_and(|len| *len >= state.len));
        }
        let public = self.public_keys.read().clone();
        let read = |path: &Path| file::scan(path, self.vault, tenant, &public).ok().filter(|s| !s.segments.is_empty());
        // One that a crash left behind was copied by nobody but, perhaps, a copy of the whole folder.
        let next = self.next_path(tenant);
        let left = read(&next).and_then(|scan| scan.latest_expiry());
        let _ = std::fs::remove_file(&next);
        let state = read(&path).map(|scan| {
            let first = &scan.segments[0].header;
            FileState {
                file: first.file,
                len: scan.whole,
                segments: scan.segments.len() as u32,
                leaves: scan.leaves(),
                generation: first.tree,
                written: first.sealed_at,
                latest_expiry: scan.latest_expiry().max(left).unwrap_or(first.latest_expiry),
                epoch: scan.segments.iter().map(|s| s.header.epoch).min().unwrap_or(0),
            }
        });
        self.files.lock().insert(tenant, state);
        state
    }

    /// Whether the tenant's file is due to be written whole: a slot changed since, it is half a horizon old, recipients
    /// changed, or it does not have every born leaf.
    pub fn due(&self, tenant: TenantNo, generation: Generation, born: u32) -> bool {
        let Some(setting) = self.setting().filter(|setting| !setting.present.recipients.is_empty()) else {
            return false;
        };
        let old = |state: &FileState| {
            let half = i64::from(self.horizon_days) * crate::clock::DAY_MS / 2;
            self.clock.now() >= state.written.plus_ms(half)
        };
        self.state(tenant).is_none_or(|state| {
            state.generation != generation
                || state.leaves < born
                || state.epoch != setting.present.number
                || old(&state)
        })
    }

    /// From when on no key archive of this tenant opens: what receipts print. `None` without a recovery key.
    pub fn latest_expiry(&self, tenant: TenantNo) -> Option<Timestamp> {
        self.state(tenant).map(|state| state.latest_expiry)
    }

    /// Records leaves durably at the end of the tenant's file, or in a new one. Blocking; under the swap lock.
    fn append(&self, tenant: TenantNo, tree: Generation, leaves: &[NewLeaf]) -> Result<(), ArchiveError> {
        #[cfg(test)]
        if self.lies.load(std::sync::atomic::Ordering::Relaxed) {
            return Ok(());
        }
        let state = self.state(tenant);
        let mut writing = match state {
            Some(state) => Writing::at_end(self.path(tenant), state)?,
            None => {
                make_dir(&self.dir)?;
                Writing::fresh(self.path(tenant), Timestamp(0))?
            }
        };
        let written = leaves.chunks(MOST_LEAVES).try_for_each(|part| self.write(&mut writing, tenant, tree, part));
        match written.and_then(|()| Ok(writing.file.sync_all()?)) {
            Ok(()) if state.is_none() => sync_dir(&self.dir)?,
            Ok(()) => {}
            Err(error) => {
                // What is behind the durable part counts for nothing and is overwritten by the next.
                let _ = match state {
                    Some(state) => writing.file.set_len(state.len),
                    None => std::fs::remove_file(&writing.path),
                };
                return Err(error);
            }
        }
        self.files.lock().insert(tenant, writing.state);
        Ok(())
    }

    /// Seals one segment and writes it.
    fn write(
        &self,
        writing: &mut Writing,
        tenant: TenantNo,
        tree: Generation,
        leaves: &[NewLeaf],
    ) -> Result<(), ArchiveError> {
        let now = self.clock.now();
        let signing = self.signing.read().clone();
        let signing = signing.ok_or_else(|| std::io::Error::other("the archive has no signing key yet"))?;
        let (bytes, header) = {
            let present = self.present.read();
            let Some(Present { setting, recipients }) = present.as_ref().filter(|p| !p.recipients.is_empty()) else {
                return Err(std::io::Error::other("there is no recovery key").into());
            };
            let expires_at = now.plus_days(i64::from(self.horizon_days));
            let header = Header {
                vault: self.vault,
                tenant,
                file: writing.id,
                number: writing.number,
                tree,
                sealed_at: now,
                expires_at,
                latest_expiry: expires_at.max(writing.latest_expiry),
                epoch: setting.present.number,
                key: [0; 8],
                leaves: leaves.iter().map(|leaf| (leaf.ordinal, leaf.node.generation)).collect(),
            };
            let sealed = seal_leaves(recipients, leaves.iter().map(|leaf| &leaf.node.keys));
            (header.encode(&sealed, &signing), header)
        };
        writing.file.write_all(&bytes)?;
        writing.wrote(&header, bytes.len());
        Ok(())
    }

    /// A whole new file beside the present one.
    fn begin(&self, tenant: TenantNo) -> Result<Writing, ArchiveError> {
        make_dir(&self.dir)?;
        let latest = self.latest_expiry(tenant).unwrap_or(Timestamp(0));
        let next = self.next_path(tenant);
        match std::fs::remove_file(&next) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
            _ => {}
        }
        Writing::fresh(next, latest)
    }

    /// Puts a whole new file in the place of the present one. Blocking; under the swap lock.
    fn replace(&self, tenant: TenantNo, writing: Writing) -> Result<FileState, ArchiveError> {
        writing.file.sync_all()?;
        std::fs::rename(&writing.path, self.path(tenant))?;
        sync_dir(&self.dir)?;
        let state = writing.state.ok_or_else(|| std::io::Error::other("a tree has at least one leaf"))?;
        self.files.lock().insert(tenant, Some(state));
        Ok(state)
    }

    /// Removes a tenant's file: the tenant was erased. May be repeated. Blocking.
    pub fn remove(&self, tenant: TenantNo) -> Result<(), ArchiveError> {
        for path in [self.path(tenant), self.next_path(tenant)] {
            match std::fs::remove_file(path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
                _ => {}
            }
        }
        // The latest expiry is still printed in the tenant's receipt.
        if let Some(state) = self.files.lock().get_mut(&tenant).and_then(Option::as_mut) {
            (state.leaves, state.len) = (0, u64::MAX);
        }
        Ok(())
    }

    /// Records new leaves, durably, before any of their slots is given.
    pub async fn cover(
        self: &Arc<Self>,
        tenant: TenantNo,
        tree: Generation,
        leaves: Vec<NewLeaf>,
    ) -> Result<(), CoveringError> {
        let archive = self.clone();
        let appended = tokio::task::spawn_blocking(move || archive.append(tenant, tree, &leaves)).await;
        match appended {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                tracing::error!(tenant = tenant.0, %error, "the key archive cannot be written: no slot is given");
                Err(CoveringError)
            }
            Err(_) => Err(CoveringError),
        }
    }
}

impl std::fmt::Debug for KeyArchive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyArchive").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// A file that is being written.
struct Writing {
    path: PathBuf,
    file: File,
    id: [u8; 16],
    number: u32,
    latest_expiry: Timestamp,
    state: Option<FileState>,
}

impl Writing {
    fn fresh(path: PathBuf, latest_expiry: Timestamp) -> Result<Self, ArchiveError> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        Ok(Writing { path, file, id: random::bytes(), number: 0, latest_expiry, state: None })
    }

    fn at_end(path: PathBuf, state: FileState) -> Result<Self, ArchiveError> {
        use std::io::{Seek, SeekFrom};
        let mut file = OpenOptions::new().write(true).open(&path)?;
        file.set_len(state.len)?;
        file.seek(SeekFrom::Start(state.len))?;
        let (id, number, latest_expiry) = (state.file, state.segments, state.latest_expiry);
        Ok(Writing { path, file, id, number, latest_expiry, state: Some(state) })
    }

    /// Takes note of a segment that was written.
    fn wrote(&mut self, header: &Header, len: usize) {
        self.number += 1;
        self.latest_expiry = header.latest_expiry;
        let state = self.state.get_or_insert(FileState {
            file: self.id,
            len: 0,
            segments: 0,
            leaves: 0,
            generation: header.tree,
            written: header.sealed_at,
            latest_expiry: header.latest_expiry,
            epoch: header.epoch,
        });
        state.len += len as u64;
        state.segments = self.number;
        state.latest_expiry = header.latest_expiry;
        state.epoch = state.epoch.min(header.epoch);
        for (leaf, _) in &header.leaves {
            let number = leaf.0 - crate::keyring::tree::leaf(0).0;
            if number == state.leaves {
                state.leaves += 1;
            }
        }
    }
}

fn make_dir(dir: &Path) -> Result<(), ArchiveError> {
    use std::os::unix::fs::DirBuilderExt;
    Ok(std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?)
}

fn sync_dir(dir: &Path) -> Result<(), ArchiveError> {
    Ok(File::open(dir)?.sync_all()?)
}
