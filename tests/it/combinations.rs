//! Databases, keepers and replicas of different times put together: a test for each row of the table of faults that the
//! keeper, the states at start and the replicas decide. Rows about restores are beside the restore.

use std::path::{Path, PathBuf};
use std::process::Command;

use pii_vault::crypto::recovery::RecoveryIdentity;
use pii_vault::ids::*;
use pii_vault::keyring::TenantKeyState;
use pii_vault::keyring::keeper::ReplicaState;
use pii_vault::receipt::Receipt;
use pii_vault::server::Node;
use pii_vault::server::node::{NodeError, add_replicas};
use pii_vault::vault::find::Key;
use pii_vault::vault::operation::OperationStatus;
use pii_vault::vault::read::Select;
use pii_vault::vault::{Context, VaultError};

use crate::erase::{key, person};
use crate::harness::*;

/// The files of a vault, closed.
struct Files {
    dir: tempfile::TempDir,
    config: pii_vault::config::Config,
    clock: std::sync::Arc<pii_vault::clock::ManualClock>,
    recovery: RecoveryIdentity,
}

async fn close(t: TestVault) -> Files {
    let TestVault { dir, config, clock, node, recovery } = t;
    // As the job does it within a second of each change.
    node.vault.keep_anchor().await.expect("anchor");
    node.close().await;
    Files { dir, config, clock, recovery }
}

impl Files {
    async fn open(self) -> TestVault {
        let Files { dir, config, clock, recovery } = self;
        let node = Node::open(&config, clock.clone()).await.expect("open");
        TestVault { dir, config, clock, node, recovery }
    }

    async fn refused(&self) -> NodeError {
        match Node::open(&self.config, self.clock.clone()).await {
            Err(error) => error,
            Ok(_) => panic!("it opens"),
        }
    }

    /// A copy of a folder of the vault beside it.
    fn keep(&self, folder: &Path, name: &str) -> PathBuf {
        let to = self.dir.path().join(name);
        copy(folder, &to);
        to
    }

    /// Puts a kept copy in the place of a folder.
    fn put_back(&self, kept: &Path, folder: &Path) {
        std::fs::remove_dir_all(folder).unwrap();
        copy(kept, folder);
    }
}

pub fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// A vault with a second replica, made as an operator makes it.
async fn with_two_replicas() -> TestVault {
    let mut files = close(TestVault::new().await).await;
    files.config.keeper.paths.push(files.dir.path().join("keeper-b"));
    let replicas = add_replicas(&files.config, files.clock.clone()).await.expect("add");
    assert!(replicas.len() == 2 && replicas.iter().all(|it| it.state == ReplicaState::Active), "{replicas:?}");
    files.open().await
}

async fn erase(t: &TestVault, tenant: TenantNo, subject: &str) -> pii_vault::vault::erase::Erasure {
    let none = Context::default();
    t.node.vault.erase_subject(&t.call(tenant), &none, &key(subject), &[], None, false).await.expect("erase")
}

async fn readable(t: &TestVault, tenant: TenantNo, subject: &str) -> bool {
    let call = t.call(tenant);
    let context = purpose(&call, "service");
    t.node.vault.get_fields(&call, &context, &Key::Subject(id(subject)), &Select::default()).await.is_ok()
}

async fn verified(t: &TestVault) -> pii_vault::keyring::care::KeeperReport {
    let call = t.node.vault.local_call(TenantNo::VAULT).unwrap();
    t.node.vault.verify_keeper(&call).await.expect("verify")
}

#[tokio::test(flavor = "multi_thread")]
async fn row_replicas_differ_and_the_old_one_gets_the_present_roots() {
    let t = with_two_replicas().await;
    let tenant = t.tenant("alpha", JINA).await;
    for subject in ["usr_1", "usr_2"] {
        person(&t, &t.call(tenant), subject).await;
    }
    let files = close(t).await;
    let second = files.config.keeper.paths[1].clone();
    let old = files.keep(&second, "old-b");
    let t = files.open().await;
    let erased = erase(&t, tenant, "usr_1").await;
    assert_eq!(erased.operation.status, OperationStatus::Done);
    let files = close(t).await;
    files.put_back(&old, &second);
    let t = files.open().await;
    let report = verified(&t).await;
    assert_eq!(report.problems, Vec::<String>::new());
    assert!(report.tenants.iter().all(|one| (one.holding, one.older, one.torn) == (2, 0, 0)), "{report:?}");
    assert!(readable(&t, tenant, "usr_2").await && !readable(&t, tenant, "usr_1").await);
    // It also works the other way: whoever has the right generation is the source.
    let files = close(t).await;
    let first = files.config.keeper.paths[0].clone();
    std::fs::remove_dir_all(&first).unwrap();
    add_replicas(&files.config, files.clock.clone()).await.expect_err("a member is missing: it must be retired first");
}

#[tokio::test(flavor = "multi_thread")]
async fn row_all_replicas_old_is_keeper_behind_and_stops_only_its_tenant() {
    let t = with_two_replicas().await;
    let (alpha, beta) = (t.tenant("alpha", JINA).await, t.tenant("beta", JINA).await);
    for tenant in [alpha, beta] {
        person(&t, &t.call(tenant), "usr_1").await;
    }
    let files = close(t).await;
    let paths = files.config.keeper.paths.clone();
    let old: Vec<PathBuf> = paths.iter().enumerate().map(|(i, p)| files.keep(p, &format!("old-{i}"))).collect();
    let t = files.open().await;
    person(&t, &t.call(alpha), "usr_2").await;
    erase(&t, alpha, "usr_1").await;
    let files = close(t).await;
    for (kept, path) in old.iter().zip(&paths) {
        files.put_back(kept, path);
    }
    let t = files.open().await;
    assert_eq!(t.node.keyring.state(alpha), TenantKeyState::KeeperBehind);
    assert!(matches!(t.node.vault.tenant(alpha), Err(VaultError::KeysNotReady(TenantKeyState::KeeperBehind))));
    assert!(TenantKeyState::KeeperBehind.advice().contains("pii-vault restore"));
    assert!(readable(&t, beta, "usr_1").await, "the other tenant serves");
    let report = verified(&t).await;
    assert_eq!(report.tenants.iter().filter(|one| one.state != TenantKeyState::Ready).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn row_t15_an_old_database_is_behind_by_generation_and_cannot_be_accepted() {
    let t = TestVault::new().await;
    let tenant = t.tenant("alpha", JINA).await;
    person(&t, &t.call(tenant), "usr_1").await;
    let files = close(t).await;
    let old = files.keep(&files.config.data_dir, "old-data");
    let t = files.open().await;
    t.clock.advance_ms(1_000);
    erase(&t, tenant, "usr_1").await;
    let files = close(t).await;
    let keeper = std::fs::read(files.config.keeper.paths[0].join("roots.keeper")).unwrap();
    files.put_back(&old, &files.config.data_dir);
    let NodeError::DatabaseBehind(rollback) = files.refused().await else { panic!("another refusal") };
    assert_eq!(rollback.behind, [tenant]);
    assert!(!rollback.acceptable() && rollback.missing > 0 && rollback.advice().contains("restore"), "{rollback:?}");
    let refused = Node::accept_rollback(&files.config, files.clock.clone()).await;
    assert!(matches!(refused, Err(NodeError::Vault(VaultError::WrongState(_)))), "{refused:?}");
    let after = std::fs::read(files.config.keeper.paths[0].join("roots.keeper")).unwrap();
    assert!(keeper == after, "nothing is written to the keeper");
}

#[tokio::test(flavor = "multi_thread")]
async fn row_t15_an_old_database_is_behind_by_the_anchor_and_may_be_accepted() {
    let t = TestVault::new().await;
    let tenant = t.tenant("alpha", JINA).await;
    person(&t, &t.call(tenant), "usr_1").await;
    let files = close(t).await;
    let old = files.keep(&files.config.data_dir, "old-data");
    let t = files.open().await;
    t.clock.advance_ms(1_000);
    person(&t, &t.call(tenant), "usr_2").await;
    let files = close(t).await;
    files.put_back(&old, &files.config.data_dir);
    let NodeError::DatabaseBehind(rollback) = files.refused().await else { panic!("another refusal") };
    assert!(rollback.acceptable() && rollback.advice().contains("accept-rollback"), "{rollback:?}");
    assert_eq!(rollback.missing, 1);
    Node::accept_rollback(&files.config, files.clock.clone()).await.expect("accept");
    let t = files.open().await;
    assert!(readable(&t, tenant, "usr_1").await && !readable(&t, tenant, "usr_2").await, "the writes since are lost");
    let files = close(t).await;
    let again = Node::accept_rollback(&files.config, files.clock.clone()).await;
    assert!(matches!(again, Err(NodeError::Vault(VaultError::WrongState(_)))), "there is nothing to accept");
}

#[tokio::test(flavor = "multi_thread")]
async fn row_t15_a_rollback_that_would_revive_a_revoked_key_is_not_accepted() {
    let t = TestVault::new().await;
    t.tenant("alpha", JINA).await;
    let own = t.node.vault.local_call(TenantNo::VAULT).unwrap();
    let issued = t.node.vault.issue_first_key(Name::parse("name", "second").unwrap()).await.unwrap();
    let files = close(t).await;
    let old = files.keep(&files.config.data_dir, "old-data");
    let t = files.open().await;
    t.clock.advance_ms(1_000);
    drop(own);
    let own = t.node.vault.local_call(TenantNo::VAULT).unwrap();
    t.node.vault.revoke_access_key(&own, issued.key.id, None).await.expect("revoke");
    drop(own);
    let files = close(t).await;
    files.put_back(&old, &files.config.data_dir);
    let NodeError::DatabaseBehind(rollback) = files.refused().await else { panic!("another refusal") };
    assert_eq!((rollback.behind.len(), rollback.decisions), (0, 1));
    let refused = Node::accept_rollback(&files.config, files.clock.clone()).await;
    assert!(matches!(refused, Err(NodeError::Vault(VaultError::WrongState(_)))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn row_an_old_database_with_its_old_keeper_opens_as_of_then() {
    let t = TestVault::new().await;
    let tenant = t.tenant("alpha", JINA).await;
    person(&t, &t.call(tenant), "usr_1").await;
    let files = close(t).await;
    let data = files.keep(&files.config.data_dir, "old-data");
    let keeper = files.keep(&files.config.keeper.paths[0], "old-keeper");
    let t = files.open().await;
    erase(&t, tenant, "usr_1").await;
    let files = close(t).await;
    files.put_back(&data, &files.config.data_dir);
    files.put_back(&keeper, &files.config.keeper.paths[0]);
    let t = files.open().await;
    // The stated exclusion: who copied the keeper too has a copy of the keys. Nothing in the two can show it.
    assert!(readable(&t, tenant, "usr_1").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn row_a_replica_away_blocks_erasures_not_access_until_it_is_back() {
    let t = with_two_replicas().await;
    let tenant = t.tenant("alpha", JINA).await;
    for subject in ["usr_1", "usr_2"] {
        person(&t, &t.call(tenant), subject).await;
    }
    let files = close(t).await;
    let second = files.config.keeper.paths[1].clone();
    let aside = files.dir.path().join("aside");
    std::fs::rename(&second, &aside).unwrap();
    let t = files.open().await;
    assert_eq!(verified(&t).await.problems.len(), 1);
    let none = Context::default();
    let vault = &t.node.vault;
    let asked = vault.erase_subject(&t.call(tenant), &none, &key("usr_1"), &[], None, false).await;
    assert!(asked.is_err() || !asked.as_ref().unwrap().operation.status.is_final(), "not called done");
    assert!(!readable(&t, tenant, "usr_1").await, "access is refused from the asking on");
    assert!(readable(&t, tenant, "usr_2").await, "the others are read");
    assert_eq!(vault.keep_replicas().await.unwrap(), 0);

    std::fs::rename(&aside, &second).unwrap();
    assert_eq!(vault.keep_replicas().await.unwrap(), 1, "it is back without a restart");
    t.node.vault.run_due_work(tenant).await.expect("due work");
    let report = verified(&t).await;
    assert_eq!(report.problems, Vec::<String>::new());
    assert!(report.tenants.iter().all(|one| (one.holding, one.older) == (2, 0)), "{report:?}");
    let page = vault.list_operations(&t.call(tenant), None, 10).await.unwrap();
    assert!(page.rows.iter().all(|operation| operation.status == OperationStatus::Done), "{:?}", page.rows);
}

#[tokio::test(flavor = "multi_thread")]
async fn row_a_retired_replica_is_named_in_receipts_and_wiped_when_it_returns() {
    let t = with_two_replicas().await;
    let tenant = t.tenant("alpha", JINA).await;
    for subject in ["usr_1", "usr_2"] {
        person(&t, &t.call(tenant), subject).await;
    }
    let files = close(t).await;
    let second = files.config.keeper.paths[1].clone();
    let aside = files.dir.path().join("aside");
    std::fs::rename(&second, &aside).unwrap();
    let t = files.open().await;
    let vault = &t.node.vault;
    let own = vault.local_call(TenantNo::VAULT).unwrap();
    let replicas = vault.keeper().replicas();
    let name: String = replicas[1].id.iter().map(|byte| format!("{byte:02x}")).collect();
    let wrong = vault.retire_replica(&own, 0, &name).await;
    assert!(matches!(wrong, Err(VaultError::NotFound)), "place and name must belong together");
    let first: String = replicas[0].id.iter().map(|byte| format!("{byte:02x}")).collect();
    let active = vault.retire_replica(&own, 0, &first).await;
    assert!(matches!(active, Err(VaultError::WrongState(_))), "one that takes part stays: {active:?}");
    vault.retire_replica(&own, 1, &name).await.expect("retire");

    let erased = erase(&t, tenant, "usr_1").await;
    assert_eq!(erased.operation.status, OperationStatus::Done, "erasures go on without it");
    let receipt = Receipt::verify(&erased.receipt.unwrap(), &vault.receipt_keys()).expect("verifies").receipt;
    assert_eq!(receipt.keeper.retired_replicas.len(), 1);
    assert!(receipt.render().contains(&name), "{}", receipt.render());
    drop(own);

    let files = close(t).await;
    assert!(std::fs::read(aside.join("roots.keeper")).unwrap().iter().any(|byte| *byte != 0));
    std::fs::rename(&aside, &second).unwrap();
    let t = files.open().await;
    let bytes = std::fs::read(second.join("roots.keeper")).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0), "wiped before anything else");
    assert!(readable(&t, tenant, "usr_2").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn row_a_tombstone_is_tenant_erased_and_stops_only_its_tenant() {
    let t = TestVault::new().await;
    let (alpha, beta) = (t.tenant("alpha", JINA).await, t.tenant("beta", JINA).await);
    for tenant in [alpha, beta] {
        person(&t, &t.call(tenant), "usr_1").await;
    }
    let vault = &t.node.vault;
    let call = vault.call(t.operator(), vault.tenant(alpha).unwrap());
    vault.erase_tenant(&call, &[], None, false).await.expect("erase the tenant");
    drop(call);
    let t = close(t).await.open().await;
    assert_eq!(t.node.keyring.state(alpha), TenantKeyState::TenantErased);
    assert!(matches!(t.node.vault.tenant(alpha), Err(VaultError::TenantErased)));
    assert!(readable(&t, beta, "usr_1").await);
    assert_eq!(verified(&t).await.problems, Vec::<String>::new());
}
