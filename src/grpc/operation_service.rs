//! Work that goes on after its call was answered.

use std::pin::Pin;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use crate::audit::Action;
use crate::clock::Timestamp;
use crate::grpc::convert::{self, wire_time};
use crate::grpc::identity::{Api, Scope};
use crate::grpc::page::Pages;
use crate::grpc::pb;
use crate::grpc::reason::Reason;
use crate::grpc::status::bad_field;
use crate::grpc::words;
use crate::ids::ObjectId;
use crate::vault::operation::{Operation, OperationKind, OperationStatus};

type Answer<T> = Result<Response<T>, Status>;

/// How often a watched operation is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How many looks until the watcher's credential is checked again.
const CHECK_EVERY: u32 = 100;

/// A list position of operations: when one was asked for, and its name.
pub(crate) fn operation_position(pages: &Pages<'_>, token: &str) -> Result<Option<(Timestamp, ObjectId)>, Status> {
    Ok(pages.position::<24>(token)?.map(|bytes| {
        let (at, id) = bytes.split_first_chunk::<8>().expect("8 of 24 bytes");
        let id: [u8; 16] = id.try_into().expect("16 of 24 bytes");
        (Timestamp(i64::from_be_bytes(*at)), ObjectId(uuid::Uuid::from_bytes(id)))
    }))
}

/// The token of a list that goes on after this operation.
pub(crate) fn operation_token(pages: &Pages<'_>, last: Option<&Operation>) -> String {
    last.map_or(String::new(), |operation| {
        let position = [&operation.created.0.to_be_bytes()[..], operation.id.0.as_bytes()].concat();
        pages.token(&position)
    })
}

fn wire_kind(kind: OperationKind) -> pb::OperationKind {
    match kind {
        OperationKind::EraseSubject
        | OperationKind::EraseClasses
        | OperationKind::EraseFields
        | OperationKind::EraseItems
        | OperationKind::EraseFormer
        | OperationKind::EraseGroup
        | OperationKind::EraseBatch
        | OperationKind::EraseTenant => pb::OperationKind::Erasure,
        OperationKind::RotateIndex => pb::OperationKind::IndexRotation,
        OperationKind::RotateRoot => pb::OperationKind::RootRotation,
        OperationKind::RotatePepper => pb::OperationKind::PepperRotation,
        OperationKind::RotateAccessPepper => pb::OperationKind::AccessKeyPepperRotation,
        OperationKind::RotatePageToken => pb::OperationKind::PageTokenRotation,
        OperationKind::RotateSigning => pb::OperationKind::SigningRotation,
        OperationKind::RotateKek => pb::OperationKind::RootKeyRotation,
        OperationKind::RekeyTree => pb::OperationKind::TreeRekey,
        OperationKind::RotateData => pb::OperationKind::DataRotation,
        OperationKind::Reseal => pb::OperationKind::RetentionChange,
        OperationKind::Backup => pb::OperationKind::Backup,
    }
}

fn wire_state(status: OperationStatus) -> pb::OperationState {
    match status {
        OperationStatus::Scheduled | OperationStatus::Accepted | OperationStatus::PartlyHeld => {
            pb::OperationState::Pending
        }
        OperationStatus::Committed | OperationStatus::Running => pb::OperationState::Running,
        OperationStatus::Paused => pb::OperationState::Paused,
        OperationStatus::Done => pb::OperationState::Succeeded,
        OperationStatus::Cancelled => pb::OperationState::Cancelled,
        OperationStatus::Failed => pb::OperationState::Failed,
    }
}

/// Why an operation failed, or what it waits for.
fn wire_error(operation: &Operation) -> Option<pb::ItemError> {
    let (code, reason) = match operation.status {
        OperationStatus::Failed => {
            let said = operation.error.as_deref().and_then(Reason::of);
            (Code::Internal, said.unwrap_or(Reason::Internal))
        }
        OperationStatus::PartlyHeld => (Code::FailedPrecondition, Reason::ClassHeld),
        _ => return None,
    };
    Some(pb::ItemError { code: code as i32, reason: reason.as_str().into(), ..Default::default() })
}

fn wire(operation: &Operation) -> pb::Operation {
    pb::Operation {
        operation: operation.id.to_string(),
        kind: wire_kind(operation.kind) as i32,
        state: wire_state(operation.status) as i32,
        done_count: operation.done,
        total_count: operation.total,
        create_time: Some(wire_time(operation.created)),
        update_time: Some(wire_time(operation.updated)),
        end_time: operation.status.is_final().then(|| wire_time(operation.updated)),
        error: wire_error(operation),
    }
}

impl Api {
    fn wire_clock(&self) -> pb::Clock {
        let jump = self.vault.clock_jump();
        pb::Clock {
            trusted: jump.is_none(),
            server_time: Some(wire_time(self.vault.now())),
            seen_time: jump.map(|jump| wire_time(jump.seen)),
            expected_time: jump.map(|jump| wire_time(jump.expected)),
        }
    }
}

#[tonic::async_trait]
impl pb::operation_service_server::OperationService for Api {
    async fn get_operation(&self, request: Request<pb::GetOperationRequest>) -> Answer<pb::GetOperationResponse> {
        let call = self.enter(&request, Scope::NamedOrVault(&request.get_ref().tenant)).await?;
        let id = convert::object_id("operation", &request.get_ref().operation)?;
        let operation = self.vault.get_operation(&call, id).await?;
        Ok(Response::new(pb::GetOperationResponse { operation: Some(wire(&operation)) }))
    }

    async fn list_operations(&self, request: Request<pb::ListOperationsRequest>) -> Answer<pb::ListOperationsResponse> {
        let call = self.enter(&request, Scope::NamedOrVault(&request.get_ref().tenant)).await?;
        let mut message = request.into_inner();
        let limit = convert::page_size(std::mem::take(&mut message.page_size))?;
        let token = std::mem::take(&mut message.page_token);
        let pages = Pages::new(&call, "ListOperations", &message);
        let after = operation_position(&pages, &token)?;
        let states: Vec<pb::OperationState> = convert::choices("states", &message.states)?;
        let kinds: Vec<pb::OperationKind> = convert::choices("kinds", &message.kinds)?;
        let page = self.vault.list_operations(&call, after, limit).await?;
        let wanted = |operation: &&Operation| {
            (states.is_empty() || states.contains(&wire_state(operation.status)))
                && (kinds.is_empty() || kinds.contains(&wire_kind(operation.kind)))
        };
        let next_page_token = operation_token(&pages, page.rows.last().filter(|_| page.more));
        let operations = page.rows.iter().filter(wanted).map(wire).collect();
        Ok(Response::new(pb::ListOperationsResponse { operations, next_page_token }))
    }

    async fn cancel_operation(
        &self,
        request: Request<pb::CancelOperationRequest>,
    ) -> Answer<pb::CancelOperationResponse> {
        let call = self.enter(&request, Scope::NamedOrVault(&request.get_ref().tenant)).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "CancelOperation", &repeat_id, &message)?;
        let id = convert::object_id("operation", &message.operation)?;
        let operation = self.vault.cancel_operation(&call, id, repeat).await?;
        Ok(Response::new(pb::CancelOperationResponse { operation: Some(wire(&operation)) }))
    }

    async fn pause_operation(&self, request: Request<pb::PauseOperationRequest>) -> Answer<pb::PauseOperationResponse> {
        let call = self.enter(&request, Scope::NamedOrVault(&request.get_ref().tenant)).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "PauseOperation", &repeat_id, &message)?;
        let id = convert::object_id("operation", &message.operation)?;
        let operation = self.vault.pause_operation(&call, id, true, repeat).await?;
        Ok(Response::new(pb::PauseOperationResponse { operation: Some(wire(&operation)) }))
    }

    async fn resume_operation(
        &self,
        request: Request<pb::ResumeOperationRequest>,
    ) -> Answer<pb::ResumeOperationResponse> {
        let call = self.enter(&request, Scope::NamedOrVault(&request.get_ref().tenant)).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "ResumeOperation", &repeat_id, &message)?;
        let id = convert::object_id("operation", &message.operation)?;
        let operation = self.vault.pause_operation(&call, id, false, repeat).await?;
        Ok(Response::new(pb::ResumeOperationResponse { operation: Some(wire(&operation)) }))
    }

    async fn get_clock(&self, request: Request<pb::GetClockRequest>) -> Answer<pb::GetClockResponse> {
        let call = self.enter(&request, Scope::Vault).await?;
        self.vault.note_listing(&call, Action::GetClock).await?;
        Ok(Response::new(pb::GetClockResponse { clock: Some(self.wire_clock()) }))
    }

    async fn confirm_clock(&self, request: Request<pb::ConfirmClockRequest>) -> Answer<pb::ConfirmClockResponse> {
        let call = self.enter(&request, Scope::Vault).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "ConfirmClock", &repeat_id, &message)?;
        let said = convert::opt_time("time", &message.time)?.ok_or_else(|| bad_field("time", "is required"))?;
        self.vault.confirm_clock(&call, said, repeat).await?;
        Ok(Response::new(pb::ConfirmClockResponse { clock: Some(self.wire_clock()) }))
    }

    type WatchOperationStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<pb::WatchOperationResponse, Status>> + Send>>;

    async fn watch_operation(&self, request: Request<pb::WatchOperationRequest>) -> Answer<Self::WatchOperationStream> {
        let call = self.enter(&request, Scope::NamedOrVault(&request.get_ref().tenant)).await?;
        let credential = self.credential(&request)?;
        let id = convert::object_id("operation", &request.get_ref().operation)?;
        let first = self.vault.get_operation(&call, id).await?;
        let api = self.clone();
        let (to, from) = mpsc::channel(4);
        tokio::spawn(async move {
            let (mut shown, mut looks) = (None, 0u32);
            let mut next = Ok(first);
            loop {
                let (message, over) = match &next {
                    Ok(operation) => {
                        let fresh = shown.as_ref() != Some(operation);
                        let message =
                            fresh.then(|| Ok(pb::WatchOperationResponse { operation: Some(wire(operation)) }));
                        (message, operation.status.is_final())
                    }
                    Err(status) => (Some(Err(Status::clone(status))), true),
                };
                if let Some(message) = message
                    && to.send(message).await.is_err()
                {
                    return;
                }
                if over {
                    return;
                }
                shown = next.ok();
                tokio::select! {
                    _ = to.closed() => return,
                    _ = tokio::time::sleep(LOOK_EVERY) => {}
                }
                looks += 1;
                let look = async {
                    if looks.is_multiple_of(CHECK_EVERY) {
                        api.still_valid(&credential).await?;
                    }
                    Ok::<_, Status>(api.vault.get_operation(&call, id).await?)
                };
                next = look.await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(from))))
    }
}
