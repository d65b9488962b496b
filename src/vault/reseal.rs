//! Erasing less than a class: what stays of a subject's class is resealed under a new version of its data key, and the
//! old version's key is dropped in the same change set. The cost grows with what stays, so bulky things have a class of
//! their own. The same serves a class whose key has sealed its limit.

use crate::access::Verb;
use crate::audit::{Action, Fields, Outcome};
use crate::crypto::aad::{Aad, Place};
use crate::ids::*;
use crate::keyring::{ClassRef, KeyRef, SwapError, SwapOp};
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::{Call, Context};
use crate::vault::erase::{Erasure, erased_entries};
use crate::vault::error::{VaultError, Violation};
use crate::vault::etag::etag;
use crate::vault::find::Key;
use crate::vault::group::GroupRetention;
use crate::vault::hold::require_no_hold;
use crate::vault::item_rows::{GroupEdit, item_place};
use crate::vault::operation::*;
use crate::vault::record::{self, Entry, Owner, RecordView};
use crate::vault::request::Request;
use crate::vault::retry::ATTEMPTS;
use crate::vault::value::{NewValue, SealedValue};

/// Most items that may stay in a class from which something is erased.
pub const MOST_SURVIVORS: u64 = 20_000;

/// What a reseal leaves out and puts in.
#[derive(Default)]
pub(crate) struct Rewrite<'a> {
    /// Single-valued fields that do not stay.
    pub fields: &'a [FieldNo],
    /// Items that do not stay.
    pub items: &'a [(FieldNo, ItemNo)],
    /// Values that come in their stead.
    pub put: Vec<&'a NewValue>,
    /// Also when nothing is left out: the key has sealed its limit.
    pub always: bool,
}

/// A class under its new key.
pub(crate) struct Resealed {
    pub row: ClassRow,
    /// What is erased: the former version.
    pub part: ErasedPart,
    /// Slot of the former version, to be dropped.
    pub old: Slot,
    /// Fields of which something was left out.
    pub gone: Vec<FieldNo>,
    pub data_keys: u64,
}

/// An entry of a record, opened.
struct Opened {
    entry: SealedValue,
    plain: zeroize::Zeroizing<Vec<u8>>,
}

impl Vault {
    /// Erases single-valued fields for good: the rest of their classes is resealed.
    ///
    /// # Errors
    /// `Held` where a hold keeps one of the classes; `NotFound` where none of the fields has a value. With `validate_only`
    /// the operation that is answered was not stored.
    #[allow(clippy::too_many_arguments)] // the parts of one request
    pub async fn erase_fields(
        &self,
        call: &Call,
        context: &Context,
        key: &Key,
        fields: &[FieldNo],
        wanted_etag: Option<&str>,
        request: Option<Request>,
        wait_final: bool,
        validate_only: bool,
    ) -> Result<Erasure, VaultError> {
        let policy = call.tenant.policy()?;
        let mut classes: Vec<ClassNo> = Vec::new();
        for (i, field) in fields.iter().enumerate() {
            let at = |rule: &str| Violation { path: format!("select[{i}]"), field: Some(*field), rule: rule.into() };
            match policy.field(*field) {
                Some(rule) if !rule.many => classes.push(rule.class),
                Some(_) => return Err(VaultError::Invalid(vec![at("a many-valued field: use EraseItems")])),
                None => return Err(VaultError::UnknownField(vec![at("no field with this number in the schema")])),
            }
        }
        if fields.is_empty() {
            return Err(VaultError::invalid("select", "must name at least one field"));
        }
        let rewrite = |class: ClassNo| {
            let here = fields.iter().copied().filter(move |f| policy.field(*f).is_some_and(|rule| rule.class == class));
            (here.collect(), Vec::new())
        };
        let kind = OperationKind::EraseFields;
        self.erase_parts(call, context, key, kind, classes, rewrite, wanted_etag, request, wait_final, validate_only)
            .await
    }

    /// Erases items of a many-valued field for good.
    ///
    /// # Errors
    /// As `erase_fields`.
    #[allow(clippy::too_many_arguments)] // the parts of one request
    pub async fn erase_items(
        &self,
        call: &Call,
        context: &Context,
        key: &Key,
        field: FieldNo,
        items: &[ItemNo],
        request: Option<Request>,
        wait_final: bool,
        validate_only: bool,
    ) -> Result<Erasure, VaultError> {
        let at = |rule: &str| Violation { path: "field_id".into(), field: Some(field), rule: rule.into() };
        let class = match call.tenant.policy()?.field(field) {
            Some(rule) if rule.many => rule.class,
            Some(_) => return Err(VaultError::Invalid(vec![at("a single-valued field: use EraseFields")])),
            None => return Err(VaultError::UnknownField(vec![at("no field with this number in the schema")])),
        };
        if items.is_empty() {
            return Err(VaultError::invalid("items", "must name at least one item"));
        }
        let rewrite = |_| (Vec::new(), items.iter().map(|item| (field, *item)).collect());
        let kind = OperationKind::EraseItems;
        self.erase_parts(call, context, key, kind, vec![class], rewrite, None, request, wait_final, validate_only).await
    }

    #[allow(clippy::too_many_arguments)] // two callers that differ in what stays
    async fn erase_parts(
        &self,
        call: &Call,
        context: &Context,
        key: &Key,
        kind: OperationKind,
        mut classes: Vec<ClassNo>,
        rewrite: impl Fn(ClassNo) -> (Vec<FieldNo>, Vec<(FieldNo, ItemNo)>),
        wanted_etag: Option<&str>,
        request: Option<Request>,
        wait_final: bool,
        validate_only: bool,
    ) -> Result<Erasure, VaultError> {
        call.permit(Verb::Erase)?;
        if let Some(operation) = self.repeated_operation(call, request.as_ref()).await? {
            return self.answer_erasure(call, operation, wait_final, true).await;
        }
        classes.sort();
        classes.dedup();
        for _ in 0..ATTEMPTS {
            let snapshot = self.resolve(call, context, key).await?;
            call.permit_for(Verb::Erase, snapshot.subject.group)?;
            self.must_be_open(&snapshot.subject)?;
            if wanted_etag.is_some_and(|wanted| wanted != etag(&snapshot)) {
                return Err(VaultError::EtagStale);
            }
            let mut change = ChangeSet::default();
            change.require(Precondition::SubjectLive { uid: snapshot.subject.uid });
            let mut done = Vec::new();
            let mut slots = Vec::new();
            let built = async {
                for class in &classes {
                    let Some(row) = snapshot.class(*class).filter(|row| row.state == ClassState::Live) else {
                        continue;
                    };
                    self.must_not_be_held(call, &snapshot, row).await?;
                    let (fields, items) = rewrite(*class);
                    let rewrite = Rewrite { fields: &fields, items: &items, ..Rewrite::default() };
                    let group = GroupRetention::default();
                    let resealed = self.reseal_class(call, row, &rewrite, &group, &mut change, &mut slots).await?;
                    done.extend(resealed);
                }
                Ok::<(), VaultError>(())
            }
            .await;
            if built.is_err() || done.is_empty() {
                self.keyring.release(call.tenant.no, &slots);
                built?;
                return Err(VaultError::NotFound);
            }
            for one in &done {
                require_no_hold(&snapshot.subject, one.row.class, &mut change);
            }
            let operation = self.reseal_operation(call, &snapshot, kind, &done).await?;
            if validate_only {
                self.keyring.release(call.tenant.no, &slots);
                return Ok(Erasure { operation, receipt: None, salt: None });
            }
            self.remember(call, request.as_ref(), &operation.id, &mut change);
            match self.commit_reseal(call, context, &snapshot, operation, &done, change).await {
                Ok(operation) => return self.answer_erasure(call, operation, wait_final, true).await,
                Err(error) => {
                    self.keyring.release(call.tenant.no, &slots);
                    self.retry_reseal(call, error, request.as_ref()).await?;
                }
            }
        }
        Err(VaultError::Conflict)
    }

    /// What a hold keeps is not erased in part either.
    pub(crate) async fn must_not_be_held(
        &self,
        call: &Call,
        snapshot: &SubjectSnapshot,
        row: &ClassRow,
    ) -> Result<(), VaultError> {
        let placed = self.holds_on(&snapshot.subject).await?;
        let placed = self.end_holds(call, placed).await?;
        match self.held(call, row, &placed, call.now).await? {
            Some(held) => Err(VaultError::held(call, held.class, held.hold)),
            None => Ok(()),
        }
    }

    /// `Ok` when it should be decided again.
    pub(crate) async fn retry_reseal(
        &self,
        call: &Call,
        error: SwapError,
        request: Option<&Request>,
    ) -> Result<(), VaultError> {
        match error {
            SwapError::Conflict(conflict) => self.retry_or_answer(call, StoreError::Conflict(conflict), request).await,
            error => Err(error.into()),
        }
    }

    /// The operation of an erasure below a class.
    pub(crate) async fn reseal_operation(
        &self,
        call: &Call,
        snapshot: &SubjectSnapshot,
        kind: OperationKind,
        done: &[Resealed],
    ) -> Result<Operation, VaultError> {
        let policy = call.tenant.policy()?;
        let mut operation = Operation::new(call, kind, OperationStatus::Committed);
        operation.subject = Some(snapshot.subject.uid);
        operation.group = snapshot.subject.group;
        operation.classes = done.iter().map(|one| one.row.class).collect();
        operation.erased = done.iter().map(|one| one.part.clone()).collect();
        operation.data_keys_issued = done.iter().map(|one| one.data_keys).sum();
        let mut gone = done.iter().flat_map(|one| &one.gone);
        operation.searchable = gone.any(|field| policy.field(*field).is_some_and(|rule| rule.searchable));
        operation.commitment = Some(self.commit_to(call, &snapshot.subject, operation.id)?);
        (operation.done, operation.total) = (1, 1);
        Ok(operation)
    }

    /// Commits a reseal with the swap that drops the old keys, and finishes it as far as it goes now.
    pub(crate) async fn commit_reseal(
        &self,
        call: &Call,
        context: &Context,
        snapshot: &SubjectSnapshot,
        operation: Operation,
        done: &[Resealed],
        mut change: ChangeSet,
    ) -> Result<Operation, SwapError> {
        let refused = |error: VaultError| match error {
            VaultError::Store(error) => SwapError::Store(error),
            _ => SwapError::Unclear,
        };
        if operation.searchable {
            self.owe_search(call).await.map_err(refused)?;
        }
        put_operation(call.tenant.no, &operation, None, &mut change);
        let mut entry = call.record(Action::EraseCommitted, Outcome::Ok);
        entry.subject = operation.subject;
        entry.operation = Some(operation.id);
        entry.fields = Fields::new(done.iter().flat_map(|one| one.gone.iter().copied()));
        let stays = |row: &&ClassRow| !done.iter().any(|one| one.row.class == row.class);
        let staying: Vec<ClassRow> = snapshot.classes.iter().filter(stays).cloned().collect();
        self.attach_detail(call, context, &mut entry, &staying).await.map_err(refused)?;
        change.note(call.tenant.no, entry.to_bytes());
        let ledger = erased_entries(call, &operation, operation.erased.iter().cloned());
        let swap = SwapOp { slots: done.iter().map(|one| one.old).collect(), change, ledger, ..SwapOp::default() };
        match self.keyring.swap(call.tenant.no, swap).await {
            Ok(swapped) => {
                Ok(self.finish(call, operation.clone(), Revision(1), swapped).await.unwrap_or_else(|error| {
                    // The keys are gone; the job writes the receipt.
                    tracing::warn!(operation = %operation.id, %error, "an erasure is committed and not finished yet");
                    operation
                }))
            }
            Err(SwapError::Unfinished { .. }) => Ok(operation),
            Err(error) => Err(error),
        }
    }

    /// Puts a class of a subject under a new key in a slot of its own, without what `rewrite` leaves out. `None` when
    /// nothing of that was there. Adds rows and preconditions to `change`, and the new slot to `slots`.
    pub(crate) async fn reseal_class(
        &self,
        call: &Call,
        row: &ClassRow,
        rewrite: &Rewrite<'_>,
        retention: &GroupRetention,
        change: &mut ChangeSet,
        slots: &mut Vec<Slot>,
    ) -> Result<Option<Resealed>, VaultError> {
        let policy = call.tenant.policy()?;
        let (tenant, uid, class) = (row.tenant, row.uid, row.class);
        let old = KeyRef { slot: row.slot.ok_or(VaultError::DataLoss)?, dek: row.dek };
        let old_class = ClassRef { tenant, uid, class, key: old };
        let mut entries = self.open_record(call, old_class, row).await?;
        let groups: Vec<ItemGroupRow> =
            self.store.item_groups(uid, None).await?.into_iter().filter(|group| group.key.class == class).collect();
        let mut gone: Vec<FieldNo> = Vec::new();
        entries.retain(|one| {
            let leaves = rewrite.fields.contains(&one.entry.field);
            if leaves {
                gone.push(one.entry.field);
            }
            !leaves
        });
        let mut leaving = Vec::new();
        for (field, item) in rewrite.items {
            if let Some(found) = self.find_item(uid, *field, *item).await? {
                leaving.push(found);
                gone.push(*field);
            }
        }
        gone.sort();
        gone.dedup();
        if gone.is_empty() && !rewrite.always {
            return Ok(None);
        }
        if groups.iter().map(|group| u64::from(group.count)).sum::<u64>() > MOST_SURVIVORS {
            return Err(VaultError::WrongState("the class has more than 20,000 items: erase the class as a whole"));
        }
        let key = self.keyring.allocate(tenant, 1).await?[0];
        slots.push(key.slot);
        change.change(Mutation::TakeSlot { tenant, slot: key.slot });
        change.require(Precondition::ClassAt { uid, class, version: row.version, revision: row.revision });
        change.require(Precondition::ItemGroupsOf { tenant, uid, class, count: groups.len() as u32 });
        let new_class = ClassRef { key, ..old_class };
        let revision = Revision(row.revision.0 + 1);
        let mut sealed: Vec<SealedValue> = Vec::with_capacity(entries.len() + rewrite.put.len());
        for one in entries {
            let entry = SealedValue { revision, ..one.entry };
            let bucket = self.live_bucket(call, class, entry.bucket, change);
            let aad = Aad::value(&self.field_place(new_class, &entry));
            let envelope = self.with_keys(new_class, bucket, |keys| keys.cipher().seal(&aad, &one.plain)).await?;
            sealed.push(SealedValue { sealed: envelope, ..entry });
        }
        for new in &rewrite.put {
            let origin = new.origin.unwrap_or(call.now);
            let expiry = policy.expiry(class, retention.of(class), origin);
            sealed.push(self.seal_value(call, new_class, revision, new, origin, expiry, change).await?);
            self.index_value(call, policy, uid, new, true, change)?;
        }
        let mut seals = sealed.len() as u32;
        for group in &groups {
            seals += self.reseal_items(call, old_class, new_class, group, &leaving, change).await?;
        }
        for field in gone.iter().filter(|field| !rewrite.put.iter().any(|new| new.field == **field)) {
            if policy.field(*field).is_some_and(|rule| rule.searchable) {
                change.change(Mutation::DeleteTerms { tenant, uid, field: Some(*field) });
            }
        }
        let owner = Owner { vault: self.keyring.vault(), tenant, uid, class };
        let (record, next_bucket) = self.encode_record(new_class, &owner, revision, &sealed).await?;
        let version = DekVersion(row.version.0 + 1);
        let new = ClassRow {
            version,
            slot: Some(key.slot),
            dek: key.dek,
            revision,
            seals,
            next_bucket,
            record,
            ..row.clone()
        };
        change.change(Mutation::PutClass(new.clone()));
        let part = ErasedPart { class, through: row.version };
        let data_keys = u64::from(row.data_keys_issued);
        Ok(Some(Resealed { row: new, part, old: old.slot, gone, data_keys }))
    }

    pub(crate) async fn encode_record(
        &self,
        class: ClassRef,
        owner: &Owner,
        revision: Revision,
        values: &[SealedValue],
    ) -> Result<(Vec<u8>, Option<Bucket>), VaultError> {
        let next = values.iter().map(|one| one.bucket).filter(|bucket| *bucket != Bucket::NONE).min();
        let record = self
            .with_keys(class, None, |keys| {
                let mut entries: Vec<Entry<'_>> = values.iter().map(SealedValue::entry).collect();
                record::encode(keys, owner, revision, &mut entries)
            })
            .await?;
        Ok((record, next))
    }

    /// The key of a value's bucket, which must still live at commit; `None` for values without an end.
    pub(crate) fn live_bucket(
        &self,
        call: &Call,
        class: ClassNo,
        bucket: Bucket,
        change: &mut ChangeSet,
    ) -> Option<KeyRef> {
        let key = self.bucket_key(call, class, bucket).filter(|_| bucket != Bucket::NONE)?;
        let live = Precondition::ExpiryLive { tenant: call.tenant.no, class, bucket, dek: key.dek };
        if !change.preconditions.contains(&live) {
            change.require(live);
        }
        Some(key)
    }

    pub(crate) fn field_place(&self, class: ClassRef, value: &SealedValue) -> Place {
        Place {
            vault: self.keyring.vault(),
            tenant: class.tenant,
            uid: class.uid,
            class: class.class,
            field: value.field,
            item: 0,
            dek: class.key.dek,
            bucket: value.bucket,
            revision: value.revision,
        }
    }

    /// All values of a record in clear; those whose bucket's key is gone are left out.
    async fn open_record(&self, call: &Call, class: ClassRef, row: &ClassRow) -> Result<Vec<Opened>, VaultError> {
        let values = self.list_record(call, class, row).await?;
        let mut opened = Vec::with_capacity(values.len());
        for entry in values {
            let bucket = match entry.bucket {
                Bucket::NONE => None,
                bucket => match self.bucket_key(call, class.class, bucket) {
                    Some(key) => Some(key),
                    None => continue,
                },
            };
            let aad = Aad::value(&self.field_place(class, &entry));
            let plain = self.with_keys(class, bucket, |keys| keys.cipher().open(&aad, &entry.sealed)).await?;
            opened.push(Opened { entry, plain: plain.map_err(|_| VaultError::DataLoss)? });
        }
        Ok(opened)
    }

    /// All entries of a record, still sealed, after checking that it is as it was written.
    pub(crate) async fn list_record(
        &self,
        call: &Call,
        class: ClassRef,
        row: &ClassRow,
    ) -> Result<Vec<SealedValue>, VaultError> {
        let owner = Owner { vault: self.keyring.vault(), tenant: row.tenant, uid: row.uid, class: row.class };
        let view = RecordView::parse(&row.record).map_err(|_| VaultError::DataLoss)?;
        self.with_keys(class, None, |keys| {
            let mut found = Vec::new();
            view.walk(keys, &owner, call.now.day(), |entry| found.push(SealedValue::from(&entry)))
                .map_err(|_| VaultError::DataLoss)?;
            Ok(found)
        })
        .await?
    }

    /// Reseals a group of items under the class's new key; answers how many stayed.
    async fn reseal_items(
        &self,
        call: &Call,
        old: ClassRef,
        new: ClassRef,
        group: &ItemGroupRow,
        leaving: &[ItemRow],
        change: &mut ChangeSet,
    ) -> Result<u32, VaultError> {
        let bucket = match group.key.bucket {
            Bucket::NONE => None,
            bucket => match self.bucket_key(call, old.class, bucket) {
                Some(_) => self.live_bucket(call, old.class, bucket, change),
                // Shredded already; the sweep deletes its rows.
                None => return Ok(0),
            },
        };
        self.verify_group(old, group).await?;
        let mut edit = GroupEdit::anew(group);
        let mut after = ItemNo(-1);
        let mut stayed = 0;
        loop {
            let page = self.store.items(group.key, after, 1000).await?;
            for mut row in page.rows {
                after = row.item;
                let ItemGroupKey { tenant, class, bucket: of, uid, field } = row.group;
                if leaving.iter().any(|one| one.group == row.group && one.item == row.item) {
                    change.change(Mutation::DeleteItem { tenant, class, bucket: of, uid, field, item: row.item });
                    continue;
                }
                let vault = self.keyring.vault();
                let (from, to) = (
                    Aad::value(&item_place(vault, old.key.dek, &row)),
                    Aad::value(&item_place(vault, new.key.dek, &row)),
                );
                let plain = self.with_keys(old, bucket, |keys| keys.cipher().open(&from, &row.envelope)).await?;
                let plain = plain.map_err(|_| VaultError::DataLoss)?;
                row.envelope = self.with_keys(new, bucket, |keys| keys.cipher().seal(&to, &plain)).await?;
                self.with_keys(new, None, |keys| edit.toggle(keys, &row, true)).await?;
                change.change(Mutation::PutItem(row));
                stayed += 1;
            }
            if !page.more {
                break;
            }
        }
        let mut edit = Some(edit);
        self.with_keys(new, None, |keys| {
            if let Some(edit) = edit.take() {
                edit.finish(keys, change);
            }
        })
        .await?;
        Ok(stayed)
    }
}
