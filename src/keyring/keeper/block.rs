//! The bytes of a keeper block: one record in the first 512 B, so that a disk writes it whole or not at all, of the
//! 4 KiB that a block takes.
//!
//! Root record: magic 8, vault 16, tenant u32, kind 1, format 1, zero 2, generation u64, KEK id 16, wrapped root 60,
//! SHA-256 over these 116 bytes; the rest zero. Own record: the same first 32 bytes (tenant 0), sequence u64, length
//! u16, bytes up to 400, zeros to 442, SHA-256 over these 442 bytes; the rest zero. Numbers are big endian.

use sha2::{Digest, Sha256};

use super::{OWN_CAPACITY, RootBlock, WRAPPED};
use crate::ids::{Generation, TenantNo, VaultId};

/// Bytes from one block to the next.
pub const BLOCK: u64 = 4096;
/// Bytes of a record: one sector.
pub const RECORD: usize = 512;
/// Blocks before the first tenant's.
pub const FIRST: u64 = 16;

const MAGIC: &[u8; 8] = b"pvkeeper";
const FORMAT: u8 = 1;
const HEAD: usize = 40;
const ROOT_END: usize = HEAD + 16 + WRAPPED;
const OWN_END: usize = HEAD + 2 + OWN_CAPACITY;
const DIGEST: usize = 32;

/// What a record is. The numbers are stored and never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    Root = 1,
    Tombstone = 2,
    Signing = 3,
    Anchor = 4,
    Header = 5,
}

/// What 512 bytes hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    Empty,
    /// Bytes whose check or place is wrong.
    Torn,
    Root(RootBlock),
    Tombstone(TenantNo),
    Own {
        kind: RecordKind,
        sequence: u64,
        bytes: Vec<u8>,
    },
}

fn start(vault: VaultId, tenant: TenantNo, kind: RecordKind, number: u64) -> [u8; RECORD] {
    let mut out = [0; RECORD];
    out[..8].copy_from_slice(MAGIC);
    out[8..24].copy_from_slice(&vault.0);
    out[24..28].copy_from_slice(&tenant.0.to_be_bytes());
    out[28] = kind as u8;
    out[29] = FORMAT;
    out[32..40].copy_from_slice(&number.to_be_bytes());
    out
}

fn finish(mut out: [u8; RECORD], end: usize) -> [u8; RECORD] {
    let digest = Sha256::digest(&out[..end]);
    out[end..end + DIGEST].copy_from_slice(&digest);
    out
}

/// A root's record; `None` if the wrapped root has not 60 bytes.
pub fn root(vault: VaultId, block: &RootBlock) -> Option<[u8; RECORD]> {
    if block.wrapped.len() != WRAPPED {
        return None;
    }
    let mut out = start(vault, block.tenant, RecordKind::Root, block.generation.0);
    out[HEAD..HEAD + 16].copy_from_slice(&block.kek);
    out[HEAD + 16..ROOT_END].copy_from_slice(&block.wrapped);
    Some(finish(out, ROOT_END))
}

/// The record that says a tenant was erased.
pub fn tombstone(vault: VaultId, tenant: TenantNo) -> [u8; RECORD] {
    finish(start(vault, tenant, RecordKind::Tombstone, 0), ROOT_END)
}

/// An own record; `None` if it holds more than 400 bytes.
pub fn own(vault: VaultId, kind: RecordKind, sequence: u64, bytes: &[u8]) -> Option<[u8; RECORD]> {
    if bytes.len() > OWN_CAPACITY {
        return None;
    }
    let mut out = start(vault, TenantNo::VAULT, kind, sequence);
    out[HEAD..HEAD + 2].copy_from_slice(&(bytes.len() as u16).to_be_bytes());
    out[HEAD + 2..HEAD + 2 + bytes.len()].copy_from_slice(bytes);
    Some(finish(out, OWN_END))
}

/// The vault a right record belongs to; for telling one vault's keeper from another's.
pub fn vault_of(bytes: &[u8; RECORD]) -> VaultId {
    VaultId(bytes[8..24].try_into().expect("16 bytes of 512"))
}

/// Reads a record. Any bit that differs from what was written gives `Torn`.
pub fn decode(vault: VaultId, bytes: &[u8; RECORD]) -> Record {
    if bytes.iter().all(|&b| b == 0) {
        return Record::Empty;
    }
    read(vault, bytes).unwrap_or(Record::Torn)
}

fn read(vault: VaultId, bytes: &[u8; RECORD]) -> Option<Record> {
    if &bytes[..8] != MAGIC || bytes[8..24] != vault.0 || bytes[29] != FORMAT || bytes[30..32] != [0, 0] {
        return None;
    }
    let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 bytes of 512"));
    let tenant = TenantNo(u32::from_be_bytes(bytes[24..28].try_into().expect("4 bytes of 512")));
    let whole = |end: usize| {
        Sha256::digest(&bytes[..end]).as_slice() == &bytes[end..end + DIGEST]
            && bytes[end + DIGEST..].iter().all(|&b| b == 0)
    };
    match bytes[28] {
        1 if whole(ROOT_END) => Some(Record::Root(RootBlock {
            tenant,
            generation: Generation(number(32)),
            kek: bytes[HEAD..HEAD + 16].try_into().expect("16 bytes of 512"),
            wrapped: bytes[HEAD + 16..ROOT_END].to_vec(),
        })),
        2 if whole(ROOT_END) => Some(Record::Tombstone(tenant)),
        kind @ 3..=5 if whole(OWN_END) => {
            let kind = match kind {
                3 => RecordKind::Signing,
                4 => RecordKind::Anchor,
                _ => RecordKind::Header,
            };
            let len = u16::from_be_bytes([bytes[HEAD], bytes[HEAD + 1]]) as usize;
            let bytes = bytes.get(HEAD + 2..HEAD + 2 + len).filter(|_| len <= OWN_CAPACITY)?.to_vec();
            Some(Record::Own { kind, sequence: number(32), bytes })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const VAULT: VaultId = VaultId([7; 16]);

    fn sample() -> RootBlock {
        RootBlock { tenant: TenantNo(3), generation: Generation(9), kek: [1; 16], wrapped: (0..60).collect() }
    }

    #[test]
    fn t15_any_flipped_bit_makes_a_block_torn() {
        let records = [
            root(VAULT, &sample()).unwrap(),
            tombstone(VAULT, TenantNo(3)),
            own(VAULT, RecordKind::Anchor, 5, &[9; 77]).unwrap(),
            own(VAULT, RecordKind::Header, 5, &[8; 400]).unwrap(),
        ];
        for record in records {
            assert_ne!(decode(VAULT, &record), Record::Torn);
            for bit in 0..RECORD * 8 {
                let mut bad = record;
                bad[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(decode(VAULT, &bad), Record::Torn, "bit {bit}");
            }
        }
    }

    #[test]
    fn a_block_of_another_vault_is_no_root_here() {
        assert_eq!(decode(VaultId([8; 16]), &root(VAULT, &sample()).unwrap()), Record::Torn);
    }

    #[test]
    fn wrong_sizes_are_refused() {
        assert!(root(VAULT, &RootBlock { wrapped: vec![0; 59], ..sample() }).is_none());
        assert!(own(VAULT, RecordKind::Signing, 1, &[0; 401]).is_none());
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(tenant: u32, generation: u64, kek: [u8; 16], wrapped in prop::collection::vec(any::<u8>(), 60)) {
            let block = RootBlock { tenant: TenantNo(tenant), generation: Generation(generation), kek, wrapped };
            prop_assert_eq!(decode(VAULT, &root(VAULT, &block).unwrap()), Record::Root(block));
        }

        #[test]
        fn own_bytes_are_read(sequence: u64, bytes in prop::collection::vec(any::<u8>(), 0..=400)) {
            let record = own(VAULT, RecordKind::Anchor, sequence, &bytes).unwrap();
            prop_assert_eq!(decode(VAULT, &record), Record::Own { kind: RecordKind::Anchor, sequence, bytes });
        }

        #[test]
        fn t40_no_bytes_make_decode_panic(bytes in prop::collection::vec(any::<u8>(), RECORD), right_start: bool) {
            let mut record: [u8; RECORD] = bytes.try_into().unwrap();
            if right_start {
                // Past the magic, so that the fields behind it are reached; the digest still decides.
                record[..32].copy_from_slice(&start(VAULT, TenantNo(1), RecordKind::Header, 0)[..32]);
            }
            prop_assert!(matches!(decode(VAULT, &record), Record::Torn | Record::Empty));
        }
    }
}
