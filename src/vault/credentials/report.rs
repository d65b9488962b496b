//! What credentials there are and how they are kept, counted from what is stored: so that a sentence like "passwords are
//! hashed with bcrypt" can be held against what is true today.

use std::collections::BTreeMap;

use super::password::StoredPassword;
use super::{API_KEYS, CODES, PASSWORD, RECOVERY_CODES, TOTP, api_key, code, recovery_code, totp};
use crate::access::Verb;
use crate::audit::{Action, Outcome};
use crate::clock::Timestamp;
use crate::crypto::foreign_hash::{FastRecipe, ForeignHash};
use crate::crypto::password::Argon2Cost;
use crate::ids::*;
use crate::storage::{ClassState, SubjectSnapshot};
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::error::VaultError;
use crate::vault::record;

/// Subjects looked at together.
const PAGE: u32 = 1_000;
/// How codes are kept: a digest under a key that is not in the database.
const DIGEST: &str = "hmac-sha256";

/// How credentials are kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kept {
    /// `password`, `api-key`, `totp`, `recovery-code`, `code`.
    pub kind: &'static str,
    pub algorithm: &'static str,
    /// As in a PHC string; empty where there are none.
    pub parameters: String,
}

/// The counts of one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialReport {
    pub counts: BTreeMap<Kept, u64>,
    pub passwords: u64,
    /// Passwords that the next good check makes anew.
    pub outdated: u64,
    /// Passwords whose pepper is gone.
    pub must_reset: u64,
    /// Passwords under the pepper that is being retired.
    pub retiring: u64,
    /// API keys and codes that work and are under the pepper of access keys that is being retired.
    pub under_access_pepper: u64,
    pub at: Timestamp,
}

impl CredentialReport {
    fn new(at: Timestamp) -> Self {
        let (counts, under_access_pepper) = (BTreeMap::new(), 0);
        let (passwords, outdated, must_reset, retiring) = (0, 0, 0, 0);
        CredentialReport { counts, passwords, outdated, must_reset, retiring, under_access_pepper, at }
    }

    fn add(&mut self, kind: &'static str, algorithm: &'static str, parameters: String, count: u64) {
        if count > 0 {
            *self.counts.entry(Kept { kind, algorithm, parameters }).or_default() += count;
        }
    }
}

impl Vault {
    /// Counts the credentials of the tenant's subjects that are not erased. Scans them.
    pub async fn report_credentials(&self, call: &Call) -> Result<CredentialReport, VaultError> {
        let permit = call.permit(Verb::Credential)?;
        permit.for_group(None)?;
        let entry = call.record(Action::ReportCredentials, Outcome::Ok);
        self.note_read(call, &entry).await?;
        self.count_credentials(call).await
    }

    pub(crate) async fn count_credentials(&self, call: &Call) -> Result<CredentialReport, VaultError> {
        let class = self.credential_rules(call)?.class;
        let mut report = CredentialReport::new(call.now);
        let mut after = SubjectUid(0);
        loop {
            let page = self.store.list_subjects(call.tenant.no, None, after, PAGE).await?;
            for snapshot in &page.rows {
                self.count_all_of(call, class, snapshot, &mut report).await?;
            }
            match page.rows.last() {
                Some(last) if page.more => after = last.subject.uid,
                _ => return Ok(report),
            }
        }
    }

    /// The credentials of one subject: kind, algorithm and how many.
    pub(crate) async fn credentials_of(
        &self,
        call: &Call,
        snapshot: &SubjectSnapshot,
    ) -> Result<Vec<(&'static str, &'static str, u64)>, VaultError> {
        let class = self.credential_rules(call)?.class;
        let mut report = CredentialReport::new(call.now);
        self.count_all_of(call, class, snapshot, &mut report).await?;
        Ok(report.counts.into_iter().map(|(kept, count)| (kept.kind, kept.algorithm, count)).collect())
    }

    async fn count_all_of(
        &self,
        call: &Call,
        class: ClassNo,
        snapshot: &SubjectSnapshot,
        report: &mut CredentialReport,
    ) -> Result<(), VaultError> {
        let Some(row) = snapshot.class(class).filter(|row| row.state == ClassState::Live) else { return Ok(()) };
        let outline = record::outline(&row.record).map_err(|_| VaultError::DataLoss)?;
        for field in outline.iter().map(|value| value.field).filter(|field| field.is_own()) {
            self.count_one(call, snapshot, field, report).await?;
        }
        Ok(())
    }

    async fn count_one(
        &self,
        call: &Call,
        snapshot: &SubjectSnapshot,
        field: FieldNo,
        report: &mut CredentialReport,
    ) -> Result<(), VaultError> {
        let Some(found) = self.open_credential(call, snapshot, field).await? else { return Ok(()) };
        let value = found.value.as_slice();
        if let Some(old) = self.access.own.load().pepper.retiring {
            report.under_access_pepper += match field {
                API_KEYS => api_key::keys_under(value, old, call.now)?,
                CODES => code::codes_under(value, old, call.now)?,
                RECOVERY_CODES => recovery_code::codes_under(value, old)?,
                _ => 0,
            };
        }
        match field {
            PASSWORD => self.count_password(call, &StoredPassword::parse(value)?, report),
            TOTP if totp::is_confirmed(value)? => report.add("totp", "sealed", String::new(), 1),
            API_KEYS => {
                for hash in api_key::hashes_of(value)? {
                    let cost = Argon2Cost::of(&hash).ok_or(VaultError::DataLoss)?;
                    report.add("api-key", "argon2id", cost.text(), 1);
                }
            }
            CODES => report.add("code", DIGEST, String::new(), code::working_codes(value, call.now)? as u64),
            RECOVERY_CODES => {
                report.add("recovery-code", DIGEST, String::new(), recovery_code::codes_left(value)? as u64);
            }
            _ => {}
        }
        Ok(())
    }

    fn count_password(&self, call: &Call, stored: &StoredPassword, report: &mut CredentialReport) {
        let settings = &call.tenant.settings;
        report.passwords += 1;
        match stored.pepper {
            Some(version) if version != settings.pepper && Some(version) != settings.pepper_retiring => {
                report.must_reset += 1;
            }
            _ if stored.is_outdated(settings.pepper, self.credentials.pool.cost()) => report.outdated += 1,
            _ => {}
        }
        if stored.pepper.is_some() && stored.pepper == settings.pepper_retiring {
            report.retiring += 1;
        }
        let argon2 = || Argon2Cost::of(&stored.hash).map_or_else(String::new, |cost| cost.text());
        let (algorithm, parameters) = match (&stored.inner, stored.pepper) {
            (Some(recipe), _) => (FastRecipe::parse(recipe).map_or("unknown", |r| r.algorithm()), argon2()),
            (None, Some(_)) => ("argon2id", argon2()),
            (None, None) => match ForeignHash::parse(&stored.hash, u32::MAX) {
                Ok(foreign) => (foreign.algorithm(), foreign.parameters()),
                Err(_) => ("unknown", String::new()),
            },
        };
        report.add("password", algorithm, parameters, 1);
    }
}
