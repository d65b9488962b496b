//! Reading items of many-valued fields: a page by time, or one by its number.

use crate::access::{FieldSet, Verb, View};
use crate::audit::{Action, Fields, Outcome};
use crate::clock::Timestamp;
use crate::ids::*;
use crate::keyring::{ClassRef, KeyRef};
use crate::policy::compiled::{Ask, Decision, FieldRule, Policy};
use crate::policy::value::Value;
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::{Call, Context};
use crate::vault::error::VaultError;
use crate::vault::find::Key;
use crate::vault::item::many_rule;
use crate::vault::item_rows::{item_place, origin_part};
use crate::vault::read::open_value;

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

/// What a hold keeps beyond its time is read for the hold's purpose alone, which was decided before.
fn kept_by_hold(snapshot: &SubjectSnapshot, rule: &FieldRule) -> bool {
    snapshot.class(rule.class).is_some_and(|row| row.state == ClassState::Restricted)
}

impl Vault {
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
        let rule = many_rule(policy, field)?;
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
        let rule = many_rule(policy, field)?;
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
        let fields = FieldSet::from_iter([rule.no.0]);
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
}
