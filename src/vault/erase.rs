//! Erasing a subject, or some of its classes, by destroying their keys: what is asked for and what it means for the rows.
//! `erasing` carries it out.
//!
//! An erasure is an operation. It is decided against a snapshot and committed with the swap that drops the keys (state
//! `Committed`); when the old roots are overwritten everywhere it ends, with a signed receipt, an event in the feed and an
//! audit entry (`Done`, or `PartlyHeld`). Where the keeper cannot be written it is committed as `Accepted`: access is
//! refused from then on, and a job finishes it. Every change of a subject's or class's *state* raises the subject's
//! revision, so that two erasures, or an erasure and a hold, never both act on the same snapshot.

use data_encoding::HEXLOWER;
use futures_util::{StreamExt as _, stream};

use crate::access::Verb;
use crate::audit::{Action, Outcome};
use crate::clock::Timestamp;
use crate::ids::*;
use crate::keyring::ledger::{LedgerEntry, LedgerKind, WHOLE};
use crate::receipt::commitment;
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::{Call, Context};
use crate::vault::error::VaultError;
use crate::vault::find::Key;
use crate::vault::hold::{Hold, require_no_hold};
use crate::vault::ledger::ledger_entry;
use crate::vault::operation::*;
use crate::vault::request::Request;

/// What an erasure answers.
#[derive(Debug, Clone)]
pub struct Erasure {
    pub operation: Operation,
    /// Signed canonical JSON, once keys are destroyed.
    pub receipt: Option<Vec<u8>>,
    /// Salt of the receipt's commitment; answered to the call that erases and to its repeats only.
    pub salt: Option<[u8; 32]>,
}

/// Items deleted together with the swap; the rest of a larger class is swept afterwards.
pub(crate) const ITEMS_AT_ONCE: u32 = 10_000;
/// Subjects of one batch whose erasures are under way at the same time, as many as share a swap well.
const AT_ONCE: usize = 64;

/// A class whose key is to be dropped.
pub(crate) struct Drop {
    pub row: ClassRow,
    pub slot: Slot,
    /// It has more items than are deleted with the swap.
    pub many_items: bool,
    /// Where the policy may keep what is appended meanwhile: the item groups that were there when it was decided.
    pub seen: Option<Vec<(FieldNo, Bucket, Revision)>>,
}

/// What an erasure does with one subject.
pub(crate) struct Plan {
    pub drops: Vec<Drop>,
    pub held: Vec<HeldPart>,
    /// All classes are meant.
    pub all: bool,
    pub searchable: bool,
    pub data_keys: u64,
}

impl Plan {
    /// Nothing stays: the row goes and a tombstone comes.
    pub fn whole(&self) -> bool {
        self.all && self.held.is_empty()
    }
    pub fn erased(&self) -> impl Iterator<Item = ErasedPart> + '_ {
        self.drops.iter().map(|drop| ErasedPart { class: drop.row.class, through: drop.row.version })
    }
    pub fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        self.drops.iter().map(|drop| drop.slot)
    }
}

impl Vault {
    /// Erases a subject (`classes` empty), or some of its classes. Classes under a hold stay, restricted to the hold's
    /// purpose, and are erased by themselves when it ends.
    ///
    /// # Errors
    /// `SubjectErased` where nothing was left to erase; `NotFound` where it holds nothing of these classes.
    #[allow(clippy::too_many_arguments)] // the parts of one request
    pub async fn erase_subject(
        &self,
        call: &Call,
        context: &Context,
        key: &Key,
        classes: &[ClassNo],
        request: Option<Request>,
        wait_final: bool,
    ) -> Result<Erasure, VaultError> {
        call.permit(Verb::Erase)?;
        if let Some(operation) = self.repeated_operation(call, request.as_ref()).await? {
            return self.answer_erasure(call, operation, wait_final, true).await;
        }
        self.check_classes(call, classes)?;
        let snapshot = self.resolve(call, context, key).await?;
        call.permit_for(Verb::Erase, snapshot.subject.group)?;
        let uid = snapshot.subject.uid;
        let started = if matches!(snapshot.subject.state, SubjectState::Frozen | SubjectState::Held) {
            self.take_over(call, uid, classes).await?
        } else {
            None
        };
        let (operation, former) = match started {
            Some((operation, revision)) => (operation, Some(revision)),
            None => {
                let kind = match classes {
                    [] => OperationKind::EraseSubject,
                    _ => OperationKind::EraseClasses,
                };
                let mut operation = Operation::new(call, kind, OperationStatus::Accepted);
                operation.subject = Some(uid);
                operation.group = snapshot.subject.group;
                operation.classes = classes.to_vec();
                operation.commitment = Some(self.commit_to(call, &snapshot.subject, operation.id)?);
                (operation, None)
            }
        };
        let operation = self.carry_out(call, Some(context), operation, former, request.as_ref()).await?;
        self.answer_erasure(call, operation, wait_final, true).await
    }

    /// Many subjects, each with an outcome and a receipt of its own, in the order asked.
    pub async fn erase_batch(
        &self,
        call: &Call,
        context: &Context,
        keys: &[Key],
        classes: &[ClassNo],
        requests: &[Option<Request>],
        wait_final: bool,
    ) -> Result<Vec<Result<Erasure, VaultError>>, VaultError> {
        call.permit(Verb::Erase)?;
        self.check_classes(call, classes)?;
        // Some of them together, so that they share swaps; not all, or a thousand would stand before everybody else's reads.
        let each = keys.iter().enumerate().map(|(i, key)| {
            let request = requests.get(i).copied().flatten();
            self.erase_subject(call, context, key, classes, request, wait_final)
        });
        let each: Vec<_> = each.collect();
        Ok(stream::iter(each).buffered(AT_ONCE).collect().await)
    }

    pub(crate) fn check_classes(&self, call: &Call, classes: &[ClassNo]) -> Result<(), VaultError> {
        let policy = call.tenant.policy()?;
        match classes.iter().position(|class| policy.class(*class).is_none()) {
            Some(i) => Err(VaultError::invalid(format!("class_ids[{i}]"), "no class with this number in the policy")),
            None => Ok(()),
        }
    }

    /// The erasure that a frozen or held subject waits for: an explicit erasure goes on with it.
    async fn take_over(
        &self,
        call: &Call,
        uid: SubjectUid,
        classes: &[ClassNo],
    ) -> Result<Option<(Operation, Revision)>, VaultError> {
        let open = self.open_operations(call.tenant.no, uid).await?;
        let about_all = |(operation, _): &&(Operation, Revision)| {
            operation.kind == OperationKind::EraseSubject && !operation.closing && operation.classes.is_empty()
        };
        match (open.iter().find(about_all), classes) {
            (Some(found), []) => Ok(Some(found.clone())),
            (Some((operation, _)), _) if operation.status == OperationStatus::Scheduled => {
                Err(VaultError::WrongState("an erasure of the subject is scheduled: cancel it or erase all of it"))
            }
            // All of it is on its way already, with these classes.
            (Some(found), _) if found.0.status == OperationStatus::Accepted => Ok(Some(found.clone())),
            _ if open.iter().any(|(operation, _)| operation.status == OperationStatus::Scheduled) => {
                Err(VaultError::WrongState("an erasure of some classes is scheduled: cancel it first"))
            }
            _ => Ok(None),
        }
    }

    /// Hexadecimal commitment to the id of a subject.
    pub(crate) fn commit_to(
        &self,
        call: &Call,
        subject: &SubjectRow,
        operation: ObjectId,
    ) -> Result<String, VaultError> {
        let id = call.tenant.open_id(subject.uid, &subject.sealed_id)?;
        Ok(HEXLOWER.encode(&commitment(call.tenant.no, &id, &salt(call, operation))))
    }

    /// What an erasure of these classes (none: all) would do with the subject now. `asked` is when it was asked for.
    pub(crate) async fn plan_erasure(
        &self,
        call: &Call,
        snapshot: &SubjectSnapshot,
        classes: &[ClassNo],
        asked: Timestamp,
    ) -> Result<Plan, VaultError> {
        let placed = self.holds_on(&snapshot.subject).await?;
        let placed = self.end_holds(call, placed).await?;
        self.plan_under(call, snapshot, classes, asked, &placed).await
    }

    /// As [`Self::plan_erasure`], under these placed holds.
    pub(crate) async fn plan_under(
        &self,
        call: &Call,
        snapshot: &SubjectSnapshot,
        classes: &[ClassNo],
        asked: Timestamp,
        placed: &[Hold],
    ) -> Result<Plan, VaultError> {
        let policy = call.tenant.policy()?;
        let mut plan =
            Plan { drops: Vec::new(), held: Vec::new(), all: classes.is_empty(), searchable: false, data_keys: 0 };
        let mut groups = None;
        for row in &snapshot.classes {
            let Some(slot) = row.slot.filter(|_| plan.all || classes.contains(&row.class)) else { continue };
            let rules = || policy.fields().filter(|rule| rule.class == row.class);
            let many = rules().any(|rule| rule.many);
            // Before the hold is judged by what is there: what is appended after this look is seen at the commit.
            if many && groups.is_none() {
                groups = Some(self.store.item_groups(row.uid, None).await?);
            }
            if let Some(held) = self.held(call, row, placed, asked).await? {
                plan.held.push(held);
                continue;
            }
            plan.searchable |= rules().any(|rule| rule.searchable);
            plan.data_keys += u64::from(row.data_keys_issued);
            let (mut items, mut seen) = (0, None);
            if many {
                let here = groups.iter().flatten().filter(|group| group.key.class == row.class);
                items = here.clone().map(|group| u64::from(group.count)).sum();
                if policy.class(row.class).is_some_and(|class| class.hold.is_some()) {
                    seen = Some(here.map(|group| (group.key.field, group.key.bucket, group.revision)).collect());
                }
            }
            let many_items = items >= u64::from(ITEMS_AT_ONCE);
            plan.drops.push(Drop { row: row.clone(), slot, many_items, seen });
        }
        Ok(plan)
    }

    /// The rows' part of a plan: what must still be true, and what changes.
    pub(crate) fn plan_rows(
        &self,
        call: &Call,
        snapshot: &SubjectSnapshot,
        plan: &Plan,
        operation: ObjectId,
        change: &mut ChangeSet,
    ) -> Result<(), VaultError> {
        let policy = call.tenant.policy()?;
        let subject = &snapshot.subject;
        let (tenant, uid) = (subject.tenant, subject.uid);
        change.require(Precondition::SubjectAt { uid, revision: subject.revision });
        let unchanged = |row: &ClassRow, change: &mut ChangeSet| {
            if row.state == ClassState::Live {
                let ClassRow { class, version, revision, .. } = *row;
                change.require(Precondition::ClassAt { uid, class, version, revision });
            }
        };
        for drop in &plan.drops {
            unchanged(&drop.row, change);
            if let Some(seen) = &drop.seen {
                // An append changes neither the subject's row nor the class's.
                let (class, count) = (drop.row.class, seen.len() as u32);
                change.require(Precondition::ItemGroupsOf { tenant, uid, class, count });
                for (field, bucket, revision) in seen.iter().copied() {
                    change.require(Precondition::ItemGroupAt { uid, field, bucket, revision });
                }
            }
            require_no_hold(subject, drop.row.class, change);
        }
        if plan.all {
            // A put that opens a class beside us does not change the subject's row.
            for class in policy.classes().map(|rule| rule.no).chain([ClassNo::OWN]) {
                let version = match snapshot.class(class) {
                    Some(row) if row.slot.is_some() => continue,
                    Some(row) => DekVersion(row.version.0 + 1),
                    None => DekVersion(1),
                };
                change.require(Precondition::ClassBelow { uid, class, version });
            }
        }
        for held in &plan.held {
            let row = snapshot.class(held.class).ok_or(VaultError::DataLoss)?;
            unchanged(row, change);
            if row.state != ClassState::Restricted {
                // The record's own revision stays: nothing in it changes.
                change.change(Mutation::PutClass(ClassRow { state: ClassState::Restricted, ..row.clone() }));
            }
        }
        for drop in &plan.drops {
            let class = drop.row.class;
            if !plan.whole() {
                for rule in policy.fields().filter(|rule| rule.class == class && rule.searchable) {
                    change.change(Mutation::DeleteTerms { tenant, uid, field: Some(rule.no) });
                }
                if policy.credentials().is_some_and(|rules| rules.class == class) {
                    change.change(Mutation::DeleteTerms {
                        tenant,
                        uid,
                        field: Some(crate::vault::credentials::API_KEYS),
                    });
                }
                change.change(Mutation::PutClass(ClassRow {
                    slot: None,
                    state: ClassState::Erased,
                    revision: Revision(drop.row.revision.0 + 1),
                    seals: 0,
                    next_bucket: None,
                    record: Vec::new(),
                    ..drop.row.clone()
                }));
            }
            if policy.fields().any(|rule| rule.many && rule.class == class) {
                // A class that may be opened again must be empty by then; a subject's number never comes back.
                let limit = if plan.whole() { ITEMS_AT_ONCE } else { u32::MAX };
                change.change(Mutation::DeleteItemsOf { tenant, uid, class, limit });
            }
            if drop.many_items && plan.whole() {
                let key = [&uid.0.to_be_bytes()[..], &[class.0]].concat();
                let (kind, revision, body) = (ObjectKind::Sweep, Revision(1), Vec::new());
                change.change(Mutation::PutObject(ObjectRow { tenant, kind, key, revision, body }));
            }
        }
        if plan.whole() {
            change.change(Mutation::DeleteTerms { tenant, uid, field: None });
            change.change(crate::vault::credentials::forget_tries(tenant, uid));
            change.change(Mutation::DeleteSubject { uid });
            let digest = subject.digest;
            change.change(Mutation::PutTombstone(TombstoneRow { tenant, digest, operation, at: call.now }));
        } else {
            let state = match subject.state {
                _ if plan.all => SubjectState::Held,
                // Frozen for this erasure of some classes, which was scheduled.
                SubjectState::Frozen => SubjectState::Live,
                state => state,
            };
            let revision = Revision(subject.revision.0 + 1);
            let due = if plan.all { None } else { subject.due };
            change.change(Mutation::PutSubject(SubjectRow { state, revision, due, ..subject.clone() }));
        }
        Ok(())
    }

    /// The state of an erasure for its caller; waits for its end where asked.
    pub(crate) async fn answer_erasure(
        &self,
        call: &Call,
        operation: Operation,
        wait_final: bool,
        with_salt: bool,
    ) -> Result<Erasure, VaultError> {
        let mut operation = operation;
        while wait_final
            && matches!(
                operation.status,
                OperationStatus::Accepted | OperationStatus::Committed | OperationStatus::Running
            )
        {
            // Until the caller's deadline drops this future.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            let (stored, revision) = self.operation(call.tenant.no, operation.id).await?;
            operation = self.drive(call, stored, revision).await?;
        }
        let receipt = self.stored_receipt(call.tenant.no, operation.id).await?;
        let salt = with_salt.then(|| salt(call, operation.id));
        Ok(Erasure { operation, receipt, salt })
    }

    /// Goes on with an unfinished operation about one subject, as far as it goes now.
    pub(crate) async fn drive(
        &self,
        call: &Call,
        operation: Operation,
        revision: Revision,
    ) -> Result<Operation, VaultError> {
        match operation.status {
            OperationStatus::Committed => self.settle_committed(call, operation, revision).await,
            OperationStatus::Accepted | OperationStatus::PartlyHeld | OperationStatus::Scheduled
                if operation.subject.is_some() =>
            {
                Box::pin(self.carry_out(call, None, operation, Some(revision), None)).await
            }
            OperationStatus::Scheduled if operation.kind == OperationKind::EraseGroup => {
                Box::pin(self.begin_scheduled_group(call, operation, revision)).await
            }
            OperationStatus::Running if operation.kind == OperationKind::EraseGroup => {
                Ok(Box::pin(self.erase_members(call, operation, revision)).await?.0)
            }
            OperationStatus::Running if operation.kind == OperationKind::EraseTenant => {
                Box::pin(self.retire_tenant(call, operation, revision)).await
            }
            OperationStatus::PartlyHeld if operation.kind == OperationKind::EraseGroup => {
                self.end_held_group(call, operation, revision).await
            }
            _ => Ok(operation),
        }
    }

    /// Erasures of a subject that waited for a hold go on.
    pub(crate) async fn resume_held(&self, call: &Call, uid: SubjectUid) -> Result<(), VaultError> {
        for (operation, revision) in self.open_operations(call.tenant.no, uid).await? {
            if operation.status == OperationStatus::PartlyHeld {
                self.drive(call, operation, revision).await?;
            }
        }
        Ok(())
    }

    /// As [`Self::resume_held`] for every subject of a group.
    pub(crate) async fn resume_group(&self, call: &Call, group: Option<GroupNo>) -> Result<(), VaultError> {
        let mut after = SubjectUid(0);
        loop {
            let page = self.store.list_subjects(call.tenant.no, group, after, 1000).await?;
            for snapshot in &page.rows {
                after = snapshot.subject.uid;
                if snapshot.classes.iter().any(|row| row.state == ClassState::Restricted) {
                    self.resume_held(call, after).await?;
                }
            }
            if !page.more {
                return Ok(());
            }
        }
    }

    /// Notes that something searchable is erased under the present index secret, and answers the latest time at which
    /// that secret will be destroyed. Called before the keys go and again after: a rotation may have ended in between.
    pub(crate) async fn owe_search(&self, call: &Call) -> Result<Timestamp, VaultError> {
        let horizon = self.options.search_horizon_days;
        let tenant = self.tenant(call.tenant.no)?;
        let owed = |settings: &crate::vault::tenant::TenantSettings| settings.index_owed_since;
        if let Some(since) = owed(&tenant.settings) {
            return Ok(since.plus_days(horizon));
        }
        let now = tenant.time(self.clock.now());
        let mut record = call.record(Action::UpdateTenant, Outcome::Ok);
        record.actor = ActorId(0);
        let tenant = self
            .edit_settings(tenant.no, None, record, |settings| {
                settings.index_owed_since.get_or_insert(now);
                Ok(())
            })
            .await?;
        Ok(owed(&tenant.settings).unwrap_or(now).plus_days(horizon))
    }
}

/// What the ledger says of an erasure: every class with the versions that are gone.
pub(crate) fn erased_entries(
    call: &Call,
    operation: &Operation,
    parts: impl Iterator<Item = ErasedPart>,
) -> Vec<LedgerEntry> {
    let uid = operation.subject.unwrap_or(SubjectUid(0));
    // A restore needs to know whether a tombstone stands for the subject.
    let above = matches!(operation.kind, OperationKind::EraseSubject | OperationKind::EraseGroup);
    let whole = above && operation.classes.is_empty() && operation.held.is_empty();
    let entry = |part: ErasedPart| LedgerEntry {
        class: part.class,
        version: part.through,
        number: if whole { WHOLE } else { 0 },
        ..ledger_entry(call, LedgerKind::Erased, uid, operation.id)
    };
    parts.map(entry).collect()
}

/// Salt of an operation's commitment: the vault can make it again and does not store it.
pub(crate) fn salt(call: &Call, operation: ObjectId) -> [u8; 32] {
    let id = operation.0.as_bytes();
    let mut out = [0; 32];
    out[..16].copy_from_slice(&call.tenant.token_mac(&[b"salt", id, &[0]]));
    out[16..].copy_from_slice(&call.tenant.token_mac(&[b"salt", id, &[1]]));
    out
}
