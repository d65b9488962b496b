//! Reading the layouts of other systems.

use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm, Params, Version};
use data_encoding::{BASE64, BASE64_NOPAD, HEXLOWER, HEXLOWER_PERMISSIVE};
use zeroize::Zeroizing;

use super::*;

const FEWEST_KEY: usize = 16;
const MOST_KEY: usize = 64;
const MOST_SALT: usize = 128;

impl ForeignHash {
    /// Reads a hash as the other system keeps it. `limit_kib` bounds the memory that computing it may take.
    ///
    /// # Errors
    /// What is wrong with it, without showing it.
    pub fn parse(text: &str, limit_kib: u32) -> Result<Self, ForeignError> {
        use ForeignError::*;
        if text.len() > MAX_TEXT {
            return Err(Form);
        }
        let scheme = if let Some(rest) = text.strip_prefix("bcrypt_sha256$") {
            bcrypt(rest, true)?
        } else if let Some(rest) = text.strip_prefix("bcrypt$") {
            bcrypt(rest, false)?
        } else if text.starts_with("$2") {
            bcrypt(text, false)?
        } else if let Some(rest) = text.strip_prefix("pbkdf2_sha256$") {
            let [rounds, salt, hash] = parts(rest)?;
            pbkdf2(Prf::Sha256, rounds, salt.as_bytes().to_vec(), base64(hash)?)?
        } else if let Some(rest) = text.strip_prefix("pbkdf2:sha256:") {
            let [rounds, salt, hash] = parts(rest)?;
            pbkdf2(Prf::Sha256, rounds, salt.as_bytes().to_vec(), hex(hash)?)?
        } else if let Some(rest) = text.strip_prefix("pbkdf2:sha512:") {
            let [rounds, salt, hash] = parts(rest)?;
            pbkdf2(Prf::Sha512, rounds, salt.as_bytes().to_vec(), hex(hash)?)?
        } else if let Some(rest) = text.strip_prefix("$pbkdf2-sha256$") {
            let [rounds, salt, hash] = parts(rest)?;
            pbkdf2(Prf::Sha256, rounds, base64(salt)?, base64(hash)?)?
        } else if let Some(rest) = text.strip_prefix("$pbkdf2-sha512$") {
            let [rounds, salt, hash] = parts(rest)?;
            pbkdf2(Prf::Sha512, rounds, base64(salt)?, base64(hash)?)?
        } else if let Some(rest) = text.strip_prefix("scrypt:") {
            let [costs, salt, hash] = parts(rest)?;
            let mut costs = costs.split(':');
            let (Some(n), Some(r), Some(p), None) = (costs.next(), costs.next(), costs.next(), costs.next()) else {
                return Err(Form);
            };
            scrypt(log2(n)?, number(r)?, number(p)?, salt.as_bytes().to_vec(), hex(hash)?, limit_kib)?
        } else if let Some(rest) = text.strip_prefix("scrypt$") {
            let [n, salt, r, p, hash] = parts(rest)?;
            scrypt(log2(n)?, number(r)?, number(p)?, salt.as_bytes().to_vec(), base64(hash)?, limit_kib)?
        } else if let Some(rest) = text.strip_prefix("$scrypt$") {
            let [costs, salt, hash] = parts(rest)?;
            let costs: Vec<&str> = costs.split(',').collect();
            let [n, r, p] = costs[..] else { return Err(Form) };
            let of = |word: &'_ str, name: &str| word.strip_prefix(name).ok_or(Form).and_then(number);
            let log_n = u8::try_from(of(n, "ln=")?).map_err(|_| Cost)?;
            scrypt(log_n, of(r, "r=")?, of(p, "p=")?, base64(salt)?, base64(hash)?, limit_kib)?
        } else if let Some(rest) = text.strip_prefix("argon2$") {
            argon2(&format!("${rest}"), limit_kib)?
        } else if text.starts_with("$argon2") {
            argon2(text, limit_kib)?
        } else if let Some(rest) = text.strip_prefix("md5$") {
            let [salt, hash] = parts(rest)?;
            fast(FastDigest::Md5, salt.as_bytes().to_vec(), true, hex(hash)?)?
        } else if let Some(rest) = text.strip_prefix("sha256$") {
            let [salt, hash] = parts(rest)?;
            fast(FastDigest::Sha256, salt.as_bytes().to_vec(), true, hex(hash)?)?
        } else if let Some(rest) = text.strip_prefix("{SSHA256}") {
            salt_last(FastDigest::Sha256, rest)?
        } else if let Some(rest) = text.strip_prefix("{SMD5}") {
            salt_last(FastDigest::Md5, rest)?
        } else if let Some(rest) = text.strip_prefix("{SHA256}") {
            fast(FastDigest::Sha256, Vec::new(), false, base64(rest)?)?
        } else if let Some(rest) = text.strip_prefix("{MD5}") {
            fast(FastDigest::Md5, Vec::new(), false, base64(rest)?)?
        } else if ["sha1$", "{SSHA}", "{SHA}", "unsalted_md5$", "crypt$"].iter().any(|p| text.starts_with(p)) {
            return Err(Weak);
        } else if text.starts_with("AQAAAA") {
            asp_net(text)?
        } else {
            return Err(Unknown);
        };
        Ok(ForeignHash(scheme))
    }
}

fn parts<const N: usize>(text: &str) -> Result<[&str; N], ForeignError> {
    let found: Vec<&str> = text.split('$').collect();
    found.try_into().map_err(|_| ForeignError::Form)
}

fn number(text: &str) -> Result<u32, ForeignError> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(ForeignError::Form);
    }
    // Only digits, and more of them than a number of 32 bits has.
    text.parse().map_err(|_| ForeignError::Cost)
}

fn log2(text: &str) -> Result<u8, ForeignError> {
    let n = number(text)?;
    if n.is_power_of_two() { Ok(n.trailing_zeros() as u8) } else { Err(ForeignError::Cost) }
}

/// Base64 with or without padding, in the usual alphabet or in that of passlib (`.` for `+`).
fn base64(text: &str) -> Result<Vec<u8>, ForeignError> {
    let usual = text.replace('.', "+");
    let bare = usual.trim_end_matches('=');
    let decoded =
        if usual.len() == bare.len() { BASE64_NOPAD.decode(bare.as_bytes()) } else { BASE64.decode(usual.as_bytes()) };
    decoded.map_err(|_| ForeignError::Form)
}

fn hex(text: &str) -> Result<Vec<u8>, ForeignError> {
    HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(|_| ForeignError::Form)
}

fn sizes(salt: &[u8], hash: &[u8]) -> Result<(), ForeignError> {
    let good = salt.len() <= MOST_SALT && (FEWEST_KEY..=MOST_KEY).contains(&hash.len());
    good.then_some(()).ok_or(ForeignError::Form)
}

fn bcrypt(text: &str, sha256_first: bool) -> Result<Scheme, ForeignError> {
    // The letter x marks hashes of an implementation that lost bits of non-ASCII passwords.
    if text.starts_with("$2x$") {
        return Err(ForeignError::Weak);
    }
    if !["$2a$", "$2b$", "$2y$"].iter().any(|prefix| text.starts_with(prefix)) {
        return Err(ForeignError::Unknown);
    }
    let hash: bcrypt::HashParts = text.parse().map_err(|_| ForeignError::Form)?;
    let cost = hash.get_cost();
    if !(4..=MAX_BCRYPT_COST).contains(&cost) {
        return Err(ForeignError::Cost);
    }
    Ok(Scheme::Bcrypt { cost, text: text.to_owned(), sha256_first })
}

fn pbkdf2(prf: Prf, rounds: &str, salt: Vec<u8>, hash: Vec<u8>) -> Result<Scheme, ForeignError> {
    pbkdf2_of(prf, number(rounds)?, salt, hash)
}

fn pbkdf2_of(prf: Prf, rounds: u32, salt: Vec<u8>, hash: Vec<u8>) -> Result<Scheme, ForeignError> {
    if !(1..=MAX_PBKDF2_ROUNDS).contains(&rounds) {
        return Err(ForeignError::Cost);
    }
    sizes(&salt, &hash)?;
    Ok(Scheme::Pbkdf2 { prf, rounds, salt, hash })
}

fn scrypt(log_n: u8, r: u32, p: u32, salt: Vec<u8>, hash: Vec<u8>, limit_kib: u32) -> Result<Scheme, ForeignError> {
    // N blocks of 128 r bytes are held, and p times as many computed.
    let kib = u64::from(r).checked_shl(u32::from(log_n)).unwrap_or(u64::MAX) / 8;
    let none = log_n == 0 || r == 0 || p == 0;
    if none || log_n > 24 || r > 64 || p > MAX_LANES || kib > u64::from(limit_kib) {
        return Err(ForeignError::Cost);
    }
    sizes(&salt, &hash)?;
    Ok(Scheme::Scrypt { log_n, r, p, salt, hash })
}

fn argon2(text: &str, limit_kib: u32) -> Result<Scheme, ForeignError> {
    let hash = PasswordHash::new(text).map_err(|_| ForeignError::Form)?;
    let algorithm = Algorithm::try_from(hash.algorithm.as_str()).map_err(|_| ForeignError::Unknown)?;
    let version = hash.version.map_or(Ok(Version::V0x10), Version::try_from);
    let (Some(salt), Some(key), Ok(_)) = (&hash.salt, &hash.hash, version) else { return Err(ForeignError::Form) };
    sizes(salt.as_ref(), key.as_bytes())?;
    let params = Params::try_from(&hash).map_err(|_| ForeignError::Cost)?;
    let (memory_kib, passes, lanes) = (params.m_cost(), params.t_cost(), params.p_cost());
    if memory_kib > limit_kib || passes > MAX_ARGON2_PASSES || lanes > MAX_LANES {
        return Err(ForeignError::Cost);
    }
    let name = match algorithm {
        Algorithm::Argon2i => "argon2i",
        Algorithm::Argon2d => "argon2d",
        Algorithm::Argon2id => "argon2id",
    };
    Ok(Scheme::Argon2 { name, text: text.to_owned(), memory_kib, passes, lanes })
}

/// ASP.NET Core Identity, version 3; numbers are big endian.
fn asp_net(text: &str) -> Result<Scheme, ForeignError> {
    let bytes = base64(text)?;
    let (head, rest) = bytes.split_first_chunk::<13>().ok_or(ForeignError::Form)?;
    let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().expect("4 of 13 bytes"));
    let prf = match (head[0], word(1)) {
        (1, 1) => Prf::Sha256,
        (1, 2) => Prf::Sha512,
        (1, 0) => return Err(ForeignError::Weak),
        _ => return Err(ForeignError::Form),
    };
    let (salt, key) = rest.split_at_checked(word(9) as usize).ok_or(ForeignError::Form)?;
    pbkdf2_of(prf, word(5), salt.to_vec(), key.to_vec())
}

fn size_of(digest: FastDigest) -> usize {
    match digest {
        FastDigest::Md5 => 16,
        FastDigest::Sha256 => 32,
    }
}

fn fast(digest: FastDigest, salt: Vec<u8>, salt_first: bool, hash: Vec<u8>) -> Result<Scheme, ForeignError> {
    if hash.len() != size_of(digest) || salt.len() > MOST_SALT {
        return Err(ForeignError::Form);
    }
    Ok(Scheme::Fast { recipe: FastRecipe { digest, salt, salt_first }, hash: Zeroizing::new(hash) })
}

fn salt_last(digest: FastDigest, text: &str) -> Result<Scheme, ForeignError> {
    let both = base64(text)?;
    let (hash, salt) = both.split_at_checked(size_of(digest)).ok_or(ForeignError::Form)?;
    if salt.is_empty() {
        return Err(ForeignError::Form);
    }
    fast(digest, salt.to_vec(), false, hash.to_vec())
}

impl FastRecipe {
    /// As it is stored beside the Argon2id hash: `md5:first:` or `sha256:last:` and the salt in hexadecimal.
    pub fn text(&self) -> String {
        let digest = if self.digest == FastDigest::Md5 { "md5" } else { "sha256" };
        let place = if self.salt_first { "first" } else { "last" };
        format!("{digest}:{place}:{}", HEXLOWER.encode(&self.salt))
    }

    /// The recipe of a stored text.
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(':');
        let digest = match words.next()? {
            "md5" => FastDigest::Md5,
            "sha256" => FastDigest::Sha256,
            _ => return None,
        };
        let salt_first = match words.next()? {
            "first" => true,
            "last" => false,
            _ => return None,
        };
        let salt = HEXLOWER.decode(words.next()?.as_bytes()).ok()?;
        words.next().is_none().then_some(FastRecipe { digest, salt, salt_first })
    }
}
