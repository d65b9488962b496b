//! Passwords: set, verify, change, remove, unlock.
//!
//! ```text
//! text -> Unicode NFC -> HMAC(pepper, text) -> Argon2id -> PHC string -> sealed value of the class
//! ```
//! A check that finds nothing to compare with does the same work over a dummy. A hash of an older making (parameters,
//! pepper, another system's algorithm) is checked as it is and made anew once its password was right.

use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization;
use zeroize::Zeroizing;

use super::{Draft, Edit, PASSWORD, Verdict, Why};
use crate::access::Verb;
use crate::audit::{Action, Outcome};
use crate::clock::Timestamp;
use crate::crypto::common_password::is_common;
use crate::crypto::foreign_hash::{FastRecipe, ForeignHash};
use crate::crypto::password::{Argon2Cost, PasswordPepper};
use crate::ids::*;
use crate::keyring::SecretKind;
use crate::policy::compiled::CredentialRule;
use crate::storage::SubjectSnapshot;
use crate::telemetry;
use crate::vault::Vault;
use crate::vault::admission::AdmissionError;
use crate::vault::call::{Call, Context};
use crate::vault::error::{VaultError, Violation};
use crate::vault::find::Key;
use crate::vault::request::Request;

/// Longest password, bytes of UTF-8: beyond any that a person types, and hashed in no time.
pub const MAX_PASSWORD: usize = 1_024;
/// Longest name of a source, bytes.
pub const MAX_SOURCE: usize = 256;

/// A password as it was presented; `Debug` shows nothing.
pub struct PasswordText {
    nfc: Zeroizing<String>,
    /// As it was typed, where that is something else: other systems hashed it so.
    typed: Option<Zeroizing<String>>,
}

impl PasswordText {
    /// From the bytes of a request; `path` names the field.
    ///
    /// # Errors
    /// `ValueInvalid` when it is empty, longer than 1,024 bytes, not UTF-8, or holds a NUL.
    pub fn parse(path: &str, bytes: Zeroizing<Vec<u8>>) -> Result<Self, VaultError> {
        let refused = |rule: &str| Err(VaultError::ValueInvalid(vec![Violation::new(path, rule)]));
        if bytes.is_empty() {
            return refused("must not be empty");
        }
        if bytes.len() > MAX_PASSWORD {
            return refused("must not be longer than 1,024 bytes");
        }
        let Ok(text) = std::str::from_utf8(&bytes) else { return refused("must be UTF-8") };
        if text.contains('\0') {
            return refused("must not contain NUL");
        }
        let nfc: Zeroizing<String> = Zeroizing::new(text.nfc().collect());
        let typed = (nfc.as_str() != text).then(|| Zeroizing::new(text.to_owned()));
        Ok(PasswordText { nfc, typed })
    }

    /// Whether the policy takes it as a new password.
    fn check_new(&self, path: &str, rules: &CredentialRule) -> Result<(), VaultError> {
        let refused = |rule: String| Err(VaultError::ValueInvalid(vec![Violation::new(path, rule)]));
        if self.nfc.chars().count() < rules.password_min_length as usize {
            return refused(format!("must have at least {} characters", rules.password_min_length));
        }
        if !rules.password_common && is_common(&self.nfc) {
            return refused("is one of the most common passwords".into());
        }
        Ok(())
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.nfc.as_bytes()
    }
}

impl std::fmt::Debug for PasswordText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PasswordText(..)")
    }
}

/// What is sealed of a password.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoredPassword {
    /// Argon2id PHC string over HMAC(pepper, ..), or the hash of another system as it came.
    pub hash: String,
    /// Version of the pepper; `None` for another system's hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pepper: Option<SecretVersion>,
    /// What is under the pepper where that is not the password but a fast hash of it ([`FastRecipe::text`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inner: Option<String>,
    /// When the password was set or taken over.
    pub set: Timestamp,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub must_change: bool,
}

impl StoredPassword {
    pub fn parse(bytes: &[u8]) -> Result<Self, VaultError> {
        serde_json::from_slice(bytes).map_err(|_| VaultError::DataLoss)
    }

    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(crate::vault::to_json(self))
    }

    /// Whether it would be made otherwise today.
    pub fn is_outdated(&self, pepper: SecretVersion, cost: Argon2Cost) -> bool {
        let right = Argon2Cost::of(&self.hash).is_some_and(|made| {
            made.memory_kib >= cost.memory_kib && made.passes >= cost.passes && made.lanes >= cost.lanes
        });
        !right || self.inner.is_some() || self.pepper != Some(pepper)
    }
}

/// What a check answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    pub verdict: Verdict,
    /// It is right, and must be changed.
    pub must_change: bool,
}

/// What a change answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Changed {
    pub verdict: Verdict,
    /// `None` where nothing was set.
    pub at: Option<Timestamp>,
}

impl From<AdmissionError> for VaultError {
    fn from(error: AdmissionError) -> Self {
        match error {
            AdmissionError::Busy { retry_ms } => {
                metrics::counter!(telemetry::PASSWORDS_SHED).increment(1);
                VaultError::Busy { retry_ms }
            }
            AdmissionError::Closed => VaultError::Busy { retry_ms: 1_000 },
            AdmissionError::Password(_) => VaultError::DataLoss,
        }
    }
}

impl Vault {
    /// Runs `f` with a version of the tenant's pepper; `None` once it was retired.
    pub(crate) fn with_pepper<R>(
        &self,
        call: &Call,
        version: SecretVersion,
        f: impl FnOnce(&PasswordPepper) -> R,
    ) -> Option<R> {
        let settings = &call.tenant.settings;
        if version != settings.pepper && Some(version) != settings.pepper_retiring {
            return None;
        }
        let derive = PasswordPepper::derive;
        self.keyring.with_secret(call.tenant.no, SecretKind::PasswordPepper, version, |secret| f(&derive(secret)))
    }

    /// HMAC(pepper, bytes) under the present pepper.
    pub(super) fn peppered(
        &self,
        call: &Call,
        bytes: &[u8],
    ) -> Result<(SecretVersion, Zeroizing<Vec<u8>>), VaultError> {
        let version = call.tenant.settings.pepper;
        let keyed = self.with_pepper(call, version, |pepper| Zeroizing::new(pepper.apply(bytes).to_vec()));
        Ok((version, keyed.ok_or(VaultError::Busy { retry_ms: 100 })?))
    }

    async fn make_hash(&self, call: &Call, text: &PasswordText) -> Result<StoredPassword, VaultError> {
        let (version, keyed) = self.peppered(call, text.bytes())?;
        let hash = self.credentials.pool.hash(keyed).await?;
        Ok(StoredPassword { hash, pepper: Some(version), inner: None, set: call.now, must_change: false })
    }

    /// Whether the password is that of the hash. `None`: its pepper was retired; the same work was done over a dummy.
    async fn compare(
        &self,
        call: &Call,
        stored: &StoredPassword,
        text: &PasswordText,
    ) -> Result<Option<bool>, VaultError> {
        let pool = &self.credentials.pool;
        let Some(version) = stored.pepper else {
            let limit = pool.limit_kib();
            let hash = ForeignHash::parse(&stored.hash, limit).map_err(|_| VaultError::DataLoss)?;
            let first = text.typed.as_ref().unwrap_or(&text.nfc).clone();
            let second = text.typed.as_ref().map(|_| text.nfc.clone());
            let right = pool.run(move |memory| {
                if hash.verify(first.as_bytes(), memory)? {
                    return Ok(true);
                }
                second.map_or(Ok(false), |nfc| hash.verify(nfc.as_bytes(), memory))
            });
            return right.await?.map(Some).map_err(|e| AdmissionError::Password(e).into());
        };
        let digest = match &stored.inner {
            Some(recipe) => {
                let typed = text.typed.as_ref().unwrap_or(&text.nfc);
                FastRecipe::parse(recipe).ok_or(VaultError::DataLoss)?.digest(typed.as_bytes())
            }
            None => Zeroizing::new(text.bytes().to_vec()),
        };
        let keyed = self.with_pepper(call, version, |pepper| Zeroizing::new(pepper.apply(&digest).to_vec()));
        let Some(keyed) = keyed else {
            pool.verify_nothing(digest).await?;
            return Ok(None);
        };
        Ok(Some(pool.verify(Some(&stored.hash), keyed).await?))
    }

    /// Sets a subject's password; wrong tries are forgotten.
    #[allow(clippy::too_many_arguments)] // the parts of one request
    pub async fn set_password(
        &self,
        call: &Call,
        context: &Context,
        key: &Key,
        text: &PasswordText,
        must_change: bool,
        request: Option<Request>,
        validate_only: bool,
    ) -> Result<Timestamp, VaultError> {
        let permit = call.permit(Verb::Credential)?;
        text.check_new("password", self.credential_rules(call)?)?;
        if let Some(at) = self.repeated(call, request.as_ref()).await? {
            return Ok(at);
        }
        // Nobody is hashed for in vain.
        let snapshot = self.resolve(call, context, key).await?;
        permit.for_group(snapshot.subject.group)?;
        self.must_be_open(&snapshot.subject)?;
        if validate_only {
            return Ok(call.now);
        }
        let stored = StoredPassword { must_change, ..self.make_hash(call, text).await? };
        let set = |snapshot: &SubjectSnapshot, _: Option<&[u8]>, draft: &mut Draft| {
            self.clear_tries(call, snapshot.subject.uid, &mut draft.change);
            Ok((Edit::Put(stored.to_bytes()), call.now))
        };
        let (verb, action) = (Verb::Credential, Action::SetPassword);
        self.edit_credential(call, context, key, verb, PASSWORD, action, request.as_ref(), set).await
    }

    /// Whether the password is the subject's. Unknown, wrong and locked take the same work and give the same answer.
    pub async fn verify_password(
        &self,
        call: &Call,
        context: &Context,
        key: &Key,
        text: &PasswordText,
        source: &[u8],
    ) -> Result<Checked, VaultError> {
        Ok(self.check_password(call, context, key, text, source, true).await?.0)
    }

    /// The check, and what was stored when it was right.
    async fn check_password(
        &self,
        call: &Call,
        context: &Context,
        key: &Key,
        text: &PasswordText,
        source: &[u8],
        renew: bool,
    ) -> Result<(Checked, Option<StoredPassword>), VaultError> {
        let rules = self.credential_rules(call)?;
        let holder = self.credential_holder(call, context, key, Verb::Verify).await?;
        let uid = holder.as_ref().map_or_else(|| self.nobody(call, key.bytes()), |s| s.subject.uid.0);
        let turn = self.check_turn(uid).await?;
        let counted = self.counted(call, rules, uid, source).await?;
        let stored = match &holder {
            Some(snapshot) => self.open_credential(call, snapshot, PASSWORD).await?,
            None => None,
        };
        let stored = stored.map(|found| StoredPassword::parse(&found.value)).transpose()?;
        let why = match (&holder, counted.wait, &stored) {
            (None, ..) => Some(Why::Unknown),
            (_, Some(wait), _) => Some(wait),
            (_, _, None) => Some(Why::None),
            (_, None, Some(stored)) => match self.compare(call, stored, text).await? {
                Some(true) => None,
                Some(false) => Some(Why::Wrong),
                None => Some(Why::MustReset),
            },
        };
        if matches!(why, Some(Why::Unknown | Why::None | Why::Locked(_) | Why::SourceLocked(_))) {
            self.credentials.pool.verify_nothing(Zeroizing::new(text.bytes().to_vec())).await?;
        }
        match why {
            None => self.count_right(call, &counted).await?,
            Some(_) => self.count_wrong(call, &counted).await?,
        }
        drop(turn);
        let outcome = if why.is_none() { Outcome::Ok } else { Outcome::Denied };
        let mut entry = call.record(Action::VerifyPassword, outcome);
        entry.subject = holder.as_ref().map(|snapshot| snapshot.subject.uid);
        self.note_read(call, &entry).await?;
        metrics::counter!(telemetry::PASSWORDS_CHECKED, "outcome" => word(why)).increment(1);
        let verdict = why.map_or(Verdict::Ok, Verdict::No);
        let stored = stored.filter(|_| why.is_none());
        let must_change = stored.as_ref().is_some_and(|stored| stored.must_change);
        if let Some(stored) = stored.as_ref().filter(|_| renew) {
            self.renew(call, context, key, text, stored).await;
        }
        Ok((Checked { verdict, must_change }, stored))
    }

    /// Hashes a right password anew where it would be made otherwise today. That it cannot be done now is no reason to
    /// turn the user away: the next login tries again.
    async fn renew(&self, call: &Call, context: &Context, key: &Key, text: &PasswordText, stored: &StoredPassword) {
        if !stored.is_outdated(call.tenant.settings.pepper, self.credentials.pool.cost()) {
            return;
        }
        let before = stored.to_bytes();
        let renewed = async {
            let fresh = self.make_hash(call, text).await?;
            let fresh = StoredPassword { set: stored.set, must_change: stored.must_change, ..fresh };
            let put = |_: &SubjectSnapshot, there: Option<&[u8]>, _: &mut Draft| {
                // Somebody set another one beside us.
                let same = there == Some(before.as_slice());
                Ok((if same { Edit::Put(fresh.to_bytes()) } else { Edit::Keep }, ()))
            };
            let action = Action::RehashPassword;
            self.edit_credential(call, context, key, Verb::Verify, PASSWORD, action, None, put).await
        };
        if let Err(error) = renewed.await {
            tracing::debug!(%error, "a password was not hashed anew");
        }
    }

    /// Sets a new password if the old one is right.
    #[allow(clippy::too_many_arguments)] // the parts of one request
    pub async fn change_password(
        &self,
        call: &Call,
        context: &Context,
        key: &Key,
        old: &PasswordText,
        new: &PasswordText,
        source: &[u8],
    ) -> Result<Changed, VaultError> {
        call.permit(Verb::Verify)?;
        new.check_new("new_password", self.credential_rules(call)?)?;
        if old.bytes() == new.bytes() {
            let rule = Violation::new("new_password", "must not be the old password");
            return Err(VaultError::ValueInvalid(vec![rule]));
        }
        let (checked, stored) = self.check_password(call, context, key, old, source, false).await?;
        let Some(stored) = stored else { return Ok(Changed { verdict: checked.verdict, at: None }) };
        let before = stored.to_bytes();
        let fresh = self.make_hash(call, new).await?.to_bytes();
        let put = |snapshot: &SubjectSnapshot, there: Option<&[u8]>, draft: &mut Draft| {
            if there != Some(before.as_slice()) {
                return Err(VaultError::Conflict);
            }
            self.clear_tries(call, snapshot.subject.uid, &mut draft.change);
            Ok((Edit::Put(fresh.clone()), call.now))
        };
        let action = Action::ChangePassword;
        let at = self.edit_credential(call, context, key, Verb::Verify, PASSWORD, action, None, put).await?;
        Ok(Changed { verdict: Verdict::Ok, at: Some(at) })
    }

    /// Removes a subject's password; answers whether there was one.
    pub async fn remove_password(
        &self,
        call: &Call,
        context: &Context,
        key: &Key,
        request: Option<Request>,
    ) -> Result<bool, VaultError> {
        let remove = |_: &SubjectSnapshot, there: Option<&[u8]>, _: &mut Draft| {
            Ok(if there.is_some() { (Edit::Remove, true) } else { (Edit::Keep, false) })
        };
        let (verb, action) = (Verb::Credential, Action::RemovePassword);
        self.edit_credential(call, context, key, verb, PASSWORD, action, request.as_ref(), remove).await
    }

    /// Forgets the wrong tries of a subject; answers whether it was locked.
    pub async fn unlock_password(&self, call: &Call, context: &Context, key: &Key) -> Result<bool, VaultError> {
        let permit = call.permit(Verb::Credential)?;
        let snapshot = self.resolve(call, context, key).await?;
        permit.for_group(snapshot.subject.group)?;
        let uid = snapshot.subject.uid;
        let was_locked = self.is_locked(call, uid).await?;
        let mut change = crate::storage::ChangeSet::default();
        change.require(crate::storage::Precondition::SubjectLive { uid });
        self.clear_tries(call, uid, &mut change);
        let mut entry = call.record(Action::UnlockPassword, Outcome::Ok);
        entry.subject = Some(uid);
        change.note(call.tenant.no, entry.to_bytes());
        self.store.commit(change).await?;
        Ok(was_locked)
    }
}

/// For metrics.
fn word(why: Option<Why>) -> &'static str {
    match why {
        None => "ok",
        Some(Why::Wrong) => "wrong",
        Some(Why::Unknown) => "unknown",
        Some(Why::None) => "none",
        Some(Why::Locked(_)) => "locked",
        Some(Why::SourceLocked(_)) => "source_locked",
        Some(Why::MustReset) => "must_reset",
        Some(Why::Expired) => "expired",
        Some(Why::Revoked) => "revoked",
        Some(Why::SourceRefused) => "source_refused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> Result<PasswordText, VaultError> {
        PasswordText::parse("password", Zeroizing::new(bytes.to_vec()))
    }

    fn refused(result: Result<PasswordText, VaultError>) -> bool {
        matches!(result, Err(VaultError::ValueInvalid(_)))
    }

    #[test]
    fn t22_two_spellings_of_one_text_are_one_password_and_nothing_else_is_taken() {
        let (composed, decomposed) =
            (text("pässwörd☃".as_bytes()).unwrap(), text("pa\u{308}sswo\u{308}rd☃".as_bytes()).unwrap());
        assert_eq!(composed.bytes(), decomposed.bytes());
        assert!(composed.typed.is_none() && decomposed.typed.is_some());
        assert!(refused(text(b"")) && refused(text(b"a\0b")) && refused(text(&[0xff, 0xfe])));
        assert!(text(&[b'x'; 1_024]).is_ok() && refused(text(&[b'x'; 1_025])));
    }

    #[test]
    fn t26_debug_shows_nothing() {
        assert_eq!(format!("{:?}", text(b"canary-password").unwrap()), "PasswordText(..)");
    }

    #[test]
    fn what_would_be_made_otherwise_today_is_outdated() {
        let phc = |m: u32, t: u32| {
            format!("$argon2id$v=19$m={m},t={t},p=1$AAECAwQFBgcICQoLDA0ODw$5LzIIXvch3JdTOvNzWeGZ16UVocX0TxkVMAfrZ0tyH8")
        };
        let stored = |hash: String, pepper: Option<u16>, inner: Option<&str>| StoredPassword {
            hash,
            pepper: pepper.map(SecretVersion),
            inner: inner.map(str::to_owned),
            set: Timestamp(0),
            must_change: false,
        };
        let cost = Argon2Cost { memory_kib: 256, passes: 2, lanes: 1 };
        let old = |stored: StoredPassword| stored.is_outdated(SecretVersion(2), cost);
        assert!(!old(stored(phc(256, 2), Some(2), None)) && !old(stored(phc(512, 3), Some(2), None)));
        assert!(old(stored(phc(128, 2), Some(2), None)) && old(stored(phc(256, 1), Some(2), None)));
        assert!(old(stored(phc(256, 2), Some(1), None)) && old(stored(phc(256, 2), None, None)));
        assert!(old(stored(phc(256, 2), Some(2), Some("md5:first:00"))) && old(stored("$2b$".into(), None, None)));
    }
}
