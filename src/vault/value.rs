//! A value on its way into a record: as it came, sealed for its place, and its index tag.

use crate::clock::Timestamp;
use crate::crypto::aad::{Aad, Place};
use crate::crypto::keys::ClassKeys;
use crate::ids::*;
use crate::keyring::ClassRef;
use crate::policy::compiled::Policy;
use crate::policy::period::Expiry;
use crate::policy::value::{Value, normalize};
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::error::VaultError;
use crate::vault::read::plain_bytes;
use crate::vault::record::{self, Entry, Owner, RecordView};

/// A value to be stored, checked against its field's rule when it is used.
pub struct NewValue {
    pub field: FieldNo,
    pub value: Value,
    /// When it arose; the time of the call if not given. Retention counts from here.
    pub origin: Option<Timestamp>,
}

/// A value sealed for its place.
pub(crate) struct SealedValue {
    pub field: FieldNo,
    pub bucket: Bucket,
    pub origin: Timestamp,
    pub expire: Option<Timestamp>,
    pub revision: Revision,
    pub sealed: Vec<u8>,
}

impl SealedValue {
    /// As an entry of a record.
    pub fn entry(&self) -> Entry<'_> {
        let SealedValue { field, bucket, origin, expire, revision, ref sealed } = *self;
        Entry { field, revision, bucket, origin, expire, sealed }
    }
}

impl From<&Entry<'_>> for SealedValue {
    fn from(entry: &Entry<'_>) -> Self {
        let Entry { field, revision, bucket, origin, expire, sealed } = *entry;
        SealedValue { field, bucket, origin, expire, revision, sealed: sealed.to_vec() }
    }
}

impl Vault {
    /// Seals one value under its class's key, or its bucket's.
    #[allow(clippy::too_many_arguments)] // the place of a value has this many axes
    pub(crate) async fn seal_value(
        &self,
        call: &Call,
        class: ClassRef,
        revision: Revision,
        new: &NewValue,
        origin: Timestamp,
        expiry: Option<Expiry>,
        change: &mut ChangeSet,
    ) -> Result<SealedValue, VaultError> {
        let bucket = expiry.map_or(Bucket::NONE, |e| e.bucket);
        let bucket_key = match bucket {
            Bucket::NONE => None,
            bucket => Some(self.expiry_key(call, class.class, bucket, change).await?),
        };
        let place = Place {
            vault: self.keyring.vault(),
            tenant: class.tenant,
            uid: class.uid,
            class: class.class,
            field: new.field,
            item: 0,
            dek: class.key.dek,
            bucket,
            revision,
        };
        let aad = Aad::value(&place);
        let plain = plain_bytes(&new.value);
        let sealed = self.with_keys(class, bucket_key, |keys| keys.cipher().seal(&aad, &plain)).await?;
        Ok(SealedValue { field: new.field, bucket, origin, expire: expiry.map(|e| e.at), revision, sealed })
    }

    /// The index tag of a searchable value; `replace`: there may be a former one.
    pub(crate) fn index_value(
        &self,
        call: &Call,
        policy: &Policy,
        uid: SubjectUid,
        new: &NewValue,
        replace: bool,
        change: &mut ChangeSet,
    ) -> Result<(), VaultError> {
        let tenant = &call.tenant;
        let rule = policy.field(new.field).expect("checked before");
        if !rule.searchable {
            return Ok(());
        }
        if replace {
            change.change(Mutation::DeleteTerms { tenant: tenant.no, uid, field: Some(new.field) });
        }
        let Some(normalized) = normalize(rule, &new.value) else { return Ok(()) };
        if rule.unique {
            change.require(Precondition::TermsFree {
                tenant: tenant.no,
                field: new.field,
                tags: tenant.terms(new.field, &normalized),
                owner: uid,
            });
        }
        let (version, tag) = tenant.term(new.field, &normalized).ok_or(VaultError::DataLoss)?;
        change.change(Mutation::PutTerm(TermRow { tenant: tenant.no, field: new.field, version, tag, uid }));
        Ok(())
    }
}

/// A former record with new values in it, and its earliest bucket. A former record that is not as it was written is
/// never carried on.
pub(crate) fn merge(
    keys: &ClassKeys,
    owner: &Owner,
    former: &[u8],
    revision: Revision,
    new: &[SealedValue],
    today: i64,
) -> Result<(Vec<u8>, Option<Bucket>), VaultError> {
    let mut entries: Vec<Entry<'_>> = Vec::new();
    if !former.is_empty() {
        let view = RecordView::parse(former).map_err(|_| VaultError::DataLoss)?;
        // What is over stays for the sweep: a hold may keep it, and its index tags must go with it.
        view.walk(keys, owner, today, |entry| {
            if !new.iter().any(|n| n.field == entry.field) {
                entries.push(entry);
            }
        })
        .map_err(|_| VaultError::DataLoss)?;
    }
    entries.extend(new.iter().map(SealedValue::entry));
    let next = entries.iter().map(|e| e.bucket).filter(|b| *b != Bucket::NONE).min();
    Ok((record::encode(keys, owner, revision, &mut entries), next))
}
