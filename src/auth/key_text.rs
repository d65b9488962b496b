//! What access keys and API keys have in common: `<prefix>_<live|test>_<id>_<secret>_<version><checksum>`.
//!
//! Everything after the prefix is base62 (`0-9A-Za-z`, most significant digit first): the separator `_` cannot occur inside a
//! part, and a double click selects the whole key. The id has 1 to 11 digits without leading zeros; the secret is 32 random
//! bytes in 43 digits; the checksum is the first 8 bytes of HMAC-SHA-256(checksum key, all before it) in 11 digits. The
//! checksum key is a secret of the vault, so a forged or mistyped key costs one HMAC: no database, no Argon2id. The version
//! is that of the pepper that the key was made with, in up to 3 digits without leading zeros; the first one is not written.
//! There is one spelling.

use zeroize::{Zeroize, Zeroizing};

use crate::crypto::blind_index::{equal, mac};
use crate::crypto::kdf::Label;
use crate::crypto::keys::TenantSecret;
use crate::crypto::random;
use crate::ids::{SecretVersion, TenantNo};
use crate::secret::Secret;

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const SECRET_DIGITS: usize = 43;
const NUMBER_DIGITS: usize = 11;
const VERSION_DIGITS: usize = 3;

/// Public name of a key: the id in its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub u64);

impl KeyId {
    /// A fresh random id.
    pub fn random() -> Self {
        KeyId(u64::from_be_bytes(random::bytes()).max(1))
    }

    /// Reads the one spelling of an id.
    pub fn parse(text: &str) -> Option<Self> {
        let canonical = !text.is_empty() && text.len() <= NUMBER_DIGITS && !text.starts_with('0');
        let mut bytes = [0u8; 8];
        (canonical && decode(text.as_bytes(), &mut bytes)).then(|| KeyId(u64::from_be_bytes(bytes)))
    }
}

impl std::fmt::Display for KeyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut digits = [0u8; NUMBER_DIGITS];
        encode(&self.0.to_be_bytes(), &mut digits);
        let text = std::str::from_utf8(&digits).expect("digits are ASCII");
        f.write_str(text.trim_start_matches('0'))
    }
}

/// What the key opens, so that a person and a secret scanner see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Environment {
    Live,
    Test,
}

impl Environment {
    /// `live` or `test`.
    pub const fn name(self) -> &'static str {
        match self {
            Environment::Live => "live",
            Environment::Test => "test",
        }
    }
}

/// Longer than any key: refused before anything is computed over it.
pub const MAX_TEXT: usize = 96;

/// Two keys from the vault's API pepper: one for checksums, one that a copied database lacks when it holds the hashes.
pub struct KeyPepper {
    /// Which version of the vault's secret it is from.
    pub version: SecretVersion,
    checksum: Zeroizing<[u8; 32]>,
    pepper: Zeroizing<[u8; 32]>,
}

impl KeyPepper {
    /// For API keys of one tenant's users, from the same secret as [`Self::derive`]: another tenant's key, or an access
    /// key, does not pass the checksum.
    pub fn of_tenant(secret: &TenantSecret, version: SecretVersion, tenant: TenantNo) -> Self {
        let context = tenant.0.to_be_bytes();
        KeyPepper {
            version,
            checksum: secret.derived(Label::UserKeyChecksum, &context),
            pepper: secret.derived(Label::UserKeyPepper, &context),
        }
    }

    /// From a version of the vault's API pepper (a reserved slot of tenant 0).
    pub fn derive(secret: &TenantSecret, version: SecretVersion) -> Self {
        KeyPepper {
            version,
            checksum: secret.derived(Label::ApiKeyChecksum, &[]),
            pepper: secret.derived(Label::ApiKeyPepper, &[]),
        }
    }

    fn checksum_of(&self, before: &str) -> [u8; NUMBER_DIGITS] {
        let full = mac(&self.checksum, &[before.as_bytes()]);
        let mut digits = [0u8; NUMBER_DIGITS];
        encode(&full[..8], &mut digits);
        digits
    }
}

/// Why a text is not a key of this vault. Callers hear only that the credential was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyRefused {
    #[error("not the form of a key")]
    Form,
    #[error("the checksum does not fit: mistyped, forged or of another vault")]
    Checksum,
}

/// The parts of a key's text after its prefix; the secret is wiped on drop.
#[derive(Debug)]
pub(super) struct Parts {
    pub environment: Environment,
    pub id: KeyId,
    secret: Secret<[u8; 32]>,
}

impl Parts {
    /// With a fresh random secret.
    pub fn generate(environment: Environment, id: KeyId) -> Self {
        let mut secret = Secret::new([0u8; 32]);
        random::fill(secret.expose_mut());
        Parts { environment, id, secret }
    }

    /// The whole text, to be shown once.
    pub fn write(&self, prefix: &str, pepper: &KeyPepper) -> Zeroizing<String> {
        let mut digits = Zeroizing::new([0u8; SECRET_DIGITS]);
        encode(self.secret.expose(), &mut digits[..]);
        let secret = std::str::from_utf8(&digits[..]).expect("digits are ASCII");
        let mut text = Zeroizing::new(String::with_capacity(MAX_TEXT));
        text.push_str(prefix);
        text.push('_');
        text.push_str(self.environment.name());
        text.push('_');
        text.push_str(&self.id.to_string());
        text.push('_');
        text.push_str(secret);
        let sum = pepper.checksum_of(&text);
        text.push('_');
        text.push_str(&version_text(pepper.version));
        text.push_str(std::str::from_utf8(&sum).expect("digits are ASCII"));
        text
    }

    /// Reads a key whose prefix `known` accepts, and checks its checksum in constant time against the pepper of its version
    /// (the present one or, while it is being rotated, the one before). Answers which one fitted.
    pub fn read<'a>(
        text: &'a str,
        known: impl FnOnce(&str) -> bool,
        peppers: &[KeyPepper],
    ) -> Result<(&'a str, Self, usize), KeyRefused> {
        let form = KeyRefused::Form;
        if text.len() > MAX_TEXT || !text.is_ascii() {
            return Err(form);
        }
        // From the right, since a prefix may have the separator in it.
        let mut parts = text.rsplitn(5, '_');
        let mut next = || parts.next().ok_or(form);
        let (sum, digits, id, environment, prefix) = (next()?, next()?, next()?, next()?, next()?);
        if !known(prefix) {
            return Err(form);
        }
        let environment = match environment {
            "live" => Environment::Live,
            "test" => Environment::Test,
            _ => return Err(form),
        };
        let id = KeyId::parse(id).ok_or(form)?;
        if digits.len() != SECRET_DIGITS || sum.len() < NUMBER_DIGITS {
            return Err(form);
        }
        let before = &text[..text.len() - sum.len() - 1];
        let (version, sum) = sum.split_at(sum.len() - NUMBER_DIGITS);
        let version = parse_version(version).ok_or(form)?;
        // The checksum first: what is not ours is not decoded.
        let fits = |p: &KeyPepper| p.version == version && equal(&p.checksum_of(before), sum.as_bytes());
        let which = peppers.iter().position(fits).ok_or(KeyRefused::Checksum)?;
        let mut secret = Secret::new([0u8; 32]);
        if !decode(digits.as_bytes(), secret.expose_mut()) {
            return Err(form);
        }
        Ok((prefix, Parts { environment, id, secret }, which))
    }

    /// What Argon2id hashes: HMAC-SHA-256(pepper, id, secret).
    pub fn password(&self, pepper: &KeyPepper) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(mac(&pepper.pepper, &[&self.id.0.to_be_bytes(), self.secret.expose()]))
    }
}

/// The version in the text of a key: empty for the first.
fn version_text(version: SecretVersion) -> String {
    let mut digits = [0u8; VERSION_DIGITS];
    encode(&version.0.to_be_bytes(), &mut digits);
    let text = std::str::from_utf8(&digits).expect("digits are ASCII");
    if version.0 == 1 { String::new() } else { text.trim_start_matches('0').to_owned() }
}

/// Reads the one spelling of a version.
fn parse_version(text: &str) -> Option<SecretVersion> {
    let mut bytes = [0u8; 2];
    let known = match text {
        "" => SecretVersion(1),
        _ if text.len() > VERSION_DIGITS || !decode(text.as_bytes(), &mut bytes) => return None,
        _ => SecretVersion(u16::from_be_bytes(bytes)),
    };
    (version_text(known) == text).then_some(known)
}

/// Writes a big-endian number in base62, most significant digit first, with leading zeros. The digits must suffice.
fn encode(number: &[u8], digits: &mut [u8]) {
    let mut rest = Zeroizing::new([0u8; 32]);
    let rest = &mut rest[..number.len()];
    rest.copy_from_slice(number);
    for digit in digits.iter_mut().rev() {
        let mut carry = 0u32;
        for byte in rest.iter_mut() {
            let value = carry << 8 | u32::from(*byte);
            *byte = (value / 62) as u8;
            carry = value % 62;
        }
        *digit = DIGITS[carry as usize];
    }
    debug_assert!(rest.iter().all(|b| *b == 0), "more digits are needed");
}

/// Reads base62 digits into a big-endian number; `false` for another character or a number that is too large.
fn decode(digits: &[u8], number: &mut [u8]) -> bool {
    number.zeroize();
    for &digit in digits {
        let mut carry = match digit {
            b'0'..=b'9' => digit - b'0',
            b'A'..=b'Z' => digit - b'A' + 10,
            b'a'..=b'z' => digit - b'a' + 36,
            _ => return false,
        } as u32;
        for byte in number.iter_mut().rev() {
            let value = u32::from(*byte) * 62 + carry;
            *byte = value as u8;
            carry = value >> 8;
        }
        if carry != 0 {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_largest_numbers_fit_and_nothing_larger_does() {
        let mut digits = [0u8; SECRET_DIGITS];
        encode(&[0xff; 32], &mut digits);
        let mut back = [0u8; 32];
        assert!(decode(&digits, &mut back) && back == [0xff; 32]);
        assert!(!decode(&[b'z'; SECRET_DIGITS], &mut back), "62^43 - 1 is above 2^256");
        assert_eq!(KeyId::parse(&KeyId(u64::MAX).to_string()), Some(KeyId(u64::MAX)));
        assert_eq!(KeyId::parse("zzzzzzzzzzz"), None);
        for bad in ["", "0", "01", "a-b", "000000000000"] {
            assert_eq!(KeyId::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_version_has_one_spelling_and_the_first_is_not_written() {
        for (version, text) in [(1, ""), (2, "2"), (61, "z"), (62, "10"), (u16::MAX, "H31")] {
            assert_eq!(version_text(SecretVersion(version)), text);
            assert_eq!(parse_version(text), Some(SecretVersion(version)));
        }
        for bad in ["0", "1", "02", "H32", "zzz", "0001", "-"] {
            assert_eq!(parse_version(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn base62_reads_back(number in any::<[u8; 32]>()) {
            let mut digits = [0u8; SECRET_DIGITS];
            encode(&number, &mut digits);
            let mut back = [0u8; 32];
            prop_assert!(decode(&digits, &mut back));
            prop_assert_eq!(back, number);
        }
    }
}
