//! What was read, by subject: from the audit of reads, so that whoever has lost an access key can tell whom it concerns.

use std::collections::BTreeMap;

use crate::access::{FieldSet, PurposeSet, Verb};
use crate::audit::{Action, AuditRecord, Chain, Outcome};
use crate::clock::Timestamp;
use crate::ids::*;
use crate::storage::{Page, SubjectState};
use crate::vault::Vault;
use crate::vault::audit_read::EntryQuery;
use crate::vault::call::Call;
use crate::vault::error::VaultError;

/// Entries looked at together.
const TOGETHER: usize = 10_000;

/// What was read of one subject.
#[derive(Debug)]
pub struct Accessed {
    pub uid: SubjectUid,
    /// Its id, where it is not erased and the caller may see whose number that is.
    pub subject: Option<SubjectId>,
    pub fields: FieldSet,
    pub purposes: PurposeSet,
    /// Ascending; 0 stands for the tenant's own systems.
    pub recipients: Vec<RecipientNo>,
    /// Entries of the audit.
    pub reads: u64,
    /// By the machine's clock, as the audit has it.
    pub first: Timestamp,
    pub last: Timestamp,
}

impl Accessed {
    fn new(uid: SubjectUid, at: Timestamp) -> Self {
        Accessed {
            uid,
            subject: None,
            fields: FieldSet::EMPTY,
            purposes: PurposeSet::EMPTY,
            recipients: Vec::new(),
            reads: 0,
            first: at,
            last: at,
        }
    }

    fn add(&mut self, record: &AuditRecord) {
        self.reads += 1;
        self.first = self.first.min(record.at);
        self.last = self.last.max(record.at);
        self.purposes.insert(record.purpose.0);
        for field in record.fields.iter() {
            self.fields.insert(field.0);
        }
        if let Err(place) = self.recipients.binary_search(&record.recipient) {
            self.recipients.insert(place, record.recipient);
        }
    }
}

/// The subject of an entry by which somebody saw a value; what was refused, or showed none, is left out.
pub(crate) fn seen_of(record: &AuditRecord) -> Option<SubjectUid> {
    let shown = matches!(record.outcome, Outcome::Ok | Outcome::Partial) && record.fields.iter().next().is_some();
    record.subject.filter(|_| shown)
}

impl Vault {
    /// The subjects of which `query` finds that values were read, by their number, behind `after`; at most `limit`. Reads
    /// the whole audit of reads, whatever the limit; what is held for that is bounded by it.
    ///
    /// # Errors
    /// `DataLoss` where the audit cannot be read.
    pub async fn report_access(
        &self,
        call: &Call,
        query: &EntryQuery,
        after: SubjectUid,
        limit: u32,
    ) -> Result<Page<Accessed>, VaultError> {
        call.permit(Verb::Audit)?;
        let mut found: BTreeMap<SubjectUid, Accessed> = BTreeMap::new();
        let (mut seen, mut more) = (0, false);
        loop {
            let page = self.entries(call.tenant.no, Chain::Read, query.clone(), seen, TOGETHER).await?;
            for (_, record) in &page.entries {
                let Some(uid) = seen_of(record).filter(|uid| *uid > after) else { continue };
                found.entry(uid).or_insert_with(|| Accessed::new(uid, record.at)).add(record);
                if found.len() > limit as usize {
                    // The largest is for a later page; it comes again and goes again as often as it was read.
                    found.pop_last();
                    more = true;
                }
            }
            seen = page.seen;
            if !page.more {
                break;
            }
        }
        let mut rows: Vec<Accessed> = found.into_values().collect();
        for row in &mut rows {
            row.subject = self.id_if_listed(call, row.uid).await?;
        }
        self.note_listing(call, Action::ReportAccess).await?;
        Ok(Page { rows, more })
    }

    /// The id of a subject that is there and that the caller may list.
    async fn id_if_listed(&self, call: &Call, uid: SubjectUid) -> Result<Option<SubjectId>, VaultError> {
        let Ok(permit) = call.permit(Verb::Subject) else { return Ok(None) };
        let Some(found) = self.store.subject_by_uid(uid).await? else { return Ok(None) };
        let subject = &found.subject;
        if subject.tenant != call.tenant.no
            || subject.state == SubjectState::Frozen
            || permit.for_group(subject.group).is_err()
        {
            return Ok(None);
        }
        Ok(Some(call.tenant.open_id(uid, &subject.sealed_id)?))
    }
}
