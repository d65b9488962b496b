//! What people decide and ask for, over a socket: consents, objections, restrictions, and requests with their clocks.

use pii_vault::clock::Timestamp;
use pii_vault::grpc::pb;
use tonic::Code;

use crate::company::*;
use crate::harness::{JINA, START};
use crate::net::*;

#[tokio::test]
async fn a_restricted_class_is_used_for_legal_duties_only_and_can_be_erased() {
    let t = Tenant::of("jenny", JENNY).await;
    t.put("p-1", "service", &[("name", "Lucia"), ("device_kind", "phone")]).await;
    let restrict = async |end: bool| {
        let request = pb::RestrictClassRequest { key: by_id("p-1"), class_id: 1, end, ..Default::default() };
        t.rights().restrict_class(with(&t.key, request)).await.expect("restrict");
    };
    restrict(false).await;
    let refusal = t.read("p-1", &["name"], t.context("service", "")).await.unwrap_err();
    assert_eq!(refusal.code(), Code::PermissionDenied);
    t.read("p-1", &["device_kind"], t.context("service", "")).await.expect("another class");
    t.read("p-1", &["name"], t.context("legal_obligation", "")).await.expect("a legal duty");
    restrict(true).await;
    t.read("p-1", &["name"], t.context("service", "")).await.expect("no longer");
    restrict(false).await;
    let mut erasures = pb::erasure_service_client::ErasureServiceClient::new(t.running.channel.clone());
    let erase = pb::EraseSubjectRequest { key: by_id("p-1"), wait_final: true, ..Default::default() };
    erasures.erase_subject(with(&t.key, erase)).await.expect("erase");
    t.stop().await;
}

#[tokio::test]
async fn decisions_survive_a_restart_and_are_erased_with_the_person() {
    let t = Tenant::of("jina", JINA).await;
    t.put("p-1", "service", &[("name", "Asha"), ("email", "asha@example.com")]).await;
    t.consent("p-1", "marketing").await.expect("consent");
    t.object("p-1", "analytics", false).await.expect("object");
    let Tenant { running, no, key, text } = t;
    let test = running.stop().await.restart().await;
    let t = Tenant { running: Running::over(test).await, no, key, text };
    let rights = t.decided("p-1").await;
    assert_eq!((rights.consented_purpose_ids, rights.objected_purpose_ids), (vec![MARKETING], vec![ANALYTICS]));
    t.read("p-1", &["email"], t.context("marketing", "")).await.expect("still");

    let mut erasures = pb::erasure_service_client::ErasureServiceClient::new(t.running.channel.clone());
    let erase = pb::EraseSubjectRequest { key: by_id("p-1"), wait_final: true, ..Default::default() };
    let erasure = erasures.erase_subject(with(&t.key, erase)).await.expect("erase").into_inner().erasure.unwrap();
    assert_eq!(erasure.status, pb::ErasureStatus::Erased as i32);
    let receipt = String::from_utf8(erasure.receipt.to_vec()).unwrap();
    assert!(receipt.contains("rights"), "{receipt}");
    let again = pb::PutFieldsRequest {
        subject: "p-1".into(),
        values: vec![text_value(EMAIL, "asha@example.com")],
        context: for_purpose(SERVICE),
        mode: pb::WriteMode::Recreate as i32,
        ..Default::default()
    };
    t.records().put_fields(with(&t.key, again)).await.expect("a new life");
    assert!(t.decided("p-1").await.decisions.is_empty());
    let read = t.read("p-1", &["email"], t.context("marketing", "")).await.unwrap_err();
    assert_eq!(refused(&read), no_consent());
    t.stop().await;
}

#[tokio::test]
async fn who_closed_the_account_can_still_say_no() {
    let t = Tenant::of("jina", JINA).await;
    t.put("p-1", "service", &[("email", "asha@example.com")]).await;
    t.consent("p-1", "marketing").await.expect("consent");
    let mut subjects = pb::subject_service_client::SubjectServiceClient::new(t.running.channel.clone());
    let close = pb::CloseSubjectRequest { subject: "p-1".into(), ..Default::default() };
    subjects.close_subject(with(&t.key, close)).await.expect("close");
    t.read("p-1", &["email"], t.context("marketing", "")).await.expect("closed is readable");
    t.withdraw("p-1", "marketing").await;
    let read = t.read("p-1", &["email"], t.context("marketing", "")).await.unwrap_err();
    assert_eq!(refused(&read), no_consent());
    t.stop().await;
}

#[tokio::test]
async fn a_restore_does_not_bring_a_withdrawn_consent_back() {
    use pii_vault::ids::{ClassNo, DekVersion, Generation, ObjectId};
    use pii_vault::keyring::ledger::{LedgerEntry, LedgerKind};
    let t = Tenant::of("jina", JINA).await;
    t.put("p-1", "service", &[("email", "asha@example.com")]).await;
    t.consent("p-1", "marketing").await.expect("consent");
    let vault = &t.running.test.node.vault;
    let call = t.running.test.call(t.no);
    let uid = vault.get_subject(&call, &crate::harness::id("p-1")).await.expect("subject").subject.uid;
    // What the ledger has and a restored database has not.
    let entry = |kind, number| LedgerEntry {
        kind,
        tenant: t.no,
        uid,
        class: ClassNo(0),
        version: DekVersion(0),
        generation: Generation(0),
        at: START,
        object: ObjectId::random(),
        until: Timestamp(0),
        number,
    };
    let entries = [entry(LedgerKind::ConsentWithdrawn, MARKETING), entry(LedgerKind::Objected, ANALYTICS)];
    assert_eq!(vault.decide_again(&entries, &Default::default()).await.expect("again").refusals, 2);
    assert_eq!(vault.decide_again(&entries, &Default::default()).await.expect("twice").refusals, 0, "they stand");
    let read = t.read("p-1", &["email"], t.context("marketing", "")).await.unwrap_err();
    assert_eq!(refused(&read), no_consent());
    assert_eq!(t.decided("p-1").await.objected_purpose_ids, [ANALYTICS]);
    t.stop().await;
}

#[tokio::test]
async fn a_recipient_is_told_of_an_erasure_and_says_when_its_copy_is_gone() {
    let t = Tenant::of("jina", JINA).await;
    for (subject, phone) in [("p-1", "+919876543210"), ("p-2", "+919876543211")] {
        t.put(subject, "service", &[("name", "Asha"), ("phone", phone)]).await;
    }
    let got = t.read("p-1", &["phone"], t.context("delivery", "twilio")).await.expect("read");
    t.read("p-2", &["phone"], t.context("delivery", "twilio")).await.expect("read");
    t.read("p-1", &["name"], t.context("service", "")).await.expect("stays here");
    let preview = pb::PreviewErasureRequest {
        target: by_id("p-1").map(pb::preview_erasure_request::Target::Key),
        ..Default::default()
    };
    let preview = t.erasures().preview_erasure(with(&t.key, preview)).await.expect("preview").into_inner();
    let twilio = t.context("delivery", "twilio").recipient_id;
    assert_eq!(preview.recipient_ids, [twilio]);
    let pending = async || {
        let request = pb::ListDisclosuresRequest { recipient_id: twilio, pending: true, ..Default::default() };
        t.rights().list_disclosures(with(&t.key, request)).await.expect("pending").into_inner().disclosures
    };
    assert!(pending().await.is_empty(), "nothing is erased");

    let erasure = t.erase("p-1").await;
    assert_eq!(erasure.recipient_ids, [twilio]);
    let watch = pb::WatchErasuresRequest { recipient_ids: vec![twilio], ..Default::default() };
    let mut events = t.erasures().watch_erasures(with(&t.key, watch)).await.expect("watch").into_inner();
    let event = events.message().await.expect("event").expect("one");
    assert_eq!(
        (&event.recipient_ref, event.recipient_id),
        (&got.recipient_ref, twilio),
        "by the name that it was given"
    );
    assert_eq!(event.erasure, erasure.erasure);
    assert!(events.message().await.expect("end").is_none(), "nothing of p-2");
    let waits = pending().await;
    assert_eq!((waits.len(), &waits[0].recipient_ref), (1, &got.recipient_ref));

    let acknowledge = |recipient_id: u32, recipient_ref: &[u8]| pb::AcknowledgeErasureRequest {
        erasure: erasure.erasure.clone(),
        recipient_id,
        recipient_ref: recipient_ref.to_vec().into(),
        ..Default::default()
    };
    for (who, reference) in [(twilio + 1, &b""[..]), (twilio, &[7; 16][..])] {
        let wrong = t.erasures().acknowledge_erasure(with(&t.key, acknowledge(who, reference))).await.unwrap_err();
        assert_eq!(wrong.code(), Code::NotFound, "who holds no copy of that");
    }
    t.running.test.clock.advance_days(3);
    let said = acknowledge(twilio, &event.recipient_ref);
    let first = t.erasures().acknowledge_erasure(with(&t.key, said.clone())).await.expect("said").into_inner();
    assert_eq!(first.acknowledge_time, seconds(START.plus_days(3)));
    t.running.test.clock.advance_days(1);
    let again = t.erasures().acknowledge_erasure(with(&t.key, said)).await.expect("again").into_inner();
    assert_eq!(again.acknowledge_time, first.acknowledge_time, "the first time counts");
    assert!(pending().await.is_empty());
    let all = pb::ListDisclosuresRequest { recipient_id: twilio, page_size: 1, ..Default::default() };
    let page = t.rights().list_disclosures(with(&t.key, all.clone())).await.expect("list").into_inner();
    let next = pb::ListDisclosuresRequest { page_token: page.next_page_token.clone(), ..all };
    let rest = t.rights().list_disclosures(with(&t.key, next)).await.expect("list").into_inner();
    let both: Vec<_> = page.disclosures.iter().chain(&rest.disclosures).map(|d| d.acknowledge_time.is_some()).collect();
    assert_eq!(both, [true, false]);
    t.stop().await;
}

#[tokio::test]
async fn a_disclosure_outlives_the_audit_of_reads() {
    let t = Tenant::of("jina", JINA).await;
    t.put("p-1", "service", &[("phone", "+919876543210")]).await;
    t.read("p-1", &["phone"], t.context("delivery", "twilio")).await.expect("read");
    let before = t.disclosures("p-1").await.disclosures;
    assert_eq!((before.len(), before[0].reads), (1, 1));
    let Tenant { running, no, key, text } = t;
    let test = running.stop().await.restart().await;
    let reads = test.dir.path().join("data");
    // What a prune leaves of the reads of long ago: nothing.
    let gone = |dir: &std::path::Path| std::fs::read_dir(dir).is_ok_and(|mut all| all.next().is_some());
    assert!(gone(&reads));
    let t = Tenant { running: Running::over(test).await, no, key, text };
    t.days(800);
    for _ in 0..3 {
        t.due().await;
        t.running.test.node.vault.prune_reads(365).await.expect("prune");
    }
    let after = t.disclosures("p-1").await.disclosures;
    assert_eq!(after.len(), 1);
    assert_eq!((&after[0].field_ids, &after[0].recipient_ref), (&before[0].field_ids, &before[0].recipient_ref));
    assert_eq!((after[0].first_time, after[0].agreement.as_str()), (before[0].first_time, "DPA Twilio 2026"));
    t.stop().await;
}

#[tokio::test]
async fn two_tables_of_counts_never_differ_by_one_person() {
    let t = Tenant::of("jenny", JENNY).await;
    let told = async || {
        let counts = t.aggregate("device_kind", "improvement").await.expect("counts");
        let text = |cell: &pb::AggregateCell| match cell.value.clone().and_then(|v| v.kind) {
            Some(pb::value::Kind::Text(text)) => text,
            other => panic!("{other:?}"),
        };
        counts.cells.iter().map(|cell| (text(cell), cell.count)).collect::<Vec<_>>()
    };
    assert!(told().await.is_empty(), "nobody");
    for n in 0..45 {
        t.put(&format!("p-{n}"), "service", &[("device_kind", if n < 25 { "phone" } else { "tablet" })]).await;
    }
    let first = told().await;
    assert_eq!(first, [("phone".to_owned(), 25), ("tablet".to_owned(), 20)]);
    // The attack: ask before and after somebody comes, changes, objects, is erased.
    t.put("victim", "service", &[("device_kind", "phone")]).await;
    assert_eq!(told().await, first, "came");
    t.put("victim", "service", &[("device_kind", "tablet")]).await;
    assert_eq!(told().await, first, "changed");
    t.object("p-0", "improvement", false).await.expect("object");
    assert_eq!(told().await, first, "objected");
    t.erase("p-1").await;
    assert_eq!(told().await, first, "erased");
    for n in 0..16 {
        t.put(&format!("q-{n}"), "service", &[("device_kind", "phone")]).await;
        assert_eq!(told().await, first, "fewer than twenty have changed: {n}");
    }
    // The victim, one who objected, one who was erased, and seventeen new ones are twenty. People who share a bucket of the
    // sketch count as one, so it may take one or two more.
    let mut phones = 39;
    let second = loop {
        phones += 1;
        assert!(phones < 45, "twenty have changed, and more");
        t.put(&format!("s-{phones}"), "service", &[("device_kind", "phone")]).await;
        let counts = told().await;
        if counts != first {
            break counts;
        }
    };
    assert_eq!(second, [("phone".to_owned(), phones), ("tablet".to_owned(), 21)]);
    assert_eq!(told().await, second);
    // A group that falls below the threshold goes, and with it the next one, so that nothing follows from all.
    for n in 25..44 {
        t.erase(&format!("p-{n}")).await;
    }
    for n in 0..5 {
        t.put(&format!("r-{n}"), "service", &[("device_kind", "phone")]).await;
    }
    assert!(told().await.is_empty(), "2 tablets would follow from the number of people");
    t.stop().await;
}
