//! Who is in a database, read beside whoever has it open. Nothing of it is changed, not even a file beside it.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::StoreError;
use super::error::{Result, engine};
use super::file::check_header;
use super::schema::VAULT;
use crate::ids::{SubjectUid, TenantNo, VaultId};

/// One person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Person {
    pub tenant: TenantNo,
    pub uid: SubjectUid,
    /// A class of theirs has a key.
    pub keyed: bool,
}

/// The vault of a database, and everyone in it in order of tenant and number, at one moment. 16 B a person. Blocking.
pub fn people(path: &Path) -> Result<(VaultId, Vec<Person>)> {
    let conn = look(path)?;
    let vault = conn.query_row("SELECT value FROM meta WHERE key = ?1", [VAULT], |row| row.get(0)).map_err(engine)?;
    let mut all = conn
        .prepare(
            "SELECT tenant, uid, EXISTS(SELECT 1 FROM subject_class c
                 WHERE c.id >= s.uid << 5 AND c.id < (s.uid + 1) << 5 AND c.slot IS NOT NULL)
             FROM subject s ORDER BY tenant, uid",
        )
        .map_err(engine)?;
    let rows = all.query_map([], |row| {
        Ok(Person { tenant: TenantNo(row.get(0)?), uid: SubjectUid(row.get(1)?), keyed: row.get(2)? })
    });
    let rows = rows.map_err(engine)?.collect::<std::result::Result<_, _>>().map_err(engine)?;
    Ok((VaultId(vault), rows))
}

fn look(path: &Path) -> Result<Connection> {
    check_header(path)?;
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    // Without a log nobody has it open: a file beside it that we made might be one that its owner may not write.
    let still = if Path::new(&log).exists() { "" } else { "&immutable=1" };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let name = super::copy::as_uri(path).ok_or(StoreError::Refused { what: "its name is not UTF-8" })?;
    let conn = Connection::open_with_flags(format!("{name}?mode=ro{still}"), flags).map_err(engine)?;
    conn.busy_timeout(std::time::Duration::from_secs(5)).map_err(engine)?;
    Ok(conn)
}
