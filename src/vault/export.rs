//! Everything that is kept about a subject, for the subject: single values first, then the items of each many-valued
//! field. Who exports needs the verb EXPORT; the audit entry is durable before the first value is read.
//!
//! An export that was interrupted goes on where it stopped: its etag names the moment it was made for and a MAC over
//! everything that its contents depend on, so the same etag gives the same contents or `EtagStale`.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::access::{FieldSet, Verb, View};
use crate::audit::{Action, Fields, Outcome};
use crate::clock::Timestamp;
use crate::ids::*;
use crate::keyring::{ClassRef, KeyRef};
use crate::policy::compiled::{Ask, Decision, Policy};
use crate::policy::value::Value;
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::{Call, Context};
use crate::vault::error::{VaultError, Violation};
use crate::vault::etag::etag;
use crate::vault::find::Key;
use crate::vault::read::{Select, Shown, resolve};

/// Items that are read at a time.
const PAGE: u32 = 200;

/// One value of an export.
pub struct ExportRow {
    pub field: FieldNo,
    /// `None` for a single-valued field.
    pub item: Option<ItemNo>,
    pub value: Value,
    pub view: View,
    pub origin: Option<Timestamp>,
    pub expire: Option<Timestamp>,
}

/// An export under way.
pub struct Export {
    pub policy: Arc<Policy>,
    pub subject: SubjectId,
    /// The tenant's time that it shows.
    pub as_of: Timestamp,
    /// What to send to go on after an interruption.
    pub etag: String,
    call: Call,
    ready: VecDeque<ExportRow>,
    groups: VecDeque<(ClassRef, View, ItemGroupRow)>,
    /// Last item read of the first group; `None` before it was begun.
    after: Option<ItemNo>,
}

impl Vault {
    /// Begins an export, or goes on with the one of that etag.
    ///
    /// # Errors
    /// `EtagStale` when the subject, the policy or what is still readable changed since.
    pub async fn export(
        &self,
        call: &Call,
        context: &Context,
        key: &Key,
        select: &Select,
        resume: Option<&str>,
    ) -> Result<Export, VaultError> {
        let policy = call.tenant.policy()?.clone();
        let purpose = context.purpose()?;
        let as_of = match resume {
            Some(etag) => as_of(etag).filter(|t| *t <= call.now).ok_or(VaultError::EtagStale)?,
            None => call.now,
        };
        let named = self.wanted(&policy, select)?;
        let snapshot = match self.resolve(call, context, key).await {
            Ok(snapshot) => snapshot,
            Err(error) => return Err(self.missed(call, Action::ExportSubject, purpose, &named, error).await),
        };
        let facts = self.facts(call, &snapshot).await?;
        let ask = context.ask(call, Verb::Export, purpose, snapshot.subject.group, select.view, false);
        let ask = Ask { facts: facts.view(), ..ask };
        let approved = match context.approval {
            Some(id) => {
                let uid = snapshot.subject.uid;
                self.use_approval(call, context, id, &[uid], Verb::Export, named).await?;
                true
            }
            None => false,
        };
        let ask = Ask { approved, ..ask };
        let planned = self.plan_export(call, &policy, &ask, &snapshot, select, as_of, resume).await;
        let (outcome, fields) = match &planned {
            Ok((_, fields)) => (Outcome::Ok, fields),
            Err(error) => (error.outcome(), &named),
        };
        let mut entry = call.record(Action::ExportSubject, outcome);
        entry.subject = Some(snapshot.subject.uid);
        entry.fields = Fields::new(fields.iter().map(FieldNo));
        entry.purpose = purpose;
        entry.recipient = context.recipient_no();
        self.attach_detail(call, context, &mut entry, &snapshot.classes).await?;
        if context.recipient.is_some() {
            self.note_disclosures(call, std::slice::from_ref(&entry)).await?;
        }
        self.note_read(call, &entry).await?;
        planned.map(|(export, _)| export)
    }

    /// The fields that the selection means, without asking who may have them.
    fn wanted(&self, policy: &Policy, select: &Select) -> Result<FieldSet, VaultError> {
        let at = |list: &str, i: usize, rule: &str| Violation::new(format!("select.{list}[{i}]"), rule);
        let mut unknown = Vec::new();
        for (i, field) in select.fields.iter().enumerate() {
            if policy.field(*field).is_none() {
                unknown.push(at("field_ids", i, "no field with this number in the schema"));
            }
        }
        for (i, class) in select.classes.iter().enumerate() {
            if policy.class(*class).is_none() {
                unknown.push(at("class_ids", i, "no class with this number in the policy"));
            }
        }
        if !unknown.is_empty() {
            return Err(VaultError::UnknownField(unknown));
        }
        if select.fields.is_empty() && select.classes.is_empty() {
            return Ok(policy.fields().map(|rule| rule.no.0).collect());
        }
        Ok(policy.field_set(select.classes.iter().copied(), select.fields.iter().copied()))
    }

    #[allow(clippy::too_many_arguments)] // the parts of one question, for one caller
    async fn plan_export(
        &self,
        call: &Call,
        policy: &Arc<Policy>,
        ask: &Ask<'_>,
        snapshot: &SubjectSnapshot,
        select: &Select,
        as_of: Timestamp,
        resume: Option<&str>,
    ) -> Result<(Export, FieldSet), VaultError> {
        let subject = &snapshot.subject;
        if subject.state == SubjectState::Frozen {
            return Err(VaultError::WrongState("the subject's erasure is under way"));
        }
        let (mut singles, mut fields, mut groups) = (Vec::new(), FieldSet::EMPTY, VecDeque::new());
        let mut refused = None;
        for rule in self.wanted(policy, select)?.iter().filter_map(|no| policy.field(FieldNo(no))) {
            let row = snapshot.class(rule.class);
            let restricted = row.filter(|row| row.state == ClassState::Restricted);
            let held_for = restricted.and_then(|_| policy.class(rule.class)?.hold.as_ref()).map(|hold| hold.purpose);
            let view = match policy.decide(ask, rule.no, held_for) {
                Decision::Allow { view, .. } => view,
                decision => {
                    let error = VaultError::refused(policy, ask, rule.no, &decision);
                    if select.fields.contains(&rule.no) {
                        return Err(error);
                    }
                    refused.get_or_insert(error);
                    continue;
                }
            };
            fields.insert(rule.no.0);
            if !rule.many {
                singles.push(rule.no);
                continue;
            }
            let Some((row, slot)) = row.and_then(|row| Some((row, row.slot?))) else { continue };
            if restricted.is_some() && held_for.is_none() {
                continue;
            }
            let class =
                ClassRef { tenant: row.tenant, uid: row.uid, class: row.class, key: KeyRef { slot, dek: row.dek } };
            for group in self.store.item_groups(subject.uid, Some(rule.no)).await? {
                let bucket = group.key.bucket;
                if bucket == Bucket::NONE || i64::from(bucket.0) >= as_of.day() {
                    groups.push_back((class, view, group));
                }
            }
        }
        if fields.is_empty() {
            return Err(refused.unwrap_or(VaultError::NotFound));
        }
        let etag = self.export_etag(call, policy, ask, snapshot, &fields, &groups, as_of);
        if resume.is_some_and(|wanted| wanted != etag) {
            return Err(VaultError::EtagStale);
        }
        let mut ready = VecDeque::new();
        if !singles.is_empty() {
            let select = Select { fields: singles, view: select.view, partial: true, ..Select::default() };
            let wanted = resolve(policy, &select)?;
            let got = self.read_snapshot(call, policy, ask, snapshot, &wanted, &select).await?;
            for Shown { field, what, origin, expire } in got.values {
                still_there(as_of, call.now, expire)?;
                if let Ok((value, view)) = what {
                    ready.push_back(ExportRow { field, item: None, value, view, origin, expire });
                }
            }
        }
        let subject = call.tenant.open_id(subject.uid, &subject.sealed_id)?;
        let (policy, call) = (policy.clone(), call.clone());
        Ok((Export { policy, subject, as_of, etag, call, ready, groups, after: None }, fields))
    }

    #[allow(clippy::too_many_arguments)] // everything that the contents depend on
    fn export_etag(
        &self,
        call: &Call,
        policy: &Policy,
        ask: &Ask<'_>,
        snapshot: &SubjectSnapshot,
        fields: &FieldSet,
        groups: &VecDeque<(ClassRef, View, ItemGroupRow)>,
        as_of: Timestamp,
    ) -> String {
        let mut facts = Vec::with_capacity(64 + groups.len() * 14);
        facts.extend_from_slice(&snapshot.subject.uid.0.to_be_bytes());
        facts.extend_from_slice(&as_of.0.to_be_bytes());
        facts.extend_from_slice(&policy.version().0.to_be_bytes());
        facts.extend_from_slice(&ask.purpose.0.to_be_bytes());
        facts.push(ask.view.map_or(0, |view| view as u8));
        facts.extend(fields.iter().flat_map(u16::to_be_bytes));
        for (_, view, group) in groups {
            facts.push(*view as u8);
            facts.extend_from_slice(&group.key.field.0.to_be_bytes());
            facts.extend_from_slice(&group.key.bucket.0.to_be_bytes());
            facts.extend_from_slice(&group.revision.0.to_be_bytes());
        }
        let actor = call.principal.actor.0.to_be_bytes();
        let mac = call.tenant.token_mac(&[b"export", &actor, etag(snapshot).as_bytes(), &facts]);
        format!("{:x}-{}", as_of.0, data_encoding::HEXLOWER.encode(&mac))
    }

    /// The next values of an export; `None` at its end.
    ///
    /// # Errors
    /// `EtagStale` when a value's time ended since the moment that the export shows, or its group was changed.
    pub async fn export_next(&self, export: &mut Export) -> Result<Option<Vec<ExportRow>>, VaultError> {
        if !export.ready.is_empty() {
            return Ok(Some(export.ready.drain(..).collect()));
        }
        while let Some((class, view, group)) = export.groups.front().cloned() {
            let now = export.call.tenant.time(self.now());
            let bucket = match group.key.bucket {
                Bucket::NONE => None,
                bucket => {
                    let key = self.bucket_key(&export.call, group.key.class, bucket);
                    Some(key.ok_or(VaultError::EtagStale)?)
                }
            };
            let after = match export.after {
                Some(after) => after,
                None => {
                    self.verify_group(class, &group).await?;
                    ItemNo(-1)
                }
            };
            let page = self.store.items(group.key, after, PAGE).await?;
            let rule = export.policy.field(group.key.field).ok_or(VaultError::NotFound)?;
            let mut rows = Vec::with_capacity(page.rows.len());
            for row in &page.rows {
                still_there(export.as_of, now, row.expire)?;
                if row.expire.is_some_and(|t| t <= export.as_of) {
                    continue;
                }
                let shown = self.show_item(class, bucket, rule, row, view).await?;
                rows.push(ExportRow {
                    field: group.key.field,
                    item: Some(shown.item),
                    value: shown.value,
                    view: shown.view,
                    origin: Some(shown.origin),
                    expire: shown.expire,
                });
            }
            export.after = page.rows.last().map(|row| row.item).filter(|_| page.more);
            if export.after.is_none() {
                export.groups.pop_front();
            }
            if !rows.is_empty() {
                return Ok(Some(rows));
            }
        }
        Ok(None)
    }
}

/// The moment that an export's etag names.
fn as_of(etag: &str) -> Option<Timestamp> {
    let (time, _) = etag.split_once('-')?;
    i64::from_str_radix(time, 16).ok().map(Timestamp)
}

/// A value that ended between the moment an export shows and now cannot be shown any more.
fn still_there(as_of: Timestamp, now: Timestamp, expire: Option<Timestamp>) -> Result<(), VaultError> {
    match expire {
        Some(end) if end > as_of && end <= now => Err(VaultError::EtagStale),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_etag_names_its_moment() {
        assert_eq!(as_of("ff-00"), Some(Timestamp(255)));
        for bad in ["", "ff", "x-1", "-"] {
            assert_eq!(as_of(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_value_that_ended_meanwhile_stops_a_resumed_export() {
        let (t, end) = (Timestamp, Some(Timestamp(10)));
        assert!(still_there(t(10), t(20), end).is_ok(), "it was over already: it is not in the document");
        assert!(still_there(t(9), t(9), end).is_ok());
        assert!(still_there(t(9), t(10), end).is_err());
        assert!(still_there(t(9), t(99), None).is_ok());
    }
}
