//! Secrets of the vault itself that texts are made with and checked by: the pepper of access keys, of API keys and codes of
//! tenants' users, and the key of page tokens. Each has a present version and, while it is being rotated, the one before.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::auth::{CodePepper, KeyPepper};
use crate::crypto::blind_index;
use crate::crypto::kdf::Label;
use crate::crypto::keys::TenantSecret;
use crate::ids::*;
use crate::keyring::{Keyring, SecretKind};
use crate::vault::Vault;
use crate::vault::error::VaultError;
use crate::vault::tenant::{Tenant, TenantSettings};

/// Which versions of a secret are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Versions {
    /// New things are made with it.
    pub present: SecretVersion,
    /// Old things are still checked by it, until its rotation has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retiring: Option<SecretVersion>,
}

impl Default for Versions {
    /// The first one.
    fn default() -> Self {
        Versions { present: SecretVersion(1), retiring: None }
    }
}

impl Versions {
    /// Not rotated yet.
    pub(crate) fn is_first(&self) -> bool {
        *self == Versions::default()
    }

    /// The present one first.
    fn all(self) -> impl Iterator<Item = SecretVersion> {
        [Some(self.present), self.retiring].into_iter().flatten()
    }
}

/// The keys of page tokens, the present one first.
#[derive(Default)]
pub struct PageKeys(Vec<Zeroizing<[u8; 32]>>);

impl PageKeys {
    /// The MAC of a new token, 16 bytes; `None` while the vault's own keys are not in order.
    pub fn mac(&self, parts: &[&[u8]]) -> Option<[u8; 16]> {
        Some(blind_index::tag(self.0.first()?, parts))
    }

    /// Whether a token was made under one of the versions in use; compares in constant time.
    pub fn fits(&self, parts: &[&[u8]], mac: &[u8]) -> bool {
        self.0.iter().any(|key| blind_index::equal(&blind_index::tag(key, parts), mac))
    }
}

/// The vault's own secrets in use; empty while its keys are not in order. Replaced whole.
#[derive(Default)]
pub(crate) struct OwnSecrets {
    pub pepper: Versions,
    /// Of access keys, the present one first.
    pub peppers: Vec<KeyPepper>,
    pub pages: Arc<PageKeys>,
}

impl OwnSecrets {
    /// What the settings of the vault itself name.
    pub fn derive(keyring: &Keyring, settings: &TenantSettings) -> Self {
        let pepper = |version| {
            let derive = |secret: &TenantSecret| KeyPepper::derive(secret, version);
            keyring.with_secret(TenantNo::VAULT, SecretKind::ApiPepper, version, derive)
        };
        let peppers = settings.access_pepper.all().filter_map(pepper).collect();
        let derive = |secret: &TenantSecret| secret.derived(Label::PageToken, &[]);
        let page = |version| keyring.with_secret(TenantNo::VAULT, SecretKind::PageToken, version, derive);
        let pages = PageKeys(settings.page_token.all().filter_map(page).collect());
        OwnSecrets { pepper: settings.access_pepper, peppers, pages: Arc::new(pages) }
    }
}

/// Peppers of API keys of one tenant's users, of certain versions.
pub(crate) struct UserPeppers {
    versions: Versions,
    pub peppers: Vec<KeyPepper>,
}

impl Vault {
    /// Whether what was made under that version of the pepper may still be checked.
    pub(crate) fn has_pepper(&self, version: SecretVersion) -> bool {
        self.access.own.load().pepper.all().any(|known| known == version)
    }

    /// By which the texts of API keys of a tenant's users are made and checked, the present version first; derived once for
    /// the versions in use.
    pub(crate) fn user_peppers(&self, tenant: &Tenant) -> Result<Arc<UserPeppers>, VaultError> {
        let versions = self.access.own.load().pepper;
        if let Some(known) = tenant.api_key_peppers.load_full().filter(|known| known.versions == versions) {
            return Ok(known);
        }
        let derive = |version| {
            let derive = |secret: &_| KeyPepper::of_tenant(secret, version, tenant.no);
            self.keyring.with_secret(TenantNo::VAULT, SecretKind::ApiPepper, version, derive)
        };
        let peppers: Option<Vec<_>> = versions.all().map(derive).collect();
        let peppers = peppers.ok_or(VaultError::WrongState("the vault's own keys are not open"))?;
        let peppers = Arc::new(UserPeppers { versions, peppers });
        tenant.api_key_peppers.store(Some(peppers.clone()));
        Ok(peppers)
    }

    /// By which codes of a tenant's users are digested, the present version first.
    pub(crate) fn code_peppers(&self, tenant: TenantNo) -> Result<Vec<(SecretVersion, CodePepper)>, VaultError> {
        let derive = |version| {
            let derive = |secret: &_| (version, CodePepper::of_tenant(secret, tenant));
            self.keyring.with_secret(TenantNo::VAULT, SecretKind::ApiPepper, version, derive)
        };
        let peppers: Option<Vec<_>> = self.access.own.load().pepper.all().map(derive).collect();
        peppers.ok_or(VaultError::WrongState("the vault's own keys are not open"))
    }
}
