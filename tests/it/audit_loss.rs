//! The read audit was removed or replaced while the server was down: seen at start, and accepted only by who has the machine.

use std::path::Path;

use pii_vault::clock::DAY_MS;
use pii_vault::grpc::pb;
use pii_vault::grpc::pb::audit_service_client::AuditServiceClient;
use pii_vault::grpc::pb::erasure_service_client::ErasureServiceClient;
use pii_vault::server::{Node, NodeError};
use pii_vault::storage::readlog::ReadLogError;
use pii_vault::vault::read::Select;

use crate::erase::{key, person};
use crate::harness::*;
use crate::net::*;

/// A person read ten times, and a checkpoint over that.
async fn read_and_checkpoint(t: &TestVault) {
    let tenant = t.tenant("jina-connect", JINA).await;
    let call = t.call(tenant);
    person(t, &call, "usr_1").await;
    for _ in 0..10 {
        let (service, select) = (purpose(&call, "service"), Select { partial: true, ..Select::default() });
        t.node.vault.get_fields(&call, &service, &key("usr_1"), &select).await.expect("read");
    }
    t.node.vault.make_checkpoint(t.now()).await.expect("checkpoint");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn t28_a_read_audit_without_its_end_is_seen_at_start_until_that_is_accepted() {
    let t = TestVault::new().await;
    let audit = t.config.data_dir.join("read-audit");
    assert!(audit.is_dir(), "where the read audit lies");
    let early = t.dir.path().join("early");
    let t = t.restart().await;
    copy(&audit, &early);
    read_and_checkpoint(&t).await;
    let TestVault { dir: _dir, config, clock, node, .. } = t;
    node.close().await;

    for replaced in [false, true] {
        std::fs::remove_dir_all(&audit).unwrap();
        if replaced {
            copy(&early, &audit);
        }
        let refused = Node::open(&config, clock.clone()).await.err().expect("the end is missing");
        assert!(matches!(refused, NodeError::ReadLog(ReadLogError::Truncated { .. })), "{refused}");
    }
    let node = Node::open_accepting_loss(&config, clock.clone()).await.expect("accepted");
    node.close().await;
    let node = Node::open(&config, clock.clone()).await.expect("accepted once");
    let call = node.vault.local_call(pii_vault::ids::TenantNo::VAULT).unwrap();
    let query = pii_vault::vault::audit_read::EntryQuery {
        actions: vec![pii_vault::audit::Action::VerifyAudit],
        ..Default::default()
    };
    let page = node.vault.list_entries(&call, pii_vault::audit::Chain::Change, query, 0, 100).await.expect("entries");
    let outcomes: Vec<_> = page.entries.iter().map(|(_, entry)| entry.outcome).collect();
    assert_eq!(outcomes, [pii_vault::audit::Outcome::DataLoss], "noted for good, once");
    node.close().await;
    // Where nothing is missing there is nothing to accept.
    let node = Node::open_accepting_loss(&config, clock).await.expect("open");
    let call = node.vault.local_call(pii_vault::ids::TenantNo::VAULT).unwrap();
    let query = pii_vault::vault::audit_read::EntryQuery {
        actions: vec![pii_vault::audit::Action::VerifyAudit],
        ..Default::default()
    };
    let page = node.vault.list_entries(&call, pii_vault::audit::Chain::Change, query, 0, 100).await.expect("entries");
    assert_eq!(page.entries.len(), 1);
    node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_checkpoint_of_each_day_is_kept_and_verifies_under_the_published_keys() {
    let running = Running::new().await;
    let t = &running.test;
    read_and_checkpoint(t).await;
    let first_day = t.now();
    t.clock.advance_ms(DAY_MS);
    t.node.vault.make_checkpoint(t.now()).await.expect("checkpoint");
    let operator = running.operator_key("root").await;
    let mut audit = AuditServiceClient::new(running.channel.clone());
    let mut erasures = ErasureServiceClient::new(running.channel.clone());
    let keys = erasures.get_receipt_keys(with(&operator, pb::GetReceiptKeysRequest::default())).await.expect("keys");
    let keys: Vec<[u8; 32]> =
        keys.into_inner().keys.iter().map(|one| one.public_key.as_ref().try_into().unwrap()).collect();
    for at in [first_day, t.now()] {
        let time = Some(prost_types::Timestamp { seconds: at.0 / 1_000, nanos: 0 });
        let ask = pb::GetCheckpointRequest { time, ..Default::default() };
        let answer = audit.get_checkpoint(with(&operator, ask)).await.expect("kept").into_inner();
        let checkpoint = pii_vault::audit::Checkpoint::from_json(&answer.checkpoint, &keys).expect("signed");
        let made = answer.checkpoint_time.unwrap().seconds * 1_000;
        assert_eq!(made / DAY_MS, at.0 / DAY_MS);
        assert!(!checkpoint.heads().is_empty());
    }
    let time = Some(prost_types::Timestamp { seconds: (first_day.0 - 5 * DAY_MS) / 1_000, nanos: 0 });
    let ask = pb::GetCheckpointRequest { time, ..Default::default() };
    assert_eq!(reason(&audit.get_checkpoint(with(&operator, ask)).await.unwrap_err()), "NOT_FOUND");
}
