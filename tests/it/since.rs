//! Restores, the rest: what people and officers decided since stays decided, an archive of an older schema is brought up to
//! this one, ledgers that lack a line are refused by name, and a disk that fills leaves the live vault as it was.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pii_vault::access::{Verb, VerbSet, View};
use pii_vault::clock::ManualClock;
use pii_vault::crypto::recovery::RecoveryIdentity;
use pii_vault::crypto::sign::Signing;
use pii_vault::ids::*;
use pii_vault::keyring::ledger::LedgerReader;
use pii_vault::recovery::catalogue;
use pii_vault::recovery::layout::{DATABASE, MANIFEST};
use pii_vault::recovery::manifest::{FileMark, Manifest, SignedManifest, hash_file};
use pii_vault::server::Node;
use pii_vault::server::restore::{RestoreRequest, restore};
use pii_vault::storage::sqlite::check_file;
use pii_vault::vault::rights::{Decided, How, What};
use pii_vault::vault::roles::{NewGrant, NewRole};
use pii_vault::vault::{Call, Context};

use crate::backup::SmallDisk;
use crate::combinations::copy;
use crate::erase::{key, person};
use crate::harness::*;
use crate::restore::*;

/// An error with everything behind it.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

fn newest(dir: &Path) -> PathBuf {
    catalogue::list(dir).unwrap().remove(0).path
}

#[tokio::test(flavor = "multi_thread")]
async fn a_no_and_a_narrower_role_stay_after_a_day_before_is_restored() {
    let t = TestVault::new().await;
    let tenant = t.tenant("alpha", JINA).await;
    let call = t.call(tenant);
    for subject in &ALL[..3] {
        person(&t, &call, subject).await;
    }
    let vault = t.node.vault.clone();
    let (marketing, service) =
        (purpose(&call, "marketing").purpose.unwrap(), purpose(&call, "service").purpose.unwrap());
    let of_name = call.tenant.policy().unwrap().field(field(&call, "name")).unwrap().class;
    let decide = async |subject: &str, what| {
        let decided = Decided { what, at: None, how: How::Asked, evidence: "form 3" };
        vault.decide_right(&call, &Context::default(), &key(subject), &decided, None).await.expect("decide");
    };
    let helpers = |call: &Call, fields: &[&str]| NewRole {
        name: Name::parse("role", "helpers").unwrap(),
        grants: vec![NewGrant {
            classes: vec![],
            fields: fields.iter().map(|name| field(call, name)).collect(),
            purposes: vec![service],
            verbs: VerbSet::from_iter([Verb::Read]),
            max_view: View::Plain,
            groups: None,
            subjects_per_hour: 0,
        }],
    };
    decide("usr_1", What::Granted(marketing)).await;
    let role = vault.create_role(&call, helpers(&call, &["name", "email"]), None, false).await.unwrap().unwrap();
    night(&t).await;
    t.clock.advance_ms(3_600_000);
    decide("usr_1", What::Withdrawn(marketing)).await;
    decide("usr_2", What::Objected(marketing)).await;
    decide("usr_3", What::Restricted(of_name)).await;
    vault.update_role(&call, role.no, None, helpers(&call, &["name"]), None, false).await.expect("narrow");
    drop((call, vault));
    let lost = close(t).await;
    copy(&lost.config.backups_dir(), &lost.path("night"));
    std::fs::remove_dir_all(&lost.config.data_dir).unwrap();
    let report = lost.restore(lost.request(lost.path("night"))).await.expect("restore");
    let again = &report.decided_again;
    assert_eq!((again.refusals, again.roles_emptied, &again.roles[..]), (3, 1, &["alpha: helpers".to_owned()][..]));
    let t = lost.open().await;
    let (vault, call) = (t.node.vault.clone(), t.call(tenant));
    let stands =
        async |subject: &str| vault.rights_of(&call, &Context::default(), &key(subject)).await.expect("rights");
    assert_eq!(stands("usr_1").await.consented, []);
    assert_eq!(stands("usr_2").await.objected, [marketing]);
    assert_eq!(stands("usr_3").await.restricted, [of_name]);
    // What it was narrowed to is not in the ledger: it allows nothing, until somebody says again what it shall.
    let grants = async || {
        let found = vault.list_roles(&call, RoleNo(role.no.0 - 1), 1).await.unwrap().rows.remove(0);
        assert_eq!(found.no, role.no);
        found.grants.len()
    };
    assert_eq!(grants().await, 0);
    vault.update_role(&call, role.no, None, helpers(&call, &["name"]), None, false).await.expect("defined again");
    assert_eq!(grants().await, 1);
}

/// Makes an archive what the first version of the schema wrote, signed by the vault.
fn as_of_schema_1(archive: &Path, signing: &Signing) {
    let conn = rusqlite::Connection::open(archive.join(DATABASE)).unwrap();
    conn.execute_batch("ALTER TABLE mark DROP COLUMN subjects; PRAGMA user_version = 1;").unwrap();
    drop(conn);
    let was = SignedManifest::read(archive).unwrap().manifest;
    let files = was.files.iter().map(|file| {
        let (bytes, sha256) = hash_file(&archive.join(&file.name), &mut |_| true).unwrap();
        FileMark { name: file.name.clone(), bytes, sha256 }
    });
    let (vault, ledger) = (was.vault().unwrap(), was.ledger().unwrap());
    let manifest = Manifest::new(vault, was.made_at, was.expires_at, 1, ledger, files.collect());
    std::fs::write(archive.join(MANIFEST), manifest.sign(signing)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_of_an_older_schema_is_restored_and_brought_up_to_this_one() {
    let (t, tenant) = usual().await;
    let signing = t.node.keyring.signing();
    let lost = close(t).await;
    copy(&lost.config.backups_dir(), &lost.path("night"));
    let archive = newest(&lost.path("night"));
    as_of_schema_1(&archive, &signing);
    assert_eq!(check_file(&archive.join(DATABASE)).unwrap(), 1);
    std::fs::remove_dir_all(&lost.config.data_dir).unwrap();
    let report = lost.restore(lost.request(lost.path("night"))).await.expect("restore");
    assert_eq!((of(&report, "alpha").subjects, of(&report, "alpha").erased_again), (3, 1), "{report:?}");
    assert_eq!(check_file(&archive.join(DATABASE)).unwrap(), 1, "the archive is as it was");
    let t = lost.open().await;
    open_are(&t, tenant, &ALL, &["usr_3", "usr_4", "usr_5"]).await;
    assert_eq!(t.node.store.counts(tenant).await.unwrap().subjects, 3, "what the new schema counts is counted");
    person(&t, &t.call(tenant), "usr_7").await;
    assert_eq!(t.node.store.counts(tenant).await.unwrap().subjects, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn row_an_old_database_with_its_old_keeper_is_seen_by_a_receipt_handed_in() {
    let t = TestVault::new().await;
    let tenant = t.tenant("alpha", JINA).await;
    for subject in &ALL[..2] {
        person(&t, &t.call(tenant), subject).await;
    }
    let lost = close(t).await;
    let (data, keeper) = (lost.config.data_dir.clone(), lost.config.keeper.paths[0].clone());
    copy(&data, &lost.path("old-data"));
    copy(&keeper, &lost.path("old-keeper"));
    let t = lost.open().await;
    let erased = erase(&t, tenant, "usr_1").await;
    let lost = close(t).await;
    for (old, live) in [("old-data", &data), ("old-keeper", &keeper)] {
        std::fs::remove_dir_all(live).unwrap();
        copy(&lost.path(old), live);
    }
    std::fs::write(lost.path("receipt.json"), erased.receipt.unwrap()).unwrap();
    let request = RestoreRequest {
        from: data,
        receipts: vec![lost.path("receipt.json")],
        public_keys: vec![lost.public],
        ..RestoreRequest::default()
    };
    let report = lost.restore(request).await.expect("restore");
    assert_eq!((report.receipts_new > 0, of(&report, "alpha").subjects), (true, 1), "{report:?}");
    let t = lost.open().await;
    open_are(&t, tenant, &ALL, &["usr_2"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_keeper_lost_without_a_recovery_key_loses_everyone_as_init_said() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let clock = Arc::new(ManualClock::new(START));
    let made = pii_vault::server::init(&config, &[], clock.clone()).await.expect("init");
    let node = Node::open(&config, clock.clone()).await.expect("open");
    let t = TestVault { dir, config, clock, node, recovery: RecoveryIdentity::generate() };
    let tenant = t.tenant("alpha", JINA).await;
    person(&t, &t.call(tenant), "usr_1").await;
    assert!(!t.node.vault.has_recovery());
    let lost = close(t).await;
    std::fs::remove_dir_all(&lost.config.keeper.paths[0]).unwrap();
    assert!(Node::open(&lost.config, lost.clock.clone()).await.is_err());
    let request = RestoreRequest { public_keys: vec![made.public_key], ..lost.request(lost.config.data_dir.clone()) };
    let refused = lost.restore(request).await.expect_err("there is nothing to open");
    assert!(told(&refused).contains("no key archive"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_lacks_a_line_or_has_another_is_refused_by_name() {
    let (t, tenant) = usual().await;
    erase(&t, tenant, "usr_3").await;
    let vault = t.node.keyring.vault();
    let lost = close(t).await;
    copy(&lost.config.backups_dir(), &lost.path("night"));
    let good = std::fs::read(lost.config.keeper.paths[0].join("ledger.keeper")).unwrap();
    // Where its batches begin and end.
    let mut reader = LedgerReader::open(&lost.config.keeper.paths[0].join("ledger.keeper"), vault).unwrap();
    let mut batches = Vec::new();
    while reader.next_batch().unwrap().is_some() {
        batches.push(reader.last_batch().unwrap() as usize..reader.offset() as usize);
    }
    assert!(batches.len() >= 3, "{batches:?}");
    let without = |n: usize| [&good[..batches[n].start], &good[batches[n].end..]].concat();
    let mut edited = good.clone();
    edited[batches[1].start + 70] ^= 1;
    let ends_early = good[..batches[batches.len() - 1].start].to_vec();
    for (name, bytes) in [
        ("first-line-gone", without(0)),
        ("middle-line-gone", without(1)),
        ("line-edited", edited),
        ("cut-in-a-line", good[..batches[1].start + 90].to_vec()),
        ("of-nothing", b"no ledger".to_vec()),
    ] {
        let path = lost.path(name);
        std::fs::write(&path, bytes).unwrap();
        let request = RestoreRequest { ledgers: vec![path], ..lost.request(lost.path("night")) };
        // One that was cut off ends earlier, and the whole one of the keeper counts.
        match (name, lost.restore(RestoreRequest { dry_run: true, ..request }).await) {
            ("cut-in-a-line", Ok(report)) => assert!(report.tail_known),
            (_, Ok(report)) => panic!("{name} is taken: {report:?}"),
            (_, Err(refused)) => assert!(told(&refused).contains(name), "{name}: {}", told(&refused)),
        }
    }
    // The last line is missing from all there is: the operator's word is not true, and the keeper's anchor knows.
    std::fs::write(lost.path("short"), ends_early).unwrap();
    let request = RestoreRequest {
        ledgers: vec![lost.path("short")],
        through: Some(1_000),
        ignore_keeper: true,
        dry_run: true,
        ..lost.request(lost.path("night"))
    };
    let refused = lost.restore(request).await.expect_err("its end is missing");
    assert!(told(&refused).contains("its end is missing"), "{}", told(&refused));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_at_any_step_of_a_restore_leaves_the_live_vault_as_it_was() {
    const ROOM: u64 = 256 << 10;
    let mut disk = None;
    let t = TestVault::with(|config| {
        let place = config.data_dir.with_file_name("disk");
        std::fs::create_dir(&place).unwrap();
        disk = Some(SmallDisk::on(&place, ROOM));
        (config.data_dir, config.keeper.paths) = (place.join("data"), vec![place.join("keeper")]);
    })
    .await;
    let disk = disk.unwrap();
    let tenant = t.tenant("alpha", JINA).await;
    for subject in &ALL[..3] {
        person(&t, &t.call(tenant), subject).await;
    }
    night(&t).await;
    person(&t, &t.call(tenant), "usr_4").await;
    let (mut t, mut extra, mut undone, mut finished, mut copied) = (t, 0, 0, 0, false);
    loop {
        let lost = close(t).await;
        if !copied {
            copy(&lost.config.backups_dir(), &lost.path("night"));
            copied = true;
        }
        disk.resize(disk.used() + extra);
        let done =
            restore(&lost.config, lost.request(lost.path("night")), lost.clock.clone(), Box::new(|_| true)).await;
        disk.resize(ROOM);
        let Err(refused) = done else {
            t = lost.open().await;
            break;
        };
        let why = told(&refused);
        assert!(why.contains("full") || why.contains("No space left"), "{extra} KiB: {why}");
        t = lost.open().await;
        match read(&t, tenant, "usr_4").await {
            Ok(()) => {
                undone += 1;
                open_are(&t, tenant, &ALL, &["usr_1", "usr_2", "usr_3", "usr_4"]).await;
            }
            Err(_) => finished += 1,
        }
        extra += 100;
        assert!(extra < ROOM / 2, "it always wants more");
    }
    open_are(&t, tenant, &ALL, &["usr_1", "usr_2", "usr_3"]).await;
    println!("{undone} undone, {finished} finished at the next start, then {extra} KiB were enough");
    assert!(undone >= 4, "{undone} undone, {finished} finished");
}
