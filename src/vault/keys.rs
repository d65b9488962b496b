//! Keys as things to look after: kinds, versions, ages, what is left under old ones. No key is ever shown.

use data_encoding::HEXLOWER;

use crate::access::Verb;
use crate::auth;
use crate::clock::Timestamp;
use crate::ids::*;
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::error::VaultError;
use crate::vault::operation::OperationKind;
use crate::vault::rotation::{Kind, OwnSecret};

/// Kind of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyKind {
    /// The root KEK; the vault's own.
    Root,
    /// Root of a tenant's tree, in the keeper.
    TenantRoot,
    /// The nodes of a tenant's tree, as a whole.
    Tree,
    Index,
    Digest,
    /// Data keys of subjects, as a whole.
    Data,
    /// Expiry keys, as a whole.
    Expiry,
    /// Pepper of the passwords of a tenant's users.
    PasswordPepper,
    /// Pepper of access keys, and of API keys and codes of tenants' users; the vault's own.
    AccessKeyPepper,
    /// Key of page tokens; the vault's own.
    PageToken,
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
    /// Things still under a retiring key, or still to be moved by the rotation that runs.
    pub left: u64,
    /// Most values that one key of the kind has sealed; 0: not counted.
    pub seals: u64,
    /// Its cryptoperiod in days; 0: none.
    pub period_days: u32,
    /// Public name: the id of a root key, a signing key's public key; hexadecimal.
    pub id: Option<String>,
}

impl KeyKind {
    /// As the command line says it.
    pub fn name(self) -> &'static str {
        match self {
            KeyKind::Root => "root",
            KeyKind::TenantRoot => "tenant-root",
            KeyKind::Tree => "tree",
            KeyKind::Index => "index",
            KeyKind::Digest => "digest",
            KeyKind::Data => "data",
            KeyKind::Expiry => "expiry",
            KeyKind::PasswordPepper => "password-pepper",
            KeyKind::AccessKeyPepper => "access-key-pepper",
            KeyKind::PageToken => "page-token",
            KeyKind::Signing => "signing",
        }
    }

    /// What a rotation of it is called; `None` for kinds that have none.
    fn rotated(self) -> Option<Kind> {
        match self {
            KeyKind::Root => Some(Kind::Root),
            KeyKind::TenantRoot => Some(Kind::TenantRoot),
            KeyKind::Tree => Some(Kind::Tree),
            KeyKind::Index => Some(Kind::Index),
            KeyKind::Data => Some(Kind::Data),
            KeyKind::PasswordPepper => Some(Kind::PasswordPepper),
            KeyKind::AccessKeyPepper => Some(Kind::AccessKeyPepper),
            KeyKind::PageToken => Some(Kind::PageToken),
            KeyKind::Signing => Some(Kind::Signing),
            KeyKind::Digest | KeyKind::Expiry => None,
        }
    }
}

impl KeyInfo {
    fn new(kind: KeyKind, version: u64) -> Self {
        let (created, rotate_by, id) = (None, None, None);
        KeyInfo { kind, version, retiring: false, created, rotate_by, count: 1, left: 0, seals: 0, period_days: 0, id }
    }
}

impl Vault {
    /// Keys of the call's tenant, by kind, the newest version first. May scan.
    pub async fn list_keys(&self, call: &Call) -> Result<Vec<KeyInfo>, VaultError> {
        if call.principal.kind != auth::Kind::Operator {
            call.permit(Verb::Operate)?;
        }
        self.keys_of(call).await
    }

    /// The same for callers whose permission was looked at before.
    pub(crate) async fn keys_of(&self, call: &Call) -> Result<Vec<KeyInfo>, VaultError> {
        let tenant = &call.tenant;
        let settings = &tenant.settings;
        let generation = self.keyring.generation(tenant.no).map_or(0, |generation| generation.0);
        let mut keys = Vec::new();
        if tenant.no == TenantNo::VAULT {
            let age = self.key_age(call, Kind::Root).await?;
            let id = Some(HEXLOWER.encode(&self.keyring.kek_id()));
            let count = self.live_tenants().len() as u64;
            let left = match self.running_rotation(tenant.no, OperationKind::RotateKek).await? {
                Some(_) => self.keyring.kek_left().await?.count(),
                None => 0,
            };
            let root = KeyInfo { created: Some(age.since), ..KeyInfo::new(KeyKind::Root, age.version.number) };
            keys.push(KeyInfo { id, count, left, ..root });
        }
        let since = self.root_since(tenant.no).await?;
        keys.push(KeyInfo { created: since, ..KeyInfo::new(KeyKind::TenantRoot, generation) });
        let tree = self.key_age(call, Kind::Tree).await?;
        let leaves = self.keyring.leaves(tenant.no).await?;
        let left = self.rotation_left(tenant.no, OperationKind::RekeyTree).await?;
        let whole = KeyInfo::new(KeyKind::Tree, tree.version.number);
        keys.push(KeyInfo { created: Some(tree.since), count: leaves.into(), left, ..whole });
        if tenant.no == TenantNo::VAULT {
            for (secret, kind, of) in [
                (OwnSecret::AccessKeyPepper, KeyKind::AccessKeyPepper, Kind::AccessKeyPepper),
                (OwnSecret::PageToken, KeyKind::PageToken, Kind::PageToken),
            ] {
                let present = secret.versions(&mut settings.clone()).present.0.into();
                let since = self.own_secret_since(call, secret, of).await?;
                keys.push(KeyInfo { created: Some(since), ..KeyInfo::new(kind, present) });
                if let Some((version, left)) = self.own_secret_left(call, secret).await? {
                    keys.push(KeyInfo { retiring: true, left, ..KeyInfo::new(kind, version.0.into()) });
                }
            }
            let signers = self.signers();
            let count = signers.len() as u64;
            let present = signers.first();
            keys.push(KeyInfo {
                created: present.map(|signer| signer.since),
                id: present.map(|signer| HEXLOWER.encode(&signer.public)),
                ..KeyInfo::new(KeyKind::Signing, count)
            });
            return Ok(self.with_periods(keys));
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
        let pepper = self.key_age(call, Kind::PasswordPepper).await?;
        let version = settings.pepper.0.into();
        keys.push(KeyInfo { created: Some(pepper.since), ..KeyInfo::new(KeyKind::PasswordPepper, version) });
        if let Some((version, left)) = self.pepper_left(call).await? {
            keys.push(KeyInfo { retiring: true, left, ..KeyInfo::new(KeyKind::PasswordPepper, version.0.into()) });
        }
        let counts = self.store.counts(tenant.no).await?;
        let data = self.key_age(call, Kind::Data).await?;
        let left = self.rotation_left(tenant.no, OperationKind::RotateData).await?;
        keys.push(KeyInfo {
            created: Some(data.since),
            count: counts.classes,
            seals: counts.most_seals,
            left,
            ..KeyInfo::new(KeyKind::Data, data.version.number)
        });
        let buckets = tenant.expiries.read().len() as u64;
        keys.push(KeyInfo { count: buckets, ..KeyInfo::new(KeyKind::Expiry, 0) });
        Ok(self.with_periods(keys))
    }

    /// What the running rotation of a kind still has to move; 0 where none runs.
    async fn rotation_left(&self, tenant: TenantNo, kind: OperationKind) -> Result<u64, VaultError> {
        let running = self.running_rotation(tenant, kind).await?;
        Ok(running.map_or(0, |(operation, _)| operation.total.saturating_sub(operation.done)))
    }

    /// Adds periods, and the dates that follow from them where no earlier one is known.
    fn with_periods(&self, mut keys: Vec<KeyInfo>) -> Vec<KeyInfo> {
        let periods = &self.options.rotation;
        for key in keys.iter_mut().filter(|key| !key.retiring) {
            let Some(kind) = key.kind.rotated() else { continue };
            key.period_days = periods.days(kind);
            let due = key.created.and_then(|since| periods.due(kind, since));
            key.rotate_by = key.rotate_by.into_iter().chain(due).min();
        }
        keys
    }
}
