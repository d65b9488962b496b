//! A look at a keeper that another process has open: reads the sealed signing key, and nothing that could open a person.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::block::{self, BLOCK, RECORD, Record, RecordKind};
use super::file::ROOTS;
use super::replica::own_place;
use crate::ids::VaultId;

/// The newest sealed signing key of the replica in `dir` ([`super::open_signing`] opens it) and the vault it is of; `None`
/// where there is none that is whole. Takes no lock: a block that is written meanwhile fails its check, and its twin
/// counts. Blocking.
pub fn peek_signing(dir: &Path) -> io::Result<Option<(VaultId, Vec<u8>)>> {
    let file = File::open(dir.join(ROOTS))?;
    let mut newest: Option<(u64, VaultId, Vec<u8>)> = None;
    for place in 0..2 {
        let mut record = [0; RECORD];
        file.read_exact_at(&mut record, (own_place(RecordKind::Signing) + place) * BLOCK)?;
        let vault = block::vault_of(&record);
        if let Record::Own { kind: RecordKind::Signing, sequence, bytes } = block::decode(vault, &record)
            && newest.as_ref().is_none_or(|(known, ..)| sequence > *known)
        {
            newest = Some((sequence, vault, bytes));
        }
    }
    Ok(newest.map(|(_, vault, bytes)| (vault, bytes)))
}
