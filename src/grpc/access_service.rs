//! Who may call the vault: access keys, roles, approvals, and questions about them.

use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use crate::access::{FieldSet, PurposeSet, VerbSet, View};
use crate::auth::{Approval, ApprovalState, KeyId, Kind, Principal, touches_values};
use crate::clock::{DAY_MS, Timestamp};
use crate::grpc::call::PeerIdentity;
use crate::grpc::convert::{self, Bad, opt_time, wire_time};
use crate::grpc::identity::{Api, AuthError, Authenticator, Scope};
use crate::grpc::page::Pages;
use crate::grpc::pb;
use crate::grpc::reason::Reason;
use crate::grpc::status::not_found;
use crate::grpc::vault_status::limit_exceeded;
use crate::grpc::words;
use crate::ids::*;
use crate::vault::access_keys::{AccessKeyState, AccessKeyView, NewAccessKey, Rotation};
use crate::vault::approval::ApprovalAsk;
use crate::vault::authenticate::AuthRefusal;
use crate::vault::roles::{MAX_GRANTS, NewGrant, NewRole, Role};
use crate::vault::test_access::{AccessDecision, TestAsk};
use crate::vault::{Call, DenialKind, Vault, VaultError};

type Answer<T> = Result<Response<T>, Status>;

/// Most numbers of one list in a grant.
const MAX_NUMBERS: usize = 1_024;
/// Most subjects of one approval: who decides reads the list.
const MAX_APPROVED: usize = 100;
/// How long an approval lasts when the request does not say.
const APPROVAL_MS: i64 = DAY_MS;

impl From<AuthRefusal> for AuthError {
    fn from(refusal: AuthRefusal) -> Self {
        match refusal {
            AuthRefusal::Refused => AuthError::Refused,
            AuthRefusal::Certificate => AuthError::Certificate,
            AuthRefusal::Busy { retry_ms } => AuthError::Busy { retry: Duration::from_millis(retry_ms.into()) },
            AuthRefusal::Failed(error) => AuthError::Failed(error),
        }
    }
}

#[tonic::async_trait]
impl Authenticator for Vault {
    fn known(&self, key: &str, peer: &PeerIdentity, now: Timestamp) -> Option<Result<Arc<Principal>, AuthError>> {
        let known = self.authenticate_known(key, peer.client_cert_sha256.as_ref(), now)?;
        Some(known.map_err(AuthError::from))
    }

    async fn authenticate(&self, key: &str, peer: &PeerIdentity, now: Timestamp) -> Result<Arc<Principal>, AuthError> {
        Ok(Vault::authenticate(self, key, peer.client_cert_sha256.as_ref(), now).await?)
    }
}

// ---- access keys

/// Something that is no id of a key names no key.
fn key_id(text: &str) -> Result<KeyId, Status> {
    KeyId::parse(text).ok_or_else(not_found)
}

fn certificate(bytes: &[u8]) -> Result<Option<[u8; 32]>, Status> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let sha256 = <[u8; 32]>::try_from(bytes).map_err(|_| Bad::rule("certificate_sha256", "must have 32 bytes"))?;
    Ok(Some(sha256))
}

fn key_state(state: pb::AccessKeyState) -> Option<AccessKeyState> {
    match state {
        pb::AccessKeyState::Unspecified => None,
        pb::AccessKeyState::Active => Some(AccessKeyState::Active),
        pb::AccessKeyState::Revoked => Some(AccessKeyState::Revoked),
        pb::AccessKeyState::Expired => Some(AccessKeyState::Expired),
        pb::AccessKeyState::Unconfirmed => Some(AccessKeyState::Unconfirmed),
    }
}

fn wire_key(key: AccessKeyView) -> pb::AccessKey {
    let state = match key.state {
        AccessKeyState::Active => pb::AccessKeyState::Active,
        AccessKeyState::Revoked => pb::AccessKeyState::Revoked,
        AccessKeyState::Expired => pb::AccessKeyState::Expired,
        AccessKeyState::Unconfirmed => pb::AccessKeyState::Unconfirmed,
    };
    pb::AccessKey {
        access_key: key.id.to_string(),
        name: key.name.to_string(),
        role_ids: key.roles.iter().map(|no| no.0).collect(),
        state: state as i32,
        create_time: Some(wire_time(key.created)),
        expire_time: key.expires.map(wire_time),
        revoke_time: key.revoked.map(wire_time),
        certificate_sha256: key.certificate.map_or_else(Default::default, |sha256| sha256.to_vec().into()),
        operator: key.tenant == TenantNo::VAULT,
        issued_by: key.issued_by.map_or(String::new(), |id| id.to_string()),
        actor_id: key.id.0,
        subjects_per_hour: key.subjects_per_hour.unwrap_or(0),
        use_time: key.used_day.map(|day| wire_time(Timestamp(day * DAY_MS))),
        pepper_version: key.pepper.0.into(),
    }
}

// ---- roles

fn short(path: &'static str, len: usize, max: usize) -> Result<(), Status> {
    if len > max { Err(limit_exceeded(path, max)) } else { Ok(()) }
}

fn purpose_nos(path: &str, numbers: &[u32]) -> Result<Vec<PurposeNo>, Bad> {
    let one = |no: &u32| convert::purpose_no(path, *no)?.ok_or_else(|| Bad::rule(path, "must not be 0"));
    numbers.iter().map(one).collect()
}

fn new_grant(wire: pb::Grant) -> Result<NewGrant, Status> {
    convert::refuse(!wire.recipient_ids.is_empty(), "role.grants.recipient_ids")?;
    short("role.grants.class_ids", wire.class_ids.len(), MAX_NUMBERS)?;
    short("role.grants.field_ids", wire.field_ids.len(), MAX_NUMBERS)?;
    short("role.grants.purpose_ids", wire.purpose_ids.len(), MAX_NUMBERS)?;
    short("role.grants.groups", wire.groups.len(), MAX_NUMBERS)?;
    let fields = wire.field_ids.iter().map(|no| convert::field_no("role.grants.field_ids", *no));
    let groups = wire.groups.iter().map(|id| convert::subject_id("role.grants.groups", id));
    Ok(NewGrant {
        classes: convert::class_nos("role.grants.class_ids", &wire.class_ids)?,
        fields: fields.collect::<Result<_, _>>()?,
        purposes: purpose_nos("role.grants.purpose_ids", &wire.purpose_ids)?,
        verbs: convert::verbs("role.grants.verbs", &wire.verbs)?,
        max_view: convert::view("role.grants.max_view", wire.max_view)?.unwrap_or(View::Plain),
        groups: if wire.groups.is_empty() { None } else { Some(groups.collect::<Result<_, _>>()?) },
        subjects_per_hour: wire.subjects_per_hour,
    })
}

fn new_role(name: &str, grants: Vec<pb::Grant>) -> Result<NewRole, Status> {
    short("role.grants", grants.len(), MAX_GRANTS)?;
    Ok(NewRole {
        name: convert::name("role.name", name)?,
        grants: grants.into_iter().map(new_grant).collect::<Result<_, _>>()?,
    })
}

fn wire_role(role: Role) -> pb::Role {
    let grant = |grant: NewGrant| pb::Grant {
        class_ids: grant.classes.iter().map(|no| no.0.into()).collect(),
        field_ids: grant.fields.iter().map(|no| no.0.into()).collect(),
        purpose_ids: grant.purposes.iter().map(|no| no.0.into()).collect(),
        recipient_ids: Vec::new(),
        max_view: convert::wire_view(grant.max_view) as i32,
        verbs: convert::wire_verbs(grant.verbs),
        groups: grant.groups.unwrap_or_default().iter().map(|id| id.as_str().to_owned()).collect(),
        subjects_per_hour: grant.subjects_per_hour,
    };
    pb::Role {
        role_id: role.no.0,
        name: role.name.to_string(),
        grants: role.grants.into_iter().map(grant).collect(),
        from_policy: role.from_policy,
        etag: if role.fixed { String::new() } else { format!("{:x}", role.revision.0) },
    }
}

fn role_etag(etag: &str) -> Result<Option<Revision>, Status> {
    match etag {
        "" => Ok(None),
        // What was never handed out is of no present state.
        text => Ok(Some(Revision(u64::from_str_radix(text, 16).map_err(|_| VaultError::EtagStale)?))),
    }
}

// ---- decisions

fn reason_of_kind(kind: DenialKind) -> Reason {
    match kind {
        DenialKind::NotPermitted => Reason::NotPermitted,
        DenialKind::PurposeNotGranted => Reason::PurposeNotGranted,
        DenialKind::PurposeNotAllowed => Reason::PurposeNotAllowed,
        DenialKind::ViewNotGranted => Reason::ViewNotGranted,
        DenialKind::ApprovalNeeded => Reason::ApprovalNeeded,
        DenialKind::ConsentMissing => Reason::ConsentMissing,
        DenialKind::RecipientUnlisted => Reason::RecipientUnlisted,
        DenialKind::DpaExpired => Reason::DpaExpired,
        DenialKind::TestTenantOnly => Reason::TestTenantOnly,
    }
}

fn wire_decision(decision: AccessDecision) -> pb::AccessDecision {
    pb::AccessDecision {
        field_id: decision.field.map_or(0, |no| no.0.into()),
        allowed: decision.denied.is_none(),
        view: decision.view.map_or(0, |view| convert::wire_view(view) as i32),
        reason: decision.denied.map_or(String::new(), |kind| reason_of_kind(kind).as_str().to_owned()),
        rule: decision.rule,
        policy_line: decision.line,
    }
}

// ---- approvals

fn approval_state(state: pb::ApprovalState) -> Option<ApprovalState> {
    match state {
        pb::ApprovalState::Unspecified => None,
        pb::ApprovalState::Pending => Some(ApprovalState::Requested),
        pb::ApprovalState::Approved => Some(ApprovalState::Granted),
        pb::ApprovalState::Denied => Some(ApprovalState::Denied),
        pb::ApprovalState::Used => Some(ApprovalState::Used),
        pb::ApprovalState::Expired => Some(ApprovalState::Expired),
    }
}

fn wire_approval_state(state: ApprovalState) -> pb::ApprovalState {
    match state {
        ApprovalState::Requested => pb::ApprovalState::Pending,
        ApprovalState::Granted => pb::ApprovalState::Approved,
        ApprovalState::Denied => pb::ApprovalState::Denied,
        ApprovalState::Used => pb::ApprovalState::Used,
        ApprovalState::Expired => pb::ApprovalState::Expired,
    }
}

/// What an approval should allow: verbs, and where they touch values, fields and purposes.
fn approval_grant(call: &Call, wire: &pb::Grant) -> Result<(VerbSet, FieldSet, PurposeSet, View), Status> {
    convert::refuse(!wire.recipient_ids.is_empty(), "grant.recipient_ids")?;
    convert::refuse(!wire.groups.is_empty(), "grant.groups")?;
    convert::refuse(wire.subjects_per_hour != 0, "grant.subjects_per_hour")?;
    short("grant.field_ids", wire.field_ids.len(), MAX_NUMBERS)?;
    let verbs = convert::verbs("grant.verbs", &wire.verbs)?;
    let classes = convert::class_nos("grant.class_ids", &wire.class_ids)?;
    let fields = wire.field_ids.iter().map(|no| convert::field_no("grant.field_ids", *no));
    let fields = fields.collect::<Result<Vec<_>, _>>()?;
    let fields = match fields.is_empty() && classes.is_empty() {
        true => FieldSet::EMPTY,
        false => call.tenant.policy()?.field_set(classes, fields),
    };
    let purposes: PurposeSet = purpose_nos("grant.purpose_ids", &wire.purpose_ids)?.iter().map(|no| no.0).collect();
    if verbs.iter().any(touches_values) {
        if fields.is_empty() {
            return Err(Bad::rule("grant.field_ids", "fields must be named").into());
        }
        if purposes.is_empty() {
            return Err(Bad::rule("grant.purpose_ids", "purposes must be named").into());
        }
    }
    Ok((verbs, fields, purposes, convert::view("grant.max_view", wire.max_view)?.unwrap_or(View::Plain)))
}

impl Api {
    async fn wire_approval(&self, call: &Call, approval: Approval) -> Result<pb::Approval, Status> {
        // Who was erased meanwhile has no id any more.
        let mut subjects = Vec::with_capacity(approval.subjects.len());
        for uid in &approval.subjects {
            subjects.extend(self.vault.id_of(call, *uid).await?.map(|id| id.as_str().to_owned()));
        }
        let subject = match approval.subjects.len() {
            1 => subjects.pop(),
            _ => None,
        };
        let grant = pb::Grant {
            field_ids: approval.fields.iter().map(u32::from).collect(),
            purpose_ids: approval.purposes.iter().map(u32::from).collect(),
            max_view: convert::wire_view(approval.max_view) as i32,
            verbs: convert::wire_verbs(approval.verbs),
            ..Default::default()
        };
        let name = |actor: ActorId| KeyId(actor.0).to_string();
        Ok(pb::Approval {
            approval: approval.id.to_string(),
            subject: subject.unwrap_or_default(),
            subjects,
            grant: Some(grant),
            reference: self.vault.approval_reference(call, &approval)?.to_string(),
            requester: name(approval.requester),
            approver: approval.decision.map_or(String::new(), |(by, ..)| name(by)),
            expire_time: Some(wire_time(approval.expires_at)),
            state: wire_approval_state(approval.state(call.now)) as i32,
            create_time: Some(wire_time(approval.requested_at)),
            decide_time: approval.decision.map(|(_, at, _)| wire_time(at)),
        })
    }

    /// Says yes or no; operators decide about approvals wherever they were asked for.
    async fn decide<T: prost::Message>(
        &self,
        mut call: Call,
        method: &str,
        name: &str,
        repeat_id: &str,
        message: &T,
        yes: bool,
    ) -> Result<pb::Approval, Status> {
        let id = convert::object_id("approval", name)?;
        if call.principal.kind == Kind::Operator
            && let Some(tenant) = self.vault.tenant_of_approval(id).await?
        {
            call = self.vault.call(call.principal.clone(), tenant);
        }
        let repeat = words::request(&call, method, repeat_id, message)?;
        let decided = self.vault.decide_approval(&call, id, yes, repeat).await?;
        self.wire_approval(&call, decided).await
    }
}

#[tonic::async_trait]
impl pb::access_service_server::AccessService for Api {
    async fn issue_access_key(
        &self,
        request: Request<pb::IssueAccessKeyRequest>,
    ) -> Answer<pb::IssueAccessKeyResponse> {
        let message = request.get_ref();
        // Operators' keys belong to the vault itself, and only operators reach it.
        let scope = match (message.operator, message.tenant.is_empty()) {
            (true, true) => Scope::Vault,
            (true, false) => return Err(Bad::rule("tenant", "must be empty for operator keys").into()),
            (false, _) => Scope::Named(&message.tenant),
        };
        let call = self.enter(&request, scope).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "IssueAccessKey", &repeat_id, &message)?;
        let mut roles: Vec<RoleNo> = message.role_ids.iter().map(|no| RoleNo(*no)).collect();
        short("role_ids", roles.len(), MAX_NUMBERS)?;
        roles.sort_unstable();
        roles.dedup();
        let new = NewAccessKey {
            name: convert::name("name", &message.name)?,
            roles,
            expires: opt_time("expire_time", &message.expire_time)?,
            certificate: certificate(&message.certificate_sha256)?,
            subjects_per_hour: (message.subjects_per_hour != 0).then_some(message.subjects_per_hour),
        };
        let issued = self.vault.issue_access_key(&call, new, repeat, message.validate_only).await?;
        Ok(Response::new(match issued {
            Some(issued) => pb::IssueAccessKeyResponse {
                access_key: Some(wire_key(issued.key)),
                text: issued.text.map_or(String::new(), |mut text| std::mem::take(&mut *text)),
            },
            None => pb::IssueAccessKeyResponse::default(),
        }))
    }

    async fn rotate_access_key(
        &self,
        request: Request<pb::RotateAccessKeyRequest>,
    ) -> Answer<pb::RotateAccessKeyResponse> {
        let call = self.enter(&request, Scope::Own).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "RotateAccessKey", &repeat_id, &message)?;
        let how = Rotation {
            overlap_ms: i64::from(message.overlap_seconds) * 1_000,
            expires: opt_time("expire_time", &message.expire_time)?,
            certificate: certificate(&message.certificate_sha256)?,
        };
        let id = key_id(&message.access_key)?;
        let (issued, former) = self.vault.rotate_access_key(&call, id, how, repeat).await?;
        Ok(Response::new(pb::RotateAccessKeyResponse {
            access_key: Some(wire_key(issued.key)),
            text: issued.text.map_or(String::new(), |mut text| std::mem::take(&mut *text)),
            former: Some(wire_key(former)),
        }))
    }

    async fn revoke_access_key(
        &self,
        request: Request<pb::RevokeAccessKeyRequest>,
    ) -> Answer<pb::RevokeAccessKeyResponse> {
        let call = self.enter(&request, Scope::Own).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "RevokeAccessKey", &repeat_id, &message)?;
        let revoked = self.vault.revoke_access_key(&call, key_id(&message.access_key)?, repeat).await?;
        Ok(Response::new(pb::RevokeAccessKeyResponse { access_key: Some(wire_key(revoked)) }))
    }

    async fn release_access_key(
        &self,
        request: Request<pb::ReleaseAccessKeyRequest>,
    ) -> Answer<pb::ReleaseAccessKeyResponse> {
        let call = self.enter(&request, Scope::Own).await?;
        let released = self.vault.release_access_key(&call, key_id(&request.get_ref().access_key)?).await?;
        Ok(Response::new(pb::ReleaseAccessKeyResponse { access_key: Some(wire_key(released)) }))
    }

    async fn list_access_keys(
        &self,
        request: Request<pb::ListAccessKeysRequest>,
    ) -> Answer<pb::ListAccessKeysResponse> {
        let call = self.enter(&request, Scope::NamedOrVault(&request.get_ref().tenant)).await?;
        let mut message = request.into_inner();
        let (size, token) = (convert::page_size(message.page_size)?, std::mem::take(&mut message.page_token));
        message.page_size = 0;
        let pages = Pages::new(&call, "ListAccessKeys", &message);
        let states: Vec<pb::AccessKeyState> = convert::choices("states", &message.states)?;
        let states: Vec<AccessKeyState> = states.into_iter().filter_map(key_state).collect();
        let page = self.vault.list_access_keys(&call, &states, KeyId(pages.number(&token)?), size)?;
        let next_page_token = pages.after(page.more, page.rows.last().map(|key| key.id.0));
        let access_keys = page.rows.into_iter().map(wire_key).collect();
        Ok(Response::new(pb::ListAccessKeysResponse { access_keys, next_page_token }))
    }

    async fn who_am_i(&self, request: Request<pb::WhoAmIRequest>) -> Answer<pb::WhoAmIResponse> {
        let call = self.enter(&request, Scope::Own).await?;
        let me = self.vault.who_am_i(&call).await?;
        let operator = call.tenant.no == TenantNo::VAULT;
        Ok(Response::new(pb::WhoAmIResponse {
            tenant: if operator { String::new() } else { call.tenant.name.to_string() },
            access_key: me.key.map(wire_key),
            roles: me.roles.into_iter().map(wire_role).collect(),
            policy_version: call.tenant.settings.policy.map_or(0, |version| version.0),
            tenant_time: Some(wire_time(call.now)),
            server_version: env!("CARGO_PKG_VERSION").into(),
            test: call.tenant.settings.kind == crate::vault::tenant::TenantKind::Test,
        }))
    }

    async fn test_access(&self, request: Request<pb::TestAccessRequest>) -> Answer<pb::TestAccessResponse> {
        let call = self.enter(&request, Scope::Own).await?;
        let message = request.into_inner();
        let context = words::context(message.context)?;
        let mut ask = TestAsk {
            key: if message.access_key.is_empty() { None } else { Some(key_id(&message.access_key)?) },
            verb: convert::verb("verb", message.verb)?,
            fields: Vec::new(),
            classes: Vec::new(),
            view: convert::view("view", message.view)?,
            group: convert::opt_subject_id("group", &message.group)?,
            subject: convert::opt_subject_id("subject", &message.subject)?,
        };
        if let Some(select) = message.select.filter(|select| *select != pb::Selector::default()) {
            let select = words::select(call.tenant.policy()?, Some(select), message.view, 0)?;
            (ask.fields, ask.classes) = (select.fields, select.classes);
        }
        let decisions = self.vault.test_access(&call, &context, &ask).await?;
        Ok(Response::new(pb::TestAccessResponse {
            allowed: decisions.iter().all(|decision| decision.denied.is_none()),
            decisions: decisions.into_iter().map(wire_decision).collect(),
            policy_version: call.tenant.settings.policy.map_or(0, |version| version.0),
        }))
    }

    async fn create_role(&self, request: Request<pb::CreateRoleRequest>) -> Answer<pb::CreateRoleResponse> {
        let call = self.enter(&request, Scope::Named(&request.get_ref().tenant)).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "CreateRole", &repeat_id, &message)?;
        let role = message.role.ok_or_else(|| Bad::rule("role", "is required"))?;
        if role.role_id != 0 || role.from_policy || !role.etag.is_empty() {
            return Err(Bad::rule("role.role_id", "must be left out: the vault gives it").into());
        }
        let new = new_role(&role.name, role.grants)?;
        let made = self.vault.create_role(&call, new, repeat, message.validate_only).await?;
        Ok(Response::new(pb::CreateRoleResponse { role: made.map(wire_role) }))
    }

    async fn update_role(&self, request: Request<pb::UpdateRoleRequest>) -> Answer<pb::UpdateRoleResponse> {
        let call = self.enter(&request, Scope::Named(&request.get_ref().tenant)).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "UpdateRole", &repeat_id, &message)?;
        let role = message.role.ok_or_else(|| Bad::rule("role", "is required"))?;
        let etag = role_etag(&role.etag)?;
        let new = new_role(&role.name, role.grants)?;
        let no = RoleNo(role.role_id);
        let role = self.vault.update_role(&call, no, etag, new, repeat, message.validate_only).await?;
        Ok(Response::new(pb::UpdateRoleResponse { role: Some(wire_role(role)) }))
    }

    async fn list_roles(&self, request: Request<pb::ListRolesRequest>) -> Answer<pb::ListRolesResponse> {
        let call = self.enter(&request, Scope::NamedOrVault(&request.get_ref().tenant)).await?;
        let mut message = request.into_inner();
        let (size, token) = (convert::page_size(message.page_size)?, std::mem::take(&mut message.page_token));
        message.page_size = 0;
        let pages = Pages::new(&call, "ListRoles", &message);
        let after = RoleNo(u32::try_from(pages.number(&token)?).unwrap_or(u32::MAX));
        let page = self.vault.list_roles(&call, after, size).await?;
        let next_page_token = pages.after(page.more, page.rows.last().map(|role| role.no.0.into()));
        let roles = page.rows.into_iter().map(wire_role).collect();
        Ok(Response::new(pb::ListRolesResponse { roles, next_page_token }))
    }

    async fn request_approval(
        &self,
        request: Request<pb::RequestApprovalRequest>,
    ) -> Answer<pb::RequestApprovalResponse> {
        let call = self.enter(&request, Scope::NamedOrVault(&request.get_ref().tenant)).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "RequestApproval", &repeat_id, &message)?;
        let reference = Zeroizing::new(std::mem::take(&mut message.reference));
        if convert::opt_text("reference", &reference, 128)?.is_none() {
            return Err(Bad::rule("reference", "is required").into());
        }
        let grant = message.grant.as_ref().ok_or_else(|| Bad::rule("grant", "is required"))?;
        let (verbs, fields, purposes, max_view) = approval_grant(&call, grant)?;
        let mut subjects: Vec<SubjectId> = convert::opt_subject_id("subject", &message.subject)?.into_iter().collect();
        if !subjects.is_empty() && !message.subjects.is_empty() {
            return Err(Bad::rule("subjects", "give one subject or a list, not both").into());
        }
        short("subjects", message.subjects.len(), MAX_APPROVED)?;
        for id in &message.subjects {
            subjects.push(convert::subject_id("subjects", id)?);
        }
        let ask = ApprovalAsk {
            subjects,
            verbs,
            fields,
            purposes,
            max_view,
            reference,
            expires: opt_time("expire_time", &message.expire_time)?.unwrap_or(call.now.plus_ms(APPROVAL_MS)),
        };
        let asked = self.vault.request_approval(&call, ask, repeat, message.validate_only).await?;
        let approval = match asked {
            Some(asked) => Some(self.wire_approval(&call, asked).await?),
            None => None,
        };
        Ok(Response::new(pb::RequestApprovalResponse { approval }))
    }

    async fn approve(&self, request: Request<pb::ApproveRequest>) -> Answer<pb::ApproveResponse> {
        let call = self.enter(&request, Scope::Own).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let approval = self.decide(call, "Approve", &message.approval, &repeat_id, &message, true).await?;
        Ok(Response::new(pb::ApproveResponse { approval: Some(approval) }))
    }

    async fn deny(&self, request: Request<pb::DenyRequest>) -> Answer<pb::DenyResponse> {
        let call = self.enter(&request, Scope::Own).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let approval = self.decide(call, "Deny", &message.approval, &repeat_id, &message, false).await?;
        Ok(Response::new(pb::DenyResponse { approval: Some(approval) }))
    }

    async fn list_approvals(&self, request: Request<pb::ListApprovalsRequest>) -> Answer<pb::ListApprovalsResponse> {
        let call = self.enter(&request, Scope::NamedOrVault(&request.get_ref().tenant)).await?;
        let mut message = request.into_inner();
        let (size, token) = (convert::page_size(message.page_size)?, std::mem::take(&mut message.page_token));
        message.page_size = 0;
        let pages = Pages::new(&call, "ListApprovals", &message);
        let states: Vec<pb::ApprovalState> = convert::choices("states", &message.states)?;
        let states: Vec<ApprovalState> = states.into_iter().filter_map(approval_state).collect();
        let after = pages.position::<24>(&token)?.map(|bytes| {
            let (at, id) = bytes.split_at(8);
            let at = i64::from_be_bytes(at.try_into().expect("split at 8"));
            (Timestamp(at), ObjectId(uuid::Uuid::from_bytes(id.try_into().expect("24 less 8"))))
        });
        let page = self.vault.list_approvals(&call, &states, after, size).await?;
        let next_page_token = match page.rows.last() {
            Some(last) if page.more => {
                pages.token(&[&last.requested_at.0.to_be_bytes()[..], last.id.0.as_bytes()].concat())
            }
            _ => String::new(),
        };
        let mut approvals = Vec::with_capacity(page.rows.len());
        for approval in page.rows {
            approvals.push(self.wire_approval(&call, approval).await?);
        }
        Ok(Response::new(pb::ListApprovalsResponse { approvals, next_page_token }))
    }
}
