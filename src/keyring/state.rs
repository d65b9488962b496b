//! In which state a tenant's keys are found at start: what the database says its generation is, against what the
//! keeper's slots hold. Pure: the caller reads, this decides.

use crate::crypto::keys::{RootKek, TenantRoot};
use crate::ids::{Generation, VaultId};
use crate::keyring::keeper::{RootBlock, TenantSlots, root_block_aad};

/// Whether a tenant's keys can be used. A refused tenant stops only itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TenantKeyState {
    /// The keeper holds the root that opens the tree.
    Ready,
    /// The keeper knows a later generation only: the database was rolled back or lost a failover. Nothing is written to
    /// the keeper; restore.
    DatabaseBehind,
    /// The keeper holds no root of this tree: an old or lost keeper, or another root KEK. Another replica, or restore.
    KeeperBehind,
    /// A tombstone lies in the keeper: the tenant's keys are gone for good.
    TenantErased,
}

impl TenantKeyState {
    /// Its name, as errors and documentation say it.
    pub fn name(self) -> &'static str {
        match self {
            TenantKeyState::Ready => "READY",
            TenantKeyState::DatabaseBehind => "DATABASE_BEHIND",
            TenantKeyState::KeeperBehind => "KEEPER_BEHIND",
            TenantKeyState::TenantErased => "TENANT_ERASED",
        }
    }

    /// What it means and what to do next, for an operator.
    pub fn advice(self) -> &'static str {
        match self {
            TenantKeyState::Ready => "serves",
            TenantKeyState::DatabaseBehind => {
                "the database is older than the keeper: an old copy was put in its place. If the newer database file is \
                 still there, put it back and start again; if not, run `pii-vault restore`, which keeps everyone living \
                 in this copy and erases again who was erased since. See docs/RECOVERY.md#i-restored-the-wrong-day"
            }
            TenantKeyState::KeeperBehind => {
                "the keeper holds no root that opens this database: it is old, lost, another vault's, or the root key is \
                 another one. Configure a replica that is up to date or the right root key; if there is none, run \
                 `pii-vault restore` with the recovery key. See docs/RECOVERY.md#the-keeper-is-gone"
            }
            TenantKeyState::TenantErased => {
                "the tenant was erased and its keys are gone for good; its rows are being removed. Nothing is to be done"
            }
        }
    }
}

/// What the slots say about generation `d` of the database.
pub struct Start {
    pub state: TenantKeyState,
    /// The root of `d`, where the state is `Ready`.
    pub root: Option<(TenantRoot, RootBlock)>,
    /// Something in the slots must be overwritten or copied before an erasure may be called done: older, torn, under
    /// another KEK, or missing in a replica.
    pub untidy: bool,
}

/// Decides. `opens` says whether a root opens the top node in the database: only then does a slot of generation `d`
/// count. Of several right slots of `d` the one under the first KEK counts: the others are those of a rotation that was
/// interrupted.
pub fn start(
    vault: VaultId,
    keks: &[RootKek],
    d: Generation,
    slots: &TenantSlots,
    opens: impl Fn(&TenantRoot) -> bool,
) -> Start {
    let refused = |state| Start { state, root: None, untidy: false };
    if slots.tombstoned() {
        return refused(TenantKeyState::TenantErased);
    }
    let root = keks.iter().find_map(|kek| {
        let id = kek.id();
        slots.roots().filter(|block| block.generation == d && block.kek == id).find_map(|block| {
            let aad = root_block_aad(vault, block.tenant, block.generation, &block.kek);
            let root = kek.unwrap(&aad, &block.wrapped).ok().filter(&opens)?;
            Some((root, block.clone()))
        })
    });
    let next = Generation(d.0 + 1);
    let highest = slots.highest();
    match (root, highest) {
        // d + 1 beside d is left alone: it was written before a commit that did not happen, or before one that this
        // reading of the database does not show. The next swap overwrites it under the lock.
        (Some(root), Some(highest)) if highest <= next => {
            let holding = slots.roots().filter(|block| **block == root.1).count();
            let other = slots.roots().any(|block| block.generation < d || (block.generation == d && *block != root.1));
            let replicas = {
                let mut seen: Vec<usize> = slots.found.iter().map(|found| found.replica).collect();
                seen.dedup();
                seen.len()
            };
            let untidy = other || slots.torn > 0 || slots.away > 0 || holding < replicas;
            Start { state: TenantKeyState::Ready, root: Some(root), untidy }
        }
        (_, Some(highest)) if highest > d => refused(TenantKeyState::DatabaseBehind),
        _ => refused(TenantKeyState::KeeperBehind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TenantNo;
    use crate::keyring::keeper::{Found, FoundSlot};

    const VAULT: VaultId = VaultId([3; 16]);
    const TENANT: TenantNo = TenantNo(4);

    struct Bench {
        kek: RootKek,
        slots: TenantSlots,
    }

    impl Bench {
        fn new() -> Self {
            Bench { kek: RootKek::generate(), slots: TenantSlots::default() }
        }
        fn put(mut self, replica: usize, slot: u8, generation: u64) -> Self {
            let generation = Generation(generation);
            let id = self.kek.id();
            let aad = root_block_aad(VAULT, TENANT, generation, &id);
            // A root that tells its generation, so that `opens` can play the top node.
            let wrapped = self.kek.wrap(&aad, &TenantRoot::from_bytes(&[generation.0 as u8; 32]));
            let block = RootBlock { tenant: TENANT, generation, kek: id, wrapped };
            self.slots.found.push(FoundSlot { replica, slot, what: Found::Root(block) });
            self
        }
        fn tombstone(mut self) -> Self {
            self.slots.found.push(FoundSlot { replica: 0, slot: 0, what: Found::Tombstone });
            self
        }
        fn start(&self, d: u64) -> (TenantKeyState, bool) {
            let start = start(VAULT, std::slice::from_ref(&self.kek), Generation(d), &self.slots, |_| true);
            assert_eq!(start.root.is_some(), start.state == TenantKeyState::Ready);
            assert!(start.root.is_none_or(|(_, block)| block.generation == Generation(d)));
            (start.state, start.untidy)
        }
    }

    #[test]
    fn every_row_of_the_table() {
        use TenantKeyState::*;
        let bench = Bench::new;
        assert_eq!(bench().put(0, 0, 5).start(5), (Ready, false));
        assert_eq!(bench().put(0, 0, 4).put(0, 1, 5).start(5), (Ready, true), "an older one is to be overwritten");
        assert_eq!(bench().put(0, 0, 5).put(0, 1, 6).start(5), (Ready, false), "d + 1 is not discarded");
        assert_eq!(bench().put(0, 0, 6).put(0, 1, 7).start(5).0, DatabaseBehind);
        assert_eq!(bench().put(0, 0, 6).start(5).0, DatabaseBehind);
        assert_eq!(bench().put(0, 0, 5).put(0, 1, 7).start(5).0, DatabaseBehind, "d + 2 is no crash of ours");
        assert_eq!(bench().put(0, 0, 3).put(0, 1, 4).start(5).0, KeeperBehind);
        assert_eq!(bench().start(5).0, KeeperBehind);
        assert_eq!(bench().put(0, 0, 5).tombstone().start(5).0, TenantErased);
        assert_eq!(bench().put(0, 0, 5).put(1, 0, 4).start(5), (Ready, true), "a replica without d");
        let mut torn = bench().put(0, 0, 5);
        torn.slots.torn = 1;
        assert_eq!(torn.start(5), (Ready, true));
    }

    #[test]
    fn d_counts_only_if_its_root_opens_the_tree() {
        let bench = Bench::new().put(0, 0, 5);
        let keks = std::slice::from_ref(&bench.kek);
        let stranger = start(VAULT, keks, Generation(5), &bench.slots, |_| false);
        assert_eq!(stranger.state, TenantKeyState::KeeperBehind);
        let other_kek = start(VAULT, &[RootKek::generate()], Generation(5), &bench.slots, |_| true);
        assert_eq!(other_kek.state, TenantKeyState::KeeperBehind);
        let other_vault = start(VaultId([4; 16]), keks, Generation(5), &bench.slots, |_| true);
        assert_eq!(other_vault.state, TenantKeyState::KeeperBehind);
    }
}
