//! A root KEK that a hardware security module guards over PKCS#11: a random key, encrypted with AES-256-GCM by a key that
//! was made in the module and never leaves it. The ciphertext lies in a small file beside the keeper. Each root KEK has a
//! key object of its own, so that destroying the object destroys that root KEK.
//!
//! Each look at the module has a time limit and is tried again where that can help (no token, no session free, a fault of
//! the device); what the module refuses is not, least of all a PIN.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::{RootError, RootProvider, checked, create, credential, destroy_file, private_file};
use crate::crypto::keys::RootKek;
use crate::crypto::random;
use crate::keyring::token::{NONCE, Token, TokenError, TokenOptions};

const FORMAT: &str = "pii-vault pkcs11 root key v1";

/// Which token and key, and where the rest is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pkcs11Options {
    pub token: TokenOptions,
    pub pin: PinSource,
    /// Label of the key objects.
    pub key: String,
    /// Of one look at the module.
    pub timeout: Duration,
    /// How long a start goes on trying a module that does not answer.
    pub wait: Duration,
    /// The file with the ciphertext.
    pub file: PathBuf,
}

/// Where the user's PIN is; read for each use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PinSource {
    /// A file that only its owner may read; a line end after the PIN does not count.
    File(PathBuf),
    /// Name of a systemd credential.
    Credential(String),
}

impl PinSource {
    /// Reads it. Blocking.
    pub fn read(&self) -> Result<Zeroizing<Vec<u8>>, RootError> {
        match self {
            PinSource::File(path) => private_file(path),
            PinSource::Credential(name) => credential(std::env::var_os("CREDENTIALS_DIRECTORY"), name),
        }
    }
}

/// A root KEK that a module opens.
pub struct Pkcs11Root(pub Pkcs11Options);

/// What lies in the file; no secret without the module.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    format: String,
    /// CKA_ID of the key object, hexadecimal.
    object: String,
    /// 12 bytes, hexadecimal.
    nonce: String,
    /// Hexadecimal, with the tag.
    ciphertext: String,
}

/// Why one look did not work, and whether another may.
enum Failed {
    Again(RootError),
    Refused(RootError),
}

impl From<RootError> for Failed {
    fn from(error: RootError) -> Self {
        Failed::Refused(error)
    }
}

impl From<TokenError> for Failed {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Away { what } => Failed::Again(RootError::Io { what }),
            TokenError::Refused { what } => Failed::Refused(RootError::Io { what }),
        }
    }
}

#[async_trait]
impl RootProvider for Pkcs11Root {
    fn describe(&self) -> String {
        "pkcs11".into()
    }

    async fn load(&self) -> Result<RootKek, RootError> {
        self.patient(open).await
    }

    async fn destroy(&self) -> Result<bool, RootError> {
        self.patient(wipe).await
    }
}

impl Pkcs11Root {
    /// Makes a key object in the module and a root key under it; where the file is there already, nothing.
    pub async fn prepare(&self) -> Result<(), RootError> {
        self.patient(make).await
    }

    /// Looks at the module, again until `wait` is over where that can help. A module that does not return is left alone on
    /// a thread that nothing waits for.
    async fn patient<T: Send + 'static>(&self, look: fn(&Pkcs11Options) -> Result<T, Failed>) -> Result<T, RootError> {
        let begun = tokio::time::Instant::now();
        let mut pause = Duration::from_millis(200);
        loop {
            let (answer, looked) = oneshot::channel();
            let options = self.0.clone();
            std::thread::Builder::new()
                .name("token".into())
                // Who no longer waits does not need the answer.
                .spawn(move || drop(answer.send(look(&options))))
                .map_err(|e| RootError::Io { what: e.to_string() })?;
            let error = match tokio::time::timeout(self.0.timeout, looked).await {
                Ok(Ok(Ok(found))) => return Ok(found),
                Ok(Ok(Err(Failed::Refused(error)))) => return Err(error),
                Ok(Ok(Err(Failed::Again(error)))) => error,
                Ok(Err(_)) => return Err(RootError::Io { what: "interrupted".into() }),
                Err(_) => RootError::Io { what: "the module is too slow".into() },
            };
            if begun.elapsed() + pause > self.0.wait {
                return Err(error);
            }
            tracing::warn!(%error, "the PKCS#11 module does not give the root key: trying again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }
}

/// The same as bytes.
struct Sealed {
    object: Vec<u8>,
    nonce: [u8; NONCE],
    ciphertext: Vec<u8>,
}

fn stored(options: &Pkcs11Options) -> Result<Sealed, RootError> {
    let form = RootError::Form { rule: "the file of the PKCS#11 root key is not what the vault wrote" };
    let bytes = private_file(&options.file)?;
    let stored: Stored = serde_json::from_slice(&bytes).map_err(|_| form.clone())?;
    let hex = |text: &str| HEXLOWER.decode(text.as_bytes()).map_err(|_| form.clone());
    let nonce = hex(&stored.nonce)?.try_into().map_err(|_| form.clone())?;
    let (object, ciphertext) = (hex(&stored.object)?, hex(&stored.ciphertext)?);
    if stored.format == FORMAT { Ok(Sealed { object, nonce, ciphertext }) } else { Err(form) }
}

fn session(options: &Pkcs11Options) -> Result<Token, Failed> {
    Ok(Token::open(&options.token, &options.pin.read()?, options.timeout)?)
}

fn open(options: &Pkcs11Options) -> Result<RootKek, Failed> {
    let Sealed { object, nonce, ciphertext } = stored(options)?;
    let token = session(options)?;
    let gone = || RootError::Missing { what: "its key object is not in the token any more".into() };
    let key = token.find(&options.key, &object)?.ok_or_else(gone)?;
    token.guarded(key)?;
    let raw = token.unseal(key, nonce, FORMAT.as_bytes(), &ciphertext)?;
    let raw = <&[u8; 32]>::try_from(raw.as_slice()).map_err(|_| RootError::Form { rule: "a root key has 32 bytes" })?;
    Ok(checked(raw)?)
}

fn make(options: &Pkcs11Options) -> Result<(), Failed> {
    if options.file.exists() {
        return Ok(());
    }
    let token = session(options)?;
    let id = random::bytes::<16>();
    let key = token.make(&options.key, &id)?;
    let mut raw = Zeroizing::new([0u8; 32]);
    random::fill(raw.as_mut_slice());
    let nonce = random::bytes::<NONCE>();
    let sealed = token.seal(key, nonce, FORMAT.as_bytes(), raw.as_slice())?;
    let hex = |bytes: &[u8]| HEXLOWER.encode(bytes);
    let stored = Stored { format: FORMAT.into(), object: hex(&id), nonce: hex(&nonce), ciphertext: hex(&sealed) };
    let mut bytes = serde_json::to_vec_pretty(&stored).map_err(|e| RootError::Io { what: e.to_string() })?;
    bytes.push(b'\n');
    match create(&options.file, &bytes, 0o600) {
        // An earlier look that was too slow has made one after all: this key is nobody's.
        Err(RootError::Exists) => Ok(token.destroy(key)?),
        created => Ok(created?),
    }
}

/// Destroys the key object, looks that it is gone, and removes the file.
fn wipe(options: &Pkcs11Options) -> Result<bool, Failed> {
    let Sealed { object, .. } = match stored(options) {
        Err(RootError::Missing { .. }) => return Ok(true),
        stored => stored?,
    };
    let token = session(options)?;
    if let Some(key) = token.find(&options.key, &object)? {
        token.destroy(key)?;
    }
    let left = token.find(&options.key, &object)?.is_some();
    Ok(!left && destroy_file(&options.file)?)
}
