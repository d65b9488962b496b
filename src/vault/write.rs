//! Putting single-valued fields. A put reads a snapshot, decides, and hands over one change set; when something changed
//! in between it decides again, a few times at most.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::access::{FieldSet, Verb};
use crate::audit::{Action, Fields, Outcome};
use crate::clock::{DAY_MS, Timestamp};
use crate::crypto::aead::MAX_SEALS;
use crate::ids::*;
use crate::keyring::{ClassRef, KeyRef};
use crate::policy::compiled::Policy;
use crate::policy::value::check_now;
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::{Call, Context};
use crate::vault::error::{VaultError, Violation};
use crate::vault::etag::{etag, etag_of};
use crate::vault::find::named;
use crate::vault::group::GroupRetention;
use crate::vault::hold::require_no_hold;
use crate::vault::operation::OperationKind;
use crate::vault::record::Owner;
use crate::vault::request::Request;
use crate::vault::reseal::{Resealed, Rewrite};
use crate::vault::retry::ATTEMPTS;
use crate::vault::rights::Facts;
use crate::vault::value::{NewValue, merge};

/// What a put does with a subject that is there, or is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteMode {
    /// Creates or changes.
    Upsert,
    /// Only creates.
    Create,
    /// Only changes.
    Update,
    /// Creates although the id was erased before: a new life, on purpose.
    Recreate,
}

/// One subject's put.
pub struct Put {
    pub subject: SubjectId,
    pub values: Vec<NewValue>,
    pub mode: WriteMode,
    /// The group a new subject joins.
    pub group: Option<GroupNo>,
    pub etag: Option<String>,
    /// Also crypto-shred what is overwritten.
    pub erase_former: bool,
}

/// What a put answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutDone {
    pub etag: String,
    pub created: bool,
    pub at: Timestamp,
    /// The erasure of the overwritten values, where `erase_former` asked for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erasure: Option<ObjectId>,
}

/// A change that is ready to commit, and what belongs to it.
struct Prepared {
    pub change: ChangeSet,
    pub done: PutDone,
    /// Slots given for it, to be handed back if it does not commit.
    pub slots: Vec<Slot>,
    /// Classes whose former key is dropped with it.
    pub resealed: Vec<Resealed>,
    /// What it changes, as it was; `None` for a new subject.
    pub snapshot: Option<Arc<SubjectSnapshot>>,
}

/// When it is seen whether a subject is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    First,
    /// By the preconditions alone, as if it were missing.
    AtCommit,
}

/// What is known of a put before the store was asked.
struct CheckedPut {
    pub policy: Arc<Policy>,
    pub fields: FieldSet,
    pub purpose: PurposeNo,
}

/// Where a change wants values of unique fields to be nobody else's: position of the precondition, and field.
fn unique_fields(change: &ChangeSet) -> Vec<(usize, FieldNo)> {
    let field = |(at, wanted): (usize, &Precondition)| match wanted {
        Precondition::TermsFree { field, .. } => Some((at, *field)),
        _ => None,
    };
    change.preconditions.iter().enumerate().filter_map(field).collect()
}

/// # Errors
/// `UniqueTaken` where that is why nothing was committed.
fn not_taken(error: &StoreError, unique: &[(usize, FieldNo)]) -> Result<(), VaultError> {
    let StoreError::Conflict(Conflict::Precondition(at)) = error else { return Ok(()) };
    match unique.iter().find(|(position, _)| position == at) {
        Some((_, field)) => Err(VaultError::UniqueTaken { field: *field }),
        None => Ok(()),
    }
}

impl Vault {
    /// Stores a subject's values, all or none.
    pub async fn put_fields(
        &self,
        call: &Call,
        context: &Context,
        put: Put,
        request: Option<Request>,
        validate_only: bool,
    ) -> Result<PutDone, VaultError> {
        if let Some(answer) = self.repeated(call, request.as_ref()).await? {
            return Ok(answer);
        }
        let checked = self.check_put(call, context, &put)?;
        // Who creates expects nothing to be there, and the commit sees whether that is so; a read is for when it is not.
        let blind = put.mode == WriteMode::Create && !validate_only;
        let mut look = if blind { Look::AtCommit } else { Look::First };
        for _ in 0..ATTEMPTS {
            let mut prepared = self.prepare_put(call, context, &put, &checked, look).await?;
            let looked = std::mem::replace(&mut look, Look::First) == Look::First;
            let room = self.require_room(call, prepared.done.created.into(), &mut prepared.change).await;
            if room.is_err() || validate_only {
                self.keyring.release(call.tenant.no, &prepared.slots);
                // Somebody who is there already is told before the quota.
                if room.is_err() && !looked {
                    continue;
                }
                return room.map(|()| prepared.done);
            }
            if !prepared.resealed.is_empty() {
                match self.put_over(call, context, prepared, request.as_ref()).await? {
                    Some(done) => return Ok(done),
                    None => continue,
                }
            }
            self.remember(call, request.as_ref(), &prepared.done, &mut prepared.change);
            let unique = unique_fields(&prepared.change);
            match self.store.commit(prepared.change).await {
                Ok(_) => return Ok(prepared.done),
                Err(error) => {
                    self.keyring.release(call.tenant.no, &prepared.slots);
                    // Who did not look may have met himself: he looks now.
                    if looked {
                        not_taken(&error, &unique)?;
                    }
                    self.retry_or_answer(call, error, request.as_ref()).await?;
                }
            }
        }
        Err(VaultError::Conflict)
    }

    /// A put that drops the keys of what it overwrites: an erasure of its own. `None`: decide again.
    async fn put_over(
        &self,
        call: &Call,
        context: &Context,
        prepared: Prepared,
        request: Option<&Request>,
    ) -> Result<Option<PutDone>, VaultError> {
        let Prepared { mut change, mut done, slots, resealed, snapshot } = prepared;
        let snapshot = snapshot.ok_or(VaultError::DataLoss)?;
        let operation = self.reseal_operation(call, &snapshot, OperationKind::EraseFormer, &resealed).await?;
        done.erasure = Some(operation.id);
        self.remember(call, request, &done, &mut change);
        match self.commit_reseal(call, context, &snapshot, operation, &resealed, change).await {
            Ok(_) => Ok(Some(done)),
            Err(error) => {
                self.keyring.release(call.tenant.no, &slots);
                self.retry_reseal(call, error, request).await?;
                Ok(None)
            }
        }
    }

    /// Up to 100 subjects' puts as one change: all or none.
    pub async fn put_atomic(
        &self,
        call: &Call,
        context: &Context,
        puts: &[Put],
        request: Option<Request>,
        validate_only: bool,
    ) -> Result<Vec<PutDone>, VaultError> {
        if let Some(answer) = self.repeated(call, request.as_ref()).await? {
            return Ok(answer);
        }
        let mut checked = Vec::with_capacity(puts.len());
        for put in puts {
            if put.erase_former {
                return Err(VaultError::invalid("atomic", "cannot be combined with erase_former"));
            }
            checked.push(self.check_put(call, context, put)?);
        }
        for _ in 0..ATTEMPTS {
            let mut change = ChangeSet::default();
            let (mut done, mut slots) = (Vec::new(), Vec::new());
            for (put, checked) in puts.iter().zip(&checked) {
                match self.prepare_put(call, context, put, checked, Look::First).await {
                    Ok(prepared) if !prepared.resealed.is_empty() => {
                        self.keyring.release(call.tenant.no, &slots);
                        self.keyring.release(call.tenant.no, &prepared.slots);
                        return Err(VaultError::WrongState("a class's key has sealed its limit: put it alone"));
                    }
                    Ok(prepared) => {
                        change.preconditions.extend(prepared.change.preconditions);
                        change.mutations.extend(prepared.change.mutations);
                        change.audit.extend(prepared.change.audit);
                        slots.extend(prepared.slots);
                        done.push(prepared.done);
                    }
                    Err(error) => {
                        self.keyring.release(call.tenant.no, &slots);
                        return Err(error);
                    }
                }
            }
            let created = done.iter().filter(|one: &&PutDone| one.created).count() as u64;
            let room = self.require_room(call, created, &mut change).await;
            if room.is_err() || validate_only {
                self.keyring.release(call.tenant.no, &slots);
                return room.map(|()| done);
            }
            self.remember(call, request.as_ref(), &done, &mut change);
            let unique = unique_fields(&change);
            match self.store.commit(change).await {
                Ok(_) => return Ok(done),
                Err(error) => {
                    self.keyring.release(call.tenant.no, &slots);
                    not_taken(&error, &unique)?;
                    self.retry_or_answer(call, error, request.as_ref()).await?;
                }
            }
        }
        Err(VaultError::Conflict)
    }

    /// Adds to a change that makes `new` subjects that the tenant's quota has room for them. The store counts, so that two
    /// changes beside each other do not take the same room.
    ///
    /// # Errors
    /// `Quota`.
    pub(crate) async fn require_room(&self, call: &Call, new: u64, change: &mut ChangeSet) -> Result<(), VaultError> {
        let (tenant, most) = (call.tenant.no, call.tenant.settings.quota_subjects);
        if new == 0 || most == 0 {
            return Ok(());
        }
        if self.store.subject_count(tenant).await?.saturating_add(new) > most {
            return Err(VaultError::Quota("subjects of the tenant"));
        }
        change.require(Precondition::SubjectRoom { tenant, new, most });
        Ok(())
    }

    /// Everything that can be said without looking at the store.
    fn check_put(&self, call: &Call, context: &Context, put: &Put) -> Result<CheckedPut, VaultError> {
        let policy = call.tenant.policy()?;
        if put.values.is_empty() {
            return Err(VaultError::invalid("values", "must not be empty"));
        }
        let (mut invalid, mut unknown) = (Vec::new(), Vec::new());
        let mut seen = FieldSet::EMPTY;
        for (i, new) in put.values.iter().enumerate() {
            let at = |rule: &str| Violation { path: format!("values[{i}]"), field: Some(new.field), rule: rule.into() };
            let Some(rule) = policy.field(new.field) else {
                unknown.push(at("no field with this number in the schema"));
                continue;
            };
            if seen.has(new.field.0) {
                invalid.push(at("the field is given twice"));
            }
            seen.insert(new.field.0);
            if rule.many {
                invalid.push(at("a many-valued field takes items: use AppendItems"));
            } else if let Err(violation) = check_now(policy, rule, &new.value, call.now) {
                invalid.push(at(violation.rule.words()));
            }
            if new.origin.is_some_and(|t| t > call.now.plus_ms(self.options.future_tolerance_ms)) {
                invalid.push(at("origin_time is in the future"));
            }
        }
        if !unknown.is_empty() {
            return Err(VaultError::UnknownField(unknown));
        }
        if !invalid.is_empty() {
            return Err(VaultError::ValueInvalid(invalid));
        }
        Ok(CheckedPut { policy: policy.clone(), fields: seen, purpose: context.purpose()? })
    }

    /// Reads, decides, seals: a change set for one subject.
    async fn prepare_put(
        &self,
        call: &Call,
        context: &Context,
        put: &Put,
        checked: &CheckedPut,
        look: Look,
    ) -> Result<Prepared, VaultError> {
        let tenant = &call.tenant;
        let digest = tenant.digest(&put.subject);
        let mut change = ChangeSet::default();
        let found = match self.store.cached_subject(tenant.no, digest) {
            Some(snapshot) => Lookup::Found(snapshot),
            None if look == Look::AtCommit => Lookup::Missing,
            None => self.store.subject(tenant.no, digest).await?,
        };
        let snapshot = match (found, put.mode) {
            (Lookup::Found(_), WriteMode::Create | WriteMode::Recreate) => return Err(VaultError::AlreadyExists),
            (Lookup::Found(snapshot), _) => Some(named(call, &put.subject, snapshot)?),
            (Lookup::Erased(_), WriteMode::Recreate) => {
                change.change(Mutation::DeleteTombstone { tenant: tenant.no, digest });
                None
            }
            (Lookup::Erased(_), _) => return Err(VaultError::SubjectErased),
            (Lookup::Missing, WriteMode::Update) => return Err(VaultError::NotFound),
            (Lookup::Missing, _) => {
                change.require(Precondition::NoTombstone { tenant: tenant.no, digest });
                None
            }
        };
        let created = snapshot.is_none();
        let group = snapshot.as_ref().map_or(put.group, |s| s.subject.group);
        let facts = match &snapshot {
            Some(snapshot) => self.facts(call, snapshot).await?,
            None => Facts::none(),
        };
        self.may_touch(call, context, &checked.fields, Verb::Write, group, &facts)?;
        if let Some(wanted) = &put.etag
            && snapshot.as_ref().is_none_or(|s| etag(s) != *wanted)
        {
            return Err(VaultError::EtagStale);
        }
        let subject = match &snapshot {
            Some(snapshot) => {
                self.must_be_open(&snapshot.subject)?;
                if put.group.is_some() && put.group != snapshot.subject.group {
                    return Err(VaultError::invalid("group", "the subject is in another group"));
                }
                change.require(Precondition::SubjectLive { uid: snapshot.subject.uid });
                snapshot.subject.clone()
            }
            None => {
                change.require(Precondition::SubjectAbsent { tenant: tenant.no, digest });
                if let Some(group) = put.group {
                    self.must_be_open_group(call, group).await?;
                }
                let uid = self.store.next_uid();
                let row = SubjectRow {
                    uid,
                    tenant: tenant.no,
                    digest,
                    sealed_id: tenant.seal_id(uid, &put.subject),
                    state: SubjectState::Live,
                    group: put.group,
                    revision: Revision(1),
                    created: call.now,
                    touched: Timestamp(call.now.day() * DAY_MS),
                    due: None,
                };
                change.change(Mutation::PutSubject(row.clone()));
                row
            }
        };
        let group = self.group_retention(call, subject.group).await?;
        let (mut slots, mut resealed) = (Vec::new(), Vec::new());
        let old = snapshot.as_deref();
        let result =
            self.seal_classes(call, put, checked, &subject, old, &group, &mut change, &mut slots, &mut resealed).await;
        let classes = match result {
            Ok(classes) => classes,
            Err(error) => {
                self.keyring.release(tenant.no, &slots);
                return Err(error);
            }
        };
        let mut entry = call.record(Action::PutFields, Outcome::Ok);
        entry.subject = Some(subject.uid);
        entry.fields = Fields::new(checked.fields.iter().map(FieldNo));
        entry.purpose = checked.purpose;
        self.attach_detail(call, context, &mut entry, &classes).await?;
        change.note(tenant.no, entry.to_bytes());

        let touched: Vec<ClassNo> = classes.iter().map(|c| c.class).collect();
        let mut all: Vec<_> = snapshot
            .iter()
            .flat_map(|s| &s.classes)
            .filter(|c| !touched.contains(&c.class))
            .map(|c| (c.class, c.version, c.revision))
            .chain(classes.iter().map(|c| (c.class, c.version, c.revision)))
            .collect();
        all.sort();
        let done = PutDone { etag: etag_of(subject.revision, all.into_iter()), created, at: call.now, erasure: None };
        Ok(Prepared { change, done, slots, resealed, snapshot })
    }

    /// Seals the values class by class into `change`; gives the new class rows.
    #[allow(clippy::too_many_arguments)] // one caller; a struct for it would only rename the list
    async fn seal_classes(
        &self,
        call: &Call,
        put: &Put,
        checked: &CheckedPut,
        subject: &SubjectRow,
        snapshot: Option<&SubjectSnapshot>,
        group: &GroupRetention,
        change: &mut ChangeSet,
        slots: &mut Vec<Slot>,
        resealed: &mut Vec<Resealed>,
    ) -> Result<Vec<ClassRow>, VaultError> {
        let tenant = &call.tenant;
        let policy = &checked.policy;
        let mut numbers: Vec<ClassNo> =
            put.values.iter().filter_map(|v| policy.field(v.field)).map(|rule| rule.class).collect();
        numbers.sort();
        numbers.dedup();
        let fresh = numbers
            .iter()
            .filter(|class| snapshot.and_then(|s| s.class(**class)).is_none_or(|row| row.slot.is_none()))
            .count();
        let mut keys = Vec::new();
        if fresh > 0 {
            keys = self.keyring.allocate(tenant.no, fresh).await?;
            slots.extend(keys.iter().map(|key| key.slot));
            keys.reverse();
        }
        let mut rows = Vec::with_capacity(numbers.len());
        for class in numbers {
            let former = snapshot.and_then(|s| s.class(class));
            let here = || put.values.iter().filter(|v| policy.field(v.field).is_some_and(|rule| rule.class == class));
            if let (Some(row), Some(snapshot)) = (former.filter(|row| row.state == ClassState::Live), snapshot) {
                let always = row.seals + here().count() as u32 > MAX_SEALS;
                if put.erase_former || always {
                    let fields: Vec<FieldNo> = here().map(|new| new.field).collect();
                    let rewrite = Rewrite { fields: &fields, put: here().collect(), always, ..Rewrite::default() };
                    if let Some(done) = self.reseal_class(call, row, &rewrite, group, change, slots).await? {
                        if put.erase_former {
                            self.must_not_be_held(call, snapshot, row).await?;
                            require_no_hold(subject, class, change);
                        }
                        rows.push(done.row.clone());
                        resealed.push(done);
                        continue;
                    }
                }
            }
            let (key, version, revision) = match former {
                Some(row) if row.slot.is_some() => {
                    if row.state != ClassState::Live {
                        return Err(VaultError::WrongState("the class is restricted"));
                    }
                    change.require(Precondition::ClassAt {
                        uid: subject.uid,
                        class,
                        version: row.version,
                        revision: row.revision,
                    });
                    let slot = row.slot.expect("checked by the guard");
                    (KeyRef { slot, dek: row.dek }, row.version, Revision(row.revision.0 + 1))
                }
                other => {
                    let version = DekVersion(other.map_or(1, |row| row.version.0 + 1));
                    // A number that was given a moment ago has no classes.
                    if snapshot.is_some() {
                        change.require(Precondition::ClassBelow { uid: subject.uid, class, version });
                    }
                    let key = keys.pop().expect("one was allocated for each class without a key");
                    change.change(Mutation::TakeSlot { tenant: tenant.no, slot: key.slot });
                    (key, version, Revision(1))
                }
            };
            let class_ref = ClassRef { tenant: tenant.no, uid: subject.uid, class, key };
            let mut sealed = Vec::new();
            for new in here() {
                let origin = new.origin.unwrap_or(call.now);
                let expiry = policy.expiry(class, group.of(class), origin);
                if expiry.is_some_and(|e| e.at <= call.now) {
                    return Err(VaultError::ValueInvalid(vec![Violation {
                        path: "values".into(),
                        field: Some(new.field),
                        rule: "its retention is over already".into(),
                    }]));
                }
                sealed.push(self.seal_value(call, class_ref, revision, new, origin, expiry, change).await?);
                self.index_value(call, policy, subject.uid, new, snapshot.is_some(), change)?;
            }
            let seals = former.filter(|row| row.version == version).map_or(0, |row| row.seals) + sealed.len() as u32;
            let owner = Owner { vault: self.keyring.vault(), tenant: tenant.no, uid: subject.uid, class };
            let blob = former.filter(|row| row.slot.is_some()).map_or(&[][..], |row| &row.record);
            let (record, next_bucket) = self
                .with_keys(class_ref, None, |keys| merge(keys, &owner, blob, revision, &sealed, call.now.day()))
                .await??;
            let row = ClassRow {
                uid: subject.uid,
                tenant: tenant.no,
                class,
                version,
                slot: Some(key.slot),
                dek: key.dek,
                state: ClassState::Live,
                revision,
                data_keys_issued: former.map_or(0, |row| row.data_keys_issued),
                seals,
                next_bucket,
                record,
            };
            change.change(Mutation::PutClass(row.clone()));
            rows.push(row);
        }
        Ok(rows)
    }
}
