//! Preconditions and mutations as statements, each prepared once.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, Params, Row, ToSql};

use super::decode::{class_id, node_id};
use super::writer::Mark;
use crate::ids::*;
use crate::storage::*;

/// What a group of change sets touched; also of those that were undone, which costs a reader one read.
#[derive(Default)]
pub struct Applied {
    pub uids: Vec<SubjectUid>,
    /// A whole tenant was touched.
    pub everything: bool,
}

/// One change set at work.
pub struct Apply<'a> {
    pub conn: &'a Connection,
    pub marks: &'a mut HashMap<TenantNo, Mark>,
    pub applied: &'a mut Applied,
    /// Rows removed by mutations with a limit.
    pub removed: u64,
    /// Subjects that came (or, below zero, went), by tenant; they count once the change set is through.
    pub counted: Vec<(TenantNo, i64)>,
}

type Sql<T> = rusqlite::Result<T>;

/// Above every key that starts with `prefix`, as far as keys are shorter than 256 bytes of 0xff.
pub fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0xff; 256]
}

impl Apply<'_> {
    /// The first precondition that does not hold.
    pub fn check(&self, preconditions: &[Precondition]) -> Sql<Option<Conflict>> {
        for (at, precondition) in preconditions.iter().enumerate() {
            if !self.holds(precondition)? {
                return Ok(Some(Conflict::Precondition(at)));
            }
        }
        Ok(None)
    }

    fn holds(&self, precondition: &Precondition) -> Sql<bool> {
        use Precondition::*;
        match precondition {
            TenantIs { tenant, state } => {
                let found = self.one("SELECT state FROM tenant WHERE no = ?1", [tenant.0], int)?;
                Ok(found == Some(*state as i64))
            }
            TenantSettingsAt { tenant, revision } => {
                let found = self.one("SELECT revision FROM tenant WHERE no = ?1", [tenant.0], int)?;
                Ok(found == Some(revision.0 as i64))
            }
            TreeGeneration { tenant, generation } => {
                let found = self.one("SELECT generation FROM tenant WHERE no = ?1", [tenant.0], int)?;
                Ok(found == Some(generation.0 as i64))
            }
            SubjectRoom { tenant, new, most } => {
                let stored = || self.one("SELECT subjects FROM mark WHERE tenant = ?1", [tenant.0], int);
                let present = match self.marks.get(tenant) {
                    Some(mark) => mark.subjects,
                    None => stored()?.unwrap_or(0),
                };
                Ok(u64::try_from(present).unwrap_or(0).saturating_add(*new) <= *most)
            }
            SubjectAt { uid, revision } => {
                let found = self.one("SELECT revision FROM subject WHERE uid = ?1", [uid.0], int)?;
                Ok(found == Some(revision.0 as i64))
            }
            SubjectLive { uid } => {
                let found = self.one("SELECT state FROM subject WHERE uid = ?1", [uid.0], int)?;
                Ok(found == Some(SubjectState::Live as i64))
            }
            SubjectAbsent { tenant, digest } => {
                let sql = "SELECT 1 FROM subject WHERE tenant = ?1 AND digest = ?2";
                Ok(!self.any(sql, (tenant.0, &digest.0[..]))?)
            }
            NoTombstone { tenant, digest } => {
                let sql = "SELECT 1 FROM tombstone WHERE tenant = ?1 AND digest = ?2";
                Ok(!self.any(sql, (tenant.0, &digest.0[..]))?)
            }
            ClassAt { uid, class, version, revision } => {
                let sql = "SELECT 1 FROM subject_class WHERE id = ?1 AND version = ?2 AND revision = ?3 AND state = 1";
                self.any(sql, (class_id(*uid, *class), version.0, revision.0 as i64))
            }
            ClassLive { uid, class, version } => {
                let sql = "SELECT 1 FROM subject_class WHERE id = ?1 AND version = ?2 AND state = 1";
                self.any(sql, (class_id(*uid, *class), version.0))
            }
            ClassStill { uid, class, version, revision } => {
                let sql = "SELECT 1 FROM subject_class WHERE id = ?1 AND version = ?2 AND revision = ?3";
                self.any(sql, (class_id(*uid, *class), version.0, revision.0 as i64))
            }
            ClassBelow { uid, class, version } => {
                let sql = "SELECT 1 FROM subject_class WHERE id = ?1 AND NOT (state = 3 AND version < ?2)";
                Ok(!self.any(sql, (class_id(*uid, *class), version.0))?)
            }
            ItemGroupAt { uid, field, bucket, revision } => {
                let sql = "SELECT revision FROM item_group WHERE uid = ?1 AND field = ?2 AND bucket = ?3";
                let found = self.one(sql, (uid.0, field.0, bucket.0), int)?;
                Ok(found.unwrap_or(0) == revision.0 as i64)
            }
            ItemGroupsOf { tenant, uid, class, count } => {
                // By the subject's index, and not by tenant and class, of which it has few.
                let sql = "SELECT count(*) FROM item_group WHERE uid = ?1 AND tenant = ?2 AND class = ?3";
                Ok(self.one(sql, (uid.0, tenant.0, class.0), int)? == Some(i64::from(*count)))
            }
            ExpiryLive { tenant, class, bucket, dek } => {
                let sql = "SELECT 1 FROM expiry
                    WHERE tenant = ?1 AND class = ?2 AND bucket = ?3 AND dek = ?4 AND slot IS NOT NULL";
                self.any(sql, (tenant.0, class.0, bucket.0, &dek.0[..]))
            }
            TermsFree { tenant, field, tags, owner } => {
                let sql = "SELECT 1 FROM term
                    WHERE tenant = ?1 AND version = ?2 AND field = ?3 AND tag = ?4 AND uid <> ?5 LIMIT 1";
                for (version, tag) in tags {
                    if self.any(sql, (tenant.0, version.0, field.0, &tag.0[..], owner.0))? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            ObjectAt { tenant, kind, key, revision } => {
                let sql = "SELECT revision FROM object WHERE tenant = ?1 AND kind = ?2 AND key = ?3";
                let found = self.one(sql, (tenant.0, *kind as u8, key), int)?;
                Ok(found.unwrap_or(0) == revision.0 as i64)
            }
            NoObjectUnder { tenant, kind, prefix } => {
                let sql = "SELECT 1 FROM object WHERE tenant = ?1 AND kind = ?2 AND key >= ?3 AND key < ?4 LIMIT 1";
                Ok(!self.any(sql, (tenant.0, *kind as u8, prefix, prefix_end(prefix)))?)
            }
        }
    }

    /// Applies one mutation; a conflict that only the rows can show is answered, not raised.
    pub fn apply(&mut self, mutation: &Mutation) -> Sql<Option<Conflict>> {
        use Mutation::*;
        match mutation {
            PutTenant(t) => {
                self.run(
                    "INSERT INTO tenant(no, name, state, generation, revision, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                     ON CONFLICT(no) DO UPDATE SET name = ?2, state = ?3, generation = ?4, revision = ?5, body = ?6",
                    (t.no.0, t.name.as_str(), t.state as u8, t.generation.0 as i64, t.revision.0 as i64, &t.body),
                )?;
            }
            SetTenantSettings { tenant, body, revision } => {
                let row = (tenant.0, body, revision.0 as i64);
                self.run("UPDATE tenant SET body = ?2, revision = ?3 WHERE no = ?1", row)?;
            }
            SetGeneration { tenant, generation } => {
                self.run("UPDATE tenant SET generation = ?2 WHERE no = ?1", (tenant.0, generation.0 as i64))?;
            }
            PutNode(n) => {
                self.run(
                    "INSERT INTO node(id, generation, blob) VALUES (?1, ?2, ?3)
                     ON CONFLICT(id) DO UPDATE SET generation = ?2, blob = ?3",
                    (node_id(n.tenant, n.ordinal), n.generation.0 as i64, &n.blob),
                )?;
            }
            ClearTenant { tenant, limit } => self.clear_tenant(*tenant, *limit)?,
            PutSubject(s) => {
                self.applied.uids.push(s.uid);
                if !self.any("SELECT 1 FROM subject WHERE uid = ?1", [s.uid.0])? {
                    self.counted.push((s.tenant, 1));
                }
                self.run(
                    "INSERT INTO subject(uid, tenant, digest, sealed_id, state, grp, revision, created, touched, due)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
                     ON CONFLICT(uid) DO UPDATE SET tenant = ?2, digest = ?3, sealed_id = ?4, state = ?5, grp = ?6,
                        revision = ?7, created = ?8, touched = ?9, due = ?10",
                    rusqlite::params![
                        s.uid.0,
                        s.tenant.0,
                        &s.digest.0[..],
                        s.sealed_id,
                        s.state as u8,
                        s.group.map(|g| g.0),
                        s.revision.0 as i64,
                        s.created.0,
                        s.touched.0,
                        s.due.map(|d| d.0)
                    ],
                )?;
            }
            DeleteSubject { uid } => {
                self.applied.uids.push(*uid);
                self.delete_classes(*uid)?;
                let tenant =
                    self.one("DELETE FROM subject WHERE uid = ?1 RETURNING tenant", [uid.0], |row| row.get(0))?;
                self.counted.extend(tenant.map(|no| (TenantNo(no), -1)));
            }
            TouchSubject { uid, at } => {
                let sql = "UPDATE subject SET touched = ?2 WHERE uid = ?1 AND touched < ?2";
                if self.run(sql, (uid.0, at.0))? > 0 {
                    self.applied.uids.push(*uid);
                }
            }
            PutClass(c) => {
                self.applied.uids.push(c.uid);
                if let Some(slot) = c.slot
                    && self.slot_taken(c.tenant, slot, "SELECT 1 FROM expiry WHERE tenant = ?1 AND slot = ?2")?
                {
                    return Ok(Some(Conflict::Duplicate));
                }
                self.run(
                    "INSERT INTO subject_class(id, tenant, class, version, slot, dek, state, revision,
                        data_keys_issued, seals, next_bucket, record)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
                     ON CONFLICT(id) DO UPDATE SET tenant = ?2, version = ?4, slot = ?5, dek = ?6, state = ?7,
                        revision = ?8, data_keys_issued = ?9, next_bucket = ?11, record = ?12,
                        seals = CASE WHEN version = ?4 AND ?7 <> 3 THEN max(seals, ?10) ELSE ?10 END",
                    rusqlite::params![
                        class_id(c.uid, c.class),
                        c.tenant.0,
                        c.class.0,
                        c.version.0,
                        c.slot.map(|s| s.0),
                        &c.dek.0[..],
                        c.state as u8,
                        c.revision.0 as i64,
                        c.data_keys_issued,
                        c.seals,
                        c.next_bucket.map(|b| b.0),
                        c.record
                    ],
                )?;
            }
            CountSeals { uid, class, by } => {
                self.applied.uids.push(*uid);
                let sql = "UPDATE subject_class SET seals = seals + ?2 WHERE id = ?1";
                self.run(sql, (class_id(*uid, *class), by))?;
            }
            DeleteClass { uid, class } => {
                self.applied.uids.push(*uid);
                self.run("DELETE FROM subject_class WHERE id = ?1", [class_id(*uid, *class)])?;
            }
            PutItemGroup(g) => {
                let k = &g.key;
                self.run(
                    "INSERT INTO item_group(tenant, class, bucket, uid, field, count, revision, sum, mac)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
                     ON CONFLICT(tenant, class, bucket, uid, field)
                     DO UPDATE SET count = ?6, revision = ?7, sum = ?8, mac = ?9",
                    rusqlite::params![
                        k.tenant.0,
                        k.class.0,
                        k.bucket.0,
                        k.uid.0,
                        k.field.0,
                        g.count,
                        g.revision.0 as i64,
                        &g.sum[..],
                        &g.mac[..]
                    ],
                )?;
            }
            DeleteItemGroup { uid, field, bucket } => {
                self.run(
                    "DELETE FROM item_group WHERE uid = ?1 AND field = ?2 AND bucket = ?3",
                    (uid.0, field.0, bucket.0),
                )?;
            }
            AddItem(item) => self.insert_item("INSERT", item)?,
            PutItem(item) => self.insert_item("INSERT OR REPLACE", item)?,
            DeleteItem { tenant, class, bucket, uid, field, item } => {
                self.run(
                    "DELETE FROM item WHERE tenant = ?1 AND class = ?2 AND bucket = ?3 AND uid = ?4 AND field = ?5
                        AND item = ?6",
                    (tenant.0, class.0, bucket.0, uid.0, field.0, item.0),
                )?;
            }
            DeleteItemsOf { tenant, uid, class, limit } => self.delete_items_of(*tenant, *uid, *class, *limit)?,
            DeleteBucket { tenant, class, bucket, limit } => self.delete_bucket(*tenant, *class, *bucket, *limit)?,
            PutTerm(t) => {
                self.run(
                    "INSERT OR IGNORE INTO term(tenant, version, field, tag, uid) VALUES (?1, ?2, ?3, ?4, ?5)",
                    (t.tenant.0, t.version.0, t.field.0, &t.tag.0[..], t.uid.0),
                )?;
            }
            DeleteTerms { tenant, uid, field } => {
                match field {
                    Some(field) => self.run(
                        "DELETE FROM term WHERE uid = ?1 AND field = ?2 AND tenant = ?3",
                        (uid.0, field.0, tenant.0),
                    )?,
                    None => self.run("DELETE FROM term WHERE uid = ?1 AND tenant = ?2", (uid.0, tenant.0))?,
                };
            }
            DeleteTermsOfVersion { tenant, version, limit } => {
                self.delete_first(
                    "SELECT field, tag, uid FROM term WHERE tenant = ?1 AND version = ?2
                     ORDER BY field, tag, uid LIMIT 1 OFFSET ?3",
                    "DELETE FROM term WHERE tenant = ?1 AND version = ?2",
                    " AND (field, tag, uid) < (?3, ?4, ?5)",
                    &[&tenant.0, &version.0],
                    *limit,
                )?;
            }
            PutTombstone(t) => {
                self.run(
                    "INSERT OR REPLACE INTO tombstone(tenant, digest, operation, at) VALUES (?1, ?2, ?3, ?4)",
                    (t.tenant.0, &t.digest.0[..], &t.operation.0.as_bytes()[..], t.at.0),
                )?;
            }
            DeleteTombstone { tenant, digest } => {
                self.run("DELETE FROM tombstone WHERE tenant = ?1 AND digest = ?2", (tenant.0, &digest.0[..]))?;
            }
            PutExpiry(e) => {
                let class = "SELECT 1 FROM subject_class WHERE tenant = ?1 AND slot = ?2";
                if let Some(slot) = e.slot
                    && self.slot_taken(e.tenant, slot, class)?
                {
                    return Ok(Some(Conflict::Duplicate));
                }
                self.run(
                    "INSERT INTO expiry(tenant, class, bucket, slot, dek) VALUES (?1, ?2, ?3, ?4, ?5)
                     ON CONFLICT(tenant, class, bucket) DO UPDATE SET slot = ?4, dek = ?5",
                    (e.tenant.0, e.class.0, e.bucket.0, e.slot.map(|s| s.0), &e.dek.0[..]),
                )?;
            }
            DeleteExpiry { tenant, class, bucket } => {
                self.run(
                    "DELETE FROM expiry WHERE tenant = ?1 AND class = ?2 AND bucket = ?3",
                    (tenant.0, class.0, bucket.0),
                )?;
            }
            FreeSlot { tenant, slot } => {
                self.raise_slot(*tenant, *slot)?;
                self.run("INSERT OR IGNORE INTO free_slot(tenant, slot) VALUES (?1, ?2)", (tenant.0, slot.0))?;
            }
            TakeSlot { tenant, slot } => {
                // That no slot has two owners is the matter of the rows that name it. One above all that were ever given
                // is not among the free.
                if i64::from(slot.0) < self.mark(*tenant)?.slot_next {
                    let sql = "DELETE FROM free_slot WHERE tenant = ?1 AND slot = ?2";
                    self.run(sql, (tenant.0, slot.0))?;
                }
            }
            PutObject(o) => {
                self.run(
                    "INSERT INTO object(tenant, kind, key, revision, body) VALUES (?1, ?2, ?3, ?4, ?5)
                     ON CONFLICT(tenant, kind, key) DO UPDATE SET revision = ?4, body = ?5",
                    (o.tenant.0, o.kind as u8, &o.key, o.revision.0 as i64, &o.body),
                )?;
            }
            DeleteObject { tenant, kind, key } => {
                self.run(
                    "DELETE FROM object WHERE tenant = ?1 AND kind = ?2 AND key = ?3",
                    (tenant.0, *kind as u8, key),
                )?;
            }
            PutRequest(r) => {
                let added = self.run(
                    "INSERT OR IGNORE INTO request(tenant, request, fingerprint, answer, at)
                     VALUES (?1, ?2, ?3, ?4, ?5)",
                    (r.tenant.0, &r.request.0.as_bytes()[..], &r.fingerprint[..], &r.answer, r.at.0),
                )?;
                if added == 0 {
                    return Ok(Some(Conflict::Request));
                }
            }
            PruneRequests { before, limit } => {
                // Rows are in order of arrival, so the old ones come first and the scan ends at the first young one.
                let sql = "SELECT id FROM request WHERE at >= ?1 ORDER BY id LIMIT 1";
                let young = self.one(sql, [before.0], int)?.unwrap_or(i64::MAX);
                let sql = "SELECT id FROM request WHERE id < ?1 ORDER BY id LIMIT 1 OFFSET ?2";
                let end = self.one(sql, (young, limit), int)?.unwrap_or(young);
                self.removed += self.run("DELETE FROM request WHERE id < ?1", [end])? as u64;
            }
            PutFeed { tenant, at, body } => {
                let mark = self.mark(*tenant)?;
                mark.feed_last += 1;
                mark.changed = true;
                let seq = mark.feed_last;
                self.run(
                    "INSERT INTO feed(tenant, seq, at, body) VALUES (?1, ?2, ?3, ?4)",
                    (tenant.0, seq, at.0, body),
                )?;
            }
            PruneFeed { tenant, before, limit } => {
                let sql = "SELECT seq FROM feed WHERE tenant = ?1 AND at >= ?2 ORDER BY seq LIMIT 1";
                let young = self.one(sql, (tenant.0, before.0), int)?.unwrap_or(i64::MAX);
                let sql = "SELECT seq FROM feed WHERE tenant = ?1 AND seq < ?2 ORDER BY seq LIMIT 1 OFFSET ?3";
                let end = self.one(sql, (tenant.0, young, limit), int)?.unwrap_or(young);
                self.removed += self.run("DELETE FROM feed WHERE tenant = ?1 AND seq < ?2", (tenant.0, end))? as u64;
            }
        }
        Ok(None)
    }

    /// Whether a slot belongs to the other kind of owner, or is free and was not taken. Owners of one kind are kept
    /// apart by their unique index.
    fn slot_taken(&mut self, tenant: TenantNo, slot: Slot, other: &str) -> Sql<bool> {
        // A slot above all that were ever given needs no look: nobody can have it.
        Ok(!self.raise_slot(tenant, slot)?
            && (self.any(other, (tenant.0, slot.0))?
                || self.any("SELECT 1 FROM free_slot WHERE tenant = ?1 AND slot = ?2", (tenant.0, slot.0))?))
    }

    /// Whether it is above all that were ever given; then it is the highest from now on.
    fn raise_slot(&mut self, tenant: TenantNo, slot: Slot) -> Sql<bool> {
        let mark = self.mark(tenant)?;
        let new = i64::from(slot.0) >= mark.slot_next;
        if new {
            mark.slot_next = i64::from(slot.0) + 1;
            mark.changed = true;
        }
        Ok(new)
    }

    /// The change set is through: its subjects count.
    pub fn count(&mut self) -> Sql<()> {
        for (tenant, by) in std::mem::take(&mut self.counted) {
            let mark = self.mark(tenant)?;
            mark.subjects += by;
            mark.changed = true;
        }
        Ok(())
    }

    fn mark(&mut self, tenant: TenantNo) -> Sql<&mut Mark> {
        if !self.marks.contains_key(&tenant) {
            let sql = "SELECT slot_next, feed_last, subjects FROM mark WHERE tenant = ?1";
            let found = self.one(sql, [tenant.0], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            let (slot_next, feed_last, subjects) = found.unwrap_or((0, 0, 0));
            self.marks.insert(tenant, Mark { slot_next, feed_last, subjects, changed: false });
        }
        Ok(self.marks.get_mut(&tenant).expect("it was put in just above"))
    }

    fn delete_classes(&mut self, uid: SubjectUid) -> Sql<usize> {
        self.run("DELETE FROM subject_class WHERE id >= ?1 AND id < ?2", (uid.0 << 5, (uid.0 + 1) << 5))
    }

    /// Items first; a group goes with its last item, so that a group without items means that all is gone.
    fn delete_bucket(&mut self, tenant: TenantNo, class: ClassNo, bucket: Bucket, limit: u32) -> Sql<()> {
        let removed = self.delete_first(
            "SELECT uid, field, item FROM item WHERE tenant = ?1 AND class = ?2 AND bucket = ?3
             ORDER BY uid, field, item LIMIT 1 OFFSET ?4",
            "DELETE FROM item WHERE tenant = ?1 AND class = ?2 AND bucket = ?3",
            " AND (uid, field, item) < (?4, ?5, ?6)",
            &[&tenant.0, &class.0, &bucket.0],
            limit,
        )?;
        if removed < u64::from(limit) {
            let rest = (u64::from(limit) - removed) as u32;
            self.delete_first(
                "SELECT uid, field FROM item_group WHERE tenant = ?1 AND class = ?2 AND bucket = ?3
                 ORDER BY uid, field LIMIT 1 OFFSET ?4",
                "DELETE FROM item_group WHERE tenant = ?1 AND class = ?2 AND bucket = ?3",
                " AND (uid, field) < (?4, ?5)",
                &[&tenant.0, &class.0, &bucket.0],
                rest,
            )?;
        }
        Ok(())
    }

    fn insert_item(&self, insert: &str, item: &ItemRow) -> rusqlite::Result<()> {
        let ItemGroupKey { tenant, class, bucket, uid, field } = item.group;
        let sql = format!(
            "{insert} INTO item(tenant, class, bucket, uid, field, item, revision, origin, expire, envelope)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)"
        );
        let (revision, expire) = (item.revision.0 as i64, item.expire.map(|at| at.0));
        let params = rusqlite::params![
            tenant.0,
            class.0,
            bucket.0,
            uid.0,
            field.0,
            item.item.0,
            revision,
            item.origin.0,
            expire,
            item.envelope
        ];
        self.run(&sql, params).map(drop)
    }

    fn delete_items_of(&mut self, tenant: TenantNo, uid: SubjectUid, class: ClassNo, limit: u32) -> Sql<()> {
        let mut left = u64::from(limit);
        let groups: Vec<(i64, i64)> = self
            .conn
            .prepare_cached(
                "SELECT field, bucket FROM item_group WHERE uid = ?1 AND tenant = ?2 AND class = ?3 ORDER BY field, bucket",
            )?
            .query_map((uid.0, tenant.0, class.0), |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Sql<_>>()?;
        for (field, bucket) in groups {
            let removed = self.delete_first(
                "SELECT item FROM item WHERE tenant = ?1 AND class = ?2 AND bucket = ?3 AND uid = ?4 AND field = ?5
                 ORDER BY item LIMIT 1 OFFSET ?6",
                "DELETE FROM item WHERE tenant = ?1 AND class = ?2 AND bucket = ?3 AND uid = ?4 AND field = ?5",
                " AND item < ?6",
                &[&tenant.0, &class.0, &bucket, &uid.0, &field],
                u32::try_from(left).unwrap_or(u32::MAX),
            )?;
            left -= removed.min(left);
            if left == 0 {
                return Ok(());
            }
            let sql = "DELETE FROM item_group WHERE uid = ?1 AND field = ?2 AND bucket = ?3";
            self.removed += self.run(sql, (uid.0, field, bucket))? as u64;
        }
        Ok(())
    }

    /// Removes the first `limit` rows of a range: looks up the row behind them and deletes below it, which SQLite does
    /// as one walk. Answers how many went, and counts them.
    fn delete_first(&mut self, nth: &str, delete: &str, below: &str, range: &[&dyn ToSql], limit: u32) -> Sql<u64> {
        if limit == 0 {
            return Ok(0);
        }
        let offset = i64::from(limit);
        let mut params = range.to_vec();
        params.push(&offset);
        let end = self.one(nth, &params[..], |row| {
            (0..row.as_ref().column_count()).map(|i| row.get::<_, rusqlite::types::Value>(i)).collect::<Sql<Vec<_>>>()
        })?;
        let removed = match &end {
            Some(end) => {
                params.pop();
                params.extend(end.iter().map(|v| v as &dyn ToSql));
                self.run(&format!("{delete}{below}"), &params[..])?
            }
            None => self.run(delete, range)?,
        } as u64;
        self.removed += removed;
        Ok(removed)
    }

    fn clear_tenant(&mut self, tenant: TenantNo, limit: u32) -> Sql<()> {
        self.applied.everything = true;
        let mut left = u64::from(limit);
        let uids: Vec<i64> = self
            .conn
            .prepare_cached("SELECT uid FROM subject WHERE tenant = ?1 ORDER BY uid LIMIT ?2")?
            .query_map((tenant.0, limit), int)?
            .collect::<Sql<_>>()?;
        for uid in uids {
            if left == 0 {
                return Ok(());
            }
            self.applied.uids.push(SubjectUid(uid));
            let gone = self.run("DELETE FROM subject WHERE uid = ?1", [uid])?;
            self.counted.push((tenant, -(gone as i64)));
            let removed = self.delete_classes(SubjectUid(uid))? + gone;
            self.removed += removed as u64;
            left = left.saturating_sub(removed as u64);
        }
        let node_range: [&dyn ToSql; 2] = [&node_id(tenant, Ordinal(0)), &(node_id(tenant, Ordinal(0)) + (1 << 21))];
        let all: [&dyn ToSql; 1] = [&tenant.0];
        let tables: [(&str, &str, &str, &[&dyn ToSql]); 10] = [
            ("item", "class, bucket, uid, field, item", "(?2, ?3, ?4, ?5, ?6)", &all),
            ("item_group", "class, bucket, uid, field", "(?2, ?3, ?4, ?5)", &all),
            ("term", "version, field, tag, uid", "(?2, ?3, ?4, ?5)", &all),
            ("tombstone", "digest", "(?2)", &all),
            ("expiry", "class, bucket", "(?2, ?3)", &all),
            ("free_slot", "slot", "(?2)", &all),
            ("object", "kind, key", "(?2, ?3)", &all),
            ("request", "request", "(?2)", &all),
            ("feed", "seq", "(?2)", &all),
            ("node", "id", "(?3)", &node_range),
        ];
        for (table, key, end, range) in tables {
            if left == 0 {
                return Ok(());
            }
            let filter = if table == "node" { "id >= ?1 AND id < ?2" } else { "tenant = ?1" };
            let offset = range.len() + 1;
            let removed = self.delete_first(
                &format!("SELECT {key} FROM {table} WHERE {filter} ORDER BY {key} LIMIT 1 OFFSET ?{offset}"),
                &format!("DELETE FROM {table} WHERE {filter}"),
                &format!(" AND ({key}) < {end}"),
                range,
                u32::try_from(left).unwrap_or(u32::MAX),
            )?;
            left = left.saturating_sub(removed);
        }
        Ok(())
    }

    fn run(&self, sql: &str, params: impl Params) -> Sql<usize> {
        self.conn.prepare_cached(sql)?.execute(params)
    }

    fn any(&self, sql: &str, params: impl Params) -> Sql<bool> {
        self.conn.prepare_cached(sql)?.exists(params)
    }

    fn one<T>(&self, sql: &str, params: impl Params, read: impl FnOnce(&Row<'_>) -> Sql<T>) -> Sql<Option<T>> {
        self.conn.prepare_cached(sql)?.query_row(params, read).optional()
    }
}

fn int(row: &Row<'_>) -> Sql<i64> {
    row.get(0)
}
