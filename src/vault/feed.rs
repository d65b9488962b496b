//! The feed of what ended: erased, restricted, expired. Systems that hold copies follow it and delete theirs.
//!
//! An event names the subject by a reference that was handed out beside its data (`recipient_ref`), so that a follower
//! can delete without the vault keeping anybody's id. Events are kept for a year.

use serde::{Deserialize, Serialize};

use crate::access::Verb;
use crate::clock::Timestamp;
use crate::ids::*;
use crate::storage::{ChangeSet, Mutation, Page};
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::error::VaultError;
use crate::vault::to_json;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    Erased,
    Restricted,
    Expired,
    ConsentWithdrawn,
    Objected,
    Restored,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeedEvent {
    pub kind: EventKind,
    /// Reference of the recipient to the subject; empty when the event concerns no single subject.
    #[serde(with = "crate::vault::hex", default)]
    pub recipient_ref: Vec<u8>,
    /// Whose reference it is; 0: the tenant's own systems.
    pub recipient: RecipientNo,
    pub classes: Vec<ClassNo>,
    pub at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erasure: Option<ObjectId>,
    /// Of `Expired`: every value of these classes that expires at or before this time is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub through: Option<Timestamp>,
}

/// An event and its place in the feed.
#[derive(Debug, Clone)]
pub struct FeedEntry {
    pub seq: u64,
    pub event: FeedEvent,
}

impl FeedEvent {
    /// An event about one subject, for the tenant's own systems.
    pub(crate) fn about(
        call: &Call,
        kind: EventKind,
        uid: SubjectUid,
        classes: Vec<ClassNo>,
        erasure: ObjectId,
    ) -> FeedEvent {
        FeedEvent {
            kind,
            recipient_ref: recipient_ref(call, RecipientNo(0), uid).to_vec(),
            recipient: RecipientNo(0),
            classes,
            at: call.now,
            erasure: Some(erasure),
            through: None,
        }
    }

    /// An event about one subject that is no erasure, for the tenant's own systems.
    pub(crate) fn of_person(call: &Call, kind: EventKind, uid: SubjectUid, classes: Vec<ClassNo>) -> FeedEvent {
        FeedEvent { erasure: None, ..FeedEvent::about(call, kind, uid, classes, ObjectId(uuid::Uuid::nil())) }
    }

    pub(crate) fn put(&self, call: &Call, change: &mut ChangeSet) {
        change.change(Mutation::PutFeed { tenant: call.tenant.no, at: call.now, body: to_json(self) });
    }
}

/// How a recipient names a subject; stable, and useless without the vault.
pub fn recipient_ref(call: &Call, recipient: RecipientNo, uid: SubjectUid) -> [u8; 16] {
    call.tenant.token_mac(&[b"recipient", &recipient.0.to_be_bytes(), &uid.0.to_be_bytes()])
}

impl Vault {
    /// Events after a number, in the order of the commits. `recipients` and `kinds` empty: all. The answer's last number
    /// is where to go on, also when nothing fitted.
    pub async fn feed(
        &self,
        call: &Call,
        after: u64,
        recipients: &[RecipientNo],
        kinds: &[EventKind],
        limit: u32,
    ) -> Result<(Page<FeedEntry>, u64), VaultError> {
        call.permit(Verb::Erase)?;
        let page = self.store.feed(call.tenant.no, after, limit).await?;
        let mut rows = Vec::with_capacity(page.rows.len());
        let mut last = after;
        for row in &page.rows {
            last = row.seq;
            let event: FeedEvent = serde_json::from_slice(&row.body).map_err(|_| VaultError::DataLoss)?;
            let about_nobody = event.recipient_ref.is_empty();
            if (recipients.is_empty() || about_nobody || recipients.contains(&event.recipient))
                && (kinds.is_empty() || kinds.contains(&event.kind))
            {
                rows.push(FeedEntry { seq: row.seq, event });
            }
        }
        Ok((Page { rows, more: page.more }, last))
    }
}
