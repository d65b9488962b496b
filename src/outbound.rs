//! One HTTP request of ours to somebody else's server: an engine that guards a key, a keeper of checkpoints. A connection
//! of its own for each, TLS 1.3 only, and no certificate of a public authority is trusted: a file names who signs.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use zeroize::Zeroizing;

/// An answer is a few hundred bytes.
const MOST_ANSWER: usize = 64 << 10;

/// A server that we speak to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outbound {
    /// `https://host:port`, with a path where it has one; plain `http` on loopback only.
    pub address: String,
    /// PEM of the authority of the server's certificate; https needs it.
    pub ca: Option<PathBuf>,
}

/// Why one try did not work, and whether another may. The texts end a sentence that begins with who the server is, and
/// hold nothing that it sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Failed {
    Again(String),
    Refused(String),
}

/// Whether the same request may be answered otherwise later: throttled, too slow, faults of the server.
pub fn passes(status: StatusCode) -> bool {
    matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT) || status.is_server_error()
}

impl Outbound {
    /// Sends one request to `path` behind the address and reads the answer, whatever its status. Has no time limit of its
    /// own.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&'static str, &str)],
        body: Bytes,
    ) -> Result<(StatusCode, Zeroizing<Vec<u8>>), Failed> {
        let again = |e: &dyn std::fmt::Display| Failed::Again(format!("cannot be reached ({e})"));
        let refused = |what: &str| Failed::Refused(what.to_owned());
        let uri: http::Uri = self.address.parse().map_err(|_| refused("has an address that is no URL"))?;
        let host = uri.host().ok_or_else(|| refused("has an address that names no host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let secure = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let stream = TcpStream::connect((host.as_str(), port)).await.map_err(|e| again(&e.kind()))?;
        let loopback = stream.peer_addr().is_ok_and(|peer| peer.ip().is_loopback());
        let base = uri.path_and_query().map_or("", |all| all.as_str()).trim_end_matches('/');
        let target = format!("{base}{path}");
        let mut request = Request::builder().method(method).uri(if target.is_empty() { "/" } else { &target });
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.header("host", format!("{host}:{port}")).body(Full::new(body));
        let request = request.map_err(|_| refused("was given a name or a token with characters that do not fit"))?;
        if secure {
            let name = ServerName::try_from(host).map_err(|_| refused("has a host that is no name"))?;
            let stream = self.tls()?.connect(name, stream).await.map_err(|e| again(&e))?;
            exchange(TokioIo::new(stream), request).await
        } else if loopback {
            exchange(TokioIo::new(stream), request).await
        } else {
            Err(refused("is on another machine and has plain http: use https"))
        }
    }

    fn tls(&self) -> Result<tokio_rustls::TlsConnector, Failed> {
        let refused = |what: &str| Failed::Refused(what.to_owned());
        let ca = self.ca.as_ref().ok_or_else(|| refused("has https and no `ca`: who signs its certificate"))?;
        let mut roots = rustls::RootCertStore::empty();
        let certificates =
            CertificateDer::pem_file_iter(ca).map_err(|_| refused("has a file `ca` that cannot be read"))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|_| refused("has a file `ca` that is not PEM"))?;
            roots.add(certificate).map_err(|_| refused("has a file `ca` with no certificate of an authority"))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            rustls::ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
        let config = config.map_err(|_| refused("cannot be spoken to: TLS 1.3 is not there"))?;
        let config = config.with_root_certificates(roots).with_no_client_auth();
        Ok(tokio_rustls::TlsConnector::from(Arc::new(config)))
    }
}

/// Sends one request over a new connection and reads the answer, which may hold a key.
async fn exchange<IO>(io: IO, request: Request<Full<Bytes>>) -> Result<(StatusCode, Zeroizing<Vec<u8>>), Failed>
where
    IO: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let again = |e: &dyn std::fmt::Display| Failed::Again(format!("broke its answer off ({e})"));
    let (mut sender, connection) = http1::handshake(io).await.map_err(|e| again(&e))?;
    let driven = tokio::spawn(connection);
    let answer = async {
        let answer = sender.send_request(request).await.map_err(|e| again(&e))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MOST_ANSWER).collect().await.map_err(|e| again(&e))?;
        Ok((status, Zeroizing::new(body.to_bytes().to_vec())))
    };
    let answer = answer.await;
    driven.abort();
    answer
}
