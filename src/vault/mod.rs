//! Floor 5: what the product does. No tonic, no SQL, no AES.

pub mod record;
