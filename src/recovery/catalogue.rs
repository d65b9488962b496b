//! Which data archives there are, and when each is to go: what the folder of archives holds, read from their manifests. An
//! archive is deleted when its horizon is over; the newest whole one stays, so that a nightly job that fails unseen does
//! not end with no archive at all.

use std::io;
use std::path::{Path, PathBuf};

use crate::clock::Timestamp;
use crate::crypto::document;
use crate::recovery::data_archive::{BackupError, at, sync_dir};
use crate::recovery::layout::STAMP;
use crate::recovery::manifest::{ManifestError, SignedManifest};

/// Beginning and end of the name of an archive that is being made or removed.
const PARTIAL: (&str, &str) = (".", ".partial");

/// Folder of the reports of drills, beside the archives.
pub const DRILLS: &str = "drills";

pub use crate::evidence::DRILL_FORMAT;

/// A kept report of a drill, by its name and what it says; its signature is not looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drill {
    pub at: Timestamp,
    pub path: PathBuf,
    /// Everyone came back, and nobody erased.
    pub held: bool,
    pub signed: bool,
}

/// Reports of drills, the newest first (`<time>.json`, named as archives are). What is no report is left out. Blocking.
pub fn drills(dir: &Path) -> Vec<Drill> {
    let mut all: Vec<String> = names(dir).unwrap_or_default();
    all.retain(|name| name.strip_suffix(".json").is_some_and(is_name));
    all.sort_by(|a, b| b.cmp(a));
    let read = |name: String| {
        let stamp = name.trim_end_matches(".json").trim_end_matches('Z').to_owned();
        let at = jiff::civil::DateTime::strptime(STAMP.trim_end_matches('Z'), stamp).ok()?;
        let at = Timestamp(at.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_millisecond());
        let path = dir.join(name);
        let json = std::fs::read(&path).ok()?;
        let (body, signed) = document::read(DRILL_FORMAT, &json).ok()?;
        Some(Drill { at, path, held: body["holds"] == true, signed })
    };
    all.into_iter().filter_map(read).collect()
}

/// The name of an archive that was begun at `at`.
pub fn name_of(at: Timestamp) -> String {
    let at = jiff::Timestamp::from_millisecond(at.0).unwrap_or_default();
    at.strftime(STAMP).to_string()
}

/// The name it has until it is whole.
pub fn partial_of(name: &str) -> String {
    format!("{}{name}{}", PARTIAL.0, PARTIAL.1)
}

fn is_name(name: &str) -> bool {
    name.len() == name_of(Timestamp(0)).len()
        && jiff::civil::DateTime::strptime(STAMP.trim_end_matches('Z'), name.trim_end_matches('Z')).is_ok()
}

/// One archive of the catalogue.
#[derive(Debug)]
pub struct Archive {
    pub name: String,
    pub path: PathBuf,
    /// Why it is not to be used; its manifest where it is.
    pub manifest: Result<SignedManifest, ManifestError>,
    /// Bytes of its files, as they are on the disk.
    pub bytes: u64,
}

impl Archive {
    /// When it was begun; `None` where that is not known.
    pub fn made_at(&self) -> Option<Timestamp> {
        Some(self.manifest.as_ref().ok()?.manifest.made_at)
    }

    /// When it is to go: as its manifest says, or earlier where the horizon became shorter since.
    pub fn expires_at(&self, horizon_days: i64) -> Option<Timestamp> {
        let manifest = &self.manifest.as_ref().ok()?.manifest;
        Some(manifest.expires_at.min(manifest.made_at.plus_days(horizon_days)))
    }

    /// Its horizon is over.
    pub fn expired(&self, now: Timestamp, horizon_days: i64) -> bool {
        self.expires_at(horizon_days).is_some_and(|at| at <= now)
    }
}

/// All archives in the folder, the newest first. Reads their manifests, not their files. None where there is no folder.
/// Blocking.
pub fn list(backups: &Path) -> Result<Vec<Archive>, BackupError> {
    let mut all = Vec::new();
    for name in names(backups)?.into_iter().filter(|name| is_name(name)) {
        let path = backups.join(&name);
        let (manifest, bytes) = (SignedManifest::read(&path), size(&path).map_err(at(&path))?);
        all.push(Archive { name, path, manifest, bytes });
    }
    all.sort_by(|a, b| b.name.cmp(&a.name));
    Ok(all)
}

/// The newest archive with a manifest. Blocking.
pub fn newest(backups: &Path) -> Result<Option<Archive>, BackupError> {
    Ok(list(backups)?.into_iter().find(|archive| archive.manifest.is_ok()))
}

/// Archives whose horizon is over and that may go: all but the newest whole one. Blocking.
pub fn prunable(backups: &Path, now: Timestamp, horizon_days: i64) -> Result<Vec<Archive>, BackupError> {
    let all = list(backups)?;
    let newest = all.iter().find(|archive| archive.manifest.is_ok()).map(|archive| archive.name.clone());
    Ok(all.into_iter().filter(|a| a.expired(now, horizon_days) && Some(&a.name) != newest.as_ref()).collect())
}

/// Removes an archive: first its name, then what is under it, so that a crash leaves no half archive. Blocking.
pub fn remove(backups: &Path, archive: &Archive) -> Result<(), BackupError> {
    let partial = backups.join(partial_of(&archive.name));
    std::fs::rename(&archive.path, &partial).map_err(at(&archive.path))?;
    sync_dir(backups)?;
    std::fs::remove_dir_all(&partial).map_err(at(&partial))
}

/// Removes what crashes left half made or half removed; only while no backup runs. Answers how many. Blocking.
pub fn clean(backups: &Path) -> Result<usize, BackupError> {
    let mut removed = 0;
    for name in names(backups)? {
        let inner = name.strip_prefix(PARTIAL.0).and_then(|name| name.strip_suffix(PARTIAL.1));
        if inner.is_some_and(is_name) {
            let path = backups.join(&name);
            std::fs::remove_dir_all(&path).map_err(at(&path))?;
            removed += 1;
        }
    }
    Ok(removed)
}

fn names(backups: &Path) -> Result<Vec<String>, BackupError> {
    let entries = match std::fs::read_dir(backups) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(at(backups)(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(at(backups))?.file_name().into_string().ok());
    }
    Ok(names)
}

fn size(path: &Path) -> io::Result<u64> {
    let meta = path.symlink_metadata()?;
    if !meta.is_dir() {
        return Ok(meta.len());
    }
    let mut sum = 0;
    for entry in std::fs::read_dir(path)? {
        sum += size(&entry?.path())?;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::DAY_MS;
    use crate::crypto::sign::Signing;
    use crate::ids::VaultId;
    use crate::keyring::ledger::LedgerHead;
    use crate::recovery::layout::MANIFEST;
    use crate::recovery::manifest::Manifest;

    fn put(backups: &Path, day: i64) -> String {
        let at = Timestamp(day * DAY_MS + 9_000_000);
        let name = name_of(at);
        std::fs::create_dir(backups.join(&name)).unwrap();
        let manifest = Manifest::new(VaultId([1; 16]), at, at.plus_days(30), 1, LedgerHead::default(), Vec::new());
        std::fs::write(backups.join(&name).join(MANIFEST), manifest.sign(&Signing::generate())).unwrap();
        name
    }

    #[test]
    fn names_sort_by_time_and_nothing_else_is_an_archive() {
        assert_eq!(name_of(Timestamp(1_795_228_200_000)), "20261121T023000Z");
        assert!(is_name("20261121T023000Z"));
        for other in ["keys", "20261121T0230Z", "20261321T023000Z", ".20261121T023000Z.partial", "drills"] {
            assert!(!is_name(other), "{other}");
        }
    }

    #[test]
    fn what_is_past_its_horizon_goes_but_never_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let all: Vec<String> = [100, 110, 120].map(|day| put(dir.path(), day)).into();
        std::fs::create_dir(dir.path().join("20261121T023000Z")).unwrap(); // never finished: no manifest
        let now = Timestamp(145 * DAY_MS);
        let gone = |horizon| -> Vec<String> {
            prunable(dir.path(), now, horizon).unwrap().into_iter().map(|archive| archive.name).collect()
        };
        assert_eq!(gone(30), [all[1].clone(), all[0].clone()]);
        assert_eq!(gone(90), [all[1].clone(), all[0].clone()], "a longer horizon does not outlive what was promised");
        assert_eq!(gone(1), [all[1].clone(), all[0].clone()], "the newest whole one stays");
        for archive in prunable(dir.path(), now, 30).unwrap() {
            remove(dir.path(), &archive).unwrap();
        }
        assert_eq!(newest(dir.path()).unwrap().unwrap().name, all[2]);
        assert_eq!(list(dir.path()).unwrap().len(), 2);
        std::fs::create_dir(dir.path().join(partial_of(&all[0]))).unwrap();
        assert_eq!(clean(dir.path()).unwrap(), 1);
        assert_eq!(list(&dir.path().join("none")).unwrap().len(), 0);
    }
}
