//! The vault's part of a restore: decisions of the ledger that the restored database does not have, and index tags under
//! the new secret. Runs on a vault that nobody else uses, before it takes the place of the live one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::ids::*;
use crate::keyring::ledger::{LedgerEntry, LedgerKind};
use crate::storage::*;
use crate::vault::access_keys::object_of;
use crate::vault::authenticate::KeyBody;
use crate::vault::error::VaultError;
use crate::vault::hold::Hold;
use crate::vault::operation::{Operation, OperationKind, OperationStatus, put_operation};
use crate::vault::{Vault, to_json};

/// Key of the note that a restore leaves among tenant 0's settings.
const RESTORED: &[u8] = b"restored";
/// Subjects retagged in one change.
const TOGETHER: u32 = 1_000;
/// A decision that is so much older than the database's last entry is in the database.
const SURELY_MS: i64 = 60_000;

/// What a restore leaves behind until an operator confirms it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restored {
    pub at: Timestamp,
    /// Scheduled erasures wait.
    pub schedules_wait: bool,
    /// The end of the ledger was not known: access keys that may have been revoked are stopped.
    pub keys_wait: bool,
}

/// What was decided again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DecidedAgain {
    pub holds_placed: u64,
    pub holds_released: u64,
    pub keys_revoked: u64,
    /// What a role was narrowed to is not in the ledger: it allows nothing until it is defined again.
    pub roles_emptied: u64,
    /// Those roles, as `tenant: role`.
    #[serde(default)]
    pub roles: Vec<String>,
    pub schedules_placed: u64,
    /// What people said no to: consents withdrawn, objections, restrictions.
    #[serde(default)]
    pub refusals: u64,
    pub schedules_cancelled: u64,
    /// Erasures that were accepted and not carried out: access stays refused.
    pub frozen: u64,
    /// Access keys that wait for a confirmation.
    pub keys_stopped: u64,
    /// Subjects whose index tags were made anew.
    pub retagged: u64,
}

impl Vault {
    /// Applies decisions that the database may not have. `until` says when the last change of each tenant was noted in the
    /// database as it was found: what is decided again here is noted too, and says nothing of that.
    pub async fn decide_again(
        &self,
        entries: &[LedgerEntry],
        until: &BTreeMap<TenantNo, Timestamp>,
    ) -> Result<DecidedAgain, VaultError> {
        let mut done = DecidedAgain::default();
        for (at, entry) in entries.iter().enumerate() {
            let later = &entries[at + 1..];
            match entry.kind {
                LedgerKind::HoldPlaced => done.holds_placed += self.place_again(entry, entries).await?,
                LedgerKind::HoldReleased => done.holds_released += self.release_again(entry).await?,
                LedgerKind::CredentialRevoked => done.keys_revoked += self.revoke_again(entry).await?,
                LedgerKind::RoleNarrowed if !surely_has(until, entry) => {
                    done.roles.extend(self.narrow_again(entry).await?);
                    done.roles_emptied = done.roles.len() as u64;
                }
                LedgerKind::Cancelled => done.schedules_cancelled += self.cancel_again(entry).await?,
                LedgerKind::Scheduled if !ended(entry, later) => {
                    done.schedules_placed += self.schedule_again(entry, entries).await?;
                }
                LedgerKind::ConsentWithdrawn | LedgerKind::Objected | LedgerKind::Restricted
                    if !surely_has(until, entry) =>
                {
                    done.refusals += self.refuse_again(entry).await?;
                }
                LedgerKind::Accepted => done.frozen += self.freeze_again(entry).await?,
                _ => {}
            }
        }
        Ok(done)
    }

    async fn put_again(
        &self,
        tenant: TenantNo,
        kind: ObjectKind,
        key: Vec<u8>,
        body: Vec<u8>,
        change: &mut ChangeSet,
    ) -> Result<(), VaultError> {
        let revision = self.store.object(tenant, kind, key.clone()).await?.map_or(0, |row| row.revision.0) + 1;
        change.change(Mutation::PutObject(ObjectRow { tenant, kind, key, revision: Revision(revision), body }));
        Ok(())
    }

    async fn hold_of(&self, entry: &LedgerEntry) -> Result<Option<Hold>, VaultError> {
        let key = entry.object.0.as_bytes().to_vec();
        let row = self.store.object(entry.tenant, ObjectKind::HoldBody, key).await?;
        row.map(|row| serde_json::from_slice(&row.body)).transpose().map_err(|_| VaultError::DataLoss)
    }

    async fn place_again(&self, entry: &LedgerEntry, all: &[LedgerEntry]) -> Result<u64, VaultError> {
        let known = self.hold_of(entry).await?.is_some();
        let released = all.iter().any(|e| e.kind == LedgerKind::HoldReleased && e.object == entry.object);
        if known || released {
            return Ok(0);
        }
        let same = all.iter().filter(|e| e.kind == LedgerKind::HoldPlaced && e.object == entry.object);
        let of_subject = entry.uid != SubjectUid(0);
        let hold = Hold {
            id: entry.object,
            subject: of_subject.then_some(entry.uid),
            group: (!of_subject).then_some(GroupNo(entry.number)),
            classes: same.map(|e| e.class).filter(|class| class.0 != 0).collect(),
            // The ledger has no words and no purpose: what it keeps is read for none until it is placed anew.
            basis: "restored".to_owned(),
            purpose: PurposeNo(0),
            until: Some(entry.until).filter(|until| until.0 != 0),
            placed: entry.at,
            by: ActorId(0),
            released: None,
        };
        let mut change = ChangeSet::default();
        for key in hold.marks() {
            self.put_again(entry.tenant, ObjectKind::Hold, key, Vec::new(), &mut change).await?;
        }
        let key = hold.id.0.as_bytes().to_vec();
        self.put_again(entry.tenant, ObjectKind::HoldBody, key, to_json(&hold), &mut change).await?;
        self.store.commit(change).await?;
        Ok(1)
    }

    async fn release_again(&self, entry: &LedgerEntry) -> Result<u64, VaultError> {
        let Some(mut hold) = self.hold_of(entry).await?.filter(|hold| hold.released.is_none()) else { return Ok(0) };
        hold.released = Some(entry.at);
        let (tenant, mut change) = (entry.tenant, ChangeSet::default());
        for key in hold.marks() {
            change.change(Mutation::DeleteObject { tenant, kind: ObjectKind::Hold, key });
        }
        let key = hold.id.0.as_bytes().to_vec();
        self.put_again(tenant, ObjectKind::HoldBody, key, to_json(&hold), &mut change).await?;
        self.store.commit(change).await?;
        Ok(1)
    }

    async fn revoke_again(&self, entry: &LedgerEntry) -> Result<u64, VaultError> {
        let (tenant, kind) = (entry.tenant, ObjectKind::AccessKey);
        let key = entry.object.0.as_u64_pair().1.to_be_bytes().to_vec();
        debug_assert_eq!(object_of(crate::auth::KeyId(entry.object.0.as_u64_pair().1)), entry.object);
        let Some(row) = self.store.object(tenant, kind, key.clone()).await? else { return Ok(0) };
        let mut body: KeyBody = serde_json::from_slice(&row.body).map_err(|_| VaultError::DataLoss)?;
        let changed = if entry.until.0 == 0 {
            body.revoked.is_none() && body.revoked.replace(entry.at).is_none()
        } else {
            let sooner = body.expires.is_none_or(|expires| entry.until < expires);
            body.expires = if sooner { Some(entry.until) } else { body.expires };
            sooner
        };
        if changed {
            let mut change = ChangeSet::default();
            self.put_again(tenant, kind, key, to_json(&body), &mut change).await?;
            self.store.commit(change).await?;
        }
        Ok(u64::from(changed))
    }

    /// A no of a person that the database does not have, or has not after a later yes that is not in the ledger: no counts.
    async fn refuse_again(&self, entry: &LedgerEntry) -> Result<u64, VaultError> {
        let call = self.job_call(self.tenant(entry.tenant)?);
        Ok(u64::from(self.decide_right_again(&call, entry).await?))
    }

    /// Answers the role that allows nothing from now on; `None` where it is gone, empty, or surely as narrow already.
    async fn narrow_again(&self, entry: &LedgerEntry) -> Result<Option<String>, VaultError> {
        let (tenant, kind, key) = (entry.tenant, ObjectKind::Role, entry.number.to_be_bytes().to_vec());
        let Some(row) = self.store.object(tenant, kind, key.clone()).await? else { return Ok(None) };
        let mut body: serde_json::Value = serde_json::from_slice(&row.body).map_err(|_| VaultError::DataLoss)?;
        let grants = std::mem::replace(&mut body["grants"], serde_json::Value::Array(Vec::new()));
        if grants.as_array().is_some_and(Vec::is_empty) {
            return Ok(None);
        }
        let mut change = ChangeSet::default();
        self.put_again(tenant, kind, key, to_json(&body), &mut change).await?;
        self.store.commit(change).await?;
        let name = body["name"].as_str().unwrap_or_default();
        Ok(Some(format!("{}: {name}", self.tenant(tenant)?.name)))
    }

    async fn cancel_again(&self, entry: &LedgerEntry) -> Result<u64, VaultError> {
        let call = self.job_call(self.tenant(entry.tenant)?);
        let Ok((operation, revision)) = self.operation(entry.tenant, entry.object).await else { return Ok(0) };
        if operation.status != OperationStatus::Scheduled {
            return Ok(0);
        }
        let next = Operation { status: OperationStatus::Cancelled, updated: call.now, ..operation.clone() };
        let mut change = ChangeSet::default();
        if let Some(snapshot) = self.store.subject_by_uid(entry.uid).await? {
            let mut row = snapshot.subject.clone();
            (row.revision, row.due) = (Revision(row.revision.0 + 1), None);
            row.state = match row.state {
                SubjectState::Frozen if operation.was_closed => SubjectState::Closed,
                SubjectState::Frozen => SubjectState::Live,
                state => state,
            };
            change.change(Mutation::PutSubject(row));
        }
        put_operation(entry.tenant, &next, Some((&operation, revision)), &mut change);
        self.store.commit(change).await?;
        Ok(1)
    }

    async fn schedule_again(&self, entry: &LedgerEntry, all: &[LedgerEntry]) -> Result<u64, VaultError> {
        let tenant = entry.tenant;
        let Some(snapshot) = self.store.subject_by_uid(entry.uid).await? else { return Ok(0) };
        if snapshot.subject.tenant != tenant || self.operation(tenant, entry.object).await.is_ok() {
            return Ok(0);
        }
        let call = self.job_call(self.tenant(tenant)?);
        let kind = if entry.class.0 == 0 { OperationKind::EraseSubject } else { OperationKind::EraseClasses };
        let mut operation = Operation::new(&call, kind, OperationStatus::Scheduled);
        operation.id = entry.object;
        operation.subject = Some(entry.uid);
        operation.group = snapshot.subject.group;
        let same = all.iter().filter(|e| e.kind == LedgerKind::Scheduled && e.object == entry.object);
        operation.classes = same.map(|e| e.class).filter(|class| class.0 != 0).collect();
        operation.due = Some(entry.until);
        operation.was_closed = snapshot.subject.state == SubjectState::Closed;
        operation.commitment = Some(self.commit_to(&call, &snapshot.subject, operation.id)?);
        let row = snapshot.subject.clone();
        let mut change = ChangeSet::default();
        let (state, revision) = (SubjectState::Frozen, Revision(row.revision.0 + 1));
        change.change(Mutation::PutSubject(SubjectRow { state, revision, due: Some(entry.until), ..row }));
        put_operation(tenant, &operation, None, &mut change);
        self.store.commit(change).await?;
        Ok(1)
    }

    async fn freeze_again(&self, entry: &LedgerEntry) -> Result<u64, VaultError> {
        let Some(snapshot) = self.store.subject_by_uid(entry.uid).await? else { return Ok(0) };
        let row = snapshot.subject.clone();
        let alive = matches!(row.state, SubjectState::Live | SubjectState::Closed);
        let ours = row.tenant == entry.tenant && row.created <= entry.at;
        if !alive || !ours || self.operation(entry.tenant, entry.object).await.is_ok() {
            return Ok(0);
        }
        let mut change = ChangeSet::default();
        let (state, revision) = (SubjectState::Frozen, Revision(row.revision.0 + 1));
        change.change(Mutation::PutSubject(SubjectRow { state, revision, ..row }));
        self.store.commit(change).await?;
        Ok(1)
    }

    /// Makes all index tags of a tenant anew, under the present secret. All old ones are gone already.
    pub async fn tag_again(&self, tenant: TenantNo) -> Result<u64, VaultError> {
        let call = self.job_call(self.tenant(tenant)?);
        if call.tenant.policy.is_none() {
            return Ok(0);
        }
        let (mut after, mut done) = (SubjectUid(0), 0);
        loop {
            let page = self.store.list_subjects(tenant, None, after, TOGETHER).await?;
            let Some(last) = page.rows.last() else { return Ok(done) };
            after = last.subject.uid;
            self.retag_all(&call, &page.rows).await?;
            done += page.rows.len() as u64;
            if !page.more {
                return Ok(done);
            }
        }
    }

    /// Notes that this vault was restored; with `keys_wait` every access key is stopped until it is confirmed. Answers
    /// how many were.
    pub async fn note_restored(&self, at: Timestamp, keys_wait: bool) -> Result<u64, VaultError> {
        let note = Restored { at, schedules_wait: true, keys_wait };
        let mut change = ChangeSet::default();
        self.put_again(TenantNo::VAULT, ObjectKind::Setting, RESTORED.to_vec(), to_json(&note), &mut change).await?;
        self.store.commit(change).await?;
        if keys_wait { self.mark_keys(true).await } else { Ok(0) }
    }

    /// What the last restore left to confirm; `None` if there is nothing.
    pub async fn restored(&self) -> Result<Option<Restored>, VaultError> {
        let row = self.store.object(TenantNo::VAULT, ObjectKind::Setting, RESTORED.to_vec()).await?;
        row.map(|row| serde_json::from_slice(&row.body)).transpose().map_err(|_| VaultError::DataLoss)
    }

    /// An operator on the vault's machine has looked: access keys work again, and scheduled erasures go on. Answers how
    /// many keys.
    pub async fn confirm_restore(&self) -> Result<u64, VaultError> {
        let keys = self.mark_keys(false).await?;
        let mut change = ChangeSet::default();
        let (tenant, kind, key) = (TenantNo::VAULT, ObjectKind::Setting, RESTORED.to_vec());
        change.change(Mutation::DeleteObject { tenant, kind, key });
        self.store.commit(change).await?;
        Ok(keys)
    }

    async fn mark_keys(&self, unconfirmed: bool) -> Result<u64, VaultError> {
        let mut marked = 0;
        for tenant in self.store.tenants().await? {
            let mut after = Vec::new();
            loop {
                let (no, kind) = (tenant.no, ObjectKind::AccessKey);
                let page = self.store.objects(no, kind, Vec::new(), after, 1_000).await?;
                let Some(last) = page.rows.last() else { break };
                after = last.key.clone();
                let mut change = ChangeSet::default();
                for row in &page.rows {
                    let mut body: KeyBody = serde_json::from_slice(&row.body).map_err(|_| VaultError::DataLoss)?;
                    if body.unconfirmed != unconfirmed && body.revoked.is_none() {
                        body.unconfirmed = unconfirmed;
                        let revision = Revision(row.revision.0 + 1);
                        let body = to_json(&body);
                        change.change(Mutation::PutObject(ObjectRow { revision, body, ..row.clone() }));
                        marked += 1;
                    }
                }
                self.store.commit(change).await?;
                if !page.more {
                    break;
                }
            }
        }
        Ok(marked)
    }

    /// Whether scheduled erasures wait for a confirmation of a restore.
    pub(crate) async fn schedules_wait(&self) -> Result<bool, VaultError> {
        Ok(self.restored().await?.is_some_and(|restored| restored.schedules_wait))
    }
}

/// When the last change of each tenant was noted.
pub async fn noted_until(store: &dyn Store) -> Result<BTreeMap<TenantNo, Timestamp>, StoreError> {
    let mut all = BTreeMap::new();
    for tenant in store.tenants().await? {
        let Some(head) = store.audit_head(tenant.no).await? else { continue };
        let last = store.audit_groups(tenant.no, head.seq.saturating_sub(1), 1).await?;
        all.extend(last.last().map(|group| (tenant.no, group.at)));
    }
    Ok(all)
}

/// The database's last entry of the tenant is clearly later than the decision, which is in the database before it is in the
/// ledger.
fn surely_has(until: &BTreeMap<TenantNo, Timestamp>, entry: &LedgerEntry) -> bool {
    until.get(&entry.tenant).is_some_and(|last| *last > entry.at.plus_ms(SURELY_MS))
}

/// The schedule was cancelled, or carried out.
fn ended(entry: &LedgerEntry, later: &[LedgerEntry]) -> bool {
    later.iter().any(|e| e.object == entry.object && matches!(e.kind, LedgerKind::Cancelled | LedgerKind::Accepted))
}
