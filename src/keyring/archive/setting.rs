//! To whom the key archive is sealed: a small record of the database, signed so
//! that whoever can write rows cannot add himself.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::crypto::recovery::{RecoveryError, RecoveryRecipient};
use crate::crypto::sign::{self, Domain, Signing};
use crate::ids::VaultId;

/// Key of the record among tenant 0's settings.
pub const SETTING: &[u8] = b"recovery";
/// Days after which a restore refuses a key archive, unless configured.
pub const HORIZON_DAYS: u32 = 30;
/// Most recipients of an epoch.
pub const MOST_RECIPIENTS: usize = 16;
/// Days after which an epoch is due for a new key.
pub const EPOCH_DAYS: i64 = 365;

/// One version of the recovery recipients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Epoch {
    pub number: u32,
    pub since: Timestamp,
    /// age X25519 recipients (`age1...`); none: the operator insisted on having no recovery key.
    pub recipients: Vec<String>,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecoverySetting {
    pub vault: String,
    pub present: Epoch,
    /// Epochs before, the latest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former: Vec<Epoch>,
    /// Public keys, hexadecimal, that signed before a restore without the keeper made a new one: what they signed counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signers: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signed {
    setting: RecoverySetting,
    signature: String,
}

/// Why a setting does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SettingRefused {
    #[error("the record of the recovery recipients cannot be read")]
    Form,
    #[error("the record of the recovery recipients was not signed by this vault")]
    Signature,
    #[error("the record of the recovery recipients: {0}")]
    Recipient(#[from] RecoveryError),
}

fn message(setting: &RecoverySetting) -> Vec<u8> {
    let json = serde_json_canonicalizer::to_vec(setting).expect("a plain struct of texts and numbers");
    [b"setting".as_slice(), &json].concat()
}

impl RecoverySetting {
    /// The first epoch of a vault.
    pub fn new(vault: VaultId, recipients: &[RecoveryRecipient], now: Timestamp) -> Self {
        let recipients = recipients.iter().map(ToString::to_string).collect();
        let present = Epoch { number: 1, since: now, recipients };
        RecoverySetting { vault: vault.to_string(), present, former: Vec::new(), signers: Vec::new() }
    }

    /// The same with a new epoch; archives from now on are sealed to these only.
    pub fn rotated(&self, recipients: &[RecoveryRecipient], now: Timestamp) -> Self {
        let mut next = self.clone();
        let number = self.present.number + 1;
        let recipients = recipients.iter().map(ToString::to_string).collect();
        let former = std::mem::replace(&mut next.present, Epoch { number, since: now, recipients });
        next.former.insert(0, former);
        next
    }

    /// The same with one more recipient, in a new epoch.
    pub fn with(&self, recipient: &RecoveryRecipient, now: Timestamp) -> Result<Self, SettingRefused> {
        let mut all = self.recipients()?;
        if all.iter().all(|one| one.to_string() != recipient.to_string()) {
            all.push(recipient.clone());
        }
        Ok(self.rotated(&all, now))
    }

    /// The present recipients; empty where there is no recovery key.
    pub fn recipients(&self) -> Result<Vec<RecoveryRecipient>, SettingRefused> {
        Ok(self.present.recipients.iter().map(|text| text.parse()).collect::<Result<_, _>>()?)
    }

    /// Keys that signed before.
    pub fn former_signers(&self) -> Vec<[u8; 32]> {
        let read = |text: &String| data_encoding::HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok();
        self.signers.iter().filter_map(read).collect()
    }

    /// The same, and these keys signed before; `now` is the one that signs.
    pub fn signed_before(&self, keys: &[[u8; 32]], now: &[u8; 32]) -> Self {
        let mut next = self.clone();
        let known: std::collections::BTreeSet<[u8; 32]> =
            self.former_signers().into_iter().chain(keys.iter().copied()).collect();
        next.signers = known.iter().filter(|key| *key != now).map(|key| data_encoding::HEXLOWER.encode(key)).collect();
        next
    }

    /// Its bytes in the database.
    pub fn sign(&self, signing: &Signing) -> Vec<u8> {
        let signature = data_encoding::HEXLOWER.encode(&signing.sign(Domain::Archive, &message(self)));
        serde_json::to_vec(&Signed { setting: self.clone(), signature }).expect("a plain struct of texts and numbers")
    }

    /// Reads and checks what `sign` made.
    pub fn verify(vault: VaultId, bytes: &[u8], public_keys: &[[u8; 32]]) -> Result<Self, SettingRefused> {
        let Signed { setting, signature } = serde_json::from_slice(bytes).map_err(|_| SettingRefused::Form)?;
        let signature = data_encoding::HEXLOWER.decode(signature.as_bytes()).ok().and_then(|s| s.try_into().ok());
        let signature: [u8; 64] = signature.ok_or(SettingRefused::Form)?;
        let message = message(&setting);
        let right = public_keys.iter().any(|key| sign::verify(key, Domain::Archive, &message, &signature));
        if !right || setting.vault != vault.to_string() {
            return Err(SettingRefused::Signature);
        }
        setting.recipients()?;
        Ok(setting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::recovery::RecoveryIdentity;

    const VAULT: VaultId = VaultId([7; 16]);

    #[test]
    fn a_setting_counts_only_as_it_was_signed() {
        let (signing, a, b) = (Signing::generate(), RecoveryIdentity::generate(), RecoveryIdentity::generate());
        let setting = RecoverySetting::new(VAULT, &[a.recipient()], Timestamp(1));
        let setting = setting.with(&b.recipient(), Timestamp(2)).unwrap().with(&b.recipient(), Timestamp(3)).unwrap();
        assert_eq!((setting.present.number, setting.present.recipients.len(), setting.former.len()), (3, 2, 2));
        let setting = setting.signed_before(&[[9; 32], signing.public()], &signing.public());
        assert_eq!(setting.former_signers(), [[9; 32]]);
        let bytes = setting.sign(&signing);
        assert_eq!(RecoverySetting::verify(VAULT, &bytes, &[signing.public()]), Ok(setting.clone()));
        let refused = RecoverySetting::verify(VaultId([8; 16]), &bytes, &[signing.public()]);
        assert_eq!(refused, Err(SettingRefused::Signature));
        let refused = RecoverySetting::verify(VAULT, &bytes, &[Signing::generate().public()]);
        assert_eq!(refused, Err(SettingRefused::Signature));
        let stranger = RecoveryIdentity::generate().recipient().to_string();
        let text = String::from_utf8(bytes).unwrap().replace(&a.recipient().to_string(), &stranger);
        let refused = RecoverySetting::verify(VAULT, text.as_bytes(), &[signing.public()]);
        assert_eq!(refused, Err(SettingRefused::Signature));
    }
}
