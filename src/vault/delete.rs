//! Deleting single-valued fields.

use serde::{Deserialize, Serialize};

use crate::access::{FieldSet, Verb};
use crate::audit::{Action, Fields, Outcome};
use crate::clock::Timestamp;
use crate::crypto::keys::ClassKeys;
use crate::ids::*;
use crate::keyring::{ClassRef, KeyRef};
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::{Call, Context};
use crate::vault::error::{VaultError, Violation};
use crate::vault::etag::{etag, etag_of};
use crate::vault::record::{self, Entry, Owner, RecordView};
use crate::vault::request::Request;
use crate::vault::retry::ATTEMPTS;

/// What a delete answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteDone {
    pub etag: String,
    pub deleted: Vec<FieldNo>,
    pub at: Timestamp,
}

impl Vault {
    /// Deletes single-valued fields: they are hidden and their values removed. This is not an erasure: an older copy of
    /// the database still opens them under the class's key. `EraseFields` is the one that holds.
    #[allow(clippy::too_many_arguments)] // the parts of one request
    pub async fn delete_fields(
        &self,
        call: &Call,
        context: &Context,
        subject: &SubjectId,
        fields: &[FieldNo],
        wanted_etag: Option<&str>,
        request: Option<Request>,
        validate_only: bool,
    ) -> Result<DeleteDone, VaultError> {
        if let Some(answer) = self.repeated(call, request.as_ref()).await? {
            return Ok(answer);
        }
        let policy = call.tenant.policy()?;
        let mut set = FieldSet::EMPTY;
        for (i, field) in fields.iter().enumerate() {
            match policy.field(*field) {
                Some(rule) if !rule.many => set.insert(field.0),
                Some(_) => {
                    return Err(VaultError::invalid(format!("select[{i}]"), "a many-valued field: use DeleteItems"));
                }
                None => {
                    let rule = "no field with this number in the schema";
                    return Err(VaultError::UnknownField(vec![Violation::new(format!("select[{i}]"), rule)]));
                }
            };
        }
        if set.is_empty() {
            return Err(VaultError::invalid("select", "must name at least one field"));
        }
        for _ in 0..ATTEMPTS {
            let snapshot = self.resolve_id(call, subject).await?;
            self.must_be_open(&snapshot.subject)?;
            let facts = self.facts(call, &snapshot).await?;
            self.may_touch(call, context, &set, Verb::Delete, snapshot.subject.group, &facts)?;
            if wanted_etag.is_some_and(|wanted| wanted != etag(&snapshot)) {
                return Err(VaultError::EtagStale);
            }
            let uid = snapshot.subject.uid;
            let mut change = ChangeSet::default();
            change.require(Precondition::SubjectLive { uid });
            let mut deleted = Vec::new();
            let mut classes = snapshot.classes.clone();
            for row in classes.iter_mut().filter(|row| row.state == ClassState::Live) {
                let here: Vec<FieldNo> = fields
                    .iter()
                    .copied()
                    .filter(|f| policy.field(*f).is_some_and(|rule| rule.class == row.class))
                    .collect();
                if here.is_empty() {
                    continue;
                }
                let key = KeyRef { slot: row.slot.ok_or(VaultError::DataLoss)?, dek: row.dek };
                let class_ref = ClassRef { tenant: row.tenant, uid, class: row.class, key };
                let owner = Owner { vault: self.keyring.vault(), tenant: row.tenant, uid, class: row.class };
                let revision = Revision(row.revision.0 + 1);
                let (record, next_bucket, gone) = self
                    .with_keys(class_ref, None, |keys| {
                        without(keys, &owner, &row.record, revision, &here, call.now.day())
                    })
                    .await??;
                if gone.is_empty() {
                    continue;
                }
                change.require(Precondition::ClassAt {
                    uid,
                    class: row.class,
                    version: row.version,
                    revision: row.revision,
                });
                (row.revision, row.record, row.next_bucket) = (revision, record, next_bucket);
                change.change(Mutation::PutClass(row.clone()));
                for field in &gone {
                    if policy.field(*field).is_some_and(|rule| rule.searchable) {
                        change.change(Mutation::DeleteTerms { tenant: call.tenant.no, uid, field: Some(*field) });
                    }
                }
                deleted.extend(gone);
            }
            let versions = classes.iter().map(|c| (c.class, c.version, c.revision));
            let done = DeleteDone { etag: etag_of(snapshot.subject.revision, versions), deleted, at: call.now };
            if validate_only {
                return Ok(done);
            }
            let mut entry = call.record(Action::DeleteFields, Outcome::Ok);
            entry.subject = Some(uid);
            entry.fields = Fields::new(done.deleted.iter().copied());
            entry.purpose = context.purpose()?;
            self.attach_detail(call, context, &mut entry, &snapshot.classes).await?;
            change.note(call.tenant.no, entry.to_bytes());
            self.remember(call, request.as_ref(), &done, &mut change);
            match self.store.commit(change).await {
                Ok(_) => return Ok(done),
                Err(error) => self.retry_or_answer(call, error, request.as_ref()).await?,
            }
        }
        Err(VaultError::Conflict)
    }
}

/// A record that lost fields: its bytes, its earliest bucket, and which of the fields were there.
type Without = (Vec<u8>, Option<Bucket>, Vec<FieldNo>);

/// A record without some fields.
fn without(
    keys: &ClassKeys,
    owner: &Owner,
    former: &[u8],
    revision: Revision,
    fields: &[FieldNo],
    today: i64,
) -> Result<Without, VaultError> {
    let view = RecordView::parse(former).map_err(|_| VaultError::DataLoss)?;
    let (mut entries, mut gone) = (Vec::new(), Vec::new());
    view.walk(keys, owner, today, |entry| match fields.contains(&entry.field) {
        true => gone.push(entry.field),
        false => entries.push(entry),
    })
    .map_err(|_| VaultError::DataLoss)?;
    let next = entries.iter().map(|e: &Entry<'_>| e.bucket).filter(|b| *b != Bucket::NONE).min();
    Ok((record::encode(keys, owner, revision, &mut entries), next, gone))
}
