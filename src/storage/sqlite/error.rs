//! What SQLite's errors mean for the store.

use std::sync::Arc;

use rusqlite::ffi;

use crate::storage::{Conflict, StoreError};

pub type Result<T> = std::result::Result<T, StoreError>;

pub const CLOSED: StoreError = StoreError::Closed { reason: "it was shut down" };
pub const IO_ERROR: &str = "a write to disk failed, so what is durable is no longer certain";
pub const DAMAGED: &str = "the database is damaged";
pub const PANICKED: &str = "the writer stopped";

/// What an error means for those who come after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A unique key is taken; only this change set is concerned.
    Duplicate,
    /// No space: the transaction is undone, and later ones may work.
    Full,
    /// After an I/O error nobody can say what is durable, and a retried sync may lie.
    Io,
    /// The file is not what was written.
    Corrupt,
    /// Only this statement is concerned.
    Other,
}

pub fn fault(e: &rusqlite::Error) -> Fault {
    let rusqlite::Error::SqliteFailure(f, _) = e else { return Fault::Other };
    match f.extended_code & 0xff {
        ffi::SQLITE_CONSTRAINT => match f.extended_code {
            ffi::SQLITE_CONSTRAINT_UNIQUE | ffi::SQLITE_CONSTRAINT_PRIMARYKEY | ffi::SQLITE_CONSTRAINT_ROWID => {
                Fault::Duplicate
            }
            _ => Fault::Other,
        },
        ffi::SQLITE_FULL => Fault::Full,
        // The file that processes share did not grow: there was no space for it, and nothing was written.
        ffi::SQLITE_IOERR if f.extended_code == ffi::SQLITE_IOERR_SHMSIZE => Fault::Full,
        ffi::SQLITE_IOERR | ffi::SQLITE_CANTOPEN | ffi::SQLITE_READONLY => Fault::Io,
        ffi::SQLITE_CORRUPT | ffi::SQLITE_NOTADB => Fault::Corrupt,
        _ => Fault::Other,
    }
}

/// The answer for whoever asked. The text of SQLite's errors names tables and columns; values are always bound apart.
pub fn engine(e: rusqlite::Error) -> StoreError {
    match fault(&e) {
        Fault::Duplicate => StoreError::Conflict(Conflict::Duplicate),
        Fault::Full => StoreError::DiskFull,
        Fault::Corrupt => StoreError::Damaged { what: "file" },
        Fault::Io | Fault::Other => match e {
            // A column of the wrong type or size: the file is not what was written.
            rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::Utf8Error(..) => StoreError::Damaged { what: "column" },
            e => StoreError::Engine(Arc::new(e)),
        },
    }
}
