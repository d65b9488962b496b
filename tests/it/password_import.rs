//! Password hashes taken over from other systems.

use pii_vault::grpc::pb;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::net::*;
use crate::passwords::{BCRYPT, NO, OK, SECRET, Scene, why};

#[tokio::test(flavor = "multi_thread")]
async fn je01_an_imported_bcrypt_hash_verifies_is_upgraded_at_login_and_counted_for_what_it_is() {
    let mut s = Scene::new().await;
    for subject in ["jane", "joe"] {
        s.person(subject).await;
        let imported = s.import(subject, BCRYPT, false).await.expect("import");
        assert!(imported.imported && imported.algorithm == "bcrypt");
    }
    let (counts, report) = s.report().await;
    assert_eq!(counts, [("password bcrypt".to_string(), 2)]);
    assert_eq!((report.password_count, report.outdated_count, report.must_reset_count), (2, 2, 0));
    assert_eq!(report.counts[0].parameters, "cost=4");

    assert_eq!(s.verify("jane", "wrong").await.verdict, NO);
    assert_eq!(s.report().await.0, [("password bcrypt".to_string(), 2)], "a wrong one upgrades nothing");
    assert_eq!(s.verify("jane", SECRET).await.verdict, OK);
    let (counts, report) = s.report().await;
    assert_eq!(counts, [("password argon2id".to_string(), 1), ("password bcrypt".to_string(), 1)]);
    assert_eq!(report.outdated_count, 1);
    assert_eq!(report.counts[0].parameters, "m=19456,t=2,p=1");
    assert_eq!(s.verify("jane", SECRET).await.verdict, OK, "as the vault makes them now");
    // Who has a password keeps it, unless it is said otherwise.
    assert!(!s.import("jane", BCRYPT, false).await.unwrap().imported);
    assert!(s.import("jane", BCRYPT, true).await.unwrap().imported);
    assert_eq!(s.verify("jane", SECRET).await.verdict, OK);
    s.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_takes_over_what_other_systems_made_and_no_fast_hash_rests() {
    let mut s = Scene::new().await;
    s.person("kept").await;
    s.set("kept", SECRET).await.expect("set");
    let vectors: serde_json::Value = serde_json::from_str(include_str!("../vectors/passwords-v1.json")).unwrap();
    let mut rows = Vec::new();
    for (n, vector) in vectors.as_array().unwrap().iter().filter(|v| v["password"] == SECRET).enumerate() {
        let hash = vector["hash"].as_str().unwrap().to_string();
        rows.push(pb::PasswordImport { subject: format!("user-{n}"), hash, must_change: n == 0 });
    }
    let good = rows.len();
    assert!(good > 20, "{good}");
    for hash in [
        "",
        "plain",
        "$argon2id$v=19$m=4194304,t=1,p=1$AAECAwQFBgcICQoLDA0ODw$5LzIIXvch3JdTOvNzWeGZ16UVocX0TxkVMAfrZ0tyH8",
        "$argon2id$v=19$m=256,t=0,p=1$AAECAwQFBgcICQoLDA0ODw$5LzIIXvch3JdTOvNzWeGZ16UVocX0TxkVMAfrZ0tyH8",
        "$2b$31$abcdefghijklmnopqrstuu7EJV7kdjBBQxyb0HjTh9KS7.Lah/6CG",
        &"x".repeat(1_025),
    ] {
        let subject = format!("bad-{}", rows.len());
        rows.push(pb::PasswordImport { subject, hash: hash.into(), must_change: false });
    }
    let row = |subject: &str| pb::PasswordImport { subject: subject.into(), hash: BCRYPT.into(), must_change: false };
    rows.extend([row("kept"), row("user-0"), row("not an id")]);
    let request = pb::BatchImportPasswordsRequest { rows: rows.clone(), create_subjects: true, ..Default::default() };
    let only_checked = pb::BatchImportPasswordsRequest { validate_only: true, ..request.clone() };
    let checked = s.client.batch_import_passwords(with(&s.key, only_checked)).await.expect("check").into_inner();
    assert_eq!((checked.done_count as usize, checked.errors.len()), (rows.len(), 8));
    assert!(s.report().await.1.password_count == 1, "nothing was stored");

    let done = s.client.batch_import_passwords(with(&s.key, request.clone())).await.expect("import").into_inner();
    let refused: Vec<usize> = done.errors.iter().map(|e| e.row as usize).collect();
    assert_eq!(done.done_count as usize, rows.len());
    assert_eq!((done.imported_count as usize, done.kept_count), (good, 1));
    let mut expected: Vec<usize> = (good..good + 6).chain([good + 7, good + 8]).collect();
    expected.sort_unstable();
    assert_eq!(refused, expected);
    let again = s.client.batch_import_passwords(with(&s.key, request)).await.expect("again").into_inner();
    assert_eq!((again.imported_count, again.kept_count as usize), (0, good + 1), "it may be sent again");

    let (counts, _) = s.report().await;
    let names: Vec<&str> = counts.iter().map(|(name, _)| name.as_str()).collect();
    assert!(names.contains(&"password argon2id(md5)") && names.contains(&"password argon2id(sha256)"), "{names:?}");
    assert!(!names.iter().any(|name| name.ends_with(" md5") || name.ends_with(" sha256")), "{names:?}");
    for (n, row) in rows.iter().enumerate().take(good) {
        assert_eq!(s.verify(&row.subject, "wrong").await.verdict, NO, "{}", row.hash);
        let right = s.verify(&row.subject, SECRET).await;
        assert_eq!((right.verdict, right.must_change), (OK, n == 0), "{}", row.hash);
    }
    let (counts, report) = s.report().await;
    assert_eq!(counts, [("password argon2id".to_string(), good as u64 + 1)], "all were hashed anew");
    assert_eq!(report.outdated_count, 0);
    // Nobody is made when nobody was asked to make anybody.
    let stranger = pb::BatchImportPasswordsRequest { rows: vec![row("stranger")], ..Default::default() };
    let answer = s.client.batch_import_passwords(with(&s.key, stranger)).await.unwrap().into_inner();
    assert_eq!(answer.errors[0].error.as_ref().unwrap().code, Code::NotFound as i32);
    s.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_hash_or_asks_for_too_much_is_refused_by_its_rule_and_nothing_of_it_is_told_or_stored() {
    let mut s = Scene::new().await;
    s.person("jane").await;
    let argon2 = |parameters: &str| {
        format!("$argon2id$v=19${parameters}$AAECAwQFBgcICQoLDA0ODw$5LzIIXvch3JdTOvNzWeGZ16UVocX0TxkVMAfrZ0tyH8")
    };
    let (salt, key) = ("AAECAwQFBgcICQoLDA0ODw", "5LzIIXvch3JdTOvNzWeGZ16UVocX0TxkVMAfrZ0tyH8");
    let (cost, form) = ("time or memory", "well-formed");
    for (hash, rule) in [
        (String::new(), "required"),
        ("x".repeat(1_025), "1,024"),
        ("secret-canary".into(), "not a form"),
        (format!("{}\0", &BCRYPT[..59]), form),
        (BCRYPT[..59].into(), form),
        (argon2("m=4194304,t=1,p=1"), cost),
        (argon2("m=256,t=0,p=1"), cost),
        (argon2("m=256,t=17,p=1"), cost),
        (argon2("m=256,t=1,p=0"), cost),
        (argon2("m=256,t=1,p=17"), cost),
        (argon2("m=7,t=1,p=1"), cost),
        (format!("$argon2id$v=19$m=256,t=1,p=1${salt}"), form),
        (format!("$argon2id$v=18$m=256,t=1,p=1${salt}${key}"), form),
        (BCRYPT.replace("$04$", "$03$"), cost),
        (BCRYPT.replace("$04$", "$31$"), cost),
        (BCRYPT.replace("$2b$", "$2x$"), "fault"),
        ("pbkdf2_sha256$0$salt$5LzIIXvch3JdTOvNzWeGZ16UVocX0TxkVMAfrZ0tyH8=".into(), cost),
        ("pbkdf2_sha256$4000000000$salt$5LzIIXvch3JdTOvNzWeGZ16UVocX0TxkVMAfrZ0tyH8=".into(), cost),
        (format!("$scrypt$ln=30,r=8,p=1${salt}${key}"), cost),
        ("{SSHA}5LzIIXvch3JdTOvNzWeGZ16UVocX0TxkVMAfrZ0tyH8=".into(), "fault"),
    ] {
        let refused = s.import("jane", &hash, false).await.expect_err(&hash);
        assert_eq!(refused.code(), Code::InvalidArgument, "{hash}");
        let told = refused.get_error_details().bad_request().expect("which field").field_violations[0].clone();
        assert!(told.field == "hash" && told.description.contains(rule), "{hash:?}: {}", told.description);
        assert!(hash.is_empty() || !format!("{refused:?}").contains(hash.as_str()), "{hash}");
    }
    assert_eq!(s.report().await.1.password_count, 0);
    assert_eq!(s.verify("jane", "secret-canary").await.detail, why(pb::VerdictDetail::None));
    s.running.stop().await;
}
