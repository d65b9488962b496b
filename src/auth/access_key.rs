//! Access keys: who may call the vault. The text is that of `key_text` with the prefix `pv`.

use zeroize::Zeroizing;

use crate::auth::key_text::{Environment, KeyId, KeyPepper, KeyRefused, Parts};

/// Begins every access key, so that a person and a secret scanner see it; no API key of a tenant may begin so.
pub(super) const PREFIX: &str = "pv";

/// An access key in memory; the secret is wiped on drop.
#[derive(Debug)]
pub struct AccessKey(Parts);

impl AccessKey {
    /// A key with a fresh random secret.
    pub fn generate(environment: Environment, id: KeyId) -> Self {
        AccessKey(Parts::generate(environment, id))
    }

    /// The id in the text.
    pub fn id(&self) -> KeyId {
        self.0.id
    }

    /// The text, to be shown once.
    pub fn to_text(&self, pepper: &KeyPepper) -> Zeroizing<String> {
        self.0.write(PREFIX, pepper)
    }

    /// Reads a key and checks its checksum in constant time against the pepper of its version (the present one or, while it
    /// is being rotated, the one before). Answers which one fitted.
    pub fn parse(text: &str, peppers: &[KeyPepper]) -> Result<(Self, usize), KeyRefused> {
        let (_, parts, which) = Parts::read(text, |prefix| prefix == PREFIX, peppers)?;
        Ok((AccessKey(parts), which))
    }

    /// What Argon2id hashes: HMAC-SHA-256(pepper, id, secret).
    pub fn password(&self, pepper: &KeyPepper) -> Zeroizing<[u8; 32]> {
        self.0.password(pepper)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::keys::TenantSecret;
    use crate::ids::SecretVersion;
    use proptest::prelude::*;

    /// Each version another secret.
    fn pepper(n: u8) -> KeyPepper {
        KeyPepper::derive(&TenantSecret::from_bytes(&[n; 32]), SecretVersion(n.into()))
    }

    #[test]
    fn a_key_reads_back_under_its_pepper_only() {
        let key = AccessKey::generate(Environment::Live, KeyId(77));
        let text = key.to_text(&pepper(1));
        assert!(text.starts_with("pv_live_1F_"), "77 = 1 * 62 + 15");
        assert_eq!(text.split('_').map(str::len).collect::<Vec<_>>(), [2, 4, 2, 43, 11]);
        let (read, which) = AccessKey::parse(&text, &[pepper(2), pepper(1)]).unwrap();
        assert_eq!((read.id(), which), (KeyId(77), 1));
        assert_eq!(read.password(&pepper(1)), key.password(&pepper(1)));
        assert_ne!(*read.password(&pepper(1)), *key.password(&pepper(2)));
        assert_eq!(AccessKey::parse(&text, &[pepper(2)]).unwrap_err(), KeyRefused::Checksum);
        assert!(!format!("{key:?}").contains(text.split('_').nth(3).unwrap()));
    }

    #[test]
    fn the_text_names_the_peppers_version() {
        let key = AccessKey::generate(Environment::Live, KeyId(77));
        let second = key.to_text(&pepper(2));
        assert_eq!(second.split('_').map(str::len).collect::<Vec<_>>(), [2, 4, 2, 43, 12]);
        assert!(second.rsplit('_').next().unwrap().starts_with('2'));
        assert_eq!(AccessKey::parse(&second, &[pepper(1), pepper(2)]).unwrap().1, 1);
        assert_eq!(AccessKey::parse(&second, &[pepper(1)]).unwrap_err(), KeyRefused::Checksum);
        // The same secret as another version: the version counts, not what would fit.
        let other = KeyPepper::derive(&TenantSecret::from_bytes(&[2; 32]), SecretVersion(3));
        assert_eq!(AccessKey::parse(&second, &[other]).unwrap_err(), KeyRefused::Checksum);
        let renamed = second.replacen("_2", "_3", 1);
        assert!(AccessKey::parse(&renamed, &[pepper(2), pepper(3)]).is_err());
    }

    #[test]
    fn t40_every_changed_character_is_refused() {
        let text = AccessKey::generate(Environment::Test, KeyId::random()).to_text(&pepper(1));
        for i in 0..text.len() {
            for c in [b'0', b'z', b'_', b' ', 0, b'-'] {
                let mut bad = text.as_bytes().to_vec();
                if bad[i] == c {
                    continue;
                }
                bad[i] = c;
                assert!(AccessKey::parse(std::str::from_utf8(&bad).unwrap(), &[pepper(1)]).is_err(), "{i} {c}");
            }
            assert!(AccessKey::parse(&text[..i], &[pepper(1)]).is_err());
        }
        assert!(AccessKey::parse(&format!("{}0", *text), &[pepper(1)]).is_err());
    }

    proptest! {
        #[test]
        fn t40_any_text_is_a_key_or_refused(text in "(pv_(live|test)_)?[0-9A-Za-z_]{0,70}|\\PC{0,20}") {
            prop_assert!(AccessKey::parse(&text, &[pepper(1)]).is_err());
        }
    }
}
