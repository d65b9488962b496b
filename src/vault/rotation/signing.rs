//! The signing key: a new one, which the old one signs with its last use, and whose private part is then overwritten. Old
//! public keys stay published: what they signed verifies as before.

use data_encoding::HEXLOWER;

use crate::ids::*;
use crate::receipt::rotation::{Fate, Version};
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::error::VaultError;
use crate::vault::expiry::Progress;
use crate::vault::operation::{Operation, OperationKind, RotationState};
use crate::vault::request::Request;
use crate::vault::rotation::own_key_only;

impl Vault {
    /// Begins the rotation of the signing key and, where the keeper is there, ends it.
    pub async fn rotate_signing(&self, call: &Call, request: Option<Request>) -> Result<Operation, VaultError> {
        self.may_rotate(call)?;
        if let Some(known) = self.repeated_operation(call, request.as_ref()).await? {
            return Ok(known);
        }
        self.begin_signing(call, request.as_ref()).await
    }

    pub(super) async fn begin_signing(&self, call: &Call, request: Option<&Request>) -> Result<Operation, VaultError> {
        own_key_only(call)?;
        let number = self.signers().len() as u64;
        let from = Version { number, id: Some(HEXLOWER.encode(&self.keyring.signing().public())), provider: None };
        let to = Version { number: number + 1, ..Version::default() };
        let state = RotationState { from, to, ..RotationState::default() };
        let (operation, _) = self.start_rotation(call, OperationKind::RotateSigning, request, state).await?;
        match self.step_rotation(call, operation.id, 1).await {
            Ok((operation, _)) => Ok(operation),
            Err(error) => {
                tracing::warn!(%error, "a rotation waits");
                Ok(operation)
            }
        }
    }

    pub(super) async fn step_signing(
        &self,
        call: &Call,
        operation: Operation,
        revision: Revision,
    ) -> Result<(Operation, Progress), VaultError> {
        let mut state = operation.rotation.clone().unwrap_or_default();
        // After a crash in between the keeper has the new key already.
        if state.from.id.as_deref() == Some(&HEXLOWER.encode(&self.keyring.signing().public())) {
            self.keyring.rotate_signing().await?;
        } else {
            self.keyring.seal_signing_again().await?;
        }
        state.to.id = Some(HEXLOWER.encode(&self.keyring.signing().public()));
        let mut change = ChangeSet::default();
        let again = self.sign_settings_again(&mut change).await?;
        let next = Operation { done: 1, total: 1, rotation: Some(state), ..operation.clone() };
        let ended = self.end_rotation(call, (&operation, revision), next, Fate::Destroyed, change).await?;
        self.signed_again(again).await?;
        Ok((ended, Progress { done: 1, more: false }))
    }
}
