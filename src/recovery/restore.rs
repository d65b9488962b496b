//! Restore: everyone living of an archive comes back, nobody erased since does.
//!
//! All of it is put together in a staging folder beside the live files; nothing of those is touched until the very last
//! step, which takes the old roots with it. Interrupted before that, the staging folder is thrown away; after it, the
//! next start finishes (`swapping`).
//!
//! 1. The data archive is copied.
//! 2. Keys come from the live tree and keeper, or from the key archive.
//! 3. The ledger says what was decided since.
//! 4. Everything erased is dropped.
//! 5. The whole tree is keyed anew, with a new keeper, a new index secret, new tags.
//! 6. The folders change places.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use crate::clock::{Clock, Timestamp};
use crate::crypto::keys::RootKek;
use crate::crypto::recovery::RecoveryIdentity;
use crate::crypto::sign::Signing;
use crate::ids::*;
use crate::keyring::archive::file::file_name;
use crate::keyring::archive::setting::SETTING;
use crate::keyring::archive::{Archive, ArchiveError};
use crate::keyring::keeper::{FileKeeper, Guard, Keeper, KeeperError, OwnBlock, media, seal_signing};
use crate::keyring::ledger::LedgerHead;
use crate::keyring::rebuild::{KeySource, Rebuild, RebuildError};
use crate::keyring::{KeyArchive, Keyring, KeyringError, KeyringOptions, RecoverySetting};
use crate::recovery::catalogue;
use crate::recovery::layout;
use crate::recovery::replay::{Decisions, ReplayError, Sources};
use crate::recovery::swapping::{Places, copy_dir};
use crate::recovery::verify::{VerifyError, check_archive};
use crate::storage::readlog::{ReadLog, ReadLogError, ReadLogOptions};
use crate::storage::sqlite::{Options as SqliteOptions, SqliteStore, vault_of};
use crate::storage::*;
use crate::vault::expiry::is_over;
use crate::vault::restoring::{DecidedAgain, noted_until};
use crate::vault::tenant::TenantSettings;
use crate::vault::{Vault, VaultError, VaultOptions};

/// Numbers of subjects that a restored vault does not give: more than were given since any archive.
const SKIPPED_UIDS: i64 = 1 << 36;
/// Rows changed in one commit.
const AT_ONCE: usize = 2_000;
const MANY: u32 = 100_000;

/// Where the keys come from.
pub enum Keys {
    /// The live tree and keeper: what is erased is gone from them.
    Live(Arc<Keyring>),
    /// A key archive in this folder, opened by these.
    Archive { dir: PathBuf, identities: Vec<RecoveryIdentity> },
}

/// What is to be restored, and how.
pub struct Wanted {
    /// A data archive, a folder of archives (its newest), or a data directory.
    pub from: PathBuf,
    pub keys: Keys,
    /// Public signing keys of the vault, present and former.
    pub public_keys: Vec<[u8; 32]>,
    /// More copies of the ledger; those found with the data are always used.
    pub ledgers: Vec<PathBuf>,
    /// Where the ledger must at least end, from a keeper that is still there.
    pub anchor: Option<LedgerHead>,
    /// The operator's word where it ends.
    pub through: Option<u64>,
    pub receipts: Vec<PathBuf>,
    /// Go on although the keys of somebody living are missing.
    pub accept_lost: bool,
    /// Only count.
    pub dry_run: bool,
}

/// The vault that is made.
pub struct Target {
    pub places: Places,
    /// What guards the keeper's roots beside its files.
    pub guard: Option<Guard>,
    pub kek: RootKek,
    /// The signing key goes on where the keeper still has it.
    pub signing: Option<Signing>,
    pub horizon_days: u32,
    pub vault_options: VaultOptions,
    pub clock: Arc<dyn Clock>,
    /// Asked at each step, for tests: `false` ends there as a crash would.
    pub point: Box<dyn FnMut(&'static str) -> bool + Send>,
}

/// What became of one tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TenantRestored {
    pub tenant: String,
    /// Subjects with a key that live in the restored vault.
    pub subjects: u64,
    /// Keys of classes and buckets that came over.
    pub keys_opened: u64,
    /// Classes in the data that were erased since, and are gone again: by the record of it, or, where the end of the ledger
    /// is not known, because their key was dropped.
    pub erased_again: u64,
    /// Classes of living subjects whose key was not found, and why.
    pub lost: u64,
    pub why: Vec<String>,
    /// The whole tenant was erased.
    pub erased: bool,
}

/// What a restore did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    pub dry_run: bool,
    /// The data that was taken.
    pub data: String,
    pub keys: String,
    /// Where the ledger ends and when its last entry was made; whether nothing can be missing behind it.
    pub ledger_entries: u64,
    pub ledger_until: Option<Timestamp>,
    pub tail_known: bool,
    pub receipts_new: u64,
    pub receipts_of_many: u64,
    pub tenants: Vec<TenantRestored>,
    pub decided_again: DecidedAgain,
    /// Signs from now on, hexadecimal; a new one where the keeper was lost.
    pub public_key: String,
}

/// Why nothing was restored. The live vault is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("{path} holds no data archive: no vault.db, and no folder of archives with one")]
    NoData { path: PathBuf },
    #[error("{path} is refused")]
    Data {
        path: PathBuf,
        #[source]
        source: VerifyError,
    },
    #[error("{path}: there is no key archive of tenant {tenant}")]
    NoKeys { path: PathBuf, tenant: TenantNo },
    #[error("{path}")]
    Keys {
        path: PathBuf,
        #[source]
        source: ArchiveError,
    },
    #[error("{path}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path}: the disk is full; the live vault is as it was")]
    Full { path: PathBuf },
    #[error("the keys of {lost} classes of living subjects are missing; see --dry-run, and --accept-lost to go on")]
    Lost { lost: u64 },
    #[error("stopped at {0}")]
    Stopped(&'static str),
    #[error("the settings of tenant {0} cannot be read")]
    Settings(TenantNo),
    #[error(transparent)]
    Replay(#[from] ReplayError),
    #[error(transparent)]
    Rebuild(#[from] RebuildError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    #[error("the read audit of the archive cannot be opened")]
    ReadLog(#[from] ReadLogError),
    #[error(transparent)]
    Vault(#[from] VaultError),
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> RestoreError + '_ {
    move |source| RestoreError::Io { path: path.to_owned(), source }
}

/// Where everything lies that belongs to some data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Folder with `vault.db`.
    pub data: PathBuf,
    /// Folder of the key archive beside it, if there is one.
    pub keys: Option<PathBuf>,
    /// Copies of the ledger: the one beside the data, and that of the newest archive in the same place.
    pub ledgers: Vec<PathBuf>,
}

impl Found {
    /// Looks: a data archive itself, a folder of archives (its newest that was finished), or a data directory.
    pub fn look(from: &Path) -> Result<Found, RestoreError> {
        let has = |path: &Path| path.join(layout::DATABASE).exists();
        let existing = |path: PathBuf| path.exists().then_some(path);
        let data = if has(from) {
            from.to_owned()
        } else {
            let entries = std::fs::read_dir(from).map_err(io_at(from))?;
            let mut stamps: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
            stamps.retain(|path| has(path) && path.join(layout::MANIFEST).exists());
            stamps.sort();
            stamps.pop().ok_or_else(|| RestoreError::NoData { path: from.to_owned() })?
        };
        let keys = [
            Some(layout::keys(from)),
            data.parent().map(layout::keys),
            Some(layout::keys(&data.join(layout::BACKUPS))),
        ];
        let keys = keys.into_iter().flatten().find_map(existing);
        let folders = [Some(from.to_owned()), data.parent().map(Path::to_owned), Some(data.join(layout::BACKUPS))];
        let newest = folders.into_iter().flatten().filter_map(|folder| catalogue::newest(&folder).ok().flatten());
        let ledgers: BTreeSet<PathBuf> =
            newest.map(|archive| archive.path).chain([data.clone()]).map(|path| path.join(layout::LEDGER)).collect();
        let ledgers = ledgers.into_iter().filter_map(existing).collect();
        Ok(Found { data, keys, ledgers })
    }
}

/// Puts the restored vault together beside the live one, which stays as it is; see the module. Then [`take_place`].
pub async fn stage(wanted: &Wanted, target: &mut Target) -> Result<Report, RestoreError> {
    let found = Found::look(&wanted.from)?;
    let staging = target.places.staging();
    target.places.clear(target.guard.as_ref()).map_err(io_at(&staging))?;
    private(&target.places.data_dir)?;
    let report = stage_in(wanted, target, &found, &staging).await;
    // Whatever goes wrong leaves nothing; a crash, which tests play, leaves it to the next start.
    if wanted.dry_run || !matches!(report, Ok(_) | Err(RestoreError::Stopped(_))) {
        target.places.clear(target.guard.as_ref()).map_err(io_at(&staging))?;
    }
    report.map_err(|error| if error.full() { RestoreError::Full { path: staging } } else { error })
}

impl RestoreError {
    /// A disk that is written to is full.
    fn full(&self) -> bool {
        match self {
            RestoreError::Store(error)
            | RestoreError::Rebuild(RebuildError::Store(error) | RebuildError::Keyring(KeyringError::Store(error)))
            | RestoreError::Keyring(KeyringError::Store(error))
            | RestoreError::Vault(VaultError::Store(error) | VaultError::Keyring(KeyringError::Store(error))) => {
                matches!(error, StoreError::DiskFull)
            }
            RestoreError::Keeper(error) => *error == KeeperError::DiskFull,
            _ => false,
        }
    }
}

/// The last step, and the only one that changes what is live. Nothing may have the live vault open.
pub fn take_place(target: &mut Target) -> Result<(), RestoreError> {
    let places = target.places.clone();
    places.decide().map_err(io_at(&places.data_dir))?;
    places.carry_out(target.guard.as_ref(), &mut target.point).map_err(io_at(&places.data_dir))
}

/// Everything but the last step.
async fn stage_in(wanted: &Wanted, target: &mut Target, found: &Found, staging: &Path) -> Result<Report, RestoreError> {
    // 1. The data.
    if found.data.join(layout::MANIFEST).exists() {
        check_archive(&found.data, Some(&wanted.public_keys), &mut |_| true)
            .map_err(|source| RestoreError::Data { path: found.data.clone(), source })?;
    }
    private(staging)?;
    for name in [layout::DATABASE, "vault.db-wal"] {
        let from = found.data.join(name);
        if from.exists() {
            std::fs::copy(&from, staging.join(name)).map_err(io_at(&from))?;
        }
    }
    let audit = found.data.join(layout::READ_AUDIT);
    let staged_audit = staging.join(layout::READ_AUDIT);
    private(&staged_audit)?;
    if audit.exists() && !wanted.dry_run {
        copy_dir(&audit, &staged_audit).map_err(io_at(&audit))?;
    }
    target.at("data copied")?;
    let database = staging.join(layout::DATABASE);
    let vault = vault_of(&database)?;
    let mut options = SqliteOptions::new(&database, vault);
    options.cache_bytes = 0;
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(options)?);
    let staged = rebuild(wanted, target, found, vault, store.clone()).await;
    store.close().await;
    drop(store);
    let (mut report, setting, decisions) = staged?;
    target.at("tree made anew")?;
    if wanted.dry_run {
        return Ok(report);
    }
    finish(target, staging, vault, setting, &decisions, &mut report).await?;
    target.at("everything staged")?;
    Ok(report)
}

impl Target {
    fn at(&mut self, name: &'static str) -> Result<(), RestoreError> {
        if (self.point)(name) { Ok(()) } else { Err(RestoreError::Stopped(name)) }
    }
}

/// 2 to 5, on the copy: keys, ledger, rows, tree and keeper.
async fn rebuild(
    wanted: &Wanted,
    target: &mut Target,
    found: &Found,
    vault: VaultId,
    store: Arc<dyn Store>,
) -> Result<(Report, RecoverySetting, Decisions), RestoreError> {
    let now = target.clock.now();
    let identities: Arc<[RecoveryIdentity]> = match &wanted.keys {
        Keys::Live(_) => Arc::from([]),
        Keys::Archive { identities, .. } => identities.iter().map(RecoveryIdentity::again).collect(),
    };
    let mut recovery = recovery_setting(&*store, wanted, vault, &identities, now).await?;
    // A vault that was restored before names the keys that signed until then.
    let public_keys = [&wanted.public_keys[..], &recovery.former_signers()].concat();
    let ledgers: BTreeSet<PathBuf> = found.ledgers.iter().chain(&wanted.ledgers).cloned().collect();
    let ledgers: Vec<PathBuf> = ledgers.into_iter().collect();
    let decisions = Decisions::read(&Sources {
        vault,
        public_keys: &public_keys,
        ledgers: &ledgers,
        anchor: wanted.anchor,
        through: wanted.through,
        receipts: &wanted.receipts,
    })?;
    let mut report = Report {
        dry_run: wanted.dry_run,
        data: found.data.display().to_string(),
        keys: match &wanted.keys {
            Keys::Live(_) => "the live tree and keeper".to_owned(),
            Keys::Archive { dir, .. } => dir.display().to_string(),
        },
        ledger_entries: decisions.head.seq,
        ledger_until: decisions.last_at,
        tail_known: decisions.tail_known,
        receipts_new: decisions.from_receipts.len() as u64,
        receipts_of_many: decisions.receipts_of_many,
        ..Report::default()
    };
    let mut roots = Vec::new();
    let mut lost = 0;
    for row in store.tenants().await? {
        let dead = decisions.tenants_erased.contains_key(&row.no) || row.state != TenantState::Live;
        if dead {
            if !wanted.dry_run {
                clear_tenant(&*store, &row).await?;
            }
            report.tenants.push(TenantRestored { tenant: row.name.to_string(), erased: true, ..Default::default() });
            continue;
        }
        let (source, generation, why) = open_source(wanted, vault, row.no, &identities, now)?;
        let highest = row.generation.max(generation);
        let generation = Generation(highest.0 + 2);
        let rebuild =
            Rebuild { store: &*store, vault, tenant: row.no, of_data: row.generation, generation, dry: wanted.dry_run };
        let today = tenant_time(&row, now)?;
        let no = row.no;
        let lives = |user: &SlotUser| match user {
            SlotUser::Class { uid, class, version } => decisions.lives(no, *uid, *class, *version),
            SlotUser::Expiry { bucket, .. } => !is_over(*bucket, today),
        };
        let (root, rebuilt) = rebuild.run(&source, &lives).await?;
        let classes =
            |users: &[SlotUser]| users.iter().filter(|user| matches!(user, SlotUser::Class { .. })).count() as u64;
        let mut tenant = TenantRestored {
            tenant: row.name.to_string(),
            keys_opened: rebuilt.kept,
            erased_again: classes(&rebuilt.dropped),
            why,
            ..TenantRestored::default()
        };
        tenant.lost = classes(&rebuilt.lost);
        if tenant.lost > 0 {
            tenant.why.push(format!(
                "{} classes: their slot was given or changed after the key archive was written",
                tenant.lost
            ));
        }
        match (classes(&rebuilt.since), decisions.tail_known) {
            (0, _) => {}
            // Every erasure is on record, and these are not: they live, under another key than in the data.
            (n, true) => {
                tenant.lost += n;
                tenant.why.push(format!(
                    "{n} classes: they went over to other data keys after the data was copied; the key archive of its day \
                     opens them"
                ));
            }
            (n, false) => {
                tenant.erased_again += n;
                tenant.why.push(format!(
                    "{n} of those erased again: no record here says so; their key was dropped after the data was copied"
                ));
            }
        }
        lost += tenant.lost;
        let gone: Vec<SlotUser> = [rebuilt.dropped, rebuilt.since, rebuilt.lost].into_iter().flatten().collect();
        let buried = drop_rows(&*store, no, &gone, &decisions, wanted.dry_run).await?;
        if !wanted.dry_run {
            clear_terms(&*store, &row).await?;
        }
        tenant.subjects = store.counts(no).await?.subjects.saturating_sub(if wanted.dry_run { buried } else { 0 });
        report.tenants.push(tenant);
        roots.push((no, generation, root));
    }
    if lost > 0 && !wanted.accept_lost && !wanted.dry_run {
        return Err(RestoreError::Lost { lost });
    }
    if !wanted.dry_run {
        store.skip_uids(SubjectUid(decisions.highest_uid.0.max(store.next_uid().0) + SKIPPED_UIDS));
        let signing = new_keeper(target, &*store, vault, &decisions, roots).await?;
        report.public_key = data_encoding::HEXLOWER.encode(&signing.public());
        recovery = recovery.signed_before(&public_keys, &signing.public());
        put_setting(&*store, &recovery, &signing).await?;
        // A copy that was cut off would be believed later: everything is in the one file.
        store.checkpoint().await?;
    }
    Ok((report, recovery, decisions))
}

/// A tenant's own time: TEST tenants may have moved theirs on.
fn tenant_time(row: &TenantRow, now: Timestamp) -> Result<Timestamp, RestoreError> {
    let settings: TenantSettings = serde_json::from_slice(&row.body).map_err(|_| RestoreError::Settings(row.no))?;
    Ok(now.plus_ms(settings.clock_offset_ms))
}

/// The keys of one tenant, the highest generation that they know, and what there is to say about them.
fn open_source(
    wanted: &Wanted,
    vault: VaultId,
    tenant: TenantNo,
    identities: &Arc<[RecoveryIdentity]>,
    now: Timestamp,
) -> Result<(KeySource, Generation, Vec<String>), RestoreError> {
    match &wanted.keys {
        Keys::Live(ring) => {
            let generation = ring.generation(tenant).unwrap_or(Generation(0));
            Ok((KeySource::Live(ring.clone()), generation, Vec::new()))
        }
        Keys::Archive { dir, .. } => {
            let path = dir.join(file_name(tenant));
            if !path.exists() {
                return Err(RestoreError::NoKeys { path: dir.clone(), tenant });
            }
            let archive = Archive::open(&path, vault, tenant, &wanted.public_keys, now)
                .map_err(|source| RestoreError::Keys { path: path.clone(), source })?;
            let mut why = Vec::new();
            if archive.torn {
                why.push(format!("{} ends in a record that was cut off", path.display()));
            }
            let generation = archive.generation();
            Ok((KeySource::Archive(archive, identities.clone()), generation, why))
        }
    }
}

/// To whom the restored vault archives its keys: as before, or to who restores it.
async fn recovery_setting(
    store: &dyn Store,
    wanted: &Wanted,
    vault: VaultId,
    identities: &[RecoveryIdentity],
    now: Timestamp,
) -> Result<RecoverySetting, RestoreError> {
    let row = store.object(TenantNo::VAULT, ObjectKind::Setting, SETTING.to_vec()).await?;
    let known = row.and_then(|row| RecoverySetting::verify(vault, &row.body, &wanted.public_keys).ok());
    let recipients: Vec<_> = identities.iter().map(RecoveryIdentity::recipient).collect();
    Ok(known.unwrap_or_else(|| RecoverySetting::new(vault, &recipients, now)))
}

async fn put_setting(store: &dyn Store, setting: &RecoverySetting, signing: &Signing) -> Result<(), RestoreError> {
    let (tenant, kind, key) = (TenantNo::VAULT, ObjectKind::Setting, SETTING.to_vec());
    let revision = store.object(tenant, kind, key.clone()).await?.map_or(0, |row| row.revision.0) + 1;
    let mut change = ChangeSet::default();
    let (revision, body) = (Revision(revision), setting.sign(signing));
    change.change(Mutation::PutObject(ObjectRow { tenant, kind, key, revision, body }));
    store.commit(change).await?;
    Ok(())
}

/// A tenant that was erased since: no row of it stays.
async fn clear_tenant(store: &dyn Store, row: &TenantRow) -> Result<(), RestoreError> {
    loop {
        let mut change = ChangeSet::default();
        change.change(Mutation::ClearTenant { tenant: row.no, limit: MANY });
        if store.commit(change).await?.removed == 0 {
            break;
        }
    }
    let mut change = ChangeSet::default();
    let revision = Revision(row.revision.0 + 1);
    change.change(Mutation::PutTenant(TenantRow { state: TenantState::Erased, revision, ..row.clone() }));
    store.commit(change).await?;
    Ok(())
}

/// Rows of classes and buckets that have no key any more; with `dry` they stay. Answers how many subjects went whole.
async fn drop_rows(
    store: &dyn Store,
    tenant: TenantNo,
    gone: &[SlotUser],
    decisions: &Decisions,
    dry: bool,
) -> Result<u64, RestoreError> {
    let mut buried = 0;
    let mut classes: BTreeMap<SubjectUid, HashSet<ClassNo>> = BTreeMap::new();
    let mut change = ChangeSet::default();
    for user in gone {
        match *user {
            SlotUser::Class { uid, class, .. } => {
                classes.entry(uid).or_default().insert(class);
            }
            SlotUser::Expiry { class, bucket } => {
                let rows = store.expiries(tenant).await?;
                let row = rows.into_iter().find(|row| row.class == class && row.bucket == bucket);
                if let Some(row) = row {
                    let slot = row.slot;
                    // The sweep deletes what lies under it.
                    change.change(Mutation::PutExpiry(ExpiryRow { slot: None, ..row }));
                    change.mutations.extend(slot.map(|slot| Mutation::FreeSlot { tenant, slot }));
                }
            }
        }
    }
    for (uid, gone) in classes {
        let Some(snapshot) = store.subject_by_uid(uid).await? else { continue };
        let subject = &snapshot.subject;
        let whole = snapshot.classes.iter().filter(|row| row.slot.is_some()).all(|row| gone.contains(&row.class));
        let dead = gone.iter().filter_map(|class| decisions.dead.get(&(tenant, uid, *class))).find(|d| d.whole);
        for row in snapshot.classes.iter().filter(|row| gone.contains(&row.class)) {
            let class = row.class;
            change.change(Mutation::DeleteItemsOf { tenant, uid, class, limit: u32::MAX });
            change.change(Mutation::PutClass(ClassRow {
                slot: None,
                state: ClassState::Erased,
                revision: Revision(row.revision.0 + 1),
                seals: 0,
                next_bucket: None,
                record: Vec::new(),
                ..row.clone()
            }));
            change.mutations.extend(row.slot.map(|slot| Mutation::FreeSlot { tenant, slot }));
        }
        match dead {
            Some(dead) if whole => {
                buried += 1;
                change.change(Mutation::DeleteTerms { tenant, uid, field: None });
                change.change(Mutation::DeleteSubject { uid });
                let (digest, operation, at) = (subject.digest, dead.operation, dead.at);
                change.change(Mutation::PutTombstone(TombstoneRow { tenant, digest, operation, at }));
            }
            _ => {
                let revision = Revision(subject.revision.0 + 1);
                change.change(Mutation::PutSubject(SubjectRow { revision, ..subject.clone() }));
            }
        }
        if dry {
            change = ChangeSet::default();
        } else if change.mutations.len() >= AT_ONCE {
            store.commit(std::mem::take(&mut change)).await?;
        }
    }
    if !dry {
        store.commit(change).await?;
    }
    Ok(buried)
}

/// Index tags under secrets that are gone, and a rotation that was under way.
async fn clear_terms(store: &dyn Store, row: &TenantRow) -> Result<(), RestoreError> {
    let mut settings: TenantSettings = serde_json::from_slice(&row.body).map_err(|_| RestoreError::Settings(row.no))?;
    for version in [Some(settings.index), settings.index_retiring].into_iter().flatten() {
        loop {
            let mut change = ChangeSet::default();
            change.change(Mutation::DeleteTermsOfVersion { tenant: row.no, version, limit: MANY });
            if store.commit(change).await?.removed == 0 {
                break;
            }
        }
    }
    let (tenant, kind, key) = (row.no, ObjectKind::Setting, b"index-rotation".to_vec());
    (settings.index_retiring, settings.index_owed_since) = (None, None);
    let body = serde_json::to_vec(&settings).map_err(|_| RestoreError::Settings(row.no))?;
    let revision = Revision(row.revision.0 + 1);
    let mut change = ChangeSet::default();
    change.change(Mutation::DeleteObject { tenant, kind, key });
    change.change(Mutation::SetTenantSettings { tenant, body, revision });
    store.commit(change).await?;
    Ok(())
}

/// A new keeper beside the old one: new roots, the ledger as it is and what receipts add to it.
async fn new_keeper(
    target: &mut Target,
    store: &dyn Store,
    vault: VaultId,
    decisions: &Decisions,
    roots: Vec<(TenantNo, Generation, crate::crypto::keys::TenantRoot)>,
) -> Result<Arc<Signing>, RestoreError> {
    let paths = target.places.staged_keepers();
    paths.iter().try_for_each(|path| private(path))?;
    let media = media(&paths, target.guard.as_ref());
    FileKeeper::create_on(&media, vault)?;
    for path in &paths {
        // The signatures of old entries stay; new ones follow them under the key of now.
        let ledger = path.join("ledger.keeper");
        let Some(longest) = &decisions.ledger else { continue };
        std::fs::copy(longest, &ledger).map_err(io_at(&ledger))?;
        std::fs::File::open(&ledger).and_then(|file| file.sync_all()).map_err(io_at(&ledger))?;
    }
    let keeper = FileKeeper::open_on(&media)?;
    let signing = Arc::new(target.signing.take().unwrap_or_else(Signing::generate));
    keeper.put_own(OwnBlock::Signing, &seal_signing(vault, &target.kek, &signing, None), 1).await?;
    keeper.unlock(signing.clone());
    for (tenant, generation, root) in roots {
        let rebuild = Rebuild { store, vault, tenant, of_data: generation, generation, dry: false };
        rebuild.keep_root(&keeper, &target.kek, &root).await?;
    }
    for tenant in decisions.tenants_erased.keys() {
        keeper.tombstone(*tenant).await?;
    }
    if !decisions.from_receipts.is_empty() {
        keeper.append_ledger(decisions.from_receipts.clone()).await?;
    }
    Ok(signing)
}

/// The rest of 5, on the vault as it will be: decisions, tags, the key archive, the anchor.
async fn finish(
    target: &Target,
    staging: &Path,
    vault: VaultId,
    setting: RecoverySetting,
    decisions: &Decisions,
    report: &mut Report,
) -> Result<(), RestoreError> {
    let clock = target.clock.clone();
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(SqliteOptions::new(staging.join(layout::DATABASE), vault))?);
    let until = noted_until(&*store).await?;
    let keeper: Arc<dyn Keeper> =
        Arc::new(FileKeeper::open_on(&media(&target.places.staged_keepers(), target.guard.as_ref()))?);
    let archive = KeyArchive::new(staging.join(layout::KEYS), vault, None, target.horizon_days, clock.clone());
    archive.put_setting(setting).map_err(KeyringError::from)?;
    let mut options = KeyringOptions::new(clock.clone());
    options.archive = Some(Arc::new(archive));
    let ring = Keyring::open(store.clone(), keeper, target.kek.again(), options).await?;
    let (log, _) = ReadLog::open(&staging.join(layout::READ_AUDIT), ReadLogOptions::new(vault), &[], clock.now())?;
    let log = Arc::new(log);
    let opened = Vault::open(store.clone(), ring.clone(), log.clone(), clock.clone(), target.vault_options.clone());
    let opened = opened.await?;
    let mut again = opened.decide_again(&decisions.other, &until).await?;
    for tenant in opened.live_tenants() {
        if tenant.no != TenantNo::VAULT {
            again.retagged += opened.tag_again(tenant.no).await?;
        }
    }
    again.keys_stopped = opened.note_restored(clock.now(), !decisions.tail_known).await?;
    report.decided_again = again;
    private(&staging.join(layout::KEYS))?;
    opened.write_key_archives(true).await?;
    opened.keep_anchor().await?;
    drop(opened);
    store.close().await;
    drop((ring, store));
    if let Some(log) = Arc::into_inner(log) {
        log.close();
    }
    Ok(())
}

fn private(path: &Path) -> Result<(), RestoreError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_at(path))
}
