//! Segments of the read audit removed by an operator with another's word: what may go, who agrees, and what is proven after.

use pii_vault::audit::{Chain, ChainHead, Checkpoint, HeadProof, goes_on_from};
use pii_vault::clock::{DAY_MS, Timestamp};
use pii_vault::grpc::pb;
use pii_vault::grpc::pb::access_service_client::AccessServiceClient;
use pii_vault::grpc::pb::audit_service_client::AuditServiceClient;
use pii_vault::grpc::pb::erasure_service_client::ErasureServiceClient;
use pii_vault::grpc::pb::record_service_client::RecordServiceClient;
use pii_vault::ids::TenantNo;
use tonic::{Code, Status};

use crate::anchors::head_of;
use crate::company::seconds;
use crate::harness::{JINA, START, TestVault};
use crate::net::*;

/// Batches of reads that fill more than two segments of 1 MiB.
const BATCHES: usize = 8;

fn batch() -> pb::BatchGetFieldsRequest {
    let reason = "r".repeat(256);
    pb::BatchGetFieldsRequest {
        keys: vec![by_id("ana").unwrap(); 1_000],
        select: Some(pb::Selector { field_ids: vec![NAME], ..Default::default() }),
        context: Some(pb::AccessContext {
            purpose_id: SERVICE,
            reference: "r".repeat(100),
            reason,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn prune(before: i64, approval: &str, validate_only: bool) -> pb::PruneAuditRequest {
    pb::PruneAuditRequest { before_time: seconds(Timestamp(before)), approval: approval.into(), validate_only }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pruning_takes_two_operators_and_leaves_what_can_be_proven() {
    let test = TestVault::with(|config| {
        config.audit.segment_mib = 1;
        config.audit.retention_days = 30;
        config.audit.automatic_prune = false;
    });
    let running = Running::over(test.await).await;
    let tenant = running.test.tenant("alpha", JINA).await;
    let key = running.key(tenant, "app").await;
    let (one, two) = (running.operator_key("one").await, running.operator_key("two").await);
    let channel = running.channel.clone();
    let mut records = RecordServiceClient::new(channel.clone());
    let mut audit = AuditServiceClient::new(channel.clone());
    let mut access = AccessServiceClient::new(channel.clone());
    let mut erasures = ErasureServiceClient::new(channel);
    for subject in ["ana", "bo"] {
        let (values, context) = (vec![text_value(NAME, subject)], for_purpose(SERVICE));
        let put = pb::PutFieldsRequest { subject: subject.into(), values, context, ..Default::default() };
        records.put_fields(with(&key, put)).await.expect("put");
    }
    let erase = pb::EraseSubjectRequest { key: by_id("bo"), wait_final: true, ..Default::default() };
    let erasure = erasures.erase_subject(with(&key, erase)).await.expect("erase").into_inner().erasure.unwrap();
    for _ in 0..BATCHES {
        records.batch_get_fields(with(&key, batch())).await.expect("read");
    }
    let vault = running.test.node.vault.clone();
    let anchored = vault.make_checkpoint(running.test.now()).await.expect("checkpoint");
    let head = |chain| head_of(&anchored, tenant, chain);
    running.test.clock.advance_ms(DAY_MS);
    records.batch_get_fields(with(&key, batch())).await.expect("read");

    // Within the retention nothing goes, whoever agrees.
    let soon = START.0 + DAY_MS / 2;
    let early: Status = audit.prune_audit(with(&one, prune(soon, "", true))).await.unwrap_err();
    assert_eq!((early.code(), reason(&early).as_str()), (Code::InvalidArgument, "FIELD_INVALID"));
    running.test.clock.advance_ms(31 * DAY_MS);
    // The clock alone removes nothing, as it was configured.
    let jobs = running.test.config.jobs_options();
    let run = async |job| pii_vault::jobs::run_once(job, &vault, &running.test.node.backups, &jobs, 1_000).await;
    run(pii_vault::jobs::Job::Prune).await.expect("job");
    let dry = audit.prune_audit(with(&one, prune(soon, "", true))).await.expect("tell").into_inner();
    assert!(dry.segment_count >= 2 && dry.checkpoint.is_empty(), "{dry:?}");

    // Not by a tenant, not alone, not with one's own word, not for another time.
    assert_eq!(reason(&audit.prune_audit(with(&key, prune(soon, "", true))).await.unwrap_err()), "NOT_PERMITTED");
    let alone = audit.prune_audit(with(&one, prune(soon, "", false))).await.unwrap_err();
    assert_eq!(reason(&alone), "APPROVAL_NEEDED");
    let reference = format!("prune the read audit before {}", Timestamp(soon).rfc3339());
    let ask = |reference: &str| pb::RequestApprovalRequest {
        grant: Some(pb::Grant { verbs: vec![pb::Verb::Audit as i32], ..Default::default() }),
        reference: reference.into(),
        ..Default::default()
    };
    let mut granted = Vec::new();
    for reference in [reference.as_str(), "prune the read audit before 2020-01-01T00:00:00.000Z"] {
        let asked = access.request_approval(with(&one, ask(reference))).await.expect("ask").into_inner();
        let name = asked.approval.unwrap().approval;
        let unheard = audit.prune_audit(with(&one, prune(soon, &name, false))).await.unwrap_err();
        assert_eq!(reason(&unheard), "APPROVAL_NEEDED", "nobody agreed");
        let yes = pb::ApproveRequest { approval: name.clone(), ..Default::default() };
        assert!(access.approve(with(&one, yes.clone())).await.is_err(), "not by who asked");
        access.approve(with(&two, yes)).await.expect("by another");
        granted.push(name);
    }
    for (who, name) in [(&one, &granted[1]), (&two, &granted[0])] {
        let refused = audit.prune_audit(with(who, prune(soon, name, false))).await.unwrap_err();
        assert_eq!(reason(&refused), "APPROVAL_NEEDED");
    }
    let verify = |against: Vec<pb::AuditHead>| pb::VerifyAuditRequest { against, ..Default::default() };
    let whole = audit.verify_audit(with(&key, verify(vec![]))).await.expect("verify").into_inner();
    assert!(whole.valid && whole.chains.iter().all(|chain| chain.first_position == 1), "nothing went");
    let receipt = pb::GetReceiptRequest { erasure: erasure.erasure.clone() };
    let before = erasures.get_receipt(with(&key, receipt.clone())).await.expect("receipt").into_inner();

    let done = audit.prune_audit(with(&one, prune(soon, &granted[0], false))).await.expect("prune").into_inner();
    assert_eq!(done.segment_count, dry.segment_count);
    assert_eq!(
        reason(&audit.prune_audit(with(&one, prune(soon, &granted[0], false))).await.unwrap_err()),
        "APPROVAL_NEEDED"
    );
    // What the checkpoint says covers what went, and the rest goes on from it.
    let public = running.test.node.keyring.signing().public();
    let covering = Checkpoint::from_json(&done.checkpoint, &[public]).expect("signed");
    let reads = covering.head(tenant, Chain::Read).expect("its head");
    let against = vec![head(Chain::Read), head(Chain::Change), head_of(&covering, tenant, Chain::Read)];
    let checked = audit.verify_audit(with(&key, verify(against.clone()))).await.expect("verify").into_inner();
    assert!(checked.valid, "{checked:?}");
    let kept = &checked.chains[1];
    assert!(kept.first_position > 1 && kept.first_position <= reads.seq + 1, "{kept:?}");
    assert_eq!(kept.compared + kept.pruned, 2);
    assert!(kept.compared >= 1, "the covering head is compared: {kept:?}");
    assert_eq!((checked.chains[0].compared, checked.chains[0].first_position), (1, 1), "changes are kept");
    // And it is proven, without the server's word.
    for (chain, kept) in [(Chain::Change, vec![&anchored]), (Chain::Read, vec![&anchored, &covering])] {
        let named = |one: &&pb::ChainExtension| one.chain == head(chain).chain && one.tenant_number == tenant.0;
        let answered = checked.extensions.iter().find(named).expect("it is answered for");
        let present = HeadProof::from_json(&answered.present, &[public]).expect("signed");
        let hash = |bytes: &bytes::Bytes| <[u8; 32]>::try_from(bytes.as_ref()).expect("a hash");
        let steps = answered.steps.iter().map(|step| step.found.then(|| step.hashes.iter().map(hash).collect()));
        let of_chain = |one: &&ChainHead| (one.tenant, one.chain) == (tenant, chain);
        let kept: Vec<ChainHead> = kept.iter().map(|one| *one.heads().iter().find(of_chain).expect("a head")).collect();
        let goes_on = goes_on_from(&kept, &present, &steps.collect::<Vec<_>>());
        assert_eq!(goes_on.last(), Some(&true), "{chain:?}: {answered:?}");
    }
    let mut forged = against;
    forged[2].hash = vec![7; 32].into();
    let refused = audit.verify_audit(with(&key, verify(forged))).await.expect("verify").into_inner();
    assert!(!refused.valid, "another history");
    let after = erasures.get_receipt(with(&key, receipt)).await.expect("receipt").into_inner();
    assert_eq!(before, after, "receipts do not hang on the audit");

    // Each word is an entry of its own, by who said it.
    let list = pb::ListEntriesRequest { page_size: 1_000, ..Default::default() };
    let entries = audit.list_entries(with(&one, list)).await.expect("list").into_inner().entries;
    let of = |action: &str| -> Vec<(u64, &str)> {
        let mine = entries.iter().filter(|entry| entry.action == action && entry.object == granted[0]);
        mine.map(|entry| (entry.actor_id, entry.action.as_str())).collect()
    };
    let (asked, agreed) = (of("approval.requested"), of("approval.granted"));
    assert_eq!((asked.len(), agreed.len()), (1, 1));
    assert_ne!(asked[0].0, agreed[0].0);
    assert_eq!(of("approval.used"), [(asked[0].0, "approval.used")]);
    assert_eq!(of("audit.pruned"), [(asked[0].0, "audit.pruned")]);

    drop(vault);
    let test = running.stop().await.restart().await;
    let call = test.node.vault.local_call(TenantNo::VAULT).unwrap();
    let all = test.node.vault.verify_audit(&call, anchored.heads()).await.expect("verify");
    assert!(all.iter().all(|verdict| verdict.bad.is_none()), "{all:?}");
}
