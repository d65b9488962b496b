//! The signed erasure receipt and its offline verifier: whoever has a receipt and the vault's public keys can check it
//! without the vault, its database or its network.
//!
//! A receipt is canonical JSON (RFC 8785) with an Ed25519 signature over the same JSON without `signature`. Other spellings
//! of the same contents are refused, so a receipt has one form and every changed byte shows. It says *erased by key
//! destruction* and what that does not reach.

pub mod rotation;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::clock::Timestamp;
use crate::crypto::document::{self, DocumentRefused, canonical};
use crate::crypto::merkle;
use crate::crypto::sign::{Domain, Signing};
use crate::ids::{ClassNo, DekVersion, Generation, ObjectId, RecipientNo, SubjectId, SubjectUid, TenantNo, VaultId};

const FORMAT: &str = "pii-vault erasure receipt v1";

/// What a receipt does not claim, in every receipt: the exclusions of the erasure statement.
pub const LIMITS: [&str; 3] = [
    "Not reached: copies of process memory or of the keeper taken before the erasure, while the root key version that \
     wrapped them exists.",
    "Not reached until archives_expire_at: holders of a recovery private key together with a key archive from before the \
     erasure; the operator declares to destroy those archives by then.",
    "Not reached: plaintext given out before, and data keys that were issued in clear (data_keys_issued).",
];

/// What was erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    Subject,
    Classes,
    Fields,
    Items,
    Group,
    Tenant,
}

/// How well the place holds that destroyed the tenant root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Assurance {
    /// Against backups, theft of the database and copies of files; not against chip-off or snapshots of the keeper.
    Logical,
    /// Destroyed inside hardware.
    Physical,
}

/// A class whose keys are gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErasedClass {
    pub class: ClassNo,
    pub name: String,
    /// All versions of the data key up to this one.
    pub through_version: DekVersion,
}

/// A class that a legal hold keeps, restricted to the hold's purpose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldClass {
    pub class: ClassNo,
    pub name: String,
    /// Why: the legal basis of the policy.
    pub basis: String,
    /// `None`: until the hold is released.
    #[serde(with = "time_option")]
    pub until: Option<Timestamp>,
}

/// Who may hold copies that were disclosed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipient {
    pub recipient: RecipientNo,
    pub name: String,
}

/// The one subject of a receipt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Person {
    pub uid: SubjectUid,
    /// [`commitment`] to tenant and id, in hexadecimal.
    #[serde(with = "hex32")]
    pub commitment: [u8; 32],
}

/// The subjects of a group's or batch's receipt, by a Merkle root over their [`Member`] leaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Members {
    pub count: u64,
    #[serde(with = "hex32")]
    pub root: [u8; 32],
}

/// Where the tenant root was destroyed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keeper {
    /// `file` or `pkcs11`.
    pub kind: String,
    pub assurance: Assurance,
    /// Replicas that were declared retired and so could not be overwritten.
    pub retired_replicas: Vec<String>,
}

/// The tenant's change audit when the receipt was signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditPosition {
    pub seq: u64,
    #[serde(with = "hex32")]
    pub head: [u8; 32],
}

/// Everything a receipt says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    #[serde(with = "vault_hex")]
    pub vault: VaultId,
    pub operation: ObjectId,
    pub tenant: TenantNo,
    pub tenant_name: String,
    /// Who is responsible, as the policy names them.
    pub controller: String,
    pub scope: Scope,
    /// Set for a receipt about one subject.
    pub subject: Option<Person>,
    /// Set for a receipt about several.
    pub members: Option<Members>,
    pub erased: Vec<ErasedClass>,
    pub held: Vec<HeldClass>,
    pub recipients: Vec<Recipient>,
    /// Data keys of the erased classes that were given out in clear.
    pub data_keys_issued: u64,
    /// Generation of the key tree whose root no longer knows the keys.
    pub generation: Generation,
    pub keeper: Keeper,
    /// End of step 5 of the swap: the old root is overwritten everywhere.
    #[serde(with = "time")]
    pub erased_at: Timestamp,
    /// When the last key archive that holds the keys ends; `None`: there is none.
    #[serde(with = "time_option")]
    pub archives_expire_at: Option<Timestamp>,
    /// The vault had no recovery key: losing the keeper would lose the living too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub without_recovery: bool,
    /// The latest time from which old index tags are dead; `None`: nothing was searchable.
    #[serde(with = "time_option")]
    pub search_expires_at: Option<Timestamp>,
    pub audit: AuditPosition,
}

/// The signed form.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signed {
    format: String,
    key_id: String,
    limits: Vec<String>,
    receipt: Receipt,
    #[serde(skip_serializing_if = "Option::is_none")]
    signature: Option<String>,
    statement: String,
}

const STATEMENT: &str = "erased by key destruction";

/// Why a receipt does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptRefused {
    #[error("not a receipt in its one canonical form")]
    Form,
    #[error("a receipt of a format that this version does not know")]
    Format,
    #[error("signed by a key that is not among those given")]
    UnknownKey,
    #[error("the signature does not fit the contents")]
    Signature,
}

impl From<DocumentRefused> for ReceiptRefused {
    fn from(refused: DocumentRefused) -> Self {
        match refused {
            DocumentRefused::Form | DocumentRefused::Unsigned => ReceiptRefused::Form,
            DocumentRefused::UnknownKey => ReceiptRefused::UnknownKey,
            DocumentRefused::Signature => ReceiptRefused::Signature,
        }
    }
}

/// A receipt whose signature was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    pub receipt: Receipt,
    /// Names the public key that verified it.
    pub key_id: String,
}

impl Receipt {
    /// Signs; answers the receipt as it is handed out and stored.
    pub fn sign(&self, key: &Signing) -> Vec<u8> {
        let mut signed = Signed {
            format: FORMAT.into(),
            key_id: key.key_id(),
            limits: LIMITS.iter().map(|l| l.to_string()).collect(),
            receipt: self.clone(),
            signature: None,
            statement: STATEMENT.into(),
        };
        signed.signature = Some(document::sign(Domain::Receipt, &signed, key));
        canonical(&signed)
    }

    /// Checks a receipt with nothing but public keys (all that the vault ever published).
    pub fn verify(json: &[u8], public_keys: &[[u8; 32]]) -> Result<Verified, ReceiptRefused> {
        let signed: Signed = serde_json::from_slice(json).map_err(|_| ReceiptRefused::Form)?;
        if signed.format != FORMAT {
            return Err(ReceiptRefused::Format);
        }
        if canonical(&signed) != json {
            return Err(ReceiptRefused::Form);
        }
        let (signature, unsigned) = (signed.signature.clone(), Signed { signature: None, ..signed });
        document::check(Domain::Receipt, &unsigned, &unsigned.key_id, signature.as_deref(), public_keys)?;
        Ok(Verified { receipt: unsigned.receipt, key_id: unsigned.key_id })
    }

    /// Whether the receipt is about this id: needs the salt that was answered to the caller of the erasure.
    pub fn is_about(&self, id: &SubjectId, salt: &[u8; 32]) -> bool {
        self.subject.as_ref().is_some_and(|s| s.commitment == commitment(self.tenant, id, salt))
    }

    /// For people.
    pub fn render(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, value: &str| {
            out.push_str(&format!("{name:<22}{value}\n"));
        };
        line("Erasure receipt", STATEMENT);
        line("Operation", &self.operation.to_string());
        line("Tenant", &format!("{} (number {})", self.tenant_name, self.tenant));
        line("Controller", &self.controller);
        if let Some(s) = &self.subject {
            line("Subject", &format!("number {}, commitment {}", s.uid, HEXLOWER.encode(&s.commitment)));
        }
        if let Some(m) = &self.members {
            line("Subjects", &format!("{}, Merkle root {}", m.count, HEXLOWER.encode(&m.root)));
        }
        for e in &self.erased {
            line("Erased", &format!("{} (class {}), keys up to version {}", e.name, e.class, e.through_version));
        }
        for h in &self.held {
            let until = h.until.map_or("until released".into(), |t| format!("until {}", t.rfc3339()));
            line("Held by law", &format!("{} (class {}): {}, {until}", h.name, h.class, h.basis));
        }
        for r in &self.recipients {
            line("Copies were given to", &format!("{} (recipient {})", r.name, r.recipient));
        }
        let date = |t: Option<Timestamp>, none: &str| t.map_or(none.to_string(), Timestamp::rfc3339);
        line("Erased at", &self.erased_at.rfc3339());
        line("Key archives end", &date(self.archives_expire_at, "none held these keys"));
        if self.without_recovery {
            line("Recovery key", "none: losing the keeper or the root key would lose the living too");
        }
        line("Search tags end", &date(self.search_expires_at, "nothing was searchable"));
        line("Data keys issued", &self.data_keys_issued.to_string());
        let assurance = match self.keeper.assurance {
            Assurance::Logical => "logical",
            Assurance::Physical => "physical",
        };
        line("Keeper", &format!("{}, assurance {assurance}, generation {}", self.keeper.kind, self.generation));
        for replica in &self.keeper.retired_replicas {
            line("Retired replica", replica);
        }
        line("Audit position", &format!("{} {}", self.audit.seq, HEXLOWER.encode(&self.audit.head)));
        for limit in LIMITS {
            line("", limit);
        }
        out
    }
}

/// SHA-256("pii-vault receipt commitment v1" | 0 | tenant u32 | length of the id u32 | id | salt), big endian. Without the
/// salt nobody can try ids against it.
pub fn commitment(tenant: TenantNo, id: &SubjectId, salt: &[u8; 32]) -> [u8; 32] {
    let mut h = Sha256::new();
    h.update(b"pii-vault receipt commitment v1\0");
    h.update(tenant.0.to_be_bytes());
    h.update((id.as_str().len() as u32).to_be_bytes());
    h.update(id.as_str());
    h.update(salt);
    h.finalize().into()
}

/// One subject of a receipt about several: the data of its Merkle leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    pub uid: SubjectUid,
    #[serde(with = "hex32")]
    pub commitment: [u8; 32],
    pub erased: Vec<(ClassNo, DekVersion)>,
    pub held: Vec<ClassNo>,
}

impl Member {
    /// Its leaf: uid i64 | commitment | count u8 | (class u8, version u32)* | count u8 | class u8*, big endian.
    pub fn leaf(&self) -> merkle::Hash {
        let mut data = Vec::with_capacity(64);
        data.extend_from_slice(&self.uid.0.to_be_bytes());
        data.extend_from_slice(&self.commitment);
        data.push(self.erased.len() as u8);
        for (class, version) in &self.erased {
            data.push(class.0);
            data.extend_from_slice(&version.0.to_be_bytes());
        }
        data.push(self.held.len() as u8);
        data.extend(self.held.iter().map(|c| c.0));
        merkle::leaf(&data)
    }
}

/// What a receipt about several says of them: count and root over their leaves, in the order of the operation.
pub fn members(leaves: &[merkle::Hash]) -> Members {
    Members { count: leaves.len() as u64, root: merkle::root(leaves) }
}

/// Shows that one member is under a receipt's root, without the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberProof {
    pub operation: ObjectId,
    pub index: u64,
    pub member: Member,
    /// Hashes in hexadecimal, from the leaf up.
    pub path: Vec<String>,
}

impl MemberProof {
    /// The proof for the member at `index`; `None` if there is none.
    pub fn new(operation: ObjectId, member: Member, leaves: &[merkle::Hash], index: usize) -> Option<Self> {
        let path = merkle::path(leaves, index)?.iter().map(|h| HEXLOWER.encode(h)).collect();
        Some(MemberProof { operation, index: index as u64, member, path })
    }

    /// Canonical JSON.
    pub fn to_json(&self) -> Vec<u8> {
        canonical(self)
    }

    /// Reads and checks a proof against a verified receipt.
    pub fn verify(json: &[u8], receipt: &Verified) -> Result<MemberProof, ReceiptRefused> {
        let proof: MemberProof = serde_json::from_slice(json).map_err(|_| ReceiptRefused::Form)?;
        if canonical(&proof) != json {
            return Err(ReceiptRefused::Form);
        }
        let decode = |h: &String| HEXLOWER.decode(h.as_bytes()).ok().and_then(|b| b.try_into().ok());
        let path: Option<Vec<merkle::Hash>> = proof.path.iter().map(decode).collect();
        let members = receipt.receipt.members.as_ref().ok_or(ReceiptRefused::Signature)?;
        let root =
            merkle::root_of(&proof.member.leaf(), proof.index, members.count, &path.ok_or(ReceiptRefused::Form)?);
        if proof.operation != receipt.receipt.operation || root != Some(members.root) {
            return Err(ReceiptRefused::Signature);
        }
        Ok(proof)
    }
}

mod time {
    use super::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(t: &Timestamp, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&t.rfc3339())
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Timestamp, D::Error> {
        let text = String::deserialize(d)?;
        let t: jiff::Timestamp = text.parse().map_err(|_| D::Error::custom("not a time"))?;
        Ok(Timestamp(t.as_millisecond()))
    }
}

mod time_option {
    use super::Timestamp;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(transparent)]
    struct Text(#[serde(with = "super::time")] Timestamp);

    pub fn serialize<S: Serializer>(t: &Option<Timestamp>, s: S) -> Result<S::Ok, S::Error> {
        t.map(Text).serialize(s)
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Timestamp>, D::Error> {
        Ok(Option::<Text>::deserialize(d)?.map(|t| t.0))
    }
}

mod hex32 {
    use data_encoding::HEXLOWER;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bytes: &[u8; 32], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&HEXLOWER.encode(bytes))
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(d)?;
        let bytes = HEXLOWER.decode(text.as_bytes()).map_err(|_| D::Error::custom("not hexadecimal"))?;
        bytes.try_into().map_err(|_| D::Error::custom("not 32 bytes"))
    }
}

mod vault_hex {
    use super::VaultId;
    use data_encoding::HEXLOWER;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(id: &VaultId, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&HEXLOWER.encode(&id.0))
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<VaultId, D::Error> {
        let text = String::deserialize(d)?;
        let bytes = HEXLOWER.decode(text.as_bytes()).map_err(|_| D::Error::custom("not hexadecimal"))?;
        bytes.try_into().map(VaultId).map_err(|_| D::Error::custom("not 16 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> SubjectId {
        SubjectId::parse("subject", text).unwrap()
    }

    fn receipt() -> Receipt {
        Receipt {
            vault: VaultId([1; 16]),
            operation: ObjectId(uuid::Uuid::from_u128(5)),
            tenant: TenantNo(3),
            tenant_name: "jina-connect".into(),
            controller: "Jína Connect \"Pvt\" Ltd".into(),
            scope: Scope::Subject,
            subject: Some(Person { uid: SubjectUid(42), commitment: commitment(TenantNo(3), &id("usr_1"), &[9; 32]) }),
            members: None,
            erased: vec![ErasedClass { class: ClassNo(1), name: "account".into(), through_version: DekVersion(2) }],
            held: vec![HeldClass {
                class: ClassNo(4),
                name: "billing".into(),
                basis: "tax-law-in".into(),
                until: Some(Timestamp(1_900_000_000_000)),
            }],
            recipients: vec![Recipient { recipient: RecipientNo(2), name: "meta".into() }],
            data_keys_issued: 0,
            generation: Generation(7),
            keeper: Keeper { kind: "file".into(), assurance: Assurance::Logical, retired_replicas: vec![] },
            erased_at: Timestamp(1_800_000_000_123),
            archives_expire_at: None,
            without_recovery: false,
            search_expires_at: Some(Timestamp(1_802_592_000_000)),
            audit: AuditPosition { seq: 99, head: [7; 32] },
        }
    }

    #[test]
    fn verifies_offline_with_any_of_the_public_keys() {
        let (old, new) = (Signing::generate(), Signing::generate());
        let json = receipt().sign(&old);
        let keys = [new.public(), old.public()];
        let verified = Receipt::verify(&json, &keys).unwrap();
        assert_eq!((verified.receipt, verified.key_id), (receipt(), old.key_id()));
        assert_eq!(Receipt::verify(&json, &keys[..1]), Err(ReceiptRefused::UnknownKey));
    }

    #[test]
    fn every_changed_byte_and_every_other_spelling_is_refused() {
        let key = Signing::generate();
        let json = receipt().sign(&key);
        for i in 0..json.len() {
            for flip in [1, 2, 4, 0x20, 0x80] {
                let mut bad = json.clone();
                bad[i] ^= flip;
                assert!(Receipt::verify(&bad, &[key.public()]).is_err(), "byte {i} ^ {flip}");
            }
        }
        let spaced = String::from_utf8(json.clone()).unwrap().replace(":", ": ");
        assert_eq!(Receipt::verify(spaced.as_bytes(), &[key.public()]), Err(ReceiptRefused::Form));
        for cut in 0..json.len() {
            assert!(Receipt::verify(&json[..cut], &[key.public()]).is_err());
        }
        // A signature by the same key for another purpose does not pass.
        let text = String::from_utf8(json).unwrap();
        let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
        value["signature"] = serde_json::Value::Null;
        let mut unsigned = value.clone();
        unsigned.as_object_mut().unwrap().remove("signature");
        let other = key.sign(Domain::Checkpoint, &serde_json_canonicalizer::to_vec(&unsigned).unwrap());
        value["signature"] = HEXLOWER.encode(&other).into();
        let forged = serde_json_canonicalizer::to_vec(&value).unwrap();
        assert_eq!(Receipt::verify(&forged, &[key.public()]), Err(ReceiptRefused::Signature));
    }

    #[test]
    fn only_the_salt_ties_it_to_an_id() {
        let r = receipt();
        assert!(r.is_about(&id("usr_1"), &[9; 32]));
        assert!(!r.is_about(&id("usr_1"), &[8; 32]));
        assert!(!r.is_about(&id("usr_2"), &[9; 32]));
        let json = String::from_utf8(r.sign(&Signing::generate())).unwrap();
        assert!(!json.contains("usr_1") && !json.to_lowercase().contains("anonym"));
        assert_ne!(commitment(TenantNo(1), &id("a"), &[0; 32]), commitment(TenantNo(2), &id("a"), &[0; 32]));
    }

    #[test]
    fn a_member_proves_itself_under_the_root() {
        let key = Signing::generate();
        let all: Vec<Member> = (0..11)
            .map(|n| Member {
                uid: SubjectUid(n),
                commitment: [n as u8; 32],
                erased: vec![(ClassNo(1), DekVersion(1))],
                held: if n % 2 == 0 { vec![ClassNo(4)] } else { vec![] },
            })
            .collect();
        let leaves: Vec<_> = all.iter().map(Member::leaf).collect();
        let group = Receipt { scope: Scope::Group, subject: None, members: Some(members(&leaves)), ..receipt() };
        let verified = Receipt::verify(&group.sign(&key), &[key.public()]).unwrap();
        for (i, member) in all.iter().enumerate() {
            let proof = MemberProof::new(group.operation, member.clone(), &leaves, i).unwrap();
            assert_eq!(MemberProof::verify(&proof.to_json(), &verified).unwrap(), proof);
            let forged = MemberProof { member: Member { held: vec![ClassNo(9)], ..member.clone() }, ..proof.clone() };
            assert_eq!(MemberProof::verify(&forged.to_json(), &verified), Err(ReceiptRefused::Signature));
            let moved = MemberProof { operation: ObjectId::random(), ..proof };
            assert_eq!(MemberProof::verify(&moved.to_json(), &verified), Err(ReceiptRefused::Signature));
        }
    }

    #[test]
    fn people_read_what_was_erased_and_what_not() {
        let text = receipt().render();
        for part in [
            "erased by key destruction",
            "account (class 1)",
            "billing (class 4): tax-law-in",
            "2030-03-17",
            "Not reached",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
