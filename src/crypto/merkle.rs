//! Merkle tree of RFC 6962 (section 2.1): leaf = SHA-256(0 | data), node = SHA-256(1 | left | right), a list is split at
//! the largest power of two below its length, and the root of nothing is SHA-256 of nothing. A [`Span`] goes on with a
//! tree without its leaves, and [`consistency`] proves (section 2.1.2) that one tree only added leaves to another.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

/// A hash in the tree.
pub type Hash = [u8; 32];

/// Hash of one leaf's data.
pub fn leaf(data: &[u8]) -> Hash {
    let mut h = Sha256::new();
    h.update([0]);
    h.update(data);
    h.finalize().into()
}

fn node(left: &Hash, right: &Hash) -> Hash {
    let mut h = Sha256::new();
    h.update([1]);
    h.update(left);
    h.update(right);
    h.finalize().into()
}

fn split(len: usize) -> usize {
    len.next_power_of_two() / 2
}

/// Root over leaf hashes.
pub fn root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => Sha256::digest([]).into(),
        [one] => *one,
        _ => {
            let (left, right) = leaves.split_at(split(leaves.len()));
            node(&root(left), &root(right))
        }
    }
}

/// The hashes beside the way from leaf `index` to the root, from the leaf up; `None` if there is no such leaf.
pub fn path(leaves: &[Hash], index: usize) -> Option<Vec<Hash>> {
    if index >= leaves.len() {
        return None;
    }
    let mut out = Vec::new();
    let (mut leaves, mut index) = (leaves, index);
    while leaves.len() > 1 {
        let (left, right) = leaves.split_at(split(leaves.len()));
        if index < left.len() {
            out.push(root(right));
            leaves = left;
        } else {
            out.push(root(left));
            index -= left.len();
            leaves = right;
        }
    }
    out.reverse();
    Some(out)
}

/// The root that a leaf at `index` of `count` leads to by that path; `None` if the path cannot belong to that place.
pub fn root_of(leaf: &Hash, index: u64, count: u64, path: &[Hash]) -> Option<Hash> {
    // RFC 9162, section 2.1.3.2.
    if index >= count {
        return None;
    }
    let (mut at, mut last, mut hash) = (index, count - 1, *leaf);
    for beside in path {
        if last == 0 {
            return None;
        }
        if at & 1 == 1 || at == last {
            hash = node(beside, &hash);
            while at & 1 == 0 && at != 0 {
                at >>= 1;
                last >>= 1;
            }
        } else {
            hash = node(&hash, beside);
        }
        at >>= 1;
        last >>= 1;
    }
    (last == 0).then_some(hash)
}

/// Perfect subtrees that cover the leaves `begin..end`, from left to right and each as large as it can be: what is needed
/// to go on with a tree without its leaves. About 2 log2(end) hashes at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    begin: u64,
    end: u64,
    hashes: Vec<Hash>,
}

impl Span {
    /// Of no leaf yet; the next one is number `begin`, from 0.
    pub fn new(begin: u64) -> Self {
        Span { begin, end: begin, hashes: Vec::new() }
    }

    /// From what [`Self::hashes`] gave; `None` if it cannot be that of these leaves.
    pub fn from_hashes(begin: u64, end: u64, hashes: Vec<Hash>) -> Option<Self> {
        let right = begin <= end && sizes(begin, end).count() == hashes.len();
        right.then_some(Span { begin, end, hashes })
    }

    /// Number of the first leaf.
    pub fn begin(&self) -> u64 {
        self.begin
    }

    /// Number of the leaf that would come next.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The subtrees, from left to right.
    pub fn hashes(&self) -> &[Hash] {
        &self.hashes
    }

    /// Adds the next leaf.
    pub fn push(&mut self, leaf: Hash) {
        self.add(leaf, 1);
    }

    /// Adds the leaves of `next`, which must begin where this ends.
    pub fn join(&mut self, next: &Span) -> Option<()> {
        if next.begin != self.end {
            return None;
        }
        for (size, hash) in sizes(next.begin, next.end).zip(&next.hashes) {
            self.add(*hash, size);
        }
        Some(())
    }

    fn add(&mut self, mut hash: Hash, mut size: u64) {
        let mut at = self.end;
        self.end += size;
        // A right child whose sibling is here as well makes their parent.
        while at / size % 2 == 1 && at - size >= self.begin {
            let Some(left) = self.hashes.pop() else { break };
            hash = node(&left, &hash);
            at -= size;
            size *= 2;
        }
        self.hashes.push(hash);
    }

    /// Root over all leaves up to `end`; `None` where this does not begin with the first.
    pub fn root(&self) -> Option<Hash> {
        let (last, before) = match self.hashes.split_last() {
            Some(parts) => parts,
            None => return (self.begin == 0).then(|| root(&[])),
        };
        (self.begin == 0).then(|| before.iter().rev().fold(*last, |right, left| node(left, &right)))
    }

    /// The path ([`root_of`]) of the leaf that comes next, once it has come.
    pub fn path_of_next(&self) -> Vec<Hash> {
        self.hashes.iter().rev().copied().collect()
    }

    fn pieces(&self) -> impl Iterator<Item = ((u64, u64), Hash)> {
        let mut at = self.begin;
        sizes(self.begin, self.end).zip(&self.hashes).map(move |(size, hash)| {
            at += size;
            ((at - size, at), *hash)
        })
    }
}

/// Sizes of the largest perfect subtrees that cover `begin..end`, from left to right.
fn sizes(begin: u64, end: u64) -> impl Iterator<Item = u64> {
    let mut at = begin;
    std::iter::from_fn(move || {
        let left = end.checked_sub(at).filter(|left| *left > 0)?;
        let largest = 1 << (63 - left.leading_zeros());
        let size = if at == 0 { largest } else { largest.min(1 << at.trailing_zeros()) };
        at += size;
        Some(size)
    })
}

/// Proof of RFC 6962, section 2.1.2, that the tree over `before` and `more` begins with the tree over `before`; `None`
/// where the two do not follow each other from the first leaf on.
pub fn consistency(before: &Span, more: &Span) -> Option<Vec<Hash>> {
    if before.begin != 0 || more.begin != before.end {
        return None;
    }
    let mut proof = Vec::new();
    if before.end > 0 && more.end > before.end {
        let known: BTreeMap<(u64, u64), Hash> = before.pieces().chain(more.pieces()).collect();
        prove(before.end, (0, more.end), true, &known, &mut proof)?;
    }
    Some(proof)
}

fn prove(
    first: u64,
    (begin, end): (u64, u64),
    whole: bool,
    known: &BTreeMap<(u64, u64), Hash>,
    proof: &mut Vec<Hash>,
) -> Option<()> {
    if first == end {
        if !whole {
            proof.push(subtree(begin, end, known)?);
        }
        return Some(());
    }
    let middle = begin + (end - begin).next_power_of_two() / 2;
    let beside = if first <= middle {
        prove(first, (begin, middle), whole, known, proof)?;
        (middle, end)
    } else {
        prove(first, (middle, end), false, known, proof)?;
        (begin, middle)
    };
    proof.push(subtree(beside.0, beside.1, known)?);
    Some(())
}

fn subtree(begin: u64, end: u64, known: &BTreeMap<(u64, u64), Hash>) -> Option<Hash> {
    if let Some(hash) = known.get(&(begin, end)) {
        return Some(*hash);
    }
    let middle = begin + (end - begin).next_power_of_two() / 2;
    if end - begin < 2 {
        return None;
    }
    Some(node(&subtree(begin, middle, known)?, &subtree(middle, end, known)?))
}

/// Whether a proof shows that the tree of `second` leaves begins with that of `first` leaves. Anything follows nothing. The
/// numbers themselves must be known from elsewhere: a root alone does not bind them.
pub fn is_consistent(first: (u64, &Hash), second: (u64, &Hash), proof: &[Hash]) -> bool {
    let ((first, first_root), (second, second_root)) = (first, second);
    if first == 0 {
        return proof.is_empty() && *first_root == root(&[]);
    }
    if first >= second {
        return proof.is_empty() && first == second && first_root == second_root;
    }
    // RFC 9162, section 2.1.4.2.
    let start = first.is_power_of_two().then_some(first_root);
    let mut path = start.into_iter().chain(proof);
    let (mut at, mut last) = (first - 1, second - 1);
    while at & 1 == 1 {
        at >>= 1;
        last >>= 1;
    }
    let Some(begin) = path.next() else { return false };
    let (mut old, mut new) = (*begin, *begin);
    for beside in path {
        if last == 0 {
            return false;
        }
        if at & 1 == 1 || at == last {
            old = node(beside, &old);
            new = node(beside, &new);
            while at & 1 == 0 && at != 0 {
                at >>= 1;
                last >>= 1;
            }
        } else {
            new = node(&new, beside);
        }
        at >>= 1;
        last >>= 1;
    }
    last == 0 && old == *first_root && new == *second_root
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_of_rfc_6962_test_data() {
        // Inputs and roots of the reference test data of certificate-transparency.
        let inputs: [&[u8]; 8] = [
            b"",
            b"\x00",
            b"\x10",
            b"\x20\x21",
            b"\x30\x31",
            b"\x40\x41\x42\x43",
            b"\x50\x51\x52\x53\x54\x55\x56\x57",
            b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
        ];
        let leaves: Vec<Hash> = inputs.iter().map(|i| leaf(i)).collect();
        let hex = |h: Hash| data_encoding::HEXLOWER.encode(&h);
        assert_eq!(hex(root(&[])), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(hex(root(&leaves[..1])), "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d");
        assert_eq!(hex(root(&leaves)), "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328");
    }

    #[test]
    fn every_leaf_proves_its_own_place_and_no_other() {
        for count in 1..40usize {
            let leaves: Vec<Hash> = (0..count).map(|i| leaf(&[i as u8])).collect();
            let root = root(&leaves);
            for i in 0..count {
                let path = path(&leaves, i).unwrap();
                for j in 0..count {
                    let led = root_of(&leaves[i], j as u64, count as u64, &path);
                    assert_eq!(led == Some(root), i == j, "leaf {i} as {j} of {count}");
                }
                assert_ne!(
                    root_of(&leaves[i], i as u64, count as u64, &path[..path.len().saturating_sub(1)]),
                    Some(root).filter(|_| count > 1)
                );
            }
            assert_eq!(path(&leaves, count), None);
        }
    }

    fn numbered(count: u64) -> Vec<Hash> {
        (0..count).map(|n| leaf(&n.to_le_bytes())).collect()
    }

    fn span(leaves: &[Hash], begin: u64, end: u64) -> Span {
        let mut span = Span::new(begin);
        leaves[begin as usize..end as usize].iter().for_each(|leaf| span.push(*leaf));
        span
    }

    #[test]
    fn a_span_goes_on_without_the_leaves() {
        let leaves = numbered(40);
        for end in 0..=40 {
            let whole = span(&leaves, 0, end);
            assert_eq!(whole.root(), Some(root(&leaves[..end as usize])));
            for begin in 0..=end {
                let (mut first, second) = (span(&leaves, 0, begin), span(&leaves, begin, end));
                let stored = Span::from_hashes(begin, end, second.hashes().to_vec()).unwrap();
                assert_eq!(stored, second);
                assert_eq!(Span::from_hashes(begin, end, [second.hashes(), &[[0; 32]]].concat()), None);
                first.join(&second).unwrap();
                assert_eq!(first, whole, "{begin} and {end}");
            }
            if let Some(next) = leaves.get(end as usize) {
                let path = whole.path_of_next();
                assert_eq!(root_of(next, end, end + 1, &path), Some(root(&leaves[..=end as usize])));
            }
        }
        assert_eq!(span(&leaves, 3, 7).root(), None);
        assert_eq!(span(&leaves, 0, 3).join(&span(&leaves, 4, 7)), None);
    }

    #[test]
    fn a_tree_proves_what_it_grew_from_and_nothing_else() {
        let leaves = numbered(24);
        let other = numbered(25)[1..].to_vec();
        for second in 0..=24u64 {
            let new = root(&leaves[..second as usize]);
            for first in 0..=second {
                let old = root(&leaves[..first as usize]);
                let proof = consistency(&span(&leaves, 0, first), &span(&leaves, first, second)).unwrap();
                assert!(is_consistent((first, &old), (second, &new), &proof), "{first} to {second}");
                if first == 0 {
                    continue;
                }
                let wrong = root(&other[..first as usize]);
                assert!(!is_consistent((first, &wrong), (second, &new), &proof));
                assert!(!is_consistent((first, &old), (second, &root(&other[..second as usize])), &proof));
                for at in 0..proof.len() {
                    let mut bad = proof.clone();
                    bad[at][at] ^= 1;
                    assert!(!is_consistent((first, &old), (second, &new), &bad), "{first} to {second}, hash {at}");
                    bad.remove(at);
                    assert!(!is_consistent((first, &old), (second, &new), &bad));
                }
                let longer = [proof.as_slice(), &[[7; 32]]].concat();
                assert!(!is_consistent((first, &old), (second, &new), &longer));
            }
        }
        assert_eq!(consistency(&span(&leaves, 0, 3), &span(&leaves, 4, 7)), None);
        assert_eq!(consistency(&span(&leaves, 1, 3), &span(&leaves, 3, 7)), None);
    }

    #[test]
    fn proofs_of_rfc_6962_test_data() {
        // PROOF(3, D[7]) = [c, d, g, l], PROOF(4, D[7]) = [l], PROOF(6, D[7]) = [i, j, k] (section 2.1.3).
        let leaves = numbered(7);
        let pair = |a: usize, b: usize| root(&leaves[a..b]);
        let proof = |first| consistency(&span(&leaves, 0, first), &span(&leaves, first, 7)).unwrap();
        assert_eq!(proof(3), [leaves[2], leaves[3], pair(0, 2), pair(4, 7)]);
        assert_eq!(proof(4), [pair(4, 7)]);
        assert_eq!(proof(6), [pair(4, 6), leaves[6], pair(0, 4)]);
    }
}
