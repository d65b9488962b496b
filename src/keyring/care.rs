//! Care of the keeper while the vault runs: replicas that were away and come back, one that is given up, and a look at
//! every slot of every replica.

use crate::clock::Timestamp;
use crate::ids::*;
use crate::keyring::error::KeyringError;
use crate::keyring::keeper::{KeeperError, ReplicaState};
use crate::keyring::ledger::LedgerHead;
use crate::keyring::ring::Keyring;
use crate::keyring::state::TenantKeyState;

/// What a look at a tenant's slots found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotsReport {
    pub tenant: TenantNo,
    pub state: TenantKeyState,
    /// Generation in the database.
    pub generation: Generation,
    /// Replicas that hold the root of that generation under the root KEK in use.
    pub holding: u32,
    /// Roots of earlier generations that are not overwritten yet.
    pub older: u32,
    /// Slots whose check is wrong.
    pub torn: u32,
}

/// What a look at the whole keeper found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeeperReport {
    pub tenants: Vec<SlotsReport>,
    /// Tenants that only the keeper knows.
    pub orphans: Vec<TenantNo>,
    /// Replicas that take part.
    pub active: u32,
    /// The ledger's end, after its chain and every signature were checked.
    pub ledger: LedgerHead,
    /// What is wrong, in words; empty: nothing.
    pub problems: Vec<String>,
}

impl Keyring {
    /// Tries replicas that are away once more, gives those that are back the present roots, and overwrites what they
    /// still hold of older ones. Answers how many came back.
    pub async fn rejoin_replicas(&self) -> Result<u64, KeyringError> {
        let before = self.away();
        if before == 0 {
            return Ok(0);
        }
        self.keeper.rejoin().await?;
        let back = before.saturating_sub(self.away());
        if back > 0 {
            self.refresh_replicas().await;
        }
        Ok(back)
    }

    /// Gives a replica up that is away, for good and by name; the keys go on with those that are left.
    ///
    /// # Errors
    /// `Keeper(Refused)` where it is not away.
    pub async fn retire_replica(&self, replica: usize, at: Timestamp) -> Result<(), KeyringError> {
        self.keeper.retire(replica, at).await?;
        self.refresh_replicas().await;
        Ok(())
    }

    /// Replicas that cannot be written now.
    pub fn away(&self) -> u64 {
        let away = |state: &ReplicaState| matches!(state, ReplicaState::Away { .. });
        self.keeper.replicas().iter().filter(|replica| away(&replica.state)).count() as u64
    }

    async fn refresh_replicas(&self) {
        for (tenant, state) in self.states() {
            if state == TenantKeyState::Ready
                && let Err(error) = self.settle(tenant, Vec::new()).await
            {
                tracing::warn!(tenant = tenant.0, %error, "old roots are not overwritten yet");
            }
        }
    }

    /// Reads every slot of every replica and the whole ledger, and compares them with the database.
    pub async fn verify_keeper(&self) -> Result<KeeperReport, KeyringError> {
        let mut problems = Vec::new();
        let mut active = 0;
        for replica in self.keeper.replicas() {
            match replica.state {
                ReplicaState::Active => active += 1,
                ReplicaState::Away { reason } => {
                    problems.push(format!("replica {} is away ({reason}): erasures wait for it", replica.index));
                }
                ReplicaState::Retired => {}
            }
        }
        let rows = self.store.tenants().await?;
        let mut tenants = Vec::new();
        for row in &rows {
            let slots = self.keeper.read(row.no).await?;
            let state = self.state(row.no);
            let present = |block: &&crate::keyring::keeper::RootBlock| {
                block.generation == row.generation && self.has_kek(&block.kek)
            };
            let report = SlotsReport {
                tenant: row.no,
                state,
                generation: row.generation,
                holding: slots.roots().filter(present).count() as u32,
                older: slots.roots().filter(|block| block.generation < row.generation).count() as u32,
                torn: slots.torn,
            };
            if state == TenantKeyState::Ready && report.holding < active {
                problems.push(format!("tenant {}: {} of {active} replicas hold its root", row.no, report.holding));
            }
            if state == TenantKeyState::Ready && (report.older > 0 || report.torn > 0) {
                problems.push(format!("tenant {}: an older root is not overwritten yet", row.no));
            }
            tenants.push(report);
        }
        let known = self.keeper.tenants().await?;
        let orphans = known.into_iter().filter(|no| rows.iter().all(|row| row.no != *no)).collect();
        let reader = self.keeper.ledger().await?;
        let (keys, anchor) = (self.public_keys(), self.anchor().await?);
        let verified = tokio::task::spawn_blocking(move || reader.verify(&keys, anchor.map(|anchor| anchor.ledger)));
        let ledger = match verified.await {
            Ok(Ok(head)) => head,
            Ok(Err(error)) => {
                problems.push(format!("the ledger does not verify: {error}"));
                LedgerHead::default()
            }
            Err(_) => return Err(KeyringError::Keeper(KeeperError::Closed)),
        };
        Ok(KeeperReport { tenants, orphans, active, ledger, problems })
    }
}
