//! API keys of the tenant's users: who may call the *tenant*.
//!
//! All keys of a subject are one credential: a list of [`Stored`], each with the Argon2id PHC string of its secret and nothing
//! that opens it. An index row with the key's id finds the subject.
//! Whether a text is a key that works is [`super::api_key_check`]'s business.

use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::{API_KEYS, Draft, Edit, Why, find_mark};
use crate::access::Verb;
use crate::audit::{Action, Outcome};
use crate::auth::{ApiKey, Environment, KeyId, KeyPrefix};
use crate::clock::Timestamp;
use crate::ids::*;
use crate::keyring::ledger::{LedgerEntry, LedgerKind};
use crate::storage::*;
use crate::vault::access_keys::{MAX_OVERLAP_MS, object_of};
use crate::vault::admission::AdmissionError;
use crate::vault::call::{Call, Context};
use crate::vault::error::{VaultError, Violation};
use crate::vault::find::Key;
use crate::vault::request::Request;
use crate::vault::tenant::TenantKind;
use crate::vault::{Vault, to_json};

/// Most keys of a subject, working or not; ended ones make room for new ones.
pub const MAX_KEYS: usize = 50;
/// Most scopes of a key.
pub const MAX_SCOPES: usize = 64;
/// Most networks of a key.
pub const MAX_SOURCES: usize = 16;

const TOO_MANY: VaultError = VaultError::Quota("working API keys of a subject");

/// State of an API key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApiKeyState {
    Active,
    Revoked,
    Expired,
}

/// An API key that is asked for.
pub struct NewApiKey {
    /// What the user calls it; may be empty.
    pub label: Zeroizing<String>,
    /// What it may do, by the tenant's own numbers.
    pub scopes: Vec<u16>,
    pub expires: Option<Timestamp>,
    /// Networks it may be used from; empty: any.
    pub sources: Vec<IpNet>,
}

/// An API key without its text.
pub struct ApiKeyView {
    pub id: KeyId,
    pub label: Zeroizing<String>,
    pub state: ApiKeyState,
    pub scopes: Vec<u16>,
    pub sources: Vec<IpNet>,
    pub created: Timestamp,
    pub expires: Option<Timestamp>,
    pub revoked: Option<Timestamp>,
    /// Day of the last use that was written down, days since 1970-01-01 UTC.
    pub used_day: Option<i64>,
}

/// A key that was issued. Its text is there the first time only.
pub struct IssuedApiKey {
    pub key: ApiKeyView,
    pub text: Option<Zeroizing<String>>,
}

/// How a key is rotated.
#[derive(Debug, Clone, Copy)]
pub struct ApiKeyRotation {
    /// How long the old one still works, in milliseconds; 0: it ends at once.
    pub overlap_ms: i64,
    /// When the new one ends; `None`: as the old one would have.
    pub expires: Option<Timestamp>,
}

/// What is kept of an API key, sealed with the others of its subject.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stored {
    pub id: u64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    label: String,
    /// Argon2id PHC string over HMAC(pepper, id, secret).
    pub hash: String,
    pub pepper: SecretVersion,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<u16>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    sources: Vec<String>,
    created: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Timestamp>,
    /// Day of the last use that was written down; 0: none.
    #[serde(default)]
    pub used_day: i64,
}

impl Drop for Stored {
    fn drop(&mut self) {
        self.label.zeroize();
        self.hash.zeroize();
        self.sources.zeroize();
    }
}

impl Stored {
    /// Why it opens nothing at that time of the tenant.
    fn why_not(&self, now: Timestamp) -> Option<Why> {
        match () {
            _ if self.revoked.is_some() => Some(Why::Revoked),
            _ if self.expires.is_some_and(|end| end <= now) => Some(Why::Expired),
            _ => None,
        }
    }

    pub fn networks(&self) -> Result<Vec<IpNet>, VaultError> {
        self.sources.iter().map(|text| text.parse().map_err(|_| VaultError::DataLoss)).collect()
    }

    fn view(&self, now: Timestamp) -> Result<ApiKeyView, VaultError> {
        Ok(ApiKeyView {
            id: KeyId(self.id),
            label: Zeroizing::new(self.label.clone()),
            state: match self.why_not(now) {
                Some(Why::Revoked) => ApiKeyState::Revoked,
                Some(_) => ApiKeyState::Expired,
                None => ApiKeyState::Active,
            },
            scopes: self.scopes.clone(),
            sources: self.networks()?,
            created: self.created,
            expires: self.expires,
            revoked: self.revoked,
            used_day: (self.used_day != 0).then_some(self.used_day),
        })
    }
}

pub(super) fn keys_of(value: Option<&[u8]>) -> Result<Vec<Stored>, VaultError> {
    value.map_or(Ok(Vec::new()), |value| serde_json::from_slice(value).map_err(|_| VaultError::DataLoss))
}

pub(super) fn put(keys: &[Stored]) -> Edit {
    Edit::Put(Zeroizing::new(to_json(&keys)))
}

/// The PHC strings of a subject's keys that are not revoked, for the report of what is kept how.
pub fn hashes_of(value: &[u8]) -> Result<Vec<Zeroizing<String>>, VaultError> {
    let keys = keys_of(Some(value))?;
    Ok(keys.iter().filter(|key| key.revoked.is_none()).map(|key| Zeroizing::new(key.hash.clone())).collect())
}

/// How many of a subject's keys work and were made under that version of the pepper.
pub fn keys_under(value: &[u8], pepper: SecretVersion, now: Timestamp) -> Result<u64, VaultError> {
    let under = |key: &&Stored| key.pepper == pepper && key.why_not(now).is_none();
    Ok(keys_of(Some(value))?.iter().filter(under).count() as u64)
}

/// The id in the form of an index row's tag.
pub(super) fn mark(id: KeyId) -> TermTag {
    TermTag(u128::from(id.0).to_be_bytes())
}

pub(super) fn admission(error: AdmissionError) -> VaultError {
    match error {
        AdmissionError::Busy { retry_ms } => VaultError::Busy { retry_ms },
        AdmissionError::Closed => VaultError::Busy { retry_ms: 1_000 },
        AdmissionError::Password(_) => VaultError::DataLoss,
    }
}

struct Made {
    id: KeyId,
    text: Zeroizing<String>,
    hash: Zeroizing<String>,
    pepper: SecretVersion,
}

impl Vault {
    /// A key with a fresh id and secret.
    async fn make_api_key(&self, call: &Call) -> Result<Made, VaultError> {
        let prefix = KeyPrefix::parse(self.credential_rules(call)?.api_key_prefix.as_str());
        let prefix = prefix.map_err(|_| VaultError::WrongState("the policy's prefix of API keys cannot be used"))?;
        let environment = match call.tenant.settings.kind {
            TenantKind::Live => Environment::Live,
            TenantKind::Test => Environment::Test,
        };
        let peppers = self.user_peppers(&call.tenant)?;
        let pepper = peppers.peppers.first().ok_or(VaultError::WrongState("the vault's own keys are not open"))?;
        let key = ApiKey::generate(prefix, environment, KeyId::random());
        let password = Zeroizing::new(key.password(pepper).to_vec());
        let hash = Zeroizing::new(self.access.pool.hash(password).await.map_err(admission)?);
        Ok(Made { id: key.id(), text: key.to_text(pepper), hash, pepper: pepper.version })
    }

    /// Issues a key to a subject. `None` when it was only checked.
    ///
    /// # Errors
    /// `Quota` when the subject has too many working keys; `Busy` when too many keys are being checked.
    pub async fn issue_api_key(
        &self,
        call: &Call,
        context: &Context,
        key: &Key,
        new: NewApiKey,
        request: Option<Request>,
        validate_only: bool,
    ) -> Result<Option<IssuedApiKey>, VaultError> {
        let permit = call.permit(Verb::Credential)?;
        check_new(call, &new)?;
        let snapshot = self.resolve(call, context, key).await?;
        permit.for_group(snapshot.subject.group)?;
        if let Some(id) = self.repeated::<u64>(call, request.as_ref()).await? {
            return Ok(Some(IssuedApiKey { key: self.api_key(call, KeyId(id)).await?, text: None }));
        }
        self.must_be_open(&snapshot.subject)?;
        // Looked at before the costly part, and again when it is written.
        let value = self.open_credential(call, &snapshot, API_KEYS).await?;
        let keys = keys_of(value.as_ref().map(|found| found.value.as_slice()))?;
        if keys.iter().filter(|key| key.why_not(call.now).is_none()).count() >= MAX_KEYS {
            return Err(TOO_MANY);
        }
        if validate_only {
            return Ok(None);
        }
        let made = self.make_api_key(call).await?;
        let decide = |snapshot: &SubjectSnapshot, there: Option<&[u8]>, draft: &mut Draft| {
            let mut keys = keys_of(there)?;
            keys.push(Stored {
                id: made.id.0,
                label: new.label.to_string(),
                hash: made.hash.to_string(),
                pepper: made.pepper,
                scopes: new.scopes.clone(),
                sources: new.sources.iter().map(IpNet::to_string).collect(),
                created: call.now,
                expires: new.expires,
                revoked: None,
                used_day: 0,
            });
            add(call, snapshot, keys, draft, made.id, None)
        };
        let action = Action::IssueApiKey;
        let id = self
            .edit_credential(call, context, key, Verb::Credential, API_KEYS, action, request.as_ref(), decide)
            .await?;
        let key = self.api_key(call, KeyId(id)).await?;
        Ok(Some(IssuedApiKey { key, text: (id == made.id.0).then_some(made.text) }))
    }

    /// Issues a successor with the same rights. The old key ends after the overlap, or at once.
    pub async fn rotate_api_key(
        &self,
        call: &Call,
        id: KeyId,
        how: ApiKeyRotation,
        request: Option<Request>,
    ) -> Result<(IssuedApiKey, ApiKeyView), VaultError> {
        let (owner, key) = self.api_key_holder(call, id).await?;
        if let Some(new) = self.repeated::<u64>(call, request.as_ref()).await? {
            let former = self.api_key(call, id).await?;
            self.api_key_ends(call, owner.subject.uid, &former).await?;
            return Ok((IssuedApiKey { key: self.api_key(call, KeyId(new)).await?, text: None }, former));
        }
        if !(0..=MAX_OVERLAP_MS).contains(&how.overlap_ms) {
            return Err(VaultError::invalid("overlap_seconds", "must be at most 30 days"));
        }
        if how.expires.is_some_and(|end| end <= call.now) {
            return Err(VaultError::invalid("expire_time", "must be in the future"));
        }
        let made = self.make_api_key(call).await?;
        let decide = |snapshot: &SubjectSnapshot, there: Option<&[u8]>, draft: &mut Draft| {
            let mut keys = keys_of(there)?;
            let old = keys.iter_mut().find(|key| key.id == id.0).ok_or(VaultError::NotFound)?;
            if old.why_not(call.now).is_some() {
                return Err(VaultError::WrongState("the key does not work any more"));
            }
            let mut next = old.clone();
            if how.overlap_ms == 0 {
                old.revoked = Some(call.now);
            } else {
                let end = call.now.plus_ms(how.overlap_ms);
                old.expires = Some(old.expires.map_or(end, |t| t.min(end)));
            }
            next.id = made.id.0;
            next.hash = made.hash.to_string();
            next.pepper = made.pepper;
            next.created = call.now;
            next.expires = how.expires.or(next.expires);
            next.used_day = 0;
            keys.push(next);
            let mut issued = call.record(Action::IssueApiKey, Outcome::Ok);
            issued.subject = Some(snapshot.subject.uid);
            issued.operation = Some(object_of(made.id));
            draft.change.note(call.tenant.no, issued.to_bytes());
            let answer = add(call, snapshot, keys, draft, made.id, Some(id))?;
            draft.entry.operation = Some(object_of(id));
            Ok(answer)
        };
        let (context, action) = (Context::default(), Action::RotateApiKey);
        let new = self
            .edit_credential(call, &context, &key, Verb::Credential, API_KEYS, action, request.as_ref(), decide)
            .await?;
        self.credentials.api_keys.forget(id);
        let former = self.api_key(call, id).await?;
        self.api_key_ends(call, owner.subject.uid, &former).await?;
        let issued = self.api_key(call, KeyId(new)).await?;
        Ok((IssuedApiKey { key: issued, text: (new == made.id.0).then_some(made.text) }, former))
    }

    /// Ends a key: every check that starts after the answer says no. The order is: durable in the database, durable in the
    /// ledger (so that a restored database does not bring it back), answer. One that was revoked before is answered as it
    /// is.
    pub async fn revoke_api_key(
        &self,
        call: &Call,
        id: KeyId,
        request: Option<Request>,
    ) -> Result<ApiKeyView, VaultError> {
        let (owner, key) = self.api_key_holder(call, id).await?;
        let decide = |_: &SubjectSnapshot, there: Option<&[u8]>, draft: &mut Draft| {
            let mut keys = keys_of(there)?;
            let found = keys.iter_mut().find(|key| key.id == id.0).ok_or(VaultError::NotFound)?;
            if found.revoked.is_some() {
                return Ok((Edit::Keep, id.0));
            }
            found.revoked = Some(call.now);
            draft.entry.operation = Some(object_of(id));
            Ok((put(&keys), id.0))
        };
        let (context, action) = (Context::default(), Action::RevokeApiKey);
        self.edit_credential(call, &context, &key, Verb::Credential, API_KEYS, action, request.as_ref(), decide)
            .await?;
        self.credentials.api_keys.forget(id);
        let ended = self.api_key(call, id).await?;
        self.api_key_ends(call, owner.subject.uid, &ended).await?;
        Ok(ended)
    }

    /// Notes in the ledger that a key has ended, or will by itself.
    async fn api_key_ends(&self, call: &Call, uid: SubjectUid, key: &ApiKeyView) -> Result<(), VaultError> {
        let at = key.revoked.unwrap_or(call.now);
        self.ledger(vec![LedgerEntry {
            uid,
            class: self.credential_rules(call)?.class,
            object: object_of(key.id),
            until: key.expires.filter(|_| key.revoked.is_none()).unwrap_or(Timestamp(0)),
            ..LedgerEntry::new(LedgerKind::CredentialRevoked, call.tenant.no, at)
        }])
        .await
    }

    /// The subject of a key, and how to name it to a change of its credentials.
    async fn api_key_holder(&self, call: &Call, id: KeyId) -> Result<(Arc<SubjectSnapshot>, Key), VaultError> {
        let permit = call.permit(Verb::Credential)?;
        let owner = self.api_key_owner(call.tenant.no, id).await?.ok_or(VaultError::NotFound)?;
        permit.for_group(owner.subject.group).map_err(|_| VaultError::NotFound)?;
        let subject = call.tenant.open_id(owner.subject.uid, &owner.subject.sealed_id)?;
        Ok((owner, Key::Subject(subject)))
    }

    pub(super) async fn api_key_owner(
        &self,
        tenant: TenantNo,
        id: KeyId,
    ) -> Result<Option<Arc<SubjectSnapshot>>, VaultError> {
        let tags = vec![(SecretVersion(0), mark(id))];
        let page = self.store.find_terms(tenant, API_KEYS, tags, SubjectUid(0), 1).await?;
        let Some(uid) = page.rows.first() else { return Ok(None) };
        Ok(self.store.subject_by_uid(*uid).await?.filter(|owner| owner.subject.tenant == tenant))
    }

    /// One key, without its text.
    async fn api_key(&self, call: &Call, id: KeyId) -> Result<ApiKeyView, VaultError> {
        let (owner, _) = self.api_key_holder(call, id).await?;
        let value = self.open_credential(call, &owner, API_KEYS).await?;
        let keys = keys_of(value.as_ref().map(|found| found.value.as_slice()))?;
        keys.iter().find(|key| key.id == id.0).ok_or(VaultError::NotFound)?.view(call.now)
    }

    /// A subject's keys in order of their creation, after `after`; with `states`, only those.
    pub async fn list_api_keys(
        &self,
        call: &Call,
        context: &Context,
        key: &Key,
        states: &[ApiKeyState],
        after: Option<KeyId>,
        limit: u32,
    ) -> Result<Page<ApiKeyView>, VaultError> {
        let permit = call.permit(Verb::Credential)?;
        let owner = self.resolve(call, context, key).await?;
        permit.for_group(owner.subject.group)?;
        if owner.subject.state == SubjectState::Frozen {
            return Err(VaultError::WrongState("the subject's erasure is under way"));
        }
        let value = self.open_credential(call, &owner, API_KEYS).await?;
        let keys = keys_of(value.as_ref().map(|found| found.value.as_slice()))?;
        let from = match after {
            // A key that made room meanwhile was the oldest: what follows begins at the start.
            Some(id) => keys.iter().position(|key| key.id == id.0).map_or(0, |i| i + 1),
            None => 0,
        };
        let mut rows = Vec::new();
        let mut more = false;
        for key in &keys[from..] {
            let view = key.view(call.now)?;
            if !states.is_empty() && !states.contains(&view.state) {
                continue;
            }
            more = rows.len() == limit as usize;
            if more {
                break;
            }
            rows.push(view);
        }
        let mut entry = call.record(Action::ListApiKeys, Outcome::Ok);
        entry.subject = Some(owner.subject.uid);
        self.note_read(call, &entry).await?;
        Ok(Page { rows, more })
    }
}

fn check_new(call: &Call, new: &NewApiKey) -> Result<(), VaultError> {
    let mut wrong = Vec::new();
    if new.label.chars().count() > 64 {
        wrong.push(Violation::new("label", "must have at most 64 characters"));
    }
    if new.scopes.len() > MAX_SCOPES {
        wrong.push(Violation::new("scope_ids", "must have at most 64"));
    }
    if new.sources.len() > MAX_SOURCES {
        wrong.push(Violation::new("sources", "must have at most 16"));
    }
    if new.expires.is_some_and(|end| end <= call.now) {
        wrong.push(Violation::new("expire_time", "must be in the future"));
    }
    if wrong.is_empty() { Ok(()) } else { Err(VaultError::Invalid(wrong)) }
}

/// Makes room for the last key of the list, `id`, and writes its index row, and those of all others anew if one had to go.
/// `former`, which it follows, does not go for it.
fn add(
    call: &Call,
    snapshot: &SubjectSnapshot,
    mut keys: Vec<Stored>,
    draft: &mut Draft,
    id: KeyId,
    former: Option<KeyId>,
) -> Result<(Edit, u64), VaultError> {
    let (tenant, uid) = (call.tenant.no, snapshot.subject.uid);
    let change = &mut draft.change;
    let tags = vec![(SecretVersion(0), mark(id))];
    change.require(Precondition::TermsFree { tenant, field: API_KEYS, tags, owner: uid });
    let full = keys.len() > MAX_KEYS;
    if full {
        let ended = keys.iter().position(|key| key.why_not(call.now).is_some() && former != Some(KeyId(key.id)));
        keys.remove(ended.ok_or(TOO_MANY)?);
        change.change(Mutation::DeleteTerms { tenant, uid, field: Some(API_KEYS) });
    }
    for key in keys.iter().filter(|key| full || key.id == id.0) {
        change.change(Mutation::PutTerm(find_mark(tenant, API_KEYS, mark(KeyId(key.id)), uid)));
    }
    draft.entry.operation = Some(object_of(id));
    Ok((put(&keys), id.0))
}
