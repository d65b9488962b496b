//! The program `pii-vault` against a double of the server: what it sends, what it prints, how it ends.

mod double;
mod extends;
mod otlp;

use double::{Answer, Call, Double, bytes};
use pii_vault::clock::Timestamp;
use pii_vault::crypto::sign::Signing;
use pii_vault::grpc::convert::wire_time;
use pii_vault::grpc::pb;
use pii_vault::grpc::reason::Reason;
use pii_vault::grpc::status;
use predicates::prelude::*;
use predicates::str::{contains, is_empty, starts_with};
use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};
use tonic::Code;

/// A double with the schema that the tests use.
fn vault() -> Double {
    let double = Double::start();
    let field = |field_id, name: &str, t: pb::FieldType| pb::FieldSchema {
        field_id,
        name: name.into(),
        r#type: t as i32,
        class_id: 1,
        ..Default::default()
    };
    let purpose = |purpose_id, name: &str| pb::PurposeSchema { purpose_id, name: name.into(), ..Default::default() };
    double.answers(
        "GetSchema",
        pb::GetSchemaResponse {
            policy_version: 4,
            fields: vec![
                field(1, "email", pb::FieldType::Text),
                field(2, "born", pb::FieldType::Date),
                field(3, "visits", pb::FieldType::Integer),
            ],
            classes: vec![pb::ClassSchema { class_id: 1, name: "account".into(), ..Default::default() }],
            purposes: vec![purpose(1, "service"), purpose(2, "support")],
            roles: vec![pb::NumberedName { id: 9, name: "backend".into() }],
            controller: "Acme".into(),
            ..Default::default()
        },
    );
    double
}

fn text(field_id: u32, text: &str) -> pb::Value {
    pb::Value { field_id, kind: Some(pb::value::Kind::Text(text.into())), ..Default::default() }
}

fn json(assert: &assert_cmd::assert::Assert) -> Json {
    serde_json::from_slice(&assert.get_output().stdout).expect("standard output is JSON")
}

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
fn each_kind_of_refusal_has_its_exit_code_and_says_why() {
    let vault = vault();
    let cases = [
        (status::bad_field("values[0].text", "too long"), 2, "FIELD_INVALID: values[0].text: too long"),
        (status::not_supported("consents"), 2, "NOT_SUPPORTED"),
        (status::not_found(), 3, "NOT_FOUND NOT_FOUND"),
        (status::status(Code::NotFound, Reason::SubjectErased, "erased", &[]), 3, "put --mode recreate"),
        (status::credential_invalid(), 4, "--credential-file"),
        (status::denied(Reason::PurposeNotGranted, "role support, grant 1"), 4, "rule: role support, grant 1"),
        (status::wrong_state(Reason::ClassHeld, "held", &[("hold", "h-1")]), 5, "hold: h-1"),
        (status::aborted(Reason::EtagStale, "changed"), 5, "docs/ERRORS.md#etag_stale"),
        (status::busy("full", std::time::Duration::from_millis(40)), 6, "retry after 40 ms"),
        (status::closing(), 6, "CLOSING"),
        (status::deadline_exceeded(), 6, "--timeout"),
        (status::internal(), 1, "INTERNAL"),
        (status::data_loss(), 1, "DATA_LOSS"),
    ];
    for (refusal, code, says) in cases {
        vault.refuses("GetSubject", refusal);
        let assert = vault.program().args(["subject", "show", "u-17"]).assert().code(code);
        assert.stdout(is_empty()).stderr(starts_with("error: ").and(contains(says)).and(contains("(request ")));
    }
    vault.refuses("GetSubject", status::denied(Reason::NotPermitted, "no grant"));
    let assert = vault.program().args(["subject", "show", "u-17", "--json"]).assert().code(4);
    let error: Json = serde_json::from_slice(&assert.get_output().stderr).unwrap();
    assert_eq!(error["error"]["code"], "PERMISSION_DENIED");
    assert_eq!(error["error"]["reason"], "NOT_PERMITTED");
    assert_eq!(error["error"]["metadata"]["rule"], "no grant");
    assert_eq!(error["error"]["help"], "docs/ERRORS.md#not_permitted");
    let sent = vault.calls("GetSubject").last().unwrap().header("x-request-id");
    assert_eq!(error["error"]["request_id"], sent.as_str());
}

#[test]
fn a_server_that_is_not_there_or_not_trusted_is_unavailable() {
    let vault = vault();
    let mut program = vault.program();
    let assert = program.args(["--server", "https://127.0.0.1:1", "whoami"]).assert().code(6);
    assert.stderr(contains("no answer from https://127.0.0.1:1").and(contains("refused")));
    // Another authority than the server's.
    let other = rcgen::generate_simple_self_signed(["localhost".to_string()]).unwrap();
    let path = vault.home.path().join("other.pem");
    std::fs::write(&path, other.cert.pem()).unwrap();
    let assert = vault.program().arg("--ca").arg(&path).arg("whoami").assert().code(6);
    assert.stderr(contains("ertificate"));
    assert!(vault.calls("WhoAmI").is_empty());
    // No secrets in clear to another machine.
    let assert = vault.program().args(["--server", "http://vault.example:7443", "whoami"]).assert().code(2);
    assert.stderr(contains("--plaintext"));
}

#[test]
fn what_cannot_be_taken_back_needs_a_yes() {
    let vault = vault();
    let erasure = pb::Erasure { erasure: "x".into(), status: pb::ErasureStatus::Erased as i32, ..Default::default() };
    vault.answers("EraseSubject", pb::EraseSubjectResponse { erasure: Some(erasure.clone()) });
    let asking: [&[&str]; 9] = [
        &["erase", "subject", "u"],
        &["erase", "class", "u", "-c", "account"],
        &["erase", "fields", "u", "-f", "email"],
        &["erase", "group", "g"],
        &["erase", "batch"],
        &["delete", "u", "-f", "email"],
        &["hold", "release", "h"],
        &["access-key", "revoke", "k"],
        &["tenant", "erase", "acme"],
    ];
    for args in asking {
        vault.program().args(args).write_stdin("y\n").assert().code(2).stderr(contains("--yes"));
    }
    assert!(vault.calls("EraseSubject").is_empty());
    vault.program().args(["erase", "subject", "u", "--yes"]).assert().success().stdout(contains("erased"));
    vault.program().args(["erase", "subject", "u", "--validate-only"]).assert().success();
    assert!(vault.calls("EraseSubject")[1].request::<pb::EraseSubjectRequest>().validate_only);
    vault.program().args(["tenant", "erase", "acme", "--confirm", "amce"]).assert().code(9);
    vault.answers("EraseTenant", pb::EraseTenantResponse { erasure: Some(erasure) });
    vault.program().args(["tenant", "erase", "acme", "--confirm", "acme"]).assert().success();
    assert_eq!(vault.call("EraseTenant").request::<pb::EraseTenantRequest>().confirm, "acme");
}

#[test]
fn an_erasure_is_waited_for_and_its_receipt_kept() {
    let vault = vault();
    let pending = pb::Erasure {
        erasure: "e-1".into(),
        status: pb::ErasureStatus::Pending as i32,
        commitment_salt: vec![7; 32].into(),
        ..Default::default()
    };
    let done = pb::Erasure {
        status: pb::ErasureStatus::PartlyHeld as i32,
        receipt: b"{\"a\":1}".to_vec().into(),
        commitment_salt: Default::default(),
        held: vec![pb::HeldClass { class_id: 1, legal_basis: "tax-law-in".into(), ..Default::default() }],
        ..pending.clone()
    };
    vault.answers("EraseSubject", pb::EraseSubjectResponse { erasure: Some(pending) });
    let state = |state: pb::OperationState| {
        let operation = pb::Operation { operation: "e-1".into(), state: state as i32, ..Default::default() };
        bytes(&pb::WatchOperationResponse { operation: Some(operation) })
    };
    let steps = vec![state(pb::OperationState::Running), state(pb::OperationState::Succeeded)];
    vault.on("WatchOperation", move |_| (steps.clone(), None));
    vault.answers("GetErasure", pb::GetErasureResponse { erasure: Some(done) });
    let args = ["erase", "subject", "u", "--yes", "--wait", "--receipt", "r.json"];
    let assert = vault.program().args(args).assert().success();
    assert.stdout(contains("partly-held").and(contains("tax-law-in")).and(contains("account")));
    let file = |name: &str| std::fs::read_to_string(vault.home.path().join(name)).unwrap();
    assert_eq!((file("r.json").as_str(), file("r.json.salt").trim()), ("{\"a\":1}", "07".repeat(32).as_str()));
    assert!(vault.call("WatchOperation").header("grpc-timeout").is_empty(), "a stream has no deadline of its own");
    // An operation that fails is not a success.
    let failed = vec![state(pb::OperationState::Failed)];
    vault.on("WatchOperation", move |_| (failed.clone(), None));
    vault.program().args(["ops", "watch", "e-1"]).assert().code(1);
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
fn an_issued_key_is_shown_once_or_kept_in_a_private_file() {
    use std::os::unix::fs::PermissionsExt as _;
    let vault = vault();
    let key = pb::AccessKey { access_key: "7Q".into(), name: "backend".into(), ..Default::default() };
    let text = "pv_live_7Q_x_y".to_string();
    vault.answers("IssueAccessKey", pb::IssueAccessKeyResponse { access_key: Some(key), text });
    let args = ["access-key", "issue", "backend", "--role", "backend", "--tenant", "acme"];
    vault.program().args(args).assert().success().stdout("pv_live_7Q_x_y\n");
    let request: pb::IssueAccessKeyRequest = vault.call("IssueAccessKey").request();
    assert_eq!((request.role_ids, request.tenant.as_str()), (vec![9], "acme"));
    let assert = vault.program().args(args).args(["--output", "backend.key", "--json"]).assert().success();
    assert_eq!(json(&assert)["text"], "");
    let path = vault.home.path().join("backend.key");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "pv_live_7Q_x_y\n");
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn profiles_carry_server_and_key_file_and_flags_win() {
    let vault = vault();
    let who = pb::WhoAmIResponse { tenant: "acme".into(), server_version: "0.1.0".into(), ..Default::default() };
    vault.answers("WhoAmI", who);
    let set = ["profile", "set", "dev", "--ca", "ca.pem", "--store-key", "--server", &vault.address];
    vault.bare().args(set).write_stdin("pv_test_K_other\n").assert().success();
    vault.bare().arg("whoami").assert().success().stdout(contains("acme"));
    assert_eq!(vault.call("WhoAmI").header("authorization"), "Bearer pv_test_K_other");
    let config = std::fs::read_to_string(vault.home.path().join(".config/pii-vault/config.toml")).unwrap();
    assert!(!config.contains("pv_test_K"), "{config}");
    let show = vault.bare().args(["profile", "show"]).assert().success();
    show.stdout(contains(vault.address.as_str()).and(contains("pv_test_K").not()));
    vault.bare().args(["--server", "https://127.0.0.1:1", "whoami"]).assert().code(6);
    vault.bare().args(["--profile", "nope", "whoami"]).assert().code(2);
    vault.bare().args(["profile", "use", "nope"]).assert().code(2);
    vault.bare().args(["profile", "list", "--json"]).assert().success().stdout(contains("\"current\": \"dev\""));
}

#[test]
fn test_access_tells_the_rule_and_ends_with_the_verdict() {
    let vault = vault();
    let decision = pb::AccessDecision {
        field_id: 1,
        reason: "PURPOSE_NOT_ALLOWED".into(),
        rule: "purpose support".into(),
        policy_line: 41,
        ..Default::default()
    };
    vault.answers("TestAccess", pb::TestAccessResponse { decisions: vec![decision], ..Default::default() });
    let assert = vault.program().args(["test-access", "read", "-f", "email", "-p", "support"]).assert().code(4);
    assert.stdout(contains("PURPOSE_NOT_ALLOWED").and(contains("41")).and(contains("email")));
    vault.answers("TestAccess", pb::TestAccessResponse { allowed: true, ..Default::default() });
    vault.program().args(["test-access", "read", "-f", "1", "-p", "1"]).assert().success();
}

#[test]
fn why_says_the_answer_the_rule_the_version_and_the_line() {
    let vault = vault();
    let denied = pb::AccessDecision {
        field_id: 1,
        reason: "CONSENT_MISSING".into(),
        rule: "consent-missing: purpose `marketing` needs a consent".into(),
        policy_line: 296,
        ..Default::default()
    };
    let answer = pb::TestAccessResponse { decisions: vec![denied], policy_version: 3, ..Default::default() };
    vault.answers("TestAccess", answer.clone());
    let assert = vault.program().args(["why", "u-17", "-f", "email", "-p", "support"]).assert().code(4);
    assert.stdout(contains("email: no. consent-missing").and(contains("(policy version 3, line 296)")));
    let asked: pb::TestAccessRequest = vault.call("TestAccess").request();
    assert_eq!((asked.subject.as_str(), asked.verb()), ("u-17", pb::Verb::Read));
    let shown = json(&vault.program().args(["why", "u-17", "-p", "1", "--json"]).assert().code(4));
    assert_eq!(shown["policy_version"], 3);
}

#[test]
fn a_plan_tells_what_ends_who_is_refused_and_that_a_second_person_is_needed() {
    let vault = vault();
    std::fs::write(vault.home.path().join("p.toml"), "x").unwrap();
    let field = pb::FieldPlan { field_id: 1, value_count: 70, sooner_count: 50, over_count: 9, ..Default::default() };
    let refused = pb::RefusedCalls {
        access_key: "7Q3K2M".into(),
        roles: vec!["support".into()],
        verb: "read".into(),
        call_count: 12,
        rule: "purpose-not-allowed: ...".into(),
        policy_line: 41,
        ..Default::default()
    };
    let plan = pb::PolicyPlan {
        from_version: 2,
        version: 3,
        fields: vec![field],
        losses: vec![pb::EarlyLoss {
            key: "retention".into(),
            before: "90d".into(),
            after: "30d".into(),
            ..Default::default()
        }],
        refused_calls: vec![refused],
        audit_start_time: Some(Default::default()),
        subject_count: 40,
        approval_needed: true,
        ..Default::default()
    };
    let progress = pb::PlanPolicyResponse { step: "records".into(), done_count: 40, total_count: 40, plan: None };
    let last = pb::PlanPolicyResponse { plan: Some(plan), ..Default::default() };
    let messages = vec![double::bytes(&progress), double::bytes(&last)];
    vault.on("PlanPolicy", move |_| (messages.clone(), None));
    let told = vault.program().args(["tenant", "plan", "p.toml"]).assert().success();
    let told = told.stdout(contains("would be version 3 after 2").and(contains("90d")).and(contains("7Q3K2M")));
    told.stdout(contains("OVER AT ONCE").and(contains("of 40 subjects"))).stderr(contains("--request-approval"));
    let shown = json(&vault.program().args(["tenant", "plan", "p.toml", "--json"]).assert().success());
    assert_eq!(
        shown["fields"][0]["over_count"].as_str().or(shown["fields"][0]["over_count"].as_u64().map(|_| "9")),
        Some("9")
    );
    vault.program().args(["tenant", "plan", "p.toml", "--audit-days", "91"]).assert().code(2);
    let cut = vec![double::bytes(&progress)];
    vault.on("PlanPolicy", move |_| (cut.clone(), None));
    vault.program().args(["tenant", "plan", "p.toml"]).assert().failure();
}

#[test]
fn a_report_is_shown_and_verified_without_a_server() {
    use pii_vault::report::{Promise, Report, Status};
    let vault = vault();
    let signing = Signing::from_seed(&[3; 32]);
    let report = Report {
        vault: "00".into(),
        tenant: "acme".into(),
        controller: "Acme".into(),
        contact: "privacy@example.com".into(),
        officer: None,
        authority: None,
        policy_title: None,
        policy_url: None,
        policy_version: 4,
        policy_sha256: "00".into(),
        made_at: "2026-01-15T12:00:00.000Z".into(),
        audit_seq: 1,
        subjects: 1,
        promises: vec![Promise {
            section: "5".into(),
            line: 9,
            claim: "no_cards".into(),
            about: Vec::new(),
            value: None,
            recipient: None,
            status: Status::Held,
            evidence: vec!["refused".into()],
            since: None,
        }],
        overdue: Vec::new(),
        can_claim: Vec::new(),
    };
    vault.answers("GetReport", pb::GetReportResponse { report: report.sign(&signing).into() });
    vault.program().arg("report").assert().success().stdout(contains("| 5 | no_cards | **held** | refused (line 9) |"));
    vault.program().args(["report", "--format", "html"]).assert().success().stdout(contains("<td>no_cards</td>"));
    vault.program().args(["report", "--format", "json", "-o", "r.json"]).assert().success();
    let key = data_encoding::HEXLOWER.encode(&signing.public());
    let verify = |key: &str| vault.bare().args(["report", "verify", "r.json", "--public-key", key]).assert();
    verify(&key).success().stdout(contains("no_cards"));
    verify(&data_encoding::HEXLOWER.encode(&Signing::from_seed(&[4; 32]).public())).code(7);
    let path = vault.home.path().join("r.json");
    let changed = std::fs::read_to_string(&path).unwrap().replace("held", "broken");
    std::fs::write(&path, changed).unwrap();
    verify(&key).code(7);
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

#[test]
fn a_policy_file_is_linted_without_a_server() {
    let vault = Double::start();
    for name in ["jina-connect", "jiwa-ai", "jenny-erp"] {
        let path = format!("{}/examples/tenants/{name}.toml", env!("CARGO_MANIFEST_DIR"));
        vault.bare().args(["tenant", "lint", &path]).assert().success();
    }
    std::fs::write(vault.home.path().join("bad.toml"), "[tenant]\n\ncolour = 'red'\n").unwrap();
    let assert = vault.bare().args(["tenant", "lint", "bad.toml"]).assert().code(7);
    assert.stdout(contains("bad.toml:").and(contains(": error[")));
    let assert = vault.bare().args(["tenant", "lint", "bad.toml", "--json"]).assert().code(7);
    let errors = json(&assert)["findings"].as_array().unwrap().len();
    assert!(errors > 0);
    // The text of this company contradicts itself: it applies, and a pipeline may refuse it.
    let jenny = format!("{}/examples/tenants/jenny-erp.toml", env!("CARGO_MANIFEST_DIR"));
    vault.bare().args(["tenant", "lint", &jenny, "--deny", "warnings"]).assert().code(7);
    let sarif = json(&vault.bare().args(["tenant", "lint", &jenny, "--sarif"]).assert().success());
    let results = sarif["runs"][0]["results"].as_array().unwrap();
    assert_eq!(sarif["version"], "2.1.0");
    let contradicted = results.iter().find(|r| r["ruleId"] == "deletion-contradicted").expect("the contradiction");
    assert!(contradicted["locations"][0]["physicalLocation"]["region"]["startLine"].as_u64() > Some(1));
    // A server that also knows the policy in force is asked only when that is wanted.
    let finding = pb::LintFinding { severity: 1, rule: "number-reused".into(), line: 3, ..Default::default() };
    vault.answers("LintPolicy", pb::LintPolicyResponse { findings: vec![finding] });
    let assert = vault.program().args(["tenant", "lint", "bad.toml", "--against-server"]).assert().code(7);
    assert.stdout(contains("bad.toml:3: error[number-reused]"));
}

#[test]
fn receipts_are_verified_with_the_public_key_alone() {
    use pii_vault::ids::{ClassNo, DekVersion, Generation, ObjectId, SubjectId, SubjectUid, TenantNo, VaultId};
    use pii_vault::receipt::{self, Receipt};
    let vault = Double::start();
    let file = |name: &str| vault.home.path().join(name);
    let signing = Signing::from_seed(&[3; 32]);
    let salt = [5; 32];
    let subject = SubjectId::parse("subject", "u-17").unwrap();
    let receipt = Receipt {
        vault: VaultId([1; 16]),
        operation: ObjectId::random(),
        tenant: TenantNo(2),
        tenant_name: "acme".into(),
        controller: "Acme".into(),
        scope: receipt::Scope::Subject,
        subject: Some(receipt::Person {
            uid: SubjectUid(77),
            commitment: receipt::commitment(TenantNo(2), &subject, &salt),
        }),
        members: None,
        erased: vec![receipt::ErasedClass {
            class: ClassNo(1),
            name: "account".into(),
            through_version: DekVersion(1),
        }],
        held: Vec::new(),
        recipients: Vec::new(),
        data_keys_issued: 0,
        generation: Generation(9),
        keeper: receipt::Keeper {
            kind: "file".into(),
            assurance: receipt::Assurance::Logical,
            retired_replicas: Vec::new(),
        },
        erased_at: Timestamp(1_700_000_000_000),
        archives_expire_at: None,
        without_recovery: false,
        search_expires_at: None,
        audit: receipt::AuditPosition { seq: 4, head: [2; 32] },
    };
    let signed = receipt.sign(&signing);
    std::fs::write(file("r.json"), [&signed[..], b"\n"].concat()).unwrap();
    std::fs::write(file("r.json.salt"), "05".repeat(32)).unwrap();
    let hex = data_encoding::HEXLOWER.encode(&signing.public());
    let verify = |args: &[&str]| vault.bare().args(["receipt", "verify", "r.json"]).args(args).assert();
    verify(&["--public-key", &hex]).success().stdout(contains("The signature is right"));
    std::fs::write(file("keys.txt"), format!("{hex}\n")).unwrap();
    verify(&["-k", "keys.txt", "--subject", "u-17", "--salt-file", "r.json.salt", "--json"]).success();
    verify(&["-k", "keys.txt", "--subject", "u-18", "--salt-file", "r.json.salt"]).code(7);
    let other = data_encoding::HEXLOWER.encode(&Signing::from_seed(&[4; 32]).public());
    verify(&["--public-key", &other]).code(7).stdout(is_empty());
    verify(&["--public-key", "nonsense"]).code(2);
    verify(&[]).code(2);
    // One changed byte.
    let changed = String::from_utf8(signed).unwrap().replace("\"acme\"", "\"acne\"");
    std::fs::write(file("r.json"), changed).unwrap();
    verify(&["--public-key", &hex]).code(7);
}

#[test]
fn an_audit_that_is_not_whole_is_a_failed_check() {
    let vault = vault();
    let verdict = |valid| pb::ChainVerdict { chain: 1, valid, last_position: 40, ..Default::default() };
    vault.answers(
        "VerifyAudit",
        pb::VerifyAuditResponse { valid: true, chains: vec![verdict(true)], ..Default::default() },
    );
    vault.program().args(["audit", "verify"]).assert().success();
    let chains = vec![pb::ChainVerdict { bad_position: 17, ..verdict(false) }];
    vault.answers("VerifyAudit", pb::VerifyAuditResponse { valid: false, chains, ..Default::default() });
    vault.program().args(["audit", "verify"]).assert().code(7).stdout(contains("17"));
    let entry = pb::AuditEntry {
        position: 1,
        time: Some(wire_time(Timestamp(0))),
        action: "fields.get".into(),
        field_ids: vec![1, 2],
        purpose_id: 2,
        ..Default::default()
    };
    vault.answers("ListEntries", pb::ListEntriesResponse { entries: vec![entry], ..Default::default() });
    let assert = vault.program().args(["audit", "list", "--chain", "reads"]).assert().success();
    assert.stdout(contains("email, born").and(contains("support")).and(contains("1970-01-01T00:00:00.000Z")));
}

#[test]
fn the_audit_is_handed_on_from_where_it_ended_and_as_syslog() {
    use std::io::Read as _;
    let vault = vault();
    // Each chain has three entries.
    vault.on("FollowEntries", |call| {
        let request: pb::FollowEntriesRequest = call.request();
        let entry = |position| pb::AuditEntry {
            position,
            chain: request.chain,
            time: Some(wire_time(Timestamp(0))),
            action: "fields.get".into(),
            outcome: pb::AuditOutcome::Ok as i32,
            ..Default::default()
        };
        let entries: Vec<_> = (request.start_position..=3).map(entry).collect();
        let last = (!entries.is_empty()).then(|| bytes(&pb::FollowEntriesResponse { entries }));
        (last.into_iter().collect(), None)
    });
    let forward = |args: &[&str]| {
        let mut program = vault.program();
        program.args(["audit", "forward", "--once"]).args(args).assert()
    };
    let first = forward(&["--cursor", "all"]).success();
    let lines = String::from_utf8(first.get_output().stdout.clone()).unwrap();
    let lines: Vec<Json> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 6);
    assert!(vault.calls("FollowEntries").iter().all(|call| call.request::<pb::FollowEntriesRequest>().until_now));
    forward(&["--cursor", "all"]).success().stdout(is_empty());
    let asked: pb::FollowEntriesRequest = vault.calls("FollowEntries").last().unwrap().request();
    assert_eq!(asked.start_position, 4);
    forward(&["--cursor", "all", "--tenant", "other"]).code(2);

    let receiver = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let to = format!("syslog://{}", receiver.local_addr().unwrap());
    let received = std::thread::spawn(move || {
        let mut text = String::new();
        receiver.accept().unwrap().0.read_to_string(&mut text).unwrap();
        text
    });
    forward(&["--cursor", "siem", "--chain", "reads", "--to", &to]).success();
    let (mut rest, mut messages) = (received.join().unwrap(), Vec::new());
    while let Some((length, text)) = rest.split_once(' ') {
        let (message, after) = text.split_at(length.parse().unwrap());
        messages.push(message.to_owned());
        rest = after.to_owned();
    }
    assert_eq!(messages.len(), 3);
    assert!(messages.iter().all(|m| m.starts_with("<110>1 1970-01-01T00:00:00") && m.ends_with('}')), "{messages:?}");

    // Nobody there: nothing is remembered, so that it comes later.
    forward(&["--cursor", "away", "--to", "syslog://127.0.0.1:1"]).failure();
    assert!(!vault.home.path().join("away").exists());
    forward(&["--cursor", "away", "--chain", "changes", "--to", "file:audit.jsonl"]).success();
    let file = std::fs::read_to_string(vault.home.path().join("audit.jsonl")).unwrap();
    assert_eq!(file.lines().count(), 3);
}

#[test]
fn checkpoints_are_verified_without_a_server() {
    use pii_vault::audit::{Chain, ChainHead, Checkpoint, Head};
    use pii_vault::ids::{TenantNo, VaultId};
    let vault = Double::start();
    let signing = Signing::from_seed(&[3; 32]);
    let checkpoint = Checkpoint::sign(VaultId([1; 16]), Timestamp(5), Vec::new(), &signing);
    let path = vault.home.path().join("c.json");
    std::fs::write(&path, checkpoint.to_json()).unwrap();
    let hex = data_encoding::HEXLOWER.encode(&signing.public());
    let args = ["audit", "verify", "--checkpoint", "c.json", "--public-key"];
    vault.bare().args(args).arg(&hex).assert().success().stdout(contains("1970-01-01T00:00:00.005Z"));
    let other = data_encoding::HEXLOWER.encode(&Signing::from_seed(&[4; 32]).public());
    vault.bare().args(args).arg(&other).assert().code(7);
    // A tenant gets a proof for each of its chains.
    let head = |chain| ChainHead::new(TenantNo(2), chain, Head { seq: 9, hash: [8; 32] });
    let heads = vec![head(Chain::Change), head(Chain::Read)];
    let checkpoint = Checkpoint::sign(VaultId([1; 16]), Timestamp(5), heads, &signing);
    let proof = |chain| checkpoint.proof(TenantNo(2), chain).unwrap().to_json();
    let proofs = [proof(Chain::Change), proof(Chain::Read)];
    std::fs::write(&path, proofs.join(&b'\n')).unwrap();
    vault.bare().args(args).arg(&hex).assert().success().stdout(contains("0808"));
    std::fs::write(&path, [&proofs[0][..], b"\n{}"].concat()).unwrap();
    vault.bare().args(args).arg(&hex).assert().code(7);
}

#[test]
fn constants_completions_and_exit_codes_are_printed() {
    let vault = vault();
    let assert = vault.program().args(["schema", "--constants", "python"]).assert().success();
    assert.stdout(contains("class Field:\n    EMAIL = 1\n"));
    vault.program().arg("schema").assert().success().stdout(contains("Acme").and(contains("visits")));
    vault.bare().args(["completions", "bash"]).assert().success().stdout(contains("pii-vault"));
    vault.bare().args(["help", "exit-codes"]).assert().success().stdout(contains("7  a check failed"));
    vault.bare().arg("exit-codes").assert().success().stdout(contains("not found, or erased"));
    vault.bare().arg("--nonsense").assert().code(2);
}

#[test]
fn the_feed_of_erasures_is_a_line_for_each_event() {
    let vault = vault();
    let event = |cursor: &str| {
        let kind = pb::EventKind::Erased as i32;
        bytes(&pb::WatchErasuresResponse { cursor: cursor.into(), kind, class_ids: vec![1], ..Default::default() })
    };
    let events = vec![event("c1"), event("c2")];
    vault.on("WatchErasures", move |_| (events.clone(), None));
    let assert = vault.program().args(["erase", "watch", "--json", "--cursor", "c0"]).assert().success();
    let out = String::from_utf8(assert.get_output().stdout.clone()).unwrap();
    let cursors: Vec<Json> = out.lines().map(|l| serde_json::from_str::<Json>(l).unwrap()["cursor"].clone()).collect();
    assert_eq!(cursors, ["c1", "c2"]);
    assert_eq!(vault.call("WatchErasures").request::<pb::WatchErasuresRequest>().cursor, "c0");
}

#[test]
fn a_keeper_that_is_not_right_ends_with_7() {
    let vault = vault();
    vault.answers("VerifyKeeper", pb::VerifyKeeperResponse { valid: true, ledger_entries: 3, ..Default::default() });
    let good = vault.program().args(["keeper", "verify"]).assert().success();
    assert!(String::from_utf8_lossy(&good.get_output().stdout).contains("ledger: 3 entries"));
    let problems = vec!["tenant 4: generation 2 in the keeper, 3 in the database".to_owned()];
    vault.answers("VerifyKeeper", pb::VerifyKeeperResponse { valid: false, problems, ..Default::default() });
    let bad = vault.program().args(["keeper", "verify"]).assert().code(7);
    assert!(String::from_utf8_lossy(&bad.get_output().stdout).contains("tenant 4: generation 2"));
}

#[test]
fn every_command_fits_the_answers_of_the_api() {
    let vault = vault();
    // An empty message is one of every type. A column that a message does not have is an error.
    for method in methods().into_iter().filter(|m| m != "GetSchema") {
        vault.on(&method, |_| (vec![Default::default()], None));
    }
    let commands = [
        "whoami",
        "schema",
        "tenant create acme",
        "tenant list",
        "tenant show acme --usage",
        "tenant apply p.toml",
        "tenant apply p.toml --request-approval",
        "tenant diff p.toml",
        "tenant diff --from 1 --to 2",
        "tenant rollback 3",
        "tenant policy --versions",
        "tenant policy",
        "tenant update acme --quota-subjects 5",
        "tenant erase acme --confirm acme",
        "tenant advance-clock 1d",
        "access-key issue k --role backend",
        "access-key rotate k",
        "access-key release k",
        "access-key revoke k",
        "access-key list",
        "role create r --grant verbs=read~classes=account",
        "role update 9 --name r --grant verbs=read",
        "role list --grants",
        "approval request --verb read -f email -p service --reference c",
        "approval approve a",
        "approval deny a",
        "approval list",
        "put u -p service -f email",
        "get u -p service",
        "delete u -f email",
        "find email -p service --values",
        "item append u -f email -p 1",
        "item list u -f email -p 1",
        "item get u -f email -p 1 --item i",
        "item delete u -f email --item i",
        "subject show u",
        "subject list",
        "subject close u",
        "subject reopen u",
        "subject touch u",
        "group create g",
        "group show g",
        "group list",
        "group update g --state closed",
        "group subjects g",
        "erase subject u",
        "erase class u -c account",
        "erase fields u -f email",
        "erase items u -f email --item i",
        "erase group g",
        "erase preview u",
        "erase schedule u --at +1d",
        "erase cancel e",
        "erase status e",
        "erase list",
        "erase watch",
        "erase acknowledge e 3",
        "hold place u --basis b -p service",
        "hold release h",
        "hold list",
        "rights consent u support",
        "rights withdraw u support",
        "rights object u support",
        "rights restrict u account",
        "rights show u",
        "rights disclosures u",
        "rights disclosures --recipient 3 --pending",
        "rights nominate u v --for access",
        "rights unnominate u v",
        "count email -p support",
        "rights request erase --subject u",
        "rights close r done",
        "rights requests",
        "receipt get e",
        "receipt keys",
        "audit list",
        "audit access",
        "audit follow",
        "audit checkpoint",
        "audit prune --before 2020-01-01 --dry-run",
        "audit prune --before 2020-01-01 --approval a",
        "audit decoy mark u",
        "audit decoy unmark u",
        "audit decoy list",
        "ops list",
        "ops show o",
        "ops cancel o",
        "ops pause o",
        "ops resume o",
        "ops clock",
        "ops confirm-clock",
        "keys status --seal",
        "keys rotate index",
        "keys records",
        "keys move --to file",
        "keys compromised index",
        "backup data",
        "backup list",
        "backup prune",
        "keeper status",
        "keeper retire 1 --replica 4f1c3a5e9b2d47608c1e2f3a4b5c6d7e",
        "password set u",
        "password verify u",
        "password remove u",
        "password unlock u",
        "password import-one u",
        "password report",
        "api-key issue u --scope 3,4 --from 192.0.2.0/24",
        "api-key verify",
        "api-key rotate k --overlap 1d",
        "api-key revoke k",
        "api-key list u --state active",
        "code issue u --use reset --alphabet letters --life 1d",
        "code verify u --use reset",
        "code recovery u",
        "code totp enrol u --issuer Acme --account a",
        "code totp confirm u",
        "code totp verify u",
        "code totp remove u",
    ];
    // The others end with an exit code of their own where the verdict is not OK.
    let verdict = pb::Verdict::Ok as i32;
    vault.answers("VerifyPassword", pb::VerifyPasswordResponse { verdict, ..Default::default() });
    vault.answers("VerifyApiKey", pb::VerifyApiKeyResponse { verdict, ..Default::default() });
    vault.answers("VerifyCode", pb::VerifyCodeResponse { verdict, ..Default::default() });
    vault.answers("ConfirmTotp", pb::ConfirmTotpResponse { verdict, ..Default::default() });
    vault.answers("VerifyTotp", pb::VerifyTotpResponse { verdict, ..Default::default() });
    std::fs::write(vault.home.path().join("p.toml"), "x").unwrap();
    for command in commands {
        for json in [false, true] {
            let words = command.split(' ').map(|w| w.replace('~', " "));
            let mut program = vault.program();
            program.args(words).arg("--yes").args(json.then_some("--json")).write_stdin("x\n").assert().success();
        }
    }
    // These have tests of their own, because an empty answer is not a good one for them.
    let special = [
        "WatchOperation",
        "VerifyAudit",
        "VerifyKeeper",
        "TestAccess",
        "ExportEvidence",
        "ExportSubject",
        "LintPolicy",
        "GetReport",
        "PlanPolicy",
    ];
    let batches = ["BatchPutFields", "BatchGetFields", "BatchEraseSubjects", "BatchImportPasswords", "ChangePassword"];
    let unused: Vec<String> = methods().into_iter().filter(|m| vault.calls(m).is_empty()).collect();
    let left: Vec<&String> =
        unused.iter().filter(|m| !special.contains(&m.as_str()) && !batches.contains(&m.as_str())).collect();
    assert!(left.is_empty(), "no command calls {left:?}");
}

/// Names of all methods of the API.
fn methods() -> Vec<String> {
    use prost::Message as _;
    let set = prost_types::FileDescriptorSet::decode(pb::DESCRIPTOR_SET).unwrap();
    let services = set.file.iter().flat_map(|f| &f.service);
    services.flat_map(|s| s.method.iter().map(|m| m.name().to_string())).collect()
}

#[test]
fn passwords_and_codes_come_from_standard_input_and_a_no_has_its_exit_code() {
    let vault = vault();
    let (ok, no) = (pb::Verdict::Ok as i32, pb::Verdict::No as i32);
    vault.answers("VerifyPassword", pb::VerifyPasswordResponse { verdict: no, ..Default::default() });
    let mut program = vault.program();
    let assert =
        program.args(["password", "verify", "u-17", "--source", "192.0.2.7"]).write_stdin("canary 1\n").assert();
    assert.code(4).stdout(contains("VERDICT").and(contains("canary").not())).stderr(contains("canary").not());
    let sent: pb::VerifyPasswordRequest = vault.call("VerifyPassword").request();
    assert_eq!((sent.password.as_ref(), sent.source.as_ref()), (&b"canary 1"[..], &b"192.0.2.7"[..]));

    vault.answers("ChangePassword", pb::ChangePasswordResponse { verdict: ok, ..Default::default() });
    let mut program = vault.program();
    program.args(["password", "change", "u-17"]).write_stdin("old one\nnew one\n").assert().success();
    let sent: pb::ChangePasswordRequest = vault.call("ChangePassword").request();
    assert_eq!((sent.password.as_ref(), sent.new_password.as_ref()), (&b"old one"[..], &b"new one"[..]));
    // One line is not two: nothing is sent.
    let mut program = vault.program();
    program.args(["password", "change", "u-17"]).write_stdin("old one\n").assert().code(2);
    assert_eq!(vault.calls("ChangePassword").len(), 1);

    vault.answers("VerifyCode", pb::VerifyCodeResponse { verdict: no, ..Default::default() });
    let mut program = vault.program();
    program.args(["code", "verify", "u-17", "--use", "reset", "--json"]).write_stdin("482915\n").assert().code(4);
    let sent: pb::VerifyCodeRequest = vault.call("VerifyCode").request();
    assert_eq!((sent.r#use.as_str(), sent.text.as_str()), ("reset", "482915"));
}

#[test]
fn the_text_of_a_users_api_key_is_alone_on_standard_output_or_in_a_file() {
    let vault = vault();
    let api_key = Some(pb::ApiKey { api_key: "7Q3K2M".into(), ..Default::default() });
    vault.answers("IssueApiKey", pb::IssueApiKeyResponse { api_key, text: "acme_live_canary".into() });
    let mut program = vault.program();
    let assert = program.args(["api-key", "issue", "u-17", "--expires", "+90d", "--scope", "3,4"]).assert().success();
    assert.stdout("acme_live_canary\n").stderr(contains("7Q3K2M"));
    let sent: pb::IssueApiKeyRequest = vault.call("IssueApiKey").request();
    assert!(sent.scope_ids == [3, 4] && sent.expire_time.is_some());
    let file = vault.home.path().join("u-17.key");
    let mut program = vault.program();
    program.args(["api-key", "issue", "u-17", "--output"]).arg(&file).assert().success().stdout(is_empty());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "acme_live_canary\n");
}

#[test]
fn an_import_of_passwords_sends_the_rest_again_and_tells_refused_rows_by_number() {
    let vault = vault();
    // The server deals with two rows a call and refuses the third of all.
    vault.on("BatchImportPasswords", |call| {
        let request: pb::BatchImportPasswordsRequest = call.request();
        let done = request.rows.len().min(2);
        let error = Some(pb::ItemError {
            code: Code::InvalidArgument as i32,
            reason: "VALUE_INVALID".into(),
            ..Default::default()
        });
        let bad = request.rows[..done].iter().position(|row| row.subject == "u-3");
        let errors = bad.map(|row| pb::PasswordImportError { row: row as u32, error }).into_iter().collect();
        let answer = pb::BatchImportPasswordsResponse {
            done_count: done as u32,
            imported_count: done as u32 - u32::from(bad.is_some()),
            kept_count: 0,
            errors,
        };
        (vec![bytes(&answer)], None)
    });
    let rows = "subject,hash,must_change\nu-1,$2b$10$canary,\nu-2,$2b$10$canary,true\nu-3,$2b$10$canary,\n";
    let file = vault.home.path().join("users.csv");
    std::fs::write(&file, rows).unwrap();
    let mut program = vault.program();
    let assert =
        program.args(["password", "import", "--create-subjects", "--json", "--file"]).arg(&file).assert().code(8);
    let assert = assert.stderr(contains("canary").not());
    let out = String::from_utf8(assert.get_output().stdout.clone()).unwrap();
    let last: Json = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert_eq!((&last["imported"], &last["failed"]), (&2.into(), &1.into()), "{out}");
    let sent: Vec<pb::BatchImportPasswordsRequest> =
        vault.calls("BatchImportPasswords").iter().map(|call| call.request()).collect();
    assert_eq!(sent.iter().map(|request| request.rows.len()).collect::<Vec<_>>(), [3, 1]);
    assert!(sent[0].create_subjects && sent[0].rows[1].must_change && !sent[0].rows[0].must_change);
    // Going on where one stopped.
    let mut program = vault.program();
    program
        .args(["password", "import", "--skip", "2", "--file"])
        .arg(&file)
        .assert()
        .code(8)
        .stdout(contains("u-1").not());
    let rest: pb::BatchImportPasswordsRequest = vault.calls("BatchImportPasswords")[2].request();
    assert_eq!(rest.rows[0].subject, "u-3");
}

#[test]
fn calibrate_proposes_no_less_than_the_default_and_needs_no_server() {
    let vault = vault();
    let assert = vault.bare().args(["password", "calibrate", "--target", "10ms", "--json"]).assert().success();
    let proposed = json(&assert);
    assert!(proposed["memory_kib"].as_u64() >= Some(19_456) && proposed["iterations"].as_u64() >= Some(2));
    let mut program = vault.bare();
    program.args(["password", "calibrate", "--target", "10ms"]).assert().success().stdout(starts_with("[passwords]\n"));
}
