//! Columns to rows. Whatever does not have the form it was written in is damage, never a default.

use rusqlite::Row;

use super::error::{Result, engine};
use crate::clock::Timestamp;
use crate::ids::*;
use crate::storage::*;

/// `id` of a class row: the classes of a subject are one range.
pub fn class_id(uid: SubjectUid, class: ClassNo) -> i64 {
    uid.0 << 5 | i64::from(class.0 & 31)
}

/// `id` of a node row.
pub fn node_id(tenant: TenantNo, ordinal: Ordinal) -> i64 {
    i64::from(tenant.0) << 21 | i64::from(ordinal.0)
}

fn damaged<T>(what: &'static str) -> Result<T> {
    Err(StoreError::Damaged { what })
}

/// A column as a number of the type that was written.
pub fn num<T: TryFrom<i64>>(row: &Row<'_>, at: usize) -> Result<T> {
    let n: i64 = row.get(at).map_err(engine)?;
    T::try_from(n).or_else(|_| damaged("number"))
}

/// The same where it may be absent.
pub fn maybe<T: TryFrom<i64>>(row: &Row<'_>, at: usize) -> Result<Option<T>> {
    let n: Option<i64> = row.get(at).map_err(engine)?;
    n.map(|n| T::try_from(n).or_else(|_| damaged("number"))).transpose()
}

/// A column of exactly N bytes.
pub fn fixed<const N: usize>(row: &Row<'_>, at: usize) -> Result<[u8; N]> {
    match row.get_ref(at).map_err(engine)?.as_blob() {
        Ok(bytes) => bytes.try_into().or_else(|_| damaged("length")),
        Err(_) => damaged("column"),
    }
}

/// A column of bytes.
pub fn bytes(row: &Row<'_>, at: usize) -> Result<Vec<u8>> {
    match row.get_ref(at).map_err(engine)?.as_blob() {
        Ok(bytes) => Ok(bytes.to_vec()),
        Err(_) => damaged("column"),
    }
}

fn object_id(row: &Row<'_>, at: usize) -> Result<ObjectId> {
    Ok(ObjectId(uuid::Uuid::from_bytes(fixed(row, at)?)))
}

/// Columns: no, name, state, generation, revision, body.
pub fn tenant(row: &Row<'_>) -> Result<TenantRow> {
    let name: String = row.get(1).map_err(engine)?;
    Ok(TenantRow {
        no: TenantNo(num(row, 0)?),
        name: Name::parse("tenant", &name).or_else(|_| damaged("name of a tenant"))?,
        state: match num::<u8>(row, 2)? {
            1 => TenantState::Live,
            2 => TenantState::Erasing,
            3 => TenantState::Erased,
            _ => return damaged("state of a tenant"),
        },
        generation: Generation(num(row, 3)?),
        revision: Revision(num(row, 4)?),
        body: bytes(row, 5)?,
    })
}

/// The columns of `subject` and `subject_class` that [`subject`] and [`class`] read, for the aliases `s` and `c`.
pub const SNAPSHOT_COLUMNS: &str = "s.uid, s.tenant, s.digest, s.sealed_id, s.state, s.grp, s.revision, s.created, \
     s.touched, s.due, c.id, c.tenant, c.class, c.version, c.slot, c.dek, c.state, c.revision, c.data_keys_issued, \
     c.seals, c.next_bucket, c.record";

/// Where the class begins in [`SNAPSHOT_COLUMNS`].
pub const CLASS_AT: usize = 10;

/// Columns: the first ten of [`SNAPSHOT_COLUMNS`].
pub fn subject(row: &Row<'_>) -> Result<SubjectRow> {
    Ok(SubjectRow {
        uid: SubjectUid(num(row, 0)?),
        tenant: TenantNo(num(row, 1)?),
        digest: SubjectDigest(fixed(row, 2)?),
        sealed_id: bytes(row, 3)?,
        state: match num::<u8>(row, 4)? {
            1 => SubjectState::Live,
            2 => SubjectState::Closed,
            3 => SubjectState::Frozen,
            4 => SubjectState::Held,
            _ => return damaged("state of a subject"),
        },
        group: maybe(row, 5)?.map(GroupNo),
        revision: Revision(num(row, 6)?),
        created: Timestamp(num(row, 7)?),
        touched: Timestamp(num(row, 8)?),
        due: maybe(row, 9)?.map(Timestamp),
    })
}

/// Twelve columns from `at`: id, tenant, class, version, slot, dek, state, revision, data_keys_issued, seals,
/// next_bucket, record.
pub fn class(row: &Row<'_>, at: usize) -> Result<ClassRow> {
    let id: i64 = num(row, at)?;
    let (uid, class) = (SubjectUid(id >> 5), ClassNo(num(row, at + 2)?));
    if id & 31 != i64::from(class.0) {
        return damaged("class of a row");
    }
    Ok(ClassRow {
        uid,
        tenant: TenantNo(num(row, at + 1)?),
        class,
        version: DekVersion(num(row, at + 3)?),
        slot: maybe(row, at + 4)?.map(Slot),
        dek: DekId(fixed(row, at + 5)?),
        state: match num::<u8>(row, at + 6)? {
            1 => ClassState::Live,
            2 => ClassState::Restricted,
            3 => ClassState::Erased,
            _ => return damaged("state of a class"),
        },
        revision: Revision(num(row, at + 7)?),
        data_keys_issued: num(row, at + 8)?,
        seals: num(row, at + 9)?,
        next_bucket: maybe(row, at + 10)?.map(Bucket),
        record: bytes(row, at + 11)?,
    })
}

/// Columns: id, generation, blob.
pub fn node(row: &Row<'_>, tenant: TenantNo) -> Result<NodeRow> {
    let id: i64 = num(row, 0)?;
    if id >> 21 != i64::from(tenant.0) {
        return damaged("tenant of a node");
    }
    Ok(NodeRow {
        tenant,
        ordinal: Ordinal((id & 0x1f_ffff) as u32),
        generation: Generation(num(row, 1)?),
        blob: bytes(row, 2)?,
    })
}

/// Columns: tenant, class, bucket, uid, field.
fn group_key(row: &Row<'_>) -> Result<ItemGroupKey> {
    Ok(ItemGroupKey {
        tenant: TenantNo(num(row, 0)?),
        class: ClassNo(num(row, 1)?),
        bucket: Bucket(num(row, 2)?),
        uid: SubjectUid(num(row, 3)?),
        field: FieldNo(num(row, 4)?),
    })
}

/// Columns: the key, count, revision, sum, mac.
pub fn item_group(row: &Row<'_>) -> Result<ItemGroupRow> {
    Ok(ItemGroupRow {
        key: group_key(row)?,
        count: num(row, 5)?,
        revision: Revision(num(row, 6)?),
        sum: fixed(row, 7)?,
        mac: fixed(row, 8)?,
    })
}

/// Columns: the key, item, revision, origin, expire, envelope.
pub fn item(row: &Row<'_>) -> Result<ItemRow> {
    Ok(ItemRow {
        group: group_key(row)?,
        item: ItemNo(num(row, 5)?),
        revision: Revision(num(row, 6)?),
        origin: Timestamp(num(row, 7)?),
        expire: maybe(row, 8)?.map(Timestamp),
        envelope: bytes(row, 9)?,
    })
}

/// Columns: tenant, digest, operation, at.
pub fn tombstone(row: &Row<'_>) -> Result<TombstoneRow> {
    Ok(TombstoneRow {
        tenant: TenantNo(num(row, 0)?),
        digest: SubjectDigest(fixed(row, 1)?),
        operation: object_id(row, 2)?,
        at: Timestamp(num(row, 3)?),
    })
}

/// Columns: tenant, class, bucket, slot, dek.
pub fn expiry(row: &Row<'_>) -> Result<ExpiryRow> {
    Ok(ExpiryRow {
        tenant: TenantNo(num(row, 0)?),
        class: ClassNo(num(row, 1)?),
        bucket: Bucket(num(row, 2)?),
        slot: maybe(row, 3)?.map(Slot),
        dek: DekId(fixed(row, 4)?),
    })
}

/// Columns: key, revision, body.
pub fn object(row: &Row<'_>, tenant: TenantNo, kind: ObjectKind) -> Result<ObjectRow> {
    Ok(ObjectRow { tenant, kind, key: bytes(row, 0)?, revision: Revision(num(row, 1)?), body: bytes(row, 2)? })
}

/// Columns: tenant, request, fingerprint, answer, at.
pub fn request(row: &Row<'_>) -> Result<RequestRow> {
    Ok(RequestRow {
        tenant: TenantNo(num(row, 0)?),
        request: object_id(row, 1)?,
        fingerprint: fixed(row, 2)?,
        answer: bytes(row, 3)?,
        at: Timestamp(num(row, 4)?),
    })
}

/// Columns: tenant, last, count, at, body.
pub fn audit_group(row: &Row<'_>) -> Result<AuditGroupRow> {
    let (last, count): (u64, u32) = (num(row, 1)?, num(row, 2)?);
    let Some(first) = (last + 1).checked_sub(u64::from(count)) else { return damaged("number of an audit group") };
    Ok(AuditGroupRow {
        tenant: TenantNo(num(row, 0)?),
        first,
        count,
        at: Timestamp(num(row, 3)?),
        body: bytes(row, 4)?,
    })
}

/// Columns: tenant, seq, at, body.
pub fn feed(row: &Row<'_>) -> Result<FeedRow> {
    Ok(FeedRow { tenant: TenantNo(num(row, 0)?), seq: num(row, 1)?, at: Timestamp(num(row, 2)?), body: bytes(row, 3)? })
}
