//! Care of the keeper by operators: a look at everything, and a replica given up by name.

use data_encoding::HEXLOWER;

use crate::audit::{Action, Outcome};
use crate::keyring::KeyringError;
use crate::keyring::care::KeeperReport;
use crate::keyring::keeper::KeeperError;
use crate::storage::ChangeSet;
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::error::VaultError;

impl Vault {
    /// Reads every slot of every replica and the whole ledger, and compares them with the database.
    pub async fn verify_keeper(&self, call: &Call) -> Result<KeeperReport, VaultError> {
        self.operators_only(call)?;
        Ok(self.keyring.verify_keeper().await?)
    }

    /// Gives up a replica that is away, for good. `name`: its identity, 32 hexadecimal digits.
    ///
    /// # Errors
    /// `NotFound` where there is no such replica in that place, `WrongState` where it is not away.
    pub async fn retire_replica(&self, call: &Call, index: usize, name: &str) -> Result<(), VaultError> {
        self.operators_only(call)?;
        let replicas = self.keyring.keeper().replicas();
        let replica = replicas.get(index).filter(|it| HEXLOWER.encode(&it.id) == name).ok_or(VaultError::NotFound)?;
        match self.keyring.retire_replica(replica.index, call.wall).await {
            Ok(()) => {}
            Err(KeyringError::Keeper(KeeperError::Refused { rule })) => return Err(VaultError::WrongState(rule)),
            Err(error) => return Err(error.into()),
        }
        let mut change = ChangeSet::default();
        change.note(call.tenant.no, call.record(Action::RetireReplica, Outcome::Ok).to_bytes());
        self.store.commit(change).await?;
        Ok(())
    }
}
