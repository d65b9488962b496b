//! Passwords, API keys and codes of the tenant's own users.
//!
//! A credential is a value like any other of the class that `[credentials]` of the policy names: an entry of the
//! subject's record of that class ([`crate::vault::record`]) under a number of the vault's own ([`FieldNo::FIRST_OWN`]),
//! sealed under the class's key with an AAD of its own kind. So it is erased, held, expired, moved to other keys and
//! backed up with its class, by the code that does so for values, and an older copy of the database opens none of a
//! subject that was erased. No grant, read or export can name such a number, so no call answers one.
//!
//! What a subject has of one kind is one value: all its API keys, all its codes. What it holds is the business of that
//! kind's file. [`Vault::open_credential`] opens it, [`Vault::edit_credential`] changes it.
//!
//! A text that is presented without a subject (an API key) finds its subject by an index row of the credential's number
//! ([`find_mark`]): a random id, under version 0, which no rotation of the index secret touches. Those rows go with the
//! class and with the subject.

pub mod api_key;
pub mod api_key_check;
mod check;
pub mod code;
mod guess;
pub mod import;
pub mod password;
pub mod pepper;
pub mod recovery_code;
pub mod report;
pub mod totp;

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use crate::access::Verb;
use crate::audit::{Action, AuditRecord, Outcome};
use crate::clock::{Clock, Timestamp};
use crate::crypto::aead::MAX_SEALS;
use crate::ids::*;
use crate::keyring::KeyRef;
use crate::policy::compiled::CredentialRule;
use crate::policy::value::Value;
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::access_cache::AccessCacheOptions;
use crate::vault::admission::{Argon2Options, Argon2Pool};
use crate::vault::call::{Call, Context};
use crate::vault::error::VaultError;
use crate::vault::find::Key;
use crate::vault::read::{entry_place, open_value};
use crate::vault::record::{self, Entry, Owner, RecordView};
use crate::vault::request::Request;
use crate::vault::retry::ATTEMPTS;
use crate::vault::value::{NewValue, SealedValue};

/// The password of a subject.
pub const PASSWORD: FieldNo = FieldNo(FieldNo::FIRST_OWN.0 + 1);
/// Its TOTP secret.
pub const TOTP: FieldNo = FieldNo(FieldNo::FIRST_OWN.0 + 2);
/// Its API keys.
pub const API_KEYS: FieldNo = FieldNo(FieldNo::FIRST_OWN.0 + 3);
/// Its one-time codes.
pub const CODES: FieldNo = FieldNo(FieldNo::FIRST_OWN.0 + 4);
/// Its recovery codes.
pub const RECOVERY_CODES: FieldNo = FieldNo(FieldNo::FIRST_OWN.0 + 5);
/// What it decided about the use of its data: no credential, but kept in the same way, in a class of the vault's own.
pub const RIGHTS: FieldNo = FieldNo(FieldNo::FIRST_OWN.0 + 6);

/// Longest value of a credential, bytes.
pub const MAX_CREDENTIAL: usize = 65_536;
/// Subjects are spread over so many turns, so that a storm on one of them does not end in conflicts.
const TURNS: usize = 1_024;

/// Whether what was presented is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Ok,
    No(Why),
}

/// Why it is not; told to callers that may see it only ([`Vault::sees_why`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    Wrong,
    /// No such subject, key or code, or one that is being erased.
    Unknown,
    /// The subject has no such credential.
    None,
    /// Too many wrong tries at the subject; seconds to wait.
    Locked(u32),
    /// Too many wrong tries of this source; seconds to wait.
    SourceLocked(u32),
    /// Hashed under a pepper that is gone.
    MustReset,
    Expired,
    /// Revoked or used.
    Revoked,
    SourceRefused,
}

/// What becomes of a credential.
pub enum Edit {
    /// Nothing is written, audited or remembered.
    Keep,
    /// Nothing changes, and the audit says that it was asked for.
    Note,
    Put(Zeroizing<Vec<u8>>),
    Remove,
}

/// What is committed together: the change, and the audit entry of the call, to which a decision may add.
pub(crate) struct Draft {
    pub change: ChangeSet,
    pub entry: AuditRecord,
}

/// A credential as it was stored.
pub struct Opened {
    pub value: Zeroizing<Vec<u8>>,
    pub since: Timestamp,
    /// When it ends by its class's retention.
    pub until: Option<Timestamp>,
}

/// Memory shared by all calls about credentials.
pub(crate) struct Credentials {
    /// Changes of one subject's credentials take turns.
    turns: Box<[tokio::sync::Mutex<()>]>,
    /// Checks of one subject's password do, too.
    checks: Box<[tokio::sync::Mutex<()>]>,
    api_keys: api_key_check::ApiKeys,
    /// Where passwords are hashed.
    pub pool: Argon2Pool,
    /// Threads of the pool.
    threads: usize,
    /// One batch of an import at a time.
    imports: tokio::sync::Mutex<()>,
    guesses: guess::Guesses,
}

impl Credentials {
    /// Starts the threads that hash passwords. `cache`: how much is remembered about API keys.
    pub fn new(passwords: Argon2Options, cache: AccessCacheOptions, clock: Arc<dyn Clock>) -> Result<Self, VaultError> {
        let turns = || (0..TURNS).map(|_| tokio::sync::Mutex::new(())).collect();
        let threads = passwords.threads.max(1);
        let pool = Argon2Pool::start("password", passwords, clock.clone());
        Ok(Credentials {
            turns: turns(),
            checks: turns(),
            api_keys: api_key_check::ApiKeys::new(cache, clock),
            pool: pool.map_err(|error| VaultError::NoThreads(Arc::new(error)))?,
            threads,
            imports: tokio::sync::Mutex::new(()),
            guesses: guess::Guesses::default(),
        })
    }
}

/// The index row by which a presented text finds its subject: `mark` is a random id of 16 bytes that the text carries.
pub fn find_mark(tenant: TenantNo, field: FieldNo, mark: TermTag, uid: SubjectUid) -> TermRow {
    TermRow { tenant, field, version: SecretVersion(0), tag: mark, uid }
}

/// What removes the counted tries of a subject that is erased.
pub(crate) fn forget_tries(tenant: TenantNo, uid: SubjectUid) -> Mutation {
    guess::forget(tenant, uid)
}

impl Vault {
    /// The policy's rules for credentials.
    ///
    /// # Errors
    /// `WrongState` where the policy keeps none.
    pub(crate) fn credential_rules<'c>(&self, call: &'c Call) -> Result<&'c CredentialRule, VaultError> {
        call.tenant.policy()?.credentials().ok_or(VaultError::WrongState("the policy has no [credentials]"))
    }

    /// The class in whose record such a value lies.
    fn class_of_own(&self, call: &Call, field: FieldNo) -> Result<ClassNo, VaultError> {
        if field == RIGHTS { Ok(ClassNo::OWN) } else { Ok(self.credential_rules(call)?.class) }
    }

    /// Whether the caller is told why a verdict is no.
    pub fn sees_why(&self, call: &Call) -> bool {
        call.permit(Verb::Credential).is_ok()
    }

    /// The subject of a key that is not known to exist: `None` when it does not, was erased, or is being erased. A check
    /// then goes on as if there were one, and says no.
    pub(crate) async fn credential_holder(
        &self,
        call: &Call,
        context: &Context,
        key: &Key,
        verb: Verb,
    ) -> Result<Option<Arc<SubjectSnapshot>>, VaultError> {
        let permit = call.permit(verb)?;
        let snapshot = match self.resolve(call, context, key).await {
            Ok(snapshot) => snapshot,
            Err(VaultError::NotFound | VaultError::SubjectErased) => return Ok(None),
            Err(error) => return Err(error),
        };
        // Who may not check a subject of that group must not learn that it exists.
        let usable = matches!(snapshot.subject.state, SubjectState::Live | SubjectState::Closed);
        Ok((usable && permit.for_group(snapshot.subject.group).is_ok()).then_some(snapshot))
    }

    /// What a subject has of a kind of credential; `None` when it has none, its time is over, or its class is restricted
    /// or erased.
    ///
    /// # Errors
    /// `DataLoss` when what is stored is not what was written.
    pub(crate) async fn open_credential(
        &self,
        call: &Call,
        snapshot: &SubjectSnapshot,
        field: FieldNo,
    ) -> Result<Option<Opened>, VaultError> {
        let own = self.class_of_own(call, field)?;
        let Some(row) = snapshot.class(own).filter(|row| row.state == ClassState::Live) else {
            return Ok(None);
        };
        if row.record.is_empty() {
            return Ok(None);
        }
        let class = self.class_ref(row)?;
        let owner = Owner { vault: self.keyring.vault(), tenant: row.tenant, uid: row.uid, class: row.class };
        let view = RecordView::parse(&row.record).map_err(|_| VaultError::DataLoss)?;
        if view.revision() != row.revision {
            return Err(VaultError::DataLoss);
        }
        let walked = self
            .with_keys(class, None, |keys| {
                let mut found: Option<Entry<'_>> = None;
                let walked = view.walk(keys, &owner, call.now.day(), |entry| {
                    if entry.field == field {
                        found = Some(entry);
                    }
                });
                walked.map(|()| found)
            })
            .await?;
        let Some(entry) = walked.map_err(|_| VaultError::DataLoss)? else { return Ok(None) };
        if entry.expire.is_some_and(|end| end <= call.now) {
            return Ok(None);
        }
        let bucket = match entry.bucket {
            Bucket::NONE => None,
            bucket => match self.bucket_key(call, row.class, bucket) {
                Some(key) => Some(key),
                None => return Ok(None),
            },
        };
        let place = entry_place(&owner, class.key.dek, &entry);
        match self.with_keys(class, bucket, |keys| open_value(keys, &place, entry.sealed)).await?? {
            Value::Data(mut data) => {
                let value = Zeroizing::new(std::mem::take(data.expose_mut()));
                Ok(Some(Opened { value, since: entry.origin, until: entry.expire }))
            }
            _ => Err(VaultError::DataLoss),
        }
    }

    /// Lets `decide` say what becomes of a subject's credential, and commits that with its audit entry; decides again
    /// when something changed in between. `decide` gets what is there, opened, and may add to the change (index rows) and
    /// to the entry. Its answer is remembered under `request` and must hold no secret. Changes of one subject take turns, so
    /// of several that use something up exactly one finds it unused.
    ///
    /// # Errors
    /// `NotFound` and `SubjectErased` as for any write; what `decide` answers.
    #[allow(clippy::too_many_arguments)] // who, whose, what, and the decision
    pub(crate) async fn edit_credential<T: Serialize + DeserializeOwned>(
        &self,
        call: &Call,
        context: &Context,
        key: &Key,
        verb: Verb,
        field: FieldNo,
        action: Action,
        request: Option<&Request>,
        decide: impl FnMut(&SubjectSnapshot, Option<&[u8]>, &mut Draft) -> Result<(Edit, T), VaultError>,
    ) -> Result<T, VaultError> {
        let permit = call.permit(verb)?;
        if let Some(answer) = self.repeated(call, request).await? {
            return Ok(answer);
        }
        let snapshot = self.resolve(call, context, key).await?;
        permit.for_group(snapshot.subject.group)?;
        self.edit_credential_of(call, snapshot.subject.uid, field, action, request, decide).await
    }

    /// The same for a subject that the caller was found to be permitted to touch.
    pub(crate) async fn edit_credential_of<T: Serialize>(
        &self,
        call: &Call,
        uid: SubjectUid,
        field: FieldNo,
        action: Action,
        request: Option<&Request>,
        mut decide: impl FnMut(&SubjectSnapshot, Option<&[u8]>, &mut Draft) -> Result<(Edit, T), VaultError>,
    ) -> Result<T, VaultError> {
        let _turn = self.credentials.turns[uid.0.rem_euclid(TURNS as i64) as usize].lock().await;
        for _ in 0..ATTEMPTS {
            let snapshot = self.store.subject_by_uid(uid).await?.ok_or(VaultError::SubjectErased)?;
            let mut draft = Draft { change: ChangeSet::default(), entry: call.record(action, Outcome::Ok) };
            draft.entry.subject = Some(uid);
            draft.entry.class = Some(self.class_of_own(call, field)?);
            let there = self.open_credential(call, &snapshot, field).await?;
            let there = there.as_ref().map(|found| found.value.as_slice());
            let (edit, answer) = decide(&snapshot, there, &mut draft)?;
            let Draft { mut change, entry } = draft;
            let slot = match edit {
                Edit::Keep => return Ok(answer),
                Edit::Note => None,
                Edit::Put(_) | Edit::Remove => {
                    let subject = &snapshot.subject;
                    if field == RIGHTS && subject.state == SubjectState::Closed {
                        // Who closed the account can still say no.
                        change.require(Precondition::SubjectAt { uid, revision: subject.revision });
                    } else {
                        self.must_be_open(subject)?;
                        change.require(Precondition::SubjectLive { uid });
                    }
                    let put = if let Edit::Put(value) = edit { Some(value) } else { None };
                    self.write_credential(call, &snapshot, field, put, &mut change).await?
                }
            };
            change.note(call.tenant.no, entry.to_bytes());
            self.remember(call, request, &answer, &mut change);
            match self.store.commit(change).await {
                Ok(_) => return Ok(answer),
                Err(error) => {
                    self.keyring.release(call.tenant.no, slot.as_slice());
                    self.retry_or_answer(call, error, request).await?;
                }
            }
        }
        Err(VaultError::Conflict)
    }

    /// Seals a credential into its class's record, or takes it out of it. A slot that had to be given is answered, to be
    /// handed back if the change does not commit.
    pub(crate) async fn write_credential(
        &self,
        call: &Call,
        snapshot: &SubjectSnapshot,
        field: FieldNo,
        value: Option<Zeroizing<Vec<u8>>>,
        change: &mut ChangeSet,
    ) -> Result<Option<Slot>, VaultError> {
        let class = self.class_of_own(call, field)?;
        let (tenant, uid) = (call.tenant.no, snapshot.subject.uid);
        let former = snapshot.class(class);
        let (key, version, revision, given) = match former.filter(|row| row.slot.is_some()) {
            Some(row) if row.state != ClassState::Live => {
                return Err(VaultError::WrongState("the class is restricted"));
            }
            Some(row) if row.seals >= MAX_SEALS => {
                return Err(VaultError::WrongState("the class's key has sealed its limit: put a value of it first"));
            }
            Some(row) => {
                let (version, at) = (row.version, row.revision);
                change.require(Precondition::ClassAt { uid, class, version, revision: at });
                (self.class_ref(row)?.key, version, Revision(at.0 + 1), None)
            }
            None => {
                let version = DekVersion(former.map_or(1, |row| row.version.0 + 1));
                change.require(Precondition::ClassBelow { uid, class, version });
                let key = self.keyring.allocate(tenant, 1).await?[0];
                change.change(Mutation::TakeSlot { tenant, slot: key.slot });
                (key, version, Revision(1), Some(key.slot))
            }
        };
        let sealed = self.record_with(call, snapshot, key, revision, field, value, change).await;
        let (record, next_bucket, seals) = match sealed {
            Ok(sealed) => sealed,
            Err(error) => {
                self.keyring.release(tenant, given.as_slice());
                return Err(error);
            }
        };
        let before = former.filter(|row| row.version == version).map_or(0, |row| row.seals);
        change.change(Mutation::PutClass(ClassRow {
            uid,
            tenant,
            class,
            version,
            slot: Some(key.slot),
            dek: key.dek,
            state: ClassState::Live,
            revision,
            data_keys_issued: former.map_or(0, |row| row.data_keys_issued),
            seals: before + seals,
            next_bucket,
            record,
        }));
        Ok(given)
    }

    /// The class's record with the credential in it, or without it; its earliest bucket; how many values were sealed.
    #[allow(clippy::too_many_arguments)] // one half of `write_credential`
    async fn record_with(
        &self,
        call: &Call,
        snapshot: &SubjectSnapshot,
        key: KeyRef,
        revision: Revision,
        field: FieldNo,
        value: Option<Zeroizing<Vec<u8>>>,
        change: &mut ChangeSet,
    ) -> Result<(Vec<u8>, Option<Bucket>, u32), VaultError> {
        let policy = call.tenant.policy()?;
        let no = self.class_of_own(call, field)?;
        let (tenant, uid) = (call.tenant.no, snapshot.subject.uid);
        let class = crate::keyring::ClassRef { tenant, uid, class: no, key };
        let mut sealed = Vec::new();
        if let Some(mut value) = value {
            if value.len() > MAX_CREDENTIAL {
                return Err(VaultError::Quota("a subject has too many credentials of this kind"));
            }
            let group = self.group_retention(call, snapshot.subject.group).await?;
            let expiry = policy.expiry(no, group.of(no), call.now);
            let new = NewValue { field, value: Value::data(std::mem::take(&mut *value)), origin: None };
            sealed.push(self.seal_value(call, class, revision, &new, call.now, expiry, change).await?);
        }
        let owner = Owner { vault: self.keyring.vault(), tenant, uid, class: no };
        let former = snapshot.class(no).filter(|row| row.slot.is_some()).map_or(&[][..], |row| &row.record);
        let merged = self
            .with_keys(class, None, |keys| {
                let mut entries: Vec<Entry<'_>> = Vec::new();
                if !former.is_empty() {
                    let view = RecordView::parse(former).map_err(|_| VaultError::DataLoss)?;
                    let keep = |entry: Entry<'_>| entry.field != field;
                    view.walk(keys, &owner, call.now.day(), |entry| entries.extend(keep(entry).then_some(entry)))
                        .map_err(|_| VaultError::DataLoss)?;
                }
                entries.extend(sealed.iter().map(SealedValue::entry));
                let next = entries.iter().map(|e| e.bucket).filter(|b| *b != Bucket::NONE).min();
                Ok::<_, VaultError>((record::encode(keys, &owner, revision, &mut entries), next))
            })
            .await??;
        Ok((merged.0, merged.1, sealed.len() as u32))
    }
}
