//! The whole network half: health, reflection, operations port, order of going down.

use pii_vault::grpc::limits::NetworkOptions;
use pii_vault::server::{Network, Ops, serve_network};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tonic::Code;
use tonic::service::Routes;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::{PLAIN, raw_call, take_turn};

const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

/// Nothing here is slow on purpose; what is left of a connection at the end is not waited for.
fn options() -> NetworkOptions {
    NetworkOptions { drain_timeout: Duration::from_millis(500), ..NetworkOptions::default() }
}

async fn get(addr: SocketAddr, path: &str) -> (u16, String) {
    let mut tcp = TcpStream::connect(addr).await.unwrap();
    tcp.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut text = String::new();
    tcp.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn readiness_is_told_by_health_and_by_the_operations_port() {
    take_turn();
    let bind = || async { TcpListener::bind("127.0.0.1:0").await.unwrap() };
    let (listener, ops) = (bind().await, bind().await);
    let (grpc, http) = (listener.local_addr().unwrap(), ops.local_addr().unwrap());
    let ready = Arc::new(AtomicBool::new(false));
    let readiness = {
        let ready = ready.clone();
        move || if ready.load(Ordering::Relaxed) { vec![] } else { vec!["store", "keeper"] }
    };
    let (stop, stopped) = watch::channel(false);
    let network = Network {
        listener,
        security: PLAIN,
        options: options(),
        routes: Routes::default().into(),
        descriptor_sets: vec![],
        reflection: false,
        ops: Some(Ops { listener: ops, allow_non_loopback: false, metrics: None }),
        readiness: Arc::new(readiness),
    };
    let task = tokio::spawn(serve_network(network, stopped));
    let channel = Endpoint::from_shared(format!("http://{grpc}")).unwrap().connect().await.unwrap();
    let mut client = HealthClient::new(channel);
    let mut status = async || {
        let request = HealthCheckRequest { service: String::new() };
        client.check(request).await.unwrap().into_inner().status()
    };
    let mut becomes = async |wanted: ServingStatus| {
        let told = async {
            while status().await != wanted {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(20), told).await.unwrap_or_else(|_| panic!("health does not tell {wanted:?}"));
    };
    becomes(ServingStatus::NotServing).await;
    assert_eq!(get(http, "/readyz").await, (503, "not ready: store, keeper\n".into()));
    assert_eq!(get(http, "/livez").await.0, 200);
    assert_eq!(get(http, "/metrics").await.0, 404);
    ready.store(true, Ordering::Relaxed);
    assert_eq!(get(http, "/readyz").await.0, 200);
    becomes(ServingStatus::Serving).await;
    // Reflection is off: the method is not even known.
    assert_eq!(raw_call(grpc, REFLECTION, &[], &[0; 5], true).await.status().code(), Code::Unimplemented);

    // Going down: a follower hears NOT_SERVING before its connection ends, and everything ends.
    let request = HealthCheckRequest { service: String::new() };
    let mut follow = client.watch(request).await.unwrap().into_inner();
    assert_eq!(follow.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    stop.send(true).unwrap();
    assert_eq!(follow.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    timeout(Duration::from_secs(20), task).await.expect("bounded").unwrap().unwrap();
    assert!(TcpStream::connect(http).await.is_err());
}

#[tokio::test]
async fn reflection_answers_when_asked_for() {
    take_turn();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (_stop, stopped) = watch::channel(false);
    let network = Network {
        listener,
        security: PLAIN,
        options: options(),
        routes: Routes::default().into(),
        descriptor_sets: vec![],
        reflection: true,
        ops: None,
        readiness: Arc::new(Vec::new),
    };
    tokio::spawn(serve_network(network, stopped));
    // ServerReflectionRequest { list_services: "" }
    let answer = raw_call(addr, REFLECTION, &[], &[0, 0, 0, 0, 2, 0x3a, 0], true).await;
    assert_eq!((answer.status().code(), answer.data > 0), (Code::Ok, true));
}
