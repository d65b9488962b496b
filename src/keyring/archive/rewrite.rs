//! Writing a tenant's key archive whole: what its slots hold now, and nothing that they held before.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::ids::*;
use crate::keyring::archive::segment::MOST_LEAVES;
use crate::keyring::archive::{ArchiveError, KeyArchive, NewLeaf, Writing};
use crate::keyring::error::KeyringError;
use crate::keyring::loading::Keep;
use crate::keyring::ring::{Keyring, TenantKeys};
use crate::keyring::tree;

/// What a rewrite wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rewritten {
    pub leaves: u32,
    pub bytes: u64,
    pub generation: Generation,
}

impl Keyring {
    /// Whether a tenant's key archive should be written whole now; see [`KeyArchive::due`].
    pub async fn archive_due(&self, tenant: TenantNo) -> Result<bool, KeyringError> {
        let Some(archive) = self.archive() else { return Ok(false) };
        let keys = self.tenant(tenant)?;
        keys.check_ready()?;
        let generation = self.generation(tenant).unwrap_or(Generation(0));
        let waiting = keys.slots.lock().as_ref().is_some_and(|slots| slots.held_back().1 > 0);
        let born = self.count_leaves(tenant, self.store.slots(tenant).await?.next).await?;
        let archive = archive.clone();
        let due = tokio::task::spawn_blocking(move || archive.due(tenant, generation, born)).await;
        Ok(waiting || due.map_err(|_| KeyringError::Stopped)?)
    }

    /// Writes a tenant's key archive whole, and then gives dropped slots again. Erasures go on in between, a segment
    /// of 256 leaves apart.
    ///
    /// # Errors
    /// `Uncovered` where there is no recovery key or the file cannot be written; the one before stays.
    pub async fn rewrite_archive(&self, tenant: TenantNo) -> Result<Rewritten, KeyringError> {
        let keys = self.tenant(tenant)?;
        self.rewrite(&keys, false).await
    }

    /// As [`Self::rewrite_archive`]; `locked` if the caller holds the swap lock.
    pub(in crate::keyring) async fn rewrite(&self, keys: &TenantKeys, locked: bool) -> Result<Rewritten, KeyringError> {
        keys.check_ready()?;
        let tenant = keys.no;
        let archive = self.archive().filter(|archive| archive.active()).ok_or(KeyringError::Uncovered { tenant })?;
        // Slots that were dropped before this are read with their new keys; later ones wait for the next time.
        let waiting = keys.slots.lock().as_ref().map(|slots| slots.held_back());
        let mut writing = self.blocking(tenant, archive, move |archive| archive.begin(tenant)).await?;
        let mut after = Ordinal(tree::leaf(0).0 - 1);
        loop {
            // Copies of keys live only under the lock: a swap that wipes them waits for this segment.
            let _swap = if locked { None } else { Some(keys.swap.lock().await) };
            let rows = self.store.list_nodes(tenant, Some(after), MOST_LEAVES as u32).await?;
            let Some(last) = rows.last() else {
                let state = self.blocking(tenant, archive, move |archive| archive.replace(tenant, writing)).await?;
                if let (Some(waiting), Some(slots)) = (waiting, keys.slots.lock().as_mut()) {
                    slots.covered(waiting);
                }
                return Ok(Rewritten { leaves: state.leaves, bytes: state.len, generation: state.generation });
            };
            after = last.ordinal;
            let wanted: BTreeSet<Ordinal> = rows.into_iter().map(|row| row.ordinal).collect();
            let generation = self.generation(tenant).ok_or(KeyringError::Stopped)?;
            let mut nodes = self.open_nodes(keys, wanted.clone(), Keep::Copies, false).await?;
            nodes.retain(|ordinal, _| wanted.contains(ordinal));
            let leaves: Vec<NewLeaf> = nodes.into_iter().map(|(ordinal, node)| NewLeaf { ordinal, node }).collect();
            writing = self
                .blocking(tenant, archive, move |archive| {
                    archive.write(&mut writing, tenant, generation, &leaves)?;
                    archive.note_expiry(tenant, &writing);
                    Ok(writing)
                })
                .await?;
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        tenant: TenantNo,
        archive: &Arc<KeyArchive>,
        work: impl FnOnce(&KeyArchive) -> Result<T, ArchiveError> + Send + 'static,
    ) -> Result<T, KeyringError> {
        let archive = archive.clone();
        let done = tokio::task::spawn_blocking(move || work(&archive)).await.map_err(|_| KeyringError::Stopped)?;
        done.map_err(|error: ArchiveError| {
            tracing::error!(tenant = tenant.0, %error, "the key archive cannot be written whole");
            KeyringError::Uncovered { tenant }
        })
    }
}

impl KeyArchive {
    /// A receipt that is signed while a file is being rewritten counts what is in it already.
    fn note_expiry(&self, tenant: TenantNo, writing: &Writing) {
        if let Some(state) = self.files.lock().get_mut(&tenant).and_then(Option::as_mut) {
            state.latest_expiry = state.latest_expiry.max(writing.latest_expiry);
        }
    }
}
