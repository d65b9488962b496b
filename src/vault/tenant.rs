//! A tenant in memory: its settings, its policy in force and the keys that find its subjects. Replaced whole when
//! something about it changes, so that a call sees one version from start to end.

use std::collections::HashMap;

use arc_swap::ArcSwapOption;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use zeroize::Zeroizing;

use crate::clock::Timestamp;
use crate::crypto::aad::{Aad, Kind};
use crate::crypto::aead::Cipher;
use crate::crypto::blind_index;
use crate::crypto::kdf::Label;
use crate::crypto::keys::{DigestKey, IndexKey, TenantSecret};
use crate::ids::*;
use crate::keyring::{KeyRef, Keyring, SecretKind};
use crate::policy::compiled::Policy;
use crate::storage::{ExpiryRow, TenantRow};
use crate::vault::error::VaultError;
use crate::vault::own_secrets::{UserPeppers, Versions};

/// Whether a tenant's clock can be moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TenantKind {
    Live,
    /// For trying out: its clock can be advanced, its access keys say so.
    Test,
}

/// What is stored of a tenant beside its name and generation; no personal data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantSettings {
    pub kind: TenantKind,
    pub created: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<Name>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    /// How far a TEST tenant's clock was advanced, in milliseconds.
    #[serde(default)]
    pub clock_offset_ms: i64,
    /// The policy in force; `None` until the first is applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyVersion>,
    /// Version of the index secret that new tags are made with.
    pub index: SecretVersion,
    /// The version being retired: still searched, until its last tag is gone and its key is dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_retiring: Option<SecretVersion>,
    /// When the present index secret came into use.
    pub index_since: Timestamp,
    /// When a searchable subject was first erased under the present index secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_owed_since: Option<Timestamp>,
    /// Version of the pepper that new password hashes are made with.
    #[serde(default = "first_version")]
    pub pepper: SecretVersion,
    /// The version being retired: hashes under it are still checked, until none is left or its deadline has come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pepper_retiring: Option<SecretVersion>,
    /// Versions of the pepper of access keys; the vault's own.
    #[serde(default, skip_serializing_if = "Versions::is_first")]
    pub access_pepper: Versions,
    /// Versions of the key of page tokens; the vault's own.
    #[serde(default, skip_serializing_if = "Versions::is_first")]
    pub page_token: Versions,
    /// Subjects allowed; 0 is no limit.
    #[serde(default)]
    pub quota_subjects: u64,
}

impl TenantSettings {
    /// Settings of a tenant that was just made.
    pub fn new(kind: TenantKind, created: Timestamp) -> Self {
        TenantSettings {
            kind,
            created,
            region: None,
            display_name: None,
            clock_offset_ms: 0,
            policy: None,
            index: SecretVersion(1),
            index_retiring: None,
            index_since: created,
            index_owed_since: None,
            pepper: first_version(),
            pepper_retiring: None,
            access_pepper: Versions::default(),
            page_token: Versions::default(),
            quota_subjects: 0,
        }
    }
}

fn first_version() -> SecretVersion {
    SecretVersion(1)
}

/// Keys that find things without storing them in clear.
struct Finders {
    digest: DigestKey,
    subject_id: Cipher,
    object: Cipher,
    fingerprint: Zeroizing<[u8; 32]>,
    commitment: Zeroizing<[u8; 32]>,
    sources: Zeroizing<[u8; 32]>,
}

impl Finders {
    fn derive(secret: &TenantSecret) -> Self {
        Finders {
            digest: DigestKey::derive(secret),
            subject_id: Cipher::new(&secret.derived(Label::SubjectIdSeal, &[])),
            object: Cipher::new(&secret.derived(Label::ObjectSeal, &[])),
            fingerprint: secret.derived(Label::RequestFingerprint, &[]),
            commitment: secret.derived(Label::Commitment, &[]),
            sources: secret.derived(Label::GuessSource, &[]),
        }
    }
}

/// A tenant as calls see it.
pub struct Tenant {
    pub no: TenantNo,
    pub name: Name,
    pub row: TenantRow,
    pub settings: TenantSettings,
    pub policy: Option<Arc<Policy>>,
    vault: VaultId,
    finders: Arc<Finders>,
    /// Per version in use, the index key of each searchable field.
    index: Vec<(SecretVersion, HashMap<FieldNo, IndexKey>)>,
    /// Where the expiry key of each live bucket lies; shared by all versions of this tenant in memory.
    pub expiries: Arc<RwLock<HashMap<(ClassNo, Bucket), KeyRef>>>,
    /// Of the texts of its users' API keys; derived from a secret of the vault's own when the first is made or checked.
    pub(crate) api_key_peppers: ArcSwapOption<UserPeppers>,
}

impl Tenant {
    /// Puts a tenant together from its row; its tree must be open.
    pub fn load(
        keyring: &Keyring,
        row: TenantRow,
        policy: Option<Arc<Policy>>,
        expiries: &[ExpiryRow],
    ) -> Result<Tenant, VaultError> {
        let settings: TenantSettings = serde_json::from_slice(&row.body).map_err(|_| VaultError::DataLoss)?;
        let finders = keyring
            .with_secret(row.no, SecretKind::Digest, SecretVersion(1), Finders::derive)
            .ok_or(VaultError::DataLoss)?;
        let mut index = Vec::new();
        if let Some(policy) = &policy {
            for version in [Some(settings.index), settings.index_retiring].into_iter().flatten() {
                let keys = keyring
                    .with_secret(row.no, SecretKind::Index, version, |secret| {
                        policy
                            .fields()
                            .filter(|rule| rule.searchable)
                            .map(|rule| (rule.no, IndexKey::derive(secret, rule.no)))
                            .collect()
                    })
                    .ok_or(VaultError::DataLoss)?;
                index.push((version, keys));
            }
        }
        let expiries = expiries
            .iter()
            .filter_map(|row| Some(((row.class, row.bucket), KeyRef { slot: row.slot?, dek: row.dek })))
            .collect();
        Ok(Tenant {
            no: row.no,
            name: row.name.clone(),
            settings,
            policy,
            vault: keyring.vault(),
            finders: Arc::new(finders),
            index,
            expiries: Arc::new(RwLock::new(expiries)),
            api_key_peppers: ArcSwapOption::empty(),
            row,
        })
    }

    /// The tenant's own time: the wall clock, moved on for a TEST tenant.
    pub fn time(&self, now: Timestamp) -> Timestamp {
        now.plus_ms(self.settings.clock_offset_ms)
    }

    /// The policy in force.
    ///
    /// # Errors
    /// `WrongState` until a policy was applied.
    pub fn policy(&self) -> Result<&Arc<Policy>, VaultError> {
        self.policy.as_ref().ok_or(VaultError::WrongState("the tenant has no policy yet"))
    }

    /// Keyed digest of a subject's id.
    pub fn digest(&self, subject: &SubjectId) -> SubjectDigest {
        self.finders.digest.digest(subject.as_str())
    }

    fn id_aad(&self, uid: SubjectUid) -> Aad {
        Aad::new(Kind::SubjectId, self.vault, self.no).part(&uid.0.to_be_bytes())
    }

    /// Seals a subject's id, so that lists can show it to its tenant.
    pub fn seal_id(&self, uid: SubjectUid, subject: &SubjectId) -> Vec<u8> {
        self.finders.subject_id.seal(&self.id_aad(uid), subject.as_str().as_bytes())
    }

    /// Opens a sealed id.
    pub fn open_id(&self, uid: SubjectUid, sealed: &[u8]) -> Result<SubjectId, VaultError> {
        let plain = self.finders.subject_id.open(&self.id_aad(uid), sealed).map_err(|_| VaultError::DataLoss)?;
        let text = std::str::from_utf8(&plain).map_err(|_| VaultError::DataLoss)?;
        SubjectId::parse("subject", text).map_err(|_| VaultError::DataLoss)
    }

    /// Whether a sealed id is this one. A row that was found by its digest may have been given another's.
    pub fn is_id(&self, uid: SubjectUid, sealed: &[u8], subject: &SubjectId) -> bool {
        let opened = self.finders.subject_id.open(&self.id_aad(uid), sealed);
        opened.is_ok_and(|plain| plain.as_slice() == subject.as_str().as_bytes())
    }

    fn object_aad(&self, kind: u8, key: &[u8]) -> Aad {
        Aad::new(Kind::Object, self.vault, self.no).part(&[kind]).part(key)
    }

    /// Seals what a small record keeps of a caller's words (a reference, a group's name), bound to its key.
    pub fn seal_object(&self, kind: crate::storage::ObjectKind, key: &[u8], plain: &[u8]) -> Vec<u8> {
        self.finders.object.seal(&self.object_aad(kind as u8, key), plain)
    }

    /// Opens what [`Self::seal_object`] sealed.
    pub fn open_object(
        &self,
        kind: crate::storage::ObjectKind,
        key: &[u8],
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        self.finders.object.open(&self.object_aad(kind as u8, key), sealed).map_err(|_| VaultError::DataLoss)
    }

    /// Keyed digest of a request's body, to tell a repeated request from another with the same id.
    pub fn fingerprint(&self, method: &str, body: &[u8]) -> [u8; 16] {
        blind_index::tag(&self.finders.fingerprint, &[method.as_bytes(), body])
    }

    /// A MAC for texts the vault hands out and takes back (cursors, references), 16 bytes.
    pub fn token_mac(&self, parts: &[&[u8]]) -> [u8; 16] {
        let mut all: Vec<&[u8]> = vec![b"token"];
        all.extend_from_slice(parts);
        blind_index::tag(&self.finders.commitment, &all)
    }

    /// The key of a day (days since 1970-01-01 UTC) for digests of where users log in from.
    pub(crate) fn source_key(&self, day: i64) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(blind_index::mac(&self.finders.sources, &[&day.to_be_bytes()]))
    }

    /// By which a recipient (0: the tenant's own systems) is told of a subject's erasure without any id being kept.
    pub fn recipient_ref(&self, recipient: RecipientNo, uid: SubjectUid) -> [u8; 16] {
        self.token_mac(&[b"recipient", &recipient.0.to_be_bytes(), &uid.0.to_be_bytes()])
    }

    /// The tag that a new term gets.
    pub fn term(&self, field: FieldNo, normalized: &[u8]) -> Option<(SecretVersion, TermTag)> {
        let (version, keys) = self.index.first()?;
        Some((*version, keys.get(&field)?.tag(normalized)))
    }

    /// The tags under which a term may stand: two while the index secret is being rotated.
    pub fn terms(&self, field: FieldNo, normalized: &[u8]) -> Vec<(SecretVersion, TermTag)> {
        self.index.iter().filter_map(|(v, keys)| Some((*v, keys.get(&field)?.tag(normalized)))).collect()
    }
}
