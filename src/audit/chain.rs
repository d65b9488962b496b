//! Groups of records and the hash chain over them.
//!
//! ```text
//! group = format 1 (1 B) | chain (1 B) | tenant u32 | first number u64 | count u32 | time i64 | hash before (32 B)
//!         | records
//! hash  = SHA-256("pii-vault audit group v1" | 0 | group)
//! first "hash before" of a chain = SHA-256("pii-vault audit genesis v1" | 0 | vault id | tenant u32 | chain)
//! ```
//! Numbers are little endian. A chain begins with the vault, the tenant and the kind, so that no chain can stand in for
//! another.

use super::record::{AuditRecord, DecodeError};
use crate::clock::Timestamp;
use crate::ids::{TenantNo, VaultId};
use sha2::{Digest, Sha256};

const FORMAT: u8 = 1;
const HEADER: usize = 1 + 1 + 4 + 8 + 4 + 8 + 32;
const GROUP_LABEL: &[u8] = b"pii-vault audit group v1\0";
const GENESIS_LABEL: &[u8] = b"pii-vault audit genesis v1\0";
/// The shortest record has flags, action, time and actor: five bytes. Bounds what a count can claim.
const MIN_RECORD: usize = 5;

/// The two chains of a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Chain {
    /// What changed; committed with the change.
    Change = 1,
    /// What was read; durable before the answer leaves.
    Read = 2,
}

impl Chain {
    /// `change` or `read`.
    pub const fn name(self) -> &'static str {
        match self {
            Chain::Change => "change",
            Chain::Read => "read",
        }
    }
    /// The permanent number.
    pub const fn number(self) -> u8 {
        self as u8
    }
    /// The chain of that number.
    pub const fn from_number(n: u8) -> Option<Self> {
        match n {
            1 => Some(Chain::Change),
            2 => Some(Chain::Read),
            _ => None,
        }
    }
}

/// Where a chain ends: the number of its last record and the hash of its last group.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Number of the last record, from 1; 0 is an empty chain.
    pub seq: u64,
    pub hash: [u8; 32],
}

impl std::fmt::Debug for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.seq, data_encoding::HEXLOWER.encode(&self.hash[..8]))
    }
}

/// The head of a chain that has no record yet.
pub fn genesis(vault: VaultId, tenant: TenantNo, chain: Chain) -> Head {
    let mut h = Sha256::new();
    h.update(GENESIS_LABEL);
    h.update(vault.0);
    h.update(tenant.0.to_le_bytes());
    h.update([chain.number()]);
    Head { seq: 0, hash: h.finalize().into() }
}

/// Gathers the records of one group commit of one chain.
pub struct GroupBuilder {
    count: u32,
    time: Timestamp,
    bytes: Vec<u8>,
}

impl GroupBuilder {
    /// An empty group; the first record gives it its time.
    pub fn new() -> Self {
        GroupBuilder { count: 0, time: Timestamp(0), bytes: Vec::new() }
    }

    /// Adds a record.
    pub fn push(&mut self, record: &AuditRecord) {
        if self.count == 0 {
            self.time = record.at;
            self.bytes.clear();
            self.bytes.resize(HEADER, 0);
        }
        record.encode(self.time, &mut self.bytes);
        self.count += 1;
    }

    /// Adds a record that travelled as [`AuditRecord::to_bytes`].
    pub fn push_bytes(&mut self, record: &[u8]) -> Result<(), DecodeError> {
        self.push(&AuditRecord::from_bytes(record)?);
        Ok(())
    }

    /// Records so far.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Bytes so far, header included.
    pub fn len(&self) -> usize {
        if self.count == 0 { 0 } else { self.bytes.len() }
    }

    /// Time of the first record.
    pub fn time(&self) -> Timestamp {
        self.time
    }

    /// Whether its memory is small enough to be kept for the next group.
    pub fn is_modest(&self) -> bool {
        self.bytes.capacity() <= 64 << 10
    }

    /// Whether no record was added.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Closes the group behind `prev`: its bytes and the new head of the chain. The builder is empty afterwards and keeps
    /// its memory. `None` if there is no record.
    pub fn link(&mut self, tenant: TenantNo, chain: Chain, prev: &Head) -> Option<(&[u8], Head)> {
        if self.count == 0 {
            return None;
        }
        let h = &mut self.bytes[..HEADER];
        h[0] = FORMAT;
        h[1] = chain.number();
        h[2..6].copy_from_slice(&tenant.0.to_le_bytes());
        h[6..14].copy_from_slice(&(prev.seq + 1).to_le_bytes());
        h[14..18].copy_from_slice(&self.count.to_le_bytes());
        h[18..26].copy_from_slice(&self.time.0.to_le_bytes());
        h[26..58].copy_from_slice(&prev.hash);
        let head = Head { seq: prev.seq + u64::from(self.count), hash: hash(&self.bytes) };
        self.count = 0;
        Some((&self.bytes, head))
    }
}

impl Default for GroupBuilder {
    fn default() -> Self {
        Self::new()
    }
}

/// One stored group: its header, read, and its bytes.
#[derive(Clone, Copy)]
pub struct Group<'a> {
    pub tenant: TenantNo,
    pub chain: Chain,
    /// Number of its first record.
    pub first: u64,
    /// Number of its records, at least 1.
    pub count: u32,
    /// Time of its first record.
    pub time: Timestamp,
    /// Hash of the group before.
    pub prev: [u8; 32],
    bytes: &'a [u8],
}

impl<'a> Group<'a> {
    /// Reads the header; safe on any bytes. The records are read by [`Group::entries`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let bad = |rule| DecodeError { what: "group", rule };
        let (header, records) = bytes.split_at_checked(HEADER).ok_or(bad("too short"))?;
        if header[0] != FORMAT {
            return Err(bad("unknown format"));
        }
        let chain = Chain::from_number(header[1]).ok_or(bad("unknown chain"))?;
        let u32_at = |i: usize| u32::from_le_bytes(header[i..i + 4].try_into().expect("four bytes"));
        let u64_at = |i: usize| u64::from_le_bytes(header[i..i + 8].try_into().expect("eight bytes"));
        let (first, count) = (u64_at(6), u32_at(14));
        if count == 0 || count as usize > records.len() / MIN_RECORD {
            return Err(bad("number of records"));
        }
        if first == 0 || first.checked_add(u64::from(count)).is_none() {
            return Err(bad("number of the first record"));
        }
        Ok(Group {
            tenant: TenantNo(u32_at(2)),
            chain,
            first,
            count,
            time: Timestamp(u64_at(18) as i64),
            prev: header[26..58].try_into().expect("thirty-two bytes"),
            bytes,
        })
    }

    /// The head that the chain has to have before it.
    pub fn before(&self) -> Head {
        Head { seq: self.first - 1, hash: self.prev }
    }

    /// Number of its last record.
    pub fn last(&self) -> u64 {
        self.first + u64::from(self.count) - 1
    }

    /// The head of the chain if this group is its last.
    pub fn head(&self) -> Head {
        Head { seq: self.last(), hash: hash(self.bytes) }
    }

    /// The stored bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The records with their numbers; ends after the first that cannot be read, or with an error if bytes are left over.
    pub fn entries(&self) -> Entries<'a> {
        Entries { base: self.time, next: self.first, left: self.count, rest: &self.bytes[HEADER..] }
    }
}

/// The records of a group, in order.
pub struct Entries<'a> {
    base: Timestamp,
    next: u64,
    left: u32,
    rest: &'a [u8],
}

impl Iterator for Entries<'_> {
    type Item = Result<(u64, AuditRecord), DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            if self.rest.is_empty() {
                return None;
            }
            self.rest = &[];
            return Some(Err(DecodeError { what: "group", rule: "bytes after the last record" }));
        }
        match AuditRecord::decode(self.base, &mut self.rest) {
            Ok(record) => {
                let seq = self.next;
                self.left -= 1;
                self.next += 1;
                Some(Ok((seq, record)))
            }
            Err(e) => {
                (self.left, self.rest) = (0, &[]);
                Some(Err(e))
            }
        }
    }
}

/// What the chain shows about a tampered audit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("audit records {first} to {last} were {kind}")]
pub struct Tamper {
    pub kind: TamperKind,
    /// First and last number of the records concerned, as far as the chain can tell.
    pub first: u64,
    pub last: u64,
}

/// How.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TamperKind {
    /// Missing in the middle.
    Deleted,
    /// There, but not where it belongs.
    Reordered,
    /// The group's own bytes are not those that the next group was linked to, or cannot be read.
    Edited,
    /// The chain ends before a head that is known.
    Truncated,
    /// In itself a chain, but not the one that a known head was taken from: rewritten from `first` on.
    Replaced,
    /// A group of another tenant or of the other chain.
    Foreign,
}

impl std::fmt::Display for TamperKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            TamperKind::Deleted => "deleted",
            TamperKind::Reordered => "reordered",
            TamperKind::Edited => "edited",
            TamperKind::Truncated => "truncated",
            TamperKind::Replaced => "replaced",
            TamperKind::Foreign => "put in from another chain",
        })
    }
}

/// Follows one chain group by group, comparing it with heads known from elsewhere (signed checkpoints, the anchor).
/// Stops at the first fault and says what the chain shows; [`verify`] looks further ahead to tell reordered from deleted.
pub struct Verifier<'k> {
    tenant: TenantNo,
    chain: Chain,
    head: Head,
    /// Last known-good number: the start, or the last known head that agreed.
    trusted: u64,
    /// Known heads ahead, ascending.
    known: &'k [Head],
}

impl<'k> Verifier<'k> {
    /// Starts behind `from`: the genesis, or a head that is trusted. `known` must ascend; those up to `from` are skipped.
    pub fn new(tenant: TenantNo, chain: Chain, from: Head, known: &'k [Head]) -> Self {
        let skip = known.partition_point(|k| k.seq <= from.seq);
        Verifier { tenant, chain, head: from, trusted: from.seq, known: &known[skip..] }
    }

    /// The head so far.
    pub fn head(&self) -> Head {
        self.head
    }

    /// Takes the next group.
    pub fn push(&mut self, group: &Group<'_>) -> Result<(), Tamper> {
        let fault = |kind, first, last| Err(Tamper { kind, first, last });
        if (group.tenant, group.chain) != (self.tenant, self.chain) {
            return fault(TamperKind::Foreign, group.first, group.last());
        }
        let next = self.head.seq + 1;
        if group.first > next {
            return fault(TamperKind::Deleted, next, group.first - 1);
        }
        if group.first < next {
            return fault(TamperKind::Reordered, group.first, group.last());
        }
        if group.prev != self.head.hash {
            // The group before is not the one this was linked to. With nothing verified before, the start itself differs.
            let kind = if self.head.seq == self.trusted { TamperKind::Replaced } else { TamperKind::Edited };
            return fault(
                kind,
                self.trusted + 1,
                if kind == TamperKind::Edited { self.head.seq } else { group.last() },
            );
        }
        if group.entries().any(|e| e.is_err()) {
            return fault(TamperKind::Edited, group.first, group.last());
        }
        let head = group.head();
        if let Some(known) = self.known.first() {
            if known.seq < head.seq || (known.seq == head.seq && known.hash != head.hash) {
                return fault(TamperKind::Replaced, self.trusted + 1, known.seq);
            }
            if known.seq == head.seq {
                self.trusted = head.seq;
                self.known = &self.known[1..];
            }
        }
        self.head = head;
        Ok(())
    }

    /// Says whether all known heads were reached.
    pub fn finish(self) -> Result<Head, Tamper> {
        match self.known.last() {
            Some(known) => Err(Tamper { kind: TamperKind::Truncated, first: self.head.seq + 1, last: known.seq }),
            None => Ok(self.head),
        }
    }
}

/// Verifies the stored groups of one chain, in stored order, from `from` on, against heads known from elsewhere: the last
/// of `known` must be reached. Answers the head, which may be later than the last known one.
///
/// # Errors
/// The first fault. An edit is located between the groups that show it, so its range names the group before the broken
/// link; the last group of a chain has nothing linked to it, and its edit shows as [`TamperKind::Replaced`] against the
/// known head.
pub fn verify<'a>(
    tenant: TenantNo,
    chain: Chain,
    groups: impl IntoIterator<Item = &'a [u8]>,
    from: Head,
    known: &[Head],
) -> Result<Head, Tamper> {
    let groups: Vec<&[u8]> = groups.into_iter().collect();
    let mut verifier = Verifier::new(tenant, chain, from, known);
    let mut before = None;
    for (i, bytes) in groups.iter().enumerate() {
        let next = verifier.head().seq + 1;
        let Ok(group) = Group::parse(bytes) else {
            return Err(Tamper { kind: TamperKind::Edited, first: next, last: next });
        };
        match verifier.push(&group) {
            Ok(()) => {}
            Err(t) if t.kind == TamperKind::Deleted => {
                let later = groups[i + 1..].iter().filter_map(|b| Group::parse(b).ok());
                let moved = later.into_iter().any(|g| g.first <= t.last && g.last() >= t.first);
                return Err(Tamper { kind: if moved { TamperKind::Reordered } else { t.kind }, ..t });
            }
            Err(t) if t.kind == TamperKind::Edited && t.last < group.first => {
                let first: u64 = before.unwrap_or(t.first);
                return Err(Tamper { first, ..t });
            }
            Err(t) => return Err(t),
        }
        before = Some(group.first);
    }
    verifier.finish()
}

fn hash(group: &[u8]) -> [u8; 32] {
    let mut h = Sha256::new();
    h.update(GROUP_LABEL);
    h.update(group);
    h.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::any_record;
    use super::super::{Action, Outcome};
    use super::*;
    use crate::ids::{ActorId, SubjectUid};
    use proptest::prelude::*;

    const VAULT: VaultId = VaultId([7; 16]);
    const TENANT: TenantNo = TenantNo(3);

    fn record(n: u64) -> AuditRecord {
        let mut r = AuditRecord::new(Timestamp(1000 + n as i64), ActorId(9), Action::GetFields, Outcome::Ok);
        r.subject = Some(SubjectUid(n as i64));
        r
    }

    /// Chains of `sizes`, and the head after each group.
    fn build(sizes: &[u32], salt: u64) -> (Vec<Vec<u8>>, Vec<Head>) {
        let (mut groups, mut heads) = (Vec::new(), Vec::new());
        let mut head = genesis(VAULT, TENANT, Chain::Read);
        let mut b = GroupBuilder::new();
        for &size in sizes {
            for i in 0..size {
                b.push(&record(salt + head.seq + u64::from(i)));
            }
            let (bytes, next) = b.link(TENANT, Chain::Read, &head).unwrap();
            groups.push(bytes.to_vec());
            heads.push(next);
            head = next;
        }
        (groups, heads)
    }

    fn check(groups: &[Vec<u8>], known: &[Head]) -> Result<Head, Tamper> {
        let from = genesis(VAULT, TENANT, Chain::Read);
        verify(TENANT, Chain::Read, groups.iter().map(|g| &g[..]), from, known)
    }

    #[test]
    fn t28_each_kind_of_tampering_is_detected_and_named() {
        let sizes = [3, 1, 4, 2, 5]; // records 1-3, 4, 5-8, 9-10, 11-15
        let (groups, heads) = build(&sizes, 0);
        let end = [heads[4]];
        assert_eq!(check(&groups, &end).unwrap(), heads[4]);

        let mut g = groups.clone();
        g.remove(2);
        assert_eq!(check(&g, &end).unwrap_err(), Tamper { kind: TamperKind::Deleted, first: 5, last: 8 });

        let mut g = groups.clone();
        g.swap(1, 2);
        assert_eq!(check(&g, &end).unwrap_err(), Tamper { kind: TamperKind::Reordered, first: 4, last: 4 });

        let mut g = groups.clone();
        let n = g[2].len();
        g[2][n - 1] ^= 1; // another subject
        assert_eq!(check(&g, &end).unwrap_err(), Tamper { kind: TamperKind::Edited, first: 5, last: 8 });

        assert_eq!(check(&groups[..3], &end).unwrap_err(), Tamper { kind: TamperKind::Truncated, first: 9, last: 15 });
        assert_eq!(check(&[], &end).unwrap_err(), Tamper { kind: TamperKind::Truncated, first: 1, last: 15 });

        // The whole chain rewritten, links and all; a known head in the middle narrows it down.
        let (other, _) = build(&sizes, 1000);
        assert_eq!(check(&other, &end).unwrap_err(), Tamper { kind: TamperKind::Replaced, first: 1, last: 15 });
        let mut mixed = groups[..3].to_vec();
        let mut head = heads[2];
        let mut b = GroupBuilder::new();
        for size in [2u64, 5] {
            (0..size).for_each(|i| b.push(&record(5000 + i)));
            let (bytes, next) = b.link(TENANT, Chain::Read, &head).unwrap();
            mixed.push(bytes.to_vec());
            head = next;
        }
        let known = [heads[2], heads[4]];
        assert_eq!(check(&mixed, &known).unwrap_err(), Tamper { kind: TamperKind::Replaced, first: 9, last: 15 });

        // The last group edited: nothing is linked to it, so the known head tells.
        let mut g = groups.clone();
        let n = g[4].len();
        g[4][n - 1] ^= 1;
        assert_eq!(check(&g, &end).unwrap_err().kind, TamperKind::Replaced);
        assert_eq!(
            check(&g, &[heads[3], heads[4]]).unwrap_err(),
            Tamper { kind: TamperKind::Replaced, first: 11, last: 15 }
        );
    }

    #[test]
    fn t28_a_chain_of_another_tenant_vault_or_kind_is_refused() {
        let (groups, heads) = build(&[2, 2], 0);
        let views = || groups.iter().map(|g| &g[..]);
        let from = genesis(VAULT, TenantNo(4), Chain::Read);
        assert_eq!(verify(TenantNo(4), Chain::Read, views(), from, &heads).unwrap_err().kind, TamperKind::Foreign);
        let from = genesis(VAULT, TENANT, Chain::Change);
        assert_eq!(verify(TENANT, Chain::Change, views(), from, &heads).unwrap_err().kind, TamperKind::Foreign);
        let from = genesis(VaultId([8; 16]), TENANT, Chain::Read);
        assert_eq!(verify(TENANT, Chain::Read, views(), from, &heads).unwrap_err().kind, TamperKind::Replaced);
    }

    #[test]
    fn verification_may_start_at_a_trusted_head() {
        let (groups, heads) = build(&[2, 3, 1], 0);
        let got = verify(TENANT, Chain::Read, groups[1..].iter().map(|g| &g[..]), heads[0], &heads).unwrap();
        assert_eq!(got, heads[2]);
    }

    proptest! {
        #[test]
        fn groups_read_back(records in prop::collection::vec(any_record(), 1..20)) {
            let mut b = GroupBuilder::new();
            records.iter().for_each(|r| b.push_bytes(&r.to_bytes()).unwrap());
            let from = genesis(VAULT, TENANT, Chain::Change);
            let (bytes, head) = b.link(TENANT, Chain::Change, &from).unwrap();
            let group = Group::parse(bytes).unwrap();
            let back: Vec<_> = group.entries().map(|e| e.unwrap().1).collect();
            prop_assert_eq!(&back, &records);
            prop_assert_eq!(group.head(), head);
        }

        #[test]
        fn any_bytes_are_a_group_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(g) = Group::parse(&bytes) {
                g.entries().for_each(drop);
            }
        }

        #[test]
        fn t28_no_flipped_bit_goes_unseen(at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let (mut groups, heads) = build(&[3, 1, 4], 0);
            let total: usize = groups.iter().map(Vec::len).sum();
            let mut at = at.index(total);
            for g in &mut groups {
                if at < g.len() {
                    g[at] ^= 1 << bit;
                    break;
                }
                at -= g.len();
            }
            prop_assert!(check(&groups, &[heads[2]]).is_err());
        }
    }
}
