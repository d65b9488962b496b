//! Decoys: whoever reads one is told of within a second, and nobody who reads can tell who is one.

use std::time::{Duration, Instant};

use pii_vault::access::Verb;
use pii_vault::grpc::pb;
use pii_vault::grpc::pb::audit_service_client::AuditServiceClient;
use pii_vault::jobs::{Job, run_once};
use pii_vault::storage::ObjectKind;
use pii_vault::telemetry::DECOYS_READ;
use tonic::Code;
use tonic::transport::Channel;

use crate::company::Tenant;
use crate::harness::{JINA, PATIENCE, metrics_page};
use crate::net::*;

async fn mark(audit: &mut AuditServiceClient<Channel>, key: &str, subject: &str) -> pb::Decoy {
    let request = pb::MarkDecoyRequest { subject: subject.into(), ..Default::default() };
    audit.mark_decoy(with(key, request)).await.expect("mark").into_inner().decoy.expect("a decoy")
}

/// Alarms in the audit of reads: the key and the person of each.
async fn alarms(audit: &mut AuditServiceClient<Channel>, key: &str) -> Vec<(u64, i64)> {
    let request = pb::ListEntriesRequest {
        chain: pb::AuditChain::Reads as i32,
        actions: vec!["decoy.read".into()],
        page_size: 1_000,
        ..Default::default()
    };
    let entries = audit.list_entries(with(key, request)).await.expect("list").into_inner().entries;
    entries.iter().map(|entry| (entry.actor_id, entry.subject_uid)).collect()
}

fn counted() -> u64 {
    let page = metrics_page().render();
    page.lines().find_map(|line| line.strip_prefix(DECOYS_READ)?.trim().parse().ok()).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_decoy_alarms_within_a_second_and_looks_like_anybody() {
    metrics_page();
    let t = Tenant::of("jina", JINA).await;
    let channel = t.running.channel.clone();
    let officer = t.key.clone();
    let reader = t.running.key_for(t.no, "reader", &[Verb::Read, Verb::Find, Verb::Export, Verb::Subject]).await;
    let auditor = t.running.key_for(t.no, "auditor", &[Verb::Audit]).await;
    let mut audit = AuditServiceClient::new(channel.clone());
    let mut access = pb::access_service_client::AccessServiceClient::new(channel.clone());
    let mut subjects = pb::subject_service_client::SubjectServiceClient::new(channel.clone());
    let mut records = t.records();
    for (subject, name) in [("p-1", "Ana"), ("p-2", "Bo")] {
        let values = vec![text_value(NAME, name), text_value(EMAIL, &format!("{subject}@example.com"))];
        let put = pb::PutFieldsRequest {
            subject: subject.into(),
            values,
            context: for_purpose(SERVICE),
            ..Default::default()
        };
        records.put_fields(with(&officer, put)).await.expect("put");
    }
    let me = access.who_am_i(with(&reader, pb::WhoAmIRequest {})).await.unwrap().into_inner();
    let actor = me.access_key.expect("a key").actor_id;

    // Only who may issue keys marks, unmarks and sees decoys; an auditor and a reader do not.
    for key in [&reader, &auditor] {
        let request = pb::MarkDecoyRequest { subject: "p-1".into(), ..Default::default() };
        assert_eq!(audit.mark_decoy(with(key, request)).await.unwrap_err().code(), Code::PermissionDenied);
        let request = pb::UnmarkDecoyRequest { subject: "p-1".into(), ..Default::default() };
        assert_eq!(audit.unmark_decoy(with(key, request)).await.unwrap_err().code(), Code::PermissionDenied);
        let list = pb::ListDecoysRequest::default();
        assert_eq!(audit.list_decoys(with(key, list)).await.unwrap_err().code(), Code::PermissionDenied);
    }
    let decoy = mark(&mut audit, &officer, "p-1").await;
    assert_eq!(mark(&mut audit, &officer, "p-1").await, decoy, "twice is once");
    let nobody = pb::MarkDecoyRequest { subject: "nobody".into(), ..Default::default() };
    assert_eq!(reason(&audit.mark_decoy(with(&officer, nobody)).await.unwrap_err()), "NOT_FOUND");

    // Each way to see a person; somebody else's leaves no alarm, the decoy's one each.
    let get = |subject: &str| pb::GetFieldsRequest {
        key: by_id(subject),
        context: for_purpose(SERVICE),
        ..Default::default()
    };
    let looked = pb::GetSubjectRequest { key: by_id("p-2"), ..Default::default() };
    let other = records.get_fields(with(&reader, get("p-2"))).await.expect("get").into_inner();
    let state = subjects.get_subject(with(&reader, looked)).await.expect("look").into_inner();
    assert_eq!(alarms(&mut audit, &officer).await, []);
    let before = counted();
    let begun = Instant::now();
    let one = records.get_fields(with(&reader, get("p-1"))).await.expect("get").into_inner();
    // The promise is a second, on a machine that does not build or test beside it.
    while alarms(&mut audit, &officer).await.is_empty() {
        assert!(begun.elapsed() < PATIENCE, "no alarm");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let batch = pb::BatchGetFieldsRequest {
        keys: vec![by_id("p-2").unwrap(), by_id("p-1").unwrap()],
        context: for_purpose(SERVICE),
        ..Default::default()
    };
    records.batch_get_fields(with(&reader, batch)).await.expect("batch");
    let find = pb::FindSubjectsRequest {
        term: Some(pb::Term { field_id: EMAIL, text: "p-1@example.com".into(), ..Default::default() }),
        context: for_purpose(SERVICE),
        ..Default::default()
    };
    subjects.find_subjects(with(&reader, find)).await.expect("find");
    let export = pb::ExportSubjectRequest { key: by_id("p-1"), context: for_purpose(SERVICE), ..Default::default() };
    let mut stream = records.export_subject(with(&reader, export)).await.expect("export").into_inner();
    while stream.message().await.expect("a chunk").is_some() {}
    let looked = pb::GetSubjectRequest { key: by_id("p-1"), ..Default::default() };
    let state_of_decoy = subjects.get_subject(with(&reader, looked)).await.expect("look").into_inner();
    let refused = pb::GetFieldsRequest { context: for_purpose(MARKETING), ..get("p-1") };
    records.get_fields(with(&reader, refused)).await.expect_err("no consent");
    let begun = Instant::now();
    while alarms(&mut audit, &officer).await.len() < 6 {
        assert!(begun.elapsed() < PATIENCE, "{:?}", alarms(&mut audit, &officer).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(alarms(&mut audit, &officer).await, [(actor, decoy.subject_uid); 6]);
    assert_eq!(counted() - before, 6);

    // The answers have the same shape: nothing in them tells.
    let shape = |answer: &pb::GetFieldsResponse| {
        let values = answer.values.iter().map(|v| (v.field_id, v.absence, v.view, v.kind.is_some()));
        (values.collect::<Vec<_>>(), answer.state, answer.recipient_ref.len())
    };
    assert_eq!(shape(&one), shape(&other));
    let (a, b) = (state.subject.unwrap(), state_of_decoy.subject.unwrap());
    assert_eq!((a.state, a.group, a.classes.len()), (b.state, b.group, b.classes.len()));
    let list = pb::ListSubjectsRequest::default();
    let listed = subjects.list_subjects(with(&reader, list)).await.expect("list").into_inner().subjects;
    assert_eq!(listed.len(), 2, "a list has them like anybody, and a list alone is no alarm");
    assert_eq!(alarms(&mut audit, &officer).await.len(), 6);
    // Reports that sum up reads count the read, not the alarm: get, batch, export, and the search.
    let report = pb::ReportAccessRequest { actor_ids: vec![actor], ..Default::default() };
    let accesses = audit.report_access(with(&officer, report)).await.expect("report").into_inner().accesses;
    let of_decoy = accesses.iter().find(|one| one.subject_uid == decoy.subject_uid).expect("read");
    assert_eq!(of_decoy.read_count, 4);

    // A restart knows them; what the store has of it names nobody.
    let Tenant { running, no, key, text } = t;
    let test = running.stop().await.restart().await;
    let rows = test.node.store.objects(no, ObjectKind::Decoy, vec![], vec![], 10).await.unwrap().rows;
    assert_eq!(rows.len(), 1);
    let uid = decoy.subject_uid;
    assert!(!rows[0].body.windows(8).any(|part| part == uid.to_be_bytes() || part == uid.to_le_bytes()));
    let t = Tenant { running: Running::over(test).await, no, key, text };
    let mut audit = AuditServiceClient::new(t.running.channel.clone());
    t.records().get_fields(with(&reader, get("p-1"))).await.expect("get");
    let begun = Instant::now();
    while alarms(&mut audit, &officer).await.len() < 7 {
        assert!(begun.elapsed() < PATIENCE, "{:?}", alarms(&mut audit, &officer).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(alarms(&mut audit, &officer).await.len(), 7);

    // Unmarked, it is nobody special; marked again and erased, it is over, and the job takes the row away.
    let unmark = pb::UnmarkDecoyRequest { subject: "p-1".into(), ..Default::default() };
    audit.unmark_decoy(with(&officer, unmark.clone())).await.expect("unmark");
    assert_eq!(reason(&audit.unmark_decoy(with(&officer, unmark)).await.unwrap_err()), "NOT_FOUND");
    t.records().get_fields(with(&reader, get("p-1"))).await.expect("get");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(alarms(&mut audit, &officer).await.len(), 7);
    mark(&mut audit, &officer, "p-1").await;
    let mut erasures = pb::erasure_service_client::ErasureServiceClient::new(t.running.channel.clone());
    let erase = pb::EraseSubjectRequest { key: by_id("p-1"), wait_final: true, ..Default::default() };
    erasures.erase_subject(with(&officer, erase)).await.expect("erase");
    t.records().get_fields(with(&reader, get("p-1"))).await.expect_err("erased");
    let list = pb::ListDecoysRequest::default();
    assert_eq!(audit.list_decoys(with(&officer, list)).await.expect("list").into_inner().decoys, []);
    let (node, jobs) = (&t.running.test.node, t.running.test.config.jobs_options());
    run_once(Job::Rotation, &node.vault, &node.backups, &jobs, 1_000).await.expect("job");
    assert!(node.store.objects(no, ObjectKind::Decoy, vec![], vec![], 10).await.unwrap().rows.is_empty());
    assert_eq!(alarms(&mut audit, &officer).await.len(), 7);
    t.stop().await;
}
