//! Keys in memory, bounded: nodes in clear, and class keys with their ciphers ready. Both are split into shards; a
//! reader uses a key under its shard's read lock and a purge takes the write lock, so that purging waits for every call
//! that still holds the key and nothing is wiped under a reader. The lock order is class shard, then node shard.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{RwLock, RwLockWriteGuard};
use smallvec::SmallVec;

use crate::crypto::keys::{ClassKeys, NODE_BYTES};
use crate::ids::{ClassNo, Ordinal, Slot, SubjectUid, TenantNo};
use crate::keyring::tree::OpenNode;
use crate::keyring::{ClassRef, KeyRef};

const SHARDS: usize = 64;

fn shard_of(n: u64) -> usize {
    // Fibonacci hashing: neighbouring numbers go to different shards.
    (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 58) as usize % SHARDS
}

/// What CLOCK needs of an entry.
struct Entry<V> {
    value: V,
    used: AtomicBool,
}

impl<V> Entry<V> {
    fn touch(&self) -> &V {
        // Written only when it changes: a hot entry's line stays shared between cores.
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
        &self.value
    }
}

/// A map that forgets by CLOCK (second chance).
struct Clock<K, V> {
    map: HashMap<K, Entry<V>>,
    ring: VecDeque<K>,
}

impl<K, V> Default for Clock<K, V> {
    fn default() -> Self {
        Clock { map: HashMap::new(), ring: VecDeque::new() }
    }
}

impl<K: Copy + Eq + Hash, V> Clock<K, V> {
    fn new() -> Self {
        Self::default()
    }
    fn get(&self, key: &K) -> Option<&V> {
        self.map.get(key).map(Entry::touch)
    }
    fn insert(&mut self, key: K, value: V) {
        if self.map.insert(key, Entry { value, used: AtomicBool::new(false) }).is_none() {
            // Removed keys stay in the ring until it is worth a sweep.
            if self.ring.len() > 2 * self.map.len() + 16 {
                let map = &self.map;
                let mut seen = HashSet::new();
                self.ring.retain(|key| map.contains_key(key) && seen.insert(*key));
            }
            self.ring.push_back(key);
        }
    }
    /// Forgets one that was not used since the hand passed it last.
    fn evict(&mut self) -> Option<(K, V)> {
        while let Some(key) = self.ring.pop_front() {
            match self.map.get(&key) {
                None => {}
                Some(entry) if entry.used.swap(false, Ordering::Relaxed) => self.ring.push_back(key),
                Some(_) => return self.map.remove(&key).map(|entry| (key, entry.value)),
            }
        }
        None
    }
}

/// Nodes in clear by (tenant, ordinal).
pub struct NodeCache {
    shards: Vec<RwLock<Clock<(TenantNo, Ordinal), OpenNode>>>,
    per_shard: usize,
}

impl NodeCache {
    /// Holds at most about `bytes` of keys, at least four nodes a shard.
    pub fn new(bytes: usize) -> Self {
        NodeCache {
            shards: (0..SHARDS).map(|_| RwLock::new(Clock::new())).collect(),
            per_shard: (bytes / NODE_BYTES / SHARDS).max(4),
        }
    }
    fn shard(&self, tenant: TenantNo, ordinal: Ordinal) -> &RwLock<Clock<(TenantNo, Ordinal), OpenNode>> {
        &self.shards[shard_of((tenant.0 as u64) << 21 | ordinal.0 as u64)]
    }
    /// Uses a node where it lies.
    pub fn with<R>(&self, tenant: TenantNo, ordinal: Ordinal, f: impl FnOnce(&OpenNode) -> R) -> Option<R> {
        let shard = self.shard(tenant, ordinal).read();
        shard.get(&(tenant, ordinal)).map(f)
    }
    pub fn has(&self, tenant: TenantNo, ordinal: Ordinal) -> bool {
        self.with(tenant, ordinal, |_| ()).is_some()
    }
    /// Inserts or replaces; what was there is wiped.
    pub fn put(&self, tenant: TenantNo, ordinal: Ordinal, node: OpenNode) {
        let mut shard = self.shard(tenant, ordinal).write();
        if shard.map.len() >= self.per_shard && !shard.map.contains_key(&(tenant, ordinal)) {
            shard.evict();
        }
        shard.insert((tenant, ordinal), node);
    }
    /// Replaces the node if the cache has it; else the new one is wiped. Purging never makes the cache grow.
    pub fn replace(&self, tenant: TenantNo, ordinal: Ordinal, node: OpenNode) {
        let mut shard = self.shard(tenant, ordinal).write();
        if let Some(entry) = shard.map.get_mut(&(tenant, ordinal)) {
            entry.value = node;
        }
    }
    /// Wipes all nodes of a tenant.
    pub fn purge_tenant(&self, tenant: TenantNo) {
        for shard in &self.shards {
            shard.write().map.retain(|key, _| key.0 != tenant);
        }
    }
    /// How many nodes it holds.
    pub fn held(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().map.len()).sum()
    }
}

/// One subject's keys of one class (and bucket), boxed so that a growing map moves no key.
struct ClassEntry {
    tenant: TenantNo,
    class: ClassNo,
    key: KeyRef,
    expiry: Option<KeyRef>,
    keys: ClassKeys,
}

impl ClassEntry {
    fn is(&self, class: &ClassRef, expiry: &Option<KeyRef>) -> bool {
        self.class == class.class && self.key == class.key && self.expiry == *expiry && self.tenant == class.tenant
    }
    fn slot(&self) -> (TenantNo, Slot) {
        (self.tenant, self.key.slot)
    }
    fn expiry_slot(&self) -> Option<(TenantNo, Slot)> {
        self.expiry.as_ref().map(|key| (self.tenant, key.slot))
    }
}

#[derive(Default)]
struct ClassShard {
    #[allow(clippy::vec_box)] // a growing list must not leave copies of keys behind
    clock: Clock<SubjectUid, Vec<Box<ClassEntry>>>,
    entries: usize,
    /// Whose keys come from a slot, so that a swap looks at what it drops and not at everybody.
    by_slot: HashMap<(TenantNo, Slot), SmallVec<[SubjectUid; 1]>>,
    /// How many entries an expiry key is in; each is of many subjects.
    expiries: HashMap<(TenantNo, Slot), usize>,
}

impl ClassShard {
    fn note(&mut self, uid: SubjectUid, at: (TenantNo, Slot), expiry: Option<(TenantNo, Slot)>) {
        let uids = self.by_slot.entry(at).or_default();
        if !uids.contains(&uid) {
            uids.push(uid);
        }
        if let Some(expiry) = expiry {
            *self.expiries.entry(expiry).or_default() += 1;
        }
    }
    /// Forgets where entries were that are gone from the map.
    fn gone(&mut self, uid: SubjectUid, gone: &[Box<ClassEntry>]) {
        self.entries -= gone.len();
        for entry in gone {
            let left = self.clock.map.get(&uid).is_some_and(|list| list.value.iter().any(|e| e.slot() == entry.slot()));
            if !left && let Some(uids) = self.by_slot.get_mut(&entry.slot()) {
                uids.retain(|other| *other != uid);
                if uids.is_empty() {
                    self.by_slot.remove(&entry.slot());
                }
            }
            if let Some(expiry) = entry.expiry_slot()
                && let Some(count) = self.expiries.get_mut(&expiry)
            {
                *count -= 1;
                if *count == 0 {
                    self.expiries.remove(&expiry);
                }
            }
        }
    }
    /// Forgets every key that comes from one of these slots.
    fn purge(&mut self, tenant: TenantNo, slots: &HashSet<Slot>) {
        if slots.iter().any(|slot| self.expiries.contains_key(&(tenant, *slot))) {
            let gone = |key: &KeyRef| slots.contains(&key.slot);
            self.retain(|e| e.tenant != tenant || !(gone(&e.key) || e.expiry.as_ref().is_some_and(gone)));
            return;
        }
        for at in slots.iter().map(|slot| (tenant, *slot)) {
            for uid in self.by_slot.get(&at).cloned().unwrap_or_default() {
                let Some(list) = self.clock.map.get_mut(&uid) else { continue };
                let gone: Vec<_> = list.value.extract_if(.., |entry| entry.slot() == at).collect();
                if list.value.is_empty() {
                    self.clock.map.remove(&uid);
                }
                self.gone(uid, &gone);
            }
        }
    }
    fn find(&self, class: &ClassRef, expiry: &Option<KeyRef>) -> Option<&ClassKeys> {
        let list = self.clock.get(&class.uid)?;
        list.iter().find(|entry| entry.is(class, expiry)).map(|entry| &entry.keys)
    }
    fn forget(&mut self, uid: SubjectUid) {
        if let Some(entry) = self.clock.map.remove(&uid) {
            self.gone(uid, &entry.value);
        }
    }
    /// Looks at every entry.
    fn retain(&mut self, mut keep: impl FnMut(&ClassEntry) -> bool) {
        (self.by_slot, self.expiries, self.entries) = Default::default();
        let mut left = Vec::new();
        self.clock.map.retain(|uid, entry| {
            entry.value.retain(|one| keep(one));
            left.extend(entry.value.iter().map(|one| (*uid, one.slot(), one.expiry_slot())));
            !entry.value.is_empty()
        });
        self.entries = left.len();
        for (uid, at, expiry) in left {
            self.note(uid, at, expiry);
        }
    }
}

/// Class keys by subject.
pub struct ClassCache {
    shards: Vec<RwLock<ClassShard>>,
    per_shard: usize,
}

impl ClassCache {
    /// Holds at most about `entries` keys of about 800 bytes.
    pub fn new(entries: usize) -> Self {
        ClassCache { shards: (0..SHARDS).map(|_| RwLock::default()).collect(), per_shard: (entries / SHARDS).max(1) }
    }
    fn shard(&self, uid: SubjectUid) -> &RwLock<ClassShard> {
        &self.shards[shard_of(uid.0 as u64)]
    }

    /// Uses the keys where they lie; those not there are made by `fill` under the shard's write lock, so that a purge
    /// either comes first and `fill` sees what it left, or comes after and takes them away again.
    pub fn with<R>(
        &self,
        class: ClassRef,
        expiry: Option<KeyRef>,
        fill: impl FnOnce() -> Option<ClassKeys>,
        f: impl FnOnce(&ClassKeys) -> R,
    ) -> Option<R> {
        {
            let shard = self.shard(class.uid).read();
            if let Some(keys) = shard.find(&class, &expiry) {
                return Some(f(keys));
            }
        }
        let mut shard = self.shard(class.uid).write();
        if shard.find(&class, &expiry).is_none() {
            let keys = fill()?;
            while shard.entries >= self.per_shard {
                match shard.clock.evict() {
                    Some((uid, gone)) => shard.gone(uid, &gone),
                    None => break,
                }
            }
            let ClassRef { tenant, uid, class, key } = class;
            let entry = Box::new(ClassEntry { tenant, class, key, expiry, keys });
            shard.note(uid, entry.slot(), entry.expiry_slot());
            match shard.clock.map.get_mut(&uid) {
                Some(list) => list.value.push(entry),
                None => shard.clock.insert(uid, vec![entry]),
            }
            shard.entries += 1;
        }
        let shard = RwLockWriteGuard::downgrade(shard);
        shard.find(&class, &expiry).map(f)
    }

    /// Wipes the keys of these subjects.
    pub fn purge_subjects(&self, uids: &[SubjectUid]) {
        for uid in uids {
            self.shard(*uid).write().forget(*uid);
        }
    }
    /// Wipes every key that comes from one of these slots, as a data key or as an expiry key.
    pub fn purge_slots(&self, tenant: TenantNo, slots: &HashSet<Slot>) {
        for shard in &self.shards {
            let mut shard = shard.write();
            if shard.entries > 0 {
                shard.purge(tenant, slots);
            }
        }
    }
    /// Wipes all keys of a tenant.
    pub fn purge_tenant(&self, tenant: TenantNo) {
        for shard in &self.shards {
            shard.write().retain(|entry| entry.tenant != tenant);
        }
    }
    /// How many keys it holds.
    pub fn held(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().entries).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::keys::{Dek, NodeKeys};
    use crate::ids::{DekId, Generation};
    use std::sync::atomic::AtomicUsize;

    fn class(uid: i64, slot: u32, dek: &Dek) -> ClassRef {
        let key = KeyRef { slot: Slot(slot), dek: dek.id() };
        ClassRef { tenant: TenantNo(1), uid: SubjectUid(uid), class: ClassNo(1), key }
    }

    #[test]
    fn a_purged_key_is_made_anew_only_if_it_can_be() {
        let cache = ClassCache::new(1000);
        let dek = Dek::generate();
        let one = class(1, 20, &dek);
        assert!(cache.with(one, None, || None, |_| ()).is_none());
        assert_eq!(cache.with(one, None, || Some(dek.class_keys()), |k| k.id()), Some(dek.id()));
        assert_eq!(cache.with(one, None, || panic!("it is there"), |k| k.id()), Some(dek.id()));
        let other = ClassRef { key: KeyRef { dek: DekId([0; 16]), ..one.key }, ..one };
        assert!(cache.with(other, None, || None, |_| ()).is_none(), "another key id never hits");
        cache.purge_slots(TenantNo(2), &HashSet::from([Slot(20)]));
        assert_eq!(cache.held(), 1);
        cache.purge_slots(TenantNo(1), &HashSet::from([Slot(20)]));
        assert_eq!(cache.held(), 0);
        let expiry = Some(KeyRef { slot: Slot(99), dek: DekId([1; 16]) });
        cache.with(one, expiry, || Some(dek.class_keys()), |_| ());
        cache.with(one, None, || Some(dek.class_keys()), |_| ());
        cache.purge_slots(TenantNo(1), &HashSet::from([Slot(99)]));
        assert_eq!(cache.held(), 1, "a bucket's end takes only what came from its key");
        cache.purge_subjects(&[SubjectUid(1)]);
        assert_eq!(cache.held(), 0);
    }

    /// The index of slots says at every time what a look at every entry would say.
    fn agrees(cache: &ClassCache) {
        for shard in &cache.shards {
            let mut shard = shard.write();
            let (by_slot, expiries, entries) = (shard.by_slot.clone(), shard.expiries.clone(), shard.entries);
            shard.retain(|_| true);
            let sorted = |map: &HashMap<_, SmallVec<[SubjectUid; 1]>>| {
                let mut all: Vec<_> = map.iter().map(|(at, uids)| (*at, uids.to_vec())).collect();
                all.iter_mut().for_each(|(_, uids)| uids.sort());
                all.sort();
                all
            };
            assert_eq!(sorted(&by_slot), sorted(&shard.by_slot));
            assert_eq!(expiries, shard.expiries);
            assert_eq!(entries, shard.entries);
        }
    }

    #[test]
    fn whatever_comes_and_goes_a_dropped_slot_leaves_no_key() {
        let cache = ClassCache::new(640);
        let dek = Dek::generate();
        let any = |n: u32| rand::random_range(0..n);
        for _ in 0..4_000 {
            let expiry = (any(3) == 0).then(|| KeyRef { slot: Slot(1_000 + any(5)), dek: dek.id() });
            let one = class(any(900).into(), 20 + any(400), &dek);
            match any(8) {
                0 => {
                    let dropped: HashSet<Slot> = [one.key.slot, Slot(20 + any(400))].into();
                    cache.purge_slots(TenantNo(1), &dropped);
                    for shard in &cache.shards {
                        let shard = shard.read();
                        let mut left = shard.clock.map.values().flat_map(|list| &list.value);
                        assert!(left.all(|entry| !dropped.contains(&entry.key.slot)));
                    }
                }
                1 if any(20) == 0 => {
                    let dropped = HashSet::from([Slot(1_000 + any(5))]);
                    cache.purge_slots(TenantNo(1), &dropped);
                    for shard in &cache.shards {
                        let shard = shard.read();
                        let mut left = shard.clock.map.values().flat_map(|list| &list.value);
                        assert!(left.all(|entry| entry.expiry.as_ref().is_none_or(|key| !dropped.contains(&key.slot))));
                    }
                }
                2 => cache.purge_subjects(&[one.uid]),
                _ => drop(cache.with(one, expiry, || Some(dek.class_keys()), |_| ())),
            }
        }
        agrees(&cache);
    }

    #[test]
    fn both_caches_stay_bounded() {
        let cache = ClassCache::new(640);
        let dek = Dek::generate();
        for uid in 0..5000 {
            cache.with(class(uid, 20, &dek), None, || Some(dek.class_keys()), |_| ());
            if uid % 10 == 0 {
                cache.purge_subjects(&[SubjectUid(uid)]);
            }
        }
        assert!((400..=640).contains(&cache.held()), "{}", cache.held());
        let nodes = NodeCache::new(640 * NODE_BYTES);
        for n in 0..2000 {
            nodes.put(TenantNo(1), Ordinal(n), OpenNode { generation: Generation(1), keys: NodeKeys::generate() });
        }
        assert!((400..=640).contains(&nodes.held()), "{}", nodes.held());
    }

    #[test]
    fn a_used_entry_outlives_an_unused_one() {
        let mut clock = Clock::new();
        for n in 0..4 {
            clock.insert(n, n);
        }
        clock.get(&0);
        assert_eq!(clock.evict(), Some((1, 1)));
        assert_eq!(clock.evict(), Some((2, 2)));
        assert_eq!(clock.evict(), Some((3, 3)));
        assert_eq!(clock.evict(), Some((0, 0)));
        assert_eq!(clock.evict(), None);
    }

    #[test]
    fn a_purge_waits_for_the_reader() {
        let cache = ClassCache::new(1000);
        let dek = Dek::generate();
        let one = class(7, 20, &dek);
        cache.with(one, None, || Some(dek.class_keys()), |_| ());
        let order = AtomicUsize::new(0);
        let (started, wait) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                cache.with(
                    one,
                    None,
                    || None,
                    |keys| {
                        started.send(()).unwrap();
                        for _ in 0..200 {
                            std::thread::yield_now();
                        }
                        assert_eq!(order.load(Ordering::SeqCst), 0, "the purge went past a reader");
                        keys.id()
                    },
                )
            });
            wait.recv().unwrap();
            cache.purge_slots(TenantNo(1), &HashSet::from([Slot(20)]));
            order.store(1, Ordering::SeqCst);
        });
        assert!(cache.with(one, None, || None, |_| ()).is_none());
    }
}
