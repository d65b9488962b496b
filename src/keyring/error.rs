//! Why a key cannot be had.

use crate::ids::*;
use crate::keyring::archive::SettingRefused;
use crate::keyring::keeper::KeeperError;
use crate::keyring::state::TenantKeyState;
use crate::keyring::tree::TreeError;
use crate::storage::StoreError;

/// Why a key cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// Its keys are not in a state to serve.
    #[error("the keys of tenant {tenant} are not usable: {state:?}")]
    Refused { tenant: TenantNo, state: TenantKeyState },
    #[error("there is no tenant {tenant}")]
    UnknownTenant { tenant: TenantNo },
    /// The slot holds another key than the row said: the row is of another time. Read it again; if it still says so, it
    /// is damage.
    #[error("slot {slot} holds another key")]
    OtherKey { slot: Slot },
    /// A node does not open although its parent is of the same snapshot.
    #[error("the key tree of tenant {tenant} is damaged")]
    Damaged { tenant: TenantNo, source: TreeError },
    /// Every slot of the tree is given.
    #[error("no slot is left in the tree of tenant {tenant}")]
    Full { tenant: TenantNo },
    /// No slot may be given: the key archive cannot be written.
    #[error("no covered slot is left in the tree of tenant {tenant}")]
    Uncovered { tenant: TenantNo },
    /// The keeper's signing key does not open: the root KEK is another one, or the block is damaged.
    #[error("this root KEK is not the one the keeper was made with")]
    WrongKek,
    /// The keeper has no signing key: `init` was not run, or the block is lost.
    #[error("the keeper holds no signing key")]
    NoSigningKey,
    /// The number is in the keeper or the database already.
    #[error("tenant number {tenant} is taken")]
    NumberTaken { tenant: TenantNo },
    #[error(transparent)]
    Recovery(#[from] SettingRefused),
    /// The task that swaps roots died; restart.
    #[error("the keyring has stopped")]
    Stopped,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Keeper(#[from] KeeperError),
}

impl KeyringError {
    /// A node does not open: said in the log at once, because it is never a caller's fault.
    pub(super) fn damaged(tenant: TenantNo, source: TreeError) -> Self {
        tracing::error!(tenant = tenant.0, error = %source, "a node of the key tree does not open");
        KeyringError::Damaged { tenant, source }
    }
}
