//! A client that writes raw HTTP/2 frames and says what it heard.

use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// HPACK without Huffman or dynamic table (RFC 7541, 6.2.2), of a gRPC request for `path`.
pub fn request_headers(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
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
pub struct Heard {
    pub goaway: Option<u32>,
    pub resets: Vec<(u32, u32)>,
    pub headers: usize,
    pub closed: bool,
}

/// Our own send buffer is small: what counts as sent was taken by the server's side, not kept by this one's.
pub async fn greet(addr: SocketAddr) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(32 << 10).unwrap();
    let mut tcp = socket.connect(addr).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    tcp.write_all(PREFACE).await.unwrap();
    tcp.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    tcp
}

pub async fn hear(mut tcp: impl AsyncReadExt + Unpin, at_most: Duration) -> Heard {
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
pub async fn flood(addr: SocketAddr, opening: Vec<u8>, mut next: impl FnMut(u32) -> Vec<u8>) -> (Heard, usize) {
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
