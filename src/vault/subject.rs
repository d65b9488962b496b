//! Subjects without their values: look, list, close, reopen, touch.

use std::sync::Arc;

use crate::access::Verb;
use crate::audit::{Action, Outcome};
use crate::clock::{DAY_MS, Timestamp};
use crate::ids::*;
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::{Call, Context};
use crate::vault::error::VaultError;
use crate::vault::etag::etag;
use crate::vault::find::found;
use crate::vault::request::Request;

impl Vault {
    /// The subject of an id.
    pub(crate) async fn resolve_id(&self, call: &Call, id: &SubjectId) -> Result<Arc<SubjectSnapshot>, VaultError> {
        found(call, id, self.store.subject(call.tenant.no, call.tenant.digest(id)).await?)
    }

    /// The id of a subject of the call's tenant; `None` once it is gone.
    pub(crate) async fn id_of(&self, call: &Call, uid: SubjectUid) -> Result<Option<SubjectId>, VaultError> {
        let snapshot = self.store.subject_by_uid(uid).await?.filter(|s| s.subject.tenant == call.tenant.no);
        snapshot.map(|s| call.tenant.open_id(uid, &s.subject.sealed_id)).transpose()
    }

    /// A subject: its state, group and classes, no values.
    pub async fn get_subject(&self, call: &Call, id: &SubjectId) -> Result<Arc<SubjectSnapshot>, VaultError> {
        call.permit(Verb::Subject)?;
        let snapshot = match self.resolve_id(call, id).await {
            Ok(snapshot) => snapshot,
            Err(error) => {
                let fields = crate::access::FieldSet::EMPTY;
                return Err(self.missed(call, Action::GetSubject, PurposeNo(0), &fields, error).await);
            }
        };
        call.permit_for(Verb::Subject, snapshot.subject.group)?;
        let mut entry = call.record(Action::GetSubject, Outcome::Ok);
        entry.subject = Some(snapshot.subject.uid);
        self.note_read(call, &entry).await?;
        Ok(snapshot)
    }

    /// Subjects in order of creation, after `after`; of one group where asked.
    pub async fn list_subjects(
        &self,
        call: &Call,
        group: Option<GroupNo>,
        after: SubjectUid,
        limit: u32,
    ) -> Result<Page<Arc<SubjectSnapshot>>, VaultError> {
        let permit = call.permit(Verb::Subject)?;
        if let Some(group) = group {
            permit.for_group(Some(group))?;
        }
        let mut page = self.store.list_subjects(call.tenant.no, group, after, limit).await?;
        let last = page.rows.last().cloned();
        page.rows.retain(|snapshot| permit.for_group(snapshot.subject.group).is_ok());
        // A page must be able to say where it ended even when the caller may see none of its rows.
        if page.rows.is_empty() && page.more {
            let after = last.map_or(after, |s| s.subject.uid);
            return Box::pin(self.list_subjects(call, group, after, limit)).await;
        }
        let entry = call.record(Action::ListSubjects, Outcome::Ok);
        self.note_read(call, &entry).await?;
        Ok(page)
    }

    /// Closes a subject: it is read as before, and not written to; when the policy's grace is over it is erased.
    pub async fn close_subject(
        &self,
        call: &Call,
        context: &Context,
        id: &SubjectId,
        wanted_etag: Option<&str>,
        request: Option<Request>,
    ) -> Result<Arc<SubjectSnapshot>, VaultError> {
        let (from, to) = (SubjectState::Live, SubjectState::Closed);
        self.move_subject(call, context, id, wanted_etag, request, from, to, Action::CloseSubject).await
    }

    /// Opens a closed subject again; it is not erased then.
    pub async fn reopen_subject(
        &self,
        call: &Call,
        context: &Context,
        id: &SubjectId,
        wanted_etag: Option<&str>,
        request: Option<Request>,
    ) -> Result<Arc<SubjectSnapshot>, VaultError> {
        let (from, to) = (SubjectState::Closed, SubjectState::Live);
        self.move_subject(call, context, id, wanted_etag, request, from, to, Action::ReopenSubject).await
    }

    #[allow(clippy::too_many_arguments)] // two callers that differ in the last three
    async fn move_subject(
        &self,
        call: &Call,
        context: &Context,
        id: &SubjectId,
        wanted_etag: Option<&str>,
        request: Option<Request>,
        from: SubjectState,
        to: SubjectState,
        action: Action,
    ) -> Result<Arc<SubjectSnapshot>, VaultError> {
        call.permit(Verb::Subject)?;
        for _ in 0..4 {
            let snapshot = self.resolve_id(call, id).await?;
            call.permit_for(Verb::Subject, snapshot.subject.group)?;
            if self.repeated::<()>(call, request.as_ref()).await?.is_some() {
                return Ok(snapshot);
            }
            if wanted_etag.is_some_and(|wanted| wanted != etag(&snapshot)) {
                return Err(VaultError::EtagStale);
            }
            match snapshot.subject.state {
                state if state == to => return Ok(snapshot),
                state if state == from => {}
                SubjectState::Live => return Err(VaultError::WrongState("the subject is not closed")),
                SubjectState::Closed => return Err(VaultError::SubjectClosed),
                SubjectState::Frozen => return Err(VaultError::WrongState("the subject's erasure is under way")),
                SubjectState::Held => return Err(VaultError::SubjectErased),
            }
            let mut row = snapshot.subject.clone();
            let mut change = ChangeSet::default();
            change.require(Precondition::SubjectAt { uid: row.uid, revision: row.revision });
            row.state = to;
            row.revision = Revision(row.revision.0 + 1);
            let noted = match to {
                SubjectState::Closed => self.schedule_closing(call, &snapshot, &mut row, &mut change)?,
                _ => self.cancel_closing(call, &mut row, &mut change).await?,
            };
            let mut entry = call.record(action, Outcome::Ok);
            entry.subject = Some(row.uid);
            self.attach_detail(call, context, &mut entry, &snapshot.classes).await?;
            let uid = row.uid;
            change.change(Mutation::PutSubject(row));
            change.note(call.tenant.no, entry.to_bytes());
            self.remember(call, request.as_ref(), &(), &mut change);
            match self.store.commit(change).await {
                Ok(_) => {
                    if let Some(noted) = noted {
                        self.ledger(vec![noted]).await?;
                    }
                    return self.store.subject_by_uid(uid).await?.ok_or(VaultError::NotFound);
                }
                Err(error) => self.retry_or_answer(call, error, request.as_ref()).await?,
            }
        }
        Err(VaultError::Conflict)
    }

    /// Notes that the subject was active today: what "kept as long as active" counts from.
    pub async fn touch_subject(&self, call: &Call, id: &SubjectId) -> Result<Timestamp, VaultError> {
        call.permit(Verb::Subject)?;
        let snapshot = self.resolve_id(call, id).await?;
        call.permit_for(Verb::Subject, snapshot.subject.group)?;
        self.must_be_open(&snapshot.subject)?;
        let at = Timestamp(call.now.day() * DAY_MS);
        if snapshot.subject.touched >= at {
            return Ok(snapshot.subject.touched);
        }
        let uid = snapshot.subject.uid;
        let mut change = ChangeSet::default();
        change.require(Precondition::SubjectLive { uid });
        change.change(Mutation::TouchSubject { uid, at });
        let mut entry = call.record(Action::TouchSubject, Outcome::Ok);
        entry.subject = Some(uid);
        change.note(call.tenant.no, entry.to_bytes());
        self.store.commit(change).await?;
        Ok(at)
    }
}
