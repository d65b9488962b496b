//! The file of a database: looked at before SQLite does, kept from other processes, opened with every setting.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::error::{Fault, Result, engine, fault};
use super::{Options, schema};
use crate::ids::VaultId;
use crate::storage::{StoreError, exclusive};

/// Opens a connection and sets everything that a default could decide differently. The test reads all of it back.
pub(super) fn connect(options: &Options, reader: bool) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(&options.path, flags).map_err(engine)?;
    conn.set_prepared_statement_cache_capacity(256);
    // Only a checkpoint that wants the whole log can wait for readers, and copies are the only long ones.
    conn.busy_timeout(Duration::from_secs(2)).map_err(engine)?;
    let set = |name: &str, value: &dyn rusqlite::ToSql| conn.pragma_update(None, name, value).map_err(engine);
    set("page_size", &4096)?;
    if !reader {
        let mode: String =
            conn.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0)).map_err(engine)?;
        if mode != "wal" {
            return Err(StoreError::Refused { what: "its file system cannot hold a write-ahead log" });
        }
    }
    set("synchronous", &"FULL")?;
    set("foreign_keys", &true)?;
    set("secure_delete", &true)?;
    set("temp_store", &"MEMORY")?;
    set("trusted_schema", &false)?;
    set("cell_size_check", &true)?;
    set("mmap_size", &0)?;
    set("cache_size", &-i64::from(options.page_cache_kib))?;
    // The writer moves the log itself, after its answers; see `Writer::bound_log`.
    set("wal_autocheckpoint", &0)?;
    set("journal_size_limit", &(2 * 4096 * options.checkpoint_pages as i64))?;
    if reader {
        set("query_only", &true)?;
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(engine)?;
    }
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true).map_err(engine)?;
    // Built with STAT4, SQLite plans a statement anew whenever a bound of a range is bound to another value. Nothing here
    // is analysed, so that every such plan is the same.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map_err(engine)?;
    Ok(conn)
}

/// The vault whose database file this is. Blocking.
///
/// # Errors
/// `Refused` where it is no database of ours.
pub fn vault_of(path: &Path) -> Result<VaultId> {
    let foreign = StoreError::Refused { what: "it is no database of a vault" };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let refused = |e| match fault(&e) {
        Fault::Full | Fault::Io => engine(e),
        _ => foreign.clone(),
    };
    let conn = Connection::open_with_flags(path, flags).map_err(refused)?;
    let sql = "SELECT value FROM meta WHERE key = ?1";
    let id: Vec<u8> = conn.query_row(sql, [schema::VAULT], |row| row.get(0)).map_err(refused)?;
    id.try_into().map(VaultId).map_err(|_| foreign)
}

/// What is said of a database that another process has open.
pub const IN_USE: &str = "another process has it open";

/// Keeps other processes from opening a database, until it is dropped; blocking.
///
/// A second process would have a writer and caches of its own: it is kept out by a lock on a file beside the database
/// (not on the database: closing any handle of that would drop SQLite's own locks).
pub fn lock(path: &Path) -> Result<File> {
    let mut name = path.as_os_str().to_owned();
    name.push("-lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(name).map_err(io)?;
    match exclusive(&file) {
        Ok(()) => Ok(file),
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Err(StoreError::Refused { what: IN_USE }),
        Err(e) => Err(io(e)),
    }
}

/// Looks before SQLite does: opening another program's database must not change it, not even its journal mode.
pub(super) fn check_header(path: &Path) -> Result<()> {
    use std::io::Read;
    let mut header = Vec::with_capacity(100);
    File::open(path).map_err(io)?.take(100).read_to_end(&mut header).map_err(io)?;
    if header.is_empty() {
        return Ok(());
    }
    if header.len() < 100 || !header.starts_with(b"SQLite format 3\0") {
        return Err(StoreError::Refused { what: "it is not a database" });
    }
    let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes of a hundred"));
    let (application, version) = (word(68), word(60));
    // Without a name: made by a crash in the middle of `init`, or by another program; the schema tells.
    if application != 0 && application != schema::APPLICATION_ID as u32 {
        return Err(StoreError::Refused { what: "another program made it" });
    }
    if application != 0 && version > schema::VERSION {
        return Err(StoreError::Newer { found: version, known: schema::VERSION });
    }
    Ok(())
}

pub(super) fn sync_folder(path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(folder).and_then(|f| f.sync_all()).map_err(io)
}

pub(super) fn io(e: std::io::Error) -> StoreError {
    match e.kind() {
        std::io::ErrorKind::StorageFull => StoreError::DiskFull,
        _ => StoreError::Engine(Arc::new(e)),
    }
}
