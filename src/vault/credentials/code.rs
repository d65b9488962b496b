//! One-time codes: sent to a user, typed once. A subject has one for each use (`confirm`, `reset`); all of them are one
//! credential, which holds digests only.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{CODES, Draft, Edit, Verdict, Why};
use crate::access::Verb;
use crate::audit::Action;
use crate::auth::Alphabet;
use crate::clock::Timestamp;
use crate::crypto::random;
use crate::ids::*;
use crate::policy::file::CodeAlphabet;
use crate::storage::SubjectSnapshot;
use crate::vault::call::{Call, Context};
use crate::vault::error::{VaultError, Violation};
use crate::vault::find::Key;
use crate::vault::request::Request;
use crate::vault::{Vault, hex, to_json};

/// Characters of a code.
pub const LENGTHS: std::ops::RangeInclusive<u32> = 6..=64;
/// Seconds that a code works.
pub const LIVES: std::ops::RangeInclusive<u32> = 60..=604_800;
/// Wrong tries after which a code ends.
pub const TRIES: std::ops::RangeInclusive<u32> = 1..=20;
/// The use that stands for recovery codes.
pub const RECOVERY: &str = "recovery";
/// Most codes of a subject that work at one time.
const MAX_CODES: usize = 32;

/// A code that is asked for; what is `None` is as the policy says.
pub struct NewCode {
    pub used_for: Name,
    pub length: Option<u32>,
    pub alphabet: Option<Alphabet>,
    pub life_s: Option<u32>,
    pub tries: Option<u32>,
}

/// A code that was issued. Its text is there the first time only.
pub struct IssuedCode {
    pub text: Option<Zeroizing<String>>,
    pub expires: Timestamp,
}

/// What is kept of a code, sealed with the others of its subject.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    used_for: Name,
    alphabet: u8,
    length: u32,
    #[serde(with = "hex")]
    salt: Vec<u8>,
    #[serde(with = "hex")]
    digest: Vec<u8>,
    pepper: SecretVersion,
    expires: Timestamp,
    /// Wrong tries that are left.
    tries: u32,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    used: bool,
}

impl Stored {
    fn why_not(&self, now: Timestamp) -> Option<Why> {
        match () {
            _ if self.used || self.tries == 0 => Some(Why::Revoked),
            _ if self.expires <= now => Some(Why::Expired),
            _ => None,
        }
    }

    /// What a typed text is digested with.
    fn place(&self, uid: SubjectUid) -> Vec<u8> {
        place(uid, self.used_for.as_str(), &self.salt)
    }
}

/// Whose code it is, what for, and which: what its digest is bound to beside the tenant.
pub(super) fn place(uid: SubjectUid, used_for: &str, salt: &[u8]) -> Vec<u8> {
    [&uid.0.to_be_bytes()[..], &[used_for.len() as u8], used_for.as_bytes(), salt].concat()
}

fn codes_of(value: Option<&[u8]>) -> Result<Vec<Stored>, VaultError> {
    value.map_or(Ok(Vec::new()), |value| serde_json::from_slice(value).map_err(|_| VaultError::DataLoss))
}

fn put(codes: &[Stored]) -> Edit {
    Edit::Put(Zeroizing::new(to_json(&codes)))
}

/// How many codes of a subject work at that time, for the report of what is kept how.
pub fn working_codes(value: &[u8], now: Timestamp) -> Result<usize, VaultError> {
    Ok(codes_of(Some(value))?.iter().filter(|code| code.why_not(now).is_none()).count())
}

/// How many codes of a subject work and were made under that version of the pepper.
pub fn codes_under(value: &[u8], pepper: SecretVersion, now: Timestamp) -> Result<u64, VaultError> {
    let under = |code: &&Stored| code.pepper == pepper && code.why_not(now).is_none();
    Ok(codes_of(Some(value))?.iter().filter(under).count() as u64)
}

impl Vault {
    /// Issues a code; a former one for the same use ends.
    pub async fn issue_code(
        &self,
        call: &Call,
        context: &Context,
        key: &Key,
        new: NewCode,
        request: Option<Request>,
    ) -> Result<IssuedCode, VaultError> {
        call.permit(Verb::Credential)?;
        let rules = self.credential_rules(call)?;
        let alphabet = new.alphabet.unwrap_or(match rules.code_alphabet {
            CodeAlphabet::Digits => Alphabet::Digits,
            CodeAlphabet::Letters => Alphabet::Letters,
        });
        let length = new.length.unwrap_or(rules.code_length);
        let life_s = new.life_s.unwrap_or(rules.code_life_seconds);
        let tries = new.tries.unwrap_or(rules.code_tries);
        let mut wrong = Vec::new();
        let mut check = |fits: bool, path: &str, rule: &str| {
            if !fits {
                wrong.push(Violation::new(path, rule));
            }
        };
        check(new.used_for.as_str() != RECOVERY, "use", "recovery codes are issued by IssueRecoveryCodes");
        check(LENGTHS.contains(&length), "length", "must be 6 to 64");
        check(LIVES.contains(&life_s), "life_seconds", "must be 60 to 604,800");
        check(TRIES.contains(&tries), "tries", "must be 1 to 20");
        if !wrong.is_empty() {
            return Err(VaultError::Invalid(wrong));
        }
        let peppers = self.code_peppers(call.tenant.no)?;
        let (version, pepper) = &peppers[0];
        let text = alphabet.draw(length as usize);
        let expires = call.now.plus_ms(i64::from(life_s) * 1_000);
        // Tells the answer of this call from that of a former one with the same request id.
        let mine = u64::from_be_bytes(random::bytes());
        let decide = |snapshot: &SubjectSnapshot, there: Option<&[u8]>, _: &mut Draft| {
            let mut codes = codes_of(there)?;
            codes.retain(|code| code.used_for != new.used_for && code.why_not(call.now).is_none());
            if codes.len() >= MAX_CODES {
                return Err(VaultError::Quota("one-time codes of a subject"));
            }
            let mut code = Stored {
                used_for: new.used_for.clone(),
                alphabet: alphabet as u8,
                length,
                salt: random::bytes::<16>().to_vec(),
                digest: Vec::new(),
                pepper: *version,
                expires,
                tries,
                used: false,
            };
            code.digest = pepper.digest(&code.place(snapshot.subject.uid), &text).to_vec();
            codes.push(code);
            Ok((put(&codes), (expires, mine)))
        };
        let action = Action::IssueCode;
        let (expires, whose) =
            self.edit_credential(call, context, key, Verb::Credential, CODES, action, request.as_ref(), decide).await?;
        Ok(IssuedCode { text: (whose == mine).then_some(text), expires })
    }

    /// Checks a code. A right one is used up; a wrong one costs a try.
    pub async fn verify_code(
        &self,
        call: &Call,
        context: &Context,
        key: &Key,
        used_for: &Name,
        typed: &str,
    ) -> Result<Verdict, VaultError> {
        let peppers = self.code_peppers(call.tenant.no)?;
        let decide = |snapshot: &SubjectSnapshot, there: Option<&[u8]>| {
            let mut codes = codes_of(there)?;
            let Some(code) = codes.iter_mut().find(|code| code.used_for == *used_for) else {
                return Ok((Edit::Note, Verdict::No(Why::None)));
            };
            if let Some(why) = code.why_not(call.now) {
                return Ok((Edit::Note, Verdict::No(why)));
            }
            let Some((_, pepper)) = peppers.iter().find(|(version, _)| *version == code.pepper) else {
                return Ok((Edit::Note, Verdict::No(Why::Expired)));
            };
            let alphabet = Alphabet::from_no(code.alphabet).ok_or(VaultError::DataLoss)?;
            let place = code.place(snapshot.subject.uid);
            let right = alphabet
                .read(typed, code.length as usize)
                .is_some_and(|typed| pepper.fits(&place, &typed, &code.digest));
            let verdict = match right {
                true => {
                    code.used = true;
                    Verdict::Ok
                }
                false => {
                    code.tries -= 1; // above 0: it would have ended
                    Verdict::No(Why::Wrong)
                }
            };
            Ok((put(&codes), verdict))
        };
        self.check_credential(call, context, key, CODES, Action::VerifyCode, decide).await
    }
}
