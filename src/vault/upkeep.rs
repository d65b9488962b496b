//! What the vault does by itself: all due work of a tenant, pruning what is old, and the anchor in the keeper.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::audit::{Chain, ChainHead, Checkpoint, heads_root};
use crate::auth::{Kind, Principal};
use crate::clock::DAY_MS;
use crate::ids::*;
use crate::keyring::keeper::Anchor;
use crate::keyring::ledger::LedgerHead;
use crate::storage::*;
use crate::telemetry::KEEPER_AWAY;
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::error::VaultError;
use crate::vault::expiry::Progress;
use crate::vault::request::REMEMBERED_MS;
use crate::vault::tenant::Tenant;

/// How long events of the feed are kept, in days.
const FEED_DAYS: i64 = 366;
/// Rows pruned in one change.
const PRUNED_AT_ONCE: u32 = 5_000;
/// Rounds of due work after which something is waiting for more than time.
const MOST_ROUNDS: usize = 1_000;

/// What was written last, so that nothing is written twice.
#[derive(Default)]
pub struct Upkeep {
    anchored: Mutex<Option<([u8; 32], LedgerHead)>>,
    checkpointed: Mutex<Option<[u8; 32]>>,
}

impl Vault {
    /// A call of the vault itself in a tenant, now. It may do nothing that a permission is asked for.
    pub fn job_call(&self, tenant: Arc<Tenant>) -> Call {
        let principal = Principal {
            actor: ActorId(0),
            tenant: tenant.no,
            kind: Kind::Tenant,
            grants: Arc::from([]),
            certificate: None,
            expires: None,
            subjects_per_hour: None,
        };
        self.call(Arc::new(principal), tenant)
    }

    /// Time that only goes on; for durations.
    pub fn monotonic(&self) -> std::time::Duration {
        self.clock.monotonic()
    }

    /// Does everything of a tenant that is due now: buckets, dates, changed retention, rows, rotations. For tests and
    /// for TEST tenants whose clock was advanced.
    pub async fn run_due_work(&self, tenant: TenantNo) -> Result<Progress, VaultError> {
        let mut all = Progress::default();
        for _ in 0..MOST_ROUNDS {
            let call = self.job_call(self.tenant(tenant)?);
            if call.tenant.policy.is_none() {
                all.add(self.go_on_rotations(&call, 100_000).await?);
                return Ok(all);
            }
            let mut round = self.shred_due(&call, 1_000).await?;
            // Before the operations are counted: the date of each may bring another.
            let due = self.run_due(&call, 1_000).await?;
            round.add(Progress { done: u64::from(due), more: due == 1_000 });
            let moved = self.go_on(&call, 1_000).await?;
            round.add(Progress { done: u64::from(moved), more: moved > 0 });
            round.add(self.apply_retention(&call, 10_000).await?);
            round.add(self.sweep_erased(&call, 100_000).await?);
            round.add(self.sweep_rows(&call, 100_000).await?);
            round.add(self.rotate_due_index(&call).await?);
            round.add(self.go_on_index(&call, 10_000).await?);
            round.add(self.rotate_due_root(&call).await?);
            round.add(self.rotate_due_keys(&call).await?);
            round.add(self.go_on_rotations(&call, 100_000).await?);
            round.add(self.keep_credentials(&call, 10_000).await?);
            all.done += round.done;
            if !round.more {
                return Ok(all);
            }
        }
        Err(VaultError::WrongState("due work does not end"))
    }

    /// The heads of all chains, by tenant and chain.
    async fn chain_heads(&self) -> Result<Vec<ChainHead>, VaultError> {
        let mut heads = Vec::new();
        let reads = self.read_log.heads();
        for row in self.store.tenants().await? {
            if let Some(head) = self.store.audit_head(row.no).await? {
                heads.push(ChainHead::new(row.no, Chain::Change, head));
            }
            if let Some((_, head)) = reads.iter().find(|(tenant, _)| *tenant == row.no) {
                heads.push(ChainHead::new(row.no, Chain::Read, *head));
            }
        }
        Ok(heads)
    }

    /// Writes the anchor if audit or ledger went on since the last one; answers whether it did.
    pub async fn keep_anchor(&self) -> Result<bool, VaultError> {
        let heads = self.chain_heads().await?;
        let audit_head = heads_root(&heads);
        let ledger = self.keyring.keeper().ledger_head().await.map_err(|error| VaultError::Keyring(error.into()))?;
        if *self.upkeep.anchored.lock() == Some((audit_head, ledger)) {
            return Ok(false);
        }
        let changes = heads.iter().filter(|one| one.chain == Chain::Change);
        let audit_count = changes.map(|one| one.head.seq).sum();
        self.keyring.put_anchor(&Anchor { at: self.clock.now(), audit_count, audit_head, ledger }).await?;
        *self.upkeep.anchored.lock() = Some((audit_head, ledger));
        Ok(true)
    }

    /// Tries keeper replicas that are away once more; answers how many came back.
    pub async fn keep_replicas(&self) -> Result<u64, VaultError> {
        let back = self.keyring.rejoin_replicas().await?;
        metrics::gauge!(KEEPER_AWAY).set(self.keyring.away() as f64);
        Ok(back)
    }

    /// Signs a checkpoint if any chain went on since the last one.
    pub async fn keep_checkpoint(&self) -> Result<Option<Checkpoint>, VaultError> {
        let root = heads_root(&self.chain_heads().await?);
        if *self.upkeep.checkpointed.lock() == Some(root) {
            return Ok(None);
        }
        let checkpoint = self.make_checkpoint(self.clock.now()).await?;
        *self.upkeep.checkpointed.lock() = Some(root);
        Ok(Some(checkpoint))
    }

    /// Forgets answers of requests after a day and events of the feed after a year; about `limit` rows.
    pub async fn prune(&self, limit: u64) -> Result<Progress, VaultError> {
        let now = self.clock.now();
        let mut progress = Progress::default();
        let mut prune = Vec::new();
        prune.push(Mutation::PruneRequests { before: now.plus_ms(-REMEMBERED_MS), limit: PRUNED_AT_ONCE });
        for tenant in self.live_tenants() {
            let before = tenant.time(now).plus_ms(-FEED_DAYS * DAY_MS);
            prune.push(Mutation::PruneFeed { tenant: tenant.no, before, limit: PRUNED_AT_ONCE });
        }
        for mutation in prune {
            loop {
                let mut change = ChangeSet::default();
                change.change(mutation.clone());
                let removed = self.store.commit(change).await?.removed;
                progress.done += removed;
                if removed < u64::from(PRUNED_AT_ONCE) {
                    break;
                }
                if progress.done >= limit {
                    return Ok(Progress { more: true, ..progress });
                }
            }
        }
        Ok(progress)
    }
}
