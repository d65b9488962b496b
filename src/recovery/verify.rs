//! The check of a data archive with nothing but its files and the vault's public key.

use std::path::Path;

use crate::keyring::ledger::{LedgerError, LedgerReader};
use crate::recovery::layout::{DATABASE, LEDGER};
use crate::recovery::manifest::{Manifest, ManifestError, SignedManifest};
use crate::storage::StoreError;
use crate::storage::sqlite::check_file;

/// What a right archive says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveReport {
    pub manifest: Manifest,
    /// Who signed it.
    pub public_key: [u8; 32],
}

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("{DATABASE}")]
    Database(#[source] StoreError),
    #[error("{LEDGER}")]
    Ledger(#[source] LedgerError),
    /// The copy of the ledger ends elsewhere than its manifest says.
    #[error("{LEDGER} does not end where the manifest says")]
    LedgerEnd,
}

/// Checks signature, files, database pages, ledger chain. `trusted`: keys of which one must have signed. `more` is told of
/// the bytes read and stops it with `false`. Blocking.
pub fn check_archive(
    dir: &Path,
    trusted: Option<&[[u8; 32]]>,
    more: &mut dyn FnMut(u64) -> bool,
) -> Result<ArchiveReport, VerifyError> {
    let signed = SignedManifest::read(dir)?;
    if let Some(trusted) = trusted {
        signed.signed_by(trusted)?;
    }
    signed.check_files(dir, more)?;
    let SignedManifest { manifest, public_key } = signed;
    let schema = check_file(&dir.join(DATABASE)).map_err(VerifyError::Database)?;
    let form = |what| VerifyError::Manifest(ManifestError::Form { what });
    if schema != manifest.schema {
        return Err(form("the database has another schema than it says"));
    }
    let vault = manifest.vault().ok_or(form("its vault has no right form"))?;
    let ledger = LedgerReader::open(&dir.join(LEDGER), vault).map_err(VerifyError::Ledger)?;
    // A vault whose keys were lost and made anew signs with another key: then the manifest vouches for the older part.
    let keys = [trusted.unwrap_or_default(), &[public_key]].concat();
    let head = ledger.verify(&keys, None).map_err(VerifyError::Ledger)?;
    match manifest.ledger() == Some(head) {
        true => Ok(ArchiveReport { manifest, public_key }),
        false => Err(VerifyError::LedgerEnd),
    }
}
