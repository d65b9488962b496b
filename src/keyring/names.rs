//! How a key is named: its slot and id, the class of a subject that it is for, or which of a tenant's own secrets.

use crate::ids::*;

/// Which of a tenant's own secrets. Each has its place among the reserved slots of leaf 0; a kind that rotates has two,
/// taken in turn by the parity of the version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SecretKind {
    /// Subject ids and tombstones; lives as long as the tenant.
    Digest,
    /// Blind indexes.
    Index,
    Token,
    PasswordPepper,
    /// Tenant 0 only.
    ApiPepper,
    /// Tenant 0 only.
    PageToken,
}

/// The reserved slot of a version of a secret: what to drop when that version retires.
pub fn secret_slot(kind: SecretKind, version: SecretVersion) -> Slot {
    let turn = (version.0 & 1) as u32;
    Slot(match kind {
        SecretKind::Digest => 0,
        SecretKind::Index => 1 + turn,
        SecretKind::Token => 3 + turn,
        SecretKind::PasswordPepper => 5 + turn,
        SecretKind::ApiPepper => 7 + turn,
        SecretKind::PageToken => 9 + turn,
    })
}

/// Where a key lies and which key must lie there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyRef {
    pub slot: Slot,
    pub dek: DekId,
}

/// A subject's class and its key, as its row says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassRef {
    pub tenant: TenantNo,
    pub uid: SubjectUid,
    pub class: ClassNo,
    pub key: KeyRef,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::keyring::tree::RESERVED;

    #[test]
    fn secrets_have_places_of_their_own() {
        let mut places = BTreeSet::new();
        for kind in [
            SecretKind::Index,
            SecretKind::Token,
            SecretKind::PasswordPepper,
            SecretKind::ApiPepper,
            SecretKind::PageToken,
        ] {
            assert_eq!(secret_slot(kind, SecretVersion(1)), secret_slot(kind, SecretVersion(3)));
            assert!(
                places.insert(secret_slot(kind, SecretVersion(1)))
                    && places.insert(secret_slot(kind, SecretVersion(2)))
            );
        }
        assert!(places.insert(secret_slot(SecretKind::Digest, SecretVersion(1))));
        assert!(places.iter().all(|slot| slot.0 < RESERVED));
    }
}
