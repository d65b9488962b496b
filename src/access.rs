//! Words of access: what may be asked for (`Verb`), how a value is shown (`View`), sets of numbers as bits, and the
//! `Grant` that roles and access keys carry. Decisions about them are made a few floors up.

use crate::ids::{FieldNo, GroupNo, PurposeNo};

/// A set of small numbers as bits: `W` words hold 0 to `64 * W - 1`. Tests and intersections take no memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NumberSet<const W: usize>([u64; W]);

impl<const W: usize> NumberSet<W> {
    /// No number.
    pub const EMPTY: Self = NumberSet([0; W]);
    /// Every number that fits.
    pub const ALL: Self = NumberSet([u64::MAX; W]);
    /// The largest number a set can hold.
    pub const MAX: u16 = (W * 64 - 1) as u16;

    /// Adds a number; `false` when it is larger than [`Self::MAX`] and so was not added.
    pub fn insert(&mut self, n: u16) -> bool {
        match self.0.get_mut(usize::from(n >> 6)) {
            Some(word) => {
                *word |= 1 << (n & 63);
                true
            }
            None => false,
        }
    }

    /// Takes a number out.
    pub fn remove(&mut self, n: u16) {
        if let Some(word) = self.0.get_mut(usize::from(n >> 6)) {
            *word &= !(1 << (n & 63));
        }
    }

    /// Whether the number is in it; a number too large never is.
    pub fn has(&self, n: u16) -> bool {
        self.0.get(usize::from(n >> 6)).is_some_and(|word| word & (1 << (n & 63)) != 0)
    }

    /// Numbers in both.
    pub fn and(&self, other: &Self) -> Self {
        NumberSet(std::array::from_fn(|i| self.0[i] & other.0[i]))
    }

    /// Numbers in either.
    pub fn or(&self, other: &Self) -> Self {
        NumberSet(std::array::from_fn(|i| self.0[i] | other.0[i]))
    }

    /// Numbers of this set that the other does not have.
    pub fn minus(&self, other: &Self) -> Self {
        NumberSet(std::array::from_fn(|i| self.0[i] & !other.0[i]))
    }

    /// Whether every number of this set is in the other.
    pub fn within(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).all(|(a, b)| a & !b == 0)
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// How many numbers it holds.
    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The numbers, from the smallest.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.0.iter().enumerate().flat_map(|(i, word)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros())?;
                rest &= rest - 1;
                Some((i * 64) as u16 + bit as u16)
            })
        })
    }
}

impl<const W: usize> FromIterator<u16> for NumberSet<W> {
    /// Numbers too large are left out: check them where they enter.
    fn from_iter<I: IntoIterator<Item = u16>>(numbers: I) -> Self {
        let mut set = Self::EMPTY;
        for n in numbers {
            set.insert(n);
        }
        set
    }
}

/// Field numbers, 1 to 1,023.
pub type FieldSet = NumberSet<16>;
/// Purpose numbers, 1 to 255.
pub type PurposeSet = NumberSet<4>;
/// Class numbers, 1 to 16.
pub type ClassSet = NumberSet<1>;

macro_rules! verbs {
    ($($(#[$doc:meta])* $name:ident = $no:literal, $text:literal;)*) => {
        /// What a grant allows to do. The numbers are stored: never reuse one.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Verb { $($(#[$doc])* $name = $no,)* }
        impl Verb {
            /// All, in the order of their numbers.
            pub const ALL: &'static [Verb] = &[$(Verb::$name,)*];
            /// The name in a policy file, a request and a refusal.
            pub const fn name(self) -> &'static str {
                match self { $(Verb::$name => $text,)* }
            }
        }
    };
}
verbs! {
    /// Read values.
    Read = 1, "read";
    /// Set values, append items.
    Write = 2, "write";
    /// Delete values and items (which is not an erasure).
    Delete = 3, "delete";
    /// Find subjects by a searchable field.
    Find = 4, "find";
    /// Export everything a subject has.
    Export = 5, "export";
    /// Erase subjects, classes, fields, items; schedule and cancel.
    Erase = 6, "erase";
    /// Place a legal hold.
    Hold = 7, "hold";
    /// Release a legal hold.
    Release = 8, "release";
    /// Look at, list, close, reopen and touch subjects, without values.
    Subject = 9, "subject";
    /// Create and change groups of subjects.
    Group = 10, "group";
    /// Ask for an approval.
    Request = 11, "request";
    /// Approve or deny what another asked for.
    Approve = 12, "approve";
    /// Read and verify the audit.
    Audit = 13, "audit";
    /// Issue, rotate and revoke access keys; make roles.
    Access = 14, "access";
    /// Lint and apply policies.
    Policy = 15, "policy";
    /// Change the tenant's settings and keys; watch and steer operations.
    Operate = 16, "operate";
    /// Check what a user presents: a password, an API key, a code.
    Verify = 17, "verify";
    /// Set, import, remove and count users' passwords, API keys and codes.
    Credential = 18, "credential";
}

impl Verb {
    /// The verb of that name.
    pub fn parse(text: &str) -> Option<Verb> {
        Verb::ALL.iter().copied().find(|v| v.name() == text)
    }
    /// The verb of that number.
    pub fn from_no(no: u8) -> Option<Verb> {
        Verb::ALL.iter().copied().find(|v| *v as u8 == no)
    }
}

/// Verbs as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VerbSet(pub u32);

impl VerbSet {
    /// No verb.
    pub const EMPTY: VerbSet = VerbSet(0);
    /// Adds a verb.
    pub fn insert(&mut self, verb: Verb) {
        self.0 |= 1 << verb as u8;
    }
    /// Whether the verb is in it.
    pub fn has(self, verb: Verb) -> bool {
        self.0 & (1 << verb as u8) != 0
    }
    /// The verbs, by number.
    pub fn iter(self) -> impl Iterator<Item = Verb> {
        Verb::ALL.iter().copied().filter(move |v| self.has(*v))
    }
}
impl FromIterator<Verb> for VerbSet {
    fn from_iter<I: IntoIterator<Item = Verb>>(verbs: I) -> Self {
        let mut set = VerbSet::EMPTY;
        verbs.into_iter().for_each(|v| set.insert(v));
        set
    }
}

/// How a value is shown, from the least to the most telling; the smaller of two is the more careful.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum View {
    /// Only the part that the field's mask leaves.
    Masked = 1,
    /// The value itself.
    Plain = 2,
}

impl View {
    /// The name in a policy file.
    pub const fn name(self) -> &'static str {
        match self {
            View::Masked => "masked",
            View::Plain => "plain",
        }
    }
}

/// One permission, as numbers: everything in it must fit the call. Fields of whole classes are already spread out
/// against the policy in force (`Policy::field_set`), so that a decision tests one bit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Fields that may be touched.
    pub fields: FieldSet,
    /// Purposes that may be named.
    pub purposes: PurposeSet,
    /// What may be done.
    pub verbs: VerbSet,
    /// The most telling view that may be had.
    pub max_view: View,
    /// Only subjects of these groups; `None` is every subject. An empty list is nobody.
    pub groups: Option<Box<[GroupNo]>>,
}

impl Grant {
    /// Whether this grant covers that field, purpose and verb for a subject in `group` (its view is another question).
    pub fn covers(&self, field: FieldNo, purpose: PurposeNo, verb: Verb, group: Option<GroupNo>) -> bool {
        self.verbs.has(verb) && self.purposes.has(purpose.0) && self.fields.has(field.0) && self.covers_group(group)
    }

    /// Whether a subject of that group is inside the grant.
    pub fn covers_group(&self, group: Option<GroupNo>) -> bool {
        match (&self.groups, group) {
            (None, _) => true,
            (Some(list), Some(group)) => list.contains(&group),
            (Some(_), None) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn a_number_set_is_a_set(a in prop::collection::btree_set(0u16..1024, 0..40), b in prop::collection::btree_set(0u16..1024, 0..40)) {
            let (x, y): (FieldSet, FieldSet) = (a.iter().copied().collect(), b.iter().copied().collect());
            prop_assert_eq!(x.iter().collect::<BTreeSet<_>>(), a.clone());
            prop_assert_eq!(x.len(), a.len());
            prop_assert_eq!(x.and(&y).iter().collect::<BTreeSet<_>>(), &a & &b);
            prop_assert_eq!(x.or(&y).iter().collect::<BTreeSet<_>>(), &a | &b);
            prop_assert_eq!(x.minus(&y).iter().collect::<BTreeSet<_>>(), &a - &b);
            prop_assert_eq!(x.within(&y), a.is_subset(&b));
        }
    }

    #[test]
    fn numbers_that_do_not_fit_are_never_in_it() {
        let mut set = FieldSet::EMPTY;
        assert!(set.insert(1023) && !set.insert(1024));
        assert!(set.has(1023) && !set.has(1024) && !FieldSet::ALL.has(1024));
        set.remove(1023);
        assert!(set.is_empty());
    }

    #[test]
    fn verb_numbers_are_frozen() {
        let named: Vec<(u8, &str)> = Verb::ALL.iter().map(|v| (*v as u8, v.name())).collect();
        assert_eq!(named[0], (1, "read"));
        assert_eq!(named[5], (6, "erase"));
        assert_eq!(named[15], (16, "operate"));
        assert!(Verb::ALL.iter().all(|v| Verb::parse(v.name()) == Some(*v) && Verb::from_no(*v as u8) == Some(*v)));
    }

    #[test]
    fn an_empty_list_of_groups_is_nobody() {
        let mut grant = Grant {
            fields: FieldSet::ALL,
            purposes: PurposeSet::ALL,
            verbs: VerbSet::from_iter([Verb::Read]),
            max_view: View::Plain,
            groups: Some(Box::new([])),
        };
        assert!(!grant.covers_group(None) && !grant.covers_group(Some(GroupNo(1))));
        grant.groups = Some(Box::new([GroupNo(1)]));
        assert!(grant.covers(FieldNo(1), PurposeNo(1), Verb::Read, Some(GroupNo(1))));
        assert!(!grant.covers(FieldNo(1), PurposeNo(1), Verb::Read, None));
        assert!(!grant.covers(FieldNo(1), PurposeNo(1), Verb::Write, Some(GroupNo(1))));
    }
}
