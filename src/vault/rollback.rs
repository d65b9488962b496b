//! Whether the database is as new as the keeper's anchor saw it. The anchor is written at most a second after a change; a
//! database that ends before it was put back from an older copy.

use crate::audit::{Action, Group, Outcome};
use crate::clock::Timestamp;
use crate::ids::*;
use crate::keyring::TenantKeyState;
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::error::VaultError;

/// What an older database lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollback {
    /// Entries of the change audit.
    pub missing: u64,
    /// When the keeper saw the newer database last.
    pub seen_at: Timestamp,
    /// Tenants with an erasure or rotation since: their keys of then are gone, only a restore brings their people back.
    pub behind: Vec<TenantNo>,
    /// Decisions in the ledger that were made since: revoked keys, holds, erasures.
    pub decisions: u64,
}

impl Rollback {
    /// Going on with the older database forgets nothing that must be kept: no key died and nothing was decided since.
    pub fn acceptable(&self) -> bool {
        self.behind.is_empty() && self.decisions == 0
    }

    /// What to do next, for an operator.
    pub fn advice(&self) -> &'static str {
        match self.acceptable() {
            true => {
                "if the newer database file is still there, put it back and start again; if not, the writes since are \
                 lost: `pii-vault accept-rollback` goes on without them. See docs/RECOVERY.md#i-restored-the-wrong-day"
            }
            false => {
                "if the newer database file is still there, put it back and start again; if not, run `pii-vault \
                 restore`, which keeps what was decided since. See docs/RECOVERY.md#i-restored-the-wrong-day"
            }
        }
    }
}

impl Vault {
    /// Compares the database with the anchor; `None`: it is not older.
    pub async fn rolled_back(&self) -> Result<Option<Rollback>, VaultError> {
        let Some(anchor) = self.keyring.anchor().await? else { return Ok(None) };
        let (mut count, mut last) = (0, Timestamp(0));
        for row in self.store.tenants().await? {
            let Some(head) = self.store.audit_head(row.no).await? else { continue };
            count += head.seq;
            for group in self.store.audit_groups(row.no, head.seq.saturating_sub(1), 1).await? {
                let group = Group::parse(&group.body).map_err(|_| VaultError::DataLoss)?;
                for entry in group.entries() {
                    last = last.max(entry.map_err(|_| VaultError::DataLoss)?.1.at);
                }
            }
        }
        if count >= anchor.audit_count {
            return Ok(None);
        }
        let behind = |(no, state): (TenantNo, _)| (state == TenantKeyState::DatabaseBehind).then_some(no);
        Ok(Some(Rollback {
            missing: anchor.audit_count - count,
            seen_at: anchor.at,
            behind: self.keyring.states().into_iter().filter_map(behind).collect(),
            decisions: self.decisions_since(last).await?,
        }))
    }

    async fn decisions_since(&self, time: Timestamp) -> Result<u64, VaultError> {
        let failed = |error: crate::keyring::keeper::KeeperError| VaultError::Keyring(error.into());
        let mut reader = self.keyring.keeper().ledger().await.map_err(failed)?;
        let counted = tokio::task::spawn_blocking(move || {
            let mut later = 0;
            while let Some(batch) = reader.next_batch()? {
                later += batch.entries.iter().filter(|entry| entry.at > time).count() as u64;
            }
            Ok(later)
        });
        let counted = counted.await.map_err(|_| failed(crate::keyring::keeper::KeeperError::Closed))?;
        counted.map_err(|error: crate::keyring::ledger::LedgerError| failed(error.into()))
    }

    /// Goes on with an older database: the anchor is written anew. On the server's own machine, with the server stopped.
    ///
    /// # Errors
    /// `WrongState` where it is not older, or where that would undo something; then only a restore helps.
    pub async fn accept_rollback(&self) -> Result<Rollback, VaultError> {
        let rollback = self.rolled_back().await?;
        let rollback =
            rollback.ok_or(VaultError::WrongState("the database is as new as the keeper: nothing to accept"))?;
        if !rollback.acceptable() {
            return Err(VaultError::WrongState(
                "keys died or decisions were made since: going on would undo them, so only a restore helps",
            ));
        }
        let call = self.local_call(TenantNo::VAULT)?;
        let mut change = ChangeSet::default();
        change.note(TenantNo::VAULT, call.record(Action::RollbackAccepted, Outcome::Ok).to_bytes());
        self.store.commit(change).await?;
        self.keep_anchor().await?;
        Ok(rollback)
    }
}
