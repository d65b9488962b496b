//! Argon2id (RFC 9106) with memory that is used again and wiped after each use: allocating 19 MiB per call costs more than
//! half of the hash itself. And the pepper, without which a copied database does not serve to guess passwords.

use argon2::password_hash::phc::{Output, ParamsString, PasswordHash, Salt};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use zeroize::{Zeroize, Zeroizing};

use crate::crypto::kdf::Label;
use crate::crypto::keys::TenantSecret;
use crate::crypto::stack::wiped;
use crate::crypto::{blind_index, random};

/// A version of a tenant's pepper: HMAC-SHA-256 (RFC 2104) under it comes before Argon2id, so that a hash without the
/// pepper is a hash of 32 unknown bytes.
pub struct PasswordPepper(Zeroizing<[u8; 32]>);

impl PasswordPepper {
    /// From the secret of that version, a reserved slot of the tenant's tree.
    pub fn derive(secret: &TenantSecret) -> Self {
        PasswordPepper(secret.derived(Label::PasswordPepper, &[]))
    }

    /// HMAC-SHA-256(pepper, length as u32 big endian || password).
    pub fn apply(&self, password: &[u8]) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(blind_index::mac(&self.0, &[password]))
    }
}

/// What one hash costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argon2Cost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
    /// Lanes; they run one after the other here.
    pub lanes: u32,
}

impl Argon2Cost {
    /// OWASP's second choice and the crate's default: 19 MiB, 2 passes, 1 lane. About 27 ms on a 2023 server core.
    pub const DEFAULT: Argon2Cost = Argon2Cost { memory_kib: 19_456, passes: 2, lanes: 1 };
}

impl Argon2Cost {
    /// The cost that a PHC string names, if it is Argon2id of version 19.
    pub fn of(stored: &str) -> Option<Self> {
        let stored = PasswordHash::new(stored).ok()?;
        let right = stored.algorithm == Algorithm::Argon2id.ident() && stored.version == Some(Version::V0x13.into());
        let params = Params::try_from(&stored).ok().filter(|_| right)?;
        Some(Argon2Cost { memory_kib: params.m_cost(), passes: params.t_cost(), lanes: params.p_cost() })
    }

    /// As in a PHC string.
    pub fn text(&self) -> String {
        format!("m={},t={},p={}", self.memory_kib, self.passes, self.lanes)
    }
}

/// Why a hash could not be made or checked; a wrong password is not an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PasswordError {
    /// The cost is outside of what Argon2 allows.
    #[error("cost outside the limits of Argon2")]
    Cost,
    /// The stored text is not an Argon2id PHC string (version 19, salt and hash present).
    #[error("not an Argon2id PHC string")]
    Form,
    /// The stored text asks for more memory or passes than this vault gives: perhaps planted to exhaust it.
    #[error("a stored hash asks for more than this vault gives")]
    TooCostly,
}

/// Passes that a stored hash may ask for.
const MAX_PASSES: u32 = 16;
const SALT_BYTES: usize = 16;
const HASH_BYTES: usize = 32;

/// The memory of one hash at a time. Empty until the first use, then kept; wiped after every use.
pub struct Argon2Memory {
    blocks: Vec<Block>,
    limit_kib: u32,
}

impl Argon2Memory {
    /// Memory that will grow to what is needed, never beyond `limit_kib` (but at least the minimum of Argon2, 8 KiB a lane).
    pub fn new(limit_kib: u32) -> Self {
        Argon2Memory { blocks: Vec::new(), limit_kib }
    }

    /// Takes the memory for hashes of that cost now rather than with the first.
    pub fn reserve(&mut self, cost: Argon2Cost) {
        if let Ok(params) = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(HASH_BYTES)) {
            self.blocks.resize(params.block_count().max(self.blocks.len()), Block::new());
        }
    }

    /// Gives back what a hash of another cost took beyond this one.
    pub fn shrink(&mut self, cost: Argon2Cost) {
        let usual = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(HASH_BYTES)).map(|p| p.block_count());
        if usual.is_ok_and(|usual| self.blocks.len() > usual) {
            self.blocks.truncate(usual.unwrap_or_default());
            self.blocks.shrink_to_fit();
        }
    }

    /// Bytes held now.
    pub fn held_bytes(&self) -> usize {
        self.blocks.capacity() * Block::SIZE
    }

    /// Hashes with a fresh random salt; answers the PHC string
    /// `$argon2id$v=19$m=..,t=..,p=..$salt$hash`.
    pub fn hash(&mut self, cost: Argon2Cost, password: &[u8]) -> Result<String, PasswordError> {
        let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(HASH_BYTES));
        let params = params.map_err(|_| PasswordError::Cost)?;
        let salt: [u8; SALT_BYTES] = random::bytes();
        let mut out = Zeroizing::new([0u8; HASH_BYTES]);
        self.run(&params, password, &salt, &mut out[..])?;
        let phc = PasswordHash {
            algorithm: Algorithm::Argon2id.ident(),
            version: Some(Version::V0x13.into()),
            params: ParamsString::try_from(&params).map_err(|_| PasswordError::Cost)?,
            salt: Some(Salt::new(&salt).map_err(|_| PasswordError::Form)?),
            hash: Some(Output::new(&out[..]).map_err(|_| PasswordError::Form)?),
        };
        Ok(phc.to_string())
    }

    /// Whether the password is the one of the stored PHC string; compares in constant time.
    pub fn verify(&mut self, stored: &str, password: &[u8]) -> Result<bool, PasswordError> {
        let stored = PasswordHash::new(stored).map_err(|_| PasswordError::Form)?;
        if stored.algorithm != Algorithm::Argon2id.ident() || stored.version != Some(Version::V0x13.into()) {
            return Err(PasswordError::Form);
        }
        self.compare(&stored, Algorithm::Argon2id, Version::V0x13, password)
    }

    /// The same for a hash that another system made: any of the three variants, version 16 too.
    pub fn verify_any(&mut self, stored: &str, password: &[u8]) -> Result<bool, PasswordError> {
        let stored = PasswordHash::new(stored).map_err(|_| PasswordError::Form)?;
        let algorithm = Algorithm::try_from(stored.algorithm.as_str()).map_err(|_| PasswordError::Form)?;
        let version = stored.version.map_or(Ok(Version::V0x10), Version::try_from).map_err(|_| PasswordError::Form)?;
        self.compare(&stored, algorithm, version, password)
    }

    fn compare(
        &mut self,
        stored: &PasswordHash,
        algorithm: Algorithm,
        version: Version,
        password: &[u8],
    ) -> Result<bool, PasswordError> {
        let (Some(salt), Some(hash)) = (&stored.salt, &stored.hash) else { return Err(PasswordError::Form) };
        let params = Params::try_from(stored).map_err(|_| PasswordError::Form)?;
        let mut out = Zeroizing::new(vec![0u8; hash.len()]);
        self.run_as(algorithm, version, &params, password, salt.as_ref(), &mut out)?;
        Ok(blind_index::equal(&out, hash.as_bytes()))
    }

    /// 32 bytes from a password and a salt of at least 8 bytes, for making a key of them.
    pub fn derive(
        &mut self,
        cost: Argon2Cost,
        password: &[u8],
        salt: &[u8],
    ) -> Result<Zeroizing<[u8; 32]>, PasswordError> {
        let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(HASH_BYTES));
        let mut out = Zeroizing::new([0u8; HASH_BYTES]);
        self.run(&params.map_err(|_| PasswordError::Cost)?, password, salt, &mut out[..])?;
        Ok(out)
    }

    fn run(&mut self, params: &Params, password: &[u8], salt: &[u8], out: &mut [u8]) -> Result<(), PasswordError> {
        self.run_as(Algorithm::Argon2id, Version::V0x13, params, password, salt, out)
    }

    fn run_as(
        &mut self,
        algorithm: Algorithm,
        version: Version,
        params: &Params,
        password: &[u8],
        salt: &[u8],
        out: &mut [u8],
    ) -> Result<(), PasswordError> {
        if params.m_cost() > self.limit_kib || params.t_cost() > MAX_PASSES {
            return Err(PasswordError::TooCostly);
        }
        let needed = params.block_count();
        if self.blocks.len() < needed {
            self.blocks.resize(needed, Block::new());
        }
        let argon2 = Argon2::new(algorithm, version, params.clone());
        let done = wiped(|| argon2.hash_password_into_with_memory(password, salt, out, &mut self.blocks[..needed]));
        self.blocks[..needed].iter_mut().for_each(Zeroize::zeroize);
        done.map_err(|_| PasswordError::Form)
    }
}

impl std::fmt::Debug for Argon2Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Argon2Memory({} bytes)", self.held_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHEAP: Argon2Cost = Argon2Cost { memory_kib: 64, passes: 1, lanes: 1 };

    #[test]
    fn a_hash_verifies_and_memory_is_kept_and_wiped() {
        let mut memory = Argon2Memory::new(1024);
        assert_eq!(memory.held_bytes(), 0);
        let stored = memory.hash(CHEAP, b"secret").unwrap();
        assert!(stored.starts_with("$argon2id$v=19$m=64,t=1,p=1$"), "{stored}");
        assert_ne!(stored, memory.hash(CHEAP, b"secret").unwrap(), "a salt of its own");
        assert_eq!(memory.held_bytes(), 64 << 10);
        assert!(memory.verify(&stored, b"secret").unwrap());
        assert!(!memory.verify(&stored, b"secreu").unwrap());
        assert!(memory.blocks.iter().all(|b| b.as_ref().iter().all(|w| *w == 0)));
    }

    #[test]
    fn agrees_with_the_crate_and_with_the_reference() {
        // argon2 -id -t 2 -m 16 -p 1 of the reference implementation's test.c: m = 65,536 KiB.
        let stored = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
        let mut memory = Argon2Memory::new(65_536);
        assert!(memory.verify(stored, b"password").unwrap());
        assert!(!memory.verify(stored, b"differentpassword").unwrap());
    }

    #[test]
    fn what_is_stored_is_not_trusted() {
        let mut memory = Argon2Memory::new(1024);
        for bad in [
            "",
            "plain",
            "$argon2i$v=19$m=64,t=1,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
            "$argon2id$v=16$m=64,t=1,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
            "$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQ",
        ] {
            assert_eq!(memory.verify(bad, b"x"), Err(PasswordError::Form), "{bad}");
        }
        let hash = "c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
        for cost in ["m=4000000,t=1,p=1", "m=64,t=4000000,p=1"] {
            let planted = format!("$argon2id$v=19${cost}${hash}");
            assert_eq!(memory.verify(&planted, b"x"), Err(PasswordError::TooCostly));
        }
        assert_eq!(memory.held_bytes(), 0);
        assert_eq!(memory.hash(Argon2Cost { passes: 0, ..CHEAP }, b"x"), Err(PasswordError::Cost));
    }
}
