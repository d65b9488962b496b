//! The file's tables and how an older file becomes one of this version.
//!
//! Clustering decides the cost of a write more than the sync does, so rows that are written together lie together: the
//! classes of a subject side by side in order of creation, items by the bucket they leave in, audit and requests in
//! order of arrival; random keys only in narrow indexes.

use rusqlite::Connection;

use super::error::{Result, engine};
use crate::ids::VaultId;
use crate::storage::StoreError;

/// `PIIv`: tells our files from other programs'.
pub const APPLICATION_ID: i32 = 0x5049_4976;

/// Step n (from 0) makes a file of version n into one of version n + 1. Never edit one that was released: add another.
const STEPS: [&str; 2] = [V1, V2];

/// The version that this program writes.
pub const VERSION: u32 = STEPS.len() as u32;

// subject_class: id = uid << 5 | class, so that a subject's classes are one range of a table whose leaves hold whole
// records (a table WITHOUT ROWID would move what is longer than 1,002 bytes to pages of its own).
// node: a blob of 3,869 bytes and its header are 3,882 of the 4,061 bytes that fit one page of 4,096.
// mark: counters: two that must not go back when the rows that they counted are gone, and (V2) the subjects there are.
const V1: &str = "
CREATE TABLE meta(key TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE tenant(
    no INTEGER PRIMARY KEY, name TEXT NOT NULL, state INTEGER NOT NULL, generation INTEGER NOT NULL,
    revision INTEGER NOT NULL, body BLOB NOT NULL) STRICT;
CREATE UNIQUE INDEX tenant_name ON tenant(name) WHERE state <> 3;
CREATE TABLE mark(tenant INTEGER PRIMARY KEY, slot_next INTEGER NOT NULL, feed_last INTEGER NOT NULL) STRICT;
CREATE TABLE node(id INTEGER PRIMARY KEY, generation INTEGER NOT NULL, blob BLOB NOT NULL) STRICT;
CREATE TABLE subject(
    uid INTEGER PRIMARY KEY, tenant INTEGER NOT NULL, digest BLOB NOT NULL, sealed_id BLOB NOT NULL,
    state INTEGER NOT NULL, grp INTEGER, revision INTEGER NOT NULL, created INTEGER NOT NULL,
    touched INTEGER NOT NULL, due INTEGER) STRICT;
CREATE UNIQUE INDEX subject_digest ON subject(tenant, digest);
CREATE INDEX subject_tenant ON subject(tenant);
CREATE INDEX subject_group ON subject(tenant, grp) WHERE grp IS NOT NULL;
CREATE TABLE subject_class(
    id INTEGER PRIMARY KEY, tenant INTEGER NOT NULL, class INTEGER NOT NULL, version INTEGER NOT NULL,
    slot INTEGER, dek BLOB NOT NULL, state INTEGER NOT NULL, revision INTEGER NOT NULL,
    data_keys_issued INTEGER NOT NULL, seals INTEGER NOT NULL, next_bucket INTEGER, record BLOB NOT NULL) STRICT;
CREATE UNIQUE INDEX class_slot ON subject_class(tenant, slot) WHERE slot IS NOT NULL;
CREATE INDEX class_due ON subject_class(tenant, class, next_bucket) WHERE next_bucket IS NOT NULL;
CREATE TABLE item_group(
    tenant INTEGER NOT NULL, class INTEGER NOT NULL, bucket INTEGER NOT NULL, uid INTEGER NOT NULL,
    field INTEGER NOT NULL, count INTEGER NOT NULL, revision INTEGER NOT NULL, sum BLOB NOT NULL, mac BLOB NOT NULL,
    PRIMARY KEY(tenant, class, bucket, uid, field)) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX item_group_subject ON item_group(uid, field, bucket);
CREATE TABLE item(
    tenant INTEGER NOT NULL, class INTEGER NOT NULL, bucket INTEGER NOT NULL, uid INTEGER NOT NULL,
    field INTEGER NOT NULL, item INTEGER NOT NULL, revision INTEGER NOT NULL, origin INTEGER NOT NULL,
    expire INTEGER, envelope BLOB NOT NULL,
    PRIMARY KEY(tenant, class, bucket, uid, field, item)) STRICT, WITHOUT ROWID;
CREATE TABLE term(
    tenant INTEGER NOT NULL, version INTEGER NOT NULL, field INTEGER NOT NULL, tag BLOB NOT NULL, uid INTEGER NOT NULL,
    PRIMARY KEY(tenant, version, field, tag, uid)) STRICT, WITHOUT ROWID;
CREATE INDEX term_subject ON term(uid, field);
CREATE TABLE tombstone(
    tenant INTEGER NOT NULL, digest BLOB NOT NULL, operation BLOB NOT NULL, at INTEGER NOT NULL,
    PRIMARY KEY(tenant, digest)) STRICT, WITHOUT ROWID;
CREATE TABLE expiry(
    tenant INTEGER NOT NULL, class INTEGER NOT NULL, bucket INTEGER NOT NULL, slot INTEGER, dek BLOB NOT NULL,
    PRIMARY KEY(tenant, class, bucket)) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX expiry_slot ON expiry(tenant, slot) WHERE slot IS NOT NULL;
CREATE TABLE free_slot(tenant INTEGER NOT NULL, slot INTEGER NOT NULL, PRIMARY KEY(tenant, slot)) STRICT, WITHOUT ROWID;
CREATE TABLE object(
    tenant INTEGER NOT NULL, kind INTEGER NOT NULL, key BLOB NOT NULL, revision INTEGER NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY(tenant, kind, key)) STRICT, WITHOUT ROWID;
CREATE TABLE request(
    id INTEGER PRIMARY KEY, tenant INTEGER NOT NULL, request BLOB NOT NULL, fingerprint BLOB NOT NULL,
    answer BLOB NOT NULL, at INTEGER NOT NULL) STRICT;
CREATE UNIQUE INDEX request_id ON request(tenant, request);
CREATE TABLE audit_change(
    id INTEGER PRIMARY KEY, tenant INTEGER NOT NULL, last INTEGER NOT NULL, count INTEGER NOT NULL,
    at INTEGER NOT NULL, body BLOB NOT NULL) STRICT;
CREATE UNIQUE INDEX audit_change_last ON audit_change(tenant, last);
CREATE TABLE feed(
    tenant INTEGER NOT NULL, seq INTEGER NOT NULL, at INTEGER NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY(tenant, seq)) STRICT, WITHOUT ROWID;
";

// Subjects of each tenant, counted once here and kept beside the other counters from then on.
const V2: &str = "
ALTER TABLE mark ADD COLUMN subjects INTEGER NOT NULL DEFAULT 0;
INSERT INTO mark(tenant, slot_next, feed_last, subjects)
    SELECT tenant, 0, 0, count(*) FROM subject WHERE true GROUP BY tenant
    ON CONFLICT(tenant) DO UPDATE SET subjects = excluded.subjects;
";

/// Keys of `meta`.
pub const VAULT: &str = "vault";
pub const UID_HIGH: &str = "uid_high";

/// Brings the open file to this version: makes the tables of an empty one (where `create` allows), refuses what is not
/// ours, another vault's or newer. One transaction, so a crash leaves the file as it was.
pub fn prepare(conn: &mut Connection, vault: VaultId, create: bool) -> Result<()> {
    let tx = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).map_err(engine)?;
    let pragma = |name: &str| tx.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map_err(engine);
    let (application, version) = (pragma("application_id")?, pragma("user_version")?);
    let tables: i64 = tx.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(engine)?;
    // A crash while the file was made leaves it without tables, and without a name.
    let empty = application == 0 && version == 0 && tables == 0;
    if empty && !create {
        return Err(StoreError::Refused { what: "it is empty" });
    }
    if !empty && application != i64::from(APPLICATION_ID) {
        return Err(StoreError::Refused { what: "another program made it" });
    }
    let version = u32::try_from(version).map_err(|_| StoreError::Damaged { what: "schema version" })?;
    if version > VERSION {
        return Err(StoreError::Newer { found: version, known: VERSION });
    }
    for step in &STEPS[version as usize..] {
        tx.execute_batch(step).map_err(engine)?;
    }
    if empty {
        tx.pragma_update(None, "application_id", APPLICATION_ID).map_err(engine)?;
        let put = "INSERT INTO meta(key, value) VALUES (?1, ?2)";
        tx.execute(put, (VAULT, &vault.0[..])).map_err(engine)?;
        tx.execute(put, (UID_HIGH, 1i64)).map_err(engine)?;
    }
    if version < VERSION {
        tx.pragma_update(None, "user_version", VERSION).map_err(engine)?;
    }
    let stored: Vec<u8> = tx
        .query_row("SELECT value FROM meta WHERE key = ?1", [VAULT], |row| row.get(0))
        .map_err(|_| StoreError::Damaged { what: "vault id" })?;
    if stored != vault.0 {
        return Err(StoreError::Refused { what: "it belongs to another vault" });
    }
    tx.commit().map_err(engine)
}
