//! A gRPC client of few instructions, the same for the vault and its floor: frames go to HTTP/2 as they are, so that what
//! is measured is the server and not the client.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderValue, Method, Request, Uri, header};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::error::BenchError;
use crate::clock::Clock;

/// `RESOURCE_EXHAUSTED` as `grpc-status` has it.
const EXHAUSTED: &str = "8";

/// Connections to one server.
pub struct Wire {
    connections: Vec<SendRequest<Bytes>>,
    authorization: HeaderValue,
    clock: Arc<dyn Clock>,
}

/// What a window of calls came to.
#[derive(Debug, Default)]
pub struct Window {
    pub calls: u64,
    /// Calls that were refused for lack of room, where the load allows it; not among the others.
    pub shed: u64,
    pub seconds: f64,
    /// Of each call, in microseconds.
    pub latencies: Vec<u32>,
    /// Bytes of the last answer's message.
    pub answer_bytes: usize,
}

impl Window {
    pub fn rate(&self) -> f64 {
        self.calls as f64 / self.seconds
    }
}

/// One load: which method, how many at once, for how long.
#[derive(Clone)]
pub struct Load {
    pub path: &'static str,
    pub in_flight: usize,
    pub time: Duration,
    /// Ends after this many calls at the latest.
    pub calls: u64,
    /// Each of those in flight waits so long from the start of one call to the next; zero: it does not wait.
    pub pace: Duration,
    /// Whether a refusal for lack of room (RESOURCE_EXHAUSTED) is counted rather than the end.
    pub may_be_shed: bool,
}

impl Load {
    pub fn new(path: &'static str, in_flight: usize, time: Duration) -> Self {
        Load { path, in_flight, time, calls: u64::MAX, pace: Duration::ZERO, may_be_shed: false }
    }
}

/// A message with the five bytes that gRPC puts before it.
pub fn frame(message: &impl prost::Message) -> Bytes {
    let length = message.encoded_len();
    let mut out = BytesMut::with_capacity(5 + length);
    out.put_u8(0);
    out.put_u32(length as u32);
    message.encode(&mut out).expect("the buffer is as large as the message");
    out.freeze()
}

/// What clients trust: the authority of this run.
pub fn trust(authority: &str) -> Result<Arc<rustls::ClientConfig>, BenchError> {
    let mut roots = rustls::RootCertStore::empty();
    let certificate = CertificateDer::from_pem_slice(authority.as_bytes()).map_err(BenchError::other("certificate"))?;
    roots.add(certificate).map_err(BenchError::other("certificate"))?;
    let mut config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

impl Wire {
    /// Opens `connections` to a port of this machine. `credential` goes with every call.
    pub async fn connect(
        port: u16,
        tls: &Arc<rustls::ClientConfig>,
        connections: usize,
        credential: &str,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Wire>, BenchError> {
        let mut open = Vec::with_capacity(connections);
        for _ in 0..connections {
            let tcp = TcpStream::connect(("127.0.0.1", port)).await.map_err(BenchError::io("connect"))?;
            tcp.set_nodelay(true).map_err(BenchError::io("connect"))?;
            let name = ServerName::try_from("localhost").expect("a constant name");
            let stream = TlsConnector::from(tls.clone()).connect(name, tcp).await.map_err(BenchError::io("TLS"))?;
            let (send, connection) = h2::client::Builder::new()
                .initial_window_size(4 << 20)
                .initial_connection_window_size(16 << 20)
                .max_concurrent_reset_streams(16)
                .handshake(stream)
                .await
                .map_err(BenchError::other("HTTP/2"))?;
            tokio::spawn(connection);
            open.push(send);
        }
        let mut authorization: HeaderValue =
            format!("Bearer {credential}").parse().map_err(BenchError::other("credential"))?;
        authorization.set_sensitive(true);
        Ok(Arc::new(Wire { connections: open, authorization, clock }))
    }

    /// One call on connection `on`; answers the message, which must be the only one.
    pub async fn call(&self, on: usize, uri: &Uri, frame: Bytes) -> Result<Bytes, BenchError> {
        let send = self.connections[on % self.connections.len()].clone();
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri.clone();
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(header::AUTHORIZATION, self.authorization.clone());
        let gone = BenchError::other("HTTP/2");
        let run = async {
            let mut send = send.ready().await?;
            let (answer, mut upload) = send.send_request(request, false)?;
            upload.send_data(frame, true)?;
            let (head, mut body) = answer.await?.into_parts();
            let mut message = BytesMut::new();
            let mut first = Bytes::new();
            while let Some(data) = body.data().await {
                let data = data?;
                let _ = body.flow_control().release_capacity(data.len());
                if first.is_empty() && message.is_empty() {
                    first = data;
                } else {
                    if message.is_empty() {
                        message.extend_from_slice(&first);
                    }
                    message.extend_from_slice(&data);
                }
            }
            let trailers = body.trailers().await?;
            let all = if message.is_empty() { first } else { message.freeze() };
            Ok((head, all, trailers))
        };
        let (head, all, trailers) = run.await.map_err(|e: h2::Error| gone(e))?;
        let last = trailers.as_ref().unwrap_or(&head.headers);
        match last.get("grpc-status").map(HeaderValue::as_bytes) {
            Some(b"0") if all.len() >= 5 => Ok(all.slice(5..)),
            _ => {
                let text = |name| last.get(name).and_then(|v: &HeaderValue| v.to_str().ok()).unwrap_or("none");
                Err(BenchError::Refused {
                    method: uri.path().to_owned(),
                    code: text("grpc-status").to_owned(),
                    message: text("grpc-message").to_owned(),
                })
            }
        }
    }

    /// Asks once.
    pub async fn ask<A: prost::Message + Default>(
        &self,
        path: &'static str,
        message: &impl prost::Message,
    ) -> Result<A, BenchError> {
        let answer = self.call(0, &uri(path), frame(message)).await?;
        A::decode(answer).map_err(BenchError::other("answer"))
    }

    /// The same; again while the server has no room for it.
    pub async fn ask_until_answered<A: prost::Message + Default>(
        &self,
        path: &'static str,
        message: &impl prost::Message,
    ) -> Result<A, BenchError> {
        loop {
            match self.ask(path, message).await {
                Err(BenchError::Refused { code, .. }) if code == EXHAUSTED => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                answer => return answer,
            }
        }
    }

    /// A closed loop: `in_flight` callers, each with the next frame as soon as it has its answer. The first error ends it.
    pub async fn drive(
        self: &Arc<Self>,
        load: &Load,
        next: impl Fn(u64) -> Bytes + Send + Sync + 'static,
    ) -> Result<Window, BenchError> {
        let uri = uri(load.path);
        let next = Arc::new(next);
        let given = Arc::new(AtomicU64::new(0));
        let began = self.clock.monotonic();
        let end = began + load.time;
        let mut callers = Vec::with_capacity(load.in_flight);
        for caller in 0..load.in_flight {
            let (wire, uri, next, given) = (self.clone(), uri.clone(), next.clone(), given.clone());
            let (most, pace, all, may_be_shed) = (load.calls, load.pace, load.in_flight, load.may_be_shed);
            callers.push(tokio::spawn(async move {
                let mut latencies = Vec::with_capacity(4096);
                let (mut bytes, mut shed) = (0, 0);
                // Paced callers begin one after the other, so that they do not call in step.
                tokio::time::sleep(pace.mul_f64(caller as f64 / all as f64)).await;
                loop {
                    let began = wire.clock.monotonic();
                    if began >= end {
                        break;
                    }
                    let number = given.fetch_add(1, Ordering::Relaxed);
                    if number >= most {
                        break;
                    }
                    let answer = wire.call(caller, &uri, next(number)).await;
                    let took = wire.clock.monotonic() - began;
                    match answer {
                        Ok(answer) => {
                            bytes = answer.len();
                            latencies.push(took.as_micros().min(u32::MAX as u128) as u32);
                        }
                        Err(BenchError::Refused { code, .. }) if may_be_shed && code == EXHAUSTED => shed += 1,
                        Err(error) => return Err(error),
                    }
                    if !pace.is_zero() {
                        tokio::time::sleep(pace.saturating_sub(took)).await;
                    }
                }
                Ok::<_, BenchError>((latencies, bytes, shed))
            }));
        }
        let mut window = Window::default();
        for caller in callers {
            let (mut latencies, bytes, shed) = caller.await.map_err(BenchError::other("a caller"))??;
            window.calls += latencies.len() as u64;
            window.latencies.append(&mut latencies);
            window.shed += shed;
            window.answer_bytes = window.answer_bytes.max(bytes);
        }
        window.seconds = (self.clock.monotonic() - began).as_secs_f64();
        Ok(window)
    }
}

fn uri(path: &'static str) -> Uri {
    Uri::builder().scheme("https").authority("localhost").path_and_query(path).build().expect("a constant path")
}
