//! What becomes of a change that met another one at its commit.

use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::error::VaultError;
use crate::vault::request::Request;

/// How often a change is decided anew before the caller is told, or a job leaves it to its next round.
pub(super) const ATTEMPTS: usize = 6;

impl Vault {
    /// `Ok` when the change should be decided again.
    pub(crate) async fn retry_or_answer(
        &self,
        call: &Call,
        error: StoreError,
        request: Option<&Request>,
    ) -> Result<(), VaultError> {
        match error {
            StoreError::Conflict(Conflict::Request) => {
                // The same request committed beside this one; its answer may differ in type, so it is asked for again.
                let known = self.store.request(call.tenant.no, request.ok_or(VaultError::Conflict)?.id).await?;
                match (known, request) {
                    (Some(row), Some(request)) if row.fingerprint == request.fingerprint => Err(VaultError::Conflict),
                    _ => Err(VaultError::RequestIdReused),
                }
            }
            StoreError::Conflict(_) => Ok(()),
            other => Err(other.into()),
        }
    }
}
