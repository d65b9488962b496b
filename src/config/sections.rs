//! The sections of the configuration and their defaults.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::grpc::limits::NetworkOptions;
use crate::grpc::tls::TlsOptions;
use crate::telemetry::LogFormat;

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
    /// A token whose key objects guard the roots in those files and die with them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<KeeperToken>,
}

/// A token of a hardware security module, for the keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeeperToken {
    /// The module's library, an absolute path.
    pub module: PathBuf,
    /// Label of the token.
    pub token: String,
    /// First word of the labels of the key objects that the vault makes and destroys.
    #[serde(default = "keeper_key")]
    pub key: String,
    /// File of mode 0600 with the user's PIN. Exactly one of the two places.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin_file: Option<PathBuf>,
    /// Name of a systemd credential with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin_credential: Option<String>,
    /// Of one look at the token; one that takes longer makes the keeper away.
    #[serde(default = "keeper_timeout")]
    pub timeout_ms: u64,
    /// How long a start goes on trying a token that is not there.
    #[serde(default = "keeper_wait")]
    pub wait_s: u64,
}

fn keeper_key() -> String {
    "pii-vault-keeper".into()
}
fn keeper_timeout() -> u64 {
    5_000
}
fn keeper_wait() -> u64 {
    60
}

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
    /// Prune by the clock; else only `audit prune` with a second operator's word does.
    pub automatic_prune: bool,
    /// Where each checkpoint goes, beyond the reach of who has this machine: `file:/PATH`, `https://HOST/PATH`.
    pub anchors: Vec<String>,
    /// PEM of the authority of the certificates of https anchors; empty: there are none.
    pub anchor_ca: PathBuf,
    /// File with the token that HTTP anchors are shown (`Authorization: Bearer`); empty: none.
    pub anchor_token_file: PathBuf,
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
    pub access_key_pepper_days: u32,
    pub page_token_days: u32,
    pub signing_days: u32,
    /// Days before the end of a period from which on the log and the metrics warn.
    pub warn_days: u32,
    /// Kinds that the vault rotates by itself when their period is over: `tenant-root`, `tree`, `data`, `index`,
    /// `page-token`, `signing`. A root key cannot: its next one comes from outside.
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
    PageToken,
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
            access_key_pepper_days: periods.access_key_pepper,
            page_token_days: periods.page_token,
            signing_days: periods.signing,
            warn_days: periods.warn,
            automatic: vec![KeyPeriod::TenantRoot, KeyPeriod::PageToken],
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
        AuditConfig {
            segment_mib: 32,
            retention_days: 365,
            automatic_prune: true,
            anchors: Vec::new(),
            anchor_ca: PathBuf::new(),
            anchor_token_file: PathBuf::new(),
            warn_free_mib: 2_048,
            refuse_free_mib: 256,
        }
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
