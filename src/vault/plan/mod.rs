//! A policy's dry run on live data: which stored values would end sooner or later, which could not be read any more, and
//! which calls of the last days would be refused. Nothing is opened and nothing is changed: ends are in clear beside what
//! is sealed, and the rule that says what becomes of a value is the one that a changed retention is applied by.

mod callers;

use std::collections::{BTreeMap, HashMap};

use crate::access::{ClassSet, FieldSet};
use crate::audit::Action;
use crate::clock::Timestamp;
use crate::ids::*;
use crate::policy::compiled::{EarlyLoss, Policy};
use crate::policy::file::{Finding, Severity};
use crate::policy::period::Period;
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::carry::Fate;
use crate::vault::error::VaultError;
use crate::vault::group::GroupRetention;
use crate::vault::hold::Hold;
use crate::vault::policies::invalid;
use crate::vault::record::outline;
use crate::vault::retention::fate;

pub use callers::RefusedCalls;

/// Subjects of one page of the store.
const SUBJECTS: u32 = 2_000;
/// Items of one page.
const ITEMS: u32 = 10_000;

/// A file that could follow the version in force.
pub struct Draft {
    pub policy: Policy,
    /// Warnings and notes.
    pub findings: Vec<Finding>,
}

/// What would become of the values of one field.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FieldPlan {
    /// Stored, and not over by the present rules.
    pub stored: u64,
    /// End sooner; those that are over at once are among them.
    pub sooner: u64,
    /// End later or not at all.
    pub later: u64,
    /// Over at once.
    pub over: u64,
    /// Would end sooner if no hold kept them.
    pub held: u64,
    /// No purpose allows them any more.
    pub unreadable: u64,
}

/// What would happen if a file were applied.
pub struct Plan {
    /// Field 0: credentials of the tenant's users.
    pub fields: BTreeMap<(ClassNo, FieldNo), FieldPlan>,
    pub losses: Vec<EarlyLoss>,
    pub refused: Vec<RefusedCalls>,
    /// From when on the audit was looked at; `None`: not at all.
    pub audit_since: Option<Timestamp>,
    pub audit_entries: u64,
    pub subjects: u64,
    pub approval_needed: bool,
    pub at: Timestamp,
}

/// How far a plan is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanProgress {
    /// `records`, `items`, `audit`.
    pub step: &'static str,
    pub done: u64,
    /// 0: not known.
    pub total: u64,
}

/// Told how far a plan is; `false` stops it.
pub type Watch<'w> = &'w mut (dyn FnMut(PlanProgress) -> bool + Send);

/// What decides about a class of a subject besides the policy; most have nothing.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Special {
    chosen: Option<Period>,
    held: bool,
}

struct Look<'a> {
    next: &'a Policy,
    now: Timestamp,
    /// Classes whose values may end at another time.
    changed: ClassSet,
    /// Fields that no purpose would allow any more.
    unreadable: FieldSet,
    groups: HashMap<GroupNo, GroupRetention>,
    holds: Vec<Hold>,
    special: HashMap<(SubjectUid, ClassNo), Special>,
    fields: BTreeMap<(ClassNo, FieldNo), FieldPlan>,
}

impl Look<'_> {
    fn special_of(&self, group: Option<GroupNo>, row: &ClassRow) -> Special {
        let holds = |hold: &Hold| {
            hold.covers(row.class) && (hold.subject == Some(row.uid) || hold.group.is_some() && hold.group == group)
        };
        Special {
            chosen: group.and_then(|group| self.groups.get(&group)).and_then(|chosen| chosen.of(row.class)),
            held: row.state == ClassState::Restricted || self.holds.iter().any(holds),
        }
    }

    fn value(
        &mut self,
        class: ClassNo,
        field: FieldNo,
        origin: Timestamp,
        stored: (Bucket, Option<Timestamp>),
        special: Special,
    ) {
        if stored.1.is_some_and(|end| end <= self.now) {
            return;
        }
        let field = if field.is_own() { FieldNo(0) } else { field };
        let plan = self.fields.entry((class, field)).or_default();
        plan.stored += 1;
        plan.unreadable += u64::from(self.unreadable.has(field.0));
        if !self.changed.has(class.0.into()) {
            return;
        }
        let end = self.next.expiry(class, special.chosen, origin);
        let before = stored.1.map_or(i64::MAX, |at| at.0);
        let after = end.as_ref().map_or(i64::MAX, |end| end.at.0);
        match fate(end, stored, special.held, self.now) {
            Fate::Keep => plan.held += u64::from(after < before),
            Fate::Drop => {
                plan.sooner += 1;
                plan.over += 1;
            }
            Fate::Move { .. } => {
                plan.sooner += u64::from(after < before);
                plan.later += u64::from(after > before);
            }
        }
    }
}

/// Whether any purpose allows the field.
fn allowed(policy: &Policy, field: FieldNo) -> bool {
    policy.field(field).is_some() && policy.purposes().any(|purpose| purpose.fields.has(field.0))
}

impl Vault {
    /// Reads a file that could follow the version in force.
    ///
    /// # Errors
    /// `PolicyInvalid` with the lines.
    pub fn draft_policy(&self, call: &Call, text: &str) -> Result<Draft, VaultError> {
        self.may_set_policy(call)?;
        let version = PolicyVersion(call.tenant.settings.policy.map_or(1, |v| v.0 + 1));
        let (policy, findings) = Policy::compile(text, version, call.tenant.policy.as_deref()).map_err(invalid)?;
        debug_assert!(findings.iter().all(|f| f.severity != Severity::Error), "`compile` refuses errors");
        Ok(Draft { policy, findings })
    }

    /// What would happen if the draft were applied now. `days` of the audit are looked at for callers who would be refused.
    pub async fn plan_policy(
        &self,
        call: &Call,
        draft: &Draft,
        days: u32,
        watch: Watch<'_>,
    ) -> Result<Plan, VaultError> {
        self.may_set_policy(call)?;
        let next = &draft.policy;
        let mut plan = Plan {
            fields: BTreeMap::new(),
            losses: Vec::new(),
            refused: Vec::new(),
            audit_since: None,
            audit_entries: 0,
            subjects: 0,
            approval_needed: false,
            at: call.now,
        };
        if let Some(present) = call.tenant.policy.as_deref() {
            plan.losses = next.losses_since(present);
            plan.approval_needed = !plan.losses.is_empty() && self.loses_data(call.tenant.no).await?;
            let lost = present.fields().filter(|rule| allowed(present, rule.no) && !allowed(next, rule.no));
            let unreadable: FieldSet = lost.map(|rule| rule.no.0).collect();
            self.plan_values(call, present, next, unreadable, &mut plan, watch).await?;
            self.plan_calls(call, present, next, days, &mut plan, watch).await?;
        }
        self.note_listing(call, Action::PlanPolicy).await?;
        Ok(plan)
    }

    async fn plan_values(
        &self,
        call: &Call,
        present: &Policy,
        next: &Policy,
        unreadable: FieldSet,
        plan: &mut Plan,
        watch: Watch<'_>,
    ) -> Result<(), VaultError> {
        let tenant = call.tenant.no;
        let changed = next.retention_changed_since(present);
        let classes = changed.or(&present.classes_of(&unreadable));
        if classes.is_empty() {
            return Ok(());
        }
        let mut holds = self.all_holds(tenant).await?;
        holds.retain(|hold| hold.active(call.now));
        let groups = if next.plans().is_empty() { HashMap::new() } else { self.chosen_retentions(call).await? };
        let (special, fields) = (HashMap::new(), BTreeMap::new());
        let mut look = Look { next, now: call.now, changed, unreadable, groups, holds, special, fields };
        let total = self.store.subject_count(tenant).await?;
        let mut after = SubjectUid(0);
        loop {
            let page = self.store.survey(tenant, classes, after, SUBJECTS).await?;
            for (group, row) in page.rows.iter().filter(|(_, row)| row.slot.is_some()) {
                let special = look.special_of(*group, row);
                if special != Special::default() {
                    look.special.insert((row.uid, row.class), special);
                }
                for value in outline(&row.record).map_err(|_| VaultError::DataLoss)? {
                    look.value(row.class, value.field, value.origin, (value.bucket, value.expire), special);
                }
            }
            plan.subjects += u64::from(page.subjects);
            after = page.last;
            if !watch(PlanProgress { step: "records", done: plan.subjects, total: total.max(plan.subjects) }) {
                return Err(VaultError::Conflict);
            }
            if !page.more {
                break;
            }
        }
        let mut done = 0;
        for class in classes.iter().map(|no| ClassNo(no as u8)) {
            let mut after = None;
            loop {
                let page = self.store.item_times(tenant, class, after, ITEMS).await?;
                for item in &page.rows {
                    let special = match look.special.is_empty() {
                        true => Special::default(),
                        false => look.special.get(&(item.uid, class)).copied().unwrap_or_default(),
                    };
                    look.value(class, item.field, item.origin, (item.bucket, item.expire), special);
                }
                done += page.rows.len() as u64;
                if !page.rows.is_empty() && !watch(PlanProgress { step: "items", done, total: 0 }) {
                    return Err(VaultError::Conflict);
                }
                match page.rows.last() {
                    Some(last) if page.more => after = Some(*last),
                    _ => break,
                }
            }
        }
        plan.fields = look.fields;
        plan.fields.retain(|_, field| field.sooner + field.later + field.held + field.unreadable > 0);
        Ok(())
    }
}
