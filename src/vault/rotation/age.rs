//! Since when the present version of a key is in use, for keys whose age nothing else tells.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::ids::*;
use crate::receipt::rotation::{Kind, Version};
use crate::storage::*;
use crate::vault::call::Call;
use crate::vault::error::VaultError;
use crate::vault::operation::Operation;
use crate::vault::{Vault, to_json};

/// The present version of a kind of key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeyAge {
    pub version: Version,
    pub since: Timestamp,
}

fn age_key(kind: Kind) -> Vec<u8> {
    [b"key-age/", kind.name().as_bytes()].concat()
}

impl Vault {
    async fn stored_age(&self, tenant: TenantNo, kind: Kind) -> Result<(Option<KeyAge>, Revision), VaultError> {
        match self.store.object(tenant, ObjectKind::Setting, age_key(kind)).await? {
            Some(row) => Ok((Some(serde_json::from_slice(&row.body).map_err(|_| VaultError::DataLoss)?), row.revision)),
            None => Ok((None, Revision(0))),
        }
    }

    /// Version and age; a key that was never rotated is as old as its tenant.
    pub(crate) async fn key_age(&self, call: &Call, kind: Kind) -> Result<KeyAge, VaultError> {
        let first =
            KeyAge { version: Version { number: 1, ..Version::default() }, since: call.tenant.settings.created };
        Ok(self.stored_age(call.tenant.no, kind).await?.0.unwrap_or(first))
    }

    /// Takes note of the new version of a whole kind. A rotation of some classes or one subject makes no kind younger.
    pub(super) async fn put_age(
        &self,
        call: &Call,
        operation: &Operation,
        kind: Kind,
        change: &mut ChangeSet,
    ) -> Result<(), VaultError> {
        let state = operation.rotation.clone().unwrap_or_default();
        // The others' ages are known otherwise.
        if matches!(kind, Kind::TenantRoot | Kind::Index | Kind::Signing) || state.is_partial() {
            return Ok(());
        }
        let tenant = call.tenant.no;
        let revision = self.stored_age(tenant, kind).await?.1;
        let age = KeyAge { version: state.to, since: operation.created };
        change.replace_object(tenant, ObjectKind::Setting, age_key(kind), revision, to_json(&age));
        Ok(())
    }
}
