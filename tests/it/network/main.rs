//! The shipped listener against clients that do not play fair, over loopback: T30 to T34 and T36 of the security rules,
//! and the deadlines. The hostile side writes raw HTTP/2 frames; the honest side is an ordinary gRPC client.

mod floods;
mod frames;
mod limits;
mod slow;
mod tls;
mod whole;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use pii_vault::grpc::call::{CallInfo, MethodTable};
use pii_vault::grpc::limits::NetworkOptions;
use pii_vault::grpc::listen::{ListenError, Security, serve};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const CHECK: &str = "/grpc.health.v1.Health/Check";
const WATCH: &str = "/grpc.health.v1.Health/Watch";
const PLAIN: Security = Security::Plaintext { allow_non_loopback: false };

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
        take_turn();
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
    slow_and_telling(ms, Arc::default())
}

/// The same; tells when a call has come.
fn slow_and_telling(
    ms: u64,
    come: Arc<Notify>,
) -> impl tower::Service<
    Request<tonic::body::Body>,
    Response = Response<tonic::body::Body>,
    Error = Infallible,
    Future: Send,
> + Clone
+ Send
+ Sync
+ 'static {
    tower::service_fn(move |request: Request<tonic::body::Body>| {
        let come = come.clone();
        async move {
            let info = request.extensions().get::<CallInfo>().expect("the transport gives every call its facts");
            assert!(info.peer.addr.ip().is_loopback() && info.method == CHECK);
            come.notify_one();
            sleep(Duration::from_millis(ms)).await;
            Ok(tonic::Status::ok("").into_http())
        }
    })
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
