//! The floor of a call: a plain tonic server over TLS that answers with as many bytes as it is asked for.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use super::error::BenchError;

/// The method.
pub const PATH: &str = "/bench.Echo/Echo";
/// Larger answers are not asked for.
const MOST: usize = 4 << 20;

/// Messages are `google.protobuf.BytesValue`; the first four bytes of a request say how long the answer is to be.
pub fn request(request_bytes: usize, answer_bytes: usize) -> Bytes {
    // The value's tag and length come before it; an answer of n bytes holds a value of about n - 3.
    let header = |n: usize| if n < 130 { 2 } else { 3 };
    let mut value = vec![b'x'; request_bytes.saturating_sub(header(request_bytes)).max(4)];
    value[..4].copy_from_slice(&(answer_bytes.saturating_sub(header(answer_bytes)) as u32).to_be_bytes());
    super::wire::frame(&Bytes::from(value))
}

#[derive(Clone)]
struct Echo {
    answer: Bytes,
}

impl tonic::server::UnaryService<Bytes> for Echo {
    type Response = Bytes;
    type Future = Ready<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let wanted = request.get_ref().first_chunk::<4>().map_or(0, |n| u32::from_be_bytes(*n) as usize);
        ready(Ok(Response::new(self.answer.slice(..wanted.min(MOST)))))
    }
}

impl tower::Service<http::Request<tonic::body::Body>> for Echo {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let echo = self.clone();
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(tonic_prost::ProstCodec::<Bytes, Bytes>::default());
            Ok(grpc.unary(echo, request).await)
        })
    }
}

impl tonic::server::NamedService for Echo {
    const NAME: &'static str = "bench.Echo";
}

/// Binds, tells the port, and serves for ever.
pub async fn serve(dir: &Path, bound: impl FnOnce(SocketAddr)) -> Result<(), BenchError> {
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).map_err(BenchError::io("certificate"));
    let identity = Identity::from_pem(read("server.pem")?, read("server.key")?);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.map_err(BenchError::io("listen"))?;
    bound(listener.local_addr().map_err(BenchError::io("listen"))?);
    Server::builder()
        .tls_config(ServerTlsConfig::new().identity(identity))
        .map_err(BenchError::other("TLS"))?
        .add_service(Echo { answer: Bytes::from(vec![b'x'; MOST]) })
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)))
        .await
        .map_err(BenchError::other("echo"))
}
