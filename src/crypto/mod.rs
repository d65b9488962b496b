//! Floor 1: bytes and keys. Nothing here knows a database, a clock or the network.

pub mod aad;
pub mod aead;
pub mod blind_index;
pub mod common_password;
pub mod document;
pub mod foreign_hash;
pub mod kdf;
pub mod keys;
pub mod merkle;
pub mod password;
pub mod random;
pub mod recovery;
pub mod sign;
pub mod stack;

#[cfg(test)]
mod timing;
#[cfg(test)]
mod vectors;
#[cfg(test)]
mod wycheproof;
