//! The end of retention, changed retention, rotations and the clock, over the vault floor.

use std::collections::{BTreeMap, BTreeSet};

use pii_vault::clock::{DAY_MS, Timestamp};
use pii_vault::crypto::keys::TenantSecret;
use pii_vault::ids::*;
use pii_vault::keyring::{KeyRef, KeyringError, SecretKind};
use pii_vault::policy::value::Value;
use pii_vault::storage::sqlite::{Options, SqliteStore};
use pii_vault::storage::{ClassState, Store};
use pii_vault::vault::find::Key;
use pii_vault::vault::group::GroupChange;
use pii_vault::vault::hold::{HoldTarget, NewHold};
use pii_vault::vault::item::NewItem;
use pii_vault::vault::operation::OperationStatus;
use pii_vault::vault::read::{Absence, Select};
use pii_vault::vault::value::NewValue;
use pii_vault::vault::write::{Put, WriteMode};
use pii_vault::vault::{Call, VaultError};
use proptest::prelude::*;

use crate::erase::{class, key};
use crate::harness::*;

const POLICY: &str = include_str!("../policies/sound.toml");

async fn put_at(t: &TestVault, call: &Call, subject: &str, name: &str, value: &str, origin: Option<Timestamp>) {
    let values = vec![NewValue { field: field(call, name), value: Value::text(value.into()), origin }];
    let (subject, mode) = (id(subject), WriteMode::Upsert);
    let one = Put { subject, values, mode, group: None, etag: None, erase_former: false };
    t.node.vault.put_fields(call, &purpose(call, "service"), one, None, false).await.expect("put");
}

async fn append(t: &TestVault, call: &Call, subject: &str, text: &str, origin: Option<Timestamp>) -> ItemNo {
    let item = NewItem { value: Value::text(text.into()), origin };
    let (context, field) = (purpose(call, "service"), field(call, "message"));
    let done = t.node.vault.append_items(call, &context, &id(subject), field, &[item], None, false).await;
    done.expect("append").items[0].item
}

async fn messages(t: &TestVault, call: &Call, subject: &str, why: &str) -> Vec<String> {
    let (context, field) = (purpose(call, why), field(call, "message"));
    let page = t.node.vault.list_items(call, &context, &key(subject), field, None, None, None, None, 1000).await;
    let mut all: Vec<String> = page.expect("list").items.iter().map(|item| text(&item.value).to_owned()).collect();
    all.sort();
    all
}

async fn nick(t: &TestVault, call: &Call, subject: &str) -> Result<String, Absence> {
    let select = Select { fields: vec![field(call, "nick")], ..Select::default() };
    let got = t.node.vault.get_fields(call, &purpose(call, "service"), &key(subject), &select).await.expect("get");
    match &got.values[0].what {
        Ok((value, _)) => Ok(text(value).to_owned()),
        Err(absence) => Err(*absence),
    }
}

async fn find(t: &TestVault, call: &Call, name: &str, value: &str) -> Vec<SubjectUid> {
    let found = t
        .node
        .vault
        .find_subjects(call, &purpose(call, "service"), field(call, name), value, SubjectUid(0), 100)
        .await
        .expect("find");
    found.subjects.iter().map(|snapshot| snapshot.subject.uid).collect()
}

async fn due(t: &TestVault, tenant: TenantNo) {
    t.node.vault.run_due_work(tenant).await.expect("due work");
}

/// A copy of the database as it is now, opened beside it.
async fn copy(t: &TestVault, name: &str) -> SqliteStore {
    let path = t.dir.path().join(name);
    t.node.store.copy_to(path.clone(), Box::new(|_, _| true)).await.expect("copy");
    SqliteStore::open(Options::new(path, t.node.keyring.vault())).expect("open the copy")
}

/// How many expiry keys that a copy names the present tree still holds.
async fn living_buckets(t: &TestVault, tenant: TenantNo, copy: &SqliteStore) -> usize {
    let mut living = 0;
    for row in copy.expiries(tenant).await.unwrap() {
        let Some(slot) = row.slot else { continue };
        match t.node.keyring.load(tenant, &[KeyRef { slot, dek: row.dek }]).await {
            Ok(()) => living += 1,
            Err(KeyringError::OtherKey { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    living
}

#[tokio::test(flavor = "multi_thread")]
async fn jc17_messages_are_read_for_90_days_and_their_key_goes_with_the_bucket() {
    let t = TestVault::new().await;
    let tenant = t.tenant("example", POLICY).await;
    let call = t.call(tenant);
    put_at(&t, &call, "usr_1", "email", "a@example.com", None).await;
    put_at(&t, &call, "usr_1", "nick", "ace", None).await;
    let first = append(&t, &call, "usr_1", "old", None).await;
    t.clock.advance_days(10);
    append(&t, &t.call(tenant), "usr_1", "new", None).await;
    let thief = copy(&t, "copy.db").await;

    t.clock.advance_days(79);
    due(&t, tenant).await;
    let call = t.call(tenant);
    assert_eq!(messages(&t, &call, "usr_1", "service").await, ["new", "old"], "readable at 89 d");
    assert_eq!(nick(&t, &call, "usr_1").await.unwrap(), "ace");
    t.clock.advance_days(1);
    let call = t.call(tenant);
    assert_eq!(messages(&t, &call, "usr_1", "service").await, ["new"], "refused at 90 d");
    assert_eq!(nick(&t, &call, "usr_1").await, Err(Absence::Expired));
    let (context, field_no) = (purpose(&call, "service"), field(&call, "message"));
    let one = t.node.vault.get_item(&call, &context, &key("usr_1"), field_no, first, None).await;
    assert!(matches!(one, Err(VaultError::NotFound)));
    due(&t, tenant).await;
    assert_eq!(living_buckets(&t, tenant, &thief).await, 2, "the day is not over");

    t.clock.advance_ms(DAY_MS / 2);
    let before = t.node.store.counts(tenant).await.unwrap();
    due(&t, tenant).await;
    assert_eq!(living_buckets(&t, tenant, &thief).await, 1, "an old copy with the present keys opens none of that day");
    let after = t.node.store.counts(tenant).await.unwrap();
    assert_eq!((before.items, after.items), (2, 1));
    let call = t.call(tenant);
    assert_eq!(messages(&t, &call, "usr_1", "service").await, ["new"]);
    assert!(matches!(nick(&t, &call, "usr_1").await, Err(Absence::Expired | Absence::NeverSet)));
    assert_eq!(find(&t, &call, "email", "a@example.com").await.len(), 1);
    assert!(t.node.store.expiries(tenant).await.unwrap().iter().all(|row| row.slot.is_some()));
    put_at(&t, &call, "usr_1", "nick", "again", None).await;

    let t = t.restart().await;
    let call = t.call(tenant);
    assert_eq!(nick(&t, &call, "usr_1").await.unwrap(), "again");
    t.clock.advance_days(100);
    due(&t, tenant).await;
    assert_eq!(living_buckets(&t, tenant, &thief).await, 0);
    assert_eq!(t.node.store.counts(tenant).await.unwrap().items, 0);
    assert!(messages(&t, &t.call(tenant), "usr_1", "service").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_keeps_values_beyond_their_bucket_for_its_purpose_alone() {
    let t = TestVault::new().await;
    let tenant = t.tenant("example", POLICY).await;
    let call = t.call(tenant);
    for subject in ["usr_1", "usr_2"] {
        put_at(&t, &call, subject, "nick", "ace", None).await;
        append(&t, &call, subject, "evidence", None).await;
    }
    let new = NewHold {
        classes: vec![class(&call, "content")],
        basis: Name::parse("basis", "court").unwrap(),
        purpose: purpose(&call, "legal").purpose.unwrap(),
        until: None,
    };
    let service = purpose(&call, "service");
    let on = key("usr_1");
    let hold = t.node.vault.place_hold(&call, &service, HoldTarget::Subject(&on), &new, None, false).await;
    let hold = hold.expect("hold");
    let thief = copy(&t, "copy.db").await;
    for _ in 0..3 {
        t.clock.advance_days(50);
        due(&t, tenant).await;
    }
    assert_eq!(living_buckets(&t, tenant, &thief).await, 0, "the old copies of what is held are shredded too");
    let call = t.call(tenant);
    assert_eq!(t.node.store.counts(tenant).await.unwrap().items, 1);
    assert!(messages(&t, &call, "usr_1", "service").await.is_empty(), "its time is over all the same");
    assert_eq!(nick(&t, &call, "usr_1").await, Err(Absence::Expired));
    // A put beside it does not lose what is held.
    put_at(&t, &call, "usr_1", "email", "a@example.com", None).await;

    let erased = t.node.vault.erase_subject(&call, &service, &key("usr_1"), &[], None, false).await.expect("erase");
    assert_eq!(erased.operation.status, OperationStatus::PartlyHeld);
    t.clock.advance_days(40);
    due(&t, tenant).await;
    let call = t.call(tenant);
    assert_eq!(messages(&t, &call, "usr_1", "legal").await, ["evidence"], "restricted: for the hold's purpose");
    t.node.vault.release_hold(&call, &Default::default(), hold.id, None, false).await.expect("release");
    due(&t, tenant).await;
    t.clock.advance_days(32);
    due(&t, tenant).await;
    assert_eq!(t.node.store.counts(tenant).await.unwrap().items, 0);
    assert!(t.node.store.expiries(tenant).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_retention_moves_stored_values_and_ends_what_is_over() {
    let t = TestVault::new().await;
    let tenant = t.tenant("example", POLICY).await;
    let call = t.call(tenant);
    let ago = |days: i64| Some(call.now.plus_days(-days));
    put_at(&t, &call, "usr_1", "nick", "ace", ago(60)).await;
    append(&t, &call, "usr_1", "old", ago(60)).await;
    append(&t, &call, "usr_1", "young", ago(10)).await;
    let uid = t.node.vault.get_subject(&call, &id("usr_1")).await.unwrap().subject.uid;
    let version = async || {
        let snapshot = t.node.store.subject_by_uid(uid).await.unwrap().unwrap();
        snapshot.class(ClassNo(2)).unwrap().version
    };
    assert_eq!(version().await, DekVersion(1));

    let shorter = POLICY.replace("retention = \"90d\"", "retention = \"30d\"");
    let approval = t.approved(tenant, &shorter).await;
    t.node.vault.apply_policy(&call, &shorter, None, approval, None, false).await.expect("apply");
    t.clock.advance_ms(200_000);
    due(&t, tenant).await;
    let call = t.call(tenant);
    assert_eq!(messages(&t, &call, "usr_1", "service").await, ["young"]);
    assert!(matches!(nick(&t, &call, "usr_1").await, Err(Absence::NeverSet)));
    assert_eq!(version().await, DekVersion(2), "what is over was left under a key that is gone");
    let operations = t.node.vault.list_operations(&call, None, 10).await.unwrap();
    assert!(operations.rows.iter().all(|operation| operation.status == OperationStatus::Done));

    t.node.vault.apply_policy(&call, POLICY, None, None, None, false).await.expect("apply");
    t.clock.advance_ms(200_000);
    due(&t, tenant).await;
    t.clock.advance_days(70);
    due(&t, tenant).await;
    assert_eq!(messages(&t, &t.call(tenant), "usr_1", "service").await, ["young"], "80 days old, of 90");
    assert_eq!(version().await, DekVersion(2));
    t.clock.advance_days(12);
    due(&t, tenant).await;
    assert_eq!(t.node.store.counts(tenant).await.unwrap().items, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_chooses_another_retention_takes_its_stored_values_along() {
    let t = TestVault::new().await;
    let tenant = t.tenant("example", POLICY).await;
    let call = t.call(tenant);
    let plan = Some(Name::parse("plan", "enterprise").unwrap());
    let group = t.node.vault.create_group(&call, &id("acme"), plan, vec![], None).await.expect("group");
    let mut one = put(&call, "usr_1", &[("email", "a@example.com")]);
    one.group = Some(group);
    t.node.vault.put_fields(&call, &purpose(&call, "service"), one, None, false).await.expect("put");
    put_at(&t, &call, "usr_2", "email", "b@example.com", None).await;
    for subject in ["usr_1", "usr_2"] {
        append(&t, &call, subject, "hello", None).await;
    }
    let chosen =
        |text: &str| GroupChange { retention: Some(vec![(ClassNo(2), text.into())]), ..GroupChange::default() };
    t.node.vault.update_group(&call, group, None, chosen("180d"), None, false).await.expect("update");
    due(&t, tenant).await;
    t.clock.advance_days(100);
    due(&t, tenant).await;
    let call = t.call(tenant);
    assert_eq!(messages(&t, &call, "usr_1", "service").await, ["hello"]);
    assert!(messages(&t, &call, "usr_2", "service").await.is_empty());
    t.node.vault.update_group(&call, group, None, chosen("60d"), None, false).await.expect("update");
    due(&t, tenant).await;
    assert!(messages(&t, &t.call(tenant), "usr_1", "service").await.is_empty());
    assert_eq!(t.node.store.counts(tenant).await.unwrap().items, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn searches_miss_nothing_and_find_nothing_twice_while_the_index_secret_rotates() {
    let t = TestVault::new().await;
    let tenant = t.tenant("example", POLICY).await;
    let secret =
        |version| t.node.keyring.with_secret(tenant, SecretKind::Index, SecretVersion(version), TenantSecret::id);
    let old = secret(1).unwrap();
    let email = |n: usize, round: usize| format!("u{n}-{round}@example.com");
    let mut model: BTreeMap<usize, String> = BTreeMap::new();
    let call = t.call(tenant);
    for n in 0..120 {
        put_at(&t, &call, &format!("usr_{n}"), "email", &email(n, 0), None).await;
        model.insert(n, email(n, 0));
    }
    let operation = t.node.vault.rotate_index(&call, None).await.expect("begin");
    assert_eq!(t.node.vault.rotate_index(&call, None).await.expect("again").id, operation.id);
    let mut round = 0;
    loop {
        round += 1;
        assert!(round < 40, "the rotation does not end");
        let call = t.call(tenant);
        let retiring = call.tenant.settings.index_retiring;
        for n in [round, 119 - round, 200 + round] {
            put_at(&t, &call, &format!("usr_{n}"), "email", &email(n, round), None).await;
            model.insert(n, email(n, round));
        }
        for (n, text) in model.iter().filter(|(n, _)| (*n + round).is_multiple_of(7)) {
            assert_eq!(find(&t, &call, "email", text).await.len(), 1, "usr_{n} in round {round}");
        }
        assert!(find(&t, &call, "email", &email(round, 0)).await.is_empty(), "overwritten");
        let taken = put(&call, "usr_999", &[("email", &model[&(60 - round % 3)])]);
        let refused = t.node.vault.put_fields(&call, &purpose(&call, "service"), taken, None, false).await;
        assert!(matches!(refused, Err(VaultError::UniqueTaken { .. } | VaultError::Conflict)), "{refused:?}");
        if retiring.is_none() {
            break;
        }
        t.node.vault.go_on_index(&t.node.vault.job_call(call.tenant.clone()), 50).await.expect("step");
        t.clock.advance_ms(120_000);
    }
    let call = t.call(tenant);
    assert_eq!(call.tenant.settings.index, SecretVersion(2));
    for text in model.values() {
        assert_eq!(find(&t, &call, "email", text).await.len(), 1);
    }
    assert_eq!(t.node.store.count_terms(tenant, SecretVersion(1)).await.unwrap(), 0);
    assert_ne!(secret(1).unwrap(), old, "the old secret is gone");
    let ended = t.node.vault.get_operation(&call, operation.id).await.unwrap();
    assert_eq!(ended.status, OperationStatus::Done);
    let t = t.restart().await;
    assert_eq!(find(&t, &t.call(tenant), "email", &model[&60]).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_secret_rotates_by_itself_before_its_horizon() {
    let t = TestVault::new().await;
    let tenant = t.tenant("example", POLICY).await;
    let call = t.call(tenant);
    for subject in ["usr_1", "usr_2"] {
        put_at(&t, &call, subject, "email", &format!("{subject}@example.com"), None).await;
    }
    let none = purpose(&call, "service");
    let erased = t.node.vault.erase_subject(&call, &none, &key("usr_1"), &[], None, false).await.expect("erase");
    let until = erased.operation.search_expires_at.expect("an end of search");
    t.clock.advance_days(28);
    due(&t, tenant).await;
    assert_eq!(t.call(tenant).tenant.settings.index, SecretVersion(1));
    t.clock.advance_days(1);
    for _ in 0..3 {
        due(&t, tenant).await;
        t.clock.advance_ms(3_600_000);
    }
    let call = t.call(tenant);
    assert!(call.now < until);
    let settings = &call.tenant.settings;
    assert_eq!((settings.index, settings.index_retiring, settings.index_owed_since), (SecretVersion(2), None, None));
    assert_eq!(find(&t, &call, "email", "usr_2@example.com").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn roots_and_data_keys_rotate_and_everything_stays_readable() {
    let t = TestVault::new().await;
    let tenant = t.tenant("example", POLICY).await;
    let call = t.call(tenant);
    put_at(&t, &call, "usr_1", "email", "a@example.com", None).await;
    put_at(&t, &call, "usr_1", "nick", "ace", None).await;
    append(&t, &call, "usr_1", "hello", None).await;
    let snapshot = t.node.vault.get_subject(&call, &id("usr_1")).await.unwrap();
    let former = snapshot.class(ClassNo(2)).unwrap().clone();
    t.node.vault.rotate_class(&call, snapshot.subject.uid, ClassNo(2), None).await.expect("rotate");
    let now = t.node.store.subject_by_uid(snapshot.subject.uid).await.unwrap().unwrap();
    let row = now.class(ClassNo(2)).unwrap();
    assert_eq!((row.version, row.state), (DekVersion(2), ClassState::Live));
    let old = KeyRef { slot: former.slot.unwrap(), dek: former.dek };
    assert!(matches!(t.node.keyring.load(tenant, &[old]).await, Err(KeyringError::OtherKey { .. })));
    assert_eq!(nick(&t, &call, "usr_1").await.unwrap(), "ace");
    assert_eq!(messages(&t, &call, "usr_1", "service").await, ["hello"]);

    due(&t, tenant).await;
    let generation = t.node.keyring.generation(tenant).unwrap();
    t.clock.advance_days(80);
    due(&t, tenant).await;
    assert_eq!(t.node.keyring.generation(tenant).unwrap(), generation);
    put_at(&t, &t.call(tenant), "usr_1", "nick", "later", None).await;
    t.clock.advance_days(11);
    due(&t, tenant).await;
    assert!(t.node.keyring.generation(tenant).unwrap() > generation);
    assert_eq!(nick(&t, &t.call(tenant), "usr_1").await.unwrap(), "later");
}

#[tokio::test(flavor = "multi_thread")]
async fn t37_after_a_jump_of_the_clock_nothing_ends_until_it_is_confirmed() {
    let t = TestVault::new().await;
    let tenant = t.tenant("example", POLICY).await;
    let vault = &t.node.vault;
    let call = t.call(tenant);
    put_at(&t, &call, "usr_1", "nick", "ace", None).await;
    append(&t, &call, "usr_1", "hello", None).await;
    vault.watch_clock().await.unwrap();
    t.clock.advance_days(20);
    vault.watch_clock().await.unwrap();
    assert_eq!(vault.clock_jump(), None, "time that goes on is no jump");
    // A TEST tenant's own clock is nobody else's.
    vault.advance_clock(&t.call(tenant), DAY_MS, None).await.expect("advance");
    vault.watch_clock().await.unwrap();
    assert_eq!(vault.clock_jump(), None);

    for jump in [10 * 366 * DAY_MS, -10 * 366 * DAY_MS, 2 * 3_600_000, -2 * 3_600_000] {
        t.clock.jump_wall_ms(jump);
        vault.watch_clock().await.unwrap();
        assert!(vault.clock_jump().is_some(), "{jump}");
        let call = t.call(tenant);
        assert!(matches!(vault.shred_due(&vault.job_call(call.tenant.clone()), 9).await, Err(VaultError::ClockUnsafe)));
        assert!(matches!(vault.run_due_work(tenant).await, Err(VaultError::ClockUnsafe)));
        put_at(&t, &call, "usr_1", "email", "a@example.com", None).await;
        let mine = vault.call(t.operator(), vault.tenant(TenantNo::VAULT).unwrap());
        assert!(vault.confirm_clock(&call, t.now(), None).await.is_err(), "operators only");
        t.clock.jump_wall_ms(-jump);
        vault.confirm_clock(&mine, t.now(), None).await.expect("confirm");
        vault.watch_clock().await.unwrap();
        assert_eq!(vault.clock_jump(), None);
    }
    assert_eq!(messages(&t, &t.call(tenant), "usr_1", "service").await, ["hello"]);

    for (jump, wrong) in [(30 * DAY_MS, false), (32 * DAY_MS, true), (-2 * 60_000, true)] {
        let (next, was) = {
            let t = TestVault::new().await;
            t.node.vault.watch_clock().await.unwrap();
            t.clock.jump_wall_ms(jump);
            let t = t.restart().await;
            t.node.vault.watch_clock().await.unwrap();
            (t.node.vault.clock_jump().is_some(), wrong)
        };
        assert_eq!(next, was, "{jump} at start");
    }
}

/// A step of the random history.
#[derive(Debug, Clone)]
enum Step {
    Append { subject: usize, age: i64 },
    Nick { subject: usize, age: i64 },
    Hold { subject: usize },
    Release { subject: usize },
    Days(i64),
    Work,
}

fn step() -> impl Strategy<Value = Step> {
    let subject = 0usize..4;
    prop_oneof![
        4 => (subject.clone(), 0i64..80).prop_map(|(subject, age)| Step::Append { subject, age }),
        2 => (subject.clone(), 0i64..80).prop_map(|(subject, age)| Step::Nick { subject, age }),
        1 => subject.clone().prop_map(|subject| Step::Hold { subject }),
        1 => subject.prop_map(|subject| Step::Release { subject }),
        3 => (1i64..45).prop_map(Step::Days),
        2 => Just(Step::Work),
    ]
}

#[derive(Default)]
struct Model {
    /// Text and end of each message.
    messages: Vec<(String, Timestamp)>,
    nick: Option<(String, Timestamp)>,
    hold: Option<ObjectId>,
    /// Messages that a hold found: they stay until it is released.
    held: BTreeSet<String>,
}

async fn history(steps: Vec<Step>) {
    let t = TestVault::new().await;
    let tenant = t.tenant("example", POLICY).await;
    let name = |n: usize| format!("usr_{n}");
    let mut models: Vec<Model> = (0..4).map(|_| Model::default()).collect();
    for (n, _) in models.iter().enumerate() {
        put_at(&t, &t.call(tenant), &name(n), "email", &format!("{n}@example.com"), None).await;
    }
    for (at, step) in steps.into_iter().enumerate() {
        let call = t.call(tenant);
        let text = format!("m{at}");
        match step {
            Step::Append { subject, age } => {
                let origin = call.now.plus_days(-age);
                append(&t, &call, &name(subject), &text, Some(origin)).await;
                models[subject].messages.push((text.clone(), origin.plus_days(90)));
                if models[subject].hold.is_some() {
                    models[subject].held.insert(text);
                }
            }
            Step::Nick { subject, age } => {
                let origin = call.now.plus_days(-age);
                put_at(&t, &call, &name(subject), "nick", &text, Some(origin)).await;
                models[subject].nick = Some((text, origin.plus_days(90)));
            }
            Step::Hold { subject } if models[subject].hold.is_none() => {
                // What is over may be gone already: only what lives is sure to be found.
                due(&t, tenant).await;
                let (classes, basis) = (vec![ClassNo(2)], Name::parse("basis", "court").unwrap());
                let new = NewHold { classes, basis, purpose: PurposeNo(2), until: None };
                let (on, context) = (Key::Subject(id(&name(subject))), purpose(&call, "service"));
                let hold = t.node.vault.place_hold(&call, &context, HoldTarget::Subject(&on), &new, None, false).await;
                let model = &mut models[subject];
                model.hold = Some(hold.expect("hold").id);
                model.held = model.messages.iter().filter(|m| m.1 > call.now).map(|m| m.0.clone()).collect();
            }
            Step::Release { subject } => {
                if let Some(hold) = models[subject].hold.take() {
                    t.node.vault.release_hold(&call, &Default::default(), hold, None, false).await.expect("release");
                    models[subject].held.clear();
                }
            }
            Step::Days(days) => t.clock.advance_days(days),
            Step::Work => due(&t, tenant).await,
            Step::Hold { .. } => {}
        }
        let call = t.call(tenant);
        for (n, model) in models.iter().enumerate() {
            let mut expected: Vec<String> =
                model.messages.iter().filter(|(_, end)| *end > call.now).map(|(text, _)| text.clone()).collect();
            expected.sort();
            assert_eq!(messages(&t, &call, &name(n), "service").await, expected, "subject {n} after step {at}");
            match &model.nick {
                Some((text, end)) if *end > call.now => assert_eq!(nick(&t, &call, &name(n)).await.as_ref(), Ok(text)),
                _ => assert!(nick(&t, &call, &name(n)).await.is_err()),
            }
        }
    }
    t.clock.advance_days(2);
    due(&t, tenant).await;
    let call = t.call(tenant);
    let mut kept = 0;
    for (n, model) in models.iter().enumerate() {
        let there = |(text, end): &&(String, Timestamp)| *end > call.now || model.held.contains(text);
        let sure = model.messages.iter().filter(there).count() as u64;
        let uid = t.node.vault.get_subject(&call, &id(&name(n))).await.unwrap().subject.uid;
        let groups = t.node.store.item_groups(uid, None).await.unwrap();
        let stored: u64 = groups.iter().map(|group| u64::from(group.count)).sum();
        assert!(stored >= sure, "subject {n}: {stored} stored, {sure} to be kept");
        if model.hold.is_none() {
            // Within the month that holds look ahead, something may be left of one that was released.
            kept += stored - sure;
        }
    }
    t.clock.advance_days(33);
    for model in &mut models {
        if let Some(hold) = model.hold.take() {
            t.node.vault.release_hold(&t.call(tenant), &Default::default(), hold, None, false).await.expect("release");
        }
    }
    t.clock.advance_days(125);
    due(&t, tenant).await;
    let counts = t.node.store.counts(tenant).await.unwrap();
    assert_eq!((counts.items, t.node.store.expiries(tenant).await.unwrap().len()), (0, 0), "{kept} late ones before");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 12, rng_seed: seed(),
        max_shrink_iters: 40, failure_persistence: None, ..ProptestConfig::default()
    })]
    #[test]
    fn t13_random_histories_of_expiry_and_holds_follow_the_model(steps in prop::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(history(steps));
    }
}
