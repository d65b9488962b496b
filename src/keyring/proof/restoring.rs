//! T05 with archives: random histories with nights, disasters and restores. After each restore that the design allows,
//! nobody erased is recovered and everyone of that night who was not erased since is.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use super::mutants::Mutant;
use super::spy::copy_files;
use super::world::{Expiring, Subject, TENANT, VAULT, World};
use super::{Dice, count, must_catch, run};
use crate::clock::Clock;
use crate::crypto::recovery::RecoveryIdentity;
use crate::crypto::sign::Signing;
use crate::ids::*;
use crate::keyring::archive::file::file_name;
use crate::keyring::archive::{Archive, KeyArchive};
use crate::keyring::keeper::sim::SimDisk;
use crate::keyring::keeper::{FileKeeper, Keeper, OwnBlock, seal_signing};
use crate::keyring::ledger::LedgerKind;
use crate::keyring::rebuild::{KeySource, Rebuild};
use crate::storage::*;

/// What a nightly copy took, and what lived then.
pub struct Night {
    files: PathBuf,
    keys: PathBuf,
    subjects: BTreeMap<SubjectUid, Subject>,
    expiring: Vec<Expiring>,
    buckets: BTreeMap<Bucket, crate::keyring::KeyRef>,
    index: SecretVersion,
}

/// Where the keys of a restore come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// The live tree and keeper.
    Live,
    /// The key archive of that night.
    Night,
    /// The key archive on the disk now, which is never older than the data.
    Disk,
}

fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

impl World {
    fn key_archive(&self) -> &KeyArchive {
        self.ring.archive().expect("a world has a recovery key")
    }

    /// Whether slots are allocated without their record (the mutant *uncovered*, after its first night).
    fn lies(&self) -> bool {
        self.key_archive().lies.load(Ordering::Relaxed)
    }

    /// A night: data archive, then key archive.
    pub async fn night(&mut self, name: &str) -> Night {
        let files = self.back_up(&format!("{name}-data"));
        if !self.lies() {
            self.ring.rewrite_archive(TENANT).await.unwrap();
        }
        let keys = self.place(&format!("{name}-keys"));
        copy_dir(&self.keys(), &keys);
        Night {
            files,
            keys,
            subjects: self.subjects.clone(),
            expiring: self.expiring.clone(),
            buckets: self.buckets.clone(),
            index: self.index,
        }
    }

    /// The keys of one tenant as a restore takes them.
    fn source(&self, tenant: TenantNo, from: From, night: &Night) -> Result<KeySource, String> {
        let dir = match from {
            From::Live => return Ok(KeySource::Live(self.ring.clone())),
            From::Night => night.keys.clone(),
            From::Disk => self.keys(),
        };
        let (path, public) = (dir.join(file_name(tenant)), self.ring.signing().public());
        let archive = Archive::open(&path, VAULT, tenant, &[public], self.clock.now())
            .map_err(|error| format!("the key archive is refused: {error}"))?;
        let text = self.recovery[0].text();
        Ok(KeySource::Archive(archive, RecoveryIdentity::parse_file(&text).unwrap().into()))
    }

    /// Restores that night's data, and goes on with it as the vault.
    pub async fn restore(&mut self, night: &Night, from: From, name: &str) -> Result<(), String> {
        // The ledger up to its end, as the live keeper or the receipts have it.
        let mut reader = self.keeper.ledger().await.unwrap();
        let mut dead: HashMap<(SubjectUid, ClassNo), DekVersion> = HashMap::new();
        while let Some(batch) = reader.next_batch().unwrap() {
            for entry in batch.entries.iter().filter(|e| e.kind == LedgerKind::Erased && e.tenant == TENANT) {
                let version = dead.entry((entry.uid, entry.class)).or_insert(entry.version);
                *version = entry.version.max(*version);
            }
        }
        let files = self.place(&format!("{name}-staging"));
        copy_files(&night.files, &files);
        let spy = World::open_store(files.clone(), &self.nodes);
        spy.skip_uids(self.spy.next_uid());
        let by_digest: HashSet<SubjectDigest> = dead.keys().map(|(uid, _)| super::world::digest(*uid)).collect();
        let mut digests = HashMap::new();
        for snapshot in spy.list_subjects(TENANT, None, SubjectUid(0), 10_000).await.unwrap().rows {
            digests.insert(snapshot.subject.uid, snapshot.subject.digest);
        }
        let over: HashSet<Bucket> =
            night.buckets.keys().filter(|bucket| !self.buckets.contains_key(bucket)).copied().collect();
        let mutant = self.mutant;
        let rightly = |user: &SlotUser| match user {
            SlotUser::Class { uid, class, version } => dead.get(&(*uid, *class)).is_none_or(|dead| dead < version),
            SlotUser::Expiry { bucket, .. } => !over.contains(bucket),
        };
        let lives = |user: &SlotUser| match user {
            SlotUser::Class { uid, .. } if mutant == Some(Mutant::LedgerById) => {
                !digests.get(uid).is_some_and(|digest| by_digest.contains(digest))
            }
            _ => rightly(user),
        };
        let disk = SimDisk::new();
        let media: Vec<_> = (0..self.replicas).map(|n| disk.medium(&format!("r{n}"))).collect();
        FileKeeper::create_on(&media, VAULT).unwrap();
        let keeper = FileKeeper::open_on(&media).unwrap();
        let signing = Signing::from_seed(&self.ring.signing().seed());
        keeper.put_own(OwnBlock::Signing, &seal_signing(VAULT, &self.kek(), &signing, None), 1).await.unwrap();
        let mut gone = HashSet::new();
        for tenant in [TenantNo::VAULT, TENANT] {
            let source = self.source(tenant, from, night)?;
            let generation = Generation(self.ring.generation(tenant).unwrap().0 + 1);
            let rebuild = Rebuild { store: &*spy, vault: VAULT, tenant, of_data: generation, generation, dry: false };
            let keep_all = |_: &SlotUser| true;
            let keep: &(dyn Fn(&SlotUser) -> bool + Sync) =
                if mutant == Some(Mutant::NoRekey) { &keep_all } else { &lives };
            let (root, rebuilt) =
                rebuild.run(&source, keep).await.map_err(|error| format!("the tree is not rebuilt: {error}"))?;
            rebuild.keep_root(&keeper, &self.kek(), &root).await.unwrap();
            // Under the live tree what is erased is gone too, and the ledger says which.
            let missing = match source {
                KeySource::Live(_) => &rebuilt.since,
                KeySource::Archive(..) => &rebuilt.lost,
            };
            if let Some(user) = missing.iter().find(|user| lives(user)) {
                return Err(format!("somebody living was lost: {user:?}"));
            }
            gone.extend(rebuilt.dropped);
            gone.extend(rebuilt.since);
            gone.extend(rebuilt.lost);
            if mutant == Some(Mutant::NoRekey) {
                let page = spy.list_subjects(TENANT, None, SubjectUid(0), 10_000).await.unwrap();
                let rows = page.rows.iter().flat_map(|snapshot| &snapshot.classes).filter(|row| row.slot.is_some());
                let users = rows.map(|r| SlotUser::Class { uid: r.uid, class: r.class, version: r.version });
                gone.extend(users.filter(|user| !lives(user)));
            }
        }
        let mut change = ChangeSet::default();
        for user in &gone {
            match *user {
                SlotUser::Class { uid, class, .. } => {
                    let row = spy.subject_by_uid(uid).await.unwrap().unwrap().class(class).cloned().unwrap();
                    let slot = row.slot.unwrap();
                    let (state, record) = (ClassState::Erased, vec![]);
                    change.change(Mutation::PutClass(ClassRow { slot: None, state, record, ..row }));
                    change.change(Mutation::FreeSlot { tenant: TENANT, slot });
                }
                SlotUser::Expiry { class, bucket } => {
                    change.change(Mutation::DeleteExpiry { tenant: TENANT, class, bucket });
                }
            }
        }
        for version in 0..=self.index.0.max(night.index.0) {
            let version = SecretVersion(version);
            change.change(Mutation::DeleteTermsOfVersion { tenant: TENANT, version, limit: u32::MAX });
        }
        spy.commit(change).await.unwrap();
        spy.close().await;
        drop((keeper, spy));
        // The swap of directories: the old keeper and the old key archive are gone.
        let _ = std::fs::remove_dir_all(self.keys());
        self.restart(disk, &files).await;
        let is_gone = |uid: &SubjectUid, class: &ClassNo| {
            let same =
                |user: &&SlotUser| matches!(user, SlotUser::Class { uid: u, class: c, .. } if u == uid && c == class);
            gone.iter().filter(same).any(|user| !rightly(user))
        };
        self.subjects = night.subjects.clone();
        for (uid, subject) in &mut self.subjects {
            subject.classes.retain(|class, _| !is_gone(uid, class));
        }
        self.subjects.retain(|_, subject| !subject.classes.is_empty());
        self.expiring = night.expiring.clone();
        self.expiring.retain(|value| !is_gone(&value.class.uid, &value.class.class) && !over.contains(&value.bucket));
        self.buckets = night.buckets.clone();
        self.buckets.retain(|bucket, _| !over.contains(bucket));
        self.index = night.index;
        self.searchable_erased.iter_mut().for_each(|(_, _, over)| *over = true);
        let people: Vec<(SubjectUid, usize)> = self.subjects.iter().map(|(uid, s)| (*uid, s.phone)).collect();
        let mut change = ChangeSet::default();
        for (uid, phone) in people {
            change.change(self.tag(uid, phone));
        }
        self.spy.commit(change).await.unwrap();
        self.ring.rewrite_archive(TenantNo::VAULT).await.unwrap();
        self.ring.rewrite_archive(TENANT).await.unwrap();
        Ok(())
    }
}

/// So many subjects of three classes need leaves born after the first night.
const MANY: usize = 90;

/// One history with nights and restores.
async fn history(seed: u64, mutant: Option<Mutant>) -> Result<(), String> {
    let mut dice = Dice::new(seed ^ 0xA5C3);
    let mut world = World::new(1 + dice.below(2), mutant).await;
    for _ in 0..4 + dice.below(4) {
        let classes = 1 + dice.below(3) as u8;
        world.create(classes, &mut dice).await;
    }
    let mut erased_ids: Vec<SubjectUid> = Vec::new();
    let mut night = world.night("n0").await;
    if mutant == Some(Mutant::Uncovered) {
        world.key_archive().lies.store(true, Ordering::Relaxed);
        // More than the leaves hold that the first night recorded.
        for _ in 0..MANY {
            world.create(3, &mut dice).await;
        }
    }
    for step in 0..8 + dice.below(10) {
        let all: Vec<_> =
            world.subjects.iter().flat_map(|(uid, s)| s.classes.keys().map(|class| (*uid, *class))).collect();
        let Some((uid, class)) = all.get(dice.below(all.len())).copied() else {
            world.create(2, &mut dice).await;
            continue;
        };
        match dice.below(12) {
            0 | 1 => {
                world.create(1 + dice.below(3) as u8, &mut dice).await;
            }
            2 => world.put(uid, class).await,
            3 => world.rotate(uid, class).await,
            4 => world.put_expiring(uid, class, Bucket(20_000 + dice.below(3) as u32)).await,
            5 => world.end_bucket(Bucket(20_000 + dice.below(3) as u32)).await,
            6 => world.rotate_index().await,
            7 | 8 => {
                let classes: Vec<ClassNo> = world.subjects[&uid].classes.keys().copied().collect();
                world.erase(uid, &classes, None, &mut dice).await?;
                erased_ids.push(uid);
            }
            9 => {
                // An erased id begins a new life.
                if let Some(old) = erased_ids.pop()
                    && world.spy.subject_by_uid(old).await.unwrap().is_some()
                {
                    let mut change = ChangeSet::default();
                    change.change(Mutation::DeleteSubject { uid: old });
                    world.spy.commit(change).await.unwrap();
                    let new = world.spy.next_uid();
                    world.create_as(new, super::world::digest(old), 2, &mut dice).await;
                }
            }
            10 => night = world.night(&format!("n{step}")).await,
            _ => {
                let from = [From::Live, From::Night, From::Disk][dice.below(3)];
                let from = if mutant == Some(Mutant::Uncovered) { From::Disk } else { from };
                if from == From::Disk {
                    // The database as it is, or the night's: the file on the disk opens the living of both.
                    if dice.once_in(2) || mutant == Some(Mutant::Uncovered) {
                        let (files, keys) = (world.back_up(&format!("d{step}")), world.keys());
                        let (subjects, expiring) = (world.subjects.clone(), world.expiring.clone());
                        let (buckets, index) = (world.buckets.clone(), world.index);
                        night = Night { files, keys, subjects, expiring, buckets, index };
                    }
                }
                world.restore(&night, from, &format!("r{step}")).await?;
                world.check().await?;
                night = world.night(&format!("n{step}")).await;
            }
        }
        if dice.once_in(4) {
            world.check().await?;
        }
    }
    world.restore(&night, From::Night, "last").await?;
    world.check().await?;
    world.kill().await;
    world.check().await
}

#[tokio::test]
async fn t05_oracle_with_archives_and_restores() {
    let found = run(0..count(40, 10_000), None, history).await;
    assert!(found.is_empty(), "{found:?}");
}

#[tokio::test]
async fn t05_mutant_slot_allocated_uncovered_is_caught() {
    must_catch(Mutant::Uncovered, "somebody living was lost", history).await;
}

#[tokio::test]
async fn t05_mutant_ledger_keyed_by_id_is_caught() {
    must_catch(Mutant::LedgerById, "a live value cannot be recovered", history).await;
}

#[tokio::test]
async fn t05_mutant_no_rekey_at_restore_is_caught() {
    must_catch(Mutant::NoRekey, "an erased value was recovered", history).await;
}
