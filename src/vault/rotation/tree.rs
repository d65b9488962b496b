//! Re-keying a tenant's whole tree: every node gets a fresh key and every path a fresh root, a few hundred leaves a swap.
//! Data keys stay what they are; whoever once had an inner node's key, or a copy of a leaf, has nothing any more that leads
//! to what is written from now on.

use crate::audit::{Action, Outcome};
use crate::ids::*;
use crate::keyring::SwapOp;
use crate::receipt::rotation::{Kind, Version};
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::error::VaultError;
use crate::vault::expiry::Progress;
use crate::vault::operation::{Operation, OperationKind, OperationStatus, RotationState, put_operation};
use crate::vault::request::Request;

/// Leaves re-keyed in one swap: 30,720 slots, 1 MB.
const AT_ONCE: u32 = 256;

impl Vault {
    /// Begins to re-key the tenant's tree; a job goes on with it.
    pub async fn rekey_tree(&self, call: &Call, request: Option<Request>) -> Result<Operation, VaultError> {
        self.may_rotate(call)?;
        if let Some(known) = self.repeated_operation(call, request.as_ref()).await? {
            return Ok(known);
        }
        self.begin_tree(call, request.as_ref()).await
    }

    pub(super) async fn begin_tree(&self, call: &Call, request: Option<&Request>) -> Result<Operation, VaultError> {
        let tenant = call.tenant.no;
        let d = self.keyring.generation(tenant).ok_or(VaultError::KeysNotReady(self.keyring.state(tenant)))?;
        let number = self.key_age(call, Kind::Tree).await?.version.number;
        let version = |number| Version { number, ..Version::default() };
        let (from, to) = (version(number), version(number + 1));
        let state = RotationState { since: Some(d), from, to, ..RotationState::default() };
        Ok(self.start_rotation(call, OperationKind::RekeyTree, request, state).await?.0)
    }

    pub(super) async fn step_tree(
        &self,
        call: &Call,
        operation: Operation,
        revision: Revision,
    ) -> Result<(Operation, Progress), VaultError> {
        let tenant = call.tenant.no;
        let state = operation.rotation.clone().unwrap_or_default();
        let born = self.keyring.leaves(tenant).await?;
        let first = u32::try_from(operation.cursor.unwrap_or(0)).map_err(|_| VaultError::DataLoss)?;
        if first < born {
            let last = born.min(first + AT_ONCE);
            let next = Operation {
                cursor: Some(last.into()),
                done: u64::from(last),
                total: u64::from(born),
                updated: call.now,
                ..operation.clone()
            };
            self.swap_leaves(call, (&operation, revision), &next, first..last).await?;
            return Ok((next, Progress { done: u64::from(last - first), more: true }));
        }
        // Looked at, not counted.
        if let Some(old) = self.keyring.first_leaf_of(tenant, state.since.ok_or(VaultError::DataLoss)?).await? {
            let next = Operation { cursor: Some(old.into()), updated: call.now, ..operation.clone() };
            self.advance_operation(call, &operation, revision, &next, Action::RotateKeys, ChangeSet::default()).await?;
            return Ok((next, Progress { done: 1, more: true }));
        }
        let ended = self.settle_rotation(call, operation, revision).await?;
        Ok((ended, Progress { done: 1, more: false }))
    }

    async fn swap_leaves(
        &self,
        call: &Call,
        (former, revision): (&Operation, Revision),
        next: &Operation,
        leaves: std::ops::Range<u32>,
    ) -> Result<(), VaultError> {
        debug_assert_eq!(next.status, OperationStatus::Running);
        let tenant = call.tenant.no;
        let mut change = ChangeSet::default();
        put_operation(tenant, next, Some((former, revision)), &mut change);
        let mut entry = call.record(Action::RotateKeys, Outcome::Ok);
        entry.operation = Some(next.id);
        change.note(tenant, entry.to_bytes());
        self.keyring.swap(tenant, SwapOp { leaves, change, ..SwapOp::default() }).await?;
        Ok(())
    }
}
