//! Erasures, their receipts, the feed of what ended, and legal holds.

use std::pin::Pin;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::access::Verb;
use crate::audit::Action;
use crate::crypto::sign::key_id;
use crate::grpc::convert::{self, item_error, wire_time};
use crate::grpc::erasure_words::{hold_state, wire_held, wire_kind, wire_status};
use crate::grpc::identity::{Api, Scope};
use crate::grpc::operation_service::{operation_position, operation_token};
use crate::grpc::page::Pages;
use crate::grpc::pb;
use crate::grpc::status::bad_field;
use crate::grpc::vault_status::limit_exceeded;
use crate::grpc::words::{self, MAX_BATCH, MAX_VALUES};
use crate::ids::{ClassNo, ObjectId, RecipientNo};
use crate::vault::feed::{EventKind, FeedEntry};
use crate::vault::find::Key;
use crate::vault::hold::{HoldTarget, NewHold};
use crate::vault::operation::Operation;
use crate::vault::signers::SignerView;
use crate::vault::{Call, VaultError};

type Answer<T> = Result<Response<T>, Status>;

/// How often a follower of the feed looks for new events.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How many looks until its credential is checked again.
const CHECK_EVERY: u32 = 20;
/// Events read at a time.
const EVENTS: u32 = 200;

fn wire_event(kind: EventKind) -> pb::EventKind {
    match kind {
        EventKind::Erased => pb::EventKind::Erased,
        EventKind::Restricted => pb::EventKind::Restricted,
        EventKind::Expired => pb::EventKind::Expired,
        EventKind::ConsentWithdrawn => pb::EventKind::ConsentWithdrawn,
        EventKind::Objected => pb::EventKind::Objected,
        EventKind::Restored => pb::EventKind::Restored,
    }
}

const EVENT_KINDS: [EventKind; 6] = [
    EventKind::Erased,
    EventKind::Restricted,
    EventKind::Expired,
    EventKind::ConsentWithdrawn,
    EventKind::Objected,
    EventKind::Restored,
];

fn wire_entry(entry: FeedEntry) -> pb::WatchErasuresResponse {
    let event = entry.event;
    pb::WatchErasuresResponse {
        cursor: format!("{:x}", entry.seq),
        kind: wire_event(event.kind) as i32,
        recipient_ref: event.recipient_ref.into(),
        class_ids: event.classes.iter().map(|class| class.0.into()).collect(),
        event_time: Some(wire_time(event.at)),
        recipient_id: event.recipient.0.into(),
        erasure: event.erasure.map_or(String::new(), |id| id.to_string()),
        expire_time: event.through.map(wire_time),
    }
}

/// Whom a request is about: a subject or a group.
enum Target {
    Subject(Key),
    Group(crate::ids::SubjectId),
}

fn target(key: Option<pb::SubjectKey>, group: Option<String>) -> Result<Target, Status> {
    match (key, group) {
        (Some(key), None) => Ok(Target::Subject(words::key(Some(key))?)),
        (None, Some(group)) => Ok(Target::Group(convert::subject_id("group", &group)?)),
        _ => Err(bad_field("target", "is required")),
    }
}

impl Api {
    /// Erases a subject or some of its classes; with `only_check` says what would be done.
    #[allow(clippy::too_many_arguments)] // the parts of two requests that differ in name
    async fn erase_one(
        &self,
        call: &Call,
        context: Option<pb::AccessContext>,
        key: Option<pb::SubjectKey>,
        classes: &[ClassNo],
        repeat: Option<crate::vault::request::Request>,
        wait_final: bool,
        only_check: bool,
    ) -> Result<pb::Erasure, Status> {
        let (key, context) = (words::key(key)?, words::context(context)?);
        if only_check {
            let preview = self.vault.preview_erasure(call, &context, &key, classes).await?;
            return Ok(self.wire_preview(call, &preview));
        }
        let erasure = self.vault.erase_subject(call, &context, &key, classes, repeat, wait_final).await?;
        Ok(self.wire_erasure(call, erasure))
    }
}

#[tonic::async_trait]
impl pb::erasure_service_server::ErasureService for Api {
    async fn erase_subject(&self, request: Request<pb::EraseSubjectRequest>) -> Answer<pb::EraseSubjectResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "EraseSubject", &repeat_id, &message)?;
        let classes = convert::class_nos("class_ids", &message.class_ids)?;
        let (wait, only_check) = (message.wait_final, message.validate_only);
        let erasure = self.erase_one(&call, message.context, message.key, &classes, repeat, wait, only_check).await?;
        Ok(Response::new(pb::EraseSubjectResponse { erasure: Some(erasure) }))
    }

    async fn batch_erase_subjects(
        &self,
        request: Request<pb::BatchEraseSubjectsRequest>,
    ) -> Answer<pb::BatchEraseSubjectsResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "BatchEraseSubjects", &repeat_id, &message)?;
        let keys = words::keys(message.keys)?;
        let classes = convert::class_nos("class_ids", &message.class_ids)?;
        let context = words::context(message.context)?;
        let wire = |result: Result<pb::Erasure, VaultError>| pb::EraseOutcome {
            outcome: Some(match result {
                Ok(erasure) => pb::erase_outcome::Outcome::Erasure(erasure),
                Err(error) => pb::erase_outcome::Outcome::Error(item_error(&error.into())),
            }),
        };
        let mut outcomes = Vec::with_capacity(keys.len());
        if message.validate_only {
            for key in &keys {
                let preview = self.vault.preview_erasure(&call, &context, key, &classes).await;
                outcomes.push(wire(preview.map(|preview| self.wire_preview(&call, &preview))));
            }
        } else {
            let repeats: Vec<_> =
                (0..keys.len()).map(|i| repeat.map(|batch| words::part_of(&call, batch, i))).collect();
            let wait = message.wait_final;
            let done = self.vault.erase_batch(&call, &context, &keys, &classes, &repeats, wait).await?;
            outcomes.extend(done.into_iter().map(|one| wire(one.map(|erasure| self.wire_erasure(&call, erasure)))));
        }
        Ok(Response::new(pb::BatchEraseSubjectsResponse { outcomes }))
    }

    async fn erase_group(&self, request: Request<pb::EraseGroupRequest>) -> Answer<pb::EraseGroupResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "EraseGroup", &repeat_id, &message)?;
        let context = words::context(message.context)?;
        let group = convert::subject_id("group", &message.group)?;
        let erasure = match message.validate_only {
            true => {
                let preview = self.vault.preview_group(&call, &group, &[]).await?;
                self.wire_preview(&call, &preview)
            }
            false => {
                let done = self.vault.erase_group(&call, &context, &group, repeat, message.wait_final).await?;
                self.wire_erasure(&call, done)
            }
        };
        Ok(Response::new(pb::EraseGroupResponse { erasure: Some(erasure) }))
    }

    async fn erase_class(&self, request: Request<pb::EraseClassRequest>) -> Answer<pb::EraseClassResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "EraseClass", &repeat_id, &message)?;
        let classes = [convert::class_no("class_id", message.class_id)?];
        let (wait, only_check) = (message.wait_final, message.validate_only);
        let erasure = self.erase_one(&call, message.context, message.key, &classes, repeat, wait, only_check).await?;
        Ok(Response::new(pb::EraseClassResponse { erasure: Some(erasure) }))
    }

    async fn erase_fields(&self, request: Request<pb::EraseFieldsRequest>) -> Answer<pb::EraseFieldsResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "EraseFields", &repeat_id, &message)?;
        let fields = words::named_fields(call.tenant.policy()?, message.select)?;
        let (key, context) = (words::key(message.key)?, words::context(message.context)?);
        let etag = Some(message.etag.as_str()).filter(|etag| !etag.is_empty());
        let (wait, only) = (message.wait_final, message.validate_only);
        let erasure = self.vault.erase_fields(&call, &context, &key, &fields, etag, repeat, wait, only).await?;
        Ok(Response::new(pb::EraseFieldsResponse { erasure: Some(self.wire_part(&call, erasure, only)) }))
    }

    async fn erase_items(&self, request: Request<pb::EraseItemsRequest>) -> Answer<pb::EraseItemsResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        words::count("items", message.items.len(), MAX_BATCH)?;
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "EraseItems", &repeat_id, &message)?;
        let field = words::field(call.tenant.policy()?, message.field_id, &message.field)?;
        let mut items = Vec::with_capacity(message.items.len());
        for name in &message.items {
            items.push(words::item_no("items", name)?);
        }
        let (key, context) = (words::key(message.key)?, words::context(message.context)?);
        let (wait, only) = (message.wait_final, message.validate_only);
        let erasure = self.vault.erase_items(&call, &context, &key, field, &items, repeat, wait, only).await?;
        Ok(Response::new(pb::EraseItemsResponse { erasure: Some(self.wire_part(&call, erasure, only)) }))
    }

    async fn preview_erasure(&self, request: Request<pb::PreviewErasureRequest>) -> Answer<pb::PreviewErasureResponse> {
        use pb::preview_erasure_request::Target as Wire;
        let call = self.enter(&request, Scope::Tenant).await?;
        let message = request.into_inner();
        let context = words::context(message.context)?;
        let classes = convert::class_nos("class_ids", &message.class_ids)?;
        let whom = match message.target {
            Some(Wire::Key(key)) => target(Some(key), None)?,
            Some(Wire::Group(group)) => target(None, Some(group))?,
            None => target(None, None)?,
        };
        let preview = match &whom {
            Target::Subject(key) => self.vault.preview_erasure(&call, &context, key, &classes).await?,
            Target::Group(group) => self.vault.preview_group(&call, group, &classes).await?,
        };
        let with_hold = call.permit(Verb::Hold).is_ok();
        let class = |class: &crate::vault::erasures::ClassPreview| pb::ClassPreview {
            class_id: class.class.0.into(),
            field_count: class.fields,
            item_count: class.items,
            data_keys_issued: u32::try_from(class.data_keys_issued).unwrap_or(u32::MAX),
        };
        Ok(Response::new(pb::PreviewErasureResponse {
            erased: preview.erased.iter().map(class).collect(),
            held: preview.held.iter().map(|held| wire_held(held, with_hold)).collect(),
            recipient_ids: preview.recipients.iter().map(|no| no.0.into()).collect(),
            subject_count: preview.subjects,
            archives_expire_time: None,
            search_expires_time: preview.search_expires_at.map(wire_time),
        }))
    }

    async fn schedule_erasure(
        &self,
        request: Request<pb::ScheduleErasureRequest>,
    ) -> Answer<pb::ScheduleErasureResponse> {
        use pb::schedule_erasure_request::Target as Wire;
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "ScheduleErasure", &repeat_id, &message)?;
        let context = words::context(message.context)?;
        let classes = convert::class_nos("class_ids", &message.class_ids)?;
        let due = convert::opt_time("schedule_time", &message.schedule_time)?;
        let whom = match message.target {
            Some(Wire::Key(key)) => target(Some(key), None)?,
            Some(Wire::Group(group)) => target(None, Some(group))?,
            None => target(None, None)?,
        };
        let only_check = message.validate_only;
        let erasure = match &whom {
            Target::Subject(key) => {
                self.vault.schedule_erasure(&call, &context, key, &classes, due, repeat, only_check).await?
            }
            Target::Group(_) if !classes.is_empty() => {
                return Err(bad_field("class_ids", "must be empty: a group is erased as a whole"));
            }
            Target::Group(group) => self.vault.schedule_group(&call, &context, group, due, repeat, only_check).await?,
        };
        let mut wire = self.wire_erasure(&call, erasure);
        if only_check {
            wire.erasure.clear();
        }
        Ok(Response::new(pb::ScheduleErasureResponse { erasure: Some(wire) }))
    }

    async fn cancel_erasure(&self, request: Request<pb::CancelErasureRequest>) -> Answer<pb::CancelErasureResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "CancelErasure", &repeat_id, &message)?;
        let context = words::context(message.context)?;
        words::no_approval(&context)?;
        let id = convert::object_id("erasure", &message.erasure)?;
        let erasure = self.wire_erasure(&call, self.vault.cancel_erasure(&call, &context, id, repeat).await?);
        Ok(Response::new(pb::CancelErasureResponse { erasure: Some(erasure) }))
    }

    async fn get_erasure(&self, request: Request<pb::GetErasureRequest>) -> Answer<pb::GetErasureResponse> {
        let call = self.enter(&request, Scope::Own).await?;
        let id = convert::object_id("erasure", &request.get_ref().erasure)?;
        let erasure = self.wire_erasure(&call, self.vault.get_erasure(&call, id).await?);
        Ok(Response::new(pb::GetErasureResponse { erasure: Some(erasure) }))
    }

    async fn list_erasures(&self, request: Request<pb::ListErasuresRequest>) -> Answer<pb::ListErasuresResponse> {
        let call = self.enter(&request, Scope::Own).await?;
        let mut message = request.into_inner();
        let limit = convert::page_size(std::mem::take(&mut message.page_size))?;
        let token = std::mem::take(&mut message.page_token);
        let pages = Pages::new(&call, "ListErasures", &message);
        let after = operation_position(&pages, &token)?;
        let statuses: Vec<pb::ErasureStatus> = convert::choices("statuses", &message.statuses)?;
        let kinds: Vec<pb::ErasureKind> = convert::choices("kinds", &message.kinds)?;
        let subject = match message.key {
            Some(key) => {
                call.permit(Verb::Erase)?;
                let key = words::key(Some(key))?;
                Some(self.vault.resolve(&call, &Default::default(), &key).await?.subject.uid)
            }
            None => None,
        };
        let keep = |operation: &Operation| {
            (statuses.is_empty() || statuses.contains(&wire_status(operation)))
                && (kinds.is_empty() || kinds.contains(&wire_kind(operation)))
        };
        let page = self.vault.list_erasures(&call, subject, keep, after, limit).await?;
        let next_page_token = operation_token(&pages, page.rows.last().filter(|_| page.more));
        let erasures = page.rows.iter().map(|operation| self.wire_operation(&call, operation)).collect();
        Ok(Response::new(pb::ListErasuresResponse { erasures, next_page_token }))
    }

    async fn get_receipt(&self, request: Request<pb::GetReceiptRequest>) -> Answer<pb::GetReceiptResponse> {
        let call = self.enter(&request, Scope::Own).await?;
        let id = convert::object_id("erasure", &request.get_ref().erasure)?;
        let receipt = self.vault.get_receipt(&call, id).await?.into();
        Ok(Response::new(pb::GetReceiptResponse { receipt }))
    }

    async fn get_receipt_keys(
        &self,
        request: Request<pb::GetReceiptKeysRequest>,
    ) -> Answer<pb::GetReceiptKeysResponse> {
        self.enter(&request, Scope::Own).await?;
        let key = |signer: &SignerView| pb::ReceiptKey {
            key_id: key_id(&signer.public),
            public_key: signer.public.to_vec().into(),
            create_time: Some(wire_time(signer.since)),
            retire_time: signer.until.map(wire_time),
            chain_signature: signer.chain.map_or(Vec::new(), |chain| chain.to_vec()).into(),
        };
        let keys = self.vault.signers().iter().map(key).collect();
        Ok(Response::new(pb::GetReceiptKeysResponse { keys }))
    }

    type WatchErasuresStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<pb::WatchErasuresResponse, Status>> + Send>>;

    async fn acknowledge_erasure(
        &self,
        request: Request<pb::AcknowledgeErasureRequest>,
    ) -> Answer<pb::AcknowledgeErasureResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "AcknowledgeErasure", &repeat_id, &message)?;
        let erasure = convert::object_id("erasure", &message.erasure)?;
        let recipient = convert::recipient_no("recipient_id", message.recipient_id)?
            .ok_or_else(|| bad_field("recipient_id", "is required"))?;
        let reference = &message.recipient_ref;
        let at = self.vault.acknowledge_erasure(&call, erasure, recipient, reference, repeat).await?;
        Ok(Response::new(pb::AcknowledgeErasureResponse { acknowledge_time: Some(wire_time(at)) }))
    }

    async fn watch_erasures(&self, request: Request<pb::WatchErasuresRequest>) -> Answer<Self::WatchErasuresStream> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let credential = self.credential(&request)?;
        let message = request.into_inner();
        // A cursor outlives the credential it came with, so it is the plain number of an event.
        let mut after = match message.cursor.as_str() {
            "" => 0,
            text => u64::from_str_radix(text, 16).map_err(|_| bad_field("cursor", "did not come from this feed"))?,
        };
        if message.recipient_ids.len() > MAX_VALUES {
            return Err(limit_exceeded("recipient_ids", MAX_VALUES));
        }
        let recipient = |n: &u32| u16::try_from(*n).map(RecipientNo);
        let recipients: Vec<RecipientNo> = message
            .recipient_ids
            .iter()
            .map(recipient)
            .collect::<Result<_, _>>()
            .map_err(|_| bad_field("recipient_ids", "is not a recipient's number"))?;
        let wanted: Vec<pb::EventKind> = convert::choices("kinds", &message.kinds)?;
        let kinds: Vec<EventKind> =
            EVENT_KINDS.into_iter().filter(|kind| wanted.contains(&wire_event(*kind))).collect();
        call.permit(Verb::Erase)?;
        self.vault.note_listing(&call, Action::WatchErasures).await?;
        let (api, follow) = (self.clone(), message.follow);
        let (to, from) = mpsc::channel(64);
        tokio::spawn(async move {
            let mut looks = 0u32;
            loop {
                looks += 1;
                let look = async {
                    if looks.is_multiple_of(CHECK_EVERY) {
                        api.still_valid(&credential).await?;
                    }
                    Ok::<_, Status>(api.vault.feed(&call, after, &recipients, &kinds, EVENTS).await?)
                };
                let (page, last) = match look.await {
                    Ok(found) => found,
                    Err(status) => {
                        let _ = to.send(Err(status)).await; // whoever went away hears nothing
                        return;
                    }
                };
                after = last;
                let more = page.more;
                for entry in page.rows {
                    if to.send(Ok(wire_entry(entry))).await.is_err() {
                        return;
                    }
                }
                if !more && !follow {
                    return;
                }
                if !more {
                    tokio::select! {
                        _ = to.closed() => return,
                        _ = tokio::time::sleep(LOOK_EVERY) => {}
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(from))))
    }

    async fn place_hold(&self, request: Request<pb::PlaceHoldRequest>) -> Answer<pb::PlaceHoldResponse> {
        use pb::place_hold_request::Target as Wire;
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "PlaceHold", &repeat_id, &message)?;
        let context = words::context(message.context)?;
        let purpose = convert::purpose_no("purpose_id", message.purpose_id)?;
        let new = NewHold {
            classes: convert::class_nos("class_ids", &message.class_ids)?,
            basis: convert::name("legal_basis", &message.legal_basis)?,
            purpose: purpose.ok_or_else(|| bad_field("purpose_id", "is required"))?,
            until: convert::opt_time("end_time", &message.end_time)?,
        };
        let whom = match message.target {
            Some(Wire::Key(key)) => target(Some(key), None)?,
            Some(Wire::Group(group)) => target(None, Some(group))?,
            None => target(None, None)?,
        };
        let on = match &whom {
            Target::Subject(key) => HoldTarget::Subject(key),
            Target::Group(group) => HoldTarget::Group(group),
        };
        let hold = self.vault.place_hold(&call, &context, on, &new, repeat, message.validate_only).await?;
        let mut wire = self.wire_hold(&call, &hold).await?;
        if message.validate_only {
            wire.hold.clear();
        }
        Ok(Response::new(pb::PlaceHoldResponse { hold: Some(wire) }))
    }

    async fn release_hold(&self, request: Request<pb::ReleaseHoldRequest>) -> Answer<pb::ReleaseHoldResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "ReleaseHold", &repeat_id, &message)?;
        let context = words::context(message.context)?;
        words::no_approval(&context)?;
        let id = convert::object_id("hold", &message.hold)?;
        let (hold, erasures) = self.vault.release_hold(&call, &context, id, repeat, message.validate_only).await?;
        Ok(Response::new(pb::ReleaseHoldResponse {
            hold: Some(self.wire_hold(&call, &hold).await?),
            erasures: erasures.iter().map(ObjectId::to_string).collect(),
        }))
    }

    async fn list_holds(&self, request: Request<pb::ListHoldsRequest>) -> Answer<pb::ListHoldsResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let limit = convert::page_size(std::mem::take(&mut message.page_size))?;
        let token = std::mem::take(&mut message.page_token);
        let pages = Pages::new(&call, "ListHolds", &message);
        let after = pages.position::<16>(&token)?.map(|bytes| ObjectId(uuid::Uuid::from_bytes(bytes)));
        let mut states: Vec<pb::HoldState> = convert::choices("states", &message.states)?;
        if states.is_empty() {
            states.push(pb::HoldState::Active);
        }
        let group = (!message.group.is_empty()).then_some(message.group);
        let whom = match (message.key, group) {
            (None, None) => None,
            (key, group) => Some(target(key, group)?),
        };
        let on = whom.as_ref().map(|whom| match whom {
            Target::Subject(key) => HoldTarget::Subject(key),
            Target::Group(group) => HoldTarget::Group(group),
        });
        let page = self.vault.list_holds(&call, &Default::default(), on, after, limit).await?;
        let last = page.rows.last().filter(|_| page.more);
        let next_page_token = last.map_or(String::new(), |hold| pages.token(hold.id.0.as_bytes()));
        let mut holds = Vec::with_capacity(page.rows.len());
        for hold in page.rows.iter().filter(|hold| states.contains(&hold_state(hold, &call))) {
            holds.push(self.wire_hold(&call, hold).await?);
        }
        Ok(Response::new(pb::ListHoldsResponse { holds, next_page_token }))
    }
}
