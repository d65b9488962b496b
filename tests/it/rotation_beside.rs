//! What rotations leave of old versions, and rotations beside one another, erasures, policy changes, backups and restores.

use std::path::Path;
use std::time::{Duration, Instant};

use pii_vault::clock::DAY_MS;
use pii_vault::crypto::keys::TenantSecret;
use pii_vault::grpc::pb;
use pii_vault::ids::*;
use pii_vault::keyring::SecretKind;
use pii_vault::receipt::rotation::{Fate, Kind};
use pii_vault::server::prove::{copy_database, prove};
use pii_vault::server::restore::RestoreRequest;
use pii_vault::storage::Store;
use pii_vault::storage::sqlite::{Options, SqliteStore};
use pii_vault::vault::operation::OperationKind;
use pii_vault::vault::{Call, Vault};
use tonic::Code;

use crate::erase::person;
use crate::harness::*;
use crate::net::*;
use crate::restore::{Lost, close, erase, of, read};
use crate::rotating::Scene;

async fn backups_end(vault: &Vault, call: &Call) {
    let begun = Instant::now();
    loop {
        let page = vault.list_operations(call, None, 100).await.unwrap();
        if page.rows.iter().filter(|one| one.kind == OperationKind::Backup).all(|one| one.status.is_final()) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "a backup does not end");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl Scene {
    /// Everything that waits for time gets it.
    async fn until_all_ended(&self) {
        for _ in 0..4 {
            self.running.test.clock.advance_ms(DAY_MS + 3_600_000);
            for no in [TenantNo::VAULT, self.tenant] {
                self.running.test.node.vault.run_due_work(no).await.expect("it goes on");
            }
        }
    }

    fn secret_of(&self, tenant: TenantNo, kind: SecretKind) -> DekId {
        let keyring = &self.running.test.node.keyring;
        keyring.with_secret(tenant, kind, SecretVersion(1), TenantSecret::id).expect("open")
    }

    /// Whether the present root of a tenant opens the tree in a copy.
    async fn opens(&self, copy: &Path, tenant: TenantNo) -> bool {
        let keyring = &self.running.test.node.keyring;
        // Opened apart from the copy, which stays as it is.
        let scratch = tempfile::tempdir().unwrap();
        copy_database(copy, scratch.path()).expect("copy");
        let options = Options::new(scratch.path().join("vault.db"), keyring.vault());
        let store = SqliteStore::open(options).expect("the copy");
        let top =
            store.nodes(tenant, vec![Ordinal(0)]).await.expect("nodes").nodes.pop().flatten().expect("a top node");
        store.close().await;
        keyring.root_opens(&top).expect("the vault's own keys are open")
    }

    async fn found(&self, email: &str) -> Vec<String> {
        let mut subjects = pb::subject_service_client::SubjectServiceClient::new(self.running.channel.clone());
        let term = Some(pb::Term { field_id: EMAIL, text: email.into(), ..Default::default() });
        let find = pb::FindSubjectsRequest { term, context: for_purpose(SERVICE), ..Default::default() };
        let found = subjects.find_subjects(with(&self.key, find)).await.expect("find").into_inner().subjects;
        found.into_iter().map(|one| one.subject).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn t05_once_a_record_says_destroyed_the_old_version_opens_nothing() {
    for (kind, wanted, secret) in [
        (pb::KeyKind::TenantRoot, Kind::TenantRoot, None),
        (pb::KeyKind::Tree, Kind::Tree, None),
        (pb::KeyKind::Data, Kind::Data, None),
        (pb::KeyKind::Index, Kind::Index, Some(SecretKind::Index)),
        (pb::KeyKind::PasswordPepper, Kind::PasswordPepper, Some(SecretKind::PasswordPepper)),
        (pb::KeyKind::AccessKeyPepper, Kind::AccessKeyPepper, Some(SecretKind::ApiPepper)),
        (pb::KeyKind::PageToken, Kind::PageToken, Some(SecretKind::PageToken)),
    ] {
        let own = matches!(wanted, Kind::AccessKeyPepper | Kind::PageToken);
        let s = Scene::new().await;
        for n in 0..5 {
            s.person(&format!("u-{n}")).await;
        }
        let (tenant, no) = if own { ("", TenantNo::VAULT) } else { ("jina", s.tenant) };
        let copy = s.running.test.dir.path().join("copy");
        copy_database(&s.running.test.config.data_dir, &copy).expect("copy");
        let old = secret.map(|secret| s.secret_of(no, secret));
        let before = s.running.test.node.keyring.generation(no).unwrap();
        let request = pb::RotateKeysRequest {
            kind: kind as i32,
            tenant: tenant.into(),
            revoke_time: (wanted == Kind::AccessKeyPepper)
                .then(|| prost_types::Timestamp { seconds: s.running.test.now().0 / 1_000 + 60, nanos: 0 }),
            ..Default::default()
        };
        s.keys().rotate_keys(with(&s.operator, request)).await.expect("rotate");
        let (operator, app) =
            (s.running.operator_key("second").await, s.running.key_until(s.tenant, "app-2", None).await);
        s.until_all_ended().await;
        let s = Scene { operator, key: app.0, ..s };
        let record = s.record(tenant).await;
        assert_eq!((record.kind, record.fate), (wanted, Fate::Destroyed));
        // Every root that led to the old version is gone, and with it every copy of the tree from before.
        let keyring = &s.running.test.node.keyring;
        assert!(record.generation > before && keyring.generation(no).unwrap() >= record.generation, "{wanted:?}");
        assert!(!s.opens(&copy, no).await, "{wanted:?}: the copy's tree opens");
        if let (Some(secret), Some(old)) = (secret, old) {
            assert_ne!(s.secret_of(no, secret), old, "{wanted:?}: its slot holds another key");
        }
        let proof = prove(&s.running.test.node, &copy).await.expect("prove");
        let jina = proof.tenants.iter().find(|one| one.tenant == "jina").unwrap();
        assert!(proof.holds, "{wanted:?}: {proof:?}");
        match wanted {
            Kind::Data => assert_eq!((jina.living_opened, jina.values_opened), (0, 0)),
            _ => assert_eq!((jina.living, jina.living_opened), (5, 5), "{wanted:?}: data keys are what they were"),
        }
        for n in 0..5 {
            assert_eq!(s.name_of(&format!("u-{n}")).await.expect("read"), "Jane Roe");
            assert_eq!(s.found(&format!("u-{n}@example.com")).await, [format!("u-{n}")]);
        }
        s.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rotations_of_every_kind_run_beside_erasures_policy_changes_backups_and_one_another() {
    let s = Scene::with_next_root().await;
    const PEOPLE: usize = 150;
    for n in 0..PEOPLE {
        s.person(&format!("u-{n}")).await;
    }
    let keyring = &s.running.test.node.keyring;
    while keyring.leaves(s.tenant).await.unwrap() < 300 {
        keyring.allocate(s.tenant, 30_000).await.expect("slots");
    }
    let mut asked = Vec::new();
    for (kind, tenant) in [
        (pb::KeyKind::Data, "jina"),
        (pb::KeyKind::Tree, "jina"),
        (pb::KeyKind::Index, "jina"),
        (pb::KeyKind::PasswordPepper, "jina"),
        (pb::KeyKind::Root, ""),
        (pb::KeyKind::AccessKeyPepper, ""),
        (pb::KeyKind::PageToken, ""),
    ] {
        asked.push((s.rotate(kind, tenant).await.expect("rotate"), kind, tenant));
        assert_eq!(s.rotate(kind, tenant).await.expect("twice"), asked.last().unwrap().0, "{kind:?}");
    }
    let vault = s.running.test.node.vault.clone();
    let jobs = async {
        for _ in 0..40 {
            for no in [TenantNo::VAULT, s.tenant] {
                let call = vault.job_call(vault.tenant(no).unwrap());
                vault.go_on_rotations(&call, 20).await.expect("it goes on");
                if no != TenantNo::VAULT {
                    vault.go_on_index(&call, 20).await.expect("the index");
                }
            }
            tokio::task::yield_now().await;
        }
    };
    let people = async {
        for n in 0..30 {
            assert_eq!(s.name_of(&format!("u-{n}")).await.expect("read"), "Jane Roe");
            assert_eq!(s.found(&format!("u-{}@example.com", n + 60)).await.len(), 1, "u-{}", n + 60);
            s.person(&format!("new-{n}")).await;
            if n % 3 == 0 {
                s.erase(&format!("u-{}", 100 + n)).await;
            }
            if n % 10 == 5 {
                asked_signing(&s).await;
            }
        }
    };
    let others = async {
        let call = s.running.test.call(s.tenant);
        vault
            .apply_policy(&call, &format!("{JINA}\n# the second version\n"), None, None, None, false)
            .await
            .expect("a policy");
        s.running.test.node.backups.nightly().await.expect("a backup begins");
    };
    tokio::join!(jobs, people, others);
    let own = vault.local_call(TenantNo::VAULT).unwrap();
    backups_end(&vault, &own).await;
    s.erase("u-1").await; // after the night
    // Old access keys go on; nothing is left under the old pepper once they are issued anew or revoked.
    let operator = s.running.operator_key("second").await;
    let app = s.running.key_until(s.tenant, "app-2", None).await.0;
    let deadline = Some(s.running.test.now().plus_ms(60_000));
    let secret = pii_vault::vault::rotation::OwnSecret::AccessKeyPepper;
    vault.rotate_own_secret(&own, secret, deadline, None).await.expect("a deadline");
    drop((own, vault));
    s.until_all_ended().await;
    let s = Scene { operator, key: app, ..s };
    for (operation, kind, tenant) in &asked {
        assert_eq!(s.operation(operation, tenant).await.state(), pb::OperationState::Succeeded, "{kind:?}");
    }
    let living = |n: &usize| *n != 1 && !((100..130).contains(n) && (*n - 100).is_multiple_of(3));
    for n in (0..PEOPLE).filter(living) {
        assert_eq!(s.name_of(&format!("u-{n}")).await.expect("read"), "Jane Roe", "u-{n}");
        assert_eq!(s.found(&format!("u-{n}@example.com")).await, [format!("u-{n}")]);
    }
    for n in (0..30).step_by(3) {
        assert_eq!(s.name_of(&format!("u-{}", 100 + n)).await.unwrap_err().code(), Code::NotFound);
        assert!(s.found(&format!("u-{}@example.com", 100 + n)).await.is_empty());
    }

    // A restore finds the keeper's root key, although the configuration still names the former one first. The archive is from
    // the middle of the rotation of data keys, and the key archive of its own day was written over since: who was moved after
    // it is counted as lost, and nobody who was erased, before or since, is among those whom it brings back.
    let (tenant, public_keys) = (s.tenant, s.running.test.node.vault.receipt_keys());
    let lost: Lost = close(s.running.stop().await).await;
    // It was signed before the signing key was rotated.
    let request = lost.request(lost.config.backups_dir());
    let report = lost.restore(RestoreRequest { public_keys, accept_lost: true, ..request }).await.expect("restore");
    assert!(report.tail_known, "{report:?}");
    let t = lost.open().await;
    let mut gone = 0;
    for n in (0..PEOPLE).filter(living) {
        gone += u64::from(read(&t, tenant, &format!("u-{n}")).await.is_err());
    }
    assert!(gone <= of(&report, "jina").lost, "{gone} of the living are not there: {report:?}");
    for n in (0..PEOPLE).filter(|n| !living(n)) {
        let there = read(&t, tenant, &format!("u-{n}")).await;
        assert!(there.is_err(), "u-{n} is back");
    }
}

async fn asked_signing(s: &Scene) {
    s.rotate(pb::KeyKind::Signing, "").await.expect("a signing key");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_of_a_day_in_a_rotation_goes_on_with_it() {
    let s = Scene::new().await;
    for n in 0..300 {
        person(&s.running.test, &s.running.test.call(s.tenant), &format!("u-{n}")).await;
    }
    for kind in [pb::KeyKind::Data, pb::KeyKind::PasswordPepper] {
        s.rotate(kind, "jina").await.expect("rotate");
    }
    s.rotate(pb::KeyKind::PageToken, "").await.expect("rotate");
    let vault = s.running.test.node.vault.clone();
    vault.go_on_rotations(&vault.job_call(vault.tenant(s.tenant).unwrap()), 1).await.expect("a step");
    drop(vault);
    let tenant = s.tenant;
    let t = s.running.stop().await;
    t.node.backups.nightly().await.expect("begin");
    let own = t.node.vault.local_call(TenantNo::VAULT).unwrap();
    backups_end(&t.node.vault, &own).await;
    drop(own);
    t.clock.advance_ms(3_600_000);
    erase(&t, tenant, "u-7").await;
    let lost = close(t).await;
    lost.restore(lost.request(lost.config.backups_dir())).await.expect("restore");
    let t = lost.open().await;
    for _ in 0..4 {
        t.clock.advance_ms(DAY_MS + 3_600_000);
        for no in [TenantNo::VAULT, tenant] {
            t.node.vault.run_due_work(no).await.expect("it goes on");
        }
    }
    for no in [TenantNo::VAULT, tenant] {
        let call = t.node.vault.local_call(no).unwrap();
        for operation in t.node.vault.list_operations(&call, None, 100).await.unwrap().rows {
            assert!(operation.status.is_final() || operation.rotation.is_none(), "{operation:?}");
        }
    }
    for n in 0..300 {
        assert_eq!(read(&t, tenant, &format!("u-{n}")).await.is_ok(), n != 7, "u-{n}");
    }
}
