//! Decoys: people whom the tenant made up and whom nobody has a reason to look at. A reader cannot tell them from others;
//! whoever reads one leaves an alarm, a line in the log and an entry in the audit of reads.
//!
//! The numbers of all decoys are one set in memory. Each entry of the read audit that names a person is looked up in it
//! after it became durable: one atomic load where there is no decoy at all, else a look into a hash set. What a hit does
//! is done by a task of its own, so that its answer comes as soon as another's. In the store the row of a decoy is found by
//! a keyed digest and its contents are sealed: who has the database alone does not learn who is one.

use std::collections::HashSet;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};

use crate::access::Verb;
use crate::audit::{Action, AuditRecord, Outcome};
use crate::clock::Timestamp;
use crate::ids::*;
use crate::storage::*;
use crate::telemetry::DECOYS_READ;
use crate::vault::call::Call;
use crate::vault::error::VaultError;
use crate::vault::tenant::Tenant;
use crate::vault::{Vault, to_json};

/// Most decoys of a tenant.
const MOST: usize = 10_000;
/// Rows read together.
const TOGETHER: u32 = 1_000;

/// Everybody who is a decoy, of all tenants.
#[derive(Default)]
pub struct Decoys(ArcSwap<HashSet<SubjectUid>>);

impl Decoys {
    fn has(&self, uid: SubjectUid) -> bool {
        let set = self.0.load();
        !set.is_empty() && set.contains(&uid)
    }

    /// What `f` answers is of no interest.
    fn change<R>(&self, f: impl Fn(&mut HashSet<SubjectUid>) -> R) {
        self.0.rcu(|set| {
            let mut set = HashSet::clone(set);
            let _ = f(&mut set);
            set
        });
    }
}

/// One decoy, as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    uid: SubjectUid,
    at: Timestamp,
    by: ActorId,
}

/// One decoy, for who may mark them.
#[derive(Debug, Clone)]
pub struct Decoy {
    pub uid: SubjectUid,
    pub subject: SubjectId,
    pub at: Timestamp,
    pub by: ActorId,
}

fn row_key(tenant: &Tenant, uid: SubjectUid) -> Vec<u8> {
    tenant.token_mac(&[b"decoy", &uid.0.to_be_bytes()]).to_vec()
}

impl Vault {
    /// Makes a read of one person durable in the audit; from here on what it shows may leave the vault.
    pub(crate) async fn note_read(&self, call: &Call, entry: &AuditRecord) -> Result<(), VaultError> {
        self.note_reads(call, std::slice::from_ref(entry)).await
    }

    /// The same of all entries of one call.
    pub(crate) async fn note_reads(&self, call: &Call, entries: &[AuditRecord]) -> Result<(), VaultError> {
        let tenant = call.tenant.no;
        self.read_log.append_all(tenant, entries).await.map_err(|_| VaultError::AuditUnavailable)?;
        self.watch_decoys(tenant, entries);
        Ok(())
    }

    /// Tells of reads of decoys, beside the call that made them.
    pub(crate) fn watch_decoys(&self, tenant: TenantNo, entries: &[AuditRecord]) {
        for entry in entries {
            // Actor 0 is the vault itself.
            let Some(uid) = entry.subject.filter(|uid| entry.actor.0 != 0 && self.decoys.has(*uid)) else { continue };
            let mut record = AuditRecord::new(entry.at, entry.actor, Action::DecoyRead, entry.outcome);
            // Without fields and recipient: the entry of the read has them, and reports that sum up reads count that one.
            (record.subject, record.purpose) = (Some(uid), entry.purpose);
            let (log, action) = (self.read_log.clone(), entry.action);
            tokio::spawn(async move {
                metrics::counter!(DECOYS_READ).increment(1);
                tracing::error!(
                    tenant = tenant.0,
                    actor = record.actor.0,
                    subject_uid = uid.0,
                    action = action.name(),
                    outcome = record.outcome.name(),
                    "a decoy was read"
                );
                if let Err(error) = log.append(tenant, &record).await {
                    tracing::error!(%error, "the entry about a read of a decoy was not written");
                }
            });
        }
    }

    /// Marks a person as a decoy, or ends that. For who may issue access keys; nobody else hears of it.
    ///
    /// # Errors
    /// `Quota` beyond 10,000 decoys of a tenant.
    pub async fn set_decoy(&self, call: &Call, id: &SubjectId, decoy: bool) -> Result<Decoy, VaultError> {
        call.permit(Verb::Access)?;
        let snapshot = self.resolve_id(call, id).await?;
        let uid = snapshot.subject.uid;
        let (tenant, kind, key) = (call.tenant.no, ObjectKind::Decoy, row_key(&call.tenant, uid));
        let _one_at_a_time = self.settings.lock().await;
        let stored = self.store.object(tenant, kind, key.clone()).await?;
        let mut told = Decoy { uid, subject: id.clone(), at: call.wall, by: call.principal.actor };
        let mut change = ChangeSet::default();
        change.require(Precondition::SubjectLive { uid });
        match (stored, decoy) {
            (Some(row), true) => {
                // Marked already: as it was.
                let body = open(&call.tenant, &row)?;
                (told.at, told.by) = (body.at, body.by);
                return Ok(told);
            }
            (None, false) => return Err(VaultError::NotFound),
            (Some(row), false) => {
                let body = open(&call.tenant, &row)?;
                (told.at, told.by) = (body.at, body.by);
                change.change(Mutation::DeleteObject { tenant, kind, key });
            }
            (None, true) => {
                if self.decoy_rows(&call.tenant).await?.len() >= MOST {
                    return Err(VaultError::Quota("decoys of a tenant, 10,000"));
                }
                let body = to_json(&Body { uid, at: told.at, by: told.by });
                let body = call.tenant.seal_object(kind, &key, &body);
                change.change(Mutation::PutObject(ObjectRow { tenant, kind, key, revision: Revision(1), body }));
            }
        }
        let mut entry = call.record(if decoy { Action::MarkDecoy } else { Action::UnmarkDecoy }, Outcome::Ok);
        entry.subject = Some(uid);
        change.note(tenant, entry.to_bytes());
        self.store.commit(change).await?;
        self.decoys.change(|set| if decoy { set.insert(uid) } else { set.remove(&uid) });
        Ok(told)
    }

    /// The decoys of a tenant that are still there, by their number.
    pub async fn list_decoys(&self, call: &Call) -> Result<Vec<Decoy>, VaultError> {
        call.permit(Verb::Access)?;
        let mut decoys = Vec::new();
        for (_, body) in self.decoy_rows(&call.tenant).await? {
            if let Some(subject) = self.id_of(call, body.uid).await? {
                decoys.push(Decoy { uid: body.uid, subject, at: body.at, by: body.by });
            }
        }
        decoys.sort_unstable_by_key(|decoy| decoy.uid);
        self.note_listing(call, Action::ListDecoys).await?;
        Ok(decoys)
    }

    async fn decoy_rows(&self, tenant: &Tenant) -> Result<Vec<(Vec<u8>, Body)>, VaultError> {
        let (mut rows, mut after) = (Vec::new(), Vec::new());
        loop {
            let page = self.store.objects(tenant.no, ObjectKind::Decoy, Vec::new(), after, TOGETHER).await?;
            for row in &page.rows {
                rows.push((row.key.clone(), open(tenant, row)?));
            }
            match page.rows.last() {
                Some(last) if page.more => after = last.key.clone(),
                _ => return Ok(rows),
            }
        }
    }

    /// Knows the decoys of a tenant again, after a start.
    pub(crate) async fn load_decoys(&self, tenant: &Tenant) -> Result<(), VaultError> {
        let rows = self.decoy_rows(tenant).await?;
        if !rows.is_empty() {
            self.decoys.change(|set| set.extend(rows.iter().map(|(_, body)| body.uid)));
        }
        Ok(())
    }

    /// Forgets decoys that were erased; answers how many.
    pub(crate) async fn forget_decoys(&self, tenant: &Tenant) -> Result<u64, VaultError> {
        let mut gone = 0;
        for (key, body) in self.decoy_rows(tenant).await? {
            if self.store.subject_by_uid(body.uid).await?.is_some_and(|found| found.subject.tenant == tenant.no) {
                continue;
            }
            let mut change = ChangeSet::default();
            change.change(Mutation::DeleteObject { tenant: tenant.no, kind: ObjectKind::Decoy, key });
            self.store.commit(change).await?;
            self.decoys.change(|set| set.remove(&body.uid));
            gone += 1;
        }
        Ok(gone)
    }
}

fn open(tenant: &Tenant, row: &ObjectRow) -> Result<Body, VaultError> {
    let plain = tenant.open_object(ObjectKind::Decoy, &row.key, &row.body)?;
    serde_json::from_slice(&plain).map_err(|_| VaultError::DataLoss)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_no_decoy_is_none() {
        let decoys = Decoys::default();
        assert!(!decoys.has(SubjectUid(1)));
        decoys.change(|set| set.insert(SubjectUid(1)));
        assert!(decoys.has(SubjectUid(1)) && !decoys.has(SubjectUid(2)));
        decoys.change(|set| set.remove(&SubjectUid(1)));
        assert!(!decoys.has(SubjectUid(1)));
    }
}
