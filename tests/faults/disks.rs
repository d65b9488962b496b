//! Disks that fill and files that vanish under the running program: T03, T27, and a keeper replica that is away.

use pb::audit_service_client::AuditServiceClient;
use pb::erasure_service_client::ErasureServiceClient;
use pb::record_service_client::RecordServiceClient;
use pii_vault::grpc::pb;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::net::*;
use crate::rounds;
use crate::server::{Key, Place, SmallDisk};

async fn put(channel: &Channel, key: &Key, id: &str, words: usize) -> Result<(), Status> {
    let values = vec![text_value(NAME, "long name ".repeat(words).trim()), text_value(11, "10.0.0.1")];
    let put = pb::PutFieldsRequest { subject: id.into(), values, context: for_purpose(SERVICE), ..Default::default() };
    RecordServiceClient::new(channel.clone()).put_fields(with(&key.text, put)).await.map(|_| ())
}

async fn get(channel: &Channel, key: &Key, id: &str) -> Result<usize, Status> {
    let get = pb::GetFieldsRequest { key: by_id(id), context: for_purpose(SERVICE), ..Default::default() };
    let got = RecordServiceClient::new(channel.clone()).get_fields(with(&key.text, get)).await?.into_inner();
    Ok(got.values.iter().filter(|v| v.kind.is_some()).count())
}

async fn erase(channel: &Channel, key: &Key, id: &str, wait_final: bool) -> Result<pb::Erasure, Status> {
    let erase = pb::EraseSubjectRequest { key: by_id(id), wait_final, ..Default::default() };
    let done = ErasureServiceClient::new(channel.clone()).erase_subject(with(&key.text, erase)).await?;
    Ok(done.into_inner().erasure.unwrap())
}

/// Entries of an action, both chains whole.
async fn noted(channel: &Channel, key: &Key, chain: pb::AuditChain, action: &str) -> u64 {
    let mut audit = AuditServiceClient::new(channel.clone());
    let verdict = audit.verify_audit(with(&key.text, pb::VerifyAuditRequest::default())).await.unwrap().into_inner();
    assert!(verdict.valid, "{verdict:?}");
    let mut list = pb::ListEntriesRequest {
        chain: chain as i32,
        actions: vec![action.into()],
        page_size: 1_000,
        ..Default::default()
    };
    let mut found = 0;
    loop {
        let page = audit.list_entries(with(&key.text, list.clone())).await.unwrap().into_inner();
        found += page.entries.iter().filter(|entry| entry.outcome() == pb::AuditOutcome::Ok).count() as u64;
        if page.next_page_token.is_empty() {
            return found;
        }
        list.page_token = page.next_page_token;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t03_a_full_data_disk_refuses_writes_and_goes_on_reading() {
    let dir = tempfile::tempdir().unwrap();
    // The read audit has a disk of its own, so that reads can go on.
    let disk = SmallDisk::mount(dir.path().join("data"), 12 << 10);
    let audit_disk = SmallDisk::mount(dir.path().join("data/read-audit"), 64 << 10);
    let place = Place::new(dir, 2).await;
    let keys = place.keys(1).await;
    let key = &keys[0];
    let (server, _) = place.serve().await;
    let channel = &server.channel;
    let (mut answered, mut erased, mut n) = (0, 0, 0u64);
    for round in 0..rounds(6, 200) as u64 {
        disk.fill(round * 7 % 13 * 4096);
        let mut stored = Vec::new();
        let refused = loop {
            n += 1;
            let id = format!("usr_{n}");
            match put(channel, key, &id, 8).await {
                Ok(()) => stored.push(id),
                Err(status) => break status,
            }
            assert!(stored.len() < 50_000, "the disk does not fill");
        };
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::ResourceExhausted, "DISK_FULL"), "{refused:?}");
        answered += stored.len() as u64;
        for id in stored.iter().take(20) {
            assert_eq!(get(channel, key, id).await.expect("reads go on"), 2, "{id}");
        }
        assert_eq!(get(channel, key, &format!("usr_{n}")).await.unwrap_err().code(), Code::NotFound);
        // An erasure may find room or not; what was answered holds.
        if let Some(id) = stored.first() {
            match erase(channel, key, id, true).await {
                Ok(done) if done.status == pb::ErasureStatus::Erased as i32 => {
                    erased += 1;
                    assert_eq!(reason(&get(channel, key, id).await.unwrap_err()), "SUBJECT_ERASED");
                }
                Ok(done) => assert_eq!(done.status, pb::ErasureStatus::Pending as i32),
                Err(status) => {
                    assert!(matches!(status.code(), Code::ResourceExhausted), "{status:?}");
                    let found = get(channel, key, id).await;
                    assert!(found.is_ok() || found.unwrap_err().code() == Code::FailedPrecondition);
                }
            }
        }
        disk.free();
        for id in stored.iter().skip(1) {
            erase(channel, key, id, true).await.expect("there is room again");
            erased += 1;
        }
    }
    assert_eq!(noted(channel, key, pb::AuditChain::Changes, "fields.put").await, answered);
    assert!(noted(channel, key, pb::AuditChain::Changes, "erase.erased").await >= erased);
    server.stop();
    assert_eq!(place.integrity(), "ok");
    drop((audit_disk, disk));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t27_reads_fail_when_their_entry_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let audit_disk = SmallDisk::mount(dir.path().join("data/read-audit"), 2 << 10);
    let place = Place::new(dir, 1).await;
    let keys = place.keys(1).await;
    let key = &keys[0];
    let (mut server, _) = place.serve().await;
    put(&server.channel, key, "usr_1", 1).await.expect("put");
    let (mut answered, mut size) = (0, 2 << 10);
    for round in 0..rounds(2, 20) {
        // Wordy reads fill the disk soon.
        let wordy = pb::BatchGetFieldsRequest {
            keys: vec![by_id("usr_1").unwrap(); 100],
            context: Some(pb::AccessContext { purpose_id: SERVICE, reason: "x".repeat(250), ..Default::default() }),
            ..Default::default()
        };
        let mut records = RecordServiceClient::new(server.channel.clone());
        let refused = loop {
            match records.batch_get_fields(with(&key.text, wordy.clone())).await {
                Ok(answer) => answered += answer.into_inner().outcomes.len() as u64,
                Err(status) => break status,
            }
            assert!(answered < 200_000, "the disk does not fill");
        };
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::Unavailable, "AUDIT_UNAVAILABLE"),
            "{refused:?}"
        );
        assert!(records.batch_get_fields(with(&key.text, wordy)).await.is_err(), "nothing is read without its entry");
        let ready = pii_vault::grpc::ops::probe(place.config.ops.address, "/readyz", std::time::Duration::from_secs(5));
        assert_eq!(ready.unwrap(), (503, "not ready: read audit\n".to_string()));
        // What a file holds after a failed write is not known: a restart reads it anew.
        size += 1 << 10;
        audit_disk.resize(size);
        assert!(get(&server.channel, key, "usr_1").await.is_err(), "round {round}: only a restart ends it");
        server.kill();
        server = place.serve().await.0;
        assert_eq!(get(&server.channel, key, "usr_1").await.expect("there is room again"), 2);
        answered += 1;
    }
    let channel = &server.channel;
    assert!(noted(channel, key, pb::AuditChain::Reads, "fields.get").await >= answered);

    // Its file removed while the server runs: it does not serve on.
    for entry in std::fs::read_dir(place.config.data_dir.join("read-audit")).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let refused = get(channel, key, "usr_1").await.expect_err("the audit's file is gone");
    assert_eq!(reason(&refused), "AUDIT_UNAVAILABLE", "{refused:?}");
    drop(server);
    drop(audit_disk);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erasure_waits_for_a_keeper_replica_that_is_away_and_ends_when_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let place = Place::new(dir, 2).await;
    let keys = place.keys(1).await;
    let key = &keys[0];
    let (server, _) = place.serve().await;
    for id in ["usr_1", "usr_2"] {
        put(&server.channel, key, id, 1).await.expect("put");
    }
    server.stop();
    // The disk of the second replica is not there at the next start.
    let (there, gone) = (&place.config.keeper.paths[1], place.dir.path().join("away"));
    std::fs::rename(there, &gone).unwrap();
    let (server, _) = place.serve().await;
    let channel = &server.channel;
    let pending = erase(channel, key, "usr_1", false).await.expect("accepted");
    assert_eq!(pending.status, pb::ErasureStatus::Pending as i32, "{pending:?}");
    assert!(pending.receipt.is_empty(), "nothing is signed before it is true");
    let refused = get(channel, key, "usr_1").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "access is refused from now on: {refused:?}");
    assert_eq!(get(channel, key, "usr_2").await.expect("others are served"), 2);
    put(channel, key, "usr_3", 1).await.expect("and written");
    // A crash changes nothing of it.
    server.kill();
    let (server, _) = place.serve().await;
    assert_eq!(get(&server.channel, key, "usr_1").await.unwrap_err().code(), Code::FailedPrecondition);
    server.stop();
    std::fs::rename(&gone, there).unwrap();
    let (server, _) = place.serve().await;
    let mut erasures = ErasureServiceClient::new(server.channel.clone());
    let ask = pb::GetErasureRequest { erasure: pending.erasure };
    let begun = std::time::Instant::now();
    let ended = loop {
        let now =
            erasures.get_erasure(with(&key.text, ask.clone())).await.expect("known").into_inner().erasure.unwrap();
        if now.status == pb::ErasureStatus::Erased as i32 {
            break now;
        }
        assert!(begun.elapsed() < std::time::Duration::from_secs(60), "{now:?}");
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    };
    assert!(!ended.receipt.is_empty());
    assert_eq!(reason(&get(&server.channel, key, "usr_1").await.unwrap_err()), "SUBJECT_ERASED");
    assert_eq!(get(&server.channel, key, "usr_2").await.expect("live"), 2);
}
