//! Where archives lie. One folder holds all that a restore needs, so that whoever copies it has it:
//!
//! ```text
//! backups/
//!   keys/<tenant number>.keys          the key archive, live: appended when leaves are born, rewritten nightly
//!   20261121T023000Z/                  one data archive: the time it was begun, in UTC
//!     manifest.json                    written last, signed: an archive without one is not whole
//!     vault.db                         the database, one file without a WAL
//!     read-audit/                      segments of the read audit
//!     ledger                           a copy of the keeper's ledger
//! ```
//!
//! There is one key archive and not one per night: it always covers the database beside it, a rewritten one replaces the
//! one before, and a copy of it is refused once it has expired.

use std::path::{Path, PathBuf};

/// Folder of all archives, in the data directory unless the configuration names another.
pub const BACKUPS: &str = "backups";
/// Folder of the key archive in [`BACKUPS`].
pub const KEYS: &str = "keys";
/// The signed list of an archive's files with their lengths and SHA-256.
pub const MANIFEST: &str = "manifest.json";
/// The database, in an archive as in the data directory.
pub const DATABASE: &str = "vault.db";
/// Folder of the read audit, in an archive as in the data directory.
pub const READ_AUDIT: &str = "read-audit";
/// The copy of the ledger in an archive.
pub const LEDGER: &str = "ledger";

/// Form of the name of a data archive (`jiff::fmt::strtime`), in UTC; names sort by time.
pub const STAMP: &str = "%Y%m%dT%H%M%SZ";

/// Folder of the key archive below the folder of all archives.
pub fn keys(backups: &Path) -> PathBuf {
    backups.join(KEYS)
}
