//! The last step of a restore: what was put together beside the live files takes their place. One small file decides it;
//! before that file everything is as it was, after it everything that is left is done at the next start.
//!
//! The database, the read audit and the key archive that were there go to `replaced/` in the data directory, until the
//! next restore. The old keeper is overwritten: with it nothing that was ever written opens any more.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::keyring::keeper::Guard;
use crate::recovery::layout;

/// Folder in the data directory, and in each keeper replica, where a restore is put together.
pub const STAGING: &str = "restoring";
/// Folder in the data directory with what the last restore replaced.
pub const REPLACED: &str = "replaced";
/// The decision: it names what takes whose place.
const DECISION: &str = "restore.json";
/// Files of a keeper replica.
const KEEPER: [&str; 2] = ["roots.keeper", "ledger.keeper"];
/// Files of a database, itself the last: once it has moved, all have.
const DATABASE: [&str; 3] = ["vault.db-wal", "vault.db-shm", layout::DATABASE];

/// Which directories a restore is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Places {
    pub data_dir: PathBuf,
    pub keepers: Vec<PathBuf>,
    pub backups: PathBuf,
}

/// What a start found and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// No restore was under way.
    Nothing,
    /// One that had not decided yet was removed: everything is as it was.
    Undone,
    /// One that had decided was finished.
    Finished,
}

impl Places {
    pub fn staging(&self) -> PathBuf {
        self.data_dir.join(STAGING)
    }
    pub fn staged_keepers(&self) -> Vec<PathBuf> {
        self.keepers.iter().map(|path| path.join(STAGING)).collect()
    }
    fn decision(&self) -> PathBuf {
        self.data_dir.join(DECISION)
    }

    /// Removes what an earlier restore left that had not decided. Blocking.
    pub fn clear(&self, guard: Option<&Guard>) -> io::Result<bool> {
        let mut found = false;
        for path in self.staged_keepers().iter().chain([&self.staging()]) {
            if let Some(guard) = guard.filter(|_| path.exists()) {
                guard.forget(path)?;
            }
            found |= path.exists();
            gone(fs::remove_dir_all(path))?;
        }
        Ok(found)
    }

    /// Decides: from here on only the restored vault opens. Everything staged must be synced, the database closed and
    /// without a log. What an earlier restore replaced is removed. Blocking.
    pub fn decide(&self) -> io::Result<()> {
        let replaced = self.data_dir.join(REPLACED);
        gone(fs::remove_dir_all(&replaced))?;
        fs::create_dir_all(&replaced)?;
        let json = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        let next = self.data_dir.join(format!("{DECISION}.new"));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&next)?;
        file.write_all(&json)?;
        file.sync_all()?;
        fs::rename(&next, self.decision())?;
        sync(&self.data_dir)
    }

    /// Carries out what was decided; may be repeated until it ends. `point` is asked between the steps, for tests.
    pub fn carry_out(&self, guard: Option<&Guard>, point: &mut dyn FnMut(&'static str) -> bool) -> io::Result<()> {
        let staging = self.staging();
        let replaced = self.data_dir.join(REPLACED);
        let mut at = |name| if point(name) { Ok(()) } else { Err(io::Error::other(format!("stopped at {name}"))) };
        // The old roots first: a start that finds the new database has the new keeper or none.
        for (live, staged) in self.keepers.iter().zip(self.staged_keepers()) {
            for name in KEEPER {
                let new = staged.join(name);
                if new.exists() {
                    if let Some(guard) = guard.filter(|_| name == KEEPER[0]) {
                        guard.forget(live)?;
                        at("keeper's objects destroyed")?;
                    }
                    wipe(&live.join(name))?;
                    at("keeper wiped")?;
                    fs::rename(&new, live.join(name))?;
                }
            }
            sync(live)?;
            at("keeper placed")?;
        }
        replace_dir(&staging.join(layout::READ_AUDIT), &self.data_dir.join(layout::READ_AUDIT), &replaced)?;
        at("read audit placed")?;
        let keys = layout::keys(&self.backups);
        fs::create_dir_all(&self.backups)?;
        replace_dir(&staging.join(layout::KEYS), &keys, &replaced)?;
        at("key archive placed")?;
        let staged = staging.join(layout::DATABASE);
        if staged.exists() {
            if !replaced.join(layout::DATABASE).exists() {
                for name in DATABASE {
                    gone(fs::rename(self.data_dir.join(name), replaced.join(name)))?;
                }
            }
            sync(&replaced)?;
            at("database moved away")?;
            fs::rename(&staged, self.data_dir.join(layout::DATABASE))?;
        }
        sync(&self.data_dir)?;
        at("database placed")?;
        self.clear(guard)?;
        gone(fs::remove_file(self.decision()))?;
        sync(&self.data_dir)
    }
}

/// Completes or undoes what an interrupted restore left: at every start, before anything is opened. Blocking.
pub fn finish(places: &Places, guard: Option<&Guard>) -> io::Result<Found> {
    match fs::read(places.decision()) {
        Ok(json) => {
            let decided: Places = serde_json::from_slice(&json).map_err(io::Error::other)?;
            decided.carry_out(guard, &mut |_| true)?;
            Ok(Found::Finished)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => match places.clear(guard)? {
            true => Ok(Found::Undone),
            false => Ok(Found::Nothing),
        },
        Err(e) => Err(e),
    }
}

/// Puts `new` in the place of `live`, which goes to `replaced`; nothing where `new` is there no more.
fn replace_dir(new: &Path, live: &Path, replaced: &Path) -> io::Result<()> {
    if !new.exists() {
        return Ok(());
    }
    let name = live.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    if live.exists() {
        let old = replaced.join(name);
        gone(fs::remove_dir_all(&old))?;
        move_dir(live, &old)?;
    }
    move_dir(new, live)
}

/// Renames, or copies where the two are on different disks; neither place ever holds a part.
fn move_dir(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
            let (part, old) = (to.with_extension("part"), from.with_extension("old"));
            gone(fs::remove_dir_all(&part))?;
            gone(fs::remove_dir_all(&old))?;
            copy_dir(from, &part)?;
            fs::rename(&part, to)?;
            fs::rename(from, &old)?;
            fs::remove_dir_all(&old)
        }
        done => done,
    }
}

/// Copies the files of a folder, durably; folders in it are left out.
pub fn copy_dir(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            let path = to.join(entry.file_name());
            fs::copy(entry.path(), &path)?;
            File::open(&path)?.sync_all()?;
        }
    }
    sync(to)
}

/// Overwrites a file with zeros, durably, and removes it.
pub fn wipe(path: &Path) -> io::Result<()> {
    let mut file = match OpenOptions::new().write(true).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    let mut left = file.metadata()?.len();
    let zeros = vec![0; 1 << 16];
    while left > 0 {
        let n = left.min(zeros.len() as u64);
        file.write_all(&zeros[..n as usize])?;
        left -= n;
    }
    file.sync_all()?;
    drop(file);
    fs::remove_file(path)
}

/// What is not there need not go.
fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(dir: &Path) -> Places {
        let places = Places {
            data_dir: dir.join("data"),
            keepers: vec![dir.join("k1"), dir.join("k2")],
            backups: dir.join("data/backups"),
        };
        for keeper in &places.keepers {
            fs::create_dir_all(keeper.join(STAGING)).unwrap();
            for name in KEEPER {
                fs::write(keeper.join(name), "old").unwrap();
                fs::write(keeper.join(STAGING).join(name), "new").unwrap();
            }
        }
        for (at, text) in [(places.data_dir.clone(), "old"), (places.staging(), "new")] {
            fs::create_dir_all(at.join(layout::READ_AUDIT)).unwrap();
            fs::write(at.join(layout::READ_AUDIT).join("1"), text).unwrap();
            fs::write(at.join(layout::DATABASE), text).unwrap();
        }
        fs::write(places.data_dir.join("vault.db-wal"), "old").unwrap();
        fs::create_dir_all(layout::keys(&places.backups)).unwrap();
        fs::write(layout::keys(&places.backups).join("0.keys"), "old").unwrap();
        fs::create_dir_all(places.staging().join(layout::KEYS)).unwrap();
        fs::write(places.staging().join(layout::KEYS).join("0.keys"), "new").unwrap();
        places
    }

    fn reads(places: &Places, what: &str) {
        let files = [
            places.data_dir.join(layout::DATABASE),
            places.data_dir.join(layout::READ_AUDIT).join("1"),
            layout::keys(&places.backups).join("0.keys"),
            places.keepers[0].join(KEEPER[0]),
            places.keepers[1].join(KEEPER[1]),
        ];
        for file in files {
            assert_eq!(fs::read_to_string(&file).unwrap(), what, "{}", file.display());
        }
    }

    #[test]
    fn what_had_not_decided_is_undone() {
        let dir = tempfile::tempdir().unwrap();
        let places = world(dir.path());
        assert_eq!(finish(&places, None).unwrap(), Found::Undone);
        reads(&places, "old");
        assert_eq!(finish(&places, None).unwrap(), Found::Nothing);
    }

    #[test]
    fn what_had_decided_is_finished_wherever_it_was_interrupted() {
        for stop in 0.. {
            let dir = tempfile::tempdir().unwrap();
            let places = world(dir.path());
            places.decide().unwrap();
            let mut step = 0;
            let stopped = places.carry_out(None, &mut |_| {
                step += 1;
                step <= stop
            });
            if stopped.is_ok() {
                assert!(stop >= 10, "{stop} steps");
                break;
            }
            assert_eq!(finish(&places, None).unwrap(), Found::Finished, "stopped at step {stop}");
            reads(&places, "new");
            assert!(!places.data_dir.join("vault.db-wal").exists(), "an old log beside the new database");
            assert_eq!(fs::read_to_string(places.data_dir.join(REPLACED).join("vault.db")).unwrap(), "old");
            assert!(!places.staging().exists() && !places.keepers[0].join(STAGING).exists());
            assert_eq!(finish(&places, None).unwrap(), Found::Nothing);
        }
    }
}
