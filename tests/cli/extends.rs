//! `audit verify --against`: a server that rewrote its history is caught here, whatever it answers.

use pii_vault::audit::{Chain, ChainHead, Checkpoint, GrowingTree, Head};
use pii_vault::clock::{Clock as _, SystemClock, Timestamp};
use pii_vault::crypto::sign::Signing;
use pii_vault::grpc::pb;
use pii_vault::ids::{TenantNo, VaultId};
use predicates::str::contains;

use crate::vault;

const TENANT: TenantNo = TenantNo(3);

/// A chain whose entries begin with those of `like` and then are others.
fn grown(like: u64, until: u64, salt: u8) -> GrowingTree {
    let mut tree = GrowingTree::new();
    (0..until).for_each(|n| tree.push(Head { seq: n + 1, hash: [if n < like { n as u8 } else { salt }; 32] }));
    tree
}

fn signed(tree: &GrowingTree, at: Timestamp, key: &Signing) -> Checkpoint {
    let head = ChainHead::new(TENANT, Chain::Read, tree.last().unwrap());
    Checkpoint::sign(VaultId([1; 16]), at, vec![ChainHead { tree: Some(tree.tree()), ..head }], key)
}

#[test]
fn t28_a_server_that_rewrote_its_history_is_caught_whatever_it_answers() {
    let vault = vault();
    let (key, now) = (Signing::generate(), SystemClock::new().now());
    let ago = |minutes: i64| now.plus_ms(-minutes * 60_000);
    let file = vault.home.path().join("anchor.jsonl");
    let keys = data_encoding::HEXLOWER.encode(&key.public());
    let first = grown(5, 5, 0);
    let mut second = first.clone();
    second.mark();
    (5..9).for_each(|n| second.push(Head { seq: n + 1, hash: [n as u8; 32] }));
    let lines = [signed(&first, ago(90), &key).to_json(), signed(&second, ago(60), &key).to_json(), Vec::new()];
    std::fs::write(&file, lines.join(&b'\n')).unwrap();
    let step = |former: &GrowingTree, later: &GrowingTree| {
        let hashes = later.extension(former);
        let found = hashes.is_some();
        pb::ConsistencyProof { found, hashes: hashes.unwrap_or_default().iter().map(|h| h.to_vec().into()).collect() }
    };
    let answer = |present: &Checkpoint, steps: Vec<pb::ConsistencyProof>| {
        let chain = pb::AuditChain::Reads as i32;
        let verdict = pb::ChainVerdict {
            chain,
            valid: true,
            tenant_number: 3,
            compared: 2,
            first_position: 1,
            ..Default::default()
        };
        let present = present.proof(TENANT, Chain::Read).unwrap().to_json().into();
        let extension = pb::ChainExtension { tenant_number: 3, chain, present, steps };
        pb::VerifyAuditResponse { valid: true, chains: vec![verdict], extensions: vec![extension] }
    };
    let run = |answered: pb::VerifyAuditResponse| {
        vault.answers("VerifyAudit", answered);
        let args = ["audit", "verify", "--public-key", &keys, "--against"];
        vault.program().args(args).arg(&file).assert()
    };
    let mut third = second.clone();
    third.mark();
    (9..20).for_each(|n| third.push(Head { seq: n + 1, hash: [n as u8; 32] }));
    let right = [step(&first, &second), step(&second, &third)];
    let present = signed(&third, now, &key);
    run(answer(&present, right.to_vec())).success().stdout(contains("goes on from 2 heads"));

    // Another history since the seventh entry, whole by itself and signed: the server says that all is well.
    let other = signed(&grown(7, 20, 99), now, &key);
    for steps in [right.to_vec(), vec![right[0].clone(), step(&second, &grown(7, 20, 99))], Vec::new()] {
        run(answer(&other, steps)).code(7).stderr(contains("not proven to go on from entry"));
    }
    let mut silent = answer(&other, Vec::new());
    silent.extensions.clear();
    run(silent).code(7);
    // The old checkpoint for one of now, one of another key, one of another chain.
    let same = step(&second, &second);
    run(answer(&signed(&second, ago(60), &key), vec![right[0].clone(), same])).code(7).stderr(contains("not now"));
    run(answer(&signed(&third, now, &Signing::generate()), right.to_vec())).code(7);
    let mut mixed = answer(&present, right.to_vec());
    mixed.extensions[0].chain = pb::AuditChain::Changes as i32;
    run(mixed).code(7);
    // An operator's answer leaves nobody out.
    let mut partly = answer(&present, right.to_vec());
    partly.chains[0].tenant_number = 0;
    run(partly).code(7).stderr(contains("does not answer for it"));
}
