//! One-time codes, recovery codes and TOTP over a socket: each works once, whoever asks at the same time.

use pii_vault::auth::TotpSecret;
use pii_vault::grpc::pb;
use tonic::Code;
use tonic::transport::Channel;

use crate::harness::*;
use crate::net::*;

type Client = pb::credential_service_client::CredentialServiceClient<Channel>;

const OK: i32 = pb::Verdict::Ok as i32;
const NO: i32 = pb::Verdict::No as i32;

struct Scene {
    running: Running,
    key: String,
    client: Client,
}

impl Scene {
    async fn new() -> Self {
        let running = Running::new().await;
        let tenant = running.test.tenant("jina", JINA).await;
        let key = running.key(tenant, "app").await;
        let mut records = pb::record_service_client::RecordServiceClient::new(running.channel.clone());
        let request = pb::PutFieldsRequest {
            subject: "jane".into(),
            values: vec![text_value(NAME, "Jane Roe")],
            context: for_purpose(SERVICE),
            ..Default::default()
        };
        records.put_fields(with(&key, request)).await.expect("put");
        let client = Client::new(running.channel.clone());
        Scene { running, key, client }
    }

    async fn issue(&mut self, request: pb::IssueCodeRequest) -> String {
        let request = pb::IssueCodeRequest { key: by_id("jane"), ..request };
        self.client.issue_code(with(&self.key, request)).await.expect("issue").into_inner().text
    }

    async fn verify(&mut self, subject: &str, used_for: &str, text: &str) -> pb::VerifyCodeResponse {
        let request = pb::VerifyCodeRequest {
            key: by_id(subject),
            r#use: used_for.into(),
            text: text.into(),
            ..Default::default()
        };
        self.client.verify_code(with(&self.key, request)).await.expect("a verdict").into_inner()
    }

    async fn totp(&mut self, text: &str) -> (i32, i32) {
        let request = pb::VerifyTotpRequest { key: by_id("jane"), text: text.into(), ..Default::default() };
        let answer = self.client.verify_totp(with(&self.key, request)).await.expect("a verdict").into_inner();
        (answer.verdict, answer.detail)
    }

    async fn confirm(&mut self, text: &str) -> i32 {
        let request = pb::ConfirmTotpRequest { key: by_id("jane"), text: text.into(), ..Default::default() };
        self.client.confirm_totp(with(&self.key, request)).await.expect("a verdict").into_inner().verdict
    }

    async fn enrol(&mut self) -> TotpSecret {
        let request = pb::EnrolTotpRequest {
            key: by_id("jane"),
            issuer: "Jina".into(),
            account: "jane@example.com".into(),
            ..Default::default()
        };
        let made = self.client.enrol_totp(with(&self.key, request)).await.expect("enrol").into_inner();
        assert!(made.uri.contains(&made.secret) && made.uri.starts_with("otpauth://totp/Jina"));
        TotpSecret::from_base32(&made.secret).expect("Base32")
    }

    fn now_s(&self) -> i64 {
        self.running.test.now().0 / 1_000
    }
}

fn reset() -> pb::IssueCodeRequest {
    pb::IssueCodeRequest { r#use: "reset".into(), ..Default::default() }
}

/// Another code than this one, of the same form.
fn wrong(code: &str) -> String {
    let first = if code.starts_with('2') { '3' } else { '2' };
    format!("{first}{}", &code[1..])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_works_once_for_its_use_and_its_time() {
    let mut s = Scene::new().await;
    let code = s.issue(reset()).await;
    assert!(code.len() == 6 && code.bytes().all(|b| b.is_ascii_digit()), "as the policy says");
    assert_eq!(s.verify("jane", "confirm", &code).await.verdict, NO, "for another use");
    assert_eq!(s.verify("nobody", "reset", &code).await.verdict, NO);
    let typed = format!(" {}-{} ", &code[..3], &code[3..]);
    assert_eq!(s.verify("jane", "reset", &typed).await.verdict, OK);
    let again = s.verify("jane", "reset", &code).await;
    assert_eq!((again.verdict, again.detail), (NO, pb::VerdictDetail::Revoked as i32));

    // A new one ends the former one; each use has its own.
    let (first, second) = (s.issue(reset()).await, s.issue(reset()).await);
    let other = s.issue(pb::IssueCodeRequest { r#use: "confirm".into(), ..reset() }).await;
    if first != second {
        assert_eq!(s.verify("jane", "reset", &first).await.verdict, NO);
    }
    assert_eq!(s.verify("jane", "reset", &second).await.verdict, OK);
    assert_eq!(s.verify("jane", "confirm", &other).await.verdict, OK);

    // Length, alphabet, life.
    let letters =
        pb::IssueCodeRequest { length: 12, alphabet: pb::CodeAlphabet::Letters as i32, life_seconds: 60, ..reset() };
    let code = s.issue(letters.clone()).await;
    assert!(code.len() == 12 && code.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()));
    s.running.test.clock.advance_ms(59_999);
    assert_eq!(s.verify("jane", "reset", &code.to_lowercase()).await.verdict, OK);
    let code = s.issue(letters).await;
    s.running.test.clock.advance_ms(60_000);
    let late = s.verify("jane", "reset", &code).await;
    assert_eq!((late.verdict, late.detail), (NO, pb::VerdictDetail::Expired as i32));

    for bad in [
        pb::IssueCodeRequest { r#use: "recovery".into(), ..reset() },
        pb::IssueCodeRequest { r#use: "Reset".into(), ..reset() },
        pb::IssueCodeRequest { length: 5, ..reset() },
        pb::IssueCodeRequest { length: 65, ..reset() },
        pb::IssueCodeRequest { life_seconds: 59, ..reset() },
        pb::IssueCodeRequest { tries: 21, ..reset() },
        pb::IssueCodeRequest { alphabet: 9, ..reset() },
    ] {
        let request = pb::IssueCodeRequest { key: by_id("jane"), ..bad };
        let refused = s.client.issue_code(with(&s.key, request)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    s.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_tries_end_a_code_and_survive_a_restart() {
    let mut s = Scene::new().await;
    let code = s.issue(pb::IssueCodeRequest { tries: 3, ..reset() }).await;
    assert_eq!(s.verify("jane", "reset", &wrong(&code)).await.detail, pb::VerdictDetail::Wrong as i32);
    assert_eq!(s.verify("jane", "reset", "not a code").await.detail, pb::VerdictDetail::Wrong as i32);
    let Scene { running, .. } = s;
    let test = running.stop().await.restart().await;
    let tenant = test.node.vault.tenant_no(&pii_vault::ids::Name::parse("tenant", "jina").unwrap()).unwrap();
    let call = test.call(tenant);
    let of = pii_vault::vault::find::Key::Subject(id("jane"));
    let used_for = pii_vault::ids::Name::parse("use", "reset").unwrap();
    let check = async |text: &str| {
        let verdict = test.node.vault.verify_code(&call, &Default::default(), &of, &used_for, text).await;
        verdict.expect("a verdict")
    };
    use pii_vault::vault::credentials::{Verdict, Why};
    assert_eq!(check(&wrong(&code)).await, Verdict::No(Why::Wrong), "the third");
    assert_eq!(check(&code).await, Verdict::No(Why::Revoked), "it has ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_a_hundred_callers_with_one_code_exactly_one_wins() {
    let mut s = Scene::new().await;
    let secret = s.enrol().await;
    assert_eq!(s.confirm(&secret.code_at(s.now_s()).unwrap()).await, OK);
    s.running.test.clock.advance_ms(60_000);
    let totp = secret.code_at(s.now_s()).unwrap().to_string();
    let code = s.issue(reset()).await;
    let sheet = pb::IssueRecoveryCodesRequest { key: by_id("jane"), ..Default::default() };
    let sheet = s.client.issue_recovery_codes(with(&s.key, sheet)).await.expect("sheet").into_inner().texts;
    let race = async |what: &'static str, text: String| {
        let callers: Vec<_> = (0..100)
            .map(|_| {
                let (mut client, key, text) = (s.client.clone(), s.key.clone(), text.clone());
                tokio::spawn(async move {
                    loop {
                        let answer = if what == "totp" {
                            let request =
                                pb::VerifyTotpRequest { key: by_id("jane"), text: text.clone(), ..Default::default() };
                            client.verify_totp(with(&key, request)).await.map(|answer| answer.into_inner().verdict)
                        } else {
                            let r#use = what.to_owned();
                            let request = pb::VerifyCodeRequest {
                                key: by_id("jane"),
                                r#use,
                                text: text.clone(),
                                ..Default::default()
                            };
                            client.verify_code(with(&key, request)).await.map(|answer| answer.into_inner().verdict)
                        };
                        match answer {
                            Ok(verdict) => return verdict,
                            // Lost to others, nothing was decided: it asks again.
                            Err(status) => {
                                assert!(matches!(status.code(), Code::Aborted | Code::ResourceExhausted), "{status:?}")
                            }
                        }
                    }
                })
            })
            .collect();
        let mut won = 0;
        for caller in callers {
            won += usize::from(caller.await.unwrap() == OK);
        }
        assert_eq!(won, 1, "{what}");
    };
    race("reset", code).await;
    race("recovery", sheet[0].clone()).await;
    race("totp", totp).await;
    s.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recovery_codes_work_once_each_and_a_new_sheet_ends_the_old_one() {
    let mut s = Scene::new().await;
    let ask = |count, request_id: &str| pb::IssueRecoveryCodesRequest {
        key: by_id("jane"),
        count,
        request_id: request_id.into(),
        ..Default::default()
    };
    let repeat = "67e55044-10b1-426f-9247-bb680e5fe0c8";
    let texts = s.client.issue_recovery_codes(with(&s.key, ask(3, repeat))).await.unwrap().into_inner().texts;
    assert!(texts.len() == 3 && texts.iter().all(|text| text.len() == 14 && text.matches('-').count() == 2));
    let again = s.client.issue_recovery_codes(with(&s.key, ask(3, repeat))).await.unwrap().into_inner();
    assert!(again.texts.is_empty(), "they are kept nowhere");
    let used = s.verify("jane", "recovery", &texts[1].to_lowercase().replace('-', " ")).await;
    assert_eq!((used.verdict, used.left_count), (OK, 2));
    assert_eq!(s.verify("jane", "recovery", &texts[1]).await.verdict, NO);
    assert_eq!(s.verify("jane", "recovery", "AAAA-AAAA-AAAA").await.verdict, NO);
    let fresh = s.client.issue_recovery_codes(with(&s.key, ask(0, ""))).await.unwrap().into_inner().texts;
    assert_eq!(fresh.len(), 10);
    assert_eq!(s.verify("jane", "recovery", &texts[0]).await.verdict, NO, "of the former sheet");
    assert_eq!(s.verify("jane", "recovery", &fresh[9]).await.left_count, 9);
    let many = s.client.issue_recovery_codes(with(&s.key, ask(21, ""))).await.unwrap_err();
    assert_eq!(many.code(), Code::InvalidArgument);
    s.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_totp_code_is_taken_once_and_guessing_waits() {
    let mut s = Scene::new().await;
    assert_eq!(s.totp("000000").await, (NO, pb::VerdictDetail::None as i32));
    let secret = s.enrol().await;
    let code = secret.code_at(s.now_s()).unwrap();
    assert_eq!(s.totp(&code).await.0, NO, "it does not count before it was confirmed");
    assert_eq!(s.confirm(&code).await, OK);
    assert_eq!(s.totp(&code).await.0, NO, "its first code was used to confirm it");
    s.running.test.clock.advance_ms(30_000);
    let (now, early) = (secret.code_at(s.now_s()).unwrap(), secret.code_at(s.now_s() + 60).unwrap());
    assert_eq!(s.totp(&early).await.0, NO, "two steps ahead");
    assert_eq!(s.totp(&now).await.0, OK);
    assert_eq!(s.totp(&now).await, (NO, pb::VerdictDetail::Wrong as i32), "replayed");
    let ahead = secret.code_at(s.now_s() + 30).unwrap();
    assert_eq!(s.totp(&ahead).await.0, OK, "one step ahead");
    s.running.test.clock.advance_ms(30_000);
    assert_eq!(s.totp(&ahead).await.0, NO, "that step was used");

    // A second enrolment: the first secret counts until it is confirmed.
    let second = s.enrol().await;
    s.running.test.clock.advance_ms(90_000);
    assert_eq!(s.totp(&secret.code_at(s.now_s()).unwrap()).await.0, OK);
    assert_eq!(s.confirm(&second.code_at(s.now_s()).unwrap()).await, OK);
    s.running.test.clock.advance_ms(90_000);
    assert_eq!(s.totp(&secret.code_at(s.now_s()).unwrap()).await.0, NO);
    assert_eq!(s.totp(&second.code_at(s.now_s()).unwrap()).await.0, OK);

    // Three wrong ones in a row, then it waits; the right one has to wait, too.
    s.running.test.clock.advance_ms(90_000);
    for _ in 0..3 {
        assert_eq!(s.totp("abcdef").await.1, pb::VerdictDetail::Wrong as i32);
    }
    let right = second.code_at(s.now_s()).unwrap();
    assert_eq!(s.totp(&right).await, (NO, pb::VerdictDetail::Locked as i32));
    s.running.test.clock.advance_ms(1_000);
    assert_eq!(s.totp(&right).await.0, OK);

    let remove = || pb::RemoveTotpRequest { key: by_id("jane"), ..Default::default() };
    assert!(s.client.remove_totp(with(&s.key, remove())).await.unwrap().into_inner().removed);
    assert!(!s.client.remove_totp(with(&s.key, remove())).await.unwrap().into_inner().removed);
    let colon = pb::EnrolTotpRequest { key: by_id("jane"), account: "a:b".into(), ..Default::default() };
    assert_eq!(s.client.enrol_totp(with(&s.key, colon)).await.unwrap_err().code(), Code::InvalidArgument);
    s.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_check_is_audited_and_an_erased_person_has_no_code() {
    let mut s = Scene::new().await;
    let code = s.issue(reset()).await;
    s.verify("jane", "reset", &wrong(&code)).await;
    s.verify("jane", "reset", &code).await;
    let code = s.issue(reset()).await;
    let mut audit = pb::audit_service_client::AuditServiceClient::new(s.running.channel.clone());
    let request =
        pb::ListEntriesRequest { chain: pb::AuditChain::Changes as i32, key: by_id("jane"), ..Default::default() };
    let entries = audit.list_entries(with(&s.key, request)).await.expect("entries").into_inner().entries;
    let seen: Vec<_> = entries.iter().map(|entry| (entry.action.as_str(), entry.outcome)).collect();
    let (ok, denied) = (pb::AuditOutcome::Ok as i32, pb::AuditOutcome::Denied as i32);
    for wanted in [("code.issued", ok), ("code.verified", denied), ("code.verified", ok)] {
        assert!(seen.contains(&wanted), "{wanted:?}: {seen:?}");
    }
    let mut erasures = pb::erasure_service_client::ErasureServiceClient::new(s.running.channel.clone());
    let erase = pb::EraseSubjectRequest { key: by_id("jane"), wait_final: true, ..Default::default() };
    erasures.erase_subject(with(&s.key, erase)).await.expect("erase");
    let gone = s.verify("jane", "reset", &code).await;
    let nobody = s.verify("nobody", "reset", &code).await;
    assert_eq!((gone.verdict, &gone), (NO, &nobody), "one answer");
    s.running.stop().await;
}
