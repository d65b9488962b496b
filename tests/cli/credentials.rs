//! Passwords, codes and API keys of tenants' users.

use pii_vault::grpc::pb;
use predicates::prelude::*;
use predicates::str::{contains, is_empty, starts_with};
use serde_json::Value as Json;
use tonic::Code;

use crate::double::bytes;
use crate::{json, vault};

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
