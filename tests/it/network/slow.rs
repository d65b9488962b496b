//! T34: slow clients are cut, deadlines are kept, places are given back.

use pii_vault::grpc::limits::NetworkOptions;
use pii_vault::grpc::listen::Security;
use pii_vault::grpc::status::reason_of;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tonic::Code;
use tonic_types::StatusExt;

use crate::frames::{DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, frame, greet, hear, request_headers};
use crate::tls::{Authority, tls_state};
use crate::{CHECK, PLAIN, Server, WATCH, check, raw_call, short, slow, slow_and_telling};

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
    for connection in &held {
        taken(connection).await;
    }
    let more = TcpStream::connect(server.addr).await.unwrap();
    assert!(hear(more, Duration::from_secs(4)).await.closed, "it is cut at once, and not for its silence after 5 s");
    check(&mut client).await.unwrap();
    drop(held);
    let begun = Instant::now();
    while hear(TcpStream::connect(server.addr).await.unwrap(), Duration::from_millis(200)).await.closed {
        assert!(begun.elapsed() < Duration::from_secs(10), "a place is given back");
    }
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

/// Waits until the server has greeted: then the connection is its own and none that waits for the listener.
async fn taken(tcp: &TcpStream) {
    let greeted = timeout(Duration::from_secs(10), tcp.peek(&mut [0])).await.expect("a greeting").unwrap();
    assert_eq!(greeted, 1);
}

#[tokio::test]
async fn t34_shutdown_finishes_calls_then_ends() {
    let options = NetworkOptions { drain_timeout: Duration::from_secs(3), ..NetworkOptions::default() };
    let come = Arc::new(Notify::new());
    let server = Server::with(PLAIN, options, slow_and_telling(500, come.clone())).await;
    let addr = server.addr;
    let call = tokio::spawn(async move { raw_call(addr, CHECK, &[], &[0; 5], true).await.status().code() });
    let idle = greet(server.addr).await;
    taken(&idle).await;
    let idle = tokio::spawn(hear(idle, Duration::from_secs(10)));
    come.notified().await;
    server.stop.send(true).unwrap();
    assert_eq!(call.await.unwrap(), Code::Ok, "the call in flight is finished");
    timeout(Duration::from_secs(10), server.task).await.expect("bounded").unwrap().unwrap();
    assert_eq!(idle.await.unwrap().goaway, Some(0));
    assert!(TcpStream::connect(addr).await.is_err());
}
