//! Floor 5, beside the vault: archives of the data, and getting everyone living back from them. Sees the vault; the
//! vault does not see it.

pub mod backups;
pub mod catalogue;
pub mod data_archive;
pub mod layout;
pub mod manifest;
pub mod replay;
pub mod restore;
pub mod swapping;
pub mod verify;
