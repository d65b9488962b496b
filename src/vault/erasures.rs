//! Looking at erasures: one, all, what one would do, and their receipts.

use crate::access::Verb;
use crate::audit::{Action, Outcome};
use crate::clock::Timestamp;
use crate::ids::*;
use crate::keyring::keeper::ReplicaState;
use crate::receipt::*;
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::{Call, Context};
use crate::vault::erase::{Erasure, Plan};
use crate::vault::error::VaultError;
use crate::vault::find::Key;
use crate::vault::operation::{HeldPart, Operation, OperationKind};
use crate::vault::record::origins;

/// What an erasure would do to one class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassPreview {
    pub class: ClassNo,
    /// Single-valued fields that have a value.
    pub fields: u64,
    pub items: u64,
    pub data_keys_issued: u64,
}

/// What an erasure would do now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preview {
    pub erased: Vec<ClassPreview>,
    pub held: Vec<HeldPart>,
    pub subjects: u64,
    /// Who was given data of what would go.
    pub recipients: Vec<RecipientNo>,
    pub search_expires_at: Option<Timestamp>,
}

impl Preview {
    fn add(&mut self, one: ClassPreview) {
        match self.erased.iter_mut().find(|known| known.class == one.class) {
            Some(known) => {
                known.fields += one.fields;
                known.items += one.items;
                known.data_keys_issued += one.data_keys_issued;
            }
            None => self.erased.push(one),
        }
    }
}

impl Vault {
    /// What erasing a subject would do.
    pub async fn preview_erasure(
        &self,
        call: &Call,
        context: &Context,
        key: &Key,
        classes: &[ClassNo],
    ) -> Result<Preview, VaultError> {
        call.permit(Verb::Erase)?;
        self.check_classes(call, classes)?;
        let snapshot = self.resolve(call, context, key).await?;
        call.permit_for(Verb::Erase, snapshot.subject.group)?;
        let mut preview = Preview::default();
        self.preview_one(call, &snapshot, classes, &mut preview).await?;
        self.note_look(call, Action::PreviewErasure, Some(snapshot.subject.uid)).await?;
        Ok(preview)
    }

    /// What erasing a group would do.
    pub async fn preview_group(
        &self,
        call: &Call,
        group: &SubjectId,
        classes: &[ClassNo],
    ) -> Result<Preview, VaultError> {
        call.permit(Verb::Erase)?;
        self.check_classes(call, classes)?;
        let group = self.group_no(call, group).await?;
        call.permit_for(Verb::Erase, Some(group))?;
        let (mut preview, mut after) = (Preview::default(), SubjectUid(0));
        loop {
            let page = self.store.list_subjects(call.tenant.no, Some(group), after, 1000).await?;
            for snapshot in &page.rows {
                after = snapshot.subject.uid;
                self.preview_one(call, snapshot, classes, &mut preview).await?;
            }
            if !page.more {
                break;
            }
        }
        self.note_look(call, Action::PreviewErasure, None).await?;
        Ok(preview)
    }

    async fn preview_one(
        &self,
        call: &Call,
        snapshot: &SubjectSnapshot,
        classes: &[ClassNo],
        preview: &mut Preview,
    ) -> Result<(), VaultError> {
        let plan: Plan = self.plan_erasure(call, snapshot, classes, call.now).await?;
        preview.subjects += 1;
        let many = call.tenant.policy()?.fields().any(|rule| rule.many);
        let groups = if many { self.store.item_groups(snapshot.subject.uid, None).await? } else { Vec::new() };
        for drop in &plan.drops {
            let class = drop.row.class;
            let items = groups.iter().filter(|group| group.key.class == class).map(|group| u64::from(group.count));
            preview.add(ClassPreview {
                class,
                fields: origins(&drop.row.record).map_err(|_| VaultError::DataLoss)?.len() as u64,
                items: items.sum(),
                data_keys_issued: u64::from(drop.row.data_keys_issued),
            });
        }
        let classes: Vec<ClassNo> = plan.drops.iter().map(|drop| drop.row.class).collect();
        for row in self.copies_of(call, snapshot.subject.uid, &classes).await? {
            if !preview.recipients.contains(&row.recipient) {
                preview.recipients.push(row.recipient);
                preview.recipients.sort_unstable();
            }
        }
        for held in plan.held {
            match preview.held.iter_mut().find(|known| known.class == held.class) {
                // Of several subjects the hold that ends last is shown.
                Some(known) if known.until.is_some_and(|t| held.until.is_none_or(|u| u > t)) => *known = held,
                Some(_) => {}
                None => preview.held.push(held),
            }
        }
        if plan.searchable {
            let since = call.tenant.settings.index_owed_since.unwrap_or(call.now);
            preview.search_expires_at = Some(since.plus_days(self.options.search_horizon_days));
        }
        Ok(())
    }

    async fn note_look(&self, call: &Call, action: Action, subject: Option<SubjectUid>) -> Result<(), VaultError> {
        let mut entry = call.record(action, Outcome::Ok);
        entry.subject = subject;
        self.note_read(call, &entry).await?;
        Ok(())
    }

    /// One erasure as it stands, with its receipt once it has one.
    pub async fn get_erasure(&self, call: &Call, id: ObjectId) -> Result<Erasure, VaultError> {
        call.permit(Verb::Erase)?;
        let (operation, _) = self.operation(call.tenant.no, id).await?;
        if !operation.kind.is_erasure() {
            return Err(VaultError::NotFound);
        }
        self.note_look(call, Action::GetErasure, operation.subject).await?;
        self.answer_erasure(call, operation, false, false).await
    }

    /// Erasures newest first, after one of them. `kinds` empty: all.
    pub async fn list_erasures(
        &self,
        call: &Call,
        subject: Option<SubjectUid>,
        keep: impl Fn(&Operation) -> bool,
        after: Option<(Timestamp, ObjectId)>,
        limit: u32,
    ) -> Result<Page<Operation>, VaultError> {
        call.permit(Verb::Erase)?;
        let (mut rows, mut after) = (Vec::new(), after);
        loop {
            let page = self.operations_before(call.tenant.no, after, 200).await?;
            for operation in page.rows {
                after = Some((operation.created, operation.id));
                let about = subject.is_none_or(|uid| operation.subject == Some(uid));
                if operation.kind.is_erasure() && about && keep(&operation) {
                    if rows.len() == limit as usize {
                        self.note_look(call, Action::ListErasures, subject).await?;
                        return Ok(Page { rows, more: true });
                    }
                    rows.push(operation);
                }
            }
            if !page.more {
                self.note_look(call, Action::ListErasures, subject).await?;
                return Ok(Page { rows, more: false });
            }
        }
    }

    /// The signed receipt of a finished erasure.
    ///
    /// # Errors
    /// `WrongState` until keys are destroyed.
    pub async fn get_receipt(&self, call: &Call, id: ObjectId) -> Result<Vec<u8>, VaultError> {
        call.permit(Verb::Erase)?;
        let (operation, _) = self.operation(call.tenant.no, id).await?;
        self.note_look(call, Action::GetReceipt, operation.subject).await?;
        let receipt = self.stored_receipt(call.tenant.no, id).await?;
        receipt.ok_or(VaultError::WrongState("nothing is erased yet"))
    }

    /// Where destroyed keys were kept.
    pub fn keeper(&self) -> &std::sync::Arc<dyn crate::keyring::keeper::Keeper> {
        self.keyring.keeper()
    }

    /// What signed records say of the keeper.
    pub(crate) fn keeper_said(&self) -> Keeper {
        let keeper = self.keyring.keeper();
        let retired = keeper.replicas().into_iter().filter(|replica| replica.state == ReplicaState::Retired);
        Keeper {
            kind: keeper.kind().to_owned(),
            assurance: match keeper.assurance() {
                "physical" => Assurance::Physical,
                _ => Assurance::Logical,
            },
            retired_replicas: retired.map(|replica| data_encoding::HEXLOWER.encode(&replica.id)).collect(),
        }
    }

    /// When the last key archive ends that may hold keys of a tenant; `None`: there is none.
    pub(crate) async fn archives_expire_at(&self, tenant: TenantNo) -> Option<Timestamp> {
        let archive = self.keyring.archive().cloned()?;
        tokio::task::spawn_blocking(move || archive.latest_expiry(tenant)).await.ok().flatten()
    }

    /// Proves that a subject was a member of an erasure about several: the salt shows to whom it belongs.
    pub async fn member_proof(&self, call: &Call, id: ObjectId, uid: SubjectUid) -> Result<MemberProof, VaultError> {
        call.permit(Verb::Erase)?;
        let members = self.members_of(call.tenant.no, id).await?;
        let index = members.iter().position(|member| member.uid == uid).ok_or(VaultError::NotFound)?;
        let leaves: Vec<_> = members.iter().map(Member::leaf).collect();
        MemberProof::new(id, members[index].clone(), &leaves, index).ok_or(VaultError::NotFound)
    }

    pub(crate) async fn stored_receipt(&self, tenant: TenantNo, id: ObjectId) -> Result<Option<Vec<u8>>, VaultError> {
        let row = self.store.object(tenant, ObjectKind::Receipt, id.0.as_bytes().to_vec()).await?;
        Ok(row.map(|row| row.body))
    }

    /// Signs what an operation did and adds it to `change`; a later receipt of the same operation replaces it.
    pub(crate) async fn put_receipt(
        &self,
        call: &Call,
        operation: &Operation,
        revision: Revision,
        change: &mut ChangeSet,
    ) -> Result<Vec<u8>, VaultError> {
        let body = self.sign_receipt(call, operation, None).await?;
        let (tenant, kind, key) = (call.tenant.no, ObjectKind::Receipt, operation.id.0.as_bytes().to_vec());
        change.change(Mutation::PutObject(ObjectRow { tenant, kind, key, revision, body: body.clone() }));
        Ok(body)
    }

    /// A receipt of what an operation did; `members` where it is about several subjects.
    pub(crate) async fn sign_receipt(
        &self,
        call: &Call,
        operation: &Operation,
        members: Option<Members>,
    ) -> Result<Vec<u8>, VaultError> {
        let policy = call.tenant.policy.as_deref();
        let name = |class: ClassNo| {
            let rule = policy.and_then(|policy| policy.class(class));
            match rule {
                Some(rule) => rule.name.to_string(),
                None if class == ClassNo::OWN => "rights".to_owned(),
                None => format!("class {class}"),
            }
        };
        let (tenant, tenant_name) = match &operation.tenant {
            Some((no, name)) => (*no, name.to_string()),
            None => (call.tenant.no, call.tenant.name.to_string()),
        };
        let controller = operation.controller.clone();
        let controller = controller.or_else(|| Some(policy?.controller().name.clone())).unwrap_or_default();
        let subject = match (operation.subject, &operation.commitment) {
            (Some(uid), Some(hex)) => {
                let bytes = data_encoding::HEXLOWER.decode(hex.as_bytes()).ok();
                let commitment = bytes.and_then(|b| b.try_into().ok()).ok_or(VaultError::DataLoss)?;
                Some(Person { uid, commitment })
            }
            _ => None,
        };
        let head = self.store.audit_head(call.tenant.no).await?;
        let archives_expire_at = self.archives_expire_at(tenant).await;
        let receipt = Receipt {
            vault: self.keyring.vault(),
            operation: operation.id,
            tenant,
            tenant_name,
            controller,
            scope: scope(operation),
            subject,
            members,
            erased: operation
                .erased
                .iter()
                .map(|part| ErasedClass { class: part.class, name: name(part.class), through_version: part.through })
                .collect(),
            held: operation
                .held
                .iter()
                .map(|part| HeldClass {
                    class: part.class,
                    name: name(part.class),
                    basis: part.basis.clone(),
                    until: part.until,
                })
                .collect(),
            recipients: operation
                .recipients
                .iter()
                .map(|no| Recipient {
                    recipient: *no,
                    name: policy.and_then(|p| p.recipient(*no)).map_or(String::new(), |rule| rule.name.to_string()),
                })
                .collect(),
            data_keys_issued: operation.data_keys_issued,
            generation: operation.generation.unwrap_or(Generation(0)),
            keeper: self.keeper_said(),
            erased_at: operation.erased_at.ok_or(VaultError::DataLoss)?,
            archives_expire_at,
            without_recovery: !self.has_recovery(),
            search_expires_at: operation.search_expires_at,
            audit: AuditPosition { seq: head.map_or(0, |head| head.seq), head: head.map_or([0; 32], |head| head.hash) },
        };
        Ok(receipt.sign(&self.keyring.signing()))
    }
}

fn scope(operation: &Operation) -> Scope {
    match operation.kind {
        OperationKind::EraseGroup | OperationKind::EraseBatch => Scope::Group,
        OperationKind::EraseTenant => Scope::Tenant,
        OperationKind::EraseFields | OperationKind::EraseFormer => Scope::Fields,
        OperationKind::EraseItems => Scope::Items,
        _ if operation.classes.is_empty() => Scope::Subject,
        _ => Scope::Classes,
    }
}
