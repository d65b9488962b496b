//! Root KEKs as the configuration names them: the present one and, while it is being rotated, the next.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::config::{Config, RootKekSource};
use crate::crypto::keys::RootKek;
use crate::keyring::root::{
    NextRoot, PassphraseParams, PassphraseSource, RootError, RootSource, RootSpec, create_key_file,
};
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
    })
}

fn provider_name(source: &RootKekSource) -> &'static str {
    match source {
        RootKekSource::File { .. } => "file",
        RootKekSource::Env { .. } => "environment",
        RootKekSource::Credential { .. } => "credential",
        RootKekSource::Passphrase { .. } => "passphrase",
    }
}

/// Where the root key is, for those who need it alone: a restore.
pub(super) fn root_spec(config: &Config) -> Result<RootSpec, NodeError> {
    spec_of(config, config.root_kek.as_ref().ok_or(NodeError::NoRootKek)?)
}

/// Makes what the root key's source needs and does not have yet: a key file, or the salt of a passphrase.
pub(super) fn prepare_root(config: &Config) -> Result<(), NodeError> {
    config.root_kek.as_ref().map_or(Ok(()), |source| prepare(config, source))
}

fn prepare(config: &Config, source: &RootKekSource) -> Result<(), NodeError> {
    match source {
        RootKekSource::File { path } if !path.exists() => {
            if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
                private_dir(dir)?;
            }
            create_key_file(path)?;
        }
        RootKekSource::Passphrase { params, .. } => {
            let path = params_path(config, params.as_deref())?;
            if !path.exists() {
                PassphraseParams::generate(PassphraseParams::COST).create(&path)?;
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
        prepare(&config, source).map_err(failed)?;
        let kek = spec_of(&config, source).map_err(failed)?.provider().load().await?;
        self.known.lock().insert(kek.id(), source.clone());
        Ok(NextRoot { kek, provider: provider_name(source) })
    }

    fn provider_of(&self, id: &[u8; 16]) -> Option<&'static str> {
        self.known.lock().get(id).map(provider_name)
    }

    async fn destroy_former(&self, present: &[u8; 16]) -> Result<bool, RootError> {
        let former: Vec<([u8; 16], RootKekSource)> = self
            .known
            .lock()
            .iter()
            .filter(|(id, _)| *id != present)
            .map(|(id, source)| (*id, source.clone()))
            .collect();
        let mut destroyed = !former.is_empty();
        for (id, source) in former {
            let Ok(spec) = spec_of(&self.config, &source) else { return Ok(false) };
            destroyed &= spec.provider().destroy().await?;
            self.known.lock().remove(&id);
        }
        Ok(destroyed)
    }
}
