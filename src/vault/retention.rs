//! A changed retention: stored values move into the buckets that they would get today. Two causes: a policy that says
//! another period, and a group that chose one. What is over by the new rule is shredded at once, by moving what
//! survives of that class to a new data key.
//!
//! Resumable: the cursor over the subjects is stored with each batch, beside an operation that callers can look at.

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use crate::access::ClassSet;
use crate::audit::{Action, Outcome};
use crate::clock::Timestamp;
use crate::ids::*;
use crate::keyring::SwapError;
use crate::policy::period::Expiry;
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::carry::{Fate, Stored, drop_terms};
use crate::vault::error::VaultError;
use crate::vault::expiry::Progress;
use crate::vault::operation::{Operation, OperationKind, OperationStatus, put_operation};
use crate::vault::to_json;

/// Key of the setting that says by which policy stored values end.
const BY_POLICY: &[u8] = b"retention";
/// Prefix of the settings that say which groups chose another retention; the group's number follows.
const BY_GROUP: &[u8] = b"regroup";
/// Calls that began under the former policy have ended after so long; their values are moved too.
const SETTLED_MS: i64 = 120_000;
/// Subjects handled together, so that their swaps are one.
const TOGETHER: u32 = 100;

/// By which policy stored values end.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ByPolicy {
    policy: PolicyVersion,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    running: Option<Running>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Running {
    to: PolicyVersion,
    operation: ObjectId,
    after: SubjectUid,
}

/// Adds to a change of a group that its subjects' values end at another time.
pub(crate) fn regroup(tenant: TenantNo, group: GroupNo, revision: Revision, change: &mut ChangeSet) {
    let key = [BY_GROUP, &group.0.to_be_bytes()].concat();
    let body = SubjectUid(0).0.to_be_bytes().to_vec();
    change.change(Mutation::PutObject(ObjectRow { tenant, kind: ObjectKind::Setting, key, revision, body }));
}

/// What becomes of a value that would end at `end` by the present rules and is stored to end in `stored`. `kept`: a hold
/// keeps its class.
pub(crate) fn fate(end: Option<Expiry>, stored: (Bucket, Option<Timestamp>), kept: bool, now: Timestamp) -> Fate {
    let (bucket, expire) = end.map_or((Bucket::NONE, None), |e| (e.bucket, Some(e.at)));
    match expire {
        _ if (bucket, expire) == stored => Fate::Keep,
        // A hold keeps what would go, and what it moved on already.
        _ if kept && bucket != Bucket::NONE && bucket <= stored.0 => Fate::Keep,
        Some(at) if at <= now => Fate::Drop,
        _ => Fate::Move { bucket, expire },
    }
}

impl Vault {
    /// Moves values whose retention changed, of about `limit` subjects.
    pub async fn apply_retention(&self, call: &Call, limit: u64) -> Result<Progress, VaultError> {
        self.require_trusted_clock()?;
        let mut progress = self.follow_policy(call, limit).await?;
        if progress.done < limit {
            progress.add(self.follow_groups(call, limit - progress.done).await?);
        }
        Ok(progress)
    }

    async fn follow_policy(&self, call: &Call, limit: u64) -> Result<Progress, VaultError> {
        let Some(active) = call.tenant.settings.policy else { return Ok(Progress::default()) };
        let (tenant, kind, key) = (call.tenant.no, ObjectKind::Setting, BY_POLICY.to_vec());
        let stored = self.store.object(tenant, kind, key.clone()).await?;
        let (mut state, mut revision) = match &stored {
            Some(row) => {
                (serde_json::from_slice::<ByPolicy>(&row.body).map_err(|_| VaultError::DataLoss)?, row.revision)
            }
            None => (ByPolicy { policy: PolicyVersion(1), running: None }, Revision(0)),
        };
        let put = |state: &ByPolicy, revision: &mut Revision, change: &mut ChangeSet| {
            change.require(Precondition::ObjectAt { tenant, kind, key: key.clone(), revision: *revision });
            *revision = Revision(revision.0 + 1);
            let row = ObjectRow { tenant, kind, key: key.clone(), revision: *revision, body: to_json(state) };
            change.change(Mutation::PutObject(row));
        };
        if state.running.is_none() {
            if state.policy == active {
                return Ok(Progress::default());
            }
            let applied = self.policy_applied(tenant, active).await?;
            if applied.plus_ms(SETTLED_MS) > call.wall {
                return Ok(Progress { done: 0, more: false });
            }
            let mut change = ChangeSet::default();
            if self.changed_classes(tenant, state.policy, active).await?.is_empty() {
                state.policy = active;
                put(&state, &mut revision, &mut change);
                self.store.commit(change).await?;
                return Ok(Progress::default());
            }
            let operation = Operation::new(call, OperationKind::Reseal, OperationStatus::Running);
            put_operation(tenant, &operation, None, &mut change);
            state.running = Some(Running { to: active, operation: operation.id, after: SubjectUid(0) });
            put(&state, &mut revision, &mut change);
            self.store.commit(change).await?;
        }
        let mut done = 0;
        while let Some(running) = state.running.clone() {
            if done >= limit {
                return Ok(Progress { done, more: true });
            }
            let classes = self.changed_classes(tenant, state.policy, running.to).await?;
            let page = self.store.list_subjects(tenant, None, running.after, TOGETHER).await?;
            let moved = self.reshelve_all(call, &page.rows, &classes).await?;
            done += page.rows.len() as u64;
            let (former, at) = self.operation(tenant, running.operation).await?;
            let mut next = Operation { updated: call.now, ..former.clone() };
            next.done += moved;
            match page.rows.last() {
                Some(last) if page.more => {
                    next.cursor = Some(last.subject.uid.0);
                    state.running = Some(Running { after: last.subject.uid, ..running });
                }
                _ => {
                    next.status = OperationStatus::Done;
                    state = ByPolicy { policy: running.to, running: None };
                }
            }
            let mut change = ChangeSet::default();
            put(&state, &mut revision, &mut change);
            put_operation(tenant, &next, Some((&former, at)), &mut change);
            if moved > 0 || state.running.is_none() {
                let mut entry = call.record(Action::Resealed, Outcome::Ok);
                entry.operation = Some(next.id);
                change.note(tenant, entry.to_bytes());
            }
            self.store.commit(change).await?;
        }
        Ok(Progress { done, more: false })
    }

    /// Classes whose values end at another time after any of the policies between two versions.
    async fn changed_classes(
        &self,
        tenant: TenantNo,
        from: PolicyVersion,
        to: PolicyVersion,
    ) -> Result<ClassSet, VaultError> {
        let mut changed = ClassSet::EMPTY;
        let mut before = self.compile_stored(tenant, from).await?;
        for version in from.0 + 1..=to.0 {
            let after = self.compile_stored(tenant, PolicyVersion(version)).await?;
            changed = changed.or(&after.retention_changed_since(&before));
            before = after;
        }
        Ok(changed)
    }

    async fn follow_groups(&self, call: &Call, limit: u64) -> Result<Progress, VaultError> {
        let (tenant, kind) = (call.tenant.no, ObjectKind::Setting);
        let mut done = 0;
        let marks = self.store.objects(tenant, kind, BY_GROUP.to_vec(), BY_GROUP.to_vec(), 100).await?;
        let mut classes = ClassSet::EMPTY;
        call.tenant.policy()?.classes().for_each(|rule| {
            classes.insert(rule.no.0.into());
        });
        for mark in &marks.rows {
            let group: [u8; 4] =
                mark.key.get(BY_GROUP.len()..).and_then(|b| b.try_into().ok()).ok_or(VaultError::DataLoss)?;
            let group = GroupNo(u32::from_be_bytes(group));
            let after: [u8; 8] = mark.body.as_slice().try_into().map_err(|_| VaultError::DataLoss)?;
            let mut after = SubjectUid(i64::from_be_bytes(after));
            loop {
                if done >= limit {
                    return Ok(Progress { done, more: true });
                }
                let page = self.store.list_subjects(tenant, Some(group), after, TOGETHER).await?;
                self.reshelve_all(call, &page.rows, &classes).await?;
                done += page.rows.len() as u64;
                let mut change = ChangeSet::default();
                let key = mark.key.clone();
                change.require(Precondition::ObjectAt { tenant, kind, key: key.clone(), revision: mark.revision });
                let ended = !page.more || page.rows.is_empty();
                if let Some(last) = page.rows.last().filter(|_| !ended) {
                    after = last.subject.uid;
                    let body = after.0.to_be_bytes().to_vec();
                    change.change(Mutation::PutObject(ObjectRow { body, ..mark.clone() }));
                } else {
                    change.change(Mutation::DeleteObject { tenant, kind, key });
                    change.note(tenant, call.record(Action::Resealed, Outcome::Ok).to_bytes());
                }
                match self.store.commit(change).await {
                    Ok(_) if ended => break,
                    Ok(_) => {}
                    // The group chose again: from its first subject, at the next run.
                    Err(StoreError::Conflict(_)) => return Ok(Progress { done, more: true }),
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(Progress { done, more: marks.more })
    }

    async fn reshelve_all(
        &self,
        call: &Call,
        subjects: &[std::sync::Arc<SubjectSnapshot>],
        classes: &ClassSet,
    ) -> Result<u64, VaultError> {
        let each = subjects.iter().flat_map(|snapshot| {
            let rows = snapshot.classes.iter().filter(|row| row.slot.is_some() && classes.has(row.class.0.into()));
            rows.map(|row| self.reshelve(call, row.uid, row.class))
        });
        let mut moved = 0;
        for result in join_all(each).await {
            moved += result?;
        }
        Ok(moved)
    }

    /// Moves the values of a class to where they end by the present rules; answers how many moved or went.
    pub(crate) async fn reshelve(&self, call: &Call, uid: SubjectUid, class: ClassNo) -> Result<u64, VaultError> {
        for _ in 0..6 {
            let Some(snapshot) = self.store.subject_by_uid(uid).await? else { return Ok(0) };
            let subject = &snapshot.subject;
            let Some(row) = snapshot.class(class).filter(|row| row.slot.is_some()) else { return Ok(0) };
            let policy = call.tenant.policy()?.clone();
            let group = self.group_retention(call, subject.group).await?;
            let kept = row.state == ClassState::Restricted || self.placed_until(call, subject, class).await?.is_some();
            let rule = |stored: &Stored| {
                let end = policy.expiry(class, group.of(class), stored.origin);
                fate(end, (stored.bucket, stored.expire), kept, call.now)
            };
            let mut change = ChangeSet::default();
            let groups = self.store.item_groups(uid, None).await?;
            let carried = self.carry(call, row, &groups, None, None, &rule, &mut change).await?;
            let count = u64::from(carried.seals) + carried.dropped.len() as u64;
            if count == 0 && !carried.touched {
                return Ok(0);
            }
            if !carried.dropped.is_empty() {
                if self.searchable_among(call, &carried.dropped)? {
                    self.owe_search(call).await?;
                }
                match self.shred_now(call, subject, row, &rule).await {
                    Ok(()) => return Ok(count),
                    Err(VaultError::Conflict) => continue,
                    // Too many to carry over at once: gone from here now, and for good with their bucket.
                    Err(VaultError::WrongState(why)) => {
                        tracing::warn!(uid = uid.0, why, "not shredded before its bucket")
                    }
                    Err(error) => return Err(error),
                }
                crate::vault::hold::require_no_hold(subject, class, &mut change);
            }
            self.put_carried(row, &carried, &mut change).await?;
            match self.store.commit(change).await {
                Ok(_) => return Ok(count),
                Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(VaultError::Conflict)
    }

    /// Whether one of these values could be searched for.
    pub(crate) fn searchable_among(&self, call: &Call, values: &[Stored]) -> Result<bool, VaultError> {
        let policy = call.tenant.policy()?;
        Ok(values.iter().any(|value| policy.field(value.field).is_some_and(|rule| rule.searchable)))
    }

    /// Moves a class to its next data key without the values that the rule drops.
    async fn shred_now(
        &self,
        call: &Call,
        subject: &SubjectRow,
        row: &ClassRow,
        rule: crate::vault::carry::Rule<'_>,
    ) -> Result<(), VaultError> {
        let (tenant, uid, class) = (row.tenant, row.uid, row.class);
        let mut change = ChangeSet::default();
        crate::vault::hold::require_no_hold(subject, class, &mut change);
        let rekeyed = self.rekey(call, row, rule, &mut change).await?;
        drop_terms(tenant, uid, &rekeyed.dropped, &mut change);
        let mut entry = call.record(Action::RetentionEnded, Outcome::Ok);
        (entry.subject, entry.class) = (Some(uid), Some(class));
        change.note(tenant, entry.to_bytes());
        match self.swap_rekeyed(call, rekeyed, change).await {
            // The old root is overwritten before the next swap.
            Ok(_) | Err(SwapError::Unfinished { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// When a version of the policy was applied, by the machine's clock.
    async fn policy_applied(&self, tenant: TenantNo, version: PolicyVersion) -> Result<Timestamp, VaultError> {
        let key = version.0.to_be_bytes().to_vec();
        let row = self.store.object(tenant, ObjectKind::Policy, key).await?.ok_or(VaultError::DataLoss)?;
        #[derive(Deserialize)]
        struct Applied {
            applied: Timestamp,
        }
        let body: Applied = serde_json::from_slice(&row.body).map_err(|_| VaultError::DataLoss)?;
        Ok(body.applied)
    }
}
