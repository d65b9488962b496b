//! The parts of one vault, put together from a configuration: keeper, root KEK, store, read log, keyring, vault.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::clock::Clock;
use crate::config::{Config, KeyPeriod};
use crate::crypto::password::Argon2Cost;
use crate::crypto::recovery::RecoveryRecipient;
use crate::ids::*;
use crate::keyring::archive::setting::SETTING;
use crate::keyring::keeper::{FileKeeper, Guard, Keeper, KeeperError, ReplicaStatus, TokenObjects, media};
use crate::keyring::root::pkcs11::PinSource;
use crate::keyring::root::{RootError, RootSource};
use crate::keyring::token::{TokenError, TokenOptions};
use crate::keyring::{KeyArchive, Keyring, KeyringError, KeyringOptions, RecoverySetting};
use crate::recovery::backups::Backups;
use crate::recovery::data_archive::Sources;
use crate::recovery::layout;
use crate::recovery::swapping::{self, Found, Places};
use crate::server::roots::{ConfiguredRoots, prepare_root};
use crate::storage::readlog::{ReadLog, ReadLogError, ReadLogOptions};
use crate::storage::sqlite::{Options as SqliteOptions, SqliteStore, lock};
use crate::storage::{ChangeSet, Mutation, ObjectKind, ObjectRow, Store, StoreError, TenantRow, TenantState};
use crate::vault::checkpoints::known_reads;
use crate::vault::rollback::Rollback;
use crate::vault::rotation::{Kind, Periods};
use crate::vault::tenant::{TenantKind, TenantSettings};
use crate::vault::{Vault, VaultError, VaultOptions};

/// A vault's parts, open.
pub struct Node {
    pub vault: Arc<Vault>,
    pub store: Arc<dyn Store>,
    pub keyring: Arc<Keyring>,
    pub read_log: Arc<ReadLog>,
    pub backups: Arc<Backups>,
}

/// What `init` made and shows once.
pub struct Initialised {
    pub vault: VaultId,
    /// Verifies receipts, checkpoints and the ledger: to be published.
    pub public_key: [u8; 32],
    /// The first operator's access key.
    pub operator_key: Zeroizing<String>,
}

/// Why a node does not open.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("no root key is configured: set root_kek")]
    NoRootKek,
    #[error("no keeper is configured: set keeper.paths")]
    NoKeeper,
    #[error("there is no vault in {path}: run `pii-vault init` first")]
    NoVault { path: PathBuf },
    /// The database is older than the keeper saw it. Nothing was changed.
    #[error("DATABASE_BEHIND: the database lacks {} entries that were there at {}: {}",
        .0.missing, .0.seen_at.rfc3339(), .0.advice())]
    DatabaseBehind(Rollback),
    #[error("{path}")]
    Path {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Root(#[from] RootError),
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    #[error("the keeper's token")]
    KeeperToken(#[source] TokenError),
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the read audit cannot be opened")]
    ReadLog(#[from] ReadLogError),
    #[error(transparent)]
    Vault(#[from] VaultError),
}

/// Why a vault is not made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// Nothing that exists is ever overwritten.
    #[error("there is a vault in {path} already")]
    Exists { path: PathBuf },
    #[error(transparent)]
    Node(#[from] NodeError),
}

fn database(config: &Config) -> PathBuf {
    config.data_dir.join("vault.db")
}

/// What a restore is about.
pub(super) fn places(config: &Config) -> Places {
    let (data_dir, keepers) = (config.data_dir.clone(), config.keeper.paths.clone());
    Places { data_dir, keepers, backups: config.backups_dir() }
}

/// What guards the keeper's roots: the configured token, once it answers or `wait_s` is over.
pub(super) async fn guard(config: &Config) -> Result<Option<Guard>, NodeError> {
    let Some(from) = &config.keeper.token else { return Ok(None) };
    let pin = match (&from.pin_file, &from.pin_credential) {
        (Some(path), None) => PinSource::File(path.clone()),
        (None, Some(name)) => PinSource::Credential(name.clone()),
        _ => return Err(RootError::Form { rule: "exactly one of pin_file, pin_credential" }.into()),
    };
    let options = TokenOptions { module: from.module.clone(), label: from.token.clone() };
    let timeout = Duration::from_millis(from.timeout_ms);
    let no_thread = |e: io::Error| NodeError::KeeperToken(TokenError::Away { what: e.to_string() });
    let objects = Arc::new(TokenObjects::new(options, pin, timeout).map_err(no_thread)?);
    let (begun, mut pause) = (tokio::time::Instant::now(), Duration::from_millis(200));
    loop {
        let asked = objects.clone();
        let ready = tokio::task::spawn_blocking(move || asked.ready()).await;
        let error = match ready {
            Ok(Ok(())) => return Ok(Some(Guard { objects, label: from.key.clone() })),
            Ok(Err(error)) => error,
            Err(_) => TokenError::Refused { what: "interrupted".into() },
        };
        let over = begun.elapsed() + pause > Duration::from_secs(from.wait_s);
        if over || matches!(error, TokenError::Refused { .. }) {
            return Err(NodeError::KeeperToken(error));
        }
        tracing::warn!(%error, "the keeper's token does not answer: trying again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

fn audit_dir(config: &Config) -> PathBuf {
    config.data_dir.join("read-audit")
}

/// Makes a directory that only we may read, and the ones above it.
pub(super) fn private_dir(path: &Path) -> Result<(), NodeError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| NodeError::Path { path: path.to_owned(), source })
}

fn sqlite_options(config: &Config, vault: VaultId) -> SqliteOptions {
    let mut options = SqliteOptions::new(database(config), vault);
    options.readers = config.storage.readers;
    options.write_queue = config.storage.write_queue;
    options.cache_bytes = config.cache.ciphertext_mib << 20;
    options
}

fn keyring_options(
    config: &Config,
    vault: VaultId,
    recovery: Option<Vec<u8>>,
    clock: Arc<dyn Clock>,
) -> KeyringOptions {
    let keys = layout::keys(&config.backups_dir());
    let archive = KeyArchive::new(keys, vault, recovery, config.backup.horizon_days, clock.clone());
    let mut options = KeyringOptions::new(clock);
    options.archive = Some(Arc::new(archive));
    options.node_bytes = config.cache.tree_nodes * 3_840;
    options.class_keys = config.cache.data_keys;
    options
}

pub(super) fn vault_options(config: &Config) -> VaultOptions {
    let audit_days = i64::from(config.audit.retention_days);
    let mut options = VaultOptions { region: config.region.clone(), audit_days, ..VaultOptions::new() };
    options.longest_call_ms = i64::try_from(config.limits.max_call_s.saturating_mul(1_000)).unwrap_or(i64::MAX);
    options.configuration = config.published();
    options.rotation = rotation_options(config);
    let (from, argon2) = (&config.argon2, &mut options.argon2);
    argon2.cost = Argon2Cost { memory_kib: from.memory_kib, passes: from.iterations, lanes: from.parallelism };
    argon2.limit_kib = argon2.limit_kib.max(from.memory_kib);
    if from.concurrency > 0 {
        argon2.threads = from.concurrency;
    }
    argon2.queue = from.queue;
    argon2.wait = Duration::from_millis(from.max_wait_ms);
    let (from, passwords) = (&config.passwords, &mut options.passwords);
    passwords.cost = Argon2Cost { memory_kib: from.memory_kib, passes: from.iterations, lanes: from.parallelism };
    passwords.limit_kib = from.import_memory_kib;
    if from.concurrency > 0 {
        passwords.threads = from.concurrency;
    }
    passwords.queue = from.queue;
    passwords.wait = Duration::from_millis(from.max_wait_ms);
    options.access_cache.entries = config.cache.access_keys;
    options.access_cache.accepted_for = Duration::from_secs(config.cache.access_key_s);
    options
}

/// When keys are due, and which are rotated then.
fn rotation_options(config: &Config) -> Periods {
    let from = &config.rotation;
    let kind = |kind: &KeyPeriod| match kind {
        KeyPeriod::TenantRoot => Kind::TenantRoot,
        KeyPeriod::Tree => Kind::Tree,
        KeyPeriod::Data => Kind::Data,
        KeyPeriod::Index => Kind::Index,
        KeyPeriod::PageToken => Kind::PageToken,
        KeyPeriod::Signing => Kind::Signing,
    };
    Periods {
        root: from.root_days,
        tenant_root: from.tenant_root_days,
        tree: from.tree_days,
        data: from.data_days,
        index: from.index_days,
        password_pepper: from.password_pepper_days,
        access_key_pepper: from.access_key_pepper_days,
        page_token: from.page_token_days,
        signing: from.signing_days,
        warn: from.warn_days,
        automatic: from.automatic.iter().map(kind).collect(),
    }
}

/// Makes a vault: root key (where it is a file that is not there yet), keeper, database, tenant 0, and the first
/// operator's access key. Keys are archived for `recovery`, to which nobody is: no archive. Refuses to touch anything
/// that exists.
pub async fn init(
    config: &Config,
    recovery: &[RecoveryRecipient],
    clock: Arc<dyn Clock>,
) -> Result<Initialised, InitError> {
    let path = database(config);
    if path.exists() {
        return Err(InitError::Exists { path });
    }
    if config.keeper.paths.is_empty() {
        return Err(NodeError::NoKeeper.into());
    }
    private_dir(&config.data_dir)?;
    for path in &config.keeper.paths {
        private_dir(path)?;
    }
    prepare_root(config).await?;
    let (mut keks, roots) = ConfiguredRoots::load(config).await?;
    let kek = keks.swap_remove(0);
    let vault = VaultId(crate::crypto::random::bytes());
    let media = media(&config.keeper.paths, guard(config).await?.as_ref());
    FileKeeper::create_on(&media, vault).map_err(NodeError::from)?;
    let keeper: Arc<dyn Keeper> = Arc::new(FileKeeper::open_on(&media).map_err(NodeError::from)?);
    let options = sqlite_options(config, vault).create();
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(options).map_err(NodeError::from)?);
    let row = TenantRow {
        no: TenantNo::VAULT,
        name: Name::parse("tenant", "vault").expect("a constant of the right form"),
        state: TenantState::Live,
        generation: Generation(1),
        body: serde_json::to_vec(&TenantSettings::new(TenantKind::Live, clock.now()))
            .expect("settings are a plain struct"),
        revision: Revision(1),
    };
    let options = keyring_options(config, vault, None, clock.clone());
    let setting = RecoverySetting::new(vault, recovery, clock.now());
    if let Some(archive) = &options.archive {
        archive.put_setting(setting.clone()).map_err(|refused| NodeError::Keyring(refused.into()))?;
    }
    let keyring = Keyring::init(store.clone(), keeper, kek, options, row, ChangeSet::default()).await;
    let keyring = keyring.map_err(NodeError::from)?;
    put_recovery_setting(&*store, &keyring, &setting).await.map_err(NodeError::from)?;
    let (node, _) = assemble(config, store, keyring, roots, clock, false).await?;
    let name = Name::parse("access key", "first-operator").expect("a constant of the right form");
    let issued = node.vault.issue_first_key(name).await.map_err(NodeError::from)?;
    let operator_key = issued.text.ok_or(NodeError::Vault(VaultError::Conflict))?;
    let made = Initialised { vault, public_key: node.keyring.signing().public(), operator_key };
    node.close().await;
    Ok(made)
}

/// Makes replicas of the keeper in those configured places that have none, as copies of the others, and gives every
/// tenant's root to those that lack it. The server must not be running.
pub async fn add_replicas(config: &Config, clock: Arc<dyn Clock>) -> Result<Vec<ReplicaStatus>, NodeError> {
    for path in &config.keeper.paths {
        private_dir(path)?;
    }
    let keeper = FileKeeper::join_on(&media(&config.keeper.paths, guard(config).await?.as_ref()))?;
    drop(keeper);
    // Opening tidies: whoever lacks a present root gets it, older ones are overwritten.
    let node = Node::open(config, clock).await?;
    let replicas = node.keyring.keeper().replicas();
    node.close().await;
    Ok(replicas)
}

/// Stores to whom keys are archived, signed.
async fn put_recovery_setting(store: &dyn Store, ring: &Keyring, setting: &RecoverySetting) -> Result<(), StoreError> {
    let mut change = ChangeSet::default();
    change.change(Mutation::PutObject(ObjectRow {
        tenant: TenantNo::VAULT,
        kind: ObjectKind::Setting,
        key: SETTING.to_vec(),
        revision: Revision(1),
        body: setting.sign(&ring.signing()),
    }));
    store.commit(change).await.map(|_| ())
}

/// Completes or undoes a restore that was interrupted. Nobody else has the vault open.
fn finish_restore(config: &Config, guard: Option<&Guard>) -> Result<(), NodeError> {
    let at = |source| NodeError::Path { path: config.data_dir.clone(), source };
    match swapping::finish(&places(config), guard).map_err(at)? {
        Found::Nothing => {}
        Found::Undone => tracing::warn!("a restore that was interrupted was removed: the vault is as it was"),
        Found::Finished => tracing::warn!("a restore that was interrupted was finished"),
    }
    Ok(())
}

impl Node {
    /// Opens an existing vault.
    ///
    /// # Errors
    /// `DatabaseBehind` where the keeper saw a newer database.
    pub async fn open(config: &Config, clock: Arc<dyn Clock>) -> Result<Node, NodeError> {
        Self::open_checked(config, clock, false).await
    }

    /// The same although the read audit lacks what a checkpoint names, which is then noted in the audit: after a loss of
    /// that directory.
    pub async fn open_accepting_loss(config: &Config, clock: Arc<dyn Clock>) -> Result<Node, NodeError> {
        Self::open_checked(config, clock, true).await
    }

    async fn open_checked(config: &Config, clock: Arc<dyn Clock>, accept_loss: bool) -> Result<Node, NodeError> {
        let (node, lost) = Self::open_with(config, clock, accept_loss).await?;
        let found = match node.vault.rolled_back().await {
            Ok(None) => node.vault.end_interrupted_backups().await.map_err(NodeError::from),
            Ok(Some(rollback)) => Err(NodeError::DatabaseBehind(rollback)),
            Err(error) => Err(error.into()),
        };
        let found = match found {
            Ok(()) if lost => node.vault.accept_audit_loss().await.map_err(NodeError::from),
            found => found,
        };
        match found {
            Ok(()) => Ok(node),
            Err(error) => {
                node.close().await;
                Err(error)
            }
        }
    }

    /// Goes on with a database that is older than the keeper saw it, where that undoes nothing. The server must not be
    /// running.
    pub async fn accept_rollback(config: &Config, clock: Arc<dyn Clock>) -> Result<Rollback, NodeError> {
        let node = Self::open_unchecked(config, clock).await?;
        let accepted = node.vault.accept_rollback().await;
        node.close().await;
        Ok(accepted?)
    }

    /// Opens whatever database is there; for a restore beside the live tree.
    pub async fn open_unchecked(config: &Config, clock: Arc<dyn Clock>) -> Result<Node, NodeError> {
        Ok(Self::open_with(config, clock, false).await?.0)
    }

    /// Also answers whether a loss of the read audit is there to be noted.
    async fn open_with(config: &Config, clock: Arc<dyn Clock>, accept_loss: bool) -> Result<(Node, bool), NodeError> {
        let path = database(config);
        let guard = guard(config).await?;
        if config.data_dir.exists() {
            let _alone = lock(&path)?;
            finish_restore(config, guard.as_ref())?;
        }
        if !path.exists() {
            return Err(NodeError::NoVault { path: config.data_dir.clone() });
        }
        if config.keeper.paths.is_empty() {
            return Err(NodeError::NoKeeper);
        }
        let (keks, roots) = ConfiguredRoots::load(config).await?;
        let keeper: Arc<dyn Keeper> = Arc::new(FileKeeper::open_on(&media(&config.keeper.paths, guard.as_ref()))?);
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(sqlite_options(config, keeper.vault()))?);
        let recovery = store.object(TenantNo::VAULT, ObjectKind::Setting, SETTING.to_vec()).await?;
        let options = keyring_options(config, keeper.vault(), recovery.map(|row| row.body), clock.clone());
        let keyring = Keyring::open_with(store.clone(), keeper, keks, options).await?;
        assemble(config, store, keyring, roots, clock, accept_loss).await
    }

    /// Closes the files once everything queued is durable.
    pub async fn close(self) {
        let Node { vault, store, keyring, read_log, backups } = self;
        backups.stop().await;
        drop(backups);
        drop(vault);
        store.close().await;
        drop(keyring);
        if let Some(log) = Arc::into_inner(read_log) {
            log.close();
        }
    }
}

async fn assemble(
    config: &Config,
    store: Arc<dyn Store>,
    keyring: Arc<Keyring>,
    roots: Arc<dyn RootSource>,
    clock: Arc<dyn Clock>,
    accept_loss: bool,
) -> Result<(Node, bool), NodeError> {
    let dir = audit_dir(config);
    private_dir(&dir)?;
    let mut options = ReadLogOptions::new(keyring.vault());
    options.segment_bytes = config.audit.segment_mib << 20;
    let known = known_reads(&*store, &keyring, clock.now()).await?;
    let (opened, lost) = match ReadLog::open(&dir, options.clone(), &known, clock.now()) {
        Err(ReadLogError::Truncated { .. } | ReadLogError::Replaced { .. }) if accept_loss => {
            (ReadLog::open(&dir, options, &[], clock.now()), true)
        }
        opened => (opened, false),
    };
    let (read_log, recovered) = opened?;
    if recovered.torn_bytes > 0 {
        tracing::warn!(bytes = recovered.torn_bytes, "the read audit ended in a frame that was never acknowledged");
    }
    let read_log = Arc::new(read_log);
    let options = VaultOptions { roots: Some(roots), ..vault_options(config) };
    let vault = Vault::open(store.clone(), keyring.clone(), read_log.clone(), clock.clone(), options).await?;
    let sources = Sources { store: store.clone(), keyring: keyring.clone(), read_log: read_log.clone() };
    let backups = Backups::new(vault.clone(), sources, clock, config.backup_options());
    Ok((Node { vault, store, keyring, read_log, backups }, lost))
}
