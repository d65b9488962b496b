//! Keys as things to look after: kinds, versions, ages, what is left under old ones. No key is ever shown.

use crate::access::Verb;
use crate::auth;
use crate::clock::Timestamp;
use crate::ids::*;
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::error::VaultError;

/// Kind of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyKind {
    /// Root of a tenant's tree, in the keeper.
    TenantRoot,
    Index,
    Digest,
    /// Data keys of subjects, as a whole.
    Data,
    /// Expiry keys, as a whole.
    Expiry,
    /// Pepper of the passwords of a tenant's users.
    PasswordPepper,
    /// Pepper of access keys; the vault's own.
    Pepper,
    /// Receipts, checkpoints, ledger; the vault's own.
    Signing,
}

/// A key, or all keys of a kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyInfo {
    pub kind: KeyKind,
    /// 0 for kinds listed as a whole.
    pub version: u64,
    /// Only needed for old things, until a rotation is finished.
    pub retiring: bool,
    pub created: Option<Timestamp>,
    /// When it should be rotated at the latest.
    pub rotate_by: Option<Timestamp>,
    pub count: u64,
    /// Things still under a retiring key.
    pub left: u64,
}

impl KeyInfo {
    fn new(kind: KeyKind, version: u64) -> Self {
        KeyInfo { kind, version, retiring: false, created: None, rotate_by: None, count: 1, left: 0 }
    }
}

impl Vault {
    /// Keys of the call's tenant, by kind, the newest version first. May scan.
    pub async fn list_keys(&self, call: &Call) -> Result<Vec<KeyInfo>, VaultError> {
        if call.principal.kind != auth::Kind::Operator {
            call.permit(Verb::Operate)?;
        }
        let tenant = &call.tenant;
        let settings = &tenant.settings;
        let root = self.keyring.generation(tenant.no).map_or(0, |generation| generation.0);
        let mut keys = vec![KeyInfo::new(KeyKind::TenantRoot, root)];
        if tenant.no == TenantNo::VAULT {
            keys.push(KeyInfo::new(KeyKind::Pepper, 1));
            let signing = self.signers().len() as u64;
            keys.push(KeyInfo { count: signing, ..KeyInfo::new(KeyKind::Signing, signing) });
            return Ok(keys);
        }
        let owed = settings.index_owed_since.map(|since| since.plus_days(self.options.search_horizon_days));
        keys.push(KeyInfo {
            created: Some(settings.index_since),
            rotate_by: owed,
            ..KeyInfo::new(KeyKind::Index, settings.index.0.into())
        });
        if let Some(version) = settings.index_retiring {
            let left = self.store.count_terms(tenant.no, version).await?;
            keys.push(KeyInfo { retiring: true, left, ..KeyInfo::new(KeyKind::Index, version.0.into()) });
        }
        keys.push(KeyInfo { created: Some(settings.created), ..KeyInfo::new(KeyKind::Digest, 1) });
        keys.push(KeyInfo::new(KeyKind::PasswordPepper, settings.pepper.0.into()));
        if let Some((version, left)) = self.pepper_left(call).await? {
            keys.push(KeyInfo { retiring: true, left, ..KeyInfo::new(KeyKind::PasswordPepper, version.0.into()) });
        }
        let counts = self.store.counts(tenant.no).await?;
        keys.push(KeyInfo { count: counts.classes, ..KeyInfo::new(KeyKind::Data, 0) });
        let buckets = tenant.expiries.read().len() as u64;
        keys.push(KeyInfo { count: buckets, ..KeyInfo::new(KeyKind::Expiry, 0) });
        Ok(keys)
    }

    /// Where the root key comes from: `passphrase`, `file`, `environment`, `credential`.
    pub fn root_provider(&self) -> &'static str {
        self.options.root_provider
    }
}
