//! A bounded cache of ciphertext: subjects with their classes as they were last read.
//!
//! Coherence: a reader notes [`Cache::begin`] *before* its read transaction starts and hands it to [`Cache::fill`]; the
//! writer calls [`Cache::purge`] after COMMIT and before any answer. A fill is refused if its subject (or one that
//! shares its stripe) was purged since it began: what it holds may be from before that commit. So whoever was answered
//! can never meet an older row here.
//!
//! The map by row number is the authority; the map by digest is a hint that points into it and is checked on use, so no
//! order of locks joins the two.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::RwLock;

use crate::ids::*;
use crate::storage::SubjectSnapshot;

const SHARDS: usize = 64;
/// Purges are remembered per stripe of row numbers; more stripes, fewer fills refused for a neighbour's sake.
const STRIPES: usize = 4096;
/// What an entry costs beside its blobs: snapshot and row structs, allocation headers, two map entries, a slot.
const ENTRY_BYTES: usize = 400;
const CLASS_BYTES: usize = size_of::<crate::storage::ClassRow>() + 16;

/// The time before a read, in purges.
#[derive(Debug, Clone, Copy)]
pub struct Ticket(u64);

pub struct Cache {
    shards: Box<[RwLock<Shard>]>,
    hints: Box<[RwLock<Hints>]>,
    /// Purges so far.
    clock: AtomicU64,
    /// Number of the last purge that touched a stripe.
    purged: Box<[AtomicU64]>,
    /// Number of the last purge of everything.
    cleared: AtomicU64,
    /// Bytes a shard may hold; 0 turns the cache off.
    shard_bytes: usize,
    bytes: AtomicUsize,
}

/// Row numbers by tenant and digest.
type Hints = HashMap<(u32, u128), i64, Fast>;

#[derive(Default)]
struct Shard {
    map: HashMap<i64, u32, Fast>,
    /// CLOCK: the hand passes over used entries once and takes the next unused.
    slots: Vec<Option<Entry>>,
    free: Vec<u32>,
    hand: usize,
    bytes: usize,
}

struct Entry {
    snapshot: Arc<SubjectSnapshot>,
    cost: usize,
    used: AtomicBool,
}

impl Cache {
    /// A cache of about `bytes`.
    pub fn new(bytes: usize) -> Self {
        Cache {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            hints: (0..SHARDS).map(|_| RwLock::default()).collect(),
            clock: AtomicU64::new(0),
            purged: (0..STRIPES).map(|_| AtomicU64::new(0)).collect(),
            cleared: AtomicU64::new(0),
            shard_bytes: bytes / SHARDS,
            bytes: AtomicUsize::new(0),
        }
    }

    /// The subject, if it is here.
    pub fn get(&self, tenant: TenantNo, digest: SubjectDigest) -> Option<Arc<SubjectSnapshot>> {
        let (hints, key) = self.hint(tenant, digest);
        let uid = *hints.read().get(&key)?;
        let found = self.get_uid(SubjectUid(uid))?;
        // The hint may be older than the entry.
        (found.subject.digest == digest && found.subject.tenant == tenant).then_some(found)
    }

    /// The same by row number.
    pub fn get_uid(&self, uid: SubjectUid) -> Option<Arc<SubjectSnapshot>> {
        let shard = self.shard(uid).read();
        let entry = shard.slots[*shard.map.get(&uid.0)? as usize].as_ref()?;
        entry.used.store(true, Ordering::Relaxed);
        Some(entry.snapshot.clone())
    }

    /// To be called before the read transaction that a [`Cache::fill`] comes from.
    pub fn begin(&self) -> Ticket {
        Ticket(self.clock.load(Ordering::SeqCst))
    }

    /// Keeps what was read, unless a purge came between.
    pub fn fill(&self, ticket: Ticket, snapshot: &Arc<SubjectSnapshot>) {
        let subject = &snapshot.subject;
        let cost = ENTRY_BYTES
            + subject.sealed_id.capacity()
            + snapshot.classes.iter().map(|c| CLASS_BYTES + c.record.capacity()).sum::<usize>();
        // One that takes a large part of a shard would push out too many others.
        if cost > self.shard_bytes / 4 {
            return;
        }
        let (hints, key) = self.hint(subject.tenant, subject.digest);
        // The hint goes first and leaves last: a hint without an entry is only ever about to get one or to go.
        hints.write().insert(key, subject.uid.0);
        let mut gone = Vec::new();
        {
            let mut shard = self.shard(subject.uid).write();
            let stripe = &self.purged[stripe(subject.uid)];
            if stripe.load(Ordering::SeqCst) > ticket.0 || self.cleared.load(Ordering::SeqCst) > ticket.0 {
                // An entry that is here began later than that purge and may stay; then so may the hint.
                if !shard.map.contains_key(&subject.uid.0) {
                    gone.push(snapshot.clone());
                }
            } else {
                let before = shard.bytes;
                shard.put(Entry { snapshot: snapshot.clone(), cost, used: AtomicBool::new(false) });
                while shard.bytes > self.shard_bytes {
                    let Some(out) = shard.evict() else { break };
                    gone.push(out);
                }
                let after = shard.bytes;
                drop(shard);
                self.account(before, after);
            }
        }
        gone.iter().for_each(|s| self.forget_hint(s));
    }

    /// Removes these subjects, and whatever a reader who has begun may still bring of them.
    pub fn purge(&self, uids: &[SubjectUid]) {
        if uids.is_empty() {
            return;
        }
        let now = self.clock.fetch_add(1, Ordering::SeqCst) + 1;
        for &uid in uids {
            self.purged[stripe(uid)].fetch_max(now, Ordering::SeqCst);
            let mut shard = self.shard(uid).write();
            let before = shard.bytes;
            let gone = shard.remove(uid);
            let after = shard.bytes;
            drop(shard);
            self.account(before, after);
            if let Some(gone) = gone {
                self.forget_hint(&gone);
            }
        }
    }

    /// Removes everything.
    pub fn clear(&self) {
        let now = self.clock.fetch_add(1, Ordering::SeqCst) + 1;
        self.cleared.fetch_max(now, Ordering::SeqCst);
        for shard in &self.shards {
            let gone = std::mem::take(&mut *shard.write());
            self.account(gone.bytes, 0);
            gone.slots.iter().flatten().for_each(|e| self.forget_hint(&e.snapshot));
        }
    }

    /// Bytes held, about.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    fn account(&self, before: usize, after: usize) {
        if after >= before {
            self.bytes.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.bytes.fetch_sub(before - after, Ordering::Relaxed);
        }
    }

    fn forget_hint(&self, snapshot: &SubjectSnapshot) {
        let (hints, key) = self.hint(snapshot.subject.tenant, snapshot.subject.digest);
        let mut hints = hints.write();
        if hints.get(&key) == Some(&snapshot.subject.uid.0) {
            hints.remove(&key);
        }
    }

    fn shard(&self, uid: SubjectUid) -> &RwLock<Shard> {
        &self.shards[uid.0 as usize % SHARDS]
    }

    fn hint(&self, tenant: TenantNo, digest: SubjectDigest) -> (&RwLock<Hints>, (u32, u128)) {
        (&self.hints[digest.0[0] as usize % SHARDS], (tenant.0, u128::from_le_bytes(digest.0)))
    }
}

impl Shard {
    fn put(&mut self, entry: Entry) {
        let uid = entry.snapshot.subject.uid.0;
        self.bytes += entry.cost;
        if let Some(&at) = self.map.get(&uid) {
            if let Some(old) = self.slots[at as usize].replace(entry) {
                self.bytes -= old.cost;
            }
            return;
        }
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        self.slots[at as usize] = Some(entry);
        self.map.insert(uid, at);
    }

    fn remove(&mut self, uid: SubjectUid) -> Option<Arc<SubjectSnapshot>> {
        let at = self.map.remove(&uid.0)?;
        self.take(at)
    }

    fn evict(&mut self) -> Option<Arc<SubjectSnapshot>> {
        // Twice round: the first pass may only clear marks.
        for _ in 0..2 * self.slots.len() {
            self.hand = (self.hand + 1) % self.slots.len();
            if let Some(entry) = &self.slots[self.hand]
                && !entry.used.swap(false, Ordering::Relaxed)
            {
                let uid = entry.snapshot.subject.uid;
                return self.remove(uid);
            }
        }
        None
    }

    fn take(&mut self, at: u32) -> Option<Arc<SubjectSnapshot>> {
        let entry = self.slots[at as usize].take()?;
        self.bytes -= entry.cost;
        self.free.push(at);
        Some(entry.snapshot)
    }
}

fn stripe(uid: SubjectUid) -> usize {
    uid.0 as usize % STRIPES
}

/// Row numbers are ours and digests are keyed, so nobody can choose keys that collide: a multiplication will do.
type Fast = BuildHasherDefault<FastHasher>;

#[derive(Default)]
struct FastHasher(u64);

impl FastHasher {
    fn mix(&mut self, n: u64) {
        let wide = u128::from(self.0 ^ n) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (wide >> 64) as u64 ^ wide as u64;
    }
}
impl Hasher for FastHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
    }
    fn write_u32(&mut self, n: u32) {
        self.mix(u64::from(n));
    }
    fn write_i64(&mut self, n: i64) {
        self.mix(n as u64);
    }
    fn write_u128(&mut self, n: u128) {
        self.mix(n as u64);
        self.mix((n >> 64) as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::storage::{ClassRow, ClassState, SubjectRow, SubjectState};

    const T: TenantNo = TenantNo(1);

    fn digest(uid: i64) -> SubjectDigest {
        SubjectDigest((uid as u128).wrapping_mul(0x1234_5678_9abc_def1_0203_0405_0607_0809).to_le_bytes())
    }
    fn snapshot(uid: i64, revision: u64, record: usize) -> Arc<SubjectSnapshot> {
        let (uid, tenant) = (SubjectUid(uid), T);
        let class = ClassRow {
            uid,
            tenant,
            class: ClassNo(1),
            version: DekVersion(1),
            slot: Some(Slot(1)),
            dek: DekId([0; 16]),
            state: ClassState::Live,
            revision: Revision(revision),
            data_keys_issued: 0,
            seals: 0,
            next_bucket: None,
            record: vec![0; record],
        };
        Arc::new(SubjectSnapshot {
            subject: SubjectRow {
                uid,
                tenant,
                digest: digest(uid.0),
                sealed_id: vec![0; 40],
                state: SubjectState::Live,
                group: None,
                revision: Revision(revision),
                created: Timestamp(0),
                touched: Timestamp(0),
                due: None,
            },
            classes: vec![class],
        })
    }

    #[test]
    fn stays_within_its_bytes_and_keeps_what_is_used() {
        let cache = Cache::new(1 << 20);
        for uid in 1..=20_000 {
            cache.fill(cache.begin(), &snapshot(uid, 1, 300));
            assert!(cache.get(T, digest(1)).is_some() || uid > 600, "the one in use went first");
            assert!(cache.bytes() <= 1 << 20);
        }
        let entries: usize = cache.shards.iter().map(|s| s.read().map.len()).sum();
        let hints: usize = cache.hints.iter().map(|h| h.read().len()).sum();
        assert_eq!(entries, hints);
        assert!(entries > 800, "{entries}");
        let slots: usize = cache.shards.iter().map(|s| s.read().slots.len()).sum();
        assert!(slots < entries + 2 * SHARDS, "slots are used again");
        cache.clear();
        assert_eq!(cache.bytes(), 0);
        assert_eq!(cache.hints.iter().map(|h| h.read().len()).sum::<usize>(), 0);
    }

    #[test]
    fn a_fill_that_began_before_a_purge_is_refused() {
        let cache = Cache::new(1 << 20);
        let old = cache.begin();
        cache.purge(&[SubjectUid(7)]);
        cache.fill(old, &snapshot(7, 1, 10));
        assert!(cache.get(T, digest(7)).is_none());
        cache.fill(old, &snapshot(8, 1, 10));
        assert!(cache.get(T, digest(8)).is_some(), "another one is not concerned");
        cache.clear();
        cache.fill(old, &snapshot(8, 1, 10));
        assert!(cache.get(T, digest(8)).is_none());
        cache.fill(cache.begin(), &snapshot(7, 2, 10));
        assert_eq!(cache.get(T, digest(7)).unwrap().subject.revision, Revision(2));
        cache.fill(cache.begin(), &snapshot(9, 1, 1 << 20));
        assert!(cache.get(T, digest(9)).is_none(), "too large");
    }

    /// Writers raise a "stored" revision, purge, and then "answer"; readers fill from the store. Nobody may read a
    /// revision below one that was answered before the read began.
    #[test]
    fn no_reader_sees_less_than_what_was_answered() {
        const SUBJECTS: i64 = 8;
        let cache = Cache::new(64 * 8192); // small: evictions join in
        let stored: Vec<AtomicU64> = (0..SUBJECTS).map(|_| AtomicU64::new(1)).collect();
        let answered: Vec<AtomicU64> = (0..SUBJECTS).map(|_| AtomicU64::new(1)).collect();
        let stop = AtomicBool::new(false);
        let hits = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for seed in 0..3i64 {
                let (cache, stored, answered, stop, hits) = (&cache, &stored, &answered, &stop, &hits);
                scope.spawn(move || {
                    let mut n = seed;
                    while !stop.load(Ordering::Relaxed) {
                        n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                        let uid = (n >> 33).rem_euclid(SUBJECTS);
                        let least = answered[uid as usize].load(Ordering::SeqCst);
                        if let Some(found) = cache.get(T, digest(uid)) {
                            assert!(found.subject.revision.0 >= least, "stale");
                            hits.fetch_add(1, Ordering::Relaxed);
                            continue;
                        }
                        let ticket = cache.begin();
                        let revision = stored[uid as usize].load(Ordering::SeqCst);
                        if n & 0x1000 == 0 {
                            std::thread::yield_now();
                        }
                        cache.fill(ticket, &snapshot(uid, revision, 100));
                    }
                });
            }
            // On a busy machine the readers may get no turn for a while; the test goes on until they had some.
            let mut round = 1u64;
            while round < 30_000 || (hits.load(Ordering::Relaxed) < 1000 && round < 100_000_000) {
                round += 1;
                let uid = (round.wrapping_mul(2_654_435_761) >> 7) as i64 % SUBJECTS;
                stored[uid as usize].fetch_add(1, Ordering::SeqCst);
                if round.is_multiple_of(1000) {
                    cache.clear();
                } else {
                    cache.purge(&[SubjectUid(uid)]);
                }
                answered[uid as usize].store(stored[uid as usize].load(Ordering::SeqCst), Ordering::SeqCst);
                if round.is_multiple_of(8) {
                    std::thread::yield_now();
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
