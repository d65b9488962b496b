//! Where the root key comes from.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::keyring::root::aws_kms;

/// Where the root KEK comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "provider", rename_all = "lowercase", deny_unknown_fields)]
pub enum RootKekSource {
    /// A file of mode 0600 with 32 bytes in hex or base64.
    File { path: PathBuf },
    /// A variable with the same text; `<name>_FILE` may name a file instead.
    Env { name: String },
    /// A systemd credential of this name (`LoadCredential=`).
    Credential { name: String },
    /// A passphrase, stretched by Argon2id. Exactly one of the three places.
    Passphrase {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        file: Option<PathBuf>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        env: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        credential: Option<String>,
        /// Name of the public file with salt and cost in the first keeper directory; `passphrase.json` if left out. A
        /// next passphrase needs another one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        params: Option<String>,
    },
    /// A random key that a transit engine encrypts (OpenBao, Vault): decrypted by it at each start.
    Transit {
        /// `https://host:port`; plain `http` on loopback only.
        address: String,
        /// Name of the engine's key; make it first (`bao write -f transit/keys/NAME`).
        key: String,
        /// File of mode 0600 with a token that may `update` `transit/encrypt/NAME` and `transit/decrypt/NAME`.
        token_file: PathBuf,
        #[serde(default = "transit_mount")]
        mount: String,
        /// PEM of the authority of the engine's certificate; https needs it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ca: Option<PathBuf>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        namespace: Option<String>,
        /// Of one request.
        #[serde(default = "transit_timeout")]
        timeout_ms: u64,
        /// How long a start goes on trying.
        #[serde(default = "transit_wait")]
        wait_s: u64,
        /// Hours that the vault serves from memory while the engine does not answer; 0: for ever.
        #[serde(default)]
        outage_h: u32,
        /// Name of the file with the encrypted key in the first keeper directory; a next one needs another name.
        #[serde(default = "transit_file")]
        file: String,
    },
    /// A random key that a hardware security module encrypts over PKCS#11, by a key that it made and does not give away.
    Pkcs11 {
        /// The module's library, an absolute path.
        module: PathBuf,
        /// Label of the token.
        token: String,
        /// Label of the key objects that the vault makes in the token: one for each root key.
        key: String,
        /// File of mode 0600 with the user's PIN. Exactly one of the two places.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pin_file: Option<PathBuf>,
        /// Name of a systemd credential with it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pin_credential: Option<String>,
        /// Of one look at the module.
        #[serde(default = "transit_timeout")]
        timeout_ms: u64,
        /// How long a start goes on trying.
        #[serde(default = "transit_wait")]
        wait_s: u64,
        /// Hours that the vault serves from memory while the module does not answer; 0: for ever.
        #[serde(default)]
        outage_h: u32,
        /// Name of the file with the encrypted key in the first keeper directory; a next one needs another name.
        #[serde(default = "pkcs11_file")]
        file: String,
    },
    /// A random key that AWS KMS encrypts: decrypted by it at each start. Only in a program built with the feature `aws-kms`.
    #[serde(rename = "aws-kms")]
    AwsKms {
        /// Id, ARN or alias (`alias/NAME`) of a symmetric key.
        key: String,
        region: String,
        /// What the encryption context `pii-vault:vault` says; a key policy can require it. Never changed afterwards.
        vault: String,
        /// Another endpoint than the region's; plain `http` on loopback only.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        endpoint: Option<String>,
        /// Of one request.
        #[serde(default = "transit_timeout")]
        timeout_ms: u64,
        /// How long a start goes on trying.
        #[serde(default = "transit_wait")]
        wait_s: u64,
        /// Hours that the vault serves from memory while KMS does not answer; 0: for ever.
        #[serde(default)]
        outage_h: u32,
        /// Name of the file with the encrypted key in the first keeper directory; a next one needs another name.
        #[serde(default = "aws_kms_file")]
        file: String,
    },
    /// A passphrase that a start puts together from k of n shares (`pii-vault keys split`). It waits until enough are there.
    Shares {
        /// Where the holders put their files, `*.share` of mode 0600; best in memory (`/run`).
        directory: PathBuf,
        /// How long a start waits.
        #[serde(default = "shares_wait")]
        wait_s: u64,
        /// As of a passphrase: the same file serves when the passphrase is the same.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        params: Option<String>,
    },
}

fn shares_wait() -> u64 {
    86_400
}
fn transit_mount() -> String {
    "transit".into()
}
fn transit_timeout() -> u64 {
    5_000
}
fn transit_wait() -> u64 {
    60
}
fn aws_kms_file() -> String {
    "aws-kms.json".into()
}
fn transit_file() -> String {
    "transit.json".into()
}
fn pkcs11_file() -> String {
    "pkcs11.json".into()
}

impl RootKekSource {
    /// Whether both would read the same thing. A passphrase is another one by its parameters.
    pub(super) fn same_place(&self, other: &RootKekSource) -> bool {
        match (self, other) {
            (RootKekSource::Passphrase { params: one, .. }, RootKekSource::Passphrase { params: two, .. }) => {
                one == two
            }
            (RootKekSource::Transit { file: one, .. }, RootKekSource::Transit { file: two, .. }) => one == two,
            (RootKekSource::Pkcs11 { file: one, .. }, RootKekSource::Pkcs11 { file: two, .. }) => one == two,
            (RootKekSource::AwsKms { file: one, .. }, RootKekSource::AwsKms { file: two, .. }) => one == two,
            _ => self == other,
        }
    }

    pub(super) fn problem(&self) -> Option<(&'static str, String)> {
        match self {
            RootKekSource::File { path } => secret_file(path).map(|rule| ("root_kek.path", rule)),
            RootKekSource::Env { name } => variable(name).map(|rule| ("root_kek.name", rule)),
            RootKekSource::Credential { name } => credential(name).map(|rule| ("root_kek.name", rule)),
            RootKekSource::Passphrase { file, env, credential: cred, .. } => match (file, env, cred) {
                (Some(path), None, None) => secret_file(path).map(|rule| ("root_kek.file", rule)),
                (None, Some(name), None) => variable(name).map(|rule| ("root_kek.env", rule)),
                (None, None, Some(name)) => credential(name).map(|rule| ("root_kek.credential", rule)),
                _ => Some(("root_kek", "needs exactly one of file, env, credential".into())),
            },
            RootKekSource::Shares { directory, wait_s, .. } => match directory.is_absolute() && *wait_s <= 31_536_000 {
                true => None,
                false => Some(("root_kek.directory", "is an absolute path, wait_s at most a year".into())),
            },
            RootKekSource::AwsKms { .. } if !cfg!(feature = "aws-kms") => {
                Some(("root_kek.provider", format!("is aws-kms, but {}", aws_kms::NOT_BUILT_IN)))
            }
            RootKekSource::AwsKms { key, region, vault, endpoint, timeout_ms, wait_s, .. } => {
                let clear = |endpoint: &str| !endpoint.starts_with("https://") && !aws_kms::is_loopback(endpoint);
                if [key, region, vault].iter().any(|text| text.is_empty() || text.len() > 2_048) {
                    return Some(("root_kek.key", "key, region and vault each say something".into()));
                }
                if endpoint.as_deref().is_some_and(clear) {
                    return Some(("root_kek.endpoint", "is a URL: https://host, or http on loopback".into()));
                }
                if !(10..=600_000).contains(timeout_ms) || *wait_s > 86_400 {
                    return Some(("root_kek.timeout_ms", "is from 10 to 600000, wait_s at most 86400".into()));
                }
                None
            }
            RootKekSource::Transit { address, token_file, timeout_ms, wait_s, .. } => {
                if !address.starts_with("https://") && !address.starts_with("http://") {
                    return Some(("root_kek.address", "is a URL: https://host:port".into()));
                }
                if !(10..=600_000).contains(timeout_ms) || *wait_s > 86_400 {
                    return Some(("root_kek.timeout_ms", "is from 10 to 600000, wait_s at most 86400".into()));
                }
                secret_file(token_file).map(|rule| ("root_kek.token_file", rule))
            }
            RootKekSource::Pkcs11 { module, token, key, pin_file, pin_credential, timeout_ms, wait_s, .. } => {
                if !module.is_absolute() || !module.is_file() {
                    return Some(("root_kek.module", "is the absolute path of the module's library".into()));
                }
                if token.is_empty() || token.len() > 32 || key.is_empty() || key.len() > 64 {
                    return Some(("root_kek.token", "has 1 to 32 bytes, the key's label 1 to 64".into()));
                }
                if !(10..=600_000).contains(timeout_ms) || *wait_s > 86_400 {
                    return Some(("root_kek.timeout_ms", "is from 10 to 600000, wait_s at most 86400".into()));
                }
                pin(pin_file.as_deref(), pin_credential.as_deref()).map(|rule| ("root_kek", rule))
            }
        }
    }
}

/// What is wrong with where a token's PIN is.
pub(super) fn pin(file: Option<&Path>, of_systemd: Option<&str>) -> Option<String> {
    match (file, of_systemd) {
        (Some(path), None) => secret_file(path).map(|rule| format!("pin_file {rule}")),
        (None, Some(name)) => credential(name),
        _ => Some("needs exactly one of pin_file, pin_credential".into()),
    }
}

/// The variable, or its `_FILE` sister, is there.
fn variable(name: &str) -> Option<String> {
    if std::env::var_os(name).is_some() {
        return None;
    }
    match std::env::var_os(format!("{name}_FILE")) {
        Some(path) => secret_file(Path::new(&path)),
        None => Some("the variable is not set, nor the one with _FILE after its name".into()),
    }
}

fn credential(name: &str) -> Option<String> {
    match std::env::var_os("CREDENTIALS_DIRECTORY") {
        // systemd sets modes of its own there.
        Some(dir) if Path::new(&dir).join(name).is_file() => None,
        Some(_) => Some("systemd passed no credential of this name: add LoadCredential= to the unit".into()),
        None => Some("not started by systemd with credentials: add LoadCredential= to the unit".into()),
    }
}

fn secret_file(path: &Path) -> Option<String> {
    match std::fs::metadata(path) {
        Ok(meta) if !meta.is_file() => Some("is not a file".into()),
        // Docker and Kubernetes mount secrets with modes of their own on a file system in memory.
        Ok(meta) if meta.permissions().mode() & 0o077 != 0 && !path.starts_with("/run/secrets") => {
            Some("is readable by others than its owner: chmod 600".into())
        }
        Ok(_) => None,
        Err(error) => Some(format!("cannot be read ({})", error.kind())),
    }
}
