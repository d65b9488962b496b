//! Opening nodes of the key tree into memory, from one snapshot of the store and the root that it belongs to.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::*;
use crate::keyring::error::KeyringError;
use crate::keyring::names::KeyRef;
use crate::keyring::ring::{Keyring, Present, TenantKeys};
use crate::keyring::tree::{self, OpenNode, TreeError};
use crate::storage::NodeRow;

/// How often a snapshot is taken anew while swaps go on beside it.
const MOST_SNAPSHOTS: usize = 100;

/// What `open_nodes` does with what it opened.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// Into the cache; nothing is answered.
    InCache,
    /// Nothing into the cache; copies are answered. Only under the swap lock, so that no purge misses them.
    Copies,
}

impl Keyring {
    /// Brings the leaves of these keys into memory and compares the keys' ids; for after `with_…` answered `None`.
    ///
    /// # Errors
    /// `OtherKey` where a slot holds another key even in a new snapshot.
    pub async fn load(&self, tenant: TenantNo, refs: &[KeyRef]) -> Result<(), KeyringError> {
        let keys = self.tenant(tenant)?;
        keys.check_ready()?;
        let of = |refs: &[KeyRef]| refs.iter().map(|key| tree::leaf_of(key.slot)).collect::<BTreeSet<Ordinal>>();
        self.open_leaves(&keys, &of(refs)).await?;
        let wrong = |key: &&KeyRef| self.key_ref(tenant, key.slot).is_some_and(|there| there != **key);
        let doubtful: Vec<KeyRef> = refs.iter().filter(wrong).copied().collect();
        if doubtful.is_empty() {
            return Ok(());
        }
        // What is cached may be older than the row: all of the path from a new snapshot, once.
        self.open_again(&keys, of(&doubtful)).await?;
        match doubtful.iter().find(wrong) {
            Some(key) => Err(KeyringError::OtherKey { slot: key.slot }),
            None => Ok(()),
        }
    }

    /// Opens nodes and all that is above them. With `unborn`, nodes that are not in the store are left out.
    pub(super) async fn open_nodes(
        &self,
        keys: &TenantKeys,
        wanted: BTreeSet<Ordinal>,
        keep: Keep,
        unborn: bool,
    ) -> Result<BTreeMap<Ordinal, OpenNode>, KeyringError> {
        match self.open_from(keys, &wanted, keep, unborn, true).await {
            Err(KeyringError::Damaged { .. }) => self.open_from(keys, &wanted, keep, unborn, false).await,
            done => done,
        }
    }

    /// Opens into the cache what of these leaves is not there. Many who come for a new leaf at once leave the opening to
    /// the first of them.
    pub(super) async fn open_leaves(&self, keys: &TenantKeys, wanted: &BTreeSet<Ordinal>) -> Result<(), KeyringError> {
        let missing = || wanted.iter().filter(|leaf| !self.nodes.has(keys.no, **leaf)).copied();
        let Some(first) = missing().next() else { return Ok(()) };
        let _turn = self.opening[first.0 as usize % self.opening.len()].lock().await;
        let missing: BTreeSet<Ordinal> = missing().collect();
        if !missing.is_empty() {
            self.open_nodes(keys, missing, Keep::InCache, false).await?;
        }
        Ok(())
    }

    /// As `open_nodes` into the cache, without trusting what the cache holds.
    async fn open_again(&self, keys: &TenantKeys, wanted: BTreeSet<Ordinal>) -> Result<(), KeyringError> {
        self.open_from(keys, &wanted, Keep::InCache, false, false).await.map(|_| ())
    }

    async fn open_from(
        &self,
        keys: &TenantKeys,
        wanted: &BTreeSet<Ordinal>,
        keep: Keep,
        unborn: bool,
        trust_cache: bool,
    ) -> Result<BTreeMap<Ordinal, OpenNode>, KeyringError> {
        let tenant = keys.no;
        let all: BTreeSet<Ordinal> = wanted.iter().flat_map(|ordinal| tree::path(*ordinal)).collect();
        for _ in 0..MOST_SNAPSHOTS {
            let asked: Vec<Ordinal> = match trust_cache {
                true => all.iter().filter(|ordinal| !self.nodes.has(tenant, **ordinal)).copied().collect(),
                false => all.iter().copied().collect(),
            };
            // It hears of every swap from here on.
            let replaced = keys.replaced.notified();
            let snapshot = self.store.nodes(tenant, asked).await?;
            let newer = {
                let gate = keys.present.read();
                let Some(present) = gate.as_ref() else {
                    let state = *keys.state.read();
                    return Err(KeyringError::Refused { tenant, state });
                };
                if snapshot.generation == present.generation {
                    return self.open_rows(tenant, present, &all, snapshot.nodes, keep, unborn);
                }
                snapshot.generation > present.generation
            };
            // A swap has committed and not yet replaced the root in memory: wait for that, which comes well before the
            // old root is destroyed, or for a swap that ended without. (Who holds the swap lock asks for copies, and
            // cannot meet this.)
            match (newer, keep) {
                (true, Keep::InCache) => tokio::select! {
                    () = replaced => {}
                    _ = keys.swap.lock() => {}
                },
                (true, Keep::Copies) => return Err(KeyringError::Stopped),
                (false, _) => {}
            }
        }
        Err(KeyringError::Stopped)
    }

    /// Opens rows of one snapshot, top first, while the caller holds the root against a purge.
    fn open_rows(
        &self,
        tenant: TenantNo,
        present: &Present,
        all: &BTreeSet<Ordinal>,
        rows: Vec<Option<NodeRow>>,
        keep: Keep,
        unborn: bool,
    ) -> Result<BTreeMap<Ordinal, OpenNode>, KeyringError> {
        let tree = self.tree(tenant);
        let rows: BTreeMap<Ordinal, NodeRow> = rows.into_iter().flatten().map(|row| (row.ordinal, row)).collect();
        let mut open: BTreeMap<Ordinal, OpenNode> = BTreeMap::new();
        for ordinal in all {
            let node = match (rows.get(ordinal), tree::parent(*ordinal)) {
                (Some(row), None) => tree.open_top(&present.root, row),
                (Some(row), Some((above, _))) => match open.get(&above) {
                    Some(above) => tree.open_child(above, row),
                    None => self
                        .nodes
                        .with(tenant, above, |above| tree.open_child(above, row))
                        .unwrap_or(Err(TreeError::Sealed { ordinal: *ordinal })),
                },
                // Not asked for: it was in the cache, and still is unless memory is very short.
                (None, _) if keep == Keep::InCache && self.nodes.has(tenant, *ordinal) => continue,
                (None, _) => match self.nodes.with(tenant, *ordinal, OpenNode::duplicate) {
                    Some(node) => Ok(node),
                    None if unborn => continue,
                    None => Err(TreeError::NotBorn { ordinal: *ordinal }),
                },
            };
            open.insert(*ordinal, node.map_err(|source| KeyringError::damaged(tenant, source))?);
        }
        if keep == Keep::InCache {
            for (ordinal, node) in std::mem::take(&mut open) {
                self.nodes.put(tenant, ordinal, node);
            }
        }
        Ok(open)
    }
}
