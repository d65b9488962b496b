//! Items of many-valued fields: messages, invoices, log lines. Each is sealed for itself; those of one (subject, field,
//! bucket) form a group whose rolling MAC shows at listing that one is missing, older or moved.
//!
//! The group's `sum` is the XOR of HMACs of its items under the class's MAC key, and its `mac` binds sum, count and
//! revision: adding and removing one item costs the same however many there are. The rollback of a whole group together
//! with its row is not seen (a stated exception, like that of a whole subject).

use serde::{Deserialize, Serialize};

use crate::access::{Verb, View};
use crate::audit::{Action, Fields, Outcome};
use crate::clock::Timestamp;
use crate::crypto::aad::{Aad, Place};
use crate::crypto::aead::{MAX_SEALS, TAG};
use crate::crypto::keys::ClassKeys;
use crate::crypto::{blind_index, random};
use crate::ids::*;
use crate::keyring::{ClassRef, KeyRef};
use crate::policy::compiled::{Ask, Decision, FieldRule, Policy};
use crate::policy::value::{Value, check_now};
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::{Call, Context};
use crate::vault::error::{VaultError, Violation};
use crate::vault::find::Key;
use crate::vault::read::{open_value, plain_bytes};
use crate::vault::request::Request;

/// An item to be appended.
pub struct NewItem {
    pub value: Value,
    /// When it arose; the time of the call if not given.
    pub origin: Option<Timestamp>,
}

/// What an append answers for each item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Appended {
    pub item: ItemNo,
    pub expire: Option<Timestamp>,
}

/// What an append answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppendDone {
    pub items: Vec<Appended>,
    pub at: Timestamp,
}

/// An item as shown.
pub struct ShownItem {
    pub item: ItemNo,
    pub bucket: Bucket,
    pub value: Value,
    pub view: View,
    pub origin: Timestamp,
    pub expire: Option<Timestamp>,
    pub revision: Revision,
}

/// Where a listing goes on: after this item of this bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ItemCursor {
    pub bucket: Bucket,
    pub item: ItemNo,
}

/// A page of items.
pub struct ItemPage {
    pub uid: SubjectUid,
    pub items: Vec<ShownItem>,
    pub next: Option<ItemCursor>,
}

impl ItemNo {
    /// A number for an item of that origin: sorts by time, unique by 20 random bits.
    pub fn at(origin: Timestamp) -> Self {
        let random = u32::from_be_bytes(random::bytes()) & 0xf_ffff;
        ItemNo((origin_part(origin) << 20) | i64::from(random))
    }
}

/// What an item's number keeps of its origin: milliseconds, 43 bits.
fn origin_part(origin: Timestamp) -> i64 {
    origin.0.clamp(0, (1 << 43) - 1)
}

/// What a hold keeps beyond its time is read for the hold's purpose alone, which was decided before.
fn kept_by_hold(snapshot: &SubjectSnapshot, rule: &FieldRule) -> bool {
    snapshot.class(rule.class).is_some_and(|row| row.state == ClassState::Restricted)
}

/// MAC of one item, as it goes into its group's sum.
fn item_mac(keys: &ClassKeys, key: &ItemGroupKey, row: &ItemRow) -> [u8; 16] {
    let tag = &row.envelope[row.envelope.len().saturating_sub(TAG)..];
    let numbers = [row.item.0, row.revision.0 as i64, row.origin.0, row.expire.map_or(i64::MAX, |t| t.0)];
    let numbers = numbers.map(i64::to_be_bytes).concat();
    keys.manifest(&[b"item", &group_bytes(key), &numbers, tag])
}

fn group_bytes(key: &ItemGroupKey) -> [u8; 19] {
    let mut out = [0; 19];
    out[..4].copy_from_slice(&key.tenant.0.to_be_bytes());
    out[4] = key.class.0;
    out[5..9].copy_from_slice(&key.bucket.0.to_be_bytes());
    out[9..17].copy_from_slice(&key.uid.0.to_be_bytes());
    out[17..].copy_from_slice(&key.field.0.to_be_bytes());
    out
}

/// MAC of a group's row.
fn group_mac(keys: &ClassKeys, row: &ItemGroupRow) -> [u8; 16] {
    let (count, revision) = (row.count.to_be_bytes(), row.revision.0.to_be_bytes());
    keys.manifest(&[b"group", &group_bytes(&row.key), &count, &revision, &row.sum])
}

/// A group's row with items put in and taken out.
pub(crate) struct GroupEdit {
    row: ItemGroupRow,
    former: Revision,
}

impl GroupEdit {
    /// Starts from the stored row, which must be as it was written, or from nothing.
    pub(crate) fn open(keys: &ClassKeys, key: ItemGroupKey, stored: Option<&ItemGroupRow>) -> Result<Self, VaultError> {
        match stored {
            Some(row) => {
                if !blind_index::equal(&group_mac(keys, row), &row.mac) {
                    return Err(VaultError::DataLoss);
                }
                Ok(GroupEdit { row: row.clone(), former: row.revision })
            }
            None => {
                let row = ItemGroupRow { key, count: 0, revision: Revision(0), sum: [0; 16], mac: [0; 16] };
                Ok(GroupEdit { row, former: Revision(0) })
            }
        }
    }

    /// Starts from nothing in the place of a stored row: for items that are all sealed anew.
    pub(crate) fn anew(stored: &ItemGroupRow) -> Self {
        let row = ItemGroupRow { key: stored.key, count: 0, revision: Revision(0), sum: [0; 16], mac: [0; 16] };
        GroupEdit { row, former: stored.revision }
    }

    /// Puts an item in or takes it out (XOR is its own inverse).
    pub(crate) fn toggle(&mut self, keys: &ClassKeys, item: &ItemRow, added: bool) {
        let mac = item_mac(keys, &self.row.key, item);
        self.row.sum.iter_mut().zip(mac).for_each(|(s, m)| *s ^= m);
        self.row.count = if added { self.row.count + 1 } else { self.row.count.saturating_sub(1) };
    }

    /// Adds the row's change and its precondition.
    pub(crate) fn finish(mut self, keys: &ClassKeys, change: &mut ChangeSet) {
        let ItemGroupKey { uid, field, bucket, .. } = self.row.key;
        change.require(Precondition::ItemGroupAt { uid, field, bucket, revision: self.former });
        if self.row.count == 0 {
            change.change(Mutation::DeleteItemGroup { uid, field, bucket });
            return;
        }
        self.row.revision = Revision(self.former.0 + 1);
        self.row.mac = group_mac(keys, &self.row);
        change.change(Mutation::PutItemGroup(self.row));
    }
}

/// Where an item's value belongs, for its AAD.
pub(crate) fn item_place(vault: VaultId, dek: DekId, row: &ItemRow) -> Place {
    Place {
        vault,
        tenant: row.group.tenant,
        uid: row.group.uid,
        class: row.group.class,
        field: row.group.field,
        item: row.item.0,
        dek,
        bucket: row.group.bucket,
        revision: row.revision,
    }
}

impl Vault {
    fn many_rule<'p>(&self, policy: &'p Policy, field: FieldNo) -> Result<&'p FieldRule, VaultError> {
        let at = |rule: &str| Violation { path: "field_id".into(), field: Some(field), rule: rule.into() };
        match policy.field(field) {
            Some(rule) if rule.many => Ok(rule),
            Some(_) => Err(VaultError::Invalid(vec![at("the field is single-valued: use PutFields and GetFields")])),
            None => Err(VaultError::UnknownField(vec![at("no field with this number in the schema")])),
        }
    }

    /// Appends items to a many-valued field of a subject that is there: all or none.
    pub async fn append_items(
        &self,
        call: &Call,
        context: &Context,
        subject: &SubjectId,
        field: FieldNo,
        items: &[NewItem],
        request: Option<Request>,
        validate_only: bool,
    ) -> Result<AppendDone, VaultError> {
        if let Some(answer) = self.repeated(call, request.as_ref()).await? {
            return Ok(answer);
        }
        let policy = call.tenant.policy()?;
        let rule = self.many_rule(policy, field)?;
        if items.is_empty() {
            return Err(VaultError::invalid("items", "must not be empty"));
        }
        let mut invalid = Vec::new();
        for (i, new) in items.iter().enumerate() {
            let at = |rule: &str| Violation { path: format!("items[{i}]"), field: Some(field), rule: rule.into() };
            if let Err(violation) = check_now(policy, rule, &new.value, call.now) {
                invalid.push(at(violation.rule.words()));
            }
            if new.origin.is_some_and(|t| t > call.now.plus_ms(self.options.future_tolerance_ms)) {
                invalid.push(at("origin_time is in the future"));
            }
        }
        if !invalid.is_empty() {
            return Err(VaultError::ValueInvalid(invalid));
        }
        for _ in 0..6 {
            let snapshot = self.resolve(call, context, &Key::Subject(subject.clone())).await?;
            self.must_be_open(&snapshot.subject)?;
            context.stays_here()?;
            let facts = self.facts(call, &snapshot).await?;
            let ask = context.ask(call, Verb::Write, context.purpose()?, snapshot.subject.group, None, false);
            let ask = Ask { facts: facts.view(), ..ask };
            if let decision @ Decision::Deny(_) = policy.decide(&ask, field, None) {
                return Err(VaultError::refused(policy, &ask, field, &decision));
            }
            let sealed = snapshot.class(rule.class).filter(|row| row.slot.is_some()).map_or(0, |row| row.seals);
            if sealed.saturating_add(items.len() as u32) > MAX_SEALS && !validate_only {
                // The key has sealed its limit: what is there moves to the next one first.
                self.rotate_class(call, snapshot.subject.uid, rule.class, None).await?;
                continue;
            }
            let prepared = self.prepare_append(call, context, &snapshot, rule, items).await;
            let (mut change, done, slots) = match prepared {
                Err(VaultError::Conflict) => continue,
                prepared => prepared?,
            };
            if validate_only {
                self.keyring.release(call.tenant.no, &slots);
                return Ok(done);
            }
            self.remember(call, request.as_ref(), &done, &mut change);
            match self.store.commit(change).await {
                Ok(_) => return Ok(done),
                Err(error) => {
                    self.keyring.release(call.tenant.no, &slots);
                    self.retry_or_answer(call, error, request.as_ref()).await?;
                }
            }
        }
        Err(VaultError::Conflict)
    }

    async fn prepare_append(
        &self,
        call: &Call,
        context: &Context,
        snapshot: &SubjectSnapshot,
        rule: &FieldRule,
        items: &[NewItem],
    ) -> Result<(ChangeSet, AppendDone, Vec<Slot>), VaultError> {
        let (tenant, uid, class) = (call.tenant.no, snapshot.subject.uid, rule.class);
        let policy = call.tenant.policy()?;
        let mut change = ChangeSet::default();
        change.require(Precondition::SubjectLive { uid });
        let (row, slots) = self.class_for_writing(call, snapshot, class, &mut change).await?;
        let key = KeyRef { slot: row.slot.ok_or(VaultError::DataLoss)?, dek: row.dek };
        let class_ref = ClassRef { tenant, uid, class, key };
        let retention = self.group_retention(call, snapshot.subject.group).await?;
        let mut rows: Vec<ItemRow> = Vec::with_capacity(items.len());
        for (i, new) in items.iter().enumerate() {
            let origin = new.origin.unwrap_or(call.now);
            let expiry = policy.expiry(class, retention.of(class), origin);
            if expiry.is_some_and(|e| e.at <= call.now) {
                let (field, over) = (rule.no, "its retention is over already".into());
                let violation = Violation { path: format!("items[{i}]"), field: Some(field), rule: over };
                return Err(VaultError::ValueInvalid(vec![violation]));
            }
            let bucket = expiry.map_or(Bucket::NONE, |e| e.bucket);
            let group = ItemGroupKey { tenant, class, bucket, uid, field: rule.no };
            let mut row = ItemRow {
                group,
                item: ItemNo::at(origin),
                revision: Revision(1),
                origin,
                expire: expiry.map(|e| e.at),
                envelope: Vec::new(),
            };
            while rows.iter().any(|r| r.item == row.item) {
                row.item = ItemNo::at(origin);
            }
            let bucket_key = match bucket {
                Bucket::NONE => None,
                bucket => Some(self.expiry_key(call, class, bucket, &mut change).await?),
            };
            let aad = Aad::value(&item_place(self.keyring.vault(), key.dek, &row));
            let plain = plain_bytes(&new.value);
            row.envelope = self.with_keys(class_ref, bucket_key, |keys| keys.cipher().seal(&aad, &plain)).await?;
            rows.push(row);
        }
        let mut buckets: Vec<Bucket> = rows.iter().map(|row| row.group.bucket).collect();
        buckets.sort();
        buckets.dedup();
        let stored = self.store.item_groups(uid, Some(rule.no)).await?;
        for bucket in buckets {
            let group = ItemGroupKey { tenant, class, bucket, uid, field: rule.no };
            let known = stored.iter().find(|row| row.key == group);
            self.with_keys(class_ref, None, |keys| {
                let mut edit = GroupEdit::open(keys, group, known)?;
                rows.iter().filter(|row| row.group == group).for_each(|row| edit.toggle(keys, row, true));
                edit.finish(keys, &mut change);
                Ok::<_, VaultError>(())
            })
            .await??;
        }
        let done = AppendDone {
            items: rows.iter().map(|row| Appended { item: row.item, expire: row.expire }).collect(),
            at: call.now,
        };
        change.change(Mutation::CountSeals { uid, class, by: rows.len() as u32 });
        change.mutations.extend(rows.into_iter().map(Mutation::PutItem));
        let mut entry = call.record(Action::AppendItems, Outcome::Ok);
        entry.subject = Some(uid);
        entry.fields = Fields::new([rule.no]);
        entry.purpose = context.purpose()?;
        self.attach_detail(call, context, &mut entry, std::slice::from_ref(&row)).await?;
        change.note(tenant, entry.to_bytes());
        Ok((change, done, slots))
    }

    /// The class's row, with a key: made (and added to `change`) if the subject has none of this class yet.
    pub(crate) async fn class_for_writing(
        &self,
        call: &Call,
        snapshot: &SubjectSnapshot,
        class: ClassNo,
        change: &mut ChangeSet,
    ) -> Result<(ClassRow, Vec<Slot>), VaultError> {
        let (tenant, uid) = (call.tenant.no, snapshot.subject.uid);
        let former = snapshot.class(class);
        if let Some(row) = former.filter(|row| row.slot.is_some()) {
            if row.state != ClassState::Live {
                return Err(VaultError::WrongState("the class is restricted"));
            }
            change.require(Precondition::ClassLive { uid, class, version: row.version });
            return Ok((row.clone(), Vec::new()));
        }
        let key = self.keyring.allocate(tenant, 1).await?[0];
        let version = DekVersion(former.map_or(1, |row| row.version.0 + 1));
        change.require(Precondition::ClassBelow { uid, class, version });
        change.change(Mutation::TakeSlot { tenant, slot: key.slot });
        let mut row = ClassRow {
            uid,
            tenant,
            class,
            version,
            slot: Some(key.slot),
            dek: key.dek,
            state: ClassState::Live,
            revision: Revision(1),
            data_keys_issued: former.map_or(0, |row| row.data_keys_issued),
            seals: 0,
            next_bucket: None,
            record: Vec::new(),
        };
        let owner = crate::vault::record::Owner { vault: self.keyring.vault(), tenant, uid, class };
        let class_ref = ClassRef { tenant, uid, class, key };
        row.record = self
            .with_keys(class_ref, None, |keys| crate::vault::record::encode(keys, &owner, row.revision, &mut []))
            .await?;
        change.change(Mutation::PutClass(row.clone()));
        Ok((row, vec![key.slot]))
    }

    /// Items of a field by time, after `cursor`, not later than `to` and not before `from`. The first page of a group
    /// checks the group as a whole.
    #[allow(clippy::too_many_arguments)] // the parts of one query
    pub async fn list_items(
        &self,
        call: &Call,
        context: &Context,
        key: &Key,
        field: FieldNo,
        view: Option<View>,
        from: Option<Timestamp>,
        to: Option<Timestamp>,
        cursor: Option<ItemCursor>,
        limit: u32,
    ) -> Result<ItemPage, VaultError> {
        let policy = call.tenant.policy()?;
        let rule = self.many_rule(policy, field)?;
        let purpose = context.purpose()?;
        let snapshot = match self.resolve(call, context, key).await {
            Ok(snapshot) => snapshot,
            Err(error) => {
                let fields = [field.0].into_iter().collect();
                return Err(self.missed(call, Action::ListItems, purpose, &fields, error).await);
            }
        };
        let (class_ref, view) = match self.may_read_items(call, context, policy, rule, &snapshot, view).await {
            Ok(Some(found)) => found,
            Ok(None) => {
                self.note_item_read(call, context, Action::ListItems, &snapshot, field, purpose, Outcome::Ok).await?;
                return Ok(ItemPage { uid: snapshot.subject.uid, items: Vec::new(), next: None });
            }
            Err(error) => {
                self.note_item_read(call, context, Action::ListItems, &snapshot, field, purpose, error.outcome())
                    .await?;
                return Err(error);
            }
        };
        let mut items = Vec::new();
        let mut next = None;
        let today = call.now.day();
        let kept = kept_by_hold(&snapshot, rule);
        let groups = self.store.item_groups(snapshot.subject.uid, Some(field)).await?;
        'groups: for group in &groups {
            let bucket = group.key.bucket;
            if cursor.is_some_and(|c| bucket < c.bucket) || bucket != Bucket::NONE && i64::from(bucket.0) < today {
                continue;
            }
            let resumed = cursor.filter(|c| c.bucket == bucket);
            let mut after = resumed.map_or(ItemNo(-1), |c| c.item);
            if resumed.is_none() {
                self.verify_group(class_ref, group).await?;
            }
            let bucket_key = match bucket {
                Bucket::NONE => None,
                bucket => match self.bucket_key(call, rule.class, bucket) {
                    Some(key) => Some(key),
                    None => continue,
                },
            };
            loop {
                let page = self.store.items(group.key, after, limit.min(500)).await?;
                for row in &page.rows {
                    after = row.item;
                    let inside = from.is_none_or(|t| row.origin >= t) && to.is_none_or(|t| row.origin < t);
                    if !inside || !kept && row.expire.is_some_and(|t| t <= call.now) {
                        continue;
                    }
                    if items.len() == limit as usize {
                        break 'groups;
                    }
                    items.push(self.show_item(class_ref, bucket_key, rule, row, view).await?);
                    next = Some(ItemCursor { bucket, item: row.item });
                }
                if !page.more {
                    break;
                }
            }
        }
        // A full page may have followers; a page that ended by itself has none.
        let next = next.filter(|_| items.len() == limit as usize);
        self.note_item_read(call, context, Action::ListItems, &snapshot, field, purpose, Outcome::Ok).await?;
        Ok(ItemPage { uid: snapshot.subject.uid, items, next })
    }

    /// One item.
    pub async fn get_item(
        &self,
        call: &Call,
        context: &Context,
        key: &Key,
        field: FieldNo,
        item: ItemNo,
        view: Option<View>,
    ) -> Result<(SubjectUid, ShownItem), VaultError> {
        let policy = call.tenant.policy()?;
        let rule = self.many_rule(policy, field)?;
        let purpose = context.purpose()?;
        let snapshot = match self.resolve(call, context, key).await {
            Ok(snapshot) => snapshot,
            Err(error) => {
                let fields = [field.0].into_iter().collect();
                return Err(self.missed(call, Action::GetItem, purpose, &fields, error).await);
            }
        };
        let found = async {
            let (class_ref, view) =
                self.may_read_items(call, context, policy, rule, &snapshot, view).await?.ok_or(VaultError::NotFound)?;
            let row = self.find_item(snapshot.subject.uid, field, item).await?.ok_or(VaultError::NotFound)?;
            if !kept_by_hold(&snapshot, rule) && row.expire.is_some_and(|t| t <= call.now) {
                return Err(VaultError::NotFound);
            }
            let bucket_key = match row.group.bucket {
                Bucket::NONE => None,
                bucket => Some(self.bucket_key(call, rule.class, bucket).ok_or(VaultError::NotFound)?),
            };
            self.show_item(class_ref, bucket_key, rule, &row, view).await
        }
        .await;
        let outcome = found.as_ref().err().map_or(Outcome::Ok, VaultError::outcome);
        self.note_item_read(call, context, Action::GetItem, &snapshot, field, purpose, outcome).await?;
        Ok((snapshot.subject.uid, found?))
    }

    /// An item wherever its bucket is.
    pub(crate) async fn find_item(
        &self,
        uid: SubjectUid,
        field: FieldNo,
        item: ItemNo,
    ) -> Result<Option<ItemRow>, VaultError> {
        for group in self.store.item_groups(uid, Some(field)).await? {
            if let Some(row) = self.store.item(group.key, item).await? {
                return Ok(Some(row));
            }
        }
        Ok(None)
    }

    async fn may_read_items(
        &self,
        call: &Call,
        context: &Context,
        policy: &Policy,
        rule: &FieldRule,
        snapshot: &SubjectSnapshot,
        view: Option<View>,
    ) -> Result<Option<(ClassRef, View)>, VaultError> {
        if snapshot.subject.state == SubjectState::Frozen {
            return Err(VaultError::WrongState("the subject's erasure is under way"));
        }
        let fields = crate::access::FieldSet::from_iter([rule.no.0]);
        let approved = self.take_approval(call, context, &[snapshot.subject.uid], Verb::Read, &fields).await?;
        let facts = self.facts(call, snapshot).await?;
        let ask = context.ask(call, Verb::Read, context.purpose()?, snapshot.subject.group, view, approved);
        let ask = Ask { facts: facts.view(), ..ask };
        let row = snapshot.class(rule.class);
        let held_for = match row {
            Some(row) => self.held_for(call, &snapshot.subject, row, context.purpose()?).await?,
            None => None,
        };
        let view = match policy.decide(&ask, rule.no, held_for) {
            Decision::Allow { view, .. } => view,
            decision => return Err(VaultError::refused(policy, &ask, rule.no, &decision)),
        };
        self.count_subject(call, snapshot.subject.uid)?;
        let Some(row) = row else { return Ok(None) };
        if row.state == ClassState::Restricted && held_for.is_none() {
            return Err(VaultError::WrongState("the class is restricted"));
        }
        let Some(slot) = row.slot else { return Ok(None) };
        let key = KeyRef { slot, dek: row.dek };
        Ok(Some((ClassRef { tenant: row.tenant, uid: row.uid, class: row.class, key }, view)))
    }

    pub(crate) async fn show_item(
        &self,
        class: ClassRef,
        bucket: Option<KeyRef>,
        rule: &FieldRule,
        row: &ItemRow,
        view: View,
    ) -> Result<ShownItem, VaultError> {
        // The number is part of what was sealed, and begins with the origin.
        if row.item.0 >> 20 != origin_part(row.origin) {
            return Err(VaultError::DataLoss);
        }
        let place = item_place(self.keyring.vault(), class.key.dek, row);
        let mut value = self.with_keys(class, bucket, |keys| open_value(keys, &place, &row.envelope)).await??;
        if view == View::Masked {
            value = value.masked(rule).ok_or(VaultError::NotFound)?;
        }
        let bucket = row.group.bucket;
        Ok(ShownItem {
            item: row.item,
            bucket,
            value,
            view,
            origin: row.origin,
            expire: row.expire,
            revision: row.revision,
        })
    }

    /// Walks a whole group and compares its sum: a missing, added or older item is seen.
    pub(crate) async fn verify_group(&self, class: ClassRef, group: &ItemGroupRow) -> Result<(), VaultError> {
        let mut sum = [0u8; 16];
        let mut count = 0u32;
        let mut after = ItemNo(-1);
        loop {
            let page = self.store.items(group.key, after, 1000).await?;
            let Some(last) = page.rows.last() else { break };
            after = last.item;
            count += page.rows.len() as u32;
            self.with_keys(class, None, |keys| {
                let mut part = [0u8; 16];
                for row in &page.rows {
                    let mac = item_mac(keys, &group.key, row);
                    part.iter_mut().zip(mac).for_each(|(s, m)| *s ^= m);
                }
                part
            })
            .await?
            .iter()
            .zip(&mut sum)
            .for_each(|(p, s)| *s ^= p);
            if !page.more {
                break;
            }
        }
        let right = self.with_keys(class, None, |keys| blind_index::equal(&group_mac(keys, group), &group.mac)).await?;
        if right && count == group.count && sum == group.sum { Ok(()) } else { Err(VaultError::DataLoss) }
    }

    #[allow(clippy::too_many_arguments)] // the parts of one audit entry
    async fn note_item_read(
        &self,
        call: &Call,
        context: &Context,
        action: Action,
        snapshot: &SubjectSnapshot,
        field: FieldNo,
        purpose: PurposeNo,
        outcome: Outcome,
    ) -> Result<(), VaultError> {
        let mut entry = call.record(action, outcome);
        entry.subject = Some(snapshot.subject.uid);
        entry.fields = Fields::new([field]);
        entry.purpose = purpose;
        entry.recipient = context.recipient_no();
        self.attach_detail(call, context, &mut entry, &snapshot.classes).await?;
        if context.recipient.is_some() {
            self.note_disclosures(call, std::slice::from_ref(&entry)).await?;
        }
        self.note_read(call, &entry).await?;
        Ok(())
    }

    /// Deletes items: they are hidden and their rows removed. This is not an erasure; `EraseItems` is.
    pub async fn delete_items(
        &self,
        call: &Call,
        context: &Context,
        subject: &SubjectId,
        field: FieldNo,
        items: &[ItemNo],
        request: Option<Request>,
        validate_only: bool,
    ) -> Result<(u32, Timestamp), VaultError> {
        if let Some(answer) = self.repeated(call, request.as_ref()).await? {
            return Ok(answer);
        }
        let policy = call.tenant.policy()?;
        let rule = self.many_rule(policy, field)?;
        for _ in 0..6 {
            let snapshot = self.resolve(call, context, &Key::Subject(subject.clone())).await?;
            self.must_be_open(&snapshot.subject)?;
            let fields = crate::access::FieldSet::from_iter([field.0]);
            let facts = self.facts(call, &snapshot).await?;
            self.may_touch(call, context, &fields, Verb::Delete, snapshot.subject.group, &facts)?;
            let (tenant, uid) = (call.tenant.no, snapshot.subject.uid);
            let mut change = ChangeSet::default();
            change.require(Precondition::SubjectLive { uid });
            let Some(row) = snapshot.class(rule.class).filter(|row| row.state == ClassState::Live) else {
                return Err(VaultError::NotFound);
            };
            change.require(Precondition::ClassLive { uid, class: rule.class, version: row.version });
            let key = KeyRef { slot: row.slot.ok_or(VaultError::DataLoss)?, dek: row.dek };
            let class_ref = ClassRef { tenant, uid, class: rule.class, key };
            let mut found: Vec<ItemRow> = Vec::new();
            for item in items {
                if let Some(row) = self.find_item(uid, field, *item).await?
                    && !found.iter().any(|r| r.item == row.item)
                {
                    found.push(row);
                }
            }
            for group in self.store.item_groups(uid, Some(field)).await? {
                let gone: Vec<&ItemRow> = found.iter().filter(|row| row.group == group.key).collect();
                if gone.is_empty() {
                    continue;
                }
                self.with_keys(class_ref, None, |keys| {
                    let mut edit = GroupEdit::open(keys, group.key, Some(&group))?;
                    gone.iter().for_each(|row| edit.toggle(keys, row, false));
                    edit.finish(keys, &mut change);
                    Ok::<_, VaultError>(())
                })
                .await??;
            }
            for row in &found {
                let ItemGroupKey { tenant, class, bucket, uid, field } = row.group;
                change.change(Mutation::DeleteItem { tenant, class, bucket, uid, field, item: row.item });
            }
            let done = (found.len() as u32, call.now);
            if validate_only {
                return Ok(done);
            }
            let mut entry = call.record(Action::DeleteItems, Outcome::Ok);
            entry.subject = Some(uid);
            entry.fields = Fields::new([field]);
            entry.purpose = context.purpose()?;
            self.attach_detail(call, context, &mut entry, &snapshot.classes).await?;
            change.note(tenant, entry.to_bytes());
            self.remember(call, request.as_ref(), &done, &mut change);
            match self.store.commit(change).await {
                Ok(_) => return Ok(done),
                Err(error) => self.retry_or_answer(call, error, request.as_ref()).await?,
            }
        }
        Err(VaultError::Conflict)
    }
}
