//! Carrying the values of a (subject, class) over to other keys by a rule: to other expiry buckets, or all of them to
//! the next version of the data key.
//!
//! Another bucket keeps the data key; the copy under the former bucket's key dies when that bucket does. The next data
//! key ends what is left behind at once: the former version's slot is dropped in the same change set.

use std::collections::BTreeMap;

use crate::audit::{Action, Outcome};
use crate::clock::Timestamp;
use crate::crypto::aad::{Aad, Place};
use crate::crypto::keys::ClassKeys;
use crate::ids::*;
use crate::keyring::{ClassRef, KeyRef, SwapError, SwapOp, Swapped};
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::error::VaultError;
use crate::vault::item_rows::{GroupEdit, item_place};
use crate::vault::record::{self, Entry, Owner, RecordView};
use crate::vault::retry::ATTEMPTS;
use crate::vault::value::SealedValue;

/// Most values that move to a new key in one change, about 1 KB of memory each while they do. A job may take longer than
/// a caller, who gets [`crate::vault::reseal::MOST_SURVIVORS`].
const MOST_CARRIED: u32 = 100_000;
/// Items read at a time.
const PAGE: u32 = 500;

/// A stored value, as the rule that decides on it sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stored {
    pub field: FieldNo,
    /// `None` for a single-valued field.
    pub item: Option<ItemNo>,
    pub bucket: Bucket,
    pub origin: Timestamp,
    pub expire: Option<Timestamp>,
}

/// What becomes of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Keep,
    Drop,
    Move { bucket: Bucket, expire: Option<Timestamp> },
}

/// Decides on each value of a class.
pub(crate) type Rule<'a> = &'a (dyn Fn(&Stored) -> Fate + Send + Sync);

/// What was carried over of a record, and what was done on the way.
#[derive(Default)]
pub(crate) struct Carried {
    /// The record's values, at their new places.
    pub values: Vec<SealedValue>,
    pub dropped: Vec<Stored>,
    /// Values sealed again.
    pub seals: u32,
    /// Whether the record itself changed.
    pub touched: bool,
}

/// A class under its next data key; not yet committed.
pub(crate) struct Rekeyed {
    /// To be dropped by the swap that commits it.
    former: Slot,
    fresh: Slot,
    pub dropped: Vec<Stored>,
}

/// Keys of the buckets met so far; `None`: its key is gone, and with it its values.
type Buckets = BTreeMap<Bucket, Option<KeyRef>>;

impl Vault {
    /// Where a class's key lies.
    pub(crate) fn class_ref(&self, row: &ClassRow) -> Result<ClassRef, VaultError> {
        let key = KeyRef { slot: row.slot.ok_or(VaultError::DataLoss)?, dek: row.dek };
        Ok(ClassRef { tenant: row.tenant, uid: row.uid, class: row.class, key })
    }

    fn owner(&self, row: &ClassRow) -> Owner {
        Owner { vault: self.keyring.vault(), tenant: row.tenant, uid: row.uid, class: row.class }
    }

    /// The key of a bucket that lives; the change then requires that it still does. The outer `None`: it is gone.
    fn living(
        &self,
        call: &Call,
        class: ClassNo,
        bucket: Bucket,
        known: &mut Buckets,
        change: &mut ChangeSet,
    ) -> Option<Option<KeyRef>> {
        if bucket == Bucket::NONE {
            return Some(None);
        }
        let key = *known.entry(bucket).or_insert_with(|| {
            let key = self.bucket_key(call, class, bucket)?;
            change.require(Precondition::ExpiryLive { tenant: call.tenant.no, class, bucket, dek: key.dek });
            Some(key)
        });
        key.map(Some)
    }

    /// As `living`, and makes the bucket's key if there is none.
    async fn target(
        &self,
        call: &Call,
        class: ClassNo,
        bucket: Bucket,
        known: &mut Buckets,
        change: &mut ChangeSet,
    ) -> Result<Option<KeyRef>, VaultError> {
        if let Some(key) = self.living(call, class, bucket, known, change) {
            return Ok(key);
        }
        let key = self.expiry_key(call, class, bucket, change).await?;
        known.insert(bucket, Some(key));
        Ok(Some(key))
    }

    /// Opens the values of a class that the rule does not drop and seals them again: all of them under `fresh`, or,
    /// without it, those that move to another bucket. Adds the items' changes, of those of the subject's `groups` that
    /// are of the class; the record's values are answered. Without `fresh`, only values of the bucket `within` are looked
    /// at.
    #[allow(clippy::too_many_arguments)] // the class, what it moves to, and what is added to
    pub(crate) async fn carry(
        &self,
        call: &Call,
        row: &ClassRow,
        groups: &[ItemGroupRow],
        fresh: Option<KeyRef>,
        within: Option<Bucket>,
        rule: Rule<'_>,
        change: &mut ChangeSet,
    ) -> Result<Carried, VaultError> {
        let old = self.class_ref(row)?;
        let new = ClassRef { key: fresh.unwrap_or(old.key), ..old };
        let mut known = Buckets::new();
        let mut carried = Carried::default();
        self.carry_record(call, row, old, new, within, rule, &mut known, change, &mut carried).await?;
        self.carry_items(call, groups, old, new, within, rule, &mut known, change, &mut carried).await?;
        Ok(carried)
    }

    #[allow(clippy::too_many_arguments)] // one half of `carry`
    async fn carry_record(
        &self,
        call: &Call,
        row: &ClassRow,
        old: ClassRef,
        new: ClassRef,
        within: Option<Bucket>,
        rule: Rule<'_>,
        known: &mut Buckets,
        change: &mut ChangeSet,
        carried: &mut Carried,
    ) -> Result<(), VaultError> {
        let revision = Revision(row.revision.0 + 1);
        let owner = self.owner(row);
        let all_anew = old.key != new.key;
        let place = |dek, revision, stored: &Stored, bucket| Place {
            vault: owner.vault,
            tenant: owner.tenant,
            uid: owner.uid,
            class: owner.class,
            field: stored.field,
            item: 0,
            dek,
            bucket,
            revision,
        };
        for (stored, written, sealed) in self.stored_values(call, row, old).await? {
            let looked_at = within.is_none_or(|bucket| bucket == stored.bucket);
            let (bucket, expire) = match if looked_at { rule(&stored) } else { Fate::Keep } {
                Fate::Drop => {
                    carried.dropped.push(stored);
                    carried.touched = true;
                    continue;
                }
                Fate::Keep if !all_anew => {
                    let Stored { field, bucket, origin, expire, .. } = stored;
                    carried.values.push(SealedValue { field, bucket, origin, expire, revision: written, sealed });
                    continue;
                }
                Fate::Keep => (stored.bucket, stored.expire),
                Fate::Move { bucket, expire } => (bucket, expire),
            };
            carried.touched = true;
            // The bucket's key is gone: so is the value.
            let Some(from) = self.living(call, row.class, stored.bucket, known, change) else {
                carried.dropped.push(stored);
                continue;
            };
            let aad = Aad::value(&place(old.key.dek, written, &stored, stored.bucket));
            let plain = self.with_keys(old, from, |keys| keys.cipher().open(&aad, &sealed)).await?;
            let plain = plain.map_err(|_| VaultError::DataLoss)?;
            let to = self.target(call, row.class, bucket, known, change).await?;
            let aad = Aad::value(&place(new.key.dek, revision, &stored, bucket));
            let sealed = self.with_keys(new, to, |keys| keys.cipher().seal(&aad, &plain)).await?;
            let Stored { field, origin, .. } = stored;
            carried.values.push(SealedValue { field, bucket, origin, expire, revision, sealed });
            carried.seals += 1;
        }
        Ok(())
    }

    /// The values of a record that is as it was written, each with the revision it was written in.
    async fn stored_values(
        &self,
        call: &Call,
        row: &ClassRow,
        class: ClassRef,
    ) -> Result<Vec<(Stored, Revision, Vec<u8>)>, VaultError> {
        if row.record.is_empty() {
            return Ok(Vec::new());
        }
        let owner = self.owner(row);
        let view = RecordView::parse(&row.record).map_err(|_| VaultError::DataLoss)?;
        if view.revision() != row.revision {
            return Err(VaultError::DataLoss);
        }
        let walked = self
            .with_keys(class, None, |keys| {
                let mut found = Vec::new();
                let walked = view.walk(keys, &owner, call.now.day(), |entry: Entry<'_>| {
                    let Entry { field, bucket, origin, expire, .. } = entry;
                    let stored = Stored { field, item: None, bucket, origin, expire };
                    found.push((stored, entry.revision, entry.sealed.to_vec()));
                });
                walked.map(|()| found)
            })
            .await?;
        walked.map_err(|_| VaultError::DataLoss)
    }

    #[allow(clippy::too_many_arguments)] // one half of `carry`
    async fn carry_items(
        &self,
        call: &Call,
        groups: &[ItemGroupRow],
        old: ClassRef,
        new: ClassRef,
        within: Option<Bucket>,
        rule: Rule<'_>,
        known: &mut Buckets,
        change: &mut ChangeSet,
        carried: &mut Carried,
    ) -> Result<(), VaultError> {
        let ClassRef { tenant, uid, class, .. } = old;
        let all_anew = old.key != new.key;
        let of_it = |group: &&ItemGroupRow| (group.key.uid, group.key.class) == (uid, class);
        let groups: Vec<ItemGroupRow> = groups.iter().filter(of_it).cloned().collect();
        if all_anew {
            let count = u32::try_from(groups.len()).map_err(|_| VaultError::DataLoss)?;
            change.require(Precondition::ItemGroupsOf { tenant, uid, class, count });
        }
        let mut edits: BTreeMap<(FieldNo, Bucket), GroupEdit> = BTreeMap::new();
        for group in &groups {
            let ItemGroupKey { field, bucket, .. } = group.key;
            if within.is_some_and(|within| within != bucket) {
                continue;
            }
            let Some(from) = self.living(call, class, bucket, known, change) else {
                // Left to the sweep, which needs no key.
                change.require(Precondition::ItemGroupAt { uid, field, bucket, revision: group.revision });
                continue;
            };
            self.verify_group(old, group).await?;
            if all_anew {
                // What moved here from a group before this one is in it already.
                edits.entry((field, bucket)).or_insert_with(|| GroupEdit::anew(group));
            }
            let mut after = ItemNo(-1);
            loop {
                let page = self.store.items(group.key, after, PAGE).await?;
                let Some(last) = page.rows.last() else { break };
                after = last.item;
                for row in &page.rows {
                    let stored = Stored { field, item: Some(row.item), bucket, origin: row.origin, expire: row.expire };
                    let target = match rule(&stored) {
                        Fate::Keep if !all_anew => continue,
                        Fate::Keep => Some((bucket, row.expire)),
                        Fate::Move { bucket, expire } => Some((bucket, expire)),
                        Fate::Drop => None,
                    };
                    if !all_anew {
                        self.edit_group(new, all_anew, group.key, &groups, &mut edits, row, false).await?;
                    }
                    if target.is_none_or(|(to, _)| to != bucket) {
                        change.change(Mutation::DeleteItem { tenant, class, bucket, uid, field, item: row.item });
                    }
                    let Some((to, expire)) = target else {
                        carried.dropped.push(stored);
                        continue;
                    };
                    let aad = Aad::value(&item_place(self.keyring.vault(), old.key.dek, row));
                    let plain = self.with_keys(old, from, |keys| keys.cipher().open(&aad, &row.envelope)).await?;
                    let plain = plain.map_err(|_| VaultError::DataLoss)?;
                    let to_key = self.target(call, class, to, known, change).await?;
                    let mut moved = ItemRow {
                        group: ItemGroupKey { bucket: to, ..group.key },
                        item: row.item,
                        revision: Revision(row.revision.0 + 1),
                        origin: row.origin,
                        expire,
                        envelope: Vec::new(),
                    };
                    let aad = Aad::value(&item_place(self.keyring.vault(), new.key.dek, &moved));
                    moved.envelope = self.with_keys(new, to_key, |keys| keys.cipher().seal(&aad, &plain)).await?;
                    self.edit_group(new, all_anew, moved.group, &groups, &mut edits, &moved, true).await?;
                    change.change(match to == bucket {
                        true => Mutation::PutItem(moved),
                        false => Mutation::AddItem(moved),
                    });
                    carried.seals += 1;
                    if all_anew && carried.seals > MOST_CARRIED {
                        return Err(VaultError::WrongState("the class holds more items than one reseal carries over"));
                    }
                }
                if !page.more {
                    break;
                }
            }
        }
        if !edits.is_empty() {
            self.with_keys(new, None, |keys| {
                std::mem::take(&mut edits).into_values().for_each(|edit| edit.finish(keys, change));
            })
            .await?;
        }
        Ok(())
    }

    /// Puts an item into its group's sum or takes it out, under the keys of `class`; `anew` where these are not the ones
    /// that the stored groups were written with.
    #[allow(clippy::too_many_arguments)] // the parts of one step of `carry_items`
    async fn edit_group(
        &self,
        class: ClassRef,
        anew: bool,
        key: ItemGroupKey,
        groups: &[ItemGroupRow],
        edits: &mut BTreeMap<(FieldNo, Bucket), GroupEdit>,
        item: &ItemRow,
        added: bool,
    ) -> Result<(), VaultError> {
        let at = (key.field, key.bucket);
        let stored = groups.iter().find(|group| group.key == key);
        self.with_keys(class, None, |keys: &ClassKeys| {
            if let std::collections::btree_map::Entry::Vacant(place) = edits.entry(at) {
                let edit = match stored.filter(|_| anew) {
                    Some(row) => GroupEdit::anew(row),
                    None => GroupEdit::open(keys, key, stored)?,
                };
                place.insert(edit);
            }
            edits.get_mut(&at).expect("it was put there just above").toggle(keys, item, added);
            Ok(())
        })
        .await?
    }

    /// The record of what was carried over, as the class's next row.
    async fn next_row(&self, row: &ClassRow, key: KeyRef, carried: &Carried) -> Result<ClassRow, VaultError> {
        let class = ClassRef { tenant: row.tenant, uid: row.uid, class: row.class, key };
        let owner = self.owner(row);
        let revision = Revision(row.revision.0 + 1);
        let mut entries: Vec<Entry<'_>> = carried.values.iter().map(SealedValue::entry).collect();
        let record = self.with_keys(class, None, |keys| record::encode(keys, &owner, revision, &mut entries)).await?;
        let next_bucket = entries.iter().map(|e| e.bucket).filter(|bucket| *bucket != Bucket::NONE).min();
        let anew = key.dek != row.dek;
        let seals = carried.seals;
        Ok(ClassRow {
            version: if anew { DekVersion(row.version.0 + 1) } else { row.version },
            slot: Some(key.slot),
            dek: key.dek,
            revision,
            seals: if anew { seals } else { row.seals.saturating_add(seals) },
            next_bucket,
            record,
            ..row.clone()
        })
    }

    /// Adds to `change` what moves a class to its next data key, without the values that the rule drops. The caller
    /// swaps `former` away together with the change, and gives the new slot back if that does not commit.
    ///
    /// # Errors
    /// `WrongState` above [`MOST_CARRIED`] values that stay. The slot is given back.
    pub(crate) async fn rekey(
        &self,
        call: &Call,
        row: &ClassRow,
        rule: Rule<'_>,
        change: &mut ChangeSet,
    ) -> Result<Rekeyed, VaultError> {
        let groups = self.store.item_groups(row.uid, None).await?;
        let key = self.keyring.allocate(row.tenant, 1).await?[0];
        let rekeyed = self.rekey_to(call, row, &groups, key, rule, change).await;
        rekeyed.inspect_err(|_| self.keyring.release(row.tenant, &[key.slot]))
    }

    /// The same under a key that was given already, with the subject's item groups at hand.
    async fn rekey_to(
        &self,
        call: &Call,
        row: &ClassRow,
        groups: &[ItemGroupRow],
        key: KeyRef,
        rule: Rule<'_>,
        change: &mut ChangeSet,
    ) -> Result<Rekeyed, VaultError> {
        let former = row.slot.ok_or(VaultError::DataLoss)?;
        let (tenant, uid, class) = (row.tenant, row.uid, row.class);
        change.require(Precondition::ClassStill { uid, class, version: row.version, revision: row.revision });
        let carried = self.carry(call, row, groups, Some(key), None, rule, change).await?;
        let next = self.next_row(row, key, &carried).await?;
        change.change(Mutation::TakeSlot { tenant, slot: key.slot });
        change.change(Mutation::PutClass(next));
        Ok(Rekeyed { former, fresh: key.slot, dropped: carried.dropped })
    }

    /// Moves the values of one bucket (of all, where `within` is `None`) as the rule says, under the same data key.
    /// Answers how many values were moved or removed.
    pub(crate) async fn rebucket(
        &self,
        call: &Call,
        uid: SubjectUid,
        class: ClassNo,
        within: Option<Bucket>,
        rule: Rule<'_>,
    ) -> Result<u64, VaultError> {
        for _ in 0..ATTEMPTS {
            let Some(snapshot) = self.store.subject_by_uid(uid).await? else { return Ok(0) };
            let Some(row) = snapshot.class(class).filter(|row| row.slot.is_some()) else { return Ok(0) };
            if row.tenant != call.tenant.no {
                return Ok(0);
            }
            let mut change = ChangeSet::default();
            let groups = self.store.item_groups(uid, None).await?;
            let carried = self.carry(call, row, &groups, None, within, rule, &mut change).await?;
            let count = u64::from(carried.seals) + carried.dropped.len() as u64;
            if count == 0 && !carried.touched {
                return Ok(0);
            }
            self.put_carried(row, &carried, &mut change).await?;
            match self.store.commit(change).await {
                Ok(_) => return Ok(count),
                Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(VaultError::Conflict)
    }

    /// Moves a class to its next data key with everything in it.
    pub async fn rotate_class(
        &self,
        call: &Call,
        uid: SubjectUid,
        class: ClassNo,
        operation: Option<ObjectId>,
    ) -> Result<(), VaultError> {
        for _ in 0..ATTEMPTS {
            let snapshot = self.store.subject_by_uid(uid).await?.ok_or(VaultError::NotFound)?;
            let row = snapshot.class(class).filter(|row| row.slot.is_some()).ok_or(VaultError::NotFound)?;
            if row.tenant != call.tenant.no {
                return Err(VaultError::NotFound);
            }
            let mut change = ChangeSet::default();
            let one = self.rekey(call, row, &|_| Fate::Keep, &mut change).await?;
            note_rotation(call, row, operation, &mut change);
            match self.swap_rekeyed(call, one, change).await {
                Ok(_) | Err(SwapError::Unfinished { .. }) => return Ok(()),
                Err(SwapError::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(VaultError::Conflict)
    }

    /// Classes of one subject as the swap that moves them to `keys`, as many as there are rows; what is thereby given
    /// stays the caller's to give back. They go together, since two swaps of one subject cannot share a commit.
    pub(crate) async fn renew_classes(
        &self,
        call: &Call,
        rows: &[&ClassRow],
        groups: &[ItemGroupRow],
        keys: &[KeyRef],
        operation: ObjectId,
    ) -> Result<SwapOp, VaultError> {
        let mut op = SwapOp::default();
        for (row, key) in rows.iter().zip(keys) {
            let one = self.rekey_to(call, row, groups, *key, &|_| Fate::Keep, &mut op.change).await?;
            note_rotation(call, row, Some(operation), &mut op.change);
            op.slots.push(one.former);
        }
        Ok(op)
    }

    /// Commits a class under its next data key, dropping the former one. The new slot is given back if that failed.
    pub(crate) async fn swap_rekeyed(
        &self,
        call: &Call,
        rekeyed: Rekeyed,
        change: ChangeSet,
    ) -> Result<Swapped, SwapError> {
        let op = SwapOp { slots: vec![rekeyed.former], change, ..SwapOp::default() };
        let swapped = self.keyring.swap(call.tenant.no, op).await;
        self.give_back(call, &[rekeyed.fresh], &swapped);
        swapped
    }

    /// Gives back what a swap was to use, where it is certain that it did not.
    pub(crate) fn give_back(&self, call: &Call, fresh: &[Slot], swapped: &Result<Swapped, SwapError>) {
        if let Err(SwapError::Conflict(_) | SwapError::Busy | SwapError::KeeperAway(_)) = swapped {
            self.keyring.release(call.tenant.no, fresh);
        }
    }

    /// Adds the class's next row under the same data key, and the end of what was dropped from it.
    pub(crate) async fn put_carried(
        &self,
        row: &ClassRow,
        carried: &Carried,
        change: &mut ChangeSet,
    ) -> Result<(), VaultError> {
        let (tenant, uid, class) = (row.tenant, row.uid, row.class);
        change.require(Precondition::ClassStill { uid, class, version: row.version, revision: row.revision });
        if carried.touched {
            drop_terms(tenant, uid, &carried.dropped, change);
            let key = self.class_ref(row)?.key;
            change.change(Mutation::PutClass(self.next_row(row, key, carried).await?));
        }
        Ok(())
    }
}

fn note_rotation(call: &Call, row: &ClassRow, operation: Option<ObjectId>, change: &mut ChangeSet) {
    let mut entry = call.record(Action::RotateKeys, Outcome::Ok);
    (entry.subject, entry.class, entry.operation) = (Some(row.uid), Some(row.class), operation);
    change.note(row.tenant, entry.to_bytes());
}

/// What is gone is not found any more.
pub(crate) fn drop_terms(tenant: TenantNo, uid: SubjectUid, dropped: &[Stored], change: &mut ChangeSet) {
    for gone in dropped.iter().filter(|gone| gone.item.is_none()) {
        change.change(Mutation::DeleteTerms { tenant, uid, field: Some(gone.field) });
    }
}
