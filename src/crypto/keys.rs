//! Keys as types. Each wraps only the next rung: root KEK -> tenant root -> node keys -> ... -> DEKs; a wrong rung does
//! not compile. All are wiped on drop and have no `Debug` that shows them.

use zeroize::Zeroizing;

use crate::crypto::aad::{Aad, FORMAT};
use crate::crypto::aead::{Cipher, OVERHEAD, OpenError};
use crate::crypto::blind_index;
use crate::crypto::kdf::{Label, derive};
use crate::crypto::random;
use crate::crypto::stack::wiped;
use crate::ids::{DekId, FieldNo, SubjectDigest, TermTag};
use crate::secret::Secret;

/// Keys in one node of a tree.
pub const FAN_OUT: usize = 120;
/// Plain bytes of a node: 120 keys of 32 bytes.
pub const NODE_BYTES: usize = FAN_OUT * 32;

macro_rules! key {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        // Boxed: moving it moves a pointer. A key that moves by itself leaves copies behind, in stacks and in the
        // states of async functions, and nobody wipes those.
        pub struct $name(Box<Secret<[u8; 32]>>);
        impl $name {
            /// A fresh random key.
            pub fn generate() -> Self {
                let mut key = Box::new(Secret::new([0u8; 32]));
                wiped(|| random::fill(key.expose_mut()));
                $name(key)
            }
            /// Takes over 32 bytes that were a key of this kind before.
            pub fn from_bytes(bytes: &[u8; 32]) -> Self {
                let mut key = Box::new(Secret::new([0u8; 32]));
                key.expose_mut().copy_from_slice(bytes);
                $name(key)
            }
            /// The bytes, for tests that search files and memory for them.
            #[cfg(test)]
            #[allow(dead_code)] // not every kind of key is searched for
            pub(crate) fn raw(&self) -> [u8; 32] {
                *self.0.expose()
            }
            /// The bytes: for deriving and wrapping on this floor.
            pub(in crate::crypto) fn bytes(&self) -> &[u8; 32] {
                self.0.expose()
            }
        }
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        }
    };
}

key!(/// Key of the whole vault, held by a provider outside the data: wraps tenant roots.
    RootKek);
key!(/// Root of one tenant's tree for one generation; lives only in the keeper, wrapped by the root KEK.
    TenantRoot);
key!(/// Seals one node of a tree, exactly one committed blob.
    NodeKey);
key!(/// Data key of one (subject, class, version); lies in a leaf.
    Dek);
key!(/// Shared key of one (tenant, class, bucket); lies in a leaf; dropped when the bucket is over.
    ExpiryKey);
key!(/// A tenant's own secret in a reserved slot of leaf 0: digest, index, token, pepper.
    TenantSecret);

/// The 120 keys of one node in clear.
pub struct NodeKeys(Secret<Box<[u8]>>);

impl NodeKeys {
    /// 120 fresh random keys: a node is full when it is born.
    pub fn generate() -> Self {
        let mut keys = vec![0u8; NODE_BYTES].into_boxed_slice();
        random::fill(&mut keys[..]);
        NodeKeys(Secret::new(keys))
    }

    fn key(&self, index: usize) -> &[u8; 32] {
        self.0.expose()[index * 32..(index + 1) * 32].try_into().expect("32 bytes at an index below 120")
    }

    /// The child's key at `index` (0 to 119) of an inner node.
    pub fn child(&self, index: usize) -> NodeKey {
        NodeKey::from_bytes(self.key(index))
    }
    /// The data key at `index` of a leaf.
    pub fn dek(&self, index: usize) -> Dek {
        Dek::from_bytes(self.key(index))
    }
    /// The expiry key at `index` of a leaf.
    pub fn expiry(&self, index: usize) -> ExpiryKey {
        ExpiryKey::from_bytes(self.key(index))
    }
    /// The tenant secret at `index` of leaf 0.
    pub fn secret(&self, index: usize) -> TenantSecret {
        TenantSecret::from_bytes(self.key(index))
    }
    /// Puts a fresh random key at `index`: what was there is gone with this blob.
    pub fn refresh(&mut self, index: usize) {
        random::fill(&mut self.0.expose_mut()[index * 32..(index + 1) * 32]);
    }
    /// Puts a child's new key at `index`.
    pub fn set_child(&mut self, index: usize, key: &NodeKey) {
        self.0.expose_mut()[index * 32..(index + 1) * 32].copy_from_slice(key.bytes());
    }
    /// Keeps the key at `index` of another leaf: one that is rebuilt.
    pub fn keep(&mut self, index: usize, from: &NodeKeys) {
        self.0.expose_mut()[index * 32..(index + 1) * 32].copy_from_slice(from.key(index));
    }
    /// All keys as they are sealed to recovery keys.
    pub(in crate::crypto) fn bytes(&self) -> &[u8] {
        self.0.expose()
    }
    /// Takes over `NODE_BYTES` bytes that were a node's keys before.
    pub(in crate::crypto) fn from_secret(bytes: Secret<Box<[u8]>>) -> Self {
        debug_assert_eq!(bytes.expose().len(), NODE_BYTES);
        NodeKeys(bytes)
    }
    /// A copy for changing while others still read the old one.
    pub fn duplicate(&self) -> Self {
        NodeKeys(Secret::new(self.0.expose().clone()))
    }
}

fn seal_node(key: &[u8; 32], aad: &Aad, keys: &NodeKeys) -> Vec<u8> {
    let mut blob = Vec::with_capacity(1 + NODE_BYTES + OVERHEAD);
    blob.push(FORMAT);
    wiped(|| Cipher::new(key).seal_into(aad, &keys.0.expose()[..], &mut blob));
    blob
}

fn open_node(key: &[u8; 32], aad: &Aad, blob: &[u8]) -> Result<NodeKeys, OpenError> {
    let (format, sealed) = blob.split_first().ok_or(OpenError)?;
    if *format != FORMAT || sealed.len() != NODE_BYTES + OVERHEAD {
        return Err(OpenError);
    }
    let plain = wiped(|| Cipher::new(key).open(aad, sealed))?;
    let mut keys = Secret::new(vec![0u8; NODE_BYTES].into_boxed_slice());
    keys.expose_mut().copy_from_slice(&plain);
    Ok(NodeKeys(keys))
}

impl RootKek {
    /// A second handle on the same key: a restore opens what it made.
    pub fn again(&self) -> Self {
        RootKek::from_bytes(self.bytes())
    }
    /// First 16 bytes of HKDF(KEK, "root kek id"): names the version that wrapped a root.
    pub fn id(&self) -> [u8; 16] {
        *derive::<16>(&[self.bytes()], Label::RootKekId, &[])
    }
    /// Wraps a tenant root: nonce 12, key 32, tag 16 = 60 bytes.
    pub fn wrap(&self, aad: &Aad, root: &TenantRoot) -> Vec<u8> {
        wiped(|| Cipher::new(self.bytes()).seal(aad, root.bytes()))
    }
    /// Unwraps a tenant root.
    pub fn unwrap(&self, aad: &Aad, wrapped: &[u8]) -> Result<TenantRoot, OpenError> {
        let plain = wiped(|| Cipher::new(self.bytes()).open(aad, wrapped))?;
        Ok(TenantRoot::from_bytes(plain.as_slice().try_into().map_err(|_| OpenError)?))
    }
    /// A key derived for one purpose beside the tree: the signing key's seal, the anchor's MAC.
    pub fn derived(&self, label: Label) -> Zeroizing<[u8; 32]> {
        derive(&[self.bytes()], label, &[])
    }
}

impl TenantRoot {
    /// Seals the top node: format 1, nonce 12, ciphertext 3,840, tag 16 = 3,869 bytes.
    pub fn seal_node(&self, aad: &Aad, keys: &NodeKeys) -> Vec<u8> {
        seal_node(self.bytes(), aad, keys)
    }
    /// Opens the top node.
    pub fn open_node(&self, aad: &Aad, blob: &[u8]) -> Result<NodeKeys, OpenError> {
        open_node(self.bytes(), aad, blob)
    }
}

impl NodeKey {
    /// Seals the node this key stands for.
    pub fn seal_node(&self, aad: &Aad, keys: &NodeKeys) -> Vec<u8> {
        seal_node(self.bytes(), aad, keys)
    }
    /// Opens the node this key stands for.
    pub fn open_node(&self, aad: &Aad, blob: &[u8]) -> Result<NodeKeys, OpenError> {
        open_node(self.bytes(), aad, blob)
    }
}

impl Dek {
    /// First 16 bytes of HKDF(DEK, "id").
    pub fn id(&self) -> DekId {
        DekId(*derive::<16>(&[self.bytes()], Label::DekId, &[]))
    }
    /// Keys for values without an end.
    pub fn class_keys(&self) -> ClassKeys {
        ClassKeys {
            id: self.id(),
            seal: Cipher::new(&derive(&[self.bytes()], Label::ValueSeal, &[])),
            mac: derive(&[self.bytes()], Label::ManifestMac, &[]),
        }
    }
    /// Keys for values of one expiry bucket: HKDF(DEK || expiry key). The id is the DEK's.
    pub fn expiring_keys(&self, expiry: &ExpiryKey) -> ClassKeys {
        ClassKeys {
            id: self.id(),
            seal: Cipher::new(&derive(&[self.bytes(), expiry.bytes()], Label::ExpiringSeal, &[])),
            mac: derive(&[self.bytes(), expiry.bytes()], Label::ExpiringMac, &[]),
        }
    }
    /// Key for what a caller wrote into an audit entry (reason, reference).
    pub fn audit_detail(&self) -> Cipher {
        Cipher::new(&derive(&[self.bytes()], Label::AuditDetail, &[]))
    }
}

impl ExpiryKey {
    /// Told apart like a data key.
    pub fn id(&self) -> DekId {
        DekId(*derive::<16>(&[self.bytes()], Label::DekId, &[]))
    }
}

/// What a (subject, class) works with in memory: the cipher of its values and the MAC key of its manifests.
pub struct ClassKeys {
    id: DekId,
    seal: Cipher,
    mac: Zeroizing<[u8; 32]>,
}

impl ClassKeys {
    /// The id of the data key they come from.
    pub fn id(&self) -> DekId {
        self.id
    }
    /// Seals and opens values.
    pub fn cipher(&self) -> &Cipher {
        &self.seal
    }
    /// MAC over manifest parts, 16 bytes.
    pub fn manifest(&self, parts: &[&[u8]]) -> [u8; 16] {
        blind_index::tag(&self.mac, parts)
    }
}

impl TenantSecret {
    /// A key for one purpose of this secret.
    pub fn derived(&self, label: Label, context: &[u8]) -> Zeroizing<[u8; 32]> {
        derive(&[self.bytes()], label, context)
    }
    /// Told apart like a data key.
    pub fn id(&self) -> DekId {
        DekId(*derive::<16>(&[self.bytes()], Label::DekId, &[]))
    }
}

/// How a subject's id is found without storing it: a MAC key from the tenant's digest secret.
pub struct DigestKey(Zeroizing<[u8; 32]>);

impl DigestKey {
    /// Derives it from the tenant's digest secret.
    pub fn derive(secret: &TenantSecret) -> Self {
        DigestKey(secret.derived(Label::SubjectDigest, &[]))
    }
    /// HMAC-SHA-256(key, id), first 16 bytes.
    pub fn digest(&self, id: &str) -> SubjectDigest {
        SubjectDigest(blind_index::tag(&self.0, &[id.as_bytes()]))
    }
}

/// Index key of one field: HKDF(index secret, field number).
pub struct IndexKey(Zeroizing<[u8; 32]>);

impl IndexKey {
    /// Derives it from a version of the tenant's index secret.
    pub fn derive(secret: &TenantSecret, field: FieldNo) -> Self {
        IndexKey(secret.derived(Label::IndexField, &field.0.to_be_bytes()))
    }
    /// Tag of a normalised term.
    pub fn tag(&self, normalized: &[u8]) -> TermTag {
        TermTag(blind_index::tag(&self.0, &[normalized]))
    }
}
