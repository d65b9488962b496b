//! T06, T02, T15 and T07: crashes at each point of the swap and at each step of the keeper, power-loss images, rollbacks,
//! and a search of all files for keys.

use std::sync::Arc;

use super::erasing::Fault;
use super::spy::{CommitFault, copy_files};
use super::world::{ROOTS, TENANT, World};
use super::{Dice, count};
use crate::ids::*;
use crate::keyring::keeper::{FileKeeper, Keeper};
use crate::keyring::*;
use crate::storage::sqlite::{Options, SqliteStore};
use crate::storage::{ChangeSet, Store};

const ONE: ClassNo = ClassNo(1);

#[tokio::test]
async fn t06_crash_at_each_point_of_the_swap() {
    for (n, point) in SwapPoint::ALL.into_iter().flat_map(|point| [point; 2]).enumerate() {
        let (n, guarded) = (n / 2, n % 2 == 1);
        let mut dice = Dice::new(n as u64);
        let replicas = 1 + n % 2;
        let mut world = if guarded { World::guarded(replicas).await } else { World::new(replicas, None).await };
        for round in 0..count(8, 1_000) {
            world.create(1, &mut dice).await;
            let uid = world.create(2, &mut dice).await;
            let fault = Some(Fault::Stop(point));
            world.erase(uid, &[ONE], fault, &mut dice).await.unwrap_or_else(|e| panic!("{point:?} {round}: {e}"));
            // Before the commit nothing has happened, after it the class is gone.
            let gone = world.subjects.get(&uid).is_none_or(|s| !s.classes.contains_key(&ONE));
            assert_eq!(gone, n >= 2, "{point:?}");
            if round % 50 == 0 {
                world.check().await.unwrap();
            }
        }
        world.check().await.unwrap();
    }
}

#[tokio::test]
async fn t06_power_loss_at_each_keeper_step() {
    power_loss_at_each_keeper_step(World::new(2, None).await).await;
}

#[tokio::test]
async fn t06_power_loss_at_each_step_of_a_keeper_in_a_token() {
    power_loss_at_each_keeper_step(World::guarded(2).await).await;
}

async fn power_loss_at_each_keeper_step(mut world: World) {
    let mut dice = Dice::new(6);
    for _ in 0..count(2, 100) {
        let uid = world.create(1, &mut dice).await;
        let before = world.disk.steps();
        world.erase(uid, &[ONE], None, &mut dice).await.unwrap();
        let steps = world.disk.steps() - before;
        assert!((6..60).contains(&steps), "two writes and two syncs a replica, and the ledger: {steps}");
        // One more than there are: then it is not hit and everything is answered.
        for step in 0..=steps {
            let uid = world.create(1, &mut dice).await;
            let fault = Some(Fault::KeeperStep(step));
            world.erase(uid, &[ONE], fault, &mut dice).await.unwrap_or_else(|e| panic!("step {step}: {e}"));
            world.check().await.unwrap_or_else(|e| panic!("step {step}: {e}"));
        }
    }
}

#[tokio::test]
async fn t06_an_unclear_commit_is_read_again() {
    let mut dice = Dice::new(7);
    let mut world = World::new(1, None).await;
    let faults = [
        (CommitFault::Unclear, true),
        (CommitFault::Lost, false),
        (CommitFault::Dead { committed: true }, true),
        (CommitFault::Dead { committed: false }, false),
    ];
    for (fault, erased) in faults {
        let uid = world.create(1, &mut dice).await;
        world.erase(uid, &[ONE], Some(Fault::Commit(fault.clone())), &mut dice).await.unwrap();
        assert_eq!(!world.subjects.contains_key(&uid), erased, "{fault:?}");
        world.check().await.unwrap();
    }
}

/// T02: keeper images as a power loss leaves them beside database images whose log ends anywhere between the state
/// before the commit and the state after it.
#[tokio::test]
async fn t02_power_loss_images_of_database_and_keeper() {
    let mut dice = Dice::new(2);
    let mut world = World::new(2, None).await;
    let (mut old, mut new) = (0, 0);
    for round in 0..count(30, 10_000) {
        world.create(1, &mut dice).await;
        let uid = world.create(1, &mut dice).await;
        let before = world.place(&format!("before-{round}"));
        *world.spy.fault.lock() = Some(CommitFault::CopyBefore(before.clone()));
        world.stop_at(if dice.once_in(2) { SwapPoint::Committed } else { SwapPoint::LedgerWritten });
        let op = world.erasure(uid, &[ONE]).await;
        let ledger = op.ledger.clone();
        assert!(world.ring.swap(TENANT, op).await.is_err(), "it was stopped");
        // The log was appended to and nothing else; the power failed somewhere in between. The keeper at that time had
        // at least the next root, durably; what came later may be there as well, for the database had answered.
        let whole = std::fs::read(world.files().join("vault.db-wal")).unwrap();
        let known = std::fs::read(before.join("vault.db-wal")).map_or(0, |bytes| bytes.len());
        assert!(whole.len() > known, "the log was moved into the database in the middle of this test");
        let answered = dice.once_in(3);
        let cut = if answered { whole.len() } else { known + dice.below(whole.len() - known + 1) };
        let mut image = whole[..cut].to_vec();
        if dice.once_in(2) {
            let noise = dice.below(5000);
            image.extend((0..noise).map(|_| dice.next() as u8));
        }
        std::fs::write(before.join("vault.db-wal"), image).unwrap();
        let disk = world.after_power_loss(&mut dice);
        world.restart(disk, &before).await;
        assert_eq!(world.ring.state(TENANT), TenantKeyState::Ready, "round {round}: no root opens the tree");
        world.end_after_restart(uid, &[ONE], ledger).await.unwrap();
        let is_new = !world.subjects.contains_key(&uid);
        assert!(is_new || !answered, "an answered commit was lost");
        *(if is_new { &mut new } else { &mut old }) += 1;
        if round % 25 == 0 {
            world.check().await.unwrap();
            // A log that grew over many rounds would be moved into the database by itself, in the middle of a round.
            world.spy.inner.checkpoint().await.unwrap();
        }
        std::fs::remove_dir_all(&before).unwrap();
    }
    world.check().await.unwrap();
    assert!(old > 0 && new > 0, "both outcomes were met: {old} {new}");
}

#[tokio::test]
async fn t15_rollback_of_the_database_file_is_seen_at_start() {
    let mut dice = Dice::new(15);
    let mut world = World::new(1, None).await;
    let uid = world.create(2, &mut dice).await;
    world.create(1, &mut dice).await;
    let old = world.back_up("old");
    world.erase(uid, &[ONE], None, &mut dice).await.unwrap();
    let right = world.back_up("right");
    let disk = world.disk.copy();
    world.restart(disk, &old).await;
    assert_eq!(world.ring.state(TENANT), TenantKeyState::DatabaseBehind);
    assert_eq!(world.ring.state(TenantNo::VAULT), TenantKeyState::Ready, "a refused tenant stops only itself");
    let key = world.subjects[&uid].classes[&ClassNo(2)].key;
    assert!(matches!(world.ring.load(TENANT, &[key]).await, Err(KeyringError::Refused { .. })));
    assert!(matches!(world.ring.allocate(TENANT, 1).await, Err(KeyringError::Refused { .. })));
    let swapped = world.ring.swap(TENANT, SwapOp::default()).await;
    assert!(matches!(swapped, Err(SwapError::Refused(TenantKeyState::DatabaseBehind))));
    let secret = world.ring.with_secret(TENANT, SecretKind::Digest, SecretVersion(1), |_| ());
    assert!(secret.is_none());
    // Nothing was written to the keeper: with the right file everything is there.
    let disk = world.disk.copy();
    world.restart(disk, &right).await;
    world.check().await.unwrap();
}

#[tokio::test]
async fn t15_rollback_of_the_keeper_is_seen_at_start() {
    let mut dice = Dice::new(16);
    let mut world = World::new(2, None).await;
    let uid = world.create(2, &mut dice).await;
    let (old, right) = {
        let old = world.disk.copy();
        world.erase(uid, &[ONE], None, &mut dice).await.unwrap();
        (old, world.disk.copy())
    };
    let files = world.files();
    world.restart(old.copy(), &files).await;
    assert_eq!(world.ring.state(TENANT), TenantKeyState::KeeperBehind);
    // One replica of two is old: the other one decides, and the old root is overwritten there before anything else.
    let mixed = right.copy();
    mixed.lose("r1");
    mixed.put_back("r1", &old);
    let files = world.files();
    world.restart(mixed, &files).await;
    assert_eq!(world.ring.state(TENANT), TenantKeyState::Ready);
    world.ring.settle(TENANT, vec![]).await.unwrap();
    let roots: Vec<Generation> = world.present_roots().iter().map(|(generation, _)| *generation).collect();
    assert_eq!(roots, vec![world.ring.generation(TENANT).unwrap(); 2]);
    world.check().await.unwrap();
}

#[tokio::test]
async fn t15_rollback_of_a_node_is_seen() {
    let mut dice = Dice::new(17);
    let mut world = World::new(1, None).await;
    let uid = world.create(2, &mut dice).await;
    let leaf = tree::leaf_of(world.subjects[&uid].classes[&ClassNo(2)].key.slot);
    let old = world.spy.nodes(TENANT, tree::path(leaf)).await.unwrap().nodes;
    world.erase(uid, &[ONE], None, &mut dice).await.unwrap();
    let right = world.back_up("right");
    for (n, row) in old.into_iter().flatten().enumerate() {
        let copy = world.place(&format!("node-{n}"));
        copy_files(&right, &copy);
        {
            let store = SqliteStore::open(Options::new(copy.join("vault.db"), super::world::VAULT)).unwrap();
            let mut change = ChangeSet::default();
            change.change(crate::storage::Mutation::PutNode(row));
            store.commit(change).await.unwrap();
            store.close().await;
        }
        let disk = world.disk.copy();
        world.restart(disk, &copy).await;
        let state = world.ring.state(TENANT);
        assert_ne!(state, TenantKeyState::Ready, "level {n}: an old node passed");
        let disk = world.disk.copy();
        world.restart(disk, &right).await;
        world.check().await.unwrap();
    }
}

#[tokio::test]
async fn t15_a_torn_root_block_costs_nothing() {
    let mut dice = Dice::new(18);
    let mut world = World::new(2, None).await;
    let uid = world.create(1, &mut dice).await;
    world.erase(uid, &[ONE], None, &mut dice).await.unwrap();
    world.create(2, &mut dice).await;
    // The only root of one replica is gone: the other one has it, and the first gets it back.
    let disk = world.disk.copy();
    disk.tamper("r0", ROOTS, |bytes| {
        use crate::keyring::keeper::block::{self, RECORD, Record};
        for record in bytes.chunks_exact_mut(RECORD) {
            let found = block::decode(super::world::VAULT, (&*record).try_into().unwrap());
            if matches!(found, Record::Root(root) if root.tenant == TENANT) {
                record[300] ^= 1;
                record[50] ^= 1;
            }
        }
    });
    let files = world.files();
    world.restart(disk, &files).await;
    assert_eq!(world.ring.state(TENANT), TenantKeyState::Ready);
    world.ring.settle(TENANT, vec![]).await.unwrap();
    assert_eq!(world.present_roots().len(), 2);
    world.check().await.unwrap();
}

#[tokio::test]
async fn an_erased_tenant_stays_erased() {
    let mut dice = Dice::new(19);
    let mut world = World::new(2, None).await;
    let uid = world.create(2, &mut dice).await;
    let old = world.back_up("old");
    world.ring.erase_tenant_keys(TENANT).await.unwrap();
    world.ring.erase_tenant_keys(TENANT).await.unwrap();
    assert_eq!(world.ring.state(TENANT), TenantKeyState::TenantErased);
    let gone: Vec<ClassNo> = world.subjects[&uid].classes.keys().copied().collect();
    world.note_erased(uid, &gone);
    world.check().await.unwrap();
    for from in [world.files(), old] {
        let disk = world.disk.copy();
        world.restart(disk, &from).await;
        assert_eq!(world.ring.state(TENANT), TenantKeyState::TenantErased);
        assert!(world.present_roots().is_empty());
    }
    assert_eq!(world.ring.next_tenant().await.unwrap(), TenantNo(2));
}

#[tokio::test]
async fn an_interrupted_creation_burns_its_number() {
    let mut world = World::new(2, None).await;
    let two = TenantNo(2);
    let refused = ChangeSet {
        preconditions: vec![crate::storage::Precondition::SubjectLive { uid: SubjectUid(9) }],
        ..ChangeSet::default()
    };
    let row = super::world::tenant_row(two, "tenant-b");
    assert!(matches!(world.ring.create_tenant(row.clone(), refused).await, Err(KeyringError::Store(_))));
    for _ in 0..2 {
        let again = world.ring.create_tenant(row.clone(), ChangeSet::default()).await;
        assert!(matches!(again, Err(KeyringError::NumberTaken { .. })));
        world.kill().await;
    }
    let three = world.ring.next_tenant().await.unwrap();
    assert_eq!(three, TenantNo(3));
    world.ring.create_tenant(super::world::tenant_row(three, "tenant-b"), ChangeSet::default()).await.unwrap();
    world.kill().await;
    assert_eq!(world.ring.state(three), TenantKeyState::Ready);
    assert!(world.ring.with_secret(three, SecretKind::Digest, SecretVersion(1), |_| ()).is_some());
}

#[tokio::test]
async fn another_root_kek_is_refused_by_name() {
    let world = World::new(1, None).await;
    let options = KeyringOptions::new(world.clock.clone());
    let kek = crate::crypto::keys::RootKek::generate();
    let opened = Keyring::open(world.spy.clone(), world.keeper.clone(), kek, options).await;
    assert!(matches!(opened, Err(KeyringError::WrongKek)));
}

/// T07, on real files: no data key is ever in a file, no old root after the answer.
#[tokio::test]
async fn t07_no_file_holds_a_key_or_an_old_root() {
    let tmp = tempfile::tempdir().unwrap();
    let places = [tmp.path().join("k0"), tmp.path().join("k1")];
    let mut dice = Dice::new(20);
    // The world's own keeper is replaced by one in real directories.
    FileKeeper::create(&places, super::world::VAULT).unwrap();
    let keeper: Arc<dyn Keeper> = Arc::new(FileKeeper::open(&places).unwrap());
    let mut world = World::with_keeper(keeper.clone()).await;
    let mut keys: Vec<[u8; 32]> = Vec::new();
    let mut roots: Vec<Vec<u8>> = Vec::new();
    for _ in 0..count(30, 500) {
        let uid = world.create(2, &mut dice).await;
        keys.push(world.dek_bytes(uid, ONE).await);
        roots.extend(keeper.read(TENANT).await.unwrap().roots().map(|block| block.wrapped.clone()));
        world.erase(uid, &[ONE], None, &mut dice).await.unwrap();
    }
    let present: Vec<Vec<u8>> = keeper.read(TENANT).await.unwrap().roots().map(|b| b.wrapped.clone()).collect();
    roots.retain(|wrapped| !present.contains(wrapped));
    assert!(roots.len() >= keys.len());
    let mut files = Vec::new();
    for directory in [&places[0], &places[1], &world.files()] {
        for entry in std::fs::read_dir(directory).unwrap() {
            files.push((entry.as_ref().unwrap().path(), std::fs::read(entry.unwrap().path()).unwrap()));
        }
    }
    assert!(files.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() > 100_000);
    let found = |needle: &[u8]| files.iter().find(|(_, bytes)| bytes.windows(needle.len()).any(|w| w == needle));
    // The search itself must be able to find something.
    assert!(found(&present[0]).is_some());
    for key in &keys {
        assert!(found(key).is_none(), "a data key lies in {:?}", found(key).unwrap().0);
    }
    for root in &roots {
        assert!(found(root).is_none(), "an old root lies in {:?}", found(root).unwrap().0);
    }
    drop(world);
}
