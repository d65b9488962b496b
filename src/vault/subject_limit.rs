//! How many different subjects a key touches in an hour, counted exactly and in bounded memory: what a stolen key can
//! take away before somebody notices.
//!
//! A subject counts from its last use for one hour. Counts live in memory: a restart begins anew.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Clock;
use crate::ids::{ActorId, SubjectUid};

const HOUR: Duration = Duration::from_secs(3_600);

/// One key's subjects of the last hour: at most its limit, about 80 bytes each.
#[derive(Default)]
struct Seen {
    last: HashMap<SubjectUid, Duration>,
    by_time: BTreeSet<(Duration, SubjectUid)>,
}

impl Seen {
    fn forget(&mut self, now: Duration) {
        while let Some((at, uid)) = self.by_time.first().copied() {
            if at + HOUR > now {
                return;
            }
            self.by_time.pop_first();
            self.last.remove(&uid);
        }
    }

    fn touch(&mut self, uid: SubjectUid, limit: u32, now: Duration) -> bool {
        self.forget(now);
        match self.last.get(&uid).copied() {
            Some(last) => {
                self.by_time.remove(&(last, uid));
            }
            None if self.last.len() >= limit as usize => return false,
            None => {}
        }
        self.last.insert(uid, now);
        self.by_time.insert((now, uid));
        true
    }
}

/// The counts of all keys that have a limit.
pub struct SubjectLimits {
    clock: Arc<dyn Clock>,
    seen: Mutex<HashMap<ActorId, Seen>>,
}

impl SubjectLimits {
    /// No key has touched anything.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        SubjectLimits { clock, seen: Mutex::default() }
    }

    /// Whether the key may touch this subject too; it then counts.
    pub fn touch(&self, actor: ActorId, uid: SubjectUid, limit: u32) -> bool {
        let now = self.clock.monotonic();
        let mut seen = self.seen.lock();
        if !seen.contains_key(&actor) {
            // Keys that rested for an hour give their memory back.
            seen.retain(|_, seen| {
                seen.forget(now);
                !seen.last.is_empty()
            });
        }
        seen.entry(actor).or_default().touch(uid, limit, now)
    }

    /// The key has touched nobody.
    pub fn release(&self, actor: ActorId) {
        self.seen.lock().remove(&actor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{ManualClock, Timestamp};
    use proptest::prelude::*;

    #[test]
    fn the_same_subject_counts_once_and_for_an_hour_after_its_last_use() {
        let clock = Arc::new(ManualClock::new(Timestamp(0)));
        let limits = SubjectLimits::new(clock.clone());
        let touch = |uid| limits.touch(ActorId(1), SubjectUid(uid), 2);
        assert!(touch(1) && touch(2) && touch(1) && !touch(3));
        assert!(limits.touch(ActorId(2), SubjectUid(3), 1), "another key has its own count");
        clock.advance_ms(1_800_000);
        assert!(touch(1));
        clock.advance_ms(1_800_000);
        assert!(touch(3), "the second was used an hour ago");
        assert!(!touch(4));
        clock.advance_ms(1_800_000);
        assert!(touch(4), "and the first now too");
        clock.advance_ms(4_000_000);
        assert!(limits.touch(ActorId(3), SubjectUid(1), 1));
        assert_eq!(limits.seen.lock().len(), 1, "nothing is kept of keys that rest");
    }

    proptest! {
        /// Never more than the limit in any hour, compared with the definition; and the memory is bounded by it.
        #[test]
        fn no_hour_has_more_subjects_than_allowed(
            steps in prop::collection::vec((0u64..1_500_000, 0i64..8), 1..80), limit in 1u32..6
        ) {
            let clock = Arc::new(ManualClock::new(Timestamp(0)));
            let limits = SubjectLimits::new(clock.clone());
            let mut touched: Vec<(Duration, i64)> = Vec::new();
            for (wait, uid) in steps {
                clock.advance_ms(wait as i64);
                let now = clock.monotonic();
                if limits.touch(ActorId(1), SubjectUid(uid), limit) {
                    touched.push((now, uid));
                }
                let hour: std::collections::BTreeSet<i64> =
                    touched.iter().filter(|(at, _)| *at + HOUR > now).map(|(_, uid)| *uid).collect();
                prop_assert!(hour.len() <= limit as usize);
                let seen = limits.seen.lock();
                prop_assert!(seen[&ActorId(1)].by_time.len() <= limit as usize);
                prop_assert_eq!(seen[&ActorId(1)].last.len(), hour.len());
            }
        }
    }
}
