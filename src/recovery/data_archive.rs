//! Writing a data archive: database, read audit, ledger, in this order, then the manifest. Each is a state of its own, not
//! older than the one before, so that the ledger knows of every erasure that the database shows. The archive is made under
//! a name that nobody takes for an archive, and gets its own by one rename.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use crate::clock::{Clock, Timestamp};
use crate::keyring::keeper::KeeperError;
use crate::keyring::ledger::LedgerError;
use crate::keyring::{Keyring, KeyringError};
use crate::recovery::catalogue;
use crate::recovery::layout::{DATABASE, LEDGER, MANIFEST, READ_AUDIT};
use crate::recovery::manifest::{FileMark, Manifest, ManifestError, hash_file};
use crate::storage::readlog::{ReadLog, ReadLogError};
use crate::storage::sqlite::SCHEMA_VERSION;
use crate::storage::{Store, StoreError};

/// Why there is no archive. Nothing half-made is left under an archive's name.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Somebody cancelled it.
    #[error("it was stopped")]
    Stopped,
    #[error("the disk is full")]
    DiskFull,
    #[error("{path}")]
    Path {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the database cannot be copied")]
    Store(#[source] StoreError),
    #[error("the read audit cannot be copied")]
    ReadLog(#[source] ReadLogError),
    #[error("the ledger cannot be copied")]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("the key archive cannot be written: {what}")]
    Keys { what: String },
    /// A thread of ours died.
    #[error("interrupted")]
    Interrupted,
}

impl From<StoreError> for BackupError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::DiskFull => BackupError::DiskFull,
            other => BackupError::Store(other),
        }
    }
}

impl From<ReadLogError> for BackupError {
    fn from(error: ReadLogError) -> Self {
        match &error {
            ReadLogError::Io { source, .. } if full(source) => BackupError::DiskFull,
            _ => BackupError::ReadLog(error),
        }
    }
}

fn full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// For `map_err`: what happened to a path.
pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> BackupError + '_ {
    move |source| match full(&source) {
        true => BackupError::DiskFull,
        false => BackupError::Path { path: path.to_owned(), source },
    }
}

/// How far a copy is, how fast it may go, and whether it should go on. Shared by who works and who looks.
pub struct Pace {
    clock: Arc<dyn Clock>,
    /// Bytes a second; 0: as fast as the disk.
    rate: u64,
    began: Duration,
    done: AtomicU64,
    total: AtomicU64,
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Pace {
    /// `rate` in bytes a second; 0: as fast as the disk.
    pub fn new(clock: Arc<dyn Clock>, rate: u64) -> Arc<Self> {
        Arc::new(Pace {
            began: clock.monotonic(),
            clock,
            rate,
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            stopped: Mutex::new(false),
            changed: Condvar::new(),
        })
    }
    /// Bytes that were copied and checked, and bytes in all as far as they are known.
    pub fn progress(&self) -> (u64, u64) {
        let done = self.done.load(Ordering::Relaxed);
        (done, self.total.load(Ordering::Relaxed).max(done))
    }
    /// Whoever works on it ends at the next look.
    pub fn stop(&self) {
        *self.stopped.lock() = true;
        self.changed.notify_all();
    }
    fn expect(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }
    /// Counts `bytes`, waits where they came too fast; `false`: stop.
    fn step(&self, bytes: u64) -> bool {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let mut stopped = self.stopped.lock();
        if self.rate > 0 && !*stopped {
            let due = self.began + Duration::from_secs_f64(done as f64 / self.rate as f64);
            let early = due.saturating_sub(self.clock.monotonic());
            if !early.is_zero() {
                self.changed.wait_for(&mut stopped, early);
            }
        }
        !*stopped
    }
}

/// The lowest priority that there is (`nice`).
const LOWEST: i32 = 19;

/// What an archive is made of.
#[derive(Clone)]
pub struct Sources {
    pub store: Arc<dyn Store>,
    pub keyring: Arc<Keyring>,
    pub read_log: Arc<ReadLog>,
}

/// A finished archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub name: String,
    pub path: PathBuf,
    pub manifest: Manifest,
}

/// Makes a directory that only we may read, and the ones above it.
pub(super) fn private_dir(path: &Path) -> Result<(), BackupError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(at(path))
}

/// Makes new names in a directory durable.
pub(super) fn sync_dir(path: &Path) -> Result<(), BackupError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(at(path))
}

/// Writes a data archive below `backups`, while everything goes on being used. It counts from the rename on that ends
/// it; before, or where it fails, there is nothing under its name.
pub async fn write(
    sources: &Sources,
    backups: &Path,
    now: Timestamp,
    horizon_days: i64,
    pace: Arc<Pace>,
) -> Result<Written, BackupError> {
    private_dir(backups)?;
    let (mut stamp, mut name) = (now, catalogue::name_of(now));
    while backups.join(&name).exists() {
        stamp = stamp.plus_ms(1_000);
        name = catalogue::name_of(stamp);
    }
    let path = backups.join(&name);
    let partial = backups.join(catalogue::partial_of(&name));
    let filled = fill(sources, &partial, now, horizon_days, pace).await.and_then(|manifest| {
        std::fs::rename(&partial, &path).map_err(at(&path))?;
        sync_dir(backups)?;
        Ok(manifest)
    });
    match filled {
        Ok(manifest) => Ok(Written { name, path, manifest }),
        Err(error) => {
            // What cannot be removed now is removed by the next backup.
            let _ = std::fs::remove_dir_all(&partial);
            Err(error)
        }
    }
}

async fn fill(
    sources: &Sources,
    dir: &Path,
    now: Timestamp,
    horizon_days: i64,
    pace: Arc<Pace>,
) -> Result<Manifest, BackupError> {
    DirBuilder::new().mode(0o700).create(dir).map_err(at(dir))?;
    let log: u64 = sources.read_log.segments()?.iter().map(|segment| segment.bytes).sum();

    let watch = {
        let (pace, mut before) = (pace.clone(), 0);
        Box::new(move |done: u64, total: u64| {
            // Everything is read twice: once to copy it, once to check it.
            pace.expect(2 * (total + log));
            let step = done.saturating_sub(before);
            before = done;
            pace.step(step)
        })
    };
    let copied = sources.store.copy_to(dir.join(DATABASE), watch).await;
    stopped_or(copied, &pace)?;

    let read_audit = dir.join(READ_AUDIT);
    DirBuilder::new().mode(0o700).create(&read_audit).map_err(at(&read_audit))?;
    let (read_log, segments_pace) = (sources.read_log.clone(), pace.clone());
    let all = blocking(move || Ok(read_log.copy_to(&read_audit, &mut |bytes| segments_pace.step(bytes))?)).await?;
    if !all {
        return Err(BackupError::Stopped);
    }

    let reader = sources.keyring.keeper().ledger().await?;
    let (signing, vault) = (sources.keyring.signing(), sources.keyring.vault());
    let dir = dir.to_owned();
    blocking(move || {
        let path = dir.join(LEDGER);
        let file = new_file(&path)?;
        let mut out = io::BufWriter::new(&file);
        let ledger = reader.copy_to(&mut out)?;
        out.flush().map_err(at(&path))?;
        drop(out);

        let mut names = vec![DATABASE.to_owned(), LEDGER.to_owned()];
        for entry in std::fs::read_dir(dir.join(READ_AUDIT)).map_err(at(&dir))? {
            let name = entry.map_err(at(&dir))?.file_name();
            names.push(format!("{READ_AUDIT}/{}", name.to_string_lossy()));
        }
        // The disk writes while the processor reads what is still in memory: each waits for the other's end only.
        let (files, synced) = std::thread::scope(|scope| {
            let syncing = scope.spawn(|| sync_files(&dir, &names));
            let files = hash_files(&dir, &names, &pace);
            (files, syncing.join().unwrap_or(Err(BackupError::Interrupted)))
        });
        let files = files?;
        synced?;
        let expires = now.plus_days(horizon_days);
        let manifest = Manifest::new(vault, now, expires, SCHEMA_VERSION, ledger, files);
        let path = dir.join(MANIFEST);
        let mut file = new_file(&path)?;
        file.write_all(&manifest.sign(&signing)).and_then(|()| file.sync_all()).map_err(at(&path))?;
        sync_dir(&dir)?;
        Ok(manifest)
    })
    .await
}

/// The files' marks; what is read here was written a moment ago.
fn hash_files(dir: &Path, names: &[String], pace: &Pace) -> Result<Vec<FileMark>, BackupError> {
    let mark = |name: &String| {
        let path = dir.join(name);
        let hashed = hash_file(&path, &mut |bytes| pace.step(bytes));
        let (bytes, sha256) = hashed.map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => BackupError::Stopped,
            _ => at(&path)(error),
        })?;
        Ok(FileMark { name: name.clone(), bytes, sha256 })
    };
    names.iter().map(mark).collect()
}

/// Makes the files and their names durable.
fn sync_files(dir: &Path, names: &[String]) -> Result<(), BackupError> {
    for name in names {
        let path = dir.join(name);
        File::open(&path).and_then(|file| file.sync_all()).map_err(at(&path))?;
    }
    sync_dir(&dir.join(READ_AUDIT))
}

fn new_file(path: &Path) -> Result<File, BackupError> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(at(path))
}

/// The store says that somebody stopped it; who it was is known here.
fn stopped_or(copied: Result<(), StoreError>, pace: &Pace) -> Result<(), BackupError> {
    match copied {
        Err(StoreError::Refused { .. }) if *pace.stopped.lock() => Err(BackupError::Stopped),
        copied => Ok(copied?),
    }
}

/// Runs what blocks on a thread of its own and the lowest priority: whoever waits for an answer goes first.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackupError> + Send + 'static,
) -> Result<T, BackupError> {
    let (tell, told) = oneshot::channel();
    let spawned = std::thread::Builder::new().name("backup".into()).spawn(move || {
        // On Linux that of the calling thread alone, and of those that it starts.
        let _ = rustix::process::nice(LOWEST);
        // A caller who hung up does not need the answer.
        let _ = tell.send(work());
    });
    spawned.map_err(at(Path::new("thread")))?;
    told.await.unwrap_or(Err(BackupError::Interrupted))
}
