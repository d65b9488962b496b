//! What the own blocks hold: the sealed signing key with its link to the one before, and the anchor.

use zeroize::Zeroizing;

use crate::clock::Timestamp;
use crate::crypto::aad::{Aad, Kind};
use crate::crypto::aead::{Cipher, OpenError};
use crate::crypto::blind_index;
use crate::crypto::kdf::Label;
use crate::crypto::keys::RootKek;
use crate::crypto::sign::{Domain, Signing, follows, successor};
use crate::ids::{TenantNo, VaultId};
use crate::keyring::ledger::LedgerHead;

/// Bytes of a sealed signing key: KEK id 16, public key 32, nonce 12, sealed seed 32, tag 16.
const SIGNING_BYTES: usize = 108;

/// How a signing key follows from the one before: that one's signature over the new public key. Whoever trusts the old
/// key so knows that the new one is the same vault's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Public key of the one before.
    pub former: [u8; 32],
    /// By the one before, over vault and new public key.
    pub signature: [u8; 64],
}

impl Link {
    /// Made with the last use of the old key.
    pub fn sign(vault: VaultId, former: &Signing, next: &[u8; 32]) -> Self {
        let signature = former.sign(Domain::KeyChain, &successor(&vault.0, next));
        Link { former: former.public(), signature }
    }

    /// Whether the old key made it, for this vault and this new key.
    pub fn is_right(&self, vault: VaultId, next: &[u8; 32]) -> bool {
        follows(&self.former, &vault.0, next, &self.signature)
    }
}

/// The link behind a sealed signing key; its signature is not checked here.
pub fn link_of(bytes: &[u8]) -> Option<Link> {
    let (former, signature) = bytes.get(SIGNING_BYTES..)?.split_first_chunk::<32>()?;
    Some(Link { former: *former, signature: signature.try_into().ok()? })
}

/// Seals the signing key under the root KEK, 108 bytes; behind it, in clear, the link to the key before, 96 bytes.
pub fn seal_signing(vault: VaultId, kek: &RootKek, signing: &Signing, link: Option<&Link>) -> Vec<u8> {
    let mut out = kek.id().to_vec();
    out.extend_from_slice(&signing.public());
    let aad = Aad::new(Kind::Signing, vault, TenantNo::VAULT).part(&kek.id()).part(&signing.public());
    Cipher::new(&kek.derived(Label::SigningSeal)).seal_into(&aad, signing.seed().as_slice(), &mut out);
    if let Some(link) = link {
        out.extend_from_slice(&link.former);
        out.extend_from_slice(&link.signature);
    }
    out
}

/// Opens what `seal_signing` made.
///
/// # Errors
/// `OpenError` if the bytes are damaged or were sealed under another KEK.
pub fn open_signing(vault: VaultId, kek: &RootKek, bytes: &[u8]) -> Result<Signing, OpenError> {
    let linked = SIGNING_BYTES + 32 + 64;
    if bytes.len() != SIGNING_BYTES && bytes.len() != linked {
        return Err(OpenError);
    }
    let (id, rest) = bytes[..SIGNING_BYTES].split_at(16);
    let (public, sealed) = rest.split_at_checked(32).ok_or(OpenError)?;
    if id != kek.id() {
        return Err(OpenError);
    }
    let aad = Aad::new(Kind::Signing, vault, TenantNo::VAULT).part(id).part(public);
    let plain = Cipher::new(&kek.derived(Label::SigningSeal)).open(&aad, sealed)?;
    let seed: Zeroizing<[u8; 32]> = Zeroizing::new(plain.as_slice().try_into().map_err(|_| OpenError)?);
    let signing = Signing::from_seed(&seed);
    if signing.public() == public { Ok(signing) } else { Err(OpenError) }
}

/// Where audit and ledger stood at most a second ago; a database or a ledger that ends before it was rolled back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anchor {
    pub at: Timestamp,
    /// Number of audit entries of all change chains together: those of the database.
    pub audit_count: u64,
    /// Merkle root over the heads of all chains.
    pub audit_head: [u8; 32],
    pub ledger: LedgerHead,
}

impl Anchor {
    const BYTES: usize = 8 + 8 + 32 + 8 + 32;

    /// Its bytes with a MAC under the root KEK: 104 in all.
    pub fn encode(&self, vault: VaultId, kek: &RootKek) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::BYTES + 16);
        out.extend_from_slice(&self.at.0.to_be_bytes());
        out.extend_from_slice(&self.audit_count.to_be_bytes());
        out.extend_from_slice(&self.audit_head);
        out.extend_from_slice(&self.ledger.seq.to_be_bytes());
        out.extend_from_slice(&self.ledger.hash);
        let mac = blind_index::tag(&kek.derived(Label::AnchorMac), &[&vault.0, &out]);
        out.extend_from_slice(&mac);
        out
    }

    /// Reads and checks it; `None` if it is not what was written under this KEK for this vault.
    pub fn decode(vault: VaultId, kek: &RootKek, bytes: &[u8]) -> Option<Self> {
        let (body, mac) = bytes.split_at_checked(Self::BYTES)?;
        if !blind_index::equal(mac, &blind_index::tag(&kek.derived(Label::AnchorMac), &[&vault.0, body])) {
            return None;
        }
        let number = |at: usize| <[u8; 8]>::try_from(&body[at..at + 8]).expect("8 of 88 bytes");
        let hash = |at: usize| <[u8; 32]>::try_from(&body[at..at + 32]).expect("32 of 88 bytes");
        Some(Anchor {
            at: Timestamp(i64::from_be_bytes(number(0))),
            audit_count: u64::from_be_bytes(number(8)),
            audit_head: hash(16),
            ledger: LedgerHead { seq: u64::from_be_bytes(number(48)), hash: hash(56) },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyring::keeper::OWN_CAPACITY;

    const VAULT: VaultId = VaultId([7; 16]);

    #[test]
    fn the_signing_key_opens_under_its_kek_only() {
        let (kek, signing) = (RootKek::generate(), Signing::generate());
        let sealed = seal_signing(VAULT, &kek, &signing, None);
        assert!(sealed.len() <= OWN_CAPACITY);
        assert_eq!(open_signing(VAULT, &kek, &sealed).unwrap().public(), signing.public());
        assert!(open_signing(VAULT, &RootKek::generate(), &sealed).is_err());
        assert!(open_signing(VaultId([8; 16]), &kek, &sealed).is_err());
        for i in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[i] ^= 1;
            assert!(open_signing(VAULT, &kek, &bad).is_err());
            assert!(open_signing(VAULT, &kek, &sealed[..i]).is_err());
        }
    }

    #[test]
    fn a_key_says_who_came_before() {
        let (kek, former, signing) = (RootKek::generate(), Signing::generate(), Signing::generate());
        let link = Link::sign(VAULT, &former, &signing.public());
        let sealed = seal_signing(VAULT, &kek, &signing, Some(&link));
        assert!(sealed.len() <= OWN_CAPACITY);
        assert_eq!(open_signing(VAULT, &kek, &sealed).unwrap().public(), signing.public());
        let found = link_of(&sealed).unwrap();
        assert!(found == link && found.is_right(VAULT, &signing.public()));
        assert!(!found.is_right(VAULT, &former.public()) && !found.is_right(VaultId([8; 16]), &signing.public()));
        for i in SIGNING_BYTES..sealed.len() {
            let mut bad = sealed.clone();
            bad[i] ^= 1;
            assert!(!link_of(&bad).unwrap().is_right(VAULT, &signing.public()));
        }
        assert_eq!(link_of(&sealed[..SIGNING_BYTES]), None);
    }

    #[test]
    fn a_changed_anchor_does_not_count() {
        let kek = RootKek::generate();
        let ledger = LedgerHead { seq: 3, hash: [4; 32] };
        let anchor = Anchor { at: Timestamp(1), audit_count: 2, audit_head: [3; 32], ledger };
        let bytes = anchor.encode(VAULT, &kek);
        assert_eq!(Anchor::decode(VAULT, &kek, &bytes), Some(anchor));
        for i in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[i] ^= 1;
            assert_eq!(Anchor::decode(VAULT, &kek, &bad), None);
            assert_eq!(Anchor::decode(VAULT, &kek, &bytes[..i]), None);
        }
        assert_eq!(Anchor::decode(VaultId([8; 16]), &kek, &bytes), None);
    }
}
