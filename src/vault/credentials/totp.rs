//! TOTP secrets of users: sealed as they are, since a code is computed from them. A step that was used is refused, and so is
//! every one before it; wrong codes in a row make a subject wait.

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::{Draft, Edit, TOTP, Verdict, Why};
use crate::access::Verb;
use crate::audit::Action;
use crate::auth::TotpSecret;
use crate::clock::Timestamp;
use crate::policy::compiled::CredentialRule;
use crate::storage::SubjectSnapshot;
use crate::vault::call::{Call, Context};
use crate::vault::error::VaultError;
use crate::vault::find::Key;
use crate::vault::request::Request;
use crate::vault::{Vault, hex, to_json};

/// No step was used.
const NEVER: i64 = -1;
/// Wrong codes in a row that cost nothing.
const FREE_TRIES: u32 = 3;

/// A secret that was made, to be shown once.
pub struct EnrolledTotp {
    /// Base32 without padding.
    pub secret: Zeroizing<String>,
    /// The `otpauth:` text of a QR code.
    pub uri: Zeroizing<String>,
}

/// What is kept, sealed.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    /// The secret that counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<Bytes>,
    /// Made, and not confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pending: Option<Bytes>,
    /// The last step whose code was taken.
    used_step: i64,
    /// Wrong codes in a row.
    wrong: u32,
    /// Until then nothing is checked.
    wait: Timestamp,
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Bytes(#[serde(with = "hex")] Vec<u8>);

impl Drop for Bytes {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl Bytes {
    fn secret(&self) -> Result<TotpSecret, VaultError> {
        TotpSecret::from_bytes(&self.0).ok_or(VaultError::DataLoss)
    }
}

impl Stored {
    fn read(value: Option<&[u8]>) -> Result<Option<Self>, VaultError> {
        value.map(|value| serde_json::from_slice(value).map_err(|_| VaultError::DataLoss)).transpose()
    }

    fn put(&self) -> Edit {
        Edit::Put(Zeroizing::new(to_json(self)))
    }

    /// Seconds of the wait that is under way.
    fn waits(&self, now: Timestamp) -> Option<u32> {
        let ms = u64::try_from(self.wait.0 - now.0).ok().filter(|ms| *ms > 0)?;
        Some(u32::try_from(ms.div_ceil(1_000)).unwrap_or(u32::MAX))
    }

    /// One more wrong code: from the third on a second, twice as long each time, the policy's longest in the end.
    fn missed(&mut self, rules: &CredentialRule, now: Timestamp) {
        self.wrong = self.wrong.saturating_add(1);
        let longest = i64::from(rules.lock_seconds);
        let seconds = match self.wrong {
            n if n >= rules.lock_tries => longest,
            n if n >= FREE_TRIES => (1i64 << (n - FREE_TRIES).min(32)).min(longest),
            _ => 0,
        };
        self.wait = now.plus_ms(seconds * 1_000);
    }
}

/// Whether a subject has a secret that counts, for the report of what is kept how.
pub fn is_confirmed(value: &[u8]) -> Result<bool, VaultError> {
    Ok(Stored::read(Some(value))?.is_some_and(|stored| stored.secret.is_some()))
}

impl Vault {
    /// Makes a secret for a subject. It counts once it was confirmed; a former one counts until then.
    pub async fn enrol_totp(
        &self,
        call: &Call,
        context: &Context,
        key: &Key,
        issuer: &str,
        account: &str,
    ) -> Result<EnrolledTotp, VaultError> {
        call.permit(Verb::Credential)?;
        self.credential_rules(call)?;
        let secret = TotpSecret::generate();
        let uri = secret.to_uri(issuer, account);
        let uri =
            uri.ok_or_else(|| VaultError::invalid("account", "issuer and account need a text without a colon"))?;
        let decide = |_: &SubjectSnapshot, there: Option<&[u8]>, _: &mut Draft| {
            let none = Stored { secret: None, pending: None, used_step: NEVER, wrong: 0, wait: Timestamp(0) };
            let mut stored = Stored::read(there)?.unwrap_or(none);
            stored.pending = Some(Bytes(secret.expose().to_vec()));
            Ok((stored.put(), ()))
        };
        let action = Action::EnrolTotp;
        self.edit_credential(call, context, key, Verb::Credential, TOTP, action, None, decide).await?;
        Ok(EnrolledTotp { secret: secret.to_base32(), uri })
    }

    /// Confirms the secret that was made last by a code of it; from then on it counts, and that code is used.
    pub async fn confirm_totp(
        &self,
        call: &Call,
        context: &Context,
        key: &Key,
        typed: &str,
    ) -> Result<Verdict, VaultError> {
        call.permit(Verb::Credential)?;
        self.check_totp(call, context, key, typed, Action::ConfirmTotp).await
    }

    /// Checks a code of the secret that counts.
    pub async fn verify_totp(
        &self,
        call: &Call,
        context: &Context,
        key: &Key,
        typed: &str,
    ) -> Result<Verdict, VaultError> {
        self.check_totp(call, context, key, typed, Action::VerifyTotp).await
    }

    async fn check_totp(
        &self,
        call: &Call,
        context: &Context,
        key: &Key,
        typed: &str,
        action: Action,
    ) -> Result<Verdict, VaultError> {
        // A user's phone has the machine's time, not that of a TEST tenant whose clock was advanced.
        let now = call.wall;
        let rules = self.credential_rules(call)?;
        let decide = |_: &SubjectSnapshot, there: Option<&[u8]>| {
            let none = Ok((Edit::Note, Verdict::No(Why::None)));
            let Some(mut stored) = Stored::read(there)? else { return none };
            if let Some(seconds) = stored.waits(now) {
                return Ok((Edit::Note, Verdict::No(Why::Locked(seconds))));
            }
            let (asked, used) = match action {
                Action::ConfirmTotp => (&stored.pending, NEVER),
                _ => (&stored.secret, stored.used_step),
            };
            let Some(asked) = asked else { return none };
            let Some(step) = asked.secret()?.step_of(typed, now.0.div_euclid(1_000), used) else {
                stored.missed(rules, now);
                return Ok((stored.put(), Verdict::No(Why::Wrong)));
            };
            if action == Action::ConfirmTotp {
                stored.secret = stored.pending.take();
            }
            (stored.used_step, stored.wrong, stored.wait) = (step, 0, Timestamp(0));
            Ok((stored.put(), Verdict::Ok))
        };
        self.check_credential(call, context, key, TOTP, action, decide).await
    }

    /// Removes a subject's secret; whether there was one.
    pub async fn remove_totp(
        &self,
        call: &Call,
        context: &Context,
        key: &Key,
        request: Option<Request>,
    ) -> Result<bool, VaultError> {
        let decide = |_: &SubjectSnapshot, there: Option<&[u8]>, _: &mut Draft| {
            Ok(if there.is_some() { (Edit::Remove, true) } else { (Edit::Keep, false) })
        };
        let action = Action::RemoveTotp;
        self.edit_credential(call, context, key, Verb::Credential, TOTP, action, request.as_ref(), decide).await
    }
}
