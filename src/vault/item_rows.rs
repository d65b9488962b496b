//! Items as rows: their numbers, their places, and the groups that show at listing that one is missing, older or moved.
//!
//! A group has the items of one (subject, field, bucket). Its `sum` is the XOR of HMACs of its items under the class's MAC
//! key, and its `mac` binds sum, count and revision: adding and removing one item costs the same however many there are.
//! The rollback of a whole group together with its row is not seen (a stated exception, like that of a whole subject).

use crate::clock::Timestamp;
use crate::crypto::aad::Place;
use crate::crypto::aead::TAG;
use crate::crypto::keys::ClassKeys;
use crate::crypto::{blind_index, random};
use crate::ids::*;
use crate::keyring::ClassRef;
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::error::VaultError;

impl ItemNo {
    /// A number for an item of that origin: sorts by time, then 20 random bits. Of items of one origin it may be taken,
    /// which the store tells.
    pub fn at(origin: Timestamp) -> Self {
        let random = u32::from_be_bytes(random::bytes()) & 0xf_ffff;
        ItemNo((origin_part(origin) << 20) | i64::from(random))
    }
}

/// What an item's number keeps of its origin: milliseconds, 43 bits.
pub(super) fn origin_part(origin: Timestamp) -> i64 {
    origin.0.clamp(0, (1 << 43) - 1)
}

/// MAC of one item, as it goes into its group's sum.
fn item_mac(keys: &ClassKeys, key: &ItemGroupKey, row: &ItemRow) -> [u8; 16] {
    let tag = &row.envelope[row.envelope.len().saturating_sub(TAG)..];
    let numbers = [row.item.0, row.revision.0 as i64, row.origin.0, row.expire.map_or(i64::MAX, |t| t.0)];
    let numbers = numbers.map(i64::to_be_bytes).concat();
    keys.manifest(&[b"item", &group_bytes(key), &numbers, tag])
}

fn group_bytes(key: &ItemGroupKey) -> [u8; 19] {
    let mut out = [0; 19];
    out[..4].copy_from_slice(&key.tenant.0.to_be_bytes());
    out[4] = key.class.0;
    out[5..9].copy_from_slice(&key.bucket.0.to_be_bytes());
    out[9..17].copy_from_slice(&key.uid.0.to_be_bytes());
    out[17..].copy_from_slice(&key.field.0.to_be_bytes());
    out
}

/// MAC of a group's row.
fn group_mac(keys: &ClassKeys, row: &ItemGroupRow) -> [u8; 16] {
    let (count, revision) = (row.count.to_be_bytes(), row.revision.0.to_be_bytes());
    keys.manifest(&[b"group", &group_bytes(&row.key), &count, &revision, &row.sum])
}

/// A group's row with items put in and taken out.
pub(crate) struct GroupEdit {
    row: ItemGroupRow,
    former: Revision,
}

impl GroupEdit {
    /// Starts from the stored row, which must be as it was written, or from nothing.
    pub(crate) fn open(keys: &ClassKeys, key: ItemGroupKey, stored: Option<&ItemGroupRow>) -> Result<Self, VaultError> {
        match stored {
            Some(row) => {
                if !blind_index::equal(&group_mac(keys, row), &row.mac) {
                    return Err(VaultError::DataLoss);
                }
                Ok(GroupEdit { row: row.clone(), former: row.revision })
            }
            None => {
                let row = ItemGroupRow { key, count: 0, revision: Revision(0), sum: [0; 16], mac: [0; 16] };
                Ok(GroupEdit { row, former: Revision(0) })
            }
        }
    }

    /// Starts from nothing in the place of a stored row: for items that are all sealed anew.
    pub(crate) fn anew(stored: &ItemGroupRow) -> Self {
        let row = ItemGroupRow { key: stored.key, count: 0, revision: Revision(0), sum: [0; 16], mac: [0; 16] };
        GroupEdit { row, former: stored.revision }
    }

    /// Puts an item in or takes it out (XOR is its own inverse).
    pub(crate) fn toggle(&mut self, keys: &ClassKeys, item: &ItemRow, added: bool) {
        let mac = item_mac(keys, &self.row.key, item);
        self.row.sum.iter_mut().zip(mac).for_each(|(s, m)| *s ^= m);
        self.row.count = if added { self.row.count + 1 } else { self.row.count.saturating_sub(1) };
    }

    /// Adds the row's change and its precondition.
    pub(crate) fn finish(mut self, keys: &ClassKeys, change: &mut ChangeSet) {
        let ItemGroupKey { uid, field, bucket, .. } = self.row.key;
        change.require(Precondition::ItemGroupAt { uid, field, bucket, revision: self.former });
        if self.row.count == 0 {
            change.change(Mutation::DeleteItemGroup { uid, field, bucket });
            return;
        }
        self.row.revision = Revision(self.former.0 + 1);
        self.row.mac = group_mac(keys, &self.row);
        change.change(Mutation::PutItemGroup(self.row));
    }
}

/// Where an item's value belongs, for its AAD.
pub(crate) fn item_place(vault: VaultId, dek: DekId, row: &ItemRow) -> Place {
    Place {
        vault,
        tenant: row.group.tenant,
        uid: row.group.uid,
        class: row.group.class,
        field: row.group.field,
        item: row.item.0,
        dek,
        bucket: row.group.bucket,
        revision: row.revision,
    }
}

impl Vault {
    /// An item wherever its bucket is.
    pub(crate) async fn find_item(
        &self,
        uid: SubjectUid,
        field: FieldNo,
        item: ItemNo,
    ) -> Result<Option<ItemRow>, VaultError> {
        for group in self.store.item_groups(uid, Some(field)).await? {
            if let Some(row) = self.store.item(group.key, item).await? {
                return Ok(Some(row));
            }
        }
        Ok(None)
    }

    /// Walks a whole group and compares its sum: a missing, added or older item is seen.
    pub(crate) async fn verify_group(&self, class: ClassRef, group: &ItemGroupRow) -> Result<(), VaultError> {
        let mut sum = [0u8; 16];
        let mut count = 0u32;
        let mut after = ItemNo(-1);
        loop {
            let page = self.store.items(group.key, after, 1000).await?;
            let Some(last) = page.rows.last() else { break };
            after = last.item;
            count += page.rows.len() as u32;
            self.with_keys(class, None, |keys| {
                let mut part = [0u8; 16];
                for row in &page.rows {
                    let mac = item_mac(keys, &group.key, row);
                    part.iter_mut().zip(mac).for_each(|(s, m)| *s ^= m);
                }
                part
            })
            .await?
            .iter()
            .zip(&mut sum)
            .for_each(|(p, s)| *s ^= p);
            if !page.more {
                break;
            }
        }
        let right = self.with_keys(class, None, |keys| blind_index::equal(&group_mac(keys, group), &group.mac)).await?;
        if right && count == group.count && sum == group.sum { Ok(()) } else { Err(VaultError::DataLoss) }
    }
}
