//! Decisions that a restore must not undo, in the keeper's ledger.

use crate::ids::*;
use crate::keyring::ledger::{LedgerEntry, LedgerKind};
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::error::VaultError;

impl Vault {
    /// Makes decisions durable in the ledger. They are durable in the database already and in force: when the keeper is
    /// away, the caller hears so and repeats the call.
    pub(crate) async fn ledger(&self, entries: Vec<LedgerEntry>) -> Result<(), VaultError> {
        let appended = self.keyring.keeper().append_ledger(entries).await;
        appended.map(|_| ()).map_err(|error| VaultError::Keyring(error.into()))
    }
}

/// A decision of this call about a subject.
pub(crate) fn ledger_entry(call: &Call, kind: LedgerKind, uid: SubjectUid, object: ObjectId) -> LedgerEntry {
    LedgerEntry { uid, object, ..LedgerEntry::new(kind, call.tenant.no, call.wall) }
}
