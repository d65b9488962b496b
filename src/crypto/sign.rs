//! Ed25519 (RFC 8032) with a domain in front of every message, so that a signed receipt can never pass for a checkpoint.

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::crypto::random;

/// What is signed. The text is part of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Domain {
    Receipt,
    Checkpoint,
    Ledger,
    Anchor,
    Archive,
    Report,
    KeyChain,
    Rotation,
    Drill,
    Evidence,
}

impl Domain {
    fn text(self) -> &'static [u8] {
        match self {
            Domain::Receipt => b"pii-vault receipt v1\0",
            Domain::Checkpoint => b"pii-vault audit checkpoint v1\0",
            Domain::Ledger => b"pii-vault ledger v1\0",
            Domain::Anchor => b"pii-vault anchor v1\0",
            Domain::Archive => b"pii-vault archive v1\0",
            Domain::Report => b"pii-vault report v1\0",
            Domain::KeyChain => b"pii-vault key chain v1\0",
            Domain::Rotation => b"pii-vault rotation v1\0",
            Domain::Drill => b"pii-vault drill v1\0",
            Domain::Evidence => b"pii-vault evidence v1\0",
        }
    }
}

/// Names a public key: the first 8 bytes of its SHA-256, in hexadecimal.
pub fn key_id(public: &[u8; 32]) -> String {
    data_encoding::HEXLOWER.encode(&Sha256::digest(public)[..8])
}

/// The vault's signing key; wiped on drop.
pub struct Signing(SigningKey);

impl Signing {
    /// A fresh random key.
    pub fn generate() -> Self {
        let mut seed = Zeroizing::new([0u8; 32]);
        random::fill(seed.as_mut_slice());
        Signing(SigningKey::from_bytes(&seed))
    }
    /// From the 32-byte seed of RFC 8032.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Signing(SigningKey::from_bytes(seed))
    }
    /// The seed, to be sealed into the keeper.
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }
    /// The public key, 32 bytes.
    pub fn public(&self) -> [u8; 32] {
        self.0.verifying_key().to_bytes()
    }
    /// Names the public key.
    pub fn key_id(&self) -> String {
        key_id(&self.public())
    }
    /// Signs a message of a domain.
    pub fn sign(&self, domain: Domain, message: &[u8]) -> [u8; 64] {
        let mut bytes = domain.text().to_vec();
        bytes.extend_from_slice(message);
        self.0.sign(&bytes).to_bytes()
    }
}

impl std::fmt::Debug for Signing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signing({})", self.key_id())
    }
}

/// Checks a signature strictly (no small-order keys, canonical encodings).
pub fn verify(public: &[u8; 32], domain: Domain, message: &[u8], signature: &[u8; 64]) -> bool {
    let mut bytes = domain.text().to_vec();
    bytes.extend_from_slice(message);
    verify_bytes(public, &bytes, signature)
}

/// What a signing key signs about the one after it: vault and new public key.
pub fn successor(vault: &[u8; 16], next: &[u8; 32]) -> Vec<u8> {
    [vault.as_slice(), next].concat()
}

/// Whether the key before says that `next` follows it in this vault.
pub fn follows(former: &[u8; 32], vault: &[u8; 16], next: &[u8; 32], signature: &[u8; 64]) -> bool {
    verify(former, Domain::KeyChain, &successor(vault, next), signature)
}

/// `verify` over whole bytes; a function of its own so that test vectors reach it.
pub(in crate::crypto) fn verify_bytes(public: &[u8; 32], bytes: &[u8], signature: &[u8; 64]) -> bool {
    let Ok(key) = VerifyingKey::from_bytes(public) else { return false };
    key.verify_strict(bytes, &Signature::from_bytes(signature)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_belongs_to_its_domain_and_message() {
        let key = Signing::generate();
        let signature = key.sign(Domain::Receipt, b"m");
        assert!(verify(&key.public(), Domain::Receipt, b"m", &signature));
        assert!(!verify(&key.public(), Domain::Checkpoint, b"m", &signature));
        assert!(!verify(&key.public(), Domain::Receipt, b"n", &signature));
    }
}
