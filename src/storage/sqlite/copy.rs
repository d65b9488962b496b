//! The consistent copy of a database in use.
//!
//! One read transaction holds for the whole copy: a copy that reads anew at each step begins again with each commit and
//! never ends under writes. Until it ends the write-ahead log is not cut, so a slow copy beside many writes costs disk.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};

use super::error::{Result, engine};
use super::file::{connect, io};
use super::{CopyWatch, Options, StoreError};

/// Pages of a step: 1 MiB between two looks of the watcher.
const STEP: i32 = 256;
const PAGE: u64 = 4096;

/// Between two syncs of a copy: what is written meanwhile is a few megabytes.
const SYNC_PAUSE: Duration = Duration::from_millis(2);

/// Writes a new file, which the caller syncs; removes it where that fails. Blocking.
pub(super) fn copy(options: &Options, path: &Path, watch: &mut CopyWatch) -> Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(io)?;
    let (copying, ended) = mpsc::channel();
    let copied = std::thread::scope(|scope| {
        let syncing = scope.spawn(|| keep_synced(&file, ended));
        let copied = fill(options, path, watch);
        drop(copying);
        let synced = syncing.join().map_err(|_| io(std::io::Error::other("the thread that syncs died")))?;
        copied.and(synced.map_err(io))
    });
    if copied.is_err() {
        let _ = std::fs::remove_file(path);
    }
    copied
}

/// Syncs what was written so far, again and again: one sync of the whole at the end would keep every other one on that
/// disk waiting for as long, those that reads wait for among them.
fn keep_synced(file: &File, ended: mpsc::Receiver<()>) -> std::io::Result<()> {
    loop {
        file.sync_data()?;
        if ended.recv_timeout(SYNC_PAUSE) != Err(RecvTimeoutError::Timeout) {
            return Ok(());
        }
    }
}

fn fill(options: &Options, path: &Path, watch: &mut CopyWatch) -> Result<()> {
    let from = connect(options, true)?;
    let mut to = Connection::open(path).map_err(engine)?;
    // Nobody reads the new file before it is whole, and whoever asked syncs it: no journal, no syncs.
    for (name, value) in [("journal_mode", "OFF"), ("synchronous", "OFF"), ("locking_mode", "EXCLUSIVE")] {
        to.pragma_update_and_check(None, name, value, |_| Ok(())).or_else(ignore_silence).map_err(engine)?;
    }
    from.execute_batch("BEGIN; SELECT count(*) FROM meta;").map_err(engine)?;
    {
        let backup = Backup::new(&from, &mut to).map_err(engine)?;
        loop {
            let step = backup.step(STEP).map_err(engine)?;
            let at = backup.progress();
            let total = at.pagecount.max(0) as u64 * PAGE;
            let more = watch(total - at.remaining.max(0) as u64 * PAGE, total);
            match step {
                StepResult::Done => break,
                StepResult::More if more => {}
                StepResult::More => return Err(StoreError::Refused { what: "the copy was stopped" }),
                _ => return Err(StoreError::Busy),
            }
        }
    }
    from.execute_batch("COMMIT").map_err(engine)?;
    to.close().map_err(|(_, e)| engine(e))
}

/// A pragma that answers no row did what it was told.
fn ignore_silence(e: rusqlite::Error) -> std::result::Result<(), rusqlite::Error> {
    match e {
        rusqlite::Error::QueryReturnedNoRows => Ok(()),
        e => Err(e),
    }
}

/// The path as SQLite wants it before options; `None` if it is not UTF-8.
pub(super) fn as_uri(path: &Path) -> Option<String> {
    let escaped = path.to_str()?.chars().map(|c| match c {
        '%' | '?' | '#' => format!("%{:02x}", c as u32),
        c => c.to_string(),
    });
    Some(format!("file:{}", escaped.collect::<String>()))
}

/// Whether a file that nobody has open is a whole database of this program: its name, its version, every page and
/// index. Answers the version. Opens it in place and changes nothing, not even a file beside it. Blocking.
///
/// # Errors
/// `Refused`, `Newer`, `Damaged`.
pub fn check_file(path: &Path) -> Result<u32> {
    super::check_header(path)?;
    let name = as_uri(path).ok_or(StoreError::Refused { what: "its name is not UTF-8" })?;
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY | rusqlite::OpenFlags::SQLITE_OPEN_URI;
    let conn = Connection::open_with_flags(format!("{name}?immutable=1"), flags).map_err(engine)?;
    conn.pragma_update(None, "cell_size_check", true).map_err(engine)?;
    let version: u32 = conn.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(engine)?;
    let whole: String = conn.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(engine)?;
    match whole.as_str() {
        "ok" => Ok(version),
        _ => Err(StoreError::Damaged { what: "its pages contradict one another" }),
    }
}
