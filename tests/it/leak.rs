//! T26: canaries go through the API in every role a text can have (value, subject's id, group's id, search term, reason,
//! reference, refused value, malformed name); afterwards they are looked for in the log at its most talkative, in the
//! metrics, in the errors and in every file, raw, in base64 and in hexadecimal.

#[path = "harness.rs"]
#[allow(dead_code)] // the other binary uses the rest
mod harness;
#[path = "net.rs"]
#[allow(dead_code)] // the same
mod net;

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use pii_vault::grpc::pb;
use tonic::{Code, Status};

use harness::JINA;
use net::*;

/// Everything that is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The forms in which a canary may show.
fn forms(canary: &str) -> Vec<Vec<u8>> {
    let bytes = canary.as_bytes();
    let mut forms = vec![
        bytes.to_vec(),
        data_encoding::HEXLOWER.encode(bytes).into_bytes(),
        data_encoding::HEXUPPER.encode(bytes).into_bytes(),
        // As the Debug of bytes would show it.
        format!("{bytes:?}").trim_matches(['[', ']']).as_bytes().to_vec(),
    ];
    // Base64 cuts bytes in threes: whatever stands before it, one of three alignments shows.
    for skip in 0..3 {
        let cut = &bytes[skip..];
        let cut = &cut[..cut.len() / 3 * 3];
        forms.push(data_encoding::BASE64.encode(cut).into_bytes());
        forms.push(data_encoding::BASE64URL.encode(cut).into_bytes());
    }
    forms
}

fn found(haystack: &[u8], canaries: &[String]) -> Vec<String> {
    let mut hits = Vec::new();
    for canary in canaries {
        for (i, form) in forms(canary).iter().enumerate() {
            if haystack.windows(form.len()).any(|window| window == form) {
                hits.push(format!("{canary} in form {i}"));
            }
        }
    }
    hits
}

fn scan(dir: &Path, canaries: &[String], hits: &mut Vec<String>, bytes: &mut u64) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            scan(&path, canaries, hits, bytes);
        } else if let Ok(content) = std::fs::read(&path) {
            *bytes += content.len() as u64;
            hits.extend(found(&content, canaries).into_iter().map(|hit| format!("{}: {hit}", path.display())));
        }
    }
}

#[test]
fn the_search_finds_each_form() {
    let canary = "canary-A7f3-x".to_string();
    for (i, form) in forms(&canary).iter().enumerate() {
        let haystack = [b"..", &form[..], b".."].concat();
        assert!(!found(&haystack, std::slice::from_ref(&canary)).is_empty(), "form {i}");
    }
    assert!(found(b"nothing", &[canary]).is_empty());
}

#[tokio::test]
async fn t26_no_text_of_a_caller_leaks() {
    let log = Log::default();
    let for_log = log.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || for_log.clone())
        .try_init()
        .expect("the first subscriber of this process");
    let metrics = pii_vault::telemetry::init_metrics().expect("metrics");
    let running = Running::new().await;
    let tenant = running.test.tenant("jina", JINA).await;
    let key = running.key(tenant, "app").await;
    let channel = running.channel.clone();
    let mut records = pb::record_service_client::RecordServiceClient::new(channel.clone());
    let mut subjects = pb::subject_service_client::SubjectServiceClient::new(channel.clone());
    let mut erasures = pb::erasure_service_client::ErasureServiceClient::new(channel.clone());
    let mut access = pb::access_service_client::AccessServiceClient::new(channel.clone());

    let mut canaries: Vec<String> = Vec::new();
    let mut canary = |role: &str| {
        let text = format!("cnry{}{}kq7", canaries.len(), role);
        canaries.push(text.clone());
        text
    };
    let mut errors: Vec<Status> = Vec::new();

    // What is kept.
    let (name, email_local, subject, group) = (canary("name"), canary("email"), canary("subject"), canary("group"));
    let email = format!("{email_local}@example.com");
    let account = Some(pb::Group { group: group.clone(), ..Default::default() });
    subjects.create_group(with(&key, pb::CreateGroupRequest { group: account, ..Default::default() })).await.unwrap();
    let context = Some(pb::AccessContext {
        purpose_id: SERVICE,
        reason: canary("reason"),
        reference: canary("reference"),
        ..Default::default()
    });
    let put = pb::PutFieldsRequest {
        subject: subject.clone(),
        values: vec![text_value(NAME, &name), text_value(EMAIL, &email)],
        context: context.clone(),
        group: group.clone(),
        request_id: "67e55044-10b1-426f-9247-bb680e5fe0c8".into(),
        ..Default::default()
    };
    records.put_fields(with(&key, put.clone())).await.expect("put");
    let item = pb::NewItem { values: vec![text_value(0, &canary("message"))], origin_time: None };
    let append = pb::AppendItemsRequest {
        subject: subject.clone(),
        field_id: MESSAGE,
        items: vec![item],
        context: for_purpose(DELIVERY),
        ..Default::default()
    };
    records.append_items(with(&key, append)).await.expect("append");
    let get = pb::GetFieldsRequest { key: by_id(&subject), context: context.clone(), ..Default::default() };
    records.get_fields(with(&key, get.clone())).await.expect("get");
    let list = pb::ListItemsRequest {
        key: by_id(&subject),
        field_id: MESSAGE,
        context: for_purpose(DELIVERY),
        ..Default::default()
    };
    records.list_items(with(&key, list)).await.expect("list");
    let find = |text: String| pb::FindSubjectsRequest {
        term: Some(pb::Term { field_id: EMAIL, text, ..Default::default() }),
        context: context.clone(),
        ..Default::default()
    };
    assert_eq!(subjects.find_subjects(with(&key, find(email))).await.expect("find").into_inner().subjects.len(), 1);
    subjects.find_subjects(with(&key, find(canary("term")))).await.expect("find nobody");
    let export = pb::ExportSubjectRequest { key: by_id(&subject), context: context.clone(), ..Default::default() };
    let mut stream = records.export_subject(with(&key, export)).await.expect("export").into_inner();
    while stream.message().await.expect("chunk").is_some() {}
    let approval = pb::RequestApprovalRequest {
        subject: subject.clone(),
        grant: Some(pb::Grant {
            field_ids: vec![NAME],
            purpose_ids: vec![SERVICE],
            verbs: vec![pb::Verb::Read as i32],
            ..Default::default()
        }),
        reference: canary("case"),
        ..Default::default()
    };
    access.request_approval(with(&key, approval)).await.expect("approval");

    // What is refused.
    let bad = |value: pb::Value, subject: &str| pb::PutFieldsRequest {
        subject: subject.into(),
        values: vec![value],
        request_id: String::new(),
        ..put.clone()
    };
    let spoilt = format!("{} not an address", canary("badvalue"));
    errors.push(records.put_fields(with(&key, bad(text_value(EMAIL, &spoilt), &subject))).await.unwrap_err());
    let card = format!("{} 4111 1111 1111 1111", canary("card"));
    errors.push(records.put_fields(with(&key, bad(text_value(NAME, &card), &subject))).await.unwrap_err());
    let spaced = format!("{} x", canary("badid"));
    errors.push(records.put_fields(with(&key, bad(text_value(NAME, "x"), &spaced))).await.unwrap_err());
    let mut named = text_value(0, "x");
    named.field = canary("fieldname");
    errors.push(records.put_fields(with(&key, bad(named, &subject))).await.unwrap_err());
    let missing = pb::GetFieldsRequest { key: by_id(&canary("missing")), ..get.clone() };
    errors.push(records.get_fields(with(&key, missing)).await.unwrap_err());
    let stale = pb::PutFieldsRequest { etag: canary("etag"), request_id: String::new(), ..put.clone() };
    errors.push(records.put_fields(with(&key, stale)).await.unwrap_err());
    let reused = pb::PutFieldsRequest { values: vec![text_value(NAME, &canary("reused"))], ..put.clone() };
    errors.push(records.put_fields(with(&key, reused)).await.unwrap_err());
    let unique = bad(text_value(EMAIL, &format!("{email_local}@example.com")), &canary("second"));
    errors.push(records.put_fields(with(&key, unique)).await.unwrap_err());
    let token = pb::ListSubjectsRequest { page_token: canary("token"), ..Default::default() };
    errors.push(subjects.list_subjects(with(&key, token)).await.unwrap_err());
    let unknown = format!("pv_live_1_{}", canary("secret"));
    errors.push(records.get_fields(with(&unknown, get.clone())).await.unwrap_err());
    let mut chosen = with(&key, get.clone());
    chosen.metadata_mut().insert("x-request-id", canary("requestid").parse().unwrap());
    records.get_fields(chosen).await.expect("get");
    let erase = pb::EraseSubjectRequest { key: by_id(&subject), context: context.clone(), ..Default::default() };
    erasures.erase_subject(with(&key, erase)).await.expect("erase");
    errors.push(records.get_fields(with(&key, get)).await.unwrap_err());

    // Credentials of a user: kept, refused, and asked for in vain.
    let person = canary("person");
    records.put_fields(with(&key, bad(text_value(NAME, "x"), &person))).await.expect("put");
    let mut login = pb::credential_service_client::CredentialServiceClient::new(channel.clone());
    let (password, source) = (canary("password"), canary("source"));
    let set = |password: String| pb::SetPasswordRequest {
        key: by_id(&person),
        password: password.into_bytes().into(),
        ..Default::default()
    };
    login.set_password(with(&key, set(password.clone()))).await.expect("set");
    errors.push(login.set_password(with(&key, set(format!("{}\0", canary("nul"))))).await.unwrap_err());
    let verify = |subject: &str, password: &str| pb::VerifyPasswordRequest {
        key: by_id(subject),
        password: password.as_bytes().to_vec().into(),
        source: source.clone().into_bytes().into(),
        context: context.clone(),
    };
    for (subject, password) in
        [(person.clone(), password.clone()), (person.clone(), canary("wrong")), (canary("unknown"), password.clone())]
    {
        login.verify_password(with(&key, verify(&subject, &password))).await.expect("a verdict");
    }
    let import = |hash: String| pb::ImportPasswordRequest { key: by_id(&person), hash, ..Default::default() };
    errors.push(login.import_password(with(&key, import(format!("$2b$10${}", canary("hash"))))).await.unwrap_err());
    let import = pb::BatchImportPasswordsRequest {
        rows: vec![pb::PasswordImport {
            subject: canary("imported"),
            hash: format!("$2b$10${}", canary("row")),
            must_change: false,
        }],
        ..Default::default()
    };
    let rows = login.batch_import_passwords(with(&key, import)).await.expect("import").into_inner().errors;
    let rows = format!("{rows:?}").into_bytes();
    assert!(rows.len() > 50, "the row was refused");
    let second = canary("second-password");
    for (old, new) in [(canary("not-the-password"), canary("never-set")), (password.clone(), second.clone())] {
        let change = pb::ChangePasswordRequest {
            key: by_id(&person),
            password: old.into_bytes().into(),
            new_password: new.into_bytes().into(),
            source: source.clone().into_bytes().into(),
            context: context.clone(),
        };
        login.change_password(with(&key, change)).await.expect("a verdict");
    }
    login.verify_password(with(&key, verify(&person, &second))).await.expect("a verdict");
    let new = pb::IssueApiKeyRequest { key: by_id(&person), label: canary("label"), ..Default::default() };
    let issued = login.issue_api_key(with(&key, new)).await.expect("issue").into_inner().text;
    canaries.push(issued.split('_').nth(3).expect("prefix, environment, id, secret").to_owned());
    for text in [issued, format!("jina_live_1_{}", canaries[0])] {
        let request = pb::VerifyApiKeyRequest { text, source: "192.0.2.7".into() };
        login.verify_api_key(with(&key, request)).await.expect("a verdict");
    }
    let new = pb::IssueCodeRequest {
        key: by_id(&person),
        r#use: "reset".into(),
        length: 40,
        alphabet: pb::CodeAlphabet::Letters as i32,
        ..Default::default()
    };
    let code = login.issue_code(with(&key, new)).await.expect("issue").into_inner().text;
    canaries.push(code.clone());
    let typed = pb::VerifyCodeRequest { key: by_id(&person), r#use: "reset".into(), text: code, ..Default::default() };
    login.verify_code(with(&key, typed)).await.expect("a verdict");
    let enrol = pb::EnrolTotpRequest {
        key: by_id(&person),
        issuer: "Jina".into(),
        account: format!("cnry{}account", canaries.len()),
        ..Default::default()
    };
    canaries.push(enrol.account.clone());
    let made = login.enrol_totp(with(&key, enrol)).await.expect("enrol").into_inner();
    let secret = pii_vault::auth::TotpSecret::from_base32(&made.secret).expect("a secret");
    canaries.push(made.secret);
    // What a user types: right, wrong, and of the sheet of recovery codes.
    let now = running.test.now().0 / 1_000;
    let text = secret.code_at(now).expect("a code").to_string();
    login
        .confirm_totp(with(&key, pb::ConfirmTotpRequest { key: by_id(&person), text, ..Default::default() }))
        .await
        .unwrap();
    let text = format!("cnry{}totp", canaries.len());
    canaries.push(text.clone());
    login
        .verify_totp(with(&key, pb::VerifyTotpRequest { key: by_id(&person), text, ..Default::default() }))
        .await
        .unwrap();
    let sheet = pb::IssueRecoveryCodesRequest { key: by_id(&person), ..Default::default() };
    let sheet = login.issue_recovery_codes(with(&key, sheet)).await.expect("sheet").into_inner().texts;
    let wrong = format!("cnry{}code", canaries.len());
    for (r#use, text) in [("recovery", sheet[0].clone()), ("recovery", wrong.clone()), ("reset", wrong.clone())] {
        let typed = pb::VerifyCodeRequest { key: by_id(&person), r#use: r#use.into(), text, ..Default::default() };
        login.verify_code(with(&key, typed)).await.expect("a verdict");
    }
    canaries.push(wrong);
    canaries.extend(sheet);
    assert!(errors.iter().all(|status| status.code() != Code::Internal), "{errors:?}");

    let rendered = metrics.render();
    let test = running.stop().await;
    let (dir, node) = (test.dir, test.node);
    node.close().await;

    let mut hits = found(&rows, &canaries);
    for status in &errors {
        let whole = [format!("{status:?}").into_bytes(), status.details().to_vec()].concat();
        hits.extend(found(&whole, &canaries).into_iter().map(|hit| format!("error {:?}: {hit}", status.code())));
    }
    let logged = log.0.lock().unwrap().clone();
    assert!(logged.len() > 10_000, "the log was on: {} bytes", logged.len());
    // What the HTTP/2 library says of the client's half of this process is not ours: only our lines are looked at.
    let ours: Vec<u8> = logged
        .split(|byte| *byte == b'\n')
        .filter(|line| line.windows(9).any(|window| window == b"pii_vault"))
        .flat_map(|line| line.iter().copied().chain([b'\n']))
        .collect();
    hits.extend(found(&ours, &canaries).into_iter().map(|hit| format!("log: {hit}")));
    assert!(rendered.contains("pii_vault") || rendered.len() > 500, "metrics were on");
    hits.extend(found(rendered.as_bytes(), &canaries).into_iter().map(|hit| format!("metrics: {hit}")));
    let mut bytes = 0;
    scan(dir.path(), &canaries, &mut hits, &mut bytes);
    assert!(bytes > 100_000, "only {bytes} bytes of files were found");
    assert!(hits.is_empty(), "{} hits:\n{}", hits.len(), hits.join("\n"));
}
