//! Erasing a group, now or later: every subject it owns under one operation with one receipt, whose Merkle root is over the members.
//!
//! Members go in order of creation, which is the order of their slots, so many to a swap that each leaf of the key tree
//! is written once. Each swap moves the operation's cursor on in its own change set, so that it goes on after a crash
//! where it stopped, and two who drive it never do a member twice. Members that a hold keeps get an operation of their
//! own, which ends when the hold does.

use crate::access::Verb;
use crate::audit::{Action, Outcome};
use crate::clock::Timestamp;
use crate::ids::*;
use crate::keyring::ledger::{LedgerEntry, LedgerKind};
use crate::keyring::{SwapError, SwapOp};
use crate::receipt::{Member, commitment, members};
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::{Call, Context};
use crate::vault::erase::{Erasure, Plan, erased_entries, salt};
use crate::vault::error::VaultError;
use crate::vault::feed::{EventKind, FeedEvent};
use crate::vault::group::GroupState;
use crate::vault::hold::Hold;
use crate::vault::ledger::ledger_entry;
use crate::vault::operation::*;
use crate::vault::request::Request;
use crate::vault::rights::disclosures::{GivenRow, tell};
use crate::vault::to_json;

/// Members erased with one swap.
pub const MEMBERS_AT_ONCE: u32 = 1_000;

/// One member of the chunk at hand.
struct Doomed {
    snapshot: std::sync::Arc<SubjectSnapshot>,
    plan: Plan,
    member: Member,
    /// What others were given of it.
    copies: Vec<GivenRow>,
}

impl Vault {
    /// Erases every subject of a group, and the group. Answers when all is done, or (unless `wait_final`) after the
    /// first part; a job does the rest.
    pub async fn erase_group(
        &self,
        call: &Call,
        context: &Context,
        group: &SubjectId,
        request: Option<Request>,
        wait_final: bool,
    ) -> Result<Erasure, VaultError> {
        call.permit(Verb::Erase)?;
        if let Some(operation) = self.repeated_operation(call, request.as_ref()).await? {
            return self.answer_erasure(call, operation, wait_final, true).await;
        }
        let (mut operation, mut revision) = self.begin_group(call, context, group, request.as_ref()).await?;
        loop {
            (operation, revision) = self.erase_members(call, operation, revision).await?;
            if !wait_final || operation.status != OperationStatus::Running {
                return self.answer_erasure(call, operation, false, true).await;
            }
        }
    }

    /// Erases a group at `due` or after the policy's longest time of grace. Until then it is closed: nobody joins, its
    /// subjects are read and written as before.
    pub async fn schedule_group(
        &self,
        call: &Call,
        context: &Context,
        group: &SubjectId,
        due: Option<Timestamp>,
        request: Option<Request>,
        validate_only: bool,
    ) -> Result<Erasure, VaultError> {
        call.permit(Verb::Erase)?;
        if let Some(operation) = self.repeated_operation(call, request.as_ref()).await? {
            return self.answer_erasure(call, operation, false, true).await;
        }
        let tenant = call.tenant.no;
        let no = self.group_no(call, group).await?;
        call.permit_for(Verb::Erase, Some(no))?;
        let policy = call.tenant.policy()?;
        let grace = || policy.classes().filter_map(|class| policy.grace_ends(class.no, call.now)).max();
        let due = self.due_date(call, due, grace)?;
        for _ in 0..4 {
            let mut change = ChangeSet::default();
            let former = self.set_group_state(call, no, GroupState::Closed, &mut change).await?;
            if former == GroupState::Erased {
                return Err(VaultError::WrongState("the group is erased"));
            }
            let open = self.open_operations(tenant, SubjectUid(0)).await?;
            if open.iter().any(|(one, _)| one.kind == OperationKind::EraseGroup && one.group == Some(no)) {
                return Err(VaultError::WrongState("the group's erasure is scheduled or under way"));
            }
            let mut operation = Operation::new(call, OperationKind::EraseGroup, OperationStatus::Scheduled);
            (operation.group, operation.due) = (Some(no), Some(due));
            operation.was_closed = former == GroupState::Closed;
            if validate_only {
                return Ok(Erasure { operation, receipt: None, salt: None });
            }
            put_operation(tenant, &operation, None, &mut change);
            let mut entry = call.record(Action::ScheduleErasure, Outcome::Ok);
            entry.operation = Some(operation.id);
            self.attach_detail(call, context, &mut entry, &[]).await?;
            change.note(tenant, entry.to_bytes());
            self.remember(call, request.as_ref(), &operation.id, &mut change);
            match self.store.commit(change).await {
                Ok(_) => {
                    let entry = ledger_entry(call, LedgerKind::Scheduled, SubjectUid(0), operation.id);
                    self.ledger(vec![LedgerEntry { until: due, number: no.0, ..entry }]).await?;
                    return self.answer_erasure(call, operation, false, true).await;
                }
                Err(error) => self.retry_or_answer(call, error, request.as_ref()).await?,
            }
        }
        Err(VaultError::Conflict)
    }

    /// The date of a scheduled erasure of a group has come.
    pub(crate) async fn begin_scheduled_group(
        &self,
        call: &Call,
        operation: Operation,
        revision: Revision,
    ) -> Result<Operation, VaultError> {
        if operation.due.is_some_and(|due| due > call.now) {
            return Ok(operation);
        }
        let group = operation.group.ok_or(VaultError::DataLoss)?;
        let mut change = ChangeSet::default();
        let mut next = Operation { updated: call.now, due: None, ..operation.clone() };
        // Erased by another operation meanwhile: there is nothing left to do.
        let gone = self.group_by_no(call, group).await?.state == GroupState::Erased;
        if gone {
            next.status = OperationStatus::Cancelled;
        } else {
            (next.status, next.cursor) = (OperationStatus::Running, Some(0));
            self.set_group_state(call, group, GroupState::Closed, &mut change).await?;
        }
        let action = if gone { Action::CancelErasure } else { Action::EraseRequested };
        let revision = self.advance_operation(call, &operation, revision, &next, action, change).await?;
        match gone {
            true => Ok(next),
            false => Ok(self.erase_members(call, next, revision).await?.0),
        }
    }

    /// Closes the group, so that nobody joins any more, and makes the operation.
    async fn begin_group(
        &self,
        call: &Call,
        context: &Context,
        group: &SubjectId,
        request: Option<&Request>,
    ) -> Result<(Operation, Revision), VaultError> {
        let tenant = call.tenant.no;
        let no = self.group_no(call, group).await?;
        call.permit_for(Verb::Erase, Some(no))?;
        for _ in 0..4 {
            let mut change = ChangeSet::default();
            if self.set_group_state(call, no, GroupState::Closed, &mut change).await? == GroupState::Erased {
                return Err(VaultError::WrongState("the group is erased"));
            }
            let mut operation = Operation::new(call, OperationKind::EraseGroup, OperationStatus::Running);
            operation.group = Some(no);
            operation.cursor = Some(0);
            put_operation(tenant, &operation, None, &mut change);
            let mut entry = call.record(Action::EraseRequested, Outcome::Ok);
            entry.operation = Some(operation.id);
            self.attach_detail(call, context, &mut entry, &[]).await?;
            change.note(tenant, entry.to_bytes());
            self.remember(call, request, &operation.id, &mut change);
            match self.store.commit(change).await {
                Ok(_) => return Ok((operation, Revision(1))),
                Err(error) => self.retry_or_answer(call, error, request).await?,
            }
        }
        Err(VaultError::Conflict)
    }

    /// Erases the next members of a group, or ends the operation when there are none; answers its new state.
    pub(crate) async fn erase_members(
        &self,
        call: &Call,
        operation: Operation,
        revision: Revision,
    ) -> Result<(Operation, Revision), VaultError> {
        let tenant = call.tenant.no;
        let after = SubjectUid(operation.cursor.unwrap_or(0));
        let page = self.store.list_subjects(tenant, operation.group, after, MEMBERS_AT_ONCE).await?;
        let Some(last) = page.rows.last().map(|snapshot| snapshot.subject.uid) else {
            return self.end_group(call, operation, revision).await;
        };
        let placed = self.all_holds(tenant).await?.into_iter().filter(|hold| hold.released.is_none()).collect();
        let placed = self.end_holds(call, placed).await?;
        let mut chunk = Vec::with_capacity(page.rows.len());
        for snapshot in page.rows {
            chunk.extend(self.doom(call, &operation, snapshot, &placed).await?);
        }
        if chunk.iter().any(|one| one.plan.searchable) {
            self.owe_search(call).await?;
        }
        match self.erase_chunk(call, &operation, revision, &chunk, last).await {
            Err(SwapError::Conflict(_)) => {}
            done => return self.after_chunk(call, operation, revision, done).await,
        }
        // Somebody changed one of them beside us, or drives the operation too.
        let (mut operation, mut revision) = self.operation(tenant, operation.id).await?;
        if operation.cursor != Some(after.0) {
            return Ok((operation, revision));
        }
        let mut uids: Vec<SubjectUid> = chunk.iter().map(|one| one.member.uid).collect();
        uids.push(last);
        uids.dedup();
        for uid in uids {
            for attempt in 0.. {
                let Some(snapshot) = self.store.subject_by_uid(uid).await? else { break };
                let one: Vec<Doomed> = self.doom(call, &operation, snapshot, &placed).await?.into_iter().collect();
                match self.erase_chunk(call, &operation, revision, &one, uid).await {
                    Err(SwapError::Conflict(_)) if attempt < 5 => {
                        let (stored, at) = self.operation(tenant, operation.id).await?;
                        if at != revision {
                            return Ok((stored, at));
                        }
                    }
                    done => {
                        let cursor = operation.cursor;
                        (operation, revision) = self.after_chunk(call, operation, revision, done).await?;
                        if operation.cursor == cursor {
                            return Ok((operation, revision));
                        }
                        break;
                    }
                }
            }
        }
        Ok((operation, revision))
    }

    /// What is to be done with one member; `None` where it is held already, or has just joined another group.
    async fn doom(
        &self,
        call: &Call,
        operation: &Operation,
        snapshot: std::sync::Arc<SubjectSnapshot>,
        placed: &[Hold],
    ) -> Result<Option<Doomed>, VaultError> {
        let subject = &snapshot.subject;
        let here =
            |hold: &&Hold| hold.subject == Some(subject.uid) || hold.group.is_some() && hold.group == subject.group;
        let placed: Vec<Hold> = placed.iter().filter(here).cloned().collect();
        let plan = self.plan_under(call, &snapshot, &[], operation.created, &placed).await?;
        if plan.drops.is_empty() && subject.state == SubjectState::Held {
            return Ok(None);
        }
        let id = call.tenant.open_id(subject.uid, &subject.sealed_id)?;
        let member = Member {
            uid: subject.uid,
            commitment: commitment(call.tenant.no, &id, &salt(call, operation.id)),
            erased: plan.erased().map(|part| (part.class, part.through)).collect(),
            held: plan.held.iter().map(|held| held.class).collect(),
        };
        let classes: Vec<ClassNo> = plan.erased().map(|part| part.class).collect();
        let copies = self.copies_of(call, subject.uid, &classes).await?;
        Ok(Some(Doomed { snapshot, plan, member, copies }))
    }

    /// One swap for these members; moves the operation on to `last`.
    async fn erase_chunk(
        &self,
        call: &Call,
        operation: &Operation,
        revision: Revision,
        chunk: &[Doomed],
        last: SubjectUid,
    ) -> Result<Operation, SwapError> {
        let tenant = call.tenant.no;
        let mut next = operation.clone();
        (next.cursor, next.updated) = (Some(last.0), call.now);
        let (mut change, mut slots, mut ledger) = (ChangeSet::default(), Vec::new(), Vec::new());
        for one in chunk {
            self.plan_rows(call, &one.snapshot, &one.plan, operation.id, &mut change)
                .map_err(|_| SwapError::Unclear)?;
            let uid = one.member.uid;
            let mut entry = call.record(Action::EraseCommitted, Outcome::Ok);
            (entry.subject, entry.operation) = (Some(uid), Some(operation.id));
            if !one.plan.held.is_empty() {
                next.held_members += 1;
                entry.outcome = Outcome::Partial;
                let own = self.child(call, operation, one).map_err(|_| SwapError::Unclear)?;
                put_operation(tenant, &own, None, &mut change);
                for held in &one.plan.held {
                    match next.held.iter_mut().find(|known| known.class == held.class) {
                        Some(known) if known.until.is_some_and(|t| held.until.is_none_or(|u| u > t)) => {
                            *known = held.clone();
                        }
                        Some(_) => {}
                        None => next.held.push(held.clone()),
                    }
                }
            }
            change.note(tenant, entry.to_bytes());
            let classes: Vec<ClassNo> = one.plan.drops.iter().map(|drop| drop.row.class).collect();
            tell(call, uid, &one.copies, operation.id, &classes, &mut change);
            for row in &one.copies {
                if !next.recipients.contains(&row.recipient) {
                    next.recipients.push(row.recipient);
                }
            }
            next.recipients.sort_unstable();
            FeedEvent::about(call, EventKind::Erased, uid, classes, operation.id).put(call, &mut change);
            for part in one.plan.erased() {
                match next.erased.iter_mut().find(|known| known.class == part.class) {
                    Some(known) => known.through = known.through.max(part.through),
                    None => next.erased.push(part),
                }
            }
            let about = Operation { subject: Some(uid), held: one.plan.held.clone(), ..operation.clone() };
            ledger.extend(erased_entries(call, &about, one.plan.erased()));
            slots.extend(one.plan.slots());
            next.data_keys_issued += one.plan.data_keys;
            next.searchable |= one.plan.searchable;
        }
        next.done += chunk.len() as u64;
        next.total = next.total.max(next.done);
        let list: Vec<&Member> = chunk.iter().map(|one| &one.member).collect();
        if !list.is_empty() {
            let key = [&operation.id.0.as_bytes()[..], &last.0.to_be_bytes()].concat();
            let (kind, revision, body) = (ObjectKind::Members, Revision(1), to_json(&list));
            change.change(Mutation::PutObject(ObjectRow { tenant, kind, key, revision, body }));
        }
        put_operation(tenant, &next, Some((operation, revision)), &mut change);
        if slots.is_empty() {
            // Nobody of them has a key: no root needs to go.
            return match self.store.commit(change).await {
                Ok(_) => Ok(next),
                Err(StoreError::Conflict(conflict)) => Err(SwapError::Conflict(conflict)),
                Err(StoreError::Busy) => Err(SwapError::Busy),
                Err(error) => Err(SwapError::Store(error)),
            };
        }
        match self.keyring.swap(tenant, SwapOp { slots, change, ledger, ..SwapOp::default() }).await {
            // The end of step 5 is made sure of before the receipt is signed.
            Ok(_) | Err(SwapError::Unfinished { .. }) => Ok(next),
            Err(error) => Err(error),
        }
    }

    /// The operation by which a held member's erasure goes on.
    fn child(&self, call: &Call, operation: &Operation, one: &Doomed) -> Result<Operation, VaultError> {
        let mut own = Operation::new(call, OperationKind::EraseSubject, OperationStatus::PartlyHeld);
        own.created = operation.created;
        own.actor = operation.actor;
        own.subject = Some(one.member.uid);
        own.group = operation.group;
        own.held = one.plan.held.clone();
        own.erased = one.plan.erased().collect();
        own.due = own.held.iter().filter_map(|held| held.until).min();
        own.commitment = Some(self.commit_to(call, &one.snapshot.subject, own.id)?);
        Ok(own)
    }

    async fn after_chunk(
        &self,
        _call: &Call,
        operation: Operation,
        revision: Revision,
        done: Result<Operation, SwapError>,
    ) -> Result<(Operation, Revision), VaultError> {
        match done {
            Ok(next) => Ok((next, Revision(revision.0 + 1))),
            // Where the keeper is away it waits as it is.
            Err(SwapError::KeeperAway(_) | SwapError::Busy) => Ok((operation, revision)),
            Err(error) => Err(error.into()),
        }
    }

    /// All members are done: makes sure that no old root is left, signs, and marks the group.
    async fn end_group(
        &self,
        call: &Call,
        operation: Operation,
        revision: Revision,
    ) -> Result<(Operation, Revision), VaultError> {
        let swapped = match self.keyring.settle(call.tenant.no, Vec::new()).await {
            Ok(swapped) => swapped,
            Err(SwapError::Unfinished { .. } | SwapError::KeeperAway(_) | SwapError::Busy) => {
                return Ok((operation, revision));
            }
            Err(error) => return Err(error.into()),
        };
        let group = operation.group.ok_or(VaultError::DataLoss)?;
        let mut next = operation.clone();
        next.status = if next.held_members == 0 { OperationStatus::Done } else { OperationStatus::PartlyHeld };
        next.updated = call.tenant.time(self.clock.now());
        next.erased_at = Some(call.tenant.time(swapped.at));
        next.generation = Some(swapped.generation);
        if next.searchable {
            next.search_expires_at = Some(self.owe_search(call).await?);
        }
        let leaves: Vec<_> = self.members_of(call.tenant.no, next.id).await?.iter().map(Member::leaf).collect();
        let mut change = ChangeSet::default();
        self.set_group_state(call, group, GroupState::Erased, &mut change).await?;
        let body = self.sign_receipt(call, &next, Some(members(&leaves))).await?;
        let (tenant, kind, key) = (call.tenant.no, ObjectKind::Receipt, next.id.0.as_bytes().to_vec());
        change.change(Mutation::PutObject(ObjectRow { tenant, kind, key, revision, body }));
        let revision = self.advance_operation(call, &operation, revision, &next, Action::Erased, change).await?;
        Ok((next, revision))
    }

    /// The erasure of a group ends for good when no subject of it is left.
    pub(crate) async fn end_held_group(
        &self,
        call: &Call,
        operation: Operation,
        revision: Revision,
    ) -> Result<Operation, VaultError> {
        let left = self.store.list_subjects(call.tenant.no, operation.group, SubjectUid(0), 1).await?;
        if !left.rows.is_empty() {
            return Ok(operation);
        }
        let mut next = operation.clone();
        (next.status, next.updated, next.held) = (OperationStatus::Done, call.now, Vec::new());
        let change = ChangeSet::default();
        self.advance_operation(call, &operation, revision, &next, Action::Erased, change).await?;
        Ok(next)
    }

    /// Members of an erasure about several subjects, in its order.
    pub(crate) async fn members_of(&self, tenant: TenantNo, id: ObjectId) -> Result<Vec<Member>, VaultError> {
        let prefix = id.0.as_bytes().to_vec();
        let (mut members, mut after) = (Vec::new(), prefix.clone());
        loop {
            let page = self.store.objects(tenant, ObjectKind::Members, prefix.clone(), after, 100).await?;
            for row in &page.rows {
                let part: Vec<Member> = serde_json::from_slice(&row.body).map_err(|_| VaultError::DataLoss)?;
                members.extend(part);
            }
            match page.rows.last() {
                Some(last) if page.more => after = last.key.clone(),
                _ => return Ok(members),
            }
        }
    }
}
