//! Access keys and roles over the vault floor: issue, use, revoke, narrow, explain, and what refusals cost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use pii_vault::access::{Verb, View};
use pii_vault::auth::{KeyId, Kind, Principal};
use pii_vault::ids::*;
use pii_vault::vault::access_keys::{AccessKeyState, IssuedKey, NewAccessKey, Rotation};
use pii_vault::vault::authenticate::AuthRefusal;
use pii_vault::vault::find::Key;
use pii_vault::vault::read::Select;
use pii_vault::vault::request::Request;
use pii_vault::vault::roles::{ADMIN, NewGrant, NewRole};
use pii_vault::vault::test_access::TestAsk;
use pii_vault::vault::{Call, Context, DenialKind, VaultError};

use crate::harness::*;

fn name(text: &str) -> Name {
    Name::parse("name", text).unwrap()
}

fn new_key(text: &str, roles: &[RoleNo]) -> NewAccessKey {
    NewAccessKey { name: name(text), roles: roles.to_vec(), expires: None, certificate: None, subjects_per_hour: None }
}

async fn issue(t: &TestVault, call: &Call, new: NewAccessKey) -> IssuedKey {
    t.node.vault.issue_access_key(call, new, None, false).await.expect("issue").expect("not only checked")
}

fn text(issued: &IssuedKey) -> String {
    issued.text.as_ref().expect("the first answer has the text").to_string()
}

async fn who(t: &TestVault, text: &str) -> Result<Arc<Principal>, AuthRefusal> {
    t.node.vault.authenticate(text, None, t.now()).await
}

fn refused(answer: &Result<Arc<Principal>, AuthRefusal>) -> bool {
    matches!(answer, Err(AuthRefusal::Refused))
}

fn role(call: &Call, text: &str) -> RoleNo {
    call.tenant.policy().unwrap().role_by_name(&name(text)).unwrap().no
}

fn read_service(call: &Call, fields: &[&str]) -> NewGrant {
    NewGrant {
        classes: vec![],
        fields: fields.iter().map(|f| field(call, f)).collect(),
        purposes: vec![purpose(call, "service").purpose.unwrap()],
        verbs: [Verb::Read, Verb::Write].into_iter().collect(),
        max_view: View::Plain,
        groups: None,
        subjects_per_hour: 0,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_works_from_issue_to_revocation_and_after_a_restart() {
    let t = TestVault::new().await;
    let tenant = t.tenant("jina-connect", JINA).await;
    let call = t.call(tenant);
    let app = issue(&t, &call, new_key("app", &[role(&call, "app")])).await;
    let secret = text(&app);
    assert!(secret.starts_with("pv_test_"), "a TEST tenant's key says so");
    let me = who(&t, &secret).await.expect("a fresh key works");
    assert_eq!((me.tenant, me.kind, me.actor.0), (tenant, Kind::Tenant, app.key.id.0));
    assert!(t.node.vault.authenticate_known(&secret, None, t.now()).is_some(), "the second use needs no waiting");

    // The name is taken while the key works.
    let again = t.node.vault.issue_access_key(&call, new_key("app", &[role(&call, "app")]), None, false).await;
    assert!(matches!(again, Err(VaultError::AlreadyExists)));
    let dpo = issue(&t, &call, new_key("dpo", &[role(&call, "dpo")])).await;

    let t = t.restart().await;
    let call = t.call(tenant);
    assert!(t.node.vault.authenticate_known(&secret, None, t.now()).is_none());
    assert_eq!(who(&t, &secret).await.unwrap().grants, me.grants);
    let ended = t.node.vault.revoke_access_key(&call, app.key.id, None).await.unwrap();
    assert_eq!(ended.state, AccessKeyState::Revoked);
    assert!(refused(&who(&t, &secret).await));
    let again = t.node.vault.revoke_access_key(&call, app.key.id, None).await.unwrap();
    assert_eq!(again.revoked, ended.revoked, "a second time changes nothing");
    assert!(t.node.keyring.keeper().ledger_head().await.unwrap().seq >= 1);

    let t = t.restart().await;
    let call = t.call(tenant);
    assert!(refused(&who(&t, &secret).await));
    assert!(who(&t, &text(&dpo)).await.is_ok());
    let listed = t.node.vault.list_access_keys(&call, &[], pii_vault::auth::KeyId(0), 10).unwrap();
    assert_eq!(listed.rows.iter().map(|key| key.id).collect::<Vec<_>>(), [app.key.id, dpo.key.id]);
    let active = t.node.vault.list_access_keys(&call, &[AccessKeyState::Active], pii_vault::auth::KeyId(0), 10);
    assert_eq!(active.unwrap().rows.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_issue_answers_the_key_without_its_text() {
    let t = TestVault::new().await;
    let tenant = t.tenant("jina-connect", JINA).await;
    let call = t.call(tenant);
    let request = Request { id: ObjectId::random(), fingerprint: [1; 16] };
    let new = || new_key("app", &[role(&call, "app")]);
    let first = t.node.vault.issue_access_key(&call, new(), Some(request), false).await.unwrap().unwrap();
    let second = t.node.vault.issue_access_key(&call, new(), Some(request), false).await.unwrap().unwrap();
    assert_eq!(first.key.id, second.key.id);
    assert!(first.text.is_some() && second.text.is_none());
    let other = Request { fingerprint: [2; 16], ..request };
    let reused = t.node.vault.issue_access_key(&call, new(), Some(other), false).await;
    assert!(matches!(reused, Err(VaultError::RequestIdReused)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_key_works_until_its_overlap_ends() {
    let t = TestVault::new().await;
    let tenant = t.tenant("jina-connect", JINA).await;
    let call = t.call(tenant);
    let old = issue(&t, &call, new_key("app", &[role(&call, "app")])).await;
    assert!(who(&t, &text(&old)).await.is_ok());
    let how = Rotation { overlap_ms: 60_000, expires: None, certificate: None };
    let (new, former) = t.node.vault.rotate_access_key(&call, old.key.id, how, None).await.unwrap();
    assert_eq!((new.key.name.as_str(), &new.key.roles), ("app", &old.key.roles));
    assert_eq!((former.state, former.expires), (AccessKeyState::Active, Some(t.now().plus_ms(60_000))));
    assert!(who(&t, &text(&old)).await.is_ok() && who(&t, &text(&new)).await.is_ok());
    t.clock.advance_ms(60_000);
    assert!(refused(&who(&t, &text(&old)).await) && who(&t, &text(&new)).await.is_ok());

    let how = Rotation { overlap_ms: 0, expires: None, certificate: Some([7; 32]) };
    let (bound, _) = t.node.vault.rotate_access_key(&call, new.key.id, how.clone(), None).await.unwrap();
    assert!(refused(&who(&t, &text(&new)).await), "without an overlap it ends at once");
    let vault = &t.node.vault;
    for wrong in [None, Some(&[8; 32])] {
        let answer = vault.authenticate(&text(&bound), wrong, t.now()).await;
        assert!(matches!(answer, Err(AuthRefusal::Certificate)));
    }
    assert!(vault.authenticate(&text(&bound), Some(&[7; 32]), t.now()).await.is_ok());
    let ended = vault.rotate_access_key(&call, new.key.id, how, None).await;
    assert!(matches!(ended, Err(VaultError::WrongState(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gives_or_takes_more_than_they_have() {
    let t = TestVault::new().await;
    let tenant = t.tenant("jina-connect", JINA).await;
    let call = t.call(tenant);
    let vault = &t.node.vault;
    let admin = issue(&t, &call, new_key("admin", &[ADMIN])).await;
    let app = issue(&t, &call, new_key("app", &[role(&call, "app")])).await;
    let admin = vault.call(who(&t, &text(&admin)).await.unwrap(), call.tenant.clone());
    let denied = |error: VaultError| matches!(error, VaultError::Denied { kind: DenialKind::NotPermitted, .. });

    let more = vault.issue_access_key(&admin, new_key("x", &[role(&call, "app")]), None, false).await;
    assert!(denied(more.err().unwrap()));
    let how = Rotation { overlap_ms: 0, expires: None, certificate: None };
    let taken = vault.rotate_access_key(&admin, app.key.id, how, None).await;
    assert!(denied(taken.err().unwrap()), "the text of a key that may do more");
    let reads = NewRole { name: name("reads"), grants: vec![read_service(&call, &["name"])] };
    assert!(denied(vault.create_role(&admin, reads, None, false).await.err().unwrap()));
    assert!(vault.issue_access_key(&admin, new_key("second", &[ADMIN]), None, false).await.is_ok());
    // Operators set tenants up; their own keys belong to the vault and show nothing.
    let operator = vault.issue_first_key(name("alice")).await.unwrap();
    let operator = who(&t, &text(&operator)).await.unwrap();
    assert_eq!((operator.kind, operator.tenant), (Kind::Operator, TenantNo::VAULT));
    let in_tenant = vault.call(operator.clone(), call.tenant.clone());
    assert!(vault.issue_access_key(&in_tenant, new_key("x", &[role(&call, "app")]), None, false).await.is_ok());
    assert!(in_tenant.permit(Verb::Read).is_err());
    let foreign = t.call(t.tenant("other", JINA).await);
    let revoked = vault.revoke_access_key(&foreign, app.key.id, None).await;
    assert!(matches!(revoked, Err(VaultError::NotFound)), "another tenant's key is not there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_role_counts_for_the_next_call() {
    let t = TestVault::new().await;
    let tenant = t.tenant("jina-connect", JINA).await;
    let call = t.call(tenant);
    let vault = &t.node.vault;
    let made = NewRole { name: name("reader"), grants: vec![read_service(&call, &["name", "email"])] };
    let made = vault.create_role(&call, made, None, false).await.unwrap().unwrap();
    assert!(made.no.0 > 65_535);
    let key = text(&issue(&t, &call, new_key("reader", &[made.no])).await);
    let reads = async |f: &str| {
        let me = vault.call(who(&t, &key).await.unwrap(), vault.tenant(tenant).unwrap());
        let ask = TestAsk {
            key: None,
            verb: Verb::Read,
            fields: vec![field(&call, f)],
            classes: vec![],
            view: None,
            group: None,
            subject: None,
        };
        let decided = vault.test_access(&me, &purpose(&call, "service"), &ask).await.unwrap();
        assert_eq!(decided.len(), 1);
        decided[0].clone()
    };
    let yes = reads("email").await;
    assert_eq!((yes.denied, yes.view), (None, Some(View::Plain)));
    assert!(yes.rule.starts_with("role reader, grant 1: field email"), "{}", yes.rule);

    let before = t.node.keyring.keeper().ledger_head().await.unwrap().seq;
    let wider = NewRole { name: name("reader"), grants: vec![read_service(&call, &["name", "email", "phone"])] };
    let changed = vault.update_role(&call, made.no, Some(made.revision), wider, None, false).await.unwrap();
    assert_eq!(t.node.keyring.keeper().ledger_head().await.unwrap().seq, before, "wider is no ledger's matter");
    assert_eq!(reads("phone").await.denied, None);
    let narrow = || NewRole { name: name("reader"), grants: vec![read_service(&call, &["name"])] };
    let stale = vault.update_role(&call, made.no, Some(made.revision), narrow(), None, false).await;
    assert!(matches!(stale, Err(VaultError::EtagStale)));
    vault.update_role(&call, made.no, Some(changed.revision), narrow(), None, false).await.unwrap();
    assert_eq!(t.node.keyring.keeper().ledger_head().await.unwrap().seq, before + 1);
    let no = reads("email").await;
    assert_eq!((no.denied, no.rule.split(':').next()), (Some(DenialKind::NotPermitted), Some("field-not-granted")));
    assert_eq!(reads("name").await.denied, None);

    // A role of the policy file changes with the policy.
    let support = text(&issue(&t, &call, new_key("support", &[role(&call, "support")])).await);
    let masked = who(&t, &support).await.unwrap();
    assert!(masked.grants.iter().any(|g| g.verbs.has(Verb::Find)));
    let changed = JINA.replace("verbs = [\"read\", \"find\"]\n", "verbs = [\"read\"]\n");
    assert_ne!(changed, JINA);
    vault.apply_policy(&call, &changed, None, None, None, false).await.expect("apply");
    assert!(!who(&t, &support).await.unwrap().grants.iter().any(|g| g.verbs.has(Verb::Find)));
    let fixed = vault.update_role(&call, role(&call, "support"), None, narrow(), None, false).await;
    assert!(matches!(fixed, Err(VaultError::WrongState(_))), "it is changed in the file");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_reads_so_many_subjects_an_hour_and_no_more() {
    let t = TestVault::new().await;
    let tenant = t.tenant("jina-connect", JINA).await;
    let call = t.call(tenant);
    let vault = &t.node.vault;
    for i in 0..4 {
        let one = put(&call, &format!("usr_{i}"), &[("name", "A")]);
        vault.put_fields(&call, &purpose(&call, "service"), one, None, false).await.unwrap();
    }
    let new = NewAccessKey { subjects_per_hour: Some(2), ..new_key("app", &[role(&call, "app")]) };
    let key = text(&issue(&t, &call, new).await);
    let me = vault.call(who(&t, &key).await.unwrap(), call.tenant.clone());
    let service = purpose(&call, "service");
    let get = async |n: u32, service: &Context| {
        let key = Key::Subject(id(&format!("usr_{n}")));
        vault.get_fields(&me, service, &key, &Select::default()).await.map(|_| ())
    };
    assert!(get(0, &service).await.is_ok() && get(1, &service).await.is_ok() && get(0, &service).await.is_ok());
    assert!(matches!(get(2, &service).await, Err(VaultError::ReadBreadth { limit: 2 })));
    // Somebody else lets it go on, never itself; it counts from nothing then.
    let actor = KeyId(me.principal.actor.0);
    let itself = vault.release_access_key(&vault.call(me.principal.clone(), call.tenant.clone()), actor).await;
    assert!(matches!(itself, Err(VaultError::Denied { .. })), "{itself:?}");
    vault.release_access_key(&call, actor).await.expect("released");
    assert!(get(2, &service).await.is_ok() && get(3, &service).await.is_ok());
    assert!(matches!(get(0, &service).await, Err(VaultError::ReadBreadth { limit: 2 })));
    t.clock.advance_ms(3_600_000);
    assert!(get(2, &service).await.is_ok());
    // A key that such a key issues has no higher limit.
    let mut limited = (*t.call(tenant).principal).clone();
    limited.subjects_per_hour = Some(5);
    let limited = vault.call(Arc::new(limited), call.tenant.clone());
    let child = issue(&t, &limited, new_key("child", &[role(&call, "app")])).await;
    assert_eq!(child.key.subjects_per_hour, Some(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn first_uses_of_one_key_share_one_run() {
    let t = TestVault::new().await;
    let tenant = t.tenant("jina-connect", JINA).await;
    let call = t.call(tenant);
    let key = text(&issue(&t, &call, new_key("app", &[role(&call, "app")])).await);
    // Many more than the queue holds: most would be turned away if each were checked by itself.
    let all = futures_util::future::join_all((0..500).map(|_| who(&t, &key))).await;
    assert!(all.iter().all(Result::is_ok));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn t25_no_call_that_begins_after_a_revocation_was_answered_is_accepted() {
    let t = Arc::new(TestVault::new().await);
    let tenant = t.tenant("jina-connect", JINA).await;
    let call = t.call(tenant);
    for round in 0..rounds(300, 10_000) {
        let issued = issue(&t, &call, new_key("app", &[role(&call, "app")])).await;
        let (secret, answered) = (text(&issued), Arc::new(AtomicBool::new(false)));
        let accepted = Arc::new(AtomicUsize::new(0));
        let callers: Vec<_> = (0..8)
            .map(|_| {
                let (t, secret, answered, accepted) = (t.clone(), secret.clone(), answered.clone(), accepted.clone());
                tokio::spawn(async move {
                    let mut late = 0;
                    while late < 3 {
                        let began_after = answered.load(Ordering::SeqCst);
                        let answer = who(&t, &secret).await;
                        accepted.fetch_add(usize::from(answer.is_ok()), Ordering::SeqCst);
                        assert!(!(began_after && answer.is_ok()), "round {round}");
                        late += usize::from(began_after);
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        // Sometimes while the first Argon2id run is under way, sometimes among hot calls.
        while round % 2 == 0 && accepted.load(Ordering::SeqCst) < round % 50 {
            tokio::task::yield_now().await;
        }
        t.node.vault.revoke_access_key(&call, issued.key.id, None).await.unwrap();
        answered.store(true, Ordering::SeqCst);
        for caller in callers {
            caller.await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn t20_unknown_wrong_and_revoked_keys_take_the_same_time() {
    let t = TestVault::new().await;
    let tenant = t.tenant("jina-connect", JINA).await;
    let call = t.call(tenant);
    let samples = rounds(60, 3_000);
    // Texts with right checksums: of keys that were here and of another secret under a known id.
    let (mut unknown, mut revoked) = (Vec::new(), Vec::new());
    let gone = t.tenant("gone", JINA).await;
    let gone_call = t.call(gone);
    for i in 0..samples {
        let key = issue(&t, &gone_call, new_key(&format!("k{i}"), &[ADMIN])).await;
        unknown.push(text(&key));
        let key = issue(&t, &call, new_key("app", &[ADMIN])).await;
        t.node.vault.revoke_access_key(&call, key.key.id, None).await.unwrap();
        revoked.push(text(&key));
    }
    t.node.vault.forget_keys(gone);
    let mut took = [Vec::new(), Vec::new()];
    for i in 0..samples {
        for (which, texts) in [&unknown, &revoked].into_iter().enumerate() {
            let from = Instant::now();
            let answer = who(&t, &texts[i]).await;
            took[which].push(from.elapsed());
            assert!(refused(&answer));
        }
    }
    // The full count compares medians and allows one per cent. A few samples on a busy machine, of which the quicker ones
    // say more, show a missing run of Argon2id: that would be a hundred times.
    let (quantile, allowed) = if samples > 1_000 { (2, 1.01) } else { (8, 3.0) };
    let [a, b] = took.map(|mut times| {
        times.sort_unstable();
        times[times.len() / quantile].as_secs_f64()
    });
    assert!(a.max(b) / a.min(b) < allowed, "unknown {a} s, revoked {b} s");
    // What was refused once is refused without a run for a minute.
    let mut best = f64::MAX;
    for _ in 0..5 {
        let from = Instant::now();
        for text in &revoked {
            assert!(refused(&who(&t, text).await));
        }
        best = best.min(from.elapsed().as_secs_f64() / samples as f64);
    }
    assert!(best < b / 10.0, "{best} s, the first time {b} s");
}

#[tokio::test(flavor = "multi_thread")]
async fn t35_a_forged_key_costs_microseconds_and_waits_for_nobody() {
    let t = TestVault::new().await;
    let tenant = t.tenant("jina-connect", JINA).await;
    let call = t.call(tenant);
    let key = text(&issue(&t, &call, new_key("app", &[role(&call, "app")])).await);
    assert!(who(&t, &key).await.is_ok());
    let forged: Vec<String> = (0..2_000u32)
        .map(|i| {
            let digit = char::from(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[i as usize % 62]);
            let at = key.len() - 13 - (i as usize / 62) % 40;
            format!("{}{digit}{}", &key[..at], &key[at + 1..])
        })
        .filter(|text| *text != key)
        .collect();
    // The best of five parts, each of texts that were not seen before: another process may take all of one.
    let mut each = f64::MAX;
    for part in forged.chunks(400) {
        let from = Instant::now();
        for text in part {
            assert!(refused(&who(&t, text).await));
        }
        each = each.min(from.elapsed().as_secs_f64() / part.len() as f64);
    }
    // 1,000 a second are then far below 5 % of a core, even in a build without optimisation.
    assert!(each < 50e-6 * if cfg!(debug_assertions) { 6.0 } else { 1.0 }, "{each} s for a forged key");
    assert!(t.node.vault.authenticate_known(&key, None, t.now()).unwrap().is_ok());
    for bad in ["", "pv_live_1_x_y", &"x".repeat(10_000)] {
        assert!(refused(&who(&t, bad).await));
    }
}

/// What a call with a key that was used lately pays for being identified. `cargo test --release --test it hot_key -- --nocapture`
/// shows the figure.
#[tokio::test(flavor = "multi_thread")]
async fn a_hot_key_costs_about_a_microsecond() {
    let t = TestVault::new().await;
    let tenant = t.tenant("jina-connect", JINA).await;
    let call = t.call(tenant);
    let key = text(&issue(&t, &call, new_key("app", &[role(&call, "app")])).await);
    assert!(who(&t, &key).await.is_ok());
    let now = t.now();
    let mut best = f64::MAX;
    for _ in 0..20 {
        let from = Instant::now();
        for _ in 0..5_000 {
            assert!(t.node.vault.authenticate_known(&key, None, now).is_some_and(|answer| answer.is_ok()));
        }
        best = best.min(from.elapsed().as_secs_f64() / 5_000.0);
    }
    println!("{:.2} us for a hot key", best * 1e6);
    // 0.29 us on 2 cores of a shared server with SHA instructions; the bound leaves room for slower ones.
    assert!(best < if cfg!(debug_assertions) { 100e-6 } else { 5e-6 }, "{best} s");
}
