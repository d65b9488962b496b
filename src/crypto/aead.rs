//! AES-256-GCM (NIST SP 800-38D) with a random 96-bit nonce made inside `seal`: nobody outside can choose one.
//! Sealed bytes are `nonce (12) || ciphertext || tag (16)`.

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use zeroize::Zeroizing;

use crate::crypto::aad::Aad;
use crate::crypto::random;

/// Bytes of a nonce.
pub const NONCE: usize = 12;
/// Bytes of a tag.
pub const TAG: usize = 16;
/// How much longer sealed bytes are than the plaintext.
pub const OVERHEAD: usize = NONCE + TAG;
/// Seals allowed under one key; at 2^24 random nonces a collision has probability below 2^-49.
pub const MAX_SEALS: u32 = 1 << 24;

/// The bytes do not open under this key and context. Nothing more is said, on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("does not open")]
pub struct OpenError;

/// A key with its schedule computed; wiped on drop by the cipher's own `zeroize` feature.
pub struct Cipher(Aes256Gcm);

impl Cipher {
    /// Expands a 256-bit key.
    pub fn new(key: &[u8; 32]) -> Self {
        Cipher(Aes256Gcm::new(key.into()))
    }

    /// Seals `plaintext` to the end of `out`.
    pub fn seal_into(&self, aad: &Aad, plaintext: &[u8], out: &mut Vec<u8>) {
        let nonce: [u8; NONCE] = random::bytes();
        out.reserve(plaintext.len() + OVERHEAD);
        out.extend_from_slice(&nonce);
        let start = out.len();
        out.extend_from_slice(plaintext);
        let tag = self
            .0
            .encrypt_inout_detached(&Nonce::from(nonce), aad.as_bytes(), (&mut out[start..]).into())
            .expect("plaintexts here are far below the 64 GiB limit of GCM");
        out.extend_from_slice(&tag);
    }

    /// Seals `plaintext`.
    pub fn seal(&self, aad: &Aad, plaintext: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(plaintext.len() + OVERHEAD);
        self.seal_into(aad, plaintext, &mut out);
        out
    }

    /// Opens sealed bytes.
    ///
    /// # Errors
    /// `OpenError` if they are too short, damaged, or were sealed under another key or context.
    pub fn open(&self, aad: &Aad, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        self.open_bytes(aad.as_bytes(), sealed)
    }

    /// `open` with the context as bytes: test vectors have contexts of their own.
    pub(in crate::crypto) fn open_bytes(&self, aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let text = sealed.len().checked_sub(OVERHEAD).ok_or(OpenError)?;
        let nonce: [u8; NONCE] = sealed[..NONCE].try_into().expect("length was checked");
        let tag: [u8; TAG] = sealed[NONCE + text..].try_into().expect("length was checked");
        let mut out = Zeroizing::new(sealed[NONCE..NONCE + text].to_vec());
        self.0
            .decrypt_inout_detached(&Nonce::from(nonce), aad, out.as_mut_slice().into(), &Tag::from(tag))
            .map_err(|_| OpenError)?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::aad::Kind;
    use crate::ids::{TenantNo, VaultId};

    fn aad(n: u32) -> Aad {
        Aad::new(Kind::Object, VaultId([7; 16]), TenantNo(n))
    }

    #[test]
    fn opens_only_what_was_sealed_here() {
        let cipher = Cipher::new(&[3; 32]);
        let sealed = cipher.seal(&aad(1), b"hello");
        assert_eq!(cipher.open(&aad(1), &sealed).unwrap().as_slice(), b"hello");
        assert!(cipher.open(&aad(2), &sealed).is_err());
        assert!(Cipher::new(&[4; 32]).open(&aad(1), &sealed).is_err());
        for i in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[i] ^= 1;
            assert!(cipher.open(&aad(1), &bad).is_err());
            assert!(cipher.open(&aad(1), &sealed[..i]).is_err());
        }
    }
}
