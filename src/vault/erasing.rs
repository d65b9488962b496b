//! How an erasure of one subject is carried out: decided against a snapshot, committed with the swap of its keys, ended
//! with receipt and feed; or restricted, where all is held; or accepted, where the keeper is away. All of it may be
//! repeated, by another caller or after a crash.

use crate::audit::{Action, Outcome};
use crate::clock::Timestamp;
use crate::ids::*;
use crate::keyring::ledger::{LedgerEntry, LedgerKind};
use crate::keyring::{SwapError, SwapOp, Swapped};
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::{Call, Context};
use crate::vault::erase::{ITEMS_AT_ONCE, Plan, erased_entries};
use crate::vault::error::VaultError;
use crate::vault::expiry::Progress;
use crate::vault::feed::{EventKind, FeedEvent};
use crate::vault::ledger::ledger_entry;
use crate::vault::operation::*;
use crate::vault::request::Request;
use crate::vault::retry::ATTEMPTS;
use crate::vault::rights::disclosures;

impl Vault {
    /// Decides an erasure of one subject and carries it out as far as it goes now; answers the operation's new state.
    /// `former` is the revision of the operation's stored state, if it has one. May be repeated.
    pub(crate) async fn carry_out(
        &self,
        call: &Call,
        context: Option<&Context>,
        operation: Operation,
        former: Option<Revision>,
        request: Option<&Request>,
    ) -> Result<Operation, VaultError> {
        let tenant = call.tenant.no;
        let uid = operation.subject.ok_or(VaultError::DataLoss)?;
        let (mut operation, mut former) = (operation, former);
        for _ in 0..ATTEMPTS {
            if let Some(revision) = former {
                // Another caller or the job may have gone on with it.
                let (stored, at) = self.operation(tenant, operation.id).await?;
                match stored.status {
                    OperationStatus::Committed => return self.settle_committed(call, stored, at).await,
                    status if status.is_final() => return Ok(stored),
                    _ if at != revision => (operation, former) = (stored, Some(at)),
                    _ => {}
                }
            }
            let Some(snapshot) = self.store.subject_by_uid(uid).await? else {
                return match former {
                    Some(revision) => self.end_empty(call, operation, revision).await,
                    None => Err(VaultError::SubjectErased),
                };
            };
            let plan = self.plan_erasure(call, &snapshot, &operation.classes, operation.created).await?;
            if plan.drops.is_empty() {
                if !plan.held.is_empty() {
                    match self.restrict(call, context, &snapshot, &plan, &operation, former, request).await {
                        Err(VaultError::Conflict) => continue,
                        done => return done,
                    }
                }
                if !plan.all {
                    return match former {
                        Some(revision) => self.end_empty(call, operation, revision).await,
                        None => Err(VaultError::NotFound),
                    };
                }
            }
            if plan.searchable {
                self.owe_search(call).await?;
            }
            let next = committed(call, &operation, &plan);
            let swap = self.erasure_swap(call, context, &snapshot, &plan, &operation, &next, former, request).await?;
            match self.keyring.swap(tenant, swap).await {
                Ok(swapped) => {
                    let revision = Revision(former.map_or(0, |r| r.0) + 1);
                    return Ok(self.finish(call, next.clone(), revision, swapped).await.unwrap_or_else(|error| {
                        // The keys are gone; the job writes the receipt.
                        tracing::warn!(operation = %next.id, %error, "an erasure is committed and not finished yet");
                        next
                    }));
                }
                Err(SwapError::Conflict(Conflict::Request)) => {
                    let known: ObjectId = self.repeated(call, request).await?.ok_or(VaultError::Conflict)?;
                    return Ok(self.operation(tenant, known).await?.0);
                }
                Err(SwapError::Conflict(_)) => {}
                Err(SwapError::KeeperAway(_) | SwapError::Busy) => {
                    match self.accept(call, context, &snapshot, &plan, &operation, former, request).await {
                        Err(VaultError::Conflict) => {}
                        done => return done,
                    }
                }
                Err(SwapError::Unfinished { .. }) => return Ok(next),
                Err(error) => return Err(error.into()),
            }
        }
        Err(VaultError::Conflict)
    }

    /// The swap that commits an erasure.
    #[allow(clippy::too_many_arguments)] // one caller; a struct for it would only rename the list
    async fn erasure_swap(
        &self,
        call: &Call,
        context: Option<&Context>,
        snapshot: &SubjectSnapshot,
        plan: &Plan,
        operation: &Operation,
        next: &Operation,
        former: Option<Revision>,
        request: Option<&Request>,
    ) -> Result<SwapOp, VaultError> {
        let mut change = ChangeSet::default();
        self.plan_rows(call, snapshot, plan, operation.id, &mut change)?;
        put_operation(call.tenant.no, next, former.map(|revision| (operation, revision)), &mut change);
        let mut entry = call.record(Action::EraseCommitted, Outcome::Ok);
        entry.subject = next.subject;
        entry.operation = Some(next.id);
        if let Some(context) = context {
            // Under the key of a class that stays: what was said about the others dies with them.
            let stays = |row: &&ClassRow| !plan.drops.iter().any(|drop| drop.row.class == row.class);
            let staying: Vec<ClassRow> = snapshot.classes.iter().filter(stays).cloned().collect();
            self.attach_detail(call, context, &mut entry, &staying).await?;
        }
        change.note(call.tenant.no, entry.to_bytes());
        self.remember(call, request, &next.id, &mut change);
        Ok(SwapOp {
            slots: plan.slots().collect(),
            change,
            ledger: erased_entries(call, next, plan.erased()),
            ..SwapOp::default()
        })
    }

    /// Everything is held: restricts it, and waits.
    #[allow(clippy::too_many_arguments)] // as `erasure_swap`
    async fn restrict(
        &self,
        call: &Call,
        context: Option<&Context>,
        snapshot: &SubjectSnapshot,
        plan: &Plan,
        operation: &Operation,
        former: Option<Revision>,
        request: Option<&Request>,
    ) -> Result<Operation, VaultError> {
        let mut next = operation.clone();
        next.status = OperationStatus::PartlyHeld;
        next.updated = call.now;
        next.held = plan.held.clone();
        next.due = plan.held.iter().filter_map(|held| held.until).min();
        let already = operation.status == OperationStatus::PartlyHeld && operation.held == next.held;
        if already && operation.due == next.due {
            return Ok(next);
        }
        let mut change = ChangeSet::default();
        self.plan_rows(call, snapshot, plan, operation.id, &mut change)?;
        put_operation(call.tenant.no, &next, former.map(|revision| (operation, revision)), &mut change);
        let mut entry = call.record(Action::EraseRequested, Outcome::Held);
        (entry.subject, entry.operation) = (next.subject, Some(next.id));
        if let Some(context) = context {
            self.attach_detail(call, context, &mut entry, &snapshot.classes).await?;
        }
        change.note(call.tenant.no, entry.to_bytes());
        let uid = snapshot.subject.uid;
        let classes = plan.held.iter().map(|held| held.class).collect();
        FeedEvent::about(call, EventKind::Restricted, uid, classes, next.id).put(call, &mut change);
        self.remember(call, request, &next.id, &mut change);
        self.store.commit(change).await?;
        let entry = |held: &HeldPart| LedgerEntry {
            class: held.class,
            until: held.until.unwrap_or(Timestamp(0)),
            ..ledger_entry(call, LedgerKind::Restricted, uid, next.id)
        };
        self.ledger(plan.held.iter().map(entry).collect()).await?;
        Ok(next)
    }

    /// The keys cannot be destroyed now: refuses access from here on.
    #[allow(clippy::too_many_arguments)] // as `erasure_swap`
    async fn accept(
        &self,
        call: &Call,
        context: Option<&Context>,
        snapshot: &SubjectSnapshot,
        plan: &Plan,
        operation: &Operation,
        former: Option<Revision>,
        request: Option<&Request>,
    ) -> Result<Operation, VaultError> {
        if former.is_some() && operation.status == OperationStatus::Accepted {
            return Ok(operation.clone());
        }
        let mut next = operation.clone();
        (next.status, next.updated) = (OperationStatus::Accepted, call.now);
        // A scheduled date has done its part.
        next.due = None;
        let subject = &snapshot.subject;
        let mut change = ChangeSet::default();
        change.require(Precondition::SubjectAt { uid: subject.uid, revision: subject.revision });
        for drop in plan.drops.iter().filter(|drop| !plan.all && drop.row.state == ClassState::Live) {
            let ClassRow { uid, class, version, revision, .. } = drop.row;
            change.require(Precondition::ClassAt { uid, class, version, revision });
            change.change(Mutation::PutClass(ClassRow { state: ClassState::Restricted, ..drop.row.clone() }));
        }
        let state = match (plan.all, subject.state) {
            (true, SubjectState::Live | SubjectState::Closed) => SubjectState::Frozen,
            (_, state) => state,
        };
        let revision = Revision(subject.revision.0 + 1);
        change.change(Mutation::PutSubject(SubjectRow { state, revision, ..subject.clone() }));
        put_operation(call.tenant.no, &next, former.map(|revision| (operation, revision)), &mut change);
        let mut entry = call.record(Action::EraseRequested, Outcome::Ok);
        (entry.subject, entry.operation) = (next.subject, Some(next.id));
        if let Some(context) = context {
            self.attach_detail(call, context, &mut entry, &snapshot.classes).await?;
        }
        change.note(call.tenant.no, entry.to_bytes());
        self.remember(call, request, &next.id, &mut change);
        self.store.commit(change).await?;
        // The keeper that is away holds the ledger too; where only the queue was full, it takes the entry.
        let entry = ledger_entry(call, LedgerKind::Accepted, subject.uid, next.id);
        if let Err(error) = self.ledger(vec![entry]).await {
            tracing::warn!(operation = %next.id, %error, "an accepted erasure is not in the ledger yet");
        }
        Ok(next)
    }

    /// Nothing was left for it to do: another erasure was there before.
    async fn end_empty(&self, call: &Call, operation: Operation, revision: Revision) -> Result<Operation, VaultError> {
        let status = match operation.status {
            OperationStatus::Scheduled => OperationStatus::Cancelled,
            _ => OperationStatus::Done,
        };
        let mut next = operation.clone();
        (next.status, next.updated, next.held, next.due) = (status, call.now, Vec::new(), None);
        let change = ChangeSet::default();
        self.advance_operation(call, &operation, revision, &next, Action::CancelErasure, change).await?;
        Ok(next)
    }

    /// Step 6: the keys are gone everywhere.
    pub(crate) async fn finish(
        &self,
        call: &Call,
        operation: Operation,
        revision: Revision,
        swapped: Swapped,
    ) -> Result<Operation, VaultError> {
        let mut next = operation.clone();
        next.status = if next.held.is_empty() { OperationStatus::Done } else { OperationStatus::PartlyHeld };
        next.due = next.held.iter().filter_map(|held| held.until).min();
        next.updated = call.tenant.time(self.clock.now());
        next.erased_at = Some(call.tenant.time(swapped.at));
        next.generation = Some(swapped.generation);
        if next.searchable {
            next.search_expires_at = Some(self.owe_search(call).await?);
        }
        let mut change = ChangeSet::default();
        // A follower deletes whole classes: what is below one is not its matter.
        let below =
            |kind| matches!(kind, OperationKind::EraseFields | OperationKind::EraseItems | OperationKind::EraseFormer);
        if let Some(uid) = next.subject.filter(|_| !below(next.kind)) {
            let classes: Vec<ClassNo> = next.erased.iter().map(|part| part.class).collect();
            let copies = self.copies_of(call, uid, &classes).await?;
            next.recipients = copies.iter().map(|row| row.recipient).collect();
            disclosures::tell(call, uid, &copies, next.id, &classes, &mut change);
            FeedEvent::about(call, EventKind::Erased, uid, classes, next.id).put(call, &mut change);
            if !next.held.is_empty() {
                let classes = next.held.iter().map(|part| part.class).collect();
                FeedEvent::about(call, EventKind::Restricted, uid, classes, next.id).put(call, &mut change);
            }
        }
        if let Some(uid) = next.subject.filter(|_| next.classes.is_empty() && next.held.is_empty()) {
            self.forget_nominees(call, uid, &mut change).await?;
        }
        self.put_receipt(call, &next, revision, &mut change).await?;
        match self.advance_operation(call, &operation, revision, &next, Action::Erased, change).await {
            Ok(_) => Ok(next),
            // The job was faster.
            Err(VaultError::Conflict) => Ok(self.operation(call.tenant.no, next.id).await?.0),
            Err(error) => Err(error),
        }
    }

    /// Finishes an erasure that was found `Committed`: steps 4 to 6 again, which may be repeated.
    pub(crate) async fn settle_committed(
        &self,
        call: &Call,
        operation: Operation,
        revision: Revision,
    ) -> Result<Operation, VaultError> {
        let generation = self.keyring.generation(call.tenant.no).unwrap_or(Generation(0));
        let mut entries = erased_entries(call, &operation, operation.erased.iter().cloned());
        entries.iter_mut().for_each(|entry| entry.generation = generation);
        match self.keyring.settle(call.tenant.no, entries).await {
            Ok(swapped) => self.finish(call, operation, revision, swapped).await,
            Err(SwapError::Unfinished { .. } | SwapError::KeeperAway(_) | SwapError::Busy) => Ok(operation),
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes items of erased subjects that were too many to go with the swap, about `limit` of them.
    pub async fn sweep_erased(&self, call: &Call, limit: u64) -> Result<Progress, VaultError> {
        let (tenant, kind) = (call.tenant.no, ObjectKind::Sweep);
        let page = self.store.objects(tenant, kind, Vec::new(), Vec::new(), 100).await?;
        let mut done = 0;
        for row in page.rows {
            let (uid, class) = row.key.split_first_chunk::<8>().ok_or(VaultError::DataLoss)?;
            let uid = SubjectUid(i64::from_be_bytes(*uid));
            let class = ClassNo(*class.first().ok_or(VaultError::DataLoss)?);
            loop {
                let mut change = ChangeSet::default();
                change.change(Mutation::DeleteItemsOf { tenant, uid, class, limit: ITEMS_AT_ONCE });
                let removed = self.store.commit(change).await?.removed;
                if removed == 0 {
                    let mut change = ChangeSet::default();
                    change.change(Mutation::DeleteObject { tenant, kind, key: row.key.clone() });
                    self.store.commit(change).await?;
                    break;
                }
                done += removed;
                if done >= limit {
                    return Ok(Progress { done, more: true });
                }
            }
        }
        Ok(Progress { done, more: page.more })
    }
}

/// The committed state of an operation with what this plan adds to it.
fn committed(call: &Call, operation: &Operation, plan: &Plan) -> Operation {
    let mut next = operation.clone();
    (next.status, next.updated, next.due) = (OperationStatus::Committed, call.now, None);
    for part in plan.erased() {
        next.erased.retain(|former| former.class != part.class);
        next.erased.push(part);
    }
    next.erased.sort_by_key(|part| part.class);
    next.held = plan.held.clone();
    next.data_keys_issued += plan.data_keys;
    next.searchable |= plan.searchable;
    (next.done, next.total) = (1, 1);
    next
}
