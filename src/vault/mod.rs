//! Floor 5: what the product does. No tonic, no SQL, no AES.
//!
//! One file per verb family. A method takes a [`Call`] (who, which tenant, when) and, where values are touched, a
//! [`Context`] (why); it asks the policy, hands a change set to the store or opens values under keys of the keyring, and
//! makes the audit entry durable before it answers.

pub mod access_cache;
pub mod access_keys;
pub mod access_report;
pub mod admission;
pub mod aggregate;
pub mod approval;
pub mod archives;
pub mod audit_extend;
pub mod audit_prune;
pub mod audit_read;
mod audit_tree;
pub mod audit_verify;
pub mod authenticate;
pub mod backup;
pub mod bulk;
pub mod call;
pub mod carry;
pub mod checkpoints;
pub mod clock_guard;
pub mod compromise;
pub mod credentials;
pub mod decoy;
pub mod delete;
pub mod erase;
pub mod erasing;
pub mod erasures;
pub mod error;
pub mod etag;
pub mod evidence;
pub mod expiry;
pub mod export;
pub mod feed;
pub mod find;
pub mod group;
pub mod hold;
pub mod index_rotation;
pub mod item;
pub mod item_read;
mod item_rows;
pub mod keeper_care;
pub mod keys;
mod known_facts;
mod ledger;
pub mod operation;
pub mod own_secrets;
pub mod plan;
pub mod policies;
pub mod publish;
pub mod read;
pub mod record;
pub mod report;
pub mod request;
pub mod reseal;
pub mod restoring;
pub mod retention;
pub mod retire;
mod retry;
pub mod rights;
pub mod roles;
pub mod rollback;
pub mod root_watch;
pub mod rotation;
pub mod schedule;
mod secret_drop;
pub mod signers;
pub mod subject;
pub mod subject_limit;
pub mod tenant;
pub mod tenants;
pub mod test_access;
pub mod upkeep;
pub mod value;
pub mod write;

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::access::{FieldSet, Verb};
use crate::audit::AuditRecord;
use crate::clock::Clock;
use crate::crypto::aad::{Aad, Kind};
use crate::crypto::keys::ClassKeys;
use crate::ids::*;
use crate::keyring::{ClassRef, KeyRef, Keyring, KeyringError};
use crate::policy::compiled::{Ask, Decision};
use crate::storage::readlog::ReadLog;
use crate::storage::*;
pub use call::{Call, Context};
pub use error::{DenialKind, VaultError, Violation};
use tenant::Tenant;

/// Limits and tolerances of the vault floor.
#[derive(Debug, Clone)]
pub struct VaultOptions {
    /// How far in the future an origin time may lie, in milliseconds: clocks of callers differ a little.
    pub future_tolerance_ms: i64,
    /// Within so many days of an erasure of something searchable the index secret is rotated and the old one destroyed.
    pub search_horizon_days: i64,
    /// Cost and admission of Argon2id for access keys.
    pub argon2: admission::Argon2Options,
    /// Cost and admission of Argon2id for the passwords of tenants' users; a pool of its own.
    pub passwords: admission::Argon2Options,
    /// What is remembered about access keys.
    pub access_cache: access_cache::AccessCacheOptions,
    /// How old keys may become, and which the vault rotates by itself.
    pub rotation: rotation::Periods,
    /// Where root keys come from while the vault runs; `None`: there is no other one.
    pub roots: Option<Arc<dyn crate::keyring::root::RootSource>>,
    /// Entries of the read audit are kept at least so many days.
    pub audit_days: i64,
    /// Where this node's data lies, as its configuration says; empty: not stated.
    pub region: String,
    /// How long a call that writes may take, in milliseconds.
    pub longest_call_ms: i64,
    /// What evidence tells of the configuration; empty: nothing.
    pub configuration: evidence::Configuration,
}

impl Default for VaultOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl VaultOptions {
    /// Five minutes of tolerance, thirty days until index secrets go, and the defaults of the parts.
    pub fn new() -> Self {
        VaultOptions {
            future_tolerance_ms: 300_000,
            search_horizon_days: 30,
            argon2: admission::Argon2Options::default(),
            passwords: admission::Argon2Options::for_passwords(),
            access_cache: access_cache::AccessCacheOptions::default(),
            rotation: rotation::Periods::default(),
            roots: None,
            audit_days: 365,
            region: String::new(),
            longest_call_ms: 30_000,
            configuration: evidence::Configuration::default(),
        }
    }

    /// Calls that began before the switch to a new version of a secret have ended after so many milliseconds, also where
    /// what they left in a queue is written after them: only then is the old version dropped.
    pub(crate) fn settled_ms(&self) -> i64 {
        self.longest_call_ms.saturating_mul(2).saturating_add(30_000)
    }
}

/// All tenants as calls see them; replaced whole.
#[derive(Default)]
struct Tenants {
    by_no: HashMap<TenantNo, Arc<Tenant>>,
    by_name: HashMap<Name, TenantNo>,
}

/// The product: everything the network and the jobs can ask for.
pub struct Vault {
    store: Arc<dyn Store>,
    keyring: Arc<Keyring>,
    read_log: Arc<ReadLog>,
    clock: Arc<dyn Clock>,
    options: VaultOptions,
    tenants: ArcSwap<Tenants>,
    access: authenticate::Access,
    credentials: credentials::Credentials,
    /// One change of a tenant's settings, policy, roles or buckets at a time.
    settings: tokio::sync::Mutex<()>,
    /// Since when the root key's provider does not give it, and whether the time to serve without it is over.
    root_away: parking_lot::Mutex<(Option<crate::clock::Timestamp>, bool)>,
    /// One checkpoint at a time.
    checkpointing: tokio::sync::Mutex<()>,
    /// How many bundles of evidence are made at the same time.
    evidence: std::sync::Arc<tokio::sync::Semaphore>,
    /// One step of a rotation at a time.
    rotating: tokio::sync::Mutex<()>,
    clock_guard: clock_guard::ClockGuard,
    upkeep: upkeep::Upkeep,
    signers: ArcSwap<Vec<signers::SignerView>>,
    known: known_facts::KnownFacts,
    decoys: decoy::Decoys,
    /// Disclosures that are on record already.
    disclosed: parking_lot::Mutex<rights::disclosures::Remembered>,
    /// One table of counts of a tenant's people at a time.
    counting: tokio::sync::Mutex<()>,
}

impl Vault {
    /// What it was told to be.
    pub fn options(&self) -> &VaultOptions {
        &self.options
    }

    /// Runs `f` with the keys of a class (of one of its buckets, where `expiry` is given), loading them when they are
    /// not in memory. `f` may run again; no key is held while this waits.
    ///
    /// # Errors
    /// `DataLoss` when the tree does not hold the key that the row names.
    pub(crate) async fn with_keys<R>(
        &self,
        class: ClassRef,
        expiry: Option<KeyRef>,
        mut f: impl FnMut(&ClassKeys) -> R,
    ) -> Result<R, VaultError> {
        for _ in 0..4 {
            if let Some(result) = self.keyring.with_class(class, expiry, &mut f) {
                return Ok(result);
            }
            let keys = [Some(class.key), expiry];
            let keys: Vec<KeyRef> = keys.into_iter().flatten().collect();
            match self.keyring.load(class.tenant, &keys).await {
                Ok(()) => {}
                // Erased or rotated since the caller looked: that is no damage, and to be decided again.
                Err(KeyringError::OtherKey { .. }) if !self.still_names(class, expiry).await? => {
                    return Err(VaultError::Conflict);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(VaultError::Busy { retry_ms: 20 })
    }

    /// Whether the rows still lead to these keys.
    async fn still_names(&self, class: ClassRef, expiry: Option<KeyRef>) -> Result<bool, VaultError> {
        let Some(snapshot) = self.store.subject_by_uid(class.uid).await? else { return Ok(false) };
        let row = snapshot.class(class.class).filter(|row| row.tenant == class.tenant);
        if row.is_none_or(|row| row.slot != Some(class.key.slot) || row.dek != class.key.dek) {
            return Ok(false);
        }
        let Some(key) = expiry else { return Ok(true) };
        let buckets = self.store.expiries(class.tenant).await?;
        Ok(buckets.iter().any(|row| row.class == class.class && row.slot == Some(key.slot) && row.dek == key.dek))
    }

    /// Where the key of a bucket lies; `None` once it was dropped.
    pub(crate) fn bucket_key(&self, call: &Call, class: ClassNo, bucket: Bucket) -> Option<KeyRef> {
        call.tenant.expiries.read().get(&(class, bucket)).copied()
    }

    /// The key of a bucket, made if it is the first value of that bucket; `change` then requires that it still lives.
    pub(crate) async fn expiry_key(
        &self,
        call: &Call,
        class: ClassNo,
        bucket: Bucket,
        change: &mut ChangeSet,
    ) -> Result<KeyRef, VaultError> {
        let tenant = call.tenant.no;
        let key = match self.bucket_key(call, class, bucket) {
            Some(key) => key,
            None => self.make_bucket(call, class, bucket).await?,
        };
        let live = Precondition::ExpiryLive { tenant, class, bucket, dek: key.dek };
        // The values of one put usually end together.
        if change.preconditions.last() != Some(&live) {
            change.require(live);
        }
        Ok(key)
    }

    async fn make_bucket(&self, call: &Call, class: ClassNo, bucket: Bucket) -> Result<KeyRef, VaultError> {
        let _one_at_a_time = self.settings.lock().await;
        if let Some(key) = self.bucket_key(call, class, bucket) {
            return Ok(key);
        }
        let tenant = call.tenant.no;
        let key = self.keyring.allocate(tenant, 1).await?[0];
        let mut change = ChangeSet::default();
        change.change(Mutation::TakeSlot { tenant, slot: key.slot });
        change.change(Mutation::PutExpiry(ExpiryRow { tenant, class, bucket, slot: Some(key.slot), dek: key.dek }));
        if let Err(error) = self.store.commit(change).await {
            self.keyring.release(tenant, &[key.slot]);
            return Err(error.into());
        }
        call.tenant.expiries.write().insert((class, bucket), key);
        Ok(key)
    }

    /// Whether the caller may touch all these fields of a subject in that group.
    pub(crate) fn may_touch(
        &self,
        call: &Call,
        context: &Context,
        fields: &FieldSet,
        verb: Verb,
        group: Option<GroupNo>,
        facts: &rights::Facts,
    ) -> Result<(), VaultError> {
        let policy = call.tenant.policy()?;
        context.stays_here()?;
        let ask = Ask { facts: facts.view(), ..context.ask(call, verb, context.purpose()?, group, None, false) };
        for field in fields.iter().map(FieldNo) {
            if let decision @ Decision::Deny(_) = policy.decide(&ask, field, None) {
                return Err(VaultError::refused(policy, &ask, field, &decision));
            }
        }
        Ok(())
    }

    /// Only a live subject is written to.
    pub(crate) fn must_be_open(&self, subject: &SubjectRow) -> Result<(), VaultError> {
        match subject.state {
            SubjectState::Live => Ok(()),
            SubjectState::Closed => Err(VaultError::SubjectClosed),
            SubjectState::Frozen => Err(VaultError::WrongState("the subject's erasure is under way")),
            SubjectState::Held => Err(VaultError::SubjectErased),
        }
    }

    /// Seals what the caller wrote about the call (reason, reference) into the entry, under the class's key: it dies
    /// with the data that it is about.
    pub(crate) async fn attach_detail(
        &self,
        call: &Call,
        context: &Context,
        entry: &mut AuditRecord,
        classes: &[ClassRow],
    ) -> Result<(), VaultError> {
        let plain = context.detail();
        let class = classes.iter().find(|row| row.slot.is_some());
        let (false, Some(row)) = (plain.is_empty(), class) else { return Ok(()) };
        let key = KeyRef { slot: row.slot.ok_or(VaultError::DataLoss)?, dek: row.dek };
        let aad = Aad::new(Kind::AuditDetail, self.keyring.vault(), call.tenant.no)
            .part(&row.uid.0.to_be_bytes())
            .part(&[row.class.0])
            .part(&row.version.0.to_be_bytes())
            .part(&row.dek.0);
        for _ in 0..4 {
            let sealed = self.keyring.with_dek(call.tenant.no, key, |dek| dek.audit_detail().seal(&aad, &plain));
            match sealed {
                Some(sealed) => {
                    entry.class = Some(row.class);
                    entry.detail = Some(sealed.into_boxed_slice());
                    return Ok(());
                }
                None => self.keyring.load(call.tenant.no, &[key]).await?,
            }
        }
        Err(VaultError::Busy { retry_ms: 20 })
    }
}

/// JSON of a small record's body.
pub(crate) fn to_json<T: serde::Serialize>(body: &T) -> Vec<u8> {
    serde_json::to_vec(body).expect("bodies are plain structs with string keys")
}

/// The next revision of an object, as part of a change that wants its tenant to be live.
pub(crate) fn put_of_live_tenant(
    tenant: TenantNo,
    kind: ObjectKind,
    key: Vec<u8>,
    former: Revision,
    body: Vec<u8>,
    change: &mut ChangeSet,
) -> ObjectRow {
    change.require(Precondition::TenantIs { tenant, state: TenantState::Live });
    change.replace_object(tenant, kind, key.clone(), former, body.clone());
    ObjectRow { tenant, kind, key, revision: Revision(former.0 + 1), body }
}

/// Bytes as hexadecimal text in the JSON of small records.
pub(crate) mod hex {
    use data_encoding::HEXLOWER;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&HEXLOWER.encode(bytes))
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        HEXLOWER.decode(String::deserialize(d)?.as_bytes()).map_err(serde::de::Error::custom)
    }
}

impl Vault {
    /// The next number of a numbered kind of small records; `change` counts it, so that no number is given twice.
    pub(crate) async fn next_number(
        &self,
        tenant: TenantNo,
        kind: ObjectKind,
        change: &mut ChangeSet,
    ) -> Result<u32, VaultError> {
        let key = vec![kind as u8];
        let row = self.store.object(tenant, ObjectKind::Setting, key.clone()).await?;
        let (last, revision) = match &row {
            Some(row) => {
                let bytes: [u8; 4] = row.body.as_slice().try_into().map_err(|_| VaultError::DataLoss)?;
                (u32::from_be_bytes(bytes), row.revision)
            }
            None => (0, Revision(0)),
        };
        let next = last + 1;
        change.replace_object(tenant, ObjectKind::Setting, key, revision, next.to_be_bytes().to_vec());
        Ok(next)
    }
}
