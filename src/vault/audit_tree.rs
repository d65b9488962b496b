//! The trees over the groups of the audit's chains: grown with each checkpoint, which signs their roots, and kept for each
//! day, so that the checkpoints of two days prove that the later one only added to the earlier one.

use crate::audit::*;
use crate::clock::Timestamp;
use crate::ids::*;
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::audit_read::{blocking, unreadable};
use crate::vault::error::VaultError;

/// A tree as it was when the last checkpoint of a day was made.
pub(crate) struct KeptTree {
    pub tree: GrowingTree,
    day: u32,
    revision: Revision,
}

/// The day's number in keys.
pub(crate) fn day_no(at: Timestamp) -> u32 {
    u32::try_from(at.day()).unwrap_or(0)
}

/// Sorts the newest first.
fn tree_key(chain: Chain, day: u32) -> Vec<u8> {
    [&[chain.number()][..], &(u32::MAX - day).to_be_bytes()].concat()
}

/// Follows a chain with its tree, up to a head that is known.
struct Follower {
    tree: GrowingTree,
    verifier: Option<Verifier<'static>>,
    /// A tree of what is kept will do; otherwise it begins with the first group.
    partial: bool,
    tenant: TenantNo,
    chain: Chain,
    vault: VaultId,
    end: Head,
}

impl Follower {
    /// Takes the next stored group; `None` where it does not continue what was signed before. Answers whether more is
    /// wanted.
    fn push(&mut self, bytes: &[u8]) -> Option<bool> {
        let group = Group::parse(bytes).ok()?;
        let (tenant, chain) = (self.tenant, self.chain);
        let start = match self.tree.last() {
            Some(last) => last,
            None if group.before().seq == 0 => genesis(self.vault, tenant, chain),
            // What is kept begins later: older segments were pruned.
            None if self.partial => group.before(),
            None => return None,
        };
        let verifier = self.verifier.get_or_insert_with(|| Verifier::new(tenant, chain, start, &[]));
        if group.last() <= verifier.head().seq {
            return Some(true);
        }
        verifier.push(&group).ok()?;
        self.tree.push(verifier.head());
        Some(verifier.head().seq < self.end.seq)
    }

    fn finish(self) -> Option<GrowingTree> {
        (self.tree.last() == Some(self.end)).then_some(self.tree)
    }
}

impl Vault {
    /// The newest tree of a chain that is kept, or the newest of that day or before.
    pub(crate) async fn kept_tree(
        &self,
        tenant: TenantNo,
        chain: Chain,
        day: Option<u32>,
    ) -> Result<Option<KeptTree>, VaultError> {
        let prefix = vec![chain.number()];
        let after = day.map_or(prefix.clone(), |day| tree_key(chain, day.saturating_add(1)));
        let page = self.store.objects(tenant, ObjectKind::AuditTree, prefix, after, 1).await?;
        let Some(row) = page.rows.into_iter().next() else { return Ok(None) };
        let day: [u8; 4] = row.key.get(1..).and_then(|day| day.try_into().ok()).ok_or(VaultError::DataLoss)?;
        let tree = GrowingTree::from_json(&row.body).ok_or(VaultError::DataLoss)?;
        Ok(Some(KeptTree { tree, day: u32::MAX - u32::from_be_bytes(day), revision: row.revision }))
    }

    /// The trees of a chain that are kept, one for each day with a checkpoint of something new, oldest first.
    pub(crate) async fn kept_trees(&self, tenant: TenantNo, chain: Chain) -> Result<Vec<GrowingTree>, VaultError> {
        let prefix = vec![chain.number()];
        let (mut trees, mut after) = (Vec::new(), prefix.clone());
        loop {
            let page = self.store.objects(tenant, ObjectKind::AuditTree, prefix.clone(), after, 500).await?;
            for row in &page.rows {
                trees.push(GrowingTree::from_json(&row.body).ok_or(VaultError::DataLoss)?);
            }
            match page.rows.last() {
                Some(last) if page.more => after = last.key.clone(),
                _ => break,
            }
        }
        trees.reverse();
        Ok(trees)
    }

    /// A chain's head with its tree, for a checkpoint of that time; what is new of the tree goes into `change`. The tree of a
    /// chain that does not continue what was signed before begins anew, and proves nothing of what was before.
    pub(crate) async fn head_with_tree(
        &self,
        tenant: TenantNo,
        chain: Chain,
        now: Timestamp,
        change: &mut ChangeSet,
    ) -> Result<ChainHead, VaultError> {
        let head = self.head_of(tenant, chain).await?;
        let with = |tree: ChainTree| ChainHead { tree: Some(tree), ..ChainHead::new(tenant, chain, head) };
        if head.seq == 0 {
            return Ok(with(GrowingTree::new().tree()));
        }
        let (kept, day) = (self.kept_tree(tenant, chain, None).await?, day_no(now));
        if let Some(kept) = kept.as_ref().filter(|kept| kept.tree.last() == Some(head)) {
            return Ok(with(kept.tree.tree()));
        }
        let revision = kept.as_ref().filter(|kept| kept.day == day).map_or(Revision(0), |kept| kept.revision);
        let mut grown = None;
        if let Some(KeptTree { mut tree, day: marked, .. }) = kept {
            if marked != day {
                tree.mark();
            }
            grown = self.grow(tenant, chain, tree, head, true).await?;
            if grown.is_none() {
                tracing::error!(%tenant, chain = chain.name(), "the audit does not continue what was signed of it");
            }
        }
        if grown.is_none() {
            grown = self.grow(tenant, chain, GrowingTree::new(), head, true).await?;
        }
        let Some(tree) = grown else {
            tracing::error!(%tenant, chain = chain.name(), "the audit has no tree: it does not lead to its own head");
            return Ok(ChainHead::new(tenant, chain, head));
        };
        let (kind, key, revision) = (ObjectKind::AuditTree, tree_key(chain, day), Revision(revision.0 + 1));
        change.change(Mutation::PutObject(ObjectRow { tenant, kind, key, revision, body: tree.to_json() }));
        Ok(with(tree.tree()))
    }

    /// The tree of the chain up to a head; `None` where the chain does not lead there.
    pub(crate) async fn grow(
        &self,
        tenant: TenantNo,
        chain: Chain,
        tree: GrowingTree,
        end: Head,
        partial: bool,
    ) -> Result<Option<GrowingTree>, VaultError> {
        let mut after = tree.last().map_or(0, |head| head.seq);
        if after >= end.seq {
            return Ok(None);
        }
        let mut follower = Follower { tree, verifier: None, partial, tenant, chain, vault: self.keyring.vault(), end };
        match chain {
            Chain::Change => loop {
                let rows = self.store.audit_groups(tenant, after, 256).await?;
                let Some(last) = rows.last() else { return Ok(follower.finish()) };
                after = last.first + u64::from(last.count) - 1;
                for row in &rows {
                    match follower.push(&row.body) {
                        Some(true) => {}
                        Some(false) => return Ok(follower.finish()),
                        None => return Ok(None),
                    }
                }
            },
            Chain::Read => {
                let log = self.read_log.clone();
                blocking(move || {
                    for bytes in log.groups(tenant, after + 1).map_err(unreadable)? {
                        match follower.push(&bytes.map_err(unreadable)?) {
                            Some(true) => {}
                            Some(false) => break,
                            None => return Ok(None),
                        }
                    }
                    Ok(follower.finish())
                })
                .await
            }
        }
    }

    /// Removes the trees of days before `before`, but for the newest of them of each chain; of all days where `before` is
    /// `None`.
    pub(crate) async fn drop_trees(&self, before: Option<Timestamp>) -> Result<(), VaultError> {
        let kind = ObjectKind::AuditTree;
        for row in self.store.tenants().await? {
            let (tenant, mut change) = (row.no, ChangeSet::default());
            for chain in [Chain::Change, Chain::Read] {
                let prefix = vec![chain.number()];
                let after = before.map_or(prefix.clone(), |at| tree_key(chain, day_no(at)));
                let page = self.store.objects(tenant, kind, prefix, after, 10_000).await?;
                for row in page.rows.into_iter().skip(usize::from(before.is_some())) {
                    change.change(Mutation::DeleteObject { tenant, kind, key: row.key });
                }
            }
            if !change.mutations.is_empty() {
                self.store.commit(change).await?;
            }
        }
        Ok(())
    }
}
