//! From the text of an access key to the principal that it stands for.
//!
//! ```text
//! text -> HMAC under a key of this process -> verdict known? ---------------------> the key in memory -> principal
//!                                             else: checksum (HMAC) -> Argon2id, shared by all who wait
//! ```
//! Every access key is in memory without its text. A verdict says only that a text is the key's; whether the key is revoked
//! or expired, and what it may do, is looked at in every call: so a revocation or a changed role needs no list of whom to
//! tell. Unknown, wrong, revoked and expired keys with a right checksum take one Argon2id run and get one answer.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::access::Grant;
use crate::auth::{AccessKey, KeyId, Kind, MAX_TEXT, Principal, Rule};
use crate::clock::{Clock, Timestamp};
use crate::ids::*;
use crate::storage::{ObjectKind, ObjectRow};
use crate::telemetry;
use crate::vault::Vault;
use crate::vault::access_cache::{AccessCache, AccessCacheOptions, Verdict};
use crate::vault::admission::{AdmissionError, Argon2Options, Argon2Pool};
use crate::vault::error::VaultError;
use crate::vault::own_secrets::OwnSecrets;
use crate::vault::roles::compiled::{CompiledGrant, RoleState, RoleTable, without_values};
use crate::vault::subject_limit::SubjectLimits;

/// Why an access key opens nothing.
#[derive(Debug)]
pub enum AuthRefusal {
    /// Malformed, unknown, wrong, revoked or expired; which of these is not told.
    Refused,
    /// It is bound to a client certificate that the connection did not present.
    Certificate,
    /// Too many first uses of keys are being checked; nothing was done.
    Busy { retry_ms: u32 },
    /// The vault could not look it up.
    Failed(VaultError),
}

/// What is stored of an access key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeyBody {
    /// Its name, sealed.
    #[serde(with = "crate::vault::hex")]
    pub label: Vec<u8>,
    pub roles: Vec<RoleNo>,
    /// Argon2id PHC string over HMAC(pepper, id, secret).
    pub hash: String,
    pub pepper: SecretVersion,
    pub created: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Timestamp>,
    /// Stopped by a restore, until an operator confirms it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unconfirmed: bool,
    /// SHA-256 of the client certificate that it is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<[u8; 32]>,
    /// `None`: the command line of the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued_by: Option<ActorId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subjects_per_hour: Option<u32>,
    /// Day of the last use that was written down; days since 1970-01-01 UTC, 0: not used.
    #[serde(default)]
    pub used_day: i64,
}

impl KeyBody {
    /// Whether it opens anything at that time of the machine.
    pub fn works(&self, now: Timestamp) -> bool {
        self.why_not(now).is_none()
    }

    /// Why it opens nothing; for metrics only.
    fn why_not(&self, now: Timestamp) -> Option<&'static str> {
        match () {
            _ if self.revoked.is_some() => Some("revoked"),
            _ if self.unconfirmed => Some("unconfirmed"),
            _ if self.expires.is_some_and(|t| now >= t) => Some("expired"),
            _ => None,
        }
    }
}

/// A stored key at a revision.
#[derive(Debug)]
pub(crate) struct Kept {
    pub body: KeyBody,
    pub revision: Revision,
}

/// Which role a grant of a principal is from, for whoever asks why.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    /// Name of the role.
    pub name: Name,
    /// From 1, within the role.
    pub grant: usize,
    pub line: u32,
}

/// What a key may do, and under which policy, roles and revision that was found out.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub principal: Arc<Principal>,
    /// Of each grant of the principal.
    pub origins: Vec<Origin>,
    policy: Option<PolicyVersion>,
    roles: u64,
    revision: Revision,
}

/// An access key in memory.
pub(crate) struct KeySlot {
    pub tenant: TenantNo,
    pub id: KeyId,
    pub kept: ArcSwap<Kept>,
    compiled: ArcSwapOption<Compiled>,
    roles: Arc<RoleState>,
    pub used_day: AtomicI64,
}

impl KeySlot {
    /// The number by which the audit names the key: that of its id.
    pub fn actor(&self) -> ActorId {
        ActorId(self.id.0)
    }
}

/// Every access key of the vault, by its id and by tenant in order of creation.
#[derive(Default)]
struct Slots {
    by_id: HashMap<KeyId, Arc<KeySlot>>,
    in_order: BTreeMap<(TenantNo, KeyId), Arc<KeySlot>>,
}

/// Who may call: keys, roles, verdicts and the threads that check keys.
pub(crate) struct Access {
    slots: RwLock<Slots>,
    pub roles: RoleTable,
    pub cache: AccessCache<Arc<KeySlot>, AdmissionError>,
    pub pool: Argon2Pool,
    /// Peppers of keys and keys of page tokens.
    pub own: ArcSwap<OwnSecrets>,
    pub limits: SubjectLimits,
    /// One change of a key or a role at a time.
    pub changing: tokio::sync::Mutex<()>,
}

impl Access {
    /// Nothing in memory yet.
    pub fn new(clock: Arc<dyn Clock>, argon2: Argon2Options, cache: AccessCacheOptions) -> Result<Self, VaultError> {
        let pool = Argon2Pool::start("argon2", argon2, clock.clone())
            .map_err(|error| VaultError::NoThreads(Arc::new(error)))?;
        Ok(Access {
            slots: RwLock::default(),
            roles: RoleTable::default(),
            cache: AccessCache::new(cache, clock.clone()),
            pool,
            own: ArcSwap::default(),
            limits: SubjectLimits::new(clock),
            changing: tokio::sync::Mutex::new(()),
        })
    }

    /// Takes a stored key over, or its change.
    pub fn put(&self, row: &ObjectRow) -> Result<Arc<KeySlot>, VaultError> {
        let body: KeyBody = serde_json::from_slice(&row.body).map_err(|_| VaultError::DataLoss)?;
        let id: [u8; 8] = row.key.as_slice().try_into().map_err(|_| VaultError::DataLoss)?;
        let id = KeyId(u64::from_be_bytes(id));
        let kept = Arc::new(Kept { body, revision: row.revision });
        let mut slots = self.slots.write();
        if let Some(slot) = slots.by_id.get(&id) {
            slot.kept.store(kept);
            return Ok(slot.clone());
        }
        let slot = Arc::new(KeySlot {
            tenant: row.tenant,
            id,
            used_day: AtomicI64::new(kept.body.used_day),
            kept: ArcSwap::new(kept),
            compiled: ArcSwapOption::empty(),
            roles: self.roles.of(row.tenant),
        });
        slots.by_id.insert(id, slot.clone());
        slots.in_order.insert((row.tenant, id), slot.clone());
        Ok(slot)
    }

    /// A key by its public id.
    pub fn by_id(&self, id: KeyId) -> Option<Arc<KeySlot>> {
        self.slots.read().by_id.get(&id).cloned()
    }

    /// Keys of a tenant in order of their creation, after `after`.
    pub fn of_tenant(&self, tenant: TenantNo, after: KeyId) -> Vec<Arc<KeySlot>> {
        let from = (tenant, KeyId(after.0.saturating_add(1)));
        let slots = self.slots.read();
        slots.in_order.range(from..=(tenant, KeyId(u64::MAX))).map(|(_, slot)| slot.clone()).collect()
    }

    /// Every key.
    pub fn all(&self) -> Vec<Arc<KeySlot>> {
        self.slots.read().in_order.values().cloned().collect()
    }

    /// Drops a tenant's keys: it was erased, and its credentials with it.
    pub fn forget(&self, tenant: TenantNo) {
        let gone = self.of_tenant(tenant, KeyId(0));
        {
            let mut slots = self.slots.write();
            for slot in &gone {
                slots.by_id.remove(&slot.id);
                slots.in_order.remove(&(tenant, slot.id));
            }
        }
        for slot in gone {
            self.cache.purge(slot.id);
        }
    }
}

fn count_refusal(why: &'static str) {
    metrics::counter!(telemetry::KEYS_REFUSED, "why" => why).increment(1);
}

impl Vault {
    /// Reads every access key into memory; once, at the start.
    pub(crate) async fn load_keys(&self) -> Result<(), VaultError> {
        for tenant in self.store.tenants().await? {
            let mut after = Vec::new();
            loop {
                let page = self.store.objects(tenant.no, ObjectKind::AccessKey, Vec::new(), after, 1_000).await?;
                for row in &page.rows {
                    self.access.put(row)?;
                }
                match page.rows.last() {
                    Some(last) if page.more => after = last.key.clone(),
                    _ => break,
                }
            }
        }
        Ok(())
    }

    /// Whose key this is, without waiting: `None` when it was not used lately or something about it has changed, so that
    /// [`Vault::authenticate`] must find out. `certificate` is the SHA-256 of the client certificate of the connection;
    /// `now` is the machine's time.
    pub fn authenticate_known(
        &self,
        text: &str,
        certificate: Option<&[u8; 32]>,
        now: Timestamp,
    ) -> Option<Result<Arc<Principal>, AuthRefusal>> {
        if text.len() > MAX_TEXT {
            count_refusal("form");
            return Some(Err(AuthRefusal::Refused));
        }
        match self.access.cache.get(&self.access.cache.tag(text))? {
            Verdict::Accepted(slot) => self.principal_now(&slot, certificate, now),
            Verdict::Refused => {
                count_refusal("known");
                Some(Err(AuthRefusal::Refused))
            }
        }
    }

    /// Whose key this is. A key that was revoked before this began is refused.
    pub async fn authenticate(
        &self,
        text: &str,
        certificate: Option<&[u8; 32]>,
        now: Timestamp,
    ) -> Result<Arc<Principal>, AuthRefusal> {
        if let Some(answer) = self.authenticate_known(text, certificate, now) {
            return answer;
        }
        let slot = self.verify_key(text, now).await?;
        for _ in 0..8 {
            if let Some(answer) = self.principal_now(&slot, certificate, now) {
                return answer;
            }
            self.compile_key(&slot).await.map_err(AuthRefusal::Failed)?;
        }
        // Roles changed faster than they could be compiled.
        Err(AuthRefusal::Busy { retry_ms: 50 })
    }

    /// The key in memory, once its text has been found to be right.
    async fn verify_key(&self, text: &str, now: Timestamp) -> Result<Arc<KeySlot>, AuthRefusal> {
        let access = &self.access;
        let own = access.own.load_full();
        let (key, which) = AccessKey::parse(text, &own.peppers).map_err(|_| {
            count_refusal("forged");
            AuthRefusal::Refused
        })?;
        let check = async || {
            let slot = access.by_id(key.id());
            let kept = slot.as_ref().map(|slot| slot.kept.load_full());
            let hash = kept.as_ref().map(|kept| kept.body.hash.as_str());
            let password = Zeroizing::new(key.password(&own.peppers[which]).to_vec());
            let right = access.pool.verify(hash, password).await?;
            metrics::counter!(telemetry::KEYS_VERIFIED).increment(1);
            let why = match (&slot, &kept) {
                (Some(_), Some(kept)) if right => kept.body.why_not(now),
                (Some(_), _) => Some("wrong"),
                (None, _) => Some("unknown"),
            };
            match (slot, why) {
                (Some(slot), None) => Ok(Verdict::Accepted(slot)),
                (_, why) => {
                    count_refusal(why.unwrap_or("unknown"));
                    Ok(Verdict::Refused)
                }
            }
        };
        match access.cache.verify(access.cache.tag(text), key.id(), check).await {
            Ok(Verdict::Accepted(slot)) => Ok(slot),
            Ok(Verdict::Refused) => Err(AuthRefusal::Refused),
            Err(AdmissionError::Busy { retry_ms }) => {
                metrics::counter!(telemetry::KEYS_SHED).increment(1);
                Err(AuthRefusal::Busy { retry_ms })
            }
            Err(AdmissionError::Closed) => Err(AuthRefusal::Busy { retry_ms: 1_000 }),
            Err(AdmissionError::Password(_)) => Err(AuthRefusal::Failed(VaultError::DataLoss)),
        }
    }

    /// The principal of a key whose text is right; `None` when it must be put together anew.
    fn principal_now(
        &self,
        slot: &KeySlot,
        certificate: Option<&[u8; 32]>,
        now: Timestamp,
    ) -> Option<Result<Arc<Principal>, AuthRefusal>> {
        let refused = |why| {
            count_refusal(why);
            Some(Err(AuthRefusal::Refused))
        };
        let kept = slot.kept.load();
        if let Some(why) = kept.body.why_not(now) {
            return refused(why);
        }
        let tenants = self.tenants.load();
        let policy = match tenants.by_no.get(&slot.tenant) {
            Some(tenant) => tenant.settings.policy,
            // Its keys are not in order, and then the caller hears of it; or it is gone, and its credentials with it.
            None => match self.tenant(slot.tenant).err() {
                None => return None,
                Some(VaultError::TenantErased | VaultError::NotFound) => return refused("unknown"),
                Some(error) => return Some(Err(AuthRefusal::Failed(error))),
            },
        };
        let compiled = slot.compiled.load();
        let compiled = compiled.as_ref()?;
        let fresh = compiled.revision == kept.revision
            && compiled.policy == policy
            && compiled.roles == slot.roles.generation();
        if !fresh {
            return None;
        }
        match compiled.principal.admit(now, certificate) {
            Ok(()) => {}
            Err(denial) if denial.rule == Rule::CertificateMismatch => {
                count_refusal("certificate");
                return Some(Err(AuthRefusal::Certificate));
            }
            Err(_) => return refused("expired"),
        }
        let today = now.day();
        if slot.used_day.load(Ordering::Relaxed) != today {
            slot.used_day.store(today, Ordering::Relaxed);
        }
        Some(Ok(compiled.principal.clone()))
    }

    /// What a key may do under the roles and the policy of this moment.
    pub(crate) async fn compile_key(&self, slot: &KeySlot) -> Result<Arc<Compiled>, VaultError> {
        let roles = self.tenant_roles(slot.tenant).await?;
        let kept = slot.kept.load_full();
        let (mut grants, mut origins) = (Vec::<Grant>::new(), Vec::new());
        let mut limit = kept.body.subjects_per_hour.unwrap_or(0);
        let mut add = |name: &Name, i: usize, grant: &CompiledGrant| {
            grants.push(grant.grant.clone());
            origins.push(Origin { name: name.clone(), grant: i + 1, line: grant.line });
            if grant.subjects_per_hour != 0 && (limit == 0 || grant.subjects_per_hour < limit) {
                limit = grant.subjects_per_hour;
            }
        };
        let kind = if slot.tenant == TenantNo::VAULT { Kind::Operator } else { Kind::Tenant };
        if kind == Kind::Operator {
            let grant = CompiledGrant { grant: without_values(), line: 0, subjects_per_hour: 0 };
            let name = Name::parse("role", "operator").expect("a constant of the right form");
            add(&name, 0, &grant);
        }
        for role in kept.body.roles.iter().filter_map(|no| roles.roles.get(no)) {
            role.grants.iter().enumerate().for_each(|(i, grant)| add(&role.name, i, grant));
        }
        let principal = Principal {
            actor: slot.actor(),
            tenant: slot.tenant,
            kind,
            grants: grants.into(),
            certificate: kept.body.certificate,
            expires: kept.body.expires,
            subjects_per_hour: (limit != 0).then_some(limit),
        };
        let compiled = Arc::new(Compiled {
            principal: Arc::new(principal),
            origins,
            policy: roles.policy,
            roles: roles.generation,
            revision: kept.revision,
        });
        slot.compiled.store(Some(compiled.clone()));
        Ok(compiled)
    }
}
