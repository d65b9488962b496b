//! The public keys that the vault ever signed with. Receipts and checkpoints outlive the key that signed them: who
//! verifies one later must find that key too.
//!
//! The list is sealed under a key of the vault's own tenant: who can only write rows cannot add a key of his own.

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::ids::*;
use crate::keyring::archive::setting::SETTING;
use crate::keyring::{Keyring, KeyringError, RecoverySetting};
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
    /// Signature of the key before over this one, hexadecimal; none where there was none, or it was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    chain: Option<String>,
}

/// A public key as callers see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignerView {
    pub public: [u8; 32],
    pub since: Timestamp,
    /// When the next one came; `None`: it is the present one.
    pub until: Option<Timestamp>,
    /// Signature of the key before over vault and this key ([`crate::keyring::keeper::Link`]).
    pub chain: Option<[u8; 64]>,
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
        // Only of the key that the list ends with.
        let link = keyring.signing_link().filter(|link| list.last().is_some_and(|last| last.public == link.former));
        list.push(Signer { public, since: now, chain: link.map(|link| HEXLOWER.encode(&link.signature)) });
    }
    (list, new)
}

fn views(list: &[Signer]) -> Vec<SignerView> {
    let mut until = None;
    let mut views = Vec::with_capacity(list.len());
    for signer in list.iter().rev() {
        if let Ok(public) = signer.public.as_slice().try_into() {
            let chain = signer.chain.as_ref().and_then(|text| HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok());
            views.push(SignerView { public, since: signer.since, until, chain });
        }
        until = Some(signer.since);
    }
    views
}

fn put_setting(key: &[u8], former: Option<&ObjectRow>, body: Vec<u8>, change: &mut ChangeSet) {
    let (tenant, kind, key) = (TenantNo::VAULT, ObjectKind::Setting, key.to_vec());
    let revision = former.map_or(Revision(0), |row| row.revision);
    change.replace_object(tenant, kind, key, revision, body);
}

impl Vault {
    /// Adds the present signing key to the list if it is not its last.
    pub(crate) async fn note_signer(&self) -> Result<(), VaultError> {
        let mut change = ChangeSet::default();
        let views = self.put_signer(&mut change).await?;
        if !change.mutations.is_empty() {
            self.store.commit(change).await?;
        }
        self.signers.store(std::sync::Arc::new(views));
        Ok(())
    }

    /// The list with the present signing key; what is new of it goes into `change`.
    async fn put_signer(&self, change: &mut ChangeSet) -> Result<Vec<SignerView>, VaultError> {
        let (own, row) = stored(&*self.store, &self.keyring).await?;
        let (list, new) = read(&own, row.as_ref(), &self.keyring, self.clock.now());
        if new {
            let body = own.seal_object(ObjectKind::Setting, SIGNERS, &to_json(&list));
            put_setting(SIGNERS, row.as_ref(), body, change);
        }
        Ok(views(&list))
    }

    /// After a rotation of the signing key: adds it to the list, and signs the record of the recovery recipients with it,
    /// which names the keys before it from then on. The caller commits, and then calls [`Self::signed_again`].
    pub(crate) async fn sign_settings_again(
        &self,
        change: &mut ChangeSet,
    ) -> Result<(Vec<SignerView>, Option<RecoverySetting>), VaultError> {
        let views = self.put_signer(change).await?;
        let setting = self.keyring.archive().and_then(|archive| archive.setting());
        let setting = setting.map(|setting| {
            let signing = self.keyring.signing();
            setting.signed_before(&self.keyring.public_keys(), &signing.public())
        });
        if let Some(setting) = &setting {
            let row = self.store.object(TenantNo::VAULT, ObjectKind::Setting, SETTING.to_vec()).await?;
            put_setting(SETTING, row.as_ref(), setting.sign(&self.keyring.signing()), change);
        }
        Ok((views, setting))
    }

    /// Takes over what was committed.
    pub(crate) async fn signed_again(
        &self,
        (views, setting): (Vec<SignerView>, Option<RecoverySetting>),
    ) -> Result<(), VaultError> {
        self.signers.store(std::sync::Arc::new(views));
        if let (Some(archive), Some(setting)) = (self.keyring.archive(), setting) {
            archive.put_setting(setting).map_err(KeyringError::from)?;
        }
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
        let signer = |byte: u8, since| Signer { public: vec![byte; 32], since: Timestamp(since), chain: None };
        let found = views(&[signer(1, 10), signer(2, 20)]);
        let expected = [(2, 20, None), (1, 10, Some(Timestamp(20)))];
        let found: Vec<_> = found.iter().map(|view| (view.public[0], view.since.0, view.until)).collect();
        assert_eq!(found, expected);
    }
}
