//! Whether a signed head of now goes on from heads that somebody kept: each is shown to be the beginning of the next one, and
//! the last of the one of now. Whoever has the heads and the vault's public key needs nobody's word for it.

use super::checkpoint::{ChainHead, HeadProof};
use crate::crypto::merkle::Hash;

/// For each of `kept` (heads of one chain, by position) whether `present` goes on from it. `steps`: the consistency proof from
/// each to the next one, from the last to `present`. A head that was signed without a tree is not shown to be anything.
pub fn goes_on_from(kept: &[ChainHead], present: &HeadProof, steps: &[Option<Vec<Hash>>]) -> Vec<bool> {
    let mut goes_on = vec![false; kept.len()];
    let (mut next, mut shown) = (present.head(), true);
    for (i, head) in kept.iter().enumerate().rev() {
        let step = steps.get(i).and_then(Option::as_deref);
        let extends = match (next.tree, head.tree, step) {
            (Some(later), Some(former), Some(step)) => later.extends(&former, step),
            _ => false,
        };
        let same_chain = (head.tenant, head.chain) == (next.tenant, next.chain) && head.head.seq <= next.head.seq;
        // Behind one that is not shown nothing is.
        shown &= extends && same_chain;
        goes_on[i] = shown;
        next = *head;
    }
    goes_on
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Chain, Checkpoint, GrowingTree, Head};
    use crate::clock::Timestamp;
    use crate::crypto::sign::Signing;
    use crate::ids::{TenantNo, VaultId};

    fn head(n: u64) -> Head {
        Head { seq: n + 1, hash: [n as u8; 32] }
    }

    fn signed(tree: &GrowingTree, last: u64) -> ChainHead {
        ChainHead { tree: Some(tree.tree()), ..ChainHead::new(TenantNo(1), Chain::Read, head(last)) }
    }

    #[test]
    fn each_head_is_the_beginning_of_the_next_or_nothing_before_it_counts() {
        let mut tree = GrowingTree::new();
        let (mut kept, mut steps) = (Vec::new(), Vec::new());
        let mut grow = |until: u64, kept: &mut Vec<ChainHead>, steps: &mut Vec<Option<Vec<Hash>>>| {
            let former = tree.clone();
            tree.mark();
            (former.size()..until).for_each(|n| tree.push(head(n)));
            kept.push(signed(&tree, until - 1));
            steps.push(tree.extension(&former));
        };
        [5, 6, 11, 30].into_iter().for_each(|until| grow(until, &mut kept, &mut steps));
        let present = kept.pop().unwrap();
        steps.remove(0);
        let key = Signing::generate();
        let present = Checkpoint::sign(VaultId([1; 16]), Timestamp(9), vec![present], &key);
        let present = present.proof(TenantNo(1), Chain::Read).unwrap();
        assert_eq!(goes_on_from(&kept, &present, &steps), [true; 3]);
        let mut cut = steps.clone();
        cut[1] = None;
        assert_eq!(goes_on_from(&kept, &present, &cut), [false, false, true]);
        let mut other = kept.clone();
        other[1].tree.as_mut().unwrap().root[0] ^= 1;
        assert_eq!(goes_on_from(&other, &present, &steps), [false, false, true]);
        let mut without = kept.clone();
        without[0].tree = None;
        assert_eq!(goes_on_from(&without, &present, &steps), [false, true, true]);
        let mut elsewhere = kept.clone();
        elsewhere[2].chain = Chain::Change;
        assert_eq!(goes_on_from(&elsewhere, &present, &steps), [false; 3]);
        assert_eq!(goes_on_from(&kept, &present, &[]), [false; 3]);
    }
}
