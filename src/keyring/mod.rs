//! Floor 4: which key, in which state, in memory for how long. The root KEK comes from a provider, the tenants' roots
//! live in the keeper, everything else hangs on the key tree.

pub mod keeper;
pub mod ledger;
pub mod root;
pub mod token;

pub mod allocate;
pub mod archive;
pub mod cache;
pub mod care;
pub mod rebuild;
pub mod rotate;
pub mod state;
pub mod swap;
pub mod tree;

mod error;
mod giving;
mod loading;
mod names;
#[cfg(test)]
mod proof;
mod ring;

pub use archive::{KeyArchive, RecoverySetting, SettingRefused};
pub use error::KeyringError;
pub use names::{ClassRef, KeyRef, SecretKind, secret_slot};
pub use ring::{Keyring, KeyringOptions};
pub use state::TenantKeyState;
pub use swap::{Hook, SwapError, SwapOp, SwapPoint, Swapped};
