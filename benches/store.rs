//! The store against plain SQLite with the same rows: `cargo bench --bench store`.
//!
//! The two sides take turns in short windows of one run, because a machine changes its mind within minutes; the ratio of
//! the medians is what counts, and a row of the floor against itself shows how far to trust it. (Criterion runs one
//! benchmark to its end before it begins the next.)

#![allow(clippy::disallowed_methods)] // a benchmark asks the machine for the time

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use pii_vault::audit::{Action, AuditRecord, Outcome};
use pii_vault::clock::Timestamp;
use pii_vault::ids::*;
use pii_vault::storage::sqlite::{Options, SqliteStore};
use pii_vault::storage::*;
use rusqlite::{Connection, params};

const VAULT: VaultId = VaultId([1; 16]);
const TENANT: TenantNo = TenantNo(1);
/// Writers that wait for an answer at the same time, and rows of a raw group.
const IN_FLIGHT: i64 = 256;
const WINDOWS: usize = 12;
const PUTS: i64 = 8 * IN_FLIGHT;
const READS: i64 = 20_000;

fn digest(uid: i64) -> [u8; 16] {
    (uid as u128).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_le_bytes()
}

fn class(uid: i64, class: u8) -> ClassRow {
    ClassRow {
        uid: SubjectUid(uid),
        tenant: TENANT,
        class: ClassNo(class),
        version: DekVersion(1),
        slot: Some(Slot(uid as u32 * 2 + u32::from(class))),
        dek: DekId(digest(uid)),
        state: ClassState::Live,
        revision: Revision(1),
        data_keys_issued: 0,
        seals: 3,
        next_bucket: None,
        record: vec![uid as u8; 280],
    }
}

/// Five fields in two classes, one of them searchable: what a sign-up stores.
fn person(uid: i64) -> ChangeSet {
    let mut change = ChangeSet::default();
    let (tenant, subject_digest) = (TENANT, SubjectDigest(digest(uid)));
    change.require(Precondition::TenantIs { tenant, state: TenantState::Live });
    change.require(Precondition::SubjectAbsent { tenant, digest: subject_digest });
    change.require(Precondition::NoTombstone { tenant, digest: subject_digest });
    change.change(Mutation::PutSubject(SubjectRow {
        uid: SubjectUid(uid),
        tenant,
        digest: subject_digest,
        sealed_id: vec![3; 52],
        state: SubjectState::Live,
        group: None,
        revision: Revision(1),
        created: Timestamp(uid),
        touched: Timestamp(uid),
        due: None,
    }));
    change.change(Mutation::PutClass(class(uid, 1)));
    change.change(Mutation::PutClass(class(uid, 2)));
    change.change(Mutation::PutTerm(TermRow {
        tenant,
        field: FieldNo(2),
        version: SecretVersion(1),
        tag: TermTag(digest(!uid)),
        uid: SubjectUid(uid),
    }));
    let mut record = AuditRecord::new(Timestamp(uid), ActorId(5), Action::PutFields, Outcome::Ok);
    record.subject = Some(SubjectUid(uid));
    change.note(TENANT, record.to_bytes());
    change
}

/// The same rows by a single thread that has nothing else to do: no queue, no preconditions, no savepoints, no chain.
fn raw_group(conn: &Connection, uids: std::ops::Range<i64>) {
    let run = |sql: &str, params: &[&dyn rusqlite::ToSql]| conn.prepare_cached(sql).unwrap().execute(params).unwrap();
    let class_sql = "INSERT INTO subject_class(id, tenant, class, version, slot, dek, state, revision,
        data_keys_issued, seals, next_bucket, record) VALUES (?1, 1, ?2, 1, ?3, ?4, 1, 1, 0, 3, NULL, ?5)";
    conn.execute_batch("BEGIN IMMEDIATE").unwrap();
    let last = uids.end;
    for uid in uids {
        let digest_bytes = digest(uid);
        run(
            "INSERT INTO subject(uid, tenant, digest, sealed_id, state, grp, revision, created, touched, due)
             VALUES (?1, 1, ?2, ?3, 1, NULL, 1, ?1, ?1, NULL)",
            params![uid, &digest_bytes[..], &[3u8; 52][..]],
        );
        let record = [uid as u8; 280];
        for class in [1, 2] {
            run(class_sql, params![uid << 5 | class, class, uid * 2 + class, &digest_bytes[..], &record[..]]);
        }
        run(
            "INSERT INTO term(tenant, version, field, tag, uid) VALUES (1, 1, 2, ?1, ?2)",
            params![&digest(!uid)[..], uid],
        );
    }
    run(
        "INSERT INTO audit_change(tenant, last, count, at, body) VALUES (1, ?1, ?2, 0, ?3)",
        params![last, IN_FLIGHT, &[0u8; 12 * IN_FLIGHT as usize][..]],
    );
    conn.execute_batch("COMMIT").unwrap();
}

fn raw(path: &Path, writes: bool) -> Connection {
    let conn = Connection::open(path).unwrap();
    conn.set_prepared_statement_cache_capacity(64);
    let autocheckpoint = if writes { 16_384 } else { 0 };
    conn.execute_batch(&format!(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA secure_delete=ON; PRAGMA temp_store=MEMORY;
         PRAGMA cache_size=-8192; PRAGMA wal_autocheckpoint={autocheckpoint};"
    ))
    .unwrap();
    conn
}

fn raw_read(conn: &Connection, uid: i64) -> usize {
    let sql = "SELECT s.uid, s.sealed_id, c.record FROM subject s
         LEFT JOIN subject_class c ON c.id >= s.uid << 5 AND c.id < (s.uid + 1) << 5
         WHERE s.uid = (SELECT uid FROM subject WHERE tenant = 1 AND digest = ?1) ORDER BY c.id";
    let mut statement = conn.prepare_cached(sql).unwrap();
    let mut rows = statement.query([&digest(uid)[..]]).unwrap();
    let mut bytes = 0;
    while let Some(row) = rows.next().unwrap() {
        bytes += row.get::<_, Vec<u8>>(1).unwrap().len() + row.get::<_, Vec<u8>>(2).unwrap().len();
    }
    bytes
}

/// CPU time of this process's threads with this name, in microseconds: what a busy machine cannot change much.
fn cpu_us(thread: &str) -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let named = tasks.filter(|t| std::fs::read_to_string(t.path().join("comm")).is_ok_and(|c| c.trim() == thread));
    let ns = |path: std::path::PathBuf| -> Option<f64> {
        std::fs::read_to_string(path).ok()?.split(' ').next()?.parse().ok()
    };
    named.filter_map(|t| ns(t.path().join("schedstat"))).sum::<f64>() / 1000.0
}

fn rate(count: i64, work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    count as f64 / start.elapsed().as_secs_f64()
}

fn report(name: &str, floor: &[f64], ours: &[f64]) {
    let sorted = |rates: &[f64]| {
        let mut rates = rates.to_vec();
        rates.sort_by(f64::total_cmp);
        rates
    };
    let (floor, ours) = (sorted(floor), sorted(ours));
    let median = |sorted: &[f64]| sorted[sorted.len() / 2];
    println!(
        "{name:34} floor {:>9.0}/s  ours {:>9.0}/s  ratio {:.2}   (ours {:.0} to {:.0})",
        median(&floor),
        median(&ours),
        median(&ours) / median(&floor),
        ours[0],
        ours[ours.len() - 1]
    );
}

fn main() {
    // `cargo test --benches` only asks whether it starts.
    let quick = std::env::args().any(|arg| arg == "--test");
    let windows = if quick { 1 } else { WINDOWS };
    // Beside the build, on a disk: a sync to memory would be a gift.
    let folder = tempfile::tempdir_in(std::env::var_os("CARGO_TARGET_DIR").unwrap_or("target".into())).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let open = |name: &str, cache_bytes| {
        let mut options = Options::new(folder.path().join(name), VAULT).create();
        options.cache_bytes = cache_bytes;
        SqliteStore::open(options).unwrap()
    };
    for name in ["raw.db", "control.db"] {
        drop(open(name, 0));
    }
    let (floor, control) = (raw(&folder.path().join("raw.db"), true), raw(&folder.path().join("control.db"), true));
    let store = Arc::new(open("ours.db", 0));
    let tenant = TenantRow {
        no: TENANT,
        name: Name::parse("tenant", "bench").unwrap(),
        state: TenantState::Live,
        generation: Generation(1),
        body: Vec::new(),
        revision: Revision(1),
    };
    let mut change = ChangeSet::default();
    change.change(Mutation::PutTenant(tenant));
    runtime.block_on(store.commit(change)).unwrap();

    let (mut floors, mut controls, mut ours) = (Vec::new(), Vec::new(), Vec::new());
    let main_thread = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
    let (mut floor_cpu, writer_cpu) = (0.0, cpu_us("store-writer"));
    for window in 0..windows as i64 {
        let uids = 1 + window * PUTS..1 + (window + 1) * PUTS;
        for (conn, rates) in [(&floor, &mut floors), (&control, &mut controls)] {
            let before = cpu_us(main_thread.trim());
            rates.push(rate(PUTS, || {
                for start in uids.clone().step_by(IN_FLIGHT as usize) {
                    raw_group(conn, start..start + IN_FLIGHT);
                }
            }));
            floor_cpu += (cpu_us(main_thread.trim()) - before) / 2.0;
        }
        let (next, end) = (Arc::new(AtomicI64::new(uids.start)), uids.end);
        ours.push(rate(PUTS, || {
            runtime.block_on(async {
                let writers = (0..IN_FLIGHT).map(|_| {
                    let (store, next) = (store.clone(), next.clone());
                    tokio::spawn(async move {
                        loop {
                            let uid = next.fetch_add(1, Ordering::Relaxed);
                            if uid >= end {
                                break;
                            }
                            store.commit(person(uid)).await.unwrap();
                        }
                    })
                });
                for writer in writers.collect::<Vec<_>>() {
                    writer.await.unwrap();
                }
            });
        }));
    }
    report("durable put, 256 in flight", &floors, &ours);
    report("  control: the floor twice", &floors, &controls);
    let puts = (windows as i64 * PUTS) as f64;
    let groups = runtime.block_on(store.audit_groups(TENANT, 0, u32::MAX)).unwrap().len() as f64;
    println!(
        "{:34} floor {:.1} us  ours {:.1} us  ({:.0} puts a commit)",
        "  CPU of the writing thread a put",
        floor_cpu / puts,
        (cpu_us("store-writer") - writer_cpu) / puts,
        puts / groups
    );

    // Point reads in random order: the floor one by one on its own thread, ours over a reader thread and back.
    let people = windows as i64 * PUTS;
    let pick = |n: i64| 1 + (n.wrapping_mul(2_654_435_761) & 0x7fff_ffff) % people;
    let read = raw(&folder.path().join("ours.db"), false);
    let digests: Vec<_> = (0..READS).map(|n| SubjectDigest(digest(pick(n)))).collect();
    let cached = open("cached.db", 256 << 20);
    runtime.block_on(async {
        for uid in 1..=64 {
            let mut change = person(uid);
            change.preconditions.clear();
            cached.commit(change).await.unwrap();
            cached.subject(TENANT, SubjectDigest(digest(uid))).await.unwrap();
        }
    });
    let (mut floors, mut singles, mut batches, mut hits) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..windows {
        floors.push(rate(READS, || {
            let bytes: usize = (0..READS).map(|n| raw_read(&read, pick(n))).sum();
            assert!(bytes > 0);
        }));
        singles.push(rate(READS, || {
            runtime.block_on(async {
                let readers = (0..64).map(|part| {
                    let (store, digests) = (store.clone(), digests.clone());
                    tokio::spawn(async move {
                        for digest in digests.into_iter().skip(part).step_by(64) {
                            let found = store.subject(TENANT, digest).await.unwrap();
                            assert!(matches!(found, Lookup::Found(_)));
                        }
                    })
                });
                for reader in readers.collect::<Vec<_>>() {
                    reader.await.unwrap();
                }
            });
        }));
        batches.push(rate(READS, || {
            runtime.block_on(async {
                for batch in digests.chunks(1000) {
                    assert_eq!(store.subjects(TENANT, batch.to_vec()).await.unwrap().len(), batch.len());
                }
            });
        }));
        hits.push(rate(READS, || {
            for n in 0..READS {
                let found = cached.cached_subject(TENANT, SubjectDigest(digest(n % 64 + 1)));
                assert!(std::hint::black_box(found).is_some());
            }
        }));
    }
    report("point reads, 64 in flight", &floors, &singles);
    report("point reads, batches of 1,000", &floors, &batches);
    hits.sort_by(f64::total_cmp);
    println!("{:34} {:.0} ns", "a read from the ciphertext cache", 1e9 / hits[hits.len() / 2]);
}
