//! Bundles of evidence over gRPC: they verify with the public key alone, an altered one never does, and nobody gets more of
//! one than he may.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, Cursor};
use std::time::Instant;

use pii_vault::access::Verb;
use pii_vault::clock::{DAY_MS, Timestamp};
use pii_vault::crypto::document;
use pii_vault::crypto::sign::{Domain, Signing, key_id};
use pii_vault::evidence::*;
use pii_vault::grpc::pb;
use pii_vault::ids::*;
use serde_json::json;
use sha2::{Digest, Sha256};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::harness::*;
use crate::net::*;

/// The files of a bundle, the manifest among them.
pub type Files = BTreeMap<String, Vec<u8>>;

/// Asks for a bundle; every message is small.
pub async fn bundle(channel: &Channel, key: &str, ask: pb::ExportEvidenceRequest) -> Result<Files, Status> {
    let mut client = pb::evidence_service_client::EvidenceServiceClient::new(channel.clone());
    let mut stream = client.export_evidence(with(key, ask)).await?.into_inner();
    let (mut files, mut open) = (Files::new(), String::new());
    while let Some(piece) = stream.message().await? {
        assert!(piece.data.len() <= 60 << 10, "a piece of {} bytes", piece.data.len());
        assert!(!files.contains_key(MANIFEST), "the manifest is the last");
        if !piece.manifest.is_empty() {
            files.insert(MANIFEST.into(), piece.manifest.to_vec());
            continue;
        }
        if !piece.path.is_empty() {
            open = piece.path.clone();
            assert!(files.insert(open.clone(), Vec::new()).is_none(), "{open} twice");
        }
        files.get_mut(&open).expect("a file").extend_from_slice(&piece.data);
    }
    assert!(files.contains_key(MANIFEST), "the stream ended early");
    Ok(files)
}

/// The offline check.
pub fn check(files: &Files, keys: &[[u8; 32]]) -> Result<Verdict, Refused> {
    let names: BTreeSet<String> = files.keys().cloned().collect();
    let open = |name: &str| match files.get(name) {
        Some(bytes) => Ok(BufReader::new(Cursor::new(bytes))),
        None => Err(std::io::ErrorKind::NotFound.into()),
    };
    verify(&names, open, keys)
}

fn count(verdict: &Verdict, what: &str) -> u64 {
    verdict.checked.iter().find(|one| one.what == what).unwrap_or_else(|| panic!("{what}")).count
}

fn how<'v>(verdict: &'v Verdict, what: &str) -> &'v str {
    &verdict.checked.iter().find(|one| one.what == what).unwrap_or_else(|| panic!("{what}")).how
}

fn at(time: Timestamp) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds: time.0.div_euclid(1_000), nanos: 0 })
}

struct Scene {
    running: Running,
    tenant: TenantNo,
    key: String,
    operator: String,
    /// Public keys, in the order in which they came.
    keys: Vec<[u8; 32]>,
}

impl Scene {
    /// Four days of a vault: people come and go, keys are rotated, the signing key in the middle; each day has a checkpoint.
    async fn of_four_days() -> Self {
        let running = Running::new().await;
        let tenant = running.test.tenant("jina", JINA).await;
        let key = running.key(tenant, "app").await;
        let operator = running.operator_key("root").await;
        let mut s = Scene { running, tenant, key, operator, keys: Vec::new() };
        s.keys.push(s.public());
        for day in 0..4 {
            for n in 0..=day {
                s.person(&format!("p-{day}-{n}")).await;
            }
            s.erase(&format!("p-{day}-0")).await;
            if day == 1 {
                s.rotate(pb::KeyKind::Signing, "").await;
                s.keys.push(s.public());
                s.rotate(pb::KeyKind::TenantRoot, "jina").await;
            }
            s.checkpoint().await;
            s.running.test.clock.advance_ms(DAY_MS);
        }
        s
    }

    fn public(&self) -> [u8; 32] {
        self.running.test.node.keyring.signing().public()
    }

    async fn person(&self, subject: &str) {
        let mut records = pb::record_service_client::RecordServiceClient::new(self.running.channel.clone());
        let values = vec![text_value(NAME, "Jane Roe"), text_value(EMAIL, &format!("{subject}@example.com"))];
        let context = for_purpose(SERVICE);
        let put = pb::PutFieldsRequest { subject: subject.into(), values, context, ..Default::default() };
        records.put_fields(with(&self.key, put)).await.expect("put");
        let get = pb::GetFieldsRequest { key: by_id(subject), context: for_purpose(SERVICE), ..Default::default() };
        records.get_fields(with(&self.key, get)).await.expect("get");
    }

    async fn erase(&self, subject: &str) {
        let mut erasures = pb::erasure_service_client::ErasureServiceClient::new(self.running.channel.clone());
        let erase = pb::EraseSubjectRequest { key: by_id(subject), wait_final: true, ..Default::default() };
        erasures.erase_subject(with(&self.key, erase)).await.expect("erase");
    }

    async fn rotate(&self, kind: pb::KeyKind, tenant: &str) {
        let mut keys = pb::key_service_client::KeyServiceClient::new(self.running.channel.clone());
        let request = pb::RotateKeysRequest { kind: kind as i32, tenant: tenant.into(), ..Default::default() };
        keys.rotate_keys(with(&self.operator, request)).await.expect("rotate");
        let vault = &self.running.test.node.vault;
        let no = if tenant.is_empty() { TenantNo::VAULT } else { self.tenant };
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            let call = vault.job_call(vault.tenant(no).unwrap());
            if !vault.go_on_rotations(&call, 10_000).await.expect("it goes on").more {
                return;
            }
        }
        panic!("it does not end");
    }

    async fn checkpoint(&self) {
        let now = self.running.test.now();
        self.running.test.node.vault.make_checkpoint(now).await.expect("checkpoint");
    }

    async fn bundle(&self, key: &str, ask: pb::ExportEvidenceRequest) -> Result<Files, Status> {
        bundle(&self.running.channel, key, ask).await
    }

    /// A report of a drill as `pii-vault drill` signs it.
    fn drill(&self, at: Timestamp, key: &Signing) -> Vec<u8> {
        let vault = self.running.test.node.keyring.vault().to_string();
        let body = json!({ "vault": vault, "at": at.0, "tried_at": at.rfc3339(), "holds": true });
        document::write(Domain::Drill, DRILL_FORMAT, &body, Some(key))
    }

    /// The same bundle with a manifest that fits it again, as only the vault can make one.
    fn sign_again(&self, files: &Files, change: impl FnOnce(&mut About)) -> Files {
        let (mut manifest, _) = Manifest::verify(&files[MANIFEST], &self.keys).unwrap();
        change(&mut manifest.about);
        manifest.files = Vec::new();
        for (path, bytes) in files.iter().filter(|(path, _)| *path != MANIFEST) {
            let items = match path.ends_with(".jsonl") {
                true => bytes.iter().filter(|byte| **byte == b'\n').count() as u64,
                false if path == SBOM => serde_json::from_slice::<serde_json::Value>(bytes).unwrap()["components"]
                    .as_array()
                    .map_or(0, |list| list.len() as u64),
                false => 1,
            };
            let sha256 = data_encoding::HEXLOWER.encode(&Sha256::digest(bytes));
            manifest.files.push(FileEntry { path: path.clone(), bytes: bytes.len() as u64, sha256, items });
        }
        let mut again = files.clone();
        again.insert(MANIFEST.into(), manifest.sign(&self.running.test.node.keyring.signing()));
        again
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn je19_a_bundle_verifies_with_the_public_key_alone() {
    let s = Scene::of_four_days().await;
    let files = s.bundle(&s.key, pb::ExportEvidenceRequest::default()).await.expect("bundle");
    let (old, new) = (s.keys[0], s.keys[1]);
    let verdict = check(&files, &[new]).expect("by the present key");
    assert_eq!((verdict.key_id.clone(), verdict.by_chain_from.clone()), (key_id(&new), None));
    let by_chain = check(&files, &[old]).expect("by the key before, which signed the present one");
    assert_eq!(by_chain.by_chain_from, Some(key_id(&old)));
    let refused = check(&files, &[[7; 32]]).unwrap_err().to_string();
    assert!(refused.contains("not among those given"), "{refused}");

    assert_eq!((count(&verdict, "receipts"), count(&verdict, "rotations"), count(&verdict, "signing keys")), (4, 1, 2));
    assert_eq!((count(&verdict, "policies"), count(&verdict, "drills")), (1, 0));
    assert!(count(&verdict, "report") > 10 && count(&verdict, "software") > 100);
    for what in ["checkpoints of changes", "checkpoints of reads"] {
        // Four days, and the one made for the bundle.
        assert_eq!(
            (count(&verdict, what), how(&verdict, what).contains("4 proven")),
            (5, true),
            "{}",
            how(&verdict, what)
        );
    }
    assert!(!verdict.about.operator && verdict.left_out.iter().any(|one| one.what.contains("vault itself")));

    // It is for reading, tells what is in it, and holds nobody's values or ids.
    let page = String::from_utf8(files[PAGE].clone()).unwrap();
    for part in
        ["jina", "evidence verify", "Extends the one before", "tenant-root", "What it does not prove", "sbom.cdx.json"]
    {
        assert!(page.to_lowercase().contains(&part.to_lowercase()), "{part}");
    }
    assert!(!page.contains("<script") && !page.contains(" src=") && !page.contains(" href="), "it loads nothing");
    for (path, bytes) in &files {
        let text = String::from_utf8_lossy(bytes);
        for secret in ["Jane Roe", "p-1-1", "example.com\"", "/tmp/", &s.key] {
            assert!(path.starts_with("policy/") || !text.contains(secret), "{secret} in {path}");
        }
    }

    // The list of software says which program it is about: the one that runs.
    let software: serde_json::Value = serde_json::from_slice(&files[SBOM]).unwrap();
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let sha256 = data_encoding::HEXLOWER.encode(&Sha256::digest(&program));
    assert_eq!(software["metadata"]["component"]["hashes"][0]["content"], sha256);
    assert!(page.contains(&sha256));

    // A part of the time: one day's erasure, and the checkpoints around it.
    let (from, to) = (START.plus_days(2), START.plus_days(3));
    let ask = pb::ExportEvidenceRequest { start_time: at(from), end_time: at(to), ..Default::default() };
    let part = s.bundle(&s.key, ask).await.expect("bundle");
    let verdict = check(&part, &[new]).expect("a part");
    assert_eq!((count(&verdict, "receipts"), count(&verdict, "rotations")), (1, 0));
    assert!(count(&verdict, "checkpoints of reads") >= 3, "before, in it, after");

    // A restart goes on with the trees.
    let Scene { running, tenant, key, operator, keys } = s;
    let running = Running::over(running.stop().await.restart().await).await;
    let s = Scene { running, tenant, key, operator, keys };
    s.person("p-late").await;
    s.checkpoint().await;
    let files = s.bundle(&s.key, pb::ExportEvidenceRequest::default()).await.expect("bundle");
    let verdict = check(&files, &[new]).expect("after a restart");
    assert!(
        how(&verdict, "checkpoints of changes").contains("4 proven"),
        "{}",
        how(&verdict, "checkpoints of changes")
    );
    s.running.stop().await;
}

/// Every byte of the files of up to 4 KiB, and of each larger one about 300 bytes at equal distances (with `PII_VAULT_TEST_FULL`
/// every byte of every file): changed, cut off there, and whole files added, removed and exchanged.
#[tokio::test(flavor = "multi_thread")]
async fn an_altered_bundle_is_never_accepted() {
    let s = Scene::of_four_days().await;
    let drill = s.drill(START.plus_days(1), &s.running.test.node.keyring.signing());
    let ask = pb::ExportEvidenceRequest { tenant: "jina".into(), drills: vec![drill.into()], ..Default::default() };
    let files = s.bundle(&s.operator, ask).await.expect("bundle");
    let keys = s.keys.clone();
    check(&files, &keys).expect("it is right");
    let (mut tried, mut accepted) = (0u64, Vec::new());
    let mut bad = files.clone();
    for (path, bytes) in &files {
        let stride = if bytes.len() <= 4 << 10 { 1 } else { rounds(bytes.len() / 300, 1) };
        for place in (0..bytes.len()).step_by(stride) {
            let changed = bad.get_mut(path).unwrap();
            changed[place] ^= 1 << (place % 8);
            if check(&bad, &keys).is_ok() {
                accepted.push(format!("{path}: byte {place}"));
            }
            let changed = bad.get_mut(path).unwrap();
            changed[place] = bytes[place];
            tried += 1;
            if place % 16 == 0 || stride > 1 {
                bad.insert(path.clone(), bytes[..place].to_vec());
                if check(&bad, &keys).is_ok() {
                    accepted.push(format!("{path}: cut at {place}"));
                }
                bad.insert(path.clone(), bytes.clone());
                tried += 1;
            }
        }
        let longer = [bytes.as_slice(), b"\n"].concat();
        bad.insert(path.clone(), longer);
        assert!(check(&bad, &keys).is_err(), "{path}: a byte more");
        bad.remove(path);
        assert!(check(&bad, &keys).is_err(), "{path}: not there");
        bad.insert(path.clone(), bytes.clone());
        for (other, theirs) in files.iter().filter(|(other, theirs)| *other > path && *theirs != bytes) {
            bad.insert(path.clone(), theirs.clone());
            bad.insert(other.clone(), bytes.clone());
            assert!(check(&bad, &keys).is_err(), "{path} and {other} exchanged");
            bad.insert(path.clone(), bytes.clone());
            bad.insert(other.clone(), theirs.clone());
            tried += 1;
        }
    }
    for extra in ["other.txt", "policy/v99.toml", "drills/2.json", "../x", "audit/../index.html", "index.html~"] {
        bad.insert(extra.into(), Vec::new());
        assert!(check(&bad, &keys).is_err(), "{extra} was added");
        bad.remove(extra);
    }
    assert!(check(&bad, &keys).is_ok(), "it is as it was");
    assert_eq!(accepted, Vec::<String>::new());
    assert!(tried > 10_000, "{tried}");
    s.running.stop().await;
}

/// Even a manifest that the vault's own key signed does not make one bundle of parts that do not belong together.
#[tokio::test(flavor = "multi_thread")]
async fn parts_of_another_vault_tenant_or_period_are_no_part() {
    let s = Scene::of_four_days().await;
    let keys = s.keys.clone();
    let other = s.running.test.tenant("other", JINA).await;
    let others = s.running.key(other, "app").await;
    let own = s.bundle(&s.key, pb::ExportEvidenceRequest::default()).await.expect("bundle");
    let theirs = s.bundle(&others, pb::ExportEvidenceRequest::default()).await.expect("bundle");
    let stranger = Scene::of_four_days().await;
    let strange = stranger.bundle(&stranger.key, pb::ExportEvidenceRequest::default()).await.expect("bundle");
    check(&s.sign_again(&own, |_| ()), &keys).expect("signed again it is the same");
    let refused = |files: &Files, keys: &[[u8; 32]]| check(files, keys).map(|_| ()).unwrap_err().to_string();

    for path in [REPORT, POLICIES, KEYS, SIGNERS, CONFIGURATION, CHANGES, READS] {
        let mixed = Files::from_iter(own.clone().into_iter().chain([(path.to_owned(), theirs[path].clone())]));
        let told = refused(&s.sign_again(&mixed, |_| ()), &keys);
        assert!(told.starts_with(path) || told.starts_with(SIGNERS), "{path} of another tenant: {told}");
    }
    for path in [RECEIPTS, ROTATIONS, REPORT, CHANGES, READS] {
        let mixed = Files::from_iter(own.clone().into_iter().chain([(path.to_owned(), strange[path].clone())]));
        let told = refused(&s.sign_again(&mixed, |_| ()), &keys);
        assert!(told.starts_with(path), "{path} of another vault: {told}");
    }
    // A receipt of another tenant of the same vault, signed by the same key.
    let lines = own[RECEIPTS].clone();
    let mut mixed = theirs.clone();
    mixed.insert(RECEIPTS.into(), lines);
    assert!(refused(&s.sign_again(&mixed, |_| ()), &keys).contains("line 1 is of another"));
    // Another period, tenant, vault.
    for change in [
        (|about: &mut About| about.from = START.plus_days(2).rfc3339()) as fn(&mut About),
        |about| about.to = START.plus_days(2).rfc3339(),
        |about| about.to = START.plus_days(9).rfc3339(),
        |about| about.from = about.to.clone(),
        |about| about.made_at = START.rfc3339(),
        |about| about.tenant = "other".into(),
        |about| about.tenant_no += 1,
        |about| about.vault = "00".repeat(16),
        |about| about.operator = true,
    ] {
        let told = refused(&s.sign_again(&own, change), &keys);
        assert!(!told.is_empty());
    }

    // A checkpoint taken out or moved shows, and so does a proof that was left out or a head with another tree.
    let text = String::from_utf8(own[CHANGES].clone()).unwrap();
    let all: Vec<&str> = text.lines().collect();
    let with_lines = |lines: &[String]| {
        let mut files = own.clone();
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        files.insert(CHANGES.into(), text.into_bytes());
        refused(&s.sign_again(&files, |_| ()), &keys)
    };
    for gone in 0..all.len() {
        let lines: Vec<String> =
            all.iter().enumerate().filter(|(i, _)| *i != gone).map(|(_, line)| (*line).to_owned()).collect();
        let told = with_lines(&lines);
        assert!(told.contains("extend") || told.contains("first") || told.contains(CHANGES), "without {gone}: {told}");
    }
    for swapped in 1..all.len() {
        let mut lines: Vec<String> = all.iter().map(|line| (*line).to_owned()).collect();
        lines.swap(swapped - 1, swapped);
        with_lines(&lines);
    }
    for at in 1..all.len() {
        let mut line: serde_json::Value = serde_json::from_str(all[at]).unwrap();
        line.as_object_mut().unwrap().remove("extends");
        let mut lines: Vec<String> = all.iter().map(|line| (*line).to_owned()).collect();
        lines[at] = line.to_string();
        assert!(with_lines(&lines).contains("does not prove that it extends"), "line {at}");
    }
    // Drills of another vault, of nobody, of another time.
    let node = &s.running.test.node;
    let drills = [
        s.drill(START.plus_days(1), &stranger.running.test.node.keyring.signing()),
        stranger.drill(START.plus_days(1), &node.keyring.signing()),
        s.drill(START.plus_days(-9), &node.keyring.signing()),
    ];
    for drill in drills {
        let ask = pb::ExportEvidenceRequest { drills: vec![drill.clone().into()], ..Default::default() };
        let status = s.bundle(&s.key, ask).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        let mut files = own.clone();
        files.insert(drill_path(1), drill);
        assert!(refused(&s.sign_again(&files, |_| ()), &keys).starts_with("drills/1.json"));
    }
    stranger.running.stop().await;
    s.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_ask_gets_no_more_than_is_theirs() {
    let s = Scene::of_four_days().await;
    let ask = |tenant: &str| pb::ExportEvidenceRequest { tenant: tenant.into(), ..Default::default() };
    let reader = s.running.key_for(s.tenant, "reader", &[Verb::Read, Verb::Operate]).await;
    assert_eq!(s.bundle(&reader, ask("")).await.unwrap_err().code(), Code::PermissionDenied);
    let auditor = s.running.key_for(s.tenant, "auditor", &[Verb::Audit]).await;
    check(&s.bundle(&auditor, ask("")).await.expect("the verb audit is enough"), &s.keys).unwrap();
    assert_eq!(s.bundle(&auditor, ask("other")).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(s.bundle(&s.operator, ask("")).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(s.bundle(&s.operator, ask("nosuch")).await.unwrap_err().code(), Code::NotFound);
    let bad = [
        pb::ExportEvidenceRequest { end_time: at(START.plus_days(90)), ..Default::default() },
        pb::ExportEvidenceRequest { start_time: at(START), end_time: at(START), ..Default::default() },
        pb::ExportEvidenceRequest { drills: vec![b"{}".as_slice().into()], ..Default::default() },
        pb::ExportEvidenceRequest { drills: vec![b"{}".as_slice().into(); 65], ..Default::default() },
        pb::ExportEvidenceRequest { stored_drills: true, ..Default::default() },
    ];
    for ask in bad {
        assert_eq!(s.bundle(&auditor, ask.clone()).await.unwrap_err().code(), Code::InvalidArgument, "{ask:?}");
    }

    // What is the vault's own, operators get; drills only where they say so.
    let dir = s.running.test.config.backups_dir().join("drills");
    std::fs::create_dir_all(&dir).unwrap();
    let drill = s.drill(START.plus_days(1), &s.running.test.node.keyring.signing());
    std::fs::write(dir.join("20260116T120000Z.json"), &drill).unwrap();
    let body = json!({ "at": START.0, "holds": true });
    std::fs::write(dir.join("20260116T130000Z.json"), document::write(Domain::Drill, DRILL_FORMAT, &body, None))
        .unwrap();
    let without = s.bundle(&s.operator, ask("jina")).await.expect("operator");
    assert!(!without.keys().any(|path| path.starts_with("drills/")));
    let all = pb::ExportEvidenceRequest { stored_drills: true, ..ask("jina") };
    let files = s.bundle(&s.operator, all).await.expect("operator");
    let verdict = check(&files, &s.keys).expect("right");
    assert_eq!((files[&drill_path(1)].clone(), count(&verdict, "drills")), (drill, 1));
    assert!(verdict.left_out.iter().any(|one| one.what == "1 reports of drills"), "{:?}", verdict.left_out);
    assert_eq!(count(&verdict, "rotations"), 2, "the signing key's too");
    let settings = String::from_utf8(files[CONFIGURATION].clone()).unwrap();
    assert!(verdict.about.operator && settings.contains("data_dir"));
    let told = String::from_utf8(s.bundle(&auditor, ask("")).await.unwrap()[CONFIGURATION].clone()).unwrap();
    assert!(told.contains("rotation.data_days") && !told.contains("data_dir") && !told.contains("/"), "{told}");

    // Each has its entry, before anything leaves.
    let mut audit = pb::audit_service_client::AuditServiceClient::new(s.running.channel.clone());
    let list = pb::ListEntriesRequest {
        chain: pb::AuditChain::Reads as i32,
        actions: vec!["audit.evidence".into()],
        ..Default::default()
    };
    let entries = audit.list_entries(with(&s.key, list)).await.expect("list").into_inner().entries;
    assert_eq!(entries.len(), 4);
    s.running.stop().await;
}

/// A chain that was rewritten on the disk no longer extends what was signed of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_rewritten_audit_does_not_prove_that_it_extends_the_former() {
    let s = Scene::of_four_days().await;
    let before = s.bundle(&s.key, pb::ExportEvidenceRequest::default()).await.expect("bundle");
    check(&before, &s.keys).expect("right");
    let Scene { running, tenant, key, operator, keys } = s;
    let test = running.stop().await;
    let TestVault { dir, config, clock, node, recovery } = test;
    node.close().await;
    let database = rusqlite::Connection::open(config.data_dir.join("vault.db")).unwrap();
    // Another time in the first group: every later group still names the hash of what was there.
    let (no, body): (i64, Vec<u8>) = database
        .query_row("SELECT id, body FROM audit_change WHERE tenant = ?1 ORDER BY last LIMIT 1", [tenant.0], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .expect("the first group");
    let mut other = body.clone();
    other[18] ^= 1;
    assert_eq!(database.execute("UPDATE audit_change SET body = ?1 WHERE id = ?2", (other, no)).unwrap(), 1);
    // The trees forget, as who rewrites the chain would have them.
    database.execute("DELETE FROM object WHERE kind = 30", []).unwrap();
    drop(database);
    let node = pii_vault::server::Node::open(&config, clock.clone()).await.expect("it opens");
    let running = Running::over(TestVault { dir, config, clock, node, recovery }).await;
    let s = Scene { running, tenant, key, operator, keys };
    s.person("p-late").await;
    let after = s.bundle(&s.key, pb::ExportEvidenceRequest::default()).await.expect("bundle");
    let told = check(&after, &s.keys).map(|_| ()).unwrap_err().to_string();
    assert!(told.starts_with(CHANGES), "{told}");
    let page = String::from_utf8(after[PAGE].clone()).unwrap();
    assert!(page.contains("NOT SHOWN"), "the page says so too");
    s.running.stop().await;
}
