//! Which subjects and fields a lost access key read: told from the audit.

use pii_vault::access::Verb;
use pii_vault::grpc::pb;

use crate::harness::JINA;
use crate::net::*;

const HOUR_MS: i64 = 3_600_000;

#[tokio::test(flavor = "multi_thread")]
async fn je20_which_subjects_and_fields_a_stolen_key_read_between_two_times_is_told_from_the_audit() {
    let running = Running::new().await;
    let tenant = running.test.tenant("alpha", JINA).await;
    let (officer, stolen) = (running.key(tenant, "officer").await, running.key(tenant, "stolen").await);
    let auditor = running.key_for(tenant, "auditor", &[Verb::Audit]).await;
    let other = running.test.tenant("beta", JINA).await;
    let foreign = running.key(other, "officer").await;
    let channel = running.channel.clone();
    let mut records = pb::record_service_client::RecordServiceClient::new(channel.clone());
    let mut audit = pb::audit_service_client::AuditServiceClient::new(channel.clone());
    let mut access = pb::access_service_client::AccessServiceClient::new(channel.clone());
    let mut erasures = pb::erasure_service_client::ErasureServiceClient::new(channel.clone());
    for subject in ["ana", "bo", "cy"] {
        let values = vec![text_value(NAME, "A name"), text_value(EMAIL, &format!("{subject}@example.com"))];
        let context = for_purpose(SERVICE);
        let put = pb::PutFieldsRequest { subject: subject.into(), values, context, ..Default::default() };
        records.put_fields(with(&officer, put)).await.expect("put");
    }
    let get = |subject: &str, fields: &[u32]| pb::GetFieldsRequest {
        key: by_id(subject),
        select: Some(pb::Selector { field_ids: fields.to_vec(), ..Default::default() }),
        context: for_purpose(SERVICE),
        ..Default::default()
    };
    let whose = access.who_am_i(with(&stolen, pb::WhoAmIRequest {})).await.unwrap().into_inner();
    let actor = whose.access_key.expect("a key").actor_id;
    let clock = running.test.clock.clone();
    let time = |ms: i64| Some(prost_types::Timestamp { seconds: ms / 1_000, nanos: 0 });
    let start = running.test.now().0;

    // In the first hour one field of one person; in the second, two people. Others read, too, and some reads show nothing.
    records.get_fields(with(&stolen, get("ana", &[NAME]))).await.expect("get");
    clock.advance_ms(HOUR_MS);
    records.get_fields(with(&stolen, get("ana", &[NAME, EMAIL]))).await.expect("get");
    records.get_fields(with(&stolen, get("bo", &[EMAIL]))).await.expect("get");
    records.get_fields(with(&officer, get("cy", &[NAME]))).await.expect("get");
    records.get_fields(with(&stolen, get("nobody", &[NAME]))).await.unwrap_err();
    let unknown = pb::GetFieldsRequest { context: for_purpose(MARKETING), ..get("cy", &[NAME]) };
    records.get_fields(with(&stolen, unknown)).await.unwrap_err();
    clock.advance_ms(HOUR_MS);

    let of_key = |from: i64, to: i64| pb::ReportAccessRequest {
        actor_ids: vec![actor],
        start_time: time(from),
        end_time: time(to),
        ..Default::default()
    };
    let mut ask = async |key: &str, request: pb::ReportAccessRequest| {
        audit.report_access(with(key, request)).await.expect("report").into_inner()
    };
    let brief = |answer: &pb::ReportAccessResponse| -> Vec<(String, Vec<u32>, u64)> {
        answer.accesses.iter().map(|a| (a.subject.clone(), a.field_ids.clone(), a.read_count)).collect()
    };
    let both = vec![("ana".to_string(), vec![NAME, EMAIL], 2), ("bo".into(), vec![EMAIL], 1)];
    let all = ask(&officer, of_key(start, start + 2 * HOUR_MS)).await;
    assert_eq!((brief(&all), all.next_page_token.as_str()), (both.clone(), ""));
    assert_eq!(all.accesses[0].purpose_ids, [SERVICE]);
    let (first, last) = (all.accesses[0].first_time.unwrap(), all.accesses[0].last_time.unwrap());
    assert_eq!((last.seconds - first.seconds) * 1_000, HOUR_MS);
    let early = ask(&officer, of_key(start, start + HOUR_MS)).await;
    assert_eq!(brief(&early), [("ana".to_string(), vec![NAME], 1)]);
    let late = ask(&officer, of_key(start + HOUR_MS, start + 2 * HOUR_MS)).await;
    assert_eq!(brief(&late), [("ana".to_string(), vec![NAME, EMAIL], 1), ("bo".into(), vec![EMAIL], 1)]);
    let everybody = ask(&officer, pb::ReportAccessRequest::default()).await;
    assert_eq!(everybody.accesses.len(), 3, "by anybody");

    // In pages the same.
    let mut pages = Vec::new();
    let mut request = pb::ReportAccessRequest { page_size: 1, ..of_key(start, start + 2 * HOUR_MS) };
    loop {
        let page = ask(&officer, request.clone()).await;
        pages.extend(brief(&page));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(pages, both);

    // Who may only look at the audit sees numbers; who is erased is one.
    let numbers = ask(&auditor, of_key(start, start + 2 * HOUR_MS)).await;
    assert!(numbers.accesses.iter().all(|a| a.subject.is_empty() && a.subject_uid > 0), "{numbers:?}");
    let erase = pb::EraseSubjectRequest { key: by_id("bo"), wait_final: true, ..Default::default() };
    erasures.erase_subject(with(&officer, erase)).await.expect("erase");
    let after = ask(&officer, of_key(start, start + 2 * HOUR_MS)).await;
    assert_eq!(after.accesses[1].subject, "");
    assert_eq!(after.accesses[1].subject_uid, all.accesses[1].subject_uid);
    assert!(ask(&foreign, of_key(start, start + 2 * HOUR_MS)).await.accesses.is_empty(), "another tenant's audit");

    // A follower that wants what is there now gets it without a gap, and the stream ends.
    for (chain, start) in [(pb::AuditChain::Reads, 1), (pb::AuditChain::Changes, 1), (pb::AuditChain::Reads, 1_000)] {
        let chain = chain as i32;
        let follow = pb::FollowEntriesRequest { chain, start_position: start, until_now: true, ..Default::default() };
        let mut stream = audit.follow_entries(with(&officer, follow)).await.expect("follow").into_inner();
        let mut positions = Vec::new();
        while let Some(message) = stream.message().await.expect("a message") {
            positions.extend(message.entries.iter().map(|entry| entry.position));
        }
        let expected: Vec<u64> = (start..start + positions.len() as u64).collect();
        assert_eq!(positions, expected);
        assert_eq!(positions.is_empty(), start > 1);
    }
    running.stop().await;
}
