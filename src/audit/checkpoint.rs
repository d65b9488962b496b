//! Signed checkpoints: one signature over the heads of all chains, provable to one tenant without the others' heads.
//!
//! Signed is the canonical JSON (RFC 8785) of `{at, count, format, key_id, root, vault}`; `root` is the Merkle root over
//! the heads in order of (tenant, chain), a leaf being tenant u32 | chain u8 | number u64 (little endian) | hash, and, where
//! the head has a tree, its size u64 | its root.

use super::chain::{Chain, Head};
use super::tree::ChainTree;
use crate::clock::Timestamp;
use crate::crypto::document::{self, DocumentRefused, canonical};
use crate::crypto::merkle;
use crate::crypto::sign::{Domain, Signing};
use crate::ids::{TenantNo, VaultId};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

const FORMAT: &str = "pii-vault audit checkpoint v1";
/// JSON numbers are exact below this.
const MAX_SEQ: u64 = 1 << 53;

/// Why a checkpoint does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    #[error("not a checkpoint in canonical form")]
    Form,
    #[error("signed by a key that is not among those given")]
    UnknownKey,
    #[error("the signature does not fit the contents")]
    Signature,
    #[error("the heads are not those that were signed")]
    Heads,
}

/// The head of one chain, by its tenant and kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainHead {
    pub tenant: TenantNo,
    pub chain: Chain,
    pub head: Head,
    /// The tree over its groups; checkpoints of versions before there were trees have none.
    pub tree: Option<ChainTree>,
}

impl ChainHead {
    /// A head without a tree.
    pub fn new(tenant: TenantNo, chain: Chain, head: Head) -> Self {
        ChainHead { tenant, chain, head, tree: None }
    }

    fn leaf(&self) -> merkle::Hash {
        let mut data = Vec::with_capacity(4 + 1 + 8 + 32 + 8 + 32);
        data.extend_from_slice(&self.tenant.0.to_le_bytes());
        data.push(self.chain.number());
        data.extend_from_slice(&self.head.seq.to_le_bytes());
        data.extend_from_slice(&self.head.hash);
        if let Some(tree) = &self.tree {
            data.extend_from_slice(&tree.size.to_le_bytes());
            data.extend_from_slice(&tree.root);
        }
        merkle::leaf(&data)
    }
}

/// The Merkle root over heads in order of (tenant, chain): what a checkpoint signs and the keeper's anchor holds.
pub fn heads_root(heads: &[ChainHead]) -> merkle::Hash {
    merkle::root(&leaves(heads))
}

/// What the signature covers, and the signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signed {
    at: i64,
    count: u64,
    format: String,
    key_id: String,
    root: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    signature: Option<String>,
    vault: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonHead {
    chain: String,
    hash: String,
    seq: u64,
    tenant: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tree: Option<JsonTree>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonTree {
    root: String,
    size: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonCheckpoint {
    heads: Vec<JsonHead>,
    signed: Signed,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonProof {
    head: JsonHead,
    index: u64,
    path: Vec<String>,
    signed: Signed,
}

/// Heads of all chains of a vault at one time, signed. Only [`Checkpoint::sign`] and a successful
/// [`Checkpoint::from_json`] make one, so a value of this type was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    signed: Signed,
    heads: Vec<ChainHead>,
}

impl Checkpoint {
    /// Signs the heads; sorts them by tenant and chain. Each chain may appear once.
    pub fn sign(vault: VaultId, at: Timestamp, mut heads: Vec<ChainHead>, key: &Signing) -> Self {
        heads.sort_by_key(|h| (h.tenant, h.chain));
        heads.dedup_by_key(|h| (h.tenant, h.chain));
        let mut signed = Signed {
            at: at.0,
            count: heads.len() as u64,
            format: FORMAT.into(),
            key_id: key.key_id(),
            root: HEXLOWER.encode(&merkle::root(&leaves(&heads))),
            signature: None,
            vault: HEXLOWER.encode(&vault.0),
        };
        signed.signature = Some(document::sign(Domain::Checkpoint, &signed, key));
        Checkpoint { signed, heads }
    }

    /// Canonical JSON; the only accepted spelling.
    pub fn to_json(&self) -> Vec<u8> {
        let heads = self.heads.iter().map(json_head).collect();
        canonical(&JsonCheckpoint { heads, signed: self.signed.clone() })
    }

    /// Reads and verifies with nothing but the vault's public keys (old ones too).
    pub fn from_json(json: &[u8], public_keys: &[[u8; 32]]) -> Result<Self, CheckpointError> {
        let parsed: JsonCheckpoint = strict(json)?;
        check_signature(&parsed.signed, public_keys)?;
        let heads = parsed.heads.iter().map(read_head).collect::<Result<Vec<_>, _>>()?;
        let sorted = heads.windows(2).all(|w| (w[0].tenant, w[0].chain) < (w[1].tenant, w[1].chain));
        let root = HEXLOWER.encode(&merkle::root(&leaves(&heads)));
        if !sorted || heads.len() as u64 != parsed.signed.count || root != parsed.signed.root {
            return Err(CheckpointError::Heads);
        }
        Ok(Checkpoint { signed: parsed.signed, heads })
    }

    /// When it was signed.
    pub fn at(&self) -> Timestamp {
        Timestamp(self.signed.at)
    }
    /// The Merkle root over all heads, in hexadecimal.
    pub fn root(&self) -> &str {
        &self.signed.root
    }
    /// Which vault, in hexadecimal.
    pub fn vault(&self) -> &str {
        &self.signed.vault
    }
    /// Names the public key that verifies it.
    pub fn key_id(&self) -> &str {
        &self.signed.key_id
    }
    /// All heads, by tenant and chain.
    pub fn heads(&self) -> &[ChainHead] {
        &self.heads
    }
    /// The head of one chain.
    pub fn head(&self, tenant: TenantNo, chain: Chain) -> Option<Head> {
        self.place(tenant, chain).map(|i| self.heads[i].head)
    }

    /// What one tenant may be shown: its own head and the way to the signed root.
    pub fn proof(&self, tenant: TenantNo, chain: Chain) -> Option<HeadProof> {
        let index = self.place(tenant, chain)?;
        let path = merkle::path(&leaves(&self.heads), index)?;
        Some(HeadProof { signed: self.signed.clone(), head: self.heads[index], index: index as u64, path })
    }

    fn place(&self, tenant: TenantNo, chain: Chain) -> Option<usize> {
        self.heads.binary_search_by_key(&(tenant, chain), |h| (h.tenant, h.chain)).ok()
    }
}

/// Proof that a checkpoint holds one head; shows nothing of other tenants but hashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadProof {
    signed: Signed,
    head: ChainHead,
    index: u64,
    path: Vec<merkle::Hash>,
}

impl HeadProof {
    /// Canonical JSON.
    pub fn to_json(&self) -> Vec<u8> {
        canonical(&JsonProof {
            head: json_head(&self.head),
            index: self.index,
            path: self.path.iter().map(|h| HEXLOWER.encode(h)).collect(),
            signed: self.signed.clone(),
        })
    }

    /// Reads and verifies with nothing but the vault's public keys.
    pub fn from_json(json: &[u8], public_keys: &[[u8; 32]]) -> Result<Self, CheckpointError> {
        let parsed: JsonProof = strict(json)?;
        check_signature(&parsed.signed, public_keys)?;
        let head = read_head(&parsed.head)?;
        let path = parsed.path.iter().map(|h| hash(h)).collect::<Result<Vec<_>, _>>()?;
        let root = merkle::root_of(&head.leaf(), parsed.index, parsed.signed.count, &path);
        if root.map(|r| HEXLOWER.encode(&r)).as_ref() != Some(&parsed.signed.root) {
            return Err(CheckpointError::Heads);
        }
        Ok(HeadProof { signed: parsed.signed, head, index: parsed.index, path })
    }

    /// The head that is proven.
    pub fn head(&self) -> ChainHead {
        self.head
    }
    /// When it was signed.
    pub fn at(&self) -> Timestamp {
        Timestamp(self.signed.at)
    }
    /// Which vault, in hexadecimal.
    pub fn vault(&self) -> &str {
        &self.signed.vault
    }
    /// Names the public key that verifies it.
    pub fn key_id(&self) -> &str {
        &self.signed.key_id
    }
}

fn leaves(heads: &[ChainHead]) -> Vec<merkle::Hash> {
    heads.iter().map(ChainHead::leaf).collect()
}

fn check_signature(signed: &Signed, public_keys: &[[u8; 32]]) -> Result<(), CheckpointError> {
    if signed.format != FORMAT {
        return Err(CheckpointError::Form);
    }
    let unsigned = Signed { signature: None, ..signed.clone() };
    Ok(document::check(Domain::Checkpoint, &unsigned, &signed.key_id, signed.signature.as_deref(), public_keys)?)
}

impl From<DocumentRefused> for CheckpointError {
    fn from(refused: DocumentRefused) -> Self {
        match refused {
            DocumentRefused::Form | DocumentRefused::Unsigned => CheckpointError::Form,
            DocumentRefused::UnknownKey => CheckpointError::UnknownKey,
            DocumentRefused::Signature => CheckpointError::Signature,
        }
    }
}

fn json_head(h: &ChainHead) -> JsonHead {
    JsonHead {
        chain: h.chain.name().into(),
        hash: HEXLOWER.encode(&h.head.hash),
        seq: h.head.seq,
        tenant: h.tenant.0,
        tree: h.tree.map(|tree| JsonTree { root: HEXLOWER.encode(&tree.root), size: tree.size }),
    }
}

fn read_head(h: &JsonHead) -> Result<ChainHead, CheckpointError> {
    let chain = match h.chain.as_str() {
        "change" => Chain::Change,
        "read" => Chain::Read,
        _ => return Err(CheckpointError::Form),
    };
    if h.seq >= MAX_SEQ {
        return Err(CheckpointError::Form);
    }
    let tree = match &h.tree {
        Some(tree) if tree.size >= MAX_SEQ => return Err(CheckpointError::Form),
        Some(tree) => Some(ChainTree { size: tree.size, root: hash(&tree.root)? }),
        None => None,
    };
    Ok(ChainHead { tenant: TenantNo(h.tenant), chain, head: Head { seq: h.seq, hash: hash(&h.hash)? }, tree })
}

fn hash(text: &str) -> Result<[u8; 32], CheckpointError> {
    let bytes = HEXLOWER.decode(text.as_bytes()).map_err(|_| CheckpointError::Form)?;
    bytes.try_into().map_err(|_| CheckpointError::Form)
}

/// Parses and refuses every other spelling of the same contents.
fn strict<T: Serialize + for<'d> Deserialize<'d>>(json: &[u8]) -> Result<T, CheckpointError> {
    let value: T = serde_json::from_slice(json).map_err(|_| CheckpointError::Form)?;
    (canonical(&value) == json).then_some(value).ok_or(CheckpointError::Form)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heads(n: u32) -> Vec<ChainHead> {
        (0..n)
            .flat_map(|t| {
                [Chain::Read, Chain::Change].map(|chain| ChainHead {
                    tenant: TenantNo(t),
                    chain,
                    head: Head { seq: u64::from(t) * 10 + u64::from(chain.number()), hash: [t as u8; 32] },
                    tree: t.is_multiple_of(2).then_some(ChainTree { size: 3, root: [t as u8; 32] }),
                })
            })
            .collect()
    }

    #[test]
    fn verifies_with_the_public_key_alone() {
        let (key, other) = (Signing::generate(), Signing::generate());
        let c = Checkpoint::sign(VaultId([1; 16]), Timestamp(5), heads(7), &key);
        let json = c.to_json();
        let read = Checkpoint::from_json(&json, &[other.public(), key.public()]).unwrap();
        assert_eq!(read, c);
        assert_eq!(read.head(TenantNo(3), Chain::Read).unwrap().seq, 32);
        assert_eq!(Checkpoint::from_json(&json, &[other.public()]), Err(CheckpointError::UnknownKey));
    }

    #[test]
    fn one_tenant_proves_its_head_without_the_others() {
        let key = Signing::generate();
        let c = Checkpoint::sign(VaultId([1; 16]), Timestamp(5), heads(7), &key);
        for t in 0..7 {
            let proof = c.proof(TenantNo(t), Chain::Change).unwrap();
            let read = HeadProof::from_json(&proof.to_json(), &[key.public()]).unwrap();
            assert_eq!(read.head().head, c.head(TenantNo(t), Chain::Change).unwrap());
        }
        assert!(c.proof(TenantNo(99), Chain::Read).is_none());
        let mut forged = c.proof(TenantNo(2), Chain::Read).unwrap();
        forged.head.head.seq += 1;
        assert_eq!(HeadProof::from_json(&forged.to_json(), &[key.public()]), Err(CheckpointError::Heads));
        for tree in [None, Some(ChainTree { size: 4, root: [2; 32] }), Some(ChainTree { size: 3, root: [3; 32] })] {
            let mut forged = c.proof(TenantNo(2), Chain::Read).unwrap();
            forged.head.tree = tree;
            assert_eq!(HeadProof::from_json(&forged.to_json(), &[key.public()]), Err(CheckpointError::Heads));
        }
    }

    #[test]
    fn t28_every_changed_byte_of_a_checkpoint_is_refused() {
        let key = Signing::generate();
        let c = Checkpoint::sign(VaultId([1; 16]), Timestamp(5), heads(2), &key);
        let proof = |tenant| c.proof(TenantNo(tenant), Chain::Read).unwrap().to_json();
        for json in [c.to_json(), proof(0), proof(1)] {
            for i in 0..json.len() {
                let mut bad = json.clone();
                bad[i] ^= 1;
                assert!(Checkpoint::from_json(&bad, &[key.public()]).is_err(), "byte {i}");
                assert!(HeadProof::from_json(&bad, &[key.public()]).is_err(), "byte {i}");
            }
        }
    }
}
