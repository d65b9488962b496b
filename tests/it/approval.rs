//! Approvals over the socket: for one subject, for a list, for a search, and of two operators for a tenant.

use pii_vault::grpc::pb;
use pii_vault::grpc::pb::access_service_client::AccessServiceClient;
use pii_vault::grpc::pb::erasure_service_client::ErasureServiceClient;
use pii_vault::grpc::pb::record_service_client::RecordServiceClient;
use pii_vault::grpc::pb::subject_service_client::SubjectServiceClient;
use pii_vault::grpc::pb::tenant_service_client::TenantServiceClient;
use tonic::transport::Channel;

use crate::harness::JINA;
use crate::net::*;

/// The number of the purpose `legal_request`, which needs a reference and an approval.
const LEGAL: u32 = 11;

async fn people(channel: &Channel, key: &str) {
    let mut records = RecordServiceClient::new(channel.clone());
    for subject in ["ana", "bo", "cy"] {
        let put = pb::PutFieldsRequest {
            subject: subject.into(),
            values: vec![text_value(NAME, subject), text_value(EMAIL, &format!("{subject}@example.com"))],
            context: for_purpose(SERVICE),
            ..Default::default()
        };
        records.put_fields(with(key, put)).await.expect("put");
    }
}

fn ask(subjects: &[&str], verb: pb::Verb) -> pb::RequestApprovalRequest {
    pb::RequestApprovalRequest {
        subjects: subjects.iter().map(|s| (*s).to_owned()).collect(),
        grant: Some(pb::Grant {
            field_ids: vec![NAME, EMAIL],
            purpose_ids: vec![LEGAL],
            verbs: vec![verb as i32],
            max_view: pb::View::Plain as i32,
            ..Default::default()
        }),
        reference: "CASE-17".into(),
        ..Default::default()
    }
}

fn legal(approval: &str) -> Option<pb::AccessContext> {
    Some(pb::AccessContext {
        purpose_id: LEGAL,
        reference: "CASE-17".into(),
        approval: approval.into(),
        ..Default::default()
    })
}

fn batch(subjects: &[&str], approval: &str) -> pb::BatchGetFieldsRequest {
    pb::BatchGetFieldsRequest {
        keys: subjects.iter().map(|s| by_id(s).unwrap()).collect(),
        select: Some(pb::Selector { field_ids: vec![NAME], ..Default::default() }),
        context: legal(approval),
        ..Default::default()
    }
}

/// Asked by one, granted by the other, who sees what for; its name.
async fn granted(
    access: &mut AccessServiceClient<Channel>,
    one: &str,
    two: &str,
    ask: pb::RequestApprovalRequest,
) -> String {
    let asked = access.request_approval(with(one, ask)).await.expect("ask").into_inner().approval.unwrap();
    let list = access.list_approvals(with(two, pb::ListApprovalsRequest::default())).await.unwrap().into_inner();
    let seen = list.approvals.iter().find(|one| one.approval == asked.approval).expect("it is listed");
    assert_eq!(seen.reference, "CASE-17", "who decides sees what it is for");
    assert_eq!((&seen.subject, &seen.subjects), (&asked.subject, &asked.subjects));
    let yes = pb::ApproveRequest { approval: asked.approval.clone(), ..Default::default() };
    let yes = access.approve(with(two, yes)).await.expect("approve").into_inner().approval.unwrap();
    assert_eq!((yes.state(), yes.reference.as_str()), (pb::ApprovalState::Approved, "CASE-17"));
    asked.approval
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_of_a_list_opens_one_batch_of_it() {
    let running = Running::new().await;
    let tenant = running.test.tenant("alpha", JINA).await;
    let (one, two) = (running.key(tenant, "one").await, running.key(tenant, "two").await);
    people(&running.channel, &one).await;
    let mut access = AccessServiceClient::new(running.channel.clone());
    let mut records = RecordServiceClient::new(running.channel.clone());
    let read = |answer: &pb::BatchGetFieldsResponse| -> Vec<bool> {
        answer.outcomes.iter().map(|o| matches!(o.outcome, Some(pb::get_outcome::Outcome::Result(_)))).collect()
    };
    let plain = records.batch_get_fields(with(&one, batch(&["ana"], ""))).await.expect("answered").into_inner();
    assert_eq!(read(&plain), [false], "the purpose needs an approval");

    let approval = granted(&mut access, &one, &two, ask(&["bo", "ana"], pb::Verb::Read)).await;
    let more = records.batch_get_fields(with(&one, batch(&["ana", "cy"], &approval))).await.unwrap_err();
    assert_eq!(reason(&more), "APPROVAL_NEEDED", "cy is not on the list");
    let other = records.batch_get_fields(with(&two, batch(&["ana"], &approval))).await.unwrap_err();
    assert_eq!(reason(&other), "APPROVAL_NEEDED", "another asked for it");
    let got =
        records.batch_get_fields(with(&one, batch(&["ana", "bo"], &approval))).await.expect("the list").into_inner();
    assert_eq!(read(&got), [true, true]);
    let again = records.batch_get_fields(with(&one, batch(&["ana"], &approval))).await.unwrap_err();
    assert_eq!(reason(&again), "APPROVAL_NEEDED", "it is used up");

    let nobody = access.request_approval(with(&one, ask(&["ana", "nobody"], pb::Verb::Read))).await.unwrap_err();
    assert_eq!(reason(&nobody), "NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_takes_an_approval_that_names_nobody() {
    let running = Running::new().await;
    let tenant = running.test.tenant("alpha", JINA).await;
    let (one, two) = (running.key(tenant, "one").await, running.key(tenant, "two").await);
    people(&running.channel, &one).await;
    let mut access = AccessServiceClient::new(running.channel.clone());
    let mut subjects = SubjectServiceClient::new(running.channel.clone());
    let find = |approval: &str| pb::FindSubjectsRequest {
        term: Some(pb::Term { field_id: EMAIL, text: "bo@example.com".into(), ..Default::default() }),
        context: legal(approval),
        ..Default::default()
    };
    assert_eq!(reason(&subjects.find_subjects(with(&one, find(""))).await.unwrap_err()), "APPROVAL_NEEDED");
    let approval = granted(&mut access, &one, &two, ask(&[], pb::Verb::Find)).await;
    let values = pb::FindSubjectsRequest {
        select: Some(pb::Selector { field_ids: vec![NAME], ..Default::default() }),
        ..find(&approval)
    };
    assert_eq!(reason(&subjects.find_subjects(with(&one, values)).await.unwrap_err()), "NOT_SUPPORTED");
    let found = subjects.find_subjects(with(&one, find(&approval))).await.expect("find").into_inner();
    assert_eq!(found.subjects.iter().map(|s| s.subject.as_str()).collect::<Vec<_>>(), ["bo"]);
    assert_eq!(reason(&subjects.find_subjects(with(&one, find(&approval))).await.unwrap_err()), "APPROVAL_NEEDED");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_other_operators_override_the_holds_of_a_tenant() {
    let running = Running::new().await;
    let tenant = running.test.tenant("alpha", JINA).await;
    let key = running.key(tenant, "app").await;
    let mut operators = Vec::new();
    for name in ["root", "second", "third"] {
        operators.push(running.operator_key(name).await);
    }
    people(&running.channel, &key).await;
    let mut access = AccessServiceClient::new(running.channel.clone());
    let mut tenants = TenantServiceClient::new(running.channel.clone());
    let mut erasures = ErasureServiceClient::new(running.channel.clone());
    let hold = pb::PlaceHoldRequest {
        target: Some(pb::place_hold_request::Target::Key(by_id("ana").unwrap())),
        legal_basis: "dispute".into(),
        purpose_id: SERVICE,
        ..Default::default()
    };
    erasures.place_hold(with(&key, hold)).await.expect("hold");
    let erase = |approvals: &[String]| pb::EraseTenantRequest {
        tenant: "alpha".into(),
        confirm: "alpha".into(),
        approvals: approvals.to_vec(),
        ..Default::default()
    };
    assert_eq!(reason(&tenants.erase_tenant(with(&operators[0], erase(&[]))).await.unwrap_err()), "CLASS_HELD");

    let ask = || pb::RequestApprovalRequest {
        grant: Some(pb::Grant { verbs: vec![pb::Verb::Erase as i32], ..Default::default() }),
        reference: "CLOSING".into(),
        tenant: "alpha".into(),
        ..Default::default()
    };
    let mut approvals = Vec::new();
    for _ in 0..3 {
        let asked = access.request_approval(with(&operators[0], ask())).await.expect("ask").into_inner();
        approvals.push(asked.approval.unwrap().approval);
    }
    let list = pb::ListApprovalsRequest { tenant: "alpha".into(), ..Default::default() };
    let listed = access.list_approvals(with(&operators[1], list)).await.expect("list").into_inner().approvals;
    assert_eq!(listed.len(), 3);
    assert!(listed.iter().all(|one| one.reference == "CLOSING"));
    let approve = |i: usize| pb::ApproveRequest { approval: approvals[i].clone(), ..Default::default() };
    assert!(access.approve(with(&operators[0], approve(0))).await.is_err(), "not by who asked");
    access.approve(with(&operators[1], approve(0))).await.expect("the second");
    // The tenant's own key may approve what it likes: it is no operator's word.
    access.approve(with(&key, approve(1))).await.expect("the tenant's");
    let two = |a: usize, b: usize| erase(&[approvals[a].clone(), approvals[b].clone()]);
    for wrong in [erase(&approvals[..1]), two(0, 0), two(0, 1), two(0, 2)] {
        let refused = tenants.erase_tenant(with(&operators[0], wrong)).await.unwrap_err();
        assert_eq!(reason(&refused), "APPROVAL_NEEDED");
    }
    access.approve(with(&operators[2], approve(2))).await.expect("the third");
    let other = tenants.erase_tenant(with(&operators[1], two(0, 2))).await.unwrap_err();
    assert_eq!(reason(&other), "APPROVAL_NEEDED", "used by who asked for them");
    let check = pb::EraseTenantRequest { validate_only: true, ..two(0, 2) };
    tenants.erase_tenant(with(&operators[0], check)).await.expect("nothing is in the way");
    let done = tenants.erase_tenant(with(&operators[0], two(0, 2))).await.expect("erase").into_inner().erasure.unwrap();
    assert_eq!(done.status(), pb::ErasureStatus::Erased);
}
