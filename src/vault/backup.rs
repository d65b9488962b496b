//! Backups as operations of the vault itself: what was asked for by whom, how far it is, how it ended. The copying is not
//! done here.

use crate::audit::{Action, Outcome};
use crate::ids::*;
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::error::VaultError;
use crate::vault::operation::*;
use crate::vault::request::Request;

impl Vault {
    /// The backup that this request was answered with before.
    pub async fn repeated_backup(
        &self,
        call: &Call,
        request: Option<&Request>,
    ) -> Result<Option<Operation>, VaultError> {
        match self.repeated(call, request).await? {
            Some(id) => Ok(Some(self.get_operation(call, id).await?)),
            None => Ok(None),
        }
    }

    /// Answers a request with a backup that runs already.
    pub async fn join_backup(
        &self,
        call: &Call,
        id: ObjectId,
        request: Option<&Request>,
    ) -> Result<Operation, VaultError> {
        let operation = self.get_operation(call, id).await?;
        if request.is_some() {
            let mut change = ChangeSet::default();
            self.remember(call, request, &id, &mut change);
            self.store.commit(change).await?;
        }
        Ok(operation)
    }

    /// Notes that a backup begins. For operators and the vault's own job.
    pub async fn begin_backup(
        &self,
        call: &Call,
        request: Option<&Request>,
    ) -> Result<(Operation, Revision), VaultError> {
        self.for_operators(call)?;
        let operation = Operation::new(call, OperationKind::Backup, OperationStatus::Running);
        let mut change = ChangeSet::default();
        self.remember(call, request, &operation.id, &mut change);
        put_operation(call.tenant.no, &operation, None, &mut change);
        self.store.commit(change).await?;
        Ok((operation, Revision(1)))
    }

    /// Notes how far it is, or how it ended; the end is an entry of the audit.
    ///
    /// # Errors
    /// `Conflict` when it was cancelled meanwhile.
    pub async fn note_backup(
        &self,
        call: &Call,
        former: &Operation,
        revision: Revision,
        next: &Operation,
    ) -> Result<Revision, VaultError> {
        let mut change = ChangeSet::default();
        put_operation(call.tenant.no, next, Some((former, revision)), &mut change);
        if next.status.is_final() {
            let outcome = if next.status == OperationStatus::Done { Outcome::Ok } else { Outcome::Failed };
            let mut entry = call.record(Action::Backup, outcome);
            entry.operation = Some(next.id);
            change.note(call.tenant.no, entry.to_bytes());
        }
        self.store.commit(change).await?;
        Ok(Revision(revision.0 + 1))
    }

    /// Ends backups that a crash interrupted: their copies are useless. To be called before the first one begins.
    pub async fn end_interrupted_backups(&self) -> Result<(), VaultError> {
        let call = self.job_call(self.tenant(TenantNo::VAULT)?);
        let mut after = Vec::new();
        loop {
            let (found, more) = self.unfinished(call.tenant.no, after, 1_000).await?;
            for (operation, revision) in found.iter().filter(|(one, _)| one.kind == OperationKind::Backup) {
                let next = Operation {
                    status: OperationStatus::Failed,
                    updated: call.now,
                    error: Some("INTERRUPTED".into()),
                    ..operation.clone()
                };
                self.note_backup(&call, operation, *revision, &next).await?;
            }
            match more {
                Some(more) => after = more,
                None => return Ok(()),
            }
        }
    }
}
