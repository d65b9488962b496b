//! Who was given what of a person: summed up from the audit of reads, in which every read for a recipient names it.

use std::collections::BTreeMap;

use crate::access::{FieldSet, PurposeSet, Verb};
use crate::audit::{Action, Chain, Outcome};
use crate::clock::Timestamp;
use crate::ids::*;
use crate::vault::Vault;
use crate::vault::audit_read::EntryQuery;
use crate::vault::call::{Call, Context};
use crate::vault::error::VaultError;
use crate::vault::find::Key;

/// Pages of the audit that one answer looks at: about two million entries.
const PAGES: usize = 100;

/// What one recipient was given.
#[derive(Debug, Clone, Copy)]
pub struct Disclosure {
    pub recipient: RecipientNo,
    pub fields: FieldSet,
    pub purposes: PurposeSet,
    pub reads: u64,
    /// By the machine's clock, as the audit has it.
    pub first: Timestamp,
    pub last: Timestamp,
}

/// All of them, by number, and whether the whole audit was looked at.
#[derive(Debug)]
pub struct Disclosures {
    pub uid: SubjectUid,
    pub rows: Vec<Disclosure>,
    pub complete: bool,
}

impl Vault {
    /// Who was given which fields of a person.
    pub async fn disclosures(&self, call: &Call, context: &Context, key: &Key) -> Result<Disclosures, VaultError> {
        let permit = call.permit(Verb::Request)?;
        let snapshot = self.resolve(call, context, key).await?;
        permit.for_group(snapshot.subject.group)?;
        let uid = snapshot.subject.uid;
        let mut rows: BTreeMap<RecipientNo, Disclosure> = BTreeMap::new();
        let (mut after, mut complete) = (0, false);
        for _ in 0..PAGES {
            let query = EntryQuery { subject: Some(uid), ..EntryQuery::default() };
            let page = self.entries(call.tenant.no, Chain::Read, query, after, 1_000).await?;
            for (_, record) in &page.entries {
                // What was refused was not given.
                if record.recipient.0 == 0 || !matches!(record.outcome, Outcome::Ok | Outcome::Partial) {
                    continue;
                }
                let row = rows.entry(record.recipient).or_insert(Disclosure {
                    recipient: record.recipient,
                    fields: FieldSet::EMPTY,
                    purposes: PurposeSet::EMPTY,
                    reads: 0,
                    first: record.at,
                    last: record.at,
                });
                row.reads += 1;
                row.last = row.last.max(record.at);
                row.first = row.first.min(record.at);
                row.purposes.insert(record.purpose.0);
                for field in record.fields.iter() {
                    row.fields.insert(field.0);
                }
            }
            after = page.seen;
            if !page.more {
                complete = true;
                break;
            }
        }
        let mut entry = call.record(Action::ListDisclosures, Outcome::Ok);
        entry.subject = Some(uid);
        self.read_log.append(call.tenant.no, &entry).await.map_err(|_| VaultError::AuditUnavailable)?;
        Ok(Disclosures { uid, rows: rows.into_values().collect(), complete })
    }
}
