//! The file keeper: one to three replicas, each a directory with a file of blocks and the ledger, written in place by
//! one thread.
//!
//! Roots change only while every replica takes part. Own blocks and ledger go on with those that are left; to tell the
//! one that missed something from the others, each replica's header carries an *epoch* that the rest raise, durably,
//! before they go on without one.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use async_trait::async_trait;
use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::medium::{Directory, Medium};
use super::replicas::{Files, Target};
use super::*;
use crate::clock::Timestamp;
use crate::keyring::ledger::MAX_ENTRIES;

/// File of blocks in a replica's directory.
pub const ROOTS: &str = "roots.keeper";
/// Ledger in a replica's directory.
pub const LEDGER: &str = "ledger.keeper";
/// Most calls that share their syncs.
const GROUP: usize = 256;

type Reply<T> = oneshot::Sender<Result<T, KeeperError>>;
type Look = Box<dyn FnOnce(&mut Files) -> Box<dyn FnOnce()> + Send>;
type Apply = Box<dyn FnOnce(&mut Files) -> Result<(), KeeperError> + Send>;

enum Job {
    /// Changes blocks; `target` says what must be whole for an `Ok`.
    Change {
        target: Target,
        apply: Apply,
        reply: Reply<()>,
    },
    Append {
        entries: Vec<LedgerEntry>,
        reply: Reply<LedgerHead>,
    },
    /// Sees only what is durable; gives back the sending of its answer.
    Look(Look),
    Unlock(Arc<Signing>),
}

/// What others may see without asking the thread.
#[derive(Default)]
struct Shown {
    replicas: Vec<ReplicaStatus>,
    retired: Vec<([u8; 16], Timestamp)>,
}

/// Tenant roots in files. Dropping it finishes what is queued and unlocks the files.
pub struct FileKeeper {
    vault: VaultId,
    guarded: bool,
    jobs: Option<Sender<Job>>,
    shown: Arc<Mutex<Shown>>,
    thread: Option<JoinHandle<()>>,
}

fn directories(paths: &[PathBuf]) -> Vec<Arc<dyn Medium>> {
    paths.iter().map(|path| Arc::new(Directory::new(path)) as Arc<dyn Medium>).collect()
}

impl FileKeeper {
    /// Makes a new keeper in 1 to 3 directories. Blocking.
    ///
    /// # Errors
    /// `Exists` if there is one in any of them: nothing is overwritten.
    pub fn create(paths: &[PathBuf], vault: VaultId) -> Result<(), KeeperError> {
        Self::create_on(&directories(paths), vault)
    }

    /// Opens and locks an existing keeper: all its replicas, in any order. Replicas that are away or old are brought up
    /// to date or reported. Blocking.
    ///
    /// # Errors
    /// `NoReplica`, `InUse`, `Foreign`, `Ledger`.
    pub fn open(paths: &[PathBuf]) -> Result<Self, KeeperError> {
        Self::open_on(&directories(paths))
    }

    /// As `open`, and first makes replicas in those directories that have none, as copies of the others. Blocking.
    pub fn join(paths: &[PathBuf]) -> Result<Self, KeeperError> {
        Self::start(Files::open(&directories(paths), true)?)
    }

    /// `create` on any media.
    pub fn create_on(media: &[Arc<dyn Medium>], vault: VaultId) -> Result<(), KeeperError> {
        Files::create(media, vault)
    }

    /// `open` on any media.
    pub fn open_on(media: &[Arc<dyn Medium>]) -> Result<Self, KeeperError> {
        Self::start(Files::open(media, false)?)
    }

    /// `join` on any media.
    pub fn join_on(media: &[Arc<dyn Medium>]) -> Result<Self, KeeperError> {
        Self::start(Files::open(media, true)?)
    }

    fn start(files: Files) -> Result<Self, KeeperError> {
        let (vault, guarded) = (files.vault(), files.guarded());
        let shown = Arc::new(Mutex::new(Shown::default()));
        show(&files, &shown);
        let (jobs, queue) = crossbeam_channel::unbounded();
        let thread = std::thread::Builder::new()
            .name("keeper".into())
            .spawn({
                let shown = shown.clone();
                move || run(files, queue, &shown)
            })
            .map_err(|e| KeeperError::Io { what: e.to_string() })?;
        Ok(FileKeeper { vault, guarded, jobs: Some(jobs), shown, thread: Some(thread) })
    }

    fn send(&self, job: Job) -> Result<(), KeeperError> {
        self.jobs.as_ref().ok_or(KeeperError::Closed)?.send(job).map_err(|_| KeeperError::Closed)
    }

    async fn change(
        &self,
        target: Target,
        apply: impl FnOnce(&mut Files) -> Result<(), KeeperError> + Send + 'static,
    ) -> Result<(), KeeperError> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::Change { target, apply: Box::new(apply), reply })?;
        answer.await.map_err(|_| KeeperError::Closed)?
    }

    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&mut Files) -> Result<T, KeeperError> + Send + 'static,
    ) -> Result<T, KeeperError> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::Look(Box::new(move |files| {
            let result = look(files);
            // A caller who hung up does not need the answer.
            Box::new(move || drop(reply.send(result)))
        })))?;
        answer.await.map_err(|_| KeeperError::Closed)?
    }
}

impl Drop for FileKeeper {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has closed the channel, which every caller saw as `Closed`.
            let _ = thread.join();
        }
    }
}

fn show(files: &Files, shown: &Mutex<Shown>) {
    *shown.lock() = Shown { replicas: files.statuses(), retired: files.retired().to_vec() };
}

/// What was applied in the present group and waits for its syncs.
#[derive(Default)]
struct Waiting {
    changes: Vec<(Target, Result<(), KeeperError>, Reply<()>)>,
    appends: Vec<(Vec<LedgerEntry>, Reply<LedgerHead>)>,
    tenants: BTreeSet<TenantNo>,
    entries: usize,
}

fn run(mut files: Files, queue: Receiver<Job>, shown: &Mutex<Shown>) {
    while let Ok(first) = queue.recv() {
        let mut waiting = Waiting::default();
        for job in std::iter::once(first).chain(queue.try_iter().take(GROUP - 1)) {
            match job {
                Job::Change { target, apply, reply } => {
                    // Within one sync the order of writes is the disk's: two changes of a tenant need one between.
                    if let Target::Roots(tenant) = target
                        && !waiting.tenants.insert(tenant)
                    {
                        settle(&mut files, &mut waiting, shown);
                        waiting.tenants.insert(tenant);
                    }
                    let result = apply(&mut files);
                    waiting.changes.push((target, result, reply));
                }
                Job::Append { entries, reply } => {
                    if waiting.entries + entries.len() > MAX_ENTRIES {
                        settle(&mut files, &mut waiting, shown);
                    }
                    waiting.entries += entries.len();
                    waiting.appends.push((entries, reply));
                }
                Job::Look(look) => {
                    settle(&mut files, &mut waiting, shown);
                    let answer = look(&mut files);
                    show(&files, shown);
                    answer();
                }
                Job::Unlock(signing) => files.unlock(signing),
            }
        }
        settle(&mut files, &mut waiting, shown);
    }
}

/// Makes durable what waits, and only then answers.
fn settle(files: &mut Files, waiting: &mut Waiting, shown: &Mutex<Shown>) {
    let Waiting { changes, appends, .. } = std::mem::take(waiting);
    if changes.is_empty() && appends.is_empty() {
        return;
    }
    let (lists, replies): (Vec<_>, Vec<_>) = appends.into_iter().unzip();
    let appended = if replies.is_empty() { Ok(()) } else { files.write_batch(&lists.concat()) };
    files.sync();
    let head = files.finish_batch(appended);
    show(files, shown);
    for (target, result, reply) in changes {
        // A caller who hung up does not need the answer.
        let _ = reply.send(result.and_then(|()| files.whole(target)));
    }
    for reply in replies {
        let _ = reply.send(head.clone());
    }
}

#[async_trait]
impl Keeper for FileKeeper {
    fn vault(&self) -> VaultId {
        self.vault
    }
    fn kind(&self) -> &'static str {
        if self.guarded { "pkcs11" } else { "file" }
    }
    fn assurance(&self) -> &'static str {
        if self.guarded { "physical" } else { "logical" }
    }
    fn unlock(&self, signing: Arc<Signing>) {
        // A closed keeper answers `Closed` to the append that would need the key.
        let _ = self.send(Job::Unlock(signing));
    }

    async fn read(&self, tenant: TenantNo) -> Result<TenantSlots, KeeperError> {
        self.look(move |files| files.read(tenant)).await
    }
    async fn tenants(&self) -> Result<Vec<TenantNo>, KeeperError> {
        self.look(Files::tenants).await
    }
    async fn write_next(&self, block: RootBlock) -> Result<(), KeeperError> {
        self.change(Target::Roots(block.tenant), move |files| files.write_next(&block)).await
    }
    async fn rewrap(&self, block: RootBlock) -> Result<(), KeeperError> {
        self.change(Target::Roots(block.tenant), move |files| files.rewrap(&block)).await
    }
    async fn refresh(&self, tenant: TenantNo, generation: Generation, kek: [u8; 16]) -> Result<(), KeeperError> {
        self.change(Target::Roots(tenant), move |files| files.refresh(tenant, generation, kek)).await
    }
    async fn destroy(&self, tenant: TenantNo, keep: Generation) -> Result<(), KeeperError> {
        self.change(Target::Roots(tenant), move |files| files.destroy(tenant, keep, None)).await
    }
    async fn destroy_except(&self, tenant: TenantNo, keep: Generation, kek: [u8; 16]) -> Result<(), KeeperError> {
        self.change(Target::Roots(tenant), move |files| files.destroy(tenant, keep, Some(kek))).await
    }
    async fn tombstone(&self, tenant: TenantNo) -> Result<(), KeeperError> {
        self.change(Target::Roots(tenant), move |files| files.tombstone(tenant)).await
    }

    async fn put_own(&self, which: OwnBlock, bytes: &[u8], sequence: u64) -> Result<(), KeeperError> {
        let bytes = bytes.to_vec();
        self.change(Target::Own, move |files| files.put_own(which, sequence, &bytes)).await
    }
    async fn own(&self, which: OwnBlock) -> Result<Option<(u64, Vec<u8>)>, KeeperError> {
        self.look(move |files| files.own(which)).await
    }

    async fn append_ledger(&self, entries: Vec<LedgerEntry>) -> Result<LedgerHead, KeeperError> {
        if entries.len() > MAX_ENTRIES {
            return Err(KeeperError::Refused { rule: "at most 65,536 ledger entries at once" });
        }
        if entries.is_empty() {
            return self.ledger_head().await;
        }
        let (reply, answer) = oneshot::channel();
        self.send(Job::Append { entries, reply })?;
        answer.await.map_err(|_| KeeperError::Closed)?
    }
    async fn ledger(&self) -> Result<LedgerReader, KeeperError> {
        self.look(|files| files.ledger()).await
    }
    async fn ledger_head(&self) -> Result<LedgerHead, KeeperError> {
        self.look(|files| Ok(files.head())).await
    }

    fn replicas(&self) -> Vec<ReplicaStatus> {
        self.shown.lock().replicas.clone()
    }
    async fn rejoin(&self) -> Result<(), KeeperError> {
        self.look(Files::rejoin).await
    }
    async fn retire(&self, replica: usize, at: Timestamp) -> Result<(), KeeperError> {
        self.look(move |files| files.retire(replica, at)).await
    }
    fn retired(&self) -> Vec<([u8; 16], Timestamp)> {
        self.shown.lock().retired.clone()
    }
}
