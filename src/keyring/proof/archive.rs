//! The covering rule, and key archives that a restore must refuse.

use super::Dice;
use super::world::{TENANT, VAULT, World};
use crate::clock::Clock;
use crate::crypto::keys::FAN_OUT;
use crate::crypto::recovery::RecoveryError;
use crate::crypto::sign::Signing;
use crate::ids::*;
use crate::keyring::KeyringError;
use crate::keyring::archive::file::{Archive, ArchiveError, file_name};
use crate::keyring::tree;

fn open(world: &World, path: &std::path::Path) -> Result<Archive, ArchiveError> {
    Archive::open(path, VAULT, TENANT, &[world.ring.signing().public()], world.clock.now())
}

fn file(world: &World) -> std::path::PathBuf {
    world.keys().join(file_name(TENANT))
}

/// Ids of all keys that the archive on disk has, with their slots.
fn recorded(world: &World) -> std::collections::HashMap<Slot, DekId> {
    let archive = open(world, &file(world)).unwrap();
    let mut all = std::collections::HashMap::new();
    for (leaf, record) in archive.index() {
        let keys = archive.open_segment(record.segment, &world.recovery).unwrap();
        let first = (leaf.0 - tree::leaf(0).0) * FAN_OUT as u32;
        all.extend((0..FAN_OUT).map(|at| (Slot(first + at as u32), keys[record.index].dek(at).id())));
    }
    all
}

#[tokio::test]
async fn a_slot_is_given_only_when_its_key_is_recorded() {
    let world = World::new(1, None).await;
    for n in [1, 3, 200, 1000, 40] {
        let given = world.ring.allocate(TENANT, n).await.unwrap();
        let recorded = recorded(&world);
        assert!(given.iter().all(|key| recorded.get(&key.slot) == Some(&key.dek)));
    }
    let segments = open(&world, &file(&world)).unwrap().segments().len();
    assert!(segments < 8, "{segments} writes for 1,244 slots");
    // At most 50 bytes a slot.
    let (len, slots) = (std::fs::metadata(file(&world)).unwrap().len(), recorded(&world).len() as u64);
    assert!(len <= 50 * slots, "{len} bytes for {slots} slots");
}

#[tokio::test]
async fn an_archive_that_cannot_be_written_gives_no_slot() {
    let world = World::new(1, None).await;
    world.ring.allocate(TENANT, 104).await.unwrap();
    let aside = world.place("aside");
    std::fs::rename(world.keys(), &aside).unwrap();
    std::fs::write(world.keys(), b"in the way").unwrap();
    let refused = world.ring.allocate(TENANT, 1).await;
    assert!(matches!(refused, Err(KeyringError::Uncovered { .. })), "{refused:?}");
    std::fs::remove_file(world.keys()).unwrap();
    // The folder came back empty: everything is recorded again before a slot is given.
    let given = world.ring.allocate(TENANT, 1).await.unwrap()[0];
    let all = recorded(&world);
    assert_eq!(all.get(&given.slot), Some(&given.dek));
    assert!(all.len() >= 240);
}

#[tokio::test]
async fn a_dropped_slot_waits_for_the_rewrite_which_forgets_its_old_key() {
    let mut dice = Dice::new(3);
    let mut world = World::new(1, None).await;
    let uid = world.create(1, &mut dice).await;
    world.create(2, &mut dice).await;
    let old = world.subjects[&uid].classes[&ClassNo(1)].key;
    assert!(!world.ring.archive_due(TENANT).await.unwrap());
    world.erase(uid, &[ClassNo(1)], None, &mut dice).await.unwrap();
    assert_eq!(recorded(&world).get(&old.slot), Some(&old.dek), "until the rewrite");
    assert!(world.ring.archive_due(TENANT).await.unwrap());
    let rest = world.ring.allocate(TENANT, 1).await.unwrap()[0];
    assert_ne!(rest.slot, old.slot);
    world.ring.rewrite_archive(TENANT).await.unwrap();
    assert!(!world.ring.archive_due(TENANT).await.unwrap());
    assert!(recorded(&world).values().all(|dek| *dek != old.dek));
    let again = world.ring.allocate(TENANT, 1).await.unwrap()[0];
    assert_eq!(again.slot, old.slot);
    assert_eq!(recorded(&world).get(&again.slot), Some(&again.dek));
    world.clock.advance_days(15);
    assert!(world.ring.archive_due(TENANT).await.unwrap(), "half a horizon later");
    world.check().await.unwrap();
}

#[tokio::test]
async fn archives_that_are_not_whole_and_ours_are_refused() {
    let mut dice = Dice::new(4);
    let mut world = World::new(1, None).await;
    for _ in 0..150 {
        world.create(1, &mut dice).await;
    }
    let (path, copy) = (file(&world), world.place("copy.keys"));
    let right = std::fs::read(&path).unwrap();
    let places: Vec<(u64, usize)> = open(&world, &path).unwrap().segments().iter().map(|s| (s.offset, s.len)).collect();
    assert!(places.len() >= 2);
    let segment = |n: usize| right[places[n].0 as usize..][..places[n].1].to_vec();
    let try_bytes = |bytes: &[u8]| {
        std::fs::write(&copy, bytes).unwrap();
        open(&world, &copy).map(|archive| archive.torn)
    };
    assert!(!try_bytes(&right).unwrap());
    // Cut off while it grew: what was acknowledged is there, and it is said.
    assert!(try_bytes(&right[..right.len() - 10]).unwrap());
    // Nothing of it, a changed byte, a missing segment, one twice, another order.
    assert!(matches!(try_bytes(&right[..100]), Err(ArchiveError::Damaged { offset: 0, .. })));
    for at in [300, places[1].0 as usize + 40, right.len() - 1] {
        let mut bad = right.clone();
        bad[at] ^= 1;
        assert!(matches!(try_bytes(&bad), Err(ArchiveError::Damaged { .. })), "byte {at}");
    }
    let missing = right[places[1].0 as usize..].to_vec();
    assert!(matches!(try_bytes(&missing), Err(ArchiveError::Mixed { number: 1 })));
    assert!(matches!(try_bytes(&[segment(0), segment(0)].concat()), Err(ArchiveError::Mixed { number: 0 })));
    // Another day's segment behind today's.
    world.ring.rewrite_archive(TENANT).await.unwrap();
    let rewritten = std::fs::read(&path).unwrap();
    assert!(matches!(try_bytes(&[rewritten, segment(1)].concat()), Err(ArchiveError::Mixed { .. })));
    // Another tenant's, another vault's, another signer's, too old.
    let public = [world.ring.signing().public()];
    let now = world.clock.now();
    let other = Archive::open(&world.keys().join(file_name(TenantNo::VAULT)), VAULT, TENANT, &public, now);
    assert!(matches!(other, Err(ArchiveError::OtherTenant { found: TenantNo::VAULT })));
    let other = Archive::open(&path, VaultId([1; 16]), TENANT, &public, now);
    assert!(matches!(other, Err(ArchiveError::OtherVault)));
    let forged = Archive::open(&path, VAULT, TENANT, &[Signing::generate().public()], now);
    assert!(matches!(forged, Err(ArchiveError::Damaged { offset: 0, what }) if what.contains("unknown key")));
    let old = Archive::open(&path, VAULT, TENANT, &public, now.plus_days(30));
    assert!(matches!(old, Err(ArchiveError::Expired { .. })));
    // The wrong recovery key.
    let archive = open(&world, &path).unwrap();
    let wrong = archive.open_segment(0, &[crate::crypto::recovery::RecoveryIdentity::generate()]);
    assert!(matches!(wrong, Err(ArchiveError::Key(RecoveryError::OtherKey))));
}

#[tokio::test]
async fn a_torn_end_is_overwritten_and_a_rewrite_beside_births_loses_none() {
    use std::io::Write;
    let mut world = World::new(1, None).await;
    world.ring.allocate(TENANT, 130).await.unwrap();
    let mut torn = std::fs::OpenOptions::new().append(true).open(file(&world)).unwrap();
    torn.write_all(&[7; 5000]).unwrap();
    world.kill().await;
    let ring = world.ring.clone();
    let births = async {
        for _ in 0..20 {
            ring.allocate(TENANT, 100).await.unwrap();
        }
    };
    let rewrites = async {
        for _ in 0..5 {
            ring.rewrite_archive(TENANT).await.unwrap();
        }
    };
    tokio::join!(births, rewrites);
    let given = world.ring.allocate(TENANT, 300).await.unwrap();
    let all = recorded(&world);
    assert!(given.iter().all(|key| all.get(&key.slot) == Some(&key.dek)));
}
