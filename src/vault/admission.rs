//! Where Argon2id runs: named threads of low priority with memory of their own, a short queue, and a limit on waiting, so
//! that a storm of wrong passwords costs the others neither the async runtime nor memory nor time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
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
    /// Most memory that a stored hash may ask for, KiB; bounds the pool to `threads` times this.
    pub limit_kib: u32,
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
        }
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

enum Work {
    /// Against a stored PHC string; `None`: against the dummy, to take the same time.
    Verify(Option<Box<str>>, oneshot::Sender<Result<bool, PasswordError>>),
    Hash(oneshot::Sender<Result<String, PasswordError>>),
}

struct Job {
    work: Work,
    password: Zeroizing<Vec<u8>>,
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
    threads: Vec<std::thread::JoinHandle<()>>,
    stats: Arc<Stats>,
    options: Argon2Options,
}

impl Argon2Pool {
    /// Starts the threads; each allocates its memory at its first job and keeps it.
    pub fn start(options: Argon2Options, clock: Arc<dyn Clock>) -> std::io::Result<Self> {
        let (sender, receiver) = bounded::<Job>(options.queue.max(1));
        let stats = Arc::new(Stats { ahead: AtomicUsize::new(0), took_us: AtomicU64::new(30_000) });
        let dummy: Arc<std::sync::OnceLock<String>> = Arc::default();
        let threads = (0..options.threads.max(1))
            .map(|n| {
                let (receiver, stats, clock) = (receiver.clone(), stats.clone(), clock.clone());
                let (options, dummy) = (options.clone(), dummy.clone());
                let run = move || run(&receiver, &stats, &*clock, &options, &dummy);
                std::thread::Builder::new().name(format!("argon2-{n}")).spawn(run)
            })
            .collect::<Result<_, _>>()?;
        Ok(Argon2Pool { queue: Some(sender), threads, stats, options })
    }

    /// Whether `password` is the one of the stored PHC string. Without one (an unknown name) the same work is done over a
    /// dummy and the answer is no.
    pub async fn verify(&self, stored: Option<&str>, password: Zeroizing<Vec<u8>>) -> Result<bool, AdmissionError> {
        let (sender, receiver) = oneshot::channel();
        self.submit(Work::Verify(stored.map(Box::from), sender), password, receiver).await
    }

    /// A new PHC string for `password`.
    pub async fn hash(&self, password: Zeroizing<Vec<u8>>) -> Result<String, AdmissionError> {
        let (sender, receiver) = oneshot::channel();
        self.submit(Work::Hash(sender), password, receiver).await
    }

    async fn submit<T>(
        &self,
        work: Work,
        password: Zeroizing<Vec<u8>>,
        mut answer: oneshot::Receiver<Result<T, PasswordError>>,
    ) -> Result<T, AdmissionError> {
        let state = Arc::new(AtomicU8::new(WAITING));
        let queue = self.queue.as_ref().ok_or(AdmissionError::Closed)?;
        self.stats.ahead.fetch_add(1, Ordering::Relaxed);
        if let Err(e) = queue.try_send(Job { work, password, state: state.clone() }) {
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
        Ok(answered.map_err(|_| AdmissionError::Closed)??)
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
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn run(
    jobs: &Receiver<Job>,
    stats: &Stats,
    clock: &dyn Clock,
    options: &Argon2Options,
    dummy: &std::sync::OnceLock<String>,
) {
    // On Linux this is the priority of the calling thread alone. Without permission the threads stay as they are.
    let _ = rustix::process::nice(10);
    let mut memory = Argon2Memory::new(options.limit_kib.max(options.cost.memory_kib));
    for job in jobs {
        if job.state.compare_exchange(WAITING, STARTED, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            let from = clock.monotonic();
            match job.work {
                Work::Verify(Some(stored), answer) => {
                    let _ = answer.send(memory.verify(&stored, &job.password));
                }
                Work::Verify(None, answer) => {
                    let stored = match dummy.get() {
                        Some(stored) => Ok(stored.clone()),
                        None => memory.hash(options.cost, &random::bytes::<32>()),
                    };
                    let _ = answer.send(stored.and_then(|s| {
                        let stored = dummy.get_or_init(|| s);
                        memory.verify(stored, &job.password).map(|_| false)
                    }));
                }
                Work::Hash(answer) => {
                    let _ = answer.send(memory.hash(options.cost, &job.password));
                }
            }
            let took = (clock.monotonic().saturating_sub(from)).as_micros() as u64;
            let average = stats.took_us.load(Ordering::Relaxed);
            stats.took_us.store((average * 7 + took) / 8, Ordering::Relaxed);
        }
        stats.ahead.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    fn pool(threads: usize, queue: usize, wait_ms: u64, memory_kib: u32, passes: u32) -> Arc<Argon2Pool> {
        let cost = Argon2Cost { memory_kib, passes, lanes: 1 };
        let wait = Duration::from_millis(wait_ms);
        let options = Argon2Options { threads, queue, wait, cost, limit_kib: 65_536 };
        Arc::new(Argon2Pool::start(options, Arc::new(SystemClock::new())).unwrap())
    }

    fn password(text: &str) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(text.as_bytes().to_vec())
    }

    #[tokio::test]
    async fn hashes_verify_and_nobody_is_refused_like_somebody() {
        let pool = pool(2, 8, 5000, 64, 1);
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
    async fn t35_what_waits_too_long_or_finds_no_place_is_told_when_to_come_back() {
        // One slow job holds the only thread.
        let pool = pool(1, 2, 20, 65_536, 8);
        let busy = |r: Result<String, AdmissionError>| matches!(r, Err(AdmissionError::Busy { retry_ms: 100.. }));
        let slow = tokio::spawn({
            let pool = pool.clone();
            async move { pool.hash(password("slow")).await }
        });
        while !pool.queue.as_ref().unwrap().is_empty() || pool.stats.ahead.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
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
        assert!(slow.await.unwrap().is_ok(), "what was started is answered, however long it takes");
        // Those that gave up are skipped, not hashed.
        while pool.stats.ahead.load(Ordering::Relaxed) > 0 {
            tokio::task::yield_now().await;
        }
        assert!(pool.queue.as_ref().unwrap().is_empty());
    }
}
