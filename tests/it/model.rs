//! Random sequences of calls through the service, with a clock that is moved by hand and restarts in between, against a
//! simple model: after each step every way to read answers what the model says.

use std::collections::BTreeMap;

use pii_vault::clock::DAY_MS;
use pii_vault::grpc::pb;
use pii_vault::grpc::pb::audit_service_client::AuditServiceClient;
use pii_vault::grpc::pb::erasure_service_client::ErasureServiceClient;
use pii_vault::grpc::pb::record_service_client::RecordServiceClient;
use pii_vault::grpc::pb::subject_service_client::SubjectServiceClient;
use pii_vault::grpc::pb::tenant_service_client::TenantServiceClient;
use pii_vault::ids::TenantNo;
use proptest::prelude::*;

use crate::harness::{START, TestVault, rounds, seed};
use crate::net::*;

const POLICY: &str = include_str!("../policies/sound.toml");
/// Numbers of that policy.
const EMAIL: u32 = 1;
const MESSAGE: u32 = 2;
const NICK: u32 = 4;
const SERVICE: u32 = 1;
const LEGAL: u32 = 2;
/// Days that nick and messages are kept.
const KEPT: i64 = 90;
const SUBJECTS: usize = 4;
const ADDRESSES: usize = 3;

#[derive(Debug, Clone)]
enum Step {
    Put { who: usize, address: Option<usize>, nick: bool },
    Again { who: usize },
    Delete { who: usize },
    Append { who: usize, age: i64 },
    EraseNick { who: usize },
    Erase { who: usize },
    Hold { who: usize },
    Release { who: usize },
    Days(i64),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let who = || 0..SUBJECTS;
    prop_oneof![
        5 => (who(), prop::option::of(0..ADDRESSES), any::<bool>())
            .prop_map(|(who, address, nick)| Step::Put { who, address, nick }),
        1 => who().prop_map(|who| Step::Again { who }),
        1 => who().prop_map(|who| Step::Delete { who }),
        3 => (who(), 0i64..80).prop_map(|(who, age)| Step::Append { who, age }),
        1 => who().prop_map(|who| Step::EraseNick { who }),
        2 => who().prop_map(|who| Step::Erase { who }),
        1 => who().prop_map(|who| Step::Hold { who }),
        1 => who().prop_map(|who| Step::Release { who }),
        2 => (1i64..50).prop_map(Step::Days),
        1 => Just(Step::Restart),
    ]
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Life {
    #[default]
    Never,
    Live,
    /// Erased but for what a hold keeps.
    Held,
    Erased,
}

/// What is known of one subject. Ends are in milliseconds.
#[derive(Debug, Default)]
struct Person {
    life: Life,
    address: Option<usize>,
    nick: Option<(String, i64)>,
    messages: Vec<(String, i64)>,
    hold: Option<String>,
}

impl Person {
    fn gone(&mut self) {
        *self = Person { life: Life::Erased, ..Person::default() };
    }
}

fn name(who: usize) -> String {
    format!("usr_{who}")
}

fn address(n: usize) -> String {
    format!("a{n}@example.com")
}

struct World {
    running: Running,
    tenant: TenantNo,
    key: String,
    people: Vec<Person>,
    now: i64,
}

impl World {
    async fn new() -> World {
        let running = Running::new().await;
        let tenant = running.test.tenant("example", POLICY).await;
        let key = running.key(tenant, "app").await;
        let people = (0..SUBJECTS).map(|_| Person::default()).collect();
        World { running, tenant, key, people, now: START.0 }
    }

    fn records(&self) -> RecordServiceClient<tonic::transport::Channel> {
        RecordServiceClient::new(self.running.channel.clone())
    }

    fn erasures(&self) -> ErasureServiceClient<tonic::transport::Channel> {
        ErasureServiceClient::new(self.running.channel.clone())
    }

    async fn put(&mut self, at: usize, who: usize, at_address: Option<usize>, nick: bool, mode: pb::WriteMode) {
        let mut values = Vec::new();
        values.extend(at_address.map(|n| text_value(EMAIL, &address(n))));
        if nick {
            values.push(text_value(NICK, &format!("nick-{at}")));
        }
        if values.is_empty() {
            return;
        }
        let put = pb::PutFieldsRequest {
            subject: name(who),
            values,
            context: for_purpose(SERVICE),
            mode: mode as i32,
            ..Default::default()
        };
        let answer = self.records().put_fields(with(&self.key, put)).await;
        let taken = at_address.is_some_and(|n| {
            self.people.iter().enumerate().any(|(other, person)| other != who && person.address == Some(n))
        });
        let again = mode == pb::WriteMode::Recreate;
        let person = &mut self.people[who];
        let expected = match person.life {
            Life::Live | Life::Held if again => Some("ALREADY_EXISTS"),
            // What a hold keeps is nobody's to write: erased, for all but the hold's purpose.
            Life::Held | Life::Erased if !again => Some("SUBJECT_ERASED"),
            _ if taken => Some("UNIQUE_TAKEN"),
            _ => None,
        };
        match (answer, expected) {
            (Ok(_), None) => {
                person.life = Life::Live;
                person.address = at_address.or(person.address);
                if nick {
                    person.nick = Some((format!("nick-{at}"), self.now + KEPT * DAY_MS));
                }
            }
            (Err(status), Some(wanted)) => assert_eq!(reason(&status), wanted, "step {at}: {person:?}"),
            (answer, expected) => panic!("step {at}: {answer:?}, the model says {expected:?} of {person:?}"),
        }
    }

    async fn take(&mut self, at: usize, step: &Step) {
        match *step {
            Step::Put { who, address, nick } => self.put(at, who, address, nick, pb::WriteMode::Upsert).await,
            Step::Again { who } => self.put(at, who, None, true, pb::WriteMode::Recreate).await,
            Step::Delete { who } if self.people[who].life == Life::Live => {
                let delete = pb::DeleteFieldsRequest {
                    subject: name(who),
                    select: Some(pb::Selector { field_ids: vec![NICK], ..Default::default() }),
                    context: for_purpose(SERVICE),
                    ..Default::default()
                };
                self.records().delete_fields(with(&self.key, delete)).await.expect("delete");
                self.people[who].nick = None;
            }
            Step::Append { who, age } if self.people[who].life == Life::Live => {
                let origin = self.now - age * DAY_MS;
                let text = format!("m{at}");
                let time = prost_types::Timestamp { seconds: origin / 1_000, nanos: 0 };
                let append = pb::AppendItemsRequest {
                    subject: name(who),
                    field_id: MESSAGE,
                    items: vec![pb::NewItem { values: vec![text_value(0, &text)], origin_time: Some(time) }],
                    context: for_purpose(SERVICE),
                    ..Default::default()
                };
                self.records().append_items(with(&self.key, append)).await.expect("append");
                self.people[who].messages.push((text, origin + KEPT * DAY_MS));
            }
            Step::EraseNick { who } if self.people[who].life == Life::Live => {
                let erase = pb::EraseFieldsRequest {
                    key: by_id(&name(who)),
                    select: Some(pb::Selector { field_ids: vec![NICK], ..Default::default() }),
                    ..Default::default()
                };
                let answer = self.erasures().erase_fields(with(&self.key, erase)).await;
                let person = &mut self.people[who];
                let there = person.nick.as_ref().is_some_and(|(_, end)| *end > self.now);
                match answer {
                    Ok(_) => person.nick = None,
                    Err(status) if reason(&status) == "CLASS_HELD" => assert!(person.hold.is_some()),
                    Err(status) => assert!(reason(&status) == "NOT_FOUND" && !there, "step {at}: {status:?}"),
                }
            }
            Step::Erase { who } => {
                let erase = pb::EraseSubjectRequest { key: by_id(&name(who)), ..Default::default() };
                let answer = self.erasures().erase_subject(with(&self.key, erase)).await;
                let person = &mut self.people[who];
                match (person.life, answer) {
                    (Life::Live | Life::Held, Ok(_)) if person.hold.is_some() => person.life = Life::Held,
                    (Life::Live, Ok(answer)) => {
                        let erasure = answer.into_inner().erasure.unwrap();
                        assert_eq!(erasure.status(), pb::ErasureStatus::Erased, "step {at}");
                        assert!(!erasure.receipt.is_empty());
                        person.gone();
                    }
                    (Life::Never, Err(status)) => assert_eq!(reason(&status), "NOT_FOUND"),
                    (Life::Erased, Err(status)) => assert_eq!(reason(&status), "SUBJECT_ERASED"),
                    (life, answer) => panic!("step {at}: {answer:?} of one who is {life:?}"),
                }
            }
            Step::Hold { who } if self.people[who].life == Life::Live && self.people[who].hold.is_none() => {
                let place = pb::PlaceHoldRequest {
                    target: Some(pb::place_hold_request::Target::Key(by_id(&name(who)).unwrap())),
                    legal_basis: "dispute".into(),
                    purpose_id: LEGAL,
                    ..Default::default()
                };
                let hold = self.erasures().place_hold(with(&self.key, place)).await.expect("hold");
                self.people[who].hold = Some(hold.into_inner().hold.unwrap().hold);
            }
            Step::Release { who } => {
                let Some(hold) = self.people[who].hold.take() else { return };
                let release = pb::ReleaseHoldRequest { hold, ..Default::default() };
                let answer = self.erasures().release_hold(with(&self.key, release)).await.expect("release");
                if self.people[who].life == Life::Held {
                    assert_eq!(answer.into_inner().erasures.len(), 1, "step {at}: it erases by itself");
                    self.people[who].gone();
                }
            }
            Step::Days(days) => {
                let advance = prost_types::Duration { seconds: days * DAY_MS / 1_000, nanos: 0 };
                let ask = pb::AdvanceClockRequest { advance: Some(advance), ..Default::default() };
                let mut tenants = TenantServiceClient::new(self.running.channel.clone());
                tenants.advance_clock(with(&self.key, ask)).await.expect("advance");
                self.now += days * DAY_MS;
            }
            Step::Delete { .. } | Step::Append { .. } | Step::EraseNick { .. } | Step::Hold { .. } => {}
            Step::Restart => {}
        }
    }

    /// Every way to read against the model.
    async fn look(&self, at: usize, step: &Step) {
        let mut records = self.records();
        let ask = |who: usize| pb::GetFieldsRequest {
            key: by_id(&name(who)),
            select: Some(pb::Selector { field_ids: vec![EMAIL, NICK], ..Default::default() }),
            context: for_purpose(SERVICE),
            ..Default::default()
        };
        let text = |value: &pb::Value| match &value.kind {
            Some(pb::value::Kind::Text(text)) => Some(text.clone()),
            _ => None,
        };
        let mut singles = Vec::new();
        for (who, person) in self.people.iter().enumerate() {
            let nick = person.nick.as_ref().filter(|(_, end)| *end > self.now).map(|(nick, _)| nick.clone());
            let mut messages: Vec<_> =
                person.messages.iter().filter(|(_, end)| *end > self.now).map(|(text, _)| text.clone()).collect();
            messages.sort();
            let got = records.get_fields(with(&self.key, ask(who))).await;
            let list = pb::ListItemsRequest {
                key: by_id(&name(who)),
                field_id: MESSAGE,
                context: for_purpose(SERVICE),
                page_size: 1_000,
                ..Default::default()
            };
            let listed = records.list_items(with(&self.key, list)).await;
            let listed = listed.map(|list| {
                let mut all: Vec<_> = list.into_inner().items.iter().filter_map(|item| text(&item.values[0])).collect();
                all.sort();
                all
            });
            match person.life {
                Life::Live => {
                    let got = got.unwrap_or_else(|status| panic!("step {at} {step:?}: {status:?} of {person:?}"));
                    let got: Vec<_> = got.into_inner().values.iter().map(text).collect();
                    assert_eq!(got, [person.address.map(address), nick], "step {at} {step:?}: {}", name(who));
                    assert_eq!(listed.expect("list"), messages, "step {at} {step:?}: {}", name(who));
                    singles.push(Some(got));
                }
                Life::Held => {
                    let shown = got.map(|got| got.into_inner().values.iter().filter_map(text).count()).unwrap_or(0);
                    assert_eq!(shown, 0, "step {at} {step:?}: {} is for the hold's purpose alone", name(who));
                    assert!(listed.map_or(true, |list| list.is_empty()));
                    singles.push(None);
                }
                life => {
                    let wanted = if life == Life::Erased { "SUBJECT_ERASED" } else { "NOT_FOUND" };
                    assert_eq!(reason(&got.unwrap_err()), wanted, "step {at} {step:?}: {}", name(who));
                    assert_eq!(reason(&listed.unwrap_err()), wanted, "step {at} {step:?}: {}", name(who));
                    singles.push(None);
                }
            }
        }
        let batch = pb::BatchGetFieldsRequest {
            keys: (0..SUBJECTS).map(|who| by_id(&name(who)).unwrap()).collect(),
            select: ask(0).select,
            context: for_purpose(SERVICE),
            ..Default::default()
        };
        let batch = records.batch_get_fields(with(&self.key, batch)).await.expect("batch").into_inner().outcomes;
        for (who, (outcome, single)) in batch.into_iter().zip(singles).enumerate() {
            let got = match outcome.outcome {
                Some(pb::get_outcome::Outcome::Result(got)) => Some(got.values.iter().map(text).collect::<Vec<_>>()),
                _ => None,
            };
            let got = got.filter(|values| values.iter().any(Option::is_some) || single.is_some());
            assert_eq!(got, single, "step {at} {step:?}: {} in a batch", name(who));
        }
        let mut subjects = SubjectServiceClient::new(self.running.channel.clone());
        for n in 0..ADDRESSES {
            let find = pb::FindSubjectsRequest {
                term: Some(pb::Term { field_id: EMAIL, text: address(n), ..Default::default() }),
                context: for_purpose(SERVICE),
                ..Default::default()
            };
            let found = subjects.find_subjects(with(&self.key, find)).await.expect("find").into_inner().subjects;
            let mut found: BTreeMap<String, ()> = found.into_iter().map(|one| (one.subject, ())).collect();
            for (who, person) in self.people.iter().enumerate() {
                let there = found.remove(&name(who)).is_some();
                if person.life != Life::Held {
                    assert_eq!(there, person.address == Some(n), "step {at} {step:?}: {} by address {n}", name(who));
                }
            }
            assert!(found.is_empty(), "step {at} {step:?}: somebody else was found");
        }
    }
}

async fn play(steps: Vec<Step>) {
    let mut world = World::new().await;
    for (at, step) in steps.iter().enumerate() {
        if matches!(step, Step::Restart) {
            let World { running, tenant, key, people, now } = world;
            let test: TestVault = running.stop().await.restart().await;
            world = World { running: Running::over(test).await, tenant, key, people, now };
        }
        world.take(at, step).await;
        world.look(at, step).await;
    }
    let mut audit = AuditServiceClient::new(world.running.channel.clone());
    let verified = audit.verify_audit(with(&world.key, pb::VerifyAuditRequest::default())).await.expect("verify");
    assert!(verified.into_inner().valid, "both chains of tenant {} are whole", world.tenant);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: rounds(8, 2_000),
        rng_seed: seed(),
        max_shrink_iters: 60, failure_persistence: None, ..ProptestConfig::default()
    })]
    #[test]
    fn random_calls_agree_with_a_simple_model(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(play(steps));
    }
}
