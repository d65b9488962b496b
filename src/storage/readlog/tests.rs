use super::*;
use crate::audit::{Action, ChainHead, Checkpoint, Filter, Outcome, TamperKind};
use crate::crypto::sign::Signing;
use crate::ids::{ActorId, SubjectUid};
use std::os::unix::fs::FileExt;

pub(super) type Fault = Box<dyn Fn() -> std::io::Result<()> + Send>;

const VAULT: VaultId = VaultId([3; 16]);
const NOW: Timestamp = Timestamp(1_000_000);

fn options() -> ReadLogOptions {
    ReadLogOptions { segment_bytes: 64 << 10, ahead_bytes: 16 << 10, ..ReadLogOptions::new(VAULT) }
}

fn open(dir: &Path) -> (ReadLog, Recovered) {
    ReadLog::open(dir, options(), &[], NOW).unwrap()
}

fn refused(dir: &Path, known: &[(TenantNo, Head)]) -> ReadLogError {
    match ReadLog::open(dir, options(), known, NOW) {
        Ok(_) => panic!("opened"),
        Err(e) => e,
    }
}

fn record(n: i64) -> AuditRecord {
    let mut r = AuditRecord::new(Timestamp(NOW.0 + n), ActorId(1), Action::GetFields, Outcome::Ok);
    r.subject = Some(SubjectUid(n));
    r
}

fn wait<F: Future>(f: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(f)
}

/// Appends one by one, each durable before the next: one frame each.
fn fill(log: &ReadLog, tenant: u32, range: std::ops::Range<i64>) {
    for n in range {
        wait(log.append(TenantNo(tenant), &record(n))).unwrap();
    }
}

fn subjects(log: &ReadLog, tenant: u32, from: u64) -> Vec<i64> {
    let all = log.scan(TenantNo(tenant), from, Filter::default()).unwrap();
    all.map(|e| e.unwrap().1.subject.unwrap().0).collect()
}

fn file(dir: &Path, number: u64) -> std::fs::File {
    std::fs::OpenOptions::new().read(true).write(true).open(segment::path(dir, number)).unwrap()
}

#[test]
fn entries_are_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    fill(&log, 1, 0..10);
    fill(&log, 2, 100..103);
    assert_eq!(wait(log.append_all(TenantNo(1), &[record(10), record(11)])), Ok(12));
    let heads = log.heads();
    log.close();
    let (log, recovered) = ReadLog::open(dir.path(), options(), &heads, NOW).unwrap();
    assert_eq!((recovered.heads, recovered.torn_bytes), (heads.clone(), 0));
    assert_eq!(wait(log.append(TenantNo(1), &record(12))), Ok(13));
    assert_eq!(subjects(&log, 1, 1), (0..13).collect::<Vec<_>>());
    assert_eq!(subjects(&log, 1, 12), [11, 12]);
    assert_eq!(subjects(&log, 2, 1), [100, 101, 102]);
    assert_eq!(subjects(&log, 3, 1), [0i64; 0]);
    assert_eq!(log.verify(TenantNo(1), &[heads[0].1]).unwrap(), log.head(TenantNo(1)));
}

#[test]
fn a_note_is_written_by_itself_with_its_neighbours_and_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    for n in 0..50 {
        log.note(TenantNo(1), &record(n)).unwrap();
    }
    while log.stats().entries < 50 {
        std::thread::yield_now();
    }
    assert!(log.stats().batches < 50, "{:?}", log.stats());
    // Before one that somebody waits for, in order.
    log.note(TenantNo(1), &record(50)).unwrap();
    assert_eq!(wait(log.append(TenantNo(1), &record(51))), Ok(52));
    assert_eq!(subjects(&log, 1, 50), [49, 50, 51]);
    log.note(TenantNo(2), &record(7)).unwrap();
    log.close();
    let (log, _) = open(dir.path());
    assert_eq!(subjects(&log, 2, 1), [7]);
}

#[test]
#[allow(clippy::disallowed_methods)] // waits for the thread, not for the vault's time
fn the_thread_rests_when_nothing_comes_however_the_last_ones_came() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    for _ in 0..20 {
        // Some come while the batch of the others gathers.
        std::thread::scope(|scope| {
            for n in 0..32 {
                let log = &log;
                scope.spawn(move || {
                    for k in 0..8 {
                        wait(log.append(TenantNo(1), &record(n * 8 + k))).unwrap();
                    }
                });
            }
        });
        // It may be late with its last turns; one that never rests has turns in every window.
        let begun = std::time::Instant::now();
        loop {
            let before = log.shared.turns.load(Ordering::Relaxed);
            std::thread::sleep(std::time::Duration::from_millis(20));
            if log.shared.turns.load(Ordering::Relaxed) == before {
                break;
            }
            assert!(begun.elapsed() < std::time::Duration::from_secs(10), "it does not rest");
        }
    }
}

#[test]
fn a_full_queue_answers_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = ReadLog::open(dir.path(), ReadLogOptions { queue_entries: 8, ..options() }, &[], NOW).unwrap();
    let hold = log.shared.durable.lock(); // the thread waits for this in the middle of a batch
    let first = log.append(TenantNo(1), &record(0));
    while !log.shared.queue.lock().groups.is_empty() {
        std::thread::yield_now();
    }
    let more: Vec<_> = (1..9).map(|n| log.append(TenantNo(1), &record(n))).collect();
    assert_eq!(wait(log.append(TenantNo(1), &record(9))), Err(AppendError::Full));
    drop(hold);
    wait(first).unwrap();
    for (n, a) in more.into_iter().enumerate() {
        assert_eq!(wait(a), Ok(n as u64 + 2));
    }
    assert_eq!(log.stats().batches, 2, "what gathered became one batch");
    wait(log.append(TenantNo(1), &record(9))).unwrap();
}

#[test]
fn segments_rotate_and_pruned_ones_leave_a_verifiable_rest() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    for n in 0..100 {
        wait(log.append_all(TenantNo(1), &vec![record(n); 400])).unwrap();
        wait(log.append(TenantNo(2), &record(n))).unwrap();
    }
    let segments = log.segments().unwrap();
    assert!(segments.len() >= 4, "{segments:?}");
    assert!(segments.windows(2).all(|w| w[0].until == Some(w[1].since) && w[0].bytes <= 64 << 10));
    let keys = Signing::generate();
    let signed = |heads: &[(TenantNo, Head)]| {
        let heads = heads.iter().map(|(t, h)| ChainHead::new(*t, Chain::Read, *h));
        Checkpoint::sign(VAULT, NOW, heads.collect(), &keys)
    };
    let through = log.prunable(segments[2].since).unwrap().unwrap();
    assert_eq!(through, 1, "only entries older than the cut");
    let head = |seq| (TenantNo(1), Head { seq, hash: [0; 32] });
    assert!(matches!(log.prune(through, &signed(&[head(1)])), Err(ReadLogError::NotPrunable { .. })));
    let all = signed(&log.heads());
    assert!(matches!(log.prune(segments.last().unwrap().number, &all), Err(ReadLogError::NotPrunable { .. })));
    assert_eq!(log.prune(2, &all).unwrap(), 2);
    assert_eq!(log.prune(2, &all).unwrap(), 0);
    assert_eq!(log.verify(TenantNo(1), &[log.head(TenantNo(1))]).unwrap().seq, 40_000);
    assert_eq!(subjects(&log, 2, 100), [99]);
    let heads = log.heads();
    log.close();
    let (log, recovered) = ReadLog::open(dir.path(), options(), &heads, NOW).unwrap();
    assert_eq!(recovered.segments, segments.len() - 2);
    assert_eq!(subjects(&log, 2, 98), [97, 98, 99]);
    log.close();
    std::fs::remove_file(segment::path(dir.path(), 4)).unwrap();
    assert!(matches!(refused(dir.path(), &[]), ReadLogError::Missing { segment: 4 }));
}

#[test]
fn a_torn_last_frame_is_cleared_whatever_is_left_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    fill(&log, 1, 0..3);
    let before = log.shared.durable.lock().end;
    fill(&log, 1, 3..4);
    let after = log.shared.durable.lock().end;
    log.close();
    let f = file(dir.path(), 1);
    let mut frame = vec![0u8; (after - before) as usize];
    f.read_exact_at(&mut frame, before).unwrap();
    for keep in 0..frame.len() {
        // Both directions: the front is there, or only the rear.
        for torn in
            [[&frame[..keep], &vec![0; frame.len() - keep]].concat(), [&vec![0; keep + 1], &frame[keep + 1..]].concat()]
        {
            f.write_all_at(&torn, before).unwrap();
            let (log, recovered) = open(dir.path());
            assert_eq!(subjects(&log, 1, 1), [0, 1, 2], "{keep}");
            assert_eq!(recovered.torn_bytes > 0, torn.iter().any(|b| *b != 0));
            log.close();
            let mut now = vec![1u8; frame.len()];
            f.read_exact_at(&mut now, before).unwrap();
            assert!(now.iter().all(|b| *b == 0), "cleared");
        }
    }
    let (log, _) = open(dir.path());
    fill(&log, 1, 3..5);
    assert_eq!(subjects(&log, 1, 1), [0, 1, 2, 3, 4]);
}

#[test]
fn t28_a_changed_byte_anywhere_is_refused_or_seen_against_a_known_head() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    fill(&log, 1, 0..4);
    let (heads, end) = (log.heads(), log.shared.durable.lock().end);
    log.close();
    let f = file(dir.path(), 1);
    let mut good = vec![0u8; end as usize];
    f.read_exact_at(&mut good, 0).unwrap();
    for at in (0..84).chain(segment_header()..end as usize) {
        f.write_all_at(&[good[at] ^ 0x10], at as u64).unwrap();
        let e = refused(dir.path(), &heads);
        assert!(
            matches!(
                e,
                ReadLogError::Damaged { .. }
                    | ReadLogError::Truncated { .. }
                    | ReadLogError::Newer { .. }
                    | ReadLogError::Foreign { .. }
            ),
            "byte {at}: {e}"
        );
        f.write_all_at(&good, 0).unwrap();
    }
    let (log, _) = ReadLog::open(dir.path(), options(), &heads, NOW).unwrap();
    log.close();
    std::fs::remove_file(segment::path(dir.path(), 1)).unwrap();
    assert!(matches!(refused(dir.path(), &heads), ReadLogError::Truncated { found: 0, known: 4, .. }));
    // Another log of the same vault, whole in itself.
    let (log, _) = open(dir.path());
    fill(&log, 1, 50..54);
    log.close();
    assert!(matches!(refused(dir.path(), &heads), ReadLogError::Replaced { known: 4, .. }));
    let other = ReadLogOptions { vault: VaultId([9; 16]), ..options() };
    assert!(matches!(ReadLog::open(dir.path(), other, &[], NOW), Err(ReadLogError::Foreign { segment: 1 })));
}

fn segment_header() -> usize {
    4096
}

#[test]
fn t28_an_edit_while_open_is_found_by_verification() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    fill(&log, 1, 0..4);
    let head = log.head(TenantNo(1));
    assert!(matches!(
        log.verify(TenantNo(1), &[Head { seq: 9, hash: [0; 32] }]),
        Err(VerifyError::Tampered(t)) if t.kind == TamperKind::Truncated
    ));
    file(dir.path(), 1).write_all_at(&[0xff], segment_header() as u64 + 60).unwrap();
    assert!(matches!(log.verify(TenantNo(1), &[head]), Err(VerifyError::Unreadable(ReadLogError::Damaged { .. }))));
}

#[test]
fn t27_a_removed_moved_or_cut_file_fails_every_further_call() {
    for how in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = open(dir.path());
        fill(&log, 1, 0..2);
        let path = segment::path(dir.path(), 1);
        match how {
            0 => std::fs::remove_file(&path).unwrap(),
            1 => std::fs::rename(&path, dir.path().join("elsewhere")).unwrap(),
            _ => std::fs::remove_dir_all(dir.path()).unwrap(),
        }
        assert_eq!(wait(log.append(TenantNo(1), &record(2))), Err(AppendError::Unwritable), "{how}");
        assert_eq!(wait(log.append(TenantNo(2), &record(3))), Err(AppendError::Unwritable));
        assert!(!log.is_writable());
    }
}

#[test]
fn t04_after_a_failed_write_nothing_is_acknowledged_until_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    fill(&log, 1, 0..2);
    *log.shared.fault.lock() = Some(Box::new(|| Err(std::io::Error::from_raw_os_error(5))));
    let gathered: Vec<_> = (2..6).map(|n| log.append(TenantNo(1), &record(n))).collect();
    for a in gathered {
        assert_eq!(wait(a), Err(AppendError::Unwritable));
    }
    *log.shared.fault.lock() = None;
    assert_eq!(wait(log.append(TenantNo(1), &record(6))), Err(AppendError::Unwritable));
    drop(log);
    let (log, _) = open(dir.path());
    fill(&log, 1, 6..7);
    assert_eq!(subjects(&log, 1, 1), [0, 1, 6]);
}

#[test]
fn t27_a_panic_of_the_thread_fails_those_who_wait() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    *log.shared.fault.lock() = Some(Box::new(|| panic!("made by a test")));
    assert_eq!(wait(log.append(TenantNo(1), &record(0))), Err(AppendError::Unwritable));
}

/// A file system of 256 KiB; needs root, which CI and containers have. Elsewhere the failing write above stands for it.
#[test]
fn t27_a_full_disk_fails_calls_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mount = |args: &[&str]| std::process::Command::new(args[0]).args(&args[1..]).arg(dir.path()).output();
    let mounted = mount(&["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs"]).is_ok_and(|o| o.status.success());
    if !mounted {
        eprintln!("not root: no small file system");
        return;
    }
    let (log, _) = open(dir.path());
    let mut durable = 0;
    let error = loop {
        match wait(log.append_all(TenantNo(1), &vec![record(durable); 100])) {
            Ok(_) => durable += 1,
            Err(e) => break e,
        }
    };
    assert_eq!(error, AppendError::Unwritable);
    assert!(durable > 10);
    let head = log.heads();
    drop(log);
    std::fs::write(dir.path().join("more"), []).ok();
    let again = ReadLog::open(dir.path(), options(), &head, NOW);
    let whole = again.map(|(log, _)| log.verify(TenantNo(1), &[head[0].1]).map(|h| h.seq).unwrap());
    let unmounted = mount(&["umount", "-l"]).is_ok_and(|o| o.status.success());
    assert!(unmounted);
    assert_eq!(whole.unwrap(), durable as u64 * 100);
}

#[test]
fn many_callers_of_many_tenants_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    let log = Arc::new(log);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let tasks: Vec<_> = (0..32u32)
            .map(|t| {
                let log = log.clone();
                tokio::spawn(async move {
                    let mut seen = Vec::new();
                    for n in 0..100 {
                        seen.push(log.append(TenantNo(t % 5), &record(i64::from(t) * 1000 + n)).await.unwrap());
                    }
                    seen
                })
            })
            .collect();
        for task in tasks {
            let seen = task.await.unwrap();
            assert!(seen.windows(2).all(|w| w[0] < w[1]));
        }
    });
    let stats = log.stats();
    assert_eq!(stats.entries, 3200);
    assert!(stats.batches < 3200, "{stats:?}");
    let mut all: Vec<i64> = (0..5).flat_map(|t| subjects(&log, t, 1)).collect();
    all.sort_unstable();
    assert_eq!(all, (0..32).flat_map(|t| (0..100).map(move |n| t * 1000 + n)).collect::<Vec<_>>());
    for t in 0..5 {
        assert_eq!(log.verify(TenantNo(t), &[]).unwrap(), log.head(TenantNo(t)));
    }
}

/// `cargo test --release --lib readlog::tests::cost -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
#[allow(clippy::disallowed_methods)] // measures
fn cost_of_an_append_at_64_in_flight() {
    let dir = tempfile::tempdir_in(".").unwrap();
    let (log, _) = ReadLog::open(dir.path(), ReadLogOptions::new(VAULT), &[], NOW).unwrap();
    let log = Arc::new(log);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let cpu = || {
        let ticks: u64 = std::fs::read_dir("/proc/self/task")
            .unwrap()
            .filter_map(|t| std::fs::read_to_string(t.unwrap().path().join("schedstat")).ok())
            .map(|s| s.split(' ').next().unwrap().parse::<u64>().unwrap())
            .sum();
        ticks as f64
    };
    for in_flight in [1, 8, 64, 256] {
        let (before, started, stats) = (cpu(), std::time::Instant::now(), log.stats());
        runtime.block_on(async {
            let tasks: Vec<_> = (0..in_flight)
                .map(|_| {
                    let log = log.clone();
                    tokio::spawn(async move {
                        for n in 0..(40_000 / in_flight).max(200) {
                            log.append(TenantNo(1), &record(n)).await.unwrap();
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
        });
        let (took, now) = (started.elapsed(), log.stats());
        let n = now.entries - stats.entries;
        println!(
            "{in_flight} in flight: {:.0}/s, {:.2} us CPU each, {:.1} entries a batch, {:.1} B each",
            n as f64 / took.as_secs_f64(),
            (cpu() - before) / 1000.0 / n as f64,
            n as f64 / (now.batches - stats.batches) as f64,
            (now.bytes - stats.bytes) as f64 / n as f64,
        );
    }
}
