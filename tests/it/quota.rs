//! The quota of subjects, and to whom the name of a hold is told.

use pii_vault::access::Verb;
use pii_vault::grpc::pb;
use tonic::Code;
use tonic_types::StatusExt;

use crate::harness::JINA;
use crate::net::*;

fn put(subject: &str) -> pb::PutFieldsRequest {
    pb::PutFieldsRequest {
        subject: subject.into(),
        values: vec![text_value(NAME, "Ana")],
        context: for_purpose(SERVICE),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_of_subjects_holds_also_for_many_at_once_and_after_a_restart() {
    let running = Running::new().await;
    let tenant = running.test.tenant("alpha", JINA).await;
    let key = running.key(tenant, "app").await;
    let operator = running.operator_key("root").await;
    let channel = running.channel.clone();
    let mut records = pb::record_service_client::RecordServiceClient::new(channel.clone());
    let mut tenants = pb::tenant_service_client::TenantServiceClient::new(channel.clone());
    let mut erasures = pb::erasure_service_client::ErasureServiceClient::new(channel.clone());
    let quota = |most| pb::UpdateTenantRequest {
        tenant: Some(pb::Tenant { tenant: "alpha".into(), quota_subjects: most, ..Default::default() }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["quota_subjects".into()] }),
        ..Default::default()
    };
    records.put_fields(with(&key, put("first"))).await.expect("there is no quota yet");
    tenants.update_tenant(with(&operator, quota(5))).await.expect("set a quota");

    // Twelve at once for four places.
    let each = (0..12).map(|i| {
        let (mut records, key) = (records.clone(), key.clone());
        async move { records.put_fields(with(&key, put(&format!("p-{i}")))).await }
    });
    let answers = futures_util::future::join_all(each).await;
    let refused: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert_eq!(answers.len() - refused.len(), 4);
    assert!(
        refused.iter().all(|s| (s.code(), reason(s).as_str()) == (Code::ResourceExhausted, "QUOTA")),
        "{refused:?}"
    );
    let usage = tenants.get_usage(with(&key, pb::GetUsageRequest::default())).await.unwrap().into_inner();
    assert_eq!((usage.subject_count, usage.quota_subjects), (5, 5));

    // Who is there is written to; who is not there is not, checked or done, alone or in a batch.
    records.put_fields(with(&key, put("first"))).await.expect("a change makes nobody");
    let check = pb::PutFieldsRequest { validate_only: true, ..put("one-more") };
    assert_eq!(reason(&records.put_fields(with(&key, check)).await.unwrap_err()), "QUOTA");
    let one = |subject: &str| pb::SubjectPut {
        subject: subject.into(),
        values: vec![text_value(NAME, "Ana")],
        ..Default::default()
    };
    let erase = pb::EraseSubjectRequest { key: by_id("first"), ..Default::default() };
    erasures.erase_subject(with(&key, erase)).await.expect("an erasure makes room");
    let two = pb::BatchPutFieldsRequest {
        puts: vec![one("a"), one("b")],
        context: for_purpose(SERVICE),
        atomic: true,
        ..Default::default()
    };
    assert_eq!(reason(&records.batch_put_fields(with(&key, two)).await.unwrap_err()), "QUOTA");

    // An import makes as many as there is room for, and names the others.
    let mut login = pb::credential_service_client::CredentialServiceClient::new(channel.clone());
    let hash = "$2b$04$abcdefghijklmnopqrstuu7EJV7kdjBBQxyb0HjTh9KS7.Lah/6CG";
    let row = |subject: &str| pb::PasswordImport { subject: subject.into(), hash: hash.into(), must_change: false };
    let rows = ["p-x", "p-y", "p-z"].map(row).to_vec();
    let import = pb::BatchImportPasswordsRequest { rows, create_subjects: true, ..Default::default() };
    let done = login.batch_import_passwords(with(&key, import)).await.expect("import").into_inner();
    let refused: Vec<_> = done.errors.iter().map(|e| (e.row, e.error.as_ref().unwrap().reason.as_str())).collect();
    assert_eq!((done.imported_count, refused), (1, vec![(1, "QUOTA"), (2, "QUOTA")]));
    let erase = pb::EraseSubjectRequest { key: by_id("p-x"), ..Default::default() };
    erasures.erase_subject(with(&key, erase)).await.expect("an erasure makes room");

    let test = running.stop().await.restart().await;
    let (call, vault) = (test.call(tenant), &test.node.vault);
    assert_eq!(vault.get_tenant(&call).await.unwrap().subjects, 4, "the count is as durable as the subjects");
    let context = crate::harness::purpose(&call, "service");
    let fifth = vault.put_fields(&call, &context, crate::harness::put(&call, "fifth", &[("name", "Bo")]), None, false);
    fifth.await.expect("there is room for one");
    let sixth = vault.put_fields(&call, &context, crate::harness::put(&call, "sixth", &[("name", "Cy")]), None, false);
    assert!(matches!(sixth.await, Err(pii_vault::vault::VaultError::Quota(_))));
}

#[tokio::test]
async fn a_holds_name_is_told_to_who_may_place_one() {
    let running = Running::new().await;
    let tenant = running.test.tenant("alpha", JINA).await;
    let officer = running.key(tenant, "officer").await;
    let eraser = running.key_for(tenant, "eraser", &[Verb::Erase]).await;
    let mut records = pb::record_service_client::RecordServiceClient::new(running.channel.clone());
    let mut erasures = pb::erasure_service_client::ErasureServiceClient::new(running.channel.clone());
    records.put_fields(with(&officer, put("ana"))).await.expect("put");
    let hold = pb::PlaceHoldRequest {
        target: Some(pb::place_hold_request::Target::Key(by_id("ana").unwrap())),
        legal_basis: "dispute".into(),
        purpose_id: SERVICE,
        ..Default::default()
    };
    let hold = erasures.place_hold(with(&officer, hold)).await.expect("hold").into_inner().hold.unwrap().hold;
    let erase = pb::EraseFieldsRequest {
        key: by_id("ana"),
        select: Some(pb::Selector { field_ids: vec![NAME], ..Default::default() }),
        ..Default::default()
    };
    for (key, told) in [(&officer, Some(hold.as_str())), (&eraser, None)] {
        let refused = erasures.erase_fields(with(key, erase.clone())).await.unwrap_err();
        assert_eq!(reason(&refused), "CLASS_HELD");
        let details = refused.get_error_details();
        let meta = &details.error_info().unwrap().metadata;
        assert_eq!(meta.get("hold").map(String::as_str), told);
        assert!(meta.contains_key("class_id"));
    }
}
