//! Rotations: a new version of a key takes the place of an old one, what was under the old one is moved, and the old one
//! goes. Each is an operation that a job goes on with, also after a restart, and ends with a signed record.
//!
//! What must be true at the end is looked at, not counted: a record says "destroyed" only after every replica of the keeper
//! was overwritten. `index_rotation` and `credentials::pepper` are rotations too; they end here.

mod age;
mod data;
mod due;
mod kek;
mod own_secret;
mod periods;
mod signing;
mod tenant_root;
mod tree;

use data_encoding::HEXLOWER;

use crate::access::Verb;
use crate::audit::{Action, Outcome};
use crate::auth;
use crate::clock::Timestamp;
use crate::ids::*;
use crate::receipt::AuditPosition;
use crate::receipt::rotation::RotationRecord;
pub use crate::receipt::rotation::{Fate, Kind};
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::error::VaultError;
use crate::vault::expiry::Progress;
use crate::vault::operation::{Operation, OperationKind, OperationStatus, RotationState, put_operation};
use crate::vault::request::Request;
pub use data::DataScope;
pub use own_secret::OwnSecret;
pub use periods::Periods;

/// A rotation that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RotationView {
    pub operation: ObjectId,
    pub ended: Timestamp,
    /// Signed canonical JSON.
    pub record: Vec<u8>,
}

/// What a rotation is of.
pub(crate) fn kind_of(operation: OperationKind) -> Option<Kind> {
    match operation {
        OperationKind::RotateIndex => Some(Kind::Index),
        OperationKind::RotateRoot => Some(Kind::TenantRoot),
        OperationKind::RotatePepper => Some(Kind::PasswordPepper),
        OperationKind::RotateAccessPepper => Some(Kind::AccessKeyPepper),
        OperationKind::RotatePageToken => Some(Kind::PageToken),
        OperationKind::RotateSigning => Some(Kind::Signing),
        OperationKind::RotateKek => Some(Kind::Root),
        OperationKind::RekeyTree => Some(Kind::Tree),
        OperationKind::RotateData => Some(Kind::Data),
        OperationKind::EraseSubject
        | OperationKind::EraseClasses
        | OperationKind::EraseFields
        | OperationKind::EraseItems
        | OperationKind::EraseFormer
        | OperationKind::EraseGroup
        | OperationKind::EraseBatch
        | OperationKind::EraseTenant
        | OperationKind::Reseal
        | OperationKind::Backup => None,
    }
}

/// Newest first.
fn record_key(at: Timestamp, id: ObjectId) -> Vec<u8> {
    [&(i64::MAX - at.0.max(0)).to_be_bytes()[..], id.0.as_bytes()].concat()
}

/// # Errors
/// `Invalid` where somebody asks for a key of the vault itself in a tenant's name.
pub(crate) fn own_key_only(call: &Call) -> Result<(), VaultError> {
    match call.tenant.no {
        TenantNo::VAULT => Ok(()),
        _ => Err(VaultError::invalid("kind", "is the vault's own key: by an operator, without a tenant")),
    }
}

impl Vault {
    /// Operators, and keys with the verb OPERATE, may rotate a tenant's keys.
    pub fn may_rotate(&self, call: &Call) -> Result<(), VaultError> {
        if call.principal.kind != auth::Kind::Operator && call.principal.actor != ActorId(0) {
            call.permit(Verb::Operate)?;
        }
        Ok(())
    }

    /// The unfinished rotation of that kind.
    pub(crate) async fn running_rotation(
        &self,
        tenant: TenantNo,
        kind: OperationKind,
    ) -> Result<Option<(Operation, Revision)>, VaultError> {
        let open = self.open_operations(tenant, SubjectUid(0)).await?;
        Ok(open.into_iter().find(|(operation, _)| operation.kind == kind && !operation.status.is_final()))
    }

    /// Stores a new rotation, or answers the one of that kind that runs. The flag: it is new.
    async fn start_rotation(
        &self,
        call: &Call,
        kind: OperationKind,
        request: Option<&Request>,
        state: RotationState,
    ) -> Result<(Operation, bool), VaultError> {
        let tenant = call.tenant.no;
        let _one_at_a_time = self.settings.lock().await;
        let mut change = ChangeSet::default();
        if let Some((running, _)) = self.running_rotation(tenant, kind).await? {
            if request.is_some() {
                self.remember(call, request, &running.id, &mut change);
                self.store.commit(change).await?;
            }
            return Ok((running, false));
        }
        let mut operation = Operation::new(call, kind, OperationStatus::Running);
        operation.rotation = Some(state);
        put_operation(tenant, &operation, None, &mut change);
        let mut entry = call.record(Action::RotateKeys, Outcome::Ok);
        entry.operation = Some(operation.id);
        change.note(tenant, entry.to_bytes());
        self.remember(call, request, &operation.id, &mut change);
        self.store.commit(change).await?;
        Ok((operation, true))
    }

    /// Goes on with the tenant's rotations, about `limit` units of work each. One that cannot go on does not stop the
    /// others.
    pub async fn go_on_rotations(&self, call: &Call, limit: u64) -> Result<Progress, VaultError> {
        let mut all = Progress::default();
        let mut failed = None;
        for (operation, _) in self.open_operations(call.tenant.no, SubjectUid(0)).await? {
            let mut left = limit;
            // Step by step, so that a pause need not wait for the whole round.
            let more = loop {
                match self.step_rotation(call, operation.id, left).await {
                    Ok((_, step)) => {
                        all.done += step.done;
                        left = left.saturating_sub(step.done);
                        if !step.more || left == 0 {
                            break step.more;
                        }
                    }
                    Err(error) => {
                        tracing::warn!(operation = %operation.id, %error, "a rotation does not go on");
                        failed.get_or_insert(error);
                        break false;
                    }
                }
            };
            all.more |= more;
        }
        failed.map_or(Ok(all), Err)
    }

    /// One step of a rotation, if it is one that steps. Two never step at the same time.
    pub(in crate::vault) async fn step_rotation(
        &self,
        call: &Call,
        id: ObjectId,
        limit: u64,
    ) -> Result<(Operation, Progress), VaultError> {
        let _one_at_a_time = self.rotating.lock().await;
        let (operation, revision) = self.operation(call.tenant.no, id).await?;
        let moving = matches!(operation.status, OperationStatus::Running | OperationStatus::Committed);
        if operation.rotation.is_none() || !moving {
            return Ok((operation, Progress::default()));
        }
        if operation.status == OperationStatus::Committed {
            let ended = self.settle_rotation(call, operation, revision).await?;
            return Ok((ended, Progress { done: 1, more: false }));
        }
        match operation.kind {
            OperationKind::RotateRoot => self.step_tenant_root(call, operation, revision).await,
            OperationKind::RotateSigning => self.step_signing(call, operation, revision).await,
            OperationKind::RotateKek => self.step_kek(call, operation, revision).await,
            OperationKind::RekeyTree => self.step_tree(call, operation, revision).await,
            OperationKind::RotateData => self.step_data(call, operation, revision, limit).await,
            OperationKind::RotateAccessPepper => {
                self.step_own_secret(call, OwnSecret::AccessKeyPepper, (operation, revision)).await
            }
            OperationKind::RotatePageToken => {
                self.step_own_secret(call, OwnSecret::PageToken, (operation, revision)).await
            }
            // The index and the pepper have jobs of their own until they are committed.
            _ => Ok((operation, Progress::default())),
        }
    }

    /// The last swap of a rotation is committed: overwrites the roots before it in every replica, and then says so.
    pub(crate) async fn settle_rotation(
        &self,
        call: &Call,
        operation: Operation,
        revision: Revision,
    ) -> Result<Operation, VaultError> {
        let tenant = call.tenant.no;
        let swapped = self.keyring.settle(tenant, Vec::new()).await?;
        let next = Operation { generation: Some(swapped.generation), ..operation.clone() };
        self.end_rotation(call, (&operation, revision), next, Fate::Destroyed, ChangeSet::default()).await
    }

    /// Ends a rotation with its signed record; `change` goes with it.
    async fn end_rotation(
        &self,
        call: &Call,
        (former, revision): (&Operation, Revision),
        next: Operation,
        fate: Fate,
        mut change: ChangeSet,
    ) -> Result<Operation, VaultError> {
        let tenant = call.tenant.no;
        let next = Operation { status: OperationStatus::Done, cursor: None, updated: call.now, ..next };
        let kind = kind_of(next.kind).ok_or(VaultError::DataLoss)?;
        let record = self.sign_rotation(call, &next, kind, fate).await?;
        let key = record_key(call.wall, next.id);
        let (object, revision_of_record) = (ObjectKind::Rotation, Revision(1));
        change.change(Mutation::PutObject(ObjectRow {
            tenant,
            kind: object,
            key,
            revision: revision_of_record,
            body: record,
        }));
        self.put_age(call, &next, kind, &mut change).await?;
        self.advance_operation(call, former, revision, &next, Action::RotateKeys, change).await?;
        tracing::info!(operation = %next.id, kind = kind.name(), "a rotation has ended");
        Ok(next)
    }

    async fn sign_rotation(
        &self,
        call: &Call,
        operation: &Operation,
        kind: Kind,
        fate: Fate,
    ) -> Result<Vec<u8>, VaultError> {
        let tenant = call.tenant.no;
        let state = operation.rotation.clone().unwrap_or_default();
        let head = self.store.audit_head(tenant).await?;
        // A data key or a secret is in the key archive too; roots and signing keys never are.
        let archived = !matches!(kind, Kind::Root | Kind::TenantRoot | Kind::Tree | Kind::Signing);
        let archives_expire_at = if archived { self.archives_expire_at(tenant).await } else { None };
        let link = self.keyring.signing_link().filter(|_| kind == Kind::Signing);
        let record = RotationRecord {
            vault: self.keyring.vault(),
            operation: operation.id,
            tenant,
            tenant_name: call.tenant.name.to_string(),
            kind,
            scope: state.scope_text(call),
            from: state.from,
            to: state.to,
            begun_at: operation.created,
            ended_at: call.now,
            moved: operation.done,
            lost: state.lost,
            fate,
            generation: operation.generation.unwrap_or(Generation(0)),
            keeper: self.keeper_said(),
            archives_expire_at,
            chain: link.map(|link| HEXLOWER.encode(&link.signature)),
            audit: AuditPosition { seq: head.map_or(0, |head| head.seq), head: head.map_or([0; 32], |head| head.hash) },
        };
        Ok(record.sign(&self.keyring.signing()))
    }

    /// Records of rotations that ended, the newest first, after `after`.
    pub async fn list_rotations(
        &self,
        call: &Call,
        after: Option<(Timestamp, ObjectId)>,
        limit: u32,
    ) -> Result<Page<RotationView>, VaultError> {
        if call.permit(Verb::Audit).is_err() {
            self.may_rotate(call)?;
        }
        self.note_listing(call, Action::ListRotations).await?;
        let after = after.map_or(Vec::new(), |(at, id)| record_key(at, id));
        let page = self.store.objects(call.tenant.no, ObjectKind::Rotation, Vec::new(), after, limit).await?;
        let mut rows = Vec::with_capacity(page.rows.len());
        for row in page.rows {
            let (at, id) = row.key.split_first_chunk::<8>().ok_or(VaultError::DataLoss)?;
            let id: [u8; 16] = id.try_into().map_err(|_| VaultError::DataLoss)?;
            let ended = Timestamp(i64::MAX - i64::from_be_bytes(*at));
            rows.push(RotationView { operation: ObjectId(uuid::Uuid::from_bytes(id)), ended, record: row.body });
        }
        Ok(Page { rows, more: page.more })
    }

    /// Stops a rotation where it is, until it is resumed; what is moved stays moved.
    ///
    /// # Errors
    /// `WrongState` for an operation that cannot wait.
    pub async fn pause_operation(
        &self,
        call: &Call,
        id: ObjectId,
        pause: bool,
        request: Option<Request>,
    ) -> Result<Operation, VaultError> {
        call.permit(Verb::Operate)?;
        let repeat = self.repeated::<()>(call, request.as_ref()).await?.is_some();
        // Not between a step's look at the operation and its commit.
        let _one_at_a_time = self.rotating.lock().await;
        let (operation, revision) = self.operation(call.tenant.no, id).await?;
        let (from, to, action) = match pause {
            true => (OperationStatus::Running, OperationStatus::Paused, Action::PauseOperation),
            false => (OperationStatus::Paused, OperationStatus::Running, Action::ResumeOperation),
        };
        let waits =
            matches!(operation.kind, OperationKind::RotateKek | OperationKind::RekeyTree | OperationKind::RotateData);
        match operation.status {
            _ if repeat => Ok(operation),
            status if waits && status == to => Ok(operation),
            status if waits && status == from => {
                let next = Operation { status: to, updated: call.now, ..operation.clone() };
                let mut change = ChangeSet::default();
                self.remember(call, request.as_ref(), &(), &mut change);
                self.advance_operation(call, &operation, revision, &next, action, change).await?;
                Ok(next)
            }
            status if status.is_final() => Err(VaultError::WrongState("the operation has ended")),
            _ => Err(VaultError::WrongState("only rotations of root key, tree and data keys can wait")),
        }
    }
}
