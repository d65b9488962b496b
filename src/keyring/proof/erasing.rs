//! Whatever ends keys in the small world, with and without something that goes wrong meanwhile.

use super::Dice;
use super::mutants::Mutant;
use super::spy::CommitFault;
use super::world::{Class, TENANT, World};
use crate::clock::Timestamp;
use crate::crypto::random;
use crate::ids::*;
use crate::keyring::ledger::{LedgerEntry, LedgerKind};
use crate::keyring::*;
use crate::storage::*;

/// What goes wrong in an erasure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    Stop(SwapPoint),
    /// The power fails in the n-th keeper step from now.
    KeeperStep(usize),
    Commit(CommitFault),
}

fn entry(uid: SubjectUid, class: ClassNo, version: DekVersion) -> LedgerEntry {
    let object = ObjectId::random();
    LedgerEntry { uid, class, version, object, ..LedgerEntry::new(LedgerKind::Erased, TENANT, Timestamp(5)) }
}

impl World {
    /// The operation that erases classes of a subject.
    pub async fn erasure(&self, uid: SubjectUid, classes: &[ClassNo]) -> SwapOp {
        let mut op = SwapOp::default();
        for class in classes {
            let row = self.row(uid, *class).await.unwrap();
            op.slots.push(row.slot.expect("a live class has a slot"));
            op.change.require(Precondition::ClassAt {
                uid,
                class: *class,
                version: row.version,
                revision: row.revision,
            });
            op.ledger.push(entry(uid, *class, row.version));
            op.change.change(Mutation::PutClass(ClassRow {
                slot: None,
                state: ClassState::Erased,
                revision: Revision(row.revision.0 + 1),
                record: vec![],
                ..row
            }));
        }
        op
    }

    /// The model's part of an erasure whose end was answered.
    pub fn note_erased(&mut self, uid: SubjectUid, classes: &[ClassNo]) {
        for class in classes {
            let gone = self.plains_of(uid, *class);
            self.erased.extend(gone);
            self.expiring.retain(|v| !(v.class.uid == uid && v.class.class == *class));
            let subject = self.subjects.get_mut(&uid).unwrap();
            subject.classes.remove(class);
        }
        if self.subjects[&uid].classes.is_empty() {
            let phone = self.subjects[&uid].phone;
            self.searchable_erased.push((uid, phone, false));
            self.subjects.remove(&uid);
        }
    }

    /// Erases, with or without a fault; after a fault the world restarts and finds out what happened.
    pub async fn erase(
        &mut self,
        uid: SubjectUid,
        classes: &[ClassNo],
        fault: Option<Fault>,
        dice: &mut Dice,
    ) -> Result<(), String> {
        if self.mutant == Some(Mutant::DeleteOnly) {
            return self.erase_by_deleting(uid, classes).await;
        }
        let op = self.erasure(uid, classes).await;
        match &fault {
            None => {}
            Some(Fault::Stop(point)) => *self.stop.lock() = Some(*point),
            Some(Fault::KeeperStep(n)) => self.disk.power_off_at(self.disk.steps() + n),
            Some(Fault::Commit(fault)) => *self.spy.fault.lock() = Some(fault.clone()),
        }
        let ledger = op.ledger.clone();
        let before = self.ring.generation(TENANT).unwrap();
        let result = self.ring.swap(TENANT, op).await;
        if fault.is_none() {
            result.map_err(|error| format!("an erasure without a fault failed: {error}"))?;
            self.note_erased(uid, classes);
            return Ok(());
        }
        if let Ok(swapped) = &result {
            // The answer was given: the receipt may be out, whatever comes now.
            if swapped.generation <= before {
                return Err("a swap did not raise the generation".into());
            }
            self.note_erased(uid, classes);
        }
        match fault {
            Some(Fault::KeeperStep(_)) => self.power_loss(dice).await,
            _ if dice.once_in(2) => self.power_loss(dice).await,
            _ => self.kill().await,
        }
        self.after_fault(before, result, uid, classes, ledger).await
    }

    /// What a vault does after a restart: operations found committed are settled, then answered.
    async fn after_fault(
        &mut self,
        before: Generation,
        result: Result<Swapped, SwapError>,
        uid: SubjectUid,
        classes: &[ClassNo],
        ledger: Vec<LedgerEntry>,
    ) -> Result<(), String> {
        let state = self.ring.state(TENANT);
        if state != TenantKeyState::Ready {
            return Err(format!("after a crash the tenant is {state:?} ({result:?})"));
        }
        let now = self.ring.generation(TENANT).unwrap();
        let committed = self.is_erased(uid, classes[0]).await;
        let expected = if committed { Generation(before.0 + 1) } else { before };
        if now != expected {
            return Err(format!("generation {now} where {expected} was committed"));
        }
        if result.is_ok() && !committed {
            return Err("an answered erasure is not in the database".into());
        }
        if result.is_err() { self.end_after_restart(uid, classes, ledger).await } else { Ok(()) }
    }

    async fn is_erased(&self, uid: SubjectUid, class: ClassNo) -> bool {
        self.row(uid, class).await.is_none_or(|row| row.state == ClassState::Erased)
    }

    /// Settles an erasure that was not answered, if it was committed.
    pub async fn end_after_restart(
        &mut self,
        uid: SubjectUid,
        classes: &[ClassNo],
        ledger: Vec<LedgerEntry>,
    ) -> Result<(), String> {
        if self.is_erased(uid, classes[0]).await {
            let settled = self.ring.settle(TENANT, ledger).await;
            settled.map_err(|error| format!("a committed erasure cannot be settled: {error}"))?;
            self.note_erased(uid, classes);
        }
        Ok(())
    }

    /// A new version of a class under a new key with a new value; the old key dies with the old value.
    pub async fn rotate(&mut self, uid: SubjectUid, class: ClassNo) {
        let row = self.row(uid, class).await.unwrap();
        let key = self.ring.allocate(TENANT, 1).await.unwrap()[0];
        let at = ClassRef { tenant: TENANT, uid, class, key };
        let plain = random::bytes();
        let record = self.seal(at, None, &plain);
        let version = DekVersion(row.version.0 + 1);
        let mut op = SwapOp { slots: vec![row.slot.unwrap()], ..SwapOp::default() };
        let (revision, old) = (row.revision, row.version);
        op.change.require(Precondition::ClassAt { uid, class, version: old, revision });
        op.change.change(Mutation::TakeSlot { tenant: TENANT, slot: key.slot });
        let new = self.class_row(&at, version, revision.0 + 1, record);
        op.change.change(Mutation::PutClass(new));
        op.ledger.push(entry(uid, class, old));
        self.ring.swap(TENANT, op).await.unwrap();
        let gone = self.plains_of(uid, class);
        self.erased.extend(gone);
        self.expiring.retain(|v| !(v.class.uid == uid && v.class.class == class));
        self.subjects.get_mut(&uid).unwrap().classes.insert(class, Class { key, plain, former: vec![] });
    }

    /// The bucket is over: one slot dies for everyone.
    pub async fn end_bucket(&mut self, bucket: Bucket) {
        let Some(key) = self.buckets.remove(&bucket) else { return };
        let mut op = SwapOp { slots: vec![key.slot], ..SwapOp::default() };
        op.change.require(Precondition::ExpiryLive { tenant: TENANT, class: ClassNo(1), bucket, dek: key.dek });
        let row = ExpiryRow { tenant: TENANT, class: ClassNo(1), bucket, slot: None, dek: key.dek };
        op.change.change(Mutation::PutExpiry(row));
        self.ring.swap(TENANT, op).await.unwrap();
        self.erased.extend(self.expiring.iter().filter(|v| v.bucket == bucket).map(|v| v.plain));
        self.expiring.retain(|v| v.bucket != bucket);
    }

    /// Retags everyone under the next version of the index secret and drops the last one.
    pub async fn rotate_index(&mut self) {
        let old = self.index;
        self.index = SecretVersion(old.0 + 1);
        if self.mutant == Some(Mutant::IndexOutside) {
            self.put_index_outside().await;
        }
        let mut change = ChangeSet::default();
        let people: Vec<(SubjectUid, usize)> = self.subjects.iter().map(|(uid, s)| (*uid, s.phone)).collect();
        for (uid, phone) in people {
            change.change(self.tag(uid, phone));
        }
        change.change(Mutation::DeleteTermsOfVersion { tenant: TENANT, version: old, limit: u32::MAX });
        self.spy.commit(change).await.unwrap();
        if self.mutant != Some(Mutant::IndexOutside) {
            let slots = vec![secret_slot(SecretKind::Index, old)];
            self.ring.swap(TENANT, SwapOp { slots, ..SwapOp::default() }).await.unwrap();
        }
        self.searchable_erased.iter_mut().for_each(|(_, _, over)| *over = true);
    }

    pub async fn rotate_root(&mut self) {
        self.ring.swap(TENANT, SwapOp::default()).await.unwrap();
    }
}
