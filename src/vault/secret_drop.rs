//! The end of a rotation of one of a tenant's secrets, or of the vault's own: the old version's slot is dropped, in one change with the settings
//! that named it, the operation and the state of the rotation.

use crate::audit::{Action, Outcome};
use crate::ids::*;
use crate::keyring::{SecretKind, SwapError, SwapOp, secret_slot};
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::error::VaultError;
use crate::vault::operation::{Operation, OperationStatus, RotationState, put_operation};
use crate::vault::retry::ATTEMPTS;
use crate::vault::tenant::TenantSettings;
use crate::vault::to_json;

/// A rotation that is through but for its last step.
pub(crate) struct Rotated {
    pub kind: SecretKind,
    pub old: SecretVersion,
    pub operation: ObjectId,
    /// Key and revision of the setting that holds how far the rotation is; `None`: the operation itself holds it.
    pub state: Option<(&'static [u8], Revision)>,
}

impl Vault {
    /// Drops the old version. `retiring` is where the settings name it; `finish` completes the operation, whose status, time
    /// and generation are set here; it ends with a signed record once the old root is overwritten.
    ///
    /// # Errors
    /// `Conflict` where the settings name another version, or too much happens beside it.
    pub(crate) async fn drop_secret(
        &self,
        call: &Call,
        rotated: &Rotated,
        retiring: impl Fn(&mut TenantSettings) -> &mut Option<SecretVersion>,
        finish: impl Fn(Operation) -> Operation,
    ) -> Result<(), VaultError> {
        let tenant = call.tenant.no;
        for _ in 0..ATTEMPTS {
            let rows = self.store.tenants().await?;
            let row = rows.into_iter().find(|row| row.no == tenant).ok_or(VaultError::NotFound)?;
            let mut settings: TenantSettings = serde_json::from_slice(&row.body).map_err(|_| VaultError::DataLoss)?;
            if retiring(&mut settings).take() != Some(rotated.old) {
                return Err(VaultError::Conflict);
            }
            let (former, at) = self.operation(tenant, rotated.operation).await?;
            let finished = finish(former.clone());
            let next = Operation {
                status: OperationStatus::Committed,
                updated: call.now,
                generation: Some(Generation(row.generation.0 + 1)),
                rotation: Some(RotationState::of_secret(rotated.old, finished.rotation.as_ref())),
                ..finished
            };
            let mut change = ChangeSet::default();
            change.require(Precondition::TenantSettingsAt { tenant, revision: row.revision });
            let (body, next_revision) = (to_json(&settings), Revision(row.revision.0 + 1));
            change.change(Mutation::SetTenantSettings { tenant, body, revision: next_revision });
            put_operation(tenant, &next, Some((&former, at)), &mut change);
            if let Some((key, revision)) = rotated.state {
                let (kind, key) = (ObjectKind::Setting, key.to_vec());
                change.require(Precondition::ObjectAt { tenant, kind, key: key.clone(), revision });
                change.change(Mutation::DeleteObject { tenant, kind, key });
            }
            let mut entry = call.record(Action::RotateKeys, Outcome::Ok);
            entry.operation = Some(next.id);
            change.note(tenant, entry.to_bytes());
            let slots = vec![secret_slot(rotated.kind, rotated.old)];
            match self.keyring.swap(tenant, SwapOp { slots, change, ..SwapOp::default() }).await {
                Ok(_) => {
                    self.reload_tenant(tenant).await?;
                    self.settle_rotation(call, next, Revision(at.0 + 1)).await?;
                    return Ok(());
                }
                Err(SwapError::Conflict(_)) => {}
                Err(error @ SwapError::Unfinished { .. }) => {
                    self.reload_tenant(tenant).await?;
                    return Err(error.into());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(VaultError::Conflict)
    }
}
