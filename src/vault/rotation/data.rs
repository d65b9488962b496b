//! Data keys: every value of a tenant, of some classes, or of one subject is sealed anew under a new key, class by class of
//! each subject, and the old key's slot is dropped with the swap that brings the new one. Reads go on: a call finds a value
//! under the old key or under the new one.

use futures_util::stream::{self, StreamExt};

use crate::audit::Action;
use crate::ids::*;
use crate::receipt::rotation::{Kind, Version};
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::{Call, Context};
use crate::vault::error::VaultError;
use crate::vault::expiry::Progress;
use crate::vault::find::Key;
use crate::vault::operation::{Operation, OperationKind, OperationStatus, RotationState};
use crate::vault::request::Request;

/// Subjects looked at together.
const PAGE: u32 = 200;
/// Classes sealed anew beside one another: what waits together shares one swap.
const TOGETHER: usize = 64;

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
        // A page, or, where the rate is bounded, what may be done at once.
        let mut budget = limit.min(PAGE.into());
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
        loop {
            let after = SubjectUid(operation.cursor.unwrap_or(0));
            let (rows, more) = match state.subject {
                Some(uid) => (self.store.subject_by_uid(uid).await?.into_iter().collect(), false),
                None => {
                    let size = u32::try_from(budget.min(PAGE.into())).unwrap_or(PAGE);
                    let page = self.store.list_subjects(tenant, None, after, size).await?;
                    (page.rows, page.more)
                }
            };
            self.rekey_page(call, &rows, &state, operation.id).await?;
            let moved = rows.len() as u64;
            done += moved;
            budget = budget.saturating_sub(moved);
            let next = Operation {
                cursor: rows.last().map(|row| row.subject.uid.0).or(operation.cursor),
                done: operation.done + moved,
                total: operation.total.max(operation.done + moved),
                status: if more { OperationStatus::Running } else { OperationStatus::Committed },
                updated: call.now,
                ..operation.clone()
            };
            self.advance_operation(call, &operation, revision, &next, Action::RotateKeys, ChangeSet::default()).await?;
            (operation, revision) = (next, Revision(revision.0 + 1));
            if !more {
                break;
            }
            if budget == 0 {
                return Ok((operation, Progress { done, more: state.per_second == 0 }));
            }
        }
        // Archives of before hold the old keys until they expire; the present one must not.
        if self.has_recovery() {
            self.keyring.rewrite_archive(tenant).await?;
        }
        let ended = self.settle_rotation(call, operation, revision).await?;
        Ok((ended, Progress { done: done + 1, more: false }))
    }

    /// New keys for the classes of these subjects. What others change beside it is looked at again.
    async fn rekey_page(
        &self,
        call: &Call,
        rows: &[std::sync::Arc<SubjectSnapshot>],
        state: &RotationState,
        operation: ObjectId,
    ) -> Result<(), VaultError> {
        let meant =
            |row: &&ClassRow| row.slot.is_some() && (state.classes.is_empty() || state.classes.contains(&row.class));
        // What is being erased gets no new key: it is about to have none.
        let whole = rows.iter().filter(|row| row.subject.state != SubjectState::Frozen);
        let work: Vec<(SubjectUid, ClassNo)> =
            whole.flat_map(|row| row.classes.iter().filter(meant).map(|class| (class.uid, class.class))).collect();
        let mut running = stream::iter(work)
            .map(|(uid, class)| self.rotate_class(call, uid, class, Some(operation)))
            .buffer_unordered(TOGETHER);
        while let Some(result) = running.next().await {
            match result {
                Ok(()) | Err(VaultError::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
