//! One segment of a key archive: records of some leaves, sealed together to the recovery recipients and signed.
//!
//! Magic 4, length u32 of the whole segment, vault 16, tenant u32, file 16 (random, the same in all segments of a file),
//! number u32 (from 0, without gaps), generation of the tree u64, sealed_at i64, expires_at i64, latest expiry of
//! anything ever sealed for this tenant i64, recovery epoch u32, count u32, key id 8; count times: leaf u32, generation
//! of the leaf u64; the age file with 3,840 B a leaf; SHA-256 32 over everything so far; Ed25519 signature 64 over that
//! hash. Numbers are big endian, times milliseconds. The headers are readable without a key, and signed.

use sha2::{Digest, Sha256};

use crate::clock::Timestamp;
use crate::crypto::sign::{self, Domain, Signing};
use crate::ids::{Generation, Ordinal, TenantNo, VaultId};
use crate::keyring::tree::{self, LEVEL_START};

const MAGIC: &[u8; 4] = b"pvKS";
const HEAD: usize = 4 + 4 + 16 + 4 + 16 + 4 + 8 + 8 + 8 + 8 + 4 + 4 + 8;
const ENTRY: usize = 4 + 8;
const FOOT: usize = 32 + 64;
/// Most leaves in a segment: about 1 MB.
pub const MOST_LEAVES: usize = 256;
/// Beyond any segment: as many leaves, and an age header for hundreds of recipients.
pub const MAX_SEGMENT: usize = HEAD + MOST_LEAVES * (ENTRY + crate::crypto::keys::NODE_BYTES) + (1 << 16) + FOOT;

/// What a segment says in clear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub vault: VaultId,
    pub tenant: TenantNo,
    /// Told apart from every other file of this tenant.
    pub file: [u8; 16],
    /// Its position in the file.
    pub number: u32,
    /// Generation of the whole tree when it was sealed.
    pub tree: Generation,
    pub sealed_at: Timestamp,
    /// From then on a restore refuses it.
    pub expires_at: Timestamp,
    /// The latest `expires_at` of anything that was ever sealed for this tenant.
    pub latest_expiry: Timestamp,
    /// Version of the recovery recipients.
    pub epoch: u32,
    /// First 8 bytes of the SHA-256 of the public key that signed.
    pub key: [u8; 8],
    /// Leaves in the order in which they are sealed, with the generation of each.
    pub leaves: Vec<(Ordinal, Generation)>,
}

fn key_id(public: &[u8; 32]) -> [u8; 8] {
    take(&Sha256::digest(public), 0)
}

fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a slice of N bytes")
}

fn signed(hash: &[u8; 32]) -> [u8; 39] {
    let mut out = *b"segment\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    out[7..].copy_from_slice(hash);
    out
}

impl Header {
    /// The whole segment around what `crypto::recovery::seal_leaves` made. `key` is set to the signer's.
    pub fn encode(&self, sealed: &[u8], signing: &Signing) -> Vec<u8> {
        debug_assert!((1..=MOST_LEAVES).contains(&self.leaves.len()));
        let len = HEAD + self.leaves.len() * ENTRY + sealed.len() + FOOT;
        let mut out = Vec::with_capacity(len);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&(len as u32).to_be_bytes());
        out.extend_from_slice(&self.vault.0);
        out.extend_from_slice(&self.tenant.0.to_be_bytes());
        out.extend_from_slice(&self.file);
        out.extend_from_slice(&self.number.to_be_bytes());
        out.extend_from_slice(&self.tree.0.to_be_bytes());
        out.extend_from_slice(&self.sealed_at.0.to_be_bytes());
        out.extend_from_slice(&self.expires_at.0.to_be_bytes());
        out.extend_from_slice(&self.latest_expiry.0.to_be_bytes());
        out.extend_from_slice(&self.epoch.to_be_bytes());
        out.extend_from_slice(&(self.leaves.len() as u32).to_be_bytes());
        out.extend_from_slice(&key_id(&signing.public()));
        for (leaf, generation) in &self.leaves {
            out.extend_from_slice(&leaf.0.to_be_bytes());
            out.extend_from_slice(&generation.0.to_be_bytes());
        }
        out.extend_from_slice(sealed);
        let hash: [u8; 32] = Sha256::digest(&out).into();
        out.extend_from_slice(&hash);
        out.extend_from_slice(&signing.sign(Domain::Archive, &signed(&hash)));
        out
    }

    /// Reads a whole segment, as long as [`length`] says; its form, hash and signature are checked. Answers the sealed
    /// part too.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn decode<'a>(bytes: &'a [u8], public_keys: &[[u8; 32]]) -> Result<(Header, &'a [u8]), &'static str> {
        if length(bytes)? != bytes.len() {
            return Err("it is cut off");
        }
        let count = u32::from_be_bytes(take(bytes, 84)) as usize;
        let sealed_from = HEAD + count.saturating_mul(ENTRY);
        let sealed_to = bytes.len() - FOOT;
        if !(1..=MOST_LEAVES).contains(&count) || sealed_from >= sealed_to {
            return Err("length and count differ");
        }
        let hash: [u8; 32] = take(bytes, sealed_to);
        if Sha256::digest(&bytes[..sealed_to]).as_slice() != hash {
            return Err("the hash does not fit");
        }
        let key: [u8; 8] = take(bytes, 88);
        let signature: [u8; 64] = take(bytes, sealed_to + 32);
        let known = public_keys.iter().find(|public| key_id(public) == key).ok_or("it was signed by an unknown key")?;
        if !sign::verify(known, Domain::Archive, &signed(&hash), &signature) {
            return Err("the signature is wrong");
        }
        let leaves: Vec<(Ordinal, Generation)> = bytes[HEAD..sealed_from]
            .chunks_exact(ENTRY)
            .map(|entry| (Ordinal(u32::from_be_bytes(take(entry, 0))), Generation(u64::from_be_bytes(take(entry, 4)))))
            .collect();
        if leaves.iter().any(|(leaf, _)| !(LEVEL_START[3]..tree::NODES).contains(&leaf.0)) {
            return Err("it names a leaf that no tree has");
        }
        let header = Header {
            vault: VaultId(take(bytes, 8)),
            tenant: TenantNo(u32::from_be_bytes(take(bytes, 24))),
            file: take(bytes, 28),
            number: u32::from_be_bytes(take(bytes, 44)),
            tree: Generation(u64::from_be_bytes(take(bytes, 48))),
            sealed_at: Timestamp(i64::from_be_bytes(take(bytes, 56))),
            expires_at: Timestamp(i64::from_be_bytes(take(bytes, 64))),
            latest_expiry: Timestamp(i64::from_be_bytes(take(bytes, 72))),
            epoch: u32::from_be_bytes(take(bytes, 80)),
            key,
            leaves,
        };
        Ok((header, &bytes[sealed_from..sealed_to]))
    }
}

/// Length of the segment that begins here, from its first 8 bytes.
///
/// # Errors
/// What is wrong, in words.
pub fn length(bytes: &[u8]) -> Result<usize, &'static str> {
    if bytes.len() < 8 {
        return Err("it is cut off");
    }
    if &bytes[..4] != MAGIC {
        return Err("no segment begins here");
    }
    let len = u32::from_be_bytes(take(bytes, 4)) as usize;
    if (HEAD + ENTRY + FOOT..=MAX_SEGMENT).contains(&len) { Ok(len) } else { Err("an impossible length") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(signing: &Signing) -> Header {
        Header {
            vault: VaultId([7; 16]),
            tenant: TenantNo(3),
            file: [9; 16],
            number: 4,
            tree: Generation(5),
            sealed_at: Timestamp(6),
            expires_at: Timestamp(7),
            latest_expiry: Timestamp(8),
            epoch: 9,
            key: key_id(&signing.public()),
            leaves: vec![(tree::leaf(0), Generation(1)), (tree::leaf(7), Generation(2))],
        }
    }

    #[test]
    fn what_was_written_is_read_and_the_head_is_96_bytes() {
        assert_eq!(HEAD, 96);
        let signing = Signing::generate();
        let bytes = header(&signing).encode(b"sealed", &signing);
        let (read, sealed) = Header::decode(&bytes, &[[1; 32], signing.public()]).unwrap();
        assert_eq!((read, sealed), (header(&signing), &b"sealed"[..]));
        let other = [Signing::generate().public()];
        assert_eq!(Header::decode(&bytes, &other).unwrap_err(), "it was signed by an unknown key");
    }

    proptest! {
        #[test]
        fn t40_no_bytes_make_the_segment_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), fit: bool) {
            let mut bytes = bytes;
            if fit && bytes.len() >= 8 {
                let len = bytes.len() as u32;
                bytes[..4].copy_from_slice(MAGIC);
                bytes[4..8].copy_from_slice(&len.to_be_bytes());
            }
            prop_assert!(Header::decode(&bytes, &[[3; 32]]).is_err());
        }

        #[test]
        fn a_flipped_bit_is_refused(bit in 0usize..8, pick: prop::sample::Index) {
            let signing = Signing::from_seed(&[5; 32]);
            let mut bytes = header(&signing).encode(b"sealed", &signing);
            let at = pick.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(Header::decode(&bytes, &[signing.public()]).is_err());
        }
    }
}
