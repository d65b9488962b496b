//! A restore on the machine of the vault, from its configuration: what is still there of keeper and root key is used, what
//! is not is made.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::clock::Clock;
use crate::config::Config;
use crate::crypto::keys::RootKek;
use crate::crypto::recovery::RecoveryIdentity;
use crate::crypto::sign::Signing;
use crate::keyring::keeper::{Anchor, FileKeeper, Guard, Keeper, KeeperError, OwnBlock, media, open_signing};
use crate::keyring::ledger::LedgerHead;
use crate::recovery::catalogue;
use crate::recovery::layout;
use crate::recovery::restore::{Found, Keys, Report, RestoreError, Target, Wanted, stage, take_place};
use crate::recovery::swapping;
use crate::server::node::{Node, NodeError, guard, places, private_dir, vault_options};
use crate::server::roots::{ConfiguredRoots, prepare_root, root_spec};
use crate::storage::sqlite::lock;

/// What is asked for.
#[derive(Default)]
pub struct RestoreRequest {
    /// A data archive, a folder of archives, or a data directory.
    pub from: PathBuf,
    /// Private recovery keys; none: the live tree and keeper are used.
    pub identities: Vec<RecoveryIdentity>,
    /// Folder of the key archive, if it is not beside the data.
    pub keys: Option<PathBuf>,
    /// Public signing keys of the vault.
    pub public_keys: Vec<[u8; 32]>,
    pub ledgers: Vec<PathBuf>,
    pub through: Option<u64>,
    pub receipts: Vec<PathBuf>,
    pub accept_lost: bool,
    /// Do not look at what lies in the keeper's places.
    pub ignore_keeper: bool,
    pub dry_run: bool,
}

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreFailed {
    #[error("the server is running: stop it first")]
    Running,
    #[error("no key archive beside {path}: name its folder with --keys")]
    NoKeys { path: PathBuf },
    #[error("no public signing key of the vault is known: name it with --public-key")]
    NoPublicKey,
    #[error("{path}")]
    Path {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// It is there, and cannot be used.
    #[error("the keeper cannot be read; --ignore-keeper goes on without it")]
    Keeper(#[source] KeeperError),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Restore(#[from] RestoreError),
}

/// What the keeper still tells.
#[derive(Default)]
struct Kept {
    signing: Option<Signing>,
    anchor: Option<LedgerHead>,
    ledger: Option<PathBuf>,
}

/// Restores, or with `dry_run` says what would come back. `point` is asked at each step, for tests.
pub async fn restore(
    config: &Config,
    request: RestoreRequest,
    clock: Arc<dyn Clock>,
    point: Box<dyn FnMut(&'static str) -> bool + Send>,
) -> Result<Report, RestoreFailed> {
    let places = places(config);
    private_dir(&config.data_dir)?;
    let at = |source| RestoreFailed::Path { path: config.data_dir.clone(), source };
    let mut alone = Some(not_running(&config.data_dir)?);
    let guard = guard(config).await?;
    swapping::finish(&places, guard.as_ref()).map_err(at)?;
    let known = if request.ignore_keeper { None } else { under(config, guard.as_ref()).await? };
    let (kek, mut kept) = match known {
        Some(known) => known,
        None => {
            let kek = if request.dry_run {
                // What only counts wraps no root: it makes no root key, and does not need one.
                root_spec(config)?.provider().load().await.unwrap_or_else(|_| RootKek::generate())
            } else {
                config.keeper.paths.iter().try_for_each(|path| private_dir(path))?;
                prepare_root(config).await?;
                root_spec(config)?.provider().load().await.map_err(NodeError::from)?
            };
            let kept = if request.ignore_keeper { Kept::default() } else { kept(config, guard.as_ref(), &kek).await? };
            (kek, kept)
        }
    };
    let mut public_keys = request.public_keys;
    public_keys.extend(kept.signing.iter().map(Signing::public));
    if public_keys.is_empty() {
        return Err(RestoreFailed::NoPublicKey);
    }
    let (keys, live) = if request.identities.is_empty() {
        // The node has the same lock.
        alone = None;
        let node = Node::open_unchecked(config, clock.clone()).await?;
        (Keys::Live(node.keyring.clone()), Some(node))
    } else {
        let dir = match request.keys {
            Some(dir) => dir,
            None => {
                let found = Found::look(&request.from)?;
                found.keys.ok_or(RestoreFailed::NoKeys { path: found.data })?
            }
        };
        (Keys::Archive { dir, identities: request.identities }, None)
    };
    // The newest archive of the configured folder knows what was decided until then, also when an older one is restored.
    let archived = catalogue::newest(&config.backups_dir()).ok().flatten().map(|one| one.path.join(layout::LEDGER));
    let wanted = Wanted {
        from: request.from,
        keys,
        public_keys,
        ledgers: request.ledgers.into_iter().chain(kept.ledger).chain(archived).collect(),
        anchor: kept.anchor,
        through: request.through,
        receipts: request.receipts,
        accept_lost: request.accept_lost,
        dry_run: request.dry_run,
    };
    let mut target = Target {
        places,
        guard: guard.clone(),
        kek,
        signing: kept.signing.take(),
        horizon_days: config.backup.horizon_days,
        vault_options: vault_options(config),
        clock,
        point,
    };
    let staged = stage(&wanted, &mut target).await;
    drop(wanted);
    if let Some(node) = live {
        node.close().await;
    }
    let report = staged?;
    if !report.dry_run {
        let _alone = alone.map_or_else(|| not_running(&config.data_dir), Ok)?;
        take_place(&mut target)?;
    }
    Ok(report)
}

/// Keeps every other process from opening the vault, until it is dropped.
fn not_running(data_dir: &Path) -> Result<File, RestoreFailed> {
    lock(&data_dir.join(layout::DATABASE)).map_err(|_| RestoreFailed::Running)
}

/// The root key that the keeper is under, and what it tells: after a rotation that is the next one of the configuration.
async fn under(config: &Config, guard: Option<&Guard>) -> Result<Option<(RootKek, Kept)>, RestoreFailed> {
    let Ok((keks, _)) = ConfiguredRoots::load(config).await else { return Ok(None) };
    for kek in keks {
        let kept = kept(config, guard, &kek).await?;
        if kept.signing.is_some() {
            return Ok(Some((kek, kept)));
        }
    }
    Ok(None)
}

/// Signing key, anchor and ledger of a keeper that is still there; under another root KEK, the ledger alone.
async fn kept(config: &Config, guard: Option<&Guard>, kek: &RootKek) -> Result<Kept, RestoreFailed> {
    let there = |dir: &PathBuf| dir.join("roots.keeper").exists();
    let Some(first) = config.keeper.paths.iter().find(|dir| there(dir)) else { return Ok(Kept::default()) };
    let keeper = match FileKeeper::open_on(&media(&config.keeper.paths, guard)) {
        Ok(keeper) => keeper,
        Err(KeeperError::InUse) => return Err(RestoreFailed::Running),
        Err(error) => return Err(RestoreFailed::Keeper(error)),
    };
    let vault = keeper.vault();
    let signing = keeper.own(OwnBlock::Signing).await.map_err(RestoreFailed::Keeper)?;
    let anchor = keeper.own(OwnBlock::Anchor).await.map_err(RestoreFailed::Keeper)?;
    Ok(Kept {
        signing: signing.and_then(|(_, block)| open_signing(vault, kek, &block).ok()),
        anchor: anchor.and_then(|(_, block)| Anchor::decode(vault, kek, &block)).map(|anchor| anchor.ledger),
        ledger: Some(first.join("ledger.keeper")),
    })
}
