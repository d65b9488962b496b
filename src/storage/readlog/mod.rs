//! The log of reads: append-only segment files with a thread of their own, so that a read never queues behind a writer.
//!
//! An entry is durable before its future resolves, and the caller lets no plaintext leave before that. Grouping is
//! natural: while one `fdatasync` runs, the next entries gather; under load the thread pauses a little between two, because
//! each costs about 100 us of the kernel's CPU time, more than all else here together. Each batch is one frame, all or nothing; in it the
//! entries of one tenant are one group of that tenant's chain. After the first error nothing is acknowledged any more
//! until a restart: what a file holds after a failed sync is not known.
//!
//! Segments are filled with zeros ahead of the end, because overwriting costs `fdatasync` half of what appending does;
//! the true end is where the last valid frame ends.

mod scan;
mod segment;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::audit::{AuditRecord, Chain, GroupBuilder, Head, genesis};
use crate::clock::Timestamp;
use crate::ids::{TenantNo, VaultId};

pub use scan::{Entries, Groups, VerifyError};
use segment::Segment;
pub use segment::SegmentInfo;

/// What the log needs to know.
#[derive(Debug, Clone)]
pub struct ReadLogOptions {
    /// Whose chains these are.
    pub vault: VaultId,
    /// A segment is closed before it grows beyond this many bytes; at least 64 KiB. Default 32 MiB.
    pub segment_bytes: u64,
    /// Zeros are written this far ahead of the end. Default 1 MiB.
    pub ahead_bytes: u64,
    /// Entries that may wait for the disk. Default 65,536.
    pub queue_entries: usize,
    /// Bytes that may wait for the disk. Default 8 MiB.
    pub queue_bytes: usize,
    /// Longest pause before a batch that follows one of [`GATHER_FROM`] entries or more, so that it is not small; it ends
    /// as soon as nothing more comes. Default 250 us; callers who come alone or in small numbers never wait for it.
    pub gather: Duration,
}

/// From this many entries in a batch on, there are enough callers for a pause to cost less than it saves.
pub const GATHER_FROM: usize = 8;
/// Looks whether more came, in one pause.
const GATHER_STEPS: u32 = 8;
/// How long entries wait that nobody waits for: each sync costs more than a thousand of them.
const LINGER: Duration = Duration::from_millis(20);

impl ReadLogOptions {
    /// The defaults for that vault.
    pub fn new(vault: VaultId) -> Self {
        ReadLogOptions {
            vault,
            segment_bytes: 32 << 20,
            ahead_bytes: 1 << 20,
            queue_entries: 65_536,
            queue_bytes: 8 << 20,
            gather: Duration::from_micros(250),
        }
    }
}

/// Why an entry was not taken or did not become durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Too much waits for the disk; nothing was written, the caller may repeat.
    #[error("the read audit has too much waiting")]
    Full,
    /// The log failed before and stays closed until a restart.
    #[error("the read audit cannot be written")]
    Unwritable,
    /// The log is closing.
    #[error("the read audit is closing")]
    Closed,
}

/// Why the log could not be opened, read or pruned.
#[derive(Debug, thiserror::Error)]
pub enum ReadLogError {
    #[error("read audit: {what}")]
    Io {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("read audit segment {segment} is damaged at byte {at}: {what}")]
    Damaged { segment: u64, at: u64, what: &'static str },
    #[error("read audit segment {segment} is missing")]
    Missing { segment: u64 },
    #[error("read audit segment {segment} belongs to another vault")]
    Foreign { segment: u64 },
    #[error("read audit segment {segment} was written by a newer version")]
    Newer { segment: u64 },
    #[error("the read audit of tenant {tenant} ends at {found}, although {known} was recorded elsewhere")]
    Truncated { tenant: TenantNo, found: u64, known: u64 },
    #[error("the read audit of tenant {tenant} is not the one whose record {known} was recorded elsewhere")]
    Replaced { tenant: TenantNo, known: u64 },
    #[error("segment {segment} may not be pruned: {why}")]
    NotPrunable { segment: u64, why: &'static str },
}

fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> ReadLogError {
    move |source| ReadLogError::Io { what, source }
}

/// What opening found.
#[derive(Debug, Default)]
pub struct Recovered {
    /// The head of every tenant's chain, by tenant.
    pub heads: Vec<(TenantNo, Head)>,
    /// Bytes of a torn last frame that were cleared: a crash before its `fdatasync` ended, so never acknowledged.
    pub torn_bytes: u64,
    /// Segments that are there.
    pub segments: usize,
}

/// Counters since opening.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadLogStats {
    pub entries: u64,
    /// Bytes of frames.
    pub bytes: u64,
    /// One `fdatasync` each.
    pub batches: u64,
}

const WAITING: u8 = 0;
const DURABLE: u8 = 1;
const FAILED: u8 = 2;

/// What the entries of one batch share: how it ended, and whom to wake.
struct Batch {
    state: AtomicU8,
    wakers: Mutex<Vec<Waker>>,
}

impl Batch {
    fn new() -> Arc<Self> {
        Arc::new(Batch { state: AtomicU8::new(WAITING), wakers: Mutex::new(Vec::new()) })
    }

    fn end(&self, state: u8) {
        self.state.store(state, Ordering::Release);
        let wakers = std::mem::take(&mut *self.wakers.lock());
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// Resolves to the entry's number once it is durable. Dropping it does not take the entry back.
#[must_use = "nothing may leave the vault before the entry is durable"]
pub struct Append(Result<Waiting, AppendError>);

struct Waiting {
    batch: Arc<Batch>,
    seq: u64,
    /// Where this future's waker stands in the batch's list.
    slot: Option<usize>,
}

impl Future for Append {
    type Output = Result<u64, AppendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let w = match &mut self.0 {
            Ok(w) => w,
            Err(e) => return Poll::Ready(Err(*e)),
        };
        let ended = |seq, state| match state {
            DURABLE => Poll::Ready(Ok(seq)),
            FAILED => Poll::Ready(Err(AppendError::Unwritable)),
            _ => Poll::Pending,
        };
        let now = ended(w.seq, w.batch.state.load(Ordering::Acquire));
        if now.is_ready() {
            return now;
        }
        let mut wakers = w.batch.wakers.lock();
        // Looked at again under the lock: the thread sets the state first and takes the list afterwards.
        let now = ended(w.seq, w.batch.state.load(Ordering::Acquire));
        if now.is_pending() {
            match w.slot {
                Some(i) => wakers[i].clone_from(cx.waker()),
                None => {
                    w.slot = Some(wakers.len());
                    wakers.push(cx.waker().clone());
                }
            }
        }
        now
    }
}

/// What gathers while the disk works.
struct Queue {
    batch: Arc<Batch>,
    /// Number of the batch that gathers; tells which of the `places` are of this batch.
    batch_no: u64,
    groups: Vec<(TenantNo, GroupBuilder)>,
    places: HashMap<TenantNo, Place>,
    /// Builders to use again, with their memory.
    spare: Vec<GroupBuilder>,
    entries: usize,
    bytes: usize,
    /// The thread sleeps and must be woken.
    idle: bool,
    /// Somebody waits for an entry of the batch that gathers.
    hurry: bool,
    closing: bool,
    failed: bool,
}

impl Queue {
    /// Puts entries into the batch that gathers; answers the number of the last.
    fn take(
        &mut self,
        options: &ReadLogOptions,
        tenant: TenantNo,
        records: &[AuditRecord],
    ) -> Result<u64, AppendError> {
        match () {
            _ if self.failed => return Err(AppendError::Unwritable),
            _ if self.closing => return Err(AppendError::Closed),
            _ if self.entries + records.len() > options.queue_entries => return Err(AppendError::Full),
            _ if self.bytes > options.queue_bytes => return Err(AppendError::Full),
            _ => {}
        }
        let place = self.places.entry(tenant).or_insert(Place { next_seq: 1, batch_no: 0, index: 0 });
        if place.batch_no != self.batch_no && !records.is_empty() {
            (place.batch_no, place.index) = (self.batch_no, self.groups.len());
            self.groups.push((tenant, self.spare.pop().unwrap_or_default()));
        }
        for record in records {
            let group = &mut self.groups[place.index].1;
            let before = group.len();
            group.push(record);
            self.bytes += group.len() - before;
        }
        self.entries += records.len();
        place.next_seq += records.len() as u64;
        Ok(place.next_seq - 1)
    }
}

struct Place {
    next_seq: u64,
    batch_no: u64,
    index: usize,
}

/// What is durable: what readers may look at.
struct Durable {
    heads: HashMap<TenantNo, Head>,
    /// Numbers of the segments that are there, ascending; the last is being written.
    segments: Vec<u64>,
    /// End of the last frame in the last segment.
    end: u64,
}

struct Shared {
    dir: PathBuf,
    options: ReadLogOptions,
    queue: Mutex<Queue>,
    wake: Condvar,
    durable: Mutex<Durable>,
    entries: AtomicU64,
    bytes: AtomicU64,
    batches: AtomicU64,
    /// Rounds of the thread.
    #[cfg(test)]
    turns: AtomicU64,
    #[cfg(test)]
    fault: Mutex<Option<tests::Fault>>,
}

/// The read log of a vault; closes when dropped.
pub struct ReadLog {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl ReadLog {
    /// Opens the log in `dir` (made if absent) and starts its thread. `known` are heads recorded elsewhere (the anchor, the
    /// last signed checkpoint): the log must reach and contain them as far as its last segment goes back.
    ///
    /// # Errors
    /// Anything but a torn last frame: a damaged or missing segment, a log of another vault, a known head it lacks.
    pub fn open(
        dir: &Path,
        options: ReadLogOptions,
        known: &[(TenantNo, Head)],
        now: Timestamp,
    ) -> Result<(ReadLog, Recovered), ReadLogError> {
        let (segment, state) = segment::open_dir(dir, &options, known, now)?;
        let mut heads: Vec<_> = state.heads.iter().map(|(t, h)| (*t, *h)).collect();
        heads.sort_by_key(|(t, _)| *t);
        let recovered = Recovered { heads, torn_bytes: state.torn_bytes, segments: state.segments.len() };
        let places = state.heads.iter().map(|(t, h)| (*t, Place { next_seq: h.seq + 1, batch_no: 0, index: 0 }));
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            queue: Mutex::new(Queue {
                batch: Batch::new(),
                batch_no: 1,
                groups: Vec::new(),
                places: places.collect(),
                spare: Vec::new(),
                entries: 0,
                bytes: 0,
                idle: false,
                hurry: false,
                closing: false,
                failed: false,
            }),
            options,
            wake: Condvar::new(),
            durable: Mutex::new(Durable { heads: state.heads, segments: state.segments, end: segment.end() }),
            entries: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            #[cfg(test)]
            turns: AtomicU64::new(0),
            #[cfg(test)]
            fault: Mutex::new(None),
        });
        let for_thread = shared.clone();
        let thread = std::thread::Builder::new()
            .name("read-audit".into())
            .spawn(move || run(&for_thread, segment))
            .map_err(io("the thread could not be started"))?;
        Ok((ReadLog { shared, thread: Some(thread) }, recovered))
    }

    /// Queues an entry of a tenant's read chain; the future resolves when it is durable. Taking it in costs no system call
    /// unless the thread sleeps.
    pub fn append(&self, tenant: TenantNo, record: &AuditRecord) -> Append {
        self.append_all(tenant, std::slice::from_ref(record))
    }

    /// Queues entries that belong to one call; all of them get into one batch. Resolves to the number of the last.
    pub fn append_all(&self, tenant: TenantNo, records: &[AuditRecord]) -> Append {
        let mut q = self.shared.queue.lock();
        let seq = match q.take(&self.shared.options, tenant, records) {
            Ok(seq) => seq,
            Err(error) => return Append(Err(error)),
        };
        let batch = match records {
            // Nothing to write: the batch that gathers may stay empty, and then it never ends.
            [] => {
                let done = Batch::new();
                done.end(DURABLE);
                done
            }
            _ => {
                q.hurry = true;
                q.batch.clone()
            }
        };
        let idle = std::mem::take(&mut q.idle);
        drop(q);
        if idle {
            self.shared.wake.notify_one();
        }
        Append(Ok(Waiting { batch, seq, slot: None }))
    }

    /// Queues an entry that nobody waits for: it is durable some milliseconds later, with whatever comes meanwhile, and a
    /// crash in between takes it along. For calls that show no value.
    ///
    /// # Errors
    /// Nothing is taken in any more, or not now.
    pub fn note(&self, tenant: TenantNo, record: &AuditRecord) -> Result<(), AppendError> {
        let mut q = self.shared.queue.lock();
        let first = q.groups.is_empty();
        q.take(&self.shared.options, tenant, std::slice::from_ref(record))?;
        q.hurry |= q.entries >= self.shared.options.queue_entries / 2;
        // Later ones find the thread waiting for its time to come.
        let wake = (first || q.hurry) && std::mem::take(&mut q.idle);
        drop(q);
        if wake {
            self.shared.wake.notify_one();
        }
        Ok(())
    }

    /// The durable head of every tenant's chain, by tenant: for checkpoints and the anchor.
    pub fn heads(&self) -> Vec<(TenantNo, Head)> {
        let mut heads: Vec<_> = self.shared.durable.lock().heads.iter().map(|(t, h)| (*t, *h)).collect();
        heads.sort_by_key(|(t, _)| *t);
        heads
    }

    /// The durable head of one tenant's chain.
    pub fn head(&self, tenant: TenantNo) -> Head {
        let found = self.shared.durable.lock().heads.get(&tenant).copied();
        found.unwrap_or_else(|| genesis(self.shared.options.vault, tenant, Chain::Read))
    }

    /// Whether entries can still be written.
    pub fn is_writable(&self) -> bool {
        let q = self.shared.queue.lock();
        !q.failed && !q.closing
    }

    /// Counters since opening.
    pub fn stats(&self) -> ReadLogStats {
        ReadLogStats {
            entries: self.shared.entries.load(Ordering::Relaxed),
            bytes: self.shared.bytes.load(Ordering::Relaxed),
            batches: self.shared.batches.load(Ordering::Relaxed),
        }
    }

    /// Takes no more, writes what waits, ends the thread.
    pub fn close(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.shared.queue.lock().closing = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was already answered as a failure to everybody who waited.
            let _ = thread.join();
        }
    }
}

impl Drop for ReadLog {
    fn drop(&mut self) {
        self.end();
    }
}

/// Answers `Unwritable` to everybody if the thread ends in any way but an orderly one.
struct FailOnExit<'a> {
    shared: &'a Shared,
    in_hand: Option<Arc<Batch>>,
    orderly: bool,
}

impl Drop for FailOnExit<'_> {
    fn drop(&mut self) {
        if self.orderly {
            return;
        }
        let gathering = {
            let mut q = self.shared.queue.lock();
            q.failed = true;
            q.batch.clone()
        };
        if let Some(batch) = self.in_hand.take() {
            batch.end(FAILED);
        }
        gathering.end(FAILED);
    }
}

fn run(shared: &Shared, mut segment: Segment) {
    let mut on_exit = FailOnExit { shared, in_hand: None, orderly: false };
    let mut groups: Vec<(TenantNo, GroupBuilder)> = Vec::new();
    let mut frame = Vec::new();
    let mut last = 0;
    loop {
        #[cfg(test)]
        shared.turns.fetch_add(1, Ordering::Relaxed);
        let (batch, entries) = {
            let mut q = shared.queue.lock();
            // Builders go back with their memory, unless a burst made them large.
            for (_, builder) in groups.drain(..) {
                if q.spare.len() < 64 && builder.is_modest() {
                    q.spare.push(builder);
                }
            }
            while !q.hurry && !q.closing {
                q.idle = true;
                let waited_long = match q.groups.is_empty() {
                    true => {
                        shared.wake.wait(&mut q);
                        false
                    }
                    false => shared.wake.wait_for(&mut q, LINGER).timed_out(),
                };
                q.idle = false;
                if waited_long {
                    break;
                }
            }
            if q.groups.is_empty() {
                on_exit.orderly = true;
                return;
            }
            if last >= GATHER_FROM {
                let half = shared.options.queue_entries / 2;
                for _ in 0..GATHER_STEPS {
                    let before = q.entries;
                    if q.closing || before >= half || shared.options.gather.is_zero() {
                        break;
                    }
                    shared.wake.wait_for(&mut q, shared.options.gather / GATHER_STEPS);
                    // Everybody waits already: nothing more will come before we answer.
                    if q.entries == before {
                        break;
                    }
                }
            }
            std::mem::swap(&mut groups, &mut q.groups);
            // Those who came while it gathered are in this batch, too: nobody waits for the next one yet.
            q.hurry = false;
            q.batch_no += 1;
            q.bytes = 0;
            (std::mem::replace(&mut q.batch, Batch::new()), std::mem::take(&mut q.entries))
        };
        last = entries;
        on_exit.in_hand = Some(batch.clone());
        match write_batch(shared, &mut segment, &mut groups, &mut frame) {
            Ok(heads) => {
                {
                    let mut durable = shared.durable.lock();
                    durable.heads.extend(heads);
                    durable.end = segment.end();
                }
                shared.entries.fetch_add(entries as u64, Ordering::Relaxed);
                shared.bytes.fetch_add(frame.len() as u64, Ordering::Relaxed);
                shared.batches.fetch_add(1, Ordering::Relaxed);
                on_exit.in_hand = None;
                batch.end(DURABLE);
            }
            Err(error) => {
                tracing::error!(%error, source = ?std::error::Error::source(&error), "the read audit cannot be written: reads are refused until a restart");
                return;
            }
        }
        if frame.capacity() > 1 << 20 {
            frame = Vec::new();
        }
    }
}

/// Writes one batch as one frame and makes it durable; answers the new heads.
fn write_batch(
    shared: &Shared,
    segment: &mut Segment,
    groups: &mut [(TenantNo, GroupBuilder)],
    frame: &mut Vec<u8>,
) -> Result<Vec<(TenantNo, Head)>, ReadLogError> {
    let mut heads = Vec::with_capacity(groups.len());
    segment::begin_frame(frame);
    let mut time = None;
    for (tenant, builder) in groups.iter_mut() {
        let prev = shared.durable.lock().heads.get(tenant).copied();
        let prev = prev.unwrap_or_else(|| genesis(shared.options.vault, *tenant, Chain::Read));
        time = time.max(Some(builder.time()));
        if let Some((bytes, head)) = builder.link(*tenant, Chain::Read, &prev) {
            segment::add_group(frame, bytes);
            heads.push((*tenant, head));
        }
    }
    if segment.end() + frame.len() as u64 > shared.options.segment_bytes && !segment.is_empty() {
        let now = time.unwrap_or(segment.created());
        let before = shared.durable.lock().heads.clone();
        *segment = Segment::create(&shared.dir, &shared.options, segment.number() + 1, now, &before)?;
        let mut durable = shared.durable.lock();
        durable.segments.push(segment.number());
        durable.end = segment.end();
    }
    #[cfg(test)]
    if let Some(fault) = &*shared.fault.lock() {
        fault().map_err(io("an error made by a test"))?;
    }
    segment.append(frame, shared.options.segment_bytes, shared.options.ahead_bytes)?;
    Ok(heads)
}
