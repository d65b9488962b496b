//! What the process asks of its machine for the keys in its memory: no core dump, no look from another process of its
//! user, and no swap.

use std::path::Path;

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{CapabilitySet, capabilities};

/// Where keys can go when memory runs short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swapping {
    /// Pages are locked as they are touched.
    Locked,
    /// The machine has no swap, or the process's control group may use none.
    Nowhere,
    /// Keys may be written to a swap device.
    Possible,
}

impl Swapping {
    /// What it means for keys.
    pub fn meaning(self) -> &'static str {
        match self {
            Swapping::Locked => "pages are locked in memory",
            Swapping::Nowhere => "this machine, or the control group, has no swap",
            Swapping::Possible => "keys may be swapped out",
        }
    }

    /// What to do about it; empty where there is nothing.
    pub fn todo(self) -> &'static str {
        match self {
            Swapping::Possible => "switch swap off, or give the service LimitMEMLOCK=infinity or MemorySwapMax=0",
            Swapping::Locked | Swapping::Nowhere => "",
        }
    }
}

/// Forbids core dumps and the reading of this process's memory by others of the same user. The hard limit goes to 0, so
/// that nothing later in the process can take it back.
///
/// # Errors
/// That of the kernel, which knows neither on some sandboxes.
pub fn forbid_dumps() -> std::io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Locks the pages of the process if that can't end in a failed allocation later: the limit is infinite, or the process
/// may pass it. Pages are locked when touched, so that reserved memory costs nothing.
pub fn lock_memory() -> Swapping {
    let unlimited = getrlimit(Resource::Memlock).current.is_none()
        || capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    if unlimited && mlockall(flags).is_ok() { Swapping::Locked } else { swap_of(Path::new("/")) }
}

/// What a process that locks nothing finds: /proc/swaps and its control group's `memory.swap.max` (cgroup v2), below `root`.
pub fn swap_of(root: &Path) -> Swapping {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
    let devices = read("proc/swaps").lines().skip(1).filter(|line| !line.trim().is_empty()).count();
    let groups = read("proc/self/cgroup");
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    // A limit of 0 on any group above holds for those below it.
    let none_allowed = Path::new(group)
        .ancestors()
        .any(|group| read(&format!("sys/fs/cgroup/{}/memory.swap.max", group.display())).trim() == "0");
    if devices == 0 || none_allowed { Swapping::Nowhere } else { Swapping::Possible }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn no_dumps_after_it_was_asked() {
        forbid_dumps().unwrap();
        assert_eq!(rustix::process::dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        let limit = getrlimit(Resource::Core);
        assert_eq!((limit.current, limit.maximum), (Some(0), Some(0)));
    }

    #[test]
    fn swap_is_seen_unless_a_group_forbids_it() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n");
        assert_eq!(swap_of(root.path()), Swapping::Nowhere);
        write("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n/dev/sda2 partition 8 0 -2\n");
        assert_eq!(swap_of(root.path()), Swapping::Possible);
        write("proc/self/cgroup", "0::/system.slice/pii-vault.service\n");
        write("sys/fs/cgroup/system.slice/pii-vault.service/memory.swap.max", "max\n");
        assert_eq!(swap_of(root.path()), Swapping::Possible);
        write("sys/fs/cgroup/system.slice/memory.swap.max", "0\n");
        assert_eq!(swap_of(root.path()), Swapping::Nowhere);
    }
}
