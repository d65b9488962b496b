//! The store in one SQLite file: one thread writes, a few read, and nothing of it blocks the async runtime.

mod apply;
mod cache;
mod copy;
mod decode;
mod error;
mod file;
mod people;
mod read;
mod readers;
mod schema;
mod writer;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use async_trait::async_trait;
use crossbeam_channel::{Sender, TrySendError, bounded};
use parking_lot::{Mutex, RwLock};
use rusqlite::Connection;
use tokio::sync::oneshot;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_faults;

pub use self::copy::check_file;
pub use self::file::{IN_USE, lock, vault_of};
pub use self::people::{Person, people};
pub use self::schema::VERSION as SCHEMA_VERSION;

use self::cache::Cache;
use self::error::{CLOSED, DAMAGED, PANICKED, Result};
use self::file::{check_header, connect, io, sync_folder};
use self::readers::Readers;
use self::writer::{Commit, Job, Writer};
use super::*;
use crate::audit::AuditRecord;

/// Where the file is and what it may use.
#[derive(Debug, Clone)]
pub struct Options {
    /// The database file; its log and index lie beside it, and a lock file with `-lock` at its end.
    pub path: PathBuf,
    /// The vault whose file it must be.
    pub vault: VaultId,
    /// Makes the file where there is none.
    pub create: bool,
    /// Threads that read.
    pub readers: usize,
    /// Reads that may wait for a thread; one more is `Busy`.
    pub read_queue: usize,
    /// Change sets that may wait for the writer; one more is `Busy`.
    pub write_queue: usize,
    /// Bytes that they may take together.
    pub write_queue_bytes: usize,
    /// Change sets that share one commit.
    pub max_group: usize,
    /// Bytes of the ciphertext cache; 0: none.
    pub cache_bytes: usize,
    /// KiB of pages that each connection keeps.
    pub page_cache_kib: u32,
    /// Pages of 4 KiB in the log at which it is moved into the database file.
    pub checkpoint_pages: usize,
}

impl Options {
    /// The defaults, which must be told the place and the vault.
    pub fn new(path: impl Into<PathBuf>, vault: VaultId) -> Self {
        Options {
            path: path.into(),
            vault,
            create: false,
            readers: 2,
            read_queue: 1024,
            write_queue: 1024,
            write_queue_bytes: 64 << 20,
            max_group: 512,
            cache_bytes: 64 << 20,
            page_cache_kib: 8 << 10,
            checkpoint_pages: 16_384,
        }
    }
    /// The same, making the file where there is none.
    pub fn create(mut self) -> Self {
        self.create = true;
        self
    }
}

/// What is waiting and what is held, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Change sets that wait for the writer.
    pub writes_waiting: usize,
    /// Reads that wait for a thread.
    pub reads_waiting: usize,
    /// Bytes in the ciphertext cache.
    pub cache_bytes: usize,
    /// Pages in the write-ahead log.
    pub log_pages: usize,
}

/// What the threads share.
pub(in crate::storage) struct Shared {
    cache: Cache,
    listener: OnceLock<Arc<dyn CommitListener>>,
    next_uid: AtomicI64,
    /// Bytes of queued change sets.
    queued: AtomicUsize,
    log_pages: AtomicUsize,
    /// Why nothing is written any more.
    writes_closed: OnceLock<&'static str>,
    /// Why nothing is read any more either.
    reads_closed: OnceLock<&'static str>,
}

impl Shared {
    fn may_write(&self) -> Result<()> {
        match self.writes_closed.get() {
            Some(reason) => Err(StoreError::Closed { reason }),
            None => Ok(()),
        }
    }
    fn may_read(&self) -> Result<()> {
        match self.reads_closed.get() {
            Some(reason) => Err(StoreError::Closed { reason }),
            None => Ok(()),
        }
    }
    fn close_writes(&self, reason: &'static str) {
        if self.writes_closed.set(reason).is_ok() {
            tracing::error!(reason, "the store takes no more writes");
        }
    }
    fn damaged(&self) {
        self.close_writes(DAMAGED);
        if self.reads_closed.set(DAMAGED).is_ok() {
            tracing::error!("the database is damaged: the store is closed");
        }
    }
    fn enter(&self, bytes: usize, limit: usize) -> Result<()> {
        let taken = self.queued.fetch_add(bytes, Ordering::Relaxed);
        // One alone may be larger than the limit: it could never be taken otherwise.
        if taken > 0 && taken + bytes > limit {
            self.leave(bytes);
            return Err(StoreError::Busy);
        }
        Ok(())
    }
    fn leave(&self, bytes: usize) {
        self.queued.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A [`Store`] in a SQLite file. Dropping it closes it; [`Store::close`] does so without blocking.
pub struct SqliteStore {
    options: Options,
    shared: Arc<Shared>,
    readers: Readers,
    writes: RwLock<Option<Sender<Job>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Released when the store is dropped: until then no other process may open the file.
    _lock: File,
}

impl SqliteStore {
    /// Opens the file, brings it to this version, and starts the threads. Blocks for some milliseconds; longer if a log
    /// was left behind.
    ///
    /// # Errors
    /// `Refused` where the file is not there, not ours, another vault's or open elsewhere; `Newer`; `Damaged`.
    pub fn open(options: Options) -> Result<Self> {
        let lock = lock(&options.path)?;
        let there = std::fs::metadata(&options.path).is_ok_and(|m| m.len() > 0);
        if !there {
            if !options.create {
                return Err(StoreError::Refused { what: "it is not there" });
            }
            // Made here, so that nobody but its owner can ever read it.
            let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&options.path);
            file.map_err(io)?;
        }
        check_header(&options.path)?;
        let mut conn = connect(&options, false)?;
        schema::prepare(&mut conn, options.vault, options.create)?;
        if !there {
            sync_folder(&options.path)?;
        }
        let shared = Arc::new(Shared {
            cache: Cache::new(options.cache_bytes),
            listener: OnceLock::new(),
            next_uid: AtomicI64::new(1),
            queued: AtomicUsize::new(0),
            log_pages: AtomicUsize::new(0),
            writes_closed: OnceLock::new(),
            reads_closed: OnceLock::new(),
        });
        let (jobs, queue) = bounded(options.write_queue.max(1));
        let (done, readers_done) = bounded(0);
        let mut threads = Vec::new();
        let writer = Writer::new(conn, shared.clone(), options.vault, options.max_group, options.checkpoint_pages)?;
        let readers = Readers::start(&options, &shared, done, &mut threads)?;
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run(&queue, &readers_done))
            .map_err(io)?;
        threads.push(thread);
        Ok(SqliteStore {
            options,
            shared,
            readers,
            writes: RwLock::new(Some(jobs)),
            threads: Mutex::new(threads),
            _lock: lock,
        })
    }

    /// What is waiting and what is held.
    pub fn stats(&self) -> Stats {
        Stats {
            writes_waiting: self.writes.read().as_ref().map_or(0, Sender::len),
            reads_waiting: self.readers.waiting(),
            cache_bytes: self.shared.cache.bytes(),
            log_pages: self.shared.log_pages.load(Ordering::Relaxed),
        }
    }

    fn queue(&self, job: Job) -> Result<()> {
        let refused = match self.writes.read().as_ref().map(|queue| queue.try_send(job)) {
            Some(Ok(())) => return Ok(()),
            Some(Err(TrySendError::Full(job))) => (Some(job), StoreError::Busy),
            Some(Err(TrySendError::Disconnected(job))) => (Some(job), CLOSED),
            None => (None, CLOSED),
        };
        if let Some(Job::Commit(commit)) = refused.0 {
            self.shared.leave(commit.bytes);
        }
        Err(refused.1)
    }

    /// Takes no more work; the threads finish what is queued.
    fn stop(&self) -> Vec<JoinHandle<()>> {
        self.writes.write().take();
        self.readers.close();
        std::mem::take(&mut *self.threads.lock())
    }

    async fn read<T: Send + 'static>(&self, read: impl FnOnce(&Connection) -> Result<T> + Send + 'static) -> Result<T> {
        self.readers.run(&self.shared, read).await
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        for thread in self.stop() {
            let _ = thread.join();
        }
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn commit(&self, change: ChangeSet) -> Result<Committed> {
        self.shared.may_write()?;
        let records = change.audit.iter().map(|(tenant, entry)| Ok((*tenant, AuditRecord::from_bytes(entry)?)));
        let records: std::result::Result<Vec<_>, crate::audit::DecodeError> = records.collect();
        let records = records.map_err(|e| StoreError::Engine(Arc::new(e)))?;
        let bytes = size(&change);
        self.shared.enter(bytes, self.options.write_queue_bytes)?;
        let (answer, answered) = oneshot::channel();
        self.queue(Job::Commit(Commit { change, records, bytes, answer }))?;
        answered.await.unwrap_or(Err(StoreError::Closed { reason: PANICKED }))
    }

    fn cached_subject(&self, tenant: TenantNo, digest: SubjectDigest) -> Option<Arc<SubjectSnapshot>> {
        self.shared.cache.get(tenant, digest)
    }

    async fn subject(&self, tenant: TenantNo, digest: SubjectDigest) -> Result<Lookup> {
        if let Some(found) = self.shared.cache.get(tenant, digest) {
            return Ok(Lookup::Found(found));
        }
        let shared = self.shared.clone();
        self.read(move |conn| lookup_and_keep(conn, &shared, tenant, digest)).await
    }

    async fn subjects(&self, tenant: TenantNo, digests: Vec<SubjectDigest>) -> Result<Vec<Lookup>> {
        let cached = |d: &SubjectDigest| self.shared.cache.get(tenant, *d).map(Lookup::Found);
        let found: Vec<Option<Lookup>> = digests.iter().map(cached).collect();
        if found.iter().all(Option::is_some) {
            return Ok(found.into_iter().flatten().collect());
        }
        let shared = self.shared.clone();
        self.read(move |conn| {
            let rest = found.into_iter().zip(digests);
            rest.map(|(found, digest)| match found {
                Some(found) => Ok(found),
                None => lookup_and_keep(conn, &shared, tenant, digest),
            })
            .collect()
        })
        .await
    }

    async fn subject_by_uid(&self, uid: SubjectUid) -> Result<Option<Arc<SubjectSnapshot>>> {
        if let Some(found) = self.shared.cache.get_uid(uid) {
            return Ok(Some(found));
        }
        let shared = self.shared.clone();
        self.read(move |conn| {
            let ticket = shared.cache.begin();
            let found = read::by_uid(conn, uid)?.map(Arc::new);
            if let Some(found) = &found {
                shared.cache.fill(ticket, found);
            }
            Ok(found)
        })
        .await
    }

    async fn list_subjects(
        &self,
        tenant: TenantNo,
        group: Option<GroupNo>,
        after: SubjectUid,
        limit: u32,
    ) -> Result<Page<Arc<SubjectSnapshot>>> {
        self.read(move |conn| read::list_subjects(conn, tenant, group, after, limit)).await
    }

    async fn survey(&self, tenant: TenantNo, classes: ClassSet, after: SubjectUid, subjects: u32) -> Result<Survey> {
        self.read(move |conn| read::survey(conn, tenant, classes, after, subjects)).await
    }

    async fn item_times(
        &self,
        tenant: TenantNo,
        class: ClassNo,
        after: Option<ItemTimes>,
        limit: u32,
    ) -> Result<Page<ItemTimes>> {
        self.read(move |conn| read::item_times(conn, tenant, class, after, limit)).await
    }

    fn next_uid(&self) -> SubjectUid {
        SubjectUid(self.shared.next_uid.fetch_add(1, Ordering::SeqCst))
    }

    fn skip_uids(&self, below: SubjectUid) {
        self.shared.next_uid.fetch_max(below.0, Ordering::SeqCst);
    }

    async fn tenants(&self) -> Result<Vec<TenantRow>> {
        self.read(read::tenants).await
    }

    async fn nodes(&self, tenant: TenantNo, ordinals: Vec<Ordinal>) -> Result<NodeSnapshot> {
        self.read(move |conn| read::nodes(conn, tenant, &ordinals)).await
    }

    async fn list_nodes(&self, tenant: TenantNo, after: Option<Ordinal>, limit: u32) -> Result<Vec<NodeRow>> {
        self.read(move |conn| read::list_nodes(conn, tenant, after, limit)).await
    }

    async fn slots(&self, tenant: TenantNo) -> Result<SlotUse> {
        self.read(move |conn| read::slots(conn, tenant)).await
    }

    async fn slot_owners(&self, tenant: TenantNo, from: Slot, to: Slot) -> Result<Vec<SlotOwner>> {
        self.read(move |conn| read::slot_owners(conn, tenant, from, to)).await
    }

    async fn item_groups(&self, uid: SubjectUid, field: Option<FieldNo>) -> Result<Vec<ItemGroupRow>> {
        self.read(move |conn| read::item_groups(conn, uid, field)).await
    }

    async fn item_groups_of(&self, uids: Vec<SubjectUid>) -> Result<Vec<ItemGroupRow>> {
        self.read(move |conn| read::item_groups_of(conn, &uids)).await
    }

    async fn items(&self, group: ItemGroupKey, after: ItemNo, limit: u32) -> Result<Page<ItemRow>> {
        self.read(move |conn| read::items(conn, group, after, limit)).await
    }

    async fn item(&self, group: ItemGroupKey, item: ItemNo) -> Result<Option<ItemRow>> {
        self.read(move |conn| read::item(conn, group, item)).await
    }

    async fn item_groups_between(
        &self,
        tenant: TenantNo,
        class: ClassNo,
        from: Bucket,
        to: Bucket,
        after: Option<(Bucket, SubjectUid, FieldNo)>,
        limit: u32,
    ) -> Result<Page<ItemGroupRow>> {
        self.read(move |conn| read::item_groups_between(conn, tenant, class, (from, to), after, limit)).await
    }

    async fn classes_due(&self, tenant: TenantNo, class: ClassNo, until: Bucket, limit: u32) -> Result<Vec<ClassRow>> {
        self.read(move |conn| read::classes_due(conn, tenant, class, until, limit)).await
    }

    async fn find_terms(
        &self,
        tenant: TenantNo,
        field: FieldNo,
        tags: Vec<(SecretVersion, TermTag)>,
        after: SubjectUid,
        limit: u32,
    ) -> Result<Page<SubjectUid>> {
        self.read(move |conn| read::find_terms(conn, tenant, field, &tags, after, limit)).await
    }

    async fn count_terms(&self, tenant: TenantNo, version: SecretVersion) -> Result<u64> {
        self.read(move |conn| read::count_terms(conn, tenant, version)).await
    }

    async fn expiries(&self, tenant: TenantNo) -> Result<Vec<ExpiryRow>> {
        self.read(move |conn| read::expiries(conn, tenant)).await
    }

    async fn object(&self, tenant: TenantNo, kind: ObjectKind, key: Vec<u8>) -> Result<Option<ObjectRow>> {
        self.read(move |conn| read::object(conn, tenant, kind, &key)).await
    }

    async fn objects(
        &self,
        tenant: TenantNo,
        kind: ObjectKind,
        prefix: Vec<u8>,
        after: Vec<u8>,
        limit: u32,
    ) -> Result<Page<ObjectRow>> {
        self.read(move |conn| read::objects(conn, tenant, kind, &prefix, &after, limit)).await
    }

    async fn request(&self, tenant: TenantNo, request: ObjectId) -> Result<Option<RequestRow>> {
        self.read(move |conn| read::request(conn, tenant, request)).await
    }

    async fn audit_groups(&self, tenant: TenantNo, after: u64, limit: u32) -> Result<Vec<AuditGroupRow>> {
        self.read(move |conn| read::audit_groups(conn, tenant, after, limit)).await
    }

    async fn audit_head(&self, tenant: TenantNo) -> Result<Option<Head>> {
        self.read(move |conn| writer::stored_head(conn, tenant)).await
    }

    async fn feed(&self, tenant: TenantNo, after: u64, limit: u32) -> Result<Page<FeedRow>> {
        self.read(move |conn| read::feed(conn, tenant, after, limit)).await
    }

    async fn subject_count(&self, tenant: TenantNo) -> Result<u64> {
        self.read(move |conn| read::subject_count(conn, tenant)).await
    }

    async fn counts(&self, tenant: TenantNo) -> Result<TenantCounts> {
        self.read(move |conn| read::counts(conn, tenant)).await
    }

    async fn copy_to(&self, path: PathBuf, mut watch: CopyWatch) -> Result<()> {
        self.shared.may_read()?;
        let options = self.options.clone();
        let (answer, answered) = oneshot::channel();
        // A thread of its own: a copy takes as long as the disk needs and must not keep a reader from its work.
        let spawned = std::thread::Builder::new().name("copy".into()).spawn(move || {
            // On Linux this is the priority of the calling thread alone: whoever waits for an answer goes first.
            let _ = rustix::process::nice(19);
            // A caller who hung up does not need the answer.
            let _ = answer.send(copy::copy(&options, &path, &mut watch));
        });
        spawned.map_err(io)?;
        answered.await.unwrap_or(Err(CLOSED))
    }

    async fn checkpoint(&self) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        self.queue(Job::Checkpoint(answer))?;
        answered.await.unwrap_or(Err(StoreError::Closed { reason: PANICKED }))
    }

    fn health(&self) -> Result<()> {
        self.shared.may_write()
    }

    fn set_listener(&self, listener: Arc<dyn CommitListener>) {
        if self.shared.listener.set(listener).is_err() {
            tracing::error!("the store has a listener already");
        }
    }

    async fn close(&self) {
        let threads = self.stop();
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                let _ = thread.join();
            }
        });
        let _ = joined.await;
        let _ = self.shared.writes_closed.set("it was shut down");
        let _ = self.shared.reads_closed.set("it was shut down");
    }
}

fn lookup_and_keep(conn: &Connection, shared: &Shared, tenant: TenantNo, digest: SubjectDigest) -> Result<Lookup> {
    // Before the read begins, or a commit in between would go unnoticed.
    let ticket = shared.cache.begin();
    let found = read::lookup(conn, tenant, digest)?;
    if let Lookup::Found(snapshot) = &found {
        shared.cache.fill(ticket, snapshot);
    }
    Ok(found)
}

/// About what a change set takes in memory.
fn size(change: &ChangeSet) -> usize {
    let blob = |m: &Mutation| match m {
        Mutation::PutTenant(t) => t.body.len(),
        Mutation::PutNode(n) => n.blob.len(),
        Mutation::PutSubject(s) => s.sealed_id.len(),
        Mutation::PutClass(c) => c.record.len(),
        Mutation::AddItem(i) | Mutation::PutItem(i) => i.envelope.len(),
        Mutation::PutObject(o) => o.key.len() + o.body.len(),
        Mutation::PutRequest(r) => r.answer.len(),
        Mutation::PutFeed { body, .. } => body.len(),
        _ => 0,
    };
    change.mutations.iter().map(|m| size_of::<Mutation>() + blob(m)).sum::<usize>()
        + change.preconditions.len() * size_of::<Precondition>()
        + change.audit.iter().map(|(_, entry)| 2 * entry.len() + 64).sum::<usize>()
}
