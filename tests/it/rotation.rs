//! Rotations over gRPC: each ends, is resumed after a restart, and leaves a signed record after which old copies open
//! nothing. JE19 and JE20.

use std::path::Path;

use data_encoding::HEXLOWER;
use pii_vault::config::RootKekSource;
use pii_vault::grpc::pb;
use pii_vault::ids::*;
use pii_vault::keyring::keeper::{FileKeeper, Keeper, Link, OwnBlock};
use pii_vault::receipt::Receipt;
use pii_vault::receipt::rotation::{Fate, Kind, RotationRecord};
use pii_vault::server::Node;
use pii_vault::server::prove::{copy_database, prove};
use tonic::Code;

use crate::harness::*;
use crate::net::*;
use crate::rotating::Scene;

pub fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signing_key_rotates_and_what_the_old_one_signed_verifies() {
    let mut s = Scene::new().await;
    s.person("before").await;
    s.person("after").await;
    let first = s.erase("before").await;
    let old = s.running.test.node.vault.receipt_keys();
    let keeper = s.running.test.node.keyring.keeper();
    let sealed = keeper.own(OwnBlock::Signing).await.unwrap().unwrap().1[48..108].to_vec();
    assert!(contains(&s.keeper_bytes(), &sealed));

    let operation = s.rotate(pb::KeyKind::Signing, "").await.expect("rotate");
    let done = s.operation(&operation, "").await;
    assert_eq!((done.state(), done.kind()), (pb::OperationState::Succeeded, pb::OperationKind::SigningRotation));
    assert!(!contains(&s.keeper_bytes(), &sealed), "the old private key is in neither place of its block");
    let second = s.erase("after").await;

    for restarted in [false, true] {
        if restarted {
            s = s.restart().await;
        }
        let mut erasures = pb::erasure_service_client::ErasureServiceClient::new(s.running.channel.clone());
        let keys =
            erasures.get_receipt_keys(with(&s.key, pb::GetReceiptKeysRequest {})).await.unwrap().into_inner().keys;
        let public: Vec<[u8; 32]> = keys.iter().map(|key| key.public_key.as_ref().try_into().unwrap()).collect();
        assert_eq!((public.len(), public[1]), (2, old[0]));
        Receipt::verify(&first, &public).expect("of before");
        Receipt::verify(&second, &public[..1]).expect("of after");
        assert!(Receipt::verify(&second, &old).is_err());
        let signature = keys[0].chain_signature.as_ref().try_into().expect("64 bytes");
        let link = Link { former: old[0], signature };
        let vault = s.running.test.node.keyring.vault();
        assert!(link.is_right(vault, &public[0]) && !link.is_right(vault, &old[0]));
        assert!(keys[1].chain_signature.is_empty(), "the first key has none before it");
        let record = s.record("").await;
        assert_eq!((record.kind, record.fate, record.lost), (Kind::Signing, Fate::Destroyed, 0));
        assert_eq!(record.from.id, Some(HEXLOWER.encode(&old[0])));
        assert_eq!(record.to.id, Some(HEXLOWER.encode(&public[0])));
        let keeper = s.running.test.node.keyring.verify_keeper().await.expect("verify");
        assert_eq!(keeper.problems, Vec::<String>::new(), "the ledger verifies with both keys");
        let written = s.running.test.node.vault.write_key_archives(true).await.expect("archives");
        assert!(written.failed.is_empty() && !written.written.is_empty());
    }
    s.person("later").await;
    let third = s.rotate(pb::KeyKind::Signing, "").await.expect("again");
    assert_eq!(s.operation(&third, "").await.state(), pb::OperationState::Succeeded);
    let s = s.restart().await;
    Receipt::verify(&first, &s.running.test.node.vault.receipt_keys()).expect("two rotations later");
    assert_eq!(s.listed("", pb::KeyKind::Signing).await[0].version, 3);
    s.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_key_rotates_online_and_the_old_one_opens_nothing() {
    let s = Scene::with_next_root().await;
    s.person("ana").await;
    for n in 0..20 {
        s.running.test.tenant(&format!("other-{n}"), JINA).await;
    }
    let config = s.running.test.config.clone();
    let former = s.running.test.node.keyring.kek_id();
    let Some(RootKekSource::File { path: old_file }) = config.root_kek.clone() else { unreachable!() };
    let Some(RootKekSource::File { path: new_file }) = config.root_kek_next.clone() else { unreachable!() };
    let stolen = s.keeper_bytes();
    assert!(contains(&stolen, &former) && old_file.exists() && !new_file.exists());

    let operation = s.rotate(pb::KeyKind::Root, "").await.expect("rotate");
    assert_eq!(s.rotate(pb::KeyKind::Root, "").await.expect("twice"), operation);
    assert!(new_file.exists(), "a file that is not there yet is made");
    assert_eq!(s.operation(&operation, "").await.state(), pb::OperationState::Running);
    assert_eq!(s.name_of("ana").await.unwrap(), "Jane Roe");
    s.erase_beside("before-the-end").await;
    s.go_on(TenantNo::VAULT).await;
    let done = s.operation(&operation, "").await;
    assert_eq!((done.state(), done.kind()), (pb::OperationState::Succeeded, pb::OperationKind::RootKeyRotation));
    assert!(done.done_count >= 21 && done.done_count == done.total_count, "{done:?}");
    let record = s.record("").await;
    assert_eq!((record.kind, record.fate), (Kind::Root, Fate::Destroyed));
    assert_eq!(record.from.id, Some(HEXLOWER.encode(&former)));
    let now = s.keeper_bytes();
    assert!(!contains(&now, &former), "no block of the keeper is under the old key");
    assert!(!old_file.exists(), "its file was overwritten and removed");
    let root = &s.listed("", pb::KeyKind::Root).await[0];
    assert_eq!((root.version, root.left_count, root.period_days), (2, 0, 365));
    assert_eq!(root.key_id, HEXLOWER.encode(&s.running.test.node.keyring.kek_id()));
    assert_eq!(s.name_of("ana").await.unwrap(), "Jane Roe");

    // With the configuration as it is, and with the next key in the place of the first.
    let s = s.restart().await;
    assert_eq!(s.name_of("ana").await.unwrap(), "Jane Roe");
    let Scene { running, tenant, key, operator } = s;
    let mut test = running.stop().await;
    test.config.root_kek = test.config.root_kek_next.take();
    let test = test.restart().await;
    let s = Scene { running: Running::over(test).await, tenant, key, operator };
    assert_eq!(s.name_of("ana").await.unwrap(), "Jane Roe");
    assert_eq!(s.rotate(pb::KeyKind::Root, "").await.unwrap_err().code(), Code::FailedPrecondition, "no next one");
    let test = s.running.stop().await;
    // Another key than the one that the keeper is under.
    let mut other = test.config.clone();
    let path = test.dir.path().join("secrets/other.key");
    pii_vault::keyring::root::create_key_file(&path).unwrap();
    other.root_kek = Some(RootKekSource::File { path });
    let clock = test.clock.clone();
    test.node.close().await;
    assert!(Node::open(&other, clock).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_key_rotation_is_resumed_wherever_it_was_cut() {
    let rounds = rounds(4, 200);
    for round in 0..rounds {
        let mut s = Scene::with_next_root().await;
        s.person("ana").await;
        for n in 0..6 {
            s.running.test.tenant(&format!("other-{n}"), JINA).await;
        }
        let former = s.running.test.node.keyring.kek_id();
        let operation = s.rotate(pb::KeyKind::Root, "").await.expect("rotate");
        let vault = s.running.test.node.vault.clone();
        let call = vault.job_call(vault.tenant(TenantNo::VAULT).unwrap());
        // Cut off somewhere in the middle: at the next await after so many microseconds.
        let cut = std::time::Duration::from_micros(300 * (round as u64 % 40));
        let _ = tokio::time::timeout(cut, vault.go_on_rotations(&call, 1)).await;
        drop((call, vault));
        s = s.restart().await;
        assert_eq!(s.name_of("ana").await.unwrap(), "Jane Roe", "round {round}");
        s.go_on(TenantNo::VAULT).await;
        let done = s.operation(&operation, "").await;
        assert_eq!(done.state(), pb::OperationState::Succeeded, "round {round}");
        assert_eq!(s.record("").await.operation.to_string(), operation);
        assert!(!contains(&s.keeper_bytes(), &former), "round {round}");
        let s = s.restart().await;
        assert_eq!(s.name_of("ana").await.unwrap(), "Jane Roe", "round {round}");
        s.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signing_key_that_was_cut_off_leaves_no_old_private_key() {
    for round in 0..rounds(4, 200) {
        let mut s = Scene::new().await;
        let own = s.running.test.node.keyring.keeper().own(OwnBlock::Signing).await.unwrap().unwrap();
        let sealed = own.1[48..108].to_vec();
        let vault = s.running.test.node.vault.clone();
        let call = vault.call(s.running.test.operator(), vault.tenant(TenantNo::VAULT).unwrap());
        let cut = std::time::Duration::from_micros(200 * (round as u64 % 50));
        let _ = tokio::time::timeout(cut, vault.rotate_signing(&call, None)).await;
        let begun = vault.list_operations(&call, None, 10).await.unwrap().rows.len();
        drop((call, vault));
        s = s.restart().await;
        s.go_on(TenantNo::VAULT).await;
        if begun > 0 {
            assert_eq!(s.record("").await.kind, Kind::Signing, "round {round}");
            assert!(!contains(&s.keeper_bytes(), &sealed), "round {round}");
        }
        s.person("ana").await;
        let receipt = s.erase("ana").await;
        Receipt::verify(&receipt, &s.running.test.node.vault.receipt_keys()).expect("verifies");
        s.restart().await.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_root_rotates_with_a_record_and_by_its_period() {
    let s = Scene::new().await;
    s.person("ana").await;
    let before = s.running.test.node.keyring.generation(s.tenant).unwrap();
    let operation = s.rotate(pb::KeyKind::TenantRoot, "jina").await.expect("rotate");
    assert_eq!(s.operation(&operation, "jina").await.state(), pb::OperationState::Succeeded);
    let record = s.record("jina").await;
    assert_eq!((record.kind, record.fate), (Kind::TenantRoot, Fate::Destroyed));
    assert_eq!((record.from.number, record.to.number), (before.0, before.0 + 1));
    assert_eq!(record.generation, s.running.test.node.keyring.generation(s.tenant).unwrap());

    s.running.test.node.vault.run_due_work(s.tenant).await.expect("looked at");
    s.running.test.clock.advance_days(91);
    s.running.test.node.vault.run_due_work(s.tenant).await.expect("due");
    assert_ne!(s.record("jina").await.operation, record.operation, "by its period");
    assert_eq!(s.name_of("ana").await.unwrap(), "Jane Roe");
    s.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_tree_gets_new_keys_and_goes_on_after_a_restart() {
    let mut s = Scene::new().await;
    s.person("ana").await;
    // Leaves without people cost as much.
    let keyring = &s.running.test.node.keyring;
    while keyring.leaves(s.tenant).await.unwrap() < 600 {
        keyring.allocate(s.tenant, 30_000).await.expect("slots");
    }
    let since = keyring.generation(s.tenant).unwrap();
    let copy = s.running.test.dir.path().join("copy");
    copy_database(&s.running.test.config.data_dir, &copy).expect("copy");
    let leaves = u64::from(keyring.leaves(s.tenant).await.unwrap());
    let operation = s.rotate(pb::KeyKind::Tree, "jina").await.expect("rotate");
    assert_eq!(s.rotate(pb::KeyKind::Tree, "jina").await.expect("twice"), operation);
    {
        let vault = &s.running.test.node.vault;
        let call = vault.job_call(vault.tenant(s.tenant).unwrap());
        vault.go_on_rotations(&call, 1).await.expect("a step");
    }
    let half = s.operation(&operation, "jina").await;
    assert_eq!((half.done_count, half.total_count), (256, leaves));
    assert_eq!(s.listed("jina", pb::KeyKind::Tree).await[0].left_count, leaves - 256);
    s = s.restart().await;
    s.erase_beside("beside").await;
    s.go_on(s.tenant).await;
    let done = s.operation(&operation, "jina").await;
    assert_eq!(done.state(), pb::OperationState::Succeeded);
    assert_eq!(done.done_count, done.total_count);
    assert_eq!(s.running.test.node.keyring.first_leaf_of(s.tenant, since).await.unwrap(), None);
    let record = s.record("jina").await;
    assert_eq!((record.kind, record.fate, record.moved), (Kind::Tree, Fate::Destroyed, done.done_count));
    assert_eq!(s.name_of("ana").await.unwrap(), "Jane Roe");
    let proof = prove(&s.running.test.node, &copy).await.expect("prove");
    let jina = proof.tenants.iter().find(|t| t.tenant == "jina").unwrap();
    assert!(!jina.old_tree_opens && jina.living_opened == jina.living, "data keys are what they were: {jina:?}");
    s.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn data_keys_rotate_beside_reads_and_erasures_and_old_copies_open_nothing() {
    let mut s = Scene::new().await;
    for n in 0..450 {
        s.person(&format!("u-{n}")).await;
    }
    let copy = s.running.test.dir.path().join("copy");
    copy_database(&s.running.test.config.data_dir, &copy).expect("copy");
    let operation = s.rotate(pb::KeyKind::Data, "jina").await.expect("rotate");
    assert_eq!(s.rotate(pb::KeyKind::Data, "jina").await.expect("twice"), operation);
    let part = pb::RotateKeysRequest {
        kind: pb::KeyKind::Data as i32,
        tenant: "jina".into(),
        class_ids: vec![1],
        ..Default::default()
    };
    let other = s.keys().rotate_keys(with(&s.operator, part)).await.unwrap_err();
    assert_eq!((other.code(), reason(&other).as_str()), (Code::FailedPrecondition, "WRONG_STATE"));
    {
        let vault = &s.running.test.node.vault;
        let call = vault.job_call(vault.tenant(s.tenant).unwrap());
        vault.go_on_rotations(&call, 1).await.expect("a step");
    }
    let begun = s.operation(&operation, "jina").await;
    assert!(begun.done_count > 0 && begun.done_count < 450, "{begun:?}");

    let mut operations = pb::operation_service_client::OperationServiceClient::new(s.running.channel.clone());
    let pause = pb::PauseOperationRequest { operation: operation.clone(), tenant: "jina".into(), ..Default::default() };
    let paused = operations.pause_operation(with(&s.operator, pause)).await.expect("pause").into_inner();
    assert_eq!(paused.operation.unwrap().state(), pb::OperationState::Paused);
    s.go_on(s.tenant).await;
    assert_eq!(s.operation(&operation, "jina").await.done_count, begun.done_count, "it waits");
    assert_eq!(s.listed("jina", pb::KeyKind::Data).await[0].left_count, 450 - begun.done_count);
    let resume =
        pb::ResumeOperationRequest { operation: operation.clone(), tenant: "jina".into(), ..Default::default() };
    operations.resume_operation(with(&s.operator, resume)).await.expect("resume");

    s = s.restart().await;
    s.erase("u-440").await;
    let read = async {
        for n in (0..450).filter(|n| *n != 440) {
            assert_eq!(s.name_of(&format!("u-{n}")).await.expect("read"), "Jane Roe");
        }
    };
    tokio::join!(s.go_on(s.tenant), read);
    let done = s.operation(&operation, "jina").await;
    assert_eq!((done.state(), done.kind()), (pb::OperationState::Succeeded, pb::OperationKind::DataRotation));
    assert_eq!((done.done_count, done.total_count), (449, 450), "each subject once, but for the erased one");
    let record = s.record("jina").await;
    assert_eq!((record.kind, record.fate, record.scope.as_deref()), (Kind::Data, Fate::Destroyed, None));
    assert!(record.archives_expire_at.is_some(), "who has an older key archive has them until then");
    let proof = prove(&s.running.test.node, &copy).await.expect("prove");
    let jina = proof.tenants.iter().find(|t| t.tenant == "jina").unwrap();
    assert!(proof.holds && !jina.old_tree_opens && jina.living_opened == 0, "{jina:?}");
    for n in (0..450).filter(|n| *n != 440) {
        assert_eq!(s.name_of(&format!("u-{n}")).await.expect("read"), "Jane Roe");
    }
    assert_eq!(s.name_of("u-440").await.unwrap_err().code(), Code::NotFound);
    let data = &s.listed("jina", pb::KeyKind::Data).await[0];
    assert_eq!((data.version, data.left_count, data.period_days), (2, 0, 730));
    s.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn data_keys_of_many_subjects_rotate_in_few_swaps() {
    let s = Scene::new().await;
    let t = &s.running.test;
    let call = t.call(s.tenant);
    for n in 0..200 {
        let subject = format!("u-{n}");
        crate::erase::person(t, &call, &subject).await;
        crate::erase::invoice(t, &call, &subject).await;
    }
    let before = t.node.keyring.generation(s.tenant).unwrap();
    s.rotate(pb::KeyKind::Data, "jina").await.expect("rotate");
    s.go_on(s.tenant).await;
    assert_eq!(s.record("jina").await.moved, 200);
    // Pages of 32, each with all classes of its subjects.
    assert_eq!(t.node.keyring.generation(s.tenant).unwrap(), Generation(before.0 + 7));
    for n in [0, 31, 32, 199] {
        assert_eq!(s.name_of(&format!("u-{n}")).await.unwrap(), "Asha");
        let snapshot = t.node.vault.get_subject(&call, &id(&format!("u-{n}"))).await.unwrap();
        assert_eq!(snapshot.classes.iter().map(|row| row.version.0).collect::<Vec<_>>(), [2, 2]);
    }
    s.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn subjects_with_many_items_rotate_in_swaps_of_their_own() {
    let s = Scene::new().await;
    let t = &s.running.test;
    let call = t.call(s.tenant);
    for (subject, items) in [("u-0", 0), ("u-1", 1_500), ("u-2", 0), ("u-3", 1_500), ("u-4", 2_500), ("u-5", 0)] {
        crate::erase::person(t, &call, subject).await;
        crate::erase::invoices(t, &call, subject, items).await;
    }
    let before = t.node.keyring.generation(s.tenant).unwrap();
    s.rotate(pb::KeyKind::Data, "jina").await.expect("rotate");
    s.go_on(s.tenant).await;
    let record = s.record("jina").await;
    assert_eq!((record.moved, record.lost), (6, 0));
    // 0 to 2, 3, 4 with more than a page holds, 5.
    assert_eq!(t.node.keyring.generation(s.tenant).unwrap(), Generation(before.0 + 4));
    for n in 0..6 {
        let snapshot = t.node.vault.get_subject(&call, &id(&format!("u-{n}"))).await.unwrap();
        assert!(snapshot.classes.iter().all(|row| row.version.0 == 2), "{n}");
    }
    s.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn data_keys_of_a_class_or_a_subject_rotate_alone_and_no_faster_than_asked() {
    let s = Scene::new().await;
    for n in 0..30 {
        s.person(&format!("u-{n}")).await;
    }
    let version = async |subject: &str, class: u8| {
        let call = s.running.test.call(s.tenant);
        let snapshot = s.running.test.node.vault.get_subject(&call, &id(subject)).await.unwrap();
        snapshot.class(ClassNo(class)).map(|row| row.version.0)
    };
    let class = {
        let call = s.running.test.call(s.tenant);
        let snapshot = s.running.test.node.vault.get_subject(&call, &id("u-0")).await.unwrap();
        snapshot.classes[0].class.0
    };
    let one = pb::RotateKeysRequest {
        kind: pb::KeyKind::Data as i32,
        tenant: "jina".into(),
        key: by_id("u-3"),
        ..Default::default()
    };
    s.keys().rotate_keys(with(&s.operator, one)).await.expect("rotate");
    s.go_on(s.tenant).await;
    assert_eq!((version("u-3", class).await, version("u-4", class).await), (Some(2), Some(1)));
    let record = s.record("jina").await;
    assert!(record.scope.as_deref().unwrap().starts_with("subject number "), "{:?}", record.scope);
    assert_eq!(record.moved, 1);

    let slow = pb::RotateKeysRequest {
        kind: pb::KeyKind::Data as i32,
        tenant: "jina".into(),
        class_ids: vec![class.into()],
        per_second: 5,
        ..Default::default()
    };
    let operation = s.keys().rotate_keys(with(&s.operator, slow)).await.expect("rotate").into_inner().operation;
    s.go_on(s.tenant).await;
    assert_eq!(s.operation(&operation, "jina").await.done_count, 0, "no time has passed");
    let mut seen = Vec::new();
    for _ in 0..6 {
        s.running.test.clock.advance_ms(1_000);
        s.go_on(s.tenant).await;
        seen.push(s.operation(&operation, "jina").await.done_count);
    }
    assert_eq!(seen, [5, 10, 15, 20, 25, 30]);
    s.running.test.clock.advance_ms(1_000);
    s.go_on(s.tenant).await;
    assert_eq!(s.operation(&operation, "jina").await.state(), pb::OperationState::Succeeded);
    assert_eq!((version("u-3", class).await, version("u-4", class).await), (Some(3), Some(2)));
    assert_eq!(s.listed("jina", pb::KeyKind::Data).await[0].version, 1, "a part is no new version of all");
    let mut unknown = pb::RotateKeysRequest { kind: pb::KeyKind::Data as i32, ..Default::default() };
    (unknown.tenant, unknown.class_ids) = ("jina".into(), vec![16]);
    assert_eq!(s.keys().rotate_keys(with(&s.operator, unknown)).await.unwrap_err().code(), Code::InvalidArgument);
    s.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn index_and_pepper_end_with_records_too() {
    let s = Scene::new().await;
    s.person("ana").await;
    for kind in [pb::KeyKind::Index, pb::KeyKind::PasswordPepper] {
        s.rotate(kind, "jina").await.expect("rotate");
        s.running.test.clock.advance_days(2);
        s.running.test.node.vault.run_due_work(s.tenant).await.expect("it ends");
        s.running.test.clock.advance_days(2);
        s.running.test.node.vault.run_due_work(s.tenant).await.expect("it ends");
        let record = s.record("jina").await;
        let wanted = if kind == pb::KeyKind::Index { Kind::Index } else { Kind::PasswordPepper };
        assert_eq!((record.kind, record.fate, record.lost), (wanted, Fate::Destroyed, 0));
        assert_eq!((record.from.number, record.to.number), (1, 2));
    }
    s.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn je19_the_key_inventory_and_every_rotation_record_verify_offline() {
    let s = Scene::with_next_root().await;
    s.person("ana").await;
    for (kind, tenant, no) in [
        (pb::KeyKind::Signing, "", TenantNo::VAULT),
        (pb::KeyKind::Root, "", TenantNo::VAULT),
        (pb::KeyKind::TenantRoot, "jina", s.tenant),
        (pb::KeyKind::Tree, "jina", s.tenant),
        (pb::KeyKind::Data, "jina", s.tenant),
    ] {
        s.rotate(kind, tenant).await.expect("rotate");
        s.go_on(no).await;
    }
    let public = s.running.test.node.vault.receipt_keys();
    let mut kinds = Vec::new();
    for tenant in ["", "jina"] {
        let list = pb::ListRotationsRequest { tenant: tenant.into(), ..Default::default() };
        for one in s.keys().list_rotations(with(&s.operator, list)).await.expect("list").into_inner().rotations {
            let verified = RotationRecord::verify(&one.record, &public).expect("verifies");
            kinds.push(verified.record.kind.name());
            for at in (0..one.record.len()).step_by(7) {
                let mut bad = one.record.to_vec();
                bad[at] ^= 1;
                assert!(RotationRecord::verify(&bad, &public).is_err(), "byte {at}");
            }
        }
    }
    kinds.sort();
    assert_eq!(kinds, ["data", "root", "signing", "tenant-root", "tree"]);
    let list = pb::ListKeysRequest { tenant: "jina".into(), ..Default::default() };
    let keys = s.keys().list_keys(with(&s.operator, list)).await.expect("keys").into_inner().keys;
    for kind in [pb::KeyKind::TenantRoot, pb::KeyKind::Tree, pb::KeyKind::Index, pb::KeyKind::Data] {
        assert!(keys.iter().any(|key| key.kind == kind as i32 && key.key_count > 0), "{kind:?} is in the inventory");
    }
    // Who may only read records may not rotate, and a tenant's key sees its own.
    let auditor = s.running.key_for(s.tenant, "auditor", &[pii_vault::access::Verb::Audit]).await;
    let own = s.keys().list_rotations(with(&auditor, pb::ListRotationsRequest::default())).await.expect("own");
    assert_eq!(own.into_inner().rotations.len(), 3);
    let rotate = pb::RotateKeysRequest { kind: pb::KeyKind::Data as i32, ..Default::default() };
    assert_eq!(s.keys().rotate_keys(with(&auditor, rotate)).await.unwrap_err().code(), Code::PermissionDenied);
    s.running.stop().await;
}

/// A keeper that was copied before is of no use once the root key that wrapped it is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_copied_keeper_opens_with_no_key_that_is_left() {
    let s = Scene::with_next_root().await;
    s.person("ana").await;
    let copy = s.running.test.dir.path().join("stolen");
    copy_dir(&s.running.test.config.keeper.paths[0], &copy);
    s.rotate(pb::KeyKind::Root, "").await.expect("rotate");
    s.go_on(TenantNo::VAULT).await;
    let present = s.running.test.node.keyring.kek_id();
    assert_eq!(s.record("").await.fate, Fate::Destroyed);
    let stolen = FileKeeper::open(&[copy]).expect("a keeper");
    for tenant in stolen.tenants().await.unwrap() {
        assert!(stolen.read(tenant).await.unwrap().roots().all(|block| block.kek != present));
    }
    drop(stolen);
    s.running.stop().await;
}

pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn je20_what_a_leaked_credential_read_is_told_and_it_reads_no_more() {
    let s = Scene::new().await;
    for subject in ["ana", "ben", "eva"] {
        s.person(subject).await;
    }
    let (thief, name) = s.running.key_until(s.tenant, "laptop", None).await;
    let read = async |subject: &str| {
        let mut records = pb::record_service_client::RecordServiceClient::new(s.running.channel.clone());
        let select = Some(pb::Selector { field_ids: vec![NAME], ..Default::default() });
        let context = for_purpose(SERVICE);
        let get = pb::GetFieldsRequest { key: by_id(subject), select, context, ..Default::default() };
        records.get_fields(with(&thief, get)).await
    };
    read("eva").await.expect("before the theft");
    s.running.test.clock.advance_ms(3_600_000);
    let since = s.running.test.now();
    read("ana").await.expect("after it");
    read("ana").await.expect("again");
    read("nobody").await.expect_err("a try");
    s.name_of("ben").await.expect("by somebody else");
    let uid = {
        let call = s.running.test.call(s.tenant);
        s.running.test.node.vault.get_subject(&call, &id("ana")).await.unwrap().subject.uid
    };

    // The incident's clock, then the runbook.
    let mut rights = pb::rights_service_client::RightsServiceClient::new(s.running.channel.clone());
    let incident = pb::CreateRequestRequest { kind: "incident".into(), ..Default::default() };
    rights.create_request(with(&s.key, incident)).await.expect("the clock runs");
    let seconds = |at: pii_vault::clock::Timestamp| Some(prost_types::Timestamp { seconds: at.0 / 1_000, nanos: 0 });
    let leaked = pb::RespondToCompromiseRequest {
        access_key: name.clone(),
        tenant: "jina".into(),
        since: seconds(since),
        validate_only: true,
        ..Default::default()
    };
    let told = s.keys().respond_to_compromise(with(&s.operator, leaked.clone())).await.expect("tell").into_inner();
    assert_eq!((told.subjects_read, told.calls, told.complete), (1, 2, true), "{told:?}");
    read("ana").await.expect("nothing was changed yet");
    let leaked = pb::RespondToCompromiseRequest { validate_only: false, ..leaked };
    let told = s.keys().respond_to_compromise(with(&s.operator, leaked)).await.expect("do").into_inner();
    assert!(told.steps[0].step.contains("revoked") && !told.steps[0].by_hand, "{told:?}");
    assert!(told.steps.iter().any(|step| step.by_hand) && !told.cannot_undo.is_empty());
    assert_eq!(read("ana").await.unwrap_err().code(), Code::Unauthenticated);

    // `audit access` then names whom and what.
    let actor = pii_vault::auth::KeyId::parse(&name).unwrap().0;
    let mut audit = pb::audit_service_client::AuditServiceClient::new(s.running.channel.clone());
    let start_time = seconds(since);
    let ask =
        pb::ReportAccessRequest { actor_ids: vec![actor], start_time, tenant: "jina".into(), ..Default::default() };
    let report = audit.report_access(with(&s.operator, ask)).await.expect("report").into_inner().accesses;
    assert_eq!(report.len(), 1, "{report:?}");
    assert_eq!((report[0].subject_uid, &report[0].field_ids[..], report[0].read_count), (uid.0, &[NAME][..], 3));
    s.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compromised_root_key_is_answered_in_the_order_of_the_runbook() {
    let s = Scene::new().await;
    s.person("ana").await;
    let ask = |kind: pb::KeyKind, tenant: &str| pb::RespondToCompromiseRequest {
        kind: kind as i32,
        tenant: tenant.into(),
        ..Default::default()
    };
    let refused = s.keys().respond_to_compromise(with(&s.operator, ask(pb::KeyKind::Root, ""))).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "ROOT_KEY_UNAVAILABLE"));
    s.running.stop().await;

    let s = Scene::with_next_root().await;
    s.person("ana").await;
    let former = (s.running.test.node.keyring.kek_id(), s.running.test.node.vault.receipt_keys()[0]);
    let generation = s.running.test.node.keyring.generation(s.tenant).unwrap();
    let told = s.keys().respond_to_compromise(with(&s.operator, ask(pb::KeyKind::Root, ""))).await.expect("do");
    let told = told.into_inner();
    let done: Vec<&str> = told.steps.iter().filter(|step| !step.by_hand).map(|step| step.step.as_str()).collect();
    assert!(done[0].starts_with("every root is wrapped") && done.last().unwrap().contains("signing"), "{done:?}");
    for no in [TenantNo::VAULT, s.tenant] {
        s.go_on(no).await;
    }
    assert!(!contains(&s.keeper_bytes(), &former.0), "nothing is under the old key");
    assert_ne!(s.running.test.node.vault.receipt_keys()[0], former.1);
    assert!(s.running.test.node.keyring.generation(s.tenant).unwrap() > generation);
    for kind in [Kind::Tree, Kind::TenantRoot] {
        let list = pb::ListRotationsRequest { tenant: "jina".into(), ..Default::default() };
        let list = s.keys().list_rotations(with(&s.operator, list)).await.unwrap().into_inner().rotations;
        let keys = s.running.test.node.vault.receipt_keys();
        let of = |one: &pb::Rotation| RotationRecord::verify(&one.record, &keys).unwrap().record.kind;
        assert!(list.iter().any(|one| of(one) == kind), "{kind:?}");
    }
    assert_eq!(s.name_of("ana").await.unwrap(), "Jane Roe");
    for kind in [pb::KeyKind::Signing, pb::KeyKind::Root] {
        let own = ask(kind, "");
        let status = s.keys().respond_to_compromise(with(&s.key, own)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "a tenant's key cannot");
    }
    for kind in [pb::KeyKind::Index, pb::KeyKind::Data, pb::KeyKind::PasswordPepper, pb::KeyKind::TenantRoot] {
        let told = s.keys().respond_to_compromise(with(&s.operator, ask(kind, "jina"))).await.expect("do").into_inner();
        assert!(!told.steps.is_empty() && !told.cannot_undo.is_empty(), "{kind:?}");
    }
    s.running.stop().await;
}
