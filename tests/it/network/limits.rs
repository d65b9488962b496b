//! T33: oversize headers, frames and messages are refused; request ids.

use pii_vault::grpc::limits::NetworkOptions;
use pii_vault::grpc::status::reason_of;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tonic::Code;

use crate::frames::{CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, frame, greet, hear, request_headers};
use crate::{CHECK, PLAIN, Server, raw_call, slow};

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
    let heard = hear(tcp, Duration::from_secs(5)).await;
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
    let heard = hear(tcp, Duration::from_secs(2)).await;
    let refused = heard.resets.iter().filter(|(_, code)| *code == 7).count(); // REFUSED_STREAM
    assert_eq!((refused, heard.closed), (10, false), "{heard:?}");
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
