//! What is on record about a subject, as far as decisions need it: numbers and bits that the vault fills in once, when it
//! loads a subject, so that a decision looks nothing up and counts no calendar.

use super::file::Transfer;
use crate::access::{ClassSet, PurposeSet};
use crate::clock::Timestamp;
use crate::ids::PurposeNo;

/// A consent that was given and not withdrawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Consent {
    pub purpose: PurposeNo,
    /// SHA-256 of the policy file under which it was given: what the person agreed to.
    pub policy: [u8; 32],
    pub given: Timestamp,
    /// It counts no longer from this moment: `Policy::consent_ends`, from the day it was given or last confirmed by use.
    pub until: Option<Timestamp>,
}

/// Whether a subject is old enough, by `Policy::age_of`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfAge {
    /// Nothing is known, or there is no limit.
    Unknown,
    Yes,
    No,
}

/// Where a subject's group is, by `Policy::place_of`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Nothing is known, there is no rule, or it is inside.
    Inside,
    /// Outside, with what lets its data cross the border.
    Outside(Option<Transfer>),
}

/// Facts about one subject. There is no default: who has no facts says so with [`SubjectFacts::NONE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubjectFacts<'a> {
    /// In force, in any order.
    pub consents: &'a [Consent],
    /// Purposes to which the person objected.
    pub objected: PurposeSet,
    /// Classes whose use the person had restricted.
    pub restricted: ClassSet,
    pub age: OfAge,
    pub place: Place,
}

impl SubjectFacts<'static> {
    /// Nothing is on record: no consent, no objection, no restriction, no age, no place.
    pub const NONE: SubjectFacts<'static> = SubjectFacts {
        consents: &[],
        objected: PurposeSet::EMPTY,
        restricted: ClassSet::EMPTY,
        age: OfAge::Unknown,
        place: Place::Inside,
    };
}

impl SubjectFacts<'_> {
    /// The consent for a purpose that counts at `now`, if it was not given before `since`.
    pub fn consent(&self, purpose: PurposeNo, since: Option<Timestamp>, now: Timestamp) -> Option<&Consent> {
        let counts = |c: &&Consent| {
            c.purpose == purpose
                && since.is_none_or(|since| c.given >= since)
                && c.until.is_none_or(|until| now < until)
        };
        self.consents.iter().find(counts)
    }
}
