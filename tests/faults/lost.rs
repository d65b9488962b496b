//! What a vault is for, and what it is feared for: the machine is lost, and last night's folder of backups and the recovery
//! key bring everyone living back, and nobody who was erased.

use std::path::Path;
use std::time::Duration;

use pb::backup_service_client::BackupServiceClient;
use pb::erasure_service_client::ErasureServiceClient;
use pb::operation_service_client::OperationServiceClient;
use pb::record_service_client::RecordServiceClient;
use pb::subject_service_client::SubjectServiceClient;
use pii_vault::grpc::pb;
use serde_json::Value as Json;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::net::*;
use crate::server::{Key, Place};
use crate::{Dice, rounds};

const IP: u32 = 11;

pub fn person(n: usize) -> String {
    format!("usr_{n}")
}

/// What the person's name is.
fn name_of(n: usize) -> String {
    format!("Name of {n}")
}

pub async fn put(channel: &Channel, key: &Key, people: impl Iterator<Item = usize>) {
    let mut records = RecordServiceClient::new(channel.clone());
    for n in people {
        let email = format!("{n}@example.com");
        let values = vec![text_value(NAME, &name_of(n)), text_value(EMAIL, &email), text_value(IP, "10.0.0.1")];
        let put =
            pb::PutFieldsRequest { subject: person(n), values, context: for_purpose(SERVICE), ..Default::default() };
        records.put_fields(with(&key.text, put)).await.expect("put");
    }
}

/// Erases, and answers the receipts.
pub async fn erase(channel: &Channel, key: &Key, people: impl Iterator<Item = usize>) -> Vec<Vec<u8>> {
    let mut erasures = ErasureServiceClient::new(channel.clone());
    let mut receipts = Vec::new();
    for n in people {
        let erase = pb::EraseSubjectRequest { key: by_id(&person(n)), wait_final: true, ..Default::default() };
        let done = erasures.erase_subject(with(&key.text, erase)).await.expect("erase").into_inner().erasure.unwrap();
        assert_eq!(done.status(), pb::ErasureStatus::Erased);
        assert!(done.archives_expire_time.is_some(), "the key archive held its keys");
        receipts.push(done.receipt.to_vec());
    }
    receipts
}

pub async fn name(channel: &Channel, key: &Key, n: usize) -> Result<String, Status> {
    let select = Some(pb::Selector { field_ids: vec![NAME], ..Default::default() });
    let get =
        pb::GetFieldsRequest { key: by_id(&person(n)), context: for_purpose(SERVICE), select, ..Default::default() };
    let got = RecordServiceClient::new(channel.clone()).get_fields(with(&key.text, get)).await?.into_inner();
    match got.values.into_iter().next().and_then(|value| value.kind) {
        Some(pb::value::Kind::Text(text)) => Ok(text),
        other => panic!("{other:?}"),
    }
}

/// Whom the index finds under the person's address.
async fn found(channel: &Channel, key: &Key, n: usize) -> Vec<String> {
    let find = pb::FindSubjectsRequest {
        term: Some(pb::Term { field_id: EMAIL, text: format!("{n}@example.com"), ..Default::default() }),
        context: for_purpose(SERVICE),
        ..Default::default()
    };
    let found = SubjectServiceClient::new(channel.clone()).find_subjects(with(&key.text, find)).await.expect("find");
    found.into_inner().subjects.into_iter().map(|found| found.subject).collect()
}

/// Everyone `lives` opens and is found, everyone else does not open and is not found.
pub async fn check(channel: &Channel, key: &Key, people: usize, lives: impl Fn(usize) -> bool) {
    for n in 0..people {
        let got = name(channel, key, n).await;
        let index = found(channel, key, n).await;
        if lives(n) {
            assert_eq!(got.unwrap_or_else(|e| panic!("{n} lives: {e:?}")), name_of(n));
            assert_eq!(index, [person(n)]);
        } else {
            let refused = got.expect_err("an erased person opens");
            assert_eq!((refused.code(), reason(&refused).as_str()), (Code::NotFound, "SUBJECT_ERASED"), "{n}");
            assert!(index.is_empty(), "{n} is found: {index:?}");
        }
    }
}

/// What the server does each night.
pub async fn nightly(channel: &Channel, operator: &str) {
    let mut service = BackupServiceClient::new(channel.clone());
    let begun = service.create_backup(with(operator, pb::CreateBackupRequest::default())).await.expect("backup");
    let mut operations = OperationServiceClient::new(channel.clone());
    let watch = pb::WatchOperationRequest { operation: begun.into_inner().operation, ..Default::default() };
    let mut stream = operations.watch_operation(with(operator, watch)).await.expect("watch").into_inner();
    let mut last = None;
    while let Some(answer) = stream.message().await.expect("progress") {
        last = Some(answer.operation.unwrap().state());
    }
    assert_eq!(last, Some(pb::OperationState::Succeeded));
}

pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to)
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// A vault whose nights are made by the test alone.
async fn new_place(replicas: usize) -> Place {
    let mut place = Place::new(tempfile::tempdir().unwrap(), replicas).await;
    place.config.backup.nightly = false;
    place
}

/// The machine is gone: data, keeper and root key.
fn lose(place: &Place) {
    std::fs::remove_dir_all(&place.config.data_dir).unwrap();
    place.config.keeper.paths.iter().for_each(|path| std::fs::remove_dir_all(path).unwrap());
    std::fs::remove_dir_all(place.dir.path().join("secrets")).unwrap();
}

fn report(told: &str) -> Json {
    let from = told.find('{').unwrap_or_else(|| panic!("no document: {told}"));
    serde_json::from_str(&told[from..=told.rfind('}').unwrap()]).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t08_last_night_and_the_recovery_key_bring_back_all_the_living_and_none_of_the_erased() {
    const PEOPLE: usize = 150;
    let place = new_place(2).await;
    let key = place.keys(1).await.remove(0);
    let (server, _) = place.serve().await;
    put(&server.channel, &key, 0..PEOPLE).await;
    erase(&server.channel, &key, (0..PEOPLE).filter(|n| n % 5 == 0)).await;
    nightly(&server.channel, &place.operator).await;
    // The day goes on: more are erased, and their receipts are kept where receipts are kept.
    let later = erase(&server.channel, &key, (0..PEOPLE).filter(|n| n % 5 == 1)).await;
    let lives = |n: usize| n % 5 > 1;
    check(&server.channel, &key, PEOPLE, lives).await;
    server.stop();
    let receipts = place.dir.path().join("receipts");
    std::fs::create_dir(&receipts).unwrap();
    for (n, receipt) in later.iter().enumerate() {
        std::fs::write(receipts.join(format!("{n}.json")), receipt).unwrap();
    }
    let night = place.dir.path().join("night");
    copy(&place.config.backups_dir(), &night);
    lose(&place);

    let (from, recovery, receipts) = (place.path("night"), place.path("recovery.key"), place.path("receipts"));
    let restore = ["restore", "--from", &from, "--recovery-key", &recovery, "--receipts", &receipts];
    // First only looking: it counts, and leaves nothing.
    let looked = report(&place.program(&[&["--json"], &restore[..], &["--dry-run"]].concat()));
    let jina = looked["tenants"].as_array().unwrap().iter().find(|t| t["tenant"] == "jina").unwrap().clone();
    let again = later.len() as u64 * 2;
    assert_eq!((jina["erased_again"].as_u64(), jina["lost"].as_u64()), (Some(again), Some(0)), "{looked}");
    assert_eq!((looked["receipts_new"].as_u64(), looked["tail_known"].as_bool()), (Some(again), Some(false)));
    assert!(
        !place.config.data_dir.join("vault.db").exists() && !place.config.keeper.paths[0].join("roots.keeper").exists()
    );

    let did = report(&place.program(&[&["--json"], &restore[..]].concat()));
    assert_eq!(did["tenants"], looked["tenants"], "it did what it said");
    // Nobody can know what was decided after that night: all access keys wait for an operator's word.
    let said = place.program(&["recovery", "confirm"]);
    assert!(said.contains("access keys work again"), "{said}");
    let (server, _) = place.serve().await;
    check(&server.channel, &key, PEOPLE, lives).await;

    // And the vault that came back is one like any other: it goes on, it is backed up, and it is lost again.
    put(&server.channel, &key, PEOPLE..PEOPLE + 10).await;
    erase(&server.channel, &key, 2..3).await;
    nightly(&server.channel, &place.operator).await;
    let lives = |n: usize| n >= PEOPLE || n % 5 > 1 && n != 2;
    check(&server.channel, &key, PEOPLE + 10, lives).await;
    server.stop();
    std::fs::remove_dir_all(&night).unwrap();
    copy(&place.config.backups_dir(), &night);
    lose(&place);
    // It signs with a new key since: the one that was published then.
    let public = did["public_key"].as_str().unwrap();
    let entries = report(&place.program(&[
        "--json",
        "restore",
        "--from",
        &from,
        "--recovery-key",
        &recovery,
        "--public-key",
        public,
        "--dry-run",
    ]));
    let through = entries["ledger_entries"].to_string();
    place.program(&[
        "restore",
        "--from",
        &from,
        "--recovery-key",
        &recovery,
        "--public-key",
        public,
        "--ledger-through",
        &through,
    ]);
    let (server, _) = place.serve().await;
    check(&server.channel, &key, PEOPLE + 10, lives).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t08_a_restore_that_is_killed_anywhere_begins_again_and_ends_well() {
    const PEOPLE: usize = 40;
    let place = new_place(2).await;
    let key = place.keys(1).await.remove(0);
    let (server, _) = place.serve().await;
    put(&server.channel, &key, 0..PEOPLE).await;
    nightly(&server.channel, &place.operator).await;
    erase(&server.channel, &key, 0..10).await;
    server.stop();
    let night = place.dir.path().join("night");
    copy(&place.config.backups_dir(), &night);
    let (from, recovery) = (place.path("night"), place.path("recovery.key"));
    let mut dice = Dice(4);
    let (mut killed, mut ended) = (0, 0);
    for _ in 0..rounds(8, 200) {
        // The keeper is there: the ledger behind its anchor says what was erased since.
        let mut restore = place.command(&["restore", "--from", &from, "--recovery-key", &recovery]);
        let mut process = restore.stderr(std::process::Stdio::null()).spawn().expect("the program");
        tokio::time::sleep(Duration::from_millis(dice.below(1_500))).await;
        match process.try_wait().unwrap() {
            Some(status) => {
                assert!(status.success(), "{status}");
                ended += 1;
            }
            None => {
                process.kill().unwrap();
                process.wait().unwrap();
                killed += 1;
            }
        }
        // Whatever it was: the vault opens, as it was or restored.
        place.open().await.close().await;
    }
    println!("{killed} killed, {ended} ended");
    place.program(&["restore", "--from", &from, "--recovery-key", &recovery]);
    let (server, _) = place.serve().await;
    check(&server.channel, &key, PEOPLE, |n| n >= 10).await;
}

const PAGE: &str = include_str!("../../docs/RECOVERY.md");

/// The commands of a section of the page that run on the vault's machine, as they are written.
fn commands(section: &str) -> Vec<&'static str> {
    let (_, rest) = PAGE.split_once(&format!("\n## {section}\n")).unwrap_or_else(|| panic!("no section {section:?}"));
    let text = rest.split("\n## ").next().unwrap();
    let lines = text.lines().filter_map(|line| line.strip_prefix("$ pii-vault "));
    let found: Vec<&str> = lines.filter(|line| line.contains("--config pii-vault.toml")).collect();
    assert!(!found.is_empty(), "no command in {section:?}");
    found
}

/// Fourteen people: the first is erased before the night, the second after it; the last two come after it.
async fn a_day(place: &Place, key: &Key) {
    let (server, _) = place.serve().await;
    put(&server.channel, key, 0..12).await;
    erase(&server.channel, key, 0..1).await;
    nightly(&server.channel, &place.operator).await;
    copy(&place.config.backups_dir(), &place.dir.path().join("copy-of-backups"));
    let receipts = erase(&server.channel, key, 1..2).await;
    std::fs::create_dir(place.path("receipts")).unwrap();
    std::fs::write(place.path("receipts/1.json"), &receipts[0]).unwrap();
    put(&server.channel, key, 12..14).await;
    server.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_page_of_the_recovery_manual_works_as_it_is_written() {
    let remove = |path: &Path| std::fs::remove_dir_all(path).unwrap();
    // What happens, and how many of the fourteen were there in what comes back.
    type Disaster<'a> = (&'static str, usize, Box<dyn Fn(&Place) + 'a>);
    let disasters: Vec<Disaster<'_>> = vec![
        ("My disk died", 12, Box::new(lose)),
        ("I lost the passphrase, or the root key file", 14, Box::new(|p| remove(&p.dir.path().join("secrets")))),
        ("The keeper is gone", 14, Box::new(|p| remove(&p.config.keeper.paths[0]))),
        ("I want last night's data, and everything else is there", 12, Box::new(|_| {})),
        ("I restored the wrong day", 14, Box::new(|_| {})),
        ("Try it before you need it", 14, Box::new(|_| {})),
    ];
    for (section, people, disaster) in disasters {
        let place = new_place(1).await;
        let key = place.keys(1).await.remove(0);
        a_day(&place, &key).await;
        if section == "I restored the wrong day" {
            let (server, _) = place.serve().await;
            tokio::time::sleep(Duration::from_millis(1_100)).await;
            nightly(&server.channel, &place.operator).await;
            server.stop();
            let mut nights: Vec<_> =
                std::fs::read_dir(place.config.backups_dir()).unwrap().map(|e| e.unwrap().path()).collect();
            nights.retain(|path| path.join("manifest.json").exists());
            nights.sort();
            assert_eq!(nights.len(), 2);
            place.program(&["restore", "--from", nights[0].to_str().unwrap(), "--live"]);
        }
        disaster(&place);
        for line in commands(section) {
            let (ended, told) = place.line(line);
            assert_eq!(ended, Some(0), "{section}: {line}: {told}");
        }
        let drills = place.config.backups_dir().join("drills");
        if section == "Try it before you need it" {
            let path = std::fs::read_dir(&drills).unwrap().next().unwrap().unwrap().path();
            let report: Json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            let (tried, live) = (&report["body"]["tried"]["tenants"][0], &report["body"]["live"][0]);
            assert_eq!((tried["living"].as_u64(), tried["living_opened"].as_u64()), (Some(11), Some(11)), "{report}");
            // Twelve live now: of the eleven of that night one was erased since, and two came.
            let count = |what: &str| live[what].as_u64().unwrap();
            let counts = ["live", "restored", "came_since", "gone_since", "missing"].map(count);
            assert_eq!(counts, [12, 11, 2, 1, 0], "{report}");
            the_report_is_signed(&place, &path);
        }
        let (server, _) = place.serve().await;
        check(&server.channel, &key, people, |n| n > 1).await;
    }
}

/// By the vault's key, and checked without the vault.
fn the_report_is_signed(place: &Place, report: &Path) {
    let key = std::fs::read_to_string(place.path("recovery.key")).unwrap();
    let key = key.lines().find_map(|line| line.strip_prefix("# public signing key:")).unwrap().trim().to_owned();
    let verify =
        |file: &Path, key: &str| place.alone(&["drill", "verify", file.to_str().unwrap(), "--public-key", key]);
    let (ended, told) = verify(report, &key);
    assert!(ended == Some(0) && told.contains("11 of 11 opened"), "{told}");
    assert_eq!(verify(report, &"07".repeat(32)).0, Some(7), "another key did not sign it");
    let forged = place.dir.path().join("forged.json");
    let text = std::fs::read_to_string(report).unwrap();
    std::fs::write(&forged, text.replace("\"missing\":0", "\"missing\":1")).unwrap();
    let (ended, told) = verify(&forged, &key);
    assert!(ended == Some(7) && told.contains("signature"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recovery_keys_change_and_a_vault_made_without_gets_one() {
    let place = new_place(1).await;
    let key = place.keys(1).await.remove(0);
    let status = report(&place.program(&["--json", "recovery", "status"]));
    assert_eq!((status["recovery"].as_bool(), status["epoch"].as_u64()), (Some(true), Some(1)));
    a_day(&place, &key).await;
    let (old, new) = (place.path("recovery.key"), place.path("new.key"));
    let (from, night) = (place.path("data/backups"), place.path("copy-of-backups"));
    place.program(&["recovery", "rotate", "--recovery-out", &new]);
    let status = report(&place.program(&["--json", "recovery", "status"]));
    assert_eq!((status["epoch"].as_u64(), status["recipients"].as_array().unwrap().len()), (Some(2), 1));
    // The key archive of now opens with the new key only, the copy of before with the old one only, until it expires.
    let tries = [(&from, &new, Some(0)), (&from, &old, Some(1)), (&night, &old, Some(0)), (&night, &new, Some(1))];
    for (from, recovery, wanted) in tries {
        let (ended, told) = place.try_program(&["drill", "--from", from, "--recovery-key", recovery]);
        assert_eq!(ended, wanted, "{from} with {recovery}: {told}");
    }
    let archive = std::fs::read_dir(&night).unwrap().map(|e| e.unwrap().path()).find(|p| p.join("vault.db").exists());
    let archive = archive.unwrap().display().to_string();
    let (ended, told) = place.alone(&["backup", "verify", &archive, "--recovery-key", &old]);
    assert!(ended == Some(0) && told.contains("11 of 11 people open with the recovery key"), "{told}");
    // Until when the recovery key opens what: no other key does.
    let told = place.program(&["prove", "--copy", &from]);
    assert!(told.contains("opens with the recovery key alone, until"), "{told}");

    // A vault without one has no key archive; it gets one, and everybody is in it.
    let place = Place::with(tempfile::tempdir().unwrap(), 1, &["--without-recovery"]).await;
    let key = place.keys(1).await.remove(0);
    let (server, _) = place.serve().await;
    put(&server.channel, &key, 0..5).await;
    server.stop();
    let status = report(&place.program(&["--json", "recovery", "status"]));
    assert_eq!(status["recovery"].as_bool(), Some(false));
    let late = place.path("late.key");
    place.program(&["recovery", "add", "--recovery-out", &late]);
    std::fs::remove_dir_all(&place.config.keeper.paths[0]).unwrap();
    place.program(&["restore", "--from", &place.path("data"), "--recovery-key", &late]);
    place.program(&["recovery", "confirm"]);
    let (server, _) = place.serve().await;
    check(&server.channel, &key, 5, |_| true).await;
}
