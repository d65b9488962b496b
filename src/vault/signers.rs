//! The public keys that the vault ever signed with. Receipts and checkpoints outlive the key that signed them: who
//! verifies one later must find that key too.
//!
//! The list is sealed under a key of the vault's own tenant: who can only write rows cannot add a key of his own.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::ids::*;
use crate::keyring::Keyring;
use crate::storage::*;
use crate::vault::error::VaultError;
use crate::vault::tenant::Tenant;
use crate::vault::{Vault, to_json};

/// Key of the setting in the vault's own tenant.
const SIGNERS: &[u8] = b"signers";

/// A public key and when it came into use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signer {
    #[serde(with = "crate::vault::hex")]
    public: Vec<u8>,
    since: Timestamp,
}

/// A public key as callers see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignerView {
    pub public: [u8; 32],
    pub since: Timestamp,
    /// When the next one came; `None`: it is the present one.
    pub until: Option<Timestamp>,
}

/// The public keys, the present one first. One that is not in the list yet is the present one alone.
pub(crate) async fn load(store: &dyn Store, keyring: &Keyring, now: Timestamp) -> Result<Vec<SignerView>, VaultError> {
    let (own, row) = stored(store, keyring).await?;
    let list = read(&own, row.as_ref(), keyring, now).0;
    Ok(views(&list))
}

async fn stored(store: &dyn Store, keyring: &Keyring) -> Result<(Tenant, Option<ObjectRow>), VaultError> {
    let rows = store.tenants().await?;
    let row = rows.into_iter().find(|row| row.no == TenantNo::VAULT).ok_or(VaultError::DataLoss)?;
    let own = Tenant::load(keyring, row, None, &[])?;
    let row = store.object(TenantNo::VAULT, ObjectKind::Setting, SIGNERS.to_vec()).await?;
    Ok((own, row))
}

/// The list with the present key at its end, and whether that is new.
fn read(own: &Tenant, row: Option<&ObjectRow>, keyring: &Keyring, now: Timestamp) -> (Vec<Signer>, bool) {
    let opened = row.and_then(|row| {
        let plain = own.open_object(ObjectKind::Setting, SIGNERS, &row.body).ok()?;
        serde_json::from_slice::<Vec<Signer>>(&plain).ok()
    });
    if opened.is_none() && row.is_some() {
        // Other keys than those it was sealed with: after a loss of the vault's own tenant.
        tracing::error!("the list of former signing keys does not open: it begins anew");
    }
    let (mut list, public) = (opened.unwrap_or_default(), keyring.signing().public().to_vec());
    let new = list.last().is_none_or(|last| last.public != public);
    if new {
        list.push(Signer { public, since: now });
    }
    (list, new)
}

fn views(list: &[Signer]) -> Vec<SignerView> {
    let mut until = None;
    let mut views = Vec::with_capacity(list.len());
    for signer in list.iter().rev() {
        if let Ok(public) = signer.public.as_slice().try_into() {
            views.push(SignerView { public, since: signer.since, until });
        }
        until = Some(signer.since);
    }
    views
}

impl Vault {
    /// Adds the present signing key to the list if it is not its last.
    pub(crate) async fn note_signer(&self) -> Result<(), VaultError> {
        let now = self.clock.now();
        let (own, row) = stored(&*self.store, &self.keyring).await?;
        let (list, new) = read(&own, row.as_ref(), &self.keyring, now);
        if new {
            let (tenant, kind, key) = (TenantNo::VAULT, ObjectKind::Setting, SIGNERS.to_vec());
            let former = row.map_or(Revision(0), |row| row.revision);
            let body = own.seal_object(kind, SIGNERS, &to_json(&list));
            let mut change = ChangeSet::default();
            change.require(Precondition::ObjectAt { tenant, kind, key: key.clone(), revision: former });
            change.change(Mutation::PutObject(ObjectRow { tenant, kind, key, revision: Revision(former.0 + 1), body }));
            self.store.commit(change).await?;
        }
        self.signers.store(std::sync::Arc::new(views(&list)));
        Ok(())
    }

    /// Public keys of receipts and checkpoints, the present one first.
    pub fn signers(&self) -> Vec<SignerView> {
        self.signers.load().to_vec()
    }

    /// The same, as verifiers take them.
    pub fn receipt_keys(&self) -> Vec<[u8; 32]> {
        self.signers.load().iter().map(|signer| signer.public).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_ends_where_the_next_begins() {
        let signer = |byte: u8, since| Signer { public: vec![byte; 32], since: Timestamp(since) };
        let found = views(&[signer(1, 10), signer(2, 20)]);
        let expected = [(2, 20, None), (1, 10, Some(Timestamp(20)))];
        let found: Vec<_> = found.iter().map(|view| (view.public[0], view.since.0, view.until)).collect();
        assert_eq!(found, expected);
    }
}
