//! Rotating the secret of the blind index, so that old index tags of the erased can no longer be guessed.
//!
//! An index secret goes in three steps, each resumable. (1) New tags are made under version + 1, and both versions are
//! searched. (2) Every subject's tags are made anew from its opened values. (3) When no tag of the old version is left,
//! its slot is dropped. A subject's old and new tag change places in one change set, so that no search misses it.

use serde::{Deserialize, Serialize};

use crate::audit::{Action, Outcome};
use crate::clock::Timestamp;
use crate::ids::*;
use crate::keyring::SecretKind;
use crate::policy::value::normalize;
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::error::VaultError;
use crate::vault::expiry::Progress;
use crate::vault::operation::{Operation, OperationKind, OperationStatus, put_operation};
use crate::vault::read::{entry_place, open_value};
use crate::vault::record::{Owner, RecordView};
use crate::vault::request::Request;
use crate::vault::rotation::Kind;
use crate::vault::secret_drop::Rotated;
use crate::vault::tenant::TenantSettings;
use crate::vault::to_json;

/// Days before the horizon at which a rotation begins.
const AHEAD_DAYS: i64 = 1;
/// Subjects retagged in one change.
const TOGETHER: u32 = 50;
/// Tags of nobody that are removed in one change.
const TAGS_AT_ONCE: u32 = 5_000;

const INDEX: &[u8] = b"index-rotation";

/// How far a rotation of the index secret is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Retagging {
    operation: ObjectId,
    /// When tags of the new version began, by the machine's clock.
    since: Timestamp,
    after: SubjectUid,
    /// When the present pass over the subjects began, and how many ended before it.
    pass: Timestamp,
    passes: u32,
    /// A whole pass has ended that began after `since` was long enough ago.
    settled: bool,
}

impl Vault {
    /// Begins the rotation of the tenant's index secret; the operation that a job finishes. One that runs is answered.
    pub async fn rotate_index(&self, call: &Call, request: Option<Request>) -> Result<Operation, VaultError> {
        self.may_rotate(call)?;
        if let Some(known) = self.repeated_operation(call, request.as_ref()).await? {
            return Ok(known);
        }
        self.begin_index_rotation(call, request.as_ref()).await
    }

    async fn begin_index_rotation(&self, call: &Call, request: Option<&Request>) -> Result<Operation, VaultError> {
        let tenant = call.tenant.no;
        let mut change = ChangeSet::default();
        if self.tenant(tenant)?.settings.index_retiring.is_some() {
            let (state, _) = self.retagging(tenant).await?.ok_or(VaultError::Conflict)?;
            if request.is_some() {
                self.remember(call, request, &state.operation, &mut change);
                self.store.commit(change).await?;
            }
            return Ok(self.operation(tenant, state.operation).await?.0);
        }
        // In one commit with the switch: a switch without a state would be resumed by nobody.
        let operation = Operation::new(call, OperationKind::RotateIndex, OperationStatus::Running);
        put_operation(tenant, &operation, None, &mut change);
        let (since, after) = (call.wall, SubjectUid(0));
        let state = Retagging { operation: operation.id, since, after, pass: since, passes: 0, settled: false };
        put_state(tenant, &state, Revision(0), &mut change);
        self.remember(call, request, &operation.id, &mut change);
        let record = call.record(Action::RotateKeys, Outcome::Ok);
        self.edit_settings_with(tenant, None, record, &change, |settings: &mut TenantSettings| {
            if settings.index_retiring.is_some() {
                return Err(VaultError::Conflict);
            }
            settings.index_retiring = Some(settings.index);
            settings.index = SecretVersion(settings.index.0.checked_add(1).ok_or(VaultError::DataLoss)?);
            settings.index_since = call.wall;
            // What was erased until now is paid by this rotation; what is erased from now on is owed by the next.
            settings.index_owed_since = None;
            Ok(())
        })
        .await?;
        Ok(operation)
    }

    async fn retagging(&self, tenant: TenantNo) -> Result<Option<(Retagging, Revision)>, VaultError> {
        let row = self.store.object(tenant, ObjectKind::Setting, INDEX.to_vec()).await?;
        let read = |row: ObjectRow| serde_json::from_slice(&row.body).map(|state| (state, row.revision));
        row.map(read).transpose().map_err(|_| VaultError::DataLoss)
    }

    /// Begins a rotation that is due.
    pub async fn rotate_due_index(&self, call: &Call) -> Result<Progress, VaultError> {
        if call.tenant.settings.index_retiring.is_some() {
            return Ok(Progress::default());
        }
        let owed = call.tenant.settings.index_owed_since;
        let due = owed.map(|since| since.plus_days(self.options.search_horizon_days - AHEAD_DAYS));
        let aged = self.options.rotation.rotates(Kind::Index, call.tenant.settings.index_since, call.wall);
        if !aged && due.is_none_or(|due| due > call.now) {
            return Ok(Progress::default());
        }
        self.begin_index_rotation(call, None).await?;
        Ok(Progress { done: 1, more: false })
    }

    /// Goes on with a rotation that runs, of about `limit` subjects.
    pub async fn go_on_index(&self, call: &Call, limit: u64) -> Result<Progress, VaultError> {
        // The tenant as it is after the switch.
        let call = &Call { tenant: self.tenant(call.tenant.no)?, ..call.clone() };
        let tenant = call.tenant.no;
        let Some(old) = call.tenant.settings.index_retiring else { return Ok(Progress::default()) };
        let (mut state, mut revision) = self.retagging(tenant).await?.ok_or(VaultError::DataLoss)?;
        let settled = state.since.plus_ms(self.options.settled_ms());
        let mut done = 0;
        while !state.settled {
            if done >= limit {
                return Ok(Progress { done, more: true });
            }
            if state.after == SubjectUid(0) {
                if state.passes > 0 && call.wall < settled {
                    return Ok(Progress { done, more: false });
                }
                if state.passes > 0 && self.store.count_terms(tenant, old).await? == 0 {
                    break;
                }
                state.pass = call.wall;
            }
            let page = self.store.list_subjects(tenant, None, state.after, TOGETHER).await?;
            self.retag_all(call, &page.rows).await?;
            done += page.rows.len() as u64;
            match page.rows.last() {
                Some(last) if page.more => state.after = last.subject.uid,
                _ => {
                    // Calls that began before the switch may have made old tags behind this pass.
                    state.settled = state.pass >= settled;
                    state.after = SubjectUid(0);
                    state.passes += 1;
                }
            }
            let (former, at) = self.operation(tenant, state.operation).await?;
            let counted = former.done + page.rows.len() as u64;
            let next = Operation { done: counted, cursor: Some(state.after.0), updated: call.now, ..former.clone() };
            let mut change = ChangeSet::default();
            put_state(tenant, &state, revision, &mut change);
            put_operation(tenant, &next, Some((&former, at)), &mut change);
            self.store.commit(change).await?;
            revision = Revision(revision.0 + 1);
        }
        // Whatever is left is nobody's: of values that no search may find any more.
        loop {
            let mut change = ChangeSet::default();
            change.change(Mutation::DeleteTermsOfVersion { tenant, version: old, limit: TAGS_AT_ONCE });
            let removed = self.store.commit(change).await?.removed;
            done += removed;
            if removed == 0 {
                break;
            }
        }
        if self.store.count_terms(tenant, old).await? > 0 {
            return Ok(Progress { done, more: true });
        }
        let rotated =
            Rotated { kind: SecretKind::Index, old, operation: state.operation, state: Some((INDEX, revision)) };
        let finish = |operation| Operation { cursor: None, ..operation };
        self.drop_secret(call, &rotated, |settings| &mut settings.index_retiring, finish).await?;
        Ok(Progress { done: done + 1, more: false })
    }

    /// Tags of these subjects under the new version, in one change; one by one where somebody writes beside us.
    pub(crate) async fn retag_all(
        &self,
        call: &Call,
        subjects: &[std::sync::Arc<SubjectSnapshot>],
    ) -> Result<(), VaultError> {
        let mut whole = ChangeSet::default();
        for snapshot in subjects {
            let one = self.retag_one(call, snapshot).await?;
            whole.preconditions.extend(one.preconditions);
            whole.mutations.extend(one.mutations);
        }
        if whole.mutations.is_empty() {
            return Ok(());
        }
        match self.store.commit(whole).await {
            Ok(_) => return Ok(()),
            Err(StoreError::Conflict(_)) => {}
            Err(error) => return Err(error.into()),
        }
        'subjects: for snapshot in subjects {
            for _ in 0..6 {
                let Some(snapshot) = self.store.subject_by_uid(snapshot.subject.uid).await? else {
                    continue 'subjects;
                };
                match self.store.commit(self.retag_one(call, &snapshot).await?).await {
                    Ok(_) => continue 'subjects,
                    Err(StoreError::Conflict(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            return Err(VaultError::Conflict);
        }
        Ok(())
    }

    /// What gives one subject's searchable values their tags under the new version.
    async fn retag_one(&self, call: &Call, snapshot: &SubjectSnapshot) -> Result<ChangeSet, VaultError> {
        let (tenant, uid) = (call.tenant.no, snapshot.subject.uid);
        let policy = call.tenant.policy()?;
        let mut change = ChangeSet::default();
        for row in &snapshot.classes {
            let searchable = |field: FieldNo| policy.field(field).filter(|rule| rule.searchable);
            if !policy.fields().any(|rule| rule.class == row.class && rule.searchable) {
                continue;
            }
            let before = change.mutations.len();
            if row.slot.is_some() && !row.record.is_empty() {
                let class = self.class_ref(row)?;
                let owner = Owner { vault: self.keyring.vault(), tenant, uid, class: row.class };
                let view = RecordView::parse(&row.record).map_err(|_| VaultError::DataLoss)?;
                let mut found = Vec::new();
                let walked = self
                    .with_keys(class, None, |keys| {
                        found.clear();
                        view.walk(keys, &owner, call.now.day(), |entry| {
                            if searchable(entry.field).is_some() {
                                found.push(entry);
                            }
                        })
                    })
                    .await?;
                walked.map_err(|_| VaultError::DataLoss)?;
                for entry in found {
                    let field = entry.field;
                    change.change(Mutation::DeleteTerms { tenant, uid, field: Some(field) });
                    let bucket = match entry.bucket {
                        Bucket::NONE => None,
                        bucket => match self.bucket_key(call, row.class, bucket) {
                            Some(key) => Some(key),
                            None => continue,
                        },
                    };
                    if entry.expire.is_some_and(|t| t <= call.now) {
                        continue;
                    }
                    let Some(rule) = searchable(field) else { continue };
                    let place = entry_place(&owner, class.key.dek, &entry);
                    let value = self.with_keys(class, bucket, |keys| open_value(keys, &place, entry.sealed)).await??;
                    let Some(normalized) = normalize(rule, &value) else { continue };
                    let (version, tag) = call.tenant.term(field, &normalized).ok_or(VaultError::DataLoss)?;
                    change.change(Mutation::PutTerm(TermRow { tenant, field, version, tag, uid }));
                }
            }
            if change.mutations.len() > before {
                let ClassRow { class, version, revision, .. } = *row;
                change.require(Precondition::ClassStill { uid, class, version, revision });
            }
        }
        Ok(change)
    }
}

/// Stores how far a rotation is in place of the state of that revision.
fn put_state(tenant: TenantNo, state: &Retagging, former: Revision, change: &mut ChangeSet) {
    let (kind, key) = (ObjectKind::Setting, INDEX.to_vec());
    change.replace_object(tenant, kind, key, former, to_json(state));
}
