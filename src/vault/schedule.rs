//! Erasing later: a date, a time of grace in which nothing is readable, and a way back.
//!
//! Two kinds: an erasure that was scheduled freezes its subject; the closing of a subject whose classes have a time of
//! grace leaves it readable and erases it when the longest of them is over. Both are operations in state `Scheduled`
//! with a due date.

use crate::access::Verb;
use crate::audit::{Action, Outcome};
use crate::clock::{DAY_MS, Timestamp};
use crate::ids::*;
use crate::keyring::ledger::{LedgerEntry, LedgerKind};
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::{Call, Context};
use crate::vault::erase::Erasure;
use crate::vault::error::VaultError;
use crate::vault::find::Key;
use crate::vault::group::GroupState;
use crate::vault::ledger::ledger_entry;
use crate::vault::operation::*;
use crate::vault::request::Request;

/// Furthest that an erasure may be scheduled ahead, in days.
pub const FURTHEST_DAYS: i64 = 366;

impl Vault {
    /// Erases a subject, or some of its classes, at `due` or after the policy's time of grace. Until then it is frozen.
    #[allow(clippy::too_many_arguments)] // the parts of one request
    pub async fn schedule_erasure(
        &self,
        call: &Call,
        context: &Context,
        key: &Key,
        classes: &[ClassNo],
        due: Option<Timestamp>,
        request: Option<Request>,
        validate_only: bool,
    ) -> Result<Erasure, VaultError> {
        call.permit(Verb::Erase)?;
        if let Some(operation) = self.repeated_operation(call, request.as_ref()).await? {
            return self.answer_erasure(call, operation, false, true).await;
        }
        self.check_classes(call, classes)?;
        let tenant = call.tenant.no;
        for _ in 0..4 {
            let snapshot = self.resolve(call, context, key).await?;
            call.permit_for(Verb::Erase, snapshot.subject.group)?;
            let due = self.due_date(call, due, || self.grace_of(call, &snapshot, classes))?;
            match snapshot.subject.state {
                SubjectState::Live => {}
                SubjectState::Closed if classes.is_empty() => {}
                SubjectState::Closed => return Err(VaultError::SubjectClosed),
                SubjectState::Frozen => return Err(VaultError::WrongState("the subject's erasure is under way")),
                SubjectState::Held => return Err(VaultError::SubjectErased),
            }
            let kind = if classes.is_empty() { OperationKind::EraseSubject } else { OperationKind::EraseClasses };
            let mut operation = Operation::new(call, kind, OperationStatus::Scheduled);
            operation.subject = Some(snapshot.subject.uid);
            operation.group = snapshot.subject.group;
            operation.classes = classes.to_vec();
            operation.due = Some(due);
            operation.was_closed = snapshot.subject.state == SubjectState::Closed;
            operation.commitment = Some(self.commit_to(call, &snapshot.subject, operation.id)?);
            if validate_only {
                return Ok(Erasure { operation, receipt: None, salt: None });
            }
            let mut change = ChangeSet::default();
            let row = snapshot.subject.clone();
            change.require(Precondition::SubjectAt { uid: row.uid, revision: row.revision });
            for (open, revision) in self.open_operations(tenant, row.uid).await? {
                // What closing the subject had scheduled is replaced.
                if open.closing && open.status == OperationStatus::Scheduled {
                    let next = Operation { status: OperationStatus::Cancelled, updated: call.now, ..open.clone() };
                    put_operation(tenant, &next, Some((&open, revision)), &mut change);
                }
            }
            let (uid, revision) = (row.uid, Revision(row.revision.0 + 1));
            change.change(Mutation::PutSubject(SubjectRow {
                state: SubjectState::Frozen,
                revision,
                due: Some(due),
                ..row
            }));
            put_operation(tenant, &operation, None, &mut change);
            let mut entry = call.record(Action::ScheduleErasure, Outcome::Ok);
            (entry.subject, entry.operation) = (Some(uid), Some(operation.id));
            self.attach_detail(call, context, &mut entry, &snapshot.classes).await?;
            change.note(tenant, entry.to_bytes());
            self.remember(call, request.as_ref(), &operation.id, &mut change);
            match self.store.commit(change).await {
                Ok(_) => {
                    let entry = ledger_entry(call, LedgerKind::Scheduled, uid, operation.id);
                    // A restore that has only the ledger must not erase more than was asked for.
                    let all = [ClassNo(0)];
                    let classes = if classes.is_empty() { &all[..] } else { classes };
                    let entries = classes.iter().map(|class| LedgerEntry { until: due, class: *class, ..entry });
                    self.ledger(entries.collect()).await?;
                    return self.answer_erasure(call, operation, false, true).await;
                }
                Err(error) => self.retry_or_answer(call, error, request.as_ref()).await?,
            }
        }
        Err(VaultError::Conflict)
    }

    /// The date that was asked for, or the end of the policy's grace.
    pub(crate) fn due_date(
        &self,
        call: &Call,
        due: Option<Timestamp>,
        grace: impl FnOnce() -> Option<Timestamp>,
    ) -> Result<Timestamp, VaultError> {
        match due {
            Some(due) if due <= call.now || due.0 - call.now.0 > FURTHEST_DAYS * DAY_MS => {
                Err(VaultError::invalid("schedule_time", "must be in the future, at most 366 days ahead"))
            }
            Some(due) => Ok(due),
            None => grace().ok_or_else(|| {
                VaultError::invalid("schedule_time", "is needed: the policy has no time of grace for these classes")
            }),
        }
    }

    /// The end of the longest grace of the subject's classes (of those named, where any are).
    fn grace_of(&self, call: &Call, snapshot: &SubjectSnapshot, classes: &[ClassNo]) -> Option<Timestamp> {
        let policy = call.tenant.policy.as_deref()?;
        let meant = snapshot.classes.iter().filter(|row| row.slot.is_some());
        let meant = meant.filter(|row| classes.is_empty() || classes.contains(&row.class));
        meant.filter_map(|row| policy.grace_ends(row.class, call.now)).max()
    }

    /// Cancels a scheduled erasure: the subject is as it was before.
    ///
    /// # Errors
    /// `WrongState` once it began.
    pub async fn cancel_erasure(
        &self,
        call: &Call,
        context: &Context,
        id: ObjectId,
        request: Option<Request>,
    ) -> Result<Erasure, VaultError> {
        call.permit(Verb::Erase)?;
        let repeat = self.repeated::<()>(call, request.as_ref()).await?.is_some();
        let (operation, revision) = self.operation(call.tenant.no, id).await?;
        call.permit_for(Verb::Erase, operation.group)?;
        let operation = match operation.status {
            _ if repeat => operation,
            OperationStatus::Cancelled => operation,
            OperationStatus::Scheduled => {
                self.cancel_scheduled(call, context, operation, revision, request.as_ref()).await?
            }
            _ => return Err(VaultError::WrongState("the erasure has begun")),
        };
        self.answer_erasure(call, operation, false, false).await
    }

    /// Cancels what [`Self::schedule_erasure`] or the closing of a subject scheduled.
    pub(crate) async fn cancel_scheduled(
        &self,
        call: &Call,
        context: &Context,
        operation: Operation,
        revision: Revision,
        request: Option<&Request>,
    ) -> Result<Operation, VaultError> {
        let mut change = ChangeSet::default();
        self.remember(call, request, &(), &mut change);
        let mut noted = call.record(Action::CancelErasure, Outcome::Ok);
        let uid = operation.subject.unwrap_or(SubjectUid(0));
        let mut entries = vec![ledger_entry(call, LedgerKind::Cancelled, uid, operation.id)];
        if operation.kind == OperationKind::EraseGroup {
            let group = operation.group.ok_or(VaultError::DataLoss)?;
            entries[0].number = group.0;
            if !operation.was_closed {
                self.set_group_state(call, group, GroupState::Active, &mut change).await?;
            }
        } else if let Some(snapshot) = self.store.subject_by_uid(uid).await? {
            let mut row = snapshot.subject.clone();
            change.require(Precondition::SubjectAt { uid, revision: row.revision });
            (row.revision, row.due) = (Revision(row.revision.0 + 1), None);
            if row.state == SubjectState::Frozen {
                row.state = SubjectState::Live;
            }
            if operation.was_closed {
                // Closed again, with a new time of grace.
                row.state = SubjectState::Closed;
                entries.extend(self.schedule_closing(call, &snapshot, &mut row, &mut change)?);
            }
            change.change(Mutation::PutSubject(row));
            self.attach_detail(call, context, &mut noted, &snapshot.classes).await?;
        }
        let next = Operation { status: OperationStatus::Cancelled, updated: call.now, ..operation.clone() };
        self.advance_noted(call, &operation, revision, &next, noted, change).await?;
        self.ledger(entries).await?;
        Ok(next)
    }

    /// Adds to the closing of a subject the erasure at the end of its grace; answers what the ledger is to say. `row` is
    /// the closed row.
    pub(crate) fn schedule_closing(
        &self,
        call: &Call,
        snapshot: &SubjectSnapshot,
        row: &mut SubjectRow,
        change: &mut ChangeSet,
    ) -> Result<Option<LedgerEntry>, VaultError> {
        let Some(due) = self.grace_of(call, snapshot, &[]) else { return Ok(None) };
        let mut operation = Operation::new(call, OperationKind::EraseSubject, OperationStatus::Scheduled);
        operation.subject = Some(row.uid);
        operation.group = row.group;
        operation.due = Some(due);
        operation.closing = true;
        operation.commitment = Some(self.commit_to(call, row, operation.id)?);
        row.due = Some(due);
        put_operation(call.tenant.no, &operation, None, change);
        let entry = ledger_entry(call, LedgerKind::Scheduled, row.uid, operation.id);
        Ok(Some(LedgerEntry { until: due, ..entry }))
    }

    /// Adds to the reopening of a subject that its scheduled erasure is cancelled.
    pub(crate) async fn cancel_closing(
        &self,
        call: &Call,
        row: &mut SubjectRow,
        change: &mut ChangeSet,
    ) -> Result<Option<LedgerEntry>, VaultError> {
        row.due = None;
        for (open, revision) in self.open_operations(call.tenant.no, row.uid).await? {
            if open.closing && open.status == OperationStatus::Scheduled {
                let next = Operation { status: OperationStatus::Cancelled, updated: call.now, ..open.clone() };
                put_operation(call.tenant.no, &next, Some((&open, revision)), change);
                return Ok(Some(ledger_entry(call, LedgerKind::Cancelled, row.uid, next.id)));
            }
        }
        Ok(None)
    }
}

impl Vault {
    /// Goes on with operations whose date has come: scheduled erasures, and those whose hold has ended. Answers how many.
    pub async fn run_due(&self, call: &Call, limit: u32) -> Result<u32, VaultError> {
        let mut done = 0;
        let waits = self.schedules_wait().await?;
        for (operation, revision) in self.due_operations(call.tenant.no, call.now, limit).await? {
            if waits && operation.status == OperationStatus::Scheduled {
                continue;
            }
            // One that cannot go on now must not stop the others.
            match self.drive(call, operation, revision).await {
                Ok(_) => done += 1,
                Err(error) => tracing::warn!(%error, "a due operation does not go on"),
            }
        }
        Ok(done)
    }
}
