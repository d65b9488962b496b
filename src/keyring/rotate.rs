//! Rotating what lies beside the trees: the root KEK, under which the keeper's blocks are wrapped, and the signing key.
//!
//! A root KEK goes in three steps. (1) The signing key is sealed under the new KEK in both places of its block: from then
//! on the new KEK is the present one, also after a restart. (2) Every tenant's root is wrapped under it, one tenant at a
//! time under its swap lock, and the block under the old one is overwritten in every replica. (3) When no block is under
//! the old one, it is wiped from memory. A restart between needs both.

use std::sync::Arc;

use crate::crypto::keys::RootKek;
use crate::crypto::sign::Signing;
use crate::ids::*;
use crate::keyring::error::KeyringError;
use crate::keyring::keeper::{Link, OwnBlock, seal_signing};
use crate::keyring::ring::{Keyring, Signer};
use crate::keyring::state::TenantKeyState;
use crate::keyring::swap::SwapError;
use crate::keyring::tree;

/// Roots that are not wrapped by the present KEK.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KekLeft {
    /// Tenants whose root can be rewrapped now.
    pub ready: Vec<TenantNo>,
    /// Tenants whose keys are refused, and entries of no tenant: nothing can be done about them here.
    pub stuck: Vec<TenantNo>,
}

impl KekLeft {
    /// How many there are.
    pub fn count(&self) -> u64 {
        (self.ready.len() + self.stuck.len()) as u64
    }
}

impl Keyring {
    /// Names the root KEK that wraps.
    pub fn kek_id(&self) -> [u8; 16] {
        self.keks.read()[0].id()
    }

    /// Whether a root KEK is in memory.
    pub fn has_kek(&self, id: &[u8; 16]) -> bool {
        self.keks.read().iter().any(|kek| kek.id() == *id)
    }

    /// Wraps under this KEK from now on, and seals the signing key under it. May be repeated.
    pub async fn begin_kek(&self, next: RootKek) -> Result<(), KeyringError> {
        let _turn = self.own_turn.lock().await;
        {
            let mut keks = self.keks.write();
            match keks.iter().position(|kek| kek.id() == next.id()) {
                Some(at) => keks.swap(0, at),
                None => keks.insert(0, next),
            }
        }
        self.put_present_signing().await
    }

    /// Seals the present signing key into both places of its block once more: a crash may have left the other place as it
    /// was before.
    pub async fn seal_signing_again(&self) -> Result<(), KeyringError> {
        let _turn = self.own_turn.lock().await;
        self.put_present_signing().await
    }

    async fn put_present_signing(&self) -> Result<(), KeyringError> {
        let sealed = {
            let signer = self.signer.read();
            seal_signing(self.vault, &self.keks.read()[0], &signer.signing, signer.link.as_ref())
        };
        self.put_signing(&sealed).await
    }

    /// Into both places of the block, so that nothing of what was there before stays.
    async fn put_signing(&self, sealed: &[u8]) -> Result<(), KeyringError> {
        for _ in 0..2 {
            let sequence = self.keeper.own(OwnBlock::Signing).await?.map_or(0, |(sequence, _)| sequence) + 1;
            self.keeper.put_own(OwnBlock::Signing, sealed, sequence).await?;
        }
        Ok(())
    }

    /// Wraps a tenant's root under the present KEK and overwrites the block under the one before. Answers whether there
    /// was something to do.
    ///
    /// # Errors
    /// As those of a swap; nothing is lost, and it may be repeated.
    pub async fn rewrap_root(&self, tenant: TenantNo) -> Result<bool, SwapError> {
        let refused = |_| SwapError::Refused(self.state(tenant));
        let keys = self.tenant(tenant).map_err(refused)?;
        let mut unsettled = keys.swap.lock().await;
        keys.check_ready().map_err(refused)?;
        let kek = self.kek_id();
        let block = match keys.present.read().as_ref() {
            Some(present) if present.kek == kek => return Ok(false),
            Some(present) => self.wrap(tenant, present.generation, &present.root),
            None => return Err(SwapError::Refused(self.state(tenant))),
        };
        // What an earlier swap left lies where this one writes.
        self.finish_first(&keys, &mut unsettled).await?;
        let generation = block.generation;
        self.keeper.rewrap(block).await.map_err(SwapError::KeeperAway)?;
        if let Err(error) = self.keeper.destroy_except(tenant, generation, kek).await {
            unsettled.destroy = Some(generation);
            return Err(SwapError::KeeperAway(error));
        }
        if let Some(present) = keys.present.write().as_mut() {
            present.kek = kek;
        }
        Ok(true)
    }

    /// Which roots in the keeper are not wrapped by the present KEK.
    pub async fn kek_left(&self) -> Result<KekLeft, KeyringError> {
        let kek = self.kek_id();
        let mut left = KekLeft::default();
        for tenant in self.keeper.tenants().await? {
            let slots = self.keeper.read(tenant).await?;
            if slots.tombstoned() || slots.roots().all(|block| block.kek == kek) {
                continue;
            }
            match self.state(tenant) {
                TenantKeyState::Ready => left.ready.push(tenant),
                _ => left.stuck.push(tenant),
            }
        }
        Ok(left)
    }

    /// Wipes every KEK but the present one; for when nothing is left under another.
    pub fn forget_keks(&self) {
        self.keks.write().truncate(1);
    }

    /// Puts a new signing key in place of the present one, whose private part is overwritten in the keeper. Answers how
    /// the new one follows from it.
    pub async fn rotate_signing(&self) -> Result<Link, KeyringError> {
        let _turn = self.own_turn.lock().await;
        let next = Arc::new(Signing::generate());
        let link = Link::sign(self.vault, &self.signing(), &next.public());
        let sealed = seal_signing(self.vault, &self.keks.read()[0], &next, Some(&link));
        self.put_signing(&sealed).await?;
        let public_keys = {
            let mut signer = self.signer.write();
            let mut public_keys = std::mem::take(&mut signer.public_keys);
            public_keys.insert(0, next.public());
            *signer = Signer { signing: next.clone(), public_keys, link: Some(link) };
            signer.public_keys.clone()
        };
        self.keeper.unlock(next.clone());
        if let Some(archive) = self.archive() {
            archive.sign_as(next, &public_keys);
        }
        Ok(link)
    }

    /// How many leaves a tenant's tree has.
    pub async fn leaves(&self, tenant: TenantNo) -> Result<u32, KeyringError> {
        self.count_leaves(tenant, self.store.slots(tenant).await?.next).await
    }

    /// The first leaf at or below which a node is not younger than a generation; `None`: all are. Reads the whole tree.
    pub async fn first_leaf_of(&self, tenant: TenantNo, since: Generation) -> Result<Option<u32>, KeyringError> {
        const STEP: u32 = 256;
        let mut after = None;
        loop {
            let rows = self.store.list_nodes(tenant, after, STEP).await?;
            if let Some(old) = rows.iter().find(|row| row.generation <= since) {
                return Ok(Some(tree::first_leaf_below(old.ordinal)));
            }
            match rows.last() {
                Some(last) => after = Some(last.ordinal),
                None => return Ok(None),
            }
        }
    }

    /// How the present signing key follows from the one before; `None` for a first key, or one of a restore.
    pub fn signing_link(&self) -> Option<Link> {
        self.signer.read().link
    }
}
