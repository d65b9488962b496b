//! What a SQLite store keeps of its promises on a full disk, when it is killed, when a sync fails, and when a bit flips.
//! Long tests run at small counts unless `PII_VAULT_TEST_FULL` is set.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::tests::{audit_entries, is_there, open, options};
use super::*;
use crate::storage::conformance::samples::{
    T, VAULT, digest, group_row, item_row, note, person, set, subject_row, tenant_row,
};

fn full() -> bool {
    std::env::var_os("PII_VAULT_TEST_FULL").is_some()
}

/// A file system of 2 MiB that is gone when the test ends.
struct SmallDisk(tempfile::TempDir);
impl SmallDisk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"]).arg(folder.path()).output();
        let mounted = mounted.expect("the command `mount`");
        assert!(
            mounted.status.success(),
            "this test mounts a tmpfs and needs the right to do so (root or CAP_SYS_ADMIN): {}",
            String::from_utf8_lossy(&mounted.stderr)
        );
        SmallDisk(folder)
    }
}
impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn t03_a_full_disk_refuses_writes_loses_nothing_and_recovers() {
    for seed in 0..if full() { 20 } else { 1 } {
        fill_a_disk_ten_times(seed).await;
    }
}

async fn fill_a_disk_ten_times(seed: u64) {
    let disk = SmallDisk::new();
    let mut options = options(disk.0.path());
    options.checkpoint_pages = 60;
    let store = SqliteStore::open(options.clone()).unwrap();
    store.commit(set([Mutation::PutTenant(tenant_row(T))])).await.unwrap();
    let ballast = disk.0.path().join("ballast");
    let (mut uid, mut entries, mut refused) = (0, 0, 0);
    for round in 0..10 {
        // Leave some pages, a different number each time, so that it breaks at different places.
        let mut file = File::create(&ballast).unwrap();
        while file.write_all(&[7; 4096]).is_ok() {}
        let left =
            file.metadata().unwrap().len().saturating_sub((round + seed) % 7 * 4096 + round % 3 * 40_000 + seed * 512);
        file.set_len(left).unwrap();
        drop(file);
        let mut stored = Vec::new();
        let failed = loop {
            uid += 1;
            match store.commit(person(uid)).await {
                Ok(_) => stored.push(uid),
                Err(e) => break e,
            }
            assert!(stored.len() < 5000);
        };
        assert!(matches!(failed, StoreError::DiskFull), "round {round}: {failed:?}");
        refused += 1;
        entries += stored.len() as u64;
        for uid in &stored {
            assert!(is_there(&store, *uid).await);
        }
        assert!(!is_there(&store, uid).await);
        // An erasure may or may not find room; what was answered holds.
        if let Some(first) = stored.first() {
            let mut erase = set([Mutation::DeleteSubject { uid: SubjectUid(*first) }]);
            erase.note(T, note(*first));
            match store.commit(erase).await {
                Ok(_) => {
                    entries += 1;
                    assert!(!is_there(&store, *first).await);
                }
                Err(StoreError::DiskFull) => assert!(is_there(&store, *first).await),
                Err(other) => panic!("{other:?}"),
            }
        }
        store.health().unwrap();
        std::fs::remove_file(&ballast).unwrap();
        for some in stored.chunks(20) {
            let mut erase = set(some.iter().map(|uid| Mutation::DeleteSubject { uid: SubjectUid(*uid) }));
            erase.note(T, note(uid));
            store.commit(erase).await.expect("there is space again");
            entries += 1;
        }
        assert_eq!(audit_entries(&store).await, entries, "the audit skipped nothing");
    }
    assert_eq!(refused, 10);
    store.close().await;
    drop(store);
    let again = SqliteStore::open(options).unwrap();
    assert_eq!(audit_entries(&again).await, entries);
    assert_eq!(again.counts(T).await.unwrap().subjects, 0);
}

/// Runs one of the ignored tests below as a process of its own, under `wrapper` if there is one.
fn child(test: &str, folder: &Path, wrapper: &[&str]) -> Child {
    let this = std::env::current_exe().unwrap();
    let mut command = match wrapper {
        [] => Command::new(&this),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(&this);
            command
        }
    };
    let name = format!("storage::sqlite::tests_faults::{test}");
    command.args([name.as_str(), "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env("PII_VAULT_TEST_STORE", folder).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().expect("a test process")
}

/// What a child says it has done: numbers after a mark, whole lines only.
fn said(child: &mut Child) -> impl Iterator<Item = (String, i64)> + use<> {
    let lines = BufReader::new(child.stdout.take().unwrap());
    lines.split(b'\n').map_while(std::result::Result::ok).filter_map(|line| {
        let line = String::from_utf8(line).ok()?;
        let (word, number) = line.strip_prefix("@")?.strip_suffix(".")?.split_once(' ')?;
        Some((word.to_owned(), number.parse().ok()?))
    })
}

fn say(word: &str, uid: i64) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("\n@{word} {uid}.\n").as_bytes()).and_then(|()| out.flush()).unwrap();
}

#[test]
#[ignore = "run by t01 as a process of its own"]
fn t01_child() {
    let Some(folder) = std::env::var_os("PII_VAULT_TEST_STORE") else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Arc::new(open(Path::new(&folder)));
        let writers = (0..8).map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                loop {
                    let uid = store.next_uid().0;
                    store.commit(person(uid)).await.unwrap();
                    say("put", uid);
                    if uid % 4 == 0 {
                        let mut erase = set([
                            Mutation::DeleteSubject { uid: SubjectUid(uid) },
                            Mutation::PutTombstone(TombstoneRow {
                                tenant: T,
                                digest: digest(uid),
                                operation: ObjectId::random(),
                                at: Timestamp(1),
                            }),
                        ]);
                        erase.require(Precondition::SubjectLive { uid: SubjectUid(uid) }).note(T, note(uid));
                        store.commit(erase).await.unwrap();
                        say("erased", uid);
                    }
                }
            })
        });
        futures_util::future::join_all(writers).await;
    });
}

#[tokio::test]
async fn t01_a_killed_process_loses_nothing_it_answered() {
    use std::collections::BTreeSet;
    let folder = tempfile::tempdir().unwrap();
    let (mut put, mut erased) = (BTreeSet::new(), BTreeSet::new());
    for round in 0..if full() { 1000 } else { 5 } {
        let mut process = child("t01_child", folder.path(), &[]);
        let words = said(&mut process);
        let mut heard = 0;
        // Killed after a number of answers that differs each time, in the middle of others.
        let until = 1 + round * 37 % 200;
        let mut killed = false;
        for (word, uid) in words {
            match word.as_str() {
                "put" => put.insert(uid),
                _ => erased.insert(uid),
            };
            heard += 1;
            if heard >= until && !killed {
                process.kill().unwrap();
                killed = true;
            }
        }
        process.wait().unwrap();
        assert!(killed, "the process ended by itself");

        let store = open(folder.path());
        for uid in &put {
            match store.subject(T, digest(*uid)).await.unwrap() {
                Lookup::Found(_) => assert!(is_there(&store, *uid).await && !erased.contains(uid)),
                // Erased, and killed before it could say so.
                Lookup::Erased(_) => assert!(uid % 4 == 0),
                Lookup::Missing => panic!("{uid} was answered and is lost"),
            }
        }
        let counts = store.counts(T).await.unwrap();
        assert_eq!(counts.classes, 2 * counts.subjects, "half visible");
        let entries = audit_entries(&store).await;
        assert_eq!(entries, counts.subjects + 2 * counts.tombstones, "one audit entry a change");
        assert!(store.next_uid().0 > *put.last().unwrap());
        store.close().await;
        drop(store);
        let conn = Connection::open(folder.path().join("vault.db")).unwrap();
        let check: String = conn.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok");
    }
}

#[test]
#[ignore = "run by t04 as a process of its own"]
fn t04_child() {
    let Some(folder) = std::env::var_os("PII_VAULT_TEST_STORE") else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = open(Path::new(&folder));
        for uid in 1..=40 {
            match store.commit(person(uid)).await {
                Ok(_) => say("put", uid),
                Err(StoreError::Closed { .. }) => say("closed", uid),
                Err(_) => say("other", uid),
            }
        }
        say("health", i64::from(store.health().is_ok()));
        let reads = store.subject(T, digest(1)).await.is_ok();
        say("reads", i64::from(reads));
        store.close().await;
    });
}

#[tokio::test]
async fn t04_after_a_failed_sync_or_write_nothing_is_acknowledged() {
    // The writer's fifteenth sync fails and the later ones would succeed: the dangerous case, since the kernel has
    // then forgotten what it could not write.
    for inject in ["inject=fdatasync,fsync:error=EIO:when=15", "inject=pwrite64:error=EIO:when=90"] {
        let folder = tempfile::tempdir().unwrap();
        open(folder.path()).close().await;
        let calls = "trace=fdatasync,fsync,pwrite64";
        let mut process =
            child("t04_child", folder.path(), &["strace", "-f", "-qq", "-o", "/dev/null", "-e", calls, "-e", inject]);
        let words: Vec<_> = said(&mut process).collect();
        assert!(process.wait().unwrap().success());
        let of = |word: &str| words.iter().filter(|(w, _)| w == word).map(|(_, uid)| *uid).collect::<Vec<_>>();
        let (put, closed) = (of("put"), of("closed"));
        assert!(!put.is_empty() && !closed.is_empty(), "{inject}: {words:?}");
        assert!(put.iter().max() < closed.iter().min(), "{inject}: acknowledged after the error");
        assert_eq!((of("other").len(), of("health"), of("reads")), (0, vec![0], vec![1]));
        let store = open(folder.path());
        for uid in put {
            assert!(is_there(&store, uid).await, "{inject}: {uid} was acknowledged");
        }
        let counts = store.counts(T).await.unwrap();
        assert_eq!(audit_entries(&store).await, counts.subjects);
    }
}

#[tokio::test]
async fn t16_a_flipped_bit_is_never_a_panic_nor_somebody_elses_row() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.commit(set([Mutation::PutTenant(tenant_row(T))])).await.unwrap();
    const PEOPLE: i64 = 40;
    for uid in 1..=PEOPLE {
        let mut change = person(uid);
        change.change(Mutation::PutItemGroup(group_row(uid, 20)));
        change.change(Mutation::PutItem(item_row(uid, 20, 1)));
        store.commit(change).await.unwrap();
    }
    store.close().await;
    drop(store);
    let path = folder.path().join("vault.db");
    let whole = std::fs::read(&path).unwrap();
    let step = if full() { 1 } else { whole.len() / 250 };
    let (mut unharmed, mut noticed, mut changed) = (0, 0, 0);
    for at in (0..whole.len()).step_by(step) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        std::fs::write(&path, &bytes).unwrap();
        let Ok(store) = SqliteStore::open(Options::new(&path, VAULT)) else {
            noticed += 1;
            continue;
        };
        let (mut wrong, mut errors) = (0, 0);
        for uid in 1..=PEOPLE {
            match store.subject(T, digest(uid)).await {
                Ok(Lookup::Found(found)) => {
                    assert_eq!((found.subject.tenant, found.subject.digest), (T, digest(uid)), "byte {at}");
                    let own = |c: &ClassRow| c.uid == found.subject.uid && c.tenant == T;
                    assert!(found.classes.iter().all(own), "byte {at}");
                    wrong += usize::from(found.subject != subject_row(uid) || found.classes.len() != 2);
                }
                Ok(_) => wrong += 1,
                Err(StoreError::Damaged { .. } | StoreError::Closed { .. }) => errors += 1,
                // A panic of a reader would be an engine error as well, but of another kind.
                Err(StoreError::Engine(e)) => {
                    assert!(e.is::<rusqlite::Error>(), "byte {at}: {e:?}");
                    errors += 1;
                }
                Err(other) => panic!("byte {at}: {other:?}"),
            }
            if let Ok(Some(item)) = store.item(group_row(uid, 20).key, ItemNo(1)).await {
                assert_eq!(item.group, group_row(uid, 20).key, "byte {at}");
            }
        }
        let _ = store.list_subjects(T, None, SubjectUid(0), 100).await;
        let _ = store.audit_groups(T, 0, 100).await;
        let _ = store.commit(person(PEOPLE + 1)).await;
        match (errors, wrong) {
            (0, 0) => unharmed += 1,
            (0, _) => changed += 1,
            _ => noticed += 1,
        }
    }
    assert!(noticed > 0 && unharmed > 0, "{noticed} noticed, {unharmed} unharmed, {changed} changed");
}
