//! Two calls beside each other: whatever their order turns out to be, what was acknowledged is true afterwards.

use std::time::Duration;

use pii_vault::audit::{Action, Chain};
use pii_vault::clock::DAY_MS;
use pii_vault::grpc::pb;
use pii_vault::grpc::pb::access_service_client::AccessServiceClient;
use pii_vault::grpc::pb::erasure_service_client::ErasureServiceClient;
use pii_vault::grpc::pb::key_service_client::KeyServiceClient;
use pii_vault::grpc::pb::tenant_service_client::TenantServiceClient;
use pii_vault::ids::*;
use pii_vault::policy::value::Value;
use pii_vault::vault::audit_read::EntryQuery;
use pii_vault::vault::hold::{HoldTarget, NewHold};
use pii_vault::vault::item::NewItem;
use pii_vault::vault::operation::OperationStatus;
use pii_vault::vault::{Call, VaultError};
use tonic::Code;

use crate::erase::{class, invoice, key, person};
use crate::harness::*;
use crate::net::*;

const POLICY: &str = include_str!("../policies/sound.toml");
/// Rounds of a race in CI, and at full counts.
const FEW: usize = 25;
const ALL: usize = 300;

/// Waits somewhere between nothing and `most` microseconds, so that each round meets in another order.
async fn somewhere(most: u64) {
    let n = u64::from_le_bytes(uuid::Uuid::new_v4().as_bytes()[..8].try_into().unwrap());
    tokio::time::sleep(Duration::from_micros(n % most)).await;
}

/// Positions of the entries of one action in the change chain, the last one last.
async fn positions(t: &TestVault, call: &Call, action: Action) -> Vec<u64> {
    let (mut found, mut after) = (Vec::new(), 0);
    loop {
        let query = EntryQuery { actions: vec![action], ..EntryQuery::default() };
        let page = t.node.vault.list_entries(call, Chain::Change, query, after, 1_000).await.expect("entries");
        found.extend(page.entries.iter().map(|(at, _)| *at));
        if !page.more {
            return found;
        }
        after = page.seen;
    }
}

async fn message(t: &TestVault, call: &Call, subject: &str) {
    let item = NewItem { value: Value::text("evidence".into()), origin: None };
    let (context, field) = (purpose(call, "service"), field(call, "message"));
    t.node.vault.append_items(call, &context, &id(subject), field, &[item], None, false).await.expect("append");
}

fn hold(call: &Call) -> NewHold {
    NewHold {
        classes: vec![class(call, "content")],
        basis: Name::parse("basis", "court").unwrap(),
        purpose: purpose(call, "legal").purpose.unwrap(),
        until: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_placed_before_a_bucket_ends_keeps_what_is_in_it() {
    let t = TestVault::new().await;
    let tenant = t.tenant("example", POLICY).await;
    // Another hold, so that there is always something to move first.
    let call = t.call(tenant);
    let service = purpose(&call, "service");
    let email = put(&call, "other", &[("email", "other@example.com")]);
    t.node.vault.put_fields(&call, &service, email, None, false).await.expect("put");
    message(&t, &call, "other").await;
    let other = key("other");
    t.node
        .vault
        .place_hold(&call, &service, HoldTarget::Subject(&other), &hold(&call), None, false)
        .await
        .expect("hold");

    for round in 0..rounds(FEW, ALL) {
        let call = t.call(tenant);
        let subject = format!("usr_{round}");
        let email = put(&call, &subject, &[("email", &format!("{subject}@example.com"))]);
        t.node.vault.put_fields(&call, &service, email, None, false).await.expect("put");
        message(&t, &call, &subject).await;
        t.clock.advance_ms(91 * DAY_MS);
        let call = t.call(tenant);
        let (vault, target, new) = (t.node.vault.clone(), key(&subject), hold(&call));
        let placing = {
            let (vault, call, context) = (vault.clone(), call.clone(), purpose(&call, "service"));
            tokio::spawn(async move {
                somewhere(40_000).await;
                vault.place_hold(&call, &context, HoldTarget::Subject(&target), &new, None, false).await
            })
        };
        let ending = tokio::spawn(async move {
            somewhere(10_000).await;
            vault.run_due_work(tenant).await
        });
        let placed = placing.await.unwrap().expect("place");
        ending.await.unwrap().expect("due work");
        t.node.vault.run_due_work(tenant).await.expect("due work");

        let placed_at = *positions(&t, &call, Action::PlaceHold).await.last().unwrap();
        let ended_at = *positions(&t, &call, Action::BucketExpired).await.last().unwrap();
        let erased =
            t.node.vault.erase_subject(&call, &service, &key(&subject), &[], None, false).await.expect("erase");
        let (context, field_no) = (purpose(&call, "legal"), field(&call, "message"));
        let page = t.node.vault.list_items(&call, &context, &key(&subject), field_no, None, None, None, None, 10).await;
        let kept = page.map(|page| page.items.len()).unwrap_or(0);
        // Where the hold was first, the bucket that ended last is one that `keep_held` moved other things out of.
        assert_eq!(kept == 1, placed_at < ended_at, "round {round}: placed at {placed_at}, ended at {ended_at}");
        assert!(kept == 0 || erased.operation.status == OperationStatus::PartlyHeld);
        t.node.vault.release_hold(&call, &service, placed.id, None, false).await.expect("release");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_appended_beside_an_erasure_is_refused_or_held() {
    let t = TestVault::new().await;
    let tenant = t.tenant("jina-connect", JINA).await;
    let call = t.call(tenant);
    let subjects: Vec<String> = (0..rounds(FEW, ALL)).map(|n| format!("usr_{n}")).collect();
    for subject in &subjects {
        person(&t, &call, subject).await;
        invoice(&t, &call, subject).await;
    }
    // What is there is not held any more; what comes now is, for seven years.
    t.clock.advance_days(7 * 366);
    let call = t.call(tenant);
    let (mut held, mut gone) = (0, 0);
    for subject in &subjects {
        let (vault, call_a, id_a) = (t.node.vault.clone(), call.clone(), id(subject));
        let appending = tokio::spawn(async move {
            somewhere(10_000).await;
            let item = NewItem { value: Value::text("INV 2".into()), origin: None };
            let (context, field) = (purpose(&call_a, "payments"), field(&call_a, "invoice"));
            vault.append_items(&call_a, &context, &id_a, field, &[item], None, false).await
        });
        let (vault, call_b, key_b) = (t.node.vault.clone(), call.clone(), key(subject));
        let erasing = tokio::spawn(async move {
            somewhere(5_000).await;
            vault.erase_subject(&call_b, &Default::default(), &key_b, &[], None, false).await
        });
        let (appended, erased) = (appending.await.unwrap(), erasing.await.unwrap().expect("erase"));
        match appended {
            Ok(done) => {
                let (context, field) = (purpose(&call, "legal_obligation"), field(&call, "invoice"));
                let item = done.items[0].item;
                let found = t.node.vault.get_item(&call, &context, &key(subject), field, item, None).await;
                assert_eq!(text(&found.expect("the law keeps it").1.value), "INV 2");
                assert_eq!(erased.operation.status, OperationStatus::PartlyHeld);
                held += 1;
            }
            Err(VaultError::SubjectErased | VaultError::WrongState(_)) => {
                assert_eq!(erased.operation.status, OperationStatus::Done);
                gone += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(held + gone, subjects.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn appended_items_count_as_seals_of_the_key() {
    let t = TestVault::new().await;
    let tenant = t.tenant("jina-connect", JINA).await;
    let call = t.call(tenant);
    person(&t, &call, "usr_1").await;
    let billing = class(&call, "billing");
    let mut before = 0;
    for n in 1..=3 {
        invoice(&t, &call, "usr_1").await;
        let found = t.node.store.subjects(tenant, vec![call.tenant.digest(&id("usr_1"))]).await.unwrap();
        let pii_vault::storage::Lookup::Found(snapshot) = &found[0] else { panic!("not there") };
        let seals = snapshot.class(billing).expect("the class").seals;
        assert!(seals > before, "after {n} items: {seals} seals, {before} before");
        before = seals;
    }
}

/// Eight times the same request beside each other, then once more: the answers, which are all the same.
async fn together<T: PartialEq + std::fmt::Debug + Send + 'static, F>(work: impl Fn() -> F) -> T
where
    F: Future<Output = Result<T, tonic::Status>> + Send + 'static,
{
    let all: Vec<_> = (0..8).map(|_| tokio::spawn(work())).collect();
    let mut answers = Vec::new();
    for one in all {
        match one.await.unwrap() {
            Ok(answer) => answers.push(answer),
            Err(status) => assert_eq!(status.code(), Code::Aborted, "{status:?}"),
        }
    }
    let last = work().await.expect("a repeat is answered");
    for answer in &answers {
        assert_eq!(*answer, last);
    }
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_sent_many_times_at_once_is_done_once_and_answered_after_a_restart() {
    let running = Running::new().await;
    let tenant = running.test.tenant("alpha", JINA).await;
    let secret = running.key(tenant, "app").await;
    let call = running.test.call(tenant);
    person(&running.test, &call, "ana").await;
    let id = || uuid::Uuid::new_v4().to_string();

    let ask = pb::RequestApprovalRequest {
        subject: "ana".into(),
        reference: "case 7".into(),
        grant: Some(pb::Grant {
            field_ids: vec![NAME],
            purpose_ids: vec![SERVICE],
            verbs: vec![pb::Verb::Read as i32],
            max_view: pb::View::Plain as i32,
            ..Default::default()
        }),
        expire_time: Some(prost_types::Timestamp { seconds: START.0 / 1_000 + 3_600, nanos: 0 }),
        request_id: id(),
        ..Default::default()
    };
    let place = pb::PlaceHoldRequest {
        target: Some(pb::place_hold_request::Target::Key(by_id("ana").unwrap())),
        legal_basis: "dispute".into(),
        purpose_id: SERVICE,
        request_id: id(),
        ..Default::default()
    };
    let rotate = pb::RotateKeysRequest { kind: pb::KeyKind::Index as i32, request_id: id(), ..Default::default() };
    let advance = pb::AdvanceClockRequest {
        advance: Some(prost_types::Duration { seconds: 86_400, nanos: 0 }),
        request_id: id(),
        ..Default::default()
    };
    let ask_it = |channel: tonic::transport::Channel| {
        let (secret, ask) = (secret.clone(), ask.clone());
        async move {
            let answer = AccessServiceClient::new(channel).request_approval(with(&secret, ask)).await?;
            Ok(answer.into_inner().approval.unwrap().approval)
        }
    };
    let place_it = |channel: tonic::transport::Channel| {
        let (secret, place) = (secret.clone(), place.clone());
        async move {
            let answer = ErasureServiceClient::new(channel).place_hold(with(&secret, place)).await?;
            Ok(answer.into_inner().hold.unwrap().hold)
        }
    };
    let rotate_it = |channel: tonic::transport::Channel| {
        let (secret, rotate) = (secret.clone(), rotate.clone());
        async move { Ok(KeyServiceClient::new(channel).rotate_keys(with(&secret, rotate)).await?.into_inner().operation) }
    };
    let advance_it = |channel: tonic::transport::Channel| {
        let (secret, advance) = (secret.clone(), advance.clone());
        async move {
            let answer = TenantServiceClient::new(channel).advance_clock(with(&secret, advance)).await?;
            Ok(answer.into_inner().tenant_time)
        }
    };
    let channel = running.channel.clone();
    let approval = together(|| ask_it(channel.clone())).await;
    let hold = together(|| place_it(channel.clone())).await;
    let rotation = together(|| rotate_it(channel.clone())).await;
    let time = together(|| advance_it(channel.clone())).await;
    let moved = time.unwrap().seconds - START.0 / 1_000;
    assert!((86_400..86_500).contains(&moved), "the clock moved by {moved} s");

    let mut access = AccessServiceClient::new(channel.clone());
    let listed = access.list_approvals(with(&secret, pb::ListApprovalsRequest::default())).await.unwrap().into_inner();
    assert_eq!(listed.approvals.len(), 1);
    let mut erasures = ErasureServiceClient::new(channel);
    let listed = erasures.list_holds(with(&secret, pb::ListHoldsRequest::default())).await.unwrap().into_inner();
    assert_eq!(listed.holds.len(), 1);

    drop((access, erasures));
    let again = Running::over(running.stop().await.restart().await).await;
    let channel = again.channel.clone();
    assert_eq!(ask_it(channel.clone()).await.expect("repeat"), approval);
    assert_eq!(place_it(channel.clone()).await.expect("repeat"), hold);
    assert_eq!(rotate_it(channel.clone()).await.expect("repeat"), rotation);
    let late = advance_it(channel).await.expect("repeat").unwrap().seconds - START.0 / 1_000;
    assert!((86_400..86_500).contains(&late), "a repeat does not move the clock: {late} s");
}
