//! What is due: the vault's own rotations by age, and the warnings before a period ends.

use std::collections::BTreeMap;

use crate::clock::{DAY_MS, Timestamp};
use crate::ids::*;
use crate::telemetry::{KEY_DAYS_LEFT, ROTATION_LEFT};
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::error::VaultError;
use crate::vault::expiry::Progress;
use crate::vault::rotation::{Kind, OwnSecret, kind_of};

impl Vault {
    /// Begins the rotations of the tenant that the configuration leaves to the vault and whose time has come.
    pub async fn rotate_due_keys(&self, call: &Call) -> Result<Progress, VaultError> {
        let mut done = 0;
        for (kind, since) in self.key_ages(call).await? {
            if !self.options.rotation.rotates(kind, since, call.wall) {
                continue;
            }
            match kind {
                Kind::Signing => drop(self.begin_signing(call, None).await?),
                Kind::PageToken if !self.rotation_runs(call, kind).await? => {
                    drop(self.begin_own_secret(call, OwnSecret::PageToken, None, None).await?);
                }
                Kind::Tree if !self.rotation_runs(call, kind).await? => drop(self.begin_tree(call, None).await?),
                Kind::Data if call.tenant.policy.is_some() && !self.rotation_runs(call, kind).await? => {
                    drop(self.begin_data(call).await?);
                }
                // The tenant's root and the index have rules of their own; a root key and peppers need an operator.
                _ => continue,
            }
            done += 1;
        }
        Ok(Progress { done, more: false })
    }

    async fn rotation_runs(&self, call: &Call, kind: Kind) -> Result<bool, VaultError> {
        let open = self.open_operations(call.tenant.no, SubjectUid(0)).await?;
        Ok(open.iter().any(|(operation, _)| kind_of(operation.kind) == Some(kind)))
    }

    /// Since when the keys of a tenant are in use, as far as that is known without a scan.
    pub(crate) async fn key_ages(&self, call: &Call) -> Result<Vec<(Kind, Timestamp)>, VaultError> {
        let mut ages = vec![(Kind::Tree, self.key_age(call, Kind::Tree).await?.since)];
        ages.extend(self.root_since(call.tenant.no).await?.map(|since| (Kind::TenantRoot, since)));
        if call.tenant.no == TenantNo::VAULT {
            ages.push((Kind::Root, self.key_age(call, Kind::Root).await?.since));
            ages.extend(self.signers().first().map(|signer| (Kind::Signing, signer.since)));
            for kind in [Kind::AccessKeyPepper, Kind::PageToken] {
                ages.push((kind, self.key_age(call, kind).await?.since));
            }
            return Ok(ages);
        }
        ages.push((Kind::Data, self.key_age(call, Kind::Data).await?.since));
        ages.push((Kind::Index, call.tenant.settings.index_since));
        ages.push((Kind::PasswordPepper, self.key_age(call, Kind::PasswordPepper).await?.since));
        Ok(ages)
    }

    /// Looks at the ages of all keys: sets the gauges, and warns in the log of what is due soon or overdue.
    pub async fn watch_keys(&self) -> Result<(), VaultError> {
        let periods = &self.options.rotation;
        let mut soonest: BTreeMap<&'static str, (i64, u64)> = BTreeMap::new();
        let mut left: BTreeMap<&'static str, u64> = BTreeMap::new();
        for tenant in self.live_tenants() {
            let call = self.job_call(tenant);
            for (kind, since) in self.key_ages(&call).await? {
                let Some(due) = periods.due(kind, since) else { continue };
                let days = due.0.saturating_sub(call.wall.0).div_euclid(DAY_MS);
                let warned = u64::from(days <= i64::from(periods.warn));
                let known = soonest.entry(kind.name()).or_insert((days, 0));
                *known = (known.0.min(days), known.1 + warned);
            }
            for (operation, _) in self.open_operations(call.tenant.no, SubjectUid(0)).await? {
                if let Some(kind) = kind_of(operation.kind) {
                    *left.entry(kind.name()).or_default() += operation.total.saturating_sub(operation.done);
                }
            }
        }
        for (kind, (days, tenants)) in soonest {
            metrics::gauge!(KEY_DAYS_LEFT, "kind" => kind).set(days as f64);
            if tenants > 0 {
                tracing::warn!(kind, days, tenants, "keys are at the end of their period: see `pii-vault keys status`");
            }
        }
        for kind in Kind::ALL {
            let count = left.get(kind.name()).copied().unwrap_or(0);
            metrics::gauge!(ROTATION_LEFT, "kind" => kind.name()).set(count as f64);
        }
        Ok(())
    }
}
