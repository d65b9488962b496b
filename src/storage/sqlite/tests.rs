//! What only a SQLite store promises; the rest is in `conformance`.

use std::path::Path;

use rusqlite::config::DbConfig;

use super::*;
use crate::audit::{Chain, genesis, verify};
use crate::storage::conformance;
use crate::storage::conformance::samples::{T, VAULT, class_row, digest, note, person, set, subject_row};

pub(super) fn options(folder: &Path) -> Options {
    Options::new(folder.join("vault.db"), VAULT).create()
}

pub(super) fn open(folder: &Path) -> SqliteStore {
    SqliteStore::open(options(folder)).unwrap()
}

pub(super) async fn is_there(store: &SqliteStore, uid: i64) -> bool {
    match store.subject(T, digest(uid)).await.unwrap() {
        Lookup::Found(found) => {
            assert_eq!(
                (&found.subject, &found.classes[..]),
                (&subject_row(uid), &[class_row(uid, 1), class_row(uid, 2)][..])
            );
            true
        }
        Lookup::Erased(_) | Lookup::Missing => false,
    }
}

/// Verifies the chain and answers the number of its entries.
pub(super) async fn audit_entries(store: &SqliteStore) -> u64 {
    let rows = store.audit_groups(T, 0, u32::MAX).await.unwrap();
    let from = genesis(VAULT, T, Chain::Change);
    verify(T, Chain::Change, rows.iter().map(|row| &row.body[..]), from, &[]).unwrap().seq
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn does_what_every_store_does() {
    let folder = tempfile::tempdir().unwrap();
    let made = AtomicUsize::new(0);
    conformance::all(|| {
        let path = folder.path().join(format!("{}.db", made.fetch_add(1, Ordering::SeqCst)));
        Arc::new(SqliteStore::open(Options::new(path, VAULT).create()).unwrap())
    })
    .await;
}

#[test]
fn every_connection_has_its_pragmas() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path());
    drop(SqliteStore::open(options.clone()).unwrap());
    for reader in [false, true] {
        let conn = connect(&options, reader).unwrap();
        let text = |name: &str| conn.pragma_query_value(None, name, |row| row.get::<_, String>(0)).unwrap();
        let number = |name: &str| conn.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(text("journal_mode"), "wal");
        for (name, value) in [
            ("synchronous", 2),
            ("foreign_keys", 1),
            ("secure_delete", 1),
            ("temp_store", 2),
            ("page_size", 4096),
            ("trusted_schema", 0),
            ("cell_size_check", 1),
            ("cache_size", -8192),
            ("wal_autocheckpoint", 0),
            ("journal_size_limit", 2 * 16_384 * 4096),
            ("query_only", i64::from(reader)),
            ("application_id", i64::from(schema::APPLICATION_ID)),
            ("user_version", i64::from(schema::VERSION)),
            ("auto_vacuum", 0),
        ] {
            assert_eq!(number(name), value, "{name}");
        }
        // Off at its lowest: an unmapped file answers no row or 0.
        let mapped = conn.pragma_query_value(None, "mmap_size", |row| row.get::<_, i64>(0)).unwrap_or(0);
        assert_eq!(mapped, 0);
        assert!(conn.db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG).unwrap(), "plans do not follow what is bound");
        assert_eq!(conn.prepare("DELETE FROM meta").unwrap().execute([]).is_err(), reader);
    }
}

#[test]
fn refuses_what_is_not_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let refusal = |options: Options| match SqliteStore::open(options).map(drop) {
        Err(StoreError::Refused { what }) => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(refusal(Options::new(path("none"), VAULT)), "it is not there");
    assert!(!path("none").exists());

    let text =
        b"not a database, but somebody's notes, and certainly longer than the hundred bytes of a header of a file";
    std::fs::write(path("notes"), text).unwrap();
    assert_eq!(refusal(Options::new(path("notes"), VAULT).create()), "it is not a database");
    assert_eq!(std::fs::read(path("notes")).unwrap(), text);

    for (name, application) in [("named", 7), ("unnamed", 0)] {
        let conn = Connection::open(path(name)).unwrap();
        conn.execute_batch("CREATE TABLE theirs(x)").unwrap();
        conn.pragma_update(None, "application_id", application).unwrap();
        drop(conn);
        assert_eq!(refusal(Options::new(path(name), VAULT).create()), "another program made it");
        let conn = Connection::open(path(name)).unwrap();
        let tables: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).unwrap();
        assert_eq!(tables, 1);
    }

    let store = open(folder.path());
    assert_eq!(refusal(options(folder.path())), "another process has it open");
    drop(store);
    let mut other = options(folder.path());
    other.vault = VaultId([8; 16]);
    assert_eq!(refusal(other), "it belongs to another vault");

    let conn = Connection::open(path("vault.db")).unwrap();
    conn.pragma_update(None, "user_version", schema::VERSION + 1).unwrap();
    drop(conn);
    let newer = SqliteStore::open(options(folder.path())).map(drop);
    assert!(matches!(newer, Err(StoreError::Newer { found, known }) if found == known + 1), "{newer:?}");
}

#[test]
fn only_the_owner_may_read_the_files() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let _store = open(folder.path());
    let mut files = 0;
    for file in std::fs::read_dir(folder.path()).unwrap() {
        assert_eq!(file.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
        files += 1;
    }
    assert!(files >= 4, "database, log, index, lock");
}

#[tokio::test]
async fn a_node_fits_one_page() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let node = |ordinal| NodeRow {
        tenant: TenantNo(0x7fff_ffff),
        ordinal: Ordinal(ordinal),
        generation: Generation(u64::MAX / 2),
        blob: vec![9; 3869],
    };
    store.commit(set((0..50).map(|n| Mutation::PutNode(node(n))))).await.unwrap();
    store.close().await;
    let conn = Connection::open(folder.path().join("vault.db")).unwrap();
    let pages = |kind: &str| -> i64 {
        let sql = "SELECT count(*) FROM dbstat WHERE name = 'node' AND pagetype = ?1";
        conn.query_row(sql, [kind], |row| row.get(0)).unwrap()
    };
    assert_eq!((pages("leaf"), pages("overflow")), (50, 0));
}

/// Blocks the writer between COMMIT and the answers.
struct Gate(crossbeam_channel::Receiver<()>);
impl CommitListener for Gate {
    fn committed(&self, _: &[SubjectUid]) {
        let _ = self.0.recv();
    }
}

#[tokio::test]
async fn full_queues_answer_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path());
    (options.write_queue, options.readers, options.read_queue) = (3, 1, 2);
    let store = Arc::new(SqliteStore::open(options).unwrap());
    let (open_gate, gate) = crossbeam_channel::unbounded();
    store.set_listener(Arc::new(Gate(gate.clone())));
    let put = |uid| {
        let store = store.clone();
        tokio::spawn(async move { store.commit(person(uid)).await })
    };
    let first = put(1);
    while !matches!(store.subject_by_uid(SubjectUid(1)).await, Ok(Some(_))) {
        tokio::task::yield_now().await;
    }
    let waiting: Vec<_> = (2..=4).map(put).collect();
    while store.stats().writes_waiting < 3 {
        tokio::task::yield_now().await;
    }
    assert!(matches!(store.commit(person(9)).await, Err(StoreError::Busy)));
    (0..4).for_each(|_| open_gate.send(()).unwrap());
    first.await.unwrap().unwrap();
    for task in waiting {
        task.await.unwrap().unwrap();
    }
    assert_eq!(store.shared.queued.load(Ordering::SeqCst), 0, "refused and done ones leave no bytes behind");

    // Commits that waited were made together, so some of the tokens are left.
    while gate.try_recv().is_ok() {}
    let (begun, has_begun) = oneshot::channel();
    let blocked = {
        let store = store.clone();
        tokio::spawn(async move {
            store
                .read(move |_| {
                    let _ = begun.send(());
                    let _ = gate.recv();
                    Ok(())
                })
                .await
        })
    };
    has_begun.await.unwrap();
    let reads: Vec<_> = (0..2)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.tenants().await })
        })
        .collect();
    while store.stats().reads_waiting < 2 {
        tokio::task::yield_now().await;
    }
    assert!(matches!(store.tenants().await, Err(StoreError::Busy)));
    drop(open_gate);
    blocked.await.unwrap().unwrap();
    for task in reads {
        task.await.unwrap().unwrap();
    }
    let store = Arc::into_inner(store).unwrap();
    store.close().await;
}

#[tokio::test]
async fn queued_bytes_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path());
    options.write_queue_bytes = 100_000;
    let store = Arc::new(SqliteStore::open(options).unwrap());
    let (open_gate, gate) = crossbeam_channel::unbounded();
    store.set_listener(Arc::new(Gate(gate)));
    let large = |uid| {
        let class = ClassRow { record: vec![0; 60_000], ..class_row(uid, 1) };
        let store = store.clone();
        tokio::spawn(async move { store.commit(set([Mutation::PutClass(class)])).await })
    };
    let first = large(1);
    while store.shared.queued.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    assert!(matches!(large(2).await.unwrap(), Err(StoreError::Busy)));
    drop(open_gate);
    first.await.unwrap().unwrap();
    large(2).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_dead_writer_closes_the_store() {
    struct Panics;
    impl CommitListener for Panics {
        fn committed(&self, _: &[SubjectUid]) {
            panic!("a defect in a listener");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.set_listener(Arc::new(Panics));
    store.health().unwrap();
    let lost = store.commit(person(1)).await;
    assert!(matches!(lost, Err(StoreError::Closed { .. })), "{lost:?}");
    while store.health().is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(matches!(store.commit(person(2)).await, Err(StoreError::Closed { .. })));
    assert!(store.tenants().await.is_ok(), "reads go on");
    store.close().await;
}

#[tokio::test]
async fn a_panicking_read_harms_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for _ in 0..5 {
        let lost: Result<()> = store.read(|conn| readers::snapshot(conn, |_| panic!("a defect in a read"))).await;
        assert!(matches!(lost, Err(StoreError::Engine(_))));
    }
    store.commit(person(1)).await.unwrap();
    assert!(is_there(&store, 1).await);
    store.health().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_whole_while_writes_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(open(folder.path()));
    for uid in 1..=300 {
        store.commit(person(uid)).await.unwrap();
    }
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for uid in 301..=500 {
                store.commit(person(uid)).await.unwrap();
            }
        })
    };
    let copy = folder.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    let seen = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let watch = seen.clone();
    let all = Box::new(move |done, total| {
        assert!(done <= total);
        watch.store(done, std::sync::atomic::Ordering::SeqCst);
        true
    });
    store.copy_to(copy.join("vault.db"), all).await.unwrap();
    let size = std::fs::metadata(copy.join("vault.db")).unwrap().len();
    assert_eq!(seen.load(std::sync::atomic::Ordering::SeqCst), size, "progress ends at the whole");
    assert!(store.copy_to(copy.join("vault.db"), Box::new(|_, _| true)).await.is_err(), "nothing is overwritten");
    let stopped = store.copy_to(copy.join("stopped.db"), Box::new(|_, _| false)).await;
    assert!(stopped.is_ok() || !copy.join("stopped.db").exists(), "what was stopped is gone");
    assert_eq!(check_file(&copy.join("vault.db")).unwrap(), SCHEMA_VERSION);
    assert_eq!(
        std::fs::read_dir(&copy).unwrap().count(),
        if stopped.is_ok() { 2 } else { 1 },
        "checking leaves nothing"
    );
    writer.await.unwrap();
    let copied = open(&copy);
    let subjects = copied.counts(T).await.unwrap().subjects;
    assert!((300..=500).contains(&subjects));
    assert_eq!(audit_entries(&copied).await, subjects);
    assert_eq!(copied.counts(T).await.unwrap().classes, 2 * subjects);
    copied.commit(person(10_000)).await.unwrap();
    copied.close().await;
    assert_eq!(audit_entries(&store).await, 500);
}

#[tokio::test]
async fn the_log_stays_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path());
    options.checkpoint_pages = 100;
    let store = SqliteStore::open(options).unwrap();
    let log = folder.path().join("vault.db-wal");
    for round in 0..600 {
        let mut change = person(round % 50 + 1);
        change.preconditions.clear();
        store.commit(change).await.unwrap();
        let pages = std::fs::metadata(&log).unwrap().len() / 4120;
        assert!(pages < 200, "{pages} after {round} commits");
    }
    store.checkpoint().await.unwrap();
    assert_eq!(std::fs::metadata(&log).unwrap().len(), 0);
    store.commit(person(100)).await.unwrap();
    assert_eq!(audit_entries(&store).await, 601);
}

#[tokio::test]
async fn a_crash_takes_no_number_back() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let given: Vec<_> = (0..1000).map(|_| store.next_uid()).collect();
    let last = *given.last().unwrap();
    store
        .commit(set([
            Mutation::FreeSlot { tenant: T, slot: Slot(70) },
            Mutation::TakeSlot { tenant: T, slot: Slot(70) },
        ]))
        .await
        .unwrap();
    store.commit(set([]).note(T, note(1)).clone()).await.unwrap();
    // As a crash would leave it: the files as they are, nothing written on the way out.
    let crashed = folder.path().join("crashed");
    std::fs::create_dir(&crashed).unwrap();
    for name in ["vault.db", "vault.db-wal"] {
        std::fs::copy(folder.path().join(name), crashed.join(name)).unwrap();
    }
    let again = open(&crashed);
    assert!(again.next_uid() > last);
    assert_eq!(again.slots(T).await.unwrap(), SlotUse { next: Slot(71), free: vec![] });
    again.commit(set([]).note(T, note(2)).clone()).await.unwrap();
    assert_eq!(audit_entries(&again).await, 2);
    again.close().await;
    store.close().await;
    drop(store);
    let again = open(folder.path());
    assert_eq!(again.next_uid().0, last.0 + 1, "closed in order, it goes on where it was");
}

/// Readers must never meet less than what was answered, through cache and connections together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answered_changes_are_seen_by_every_later_read() {
    use std::sync::atomic::{AtomicBool, AtomicU64};
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(open(folder.path()));
    for uid in 1..=4 {
        store.commit(person(uid)).await.unwrap();
    }
    let answered: Arc<Vec<AtomicU64>> = Arc::new((0..5).map(|_| AtomicU64::new(1)).collect());
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..4i64)
        .map(|n| {
            let (store, answered, stop) = (store.clone(), answered.clone(), stop.clone());
            tokio::spawn(async move {
                let (mut round, mut hits) = (n, 0);
                while !stop.load(Ordering::SeqCst) {
                    round += 1;
                    let uid = round % 4 + 1;
                    let least = answered[uid as usize].load(Ordering::SeqCst);
                    let found = match store.cached_subject(T, digest(uid)) {
                        Some(found) => {
                            hits += 1;
                            found
                        }
                        None => store.subject_by_uid(SubjectUid(uid)).await.unwrap().unwrap(),
                    };
                    assert!(found.classes[0].revision.0 >= least, "stale");
                    tokio::task::yield_now().await;
                }
                hits
            })
        })
        .collect();
    for round in 2..400u64 {
        for uid in 1..=4i64 {
            let class = ClassRow { revision: Revision(round), ..class_row(uid, 1) };
            store.commit(set([Mutation::PutClass(class)])).await.unwrap();
            answered[uid as usize].store(round, Ordering::SeqCst);
        }
    }
    stop.store(true, Ordering::SeqCst);
    let mut hits = 0;
    for reader in readers {
        hits += reader.await.unwrap();
    }
    assert!(hits > 0);
}
