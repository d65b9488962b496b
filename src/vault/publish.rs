//! Which checkpoints another party still lacks, and how far it has come: the vault's side of external anchors. A cursor
//! for each place is a row of the store, so a restart goes on where it was.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::audit::Checkpoint;
use crate::clock::Timestamp;
use crate::ids::*;
use crate::storage::*;
use crate::vault::error::VaultError;
use crate::vault::{Vault, to_json};

/// The last checkpoint that a place took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Taken {
    at: Timestamp,
    root: String,
}

impl Taken {
    /// As a place took this one.
    pub fn of(checkpoint: &Checkpoint) -> Self {
        Taken { at: checkpoint.at(), root: checkpoint.root().to_owned() }
    }

    /// When it was signed.
    pub fn at(&self) -> Timestamp {
        self.at
    }
}

/// The name of a place's row; where it is stays in the configuration.
fn row_key(place: &str) -> Vec<u8> {
    [b"published", &Sha256::digest(place.as_bytes())[..16]].concat()
}

impl Vault {
    /// How far a place has come; `None`: it took nothing yet.
    pub async fn published(&self, place: &str) -> Result<Option<Taken>, VaultError> {
        let row = self.store.object(TenantNo::VAULT, ObjectKind::Setting, row_key(place)).await?;
        row.map(|row| serde_json::from_slice(&row.body).map_err(|_| VaultError::DataLoss)).transpose()
    }

    /// A place took this checkpoint.
    pub async fn note_published(&self, place: &str, taken: &Taken) -> Result<(), VaultError> {
        let (tenant, kind, key) = (TenantNo::VAULT, ObjectKind::Setting, row_key(place));
        let row = self.store.object(tenant, kind, key.clone()).await?;
        let revision = Revision(row.map_or(0, |row| row.revision.0) + 1);
        let mut change = ChangeSet::default();
        change.change(Mutation::PutObject(ObjectRow { tenant, kind, key, revision, body: to_json(taken) }));
        self.store.commit(change).await?;
        Ok(())
    }

    /// The checkpoints that a place lacks, oldest first: of the days since, the last one of each, then the newest. Each
    /// extends the ones before it, so those that were superseded within a day prove nothing more.
    pub async fn unpublished(&self, taken: Option<&Taken>) -> Result<Vec<Checkpoint>, VaultError> {
        let mut kept = self.kept_checkpoints().await?;
        kept.sort_by_key(Checkpoint::at);
        kept.dedup_by(|a, b| a.root() == b.root() && a.at() == b.at());
        let Some(newest) = self.stored_checkpoint().await? else { return Ok(Vec::new()) };
        if taken.is_some_and(|taken| taken.root == newest.root() && taken.at == newest.at()) {
            return Ok(Vec::new());
        }
        kept.retain(|one| taken.is_none_or(|taken| one.at() > taken.at) && one.at() < newest.at());
        kept.push(newest);
        Ok(kept)
    }
}
