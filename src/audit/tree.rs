//! The Merkle tree over the groups of one chain, so that a later checkpoint proves with a few hashes that it only added to
//! an earlier one. A leaf is SHA-256(0 | number of the last record u64 | hash of the group), little endian: the head that the
//! chain had after that group.

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use super::chain::Head;
use crate::crypto::merkle::{self, Hash, Span};

/// How many groups a chain has, and the root over them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainTree {
    pub size: u64,
    pub root: Hash,
}

impl ChainTree {
    /// Whether a head is the last leaf of this tree.
    pub fn ends_with(&self, head: &Head, path: &[Hash]) -> bool {
        match self.size.checked_sub(1) {
            Some(last) => merkle::root_of(&leaf(head), last, self.size, path) == Some(self.root),
            None => head.seq == 0 && path.is_empty() && self.root == merkle::root(&[]),
        }
    }

    /// Whether a proof shows that this tree only added groups to `former`.
    pub fn extends(&self, former: &ChainTree, proof: &[Hash]) -> bool {
        merkle::is_consistent((former.size, &former.root), (self.size, &self.root), proof)
    }
}

fn leaf(head: &Head) -> Hash {
    let mut data = [0u8; 8 + 32];
    data[..8].copy_from_slice(&head.seq.to_le_bytes());
    data[8..].copy_from_slice(&head.hash);
    merkle::leaf(&data)
}

/// A tree that grows with its chain, without its leaves: all that is known of it is the last head, what stands left of it,
/// and what was added since a mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrowingTree {
    last: Option<Head>,
    before: Span,
    more: Span,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    seq: u64,
    hash: String,
    size: u64,
    before: Vec<String>,
    since: u64,
    more: Vec<String>,
}

impl Default for GrowingTree {
    fn default() -> Self {
        Self::new()
    }
}

impl GrowingTree {
    /// Of a chain without groups.
    pub fn new() -> Self {
        GrowingTree { last: None, before: Span::new(0), more: Span::new(0) }
    }

    /// The head of the chain that it has seen.
    pub fn last(&self) -> Option<Head> {
        self.last
    }

    /// Groups so far.
    pub fn size(&self) -> u64 {
        self.more.end()
    }

    /// Takes the head that the chain has after its next group.
    pub fn push(&mut self, head: Head) {
        if let Some(last) = self.last.replace(head) {
            self.before.push(leaf(&last));
        }
        self.more.push(leaf(&head));
    }

    /// What comes from now on is what [`Self::extension`] shows.
    pub fn mark(&mut self) {
        self.more = Span::new(self.size());
    }

    /// Goes on to a later tree of the chain that was marked where this one ends; `false`, and nothing, where it was not.
    pub fn join(&mut self, later: &GrowingTree) -> bool {
        if self.more.join(&later.more).is_none() {
            return false;
        }
        (self.before, self.last) = (later.before.clone(), later.last);
        true
    }

    fn whole(&self) -> Span {
        let mut whole = self.before.clone();
        if let Some(last) = &self.last {
            whole.push(leaf(last));
        }
        whole
    }

    /// What a checkpoint signs of it.
    pub fn tree(&self) -> ChainTree {
        ChainTree { size: self.size(), root: self.whole().root().expect("it begins with the first leaf") }
    }

    /// For [`ChainTree::ends_with`].
    pub fn path(&self) -> Vec<Hash> {
        if self.last.is_some() { self.before.path_of_next() } else { Vec::new() }
    }

    /// For [`ChainTree::extends`]; `None` where this was not marked at `former`.
    pub fn extension(&self, former: &GrowingTree) -> Option<Vec<Hash>> {
        if former.size() == self.size() {
            return (former.last == self.last).then(Vec::new);
        }
        merkle::consistency(&former.whole(), &self.more)
    }

    /// As it is stored.
    pub fn to_json(&self) -> Vec<u8> {
        let hex = |span: &Span| span.hashes().iter().map(|hash| HEXLOWER.encode(hash)).collect();
        let head = self.last.unwrap_or(Head { seq: 0, hash: [0; 32] });
        let stored = Stored {
            seq: head.seq,
            hash: HEXLOWER.encode(&head.hash),
            size: self.size(),
            before: hex(&self.before),
            since: self.more.begin(),
            more: hex(&self.more),
        };
        serde_json::to_vec(&stored).expect("texts and whole numbers are JSON")
    }

    /// What [`Self::to_json`] wrote; `None` for anything else.
    pub fn from_json(json: &[u8]) -> Option<Self> {
        let stored: Stored = serde_json::from_slice(json).ok()?;
        let hash = |text: &String| -> Option<Hash> { HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok() };
        let all = |texts: &[String]| texts.iter().map(hash).collect::<Option<Vec<Hash>>>();
        let last = match stored.size {
            0 => None,
            _ => Some(Head { seq: stored.seq, hash: hash(&stored.hash)? }),
        };
        let before = Span::from_hashes(0, stored.size.saturating_sub(1), all(&stored.before)?)?;
        let more = Span::from_hashes(stored.since, stored.size, all(&stored.more)?)?;
        Some(GrowingTree { last, before, more })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(n: u64) -> Head {
        Head { seq: n * 3 + 1, hash: [n as u8; 32] }
    }

    #[test]
    fn each_step_proves_that_it_only_added() {
        let mut tree = GrowingTree::new();
        assert!(tree.tree().ends_with(&Head { seq: 0, hash: [9; 32] }, &tree.path()));
        let mut former = tree.clone();
        let mut n = 0;
        for step in [1, 0, 2, 5, 1, 8, 3, 3, 16, 1] {
            tree.mark();
            for _ in 0..step {
                tree.push(head(n));
                n += 1;
            }
            let read = GrowingTree::from_json(&tree.to_json()).unwrap();
            assert_eq!(read, tree);
            let (now, then) = (tree.tree(), former.tree());
            assert_eq!(now.size, n);
            let proof = tree.extension(&former).unwrap();
            assert!(now.extends(&then, &proof), "{} to {}", then.size, now.size);
            assert!(now.ends_with(&head(n - 1), &tree.path()));
            assert!(!now.ends_with(&head(n), &tree.path()));
            if step > 0 && then.size > 0 {
                assert!(!now.extends(&ChainTree { root: [1; 32], ..then }, &proof));
                assert!(!ChainTree { root: [1; 32], ..now }.extends(&then, &proof));
                assert!(!then.extends(&now, &proof));
            }
            former = tree.clone();
        }
        // A tree with another leaf in the middle proves nothing of this one.
        let mut other = GrowingTree::new();
        (0..n).for_each(|i| other.push(head(if i == 4 { 99 } else { i })));
        let then = former.tree();
        other.mark();
        other.push(head(n));
        let proof = other.extension(&former).unwrap_or_default();
        assert!(!other.tree().extends(&then, &proof));
    }
}
