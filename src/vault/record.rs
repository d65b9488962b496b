//! The record of a (subject, class): all its single-valued fields as one blob, so that they are read as a unit.
//!
//! ```text
//! record  = format 1 B | revision u64 | sections u16 | { bucket u32 | digest 16 B }* | mac 16 B | section*
//! section = bucket u32 | entries u16 | entry*
//! entry   = field u16 | revision u64 | origin i64 | expire i64 | length u32 | sealed value
//! ```
//!
//! Numbers are big endian. `digest` is SHA-256 (first 16 bytes) over the section's fields, revisions, times and the
//! values' GCM tags; `mac` is HMAC-SHA-256 (first 16 bytes) under a key of the class's DEK over place, revision and the
//! list. So a missing, older or moved value is seen at read. A section whose bucket is over may be missing: the sweep
//! removes it without any key.

use sha2::{Digest, Sha256};

use crate::clock::Timestamp;
use crate::crypto::aead::TAG;
use crate::crypto::keys::ClassKeys;
use crate::ids::{Bucket, ClassNo, FieldNo, Revision, SubjectUid, TenantNo, VaultId};

const FORMAT: u8 = 1;
const HEAD: usize = 1 + 8 + 2;
const LISTED: usize = 4 + 16;
const ENTRY: usize = 2 + 8 + 8 + 8 + 4;
/// Stands for "no end" in an entry.
const NEVER: i64 = i64::MAX;

/// The blob is not a record, or is not the one that was written here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a stored record is damaged or was changed")]
pub struct RecordError;

/// One value as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    pub field: FieldNo,
    /// Revision of the record in which the value was written; part of its AAD.
    pub revision: Revision,
    pub bucket: Bucket,
    pub origin: Timestamp,
    pub expire: Option<Timestamp>,
    pub sealed: &'a [u8],
}

/// Whose record it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub vault: VaultId,
    pub tenant: TenantNo,
    pub uid: SubjectUid,
    pub class: ClassNo,
}

impl Owner {
    fn bytes(&self) -> [u8; 29] {
        let mut out = [0; 29];
        out[..16].copy_from_slice(&self.vault.0);
        out[16..20].copy_from_slice(&self.tenant.0.to_be_bytes());
        out[20..28].copy_from_slice(&self.uid.0.to_be_bytes());
        out[28] = self.class.0;
        out
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], RecordError> {
    let (head, rest) = bytes.split_first_chunk::<N>().ok_or(RecordError)?;
    *bytes = rest;
    Ok(*head)
}

fn digest_entry(hash: &mut Sha256, entry: &Entry<'_>) -> Result<(), RecordError> {
    let tag = entry.sealed.len().checked_sub(TAG).ok_or(RecordError)?;
    hash.update(entry.field.0.to_be_bytes());
    hash.update(entry.revision.0.to_be_bytes());
    hash.update(entry.origin.0.to_be_bytes());
    hash.update(entry.expire.map_or(NEVER, |t| t.0).to_be_bytes());
    hash.update(&entry.sealed[tag..]);
    Ok(())
}

fn section_digest(hash: Sha256) -> [u8; 16] {
    hash.finalize()[..16].try_into().expect("32 bytes hold 16")
}

/// A record as read: borrowed, nothing copied.
pub struct RecordView<'a> {
    revision: Revision,
    list: &'a [u8],
    mac: [u8; 16],
    sections: &'a [u8],
}

impl<'a> RecordView<'a> {
    /// Splits the blob; the entries are looked at when they are walked.
    pub fn parse(mut blob: &'a [u8]) -> Result<Self, RecordError> {
        let [format] = take::<1>(&mut blob)?;
        if format != FORMAT {
            return Err(RecordError);
        }
        let revision = Revision(u64::from_be_bytes(take(&mut blob)?));
        let listed = usize::from(u16::from_be_bytes(take(&mut blob)?));
        let (list, mut rest) = blob.split_at_checked(listed * LISTED).ok_or(RecordError)?;
        let mac = take(&mut rest)?;
        Ok(RecordView { revision, list, mac, sections: rest })
    }

    /// Revision of the whole record.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Checks that nothing is missing, older or moved, and gives every entry to `each`. A section listed but absent is
    /// accepted only if its bucket was over before day `today` (days since 1970-01-01 UTC).
    ///
    /// # Errors
    /// `RecordError` before any entry of a wrong section was given.
    pub fn walk(
        &self,
        keys: &ClassKeys,
        owner: &Owner,
        today: i64,
        mut each: impl FnMut(Entry<'a>),
    ) -> Result<(), RecordError> {
        let mac = keys.manifest(&[&owner.bytes(), &self.revision.0.to_be_bytes(), self.list]);
        if !crate::crypto::blind_index::equal(&mac, &self.mac) {
            return Err(RecordError);
        }
        let mut rest = self.sections;
        for listed in self.list.chunks_exact(LISTED) {
            let bucket = Bucket(u32::from_be_bytes(listed[..4].try_into().expect("4 of 20 bytes")));
            if rest.get(..4) != Some(&listed[..4]) {
                if bucket != Bucket::NONE && i64::from(bucket.0) < today {
                    continue;
                }
                return Err(RecordError);
            }
            let section = rest;
            let mut hash = Sha256::new();
            let after = walk_section(rest, |entry| digest_entry(&mut hash, &entry))?;
            if section_digest(hash) != listed[4..] {
                return Err(RecordError);
            }
            walk_section(section, |entry| {
                each(entry);
                Ok(())
            })?;
            rest = after;
        }
        if rest.is_empty() { Ok(()) } else { Err(RecordError) }
    }
}

fn walk_section<'a>(
    mut bytes: &'a [u8],
    mut each: impl FnMut(Entry<'a>) -> Result<(), RecordError>,
) -> Result<&'a [u8], RecordError> {
    let bucket = Bucket(u32::from_be_bytes(take(&mut bytes)?));
    let entries = u16::from_be_bytes(take(&mut bytes)?);
    for _ in 0..entries {
        let field = FieldNo(u16::from_be_bytes(take(&mut bytes)?));
        let revision = Revision(u64::from_be_bytes(take(&mut bytes)?));
        let origin = Timestamp(i64::from_be_bytes(take(&mut bytes)?));
        let expire = i64::from_be_bytes(take(&mut bytes)?);
        let length = u32::from_be_bytes(take(&mut bytes)?) as usize;
        let (sealed, rest) = bytes.split_at_checked(length).ok_or(RecordError)?;
        bytes = rest;
        let expire = (expire != NEVER).then_some(Timestamp(expire));
        each(Entry { field, revision, bucket, origin, expire, sealed })?;
    }
    Ok(bytes)
}

/// Encodes a record; `entries` in any order, one per field.
pub fn encode(keys: &ClassKeys, owner: &Owner, revision: Revision, entries: &mut [Entry<'_>]) -> Vec<u8> {
    entries.sort_by_key(|e| (e.bucket, e.field));
    let sections = entries.chunk_by(|a, b| a.bucket == b.bucket);
    let count = sections.clone().count();
    let size: usize = entries.iter().map(|e| ENTRY + e.sealed.len()).sum();
    let mut out = Vec::with_capacity(HEAD + count * (LISTED + 6) + 16 + size);
    out.push(FORMAT);
    out.extend_from_slice(&revision.0.to_be_bytes());
    out.extend_from_slice(&(count as u16).to_be_bytes());
    for section in sections.clone() {
        let mut hash = Sha256::new();
        for entry in section {
            digest_entry(&mut hash, entry).expect("values sealed here carry a tag");
        }
        out.extend_from_slice(&section[0].bucket.0.to_be_bytes());
        out.extend_from_slice(&section_digest(hash));
    }
    let mac = keys.manifest(&[&owner.bytes(), &revision.0.to_be_bytes(), &out[HEAD..]]);
    out.extend_from_slice(&mac);
    for section in sections {
        out.extend_from_slice(&section[0].bucket.0.to_be_bytes());
        out.extend_from_slice(&(section.len() as u16).to_be_bytes());
        for entry in section {
            out.extend_from_slice(&entry.field.0.to_be_bytes());
            out.extend_from_slice(&entry.revision.0.to_be_bytes());
            out.extend_from_slice(&entry.origin.0.to_be_bytes());
            out.extend_from_slice(&entry.expire.map_or(NEVER, |t| t.0).to_be_bytes());
            out.extend_from_slice(&(entry.sealed.len() as u32).to_be_bytes());
            out.extend_from_slice(entry.sealed);
        }
    }
    out
}

/// The record without the sections whose bucket is before `today`, and the earliest bucket left; no key is needed.
///
/// # Errors
/// `RecordError` when the blob is no record.
pub fn sweep(blob: &[u8], today: i64) -> Result<(Vec<u8>, Option<Bucket>), RecordError> {
    let view = RecordView::parse(blob)?;
    let mut out = blob[..blob.len() - view.sections.len()].to_vec();
    let mut next = None;
    let mut rest = view.sections;
    while !rest.is_empty() {
        let bucket = Bucket(u32::from_be_bytes(rest.get(..4).ok_or(RecordError)?.try_into().expect("4 bytes")));
        let after = walk_section(rest, |_| Ok(()))?;
        if bucket == Bucket::NONE || i64::from(bucket.0) >= today {
            out.extend_from_slice(&rest[..rest.len() - after.len()]);
            if bucket != Bucket::NONE {
                next = Some(next.map_or(bucket, |n: Bucket| n.min(bucket)));
            }
        }
        rest = after;
    }
    Ok((out, next))
}

/// What can be said of a stored value without any key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outline {
    pub field: FieldNo,
    pub bucket: Bucket,
    pub origin: Timestamp,
    pub expire: Option<Timestamp>,
}

/// What is known of all entries; no key is needed, and nothing is verified.
///
/// # Errors
/// `RecordError` when the blob is no record. An empty blob has none.
pub fn outline(blob: &[u8]) -> Result<Vec<Outline>, RecordError> {
    let mut found = Vec::new();
    if blob.is_empty() {
        return Ok(found);
    }
    let mut rest = RecordView::parse(blob)?.sections;
    while !rest.is_empty() {
        rest = walk_section(rest, |Entry { field, bucket, origin, expire, .. }| {
            found.push(Outline { field, bucket, origin, expire });
            Ok(())
        })?;
    }
    Ok(found)
}

/// Origin times of all entries; no key is needed.
///
/// # Errors
/// `RecordError` when the blob is no record. An empty blob has none.
pub fn origins(blob: &[u8]) -> Result<Vec<Timestamp>, RecordError> {
    let mut found = Vec::new();
    if blob.is_empty() {
        return Ok(found);
    }
    let mut rest = RecordView::parse(blob)?.sections;
    while !rest.is_empty() {
        rest = walk_section(rest, |entry| {
            found.push(entry.origin);
            Ok(())
        })?;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::keys::Dek;
    use proptest::prelude::*;

    const OWNER: Owner = Owner { vault: VaultId([1; 16]), tenant: TenantNo(2), uid: SubjectUid(3), class: ClassNo(4) };

    fn entry(field: u16, bucket: u32, sealed: &[u8]) -> Entry<'_> {
        let expire = (bucket != 0).then_some(Timestamp(i64::from(bucket) * 86_400_000));
        Entry {
            field: FieldNo(field),
            revision: Revision(7),
            bucket: Bucket(bucket),
            origin: Timestamp(5),
            expire,
            sealed,
        }
    }

    fn fields(blob: &[u8], keys: &ClassKeys, owner: &Owner, today: i64) -> Result<Vec<u16>, RecordError> {
        let mut seen = Vec::new();
        RecordView::parse(blob)?.walk(keys, owner, today, |e| seen.push(e.field.0))?;
        Ok(seen)
    }

    #[test]
    fn a_swept_section_is_accepted_only_when_its_day_is_over() {
        let keys = Dek::generate().class_keys();
        let (a, b, c) = ([1; 40], [2; 41], [3; 42]);
        let blob = encode(&keys, &OWNER, Revision(7), &mut [entry(9, 20, &a), entry(1, 0, &b), entry(2, 10, &c)]);
        assert_eq!(fields(&blob, &keys, &OWNER, 5).unwrap(), [1, 2, 9]);
        let (swept, next) = sweep(&blob, 11).unwrap();
        assert_eq!(next, Some(Bucket(20)));
        assert_eq!(fields(&swept, &keys, &OWNER, 11).unwrap(), [1, 9]);
        assert_eq!(fields(&swept, &keys, &OWNER, 10), Err(RecordError));
        let (gone, next) = sweep(&swept, 21).unwrap();
        assert_eq!((fields(&gone, &keys, &OWNER, 21).unwrap(), next), (vec![1], None));
    }

    #[test]
    fn another_owner_or_key_or_any_flipped_bit_is_refused() {
        let keys = Dek::generate().class_keys();
        let value = [1; 40];
        let blob = encode(&keys, &OWNER, Revision(7), &mut [entry(1, 0, &value), entry(2, 0, &value)]);
        let other = Owner { uid: SubjectUid(4), ..OWNER };
        assert!(fields(&blob, &keys, &other, 0).is_err());
        assert!(fields(&blob, &Dek::generate().class_keys(), &OWNER, 0).is_err());
        let sealed = HEAD + LISTED + 16 + 6 + ENTRY;
        for i in 0..blob.len() {
            let mut bad = blob.clone();
            bad[i] ^= 1;
            // A flipped bit in a ciphertext is the AEAD's to notice; everything else is seen here.
            let in_value = (sealed..sealed + 24).contains(&i) || (blob.len() - 40..blob.len() - 16).contains(&i);
            assert!(in_value || fields(&bad, &keys, &OWNER, 0).is_err(), "byte {i}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_record_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let keys = Dek::from_bytes(&[0; 32]).class_keys();
            let _ = fields(&bytes, &keys, &OWNER, 0);
            let _ = sweep(&bytes, 0);
        }
    }
}
