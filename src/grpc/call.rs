//! What surrounds every call, whatever service it is for: request id, place, deadline, the watch over a stalled upload
//! or an unread answer, and the metrics. The order is: refuse what is not gRPC, take a place, then let the service see it.

use crate::grpc::deadline::{REQUEST_ID_HEADER, RequestId, allowed_time, client_timeout};
use crate::grpc::direct;
use crate::grpc::limits::{ByteGate, CallGate, HeldBytes, NetworkOptions};
use crate::grpc::reason::Reason;
use crate::grpc::status::{bad_fields, busy, closing, deadline_exceeded, internal, not_found, status};
use crate::telemetry;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use prost::Message;
use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};
use tonic::{Code, Status};
use tracing::Instrument;

/// Who is at the other end of the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Address of the peer. Not for logs.
    pub addr: SocketAddr,
    /// SHA-256 of the verified client certificate, if one was presented.
    pub client_cert_sha256: Option<[u8; 32]>,
    /// How the connection is protected; `None`: not at all.
    pub tls: Option<Tls>,
}

/// Versions of TLS, such as `1.3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tls {
    /// Of this connection.
    pub version: &'static str,
    /// The oldest that the listener takes.
    pub oldest: &'static str,
}

/// What the transport knows about a call; in the request's extensions, always.
#[derive(Debug, Clone)]
pub struct CallInfo {
    pub request_id: RequestId,
    pub peer: Arc<PeerIdentity>,
    /// When the answer becomes DEADLINE_EXCEEDED.
    pub deadline: Option<Instant>,
    /// `/package.Service/Method`, one of the known ones.
    pub method: &'static str,
}

/// The methods that are served: tells streams from unary calls and keeps a metric handle for each, so that no label
/// comes from the network.
pub struct MethodTable {
    methods: HashMap<&'static str, Arc<MethodFacts>>,
}

/// One method.
pub struct MethodFacts {
    path: &'static str,
    streaming: bool,
    /// Served even when everything else is refused for lack of room.
    always: bool,
    /// So short that the connection's own task runs it: its answers leave together, and nothing is scheduled for each.
    short: bool,
    seconds: metrics::Histogram,
    codes: [OnceLock<metrics::Counter>; 17],
}

/// The descriptor set in the program cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the descriptor set cannot be read")]
pub struct BadDescriptors(#[source] prost::DecodeError);

impl MethodTable {
    /// From encoded `FileDescriptorSet`s. Made once, after the metrics recorder.
    pub fn from_descriptor_sets(sets: &[&[u8]]) -> Result<Self, BadDescriptors> {
        let mut methods = HashMap::new();
        for set in sets {
            let set = prost_types::FileDescriptorSet::decode(*set).map_err(BadDescriptors)?;
            for file in &set.file {
                for service in &file.service {
                    for method in &service.method {
                        let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                        // Leaked once per method and process: metric labels and spans want text that stays.
                        let path: &'static str = Box::leak(path.into_boxed_str());
                        let facts = MethodFacts {
                            path,
                            streaming: method.client_streaming() || method.server_streaming(),
                            always: path == "/grpc.health.v1.Health/Check",
                            short: [direct::GET_FIELDS, direct::VERIFY_API_KEY].contains(&path),
                            seconds: metrics::histogram!(telemetry::CALL_SECONDS, "method" => path),
                            codes: Default::default(),
                        };
                        methods.insert(path, Arc::new(facts));
                    }
                }
            }
        }
        Ok(MethodTable { methods })
    }

    /// The method of a path.
    pub(crate) fn get(&self, path: &str) -> Option<Arc<MethodFacts>> {
        self.methods.get(path).cloned()
    }

    /// Names of the services, for their state of health.
    pub fn services(&self) -> std::collections::BTreeSet<&'static str> {
        self.methods.keys().filter_map(|path| path[1..].split_once('/').map(|(service, _)| service)).collect()
    }

    /// Paths and whether they stream.
    pub fn list(&self) -> impl Iterator<Item = (&'static str, bool)> + '_ {
        self.methods.values().map(|m| (m.path, m.streaming))
    }
}

impl MethodFacts {
    pub(crate) fn is_short(&self) -> bool {
        self.short
    }

    fn finished(&self, code: usize, took: Duration) {
        self.seconds.record(took);
        let code = code.min(self.codes.len() - 1);
        let counter = self.codes[code].get_or_init(
            || metrics::counter!(telemetry::CALLS, "method" => self.path, "code" => format!("{:?}", Code::from_i32(code as i32))),
        );
        counter.increment(1);
    }
}

/// Shared by all connections of a listener.
pub struct Front {
    pub(crate) methods: MethodTable,
    pub(crate) gate: CallGate,
    pub(crate) bytes: Arc<ByteGate>,
    pub(crate) max_call_time: Duration,
    pub(crate) body_idle: Duration,
    pub(crate) stream_idle: Duration,
}

impl Front {
    pub fn new(methods: MethodTable, options: &NetworkOptions) -> Arc<Self> {
        Arc::new(Front {
            methods,
            gate: CallGate::new(options),
            bytes: ByteGate::new(options),
            max_call_time: options.max_call_time,
            body_idle: options.body_idle_timeout,
            stream_idle: options.stream_idle_timeout,
        })
    }
}

/// What the transport shares about one call: its start, and whether an answer is in hand that the client does not take
/// (milliseconds since the start, 0: no).
pub(crate) struct Progress {
    start: Instant,
    handed_at: AtomicU64,
    /// The request's bytes, once it was read: its message lives until the call ends.
    held: Mutex<Option<HeldBytes>>,
}

impl Progress {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Progress { start: Instant::now(), handed_at: AtomicU64::new(0), held: Mutex::new(None) })
    }
    fn handed(&self) {
        let ms = self.start.elapsed().as_millis() as u64;
        self.handed_at.store(ms.max(1), Ordering::Relaxed);
    }
    fn taken(&self) {
        self.handed_at.store(0, Ordering::Relaxed);
    }
    /// Whether a piece of the answer waits for the client.
    pub(crate) fn in_hand(&self) -> bool {
        self.handed_at.load(Ordering::Relaxed) != 0
    }
    /// For how long a piece of the answer has been waiting for the client.
    pub(crate) fn stalled(&self) -> Duration {
        match self.handed_at.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            at => self.start.elapsed().saturating_sub(Duration::from_millis(at)),
        }
    }
}

/// A boxed answer for hyper.
pub(crate) type Answer = Pin<Box<dyn Future<Output = Result<Response<CallBody>, Infallible>> + Send>>;

/// Takes one request from the protocol engine through the front to the service.
pub(crate) fn call<S, B>(
    front: Arc<Front>,
    peer: Arc<PeerIdentity>,
    progress: Arc<Progress>,
    method: Option<Arc<MethodFacts>>,
    service: S,
    mut request: Request<B>,
) -> Answer
where
    S: tower::Service<Request<tonic::body::Body>, Response = Response<tonic::body::Body>, Error = Infallible>,
    S: Send + 'static,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let request_id = RequestId::accept(request.headers());
    if let Some(credential) = request.headers_mut().get_mut(http::header::AUTHORIZATION) {
        credential.set_sensitive(true); // redacted wherever headers are shown
    }
    if request.method() != Method::POST {
        return plain(StatusCode::METHOD_NOT_ALLOWED, request_id);
    }
    let is_grpc = |value: &HeaderValue| value.as_bytes().starts_with(b"application/grpc");
    if !request.headers().get(http::header::CONTENT_TYPE).is_some_and(is_grpc) {
        return plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, request_id);
    }
    let started = progress.start;
    Box::pin(async move {
        let Some(method) = method else {
            let status = status(Code::Unimplemented, Reason::MethodUnknown, "no such method", &[]);
            return Ok(refuse(status, request_id));
        };
        let mut end = CallEnd { method: method.clone(), request_id, started, code: None, _place: None };
        let Ok(wish) = client_timeout(request.headers()) else {
            let violation = ("grpc-timeout".into(), "must be at most 8 digits and one of H M S m u n".into());
            return Ok(end.refuse(bad_fields(Reason::MetadataInvalid, vec![violation])));
        };
        end._place = front.gate.enter(method.streaming);
        if end._place.is_none() && !method.always {
            metrics::counter!(telemetry::CALLS_SHED).increment(1);
            return Ok(end.refuse(busy("too many calls are in flight", Duration::from_millis(250))));
        }
        // A deadline beyond the clock's range is no deadline.
        let deadline = allowed_time(wish, method.streaming, front.max_call_time).and_then(|t| started.checked_add(t));

        let info = CallInfo { request_id, peer, deadline, method: method.path };
        let (mut parts, body) = request.into_parts();
        parts.extensions.insert(info);
        let body = RequestBody {
            inner: body,
            framing: Framing::default(),
            inside: front.body_idle,
            between: if method.streaming { front.stream_idle } else { front.body_idle },
            sleep: None,
            streaming: method.streaming,
            held: front.bytes.hold(),
            progress: progress.clone(),
        };
        let request = Request::from_parts(parts, tonic::body::Body::new(body));

        let span = tracing::debug_span!(telemetry::SPAN_CALL, method = method.path, %request_id);
        let answer = run(service, request).instrument(span);
        let answer = match deadline {
            None => answer.await,
            Some(at) => match timeout_at(at, answer).await {
                Ok(answer) => answer,
                // The service's future is dropped here; a write that is queued goes on and is found by its request id.
                Err(_) => return Ok(end.refuse(deadline_exceeded())),
            },
        };
        let (mut parts, body) = answer.into_parts();
        parts.headers.insert(REQUEST_ID_HEADER, request_id.header_value());
        end.code = explain(&mut parts.headers);
        if body.is_end_stream() {
            end.code.get_or_insert(Code::Unknown as usize);
        }
        let deadline = deadline.filter(|_| method.streaming);
        Ok(Response::from_parts(
            parts,
            CallBody { inner: Some(body), end: Some(end), progress: Some(progress), deadline, sleep: None },
        ))
    })
}

async fn run<S>(mut service: S, request: Request<tonic::body::Body>) -> Response<tonic::body::Body>
where
    S: tower::Service<Request<tonic::body::Body>, Response = Response<tonic::body::Body>, Error = Infallible>,
{
    match std::future::poll_fn(|cx| service.poll_ready(cx)).await {
        Ok(()) => match service.call(request).await {
            Ok(answer) => answer,
            Err(never) => match never {},
        },
        Err(never) => match never {},
    }
}

fn plain(code: StatusCode, request_id: RequestId) -> Answer {
    let mut answer = Response::new(CallBody::empty());
    *answer.status_mut() = code;
    answer.headers_mut().insert(REQUEST_ID_HEADER, request_id.header_value());
    Box::pin(std::future::ready(Ok(answer)))
}

fn refuse(status: Status, request_id: RequestId) -> Response<CallBody> {
    let mut answer = status.into_http::<tonic::body::Body>().map(|_| CallBody::empty());
    answer.headers_mut().insert(REQUEST_ID_HEADER, request_id.header_value());
    answer
}

/// The code in headers or trailers, if they have one. An error that the gRPC library made by itself (a message too
/// large, not protobuf, an unknown service) has no reason yet: it gets ours.
fn explain(headers: &mut HeaderMap) -> Option<usize> {
    let code: i32 = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
    if code == 0 || headers.contains_key("grpc-status-details-bin") {
        return usize::try_from(code).ok();
    }
    // The library's text for bytes that are not the message's protobuf, percent-encoded; it calls them INTERNAL.
    let undecodable = headers.get("grpc-message").is_some_and(|m| m.as_bytes().starts_with(b"failed%20to%20decode"));
    let ours = match Code::from_i32(code) {
        Code::OutOfRange => {
            status(Code::OutOfRange, Reason::MessageTooLarge, "a message is larger than the server handles", &[])
        }
        Code::Internal if undecodable => {
            status(Code::InvalidArgument, Reason::FieldInvalid, "the message cannot be decoded", &[])
        }
        Code::InvalidArgument => status(Code::InvalidArgument, Reason::FieldInvalid, "the request is not valid", &[]),
        Code::NotFound => not_found(),
        Code::Unimplemented => status(Code::Unimplemented, Reason::MethodUnknown, "no such method", &[]),
        Code::DeadlineExceeded => deadline_exceeded(),
        Code::Unavailable => closing(),
        // The client went away: nobody reads a reason.
        Code::Cancelled => return Some(Code::Cancelled as usize),
        _ => internal(),
    };
    headers.remove("grpc-message");
    // Cannot fail: the status is made of constants.
    let _ = ours.add_header(headers);
    Some(ours.code() as usize)
}

/// Lives until the last byte of the answer was handed over (or the client went away), then counts the call.
struct CallEnd {
    method: Arc<MethodFacts>,
    request_id: RequestId,
    started: Instant,
    code: Option<usize>,
    _place: Option<OwnedSemaphorePermit>,
}

impl CallEnd {
    fn refuse(mut self, status: Status) -> Response<CallBody> {
        self.code = Some(status.code() as usize);
        refuse(status, self.request_id)
    }
}

impl Drop for CallEnd {
    fn drop(&mut self) {
        let code = self.code.unwrap_or(Code::Cancelled as usize);
        self.method.finished(code, self.started.elapsed());
        let code = Code::from_i32(code as i32);
        if matches!(code, Code::Internal | Code::DataLoss | Code::Unknown) {
            tracing::error!(request_id = %self.request_id, method = self.method.path, code = ?code, "call failed");
        }
    }
}

/// The answer on its way out. Ends a stream at its deadline and notes when the client does not take what was handed over.
pub struct CallBody {
    inner: Option<tonic::body::Body>,
    end: Option<CallEnd>,
    progress: Option<Arc<Progress>>,
    deadline: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl CallBody {
    fn empty() -> Self {
        CallBody { inner: None, end: None, progress: None, deadline: None, sleep: None }
    }

    fn finish(&mut self, code: Option<usize>) {
        self.inner = None;
        if let (Some(end), Some(code)) = (&mut self.end, code) {
            end.code = Some(code);
        }
        self.end = None;
    }
}

impl Body for CallBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if let Some(progress) = &this.progress {
            progress.taken();
        }
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        match Pin::new(inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(mut frame))) => {
                if let Some(trailers) = frame.trailers_mut() {
                    let code = explain(trailers);
                    this.finish(code);
                }
                if let Some(progress) = &this.progress {
                    progress.handed();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(status))) => {
                this.finish(Some(status.code() as usize));
                Poll::Ready(Some(Err(status)))
            }
            Poll::Ready(None) => {
                this.finish(None);
                Poll::Ready(None)
            }
            Poll::Pending => {
                let Some(deadline) = this.deadline else { return Poll::Pending };
                let sleep = this.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
                ready!(sleep.as_mut().poll(cx));
                let mut trailers = HeaderMap::new();
                // Cannot fail: the status is made of constants.
                let _ = deadline_exceeded().add_header(&mut trailers);
                this.finish(Some(Code::DeadlineExceeded as usize));
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// The request on its way in. Fails when the client stops in the middle of a message, or of a stream for too long.
struct RequestBody<B> {
    inner: B,
    framing: Framing,
    inside: Duration,
    between: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
    streaming: bool,
    held: HeldBytes,
    progress: Arc<Progress>,
}

impl<B> Drop for RequestBody<B> {
    fn drop(&mut self) {
        if !self.streaming && self.held.counts() {
            let nothing = self.held.fresh();
            *self.progress.held.lock() = Some(std::mem::replace(&mut self.held, nothing));
        }
    }
}

impl<B> Body for RequestBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Ready(frame) => {
                this.sleep = None;
                let frame = frame.map(|frame| frame.map_err(Into::into));
                if let Some(Ok(frame)) = &frame
                    && let Some(data) = frame.data_ref()
                {
                    this.framing.feed(data);
                    if !this.held.add(data.len()) {
                        metrics::counter!(telemetry::CALLS_SHED).increment(1);
                        let status = busy("too many large requests are in flight", Duration::from_millis(500));
                        return Poll::Ready(Some(Err(Box::new(status))));
                    }
                    // A stream's messages are taken out one by one; a unary call has one, which stays until its end.
                    if this.streaming && !this.framing.inside() {
                        this.held.release();
                    }
                }
                Poll::Ready(frame)
            }
            Poll::Pending => {
                let wait = if this.framing.inside() { this.inside } else { this.between };
                let sleep = this.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(wait)));
                ready!(sleep.as_mut().poll(cx));
                metrics::counter!(telemetry::STALLED, "what" => "request").increment(1);
                let status =
                    status(Code::DeadlineExceeded, Reason::DeadlineExceeded, "the request stopped coming", &[]);
                Poll::Ready(Some(Err(Box::new(status))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Follows the length prefixes (1 flag byte, 4 bytes of length) of gRPC messages.
#[derive(Default)]
struct Framing {
    head: [u8; 5],
    head_len: usize,
    left: usize,
}

impl Framing {
    fn feed(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            if self.left == 0 {
                let n = (5 - self.head_len).min(data.len());
                self.head[self.head_len..self.head_len + n].copy_from_slice(&data[..n]);
                self.head_len += n;
                data = &data[n..];
                if self.head_len < 5 {
                    return;
                }
                self.head_len = 0;
                self.left = u32::from_be_bytes([self.head[1], self.head[2], self.head[3], self.head[4]]) as usize;
            }
            let n = self.left.min(data.len());
            self.left -= n;
            data = &data[n..];
        }
    }

    fn inside(&self) -> bool {
        self.left > 0 || self.head_len > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn framing_knows_the_middle_of_a_message_however_it_is_cut() {
        let bytes = [0, 0, 0, 0, 3, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 9];
        let ends = [0, 8, 13, 19];
        for cut in 0..=bytes.len() {
            let mut framing = Framing::default();
            framing.feed(&bytes[..cut]);
            assert_eq!(framing.inside(), !ends.contains(&cut), "cut {cut}");
            framing.feed(&bytes[cut..]);
            assert!(!framing.inside());
        }
    }
}
