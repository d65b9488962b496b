//! Finding subjects: by id, by a unique value, by a searchable value.

use std::sync::Arc;

use crate::access::Verb;
use crate::audit::{Action, Fields, Outcome};
use crate::ids::*;
use crate::policy::compiled::Decision;
use crate::policy::value::normalize_text;
use crate::storage::{Lookup, SubjectSnapshot};
use crate::vault::Vault;
use crate::vault::call::{Call, Context};
use crate::vault::error::{VaultError, Violation};
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

/// Subjects that were found, by uid, and whether more follow.
pub struct Found {
    pub subjects: Vec<Arc<SubjectSnapshot>>,
    pub more: bool,
}

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
                    return Ok(snapshot);
                }
                found(self.store.subject(call.tenant.no, digest).await?)
            }
            Key::Unique { field, text } => {
                let tags = self.tags(call, context, *field, text, true)?;
                let page = self.store.find_terms(call.tenant.no, *field, tags, SubjectUid(0), 1).await?;
                let uid = page.rows.first().ok_or(VaultError::NotFound)?;
                self.store.subject_by_uid(*uid).await?.ok_or(VaultError::NotFound)
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
                    cached.map(Ok)
                }
                Key::Unique { .. } => Some(self.resolve(call, context, key).await),
            });
        }
        if !digests.is_empty() {
            let lookups = self.store.subjects(call.tenant.no, digests).await?;
            for (i, lookup) in missing.into_iter().zip(lookups) {
                out[i] = Some(found(lookup));
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
    ) -> Result<Vec<(SecretVersion, TermTag)>, VaultError> {
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
        let ask = context.ask(call, Verb::Find, purpose, group, None, false);
        if let decision @ Decision::Deny(_) = policy.decide(&ask, field, None) {
            return Err(VaultError::refused(policy, &ask, field, &decision));
        }
        let normalized = normalize_text(rule, text)
            .ok_or_else(|| VaultError::Invalid(vec![at("the value cannot be searched for")]))?;
        Ok(call.tenant.terms(field, &normalized))
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
        let tags = self.tags(call, context, field, text, false)?;
        let page = self.store.find_terms(call.tenant.no, field, tags, after, limit).await?;
        let mut subjects = Vec::with_capacity(page.rows.len());
        for uid in page.rows {
            let Some(snapshot) = self.store.subject_by_uid(uid).await? else { continue };
            let ask = context.ask(call, Verb::Find, purpose, snapshot.subject.group, None, false);
            if matches!(policy.decide(&ask, field, None), Decision::Allow { .. }) {
                subjects.push(snapshot);
            }
        }
        let mut entry = call.record(Action::FindSubjects, Outcome::Ok);
        entry.fields = Fields::new([field]);
        entry.purpose = purpose;
        let mut entries: Vec<_> = subjects
            .iter()
            .map(|snapshot| {
                let mut entry = entry.clone();
                entry.subject = Some(snapshot.subject.uid);
                entry
            })
            .collect();
        if entries.is_empty() {
            entry.outcome = Outcome::NotFound;
            entries.push(entry);
        }
        self.read_log.append_all(call.tenant.no, &entries).await.map_err(|_| VaultError::AuditUnavailable)?;
        Ok(Found { subjects, more: page.more })
    }
}

fn found(lookup: Lookup) -> Result<Arc<SubjectSnapshot>, VaultError> {
    match lookup {
        Lookup::Found(snapshot) => Ok(snapshot),
        Lookup::Erased(_) => Err(VaultError::SubjectErased),
        Lookup::Missing => Err(VaultError::NotFound),
    }
}
