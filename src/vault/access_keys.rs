//! Access keys: issue, rotate, revoke, list. A key is a small record of its tenant (operators' keys: of tenant 0); its text
//! is shown once and kept nowhere.
//!
//! ```text
//! id = sequence number in the vault << 16 | 16 random bits
//! ```
//! So ids sort by creation, the audit names a key by its id in few bytes, and a mistyped id is not another key's.

use std::sync::Arc;

use zeroize::Zeroizing;

use crate::access::Verb;
use crate::audit::{Action, AuditRecord, Outcome};
use crate::auth::{AccessKey, Environment, KeyId, Kind, Principal};
use crate::clock::Timestamp;
use crate::crypto::random;
use crate::ids::*;
use crate::keyring::ledger::{LedgerEntry, LedgerKind};
use crate::storage::*;
use crate::telemetry;
use crate::vault::admission::AdmissionError;
use crate::vault::authenticate::{Kept, KeyBody, KeySlot};
use crate::vault::call::Call;
use crate::vault::error::{DenialKind, VaultError, Violation};
use crate::vault::request::Request;
use crate::vault::roles::MAX_SUBJECTS_PER_HOUR;
use crate::vault::roles::compiled::without_values;
use crate::vault::tenant::{Tenant, TenantKind};
use crate::vault::{Vault, put_of_live_tenant, to_json};

/// Longest overlap of a rotation, in milliseconds: 30 days.
pub const MAX_OVERLAP_MS: i64 = 30 * 86_400_000;
/// Most roles of a key.
const MAX_ROLES: usize = 32;
/// Most keys of a tenant, working or not: all are in memory.
const MAX_KEYS: usize = 10_000;

/// State of an access key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessKeyState {
    Active,
    Revoked,
    Expired,
    /// Stopped by a restore, until an operator confirms it.
    Unconfirmed,
}

/// An access key without its text.
#[derive(Debug, Clone)]
pub struct AccessKeyView {
    pub id: KeyId,
    /// The operators' tenant for operator keys.
    pub tenant: TenantNo,
    pub name: Name,
    pub roles: Vec<RoleNo>,
    pub state: AccessKeyState,
    pub created: Timestamp,
    pub expires: Option<Timestamp>,
    pub revoked: Option<Timestamp>,
    pub certificate: Option<[u8; 32]>,
    /// `None`: the command line of the server.
    pub issued_by: Option<KeyId>,
    pub subjects_per_hour: Option<u32>,
    /// Day of the last use, days since 1970-01-01 UTC.
    pub used_day: Option<i64>,
    /// The version of the pepper that it was made with.
    pub pepper: SecretVersion,
}

/// An access key that is asked for.
#[derive(Debug, Clone)]
pub struct NewAccessKey {
    /// Unique among the tenant's keys that work.
    pub name: Name,
    /// At least one; none for operators' keys.
    pub roles: Vec<RoleNo>,
    pub expires: Option<Timestamp>,
    /// SHA-256 of the client certificate that it is bound to.
    pub certificate: Option<[u8; 32]>,
    /// Most different subjects in an hour, beside what its roles say.
    pub subjects_per_hour: Option<u32>,
}

/// A key that was issued. Its text is there the first time only.
pub struct IssuedKey {
    pub key: AccessKeyView,
    pub text: Option<Zeroizing<String>>,
}

/// How a key is rotated.
#[derive(Debug, Clone)]
pub struct Rotation {
    /// How long the old one still works, in milliseconds; 0: it ends at once.
    pub overlap_ms: i64,
    /// When the new one ends; `None`: as the old one would have.
    pub expires: Option<Timestamp>,
    /// `None`: that of the old one.
    pub certificate: Option<[u8; 32]>,
}

/// The name of a key where things have UUIDs (audit, ledger): its id in the low half.
pub fn object_of(id: KeyId) -> ObjectId {
    ObjectId(uuid::Uuid::from_u64_pair(0, id.0))
}

fn row_key(id: KeyId) -> Vec<u8> {
    id.0.to_be_bytes().to_vec()
}

/// Too little free room for Argon2id, or a stored hash that is none.
fn admission(error: AdmissionError) -> VaultError {
    match error {
        AdmissionError::Busy { retry_ms } => VaultError::Busy { retry_ms },
        AdmissionError::Closed => VaultError::Busy { retry_ms: 1_000 },
        AdmissionError::Password(_) => VaultError::DataLoss,
    }
}

impl Vault {
    /// A call of the vault itself in a tenant: for `init` and other commands on the server's own machine.
    pub fn local_call(&self, tenant: TenantNo) -> Result<Call, VaultError> {
        let principal = Principal {
            actor: ActorId(0),
            tenant: TenantNo::VAULT,
            kind: Kind::Operator,
            grants: Arc::new([without_values()]),
            certificate: None,
            expires: None,
            subjects_per_hour: None,
        };
        Ok(self.call(Arc::new(principal), self.tenant(tenant)?))
    }

    /// The first key of the operators, from the command line of the server.
    pub async fn issue_first_key(&self, name: Name) -> Result<IssuedKey, VaultError> {
        let call = self.local_call(TenantNo::VAULT)?;
        let new = NewAccessKey { name, roles: vec![], expires: None, certificate: None, subjects_per_hour: None };
        self.issue_access_key(&call, new, None, false).await?.ok_or(VaultError::Conflict)
    }

    /// Issues a key of the call's tenant; of the operators where that is the vault itself. `None` when it was only
    /// checked.
    ///
    /// # Errors
    /// `Denied` when it would allow more than the caller may; `AlreadyExists` for a name that a working key has; `Busy`
    /// when too many keys are being checked.
    pub async fn issue_access_key(
        &self,
        call: &Call,
        new: NewAccessKey,
        request: Option<Request>,
        validate_only: bool,
    ) -> Result<Option<IssuedKey>, VaultError> {
        call.permit(Verb::Access)?;
        if let Some(id) = self.repeated::<u64>(call, request.as_ref()).await? {
            let slot = self.access.by_id(KeyId(id)).ok_or(VaultError::NotFound)?;
            return Ok(Some(IssuedKey { key: self.view_key(&slot)?, text: None }));
        }
        self.check_new_key(call, &new).await?;
        if validate_only {
            self.must_be_new(call, &new.name)?;
            return Ok(None);
        }
        let limit = match (new.subjects_per_hour, call.principal.subjects_per_hour) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let _one_at_a_time = self.access.changing.lock().await;
        self.must_be_new(call, &new.name)?;
        let tenant = call.tenant.no;
        for _ in 0..4 {
            let mut change = ChangeSet::default();
            let made = self.make_key(&call.tenant, &mut change).await?;
            let key = row_key(made.id);
            let body = KeyBody {
                label: call.tenant.seal_object(ObjectKind::AccessKey, &key, new.name.as_str().as_bytes()),
                roles: new.roles.clone(),
                hash: made.hash,
                pepper: made.pepper,
                created: call.wall,
                expires: new.expires,
                revoked: None,
                unconfirmed: false,
                certificate: new.certificate,
                issued_by: issuer(call),
                subjects_per_hour: limit,
                used_day: 0,
            };
            let row = put_key(tenant, made.id, Revision(0), &body, &mut change);
            change.note(tenant, named(call.record(Action::IssueAccessKey, Outcome::Ok), made.id));
            self.remember(call, request.as_ref(), &made.id.0, &mut change);
            match self.store.commit(change).await {
                Ok(_) => {
                    let slot = self.access.put(&row)?;
                    self.access.cache.purge(made.id);
                    return Ok(Some(IssuedKey { key: self.view_key(&slot)?, text: Some(made.text) }));
                }
                Err(error) => self.retry_or_answer(call, error, request.as_ref()).await?,
            }
        }
        Err(VaultError::Conflict)
    }

    async fn check_new_key(&self, call: &Call, new: &NewAccessKey) -> Result<(), VaultError> {
        let operator = call.tenant.no == TenantNo::VAULT;
        if operator && call.principal.kind != Kind::Operator {
            return Err(VaultError::denied(DenialKind::NotPermitted, "operator.only"));
        }
        let roles = self.tenant_roles(call.tenant.no).await?;
        let mut wrong = Vec::new();
        match (operator, new.roles.is_empty()) {
            (true, false) => wrong.push(Violation::new("role_ids", "operator keys have no roles")),
            (false, true) => wrong.push(Violation::new("role_ids", "must have at least one")),
            _ => {}
        }
        if new.roles.len() > MAX_ROLES {
            wrong.push(Violation::new("role_ids", "must have at most 32"));
        }
        for (i, no) in new.roles.iter().enumerate().take(MAX_ROLES) {
            if !roles.roles.contains_key(no) {
                wrong.push(Violation::new(format!("role_ids[{i}]"), "a role that is not there"));
            }
        }
        if new.expires.is_some_and(|t| t <= call.wall) {
            wrong.push(Violation::new("expire_time", "must be in the future"));
        }
        if new.subjects_per_hour.is_some_and(|n| n == 0 || n > MAX_SUBJECTS_PER_HOUR) {
            wrong.push(Violation::new("subjects_per_hour", "must be at most 100,000"));
        }
        if !wrong.is_empty() {
            return Err(VaultError::Invalid(wrong));
        }
        self.must_have_all(&call.principal, &roles.grants(&new.roles))
    }

    fn must_be_new(&self, call: &Call, name: &Name) -> Result<(), VaultError> {
        let keys = self.access.of_tenant(call.tenant.no, KeyId(0));
        if keys.len() >= MAX_KEYS {
            return Err(VaultError::Quota("access keys of the tenant"));
        }
        for slot in keys {
            if slot.kept.load().body.works(call.wall) && self.name_of(&slot)? == *name {
                return Err(VaultError::AlreadyExists);
            }
        }
        Ok(())
    }

    /// A key with a fresh id and secret; `change` then counts the id.
    async fn make_key(&self, tenant: &Tenant, change: &mut ChangeSet) -> Result<Made, VaultError> {
        let own = self.access.own.load_full();
        let pepper = own.peppers.first().ok_or(VaultError::WrongState("the vault's own keys are not open"))?;
        let environment = match tenant.settings.kind {
            TenantKind::Live => Environment::Live,
            TenantKind::Test => Environment::Test,
        };
        // One sequence for the whole vault, so that operators and tenants are never confused.
        let number = self.next_number(TenantNo::VAULT, ObjectKind::AccessKey, change).await?;
        let id = KeyId(u64::from(number) << 16 | u64::from(u16::from_be_bytes(random::bytes())));
        let key = AccessKey::generate(environment, id);
        let text = key.to_text(pepper);
        let password = Zeroizing::new(key.password(pepper).to_vec());
        let hash = self.access.pool.hash(password).await.map_err(admission)?;
        Ok(Made { id, text, hash, pepper: pepper.version })
    }

    /// A key that the caller may change: of its tenant; operators reach every key.
    pub(crate) fn reachable(&self, call: &Call, id: KeyId) -> Result<Arc<KeySlot>, VaultError> {
        let operator = call.principal.kind == Kind::Operator;
        let slot = self.access.by_id(id).filter(|slot| operator || slot.tenant == call.tenant.no);
        slot.ok_or(VaultError::NotFound)
    }

    /// Issues a successor with the same rights and name. The old key ends after the overlap, or at once; the caller gets
    /// the text of the new one, so all it allows must be allowed to the caller.
    pub async fn rotate_access_key(
        &self,
        call: &Call,
        id: KeyId,
        how: Rotation,
        request: Option<Request>,
    ) -> Result<(IssuedKey, AccessKeyView), VaultError> {
        call.permit(Verb::Access)?;
        let old = self.reachable(call, id)?;
        if let Some(id) = self.repeated::<u64>(call, request.as_ref()).await? {
            self.end_in_ledger(&old).await?;
            let slot = self.access.by_id(KeyId(id)).ok_or(VaultError::NotFound)?;
            return Ok((IssuedKey { key: self.view_key(&slot)?, text: None }, self.view_key(&old)?));
        }
        if !(0..=MAX_OVERLAP_MS).contains(&how.overlap_ms) {
            return Err(VaultError::invalid("overlap_seconds", "must be at most 30 days"));
        }
        if how.expires.is_some_and(|t| t <= call.wall) {
            return Err(VaultError::invalid("expire_time", "must be in the future"));
        }
        let grants = self.compile_key(&old).await?.principal.grants.clone();
        self.must_have_all(&call.principal, &grants)?;
        let owner = self.tenant(old.tenant)?;
        let _one_at_a_time = self.access.changing.lock().await;
        let name = self.name_of(&old)?;
        for _ in 0..4 {
            let kept = old.kept.load_full();
            if !kept.body.works(call.wall) {
                return Err(VaultError::WrongState("the key does not work any more"));
            }
            let mut ended = kept.body.clone();
            if how.overlap_ms == 0 {
                ended.revoked = Some(call.wall);
            } else {
                let end = call.wall.plus_ms(how.overlap_ms);
                ended.expires = Some(ended.expires.map_or(end, |t| t.min(end)));
            }
            let mut change = ChangeSet::default();
            let made = self.make_key(&owner, &mut change).await?;
            let key = row_key(made.id);
            let body = KeyBody {
                label: owner.seal_object(ObjectKind::AccessKey, &key, name.as_str().as_bytes()),
                hash: made.hash,
                pepper: made.pepper,
                created: call.wall,
                expires: how.expires.or(kept.body.expires),
                certificate: how.certificate.or(kept.body.certificate),
                issued_by: issuer(call),
                used_day: 0,
                ..kept.body.clone()
            };
            let new_row = put_key(old.tenant, made.id, Revision(0), &body, &mut change);
            let old_row = put_key(old.tenant, old.id, kept.revision, &ended, &mut change);
            change.note(old.tenant, named(call.record(Action::RotateAccessKey, Outcome::Ok), old.id));
            change.note(old.tenant, named(call.record(Action::IssueAccessKey, Outcome::Ok), made.id));
            self.remember(call, request.as_ref(), &made.id.0, &mut change);
            match self.store.commit(change).await {
                Ok(_) => {
                    self.access.put(&old_row)?;
                    let new = self.access.put(&new_row)?;
                    self.access.cache.purge(old.id);
                    self.access.cache.purge(made.id);
                    self.end_in_ledger(&old).await?;
                    let issued = IssuedKey { key: self.view_key(&new)?, text: Some(made.text) };
                    return Ok((issued, self.view_key(&old)?));
                }
                Err(error) => self.retry_or_answer(call, error, request.as_ref()).await?,
            }
        }
        Err(VaultError::Conflict)
    }

    /// Ends a key: every call that starts after the answer is refused. The order is: durable in the database, ended in
    /// memory, durable in the ledger (so that a restored database does not bring it back), answer. A key that was
    /// revoked before is answered as it is.
    pub async fn revoke_access_key(
        &self,
        call: &Call,
        id: KeyId,
        request: Option<Request>,
    ) -> Result<AccessKeyView, VaultError> {
        call.permit(Verb::Access)?;
        let slot = self.reachable(call, id)?;
        // An answer from before says only that the body was the same: the key is revoked by then.
        self.repeated::<u64>(call, request.as_ref()).await?;
        self.end_key(call, &slot, request).await?;
        self.view_key(&slot)
    }

    /// Revokes a key, whoever asks.
    pub(crate) async fn end_key(
        &self,
        call: &Call,
        slot: &KeySlot,
        request: Option<Request>,
    ) -> Result<(), VaultError> {
        let _one_at_a_time = self.access.changing.lock().await;
        for _ in 0..4 {
            let kept = slot.kept.load_full();
            if kept.body.revoked.is_some() {
                break;
            }
            let body = KeyBody { revoked: Some(call.wall), ..kept.body.clone() };
            let mut change = ChangeSet::default();
            let row = put_key(slot.tenant, slot.id, kept.revision, &body, &mut change);
            change.note(slot.tenant, named(call.record(Action::RevokeAccessKey, Outcome::Ok), slot.id));
            self.remember(call, request.as_ref(), &slot.id.0, &mut change);
            match self.store.commit(change).await {
                Ok(_) => {
                    self.access.put(&row)?;
                    self.access.cache.purge(slot.id);
                }
                Err(error) => self.retry_or_answer(call, error, request.as_ref()).await?,
            }
        }
        if slot.kept.load().body.revoked.is_none() {
            return Err(VaultError::Conflict);
        }
        self.end_in_ledger(slot).await
    }

    /// Keys that work and were made under that version of the pepper.
    pub(crate) fn keys_under(&self, pepper: SecretVersion, now: Timestamp) -> Vec<Arc<KeySlot>> {
        let under = |slot: &Arc<KeySlot>| {
            let kept = slot.kept.load();
            kept.body.pepper == pepper && kept.body.revoked.is_none() && kept.body.expires.is_none_or(|end| now < end)
        };
        let mut keys = self.access.all();
        keys.retain(under);
        keys
    }

    /// Lets a key that reached its limit of different people in an hour go on: it counts from nothing again. By somebody
    /// else than the key itself.
    pub async fn release_access_key(&self, call: &Call, id: KeyId) -> Result<AccessKeyView, VaultError> {
        call.permit(Verb::Access)?;
        let slot = self.reachable(call, id)?;
        if call.principal.actor == ActorId(id.0) {
            return Err(VaultError::denied(DenialKind::NotPermitted, "a key does not release itself"));
        }
        let mut change = ChangeSet::default();
        change.note(slot.tenant, named(call.record(Action::ReleaseAccessKey, Outcome::Ok), id));
        self.store.commit(change).await?;
        self.access.limits.release(ActorId(id.0));
        self.view_key(&slot)
    }

    /// Notes in the ledger that a key has ended, or will by itself.
    async fn end_in_ledger(&self, slot: &KeySlot) -> Result<(), VaultError> {
        let kept = slot.kept.load_full();
        let at = kept.body.revoked.unwrap_or_else(|| self.clock.now());
        let until = kept.body.expires.filter(|_| kept.body.revoked.is_none()).unwrap_or(Timestamp(0));
        let ended = LedgerEntry::new(LedgerKind::CredentialRevoked, slot.tenant, at);
        self.ledger(vec![LedgerEntry { object: object_of(slot.id), until, ..ended }]).await
    }

    /// Keys of the call's tenant in order of their creation, after `after`; with `states`, only those.
    pub fn list_access_keys(
        &self,
        call: &Call,
        states: &[AccessKeyState],
        after: KeyId,
        limit: u32,
    ) -> Result<Page<AccessKeyView>, VaultError> {
        call.permit(Verb::Access)?;
        let mut rows = Vec::new();
        for slot in self.access.of_tenant(call.tenant.no, after) {
            let view = self.view_key(&slot)?;
            if !states.is_empty() && !states.contains(&view.state) {
                continue;
            }
            if rows.len() == limit as usize {
                return Ok(Page { rows, more: true });
            }
            rows.push(view);
        }
        Ok(Page { rows, more: false })
    }

    /// The key that a call was made with; `None` for the vault's own calls.
    pub fn own_key(&self, call: &Call) -> Result<Option<AccessKeyView>, VaultError> {
        let slot = self.access.by_id(KeyId(call.principal.actor.0));
        slot.map(|slot| self.view_key(&slot)).transpose()
    }

    fn name_of(&self, slot: &KeySlot) -> Result<Name, VaultError> {
        let sealed = &slot.kept.load_full().body.label;
        let plain = self.tenant(slot.tenant)?.open_object(ObjectKind::AccessKey, &row_key(slot.id), sealed)?;
        let text = std::str::from_utf8(&plain).map_err(|_| VaultError::DataLoss)?;
        Name::parse("name", text).map_err(|_| VaultError::DataLoss)
    }

    pub(crate) fn view_key(&self, slot: &KeySlot) -> Result<AccessKeyView, VaultError> {
        let kept: Arc<Kept> = slot.kept.load_full();
        let body = &kept.body;
        let state = match () {
            _ if body.revoked.is_some() => AccessKeyState::Revoked,
            _ if body.unconfirmed => AccessKeyState::Unconfirmed,
            _ if !body.works(self.clock.now()) => AccessKeyState::Expired,
            _ => AccessKeyState::Active,
        };
        let used = slot.used_day.load(std::sync::atomic::Ordering::Relaxed);
        Ok(AccessKeyView {
            id: slot.id,
            tenant: slot.tenant,
            name: self.name_of(slot)?,
            roles: body.roles.clone(),
            state,
            created: body.created,
            expires: body.expires,
            revoked: body.revoked,
            certificate: body.certificate,
            issued_by: body.issued_by.map(|actor| KeyId(actor.0)),
            subjects_per_hour: body.subjects_per_hour,
            used_day: (used != 0).then_some(used),
            pepper: body.pepper,
        })
    }

    /// Writes down the days on which keys were last used, at most `limit` of them; how many were written. For a job.
    pub async fn write_key_uses(&self, limit: usize) -> Result<usize, VaultError> {
        let mut written = 0;
        for slot in self.access.all() {
            let day = slot.used_day.load(std::sync::atomic::Ordering::Relaxed);
            if written == limit {
                break;
            }
            if slot.kept.load().body.used_day == day {
                continue;
            }
            let _one_at_a_time = self.access.changing.lock().await;
            let kept = slot.kept.load_full();
            let mut change = ChangeSet::default();
            let body = KeyBody { used_day: day, ..kept.body.clone() };
            let row = put_key(slot.tenant, slot.id, kept.revision, &body, &mut change);
            match self.store.commit(change).await {
                Ok(_) => {
                    self.access.put(&row)?;
                    written += 1;
                }
                // Its tenant is being erased.
                Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(written)
    }

    /// Drops the keys of a tenant from memory: it was erased.
    pub fn forget_keys(&self, tenant: TenantNo) {
        self.access.forget(tenant);
    }

    /// Whether the caller may touch one more subject in this hour; it then counts. Keys without a limit are not counted.
    ///
    /// # Errors
    /// `ReadBreadth`.
    pub(crate) fn count_subject(&self, call: &Call, uid: SubjectUid) -> Result<(), VaultError> {
        match call.principal.subjects_per_hour {
            Some(limit) if !self.access.limits.touch(call.principal.actor, uid, limit) => {
                metrics::counter!(telemetry::KEYS_TOO_BROAD).increment(1);
                Err(VaultError::ReadBreadth { limit })
            }
            _ => Ok(()),
        }
    }
}

/// Who issues; `None` for the command line of the server.
fn issuer(call: &Call) -> Option<ActorId> {
    (call.principal.actor.0 != 0).then_some(call.principal.actor)
}

struct Made {
    id: KeyId,
    text: Zeroizing<String>,
    hash: String,
    pepper: SecretVersion,
}

fn named(mut entry: AuditRecord, id: KeyId) -> Vec<u8> {
    entry.operation = Some(object_of(id));
    entry.to_bytes()
}

fn put_key(tenant: TenantNo, id: KeyId, former: Revision, body: &KeyBody, change: &mut ChangeSet) -> ObjectRow {
    put_of_live_tenant(tenant, ObjectKind::AccessKey, row_key(id), former, to_json(body), change)
}
