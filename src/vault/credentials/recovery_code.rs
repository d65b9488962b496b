//! Recovery codes: a sheet of codes for the day on which the phone is gone. Each works once.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::code::{RECOVERY, place};
use super::{Draft, Edit, RECOVERY_CODES, Verdict, Why};
use crate::access::Verb;
use crate::audit::Action;
use crate::auth::{Alphabet, grouped};
use crate::crypto::random;
use crate::ids::SecretVersion;
use crate::storage::SubjectSnapshot;
use crate::vault::call::{Call, Context};
use crate::vault::error::VaultError;
use crate::vault::find::Key;
use crate::vault::request::Request;
use crate::vault::{Vault, hex, to_json};

/// Most codes of a sheet.
pub const MAX_CODES: u32 = 20;
/// Codes of a sheet where the caller does not say.
pub const USUAL_CODES: u32 = 10;
/// Characters of a code: 59 bits, which nobody guesses through a network, so that tries need not be counted.
const LENGTH: usize = 12;
const GROUP: usize = 4;

/// What is kept of a sheet, sealed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    #[serde(with = "hex")]
    salt: Vec<u8>,
    /// Of the codes that were not used.
    digests: Vec<Digest>,
    pepper: SecretVersion,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
struct Digest(#[serde(with = "hex")] Vec<u8>);

fn stored(value: &[u8]) -> Result<Stored, VaultError> {
    serde_json::from_slice(value).map_err(|_| VaultError::DataLoss)
}

/// How many codes of a subject are left, for the report of what is kept how.
pub fn codes_left(value: &[u8]) -> Result<usize, VaultError> {
    Ok(stored(value)?.digests.len())
}

/// How many codes of a subject are left that were made under that version of the pepper.
pub fn codes_under(value: &[u8], pepper: SecretVersion) -> Result<u64, VaultError> {
    let sheet = stored(value)?;
    Ok(if sheet.pepper == pepper { sheet.digests.len() as u64 } else { 0 })
}

impl Vault {
    /// Issues a sheet of codes; a former one ends. Empty for a repeated request: the codes are kept nowhere.
    pub async fn issue_recovery_codes(
        &self,
        call: &Call,
        context: &Context,
        key: &Key,
        count: u32,
        request: Option<Request>,
    ) -> Result<Vec<Zeroizing<String>>, VaultError> {
        call.permit(Verb::Credential)?;
        self.credential_rules(call)?;
        if !(1..=MAX_CODES).contains(&count) {
            return Err(VaultError::invalid("count", "must be at most 20"));
        }
        let peppers = self.code_peppers(call.tenant.no)?;
        let (version, pepper) = &peppers[0];
        let texts: Vec<_> = (0..count).map(|_| Alphabet::Letters.draw(LENGTH)).collect();
        let mine = u64::from_be_bytes(random::bytes());
        let decide = |snapshot: &SubjectSnapshot, _: Option<&[u8]>, _: &mut Draft| {
            let salt = random::bytes::<16>().to_vec();
            let place = place(snapshot.subject.uid, RECOVERY, &salt);
            let digests = texts.iter().map(|text| Digest(pepper.digest(&place, text).to_vec())).collect();
            let sheet = Stored { salt, digests, pepper: *version };
            Ok((Edit::Put(Zeroizing::new(to_json(&sheet))), mine))
        };
        let action = Action::IssueRecoveryCodes;
        let whose = self
            .edit_credential(call, context, key, Verb::Credential, RECOVERY_CODES, action, request.as_ref(), decide)
            .await?;
        let fresh = whose == mine;
        Ok(texts.iter().filter(|_| fresh).map(|text| grouped(text, GROUP)).collect())
    }

    /// Checks a recovery code and uses it up; beside an OK, how many are left.
    pub async fn verify_recovery_code(
        &self,
        call: &Call,
        context: &Context,
        key: &Key,
        typed: &str,
    ) -> Result<(Verdict, u32), VaultError> {
        let peppers = self.code_peppers(call.tenant.no)?;
        let mut left = 0;
        let decide = |snapshot: &SubjectSnapshot, there: Option<&[u8]>| {
            let Some(there) = there else { return Ok((Edit::Note, Verdict::No(Why::None))) };
            let mut sheet = stored(there)?;
            let Some((_, pepper)) = peppers.iter().find(|(version, _)| *version == sheet.pepper) else {
                return Ok((Edit::Note, Verdict::No(Why::MustReset)));
            };
            let place = place(snapshot.subject.uid, RECOVERY, &sheet.salt);
            let typed = Alphabet::Letters.read(typed, LENGTH);
            // All of them are compared: the time does not tell which one it was.
            let fits: Vec<bool> = match &typed {
                Some(typed) => sheet.digests.iter().map(|digest| pepper.fits(&place, typed, &digest.0)).collect(),
                None => Vec::new(),
            };
            let Some(at) = fits.iter().position(|fits| *fits) else {
                return Ok((Edit::Note, Verdict::No(Why::Wrong)));
            };
            sheet.digests.remove(at);
            left = sheet.digests.len() as u32;
            Ok((Edit::Put(Zeroizing::new(to_json(&sheet))), Verdict::Ok))
        };
        let verdict = self.check_credential(call, context, key, RECOVERY_CODES, Action::VerifyCode, decide).await?;
        Ok((verdict, left))
    }
}
