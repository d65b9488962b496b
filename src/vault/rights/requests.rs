//! Requests of people and authorities with their time limits: who must be answered by when.
//!
//! A request is a small record without words: its kind, whose it is by number, when it came, when it is due. The time limit
//! is that of the policy in force when it came; a later policy does not move it.

use serde::{Deserialize, Serialize};

use crate::access::Verb;
use crate::audit::{Action, Outcome};
use crate::clock::Timestamp;
use crate::ids::*;
use crate::policy::file::RequestKind;
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::{Call, Context};
use crate::vault::error::VaultError;
use crate::vault::find::Key;
use crate::vault::request::Request;
use crate::vault::to_json;

/// Where a request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RequestState {
    Open,
    Done,
    /// Answered with a no, for a reason that the law gives.
    Refused,
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RightsRequest {
    pub id: ObjectId,
    #[serde(with = "kind_name")]
    pub kind: RequestKind,
    /// `None`: it is about nobody in the vault, such as a request for an agreement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<SubjectUid>,
    /// Who asked in the subject's place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nominee: Option<SubjectUid>,
    pub arrived: Timestamp,
    /// Overdue from this moment; `None`: the policy sets no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<Timestamp>,
    pub state: RequestState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed: Option<Timestamp>,
    pub by: ActorId,
}

impl RightsRequest {
    /// Whether it waits longer than it may.
    pub fn overdue(&self, now: Timestamp) -> bool {
        self.state == RequestState::Open && self.due.is_some_and(|due| now >= due)
    }
}

/// What is asked for.
pub struct NewRequest<'a> {
    pub kind: RequestKind,
    pub subject: Option<&'a Key>,
    /// The nominee who asks in the subject's place.
    pub acting: Option<&'a SubjectId>,
    /// When it came; `None`: now.
    pub arrived: Option<Timestamp>,
    /// Region of the person, where the policy has time limits of its own for it.
    pub region: Option<&'a Name>,
}

/// Which requests a list has.
#[derive(Debug, Clone, Copy, Default)]
pub struct RequestFilter {
    /// `None`: all.
    pub state: Option<RequestState>,
    pub overdue: bool,
}

impl Vault {
    /// Notes that somebody asked for something; its clock starts when it arrived.
    pub async fn open_request(
        &self,
        call: &Call,
        context: &Context,
        new: &NewRequest<'_>,
        request: Option<Request>,
    ) -> Result<RightsRequest, VaultError> {
        let permit = call.permit(Verb::Request)?;
        if let Some(answer) = self.repeated(call, request.as_ref()).await? {
            return Ok(answer);
        }
        let policy = call.tenant.policy()?;
        let arrived = new.arrived.unwrap_or(call.now);
        if arrived > call.now.plus_ms(self.options.future_tolerance_ms) {
            return Err(VaultError::invalid("arrive_time", "must not be in the future"));
        }
        let snapshot = match new.subject {
            Some(key) => {
                let snapshot = self.resolve(call, context, key).await?;
                permit.for_group(snapshot.subject.group)?;
                Some(snapshot)
            }
            None => None,
        };
        let subject = snapshot.as_ref().map(|s| s.subject.uid);
        let nominee = match (new.acting, subject) {
            (None, _) => None,
            (Some(_), None) => {
                return Err(VaultError::invalid("context.acting_for", "a nominee acts for a person: name the person"));
            }
            (Some(acting), Some(uid)) => match self.nominee_for(call, uid, acting, new.kind).await {
                Ok(nominee) => Some(nominee),
                Err(error) => {
                    let mut entry = call.record(Action::OpenRequest, error.outcome());
                    entry.subject = Some(uid);
                    self.note_read(call, &entry).await?;
                    return Err(error);
                }
            },
        };
        let opened = RightsRequest {
            id: ObjectId::random(),
            kind: new.kind,
            subject,
            nominee,
            arrived,
            due: policy.due(new.kind, new.region, arrived),
            state: RequestState::Open,
            closed: None,
            by: call.principal.actor,
        };
        let mut change = ChangeSet::default();
        put_request(call.tenant.no, &opened, Revision(0), &mut change);
        let mut entry = call.record(Action::OpenRequest, Outcome::Ok);
        entry.subject = opened.subject;
        entry.operation = Some(opened.id);
        if let Some(snapshot) = &snapshot {
            self.attach_detail(call, context, &mut entry, &snapshot.classes).await?;
        }
        change.note(call.tenant.no, entry.to_bytes());
        if opened.nominee.is_some() {
            let mut acted = call.record(Action::ActAsNominee, Outcome::Ok);
            (acted.subject, acted.operation) = (opened.nominee, Some(opened.id));
            change.note(call.tenant.no, acted.to_bytes());
        }
        self.remember(call, request.as_ref(), &opened, &mut change);
        self.store.commit(change).await?;
        Ok(opened)
    }

    /// Notes how a request was answered.
    pub async fn close_request(
        &self,
        call: &Call,
        id: ObjectId,
        state: RequestState,
        request: Option<Request>,
    ) -> Result<RightsRequest, VaultError> {
        call.permit(Verb::Request)?;
        for _ in 0..4 {
            if let Some(answer) = self.repeated(call, request.as_ref()).await? {
                return Ok(answer);
            }
            let tenant = call.tenant.no;
            let key = id.0.as_bytes().to_vec();
            let row = self.store.object(tenant, ObjectKind::Request, key).await?.ok_or(VaultError::NotFound)?;
            let mut known: RightsRequest = serde_json::from_slice(&row.body).map_err(|_| VaultError::DataLoss)?;
            if known.state != RequestState::Open {
                return Err(VaultError::WrongState("the request was answered before"));
            }
            if state == RequestState::Open {
                return Err(VaultError::invalid("state", "must be DONE or REFUSED"));
            }
            (known.state, known.closed) = (state, Some(call.now));
            let mut change = ChangeSet::default();
            put_request(tenant, &known, row.revision, &mut change);
            let mut entry = call.record(Action::CloseRequest, Outcome::Ok);
            entry.subject = known.subject;
            entry.operation = Some(id);
            change.note(tenant, entry.to_bytes());
            self.remember(call, request.as_ref(), &known, &mut change);
            match self.store.commit(change).await {
                Ok(_) => return Ok(known),
                Err(error) => self.retry_or_answer(call, error, request.as_ref()).await?,
            }
        }
        Err(VaultError::Conflict)
    }

    /// Requests by when they are due, then by id, after `after`; those without a limit come last.
    pub async fn list_requests(
        &self,
        call: &Call,
        filter: RequestFilter,
        after: Option<(Timestamp, ObjectId)>,
        limit: u32,
    ) -> Result<Page<RightsRequest>, VaultError> {
        call.permit(Verb::Request)?;
        let mut rows = self.all_requests(call).await?;
        rows.retain(|request| {
            filter.state.is_none_or(|state| state == request.state)
                && (!filter.overdue || request.overdue(call.now))
                && after.is_none_or(|after| request_order(request) > after)
        });
        rows.sort_unstable_by_key(request_order);
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let entry = call.record(Action::ListRequests, Outcome::Ok);
        self.note_read(call, &entry).await?;
        Ok(Page { rows, more })
    }

    /// How many requests of all tenants wait longer than they may.
    pub async fn overdue_requests(&self) -> Result<u64, VaultError> {
        let mut overdue = 0;
        for tenant in self.live_tenants() {
            let call = self.job_call(tenant);
            overdue += self.all_requests(&call).await?.iter().filter(|request| request.overdue(call.now)).count();
        }
        Ok(overdue as u64)
    }

    /// They are stored by their random ids and are few: whoever puts them in order reads all.
    pub(crate) async fn all_requests(&self, call: &Call) -> Result<Vec<RightsRequest>, VaultError> {
        let (mut rows, mut from) = (Vec::new(), Vec::new());
        loop {
            let page = self.store.objects(call.tenant.no, ObjectKind::Request, Vec::new(), from, 1_000).await?;
            for row in &page.rows {
                rows.push(serde_json::from_slice(&row.body).map_err(|_| VaultError::DataLoss)?);
            }
            match page.rows.last() {
                Some(last) if page.more => from = last.key.clone(),
                _ => return Ok(rows),
            }
        }
    }
}

/// By what lists are ordered.
pub fn request_order(request: &RightsRequest) -> (Timestamp, ObjectId) {
    (request.due.unwrap_or(Timestamp(i64::MAX)), request.id)
}

fn put_request(tenant: TenantNo, request: &RightsRequest, revision: Revision, change: &mut ChangeSet) {
    let (kind, key) = (ObjectKind::Request, request.id.0.as_bytes().to_vec());
    change.replace_object(tenant, kind, key, revision, to_json(request));
}

/// Kinds are stored by their names.
mod kind_name {
    use crate::policy::file::RequestKind;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(kind: &RequestKind, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(kind.name())
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<RequestKind, D::Error> {
        RequestKind::parse(&String::deserialize(d)?).ok_or_else(|| serde::de::Error::custom("unknown kind"))
    }
}
