//! Erasures, their receipts and their feed.

use pii_vault::clock::Timestamp;
use pii_vault::crypto::sign::Signing;
use pii_vault::grpc::pb;
use predicates::prelude::*;
use predicates::str::{contains, is_empty};
use serde_json::Value as Json;

use crate::double::{Double, bytes};
use crate::vault;

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
