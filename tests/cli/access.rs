//! Access keys, and who may do what.

use pii_vault::grpc::pb;
use predicates::prelude::*;
use predicates::str::contains;

use crate::{json, vault};

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
