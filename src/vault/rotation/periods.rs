//! How old keys may become.

use crate::clock::{DAY_MS, Timestamp};
use crate::vault::rotation::Kind;

/// Cryptoperiods in days; 0: none. The defaults are NIST SP 800-57's order of magnitude: a year for what wraps and signs,
/// two for what seals data; a tenant's root and the key of page tokens 90 days, since a new one costs nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Periods {
    pub root: u32,
    pub tenant_root: u32,
    pub tree: u32,
    pub data: u32,
    pub index: u32,
    pub password_pepper: u32,
    pub access_key_pepper: u32,
    pub page_token: u32,
    pub signing: u32,
    /// Days before an end from which on it is warned of.
    pub warn: u32,
    /// Rotated by the vault itself when due.
    pub automatic: Vec<Kind>,
}

impl Default for Periods {
    fn default() -> Self {
        Periods {
            root: 365,
            tenant_root: 90,
            tree: 0,
            data: 730,
            index: 0,
            password_pepper: 0,
            access_key_pepper: 0,
            page_token: 90,
            signing: 365,
            warn: 14,
            automatic: vec![Kind::TenantRoot, Kind::PageToken],
        }
    }
}

impl Periods {
    /// Days of a kind.
    pub fn days(&self, kind: Kind) -> u32 {
        match kind {
            Kind::Root => self.root,
            Kind::TenantRoot => self.tenant_root,
            Kind::Tree => self.tree,
            Kind::Data => self.data,
            Kind::Index => self.index,
            Kind::PasswordPepper => self.password_pepper,
            Kind::AccessKeyPepper => self.access_key_pepper,
            Kind::PageToken => self.page_token,
            Kind::Signing => self.signing,
        }
    }

    /// When a key made then is due; `None` without a period.
    pub fn due(&self, kind: Kind, since: Timestamp) -> Option<Timestamp> {
        let days = i64::from(self.days(kind));
        (days > 0).then(|| Timestamp(since.0.saturating_add(days.saturating_mul(DAY_MS))))
    }

    /// Whether the vault itself rotates a key made then, now.
    pub fn rotates(&self, kind: Kind, since: Timestamp, now: Timestamp) -> bool {
        self.automatic.contains(&kind) && self.due(kind, since).is_some_and(|due| due <= now)
    }
}
