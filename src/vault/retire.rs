//! Erasing a tenant: its root is destroyed in every replica of the keeper, then its rows go. The operation and its
//! receipt belong to the vault itself (tenant 0), because nothing of the tenant is left.

use crate::audit::{Action, Outcome};
use crate::ids::*;
use crate::keyring::ledger::LedgerKind;
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::erase::Erasure;
use crate::vault::error::VaultError;
use crate::vault::hold::ledger_entry;
use crate::vault::operation::*;

/// Rows removed in one change set.
const ROWS_AT_ONCE: u32 = 5_000;

impl Vault {
    /// Erases the call's tenant for good. Its number is never given again. Answers when its keys are destroyed; a job
    /// removes the rows.
    ///
    /// # Errors
    /// `Held` while a placed hold of the tenant is active.
    pub async fn erase_tenant(&self, call: &Call) -> Result<Erasure, VaultError> {
        self.operators_only(call)?;
        let no = call.tenant.no;
        if no == TenantNo::VAULT {
            return Err(VaultError::invalid("tenant", "the vault itself is not a tenant to erase"));
        }
        if let Some(hold) = self.any_hold(call).await? {
            let class = hold.classes.first().copied().unwrap_or(ClassNo(0));
            return Err(VaultError::Held { class, hold: hold.id });
        }
        let own = self.call(call.principal.clone(), self.tenant(TenantNo::VAULT)?);
        for _ in 0..6 {
            let rows = self.store.tenants().await?;
            let row = rows.into_iter().find(|row| row.no == no).ok_or(VaultError::NotFound)?;
            let mut operation = Operation::new(&own, OperationKind::EraseTenant, OperationStatus::Running);
            operation.tenant = Some((no, row.name.clone()));
            operation.controller = call.tenant.policy.as_ref().map(|policy| policy.controller().name.clone());
            let mut change = ChangeSet::default();
            change.require(Precondition::TenantIs { tenant: no, state: TenantState::Live });
            change.require(Precondition::TenantSettingsAt { tenant: no, revision: row.revision });
            change.require(Precondition::TreeGeneration { tenant: no, generation: row.generation });
            change.require(Precondition::NoObjectUnder { tenant: no, kind: ObjectKind::Hold, prefix: Vec::new() });
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
                    return self.answer_erasure(&own, operation, false, false).await;
                }
                Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(VaultError::Conflict)
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
