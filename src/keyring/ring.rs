//! The keyring of a running vault: every tenant's root, secrets and open nodes, and the one way to use a key, which is a
//! closure that never crosses an await.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Weak};

use parking_lot::RwLock;

use crate::clock::Clock;
use crate::crypto::aad::Aad;
use crate::crypto::keys::{ClassKeys, Dek, RootKek, TenantRoot, TenantSecret};
use crate::crypto::sign::Signing;
use crate::ids::*;
use crate::keyring::allocate::Slots;
use crate::keyring::archive::{KeyArchive, NewLeaf, SettingRefused};
use crate::keyring::cache::{ClassCache, NodeCache};
use crate::keyring::keeper::{
    Anchor, Keeper, KeeperError, Link, OwnBlock, RootBlock, link_of, open_signing, root_block_aad, seal_signing,
};
use crate::keyring::state::{self, TenantKeyState};
use crate::keyring::swap::{Hook, Queue, Unsettled};
use crate::keyring::tree::{self, OpenNode, RESERVED, Tree, TreeError};
use crate::storage::{ChangeSet, CommitListener, Mutation, NodeRow, Store, StoreError, TenantRow, TenantState};

/// Which of a tenant's own secrets. Each has its place among the reserved slots of leaf 0; a kind that rotates has two,
/// taken in turn by the parity of the version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SecretKind {
    /// Subject ids and tombstones; lives as long as the tenant.
    Digest,
    /// Blind indexes.
    Index,
    Token,
    PasswordPepper,
    /// Tenant 0 only.
    ApiPepper,
    /// Tenant 0 only.
    PageToken,
}

/// The reserved slot of a version of a secret: what to drop when that version retires.
pub fn secret_slot(kind: SecretKind, version: SecretVersion) -> Slot {
    let turn = (version.0 & 1) as u32;
    Slot(match kind {
        SecretKind::Digest => 0,
        SecretKind::Index => 1 + turn,
        SecretKind::Token => 3 + turn,
        SecretKind::PasswordPepper => 5 + turn,
        SecretKind::ApiPepper => 7 + turn,
        SecretKind::PageToken => 9 + turn,
    })
}

/// Where a key lies and which key must lie there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyRef {
    pub slot: Slot,
    pub dek: DekId,
}

/// A subject's class and its key, as its row says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassRef {
    pub tenant: TenantNo,
    pub uid: SubjectUid,
    pub class: ClassNo,
    pub key: KeyRef,
}

/// Why a key cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// Its keys are not in a state to serve.
    #[error("the keys of tenant {tenant} are not usable: {state:?}")]
    Refused { tenant: TenantNo, state: TenantKeyState },
    #[error("there is no tenant {tenant}")]
    UnknownTenant { tenant: TenantNo },
    /// The slot holds another key than the row said: the row is of another time. Read it again; if it still says so, it
    /// is damage.
    #[error("slot {slot} holds another key")]
    OtherKey { slot: Slot },
    /// A node does not open although its parent is of the same snapshot.
    #[error("the key tree of tenant {tenant} is damaged")]
    Damaged { tenant: TenantNo, source: TreeError },
    /// Every slot of the tree is given.
    #[error("no slot is left in the tree of tenant {tenant}")]
    Full { tenant: TenantNo },
    /// No slot may be given: the key archive cannot be written.
    #[error("no covered slot is left in the tree of tenant {tenant}")]
    Uncovered { tenant: TenantNo },
    /// The keeper's signing key does not open: the root KEK is another one, or the block is damaged.
    #[error("this root KEK is not the one the keeper was made with")]
    WrongKek,
    /// The keeper has no signing key: `init` was not run, or the block is lost.
    #[error("the keeper holds no signing key")]
    NoSigningKey,
    /// The number is in the keeper or the database already.
    #[error("tenant number {tenant} is taken")]
    NumberTaken { tenant: TenantNo },
    #[error(transparent)]
    Recovery(#[from] SettingRefused),
    /// The task that swaps roots died; restart.
    #[error("the keyring has stopped")]
    Stopped,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Keeper(#[from] KeeperError),
}

/// Sizes and parts of a keyring.
#[derive(Clone)]
pub struct KeyringOptions {
    /// Bytes of nodes in clear.
    pub node_bytes: usize,
    /// Class keys with ready ciphers, about 800 bytes each.
    pub class_keys: usize,
    pub clock: Arc<dyn Clock>,
    /// The key archive, active or not; `None` only where nothing is ever recorded.
    pub archive: Option<Arc<KeyArchive>>,
    /// Called at each point of a swap; for crash tests.
    pub hook: Option<Hook>,
}

impl KeyringOptions {
    /// 64 MiB of nodes, 20,000 class keys, no key archive.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        KeyringOptions { node_bytes: 64 << 20, class_keys: 20_000, clock, archive: None, hook: None }
    }
}

/// The present root. Loaders hold its read lock while they have nodes of its tree open outside the cache; a swap takes
/// the write lock to replace it, so that it waits for them.
pub(super) struct Present {
    pub generation: Generation,
    pub root: TenantRoot,
    /// Id of the root KEK that wraps it in the keeper.
    pub kek: [u8; 16],
}

/// One tenant's keys in memory.
pub(super) struct TenantKeys {
    pub no: TenantNo,
    pub state: RwLock<TenantKeyState>,
    pub present: RwLock<Option<Present>>,
    /// The reserved slots of leaf 0; empty unless `Ready`.
    pub secrets: RwLock<Vec<TenantSecret>>,
    /// The swap lock: births and swaps one at a time.
    pub swap: tokio::sync::Mutex<Unsettled>,
    pub queue: parking_lot::Mutex<Queue>,
    /// `None` until the first slot is wanted.
    pub slots: parking_lot::Mutex<Option<Slots>>,
}

impl TenantKeys {
    fn new(no: TenantNo, state: TenantKeyState) -> Self {
        TenantKeys {
            no,
            state: RwLock::new(state),
            present: RwLock::new(None),
            secrets: RwLock::new(Vec::new()),
            swap: tokio::sync::Mutex::new(Unsettled::default()),
            queue: parking_lot::Mutex::new(Queue::default()),
            slots: parking_lot::Mutex::new(None),
        }
    }
    pub fn check_ready(&self) -> Result<(), KeyringError> {
        match *self.state.read() {
            TenantKeyState::Ready => Ok(()),
            state => Err(KeyringError::Refused { tenant: self.no, state }),
        }
    }
    /// Takes over the reserved slots of a new leaf 0.
    pub fn set_secrets(&self, leaf_0: &OpenNode) {
        *self.secrets.write() = (0..RESERVED as usize).map(|index| leaf_0.keys.secret(index)).collect();
    }
}

/// What `open_nodes` does with what it opened.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// Into the cache; nothing is answered.
    InCache,
    /// Nothing into the cache; copies are answered. Only under the swap lock, so that no purge misses them.
    Copies,
}

/// See the module.
pub struct Keyring {
    pub(super) store: Arc<dyn Store>,
    pub(super) keeper: Arc<dyn Keeper>,
    /// The first one wraps; the others, if any, still open what a rotation has not rewrapped yet.
    pub(super) keks: RwLock<Vec<RootKek>>,
    pub(super) vault: VaultId,
    pub(super) options: KeyringOptions,
    pub(super) nodes: NodeCache,
    pub(super) classes: ClassCache,
    tenants: RwLock<HashMap<TenantNo, Arc<TenantKeys>>>,
    /// Turns at opening leaves, by the leaf's number.
    opening: [tokio::sync::Mutex<()>; TURNS],
    pub(super) signer: RwLock<Signer>,
    /// One change of the keeper's own signing block at a time.
    pub(super) own_turn: tokio::sync::Mutex<()>,
}

/// The key that signs, and those that receipts of before were signed with.
pub(super) struct Signer {
    pub signing: Arc<Signing>,
    /// The present public key first, then former ones.
    pub public_keys: Vec<[u8; 32]>,
    /// What the keeper's block says about the key before; `None` for a first key.
    pub link: Option<Link>,
}

/// Leaves that are opened beside one another.
const TURNS: usize = 32;
/// How often a snapshot is taken anew while swaps go on beside it.
const MOST_SNAPSHOTS: usize = 100;

impl Keyring {
    /// Makes the keys of a new vault: the signing key in the keeper and the tree of tenant 0, whose row and first
    /// change come from the caller; then opens it.
    ///
    /// # Errors
    /// `NumberTaken` where there is a tenant 0 already.
    pub async fn init(
        store: Arc<dyn Store>,
        keeper: Arc<dyn Keeper>,
        kek: RootKek,
        options: KeyringOptions,
        row: TenantRow,
        with: ChangeSet,
    ) -> Result<Arc<Self>, KeyringError> {
        let present = keeper.own(OwnBlock::Signing).await?;
        if present.is_none() {
            let bytes = seal_signing(keeper.vault(), &kek, &Signing::generate(), None);
            keeper.put_own(OwnBlock::Signing, &bytes, 1).await?;
        }
        let ring = Self::open(store, keeper, kek, options).await?;
        ring.create_tenant(TenantRow { no: TenantNo::VAULT, ..row }, with).await?;
        Ok(ring)
    }

    /// Opens the keyring and finds the state of each tenant; one that is refused stops only itself.
    pub async fn open(
        store: Arc<dyn Store>,
        keeper: Arc<dyn Keeper>,
        kek: RootKek,
        options: KeyringOptions,
    ) -> Result<Arc<Self>, KeyringError> {
        Self::open_with(store, keeper, vec![kek], options).await
    }

    /// The same with several root KEKs, as a rotation that was interrupted needs them. The one that seals the signing key
    /// is the present one: a rotation moves that first.
    pub async fn open_with(
        store: Arc<dyn Store>,
        keeper: Arc<dyn Keeper>,
        mut keks: Vec<RootKek>,
        options: KeyringOptions,
    ) -> Result<Arc<Self>, KeyringError> {
        let vault = keeper.vault();
        let (_, block) = keeper.own(OwnBlock::Signing).await?.ok_or(KeyringError::NoSigningKey)?;
        let present = keks.iter().position(|kek| block.starts_with(&kek.id())).ok_or(KeyringError::WrongKek)?;
        keks.swap(0, present);
        let signing = Arc::new(open_signing(vault, &keks[0], &block).map_err(|_| KeyringError::WrongKek)?);
        let mut public_keys = vec![signing.public()];
        let link = link_of(&block).filter(|link| link.is_right(vault, &signing.public()));
        public_keys.extend(link.iter().map(|link| link.former));
        keeper.unlock(signing.clone());
        if let Some(archive) = &options.archive {
            archive.unlock(signing.clone(), &public_keys)?;
            let former = archive.setting().iter().flat_map(|setting| setting.former_signers()).collect::<Vec<_>>();
            public_keys.extend(former.into_iter().filter(|key| link.is_none_or(|link| link.former != *key)));
            archive.sign_as(signing.clone(), &public_keys);
        }
        if !options.archive.as_ref().is_some_and(|archive| archive.active()) {
            tracing::warn!(
                "there is no recovery key: whoever loses the keeper or the root key loses every subject of this vault"
            );
        }
        let ring = Arc::new(Keyring {
            nodes: NodeCache::new(options.node_bytes),
            classes: ClassCache::new(options.class_keys),
            tenants: RwLock::new(HashMap::new()),
            opening: Default::default(),
            store,
            keeper,
            keks: RwLock::new(keks),
            vault,
            options,
            signer: RwLock::new(Signer { signing, public_keys, link }),
            own_turn: tokio::sync::Mutex::new(()),
        });
        for row in ring.store.tenants().await? {
            let tenant = Arc::new(TenantKeys::new(row.no, TenantKeyState::KeeperBehind));
            let state = ring.start(&tenant, row.generation).await?;
            if state != TenantKeyState::Ready && row.state != TenantState::Erased {
                let (state, advice) = (state.name(), state.advice());
                tracing::error!(tenant = row.no.0, state, advice, "the keys of a tenant are refused; the others serve");
            }
            ring.tenants.write().insert(row.no, tenant);
        }
        ring.store.set_listener(Arc::new(Listener(Arc::downgrade(&ring))));
        Ok(ring)
    }

    /// Finds a tenant's state, and tidies the keeper where the database's generation is the keeper's.
    async fn start(&self, tenant: &TenantKeys, d: Generation) -> Result<TenantKeyState, KeyringError> {
        let slots = self.keeper.read(tenant.no).await?;
        let path = tree::path(tree::leaf(0));
        let snapshot = self.store.nodes(tenant.no, path).await?;
        let rows: Vec<&NodeRow> = snapshot.nodes.iter().flatten().collect();
        let tree = self.tree(tenant.no);
        let start = state::start(self.vault, &self.keks.read(), d, &slots, |root| {
            rows.first().is_some_and(|top| top.ordinal == tree::TOP && tree.open_top(root, top).is_ok())
        });
        let state = match start.root {
            Some((root, block)) => {
                if let Some(leaf_0) = open_path(&tree, &root, &rows) {
                    tenant.set_secrets(&leaf_0);
                    *tenant.present.write() = Some(Present { generation: d, root, kek: block.kek });
                    if start.untidy {
                        let mut unsettled = tenant.swap.lock().await;
                        unsettled.destroy = Some(d);
                        self.tidy(tenant.no, &block, &mut unsettled).await;
                    }
                    TenantKeyState::Ready
                } else {
                    // The top opens and leaf 0 does not: one row was damaged or rolled back alone.
                    tracing::error!(tenant = tenant.no.0, "the key tree is damaged below its top");
                    TenantKeyState::KeeperBehind
                }
            }
            None => start.state,
        };
        *tenant.state.write() = state;
        Ok(state)
    }

    /// Copies the present root into replicas that lack it and overwrites what is older; what fails stays to be done
    /// before the next swap.
    async fn tidy(&self, no: TenantNo, block: &RootBlock, unsettled: &mut Unsettled) {
        let done = async {
            self.keeper.refresh(no, block.generation, block.kek).await?;
            self.keeper.destroy_except(no, block.generation, block.kek).await
        };
        match done.await {
            Ok(()) => unsettled.destroy = None,
            Err(error) => tracing::warn!(tenant = no.0, %error, "old roots are not overwritten yet"),
        }
    }

    /// Random identity of the vault.
    pub fn vault(&self) -> VaultId {
        self.vault
    }
    /// Signs receipts, checkpoints, ledger.
    pub fn signing(&self) -> Arc<Signing> {
        self.signer.read().signing.clone()
    }
    /// The present public key first, then former ones.
    pub fn public_keys(&self) -> Vec<[u8; 32]> {
        self.signer.read().public_keys.clone()
    }
    pub fn keeper(&self) -> &Arc<dyn Keeper> {
        &self.keeper
    }
    /// Writes where audit and ledger stand into the keeper, in the other of the anchor's two places.
    pub async fn put_anchor(&self, anchor: &Anchor) -> Result<(), KeyringError> {
        let sequence = self.keeper.own(OwnBlock::Anchor).await?.map_or(0, |(sequence, _)| sequence) + 1;
        let bytes = anchor.encode(self.vault, &self.keks.read()[0]);
        self.keeper.put_own(OwnBlock::Anchor, &bytes, sequence).await?;
        Ok(())
    }
    /// What the keeper's anchor says; `None` if there is none that this root KEK wrote.
    pub async fn anchor(&self) -> Result<Option<Anchor>, KeyringError> {
        let block = self.keeper.own(OwnBlock::Anchor).await?;
        let keks = self.keks.read();
        Ok(block.and_then(|(_, bytes)| keks.iter().find_map(|kek| Anchor::decode(self.vault, kek, &bytes))))
    }
    /// State of a tenant's keys; `KeeperBehind` for one that is not known.
    pub fn state(&self, tenant: TenantNo) -> TenantKeyState {
        self.tenants.read().get(&tenant).map_or(TenantKeyState::KeeperBehind, |keys| *keys.state.read())
    }
    /// States of all tenants, by number.
    pub fn states(&self) -> Vec<(TenantNo, TenantKeyState)> {
        let mut states: Vec<_> = self.tenants.read().values().map(|keys| (keys.no, *keys.state.read())).collect();
        states.sort_by_key(|(no, _)| *no);
        states
    }
    /// Generation of a tenant's root in memory; `None` unless `Ready`.
    pub fn generation(&self, tenant: TenantNo) -> Option<Generation> {
        self.tenants.read().get(&tenant)?.present.read().as_ref().map(|present| present.generation)
    }
    /// A number that neither database nor keeper has seen; numbers are never reused.
    pub async fn next_tenant(&self) -> Result<TenantNo, KeyringError> {
        let kept = self.keeper.tenants().await?.into_iter().max();
        let known = self.tenants.read().keys().copied().max();
        Ok(TenantNo(kept.max(known).map_or(0, |no| no.0 + 1)))
    }

    /// Makes a tenant's keys: its first root, durable in all replicas, then one change set: the row, the nodes from top
    /// to leaf 0, and `with`. Positions in a `Conflict` are those of `with`. A crash in between leaves an entry in the
    /// keeper that is listed and never collected; take another number.
    pub async fn create_tenant(&self, row: TenantRow, with: ChangeSet) -> Result<(), KeyringError> {
        let no = row.no;
        let taken = KeyringError::NumberTaken { tenant: no };
        let slots = self.keeper.read(no).await?;
        if self.tenants.read().contains_key(&no) || !slots.found.is_empty() || slots.torn > 0 {
            return Err(taken);
        }
        let generation = Generation(1);
        let root = TenantRoot::generate();
        let grown = self.tree(no).plant(&root, generation);
        let block = self.wrap(no, generation, &root);
        let kek = block.kek;
        self.keeper.write_next(block).await?;
        self.cover(no, generation, &grown).await?;
        let mut change = ChangeSet { preconditions: with.preconditions, ..ChangeSet::default() };
        change.change(Mutation::PutTenant(TenantRow { generation, ..row }));
        change.mutations.extend(grown.rows.into_iter().map(Mutation::PutNode));
        change.mutations.extend(with.mutations);
        change.audit = with.audit;
        self.store.commit(change).await?;
        let tenant = TenantKeys::new(no, TenantKeyState::Ready);
        tenant.set_secrets(&grown.nodes[&tree::leaf(0)]);
        *tenant.present.write() = Some(Present { generation, root, kek });
        self.tenants.write().insert(no, Arc::new(tenant));
        Ok(())
    }

    /// Destroys a tenant's root for good: tombstones in every replica, then everything in memory. May be repeated.
    pub async fn erase_tenant_keys(&self, tenant: TenantNo) -> Result<(), KeyringError> {
        let keys = self.tenant(tenant)?;
        let _swap = keys.swap.lock().await;
        self.keeper.tombstone(tenant).await?;
        *keys.state.write() = TenantKeyState::TenantErased;
        *keys.present.write() = None;
        keys.secrets.write().clear();
        self.nodes.purge_tenant(tenant);
        self.classes.purge_tenant(tenant);
        Ok(())
    }

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

    fn key_ref(&self, tenant: TenantNo, slot: Slot) -> Option<KeyRef> {
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

    /// The key archive, if there is one, active or not.
    pub fn archive(&self) -> Option<&Arc<KeyArchive>> {
        self.options.archive.as_ref()
    }

    /// Whether slots must be recorded before they are given.
    pub(super) fn covering(&self) -> bool {
        self.archive().is_some_and(|archive| archive.active())
    }

    /// Records the leaves among new nodes, before any of their slots is given.
    async fn cover(&self, tenant: TenantNo, tree: Generation, grown: &tree::Grown) -> Result<(), KeyringError> {
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
        let tenant = keys.no;
        let known = keys.slots.lock().is_some();
        if !known {
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
            *keys.slots.lock() = Some(Slots::new(&used, born, hold_back));
        }
        let leaves = {
            let slots = keys.slots.lock();
            let slots = slots.as_ref().expect("filled above and never emptied");
            if slots.has(n) {
                return Ok(());
            }
            slots.to_birth(n)
        };
        if leaves.is_empty() {
            return Err(KeyringError::Full { tenant });
        }
        let generation = keys.present.read().as_ref().map(|p| p.generation).ok_or(KeyringError::Stopped)?;
        let above: BTreeSet<Ordinal> = leaves
            .clone()
            .flat_map(|number| tree::path(tree::leaf(number)).into_iter().take(tree::LEVELS - 1))
            .collect();
        let nodes = self.open_nodes(keys, above, Keep::Copies, true).await?;
        let grown = self.tree(tenant).birth(&nodes, leaves.clone()).map_err(|source| damaged(tenant, source))?;
        if self.covering() {
            if self.recorded(tenant).await?.0 < leaves.start {
                // It was there, and is not any more: somebody moved or emptied the folder.
                self.rewrite(keys, true).await?;
            }
            self.cover(tenant, generation, &grown).await?;
        }
        let mut change = ChangeSet::default();
        change.require(crate::storage::Precondition::TreeGeneration { tenant, generation });
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

    /// Uses the keys of a class; with `expiry`, those of the values that end with that bucket. `None`: not in memory,
    /// or other keys than these: call [`Keyring::load`] and try again. Never nest one use of a key in another.
    pub fn with_class<R>(&self, class: ClassRef, expiry: Option<KeyRef>, f: impl FnOnce(&ClassKeys) -> R) -> Option<R> {
        let fill = || match expiry {
            None => self.with_dek(class.tenant, class.key, Dek::class_keys),
            Some(expiry) => {
                // One shard at a time: the expiry key is copied out, for the moment of deriving.
                let leaf = tree::leaf_of(expiry.slot);
                let key = self.nodes.with(class.tenant, leaf, |leaf| {
                    let key = leaf.keys.expiry(tree::index_in_leaf(expiry.slot));
                    (key.id() == expiry.dek).then_some(key)
                })??;
                self.with_dek(class.tenant, class.key, |dek| dek.expiring_keys(&key))
            }
        };
        self.classes.with(class, expiry, fill, f)
    }

    /// Uses a data key, if it is in memory and is the one that is meant.
    pub fn with_dek<R>(&self, tenant: TenantNo, key: KeyRef, f: impl FnOnce(&Dek) -> R) -> Option<R> {
        self.nodes.with(tenant, tree::leaf_of(key.slot), |leaf| {
            let dek = leaf.keys.dek(tree::index_in_leaf(key.slot));
            (dek.id() == key.dek).then(|| f(&dek))
        })?
    }

    /// Uses a tenant's own secret; `None` unless the tenant is `Ready`. The vault knows which versions are in use.
    pub fn with_secret<R>(
        &self,
        tenant: TenantNo,
        kind: SecretKind,
        version: SecretVersion,
        f: impl FnOnce(&TenantSecret) -> R,
    ) -> Option<R> {
        let keys = self.tenants.read().get(&tenant).cloned()?;
        let secrets = keys.secrets.read();
        secrets.get(secret_slot(kind, version).0 as usize).map(f)
    }

    /// Whether the present root opens this top node, which may come from a copy of an earlier day: how an old tree is
    /// shown to be dead.
    ///
    /// # Errors
    /// `Refused` unless the tenant is `Ready`.
    pub fn root_opens(&self, top: &NodeRow) -> Result<bool, KeyringError> {
        let keys = self.tenant(top.tenant)?;
        keys.check_ready()?;
        let gate = keys.present.read();
        let present = gate.as_ref().ok_or(KeyringError::Stopped)?;
        let aad = Aad::node(self.vault, top.tenant, top.ordinal, top.generation);
        Ok(present.root.open_node(&aad, &top.blob).is_ok())
    }

    /// Forgets a tenant's nodes and class keys, so that the next use loads them.
    #[cfg(test)]
    pub(super) fn forget_nodes(&self, tenant: TenantNo) {
        self.nodes.purge_tenant(tenant);
        self.classes.purge_tenant(tenant);
    }

    pub(super) fn tenant(&self, tenant: TenantNo) -> Result<Arc<TenantKeys>, KeyringError> {
        self.tenants.read().get(&tenant).cloned().ok_or(KeyringError::UnknownTenant { tenant })
    }
    pub(super) fn tree(&self, tenant: TenantNo) -> Tree {
        Tree { vault: self.vault, tenant }
    }
    pub(super) fn wrap(&self, tenant: TenantNo, generation: Generation, root: &TenantRoot) -> RootBlock {
        let keks = self.keks.read();
        let kek = keks[0].id();
        let wrapped = keks[0].wrap(&root_block_aad(self.vault, tenant, generation, &kek), root);
        RootBlock { tenant, generation, kek, wrapped }
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
    async fn open_leaves(&self, keys: &TenantKeys, wanted: &BTreeSet<Ordinal>) -> Result<(), KeyringError> {
        let missing = || wanted.iter().filter(|leaf| !self.nodes.has(keys.no, **leaf)).copied();
        let Some(first) = missing().next() else { return Ok(()) };
        let _turn = self.opening[first.0 as usize % TURNS].lock().await;
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
            // A swap has committed and not yet replaced the root in memory: wait for it. (Who holds the swap lock asks
            // for copies, and cannot meet this.)
            match (newer, keep) {
                (true, Keep::InCache) => drop(keys.swap.lock().await),
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
            open.insert(*ordinal, node.map_err(|source| damaged(tenant, source))?);
        }
        if keep == Keep::InCache {
            for (ordinal, node) in std::mem::take(&mut open) {
                self.nodes.put(tenant, ordinal, node);
            }
        }
        Ok(open)
    }
}

/// Held by the store, which the keyring holds: weak, so that both can go.
struct Listener(Weak<Keyring>);

impl CommitListener for Listener {
    /// Drops the class keys of subjects that changed. That they may not be used is the rows' matter; this keeps memory
    /// from holding keys of a subject that was just frozen or erased.
    fn committed(&self, uids: &[SubjectUid]) {
        if let Some(ring) = self.0.upgrade() {
            ring.classes.purge_subjects(uids);
        }
    }
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyring").field("vault", &self.vault).finish_non_exhaustive()
    }
}

fn damaged(tenant: TenantNo, source: TreeError) -> KeyringError {
    tracing::error!(tenant = tenant.0, error = %source, "a node of the key tree does not open");
    KeyringError::Damaged { tenant, source }
}

/// Opens leaf 0 from the four rows above and of it.
fn open_path(tree: &Tree, root: &TenantRoot, rows: &[&NodeRow]) -> Option<OpenNode> {
    let (top, below) = rows.split_first()?;
    let mut node = tree.open_top(root, top).ok()?;
    if below.len() != tree::LEVELS - 1 {
        return None;
    }
    for row in below {
        node = tree.open_child(&node, row).ok()?;
    }
    Some(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_have_places_of_their_own() {
        let mut places = BTreeSet::new();
        for kind in [
            SecretKind::Index,
            SecretKind::Token,
            SecretKind::PasswordPepper,
            SecretKind::ApiPepper,
            SecretKind::PageToken,
        ] {
            assert_eq!(secret_slot(kind, SecretVersion(1)), secret_slot(kind, SecretVersion(3)));
            assert!(
                places.insert(secret_slot(kind, SecretVersion(1)))
                    && places.insert(secret_slot(kind, SecretVersion(2)))
            );
        }
        assert!(places.insert(secret_slot(SecretKind::Digest, SecretVersion(1))));
        assert!(places.iter().all(|slot| slot.0 < RESERVED));
    }
}
