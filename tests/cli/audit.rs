//! The audit and the keeper: checked, and handed on.

use pii_vault::clock::Timestamp;
use pii_vault::crypto::sign::Signing;
use pii_vault::grpc::convert::wire_time;
use pii_vault::grpc::pb;
use predicates::prelude::*;
use predicates::str::{contains, is_empty};
use serde_json::Value as Json;

use crate::double::{Double, bytes};
use crate::vault;

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
