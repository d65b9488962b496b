//! The server's configuration: a TOML file, over it the environment (`PII_VAULT_…`), over it flags. It says *where* a
//! secret is, never the secret. An unknown key is an error with its line. Nothing here starts anything: each part gets
//! its own options from the values below.

use crate::causes::causes;
use crate::grpc::limits::NetworkOptions;
use crate::grpc::tls::{TlsOptions, TlsState};
use crate::jobs::JobsOptions;
use crate::recovery::backups::BackupOptions;
use crate::recovery::layout;
use crate::telemetry::{LogFormat, parse_level};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;
use toml::{Table, Value};

/// Prefix of environment variables: `PII_VAULT_LIMITS__MAX_CALLS` is `max_calls` in `[limits]`.
pub const ENV_PREFIX: &str = "PII_VAULT_";

/// Variables with the prefix that are not keys of the configuration: the file's place, what the command line client
/// reads, and secrets that `root_kek` may point to.
const OTHER_VARIABLES: &[&str] = &[
    "PII_VAULT_CONFIG",
    "PII_VAULT_SERVER",
    "PII_VAULT_CA",
    "PII_VAULT_ACCESS_KEY",
    "PII_VAULT_ACCESS_KEY_FILE",
    "PII_VAULT_ROOT_KEK",
    "PII_VAULT_ROOT_KEK_FILE",
    "PII_VAULT_PASSPHRASE",
    "PII_VAULT_PASSPHRASE_FILE",
];
/// Likewise by their beginning.
const OTHER_PREFIXES: &[&str] = &["PII_VAULT_CLI_", "PII_VAULT_TEST_"];

/// The whole configuration. Every key has a default except where the data, the keeper and the root KEK are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How much is refused rather than reported.
    pub profile: Profile,
    /// Where this server's data may lie, for tenants that are pinned to a region; free text, compared exactly.
    pub region: String,
    /// Whose machine the data lies on, for the honesty report.
    pub storage_host: String,
    /// Database, read audit and local archives.
    pub data_dir: PathBuf,
    pub keeper: KeeperConfig,
    pub root_kek: Option<RootKekSource>,
    /// The root KEK that `keys rotate root` goes over to, online; take it into `root_kek` afterwards. Read again when it
    /// is asked for.
    pub root_kek_next: Option<RootKekSource>,
    pub listen: ListenConfig,
    /// Absent: plain text, on loopback only.
    pub tls: Option<TlsConfig>,
    pub ops: OpsConfig,
    pub limits: LimitsConfig,
    pub argon2: Argon2Config,
    pub passwords: PasswordsConfig,
    pub cache: CacheConfig,
    pub storage: StorageConfig,
    pub audit: AuditConfig,
    pub jobs: JobsConfig,
    pub rotation: RotationConfig,
    pub backup: BackupConfig,
    pub log: LogConfig,
    pub development: DevelopmentConfig,
    #[serde(skip)]
    pub origin: Origin,
}

/// `strict` refuses what `default` only reports: one keeper replica, archives beside the data, plain text, reflection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    Default,
    Strict,
}

/// The small erasable store of tenant roots.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeeperConfig {
    /// Directories of 1 to 3 replicas, on different disks; not under `data_dir`.
    pub paths: Vec<PathBuf>,
}

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
fn transit_file() -> String {
    "transit.json".into()
}

/// How a configuration was read, to read it again. Two configurations are equal wherever they come from.
#[derive(Debug, Clone, Default)]
pub struct Origin(Option<Sources>);

/// The file and the flags; the environment is the process's own.
#[derive(Debug, Clone)]
struct Sources {
    file: Option<PathBuf>,
    flags: Vec<Flag>,
}

impl PartialEq for Origin {
    fn eq(&self, _: &Origin) -> bool {
        true
    }
}
impl Eq for Origin {}

/// The gRPC port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ListenConfig {
    pub address: SocketAddr,
    /// Personal data in clear on the network. Only behind a proxy of your own that does TLS.
    pub allow_plaintext_non_loopback: bool,
}

/// Certificates; read again at SIGHUP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// PEM chain, leaf first.
    pub certificate: PathBuf,
    /// PEM key.
    pub private_key: PathBuf,
    /// PEM of the authorities of client certificates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<PathBuf>,
    #[serde(default)]
    pub require_client_certificate: bool,
    /// `1.3`, or `1.2` to accept both.
    #[serde(default)]
    pub minimum_version: TlsVersion,
}

/// The oldest version that is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum TlsVersion {
    #[serde(rename = "1.2")]
    V12,
    #[default]
    #[serde(rename = "1.3")]
    V13,
}

/// The operations port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OpsConfig {
    pub enabled: bool,
    pub address: SocketAddr,
    pub allow_non_loopback: bool,
}

/// What an operator may change of the network's limits; the others are constants of `grpc::limits`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    pub max_connections: usize,
    pub max_connections_per_peer: usize,
    pub max_calls: usize,
    pub max_streams: usize,
    /// Bytes of large requests in memory, MiB.
    pub max_request_mib: usize,
    /// Seconds, as all that follow.
    pub max_call_s: u64,
    pub body_idle_s: u64,
    pub stream_idle_s: u64,
    pub response_stall_s: u64,
    pub connection_idle_s: u64,
    pub connection_age_s: u64,
    pub drain_s: u64,
    pub keepalive_s: u64,
}

/// Cost and admission of Argon2id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Argon2Config {
    /// Memory of one run, KiB; times `concurrency` it is held all the time.
    pub memory_kib: u32,
    pub iterations: u32,
    pub parallelism: u32,
    /// Runs at a time; 0: one less than there are cores, at least 1.
    pub concurrency: usize,
    /// Runs that may wait.
    pub queue: usize,
    /// Longest wait before `RESOURCE_EXHAUSTED`, milliseconds.
    pub max_wait_ms: u64,
}

/// Cost and admission of Argon2id for the passwords of tenants' users: a pool apart from that of access keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PasswordsConfig {
    /// Memory of one run, KiB, at least 19,456; times `concurrency` it is held all the time.
    pub memory_kib: u32,
    /// At least 2.
    pub iterations: u32,
    pub parallelism: u32,
    /// Runs at a time; 0: one less than there are cores, at least 1.
    pub concurrency: usize,
    /// Checks that may wait.
    pub queue: usize,
    /// Longest wait before `RESOURCE_EXHAUSTED`, milliseconds.
    pub max_wait_ms: u64,
    /// Most memory that an imported hash may ask for, KiB; times `concurrency` no more is ever taken.
    pub import_memory_kib: u32,
}

/// Bounds of the caches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {
    /// Data keys in memory, in locked pages where the system allows.
    pub data_keys: usize,
    /// Inner nodes of key trees.
    pub tree_nodes: usize,
    /// Ciphertext of subjects, MiB. No plaintext is ever cached.
    pub ciphertext_mib: usize,
    /// Access keys that were verified, and for how long, seconds.
    pub access_keys: usize,
    pub access_key_s: u64,
}

/// SQLite.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StorageConfig {
    /// Change sets that may wait for the writer.
    pub write_queue: usize,
    /// Reader threads; 0: as many as cores, at most 8.
    pub readers: usize,
}

/// The read audit's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditConfig {
    /// A segment is closed before it grows beyond this, MiB.
    pub segment_mib: u64,
    /// Segments older than this may be pruned after a signed checkpoint, days.
    pub retention_days: u32,
    /// Below this much free disk a metric warns, MiB; below the second writes are refused.
    pub warn_free_mib: u64,
    pub refuse_free_mib: u64,
}

/// How often each job looks, seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JobsConfig {
    /// Retention: expiry buckets and grace periods that are over.
    pub retention_s: u64,
    /// Deletion of rows whose keys are gone already.
    pub sweep_s: u64,
    /// Ages of roots, data keys, index keys.
    pub rotation_s: u64,
    /// Signed audit checkpoints.
    pub checkpoint_s: u64,
}

/// How old keys may become. 0: no period.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RotationConfig {
    pub root_days: u32,
    pub tenant_root_days: u32,
    pub tree_days: u32,
    pub data_days: u32,
    pub index_days: u32,
    pub password_pepper_days: u32,
    pub signing_days: u32,
    /// Days before the end of a period from which on the log and the metrics warn.
    pub warn_days: u32,
    /// Kinds that the vault rotates by itself when their period is over: `tenant-root`, `tree`, `data`, `index`,
    /// `signing`. A root key cannot: its next one comes from outside.
    pub automatic: Vec<KeyPeriod>,
}

/// A kind of key that the vault can rotate by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyPeriod {
    TenantRoot,
    Tree,
    Data,
    Index,
    Signing,
}

/// Archives that the server makes by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BackupConfig {
    /// Folder of archives; empty: `backups` in `data_dir`.
    pub directory: PathBuf,
    /// Make them each night.
    pub nightly: bool,
    /// Hour of the day, UTC, from which on the night's backup is due.
    pub hour: u8,
    /// Days until an archive is deleted: the horizon that receipts declare.
    pub horizon_days: u32,
    /// Most MiB a second; 0: as fast as the disk, at low priority.
    pub max_mib_s: u64,
}

/// Logging, to standard error. The level is read again at SIGHUP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// `info`, or a list such as `warn,pii_vault=debug`.
    pub level: String,
    pub format: LogFormat,
}

/// For a developer's machine only.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DevelopmentConfig {
    /// Answer gRPC reflection.
    pub reflection: bool,
}

/// The configuration cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}")]
    Unreadable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// `message` names keys and types, never a value.
    #[error("{path} line {line}: {message}")]
    File { path: PathBuf, line: usize, message: String },
    #[error("{name}: {message}")]
    Overlay { name: String, message: String },
}

/// One thing that keeps a configuration from serving.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key, e.g. `keeper.paths`.
    pub key: String,
    /// What is wrong with it and, where it helps, what to do.
    pub rule: String,
}

/// A value from a flag: the key with dots, the text.
pub type Flag = (String, String);

impl Config {
    /// Reads file, environment and flags. `environment` is usually `std::env::vars()`.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: &[Flag],
    ) -> Result<Config, ConfigError> {
        let mut table = Table::new();
        if let Some(path) = file {
            let text = std::fs::read_to_string(path)
                .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
            // Once as the whole, so that the file's own mistakes are told with their line.
            Config::parse(path, &text)?;
            table = text.parse().map_err(|e| file_error(path, &text, e))?;
        }
        let mut overlays: Vec<(String, Vec<String>, String)> = Vec::new();
        let mut variables: Vec<(String, String)> = environment.into_iter().collect();
        variables.sort();
        for (name, text) in variables {
            let other = OTHER_VARIABLES.contains(&name.as_str()) || OTHER_PREFIXES.iter().any(|p| name.starts_with(p));
            if let Some(key) = name.strip_prefix(ENV_PREFIX).filter(|_| !other) {
                let key = key.to_ascii_lowercase().split("__").map(str::to_owned).collect();
                overlays.push((name.clone(), key, text));
            }
        }
        for (key, text) in flags {
            overlays.push((format!("--{key}"), key.split('.').map(str::to_owned).collect(), text.clone()));
        }
        // A variable that root_kek points to is a secret, not a key.
        let mut secrets: Vec<String> = Vec::new();
        for (section, part) in ["root_kek", "root_kek_next"].iter().flat_map(|s| [(*s, "name"), (*s, "env")]) {
            let key = [section.to_owned(), part.to_owned()];
            let in_file = table.get(section).and_then(|t| t.get(part)).and_then(Value::as_str).map(str::to_owned);
            let over = overlays.iter().filter(|(_, k, _)| *k == key).map(|(_, _, text)| text.clone());
            for name in over.chain(in_file) {
                secrets.extend([format!("{name}_FILE"), name]);
            }
        }
        overlays.retain(|(name, _, _)| !secrets.contains(name));
        let sample = Value::try_from(complete_sample()).expect("a config of our own can be written as TOML");
        for (name, key, text) in &overlays {
            let value = coerce(name, lookup(&sample, key), text)?;
            set(&mut table, name, key, value)?;
        }
        let whole = |table: Table| table.try_into::<Config>();
        let origin = Origin(Some(Sources { file: file.map(Path::to_owned), flags: flags.to_vec() }));
        whole(table.clone()).map(|config| Config { origin, ..config }).map_err(|error| {
            // Whose fault it is: the overlay without whose key all is well.
            let guilty = overlays.iter().find(|(_, key, _)| {
                let mut without = table.clone();
                unset(&mut without, key);
                whole(without).is_ok()
            });
            let name = guilty.map_or("environment and flags".to_owned(), |(name, _, _)| name.clone());
            ConfigError::Overlay { name, message: error.message().to_owned() }
        })
    }

    /// Reads the same file, environment and flags once more; one that was not read from anywhere stays as it is.
    pub fn again(&self) -> Result<Config, ConfigError> {
        match &self.origin.0 {
            Some(Sources { file, flags }) => Config::load(file.as_deref(), std::env::vars(), flags),
            None => Ok(self.clone()),
        }
    }

    /// Reads the text of a file alone; `path` is for messages.
    pub fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
        toml::from_str(text).map_err(|e| file_error(path, text, e))
    }

    /// All that would keep the server from starting or that the profile refuses; empty when it may start. Looks at files
    /// and their modes, starts nothing.
    pub fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut bad = |key: &str, rule: &str| problems.push(Problem { key: key.into(), rule: rule.into() });
        let strict = self.profile == Profile::Strict;

        if !self.data_dir.is_absolute() {
            bad("data_dir", "must be an absolute path");
        }
        match self.keeper.paths.len() {
            0 => bad("keeper.paths", "must name 1 to 3 directories"),
            1 if strict => bad("keeper.paths", "must name at least two replicas on different disks (profile strict)"),
            1..=3 => {}
            _ => bad("keeper.paths", "must not name more than 3 directories"),
        }
        for (i, path) in self.keeper.paths.iter().enumerate() {
            let key = format!("keeper.paths[{i}]");
            if !path.is_absolute() || path.components().any(|c| c == Component::ParentDir) {
                bad(&key, "must be an absolute path without ..");
            }
            // Whoever copies the data directory would copy the roots with it.
            if real(path).starts_with(real(&self.data_dir)) || real(&self.data_dir).starts_with(real(path)) {
                bad(&key, "must not lie under data_dir, nor data_dir under it");
            }
            if self.keeper.paths[..i].iter().any(|other| real(other) == real(path)) {
                bad(&key, "is named twice");
            }
        }

        match &self.root_kek {
            None => bad("root_kek", "must say where the root key is"),
            // After a rotation the former key is gone, and the next one is the key.
            Some(source) => match (source.problem(), self.root_kek_next.as_ref().map(RootKekSource::problem)) {
                (None, _) | (_, Some(None)) => {}
                (Some((key, rule)), _) => bad(key, &rule),
            },
        }
        if let (Some(one), Some(next)) = (&self.root_kek, &self.root_kek_next)
            && one.same_place(next)
        {
            bad("root_kek_next", "is in the same place as root_kek");
        }
        if self.rotation.tenant_root_days > 3_650 || self.rotation.warn_days > 3_650 {
            bad("rotation", "periods are in days, warn_days and tenant_root_days at most 3650");
        }

        let backups = self.backups_dir();
        if !backups.is_absolute() && self.data_dir.is_absolute() {
            bad("backup.directory", "must be an absolute path, or empty for backups in data_dir");
        }
        if strict && real(&backups).starts_with(real(&self.data_dir)) {
            bad("backup.directory", "must not lie under data_dir: one disk would take both (profile strict)");
        }
        if self.keeper.paths.iter().any(|path| real(&backups).starts_with(real(path))) {
            bad("backup.directory", "must not lie in a keeper, which is never copied");
        }
        if self.backup.hour > 23 {
            bad("backup.hour", "must be from 0 to 23");
        }
        if !(1..=3_650).contains(&self.backup.horizon_days) {
            bad("backup.horizon_days", "must be from 1 to 3650");
        }

        let exposed = !self.listen.address.ip().is_loopback();
        match &self.tls {
            None if exposed && !self.listen.allow_plaintext_non_loopback => {
                bad("tls", "is needed because listen.address is not a loopback address");
            }
            None if strict => bad("tls", "is needed (profile strict)"),
            None => {}
            Some(tls) => match TlsState::load(tls.options()) {
                Ok(_) => {}
                Err(error) => bad("tls", &causes(&error)),
            },
        }
        if self.ops.enabled && !self.ops.address.ip().is_loopback() && !self.ops.allow_non_loopback {
            bad("ops.address", "must be a loopback address, or set ops.allow_non_loopback");
        }
        if self.ops.enabled && self.ops.address == self.listen.address && self.ops.address.port() != 0 {
            bad("ops.address", "must differ from listen.address");
        }
        if strict && self.development.reflection {
            bad("development.reflection", "must be off (profile strict)");
        }

        let l = &self.limits;
        for (key, value) in [
            ("limits.max_connections", l.max_connections as u64),
            ("limits.max_connections_per_peer", l.max_connections_per_peer as u64),
            ("limits.max_calls", l.max_calls as u64),
            ("limits.max_streams", l.max_streams as u64),
            ("limits.max_request_mib", l.max_request_mib as u64),
            ("limits.max_call_s", l.max_call_s),
            ("limits.body_idle_s", l.body_idle_s),
            ("limits.stream_idle_s", l.stream_idle_s),
            ("limits.response_stall_s", l.response_stall_s),
            ("limits.connection_idle_s", l.connection_idle_s),
            ("limits.connection_age_s", l.connection_age_s),
            ("limits.drain_s", l.drain_s),
            ("limits.keepalive_s", l.keepalive_s),
            ("cache.data_keys", self.cache.data_keys as u64),
            ("cache.tree_nodes", self.cache.tree_nodes as u64),
            ("cache.access_keys", self.cache.access_keys as u64),
            ("cache.access_key_s", self.cache.access_key_s),
            ("storage.write_queue", self.storage.write_queue as u64),
            ("audit.segment_mib", self.audit.segment_mib),
            ("audit.retention_days", self.audit.retention_days.into()),
            ("jobs.retention_s", self.jobs.retention_s),
            ("jobs.sweep_s", self.jobs.sweep_s),
            ("jobs.rotation_s", self.jobs.rotation_s),
            ("jobs.checkpoint_s", self.jobs.checkpoint_s),
            ("argon2.queue", self.argon2.queue as u64),
            ("passwords.queue", self.passwords.queue as u64),
            ("passwords.max_wait_ms", self.passwords.max_wait_ms),
        ] {
            // The upper end is far beyond use and keeps sums of times and bytes from overflowing.
            if !(1..=1 << 31).contains(&value) {
                bad(key, "must be from 1 to 2^31");
            }
        }
        // RFC 9106 needs 8 KiB per lane; 7 MiB with 5 passes is the least that OWASP lists.
        let a = &self.argon2;
        if a.iterations == 0 || a.parallelism == 0 || a.parallelism > 16 {
            bad("argon2", "iterations must be at least 1, parallelism 1 to 16");
        }
        if a.memory_kib < 7 << 10 || u64::from(a.memory_kib) * u64::from(a.iterations) < 35 << 10 {
            bad("argon2.memory_kib", "must be at least 7168, and memory_kib times iterations at least 35840");
        }
        if a.memory_kib > 4 << 20 {
            bad("argon2.memory_kib", "must not be above 4 GiB");
        }
        // OWASP's second choice is the least: the cost of users' passwords goes upwards only.
        let p = &self.passwords;
        if p.iterations < 2 || !(1..=16).contains(&p.parallelism) {
            bad("passwords", "iterations must be at least 2, parallelism 1 to 16");
        }
        if !(19_456..=4 << 20).contains(&p.memory_kib) {
            bad("passwords.memory_kib", "must be from 19456 to 4194304");
        }
        if !(p.memory_kib..=4 << 20).contains(&p.import_memory_kib) {
            bad("passwords.import_memory_kib", "must be at least passwords.memory_kib and at most 4194304");
        }
        if self.audit.refuse_free_mib > self.audit.warn_free_mib {
            bad("audit.refuse_free_mib", "must not be above audit.warn_free_mib");
        }
        if let Err(error) = parse_level(&self.log.level) {
            bad("log.level", &error.to_string());
        }
        problems
    }

    /// Folder of all archives.
    pub fn backups_dir(&self) -> PathBuf {
        match self.backup.directory.as_os_str().is_empty() {
            true => self.data_dir.join(layout::BACKUPS),
            false => self.backup.directory.clone(),
        }
    }

    /// The options of backups.
    pub fn backup_options(&self) -> BackupOptions {
        let b = &self.backup;
        BackupOptions {
            dir: self.backups_dir(),
            horizon_days: i64::from(b.horizon_days),
            rate: b.max_mib_s << 20,
            nightly: b.nightly,
            hour: b.hour,
        }
    }

    /// The jobs' options.
    pub fn jobs_options(&self) -> JobsOptions {
        let (j, s) = (&self.jobs, Duration::from_secs);
        JobsOptions {
            retention: s(j.retention_s),
            sweep: s(j.sweep_s),
            rotation: s(j.rotation_s),
            checkpoint: s(j.checkpoint_s),
            audit_days: i64::from(self.audit.retention_days),
            ..JobsOptions::default()
        }
    }

    /// The network's options.
    pub fn network_options(&self) -> NetworkOptions {
        let (l, s) = (&self.limits, Duration::from_secs);
        NetworkOptions {
            max_connections: l.max_connections,
            max_connections_per_peer: l.max_connections_per_peer,
            max_calls: l.max_calls,
            max_streams: l.max_streams,
            max_request_bytes: l.max_request_mib << 20,
            max_call_time: s(l.max_call_s),
            body_idle_timeout: s(l.body_idle_s),
            stream_idle_timeout: s(l.stream_idle_s),
            response_stall_timeout: s(l.response_stall_s),
            connection_idle_timeout: s(l.connection_idle_s),
            max_connection_age: s(l.connection_age_s),
            drain_timeout: s(l.drain_s),
            keepalive_interval: s(l.keepalive_s),
            ..NetworkOptions::default()
        }
    }
}

impl TlsConfig {
    /// The listener's options.
    pub fn options(&self) -> TlsOptions {
        TlsOptions {
            certificate: self.certificate.clone(),
            private_key: self.private_key.clone(),
            client_ca: self.client_ca.clone(),
            require_client_certificate: self.require_client_certificate,
            allow_tls12: self.minimum_version == TlsVersion::V12,
        }
    }
}

impl RootKekSource {
    /// Whether both would read the same thing. A passphrase is another one by its parameters.
    fn same_place(&self, other: &RootKekSource) -> bool {
        match (self, other) {
            (RootKekSource::Passphrase { params: one, .. }, RootKekSource::Passphrase { params: two, .. }) => {
                one == two
            }
            (RootKekSource::Transit { file: one, .. }, RootKekSource::Transit { file: two, .. }) => one == two,
            _ => self == other,
        }
    }

    fn problem(&self) -> Option<(&'static str, String)> {
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
            RootKekSource::Transit { address, token_file, timeout_ms, wait_s, .. } => {
                if !address.starts_with("https://") && !address.starts_with("http://") {
                    return Some(("root_kek.address", "is a URL: https://host:port".into()));
                }
                if !(10..=600_000).contains(timeout_ms) || *wait_s > 86_400 {
                    return Some(("root_kek.timeout_ms", "is from 10 to 600000, wait_s at most 86400".into()));
                }
                secret_file(token_file).map(|rule| ("root_kek.token_file", rule))
            }
        }
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

/// The path with its links resolved as far as it exists.
fn real(path: &Path) -> PathBuf {
    path.ancestors()
        .find_map(|a| Some(a.canonicalize().ok()?.join(path.strip_prefix(a).ok()?)))
        .unwrap_or_else(|| path.to_owned())
}

fn file_error(path: &Path, text: &str, error: toml::de::Error) -> ConfigError {
    // Only the line's number: the line itself may hold what somebody pasted by mistake.
    let line = error
        .span()
        .map_or(1, |span| 1 + text.as_bytes()[..span.start.min(text.len())].iter().filter(|b| **b == b'\n').count());
    ConfigError::File { path: path.to_owned(), line, message: error.message().to_owned() }
}

/// A configuration with every optional part there: tells the type of every key.
fn complete_sample() -> Config {
    Config {
        root_kek: Some(RootKekSource::File { path: PathBuf::new() }),
        root_kek_next: Some(RootKekSource::File { path: PathBuf::new() }),
        tls: Some(TlsConfig {
            certificate: PathBuf::new(),
            private_key: PathBuf::new(),
            client_ca: Some(PathBuf::new()),
            require_client_certificate: false,
            minimum_version: TlsVersion::V13,
        }),
        ..Config::default()
    }
}

fn lookup<'a>(value: &'a Value, key: &[String]) -> Option<&'a Value> {
    key.iter().try_fold(value, |value, part| value.get(part))
}

/// Text as the type that the key has; unknown keys stay text and are refused when the whole is read.
fn coerce(name: &str, like: Option<&Value>, text: &str) -> Result<Value, ConfigError> {
    let wrong = |message: &str| ConfigError::Overlay { name: name.to_owned(), message: message.to_owned() };
    Ok(match like {
        Some(Value::Integer(_)) => Value::Integer(text.parse().map_err(|_| wrong("must be a whole number"))?),
        Some(Value::Boolean(_)) => Value::Boolean(text.parse().map_err(|_| wrong("must be true or false"))?),
        Some(Value::Array(_)) => Value::Array(text.split(',').map(|t| Value::String(t.trim().to_owned())).collect()),
        Some(Value::Table(_)) => return Err(wrong("is a section: add __ and a key")),
        _ => Value::String(text.to_owned()),
    })
}

fn set(table: &mut Table, name: &str, key: &[String], value: Value) -> Result<(), ConfigError> {
    let Some((last, sections)) = key.split_last() else { return Ok(()) };
    let mut at = table;
    for section in sections {
        let inner = at.entry(section.clone()).or_insert_with(|| Value::Table(Table::new()));
        at = inner.as_table_mut().ok_or_else(|| ConfigError::Overlay {
            name: name.to_owned(),
            message: format!("{section} is not a section"),
        })?;
    }
    at.insert(last.clone(), value);
    Ok(())
}

fn unset(table: &mut Table, key: &[String]) {
    match key {
        [] => {}
        [last] => drop(table.remove(last)),
        [section, rest @ ..] => {
            if let Some(inner) = table.get_mut(section).and_then(Value::as_table_mut) {
                unset(inner, rest);
                if inner.is_empty() {
                    table.remove(section);
                }
            }
        }
    }
}

// ---- defaults

impl Default for Config {
    fn default() -> Self {
        Config {
            profile: Profile::Default,
            region: String::new(),
            storage_host: String::new(),
            data_dir: PathBuf::new(),
            keeper: KeeperConfig::default(),
            root_kek: None,
            root_kek_next: None,
            listen: ListenConfig::default(),
            tls: None,
            ops: OpsConfig::default(),
            limits: LimitsConfig::default(),
            argon2: Argon2Config::default(),
            passwords: PasswordsConfig::default(),
            cache: CacheConfig::default(),
            storage: StorageConfig::default(),
            audit: AuditConfig::default(),
            jobs: JobsConfig::default(),
            rotation: RotationConfig::default(),
            backup: BackupConfig::default(),
            log: LogConfig::default(),
            development: DevelopmentConfig::default(),
            origin: Origin::default(),
        }
    }
}

impl Default for ListenConfig {
    fn default() -> Self {
        ListenConfig { address: SocketAddr::from(([127, 0, 0, 1], 7443)), allow_plaintext_non_loopback: false }
    }
}

impl Default for OpsConfig {
    fn default() -> Self {
        OpsConfig { enabled: true, address: SocketAddr::from(([127, 0, 0, 1], 7480)), allow_non_loopback: false }
    }
}

impl Default for RotationConfig {
    fn default() -> Self {
        let periods = crate::vault::rotation::Periods::default();
        RotationConfig {
            root_days: periods.root,
            tenant_root_days: periods.tenant_root,
            tree_days: periods.tree,
            data_days: periods.data,
            index_days: periods.index,
            password_pepper_days: periods.password_pepper,
            signing_days: periods.signing,
            warn_days: periods.warn,
            automatic: vec![KeyPeriod::TenantRoot],
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        let n = NetworkOptions::default();
        LimitsConfig {
            max_connections: n.max_connections,
            max_connections_per_peer: n.max_connections_per_peer,
            max_calls: n.max_calls,
            max_streams: n.max_streams,
            max_request_mib: n.max_request_bytes >> 20,
            max_call_s: n.max_call_time.as_secs(),
            body_idle_s: n.body_idle_timeout.as_secs(),
            stream_idle_s: n.stream_idle_timeout.as_secs(),
            response_stall_s: n.response_stall_timeout.as_secs(),
            connection_idle_s: n.connection_idle_timeout.as_secs(),
            connection_age_s: n.max_connection_age.as_secs(),
            drain_s: n.drain_timeout.as_secs(),
            keepalive_s: n.keepalive_interval.as_secs(),
        }
    }
}

impl Default for Argon2Config {
    fn default() -> Self {
        // OWASP's second choice; 27 ms on one core of a small server.
        Argon2Config {
            memory_kib: 19 << 10,
            iterations: 2,
            parallelism: 1,
            concurrency: 0,
            queue: 64,
            max_wait_ms: 250,
        }
    }
}

impl Default for PasswordsConfig {
    fn default() -> Self {
        PasswordsConfig {
            memory_kib: 19_456,
            iterations: 2,
            parallelism: 1,
            concurrency: 0,
            queue: 32,
            max_wait_ms: 250,
            import_memory_kib: 65_536,
        }
    }
}

impl Default for CacheConfig {
    fn default() -> Self {
        CacheConfig {
            data_keys: 100_000,
            tree_nodes: 20_000,
            ciphertext_mib: 64,
            access_keys: 4_096,
            access_key_s: 300,
        }
    }
}

impl Default for StorageConfig {
    fn default() -> Self {
        StorageConfig { write_queue: 4_096, readers: 0 }
    }
}

impl Default for AuditConfig {
    fn default() -> Self {
        AuditConfig { segment_mib: 32, retention_days: 365, warn_free_mib: 2_048, refuse_free_mib: 256 }
    }
}

impl Default for JobsConfig {
    fn default() -> Self {
        JobsConfig { retention_s: 60, sweep_s: 10, rotation_s: 3_600, checkpoint_s: 600 }
    }
}

impl Default for BackupConfig {
    fn default() -> Self {
        BackupConfig { directory: PathBuf::new(), nightly: true, hour: 2, horizon_days: 30, max_mib_s: 0 }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig { level: "info".into(), format: LogFormat::Json }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = include_str!("../packaging/pii-vault.toml");

    fn load(text: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let own = |list: &[(&str, &str)]| -> Vec<(String, String)> {
            list.iter().map(|(k, v)| ((*k).to_string(), (*v).to_string())).collect()
        };
        Config::load(Some(file.path()), own(env), &own(flags))
    }

    #[test]
    fn the_shipped_sample_says_the_defaults_and_every_key() {
        let sample = Config::parse(Path::new("packaging/pii-vault.toml"), SAMPLE).unwrap();
        // Where the sample has no choice of its own, it shows the default.
        let shown = Config {
            data_dir: sample.data_dir.clone(),
            keeper: sample.keeper.clone(),
            root_kek: sample.root_kek.clone(),
            tls: sample.tls.clone(),
            ..Config::default()
        };
        assert_eq!(sample, shown);
        let Value::Table(all) = Value::try_from(complete_sample()).unwrap() else { unreachable!() };
        for (section, value) in all {
            for key in value.as_table().map_or(vec![section.clone()], |t| t.keys().cloned().collect()) {
                assert!(
                    SAMPLE.lines().any(|l| l.trim_start_matches("# ").starts_with(&format!("{key} =")))
                        || section.starts_with("root_kek"),
                    "{section}.{key}"
                );
            }
        }
    }

    #[test]
    fn the_image_and_the_unit_fit_the_configuration() {
        let dockerfile = include_str!("../Dockerfile");
        let env: Vec<(&str, &str)> =
            dockerfile.lines().filter_map(|l| l.strip_prefix("ENV ")?.split_once('=')).collect();
        let config = load("", &env, &[]).unwrap();
        for path in [&config.data_dir, &config.keeper.paths[0]] {
            assert!(dockerfile.contains(&format!("\"{}\"", path.display())), "{path:?} is not a volume");
        }
        // The files are not there, all else is as it must be.
        let keys: Vec<String> = config.check().into_iter().map(|p| p.key).collect();
        assert_eq!(keys, ["root_kek.path", "tls"]);

        let unit = include_str!("../packaging/pii-vault.service");
        let sample = Config::parse(Path::new("packaging/pii-vault.toml"), SAMPLE).unwrap();
        let Some(RootKekSource::Credential { name }) = &sample.root_kek else { panic!("the unit gives a credential") };
        assert!(unit.contains(&format!("\nLoadCredential={name}:")));
        let state: Vec<PathBuf> = unit
            .lines()
            .find_map(|l| l.strip_prefix("StateDirectory="))
            .map(|l| l.split(' ').map(|d| Path::new("/var/lib").join(d)).collect())
            .unwrap();
        assert_eq!(state, [sample.data_dir, sample.keeper.paths[0].clone()]);
    }

    #[test]
    fn environment_beats_file_and_flags_beat_environment() {
        let text = "region = 'in'\n[limits]\nmax_calls = 10\nmax_streams = 11\nmax_connections = 12\n";
        let env = [("PII_VAULT_LIMITS__MAX_CALLS", "20"), ("PII_VAULT_LIMITS__MAX_STREAMS", "21"), ("HOME", "/")];
        let config = load(text, &env, &[("limits.max_calls", "30")]).unwrap();
        let l = &config.limits;
        assert_eq!((l.max_calls, l.max_streams, l.max_connections, config.region.as_str()), (30, 21, 12, "in"));
    }

    #[test]
    fn everything_may_come_from_the_environment() {
        let env = [
            ("PII_VAULT_DATA_DIR", "/data"),
            ("PII_VAULT_KEEPER__PATHS", "/keeper/a, /keeper/b"),
            ("PII_VAULT_ROOT_KEK__PROVIDER", "passphrase"),
            ("PII_VAULT_TLS__CERTIFICATE", "/c"),
            ("PII_VAULT_TLS__PRIVATE_KEY", "/k"),
            ("PII_VAULT_TLS__REQUIRE_CLIENT_CERTIFICATE", "true"),
            ("PII_VAULT_TLS__MINIMUM_VERSION", "1.2"),
            ("PII_VAULT_PASSPHRASE", "not a key of the configuration"),
            ("PII_VAULT_ROOT_KEK__ENV", "PII_VAULT_MINE"),
            ("PII_VAULT_MINE_FILE", "not a key either"),
        ];
        let config = load("", &env, &[]).unwrap();
        assert_eq!(config.keeper.paths, [Path::new("/keeper/a"), Path::new("/keeper/b")]);
        let env = Some("PII_VAULT_MINE".to_owned());
        assert_eq!(
            config.root_kek,
            Some(RootKekSource::Passphrase { file: None, env, credential: None, params: None })
        );
        let tls = config.tls.unwrap();
        assert!(tls.require_client_certificate && tls.options().allow_tls12);
    }

    #[test]
    fn unknown_keys_are_refused_with_their_line_and_without_their_value() {
        for (text, line, key) in [
            ("region = 'in'\n\npasswort = 'hunter2'\n", 3, "passwort"),
            ("[limits]\nmax_cals = 1\n", 2, "max_cals"),
            ("root_kek = { provider = 'file', path = '/a', key = 'hunter2' }", 1, "key"),
            ("[listen]\naddress = 'hunter2'\n", 2, "socket address"),
        ] {
            let error = load(text, &[], &[]).unwrap_err();
            let shown = error.to_string();
            assert!(matches!(error, ConfigError::File { line: l, .. } if l == line), "{shown}");
            assert!(shown.contains(key) && !shown.contains("hunter2"), "{shown}");
        }
        let error = load("", &[("PII_VAULT_REGION", "in"), ("PII_VAULT_LIMITS__MAX_CALS", "1")], &[]).unwrap_err();
        assert!(error.to_string().starts_with("PII_VAULT_LIMITS__MAX_CALS: "), "{error}");
        let error = load("", &[], &[("limits.max_calls", "many")]).unwrap_err();
        assert_eq!(error.to_string(), "--limits.max_calls: must be a whole number");
    }

    fn problems(config: &Config) -> Vec<String> {
        config.check().into_iter().map(|p| p.key).collect()
    }

    fn good(dir: &Path) -> Config {
        let kek = dir.join("kek");
        std::fs::write(&kek, "").unwrap();
        std::fs::set_permissions(&kek, std::fs::Permissions::from_mode(0o600)).unwrap();
        Config {
            data_dir: dir.join("data"),
            keeper: KeeperConfig { paths: vec![dir.join("keeper")] },
            root_kek: Some(RootKekSource::File { path: kek }),
            ..Config::default()
        }
    }

    #[test]
    fn check_lists_every_problem_at_once() {
        assert_eq!(problems(&Config::default()), ["data_dir", "keeper.paths", "root_kek"]);
        let dir = tempfile::tempdir().unwrap();
        let ok = good(dir.path());
        assert_eq!(ok.check(), []);
        let mut bad = ok.clone();
        bad.profile = Profile::Strict;
        bad.keeper.paths = vec![ok.data_dir.join("keeper")];
        bad.listen.address = "0.0.0.0:7443".parse().unwrap();
        bad.ops.address = "0.0.0.0:7480".parse().unwrap();
        bad.development.reflection = true;
        bad.limits.max_calls = 0;
        bad.argon2.memory_kib = 1_024;
        bad.log.level = "loud=".into();
        let expected = [
            "keeper.paths",
            "keeper.paths[0]",
            "backup.directory",
            "tls",
            "ops.address",
            "development.reflection",
            "limits.max_calls",
            "argon2.memory_kib",
            "log.level",
        ];
        assert_eq!(problems(&bad), expected);
    }

    #[test]
    fn a_keeper_behind_a_link_into_the_data_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = good(dir.path());
        std::fs::create_dir_all(config.data_dir.join("inside")).unwrap();
        std::os::unix::fs::symlink(config.data_dir.join("inside"), dir.path().join("link")).unwrap();
        config.keeper.paths = vec![dir.path().join("link/keeper")];
        assert_eq!(problems(&config), ["keeper.paths[0]"]);
    }

    #[test]
    fn a_root_key_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let config = good(dir.path());
        std::fs::set_permissions(dir.path().join("kek"), std::fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(problems(&config), ["root_kek.path"]);
        let two = RootKekSource::Passphrase {
            file: Some("/a".into()),
            env: Some("B".into()),
            credential: None,
            params: None,
        };
        assert_eq!(problems(&Config { root_kek: Some(two), ..config }), ["root_kek"]);
    }
}
