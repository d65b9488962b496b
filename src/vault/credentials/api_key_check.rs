//! Whether a text is an API key that works, and what it may do.
//!
//! ```text
//! text -> HMAC under a key of this process -> known? --------------------------------> slot
//!                                             else checksum (HMAC) -> index row -> Argon2id, shared by all who wait
//! slot -> the subject's row of this moment -> there, live, same revision? ----------> verdict
//!                                             else the credential is opened again
//! ```
//! What is remembered says only that a text is that key's. Whether the key works is looked at in every check, in the subject's
//! row: so a revocation, an erasure or a hold counts for every check that starts after its answer, and nothing has to be told.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use ipnet::IpNet;
use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::api_key::{admission, keys_of, put};
use super::{API_KEYS, Draft, Edit, Verdict, Why};
use crate::access::Verb;
use crate::audit::{Action, Outcome};
use crate::auth::{ApiKey, KeyId, MAX_TEXT};
use crate::clock::{Clock, Timestamp};
use crate::ids::*;
use crate::storage::*;
use crate::telemetry;
use crate::vault::Vault;
use crate::vault::access_cache::{self, AccessCache, AccessCacheOptions, Tag};
use crate::vault::access_keys::object_of;
use crate::vault::call::Call;
use crate::vault::error::VaultError;
use crate::vault::expiry::Progress;

/// Most uses that wait to be written down; more are not written that day.
const MAX_USES: usize = 100_000;

/// A key that works: whose it is and what it may do.
pub struct FoundApiKey {
    pub id: KeyId,
    pub subject: SubjectId,
    pub scopes: Arc<[u16]>,
    pub expires: Option<Timestamp>,
}

/// A key whose text was found to be right.
struct Slot {
    tenant: TenantNo,
    uid: SubjectUid,
    id: KeyId,
    /// The PHC string that the text fitted: a key of that id with another one is another key.
    hash: Zeroizing<String>,
    /// The version of the pepper that it fitted.
    pepper: SecretVersion,
    facts: ArcSwapOption<Facts>,
    used_day: AtomicI64,
}

/// What a slot's key may do, as the class's row of that revision says.
struct Facts {
    version: DekVersion,
    revision: Revision,
    /// When the credential itself ends by its class's retention.
    until: Option<Timestamp>,
    revoked: bool,
    expires: Option<Timestamp>,
    scopes: Arc<[u16]>,
    sources: Box<[IpNet]>,
}

/// Keys used today, by tenant and subject: each key's id and the day.
type Uses = HashMap<(TenantNo, SubjectUid), Vec<(u64, i64)>>;

/// What this process remembers about API keys.
pub(crate) struct ApiKeys {
    cache: AccessCache<Arc<Slot>, Arc<VaultError>>,
    /// Waits to be written down by a job.
    uses: Mutex<Uses>,
    /// Checks by their outcome, by [`Counted`].
    checked: [OnceLock<metrics::Counter>; 3],
}

/// What a check is counted as.
#[derive(Clone, Copy)]
enum Counted {
    Ok,
    No,
    Forged,
}

impl ApiKeys {
    pub fn new(options: AccessCacheOptions, clock: Arc<dyn Clock>) -> Self {
        ApiKeys { cache: AccessCache::new(options, clock), uses: Mutex::default(), checked: Default::default() }
    }

    /// Forgets what is known about a key's text.
    pub fn forget(&self, key: KeyId) {
        self.cache.purge(key);
    }

    fn count(&self, what: Counted) {
        let counter = self.checked[what as usize].get_or_init(|| {
            let verdict = match what {
                Counted::Ok => "ok",
                Counted::No => "no",
                Counted::Forged => "forged",
            };
            metrics::counter!(telemetry::API_KEYS_CHECKED, "verdict" => verdict)
        });
        counter.increment(1);
    }

    fn used(&self, slot: &Slot, day: i64) {
        if slot.used_day.swap(day, Ordering::Relaxed) == day {
            return;
        }
        let mut uses = self.uses.lock();
        if uses.len() < MAX_USES {
            uses.entry((slot.tenant, slot.uid)).or_default().push((slot.id.0, day));
        }
    }
}

/// An error for each of the calls that shared the check it came from.
fn shared(error: &VaultError) -> VaultError {
    match error {
        VaultError::Busy { retry_ms } => VaultError::Busy { retry_ms: *retry_ms },
        VaultError::DataLoss => VaultError::DataLoss,
        VaultError::Store(error) => VaultError::Store(error.clone()),
        other => {
            tracing::warn!(error = %other, "an API key could not be checked");
            VaultError::Busy { retry_ms: 1_000 }
        }
    }
}

impl Vault {
    /// Whether a text is a key that works, from that address. Unknown, wrong, revoked and expired keys with a right checksum
    /// take one Argon2id run the first time and get one answer; a forged one costs an HMAC.
    ///
    /// # Errors
    /// `Busy` when too many first uses of keys are being checked.
    pub async fn verify_api_key(
        &self,
        call: &Call,
        text: &str,
        source: Option<IpAddr>,
    ) -> Result<(Verdict, Option<FoundApiKey>), VaultError> {
        let permit = call.permit(Verb::Verify)?;
        self.credential_rules(call)?;
        if text.len() > MAX_TEXT {
            self.credentials.api_keys.count(Counted::Forged);
            return Ok((Verdict::No(Why::Unknown), None));
        }
        let cache = &self.credentials.api_keys.cache;
        let tag = cache.tag(text);
        let slot = match cache.get(&tag) {
            Some(access_cache::Verdict::Accepted(slot)) => slot,
            Some(access_cache::Verdict::Refused) => return self.api_key_refused(call, None, Why::Unknown),
            None => match self.find_api_key(call, text, tag).await? {
                Found::Slot(slot) => slot,
                Found::Forged => {
                    self.credentials.api_keys.count(Counted::Forged);
                    return Ok((Verdict::No(Why::Unknown), None));
                }
                Found::Nothing => return self.api_key_refused(call, None, Why::Unknown),
            },
        };
        // What was found right under a pepper that is gone is not right any more.
        if slot.tenant != call.tenant.no || !self.has_pepper(slot.pepper) {
            return self.api_key_refused(call, None, Why::Unknown);
        }
        let Some(owner) = self.store.subject_by_uid(slot.uid).await? else {
            return self.api_key_refused(call, None, Why::Unknown);
        };
        let usable = matches!(owner.subject.state, SubjectState::Live | SubjectState::Closed);
        if !usable || permit.for_group(owner.subject.group).is_err() {
            return self.api_key_refused(call, Some(slot.uid), Why::Unknown);
        }
        let Some(facts) = self.api_key_facts(call, &slot, &owner).await? else {
            return self.api_key_refused(call, Some(slot.uid), Why::Unknown);
        };
        let inside = |address: &IpAddr| facts.sources.iter().any(|network| network.contains(address));
        let why = match () {
            _ if facts.revoked => Some(Why::Revoked),
            _ if facts.expires.is_some_and(|end| end <= call.now) => Some(Why::Expired),
            _ if !facts.sources.is_empty() && !source.is_some_and(|address| inside(&address.to_canonical())) => {
                Some(Why::SourceRefused)
            }
            _ => None,
        };
        if let Some(why) = why {
            return self.api_key_refused(call, Some(slot.uid), why);
        }
        let subject = call.tenant.open_id(slot.uid, &owner.subject.sealed_id)?;
        self.note_api_key(call, Some(slot.uid), Some(slot.id), Outcome::Ok)?;
        self.credentials.api_keys.used(&slot, call.wall.day());
        self.credentials.api_keys.count(Counted::Ok);
        let (scopes, expires) = (facts.scopes.clone(), facts.expires);
        Ok((Verdict::Ok, Some(FoundApiKey { id: slot.id, subject, scopes, expires })))
    }

    fn api_key_refused(
        &self,
        call: &Call,
        uid: Option<SubjectUid>,
        why: Why,
    ) -> Result<(Verdict, Option<FoundApiKey>), VaultError> {
        self.note_api_key(call, uid, None, Outcome::Denied)?;
        self.credentials.api_keys.count(Counted::No);
        Ok((Verdict::No(why), None))
    }

    /// Puts the check into the read audit. The answer shows no value, so it does not wait until the entry is durable: a crash
    /// may take the entries of the last milliseconds with it.
    fn note_api_key(
        &self,
        call: &Call,
        uid: Option<SubjectUid>,
        id: Option<KeyId>,
        outcome: Outcome,
    ) -> Result<(), VaultError> {
        let mut entry = call.record(Action::VerifyApiKey, outcome);
        entry.subject = uid;
        entry.operation = id.map(object_of);
        self.read_log.note(call.tenant.no, &entry).map_err(|_| VaultError::AuditUnavailable)?;
        self.watch_decoys(call.tenant.no, std::slice::from_ref(&entry));
        Ok(())
    }

    /// The first use of a text, or its first for some time.
    async fn find_api_key(&self, call: &Call, text: &str, tag: Tag) -> Result<Found, VaultError> {
        let peppers = self.user_peppers(&call.tenant)?;
        let Ok((key, which)) = ApiKey::parse(text, &peppers.peppers) else { return Ok(Found::Forged) };
        let pepper = &peppers.peppers[which];
        let check = async || {
            let tenant = call.tenant.no;
            let mut known = None;
            if let Some(owner) = self.api_key_owner(tenant, key.id()).await.map_err(Arc::new)? {
                let value = self.open_credential(call, &owner, API_KEYS).await.map_err(Arc::new)?;
                let keys = keys_of(value.as_ref().map(|found| found.value.as_slice())).map_err(Arc::new)?;
                let hash = keys.iter().find(|one| one.id == key.id().0).map(|one| Zeroizing::new(one.hash.clone()));
                known = hash.map(|hash| (owner.subject.uid, hash));
            }
            let password = Zeroizing::new(key.password(pepper).to_vec());
            let hash = known.as_ref().map(|(_, hash)| hash.as_str());
            let right = self.access.pool.verify(hash, password).await.map_err(|e| Arc::new(admission(e)))?;
            Ok(match known {
                Some((uid, hash)) if right => access_cache::Verdict::Accepted(Arc::new(Slot {
                    tenant,
                    uid,
                    id: key.id(),
                    hash,
                    pepper: pepper.version,
                    facts: ArcSwapOption::empty(),
                    used_day: AtomicI64::new(0),
                })),
                _ => access_cache::Verdict::Refused,
            })
        };
        match self.credentials.api_keys.cache.verify(tag, key.id(), check).await {
            Ok(access_cache::Verdict::Accepted(slot)) => Ok(Found::Slot(slot)),
            Ok(access_cache::Verdict::Refused) => Ok(Found::Nothing),
            Err(error) => Err(shared(&error)),
        }
    }

    /// What the key may do now; `None` when it is not among the subject's keys, or they are not to be looked at.
    async fn api_key_facts(
        &self,
        call: &Call,
        slot: &Slot,
        owner: &SubjectSnapshot,
    ) -> Result<Option<Arc<Facts>>, VaultError> {
        let class = self.credential_rules(call)?.class;
        let Some(row) = owner.class(class).filter(|row| row.state == ClassState::Live) else { return Ok(None) };
        if let Some(facts) = slot.facts.load_full()
            && (facts.version, facts.revision) == (row.version, row.revision)
            && facts.until.is_none_or(|end| call.now < end)
        {
            return Ok(Some(facts));
        }
        let Some(found) = self.open_credential(call, owner, API_KEYS).await? else { return Ok(None) };
        let keys = keys_of(Some(found.value.as_slice()))?;
        let key = keys.iter().find(|key| key.id == slot.id.0 && key.hash == *slot.hash);
        let Some(key) = key else { return Ok(None) };
        let facts = Arc::new(Facts {
            version: row.version,
            revision: row.revision,
            until: found.until,
            revoked: key.revoked.is_some(),
            expires: key.expires,
            scopes: key.scopes.as_slice().into(),
            sources: key.networks()?.into(),
        });
        slot.facts.store(Some(facts.clone()));
        Ok(Some(facts))
    }

    /// Writes down the days on which keys were last used, of at most `limit` subjects. For a job; what a crash takes is the
    /// day of the last use.
    pub async fn write_api_key_uses(&self, limit: usize) -> Result<Progress, VaultError> {
        let (batch, more) = {
            let mut uses = self.credentials.api_keys.uses.lock();
            let taken: Vec<_> = uses.keys().copied().take(limit).collect();
            let batch: Vec<_> = taken.into_iter().filter_map(|whose| uses.remove_entry(&whose)).collect();
            (batch, !uses.is_empty())
        };
        let mut progress = Progress { done: 0, more };
        for ((tenant, uid), days) in batch {
            // A tenant or a subject that is gone, closed or being erased has nothing to write to.
            let Ok(tenant) = self.tenant(tenant) else { continue };
            let call = self.job_call(tenant);
            let decide = |_: &SubjectSnapshot, there: Option<&[u8]>, _: &mut Draft| {
                let mut keys = keys_of(there)?;
                let mut changed = false;
                for key in &mut keys {
                    let day = days.iter().filter(|(id, _)| *id == key.id).map(|(_, day)| *day).max();
                    changed |= day.is_some_and(|day| day > key.used_day);
                    key.used_day = day.unwrap_or(0).max(key.used_day);
                }
                Ok((if changed { put(&keys) } else { Edit::Keep }, ()))
            };
            match self.edit_credential_of::<()>(&call, uid, API_KEYS, Action::VerifyApiKey, None, decide).await {
                Ok(()) => progress.done += 1,
                Err(error @ VaultError::Store(_)) => return Err(error),
                Err(_) => {}
            }
        }
        Ok(progress)
    }
}

enum Found {
    Slot(Arc<Slot>),
    /// No key of this tenant: it fails the checksum.
    Forged,
    Nothing,
}
