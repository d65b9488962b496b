//! Where the root KEK comes from: a file, the environment, a systemd credential or a passphrase. Never from the data.

use async_trait::async_trait;

use crate::crypto::keys::RootKek;

/// Why there is no root KEK; no secret and no path in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    #[error("the root key is not there: {what}")]
    Missing { what: String },
    /// Others than the owner may read it.
    #[error("the root key's file has mode {mode:o}, wanted 600 or stricter")]
    Exposed { mode: u32 },
    #[error("the root key has the wrong form: {rule}")]
    Form { rule: &'static str },
    #[error("the root key could not be read: {what}")]
    Io { what: String },
}

/// A source of the root KEK. A wrong passphrase or file is noticed by the KEK's id, which the keeper's blocks name.
#[async_trait]
pub trait RootProvider: Send + Sync {
    /// The kind only, e.g. `file`; no secret, no path.
    fn describe(&self) -> String;
    /// Reads or derives it; nothing is cached.
    async fn load(&self) -> Result<RootKek, RootError>;
}
