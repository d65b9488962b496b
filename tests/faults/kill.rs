//! T01 and T27 over the network: `kill -9` at random moments under eight writers, then everything that was answered is
//! looked for, in the values and in the audit.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pb::access_service_client::AccessServiceClient;
use pb::audit_service_client::AuditServiceClient;
use pb::erasure_service_client::ErasureServiceClient;
use pb::key_service_client::KeyServiceClient;
use pb::record_service_client::RecordServiceClient;
use pii_vault::grpc::pb;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::net::*;
use crate::server::{Key, Place};
use crate::{Dice, rounds};

const WRITERS: usize = 8;
/// A start after a kill, until a call is answered.
const LONGEST_START: Duration = Duration::from_secs(2);
const IP: u32 = 11;
/// People of one writer that are worked on at a time.
const PEOPLE: u64 = 12;

/// What a person's data is: a version that every field of every class carries, or erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Missing,
    At(u64),
    Erased,
}

/// What was answered of a person, and what was asked when the answer did not come.
#[derive(Debug, Clone)]
struct Person {
    known: State,
    asked: Option<State>,
}

/// What one writer has been answered.
#[derive(Default)]
struct Book {
    people: BTreeMap<String, Person>,
    /// Calls that were answered well, by the audit's name of their action.
    answered: BTreeMap<&'static str, u64>,
    /// Keys whose revocation was answered.
    revoked: Vec<String>,
    rotations: u64,
    generation: u64,
    dice: Option<Dice>,
}

/// The server is gone, so nobody knows what became of the call.
fn cut(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal)
}

/// Nothing was done; the same may be tried again.
fn again(status: &Status) -> bool {
    matches!(status.code(), Code::Aborted | Code::ResourceExhausted)
}

fn fields(version: u64, id: &str) -> Vec<pb::Value> {
    vec![
        text_value(NAME, &format!("Version {version}")),
        text_value(EMAIL, &format!("{id}-{version}@example.com")),
        text_value(IP, &format!("10.{}.{}.{}", version >> 16 & 255, version >> 8 & 255, version & 255)),
    ]
}

/// What a read answer says; panics where the fields do not agree with each other.
fn version_of(answer: &Result<pb::GetFieldsResponse, Status>, id: &str) -> Option<State> {
    match answer {
        Ok(got) => {
            let text = |field: u32| {
                got.values.iter().find_map(|v| match &v.kind {
                    Some(pb::value::Kind::Text(text)) if v.field_id == field => Some(text.clone()),
                    _ => None,
                })
            };
            let version = text(NAME).and_then(|t| t.strip_prefix("Version ")?.parse().ok());
            let version = version.unwrap_or_else(|| panic!("{id}: a read without its name"));
            for value in fields(version, id) {
                let Some(pb::value::Kind::Text(wanted)) = value.kind else { unreachable!() };
                assert_eq!(text(value.field_id), Some(wanted), "{id}: half of version {version}");
            }
            Some(State::At(version))
        }
        Err(status) if reason(status) == "SUBJECT_ERASED" => Some(State::Erased),
        Err(status) if status.code() == Code::NotFound => Some(State::Missing),
        Err(_) => None,
    }
}

async fn read(channel: &Channel, key: &Key, id: &str) -> Result<pb::GetFieldsResponse, Status> {
    let select = Some(pb::Selector { field_ids: vec![NAME, EMAIL, IP], ..Default::default() });
    let get = pb::GetFieldsRequest { key: by_id(id), context: for_purpose(SERVICE), select, ..Default::default() };
    RecordServiceClient::new(channel.clone()).get_fields(with(&key.text, get)).await.map(|a| a.into_inner())
}

/// Writes until the server is gone.
async fn write(book: &mut Book, writer: usize, channel: Channel, key: &Key, operator: &str, stop: &AtomicBool) {
    let mut dice = book.dice.take().unwrap_or(Dice(writer as u64));
    let mut records = RecordServiceClient::new(channel.clone());
    let mut erasures = ErasureServiceClient::new(channel.clone());
    let mut keys = KeyServiceClient::new(channel.clone());
    let mut access = AccessServiceClient::new(channel.clone());
    while !stop.load(Ordering::Relaxed) {
        // Ids go on and on, so that erased ones are left behind.
        let id = format!("w{writer}-{}", book.generation / 40 + dice.below(PEOPLE));
        book.generation += 1;
        let person = book.people.entry(id.clone()).or_insert(Person { known: State::Missing, asked: None });
        let outcome = match dice.below(100) {
            0..50 if person.known != State::Erased => {
                let version = book.generation;
                person.asked = Some(State::At(version));
                let put = pb::PutFieldsRequest {
                    subject: id.clone(),
                    values: fields(version, &id),
                    context: for_purpose(SERVICE),
                    ..Default::default()
                };
                records.put_fields(with(&key.text, put)).await.map(|_| Some("fields.put"))
            }
            50..70 if person.known != State::Missing => {
                let answer = read(&channel, key, &id).await;
                if let Some(state) = version_of(&answer, &id) {
                    assert_eq!(state, person.known, "{id} while the server ran");
                }
                // An erased or missing person is answered by an error that is no failure.
                match answer {
                    Err(status) if status.code() == Code::NotFound => Ok(None),
                    answer => answer.map(|_| Some("fields.get")),
                }
            }
            70..92 if matches!(person.known, State::At(_)) => {
                person.asked = Some(State::Erased);
                let erase = pb::EraseSubjectRequest { key: by_id(&id), wait_final: true, ..Default::default() };
                erasures.erase_subject(with(&key.text, erase)).await.map(|_| Some("erase.erased"))
            }
            92..95 if writer == 0 => {
                let (kind, tenant) = match dice.below(5) {
                    0 => (pb::KeyKind::Index, "jina"),
                    1 => (pb::KeyKind::TenantRoot, "jina"),
                    2 => (pb::KeyKind::Tree, "jina"),
                    3 => (pb::KeyKind::Data, "jina"),
                    _ => (pb::KeyKind::Signing, ""),
                };
                let rotate = pb::RotateKeysRequest { kind: kind as i32, tenant: tenant.into(), ..Default::default() };
                let done = keys.rotate_keys(with(operator, rotate)).await;
                book.rotations += u64::from(done.is_ok());
                // One that is under way already is no fault.
                match done {
                    Err(status) if status.code() == Code::FailedPrecondition => Ok(None),
                    done => done.map(|_| None),
                }
            }
            95..98 if writer == 1 => {
                let issue = pb::IssueAccessKeyRequest {
                    name: format!("short-{}", book.generation),
                    role_ids: vec![1],
                    ..Default::default()
                };
                match access.issue_access_key(with(&key.text, issue)).await {
                    Err(status) => Err(status),
                    Ok(issued) => {
                        let issued = issued.into_inner();
                        let access_key = issued.access_key.unwrap().access_key;
                        let revoke = pb::RevokeAccessKeyRequest { access_key, ..Default::default() };
                        let done = access.revoke_access_key(with(&key.text, revoke)).await;
                        done.map(|_| {
                            book.revoked.push(issued.text.clone());
                            Some("access_key.revoked")
                        })
                    }
                }
            }
            _ => continue,
        };
        match outcome {
            Ok(action) => {
                if let Some(state) = person.asked.take() {
                    person.known = state;
                }
                if let Some(action) = action {
                    *book.answered.entry(action).or_default() += 1;
                }
            }
            Err(status) if again(&status) => person.asked = None,
            Err(status) if cut(&status) => break,
            Err(status) => {
                panic!("writer {writer}, {id}, asked {:?}, known {:?}: {status:?}", person.asked, person.known)
            }
        }
    }
    book.dice = Some(dice);
}

/// Everybody is as answered, or as asked; then that is what is known.
async fn compare(channel: &Channel, key: &Key, book: &mut Book, all: bool) -> usize {
    let mut looked = 0;
    for (id, person) in &mut book.people {
        if !all && person.asked.is_none() && id.len() % 3 != 0 {
            continue;
        }
        let begun = Instant::now();
        let state = loop {
            let answer = read(channel, key, id).await;
            if let Some(state) = version_of(&answer, id) {
                break state;
            }
            // Accepted, and finished by itself after the start.
            let status = answer.unwrap_err();
            assert_eq!(person.asked, Some(State::Erased), "{id} was {:?} and answers {status:?}", person.known);
            assert!(begun.elapsed() < Duration::from_secs(60), "{id} stays at {status:?}");
            tokio::time::sleep(Duration::from_millis(25)).await;
        };
        *book.answered.entry("fields.get").or_default() += u64::from(matches!(state, State::At(_)));
        assert!(state == person.known || Some(state) == person.asked, "{id}: {person:?} was answered, found {state:?}");
        *person = Person { known: state, asked: None };
        looked += 1;
    }
    looked
}

/// Entries of the tenant by actor and action, and both chains verified.
async fn audit(channel: &Channel, key: &Key) -> BTreeMap<(u64, String), u64> {
    let mut audit = AuditServiceClient::new(channel.clone());
    let verdict = audit.verify_audit(with(&key.text, pb::VerifyAuditRequest::default())).await.unwrap().into_inner();
    assert!(verdict.valid, "{verdict:?}");
    let mut found = BTreeMap::new();
    for chain in [pb::AuditChain::Changes, pb::AuditChain::Reads] {
        let mut list = pb::ListEntriesRequest { chain: chain as i32, page_size: 1_000, ..Default::default() };
        let mut last = 0;
        loop {
            let page = audit.list_entries(with(&key.text, list.clone())).await.unwrap().into_inner();
            for entry in page.entries {
                assert!(entry.position > last, "positions ascend");
                last = entry.position;
                if entry.outcome() == pb::AuditOutcome::Ok {
                    *found.entry((entry.actor_id, entry.action)).or_default() += 1;
                }
            }
            if page.next_page_token.is_empty() {
                break;
            }
            list.page_token = page.next_page_token;
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t01_t27_a_killed_server_loses_nothing_it_answered_nor_its_entries() {
    let place = Arc::new(Place::new(tempfile::tempdir().unwrap(), 2).await);
    let keys = place.keys(WRITERS + 1).await;
    let mut books: Vec<Book> = (0..WRITERS).map(|_| Book::default()).collect();
    let mut dice = Dice(1);
    let rounds = rounds(50, 1_000);
    let (mut slowest, mut compared) = (Duration::ZERO, 0);
    for round in 0..rounds {
        let (mut server, mut took) = place.serve().await;
        if took >= LONGEST_START {
            // Beside other tests one start may get no turn; the same start again, after the same end, is judged.
            server.kill();
            let (second, again) = place.serve().await;
            (server, took) = (second, took.min(again));
        }
        slowest = slowest.max(took);
        for (book, key) in books.iter_mut().zip(&keys) {
            compared += compare(&server.channel, key, book, round + 1 == rounds).await;
        }
        if round % 10 == 9 || round + 1 == rounds {
            let entries = audit(&server.channel, &keys[WRITERS]).await;
            for (book, key) in books.iter().zip(&keys) {
                for (action, answered) in &book.answered {
                    let noted = entries.get(&(key.actor, (*action).to_owned())).copied().unwrap_or(0);
                    assert!(noted >= *answered, "round {round}: {answered} x {action} answered, {noted} in the audit");
                }
            }
        }
        for text in books.iter().flat_map(|book| book.revoked.iter().rev().take(3)) {
            let mut access = AccessServiceClient::new(server.channel.clone());
            let refused = access.who_am_i(with(text, pb::WhoAmIRequest {})).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unauthenticated, "a revoked key works after a restart");
        }
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = books
            .drain(..)
            .enumerate()
            .map(|(i, mut book)| {
                let (channel, key, operator) = (server.channel.clone(), keys[i].clone(), place.operator.clone());
                let stop = stop.clone();
                tokio::spawn(async move {
                    write(&mut book, i, channel, &key, &operator, &stop).await;
                    book
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(50 + dice.below(350))).await;
        server.kill();
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            books.push(writer.await.unwrap());
        }
        if round % 5 == 0 {
            assert_eq!(place.integrity(), "ok", "round {round}");
        }
    }
    let answered: u64 = books.iter().flat_map(|book| book.answered.values()).sum();
    let (rotations, revoked) = (books[0].rotations, books[1].revoked.len());
    let people: usize = books.iter().map(|book| book.people.len()).sum();
    println!(
        "{rounds} kills: {answered} calls answered, {people} people, {rotations} rotations, {revoked} keys revoked, \
         {compared} people compared, slowest start {slowest:?}"
    );
    assert!(answered > 20 * rounds as u64 && rotations > 0 && revoked > 0, "the writers got to work");
    // A build without optimisation on a busy machine proves nothing about time.
    assert!(cfg!(debug_assertions) || slowest < LONGEST_START, "a start took {slowest:?}");
}
