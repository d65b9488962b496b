//! Decisions: whether an ask may have a field, in which view, and by which rule not. They compare bits and numbers;
//! they neither allocate nor look at a name.

use super::compiled::Policy;
use super::facts::{OfAge, Place, SubjectFacts};
use super::file::RecipientView;
use super::rules::{FieldRule, PurposeRule};
use crate::access::{Grant, Verb, View};
use crate::clock::Timestamp;
use crate::ids::{FieldNo, GroupNo, PurposeNo, RecipientNo};

/// What is asked of the policy: everything but the field.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// The caller's grants, of all its roles.
    pub grants: &'a [Grant],
    pub verb: Verb,
    pub purpose: PurposeNo,
    /// Group of the subject.
    pub group: Option<GroupNo>,
    /// `None`: the most telling view there may be.
    pub view: Option<View>,
    /// An approval that fits the call was presented.
    pub approved: bool,
    /// The reference of a case was given.
    pub referenced: bool,
    /// A reason in words was given.
    pub reasoned: bool,
    /// Who gets the values; `None`: they stay with the caller.
    pub recipient: Option<RecipientNo>,
    /// What is on record about the subject.
    pub facts: SubjectFacts<'a>,
    /// The tenant's time.
    pub now: Timestamp,
}

/// The answer for one field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It may be had in this view; `grant` is the index, in the ask, of the grant that gave it.
    Allow {
        view: View,
        grant: u16,
    },
    Deny(Denial),
}

/// Why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denial {
    pub rule: Rule,
    /// Line of the policy file; 0: the rule is not in the file.
    pub line: u32,
}

/// The rules that can deny, in the order in which they are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rule {
    /// The policy has no such field.
    UnknownField,
    /// The policy has no such purpose.
    UnknownPurpose,
    /// No grant has the verb.
    VerbNotGranted,
    /// No grant has the purpose.
    PurposeNotGranted,
    /// No grant that has verb and purpose has the field.
    FieldNotGranted,
    /// The grants that would allow it are for other groups of subjects.
    GroupNotGranted,
    /// The policy does not allow the field for the purpose.
    PurposeNotAllowed,
    /// The class is kept by a hold, for another purpose than this.
    HeldForAnotherPurpose,
    /// The person is younger than the age limit.
    TooYoung,
    /// The person had the use of the class restricted.
    Restricted,
    /// The person objected to the purpose.
    Objected,
    /// The purpose, or a write of the field, needs a consent, and there is none on record that counts.
    ConsentMissing,
    /// The subject's group is in a region to which the policy lets data go on a basis only, and it has none.
    TransferBasisMissing,
    /// The purpose gives values away and the call names no recipient.
    RecipientNeeded,
    /// The policy has no such recipient, or not for this purpose or field.
    RecipientUnlisted,
    /// The agreement with the recipient is over.
    DpaExpired,
    /// The recipient may have tokens only, and this version makes none.
    TokensNotMade,
    /// The purpose needs the approval of a second person.
    ApprovalNeeded,
    /// The purpose needs a reference.
    ReferenceNeeded,
    /// The purpose needs a reason.
    ReasonNeeded,
    /// A plain view was asked for where only a masked one is granted.
    ViewNotGranted,
    /// Only a masked view may be had and the field has no mask.
    NoMask,
    /// The field takes no writes any more.
    FieldRetired,
}

impl Rule {
    /// Stable name, for explanations.
    pub const fn name(self) -> &'static str {
        match self {
            Rule::UnknownField => "unknown-field",
            Rule::UnknownPurpose => "unknown-purpose",
            Rule::VerbNotGranted => "verb-not-granted",
            Rule::PurposeNotGranted => "purpose-not-granted",
            Rule::FieldNotGranted => "field-not-granted",
            Rule::GroupNotGranted => "group-not-granted",
            Rule::PurposeNotAllowed => "purpose-not-allowed",
            Rule::HeldForAnotherPurpose => "held-for-another-purpose",
            Rule::TooYoung => "too-young",
            Rule::Restricted => "restricted",
            Rule::Objected => "objected",
            Rule::ConsentMissing => "consent-missing",
            Rule::TransferBasisMissing => "transfer-basis-missing",
            Rule::RecipientNeeded => "recipient-needed",
            Rule::RecipientUnlisted => "recipient-unlisted",
            Rule::DpaExpired => "dpa-expired",
            Rule::TokensNotMade => "tokens-not-made",
            Rule::ApprovalNeeded => "approval-needed",
            Rule::ReferenceNeeded => "reference-needed",
            Rule::ReasonNeeded => "reason-needed",
            Rule::ViewNotGranted => "view-not-granted",
            Rule::NoMask => "no-mask",
            Rule::FieldRetired => "field-retired",
        }
    }

    /// What a partial answer says in place of a value that this rule denies.
    pub const fn absence(self) -> Withheld {
        match self {
            Rule::ConsentMissing => Withheld::NoConsent,
            Rule::Objected => Withheld::Objected,
            Rule::Restricted | Rule::HeldForAnotherPurpose => Withheld::Restricted,
            _ => Withheld::Denied,
        }
    }
}

/// Why a value is withheld, in the words of a partial answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Withheld {
    NoConsent,
    Objected,
    Restricted,
    Denied,
}

impl Policy {
    /// Whether the ask may have that field. `held_for` is the purpose for which a hold keeps the field's class after
    /// an erasure; `None` when no erasure waits for a hold.
    pub fn decide(&self, ask: &Ask<'_>, field: FieldNo, held_for: Option<PurposeNo>) -> Decision {
        let Some(rule) = self.field(field) else { return deny(Rule::UnknownField, 0) };
        let Some(purpose) = self.purpose(ask.purpose) else { return deny(Rule::UnknownPurpose, 0) };
        let covering = |g: &Grant| g.covers(field, ask.purpose, ask.verb, ask.group);
        // The grant that shows most: roles add up.
        let mut best: Option<(u16, View)> = None;
        for (i, grant) in ask.grants.iter().enumerate() {
            if covering(grant) && best.is_none_or(|(_, view)| grant.max_view > view) {
                best = Some((i as u16, grant.max_view));
            }
        }
        let Some((grant, granted)) = best else { return deny(why_not_granted(ask, field), 0) };
        if !purpose.fields.has(field.0) {
            return deny(Rule::PurposeNotAllowed, purpose.line);
        }
        if held_for.is_some_and(|held| held != ask.purpose) {
            let hold = self.class(rule.class).and_then(|c| c.hold.as_ref());
            return deny(Rule::HeldForAnotherPurpose, hold.map_or(0, |h| h.line));
        }
        if let Some(denial) = self.person_says_no(ask, purpose, rule) {
            return Decision::Deny(denial);
        }
        let mut most = granted.min(purpose.max_view);
        match self.recipient_view(ask, purpose, field) {
            Ok(view) => most = most.min(view),
            Err(denial) => return Decision::Deny(denial),
        }
        if purpose.needs_approval && !ask.approved {
            return deny(Rule::ApprovalNeeded, purpose.line);
        }
        if purpose.needs_reference && !ask.referenced {
            return deny(Rule::ReferenceNeeded, purpose.line);
        }
        if purpose.needs_reason && !ask.reasoned {
            return deny(Rule::ReasonNeeded, purpose.line);
        }
        if ask.verb == Verb::Write && rule.retired {
            return deny(Rule::FieldRetired, rule.line);
        }
        let view = match ask.view {
            None => most,
            Some(asked) if asked <= most => asked,
            Some(_) => {
                let by_recipient =
                    ask.recipient.and_then(|no| self.recipient(no)).filter(|r| r.view != RecipientView::Plain);
                let by_purpose = (purpose.max_view < granted).then_some(purpose.line);
                return deny(Rule::ViewNotGranted, by_recipient.map(|r| r.line).or(by_purpose).unwrap_or(0));
            }
        };
        // A mask is a way of showing: what is written or deleted is not shown.
        let shows = matches!(ask.verb, Verb::Read | Verb::Export);
        if shows && view == View::Masked && rule.mask.is_none() {
            return deny(Rule::NoMask, rule.line);
        }
        Decision::Allow { view, grant }
    }

    /// What is on record about the person and keeps the value back. Deleting is always in the person's favour.
    fn person_says_no(&self, ask: &Ask<'_>, purpose: &PurposeRule, rule: &FieldRule) -> Option<Denial> {
        let no = |rule, line| Some(Denial { rule, line });
        let facts = &ask.facts;
        if ask.verb != Verb::Delete {
            if facts.age == OfAge::No && !purpose.lawful {
                return no(Rule::TooYoung, self.age().map_or(0, |age| age.line));
            }
            if facts.restricted.has(rule.class.0.into()) && !purpose.lawful {
                return no(Rule::Restricted, 0);
            }
            if facts.objected.has(purpose.no.0) && purpose.objectable {
                return no(Rule::Objected, purpose.line);
            }
        }
        let consented = |to: &PurposeRule| facts.consent(to.no, to.consent_since, ask.now).is_some();
        if purpose.consent.has(rule.no.0) && !consented(purpose) {
            return no(Rule::ConsentMissing, purpose.line);
        }
        if ask.verb == Verb::Write
            && let Some(needed) = rule.consent
            && !self.purpose(needed).is_some_and(consented)
        {
            return no(Rule::ConsentMissing, rule.line);
        }
        if let Place::Outside(basis) = facts.place
            && let Some(transfer) = self.transfer_rule()
            && !basis.is_some_and(|basis| transfer.groups.iter().any(|b| b.value == basis))
        {
            return no(Rule::TransferBasisMissing, transfer.line);
        }
        None
    }

    /// The most telling view that the recipient of the ask may have.
    fn recipient_view(&self, ask: &Ask<'_>, purpose: &PurposeRule, field: FieldNo) -> Result<View, Denial> {
        let no = |rule, line| Err(Denial { rule, line });
        // What is written or deleted goes nowhere.
        if !matches!(ask.verb, Verb::Read | Verb::Export) {
            return Ok(View::Plain);
        }
        let Some(number) = ask.recipient else {
            return if purpose.needs_recipient { no(Rule::RecipientNeeded, purpose.line) } else { Ok(View::Plain) };
        };
        let Some(recipient) = self.recipient(number) else { return no(Rule::RecipientUnlisted, 0) };
        if !recipient.purposes.has(purpose.no.0) || !recipient.fields.has(field.0) {
            return no(Rule::RecipientUnlisted, recipient.line);
        }
        if recipient.dpa_ends.is_some_and(|end| ask.now >= end) {
            return no(Rule::DpaExpired, recipient.line);
        }
        if recipient.stranded {
            return no(Rule::TransferBasisMissing, recipient.line);
        }
        match recipient.view {
            RecipientView::Plain => Ok(View::Plain),
            RecipientView::Masked => Ok(View::Masked),
            RecipientView::Tokens => no(Rule::TokensNotMade, recipient.line),
        }
    }

    /// The decision in words, for `TestAccess`: names of the policy, never a value.
    pub fn explain(&self, ask: &Ask<'_>, field: FieldNo, decision: &Decision) -> String {
        let purpose = self.purpose(ask.purpose).map_or("of that number", |p| p.name.as_str());
        let (field_name, class) = match self.field(field) {
            Some(f) => (f.name.as_str(), self.class(f.class).map_or("of that number", |c| c.name.as_str())),
            None => ("of that number", "of that number"),
        };
        let verb = ask.verb.name();
        match decision {
            Decision::Allow { view, .. } => {
                format!("field {field_name}, class {class}: {verb} for purpose {purpose}, {} view", view.name())
            }
            Decision::Deny(denial) => match denial.rule {
                Rule::UnknownField => "the policy has no field of that number".into(),
                Rule::UnknownPurpose => "the policy has no purpose of that number".into(),
                Rule::VerbNotGranted => format!("no grant has the verb {verb}"),
                Rule::PurposeNotGranted => format!("no grant with the verb {verb} has purpose {purpose}"),
                Rule::FieldNotGranted => {
                    format!("no grant with the verb {verb} and purpose {purpose} has field {field_name}, class {class}")
                }
                Rule::GroupNotGranted => "the grants that would allow it are for other groups of subjects".into(),
                Rule::PurposeNotAllowed => {
                    format!("purpose {purpose} does not allow field {field_name}, class {class}")
                }
                Rule::HeldForAnotherPurpose => {
                    format!("class {class} is held after an erasure, not for purpose {purpose}")
                }
                Rule::TooYoung => "the person is younger than the age limit".into(),
                Rule::Restricted => format!("the person had the use of class {class} restricted"),
                Rule::Objected => format!("the person objected to purpose {purpose}"),
                Rule::ConsentMissing => match self.field(field).and_then(|f| f.consent).and_then(|no| self.purpose(no))
                {
                    Some(needed) if ask.verb == Verb::Write && needed.line != denial.line => {
                        format!(
                            "a write of field {field_name} needs a consent to purpose {}, and none counts",
                            needed.name
                        )
                    }
                    _ => format!("purpose {purpose} needs a consent, and none is on record"),
                },
                Rule::TransferBasisMissing => "there is no basis for a transfer to that region".into(),
                Rule::RecipientNeeded => format!("purpose {purpose} gives values away: name the recipient"),
                Rule::RecipientUnlisted => {
                    let recipient = ask.recipient.and_then(|no| self.recipient(no));
                    let recipient = recipient.map_or("of that number", |r| r.name.as_str());
                    format!("recipient {recipient} is not listed for purpose {purpose} and field {field_name}")
                }
                Rule::DpaExpired => "the agreement with the recipient is over".into(),
                Rule::TokensNotMade => "the recipient may have tokens only, which this version does not make".into(),
                Rule::ApprovalNeeded => format!("purpose {purpose} needs the approval of a second person"),
                Rule::ReferenceNeeded => format!("purpose {purpose} needs a reference"),
                Rule::ReasonNeeded => format!("purpose {purpose} needs a reason"),
                Rule::ViewNotGranted => format!("field {field_name} may be seen masked only, for purpose {purpose}"),
                Rule::NoMask => format!("field {field_name} may be seen masked only, and has no mask"),
                Rule::FieldRetired => format!("field {field_name} is retired and takes no writes"),
            },
        }
    }
}

fn deny(rule: Rule, line: u32) -> Decision {
    Decision::Deny(Denial { rule, line })
}

/// The first of verb, purpose, field, group that no grant has together with those before it.
fn why_not_granted(ask: &Ask<'_>, field: FieldNo) -> Rule {
    let mut grants = ask.grants.iter().filter(|g| g.verbs.has(ask.verb)).peekable();
    if grants.peek().is_none() {
        return Rule::VerbNotGranted;
    }
    let mut grants = grants.filter(|g| g.purposes.has(ask.purpose.0)).peekable();
    if grants.peek().is_none() {
        return Rule::PurposeNotGranted;
    }
    if grants.any(|g| g.fields.has(field.0)) { Rule::GroupNotGranted } else { Rule::FieldNotGranted }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{NUMBERS, policy};
    use super::*;
    use crate::access::{FieldSet, PurposeSet, VerbSet};
    use crate::ids::ClassNo;
    use proptest::prelude::*;

    fn grant(fields: FieldSet, max_view: View) -> Grant {
        Grant {
            fields,
            purposes: PurposeSet::ALL,
            verbs: [Verb::Read, Verb::Write, Verb::Export].into_iter().collect(),
            max_view,
            groups: None,
        }
    }
    fn ask(grants: &[Grant], purpose: u16) -> Ask<'_> {
        Ask {
            grants,
            verb: Verb::Read,
            purpose: PurposeNo(purpose),
            group: None,
            view: None,
            approved: false,
            referenced: false,
            reasoned: false,
            recipient: None,
            facts: SubjectFacts::NONE,
            now: Timestamp(0),
        }
    }
    fn rule(decision: Decision) -> Rule {
        match decision {
            Decision::Deny(denial) => denial.rule,
            Decision::Allow { view, .. } => panic!("allowed, {}", view.name()),
        }
    }

    #[test]
    fn a_refusal_names_its_rule_and_line() {
        let p = policy();
        let all = [grant(FieldSet::ALL, View::Plain)];
        let deny = |a: &Ask<'_>, f: u16| rule(p.decide(a, FieldNo(f), None));
        assert_eq!(p.decide(&ask(&all, 1), FieldNo(1), None), Decision::Allow { view: View::Plain, grant: 0 });
        assert_eq!(deny(&ask(&all, 1), 9), Rule::UnknownField);
        assert_eq!(deny(&ask(&all, 9), 1), Rule::UnknownPurpose);
        assert_eq!(deny(&ask(&[], 1), 1), Rule::VerbNotGranted);
        assert_eq!(deny(&Ask { verb: Verb::Erase, ..ask(&all, 1) }, 1), Rule::VerbNotGranted);
        let mut one = [grant([1u16].into_iter().collect(), View::Plain)];
        assert_eq!(deny(&ask(&one, 1), 2), Rule::FieldNotGranted);
        one[0].purposes = [2u16].into_iter().collect();
        assert_eq!(deny(&ask(&one, 1), 1), Rule::PurposeNotGranted);
        one[0].purposes = PurposeSet::ALL;
        one[0].groups = Some(Box::new([GroupNo(1)]));
        assert_eq!(deny(&ask(&one, 1), 1), Rule::GroupNotGranted);
        assert_eq!(deny(&Ask { group: Some(GroupNo(2)), ..ask(&one, 1) }, 1), Rule::GroupNotGranted);
        assert_eq!(
            p.decide(&Ask { group: Some(GroupNo(1)), ..ask(&one, 1) }, FieldNo(1), None),
            Decision::Allow { view: View::Plain, grant: 0 }
        );
        let denied = p.decide(&ask(&all, 1), FieldNo(1023), None);
        let line = p.purpose(PurposeNo(1)).unwrap().line;
        assert_eq!(denied, Decision::Deny(Denial { rule: Rule::PurposeNotAllowed, line }));
        assert!(NUMBERS.lines().nth(line as usize - 1).unwrap().starts_with("number = 1"));
        assert_eq!(
            p.explain(&ask(&all, 1), FieldNo(1023), &denied),
            "purpose service does not allow field invoice, class billing"
        );
        assert_eq!(deny(&ask(&all, 3), 1), Rule::ConsentMissing);
        assert_eq!(deny(&Ask { verb: Verb::Write, ..ask(&all, 2) }, 1023), Rule::FieldRetired);
    }

    #[test]
    fn approval_reference_and_reason_are_all_needed() {
        let p = policy();
        let all = [grant(FieldSet::ALL, View::Plain)];
        let mut a = ask(&all, 255);
        assert_eq!(rule(p.decide(&a, FieldNo(1), None)), Rule::ApprovalNeeded);
        a.approved = true;
        assert_eq!(rule(p.decide(&a, FieldNo(1), None)), Rule::ReferenceNeeded);
        a.referenced = true;
        assert_eq!(rule(p.decide(&a, FieldNo(1), None)), Rule::ReasonNeeded);
        a.reasoned = true;
        assert_eq!(p.decide(&a, FieldNo(1), None), Decision::Allow { view: View::Plain, grant: 0 });
        assert_eq!(rule(p.decide(&a, FieldNo(2), None)), Rule::PurposeNotAllowed, "an exception");
    }

    #[test]
    fn the_most_careful_view_counts() {
        let p = policy();
        let masked = [grant(FieldSet::ALL, View::Masked)];
        let both = [grant(FieldSet::ALL, View::Masked), grant([1u16].into_iter().collect(), View::Plain)];
        let view = |a: &Ask<'_>, f: u16| p.decide(a, FieldNo(f), None);
        assert_eq!(view(&ask(&masked, 1), 1), Decision::Allow { view: View::Masked, grant: 0 });
        assert_eq!(rule(view(&Ask { view: Some(View::Plain), ..ask(&masked, 1) }, 1)), Rule::ViewNotGranted);
        assert_eq!(view(&ask(&both, 1), 1), Decision::Allow { view: View::Plain, grant: 1 });
        assert_eq!(
            view(&ask(&both, 5), 1),
            Decision::Allow { view: View::Masked, grant: 1 },
            "the purpose justifies no more"
        );
        assert_eq!(
            view(&Ask { view: Some(View::Masked), ..ask(&both, 1) }, 1),
            Decision::Allow { view: View::Masked, grant: 1 }
        );
        assert_eq!(rule(view(&ask(&masked, 1), 2)), Rule::NoMask);
        assert!(matches!(view(&Ask { verb: Verb::Write, ..ask(&masked, 1) }, 2), Decision::Allow { .. }));
    }

    #[test]
    fn a_held_class_is_read_for_the_holds_purpose_only() {
        let p = policy();
        let all = [grant(FieldSet::ALL, View::Plain)];
        let held_for = p.class(ClassNo(16)).unwrap().hold.as_ref().map(|h| h.purpose);
        assert_eq!(held_for, Some(PurposeNo(2)));
        assert!(matches!(p.decide(&ask(&all, 2), FieldNo(1023), held_for), Decision::Allow { .. }));
        let other = Ask { approved: true, referenced: true, reasoned: true, ..ask(&all, 255) };
        assert_eq!(rule(p.decide(&other, FieldNo(1023), held_for)), Rule::HeldForAnotherPurpose);
        assert!(matches!(p.decide(&other, FieldNo(1023), None), Decision::Allow { .. }));
    }

    proptest! {
        /// The decision against the same words said plainly, over random grants and asks.
        #[test]
        fn t23_a_decision_gives_no_more_than_grant_and_purpose(
            grants in prop::collection::vec((any::<u64>(), any::<u64>(), any::<bool>(), prop::option::of(1u32..3)), 0..4),
            purpose in prop::sample::select(vec![1u16, 2, 3, 4, 5, 255]),
            field in prop::sample::select(vec![0u16, 1, 2, 3, 700, 1023]),
            group in prop::option::of(1u32..3), plain: bool, extra: bool,
        ) {
            let p = policy();
            let pick = |bits: u64, of: &[u16]| of.iter().enumerate().filter(|(i, _)| bits >> i & 1 == 1).map(|(_, n)| *n).collect::<Vec<_>>();
            let list: Vec<Grant> = grants.iter().map(|(f, u, masked, g)| Grant {
                fields: pick(*f, &[1, 2, 700, 1023]).into_iter().collect(),
                purposes: pick(*u, &[1, 2, 3, 5, 255]).into_iter().collect(),
                verbs: VerbSet::from_iter([Verb::Read]),
                max_view: if *masked { View::Masked } else { View::Plain },
                groups: g.map(|g| vec![GroupNo(g)].into()),
            }).collect();
            let ask = Ask {
                view: plain.then_some(View::Plain), group: group.map(GroupNo),
                approved: extra, referenced: extra, reasoned: extra, ..ask(&list, purpose)
            };
            if let Decision::Allow { view, grant } = p.decide(&ask, FieldNo(field), None) {
                let rule = p.purpose(PurposeNo(purpose)).unwrap();
                prop_assert!(rule.fields.has(field) && !rule.consent.has(field) && (extra || !rule.needs_approval));
                let given = &list[usize::from(grant)];
                prop_assert!(given.fields.has(field) && given.purposes.has(purpose) && view <= given.max_view && view <= rule.max_view);
                prop_assert!(given.groups.is_none() || group.is_some_and(|g| given.groups.as_ref().unwrap().contains(&GroupNo(g))));
                prop_assert!(!plain || view == View::Plain);
                prop_assert!(view == View::Plain || p.field(FieldNo(field)).unwrap().mask.is_some());
            }
        }
    }
}
