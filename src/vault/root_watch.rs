//! The root key's provider while the vault runs: the key is in memory, so that an outage of the provider stops nothing at
//! once. How long it may last is the operator's to say; then tenants' calls are refused until it is back.

use crate::telemetry::ROOT_AWAY;
use crate::vault::Vault;

impl Vault {
    /// Asks the provider whether it still gives the root key, where it is on another machine. Answers whether the vault
    /// serves.
    pub async fn watch_root(&self) -> bool {
        let Some(roots) = &self.options.roots else { return true };
        let present = self.keyring.kek_id();
        let (asked, now) = (roots.check(&present).await, self.clock.now());
        let mut away = self.root_away.lock();
        match asked {
            Ok(()) => {
                if away.1 {
                    tracing::warn!("the root key's provider is back: tenants are served again");
                }
                *away = (None, false);
            }
            Err(error) => {
                let since = *away.0.get_or_insert(now);
                let over = roots.outage_ms(&present).is_some_and(|most| now.0.saturating_sub(since.0) >= most);
                if over && !away.1 {
                    tracing::error!("the root key's provider is away for too long: tenants' calls are refused");
                }
                away.1 = over;
                tracing::warn!(%error, "the root key's provider does not give it");
            }
        }
        let seconds = away.0.map_or(0.0, |since| now.0.saturating_sub(since.0) as f64 / 1_000.0);
        metrics::gauge!(ROOT_AWAY).set(seconds);
        !away.1
    }

    /// Tenants' calls are refused: the root key's provider is away for longer than it may be.
    pub fn sealed(&self) -> bool {
        self.root_away.lock().1
    }
}
