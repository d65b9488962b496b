use std::fs;
use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;
use uuid::Uuid;

use super::block::{BLOCK, FIRST};
use super::file::{LEDGER, ROOTS};
use super::medium::Medium;
use super::sim::{Fault, SimDisk};
use super::*;
use crate::ids::{ClassNo, DekVersion, ObjectId, SubjectUid};
use crate::keyring::ledger::LedgerKind;

const VAULT: VaultId = VaultId([7; 16]);
pub(super) const T: TenantNo = TenantNo(1);
const KEK: [u8; 16] = [1; 16];
pub(super) const NEW_KEK: [u8; 16] = [2; 16];

pub(super) fn run<F: std::future::Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

pub(super) fn root(generation: u64) -> RootBlock {
    under(generation, KEK)
}

pub(super) fn under(generation: u64, kek: [u8; 16]) -> RootBlock {
    // The wrapped bytes tell a generation and KEK from all others.
    let wrapped = [generation as u8, kek[0]].repeat(30);
    RootBlock { tenant: T, generation: Generation(generation), kek, wrapped }
}

fn entry(uid: i64) -> LedgerEntry {
    LedgerEntry {
        kind: LedgerKind::Erased,
        tenant: T,
        uid: SubjectUid(uid),
        class: ClassNo(1),
        version: DekVersion(1),
        generation: Generation(1),
        at: Timestamp(0),
        object: ObjectId(Uuid::nil()),
        until: Timestamp(0),
        number: 0,
    }
}

pub(super) fn media(disk: &SimDisk, names: &[&str]) -> Vec<Arc<dyn Medium>> {
    names.iter().map(|name| disk.medium(name)).collect()
}

fn signing() -> Arc<Signing> {
    Arc::new(Signing::from_seed(&[5; 32]))
}

pub(super) fn open(disk: &SimDisk, names: &[&str]) -> FileKeeper {
    let keeper = FileKeeper::open_on(&media(disk, names)).unwrap();
    keeper.unlock(signing());
    keeper
}

fn new_keeper(names: &[&str]) -> (SimDisk, FileKeeper) {
    keeper_on(SimDisk::new(), names)
}

pub(super) fn keeper_on(disk: SimDisk, names: &[&str]) -> (SimDisk, FileKeeper) {
    FileKeeper::create_on(&media(&disk, names), VAULT).unwrap();
    let keeper = open(&disk, names);
    (disk, keeper)
}

/// Generations found, with replica and slot.
pub(super) async fn found(keeper: &FileKeeper) -> Vec<(usize, u8, u64)> {
    let slots = keeper.read(T).await.unwrap();
    slots
        .found
        .iter()
        .map(|f| match &f.what {
            Found::Root(block) => (f.replica, f.slot, block.generation.0),
            Found::Tombstone => (f.replica, f.slot, 0),
        })
        .collect()
}

async fn uids(keeper: &FileKeeper) -> Vec<i64> {
    let mut reader = keeper.ledger().await.unwrap();
    let mut out = Vec::new();
    while let Some(batch) = reader.next_batch().unwrap() {
        assert!(batch.signed_by(VAULT, &[signing().public()]));
        out.extend(batch.entries.iter().map(|e| e.uid.0));
    }
    out
}

fn away(keeper: &FileKeeper) -> Vec<usize> {
    keeper.replicas().iter().filter(|r| matches!(r.state, ReplicaState::Away { .. })).map(|r| r.index).collect()
}

#[test]
fn generations_take_turns_and_the_old_one_is_overwritten() {
    let (disk, keeper) = new_keeper(&["a", "b"]);
    run(async {
        for g in 1..6 {
            keeper.write_next(root(g)).await.unwrap();
            keeper.destroy(T, Generation(g)).await.unwrap();
            let slot = ((g - 1) % 2) as u8;
            assert_eq!(found(&keeper).await, [(0, slot, g), (1, slot, g)]);
        }
    });
    drop(keeper);
    let old = root(4).wrapped;
    for (name, bytes) in disk.all_bytes() {
        assert!(!bytes.windows(60).any(|w| w == old), "{name}");
    }
}

#[test]
fn an_uncommitted_generation_is_written_over_and_destroy_leaves_it() {
    let (_disk, keeper) = new_keeper(&["a"]);
    run(async {
        keeper.write_next(root(1)).await.unwrap();
        keeper.write_next(root(2)).await.unwrap();
        keeper.destroy(T, Generation(1)).await.unwrap();
        assert_eq!(found(&keeper).await, [(0, 0, 1), (0, 1, 2)]);
        let again = RootBlock { wrapped: vec![9; 60], ..root(2) };
        keeper.write_next(again.clone()).await.unwrap();
        assert!(keeper.read(T).await.unwrap().roots().any(|b| *b == again));
        assert_eq!(found(&keeper).await, [(0, 0, 1), (0, 1, 2)]);
    });
}

#[test]
fn a_write_that_could_lose_the_only_root_is_refused() {
    let (_disk, keeper) = new_keeper(&["a"]);
    run(async {
        assert_eq!(keeper.destroy(T, Generation(1)).await, Err(KeeperError::Unsure { tenant: T }));
        keeper.write_next(root(5)).await.unwrap(); // a restore into a blank keeper
        for g in [1, 3, 4] {
            let newer = KeeperError::Newer { tenant: T, found: Generation(5) };
            assert_eq!(keeper.write_next(root(g)).await, Err(newer));
        }
        for g in [5, 7, 9] {
            assert_eq!(keeper.write_next(root(g)).await, Err(KeeperError::Unsure { tenant: T }), "{g}");
        }
        assert_eq!(keeper.destroy(T, Generation(4)).await, Err(KeeperError::Unsure { tenant: T }));
        assert_eq!(keeper.rewrap(root(5)).await, Err(KeeperError::Unsure { tenant: T }));
        let short = RootBlock { wrapped: vec![0; 59], ..root(6) };
        assert!(matches!(keeper.write_next(short).await, Err(KeeperError::Refused { .. })));
        assert_eq!(found(&keeper).await, [(0, 0, 5)]);
    });
}

#[test]
fn a_rewrap_stands_beside_the_old_kek_until_that_is_destroyed() {
    let (_disk, keeper) = new_keeper(&["a"]);
    run(async {
        keeper.write_next(root(1)).await.unwrap();
        keeper.rewrap(under(1, NEW_KEK)).await.unwrap();
        assert_eq!(found(&keeper).await, [(0, 0, 1), (0, 1, 1)]);
        keeper.destroy(T, Generation(1)).await.unwrap(); // knows no KEK: leaves both
        assert_eq!(found(&keeper).await.len(), 2);
        // A swap in between keeps the root under its own KEK.
        keeper.write_next(under(2, NEW_KEK)).await.unwrap();
        assert!(keeper.read(T).await.unwrap().roots().any(|b| *b == under(1, NEW_KEK)));
        keeper.destroy(T, Generation(2)).await.unwrap();
        keeper.rewrap(root(2)).await.unwrap();
        keeper.destroy_except(T, Generation(2), KEK).await.unwrap();
        assert_eq!(keeper.read(T).await.unwrap().roots().cloned().collect::<Vec<_>>(), [root(2)]);
    });
}

#[test]
fn a_tombstone_ends_a_tenant() {
    let (_disk, keeper) = new_keeper(&["a", "b"]);
    run(async {
        keeper.write_next(root(1)).await.unwrap();
        keeper.tombstone(T).await.unwrap();
        keeper.tombstone(T).await.unwrap();
        let slots = keeper.read(T).await.unwrap();
        assert!(slots.tombstoned() && slots.highest().is_none());
        for result in [
            keeper.write_next(root(2)).await,
            keeper.rewrap(under(1, NEW_KEK)).await,
            keeper.destroy(T, Generation(1)).await,
        ] {
            assert_eq!(result, Err(KeeperError::Tombstoned { tenant: T }));
        }
        assert_eq!(keeper.tenants().await.unwrap(), [T]);
    });
}

#[test]
fn many_tenants_grow_the_file() {
    let (disk, keeper) = new_keeper(&["a"]);
    run(async {
        let keeper = Arc::new(keeper);
        let writes = (0..200).map(|n| {
            let keeper = keeper.clone();
            async move { keeper.write_next(RootBlock { tenant: TenantNo(n * 3), ..root(1) }).await }
        });
        let before = disk.steps();
        for result in futures_util::future::join_all(writes).await {
            result.unwrap();
        }
        let syncs = disk.log()[before..].iter().filter(|s| s.what == "sync").count();
        assert!(syncs < 20, "{syncs} syncs for 200 writes that waited together");
        assert_eq!(keeper.tenants().await.unwrap(), (0..200).map(|n| TenantNo(n * 3)).collect::<Vec<_>>());
    });
}

#[test]
fn two_changes_of_a_tenant_never_share_a_sync() {
    let (disk, keeper) = new_keeper(&["a"]);
    run(async {
        keeper.write_next(root(1)).await.unwrap();
        let before = disk.steps();
        let (a, b) = tokio::join!(keeper.write_next(root(2)), keeper.destroy(T, Generation(2)));
        a.unwrap();
        b.unwrap();
        let what: Vec<_> = disk.log()[before..].iter().map(|s| s.what).collect();
        assert_eq!(what, ["write", "sync", "write", "sync"]);
    });
}

#[test]
fn own_blocks_are_written_in_turn() {
    let (disk, keeper) = new_keeper(&["a", "b"]);
    run(async {
        assert_eq!(keeper.own(OwnBlock::Anchor).await.unwrap(), None);
        keeper.put_own(OwnBlock::Signing, b"seed", 1).await.unwrap();
        for n in 1..5u64 {
            keeper.put_own(OwnBlock::Anchor, &n.to_be_bytes(), n).await.unwrap();
        }
        let stale = keeper.put_own(OwnBlock::Anchor, b"old", 4).await;
        assert!(matches!(stale, Err(KeeperError::Refused { .. })));
        assert!(matches!(keeper.put_own(OwnBlock::Anchor, &[0; 401], 9).await, Err(KeeperError::Refused { .. })));
        assert_eq!(keeper.own(OwnBlock::Anchor).await.unwrap(), Some((4, 4u64.to_be_bytes().to_vec())));
    });
    drop(keeper);
    // The newest torn in both replicas: the one before still counts.
    for replica in ["a", "b"] {
        disk.tamper(replica, ROOTS, |bytes| bytes[5 * BLOCK as usize + 50] ^= 1);
    }
    let keeper = open(&disk, &["a", "b"]);
    run(async {
        assert_eq!(keeper.own(OwnBlock::Anchor).await.unwrap(), Some((3, 3u64.to_be_bytes().to_vec())));
        assert_eq!(keeper.own(OwnBlock::Signing).await.unwrap(), Some((1, b"seed".to_vec())));
    });
}

#[test]
fn the_ledger_is_signed_chained_and_survives_a_restart() {
    let (disk, keeper) = new_keeper(&["a", "b"]);
    let head = run(async {
        assert_eq!(keeper.append_ledger(Vec::new()).await.unwrap(), LedgerHead::default());
        keeper.append_ledger(vec![entry(1), entry(2)]).await.unwrap();
        // Enough to make the file grow.
        keeper.append_ledger((3..6000).map(entry).collect()).await.unwrap()
    });
    assert_eq!(head.seq, 5999);
    drop(keeper);
    let keeper = open(&disk, &["a", "b"]);
    run(async {
        assert_eq!(keeper.ledger_head().await.unwrap(), head);
        let next = keeper.append_ledger(vec![entry(6000)]).await.unwrap();
        assert_eq!(uids(&keeper).await, (1..=6000).collect::<Vec<_>>());
        let reader = keeper.ledger().await.unwrap();
        assert_eq!(reader.verify(&[signing().public()], Some(head)), Ok(next));
    });
}

#[test]
fn without_a_key_nothing_is_appended() {
    let disk = SimDisk::new();
    FileKeeper::create_on(&media(&disk, &["a"]), VAULT).unwrap();
    let keeper = FileKeeper::open_on(&media(&disk, &["a"])).unwrap();
    run(async {
        assert_eq!(keeper.append_ledger(vec![entry(1)]).await, Err(KeeperError::NoSigner));
        keeper.unlock(signing());
        assert_eq!(keeper.append_ledger(vec![entry(1)]).await.unwrap().seq, 1);
    });
}

#[test]
fn a_replica_away_stops_swaps_and_not_the_ledger() {
    let (disk, keeper) = new_keeper(&["a", "b"]);
    run(async {
        keeper.write_next(root(1)).await.unwrap();
        disk.fail("b", Fault::Write, 1);
        assert_eq!(keeper.write_next(root(2)).await, Err(KeeperError::ReplicaAway { index: 1 }));
        assert_eq!(away(&keeper), [1]);
        assert_eq!(keeper.destroy(T, Generation(1)).await, Err(KeeperError::ReplicaAway { index: 1 }));
        assert_eq!(keeper.append_ledger(vec![entry(1)]).await.unwrap().seq, 1);
        keeper.put_own(OwnBlock::Anchor, b"x", 1).await.unwrap();
        assert!(keeper.read(T).await.unwrap().roots().any(|b| *b == root(1)));
        keeper.rejoin().await.unwrap();
        assert!(away(&keeper).is_empty());
        keeper.write_next(root(2)).await.unwrap();
        keeper.destroy(T, Generation(2)).await.unwrap();
    });
    drop(keeper);
    let keeper = open(&disk, &["a", "b"]);
    run(async {
        assert_eq!(found(&keeper).await, [(0, 1, 2), (1, 1, 2)]);
        assert_eq!(uids(&keeper).await, [1]);
    });
}

#[test]
fn t04_after_a_failed_sync_nothing_is_acknowledged() {
    let (disk, keeper) = new_keeper(&["a"]);
    run(async {
        keeper.write_next(root(1)).await.unwrap();
        disk.fail("a", Fault::Sync, 1);
        let gone = Err(KeeperError::ReplicaAway { index: 0 });
        assert_eq!(keeper.write_next(root(2)).await, gone);
        assert_eq!(keeper.destroy(T, Generation(1)).await, gone);
        assert_eq!(keeper.put_own(OwnBlock::Anchor, b"x", 1).await, gone);
        assert_eq!(keeper.append_ledger(vec![entry(1)]).await, Err(KeeperError::ReplicaAway { index: 0 }));
        keeper.rejoin().await.unwrap();
        keeper.append_ledger(vec![entry(2)]).await.unwrap();
    });
    // What the failed sync lost is lost on the disk; what was acknowledged is there.
    let after = open(&disk.crash_image(|_| 0), &["a"]);
    run(async {
        assert_eq!(found(&after).await, [(0, 0, 1)]);
        assert_eq!(uids(&after).await, [2]);
    });
}

#[test]
fn a_batch_whose_sync_failed_is_made_durable_or_forgotten_before_the_next() {
    let (disk, keeper) = new_keeper(&["a"]);
    run(async {
        keeper.append_ledger(vec![entry(1)]).await.unwrap();
        disk.fail("a", Fault::Sync, 1);
        assert!(keeper.append_ledger(vec![entry(2)]).await.is_err());
        keeper.rejoin().await.unwrap(); // reads batch 2 from the cache, where alone it is
        keeper.append_ledger(vec![entry(3)]).await.unwrap();
    });
    drop(keeper);
    let after = open(&disk.crash_image(|_| 0), &["a"]);
    let uids = run(uids(&after));
    assert!(uids == [1, 2, 3] || uids == [1, 3], "{uids:?}");
}

#[test]
fn t03_a_full_disk_is_told_and_nobody_is_away() {
    let (disk, keeper) = new_keeper(&["a"]);
    run(async {
        disk.fail("a", Fault::Full, 2);
        let far = RootBlock { tenant: TenantNo(5000), ..root(1) };
        assert_eq!(keeper.write_next(far.clone()).await, Err(KeeperError::DiskFull));
        let many: Vec<_> = (0..6000).map(entry).collect();
        assert_eq!(keeper.append_ledger(many.clone()).await, Err(KeeperError::DiskFull));
        keeper.write_next(root(1)).await.unwrap(); // space that is there already
        keeper.write_next(far).await.unwrap();
        assert_eq!(keeper.append_ledger(many).await.unwrap().seq, 6000);
    });
}

#[test]
fn an_old_replica_is_brought_up_to_date_at_open() {
    let (disk, keeper) = new_keeper(&["a", "b"]);
    run(async {
        keeper.write_next(root(1)).await.unwrap();
        keeper.append_ledger(vec![entry(1)]).await.unwrap();
        keeper.put_own(OwnBlock::Anchor, b"1", 1).await.unwrap();
        disk.fail("b", Fault::Write, 1);
        keeper.append_ledger(vec![entry(2)]).await.unwrap();
        keeper.put_own(OwnBlock::Anchor, b"2", 2).await.unwrap();
    });
    drop(keeper);
    for order in [["a", "b"], ["b", "a"]] {
        let keeper = open(&disk.copy(), &order);
        run(async {
            assert!(away(&keeper).is_empty());
            assert_eq!(uids(&keeper).await, [1, 2]);
        });
        drop(keeper);
    }
    drop(open(&disk, &["a", "b"]));
    // Now b alone has it too; a is reported as away.
    let keeper = open(&disk, &["b", "gone"]);
    run(async {
        assert_eq!(away(&keeper), [1]);
        assert_eq!(uids(&keeper).await, [1, 2]);
        assert_eq!(keeper.own(OwnBlock::Anchor).await.unwrap(), Some((2, b"2".to_vec())));
        assert_eq!(keeper.write_next(root(2)).await, Err(KeeperError::ReplicaAway { index: 1 }));
    });
}

#[test]
fn an_unacknowledged_batch_of_a_replica_that_fell_behind_gives_way() {
    let (disk, keeper) = new_keeper(&["a", "b"]);
    run(async { keeper.append_ledger(vec![entry(1)]).await.unwrap() });
    drop(keeper);
    let before = disk.copy();
    // b alone gets batch 2, and then a goes on without it.
    let keeper = open(&disk, &["a", "b"]);
    run(async { keeper.append_ledger(vec![entry(2)]).await.unwrap() });
    drop(keeper);
    disk.lose("a");
    disk.put_back("a", &before);
    let lost_b = disk.copy();
    disk.lose("b");
    let keeper = open(&disk, &["a", "b"]);
    run(async { keeper.append_ledger(vec![entry(3)]).await.unwrap() });
    drop(keeper);
    disk.put_back("b", &lost_b);
    let keeper = open(&disk, &["a", "b"]);
    run(async { assert_eq!(uids(&keeper).await, [1, 3]) });
}

#[test]
fn a_damaged_ledger_is_healed_from_the_other_replica_and_refused_alone() {
    let (disk, keeper) = new_keeper(&["a", "b"]);
    run(async {
        for n in 1..4 {
            keeper.append_ledger(vec![entry(n)]).await.unwrap();
        }
    });
    drop(keeper);
    disk.tamper("a", LEDGER, |bytes| bytes[600] ^= 1);
    let keeper = open(&disk, &["a", "b"]);
    run(async { assert_eq!(uids(&keeper).await, [1, 2, 3]) });
    drop(keeper);
    for replica in ["a", "b"] {
        disk.tamper(replica, LEDGER, |bytes| bytes[600] ^= 1);
    }
    let refused = FileKeeper::open_on(&media(&disk, &["a", "b"])).err();
    assert!(matches!(refused, Some(KeeperError::Ledger(LedgerError::Damaged { .. }))), "{refused:?}");
}

#[test]
fn a_root_that_one_replica_lost_is_copied_back() {
    let (disk, keeper) = new_keeper(&["a", "b"]);
    run(async {
        keeper.write_next(root(1)).await.unwrap();
        keeper.write_next(root(2)).await.unwrap();
        keeper.destroy(T, Generation(2)).await.unwrap();
        let slot = (FIRST + 2 * u64::from(T.0) + 1) * BLOCK;
        disk.tamper("b", ROOTS, |bytes| bytes[slot as usize + 100] ^= 1);
        let slots = keeper.read(T).await.unwrap();
        assert_eq!((slots.torn, slots.found.len()), (1, 1));
        assert_eq!(keeper.destroy(T, Generation(2)).await, Err(KeeperError::Unsure { tenant: T }));
        keeper.refresh(T, Generation(2), KEK).await.unwrap();
        keeper.destroy(T, Generation(2)).await.unwrap();
        let slots = keeper.read(T).await.unwrap();
        assert_eq!((slots.torn, slots.empty, slots.found.len()), (0, 2, 2));
        assert_eq!(keeper.refresh(T, Generation(1), KEK).await, Err(KeeperError::Unsure { tenant: T }));
    });
}

#[test]
fn t15_an_old_keeper_shows_a_lower_generation_than_the_database() {
    let (disk, keeper) = new_keeper(&["a"]);
    run(async { keeper.write_next(root(1)).await.unwrap() });
    let old = disk.copy();
    run(async {
        keeper.write_next(root(2)).await.unwrap();
        keeper.destroy(T, Generation(2)).await.unwrap();
    });
    let database = Generation(2);
    let keeper = open(&old, &["a"]);
    run(async {
        let slots = keeper.read(T).await.unwrap();
        assert!(slots.highest() < Some(database));
        // And a swap that builds on the database's generation is refused.
        assert_eq!(keeper.write_next(root(3)).await, Err(KeeperError::Unsure { tenant: T }));
    });
}

#[test]
fn a_retired_replica_no_longer_counts_and_is_wiped_when_it_returns() {
    let (disk, keeper) = new_keeper(&["a", "b"]);
    run(async { keeper.write_next(root(1)).await.unwrap() });
    drop(keeper);
    let gone = disk.copy();
    disk.lose("b");
    let keeper = open(&disk, &["a", "b"]);
    run(async {
        assert!(matches!(keeper.retire(0, Timestamp(9)).await, Err(KeeperError::Refused { .. })));
        keeper.retire(1, Timestamp(9)).await.unwrap();
        assert_eq!(keeper.retired().iter().map(|(_, at)| *at).collect::<Vec<_>>(), [Timestamp(9)]);
        keeper.write_next(root(2)).await.unwrap();
        keeper.destroy(T, Generation(2)).await.unwrap();
    });
    drop(keeper);
    disk.put_back("b", &gone);
    let keeper = open(&disk, &["a", "b"]);
    assert_eq!(keeper.replicas()[1].state, ReplicaState::Retired);
    assert_eq!(keeper.retired().len(), 1);
    for (name, bytes) in disk.all_bytes().into_iter().filter(|(name, _)| name.starts_with("b/")) {
        assert!(bytes.iter().all(|&b| b == 0), "{name}");
    }
    run(async { assert_eq!(found(&keeper).await, [(0, 1, 2)]) });
}

#[test]
fn a_new_replica_joins_with_everything() {
    let (disk, keeper) = new_keeper(&["a"]);
    run(async {
        keeper.write_next(root(1)).await.unwrap();
        keeper.write_next(RootBlock { tenant: TenantNo(100), ..root(1) }).await.unwrap();
        keeper.append_ledger(vec![entry(1)]).await.unwrap();
        keeper.put_own(OwnBlock::Signing, b"seed", 1).await.unwrap();
    });
    drop(keeper);
    drop(FileKeeper::join_on(&media(&disk, &["a", "b"])).unwrap());
    disk.lose("a");
    let keeper = open(&disk, &["a", "b"]);
    run(async {
        assert_eq!(found(&keeper).await, [(1, 0, 1)]);
        assert_eq!(keeper.tenants().await.unwrap(), [T, TenantNo(100)]);
        assert_eq!(uids(&keeper).await, [1]);
        assert_eq!(keeper.own(OwnBlock::Signing).await.unwrap(), Some((1, b"seed".to_vec())));
    });
}

#[test]
fn foreign_doubled_and_forgotten_replicas_are_refused() {
    let (disk, keeper) = new_keeper(&["a", "b"]);
    drop(keeper);
    let foreign = |disk: &SimDisk, names: &[&str]| {
        matches!(FileKeeper::open_on(&media(disk, names)), Err(KeeperError::Foreign { .. }))
    };
    assert!(foreign(&disk, &["a"])); // b is not named
    let other = SimDisk::new();
    FileKeeper::create_on(&media(&other, &["b"]), VaultId([8; 16])).unwrap();
    disk.lose("b");
    disk.put_back("b", &other);
    assert!(foreign(&disk, &["a", "b"]));
    assert!(matches!(FileKeeper::create_on(&media(&disk, &["x", "a"]), VAULT), Err(KeeperError::Exists)));
    let none = FileKeeper::open_on(&media(&disk, &["x"]));
    assert!(matches!(none, Err(KeeperError::NoReplica)));
}

#[test]
fn files_are_private_locked_and_never_made_twice() {
    let dir = tempfile::tempdir().unwrap();
    let paths = [dir.path().join("one/k"), dir.path().join("two")];
    FileKeeper::create(&paths, VAULT).unwrap();
    assert_eq!(FileKeeper::create(&paths, VAULT), Err(KeeperError::Exists));
    let keeper = FileKeeper::open(&paths).unwrap();
    assert!(matches!(FileKeeper::open(&paths), Err(KeeperError::InUse)));
    // A process that is just ending is waited for.
    let ending = std::thread::spawn(move || {
        let (_open, nothing) = std::sync::mpsc::channel::<()>();
        let _ = nothing.recv_timeout(std::time::Duration::from_millis(150));
        drop(keeper);
    });
    let keeper = FileKeeper::open(&paths).unwrap();
    ending.join().unwrap();
    keeper.unlock(signing());
    run(async {
        keeper.write_next(root(1)).await.unwrap();
        keeper.append_ledger(vec![entry(1)]).await.unwrap();
    });
    drop(keeper);
    for path in &paths {
        for name in [ROOTS, LEDGER] {
            assert_eq!(fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert!(fs::read_to_string(path.join("CACHEDIR.TAG")).unwrap().starts_with("Signature: 8a477f597d28d172"));
    }
    assert_eq!(fs::metadata(&paths[1]).unwrap().permissions().mode() & 0o777, 0o700);
    let keeper = FileKeeper::open(&paths).unwrap();
    run(async {
        assert_eq!(found(&keeper).await, [(0, 0, 1), (1, 0, 1)]);
        assert_eq!(uids(&keeper).await, [1]);
    });
    drop(keeper);
    let copy = LedgerReader::open(&paths[0].join(LEDGER), VAULT).unwrap();
    assert_eq!(copy.verify(&[signing().public()], None).unwrap().seq, 1);
}

/// What was answered `Ok` before the power went off.
#[derive(Debug, Default)]
struct Acknowledged {
    /// Highest generation written; every lower one that was destroyed.
    written: u64,
    destroyed: u64,
    appended: i64,
    anchor: u64,
}

/// Swaps, appends and anchors until the power goes off at `step`, or to the end.
async fn history(keeper: &FileKeeper) -> Acknowledged {
    let mut done = Acknowledged::default();
    for g in 1..5 {
        if keeper.write_next(root(g)).await.is_err() {
            return done;
        }
        done.written = g;
        if keeper.append_ledger(vec![entry(g as i64); 9]).await.is_err() {
            return done;
        }
        done.appended = g as i64;
        if keeper.destroy(T, Generation(g)).await.is_err() {
            return done;
        }
        done.destroyed = g;
        if keeper.put_own(OwnBlock::Anchor, &[g as u8], g).await.is_err() {
            return done;
        }
        done.anchor = g;
    }
    done
}

/// T02 for the keeper alone: images after a power loss at each step hold everything acknowledged and no destroyed root.
#[test]
fn t02_power_loss_at_each_step_keeps_what_was_acknowledged() {
    power_loss_at_each_step(SimDisk::new);
}

pub(super) fn power_loss_at_each_step(disk: fn() -> SimDisk) {
    let images = if std::env::var_os("PII_VAULT_TEST_FULL").is_some() { 150 } else { 6 };
    for names in [&["a"][..], &["a", "b"][..]] {
        let (disk, keeper) = keeper_on(disk(), names);
        drop(keeper);
        let start = disk.copy();
        let all = {
            let disk = start.copy();
            let keeper = open(&disk, names);
            run(history(&keeper));
            disk.steps()
        };
        let mut seed = 1u64;
        for step in 0..all {
            let disk = start.copy();
            disk.power_off_at(step);
            // Opening writes too: it may be what the power loss hits.
            let opened = FileKeeper::open_on(&media(&disk, names));
            let done = match &opened {
                Ok(keeper) => {
                    keeper.unlock(signing());
                    run(history(keeper))
                }
                Err(_) => Acknowledged::default(),
            };
            assert!(disk.is_off(), "step {step} of {all} was reached");
            for _ in 0..images {
                let image = disk.crash_image(|n| {
                    seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    (seed >> 33) as usize % n
                });
                let keeper = open(&image, names);
                run(check(&keeper, &done, step));
            }
        }
    }
}

async fn check(keeper: &FileKeeper, done: &Acknowledged, step: usize) {
    let at = format!("step {step}, {done:?}");
    assert!(away(keeper).is_empty(), "{at}");
    let slots = keeper.read(T).await.unwrap();
    let replicas = keeper.replicas().len();
    // The database counts on `written`, or on the one before as long as its destruction was not begun.
    let before = if done.appended < done.written as i64 { done.written - 1 } else { 0 };
    for wanted in [done.written, before].into_iter().filter(|g| *g > 0) {
        let have = slots.roots().filter(|b| **b == root(wanted)).count();
        assert_eq!(have, replicas, "generation {wanted}, {at}");
    }
    assert!(slots.roots().all(|b| b.generation.0 >= done.destroyed), "{at}");
    let uids = uids(keeper).await;
    assert!(uids.iter().filter(|n| **n <= done.appended).count() as i64 == 9 * done.appended, "{at}");
    assert!(uids.len() as i64 <= 9 * (done.appended + 1), "{at}");
    let anchor = keeper.own(OwnBlock::Anchor).await.unwrap().map_or(0, |(sequence, _)| sequence);
    assert!(anchor == done.anchor || anchor == done.anchor + 1, "{at}: anchor {anchor}");
    // And it goes on from there.
    keeper.append_ledger(vec![entry(99)]).await.unwrap();
    keeper.put_own(OwnBlock::Anchor, b"on", anchor + 1).await.unwrap();
    if done.written > 0 {
        keeper
            .write_next(root(done.written + 1))
            .await
            .or_else(|e| {
                // Written already, unacknowledged: the swap after it builds on the same root.
                if matches!(e, KeeperError::Newer { .. }) { Ok(()) } else { Err(e) }
            })
            .unwrap_or_else(|e| panic!("{at}: {e}"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever bytes lie in the slots: no panic, nothing but what was written is a root, nothing present is lost.
    #[test]
    fn t40_any_bytes_in_the_slots(
        garbage in prop::collection::vec((0u64..2, 0usize..512, any::<u8>()), 0..6),
        generation in 1u64..5,
    ) {
        let (disk, keeper) = new_keeper(&["a"]);
        run(async {
            keeper.write_next(root(generation)).await.unwrap();
            disk.tamper("a", ROOTS, |bytes| for (slot, at, with) in &garbage {
                bytes[((FIRST + 2 + slot) * BLOCK) as usize + at] = *with;
            });
            let slots = keeper.read(T).await.unwrap();
            let whole = slots.roots().any(|b| *b == root(generation));
            prop_assert!(slots.roots().all(|b| *b == root(generation)));
            let next = keeper.write_next(root(generation + 1)).await;
            prop_assert!(!whole || next.is_ok());
            let after = keeper.read(T).await.unwrap();
            prop_assert!(!whole || after.roots().any(|b| *b == root(generation)));
            Ok(())
        })?;
    }
}
