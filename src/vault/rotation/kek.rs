//! The root KEK: every tenant's root is wrapped under the next one, also that of another provider, while the vault serves.
//! The old one is destroyed where the vault can do that (a file); elsewhere the record says that nothing is under it.

use std::sync::Arc;

use data_encoding::HEXLOWER;
use tokio::task::JoinSet;

use crate::audit::{Action, Outcome};
use crate::ids::*;
use crate::receipt::rotation::{Fate, Kind, Version};
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::error::VaultError;
use crate::vault::expiry::Progress;
use crate::vault::operation::{Operation, OperationKind, RotationState, put_operation};
use crate::vault::request::Request;
use crate::vault::rotation::own_key_only;

/// Tenants rewrapped beside one another: the keeper syncs them together.
const TOGETHER: usize = 64;
/// Tenants between two notes of the progress.
const BATCH: usize = 512;

impl Vault {
    /// Begins to go over to the root KEK that the configuration names as the next; `provider`: it must be of that kind.
    ///
    /// # Errors
    /// `RootKey` where it cannot be read; `WrongState` where it is the present one.
    pub async fn rotate_kek(
        &self,
        call: &Call,
        provider: Option<&str>,
        request: Option<Request>,
    ) -> Result<Operation, VaultError> {
        self.may_rotate(call)?;
        let tenant = call.tenant.no;
        own_key_only(call)?;
        if let Some(known) = self.repeated_operation(call, request.as_ref()).await? {
            return Ok(known);
        }
        let mut state = RotationState::default();
        if self.running_rotation(tenant, OperationKind::RotateKek).await?.is_none() {
            state = self.next_kek(call, provider).await?;
        }
        let (operation, _) = self.start_rotation(call, OperationKind::RotateKek, request.as_ref(), state).await?;
        Ok(operation)
    }

    /// Whether the next root KEK can be had, and what it would be.
    pub async fn next_kek(&self, call: &Call, provider: Option<&str>) -> Result<RotationState, VaultError> {
        let next = self.roots()?.next().await.map_err(VaultError::RootKey)?;
        if provider.is_some_and(|wanted| wanted != next.provider) {
            return Err(VaultError::WrongState("root_kek_next in the configuration is of another provider"));
        }
        let (present, id) = (self.keyring.kek_id(), next.kek.id());
        if id == present {
            return Err(VaultError::WrongState("root_kek_next is the present root key"));
        }
        let number = self.key_age(call, Kind::Root).await?.version.number;
        let version = |number, id: [u8; 16], provider: Option<&str>| Version {
            number,
            id: Some(HEXLOWER.encode(&id)),
            provider: provider.map(str::to_owned),
        };
        Ok(RotationState {
            from: version(number, present, Some(self.root_provider())),
            to: version(number + 1, id, Some(next.provider)),
            ..RotationState::default()
        })
    }

    pub(super) async fn step_kek(
        &self,
        call: &Call,
        operation: Operation,
        revision: Revision,
    ) -> Result<(Operation, Progress), VaultError> {
        let state = operation.rotation.clone().unwrap_or_default();
        let is_to = |id: [u8; 16]| state.to.id.as_deref() == Some(&HEXLOWER.encode(&id));
        if !is_to(self.keyring.kek_id()) {
            let next = self.roots()?.next().await.map_err(VaultError::RootKey)?;
            if !is_to(next.kek.id()) {
                return Err(VaultError::WrongState("root_kek_next is another key than when the rotation began"));
            }
            self.keyring.begin_kek(next.kek).await?;
        }
        let left = self.keyring.kek_left().await?;
        let mut moved = 0;
        let mut failed = None;
        for part in left.ready.iter().take(BATCH).copied().collect::<Vec<_>>().chunks(TOGETHER) {
            let mut set = JoinSet::new();
            for tenant in part.iter().copied() {
                let keyring = Arc::clone(&self.keyring);
                set.spawn(async move { keyring.rewrap_root(tenant).await });
            }
            while let Some(one) = set.join_next().await {
                match one {
                    Ok(Ok(did)) => moved += u64::from(did),
                    Ok(Err(error)) => drop(failed.get_or_insert(VaultError::from(error))),
                    Err(_) => drop(failed.get_or_insert(VaultError::Conflict)),
                }
            }
        }
        let rest = (left.count()).saturating_sub(moved);
        let done = operation.done + moved;
        let mut next = Operation { done, total: done + rest, updated: call.now, ..operation.clone() };
        // Looked at once more: the count of what is left is the keeper's, not ours.
        if rest == 0 && self.keyring.kek_left().await?.count() == 0 {
            next.total = done;
            return self.end_kek(call, (operation, revision), next).await;
        }
        if moved > 0 || next.total != operation.total {
            let mut change = ChangeSet::default();
            put_operation(call.tenant.no, &next, Some((&operation, revision)), &mut change);
            let mut entry = call.record(Action::RotateKeys, Outcome::Ok);
            entry.operation = Some(next.id);
            change.note(call.tenant.no, entry.to_bytes());
            self.store.commit(change).await?;
        }
        match failed {
            Some(error) if moved == 0 => Err(error),
            _ => Ok((next, Progress { done: moved, more: moved > 0 })),
        }
    }

    async fn end_kek(
        &self,
        call: &Call,
        (operation, revision): (Operation, Revision),
        next: Operation,
    ) -> Result<(Operation, Progress), VaultError> {
        // Under the new key in both places, also after a crash in between, so that no start needs the old one.
        self.keyring.seal_signing_again().await?;
        if let Some(anchor) = self.keyring.anchor().await? {
            self.keyring.put_anchor(&anchor).await?;
            self.keyring.put_anchor(&anchor).await?;
        }
        let destroyed = match self.roots()?.destroy_former(&self.keyring.kek_id()).await {
            Ok(destroyed) => destroyed,
            Err(error) => {
                tracing::warn!(%error, "the old root key could not be destroyed: destroy it by hand");
                false
            }
        };
        self.keyring.forget_keks();
        let fate = if destroyed { Fate::Destroyed } else { Fate::Unused };
        let ended = self.end_rotation(call, (&operation, revision), next, fate, ChangeSet::default()).await?;
        Ok((ended, Progress { done: 1, more: false }))
    }

    fn roots(&self) -> Result<Arc<dyn crate::keyring::root::RootSource>, VaultError> {
        self.options.roots.clone().ok_or(VaultError::WrongState("this vault knows no other root key"))
    }

    /// Where the root key comes from: `passphrase`, `file`, `environment`, `credential`.
    pub fn root_provider(&self) -> &'static str {
        let roots = self.options.roots.as_ref();
        roots.and_then(|roots| roots.provider_of(&self.keyring.kek_id())).unwrap_or("file")
    }
}
