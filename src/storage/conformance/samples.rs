//! Rows and change sets to try a store with.

use std::sync::Arc;

use crate::audit::{Action, AuditRecord, Outcome};
use crate::clock::Timestamp;
use crate::ids::*;
use crate::storage::*;

/// The vault whose stores are tested.
pub const VAULT: VaultId = VaultId([7; 16]);
/// The tenant whose rows are tested; [`OTHER`] must never see them.
pub const T: TenantNo = TenantNo(1);
pub const OTHER: TenantNo = TenantNo(2);
pub fn digest(n: i64) -> SubjectDigest {
    SubjectDigest((n as u128).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_le_bytes())
}

pub fn tenant_row(no: TenantNo) -> TenantRow {
    TenantRow {
        no,
        name: Name::parse("tenant", &format!("tenant-{no}")).expect("a name"),
        state: TenantState::Live,
        generation: Generation(1),
        body: b"{}".to_vec(),
        revision: Revision(1),
    }
}

pub fn subject_row(uid: i64) -> SubjectRow {
    SubjectRow {
        uid: SubjectUid(uid),
        tenant: T,
        digest: digest(uid),
        sealed_id: vec![uid as u8; 40],
        state: SubjectState::Live,
        group: (uid % 2 == 0).then_some(GroupNo(5)),
        revision: Revision(1),
        created: Timestamp(1000 + uid),
        touched: Timestamp(0),
        due: None,
    }
}

/// The class's slot is `uid * 2 + class`.
pub fn class_row(uid: i64, class: u8) -> ClassRow {
    ClassRow {
        uid: SubjectUid(uid),
        tenant: T,
        class: ClassNo(class),
        version: DekVersion(1),
        slot: Some(Slot(uid as u32 * 2 + u32::from(class))),
        dek: DekId([class; 16]),
        state: ClassState::Live,
        revision: Revision(1),
        data_keys_issued: 0,
        seals: 3,
        next_bucket: None,
        record: vec![uid as u8; 300],
    }
}

pub fn group_row(uid: i64, bucket: u32) -> ItemGroupRow {
    let (tenant, class, bucket, uid, field) = (T, ClassNo(2), Bucket(bucket), SubjectUid(uid), FieldNo(9));
    let key = ItemGroupKey { tenant, class, bucket, uid, field };
    ItemGroupRow { key, count: 1, revision: Revision(1), sum: [1; 16], mac: [2; 16] }
}

pub fn item_row(uid: i64, bucket: u32, item: i64) -> ItemRow {
    ItemRow {
        group: group_row(uid, bucket).key,
        item: ItemNo(item),
        revision: Revision(1),
        origin: Timestamp(5),
        expire: Some(Timestamp(77)),
        envelope: vec![item as u8; 200],
    }
}

pub fn term(uid: i64, tag: u8) -> TermRow {
    TermRow { tenant: T, field: FieldNo(3), version: SecretVersion(1), tag: TermTag([tag; 16]), uid: SubjectUid(uid) }
}

pub fn object(key: &[u8]) -> ObjectRow {
    ObjectRow { tenant: T, kind: ObjectKind::Hold, key: key.to_vec(), revision: Revision(1), body: vec![1, 2, 3] }
}

pub fn request(n: u8) -> RequestRow {
    let request = ObjectId(uuid::Uuid::from_bytes([n; 16]));
    RequestRow { tenant: T, request, fingerprint: [n; 16], answer: vec![n], at: Timestamp(i64::from(n)) }
}

pub fn tombstone(n: i64) -> TombstoneRow {
    TombstoneRow { tenant: T, digest: digest(n), operation: ObjectId::random(), at: Timestamp(9) }
}

pub fn expiry(bucket: u32, slot: Option<u32>) -> ExpiryRow {
    ExpiryRow { tenant: T, class: ClassNo(2), bucket: Bucket(bucket), slot: slot.map(Slot), dek: DekId([3; 16]) }
}

/// An audit entry about a subject.
pub fn note(uid: i64) -> Vec<u8> {
    let mut record = AuditRecord::new(Timestamp(100 + uid), ActorId(1), Action::PutFields, Outcome::Ok);
    record.subject = Some(SubjectUid(uid));
    record.to_bytes()
}

/// A change set of these mutations.
pub fn set(mutations: impl IntoIterator<Item = Mutation>) -> ChangeSet {
    ChangeSet { mutations: mutations.into_iter().collect(), ..ChangeSet::default() }
}

/// A subject with two classes and an audit entry, as a sign-up writes it.
pub fn person(uid: i64) -> ChangeSet {
    let mut change = set([
        Mutation::PutSubject(subject_row(uid)),
        Mutation::PutClass(class_row(uid, 1)),
        Mutation::PutClass(class_row(uid, 2)),
    ]);
    change.require(Precondition::SubjectAbsent { tenant: T, digest: digest(uid) });
    change.note(T, note(uid));
    change
}

pub async fn put(store: &dyn Store, mutations: impl IntoIterator<Item = Mutation>) -> Committed {
    store.commit(set(mutations)).await.expect("a change set that nothing forbids")
}

pub async fn found(store: &dyn Store, uid: i64) -> Option<Arc<SubjectSnapshot>> {
    match store.subject(T, digest(uid)).await.expect("a read") {
        Lookup::Found(found) => Some(found),
        Lookup::Erased(_) | Lookup::Missing => None,
    }
}
