//! A person's values and decisions: put, read, found, listed, exported.

use pii_vault::grpc::pb;
use pii_vault::grpc::status;
use predicates::prelude::*;
use predicates::str::{contains, is_empty, starts_with};
use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};

use crate::double::{Answer, Call, bytes};
use crate::{json, text, vault};

#[test]
fn a_put_sends_typed_values_the_key_and_a_deadline() {
    let vault = vault();
    vault.answers("PutFields", pb::PutFieldsResponse { etag: "e1".into(), created: true, ..Default::default() });
    vault
        .program()
        .args(["put", "u-17", "-p", "service", "--mode", "create", "--timeout", "7s"])
        .write_stdin(r#"{"email":"ana@example.com","born":"1990-12-31","visits":-3}"#)
        .assert()
        .success()
        .stdout(contains("e1").and(contains("CREATED")));
    let call = vault.call("PutFields");
    assert_eq!(call.header("authorization"), "Bearer pv_test_K_secretsecret_sum");
    assert_eq!(call.header("x-request-id").len(), 36);
    let micros: u64 = call.header("grpc-timeout").trim_end_matches('u').parse().unwrap();
    assert_eq!(micros, 7_000_000);
    let request: pb::PutFieldsRequest = call.request();
    assert_eq!((request.subject.as_str(), request.mode()), ("u-17", pb::WriteMode::Create));
    assert_eq!(request.context.as_ref().unwrap().purpose_id, 1);
    assert_eq!(request.request_id.len(), 36);
    let mut values = request.values;
    values.sort_by_key(|v| v.field_id);
    assert_eq!(values[0], text(1, "ana@example.com"));
    assert_eq!(values[1].kind, Some(pb::value::Kind::Date(pb::Date { year: 1990, month: 12, day: 31 })));
    assert_eq!(values[2].kind, Some(pb::value::Kind::Integer(-3)));
}

#[test]
fn values_come_line_by_line_for_named_fields() {
    let vault = vault();
    vault.answers("PutFields", pb::PutFieldsResponse::default());
    let mut program = vault.program();
    program.args(["put", "u", "-p", "1", "-f", "visits,email"]).write_stdin("12\na b \r\n").assert().success();
    let request: pb::PutFieldsRequest = vault.call("PutFields").request();
    assert_eq!(request.values[0].kind, Some(pb::value::Kind::Integer(12)));
    assert_eq!(request.values[1], text(1, "a b "));
    // One line too few, a wrong type, broken JSON: nothing is sent, and what was typed is not repeated.
    for (args, input) in [
        (vec!["-f", "visits,email"], "12\n"),
        (vec!["-f", "visits"], "canary\n"),
        (vec![], r#"{"email": canary}"#),
        (vec![], r#"["canary"]"#),
        (vec![], r#"{"email": ["canary"]}"#),
        (vec![], r#"{"emial": "canary"}"#),
    ] {
        let mut program = vault.program();
        let out = program.args(["put", "u", "-p", "1"]).args(args).write_stdin(input).assert().code(2);
        out.stdout(is_empty()).stderr(starts_with("error: ").and(contains("canary").not()));
    }
    assert_eq!(vault.calls("PutFields").len(), 1);
}

#[test]
fn a_get_names_fields_and_keeps_the_terminal_safe() {
    let vault = vault();
    let absent = pb::Value { field_id: 2, absence: pb::Absence::NoConsent as i32, ..Default::default() };
    let values = vec![text(1, "ana\u{1b}[31m@example.com"), absent];
    vault.answers("GetFields", pb::GetFieldsResponse { values, etag: "e2".into(), ..Default::default() });
    let assert = vault.program().args(["get", "u-17", "-p", "support"]).assert().success();
    assert.stdout(
        contains("email").and(contains("\\u{1b}[31m")).and(contains("(no consent)")).and(contains("\u{1b}").not()),
    );
    // Machines get it as it is.
    let assert = vault.program().args(["get", "u-17", "-p", "support", "--json"]).assert().success();
    let answer = json(&assert);
    assert_eq!(answer["values"][0]["text"], "ana\u{1b}[31m@example.com");
    assert_eq!(answer["values"][0]["field"], "email");
    assert_eq!(answer["values"][1]["absence"], "ABSENCE_NO_CONSENT");
    assert_eq!(answer["etag"], "e2");
    vault.answers("GetFields", pb::GetFieldsResponse { values: vec![text(1, "x")], ..Default::default() });
    let mut program = vault.program();
    program.args(["get", "u-17", "-p", "support", "-f", "email", "--raw"]).assert().success().stdout("x\n");
    // By a unique value: it comes from standard input.
    let mut program = vault.program();
    program.args(["get", "--by", "email", "-p", "2", "--raw"]).write_stdin("ana@example.com\n").assert().success();
    let request: pb::GetFieldsRequest = vault.calls("GetFields").last().unwrap().request();
    let Some(pb::subject_key::Key::Unique(unique)) = request.key.unwrap().key else { panic!("by unique value") };
    assert_eq!((unique.field_id, unique.text.as_str()), (1, "ana@example.com"));
}

#[test]
fn find_shows_values_only_when_asked() {
    let vault = vault();
    let found = pb::FoundSubject { subject: "u-17".into(), values: vec![text(1, "ana@x")], ..Default::default() };
    vault.answers("FindSubjects", pb::FindSubjectsResponse { subjects: vec![found], ..Default::default() });
    let mut program = vault.program();
    let assert = program.args(["find", "email", "-p", "support"]).write_stdin("ana@x\n").assert().success();
    assert.stdout(contains("u-17").and(contains("ana@x").not()));
    let request: pb::FindSubjectsRequest = vault.call("FindSubjects").request();
    assert_eq!((request.select, request.term.unwrap().text.as_str()), (None, "ana@x"));
    let mut program = vault.program();
    let assert =
        program.args(["find", "email", "-p", "support", "--values", "-f", "email"]).write_stdin("ana@x\n").assert();
    assert.success().stdout(contains("u-17").and(contains("ana@x")));
    let request: pb::FindSubjectsRequest = vault.calls("FindSubjects")[1].request();
    assert_eq!(request.select.unwrap().field_ids, [1]);
}

#[test]
fn a_batch_goes_in_chunks_and_tells_what_failed() {
    let vault = vault();
    vault.on("BatchPutFields", |call: &Call| -> Answer {
        let request: pb::BatchPutFieldsRequest = call.request();
        let outcome = |put: &pb::SubjectPut| {
            let error = pb::ItemError { code: 5, reason: "SUBJECT_ERASED".into(), ..Default::default() };
            let outcome = match put.subject == "u-1500" {
                true => pb::put_outcome::Outcome::Error(error),
                false => pb::put_outcome::Outcome::Put(pb::PutFieldsResponse::default()),
            };
            pb::PutOutcome { outcome: Some(outcome) }
        };
        let outcomes = request.puts.iter().map(outcome).collect();
        (vec![bytes(&pb::BatchPutFieldsResponse { outcomes })], None)
    });
    let input: String =
        (1..=2_001).map(|n| format!("{{\"subject\":\"u-{n}\",\"fields\":{{\"email\":\"a\"}}}}\n")).collect();
    let assert = vault.program().args(["batch", "put", "-p", "1"]).write_stdin(input).assert().code(8);
    let assert = assert.stderr(contains("1 of 2001 failed"));
    let out = String::from_utf8(assert.get_output().stdout.clone()).unwrap();
    assert_eq!(out.lines().count(), 2_001);
    let failed: Json = serde_json::from_str(out.lines().nth(1_499).unwrap()).unwrap();
    assert_eq!((&failed["subject"], &failed["error"]["code"]), (&"u-1500".into(), &"NOT_FOUND".into()));
    let sizes: Vec<usize> =
        vault.calls("BatchPutFields").iter().map(|c| c.request::<pb::BatchPutFieldsRequest>().puts.len()).collect();
    assert_eq!(sizes, [1_000, 1_000, 1]);
}

#[test]
fn a_list_is_put_together_from_pages() {
    let vault = vault();
    vault.on("ListSubjects", |call: &Call| -> Answer {
        let request: pb::ListSubjectsRequest = call.request();
        let first = request.page_token.is_empty();
        let subject = pb::Subject { subject: if first { "u-1" } else { "u-2" }.into(), ..Default::default() };
        let next_page_token = if first { "t".into() } else { String::new() };
        (vec![bytes(&pb::ListSubjectsResponse { subjects: vec![subject], next_page_token })], None)
    });
    let assert = vault.program().args(["subject", "list", "--json"]).assert().success();
    let answer = json(&assert);
    assert_eq!((answer["subjects"].as_array().unwrap().len(), &answer["more"]), (2, &Json::Bool(false)));
    let assert = vault.program().args(["subject", "list", "--limit", "1"]).assert().success();
    assert.stdout(contains("u-1").and(contains("u-2").not())).stderr(contains("--limit 0"));
}

#[test]
fn an_export_goes_on_where_it_broke_off_and_is_checked() {
    let vault = vault();
    let document = b"{\"email\":\"ana@example.com\"}".to_vec();
    let sum = Sha256::digest(&document).to_vec();
    let whole = document.clone();
    vault.on("ExportSubject", move |call: &Call| -> Answer {
        let request: pb::ExportSubjectRequest = call.request();
        let chunk = |from: usize, to: usize| pb::ExportSubjectResponse {
            data: whole[from..to].to_vec().into(),
            offset: from as u64,
            etag: if from == 0 { "v1".into() } else { String::new() },
            last: to == whole.len(),
            sha256: if to == whole.len() { sum.clone().into() } else { Default::default() },
            ..Default::default()
        };
        match (request.offset, request.etag.as_str()) {
            (0, "") => (vec![bytes(&chunk(0, 10))], Some(status::closing())),
            (10, "v1") => (vec![bytes(&chunk(10, whole.len()))], None),
            _ => (Vec::new(), Some(status::bad_field("offset", "not where the stream broke"))),
        }
    });
    let args = ["export", "u", "-p", "service", "--output", "u.json"];
    vault.program().args(args).assert().success().stdout(is_empty());
    assert_eq!(std::fs::read(vault.home.path().join("u.json")).unwrap(), document);
    assert!(!vault.home.path().join("u.json.part").exists() && !vault.home.path().join("u.json.part.etag").exists());
    // A document that does not fit its checksum is no document.
    vault.answers(
        "ExportSubject",
        pb::ExportSubjectResponse { data: "x".into(), last: true, sha256: vec![0; 32].into(), ..Default::default() },
    );
    vault.program().args(["export", "u", "-p", "1", "--output", "bad.json"]).assert().code(7);
    assert!(!vault.home.path().join("bad.json").exists());
}

#[test]
fn decisions_of_people_are_recorded_by_name() {
    let vault = vault();
    vault.answers("GrantConsent", pb::GrantConsentResponse::default());
    vault.program().args(["rights", "consent", "u-17", "support", "--evidence", "form 3"]).assert().success();
    let sent: pb::GrantConsentRequest = vault.call("GrantConsent").request();
    let consent = sent.consent.unwrap();
    assert_eq!((consent.purpose_id, consent.evidence.as_str()), (2, "form 3"));
    assert!(!sent.request_id.is_empty() && sent.how == pb::DecisionHow::Asked as i32);
    vault.answers("RecordObjection", pb::RecordObjectionResponse::default());
    vault.program().args(["rights", "object", "u-17", "support", "--end"]).assert().success();
    assert!(vault.call("RecordObjection").request::<pb::RecordObjectionRequest>().end);
    let waits = pb::RightsRequest { kind: "erase".into(), state: 1, overdue: true, ..Default::default() };
    vault.answers("ListRequests", pb::ListRequestsResponse { requests: vec![waits], ..Default::default() });
    vault.program().args(["rights", "requests", "--overdue"]).assert().success().stdout(contains("erase"));
    assert!(vault.call("ListRequests").request::<pb::ListRequestsRequest>().overdue);
}
