//! A test double of a vault: speaks gRPC over TLS 1.3 on loopback, answers each method with what a test put there, and
//! remembers what it was asked. It decides nothing.

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use pii_vault::grpc::tls::{TlsOptions, TlsState};
use prost::Message;
use std::collections::HashMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tonic::Status;

/// What a method answers: messages, then how the call ends.
pub type Answer = (Vec<Bytes>, Option<Status>);
type Handler = Arc<dyn Fn(&Call) -> Answer + Send + Sync>;

/// One call as it came.
#[derive(Clone)]
pub struct Call {
    pub method: String,
    pub headers: http::HeaderMap,
    pub body: Bytes,
}

impl Call {
    /// The request.
    pub fn request<M: Message + Default>(&self) -> M {
        M::decode(self.body.clone()).expect("the client sends what the method takes")
    }

    /// A header as text; empty when it is not there.
    pub fn header(&self, name: &str) -> String {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_string()
    }
}

/// The double, its certificate, and a home for the program that talks to it.
pub struct Double {
    pub address: String,
    pub home: TempDir,
    handlers: Arc<Mutex<HashMap<String, Handler>>>,
    calls: Arc<Mutex<Vec<Call>>>,
    _runtime: tokio::runtime::Runtime,
}

impl Double {
    /// Starts it on a free port.
    pub fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let path = |name: &str| -> PathBuf { home.path().join(name) };
        let made = rcgen::generate_simple_self_signed(["localhost".to_string(), "127.0.0.1".to_string()]).unwrap();
        std::fs::write(path("ca.pem"), made.cert.pem()).unwrap();
        std::fs::write(path("key.pem"), made.signing_key.serialize_pem()).unwrap();
        std::fs::write(path("access.key"), "pv_test_K_secretsecret_sum\n").unwrap();
        let tls = TlsState::load(TlsOptions {
            certificate: path("ca.pem"),
            private_key: path("key.pem"),
            client_ca: None,
            require_client_certificate: false,
            allow_tls12: false,
        })
        .unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let handlers: Arc<Mutex<HashMap<String, Handler>>> = Arc::default();
        let calls: Arc<Mutex<Vec<Call>>> = Arc::default();
        let shared = (handlers.clone(), calls.clone());
        runtime.spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (handlers, calls) = shared.clone();
                let acceptor = tls.acceptor();
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(tcp).await else { return };
                    let service = hyper::service::service_fn(move |request| {
                        let (handlers, calls) = (handlers.clone(), calls.clone());
                        async move { Ok::<_, Infallible>(serve(request, &handlers, &calls).await) }
                    });
                    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Double { address, home, handlers, calls, _runtime: runtime }
    }

    /// The method answers what the function makes of the call.
    pub fn on(&self, method: &str, handler: impl Fn(&Call) -> Answer + Send + Sync + 'static) {
        self.handlers.lock().unwrap().insert(method.to_string(), Arc::new(handler));
    }

    /// The method answers one message.
    pub fn answers<M: Message>(&self, method: &str, message: M) {
        let bytes = Bytes::from(message.encode_to_vec());
        self.on(method, move |_| (vec![bytes.clone()], None));
    }

    /// The method answers an error.
    pub fn refuses(&self, method: &str, status: Status) {
        self.on(method, move |_| (Vec::new(), Some(status.clone())));
    }

    /// The calls of a method so far.
    pub fn calls(&self, method: &str) -> Vec<Call> {
        self.calls.lock().unwrap().iter().filter(|c| c.method == method).cloned().collect()
    }

    /// The only call of a method.
    pub fn call(&self, method: &str) -> Call {
        let calls = self.calls(method);
        assert_eq!(calls.len(), 1, "calls of {method}");
        calls[0].clone()
    }

    /// The program, with this server and an access key, and nothing of this machine's environment.
    pub fn program(&self) -> assert_cmd::Command {
        let mut command = self.bare();
        command.env("PII_VAULT_SERVER", &self.address);
        command.env("PII_VAULT_CA", self.home.path().join("ca.pem"));
        command.env("PII_VAULT_ACCESS_KEY_FILE", self.home.path().join("access.key"));
        command
    }

    /// The program with an empty home and no settings.
    pub fn bare(&self) -> assert_cmd::Command {
        let mut command = assert_cmd::Command::cargo_bin("pii-vault").unwrap();
        command.env_clear().env("HOME", self.home.path()).current_dir(self.home.path());
        command.timeout(std::time::Duration::from_secs(60));
        command
    }
}

/// A message as `answers` keeps it.
pub fn bytes<M: Message>(message: &M) -> Bytes {
    message.encode_to_vec().into()
}

type Body = StreamBody<futures_util::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

async fn serve(
    request: http::Request<Incoming>,
    handlers: &Mutex<HashMap<String, Handler>>,
    calls: &Mutex<Vec<Call>>,
) -> http::Response<Body> {
    let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_string();
    let headers = request.headers().clone();
    let body = request.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    // Compressed flag and length come first; the client compresses nothing.
    let call = Call { method: method.clone(), headers, body: body.slice(body.len().min(5)..) };
    calls.lock().unwrap().push(call.clone());
    let handler = handlers.lock().unwrap().get(&method).cloned();
    let (messages, end) = match handler {
        Some(handler) => handler(&call),
        None => (Vec::new(), Some(Status::unimplemented(format!("the double has no {method}")))),
    };
    let mut frames: Vec<Result<Frame<Bytes>, Infallible>> = Vec::new();
    for message in messages {
        let mut framed = BytesMut::with_capacity(message.len() + 5);
        framed.put_u8(0);
        framed.put_u32(message.len() as u32);
        framed.put_slice(&message);
        frames.push(Ok(Frame::data(framed.freeze())));
    }
    let mut trailers = http::HeaderMap::new();
    end.unwrap_or_else(|| Status::new(tonic::Code::Ok, "")).add_header(&mut trailers).unwrap();
    frames.push(Ok(Frame::trailers(trailers)));
    let body = StreamBody::new(futures_util::stream::iter(frames));
    http::Response::builder().header("content-type", "application/grpc").body(body).unwrap()
}
