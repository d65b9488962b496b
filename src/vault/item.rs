//! Items of many-valued fields: messages, invoices, log lines. Each is sealed for itself; here they are appended and
//! deleted.

use serde::{Deserialize, Serialize};

use crate::access::{FieldSet, Verb};
use crate::audit::{Action, Fields, Outcome};
use crate::clock::Timestamp;
use crate::crypto::aad::Aad;
use crate::crypto::aead::MAX_SEALS;
use crate::ids::*;
use crate::keyring::{ClassRef, KeyRef};
use crate::policy::compiled::{Ask, Decision, FieldRule, Policy};
use crate::policy::value::{Value, check_now};
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::{Call, Context};
use crate::vault::error::{VaultError, Violation};
use crate::vault::find::Key;
use crate::vault::item_rows::{GroupEdit, item_place};
use crate::vault::read::plain_bytes;
use crate::vault::record::{self, Owner};
use crate::vault::request::Request;
use crate::vault::retry::ATTEMPTS;

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

/// The rule of a many-valued field.
pub(super) fn many_rule(policy: &Policy, field: FieldNo) -> Result<&FieldRule, VaultError> {
    let at = |rule: &str| Violation { path: "field_id".into(), field: Some(field), rule: rule.into() };
    match policy.field(field) {
        Some(rule) if rule.many => Ok(rule),
        Some(_) => Err(VaultError::Invalid(vec![at("the field is single-valued: use PutFields and GetFields")])),
        None => Err(VaultError::UnknownField(vec![at("no field with this number in the schema")])),
    }
}

impl Vault {
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
        let rule = many_rule(policy, field)?;
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
        for _ in 0..ATTEMPTS {
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
        // A number that is taken is seen by the store, and the next attempt draws others.
        change.mutations.extend(rows.into_iter().map(Mutation::AddItem));
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
        let owner = Owner { vault: self.keyring.vault(), tenant, uid, class };
        let class_ref = ClassRef { tenant, uid, class, key };
        row.record =
            self.with_keys(class_ref, None, |keys| record::encode(keys, &owner, row.revision, &mut [])).await?;
        change.change(Mutation::PutClass(row.clone()));
        Ok((row, vec![key.slot]))
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
        let rule = many_rule(policy, field)?;
        for _ in 0..ATTEMPTS {
            let snapshot = self.resolve(call, context, &Key::Subject(subject.clone())).await?;
            self.must_be_open(&snapshot.subject)?;
            let fields = FieldSet::from_iter([field.0]);
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
