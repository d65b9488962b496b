//! Repeated requests: a write that carries a request id answers the same when it is sent again within 24 hours.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ids::ObjectId;
use crate::storage::{ChangeSet, Mutation, RequestRow};
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::error::VaultError;

/// How long an answer is remembered, in milliseconds.
pub const REMEMBERED_MS: i64 = 24 * 3_600_000;

/// The caller's name for a write.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    pub id: ObjectId,
    /// Keyed digest of method and body, from [`crate::vault::tenant::Tenant::fingerprint`].
    pub fingerprint: [u8; 16],
}

impl Vault {
    /// The answer that this request got before, if it is a repetition.
    ///
    /// # Errors
    /// `RequestIdReused` when the body was another.
    pub(crate) async fn repeated<T: DeserializeOwned>(
        &self,
        call: &Call,
        request: Option<&Request>,
    ) -> Result<Option<T>, VaultError> {
        let Some(request) = request else { return Ok(None) };
        let Some(row) = self.store.request(call.tenant.no, request.id).await? else { return Ok(None) };
        if row.at.plus_ms(REMEMBERED_MS) < call.wall {
            return Ok(None);
        }
        if row.fingerprint != request.fingerprint {
            return Err(VaultError::RequestIdReused);
        }
        serde_json::from_slice(&row.answer).map(Some).map_err(|_| VaultError::RequestIdReused)
    }

    /// Puts the answer beside the change, so that both are durable or neither is. Answers hold no values.
    pub(crate) fn remember<T: Serialize>(
        &self,
        call: &Call,
        request: Option<&Request>,
        answer: &T,
        change: &mut ChangeSet,
    ) {
        if let Some(request) = request {
            change.change(Mutation::PutRequest(RequestRow {
                tenant: call.tenant.no,
                request: request.id,
                fingerprint: request.fingerprint,
                answer: serde_json::to_vec(answer).expect("answers are plain structs with string keys"),
                at: call.wall,
            }));
        }
    }
}
