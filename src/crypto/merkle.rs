//! Merkle tree of RFC 6962 (section 2.1): leaf = SHA-256(0 | data), node = SHA-256(1 | left | right), a list is split at
//! the largest power of two below its length, and the root of nothing is SHA-256 of nothing.

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
}
