//! The frozen vectors of `tests/vectors/keeper-v1.json`, made by `make.py` beside it without this code.

use data_encoding::HEXLOWER;
use serde_json::Value;

use super::block::{self, Record, RecordKind};
use super::*;
use crate::crypto::keys::RootKek;
use crate::keyring::ledger::{LedgerKind, encode_batch, file_header};

fn file() -> Value {
    serde_json::from_str(include_str!("../../../tests/vectors/keeper-v1.json")).unwrap()
}

fn hex(value: &Value) -> Vec<u8> {
    HEXLOWER.decode(value.as_str().unwrap().as_bytes()).unwrap()
}

fn fixed<const N: usize>(value: &Value) -> [u8; N] {
    hex(value).try_into().unwrap()
}

#[test]
fn frozen_blocks() {
    let v = file();
    let vault = VaultId(fixed(&v["vault"]));
    let tenant = TenantNo(v["root"]["tenant"].as_u64().unwrap() as u32);
    let root = RootBlock {
        tenant,
        generation: Generation(v["root"]["generation"].as_u64().unwrap()),
        kek: fixed(&v["root"]["kek"]),
        wrapped: hex(&v["root"]["wrapped"]),
    };
    let record = fixed(&v["root"]["record"]);
    assert_eq!(block::root(vault, &root), Some(record));
    assert_eq!(block::decode(vault, &record), Record::Root(root));
    let record = fixed(&v["tombstone"]["record"]);
    assert_eq!(block::tombstone(vault, tenant), record);
    assert_eq!(block::decode(vault, &record), Record::Tombstone(tenant));
    let (sequence, bytes) = (v["own"]["sequence"].as_u64().unwrap(), hex(&v["own"]["bytes"]));
    let record = fixed(&v["own"]["record"]);
    assert_eq!(block::own(vault, RecordKind::Anchor, sequence, &bytes), Some(record));
    assert_eq!(block::decode(vault, &record), Record::Own { kind: RecordKind::Anchor, sequence, bytes });
}

#[test]
fn frozen_ledger() {
    let v = file();
    let vault = VaultId(fixed(&v["vault"]));
    let bytes = hex(&v["ledger"]["file"]);
    let signing = Signing::from_seed(&fixed(&v["signing_seed"]));
    let mut reader = LedgerReader::new(Arc::new(bytes.clone()), vault).unwrap();
    let mut again = file_header(vault).to_vec();
    let mut head = LedgerHead::default();
    for wanted in v["ledger"]["heads"].as_array().unwrap() {
        let batch = reader.next_batch().unwrap().unwrap();
        assert!(batch.signed_by(vault, &[fixed(&v["ledger"]["public"])]));
        assert_eq!(batch.head().seq, wanted["seq"].as_u64().unwrap());
        assert_eq!(batch.head().hash, fixed(&wanted["hash"]));
        let (encoded, next) = encode_batch(vault, &head, &batch.entries, &signing);
        again.extend(encoded);
        head = next;
    }
    assert_eq!(again, bytes);
    let mut reader = LedgerReader::new(Arc::new(bytes), vault).unwrap();
    let mut kinds = Vec::new();
    while let Some(batch) = reader.next_batch().unwrap() {
        kinds.extend(batch.entries.iter().map(|e| (e.kind as u8, e.uid.0, e.number)));
    }
    // One of the first batch, then every kind once.
    assert_eq!(kinds[1..], (0..12u8).map(|n| (n + 1, i64::from(n) - 1, u32::from(n) + 5)).collect::<Vec<_>>());
    assert_eq!(LedgerKind::TenantErased as u8, 12);
}

#[test]
fn frozen_own_blocks() {
    let v = file();
    let vault = VaultId(fixed(&v["vault"]));
    let kek = RootKek::from_bytes(&fixed(&v["kek"]));
    let signing = open_signing(vault, &kek, &hex(&v["sealed_signing"])).unwrap();
    assert_eq!(*signing.seed(), fixed::<32>(&v["signing_seed"]));
    let head = v["ledger"]["heads"].as_array().unwrap().last().unwrap();
    let anchor = Anchor {
        at: Timestamp(v["anchor"]["at"].as_i64().unwrap()),
        audit_count: v["anchor"]["audit_count"].as_u64().unwrap(),
        audit_head: fixed(&v["anchor"]["audit_head"]),
        ledger: LedgerHead { seq: head["seq"].as_u64().unwrap(), hash: fixed(&head["hash"]) },
    };
    assert_eq!(anchor.encode(vault, &kek), hex(&v["anchor"]["bytes"]));
    assert_eq!(Anchor::decode(vault, &kek, &hex(&v["anchor"]["bytes"])), Some(anchor));
}
