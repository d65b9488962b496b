//! What is checked only changes nothing, and what is repeated is done once: for calls that change settings and operations.

use pii_vault::clock::DAY_MS;
use pii_vault::grpc::pb;
use pii_vault::grpc::pb::erasure_service_client::ErasureServiceClient;
use pii_vault::grpc::pb::key_service_client::KeyServiceClient;
use pii_vault::grpc::pb::operation_service_client::OperationServiceClient;
use pii_vault::grpc::pb::policy_service_client::PolicyServiceClient;
use pii_vault::grpc::pb::record_service_client::RecordServiceClient;
use pii_vault::grpc::pb::subject_service_client::SubjectServiceClient;
use pii_vault::grpc::pb::tenant_service_client::TenantServiceClient;

use crate::harness::{JINA, START};
use crate::net::*;

fn id() -> String {
    uuid::Uuid::new_v4().to_string()
}

fn put(subject: &str, group: &str) -> pb::PutFieldsRequest {
    pb::PutFieldsRequest {
        subject: subject.into(),
        values: vec![text_value(NAME, "Ana"), text_value(EMAIL, &format!("{subject}@example.com"))],
        context: for_purpose(SERVICE),
        group: group.into(),
        ..Default::default()
    }
}

fn group(name: &str) -> Option<pb::Group> {
    Some(pb::Group { group: name.into(), ..Default::default() })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_changes_nothing() {
    let running = Running::new().await;
    let tenant = running.test.tenant("alpha", JINA).await;
    let key = running.key(tenant, "app").await;
    let operator = running.operator_key("root").await;
    let channel = running.channel.clone();
    let mut records = RecordServiceClient::new(channel.clone());
    let mut subjects = SubjectServiceClient::new(channel.clone());
    let mut tenants = TenantServiceClient::new(channel.clone());
    let mut erasures = ErasureServiceClient::new(channel.clone());
    let mut keys = KeyServiceClient::new(channel.clone());
    let mut operations = OperationServiceClient::new(channel.clone());

    let check = pb::CreateGroupRequest { group: group("acme"), validate_only: true, ..Default::default() };
    subjects.create_group(with(&key, check.clone())).await.expect("it could be made");
    let get = pb::GetGroupRequest { group: "acme".into() };
    assert_eq!(reason(&subjects.get_group(with(&key, get.clone())).await.unwrap_err()), "NOT_FOUND");
    let make = pb::CreateGroupRequest { validate_only: false, ..check.clone() };
    subjects.create_group(with(&key, make)).await.expect("make");
    assert_eq!(reason(&subjects.create_group(with(&key, check)).await.unwrap_err()), "ALREADY_EXISTS");
    let close = pb::UpdateGroupRequest {
        group: Some(pb::Group { state: pb::GroupState::Closed as i32, ..group("acme").unwrap() }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["state".into()] }),
        validate_only: true,
        ..Default::default()
    };
    let shown = subjects.update_group(with(&key, close)).await.expect("check").into_inner().group.unwrap();
    assert_eq!(shown.state(), pb::GroupState::Closed, "what would become of it");
    let now = subjects.get_group(with(&key, get)).await.unwrap().into_inner().group.unwrap();
    assert_eq!((now.state(), now.etag), (pb::GroupState::Active, shown.etag));

    let rename = pb::UpdateTenantRequest {
        tenant: Some(pb::Tenant { tenant: "alpha".into(), display_name: "Alpha GmbH".into(), ..Default::default() }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["display_name".into()] }),
        validate_only: true,
        ..Default::default()
    };
    let shown = tenants.update_tenant(with(&operator, rename)).await.expect("check").into_inner().tenant.unwrap();
    let now =
        tenants.get_tenant(with(&key, pb::GetTenantRequest::default())).await.unwrap().into_inner().tenant.unwrap();
    assert_eq!((shown.display_name.as_str(), now.display_name.as_str()), ("Alpha GmbH", ""));

    let rotate = pb::RotateKeysRequest { kind: pb::KeyKind::Index as i32, validate_only: true, ..Default::default() };
    assert_eq!(keys.rotate_keys(with(&key, rotate)).await.expect("check").into_inner().operation, "");
    let list = operations.list_operations(with(&key, pb::ListOperationsRequest::default())).await.unwrap().into_inner();
    assert!(list.operations.is_empty());

    records.put_fields(with(&key, put("ana", ""))).await.expect("put");
    let append = pb::AppendItemsRequest {
        subject: "ana".into(),
        field_id: MESSAGE,
        items: vec![pb::NewItem { values: vec![text_value(0, "hello")], origin_time: None }],
        context: for_purpose(DELIVERY),
        ..Default::default()
    };
    let item = records.append_items(with(&key, append)).await.expect("append").into_inner().items[0].item.clone();
    let fields = pb::EraseFieldsRequest {
        key: by_id("ana"),
        select: Some(pb::Selector { field_ids: vec![EMAIL], ..Default::default() }),
        validate_only: true,
        ..Default::default()
    };
    let items = pb::EraseItemsRequest {
        key: by_id("ana"),
        field_id: MESSAGE,
        items: vec![item],
        validate_only: true,
        ..Default::default()
    };
    let would = erasures.erase_fields(with(&key, fields.clone())).await.expect("check").into_inner().erasure.unwrap();
    assert_eq!((would.erasure.as_str(), would.erased.len()), ("", 1));
    let would = erasures.erase_items(with(&key, items.clone())).await.expect("check").into_inner().erasure.unwrap();
    assert_eq!((would.erasure.as_str(), would.receipt.len()), ("", 0));
    let listed = erasures.list_erasures(with(&key, pb::ListErasuresRequest::default())).await.unwrap().into_inner();
    assert!(listed.erasures.is_empty());
    // What is there is still there to be erased, once.
    let fields = pb::EraseFieldsRequest { validate_only: false, ..fields };
    erasures.erase_fields(with(&key, fields.clone())).await.expect("erase");
    let fields = pb::EraseFieldsRequest { validate_only: true, ..fields };
    assert_eq!(reason(&erasures.erase_fields(with(&key, fields)).await.unwrap_err()), "NOT_FOUND");
    let items = pb::EraseItemsRequest { validate_only: false, ..items };
    erasures.erase_items(with(&key, items)).await.expect("erase");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_change_once_however_often_they_are_asked_for() {
    let running = Running::new().await;
    let tenant = running.test.tenant("alpha", JINA).await;
    let key = running.key(tenant, "app").await;
    let operator = running.operator_key("root").await;
    let channel = running.channel.clone();
    let mut tenants = TenantServiceClient::new(channel.clone());
    let mut policies = PolicyServiceClient::new(channel.clone());
    let mut keys = KeyServiceClient::new(channel.clone());
    let mut subjects = SubjectServiceClient::new(channel.clone());

    // A tenant with its first policy is one commit.
    let create = pb::CreateTenantRequest {
        tenant: Some(pb::Tenant { tenant: "beta".into(), kind: pb::TenantKind::Test as i32, ..Default::default() }),
        policy: JINA.as_bytes().to_vec().into(),
        request_id: id(),
        ..Default::default()
    };
    let first = tenants.create_tenant(with(&operator, create.clone())).await.expect("create").into_inner();
    let again = tenants.create_tenant(with(&operator, create.clone())).await.expect("repeat").into_inner();
    assert_eq!(first, again);
    assert_eq!(first.tenant.unwrap().policy_version, 1);
    let other = pb::CreateTenantRequest { policy: Default::default(), ..create };
    assert_eq!(reason(&tenants.create_tenant(with(&operator, other)).await.unwrap_err()), "REQUEST_ID_REUSED");

    let apply =
        pb::ApplyPolicyRequest { policy: JINA.as_bytes().to_vec().into(), request_id: id(), ..Default::default() };
    let first = policies.apply_policy(with(&key, apply.clone())).await.expect("apply").into_inner().version.unwrap();
    let again = policies.apply_policy(with(&key, apply)).await.expect("repeat").into_inner().version.unwrap();
    assert_eq!((first.version, again.version), (2, 2));

    let rename = pb::UpdateTenantRequest {
        tenant: Some(pb::Tenant { tenant: "alpha".into(), display_name: "A".into(), ..Default::default() }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["display_name".into()] }),
        request_id: id(),
        ..Default::default()
    };
    let first = tenants.update_tenant(with(&operator, rename.clone())).await.expect("rename").into_inner();
    let again = tenants.update_tenant(with(&operator, rename)).await.expect("repeat").into_inner();
    assert_eq!(first.tenant.unwrap().etag, again.tenant.unwrap().etag, "a repeat is no change");

    for kind in [pb::KeyKind::TenantRoot, pb::KeyKind::Index] {
        let rotate = pb::RotateKeysRequest { kind: kind as i32, request_id: id(), ..Default::default() };
        let first = keys.rotate_keys(with(&key, rotate.clone())).await.expect("rotate").into_inner().operation;
        running.test.clock.advance_ms(300_000);
        running.test.node.vault.run_due_work(tenant).await.expect("it ends");
        let again = keys.rotate_keys(with(&key, rotate)).await.expect("repeat").into_inner().operation;
        assert_eq!(first, again, "{kind:?}");
    }

    let make = pb::CreateGroupRequest { group: group("acme"), ..Default::default() };
    subjects.create_group(with(&key, make)).await.expect("make");
    let close = |state: pb::GroupState, request_id: &str| pb::UpdateGroupRequest {
        group: Some(pb::Group { state: state as i32, ..group("acme").unwrap() }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["state".into()] }),
        request_id: request_id.into(),
        ..Default::default()
    };
    let one = id();
    subjects.update_group(with(&key, close(pb::GroupState::Closed, &one))).await.expect("close");
    subjects.update_group(with(&key, close(pb::GroupState::Active, ""))).await.expect("open");
    let again = subjects.update_group(with(&key, close(pb::GroupState::Closed, &one))).await.expect("repeat");
    assert_eq!(again.into_inner().group.unwrap().state(), pb::GroupState::Active, "a late repeat closes nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_erased_on_its_date_unless_that_is_cancelled() {
    let running = Running::new().await;
    let tenant = running.test.tenant("alpha", JINA).await;
    let key = running.key(tenant, "app").await;
    let channel = running.channel.clone();
    let mut records = RecordServiceClient::new(channel.clone());
    let mut subjects = SubjectServiceClient::new(channel.clone());
    let mut erasures = ErasureServiceClient::new(channel.clone());
    let mut tenants = TenantServiceClient::new(channel.clone());
    let make = pb::CreateGroupRequest { group: group("acme"), ..Default::default() };
    subjects.create_group(with(&key, make)).await.expect("make");
    for subject in ["ana", "bo"] {
        records.put_fields(with(&key, put(subject, "acme"))).await.expect("put");
    }
    let at = |days: i64| prost_types::Timestamp { seconds: (START.0 + days * DAY_MS) / 1_000, nanos: 0 };
    let schedule = |validate_only| pb::ScheduleErasureRequest {
        target: Some(pb::schedule_erasure_request::Target::Group("acme".into())),
        schedule_time: Some(at(10)),
        validate_only,
        ..Default::default()
    };
    let would =
        erasures.schedule_erasure(with(&key, schedule(true))).await.expect("check").into_inner().erasure.unwrap();
    assert_eq!(would.erasure, "");
    records.put_fields(with(&key, put("cy", "acme"))).await.expect("the group is open");
    let first =
        erasures.schedule_erasure(with(&key, schedule(false))).await.expect("schedule").into_inner().erasure.unwrap();
    assert_eq!((first.status(), first.kind()), (pb::ErasureStatus::Scheduled, pb::ErasureKind::Group));
    let twice = erasures.schedule_erasure(with(&key, schedule(false))).await.unwrap_err();
    assert_eq!(reason(&twice), "WRONG_STATE");
    assert_eq!(reason(&records.put_fields(with(&key, put("di", "acme"))).await.unwrap_err()), "WRONG_STATE");
    records.put_fields(with(&key, put("ana", ""))).await.expect("who is in it is written to");

    let request_id = id();
    let cancel = pb::CancelErasureRequest {
        erasure: first.erasure.clone(),
        request_id: request_id.clone(),
        context: Some(pb::AccessContext { reason: "they stay".into(), ..Default::default() }),
    };
    for _ in 0..2 {
        let gone =
            erasures.cancel_erasure(with(&key, cancel.clone())).await.expect("cancel").into_inner().erasure.unwrap();
        assert_eq!(gone.status(), pb::ErasureStatus::Cancelled);
    }
    records.put_fields(with(&key, put("di", "acme"))).await.expect("it is open again");

    let second =
        erasures.schedule_erasure(with(&key, schedule(false))).await.expect("schedule").into_inner().erasure.unwrap();
    let advance = |days: i64| pb::AdvanceClockRequest {
        advance: Some(prost_types::Duration { seconds: days * 86_400, nanos: 0 }),
        ..Default::default()
    };
    let get = |subject: &str| pb::GetFieldsRequest {
        key: by_id(subject),
        context: for_purpose(SERVICE),
        ..Default::default()
    };
    tenants.advance_clock(with(&key, advance(9))).await.expect("nine days");
    records.get_fields(with(&key, get("ana"))).await.expect("not yet");
    tenants.advance_clock(with(&key, advance(2))).await.expect("two more");
    for subject in ["ana", "bo", "cy", "di"] {
        assert_eq!(reason(&records.get_fields(with(&key, get(subject))).await.unwrap_err()), "SUBJECT_ERASED");
    }
    let ask = pb::GetErasureRequest { erasure: second.erasure };
    let done = erasures.get_erasure(with(&key, ask)).await.expect("get").into_inner().erasure.unwrap();
    assert_eq!((done.status(), done.done_count), (pb::ErasureStatus::Erased, 4));
    assert!(!done.receipt.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_about_closing_and_releasing_is_in_the_audit() {
    let running = Running::new().await;
    let tenant = running.test.tenant("alpha", JINA).await;
    let key = running.key(tenant, "app").await;
    let channel = running.channel.clone();
    let mut records = RecordServiceClient::new(channel.clone());
    let mut subjects = SubjectServiceClient::new(channel.clone());
    let mut erasures = ErasureServiceClient::new(channel.clone());
    let mut audit = pb::audit_service_client::AuditServiceClient::new(channel.clone());
    records.put_fields(with(&key, put("ana", ""))).await.expect("put");
    let said = |reference: &str| Some(pb::AccessContext { reference: reference.into(), ..Default::default() });
    let close = pb::CloseSubjectRequest { subject: "ana".into(), context: said("close-1"), ..Default::default() };
    subjects.close_subject(with(&key, close)).await.expect("close");
    let reopen = pb::ReopenSubjectRequest { subject: "ana".into(), context: said("reopen-2"), ..Default::default() };
    subjects.reopen_subject(with(&key, reopen)).await.expect("reopen");
    let hold = pb::PlaceHoldRequest {
        target: Some(pb::place_hold_request::Target::Key(by_id("ana").unwrap())),
        legal_basis: "dispute".into(),
        purpose_id: SERVICE,
        ..Default::default()
    };
    let hold = erasures.place_hold(with(&key, hold)).await.expect("hold").into_inner().hold.unwrap().hold;
    let erase = pb::EraseSubjectRequest { key: by_id("ana"), ..Default::default() };
    let held = erasures.erase_subject(with(&key, erase)).await.expect("erase").into_inner().erasure.unwrap();
    assert_eq!(held.status(), pb::ErasureStatus::Held);
    let list = |action: &str| pb::ListEntriesRequest {
        chain: pb::AuditChain::Changes as i32,
        actions: vec![action.into()],
        ..Default::default()
    };
    for (action, reference) in [("subject.close", "close-1"), ("subject.reopen", "reopen-2")] {
        let found = audit.list_entries(with(&key, list(action))).await.expect("list").into_inner().entries;
        let details: Vec<_> = found.iter().map(|e| e.detail.clone().unwrap_or_default().reference).collect();
        assert_eq!(details, [reference]);
    }
    let release = pb::ReleaseHoldRequest { hold, context: said("release-3"), request_id: id(), ..Default::default() };
    let first = erasures.release_hold(with(&key, release.clone())).await.expect("release").into_inner();
    assert_eq!(first.erasures, [held.erasure]);
    let again = erasures.release_hold(with(&key, release)).await.expect("repeat").into_inner();
    assert_eq!(again, first);
}
