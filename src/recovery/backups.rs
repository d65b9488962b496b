//! Backups of a running vault: one at a time, as an operation that can be watched and cancelled, asked for by an operator
//! or by the nightly job. The order is data archive with its ledger, then key archive, then what is past its horizon goes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::causes::causes;
use crate::clock::{Clock, DAY_MS, Timestamp};
use crate::ids::*;
use crate::recovery::catalogue::{self, Archive};
use crate::recovery::data_archive::{self, BackupError, Pace, Sources, blocking};
use crate::telemetry::{BACKUP_AGE, BACKUPS_ENDED, DRILL_AGE, RECOVERY_KEY};
use crate::vault::operation::{Operation, OperationStatus};
use crate::vault::report::ArchivesSeen;
use crate::vault::request::Request;
use crate::vault::{Call, Vault, VaultError};

/// How often a running backup writes down how far it is.
const NOTE_EVERY: Duration = Duration::from_millis(500);
/// A nightly backup that failed is tried again after this.
const RETRY_MS: i64 = 3_600_000;
/// Most reports of drills that are read together.
const DRILLS: usize = 1_000;

/// Where archives go and how long they stay.
#[derive(Debug, Clone)]
pub struct BackupOptions {
    /// Folder of all archives.
    pub dir: PathBuf,
    /// Days until an archive is deleted: the horizon that receipts declare.
    pub horizon_days: i64,
    /// Bytes a second; 0: as fast as the disk, at low priority.
    pub rate: u64,
    /// Make one each night by itself.
    pub nightly: bool,
    /// Hour of the day, UTC, from which on the night's backup is due.
    pub hour: u8,
}

/// What a backup is to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Data,
    Keys,
    Both,
}

/// See the module.
pub struct Backups {
    vault: Arc<Vault>,
    sources: Sources,
    clock: Arc<dyn Clock>,
    options: BackupOptions,
    /// Held by the one that runs.
    one: Arc<tokio::sync::Mutex<()>>,
    running: Mutex<Option<(ObjectId, Arc<Pace>)>>,
    /// When the nightly job began one last; it is not begun again at once where it failed.
    tried: Mutex<Option<Timestamp>>,
}

impl Backups {
    pub fn new(vault: Arc<Vault>, sources: Sources, clock: Arc<dyn Clock>, options: BackupOptions) -> Arc<Self> {
        let one = Arc::new(tokio::sync::Mutex::new(()));
        let (running, tried) = (Mutex::new(None), Mutex::new(None));
        Arc::new(Backups { vault, sources, clock, options, one, running, tried })
    }

    /// Where archives go and how long they stay.
    pub fn options(&self) -> &BackupOptions {
        &self.options
    }

    /// What archives are made of.
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    /// What the catalogue has, for reports.
    pub async fn seen(&self) -> Result<ArchivesSeen, BackupError> {
        let (dir, horizon_days) = (self.options.dir.clone(), self.options.horizon_days);
        let all = blocking(move || catalogue::list(&dir)).await?;
        let made = all.iter().rev().filter_map(Archive::made_at).collect::<Vec<_>>();
        Ok(ArchivesSeen { unreadable: all.len() - made.len(), made, horizon_days })
    }

    /// The newest reports of drills that are kept, as they are, whoever signed them.
    pub async fn drill_reports(&self) -> Vec<Vec<u8>> {
        let dir = self.options.dir.join(catalogue::DRILLS);
        let read = move || {
            let all = catalogue::drills(&dir).into_iter().take(DRILLS);
            Ok(all.filter_map(|drill| std::fs::read(drill.path).ok()).collect())
        };
        blocking(read).await.unwrap_or_default()
    }

    /// Begins a backup and answers its operation at once. One that runs already is answered instead.
    ///
    /// # Errors
    /// `Denied` for others than operators, `WrongState` where keys are wanted and there is no recovery key.
    pub async fn start(
        self: &Arc<Self>,
        call: &Call,
        part: Part,
        request: Option<Request>,
    ) -> Result<Operation, VaultError> {
        if let Some(operation) = self.vault.repeated_backup(call, request.as_ref()).await? {
            return Ok(operation);
        }
        if part == Part::Keys && !self.vault.has_recovery() {
            return Err(VaultError::WrongState("there is no recovery key, so there is no key archive"));
        }
        let Ok(turn) = self.one.clone().try_lock_owned() else {
            let running = self.running.lock().as_ref().map(|(id, _)| *id);
            let id = running.ok_or(VaultError::Busy { retry_ms: 100 })?;
            return self.vault.join_backup(call, id, request.as_ref()).await;
        };
        let (operation, revision) = self.vault.begin_backup(call, request.as_ref()).await?;
        let pace = Pace::new(self.clock.clone(), self.options.rate);
        *self.running.lock() = Some((operation.id, pace.clone()));
        let (this, call, begun) = (self.clone(), call.clone(), operation.clone());
        tokio::spawn(async move {
            this.work(&call, begun, revision, part, pace).await;
            *this.running.lock() = None;
            drop(turn);
        });
        Ok(operation)
    }

    async fn work(&self, call: &Call, mut operation: Operation, mut revision: Revision, part: Part, pace: Arc<Pace>) {
        let making = self.make(part, pace.clone());
        tokio::pin!(making);
        let made = loop {
            tokio::select! {
                made = &mut making => break made,
                _ = tokio::time::sleep(NOTE_EVERY) => {}
            }
            let (done, total) = pace.progress();
            let next = Operation { done, total, updated: self.clock.now(), ..operation.clone() };
            match self.vault.note_backup(call, &operation, revision, &next).await {
                Ok(now) => (operation, revision) = (next, now),
                // Somebody cancelled it. Whatever else is wrong shows again at the end.
                Err(VaultError::Conflict) => pace.stop(),
                Err(error) => tracing::warn!(%error, "the progress of a backup was not noted"),
            }
        };
        let (done, total) = pace.progress();
        // The total was an estimate: the read audit's files end in zeros that are not copied.
        let total = if made.is_ok() { done } else { total };
        let (status, error) = match &made {
            Ok(()) => (OperationStatus::Done, None),
            Err(BackupError::Stopped) => (OperationStatus::Cancelled, None),
            Err(error) => {
                tracing::error!(error = causes(error), "a backup failed");
                (OperationStatus::Failed, Some(reason(error).to_owned()))
            }
        };
        metrics::counter!(BACKUPS_ENDED, "outcome" => if made.is_ok() { "ok" } else { "failed" }).increment(1);
        let next = Operation { status, error, done, total, updated: self.clock.now(), ..operation.clone() };
        match self.vault.note_backup(call, &operation, revision, &next).await {
            // One that was cancelled has its end already.
            Ok(_) | Err(VaultError::Conflict) => {}
            // The next start ends it.
            Err(error) => tracing::warn!(%error, "the end of a backup was not noted"),
        }
    }

    async fn make(&self, part: Part, pace: Arc<Pace>) -> Result<(), BackupError> {
        let dir = self.options.dir.clone();
        blocking(move || catalogue::clean(&dir)).await?;
        let now = self.clock.now();
        if part != Part::Keys {
            let horizon = self.options.horizon_days;
            let written = data_archive::write(&self.sources, &self.options.dir, now, horizon, pace).await?;
            tracing::info!(archive = written.name, bytes = written.manifest.bytes(), "a data archive was written");
        }
        if part != Part::Data {
            let written = self.vault.write_key_archives(part == Part::Keys).await;
            let written = written.map_err(|error| BackupError::Keys { what: error.to_string() })?;
            if !written.failed.is_empty() {
                return Err(BackupError::Keys { what: format!("{} tenants", written.failed.len()) });
            }
        }
        self.prune_at(now, false).await?;
        self.tell_age().await;
        Ok(())
    }

    /// The catalogue, the newest first. For operators.
    pub async fn list(&self, call: &Call) -> Result<Vec<Archive>, VaultError> {
        self.vault.for_operators(call)?;
        let dir = self.options.dir.clone();
        blocking(move || catalogue::list(&dir)).await.map_err(unavailable)
    }

    /// Deletes archives whose horizon is over, all but the newest whole one; with `only_look` it says which those are.
    pub async fn prune(&self, call: &Call, only_look: bool) -> Result<Vec<Archive>, VaultError> {
        self.vault.for_operators(call)?;
        // Not beside a backup: what it writes has no manifest yet.
        let _turn = self.one.lock().await;
        self.prune_at(self.clock.now(), only_look).await.map_err(unavailable)
    }

    async fn prune_at(&self, now: Timestamp, only_look: bool) -> Result<Vec<Archive>, BackupError> {
        let (dir, horizon) = (self.options.dir.clone(), self.options.horizon_days);
        blocking(move || {
            let gone = catalogue::prunable(&dir, now, horizon)?;
            for archive in gone.iter().filter(|_| !only_look) {
                catalogue::remove(&dir, archive)?;
                tracing::info!(archive = archive.name, "an archive was deleted: its horizon is over");
            }
            Ok(gone)
        })
        .await
    }

    /// Begins the night's backup if it is due; one look of the job. Answers whether it did.
    pub async fn nightly(self: &Arc<Self>) -> Result<bool, VaultError> {
        let newest = self.tell_age().await;
        let now = self.clock.now();
        let due = due_since(now, self.options.hour);
        let tried = *self.tried.lock();
        let again = tried.is_none_or(|at| at < due || at.plus_ms(RETRY_MS) <= now);
        if !self.options.nightly || !again || newest.is_some_and(|at| at >= due) {
            return Ok(false);
        }
        *self.tried.lock() = Some(now);
        let call = self.vault.job_call(self.vault.tenant(TenantNo::VAULT)?);
        self.start(&call, Part::Both, None).await?;
        Ok(true)
    }

    /// Sets the metric of the newest archive's age, and answers when that was made.
    async fn tell_age(&self) -> Option<Timestamp> {
        metrics::gauge!(RECOVERY_KEY).set(if self.vault.has_recovery() { 1.0 } else { 0.0 });
        let (dir, now) = (self.options.dir.clone(), self.clock.now());
        let drills = dir.join(catalogue::DRILLS);
        let newest = blocking(move || {
            if let Some(drill) = catalogue::drills(&drills).into_iter().find(|drill| drill.held) {
                metrics::gauge!(DRILL_AGE).set((now.0 - drill.at.0).max(0) as f64 / 1_000.0);
            }
            catalogue::newest(&dir)
        })
        .await;
        let made = newest.ok().flatten().and_then(|archive| archive.made_at())?;
        metrics::gauge!(BACKUP_AGE).set((now.0 - made.0).max(0) as f64 / 1_000.0);
        Some(made)
    }

    /// Stops one that runs and waits until it has ended.
    pub async fn stop(&self) {
        if let Some((_, pace)) = &*self.running.lock() {
            pace.stop();
        }
        drop(self.one.lock().await);
    }
}

/// The latest time at or before `now` at which a night's backup was due.
fn due_since(now: Timestamp, hour: u8) -> Timestamp {
    let today = now.day() * DAY_MS + i64::from(hour) * 3_600_000;
    Timestamp(if today <= now.0 { today } else { today - DAY_MS })
}

/// Why it failed, as operations say it.
fn reason(error: &BackupError) -> &'static str {
    match error {
        BackupError::DiskFull => "DISK_FULL",
        BackupError::Keeper(_) => "KEEPER_AWAY",
        _ => "INTERNAL",
    }
}

fn unavailable(error: BackupError) -> VaultError {
    tracing::warn!(error = causes(&error), "the folder of archives cannot be used");
    match error {
        BackupError::DiskFull => VaultError::Store(crate::storage::StoreError::DiskFull),
        _ => VaultError::WrongState("the folder of archives cannot be used; the server's log says why"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_night_is_due_from_its_hour_on() {
        let day = 20_000 * DAY_MS;
        let hour = |h: i64| Timestamp(day + h * 3_600_000);
        assert_eq!(due_since(hour(1), 2), Timestamp(day - DAY_MS + 2 * 3_600_000));
        assert_eq!(due_since(hour(2), 2), hour(2));
        assert_eq!(due_since(hour(23), 2), hour(2));
    }
}
