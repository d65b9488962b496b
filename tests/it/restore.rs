//! Restores: a test for each row of the table of faults and restores that brings people back, what a restore must not
//! undo, and what it refuses. The whole program does it in `tests/faults/lost.rs`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use pii_vault::clock::ManualClock;
use pii_vault::config::Config;
use pii_vault::crypto::recovery::RecoveryIdentity;
use pii_vault::ids::*;
use pii_vault::recovery::catalogue;
use pii_vault::recovery::restore::{Report, RestoreError, TenantRestored};
use pii_vault::server::Node;
use pii_vault::server::node::NodeError;
use pii_vault::server::restore::{RestoreFailed, RestoreRequest, restore};
use pii_vault::vault::find::Key;
use pii_vault::vault::hold::{HoldTarget, NewHold};
use pii_vault::vault::operation::OperationStatus;
use pii_vault::vault::read::Select;
use pii_vault::vault::rotation::DataScope;
use pii_vault::vault::{Context, VaultError};

use crate::combinations::copy;
use crate::erase::{key, person};
use crate::harness::*;

/// A vault that is closed, and what its operator has.
pub struct Lost {
    pub dir: tempfile::TempDir,
    pub config: Config,
    pub clock: Arc<ManualClock>,
    pub recovery: RecoveryIdentity,
    pub public: [u8; 32],
}

/// Everything is written to the folder of backups, as each night.
pub async fn night(t: &TestVault) {
    t.node.backups.nightly().await.expect("begin");
    let call = t.node.vault.local_call(TenantNo::VAULT).unwrap();
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        let page = t.node.vault.list_operations(&call, None, 10).await.unwrap();
        if !page.rows.is_empty() && page.rows.iter().all(|operation| operation.status.is_final()) {
            assert!(page.rows.iter().all(|operation| operation.status == OperationStatus::Done), "{:?}", page.rows);
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("a backup does not end");
}

pub async fn close(t: TestVault) -> Lost {
    let TestVault { dir, config, clock, node, recovery } = t;
    node.vault.keep_anchor().await.expect("anchor");
    let public = node.keyring.signing().public();
    node.close().await;
    Lost { dir, config, clock, recovery, public }
}

impl Lost {
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// With the recovery key, from the folder of backups.
    pub fn request(&self, from: PathBuf) -> RestoreRequest {
        let identities = vec![self.recovery.again()];
        RestoreRequest { from, identities, public_keys: vec![self.public], ..RestoreRequest::default() }
    }

    pub async fn restore(&self, request: RestoreRequest) -> Result<Report, RestoreFailed> {
        restore(&self.config, request, self.clock.clone(), Box::new(|_| true)).await
    }

    pub async fn open(self) -> TestVault {
        let Lost { dir, config, clock, recovery, .. } = self;
        let node = Node::open(&config, clock.clone()).await.expect("open");
        TestVault { dir, config, clock, node, recovery }
    }
}

pub async fn erase(t: &TestVault, tenant: TenantNo, subject: &str) -> pii_vault::vault::erase::Erasure {
    let none = Context::default();
    t.node.vault.erase_subject(&t.call(tenant), &none, &key(subject), &[], None, false).await.expect("erase")
}

pub async fn read(t: &TestVault, tenant: TenantNo, subject: &str) -> Result<(), VaultError> {
    let call = t.call(tenant);
    let context = purpose(&call, "service");
    let got = t.node.vault.get_fields(&call, &context, &Key::Subject(id(subject)), &Select::default()).await?;
    // Of somebody whose keys are lost there is a row, and no value.
    if got.values.iter().any(|value| value.what.is_ok()) { Ok(()) } else { Err(VaultError::NotFound) }
}

/// Who opens; everyone else is erased or was never there.
pub async fn open_are(t: &TestVault, tenant: TenantNo, all: &[&str], wanted: &[&str]) {
    let mut opened = Vec::new();
    for subject in all {
        match read(t, tenant, subject).await {
            Ok(()) => opened.push(*subject),
            Err(VaultError::SubjectErased | VaultError::NotFound) => {}
            Err(error) => panic!("{subject}: {error:?}"),
        }
    }
    assert_eq!(opened, wanted);
}

pub fn of<'a>(report: &'a Report, tenant: &str) -> &'a TenantRestored {
    report.tenants.iter().find(|one| one.tenant == tenant).unwrap_or_else(|| panic!("{report:?}"))
}

pub const ALL: [&str; 6] = ["usr_1", "usr_2", "usr_3", "usr_4", "usr_5", "usr_6"];

/// Five people, of whom the first is erased before the night and the second after; the sixth comes after it.
pub async fn usual() -> (TestVault, TenantNo) {
    let t = TestVault::new().await;
    let tenant = t.tenant("alpha", JINA).await;
    for subject in &ALL[..5] {
        person(&t, &t.call(tenant), subject).await;
    }
    erase(&t, tenant, "usr_1").await;
    night(&t).await;
    t.clock.advance_ms(3_600_000);
    erase(&t, tenant, "usr_2").await;
    person(&t, &t.call(tenant), "usr_6").await;
    (t, tenant)
}

#[tokio::test(flavor = "multi_thread")]
async fn people_whose_data_keys_were_rotated_since_are_lost_and_not_erased() {
    let (t, tenant) = usual().await;
    let call = t.node.vault.call(t.operator(), t.node.vault.tenant(tenant).unwrap());
    t.node.vault.rotate_data(&call, DataScope::default(), None, false).await.expect("rotate");
    let jobs = t.node.vault.job_call(t.node.vault.tenant(tenant).unwrap());
    while t.node.vault.go_on_rotations(&jobs, 10_000).await.expect("it goes on").more {}
    drop((call, jobs));
    let lost = close(t).await;
    let live = |dry_run: bool, accept_lost: bool| {
        let mut request = lost.request(lost.config.backups_dir());
        request.identities.clear();
        RestoreRequest { dry_run, accept_lost, ..request }
    };
    // Three of that night live, and nothing opens them; one was erased.
    let told = lost.restore(live(true, false)).await.expect("dry run");
    let alpha = of(&told, "alpha");
    assert_eq!((alpha.erased_again, alpha.lost), (1, 3), "{told:?}");
    assert!(alpha.why.iter().any(|why| why.starts_with("3 classes: they went over to other data keys")), "{told:?}");
    let refused = lost.restore(live(false, false)).await;
    assert!(matches!(refused, Err(RestoreFailed::Restore(RestoreError::Lost { lost: 3 }))), "{refused:?}");
    let accepted = lost.restore(live(false, true)).await.expect("accepted");
    assert_eq!((of(&accepted, "alpha").erased_again, of(&accepted, "alpha").lost), (1, 3), "{accepted:?}");
    let t = lost.open().await;
    open_are(&t, tenant, &ALL, &[]).await;
    assert!(matches!(read(&t, tenant, "usr_2").await, Err(VaultError::SubjectErased)));
    assert!(matches!(read(&t, tenant, "usr_3").await, Err(VaultError::NotFound)), "never said to be erased");
    t.node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_old_data_archive_and_live_tree_bring_back_the_living_of_that_night() {
    let (t, tenant) = usual().await;
    let lost = close(t).await;
    let mut request = lost.request(lost.config.backups_dir());
    request.identities.clear();
    let report = lost.restore(request).await.expect("restore");
    let alpha = of(&report, "alpha");
    assert_eq!((alpha.subjects, alpha.erased_again, alpha.lost), (3, 1, 0), "{report:?}");
    assert!(report.tail_known, "the anchor says where the ledger ends");
    let t = lost.open().await;
    open_are(&t, tenant, &ALL, &["usr_3", "usr_4", "usr_5"]).await;
    let call = t.node.vault.local_call(TenantNo::VAULT).unwrap();
    assert_eq!(t.node.vault.verify_keeper(&call).await.unwrap().problems, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn row_old_database_and_present_keeper_come_back_with_the_key_archive() {
    let t = TestVault::new().await;
    let tenant = t.tenant("alpha", JINA).await;
    for subject in &ALL[..3] {
        person(&t, &t.call(tenant), subject).await;
    }
    let lost = close(t).await;
    copy(&lost.config.data_dir, &lost.path("old"));
    let t = lost.open().await;
    t.clock.advance_ms(1_000);
    erase(&t, tenant, "usr_2").await;
    night(&t).await;
    let lost = close(t).await;
    for name in ["vault.db", "vault.db-wal"] {
        let _ = std::fs::remove_file(lost.config.data_dir.join(name));
    }
    std::fs::copy(lost.path("old/vault.db"), lost.config.data_dir.join("vault.db")).unwrap();
    let refused = Node::open(&lost.config, lost.clock.clone()).await.err();
    assert!(matches!(refused, Some(NodeError::DatabaseBehind(_))), "{refused:?}");
    let report = lost.restore(lost.request(lost.config.data_dir.clone())).await.expect("restore");
    assert_eq!((of(&report, "alpha").subjects, of(&report, "alpha").lost), (2, 0), "{report:?}");
    let t = lost.open().await;
    open_are(&t, tenant, &ALL, &["usr_1", "usr_3"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_keeper_or_root_key_lost_and_the_database_kept_bring_back_everyone() {
    for (keeper, root, archives) in [(true, false, true), (false, true, true), (true, true, true), (true, true, false)]
    {
        let (t, tenant) = usual().await;
        let lost = close(t).await;
        if keeper {
            std::fs::remove_dir_all(&lost.config.keeper.paths[0]).unwrap();
        }
        if root {
            std::fs::remove_dir_all(lost.path("secrets")).unwrap();
        }
        if !archives {
            // No archive was ever made: only the live key archive is there, and no copy of the ledger.
            for archive in catalogue::list(&lost.config.backups_dir()).unwrap() {
                std::fs::remove_dir_all(archive.path).unwrap();
            }
        }
        let report = lost.restore(lost.request(lost.config.data_dir.clone())).await.expect("restore");
        let alpha = of(&report, "alpha");
        assert_eq!((alpha.subjects, alpha.erased_again, alpha.lost, report.tail_known), (4, 0, 0, false), "{report:?}");
        let t = lost.open().await;
        open_are(&t, tenant, &ALL, &["usr_3", "usr_4", "usr_5", "usr_6"]).await;
        assert!(t.node.vault.restored().await.unwrap().is_some_and(|note| note.keys_wait));
        let call = t.node.vault.local_call(TenantNo::VAULT).unwrap();
        let report = t.node.vault.verify_keeper(&call).await.unwrap();
        assert_eq!(report.problems, Vec::<String>::new(), "what the former key signed still verifies");
        drop(call);
        // It goes on as any other: it erases, restarts, and is backed up.
        erase(&t, tenant, "usr_3").await;
        night(&t).await;
        let t = t.restart().await;
        open_are(&t, tenant, &ALL, &["usr_4", "usr_5", "usr_6"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn row_disk_lost_and_an_erasure_after_the_night_comes_from_its_receipt() {
    let t = TestVault::new().await;
    let tenant = t.tenant("alpha", JINA).await;
    for subject in &ALL[..3] {
        person(&t, &t.call(tenant), subject).await;
    }
    night(&t).await;
    let erased = erase(&t, tenant, "usr_2").await;
    let lost = close(t).await;
    copy(&lost.config.backups_dir(), &lost.path("night"));
    std::fs::remove_dir_all(&lost.config.data_dir).unwrap();
    std::fs::remove_dir_all(&lost.config.keeper.paths[0]).unwrap();
    std::fs::write(lost.path("receipt.json"), erased.receipt.unwrap()).unwrap();
    let mut request = lost.request(lost.path("night"));
    request.dry_run = true;
    let report = lost.restore(request).await.expect("dry run");
    assert_eq!((report.tail_known, of(&report, "alpha").subjects), (false, 3), "it names the unverified tail");
    assert!(!lost.config.data_dir.join("vault.db").exists(), "it only counted");
    let mut request = lost.request(lost.path("night"));
    request.receipts = vec![lost.path("receipt.json")];
    let report = lost.restore(request).await.expect("restore");
    assert_eq!((of(&report, "alpha").subjects, of(&report, "alpha").erased_again), (2, 1), "{report:?}");
    let t = lost.open().await;
    open_are(&t, tenant, &ALL, &["usr_1", "usr_3"]).await;
    assert!(matches!(read(&t, tenant, "usr_2").await, Err(VaultError::SubjectErased)), "its tombstone stands again");
}

#[tokio::test(flavor = "multi_thread")]
async fn row_data_newer_than_the_key_archive_loses_only_whom_the_dry_run_counts() {
    let t = TestVault::new().await;
    let tenant = t.tenant("alpha", JINA).await;
    person(&t, &t.call(tenant), "usr_1").await;
    let early = t.dir.path().join("early-keys");
    copy(&t.config.backups_dir().join("keys"), &early);
    // A leaf has 120 slots, and each of these takes one: many are on leaves that the early copy does not have.
    for n in 0..200 {
        person(&t, &t.call(tenant), &format!("late_{n}")).await;
    }
    night(&t).await;
    let lost = close(t).await;
    std::fs::remove_dir_all(&lost.config.keeper.paths[0]).unwrap();
    let with_early = || {
        let mut request = lost.request(lost.config.backups_dir());
        request.keys = Some(early.clone());
        request
    };
    let mut request = with_early();
    request.dry_run = true;
    let report = lost.restore(request).await.expect("dry run");
    let counted = of(&report, "alpha").clone();
    assert!(counted.lost > 0 && !counted.why.is_empty(), "{report:?}");
    let refused = lost.restore(with_early()).await.unwrap_err().to_string();
    assert!(refused.contains("--accept-lost"), "{refused}");
    let mut request = with_early();
    request.accept_lost = true;
    let report = lost.restore(request).await.expect("restore");
    assert_eq!(of(&report, "alpha").lost, counted.lost);
    let t = lost.open().await;
    read(&t, tenant, "usr_1").await.expect("of the early copy");
    let mut opened = 0;
    for n in 0..200 {
        opened += u64::from(read(&t, tenant, &format!("late_{n}")).await.is_ok());
    }
    assert!(opened > 0 && opened < 200, "{opened}");
    assert!(read(&t, tenant, "late_199").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_day_before_does_not_undo_what_was_decided_since() {
    let t = TestVault::new().await;
    let (tenant, gone) = (t.tenant("alpha", JINA).await, t.tenant("beta", JINA).await);
    for subject in ALL {
        person(&t, &t.call(tenant), subject).await;
    }
    person(&t, &t.call(gone), "usr_1").await;
    let name = |text: &str| Name::parse("name", text).unwrap();
    let issued = t.node.vault.issue_first_key(name("second")).await.unwrap();
    let vault = t.node.vault.clone();
    let none = Context::default();
    let due = t.now().plus_days(20);
    // A schedule that is cancelled since, and one that is made since.
    let call = t.call(tenant);
    let cancelled = vault.schedule_erasure(&call, &none, &key("usr_4"), &[], Some(due), None, false).await.unwrap();
    night(&t).await;
    t.clock.advance_ms(3_600_000);
    let own = vault.local_call(TenantNo::VAULT).unwrap();
    vault.revoke_access_key(&own, issued.key.id, None).await.expect("revoke");
    vault.cancel_erasure(&call, &Default::default(), cancelled.operation.id, None).await.expect("cancel");
    vault.schedule_erasure(&call, &none, &key("usr_5"), &[], Some(due), None, false).await.expect("schedule");
    let hold = NewHold {
        classes: vec![],
        basis: name("lawsuit"),
        purpose: purpose(&call, "service").purpose.unwrap(),
        until: None,
    };
    let held = key("usr_6");
    vault.place_hold(&call, &none, HoldTarget::Subject(&held), &hold, None, false).await.expect("hold");
    drop((own, call));
    let of_beta = vault.call(t.operator(), vault.tenant(gone).unwrap());
    vault.erase_tenant(&of_beta, &[], None, false).await.expect("erase a tenant");
    drop((of_beta, vault));
    let lost = close(t).await;
    // The disk with the data is gone, the keeper is there: its ledger is whole up to the anchor.
    copy(&lost.config.backups_dir(), &lost.path("night"));
    std::fs::remove_dir_all(&lost.config.data_dir).unwrap();
    let report = lost.restore(lost.request(lost.path("night"))).await.expect("restore");
    assert!(report.tail_known && of(&report, "beta").erased, "{report:?}");
    let again = &report.decided_again;
    assert_eq!(
        (again.keys_revoked, again.holds_placed, again.schedules_placed, again.schedules_cancelled, again.keys_stopped),
        (1, 1, 1, 1, 0),
        "{again:?}"
    );
    let t = lost.open().await;
    let vault = t.node.vault.clone();
    assert!(vault.authenticate(&issued.text.unwrap(), None, t.now()).await.is_err(), "a revoked key stays revoked");
    assert!(matches!(vault.tenant(gone), Err(VaultError::TenantErased)));
    read(&t, tenant, "usr_4").await.expect("its erasure was cancelled");
    assert!(read(&t, tenant, "usr_5").await.is_err(), "access is refused until its erasure");
    let held = erase(&t, tenant, "usr_6").await;
    assert_eq!(held.operation.status, OperationStatus::PartlyHeld, "the hold holds");
    // Schedules wait for an operator's word, then they go on.
    t.clock.advance_days(30);
    vault.watch_clock().await.expect("clock");
    vault.confirm_clock_here().await.expect("clock");
    vault.run_due_work(tenant).await.expect("due");
    assert!(!matches!(read(&t, tenant, "usr_5").await, Err(VaultError::SubjectErased)), "it waits");
    vault.confirm_restore().await.expect("confirm");
    vault.run_due_work(tenant).await.expect("due");
    assert!(matches!(read(&t, tenant, "usr_5").await, Err(VaultError::SubjectErased)), "and goes on");
}

/// All files below a folder with their bytes.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => all.extend(files(&path)),
            false => drop(all.insert(path.clone(), std::fs::read(&path).unwrap())),
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_archives_are_refused_by_name_and_the_live_vault_stays_as_it_is() {
    let (t, tenant) = usual().await;
    let lost = close(t).await;
    let other = close(usual().await.0).await;
    let good = lost.path("good");
    copy(&lost.config.backups_dir(), &good);
    let before = files(&lost.config.data_dir);
    let keeper = files(&lost.config.keeper.paths[0]);
    let archive = |dir: &Path| catalogue::list(dir).unwrap().remove(0).path;
    let flip = |path: PathBuf| {
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    let cut = |path: PathBuf, by: u64| {
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() - by).unwrap();
    };
    let keys = |dir: &Path| dir.join(format!("keys/{}.keys", tenant.0));
    type Spoil<'a> = Box<dyn Fn(&Path, &mut RestoreRequest) + 'a>;
    let cases: Vec<(&str, Spoil<'_>)> = vec![
        (
            "signed by",
            Box::new(|_, request| {
                (request.public_keys, request.ignore_keeper) = (vec![[7; 32]], true);
            }),
        ),
        ("vault.db", Box::new(|dir, _| flip(archive(dir).join("vault.db")))),
        ("vault.db", Box::new(|dir, _| cut(archive(dir).join("vault.db"), 4096))),
        ("ledger", Box::new(|dir, _| flip(archive(dir).join("ledger")))),
        ("ledger", Box::new(|dir, _| cut(archive(dir).join("ledger"), 512))),
        ("manifest", Box::new(|dir, _| flip(archive(dir).join("manifest.json")))),
        ("keys", Box::new(|dir, _| flip(keys(dir)))),
        ("keys", Box::new(|dir, _| cut(keys(dir), 1))),
        ("no key archive of tenant", Box::new(|dir, _| std::fs::remove_file(keys(dir)).unwrap())),
        ("belongs to tenant", Box::new(|dir, _| assert!(std::fs::copy(dir.join("keys/0.keys"), keys(dir)).is_ok()))),
        ("recovery key", Box::new(|_, request| request.identities = vec![RecoveryIdentity::generate()])),
        ("holds no data archive", Box::new(|dir, _| std::fs::remove_dir_all(archive(dir)).unwrap())),
        ("ledger-through", Box::new(|_, request| request.through = Some(1_000_000))),
        (
            "another vault",
            Box::new(|dir, request| {
                request.public_keys.push(other.public);
                std::fs::copy(keys(&other.config.backups_dir()), keys(dir)).unwrap();
            }),
        ),
        (
            "",
            Box::new(|_, request| {
                request.public_keys.push(other.public);
                request.ledgers = vec![archive(&other.config.backups_dir()).join("ledger")];
            }),
        ),
    ];
    for (n, (says, spoil)) in cases.iter().enumerate() {
        let dir = lost.path(&format!("bad-{n}"));
        copy(&good, &dir);
        let mut request = lost.request(dir.clone());
        spoil(&dir, &mut request);
        let error = lost.restore(request).await.expect_err(says);
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(inner) = source {
            text = format!("{text}: {inner}");
            source = inner.source();
        }
        assert!(text.contains(says), "case {n}: {says:?} is not in {text:?}");
        assert_eq!(files(&lost.config.keeper.paths[0]), keeper, "case {n} ({text})");
        let after = files(&lost.config.data_dir);
        assert!(before.iter().all(|(path, bytes)| after.get(path) == Some(bytes)), "case {n} ({text})");
        assert!(!lost.config.data_dir.join("restoring").exists(), "case {n}");
    }
    // Older than the horizon.
    lost.clock.advance_days(31);
    let error = lost.restore(lost.request(good.clone())).await.unwrap_err();
    let source = std::error::Error::source(&error).expect("the reason").to_string();
    assert!(error.to_string().contains("keys") && source.contains("expired on"), "{error}: {source}");
    let t = lost.open().await;
    open_are(&t, tenant, &ALL, &["usr_3", "usr_4", "usr_5", "usr_6"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_stops_at_any_step_is_undone_or_finished_at_start() {
    let (mut undone, mut finished) = (0, 0);
    for stop in 0.. {
        let (t, tenant) = usual().await;
        let lost = close(t).await;
        let from = lost.path("night");
        copy(&lost.config.backups_dir(), &from);
        let mut step = 0;
        let point = Box::new(move |_| {
            step += 1;
            step <= stop
        });
        let ended = restore(&lost.config, lost.request(from.clone()), lost.clock.clone(), point).await;
        if ended.is_ok() {
            break;
        }
        let t = lost.open().await;
        match read(&t, tenant, "usr_6").await {
            Ok(()) => {
                undone += 1;
                open_are(&t, tenant, &ALL, &["usr_3", "usr_4", "usr_5", "usr_6"]).await;
            }
            Err(_) => {
                finished += 1;
                open_are(&t, tenant, &ALL, &["usr_3", "usr_4", "usr_5"]).await;
            }
        }
        // And it can be asked for again.
        let lost = close(t).await;
        lost.restore(lost.request(from)).await.expect("restore again");
        let t = lost.open().await;
        open_are(&t, tenant, &ALL, &["usr_3", "usr_4", "usr_5"]).await;
    }
    assert!(undone >= 3 && finished >= 5, "{undone} undone, {finished} finished");
}
