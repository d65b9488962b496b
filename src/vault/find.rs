//! Finding subjects: by id, by a unique value, by a searchable value.

use std::sync::Arc;

use crate::access::Verb;
use crate::audit::{Action, Fields, Outcome};
use crate::clock::Timestamp;
use crate::ids::*;
use crate::keyring::{ClassRef, KeyRef};
use crate::policy::compiled::{Ask, Decision, FieldRule, Policy, PurposeRule, SubjectFacts};
use crate::policy::facts::Consent;
use crate::policy::value::{normalize, normalize_text};
use crate::storage::{ClassState, Lookup, SubjectSnapshot};
use crate::vault::Vault;
use crate::vault::call::{Call, Context};
use crate::vault::error::{VaultError, Violation};
use crate::vault::read::{entry_place, open_value};
use crate::vault::record::{Owner, RecordView};
use zeroize::Zeroizing;

/// How a caller names a subject.
pub enum Key {
    Subject(SubjectId),
    /// The value of a unique field.
    Unique {
        field: FieldNo,
        text: Zeroizing<String>,
    },
}

impl Key {
    /// What tells keys apart; for keyed digests only.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Key::Subject(id) => id.as_str().as_bytes(),
            Key::Unique { text, .. } => text.as_bytes(),
        }
    }
}

/// Subjects that were found, by uid, and whether more follow.
pub struct Found {
    pub subjects: Vec<Arc<SubjectSnapshot>>,
    pub more: bool,
}

/// A search term in the form in which values are compared.
type Normalized = Zeroizing<Vec<u8>>;

/// How often an index row and the value it leads to are read before they are believed to disagree.
const LOOKS: usize = 3;

impl Vault {
    /// The subject that a key names.
    ///
    /// # Errors
    /// `NotFound`, also for another tenant's; `SubjectErased` inside its own tenant.
    pub(crate) async fn resolve(
        &self,
        call: &Call,
        context: &Context,
        key: &Key,
    ) -> Result<Arc<SubjectSnapshot>, VaultError> {
        match key {
            Key::Subject(id) => {
                let digest = call.tenant.digest(id);
                if let Some(snapshot) = self.store.cached_subject(call.tenant.no, digest) {
                    return named(call, id, snapshot);
                }
                found(call, id, self.store.subject(call.tenant.no, digest).await?)
            }
            Key::Unique { field, text } => {
                let (tags, wanted) = self.tags(call, context, *field, text, true, false)?;
                let rule = call.tenant.policy()?.field(*field).ok_or(VaultError::NotFound)?;
                // The value may change between the two looks, hence again; what stays different was tampered with.
                for _ in 0..LOOKS {
                    let page = self.store.find_terms(call.tenant.no, *field, tags.clone(), SubjectUid(0), 1).await?;
                    let uid = page.rows.first().ok_or(VaultError::NotFound)?;
                    let snapshot = self.store.subject_by_uid(*uid).await?.ok_or(VaultError::NotFound)?;
                    if self.has_value(call, &snapshot, rule, &wanted).await? {
                        return Ok(snapshot);
                    }
                }
                Err(VaultError::DataLoss)
            }
        }
    }

    /// Several keys at once, in the order asked.
    pub(crate) async fn resolve_all(
        &self,
        call: &Call,
        context: &Context,
        keys: &[Key],
    ) -> Result<Vec<Result<Arc<SubjectSnapshot>, VaultError>>, VaultError> {
        let mut out: Vec<Option<Result<Arc<SubjectSnapshot>, VaultError>>> = Vec::with_capacity(keys.len());
        let (mut missing, mut digests) = (Vec::new(), Vec::new());
        for (i, key) in keys.iter().enumerate() {
            out.push(match key {
                Key::Subject(id) => {
                    let digest = call.tenant.digest(id);
                    let cached = self.store.cached_subject(call.tenant.no, digest);
                    if cached.is_none() {
                        missing.push(i);
                        digests.push(digest);
                    }
                    cached.map(|snapshot| named(call, id, snapshot))
                }
                Key::Unique { .. } => Some(self.resolve(call, context, key).await),
            });
        }
        if !digests.is_empty() {
            let lookups = self.store.subjects(call.tenant.no, digests).await?;
            for (i, lookup) in missing.into_iter().zip(lookups) {
                let Key::Subject(id) = &keys[i] else { continue };
                out[i] = Some(found(call, id, lookup));
            }
        }
        Ok(out.into_iter().map(|o| o.unwrap_or(Err(VaultError::NotFound))).collect())
    }

    /// The index tags of a value, after asking the policy whether this caller may find by that field.
    fn tags(
        &self,
        call: &Call,
        context: &Context,
        field: FieldNo,
        text: &str,
        unique: bool,
        approved: bool,
    ) -> Result<(Vec<(SecretVersion, TermTag)>, Normalized), VaultError> {
        let policy = call.tenant.policy()?;
        let at = |rule: &str| Violation { path: "field_id".into(), field: Some(field), rule: rule.into() };
        let Some(rule) = policy.field(field) else {
            return Err(VaultError::UnknownField(vec![at("no field with this number in the schema")]));
        };
        if !rule.searchable {
            return Err(VaultError::Invalid(vec![at("the field is not searchable")]));
        }
        if unique && !rule.unique {
            return Err(VaultError::Invalid(vec![at("the field is not unique: use FindSubjects")]));
        }
        // The group of a subject not yet found is not known: it is looked at again once it is.
        let purpose = context.purpose()?;
        let anyone = call.principal.grants.iter().find(|g| g.verbs.has(Verb::Find) && g.fields.has(field.0));
        let group = anyone.and_then(|g| g.groups.as_ref()).and_then(|groups| groups.first().copied());
        let ask = context.ask(call, Verb::Find, purpose, group, None, approved);
        // Who consented is not known before either: here it is asked whether anybody may be found at all.
        let consents = everything_consented(policy, call.now);
        let ask = Ask { facts: SubjectFacts { consents: &consents, ..SubjectFacts::NONE }, ..ask };
        if let decision @ Decision::Deny(_) = policy.decide(&ask, field, None) {
            return Err(VaultError::refused(policy, &ask, field, &decision));
        }
        let normalized = normalize_text(rule, text)
            .ok_or_else(|| VaultError::Invalid(vec![at("the value cannot be searched for")]))?;
        Ok((call.tenant.terms(field, &normalized), normalized))
    }

    /// Whether the value that the index led to is the one that was looked for. A value that is not readable any more
    /// (its class is kept by a hold alone, say) agrees with whatever led to it: nothing of it is shown by a search.
    async fn has_value(
        &self,
        call: &Call,
        snapshot: &SubjectSnapshot,
        rule: &FieldRule,
        wanted: &Normalized,
    ) -> Result<bool, VaultError> {
        let subject = &snapshot.subject;
        if subject.tenant != call.tenant.no {
            return Err(VaultError::DataLoss);
        }
        let Some(row) = snapshot.class(rule.class) else { return Ok(false) };
        let (ClassState::Live, Some(slot)) = (row.state, row.slot) else { return Ok(true) };
        let key = KeyRef { slot, dek: row.dek };
        let class = ClassRef { tenant: row.tenant, uid: row.uid, class: row.class, key };
        let owner = Owner { vault: self.keyring.vault(), tenant: row.tenant, uid: row.uid, class: row.class };
        let record = RecordView::parse(&row.record).map_err(|_| VaultError::DataLoss)?;
        let mut at = None;
        let walked = self
            .with_keys(class, None, |keys| {
                record.walk(keys, &owner, call.now.day(), |entry| {
                    if entry.field == rule.no {
                        at = Some((entry_place(&owner, key.dek, &entry), entry.sealed));
                    }
                })
            })
            .await?;
        walked.map_err(|_| VaultError::DataLoss)?;
        let Some((place, sealed)) = at else { return Ok(false) };
        let bucket = match place.bucket {
            Bucket::NONE => None,
            bucket => match self.bucket_key(call, place.class, bucket) {
                Some(key) => Some(key),
                None => return Ok(true),
            },
        };
        let value = self.with_keys(class, bucket, |keys| open_value(keys, &place, sealed)).await??;
        Ok(normalize(rule, &value).is_some_and(|found| found == *wanted))
    }

    /// Subjects whose field has this value, by uid, after `after`.
    pub async fn find_subjects(
        &self,
        call: &Call,
        context: &Context,
        field: FieldNo,
        text: &str,
        after: SubjectUid,
        limit: u32,
    ) -> Result<Found, VaultError> {
        let policy = call.tenant.policy()?;
        let purpose = context.purpose()?;
        context.stays_here()?;
        // Who will be found is not known before: an approval for a search names no subject.
        let approved = self.take_approval(call, context, &[], Verb::Find, &[field.0].into_iter().collect()).await?;
        let (tags, wanted) = self.tags(call, context, field, text, false, approved)?;
        let rule = policy.field(field).ok_or(VaultError::NotFound)?;
        let (mut subjects, mut after, mut more) = (Vec::new(), after, true);
        // A page is filled with who may be found, and one more is looked for: neither its length nor that another follows
        // tells of those who may not.
        while more && subjects.len() <= limit as usize {
            let page = self.store.find_terms(call.tenant.no, field, tags.clone(), after, limit.max(1)).await?;
            (after, more) = (page.rows.last().copied().unwrap_or(after), page.more);
            for uid in page.rows {
                self.find_one(call, context, rule, &tags, &wanted, approved, uid, &mut subjects).await?;
            }
        }
        let more = subjects.len() > limit as usize;
        subjects.truncate(limit as usize);
        let mut entry = call.record(Action::FindSubjects, Outcome::Ok);
        entry.fields = Fields::new([field]);
        entry.purpose = purpose;
        let mut entries: Vec<_> = subjects
            .iter()
            .map(|snapshot: &Arc<SubjectSnapshot>| {
                let mut entry = entry.clone();
                entry.subject = Some(snapshot.subject.uid);
                entry
            })
            .collect();
        if entries.is_empty() {
            entry.outcome = Outcome::NotFound;
            entries.push(entry);
        }
        self.note_reads(call, &entries).await?;
        Ok(Found { subjects, more })
    }

    /// Adds a hit of the index, if the value is there and the caller may find this person by it.
    async fn find_one(
        &self,
        call: &Call,
        context: &Context,
        rule: &FieldRule,
        tags: &[(SecretVersion, TermTag)],
        wanted: &Normalized,
        approved: bool,
        uid: SubjectUid,
        subjects: &mut Vec<Arc<SubjectSnapshot>>,
    ) -> Result<(), VaultError> {
        let Some(snapshot) = self.store.subject_by_uid(uid).await? else { return Ok(()) };
        if !self.has_value(call, &snapshot, rule, wanted).await? {
            // Changed since the index was read, or led here by a row that somebody changed.
            let before = SubjectUid(uid.0 - 1);
            let now = self.store.find_terms(call.tenant.no, rule.no, tags.to_vec(), before, 1).await?;
            if now.rows.first() == Some(&uid) {
                let snapshot = self.store.subject_by_uid(uid).await?;
                if let Some(snapshot) = &snapshot
                    && !self.has_value(call, snapshot, rule, wanted).await?
                {
                    return Err(VaultError::DataLoss);
                }
            }
            return Ok(());
        }
        let facts = self.facts(call, &snapshot).await?;
        let ask = context.ask(call, Verb::Find, context.purpose()?, snapshot.subject.group, None, approved);
        let ask = Ask { facts: facts.view(), ..ask };
        if matches!(call.tenant.policy()?.decide(&ask, rule.no, None), Decision::Allow { .. }) {
            subjects.push(snapshot);
        }
        Ok(())
    }
}

/// The facts of somebody who agreed to every purpose, now.
pub(crate) fn everything_consented(policy: &Policy, now: Timestamp) -> Vec<Consent> {
    let consent = |rule: &PurposeRule| Consent { purpose: rule.no, policy: [0; 32], given: now, until: None };
    policy.purposes().filter(|rule| !rule.consent.is_empty()).map(consent).collect()
}

/// The subject itself, if its row belongs to the id it was found by.
pub(crate) fn named(
    call: &Call,
    id: &SubjectId,
    snapshot: Arc<SubjectSnapshot>,
) -> Result<Arc<SubjectSnapshot>, VaultError> {
    let row = &snapshot.subject;
    if call.tenant.is_id(row.uid, &row.sealed_id, id) { Ok(snapshot) } else { Err(VaultError::DataLoss) }
}

pub(crate) fn found(call: &Call, id: &SubjectId, lookup: Lookup) -> Result<Arc<SubjectSnapshot>, VaultError> {
    match lookup {
        Lookup::Found(snapshot) => named(call, id, snapshot),
        Lookup::Erased(_) => Err(VaultError::SubjectErased),
        Lookup::Missing => Err(VaultError::NotFound),
    }
}
