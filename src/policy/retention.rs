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

/// Something that a version of the policy takes away earlier than the one before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EarlyLoss {
    pub class: ClassNo,
    /// Key of the file that is shorter.
    pub key: &'static str,
    /// What was and what is, as the file writes it.
    pub before: String,
    pub after: String,
    /// Line of the later file.
    pub line: u32,
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

    /// What this version takes away earlier than `previous` would: values that end sooner, holds and times of grace that
    /// are shorter. Empty: nothing that is stored goes before the time that it was stored for.
    pub fn losses_since(&self, previous: &Policy) -> Vec<EarlyLoss> {
        let mut found = Vec::new();
        for class in self.classes() {
            let Some(before) = previous.class(class.no) else { continue };
            let mut say = |key, was: Option<String>, is: Option<String>| {
                let (before, after) = (was.unwrap_or_else(|| "none".into()), is.unwrap_or_else(|| "none".into()));
                found.push(EarlyLoss { class: class.no, key, before, after, line: self.retention_line(class) });
            };
            let text = |period: Option<Period>| period.map(|p| p.to_string());
            // No retention is the longest there is.
            if sooner(class.retention, before.retention) {
                say("retention", text(before.retention), text(class.retention));
            }
            let had_overrides = before.retention.is_some();
            if had_overrides && sooner(class.max_retention, before.max_retention) {
                say("max_retention", text(before.max_retention), text(class.max_retention));
            }
            let on_calendar = matches!(class.retention, Some(Period::Months(_) | Period::Years(_)));
            if on_calendar && self.time_zone() != previous.time_zone() {
                say("time_zone", Some(previous.time_zone().into()), Some(self.time_zone().into()));
            }
            // No grace and no hold are the shortest there are.
            if let Some(was) = before.grace
                && class.grace.is_none_or(|is| is.may_be_shorter_than(was))
            {
                say("grace", text(before.grace), text(class.grace));
            }
            if let Some(was) = &before.hold {
                let is = class.hold.as_ref();
                let shorter = is.is_none_or(|is| is.keep.may_be_shorter_than(was.keep));
                let begins = is.is_some_and(|is| (was.from, is.from) == (HoldFrom::Erase, HoldFrom::Origin));
                if shorter || begins {
                    let words = |hold: &super::rules::HoldRule| match hold.from {
                        HoldFrom::Origin => format!("{} from origin", hold.keep),
                        HoldFrom::Erase => format!("{} from erase", hold.keep),
                    };
                    say("hold", Some(words(was)), is.map(words));
                }
            }
        }
        found
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

/// Whether `now` ends before `was`; `None` is no end.
fn sooner(now: Option<Period>, was: Option<Period>) -> bool {
    match (now, was) {
        (Some(_), None) => true,
        (Some(now), Some(was)) => now.may_be_shorter_than(was),
        (None, _) => false,
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
    fn what_goes_earlier_is_named_and_what_stays_longer_is_not() {
        let before = policy();
        let losses = |from: &str, to: &str| -> Vec<(u8, &str, String, String)> {
            let text = NUMBERS.replacen(from, to, 1);
            assert_ne!(text, NUMBERS, "{from}");
            let next = Policy::load(&text, PolicyVersion(2)).unwrap_or_else(|f| panic!("{f:?}"));
            let all = next.losses_since(&before);
            assert!(all.iter().all(|loss| loss.line > 0));
            all.into_iter().map(|loss| (loss.class.0, loss.key, loss.before, loss.after)).collect()
        };
        let one = |class, key, was: &str, is: &str| vec![(class, key, was.to_owned(), is.to_owned())];
        assert_eq!(losses("retention = \"90d\"", "retention = \"89d\""), one(2, "retention", "90d", "89d"));
        assert_eq!(losses("retention = \"90d\"", "retention = \"91d\""), []);
        assert_eq!(losses("retention = \"90d\"", "retention = \"none\""), []);
        assert_eq!(losses("max_retention = \"3y\"", "max_retention = \"2y\""), one(2, "max_retention", "3y", "2y"));
        assert_eq!(losses("grace = \"30d\"", "grace = \"29d\""), one(1, "grace", "30d", "29d"));
        let hold = one(16, "hold", "7y from origin", "6y from origin");
        assert_eq!(losses("keep = \"7y\"", "keep = \"6y\""), hold);
        assert_eq!(losses("keep = \"7y\"", "keep = \"8y\""), []);
        assert_eq!(before.losses_since(&before), []);
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
