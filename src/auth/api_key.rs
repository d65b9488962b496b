//! API keys of the tenants' users: who may call the *tenant*. The text is that of `key_text` with a prefix that the tenant
//! chose; the checksum key is the tenant's own, so another tenant's key is refused like a forged one.

use zeroize::Zeroizing;

use crate::auth::access_key;
use crate::auth::key_text::{Environment, KeyId, KeyPepper, KeyRefused, Parts};

/// What a tenant's API keys begin with: `[a-z][a-z0-9_]{0,15}`, and neither `pv` nor `pv_...`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyPrefix(Box<str>);

impl KeyPrefix {
    /// Longest prefix, in characters: the whole text stays within 96.
    pub const MAX: usize = 16;

    /// Reads the one spelling of a prefix.
    ///
    /// # Errors
    /// The rule that the text does not keep.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if !(1..=Self::MAX).contains(&text.len()) {
            return Err("must have 1 to 16 characters");
        }
        let first = text.as_bytes()[0].is_ascii_lowercase();
        if !first || !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') {
            return Err("must start with a-z and contain only a-z, 0-9 and '_'");
        }
        if text.split('_').next() == Some(access_key::PREFIX) {
            return Err("must not begin like the vault's own access keys");
        }
        Ok(KeyPrefix(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An API key in memory; the secret is wiped on drop.
#[derive(Debug)]
pub struct ApiKey {
    prefix: KeyPrefix,
    parts: Parts,
}

impl ApiKey {
    /// A key with a fresh random secret.
    pub fn generate(prefix: KeyPrefix, environment: Environment, id: KeyId) -> Self {
        ApiKey { prefix, parts: Parts::generate(environment, id) }
    }

    /// The id in the text.
    pub fn id(&self) -> KeyId {
        self.parts.id
    }

    /// What the text begins with. It is covered by the checksum: a key of one prefix is none of another.
    pub fn prefix(&self) -> &KeyPrefix {
        &self.prefix
    }

    /// Whether it says `live` or `test`.
    pub fn environment(&self) -> Environment {
        self.parts.environment
    }

    /// The text, to be shown once.
    pub fn to_text(&self, pepper: &KeyPepper) -> Zeroizing<String> {
        self.parts.write(self.prefix.as_str(), pepper)
    }

    /// Reads a key of any prefix and checks its checksum in constant time against the tenant's pepper of its version.
    /// Answers which one fitted.
    pub fn parse(text: &str, peppers: &[KeyPepper]) -> Result<(Self, usize), KeyRefused> {
        let (prefix, parts, which) = Parts::read(text, |prefix| KeyPrefix::parse(prefix).is_ok(), peppers)?;
        let prefix = KeyPrefix(prefix.into());
        Ok((ApiKey { prefix, parts }, which))
    }

    /// What Argon2id hashes: HMAC-SHA-256(pepper, id, secret).
    pub fn password(&self, pepper: &KeyPepper) -> Zeroizing<[u8; 32]> {
        self.parts.password(pepper)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::AccessKey;
    use crate::crypto::keys::TenantSecret;
    use crate::ids::{SecretVersion, TenantNo};
    use proptest::prelude::*;

    fn pepper(tenant: u32) -> KeyPepper {
        KeyPepper::of_tenant(&TenantSecret::from_bytes(&[1; 32]), SecretVersion(1), TenantNo(tenant))
    }

    fn acme() -> KeyPrefix {
        KeyPrefix::parse("acme").unwrap()
    }

    #[test]
    fn a_key_reads_back_under_its_tenants_pepper_only() {
        let key = ApiKey::generate(acme(), Environment::Live, KeyId(77));
        let text = key.to_text(&pepper(1));
        assert!(text.starts_with("acme_live_1F_"));
        let (read, which) = ApiKey::parse(&text, &[pepper(2), pepper(1)]).unwrap();
        assert_eq!((read.prefix(), read.id(), which), (&acme(), KeyId(77), 1));
        assert_eq!(read.password(&pepper(1)), key.password(&pepper(1)));
        assert_ne!(*read.password(&pepper(1)), *key.password(&pepper(2)));
        assert_eq!(ApiKey::parse(&text, &[pepper(2)]).unwrap_err(), KeyRefused::Checksum);
        assert!(!format!("{key:?}").contains(text.split('_').nth(3).unwrap()));
    }

    #[test]
    fn access_keys_and_api_keys_are_never_one_another() {
        let secret = TenantSecret::from_bytes(&[1; 32]);
        let access =
            AccessKey::generate(Environment::Live, KeyId(7)).to_text(&KeyPepper::derive(&secret, SecretVersion(1)));
        assert_eq!(ApiKey::parse(&access, &[pepper(0), pepper(1)]).unwrap_err(), KeyRefused::Form);
        let api = ApiKey::generate(acme(), Environment::Live, KeyId(7)).to_text(&pepper(0));
        assert_eq!(
            AccessKey::parse(&api, &[KeyPepper::derive(&secret, SecretVersion(1))]).unwrap_err(),
            KeyRefused::Form
        );
        let renamed = api.replacen("acme", "pv", 1);
        assert_eq!(
            AccessKey::parse(&renamed, &[KeyPepper::derive(&secret, SecretVersion(1))]).unwrap_err(),
            KeyRefused::Checksum
        );
    }

    #[test]
    fn a_prefix_has_one_form() {
        for bad in ["", "pv", "pv_x", "Acme", "1acme", "_a", "ac-me", "äcme", &"a".repeat(17)] {
            assert!(KeyPrefix::parse(bad).is_err(), "{bad}");
        }
        for good in ["a", "pvx", "sk_acme", "acme_live", &"a".repeat(16)] {
            let prefix = KeyPrefix::parse(good).unwrap();
            let text = ApiKey::generate(prefix, Environment::Test, KeyId(u64::MAX)).to_text(&pepper(1));
            let (read, _) = ApiKey::parse(&text, &[pepper(1)]).unwrap();
            assert_eq!(read.prefix().as_str(), good, "{} characters", text.len());
        }
    }

    #[test]
    fn t40_every_changed_character_is_refused() {
        let text = ApiKey::generate(acme(), Environment::Test, KeyId::random()).to_text(&pepper(1));
        for i in 0..text.len() {
            for c in ['0', 'z', '_', ' ', '-'].into_iter().filter(|c| text.as_bytes()[i] != *c as u8) {
                let mut bad = text.to_string();
                bad.replace_range(i..=i, &c.to_string());
                assert!(ApiKey::parse(&bad, &[pepper(1)]).is_err(), "{i} {c}");
            }
            assert!(ApiKey::parse(&text[..i], &[pepper(1)]).is_err());
        }
    }

    proptest! {
        #[test]
        fn t40_any_text_is_a_key_or_refused(text in "(acme_(live|test)_)?[0-9A-Za-z_]{0,80}|\\PC{0,20}") {
            prop_assert!(ApiKey::parse(&text, &[pepper(1)]).is_err());
        }
    }
}
