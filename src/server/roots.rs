//! Root KEKs as the configuration names them: the present one and, while it is being rotated, the next.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::config::{Config, RootKekSource};
use crate::crypto::keys::RootKek;
use crate::keyring::root::aws_kms::{AwsKmsOptions, AwsKmsRoot};
use crate::keyring::root::pkcs11::{PinSource, Pkcs11Options, Pkcs11Root};
use crate::keyring::root::shares::SharesOptions;
use crate::keyring::root::transit::{TransitOptions, TransitRoot};
use crate::keyring::root::{
    NextRoot, PassphraseParams, PassphraseSource, RootError, RootSource, RootSpec, create_key_file,
};
use crate::keyring::token::TokenOptions;
use crate::server::node::{NodeError, private_dir};

fn params_path(config: &Config, name: Option<&str>) -> Result<PathBuf, NodeError> {
    let name = name.unwrap_or("passphrase.json");
    if name.contains('/') || name.starts_with('.') {
        return Err(RootError::Form { rule: "params is a plain file name in the first keeper directory" }.into());
    }
    config.keeper.paths.first().map(|dir| dir.join(name)).ok_or(NodeError::NoKeeper)
}

fn spec_of(config: &Config, source: &RootKekSource) -> Result<RootSpec, NodeError> {
    Ok(match source.clone() {
        RootKekSource::File { path } => RootSpec::File { path },
        RootKekSource::Env { name } => RootSpec::Env { name },
        RootKekSource::Credential { name } => RootSpec::Credential { name },
        RootKekSource::Passphrase { file, env, credential, params } => {
            let source = match (file, env, credential) {
                (Some(path), None, None) => PassphraseSource::File(path),
                (None, Some(name), None) => PassphraseSource::Env(name),
                (None, None, Some(name)) => PassphraseSource::Credential(name),
                _ => return Err(NodeError::NoRootKek),
            };
            RootSpec::Passphrase { source, params: params_path(config, params.as_deref())? }
        }
        RootKekSource::Transit { address, key, token_file, mount, ca, namespace, timeout_ms, wait_s, file, .. } => {
            RootSpec::Transit(TransitOptions {
                address,
                mount,
                key,
                token_file,
                ca,
                namespace,
                timeout: Duration::from_millis(timeout_ms),
                wait: Duration::from_secs(wait_s),
                file: params_path(config, Some(&file))?,
            })
        }
        RootKekSource::AwsKms { key, region, vault, endpoint, timeout_ms, wait_s, file, .. } => {
            RootSpec::AwsKms(AwsKmsOptions {
                key,
                region,
                vault,
                endpoint,
                timeout: Duration::from_millis(timeout_ms),
                wait: Duration::from_secs(wait_s),
                file: params_path(config, Some(&file))?,
            })
        }
        RootKekSource::Shares { directory, wait_s, params } => RootSpec::Shares(SharesOptions {
            directory,
            wait: Duration::from_secs(wait_s),
            params: params_path(config, params.as_deref())?,
        }),
        RootKekSource::Pkcs11 { module, token, key, pin_file, pin_credential, timeout_ms, wait_s, file, .. } => {
            let pin = match (pin_file, pin_credential) {
                (Some(path), None) => PinSource::File(path),
                (None, Some(name)) => PinSource::Credential(name),
                _ => return Err(RootError::Form { rule: "exactly one of pin_file, pin_credential" }.into()),
            };
            RootSpec::Pkcs11(Pkcs11Options {
                token: TokenOptions { module, label: token },
                pin,
                key,
                timeout: Duration::from_millis(timeout_ms),
                wait: Duration::from_secs(wait_s),
                file: params_path(config, Some(&file))?,
            })
        }
    })
}

fn provider_name(source: &RootKekSource) -> &'static str {
    match source {
        RootKekSource::File { .. } => "file",
        RootKekSource::Env { .. } => "environment",
        RootKekSource::Credential { .. } => "credential",
        RootKekSource::Passphrase { .. } => "passphrase",
        RootKekSource::Transit { .. } => "transit",
        RootKekSource::AwsKms { .. } => "aws-kms",
        RootKekSource::Shares { .. } => "shares",
        RootKekSource::Pkcs11 { .. } => "pkcs11",
    }
}

/// Whether it is on another machine, or in another device.
fn is_elsewhere(source: &RootKekSource) -> bool {
    use RootKekSource::{AwsKms, Pkcs11, Transit};
    matches!(source, Transit { .. } | Pkcs11 { .. } | AwsKms { .. })
}

/// The same, waiting at most so long for what is not there.
fn within(spec: RootSpec, most: Duration) -> RootSpec {
    match spec {
        RootSpec::Transit(mut options) => {
            options.wait = options.wait.min(most);
            RootSpec::Transit(options)
        }
        RootSpec::AwsKms(mut options) => {
            options.wait = options.wait.min(most);
            RootSpec::AwsKms(options)
        }
        RootSpec::Shares(mut options) => {
            options.wait = options.wait.min(most);
            RootSpec::Shares(options)
        }
        RootSpec::Pkcs11(mut options) => {
            options.wait = options.wait.min(most);
            RootSpec::Pkcs11(options)
        }
        other => other,
    }
}

/// Where the root key is, for those who need it alone: a restore.
pub(super) fn root_spec(config: &Config) -> Result<RootSpec, NodeError> {
    spec_of(config, config.root_kek.as_ref().ok_or(NodeError::NoRootKek)?)
}

/// Makes what the root key's source needs and does not have yet: a key file, or the salt of a passphrase.
pub(super) async fn prepare_root(config: &Config) -> Result<(), NodeError> {
    match &config.root_kek {
        Some(source) => prepare(config, source).await,
        None => Ok(()),
    }
}

async fn prepare(config: &Config, source: &RootKekSource) -> Result<(), NodeError> {
    match source {
        RootKekSource::File { path } if !path.exists() => {
            if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
                private_dir(dir)?;
            }
            create_key_file(path)?;
        }
        RootKekSource::Passphrase { params, .. } | RootKekSource::Shares { params, .. } => {
            let path = params_path(config, params.as_deref())?;
            if !path.exists() {
                PassphraseParams::generate(PassphraseParams::COST).create(&path)?;
            }
        }
        RootKekSource::Transit { .. } | RootKekSource::Pkcs11 { .. } | RootKekSource::AwsKms { .. } => {
            match spec_of(config, source)? {
                RootSpec::Transit(options) => TransitRoot(options).prepare().await?,
                RootSpec::Pkcs11(options) => Pkcs11Root(options).prepare().await?,
                RootSpec::AwsKms(options) => AwsKmsRoot(options).prepare().await?,
                _ => {}
            }
        }
        _ => {}
    }
    Ok(())
}

/// See the module.
#[derive(Debug)]
pub struct ConfiguredRoots {
    config: Config,
    /// Which provider the key of an id came from.
    known: Mutex<HashMap<[u8; 16], RootKekSource>>,
}

impl ConfiguredRoots {
    /// What the configuration names and is there: the root key, and the next one. After a rotation the first may be gone.
    pub async fn load(config: &Config) -> Result<(Vec<RootKek>, Arc<Self>), NodeError> {
        let roots = ConfiguredRoots { config: config.clone(), known: Mutex::default() };
        let first = config.root_kek.as_ref().ok_or(NodeError::NoRootKek)?;
        let mut keks = Vec::new();
        let mut failed = None;
        for source in [Some(first), config.root_kek_next.as_ref()].into_iter().flatten() {
            match spec_of(config, source)?.provider().load().await {
                Ok(kek) => {
                    roots.known.lock().insert(kek.id(), source.clone());
                    keks.push(kek);
                }
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        match failed {
            Some(error) if keks.is_empty() => Err(error.into()),
            _ => Ok((keks, Arc::new(roots))),
        }
    }
}

#[async_trait]
impl RootSource for ConfiguredRoots {
    async fn next(&self) -> Result<NextRoot, RootError> {
        let config =
            self.config.again().map_err(|_| RootError::Io { what: "the configuration is not right".into() })?;
        let Some(source) = &config.root_kek_next else {
            return Err(RootError::Missing { what: "root_kek_next is not in the configuration".into() });
        };
        let failed = |error| match error {
            NodeError::Root(error) => error,
            other => RootError::Io { what: other.to_string() },
        };
        prepare(&config, source).await.map_err(failed)?;
        // Somebody waits for the answer: not as long as a start.
        let spec = within(spec_of(&config, source).map_err(failed)?, Duration::from_secs(5));
        let kek = spec.provider().load().await?;
        self.known.lock().insert(kek.id(), source.clone());
        Ok(NextRoot { kek, provider: provider_name(source) })
    }

    async fn check(&self, present: &[u8; 16]) -> Result<(), RootError> {
        let source = self.known.lock().get(present).cloned();
        // On this machine: there is nobody to ask.
        let Some(source) = source.filter(is_elsewhere) else { return Ok(()) };
        let Ok(spec) = spec_of(&self.config, &source) else { return Ok(()) };
        // Once: who asks comes again.
        let provider = within(spec, Duration::ZERO).provider();
        match provider.load().await?.id() == *present {
            true => Ok(()),
            false => Err(RootError::Form { rule: "it gives another key than the vault was opened with" }),
        }
    }

    fn outage_ms(&self, present: &[u8; 16]) -> Option<i64> {
        match self.known.lock().get(present)? {
            RootKekSource::Transit { outage_h, .. }
            | RootKekSource::Pkcs11 { outage_h, .. }
            | RootKekSource::AwsKms { outage_h, .. }
                if *outage_h > 0 =>
            {
                Some(i64::from(*outage_h) * 3_600_000)
            }
            _ => None,
        }
    }

    fn provider_of(&self, id: &[u8; 16]) -> Option<&'static str> {
        self.known.lock().get(id).map(provider_name)
    }

    async fn destroy_former(&self, present: &[u8; 16]) -> Result<bool, RootError> {
        let mut former: Vec<RootKekSource> = {
            let known = self.known.lock();
            let all = known.values().chain(&self.config.root_kek).chain(&self.config.root_kek_next);
            all.filter(|source| known.get(present) != Some(source)).cloned().collect()
        };
        former.dedup();
        let mut destroyed = !former.is_empty();
        for source in former {
            let Ok(spec) = spec_of(&self.config, &source) else { return Ok(false) };
            destroyed &= spec.provider().destroy().await?;
        }
        self.known.lock().retain(|id, _| id == present);
        Ok(destroyed)
    }
}
