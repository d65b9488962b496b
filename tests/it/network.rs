//! The shipped listener against clients that do not play fair, over loopback: T30 to T34 and T36 of the security rules,
//! and the deadlines. The hostile side writes raw HTTP/2 frames; the honest side is an ordinary gRPC client.

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use pii_vault::grpc::call::{CallInfo, MethodTable};
use pii_vault::grpc::limits::NetworkOptions;
use pii_vault::grpc::listen::{ListenError, Security, serve};
use pii_vault::grpc::status::reason_of;
use pii_vault::grpc::tls::{TlsError, TlsOptions, TlsState};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tonic::Code;
use tonic::service::Routes;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

const CHECK: &str = "/grpc.health.v1.Health/Check";
const WATCH: &str = "/grpc.health.v1.Health/Watch";
const PLAIN: Security = Security::Plaintext { allow_non_loopback: false };

// ---- the server

struct Server {
    addr: SocketAddr,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<Result<(), ListenError>>,
}

/// Memory and latency are the process's: the tests of this file take turns, one holds this until its thread ends.
static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

thread_local! {
    static MY_TURN: std::cell::RefCell<Option<std::sync::MutexGuard<'static, ()>>> = const { std::cell::RefCell::new(None) };
}

/// Waits until no other test of this file runs. A test that failed while it held the turn has given it back.
fn take_turn() {
    MY_TURN.with_borrow_mut(|mine| {
        mine.get_or_insert_with(|| TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    });
}

impl Server {
    async fn start(security: Security, options: NetworkOptions) -> Server {
        take_turn();
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
        Server::with(security, options, Routes::new(health).prepare()).await
    }

    async fn with<S>(security: Security, options: NetworkOptions, service: S) -> Server
    where
        S: tower::Service<Request<tonic::body::Body>, Response = Response<tonic::body::Body>, Error = Infallible>,
        S: Clone + Send + Sync + 'static,
        S::Future: Send,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        let methods = MethodTable::from_descriptor_sets(&[tonic_health::pb::FILE_DESCRIPTOR_SET]).unwrap();
        let task = tokio::spawn(serve(listener, security, options, methods, service, stopped));
        Server { addr, stop, task }
    }

    async fn honest(&self) -> HealthClient<Channel> {
        HealthClient::new(Endpoint::from_shared(format!("http://{}", self.addr)).unwrap().connect().await.unwrap())
    }
}

async fn check(client: &mut HealthClient<Channel>) -> Result<(), tonic::Status> {
    client.check(HealthCheckRequest { service: String::new() }).await.map(|_| ())
}

/// Short limits, so that each test ends soon.
fn short() -> NetworkOptions {
    let ms = Duration::from_millis;
    NetworkOptions {
        handshake_timeout: ms(300),
        preface_timeout: ms(300),
        header_timeout: ms(300),
        body_idle_timeout: ms(300),
        stream_idle_timeout: ms(600),
        response_stall_timeout: ms(400),
        drain_timeout: ms(500),
        ..NetworkOptions::default()
    }
}

// ---- the raw client

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// HPACK without Huffman or dynamic table (RFC 7541, 6.2.2), of a gRPC request for `path`.
fn request_headers(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let mut block = vec![0x83, 0x86, 0x04, path.len() as u8]; // POST, http, :path
    block.extend(path.bytes());
    let fixed = [("content-type", "application/grpc"), ("te", "trailers")];
    for (name, value) in fixed.iter().chain(more) {
        block.extend([0, name.len() as u8]);
        block.extend(name.bytes());
        if value.len() < 127 {
            block.push(value.len() as u8);
        } else {
            // An integer with a 7-bit prefix (RFC 7541, 5.1).
            block.push(127);
            let mut rest = value.len() - 127;
            while rest >= 128 {
                block.push((rest % 128 + 128) as u8);
                rest /= 128;
            }
            block.push(rest as u8);
        }
        block.extend(value.bytes());
    }
    block
}

/// What the server said until it closed or the time was over.
#[derive(Default, Debug)]
struct Heard {
    goaway: Option<u32>,
    resets: Vec<(u32, u32)>,
    headers: usize,
    closed: bool,
}

/// Our own send buffer is small: what counts as sent was taken by the server's side, not kept by this one's.
async fn greet(addr: SocketAddr) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(32 << 10).unwrap();
    let mut tcp = socket.connect(addr).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    tcp.write_all(PREFACE).await.unwrap();
    tcp.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    tcp
}

async fn hear(mut tcp: impl AsyncReadExt + Unpin, at_most: Duration) -> Heard {
    let mut heard = Heard::default();
    let listening = async {
        loop {
            let mut head = [0; 9];
            if tcp.read_exact(&mut head).await.is_err() {
                return;
            }
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            if tcp.read_exact(&mut payload).await.is_err() {
                return;
            }
            let word = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
            match head[3] {
                HEADERS => heard.headers += 1,
                RST_STREAM => heard.resets.push((u32::from_be_bytes(head[5..].try_into().unwrap()), word(0))),
                GOAWAY => heard.goaway = Some(word(4)),
                _ => {}
            }
        }
    };
    let closed = timeout(at_most, listening).await.is_ok();
    Heard { closed, ..heard }
}

/// Writes until the server takes no more; the other half of the connection is read meanwhile. Says how many `next`
/// were sent.
async fn flood(addr: SocketAddr, opening: Vec<u8>, mut next: impl FnMut(u32) -> Vec<u8>) -> (Heard, usize) {
    let mut tcp = greet(addr).await;
    let _ = tcp.write_all(&opening).await;
    let (read, mut write) = tcp.into_split();
    let listening = tokio::spawn(hear(read, Duration::from_secs(4)));
    let mut sent = 0;
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end && !listening.is_finished() {
        let mut bytes = Vec::new();
        for _ in 0..50 {
            bytes.extend(next(sent as u32));
            sent += 1;
        }
        // A server that reads no more must not keep us here.
        match timeout(Duration::from_millis(500), write.write_all(&bytes)).await {
            Ok(Ok(())) => {}
            _ => break,
        }
    }
    (listening.await.unwrap(), sent)
}

// ---- the honest client's view

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The slowest hundredth of honest calls over `window`.
async fn p99(client: &mut HealthClient<Channel>, window: Duration) -> Duration {
    let (mut took, end) = (Vec::new(), Instant::now() + window);
    while Instant::now() < end {
        let start = Instant::now();
        check(client).await.unwrap();
        took.push(start.elapsed());
    }
    took.sort();
    took[took.len() * 99 / 100]
}

/// Repeats `attack` beside an honest client: memory stays bounded and the honest p99 within three times idle. The floor
/// of 20 ms is for a busy machine, where one scheduler slice is more than three idle calls.
async fn beside_an_honest_client<F, R>(server: &Server, attack: impl Fn(SocketAddr) -> F + Send + 'static)
where
    F: Future<Output = R> + Send,
{
    let mut client = server.honest().await;
    let idle = p99(&mut client, Duration::from_millis(300)).await;
    let before = resident_kib();
    let addr = server.addr;
    let attacks = tokio::spawn(async move {
        loop {
            attack(addr).await;
        }
    });
    let attacked = p99(&mut client, Duration::from_millis(800)).await;
    attacks.abort();
    let grown = resident_kib().saturating_sub(before);
    let limit = (idle * 3).max(Duration::from_millis(20));
    assert!(attacked <= limit, "honest p99 {attacked:?} under attack, {idle:?} idle");
    assert!(grown < 64 << 10, "memory grew by {grown} KiB");
}

// ---- T30 to T33

async fn rapid_reset(addr: SocketAddr) -> (Heard, usize) {
    let block = request_headers(CHECK, &[]);
    flood(addr, vec![], move |n| {
        let stream = n * 2 + 1;
        let mut bytes = frame(HEADERS, END_HEADERS, stream, &block);
        bytes.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
        bytes
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t30_rapid_reset_ends_in_goaway() {
    let server = Server::start(PLAIN, NetworkOptions::default()).await;
    let (heard, sent) = rapid_reset(server.addr).await;
    assert!(heard.goaway.is_some() && heard.closed, "{heard:?}");
    assert!(sent < 100_000, "{sent} resets were taken");
    beside_an_honest_client(&server, rapid_reset).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t30_resets_of_accepted_streams_are_counted_too() {
    // Each stream is accepted and spawned before its reset arrives, so the engine's own limit, on resets of streams
    // that nobody accepted yet, does not see them.
    let server = Server::start(PLAIN, NetworkOptions::default()).await;
    let (read, mut write) = greet(server.addr).await.into_split();
    let listening = tokio::spawn(hear(read, Duration::from_secs(4)));
    let block = request_headers(CHECK, &[]);
    let mut sent = 0u32;
    while !listening.is_finished() {
        let stream = sent * 2 + 1;
        if write.write_all(&frame(HEADERS, END_HEADERS, stream, &block)).await.is_err() {
            break;
        }
        sleep(Duration::from_millis(1)).await;
        if write.write_all(&frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())).await.is_err() {
            break;
        }
        sent += 1;
    }
    let heard = listening.await.unwrap();
    assert!(heard.goaway.is_some() && heard.closed, "{heard:?} after {sent}");
}

async fn made_you_reset(addr: SocketAddr) -> (Heard, usize) {
    let block = request_headers(CHECK, &[]);
    flood(addr, vec![], move |n| {
        // A window update of zero is an error of the stream: the server must reset it.
        let stream = n * 2 + 1;
        let mut bytes = frame(HEADERS, END_HEADERS, stream, &block);
        bytes.extend(frame(WINDOW_UPDATE, 0, stream, &0u32.to_be_bytes()));
        bytes
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t31_making_the_server_reset_ends_in_goaway() {
    let server = Server::start(PLAIN, NetworkOptions::default()).await;
    let (heard, _) = made_you_reset(server.addr).await;
    assert!(heard.goaway.is_some() && heard.closed, "{heard:?}");
    assert!(heard.resets.len() <= 100, "{} resets were sent", heard.resets.len());
    beside_an_honest_client(&server, made_you_reset).await;
}

async fn continuation_flood(addr: SocketAddr, payload: usize) -> (Heard, usize) {
    // A header block that has no end: fields with the name "x" and an empty value.
    let opening = frame(HEADERS, 0, 1, &request_headers(CHECK, &[]));
    let fill = [0, 1, b'x', 0].repeat(payload / 4);
    flood(addr, opening, move |_| frame(CONTINUATION, 0, 1, &fill)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t32_continuation_flood_is_cut() {
    let server = Server::start(PLAIN, short()).await;
    for payload in [4, 4_096, 0] {
        let (heard, sent) = continuation_flood(server.addr, payload).await;
        assert!(heard.closed && heard.headers == 0, "payload {payload}: {heard:?}");
        assert!(sent < 50_000, "payload {payload}: {sent} frames were taken");
    }
    beside_an_honest_client(&server, |addr| continuation_flood(addr, 4)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t32_frames_that_carry_nothing_are_counted() {
    let server = Server::start(PLAIN, NetworkOptions::default()).await;
    let (heard, sent) = flood(server.addr, vec![], |_| frame(PING, 0, 0, &[0; 8])).await;
    assert!(heard.goaway.is_some() && heard.closed, "{sent} pings were sent: {heard:?}");
    let opening = frame(HEADERS, END_HEADERS, 1, &request_headers(CHECK, &[]));
    let (heard, sent) = flood(server.addr, opening, |_| frame(DATA, 0, 1, &[])).await;
    assert!(heard.goaway.is_some() && heard.closed, "{sent} empty frames were sent: {heard:?}");
}

#[tokio::test]
async fn t33_oversize_headers_and_frames_are_refused() {
    let server = Server::start(PLAIN, NetworkOptions::default()).await;

    // A header list over 16 KiB, in frames that are allowed.
    let mut tcp = greet(server.addr).await;
    let block = request_headers(CHECK, &[("x-big", &"a".repeat(20_000))]);
    tcp.write_all(&frame(HEADERS, 0, 1, &block[..16_000])).await.unwrap();
    tcp.write_all(&frame(CONTINUATION, END_HEADERS | END_STREAM, 1, &block[16_000..])).await.unwrap();
    let heard = hear(tcp, Duration::from_secs(1)).await;
    assert!(heard.goaway.is_some_and(|code| code != 0) || heard.headers == 1 || !heard.resets.is_empty(), "{heard:?}");

    // A frame over 16 KiB is FRAME_SIZE_ERROR.
    let mut tcp = greet(server.addr).await;
    tcp.write_all(&frame(HEADERS, END_HEADERS, 1, &request_headers(CHECK, &[]))).await.unwrap();
    let _ = tcp.write_all(&frame(DATA, 0, 1, &vec![0; 20_000])).await;
    let heard = hear(tcp, Duration::from_secs(1)).await;
    assert_eq!(heard.goaway, Some(6), "{heard:?}");
}

#[tokio::test]
async fn t33_oversize_and_undecodable_messages_are_refused_with_a_reason() {
    let server = Server::start(PLAIN, NetworkOptions::default()).await;
    for length in [(4 << 20) + 1, u32::MAX] {
        let body = [&[0][..], &length.to_be_bytes()].concat();
        let status = raw_call(server.addr, CHECK, &[], &body, true).await.status();
        assert_eq!((status.code(), reason_of(&status).as_deref()), (Code::OutOfRange, Some("MESSAGE_TOO_LARGE")));
    }
    // What is not the message's protobuf is the caller's fault, not ours.
    let status = raw_call(server.addr, CHECK, &[], &[0, 0, 0, 0, 2, 0xff, 0xff], true).await.status();
    assert_eq!((status.code(), reason_of(&status).as_deref()), (Code::InvalidArgument, Some("FIELD_INVALID")));
}

#[tokio::test]
async fn t33_streams_beyond_the_limit_are_refused_one_by_one() {
    let server = Server::with(PLAIN, NetworkOptions::default(), slow(10_000)).await;
    let mut tcp = greet(server.addr).await;
    let block = request_headers(CHECK, &[]);
    for n in 0..210 {
        tcp.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, n * 2 + 1, &block)).await.unwrap();
    }
    let heard = hear(tcp, Duration::from_millis(600)).await;
    let refused = heard.resets.iter().filter(|(_, code)| *code == 7).count(); // REFUSED_STREAM
    assert_eq!((refused, heard.closed), (10, false), "{heard:?}");
}

// ---- T34

#[tokio::test]
async fn t34_slow_handshake_preface_header_and_frame_are_cut() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::new();
    ca.issue(dir.path(), "server", &["localhost"], true);
    let tls_server = Server::start(Security::Tls(tls_state(dir.path(), false)), short()).await;
    let tls = tls_server.addr;
    let plain_server = Server::start(PLAIN, short()).await;
    let plain = plain_server.addr;
    let greeting = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    let block = request_headers(CHECK, &[]);
    let open_block = [&greeting[..], &frame(HEADERS, 0, 1, &block)].concat();
    let open_data =
        [&greeting[..], &frame(HEADERS, END_HEADERS, 1, &block), &frame(DATA, 0, 1, &[0; 100])[..50]].concat();
    // (what, server, sent at once, then a byte at a time)
    let cases: [(&str, SocketAddr, &[u8], &[u8]); 7] = [
        ("a handshake that never begins", tls, &[], &[]),
        ("a handshake in drops", tls, &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3], &[7; 100]),
        ("a preface in drops", plain, &[], PREFACE),
        ("a preface without SETTINGS", plain, PREFACE, &[]),
        ("a header block in drops", plain, &greeting, &frame(HEADERS, END_HEADERS, 1, &block)),
        ("a header block without an end", plain, &open_block, &[]),
        ("a DATA frame that stops", plain, &open_data, &[]),
    ];
    for (what, addr, at_once, drops) in cases {
        let start = Instant::now();
        let mut tcp = TcpStream::connect(addr).await.unwrap();
        tcp.write_all(at_once).await.unwrap();
        let (read, mut write) = tcp.into_split();
        let listening = tokio::spawn(hear(read, Duration::from_secs(2)));
        for byte in drops {
            if listening.is_finished() || write.write_all(&[*byte]).await.is_err() {
                break;
            }
            sleep(Duration::from_millis(40)).await;
        }
        let heard = listening.await.unwrap();
        let took = start.elapsed();
        assert!(heard.closed && took < Duration::from_millis(1_500), "{what}: {heard:?} after {took:?}");
        assert!(took > Duration::from_millis(250), "{what}: cut for something else after {took:?}");
    }
}

#[tokio::test]
async fn t34_a_stalled_upload_fails_alone() {
    let server = Server::start(PLAIN, short()).await;
    let start = Instant::now();
    // The prefix of a message of 100 bytes, one of them, and then nothing.
    let status = raw_call(server.addr, CHECK, &[], &[0, 0, 0, 0, 100, 1], false).await.status();
    assert_eq!((status.code(), reason_of(&status).as_deref()), (Code::DeadlineExceeded, Some("DEADLINE_EXCEEDED")));
    assert!(start.elapsed() < Duration::from_millis(1_500));
}

#[tokio::test]
async fn t34_an_unread_answer_is_dropped() {
    let server = Server::start(PLAIN, short()).await;
    let mut tcp = TcpStream::connect(server.addr).await.unwrap();
    tcp.write_all(PREFACE).await.unwrap();
    // SETTINGS_INITIAL_WINDOW_SIZE = 0: no byte of an answer may be sent.
    tcp.write_all(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await.unwrap();
    tcp.write_all(&frame(HEADERS, END_HEADERS, 1, &request_headers(CHECK, &[]))).await.unwrap();
    tcp.write_all(&frame(DATA, END_STREAM, 1, &[0; 5])).await.unwrap();
    let heard = hear(tcp, Duration::from_secs(2)).await;
    assert_eq!((heard.headers, heard.resets.len(), heard.closed), (1, 1, false), "{heard:?}");
}

#[tokio::test]
async fn t34_connections_are_capped_per_peer_and_the_rest_is_served() {
    let options = NetworkOptions { max_connections_per_peer: 3, ..NetworkOptions::default() };
    let server = Server::start(PLAIN, options).await;
    let mut client = server.honest().await;
    check(&mut client).await.unwrap();
    let held = [greet(server.addr).await, greet(server.addr).await];
    sleep(Duration::from_millis(50)).await;
    let more = TcpStream::connect(server.addr).await.unwrap();
    assert!(hear(more, Duration::from_secs(1)).await.closed);
    check(&mut client).await.unwrap();
    drop(held);
    sleep(Duration::from_millis(50)).await;
    assert!(!hear(greet(server.addr).await, Duration::from_millis(200)).await.closed, "a place is given back");
}

#[tokio::test]
async fn t34_idle_and_old_connections_get_a_goaway() {
    let ms = Duration::from_millis;
    for options in [
        NetworkOptions { connection_idle_timeout: ms(200), ..short() },
        NetworkOptions { max_connection_age: ms(200), ..short() },
    ] {
        let server = Server::start(PLAIN, options).await;
        let heard = hear(greet(server.addr).await, Duration::from_secs(3)).await;
        assert!(heard.goaway == Some(0) && heard.closed, "{heard:?}");
    }
}

// ---- deadlines, request ids, room

/// Answers every call with OK after `ms`, if the transport gave it its facts.
fn slow(
    ms: u64,
) -> impl tower::Service<
    Request<tonic::body::Body>,
    Response = Response<tonic::body::Body>,
    Error = Infallible,
    Future: Send,
> + Clone
+ Send
+ Sync
+ 'static {
    tower::service_fn(move |request: Request<tonic::body::Body>| async move {
        let info = request.extensions().get::<CallInfo>().expect("the transport gives every call its facts").clone();
        assert!(info.peer.addr.ip().is_loopback() && info.method == CHECK);
        sleep(Duration::from_millis(ms)).await;
        Ok(tonic::Status::ok("").into_http())
    })
}

#[tokio::test]
async fn t34_a_deadline_answers_deadline_exceeded_not_cancelled() {
    let options = NetworkOptions { max_call_time: Duration::from_millis(300), ..NetworkOptions::default() };
    let server = Server::with(PLAIN, options, slow(5_000)).await;
    // The client's wish; a wish above the cap; none at all.
    for (headers, at_least) in [(&[("grpc-timeout", "100m")][..], 100), (&[("grpc-timeout", "1H")], 300), (&[], 300)] {
        let start = Instant::now();
        let status = raw_call(server.addr, CHECK, headers, &[0; 5], true).await.status();
        let took = start.elapsed();
        assert_eq!((status.code(), reason_of(&status).as_deref()), (Code::DeadlineExceeded, Some("DEADLINE_EXCEEDED")));
        assert!(took >= Duration::from_millis(at_least) && took < Duration::from_millis(at_least + 1_000), "{took:?}");
    }
    let status = raw_call(server.addr, CHECK, &[("grpc-timeout", "soon")], &[0; 5], true).await.status();
    assert_eq!((status.code(), reason_of(&status).as_deref()), (Code::InvalidArgument, Some("METADATA_INVALID")));
}

#[tokio::test]
async fn t34_a_stream_ends_at_the_deadline_its_client_gave() {
    let server = Server::start(PLAIN, NetworkOptions::default()).await;
    let answer = raw_call(server.addr, WATCH, &[("grpc-timeout", "200m")], &[0; 5], true).await;
    assert_eq!(answer.status().code(), Code::DeadlineExceeded);
    assert!(answer.data > 0, "the first state was streamed before");
}

#[tokio::test]
async fn t34_a_full_server_sheds_calls_and_still_answers_health() {
    let options = NetworkOptions { max_calls: 0, max_streams: 0, ..NetworkOptions::default() };
    let server = Server::start(PLAIN, options).await;
    check(&mut server.honest().await).await.unwrap();
    let status = raw_call(server.addr, WATCH, &[], &[0; 5], true).await.status();
    assert_eq!((status.code(), reason_of(&status).as_deref()), (Code::ResourceExhausted, Some("BUSY")));
    assert!(status.get_error_details().retry_info().is_some());
}

#[tokio::test]
async fn t34_a_place_is_given_back_when_the_call_ends() {
    let server = Server::start(PLAIN, NetworkOptions { max_streams: 1, ..NetworkOptions::default() }).await;
    for _ in 0..3 {
        let status = raw_call(server.addr, WATCH, &[("grpc-timeout", "50m")], &[0; 5], true).await.status();
        assert_eq!(status.code(), Code::DeadlineExceeded);
    }
}

#[tokio::test]
async fn t33_request_ids_are_echoed_if_they_are_uuids_and_replaced_if_not() {
    let server = Server::start(PLAIN, NetworkOptions::default()).await;
    for (text, same) in [("67e55044-10b1-426f-9247-bb680e5fe0c8", true), ("jane.doe@example.org", false)] {
        let answer = raw_call(server.addr, CHECK, &[("x-request-id", text)], &[0; 5], true).await;
        let answered = answer.headers["x-request-id"].to_str().unwrap();
        assert_eq!((answered == text, answered.len()), (same, 36));
    }
    let answer = raw_call(server.addr, "/no.Such/Method", &[], &[0; 5], true).await;
    let status = answer.status();
    assert_eq!((status.code(), reason_of(&status).as_deref()), (Code::Unimplemented, Some("METHOD_UNKNOWN")));
    assert!(answer.headers.contains_key("x-request-id"), "errors have one too");
}

#[tokio::test]
async fn t34_shutdown_finishes_calls_then_ends() {
    let options = NetworkOptions { drain_timeout: Duration::from_secs(3), ..NetworkOptions::default() };
    let server = Server::with(PLAIN, options, slow(500)).await;
    let addr = server.addr;
    let call = tokio::spawn(async move { raw_call(addr, CHECK, &[], &[0; 5], true).await.status().code() });
    let idle = tokio::spawn(hear(greet(server.addr).await, Duration::from_secs(4)));
    sleep(Duration::from_millis(150)).await;
    server.stop.send(true).unwrap();
    assert_eq!(call.await.unwrap(), Code::Ok, "the call in flight is finished");
    timeout(Duration::from_secs(5), server.task).await.expect("bounded").unwrap().unwrap();
    assert_eq!(idle.await.unwrap().goaway, Some(0));
    assert!(TcpStream::connect(addr).await.is_err());
}

struct Answer {
    headers: HeaderMap,
    trailers: Option<HeaderMap>,
    data: usize,
}

impl Answer {
    fn status(&self) -> tonic::Status {
        let in_headers = tonic::Status::from_header_map(&self.headers);
        in_headers.or_else(|| self.trailers.as_ref().and_then(tonic::Status::from_header_map)).expect("a status")
    }
}

/// One call by the h2 crate, so that headers and body can be chosen freely.
async fn raw_call(addr: SocketAddr, path: &str, more: &[(&'static str, &str)], body: &[u8], end: bool) -> Answer {
    let tcp = TcpStream::connect(addr).await.unwrap();
    let (send, connection) = h2::client::handshake(tcp).await.unwrap();
    let driver = tokio::spawn(connection);
    let mut send = send.ready().await.unwrap();
    let mut request = Request::post(format!("http://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in more {
        request = request.header(*name, *value);
    }
    let (answer, mut stream) = send.send_request(request.body(()).unwrap(), false).unwrap();
    stream.send_data(Bytes::copy_from_slice(body), end).unwrap();
    let (parts, mut body) = answer.await.unwrap().into_parts();
    let mut data = 0;
    while let Some(chunk) = body.data().await {
        let chunk = chunk.unwrap();
        data += chunk.len();
        let _ = body.flow_control().release_capacity(chunk.len());
    }
    let trailers = body.trailers().await.unwrap();
    driver.abort();
    Answer { headers: parts.headers, trailers, data }
}

// ---- T36

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Writes `<name>.pem`, `<name>.key` and `ca.pem`; a certificate that is not valid was over in 2020.
    fn issue(&self, dir: &Path, name: &str, hosts: &[&str], valid: bool) {
        let mut params = CertificateParams::new(hosts.iter().map(|h| (*h).to_string()).collect::<Vec<_>>()).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        if !valid {
            params.not_before = rcgen::date_time_ymd(2019, 1, 1);
            params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        std::fs::write(dir.join(format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
        std::fs::write(dir.join("ca.pem"), self.pem()).unwrap();
    }

    fn pem(&self) -> String {
        self.0.pem()
    }
}

fn tls_options(dir: &Path, name: &str, clients: bool) -> TlsOptions {
    TlsOptions {
        certificate: dir.join(format!("{name}.pem")),
        private_key: dir.join(format!("{name}.key")),
        client_ca: clients.then(|| dir.join("ca.pem")),
        require_client_certificate: clients,
        allow_tls12: false,
    }
}

fn tls_state(dir: &Path, clients: bool) -> Arc<TlsState> {
    Arc::new(TlsState::load(tls_options(dir, "server", clients)).unwrap())
}

fn identity(dir: &Path, name: &str) -> Option<Identity> {
    let read = |ext: &str| std::fs::read(dir.join(format!("{name}.{ext}"))).unwrap();
    Some(Identity::from_pem(read("pem"), read("key")))
}

/// A client that has made one call: in TLS 1.3 the server judges the client's certificate after the client believes
/// that it is connected.
async fn connect(
    addr: SocketAddr,
    ca: &str,
    host: &str,
    identity: Option<Identity>,
) -> Result<HealthClient<Channel>, tonic::Status> {
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca)).domain_name(host);
    if let Some(identity) = identity {
        tls = tls.identity(identity);
    }
    let endpoint = Endpoint::from_shared(format!("https://{addr}")).unwrap().tls_config(tls).unwrap();
    let channel = endpoint.connect().await.map_err(|e| tonic::Status::unavailable(e.to_string()))?;
    let mut client = HealthClient::new(channel);
    check(&mut client).await?;
    Ok(client)
}

/// The server's certificate, if it completes the handshake and goes on.
async fn handshake(
    addr: SocketAddr,
    ca: &str,
    version: &'static rustls::SupportedProtocolVersion,
    alpn: &[u8],
) -> std::io::Result<Vec<u8>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("localhost").unwrap();
    let stream = connector.connect(name, TcpStream::connect(addr).await?).await?;
    Ok(stream.get_ref().1.peer_certificates().unwrap()[0].as_ref().to_vec())
}

#[tokio::test]
async fn t36_expired_foreign_and_missing_certificates_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let (ca, foreign) = (Authority::new(), Authority::new());
    foreign.issue(path, "foreign", &["localhost"], true);
    ca.issue(path, "expired", &["localhost"], false);
    ca.issue(path, "client", &["client"], true);
    ca.issue(path, "server", &["localhost"], true);
    let addr_server = Server::start(Security::Tls(tls_state(path, true)), short()).await;
    let addr = addr_server.addr;
    let pem = ca.pem();

    // What the server refuses.
    connect(addr, &pem, "localhost", identity(path, "client")).await.expect("a good certificate is served");
    assert!(connect(addr, &pem, "localhost", None).await.is_err(), "no client certificate");
    assert!(connect(addr, &pem, "localhost", identity(path, "expired")).await.is_err(), "expired");
    assert!(connect(addr, &pem, "localhost", identity(path, "foreign")).await.is_err(), "foreign authority");
    // What a client refuses of ours.
    let client = || identity(path, "client");
    assert!(connect(addr, &pem, "vault.example.org", client()).await.is_err(), "wrong name");
    assert!(connect(addr, &foreign.pem(), "localhost", client()).await.is_err(), "wrong authority");
    let expired = Arc::new(TlsState::load(tls_options(path, "expired", false)).unwrap());
    let expired_server = Server::start(Security::Tls(expired), short()).await;
    let expired = expired_server.addr;
    assert!(connect(expired, &pem, "localhost", None).await.is_err(), "an expired server certificate");
}

#[tokio::test]
async fn t36_old_tls_and_other_protocols_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::new();
    ca.issue(dir.path(), "server", &["localhost"], true);
    let addr_server = Server::start(Security::Tls(tls_state(dir.path(), false)), short()).await;
    let addr = addr_server.addr;
    let old = TlsOptions { allow_tls12: true, ..tls_options(dir.path(), "server", false) };
    let old_server = Server::start(Security::Tls(Arc::new(TlsState::load(old).unwrap())), short()).await;
    let old = old_server.addr;
    let (v12, v13) = (&rustls::version::TLS12, &rustls::version::TLS13);
    assert!(handshake(addr, &ca.pem(), v12, b"h2").await.is_err(), "TLS 1.2");
    handshake(addr, &ca.pem(), v13, b"h2").await.expect("TLS 1.3");
    handshake(old, &ca.pem(), v12, b"h2").await.expect("TLS 1.2 where it is asked for");
    assert!(handshake(addr, &ca.pem(), v13, b"http/1.1").await.is_err(), "not h2");
    let mismatch = TlsOptions { require_client_certificate: true, ..tls_options(dir.path(), "server", false) };
    assert!(matches!(TlsState::load(mismatch), Err(TlsError::NoClientAuthority)));
}

#[tokio::test]
async fn t36_plain_text_is_for_loopback_only() {
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let methods = MethodTable::from_descriptor_sets(&[]).unwrap();
    let (_stop, stopped) = watch::channel(false);
    let served = serve(listener, PLAIN, NetworkOptions::default(), methods, slow(0), stopped).await;
    assert!(matches!(served, Err(ListenError::PlaintextExposed { .. })));
}

#[tokio::test]
async fn t36_the_service_sees_the_fingerprint_of_the_client_certificate() {
    use sha2::{Digest, Sha256};
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::new();
    ca.issue(dir.path(), "server", &["localhost"], true);
    ca.issue(dir.path(), "client", &["client"], true);
    let (seen, heard) = watch::channel(None);
    let seen = Arc::new(seen);
    let service = tower::service_fn(move |request: Request<tonic::body::Body>| {
        let seen = seen.clone();
        async move {
            seen.send_replace(request.extensions().get::<CallInfo>().unwrap().peer.client_cert_sha256);
            Ok::<_, Infallible>(tonic::Status::ok("").into_http())
        }
    });
    let server = Server::with(Security::Tls(tls_state(dir.path(), true)), short(), service).await;
    let _ = connect(server.addr, &ca.pem(), "localhost", identity(dir.path(), "client")).await;
    let der = CertificateDer::from_pem_file(dir.path().join("client.pem")).unwrap();
    let expected: [u8; 32] = Sha256::digest(der.as_ref()).into();
    assert_eq!(*heard.borrow(), Some(expected));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t36_reloading_the_certificate_under_load_fails_no_call() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::new();
    ca.issue(dir.path(), "server", &["localhost"], true);
    let state = tls_state(dir.path(), false);
    let addr_server = Server::start(Security::Tls(state.clone()), NetworkOptions::default()).await;
    let addr = addr_server.addr;
    let first = handshake(addr, &ca.pem(), &rustls::version::TLS13, b"h2").await.unwrap();

    let done = Arc::new(AtomicBool::new(false));
    let (calls, failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut load = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (done, calls, failed, pem) = (done.clone(), calls.clone(), failed.clone(), ca.pem());
        load.spawn(async move {
            while !done.load(Ordering::Relaxed) {
                // A new connection, then several calls on it.
                let Ok(mut client) = connect(addr, &pem, "localhost", None).await else {
                    failed.fetch_add(1, Ordering::Relaxed);
                    continue;
                };
                for _ in 0..20 {
                    calls.fetch_add(1, Ordering::Relaxed);
                    if check(&mut client).await.is_err() {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
    }
    for _ in 0..10 {
        sleep(Duration::from_millis(100)).await;
        ca.issue(dir.path(), "server", &["localhost"], true);
        state.reload().unwrap();
    }
    // Files that cannot be used leave the last good certificate in place.
    std::fs::write(dir.path().join("server.pem"), "half a certifi").unwrap();
    assert!(matches!(state.reload(), Err(TlsError::Empty { .. } | TlsError::Unreadable { .. })));
    sleep(Duration::from_millis(100)).await;
    done.store(true, Ordering::Relaxed);
    while load.join_next().await.is_some() {}

    assert!(calls.load(Ordering::Relaxed) > 100);
    assert_eq!(failed.load(Ordering::Relaxed), 0);
    let last = handshake(addr, &ca.pem(), &rustls::version::TLS13, b"h2").await.unwrap();
    assert!(first != last, "the new certificate is served");
}

// ---- the whole network half: health, reflection, operations port, order of going down

mod whole {
    use super::*;
    use pii_vault::server::{Network, Ops, serve_network};
    use tonic_health::pb::health_check_response::ServingStatus;

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
            options: short(),
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
        sleep(Duration::from_millis(100)).await;
        assert_eq!(status().await, ServingStatus::NotServing);
        assert_eq!(get(http, "/readyz").await, (503, "not ready: store, keeper\n".into()));
        assert_eq!(get(http, "/livez").await.0, 200);
        assert_eq!(get(http, "/metrics").await.0, 404);
        ready.store(true, Ordering::Relaxed);
        assert_eq!(get(http, "/readyz").await.0, 200);
        sleep(Duration::from_millis(1_200)).await;
        assert_eq!(status().await, ServingStatus::Serving);
        // Reflection is off: the method is not even known.
        let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
        assert_eq!(raw_call(grpc, reflection, &[], &[0; 5], true).await.status().code(), Code::Unimplemented);

        // Going down: a follower hears NOT_SERVING before its connection ends, and everything ends.
        let request = HealthCheckRequest { service: String::new() };
        let mut follow = client.watch(request).await.unwrap().into_inner();
        assert_eq!(follow.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
        stop.send(true).unwrap();
        assert_eq!(follow.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
        timeout(Duration::from_secs(3), task).await.expect("bounded").unwrap().unwrap();
        assert!(TcpStream::connect(http).await.is_err());
    }

    #[tokio::test]
    async fn reflection_answers_when_asked_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (_stop, stopped) = watch::channel(false);
        let network = Network {
            listener,
            security: PLAIN,
            options: short(),
            routes: Routes::default().into(),
            descriptor_sets: vec![],
            reflection: true,
            ops: None,
            readiness: Arc::new(Vec::new),
        };
        tokio::spawn(serve_network(network, stopped));
        let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
        // ServerReflectionRequest { list_services: "" }
        let answer = raw_call(addr, reflection, &[], &[0, 0, 0, 0, 2, 0x3a, 0], true).await;
        assert_eq!((answer.status().code(), answer.data > 0), (Code::Ok, true));
    }
}
