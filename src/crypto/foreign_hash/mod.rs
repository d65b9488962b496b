//! Password hashes that other systems made: which forms are known, and whether a password is that of a hash.
//!
//! ```text
//! bcrypt   $2a$ $2b$ $2y$; Django's bcrypt$ and bcrypt_sha256$
//! PBKDF2   Django pbkdf2_sha256$, Werkzeug pbkdf2:sha256: and pbkdf2:sha512:, passlib $pbkdf2-sha256$ and -sha512,
//!          ASP.NET Identity v3 (Base64 of 01, PRF, rounds, length of the salt, salt, key)
//! scrypt   Werkzeug scrypt:N:r:p$, Django scrypt$, passlib $scrypt$ln=
//! Argon2   $argon2i$ $argon2d$ $argon2id$, versions 16 and 19; Django's argon2$
//! fast     Django md5$salt$, sha256$salt$ (salt first), {SSHA256} {SMD5} (salt last), {SHA256} {MD5} (none)
//! ```
//! Fast hashes are never checked as they are: what is stored of one is Argon2id over its digest ([`FastRecipe`]).

mod parse;
mod verify;

use zeroize::Zeroizing;

/// Why a text is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ForeignError {
    #[error("is not a form of hash that is known here")]
    Unknown,
    #[error("is not a well-formed hash of its kind")]
    Form,
    #[error("asks for more time or memory than this vault gives, or for none")]
    Cost,
    #[error("is of a kind that is not taken: the algorithm has a known fault")]
    Weak,
}

/// Highest cost of bcrypt that is computed: 2^14 rounds, about 1 s.
pub const MAX_BCRYPT_COST: u32 = 14;
/// Most rounds of PBKDF2 that are computed, about 1 s.
pub const MAX_PBKDF2_ROUNDS: u32 = 2_000_000;
/// Most passes of Argon2.
pub const MAX_ARGON2_PASSES: u32 = 16;
/// Most lanes of Argon2 and scrypt.
pub const MAX_LANES: u32 = 16;
/// Longest text of a hash, bytes.
pub const MAX_TEXT: usize = 1_024;

/// The hash under PBKDF2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Prf {
    Sha256,
    Sha512,
}

/// The digest of a fast hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FastDigest {
    Md5,
    Sha256,
}

/// How a fast hash is made of a password: everything about it but the hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FastRecipe {
    digest: FastDigest,
    salt: Vec<u8>,
    salt_first: bool,
}

enum Scheme {
    Bcrypt { cost: u32, text: String, sha256_first: bool },
    Pbkdf2 { prf: Prf, rounds: u32, salt: Vec<u8>, hash: Vec<u8> },
    Scrypt { log_n: u8, r: u32, p: u32, salt: Vec<u8>, hash: Vec<u8> },
    Argon2 { name: &'static str, text: String, memory_kib: u32, passes: u32, lanes: u32 },
    Fast { recipe: FastRecipe, hash: Zeroizing<Vec<u8>> },
}

/// A hash of another system, well formed and of a cost that this vault pays.
pub struct ForeignHash(Scheme);

impl std::fmt::Debug for ForeignHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ForeignHash({})", self.algorithm())
    }
}

impl ForeignHash {
    /// What reports call it.
    pub fn algorithm(&self) -> &'static str {
        match &self.0 {
            Scheme::Bcrypt { .. } => "bcrypt",
            Scheme::Pbkdf2 { prf: Prf::Sha256, .. } => "pbkdf2-sha256",
            Scheme::Pbkdf2 { prf: Prf::Sha512, .. } => "pbkdf2-sha512",
            Scheme::Scrypt { .. } => "scrypt",
            Scheme::Argon2 { name, .. } => name,
            Scheme::Fast { recipe, .. } => recipe.algorithm(),
        }
    }

    /// Its parameters, in the words of PHC strings.
    pub fn parameters(&self) -> String {
        match &self.0 {
            Scheme::Bcrypt { cost, .. } => format!("cost={cost}"),
            Scheme::Pbkdf2 { rounds, .. } => format!("i={rounds}"),
            Scheme::Scrypt { log_n, r, p, .. } => format!("ln={log_n},r={r},p={p}"),
            Scheme::Argon2 { memory_kib, passes, lanes, .. } => format!("m={memory_kib},t={passes},p={lanes}"),
            Scheme::Fast { .. } => String::new(),
        }
    }

    /// The recipe and the digest of a fast hash, which must be wrapped; `None` for one that may rest as it is.
    pub fn fast(&self) -> Option<(&FastRecipe, &[u8])> {
        match &self.0 {
            Scheme::Fast { recipe, hash } => Some((recipe, hash)),
            _ => None,
        }
    }
}

impl FastRecipe {
    /// What reports call a password that is kept so.
    pub fn algorithm(&self) -> &'static str {
        match self.digest {
            FastDigest::Md5 => "argon2id(md5)",
            FastDigest::Sha256 => "argon2id(sha256)",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::password::Argon2Memory;
    use proptest::prelude::*;

    #[derive(serde::Deserialize)]
    struct Vector {
        form: String,
        algorithm: String,
        password: String,
        hash: String,
    }

    fn vectors() -> Vec<Vector> {
        serde_json::from_str(include_str!("../../../tests/vectors/passwords-v1.json")).unwrap()
    }

    const LIMIT_KIB: u32 = 65_536;

    fn holds(hash: &ForeignHash, password: &[u8], memory: &mut Argon2Memory) -> bool {
        match hash.fast() {
            Some((recipe, digest)) => recipe.digest(password).as_slice() == digest,
            None => hash.verify(password, memory).unwrap(),
        }
    }

    #[test]
    fn hashes_of_independent_implementations_verify_and_near_misses_do_not() {
        let mut memory = Argon2Memory::new(LIMIT_KIB);
        let all = vectors();
        assert!(all.len() > 80, "{}", all.len());
        for v in &all {
            let hash = ForeignHash::parse(&v.hash, LIMIT_KIB).unwrap_or_else(|e| panic!("{}: {e}", v.form));
            assert_eq!(hash.algorithm(), v.algorithm, "{}", v.form);
            assert!(holds(&hash, v.password.as_bytes(), &mut memory), "{}: {}", v.form, v.password);
            let wrong = format!("{}x", &v.password[..v.password.len().min(60)]);
            assert!(!holds(&hash, wrong.as_bytes(), &mut memory), "{}", v.form);
        }
    }

    #[test]
    fn bcrypt_reads_72_bytes_and_no_more() {
        let mut memory = Argon2Memory::new(LIMIT_KIB);
        let long = vectors().into_iter().find(|v| v.form == "bcrypt 2b" && v.password.len() == 100).unwrap();
        let hash = ForeignHash::parse(&long.hash, LIMIT_KIB).unwrap();
        assert!(hash.verify(&long.password.as_bytes()[..72], &mut memory).unwrap());
        assert!(!hash.verify(&long.password.as_bytes()[..71], &mut memory).unwrap());
    }

    #[test]
    fn absurd_parameters_are_refused_before_anything_is_computed() {
        let argon = |m: u64, t: u64, p: u64| {
            format!(
                "$argon2id$v=19$m={m},t={t},p={p}$AAECAwQFBgcICQoLDA0ODw$5LzIIXvch3JdTOvNzWeGZ16UVocX0TxkVMAfrZ0tyH8"
            )
        };
        let bcrypt = "abcdefghijklmnopqrstuu7EJV7kdjBBQxyb0HjTh9KS7.Lah/6CG";
        for text in [
            argon(4 << 20, 1, 1),
            argon(256, 17, 1),
            argon(256, 1, 17),
            format!("$2b$31${bcrypt}"),
            format!("$2b$15${bcrypt}"),
            "pbkdf2:sha256:4000000000$s$00112233445566778899aabbccddeeff".into(),
            "pbkdf2:sha256:0$s$00112233445566778899aabbccddeeff".into(),
            "scrypt:1048576:8:1$s$00112233445566778899aabbccddeeff".into(),
            "scrypt:1024:8:4000000$s$00112233445566778899aabbccddeeff".into(),
        ] {
            assert_eq!(ForeignHash::parse(&text, LIMIT_KIB).unwrap_err(), ForeignError::Cost, "{text}");
        }
    }

    #[test]
    fn what_is_broken_or_unknown_is_named_so() {
        use ForeignError::*;
        for (text, why) in [
            ("", Unknown),
            ("plain", Unknown),
            ("5f4dcc3b5aa765d61d8327deb882cf99", Unknown),
            ("$6$rounds=5000$abc$def", Unknown),
            ("$2b$12$short", Form),
            ("$2x$04$abcdefghijklmnopqrstuu7EJV7kdjBBQxyb0HjTh9KS7.Lah/6CG", Weak),
            ("sha1$abc$00112233445566778899aabbccddeeff00112233", Weak),
            ("$argon2id$v=19$m=256,t=0,p=1$AAECAwQFBgcICQoLDA0ODw$5LzIIXvch3JdTOvNzWeGZ16UVocX0TxkVMAfrZ0tyH8", Cost),
            ("$argon2id$v=19$m=256,t=2,p=1$AAECAwQFBgcICQoLDA0ODw", Form),
            ("md5$salt$0011", Form),
            ("{SMD5}AAAA", Form),
            ("pbkdf2_sha256$1000$salt$!!!", Form),
            ("pbkdf2_sha256$1000$salt$AAAA", Form),
        ] {
            assert_eq!(ForeignHash::parse(text, LIMIT_KIB).unwrap_err(), why, "{text}");
        }
    }

    #[test]
    fn a_recipe_reads_back() {
        for v in vectors().iter().filter(|v| v.algorithm.starts_with("argon2id(")) {
            let hash = ForeignHash::parse(&v.hash, LIMIT_KIB).unwrap();
            let (recipe, digest) = hash.fast().unwrap();
            let back = FastRecipe::parse(&recipe.text()).unwrap();
            assert_eq!(&back, recipe);
            assert_eq!(back.digest(v.password.as_bytes()).as_slice(), digest);
        }
    }

    proptest! {
        #[test]
        fn t40_no_text_panics_the_reader(text in "\\PC{0,80}", at in 0usize..90, vector in 0usize..80) {
            let _ = ForeignHash::parse(&text, LIMIT_KIB);
            let known = &vectors()[vector].hash;
            let cut = at.min(known.len());
            let _ = ForeignHash::parse(&format!("{}{text}", &known[..cut]), LIMIT_KIB);
            let _ = FastRecipe::parse(&text);
        }
    }
}
