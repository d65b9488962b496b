//! A root KEK that a transit engine guards, as OpenBao and Vault speak it over HTTP: a random key, encrypted by the engine
//! when it was made and decrypted by it at each start. The ciphertext lies in a small file beside the keeper; the engine's
//! key never leaves the engine.
//!
//! Each request has a time limit and is tried again where that can help (no connection, too slow, throttled, a fault of the
//! server); what the server refuses is not. No certificate of a public authority is trusted: `ca` names who signs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use data_encoding::BASE64;
use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{RootError, RootProvider, checked, create, destroy_file, off_runtime, private_file};
use crate::crypto::keys::RootKek;
use crate::crypto::random;
use crate::outbound::{self, Failed, Outbound};

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
                Ok(Err(Failed::Refused(what))) => return Err(RootError::Io { what: format!("the engine {what}") }),
                Ok(Err(Failed::Again(what))) => format!("the engine {what}"),
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
        let engine = Outbound { address: self.0.address.clone(), ca: self.0.ca.clone() };
        let path = format!("/v1/{}/{verb}/{}", self.0.mount.trim_matches('/'), self.0.key);
        let mut headers =
            vec![("content-type", "application/json"), ("x-vault-request", "true"), ("x-vault-token", token)];
        headers.extend(self.0.namespace.as_deref().map(|namespace| ("x-vault-namespace", namespace)));
        match engine.send(Method::POST, &path, &headers, Bytes::copy_from_slice(body)).await? {
            (StatusCode::OK, answer) => Ok(answer),
            // Throttled, sealed or standby, faults: those pass.
            (status, _) if outbound::passes(status) => Err(Failed::Again(format!("answers {status}"))),
            (status, _) => Err(Failed::Refused(format!("refuses: {status}"))),
        }
    }
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
