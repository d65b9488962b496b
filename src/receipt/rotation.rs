//! The signed record of a rotation: which key took whose place, what was moved, and what became of the old one. Verified
//! offline like an erasure receipt, with the vault's public keys alone.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::crypto::document::{self, DocumentRefused};
use crate::crypto::sign::{Domain, Signing};
use crate::ids::{Generation, ObjectId, TenantNo, VaultId};
use crate::receipt::{AuditPosition, Keeper, time, time_option, vault_hex};

const FORMAT: &str = "pii-vault rotation record v1";

/// Which key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The key that wraps all tenants' roots, from outside.
    Root,
    TenantRoot,
    /// Every node of a tenant's tree.
    Tree,
    /// Data keys of subjects.
    Data,
    Index,
    PasswordPepper,
    /// Of access keys, and of API keys and codes of tenants' users.
    AccessKeyPepper,
    PageToken,
    Signing,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 9] = [
        Kind::Root,
        Kind::TenantRoot,
        Kind::Tree,
        Kind::Data,
        Kind::Index,
        Kind::PasswordPepper,
        Kind::AccessKeyPepper,
        Kind::PageToken,
        Kind::Signing,
    ];

    /// As the command line says it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Root => "root",
            Kind::TenantRoot => "tenant-root",
            Kind::Tree => "tree",
            Kind::Data => "data",
            Kind::Index => "index",
            Kind::PasswordPepper => "password-pepper",
            Kind::AccessKeyPepper => "access-key-pepper",
            Kind::PageToken => "page-token",
            Kind::Signing => "signing",
        }
    }
}

/// What became of the old version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// The vault overwrote the only place where it was, in every replica, or had the HSM destroy its key object.
    Destroyed,
    /// Nothing of the vault is under it any more; it exists outside, and who holds it there destroys it.
    Unused,
}

/// A version of a key. Never the key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Version {
    pub number: u64,
    /// Public name: the id of a root key, the public key of a signing key; hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Where a root key comes from: a kind of provider, no path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
}

/// Everything a record says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotationRecord {
    #[serde(with = "vault_hex")]
    pub vault: VaultId,
    pub operation: ObjectId,
    pub tenant: TenantNo,
    pub tenant_name: String,
    pub kind: Kind,
    /// What of it, where it was not all: classes by name, or a subject by its number in the vault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    pub from: Version,
    pub to: Version,
    #[serde(with = "time")]
    pub begun_at: Timestamp,
    /// The old version is gone since then.
    #[serde(with = "time")]
    pub ended_at: Timestamp,
    /// Things that were moved: roots, nodes, data keys, subjects.
    pub moved: u64,
    /// Things that were still under the old version at its end, and cannot be opened any more.
    pub lost: u64,
    pub fate: Fate,
    /// Generation of the tenant's tree whose root no longer leads to the old version; 0 where no tree is concerned.
    pub generation: Generation,
    pub keeper: Keeper,
    /// When the last key archive with the old version ends; `None`: it was in none.
    #[serde(with = "time_option")]
    pub archives_expire_at: Option<Timestamp>,
    /// For signing keys: the old key's signature over vault and new public key, hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<String>,
    pub audit: AuditPosition,
}

/// A record whose signature was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedRotation {
    pub record: RotationRecord,
    /// Names the public key that verified it.
    pub key_id: String,
}

impl RotationRecord {
    /// Signs; answers the record as it is stored and handed out.
    pub fn sign(&self, key: &Signing) -> Vec<u8> {
        document::write(Domain::Rotation, FORMAT, self, Some(key))
    }

    /// Checks a record with nothing but public keys (all that the vault ever published).
    pub fn verify(json: &[u8], public_keys: &[[u8; 32]]) -> Result<VerifiedRotation, DocumentRefused> {
        let (body, key_id) = document::verify(Domain::Rotation, FORMAT, json, public_keys)?;
        let record = serde_json::from_value(body).map_err(|_| DocumentRefused::Form)?;
        Ok(VerifiedRotation { record, key_id })
    }

    /// For people.
    pub fn render(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, value: &str| out.push_str(&format!("{name:<22}{value}\n"));
        let version = |v: &Version| {
            let mut text = format!("version {}", v.number);
            text.extend(v.id.iter().map(|id| format!(", {id}")));
            text.extend(v.provider.iter().map(|from| format!(", from {from}")));
            text
        };
        line("Rotation record", self.kind.name());
        line("Operation", &self.operation.to_string());
        line("Tenant", &format!("{} (number {})", self.tenant_name, self.tenant));
        if let Some(scope) = &self.scope {
            line("Only", scope);
        }
        line("Old", &version(&self.from));
        line("New", &version(&self.to));
        line("Begun at", &self.begun_at.rfc3339());
        line("Ended at", &self.ended_at.rfc3339());
        line("Moved", &self.moved.to_string());
        if self.lost > 0 {
            line("Lost", &format!("{} were still under the old version and cannot be opened any more", self.lost));
        }
        let fate = match self.fate {
            Fate::Destroyed => "destroyed: overwritten in every replica of the keeper",
            Fate::Unused => "unused: nothing of the vault is under it any more; destroy it where it comes from",
        };
        line("The old version is", fate);
        if let Some(end) = self.archives_expire_at {
            line(
                "Key archives until",
                &format!("{}: who holds one and a recovery key has it until then", end.rfc3339()),
            );
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::receipt::Assurance;

    fn record() -> RotationRecord {
        RotationRecord {
            vault: VaultId([7; 16]),
            operation: ObjectId::random(),
            tenant: TenantNo(2),
            tenant_name: "acme".into(),
            kind: Kind::Data,
            scope: Some("class account".into()),
            from: Version { number: 1, ..Version::default() },
            to: Version { number: 2, ..Version::default() },
            begun_at: Timestamp(1_000),
            ended_at: Timestamp(2_000),
            moved: 5,
            lost: 0,
            fate: Fate::Destroyed,
            generation: Generation(9),
            keeper: Keeper { kind: "file".into(), assurance: Assurance::Logical, retired_replicas: vec![] },
            archives_expire_at: None,
            chain: None,
            audit: AuditPosition { seq: 3, head: [1; 32] },
        }
    }

    #[test]
    fn every_changed_byte_is_refused() {
        let (key, other) = (Signing::generate(), Signing::generate());
        let json = record().sign(&key);
        let made = RotationRecord::verify(&json, &[other.public(), key.public()]).unwrap();
        assert_eq!(made.key_id, key.key_id());
        assert_eq!(RotationRecord::verify(&json, &[other.public()]), Err(DocumentRefused::UnknownKey));
        for i in 0..json.len() {
            for flip in [1, 2, 0x20] {
                let mut bad = json.clone();
                bad[i] ^= flip;
                assert!(RotationRecord::verify(&bad, &[key.public()]).is_err(), "byte {i} ^ {flip}");
            }
        }
    }

    #[test]
    fn people_read_what_became_of_the_old_one() {
        let text = record().render();
        for part in ["data", "acme (number 2)", "class account", "destroyed"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let text = RotationRecord { fate: Fate::Unused, lost: 2, ..record() }.render();
        assert!(text.contains("destroy it where it comes from") && text.contains("2 were still under"), "{text}");
    }
}
