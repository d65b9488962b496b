//! Proofs that the audit of now goes on from heads that somebody else kept, which are checked without this server's word.

use std::collections::BTreeMap;

use crate::access::Verb;
use crate::audit::*;
use crate::crypto::merkle::Hash;
use crate::ids::*;
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::error::VaultError;

/// What [`goes_on_from`] wants of one chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainSteps {
    /// Its head in a checkpoint that is signed now.
    pub present: HeadProof,
    /// From each head that was asked about to the next, from the last to the present one; `None` where the chain does not
    /// lead from one to the other, or what it would need was pruned.
    pub steps: Vec<Option<Vec<Hash>>>,
}

impl Vault {
    /// Signs a checkpoint, and proves that it goes on from each of `against`, which are by position within their chain. Those
    /// of other tenants are for who asks for the vault's own. Without heads there is nothing to prove.
    pub async fn prove_extensions(&self, call: &Call, against: &[ChainHead]) -> Result<Vec<ChainSteps>, VaultError> {
        call.permit(Verb::Audit)?;
        let own = call.tenant.no;
        let mut chains: BTreeMap<(TenantNo, Chain), Vec<Head>> = BTreeMap::new();
        for one in against.iter().filter(|one| own == TenantNo::VAULT || one.tenant == own) {
            chains.entry((one.tenant, one.chain)).or_default().push(one.head);
        }
        let mut out = Vec::with_capacity(chains.len());
        if chains.is_empty() {
            return Ok(out);
        }
        let checkpoint = self.make_checkpoint(call.wall).await?;
        for ((tenant, chain), heads) in chains {
            // A tenant that was never here has no chain.
            let Some(present) = checkpoint.proof(tenant, chain) else { continue };
            let steps = self.steps(tenant, chain, &heads, present.head().head).await?;
            out.push(ChainSteps { present, steps });
        }
        Ok(out)
    }

    async fn steps(
        &self,
        tenant: TenantNo,
        chain: Chain,
        heads: &[Head],
        present: Head,
    ) -> Result<Vec<Option<Vec<Hash>>>, VaultError> {
        let kept = self.kept_trees(tenant, chain).await?;
        let (mut steps, mut at) = (Vec::with_capacity(heads.len()), None::<GrowingTree>);
        for (i, end) in heads.iter().chain([&present]).enumerate() {
            let former = at.take();
            let start = match &former {
                Some(former) => {
                    let mut tree = former.clone();
                    tree.mark();
                    tree
                }
                None => {
                    let before = |tree: &&GrowingTree| tree.last().is_some_and(|last| last.seq <= end.seq);
                    kept.iter().rev().find(before).cloned().unwrap_or_default()
                }
            };
            at = self.reach(tenant, chain, start, &kept, *end).await?;
            if i > 0 {
                steps.push(former.and_then(|former| at.as_ref()?.extension(&former)));
            }
        }
        Ok(steps)
    }

    /// Goes on with a tree up to a head: by the trees that were kept as far as they go, then along the entries.
    async fn reach(
        &self,
        tenant: TenantNo,
        chain: Chain,
        mut tree: GrowingTree,
        kept: &[GrowingTree],
        end: Head,
    ) -> Result<Option<GrowingTree>, VaultError> {
        for later in kept {
            let Some(last) = later.last().filter(|last| last.seq <= end.seq) else { continue };
            if tree.last().is_some_and(|at| at.seq >= last.seq) || tree.join(later) {
                continue;
            }
            match self.grow(tenant, chain, tree, last, false).await? {
                Some(grown) => tree = grown,
                None => return Ok(None),
            }
        }
        if tree.last() == Some(end) {
            return Ok(Some(tree));
        }
        self.grow(tenant, chain, tree, end, false).await
    }
}
