//! The server's configuration: a TOML file, over it the environment (`PII_VAULT_…`), over it flags. It says *where* a
//! secret is, never the secret. An unknown key is an error with its line. Nothing here starts anything: each part gets
//! its own options from the values in `sections`; `check` has the rules.

mod check;
mod published;
mod root_kek;
mod sections;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

pub use check::Problem;
pub use root_kek::RootKekSource;
pub use sections::*;

use crate::grpc::limits::NetworkOptions;
use crate::jobs::JobsOptions;
use crate::jobs::anchors::{Anchors, Place};
use crate::recovery::backups::BackupOptions;
use crate::recovery::layout;

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
            audit_days: if self.audit.automatic_prune { i64::from(self.audit.retention_days) } else { 0 },
            anchors: Arc::new(self.anchors()),
            ..JobsOptions::default()
        }
    }

    /// Where checkpoints go; a place that [`Config::check`] refuses is left out.
    fn anchors(&self) -> Anchors {
        let given = |path: &PathBuf| (!path.as_os_str().is_empty()).then(|| path.clone());
        let ca = given(&self.audit.anchor_ca);
        let places = self.audit.anchors.iter();
        let places = places.filter_map(|text| Some((text.clone(), Place::parse(text, ca.clone()).ok()?)));
        Anchors::new(places.collect(), given(&self.audit.anchor_token_file))
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const SAMPLE: &str = include_str!("../../packaging/pii-vault.toml");

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
        let dockerfile = include_str!("../../Dockerfile");
        let env: Vec<(&str, &str)> =
            dockerfile.lines().filter_map(|l| l.strip_prefix("ENV ")?.split_once('=')).collect();
        let config = load("", &env, &[]).unwrap();
        for path in [&config.data_dir, &config.keeper.paths[0]] {
            assert!(dockerfile.contains(&format!("\"{}\"", path.display())), "{path:?} is not a volume");
        }
        // The files are not there, all else is as it must be.
        let keys: Vec<String> = config.check().into_iter().map(|p| p.key).collect();
        assert_eq!(keys, ["root_kek.path", "tls"]);

        let unit = include_str!("../../packaging/pii-vault.service");
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
            keeper: KeeperConfig { paths: vec![dir.join("keeper")], token: None },
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
