//! The API over a socket: what a first program does, and what it is refused.

use pb::record_service_client::RecordServiceClient;
use pb::subject_service_client::SubjectServiceClient;
use pii_vault::grpc::pb;
use tonic::Code;

use crate::harness::JINA;
use crate::net::*;

fn put(subject: &str, values: Vec<pb::Value>) -> pb::PutFieldsRequest {
    pb::PutFieldsRequest { subject: subject.into(), values, context: for_purpose(SERVICE), ..Default::default() }
}

fn get(subject: &str) -> pb::GetFieldsRequest {
    pb::GetFieldsRequest { key: by_id(subject), context: for_purpose(SERVICE), ..Default::default() }
}

fn texts(values: &[pb::Value]) -> Vec<(u32, &str)> {
    let text = |v: &pb::Value| match &v.kind {
        Some(pb::value::Kind::Text(_)) => v.field_id,
        _ => 0,
    };
    values
        .iter()
        .map(|v| match &v.kind {
            Some(pb::value::Kind::Text(t)) => (text(v), t.as_str()),
            _ => (v.field_id, ""),
        })
        .collect()
}

#[tokio::test]
async fn what_is_put_is_read_found_exported_and_deleted() {
    let running = Running::new().await;
    let tenant = running.test.tenant("jina", JINA).await;
    let key = running.key(tenant, "app").await;
    let mut records = RecordServiceClient::new(running.channel.clone());
    let mut subjects = SubjectServiceClient::new(running.channel.clone());

    let values = vec![text_value(NAME, "Zoë Ünal"), text_value(EMAIL, "zoe+x@example.com")];
    let done = records.put_fields(with(&key, put("usr_1", values))).await.expect("put").into_inner();
    assert!(done.created && !done.etag.is_empty() && done.commit_time.is_some());

    let got = records.get_fields(with(&key, get("usr_1"))).await.expect("get").into_inner();
    assert_eq!(texts(&got.values), [(NAME, "Zoë Ünal"), (EMAIL, "zoe+x@example.com")]);
    assert_eq!((got.etag, got.state), (done.etag, 0));

    // By its unique value, by names, masked.
    let unique = pb::UniqueValue { field_id: EMAIL, text: " ZOE+X@example.com".into() };
    let masked = pb::GetFieldsRequest {
        key: Some(pb::SubjectKey { key: Some(pb::subject_key::Key::Unique(unique)) }),
        select: Some(pb::Selector {
            fields: Some(prost_types::FieldMask { paths: vec!["email".into(), "phone".into()] }),
            ..Default::default()
        }),
        view: pb::View::Masked as i32,
        ..get("")
    };
    let got = records.get_fields(with(&key, masked)).await.expect("get masked").into_inner();
    assert!(!texts(&got.values)[0].1.contains("zoe+x") && got.values[0].view == pb::View::Masked as i32);
    assert_eq!((got.values[1].field_id, got.values[1].absence), (3, pb::Absence::NeverSet as i32));

    let find = pb::FindSubjectsRequest {
        term: Some(pb::Term { field_id: EMAIL, text: "zoe+x@EXAMPLE.com".into(), ..Default::default() }),
        context: for_purpose(SERVICE),
        select: Some(pb::Selector { field_ids: vec![NAME], ..Default::default() }),
        ..Default::default()
    };
    let found = subjects.find_subjects(with(&key, find)).await.expect("find").into_inner().subjects;
    assert_eq!((found.len(), found[0].subject.as_str()), (1, "usr_1"));
    assert_eq!(texts(&found[0].values), [(NAME, "Zoë Ünal")]);

    // Items, page by page, in order.
    let items = (0..5).map(|i| pb::NewItem {
        values: vec![text_value(0, &format!("message {i}"))],
        origin_time: Some(prost_types::Timestamp { seconds: 1_768_470_000 + i, nanos: 0 }),
    });
    let append = pb::AppendItemsRequest {
        subject: "usr_1".into(),
        field: "message".into(),
        items: items.collect(),
        context: for_purpose(DELIVERY),
        ..Default::default()
    };
    let added = records.append_items(with(&key, append)).await.expect("append").into_inner().items;
    assert!(added.len() == 5 && added.iter().all(|item| item.expire_time.is_some()));
    let mut list = pb::ListItemsRequest {
        key: by_id("usr_1"),
        field_id: MESSAGE,
        context: for_purpose(DELIVERY),
        page_size: 2,
        ..Default::default()
    };
    let (mut seen, mut names) = (Vec::new(), Vec::new());
    loop {
        let page = records.list_items(with(&key, list.clone())).await.expect("list").into_inner();
        seen.extend(page.items.iter().map(|item| texts(&item.values)[0].1.to_owned()));
        names.extend(page.items.into_iter().map(|item| item.item));
        if page.next_page_token.is_empty() {
            break;
        }
        list.page_token = page.next_page_token;
    }
    assert_eq!(seen, ["message 0", "message 1", "message 2", "message 3", "message 4"]);
    assert!(names.is_sorted());
    let other = pb::ListItemsRequest { key: by_id("usr_2"), ..list };
    let refused = records.list_items(with(&key, other)).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::InvalidArgument, "PAGE_TOKEN_INVALID"));

    // Export: one document, which goes on where it was interrupted.
    for (format, needle) in [(pb::ExportFormat::Json, "\"Zoë Ünal\""), (pb::ExportFormat::Csv, ",,Zoë Ünal\r\n")] {
        let request = pb::ExportSubjectRequest {
            key: by_id("usr_1"),
            context: for_purpose(SERVICE),
            format: format as i32,
            ..Default::default()
        };
        let mut stream = records.export_subject(with(&key, request.clone())).await.expect("export").into_inner();
        let (mut document, mut etag, mut hash) = (Vec::new(), String::new(), Vec::new());
        while let Some(chunk) = stream.message().await.expect("chunk") {
            document.extend_from_slice(&chunk.data);
            etag = if etag.is_empty() { chunk.etag } else { etag };
            hash = chunk.sha256.to_vec();
        }
        let text = String::from_utf8(document.clone()).unwrap();
        assert!(text.contains(needle), "{text}");
        if format == pb::ExportFormat::Json {
            let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(json["fields"]["email"]["value"], "zoe+x@example.com");
            assert_eq!(json["subject"], "usr_1");
        }
        use sha2::Digest;
        assert_eq!(hash, sha2::Sha256::digest(&document).to_vec());
        let rest = pb::ExportSubjectRequest { offset: 10, etag, ..request.clone() };
        let mut stream = records.export_subject(with(&key, rest)).await.expect("resume").into_inner();
        let mut tail = Vec::new();
        while let Some(chunk) = stream.message().await.expect("chunk") {
            tail.extend_from_slice(&chunk.data);
        }
        assert_eq!(tail, document[10..]);
        let stale = pb::ExportSubjectRequest { etag: "0-00".into(), ..request };
        let stale = records.export_subject(with(&key, stale)).await.unwrap_err();
        assert_eq!(reason(&stale), "ETAG_STALE");
    }

    let delete = pb::DeleteFieldsRequest {
        subject: "usr_1".into(),
        select: Some(pb::Selector { field_ids: vec![NAME], ..Default::default() }),
        context: for_purpose(SERVICE),
        ..Default::default()
    };
    let gone = records.delete_fields(with(&key, delete)).await.expect("delete").into_inner();
    assert_eq!(gone.deleted_field_ids, [NAME]);
    let got = records.get_fields(with(&key, get("usr_1"))).await.unwrap().into_inner();
    assert_eq!(texts(&got.values), [(EMAIL, "zoe+x@example.com")]);
    running.stop().await;
}

#[tokio::test]
async fn a_batch_answers_for_each_and_its_repeat_does_nothing_twice() {
    let running = Running::new().await;
    let tenant = running.test.tenant("jina", JINA).await;
    let key = running.key(tenant, "app").await;
    let mut records = RecordServiceClient::new(running.channel.clone());
    let put_of = |i: usize, email: &str| pb::SubjectPut {
        subject: format!("usr_{i}"),
        values: vec![text_value(EMAIL, email)],
        ..Default::default()
    };
    let mut puts: Vec<_> = (0..40).map(|i| put_of(i, &format!("u{i}@example.com"))).collect();
    puts[7].values = vec![text_value(EMAIL, "no address")];
    let batch = pb::BatchPutFieldsRequest {
        puts,
        context: for_purpose(SERVICE),
        request_id: "67e55044-10b1-426f-9247-bb680e5fe0c8".into(),
        ..Default::default()
    };
    let first = records.batch_put_fields(with(&key, batch.clone())).await.expect("batch").into_inner().outcomes;
    for (i, outcome) in first.iter().enumerate() {
        match outcome.outcome.as_ref().unwrap() {
            pb::put_outcome::Outcome::Put(done) => assert!(i != 7 && done.created),
            pb::put_outcome::Outcome::Error(error) => {
                assert_eq!((i, error.reason.as_str(), error.code), (7, "VALUE_INVALID", Code::InvalidArgument as i32));
                assert!(!error.violations.is_empty() && !format!("{error:?}").contains("no address"));
            }
        }
    }
    let again = records.batch_put_fields(with(&key, batch.clone())).await.expect("repeat").into_inner().outcomes;
    assert_eq!(first, again);
    let mut other = batch.clone();
    other.puts[0].values = vec![text_value(EMAIL, "z@example.com")];
    let other = records.batch_put_fields(with(&key, other)).await.expect("reused").into_inner().outcomes;
    let reused = |o: &pb::PutOutcome| matches!(&o.outcome, Some(pb::put_outcome::Outcome::Error(e)) if e.reason == "REQUEST_ID_REUSED");
    assert!(reused(&other[0]) && reused(&other[1]), "{:?}", other[0]);

    let keys = (0..41).map(|i| by_id(&format!("usr_{i}")).unwrap()).collect();
    let request = pb::BatchGetFieldsRequest { keys, context: for_purpose(SERVICE), ..Default::default() };
    let got = records.batch_get_fields(with(&key, request)).await.expect("batch get").into_inner().outcomes;
    for (i, outcome) in got.iter().enumerate() {
        match outcome.outcome.as_ref().unwrap() {
            pb::get_outcome::Outcome::Result(got) => {
                assert_eq!(texts(&got.values), [(EMAIL, format!("u{i}@example.com").as_str())])
            }
            pb::get_outcome::Outcome::Error(error) => assert!((i == 7 || i == 40) && error.reason == "NOT_FOUND"),
        }
    }
    let nobody = vec![by_id("nobody").unwrap()];
    let nobody = pb::BatchGetFieldsRequest { keys: nobody, context: for_purpose(SERVICE), ..Default::default() };
    let got = records.batch_get_fields(with(&key, nobody)).await.expect("nobody is there").into_inner().outcomes;
    assert!(matches!(&got[0].outcome, Some(pb::get_outcome::Outcome::Error(e)) if e.reason == "NOT_FOUND"));
    let twice = pb::BatchPutFieldsRequest { puts: vec![put_of(1, "a@b.example"), put_of(1, "c@d.example")], ..batch };
    assert_eq!(records.batch_put_fields(with(&key, twice)).await.unwrap_err().code(), Code::InvalidArgument);
    running.stop().await;
}

#[tokio::test]
async fn a_field_whose_capability_is_not_there_is_refused_by_name() {
    let running = Running::new().await;
    let tenant = running.test.tenant("jina", JINA).await;
    let key = running.key(tenant, "app").await;
    let mut records = RecordServiceClient::new(running.channel.clone());
    let good = put("usr_1", vec![text_value(NAME, "Ann")]);
    let context = |set: fn(&mut pb::AccessContext)| {
        let mut context = for_purpose(SERVICE).unwrap();
        set(&mut context);
        pb::PutFieldsRequest { context: Some(context), ..good.clone() }
    };
    let mut sourced = good.clone();
    sourced.values[0].source_id = 3;
    for (request, field) in [
        (context(|c| c.acting_for = "usr_9".into()), "context.acting_for"),
        (pb::PutFieldsRequest { consents: vec![pb::ConsentGrant::default()], ..good.clone() }, "consents"),
        (sourced, "values[0].source_id"),
    ] {
        let refused = records.put_fields(with(&key, request)).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unimplemented, "NOT_SUPPORTED"), "{field}");
        use tonic_types::StatusExt;
        assert_eq!(refused.get_error_details().error_info().unwrap().metadata["field"], field);
    }
    let token = pb::GetFieldsRequest { view: pb::View::Token as i32, ..get("usr_1") };
    assert_eq!(reason(&records.get_fields(with(&key, token)).await.unwrap_err()), "NOT_SUPPORTED");
    assert_eq!(
        records.get_fields(with(&key, get("usr_1"))).await.unwrap_err().code(),
        Code::NotFound,
        "nothing was put"
    );
    running.stop().await;
}

/// T22: one spelling of a name, or a refusal; never a second name for the same thing.
#[tokio::test]
async fn t22_a_name_has_one_spelling() {
    let running = Running::new().await;
    let tenant = running.test.tenant("jina", JINA).await;
    let key = running.key(tenant, "app").await;
    let mut records = RecordServiceClient::new(running.channel.clone());
    records.put_fields(with(&key, put("anna.b", vec![text_value(NAME, "Anna")]))).await.expect("put");
    for other in ["Anna.b", "ANNA.B", "anna.b.", "anna..b", ".anna.b", "anna_b"] {
        let refused = records.get_fields(with(&key, get(other))).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{other:?} is a name of its own");
    }
    let look_alikes =
        ["\u{430}nna.b", "ａnna.b", "anna\u{200b}.b", "anna\u{2024}b", "e\u{301}", "\u{e9}", "\u{202e}b.anna"];
    let broken = [" anna.b", "anna.b ", "anna b", "anna.b\0", "anna\n.b", "anna/b", "", "anna%2eb"];
    for bad in look_alikes.iter().chain(&broken) {
        for request in [get(bad)] {
            let refused = records.get_fields(with(&key, request)).await.unwrap_err();
            assert_eq!(
                (refused.code(), reason(&refused).as_str()),
                (Code::InvalidArgument, "FIELD_INVALID"),
                "{bad:?}"
            );
            assert!(bad.is_empty() || !refused.message().contains(bad), "the text is repeated");
        }
        let refused = records.put_fields(with(&key, put(bad, vec![text_value(NAME, "x")]))).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{bad:?}");
    }
    for bad in ["Email", "email ", "ｅmail", "e-mail\0", "emai\u{131}"] {
        let mut value = text_value(0, "a@example.com");
        value.field = bad.into();
        let refused = records.put_fields(with(&key, put("usr_2", vec![value]))).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{bad:?}");
    }
    // What people type finds what was stored, whatever the Unicode form.
    let mut subjects = SubjectServiceClient::new(running.channel.clone());
    records
        .put_fields(with(&key, put("usr_3", vec![text_value(EMAIL, "jos\u{e9}@example.com")])))
        .await
        .expect("put NFC");
    let find = pb::FindSubjectsRequest {
        term: Some(pb::Term { field_id: EMAIL, text: "JOSE\u{301}@example.com".into(), ..Default::default() }),
        context: for_purpose(SERVICE),
        ..Default::default()
    };
    let found = subjects.find_subjects(with(&key, find)).await.expect("find NFD").into_inner().subjects;
    assert_eq!(found.iter().map(|s| s.subject.as_str()).collect::<Vec<_>>(), ["usr_3"]);
    running.stop().await;
}

#[tokio::test]
async fn an_operator_erases_a_tenant_once_and_its_keys_open_nothing() {
    let running = Running::new().await;
    let tenant = running.test.tenant("jina", JINA).await;
    let key = running.key(tenant, "app").await;
    let operator = running.operator_key("root").await;
    let mut records = RecordServiceClient::new(running.channel.clone());
    let mut tenants = pb::tenant_service_client::TenantServiceClient::new(running.channel.clone());
    let mut erasures = pb::erasure_service_client::ErasureServiceClient::new(running.channel.clone());
    records.put_fields(with(&key, put("usr_1", vec![text_value(NAME, "Ann")]))).await.expect("put");
    let erase = pb::EraseTenantRequest {
        tenant: "jina".into(),
        confirm: "jina".into(),
        request_id: "67e55044-10b1-426f-9247-bb680e5fe0c8".into(),
        ..Default::default()
    };
    let slip = pb::EraseTenantRequest { confirm: "jiwa".into(), ..erase.clone() };
    assert_eq!(tenants.erase_tenant(with(&operator, slip)).await.unwrap_err().code(), Code::InvalidArgument);
    let check = pb::EraseTenantRequest { validate_only: true, request_id: String::new(), ..erase.clone() };
    tenants.erase_tenant(with(&operator, check)).await.expect("nothing is in the way");
    records.get_fields(with(&key, get("usr_1"))).await.expect("nothing was done yet");
    let first =
        tenants.erase_tenant(with(&operator, erase.clone())).await.expect("erase").into_inner().erasure.unwrap();
    assert_eq!(first.status, pb::ErasureStatus::Erased as i32);
    assert!(!first.receipt.is_empty() && first.kind == pb::ErasureKind::Tenant as i32);
    let again = tenants.erase_tenant(with(&operator, erase)).await.expect("repeat").into_inner().erasure.unwrap();
    assert_eq!(first, again);
    let receipt = pb::GetReceiptRequest { erasure: first.erasure };
    let receipt = erasures.get_receipt(with(&operator, receipt)).await.expect("receipt").into_inner().receipt;
    assert_eq!(receipt, first.receipt);
    let refused = records.get_fields(with(&key, get("usr_1"))).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
    running.stop().await;
}

#[tokio::test]
async fn a_test_tenants_clock_ends_what_time_ends_before_it_answers() {
    let running = Running::new().await;
    let tenant = running.test.tenant("jina", JINA).await;
    let key = running.key(tenant, "app").await;
    let mut records = RecordServiceClient::new(running.channel.clone());
    let mut tenants = pb::tenant_service_client::TenantServiceClient::new(running.channel.clone());
    records.put_fields(with(&key, put("usr_1", vec![text_value(NAME, "Ann")]))).await.expect("put");
    let append = pb::AppendItemsRequest {
        subject: "usr_1".into(),
        field_id: MESSAGE,
        items: vec![pb::NewItem { values: vec![text_value(0, "hello")], origin_time: None }],
        context: for_purpose(DELIVERY),
        ..Default::default()
    };
    records.append_items(with(&key, append)).await.expect("append");
    let list = pb::ListItemsRequest {
        key: by_id("usr_1"),
        field_id: MESSAGE,
        context: for_purpose(DELIVERY),
        ..Default::default()
    };
    let advance = |days: i64, request_id: &str| pb::AdvanceClockRequest {
        advance: Some(prost_types::Duration { seconds: days * 86_400, nanos: 0 }),
        request_id: request_id.into(),
        ..Default::default()
    };
    let one = "67e55044-10b1-426f-9247-bb680e5fe0c8";
    let first = tenants.advance_clock(with(&key, advance(89, one))).await.expect("89 days").into_inner();
    let again = tenants.advance_clock(with(&key, advance(89, one))).await.expect("a repeat").into_inner();
    assert_eq!(first, again, "the clock moved once");
    assert_eq!(records.list_items(with(&key, list.clone())).await.expect("day 89").into_inner().items.len(), 1);
    tenants.advance_clock(with(&key, advance(2, ""))).await.expect("2 days more");
    assert!(records.list_items(with(&key, list)).await.expect("day 91").into_inner().items.is_empty());
    records.get_fields(with(&key, get("usr_1"))).await.expect("account data stays");
    running.stop().await;
}

#[tokio::test]
async fn policies_applied_at_the_same_time_follow_one_another() {
    let running = Running::new().await;
    let tenant = running.test.tenant("jina", JINA).await;
    let key = running.key(tenant, "app").await;
    let policies = pb::policy_service_client::PolicyServiceClient::new(running.channel.clone());
    let apply = |etag: &str| pb::ApplyPolicyRequest { policy: JINA.into(), etag: etag.into(), ..Default::default() };
    let calls = (0..4).map(|_| {
        let (mut policies, request) = (policies.clone(), with(&key, apply("")));
        async move { policies.apply_policy(request).await }
    });
    let (mut done, mut lost) = (0, 0);
    for answer in futures_util::future::join_all(calls).await {
        match answer {
            Ok(_) => done += 1,
            Err(status) => {
                assert_eq!(status.code(), Code::Aborted, "{status:?}");
                lost += 1;
            }
        }
    }
    assert!(done >= 1 && done + lost == 4);
    let mut policies = policies;
    let last = policies.apply_policy(with(&key, apply(""))).await.expect("the next").into_inner().version.unwrap();
    assert_eq!((last.version, last.active), (done + 2, true));
    let stale = policies.apply_policy(with(&key, apply("1"))).await.unwrap_err();
    assert_eq!(reason(&stale), "ETAG_STALE");
    let list = policies.list_policy_versions(with(&key, pb::ListPolicyVersionsRequest::default())).await;
    let numbers: Vec<u32> = list.unwrap().into_inner().versions.iter().map(|v| v.version).collect();
    assert_eq!(numbers, (1..=done + 2).collect::<Vec<_>>());
    running.stop().await;
}

/// Numbers of items are drawn, and thousands of one moment (a file that knows days alone) draw the same ones now and then.
#[tokio::test]
async fn items_of_one_moment_are_never_written_over_one_another() {
    let running = Running::new().await;
    let tenant = running.test.tenant("jina", JINA).await;
    let key = running.key(tenant, "app").await;
    let mut records = RecordServiceClient::new(running.channel.clone());
    records.put_fields(with(&key, put("usr_1", vec![text_value(NAME, "Ann")]))).await.expect("put");
    let mut named = std::collections::BTreeSet::new();
    for call in 0..40 {
        let item = |n: usize| pb::NewItem {
            values: vec![text_value(0, &format!("message {}", call * 100 + n))],
            origin_time: Some(prost_types::Timestamp { seconds: 1_768_470_000, nanos: 0 }),
        };
        let append = pb::AppendItemsRequest {
            subject: "usr_1".into(),
            field_id: MESSAGE,
            items: (0..100).map(item).collect(),
            context: for_purpose(DELIVERY),
            ..Default::default()
        };
        let added = records.append_items(with(&key, append)).await.expect("append").into_inner().items;
        named.extend(added.into_iter().map(|item| item.item));
    }
    assert_eq!(named.len(), 4_000, "each has a name of its own");
    let mut list = pb::ListItemsRequest {
        key: by_id("usr_1"),
        field_id: MESSAGE,
        context: for_purpose(DELIVERY),
        page_size: 1_000,
        ..Default::default()
    };
    let mut seen = std::collections::BTreeSet::new();
    loop {
        let page = records.list_items(with(&key, list.clone())).await.expect("list").into_inner();
        seen.extend(page.items.iter().map(|item| texts(&item.values)[0].1.to_owned()));
        if page.next_page_token.is_empty() {
            break;
        }
        list.page_token = page.next_page_token;
    }
    assert_eq!(seen.len(), 4_000);
    running.stop().await;
}
