//! Who did what when: lists, a stream of what comes, verification, the signed checkpoint.

use std::pin::Pin;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::audit::{Action, AuditRecord, Chain, ChainHead, Head};
use crate::grpc::convert::{self, wire_time};
use crate::grpc::identity::{Api, Scope};
use crate::grpc::page::Pages;
use crate::grpc::pb;
use crate::grpc::status::bad_field;
use crate::grpc::words::{self, MAX_VALUES};
use crate::ids::{ActorId, PurposeNo, RecipientNo, SubjectUid, TenantNo};
use crate::vault::access_report::Accessed;
use crate::vault::audit_extend::ChainSteps;
use crate::vault::audit_read::EntryQuery;
use crate::vault::audit_verify::ChainVerdict;
use crate::vault::decoy::Decoy;
use crate::vault::{Call, VaultError};

type Answer<T> = Result<Response<T>, Status>;

/// How often a follower looks for new entries.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How many looks until the credential of a follower is checked again.
const CHECK_EVERY: u32 = 40;
/// Entries in one message to a follower: some hundred kilobytes.
const MESSAGE: usize = 2_000;
/// Heads that one verification is compared with.
const MOST_HEADS: usize = 50_000;

fn chain(number: i32) -> Result<Chain, Status> {
    match pb::AuditChain::try_from(number) {
        Ok(pb::AuditChain::Unspecified | pb::AuditChain::Changes) => Ok(Chain::Change),
        Ok(pb::AuditChain::Reads) => Ok(Chain::Read),
        Err(_) => Err(bad_field("chain", "is not a number of this enum")),
    }
}

fn wire_chain(chain: Chain) -> pb::AuditChain {
    match chain {
        Chain::Change => pb::AuditChain::Changes,
        Chain::Read => pb::AuditChain::Reads,
    }
}

fn wire_entry(chain: Chain, position: u64, record: &AuditRecord) -> pb::AuditEntry {
    pb::AuditEntry {
        position,
        chain: wire_chain(chain) as i32,
        time: Some(wire_time(record.at)),
        actor_id: record.actor.0,
        action: record.action.name().into(),
        subject_uid: record.subject.map_or(0, |uid| uid.0),
        field_ids: record.fields.iter().map(|field| field.0.into()).collect(),
        class_id: record.class.map_or(0, |class| class.0.into()),
        purpose_id: record.purpose.0.into(),
        recipient_id: record.recipient.0.into(),
        outcome: convert::wire_outcome(record.outcome) as i32,
        object: record.operation.map_or(String::new(), |id| id.to_string()),
        detail: None,
    }
}

fn wire_verdict(verdict: &ChainVerdict) -> pb::ChainVerdict {
    pb::ChainVerdict {
        chain: wire_chain(verdict.chain) as i32,
        valid: verdict.bad.is_none(),
        first_position: verdict.first,
        last_position: verdict.head.seq,
        head: verdict.head.hash.to_vec().into(),
        bad_position: verdict.bad.unwrap_or(0),
        tenant_number: verdict.tenant.0,
        compared: verdict.compared,
        pruned: verdict.pruned,
    }
}

fn wire_extension(one: ChainSteps) -> pb::ChainExtension {
    let head = one.present.head();
    let step = |step: Option<Vec<[u8; 32]>>| pb::ConsistencyProof {
        found: step.is_some(),
        hashes: step.unwrap_or_default().iter().map(|hash| hash.to_vec().into()).collect(),
    };
    pb::ChainExtension {
        tenant_number: head.tenant.0,
        chain: wire_chain(head.chain) as i32,
        present: one.present.to_json().into(),
        steps: one.steps.into_iter().map(step).collect(),
    }
}

fn read_head(i: usize, head: &pb::AuditHead) -> Result<ChainHead, Status> {
    let hash = head.hash.as_ref().try_into();
    let hash = hash.map_err(|_| bad_field(format!("against[{i}].hash"), "must have 32 bytes"))?;
    let (tenant, chain) = (TenantNo(head.tenant_number), chain(head.chain)?);
    Ok(ChainHead::new(tenant, chain, Head { seq: head.position, hash }))
}

fn wire_decoy(decoy: Decoy) -> pb::Decoy {
    pb::Decoy {
        subject_uid: decoy.uid.0,
        subject: decoy.subject.as_str().to_owned(),
        create_time: Some(wire_time(decoy.at)),
        actor_id: decoy.by.0,
    }
}

fn wire_access(row: Accessed) -> pb::SubjectAccess {
    pb::SubjectAccess {
        subject_uid: row.uid.0,
        subject: row.subject.map_or(String::new(), |id| id.as_str().to_owned()),
        field_ids: row.fields.iter().map(u32::from).collect(),
        purpose_ids: row.purposes.iter().filter(|no| *no != 0).map(u32::from).collect(),
        recipient_ids: row.recipients.iter().filter(|no| no.0 != 0).map(|no| no.0.into()).collect(),
        read_count: row.reads,
        first_time: Some(wire_time(row.first)),
        last_time: Some(wire_time(row.last)),
    }
}

/// A list of a filter, of bounded length.
fn filter<A, B>(path: &'static str, list: &[A], one: impl Fn(&A) -> Result<B, Status>) -> Result<Vec<B>, Status> {
    if list.len() > MAX_VALUES {
        return Err(crate::grpc::vault_status::limit_exceeded(path, MAX_VALUES));
    }
    list.iter().map(one).collect()
}

impl Api {
    async fn wire_entries(
        &self,
        call: &Call,
        chain: Chain,
        entries: &[(u64, AuditRecord)],
    ) -> Result<Vec<pb::AuditEntry>, Status> {
        let mut out = Vec::with_capacity(entries.len());
        for (position, record) in entries {
            let mut entry = wire_entry(chain, *position, record);
            if let Some(mut detail) = self.vault.entry_detail(call, record).await? {
                entry.detail = Some(pb::AccessContext {
                    purpose_id: record.purpose.0.into(),
                    reason: std::mem::take(&mut *detail.reason),
                    reference: std::mem::take(&mut *detail.reference),
                    ..Default::default()
                });
            }
            out.push(entry);
        }
        Ok(out)
    }
}

#[tonic::async_trait]
impl pb::audit_service_server::AuditService for Api {
    async fn list_entries(&self, request: Request<pb::ListEntriesRequest>) -> Answer<pb::ListEntriesResponse> {
        let call = self.enter(&request, Scope::NamedOrVault(&request.get_ref().tenant)).await?;
        let mut message = request.into_inner();
        let limit = convert::page_size(std::mem::take(&mut message.page_size))?;
        let token = std::mem::take(&mut message.page_token);
        let pages = Pages::new(&call, "ListEntries", &message);
        let chain = chain(message.chain)?;
        let context = words::context(message.context)?;
        let subject = match (message.key, message.subject_uid) {
            (Some(key), 0) => {
                call.permit(crate::access::Verb::Audit)?;
                let key = words::key(Some(key))?;
                Some(self.vault.resolve(&call, &context, &key).await?.subject.uid)
            }
            (None, 0) => None,
            (None, uid) => Some(SubjectUid(uid)),
            (Some(_), _) => return Err(bad_field("subject_uid", "give the key or the number, not both")),
        };
        let query = EntryQuery {
            subject,
            actors: filter("actor_ids", &message.actor_ids, |n| Ok(ActorId(*n)))?,
            purposes: filter("purpose_ids", &message.purpose_ids, |n| {
                let purpose: Option<PurposeNo> = convert::purpose_no("purpose_ids", *n)?;
                purpose.ok_or_else(|| bad_field("purpose_ids", "must be 1 to 255"))
            })?,
            recipients: filter("recipient_ids", &message.recipient_ids, |n| {
                u16::try_from(*n)
                    .map(RecipientNo)
                    .map_err(|_| bad_field("recipient_ids", "is not a recipient's number"))
            })?,
            actions: filter("actions", &message.actions, |name| {
                Action::from_name(name).ok_or_else(|| bad_field("actions", "is not the name of an action"))
            })?,
            since: convert::opt_time("start_time", &message.start_time)?,
            until: convert::opt_time("end_time", &message.end_time)?,
        };
        let after = pages.number(&token)?;
        let page = self.vault.list_entries(&call, chain, query, after, limit).await?;
        let entries = self.wire_entries(&call, chain, &page.entries).await?;
        let next_page_token = pages.after(page.more, Some(page.seen));
        Ok(Response::new(pb::ListEntriesResponse { entries, next_page_token }))
    }

    type FollowEntriesStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<pb::FollowEntriesResponse, Status>> + Send>>;

    async fn follow_entries(&self, request: Request<pb::FollowEntriesRequest>) -> Answer<Self::FollowEntriesStream> {
        let call = self.enter(&request, Scope::NamedOrVault(&request.get_ref().tenant)).await?;
        let credential = self.credential(&request)?;
        let message = request.into_inner();
        let chain = chain(message.chain)?;
        let mut follower = self.vault.follow_entries(&call, chain, message.start_position).await?;
        let end = match message.until_now {
            true => Some(self.vault.last_entry(&call, chain).await?),
            false => None,
        };
        let api = self.clone();
        let (to, from) = mpsc::channel(4);
        tokio::spawn(async move {
            let mut looks = 0u32;
            while !to.is_closed() && end.is_none_or(|end| follower.after() < end) {
                let entries = async {
                    looks += 1;
                    if looks.is_multiple_of(CHECK_EVERY) {
                        api.still_valid(&credential).await?;
                    }
                    api.vault.entries_since(&call, &mut follower, MESSAGE).await.map_err(Status::from)
                };
                let entries = match entries.await {
                    Ok(entries) if entries.is_empty() => {
                        tokio::select! {
                            _ = to.closed() => return,
                            _ = tokio::time::sleep(LOOK_EVERY) => continue,
                        }
                    }
                    Ok(entries) => entries,
                    Err(status) => {
                        // A closed channel is a client that went away.
                        let _ = to.send(Err(status)).await;
                        return;
                    }
                };
                // The entries of one group may be many more than a message takes.
                for part in entries.chunks(MESSAGE) {
                    let message = api.wire_entries(&call, chain, part).await;
                    let over = message.is_err();
                    let message = message.map(|entries| pb::FollowEntriesResponse { entries });
                    if to.send(message).await.is_err() || over {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(from))))
    }

    async fn verify_audit(&self, request: Request<pb::VerifyAuditRequest>) -> Answer<pb::VerifyAuditResponse> {
        let call = self.enter(&request, Scope::NamedOrVault(&request.get_ref().tenant)).await?;
        let against = &request.get_ref().against;
        if against.len() > MOST_HEADS {
            return Err(bad_field("against", "must not have more than 50,000 heads"));
        }
        let against = against.iter().enumerate().map(|(i, head)| read_head(i, head)).collect::<Result<Vec<_>, _>>()?;
        let verdicts = self.vault.verify_audit(&call, &against).await?;
        let valid = verdicts.iter().all(|verdict| verdict.bad.is_none());
        // Of what is not whole nothing is proven.
        let extensions = if valid { self.vault.prove_extensions(&call, &against).await? } else { Vec::new() };
        Ok(Response::new(pb::VerifyAuditResponse {
            valid,
            chains: verdicts.iter().map(wire_verdict).collect(),
            extensions: extensions.into_iter().map(wire_extension).collect(),
        }))
    }

    async fn get_checkpoint(&self, request: Request<pb::GetCheckpointRequest>) -> Answer<pb::GetCheckpointResponse> {
        let call = self.enter(&request, Scope::NamedOrVault(&request.get_ref().tenant)).await?;
        let at = convert::opt_time("time", &request.get_ref().time)?;
        let checkpoint = self.vault.get_checkpoint(&call, at).await?;
        let mut proofs = Vec::with_capacity(2);
        for chain in [Chain::Change, Chain::Read] {
            let proof = checkpoint.proof(call.tenant.no, chain).ok_or(VaultError::NotFound)?;
            proofs.push(proof.to_json().into());
        }
        // The whole checkpoint tells how busy the other tenants are.
        let whole = call.principal.kind == crate::auth::Kind::Operator;
        Ok(Response::new(pb::GetCheckpointResponse {
            checkpoint: if whole { checkpoint.to_json().into() } else { Default::default() },
            proofs,
            checkpoint_time: Some(wire_time(checkpoint.at())),
        }))
    }

    async fn report_access(&self, request: Request<pb::ReportAccessRequest>) -> Answer<pb::ReportAccessResponse> {
        let call = self.enter(&request, Scope::NamedOrVault(&request.get_ref().tenant)).await?;
        let mut message = request.into_inner();
        let limit = convert::page_size(std::mem::take(&mut message.page_size))?;
        let token = std::mem::take(&mut message.page_token);
        let pages = Pages::new(&call, "ReportAccess", &message);
        let query = EntryQuery {
            actors: filter("actor_ids", &message.actor_ids, |n| Ok(ActorId(*n)))?,
            since: convert::opt_time("start_time", &message.start_time)?,
            until: convert::opt_time("end_time", &message.end_time)?,
            ..EntryQuery::default()
        };
        let after = SubjectUid(pages.number(&token)? as i64);
        let page = self.vault.report_access(&call, &query, after, limit).await?;
        let next_page_token = pages.after(page.more, page.rows.last().map(|last| last.uid.0 as u64));
        let accesses = page.rows.into_iter().map(wire_access).collect();
        Ok(Response::new(pb::ReportAccessResponse { accesses, next_page_token }))
    }

    async fn prune_audit(&self, request: Request<pb::PruneAuditRequest>) -> Answer<pb::PruneAuditResponse> {
        let call = self.enter(&request, Scope::Vault).await?;
        let message = request.into_inner();
        let before = convert::opt_time("before_time", &message.before_time)?;
        let before = before.ok_or_else(|| bad_field("before_time", "is required"))?;
        let approval = match message.approval.as_str() {
            "" => None,
            name => Some(convert::object_id("approval", name)?),
        };
        let pruned = self.vault.prune_audit(&call, before, approval, message.validate_only).await?;
        Ok(Response::new(pb::PruneAuditResponse {
            segment_count: u32::try_from(pruned.segments).unwrap_or(u32::MAX),
            kept_time: pruned.kept_since.map(wire_time),
            checkpoint: pruned.checkpoint.map_or_else(Default::default, |one| one.to_json().into()),
        }))
    }

    async fn mark_decoy(&self, request: Request<pb::MarkDecoyRequest>) -> Answer<pb::MarkDecoyResponse> {
        let call = self.enter(&request, Scope::Named(&request.get_ref().tenant)).await?;
        let id = convert::subject_id("subject", &request.get_ref().subject)?;
        let decoy = self.vault.set_decoy(&call, &id, true).await?;
        Ok(Response::new(pb::MarkDecoyResponse { decoy: Some(wire_decoy(decoy)) }))
    }

    async fn unmark_decoy(&self, request: Request<pb::UnmarkDecoyRequest>) -> Answer<pb::UnmarkDecoyResponse> {
        let call = self.enter(&request, Scope::Named(&request.get_ref().tenant)).await?;
        let id = convert::subject_id("subject", &request.get_ref().subject)?;
        let decoy = self.vault.set_decoy(&call, &id, false).await?;
        Ok(Response::new(pb::UnmarkDecoyResponse { decoy: Some(wire_decoy(decoy)) }))
    }

    async fn list_decoys(&self, request: Request<pb::ListDecoysRequest>) -> Answer<pb::ListDecoysResponse> {
        let call = self.enter(&request, Scope::Named(&request.get_ref().tenant)).await?;
        let decoys = self.vault.list_decoys(&call).await?.into_iter().map(wire_decoy).collect();
        Ok(Response::new(pb::ListDecoysResponse { decoys }))
    }
}
