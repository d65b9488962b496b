//! The one thread that writes. It takes what waits, commits it as one group, and only then answers: while one sync runs
//! the next group gathers.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::Receiver;
use rusqlite::Connection;
use rusqlite::config::DbConfig;
use rusqlite::hooks::Wal;
use tokio::sync::oneshot;

use super::apply::{Applied, Apply};
use super::error::{DAMAGED, Fault, IO_ERROR, PANICKED, Result, engine, fault};
use super::{Shared, decode, schema};
use crate::audit::{AuditRecord, Chain, Group, GroupBuilder, Head, genesis};
use crate::ids::*;
use crate::storage::{ChangeSet, Committed, Conflict, StoreError};

/// What the writer is asked for.
pub enum Job {
    Commit(Commit),
    Checkpoint(oneshot::Sender<Result<()>>),
}

/// A queued change set.
pub struct Commit {
    pub change: ChangeSet,
    /// The change set's audit entries, read.
    pub records: Vec<(TenantNo, AuditRecord)>,
    /// What it counts for in the queue.
    pub bytes: usize,
    pub answer: oneshot::Sender<Result<Committed>>,
}

/// Counters of a tenant, kept beside its rows.
#[derive(Clone, Copy)]
pub struct Mark {
    pub slot_next: i64,
    pub feed_last: i64,
    pub subjects: i64,
    pub changed: bool,
}

pub struct Writer {
    conn: Connection,
    shared: Arc<Shared>,
    vault: VaultId,
    max_group: usize,
    /// Pages in the log at which it is moved into the database file.
    checkpoint_pages: usize,
    /// The same, put off while a long read keeps the log from being started anew.
    checkpoint_at: usize,
    /// The last group met a full disk.
    full: bool,
    /// Ends of the change chains, as committed; filled as tenants are met.
    heads: HashMap<TenantNo, Head>,
    marks: HashMap<TenantNo, Mark>,
    /// Row numbers below this one are spoken for, by a row of `meta`.
    uid_high: i64,
    builders: Vec<(TenantNo, GroupBuilder)>,
}

/// How far row numbers are spoken for ahead, so that giving one needs no write. A crash skips at most this many.
const UID_AHEAD: i64 = 1 << 16;

/// Why a group came to nothing.
enum Failure {
    Sql(rusqlite::Error),
    Store(StoreError),
}
impl From<rusqlite::Error> for Failure {
    fn from(e: rusqlite::Error) -> Self {
        Failure::Sql(e)
    }
}
impl From<StoreError> for Failure {
    fn from(e: StoreError) -> Self {
        Failure::Store(e)
    }
}

impl Writer {
    /// Speaks for the next row numbers and starts where the last one ended.
    pub fn new(
        mut conn: Connection,
        shared: Arc<Shared>,
        vault: VaultId,
        max_group: usize,
        checkpoint_pages: usize,
    ) -> Result<Self> {
        let high: i64 = conn
            .query_row("SELECT value FROM meta WHERE key = ?1", [schema::UID_HIGH], |row| row.get(0))
            .map_err(|_| StoreError::Damaged { what: "row number mark" })?;
        let used: Option<i64> = conn.query_row("SELECT max(uid) FROM subject", [], |row| row.get(0)).map_err(engine)?;
        // The mark is ahead of every row that was ever written; the maximum only guards against a damaged mark.
        let next = high.max(used.unwrap_or(0).saturating_add(1));
        shared.next_uid.store(next, Ordering::SeqCst);
        let log = shared.clone();
        conn.wal_hook(Some(move |_: &mut Wal, pages: i32| {
            log.log_pages.store(pages.max(0) as usize, Ordering::Relaxed);
            Ok(())
        }))
        .map_err(engine)?;
        let writer = Writer {
            conn,
            shared,
            vault,
            max_group: max_group.max(1),
            checkpoint_pages,
            checkpoint_at: checkpoint_pages,
            full: false,
            heads: HashMap::new(),
            marks: HashMap::new(),
            uid_high: next + UID_AHEAD,
            builders: Vec::new(),
        };
        writer.store_uid_high(writer.uid_high).map_err(engine)?;
        Ok(writer)
    }

    /// Works until all senders are gone, then waits for the readers (`readers` disconnects) and closes the file.
    pub fn run(mut self, jobs: &Receiver<Job>, readers: &Receiver<()>) {
        let shared = self.shared.clone();
        let ended = catch_unwind(AssertUnwindSafe(|| {
            while let Ok(first) = jobs.recv() {
                self.serve(first, jobs);
            }
        }));
        if ended.is_err() {
            shared.close_writes(PANICKED);
            // Whoever waits gets an answer; whoever comes is refused at the door or here.
            for job in jobs {
                refuse(&shared, job, &StoreError::Closed { reason: PANICKED });
            }
        }
        while readers.recv().is_ok() {}
        if shared.may_write().is_ok() {
            self.finish();
        } else {
            // What SQLite holds in memory is no longer trusted: the last connection must not write on its way out.
            let _ = self.conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
        }
    }

    /// Commits a group that begins with `first`, and what else was asked for meanwhile.
    fn serve(&mut self, first: Job, jobs: &Receiver<Job>) {
        let (mut first, mut checkpoints) = (Some(first), Vec::new());
        self.commit_group(&mut || {
            while let Some(job) = first.take().or_else(|| jobs.try_recv().ok()) {
                match job {
                    Job::Commit(commit) => return Some(commit),
                    Job::Checkpoint(answer) => checkpoints.push(answer),
                }
            }
            None
        });
        if !checkpoints.is_empty() {
            let result = self.shared.may_write().and_then(|()| self.checkpoint("PRAGMA wal_checkpoint(TRUNCATE)"));
            for answer in checkpoints {
                let _ = answer.send(result.clone().map(drop));
            }
        }
        self.bound_log();
    }

    fn commit_group(&mut self, next: &mut dyn FnMut() -> Option<Commit>) {
        let Some(first) = next() else { return };
        let mut group = vec![first];
        let mut results: Vec<Result<Committed>> = Vec::new();
        let mut applied = Applied::default();
        let outcome = self.shared.may_write().map_err(Failure::Store).and_then(|()| {
            self.apply_group(&mut group, next, &mut results, &mut applied)?;
            // A restored row may bring its number along.
            let top = applied.uids.iter().map(|uid| uid.0).max().unwrap_or(0);
            self.shared.next_uid.fetch_max(top.saturating_add(1), Ordering::SeqCst);
            let heads = self.end_group()?;
            self.execute("COMMIT")?;
            Ok(heads)
        });
        match outcome {
            Ok(heads) => {
                self.heads.extend(heads);
                self.marks.values_mut().for_each(|m| m.changed = false);
                self.full = false;
            }
            Err(failure) => {
                let error = self.fail(failure);
                // A conflict was seen on a state that never came to be, so everyone gets the same answer.
                results.clear();
                results.resize_with(group.len(), || Err(error.clone()));
            }
        }
        // After a failed commit too: whatever was cached is read again rather than believed.
        applied.uids.sort_unstable();
        applied.uids.dedup();
        if applied.everything {
            self.shared.cache.clear();
        } else {
            self.shared.cache.purge(&applied.uids);
        }
        if let Some(listener) = self.shared.listener.get()
            && !applied.uids.is_empty()
        {
            listener.committed(&applied.uids);
        }
        for (commit, result) in group.into_iter().zip(results) {
            self.shared.leave(commit.bytes);
            let _ = commit.answer.send(result);
        }
    }

    /// Applies what waits and what arrives meanwhile, until nothing waits or the group is large enough.
    ///
    /// Almost every change set that fails does so by a precondition, before it has changed anything. So the group begins
    /// without savepoints, which copy each page they change; when one fails later than that, the group is
    /// undone and applied once more with them, and then that one alone is undone.
    fn apply_group(
        &mut self,
        group: &mut Vec<Commit>,
        next: &mut dyn FnMut() -> Option<Commit>,
        results: &mut Vec<Result<Committed>>,
        applied: &mut Applied,
    ) -> std::result::Result<(), Failure> {
        let mut savepoints = false;
        self.execute("BEGIN IMMEDIATE")?;
        loop {
            match self.apply_one(&group[results.len()], savepoints, applied)? {
                Some(result) => results.push(result),
                None => {
                    savepoints = true;
                    self.execute("ROLLBACK")?;
                    self.forget_group();
                    results.clear();
                    self.execute("BEGIN IMMEDIATE")?;
                    continue;
                }
            }
            if results.len() == group.len() {
                if group.len() >= self.max_group {
                    return Ok(());
                }
                let Some(commit) = next() else { return Ok(()) };
                group.push(commit);
            }
        }
    }

    /// Applies one change set, or undoes it; `None` if that takes a savepoint and there is none.
    fn apply_one(
        &mut self,
        commit: &Commit,
        savepoint: bool,
        applied: &mut Applied,
    ) -> std::result::Result<Option<Result<Committed>>, Failure> {
        let mut apply = Apply { conn: &self.conn, marks: &mut self.marks, applied, removed: 0, counted: Vec::new() };
        if let Some(conflict) = apply.check(&commit.change.preconditions)? {
            return Ok(Some(Err(StoreError::Conflict(conflict))));
        }
        if savepoint {
            run(&self.conn, "SAVEPOINT change")?;
        }
        for mutation in &commit.change.mutations {
            let refused = match apply.apply(mutation) {
                Ok(None) => continue,
                Ok(Some(conflict)) => StoreError::Conflict(conflict),
                Err(e) => match fault(&e) {
                    Fault::Duplicate => StoreError::Conflict(Conflict::Duplicate),
                    Fault::Other if !self.conn.is_autocommit() => engine(e),
                    _ => return Err(e.into()),
                },
            };
            if !savepoint {
                return Ok(None);
            }
            run(&self.conn, "ROLLBACK TO change")?;
            run(&self.conn, "RELEASE change")?;
            return Ok(Some(Err(refused)));
        }
        apply.count()?;
        let removed = apply.removed;
        if savepoint {
            run(&self.conn, "RELEASE change")?;
        }
        for (tenant, record) in &commit.records {
            let at = match self.builders.iter().position(|(t, _)| t == tenant) {
                Some(at) => at,
                None => {
                    self.builders.push((*tenant, GroupBuilder::new()));
                    self.builders.len() - 1
                }
            };
            self.builders[at].1.push(record);
        }
        Ok(Some(Ok(Committed { removed })))
    }

    /// Forgets what the group would have left.
    fn forget_group(&mut self) {
        self.builders.clear();
        self.marks.clear();
    }

    /// What a group leaves once: its audit rows, raised marks.
    fn end_group(&mut self) -> std::result::Result<Vec<(TenantNo, Head)>, Failure> {
        let mut heads = Vec::with_capacity(self.builders.len());
        let mut builders = std::mem::take(&mut self.builders);
        for (tenant, builder) in &mut builders {
            let prev = match self.heads.get(tenant) {
                Some(head) => *head,
                None => {
                    stored_head(&self.conn, *tenant)?.unwrap_or_else(|| genesis(self.vault, *tenant, Chain::Change))
                }
            };
            let Some((body, head)) = builder.link(*tenant, Chain::Change, &prev) else { continue };
            let at = Group::parse(body).map_err(|_| StoreError::Damaged { what: "audit group" })?.time;
            self.conn
                .prepare_cached("INSERT INTO audit_change(tenant, last, count, at, body) VALUES (?1, ?2, ?3, ?4, ?5)")?
                .execute((tenant.0, head.seq as i64, (head.seq - prev.seq) as i64, at.0, body))?;
            heads.push((*tenant, head));
        }
        builders.truncate(64);
        self.builders = builders;
        for (tenant, mark) in self.marks.iter().filter(|(_, m)| m.changed) {
            self.conn
                .prepare_cached(
                    "INSERT OR REPLACE INTO mark(tenant, slot_next, feed_last, subjects) VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute((tenant.0, mark.slot_next, mark.feed_last, mark.subjects))?;
        }
        let next = self.shared.next_uid.load(Ordering::SeqCst);
        if next + UID_AHEAD / 2 > self.uid_high {
            self.store_uid_high(next + UID_AHEAD)?;
            self.uid_high = next + UID_AHEAD;
        }
        Ok(heads)
    }

    /// Undoes the group and decides what its error means for the store.
    fn fail(&mut self, failure: Failure) -> StoreError {
        self.forget_group();
        // The stored mark may be lower than the one in memory again; the next group raises it.
        self.uid_high = 0;
        let (error, fault) = match failure {
            Failure::Sql(e) => {
                let fault = fault(&e);
                (engine(e), fault)
            }
            Failure::Store(e @ StoreError::Damaged { .. }) => (e, Fault::Corrupt),
            Failure::Store(e) => (e, Fault::Other),
        };
        let undone = self.conn.is_autocommit() || self.conn.execute_batch("ROLLBACK").is_ok();
        match fault {
            Fault::Corrupt => self.shared.damaged(),
            Fault::Io => self.shared.close_writes(IO_ERROR),
            Fault::Full if !std::mem::replace(&mut self.full, true) => {
                tracing::error!("the disk is full: writes are refused until there is space");
            }
            Fault::Full | Fault::Duplicate | Fault::Other => {}
        }
        if !undone {
            self.shared.close_writes(IO_ERROR);
        }
        match fault {
            Fault::Corrupt => StoreError::Closed { reason: DAMAGED },
            Fault::Io => StoreError::Closed { reason: IO_ERROR },
            _ => error,
        }
    }

    /// Keeps the log bounded: everything in it is moved once it is long, and the next write starts it anew. While a
    /// long read still needs it, it grows, and moving is tried again a quarter later each time.
    fn bound_log(&mut self) {
        let pages = self.shared.log_pages.load(Ordering::Relaxed);
        if pages < self.checkpoint_pages {
            self.checkpoint_at = self.checkpoint_pages;
        } else if pages >= self.checkpoint_at && self.shared.may_write().is_ok() {
            self.checkpoint_at = pages + self.checkpoint_pages / 4;
            let _ = self.checkpoint("PRAGMA wal_checkpoint(PASSIVE)");
        }
    }

    /// # Errors
    /// `Busy` if a reader kept some of the log in use.
    fn checkpoint(&mut self, pragma: &str) -> Result<()> {
        let done = self.conn.query_row(pragma, [], |row| row.get::<_, i64>(0));
        match done {
            Ok(0) => Ok(()),
            Ok(_) => Err(StoreError::Busy),
            Err(e) => {
                match fault(&e) {
                    // The log stays, and with it everything that was committed.
                    Fault::Full => tracing::error!("the disk is full: the log cannot be moved into the database"),
                    Fault::Corrupt => self.shared.damaged(),
                    Fault::Io => self.shared.close_writes(IO_ERROR),
                    Fault::Duplicate | Fault::Other => {}
                }
                Err(engine(e))
            }
        }
    }

    fn finish(&mut self) {
        // Nothing is given any more, so the numbers that were spoken for and not given are free again.
        let next = self.shared.next_uid.load(Ordering::SeqCst);
        if let Err(e) = self.store_uid_high(next) {
            tracing::warn!(error = %e, "closing");
        }
        if let Err(e) = self.checkpoint("PRAGMA wal_checkpoint(TRUNCATE)") {
            tracing::warn!(error = %e, "closing");
        }
    }

    fn store_uid_high(&self, high: i64) -> rusqlite::Result<()> {
        let sql = "INSERT OR REPLACE INTO meta(key, value) VALUES (?1, ?2)";
        self.conn.prepare_cached(sql)?.execute((schema::UID_HIGH, high)).map(drop)
    }

    fn execute(&self, sql: &str) -> rusqlite::Result<()> {
        run(&self.conn, sql)
    }
}

fn run(conn: &Connection, sql: &str) -> rusqlite::Result<()> {
    conn.prepare_cached(sql)?.execute([]).map(drop)
}

/// Answers a job with an error.
fn refuse(shared: &Shared, job: Job, error: &StoreError) {
    match job {
        Job::Commit(commit) => {
            shared.leave(commit.bytes);
            let _ = commit.answer.send(Err(error.clone()));
        }
        Job::Checkpoint(answer) => {
            let _ = answer.send(Err(error.clone()));
        }
    }
}

/// The head of a tenant's change chain, from its last row.
pub fn stored_head(conn: &Connection, tenant: TenantNo) -> Result<Option<Head>> {
    let sql = "SELECT tenant, last, count, at, body FROM audit_change WHERE tenant = ?1 ORDER BY last DESC LIMIT 1";
    let mut statement = conn.prepare_cached(sql).map_err(engine)?;
    let mut rows = statement.query([tenant.0]).map_err(engine)?;
    let Some(row) = rows.next().map_err(engine)? else { return Ok(None) };
    let row = decode::audit_group(row)?;
    let damaged = StoreError::Damaged { what: "audit group" };
    let group = Group::parse(&row.body).map_err(|_| damaged.clone())?;
    if (group.tenant, group.first, group.count) != (tenant, row.first, row.count) {
        return Err(damaged);
    }
    Ok(Some(group.head()))
}
