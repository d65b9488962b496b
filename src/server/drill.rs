//! A drill: the newest archives are restored into a folder of their own, everyone of that night is opened, and the folder
//! is destroyed. What was never tried does not work. Where the vault is, the people are compared with those who live
//! now, and the report is signed with the vault's key: a document of `crypto::document`.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use crate::clock::{Clock, Timestamp};
use crate::config::{Config, RootKekSource};
use crate::crypto::document::{self, DocumentRefused};
use crate::crypto::sign::{Domain, Signing};
use crate::ids::*;
use crate::keyring::keeper::{open_signing, peek_signing};
use crate::recovery::catalogue;
use crate::recovery::layout;
use crate::recovery::manifest::SignedManifest;
use crate::recovery::restore::{Found, Report, RestoreError};
use crate::recovery::swapping::wipe;
use crate::server::node::{Node, NodeError, private_dir};
use crate::server::prove::{Proof, ProveError, prove};
use crate::server::restore::{RestoreFailed, RestoreRequest, restore};
use crate::server::roots::root_spec;
use crate::storage::sqlite::{Person, people};
use crate::storage::{StoreError, TenantRow, TenantState};

/// What a drill found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DrillReport {
    /// Hexadecimal id of the vault.
    pub vault: String,
    pub at: Timestamp,
    /// The same, RFC 3339.
    pub tried_at: String,
    /// When the data was copied, RFC 3339; `None` where it was no archive.
    pub archive_made_at: Option<String>,
    /// Everyone of that night who was not erased since came back and opened, nobody erased did, nobody was lost.
    pub holds: bool,
    pub restored: Report,
    /// Each person of the archive tried under the keys of the restored vault.
    pub tried: Proof,
    /// The restored vault beside the live one; empty where that is not on this machine.
    pub live: Vec<Beside>,
}

/// One tenant in the restored vault and in the live one. Counted are people of whom a class has a key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Beside {
    pub tenant: String,
    pub live: u64,
    pub restored: u64,
    /// Live now and not in the archive: they came after it was made.
    pub came_since: u64,
    /// In the archive and not live now: erased after it was made. A restore erases them again by the live ledger or their
    /// receipts.
    pub gone_since: u64,
    /// Live now and in the archive, and their keys did not come back: must be 0.
    pub missing: u64,
}

/// Why a drill came to no end.
#[derive(Debug, thiserror::Error)]
pub enum DrillFailed {
    #[error(transparent)]
    Restore(#[from] RestoreFailed),
    #[error(transparent)]
    Archive(#[from] RestoreError),
    #[error("the restored vault does not open")]
    Open(#[from] NodeError),
    #[error(transparent)]
    Prove(#[from] ProveError),
    #[error("the live database cannot be counted")]
    Live(#[source] StoreError),
    #[error("{path}")]
    Path {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Restores into `scratch`, which is made and destroyed, and counts. Needs nothing of the vault but what `request` names, so
/// that it runs on any machine; where the data directory of `live` holds that vault, its people are counted too.
pub async fn drill(
    request: RestoreRequest,
    scratch: &Path,
    live: Option<&Config>,
    clock: Arc<dyn Clock>,
) -> Result<DrillReport, DrillFailed> {
    private_dir(scratch)?;
    let live = live.map(|config| config.data_dir.join(layout::DATABASE)).filter(|path| path.exists());
    let mut config = Config::default();
    config.data_dir = scratch.join("data");
    config.keeper.paths = vec![scratch.join("keeper")];
    config.root_kek = Some(RootKekSource::File { path: scratch.join("root.key") });
    let tried = try_restore(&config, request, live, clock).await;
    let destroyed = destroy(scratch, &config);
    let report = tried?;
    destroyed.map_err(|source| DrillFailed::Path { path: scratch.to_owned(), source })?;
    Ok(report)
}

async fn try_restore(
    config: &Config,
    request: RestoreRequest,
    live: Option<PathBuf>,
    clock: Arc<dyn Clock>,
) -> Result<DrillReport, DrillFailed> {
    let data = Found::look(&request.from)?.data;
    let archive = SignedManifest::read(&data).ok().map(|signed| signed.manifest.made_at.rfc3339());
    let request = RestoreRequest { accept_lost: true, dry_run: false, ..request };
    let restored = restore(config, request, clock.clone(), Box::new(|_| true)).await?;
    let node = Node::open(config, clock.clone()).await?;
    let (vault, names) = (node.keyring.vault(), node.store.tenants().await);
    let tried = prove(&node, &data).await;
    node.close().await;
    let tried = tried?;
    let scratch = config.data_dir.join(layout::DATABASE);
    let live = match live {
        Some(live) => {
            let both = tokio::task::spawn_blocking(move || Ok((people(&live)?, people(&scratch)?))).await;
            let both = both.unwrap_or(Err(StoreError::Closed { reason: "interrupted" })).map_err(DrillFailed::Live)?;
            let ((of, live), (_, restored)) = both;
            // Another vault's machine says nothing about this one.
            if of == vault { beside(&names.map_err(DrillFailed::Live)?, &live, &restored) } else { Vec::new() }
        }
        None => Vec::new(),
    };
    let lost: u64 = restored.tenants.iter().map(|tenant| tenant.lost).sum();
    let missing: u64 = live.iter().map(|one| one.missing).sum();
    let at = clock.now();
    Ok(DrillReport {
        vault: vault.to_string(),
        at,
        tried_at: at.rfc3339(),
        archive_made_at: archive,
        holds: tried.holds && lost == 0 && missing == 0,
        restored,
        tried,
        live,
    })
}

/// Counts both by tenant; each list is in order.
fn beside(tenants: &[TenantRow], live: &[Person], restored: &[Person]) -> Vec<Beside> {
    let mut all: BTreeMap<TenantNo, Beside> = BTreeMap::new();
    for row in tenants.iter().filter(|row| row.no != TenantNo::VAULT && row.state == TenantState::Live) {
        all.insert(row.no, Beside { tenant: row.name.to_string(), ..Beside::default() });
    }
    let keyed = |list: &[Person]| -> HashMap<(TenantNo, SubjectUid), bool> {
        list.iter().map(|person| ((person.tenant, person.uid), person.keyed)).collect()
    };
    let (there, back) = (keyed(live), keyed(restored));
    for person in live.iter().filter(|person| person.keyed) {
        let Some(counts) = all.get_mut(&person.tenant) else { continue };
        counts.live += 1;
        match back.get(&(person.tenant, person.uid)) {
            None => counts.came_since += 1,
            Some(false) => counts.missing += 1,
            Some(true) => {}
        }
    }
    for person in restored.iter().filter(|person| person.keyed) {
        let Some(counts) = all.get_mut(&person.tenant) else { continue };
        counts.restored += 1;
        let lives = there.get(&(person.tenant, person.uid)).copied().unwrap_or(false);
        counts.gone_since += u64::from(!lives);
    }
    all.into_values().collect()
}

/// The keys first, overwritten: what is left of the folder opens nothing.
fn destroy(scratch: &Path, config: &Config) -> std::io::Result<()> {
    wipe(&scratch.join("root.key"))?;
    for name in ["roots.keeper", "ledger.keeper"] {
        wipe(&config.keeper.paths[0].join(name))?;
    }
    std::fs::remove_dir_all(scratch)
}

/// The vault's signing key, from a keeper and a root key of this machine, also while the server runs; `None` where they are
/// not here, or another vault's.
pub async fn signing_key(config: &Config, vault: &str) -> Option<Signing> {
    let kek = root_spec(config).ok()?.provider().load().await.ok()?;
    config.keeper.paths.iter().find_map(|path| {
        let (of, sealed) = peek_signing(path).ok()??;
        open_signing(of, &kek, &sealed).ok().filter(|_| of.to_string() == vault)
    })
}

/// Keeps a report beside the archives, where `doctor` and the metric of its age find it; without a key it says that nobody
/// signed it.
pub fn keep_report(backups: &Path, report: &DrillReport, signing: Option<&Signing>) -> Result<PathBuf, DrillFailed> {
    let dir = backups.join(catalogue::DRILLS);
    private_dir(&dir)?;
    let path = dir.join(format!("{}.json", catalogue::name_of(report.at)));
    let json = document::write(Domain::Drill, catalogue::DRILL_FORMAT, report, signing);
    std::fs::write(&path, json).map_err(|source| DrillFailed::Path { path: path.clone(), source })?;
    Ok(path)
}

/// Checks a report with nothing but the vault's public keys; answers what it says and the id of the key that signed it.
pub fn verify(json: &[u8], public_keys: &[[u8; 32]]) -> Result<(serde_json::Value, String), DocumentRefused> {
    document::verify(Domain::Drill, catalogue::DRILL_FORMAT, json, public_keys)
}
