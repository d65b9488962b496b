//! API keys of the tenants' users over a socket: issued, checked, rotated, revoked, dead with their person, and never found
//! in any file.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pii_vault::access::{FieldSet, Grant, PurposeSet, Verb, VerbSet, View};
use pii_vault::auth::KeyId;
use pii_vault::clock::DAY_MS;
use pii_vault::grpc::pb;
use pii_vault::vault::VaultError;
use pii_vault::vault::credentials::api_key::NewApiKey;
use pii_vault::vault::credentials::{Verdict, Why};
use pii_vault::vault::find::Key;
use prost::Message;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::harness::*;
use crate::net::*;

type Client = pb::credential_service_client::CredentialServiceClient<Channel>;

fn client(running: &Running) -> Client {
    Client::new(running.channel.clone())
}

async fn person(running: &Running, key: &str, subject: &str) {
    let mut records = pb::record_service_client::RecordServiceClient::new(running.channel.clone());
    let request = pb::PutFieldsRequest {
        subject: subject.into(),
        values: vec![text_value(NAME, "Jane Roe"), text_value(EMAIL, &format!("{subject}@example.com"))],
        context: for_purpose(SERVICE),
        ..Default::default()
    };
    records.put_fields(with(key, request)).await.expect("put");
}

fn issue_for(subject: &str) -> pb::IssueApiKeyRequest {
    pb::IssueApiKeyRequest { key: by_id(subject), label: "a program".into(), ..Default::default() }
}

/// Asks again while the machine has no room for Argon2id.
async fn patient<T>(mut ask: impl AsyncFnMut() -> Result<tonic::Response<T>, Status>) -> T {
    loop {
        match ask().await {
            Err(status) if reason(&status) == "BUSY" => tokio::time::sleep(Duration::from_millis(50)).await,
            answer => return answer.expect("an answer").into_inner(),
        }
    }
}

/// The same over the vault floor.
async fn unhurried<T>(mut ask: impl AsyncFnMut() -> Result<T, VaultError>) -> Result<T, VaultError> {
    loop {
        match ask().await {
            Err(VaultError::Busy { .. }) => tokio::time::sleep(Duration::from_millis(50)).await,
            answer => return answer,
        }
    }
}

async fn issue(c: &mut Client, key: &str, request: pb::IssueApiKeyRequest) -> (String, String) {
    let answer = patient(async || c.issue_api_key(with(key, request.clone())).await).await;
    (answer.text, answer.api_key.unwrap().api_key)
}

async fn check(c: &mut Client, key: &str, text: &str) -> pb::VerifyApiKeyResponse {
    let request = pb::VerifyApiKeyRequest { text: text.into(), ..Default::default() };
    patient(async || c.verify_api_key(with(key, request.clone())).await).await
}

async fn rotate(c: &mut Client, key: &str, id: &str, overlap_seconds: u32) -> pb::RotateApiKeyResponse {
    let request = pb::RotateApiKeyRequest { api_key: id.into(), overlap_seconds, ..Default::default() };
    patient(async || c.rotate_api_key(with(key, request.clone())).await).await
}

async fn erase(running: &Running, key: &str, subject: &str) {
    let mut erasures = pb::erasure_service_client::ErasureServiceClient::new(running.channel.clone());
    let request = pb::EraseSubjectRequest { key: by_id(subject), wait_final: true, ..Default::default() };
    erasures.erase_subject(with(key, request)).await.expect("erase");
}

const OK: i32 = pb::Verdict::Ok as i32;
const NO: i32 = pb::Verdict::No as i32;

#[tokio::test(flavor = "multi_thread")]
async fn an_api_key_works_from_issue_to_revocation_and_after_a_restart() {
    let running = Running::new().await;
    let tenant = running.test.tenant("jina", JINA).await;
    let key = running.key(tenant, "app").await;
    person(&running, &key, "jane").await;
    let mut c = client(&running);
    let wanted = pb::IssueApiKeyRequest {
        scope_ids: vec![9, 3, 9],
        expire_time: Some(prost_types::Timestamp { seconds: START.0 / 1_000 + 86_400, nanos: 0 }),
        ..issue_for("jane")
    };
    let (text, id) = issue(&mut c, &key, wanted).await;
    assert!(text.starts_with("jina_test_"), "the policy's prefix, and a TEST tenant says so");
    let found = check(&mut c, &key, &text).await;
    assert_eq!((found.verdict, found.subject.as_str(), &found.api_key), (OK, "jane", &id));
    assert_eq!((found.scope_ids, found.detail), (vec![3, 9], 0));
    assert_eq!(check(&mut c, &key, &text).await.verdict, OK, "from memory, too");

    // Other values of the person change: the key stays right.
    person(&running, &key, "jane").await;
    assert_eq!(check(&mut c, &key, &text).await.verdict, OK);

    let rotated = rotate(&mut c, &key, &id, 60).await;
    let next = rotated.api_key.unwrap();
    assert_eq!((next.label.as_str(), next.scope_ids.as_slice()), ("a program", &[3, 9][..]));
    assert_eq!(check(&mut c, &key, &text).await.verdict, OK, "both work in the overlap");
    assert_eq!(check(&mut c, &key, &rotated.text).await.verdict, OK);
    running.test.clock.advance_ms(60_000);
    let ended = check(&mut c, &key, &text).await;
    assert_eq!((ended.verdict, ended.detail), (NO, pb::VerdictDetail::Expired as i32));
    let late = pb::RotateApiKeyRequest { api_key: id.clone(), ..Default::default() };
    let refused = c.rotate_api_key(with(&key, late)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let again = rotate(&mut c, &key, &next.api_key, 0).await;
    assert_eq!(check(&mut c, &key, &rotated.text).await.verdict, NO, "without an overlap it ends at once");
    assert_eq!(check(&mut c, &key, &again.text).await.verdict, OK);

    let list = |states: Vec<i32>, page_size, page_token| pb::ListApiKeysRequest {
        key: by_id("jane"),
        states,
        page_size,
        page_token,
        ..Default::default()
    };
    let all = c.list_api_keys(with(&key, list(vec![], 2, String::new()))).await.expect("list").into_inner();
    let rest = c.list_api_keys(with(&key, list(vec![], 2, all.next_page_token))).await.expect("list").into_inner();
    let states: Vec<i32> = all.api_keys.iter().chain(&rest.api_keys).map(|key| key.state).collect();
    use pb::ApiKeyState::{Active, Expired, Revoked};
    assert_eq!(states, [Expired as i32, Revoked as i32, Active as i32]);
    let active = c.list_api_keys(with(&key, list(vec![Active as i32], 0, String::new()))).await.unwrap().into_inner();
    assert_eq!(active.api_keys.len(), 1);

    // A restart forgets what was remembered, not what was decided.
    let test = running.stop().await.restart().await;
    let call = test.call(tenant);
    let vault = &test.node.vault;
    let verdict = async |text: &str| unhurried(async || vault.verify_api_key(&call, text, None).await).await.unwrap().0;
    assert_eq!(verdict(&again.text).await, Verdict::Ok);
    assert_eq!(verdict(&text).await, Verdict::No(Why::Expired));
    let last = KeyId::parse(&again.api_key.unwrap().api_key).unwrap();
    vault.revoke_api_key(&call, last, None).await.unwrap();
    let first = vault.revoke_api_key(&call, last, None).await.unwrap().revoked;
    test.clock.advance_ms(1_000);
    assert_eq!(vault.revoke_api_key(&call, last, None).await.unwrap().revoked, first, "a second time changes nothing");
    assert_eq!(verdict(&again.text).await, Verdict::No(Why::Revoked));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_expired_revoked_erased_and_foreign_keys_get_one_answer() {
    let running = Running::new().await;
    let tenant = running.test.tenant("jina", JINA).await;
    let other = running.test.tenant("other", JINA).await;
    let (admin, foreign_admin) = (running.key(tenant, "admin").await, running.key(other, "admin").await);
    for subject in ["jane", "gone", "frozen"] {
        person(&running, &admin, subject).await;
    }
    person(&running, &foreign_admin, "jane").await;
    let mut c = client(&running);
    let (good, _) = issue(&mut c, &admin, issue_for("jane")).await;
    let (foreign, _) = issue(&mut c, &foreign_admin, issue_for("jane")).await;
    let soon = prost_types::Timestamp { seconds: START.0 / 1_000 + 60, nanos: 0 };
    let (expired, _) =
        issue(&mut c, &admin, pb::IssueApiKeyRequest { expire_time: Some(soon), ..issue_for("jane") }).await;
    let (revoked, id) = issue(&mut c, &admin, issue_for("jane")).await;
    let (rotated, rotated_id) = issue(&mut c, &admin, issue_for("jane")).await;
    let (erased, _) = issue(&mut c, &admin, issue_for("gone")).await;
    let (frozen, _) = issue(&mut c, &admin, issue_for("frozen")).await;
    for text in [&expired, &revoked, &rotated, &erased, &frozen] {
        assert_eq!(check(&mut c, &admin, text).await.verdict, OK, "it works before");
    }
    c.revoke_api_key(with(&admin, pb::RevokeApiKeyRequest { api_key: id, ..Default::default() })).await.unwrap();
    rotate(&mut c, &admin, &rotated_id, 0).await;
    erase(&running, &admin, "gone").await;
    let mut erasures = pb::erasure_service_client::ErasureServiceClient::new(running.channel.clone());
    let target = Some(pb::schedule_erasure_request::Target::Key(by_id("frozen").unwrap()));
    let schedule_time = Some(prost_types::Timestamp { seconds: START.0 / 1_000 + 864_000, nanos: 0 });
    let schedule = pb::ScheduleErasureRequest { target, schedule_time, ..Default::default() };
    erasures.schedule_erasure(with(&admin, schedule)).await.expect("schedule");
    running.test.clock.advance_ms(120_000);

    // Who may only check.
    let vault = running.test.node.vault.clone();
    let only_verify = Grant {
        fields: FieldSet::EMPTY,
        purposes: PurposeSet::EMPTY,
        verbs: VerbSet::from_iter([Verb::Verify]),
        max_view: View::Masked,
        groups: None,
    };
    let checker = running.test.call_with(tenant, vec![only_verify]);
    assert!(!vault.sees_why(&checker) && vault.sees_why(&running.test.call(tenant)));
    let mut forged = good.clone();
    let last = if forged.ends_with('0') { '1' } else { '0' };
    forged.pop();
    forged.push(last);
    let mut answers = BTreeSet::new();
    for text in
        [&foreign, &expired, &revoked, &rotated, &erased, &frozen, &forged, "", "jina_test_1_x", &"x".repeat(5_000)]
    {
        // Cold, and then from memory.
        for _ in 0..2 {
            let answer = unhurried(async || vault.verify_api_key(&checker, text, None).await).await;
            let (verdict, found) = answer.expect("a verdict");
            assert!(matches!(verdict, Verdict::No(_)) && found.is_none(), "{text}");
        }
        let answer = check(&mut c, &admin, text).await;
        assert_eq!(answer.verdict, NO);
        answers.insert(pb::VerifyApiKeyResponse { detail: 0, ..answer }.encode_to_vec());
    }
    assert_eq!(answers.len(), 1, "beside the detail, which few are told");
    assert_eq!(check(&mut c, &admin, &good).await.verdict, OK);

    // Names of another tenant's keys and of none are one answer.
    let (_, foreign_id) = issue(&mut c, &foreign_admin, issue_for("jane")).await;
    for name in [foreign_id.as_str(), "1", "nothing at all"] {
        let revoke = pb::RevokeApiKeyRequest { api_key: name.into(), ..Default::default() };
        assert_eq!(c.revoke_api_key(with(&admin, revoke)).await.unwrap_err().code(), Code::NotFound);
        let rotate = pb::RotateApiKeyRequest { api_key: name.into(), ..Default::default() };
        assert_eq!(c.rotate_api_key(with(&admin, rotate)).await.unwrap_err().code(), Code::NotFound);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn t25_no_check_that_began_after_the_answer_finds_a_revoked_or_erased_key() {
    let t = TestVault::new().await;
    let tenant = t.tenant("jina", JINA).await;
    let call = t.call(tenant);
    let vault = t.node.vault.clone();
    for round in 0..rounds(12, 300) {
        let subject = format!("jane-{round}");
        let put = put(&call, &subject, &[("name", "Jane")]);
        vault.put_fields(&call, &purpose(&call, "service"), put, None, false).await.expect("put");
        let of = || Key::Subject(id(&subject));
        let new = || NewApiKey { label: Default::default(), scopes: vec![], expires: None, sources: vec![] };
        let issue = async || vault.issue_api_key(&call, &Default::default(), &of(), new(), None, false).await;
        let issued = unhurried(issue).await.unwrap().unwrap();
        let text = Arc::new(issued.text.unwrap().to_string());
        // Every other round nobody has used the key before: the race is with the first use.
        if round % 2 == 0 {
            let first = unhurried(async || vault.verify_api_key(&call, &text, None).await).await;
            assert_eq!(first.unwrap().0, Verdict::Ok);
        }
        let answered = Arc::new(AtomicBool::new(false));
        let checkers: Vec<_> = (0..6)
            .map(|_| {
                let (vault, call, text, answered) = (vault.clone(), call.clone(), text.clone(), answered.clone());
                tokio::spawn(async move {
                    let mut late = 0;
                    while late < 5 {
                        let began_after = answered.load(Ordering::SeqCst);
                        match vault.verify_api_key(&call, &text, None).await {
                            Ok((verdict, _)) => {
                                assert!(!(began_after && verdict == Verdict::Ok), "round {round}");
                                late += usize::from(began_after);
                            }
                            Err(VaultError::Busy { .. }) => {}
                            Err(error) => panic!("{error:?}"),
                        }
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        tokio::task::yield_now().await;
        match round % 4 {
            0 | 1 => {
                vault.revoke_api_key(&call, issued.key.id, None).await.expect("revoke");
            }
            2 => {
                let how = pii_vault::vault::credentials::api_key::ApiKeyRotation { overlap_ms: 0, expires: None };
                loop {
                    match vault.rotate_api_key(&call, issued.key.id, how, None).await {
                        Err(VaultError::Busy { .. }) => tokio::task::yield_now().await,
                        done => break drop(done.expect("rotate")),
                    }
                }
            }
            _ => {
                vault.erase_subject(&call, &Default::default(), &of(), &[], None, true).await.expect("erase");
            }
        }
        answered.store(true, Ordering::SeqCst);
        for checker in checkers {
            checker.await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_used_from_its_networks_only() {
    let running = Running::new().await;
    let tenant = running.test.tenant("jina", JINA).await;
    let key = running.key(tenant, "app").await;
    person(&running, &key, "jane").await;
    let mut c = client(&running);
    let sources = vec!["192.0.2.77/24".to_owned(), "2001:db8::/32".into()];
    let (text, _) = issue(&mut c, &key, pb::IssueApiKeyRequest { sources, ..issue_for("jane") }).await;
    let refused = pb::VerdictDetail::SourceRefused as i32;
    let seen = [
        ("192.0.2.1", OK, 0),
        ("::ffff:192.0.2.1", OK, 0),
        ("2001:db8::7", OK, 0),
        ("192.0.3.1", NO, refused),
        ("2001:db9::1", NO, refused),
        ("", NO, refused),
    ];
    for (source, verdict, detail) in seen {
        let request = pb::VerifyApiKeyRequest { text: text.clone(), source: source.into() };
        let answer = patient(async || c.verify_api_key(with(&key, request.clone())).await).await;
        assert_eq!((answer.verdict, answer.detail), (verdict, detail), "{source}");
    }
    let no_address = pb::VerifyApiKeyRequest { text, source: "here".into() };
    assert_eq!(c.verify_api_key(with(&key, no_address)).await.unwrap_err().code(), Code::InvalidArgument);
    let past = prost_types::Timestamp { seconds: START.0 / 1_000, nanos: 0 };
    for bad in [
        pb::IssueApiKeyRequest { sources: vec!["10.0.0.0/40".into()], ..issue_for("jane") },
        pb::IssueApiKeyRequest { sources: vec!["10.0.0.0/8".into(); 17], ..issue_for("jane") },
        pb::IssueApiKeyRequest { scope_ids: vec![0], ..issue_for("jane") },
        pb::IssueApiKeyRequest { scope_ids: vec![1; 65], ..issue_for("jane") },
        pb::IssueApiKeyRequest { label: "x".repeat(65), ..issue_for("jane") },
        pb::IssueApiKeyRequest { label: "a\0".into(), ..issue_for("jane") },
        pb::IssueApiKeyRequest { expire_time: Some(past), ..issue_for("jane") },
    ] {
        assert_eq!(c.issue_api_key(with(&key, bad)).await.unwrap_err().code(), Code::InvalidArgument);
    }
    let nobody = c.issue_api_key(with(&key, issue_for("nobody"))).await.unwrap_err();
    assert_eq!(nobody.code(), Code::NotFound);
    running.stop().await;
}

/// All PHC strings in the files below `dir`.
fn hashes(dir: &Path, bytes: &mut Vec<u8>) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(hashes(&path, bytes));
        } else if let Ok(content) = std::fs::read(&path) {
            let text = String::from_utf8_lossy(&content);
            let phc = text.match_indices("$argon2id$").map(|(at, _)| text[at..].chars().take(90).collect());
            all.extend(phc);
            bytes.extend_from_slice(&content);
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn jc14_a_dump_holds_only_sealed_phc_strings() {
    let running = Running::new().await;
    let tenant = running.test.tenant("jina", JINA).await;
    let key = running.key(tenant, "app").await;
    person(&running, &key, "jane").await;
    // The vault's own access keys have their hashes in clear; those of the users' keys are sealed.
    let before = hashes(running.test.dir.path(), &mut Vec::new());
    let mut c = client(&running);
    let wanted = pb::IssueApiKeyRequest { label: "printer on floor 9".into(), ..issue_for("jane") };
    let (text, _) = issue(&mut c, &key, wanted).await;
    assert_eq!(check(&mut c, &key, &text).await.verdict, OK);
    let mut bytes = Vec::new();
    let after = hashes(running.test.dir.path(), &mut bytes);
    assert!(!before.is_empty() && bytes.len() > 50_000, "something was searched");
    assert_eq!(before, after, "no PHC string in clear came with the key");
    let parts: Vec<&str> = text.split('_').collect();
    for part in [text.as_str(), parts[3], parts[4], "printer on floor 9"] {
        assert!(!bytes.windows(part.len()).any(|window| window == part.as_bytes()), "{part} is in a file");
    }

    erase(&running, &key, "jane").await;
    assert_eq!(check(&mut c, &key, &text).await.verdict, NO);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_issue_answers_the_key_without_its_text_and_all_of_it_is_audited() {
    let running = Running::new().await;
    let tenant = running.test.tenant("jina", JINA).await;
    let key = running.key(tenant, "app").await;
    person(&running, &key, "jane").await;
    let mut c = client(&running);
    let request =
        pb::IssueApiKeyRequest { request_id: "67e55044-10b1-426f-9247-bb680e5fe0c8".into(), ..issue_for("jane") };
    let first = patient(async || c.issue_api_key(with(&key, request.clone())).await).await;
    let second = c.issue_api_key(with(&key, request.clone())).await.expect("repeat").into_inner();
    assert_eq!(first.api_key.as_ref().unwrap().api_key, second.api_key.unwrap().api_key);
    assert!(!first.text.is_empty() && second.text.is_empty());
    let reused = pb::IssueApiKeyRequest { label: "another".into(), ..request.clone() };
    assert_eq!(reason(&c.issue_api_key(with(&key, reused)).await.unwrap_err()), "REQUEST_ID_REUSED");
    let only_checked = pb::IssueApiKeyRequest { validate_only: true, request_id: String::new(), ..request.clone() };
    assert!(c.issue_api_key(with(&key, only_checked)).await.unwrap().into_inner().text.is_empty());

    check(&mut c, &key, &first.text).await;
    let name = first.api_key.unwrap().api_key;
    let revoke = pb::RevokeApiKeyRequest { api_key: name, ..Default::default() };
    c.revoke_api_key(with(&key, revoke)).await.unwrap();
    check(&mut c, &key, &first.text).await;
    let list = pb::ListApiKeysRequest { key: by_id("jane"), ..Default::default() };
    assert_eq!(c.list_api_keys(with(&key, list)).await.unwrap().into_inner().api_keys.len(), 1);

    let mut audit = pb::audit_service_client::AuditServiceClient::new(running.channel.clone());
    let mut seen = Vec::new();
    for chain in [pb::AuditChain::Changes, pb::AuditChain::Reads] {
        let request = pb::ListEntriesRequest { chain: chain as i32, key: by_id("jane"), ..Default::default() };
        let entries = audit.list_entries(with(&key, request)).await.expect("entries").into_inner().entries;
        seen.extend(entries.into_iter().map(|entry| (entry.action, entry.outcome)));
    }
    let ok = pb::AuditOutcome::Ok as i32;
    for wanted in [
        ("api_key.issued", ok),
        ("api_key.revoked", ok),
        ("api_key.verified", ok),
        ("api_key.verified", pb::AuditOutcome::Denied as i32),
        ("api_key.list", ok),
    ] {
        assert!(seen.iter().any(|(action, outcome)| (action.as_str(), *outcome) == wanted), "{wanted:?}: {seen:?}");
    }
    assert_eq!(seen.iter().filter(|(action, _)| action == "api_key.issued").count(), 1, "a repeat issues nothing");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_day_of_the_last_use_is_written_by_the_job_and_costs_no_new_argon2() {
    let t = TestVault::new().await;
    let tenant = t.tenant("jina", JINA).await;
    let call = t.call(tenant);
    let vault = &t.node.vault;
    vault
        .put_fields(&call, &purpose(&call, "service"), put(&call, "jane", &[("name", "Jane")]), None, false)
        .await
        .unwrap();
    let of = Key::Subject(id("jane"));
    let new = || NewApiKey { label: Default::default(), scopes: vec![], expires: None, sources: vec![] };
    let issue = async || vault.issue_api_key(&call, &Default::default(), &of, new(), None, false).await;
    let text = unhurried(issue).await.unwrap().unwrap().text.unwrap();
    let verdict = async |call: &_| unhurried(async || vault.verify_api_key(call, &text, None).await).await.unwrap().0;
    let used = async |call: &_| {
        let page = vault.list_api_keys(call, &Default::default(), &of, &[], None, 10).await.unwrap();
        page.rows[0].used_day
    };
    assert_eq!(verdict(&call).await, Verdict::Ok);
    assert_eq!(used(&call).await, None, "not in the path of the check");
    assert_eq!(vault.write_api_key_uses(10).await.unwrap().done, 1);
    assert_eq!(used(&call).await, Some(START.day()));
    assert_eq!(vault.write_api_key_uses(10).await.unwrap().done, 0);
    assert_eq!(verdict(&call).await, Verdict::Ok);
    assert_eq!(vault.write_api_key_uses(10).await.unwrap().done, 0, "once a day");
    t.clock.advance_ms(DAY_MS);
    let call = t.call(tenant);
    assert_eq!(verdict(&call).await, Verdict::Ok);
    assert_eq!(vault.write_api_key_uses(10).await.unwrap().done, 1);
    assert_eq!(used(&call).await, Some(START.day() + 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subject_has_a_bounded_number_of_keys_and_ended_ones_make_room() {
    let t = TestVault::new().await;
    let tenant = t.tenant("jina", JINA).await;
    let call = t.call(tenant);
    let vault = &t.node.vault;
    vault
        .put_fields(&call, &purpose(&call, "service"), put(&call, "jane", &[("name", "Jane")]), None, false)
        .await
        .unwrap();
    let of = Key::Subject(id("jane"));
    let new = || NewApiKey { label: Default::default(), scopes: vec![], expires: None, sources: vec![] };
    let once = async || vault.issue_api_key(&call, &Default::default(), &of, new(), None, false).await;
    let issue = async || unhurried(once).await;
    let mut first = None;
    for _ in 0..pii_vault::vault::credentials::api_key::MAX_KEYS {
        let issued = issue().await.unwrap().unwrap();
        first.get_or_insert((issued.key.id, issued.text.unwrap()));
    }
    assert!(matches!(once().await, Err(VaultError::Quota(_))), "before anything is hashed");
    let (first_id, first_text) = first.unwrap();
    vault.revoke_api_key(&call, first_id, None).await.unwrap();
    let last = issue().await.unwrap().unwrap();
    assert_eq!(vault.verify_api_key(&call, last.text.as_ref().unwrap(), None).await.unwrap().0, Verdict::Ok);
    assert_eq!(
        vault.verify_api_key(&call, &first_text, None).await.unwrap().0,
        Verdict::No(Why::Unknown),
        "it is gone"
    );
    let page = vault.list_api_keys(&call, &Default::default(), &of, &[], None, 100).await.unwrap();
    assert!(page.rows.iter().all(|key| key.id != first_id));
}
