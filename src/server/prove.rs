//! What a thief could do with an old copy of the database and everything that exists today: the present keys are tried
//! on every row of the copy. Nothing is printed but counts.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::clock::Timestamp;
use crate::crypto::keys::FAN_OUT;
use crate::ids::*;
use crate::keyring::archive::Archive;
use crate::keyring::archive::file::{file_name, tenant_of};
use crate::keyring::{ClassRef, KeyRef, KeyringError, TenantKeyState};
use crate::recovery::layout;
use crate::server::node::{Node, NodeError};
use crate::storage::sqlite::{Options as SqliteOptions, SqliteStore};
use crate::storage::{ClassRow, Lookup, Store, StoreError, TenantState};
use crate::vault::record::{Owner, RecordView};

/// What became of one tenant's rows in the copy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TenantProof {
    pub tenant: String,
    /// Generation of the key tree in the copy and now.
    pub copy_generation: u64,
    pub present_generation: u64,
    /// Whether the present root opens the copy's top node: the way into the old tree.
    pub old_tree_opens: bool,
    /// Subjects in the copy that live today, and of how many every class opens under the present tree.
    pub living: u64,
    pub living_opened: u64,
    /// Subjects or classes in the copy that are erased today, and how many of their classes open: must be 0.
    pub erased: u64,
    pub erased_opened: u64,
    /// Values opened in all.
    pub values_opened: u64,
}

/// A key archive in the copy: no key of the running vault opens it, a recovery key does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyArchiveProof {
    pub tenant: u32,
    /// Keys of so many slots are in it.
    pub slots: u64,
    /// A restore with the recovery key takes it until then; `None`: it is refused.
    pub opens_until: Option<Timestamp>,
    /// Why it is refused.
    pub refused: Option<String>,
}

/// The whole answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Proof {
    pub tenants: Vec<TenantProof>,
    /// Key archives beside the copy, or in `keys` there.
    pub key_archives: Vec<KeyArchiveProof>,
    /// No class of an erased subject opened, and every living one did.
    pub holds: bool,
}

/// Why it could not be tried.
#[derive(Debug, thiserror::Error)]
pub enum ProveError {
    #[error("{path} holds no copy of a database (vault.db, with its -wal if there was one)")]
    NoCopy { path: PathBuf },
    #[error("{path}")]
    Path {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the copy does not open")]
    Copy(#[source] StoreError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    #[error(transparent)]
    Node(#[from] NodeError),
}

/// Copies the database files of a running or stopped vault: what any backup tool would take.
pub fn copy_database(data_dir: &Path, to: &Path) -> Result<(), ProveError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ProveError::Path { path, source }
    };
    std::fs::create_dir_all(to).map_err(failed(to))?;
    for name in ["vault.db", "vault.db-wal"] {
        let from = data_dir.join(name);
        if from.exists() {
            std::fs::copy(&from, to.join(name)).map_err(failed(&from))?;
        }
    }
    if to.join("vault.db").exists() { Ok(()) } else { Err(ProveError::NoCopy { path: data_dir.to_owned() }) }
}

/// Tries the present keys of `node` on the copy in `dir`. The copy is read from a second copy, so it stays as it is.
pub async fn prove(node: &Node, dir: &Path) -> Result<Proof, ProveError> {
    let key_archives = look_at_keys(node, dir);
    let scratch = scratch_dir()?;
    let tried = match copy_database(dir, &scratch) {
        Ok(()) => try_copy(node, &scratch).await.map(|proof| Proof { key_archives, ..proof }),
        // A folder of archives, or a copy of the key archive alone.
        Err(ProveError::NoCopy { .. }) if !key_archives.is_empty() => {
            Ok(Proof { tenants: Vec::new(), key_archives, holds: true })
        }
        Err(error) => Err(error),
    };
    // What could not be removed is a copy of a copy: nothing that was not there before.
    let _ = std::fs::remove_dir_all(&scratch);
    tried
}

/// What there is of key archives in a folder, by their headers.
fn look_at_keys(node: &Node, dir: &Path) -> Vec<KeyArchiveProof> {
    let mut found = Vec::new();
    for folder in [dir.to_owned(), layout::keys(dir)] {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        let mut tenants: Vec<TenantNo> =
            entries.filter_map(|entry| tenant_of(entry.ok()?.file_name().to_str()?)).collect();
        tenants.sort();
        for tenant in tenants {
            let path = folder.join(file_name(tenant));
            let opened =
                Archive::open(&path, node.keyring.vault(), tenant, &node.keyring.public_keys(), node.vault.now());
            found.push(match opened {
                Ok(archive) => KeyArchiveProof {
                    tenant: tenant.0,
                    slots: archive.index().len() as u64 * FAN_OUT as u64,
                    opens_until: archive.times().map(|(_, expires)| expires),
                    refused: None,
                },
                Err(error) => {
                    KeyArchiveProof { tenant: tenant.0, slots: 0, opens_until: None, refused: Some(error.to_string()) }
                }
            });
        }
    }
    found
}

fn scratch_dir() -> Result<PathBuf, ProveError> {
    let name = format!("pii-vault-prove-{}", ObjectId::random());
    let path = std::env::temp_dir().join(name);
    crate::server::node::private_dir(&path)?;
    Ok(path)
}

async fn try_copy(node: &Node, scratch: &Path) -> Result<Proof, ProveError> {
    let options = SqliteOptions::new(scratch.join("vault.db"), node.keyring.vault());
    let copy = SqliteStore::open(options).map_err(ProveError::Copy)?;
    let present = node.store.tenants().await?;
    let mut tenants = Vec::new();
    for row in copy.tenants().await? {
        if row.no == TenantNo::VAULT || row.state != TenantState::Live {
            continue;
        }
        let now = present.iter().find(|p| p.no == row.no);
        let mut proof = TenantProof {
            tenant: row.name.to_string(),
            copy_generation: row.generation.0,
            present_generation: now.map_or(0, |p| p.generation.0),
            ..TenantProof::default()
        };
        let usable = node.keyring.state(row.no) == TenantKeyState::Ready;
        if usable && let Some(Some(top)) = copy.nodes(row.no, vec![Ordinal(0)]).await?.nodes.pop() {
            proof.old_tree_opens = node.keyring.root_opens(&top)?;
        }
        let mut after = SubjectUid(0);
        loop {
            let page = copy.list_subjects(row.no, None, after, 500).await?;
            let Some(last) = page.rows.last() else { break };
            after = last.subject.uid;
            for snapshot in &page.rows {
                // A subject opened anew under an erased id has another uid: the old one stays erased.
                let today = match node.store.subject(row.no, snapshot.subject.digest).await? {
                    Lookup::Found(today) if today.subject.uid == snapshot.subject.uid => Some(today),
                    _ => None,
                };
                let (mut all, mut any_living) = (true, false);
                for old in snapshot.classes.iter().filter(|old| old.slot.is_some()) {
                    let lives = today
                        .as_ref()
                        .and_then(|t| t.class(old.class))
                        .is_some_and(|new| new.slot.is_some() && new.dek == old.dek);
                    let opened = if usable { open_class(node, old, node.vault.now()).await? } else { None };
                    proof.values_opened += opened.unwrap_or(0);
                    if lives {
                        any_living = true;
                        all &= opened.is_some();
                    } else {
                        proof.erased += 1;
                        proof.erased_opened += u64::from(opened.is_some());
                    }
                }
                if any_living {
                    proof.living += 1;
                    proof.living_opened += u64::from(all);
                }
            }
            if !page.more {
                break;
            }
        }
        tenants.push(proof);
    }
    copy.close().await;
    let holds = tenants.iter().all(|t| t.erased_opened == 0 && t.living_opened == t.living);
    Ok(Proof { tenants, key_archives: Vec::new(), holds })
}

/// Values of an old class row that open under the present tree; `None` when its key is not there.
async fn open_class(node: &Node, row: &ClassRow, now: Timestamp) -> Result<Option<u64>, ProveError> {
    let Some(slot) = row.slot else { return Ok(None) };
    let key = KeyRef { slot, dek: row.dek };
    match node.keyring.load(row.tenant, &[key]).await {
        Ok(()) => {}
        Err(KeyringError::OtherKey { .. } | KeyringError::Damaged { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let class = ClassRef { tenant: row.tenant, uid: row.uid, class: row.class, key };
    let owner = Owner { vault: node.keyring.vault(), tenant: row.tenant, uid: row.uid, class: row.class };
    let opened = node.keyring.with_class(class, None, |keys| {
        let mut opened = 0;
        let walked = RecordView::parse(&row.record).and_then(|record| {
            record.walk(keys, &owner, now.day(), |entry| {
                if entry.bucket == Bucket::NONE {
                    let place = crate::vault::read::entry_place(&owner, key.dek, &entry);
                    opened += u64::from(crate::vault::read::open_value(keys, &place, entry.sealed).is_ok());
                }
            })
        });
        walked.is_ok().then_some(opened)
    });
    Ok(opened.flatten())
}
