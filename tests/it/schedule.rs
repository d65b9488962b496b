//! Erasures with a date, erasures that cannot end yet, and the rules of holds, classes and time against a model.

use std::collections::BTreeMap;

use pii_vault::clock::{DAY_MS, Timestamp};
use pii_vault::ids::*;
use pii_vault::storage::SubjectState;
use pii_vault::vault::hold::{HoldTarget, NewHold};
use pii_vault::vault::operation::OperationStatus;
use pii_vault::vault::read::Select;
use pii_vault::vault::{Context, VaultError};
use proptest::prelude::*;

use crate::erase::{class, invoice, key, person};
use crate::harness::*;

const JENNY: &str = include_str!("../../examples/tenants/jenny-erp.toml");

#[tokio::test(flavor = "multi_thread")]
async fn je13_thirty_days_of_grace_with_a_way_back() {
    let t = TestVault::new().await;
    let tenant = t.tenant("jenny-erp", JENNY).await;
    let call = t.call(tenant);
    let vault = &t.node.vault;
    let rule = call.tenant.policy().unwrap();
    let account = class(&call, "account");
    let text = rule.fields().find(|f| f.class == account && !f.many && f.name.as_str().contains("name")).unwrap();
    let (field, name) = (text.no, text.name.to_string());
    let context = {
        let allowed = rule.purposes().find(|p| p.fields.has(field.0) && !p.needs_approval && !p.needs_reason);
        Context { purpose: Some(allowed.unwrap().no), ..Context::default() }
    };
    for subject in ["back", "gone", "closed", "reopened"] {
        let one = put(&call, subject, &[(&name, "Lucia")]);
        vault.put_fields(&call, &context, one, None, false).await.expect("put");
    }
    let none = Context::default();
    let back = vault.schedule_erasure(&call, &none, &key("back"), &[], None, None, false).await.expect("schedule");
    assert_eq!(back.operation.due, Some(call.now.plus_days(30)), "the policy's grace");
    vault.schedule_erasure(&call, &none, &key("gone"), &[], None, None, false).await.expect("schedule");
    vault.close_subject(&call, &Default::default(), &id("closed"), None, None).await.expect("close");
    vault.close_subject(&call, &Default::default(), &id("reopened"), None, None).await.expect("close");
    let select = Select { fields: vec![field], ..Select::default() };
    let frozen = vault.get_fields(&call, &context, &key("back"), &select).await;
    assert!(matches!(frozen, Err(VaultError::WrongState(_))), "nothing is readable meanwhile");
    assert!(vault.get_fields(&call, &context, &key("closed"), &select).await.is_ok(), "closed is readable");
    let far = Some(call.now.plus_days(367));
    let refused = vault.schedule_erasure(&call, &none, &key("closed"), &[], far, None, false).await;
    assert!(matches!(refused, Err(VaultError::Invalid(_))));

    t.clock.advance_days(29);
    let call = t.call(tenant);
    vault.run_due(&call, 10).await.unwrap();
    vault.cancel_erasure(&call, &Default::default(), back.operation.id, None).await.expect("day 29 is not too late");
    vault.reopen_subject(&call, &Default::default(), &id("reopened"), None, None).await.expect("reopen");
    t.clock.advance_days(2);
    let call = t.call(tenant);
    vault.run_due(&call, 10).await.unwrap();
    for (subject, there) in [("back", true), ("gone", false), ("closed", false), ("reopened", true)] {
        let got = vault.get_fields(&call, &context, &key(subject), &select).await;
        assert_eq!(got.is_ok(), there, "{subject}: {:?}", got.err());
    }
    assert!(matches!(
        vault.cancel_erasure(&call, &Default::default(), back.operation.id, None).await.map(|e| e.operation.status),
        Ok(OperationStatus::Cancelled)
    ));
}

/// One step of a history.
#[derive(Debug, Clone)]
enum Step {
    Put(u8),
    Invoice(u8),
    Erase(u8),
    EraseAccount(u8),
    /// Days until it ends; `None`: until released.
    Hold(u8, bool, Option<u8>),
    Release(u8),
    Days(u16),
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0u8..3;
    prop_oneof![
        3 => who.clone().prop_map(Step::Put),
        2 => who.clone().prop_map(Step::Invoice),
        2 => who.clone().prop_map(Step::Erase),
        1 => who.clone().prop_map(Step::EraseAccount),
        2 => (who.clone(), any::<bool>(), proptest::option::of(1u8..40)).prop_map(|(w, all, d)| Step::Hold(w, all, d)),
        2 => who.prop_map(Step::Release),
        1 => prop_oneof![1u16..60, Just(2_600)].prop_map(Step::Days),
    ]
}

/// What the rules say of one subject.
#[derive(Default)]
struct Model {
    /// Account class: there, and restricted by an erasure that a hold keeps.
    account: Option<bool>,
    /// Origin of the latest invoice, and restricted.
    billing: Option<(i64, bool)>,
    /// All of it was asked to be erased.
    asked: bool,
    /// Only the account was.
    asked_account: bool,
    erased: bool,
    /// (all classes or the account alone, end in ms).
    holds: Vec<(bool, Option<i64>)>,
}

impl Model {
    fn held_account(&self, now: i64) -> bool {
        self.holds.iter().any(|(_, until)| until.is_none_or(|until| until > now))
    }
    fn held_billing(&self, now: i64, law: impl Fn(i64) -> i64) -> bool {
        let placed = self.holds.iter().any(|(all, until)| *all && until.is_none_or(|until| until > now));
        placed || self.billing.is_some_and(|(origin, _)| law(origin) > now)
    }
    /// What is asked for and not held goes.
    fn settle(&mut self, now: i64, law: impl Fn(i64) -> i64) {
        if (self.asked || self.asked_account) && self.account.is_some() {
            self.account = if self.held_account(now) { Some(true) } else { None };
        }
        if self.account.is_none() {
            self.asked_account = false;
        }
        if self.asked
            && let Some((origin, _)) = self.billing
        {
            self.billing = if self.held_billing(now, law) { Some((origin, true)) } else { None };
        }
        if self.asked && self.account.is_none() && self.billing.is_none() {
            *self = Model { erased: true, ..Model::default() };
        }
    }
}

/// Plays a history and compares after each step who is there and in which state.
async fn play(steps: Vec<Step>) {
    let t = TestVault::new().await;
    let tenant = t.tenant("jina-connect", JINA).await;
    let vault = &t.node.vault;
    let mut models: BTreeMap<u8, Model> = BTreeMap::new();
    let mut placed: BTreeMap<u8, Vec<ObjectId>> = BTreeMap::new();
    let none = Context::default();
    for (n, step) in steps.iter().enumerate() {
        let call = t.call(tenant);
        let now = call.now.0;
        let policy = call.tenant.policy().unwrap().clone();
        let (account, billing) = (class(&call, "account"), class(&call, "billing"));
        let keep = policy.class(billing).unwrap().hold.as_ref().unwrap().keep;
        let law = |origin: i64| keep.after(Timestamp(origin), policy.zone()).0;
        let name = |who: &u8| format!("usr_{who}");
        match step {
            Step::Put(who) => {
                let model = models.entry(*who).or_default();
                let one = put(&call, &name(who), &[("name", "Asha")]);
                let done = vault.put_fields(&call, &purpose(&call, "service"), one, None, false).await;
                let open = !model.erased && !model.asked && model.account != Some(true);
                assert_eq!(done.is_ok(), open, "step {n} {step:?}: {:?}", done.err());
                if open {
                    model.account = Some(false);
                }
            }
            Step::Invoice(who) => {
                let Some(model) = models.get_mut(who).filter(|m| !m.erased && !m.asked) else { continue };
                if model.account.is_none() && model.billing.is_none() {
                    continue;
                }
                invoice(&t, &call, &name(who)).await;
                model.billing = Some((now, false));
            }
            Step::Erase(who) => {
                let done = vault.erase_subject(&call, &none, &key(&name(who)), &[], None, false).await;
                let Some(model) = models.get_mut(who) else {
                    assert!(matches!(done, Err(VaultError::NotFound)));
                    continue;
                };
                assert_eq!(done.is_ok(), !model.erased, "step {n} {step:?}: {:?}", done.err());
                model.asked |= !model.erased;
                model.settle(now, law);
            }
            Step::EraseAccount(who) => {
                let Some(model) = models.get_mut(who).filter(|m| !m.erased && !m.asked) else { continue };
                let done = vault.erase_subject(&call, &none, &key(&name(who)), &[account], None, false).await;
                assert_eq!(done.is_ok(), model.account.is_some(), "step {n} {step:?}: {:?}", done.err());
                model.asked_account |= model.account.is_some();
                model.settle(now, law);
            }
            Step::Hold(who, all, days) => {
                let Some(model) = models.get_mut(who).filter(|m| !m.erased) else { continue };
                let until = days.map(|days| now + i64::from(days) * DAY_MS);
                let new = NewHold {
                    classes: if *all { vec![] } else { vec![account] },
                    basis: Name::parse("basis", "dispute").unwrap(),
                    purpose: purpose(&call, "legal_request").purpose.unwrap(),
                    until: until.map(Timestamp),
                };
                let target = key(&name(who));
                let hold = vault
                    .place_hold(&call, &none, HoldTarget::Subject(&target), &new, None, false)
                    .await
                    .expect("hold");
                placed.entry(*who).or_default().push(hold.id);
                model.holds.push((*all, until));
            }
            Step::Release(who) => {
                let Some(id) = placed.get_mut(who).and_then(|ids| ids.first().copied()) else { continue };
                placed.get_mut(who).unwrap().remove(0);
                vault.release_hold(&call, &Default::default(), id, None, false).await.expect("release");
                let model = models.get_mut(who).unwrap();
                if !model.erased {
                    model.holds.remove(0);
                    model.settle(now, law);
                }
            }
            Step::Days(days) => {
                t.clock.advance_days((*days).into());
                let call = t.call(tenant);
                while vault.run_due(&call, 100).await.unwrap() > 0 {}
                for model in models.values_mut() {
                    model.settle(call.now.0, law);
                }
            }
        }
        let call = t.call(tenant);
        for (who, model) in &models {
            let found = vault.get_subject(&call, &id(&name(who))).await;
            if model.erased {
                assert!(matches!(found, Err(VaultError::SubjectErased)), "step {n} {step:?} subject {who}");
                continue;
            }
            let Ok(found) = found else {
                assert!(model.account.is_none() && model.billing.is_none(), "step {n} {step:?} subject {who} is gone");
                continue;
            };
            let state = |class| {
                let row = found.class(class).filter(|row| row.slot.is_some());
                row.map(|row| row.state == pii_vault::storage::ClassState::Restricted)
            };
            assert_eq!(state(account), model.account, "step {n} {step:?} subject {who} account");
            let restricted = model.billing.map(|(_, restricted)| restricted);
            assert_eq!(state(billing), restricted, "step {n} {step:?} subject {who} billing");
            assert_eq!(found.subject.state == SubjectState::Held, model.asked, "step {n} {step:?} subject {who}");
        }
    }
}

/// Classes, holds, erasures and time against the model.
#[test]
fn t13_classes_holds_erasures_and_time_agree_with_a_model() {
    let cases = rounds(24, 10_000);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let config = ProptestConfig {
        cases,
        rng_seed: seed(),
        failure_persistence: None,
        max_shrink_iters: 60,
        ..ProptestConfig::default()
    };
    let strategy = proptest::collection::vec(step(), 1..30);
    proptest::test_runner::TestRunner::new(config)
        .run(&strategy, |steps| {
            runtime.block_on(play(steps));
            Ok(())
        })
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_that_was_committed_before_a_crash_is_finished_after_it() {
    let t = TestVault::new().await;
    let tenant = t.tenant("jina-connect", JINA).await;
    let call = t.call(tenant);
    person(&t, &call, "usr_1").await;
    let none = Context::default();
    let done = t.node.vault.erase_subject(&call, &none, &key("usr_1"), &[], None, false).await.expect("erase");
    // Nothing is left to do, and doing it again changes nothing.
    assert_eq!(t.node.vault.go_on(&call, 10).await.unwrap(), 0);
    let t = t.restart().await;
    let call = t.call(tenant);
    assert_eq!(t.node.vault.go_on(&call, 10).await.unwrap(), 0);
    let again = t.node.vault.get_erasure(&call, done.operation.id).await.unwrap();
    assert_eq!((again.operation, again.receipt), (done.operation, done.receipt));
}
