//! T02 over the network: `kill -9` at random moments of a backup. What is left under an archive's name is whole.

use std::time::Duration;

use pb::backup_service_client::BackupServiceClient;
use pb::operation_service_client::OperationServiceClient;
use pb::record_service_client::RecordServiceClient;
use pii_vault::grpc::pb;
use pii_vault::recovery::catalogue;
use pii_vault::recovery::verify::check_archive;

use crate::net::*;
use crate::server::Place;
use crate::{Dice, rounds};

#[tokio::test(flavor = "multi_thread")]
async fn t02_a_backup_that_is_killed_leaves_a_whole_archive_or_none() {
    let mut place = Place::new(tempfile::tempdir().unwrap(), 1).await;
    (place.config.backup.nightly, place.config.backup.max_mib_s) = (false, 1);
    let key = place.keys(1).await.remove(0);
    let dir = place.config.backups_dir();
    let mut dice = Dice(7);
    let (mut killed_within, mut last) = (0, String::new());
    for round in 0..rounds(4, 100) {
        let (server, _) = place.serve().await;
        let mut operations = OperationServiceClient::new(server.channel.clone());
        if !last.is_empty() {
            let request = pb::GetOperationRequest { operation: last.clone(), ..Default::default() };
            let ended = operations.get_operation(with(&place.operator, request)).await.unwrap().into_inner();
            let state = ended.operation.unwrap().state();
            assert!(matches!(state, pb::OperationState::Failed | pb::OperationState::Succeeded), "{state:?}");
        }
        let mut records = RecordServiceClient::new(server.channel.clone());
        for n in 0..40 {
            let request = pb::PutFieldsRequest {
                subject: format!("usr_{round}_{n}"),
                values: vec![text_value(NAME, "Asha")],
                context: for_purpose(SERVICE),
                ..Default::default()
            };
            records.put_fields(with(&key.text, request)).await.expect("put");
        }
        let mut service = BackupServiceClient::new(server.channel.clone());
        let request = pb::CreateBackupRequest { part: pb::BackupPart::Data as i32, ..Default::default() };
        last = service.create_backup(with(&place.operator, request)).await.expect("begin").into_inner().operation;
        tokio::time::sleep(Duration::from_millis(dice.below(700))).await;
        server.kill();
        let partial = std::fs::read_dir(&dir).map_or(0, |names| {
            names.filter(|name| name.as_ref().unwrap().file_name().to_string_lossy().ends_with(".partial")).count()
        });
        killed_within += partial;
        for archive in catalogue::list(&dir).unwrap() {
            check_archive(&archive.path, None, &mut |_| true).expect("what has an archive's name is whole");
        }
    }
    assert!(killed_within > 0, "no kill came in time: it proves nothing");
    place.config.backup.max_mib_s = 0;
    let (server, _) = place.serve().await;
    let mut service = BackupServiceClient::new(server.channel.clone());
    let request = pb::CreateBackupRequest { part: pb::BackupPart::Data as i32, ..Default::default() };
    let operation = service.create_backup(with(&place.operator, request)).await.expect("begin").into_inner().operation;
    let mut operations = OperationServiceClient::new(server.channel.clone());
    let watch = pb::WatchOperationRequest { operation, ..Default::default() };
    let mut stream = operations.watch_operation(with(&place.operator, watch)).await.expect("watch").into_inner();
    let mut ended = pb::OperationState::Unspecified;
    while let Some(answer) = stream.message().await.expect("progress") {
        ended = answer.operation.unwrap().state();
    }
    assert_eq!(ended, pb::OperationState::Succeeded);
    let names: Vec<String> =
        std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.iter().all(|name| !name.ends_with(".partial")), "{names:?}");
    server.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rewrite_of_the_key_archive_that_is_killed_leaves_one_that_opens_everyone() {
    let mut place = Place::new(tempfile::tempdir().unwrap(), 1).await;
    place.config.backup.nightly = false;
    let key = place.keys(1).await.remove(0);
    let (server, _) = place.serve().await;
    crate::lost::put(&server.channel, &key, 0..200).await;
    crate::lost::nightly(&server.channel, &place.operator).await;
    server.stop();
    let (keys, mut dice, mut within) = (place.config.backups_dir().join("keys"), Dice(11), 0);
    for _ in 0..rounds(6, 100) {
        let (server, _) = place.serve().await;
        let mut service = BackupServiceClient::new(server.channel.clone());
        let request = pb::CreateBackupRequest { part: pb::BackupPart::Keys as i32, ..Default::default() };
        service.create_backup(with(&place.operator, request)).await.expect("begin");
        tokio::time::sleep(Duration::from_micros(dice.below(30_000))).await;
        server.kill();
        let mut names = std::fs::read_dir(&keys).unwrap().map(|entry| entry.unwrap().file_name());
        within += u32::from(names.any(|name| name.to_string_lossy().ends_with(".new")));
        // What lies there opens everyone of the night, without keeper and root key.
        let told = place.program(&["drill", "--recovery-key", &place.path("recovery.key")]);
        assert!(told.contains("Everyone living comes back"), "{told}");
    }
    println!("{within} killed in the middle of a file");
    let (server, _) = place.serve().await;
    crate::lost::check(&server.channel, &key, 200, |_| true).await;
    server.stop();
}
