//! Computing what other systems computed.

use hmac::Hmac;
use md5::Md5;
use sha2::{Digest, Sha256, Sha512};
use zeroize::Zeroizing;

use super::*;
use crate::crypto::blind_index;
use crate::crypto::password::{Argon2Memory, PasswordError};

impl ForeignHash {
    /// Whether the password is that of the hash; compares in constant time. bcrypt reads 72 bytes and no more, as it
    /// always did.
    ///
    /// # Errors
    /// `Form` for a fast hash, which must be wrapped, and for one that cannot be computed after all.
    pub fn verify(&self, password: &[u8], memory: &mut Argon2Memory) -> Result<bool, PasswordError> {
        let (computed, hash) = match &self.0 {
            Scheme::Bcrypt { text, sha256_first, .. } => {
                let hexed = Zeroizing::new(match sha256_first {
                    true => data_encoding::HEXLOWER.encode(&Sha256::digest(password)).into_bytes(),
                    false => Vec::new(),
                });
                let input = if *sha256_first { hexed.as_slice() } else { password };
                return bcrypt::verify(input, text).map_err(|_| PasswordError::Form);
            }
            Scheme::Argon2 { text, .. } => return memory.verify_any(text, password),
            Scheme::Pbkdf2 { prf, rounds, salt, hash } => {
                let mut out = Zeroizing::new(vec![0; hash.len()]);
                let done = match prf {
                    Prf::Sha256 => pbkdf2::pbkdf2::<Hmac<Sha256>>(password, salt, *rounds, &mut out),
                    Prf::Sha512 => pbkdf2::pbkdf2::<Hmac<Sha512>>(password, salt, *rounds, &mut out),
                };
                done.map_err(|_| PasswordError::Form)?;
                (out, hash)
            }
            Scheme::Scrypt { log_n, r, p, salt, hash } => {
                let params = scrypt::Params::new(*log_n, *r, *p).map_err(|_| PasswordError::Cost)?;
                let mut out = Zeroizing::new(vec![0; hash.len()]);
                scrypt::scrypt(password, salt, &params, &mut out).map_err(|_| PasswordError::Form)?;
                (out, hash)
            }
            Scheme::Fast { .. } => return Err(PasswordError::Form),
        };
        Ok(blind_index::equal(&computed, hash))
    }
}

impl FastRecipe {
    /// The digest that the other system made of a password.
    pub fn digest(&self, password: &[u8]) -> Zeroizing<Vec<u8>> {
        let (before, after) = if self.salt_first { (&self.salt[..], &[][..]) } else { (&[][..], &self.salt[..]) };
        Zeroizing::new(match self.digest {
            FastDigest::Md5 => {
                Md5::new().chain_update(before).chain_update(password).chain_update(after).finalize().to_vec()
            }
            FastDigest::Sha256 => {
                Sha256::new().chain_update(before).chain_update(password).chain_update(after).finalize().to_vec()
            }
        })
    }
}
