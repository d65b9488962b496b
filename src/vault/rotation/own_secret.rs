//! The vault's own secrets: the pepper of access keys and the key of page tokens. The new version is in use at once; what was
//! made under the old one is still checked by it until nothing is left, and then the old one is dropped.
//!
//! Under the pepper are access keys, API keys and codes of tenants' users. None of them can be moved, since the vault keeps no
//! secret of theirs: who holds one gets a new one. How many work under the old version is counted; at the operator's deadline
//! access keys that are left are revoked, and the rest cannot be checked any more. A page token lives for a day.

use std::sync::Arc;

use crate::audit::{Action, Outcome};
use crate::auth::KeyId;
use crate::clock::{DAY_MS, Timestamp};
use crate::ids::*;
use crate::keyring::{SecretKind, TenantKeyState};
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::authenticate::KeySlot;
use crate::vault::call::Call;
use crate::vault::error::VaultError;
use crate::vault::expiry::Progress;
use crate::vault::operation::{Operation, OperationKind, OperationStatus, RotationState, put_operation};
use crate::vault::own_secrets::Versions;
use crate::vault::request::Request;
use crate::vault::rotation::{Kind, own_key_only};
use crate::vault::secret_drop::Rotated;
use crate::vault::tenant::TenantSettings;

/// How long a page token works at least.
const TOKEN_LIFE_MS: i64 = DAY_MS;
/// How often what tenants' users hold is counted while access keys are still left, or none of it was moved.
const COUNT_EVERY_MS: i64 = DAY_MS;

/// Which secret an operation rotates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnSecret {
    AccessKeyPepper,
    PageToken,
}

impl OwnSecret {
    fn operation(self) -> OperationKind {
        match self {
            OwnSecret::AccessKeyPepper => OperationKind::RotateAccessPepper,
            OwnSecret::PageToken => OperationKind::RotatePageToken,
        }
    }

    fn kind(self) -> SecretKind {
        match self {
            OwnSecret::AccessKeyPepper => SecretKind::ApiPepper,
            OwnSecret::PageToken => SecretKind::PageToken,
        }
    }

    /// Where the settings of the vault itself name its versions.
    pub(crate) fn versions(self, settings: &mut TenantSettings) -> &mut Versions {
        match self {
            OwnSecret::AccessKeyPepper => &mut settings.access_pepper,
            OwnSecret::PageToken => &mut settings.page_token,
        }
    }
}

/// What still works under a version of the pepper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Left {
    access_keys: u64,
    /// API keys and codes of tenants' users, and tenants whose keys are not in order, so that theirs cannot be counted.
    others: u64,
}

impl Vault {
    /// Begins the rotation of a secret of the vault itself; the operation that a job finishes. One that runs is answered, with
    /// the new deadline where one is given, and what is left is then counted at once.
    ///
    /// # Errors
    /// `Invalid` when the deadline is not in the future.
    pub async fn rotate_own_secret(
        &self,
        call: &Call,
        secret: OwnSecret,
        revoke: Option<Timestamp>,
        request: Option<Request>,
    ) -> Result<Operation, VaultError> {
        self.may_rotate(call)?;
        let tenant = call.tenant.no;
        own_key_only(call)?;
        if let Some(known) = self.repeated_operation(call, request.as_ref()).await? {
            return Ok(known);
        }
        if revoke.is_some_and(|end| end <= call.now) {
            return Err(VaultError::invalid("revoke_time", "must be in the future"));
        }
        // Not between a step's look at the operation and its commit.
        let _one_at_a_time = self.rotating.lock().await;
        if let Some((running, revision)) = self.running_rotation(tenant, secret.operation()).await? {
            let state = running.rotation.clone().unwrap_or_default();
            let state = RotationState { revoke: revoke.or(state.revoke), counted: None, ..state };
            let next = Operation { rotation: Some(state), updated: call.now, ..running.clone() };
            let mut change = ChangeSet::default();
            put_operation(tenant, &next, Some((&running, revision)), &mut change);
            let mut entry = call.record(Action::RotateKeys, Outcome::Ok);
            entry.operation = Some(next.id);
            change.note(tenant, entry.to_bytes());
            self.remember(call, request.as_ref(), &next.id, &mut change);
            self.store.commit(change).await?;
            return Ok(next);
        }
        self.begin_own_secret(call, secret, revoke, request.as_ref()).await
    }

    /// In one commit with the switch: a switch without an operation would be resumed by nobody.
    pub(super) async fn begin_own_secret(
        &self,
        call: &Call,
        secret: OwnSecret,
        revoke: Option<Timestamp>,
        request: Option<&Request>,
    ) -> Result<Operation, VaultError> {
        let tenant = call.tenant.no;
        let mut operation = Operation::new(call, secret.operation(), OperationStatus::Running);
        operation.rotation = Some(RotationState { revoke, ..RotationState::default() });
        let mut change = ChangeSet::default();
        put_operation(tenant, &operation, None, &mut change);
        self.remember(call, request, &operation.id, &mut change);
        let mut entry = call.record(Action::RotateKeys, Outcome::Ok);
        entry.operation = Some(operation.id);
        self.edit_settings_with(tenant, None, entry, &change, |settings| {
            let versions = secret.versions(settings);
            if versions.retiring.is_some() {
                return Err(VaultError::Conflict);
            }
            let next = versions.present.0.checked_add(1).ok_or(VaultError::DataLoss)?;
            *versions = Versions { present: SecretVersion(next), retiring: Some(versions.present) };
            Ok(())
        })
        .await?;
        Ok(operation)
    }

    pub(super) async fn step_own_secret(
        &self,
        call: &Call,
        secret: OwnSecret,
        (operation, revision): (Operation, Revision),
    ) -> Result<(Operation, Progress), VaultError> {
        let mut settings = self.tenant(call.tenant.no)?.settings.clone();
        let old = secret.versions(&mut settings).retiring.ok_or(VaultError::DataLoss)?;
        let state = operation.rotation.clone().unwrap_or_default();
        let life = match secret {
            OwnSecret::AccessKeyPepper => self.options.settled_ms(),
            OwnSecret::PageToken => TOKEN_LIFE_MS,
        };
        if call.wall < operation.created.plus_ms(life) {
            return Ok((operation, Progress::default()));
        }
        if secret == OwnSecret::PageToken {
            return self.end_own_secret(call, secret, old, (operation, 0)).await;
        }
        let over = state.revoke.is_some_and(|end| end <= call.wall);
        let counted = state.counted.is_some_and(|at| call.wall < at.plus_ms(COUNT_EVERY_MS));
        let access_keys = self.keys_under(old, call.wall).len() as u64;
        let mut next = operation.clone();
        let left = match counted && !over {
            true => Left { access_keys, others: state.others },
            false => Left { access_keys, others: self.others_under_pepper().await? },
        };
        let all = left.access_keys + left.others;
        let ends = all == 0 || (over && self.operators_may_enter(call));
        // What will be lost is noted before the first key is revoked: a crash in between does not make it fewer.
        let lost = if ends { state.lost.max(all) } else { 0 };
        next.total = next.total.max(all);
        next.done = next.total - all.max(lost);
        let noted = (next.done, next.total, lost) == (operation.done, operation.total, state.lost);
        if ends && (lost == 0 || noted) {
            for slot in self.keys_under(old, call.wall) {
                self.end_key(call, &slot, None).await?;
            }
            return self.end_own_secret(call, secret, old, (next, lost)).await;
        }
        if counted && noted {
            return Ok((operation, Progress::default()));
        }
        let counted = if counted { state.counted } else { Some(call.wall) };
        next.rotation = Some(RotationState { counted, others: left.others, lost, ..state });
        next.updated = call.now;
        let mut change = ChangeSet::default();
        put_operation(call.tenant.no, &next, Some((&operation, revision)), &mut change);
        self.store.commit(change).await?;
        Ok((next, Progress { done: 0, more: ends }))
    }

    /// Drops the old version; `lost` things were still under it.
    async fn end_own_secret(
        &self,
        call: &Call,
        secret: OwnSecret,
        old: SecretVersion,
        (counted, lost): (Operation, u64),
    ) -> Result<(Operation, Progress), VaultError> {
        let state = RotationState { lost, ..counted.rotation.clone().unwrap_or_default() };
        let (done, total) = (counted.done, counted.total);
        let finish = |operation| Operation { done, total, rotation: Some(state.clone()), ..operation };
        let rotated = Rotated { kind: secret.kind(), old, operation: counted.id, state: None };
        self.drop_secret(call, &rotated, |settings| &mut secret.versions(settings).retiring, finish).await?;
        Ok((self.operation(call.tenant.no, counted.id).await?.0, Progress { done: 1, more: false }))
    }

    /// What tenants' users still hold under the old version of the pepper. Scans.
    async fn others_under_pepper(&self) -> Result<u64, VaultError> {
        let mut left = 0;
        for row in self.store.tenants().await? {
            if row.no == TenantNo::VAULT || row.state != TenantState::Live {
                continue;
            }
            if self.keyring.state(row.no) != TenantKeyState::Ready {
                left += 1;
                continue;
            }
            let call = self.job_call(self.tenant(row.no)?);
            if call.tenant.policy.as_ref().is_some_and(|policy| policy.credentials().is_some()) {
                left += self.count_credentials(&call).await?.under_access_pepper;
            }
        }
        Ok(left)
    }

    /// Whether an operator has a key of the new version. While none has, nothing is revoked: nobody could get in any more.
    fn operators_may_enter(&self, call: &Call) -> bool {
        let present = self.access.own.load().pepper.present;
        let operators = self.access.of_tenant(TenantNo::VAULT, KeyId(0));
        let works = |slot: &Arc<KeySlot>| {
            let kept = slot.kept.load();
            kept.body.pepper == present && kept.body.works(call.wall)
        };
        let may = operators.iter().any(works);
        if !may {
            tracing::warn!("the pepper's deadline waits: no operator has an access key under the new version");
        }
        may
    }

    /// Since when the present version is in use.
    pub(crate) async fn own_secret_since(
        &self,
        call: &Call,
        secret: OwnSecret,
        kind: Kind,
    ) -> Result<Timestamp, VaultError> {
        let running = self.running_rotation(call.tenant.no, secret.operation()).await?;
        match running {
            Some((operation, _)) => Ok(operation.created),
            None => Ok(self.key_age(call, kind).await?.since),
        }
    }

    /// The version of a secret that is being retired, and what is left under it: what a rotation last counted, and the access
    /// keys of this moment.
    pub(crate) async fn own_secret_left(
        &self,
        call: &Call,
        secret: OwnSecret,
    ) -> Result<Option<(SecretVersion, u64)>, VaultError> {
        let mut settings = call.tenant.settings.clone();
        let Some(old) = secret.versions(&mut settings).retiring else { return Ok(None) };
        if secret == OwnSecret::PageToken {
            return Ok(Some((old, 0)));
        }
        let running = self.running_rotation(call.tenant.no, secret.operation()).await?;
        let others = running.and_then(|(operation, _)| operation.rotation).map_or(0, |state| state.others);
        Ok(Some((old, self.keys_under(old, call.wall).len() as u64 + others)))
    }
}
