//! Looking for who is not there is in the audit like looking at who is; and a clock that jumped is confirmed by an operator.

use pii_vault::clock::DAY_MS;
use pii_vault::grpc::convert::wire_time;
use pii_vault::grpc::pb;
use pii_vault::grpc::pb::audit_service_client::AuditServiceClient;
use pii_vault::grpc::pb::operation_service_client::OperationServiceClient;
use pii_vault::grpc::pb::record_service_client::RecordServiceClient;
use pii_vault::grpc::pb::subject_service_client::SubjectServiceClient;

use crate::harness::JINA;
use crate::net::*;

#[tokio::test(flavor = "multi_thread")]
async fn t27_a_read_of_nobody_leaves_one_entry_however_many_it_names() {
    let running = Running::new().await;
    let tenant = running.test.tenant("alpha", JINA).await;
    let key = running.key(tenant, "app").await;
    let mut records = RecordServiceClient::new(running.channel.clone());
    let mut subjects = SubjectServiceClient::new(running.channel.clone());
    let mut audit = AuditServiceClient::new(running.channel.clone());
    let put = pb::PutFieldsRequest {
        subject: "ana".into(),
        values: vec![text_value(NAME, "Ana")],
        context: for_purpose(SERVICE),
        ..Default::default()
    };
    records.put_fields(with(&key, put)).await.expect("put");

    let get = pb::GetFieldsRequest { key: by_id("nobody"), context: for_purpose(SERVICE), ..Default::default() };
    assert_eq!(reason(&records.get_fields(with(&key, get)).await.unwrap_err()), "NOT_FOUND");
    let list = pb::ListItemsRequest {
        key: by_id("nobody"),
        field_id: MESSAGE,
        context: for_purpose(DELIVERY),
        ..Default::default()
    };
    assert_eq!(reason(&records.list_items(with(&key, list.clone())).await.unwrap_err()), "NOT_FOUND");
    let item = pb::GetItemRequest {
        key: by_id("nobody"),
        field_id: MESSAGE,
        item: "0000000000000001".into(),
        context: for_purpose(DELIVERY),
        ..Default::default()
    };
    assert_eq!(reason(&records.get_item(with(&key, item)).await.unwrap_err()), "NOT_FOUND");
    let export = pb::ExportSubjectRequest { key: by_id("nobody"), context: for_purpose(SERVICE), ..Default::default() };
    assert!(records.export_subject(with(&key, export)).await.is_err());
    let look = pb::GetSubjectRequest { key: by_id("nobody"), ..Default::default() };
    assert_eq!(reason(&subjects.get_subject(with(&key, look)).await.unwrap_err()), "NOT_FOUND");
    // One who is there among 99 who are not: two entries.
    let mut keys: Vec<_> = (0..99).map(|i| by_id(&format!("nobody-{i}")).unwrap()).collect();
    keys.push(by_id("ana").unwrap());
    let batch = pb::BatchGetFieldsRequest { keys, context: for_purpose(SERVICE), ..Default::default() };
    records.batch_get_fields(with(&key, batch)).await.expect("answered");
    // A field that nothing was put into leaves an entry too.
    let empty = pb::ListItemsRequest { key: by_id("ana"), ..list };
    assert!(records.list_items(with(&key, empty)).await.expect("no items").into_inner().items.is_empty());

    let list = pb::ListEntriesRequest { chain: pb::AuditChain::Reads as i32, ..Default::default() };
    let entries = audit.list_entries(with(&key, list)).await.expect("list").into_inner().entries;
    let seen: Vec<_> = entries.iter().map(|e| (e.action.as_str(), e.outcome(), e.subject_uid != 0)).collect();
    let (nobody, found) = (pb::AuditOutcome::NotFound, pb::AuditOutcome::Ok);
    let expected = [
        ("fields.get", nobody, false),
        ("items.list", nobody, false),
        ("items.get", nobody, false),
        ("subject.export", nobody, false),
        ("subject.get", nobody, false),
        ("fields.get", found, true),
        ("fields.get", nobody, false),
        ("items.list", found, true),
    ];
    assert_eq!(seen, expected);
    assert!(entries[0].field_ids.contains(&NAME) && entries[0].purpose_id == SERVICE, "what was asked for is said");
}

#[tokio::test(flavor = "multi_thread")]
async fn t37_an_operator_confirms_the_clock_of_a_running_server() {
    let running = Running::new().await;
    let tenant = running.test.tenant("alpha", JINA).await;
    let key = running.key(tenant, "app").await;
    let operator = running.operator_key("root").await;
    let mut operations = OperationServiceClient::new(running.channel.clone());
    let vault = running.test.node.vault.clone();
    vault.watch_clock().await.expect("watch");
    let get = || pb::GetClockRequest {};
    let clock = operations.get_clock(with(&operator, get())).await.expect("get").into_inner().clock.unwrap();
    assert!(clock.trusted && clock.seen_time.is_none());
    running.test.clock.jump_wall_ms(40 * DAY_MS);
    vault.watch_clock().await.expect("watch");
    let clock = operations.get_clock(with(&operator, get())).await.expect("get").into_inner().clock.unwrap();
    assert!(!clock.trusted && clock.seen_time.is_some() && clock.expected_time.is_some());
    assert!(vault.run_due_work(tenant).await.is_err());

    let confirm = |ms: i64| pb::ConfirmClockRequest {
        time: Some(wire_time(running.test.now().plus_ms(ms))),
        request_id: "67e55044-10b1-426f-9247-bb680e5fe0c8".into(),
    };
    assert_eq!(reason(&operations.confirm_clock(with(&key, confirm(0))).await.unwrap_err()), "NOT_PERMITTED");
    let apart = operations.confirm_clock(with(&operator, confirm(-40 * DAY_MS))).await.unwrap_err();
    assert_eq!(reason(&apart), "FIELD_INVALID", "the other clock says otherwise");
    for _ in 0..2 {
        let answer = operations.confirm_clock(with(&operator, confirm(1_000))).await.expect("confirm").into_inner();
        assert!(answer.clock.unwrap().trusted);
    }
    vault.watch_clock().await.expect("watch");
    vault.run_due_work(tenant).await.expect("what is due ends again");
}
