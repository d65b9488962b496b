//! Many at once: swaps share a root, conflicts leave the batch alone, loads never see a swap half done.

use std::sync::Arc;

use super::Dice;
use super::world::{TENANT, World};
use crate::ids::*;
use crate::keyring::*;
use crate::storage::{ClassState, Conflict, Precondition, Store};

const ONE: ClassNo = ClassNo(1);

#[tokio::test]
async fn erasures_that_wait_share_one_swap() {
    let mut dice = Dice::new(1);
    let mut world = World::new(1, None).await;
    let mut uids = Vec::new();
    for _ in 0..40 {
        uids.push(world.create(2, &mut dice).await);
    }
    let before = world.ring.generation(TENANT).unwrap();
    // All are there before the first is asked for, so that they wait together however fast a swap is.
    let mut ops = Vec::new();
    for (n, uid) in uids.iter().enumerate() {
        let mut op = world.erasure(*uid, &[ONE]).await;
        if n % 10 == 7 {
            // Its subject changed in between.
            op.change.preconditions.insert(1, Precondition::SubjectAt { uid: *uid, revision: Revision(99) });
        }
        ops.push(op);
    }
    let ask = |op| {
        let ring = world.ring.clone();
        tokio::spawn(async move { ring.swap(TENANT, op).await })
    };
    let tasks: Vec<_> = ops.into_iter().map(ask).collect();
    for (n, task) in tasks.into_iter().enumerate() {
        match task.await.unwrap() {
            Ok(_) => {
                assert_ne!(n % 10, 7);
                world.note_erased(uids[n], &[ONE]);
            }
            Err(SwapError::Conflict(Conflict::Precondition(1))) => assert_eq!(n % 10, 7),
            Err(other) => panic!("{other}"),
        }
    }
    let after = world.ring.generation(TENANT).unwrap();
    assert!((1..=10).contains(&(after.0 - before.0)), "40 erasures took {} swaps", after.0 - before.0);
    world.check().await.unwrap();
    world.kill().await;
    world.check().await.unwrap();
}

#[tokio::test]
async fn two_operations_on_one_row_never_share_a_swap() {
    let mut dice = Dice::new(2);
    let mut world = World::new(1, None).await;
    let uid = world.create(1, &mut dice).await;
    let (one, two) = (world.erasure(uid, &[ONE]).await, world.erasure(uid, &[ONE]).await);
    let (one, two) = tokio::join!(world.ring.swap(TENANT, one), world.ring.swap(TENANT, two));
    assert!(one.is_ok());
    assert!(matches!(two, Err(SwapError::Conflict(Conflict::Precondition(0)))));
    world.note_erased(uid, &[ONE]);
    world.check().await.unwrap();
}

#[tokio::test]
async fn a_slot_beyond_the_tree_harms_only_its_own_operation() {
    let mut dice = Dice::new(3);
    let mut world = World::new(1, None).await;
    let uid = world.create(1, &mut dice).await;
    let good = world.erasure(uid, &[ONE]).await;
    let bad = SwapOp { slots: vec![Slot(u32::MAX)], ..SwapOp::default() };
    let unborn = SwapOp { slots: vec![Slot(100_000)], ..SwapOp::default() };
    let ring = &world.ring;
    let (good, bad, unborn) = tokio::join!(ring.swap(TENANT, good), ring.swap(TENANT, bad), ring.swap(TENANT, unborn));
    assert!(good.is_ok());
    assert!(matches!(bad, Err(SwapError::Tree(_))));
    assert!(matches!(unborn, Err(SwapError::Tree(_))));
    world.note_erased(uid, &[ONE]);
    world.check().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn loads_and_uses_beside_swaps_meet_no_damage() {
    let mut dice = Dice::new(4);
    let mut world = World::new(1, None).await;
    let mut uids = Vec::new();
    for _ in 0..60 {
        uids.push(world.create(2, &mut dice).await);
    }
    let keys: Vec<(SubjectUid, KeyRef)> =
        uids.iter().map(|uid| (*uid, world.subjects[uid].classes[&ClassNo(2)].key)).collect();
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut readers = Vec::new();
    for _ in 0..3 {
        let (ring, keys, done) = (world.ring.clone(), keys.clone(), done.clone());
        readers.push(tokio::spawn(async move {
            let mut uses = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                for (uid, key) in &keys {
                    let class = ClassRef { tenant: TENANT, uid: *uid, class: ClassNo(2), key: *key };
                    if ring.with_class(class, None, |k| k.id()).is_none() {
                        ring.load(TENANT, &[*key]).await.unwrap();
                        continue;
                    }
                    uses += 1;
                }
                ring.forget_nodes(TENANT);
                tokio::task::yield_now().await;
            }
            uses
        }));
    }
    for uid in &uids {
        world.erase(*uid, &[ONE], None, &mut dice).await.unwrap();
    }
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    for reader in readers {
        assert!(reader.await.unwrap() > 0);
    }
    world.check().await.unwrap();
}

#[tokio::test]
async fn a_dropped_key_is_gone_from_memory_at_the_answer() {
    let mut dice = Dice::new(5);
    let mut world = World::new(1, None).await;
    let uid = world.create(2, &mut dice).await;
    let key = world.subjects[&uid].classes[&ONE].key;
    let class = ClassRef { tenant: TENANT, uid, class: ONE, key };
    assert!(world.ring.with_class(class, None, |_| ()).is_some());
    let other = world.subjects[&uid].classes[&ClassNo(2)].key;
    world.erase(uid, &[ONE], None, &mut dice).await.unwrap();
    assert!(world.ring.with_class(class, None, |_| ()).is_none());
    assert!(world.ring.with_dek(TENANT, key, |_| ()).is_none());
    assert!(matches!(world.ring.load(TENANT, &[key]).await, Err(KeyringError::OtherKey { .. })));
    assert!(world.ring.with_dek(TENANT, other, |_| ()).is_some(), "the other class stays in memory");
}

#[tokio::test]
async fn a_freed_slot_is_given_again_with_another_key() {
    let mut dice = Dice::new(6);
    let mut world = World::new(1, None).await;
    let uid = world.create(1, &mut dice).await;
    let old = world.subjects[&uid].classes[&ONE].key;
    world.erase(uid, &[ONE], None, &mut dice).await.unwrap();
    let other = world.ring.allocate(TENANT, 1).await.unwrap()[0];
    assert_ne!(other.slot, old.slot, "its new key is in no key archive yet");
    world.ring.release(TENANT, &[other.slot]);
    world.ring.rewrite_archive(TENANT).await.unwrap();
    let new = loop {
        let given = world.ring.allocate(TENANT, 1).await.unwrap()[0];
        if given.slot == old.slot {
            break given;
        }
    };
    assert_ne!(new.dek, old.dek);
    world.ring.release(TENANT, &[new.slot]);
    // The same after a restart, from the rows.
    world.kill().await;
    assert_eq!(world.ring.allocate(TENANT, 1).await.unwrap()[0], new);
    let fresh = world.ring.allocate(TENANT, 1).await.unwrap()[0];
    assert_ne!(fresh.slot, new.slot);
}

#[tokio::test]
async fn leaves_are_born_ahead_and_found_again() {
    let mut dice = Dice::new(7);
    let mut world = World::new(1, None).await;
    let first = world.ring.allocate(TENANT, 3).await.unwrap();
    assert_eq!(first.iter().map(|k| k.slot.0).collect::<Vec<_>>(), [16, 17, 18]);
    let many = world.ring.allocate(TENANT, 1000).await.unwrap();
    assert_eq!(many.len(), 1000);
    let mut ids: Vec<DekId> = many.iter().map(|k| k.dek).collect();
    ids.sort_by_key(|id| id.0);
    ids.dedup();
    assert_eq!(ids.len(), 1000);
    world.create(2, &mut dice).await;
    world.kill().await;
    // What was given and never used is lost to this count, but not to the tree: the next one is above all used ones.
    let uid = world.create(2, &mut dice).await;
    assert!(world.subjects[&uid].classes[&ONE].key.slot.0 >= 1019);
    let leaves = world.spy.list_nodes(TENANT, Some(Ordinal(tree::leaf(0).0 - 1)), 1000).await.unwrap().len();
    assert!(leaves >= 9, "{leaves}");
    world.check().await.unwrap();
}

#[tokio::test]
async fn a_caller_who_goes_away_does_not_stop_a_swap() {
    let mut dice = Dice::new(8);
    let mut world = World::new(1, None).await;
    let uid = world.create(1, &mut dice).await;
    let op = world.erasure(uid, &[ONE]).await;
    let mut swap = Box::pin(world.ring.swap(TENANT, op));
    // Polled once, then dropped.
    let started = futures_util::FutureExt::now_or_never(&mut swap).is_none();
    assert!(started);
    drop(swap);
    // The next one comes after it.
    world.ring.swap(TENANT, SwapOp::default()).await.unwrap();
    let row = world.spy.subject_by_uid(uid).await.unwrap().unwrap().class(ONE).cloned().unwrap();
    assert_eq!(row.state, ClassState::Erased);
    world.note_erased(uid, &[ONE]);
    world.check().await.unwrap();
}
