//! Floor 5: what the product does. No tonic, no SQL, no AES.

pub mod access_cache;
pub mod admission;
pub mod record;
