//! A tenant's root: an empty swap puts a new one in the place of the old. Whatever swap comes first does the same.

use serde::{Deserialize, Serialize};

use crate::audit::{Action, Outcome};
use crate::clock::Timestamp;
use crate::ids::*;
use crate::keyring::SwapOp;
use crate::receipt::rotation::Version;
use crate::storage::*;
use crate::vault::call::Call;
use crate::vault::error::VaultError;
use crate::vault::expiry::Progress;
use crate::vault::operation::{Operation, OperationKind, OperationStatus, RotationState, put_operation};
use crate::vault::request::Request;
use crate::vault::rotation::Kind;
use crate::vault::{Vault, to_json};

const ROOT: &[u8] = b"root-age";

/// The generation of a root and when it was first seen.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RootAge {
    generation: Generation,
    since: Timestamp,
}

impl Vault {
    /// Puts a new root in place of the tenant's present one.
    pub async fn rotate_root(&self, call: &Call, request: Option<Request>) -> Result<Operation, VaultError> {
        self.may_rotate(call)?;
        if let Some(known) = self.repeated_operation(call, request.as_ref()).await? {
            return Ok(known);
        }
        self.begin_root(call, request.as_ref()).await
    }

    async fn begin_root(&self, call: &Call, request: Option<&Request>) -> Result<Operation, VaultError> {
        let d = self
            .keyring
            .generation(call.tenant.no)
            .ok_or(VaultError::KeysNotReady(self.keyring.state(call.tenant.no)))?;
        let from = Version { number: d.0, ..Version::default() };
        let state = RotationState { since: Some(d), from, ..RotationState::default() };
        let (operation, _) = self.start_rotation(call, OperationKind::RotateRoot, request, state).await?;
        // Where the keeper is away, the job goes on.
        match self.step_rotation(call, operation.id, 1).await {
            Ok((operation, _)) => Ok(operation),
            Err(error) => {
                tracing::warn!(%error, "a rotation waits");
                Ok(operation)
            }
        }
    }

    pub(super) async fn step_tenant_root(
        &self,
        call: &Call,
        operation: Operation,
        revision: Revision,
    ) -> Result<(Operation, Progress), VaultError> {
        let tenant = call.tenant.no;
        let mut state = operation.rotation.clone().unwrap_or_default();
        let since = state.since.ok_or(VaultError::DataLoss)?;
        let present = self.keyring.generation(tenant).unwrap_or(since);
        // An erasure beside it may have brought the new root already; then it is there all the same.
        let swapped = present > since;
        state.to.number = if swapped { present.0 } else { present.0 + 1 };
        let next = Operation {
            status: OperationStatus::Committed,
            generation: Some(Generation(state.to.number)),
            done: 1,
            total: 1,
            updated: call.now,
            rotation: Some(state),
            ..operation.clone()
        };
        let mut change = ChangeSet::default();
        put_operation(tenant, &next, Some((&operation, revision)), &mut change);
        let mut entry = call.record(Action::RotateKeys, Outcome::Ok);
        entry.operation = Some(next.id);
        change.note(tenant, entry.to_bytes());
        if swapped {
            self.store.commit(change).await?;
        } else {
            self.keyring.swap(tenant, SwapOp { change, ..SwapOp::default() }).await?;
        }
        let ended = self.settle_rotation(call, next, Revision(revision.0 + 1)).await?;
        Ok((ended, Progress { done: 1, more: false }))
    }

    async fn stored_root(&self, tenant: TenantNo) -> Result<(Option<RootAge>, Revision), VaultError> {
        match self.store.object(tenant, ObjectKind::Setting, ROOT.to_vec()).await? {
            Some(row) => Ok((Some(serde_json::from_slice(&row.body).map_err(|_| VaultError::DataLoss)?), row.revision)),
            None => Ok((None, Revision(0))),
        }
    }

    /// Since when the present root is known; `None`: it was not looked at yet.
    pub(crate) async fn root_since(&self, tenant: TenantNo) -> Result<Option<Timestamp>, VaultError> {
        let age = self.stored_root(tenant).await?.0;
        Ok(age.filter(|age| Some(age.generation) == self.keyring.generation(tenant)).map(|age| age.since))
    }

    /// Puts a new root in place of one whose period is over.
    pub async fn rotate_due_root(&self, call: &Call) -> Result<Progress, VaultError> {
        let tenant = call.tenant.no;
        let Some(generation) = self.keyring.generation(tenant) else { return Ok(Progress::default()) };
        let known = self.stored_root(tenant).await?.0.filter(|age| age.generation == generation);
        let due = known.is_some_and(|age| self.options.rotation.rotates(Kind::TenantRoot, age.since, call.wall));
        if !due && known.is_some() {
            return Ok(Progress::default());
        }
        if due {
            self.begin_root(call, None).await?;
        }
        let generation = self.keyring.generation(tenant).unwrap_or(generation);
        let age = RootAge { generation, since: call.wall };
        let mut change = ChangeSet::default();
        let revision = Revision(self.stored_root(tenant).await?.1.0 + 1);
        let (kind, key) = (ObjectKind::Setting, ROOT.to_vec());
        change.change(Mutation::PutObject(ObjectRow { tenant, kind, key, revision, body: to_json(&age) }));
        self.store.commit(change).await?;
        Ok(Progress { done: u64::from(due), more: false })
    }
}
