//! The keeper in a token: the file keeper's rules hold, and old files beside the present token open nothing.

use super::file::ROOTS;
use super::sim::{Fault, SimDisk};
use super::tests::*;
use super::*;

fn guarded(names: &[&str]) -> (SimDisk, FileKeeper) {
    keeper_on(SimDisk::guarded(), names)
}

#[test]
fn an_old_file_beside_the_present_token_opens_nothing_that_was_destroyed() {
    let (disk, keeper) = guarded(&["a", "b"]);
    assert_eq!((keeper.kind(), keeper.assurance()), ("pkcs11", "physical"));
    let mut copies = Vec::new();
    run(async {
        for g in 1..6 {
            keeper.write_next(root(g)).await.unwrap();
            assert_eq!(disk.objects(), if g == 1 { 2 } else { 4 }, "one a root and replica");
            copies.push(disk.copy());
            keeper.destroy(T, Generation(g)).await.unwrap();
            assert_eq!(disk.objects(), 2, "C_DestroyObject before the answer");
            let slot = ((g - 1) % 2) as u8;
            assert_eq!(found(&keeper).await, [(0, slot, g), (1, slot, g)]);
        }
    });
    drop(keeper);
    let plain = root(5).wrapped;
    assert!(disk.all_bytes().iter().all(|(_, bytes)| !bytes.windows(60).any(|w| w == plain)));
    for (n, old) in copies.iter().enumerate() {
        let thief = open(&old.beside_token_of(&disk), &["a", "b"]);
        let slots = run(thief.read(T)).unwrap();
        let generations: Vec<u64> = slots.roots().map(|block| block.generation.0).collect();
        assert_eq!(generations, if n == 4 { vec![5, 5] } else { vec![] }, "copy of generation {}", n + 1);
    }
}

#[test]
fn t02_power_loss_at_each_step_of_a_token_keeps_what_was_acknowledged() {
    power_loss_at_each_step(SimDisk::guarded);
}

#[test]
fn an_old_file_or_another_token_is_keeper_behind_and_destroys_nothing() {
    let (disk, keeper) = guarded(&["a"]);
    run(async {
        keeper.write_next(root(1)).await.unwrap();
        let old = disk.copy();
        keeper.write_next(root(2)).await.unwrap();
        keeper.destroy(T, Generation(2)).await.unwrap();
        drop(keeper);
        // One generation less in the file than in the token.
        let image = old.beside_token_of(&disk);
        let behind = open(&image, &["a"]);
        assert!(found(&behind).await.is_empty());
        assert_eq!(behind.destroy(T, Generation(2)).await, Err(KeeperError::Unsure { tenant: T }));
        assert_eq!(behind.write_next(root(3)).await, Err(KeeperError::Unsure { tenant: T }));
        assert_eq!(image.objects(), 1, "the present one is there");
        drop(behind);
        // The right file beside it again.
        let right = open(&disk.beside_token_of(&image), &["a"]);
        assert_eq!(found(&right).await, [(0, 1, 2)]);
        drop(right);
        // A token that was made anew: nothing opens, nothing is written.
        let other = disk.beside_token_of(&SimDisk::guarded());
        let lost = open(&other, &["a"]);
        let slots = lost.read(T).await.unwrap();
        assert_eq!((slots.found.len(), slots.torn), (0, 1));
        assert_eq!(lost.destroy(T, Generation(2)).await, Err(KeeperError::Unsure { tenant: T }));
    });
}

#[test]
fn objects_that_no_slot_names_are_destroyed_with_the_next_change() {
    let (disk, keeper) = guarded(&["a"]);
    run(async {
        keeper.write_next(root(1)).await.unwrap();
        // One more in the token than in the file: a crash between the making and the writing.
        disk.fail("a", Fault::Write, 1);
        assert!(keeper.write_next(root(2)).await.is_err());
        assert_eq!(disk.objects(), 2);
        disk.heal();
        keeper.rejoin().await.unwrap();
        keeper.write_next(root(2)).await.unwrap();
        keeper.destroy(T, Generation(2)).await.unwrap();
        assert_eq!(disk.objects(), 1);
        keeper.rewrap(under(2, NEW_KEK)).await.unwrap();
        keeper.destroy_except(T, Generation(2), NEW_KEK).await.unwrap();
        assert_eq!(disk.objects(), 1);
        keeper.tombstone(T).await.unwrap();
        assert_eq!(disk.objects(), 0);
    });
}

#[test]
fn a_token_that_is_away_makes_its_replica_away_until_it_is_back() {
    let (disk, keeper) = guarded(&["a"]);
    run(async {
        keeper.write_next(root(1)).await.unwrap();
        disk.fail("token", Fault::Open, 100);
        assert!(keeper.write_next(root(2)).await.is_err());
        assert!(keeper.rejoin().await.is_err());
        assert!(keeper.read(T).await.is_err());
        disk.heal();
        keeper.rejoin().await.unwrap();
        keeper.write_next(root(2)).await.unwrap();
        keeper.destroy(T, Generation(2)).await.unwrap();
        assert_eq!(disk.objects(), 1);
    });
    drop(keeper);
    disk.fail("token", Fault::Open, 100);
    let refused = FileKeeper::open_on(&super::tests::media(&disk, &["a"])).err();
    assert_eq!(refused, Some(KeeperError::NoReplica));
}

#[test]
fn a_retired_replica_that_returns_loses_its_objects() {
    let (disk, keeper) = guarded(&["a", "b"]);
    run(async {
        keeper.write_next(root(1)).await.unwrap();
        keeper.destroy(T, Generation(1)).await.unwrap();
    });
    drop(keeper);
    let with_root = disk.copy();
    disk.lose("b");
    let keeper = open(&disk, &["a", "b"]);
    run(keeper.retire(1, Timestamp(1))).unwrap();
    drop(keeper);
    assert_eq!(disk.objects(), 2);
    disk.put_back("b", &with_root);
    drop(open(&disk, &["a", "b"]));
    assert_eq!(disk.objects(), 1, "those of the replica that was given up");
    let bytes = disk.all_bytes();
    let wiped = bytes.iter().find(|(name, _)| *name == format!("b/{ROOTS}")).unwrap();
    assert!(wiped.1.iter().all(|b| *b == 0));
}
