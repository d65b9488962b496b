//! One-time codes and recovery codes: texts that a person types from a message or a sheet of paper.
//!
//! A code is drawn without bias from an alphabet and stored as HMAC-SHA-256(code pepper, place, code) only. The pepper is a
//! secret of the vault: six digits have a million spellings, and a copied database must not let anybody try them.

use zeroize::Zeroizing;

use crate::crypto::blind_index::{equal, mac};
use crate::crypto::kdf::Label;
use crate::crypto::keys::TenantSecret;
use crate::crypto::random;
use crate::ids::TenantNo;

/// Which characters a code is made of. The numbers are stored: never reuse one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Alphabet {
    /// `0` to `9`: 3.3 bits a character.
    Digits = 1,
    /// Upper-case letters and digits that are not taken for one another when read or heard (no `0 O 1 I L U`): 30
    /// characters, 4.9 bits each. Typed in any case.
    Letters = 2,
}

impl Alphabet {
    /// Every alphabet.
    pub const ALL: &'static [Alphabet] = &[Alphabet::Digits, Alphabet::Letters];

    /// The alphabet of that number.
    pub fn from_no(no: u8) -> Option<Self> {
        Alphabet::ALL.iter().copied().find(|a| *a as u8 == no)
    }

    /// The name in requests and answers.
    pub const fn name(self) -> &'static str {
        match self {
            Alphabet::Digits => "digits",
            Alphabet::Letters => "letters",
        }
    }

    const fn characters(self) -> &'static [u8] {
        match self {
            Alphabet::Digits => b"0123456789",
            Alphabet::Letters => b"23456789ABCDEFGHJKMNPQRSTVWXYZ",
        }
    }

    /// A fresh code of so many characters, every one equally likely.
    pub fn draw(self, length: usize) -> Zeroizing<String> {
        let characters = self.characters();
        // Numbers from here on would make the first characters likelier than the last ones: they are drawn again.
        let fair = 256 - 256 % characters.len();
        let mut code = Zeroizing::new(String::with_capacity(length));
        let mut bytes = Zeroizing::new([0u8; 32]);
        while code.len() < length {
            random::fill(&mut bytes[..]);
            let usable = bytes.iter().map(|b| usize::from(*b)).filter(|n| *n < fair);
            let missing = length - code.len();
            code.extend(usable.take(missing).map(|n| char::from(characters[n % characters.len()])));
        }
        code
    }

    /// A code as it was typed, in its one spelling: without blanks and hyphens, in upper case. `None` when a character is
    /// not of this alphabet, or there are not `length`.
    pub fn read(self, typed: &str, length: usize) -> Option<Zeroizing<String>> {
        if typed.len() > 4 * length + 8 {
            return None;
        }
        let mut code = Zeroizing::new(String::with_capacity(length));
        for byte in typed.bytes().filter(|b| !matches!(b, b' ' | b'-')) {
            let byte = byte.to_ascii_uppercase();
            if code.len() == length || !self.characters().contains(&byte) {
                return None;
            }
            code.push(char::from(byte));
        }
        (code.len() == length).then_some(code)
    }
}

/// A code as it is shown: in groups of `group` characters with hyphens between, so that it can be read aloud.
pub fn grouped(code: &str, group: usize) -> Zeroizing<String> {
    let mut out = Zeroizing::new(String::with_capacity(code.len() * 2));
    for (i, c) in code.chars().enumerate() {
        if i > 0 && i % group == 0 {
            out.push('-');
        }
        out.push(c);
    }
    out
}

/// The key under which a tenant's codes are digested.
pub struct CodePepper(Zeroizing<[u8; 32]>);

impl CodePepper {
    /// From a version of the vault's API pepper (a reserved slot of tenant 0).
    pub fn of_tenant(secret: &TenantSecret, tenant: TenantNo) -> Self {
        CodePepper(secret.derived(Label::CodeDigest, &tenant.0.to_be_bytes()))
    }

    /// HMAC-SHA-256(pepper, place, code): `place` says whose code it is and which, so that equal codes have different
    /// digests.
    pub fn digest(&self, place: &[u8], code: &str) -> [u8; 32] {
        mac(&self.0, &[place, code.as_bytes()])
    }

    /// Whether the code is the one of that digest; compares in constant time.
    pub fn fits(&self, place: &[u8], code: &str, digest: &[u8]) -> bool {
        equal(&self.digest(place, code), digest)
    }
}

impl std::fmt::Debug for CodePepper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CodePepper(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn codes_are_of_their_alphabet_and_no_character_is_likelier() {
        for alphabet in Alphabet::ALL.iter().copied() {
            let mut seen = BTreeMap::<char, usize>::new();
            let (codes, length) = (3_000, 10);
            for _ in 0..codes {
                let code = alphabet.draw(length);
                assert_eq!(alphabet.read(&code, length).as_deref(), Some(&*code));
                code.chars().for_each(|c| *seen.entry(c).or_default() += 1);
            }
            let characters = alphabet.characters().len();
            assert_eq!(seen.len(), characters);
            // 30,000 draws: each character about 3,000 or 1,000 times; six standard deviations either way.
            let expected = (codes * length / characters) as f64;
            let slack = 6.0 * expected.sqrt();
            assert!(seen.values().all(|n| (*n as f64 - expected).abs() < slack), "{alphabet:?}: {seen:?}");
        }
    }

    #[test]
    fn a_code_is_read_as_people_type_it() {
        assert_eq!(Alphabet::Digits.read(" 123-456 ", 6).unwrap().as_str(), "123456");
        assert_eq!(Alphabet::Letters.read("abcd-efgh", 8).unwrap().as_str(), "ABCDEFGH");
        for bad in ["12345", "1234567", "12345x", "١٢٣٤٥٦", "12345\0", "", &" ".repeat(1 << 16)] {
            assert!(Alphabet::Digits.read(bad, 6).is_none(), "{bad:?}");
        }
        assert!(Alphabet::Letters.read("ABCDE0", 6).is_none(), "0 is not in it");
        assert_eq!(grouped("ABCDEFGH", 4).as_str(), "ABCD-EFGH");
        assert_eq!(grouped("12345", 5).as_str(), "12345");
    }

    #[test]
    fn a_digest_belongs_to_one_tenant_and_place() {
        let secret = TenantSecret::from_bytes(&[1; 32]);
        let (one, two) = (CodePepper::of_tenant(&secret, TenantNo(1)), CodePepper::of_tenant(&secret, TenantNo(2)));
        let digest = one.digest(b"a", "123456");
        assert!(one.fits(b"a", "123456", &digest));
        assert!(!one.fits(b"a", "123457", &digest) && !one.fits(b"b", "123456", &digest));
        assert!(!two.fits(b"a", "123456", &digest) && !one.fits(b"a", "123456", &digest[..16]));
    }

    proptest! {
        #[test]
        fn t40_any_text_is_a_code_or_refused(text in "\\PC{0,20}|[0-9a-zA-Z -]{0,20}", length in 1usize..12) {
            for alphabet in Alphabet::ALL {
                if let Some(code) = alphabet.read(&text, length) {
                    prop_assert_eq!(code.len(), length);
                    prop_assert_eq!(alphabet.read(&code, length), Some(code));
                }
            }
        }
    }
}
