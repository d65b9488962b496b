//! Rotations of every kind under `kill -9` and on a full disk: each ends once, and whoever is looked for is found once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pb::key_service_client::KeyServiceClient;
use pb::operation_service_client::OperationServiceClient;
use pb::record_service_client::RecordServiceClient;
use pb::subject_service_client::SubjectServiceClient;
use pii_vault::clock::{Clock, DAY_MS, ManualClock, SystemClock};
use pii_vault::config::RootKekSource;
use pii_vault::grpc::pb;
use pii_vault::ids::*;
use pii_vault::receipt::rotation::{Kind, RotationRecord};
use pii_vault::server::Node;
use pii_vault::vault::rotation::OwnSecret;
use tonic::Code;
use tonic::transport::Channel;

use crate::net::*;
use crate::server::{Key, Place, SmallDisk};
use crate::{Dice, rounds};

const KINDS: [(pb::KeyKind, &str); 9] = [
    (pb::KeyKind::Data, "jina"),
    (pb::KeyKind::Root, ""),
    (pb::KeyKind::Tree, "jina"),
    (pb::KeyKind::Index, "jina"),
    (pb::KeyKind::Signing, ""),
    (pb::KeyKind::TenantRoot, "jina"),
    (pb::KeyKind::PasswordPepper, "jina"),
    (pb::KeyKind::AccessKeyPepper, ""),
    (pb::KeyKind::PageToken, ""),
];

async fn put(channel: &Channel, key: &Key, id: &str) {
    let values = vec![text_value(NAME, "Jane Roe"), text_value(EMAIL, &format!("{id}@example.com"))];
    let put = pb::PutFieldsRequest { subject: id.into(), values, context: for_purpose(SERVICE), ..Default::default() };
    RecordServiceClient::new(channel.clone()).put_fields(with(&key.text, put)).await.expect("put");
}

/// Who is found by the e-mail address of that person, and whose name is read.
async fn is_there_once(channel: &Channel, key: &Key, id: &str) {
    let find = pb::FindSubjectsRequest {
        term: Some(pb::Term { field_id: EMAIL, text: format!("{id}@example.com"), ..Default::default() }),
        context: for_purpose(SERVICE),
        ..Default::default()
    };
    let found = SubjectServiceClient::new(channel.clone()).find_subjects(with(&key.text, find)).await;
    let found: Vec<_> = found.expect("find").into_inner().subjects.into_iter().map(|one| one.subject).collect();
    assert_eq!(found, [id]);
    let get = pb::GetFieldsRequest { key: by_id(id), context: for_purpose(SERVICE), ..Default::default() };
    let got = RecordServiceClient::new(channel.clone()).get_fields(with(&key.text, get)).await.expect("read");
    assert!(got.into_inner().values.iter().any(|value| value.field_id == NAME && value.kind.is_some()), "{id}");
}

async fn rotate(channel: Channel, operator: String, kind: pb::KeyKind, tenant: &str) -> Option<String> {
    let ask = pb::RotateKeysRequest { kind: kind as i32, tenant: tenant.into(), ..Default::default() };
    match KeyServiceClient::new(channel).rotate_keys(with(&operator, ask)).await {
        Ok(answer) => Some(answer.into_inner().operation),
        // The server is gone, or the next root key is the present one until the configuration names another.
        Err(status) => {
            let gone = [Code::Unavailable, Code::Unknown, Code::Cancelled, Code::Internal];
            let may = [Code::FailedPrecondition, Code::Aborted, Code::ResourceExhausted];
            assert!(gone.contains(&status.code()) || may.contains(&status.code()), "{kind:?}: {status:?}");
            None
        }
    }
}

async fn state(channel: &Channel, operator: &str, operation: &str, tenant: &str) -> pb::OperationState {
    let get = pb::GetOperationRequest { operation: operation.into(), tenant: tenant.into() };
    let got = OperationServiceClient::new(channel.clone()).get_operation(with(operator, get)).await;
    got.expect("what was answered is there").into_inner().operation.unwrap().state()
}

/// Every record of the tenant, verified.
async fn records(node: &Node, tenant: TenantNo) -> Vec<RotationRecord> {
    let call = node.vault.job_call(node.vault.tenant(tenant).unwrap());
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = node.vault.list_rotations(&call, after, 100).await.expect("records");
        let keys = node.vault.receipt_keys();
        for one in &page.rows {
            all.push(RotationRecord::verify(&one.record, &keys).expect("verifies").record);
        }
        match page.rows.last() {
            Some(last) if page.more => after = Some((last.ended, last.operation)),
            _ => return all,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t01_a_kill_in_any_rotation_is_resumed_and_each_ends_once() {
    const PEOPLE: usize = 40;
    let rounds = rounds(10, 200);
    let mut place = Place::new(tempfile::tempdir().unwrap(), 2).await;
    let file = |place: &Place, n: usize| RootKekSource::File { path: place.path(&format!("root-{n}.key")).into() };
    place.config.root_kek_next = Some(file(&place, 1));
    let key = place.keys(1).await.remove(0);
    let mut dice = Dice(7);
    let mut asked: BTreeMap<String, (pb::KeyKind, &str)> = BTreeMap::new();
    let mut roots = 1;
    let (mut server, _) = place.serve().await;
    for n in 0..PEOPLE {
        put(&server.channel, &key, &format!("usr_{n}")).await;
    }
    for round in 0..rounds {
        // Each kind in its turn, and another one beside it.
        let beside = dice.below(KINDS.len() as u64) as usize;
        let calls = [round % KINDS.len(), beside].map(|kind| {
            let (kind, tenant) = KINDS[kind];
            let (channel, operator) = (server.channel.clone(), place.operator.clone());
            tokio::spawn(async move { (rotate(channel, operator, kind, tenant).await, kind, tenant) })
        });
        tokio::time::sleep(Duration::from_millis(dice.below(1_600))).await;
        server.kill();
        for call in calls {
            if let (Some(operation), kind, tenant) = call.await.unwrap() {
                asked.insert(operation, (kind, tenant));
            }
        }
        if round % 5 == 0 {
            assert_eq!(place.integrity(), "ok", "round {round}");
        }
        server = place.serve().await.0;
        for _ in 0..4 {
            is_there_once(&server.channel, &key, &format!("usr_{}", dice.below(PEOPLE as u64))).await;
        }
        let mut root_ended = false;
        for (operation, (kind, tenant)) in &asked {
            let now = state(&server.channel, &place.operator, operation, tenant).await;
            assert!(matches!(now, pb::OperationState::Running | pb::OperationState::Succeeded), "{kind:?}: {now:?}");
            root_ended |= *kind == pb::KeyKind::Root && now == pb::OperationState::Succeeded;
        }
        // The operator takes the next root key into the place of the first, and names another one.
        if root_ended {
            asked.retain(|_, (kind, _)| *kind != pb::KeyKind::Root);
            roots += 1;
            place.config.root_kek = place.config.root_kek_next.take();
            place.config.root_kek_next = Some(file(&place, roots));
            server.kill();
            server = place.serve().await.0;
        }
    }
    for n in 0..PEOPLE {
        is_there_once(&server.channel, &key, &format!("usr_{n}")).await;
    }
    server.stop();

    // What waits for time gets it, and an operator's key of the new pepper.
    let clock = Arc::new(ManualClock::new(SystemClock::new().now()));
    let node = Node::open(&place.config, clock.clone()).await.expect("open");
    node.vault.issue_first_key(Name::parse("name", "second-operator").unwrap()).await.expect("issue");
    let own = node.vault.local_call(TenantNo::VAULT).unwrap();
    let deadline = Some(clock.now().plus_ms(DAY_MS));
    node.vault.rotate_own_secret(&own, OwnSecret::AccessKeyPepper, deadline, None).await.expect("a deadline");
    for _ in 0..3 {
        clock.advance_ms(DAY_MS + 3_600_000);
        for no in [TenantNo::VAULT, place.tenant] {
            node.vault.run_due_work(no).await.expect("it goes on");
        }
    }
    let (mut ended, mut kinds, mut all) = (BTreeSet::new(), BTreeSet::new(), 0);
    for no in [TenantNo::VAULT, place.tenant] {
        let call = node.vault.local_call(no).unwrap();
        for operation in node.vault.list_operations(&call, None, 1_000).await.unwrap().rows {
            if operation.rotation.is_some() {
                assert!(operation.status.is_final(), "{operation:?}");
            }
        }
        for record in records(&node, no).await {
            assert!(ended.insert(record.operation), "two records of {:?}", record.operation);
            if record.kind == Kind::Data {
                assert_eq!(record.moved, PEOPLE as u64, "each person once");
            }
            kinds.insert(record.kind.name());
            all += 1;
        }
    }
    for (operation, (kind, _)) in &asked {
        assert!(ended.iter().any(|id| id.to_string() == *operation), "{kind:?} has no record");
    }
    drop(own);
    node.close().await;
    println!("{rounds} kills: {} rotations answered, {all} ended, of {kinds:?}", asked.len());
    assert!(kinds.len() >= if rounds >= 200 { 9 } else { 7 }, "{kinds:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t03_a_disk_that_fills_in_a_rotation_loses_nothing_and_the_rotation_ends_later() {
    const PEOPLE: usize = 60;
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(dir.path().join("data"), 16 << 10);
    // Reads write their audit, and have room for it.
    let audit_disk = SmallDisk::mount(dir.path().join("data/read-audit"), 64 << 10);
    let place = Place::new(dir, 2).await;
    let key = place.keys(1).await.remove(0);
    let (server, _) = place.serve().await;
    for n in 0..PEOPLE {
        put(&server.channel, &key, &format!("usr_{n}")).await;
    }
    let mut dice = Dice(3);
    for round in 0..rounds(4, 100) {
        let (kind, tenant) =
            [(pb::KeyKind::Data, "jina"), (pb::KeyKind::Tree, "jina"), (pb::KeyKind::TenantRoot, "jina"), KINDS[4]]
                [round % 4];
        // Full before it begins, or soon after.
        let early = dice.below(2) == 0;
        if early {
            disk.fill(dice.below(20) * 4_096);
        }
        let mut operation = rotate(server.channel.clone(), place.operator.clone(), kind, tenant).await;
        if !early {
            tokio::time::sleep(Duration::from_millis(dice.below(900))).await;
            disk.fill(dice.below(20) * 4_096);
        }
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        for _ in 0..5 {
            is_there_once(&server.channel, &key, &format!("usr_{}", dice.below(PEOPLE as u64))).await;
        }
        disk.free();
        if operation.is_none() {
            operation = rotate(server.channel.clone(), place.operator.clone(), kind, tenant).await;
        }
        let operation = operation.expect("there is room again");
        let begun = Instant::now();
        while state(&server.channel, &place.operator, &operation, tenant).await != pb::OperationState::Succeeded {
            assert!(begun.elapsed() < Duration::from_secs(60), "round {round}: {kind:?} does not end\n{}", place.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    for n in 0..PEOPLE {
        is_there_once(&server.channel, &key, &format!("usr_{n}")).await;
    }
    server.stop();
    assert_eq!(place.integrity(), "ok");
    drop((audit_disk, disk));
}
