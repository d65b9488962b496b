//! The ledger: an append-only, chained and signed list of decisions that a restore must not undo. It names subjects by
//! row number and objects by their random ids; no value and no caller-chosen id.

use crate::clock::Timestamp;
use crate::ids::{ClassNo, DekVersion, Generation, ObjectId, SubjectUid, TenantNo};

/// What was decided. The numbers are stored and never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum LedgerKind {
    /// Access is refused from here on; the keys still live.
    Accepted = 1,
    /// An erasure will be due at `until`.
    Scheduled = 2,
    Cancelled = 3,
    /// The keys of (uid, class, versions up to `version`) are destroyed.
    Erased = 4,
    HoldPlaced = 5,
    HoldReleased = 6,
    CredentialRevoked = 7,
    RoleNarrowed = 8,
    ConsentWithdrawn = 9,
    Objected = 10,
    Restricted = 11,
    TenantErased = 12,
}

/// One decision. What a kind does not use is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerEntry {
    pub kind: LedgerKind,
    pub tenant: TenantNo,
    pub uid: SubjectUid,
    pub class: ClassNo,
    /// For `Erased`: this version and all below.
    pub version: DekVersion,
    pub generation: Generation,
    pub at: Timestamp,
    /// Operation, hold or credential; the nil UUID where there is none.
    pub object: ObjectId,
    /// When a schedule is due or a hold ends; 0: none.
    pub until: Timestamp,
    /// Number of a role, purpose or recipient; 0: none.
    pub number: u32,
}

/// Position in the ledger: number of the last entry (0: none) and hash of the last batch (zeros: none).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LedgerHead {
    pub seq: u64,
    pub hash: [u8; 32],
}

/// What is wrong with a ledger.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// Bytes that were once written whole are no longer what they were.
    #[error("damaged at byte {offset}: {what}")]
    Damaged { offset: u64, what: &'static str },
    /// Two replicas went different ways from the same batch.
    #[error("two replicas disagree")]
    Fork,
    /// The anchor names a batch that is not there: the end is missing, or it is another ledger.
    #[error("entry {seq} that the anchor names is not there")]
    Behind { seq: u64 },
    #[error("could not be read: {what}")]
    Io { what: String },
}

/// Reads batches from the beginning.
pub struct LedgerReader {
    _private: (),
}
