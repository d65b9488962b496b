//! The frozen vectors of `tests/vectors/crypto-v1.json`, made by `make.py` beside it without this code. What opens here
//! must open for ever.

use data_encoding::HEXLOWER;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::aad::{Aad, Kind, Place};
use super::kdf::{self, Label, derive};
use super::keys::{ClassKeys, Dek, DigestKey, ExpiryKey, FAN_OUT, IndexKey, NodeKey, NodeKeys, RootKek, TenantSecret};
use super::sign::{self, Domain, Signing};
use crate::ids::*;

fn file() -> Value {
    serde_json::from_str(include_str!("../../tests/vectors/crypto-v1.json")).unwrap()
}

fn hex(value: &Value) -> Vec<u8> {
    HEXLOWER.decode(value.as_str().unwrap().as_bytes()).unwrap()
}

fn fixed<const N: usize>(value: &Value) -> [u8; N] {
    hex(value).try_into().unwrap()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| value.as_str().unwrap().parse().unwrap())
}

fn vault(v: &Value) -> VaultId {
    VaultId(fixed(&v["vault"]))
}

fn tenant(v: &Value) -> TenantNo {
    TenantNo(number(&v["tenant"]) as u32)
}

#[test]
fn frozen_values_open_and_are_bound_to_their_place() {
    let v = file();
    let dek = Dek::from_bytes(&fixed(&v["dek"]));
    assert_eq!(dek.id(), DekId(fixed(&v["dek_id"])));
    let (class, expiring): (ClassKeys, ClassKeys) =
        (dek.class_keys(), dek.expiring_keys(&ExpiryKey::from_bytes(&fixed(&v["expiry"]))));
    for case in v["values"].as_array().unwrap() {
        let place = Place {
            vault: vault(&v),
            tenant: tenant(&v),
            uid: SubjectUid(number(&case["uid"]) as i64),
            class: ClassNo(number(&case["class"]) as u8),
            field: FieldNo(number(&case["field"]) as u16),
            item: number(&case["item"]) as i64,
            dek: dek.id(),
            bucket: Bucket(number(&case["bucket"]) as u32),
            revision: Revision(number(&case["revision"])),
        };
        let aad = Aad::value(&place);
        assert_eq!(aad.as_bytes(), hex(&case["aad"]));
        let keys = if place.bucket == Bucket::NONE { &class } else { &expiring };
        let sealed = hex(&case["sealed"]);
        assert_eq!(*keys.cipher().open(&aad, &sealed).unwrap(), hex(&case["plain"]));
        let moved = Aad::value(&Place { revision: Revision(place.revision.0 ^ 1), ..place });
        assert!(keys.cipher().open(&moved, &sealed).is_err());
    }
    let parts: Vec<Vec<u8>> = v["manifest"]["parts"].as_array().unwrap().iter().map(hex).collect();
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    assert_eq!(class.manifest(&parts), fixed::<16>(&v["manifest"]["mac"]));
    assert_eq!(expiring.manifest(&parts), fixed::<16>(&v["manifest"]["expiring"]));
}

#[test]
fn frozen_labels_derive_the_same_keys() {
    let v = file();
    let cases = v["kdf"].as_array().unwrap();
    for label in Label::ALL {
        let name = format!("{label:?}");
        let mut of_label = cases.iter().filter(|case| case["label"] == name).peekable();
        assert!(of_label.peek().is_some(), "{name} has no vector");
        for case in of_label {
            let derived = derive::<48>(&[&hex(&case["ikm"])], *label, &hex(&case["context"]));
            assert_eq!(*derived, fixed::<48>(&case["okm"]), "{name}");
        }
    }
    let texts: std::collections::HashSet<_> = Label::ALL.iter().map(|label| label.text()).collect();
    assert_eq!(texts.len(), Label::ALL.len());
    assert_eq!(cases.len(), 2 * Label::ALL.len());
}

#[test]
fn hkdf_ends_where_rfc_5869_ends_it() {
    assert!(kdf::hkdf(None, b"ikm", &[], &mut [0; 255 * 32]).is_some());
    assert!(kdf::hkdf(None, b"ikm", &[], &mut [0; 255 * 32 + 1]).is_none());
}

#[test]
fn frozen_digests_and_index_tags() {
    let v = file();
    let secret = TenantSecret::from_bytes(&fixed(&v["secret"]));
    for case in v["digests"].as_array().unwrap() {
        let digest = DigestKey::derive(&secret).digest(case["id"].as_str().unwrap());
        assert_eq!(digest, SubjectDigest(fixed(&case["digest"])));
    }
    for case in v["index"].as_array().unwrap() {
        let key = IndexKey::derive(&secret, FieldNo(number(&case["field"]) as u16));
        assert_eq!(key.tag(&hex(&case["term"])), TermTag(fixed(&case["tag"])));
    }
}

#[test]
fn frozen_roots_and_nodes_open() {
    let v = file();
    let kek = RootKek::from_bytes(&fixed(&v["kek"]));
    assert_eq!(kek.id(), fixed::<16>(&v["kek_id"]));
    let aad =
        Aad::new(Kind::Root, vault(&v), tenant(&v)).part(&number(&v["root_generation"]).to_be_bytes()).part(&kek.id());
    let root = kek.unwrap(&aad, &hex(&v["wrapped_root"])).unwrap();
    assert_eq!(root.bytes(), &fixed::<32>(&v["root"]));
    let node = NodeKey::from_bytes(&fixed(&v["node_key"]));
    let at = |case: &Value| {
        Aad::node(
            vault(&v),
            tenant(&v),
            Ordinal(number(&case["ordinal"]) as u32),
            Generation(number(&case["generation"])),
        )
    };
    let digest = |keys: &NodeKeys| {
        let mut hash = Sha256::new();
        (0..FAN_OUT).for_each(|i| hash.update(keys.child(i).bytes()));
        hash.finalize().to_vec()
    };
    let wanted = hex(&v["node_plain_sha256"]);
    let (top, leaf) = (hex(&v["top"]["blob"]), hex(&v["leaf"]["blob"]));
    assert_eq!((top.len(), leaf.len()), (3869, 3869));
    assert_eq!(digest(&root.open_node(&at(&v["top"]), &top).unwrap()), wanted);
    assert_eq!(digest(&node.open_node(&at(&v["leaf"]), &leaf).unwrap()), wanted);
    assert!(root.open_node(&at(&v["leaf"]), &top).is_err());
    assert!(node.open_node(&at(&v["leaf"]), &leaf[..3868]).is_err());
}

#[test]
fn frozen_signatures() {
    let v = &file()["signing"];
    let signing = Signing::from_seed(&fixed(&v["seed"]));
    assert_eq!(signing.public(), fixed::<32>(&v["public"]));
    assert_eq!(signing.key_id(), v["key_id"].as_str().unwrap());
    for domain in [
        Domain::Receipt,
        Domain::Checkpoint,
        Domain::Ledger,
        Domain::Anchor,
        Domain::Archive,
        Domain::Report,
        Domain::KeyChain,
        Domain::Drill,
        Domain::Evidence,
    ] {
        let wanted = fixed::<64>(&v["signatures"][format!("{domain:?}")]);
        assert_eq!(signing.sign(domain, &hex(&v["message"])), wanted, "{domain:?}");
        assert!(sign::verify(&signing.public(), domain, &hex(&v["message"]), &wanted));
    }
}
