//! Erasing a tenant: its root is destroyed in every replica of the keeper, then its rows go. The operation and its
//! receipt belong to the vault itself (tenant 0), because nothing of the tenant is left.

use crate::access::{FieldSet, Verb, View};
use crate::audit::{Action, Outcome};
use crate::auth::{Approval, ApprovalUse, KeyId};
use crate::ids::*;
use crate::keyring::ledger::LedgerKind;
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::erase::Erasure;
use crate::vault::error::{DenialKind, VaultError};
use crate::vault::ledger::ledger_entry;
use crate::vault::operation::*;
use crate::vault::request::Request;

/// Rows removed in one change set.
const ROWS_AT_ONCE: u32 = 5_000;

impl Vault {
    /// Erases the call's tenant for good. Its number is never given again. Answers when its keys are destroyed; a job
    /// removes the rows.
    ///
    /// # Errors
    /// `Held` while a placed hold of the tenant is active, unless two other operators approved that; `Denied` where these
    /// approvals are not that.
    pub async fn erase_tenant(
        &self,
        call: &Call,
        approvals: &[ObjectId],
        request: Option<Request>,
        validate_only: bool,
    ) -> Result<Option<Erasure>, VaultError> {
        self.operators_only(call)?;
        let no = call.tenant.no;
        if no == TenantNo::VAULT {
            return Err(VaultError::invalid("tenant", "the vault itself is not a tenant to erase"));
        }
        let own = self.call(call.principal.clone(), self.tenant(TenantNo::VAULT)?);
        for _ in 0..6 {
            let used = match (self.any_hold(call).await?, approvals) {
                (None, []) => Vec::new(),
                (None, _) => {
                    return Err(VaultError::invalid("approvals", "must be empty: no hold is active"));
                }
                (Some(hold), []) => {
                    let class = hold.classes.first().copied().unwrap_or(ClassNo(0));
                    return Err(VaultError::held(call, class, Some(hold.id)));
                }
                (Some(_), approvals) => self.two_operators_agree(call, approvals).await?,
            };
            if validate_only {
                return Ok(None);
            }
            let rows = self.store.tenants().await?;
            let row = rows.into_iter().find(|row| row.no == no).ok_or(VaultError::NotFound)?;
            let mut operation = Operation::new(&own, OperationKind::EraseTenant, OperationStatus::Running);
            operation.tenant = Some((no, row.name.clone()));
            operation.controller = call.tenant.policy.as_ref().map(|policy| policy.controller().name.clone());
            let mut change = ChangeSet::default();
            change.require(Precondition::TenantIs { tenant: no, state: TenantState::Live });
            change.require(Precondition::TenantSettingsAt { tenant: no, revision: row.revision });
            change.require(Precondition::TreeGeneration { tenant: no, generation: row.generation });
            if used.is_empty() {
                change.require(Precondition::NoObjectUnder { tenant: no, kind: ObjectKind::Hold, prefix: Vec::new() });
            }
            for (approval, former) in &used {
                self.put_approval(call, approval, *former, &mut change);
                for tenant in [no, TenantNo::VAULT] {
                    let mut entry = own.record(Action::UseApproval, Outcome::Ok);
                    entry.operation = Some(approval.id);
                    change.note(tenant, entry.to_bytes());
                }
            }
            self.remember(&own, request.as_ref(), &operation.id, &mut change);
            let revision = Revision(row.revision.0 + 1);
            change.change(Mutation::PutTenant(TenantRow { state: TenantState::Erasing, revision, ..row }));
            put_operation(TenantNo::VAULT, &operation, None, &mut change);
            for tenant in [no, TenantNo::VAULT] {
                let mut entry = own.record(Action::EraseRequested, Outcome::Ok);
                entry.operation = Some(operation.id);
                change.note(tenant, entry.to_bytes());
            }
            match self.store.commit(change).await {
                Ok(_) => {
                    self.unload_tenant(no);
                    let operation = self.retire_tenant(&own, operation, Revision(1)).await?;
                    return self.answer_erasure(&own, operation, false, false).await.map(Some);
                }
                Err(error) => self.retry_or_answer(&own, error, request.as_ref()).await?,
            }
        }
        Err(VaultError::Conflict)
    }

    /// Two approvals that this operator asked for in the tenant, granted by two others who are operators too; as they are
    /// once they are used.
    async fn two_operators_agree(
        &self,
        call: &Call,
        approvals: &[ObjectId],
    ) -> Result<Vec<(Approval, Revision)>, VaultError> {
        let refused = |why: &str| VaultError::denied(DenialKind::ApprovalNeeded, why);
        let [first, second] = approvals else {
            return Err(refused("two approvals by two other operators are needed"));
        };
        let (mut used, mut deciders) = (Vec::new(), Vec::new());
        for id in [first, second] {
            let (approval, revision) = self.approval(call, *id).await?;
            let wanted = ApprovalUse {
                by: call.principal.actor,
                subjects: Vec::new(),
                verb: Verb::Erase,
                fields: FieldSet::EMPTY,
                purpose: None,
                view: View::Masked,
                // The request has no reference: the approval is bound to the tenant that it was asked for in.
                reference: approval.reference,
            };
            let after = approval.use_for(&wanted, call.now)?;
            deciders.extend(after.decision.map(|(by, ..)| by));
            used.push((after, revision));
        }
        let operator = |by: &ActorId| {
            let slot = self.access.by_id(KeyId(by.0));
            slot.is_some_and(|slot| slot.tenant == TenantNo::VAULT)
        };
        match deciders[..] {
            [a, b] if a != b && operator(&a) && operator(&b) => Ok(used),
            _ => Err(refused("two approvals by two other operators are needed")),
        }
    }

    /// Destroys the keys (which may be repeated), removes the rows, and ends. `own` is a call in the vault's own tenant.
    pub(crate) async fn retire_tenant(
        &self,
        own: &Call,
        operation: Operation,
        revision: Revision,
    ) -> Result<Operation, VaultError> {
        let (no, _) = operation.tenant.clone().ok_or(VaultError::DataLoss)?;
        self.unload_tenant(no);
        self.keyring.erase_tenant_keys(no).await?;
        if let Some(archive) = self.keyring.archive().cloned() {
            let removed = tokio::task::spawn_blocking(move || archive.remove(no)).await;
            if let Ok(Err(error)) = removed {
                tracing::error!(tenant = no.0, %error, "the key archive of an erased tenant was not removed");
            }
        }
        let entry = ledger_entry(own, LedgerKind::TenantErased, SubjectUid(0), operation.id);
        self.ledger(vec![crate::keyring::ledger::LedgerEntry { tenant: no, ..entry }]).await?;
        loop {
            let mut change = ChangeSet::default();
            change.change(Mutation::ClearTenant { tenant: no, limit: ROWS_AT_ONCE });
            if self.store.commit(change).await?.removed == 0 {
                break;
            }
        }
        let rows = self.store.tenants().await?;
        let row = rows.into_iter().find(|row| row.no == no).ok_or(VaultError::NotFound)?;
        let mut next = operation.clone();
        (next.status, next.done, next.total) = (OperationStatus::Done, 1, 1);
        next.updated = self.clock.now();
        next.erased_at = Some(next.updated);
        next.generation = Some(row.generation);
        let mut change = ChangeSet::default();
        change.require(Precondition::TenantIs { tenant: no, state: TenantState::Erasing });
        let revision_row = Revision(row.revision.0 + 1);
        let row = TenantRow { state: TenantState::Erased, revision: revision_row, ..row };
        change.change(Mutation::PutTenant(row));
        self.put_receipt(own, &next, revision, &mut change).await?;
        change.note(no, own.record(Action::EraseTenant, Outcome::Ok).to_bytes());
        self.advance_operation(own, &operation, revision, &next, Action::EraseTenant, change).await?;
        Ok(next)
    }
}
