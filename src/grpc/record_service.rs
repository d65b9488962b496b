//! Values of subjects: the hot path.

use futures_util::stream::{self, StreamExt};
use std::collections::HashSet;
use tonic::{Request, Response, Status};

use crate::grpc::convert::{self, item_error, wire_time};
use crate::grpc::export::{self, Chunks};
use crate::grpc::identity::{Api, Scope};
use crate::grpc::page::Pages;
use crate::grpc::pb;
use crate::grpc::status::bad_field;
use crate::grpc::vault_status::limit_exceeded;
use crate::grpc::words::{self, MAX_ATOMIC, MAX_BATCH};
use crate::ids::{Bucket, ItemNo};
use crate::vault::item::NewItem;
use crate::vault::item_read::{ItemCursor, ShownItem};
use crate::vault::request::Request as Repeat;
use crate::vault::write::{Put, PutDone, WriteMode};
use crate::vault::{Call, VaultError};

type Answer<T> = Result<Response<T>, Status>;

/// Writes of one batch that wait for the disk at the same time: enough to fill a group commit.
const IN_FLIGHT: usize = 256;
/// Bytes of values that a page of items may hold; the rest goes to the next page.
const PAGE_BYTES: usize = 3 << 20;

/// What a write expects to find.
fn write_mode(number: i32) -> Result<WriteMode, Status> {
    Ok(match pb::WriteMode::try_from(number) {
        Ok(pb::WriteMode::Unspecified | pb::WriteMode::Upsert) => WriteMode::Upsert,
        Ok(pb::WriteMode::Create) => WriteMode::Create,
        Ok(pb::WriteMode::Update) => WriteMode::Update,
        Ok(pb::WriteMode::Recreate) => WriteMode::Recreate,
        Err(_) => return Err(bad_field("mode", "is not a number of this enum")),
    })
}

fn opt_etag(etag: String) -> Option<String> {
    (!etag.is_empty()).then_some(etag)
}

fn wire_put(done: PutDone) -> pb::PutFieldsResponse {
    pb::PutFieldsResponse {
        etag: done.etag,
        created: done.created,
        commit_time: Some(wire_time(done.at)),
        erasure: done.erasure.map_or(String::new(), |id| id.to_string()),
    }
}

fn wire_item(field: crate::ids::FieldNo, item: ShownItem) -> pb::Item {
    pb::Item {
        item: words::item_name(item.item),
        values: vec![words::wire_value(field, item.value, item.view)],
        origin_time: Some(wire_time(item.origin)),
        expire_time: item.expire.map(wire_time),
        etag: format!("{:x}", item.revision.0),
    }
}

impl Api {
    /// GetFields.
    pub(crate) async fn read_fields(
        &self,
        request: Request<pb::GetFieldsRequest>,
    ) -> Result<pb::GetFieldsResponse, Status> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let message = request.into_inner();
        let key = words::key(message.key)?;
        let context = words::context(message.context)?;
        let select = words::select(call.tenant.policy()?, message.select, message.view, message.partial)?;
        let got = self.vault.get_fields(&call, &context, &key, &select).await?;
        Ok(words::wire_got(&call, &context, got, select.fields.is_empty()))
    }

    /// One put of a request or a batch.
    async fn put_of(&self, call: &Call, wire: pb::SubjectPut) -> Result<Put, Status> {
        convert::refuse(!wire.consents.is_empty(), "consents")?;
        let group = match convert::opt_subject_id("group", &wire.group)? {
            Some(id) => Some(self.vault.group_no(call, &id).await?),
            None => None,
        };
        Ok(Put {
            subject: convert::subject_id("subject", &wire.subject)?,
            values: words::new_values(call.tenant.policy()?, wire.values)?,
            mode: write_mode(wire.mode)?,
            group,
            etag: opt_etag(wire.etag),
            erase_former: wire.erase_former,
        })
    }

    async fn put_batch(
        &self,
        call: &Call,
        message: pb::BatchPutFieldsRequest,
        request: Option<Repeat>,
    ) -> Result<Vec<pb::PutOutcome>, Status> {
        let context = &words::context(message.context)?;
        let validate_only = message.validate_only;
        let put_one = |i: usize, wire: pb::SubjectPut| {
            let request = request.map(|batch| words::part_of(call, batch, i));
            async move {
                let put = self.put_of(call, wire).await?;
                let done = self.vault.put_fields(call, context, put, request, validate_only).await?;
                Ok::<_, Status>(wire_put(done))
            }
        };
        let puts: Vec<_> = message.puts.into_iter().enumerate().map(|(i, wire)| put_one(i, wire)).collect();
        let outcomes: Vec<Result<pb::PutFieldsResponse, Status>> =
            stream::iter(puts).buffered(IN_FLIGHT).collect().await;
        let outcome = |result| match result {
            Ok(put) => pb::put_outcome::Outcome::Put(put),
            Err(status) => pb::put_outcome::Outcome::Error(item_error(&status)),
        };
        Ok(outcomes.into_iter().map(|result| pb::PutOutcome { outcome: Some(outcome(result)) }).collect())
    }

    async fn put_atomic(
        &self,
        call: &Call,
        message: pb::BatchPutFieldsRequest,
        request: Option<Repeat>,
    ) -> Result<Vec<pb::PutOutcome>, Status> {
        if message.puts.len() > MAX_ATOMIC {
            return Err(limit_exceeded("puts", MAX_ATOMIC));
        }
        let context = words::context(message.context)?;
        let mut puts = Vec::with_capacity(message.puts.len());
        for wire in message.puts {
            puts.push(self.put_of(call, wire).await?);
        }
        let done = self.vault.put_atomic(call, &context, &puts, request, message.validate_only).await?;
        let outcome = |done| pb::put_outcome::Outcome::Put(wire_put(done));
        Ok(done.into_iter().map(|done| pb::PutOutcome { outcome: Some(outcome(done)) }).collect())
    }
}

#[tonic::async_trait]
impl pb::record_service_server::RecordService for Api {
    async fn put_fields(&self, request: Request<pb::PutFieldsRequest>) -> Answer<pb::PutFieldsResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "PutFields", &id, &message)?;
        let context = words::context(message.context)?;
        let wire = pb::SubjectPut {
            subject: message.subject,
            values: message.values,
            mode: message.mode,
            group: message.group,
            consents: message.consents,
            etag: message.etag,
            erase_former: message.erase_former,
        };
        let put = self.put_of(&call, wire).await?;
        let done = self.vault.put_fields(&call, &context, put, repeat, message.validate_only).await?;
        Ok(Response::new(wire_put(done)))
    }

    async fn get_fields(&self, request: Request<pb::GetFieldsRequest>) -> Answer<pb::GetFieldsResponse> {
        self.read_fields(request).await.map(Response::new)
    }

    async fn delete_fields(&self, request: Request<pb::DeleteFieldsRequest>) -> Answer<pb::DeleteFieldsResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "DeleteFields", &id, &message)?;
        let subject = convert::subject_id("subject", &message.subject)?;
        let context = words::context(message.context)?;
        let fields = words::named_fields(call.tenant.policy()?, message.select)?;
        let etag = opt_etag(message.etag);
        let only = message.validate_only;
        let done = self.vault.delete_fields(&call, &context, &subject, &fields, etag.as_deref(), repeat, only).await?;
        Ok(Response::new(pb::DeleteFieldsResponse {
            etag: done.etag,
            deleted_field_ids: done.deleted.iter().map(|field| field.0.into()).collect(),
            commit_time: Some(wire_time(done.at)),
        }))
    }

    async fn batch_put_fields(
        &self,
        request: Request<pb::BatchPutFieldsRequest>,
    ) -> Answer<pb::BatchPutFieldsResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        words::count("puts", message.puts.len(), MAX_BATCH)?;
        let mut seen = HashSet::with_capacity(message.puts.len());
        if let Some(i) = message.puts.iter().position(|put| !seen.insert(put.subject.as_str())) {
            return Err(bad_field(format!("puts[{i}].subject"), "is in the batch already"));
        }
        let id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "BatchPutFields", &id, &message)?;
        let outcomes = match message.atomic {
            true => self.put_atomic(&call, message, repeat).await?,
            false => self.put_batch(&call, message, repeat).await?,
        };
        Ok(Response::new(pb::BatchPutFieldsResponse { outcomes }))
    }

    async fn batch_get_fields(
        &self,
        request: Request<pb::BatchGetFieldsRequest>,
    ) -> Answer<pb::BatchGetFieldsResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let message = request.into_inner();
        let keys = words::keys(message.keys)?;
        let context = words::context(message.context)?;
        let select = words::select(call.tenant.policy()?, message.select, message.view, message.partial)?;
        let open = select.fields.is_empty();
        let outcome = |got: Result<_, VaultError>| match got {
            Ok(got) => pb::get_outcome::Outcome::Result(words::wire_got(&call, &context, got, open)),
            Err(error) => pb::get_outcome::Outcome::Error(item_error(&error.into())),
        };
        let got = self.vault.get_batch(&call, &context, &keys, &select).await?;
        let outcomes = got.into_iter().map(|got| pb::GetOutcome { outcome: Some(outcome(got)) }).collect();
        Ok(Response::new(pb::BatchGetFieldsResponse { outcomes }))
    }

    async fn append_items(&self, request: Request<pb::AppendItemsRequest>) -> Answer<pb::AppendItemsResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        words::count("items", message.items.len(), MAX_BATCH)?;
        let id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "AppendItems", &id, &message)?;
        let subject = convert::subject_id("subject", &message.subject)?;
        let context = words::context(message.context)?;
        let policy = call.tenant.policy()?;
        let field = words::field(policy, message.field_id, &message.field)?;
        let name = policy.field(field).map_or("", |rule| rule.name.as_str());
        let mut items = Vec::with_capacity(message.items.len());
        for (i, item) in message.items.into_iter().enumerate() {
            let origin = convert::opt_time("items.origin_time", &item.origin_time)?;
            items.push(NewItem { value: words::item_value(field, name, i, item.values)?, origin });
        }
        let only = message.validate_only;
        let done = self.vault.append_items(&call, &context, &subject, field, &items, repeat, only).await?;
        let wire = |a: &crate::vault::item::Appended| pb::AppendedItem {
            item: words::item_name(a.item),
            expire_time: a.expire.map(wire_time),
        };
        Ok(Response::new(pb::AppendItemsResponse {
            items: done.items.iter().map(wire).collect(),
            commit_time: Some(wire_time(done.at)),
        }))
    }

    async fn list_items(&self, request: Request<pb::ListItemsRequest>) -> Answer<pb::ListItemsResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let limit = convert::page_size(std::mem::take(&mut message.page_size))?;
        let token = std::mem::take(&mut message.page_token);
        let pages = Pages::new(&call, "ListItems", &message);
        let cursor = pages.position::<12>(&token)?.map(|bytes| {
            let (bucket, item) = bytes.split_first_chunk::<4>().expect("4 of 12 bytes");
            let item: [u8; 8] = item.try_into().expect("8 of 12 bytes");
            ItemCursor { bucket: Bucket(u32::from_be_bytes(*bucket)), item: ItemNo(i64::from_be_bytes(item)) }
        });
        let field = words::field(call.tenant.policy()?, message.field_id, &message.field)?;
        let from = convert::opt_time("start_time", &message.start_time)?;
        let to = convert::opt_time("end_time", &message.end_time)?;
        let view = convert::view("view", message.view)?;
        let key = words::key(message.key)?;
        let context = words::context(message.context)?;
        let page = self.vault.list_items(&call, &context, &key, field, view, from, to, cursor, limit).await?;
        let (mut items, mut bytes, mut last) = (Vec::with_capacity(page.items.len()), 0, None);
        let mut next = page.next;
        for item in page.items {
            bytes += item.value.encoded_len() + 64;
            if bytes > PAGE_BYTES && last.is_some() {
                next = last;
                break;
            }
            last = Some(ItemCursor { bucket: item.bucket, item: item.item });
            items.push(wire_item(field, item));
        }
        let next_page_token = next.map_or(String::new(), |cursor| {
            let mut bytes = [0; 12];
            bytes[..4].copy_from_slice(&cursor.bucket.0.to_be_bytes());
            bytes[4..].copy_from_slice(&cursor.item.0.to_be_bytes());
            pages.token(&bytes)
        });
        Ok(Response::new(pb::ListItemsResponse { items, next_page_token, recipient_ref: Default::default() }))
    }

    async fn get_item(&self, request: Request<pb::GetItemRequest>) -> Answer<pb::GetItemResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let message = request.into_inner();
        let field = words::field(call.tenant.policy()?, message.field_id, &message.field)?;
        let item = words::item_no("item", &message.item)?;
        let view = convert::view("view", message.view)?;
        let key = words::key(message.key)?;
        let context = words::context(message.context)?;
        let (_, item) = self.vault.get_item(&call, &context, &key, field, item, view).await?;
        let item = Some(wire_item(field, item));
        Ok(Response::new(pb::GetItemResponse { item, recipient_ref: Default::default() }))
    }

    async fn delete_items(&self, request: Request<pb::DeleteItemsRequest>) -> Answer<pb::DeleteItemsResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        words::count("items", message.items.len(), MAX_BATCH)?;
        let id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "DeleteItems", &id, &message)?;
        let subject = convert::subject_id("subject", &message.subject)?;
        let field = words::field(call.tenant.policy()?, message.field_id, &message.field)?;
        let mut items = Vec::with_capacity(message.items.len());
        for name in &message.items {
            items.push(words::item_no("items", name)?);
        }
        let context = words::context(message.context)?;
        let only = message.validate_only;
        let (deleted_count, at) =
            self.vault.delete_items(&call, &context, &subject, field, &items, repeat, only).await?;
        Ok(Response::new(pb::DeleteItemsResponse { deleted_count, commit_time: Some(wire_time(at)) }))
    }

    type ExportSubjectStream = Chunks;

    async fn export_subject(&self, request: Request<pb::ExportSubjectRequest>) -> Answer<Self::ExportSubjectStream> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let message = request.into_inner();
        let form = match pb::ExportFormat::try_from(message.format) {
            Ok(pb::ExportFormat::Unspecified | pb::ExportFormat::Json) => export::Form::Json,
            Ok(pb::ExportFormat::Csv) => export::Form::Csv,
            Err(_) => return Err(bad_field("format", "is not a number of this enum")),
        };
        if message.offset > 0 && message.etag.is_empty() {
            return Err(bad_field("etag", "is required to go on at an offset"));
        }
        let key = words::key(message.key)?;
        let context = words::context(message.context)?;
        let select = words::select(call.tenant.policy()?, message.select, message.view, 0)?;
        let etag = opt_etag(message.etag);
        let export = self.vault.export(&call, &context, &key, &select, etag.as_deref()).await?;
        Ok(Response::new(export::stream(self.vault.clone(), export, form, message.offset)))
    }
}
