//! Rotating the pepper of passwords. New hashes are made under version + 1 from the switch on, and a hash under the old
//! version is made anew at its subject's next good login. Who never logs in cannot be hashed anew: how many are left is
//! counted, and the old version's slot is dropped when none is, or at the operator's deadline. What is left then cannot
//! be checked by anybody any more, and must be set anew.

use serde::{Deserialize, Serialize};

use crate::audit::{Action, Outcome};
use crate::clock::{DAY_MS, Timestamp};
use crate::ids::*;
use crate::keyring::SecretKind;
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::error::VaultError;
use crate::vault::expiry::Progress;
use crate::vault::operation::{Operation, OperationKind, OperationStatus, RotationState, put_operation};
use crate::vault::request::Request;
use crate::vault::secret_drop::Rotated;
use crate::vault::tenant::TenantSettings;
use crate::vault::to_json;

const PEPPER: &[u8] = b"pepper-rotation";

/// How far a rotation is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Peppering {
    operation: ObjectId,
    /// When hashes of the new version began, by the machine's clock.
    since: Timestamp,
    /// When what is left must be set anew, by the tenant's clock; `None`: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deadline: Option<Timestamp>,
    /// When the left ones were last counted, by the machine's clock.
    counted: Timestamp,
}

impl Vault {
    /// Begins the rotation of the tenant's password pepper; the operation that a job finishes. One that runs is answered,
    /// with the new deadline.
    ///
    /// # Errors
    /// `Invalid` when the deadline is not in the future.
    pub async fn rotate_pepper(
        &self,
        call: &Call,
        deadline: Option<Timestamp>,
        request: Option<Request>,
    ) -> Result<Operation, VaultError> {
        self.may_rotate(call)?;
        self.credential_rules(call)?;
        let tenant = call.tenant.no;
        let known = self.peppering(tenant).await?;
        let repeat: Option<ObjectId> = self.repeated(call, request.as_ref()).await?;
        if let Some(id) = repeat
            && (known.is_none() || self.tenant(tenant)?.settings.pepper_retiring.is_some())
        {
            return Ok(self.operation(tenant, id).await?.0);
        }
        if deadline.is_some_and(|end| end <= call.now) {
            return Err(VaultError::invalid("reset_time", "must be in the future"));
        }
        let mut change = ChangeSet::default();
        let (state, former, operation) = match known {
            Some((state, at)) => {
                let operation = self.operation(tenant, state.operation).await?.0;
                (Peppering { deadline: deadline.or(state.deadline), ..state }, at, operation)
            }
            None => {
                let operation = Operation::new(call, OperationKind::RotatePepper, OperationStatus::Running);
                put_operation(tenant, &operation, None, &mut change);
                let (operation_id, since) = (operation.id, call.wall);
                (Peppering { operation: operation_id, since, deadline, counted: since }, Revision(0), operation)
            }
        };
        put_state(tenant, &state, former, &mut change);
        if repeat.is_none() {
            self.remember(call, request.as_ref(), &operation.id, &mut change);
        }
        self.store.commit(change).await?;
        if self.tenant(tenant)?.settings.pepper_retiring.is_none() {
            let record = call.record(Action::RotateKeys, Outcome::Ok);
            self.edit_settings(tenant, None, record, |settings: &mut TenantSettings| {
                if settings.pepper_retiring.is_some() {
                    return Err(VaultError::Conflict);
                }
                settings.pepper_retiring = Some(settings.pepper);
                settings.pepper = SecretVersion(settings.pepper.0.checked_add(1).ok_or(VaultError::DataLoss)?);
                Ok(())
            })
            .await?;
        }
        Ok(operation)
    }

    async fn peppering(&self, tenant: TenantNo) -> Result<Option<(Peppering, Revision)>, VaultError> {
        let row = self.store.object(tenant, ObjectKind::Setting, PEPPER.to_vec()).await?;
        let read = |row: ObjectRow| serde_json::from_slice(&row.body).map(|state| (state, row.revision));
        row.map(read).transpose().map_err(|_| VaultError::DataLoss)
    }

    /// The pepper that is being retired and how many passwords are left under it. Scans.
    pub(crate) async fn pepper_left(&self, call: &Call) -> Result<Option<(SecretVersion, u64)>, VaultError> {
        let Some(version) = call.tenant.settings.pepper_retiring else { return Ok(None) };
        if call.tenant.policy()?.credentials().is_none() {
            return Ok(Some((version, 0)));
        }
        Ok(Some((version, self.count_credentials(call).await?.retiring)))
    }

    /// Looks after credentials: old rows of guessing go, and a rotation of the pepper ends when its time has come. What is
    /// left is counted once a day.
    pub async fn keep_credentials(&self, call: &Call, limit: u64) -> Result<Progress, VaultError> {
        let mut progress = Progress { done: self.prune_guesses(call, limit).await?, more: false };
        let tenant = call.tenant.no;
        let Some(old) = call.tenant.settings.pepper_retiring else { return Ok(progress) };
        let (mut state, revision) = self.peppering(tenant).await?.ok_or(VaultError::DataLoss)?;
        if call.wall < state.since.plus_ms(self.options.settled_ms()) {
            return Ok(progress);
        }
        let over = state.deadline.is_some_and(|end| end <= call.now);
        let counted_lately = call.wall < state.counted.plus_ms(DAY_MS) && state.counted != state.since;
        if !over && counted_lately {
            return Ok(progress);
        }
        let left = self.pepper_left(call).await?.map_or(0, |(_, left)| left);
        if left == 0 || over {
            let (kind, operation) = (SecretKind::PasswordPepper, state.operation);
            let rotated = Rotated { kind, old, operation, state: Some((PEPPER, revision)) };
            let lost = RotationState { lost: left, ..RotationState::default() };
            let finish = |operation| Operation { total: left, rotation: Some(lost.clone()), ..operation };
            self.drop_secret(call, &rotated, |settings| &mut settings.pepper_retiring, finish).await?;
            progress.done += 1;
            return Ok(progress);
        }
        state.counted = call.wall;
        let (former, at) = self.operation(tenant, state.operation).await?;
        let next = Operation { total: left, updated: call.now, ..former.clone() };
        let mut change = ChangeSet::default();
        put_state(tenant, &state, revision, &mut change);
        put_operation(tenant, &next, Some((&former, at)), &mut change);
        self.store.commit(change).await?;
        Ok(progress)
    }
}

/// Stores how far a rotation is in place of the state of that revision.
fn put_state(tenant: TenantNo, state: &Peppering, former: Revision, change: &mut ChangeSet) {
    let (kind, key) = (ObjectKind::Setting, PEPPER.to_vec());
    change.replace_object(tenant, kind, key, former, to_json(state));
}
