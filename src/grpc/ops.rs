//! The operations port: plain HTTP/1 for the machine's own tools. `/livez` (the process answers), `/readyz` (calls
//! would be served; names what is not ready), `/metrics` (Prometheus text). Nothing here is secret or personal, yet it is
//! on loopback unless asked for by name.

use crate::grpc::listen::ListenError;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::PrometheusHandle;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::{interval, timeout};

/// Connections at a time; the next waits.
const MAX_CONNECTIONS: usize = 32;
/// A connection's whole life.
const MAX_AGE: Duration = Duration::from_secs(60);

/// Before each warning of `/readyz`.
pub const WARNING: &str = "warning: ";

/// Says what keeps the server from serving: words of the program (`store`, `keeper`, `audit`), empty when ready.
pub trait Readiness: Send + Sync + 'static {
    fn not_ready(&self) -> Vec<&'static str>;
    /// What an operator must know although calls are served; a line each.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
}

impl<F: Fn() -> Vec<&'static str> + Send + Sync + 'static> Readiness for F {
    fn not_ready(&self) -> Vec<&'static str> {
        self()
    }
}

/// Serves until `shutdown` becomes true. `metrics` is absent where no recorder was started.
pub async fn serve_ops(
    listener: TcpListener,
    allow_non_loopback: bool,
    readiness: Arc<dyn Readiness>,
    metrics: Option<PrometheusHandle>,
    mut shutdown: watch::Receiver<bool>,
) -> Result<(), ListenError> {
    let addr = listener.local_addr()?;
    if !addr.ip().is_loopback() && !allow_non_loopback {
        return Err(ListenError::OpsExposed { addr });
    }
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut upkeep = interval(Duration::from_secs(5));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = upkeep.tick() => {
                // Histograms keep raw samples until they are folded; without this they grow between two scrapes.
                if let Some(metrics) = &metrics {
                    metrics.run_upkeep();
                }
                continue;
            }
            _ = shutdown.wait_for(|stop| *stop) => return Ok(()),
        };
        let Ok((tcp, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let (readiness, metrics) = (readiness.clone(), metrics.clone());
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let answer = answer(&request, readiness.as_ref(), metrics.as_ref());
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(5))
                .max_buf_size(16 << 10)
                .serve_connection(TokioIo::new(tcp), service);
            let _ = timeout(MAX_AGE, connection).await;
        });
    }
}

/// Asks an operations port, for `pii-vault healthcheck` in an image without other tools. Blocking, at most `limit` a
/// step. Answers the status code and the text.
pub fn probe(addr: SocketAddr, path: &str, limit: Duration) -> std::io::Result<(u16, String)> {
    use std::io::{Error, ErrorKind, Read, Write};
    let mut tcp = std::net::TcpStream::connect_timeout(&addr, limit)?;
    tcp.set_read_timeout(Some(limit))?;
    tcp.set_write_timeout(Some(limit))?;
    tcp.write_all(format!("GET {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    tcp.take(1 << 20).read_to_string(&mut text)?;
    let code = text.strip_prefix("HTTP/1.1 ").and_then(|t| t.get(..3)).and_then(|t| t.parse().ok());
    match (code, text.split_once("\r\n\r\n")) {
        (Some(code), Some((_, body))) => Ok((code, body.to_owned())),
        _ => Err(Error::new(ErrorKind::InvalidData, "not an operations port")),
    }
}

fn answer<B>(
    request: &Request<B>,
    readiness: &dyn Readiness,
    metrics: Option<&PrometheusHandle>,
) -> Response<Full<Bytes>> {
    let (code, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/livez") => (StatusCode::OK, "ok\n".to_string()),
        (&Method::GET | &Method::HEAD, "/readyz") => match readiness.not_ready() {
            missing if missing.is_empty() => {
                let warnings = readiness.warnings().iter().map(|text| format!("{WARNING}{text}\n")).collect::<String>();
                (StatusCode::OK, format!("ok\n{warnings}"))
            }
            missing => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", missing.join(", "))),
        },
        (&Method::GET | &Method::HEAD, "/metrics") => match metrics {
            Some(metrics) => (StatusCode::OK, metrics.render()),
            None => (StatusCode::NOT_FOUND, "no metrics are recorded\n".to_string()),
        },
        (&Method::GET | &Method::HEAD, _) => (StatusCode::NOT_FOUND, "not found\n".to_string()),
        _ => (StatusCode::METHOD_NOT_ALLOWED, "GET only\n".to_string()),
    };
    let mut answer = Response::new(Full::new(text.into()));
    *answer.status_mut() = code;
    let text = header::HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, text);
    answer
}
