//! The accept loop: TCP, TLS and HTTP/2 with every limit set here, because the usual server leaves several of them open.
//! One task per connection owns a clock for what the protocol engine does not time.

use crate::grpc::call::{Answer, CallBody, Front, MethodTable, PeerIdentity, Progress, Tls, call};
use crate::grpc::frames::{Abuse, FrameWatch};
use crate::grpc::limits::{
    CONNECTION_WINDOW_BYTES, ConnectionGate, ConnectionPlace, MAX_CONCURRENT_STREAMS, MAX_FRAME_BYTES,
    MAX_HEADER_LIST_BYTES, MAX_LOCAL_ERROR_RESETS, MAX_PENDING_ACCEPT_RESETS, MAX_SEND_BUFFER_BYTES, NetworkOptions,
    STREAM_WINDOW_BYTES,
};
use crate::grpc::tls::{TlsState, fingerprint};
use crate::telemetry;
use futures_util::stream::{FuturesUnordered, StreamExt};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, Sleep, interval, sleep, timeout};

/// What protects the bytes on the wire.
#[derive(Clone)]
pub enum Security {
    /// TLS, with the certificate of the moment.
    Tls(Arc<TlsState>),
    /// Nothing. Other machines are refused unless the flag says so.
    Plaintext { allow_non_loopback: bool },
}

/// The listener cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error(
        "plain text is refused on {addr}, which is not a loopback address; use TLS or allow_plaintext_non_loopback"
    )]
    PlaintextExposed { addr: SocketAddr },
    #[error(
        "the operations port is refused on {addr}, which is not a loopback address, without ops.allow_non_loopback"
    )]
    OpsExposed { addr: SocketAddr },
    #[error("the listener failed")]
    Io(#[from] io::Error),
}

/// Serves until `shutdown` becomes true and the connections have drained (at most `drain_timeout`).
///
/// `service` is cloned per call; the transport puts a `CallInfo` into each request's extensions. The listener is bound
/// already, so that a test or a socket unit may do it. Must be polled inside a tokio runtime.
pub async fn serve<S>(
    listener: TcpListener,
    security: Security,
    options: NetworkOptions,
    methods: MethodTable,
    service: S,
    mut shutdown: watch::Receiver<bool>,
) -> Result<(), ListenError>
where
    S: tower::Service<Request<tonic::body::Body>, Response = Response<tonic::body::Body>, Error = Infallible>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send,
{
    let addr = listener.local_addr()?;
    if let Security::Plaintext { allow_non_loopback: false } = security
        && !addr.ip().is_loopback()
    {
        return Err(ListenError::PlaintextExposed { addr });
    }
    let gate = ConnectionGate::new(&options);
    let front = Front::new(methods, &options);
    let options = Arc::new(options);
    // Each connection holds a sender; when the last is gone, nothing runs any more.
    let (running, mut all_gone) = mpsc::channel::<()>(1);
    let gauge = metrics::gauge!(telemetry::CONNECTIONS);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = shutdown.wait_for(|stop| *stop) => break,
        };
        let (tcp, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, or the peer left already: neither ends the server, and neither may spin.
                metrics::counter!(telemetry::CONNECTIONS_REFUSED, "why" => "accept").increment(1);
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let place = match gate.enter(peer.ip()) {
            Ok(place) => place,
            Err(refused) => {
                metrics::counter!(telemetry::CONNECTIONS_REFUSED, "why" => refused.as_str()).increment(1);
                continue;
            }
        };
        gauge.set(gate.open() as f64);
        let connection = Connection {
            security: security.clone(),
            options: options.clone(),
            front: front.clone(),
            service: service.clone(),
            shutdown: shutdown.clone(),
            peer,
            _place: place,
            _running: running.clone(),
        };
        let gauge = gauge.clone();
        let gate = gate.clone();
        tokio::spawn(async move {
            connection.run(tcp).await;
            gauge.set(gate.open() as f64);
        });
    }
    drop(listener);
    drop(running);
    // The connections cut themselves at drain_timeout; the second is for their tasks to end.
    let _ = timeout(options.drain_timeout + Duration::from_secs(1), all_gone.recv()).await;
    Ok(())
}

struct Connection<S> {
    security: Security,
    options: Arc<NetworkOptions>,
    front: Arc<Front>,
    service: S,
    shutdown: watch::Receiver<bool>,
    peer: SocketAddr,
    _place: ConnectionPlace,
    _running: mpsc::Sender<()>,
}

impl<S> Connection<S>
where
    S: tower::Service<Request<tonic::body::Body>, Response = Response<tonic::body::Body>, Error = Infallible>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send,
{
    async fn run(mut self, tcp: TcpStream) {
        if set_socket_options(&tcp, &self.options).is_err() {
            return; // the peer left already
        }
        match self.security.clone() {
            Security::Plaintext { .. } => self.serve(tcp, None, None).await,
            Security::Tls(tls) => {
                let handshake = timeout(self.options.handshake_timeout, tls.acceptor().accept(tcp));
                let stream = tokio::select! {
                    stream = handshake => stream,
                    _ = self.shutdown.wait_for(|stop| *stop) => return,
                };
                match stream {
                    Ok(Ok(stream)) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
                        let certificate = certificate.map(fingerprint);
                        let version = match stream.get_ref().1.protocol_version() {
                            Some(rustls::ProtocolVersion::TLSv1_3) => "1.3",
                            _ => "1.2",
                        };
                        let tls = Tls { version, oldest: tls.oldest() };
                        self.serve(stream, certificate, Some(tls)).await;
                    }
                    Ok(Ok(_)) => ended("no_alpn"),
                    // The peer's mistakes (an old version, a wrong name, a foreign certificate) are theirs to see.
                    Ok(Err(error)) => {
                        tracing::debug!(%error, "TLS handshake failed");
                        ended("handshake_failed");
                    }
                    Err(_) => ended("handshake_timeout"),
                }
            }
        }
    }

    async fn serve<I>(mut self, io: I, client_cert_sha256: Option<[u8; 32]>, tls: Option<Tls>)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let options = self.options.clone();
        let state = Arc::new(State::new());
        let io = WatchedIo { io, state: state.clone() };
        let service = ConnectionService {
            front: self.front.clone(),
            peer: Arc::new(PeerIdentity { addr: self.peer, client_cert_sha256, tls }),
            state: state.clone(),
            service: self.service.clone(),
        };
        let executor = CallExecutor {
            state: state.clone(),
            stall: options.response_stall_timeout,
            _running: self._running.clone(),
        };
        let mut builder = http2::Builder::new(executor);
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
            .max_local_error_reset_streams(MAX_LOCAL_ERROR_RESETS)
            .max_pending_accept_reset_streams(MAX_PENDING_ACCEPT_RESETS)
            .max_header_list_size(MAX_HEADER_LIST_BYTES)
            .max_frame_size(MAX_FRAME_BYTES)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(MAX_SEND_BUFFER_BYTES)
            .keep_alive_interval(options.keepalive_interval)
            .keep_alive_timeout(options.keepalive_timeout)
            .auto_date_header(false);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));

        let mut tick = interval(tick_length(&options));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let max_age = jittered(options.max_connection_age);
        let mut stop = pin!(self.shutdown.wait_for(|stop| *stop));
        // Once set: when the connection is cut.
        let mut cut_at: Option<Instant> = None;
        let mut short = FuturesUnordered::new();
        let why = std::future::poll_fn(|cx| {
            // Short calls first: what they answer leaves in one write when the connection is polled.
            loop {
                while let Poll::Ready(Some(())) = short.poll_next_unpin(cx) {}
                if connection.as_mut().poll(cx).is_ready() {
                    return Poll::Ready("closed");
                }
                let mut taken = state.taken.lock();
                if taken.is_empty() {
                    break;
                }
                short.extend(taken.drain(..));
            }
            let mut leave: Option<(&'static str, Duration)> = None;
            if cut_at.is_none() {
                if stop.as_mut().poll(cx).is_ready() {
                    leave = Some(("shutdown", options.drain_timeout));
                }
                if let Some(abuse) = state.abuse() {
                    metrics::counter!(telemetry::ABUSE, "what" => abuse.as_str()).increment(1);
                    // A moment for the GOAWAY to be written; nothing more is read.
                    leave = Some(("abuse", Duration::from_millis(200)));
                }
            }
            while tick.poll_tick(cx).is_ready() {
                if cut_at.is_some_and(|at| Instant::now() >= at) {
                    return Poll::Ready("cut");
                }
                if let Some(late) = state.late(&options) {
                    return Poll::Ready(late);
                }
                if cut_at.is_none() && leave.is_none() {
                    if state.idle_for() >= options.connection_idle_timeout {
                        leave = Some(("idle", Duration::from_secs(1)));
                    } else if state.start.elapsed() >= max_age {
                        leave = Some(("age", options.drain_timeout));
                    }
                }
            }
            if let Some((_why, rest)) = leave {
                connection.as_mut().graceful_shutdown(); // GOAWAY
                cut_at = Some(Instant::now() + rest);
                // Polled once more so that the GOAWAY is written now.
                if connection.as_mut().poll(cx).is_ready() {
                    return Poll::Ready("closed");
                }
            }
            Poll::Pending
        })
        .await;
        ended(why);
    }
}

fn ended(why: &'static str) {
    metrics::counter!(telemetry::CONNECTIONS_ENDED, "why" => why).increment(1);
}

fn set_socket_options(tcp: &TcpStream, options: &NetworkOptions) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    // Bytes that nobody acknowledges: the kernel gives up when we would.
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(tcp).set_tcp_user_timeout(Some(options.response_stall_timeout))?;
    Ok(())
}

/// Often enough for the shortest timeout, at most once a second in a server at rest.
fn tick_length(options: &NetworkOptions) -> Duration {
    let shortest = [
        options.preface_timeout,
        options.header_timeout,
        options.body_idle_timeout,
        options.response_stall_timeout,
        options.connection_idle_timeout,
        options.max_connection_age,
        options.drain_timeout,
    ];
    let shortest = shortest.into_iter().min().unwrap_or(Duration::from_secs(1));
    (shortest / 5).clamp(Duration::from_millis(20), Duration::from_secs(1))
}

/// Less up to a tenth.
fn jittered(age: Duration) -> Duration {
    age - age.mul_f64(0.1 * rand::random::<f64>())
}

/// What the connection's own clock looks at. Written by the I/O wrapper and the calls, read at each tick.
struct State {
    start: Instant,
    io: Mutex<IoState>,
    open_calls: AtomicUsize,
    idle_since: Mutex<Instant>,
    /// The call that the protocol engine is about to spawn: `call` and `execute` follow each other directly.
    handover: Mutex<Option<OpenCall>>,
    /// Short calls that the connection's task is about to take.
    taken: Mutex<Vec<Pin<Box<dyn Future<Output = ()> + Send>>>>,
}

struct IoState {
    frames: FrameWatch,
    abuse: Option<Abuse>,
    write_blocked_since: Option<u64>,
}

impl State {
    fn new() -> Self {
        let start = Instant::now();
        State {
            start,
            io: Mutex::new(IoState { frames: FrameWatch::default(), abuse: None, write_blocked_since: None }),
            open_calls: AtomicUsize::new(0),
            idle_since: Mutex::new(start),
            handover: Mutex::new(None),
            taken: Mutex::new(Vec::new()),
        }
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    fn abuse(&self) -> Option<Abuse> {
        self.io.lock().abuse
    }

    fn idle_for(&self) -> Duration {
        if self.open_calls.load(Ordering::Acquire) > 0 { Duration::ZERO } else { self.idle_since.lock().elapsed() }
    }

    /// A reason to cut the connection now.
    fn late(&self, options: &NetworkOptions) -> Option<&'static str> {
        let now = self.now();
        let over = |since: u64, limit: Duration| u128::from(now.saturating_sub(since)) >= limit.as_millis();
        let io = self.io.lock();
        if !io.frames.greeted() && over(0, options.preface_timeout) {
            return Some("preface_timeout");
        }
        if io.frames.block_since().is_some_and(|since| over(since, options.header_timeout)) {
            return Some("header_timeout");
        }
        if io.frames.stalled_since().is_some_and(|since| over(since, options.body_idle_timeout)) {
            return Some("frame_timeout");
        }
        if io.write_blocked_since.is_some_and(|since| over(since, options.response_stall_timeout)) {
            return Some("write_stalled");
        }
        None
    }
}

struct WatchedIo<I> {
    io: I,
    state: Arc<State>,
}

impl<I: AsyncRead + Unpin> AsyncRead for WatchedIo<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.state.abuse().is_some() {
            return Poll::Pending; // nothing more is read; the connection's task is about to end it
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut this.io).poll_read(cx, buf);
        if let Poll::Ready(Ok(())) = read {
            let now = this.state.now();
            let mut io = this.state.io.lock();
            if let Err(abuse) = io.frames.feed(&buf.filled()[before..], now) {
                io.abuse = Some(abuse);
                cx.waker().wake_by_ref();
            }
        }
        read
    }
}

impl<I: AsyncWrite + Unpin> WatchedIo<I> {
    fn wrote<T>(&self, result: Poll<T>) -> Poll<T> {
        let mut io = self.state.io.lock();
        match &result {
            Poll::Ready(_) => io.write_blocked_since = None,
            Poll::Pending => {
                let now = self.state.now();
                io.write_blocked_since.get_or_insert(now);
            }
        }
        result
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for WatchedIo<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.io).poll_write(cx, buf);
        self.wrote(wrote)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.wrote(wrote)
    }
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.wrote(flushed)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Counts a call as open until the protocol engine is done with it.
struct OpenCall {
    state: Arc<State>,
    progress: Arc<Progress>,
    /// The connection's task runs it.
    short: bool,
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        *self.state.idle_since.lock() = Instant::now();
        self.state.open_calls.fetch_sub(1, Ordering::AcqRel);
    }
}

struct ConnectionService<S> {
    front: Arc<Front>,
    peer: Arc<PeerIdentity>,
    state: Arc<State>,
    service: S,
}

impl<S> hyper::service::Service<Request<Incoming>> for ConnectionService<S>
where
    S: tower::Service<Request<tonic::body::Body>, Response = Response<tonic::body::Body>, Error = Infallible>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send,
{
    type Response = Response<CallBody>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Answer {
        let progress = Progress::new();
        self.state.open_calls.fetch_add(1, Ordering::AcqRel);
        let method = self.front.methods.get(request.uri().path());
        let short = method.as_ref().is_some_and(|method| method.is_short());
        *self.state.handover.lock() = Some(OpenCall { state: self.state.clone(), progress: progress.clone(), short });
        call(self.front.clone(), self.peer.clone(), progress, method, self.service.clone(), request)
    }
}

/// Runs what the protocol engine asks for, with an eye on answers that are not taken: long calls in tasks of their own,
/// short ones in the connection's.
#[derive(Clone)]
struct CallExecutor {
    state: Arc<State>,
    stall: Duration,
    _running: mpsc::Sender<()>,
}

impl<F> hyper::rt::Executor<F> for CallExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        let Some(open) = self.state.handover.lock().take() else {
            let running = self._running.clone();
            tokio::spawn(async move {
                let _running = running;
                task.await;
            });
            return;
        };
        let (short, stall) = (open.short, self.stall);
        if short {
            self.state.taken.lock().push(Box::pin(watched(task, open, stall)));
        } else {
            let running = self._running.clone();
            tokio::spawn(async move {
                let _running = running;
                watched(task, open, stall).await;
            });
        }
    }
}

/// Runs a call and drops its answer, and with it the stream, when the client leaves it for `stall`. The clock runs only
/// while a piece of the answer is in hand: an ordinary call never starts it.
async fn watched(task: impl Future<Output = ()>, open: OpenCall, stall: Duration) {
    let mut task = pin!(task);
    let mut look: Option<Pin<Box<Sleep>>> = None;
    std::future::poll_fn(|cx| {
        if task.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if !open.progress.in_hand() {
            look = None;
            return Poll::Pending;
        }
        let look = look.get_or_insert_with(|| Box::pin(sleep(stall / 4)));
        while look.as_mut().poll(cx).is_ready() {
            if open.progress.stalled() >= stall {
                // Dropping the task resets the stream and frees the answer.
                metrics::counter!(telemetry::STALLED, "what" => "response").increment(1);
                return Poll::Ready(());
            }
            look.set(sleep(stall / 4));
        }
        Poll::Pending
    })
    .await;
}
