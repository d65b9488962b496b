//! T21: two tenants, every RPC of the API, every kind of credential, own and foreign and bogus names. The list of RPCs
//! comes from the descriptor set: a new one without a row fails.

use std::collections::BTreeSet;

use bytes::{Buf, BufMut};
use pii_vault::clock::DAY_MS;
use pii_vault::grpc::pb;
use pii_vault::ids::TenantNo;
use prost::Message;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::harness::JINA;
use crate::net::*;

/// Messages as bytes, so that one client calls every method.
#[derive(Default, Clone)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Raw;
    type Decoder = Raw;
    fn encoder(&mut self) -> Raw {
        Raw
    }
    fn decoder(&mut self) -> Raw {
        Raw
    }
}
impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;
    fn encode(&mut self, item: Vec<u8>, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        dst.put_slice(&item);
        Ok(())
    }
}
impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;
    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut out = vec![0; src.remaining()];
        src.copy_to_slice(&mut out);
        Ok(Some(out))
    }
}

/// The first message of a method's answer; empty when there is none.
pub async fn call(channel: &Channel, key: Option<&str>, method: &str, body: Vec<u8>) -> Result<Vec<u8>, Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.expect("a connection");
    let mut request = tonic::Request::new(body);
    if let Some(key) = key {
        request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    }
    let path = format!("/{method}").parse().unwrap();
    let mut stream = client.server_streaming(request, path, Raw).await?.into_inner();
    Ok(stream.message().await?.unwrap_or_default())
}

/// An answer as it can be compared with another one.
fn comparable(answer: &Result<Vec<u8>, Status>) -> Result<Vec<u8>, (Code, String, Vec<u8>)> {
    match answer {
        Ok(bytes) => Ok(bytes.clone()),
        Err(status) => Err((status.code(), status.message().to_owned(), status.details().to_vec())),
    }
}

/// Names of things in one tenant.
#[derive(Clone)]
struct Names {
    tenant: String,
    /// Subjects `PREFIX-0` to `PREFIX-9`, with values.
    prefix: String,
    group: String,
    empty_group: String,
    erasure: String,
    scheduled: String,
    scheduled_too: String,
    hold: String,
    approval: String,
    approval_too: String,
    access_key: String,
    role: u32,
    item: String,
}

impl Names {
    fn subject(&self, i: usize) -> String {
        format!("{}-{i}", self.prefix)
    }
    fn key(&self, i: usize) -> Option<pb::SubjectKey> {
        by_id(&self.subject(i))
    }

    fn bogus() -> Names {
        let uuid = || "00000000-0000-4000-8000-000000000000".to_string();
        Names {
            tenant: "nosuch".into(),
            prefix: "nobody".into(),
            group: "nogroup".into(),
            empty_group: "nogroup2".into(),
            erasure: uuid(),
            scheduled: uuid(),
            scheduled_too: uuid(),
            hold: uuid(),
            approval: uuid(),
            approval_too: uuid(),
            access_key: "1".into(),
            role: 4_000_000,
            item: "0000000000000001".into(),
        }
    }
}

/// What a call with a tenant's own key and own names answers.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Own {
    Fine,
    Refused(Code),
}

/// What the request is about.
#[derive(Debug, Clone, Copy, PartialEq)]
enum About {
    /// It names something: a foreign name and one that nobody has answer the same, and no success shows anything.
    Names,
    /// It names nothing, or makes something in the caller's tenant.
    Nothing,
}

/// What an operator's key may.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Operator {
    Denied,
    Any,
}

struct Row {
    method: &'static str,
    body: fn(&Names) -> Vec<u8>,
    about: About,
    operator: Operator,
    own: Own,
}

/// A row: service, method, request, and what differs from the usual.
macro_rules! rows {
    ($($service:ident / $method:ident ($names:ident) $request:expr, $about:ident, $operator:ident, $own:expr;)*) => {
        vec![$(Row {
            method: concat!("pii.vault.v1.", stringify!($service), "/", stringify!($method)),
            body: |$names: &Names| { let _ = $names; $request.encode_to_vec() },
            about: About::$about,
            operator: Operator::$operator,
            own: $own,
        },)*]
    };
}

fn some<T: Default>(set: impl FnOnce(&mut T)) -> T {
    let mut message = T::default();
    set(&mut message);
    message
}

fn name_field() -> Option<pb::Selector> {
    Some(pb::Selector { field_ids: vec![NAME], ..Default::default() })
}

fn grant() -> pb::Grant {
    pb::Grant {
        field_ids: vec![NAME],
        purpose_ids: vec![SERVICE],
        verbs: vec![pb::Verb::Read as i32],
        ..Default::default()
    }
}

fn later() -> Option<prost_types::Timestamp> {
    let seconds = (crate::harness::START.0 + 20 * DAY_MS) / 1_000;
    Some(prost_types::Timestamp { seconds, nanos: 0 })
}

/// In the order in which the own calls are made: what destroys comes late.
#[rustfmt::skip]
fn rows() -> Vec<Row> {
    use Own::*;
    const NO: Own = Refused(Code::PermissionDenied);
    const BCRYPT: &str = "$2b$04$abcdefghijklmnopqrstuu7EJV7kdjBBQxyb0HjTh9KS7.Lah/6CG";
    rows! {
        RecordService/PutFields(n) some::<pb::PutFieldsRequest>(|m| { m.subject = n.subject(0); m.values = vec![text_value(NAME, "New")]; m.context = for_purpose(SERVICE); m.mode = pb::WriteMode::Update as i32; }), Names, Denied, Fine;
        RecordService/GetFields(n) some::<pb::GetFieldsRequest>(|m| { m.key = n.key(0); m.context = for_purpose(SERVICE); }), Names, Denied, Fine;
        RecordService/DeleteFields(n) some::<pb::DeleteFieldsRequest>(|m| { m.subject = n.subject(1); m.select = name_field(); m.context = for_purpose(SERVICE); }), Names, Denied, Fine;
        RecordService/BatchPutFields(n) some::<pb::BatchPutFieldsRequest>(|m| { m.puts = vec![pb::SubjectPut { subject: n.subject(0), values: vec![text_value(NAME, "Newer")], mode: pb::WriteMode::Update as i32, ..Default::default() }]; m.context = for_purpose(SERVICE); }), Names, Denied, Fine;
        RecordService/BatchGetFields(n) some::<pb::BatchGetFieldsRequest>(|m| { m.keys = vec![n.key(0).unwrap(), n.key(2).unwrap()]; m.context = for_purpose(SERVICE); }), Names, Denied, Fine;
        RecordService/AppendItems(n) some::<pb::AppendItemsRequest>(|m| { m.subject = n.subject(0); m.field_id = MESSAGE; m.items = vec![pb::NewItem { values: vec![text_value(0, "hi")], origin_time: None }]; m.context = for_purpose(DELIVERY); }), Names, Denied, Fine;
        RecordService/ListItems(n) some::<pb::ListItemsRequest>(|m| { m.key = n.key(0); m.field_id = MESSAGE; m.context = for_purpose(DELIVERY); }), Names, Denied, Fine;
        RecordService/GetItem(n) some::<pb::GetItemRequest>(|m| { m.key = n.key(0); m.field_id = MESSAGE; m.item = n.item.clone(); m.context = for_purpose(DELIVERY); }), Names, Denied, Fine;
        RecordService/ExportSubject(n) some::<pb::ExportSubjectRequest>(|m| { m.key = n.key(0); m.context = for_purpose(SERVICE); }), Names, Denied, Fine;
        RecordService/DeleteItems(n) some::<pb::DeleteItemsRequest>(|m| { m.subject = n.subject(0); m.field_id = MESSAGE; m.items = vec![n.item.clone()]; m.context = for_purpose(DELIVERY); }), Names, Denied, Fine;

        SubjectService/GetSubject(n) some::<pb::GetSubjectRequest>(|m| m.key = n.key(0)), Names, Denied, Fine;
        SubjectService/ListSubjects(n) pb::ListSubjectsRequest::default(), Nothing, Denied, Fine;
        SubjectService/FindSubjects(n) some::<pb::FindSubjectsRequest>(|m| { m.term = Some(pb::Term { field_id: EMAIL, text: format!("{}@example.com", n.subject(0)), ..Default::default() }); m.context = for_purpose(SERVICE); m.select = name_field(); }), Names, Denied, Fine;
        SubjectService/TouchSubject(n) pb::TouchSubjectRequest { subject: n.subject(0) }, Names, Denied, Fine;
        SubjectService/CreateGroup(n) pb::CreateGroupRequest { group: Some(pb::Group { group: format!("g{}", n.item), ..Default::default() }), ..Default::default() }, Nothing, Denied, Fine;
        SubjectService/GetGroup(n) pb::GetGroupRequest { group: n.group.clone() }, Names, Denied, Fine;
        SubjectService/ListGroups(n) pb::ListGroupsRequest::default(), Nothing, Denied, Fine;
        SubjectService/UpdateGroup(n) pb::UpdateGroupRequest { group: Some(pb::Group { group: n.group.clone(), state: pb::GroupState::Active as i32, ..Default::default() }), update_mask: Some(prost_types::FieldMask { paths: vec!["state".into()] }), ..Default::default() }, Names, Denied, Fine;
        SubjectService/ListGroupSubjects(n) pb::ListGroupSubjectsRequest { group: n.group.clone(), ..Default::default() }, Names, Denied, Fine;
        SubjectService/CloseSubject(n) some::<pb::CloseSubjectRequest>(|m| m.subject = n.subject(5)), Names, Denied, Fine;
        SubjectService/ReopenSubject(n) some::<pb::ReopenSubjectRequest>(|m| m.subject = n.subject(5)), Names, Denied, Fine;

        AccessService/WhoAmI(n) pb::WhoAmIRequest {}, Nothing, Any, Fine;
        AccessService/TestAccess(n) some::<pb::TestAccessRequest>(|m| { m.access_key = n.access_key.clone(); m.verb = pb::Verb::Subject as i32; m.group = n.group.clone(); }), Names, Any, Fine;
        AccessService/IssueAccessKey(n) some::<pb::IssueAccessKeyRequest>(|m| { m.name = format!("k{}", n.item); m.role_ids = vec![n.role]; m.tenant = n.tenant.clone(); }), Names, Any, Fine;
        AccessService/ReleaseAccessKey(n) pb::ReleaseAccessKeyRequest { access_key: n.access_key.clone() }, Names, Any, Fine;
        AccessService/ListAccessKeys(n) pb::ListAccessKeysRequest { tenant: n.tenant.clone(), ..Default::default() }, Names, Any, Fine;
        AccessService/CreateRole(n) pb::CreateRoleRequest { role: Some(pb::Role { name: format!("r{}", n.item), grants: vec![grant()], ..Default::default() }), tenant: n.tenant.clone(), ..Default::default() }, Names, Any, Fine;
        AccessService/UpdateRole(n) pb::UpdateRoleRequest { role: Some(pb::Role { role_id: n.role, name: "everything".into(), grants: vec![all_grant()], ..Default::default() }), ..Default::default() }, Nothing, Any, Fine;
        AccessService/ListRoles(n) pb::ListRolesRequest { tenant: n.tenant.clone(), ..Default::default() }, Names, Any, Fine;
        AccessService/RequestApproval(n) some::<pb::RequestApprovalRequest>(|m| { m.subject = n.subject(0); m.grant = Some(grant()); m.reference = "T-1".into(); }), Names, Any, Fine;
        AccessService/Approve(n) some::<pb::ApproveRequest>(|m| m.approval = n.approval.clone()), Names, Any, Fine;
        AccessService/Deny(n) some::<pb::DenyRequest>(|m| m.approval = n.approval_too.clone()), Names, Any, Fine;
        AccessService/ListApprovals(n) pb::ListApprovalsRequest::default(), Nothing, Any, Fine;

        PolicyService/LintPolicy(n) pb::LintPolicyRequest { policy: JINA.into(), tenant: n.tenant.clone() }, Names, Any, Fine;
        PolicyService/PlanPolicy(n) pb::PlanPolicyRequest { policy: JINA.into(), tenant: n.tenant.clone(), ..Default::default() }, Names, Any, Fine;
        PolicyService/DiffPolicies(n) pb::DiffPoliciesRequest { policy: JINA.into(), tenant: n.tenant.clone(), ..Default::default() }, Names, Any, Fine;
        PolicyService/GetPolicy(n) pb::GetPolicyRequest { tenant: n.tenant.clone(), ..Default::default() }, Names, Any, Fine;
        PolicyService/ListPolicyVersions(n) pb::ListPolicyVersionsRequest { tenant: n.tenant.clone(), ..Default::default() }, Names, Any, Fine;
        PolicyService/GetSchema(n) pb::GetSchemaRequest { tenant: n.tenant.clone(), ..Default::default() }, Names, Any, Fine;
        PolicyService/AggregateFields(n) pb::AggregateFieldsRequest { field_id: 1, context: for_purpose(ANALYTICS) }, Nothing, Denied, Refused(Code::InvalidArgument);
        PolicyService/GetReport(n) pb::GetReportRequest { tenant: n.tenant.clone() }, Names, Any, Fine;
        PolicyService/ApplyPolicy(n) pb::ApplyPolicyRequest { policy: JINA.into(), tenant: n.tenant.clone(), ..Default::default() }, Names, Any, Fine;

        TenantService/CreateTenant(n) pb::CreateTenantRequest { tenant: Some(pb::Tenant { tenant: "made-by-matrix".into(), kind: pb::TenantKind::Test as i32, ..Default::default() }), ..Default::default() }, Nothing, Any, NO;
        TenantService/GetTenant(n) pb::GetTenantRequest { tenant: n.tenant.clone() }, Names, Any, Fine;
        TenantService/ListTenants(n) pb::ListTenantsRequest::default(), Nothing, Any, NO;
        TenantService/UpdateTenant(n) pb::UpdateTenantRequest { tenant: Some(pb::Tenant { tenant: n.tenant.clone(), display_name: "A name".into(), ..Default::default() }), update_mask: Some(prost_types::FieldMask { paths: vec!["display_name".into()] }), ..Default::default() }, Names, Any, Fine;
        TenantService/GetUsage(n) pb::GetUsageRequest { tenant: n.tenant.clone() }, Names, Any, Fine;
        TenantService/EraseTenant(n) pb::EraseTenantRequest { tenant: n.tenant.clone(), confirm: n.tenant.clone(), validate_only: true, ..Default::default() }, Names, Any, NO;
        TenantService/AdvanceClock(n) pb::AdvanceClockRequest { tenant: n.tenant.clone(), advance: Some(prost_types::Duration { seconds: 1, nanos: 0 }), ..Default::default() }, Names, Any, Fine;

        AuditService/ListEntries(n) some::<pb::ListEntriesRequest>(|m| { m.key = n.key(0); m.tenant = n.tenant.clone(); }), Names, Any, Fine;
        AuditService/ReportAccess(n) pb::ReportAccessRequest { tenant: n.tenant.clone(), ..Default::default() }, Names, Any, Fine;
        AuditService/FollowEntries(n) pb::FollowEntriesRequest { start_position: 1, tenant: n.tenant.clone(), ..Default::default() }, Names, Any, Fine;
        AuditService/VerifyAudit(n) pb::VerifyAuditRequest { tenant: n.tenant.clone(), ..Default::default() }, Names, Any, Fine;
        AuditService/GetCheckpoint(n) pb::GetCheckpointRequest { tenant: n.tenant.clone(), ..Default::default() }, Names, Any, Fine;

        AuditService/PruneAudit(n) pb::PruneAuditRequest { before_time: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }), validate_only: true, ..Default::default() }, Nothing, Any, NO;
        AuditService/MarkDecoy(n) pb::MarkDecoyRequest { subject: n.subject(7), tenant: n.tenant.clone() }, Names, Any, Fine;
        AuditService/ListDecoys(n) pb::ListDecoysRequest { tenant: n.tenant.clone() }, Names, Any, Fine;
        AuditService/UnmarkDecoy(n) pb::UnmarkDecoyRequest { subject: n.subject(7), tenant: n.tenant.clone() }, Names, Any, Fine;

        OperationService/GetOperation(n) pb::GetOperationRequest { operation: n.erasure.clone(), ..Default::default() }, Names, Any, Fine;
        OperationService/ListOperations(n) pb::ListOperationsRequest { tenant: n.tenant.clone(), ..Default::default() }, Names, Any, Fine;
        OperationService/WatchOperation(n) pb::WatchOperationRequest { operation: n.erasure.clone(), ..Default::default() }, Names, Any, Fine;
        OperationService/CancelOperation(n) pb::CancelOperationRequest { operation: n.scheduled_too.clone(), ..Default::default() }, Names, Any, Fine;

        KeyService/ListKeys(n) pb::ListKeysRequest { tenant: n.tenant.clone(), ..Default::default() }, Names, Any, Fine;
        KeyService/RotateKeys(n) pb::RotateKeysRequest { kind: pb::KeyKind::Index as i32, tenant: n.tenant.clone(), ..Default::default() }, Names, Any, Fine;
        KeyService/RespondToCompromise(n) pb::RespondToCompromiseRequest { kind: pb::KeyKind::Index as i32, tenant: n.tenant.clone(), validate_only: true, ..Default::default() }, Names, Any, Fine;
        KeyService/ListRotations(n) pb::ListRotationsRequest { tenant: n.tenant.clone(), ..Default::default() }, Names, Any, Fine;
        OperationService/PauseOperation(n) pb::PauseOperationRequest { operation: n.scheduled_too.clone(), ..Default::default() }, Names, Any, Refused(Code::FailedPrecondition);
        OperationService/ResumeOperation(n) pb::ResumeOperationRequest { operation: n.scheduled_too.clone(), ..Default::default() }, Names, Any, Refused(Code::FailedPrecondition);
        OperationService/GetClock(n) pb::GetClockRequest {}, Nothing, Any, NO;
        OperationService/ConfirmClock(n) pb::ConfirmClockRequest { time: later(), ..Default::default() }, Nothing, Any, NO;
        KeyService/GetSealStatus(n) pb::GetSealStatusRequest {}, Nothing, Any, NO;

        CredentialService/SetPassword(n) some::<pb::SetPasswordRequest>(|m| { m.key = n.key(0); m.password = "correct horse battery".into(); }), Names, Denied, Fine;
        CredentialService/VerifyPassword(n) some::<pb::VerifyPasswordRequest>(|m| { m.key = n.key(0); m.password = "correct horse battery".into(); }), Names, Denied, Fine;
        CredentialService/ChangePassword(n) some::<pb::ChangePasswordRequest>(|m| { m.key = n.key(0); m.password = "correct horse battery".into(); m.new_password = "staple battery horse".into(); }), Names, Denied, Fine;
        CredentialService/UnlockPassword(n) some::<pb::UnlockPasswordRequest>(|m| m.key = n.key(0)), Names, Denied, Fine;
        CredentialService/RemovePassword(n) some::<pb::RemovePasswordRequest>(|m| m.key = n.key(0)), Names, Denied, Fine;
        CredentialService/ImportPassword(n) some::<pb::ImportPasswordRequest>(|m| { m.key = n.key(0); m.hash = BCRYPT.into(); }), Names, Denied, Fine;
        CredentialService/BatchImportPasswords(n) pb::BatchImportPasswordsRequest { rows: vec![pb::PasswordImport { subject: n.subject(2), hash: BCRYPT.into(), ..Default::default() }], ..Default::default() }, Names, Denied, Fine;
        CredentialService/ReportCredentials(n) pb::ReportCredentialsRequest {}, Nothing, Denied, Fine;
        CredentialService/IssueApiKey(n) some::<pb::IssueApiKeyRequest>(|m| { m.key = n.key(0); m.label = "a program".into(); }), Names, Denied, Fine;
        CredentialService/VerifyApiKey(n) some::<pb::VerifyApiKeyRequest>(|m| m.text = "key_x".into()), Nothing, Denied, Fine;
        CredentialService/ListApiKeys(n) some::<pb::ListApiKeysRequest>(|m| m.key = n.key(0)), Names, Denied, Fine;
        CredentialService/RotateApiKey(n) some::<pb::RotateApiKeyRequest>(|m| m.api_key = "1".into()), Nothing, Denied, Refused(Code::NotFound);
        CredentialService/RevokeApiKey(n) some::<pb::RevokeApiKeyRequest>(|m| m.api_key = "1".into()), Nothing, Denied, Refused(Code::NotFound);
        CredentialService/IssueCode(n) some::<pb::IssueCodeRequest>(|m| { m.key = n.key(0); m.r#use = "reset".into(); }), Names, Denied, Fine;
        CredentialService/VerifyCode(n) some::<pb::VerifyCodeRequest>(|m| { m.key = n.key(0); m.r#use = "reset".into(); m.text = "000000".into(); }), Names, Denied, Fine;
        CredentialService/IssueRecoveryCodes(n) some::<pb::IssueRecoveryCodesRequest>(|m| m.key = n.key(0)), Names, Denied, Fine;
        CredentialService/EnrolTotp(n) some::<pb::EnrolTotpRequest>(|m| { m.key = n.key(0); m.issuer = "Example".into(); m.account = "a".into(); }), Names, Denied, Fine;
        CredentialService/ConfirmTotp(n) some::<pb::ConfirmTotpRequest>(|m| { m.key = n.key(0); m.text = "000000".into(); }), Names, Denied, Fine;
        CredentialService/VerifyTotp(n) some::<pb::VerifyTotpRequest>(|m| { m.key = n.key(0); m.text = "000000".into(); }), Names, Denied, Fine;
        CredentialService/RemoveTotp(n) some::<pb::RemoveTotpRequest>(|m| m.key = n.key(0)), Names, Denied, Fine;
        BackupService/CreateBackup(n) pb::CreateBackupRequest::default(), Nothing, Any, NO;
        BackupService/ListBackups(n) pb::ListBackupsRequest {}, Nothing, Any, NO;
        BackupService/PruneBackups(n) pb::PruneBackupsRequest { validate_only: true }, Nothing, Any, NO;
        RightsService/GrantConsent(n) some::<pb::GrantConsentRequest>(|m| { m.key = n.key(0); m.consent = Some(pb::ConsentGrant { purpose_id: MARKETING, ..Default::default() }); }), Names, Denied, Fine;
        RightsService/WithdrawConsent(n) some::<pb::WithdrawConsentRequest>(|m| { m.key = n.key(0); m.purpose_id = MARKETING; }), Names, Denied, Fine;
        RightsService/RecordObjection(n) some::<pb::RecordObjectionRequest>(|m| { m.key = n.key(0); m.purpose_id = ANALYTICS; }), Names, Denied, Fine;
        RightsService/RestrictClass(n) some::<pb::RestrictClassRequest>(|m| { m.key = n.key(0); m.class_id = 4; }), Names, Denied, Fine;
        RightsService/GetRights(n) some::<pb::GetRightsRequest>(|m| m.key = n.key(0)), Names, Denied, Fine;
        RightsService/ListDisclosures(n) some::<pb::ListDisclosuresRequest>(|m| m.key = n.key(0)), Names, Denied, Fine;
        RightsService/SetNominee(n) some::<pb::SetNomineeRequest>(|m| { m.key = n.key(0); m.nominee = n.key(1); m.scopes = vec!["access".into()]; }), Names, Denied, Fine;
        RightsService/RemoveNominee(n) some::<pb::RemoveNomineeRequest>(|m| { m.key = n.key(0); m.nominee = n.key(1); }), Names, Denied, Fine;
        RightsService/CreateRequest(n) some::<pb::CreateRequestRequest>(|m| { m.kind = "access".into(); m.key = n.key(0); }), Names, Denied, Fine;
        RightsService/UpdateRequest(n) pb::UpdateRequestRequest { request: n.erasure.clone(), state: pb::RightsRequestState::Done as i32, ..Default::default() }, Nothing, Denied, Refused(Code::NotFound);
        RightsService/ListRequests(n) pb::ListRequestsRequest::default(), Nothing, Denied, Fine;
        EvidenceService/ExportEvidence(n) pb::ExportEvidenceRequest { tenant: n.tenant.clone(), ..Default::default() }, Names, Any, Fine;
        KeeperService/GetKeeper(n) pb::GetKeeperRequest {}, Nothing, Any, NO;
        KeeperService/VerifyKeeper(n) pb::VerifyKeeperRequest {}, Nothing, Any, NO;
        KeeperService/RetireReplica(n) pb::RetireReplicaRequest { index: 0, replica: n.item.clone() }, Nothing, Any, NO;

        ErasureService/PreviewErasure(n) pb::PreviewErasureRequest { target: Some(pb::preview_erasure_request::Target::Key(n.key(6).unwrap())), ..Default::default() }, Names, Denied, Fine;
        ErasureService/PlaceHold(n) pb::PlaceHoldRequest { target: Some(pb::place_hold_request::Target::Key(n.key(6).unwrap())), legal_basis: "dispute".into(), purpose_id: SERVICE, ..Default::default() }, Names, Denied, Fine;
        ErasureService/ReleaseHold(n) some::<pb::ReleaseHoldRequest>(|m| m.hold = n.hold.clone()), Names, Denied, Fine;
        ErasureService/ListHolds(n) some::<pb::ListHoldsRequest>(|m| m.key = n.key(6)), Names, Denied, Fine;
        ErasureService/ScheduleErasure(n) pb::ScheduleErasureRequest { target: Some(pb::schedule_erasure_request::Target::Key(n.key(7).unwrap())), schedule_time: later(), ..Default::default() }, Names, Denied, Fine;
        ErasureService/CancelErasure(n) some::<pb::CancelErasureRequest>(|m| m.erasure = n.scheduled.clone()), Names, Denied, Fine;
        ErasureService/GetErasure(n) pb::GetErasureRequest { erasure: n.erasure.clone() }, Names, Any, Fine;
        ErasureService/GetReceipt(n) pb::GetReceiptRequest { erasure: n.erasure.clone() }, Names, Any, Fine;
        ErasureService/GetReceiptKeys(n) pb::GetReceiptKeysRequest {}, Nothing, Any, Fine;
        ErasureService/ListErasures(n) some::<pb::ListErasuresRequest>(|m| m.key = n.key(0)), Names, Any, Fine;
        ErasureService/AcknowledgeErasure(n) pb::AcknowledgeErasureRequest { erasure: n.erasure.clone(), recipient_id: 3, ..Default::default() }, Nothing, Denied, Refused(Code::NotFound);
        ErasureService/WatchErasures(n) pb::WatchErasuresRequest::default(), Nothing, Denied, Fine;
        ErasureService/EraseFields(n) some::<pb::EraseFieldsRequest>(|m| { m.key = n.key(2); m.select = name_field(); }), Names, Denied, Fine;
        ErasureService/EraseItems(n) some::<pb::EraseItemsRequest>(|m| { m.key = n.key(1); m.field_id = MESSAGE; m.items = vec![n.item.clone()]; }), Names, Denied, Refused(Code::NotFound);
        ErasureService/EraseClass(n) some::<pb::EraseClassRequest>(|m| { m.key = n.key(2); m.class_id = 1; }), Names, Denied, Fine;
        ErasureService/EraseSubject(n) some::<pb::EraseSubjectRequest>(|m| m.key = n.key(0)), Names, Denied, Fine;
        ErasureService/BatchEraseSubjects(n) some::<pb::BatchEraseSubjectsRequest>(|m| m.keys = vec![n.key(1).unwrap()]), Names, Denied, Fine;
        ErasureService/EraseGroup(n) some::<pb::EraseGroupRequest>(|m| m.group = n.empty_group.clone()), Names, Denied, Fine;

        AccessService/RotateAccessKey(n) some::<pb::RotateAccessKeyRequest>(|m| m.access_key = n.access_key.clone()), Names, Any, Fine;
        AccessService/RevokeAccessKey(n) some::<pb::RevokeAccessKeyRequest>(|m| m.access_key = n.access_key.clone()), Names, Any, Fine;
    }
}

fn all_grant() -> pb::Grant {
    pb::Grant {
        purpose_ids: (1..=12).collect(),
        verbs: (1..=18).collect(),
        max_view: pb::View::Plain as i32,
        ..Default::default()
    }
}

/// Every method of the API, from the descriptor set.
fn methods() -> BTreeSet<String> {
    let set = prost_types::FileDescriptorSet::decode(pb::DESCRIPTOR_SET).unwrap();
    let mut found = BTreeSet::new();
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                found.insert(format!("{}.{}/{}", file.package(), service.name(), method.name()));
            }
        }
    }
    found
}

#[test]
fn t21_every_rpc_has_a_row() {
    let rows: BTreeSet<String> = rows().iter().map(|row| row.method.to_owned()).collect();
    assert_eq!(rows, methods());
}

/// A tenant with something of everything, made through the API with its own key.
async fn furnish(running: &Running, tenant: TenantNo, name: &str) -> (Names, String) {
    let (key, _) = running.key_until(tenant, "owner", None).await;
    let (_, spare) = running.key_until(tenant, "spare", None).await;
    let (second, _) = running.key_until(tenant, "second", None).await;
    let mut records = pb::record_service_client::RecordServiceClient::new(running.channel.clone());
    let mut subjects = pb::subject_service_client::SubjectServiceClient::new(running.channel.clone());
    let mut erasures = pb::erasure_service_client::ErasureServiceClient::new(running.channel.clone());
    let mut access = pb::access_service_client::AccessServiceClient::new(running.channel.clone());
    let mut names = Names { tenant: name.into(), prefix: format!("{name}-person"), ..Names::bogus() };
    (names.group, names.empty_group) = (format!("{name}-account"), format!("{name}-empty"));
    names.access_key = spare;
    for group in [&names.group, &names.empty_group] {
        let group = Some(pb::Group { group: group.clone(), ..Default::default() });
        let request = pb::CreateGroupRequest { group, ..Default::default() };
        subjects.create_group(with(&key, request)).await.expect("group");
    }
    for i in 0..10 {
        let email = format!("{}@example.com", names.subject(i));
        let request = pb::PutFieldsRequest {
            subject: names.subject(i),
            values: vec![text_value(NAME, &format!("Secret of {name}")), text_value(EMAIL, &email)],
            context: for_purpose(SERVICE),
            group: if i == 0 { names.group.clone() } else { String::new() },
            ..Default::default()
        };
        records.put_fields(with(&key, request)).await.expect("put");
    }
    let append = pb::AppendItemsRequest {
        subject: names.subject(0),
        field_id: MESSAGE,
        items: vec![pb::NewItem { values: vec![text_value(0, &format!("Secret of {name}"))], origin_time: None }],
        context: for_purpose(DELIVERY),
        ..Default::default()
    };
    let added = records.append_items(with(&key, append)).await.expect("append").into_inner();
    names.item = added.items[0].item.clone();
    let erase = pb::EraseSubjectRequest { key: names.key(3), ..Default::default() };
    names.erasure =
        erasures.erase_subject(with(&key, erase)).await.expect("erase").into_inner().erasure.unwrap().erasure;
    for (i, into) in [(4, &mut names.scheduled), (8, &mut names.scheduled_too)] {
        let target = pb::schedule_erasure_request::Target::Key(by_id(&format!("{name}-person-{i}")).unwrap());
        let request = pb::ScheduleErasureRequest { target: Some(target), schedule_time: later(), ..Default::default() };
        let answer = erasures.schedule_erasure(with(&key, request)).await.expect("schedule").into_inner();
        *into = answer.erasure.unwrap().erasure;
    }
    let target = Some(pb::place_hold_request::Target::Key(names.key(9).unwrap()));
    let hold =
        pb::PlaceHoldRequest { target, legal_basis: "dispute".into(), purpose_id: SERVICE, ..Default::default() };
    names.hold = erasures.place_hold(with(&key, hold)).await.expect("hold").into_inner().hold.unwrap().hold;
    for into in [&mut names.approval, &mut names.approval_too] {
        let request =
            pb::RequestApprovalRequest { grant: Some(grant()), reference: "T-9".into(), ..Default::default() };
        let answer = access.request_approval(with(&second, request)).await.expect("approval").into_inner();
        *into = answer.approval.unwrap().approval;
    }
    let me = access.who_am_i(with(&key, pb::WhoAmIRequest {})).await.expect("who am I").into_inner();
    names.role = me.roles[0].role_id;
    (names, key)
}

#[tokio::test]
async fn t21_nobody_sees_or_touches_what_is_anothers() {
    let running = Running::new().await;
    let a = running.test.tenant("alpha", JINA).await;
    let b = running.test.tenant("beta", JINA).await;
    let (own_of_a, key_a) = furnish(&running, a, "alpha").await;
    let (own_of_b, key_b) = furnish(&running, b, "beta").await;
    let channel = &running.channel;

    let soon = running.test.now().plus_ms(60_000);
    let (expired, _) = running.key_until(a, "short", Some(soon)).await;
    let (revoked, revoked_id) = running.key_until(a, "gone", None).await;
    let mut access = pb::access_service_client::AccessServiceClient::new(channel.clone());
    for key in [&expired, &revoked] {
        access.who_am_i(with(key, pb::WhoAmIRequest {})).await.expect("it works before");
    }
    let revoke = pb::RevokeAccessKeyRequest { access_key: revoked_id, ..Default::default() };
    access.revoke_access_key(with(&key_a, revoke)).await.expect("revoke");
    running.test.clock.advance_ms(120_000);
    let operator = running.operator_key("root").await;
    let mut forged = key_a.clone();
    let last = if forged.ends_with('0') { '1' } else { '0' };
    forged.pop();
    forged.push(last);

    let bogus = Names::bogus();
    let mut wrong = Vec::new();
    for row in rows() {
        let own = (row.body)(&own_of_a);
        let no_keys: [(&str, Option<&str>); 5] = [
            ("no key", None),
            ("an expired key", Some(&expired)),
            ("a revoked key", Some(&revoked)),
            ("a forged key", Some(&forged)),
            ("no key's text", Some("pv_live_x")),
        ];
        let mut answers = BTreeSet::new();
        for (what, key) in no_keys {
            let answer = comparable(&call(channel, key, row.method, own.clone()).await);
            match &answer {
                Err((Code::Unauthenticated, ..)) => {}
                other => wrong.push(format!("{}: {what}: {other:?}", row.method)),
            }
            answers.insert(format!("{answer:?}"));
        }
        if answers.len() != 1 {
            wrong.push(format!("{}: refusals differ: {answers:?}", row.method));
        }
        if row.operator == Operator::Denied {
            let answer = call(channel, Some(&operator), row.method, own.clone()).await;
            if answer.as_ref().err().map(Status::code) != Some(Code::PermissionDenied) {
                wrong.push(format!("{}: an operator: {answer:?}", row.method));
            }
        }
        if row.about == About::Names {
            let foreign = call(channel, Some(&key_b), row.method, own).await;
            let missing = call(channel, Some(&key_b), row.method, (row.body)(&bogus)).await;
            if comparable(&foreign) != comparable(&missing) {
                wrong.push(format!("{}: foreign {foreign:?}, missing {missing:?}", row.method));
            }
            if let Err(status) = &foreign
                && !matches!(
                    status.code(),
                    Code::NotFound | Code::PermissionDenied | Code::InvalidArgument | Code::Unimplemented
                )
            {
                wrong.push(format!("{}: foreign: {status:?}", row.method));
            }
        }
        // Whatever the other tenant can ask for without naming anything shows nothing of this one.
        if let Ok(answer) =
            call(channel, Some(&key_b), row.method, (row.body)(&Names { tenant: String::new(), ..own_of_a.clone() }))
                .await
        {
            let shown = String::from_utf8_lossy(&answer).into_owned();
            for secret in ["alpha", "Secret of alpha", &own_of_a.erasure, &own_of_a.hold, &own_of_a.access_key] {
                if shown.contains(secret) {
                    wrong.push(format!("{}: shows {secret}", row.method));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));

    // The rows are no strawmen: with the own key and own names the calls are done. Tenant A's and, since all the calls
    // above changed nothing of it, also tenant B's.
    for (names, key) in [(&own_of_a, &key_a), (&own_of_b, &key_b)] {
        for row in rows() {
            let answer = call(channel, Some(key), row.method, (row.body)(names)).await;
            let got = match &answer {
                Ok(_) => Own::Fine,
                Err(status) => Own::Refused(status.code()),
            };
            if got != row.own {
                wrong.push(format!("{}: own: {:?}, not {:?}", row.method, answer.map(|_| ()), row.own));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    running.stop().await;
}

/// A page token is of use to who got it, for the query it came from.
#[tokio::test]
async fn t21_page_tokens_are_bound_to_query_and_credential() {
    let running = Running::new().await;
    let a = running.test.tenant("alpha", JINA).await;
    let b = running.test.tenant("beta", JINA).await;
    let (names, key) = furnish(&running, a, "alpha").await;
    let (_, foreign) = furnish(&running, b, "beta").await;
    let second = running.key(a, "another").await;
    let mut subjects = pb::subject_service_client::SubjectServiceClient::new(running.channel.clone());
    let first = pb::ListSubjectsRequest { page_size: 2, ..Default::default() };
    let token = subjects.list_subjects(with(&key, first.clone())).await.unwrap().into_inner().next_page_token;
    assert!(!token.is_empty());
    let next = pb::ListSubjectsRequest { page_token: token.clone(), ..first.clone() };
    let page = subjects.list_subjects(with(&key, next.clone())).await.expect("its own").into_inner();
    assert_eq!(page.subjects[0].subject, names.subject(2));
    // Another size of page is the same query.
    let larger = pb::ListSubjectsRequest { page_size: 5, ..next.clone() };
    assert_eq!(subjects.list_subjects(with(&key, larger)).await.unwrap().into_inner().subjects.len(), 5);
    for key in [&second, &foreign] {
        let refused = subjects.list_subjects(with(key, next.clone())).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::InvalidArgument, "PAGE_TOKEN_INVALID"));
    }
    let filtered = pb::ListSubjectsRequest { states: vec![pb::SubjectState::Active as i32], ..next.clone() };
    let group =
        pb::ListGroupSubjectsRequest { group: names.group.clone(), page_token: token.clone(), ..Default::default() };
    assert_eq!(reason(&subjects.list_subjects(with(&key, filtered)).await.unwrap_err()), "PAGE_TOKEN_INVALID");
    assert_eq!(reason(&subjects.list_group_subjects(with(&key, group)).await.unwrap_err()), "PAGE_TOKEN_INVALID");
    for i in 0..token.len() {
        let mut bad = token.clone().into_bytes();
        bad[i] = if bad[i] == b'A' { b'B' } else { b'A' };
        let bad = pb::ListSubjectsRequest { page_token: String::from_utf8(bad).unwrap(), ..next.clone() };
        let refused = subjects.list_subjects(with(&key, bad)).await.unwrap_err();
        assert_eq!(reason(&refused), "PAGE_TOKEN_INVALID", "byte {i}");
    }
    running.stop().await;
}
