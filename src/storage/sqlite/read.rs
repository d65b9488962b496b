//! What readers ask, each on one connection.

use rusqlite::{Connection, Params, Row};

use super::apply::prefix_end;
use super::decode::{self, CLASS_AT, SNAPSHOT_COLUMNS};
use super::error::{Result, engine};
use super::readers::snapshot;
use crate::access::ClassSet;
use crate::clock::Timestamp;
use crate::ids::*;
use crate::storage::*;
use std::sync::{Arc, LazyLock};

/// All rows of a query.
fn all<T>(
    conn: &Connection,
    sql: &str,
    params: impl Params,
    mut read: impl FnMut(&Row<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    let mut statement = conn.prepare_cached(sql).map_err(engine)?;
    let mut rows = statement.query(params).map_err(engine)?;
    let mut out = Vec::new();
    while let Some(row) = rows.next().map_err(engine)? {
        out.push(read(row)?);
    }
    Ok(out)
}

/// The first row of a query.
fn one<T>(
    conn: &Connection,
    sql: &str,
    params: impl Params,
    read: impl FnOnce(&Row<'_>) -> Result<T>,
) -> Result<Option<T>> {
    let mut statement = conn.prepare_cached(sql).map_err(engine)?;
    let mut rows = statement.query(params).map_err(engine)?;
    match rows.next().map_err(engine)? {
        Some(row) => read(row).map(Some),
        None => Ok(None),
    }
}

/// A page out of one row more than was asked for.
fn page<T>(mut rows: Vec<T>, limit: u32) -> Page<T> {
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    Page { rows, more }
}

static BY_UID: LazyLock<String> = LazyLock::new(|| joined("?1"));
// The subquery reads the index alone and the query around it the row alone, so that an index entry that points at another
// row shows.
static BY_DIGEST: LazyLock<String> =
    LazyLock::new(|| joined("(SELECT uid FROM subject WHERE tenant = ?1 AND digest = ?2)"));

/// A subject with its classes, in one statement and thus one snapshot.
fn joined(uid: &str) -> String {
    format!(
        "SELECT {SNAPSHOT_COLUMNS} FROM subject s
         LEFT JOIN subject_class c ON c.id >= s.uid << 5 AND c.id < (s.uid + 1) << 5
         WHERE s.uid = {uid} ORDER BY c.id"
    )
}

fn join(conn: &Connection, sql: &str, params: impl Params) -> Result<Option<SubjectSnapshot>> {
    let mut statement = conn.prepare_cached(sql).map_err(engine)?;
    let mut rows = statement.query(params).map_err(engine)?;
    let mut found: Option<SubjectSnapshot> = None;
    while let Some(row) = rows.next().map_err(engine)? {
        let found = match &mut found {
            Some(found) => found,
            None => found.insert(SubjectSnapshot { subject: decode::subject(row)?, classes: Vec::with_capacity(4) }),
        };
        if row.get_ref(CLASS_AT).map_err(engine)? == rusqlite::types::ValueRef::Null {
            continue;
        }
        let class = decode::class(row, CLASS_AT)?;
        if (class.uid, class.tenant) != (found.subject.uid, found.subject.tenant) {
            return Err(StoreError::Damaged { what: "class of a subject" });
        }
        found.classes.push(class);
    }
    Ok(found)
}

pub fn by_uid(conn: &Connection, uid: SubjectUid) -> Result<Option<SubjectSnapshot>> {
    let found = join(conn, &BY_UID, [uid.0])?;
    match &found {
        Some(s) if s.subject.uid != uid => Err(StoreError::Damaged { what: "row of a subject" }),
        _ => Ok(found),
    }
}

fn by_digest(conn: &Connection, tenant: TenantNo, digest: SubjectDigest) -> Result<Option<SubjectSnapshot>> {
    let found = join(conn, &BY_DIGEST, (tenant.0, &digest.0[..]))?;
    match &found {
        Some(s) if (s.subject.tenant, s.subject.digest) != (tenant, digest) => {
            Err(StoreError::Damaged { what: "index of subjects" })
        }
        _ => Ok(found),
    }
}

/// A subject or what became of it.
pub fn lookup(conn: &Connection, tenant: TenantNo, digest: SubjectDigest) -> Result<Lookup> {
    if let Some(found) = by_digest(conn, tenant, digest)? {
        return Ok(Lookup::Found(Arc::new(found)));
    }
    // It is not there: both tables once more, in one snapshot, so that one reborn in between is not called missing.
    snapshot(conn, |conn| {
        if let Some(found) = by_digest(conn, tenant, digest)? {
            return Ok(Lookup::Found(Arc::new(found)));
        }
        let sql = "SELECT tenant, digest, operation, at FROM tombstone WHERE tenant = ?1 AND digest = ?2";
        Ok(match one(conn, sql, (tenant.0, &digest.0[..]), decode::tombstone)? {
            Some(stone) => Lookup::Erased(stone),
            None => Lookup::Missing,
        })
    })
}

pub fn list_subjects(
    conn: &Connection,
    tenant: TenantNo,
    group: Option<GroupNo>,
    after: SubjectUid,
    limit: u32,
) -> Result<Page<Arc<SubjectSnapshot>>> {
    let number = |row: &Row<'_>| decode::num::<i64>(row, 0);
    let take = i64::from(limit) + 1;
    snapshot(conn, |conn| {
        let uids = match group {
            None => {
                let sql = "SELECT uid FROM subject WHERE tenant = ?1 AND uid > ?2 ORDER BY uid LIMIT ?3";
                all(conn, sql, (tenant.0, after.0, take), number)?
            }
            Some(group) => {
                let sql = "SELECT uid FROM subject WHERE tenant = ?1 AND grp = ?4 AND uid > ?2 ORDER BY uid LIMIT ?3";
                all(conn, sql, (tenant.0, after.0, take, group.0), number)?
            }
        };
        let Page { rows: uids, more } = page(uids, limit);
        let mut rows = Vec::with_capacity(uids.len());
        for uid in uids {
            match by_uid(conn, SubjectUid(uid))? {
                Some(s) if s.subject.tenant == tenant && (group.is_none() || s.subject.group == group) => {
                    rows.push(Arc::new(s));
                }
                _ => return Err(StoreError::Damaged { what: "index of subjects" }),
            }
        }
        Ok(Page { rows, more })
    })
}

// The mask is looked at before the record is: rows of other classes cost no page of theirs.
static SURVEY: LazyLock<String> = LazyLock::new(|| {
    let columns = SNAPSHOT_COLUMNS.split(", ").skip(CLASS_AT).collect::<Vec<_>>().join(", ");
    format!(
        "SELECT s.grp, {columns} FROM subject s CROSS JOIN subject_class c
         ON c.id >= s.uid << 5 AND c.id < (s.uid + 1) << 5 AND (?4 >> c.class) & 1
         WHERE s.tenant = ?1 AND s.uid > ?2 AND s.uid <= ?3 ORDER BY s.uid, c.id"
    )
});

pub fn survey(
    conn: &Connection,
    tenant: TenantNo,
    classes: ClassSet,
    after: SubjectUid,
    subjects: u32,
) -> Result<Survey> {
    snapshot(conn, |conn| {
        // In the order of the index on the tenant: how far so many subjects reach, and how many there are.
        let sql = "SELECT count(*), max(uid) FROM
             (SELECT uid FROM subject WHERE tenant = ?1 AND uid > ?2 ORDER BY uid LIMIT ?3)";
        let params = (tenant.0, after.0, subjects);
        let reach = one(conn, sql, params, |row| Ok((decode::num::<u32>(row, 0)?, decode::maybe::<i64>(row, 1)?)))?;
        let (count, Some(last)) = reach.unwrap_or((0, None)) else {
            return Ok(Survey { rows: Vec::new(), last: after, subjects: 0, more: false });
        };
        let mask = classes.iter().filter(|class| *class < 32).fold(0i64, |mask, class| mask | 1 << class);
        let rows = all(conn, &SURVEY, (tenant.0, after.0, last, mask), |row| {
            let class = decode::class(row, 1)?;
            if class.tenant != tenant {
                return Err(StoreError::Damaged { what: "class of a subject" });
            }
            Ok((decode::maybe(row, 0)?.map(GroupNo), class))
        })?;
        Ok(Survey { rows, last: SubjectUid(last), subjects: count, more: count == subjects })
    })
}

pub fn item_times(
    conn: &Connection,
    tenant: TenantNo,
    class: ClassNo,
    after: Option<ItemTimes>,
    limit: u32,
) -> Result<Page<ItemTimes>> {
    let (bucket, uid, field, item) = match after {
        Some(last) => (i64::from(last.bucket.0), last.uid.0, i64::from(last.field.0), last.item.0),
        None => (-1, i64::MIN, -1, 0),
    };
    let sql = "SELECT bucket, uid, field, item, origin, expire FROM item
         WHERE tenant = ?1 AND class = ?2 AND (bucket, uid, field, item) > (?3, ?4, ?5, ?6)
         ORDER BY bucket, uid, field, item LIMIT ?7";
    let params = (tenant.0, class.0, bucket, uid, field, item, i64::from(limit) + 1);
    let read = |row: &Row<'_>| {
        Ok(ItemTimes {
            bucket: Bucket(decode::num(row, 0)?),
            uid: SubjectUid(decode::num(row, 1)?),
            field: FieldNo(decode::num(row, 2)?),
            item: ItemNo(decode::num(row, 3)?),
            origin: Timestamp(decode::num(row, 4)?),
            expire: decode::maybe(row, 5)?.map(Timestamp),
        })
    };
    Ok(page(all(conn, sql, params, read)?, limit))
}

pub fn tenants(conn: &Connection) -> Result<Vec<TenantRow>> {
    all(conn, "SELECT no, name, state, generation, revision, body FROM tenant ORDER BY no", [], decode::tenant)
}

pub fn nodes(conn: &Connection, tenant: TenantNo, ordinals: &[Ordinal]) -> Result<NodeSnapshot> {
    snapshot(conn, |conn| {
        let sql = "SELECT generation FROM tenant WHERE no = ?1";
        let generation = one(conn, sql, [tenant.0], |row| decode::num(row, 0))?.unwrap_or(0);
        let sql = "SELECT id, generation, blob FROM node WHERE id = ?1";
        let read =
            |ordinal: &Ordinal| one(conn, sql, [decode::node_id(tenant, *ordinal)], |row| decode::node(row, tenant));
        let nodes = ordinals.iter().map(read).collect::<Result<_>>()?;
        Ok(NodeSnapshot { generation: Generation(generation), nodes })
    })
}

pub fn list_nodes(conn: &Connection, tenant: TenantNo, after: Option<Ordinal>, limit: u32) -> Result<Vec<NodeRow>> {
    let start = after.map_or(decode::node_id(tenant, Ordinal(0)), |o| decode::node_id(tenant, o) + 1);
    let end = decode::node_id(tenant, Ordinal(0)) + (1 << 21);
    let sql = "SELECT id, generation, blob FROM node WHERE id >= ?1 AND id < ?2 ORDER BY id LIMIT ?3";
    all(conn, sql, (start, end, limit), |row| decode::node(row, tenant))
}

pub fn slots(conn: &Connection, tenant: TenantNo) -> Result<SlotUse> {
    snapshot(conn, |conn| {
        let sql = "SELECT slot_next FROM mark WHERE tenant = ?1";
        let next = one(conn, sql, [tenant.0], |row| decode::num(row, 0))?.unwrap_or(0);
        let sql = "SELECT slot FROM free_slot WHERE tenant = ?1 ORDER BY slot";
        let free = all(conn, sql, [tenant.0], |row| decode::num(row, 0).map(Slot))?;
        Ok(SlotUse { next: Slot(next), free })
    })
}

pub fn slot_owners(conn: &Connection, tenant: TenantNo, from: Slot, to: Slot) -> Result<Vec<SlotOwner>> {
    let params = (tenant.0, from.0, to.0);
    snapshot(conn, |conn| {
        let sql = "SELECT slot, dek, id >> 5, class, version FROM subject_class
                   WHERE tenant = ?1 AND slot >= ?2 AND slot < ?3 ORDER BY slot";
        let mut owners = all(conn, sql, params, |row| {
            let (uid, class) = (SubjectUid(decode::num(row, 2)?), ClassNo(decode::num(row, 3)?));
            let user = SlotUser::Class { uid, class, version: DekVersion(decode::num(row, 4)?) };
            Ok(SlotOwner { slot: Slot(decode::num(row, 0)?), dek: DekId(decode::fixed(row, 1)?), user })
        })?;
        let sql = "SELECT slot, dek, class, bucket FROM expiry
                   WHERE tenant = ?1 AND slot >= ?2 AND slot < ?3 ORDER BY slot";
        owners.extend(all(conn, sql, params, |row| {
            let user = SlotUser::Expiry { class: ClassNo(decode::num(row, 2)?), bucket: Bucket(decode::num(row, 3)?) };
            Ok(SlotOwner { slot: Slot(decode::num(row, 0)?), dek: DekId(decode::fixed(row, 1)?), user })
        })?);
        owners.sort_by_key(|owner| owner.slot);
        Ok(owners)
    })
}

const GROUP_COLUMNS: &str = "tenant, class, bucket, uid, field, count, revision, sum, mac";

pub fn item_groups(conn: &Connection, uid: SubjectUid, field: Option<FieldNo>) -> Result<Vec<ItemGroupRow>> {
    let (low, high) = field.map_or((0, u16::MAX), |f| (f.0, f.0));
    let sql = format!(
        "SELECT {GROUP_COLUMNS} FROM item_group WHERE uid = ?1 AND field >= ?2 AND field <= ?3 ORDER BY field, bucket"
    );
    all(conn, &sql, (uid.0, low, high), decode::item_group)
}

pub fn item_groups_of(conn: &Connection, uids: &[SubjectUid]) -> Result<Vec<ItemGroupRow>> {
    snapshot(conn, |conn| {
        let mut groups = Vec::new();
        for uid in uids {
            groups.extend(item_groups(conn, *uid, None)?);
        }
        Ok(groups)
    })
}

const ITEM_COLUMNS: &str = "tenant, class, bucket, uid, field, item, revision, origin, expire, envelope";
const IN_GROUP: &str = "tenant = ?1 AND class = ?2 AND bucket = ?3 AND uid = ?4 AND field = ?5";

pub fn items(conn: &Connection, group: ItemGroupKey, after: ItemNo, limit: u32) -> Result<Page<ItemRow>> {
    let sql = format!("SELECT {ITEM_COLUMNS} FROM item WHERE {IN_GROUP} AND item > ?6 ORDER BY item LIMIT ?7");
    let k = group;
    let params = (k.tenant.0, k.class.0, k.bucket.0, k.uid.0, k.field.0, after.0, i64::from(limit) + 1);
    Ok(page(all(conn, &sql, params, decode::item)?, limit))
}

pub fn item(conn: &Connection, group: ItemGroupKey, item: ItemNo) -> Result<Option<ItemRow>> {
    let sql = format!("SELECT {ITEM_COLUMNS} FROM item WHERE {IN_GROUP} AND item = ?6");
    let k = group;
    one(conn, &sql, (k.tenant.0, k.class.0, k.bucket.0, k.uid.0, k.field.0, item.0), decode::item)
}

pub fn item_groups_between(
    conn: &Connection,
    tenant: TenantNo,
    class: ClassNo,
    (from, to): (Bucket, Bucket),
    after: Option<(Bucket, SubjectUid, FieldNo)>,
    limit: u32,
) -> Result<Page<ItemGroupRow>> {
    let (bucket, uid, field) = match after {
        Some((bucket, uid, field)) if bucket >= from => (i64::from(bucket.0), uid.0, i64::from(field.0)),
        _ => (i64::from(from.0), i64::MIN, -1),
    };
    let sql = format!(
        "SELECT {GROUP_COLUMNS} FROM item_group
         WHERE tenant = ?1 AND class = ?2 AND (bucket, uid, field) > (?3, ?4, ?5) AND bucket <= ?6
         ORDER BY bucket, uid, field LIMIT ?7"
    );
    let params = (tenant.0, class.0, bucket, uid, field, to.0, i64::from(limit) + 1);
    Ok(page(all(conn, &sql, params, decode::item_group)?, limit))
}

pub fn classes_due(
    conn: &Connection,
    tenant: TenantNo,
    class: ClassNo,
    until: Bucket,
    limit: u32,
) -> Result<Vec<ClassRow>> {
    let sql =
        "SELECT id, tenant, class, version, slot, dek, state, revision, data_keys_issued, seals, next_bucket, record
         FROM subject_class WHERE tenant = ?1 AND class = ?2 AND next_bucket <= ?3 ORDER BY next_bucket, id LIMIT ?4";
    all(conn, sql, (tenant.0, class.0, until.0, limit), |row| decode::class(row, 0))
}

pub fn find_terms(
    conn: &Connection,
    tenant: TenantNo,
    field: FieldNo,
    tags: &[(SecretVersion, TermTag)],
    after: SubjectUid,
    limit: u32,
) -> Result<Page<SubjectUid>> {
    snapshot(conn, |conn| {
        let sql = "SELECT uid FROM term WHERE tenant = ?1 AND version = ?2 AND field = ?3 AND tag = ?4 AND uid > ?5
             ORDER BY uid LIMIT ?6";
        let mut uids = Vec::new();
        for (version, tag) in tags {
            let params = (tenant.0, version.0, field.0, &tag.0[..], after.0, i64::from(limit) + 1);
            uids.extend(all(conn, sql, params, |row| decode::num(row, 0).map(SubjectUid))?);
        }
        uids.sort_unstable();
        uids.dedup();
        Ok(page(uids, limit))
    })
}

pub fn count_terms(conn: &Connection, tenant: TenantNo, version: SecretVersion) -> Result<u64> {
    let sql = "SELECT count(*) FROM term WHERE tenant = ?1 AND version = ?2";
    Ok(one(conn, sql, (tenant.0, version.0), |row| decode::num(row, 0))?.unwrap_or(0))
}

pub fn expiries(conn: &Connection, tenant: TenantNo) -> Result<Vec<ExpiryRow>> {
    let sql = "SELECT tenant, class, bucket, slot, dek FROM expiry WHERE tenant = ?1 ORDER BY class, bucket";
    all(conn, sql, [tenant.0], decode::expiry)
}

pub fn object(conn: &Connection, tenant: TenantNo, kind: ObjectKind, key: &[u8]) -> Result<Option<ObjectRow>> {
    let sql = "SELECT key, revision, body FROM object WHERE tenant = ?1 AND kind = ?2 AND key = ?3";
    one(conn, sql, (tenant.0, kind as u8, key), |row| decode::object(row, tenant, kind))
}

pub fn objects(
    conn: &Connection,
    tenant: TenantNo,
    kind: ObjectKind,
    prefix: &[u8],
    after: &[u8],
    limit: u32,
) -> Result<Page<ObjectRow>> {
    // The next key after `after` in byte order is `after` and a zero.
    let start = if !after.is_empty() && after >= prefix { [after, &[0]].concat() } else { prefix.to_vec() };
    let sql = "SELECT key, revision, body FROM object
         WHERE tenant = ?1 AND kind = ?2 AND key >= ?3 AND key < ?4 ORDER BY key LIMIT ?5";
    let params = (tenant.0, kind as u8, start, prefix_end(prefix), i64::from(limit) + 1);
    Ok(page(all(conn, sql, params, |row| decode::object(row, tenant, kind))?, limit))
}

pub fn request(conn: &Connection, tenant: TenantNo, request: ObjectId) -> Result<Option<RequestRow>> {
    let sql = "SELECT tenant, request, fingerprint, answer, at FROM request WHERE tenant = ?1 AND request = ?2";
    one(conn, sql, (tenant.0, &request.0.as_bytes()[..]), decode::request)
}

pub fn audit_groups(conn: &Connection, tenant: TenantNo, after: u64, limit: u32) -> Result<Vec<AuditGroupRow>> {
    let sql = "SELECT tenant, last, count, at, body FROM audit_change WHERE tenant = ?1 AND last > ?2
         ORDER BY last LIMIT ?3";
    all(conn, sql, (tenant.0, i64::try_from(after).unwrap_or(i64::MAX), limit), decode::audit_group)
}

pub fn feed(conn: &Connection, tenant: TenantNo, after: u64, limit: u32) -> Result<Page<FeedRow>> {
    let sql = "SELECT tenant, seq, at, body FROM feed WHERE tenant = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3";
    let params = (tenant.0, i64::try_from(after).unwrap_or(i64::MAX), i64::from(limit) + 1);
    Ok(page(all(conn, sql, params, decode::feed)?, limit))
}

pub fn subject_count(conn: &Connection, tenant: TenantNo) -> Result<u64> {
    let sql = "SELECT subjects FROM mark WHERE tenant = ?1";
    Ok(one(conn, sql, [tenant.0], |row| decode::num(row, 0))?.unwrap_or(0))
}

pub fn counts(conn: &Connection, tenant: TenantNo) -> Result<TenantCounts> {
    snapshot(conn, |conn| {
        let count = |sql: &str| Ok(one(conn, sql, [tenant.0], |row| decode::num(row, 0))?.unwrap_or(0));
        Ok(TenantCounts {
            subjects: subject_count(conn, tenant)?,
            classes: count("SELECT count(*) FROM subject_class WHERE tenant = ?1")?,
            most_seals: count("SELECT coalesce(max(seals), 0) FROM subject_class WHERE tenant = ?1")?,
            items: count("SELECT coalesce(sum(count), 0) FROM item_group WHERE tenant = ?1")?,
            terms: count("SELECT count(*) FROM term WHERE tenant = ?1")?,
            tombstones: count("SELECT count(*) FROM tombstone WHERE tenant = ?1")?,
            nodes: count("SELECT count(*) FROM node WHERE id >> 21 = ?1")?,
        })
    })
}
