//! An entry of the ledger: one decision, in 62 bytes.

use crate::clock::Timestamp;
use crate::ids::{ClassNo, DekVersion, Generation, ObjectId, SubjectUid, TenantNo};

/// Bytes of an entry.
pub(super) const ENTRY: usize = 62;
/// `number` of an `Erased` entry whose operation took the whole subject: a tombstone stands for it.
pub const WHOLE: u32 = 1;

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

impl LedgerKind {
    fn from_number(number: u8) -> Option<Self> {
        use LedgerKind::*;
        [
            Accepted,
            Scheduled,
            Cancelled,
            Erased,
            HoldPlaced,
            HoldReleased,
            CredentialRevoked,
            RoleNarrowed,
            ConsentWithdrawn,
            Objected,
            Restricted,
            TenantErased,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == number)
    }
}

impl LedgerEntry {
    /// A decision with nothing but what, where and when.
    pub(crate) fn new(kind: LedgerKind, tenant: TenantNo, at: Timestamp) -> Self {
        LedgerEntry {
            kind,
            tenant,
            uid: SubjectUid(0),
            class: ClassNo(0),
            version: DekVersion(0),
            generation: Generation(0),
            at,
            object: ObjectId(uuid::Uuid::nil()),
            until: Timestamp(0),
            number: 0,
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.kind as u8, self.class.0]);
        out.extend_from_slice(&self.tenant.0.to_be_bytes());
        out.extend_from_slice(&self.uid.0.to_be_bytes());
        out.extend_from_slice(&self.version.0.to_be_bytes());
        out.extend_from_slice(&self.generation.0.to_be_bytes());
        out.extend_from_slice(&self.at.0.to_be_bytes());
        out.extend_from_slice(self.object.0.as_bytes());
        out.extend_from_slice(&self.until.0.to_be_bytes());
        out.extend_from_slice(&self.number.to_be_bytes());
    }

    pub(super) fn decode(bytes: &[u8; ENTRY]) -> Option<Self> {
        Some(LedgerEntry {
            kind: LedgerKind::from_number(bytes[0])?,
            class: ClassNo(bytes[1]),
            tenant: TenantNo(u32::from_be_bytes(take(bytes, 2))),
            uid: SubjectUid(i64::from_be_bytes(take(bytes, 6))),
            version: DekVersion(u32::from_be_bytes(take(bytes, 14))),
            generation: Generation(u64::from_be_bytes(take(bytes, 18))),
            at: Timestamp(i64::from_be_bytes(take(bytes, 26))),
            object: ObjectId(uuid::Uuid::from_bytes(take(bytes, 34))),
            until: Timestamp(i64::from_be_bytes(take(bytes, 50))),
            number: u32::from_be_bytes(take(bytes, 58)),
        })
    }
}

/// `N` bytes at a place that the caller knows to be there.
pub(super) fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a slice of N bytes")
}
