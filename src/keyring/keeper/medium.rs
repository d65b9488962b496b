//! The few file operations a keeper needs, behind two small traits, so that tests can lose power between any two.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

use crate::storage::exclusive;

/// A file that is written in place.
pub trait BlockFile: Send + Sync {
    /// Reads up to `buf.len()` bytes; fewer at the end only.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;
    /// Writes all of `bytes`.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Everything written so far is on the medium when this returns.
    fn sync(&self) -> io::Result<()>;
    /// Bytes of the file.
    fn size(&self) -> io::Result<u64>;
    /// Extends with zeros up to `len`, durably: later writes need no new space and no metadata.
    fn grow(&self, len: u64) -> io::Result<()>;
}

/// A directory that holds one replica.
pub trait Medium: Send + Sync {
    /// Where it is, for operators.
    fn place(&self) -> String;
    /// Roots on it are sealed by keys of a hardware security module that die with them.
    fn guarded(&self) -> bool {
        false
    }
    /// Opens and locks; `None` if it is not there. `WouldBlock` if another process has it.
    fn open(&self, name: &str) -> io::Result<Option<Arc<dyn BlockFile>>>;
    /// Makes the directory where needed, and a new, locked, empty file; never an existing one.
    fn create(&self, name: &str) -> io::Result<Arc<dyn BlockFile>>;
    /// New names are on the medium when this returns.
    fn sync_names(&self) -> io::Result<()>;
}

/// A directory of the file system: mode 0700, files 0600, marked so that backup tools leave it out.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Directory(path.into())
    }
}

/// <https://bford.info/cachedir/>
const TAG: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55\n\
    # Keys that must be erasable: never copy or back up this directory. See docs/erasure.md.\n";

impl Medium for Directory {
    fn place(&self) -> String {
        self.0.display().to_string()
    }

    fn open(&self, name: &str) -> io::Result<Option<Arc<dyn BlockFile>>> {
        match OpenOptions::new().read(true).write(true).open(self.0.join(name)) {
            Ok(file) => Ok(Some(lock(file)?)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn BlockFile>> {
        if !self.0.exists() {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        }
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(self.0.join(name))?;
        // Marks are a request to backup tools; a file system without them still makes a keeper.
        let _ = mark(&self.0, &file);
        lock(file)
    }

    fn sync_names(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()?;
        match self.0.parent().filter(|p| !p.as_os_str().is_empty()) {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    }
}

fn mark(directory: &Path, file: &File) -> io::Result<()> {
    if let Ok(mut tag) = OpenOptions::new().write(true).create_new(true).open(directory.join("CACHEDIR.TAG")) {
        tag.write_all(TAG)?;
    }
    for it in [&File::open(directory)?, file] {
        ioctl_setflags(it, ioctl_getflags(it)? | IFlags::NODUMP)?;
    }
    Ok(())
}

fn lock(file: File) -> io::Result<Arc<dyn BlockFile>> {
    exclusive(&file)?;
    Ok(Arc::new(OnDisk(file)))
}

struct OnDisk(File);

impl BlockFile for OnDisk {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.0.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn grow(&self, len: u64) -> io::Result<()> {
        let zeros = vec![0; 64 * 1024];
        let mut at = self.size()?;
        while at < len {
            let n = (len - at).min(zeros.len() as u64);
            self.0.write_all_at(&zeros[..n as usize], at)?;
            at += n;
        }
        self.0.sync_all()
    }
}
