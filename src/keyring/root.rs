//! Where the root KEK comes from: a file, the environment, a systemd credential, a passphrase or its shares, a transit
//! engine, a hardware security module, AWS KMS. Never from the data.

pub mod aws_kms;
pub mod pkcs11;
pub mod shares;
pub mod transit;

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization;
use zeroize::Zeroizing;

use crate::crypto::kdf::{Label, derive};
use crate::crypto::keys::RootKek;
use crate::crypto::password::{Argon2Cost, Argon2Memory};
use crate::crypto::random;

/// Why there is no root KEK; no secret and no path in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    #[error("the root key is not there: {what}")]
    Missing { what: String },
    /// Others than the owner may read it.
    #[error("the root key's file has mode {mode:o}, wanted 600 or stricter")]
    Exposed { mode: u32 },
    #[error("the root key has the wrong form: {rule}")]
    Form { rule: &'static str },
    #[error("the root key could not be read: {what}")]
    Io { what: String },
    /// `create` does not overwrite: a root key that is gone is a vault that is gone.
    #[error("there is a file already")]
    Exists,
}

/// A source of the root KEK. A wrong passphrase or file is noticed by the KEK's id, which the keeper's blocks name.
#[async_trait]
pub trait RootProvider: Send + Sync {
    /// The kind only, e.g. `file`; no secret, no path.
    fn describe(&self) -> String;
    /// Reads or derives it; nothing is cached.
    async fn load(&self) -> Result<RootKek, RootError>;
    /// Destroys it where that is in the vault's power: answers whether it did. Only after nothing is under it any more.
    async fn destroy(&self) -> Result<bool, RootError> {
        Ok(false)
    }
}

/// A root KEK that takes the present one's place.
pub struct NextRoot {
    pub kek: RootKek,
    /// Kind of its provider.
    pub provider: &'static str,
}

/// Where root KEKs come from while the vault runs; knows the configuration, which this floor does not.
#[async_trait]
pub trait RootSource: Send + Sync + std::fmt::Debug {
    /// The one that the configuration names as the next, made if it is a file that is not there yet. Reads the
    /// configuration again.
    async fn next(&self) -> Result<NextRoot, RootError>;
    /// Whether the provider of the present one still gives it; nothing for those on this machine.
    async fn check(&self, present: &[u8; 16]) -> Result<(), RootError>;
    /// How long the vault serves from memory while the provider does not give it, in milliseconds; `None`: for ever.
    fn outage_ms(&self, present: &[u8; 16]) -> Option<i64>;
    /// Kind of the provider that a root KEK in memory came from.
    fn provider_of(&self, id: &[u8; 16]) -> Option<&'static str>;
    /// Destroys the key that the present one took the place of, where that is in the vault's power.
    async fn destroy_former(&self, present: &[u8; 16]) -> Result<bool, RootError>;
}

/// Asks a person; never called on a thread of the runtime.
pub type Ask = Arc<dyn Fn() -> io::Result<Zeroizing<String>> + Send + Sync>;

/// Where a passphrase comes from.
#[derive(Clone)]
pub enum PassphraseSource {
    /// First line of a file that only its owner may read.
    File(PathBuf),
    /// Name of an environment variable.
    Env(String),
    /// Name of a systemd credential.
    Credential(String),
    Ask(Ask),
}

impl std::fmt::Debug for PassphraseSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.kind())
    }
}

impl PassphraseSource {
    fn kind(&self) -> &'static str {
        match self {
            PassphraseSource::File(_) => "file",
            PassphraseSource::Env(_) => "environment",
            PassphraseSource::Credential(_) => "credential",
            PassphraseSource::Ask(_) => "terminal",
        }
    }
}

/// Which provider, with where its secret is; not the secret.
#[derive(Debug, Clone)]
pub enum RootSpec {
    /// 32 bytes, or 64 hexadecimal digits, in a file that only its owner may read.
    File { path: PathBuf },
    /// 64 hexadecimal digits in an environment variable.
    Env { name: String },
    /// As in a file, in `$CREDENTIALS_DIRECTORY/name`, which systemd guards.
    Credential { name: String },
    /// Argon2id over a passphrase; `params` is the public file with cost and salt.
    Passphrase { source: PassphraseSource, params: PathBuf },
    /// A random key that a transit engine opens.
    Transit(transit::TransitOptions),
    /// A random key that AWS KMS opens.
    AwsKms(aws_kms::AwsKmsOptions),
    /// Argon2id over a passphrase that is put together from shares.
    Shares(shares::SharesOptions),
    /// A random key that a hardware security module opens.
    Pkcs11(pkcs11::Pkcs11Options),
}

impl RootSpec {
    /// The provider for it.
    pub fn provider(self) -> Box<dyn RootProvider> {
        match self {
            RootSpec::File { path } => Box::new(FileRoot(path)),
            RootSpec::Env { name } => Box::new(EnvRoot(name)),
            RootSpec::Credential { name } => Box::new(CredentialRoot(name)),
            RootSpec::Passphrase { source, params } => Box::new(PassphraseRoot { source, params }),
            RootSpec::Transit(options) => Box::new(transit::TransitRoot(options)),
            RootSpec::AwsKms(options) => Box::new(aws_kms::AwsKmsRoot(options)),
            RootSpec::Shares(options) => Box::new(shares::SharesRoot(options)),
            RootSpec::Pkcs11(options) => Box::new(pkcs11::Pkcs11Root(options)),
        }
    }
}

/// A file with the key.
pub struct FileRoot(pub PathBuf);
/// An environment variable with the key.
pub struct EnvRoot(pub String);
/// A systemd credential with the key.
pub struct CredentialRoot(pub String);
/// A passphrase and its public parameters.
pub struct PassphraseRoot {
    pub source: PassphraseSource,
    pub params: PathBuf,
}

#[async_trait]
impl RootProvider for FileRoot {
    fn describe(&self) -> String {
        "file".into()
    }
    async fn load(&self) -> Result<RootKek, RootError> {
        let path = self.0.clone();
        off_runtime(move || key(&private_file(&path)?)).await
    }
    async fn destroy(&self) -> Result<bool, RootError> {
        let path = self.0.clone();
        off_runtime(move || destroy_file(&path)).await
    }
}

#[async_trait]
impl RootProvider for EnvRoot {
    fn describe(&self) -> String {
        "environment".into()
    }
    async fn load(&self) -> Result<RootKek, RootError> {
        hex_key(variable(&self.0)?.as_bytes())
    }
}

#[async_trait]
impl RootProvider for CredentialRoot {
    fn describe(&self) -> String {
        "credential".into()
    }
    async fn load(&self) -> Result<RootKek, RootError> {
        let (directory, name) = (std::env::var_os("CREDENTIALS_DIRECTORY"), self.0.clone());
        off_runtime(move || key(&credential(directory, &name)?)).await
    }
}

#[async_trait]
impl RootProvider for PassphraseRoot {
    fn describe(&self) -> String {
        format!("passphrase from {}", self.source.kind())
    }
    async fn load(&self) -> Result<RootKek, RootError> {
        let (source, params) = (self.source.clone(), self.params.clone());
        off_runtime(move || {
            let params = PassphraseParams::read(&params)?;
            let secret = match source {
                PassphraseSource::File(path) => private_file(&path)?,
                PassphraseSource::Env(name) => Zeroizing::new(variable(&name)?.as_bytes().to_vec()),
                PassphraseSource::Credential(name) => credential(std::env::var_os("CREDENTIALS_DIRECTORY"), &name)?,
                PassphraseSource::Ask(ask) => Zeroizing::new(ask().map_err(read_error)?.as_bytes().to_vec()),
            };
            params.kek(&secret)
        })
        .await
    }
}

/// Cost and salt of a passphrase's stretching; public, as JSON. Losing the file loses the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PassphraseParams {
    format: String,
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    /// 16 bytes, hexadecimal.
    salt: String,
}

impl PassphraseParams {
    const FORMAT: &str = "pii-vault passphrase v1";
    /// 256 MiB and 3 passes: about half a second, once a start, against guessing a passphrase offline.
    pub const COST: Argon2Cost = Argon2Cost { memory_kib: 256 * 1024, passes: 3, lanes: 1 };
    /// More than this a planted file could only ask for to exhaust the machine.
    const MAX_KIB: u32 = 4 * 1024 * 1024;

    /// A fresh salt.
    pub fn generate(cost: Argon2Cost) -> Self {
        PassphraseParams {
            format: Self::FORMAT.into(),
            memory_kib: cost.memory_kib,
            passes: cost.passes,
            lanes: cost.lanes,
            salt: HEXLOWER.encode(&random::bytes::<16>()),
        }
    }

    /// Writes a new file, durably; never over another.
    pub fn create(&self, path: &Path) -> Result<(), RootError> {
        let mut text = serde_json::to_vec_pretty(self).map_err(|e| RootError::Io { what: e.to_string() })?;
        text.push(b'\n');
        create(path, &text, 0o644)
    }

    /// Reads a file that `create` wrote.
    pub fn read(path: &Path) -> Result<Self, RootError> {
        let bytes = File::open(path).and_then(|file| at_most(&file)).map_err(read_error)?;
        let form = RootError::Form { rule: "the parameters of the passphrase are not what init wrote" };
        let params: PassphraseParams = serde_json::from_slice(&bytes).map_err(|_| form.clone())?;
        let salt = HEXLOWER.decode(params.salt.as_bytes()).map_err(|_| form.clone())?;
        if params.format != Self::FORMAT || salt.len() != 16 || params.memory_kib > Self::MAX_KIB {
            return Err(form);
        }
        Ok(params)
    }

    /// HKDF(Argon2id(NFC of the passphrase, salt)). One line end after the passphrase does not count. Blocking.
    pub fn kek(&self, passphrase: &[u8]) -> Result<RootKek, RootError> {
        let text =
            std::str::from_utf8(passphrase).map_err(|_| RootError::Form { rule: "a passphrase is UTF-8 text" })?;
        let text = text.strip_suffix('\n').unwrap_or(text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        if text.is_empty() {
            return Err(RootError::Form { rule: "a passphrase is not empty" });
        }
        // NFC makes UTF-8 at most three times as long (UAX #15), so that the buffer is not moved while it is filled.
        let mut normal = Zeroizing::new(String::with_capacity(text.len() * 3));
        normal.extend(text.nfc());
        let salt = HEXLOWER
            .decode(self.salt.as_bytes())
            .map_err(|_| RootError::Form { rule: "the salt of the passphrase is not hexadecimal" })?;
        let cost = Argon2Cost { memory_kib: self.memory_kib, passes: self.passes, lanes: self.lanes };
        let stretched = Argon2Memory::new(self.memory_kib)
            .derive(cost, normal.as_bytes(), &salt)
            .map_err(|_| RootError::Form { rule: "the cost of the passphrase is outside the limits of Argon2" })?;
        Ok(RootKek::from_bytes(&derive::<32>(&[stretched.as_slice()], Label::PassphraseKek, &[])))
    }
}

/// Writes a fresh random key as 64 hexadecimal digits into a new file of mode 600, durably; never over another.
pub fn create_key_file(path: &Path) -> Result<(), RootError> {
    let mut bytes = Zeroizing::new([0u8; 32]);
    random::fill(bytes.as_mut_slice());
    let mut text = Zeroizing::new([0u8; 65]);
    HEXLOWER.encode_mut(bytes.as_slice(), &mut text[..64]);
    text[64] = b'\n';
    create(path, text.as_slice(), 0o600)
}

fn create(path: &Path, bytes: &[u8], mode: u32) -> Result<(), RootError> {
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => RootError::Exists,
            _ => read_error(e),
        })?;
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| File::open(parent)?.sync_all())
        .map_err(read_error)
}

/// Overwrites a key's file in place, then removes it. One that is gone already is as good.
fn destroy_file(path: &Path) -> Result<bool, RootError> {
    let mut file = match OpenOptions::new().write(true).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(e) => return Err(read_error(e)),
    };
    let length = file.metadata().map_err(read_error)?.len().min(MOST as u64) as usize;
    let mut noise = Zeroizing::new(vec![0u8; length]);
    random::fill(&mut noise);
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    file.write_all(&noise)
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::remove_file(path))
        .and_then(|()| File::open(parent)?.sync_all())
        .map_err(read_error)?;
    Ok(true)
}

async fn off_runtime<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RootError> + Send + 'static,
) -> Result<T, RootError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(RootError::Io { what: "interrupted".into() }),
    }
}

fn read_error(e: io::Error) -> RootError {
    match e.kind() {
        io::ErrorKind::NotFound => RootError::Missing { what: "no such file".into() },
        _ => RootError::Io { what: e.to_string() },
    }
}

/// Larger than any key or passphrase.
const MOST: usize = 4096;

fn at_most(file: &File) -> io::Result<Zeroizing<Vec<u8>>> {
    // Capacity for all, so that no copy of a secret is left behind by growing.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MOST + 1));
    file.take(MOST as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MOST { Err(io::Error::other("larger than 4096 bytes")) } else { Ok(bytes) }
}

/// A file that only its owner may read. Its mode is asked of the opened file, so that it cannot change in between.
fn private_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, RootError> {
    let file = File::open(path).map_err(read_error)?;
    let mode = file.metadata().map_err(read_error)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(RootError::Exposed { mode });
    }
    at_most(&file).map_err(read_error)
}

fn variable(name: &str) -> Result<Zeroizing<String>, RootError> {
    match std::env::var(name) {
        Ok(value) => Ok(Zeroizing::new(value)),
        Err(std::env::VarError::NotPresent) => {
            Err(RootError::Missing { what: "the environment variable is not set".into() })
        }
        Err(std::env::VarError::NotUnicode(_)) => Err(RootError::Form { rule: "the variable is not UTF-8 text" }),
    }
}

/// systemd itself guards the directory; modes there show an access list, not who may read.
fn credential(directory: Option<OsString>, name: &str) -> Result<Zeroizing<Vec<u8>>, RootError> {
    let directory = directory
        .ok_or_else(|| RootError::Missing { what: "systemd gave no CREDENTIALS_DIRECTORY to this service".into() })?;
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(RootError::Form { rule: "the name of a credential is a plain file name" });
    }
    File::open(Path::new(&directory).join(name)).and_then(|file| at_most(&file)).map_err(read_error)
}

fn key(bytes: &[u8]) -> Result<RootKek, RootError> {
    match <&[u8; 32]>::try_from(bytes) {
        Ok(raw) => checked(raw),
        Err(_) => hex_key(bytes),
    }
}

fn hex_key(text: &[u8]) -> Result<RootKek, RootError> {
    let form = RootError::Form { rule: "wanted 32 bytes, or 64 hexadecimal digits and at most a line end" };
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    let mut raw = Zeroizing::new([0u8; 32]);
    if text.len() != 64 || HEXLOWER_PERMISSIVE.decode_mut(text, raw.as_mut_slice()).is_err() {
        return Err(form);
    }
    checked(&raw)
}

fn checked(raw: &[u8; 32]) -> Result<RootKek, RootError> {
    if raw.iter().all(|b| *b == raw[0]) {
        return Err(RootError::Form { rule: "all bytes are the same: a placeholder, not a key" });
    }
    Ok(RootKek::from_bytes(raw))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const CHEAP: Argon2Cost = Argon2Cost { memory_kib: 64, passes: 1, lanes: 1 };

    fn load(spec: RootSpec) -> Result<[u8; 16], RootError> {
        let provider = spec.provider();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(provider.load()).map(|kek| kek.id())
    }

    fn write(path: &Path, bytes: &[u8], mode: u32) {
        fs::write(path, bytes).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn rule(result: Result<[u8; 16], RootError>) -> bool {
        matches!(result, Err(RootError::Form { .. }))
    }

    #[test]
    fn a_file_holds_32_bytes_or_64_digits_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let file = || load(RootSpec::File { path: path.clone() });
        assert!(matches!(file(), Err(RootError::Missing { .. })));
        let raw: Vec<u8> = (1..33).collect();
        let id = RootKek::from_bytes(raw.as_slice().try_into().unwrap()).id();
        let hex = HEXLOWER.encode(&raw);
        for text in
            [raw.clone(), hex.clone().into(), format!("{hex}\n").into(), format!("{hex}\r\n").to_uppercase().into()]
        {
            write(&path, &text, 0o600);
            assert_eq!(file(), Ok(id));
        }
        for mode in [0o640, 0o604, 0o660, 0o644, 0o610] {
            write(&path, &raw, mode);
            assert_eq!(file(), Err(RootError::Exposed { mode }));
        }
        let mut with_end = raw.clone();
        with_end.push(b'\n');
        for bad in [&raw[..31], &with_end, b"", &hex.as_bytes()[..63], &[b'g'; 64], &[0; 32], &[7; 32], &[b'0'; 64]] {
            write(&path, bad, 0o600);
            assert!(rule(file()), "{} bytes", bad.len());
        }
        write(&path, &vec![b'a'; MOST + 1], 0o600);
        assert!(matches!(file(), Err(RootError::Io { .. })));
    }

    #[test]
    fn a_fresh_key_file_is_private_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        create_key_file(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let id = load(RootSpec::File { path: path.clone() }).unwrap();
        assert_eq!(create_key_file(&path), Err(RootError::Exists));
        assert_eq!(load(RootSpec::File { path }), Ok(id));
    }

    #[test]
    fn the_environment_is_read_and_checked() {
        let unset = load(RootSpec::Env { name: "PII_VAULT_NO_SUCH_VARIABLE".into() });
        assert!(matches!(unset, Err(RootError::Missing { .. })));
        assert!(rule(load(RootSpec::Env { name: "PATH".into() })));
        assert!(hex_key("0123456789abcdef".repeat(4).as_bytes()).is_ok());
        assert!(hex_key(&(1..33).collect::<Vec<u8>>()).is_err()); // raw bytes are for files
    }

    #[test]
    fn a_credential_lies_in_the_directory_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("kek"), "0123456789abcdef".repeat(4)).unwrap();
        let directory = || Some(dir.path().as_os_str().to_owned());
        assert!(key(&credential(directory(), "kek").unwrap()).is_ok());
        for name in ["", "..", "a/b", "/etc/passwd", ".kek"] {
            assert!(matches!(credential(directory(), name), Err(RootError::Form { .. })), "{name}");
        }
        assert!(matches!(credential(directory(), "none"), Err(RootError::Missing { .. })));
        assert!(matches!(credential(None, "kek"), Err(RootError::Missing { .. })));
    }

    #[test]
    fn another_passphrase_or_salt_is_another_key() {
        let dir = tempfile::tempdir().unwrap();
        let (secret, params) = (dir.path().join("passphrase"), dir.path().join("params"));
        let spec = |source| RootSpec::Passphrase { source, params: params.clone() };
        let typed = |text: &'static str| {
            load(spec(PassphraseSource::Ask(Arc::new(move || Ok(Zeroizing::new(text.to_owned()))))))
        };
        assert!(matches!(typed("x"), Err(RootError::Missing { .. })));
        let made = PassphraseParams::generate(CHEAP);
        made.create(&params).unwrap();
        assert_eq!(made.create(&params), Err(RootError::Exists));
        let id = typed("correct horse é").unwrap();
        assert_ne!(typed("correct horse e").unwrap(), id);
        assert_eq!(typed("correct horse e\u{301}").unwrap(), id); // typed on another keyboard
        write(&secret, "correct horse é\n".as_bytes(), 0o600);
        assert_eq!(load(spec(PassphraseSource::File(secret.clone()))), Ok(id));
        write(&secret, "correct horse é\n".as_bytes(), 0o640);
        assert_eq!(load(spec(PassphraseSource::File(secret))), Err(RootError::Exposed { mode: 0o640 }));
        assert!(rule(typed("\n")));
        let other = PassphraseParams::generate(CHEAP);
        assert_ne!(other.kek("correct horse é".as_bytes()).unwrap().id(), id);
    }

    #[test]
    fn planted_parameters_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("params");
        let good = serde_json::to_value(PassphraseParams::generate(CHEAP)).unwrap();
        for (key, value) in [
            ("memory_kib", serde_json::json!(u32::MAX)),
            ("salt", serde_json::json!("00")),
            ("salt", serde_json::json!("zz")),
            ("format", serde_json::json!("v0")),
            ("more", serde_json::json!(1)),
        ] {
            let mut bad = good.clone();
            bad[key] = value;
            fs::write(&path, bad.to_string()).unwrap();
            assert!(matches!(PassphraseParams::read(&path), Err(RootError::Form { .. })), "{key}");
        }
        let passes = PassphraseParams { passes: 1000, ..PassphraseParams::generate(CHEAP) };
        assert!(matches!(passes.kek(b"x"), Err(RootError::Form { .. })));
    }

    #[test]
    fn descriptions_tell_the_kind_alone() {
        let spec = RootSpec::Passphrase {
            source: PassphraseSource::File("/secret/place".into()),
            params: "/other/place".into(),
        };
        assert_eq!(spec.provider().describe(), "passphrase from file");
        assert_eq!(RootSpec::File { path: "/secret/place".into() }.provider().describe(), "file");
    }
}
