//! Slots for new keys: given, taken back, and leaves born ahead of need.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::ids::*;
use crate::keyring::allocate::Slots;
use crate::keyring::archive::NewLeaf;
use crate::keyring::error::KeyringError;
use crate::keyring::loading::Keep;
use crate::keyring::names::KeyRef;
use crate::keyring::ring::{Keyring, TenantKeys};
use crate::keyring::tree;
use crate::storage::{ChangeSet, Mutation, Precondition};

impl Keyring {
    /// `n` free slots with the ids of their keys, in one leaf where possible; leaves are born ahead. The change set
    /// that uses them carries a `TakeSlot` for each; if it does not commit, call [`Keyring::release`].
    pub async fn allocate(&self, tenant: TenantNo, n: usize) -> Result<Vec<KeyRef>, KeyringError> {
        let keys = self.tenant(tenant)?;
        keys.check_ready()?;
        let n = u32::try_from(n).map_err(|_| KeyringError::Full { tenant })?;
        let slots = loop {
            if let Some(slots) = keys.slots.lock().as_mut().and_then(|slots| slots.take(n)) {
                break slots;
            }
            self.grow(&keys, n).await?;
        };
        let wanted: BTreeSet<Ordinal> = slots.iter().map(|slot| tree::leaf_of(*slot)).collect();
        // A small cache may forget a leaf between loading and looking; then again.
        for _ in 0..3 {
            if let Some(refs) = slots.iter().map(|slot| self.key_ref(tenant, *slot)).collect() {
                return Ok(refs);
            }
            if let Err(error) = self.open_leaves(&keys, &wanted).await {
                self.release(tenant, &slots);
                return Err(error);
            }
        }
        let refs: Option<Vec<KeyRef>> = slots.iter().map(|slot| self.key_ref(tenant, *slot)).collect();
        refs.ok_or_else(|| {
            self.release(tenant, &slots);
            KeyringError::Full { tenant }
        })
    }

    /// A slot with the id of the key that is there; `None`: its leaf is not in memory.
    pub(super) fn key_ref(&self, tenant: TenantNo, slot: Slot) -> Option<KeyRef> {
        self.nodes.with(tenant, tree::leaf_of(slot), |leaf| KeyRef {
            slot,
            dek: leaf.keys.dek(tree::index_in_leaf(slot)).id(),
        })
    }

    /// Slots whose change set did not commit may be given again.
    pub fn release(&self, tenant: TenantNo, slots: &[Slot]) {
        if let Ok(keys) = self.tenant(tenant)
            && let Some(free) = keys.slots.lock().as_mut()
        {
            free.give_back(slots, false);
        }
    }

    /// Whether slots must be recorded before they are given.
    pub(super) fn covering(&self) -> bool {
        self.archive().is_some_and(|archive| archive.active())
    }

    /// Records the leaves among new nodes, before any of their slots is given.
    pub(super) async fn cover(
        &self,
        tenant: TenantNo,
        tree: Generation,
        grown: &tree::Grown,
    ) -> Result<(), KeyringError> {
        let Some(archive) = self.archive().filter(|archive| archive.active()) else { return Ok(()) };
        let leaves = grown.nodes.iter().filter(|(ordinal, _)| tree::level(**ordinal) == 3);
        let leaves = leaves.map(|(ordinal, node)| NewLeaf { ordinal: *ordinal, node: node.duplicate() });
        let covered = archive.cover(tenant, tree, leaves.collect()).await;
        covered.map_err(|_| KeyringError::Uncovered { tenant })
    }

    /// What is recorded of a tenant.
    async fn recorded(&self, tenant: TenantNo) -> Result<(u32, Option<Generation>), KeyringError> {
        let Some(archive) = self.archive().cloned() else { return Ok((0, None)) };
        let state = tokio::task::spawn_blocking(move || archive.state(tenant)).await;
        let state = state.map_err(|_| KeyringError::Stopped)?;
        Ok((state.map_or(0, |state| state.leaves), state.map(|state| state.generation)))
    }

    /// Reads what may be given, or births leaves, until `n` slots can be given.
    async fn grow(&self, keys: &TenantKeys, n: u32) -> Result<(), KeyringError> {
        let _swap = keys.swap.lock().await;
        keys.check_ready()?;
        let known = keys.slots.lock().is_some();
        if !known {
            let slots = self.read_slots(keys).await?;
            *keys.slots.lock() = Some(slots);
        }
        let leaves = {
            let slots = keys.slots.lock();
            let slots = slots.as_ref().expect("filled above and never emptied");
            if slots.has(n) {
                return Ok(());
            }
            slots.to_birth(n)
        };
        match leaves.is_empty() {
            true => Err(KeyringError::Full { tenant: keys.no }),
            false => self.birth(keys, leaves).await,
        }
    }

    /// What may be given, as database and key archive say. Under the swap lock.
    async fn read_slots(&self, keys: &TenantKeys) -> Result<Slots, KeyringError> {
        let tenant = keys.no;
        let used = self.store.slots(tenant).await?;
        let born = self.count_leaves(tenant, used.next).await?;
        let mut hold_back = false;
        if self.covering() {
            // The folder of archives was lost, or a recovery key was added to a vault that had none.
            if self.recorded(tenant).await?.0 < born {
                self.rewrite(keys, true).await?;
            }
            let present = keys.present.read().as_ref().map(|present| present.generation);
            hold_back = self.recorded(tenant).await?.1 != present;
        }
        Ok(Slots::new(&used, born, hold_back))
    }

    /// Births leaves, under the swap lock.
    async fn birth(&self, keys: &TenantKeys, leaves: Range<u32>) -> Result<(), KeyringError> {
        let tenant = keys.no;
        let generation = keys.present.read().as_ref().map(|p| p.generation).ok_or(KeyringError::Stopped)?;
        let above: BTreeSet<Ordinal> = leaves
            .clone()
            .flat_map(|number| tree::path(tree::leaf(number)).into_iter().take(tree::LEVELS - 1))
            .collect();
        let nodes = self.open_nodes(keys, above, Keep::Copies, true).await?;
        let grown =
            self.tree(tenant).birth(&nodes, leaves.clone()).map_err(|source| KeyringError::damaged(tenant, source))?;
        if self.covering() {
            if self.recorded(tenant).await?.0 < leaves.start {
                // It was there, and is not any more: somebody moved or emptied the folder.
                self.rewrite(keys, true).await?;
            }
            self.cover(tenant, generation, &grown).await?;
        }
        let mut change = ChangeSet::default();
        change.require(Precondition::TreeGeneration { tenant, generation });
        change.mutations.extend(grown.rows.into_iter().map(Mutation::PutNode));
        // After an error that leaves open whether it was committed, the count of leaves is read again.
        if let Err(error) = self.store.commit(change).await {
            *keys.slots.lock() = None;
            return Err(error.into());
        }
        // The first new leaf is wanted at once, the others as they come.
        let first = tree::leaf(leaves.start);
        for (ordinal, node) in grown.nodes {
            if ordinal == first || tree::level(ordinal) < 3 {
                self.nodes.put(tenant, ordinal, node);
            }
        }
        keys.slots.lock().as_mut().expect("filled above and never emptied").born(&leaves);
        Ok(())
    }

    /// Leaves are born in order, at most 120 at once and ahead of need: looks for the last one from the highest slot on.
    pub(super) async fn count_leaves(&self, tenant: TenantNo, next: Slot) -> Result<u32, KeyringError> {
        const STEP: u32 = 130;
        let mut born = next.0.div_ceil(120).max(1);
        loop {
            let after = Ordinal(tree::leaf(born).0 - 1);
            let more = self.store.list_nodes(tenant, Some(after), STEP).await?.len() as u32;
            born += more;
            if more < STEP {
                return Ok(born);
            }
        }
    }
}
