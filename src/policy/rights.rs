//! What a policy says about the rights of people: who is old enough, where data may go, how long a consent counts, by when
//! a request is due.

use super::compiled::Policy;
use super::date::Date;
use super::due::day_of;
use super::facts::{OfAge, Place};
use super::file::{RequestKind, Transfer};
use super::lint::is_outside;
use super::rules::ClockRule;
use crate::clock::Timestamp;
use crate::ids::{Name, PurposeNo};

impl Policy {
    /// Whether a person is old enough, from a date of birth or from what the person says. The date counts more.
    pub fn age_of(&self, birth: Option<Date>, attested: Option<bool>, now: Timestamp) -> OfAge {
        let Some(rule) = self.age() else { return OfAge::Unknown };
        let today = day_of(now, self.zone()).and_then(|d| Date::new(d.year().into(), d.month().into(), d.day().into()));
        let by_birth = birth.zip(today).map(|(birth, today)| birth.is_of_age(rule.limit, today));
        match by_birth.or(attested) {
            Some(true) => OfAge::Yes,
            Some(false) => OfAge::No,
            None => OfAge::Unknown,
        }
    }

    /// Where a group of that region is. A group whose region nobody stated counts as inside.
    pub fn place_of(&self, region: Option<&Name>, basis: Option<Transfer>) -> Place {
        match (self.transfer_rule(), region) {
            (Some(rule), Some(region)) if is_outside(rule, Some(region)) => Place::Outside(basis),
            _ => Place::Inside,
        }
    }

    /// From when a consent given, or last confirmed by use, at `seen` counts no longer; `None`: until it is withdrawn.
    pub fn consent_ends(&self, purpose: PurposeNo, seen: Timestamp) -> Option<Timestamp> {
        Some(self.purpose(purpose)?.consent_lasts?.after(seen, self.zone()))
    }

    /// The time limit for a request of somebody whose group is in `region`: the one of the region, else the general one,
    /// the shortest where there are several.
    pub fn clock(&self, request: RequestKind, region: Option<&Name>) -> Option<&ClockRule> {
        let of_kind = || self.clocks().iter().filter(|c| c.requests.contains(&request));
        let shortest = |c: &&ClockRule| c.within.longest_hours();
        let of_region = of_kind().filter(|c| region.is_some_and(|r| c.regions.contains(r))).min_by_key(shortest);
        of_region.or_else(|| of_kind().filter(|c| c.regions.is_empty()).min_by_key(shortest))
    }

    /// When a request that arrived at `start` is due.
    pub fn due(&self, request: RequestKind, region: Option<&Name>, start: Timestamp) -> Option<Timestamp> {
        Some(self.calendar().due(self.clock(request, region)?.within, start, self.zone()))
    }

    /// Whether a nominee named at `named` for these requests may make this one now.
    pub fn nominee_may(&self, request: RequestKind, scopes: &[RequestKind], named: Timestamp, now: Timestamp) -> bool {
        self.nominee().is_some_and(|rule| {
            let lasts = rule.lasts.is_none_or(|period| now < period.after(named, self.zone()));
            lasts && rule.scopes.contains(&request) && scopes.contains(&request)
        })
    }
}
