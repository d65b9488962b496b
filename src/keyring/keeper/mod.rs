//! The small erasable store of tenant roots: the only place where destroying bytes counts.

pub mod block;
mod file;
mod guard;
mod inspect;
pub mod medium;
mod objects;
mod opening;
mod own;
mod peek;
mod replica;
mod replicas;
#[cfg(any(test, feature = "testing"))]
pub mod sim;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_guard;
mod turns;
#[cfg(test)]
mod vectors;

use std::sync::Arc;

use async_trait::async_trait;

use crate::clock::Timestamp;
use crate::crypto::aad::{Aad, Kind};
use crate::crypto::sign::Signing;
use crate::ids::{Generation, TenantNo, VaultId};
use crate::keyring::ledger::{LedgerEntry, LedgerError, LedgerHead, LedgerReader};

pub use file::FileKeeper;
pub use guard::{Guard, media};
pub use inspect::{Finding, inspect};
pub use objects::TokenObjects;
pub use own::{Anchor, Link, link_of, open_signing, seal_signing};
pub use peek::peek_signing;

/// Bytes of a wrapped root: nonce 12, key 32, tag 16.
pub const WRAPPED: usize = 60;
/// Most bytes an own block holds.
pub const OWN_CAPACITY: usize = 400;

/// A tenant's root of one generation, wrapped by a root KEK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootBlock {
    pub tenant: TenantNo,
    pub generation: Generation,
    /// Id of the root KEK that wrapped it.
    pub kek: [u8; 16],
    /// Nonce, sealed root and tag: 60 bytes.
    pub wrapped: Vec<u8>,
}

/// What a root is bound to: the header of its block.
pub fn root_block_aad(vault: VaultId, tenant: TenantNo, generation: Generation, kek: &[u8; 16]) -> Aad {
    Aad::new(Kind::Root, vault, tenant).part(&generation.0.to_be_bytes()).part(kek)
}

/// The right contents of a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    Root(RootBlock),
    /// The tenant was erased.
    Tombstone,
}

/// One slot whose check is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundSlot {
    /// Position of the replica in the configuration, from 0.
    pub replica: usize,
    /// 0 or 1.
    pub slot: u8,
    pub what: Found,
}

/// A tenant's slots over all replicas that can be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TenantSlots {
    /// In order of replica and slot.
    pub found: Vec<FoundSlot>,
    /// Slots with bytes in them whose check is wrong.
    pub torn: u32,
    /// Slots of zeros.
    pub empty: u32,
    /// Replicas that could not be read.
    pub away: u32,
}

impl TenantSlots {
    /// The tenant was erased: a tombstone in one slot of one replica decides.
    pub fn tombstoned(&self) -> bool {
        self.found.iter().any(|f| f.what == Found::Tombstone)
    }
    /// The roots, in order of replica and slot.
    pub fn roots(&self) -> impl Iterator<Item = &RootBlock> {
        self.found.iter().filter_map(|f| match &f.what {
            Found::Root(block) => Some(block),
            Found::Tombstone => None,
        })
    }
    /// The highest generation of any slot.
    pub fn highest(&self) -> Option<Generation> {
        self.roots().map(|block| block.generation).max()
    }
}

/// Blocks for the vault's own small secrets and marks; never in a root block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum OwnBlock {
    /// The signing key, sealed under the root KEK.
    Signing = 1,
    /// Position and heads of audit and ledger.
    Anchor = 2,
}

/// Whether a replica takes part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicaState {
    Active,
    /// Could not be opened, read, written or synced. Swaps wait until it is back or retired.
    Away {
        reason: String,
    },
    /// Given up by a named declaration.
    Retired,
}

/// One replica for health, metrics and receipts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// Position in the configuration, from 0.
    pub index: usize,
    /// Random identity of the replica; zeros where it could not be read.
    pub id: [u8; 16],
    /// Where it is; for operators, not for callers.
    pub place: String,
    pub state: ReplicaState,
}

impl ReplicaStatus {
    /// That it is away and why, in a line for operators.
    pub fn away(&self) -> Option<String> {
        let ReplicaState::Away { reason } = &self.state else { return None };
        Some(format!("keeper replica {} is away, erasures wait: {reason}", self.index))
    }
}

/// What a keeper can answer instead of doing what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeeperError {
    /// Nothing is acknowledged until every active replica has it.
    #[error("keeper replica {index} is away")]
    ReplicaAway { index: usize },
    /// No replica can be read.
    #[error("no keeper replica can be read")]
    NoReplica,
    /// The slots hold a higher generation than they may: the database is older than the keeper.
    #[error("the keeper holds generation {found} of tenant {tenant}")]
    Newer { tenant: TenantNo, found: Generation },
    /// Writing could destroy the only present root: the slots are not what the caller believes.
    #[error("the slots of tenant {tenant} do not hold what this builds on")]
    Unsure { tenant: TenantNo },
    /// The tenant was erased; its number is never used again.
    #[error("tenant {tenant} was erased")]
    Tombstoned { tenant: TenantNo },
    /// The block or the call has the wrong form.
    #[error("refused: {rule}")]
    Refused { rule: &'static str },
    /// `unlock` was not called.
    #[error("the ledger has no signing key yet")]
    NoSigner,
    /// The ledger's bytes contradict one another.
    #[error("the ledger cannot be used")]
    Ledger(#[from] LedgerError),
    /// The files are not a keeper of this vault.
    #[error("not a keeper of this vault: {what}")]
    Foreign { what: &'static str },
    /// No space left; nothing was written.
    #[error("the keeper's disk is full")]
    DiskFull,
    /// `create` does not overwrite.
    #[error("a keeper is there already")]
    Exists,
    /// Another process has the keeper open.
    #[error("the keeper is in use by another process")]
    InUse,
    /// The operating system refused; the text holds no secret.
    #[error("keeper file: {what}")]
    Io { what: String },
    /// The keeper was closed.
    #[error("the keeper is closed")]
    Closed,
}

/// The erasable store. Every method that changes something answers `Ok` only when the change is durable in every
/// active replica. Roots are read seldom (start, swap), so implementations may serve all calls from one thread.
#[async_trait]
pub trait Keeper: Send + Sync {
    /// Whose roots it keeps.
    fn vault(&self) -> VaultId;
    /// E.g. `file`.
    fn kind(&self) -> &'static str;
    /// What destroying means here: `logical` (against backups, database theft, file copies) or `physical`.
    fn assurance(&self) -> &'static str;
    /// Gives the key that signs the ledger, once it was read from its own block.
    fn unlock(&self, signing: Arc<Signing>);

    /// The tenant's slots over all replicas that can be read.
    async fn read(&self, tenant: TenantNo) -> Result<TenantSlots, KeeperError>;
    /// Tenants with a right slot in any replica, ascending; tombstones count.
    async fn tenants(&self) -> Result<Vec<TenantNo>, KeeperError>;
    /// Writes generation g into the slot that does not hold g - 1. Where g is 1, both slots must be free.
    async fn write_next(&self, block: RootBlock) -> Result<(), KeeperError>;
    /// Writes the present generation under another KEK beside the present block; `destroy_except` ends it.
    async fn rewrap(&self, block: RootBlock) -> Result<(), KeeperError>;
    /// Copies the root of `generation` under `kek` into every replica that lacks it, from one that has it.
    async fn refresh(&self, tenant: TenantNo, generation: Generation, kek: [u8; 16]) -> Result<(), KeeperError>;
    /// Overwrites every slot that is not a root of `keep` or of a higher generation: older and torn ones, and empty
    /// ones too, since what reads as zeros may not have reached the disk. `Unsure` where a replica lacks `keep`.
    async fn destroy(&self, tenant: TenantNo, keep: Generation) -> Result<(), KeeperError>;
    /// As `destroy`, and overwrites also roots of `keep` under another KEK.
    async fn destroy_except(&self, tenant: TenantNo, keep: Generation, kek: [u8; 16]) -> Result<(), KeeperError>;
    /// Puts tombstones into both slots. May be repeated.
    async fn tombstone(&self, tenant: TenantNo) -> Result<(), KeeperError>;

    /// Writes an own block, at most 400 bytes, in turn into one of its two places; `sequence` must grow.
    async fn put_own(&self, which: OwnBlock, bytes: &[u8], sequence: u64) -> Result<(), KeeperError>;
    /// The right one with the highest sequence.
    async fn own(&self, which: OwnBlock) -> Result<Option<(u64, Vec<u8>)>, KeeperError>;

    /// Appends as one signed batch; the head after it.
    async fn append_ledger(&self, entries: Vec<LedgerEntry>) -> Result<LedgerHead, KeeperError>;
    /// Reads from the beginning; blocking, so not on the runtime's threads.
    async fn ledger(&self) -> Result<LedgerReader, KeeperError>;
    /// Head of what is durable.
    async fn ledger_head(&self) -> Result<LedgerHead, KeeperError>;

    /// All configured replicas, in order.
    fn replicas(&self) -> Vec<ReplicaStatus>;
    /// Tries the replicas that are away once more; what is back is brought up to date (its roots by `refresh`).
    async fn rejoin(&self) -> Result<(), KeeperError>;
    /// Gives up a replica that is away, for good: swaps go on without it, and it is wiped should it return.
    async fn retire(&self, replica: usize, at: Timestamp) -> Result<(), KeeperError>;
    /// Ids of the replicas given up so far, with the time of each declaration; receipts print them.
    fn retired(&self) -> Vec<([u8; 16], Timestamp)>;
}
