//! T01 and T09 for the credentials of the tenants' users: what was answered about a password outlives `kill -9`, an import
//! that was killed is sent again, and nothing that a user typed or was given stays in the memory of the program.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pb::credential_service_client::CredentialServiceClient;
use pb::record_service_client::RecordServiceClient;
use pii_vault::auth::TotpSecret;
use pii_vault::grpc::pb;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::memory::{control, forgotten, hits, needle, search};
use crate::net::*;
use crate::server::{Key, Place};
use crate::{Dice, rounds};

type Login = CredentialServiceClient<Channel>;

/// Of `tests/vectors/passwords-v1.json`, and its password.
const BCRYPT: (&str, &str) =
    ("$2b$04$abcdefghijklmnopqrstuu7EJV7kdjBBQxyb0HjTh9KS7.Lah/6CG", "correct horse battery staple");

/// Asks again while the machine has no room for Argon2id.
async fn patient<T>(mut ask: impl AsyncFnMut() -> Result<tonic::Response<T>, Status>) -> Result<T, Status> {
    loop {
        match ask().await {
            Err(status) if status.code() == Code::ResourceExhausted => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            answer => return answer.map(tonic::Response::into_inner),
        }
    }
}

async fn person(channel: &Channel, key: &Key, subject: &str) {
    let put = pb::PutFieldsRequest {
        subject: subject.into(),
        values: vec![text_value(NAME, "Jane Roe")],
        context: for_purpose(SERVICE),
        ..Default::default()
    };
    RecordServiceClient::new(channel.clone()).put_fields(with(&key.text, put)).await.expect("put");
}

async fn set(login: &mut Login, key: &Key, subject: &str, password: &str) -> Result<(), Status> {
    let password = password.as_bytes().to_vec();
    let set = pb::SetPasswordRequest { key: by_id(subject), password: password.into(), ..Default::default() };
    patient(async || login.set_password(with(&key.text, set.clone())).await).await.map(drop)
}

async fn verify(login: &mut Login, key: &Key, subject: &str, password: &str) -> bool {
    let password = password.as_bytes().to_vec();
    let ask = pb::VerifyPasswordRequest { key: by_id(subject), password: password.into(), ..Default::default() };
    let verdict = patient(async || login.verify_password(with(&key.text, ask.clone())).await).await;
    verdict.expect("a verdict").verdict == pb::Verdict::Ok as i32
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t01_a_password_whose_set_was_answered_verifies_after_a_kill() {
    let place = Place::new(tempfile::tempdir().unwrap(), 1).await;
    let key = place.keys(1).await.remove(0);
    let mut dice = Dice(7);
    let mut asked_for: Vec<String> = Vec::new();
    for round in 0..rounds(6, 200) {
        let (server, _) = place.serve().await;
        let mut login = Login::new(server.channel.clone());
        if round == 0 {
            person(&server.channel, &key, "jane").await;
        }
        // The last one that was answered, or the one behind it that was on its way.
        let mut right = asked_for.is_empty();
        for password in asked_for.drain(..).rev() {
            right = right || verify(&mut login, &key, "jane", &password).await;
        }
        assert!(right, "round {round}: neither of what was set");
        let password = format!("the password of round {round}");
        set(&mut login, &key, "jane", &password).await.expect("set");
        asked_for.push(password);
        if round % 2 == 1 {
            let (text, next) = (key.text.clone(), format!("another password of round {round}"));
            asked_for.push(next.clone());
            let password = next.into_bytes().into();
            let set = pb::SetPasswordRequest { key: by_id("jane"), password, ..Default::default() };
            tokio::spawn(async move { login.set_password(with(&text, set)).await });
            tokio::time::sleep(Duration::from_millis(dice.below(60))).await;
        }
        server.kill();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t01_an_import_that_was_killed_is_sent_again_and_everybody_is_there_once() {
    const BATCHES: usize = 20;
    let place = Place::new(tempfile::tempdir().unwrap(), 1).await;
    let key = place.keys(1).await.remove(0);
    let batch = |n: usize| pb::BatchImportPasswordsRequest {
        rows: (n * 200..n * 200 + 200)
            .map(|n| pb::PasswordImport { subject: format!("user-{n}"), hash: BCRYPT.0.into(), must_change: false })
            .collect(),
        create_subjects: true,
        ..Default::default()
    };
    let (mut dice, answered) = (Dice(11), Arc::new(AtomicUsize::new(0)));
    let mut round = 0;
    // On a busy machine the first kills may come before the first answer.
    while round < rounds(4, 40) || (round < 40 && answered.load(Ordering::Relaxed) == 0) {
        round += 1;
        let (server, _) = place.serve().await;
        let (mut login, text, answered) = (Login::new(server.channel.clone()), key.text.clone(), answered.clone());
        let importing = tokio::spawn(async move {
            loop {
                let n = answered.load(Ordering::Relaxed);
                // The server is gone, or all of it is done.
                let Ok(done) = login.batch_import_passwords(with(&text, batch(n % BATCHES))).await else { return };
                let done = done.into_inner();
                assert_eq!((done.done_count, done.imported_count + done.kept_count), (200, 200), "{done:?}");
                answered.store(n + 1, Ordering::Relaxed);
            }
        });
        tokio::time::sleep(Duration::from_millis(40 + dice.below(400))).await;
        server.kill();
        importing.await.unwrap();
    }
    let (server, _) = place.serve().await;
    let mut login = Login::new(server.channel.clone());
    let answered = answered.load(Ordering::Relaxed).min(BATCHES);
    assert!(answered > 0, "the import got to work");
    for n in 0..BATCHES {
        let done = login.batch_import_passwords(with(&key.text, batch(n))).await.expect("again").into_inner();
        assert_eq!(done.done_count, 200);
        assert!(n >= answered || done.kept_count == 200, "batch {n} was answered and is not there: {done:?}");
    }
    let report = login.report_credentials(with(&key.text, pb::ReportCredentialsRequest {})).await.expect("report");
    assert_eq!(report.into_inner().password_count, 200 * BATCHES as u64);
    for subject in ["user-0", "user-3999"] {
        assert!(verify(&mut login, &key, subject, BCRYPT.1).await, "{subject}");
    }
    assert_eq!(place.integrity(), "ok");
    server.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t09_nothing_that_a_user_typed_or_was_given_stays_in_memory() {
    let place = Place::new(tempfile::tempdir().unwrap(), 1).await;
    control(place.dir.path());
    let key = place.keys(1).await.remove(0);
    let (server, _) = place.serve().await;
    let mut login = Login::new(server.channel.clone());
    let mut dice = Dice(std::process::id().into());
    let mut secret = |role: &str| format!("{role}{:016x}{:016x}", dice.next(), dice.next());
    let mut words = Vec::new();
    for subject in ["jane", "joe"] {
        person(&server.channel, &key, subject).await;
        let (first, second, wrong) = (secret("Pw"), secret("Pä"), secret("wr"));
        set(&mut login, &key, subject, &first).await.expect("set");
        assert!(verify(&mut login, &key, subject, &first).await && !verify(&mut login, &key, subject, &wrong).await);
        let change = pb::ChangePasswordRequest {
            key: by_id(subject),
            password: first.clone().into_bytes().into(),
            new_password: second.clone().into_bytes().into(),
            ..Default::default()
        };
        let changed = patient(async || login.change_password(with(&key.text, change.clone())).await).await;
        assert_eq!(changed.expect("change").verdict, pb::Verdict::Ok as i32);
        assert!(verify(&mut login, &key, subject, &second).await);
        for (what, text) in [("first password", first), ("second password", second), ("wrong password", wrong)] {
            words.push(needle(format!("{what} of {subject}"), text.as_bytes()));
        }

        let new = pb::IssueApiKeyRequest { key: by_id(subject), label: secret("label"), ..Default::default() };
        words.push(needle("label of a key", new.label.as_bytes()));
        let issued = patient(async || login.issue_api_key(with(&key.text, new.clone())).await).await.expect("issue");
        let check = pb::VerifyApiKeyRequest { text: issued.text.clone(), source: String::new() };
        for _ in 0..3 {
            let checked = patient(async || login.verify_api_key(with(&key.text, check.clone())).await).await;
            assert_eq!(checked.expect("a verdict").verdict, pb::Verdict::Ok as i32);
        }
        let part = issued.text.split('_').nth(3).expect("prefix, environment, id, secret");
        words.push(needle(format!("API key of {subject}"), part.as_bytes()));

        let new = pb::IssueCodeRequest {
            key: by_id(subject),
            r#use: "reset".into(),
            length: 40,
            alphabet: pb::CodeAlphabet::Letters as i32,
            ..Default::default()
        };
        let code = login.issue_code(with(&key.text, new)).await.expect("issue").into_inner().text;
        words.push(needle(format!("code of {subject}"), code.as_bytes()));
        let r#use = "reset".into();
        let typed = pb::VerifyCodeRequest { key: by_id(subject), r#use, text: code, ..Default::default() };
        let typed = login.verify_code(with(&key.text, typed)).await.expect("a verdict").into_inner();
        assert_eq!(typed.verdict, pb::Verdict::Ok as i32);

        let (issuer, account) = ("Jina".into(), secret("account"));
        words.push(needle("account of TOTP", account.as_bytes()));
        let enrol = pb::EnrolTotpRequest { key: by_id(subject), issuer, account, ..Default::default() };
        let made = login.enrol_totp(with(&key.text, enrol)).await.expect("enrol").into_inner();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let totp = TotpSecret::from_base32(&made.secret).expect("base32");
        let code = totp.code_at(now as i64).expect("a code").to_string();
        let confirm = pb::ConfirmTotpRequest { key: by_id(subject), text: code, ..Default::default() };
        let confirmed = login.confirm_totp(with(&key.text, confirm)).await.expect("a verdict").into_inner();
        assert_eq!(confirmed.verdict, pb::Verdict::Ok as i32);
        words.push(needle(format!("TOTP secret of {subject} as text"), made.secret.as_bytes()));
        words.push(needle(format!("TOTP secret of {subject}"), totp.expose()));
    }
    println!("at the answer: {}", hits(&search(server.pid(), &words)).len());
    let wait = rounds(5, 60) as u64;
    tokio::time::sleep(Duration::from_secs(wait)).await;
    println!("after {wait} s with the connection open:\n{}", hits(&search(server.pid(), &words)).join("\n"));
    drop(login);
    let pid = server.pid();
    let server = server.hang_up();
    forgotten(pid, &words).await;
    drop(server);
}
