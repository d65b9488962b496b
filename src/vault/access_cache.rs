//! What was found out about access keys, so that Argon2id runs at a key's first use only.
//!
//! An entry is found by HMAC-SHA-256 under a random key of this process over the key's whole text: a copy of the memory
//! does not give keys away, and a hit costs one HMAC. [`AccessCache::purge`] is synchronous: a call that begins after it
//! returned never gets an answer that was found out before it began. So a revocation commits, purges and then answers.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::OnceCell;

use crate::auth::KeyId;
use crate::clock::Clock;
use crate::crypto::blind_index::mac;
use crate::crypto::random;
use crate::secret::Secret;

/// Finds an entry; made by [`AccessCache::tag`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tag([u8; 32]);

/// What was found out about a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<T> {
    /// It is valid, and this is whose it is.
    Accepted(T),
    /// Unknown, wrong, revoked or expired: callers cannot tell which.
    Refused,
}

/// How much is kept and for how long.
#[derive(Debug, Clone, Copy)]
pub struct AccessCacheOptions {
    /// Accepted keys; as many refused ones beside them. Default 10,000.
    pub entries: usize,
    /// After this an accepted key is checked again. Default 10 minutes.
    pub accepted_for: Duration,
    /// A refused key is refused without looking for this long. Default 60 s.
    pub refused_for: Duration,
}

impl Default for AccessCacheOptions {
    fn default() -> Self {
        AccessCacheOptions {
            entries: 10_000,
            accepted_for: Duration::from_secs(600),
            refused_for: Duration::from_secs(60),
        }
    }
}

struct Entry<T> {
    key: KeyId,
    until: Duration,
    verdict: Verdict<T>,
}

/// Bounded; the oldest goes first.
struct Kept<T> {
    entries: HashMap<Tag, Entry<T>>,
    order: VecDeque<Tag>,
    limit: usize,
}

impl<T> Kept<T> {
    fn new(limit: usize) -> Self {
        Kept { entries: HashMap::new(), order: VecDeque::new(), limit: limit.max(1) }
    }

    fn put(&mut self, tag: Tag, entry: Entry<T>) {
        if self.entries.insert(tag, entry).is_some() {
            return; // it keeps its place
        }
        self.order.push_back(tag);
        while self.entries.len() > self.limit {
            let Some(oldest) = self.order.pop_front() else { return };
            self.entries.remove(&oldest);
        }
    }

    fn remove(&mut self, tag: &Tag) {
        if self.entries.remove(tag).is_some() {
            self.order.retain(|t| t != tag);
        }
    }

    fn retain(&mut self, keep: impl Fn(&Entry<T>) -> bool) {
        self.entries.retain(|_, e| keep(e));
        self.order.retain(|tag| self.entries.contains_key(tag));
    }
}

type Answer<T, E> = Arc<OnceCell<Result<Verdict<T>, E>>>;

struct Inner<T, E> {
    accepted: Kept<T>,
    refused: Kept<T>,
    /// Checks under way. A purge takes them out, so that nobody new joins them and nothing of them is kept.
    flights: HashMap<Tag, (KeyId, Answer<T, E>)>,
}

impl<T: Clone, E> Inner<T, E> {
    fn known(&self, tag: &Tag, now: Duration) -> Option<Verdict<T>> {
        let found = self.accepted.entries.get(tag).or_else(|| self.refused.entries.get(tag))?;
        (now < found.until).then(|| found.verdict.clone())
    }
}

/// Verdicts about access keys. `T` is what an accepted key stands for, cheap to clone (an `Arc`); `E` what a check can fail
/// with.
pub struct AccessCache<T, E> {
    process_key: Secret<[u8; 32]>,
    options: AccessCacheOptions,
    clock: Arc<dyn Clock>,
    inner: Mutex<Inner<T, E>>,
}

impl<T: Clone, E: Clone> AccessCache<T, E> {
    /// An empty cache with a fresh process key.
    pub fn new(options: AccessCacheOptions, clock: Arc<dyn Clock>) -> Self {
        let mut process_key = Secret::new([0u8; 32]);
        random::fill(process_key.expose_mut());
        let inner = Inner {
            accepted: Kept::new(options.entries),
            refused: Kept::new(options.entries),
            flights: HashMap::new(),
        };
        AccessCache { process_key, options, clock, inner: Mutex::new(inner) }
    }

    /// The tag of a credential's text as the caller sent it.
    pub fn tag(&self, text: &str) -> Tag {
        Tag(mac(self.process_key.expose(), &[text.as_bytes()]))
    }

    /// What is known about it.
    pub fn get(&self, tag: &Tag) -> Option<Verdict<T>> {
        let now = self.clock.monotonic();
        self.inner.lock().known(tag, now)
    }

    /// What is known about it, or else what `check` finds out: read the key's row, run Argon2id. Calls with one tag share one
    /// check; if the one that runs it is cancelled, another goes on from the start. Errors are shared and not kept.
    pub async fn verify<F, Fut>(&self, tag: Tag, key: KeyId, check: F) -> Result<Verdict<T>, E>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<Verdict<T>, E>>,
    {
        let now = self.clock.monotonic();
        let answer = {
            let mut inner = self.inner.lock();
            if let Some(verdict) = inner.known(&tag, now) {
                return Ok(verdict);
            }
            inner.flights.entry(tag).or_insert_with(|| (key, Arc::default())).1.clone()
        };
        let landing = Landing { cache: self, tag, key, answer };
        landing.answer.get_or_init(check).await.clone()
    }

    /// Forgets everything about a key, and everything that is being found out: after this returned no call gets an older
    /// answer. For revoking, rotating, issuing.
    pub fn purge(&self, key: KeyId) {
        let mut inner = self.inner.lock();
        inner.accepted.retain(|e| e.key != key);
        inner.refused.retain(|e| e.key != key);
        inner.flights.retain(|_, (k, _)| *k != key);
    }

    /// The same for all keys whose principal `stale` picks (a role or policy changed), and for every check under way.
    pub fn purge_if(&self, stale: impl Fn(&T) -> bool) {
        let mut inner = self.inner.lock();
        inner.accepted.retain(|e| !matches!(&e.verdict, Verdict::Accepted(t) if stale(t)));
        inner.flights.clear();
    }

    /// Accepted and refused keys that are kept.
    pub fn len(&self) -> (usize, usize) {
        let inner = self.inner.lock();
        (inner.accepted.entries.len(), inner.refused.entries.len())
    }
}

/// Ends a check when the first of its callers is through, or the last one has gone.
struct Landing<'a, T: Clone, E: Clone> {
    cache: &'a AccessCache<T, E>,
    tag: Tag,
    key: KeyId,
    answer: Answer<T, E>,
}

impl<T: Clone, E: Clone> Drop for Landing<'_, T, E> {
    fn drop(&mut self) {
        let cache = self.cache;
        let mut inner = cache.inner.lock();
        // Not there any more, or another one: purged meanwhile or landed already. Nothing of it may be kept.
        if !inner.flights.get(&self.tag).is_some_and(|(_, a)| Arc::ptr_eq(a, &self.answer)) {
            return;
        }
        match self.answer.get() {
            Some(found) => {
                inner.flights.remove(&self.tag);
                let now = cache.clock.monotonic();
                match found {
                    Ok(verdict @ Verdict::Accepted(_)) => {
                        let until = now + cache.options.accepted_for;
                        inner.refused.remove(&self.tag);
                        inner.accepted.put(self.tag, Entry { key: self.key, until, verdict: verdict.clone() });
                    }
                    Ok(Verdict::Refused) => {
                        let until = now + cache.options.refused_for;
                        inner.accepted.remove(&self.tag);
                        inner.refused.put(self.tag, Entry { key: self.key, until, verdict: Verdict::Refused });
                    }
                    Err(_) => {}
                }
            }
            // Cancelled: the map and this one hold it, nobody waits.
            None if Arc::strong_count(&self.answer) == 2 => {
                inner.flights.remove(&self.tag);
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{ManualClock, Timestamp};
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    type Cache = AccessCache<u32, &'static str>;

    fn cache(entries: usize) -> (Arc<Cache>, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::new(Timestamp(0)));
        let options = AccessCacheOptions { entries, ..Default::default() };
        (Arc::new(Cache::new(options, clock.clone())), clock)
    }

    #[tokio::test]
    async fn verdicts_are_kept_for_their_time_and_errors_not_at_all() {
        let (cache, clock) = cache(10);
        let (good, bad) = (cache.tag("good"), cache.tag("bad"));
        assert_eq!(cache.verify(good, KeyId(1), async || Err("busy")).await, Err("busy"));
        assert_eq!(cache.get(&good), None);
        assert_eq!(cache.verify(good, KeyId(1), async || Ok(Verdict::Accepted(7))).await, Ok(Verdict::Accepted(7)));
        assert_eq!(cache.verify(bad, KeyId(2), async || Ok(Verdict::Refused)).await, Ok(Verdict::Refused));
        let unasked = async || panic!("it is known");
        assert_eq!(cache.verify(good, KeyId(1), unasked).await, Ok(Verdict::Accepted(7)));
        clock.advance_ms(59_999);
        assert_eq!(cache.get(&bad), Some(Verdict::Refused));
        clock.advance_ms(1);
        assert_eq!((cache.get(&bad), cache.get(&good)), (None, Some(Verdict::Accepted(7))));
        clock.advance_ms(540_000);
        assert_eq!(cache.get(&good), None);
        // Found out again, with another result: the older one is gone.
        assert_eq!(cache.verify(good, KeyId(1), async || Ok(Verdict::Refused)).await, Ok(Verdict::Refused));
        assert_eq!(cache.get(&good), Some(Verdict::Refused));
    }

    #[tokio::test]
    async fn it_stays_bounded_and_refusals_push_out_no_accepted_key() {
        let (cache, _) = cache(3);
        for n in 0..10u64 {
            let _ = cache.verify(cache.tag(&n.to_string()), KeyId(n), async || Ok(Verdict::Accepted(n as u32))).await;
        }
        for n in 10..30u64 {
            let _ = cache.verify(cache.tag(&n.to_string()), KeyId(n), async || Ok(Verdict::Refused)).await;
        }
        assert_eq!(cache.len(), (3, 3));
        assert_eq!(cache.get(&cache.tag("9")), Some(Verdict::Accepted(9)));
        assert_eq!(cache.get(&cache.tag("6")), None);
    }

    #[tokio::test]
    async fn first_uses_share_one_check_and_a_cancelled_one_is_taken_over() {
        let (cache, _) = cache(10);
        let (tag, runs) = (cache.tag("k"), AtomicUsize::new(0));
        let check = async || {
            runs.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            Ok(Verdict::Accepted(1))
        };
        let all = futures_util::future::join_all((0..20).map(|_| cache.verify(tag, KeyId(1), check))).await;
        assert!(all.iter().all(|v| *v == Ok(Verdict::Accepted(1))));
        assert_eq!(runs.load(Ordering::SeqCst), 1);

        cache.purge(KeyId(1));
        let never = cache.verify(tag, KeyId(1), std::future::pending);
        let cancelled = tokio::time::timeout(Duration::from_millis(5), never).await;
        assert!(cancelled.is_err());
        assert!(cache.inner.lock().flights.is_empty(), "nothing of it stays");
        assert_eq!(cache.verify(tag, KeyId(1), check).await, Ok(Verdict::Accepted(1)));
    }

    #[tokio::test]
    async fn t25_a_check_that_began_before_the_purge_is_neither_kept_nor_joined() {
        let (cache, _) = cache(10);
        let tag = cache.tag("k");
        let (read, go_on) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
        let slow = tokio::spawn({
            let (cache, read, go_on) = (cache.clone(), read.clone(), go_on.clone());
            async move {
                let check = async || {
                    read.notify_one(); // the row says "valid" here
                    go_on.notified().await;
                    Ok(Verdict::Accepted(1))
                };
                cache.verify(tag, KeyId(1), check).await
            }
        });
        read.notified().await;
        cache.purge(KeyId(1)); // revoked; answered
        let after = cache.verify(tag, KeyId(1), async || Ok(Verdict::Refused));
        let after = tokio::time::timeout(Duration::from_secs(5), after).await.expect("it joins no older check");
        assert_eq!(after, Ok(Verdict::Refused));
        go_on.notify_one();
        assert_eq!(slow.await.unwrap(), Ok(Verdict::Accepted(1)), "its call began before");
        assert_eq!(cache.get(&tag), Some(Verdict::Refused));
        cache.purge_if(|_| true);
        assert_eq!(cache.get(&tag), Some(Verdict::Refused), "a changed role does not revive a refused key");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn t25_no_call_that_began_after_the_answer_is_accepted() {
        for round in 0..300u64 {
            let (cache, _) = cache(10);
            let (revoked, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
            let reading = Arc::new(AtomicBool::new(false));
            let key = KeyId(round);
            let callers: Vec<_> = (0..8)
                .map(|n| {
                    let (cache, revoked, answered) = (cache.clone(), revoked.clone(), answered.clone());
                    let reading = reading.clone();
                    tokio::spawn(async move {
                        let tag = cache.tag("the key");
                        let mut late = 0;
                        while late < 3 {
                            let began_after = answered.load(Ordering::SeqCst);
                            let verdict = cache
                                .verify(tag, key, async || {
                                    let valid = !revoked.load(Ordering::SeqCst);
                                    reading.store(true, Ordering::SeqCst);
                                    for _ in 0..(n + round) % 5 * 20 {
                                        tokio::task::yield_now().await;
                                    }
                                    Ok(if valid { Verdict::Accepted(1) } else { Verdict::Refused })
                                })
                                .await;
                            assert!(!(began_after && verdict == Ok(Verdict::Accepted(1))), "round {round}");
                            late += usize::from(began_after);
                            tokio::task::yield_now().await;
                        }
                    })
                })
                .collect();
            while !reading.load(Ordering::SeqCst) {
                tokio::task::yield_now().await;
            }
            for _ in 0..round % 7 {
                tokio::task::yield_now().await;
            }
            revoked.store(true, Ordering::SeqCst); // the commit
            cache.purge(key);
            answered.store(true, Ordering::SeqCst);
            for caller in callers {
                caller.await.unwrap();
            }
        }
    }
}
