//! T05: the reachability oracle over random histories, and the mistakes it must notice.

use super::erasing::Fault;
use super::mutants::Mutant;
use super::spy::CommitFault;
use super::world::World;
use super::{Dice, count, must_catch, run};
use crate::ids::{Bucket, ClassNo, SubjectUid};
use crate::keyring::{SwapPoint, TenantKeyState};

/// One history: a vault's life with its accidents. `Err` says what the oracle found.
async fn history(seed: u64, mutant: Option<Mutant>) -> Result<(), String> {
    let mut dice = Dice::new(seed);
    let replicas = if mutant.is_some() { 1 } else { 1 + dice.below(3) };
    let mut world = World::new(replicas, mutant).await;
    let mut sequence = 10;
    for _ in 0..4 + dice.below(5) {
        let classes = 1 + dice.below(3) as u8;
        world.create(classes, &mut dice).await;
    }
    for step in 0..6 + dice.below(14) {
        let Some((uid, class)) = pick(&world, &mut dice) else {
            world.create(2, &mut dice).await;
            continue;
        };
        match dice.below(14) {
            0 | 1 => {
                let classes = 1 + dice.below(3) as u8;
                world.create(classes, &mut dice).await;
            }
            2 => world.put(uid, class).await,
            3 => world.rotate(uid, class).await,
            4 => world.put_expiring(uid, class, Bucket(20_000 + dice.below(4) as u32)).await,
            5 => world.end_bucket(Bucket(20_000 + dice.below(4) as u32)).await,
            6 => world.rotate_index().await,
            7 => world.rotate_root().await,
            8 => {
                sequence += 1;
                world.anchor_with_power_loss(sequence, &mut dice).await;
            }
            9 => stale_start(&mut world, uid, class, step, &mut dice).await?,
            10 => replica_away(&mut world, uid, class, &mut dice).await?,
            _ => {
                let all = world.subjects[&uid].classes.keys().copied().collect::<Vec<ClassNo>>();
                let classes = if dice.once_in(2) { all } else { vec![class] };
                let fault = fault(&mut dice);
                world.erase(uid, &classes, fault, &mut dice).await?;
            }
        }
        if world.ring.state(super::world::TENANT) != TenantKeyState::Ready {
            return Err(format!("the tenant is {:?}", world.ring.state(super::world::TENANT)));
        }
        if dice.once_in(4) {
            world.check().await?;
        }
    }
    world.check().await?;
    world.kill().await;
    world.check().await
}

fn pick(world: &World, dice: &mut Dice) -> Option<(SubjectUid, ClassNo)> {
    let all: Vec<_> = world.subjects.iter().flat_map(|(uid, s)| s.classes.keys().map(|class| (*uid, *class))).collect();
    all.get(dice.below(all.len())).copied()
}

fn fault(dice: &mut Dice) -> Option<Fault> {
    match dice.below(8) {
        0..3 => None,
        3 | 4 => Some(Fault::Stop(SwapPoint::ALL[dice.below(6)])),
        5 | 6 => Some(Fault::KeeperStep(dice.below(24))),
        _ => Some(Fault::Commit(match dice.below(4) {
            0 => CommitFault::Lost,
            1 => CommitFault::Unclear,
            2 => CommitFault::Dead { committed: true },
            _ => CommitFault::Dead { committed: false },
        })),
    }
}

/// A crash right after the commit; then somebody starts on a copy of the database from just before it, notices, and
/// starts on the right one.
async fn stale_start(
    world: &mut World,
    uid: SubjectUid,
    class: ClassNo,
    step: usize,
    dice: &mut Dice,
) -> Result<(), String> {
    if world.mutant == Some(Mutant::DeleteOnly) {
        return Ok(());
    }
    let stale = world.back_up(&format!("stale-{step}"));
    let op = world.erasure(uid, &[class]).await;
    let ledger = op.ledger.clone();
    world.stop_at(SwapPoint::Committed);
    if world.ring.swap(super::world::TENANT, op).await.is_ok() {
        return Err("a stopped swap was answered".into());
    }
    let right = world.back_up(&format!("right-{step}"));
    let disk = world.after_power_loss(dice);
    world.restart(disk, &stale).await;
    let disk = world.disk.copy();
    world.restart(disk, &right).await;
    if world.ring.state(super::world::TENANT) != TenantKeyState::Ready {
        return Err("a start on an older copy cost the tenant its root".into());
    }
    world.ring.settle(super::world::TENANT, ledger).await.map_err(|e| format!("cannot settle: {e}"))?;
    world.note_erased(uid, &[class]);
    Ok(())
}

/// A replica cannot be written during an erasure; nothing is answered as erased until it is back.
async fn replica_away(world: &mut World, uid: SubjectUid, class: ClassNo, dice: &mut Dice) -> Result<(), String> {
    use crate::keyring::keeper::sim::Fault as Disk;
    if world.mutant == Some(Mutant::DeleteOnly) {
        return Ok(());
    }
    let replica = format!("r{}", dice.below(world.replicas));
    let kind = [Disk::Write, Disk::Sync][dice.below(2)];
    world.disk.fail(&replica, kind, 1 + dice.below(3) as u32);
    let op = world.erasure(uid, &[class]).await;
    let ledger = op.ledger.clone();
    let result = world.ring.swap(super::world::TENANT, op).await;
    world.disk.heal();
    if result.is_ok() {
        return Err("an erasure was answered while a replica was away".into());
    }
    world.check().await?;
    world.kill().await;
    world.end_after_restart(uid, &[class], ledger).await
}

#[tokio::test]
async fn t05_oracle_over_random_histories() {
    let number = |text: &str| text.parse::<u64>().expect("PII_VAULT_SEED is a number or a range a..b");
    let seeds = match std::env::var("PII_VAULT_SEED") {
        Ok(seed) => match seed.split_once("..") {
            Some((from, to)) => number(from)..number(to),
            None => number(&seed)..number(&seed) + 1,
        },
        Err(_) => 0..count(40, 10_000),
    };
    let found = run(seeds, None, history).await;
    assert!(found.is_empty(), "{found:?}");
}

#[tokio::test]
async fn t05_mutant_delete_only_is_caught() {
    must_catch(Mutant::DeleteOnly, "an erased value was recovered", history).await;
}

#[tokio::test]
async fn t05_mutant_index_secret_outside_the_tree_is_caught() {
    must_catch(Mutant::IndexOutside, "guessed after its search had ended", history).await;
}

#[tokio::test]
async fn t05_mutant_discarding_the_next_generation_is_caught() {
    must_catch(Mutant::DiscardNext, "cost the tenant its root", history).await;
}

#[tokio::test]
async fn t05_mutant_anchor_in_a_root_block_is_caught() {
    must_catch(Mutant::AnchorInRoot, "the tenant is ", history).await;
}
