//! Additional authenticated data: what a ciphertext is bound to. Every part is preceded by its length, parts stand in a
//! fixed order, and the first part names the kind, so that no two different contexts give the same bytes.

use crate::ids::{Bucket, ClassNo, DekId, FieldNo, Generation, Ordinal, Revision, SubjectUid, TenantNo, VaultId};

/// What kind of ciphertext it is. Numbers are stored and never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Field = 1,
    Item = 2,
    Node = 3,
    Root = 4,
    SubjectId = 5,
    AuditDetail = 6,
    Object = 7,
    Signing = 8,
    Token = 9,
    Detached = 10,
    Archive = 11,
    PageToken = 12,
    Credential = 13,
}

/// Format of everything sealed by this version.
pub const FORMAT: u8 = 1;
const MAGIC: &[u8; 4] = b"pv-1";
const CAPACITY: usize = 192;

/// Encoded context, without allocation.
#[derive(Clone)]
pub struct Aad {
    bytes: [u8; CAPACITY],
    len: usize,
}

/// Where a single value lies: every axis along which a ciphertext could be moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub vault: VaultId,
    pub tenant: TenantNo,
    pub uid: SubjectUid,
    pub class: ClassNo,
    pub field: FieldNo,
    /// Item number; 0 for a single-valued field.
    pub item: i64,
    pub dek: DekId,
    pub bucket: Bucket,
    pub revision: Revision,
}

impl Aad {
    /// Starts a context: magic, format, kind, vault, tenant.
    pub fn new(kind: Kind, vault: VaultId, tenant: TenantNo) -> Self {
        let mut aad = Aad { bytes: [0; CAPACITY], len: 0 };
        aad.add(MAGIC);
        aad.add(&[FORMAT, kind as u8]);
        aad.add(&vault.0);
        aad.add(&tenant.0.to_be_bytes());
        aad
    }

    /// Appends one part, at most 100 bytes.
    ///
    /// # Panics
    /// When the whole context passes 192 bytes; every caller's parts have a fixed, smaller size.
    pub fn part(mut self, bytes: &[u8]) -> Self {
        self.add(bytes);
        self
    }

    /// [`Aad::part`] in place: a value's context has eleven parts, and handing it on eleven times showed in profiles.
    #[inline]
    fn add(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= 100, "a part of an AAD has a small fixed size");
        let end = self.len + 1 + bytes.len();
        self.bytes[self.len] = bytes.len() as u8;
        self.bytes[self.len + 1..end].copy_from_slice(bytes);
        self.len = end;
    }

    /// A field's value, an item's (by its number), or a credential's (by the field's).
    pub fn value(place: &Place) -> Self {
        let kind = match place.item {
            _ if place.field.is_own() => Kind::Credential,
            0 => Kind::Field,
            _ => Kind::Item,
        };
        let mut aad = Aad::new(kind, place.vault, place.tenant);
        aad.add(&place.uid.0.to_be_bytes());
        aad.add(&[place.class.0]);
        aad.add(&place.field.0.to_be_bytes());
        aad.add(&place.item.to_be_bytes());
        aad.add(&place.dek.0);
        aad.add(&place.bucket.0.to_be_bytes());
        aad.add(&place.revision.0.to_be_bytes());
        aad
    }

    /// A node of a key tree.
    pub fn node(vault: VaultId, tenant: TenantNo, ordinal: Ordinal, generation: Generation) -> Self {
        Aad::new(Kind::Node, vault, tenant).part(&ordinal.0.to_be_bytes()).part(&generation.0.to_be_bytes())
    }

    /// The encoded bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cannot_be_shifted_into_one_another() {
        let base = || Aad::new(Kind::Object, VaultId([1; 16]), TenantNo(1));
        assert_ne!(base().part(b"ab").part(b"c").as_bytes(), base().part(b"a").part(b"bc").as_bytes());
        assert_ne!(base().part(b"").as_bytes(), base().as_bytes());
    }
}
