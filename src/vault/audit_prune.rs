//! Removing whole segments of the read audit: by the clock, or by an operator with another's word where the configuration
//! leaves it to people. What is removed was covered by a signed checkpoint before, so the rest stays verifiable.

use crate::access::{FieldSet, Verb, View};
use crate::audit::{Action, Checkpoint, Outcome};
use crate::auth::ApprovalUse;
use crate::clock::Timestamp;
use crate::ids::*;
use crate::storage::ChangeSet;
use crate::storage::readlog::ReadLogError;
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::error::{DenialKind, VaultError};

/// What was removed, or would be.
pub struct Pruned {
    /// Segments.
    pub segments: usize,
    /// From when on entries are kept: the time at which the oldest segment that stays was begun.
    pub kept_since: Option<Timestamp>,
    /// Covers all that was removed; `None` where nothing was.
    pub checkpoint: Option<Checkpoint>,
}

/// What an approval of a pruning names as its reference.
pub(crate) fn prune_reference(before: Timestamp) -> String {
    format!("prune the read audit before {}", before.rfc3339())
}

impl Vault {
    /// Removes the segments of the read audit whose entries are all older than `before`, with an approval that this
    /// operator asked for and another granted. What would go is told without one.
    ///
    /// # Errors
    /// `Invalid` for a time within the retention, `Denied` without an approval of exactly this.
    pub async fn prune_audit(
        &self,
        call: &Call,
        before: Timestamp,
        approval: Option<ObjectId>,
        validate_only: bool,
    ) -> Result<Pruned, VaultError> {
        self.operators_only(call)?;
        let oldest = call.wall.plus_days(-self.options.audit_days);
        if before > oldest {
            let rule = format!("lies within the retention of the read audit: at most {}", oldest.rfc3339());
            return Err(VaultError::invalid("before_time", rule));
        }
        let (through, segments, kept_since) = self.old_segments(before).await?;
        if validate_only {
            return Ok(Pruned { segments, kept_since, checkpoint: None });
        }
        let Some(id) = approval else {
            let reference = prune_reference(before);
            return Err(VaultError::denied(
                DenialKind::ApprovalNeeded,
                format!("a second operator must approve: verb audit, reference `{reference}`"),
            ));
        };
        let (approval, revision) = self.approval(call, id).await?;
        let wanted = ApprovalUse {
            by: call.principal.actor,
            subjects: Vec::new(),
            verb: Verb::Audit,
            fields: FieldSet::EMPTY,
            purpose: None,
            view: View::Masked,
            reference: Self::reference_digest(call, &prune_reference(before)),
        };
        let used = approval.use_for(&wanted, call.now)?;
        let mut change = ChangeSet::default();
        self.put_approval(call, &used, revision, &mut change);
        for action in [Action::UseApproval, Action::PruneAudit] {
            let mut entry = call.record(action, Outcome::Ok);
            entry.operation = Some(id);
            change.note(call.tenant.no, entry.to_bytes());
        }
        self.store.commit(change).await?;
        let Some(through) = through else { return Ok(Pruned { segments: 0, kept_since, checkpoint: None }) };
        let (segments, checkpoint) = self.remove_segments(through).await?;
        Ok(Pruned { segments, kept_since, checkpoint: Some(checkpoint) })
    }

    /// Removes segments of the read audit whose entries are all older than the retention, after a checkpoint that covers
    /// them; old checkpoints of days too. Answers how many segments.
    pub async fn prune_reads(&self, days: i64) -> Result<usize, VaultError> {
        let before = self.clock.now().plus_days(-days);
        self.prune_checkpoints(before).await?;
        let (Some(through), ..) = self.old_segments(before).await? else { return Ok(0) };
        let own = self.job_call(self.tenant(TenantNo::VAULT)?);
        let mut change = ChangeSet::default();
        change.note(TenantNo::VAULT, own.record(Action::PruneAudit, Outcome::Ok).to_bytes());
        self.store.commit(change).await?;
        Ok(self.remove_segments(through).await?.0)
    }

    /// The last segment whose entries, and those of all before it, are older than `before`; how many these are; and since
    /// when entries stay.
    async fn old_segments(&self, before: Timestamp) -> Result<(Option<u64>, usize, Option<Timestamp>), VaultError> {
        let log = self.read_log.clone();
        blocking(move || {
            let through = log.prunable(before)?;
            let all = log.segments()?;
            let stay = |number: u64| through.is_none_or(|through| number > through);
            let since = all.iter().find(|one| stay(one.number)).map(|one| one.since);
            Ok((through, all.iter().filter(|one| !stay(one.number)).count(), since))
        })
        .await
    }

    async fn remove_segments(&self, through: u64) -> Result<(usize, Checkpoint), VaultError> {
        let checkpoint = self.make_checkpoint(self.clock.now()).await?;
        let log = self.read_log.clone();
        blocking(move || Ok((log.prune(through, &checkpoint)?, checkpoint))).await
    }
}

/// Runs what blocks beside the runtime's own threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ReadLogError> + Send + 'static,
) -> Result<T, VaultError> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|_| VaultError::AuditUnavailable)?;
    done.map_err(|error| {
        tracing::warn!(%error, "the read audit cannot be pruned");
        VaultError::AuditUnavailable
    })
}
