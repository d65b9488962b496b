//! A root KEK that a transit engine guards, as OpenBao and Vault speak it over HTTP: a random key, encrypted by the engine
//! when it was made and decrypted by it at each start. The ciphertext lies in a small file beside the keeper; the engine's
//! key never leaves the engine.
//!
//! Each request has a time limit and is tried again where that can help (no connection, too slow, throttled, a fault of the
//! server); what the server refuses is not. No certificate of a public authority is trusted: `ca` names who signs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use data_encoding::BASE64;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use zeroize::Zeroizing;

use super::{RootError, RootProvider, checked, create, destroy_file, off_runtime, private_file};
use crate::crypto::keys::RootKek;
use crate::crypto::random;

/// An answer is a few hundred bytes of JSON.
const MOST_ANSWER: usize = 64 << 10;
const FORMAT: &str = "pii-vault transit root key v1";

/// Where the engine is and how to speak to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransitOptions {
    /// `https://host:port`; plain `http` on loopback only.
    pub address: String,
    /// Path where the engine is mounted, usually `transit`.
    pub mount: String,
    /// Name of the engine's key.
    pub key: String,
    /// File with the token, which only its owner may read; read at each start.
    pub token_file: PathBuf,
    /// PEM of the authority of the server's certificate.
    pub ca: Option<PathBuf>,
    /// Namespace header, where the server has namespaces.
    pub namespace: Option<String>,
    /// Of one request.
    pub timeout: Duration,
    /// How long a start goes on trying an engine that does not answer.
    pub wait: Duration,
    /// The file with the ciphertext.
    pub file: PathBuf,
}

/// A root KEK that a transit engine opens.
pub struct TransitRoot(pub TransitOptions);

/// What lies in the file; no secret without the engine.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    format: String,
    key: String,
    ciphertext: String,
}

#[derive(Serialize)]
struct Plain<'a> {
    plaintext: &'a str,
}
#[derive(Serialize)]
struct Sealed<'a> {
    ciphertext: &'a str,
}
#[derive(Deserialize)]
struct Answer<T> {
    data: T,
}
#[derive(Deserialize)]
struct Encrypted {
    ciphertext: String,
}
#[derive(Deserialize)]
struct Decrypted {
    plaintext: String,
}

/// Why one try did not work, and whether another may.
enum Failed {
    Again(String),
    Refused(String),
}

#[async_trait]
impl RootProvider for TransitRoot {
    fn describe(&self) -> String {
        "transit".into()
    }

    async fn load(&self) -> Result<RootKek, RootError> {
        let path = self.0.file.clone();
        let stored = off_runtime(move || read_stored(&path)).await?;
        if stored.key != self.0.key {
            return Err(RootError::Form { rule: "the stored root key was encrypted by another key of the engine" });
        }
        let body = json(&Sealed { ciphertext: &stored.ciphertext });
        let answer = self.call("decrypt", &body).await?;
        let decrypted: Answer<Decrypted> = serde_json::from_slice(&answer).map_err(|_| garbled())?;
        let text = Zeroizing::new(decrypted.data.plaintext);
        let raw = Zeroizing::new(BASE64.decode(text.as_bytes()).map_err(|_| garbled())?);
        checked(<&[u8; 32]>::try_from(raw.as_slice()).map_err(|_| garbled())?)
    }

    async fn destroy(&self) -> Result<bool, RootError> {
        // Copies of the ciphertext open as long as the engine has its key: it is unused, not destroyed.
        let path = self.0.file.clone();
        off_runtime(move || destroy_file(&path)).await.map(|_| false)
    }
}

impl TransitRoot {
    /// Makes a random root key, lets the engine encrypt it and stores the ciphertext; where there is one already, nothing.
    pub async fn prepare(&self) -> Result<(), RootError> {
        if self.0.file.exists() {
            return Ok(());
        }
        let mut raw = Zeroizing::new([0u8; 32]);
        random::fill(raw.as_mut_slice());
        let text = Zeroizing::new(BASE64.encode(raw.as_slice()));
        let answer = self.call("encrypt", &json(&Plain { plaintext: &text })).await?;
        let encrypted: Answer<Encrypted> = serde_json::from_slice(&answer).map_err(|_| garbled())?;
        let ciphertext = encrypted.data.ciphertext;
        // `vault:v1:...` of both servers.
        if !ciphertext.starts_with("vault:v") || ciphertext.len() > 4_096 {
            return Err(garbled());
        }
        let stored = Stored { format: FORMAT.into(), key: self.0.key.clone(), ciphertext };
        let mut bytes = serde_json::to_vec_pretty(&stored).map_err(|e| RootError::Io { what: e.to_string() })?;
        bytes.push(b'\n');
        let path = self.0.file.clone();
        off_runtime(move || create(&path, &bytes, 0o600)).await
    }

    /// One request to the engine, tried again until `wait` is over.
    async fn call(&self, verb: &str, body: &Zeroizing<Vec<u8>>) -> Result<Zeroizing<Vec<u8>>, RootError> {
        let path = self.0.token_file.clone();
        let token = off_runtime(move || private_file(&path)).await?;
        let token = std::str::from_utf8(&token).map_err(|_| RootError::Form { rule: "a token is text" })?;
        let mut pause = Duration::from_millis(200);
        let begun = tokio::time::Instant::now();
        loop {
            let once = tokio::time::timeout(self.0.timeout, self.once(verb, token.trim(), body)).await;
            let why = match once {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(Failed::Refused(what))) => return Err(RootError::Io { what }),
                Ok(Err(Failed::Again(what))) => what,
                Err(_) => "the engine is too slow".to_owned(),
            };
            if begun.elapsed() + pause > self.0.wait {
                return Err(RootError::Io { what: format!("{why}, tried for {} s", begun.elapsed().as_secs()) });
            }
            tracing::warn!(why, "the transit engine does not answer: trying again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    async fn once(&self, verb: &str, token: &str, body: &[u8]) -> Result<Zeroizing<Vec<u8>>, Failed> {
        let again = |e: &dyn std::fmt::Display| Failed::Again(format!("the engine cannot be reached ({e})"));
        let refused = |what: &str| Failed::Refused(what.to_owned());
        let uri: http::Uri = self.0.address.parse().map_err(|_| refused("the engine's address is no URL"))?;
        let host = uri.host().ok_or_else(|| refused("the engine's address names no host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let secure = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let stream = TcpStream::connect((host.as_str(), port)).await.map_err(|e| again(&e.kind()))?;
        let loopback = stream.peer_addr().is_ok_and(|peer| peer.ip().is_loopback());
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(format!("/v1/{}/{verb}/{}", self.0.mount.trim_matches('/'), self.0.key))
            .header("host", format!("{host}:{port}"))
            .header("content-type", "application/json")
            .header("x-vault-request", "true")
            .header("x-vault-token", token);
        if let Some(namespace) = &self.0.namespace {
            request = request.header("x-vault-namespace", namespace);
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body)));
        let request =
            request.map_err(|_| refused("the token or a name of the engine has characters that do not fit"))?;
        let (status, answer) = if secure {
            let name = ServerName::try_from(host).map_err(|_| refused("the engine's host is no name"))?;
            let stream = self.tls()?.connect(name, stream).await.map_err(|e| again(&e))?;
            exchange(TokioIo::new(stream), request).await?
        } else if loopback {
            exchange(TokioIo::new(stream), request).await?
        } else {
            return Err(refused("plain http to an engine on another machine: the root key would be in clear"));
        };
        match status {
            StatusCode::OK => Ok(answer),
            // Throttled, sealed or standby, faults: those pass.
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
                Err(Failed::Again(format!("the engine answers {status}")))
            }
            status if status.is_server_error() => Err(Failed::Again(format!("the engine answers {status}"))),
            status => Err(Failed::Refused(format!("the engine refuses: {status}"))),
        }
    }

    fn tls(&self) -> Result<tokio_rustls::TlsConnector, Failed> {
        let refused = |what: &str| Failed::Refused(what.to_owned());
        let ca = self.0.ca.as_ref().ok_or_else(|| refused("https needs `ca`: who signs the engine's certificate"))?;
        let mut roots = rustls::RootCertStore::empty();
        let certificates = CertificateDer::pem_file_iter(ca).map_err(|_| refused("`ca` cannot be read"))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|_| refused("`ca` is not PEM"))?;
            roots.add(certificate).map_err(|_| refused("`ca` is no certificate of an authority"))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            rustls::ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
        let config = config.map_err(|_| refused("TLS 1.3 is not there"))?;
        let config = config.with_root_certificates(roots).with_no_client_auth();
        Ok(tokio_rustls::TlsConnector::from(Arc::new(config)))
    }
}

/// Sends one request over a new connection and reads the answer, which may hold the key.
async fn exchange<IO>(io: IO, request: Request<Full<Bytes>>) -> Result<(StatusCode, Zeroizing<Vec<u8>>), Failed>
where
    IO: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let again = |e: &dyn std::fmt::Display| Failed::Again(format!("the engine's answer broke off ({e})"));
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

fn json<T: Serialize>(body: &T) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(serde_json::to_vec(body).expect("a struct of one text"))
}

fn garbled() -> RootError {
    RootError::Io { what: "the engine's answer is not what it says by its interface".into() }
}

fn read_stored(path: &Path) -> Result<Stored, RootError> {
    let bytes = private_file(path)?;
    let form = RootError::Form { rule: "the file of the transit root key is not what the vault wrote" };
    let stored: Stored = serde_json::from_slice(&bytes).map_err(|_| form.clone())?;
    if stored.format == FORMAT { Ok(stored) } else { Err(form) }
}
