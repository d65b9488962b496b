//! The key archive of a running vault: to whom it is sealed, and its being written anew.

use crate::audit::{Action, Outcome};
use crate::clock::DAY_MS;
use crate::crypto::recovery::RecoveryRecipient;
use crate::ids::*;
use crate::keyring::archive::setting::{EPOCH_DAYS, MOST_RECIPIENTS, SETTING};
use crate::keyring::archive::{FileState, RecoverySetting};
use crate::keyring::{KeyringError, TenantKeyState};
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::error::VaultError;

/// What a round over the key archives did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ArchivesWritten {
    pub written: Vec<TenantNo>,
    /// Tenants whose file could not be written: it stays as it was, and the next round tries again.
    pub failed: Vec<TenantNo>,
    pub bytes: u64,
}

/// How a vault would be recovered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryStatus {
    /// `None`, or with no recipients: there is no recovery key.
    pub setting: Option<RecoverySetting>,
    /// The present recovery key is older than a year.
    pub epoch_due: bool,
    /// What is known of each tenant's file; `None` where there is none.
    pub files: Vec<(TenantNo, Option<FileState>)>,
}

impl RecoveryStatus {
    /// Whether there is a recovery key.
    pub fn active(&self) -> bool {
        self.setting.as_ref().is_some_and(|setting| !setting.present.recipients.is_empty())
    }
}

impl Vault {
    /// Whether losing the keeper or the root key would lose no subject.
    pub fn has_recovery(&self) -> bool {
        self.keyring.archive().is_some_and(|archive| archive.active())
    }

    /// How the vault would be recovered.
    pub async fn recovery_status(&self) -> Result<RecoveryStatus, VaultError> {
        let Some(archive) = self.keyring.archive().cloned() else {
            return Ok(RecoveryStatus { setting: None, epoch_due: false, files: Vec::new() });
        };
        let setting = archive.setting();
        let oldest = self.clock.now().plus_ms(-EPOCH_DAYS * DAY_MS);
        let epoch_due = setting.as_ref().is_some_and(|setting| setting.present.since < oldest);
        let tenants: Vec<TenantNo> = self.keyring.states().into_iter().map(|(no, _)| no).collect();
        let files =
            tokio::task::spawn_blocking(move || tenants.into_iter().map(|no| (no, archive.state(no))).collect());
        let files = files.await.map_err(|_| VaultError::Keyring(KeyringError::Stopped))?;
        Ok(RecoveryStatus { setting, epoch_due, files })
    }

    /// Seals the key archive to other recipients from now on, in a new epoch, and writes it anew; with `keep`, to those
    /// that there are as well.
    pub async fn set_recovery(
        &self,
        call: &Call,
        recipients: &[RecoveryRecipient],
        keep: bool,
    ) -> Result<ArchivesWritten, VaultError> {
        self.may_rotate(call)?;
        let archive = self.keyring.archive().ok_or(VaultError::WrongState("this vault has no key archive"))?.clone();
        let _one_at_a_time = self.settings.lock().await;
        let (now, key) = (self.clock.now(), SETTING.to_vec());
        let row = self.store.object(TenantNo::VAULT, ObjectKind::Setting, key.clone()).await?;
        let setting = match archive.setting() {
            Some(setting) => {
                let mut all = if keep { setting.recipients().map_err(KeyringError::from)? } else { Vec::new() };
                all.extend(recipients.iter().cloned());
                setting.rotated(&all, now)
            }
            None => RecoverySetting::new(self.keyring.vault(), recipients, now),
        };
        if !(1..=MOST_RECIPIENTS).contains(&setting.present.recipients.len()) {
            return Err(VaultError::invalid("recipients", "1 to 16 age recipients"));
        }
        let mut change = ChangeSet::default();
        let revision = row.map_or(Revision(0), |row| row.revision);
        let body = setting.sign(&self.keyring.signing());
        change.replace_object(TenantNo::VAULT, ObjectKind::Setting, key, revision, body);
        change.note(TenantNo::VAULT, call.record(Action::RotateKeys, Outcome::Ok).to_bytes());
        self.store.commit(change).await?;
        archive.put_setting(setting).map_err(KeyringError::from)?;
        drop(_one_at_a_time);
        self.write_key_archives(false).await
    }

    /// Writes the key archive of every tenant for which it is due, or of all; then dropped slots may be given again.
    /// Nothing without a recovery key.
    pub async fn write_key_archives(&self, all: bool) -> Result<ArchivesWritten, VaultError> {
        let mut report = ArchivesWritten::default();
        if !self.has_recovery() {
            return Ok(report);
        }
        for (tenant, state) in self.keyring.states() {
            if state != TenantKeyState::Ready || !(all || self.keyring.archive_due(tenant).await?) {
                continue;
            }
            match self.keyring.rewrite_archive(tenant).await {
                Ok(written) => {
                    report.written.push(tenant);
                    report.bytes += written.bytes;
                }
                Err(error) => {
                    tracing::error!(tenant = tenant.0, %error, "a key archive was not written");
                    report.failed.push(tenant);
                }
            }
        }
        Ok(report)
    }
}
