//! Floor 6: what the vault does by the clock. Each job is a function over the vault without any sleep in it; this
//! file calls them again and again, each on its own interval. A tenant that fails does not stop the others.

pub mod anchors;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::ids::TenantNo;
use crate::jobs::anchors::Anchors;
use crate::recovery::backups::Backups;
use crate::telemetry::{CLOCK_TRUSTED, JOB_DONE, JOB_FAILED, JOB_SECONDS, REQUESTS_OVERDUE};
use crate::vault::expiry::Progress;
use crate::vault::{Vault, VaultError};

/// How often each job looks, and how much is kept.
#[derive(Debug, Clone)]
pub struct JobsOptions {
    /// Buckets, dates and changed retention.
    pub retention: Duration,
    /// Erasures that a crash or a keeper that was away left unfinished, and long ones.
    pub operations: Duration,
    /// Rows whose keys are gone.
    pub sweep: Duration,
    /// Ages of roots and index secrets; pruning; writing down when access keys were last used.
    pub rotation: Duration,
    /// Signed checkpoints, if anything happened.
    pub checkpoint: Duration,
    /// The keeper's anchor, if anything happened.
    pub anchor: Duration,
    /// Whether the night's backup is due.
    pub backup: Duration,
    /// Replicas of the keeper that were away.
    pub keeper: Duration,
    /// Whether the root key's provider answers, where it is on another machine.
    pub root: Duration,
    /// Comparing the clocks.
    pub clock: Duration,
    /// Checkpoints that external anchors lack.
    pub publish: Duration,
    /// Read audit entries older than this are removed, in days; 0: only by an operator with another's word.
    pub audit_days: i64,
    /// Where checkpoints go.
    pub anchors: Arc<Anchors>,
}

impl Default for JobsOptions {
    fn default() -> Self {
        let s = Duration::from_secs;
        JobsOptions {
            retention: s(60),
            operations: s(1),
            sweep: s(10),
            rotation: s(3_600),
            checkpoint: s(600),
            anchor: Duration::from_millis(900),
            backup: s(60),
            keeper: s(10),
            root: s(60),
            clock: s(10),
            publish: s(10),
            audit_days: 3_650,
            anchors: Arc::default(),
        }
    }
}

/// The kinds of work, each with a loop of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    Clock,
    Retention,
    Operations,
    Sweep,
    Rotation,
    Checkpoint,
    Anchor,
    Prune,
    Backup,
    Keeper,
    Root,
    Publish,
}

impl Job {
    pub const ALL: [Job; 12] = [
        Job::Clock,
        Job::Retention,
        Job::Operations,
        Job::Sweep,
        Job::Rotation,
        Job::Checkpoint,
        Job::Anchor,
        Job::Prune,
        Job::Backup,
        Job::Keeper,
        Job::Root,
        Job::Publish,
    ];

    /// Its name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Job::Clock => "clock",
            Job::Retention => "retention",
            Job::Operations => "operations",
            Job::Sweep => "sweep",
            Job::Rotation => "rotation",
            Job::Checkpoint => "checkpoint",
            Job::Anchor => "anchor",
            Job::Prune => "prune",
            Job::Backup => "backup",
            Job::Keeper => "keeper",
            Job::Root => "root",
            Job::Publish => "publish",
        }
    }

    fn every(self, options: &JobsOptions) -> Duration {
        match self {
            Job::Clock => options.clock,
            Job::Retention => options.retention,
            Job::Operations => options.operations,
            Job::Sweep => options.sweep,
            Job::Rotation | Job::Prune => options.rotation,
            Job::Checkpoint => options.checkpoint,
            Job::Anchor => options.anchor,
            Job::Backup => options.backup,
            Job::Keeper => options.keeper,
            Job::Root => options.root,
            Job::Publish => options.publish,
        }
    }
}

/// One round of a job: about `limit` units of work a tenant.
///
/// # Errors
/// The first one met; the other tenants were served all the same.
pub async fn run_once(
    job: Job,
    vault: &Vault,
    backups: &Arc<Backups>,
    options: &JobsOptions,
    limit: u64,
) -> Result<Progress, VaultError> {
    match job {
        Job::Backup => Ok(Progress { done: u64::from(backups.nightly().await?), more: false }),
        Job::Root => {
            vault.watch_root().await;
            Ok(Progress::default())
        }
        Job::Publish => Ok(Progress { done: options.anchors.run_once(vault).await?, more: false }),
        Job::Keeper => Ok(Progress { done: vault.keep_replicas().await?, more: false }),
        Job::Clock => {
            vault.watch_clock().await?;
            metrics::gauge!(CLOCK_TRUSTED).set(if vault.clock_jump().is_none() { 1.0 } else { 0.0 });
            Ok(Progress::default())
        }
        Job::Checkpoint => {
            let made = vault.keep_checkpoint().await?;
            Ok(Progress { done: u64::from(made.is_some()), more: false })
        }
        Job::Anchor => Ok(Progress { done: u64::from(vault.keep_anchor().await?), more: false }),
        Job::Prune => {
            let segments = match options.audit_days {
                0 => 0,
                days => vault.prune_reads(days).await?,
            };
            let rows = vault.prune(limit).await?;
            let few = usize::try_from(limit).unwrap_or(usize::MAX);
            let access = vault.write_key_uses(few).await? as u64;
            let uses = vault.write_api_key_uses(few).await?;
            let done = rows.done + segments as u64 + access + uses.done;
            Ok(Progress { done, more: rows.more | uses.more })
        }
        Job::Retention | Job::Operations | Job::Sweep | Job::Rotation => {
            let mut all = Progress::default();
            let mut failed = None;
            // The vault's own operations are the erasures of tenants and rotations; it has no subjects.
            let meant = |no: &TenantNo| *no != TenantNo::VAULT || matches!(job, Job::Operations | Job::Rotation);
            for tenant in vault.live_tenants().into_iter().map(|tenant| tenant.no).filter(meant) {
                match of_tenant(job, vault, tenant, limit).await {
                    Ok(progress) => all = Progress { done: all.done + progress.done, more: all.more | progress.more },
                    Err(error) => {
                        tracing::warn!(job = job.name(), tenant = tenant.0, %error, "a job failed for a tenant");
                        failed.get_or_insert(error);
                    }
                }
            }
            if job == Job::Rotation {
                vault.watch_keys().await?;
            }
            failed.map_or(Ok(all), Err)
        }
    }
}

async fn of_tenant(job: Job, vault: &Vault, tenant: TenantNo, limit: u64) -> Result<Progress, VaultError> {
    let call = vault.job_call(vault.tenant(tenant)?);
    let few = u32::try_from(limit).unwrap_or(u32::MAX);
    let join = |a: Progress, b: Progress| Progress { done: a.done + b.done, more: a.more | b.more };
    if job == Job::Operations {
        let moved = vault.go_on(&call, few).await?;
        let rotations = join(vault.go_on_rotations(&call, limit).await?, vault.go_on_index(&call, limit).await?);
        return Ok(join(rotations, Progress { done: u64::from(moved), more: moved > 0 }));
    }
    let due = match job {
        Job::Rotation => join(vault.rotate_due_keys(&call).await?, vault.rotate_due_root(&call).await?),
        _ => Progress::default(),
    };
    if call.tenant.policy.is_none() {
        return Ok(due);
    }
    match job {
        Job::Retention => {
            let overdue = vault.overdue_requests().await?;
            metrics::gauge!(REQUESTS_OVERDUE).set(overdue as f64);
            let shredded = vault.shred_due(&call, few).await?;
            vault.require_trusted_clock()?;
            let due = vault.run_due(&call, few).await?;
            let dates = Progress { done: u64::from(due), more: due == few };
            Ok(join(join(shredded, dates), vault.apply_retention(&call, limit).await?))
        }
        Job::Sweep => Ok(join(vault.sweep_erased(&call, limit).await?, vault.sweep_rows(&call, limit).await?)),
        Job::Rotation => {
            let index = join(due, vault.rotate_due_index(&call).await?);
            let decoys = Progress { done: vault.forget_decoys(&call.tenant).await?, more: false };
            Ok(join(join(index, decoys), vault.keep_credentials(&call, limit).await?))
        }
        Job::Operations
        | Job::Clock
        | Job::Checkpoint
        | Job::Anchor
        | Job::Prune
        | Job::Backup
        | Job::Keeper
        | Job::Publish
        | Job::Root => Ok(Progress::default()),
    }
}

/// The running loops.
pub struct Jobs(Vec<JoinHandle<()>>);

/// Most units of work in one round of a tenant.
const ROUND: u64 = 20_000;

impl Jobs {
    /// Starts a loop for each job; they end when `shutdown` becomes true.
    pub fn start(
        vault: Arc<Vault>,
        backups: Arc<Backups>,
        options: JobsOptions,
        shutdown: watch::Receiver<bool>,
    ) -> Jobs {
        let start =
            |job: Job| tokio::spawn(work(job, vault.clone(), backups.clone(), options.clone(), shutdown.clone()));
        Jobs(Job::ALL.into_iter().map(start).collect())
    }

    /// Waits until all have ended what they were doing.
    pub async fn finish(self) {
        for job in self.0 {
            if let Err(error) = job.await {
                tracing::error!(%error, "a job ended with a panic");
            }
        }
    }
}

async fn work(
    job: Job,
    vault: Arc<Vault>,
    backups: Arc<Backups>,
    options: JobsOptions,
    mut shutdown: watch::Receiver<bool>,
) {
    // Nothing ends by time before the clock was compared with the stored time.
    while let Err(error) = vault.watch_clock().await {
        tracing::warn!(job = job.name(), %error, "the clock cannot be compared with the stored time");
        tokio::select! {
            _ = tokio::time::sleep(options.clock) => {}
            _ = shutdown.wait_for(|stop| *stop) => return,
        }
    }
    let mut ticks = tokio::time::interval(job.every(&options));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = shutdown.wait_for(|stop| *stop) => return,
        }
        // What is left after a round goes on at once, with the other jobs' rounds in between.
        while !*shutdown.borrow() {
            let before = vault.monotonic();
            let round = run_once(job, &vault, &backups, &options, ROUND).await;
            metrics::histogram!(JOB_SECONDS, "job" => job.name())
                .record(vault.monotonic().saturating_sub(before).as_secs_f64());
            match round {
                Ok(progress) => {
                    metrics::counter!(JOB_DONE, "job" => job.name()).increment(progress.done);
                    metrics::counter!(JOB_FAILED, "job" => job.name()).increment(0);
                    if !progress.more {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
                Err(error) => {
                    metrics::counter!(JOB_FAILED, "job" => job.name()).increment(1);
                    tracing::warn!(job = job.name(), %error, "a job failed");
                    break;
                }
            }
        }
    }
}
