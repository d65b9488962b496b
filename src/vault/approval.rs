//! Approvals: what a second person must agree to first. One use, for the subjects, fields, purpose and reference that it names; who
//! approves is not who asked.

use std::sync::Arc;

use crate::access::{FieldSet, PurposeSet, Verb, VerbSet, View};
use crate::audit::{Action, Fields, Outcome};
use crate::auth::{Approval, ApprovalError, ApprovalState, ApprovalUse};
use crate::clock::Timestamp;
use crate::ids::*;
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::{Call, Context};
use crate::vault::error::{DenialKind, VaultError};
use crate::vault::find::Key;
use crate::vault::request::Request;
use crate::vault::tenant::Tenant;
use zeroize::Zeroizing;

/// What is asked to be approved.
pub struct ApprovalAsk {
    /// Empty: for something that is about no subject in particular.
    pub subjects: Vec<SubjectId>,
    pub verbs: VerbSet,
    pub fields: FieldSet,
    pub purposes: PurposeSet,
    pub max_view: View,
    /// The case or ticket, as the later call will name it.
    pub reference: zeroize::Zeroizing<String>,
    pub expires: Timestamp,
}

impl From<ApprovalError> for VaultError {
    fn from(error: ApprovalError) -> Self {
        VaultError::denied(DenialKind::ApprovalNeeded, error.to_string())
    }
}

impl Vault {
    pub(crate) fn reference_digest(call: &Call, reference: &str) -> [u8; 32] {
        let (a, b) =
            (call.tenant.token_mac(&[b"ref", reference.as_bytes()]), call.tenant.token_mac(&[reference.as_bytes()]));
        let mut out = [0; 32];
        out[..16].copy_from_slice(&a);
        out[16..].copy_from_slice(&b);
        out
    }

    pub(crate) async fn approval(&self, call: &Call, id: ObjectId) -> Result<(Approval, Revision), VaultError> {
        let key = id.0.as_bytes().to_vec();
        let row = self.store.object(call.tenant.no, ObjectKind::Approval, key).await?.ok_or(VaultError::NotFound)?;
        Ok((Approval::from_bytes(&row.body).ok_or(VaultError::DataLoss)?, row.revision))
    }

    pub(crate) fn put_approval(&self, call: &Call, approval: &Approval, former: Revision, change: &mut ChangeSet) {
        let (tenant, kind, key) = (call.tenant.no, ObjectKind::Approval, approval.id.0.as_bytes().to_vec());
        change.replace_object(tenant, kind, key, former, approval.to_bytes());
    }

    /// Asks for an approval. `None` when it was only checked.
    pub async fn request_approval(
        &self,
        call: &Call,
        ask: ApprovalAsk,
        request: Option<Request>,
        validate_only: bool,
    ) -> Result<Option<Approval>, VaultError> {
        call.permit(Verb::Request)?;
        if let Some(id) = self.repeated::<ObjectId>(call, request.as_ref()).await? {
            return Ok(Some(self.approval(call, id).await?.0));
        }
        let keys: Vec<Key> = ask.subjects.into_iter().map(Key::Subject).collect();
        let mut subjects = Vec::with_capacity(keys.len());
        for found in self.resolve_all(call, &Context::default(), &keys).await? {
            subjects.push(found?.subject.uid);
        }
        subjects.sort_unstable();
        subjects.dedup();
        if ask.expires <= call.now || ask.expires > call.now.plus_days(7) {
            return Err(VaultError::invalid("expire_time", "must be in the future, at most 7 days ahead"));
        }
        if validate_only {
            return Ok(None);
        }
        let id = ObjectId::random();
        let sealed = call.tenant.seal_object(ObjectKind::Approval, id.0.as_bytes(), ask.reference.as_bytes());
        let approval = Approval {
            id,
            subjects,
            verbs: ask.verbs,
            fields: ask.fields,
            purposes: ask.purposes,
            max_view: ask.max_view,
            reference: Self::reference_digest(call, &ask.reference),
            sealed_reference: sealed,
            requester: call.principal.actor,
            requested_at: call.now,
            expires_at: ask.expires,
            decision: None,
            used_at: None,
        };
        let mut change = ChangeSet::default();
        self.put_approval(call, &approval, Revision(0), &mut change);
        let mut entry = call.record(Action::RequestApproval, Outcome::Ok);
        entry.subject = only(&approval.subjects);
        entry.operation = Some(approval.id);
        change.note(call.tenant.no, entry.to_bytes());
        self.remember(call, request.as_ref(), &approval.id, &mut change);
        self.store.commit(change).await?;
        Ok(Some(approval))
    }

    /// Says yes or no to what another asked for.
    pub async fn decide_approval(
        &self,
        call: &Call,
        id: ObjectId,
        yes: bool,
        request: Option<Request>,
    ) -> Result<Approval, VaultError> {
        call.permit(Verb::Approve)?;
        if self.repeated::<ObjectId>(call, request.as_ref()).await?.is_some() {
            return Ok(self.approval(call, id).await?.0);
        }
        let (approval, revision) = self.approval(call, id).await?;
        let decided = approval.decide(call.principal.actor, yes, call.now)?;
        let mut change = ChangeSet::default();
        self.put_approval(call, &decided, revision, &mut change);
        let action = if yes { Action::Approve } else { Action::DenyApproval };
        let mut entry = call.record(action, Outcome::Ok);
        entry.subject = only(&decided.subjects);
        entry.operation = Some(id);
        change.note(call.tenant.no, entry.to_bytes());
        self.remember(call, request.as_ref(), &id, &mut change);
        self.store.commit(change).await?;
        Ok(decided)
    }

    /// Approvals, the newest first, after `after`; with `states`, only those.
    pub async fn list_approvals(
        &self,
        call: &Call,
        states: &[ApprovalState],
        after: Option<(Timestamp, ObjectId)>,
        limit: u32,
    ) -> Result<Page<Approval>, VaultError> {
        if call.permit(Verb::Approve).is_err() {
            call.permit(Verb::Request)?;
        }
        // They are stored by their random ids and are few: all are read and put in order.
        let (mut rows, mut from) = (Vec::new(), Vec::new());
        loop {
            let page = self.store.objects(call.tenant.no, ObjectKind::Approval, Vec::new(), from, 1_000).await?;
            for row in &page.rows {
                let approval = Approval::from_bytes(&row.body).ok_or(VaultError::DataLoss)?;
                let older = after.is_none_or(|after| (approval.requested_at, approval.id) < after);
                if older && (states.is_empty() || states.contains(&approval.state(call.now))) {
                    rows.push(approval);
                }
            }
            match page.rows.last() {
                Some(last) if page.more => from = last.key.clone(),
                _ => break,
            }
        }
        rows.sort_unstable_by_key(|approval| std::cmp::Reverse((approval.requested_at, approval.id)));
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        Ok(Page { rows, more })
    }

    /// The tenant in which an approval was asked for, among all: for operators.
    pub async fn tenant_of_approval(&self, id: ObjectId) -> Result<Option<Arc<Tenant>>, VaultError> {
        for tenant in self.live_tenants() {
            let key = id.0.as_bytes().to_vec();
            if self.store.object(tenant.no, ObjectKind::Approval, key).await?.is_some() {
                return Ok(Some(tenant));
            }
        }
        Ok(None)
    }

    /// The case or ticket that an approval was asked for, in clear: for who asked and who decides.
    pub fn approval_reference(&self, call: &Call, approval: &Approval) -> Result<Zeroizing<String>, VaultError> {
        let key = approval.id.0.as_bytes();
        let plain = call.tenant.open_object(ObjectKind::Approval, key, &approval.sealed_reference)?;
        let text = std::str::from_utf8(&plain).map_err(|_| VaultError::DataLoss)?;
        Ok(Zeroizing::new(text.to_owned()))
    }

    /// Uses up the approval that the call names, if it names one: from here on it cannot be used again, whether the call
    /// succeeds or not. `true` when one was used.
    pub(crate) async fn take_approval(
        &self,
        call: &Call,
        context: &Context,
        subjects: &[SubjectUid],
        verb: Verb,
        fields: &FieldSet,
    ) -> Result<bool, VaultError> {
        let Some(id) = context.approval else { return Ok(false) };
        self.use_approval(call, context, id, subjects, verb, *fields).await?;
        Ok(true)
    }

    /// Uses up an approval for what a call is about to do.
    pub(crate) async fn use_approval(
        &self,
        call: &Call,
        context: &Context,
        id: ObjectId,
        subjects: &[SubjectUid],
        verb: Verb,
        fields: FieldSet,
    ) -> Result<(), VaultError> {
        let (approval, revision) = self.approval(call, id).await?;
        let wanted = ApprovalUse {
            by: call.principal.actor,
            subjects: subjects.to_vec(),
            verb,
            fields,
            purpose: context.purpose,
            view: View::Plain.min(approval.max_view),
            reference: Self::reference_digest(call, &context.reference),
        };
        let used = approval.use_for(&wanted, call.now)?;
        let mut change = ChangeSet::default();
        self.put_approval(call, &used, revision, &mut change);
        let mut entry = call.record(Action::UseApproval, Outcome::Ok);
        entry.subject = only(subjects);
        entry.operation = Some(id);
        entry.fields = Fields::new(fields.iter().map(FieldNo));
        change.note(call.tenant.no, entry.to_bytes());
        self.store.commit(change).await?;
        Ok(())
    }
}

/// The subject of an entry that is about one.
fn only(subjects: &[SubjectUid]) -> Option<SubjectUid> {
    match subjects {
        [one] => Some(*one),
        _ => None,
    }
}
