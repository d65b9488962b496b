//! What a thief reaches who holds everything ever written beside the present keeper and root KEK, and the oracle: it is
//! nothing that was erased, and all that lives.

use std::collections::{HashMap, HashSet};

use super::mutants::{outside_aad, secret_of};
use super::world::{Class, DOMAIN, FIELD, Plain, Sealed, TENANT, VAULT, World};
use crate::crypto::keys::{FAN_OUT, IndexKey, TenantRoot, TenantSecret};
use crate::ids::*;
use crate::keyring::keeper::block::{self, Record};
use crate::keyring::keeper::root_block_aad;
use crate::keyring::tree::{self, OpenNode, Tree};
use crate::keyring::*;
use crate::storage::*;

/// What opens, and whose searchable value is guessed.
pub struct Reachable {
    pub plains: HashSet<Plain>,
    pub guesses: HashSet<(SubjectUid, usize)>,
}

impl World {
    /// Roots of the tenant that the present keeper's bytes hold, anywhere, under the present KEK; beside a token, those that
    /// it opens of all files ever written.
    pub fn present_roots(&self) -> Vec<(Generation, TenantRoot)> {
        let kek = self.kek();
        let mut roots = Vec::new();
        for record in self.disk.records() {
            if let Record::Root(root) = block::decode(VAULT, &record) {
                let aad = root_block_aad(VAULT, root.tenant, root.generation, &root.kek);
                if root.tenant == TENANT
                    && let Ok(key) = kek.unwrap(&aad, &root.wrapped)
                {
                    roots.push((root.generation, key));
                }
            }
        }
        roots
    }

    /// Everything that opens for who holds every node and ciphertext ever written, the present keeper and KEK.
    pub fn reachable(&self) -> Reachable {
        let tree = Tree { vault: VAULT, tenant: TENANT };
        let mut open: Vec<(Ordinal, OpenNode)> = Vec::new();
        let rows = self.nodes.lock().clone();
        let mut left: Vec<&NodeRow> = rows.iter().filter(|row| row.tenant == TENANT).collect();
        for (_, root) in self.present_roots() {
            left.retain(|row| {
                let node = if row.ordinal == tree::TOP { tree.open_top(&root, row).ok() } else { None };
                let keep = node.is_none();
                open.extend(node.map(|node| (tree::TOP, node)));
                keep
            });
        }
        loop {
            let before = open.len();
            left.retain(|row| {
                let Some((above, _)) = tree::parent(row.ordinal) else { return true };
                let node = open.iter().filter(|(o, _)| *o == above).find_map(|(_, n)| tree.open_child(n, row).ok());
                let keep = node.is_none();
                open.extend(node.map(|node| (row.ordinal, node)));
                keep
            });
            if open.len() == before {
                break;
            }
        }
        let mut keys: HashMap<DekId, (usize, usize)> = HashMap::new();
        let mut secrets: Vec<TenantSecret> = Vec::new();
        for (at, (ordinal, node)) in open.iter().enumerate().filter(|(_, (o, _))| tree::level(*o) == 3) {
            for index in 0..FAN_OUT {
                keys.insert(node.keys.dek(index).id(), (at, index));
            }
            if *ordinal == tree::leaf(0) {
                secrets.extend((0..tree::RESERVED as usize).map(|index| node.keys.secret(index)));
            }
        }
        // Whatever else in the database the root KEK wraps.
        let kek = self.kek();
        secrets
            .extend(self.seen.objects.iter().filter_map(|o| kek.unwrap(&outside_aad(), o).ok()).map(|r| secret_of(&r)));
        let dek = |id: &DekId| keys.get(id).map(|(at, index)| open[*at].1.keys.dek(*index));
        let mut plains = HashSet::new();
        for sealed in &self.seen.sealed {
            let Some(key) = dek(&sealed.class.key.dek) else { continue };
            let keys = match &sealed.expiry {
                None => key.class_keys(),
                Some(id) => match keys.get(id) {
                    Some((at, index)) => key.expiring_keys(&open[*at].1.keys.expiry(*index)),
                    None => continue,
                },
            };
            if let Ok(plain) = keys.cipher().open(&Sealed::aad(&sealed.class), &sealed.bytes) {
                plains.insert(<Plain>::try_from(plain.as_slice()).unwrap());
            }
        }
        let mut guesses = HashSet::new();
        for secret in &secrets {
            let key = IndexKey::derive(secret, FIELD);
            let table: HashMap<TermTag, usize> = (0..DOMAIN).map(|n| (key.tag(&[n as u8]), n)).collect();
            guesses.extend(self.seen.tags.iter().filter_map(|t| Some((t.uid, *table.get(&t.tag)?))));
        }
        Reachable { plains, guesses }
    }

    /// The oracle: recovered and erased have nothing in common, and everything that lives is recovered, by the thief
    /// and by the vault itself.
    pub async fn check(&self) -> Result<(), String> {
        let reachable = self.reachable();
        if let Some(plain) = self.erased.iter().find(|plain| reachable.plains.contains(*plain)) {
            let sealed = self.seen.sealed.len();
            return Err(format!("an erased value was recovered ({sealed} ciphertexts, {plain:02x?})"));
        }
        if self.searchable_erased.iter().any(|(uid, phone, over)| *over && reachable.guesses.contains(&(*uid, *phone)))
        {
            return Err("an erased searchable value was guessed after its search had ended".into());
        }
        for (uid, subject) in &self.subjects {
            for (class, own) in &subject.classes {
                if !reachable.plains.contains(&own.plain) {
                    return Err(format!("a live value cannot be recovered (subject {uid})"));
                }
                self.read(*uid, *class, own).await?;
            }
        }
        for value in &self.expiring {
            let load = self.ring.load(TENANT, &[value.class.key, value.expiry]).await;
            load.map_err(|e| format!("an expiring value's keys do not load: {e}"))?;
            let aad = Sealed::aad(&value.class);
            let open = self.ring.with_class(value.class, Some(value.expiry), |k| k.cipher().open(&aad, &value.sealed));
            if open.and_then(Result::ok).is_none_or(|plain| plain.as_slice() != value.plain) {
                return Err("a live expiring value does not open".into());
            }
        }
        Ok(())
    }

    /// Reads a value as the vault does.
    async fn read(&self, uid: SubjectUid, class: ClassNo, own: &Class) -> Result<(), String> {
        let row = self.row(uid, class).await.ok_or("a live class has no row")?;
        let key = KeyRef { slot: row.slot.ok_or("a live class has no slot")?, dek: row.dek };
        let at = ClassRef { tenant: TENANT, uid, class, key };
        self.ring.load(TENANT, &[key]).await.map_err(|e| format!("a live key does not load: {e}"))?;
        let open = self.ring.with_class(at, None, |keys| keys.cipher().open(&Sealed::aad(&at), &row.record));
        match open {
            Some(Ok(plain)) if plain.as_slice() == own.plain => Ok(()),
            Some(Ok(_)) => Err("a live value is another one".into()),
            Some(Err(_)) => Err("a live value does not open".into()),
            None => Err("a loaded key is not in memory".into()),
        }
    }
}
