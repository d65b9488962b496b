//! Whether a directory is a fit place for a keeper: what `doctor` reports and `strict` refuses.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// Something about the keeper's place that weakens erasure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// A copy of the data directory would contain the roots.
    UnderData,
    /// The same file system: a snapshot or a lost disk takes both.
    SameDevice,
    /// The file system does not overwrite in place, or keeps copies.
    FileSystem { name: &'static str },
    /// The mount journals data: overwritten bytes stay in the journal.
    DataJournal,
    /// The file system is in memory: a restart loses every tenant.
    Volatile,
    /// A file may be read by others.
    Exposed { file: String, mode: u32 },
    /// Backup tools are not told to leave the directory out.
    NoCacheTag,
    /// Could not be looked at.
    Unreadable { what: String },
}

impl Finding {
    /// The keeper must not be used there, rather than only should not.
    pub fn severe(&self) -> bool {
        !matches!(self, Finding::SameDevice | Finding::NoCacheTag)
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Finding::UnderData => {
                f.write_str("lies under the data directory: a copy of the data would contain the roots")
            }
            Finding::SameDevice => f.write_str("lies on the same file system as the data"),
            Finding::FileSystem { name } => write!(f, "{name} keeps old versions of overwritten blocks"),
            Finding::DataJournal => f.write_str("is mounted with data=journal: old bytes stay in the journal"),
            Finding::Volatile => f.write_str("lies in memory: a restart of the machine loses every tenant"),
            Finding::Exposed { file, mode } => write!(f, "{file} has mode {mode:o}, wanted 600 (directory: 700)"),
            Finding::NoCacheTag => f.write_str("has no CACHEDIR.TAG: backup tools may copy it"),
            Finding::Unreadable { what } => write!(f, "cannot be inspected: {what}"),
        }
    }
}

/// What is wrong with keeping roots in `path`, with the database in `data`. Empty: nothing.
pub fn inspect(path: &Path, data: &Path) -> Vec<Finding> {
    let mut out = Vec::new();
    let (place, data) = match (path.canonicalize(), data.canonicalize()) {
        (Ok(place), Ok(data)) => (place, data),
        (Err(e), _) | (_, Err(e)) => return vec![Finding::Unreadable { what: e.to_string() }],
    };
    if place.starts_with(&data) {
        out.push(Finding::UnderData);
    }
    match (fs::metadata(&place), fs::metadata(&data)) {
        (Ok(a), Ok(b)) if a.dev() == b.dev() => out.push(Finding::SameDevice),
        (Ok(_), Ok(_)) => {}
        (Err(e), _) | (_, Err(e)) => out.push(Finding::Unreadable { what: e.to_string() }),
    }
    match rustix::fs::statfs(&place) {
        Ok(stat) => out.extend(file_system(stat.f_type as u64 & 0xffff_ffff)),
        Err(e) => out.push(Finding::Unreadable { what: e.to_string() }),
    }
    match fs::read_to_string("/proc/self/mountinfo") {
        Ok(mounts) if journals_data(&mounts, &place) => out.push(Finding::DataJournal),
        _ => {}
    }
    out.extend(exposed(&place));
    if !place.join("CACHEDIR.TAG").exists() {
        out.push(Finding::NoCacheTag);
    }
    out
}

fn exposed(place: &Path) -> Vec<Finding> {
    let mut out = Vec::new();
    for (name, path) in std::iter::once((".".to_owned(), place.to_owned()))
        .chain([super::file::ROOTS, super::file::LEDGER].into_iter().map(|name| (name.to_owned(), place.join(name))))
    {
        match fs::metadata(&path) {
            Ok(meta) if meta.permissions().mode() & 0o077 != 0 => {
                out.push(Finding::Exposed { file: name, mode: meta.permissions().mode() & 0o777 });
            }
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                out.push(Finding::Unreadable { what: e.to_string() });
            }
            _ => {}
        }
    }
    out
}

/// By the magic numbers of linux/magic.h and of the file systems themselves.
fn file_system(magic: u64) -> Option<Finding> {
    let name = match magic {
        0x9123_683e => "btrfs",
        0x2fc1_2fc1 => "zfs",
        0x794c_7630 => "overlay",
        0xca45_1a4e => "bcachefs",
        0xf2f5_2010 => "f2fs",
        0x0000_3434 => "nilfs2",
        0x6573_5546 => "fuse",
        0x0000_6969 => "nfs",
        0xff53_4d42 | 0xfe53_4d42 => "smb",
        0x0102_1994 | 0x8584_58f6 => return Some(Finding::Volatile),
        _ => return None,
    };
    Some(Finding::FileSystem { name })
}

/// Finds the mount of `place` in the text of /proc/self/mountinfo (proc(5)) and looks for `data=journal`.
fn journals_data(mountinfo: &str, place: &Path) -> bool {
    let mut best: Option<(usize, bool)> = None;
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(point) = left.split(' ').nth(4) else { continue };
        let point = point.replace("\\040", " ");
        if place.starts_with(&point) && best.is_none_or(|(len, _)| point.len() >= len) {
            let options = right.split(' ').nth(2).unwrap_or_default();
            best = Some((point.len(), options.split(',').any(|option| option == "data=journal")));
        }
    }
    best.is_some_and(|(_, journal)| journal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_mount_decides() {
        let text = "1 0 8:1 / / rw - ext4 /dev/a rw,data=journal\n2 1 8:2 / /k rw shared:1 - ext4 /dev/b rw,errors=x\n";
        assert!(journals_data(text, Path::new("/var/keeper")));
        assert!(!journals_data(text, Path::new("/k/keeper")));
        assert!(!journals_data("", Path::new("/k")));
    }

    #[test]
    fn copying_file_systems_are_known() {
        for magic in [0x9123_683e, 0x2fc1_2fc1, 0x794c_7630] {
            assert!(file_system(magic).is_some_and(|f| f.severe()));
        }
        assert_eq!(file_system(0xef53), None); // ext4
        assert_eq!(file_system(0x5846_5342), None); // xfs
    }

    #[test]
    fn a_keeper_under_the_data_is_found() {
        let data = tempfile::tempdir().unwrap();
        let keeper = data.path().join("keeper");
        fs::create_dir(&keeper).unwrap();
        fs::set_permissions(&keeper, fs::Permissions::from_mode(0o755)).unwrap();
        let found = inspect(&keeper, data.path());
        for wanted in [Finding::UnderData, Finding::SameDevice, Finding::NoCacheTag] {
            assert!(found.contains(&wanted), "{wanted:?}");
        }
        assert!(found.contains(&Finding::Exposed { file: ".".into(), mode: 0o755 }));
        let gone = inspect(&data.path().join("none"), data.path());
        assert!(matches!(gone.as_slice(), [Finding::Unreadable { .. }]));
    }
}
