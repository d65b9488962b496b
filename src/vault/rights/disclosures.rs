//! Who was given what of a person.
//!
//! Every read for a recipient names it in the audit of reads, and the first of a day leaves a row for (subject, recipient)
//! before the value goes out: which fields, for which purposes, under which agreement, from when to when. The rows outlive
//! the audit. By them an erasure knows whom to tell, and a recipient that has deleted its copy says so on its row.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::access::{FieldSet, PurposeSet, Verb};
use crate::audit::{Action, AuditRecord, Chain, Outcome};
use crate::clock::Timestamp;
use crate::ids::*;
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::audit_read::EntryQuery;
use crate::vault::call::{Call, Context};
use crate::vault::error::VaultError;
use crate::vault::feed::{EventKind, FeedEvent};
use crate::vault::find::Key;
use crate::vault::request::Request;
use crate::vault::to_json;

/// Pages of the audit that one answer looks at: about two million entries.
const PAGES: usize = 100;
/// Pages of rows that one list looks at.
const ROW_PAGES: usize = 50;
/// Pairs of subject and recipient that are remembered to be on record already.
pub(crate) const REMEMBERED: usize = 65_536;

/// What is on record of one recipient and one subject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Given {
    fields: Vec<u16>,
    purposes: Vec<u16>,
    first: Timestamp,
    /// First read of its last day.
    last: Timestamp,
    /// Reference of the agreement at the last read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    agreement: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    erasure: Option<ObjectId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    erased: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    acknowledged: Option<Timestamp>,
}

/// What one recipient was given of one person.
#[derive(Debug, Clone)]
pub struct Disclosure {
    pub uid: SubjectUid,
    pub recipient: RecipientNo,
    pub fields: FieldSet,
    pub purposes: PurposeSet,
    /// Reads that the audit still has.
    pub reads: u64,
    /// By the machine's clock, as the audit has it.
    pub first: Timestamp,
    pub last: Timestamp,
    pub agreement: Option<String>,
    /// When the keys of what was given were destroyed.
    pub erased: Option<Timestamp>,
    /// When the recipient said that its copy is deleted.
    pub acknowledged: Option<Timestamp>,
}

/// All of them, by number, and whether the whole audit was looked at.
#[derive(Debug)]
pub struct Disclosures {
    pub rows: Vec<Disclosure>,
    pub complete: bool,
}

/// A row as it is stored.
pub(crate) struct GivenRow {
    pub recipient: RecipientNo,
    given: Given,
    revision: Revision,
}

/// What is remembered of a pair: its fields and the day that is on record.
pub(crate) type Remembered = std::collections::HashMap<(TenantNo, SubjectUid, RecipientNo), (FieldSet, i64)>;

fn key_of(uid: SubjectUid, recipient: RecipientNo) -> Vec<u8> {
    [&uid.0.to_be_bytes()[..], &recipient.0.to_be_bytes()].concat()
}

fn parts_of(key: &[u8]) -> Option<(SubjectUid, RecipientNo)> {
    let (uid, recipient) = key.split_first_chunk::<8>()?;
    Some((SubjectUid(i64::from_be_bytes(*uid)), RecipientNo(u16::from_be_bytes(recipient.try_into().ok()?))))
}

fn put_row(tenant: TenantNo, key: Vec<u8>, given: &Given, revision: Revision, change: &mut ChangeSet) {
    let kind = ObjectKind::Disclosure;
    change.replace_object(tenant, kind, key, revision, to_json(given));
}

impl Vault {
    /// Puts on record what these reads give away, before any of it leaves. A read of a pair that is on record for the day
    /// costs a look into memory.
    pub(crate) async fn note_disclosures(&self, call: &Call, entries: &[AuditRecord]) -> Result<(), VaultError> {
        let given = |e: &&AuditRecord| e.recipient.0 != 0 && matches!(e.outcome, Outcome::Ok | Outcome::Partial);
        let tenant = call.tenant.no;
        let mut new: BTreeMap<(SubjectUid, RecipientNo), &AuditRecord> = BTreeMap::new();
        {
            let known = self.disclosed.lock();
            for entry in entries.iter().filter(given) {
                let Some(uid) = entry.subject else { continue };
                let fields: FieldSet = entry.fields.iter().map(|field| field.0).collect();
                let there = known.get(&(tenant, uid, entry.recipient));
                if !fields.is_empty()
                    && there.is_none_or(|(all, day)| fields.and(all) != fields || *day != entry.at.day())
                {
                    new.insert((uid, entry.recipient), entry);
                }
            }
        }
        if new.is_empty() {
            return Ok(());
        }
        for _ in 0..6 {
            let (mut change, mut noted) = (ChangeSet::default(), Vec::with_capacity(new.len()));
            for ((uid, recipient), entry) in &new {
                let key = key_of(*uid, *recipient);
                let row = self.store.object(tenant, ObjectKind::Disclosure, key.clone()).await?;
                let agreement = call.tenant.policy()?.recipient(*recipient).and_then(|rule| rule.dpa.clone());
                let (mut given, revision) = match row {
                    Some(row) => (serde_json::from_slice(&row.body).map_err(|_| VaultError::DataLoss)?, row.revision),
                    None => {
                        let (at, fields, purposes) = (entry.at, Vec::new(), Vec::new());
                        let given = Given {
                            fields,
                            purposes,
                            first: at,
                            last: at,
                            agreement: None,
                            erasure: None,
                            erased: None,
                            acknowledged: None,
                        };
                        (given, Revision(0))
                    }
                };
                let mut fields: FieldSet = given.fields.iter().copied().collect();
                entry.fields.iter().for_each(|field| {
                    fields.insert(field.0);
                });
                let mut purposes: PurposeSet = given.purposes.iter().copied().collect();
                purposes.insert(entry.purpose.0);
                // What was given after a deletion was confirmed is a new copy.
                let copied = (None, None, None);
                (given.erasure, given.erased, given.acknowledged) = copied;
                given = Given {
                    fields: fields.iter().collect(),
                    purposes: purposes.iter().collect(),
                    last: entry.at,
                    agreement: agreement.or(given.agreement),
                    ..given
                };
                put_row(tenant, key, &given, revision, &mut change);
                noted.push(((tenant, *uid, *recipient), (fields, entry.at.day())));
            }
            match self.store.commit(change).await {
                Ok(_) => {
                    let mut known = self.disclosed.lock();
                    if known.len() + noted.len() > REMEMBERED {
                        known.clear();
                    }
                    known.extend(noted);
                    return Ok(());
                }
                Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(VaultError::Conflict)
    }

    /// What is on record of a subject.
    pub(crate) async fn given_of(&self, tenant: TenantNo, uid: SubjectUid) -> Result<Vec<GivenRow>, VaultError> {
        let prefix = uid.0.to_be_bytes().to_vec();
        let page = self.store.objects(tenant, ObjectKind::Disclosure, prefix, Vec::new(), 1_000).await?;
        let row = |row: &ObjectRow| {
            let (_, recipient) = parts_of(&row.key)?;
            Some(GivenRow { recipient, given: serde_json::from_slice(&row.body).ok()?, revision: row.revision })
        };
        page.rows.iter().map(row).collect::<Option<_>>().ok_or(VaultError::DataLoss)
    }

    /// Rows of recipients that were given something of these classes of a subject.
    pub(crate) async fn copies_of(
        &self,
        call: &Call,
        uid: SubjectUid,
        classes: &[ClassNo],
    ) -> Result<Vec<GivenRow>, VaultError> {
        let policy = call.tenant.policy.as_deref();
        let mut rows = self.given_of(call.tenant.no, uid).await?;
        rows.retain(|row| {
            let fields: FieldSet = row.given.fields.iter().copied().collect();
            policy.is_none_or(|policy| classes.iter().any(|class| policy.classes_of(&fields).has(class.0.into())))
        });
        Ok(rows)
    }

    /// Records that a recipient has deleted its copy of what an erasure destroyed. Said again, it answers the first time.
    pub async fn acknowledge_erasure(
        &self,
        call: &Call,
        erasure: ObjectId,
        recipient: RecipientNo,
        reference: &[u8],
        request: Option<Request>,
    ) -> Result<Timestamp, VaultError> {
        call.permit(Verb::Erase)?;
        let tenant = call.tenant.no;
        for _ in 0..4 {
            if let Some(at) = self.repeated(call, request.as_ref()).await? {
                return Ok(at);
            }
            let (operation, _) = self.operation(tenant, erasure).await?;
            let uid = match operation.subject {
                Some(uid) => Some(uid),
                None => {
                    let members = self.members_of(tenant, erasure).await?;
                    let named = |uid: &SubjectUid| call.tenant.recipient_ref(recipient, *uid)[..] == *reference;
                    members.iter().map(|member| member.uid).find(named)
                }
            };
            let uid = uid.ok_or(VaultError::NotFound)?;
            if !reference.is_empty() && call.tenant.recipient_ref(recipient, uid)[..] != *reference {
                return Err(VaultError::NotFound);
            }
            let rows = self.given_of(tenant, uid).await?;
            let row = rows.into_iter().find(|row| row.recipient == recipient).ok_or(VaultError::NotFound)?;
            if row.given.erasure != Some(erasure) {
                return Err(VaultError::NotFound);
            }
            if let Some(at) = row.given.acknowledged {
                return Ok(at);
            }
            let given = Given { acknowledged: Some(call.now), ..row.given };
            let mut change = ChangeSet::default();
            put_row(tenant, key_of(uid, recipient), &given, row.revision, &mut change);
            let mut entry = call.record(Action::AcknowledgeErasure, Outcome::Ok);
            (entry.subject, entry.operation, entry.recipient) = (Some(uid), Some(erasure), recipient);
            change.note(tenant, entry.to_bytes());
            self.remember(call, request.as_ref(), &call.now, &mut change);
            match self.store.commit(change).await {
                Ok(_) => return Ok(call.now),
                Err(error) => self.retry_or_answer(call, error, request.as_ref()).await?,
            }
        }
        Err(VaultError::Conflict)
    }

    /// Who was given which fields of a person.
    pub async fn disclosures(&self, call: &Call, context: &Context, key: &Key) -> Result<Disclosures, VaultError> {
        let permit = call.permit(Verb::Request)?;
        let snapshot = self.resolve(call, context, key).await?;
        permit.for_group(snapshot.subject.group)?;
        let uid = snapshot.subject.uid;
        let mut rows: BTreeMap<RecipientNo, Disclosure> = BTreeMap::new();
        for row in self.given_of(call.tenant.no, uid).await? {
            rows.insert(row.recipient, disclosure(uid, row.recipient, row.given));
        }
        let (mut after, mut complete) = (0, rows.is_empty());
        for _ in 0..PAGES {
            if complete {
                break;
            }
            let query = EntryQuery { subject: Some(uid), ..EntryQuery::default() };
            let page = self.entries(call.tenant.no, Chain::Read, query, after, 1_000).await?;
            for (_, record) in &page.entries {
                // What was refused was not given.
                if matches!(record.outcome, Outcome::Ok | Outcome::Partial)
                    && let Some(row) = rows.get_mut(&record.recipient)
                {
                    row.reads += 1;
                    row.last = row.last.max(record.at);
                }
            }
            after = page.seen;
            complete = !page.more;
        }
        self.note_look_at_disclosures(call, Some(uid), RecipientNo(0)).await?;
        Ok(Disclosures { rows: rows.into_values().collect(), complete })
    }

    /// What one recipient was given, person by person, in no order that says anything; `pending`: only what was erased and
    /// whose deletion it has not confirmed. `after` is the position that the page before ended with.
    pub async fn disclosures_to(
        &self,
        call: &Call,
        recipient: RecipientNo,
        pending: bool,
        after: Vec<u8>,
        limit: u32,
    ) -> Result<(Page<Disclosure>, Vec<u8>), VaultError> {
        call.permit(Verb::Request)?.for_group(None)?;
        let (mut rows, mut after, mut more) = (Vec::new(), after, true);
        for _ in 0..ROW_PAGES {
            let page =
                self.store.objects(call.tenant.no, ObjectKind::Disclosure, Vec::new(), after.clone(), 1_000).await?;
            more = page.more;
            for row in page.rows {
                let (uid, to) = parts_of(&row.key).ok_or(VaultError::DataLoss)?;
                let given: Given = serde_json::from_slice(&row.body).map_err(|_| VaultError::DataLoss)?;
                let waits = given.erased.is_some() && given.acknowledged.is_none();
                if to == recipient && (!pending || waits) {
                    if rows.len() == limit as usize {
                        self.note_look_at_disclosures(call, None, recipient).await?;
                        return Ok((Page { rows, more: true }, after));
                    }
                    rows.push(disclosure(uid, to, given));
                }
                after = row.key;
            }
            if !more {
                break;
            }
        }
        self.note_look_at_disclosures(call, None, recipient).await?;
        Ok((Page { rows, more }, after))
    }

    async fn note_look_at_disclosures(
        &self,
        call: &Call,
        subject: Option<SubjectUid>,
        recipient: RecipientNo,
    ) -> Result<(), VaultError> {
        let mut entry = call.record(Action::ListDisclosures, Outcome::Ok);
        (entry.subject, entry.recipient) = (subject, recipient);
        self.note_read(call, &entry).await?;
        Ok(())
    }
}

/// Tells the recipients of these rows to delete their copies, and notes on the rows that they were told.
pub(crate) fn tell(
    call: &Call,
    uid: SubjectUid,
    copies: &[GivenRow],
    erasure: ObjectId,
    classes: &[ClassNo],
    change: &mut ChangeSet,
) {
    for row in copies {
        let given = Given { erasure: Some(erasure), erased: Some(call.now), acknowledged: None, ..row.given.clone() };
        put_row(call.tenant.no, key_of(uid, row.recipient), &given, row.revision, change);
        let event = FeedEvent::about(call, EventKind::Erased, uid, classes.to_vec(), erasure);
        let recipient_ref = call.tenant.recipient_ref(row.recipient, uid).to_vec();
        FeedEvent { recipient: row.recipient, recipient_ref, ..event }.put(call, change);
    }
}

fn disclosure(uid: SubjectUid, recipient: RecipientNo, given: Given) -> Disclosure {
    Disclosure {
        uid,
        recipient,
        fields: given.fields.iter().copied().collect(),
        purposes: given.purposes.iter().copied().collect(),
        reads: 0,
        first: given.first,
        last: given.last,
        agreement: given.agreement,
        erased: given.erased,
        acknowledged: given.acknowledged,
    }
}
