//! Policies and what they promise: linted, planned, reported on.

use pii_vault::crypto::sign::Signing;
use pii_vault::grpc::pb;
use predicates::prelude::*;
use predicates::str::contains;

use crate::double::{Double, bytes};
use crate::{json, vault};

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
    let messages = vec![bytes(&progress), bytes(&last)];
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
    let cut = vec![bytes(&progress)];
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
