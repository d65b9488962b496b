//! Decisions of people about the use of their data, and what they ask for.

use tonic::{Request, Response, Status};

use crate::clock::Timestamp;
use crate::grpc::convert::{self, wire_time};
use crate::grpc::identity::{Api, Scope};
use crate::grpc::page::Pages;
use crate::grpc::pb;
use crate::grpc::status::bad_field;
use crate::grpc::words;
use crate::ids::{ObjectId, PurposeNo};
use crate::policy::file::RequestKind;
use crate::vault::Call;
use crate::vault::rights::disclosures::Disclosure;
use crate::vault::rights::nominees::Nominee;
use crate::vault::rights::requests::{NewRequest, RequestFilter, RequestState, RightsRequest, request_order};
use crate::vault::rights::{Decided, Event, How, What};

type Answer<T> = Result<Response<T>, Status>;

fn purpose(number: u32) -> Result<PurposeNo, Status> {
    convert::purpose_no("purpose_id", number)?.ok_or_else(|| bad_field("purpose_id", "is required"))
}

fn how(number: i32) -> Result<How, Status> {
    Ok(match convert::opt_choice::<pb::DecisionHow>("how", number)? {
        None | Some(pb::DecisionHow::Unspecified | pb::DecisionHow::Asked) => How::Asked,
        Some(pb::DecisionHow::Use) => How::Use,
        Some(pb::DecisionHow::Imported) => How::Imported,
    })
}

fn wire_decision(event: Event) -> pb::Decision {
    let (kind, purpose, class) = match event.what {
        What::Granted(no) => (pb::DecisionKind::ConsentGranted, no.0, 0),
        What::Withdrawn(no) => (pb::DecisionKind::ConsentWithdrawn, no.0, 0),
        What::Objected(no) => (pb::DecisionKind::Objected, no.0, 0),
        What::ObjectionEnded(no) => (pb::DecisionKind::ObjectionEnded, no.0, 0),
        What::Restricted(no) => (pb::DecisionKind::Restricted, 0, no.0),
        What::RestrictionEnded(no) => (pb::DecisionKind::RestrictionEnded, 0, no.0),
    };
    let how = match event.how {
        How::Asked => pb::DecisionHow::Asked,
        How::Use => pb::DecisionHow::Use,
        How::Imported => pb::DecisionHow::Imported,
    };
    pb::Decision {
        kind: kind as i32,
        purpose_id: purpose.into(),
        class_id: class.into(),
        how: how as i32,
        decide_time: Some(wire_time(event.at)),
        policy_version: event.version.0,
        policy_sha256: event.policy.to_vec().into(),
        evidence: event.evidence,
    }
}

fn wire_state(state: RequestState) -> pb::RightsRequestState {
    match state {
        RequestState::Open => pb::RightsRequestState::Open,
        RequestState::Done => pb::RightsRequestState::Done,
        RequestState::Refused => pb::RightsRequestState::Refused,
    }
}

fn opt_state(number: i32) -> Result<Option<RequestState>, Status> {
    Ok(match convert::opt_choice::<pb::RightsRequestState>("state", number)? {
        None | Some(pb::RightsRequestState::Unspecified) => None,
        Some(pb::RightsRequestState::Open) => Some(RequestState::Open),
        Some(pb::RightsRequestState::Done) => Some(RequestState::Done),
        Some(pb::RightsRequestState::Refused) => Some(RequestState::Refused),
    })
}

fn wire_request(request: &RightsRequest, now: Timestamp) -> pb::RightsRequest {
    pb::RightsRequest {
        request: request.id.to_string(),
        kind: request.kind.name().into(),
        subject_uid: request.subject.map_or(0, |uid| uid.0),
        arrive_time: Some(wire_time(request.arrived)),
        due_time: request.due.map(wire_time),
        state: wire_state(request.state) as i32,
        overdue: request.overdue(now),
        close_time: request.closed.map(wire_time),
        nominee_uid: request.nominee.map_or(0, |uid| uid.0),
    }
}

fn wire_nominee(nominee: &Nominee) -> pb::Nominee {
    pb::Nominee {
        subject_uid: nominee.nominee.0,
        scopes: nominee.scopes.iter().map(|kind| kind.name().into()).collect(),
        name_time: Some(wire_time(nominee.named)),
        expire_time: nominee.until.map(wire_time),
        active: nominee.counts,
    }
}

fn wire_disclosure(call: &Call, row: &Disclosure) -> Result<pb::Disclosure, Status> {
    let rule = call.tenant.policy()?.recipient(row.recipient);
    Ok(pb::Disclosure {
        recipient_id: row.recipient.0.into(),
        name: rule.map_or(String::new(), |rule| rule.name.to_string()),
        agreement: row.agreement.clone().unwrap_or_default(),
        field_ids: row.fields.iter().map(u32::from).collect(),
        purpose_ids: row.purposes.iter().map(u32::from).collect(),
        reads: row.reads,
        first_time: Some(wire_time(row.first)),
        last_time: Some(wire_time(row.last)),
        recipient_ref: call.tenant.recipient_ref(row.recipient, row.uid).to_vec().into(),
        subject_uid: row.uid.0,
        erase_time: row.erased.map(wire_time),
        acknowledge_time: row.acknowledged.map(wire_time),
    })
}

#[tonic::async_trait]
impl pb::rights_service_server::RightsService for Api {
    async fn grant_consent(&self, request: Request<pb::GrantConsentRequest>) -> Answer<pb::GrantConsentResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "GrantConsent", &repeat_id, &message)?;
        let consent = convert::required("consent", &message.consent)?;
        convert::opt_text("consent.evidence", &consent.evidence, 256)?;
        let decided = Decided {
            what: What::Granted(purpose(consent.purpose_id)?),
            at: convert::opt_time("consent.grant_time", &consent.grant_time)?,
            how: how(message.how)?,
            evidence: &consent.evidence,
        };
        let (key, context) = (words::key(message.key)?, words::context(message.context)?);
        let at = self.vault.decide_right(&call, &context, &key, &decided, repeat).await?;
        Ok(Response::new(pb::GrantConsentResponse { commit_time: Some(wire_time(at)) }))
    }

    async fn withdraw_consent(
        &self,
        request: Request<pb::WithdrawConsentRequest>,
    ) -> Answer<pb::WithdrawConsentResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "WithdrawConsent", &repeat_id, &message)?;
        convert::opt_text("evidence", &message.evidence, 256)?;
        let what = What::Withdrawn(purpose(message.purpose_id)?);
        let decided = Decided { what, at: None, how: How::Asked, evidence: &message.evidence };
        let (key, context) = (words::key(message.key)?, words::context(message.context)?);
        let at = self.vault.decide_right(&call, &context, &key, &decided, repeat).await?;
        Ok(Response::new(pb::WithdrawConsentResponse { commit_time: Some(wire_time(at)) }))
    }

    async fn record_objection(
        &self,
        request: Request<pb::RecordObjectionRequest>,
    ) -> Answer<pb::RecordObjectionResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "RecordObjection", &repeat_id, &message)?;
        convert::opt_text("evidence", &message.evidence, 256)?;
        let no = purpose(message.purpose_id)?;
        let what = if message.end { What::ObjectionEnded(no) } else { What::Objected(no) };
        let decided = Decided { what, at: None, how: How::Asked, evidence: &message.evidence };
        let (key, context) = (words::key(message.key)?, words::context(message.context)?);
        let at = self.vault.decide_right(&call, &context, &key, &decided, repeat).await?;
        Ok(Response::new(pb::RecordObjectionResponse { commit_time: Some(wire_time(at)) }))
    }

    async fn restrict_class(&self, request: Request<pb::RestrictClassRequest>) -> Answer<pb::RestrictClassResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "RestrictClass", &repeat_id, &message)?;
        convert::opt_text("evidence", &message.evidence, 256)?;
        let no = convert::class_no("class_id", message.class_id)?;
        let what = if message.end { What::RestrictionEnded(no) } else { What::Restricted(no) };
        let decided = Decided { what, at: None, how: How::Asked, evidence: &message.evidence };
        let (key, context) = (words::key(message.key)?, words::context(message.context)?);
        let at = self.vault.decide_right(&call, &context, &key, &decided, repeat).await?;
        Ok(Response::new(pb::RestrictClassResponse { commit_time: Some(wire_time(at)) }))
    }

    async fn get_rights(&self, request: Request<pb::GetRightsRequest>) -> Answer<pb::GetRightsResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let message = request.into_inner();
        let (key, context) = (words::key(message.key)?, words::context(message.context)?);
        let rights = self.vault.rights_of(&call, &context, &key).await?;
        Ok(Response::new(pb::GetRightsResponse {
            decisions: rights.events.into_iter().map(wire_decision).collect(),
            consented_purpose_ids: rights.consented.iter().map(|no| no.0.into()).collect(),
            objected_purpose_ids: rights.objected.iter().map(|no| no.0.into()).collect(),
            restricted_class_ids: rights.restricted.iter().map(|no| no.0.into()).collect(),
            nominees: rights.nominees.iter().map(wire_nominee).collect(),
        }))
    }

    async fn create_request(&self, request: Request<pb::CreateRequestRequest>) -> Answer<pb::CreateRequestResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "CreateRequest", &repeat_id, &message)?;
        let kind = RequestKind::parse(&message.kind)
            .ok_or_else(|| bad_field("kind", "must be one of the kinds that docs/POLICY.md lists for clocks"))?;
        let region = match message.region.as_str() {
            "" => None,
            region => Some(convert::name("region", region)?),
        };
        let key = message.key.map(|key| words::key(Some(key))).transpose()?;
        let acting = words::acting(&mut message.context)?;
        let new = NewRequest {
            kind,
            subject: key.as_ref(),
            acting: acting.as_ref(),
            arrived: convert::opt_time("arrive_time", &message.arrive_time)?,
            region: region.as_ref(),
        };
        let context = words::context(message.context)?;
        let opened = self.vault.open_request(&call, &context, &new, repeat).await?;
        Ok(Response::new(pb::CreateRequestResponse { request: Some(wire_request(&opened, call.now)) }))
    }

    async fn update_request(&self, request: Request<pb::UpdateRequestRequest>) -> Answer<pb::UpdateRequestResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "UpdateRequest", &repeat_id, &message)?;
        let id = convert::object_id("request", &message.request)?;
        let state = opt_state(message.state)?.ok_or_else(|| bad_field("state", "is required"))?;
        let closed = self.vault.close_request(&call, id, state, repeat).await?;
        Ok(Response::new(pb::UpdateRequestResponse { request: Some(wire_request(&closed, call.now)) }))
    }

    async fn list_requests(&self, request: Request<pb::ListRequestsRequest>) -> Answer<pb::ListRequestsResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let limit = convert::page_size(std::mem::take(&mut message.page_size))?;
        let token = std::mem::take(&mut message.page_token);
        let pages = Pages::new(&call, "ListRequests", &message);
        let after = pages.position::<24>(&token)?.map(|bytes| {
            let (due, id) = bytes.split_at(8);
            let due = i64::from_be_bytes(due.try_into().expect("split at 8"));
            let id = <[u8; 16]>::try_from(id).expect("24 less 8");
            (Timestamp(due), ObjectId(uuid::Uuid::from_bytes(id)))
        });
        let filter = RequestFilter { state: opt_state(message.state)?, overdue: message.overdue };
        let page = self.vault.list_requests(&call, filter, after, limit).await?;
        let position = page.rows.last().filter(|_| page.more).map(|last| {
            let (due, id) = request_order(last);
            [&due.0.to_be_bytes()[..], id.0.as_bytes()].concat()
        });
        Ok(Response::new(pb::ListRequestsResponse {
            requests: page.rows.iter().map(|request| wire_request(request, call.now)).collect(),
            next_page_token: position.map_or(String::new(), |position| pages.token(&position)),
        }))
    }

    async fn list_disclosures(
        &self,
        request: Request<pb::ListDisclosuresRequest>,
    ) -> Answer<pb::ListDisclosuresResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let Some(recipient) = convert::recipient_no("recipient_id", message.recipient_id)? else {
            let (key, context) = (words::key(message.key)?, words::context(message.context)?);
            convert::refuse(message.pending, "pending")?;
            let found = self.vault.disclosures(&call, &context, &key).await?;
            let disclosures = found.rows.iter().map(|row| wire_disclosure(&call, row)).collect::<Result<_, _>>()?;
            let (complete, next_page_token) = (found.complete, String::new());
            return Ok(Response::new(pb::ListDisclosuresResponse { disclosures, complete, next_page_token }));
        };
        if message.key.is_some() {
            return Err(bad_field("key", "a person or a recipient, not both"));
        }
        let limit = convert::page_size(std::mem::take(&mut message.page_size))?;
        let token = std::mem::take(&mut message.page_token);
        let pages = Pages::new(&call, "ListDisclosures", &message);
        let after = pages.position::<10>(&token)?.map_or(Vec::new(), |bytes| bytes.to_vec());
        let (page, position) = self.vault.disclosures_to(&call, recipient, message.pending, after, limit).await?;
        let disclosures = page.rows.iter().map(|row| wire_disclosure(&call, row)).collect::<Result<_, _>>()?;
        let next_page_token = if page.more { pages.token(&position) } else { String::new() };
        Ok(Response::new(pb::ListDisclosuresResponse { disclosures, complete: true, next_page_token }))
    }

    async fn set_nominee(&self, request: Request<pb::SetNomineeRequest>) -> Answer<pb::SetNomineeResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "SetNominee", &repeat_id, &message)?;
        let scope = |name: &String| {
            RequestKind::parse(name)
                .ok_or_else(|| bad_field("scopes", "must be kinds that docs/POLICY.md lists for clocks"))
        };
        let mut scopes = message.scopes.iter().map(scope).collect::<Result<Vec<_>, _>>()?;
        scopes.dedup();
        let until = convert::opt_time("expire_time", &message.expire_time)?;
        let (key, nominee) = (words::key(message.key)?, words::key(message.nominee)?);
        let context = words::context(message.context)?;
        let at = self.vault.set_nominee(&call, &context, &key, &nominee, &scopes, until, repeat).await?;
        Ok(Response::new(pb::SetNomineeResponse { commit_time: Some(wire_time(at)) }))
    }

    async fn remove_nominee(&self, request: Request<pb::RemoveNomineeRequest>) -> Answer<pb::RemoveNomineeResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "RemoveNominee", &repeat_id, &message)?;
        let (key, nominee) = (words::key(message.key)?, words::key(message.nominee)?);
        let context = words::context(message.context)?;
        let at = self.vault.remove_nominee(&call, &context, &key, &nominee, repeat).await?;
        Ok(Response::new(pb::RemoveNomineeResponse { commit_time: Some(wire_time(at)) }))
    }
}
