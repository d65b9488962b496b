//! Reading single-valued fields: decide on numbers, open under the class's key, make the audit entry durable, answer.

use smallvec::SmallVec;
use zeroize::Zeroizing;

use crate::access::{FieldSet, Verb, View};
use crate::audit::{Action, AuditRecord, Fields, Outcome};
use crate::clock::Timestamp;
use crate::crypto::aad::{Aad, Place};
use crate::crypto::keys::ClassKeys;
use crate::ids::*;
use crate::keyring::{ClassRef, KeyRef};
use crate::policy::compiled::{Ask, Decision, Policy, Withheld};
use crate::policy::value::Value;
use crate::storage::{ClassRow, ClassState, SubjectSnapshot, SubjectState};
use crate::vault::Vault;
use crate::vault::audit_read::miss;
use crate::vault::call::{Call, Context};
use crate::vault::error::{VaultError, Violation};
use crate::vault::etag::etag;
use crate::vault::find::Key;
use crate::vault::record::{Entry, Owner, RecordView};

/// Why a value is not in the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absence {
    NeverSet,
    Denied,
    /// The purpose needs a consent that is not there.
    NoConsent,
    /// The person objected to the purpose.
    Objected,
    /// The subject's erasure is held up by a hold that this purpose is not for.
    Restricted,
    Expired,
    Erased,
}

fn withheld(why: Withheld) -> Absence {
    match why {
        Withheld::NoConsent => Absence::NoConsent,
        Withheld::Objected => Absence::Objected,
        Withheld::Restricted => Absence::Restricted,
        Withheld::Denied => Absence::Denied,
    }
}

/// One field of an answer.
pub struct Shown {
    pub field: FieldNo,
    pub what: Result<(Value, View), Absence>,
    pub origin: Option<Timestamp>,
    pub expire: Option<Timestamp>,
}

/// What a read answers.
pub struct Got {
    pub uid: SubjectUid,
    pub values: Vec<Shown>,
    pub etag: String,
    pub state: SubjectState,
}

/// Which fields are wanted and how.
#[derive(Debug, Clone, Default)]
pub struct Select {
    /// In the order of the answer; empty together with `classes`: every single-valued field that may be seen.
    pub fields: Vec<FieldNo>,
    pub classes: Vec<ClassNo>,
    /// `None`: the most telling view that is allowed.
    pub view: Option<View>,
    /// Fields that may not be seen are answered with their absence instead of refusing the call.
    pub partial: bool,
}

/// A selection resolved against the policy.
pub(crate) struct Wanted {
    fields: SmallVec<[FieldNo; 16]>,
    set: FieldSet,
    /// Everything that may be seen was asked for: what may not is left out, not refused.
    open: bool,
}

impl Vault {
    /// A subject's fields.
    pub async fn get_fields(
        &self,
        call: &Call,
        context: &Context,
        key: &Key,
        select: &Select,
    ) -> Result<Got, VaultError> {
        let policy = call.tenant.policy()?;
        let wanted = resolve(policy, select)?;
        let purpose = context.purpose()?;
        let snapshot = match self.resolve(call, context, key).await {
            Ok(snapshot) => snapshot,
            Err(error) => return Err(self.missed(call, Action::GetFields, purpose, &wanted.set, error).await),
        };
        let approved = self.take_approval(call, context, &[snapshot.subject.uid], Verb::Read, &wanted.set).await?;
        let facts = self.known_facts(call, &snapshot).await?;
        let ask = context.ask(call, Verb::Read, purpose, snapshot.subject.group, select.view, approved);
        let ask = Ask { facts: facts.view(), ..ask };
        let got = self.read_snapshot(call, policy, &ask, &snapshot, &wanted, select).await;
        let mut entry = self.read_entry(call, Action::GetFields, context, purpose, &snapshot, &wanted.set, &got);
        self.attach_detail(call, context, &mut entry, &snapshot.classes).await?;
        if context.recipient.is_some() {
            self.note_disclosures(call, std::slice::from_ref(&entry)).await?;
        }
        self.note_read(call, &entry).await?;
        got
    }

    /// Fields of up to 1,000 subjects, each with its own outcome, in the order asked.
    pub async fn get_batch(
        &self,
        call: &Call,
        context: &Context,
        keys: &[Key],
        select: &Select,
    ) -> Result<Vec<Result<Got, VaultError>>, VaultError> {
        let policy = call.tenant.policy()?;
        let wanted = resolve(policy, select)?;
        let purpose = context.purpose()?;
        let snapshots = self.resolve_all(call, context, keys).await?;
        let found: Vec<SubjectUid> = snapshots.iter().flatten().map(|one| one.subject.uid).collect();
        // One use for the whole batch, of subjects that the approval lists.
        let approved = !found.is_empty() && self.take_approval(call, context, &found, Verb::Read, &wanted.set).await?;
        let mut outcomes = Vec::with_capacity(snapshots.len());
        let mut entries: Vec<AuditRecord> = Vec::with_capacity(snapshots.len());
        // One entry for all that are not there, so that asking for nobody fills no disk.
        let mut missed = None;
        for snapshot in snapshots {
            let snapshot = match snapshot {
                Ok(snapshot) => snapshot,
                Err(error) => {
                    missed.get_or_insert_with(|| miss(call, Action::GetFields, purpose, &wanted.set, error.outcome()));
                    outcomes.push(Err(error));
                    continue;
                }
            };
            let facts = self.known_facts(call, &snapshot).await?;
            let ask = context.ask(call, Verb::Read, purpose, snapshot.subject.group, select.view, approved);
            let ask = Ask { facts: facts.view(), ..ask };
            let got = self.read_snapshot(call, policy, &ask, &snapshot, &wanted, select).await;
            let mut entry = self.read_entry(call, Action::GetFields, context, purpose, &snapshot, &wanted.set, &got);
            self.attach_detail(call, context, &mut entry, &snapshot.classes).await?;
            entries.push(entry);
            outcomes.push(got);
        }
        if context.recipient.is_some() {
            self.note_disclosures(call, &entries).await?;
        }
        entries.extend(missed);
        self.note_reads(call, &entries).await?;
        Ok(outcomes)
    }

    /// The audit record of a read: what was shown, or what was asked for and refused.
    pub(crate) fn read_entry(
        &self,
        call: &Call,
        action: Action,
        context: &Context,
        purpose: PurposeNo,
        snapshot: &SubjectSnapshot,
        wanted: &FieldSet,
        got: &Result<Got, VaultError>,
    ) -> AuditRecord {
        let denied = |v: &Shown| matches!(v.what, Err(Absence::Denied | Absence::NoConsent | Absence::Objected));
        let (outcome, fields) = match got {
            Ok(got) => {
                let outcome = if got.values.iter().any(denied) { Outcome::Partial } else { Outcome::Ok };
                (outcome, Fields::new(got.values.iter().filter(|v| v.what.is_ok()).map(|v| v.field)))
            }
            Err(error) => (error.outcome(), Fields::new(wanted.iter().map(FieldNo))),
        };
        let mut entry = call.record(action, outcome);
        entry.subject = Some(snapshot.subject.uid);
        entry.fields = fields;
        entry.purpose = purpose;
        entry.recipient = context.recipient_no();
        entry
    }

    /// Decides and opens; no audit yet.
    pub(crate) async fn read_snapshot(
        &self,
        call: &Call,
        policy: &Policy,
        ask: &Ask<'_>,
        snapshot: &SubjectSnapshot,
        wanted: &Wanted,
        select: &Select,
    ) -> Result<Got, VaultError> {
        let subject = &snapshot.subject;
        match subject.state {
            SubjectState::Live | SubjectState::Closed | SubjectState::Held => {}
            SubjectState::Frozen => return Err(VaultError::WrongState("the subject's erasure is under way")),
        }
        let mut values: Vec<Shown> = Vec::with_capacity(wanted.fields.len());
        let mut views: SmallVec<[Option<View>; 16]> = SmallVec::new();
        let mut holds: SmallVec<[(ClassNo, PurposeNo); 4]> = SmallVec::new();
        for row in snapshot.classes.iter().filter(|row| row.state == ClassState::Restricted) {
            holds.extend(self.held_for(call, subject, row, ask.purpose).await?.map(|purpose| (row.class, purpose)));
        }
        for field in &wanted.fields {
            let rule = policy.field(*field).ok_or(VaultError::NotFound)?;
            let row = snapshot.class(rule.class);
            let held_for = holds.iter().find(|(class, _)| *class == rule.class).map(|(_, purpose)| *purpose);
            let absent = match row.map(|row| row.state) {
                // What was restricted for an erasure that is under way has no hold.
                Some(ClassState::Erased) => Absence::Erased,
                Some(ClassState::Restricted) if held_for.is_none() => Absence::Restricted,
                _ => Absence::NeverSet,
            };
            let (absence, view) = match policy.decide(ask, *field, held_for) {
                Decision::Allow { view, .. } => (absent, Some(view)),
                Decision::Deny(_) if wanted.open => continue,
                Decision::Deny(denial) if select.partial => (withheld(denial.rule.absence()), None),
                decision => return Err(VaultError::refused(policy, ask, *field, &decision)),
            };
            values.push(Shown { field: *field, what: Err(absence), origin: None, expire: None });
            views.push(view.filter(|_| absence == Absence::NeverSet));
        }
        if values.is_empty() {
            let field = wanted.fields.first().ok_or(VaultError::NotFound)?;
            return Err(VaultError::refused(policy, ask, *field, &policy.decide(ask, *field, None)));
        }
        self.count_subject(call, subject.uid)?;
        for row in &snapshot.classes {
            let in_class = |shown: &Shown| policy.field(shown.field).is_some_and(|rule| rule.class == row.class);
            if values.iter().zip(&views).any(|(v, view)| view.is_some() && in_class(v)) {
                self.open_class(call, row, &mut values, &views).await?;
            }
        }
        for shown in &mut values {
            if let Ok((value, View::Masked)) = &mut shown.what {
                let rule = policy.field(shown.field).ok_or(VaultError::NotFound)?;
                *value = value.masked(rule).ok_or(VaultError::NotFound)?;
            }
        }
        Ok(Got { uid: subject.uid, values, etag: etag(snapshot), state: subject.state })
    }

    /// Opens the wanted values of one class into their places.
    async fn open_class(
        &self,
        call: &Call,
        row: &ClassRow,
        values: &mut [Shown],
        views: &[Option<View>],
    ) -> Result<(), VaultError> {
        let Some(slot) = row.slot else { return Err(VaultError::DataLoss) };
        let key = KeyRef { slot, dek: row.dek };
        let class = ClassRef { tenant: row.tenant, uid: row.uid, class: row.class, key };
        let owner = Owner { vault: self.keyring.vault(), tenant: row.tenant, uid: row.uid, class: row.class };
        let record = RecordView::parse(&row.record).map_err(|_| VaultError::DataLoss)?;
        if record.revision() != row.revision {
            return Err(VaultError::DataLoss);
        }
        // (index in `values`, bucket, place, sealed) of values whose bucket's key is needed too.
        type Later<'r> = (usize, Place, &'r [u8], Timestamp, Option<Timestamp>);
        let mut later: Vec<Later<'_>> = Vec::new();
        let now = call.now;
        let result: Result<Vec<(usize, Shown)>, VaultError> = self
            .with_keys(class, None, |keys| {
                later.clear();
                let mut opened = Vec::with_capacity(values.len());
                let mut failed = false;
                record
                    .walk(keys, &owner, now.day(), |entry| {
                        let Some(i) = values.iter().position(|v| v.field == entry.field) else { return };
                        let Some(view) = views[i] else { return };
                        let (origin, expire) = (entry.origin, entry.expire);
                        let shown = |what| Shown { field: entry.field, what, origin: Some(origin), expire };
                        // What a hold keeps beyond its time is read for the hold's purpose alone, which was asked.
                        if expire.is_some_and(|t| t <= now) && row.state != ClassState::Restricted {
                            opened.push((i, shown(Err(Absence::Expired))));
                            return;
                        }
                        let place = entry_place(&owner, key.dek, &entry);
                        if entry.bucket != Bucket::NONE {
                            later.push((i, place, entry.sealed, origin, expire));
                            return;
                        }
                        match open_value(keys, &place, entry.sealed) {
                            Ok(value) => opened.push((i, shown(Ok((value, view))))),
                            Err(_) => failed = true,
                        }
                    })
                    .map_err(|_| VaultError::DataLoss)?;
                if failed { Err(VaultError::DataLoss) } else { Ok(opened) }
            })
            .await?;
        for (i, shown) in result? {
            values[i] = shown;
        }
        for (i, place, sealed, origin, expire) in later {
            let field = place.field;
            let what = match self.bucket_key(call, place.class, place.bucket) {
                None => Err(Absence::Expired),
                Some(bucket) => {
                    let value = self.with_keys(class, Some(bucket), |keys| open_value(keys, &place, sealed)).await??;
                    views[i].map(|view| (value, view)).ok_or(Absence::Denied)
                }
            };
            values[i] = Shown { field, what, origin: Some(origin), expire };
        }
        Ok(())
    }
}

/// The bytes of a value that are sealed; wiped on drop.
pub(crate) fn plain_bytes(value: &Value) -> Zeroizing<Vec<u8>> {
    let mut plain = Zeroizing::new(Vec::with_capacity(value.encoded_len()));
    value.encode(&mut plain);
    plain
}

/// Where an entry of a record belongs, for its AAD.
pub(crate) fn entry_place(owner: &Owner, dek: DekId, entry: &Entry<'_>) -> Place {
    Place {
        vault: owner.vault,
        tenant: owner.tenant,
        uid: owner.uid,
        class: owner.class,
        field: entry.field,
        item: 0,
        dek,
        bucket: entry.bucket,
        revision: entry.revision,
    }
}

/// Opens and decodes one value.
pub(crate) fn open_value(keys: &ClassKeys, place: &Place, sealed: &[u8]) -> Result<Value, VaultError> {
    let plain = keys.cipher().open(&Aad::value(place), sealed).map_err(|_| VaultError::DataLoss)?;
    Value::decode(&plain).map_err(|_| VaultError::DataLoss)
}

/// Which fields a selection means.
pub(crate) fn resolve(policy: &Policy, select: &Select) -> Result<Wanted, VaultError> {
    let mut unknown = Vec::new();
    let mut fields: SmallVec<[FieldNo; 16]> = SmallVec::new();
    let mut set = FieldSet::EMPTY;
    let mut add = |field: FieldNo, fields: &mut SmallVec<[FieldNo; 16]>| {
        if !set.has(field.0) {
            set.insert(field.0);
            fields.push(field);
        }
    };
    for (i, field) in select.fields.iter().enumerate() {
        match policy.field(*field) {
            Some(rule) if !rule.many => add(*field, &mut fields),
            Some(_) => {
                unknown.push(Violation::new(format!("select.field_ids[{i}]"), "a many-valued field: use ListItems"))
            }
            None => unknown
                .push(Violation::new(format!("select.field_ids[{i}]"), "no field with this number in the schema")),
        }
    }
    for (i, class) in select.classes.iter().enumerate() {
        if policy.class(*class).is_none() {
            unknown.push(Violation::new(format!("select.class_ids[{i}]"), "no class with this number in the policy"));
        }
    }
    if !unknown.is_empty() {
        return Err(VaultError::UnknownField(unknown));
    }
    let open = select.fields.is_empty() && select.classes.is_empty();
    if open || !select.classes.is_empty() {
        for rule in policy.fields() {
            if !rule.many && (open || select.classes.contains(&rule.class)) {
                add(rule.no, &mut fields);
            }
        }
    }
    Ok(Wanted { fields, set, open: open || !select.classes.is_empty() })
}
