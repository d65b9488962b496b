//! Deliberate mistakes that the oracle must notice, and what they do.

use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Dice;
use super::spy::copy_files;
use super::world::{ROOTS, TENANT, VAULT, World};
use crate::crypto::aad::{Aad, Kind};
use crate::crypto::keys::{TenantRoot, TenantSecret};
use crate::crypto::random;
use crate::ids::*;
use crate::keyring::keeper::block::{self, RECORD, Record};
use crate::keyring::tree::{self, Tree};
use crate::storage::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// Erasing overwrites the wrapped key in its leaf and re-keys nothing.
    DeleteOnly,
    /// The index secret lies in the database, wrapped by the root KEK.
    IndexOutside,
    /// A start discards d + 1.
    DiscardNext,
    /// The anchor is noted by rewriting the root's block.
    AnchorInRoot,
    /// Slots are given although no key archive has their keys.
    Uncovered,
    /// A restore drops by the caller's id what the ledger names by row number.
    LedgerById,
    /// A restore deletes the rows of the erased and keeps their keys in the tree.
    NoRekey,
}

impl World {
    /// The index secret, into the database.
    pub async fn put_index_outside(&mut self) {
        let body = self.kek().wrap(&outside_aad(), &TenantRoot::generate());
        let mut change = ChangeSet::default();
        change.change(Mutation::PutObject(ObjectRow {
            tenant: TENANT,
            kind: ObjectKind::SecretState,
            key: b"index".to_vec(),
            revision: Revision(1),
            body: body.clone(),
        }));
        self.spy.commit(change).await.unwrap();
        self.seen.objects.push(body);
    }

    /// The mutant: a fresh key in the leaf, sealed again under the key that the leaf had before.
    pub async fn erase_by_deleting(&mut self, uid: SubjectUid, classes: &[ClassNo]) -> Result<(), String> {
        let op = self.erasure(uid, classes).await;
        let tree = Tree { vault: VAULT, tenant: TENANT };
        let roots = self.present_roots();
        let mut change = op.change;
        for slot in op.slots {
            let path = tree::path(tree::leaf_of(slot));
            let rows = self.spy.nodes(TENANT, path.clone()).await.unwrap().nodes;
            let top = roots.iter().find_map(|(_, root)| tree.open_top(root, rows[0].as_ref().unwrap()).ok()).unwrap();
            let one = tree.open_child(&top, rows[1].as_ref().unwrap()).unwrap();
            let two = tree.open_child(&one, rows[2].as_ref().unwrap()).unwrap();
            let row = rows[3].clone().unwrap();
            let mut leaf = tree.open_child(&two, &row).unwrap();
            leaf.keys.refresh(tree::index_in_leaf(slot));
            let (_, index) = tree::parent(row.ordinal).unwrap();
            let aad = Aad::node(VAULT, TENANT, row.ordinal, row.generation);
            let blob = two.keys.child(index).seal_node(&aad, &leaf.keys);
            change.change(Mutation::PutNode(NodeRow { blob, ..row }));
        }
        self.spy.commit(change).await.unwrap();
        self.note_erased(uid, classes);
        Ok(())
    }

    /// The mutant: before a start, slots above the database's generation are wiped.
    pub async fn discard_next(&mut self, files: &Path) {
        let probe = self.place("probe");
        let _ = std::fs::remove_dir_all(&probe);
        copy_files(files, &probe);
        let spy = Self::open_store(probe, &Arc::new(Mutex::new(Vec::new())));
        let generation = spy.nodes(TENANT, vec![tree::TOP]).await.unwrap().generation;
        for n in 0..self.replicas {
            self.disk.tamper(&format!("r{n}"), ROOTS, |bytes| {
                for record in bytes.chunks_exact_mut(RECORD) {
                    let found = block::decode(VAULT, (&*record).try_into().unwrap());
                    if matches!(found, Record::Root(root) if root.tenant == TENANT && root.generation > generation) {
                        record.fill(0);
                    }
                }
            });
        }
    }

    /// An anchor noted in the root's block, and the power failed while that was written.
    pub async fn tear_present_root(&mut self, dice: &mut Dice) {
        let generation = self.ring.generation(TENANT).unwrap();
        let disk = self.disk.copy();
        let replica = format!("r{}", dice.below(self.replicas));
        disk.tamper(&replica, ROOTS, |bytes| {
            for record in bytes.chunks_exact_mut(RECORD) {
                let found = block::decode(VAULT, (&*record).try_into().unwrap());
                if matches!(found, Record::Root(root) if root.tenant == TENANT && root.generation == generation) {
                    random::fill(&mut record[RECORD / 2..]);
                    random::fill(&mut record[..100]);
                }
            }
        });
        let files = self.files();
        self.restart(disk, &files).await;
    }
}

/// Of the index secret in the database.
pub fn outside_aad() -> Aad {
    Aad::new(Kind::Object, VAULT, TENANT)
}

pub fn secret_of(root: &TenantRoot) -> TenantSecret {
    TenantSecret::from_bytes(&root.raw())
}
