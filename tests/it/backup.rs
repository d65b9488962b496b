//! Backups of a vault that serves: over gRPC, by the clock, with a full disk, cut off by a kill.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pb::backup_service_client::BackupServiceClient;
use pb::operation_service_client::OperationServiceClient;
use pii_vault::clock::DAY_MS;
use pii_vault::grpc::pb;
use pii_vault::ids::*;
use pii_vault::keyring::KeyringError;
use pii_vault::recovery::catalogue;
use pii_vault::recovery::layout::{DATABASE, MANIFEST};
use pii_vault::recovery::verify::check_archive;
use pii_vault::server::prove::prove;
use pii_vault::vault::{Context, VaultError};
use tonic::Code;

use crate::erase::{key, person};
use crate::harness::*;
use crate::net::*;

fn backups(t: &TestVault) -> PathBuf {
    t.config.backups_dir()
}

/// Asks for a backup and waits for its end.
async fn backup(running: &Running, operator: &str, part: pb::BackupPart) -> pb::Operation {
    let mut service = BackupServiceClient::new(running.channel.clone());
    let request = pb::CreateBackupRequest { part: part as i32, ..Default::default() };
    let operation = service.create_backup(with(operator, request)).await.expect("begin").into_inner().operation;
    let mut operations = OperationServiceClient::new(running.channel.clone());
    let watch = pb::WatchOperationRequest { operation, ..Default::default() };
    let mut stream = operations.watch_operation(with(operator, watch)).await.expect("watch").into_inner();
    let mut last = pb::Operation::default();
    while let Some(answer) = stream.message().await.expect("progress") {
        last = answer.operation.unwrap();
    }
    last
}

/// A small file system over a directory, until it is dropped.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Of `kib` KiB.
    pub fn on(dir: &Path, kib: u64) -> Self {
        mount(dir, &["-t", "tmpfs", "-o", &format!("size={kib}k"), "tmpfs"]);
        SmallDisk(dir.to_owned())
    }

    /// Gives it another size; not less than what is used.
    pub fn resize(&self, kib: u64) {
        mount(&self.0, &["-o", &format!("remount,size={kib}k")]);
    }

    /// KiB in use.
    pub fn used(&self) -> u64 {
        let all = rustix::fs::statvfs(&self.0).unwrap();
        (all.f_blocks - all.f_bfree) * all.f_frsize / 1024
    }
}

fn mount(dir: &Path, args: &[&str]) {
    let mounted = Command::new("mount").args(args).arg(dir).output().expect("the command `mount`");
    assert!(
        mounted.status.success(),
        "this test mounts a tmpfs and needs the right to do so (root or CAP_SYS_ADMIN): {}",
        String::from_utf8_lossy(&mounted.stderr)
    );
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn only(dir: &Path) -> PathBuf {
    let all = catalogue::list(dir).unwrap();
    assert_eq!(all.len(), 1, "{all:?}");
    all[0].path.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_archive_is_whole_and_checked_offline_while_writes_go_on() {
    let running = Running::new().await;
    let tenant = running.test.tenant("jina", JINA).await;
    let call = running.test.call(tenant);
    for n in 0..50 {
        person(&running.test, &call, &format!("usr_{n}")).await;
    }
    let operator = running.operator_key("root").await;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (vault, stop) = (running.test.node.vault.clone(), stop.clone());
        let call = running.test.call(tenant);
        tokio::spawn(async move {
            let mut n = 1_000;
            while !stop.load(Ordering::SeqCst) {
                let one = put(&call, &format!("usr_{n}"), &[("name", "Asha")]);
                vault.put_fields(&call, &purpose(&call, "service"), one, None, false).await.expect("put");
                n += 1;
            }
            n
        })
    };
    let done = backup(&running, &operator, pb::BackupPart::Data).await;
    stop.store(true, Ordering::SeqCst);
    assert!(writer.await.unwrap() > 1_000, "writes went on");
    assert_eq!(done.state(), pb::OperationState::Succeeded, "{done:?}");
    assert_eq!(done.kind(), pb::OperationKind::Backup);
    assert!(done.total_count > 0 && done.done_count == done.total_count, "{done:?}");

    let dir = only(&backups(&running.test));
    let public = running.test.node.keyring.signing().public();
    let report = check_archive(&dir, Some(&[public]), &mut |_| true).expect("whole");
    assert_eq!(report.manifest.made_at, START);
    assert_eq!(report.manifest.expires_at, START.plus_days(30));
    assert!(check_archive(&dir, Some(&[[7; 32]]), &mut |_| true).is_err(), "signed by a key that is not trusted");
    assert!(!dir.join("vault.db-wal").exists(), "one file, and the check leaves nothing beside it");

    let mut service = BackupServiceClient::new(running.channel.clone());
    let listed = service.list_backups(with(&operator, pb::ListBackupsRequest {})).await.unwrap().into_inner();
    assert_eq!((listed.backups.len(), listed.horizon_days), (1, 30));
    assert_eq!(listed.backups[0].state(), pb::BackupState::Whole);

    // A tenant's key sees nothing of it, and keys alone need a recovery key.
    let (app, _) = running.key_until(tenant, "app", None).await;
    let refused = service.list_backups(with(&app, pb::ListBackupsRequest {})).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);

    // Another process can open the copy: rows, read audit and ledger are those of one vault.
    let t = running.stop().await;
    let proof = prove(&t.node, &dir).await.expect("prove");
    assert!(proof.holds && proof.tenants[0].living >= 50, "{proof:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn t02_an_archive_is_whole_or_not_there_wherever_it_was_cut_off() {
    let running = Running::new().await;
    let tenant = running.test.tenant("jina", JINA).await;
    person(&running.test, &running.test.call(tenant), "usr_1").await;
    let operator = running.operator_key("root").await;
    assert_eq!(backup(&running, &operator, pb::BackupPart::Data).await.state(), pb::OperationState::Succeeded);
    let dir = backups(&running.test);
    let whole = only(&dir);
    // Every prefix of the work, as a power failure would leave it: the files in the order in which they were written,
    // the last of them torn, under the name of one that is being made.
    let mut files: Vec<PathBuf> = vec![DATABASE.into()];
    for entry in std::fs::read_dir(whole.join("read-audit")).unwrap() {
        files.push(Path::new("read-audit").join(entry.unwrap().file_name()));
    }
    files.extend(["ledger".into(), MANIFEST.into()]);
    let count = if std::env::var_os("PII_VAULT_TEST_FULL").is_some() { 10_000 } else { 200 };
    let mut cut_off = 0;
    for n in 0..count {
        let image = tempfile::tempdir().unwrap();
        // As it is before the rename, and as a file system without ordered renames could show it after.
        let name = if n % 2 == 0 { catalogue::partial_of("20260115T120000Z") } else { "20260115T120000Z".into() };
        let into = image.path().join(name);
        std::fs::create_dir_all(into.join("read-audit")).unwrap();
        let last = n / 2 % files.len();
        for (i, file) in files.iter().enumerate().take(last + 1) {
            let mut bytes = std::fs::read(whole.join(file)).unwrap();
            if i == last {
                bytes.truncate(bytes.len() * (n % 97) / 97);
            }
            std::fs::write(into.join(file), bytes).unwrap();
        }
        catalogue::clean(image.path()).unwrap();
        for archive in catalogue::list(image.path()).unwrap() {
            assert!(check_archive(&archive.path, None, &mut |_| true).is_err(), "image {n} passes for whole");
        }
        cut_off += 1;
    }
    assert_eq!(cut_off, count);
    check_archive(&whole, None, &mut |_| true).expect("the one that was finished");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mixed_and_damaged_archives_are_refused_with_the_files_name() {
    let running = Running::new().await;
    let tenant = running.test.tenant("jina", JINA).await;
    let operator = running.operator_key("root").await;
    let mut names = Vec::new();
    for n in 0..2 {
        person(&running.test, &running.test.call(tenant), &format!("usr_{n}")).await;
        backup(&running, &operator, pb::BackupPart::Data).await;
        running.test.clock.advance_ms(5_000);
        names.push(catalogue::newest(&backups(&running.test)).unwrap().unwrap().path);
    }
    let [first, second] = [&names[0], &names[1]];
    let told = |dir: &Path| {
        let error = check_archive(dir, None, &mut |_| true).unwrap_err();
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        text
    };
    for (file, what) in [(DATABASE, "vault.db"), (MANIFEST, "vault.db")] {
        let mixed = running.test.dir.path().join(format!("mixed-{file}"));
        let copied = Command::new("cp").arg("-r").arg(first).arg(&mixed).status().unwrap();
        assert!(copied.success());
        std::fs::copy(second.join(file), mixed.join(file)).unwrap();
        assert!(told(&mixed).contains(what), "{}", told(&mixed));
    }
    let mut damaged = std::fs::read(second.join(DATABASE)).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(second.join(DATABASE), damaged).unwrap();
    assert!(told(second).contains("vault.db is not the file"), "{}", told(second));
    std::fs::write(first.join(MANIFEST), "{}").unwrap();
    assert!(told(first).contains(MANIFEST));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_a_backup_and_nothing_else() {
    let running = Running::new().await;
    let tenant = running.test.tenant("jina", JINA).await;
    let operator = running.operator_key("root").await;
    let dir = backups(&running.test);
    std::fs::create_dir_all(&dir).unwrap();
    let disk = SmallDisk::on(&dir, 128);
    let done = backup(&running, &operator, pb::BackupPart::Data).await;
    let left = std::fs::read_dir(&dir).unwrap().count();
    drop(disk);
    assert_eq!(done.state(), pb::OperationState::Failed, "{done:?}");
    assert_eq!(done.error.unwrap().reason, "DISK_FULL");
    assert_eq!(left, 0, "nothing half made is left");
    person(&running.test, &running.test.call(tenant), "usr_1").await;
    // The same again with room.
    assert_eq!(backup(&running, &operator, pb::BackupPart::Data).await.state(), pb::OperationState::Succeeded);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_a_rewrite_of_the_key_archive_and_the_one_before_stays() {
    let mut disk = None;
    let test = TestVault::with(|config| {
        let dir = config.data_dir.with_file_name("archives");
        std::fs::create_dir(&dir).unwrap();
        disk = Some(SmallDisk::on(&dir, 16 << 10));
        config.backup.directory = dir;
    });
    let (running, disk) = (Running::over(test.await).await, disk.unwrap());
    let tenant = running.test.tenant("jina", JINA).await;
    person(&running.test, &running.test.call(tenant), "usr_1").await;
    let operator = running.operator_key("root").await;
    let keys = backups(&running.test).join("keys");
    let read = || -> Vec<(String, Vec<u8>)> {
        let mut all: Vec<_> = std::fs::read_dir(&keys).unwrap().map(|e| e.unwrap()).collect();
        all.sort_by_key(|entry| entry.file_name());
        let read = |e: std::fs::DirEntry| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap());
        all.into_iter().map(read).filter(|(name, _)| name.ends_with(".keys")).collect()
    };
    let before = read();
    assert!(before.len() >= 2);
    disk.resize(disk.used());
    let done = backup(&running, &operator, pb::BackupPart::Keys).await;
    assert_eq!(done.state(), pb::OperationState::Failed, "{done:?}");
    assert!(read() == before, "the files of before stay, to the byte");
    // Nobody comes whose key would be in no archive, once the slots that are recorded are given; those who are there go on.
    let call = running.test.call(tenant);
    let mut refused = None;
    for n in 0..30_000 {
        let email = format!("many_{n}@example.com");
        let one = put(&call, &format!("many_{n}"), &[("name", "Asha"), ("email", &email)]);
        if let Err(error) =
            running.test.node.vault.put_fields(&call, &purpose(&call, "service"), one, None, false).await
        {
            refused = Some(error);
            break;
        }
    }
    assert!(matches!(refused, Some(VaultError::Keyring(KeyringError::Uncovered { .. }))), "{refused:?}");
    disk.resize(16 << 10);
    person(&running.test, &call, "usr_2").await;
    assert_eq!(backup(&running, &operator, pb::BackupPart::Keys).await.state(), pb::OperationState::Succeeded);
    drop(call);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_night_makes_one_archive_and_what_is_past_its_horizon_goes() {
    let mut t = TestVault::new().await;
    t.config.backup.horizon_days = 2;
    let mut t = t.restart().await;
    let mut made = 0;
    let settle = async |t: &TestVault| {
        // A backup is asked for when it begins; the end of the former is the beginning of nothing.
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            let call = t.node.vault.local_call(TenantNo::VAULT).unwrap();
            let page = t.node.vault.list_operations(&call, None, 1).await.unwrap();
            if page.rows.first().is_none_or(|operation| operation.status.is_final()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("a backup does not end");
    };
    // Every hour of six days.
    for hour in 0..6 * 24 {
        made += u32::from(t.node.backups.nightly().await.unwrap());
        settle(&t).await;
        t.clock.advance_ms(DAY_MS / 24);
        if hour == 30 {
            t = t.restart().await;
        }
    }
    assert_eq!(made, 7, "one at once, then one each night at two");
    let all = catalogue::list(&backups(&t)).unwrap();
    let oldest = all.last().unwrap().made_at().unwrap();
    assert!(t.now().0 - oldest.0 <= 3 * DAY_MS && all.len() == 2, "{all:?}");
    // Nightly backups that fail leave the last one, however old.
    t.clock.advance_days(50);
    let call = t.node.vault.local_call(TenantNo::VAULT).unwrap();
    let gone = t.node.backups.prune(&call, false).await.unwrap();
    assert_eq!((gone.len(), catalogue::list(&backups(&t)).unwrap().len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn t08_an_archive_of_yesterday_opens_everyone_living_and_nobody_erased_under_the_live_keys() {
    let running = Running::new().await;
    let tenant = running.test.tenant("jina", JINA).await;
    let operator = running.operator_key("root").await;
    let call = running.test.call(tenant);
    for n in 0..120 {
        person(&running.test, &call, &format!("usr_{n}")).await;
    }
    backup(&running, &operator, pb::BackupPart::Data).await;
    running.test.clock.advance_days(1);
    let call = running.test.call(tenant);
    for n in 0..100 {
        let subject = key(&format!("usr_{n}"));
        let none = Context::default();
        running.test.node.vault.erase_subject(&call, &none, &subject, &[], None, false).await.expect("erase");
    }
    let dir = only(&backups(&running.test));
    let t = running.stop().await;
    let proof = prove(&t.node, &dir).await.expect("prove");
    let one = &proof.tenants[0];
    assert!(proof.holds && !one.old_tree_opens, "{proof:?}");
    assert_eq!((one.living, one.living_opened), (20, 20));
    assert!(one.erased >= 100 && one.erased_opened == 0, "{proof:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_backup_is_ended_at_the_next_start() {
    let t = TestVault::new().await;
    let call = t.node.vault.local_call(TenantNo::VAULT).unwrap();
    // As a kill leaves it: the operation runs, its files are half made.
    let (operation, _) = t.node.vault.begin_backup(&call, None).await.unwrap();
    let partial = backups(&t).join(catalogue::partial_of("20260115T120000Z"));
    std::fs::create_dir_all(&partial).unwrap();
    std::fs::write(partial.join(DATABASE), "half").unwrap();
    let t = t.restart().await;
    let call = t.node.vault.local_call(TenantNo::VAULT).unwrap();
    let ended = t.node.vault.get_operation(&call, operation.id).await.unwrap();
    assert!(ended.status.is_final(), "{ended:?}");
    t.node.backups.nightly().await.unwrap();
    t.node.backups.stop().await;
    assert!(!partial.exists(), "the next backup removes it");
}

#[tokio::test(flavor = "multi_thread")]
async fn je14_backups_are_deleted_after_90_days_and_open_no_erased_person_before() {
    let mut t = TestVault::new().await;
    t.config.backup.horizon_days = 90;
    let t = t.restart().await;
    let tenant = t.tenant("jenny", JINA).await;
    for n in 0..3 {
        person(&t, &t.call(tenant), &format!("usr_{n}")).await;
    }
    let night = async |t: &TestVault| {
        t.node.backups.nightly().await.unwrap();
        // `stop` waits for the end; there is nothing left to stop by then, or it was stopped: then there is no archive.
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            let call = t.node.vault.local_call(TenantNo::VAULT).unwrap();
            let page = t.node.vault.list_operations(&call, None, 1).await.unwrap();
            if page.rows.first().is_none_or(|operation| operation.status.is_final()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("a backup does not end");
    };
    night(&t).await;
    t.clock.advance_days(1);
    let none = Context::default();
    t.node.vault.erase_subject(&t.call(tenant), &none, &key("usr_0"), &[], None, false).await.expect("erase");
    let yesterday = only(&backups(&t));
    let proof = prove(&t.node, &yesterday).await.expect("prove");
    let one = &proof.tenants[0];
    assert!(proof.holds && one.erased_opened == 0 && (one.living, one.living_opened) == (2, 2), "{proof:?}");

    for _ in 1..100 {
        night(&t).await;
        t.clock.advance_days(1);
        let all = catalogue::list(&backups(&t)).unwrap();
        let oldest = all.last().unwrap().made_at().unwrap();
        // The job looks each minute, the test once a day.
        assert!(t.now().0 - oldest.0 <= 91 * DAY_MS, "an archive outlives its horizon");
    }
    assert!(!yesterday.exists());
}
