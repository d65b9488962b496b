//! Operations: what was asked for, how far it is, how it ended. Every erasure is one; so are rotations and re-seals.
//!
//! `Operation` holds it by id; `OperationByTime` (created, id) orders lists; `Job` (uid, id) is there while it is
//! unfinished; `Schedule` (due, id) says when to look at it next. Ids are random, no caller's id is kept.

use serde::{Deserialize, Serialize};

use crate::access::Verb;
use crate::audit::{Action, AuditRecord, Outcome};
use crate::clock::Timestamp;
use crate::ids::*;
use crate::receipt::rotation::Version;
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::{Call, Context};
use crate::vault::error::VaultError;
use crate::vault::request::Request;
use crate::vault::to_json;

/// What kind of work it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    EraseSubject,
    EraseClasses,
    EraseFields,
    EraseItems,
    /// What a put with `erase_former` overwrote.
    EraseFormer,
    EraseGroup,
    EraseBatch,
    EraseTenant,
    RotateIndex,
    RotateRoot,
    RotatePepper,
    /// The pepper of access keys; the vault's own.
    RotateAccessPepper,
    /// The key of page tokens; the vault's own.
    RotatePageToken,
    /// The signing key; the vault's own.
    RotateSigning,
    /// The root KEK; the vault's own.
    RotateKek,
    /// Every node of the tree.
    RekeyTree,
    /// Data keys.
    RotateData,
    Reseal,
    /// Archives of the vault; of the vault itself.
    Backup,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationStatus {
    /// In its time of grace: may be cancelled.
    Scheduled,
    /// Decided: access is refused from here on, keys are not destroyed yet.
    Accepted,
    /// Committed in the database; roots are being overwritten.
    Committed,
    /// Running, in steps.
    Running,
    /// Stopped in between, until it is resumed.
    Paused,
    /// Everything asked for is done.
    Done,
    /// Done but for classes that a hold keeps; it goes on by itself when the holds end.
    PartlyHeld,
    Cancelled,
    Failed,
}

impl OperationKind {
    /// Whether it destroys keys of subjects, and so ends with a receipt.
    pub fn is_erasure(self) -> bool {
        !matches!(
            self,
            OperationKind::RotateIndex
                | OperationKind::RotateRoot
                | OperationKind::RotatePepper
                | OperationKind::RotateAccessPepper
                | OperationKind::RotatePageToken
                | OperationKind::RotateSigning
                | OperationKind::RotateKek
                | OperationKind::RekeyTree
                | OperationKind::RotateData
                | OperationKind::Reseal
                | OperationKind::Backup
        )
    }
}

impl OperationKind {
    /// Whether it may be left half done: what is moved is moved, the rest is as good as before.
    fn may_be_stopped(self) -> bool {
        matches!(
            self,
            OperationKind::Reseal | OperationKind::Backup | OperationKind::RekeyTree | OperationKind::RotateData
        )
    }
}

impl OperationStatus {
    /// Nothing more will happen.
    pub fn is_final(self) -> bool {
        matches!(self, OperationStatus::Done | OperationStatus::Cancelled | OperationStatus::Failed)
    }
}

/// A class whose keys were destroyed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErasedPart {
    pub class: ClassNo,
    pub through: DekVersion,
}

/// A class that a hold keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldPart {
    pub class: ClassNo,
    pub basis: String,
    /// `None`: until the hold is released.
    pub until: Option<Timestamp>,
    /// The placed hold; `None`: the policy's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<ObjectId>,
    /// The only purpose that it is read for meanwhile.
    pub purpose: PurposeNo,
}

/// What a rotation is from, to and about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotationState {
    pub from: Version,
    pub to: Version,
    /// Of the tree when it began: what is not younger is still to be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Generation>,
    /// Classes asked for; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<ClassNo>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<SubjectUid>,
    /// Most units a second; 0: no limit.
    #[serde(default)]
    pub per_second: u32,
    /// What was still under the old version when it was dropped.
    #[serde(default)]
    pub lost: u64,
    /// When access keys that are left are revoked; `None`: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoke: Option<Timestamp>,
    /// When what tenants' users hold under the old version was last counted, and how much that was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub others: u64,
}

impl RotationState {
    /// Of a secret of the tenant whose old version is dropped.
    pub(crate) fn of_secret(old: SecretVersion, known: Option<&RotationState>) -> Self {
        let version = |number: u16| Version { number: number.into(), ..Version::default() };
        RotationState { from: version(old.0), to: version(old.0 + 1), ..known.cloned().unwrap_or_default() }
    }

    /// Not all keys of the kind.
    pub(crate) fn is_partial(&self) -> bool {
        !self.classes.is_empty() || self.subject.is_some()
    }

    /// What of it, in words; `None`: all.
    pub(crate) fn scope_text(&self, call: &Call) -> Option<String> {
        let policy = call.tenant.policy.as_deref();
        let name = |class: &ClassNo| {
            let known = policy.and_then(|policy| policy.class(*class));
            known.map_or_else(|| class.to_string(), |rule| rule.name.to_string())
        };
        let mut parts = Vec::new();
        if !self.classes.is_empty() {
            let names: Vec<String> = self.classes.iter().map(name).collect();
            parts.push(format!("classes {}", names.join(", ")));
        }
        parts.extend(self.subject.map(|uid| format!("subject number {uid}")));
        (!parts.is_empty()).then(|| parts.join(" of "))
    }
}

/// An operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    pub id: ObjectId,
    pub kind: OperationKind,
    pub status: OperationStatus,
    pub actor: ActorId,
    pub created: Timestamp,
    pub updated: Timestamp,
    /// When a scheduled erasure happens, or a held one is looked at again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<SubjectUid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupNo>,
    /// Classes asked for; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<ClassNo>,
    /// Units of work done, and in all where that is known.
    #[serde(default)]
    pub done: u64,
    #[serde(default)]
    pub total: u64,
    /// Where a long operation goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<i64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub erased: Vec<ErasedPart>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<HeldPart>,
    #[serde(default)]
    pub data_keys_issued: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erased_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search_expires_at: Option<Timestamp>,
    /// Who was given data of what was erased and must delete it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recipients: Vec<RecipientNo>,
    /// Whether something searchable was erased.
    #[serde(default)]
    pub searchable: bool,
    /// Keys are dropped by the vault itself: at the end of a grace time that began with the closing of the subject.
    #[serde(default, skip_serializing_if = "is_false")]
    pub closing: bool,
    /// The subject was closed before it was frozen.
    #[serde(default, skip_serializing_if = "is_false")]
    pub was_closed: bool,
    /// Members of a group that holds keep, at least in part.
    #[serde(default)]
    pub held_members: u64,
    /// The controller, where the policy will be gone by the time of the receipt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller: Option<String>,
    /// The tenant that is erased, for an operation of the vault itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<(TenantNo, Name)>,
    /// Commitment to the subject's id, for the receipt; hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commitment: Option<String>,
    /// Why it failed, in our words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What a rotation is from, to and about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<RotationState>,
}

impl Operation {
    /// A new operation of this call.
    pub fn new(call: &Call, kind: OperationKind, status: OperationStatus) -> Self {
        Operation {
            id: ObjectId::random(),
            kind,
            status,
            actor: call.principal.actor,
            created: call.now,
            updated: call.now,
            due: None,
            subject: None,
            group: None,
            classes: Vec::new(),
            done: 0,
            total: 0,
            cursor: None,
            erased: Vec::new(),
            held: Vec::new(),
            data_keys_issued: 0,
            generation: None,
            erased_at: None,
            search_expires_at: None,
            recipients: Vec::new(),
            searchable: false,
            closing: false,
            was_closed: false,
            held_members: 0,
            controller: None,
            tenant: None,
            commitment: None,
            error: None,
            rotation: None,
        }
    }

    fn id_key(&self) -> Vec<u8> {
        self.id.0.as_bytes().to_vec()
    }

    /// Key of the unfinished operation beside its subject (0 for operations about several).
    fn job_key(&self) -> Vec<u8> {
        job_key(self.subject.unwrap_or(SubjectUid(0)), self.id)
    }
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// Key of an unfinished operation.
pub(crate) fn job_key(uid: SubjectUid, id: ObjectId) -> Vec<u8> {
    [&uid.0.to_be_bytes()[..], id.0.as_bytes()].concat()
}

fn time_key(at: Timestamp, id: ObjectId) -> Vec<u8> {
    [&at.0.to_be_bytes()[..], id.0.as_bytes()].concat()
}

/// Sorts the newest first.
fn newest_key(at: Timestamp, id: ObjectId) -> Vec<u8> {
    time_key(Timestamp(i64::MAX - at.0.max(0)), id)
}

/// Adds an operation's new state to a change: its record, its place in the lists, its next date. `former` is the state
/// and revision that it replaces; `None` for a new one.
pub(crate) fn put_operation(
    tenant: TenantNo,
    operation: &Operation,
    former: Option<(&Operation, Revision)>,
    change: &mut ChangeSet,
) {
    let revision = former.map_or(Revision(0), |(_, revision)| revision);
    let (kind, key) = (ObjectKind::Operation, operation.id_key());
    change.require(Precondition::ObjectAt { tenant, kind, key: key.clone(), revision });
    let next = Revision(revision.0 + 1);
    let mut put = |kind, key, body| {
        change.change(Mutation::PutObject(ObjectRow { tenant, kind, key, revision: next, body }));
    };
    put(kind, key, to_json(operation));
    if former.is_none() {
        put(ObjectKind::OperationByTime, newest_key(operation.created, operation.id), Vec::new());
    }
    if !operation.status.is_final() {
        put(ObjectKind::Job, operation.job_key(), Vec::new());
    }
    if let Some(due) = operation.due.filter(|_| !operation.status.is_final()) {
        put(ObjectKind::Schedule, time_key(due, operation.id), Vec::new());
    }
    if let Some((former, _)) = former {
        let mut delete = |kind, key| {
            change.change(Mutation::DeleteObject { tenant, kind, key });
        };
        if operation.status.is_final() && !former.status.is_final() {
            delete(ObjectKind::Job, former.job_key());
        }
        if let Some(due) = former.due
            && (operation.due != Some(due) || operation.status.is_final())
        {
            delete(ObjectKind::Schedule, time_key(due, operation.id));
        }
    }
}

impl Vault {
    /// An operation and the revision of its record.
    pub(crate) async fn operation(&self, tenant: TenantNo, id: ObjectId) -> Result<(Operation, Revision), VaultError> {
        let row = self.store.object(tenant, ObjectKind::Operation, id.0.as_bytes().to_vec()).await?;
        let row = row.ok_or(VaultError::NotFound)?;
        Ok((serde_json::from_slice(&row.body).map_err(|_| VaultError::DataLoss)?, row.revision))
    }

    /// The operation that this request began before, if it is a repetition.
    pub(crate) async fn repeated_operation(
        &self,
        call: &Call,
        request: Option<&Request>,
    ) -> Result<Option<Operation>, VaultError> {
        match self.repeated::<ObjectId>(call, request).await? {
            Some(id) => Ok(Some(self.operation(call.tenant.no, id).await?.0)),
            None => Ok(None),
        }
    }

    /// An operation, for its caller's tenant.
    pub async fn get_operation(&self, call: &Call, id: ObjectId) -> Result<Operation, VaultError> {
        if call.permit(Verb::Operate).is_err() {
            call.permit(Verb::Erase)?;
        }
        Ok(self.operation(call.tenant.no, id).await?.0)
    }

    /// Operations, the newest first, after `after`.
    pub async fn list_operations(
        &self,
        call: &Call,
        after: Option<(Timestamp, ObjectId)>,
        limit: u32,
    ) -> Result<Page<Operation>, VaultError> {
        if call.permit(Verb::Operate).is_err() {
            call.permit(Verb::Erase)?;
        }
        self.operations_before(call.tenant.no, after, limit).await
    }

    pub(crate) async fn operations_before(
        &self,
        tenant: TenantNo,
        after: Option<(Timestamp, ObjectId)>,
        limit: u32,
    ) -> Result<Page<Operation>, VaultError> {
        let after = after.map_or(Vec::new(), |(at, id)| newest_key(at, id));
        let page = self.store.objects(tenant, ObjectKind::OperationByTime, Vec::new(), after, limit).await?;
        let mut rows = Vec::with_capacity(page.rows.len());
        for row in &page.rows {
            rows.push(self.operation(tenant, id_of(&row.key)?).await?.0);
        }
        Ok(Page { rows, more: page.more })
    }

    /// Unfinished operations of a tenant, after `after`; with the key to go on after.
    pub(crate) async fn unfinished(
        &self,
        tenant: TenantNo,
        after: Vec<u8>,
        limit: u32,
    ) -> Result<(Vec<(Operation, Revision)>, Option<Vec<u8>>), VaultError> {
        let page = self.store.objects(tenant, ObjectKind::Job, Vec::new(), after, limit).await?;
        let mut found = Vec::with_capacity(page.rows.len());
        for row in &page.rows {
            // What ended in between has no job any more.
            if let Ok(one) = self.operation(tenant, id_of(&row.key)?).await {
                found.push(one);
            }
        }
        Ok((found, page.rows.last().filter(|_| page.more).map(|row| row.key.clone())))
    }

    /// Unfinished operations of a subject.
    pub(crate) async fn open_operations(
        &self,
        tenant: TenantNo,
        uid: SubjectUid,
    ) -> Result<Vec<(Operation, Revision)>, VaultError> {
        let prefix = uid.0.to_be_bytes().to_vec();
        let page = self.store.objects(tenant, ObjectKind::Job, prefix.clone(), prefix, 1000).await?;
        let mut found = Vec::with_capacity(page.rows.len());
        for row in &page.rows {
            found.push(self.operation(tenant, id_of(&row.key)?).await?);
        }
        Ok(found)
    }

    /// Operations whose date has come, at most `limit`.
    pub(crate) async fn due_operations(
        &self,
        tenant: TenantNo,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<(Operation, Revision)>, VaultError> {
        let page = self.store.objects(tenant, ObjectKind::Schedule, Vec::new(), Vec::new(), limit).await?;
        let mut found = Vec::new();
        for row in &page.rows {
            let due: [u8; 8] = row.key.get(..8).and_then(|b| b.try_into().ok()).ok_or(VaultError::DataLoss)?;
            if i64::from_be_bytes(due) > now.0 {
                break;
            }
            found.push(self.operation(tenant, id_of(&row.key)?).await?);
        }
        Ok(found)
    }

    /// Cancels an operation that may still be cancelled: a scheduled erasure.
    pub async fn cancel_operation(
        &self,
        call: &Call,
        id: ObjectId,
        request: Option<Request>,
    ) -> Result<Operation, VaultError> {
        call.permit(Verb::Operate)?;
        let repeat = self.repeated::<()>(call, request.as_ref()).await?.is_some();
        let (operation, revision) = self.operation(call.tenant.no, id).await?;
        match operation.status {
            _ if repeat => Ok(operation),
            OperationStatus::Scheduled => {
                self.cancel_scheduled(call, &Context::default(), operation, revision, request.as_ref()).await
            }
            OperationStatus::Running | OperationStatus::Paused if operation.kind.may_be_stopped() => {
                let next = Operation { status: OperationStatus::Cancelled, updated: call.now, ..operation.clone() };
                let (action, mut change) = (Action::CancelOperation, ChangeSet::default());
                self.remember(call, request.as_ref(), &(), &mut change);
                self.advance_operation(call, &operation, revision, &next, action, change).await?;
                Ok(next)
            }
            status if status.is_final() => Err(VaultError::WrongState("the operation has ended")),
            _ => Err(VaultError::WrongState("the operation cannot be cancelled any more")),
        }
    }

    /// Goes on with unfinished operations that wait for nothing: committed ones, accepted ones, long ones by a step each.
    /// Answers how many moved; to be called again until it is none. At start it finishes what a crash left.
    pub async fn go_on(&self, call: &Call, limit: u32) -> Result<u32, VaultError> {
        let (mut moved, mut after) = (0, Vec::new());
        loop {
            let (found, next) = self.unfinished(call.tenant.no, after, limit.max(1)).await?;
            for (operation, revision) in found {
                let waits = match operation.status {
                    OperationStatus::Scheduled => true,
                    OperationStatus::PartlyHeld => operation.kind != OperationKind::EraseGroup,
                    _ => !operation.kind.is_erasure(),
                };
                if waits {
                    continue;
                }
                let before = (operation.status, operation.cursor);
                // One that cannot go on now must not stop the others.
                match self.drive(call, operation, revision).await {
                    Ok(after) => moved += u32::from((after.status, after.cursor) != before),
                    Err(error) => tracing::warn!(%error, "an operation does not go on"),
                }
            }
            match next {
                Some(next) if moved < limit => after = next,
                _ => return Ok(moved),
            }
        }
    }

    /// Commits a new state of an operation with its audit entry.
    pub(crate) async fn advance_operation(
        &self,
        call: &Call,
        former: &Operation,
        revision: Revision,
        next: &Operation,
        action: Action,
        change: ChangeSet,
    ) -> Result<Revision, VaultError> {
        let entry = call.record(action, Outcome::Ok);
        self.advance_noted(call, former, revision, next, entry, change).await
    }

    /// The same with an entry that says more.
    pub(crate) async fn advance_noted(
        &self,
        call: &Call,
        former: &Operation,
        revision: Revision,
        next: &Operation,
        mut entry: AuditRecord,
        mut change: ChangeSet,
    ) -> Result<Revision, VaultError> {
        put_operation(call.tenant.no, next, Some((former, revision)), &mut change);
        entry.subject = next.subject;
        entry.operation = Some(next.id);
        change.note(call.tenant.no, entry.to_bytes());
        self.store.commit(change).await?;
        Ok(Revision(revision.0 + 1))
    }
}

/// The operation's id at the end of a list's key.
fn id_of(key: &[u8]) -> Result<ObjectId, VaultError> {
    let bytes: [u8; 16] = key.get(8..).and_then(|b| b.try_into().ok()).ok_or(VaultError::DataLoss)?;
    Ok(ObjectId(uuid::Uuid::from_bytes(bytes)))
}
