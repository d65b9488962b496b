//! Where Argon2id runs: named threads of low priority with memory of their own, a short queue, and a limit on waiting, so
//! that a storm of wrong passwords costs the others neither the async runtime nor memory nor time.
//!
//! Access keys and passwords of users have a pool each. What an import hashes waits in a lane of its own, which is looked
//! at only when nobody else waits.

use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, bounded, select};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use crate::clock::Clock;
use crate::crypto::password::{Argon2Cost, Argon2Memory, PasswordError};
use crate::crypto::random;

/// What the pool needs to know.
#[derive(Debug, Clone)]
pub struct Argon2Options {
    /// Threads, and so hashes at a time. Default: cores less one, at least one.
    pub threads: usize,
    /// Calls that may wait. Default 8 a thread: what 250 ms can serve.
    pub queue: usize,
    /// Longest wait for a thread. Default 250 ms.
    pub wait: Duration,
    /// Cost of new hashes, and of the check against nothing.
    pub cost: Argon2Cost,
    /// Most memory that a stored hash may ask for, KiB; bounds the pool to `threads` times this. What a hash takes beyond
    /// `cost` is given back after it.
    pub limit_kib: u32,
    /// Whether the threads take the memory of `cost` when they start rather than at their first job.
    pub preallocate: bool,
}

impl Default for Argon2Options {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let threads = cores.saturating_sub(1).max(1);
        let cost = Argon2Cost::DEFAULT;
        Argon2Options {
            threads,
            queue: threads * 8,
            wait: Duration::from_millis(250),
            cost,
            limit_kib: cost.memory_kib.max(65_536),
            preallocate: false,
        }
    }
}

impl Argon2Options {
    /// For the users' passwords: the memory is there from the start.
    pub fn for_passwords() -> Self {
        Argon2Options { preallocate: true, ..Argon2Options::default() }
    }
}

/// Why the pool gave no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    /// Too many wait; try again after that.
    #[error("too many password checks at once")]
    Busy { retry_ms: u32 },
    #[error(transparent)]
    Password(#[from] PasswordError),
    /// The pool is closing or its threads are gone.
    #[error("password checks are not served")]
    Closed,
}

type Work = Box<dyn FnOnce(&mut Argon2Memory) + Send>;

struct Job {
    work: Work,
    state: Arc<AtomicU8>,
}

const WAITING: u8 = 0;
const STARTED: u8 = 1;
const GIVEN_UP: u8 = 2;

struct Stats {
    /// Jobs in the queue and in work.
    ahead: AtomicUsize,
    /// Moving average of one job, microseconds.
    took_us: AtomicU64,
}

/// The pool; its threads end when it is dropped. Clone the `Arc` around it.
pub struct Argon2Pool {
    queue: Option<Sender<Job>>,
    imports: Option<Sender<Job>>,
    /// As many imported hashes at a time as there are threads, so that their lane is never full.
    import_places: tokio::sync::Semaphore,
    dummy: Arc<OnceLock<String>>,
    threads: Vec<std::thread::JoinHandle<()>>,
    stats: Arc<Stats>,
    options: Argon2Options,
}

impl Argon2Pool {
    /// Starts the threads; each keeps the memory that it took.
    pub fn start(name: &str, options: Argon2Options, clock: Arc<dyn Clock>) -> std::io::Result<Self> {
        let threads = options.threads.max(1);
        let (sender, receiver) = bounded::<Job>(options.queue.max(1));
        let (import_sender, import_receiver) = bounded::<Job>(threads);
        let stats = Arc::new(Stats { ahead: AtomicUsize::new(0), took_us: AtomicU64::new(30_000) });
        let running = (0..threads)
            .map(|n| {
                let (receiver, imports) = (receiver.clone(), import_receiver.clone());
                let (stats, clock, options) = (stats.clone(), clock.clone(), options.clone());
                let run = move || run(&receiver, &imports, &stats, &*clock, &options);
                std::thread::Builder::new().name(format!("{name}-{n}")).spawn(run)
            })
            .collect::<Result<_, _>>()?;
        Ok(Argon2Pool {
            queue: Some(sender),
            imports: Some(import_sender),
            import_places: tokio::sync::Semaphore::new(threads),
            dummy: Arc::default(),
            threads: running,
            stats,
            options,
        })
    }

    /// Cost of new hashes.
    pub fn cost(&self) -> Argon2Cost {
        self.options.cost
    }

    /// Most memory that a stored hash may ask for, KiB.
    pub fn limit_kib(&self) -> u32 {
        self.options.limit_kib
    }

    /// Whether `password` is the one of the stored PHC string. Without one (an unknown name) the same work is done over a
    /// dummy and the answer is no.
    pub async fn verify(&self, stored: Option<&str>, password: Zeroizing<Vec<u8>>) -> Result<bool, AdmissionError> {
        let Some(stored) = stored.map(Box::<str>::from) else { return self.verify_nothing(password).await };
        Ok(self.run(move |memory| memory.verify(&stored, &password)).await??)
    }

    /// Does what checking a password costs, against a hash of nobody's.
    pub async fn verify_nothing(&self, password: Zeroizing<Vec<u8>>) -> Result<bool, AdmissionError> {
        let (dummy, cost) = (self.dummy.clone(), self.options.cost);
        let work = move |memory: &mut Argon2Memory| {
            let stored = match dummy.get() {
                Some(stored) => Ok(stored.clone()),
                None => memory.hash(cost, &random::bytes::<32>()),
            };
            stored.and_then(|s| memory.verify(dummy.get_or_init(|| s), &password).map(|_| false))
        };
        Ok(self.run(work).await??)
    }

    /// A new PHC string for `password`.
    pub async fn hash(&self, password: Zeroizing<Vec<u8>>) -> Result<String, AdmissionError> {
        let cost = self.options.cost;
        Ok(self.run(move |memory| memory.hash(cost, &password)).await??)
    }

    /// The same for an import: when nobody else waits, however long that takes.
    pub async fn hash_in_import(&self, password: Zeroizing<Vec<u8>>) -> Result<String, AdmissionError> {
        let cost = self.options.cost;
        let place = self.import_places.acquire().await.map_err(|_| AdmissionError::Closed)?;
        let (sender, receiver) = oneshot::channel();
        let work: Work = Box::new(move |memory| {
            let _ = sender.send(memory.hash(cost, &password));
        });
        let state = Arc::new(AtomicU8::new(WAITING));
        let _give_up = GiveUp(&state);
        let imports = self.imports.as_ref().ok_or(AdmissionError::Closed)?;
        imports.try_send(Job { work, state: state.clone() }).map_err(|_| AdmissionError::Closed)?;
        let hashed = receiver.await.map_err(|_| AdmissionError::Closed)?;
        drop(place);
        Ok(hashed?)
    }

    /// Runs `work` with the memory of a thread of the pool.
    ///
    /// # Errors
    /// `Busy` when there is no place to wait or no turn within the longest wait.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Argon2Memory) -> T + Send + 'static,
    ) -> Result<T, AdmissionError> {
        let (sender, mut answer) = oneshot::channel();
        let work: Work = Box::new(move |memory| {
            let _ = sender.send(work(memory));
        });
        let state = Arc::new(AtomicU8::new(WAITING));
        let queue = self.queue.as_ref().ok_or(AdmissionError::Closed)?;
        self.stats.ahead.fetch_add(1, Ordering::Relaxed);
        if let Err(e) = queue.try_send(Job { work, state: state.clone() }) {
            self.stats.ahead.fetch_sub(1, Ordering::Relaxed);
            return Err(match e {
                TrySendError::Full(_) => self.busy(),
                TrySendError::Disconnected(_) => AdmissionError::Closed,
            });
        }
        // A caller that goes away before its turn leaves no work behind.
        let _give_up = GiveUp(&state);
        let answered = match tokio::time::timeout(self.options.wait, &mut answer).await {
            Ok(answered) => answered,
            Err(_) if state.compare_exchange(WAITING, GIVEN_UP, Ordering::AcqRel, Ordering::Acquire).is_ok() => {
                return Err(self.busy());
            }
            Err(_) => answer.await,
        };
        answered.map_err(|_| AdmissionError::Closed)
    }

    fn busy(&self) -> AdmissionError {
        let ahead = self.stats.ahead.load(Ordering::Relaxed) as u64 + 1;
        let us = ahead * self.stats.took_us.load(Ordering::Relaxed) / self.options.threads.max(1) as u64;
        AdmissionError::Busy { retry_ms: (us / 1000).clamp(100, 10_000) as u32 }
    }
}

struct GiveUp<'a>(&'a AtomicU8);

impl Drop for GiveUp<'_> {
    fn drop(&mut self) {
        let _ = self.0.compare_exchange(WAITING, GIVEN_UP, Ordering::AcqRel, Ordering::Acquire);
    }
}

impl Drop for Argon2Pool {
    fn drop(&mut self) {
        self.queue = None;
        self.imports = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The next job: an import's only where no call waits. `None`: the pool is closing.
fn next(calls: &Receiver<Job>, imports: &Receiver<Job>) -> Option<(Job, bool)> {
    match calls.try_recv() {
        Ok(job) => return Some((job, true)),
        Err(TryRecvError::Disconnected) => return None,
        Err(TryRecvError::Empty) => {}
    }
    select! {
        recv(calls) -> job => job.ok().map(|job| (job, true)),
        recv(imports) -> job => job.ok().map(|job| (job, false)),
    }
}

fn run(calls: &Receiver<Job>, imports: &Receiver<Job>, stats: &Stats, clock: &dyn Clock, options: &Argon2Options) {
    // On Linux this is the priority of the calling thread alone. Without permission the threads stay as they are.
    let _ = rustix::process::nice(10);
    let mut memory = Argon2Memory::new(options.limit_kib.max(options.cost.memory_kib));
    if options.preallocate {
        memory.reserve(options.cost);
    }
    while let Some((job, counted)) = next(calls, imports) {
        if job.state.compare_exchange(WAITING, STARTED, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            let from = clock.monotonic();
            (job.work)(&mut memory);
            memory.shrink(options.cost);
            let took = (clock.monotonic().saturating_sub(from)).as_micros() as u64;
            let average = stats.took_us.load(Ordering::Relaxed);
            stats.took_us.store((average * 7 + took) / 8, Ordering::Relaxed);
        }
        if counted {
            stats.ahead.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    fn pool(threads: usize, queue: usize, wait_ms: u64) -> Arc<Argon2Pool> {
        let cost = Argon2Cost { memory_kib: 64, passes: 1, lanes: 1 };
        let wait = Duration::from_millis(wait_ms);
        let options = Argon2Options { threads, queue, wait, cost, limit_kib: 65_536, preallocate: false };
        Arc::new(Argon2Pool::start("argon2", options, Arc::new(SystemClock::new())).unwrap())
    }

    type Held = tokio::task::JoinHandle<Result<(), AdmissionError>>;

    /// Keeps the only thread of a pool busy until the sender is dropped. A thread of low priority may begin so late that a
    /// first try gives up.
    async fn hold(pool: &Arc<Argon2Pool>) -> (Sender<()>, Held) {
        loop {
            let (release, held) = bounded::<()>(1);
            let (begun, has_begun) = oneshot::channel();
            let pool = pool.clone();
            let work = move |_: &mut Argon2Memory| {
                let _ = begun.send(());
                let _ = held.recv();
            };
            let job = tokio::spawn(async move { pool.run(work).await });
            if has_begun.await.is_ok() {
                return (release, job);
            }
        }
    }

    fn password(text: &str) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(text.as_bytes().to_vec())
    }

    #[tokio::test]
    async fn hashes_verify_and_nobody_is_refused_like_somebody() {
        let pool = pool(2, 8, 60_000);
        let stored = pool.hash(password("p")).await.unwrap();
        assert_eq!(pool.verify(Some(&stored), password("p")).await, Ok(true));
        assert_eq!(pool.verify(Some(&stored), password("q")).await, Ok(false));
        assert_eq!(pool.verify(None, password("p")).await, Ok(false));
        assert_eq!(
            pool.verify(Some("broken"), password("p")).await,
            Err(AdmissionError::Password(PasswordError::Form))
        );
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_an_import_hashes_waits_for_everybody_else() {
        let pool = pool(1, 8, 60_000);
        let (release, first) = hold(&pool).await;
        let import = tokio::spawn({
            let pool = pool.clone();
            async move { pool.hash_in_import(password("import")).await }
        });
        while pool.imports.as_ref().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        let call = tokio::spawn({
            let (pool, imports) = (pool.clone(), pool.imports.clone().unwrap());
            async move { pool.run(move |_| imports.len()).await }
        });
        while pool.queue.as_ref().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        drop(release);
        first.await.unwrap().unwrap();
        assert_eq!(call.await.unwrap(), Ok(1), "the import, which came first, still waits");
        import.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn memory_is_there_from_the_start_and_what_a_foreign_hash_took_is_given_back() {
        let cost = Argon2Cost { memory_kib: 64, passes: 1, lanes: 1 };
        let wait = Duration::from_secs(60);
        let options = Argon2Options { threads: 1, wait, cost, limit_kib: 1_024, ..Argon2Options::for_passwords() };
        let pool = Argon2Pool::start("argon2", options, Arc::new(SystemClock::new())).unwrap();
        assert_eq!(pool.run(|memory| memory.held_bytes()).await, Ok(64 << 10));
        let large = Argon2Cost { memory_kib: 512, passes: 1, lanes: 1 };
        pool.run(move |memory| memory.hash(large, b"x")).await.unwrap().unwrap();
        assert_eq!(pool.run(|memory| memory.held_bytes()).await, Ok(64 << 10));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn t35_what_waits_too_long_or_finds_no_place_is_told_when_to_come_back() {
        let pool = pool(1, 2, 500);
        let busy = |r: Result<String, AdmissionError>| matches!(r, Err(AdmissionError::Busy { retry_ms: 100.. }));
        let (release, slow) = hold(&pool).await;
        let waiting: Vec<_> = (0..2)
            .map(|_| {
                let pool = pool.clone();
                tokio::spawn(async move { pool.hash(password("waits")).await })
            })
            .collect();
        while pool.queue.as_ref().unwrap().len() < 2 {
            tokio::task::yield_now().await;
        }
        assert!(busy(pool.hash(password("no place")).await));
        for w in waiting {
            assert!(busy(w.await.unwrap()), "gave up after its wait");
        }
        drop(release);
        assert!(slow.await.unwrap().is_ok(), "what was started is answered, however long it takes");
        // Those that gave up are skipped, not hashed.
        while pool.stats.ahead.load(Ordering::Relaxed) > 0 {
            tokio::task::yield_now().await;
        }
        assert!(pool.queue.as_ref().unwrap().is_empty());
    }
}
