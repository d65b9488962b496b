//! Where a command finds its server and its credential: flags, then environment, then the profile, then defaults. A
//! profile says where the access key is, never the key itself.

use crate::cli::error::CliError;
use crate::cli::global::GlobalArgs;
use crate::cli::text::duration;
use crate::secret::Secret;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

/// The server a command talks to when nothing names one.
pub const DEFAULT_SERVER: &str = "https://127.0.0.1:7443";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// One profile as the file holds it. Paths are absolute or relative to the file.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_cert: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
}

/// The file with all profiles.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileFile {
    /// The one in use when nothing names another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub profile: BTreeMap<String, Profile>,
}

/// What a variable of the environment says; tests put a map in its place.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The environment of this process; empty variables count as not set.
pub fn process_env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

/// Where the profiles are: `PII_VAULT_CONFIG`, else `pii-vault/config.toml` under `XDG_CONFIG_HOME` or `~/.config`.
pub fn path(env: Env<'_>) -> Result<PathBuf, CliError> {
    if let Some(path) = env("PII_VAULT_CONFIG") {
        return Ok(PathBuf::from(path));
    }
    let base = env("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .filter(|p| p.is_absolute())
        .or_else(|| env("HOME").map(|home| Path::new(&home).join(".config")));
    base.map(|b| b.join("pii-vault/config.toml"))
        .ok_or_else(|| CliError::Usage("neither HOME nor XDG_CONFIG_HOME is set; set PII_VAULT_CONFIG".into()))
}

impl ProfileFile {
    /// Reads the file; one that is not there is an empty one.
    pub fn load(path: &Path) -> Result<Self, CliError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(ProfileFile::default()),
            Err(e) => return Err(CliError::io(path.display().to_string())(e)),
        };
        toml::from_str(&text).map_err(|e| {
            let line = e.span().map(|s| text[..s.start].matches('\n').count() + 1);
            let line = line.map(|l| format!(":{l}")).unwrap_or_default();
            CliError::Usage(format!("{}{line}: {}", path.display(), e.message()))
        })
    }

    /// Writes the file as a whole, for its owner only.
    pub fn save(&self, path: &Path) -> Result<(), CliError> {
        let text = toml::to_string(self).map_err(|e| CliError::Unexpected(e.to_string()))?;
        write_private(path, text.as_bytes())
    }
}

/// Writes a file that only its owner may read, by way of a new file, so that it is never half there.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), CliError> {
    let what = path.display().to_string();
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(CliError::io(parent.display().to_string()))?;
    }
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".new-{}", std::process::id()));
    let new = path.with_file_name(name);
    let write = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(|e| {
        let _ = fs::remove_file(&new);
        CliError::io(what)(e)
    })
}

/// Where the access key comes from.
#[derive(Debug)]
pub enum Credential {
    /// No key: GetReceiptKeys and the like.
    None,
    /// The variable `PII_VAULT_ACCESS_KEY` holds it.
    Text(Secret<String>),
    /// A file that was named for this call.
    File(PathBuf),
    /// The file of the profile; others must not be able to read it.
    PrivateFile(PathBuf),
}

impl Credential {
    /// The key itself, without the line end.
    pub fn read(&self) -> Result<Option<Secret<String>>, CliError> {
        let path = match self {
            Credential::None => return Ok(None),
            Credential::Text(key) => return Ok(Some(Secret::new(key.expose().trim().to_string()))),
            Credential::File(path) => path,
            Credential::PrivateFile(path) => {
                let meta = fs::metadata(path).map_err(CliError::io(path.display().to_string()))?;
                if meta.permissions().mode() & 0o077 != 0 {
                    let path = path.display();
                    return Err(CliError::Usage(format!(
                        "{path} can be read by others than its owner; `chmod 600 {path}` mends it"
                    )));
                }
                path
            }
        };
        let text = Secret::new(fs::read_to_string(path).map_err(CliError::io(path.display().to_string()))?);
        let key = text.expose().trim();
        if key.is_empty() {
            return Err(CliError::Usage(format!("{} is empty", path.display())));
        }
        Ok(Some(Secret::new(key.to_string())))
    }

    fn told(&self) -> String {
        match self {
            Credential::None => "none".into(),
            Credential::Text(_) => "PII_VAULT_ACCESS_KEY".into(),
            Credential::File(path) | Credential::PrivateFile(path) => path.display().to_string(),
        }
    }
}

/// What a command runs with.
#[derive(Debug)]
pub struct Settings {
    /// Name of the profile in use; empty: none.
    pub profile: String,
    pub server: String,
    pub server_name: Option<String>,
    pub ca: Option<PathBuf>,
    pub client_cert: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
    pub credential: Credential,
    /// For operator keys; empty: not stated.
    pub tenant: String,
    pub timeout: Duration,
    /// Somebody asked for this timeout, so it holds for streams too.
    pub timeout_asked: bool,
    /// Plain text to a server that is not on this machine was asked for.
    pub plaintext: bool,
}

impl Settings {
    /// Puts the sources together. `file` is the profile file at `at`.
    pub fn resolve(flags: &GlobalArgs, env: Env<'_>, file: &ProfileFile, at: &Path) -> Result<Self, CliError> {
        let named = flags.profile.clone().or_else(|| env("PII_VAULT_PROFILE"));
        let name = named.clone().or_else(|| file.current.clone()).unwrap_or_default();
        let profile = match file.profile.get(&name) {
            Some(profile) => profile.clone(),
            None if name.is_empty() => Profile::default(),
            None => {
                return Err(CliError::Usage(format!("there is no profile {name:?} in {}", at.display())));
            }
        };
        let base = at.parent().unwrap_or(Path::new("")).to_path_buf();
        let var = |name: &str| env(name).map(PathBuf::from);
        let of_profile = |path: &Option<PathBuf>| path.as_ref().map(|p| base.join(p));
        let pick = |flag: &Option<PathBuf>, name: &str, rest: &Option<PathBuf>| {
            flag.clone().or_else(|| var(name)).or_else(|| of_profile(rest))
        };
        let text = |flag: &Option<String>, name: &str, rest: &Option<String>| {
            flag.clone().or_else(|| env(name)).or_else(|| rest.clone())
        };
        let asked = match flags.timeout {
            Some(timeout) => Some(timeout),
            None => text(&None, "PII_VAULT_TIMEOUT", &profile.timeout)
                .map(|t| duration(&t).map_err(|rule| CliError::Usage(format!("timeout: {rule}"))))
                .transpose()?,
        };
        Ok(Settings {
            server: text(&flags.server, "PII_VAULT_SERVER", &profile.server).unwrap_or_else(|| DEFAULT_SERVER.into()),
            server_name: text(&flags.server_name, "PII_VAULT_SERVER_NAME", &profile.server_name),
            ca: pick(&flags.ca, "PII_VAULT_CA", &profile.ca),
            client_cert: pick(&flags.client_cert, "PII_VAULT_CLIENT_CERT", &profile.client_cert),
            client_key: pick(&flags.client_key, "PII_VAULT_CLIENT_KEY", &profile.client_key),
            credential: credential(flags, env, of_profile(&profile.credential_file))?,
            tenant: text(&flags.tenant, "PII_VAULT_TENANT", &profile.tenant).unwrap_or_default(),
            timeout: asked.unwrap_or(DEFAULT_TIMEOUT),
            timeout_asked: flags.timeout.is_some(),
            plaintext: flags.plaintext,
            profile: name,
        })
    }

    /// Pairs for `profile show`: what holds, without the key.
    pub fn told(&self) -> Vec<(&'static str, String)> {
        let path = |p: &Option<PathBuf>| p.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
        vec![
            ("profile", self.profile.clone()),
            ("server", self.server.clone()),
            ("server_name", self.server_name.clone().unwrap_or_default()),
            ("ca", path(&self.ca)),
            ("client_cert", path(&self.client_cert)),
            ("client_key", path(&self.client_key)),
            ("credential", self.credential.told()),
            ("tenant", self.tenant.clone()),
            ("timeout", format!("{}ms", self.timeout.as_millis())),
        ]
    }
}

fn credential(flags: &GlobalArgs, env: Env<'_>, profile: Option<PathBuf>) -> Result<Credential, CliError> {
    if let Some(path) = &flags.credential_file {
        return Ok(Credential::File(path.clone()));
    }
    let file = env("PII_VAULT_ACCESS_KEY_FILE").or_else(|| env("PII_VAULT_CREDENTIAL_FILE"));
    match (env("PII_VAULT_ACCESS_KEY"), file) {
        (Some(_), Some(_)) => Err(CliError::Usage(
            "PII_VAULT_ACCESS_KEY and PII_VAULT_ACCESS_KEY_FILE are both set; which one is meant?".into(),
        )),
        (Some(text), None) => Ok(Credential::Text(Secret::new(text))),
        (None, Some(path)) => Ok(Credential::File(PathBuf::from(path))),
        (None, None) => Ok(profile.map_or(Credential::None, Credential::PrivateFile)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(flags: &GlobalArgs, env: &[(&str, &str)], file: &ProfileFile) -> Result<Settings, CliError> {
        let env = |name: &str| env.iter().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_string());
        Settings::resolve(flags, &env, file, Path::new("/home/a/.config/pii-vault/config.toml"))
    }

    fn file() -> ProfileFile {
        toml::from_str(
            "current = \"prod\"\n[profile.prod]\nserver = \"https://prod:1\"\nca = \"ca.pem\"\n\
             credential_file = \"keys/prod\"\ntimeout = \"5s\"\n[profile.test]\nserver = \"https://test:1\"\n",
        )
        .unwrap()
    }

    #[test]
    fn flags_beat_environment_beats_profile_beats_default() {
        let mut flags = GlobalArgs::default();
        assert_eq!(resolve(&flags, &[], &ProfileFile::default()).unwrap().server, DEFAULT_SERVER);
        let settings = resolve(&flags, &[], &file()).unwrap();
        assert_eq!((settings.server.as_str(), settings.timeout), ("https://prod:1", Duration::from_secs(5)));
        assert_eq!(settings.ca, Some(PathBuf::from("/home/a/.config/pii-vault/ca.pem")));
        assert!(matches!(settings.credential, Credential::PrivateFile(_)));
        let env = [("PII_VAULT_SERVER", "https://env:1"), ("PII_VAULT_PROFILE", "test")];
        let settings = resolve(&flags, &env, &file()).unwrap();
        assert_eq!((settings.server.as_str(), settings.profile.as_str()), ("https://env:1", "test"));
        flags.server = Some("https://flag:1".into());
        assert_eq!(resolve(&flags, &env, &file()).unwrap().server, "https://flag:1");
    }

    #[test]
    fn a_key_has_one_source_and_is_never_shown() {
        let flags = GlobalArgs::default();
        let both = [("PII_VAULT_ACCESS_KEY", "pv_live_secret"), ("PII_VAULT_ACCESS_KEY_FILE", "/k")];
        assert!(resolve(&flags, &both, &file()).is_err());
        let settings = resolve(&flags, &both[..1], &file()).unwrap();
        assert!(!format!("{settings:?} {:?}", settings.told()).contains("secret"));
        assert_eq!(settings.credential.read().unwrap().unwrap().expose(), "pv_live_secret");
    }

    #[test]
    fn unknown_profiles_and_unknown_keys_are_refused() {
        let flags = GlobalArgs { profile: Some("nope".into()), ..Default::default() };
        assert!(resolve(&flags, &[], &file()).is_err());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, "current = \"a\"\n[profile.a]\naccess_key = \"x\"\n").unwrap();
        let error = ProfileFile::load(&path).unwrap_err().to_string();
        assert!(error.contains("config.toml:3"), "{error}");
    }

    #[test]
    fn a_profile_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_private(&path, b"pv_live_x\n").unwrap();
        let credential = Credential::PrivateFile(path.clone());
        assert_eq!(credential.read().unwrap().unwrap().expose(), "pv_live_x");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(credential.read().unwrap_err().exit_code(), 2);
    }

    #[test]
    fn what_is_saved_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/config.toml");
        file().save(&path).unwrap();
        assert_eq!(ProfileFile::load(&path).unwrap(), file());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
