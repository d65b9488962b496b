//! Deterministic keyed digests: HMAC-SHA-256 (RFC 2104, FIPS 180-4) cut to 16 bytes. Deterministic output reveals
//! equality, so each has its own key and domain.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

/// HMAC-SHA-256 over `parts`, each preceded by its length (u32 big endian).
pub fn mac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = keyed(key);
    for part in parts {
        mac.update(&(part.len() as u32).to_be_bytes());
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// HMAC-SHA-256 with nothing in it yet; a function of its own so that test vectors reach it.
pub(in crate::crypto) fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length")
}

/// The first 16 bytes of [`mac`].
pub fn tag(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 16] {
    let full = mac(key, parts);
    full[..16].try_into().expect("32 bytes hold 16")
}

/// Compares in constant time.
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_separated() {
        let key = [9; 32];
        assert_ne!(mac(&key, &[b"ab", b"c"]), mac(&key, &[b"a", b"bc"]));
        assert!(equal(&tag(&key, &[b"x"]), &mac(&key, &[b"x"])[..16]));
    }
}
