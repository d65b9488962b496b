//! A drill: the newest archives are restored into a folder of their own, everyone of that night is opened, and the folder
//! is destroyed. What was never tried does not work.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use crate::clock::{Clock, Timestamp};
use crate::config::{Config, RootKekSource};
use crate::recovery::catalogue;
use crate::recovery::restore::{Found, Report, RestoreError};
use crate::recovery::swapping::wipe;
use crate::server::node::{Node, NodeError, private_dir};
use crate::server::prove::{Proof, ProveError, prove};
use crate::server::restore::{RestoreFailed, RestoreRequest, restore};

/// What a drill found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DrillReport {
    pub at: Timestamp,
    /// Everyone of that night who was not erased since came back and opened, nobody erased did, nobody was lost.
    pub holds: bool,
    pub restored: Report,
    /// Each person of the archive tried under the keys of the restored vault.
    pub tried: Proof,
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
    #[error("{path}")]
    Path {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Restores into `scratch`, which is made and destroyed, and counts. Needs nothing of the vault but what `request` names, so
/// that it runs on any machine.
pub async fn drill(request: RestoreRequest, scratch: &Path, clock: Arc<dyn Clock>) -> Result<DrillReport, DrillFailed> {
    private_dir(scratch)?;
    let mut config = Config::default();
    config.data_dir = scratch.join("data");
    config.keeper.paths = vec![scratch.join("keeper")];
    config.root_kek = Some(RootKekSource::File { path: scratch.join("root.key") });
    let tried = try_restore(&config, request, clock).await;
    let destroyed = destroy(scratch, &config);
    let report = tried?;
    destroyed.map_err(|source| DrillFailed::Path { path: scratch.to_owned(), source })?;
    Ok(report)
}

async fn try_restore(
    config: &Config,
    request: RestoreRequest,
    clock: Arc<dyn Clock>,
) -> Result<DrillReport, DrillFailed> {
    let data = Found::look(&request.from)?.data;
    let request = RestoreRequest { accept_lost: true, dry_run: false, ..request };
    let restored = restore(config, request, clock.clone(), Box::new(|_| true)).await?;
    let node = Node::open(config, clock.clone()).await?;
    let tried = prove(&node, &data).await;
    node.close().await;
    let tried = tried?;
    let lost: u64 = restored.tenants.iter().map(|tenant| tenant.lost).sum();
    Ok(DrillReport { at: clock.now(), holds: tried.holds && lost == 0, restored, tried })
}

/// The keys first, overwritten: what is left of the folder opens nothing.
fn destroy(scratch: &Path, config: &Config) -> std::io::Result<()> {
    wipe(&scratch.join("root.key"))?;
    for name in ["roots.keeper", "ledger.keeper"] {
        wipe(&config.keeper.paths[0].join(name))?;
    }
    std::fs::remove_dir_all(scratch)
}

/// Keeps a report beside the archives, where `doctor` and the metric of its age find it.
pub fn keep_report(backups: &Path, report: &DrillReport) -> Result<PathBuf, DrillFailed> {
    let dir = backups.join(catalogue::DRILLS);
    private_dir(&dir)?;
    let path = dir.join(format!("{}.json", catalogue::name_of(report.at)));
    let at = |source| DrillFailed::Path { path: path.clone(), source };
    let json = serde_json::to_vec_pretty(report).map_err(|error| at(std::io::Error::other(error)))?;
    std::fs::write(&path, json).map_err(at)?;
    Ok(path)
}
