//! When values end: retention, overrides of a plan, holds, grace.

use super::compiled::Policy;
use super::file::HoldFrom;
use super::period::{Expiry, Period};
use super::rules::{ClassRule, OverrideRule};
use crate::access::ClassSet;
use crate::clock::Timestamp;
use crate::ids::{ClassNo, Name};

/// Why a retention override is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverrideRefusal {
    /// The group has no plan, or one that the policy does not have.
    NoPlan,
    /// The plan does not allow to override this class.
    NotInPlan { line: u32 },
    /// The plan allows another span of time.
    OutOfBounds { at_least: Period, at_most: Period, line: u32 },
}

impl Policy {
    /// The end of a value of that class and origin; `None`: it is kept until it is erased. `group_override` is the
    /// retention that the subject's group set, which [`Policy::check_override`] allowed. Where the policy has changed
    /// since and the class has no retention or a smaller maximum now, the policy counts.
    pub fn expiry(&self, class: ClassNo, group_override: Option<Period>, origin: Timestamp) -> Option<Expiry> {
        let rule = self.class(class)?;
        let kept = match (rule.retention?, group_override, rule.max_retention) {
            (_, Some(wanted), Some(max)) if wanted.longer_than(max) => max,
            (_, Some(wanted), _) => wanted,
            (usual, None, _) => usual,
        };
        Some(Expiry::of(kept, origin, self.zone()))
    }

    /// Whether a group of that plan may set this retention for that class.
    ///
    /// # Errors
    /// The rule that refuses it.
    pub fn check_override(&self, plan: Option<&Name>, class: ClassNo, wanted: Period) -> Result<(), OverrideRefusal> {
        let plan = plan.and_then(|name| self.plan(name)).ok_or(OverrideRefusal::NoPlan)?;
        let bounds = plan.overrides.iter().find(|o| o.class == class);
        let bounds = bounds.ok_or(OverrideRefusal::NotInPlan { line: plan.line })?;
        if wanted.longer_than(bounds.at_most) || bounds.at_least.longer_than(wanted) {
            let OverrideRule { at_least, at_most, line, .. } = *bounds;
            return Err(OverrideRefusal::OutOfBounds { at_least, at_most, line });
        }
        Ok(())
    }

    /// Until when the class's own hold keeps a value of that origin if its subject is erased at `erased`; `None`: there
    /// is no hold, or it is over for this value.
    pub fn held_until(&self, class: ClassNo, origin: Timestamp, erased: Timestamp) -> Option<Timestamp> {
        let hold = self.class(class)?.hold.as_ref()?;
        let until = match hold.from {
            HoldFrom::Origin => hold.keep.after(origin, self.zone()),
            HoldFrom::Erase => hold.keep.after(erased, self.zone()),
        };
        (until > erased).then_some(until)
    }

    /// When a class of a subject closed at `closed` is erased; `None`: at once.
    pub fn grace_ends(&self, class: ClassNo, closed: Timestamp) -> Option<Timestamp> {
        Some(self.class(class)?.grace?.after(closed, self.zone()))
    }

    /// Classes whose stored values end at another time than under `previous`, so that they have to be resealed.
    pub fn retention_changed_since(&self, previous: &Policy) -> ClassSet {
        let calendar_moved = self.time_zone() != previous.time_zone();
        let differs = |class: &&ClassRule| match previous.class(class.no) {
            Some(before) => {
                let on_calendar = !matches!(class.retention, None | Some(Period::Days(_)));
                before.retention != class.retention
                    || before.max_retention != class.max_retention
                    || (calendar_moved && on_calendar)
            }
            None => false,
        };
        self.classes().filter(differs).map(|c| c.no.0.into()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{NUMBERS, at, name, policy};
    use super::*;
    use crate::ids::PolicyVersion;

    #[test]
    fn retention_holds_and_grace_end() {
        let p = policy();
        let origin = at("2026-01-01T00:00:00Z");
        assert_eq!(p.expiry(ClassNo(1), None, origin), None);
        assert_eq!(p.expiry(ClassNo(1), Some(Period::Days(9)), origin), None, "nothing to override");
        assert_eq!(p.expiry(ClassNo(2), None, origin).unwrap().at, at("2026-04-01T00:00:00Z"));
        assert_eq!(p.expiry(ClassNo(2), Some(Period::Days(180)), origin).unwrap().at, at("2026-06-30T00:00:00Z"));
        let capped = p.expiry(ClassNo(2), Some(Period::Years(9)), origin).unwrap();
        assert_eq!(capped.at, at("2029-01-01T00:00:00Z"), "a maximum is not extended");
        assert_eq!(i64::from(capped.bucket.0), at("2029-01-31T00:00:00Z").day());
        assert_eq!(p.held_until(ClassNo(16), origin, at("2026-06-01T00:00:00Z")), Some(at("2033-01-01T00:00:00Z")));
        assert_eq!(p.held_until(ClassNo(16), origin, at("2033-01-01T00:00:00Z")), None, "over");
        assert_eq!(p.held_until(ClassNo(1), origin, origin), None);
        assert_eq!(p.grace_ends(ClassNo(1), origin), Some(at("2026-01-31T00:00:00Z")));
        assert_eq!(p.grace_ends(ClassNo(2), origin), None);
    }

    #[test]
    fn an_override_needs_a_plan_that_allows_it() {
        let p = policy();
        let (enterprise, free) = (name("enterprise"), name("free"));
        assert_eq!(p.check_override(None, ClassNo(2), Period::Days(60)), Err(OverrideRefusal::NoPlan));
        assert_eq!(p.check_override(Some(&name("gold")), ClassNo(2), Period::Days(60)), Err(OverrideRefusal::NoPlan));
        assert!(matches!(
            p.check_override(Some(&free), ClassNo(2), Period::Days(60)),
            Err(OverrideRefusal::NotInPlan { .. })
        ));
        assert!(matches!(
            p.check_override(Some(&enterprise), ClassNo(1), Period::Days(60)),
            Err(OverrideRefusal::NotInPlan { .. })
        ));
        for (wanted, good) in
            [("29d", false), ("30d", true), ("3y", true), ("36mo", true), ("37mo", false), ("4y", false)]
        {
            let wanted = Period::parse(wanted).unwrap();
            assert_eq!(p.check_override(Some(&enterprise), ClassNo(2), wanted).is_ok(), good, "{wanted}");
        }
    }

    #[test]
    fn a_changed_retention_is_seen() {
        let p = policy();
        let text = NUMBERS.replace("retention = \"90d\"", "retention = \"80d\"");
        let (next, findings) = Policy::compile(&text, PolicyVersion(2), Some(&p)).unwrap_or_else(|f| panic!("{f:?}"));
        assert!(findings.iter().any(|f| f.rule == "retention-changed"));
        assert_eq!(next.retention_changed_since(&p).iter().collect::<Vec<_>>(), [2]);
        assert!(p.retention_changed_since(&p).is_empty());
        assert_ne!(next.sha256(), p.sha256());
        let loaded = Policy::load(&text, PolicyVersion(2)).unwrap_or_else(|f| panic!("{f:?}"));
        assert!(
            loaded.sha256() == next.sha256()
                && loaded.fields().eq(next.fields())
                && loaded.classes().eq(next.classes())
        );
        let reused = NUMBERS.replace("type = \"integer\"", "type = \"flag\"");
        assert!(Policy::compile(&reused, PolicyVersion(2), Some(&p)).is_err());
    }
}
