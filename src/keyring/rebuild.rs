//! Re-keying the whole tree of a tenant: how a restored database gets keys. Every node is new, and so is every key of a
//! slot that is not given, so that what is erased (or lost) can come back from nothing that was ever written. What lives
//! keeps its data key: values need not be sealed again.
//!
//! Leaf by leaf: memory is that of the inner nodes (4 KiB for 14,400 slots) and of one segment of the key archive.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::crypto::aad::Aad;
use crate::crypto::keys::{FAN_OUT, NodeKeys, RootKek, TenantRoot};
use crate::crypto::recovery::RecoveryIdentity;
use crate::ids::*;
use crate::keyring::archive::{Archive, ArchiveError};
use crate::keyring::error::KeyringError;
use crate::keyring::keeper::{Keeper, RootBlock, root_block_aad};
use crate::keyring::loading::Keep;
use crate::keyring::names::{SecretKind, secret_slot};
use crate::keyring::ring::Keyring;
use crate::keyring::tree::{self, LEVELS, RESERVED};
use crate::storage::*;

/// Leaves written in one commit, about 1 MB.
const AT_ONCE: usize = 256;

/// Where a restored tenant's keys come from.
pub enum KeySource {
    /// The present tree, under the root that the keeper holds.
    Live(Arc<Keyring>),
    /// A key archive, and what opens it.
    Archive(Archive, Arc<[RecoveryIdentity]>),
}

/// What became of the slots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// Leaves of the new tree.
    pub leaves: u32,
    /// Classes and buckets whose key was found and kept.
    pub kept: u64,
    /// Those that `keep` refused.
    pub dropped: Vec<SlotUser>,
    /// Those that `keep` would keep, whose key was dropped after the data was copied: erased where nobody knows of it, or
    /// moved to another key.
    pub since: Vec<SlotUser>,
    /// Those whose key was not found: the slot holds another one, or its leaf has no record.
    pub lost: Vec<SlotUser>,
}

/// Whether a class or bucket lives on.
type Lives<'a> = &'a (dyn Fn(&SlotUser) -> bool + Sync);

/// Why a tree is not rebuilt.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    #[error("the keys of the tenant cannot be opened")]
    NoKeys,
    #[error("interrupted")]
    Stopped,
}

/// A tenant's tree that is to be made anew.
pub struct Rebuild<'a> {
    pub store: &'a dyn Store,
    pub vault: VaultId,
    pub tenant: TenantNo,
    /// The tree's in the data.
    pub of_data: Generation,
    /// Above every generation that any copy knows.
    pub generation: Generation,
    /// Only counts.
    pub dry: bool,
}

impl Rebuild<'_> {
    /// Makes the tree and answers its root. `keep` says whether a class lives on. With `dry`, only counts.
    pub async fn run(
        &self,
        source: &KeySource,
        keep: &(dyn Fn(&SlotUser) -> bool + Sync),
    ) -> Result<(TenantRoot, Rebuilt), RebuildError> {
        let last = self.last_leaf(source).await?;
        // A slot's key changes only when it is dropped; the live tree is later as a whole.
        let later: BTreeSet<Ordinal> = match source {
            KeySource::Archive(archive, _) => {
                let all = archive.index().into_iter();
                all.filter(|(_, record)| record.generation > self.of_data).map(|(leaf, _)| leaf).collect()
            }
            KeySource::Live(_) => (0..=last).map(tree::leaf).collect(),
        };
        let mut inner = inner_nodes(last);
        let mut done = Rebuilt::default();
        let mut missing: BTreeSet<u32> = (0..=last).collect();
        for part in parts(source, last) {
            let leaves = part.open(self.tenant, source).await?;
            missing.retain(|number| !leaves.contains_key(&tree::leaf(*number)));
            self.write_leaves(leaves.iter().map(|(o, keys)| (*o, Some(keys))), &inner, (keep, &later), &mut done)
                .await?;
        }
        let missing: Vec<(Ordinal, Option<&NodeKeys>)> = missing.iter().map(|n| (tree::leaf(*n), None)).collect();
        self.write_leaves(missing.into_iter(), &inner, (keep, &later), &mut done).await?;
        let root = TenantRoot::generate();
        self.write_inner(&root, &mut inner).await?;
        done.leaves = last + 1;
        Ok((root, done))
    }

    /// The last leaf that anything is known of.
    async fn last_leaf(&self, source: &KeySource) -> Result<u32, RebuildError> {
        let next = self.store.slots(self.tenant).await?.next;
        let mut last = next.0.div_ceil(FAN_OUT as u32).max(1) - 1;
        let mut after = Ordinal(tree::leaf(last).0);
        while let Some(row) = self.store.list_nodes(self.tenant, Some(after), 1_000).await?.last() {
            after = row.ordinal;
        }
        last = last.max(after.0 - tree::leaf(0).0);
        if let KeySource::Archive(archive, _) = source
            && let Some((leaf, _)) = archive.index().last_key_value()
        {
            last = last.max(leaf.0 - tree::leaf(0).0);
        }
        Ok(last)
    }

    fn aad(&self, ordinal: Ordinal) -> Aad {
        Aad::node(self.vault, self.tenant, ordinal, self.generation)
    }

    /// Fresh leaves with the keys of what lives.
    async fn write_leaves<'k>(
        &self,
        leaves: impl Iterator<Item = (Ordinal, Option<&'k NodeKeys>)>,
        inner: &BTreeMap<Ordinal, NodeKeys>,
        (keep, later): (Lives<'_>, &BTreeSet<Ordinal>),
        done: &mut Rebuilt,
    ) -> Result<(), RebuildError> {
        let mut change = ChangeSet::default();
        for (ordinal, keys) in leaves {
            let first = (ordinal.0 - tree::leaf(0).0) * FAN_OUT as u32;
            let (from, to) = (Slot(first), Slot(first + FAN_OUT as u32));
            let mut fresh = NodeKeys::generate();
            if let (0, Some(keys)) = (first, keys) {
                // Old index tags beside the present secret would be the values themselves: it always goes.
                let index = [SecretVersion(0), SecretVersion(1)].map(|v| secret_slot(SecretKind::Index, v));
                let reserved = (0..RESERVED).filter(|slot| !index.contains(&Slot(*slot)));
                reserved.for_each(|slot| fresh.keep(slot as usize, keys));
            }
            for owner in self.store.slot_owners(self.tenant, from, to).await? {
                let at = tree::index_in_leaf(owner.slot);
                if !keep(&owner.user) {
                    done.dropped.push(owner.user);
                } else if keys.is_some_and(|keys| keys.dek(at).id() == owner.dek) {
                    fresh.keep(at, keys.expect("it was there a line ago"));
                    done.kept += 1;
                } else if later.contains(&ordinal) {
                    done.since.push(owner.user);
                } else {
                    done.lost.push(owner.user);
                }
            }
            if self.dry {
                continue;
            }
            let (above, index) = tree::parent(ordinal).expect("a leaf is below something");
            let blob = inner[&above].child(index).seal_node(&self.aad(ordinal), &fresh);
            let (tenant, generation) = (self.tenant, self.generation);
            change.change(Mutation::PutNode(NodeRow { tenant, ordinal, generation, blob }));
            if change.mutations.len() >= AT_ONCE {
                self.store.commit(std::mem::take(&mut change)).await?;
            }
        }
        if !change.mutations.is_empty() {
            self.store.commit(change).await?;
        }
        Ok(())
    }

    /// The inner nodes, which hold the keys that the leaves were sealed under, and the generation: last, so that what was
    /// interrupted has no root.
    async fn write_inner(
        &self,
        root: &TenantRoot,
        inner: &mut BTreeMap<Ordinal, NodeKeys>,
    ) -> Result<(), RebuildError> {
        if self.dry {
            return Ok(());
        }
        let (tenant, generation) = (self.tenant, self.generation);
        let mut change = ChangeSet::default();
        for (ordinal, keys) in inner.iter() {
            let blob = match tree::parent(*ordinal) {
                Some((above, index)) => inner[&above].child(index).seal_node(&self.aad(*ordinal), keys),
                None => root.seal_node(&self.aad(*ordinal), keys),
            };
            change.change(Mutation::PutNode(NodeRow { tenant, ordinal: *ordinal, generation, blob }));
            if change.mutations.len() >= AT_ONCE {
                self.store.commit(std::mem::take(&mut change)).await?;
            }
        }
        change.change(Mutation::SetGeneration { tenant, generation });
        self.store.commit(change).await?;
        Ok(())
    }

    /// Writes the root into a new keeper.
    pub async fn keep_root(&self, keeper: &dyn Keeper, kek: &RootKek, root: &TenantRoot) -> Result<(), RebuildError> {
        let (tenant, generation, id) = (self.tenant, self.generation, kek.id());
        let wrapped = kek.wrap(&root_block_aad(self.vault, tenant, generation, &id), root);
        let block = RootBlock { tenant, generation, kek: id, wrapped };
        Ok(keeper.write_next(block).await.map_err(KeyringError::from)?)
    }
}

impl Keyring {
    /// Copies of leaves, for a restore of an older database under the present tree.
    async fn copies(
        &self,
        tenant: TenantNo,
        leaves: BTreeSet<Ordinal>,
    ) -> Result<BTreeMap<Ordinal, NodeKeys>, KeyringError> {
        let keys = self.tenant(tenant)?;
        keys.check_ready()?;
        let _swap = keys.swap.lock().await;
        let nodes = self.open_nodes(&keys, leaves.clone(), Keep::Copies, true).await?;
        Ok(nodes.into_iter().filter(|(o, _)| leaves.contains(o)).map(|(o, node)| (o, node.keys)).collect())
    }
}

/// Fresh inner nodes above leaves 0 to `last`.
fn inner_nodes(last: u32) -> BTreeMap<Ordinal, NodeKeys> {
    let ordinals: BTreeSet<Ordinal> =
        (0..=last).step_by(FAN_OUT).chain([last]).flat_map(|n| tree::path(tree::leaf(n))).collect();
    let inner = ordinals.into_iter().filter(|ordinal| tree::level(*ordinal) < LEVELS - 1);
    inner.map(|ordinal| (ordinal, NodeKeys::generate())).collect()
}

/// Leaves that are opened together.
enum Part {
    /// A segment, and which of its records are the latest of their leaf.
    Segment {
        number: usize,
        wanted: Vec<(Ordinal, usize)>,
    },
    Leaves(BTreeSet<Ordinal>),
}

fn parts(source: &KeySource, last: u32) -> Vec<Part> {
    match source {
        KeySource::Archive(archive, _) => {
            let mut segments: BTreeMap<usize, Vec<(Ordinal, usize)>> = BTreeMap::new();
            for (leaf, record) in archive.index() {
                segments.entry(record.segment).or_default().push((leaf, record.index));
            }
            segments.into_iter().map(|(number, wanted)| Part::Segment { number, wanted }).collect()
        }
        KeySource::Live(_) => {
            let all: Vec<Ordinal> = (0..=last).map(tree::leaf).collect();
            all.chunks(AT_ONCE).map(|part| Part::Leaves(part.iter().copied().collect())).collect()
        }
    }
}

impl Part {
    async fn open(self, tenant: TenantNo, source: &KeySource) -> Result<BTreeMap<Ordinal, NodeKeys>, RebuildError> {
        match (self, source) {
            (Part::Segment { number, wanted }, KeySource::Archive(archive, identities)) => {
                let mut opened: Vec<Option<NodeKeys>> =
                    archive.open_segment(number, identities)?.into_iter().map(Some).collect();
                Ok(wanted.into_iter().filter_map(|(leaf, at)| Some((leaf, opened[at].take()?))).collect())
            }
            (Part::Leaves(leaves), KeySource::Live(ring)) => Ok(ring.copies(tenant, leaves).await?),
            _ => Err(RebuildError::NoKeys),
        }
    }
}
