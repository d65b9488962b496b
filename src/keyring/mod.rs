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

#[cfg(test)]
mod proof;
mod ring;

pub use archive::{KeyArchive, RecoverySetting, SettingRefused};
pub use ring::{ClassRef, KeyRef, Keyring, KeyringError, KeyringOptions, SecretKind, secret_slot};
pub use state::TenantKeyState;
pub use swap::{Hook, SwapError, SwapOp, SwapPoint, Swapped};
