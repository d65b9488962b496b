//! Who would be refused: calls of the last days, as the audit has them, asked again under another policy. What an entry
//! does not say is taken in the caller's favour, under both policies alike: what the person decided, which of the granted
//! groups the person was in. A call that was allowed brought what its purpose asked for, a reason, a reference, an
//! approval, and is taken to have brought no more; where the entry has a sealed detail, that is either of the first two.

use std::collections::{BTreeMap, HashMap};

use super::{Plan, PlanProgress, Watch};
use crate::access::{Grant, Verb};
use crate::audit::{Action, AuditRecord, Chain, Fields, Outcome};
use crate::auth::KeyId;
use crate::clock::{DAY_MS, Timestamp};
use crate::ids::*;
use crate::policy::compiled::{Ask, Decision, Policy, PurposeRule, SubjectFacts};
use crate::policy::facts::Consent;
use crate::vault::Vault;
use crate::vault::audit_read::EntryQuery;
use crate::vault::call::Call;
use crate::vault::error::VaultError;
use crate::vault::roles::compiled::CompiledRole;

/// Entries of a chain that are looked at, the newest; a plan takes a bounded time.
const ENTRIES: u64 = 4_000_000;
/// Groups of entries that are looked at between two reports of progress.
const GROUPS: usize = 10_000;

/// Calls of one kind that were allowed and would be refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedCalls {
    pub actor: ActorId,
    /// Roles of the access key.
    pub roles: Vec<Name>,
    pub verb: Verb,
    pub purpose: PurposeNo,
    pub recipient: RecipientNo,
    pub fields: Vec<FieldNo>,
    pub calls: u64,
    pub last: Timestamp,
    /// The rule that refuses, with its explanation.
    pub rule: String,
    pub line: u32,
}

/// Calls that are alike for a policy.
#[derive(PartialEq, Eq, Hash)]
struct Alike {
    actor: ActorId,
    verb: Verb,
    purpose: PurposeNo,
    recipient: RecipientNo,
    fields: Fields,
    /// A reason or a reference was given.
    detail: bool,
}

struct Seen {
    calls: u64,
    last: Timestamp,
}

type Tally = HashMap<Alike, Seen>;

fn count(tally: &mut Tally, record: &AuditRecord) {
    let Some(verb) = verb_of(record).filter(|_| !record.fields.is_empty()) else { return };
    let alike = Alike {
        actor: record.actor,
        verb,
        purpose: record.purpose,
        recipient: record.recipient,
        fields: record.fields.clone(),
        detail: record.detail.is_some(),
    };
    let seen = tally.entry(alike).or_insert(Seen { calls: 0, last: record.at });
    seen.calls += 1;
    seen.last = Timestamp(seen.last.0.max(record.at.0));
}

/// What an entry did to values; `None`: nothing that a policy decides field by field.
fn verb_of(record: &AuditRecord) -> Option<Verb> {
    if !matches!(record.outcome, Outcome::Ok | Outcome::Partial) || record.purpose.0 == 0 {
        return None;
    }
    match record.action {
        Action::GetFields | Action::ListItems | Action::GetItem => Some(Verb::Read),
        Action::PutFields | Action::AppendItems => Some(Verb::Write),
        Action::DeleteFields | Action::DeleteItems => Some(Verb::Delete),
        Action::FindSubjects => Some(Verb::Find),
        Action::ExportSubject => Some(Verb::Export),
        _ => None,
    }
}

impl Vault {
    pub(super) async fn plan_calls(
        &self,
        call: &Call,
        present: &Policy,
        next: &Policy,
        days: u32,
        plan: &mut Plan,
        watch: Watch<'_>,
    ) -> Result<(), VaultError> {
        if call.permit(Verb::Audit).is_err() {
            return Ok(());
        }
        let tenant = call.tenant.no;
        let mut since = Timestamp(call.wall.0 - i64::from(days) * DAY_MS);
        let mut tally = Tally::new();
        for chain in [Chain::Read, Chain::Change] {
            let (mut after, head) = self.audit_behind(tenant, chain, since).await?;
            if head - after > ENTRIES {
                after = head - ENTRIES;
                // Older ones are not looked at: the plan says from when on it knows.
                let first = self.entries(tenant, chain, EntryQuery::default(), after, 1).await?;
                since = first.entries.first().map_or(since, |(_, record)| Timestamp(since.0.max(record.at.0)));
            }
            let mut walk = self.walk_entries(tenant, chain, after).await?;
            loop {
                let from = since;
                let each = move |record: &AuditRecord, tally: &mut (Tally, u64)| {
                    if record.at >= from {
                        tally.1 += 1;
                        count(&mut tally.0, record);
                    }
                };
                let more;
                (walk, (tally, plan.audit_entries), more) =
                    self.step_entries(walk, GROUPS, (tally, plan.audit_entries), each).await?;
                if !watch(PlanProgress { step: "audit", done: plan.audit_entries, total: 0 }) {
                    return Err(VaultError::Conflict);
                }
                if !more {
                    break;
                }
            }
        }
        plan.audit_since = Some(since);
        plan.refused = self.refused_among(call, present, next, tally).await?;
        Ok(())
    }

    async fn refused_among(
        &self,
        call: &Call,
        present: &Policy,
        next: &Policy,
        tally: Tally,
    ) -> Result<Vec<RefusedCalls>, VaultError> {
        let roles = [
            self.compile_roles(&call.tenant, Some(present)).await?,
            self.compile_roles(&call.tenant, Some(next)).await?,
        ];
        let mut refused = Vec::new();
        for (one, seen) in tally {
            // A key of another kind, or one that is gone, makes no such call again.
            let Some(slot) = self.access.by_id(KeyId(one.actor.0)).filter(|slot| slot.tenant == call.tenant.no) else {
                continue;
            };
            let kept = slot.kept.load_full();
            if !kept.body.works(call.wall) {
                continue;
            }
            let grants = |roles: &BTreeMap<RoleNo, CompiledRole>| -> Vec<Grant> {
                let of = kept.body.roles.iter().filter_map(|no| roles.get(no));
                of.flat_map(|role| &role.grants).map(|grant| grant.grant.clone()).collect()
            };
            let (before, after) = (grants(&roles[0]), grants(&roles[1]));
            let mut told: HashMap<(u32, String), Vec<FieldNo>> = HashMap::new();
            let brought = present.purpose(one.purpose);
            let had = |asked: fn(&PurposeRule) -> bool| brought.is_some_and(asked);
            let case = Case {
                one: &one,
                given: seen.last,
                now: call.now,
                approved: had(|purpose| purpose.needs_approval),
                referenced: one.detail || had(|purpose| purpose.needs_reference),
                reasoned: one.detail || had(|purpose| purpose.needs_reason),
            };
            for field in one.fields.iter().filter(|field| !field.is_own()) {
                if !matches!(judge(present, &before, &case, field), (_, Decision::Allow { .. })) {
                    continue;
                }
                if let (rule, Decision::Deny(denial)) = judge(next, &after, &case, field) {
                    told.entry((denial.line, rule)).or_default().push(field);
                }
            }
            let named = kept.body.roles.iter().filter_map(|no| roles[0].get(no)).map(|role| role.name.clone());
            let named: Vec<Name> = named.collect();
            for ((line, rule), fields) in told {
                refused.push(RefusedCalls {
                    actor: one.actor,
                    roles: named.clone(),
                    verb: one.verb,
                    purpose: one.purpose,
                    recipient: one.recipient,
                    fields,
                    calls: seen.calls,
                    last: seen.last,
                    rule,
                    line,
                });
            }
        }
        refused.sort_by(|a, b| (b.calls, a.actor, &a.rule).cmp(&(a.calls, b.actor, &b.rule)));
        Ok(refused)
    }
}

/// A kind of call, with what its entries leave open.
struct Case<'a> {
    one: &'a Alike,
    /// When a consent may have been given, at the latest.
    given: Timestamp,
    now: Timestamp,
    approved: bool,
    referenced: bool,
    reasoned: bool,
}

/// What a policy says to such a call, in words and as a decision: the best answer that any of the granted groups gives.
fn judge(policy: &Policy, grants: &[Grant], case: &Case<'_>, field: FieldNo) -> (String, Decision) {
    let consent = |no: PurposeNo| Consent { purpose: no, policy: [0; 32], given: case.given, until: None };
    let consents: Vec<Consent> = policy.purposes().map(|purpose| consent(purpose.no)).collect();
    let mut groups: Vec<Option<GroupNo>> = vec![None];
    groups.extend(grants.iter().filter_map(|grant| grant.groups.as_deref()).flatten().map(|group| Some(*group)));
    let mut answer = None;
    for group in groups {
        let ask = Ask {
            grants,
            verb: case.one.verb,
            purpose: case.one.purpose,
            group,
            view: None,
            approved: case.approved,
            referenced: case.referenced,
            reasoned: case.reasoned,
            recipient: (case.one.recipient.0 != 0).then_some(case.one.recipient),
            facts: SubjectFacts { consents: &consents, ..SubjectFacts::NONE },
            now: case.now,
        };
        let decision = policy.decide(&ask, field, None);
        let words = match &decision {
            Decision::Allow { .. } => return (String::new(), decision),
            Decision::Deny(denial) => format!("{}: {}", denial.rule.name(), policy.explain(&ask, field, &decision)),
        };
        answer.get_or_insert((words, decision));
    }
    answer.expect("there is always the answer for no group")
}
