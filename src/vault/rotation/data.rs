//! Data keys: every value of a tenant, of some classes, or of one subject is sealed anew under a new key, class by class of
//! each subject, and the old key's slot is dropped with the swap that brings the new one. Reads go on: a call finds a value
//! under the old key or under the new one.

use std::collections::HashMap;
use std::sync::Arc;

use crate::audit::Action;
use crate::ids::*;
use crate::keyring::{KeyRef, SwapError, SwapOp};
use crate::receipt::rotation::{Kind, Version};
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::{Call, Context};
use crate::vault::error::VaultError;
use crate::vault::expiry::Progress;
use crate::vault::find::Key;
use crate::vault::operation::{Operation, OperationKind, OperationStatus, RotationState};
use crate::vault::request::Request;

/// Subjects whose classes are sealed anew together and share one swap. While one page is committed, the next is sealed.
const PAGE: u32 = 32;
/// Items of a page, each about 1 KB of memory while it is sealed and committed; a subject with more goes alone.
const MOST_ITEMS: u64 = 2_000;
/// Pages after which it is looked whether the rotation is to pause.
const PAGES: u64 = 32;
/// Subjects sealed between two looks at what else waits for the thread.
const AT_ONCE: usize = 4;

/// Which data keys.
#[derive(Default)]
pub struct DataScope {
    /// Empty: all classes.
    pub classes: Vec<ClassNo>,
    /// `None`: all subjects.
    pub subject: Option<Key>,
    /// Most subjects a second; 0: as fast as it goes.
    pub per_second: u32,
}

impl Vault {
    /// Begins to give new data keys; a job goes on with it.
    ///
    /// # Errors
    /// `WrongState` while a rotation of other data keys of this tenant runs.
    pub async fn rotate_data(
        &self,
        call: &Call,
        scope: DataScope,
        request: Option<Request>,
        validate_only: bool,
    ) -> Result<Option<Operation>, VaultError> {
        self.may_rotate(call)?;
        let tenant = call.tenant.no;
        if let Some(known) = self.repeated_operation(call, request.as_ref()).await? {
            return Ok(Some(known));
        }
        if tenant == TenantNo::VAULT {
            return Err(VaultError::invalid("tenant", "the vault itself has no data keys"));
        }
        let policy = call.tenant.policy()?;
        if scope.classes.iter().any(|class| policy.class(*class).is_none()) {
            return Err(VaultError::invalid("class_ids", "no class with this number in the policy"));
        }
        let subject = match &scope.subject {
            Some(key) => Some(self.resolve(call, &Context::default(), key).await?.subject.uid),
            None => None,
        };
        if validate_only {
            return Ok(None);
        }
        let mut classes = scope.classes;
        classes.sort();
        classes.dedup();
        let number = self.key_age(call, Kind::Data).await?.version.number;
        let version = |number| Version { number, ..Version::default() };
        // A part of them is not a new version of all.
        let whole = classes.is_empty() && subject.is_none();
        let state = RotationState {
            from: version(number),
            to: version(if whole { number + 1 } else { number }),
            classes,
            subject,
            per_second: scope.per_second,
            ..RotationState::default()
        };
        let (operation, new) =
            self.start_rotation(call, OperationKind::RotateData, request.as_ref(), state.clone()).await?;
        let same = |known: &RotationState| known.classes == state.classes && known.subject == state.subject;
        if !new && !operation.rotation.as_ref().is_some_and(same) {
            return Err(VaultError::WrongState("a rotation of other data keys of this tenant runs"));
        }
        Ok(Some(operation))
    }

    pub(super) async fn begin_data(&self, call: &Call) -> Result<Operation, VaultError> {
        let begun = self.rotate_data(call, DataScope::default(), None, false).await?;
        begun.ok_or(VaultError::Conflict)
    }

    pub(super) async fn step_data(
        &self,
        call: &Call,
        operation: Operation,
        revision: Revision,
        limit: u64,
    ) -> Result<(Operation, Progress), VaultError> {
        let tenant = call.tenant.no;
        let state = operation.rotation.clone().unwrap_or_default();
        let (mut operation, mut revision, mut done) = (operation, revision, 0);
        // Some pages, or, where the rate is bounded, what may be done at once.
        let mut budget = limit.min(PAGES * u64::from(PAGE));
        if state.per_second > 0 {
            // What the time since the last step allows, of at most two seconds: a pause is not made up for.
            let since = call.now.0.saturating_sub(operation.updated.0).clamp(0, 2_000) as u64;
            budget = limit.min(since * u64::from(state.per_second) / 1_000);
            if budget == 0 {
                return Ok((operation, Progress::default()));
            }
        }
        if operation.total == 0 {
            operation.total = if state.subject.is_some() { 1 } else { self.store.subject_count(tenant).await? };
        }
        let mut after = SubjectUid(operation.cursor.unwrap_or(0));
        let mut page = self.seal_page(call, &state, operation.id, after, budget).await?;
        loop {
            let (subjects, more) = (page.subjects, page.more);
            after = page.last.unwrap_or(after);
            done += subjects;
            budget = budget.saturating_sub(subjects);
            let goes_on = more && budget > 0;
            let began = self.clock.monotonic();
            let seal_next = async {
                match goes_on {
                    true => self.seal_page(call, &state, operation.id, after, budget).await.map(Some),
                    false => Ok(None),
                }
            };
            let (swapped, next) = futures_util::join!(self.swap_page(call, page, operation.id), seal_next);
            let advanced = Operation {
                cursor: Some(after.0),
                done: operation.done + subjects,
                total: operation.total.max(operation.done + subjects),
                status: if more { OperationStatus::Running } else { OperationStatus::Committed },
                updated: call.now,
                ..operation.clone()
            };
            let noted = async {
                swapped?;
                let none = ChangeSet::default();
                self.advance_operation(call, &operation, revision, &advanced, Action::RotateKeys, none).await
            };
            if let Err(error) = noted.await {
                if let Ok(Some(next)) = next {
                    next.renewed.iter().for_each(|one| self.keyring.release(tenant, &one.fresh));
                }
                return Err(error);
            }
            (operation, revision) = (advanced, Revision(revision.0 + 1));
            match next? {
                Some(next) => {
                    page = next;
                    // Nobody waits for a rotation: it rests as long as it works, for the sake of those who read.
                    tokio::time::sleep(self.clock.monotonic() - began).await;
                }
                None if more => return Ok((operation, Progress { done, more: state.per_second == 0 })),
                None => break,
            }
        }
        // Archives of before hold the old keys until they expire; the present one must not.
        if self.has_recovery() {
            self.keyring.rewrite_archive(tenant).await?;
        }
        let ended = self.settle_rotation(call, operation, revision).await?;
        Ok((ended, Progress { done: done + 1, more: false }))
    }

    /// The next subjects from the store, with their classes sealed anew; nothing of it is committed.
    async fn seal_page(
        &self,
        call: &Call,
        state: &RotationState,
        operation: ObjectId,
        after: SubjectUid,
        most: u64,
    ) -> Result<SealedPage, VaultError> {
        let tenant = call.tenant.no;
        let (mut subjects, mut more): (Vec<Arc<SubjectSnapshot>>, bool) = match state.subject {
            Some(uid) => (self.store.subject_by_uid(uid).await?.into_iter().collect(), false),
            None => {
                let size = u32::try_from(most).unwrap_or(PAGE).min(PAGE);
                let page = self.store.list_subjects(tenant, None, after, size).await?;
                (page.rows, page.more)
            }
        };
        let groups = self.store.item_groups_of(subjects.iter().map(|one| one.subject.uid).collect()).await?;
        let fitting = how_many_fit(&subjects, &groups);
        more |= fitting < subjects.len();
        subjects.truncate(fitting);
        let meant =
            |row: &&ClassRow| row.slot.is_some() && (state.classes.is_empty() || state.classes.contains(&row.class));
        // What is being erased gets no new key: it is about to have none.
        let whole = subjects.iter().filter(|one| one.subject.state != SubjectState::Frozen);
        let work: Vec<Vec<&ClassRow>> = whole
            .map(|one| one.classes.iter().filter(meant).collect())
            .filter(|rows: &Vec<_>| !rows.is_empty())
            .collect();
        let mut keys = self.keyring.allocate(tenant, work.iter().map(Vec::len).sum()).await?;
        let last = subjects.last().map(|one| one.subject.uid);
        let mut page =
            SealedPage { renewed: Vec::new(), again: Vec::new(), subjects: subjects.len() as u64, last, more };
        for (n, rows) in work.iter().enumerate() {
            let own: Vec<KeyRef> = keys.drain(..rows.len()).collect();
            let fresh: Vec<Slot> = own.iter().map(|key| key.slot).collect();
            match self.renew_classes(call, rows, &groups, &own, operation).await {
                Ok(op) => page.renewed.push(Renewed { classes: names(rows), fresh, op }),
                Err(error) => {
                    // Changed since the page was read, or damaged: alone it will be told which.
                    tracing::debug!(%error, "a subject's keys are looked at again");
                    self.keyring.release(tenant, &fresh);
                    page.again.extend(names(rows));
                }
            }
            if n % AT_ONCE == AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
        }
        Ok(page)
    }

    /// Commits a page. What others changed beside it is looked at again.
    async fn swap_page(&self, call: &Call, page: SealedPage, operation: ObjectId) -> Result<(), VaultError> {
        let mut again = page.again;
        let (ops, kept): (Vec<SwapOp>, Vec<_>) =
            page.renewed.into_iter().map(|one| (one.op, (one.classes, one.fresh))).unzip();
        let swapped = self.keyring.swap_all(call.tenant.no, ops).await;
        let mut failed = None;
        for ((classes, fresh), result) in kept.into_iter().zip(swapped) {
            self.give_back(call, &fresh, &result);
            match result {
                Ok(_) | Err(SwapError::Unfinished { .. }) => {}
                Err(SwapError::Conflict(_)) => again.extend(classes),
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
        if let Some(error) = failed {
            return Err(error.into());
        }
        for (uid, class) in again {
            match self.rotate_class(call, uid, class, Some(operation)).await {
                Ok(()) | Err(VaultError::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Classes of one subject, sealed anew and not committed.
struct Renewed {
    classes: Vec<(SubjectUid, ClassNo)>,
    /// Where their new keys lie.
    fresh: Vec<Slot>,
    op: SwapOp,
}

struct SealedPage {
    renewed: Vec<Renewed>,
    /// What could not be sealed as it was read.
    again: Vec<(SubjectUid, ClassNo)>,
    subjects: u64,
    last: Option<SubjectUid>,
    /// More subjects follow.
    more: bool,
}

/// The first so many subjects have few enough items together; at least one, where there is one.
fn how_many_fit(subjects: &[Arc<SubjectSnapshot>], groups: &[ItemGroupRow]) -> usize {
    let mut items: HashMap<SubjectUid, u64> = HashMap::new();
    for group in groups {
        *items.entry(group.key.uid).or_default() += u64::from(group.count);
    }
    let mut together = 0;
    let fits = |one: &&Arc<SubjectSnapshot>| {
        together += items.get(&one.subject.uid).copied().unwrap_or(0);
        together <= MOST_ITEMS
    };
    subjects.iter().take_while(fits).count().max(1).min(subjects.len())
}

fn names(rows: &[&ClassRow]) -> Vec<(SubjectUid, ClassNo)> {
    rows.iter().map(|row| (row.uid, row.class)).collect()
}
