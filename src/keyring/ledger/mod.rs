//! The ledger: an append-only, chained and signed list of decisions that a restore must not undo. It names subjects by
//! row number and objects by their random ids; no value and no caller-chosen id.
//!
//! File: magic 8, vault 16, zeros to 512; then batches, each: magic 4, length u32 of the whole batch, number of its first
//! entry u64, count u32, hash of the batch before 32 (of the first: SHA-256 of a constant and the vault), key id 8,
//! entries of 62 B, hash 32 = SHA-256 over everything so far, Ed25519 signature 64 over vault and hash, check 8 = the
//! first bytes of SHA-256 over hash and signature; then zeros. Numbers are big endian. The check tells a batch whose
//! signature was torn by a power loss from a whole one, without any key.

mod entry;

use std::io;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::crypto::sign::{self, Domain, Signing};
use crate::ids::VaultId;
use entry::{ENTRY, take};
pub use entry::{LedgerEntry, LedgerKind, WHOLE};

/// Position in the ledger: number of the last entry (0: none) and hash of the last batch (zeros: none).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LedgerHead {
    pub seq: u64,
    pub hash: [u8; 32],
}

/// What is wrong with a ledger.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// Bytes that were once written whole are no longer what they were.
    #[error("damaged at byte {offset}: {what}")]
    Damaged { offset: u64, what: &'static str },
    /// Two replicas went different ways from the same batch.
    #[error("two replicas disagree")]
    Fork,
    /// The anchor names a batch that is not there: the end is missing, or it is another ledger.
    #[error("entry {seq} that the anchor names is not there")]
    Behind { seq: u64 },
    /// The file is not a ledger of this vault.
    #[error("not a ledger of this vault")]
    Foreign,
    #[error("could not be read: {what}")]
    Io { what: String },
}

/// Where the first batch begins.
pub const START: u64 = 512;
/// Most entries in a batch.
pub const MAX_ENTRIES: usize = 1 << 16;

const FILE_MAGIC: &[u8; 8] = b"pvledger";
const MAGIC: &[u8; 4] = b"pvLB";
const HEAD: usize = 4 + 4 + 8 + 4 + 32 + 8;
const FOOT: usize = 32 + 64 + 8;
const MAX_BATCH: usize = HEAD + MAX_ENTRIES * ENTRY + FOOT;

fn key_id(public: &[u8; 32]) -> [u8; 8] {
    take(&Sha256::digest(public), 0)
}

fn genesis(vault: VaultId) -> [u8; 32] {
    Sha256::new().chain_update(b"pii-vault ledger genesis").chain_update(vault.0).finalize().into()
}

fn signed(vault: VaultId, hash: &[u8; 32]) -> [u8; 48] {
    let mut out = [0; 48];
    out[..16].copy_from_slice(&vault.0);
    out[16..].copy_from_slice(hash);
    out
}

/// The bytes before the first batch.
pub fn file_header(vault: VaultId) -> [u8; START as usize] {
    let mut out = [0; START as usize];
    out[..8].copy_from_slice(FILE_MAGIC);
    out[8..24].copy_from_slice(&vault.0);
    out
}

/// Some entries that became durable together, with one signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerBatch {
    /// Number of the first entry, from 1.
    pub first: u64,
    pub entries: Vec<LedgerEntry>,
    /// Hash of the batch before.
    pub prev: [u8; 32],
    pub hash: [u8; 32],
    /// First 8 bytes of the SHA-256 of the public key that signed.
    pub key: [u8; 8],
    pub signature: [u8; 64],
}

impl LedgerBatch {
    /// The head after this batch.
    pub fn head(&self) -> LedgerHead {
        LedgerHead { seq: self.first + self.entries.len() as u64 - 1, hash: self.hash }
    }

    /// One of these keys signed it for that vault.
    pub fn signed_by(&self, vault: VaultId, public_keys: &[[u8; 32]]) -> bool {
        public_keys
            .iter()
            .filter(|key| key_id(key) == self.key)
            .any(|key| sign::verify(key, Domain::Ledger, &signed(vault, &self.hash), &self.signature))
    }
}

/// Encodes and signs a batch that follows `head`; answers the bytes and the head after it. There must be 1 to
/// `MAX_ENTRIES` entries.
pub fn encode_batch(
    vault: VaultId,
    head: &LedgerHead,
    entries: &[LedgerEntry],
    signing: &Signing,
) -> (Vec<u8>, LedgerHead) {
    debug_assert!(!entries.is_empty() && entries.len() <= MAX_ENTRIES);
    let len = HEAD + entries.len() * ENTRY + FOOT;
    let mut out = Vec::with_capacity(len);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&(len as u32).to_be_bytes());
    out.extend_from_slice(&(head.seq + 1).to_be_bytes());
    out.extend_from_slice(&(entries.len() as u32).to_be_bytes());
    out.extend_from_slice(&if head.seq == 0 { genesis(vault) } else { head.hash });
    out.extend_from_slice(&key_id(&signing.public()));
    entries.iter().for_each(|entry| entry.encode(&mut out));
    let hash: [u8; 32] = Sha256::digest(&out).into();
    out.extend_from_slice(&hash);
    out.extend_from_slice(&signing.sign(Domain::Ledger, &signed(vault, &hash)));
    let check = Sha256::digest(&out[len - FOOT..]);
    out.extend_from_slice(&check[..8]);
    (out, LedgerHead { seq: head.seq + entries.len() as u64, hash })
}

/// Reads the batch at the beginning of `bytes`, which may be longer; its form and hash are checked, its place in the
/// chain and its signature are not. Answers its length too.
pub fn decode_batch(bytes: &[u8]) -> Result<(LedgerBatch, usize), &'static str> {
    let len = batch_len(bytes)?;
    let bytes = bytes.get(..len).ok_or("cut off")?;
    let count = u32::from_be_bytes(take(bytes, 16)) as usize;
    if count == 0 || count > MAX_ENTRIES || len != HEAD + count * ENTRY + FOOT {
        return Err("length and count differ");
    }
    let hash: [u8; 32] = take(bytes, len - FOOT);
    if Sha256::digest(&bytes[..len - FOOT]).as_slice() != hash {
        return Err("the hash does not fit");
    }
    if Sha256::digest(&bytes[len - FOOT..len - 8])[..8] != bytes[len - 8..] {
        return Err("the signature was cut off");
    }
    let entries = bytes[HEAD..len - FOOT]
        .chunks_exact(ENTRY)
        .map(|chunk| LedgerEntry::decode(chunk.try_into().expect("chunks have that size")))
        .collect::<Option<Vec<_>>>()
        .ok_or("an entry of an unknown kind")?;
    let first = u64::from_be_bytes(take(bytes, 8));
    if first == 0 || first.checked_add(count as u64).is_none() {
        return Err("an impossible number");
    }
    let batch = LedgerBatch {
        first,
        entries,
        prev: take(bytes, 20),
        hash,
        key: take(bytes, 52),
        signature: take(bytes, len - 64 - 8),
    };
    Ok((batch, len))
}

fn batch_len(bytes: &[u8]) -> Result<usize, &'static str> {
    if bytes.len() < 8 {
        return Err("cut off");
    }
    if &bytes[..4] != MAGIC {
        return Err("no batch begins here");
    }
    let len = u32::from_be_bytes(take(bytes, 4)) as usize;
    if !(HEAD + ENTRY + FOOT..=MAX_BATCH).contains(&len) { Err("an impossible length") } else { Ok(len) }
}

/// Bytes that can be read at any place: the keeper's file, or a copy in an archive.
pub trait ReadAt: Send + Sync {
    /// Reads up to `buf.len()` bytes; fewer at the end only.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;
}

impl ReadAt for Vec<u8> {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let from = usize::try_from(offset).map_or(self.len(), |at| at.min(self.len()));
        let n = (self.len() - from).min(buf.len());
        buf[..n].copy_from_slice(&self[from..from + n]);
        Ok(n)
    }
}

impl ReadAt for std::fs::File {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match std::os::unix::fs::FileExt::read_at(self, &mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }
}

/// Reads batches from the beginning and checks the chain. Blocking.
pub struct LedgerReader {
    source: Arc<dyn ReadAt>,
    vault: VaultId,
    offset: u64,
    /// Where the batch read last begins.
    last: Option<u64>,
    head: LedgerHead,
    torn: bool,
    done: bool,
}

impl std::fmt::Debug for LedgerReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LedgerReader").field("offset", &self.offset).field("head", &self.head).finish_non_exhaustive()
    }
}

impl LedgerReader {
    /// Over any bytes; checks the file's header.
    pub fn new(source: Arc<dyn ReadAt>, vault: VaultId) -> Result<Self, LedgerError> {
        let mut header = [0; START as usize];
        let n = source.read_at(0, &mut header).map_err(io_error)?;
        if n < header.len() || header != file_header(vault) {
            return Err(LedgerError::Foreign);
        }
        Ok(LedgerReader {
            source,
            vault,
            offset: START,
            last: None,
            head: LedgerHead::default(),
            torn: false,
            done: false,
        })
    }

    /// Over a copy of the file.
    pub fn open(path: &Path, vault: VaultId) -> Result<Self, LedgerError> {
        Self::new(Arc::new(std::fs::File::open(path).map_err(io_error)?), vault)
    }

    /// The next batch, whose chaining was checked and whose signature was not; `None` at the end.
    pub fn next_batch(&mut self) -> Result<Option<LedgerBatch>, LedgerError> {
        if self.done {
            return Ok(None);
        }
        match self.peek().map_err(io_error)? {
            Ok((batch, len)) => {
                let prev = if self.head.seq == 0 { genesis(self.vault) } else { self.head.hash };
                if batch.first != self.head.seq + 1 || batch.prev != prev {
                    let what = "a batch does not follow the one before";
                    return Err(LedgerError::Damaged { offset: self.offset, what });
                }
                self.head = batch.head();
                self.last = Some(self.offset);
                self.offset += len as u64;
                Ok(Some(batch))
            }
            Err(what) => self.end(what).map(|()| None),
        }
    }

    fn peek(&self) -> io::Result<Result<(LedgerBatch, usize), &'static str>> {
        let mut start = [0; 8];
        let n = self.source.read_at(self.offset, &mut start)?;
        let len = match batch_len(&start[..n]) {
            Ok(len) => len,
            Err(what) => return Ok(Err(what)),
        };
        let mut bytes = vec![0; len];
        let n = self.source.read_at(self.offset, &mut bytes)?;
        Ok(decode_batch(&bytes[..n]))
    }

    /// Nothing right begins here: the end, a torn last batch that nobody was told of, or damage.
    fn end(&mut self, what: &'static str) -> Result<(), LedgerError> {
        let mut rest = vec![0; MAX_BATCH + 8];
        let mut at = self.offset;
        let mut first = true;
        loop {
            let n = self.source.read_at(at, &mut rest).map_err(io_error)?;
            let bytes = &rest[..n];
            if bytes.iter().any(|&b| b != 0) {
                self.torn = true;
                // A batch is written only after all before it were synced, so a whole one here proves damage before it.
                let follows =
                    (usize::from(first)..n).any(|i| bytes[i] == MAGIC[0] && decode_batch(&bytes[i..]).is_ok());
                if follows || !first {
                    return Err(LedgerError::Damaged { offset: self.offset, what });
                }
            }
            if n < rest.len() {
                self.done = true;
                return Ok(());
            }
            first = false;
            at += n as u64;
        }
    }

    /// Writes all that is to be read into `out`, as it is read and checked: a ledger of the same form. The head after
    /// it. Blocking.
    ///
    /// # Errors
    /// `Damaged`; `Io` of either side.
    pub fn copy_to(mut self, out: &mut impl io::Write) -> Result<LedgerHead, LedgerError> {
        out.write_all(&file_header(self.vault)).map_err(io_error)?;
        loop {
            let from = self.offset;
            if self.next_batch()?.is_none() {
                return Ok(self.head);
            }
            let mut bytes = vec![0; (self.offset - from) as usize];
            let n = self.source.read_at(from, &mut bytes).map_err(io_error)?;
            if n < bytes.len() {
                return Err(LedgerError::Damaged { offset: from, what: "it became shorter while it was read" });
            }
            out.write_all(&bytes).map_err(io_error)?;
        }
    }

    /// The head after the batches read so far.
    pub fn head(&self) -> LedgerHead {
        self.head
    }
    /// Where the next batch would begin.
    pub fn offset(&self) -> u64 {
        self.offset
    }
    /// Where the batch read last begins.
    pub fn last_batch(&self) -> Option<u64> {
        self.last
    }
    /// The end was reached, and behind it lie the remains of a batch that was never acknowledged.
    pub fn torn(&self) -> bool {
        self.torn
    }

    /// Reads all: chain and signatures are right, and the batch that the anchor names is there.
    ///
    /// # Errors
    /// `Damaged`, or `Behind` if the ledger ends before the anchor or went another way.
    pub fn verify(mut self, public_keys: &[[u8; 32]], anchor: Option<LedgerHead>) -> Result<LedgerHead, LedgerError> {
        let mut missing = anchor.filter(|head| head.seq > 0);
        loop {
            let offset = self.offset;
            let Some(batch) = self.next_batch()? else { break };
            if !batch.signed_by(self.vault, public_keys) {
                return Err(LedgerError::Damaged { offset, what: "the signature is wrong or of an unknown key" });
            }
            if missing == Some(batch.head()) {
                missing = None;
            }
        }
        match missing {
            Some(head) => Err(LedgerError::Behind { seq: head.seq }),
            None => Ok(self.head),
        }
    }
}

fn io_error(e: io::Error) -> LedgerError {
    LedgerError::Io { what: e.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::ids::{ClassNo, DekVersion, Generation, ObjectId, SubjectUid, TenantNo};
    use proptest::prelude::*;

    const VAULT: VaultId = VaultId([7; 16]);

    fn entry(n: i64) -> LedgerEntry {
        LedgerEntry {
            uid: SubjectUid(n),
            class: ClassNo(2),
            version: DekVersion(3),
            generation: Generation(4),
            object: ObjectId::random(),
            ..LedgerEntry::new(LedgerKind::Erased, TenantNo(1), Timestamp(5))
        }
    }

    /// A ledger with one batch per number, and where each begins.
    fn ledger(sizes: &[usize], signing: &Signing) -> (Vec<u8>, Vec<usize>, LedgerHead) {
        let mut file = file_header(VAULT).to_vec();
        let mut head = LedgerHead::default();
        let mut starts = Vec::new();
        for &size in sizes {
            let entries: Vec<_> = (0..size).map(|n| entry(n as i64)).collect();
            let (bytes, next) = encode_batch(VAULT, &head, &entries, signing);
            starts.push(file.len());
            file.extend(bytes);
            head = next;
        }
        (file, starts, head)
    }

    fn read(file: Vec<u8>) -> Result<(LedgerHead, bool), LedgerError> {
        let mut reader = LedgerReader::new(Arc::new(file), VAULT)?;
        while reader.next_batch()?.is_some() {}
        Ok((reader.head(), reader.torn()))
    }

    #[test]
    fn what_was_appended_is_read_in_order() {
        let signing = Signing::generate();
        let (file, _, head) = ledger(&[1, 3, 2], &signing);
        assert_eq!(head.seq, 6);
        for zeros in [0, 1, 5000] {
            let mut file = file.clone();
            file.resize(file.len() + zeros, 0);
            assert_eq!(read(file.clone()), Ok((head, false)));
            let reader = LedgerReader::new(Arc::new(file), VAULT).unwrap();
            assert_eq!(reader.verify(&[[1; 32], signing.public()], Some(head)), Ok(head));
        }
    }

    #[test]
    fn a_torn_end_is_no_damage_and_damage_is_no_torn_end() {
        let (file, starts, _) = ledger(&[2, 2, 2], &Signing::generate());
        for cut in starts[2] + 1..file.len() {
            let (head, torn) = read(file[..cut].to_vec()).unwrap();
            assert_eq!((head.seq, torn), (4, true));
            // The file is longer than its batches: what did not arrive reads as zeros.
            let mut zeros = file[..cut].to_vec();
            zeros.resize(file.len() + 512, 0);
            assert_eq!(read(zeros).unwrap().0.seq, if file[cut..].iter().all(|b| *b == 0) { 6 } else { 4 });
        }
        let mut bad = file.clone();
        bad[starts[1] + 70] ^= 1;
        assert!(matches!(read(bad), Err(LedgerError::Damaged { offset, .. }) if offset == starts[1] as u64));
        let mut bad = file;
        bad[starts[2] + 70] ^= 1; // the last one: not to be told from a write that was cut off
        assert_eq!(read(bad).unwrap().0.seq, 4);
    }

    #[test]
    fn a_missing_end_is_seen_against_the_anchor() {
        let signing = Signing::generate();
        let (file, starts, head) = ledger(&[2, 2, 2], &signing);
        let short = LedgerReader::new(Arc::new(file[..starts[2]].to_vec()), VAULT).unwrap();
        assert_eq!(short.verify(&[signing.public()], Some(head)), Err(LedgerError::Behind { seq: 6 }));
        let (other, _, _) = ledger(&[2, 2, 2], &signing);
        let other = LedgerReader::new(Arc::new(other), VAULT).unwrap();
        assert_eq!(other.verify(&[signing.public()], Some(head)), Err(LedgerError::Behind { seq: 6 }));
    }

    #[test]
    fn another_key_or_vault_is_refused() {
        let (file, _, _) = ledger(&[2], &Signing::generate());
        let reader = LedgerReader::new(Arc::new(file.clone()), VAULT).unwrap();
        assert!(matches!(reader.verify(&[Signing::generate().public()], None), Err(LedgerError::Damaged { .. })));
        assert!(matches!(LedgerReader::new(Arc::new(file), VaultId([8; 16])), Err(LedgerError::Foreign)));
    }

    #[test]
    fn a_batch_left_out_is_seen() {
        let (file, starts, _) = ledger(&[1, 1, 1], &Signing::generate());
        let mut cut = file[..starts[1]].to_vec();
        cut.extend_from_slice(&file[starts[2]..]);
        assert!(matches!(read(cut), Err(LedgerError::Damaged { .. })));
    }

    proptest! {
        #[test]
        fn t40_no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), magic: bool) {
            let mut file = file_header(VAULT).to_vec();
            if magic {
                file.extend_from_slice(MAGIC);
                file.extend_from_slice(&(HEAD as u32 + ENTRY as u32 + FOOT as u32).to_be_bytes());
            }
            file.extend_from_slice(&bytes);
            let _ = decode_batch(&bytes);
            prop_assert!(read(file).map_or(true, |(head, _)| head.seq == 0));
        }

        #[test]
        fn a_flipped_bit_never_changes_what_is_read(bit in 0usize..8, pick: prop::sample::Index) {
            let signing = Signing::from_seed(&[5; 32]);
            let (mut file, starts, head) = ledger(&[2, 1, 3], &signing);
            let at = starts[0] + pick.index(file.len() - starts[0]);
            file[at] ^= 1 << bit;
            let reader = LedgerReader::new(Arc::new(file), VAULT).unwrap();
            prop_assert!(reader.verify(&[signing.public()], Some(head)).is_err());
        }
    }
}
