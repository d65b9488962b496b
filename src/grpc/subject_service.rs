//! People and the accounts that own them, without their values.

use std::collections::HashMap;

use tonic::{Request, Response, Status};

use crate::access::Verb;
use crate::audit::Action;
use crate::grpc::convert::{self, Bad, wire_time};
use crate::grpc::identity::{Api, Scope};
use crate::grpc::page::Pages;
use crate::grpc::pb;
use crate::grpc::status::bad_field;
use crate::grpc::words;
use crate::ids::{ClassNo, GroupNo, Name, RecipientNo, SubjectUid};
use crate::policy::period::Period;
use crate::storage::{ClassState, SubjectRow, SubjectSnapshot};
use crate::vault::etag::etag;
use crate::vault::find::Key;
use crate::vault::group::{Group, GroupChange, GroupState};
use crate::vault::{Call, VaultError};

type Answer<T> = Result<Response<T>, Status>;

fn class_status(state: ClassState) -> pb::ClassStatus {
    match state {
        ClassState::Live => pb::ClassStatus::Live,
        ClassState::Restricted => pb::ClassStatus::Restricted,
        ClassState::Erased => pb::ClassStatus::Erased,
    }
}

/// Ids of groups by their numbers, each looked up once for an answer.
#[derive(Default)]
struct GroupNames(HashMap<GroupNo, String>);

impl GroupNames {
    async fn of(&mut self, api: &Api, call: &Call, group: Option<GroupNo>) -> Result<String, Status> {
        let Some(no) = group else { return Ok(String::new()) };
        if let Some(name) = self.0.get(&no) {
            return Ok(name.clone());
        }
        let name = api.vault.group_by_no(call, no).await?.id.as_str().to_owned();
        self.0.insert(no, name.clone());
        Ok(name)
    }
}

/// A filter of subject states; empty: all that a list can show.
struct States(Vec<pb::SubjectState>);

impl States {
    fn of(numbers: &[i32]) -> Result<Self, Status> {
        let states: Vec<pb::SubjectState> = convert::choices("states", numbers)?;
        if states.contains(&pb::SubjectState::Erased) {
            return Err(bad_field("states", "erased subjects are not kept: ListErasures has them"));
        }
        Ok(States(states))
    }

    fn has(&self, row: &SubjectRow) -> bool {
        self.0.is_empty() || self.0.contains(&words::wire_row_state(row))
    }
}

fn group_state(state: GroupState) -> pb::GroupState {
    match state {
        GroupState::Active => pb::GroupState::Active,
        GroupState::Closed => pb::GroupState::Closed,
        GroupState::Erased => pb::GroupState::Erased,
    }
}

fn wire_group(call: &Call, group: Group) -> Result<pb::Group, Status> {
    let policy = call.tenant.policy()?;
    let plan_id = group.plan.as_ref().and_then(|name| policy.plan(name)).map_or(0, |plan| plan.no.into());
    let days = |period: Period| u32::try_from(period.longest_days()).unwrap_or(u32::MAX);
    let wire =
        |(class, period): &(ClassNo, Period)| pb::RetentionOverride { class_id: class.0.into(), days: days(*period) };
    Ok(pb::Group {
        group: group.id.as_str().to_owned(),
        plan_id,
        retention: group.retention.iter().map(wire).collect(),
        state: group_state(group.state) as i32,
        create_time: Some(wire_time(group.created)),
        etag: format!("{:x}", group.revision.0),
        ..Default::default()
    })
}

/// The name of a plan by its number; 0 is none.
fn plan_name(call: &Call, number: u32) -> Result<Option<Name>, Status> {
    if number == 0 {
        return Ok(None);
    }
    let mut plans = call.tenant.policy()?.plans().iter();
    let plan = plans.find(|plan| u32::from(plan.no) == number);
    plan.map(|plan| Some(plan.name.clone()))
        .ok_or_else(|| bad_field("group.plan_id", "the policy has no plan of this number"))
}

fn retention(overrides: &[pb::RetentionOverride]) -> Result<Vec<(ClassNo, String)>, Status> {
    let one = |o: &pb::RetentionOverride| match o.days {
        1..=36_500 => Ok((convert::class_no("group.retention.class_id", o.class_id)?, format!("{}d", o.days))),
        _ => Err(bad_field("group.retention.days", "must be 1 to 36,500")),
    };
    overrides.iter().map(one).collect()
}

/// Words of a group that the vault does not keep yet are refused by name.
fn refuse_unkept(group: &pb::Group) -> Result<(), Bad> {
    convert::refuse(!group.owner.is_empty(), "group.owner")?;
    convert::refuse(!group.region.is_empty(), "group.region")?;
    convert::refuse(!group.time_zone.is_empty(), "group.time_zone")
}

impl Api {
    async fn wire_subject(
        &self,
        call: &Call,
        snapshot: &SubjectSnapshot,
        names: &mut GroupNames,
        classes: bool,
    ) -> Result<pb::Subject, Status> {
        let row = &snapshot.subject;
        let mut holds = Vec::new();
        if classes && call.permit(Verb::Hold).is_ok() {
            holds = self.vault.holds_on(row).await?;
            holds.retain(|hold| hold.active(call.now));
        }
        let names_of = |class: ClassNo| {
            let on = holds.iter().filter(|hold| hold.classes.is_empty() || hold.classes.contains(&class));
            on.map(|hold| hold.id.to_string()).collect()
        };
        let class = |c: &crate::storage::ClassRow| pb::ClassState {
            class_id: c.class.0.into(),
            status: class_status(c.state) as i32,
            data_key_version: c.version.0,
            holds: names_of(c.class),
        };
        Ok(pb::Subject {
            subject: call.tenant.open_id(row.uid, &row.sealed_id)?.as_str().to_owned(),
            state: words::wire_row_state(row) as i32,
            group: names.of(self, call, row.group).await?,
            classes: if classes { snapshot.classes.iter().map(class).collect() } else { Vec::new() },
            create_time: Some(wire_time(row.created)),
            etag: etag(snapshot),
            active_time: Some(wire_time(row.touched)),
            recipient_ref: call.tenant.recipient_ref(RecipientNo(0), row.uid).to_vec().into(),
        })
    }

    async fn one_subject(&self, call: &Call, snapshot: &SubjectSnapshot) -> Result<Option<pb::Subject>, Status> {
        self.wire_subject(call, snapshot, &mut GroupNames::default(), true).await.map(Some)
    }

    async fn subjects_page(
        &self,
        call: &Call,
        pages: &Pages<'_>,
        token: &str,
        limit: u32,
        group: Option<GroupNo>,
        states: &[i32],
    ) -> Result<(Vec<pb::Subject>, String), Status> {
        let states = States::of(states)?;
        let after = SubjectUid(pages.number(token)? as i64);
        let page = self.vault.list_subjects(call, group, after, limit).await?;
        let mut names = GroupNames::default();
        let mut subjects = Vec::with_capacity(page.rows.len());
        for snapshot in page.rows.iter().filter(|s| states.has(&s.subject)) {
            subjects.push(self.wire_subject(call, snapshot, &mut names, false).await?);
        }
        Ok((subjects, pages.after(page.more, page.rows.last().map(|s| s.subject.uid.0 as u64))))
    }

    /// What closing or opening would find, without doing it.
    async fn subject_unchanged(
        &self,
        call: &Call,
        id: &crate::ids::SubjectId,
        wanted: Option<&str>,
    ) -> Result<Option<pb::Subject>, Status> {
        let snapshot = self.vault.get_subject(call, id).await?;
        if wanted.is_some_and(|wanted| wanted != etag(&snapshot)) {
            return Err(VaultError::EtagStale.into());
        }
        self.one_subject(call, &snapshot).await
    }
}

#[tonic::async_trait]
impl pb::subject_service_server::SubjectService for Api {
    async fn get_subject(&self, request: Request<pb::GetSubjectRequest>) -> Answer<pb::GetSubjectResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let message = request.into_inner();
        let context = words::context(message.context)?;
        let id = match words::key(message.key)? {
            Key::Subject(id) => id,
            unique => {
                let snapshot = self.vault.resolve(&call, &context, &unique).await?;
                call.tenant.open_id(snapshot.subject.uid, &snapshot.subject.sealed_id)?
            }
        };
        let snapshot = self.vault.get_subject(&call, &id).await?;
        Ok(Response::new(pb::GetSubjectResponse { subject: self.one_subject(&call, &snapshot).await? }))
    }

    async fn list_subjects(&self, request: Request<pb::ListSubjectsRequest>) -> Answer<pb::ListSubjectsResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let limit = convert::page_size(std::mem::take(&mut message.page_size))?;
        let token = std::mem::take(&mut message.page_token);
        let pages = Pages::new(&call, "ListSubjects", &message);
        let (subjects, next_page_token) =
            self.subjects_page(&call, &pages, &token, limit, None, &message.states).await?;
        Ok(Response::new(pb::ListSubjectsResponse { subjects, next_page_token }))
    }

    async fn find_subjects(&self, request: Request<pb::FindSubjectsRequest>) -> Answer<pb::FindSubjectsResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let limit = convert::page_size(std::mem::take(&mut message.page_size))?;
        let token = std::mem::take(&mut message.page_token);
        let pages = Pages::new(&call, "FindSubjects", &message);
        let after = SubjectUid(pages.number(&token)? as i64);
        let context = words::context(message.context)?;
        // Whom a search finds is not known when it is approved: their values take an approval of their own.
        convert::refuse(context.approval.is_some() && message.select.is_some(), "context.approval with select")?;
        let term = message.term.ok_or_else(|| bad_field("term", "is required"))?;
        let text = zeroize::Zeroizing::new(term.text);
        match pb::TermKind::try_from(term.kind) {
            Ok(pb::TermKind::Unspecified | pb::TermKind::Exact) => {}
            Ok(_) => return Err(Bad::not_supported("term.kind").into()),
            Err(_) => return Err(bad_field("term.kind", "is not a number of this enum")),
        }
        convert::opt_text("term.text", &text, 1_024)?.ok_or_else(|| bad_field("term.text", "is required"))?;
        let policy = call.tenant.policy()?;
        let field = words::field(policy, term.field_id, &term.field)?;
        let group = match convert::opt_subject_id("group", &message.group)? {
            Some(id) => Some(self.vault.group_no(&call, &id).await?),
            None => None,
        };
        let select = match message.select {
            Some(select) => Some(words::select(policy, Some(select), message.view, pb::Partial::Allowed as i32)?),
            None => None,
        };
        let found = self.vault.find_subjects(&call, &context, field, &text, after, limit).await?;
        let last = found.subjects.last().map(|s| s.subject.uid.0 as u64);
        let wanted: Vec<_> =
            found.subjects.iter().filter(|s| group.is_none_or(|group| s.subject.group == Some(group))).collect();
        let mut subjects = Vec::with_capacity(wanted.len());
        let mut ids = Vec::with_capacity(wanted.len());
        for snapshot in wanted {
            let id = call.tenant.open_id(snapshot.subject.uid, &snapshot.subject.sealed_id)?;
            subjects.push(pb::FoundSubject {
                subject: id.as_str().to_owned(),
                state: words::state_unless_active(snapshot.subject.state),
                ..Default::default()
            });
            ids.push(Key::Subject(id));
        }
        if let Some(select) = &select
            && !ids.is_empty()
        {
            let got = self.vault.get_batch(&call, &context, &ids, select).await?;
            for (subject, got) in subjects.iter_mut().zip(got) {
                subject.values = words::wire_got(&call, &context, got?, select.fields.is_empty()).values;
            }
        }
        let next_page_token = pages.after(found.more, last);
        Ok(Response::new(pb::FindSubjectsResponse { subjects, next_page_token }))
    }

    async fn close_subject(&self, request: Request<pb::CloseSubjectRequest>) -> Answer<pb::CloseSubjectResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "CloseSubject", &repeat_id, &message)?;
        let context = words::context(message.context)?;
        words::no_approval(&context)?;
        let id = convert::subject_id("subject", &message.subject)?;
        let etag = Some(message.etag.as_str()).filter(|etag| !etag.is_empty());
        let subject = match message.validate_only {
            true => self.subject_unchanged(&call, &id, etag).await?,
            false => {
                self.one_subject(&call, &*self.vault.close_subject(&call, &context, &id, etag, repeat).await?).await?
            }
        };
        Ok(Response::new(pb::CloseSubjectResponse { subject }))
    }

    async fn reopen_subject(&self, request: Request<pb::ReopenSubjectRequest>) -> Answer<pb::ReopenSubjectResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "ReopenSubject", &repeat_id, &message)?;
        let context = words::context(message.context)?;
        words::no_approval(&context)?;
        let id = convert::subject_id("subject", &message.subject)?;
        let etag = Some(message.etag.as_str()).filter(|etag| !etag.is_empty());
        let subject = match message.validate_only {
            true => self.subject_unchanged(&call, &id, etag).await?,
            false => {
                self.one_subject(&call, &*self.vault.reopen_subject(&call, &context, &id, etag, repeat).await?).await?
            }
        };
        Ok(Response::new(pb::ReopenSubjectResponse { subject }))
    }

    async fn touch_subject(&self, request: Request<pb::TouchSubjectRequest>) -> Answer<pb::TouchSubjectResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let id = convert::subject_id("subject", &request.get_ref().subject)?;
        let active = self.vault.touch_subject(&call, &id).await?;
        Ok(Response::new(pb::TouchSubjectResponse { active_time: Some(wire_time(active)) }))
    }

    async fn create_group(&self, request: Request<pb::CreateGroupRequest>) -> Answer<pb::CreateGroupResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "CreateGroup", &repeat_id, &message)?;
        let group = convert::required("group", &message.group)?;
        refuse_unkept(group)?;
        let made_here = group.state != 0 || group.create_time.is_some() || !group.etag.is_empty();
        if made_here {
            return Err(bad_field("group", "state, times and etag are the vault's to set"));
        }
        let id = convert::subject_id("group.group", &group.group)?;
        let (plan, retention) = (plan_name(&call, group.plan_id)?, retention(&group.retention)?);
        if message.validate_only {
            self.vault.check_new_group(&call, &id, plan.as_ref(), &retention).await?;
            let group = pb::Group { state: pb::GroupState::Active as i32, ..group.clone() };
            return Ok(Response::new(pb::CreateGroupResponse { group: Some(group) }));
        }
        let no = self.vault.create_group(&call, &id, plan, retention, repeat).await?;
        let group = self.vault.group_by_no(&call, no).await?;
        Ok(Response::new(pb::CreateGroupResponse { group: Some(wire_group(&call, group)?) }))
    }

    async fn get_group(&self, request: Request<pb::GetGroupRequest>) -> Answer<pb::GetGroupResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let id = convert::subject_id("group", &request.get_ref().group)?;
        call.permit(Verb::Group)?;
        let no = self.vault.group_no(&call, &id).await?;
        let group = self.vault.group_by_no(&call, no).await?;
        self.vault.note_listing(&call, Action::GetGroup).await?;
        Ok(Response::new(pb::GetGroupResponse { group: Some(wire_group(&call, group)?) }))
    }

    async fn list_groups(&self, request: Request<pb::ListGroupsRequest>) -> Answer<pb::ListGroupsResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let limit = convert::page_size(std::mem::take(&mut message.page_size))?;
        let token = std::mem::take(&mut message.page_token);
        let pages = Pages::new(&call, "ListGroups", &message);
        let states: Vec<pb::GroupState> = convert::choices("states", &message.states)?;
        let after = GroupNo(pages.number(&token)? as u32);
        let page = self.vault.list_groups(&call, after, limit).await?;
        let last = page.rows.last().map(|group| u64::from(group.no.0));
        let wanted = |group: &Group| match states.is_empty() {
            true => group.state != GroupState::Erased,
            false => states.contains(&group_state(group.state)),
        };
        let groups = page.rows.into_iter().filter(wanted).map(|g| wire_group(&call, g)).collect::<Result<_, _>>()?;
        self.vault.note_listing(&call, Action::ListGroups).await?;
        let next_page_token = pages.after(page.more, last);
        Ok(Response::new(pb::ListGroupsResponse { groups, next_page_token }))
    }

    async fn update_group(&self, request: Request<pb::UpdateGroupRequest>) -> Answer<pb::UpdateGroupResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "UpdateGroup", &repeat_id, &message)?;
        let group = convert::required("group", &message.group)?;
        let mask = convert::required("update_mask", &message.update_mask)?;
        let mut set = GroupChange::default();
        for path in &mask.paths {
            match path.as_str() {
                "plan_id" => set.plan = Some(plan_name(&call, group.plan_id)?),
                "retention" => set.retention = Some(retention(&group.retention)?),
                "state" => {
                    set.state = Some(match pb::GroupState::try_from(group.state) {
                        Ok(pb::GroupState::Active) => GroupState::Active,
                        Ok(pb::GroupState::Closed) => GroupState::Closed,
                        _ => return Err(bad_field("group.state", "can be set to ACTIVE or CLOSED")),
                    })
                }
                "owner" => return Err(Bad::not_supported("group.owner").into()),
                "region" => return Err(Bad::not_supported("group.region").into()),
                "time_zone" => return Err(Bad::not_supported("group.time_zone").into()),
                _ => return Err(bad_field("update_mask", "names what cannot be changed")),
            }
        }
        if mask.paths.is_empty() {
            return Err(bad_field("update_mask", "must name what to change"));
        }
        let etag = words::revision(&group.etag)?;
        let id = convert::subject_id("group.group", &group.group)?;
        let no = self.vault.group_no(&call, &id).await?;
        let group = self.vault.update_group(&call, no, etag, set, repeat, message.validate_only).await?;
        Ok(Response::new(pb::UpdateGroupResponse { group: Some(wire_group(&call, group)?) }))
    }

    async fn list_group_subjects(
        &self,
        request: Request<pb::ListGroupSubjectsRequest>,
    ) -> Answer<pb::ListGroupSubjectsResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let limit = convert::page_size(std::mem::take(&mut message.page_size))?;
        let token = std::mem::take(&mut message.page_token);
        let pages = Pages::new(&call, "ListGroupSubjects", &message);
        let id = convert::subject_id("group", &message.group)?;
        call.permit(Verb::Subject)?;
        let group = Some(self.vault.group_no(&call, &id).await?);
        let (subjects, next_page_token) =
            self.subjects_page(&call, &pages, &token, limit, group, &message.states).await?;
        Ok(Response::new(pb::ListGroupSubjectsResponse { subjects, next_page_token }))
    }
}
