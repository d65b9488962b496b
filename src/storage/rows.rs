//! The rows a store keeps. Blobs are opaque here; the floor that made them reads them.

use crate::clock::Timestamp;
use crate::ids::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum TenantState {
    Live = 1,
    /// Access is refused; rows are being removed.
    Erasing = 2,
    /// Only this row and the audit are left.
    Erased = 3,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantRow {
    pub no: TenantNo,
    pub name: Name,
    pub state: TenantState,
    /// Generation of the key tree.
    pub generation: Generation,
    /// Settings, as JSON of the vault floor; no personal data.
    pub body: Vec<u8>,
    pub revision: Revision,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRow {
    pub tenant: TenantNo,
    pub ordinal: Ordinal,
    /// Generation in which this blob was written; part of its AAD.
    pub generation: Generation,
    /// 3,869 bytes.
    pub blob: Vec<u8>,
}

/// Nodes of one tenant and its generation, read in one snapshot.
#[derive(Debug, Clone)]
pub struct NodeSnapshot {
    pub generation: Generation,
    /// In the order asked; `None` where the node is not born.
    pub nodes: Vec<Option<NodeRow>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotUse {
    /// One above the highest slot ever given.
    pub next: Slot,
    /// Dropped slots that may be given again, ascending.
    pub free: Vec<Slot>,
}

/// What a slot is given to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SlotUser {
    Class { uid: SubjectUid, class: ClassNo, version: DekVersion },
    Expiry { class: ClassNo, bucket: Bucket },
}

/// A slot that is given, and which key must lie there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotOwner {
    pub slot: Slot,
    pub dek: DekId,
    pub user: SlotUser,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum SubjectState {
    Live = 1,
    /// Closed by the tenant: read as policy allows, erased when its time has come.
    Closed = 2,
    /// Erasure was accepted or is scheduled: every access is refused.
    Frozen = 3,
    /// All classes but held ones are erased; these are read only for the hold's purpose.
    Held = 4,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubjectRow {
    pub uid: SubjectUid,
    pub tenant: TenantNo,
    pub digest: SubjectDigest,
    /// The caller's id, sealed under a key of the tenant's digest secret.
    pub sealed_id: Vec<u8>,
    pub state: SubjectState,
    pub group: Option<GroupNo>,
    /// Grows with each change of this row; with the classes' revisions it makes the etag.
    pub revision: Revision,
    pub created: Timestamp,
    /// Day of the last activity.
    pub touched: Timestamp,
    /// When a scheduled closing or erasure is due.
    pub due: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ClassState {
    Live = 1,
    /// Erasure was asked for and a hold keeps the class: readable for the hold's purpose only.
    Restricted = 2,
    /// The key is gone; the row keeps the version, so that a class opened anew gets the next one.
    Erased = 3,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassRow {
    pub uid: SubjectUid,
    pub tenant: TenantNo,
    pub class: ClassNo,
    pub version: DekVersion,
    /// Where the data key lies; `None` once erased.
    pub slot: Option<Slot>,
    pub dek: DekId,
    pub state: ClassState,
    pub revision: Revision,
    /// Data keys given out in clear by `GenerateDataKey`.
    pub data_keys_issued: u32,
    /// Values sealed under this version.
    pub seals: u32,
    /// Earliest bucket of a section in the record.
    pub next_bucket: Option<Bucket>,
    /// All single-valued fields of the class, with their MACs.
    pub record: Vec<u8>,
}

/// A subject and its classes, as one snapshot; ciphertext only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubjectSnapshot {
    pub subject: SubjectRow,
    /// By class number.
    pub classes: Vec<ClassRow>,
}

impl SubjectSnapshot {
    /// The row of a class.
    pub fn class(&self, class: ClassNo) -> Option<&ClassRow> {
        self.classes.iter().find(|row| row.class == class)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ItemGroupKey {
    pub tenant: TenantNo,
    pub class: ClassNo,
    pub bucket: Bucket,
    pub uid: SubjectUid,
    pub field: FieldNo,
}

/// Items of one (subject, field, bucket): their count and rolling MAC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemGroupRow {
    pub key: ItemGroupKey,
    pub count: u32,
    pub revision: Revision,
    /// XOR of the items' MACs.
    pub sum: [u8; 16],
    /// MAC over key, count, revision and sum.
    pub mac: [u8; 16],
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemRow {
    pub group: ItemGroupKey,
    pub item: ItemNo,
    pub revision: Revision,
    pub origin: Timestamp,
    pub expire: Option<Timestamp>,
    pub envelope: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TermRow {
    pub tenant: TenantNo,
    pub field: FieldNo,
    pub version: SecretVersion,
    pub tag: TermTag,
    pub uid: SubjectUid,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TombstoneRow {
    pub tenant: TenantNo,
    pub digest: SubjectDigest,
    pub operation: ObjectId,
    pub at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpiryRow {
    pub tenant: TenantNo,
    pub class: ClassNo,
    pub bucket: Bucket,
    /// Where the expiry key lies; `None` once dropped, while rows are still being deleted.
    pub slot: Option<Slot>,
    pub dek: DekId,
}

/// Kinds of small records. The numbers are stored: never reuse one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ObjectKind {
    Policy = 1,
    Role = 2,
    AccessKey = 3,
    Approval = 4,
    Group = 5,
    Hold = 6,
    Operation = 7,
    Receipt = 8,
    Schedule = 9,
    Checkpoint = 10,
    SecretState = 11,
    GroupName = 12,
    Job = 13,
    Consent = 14,
    Objection = 15,
    Request = 16,
    Nominee = 17,
    Disclosure = 18,
    Credential = 19,
    OperationByTime = 20,
    SearchDebt = 21,
    Setting = 22,
    /// Rows of dead keys that are still to be deleted.
    Sweep = 23,
    /// Members of an erasure about several subjects, in parts.
    Members = 24,
    /// A placed hold by its id; `Hold` marks what it keeps.
    HoldBody = 25,
    /// Signed records of rotations, newest first by time and operation.
    Rotation = 26,
    /// Counts of a field's values, as they were last told.
    Counts = 27,
    /// People whose reading alarms, by a keyed digest of their number; sealed.
    Decoy = 28,
    /// The tree over a chain of the audit at the last checkpoint of a day, newest first by chain and day.
    AuditTree = 30,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectRow {
    pub tenant: TenantNo,
    pub kind: ObjectKind,
    pub key: Vec<u8>,
    pub revision: Revision,
    pub body: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestRow {
    pub tenant: TenantNo,
    pub request: ObjectId,
    /// Keyed digest of the request's body.
    pub fingerprint: [u8; 16],
    /// The encoded answer; holds no value.
    pub answer: Vec<u8>,
    pub at: Timestamp,
}

/// The audit entries of one tenant in one group commit, as one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditGroupRow {
    pub tenant: TenantNo,
    /// Sequence number of its first entry, from 1.
    pub first: u64,
    pub count: u32,
    /// Time of its first entry.
    pub at: Timestamp,
    /// The group as `audit::GroupBuilder::link` answers it; `audit::Group::parse` reads it. The other columns only find
    /// it: what they say is not part of the chain.
    pub body: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedRow {
    pub tenant: TenantNo,
    pub seq: u64,
    pub at: Timestamp,
    pub body: Vec<u8>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TenantCounts {
    pub subjects: u64,
    pub classes: u64,
    /// Seals of the data key that sealed most.
    pub most_seals: u64,
    pub items: u64,
    pub terms: u64,
    pub tombstones: u64,
    pub nodes: u64,
}

/// Class rows of some subjects in one pass, with the group of each subject.
#[derive(Debug, Clone)]
pub struct Survey {
    pub rows: Vec<(Option<GroupNo>, ClassRow)>,
    /// The last subject that was looked at, whether or not it has a row; the one to go on after.
    pub last: SubjectUid,
    /// How many subjects were looked at.
    pub subjects: u32,
    pub more: bool,
}

/// When an item began and ends, without its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ItemTimes {
    pub bucket: Bucket,
    pub uid: SubjectUid,
    pub field: FieldNo,
    pub item: ItemNo,
    pub origin: Timestamp,
    pub expire: Option<Timestamp>,
}
