//! What the operating system says about a process, and about this machine.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::{Value as Json, json};

fn missing(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// CPU time, in user and kernel, that the threads of a process that live took so far, in nanoseconds: the sum that the
/// kernel keeps of a process goes in steps of 10 ms, which is more than a short window takes.
pub fn cpu(pid: u32) -> io::Result<Duration> {
    let mut all = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // One that ends meanwhile is not counted.
        let Ok(stat) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        let ran = stat.split(' ').next().and_then(|n| n.parse::<u64>().ok());
        all += ran.ok_or_else(|| missing("schedstat"))?;
    }
    Ok(Duration::from_nanos(all))
}

/// Bytes of memory that a process holds in RAM, without pages of files.
pub fn resident(pid: u32) -> io::Result<u64> {
    memory(pid, "VmRSS")
}

/// The most that it ever held so.
pub fn peak(pid: u32) -> io::Result<u64> {
    memory(pid, "VmHWM")
}

fn memory(pid: u32, what: &'static str) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix(what)).ok_or_else(|| missing(what))?;
    let number = line.trim_start_matches(':').trim().trim_end_matches("kB").trim();
    Ok(number.parse::<u64>().map_err(|_| missing(what))? << 10)
}

/// Cores of this thread before it was pinned.
static BEFORE: OnceLock<CpuSet> = OnceLock::new();

/// Keeps this thread, and all that it starts from now on, on one core.
pub fn pin(core: usize) -> io::Result<()> {
    let before = sched_getaffinity(None)?;
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set)?;
    BEFORE.get_or_init(|| before);
    Ok(())
}

/// Runs `start` on the cores that this thread had before it was pinned: what is started then is not pinned.
pub fn unpinned<T>(start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let Some(before) = BEFORE.get() else { return start() };
    let pinned = sched_getaffinity(None)?;
    sched_setaffinity(None, before)?;
    let started = start();
    sched_setaffinity(None, &pinned)?;
    started
}

/// Cores that we may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// What figures must travel with.
pub fn machine(dir: &Path) -> Json {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|l| l.strip_prefix("model name")).and_then(|l| l.split_once(": "));
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = memory.lines().next().and_then(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0);
    json!({
        "cpu": model.map_or("unknown", |(_, m)| m),
        "cores": cores(),
        "memory_mib": memory >> 10,
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
        "file_system": file_system(dir),
        "load": fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').next().unwrap_or_default(),
    })
}

/// Type of the file system that a directory lies on.
fn file_system(dir: &Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let of = |line: &str| {
        let mut parts = line.split(' ').skip(1);
        let (point, kind) = (parts.next()?.to_owned(), parts.next()?.to_owned());
        dir.starts_with(&point).then_some((point.len(), kind))
    };
    mounts.lines().filter_map(of).max_by_key(|(length, _)| *length).map_or("unknown".into(), |(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_pinned_thread_starts_unpinned_has_all_cores() {
        let cores = || sched_getaffinity(None).unwrap().count();
        let all = cores();
        std::thread::spawn(move || {
            let first = (0..CpuSet::MAX_CPU).find(|core| sched_getaffinity(None).unwrap().is_set(*core)).unwrap();
            pin(first).unwrap();
            assert_eq!((cores(), unpinned(|| Ok(cores())).unwrap(), cores()), (1, all, 1));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_process_can_be_looked_at() {
        let pid = std::process::id();
        assert!(resident(pid).unwrap() > 1 << 20);
        assert!(cpu(pid).unwrap() > Duration::ZERO && cpu(u32::MAX).is_err());
        assert_ne!(machine(Path::new("/"))["file_system"], "unknown");
    }
}
