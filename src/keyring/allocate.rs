//! Which slot is given next. Giving writes no node: a leaf is born full, ahead of need, and covered by the key archive
//! (where there is one) before its first slot may be given.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::crypto::keys::FAN_OUT;
use crate::ids::Slot;
use crate::keyring::tree::{LEAVES, RESERVED, SLOTS};
use crate::storage::SlotUse;

const FAN: u32 = FAN_OUT as u32;
/// Most leaves born at once: 14,400 slots.
pub const MOST_BORN: u32 = 120;

/// What one tenant may give, in memory. A slot is in at most one place: above `next`, free, held back, or given.
#[derive(Debug)]
pub struct Slots {
    /// Fresh slots from here to the end of the born leaves were never given.
    next: u32,
    /// Leaves that are born and covered: 0 to here, exclusive.
    born: u32,
    /// Given before and free again, by leaf.
    free: BTreeMap<u32, BTreeSet<u32>>,
    /// Dropped, and not yet in a key archive that was rewritten since.
    held_back: Vec<u32>,
    /// Told apart from what was in memory before the rows were read again.
    reading: u64,
}

/// Slots that were held back at a moment: of which reading of the rows, and how many.
pub type HeldBack = (u64, usize);

static READINGS: AtomicU64 = AtomicU64::new(0);

impl Slots {
    /// From what the database says. With `hold_back`, slots that were freed before wait for a rewritten key archive.
    pub fn new(used: &SlotUse, born: u32, hold_back: bool) -> Self {
        let reading = READINGS.fetch_add(1, Ordering::Relaxed);
        let next = used.next.0.max(RESERVED);
        let mut slots = Slots { next, born, free: BTreeMap::new(), held_back: Vec::new(), reading };
        slots.give_back(&used.free, hold_back);
        slots
    }

    fn fresh(&self) -> u32 {
        (self.born * FAN).saturating_sub(self.next)
    }

    /// Whether `n` slots can be given now.
    pub fn has(&self, n: u32) -> bool {
        self.fresh() >= n || self.fresh() + self.free.values().map(|leaf| leaf.len() as u32).sum::<u32>() >= n
    }

    /// Takes `n` slots, in one leaf where that is possible; `None` when there are not enough.
    pub fn take(&mut self, n: u32) -> Option<Vec<Slot>> {
        // A look at a few leaves is enough: what does not fit there stays for smaller requests.
        let fitting = self.free.iter().take(8).find(|(_, leaf)| leaf.len() as u32 >= n).map(|(leaf, _)| *leaf);
        if let Some(leaf) = fitting {
            return Some(self.take_free(leaf, n));
        }
        if self.fresh() >= n {
            let first = self.next;
            self.next += n;
            return Some((first..first + n).map(Slot).collect());
        }
        if !self.has(n) {
            return None;
        }
        let mut slots = Vec::with_capacity(n as usize);
        while slots.len() < n as usize {
            let wanted = n - slots.len() as u32;
            match self.free.first_key_value().map(|(leaf, free)| (*leaf, free.len() as u32)) {
                Some((leaf, there)) => slots.extend(self.take_free(leaf, wanted.min(there))),
                None => {
                    slots.extend((self.next..self.next + wanted).map(Slot));
                    self.next += wanted;
                }
            }
        }
        Some(slots)
    }

    fn take_free(&mut self, leaf: u32, n: u32) -> Vec<Slot> {
        let free = self.free.get_mut(&leaf).expect("the caller found this leaf");
        let taken: Vec<Slot> = (0..n).filter_map(|_| free.pop_first()).map(Slot).collect();
        if free.is_empty() {
            self.free.remove(&leaf);
        }
        taken
    }

    /// Slots that are free again: their key was replaced, or what was to use them did not commit.
    pub fn give_back(&mut self, slots: &[Slot], hold_back: bool) {
        for slot in slots.iter().map(|slot| slot.0).filter(|slot| (RESERVED..SLOTS).contains(slot)) {
            if hold_back {
                self.held_back.push(slot);
            } else {
                self.free.entry(slot / FAN).or_default().insert(slot);
            }
        }
    }

    /// What waits for a rewritten key archive now.
    pub fn held_back(&self) -> HeldBack {
        (self.reading, self.held_back.len())
    }

    /// The key archive was rewritten: what was held back before it began may be given.
    pub fn covered(&mut self, before: HeldBack) {
        if before.0 == self.reading {
            let slots: Vec<Slot> = self.held_back.drain(..before.1).map(Slot).collect();
            self.give_back(&slots, false);
        }
    }

    /// Which leaves to birth so that `n` fresh slots are there: as many as there are, at most 120, and at least enough.
    /// Empty when the tree is full.
    pub fn to_birth(&self, n: u32) -> Range<u32> {
        let enough = (n.saturating_sub(self.fresh())).div_ceil(FAN);
        let count = self.born.clamp(1, MOST_BORN).max(enough);
        self.born..(self.born + count).min(LEAVES)
    }

    /// These leaves are born and covered.
    pub fn born(&mut self, leaves: &Range<u32>) {
        debug_assert_eq!(leaves.start, self.born);
        self.born = leaves.end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn empty() -> Slots {
        Slots::new(&SlotUse { next: Slot(0), free: vec![] }, 1, false)
    }

    #[test]
    fn leaf_0_starts_behind_the_reserved_slots_and_leaves_double() {
        let mut slots = empty();
        assert_eq!(slots.take(2), Some(vec![Slot(16), Slot(17)]));
        assert_eq!(slots.take(200), None);
        for want in [1..2, 2..4, 4..8, 8..16, 16..32, 32..64, 64..128, 128..248, 248..368] {
            assert_eq!(slots.to_birth(1), want);
            slots.born(&want);
        }
        assert_eq!(empty().to_birth(1000), 1..9);
        let mut full = Slots::new(&SlotUse { next: Slot(SLOTS), free: vec![] }, LEAVES, false);
        assert!(full.to_birth(1).is_empty());
        assert_eq!(full.take(1), None);
    }

    #[test]
    fn reserved_slots_are_never_given_back_and_uncovered_ones_wait() {
        let mut slots = Slots::new(&SlotUse { next: Slot(120), free: vec![Slot(3), Slot(50)] }, 1, true);
        assert_eq!(slots.take(1), None);
        let before = slots.held_back();
        slots.give_back(&[Slot(51)], true);
        slots.covered((before.0 + 1_000_000, 1));
        assert_eq!(slots.take(1), None, "of another reading");
        slots.covered(before);
        assert_eq!(slots.take(1), Some(vec![Slot(50)]), "and not what was dropped meanwhile");
        assert_eq!(slots.take(1), None);
        slots.give_back(&[Slot(60), Slot(0)], false);
        assert_eq!(slots.take(1), Some(vec![Slot(60)]));
        assert_eq!(slots.take(1), None);
    }

    proptest! {
        /// No slot is given twice, none is reserved or unborn, and the count asked for comes.
        #[test]
        fn no_slot_is_given_twice(steps in prop::collection::vec((0u8..3, 1u32..40), 1..200)) {
            let mut slots = empty();
            let mut given = BTreeSet::new();
            for (what, n) in steps {
                match what {
                    0 => while !slots.has(n) {
                        let birth = slots.to_birth(n);
                        slots.born(&birth);
                    },
                    1 => if let Some(taken) = slots.take(n) {
                        prop_assert_eq!(taken.len(), n as usize);
                        for slot in taken {
                            prop_assert!(slot.0 >= RESERVED && slot.0 < slots.born * FAN);
                            prop_assert!(given.insert(slot));
                        }
                    } else {
                        prop_assert!(!slots.has(n));
                    },
                    _ => {
                        let back: Vec<Slot> = given.iter().step_by(3).take(n as usize).copied().collect();
                        for slot in &back {
                            given.remove(slot);
                        }
                        slots.give_back(&back, false);
                    }
                }
            }
        }
    }
}
