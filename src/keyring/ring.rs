//! The keyring of a running vault: every tenant's root, secrets and open nodes, and the one way to use a key, which is a
//! closure that never crosses an await.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::RwLock;

use crate::clock::Clock;
use crate::crypto::aad::Aad;
use crate::crypto::keys::{ClassKeys, Dek, RootKek, TenantRoot, TenantSecret};
use crate::crypto::sign::Signing;
use crate::ids::*;
use crate::keyring::allocate::Slots;
use crate::keyring::archive::KeyArchive;
use crate::keyring::cache::{ClassCache, NodeCache};
use crate::keyring::error::KeyringError;
use crate::keyring::keeper::{
    Anchor, Keeper, Link, OwnBlock, RootBlock, link_of, open_signing, root_block_aad, seal_signing,
};
use crate::keyring::names::{ClassRef, KeyRef, SecretKind, secret_slot};
use crate::keyring::state::{self, TenantKeyState};
use crate::keyring::swap::{Hook, Queue, Unsettled};
use crate::keyring::tree::{self, OpenNode, RESERVED, Tree};
use crate::storage::{ChangeSet, CommitListener, Mutation, NodeRow, Store, TenantRow, TenantState};

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
    /// Tells that a swap replaced `present`.
    pub replaced: tokio::sync::Notify,
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
            replaced: tokio::sync::Notify::new(),
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
    pub(super) opening: [tokio::sync::Mutex<()>; TURNS],
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
                if let Some(leaf_0) = tree.open_path(&root, &rows) {
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

    /// The key archive, if there is one, active or not.
    pub fn archive(&self) -> Option<&Arc<KeyArchive>> {
        self.options.archive.as_ref()
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
