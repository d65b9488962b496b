//! `audit forward --to otlp://`: a receiver that checks each record strictly, is away, throttles, refuses, and rejects in part.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use pii_vault::cli::otlp::proto::collector::logs_service_server::{LogsService, LogsServiceServer};
use pii_vault::cli::otlp::proto::collector::{
    ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use pii_vault::cli::otlp::proto::common::{KeyValue, any_value::Value};
use pii_vault::clock::Timestamp;
use pii_vault::grpc::convert::wire_time;
use pii_vault::grpc::pb;
use predicates::str::contains;
use serde_json::Value as Json;
use tonic::{Request, Response, Status};

use crate::double::{Double, bytes};

/// Entries of each chain: more than one message holds.
const ENTRIES: u64 = 1_200;

#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Well,
    Unavailable,
    Denied,
    /// So many of a request's records are rejected.
    Rejects(i64),
    Warns,
}

#[derive(Clone)]
struct Receiver {
    mood: Arc<Mutex<Mood>>,
    /// Chain and position of each record that was taken.
    taken: Arc<Mutex<Vec<(String, u64)>>>,
    wrong: Arc<Mutex<Vec<String>>>,
}

fn attribute<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Value> {
    attributes.iter().find(|pair| pair.key == key)?.value.as_ref()?.value.as_ref()
}

fn checked(request: ExportLogsServiceRequest) -> Result<Vec<(String, u64)>, String> {
    let mut found = Vec::new();
    let [logs] = &request.resource_logs[..] else { return Err("one resource".into()) };
    let resource = &logs.resource.as_ref().ok_or("a resource")?.attributes;
    if attribute(resource, "service.name") != Some(&Value::StringValue("pii-vault".into())) {
        return Err(format!("{resource:?}"));
    }
    let [scope] = &logs.scope_logs[..] else { return Err("one scope".into()) };
    if scope.scope.as_ref().is_none_or(|scope| scope.name != "pii-vault.audit" || scope.version.is_empty()) {
        return Err("the scope".into());
    }
    for record in &scope.log_records {
        let keys: HashSet<&str> = record.attributes.iter().map(|pair| pair.key.as_str()).collect();
        let Some(Value::StringValue(body)) = record.body.as_ref().and_then(|body| body.value.as_ref()) else {
            return Err("a body of text".into());
        };
        let body: Json = serde_json::from_str(body).map_err(|_| "a body of JSON")?;
        let (chain, position) = match (
            attribute(&record.attributes, "pii_vault.chain"),
            attribute(&record.attributes, "pii_vault.position"),
        ) {
            (Some(Value::StringValue(chain)), Some(Value::IntValue(position))) => (chain, *position as u64),
            other => return Err(format!("{other:?}")),
        };
        let right = keys.len() == record.attributes.len()
            && !keys.contains("")
            && record.time_unix_nano == 1_768_478_400_000_000_000
            && record.observed_time_unix_nano > record.time_unix_nano
            && (record.severity_number, record.severity_text.as_str())
                == if position == 7 { (13, "WARN") } else { (9, "INFO") }
            && record.event_name == "fields.get"
            && body["position"].as_str().and_then(|text| text.parse().ok()) == Some(position)
            && record.trace_id.is_empty()
            && record.dropped_attributes_count == 0;
        if !right {
            return Err(format!("{record:?}"));
        }
        found.push((chain.clone(), position));
    }
    Ok(found)
}

#[tonic::async_trait]
impl LogsService for Receiver {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let found = checked(request.into_inner()).map_err(|why| {
            self.wrong.lock().unwrap().push(why.clone());
            Status::invalid_argument(why)
        })?;
        let partial = |rejected_log_records, error_message: &str| {
            let partial = ExportLogsPartialSuccess { rejected_log_records, error_message: error_message.into() };
            Ok(Response::new(ExportLogsServiceResponse { partial_success: Some(partial) }))
        };
        match *self.mood.lock().unwrap() {
            Mood::Unavailable => Err(Status::unavailable("restarting")),
            Mood::Denied => Err(Status::permission_denied("no such tenant")),
            Mood::Rejects(count) => partial(count, "too old\u{7}"),
            mood => {
                self.taken.lock().unwrap().extend(found);
                if mood == Mood::Warns {
                    partial(0, "slow down")
                } else {
                    Ok(Response::new(ExportLogsServiceResponse::default()))
                }
            }
        }
    }
}

fn vault() -> Double {
    let vault = Double::start();
    vault.on("FollowEntries", |call| {
        let request: pb::FollowEntriesRequest = call.request();
        let entry = |position| pb::AuditEntry {
            position,
            chain: request.chain,
            time: Some(wire_time(Timestamp(1_768_478_400_000))),
            actor_id: 12,
            subject_uid: 99,
            action: "fields.get".into(),
            outcome: if position == 7 { pb::AuditOutcome::Denied } else { pb::AuditOutcome::Ok } as i32,
            ..Default::default()
        };
        let all: Vec<_> = (request.start_position..=ENTRIES).map(entry).collect();
        let messages = all.chunks(500).map(|part| bytes(&pb::FollowEntriesResponse { entries: part.to_vec() }));
        (messages.collect(), None)
    });
    vault
}

#[test]
fn entries_reach_a_receiver_of_opentelemetry_and_what_it_rejects_stops_them() {
    let vault = vault();
    let receiver = Receiver { mood: Arc::new(Mutex::new(Mood::Well)), taken: Arc::default(), wrong: Arc::default() };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let to = format!("otlp://{}", listener.local_addr().unwrap());
    let service = LogsServiceServer::new(receiver.clone());
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    runtime.spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    let is = |mood| *receiver.mood.lock().unwrap() = mood;
    let forward = |cursor: &str, to: &str| {
        let mut program = vault.program();
        program.args(["audit", "forward", "--once", "--cursor", cursor, "--to", to]).assert()
    };
    let taken = || std::mem::take(&mut *receiver.taken.lock().unwrap());
    let remembered = |cursor: &str| -> Option<Json> {
        serde_json::from_str(&std::fs::read_to_string(vault.home.path().join(cursor)).ok()?).ok()
    };

    // Refused, throttled or rejected: an error, and nothing is remembered.
    for (mood, code, said) in [
        (Mood::Unavailable, 6, "Unavailable"),
        (Mood::Denied, 7, "PermissionDenied"),
        (Mood::Rejects(3), 7, "rejected 3 of 500"),
    ] {
        is(mood);
        forward("siem", &to).code(code).stderr(contains(said));
        assert!(remembered("siem").is_none() && taken().is_empty());
    }
    forward("siem", "otlp://127.0.0.1:1").code(6);
    assert!(remembered("siem").is_none());
    // What was rejected in the middle comes again, and what was taken does not.
    is(Mood::Warns);
    forward("siem", &to).success().stderr(contains("slow down"));
    let mut all = taken();
    all.sort();
    let expected = |chain: &str| (1..=ENTRIES).map(|n| (chain.to_owned(), n)).collect::<Vec<_>>();
    assert_eq!(all, [expected("changes"), expected("reads")].concat(), "each once");
    assert_eq!(remembered("siem").unwrap()["reads"], ENTRIES);
    is(Mood::Well);
    forward("siem", &to).success();
    assert!(taken().is_empty(), "nothing came meanwhile");
    assert_eq!(*receiver.wrong.lock().unwrap(), Vec::<String>::new());
}

#[test]
fn a_receiver_over_tls_is_one_that_the_named_authority_vouches_for() {
    let vault = vault();
    let receiver = Double::start();
    receiver.on("Export", |call| {
        let request: ExportLogsServiceRequest = call.request();
        checked(request).expect("as a receiver wants it");
        (vec![bytes(&ExportLogsServiceResponse::default())], None)
    });
    let to = receiver.address.replace("https:", "otlps:");
    let forward = |args: &[&str]| {
        let mut program = vault.program();
        program.args(["audit", "forward", "--once", "--cursor", "c", "--to", &to]).args(args).assert()
    };
    forward(&[]).code(2).stderr(contains("--to-ca"));
    let ca = |of: &Double| of.home.path().join("ca.pem").to_str().unwrap().to_owned();
    forward(&["--to-ca", &ca(&vault)]).code(6);
    assert!(receiver.calls("Export").is_empty(), "another authority");
    forward(&["--to-ca", &ca(&receiver)]).success();
    // 1,200 of each chain, 500 at a time.
    assert_eq!(receiver.calls("Export").len(), 6);
}
