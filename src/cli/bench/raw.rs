//! The floor of writes: the vault's tables, pragmas and row sizes, filled and emptied by plain SQL in groups, with nobody
//! else at work.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use rand::RngExt;
use rusqlite::hooks::Wal;
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value as Json, json};

use super::error::BenchError;
use super::stats::percentile;
use crate::clock::Clock;
use crate::ids::VaultId;
use crate::storage::Store;
use crate::storage::sqlite::{Options, SqliteStore};

/// Sizes of the rows of one subject, as a vault wrote them.
#[derive(Debug, Clone)]
struct Shape {
    sealed_id: usize,
    /// Class number and bytes of its record.
    classes: Vec<(i64, usize)>,
    terms: usize,
}

/// A database of our own.
pub struct Raw {
    conn: Connection,
    shapes: Vec<Shape>,
    /// Bytes of an audit entry.
    audit_bytes: usize,
    /// Pages in the write-ahead log at which it is moved.
    checkpoint_pages: i32,
    /// Pages in it.
    log_pages: Arc<AtomicI32>,
    next: i64,
    noise: Vec<u8>,
}

type Sql<T> = Result<T, rusqlite::Error>;

fn sql(error: rusqlite::Error) -> BenchError {
    BenchError::other("SQLite")(error)
}

fn open(path: &Path) -> Result<Connection, BenchError> {
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX).map_err(sql)
}

/// Sizes of what the vault at `path` wrote last.
fn shapes(path: &Path) -> Result<(Vec<Shape>, usize), BenchError> {
    let conn = open(path)?;
    conn.pragma_update(None, "query_only", true).map_err(sql)?;
    let of = || -> Sql<_> {
        let mut subjects = conn.prepare("SELECT uid, length(sealed_id) FROM subject ORDER BY uid DESC LIMIT 1000")?;
        let mut classes =
            conn.prepare("SELECT class, length(record) FROM subject_class WHERE id >= ?1 << 5 AND id < (?1 + 1) << 5")?;
        let mut terms = conn.prepare("SELECT count(*) FROM term WHERE uid = ?1")?;
        let mut shapes = Vec::new();
        let mut rows = subjects.query([])?;
        while let Some(row) = rows.next()? {
            let uid: i64 = row.get(0)?;
            let list = classes.query_map([uid], |r| Ok((r.get(0)?, r.get::<_, i64>(1)? as usize)))?;
            shapes.push(Shape {
                sealed_id: row.get::<_, i64>(1)? as usize,
                classes: list.collect::<Sql<_>>()?,
                terms: terms.query_row([uid], |r| r.get::<_, i64>(0))? as usize,
            });
        }
        let entry = "SELECT coalesce(sum(length(body)) / max(sum(count), 1), 0) FROM
            (SELECT body, count FROM audit_change ORDER BY id DESC LIMIT 100)";
        Ok((shapes, conn.query_row(entry, [], |r| r.get::<_, i64>(0))? as usize))
    };
    of().map_err(sql)
}

impl Raw {
    /// Makes `dir/raw.db` with the vault's own schema; rows will be of the sizes in the vault's database `like`.
    pub async fn new(dir: &Path, like: &Path) -> Result<Raw, BenchError> {
        let (shapes, audit_bytes) = shapes(like)?;
        if shapes.is_empty() {
            return Err(BenchError::Other { what: "raw SQLite", why: "the vault has no rows to be like".into() });
        }
        let path = dir.join("raw.db");
        let options = Options::new(&path, VaultId([7; 16])).create();
        let (page_cache, checkpoint_pages) = (options.page_cache_kib, options.checkpoint_pages);
        SqliteStore::open(options).map_err(BenchError::other("raw SQLite"))?.close().await;
        let mut conn = open(&path)?;
        conn.set_prepared_statement_cache_capacity(64);
        let set = |name: &str, value: &dyn rusqlite::ToSql| conn.pragma_update(None, name, value).map_err(sql);
        set("synchronous", &"FULL")?;
        set("foreign_keys", &true)?;
        set("secure_delete", &true)?;
        set("temp_store", &"MEMORY")?;
        set("cache_size", &-i64::from(page_cache))?;
        set("wal_autocheckpoint", &0)?;
        set("journal_size_limit", &(2 * 4096 * checkpoint_pages as i64))?;
        let log_pages = Arc::new(AtomicI32::new(0));
        let counter = log_pages.clone();
        let hook = move |_: &mut Wal, pages: i32| {
            counter.store(pages, Ordering::Relaxed);
            Ok(())
        };
        conn.wal_hook(Some(hook)).map_err(sql)?;
        let mut noise = vec![0; 1 << 20];
        rand::rng().fill(&mut noise[..]);
        // Another group of rows may have written before.
        let next =
            conn.query_row("SELECT coalesce(max(uid), 0) + 1 FROM subject", [], |row| row.get(0)).map_err(sql)?;
        Ok(Raw { conn, shapes, audit_bytes, checkpoint_pages: checkpoint_pages as i32, log_pages, next, noise })
    }

    /// Puts subjects in groups until the time is over; answers how many and in how many seconds.
    pub fn put(&mut self, group: usize, time: Duration, clock: &dyn Clock) -> Result<(u64, f64), BenchError> {
        let began = clock.monotonic();
        let mut rows = 0;
        while clock.monotonic() - began < time {
            self.put_group(group).map_err(sql)?;
            rows += group as u64;
        }
        Ok((rows, (clock.monotonic() - began).as_secs_f64()))
    }

    fn put_group(&mut self, group: usize) -> Sql<()> {
        let Raw { conn, shapes, noise, next, audit_bytes, log_pages, checkpoint_pages } = self;
        let mut random = [0u8; 48];
        conn.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        {
            let mut subject = conn.prepare_cached(
                "INSERT INTO subject(uid, tenant, digest, sealed_id, state, grp, revision, created, touched, due)
                 VALUES (?1, 1, ?2, ?3, 1, NULL, 1, 1768478400000, 1768478400000, NULL)",
            )?;
            let mut class = conn.prepare_cached(
                "INSERT INTO subject_class(id, tenant, class, version, slot, dek, state, revision,
                    data_keys_issued, seals, next_bucket, record)
                 VALUES (?1, 1, ?2, 1, ?3, ?4, 1, 1, 0, 1, NULL, ?5)",
            )?;
            let mut term =
                conn.prepare_cached("INSERT INTO term(tenant, version, field, tag, uid) VALUES (1, 1, 2, ?1, ?2)")?;
            for _ in 0..group {
                let uid = *next;
                *next += 1;
                let shape = &shapes[uid as usize % shapes.len()];
                rand::rng().fill(&mut random[..]);
                subject.execute((uid, &random[..16], &noise[..shape.sealed_id]))?;
                for (i, (number, bytes)) in shape.classes.iter().enumerate() {
                    let slot = uid * 2 + i as i64 + 16;
                    let at = (uid as usize * 61) % (noise.len() / 2);
                    class.execute((uid << 5 | number, number, slot, &random[16..32], &noise[at..at + bytes]))?;
                }
                for _ in 0..shape.terms {
                    rand::rng().fill(&mut random[32..]);
                    term.execute((&random[32..], uid))?;
                }
            }
        }
        conn.prepare_cached("INSERT INTO audit_change(tenant, last, count, at, body) VALUES (1, ?1, ?2, 0, ?3)")?
            .execute((*next, group as i64, &noise[..(group * *audit_bytes).min(noise.len())]))?;
        conn.prepare_cached("COMMIT")?.execute([])?;
        bound_log(conn, log_pages, *checkpoint_pages)
    }

    /// Fills one expiry bucket with `values` items of `bytes` each, `each` a subject.
    pub fn fill_bucket(&mut self, values: i64, each: i64, bytes: usize) -> Result<(), BenchError> {
        let fill = || -> Sql<()> {
            for part in (0..values).step_by(10_000) {
                self.conn.execute_batch("BEGIN IMMEDIATE")?;
                {
                    let mut group = self.conn.prepare_cached(
                        "INSERT INTO item_group(tenant, class, bucket, uid, field, count, revision, sum, mac)
                         VALUES (1, 3, 20000, ?1, 7, ?2, 1, ?3, ?4)",
                    )?;
                    let mut item = self.conn.prepare_cached(
                        "INSERT INTO item(tenant, class, bucket, uid, field, item, revision, origin, expire, envelope)
                         VALUES (1, 3, 20000, ?1, 7, ?2, 1, 1768478400000, 1776254400000, ?3)",
                    )?;
                    for i in part..(part + 10_000).min(values) {
                        let at = (i as usize * 61) % (self.noise.len() / 2);
                        if i % each == 0 {
                            group.execute((i / each, each, &self.noise[at..at + 32], &self.noise[at..at + 32]))?;
                        }
                        item.execute((i / each, i, &self.noise[at..at + bytes]))?;
                    }
                }
                self.conn.execute_batch("COMMIT")?;
                bound_log(&self.conn, &self.log_pages, self.checkpoint_pages)?;
            }
            self.conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        };
        fill().map_err(sql)
    }

    /// Deletes the bucket in transactions of about `limit` items; answers how many rows and in how many seconds.
    pub fn delete_bucket(&mut self, limit: i64, clock: &dyn Clock) -> Result<(u64, f64), BenchError> {
        let began = clock.monotonic();
        let mut gone = 0;
        let mut delete = || -> Sql<()> {
            loop {
                self.conn.execute_batch("BEGIN IMMEDIATE")?;
                let scope = "tenant = 1 AND class = 3 AND bucket = 20000";
                let end: Option<i64> = rusqlite::OptionalExtension::optional(
                    self.conn
                        .prepare_cached(&format!(
                            "SELECT uid FROM item WHERE {scope} ORDER BY uid, field, item LIMIT 1 OFFSET ?1"
                        ))?
                        .query_row([limit], |row| row.get(0)),
                )?;
                let end = end.unwrap_or(i64::MAX);
                for table in ["item", "item_group"] {
                    gone += self
                        .conn
                        .prepare_cached(&format!("DELETE FROM {table} WHERE {scope} AND uid < ?1"))?
                        .execute([end])? as u64;
                }
                self.conn.execute_batch("COMMIT")?;
                bound_log(&self.conn, &self.log_pages, self.checkpoint_pages)?;
                if end == i64::MAX {
                    return Ok(());
                }
            }
        };
        delete().map_err(sql)?;
        Ok((gone, (clock.monotonic() - began).as_secs_f64()))
    }
}

/// Moves the log when it is long, as the vault's writer does.
fn bound_log(conn: &Connection, pages: &AtomicI32, limit: i32) -> Sql<()> {
    if pages.load(Ordering::Relaxed) >= limit {
        conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
    }
    Ok(())
}

/// Microseconds of `times` syncs of one overwritten block of 4 KiB: the median.
pub fn fdatasync(dir: &Path, times: usize, clock: &dyn Clock) -> Result<u32, BenchError> {
    let run = || {
        let file = File::create_new(dir.join("sync"))?;
        file.write_all_at(&[1; 4096], 0)?;
        file.sync_all()?;
        let mut took = Vec::with_capacity(times);
        for i in 0..times {
            let began = clock.monotonic();
            file.write_all_at(&[i as u8; 4096], 0)?;
            file.sync_data()?;
            took.push((clock.monotonic() - began).as_micros() as u32);
        }
        std::fs::remove_file(dir.join("sync"))?;
        Ok(percentile(&mut took, 0.5))
    };
    run().map_err(BenchError::io("fdatasync"))
}

/// What the part does when it is told to.
pub fn answer(raw: &mut Raw, request: &Json, clock: &dyn Clock) -> Result<Json, BenchError> {
    let number = |name: &str| request[name].as_u64().unwrap_or(0);
    let (rows, seconds) = match request["do"].as_str() {
        Some("put") => raw.put(
            number("group") as usize,
            Duration::from_secs_f64(request["seconds"].as_f64().unwrap_or(1.0)),
            clock,
        )?,
        Some("fill") => {
            raw.fill_bucket(number("values") as i64, number("each").max(1) as i64, number("bytes") as usize)?;
            (number("values"), 0.0)
        }
        Some("delete") => raw.delete_bucket(number("limit") as i64, clock)?,
        _ => return Err(BenchError::Other { what: "raw SQLite", why: "no such request".into() }),
    };
    Ok(json!({ "rows": rows, "seconds": seconds }))
}
