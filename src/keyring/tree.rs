//! The key tree of one tenant: 4 levels of nodes with 120 keys each; keys of children in levels 0 to 2, data keys in a
//! leaf. Two operations only: births (a node is full when it is born) and *drop* (fresh keys in a set of slots and on
//! their whole paths). Pure over node bytes: no store, no keeper, no clock.

use std::collections::{BTreeMap, BTreeSet};

use crate::crypto::aad::Aad;
use crate::crypto::keys::{FAN_OUT, NodeKeys, TenantRoot};
use crate::ids::{Generation, Ordinal, Slot, TenantNo, VaultId};
use crate::storage::NodeRow;

/// Levels of a tree: 0 is the top, 3 the leaves.
pub const LEVELS: usize = 4;
/// Ordinal of the first node of each level.
pub const LEVEL_START: [u32; LEVELS] = [0, 1, 121, 14_521];
/// Leaves of a whole tree.
pub const LEAVES: u32 = 120 * 120 * 120;
/// Nodes of a whole tree; below 2^21.
pub const NODES: u32 = LEVEL_START[3] + LEAVES;
/// Slots of a whole tree.
pub const SLOTS: u32 = LEAVES * FAN_OUT as u32;
/// Slots of leaf 0 that belong to the tenant's own secrets.
pub const RESERVED: u32 = 16;
/// Ordinal of the top node.
pub const TOP: Ordinal = Ordinal(0);

/// Why a node cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// A slot number beyond the tree.
    #[error("slot {slot} is beyond the tree")]
    NoSuchSlot { slot: Slot },
    /// The node is not in the store although something below or inside it is wanted.
    #[error("node {ordinal} is not born")]
    NotBorn { ordinal: Ordinal },
    /// The blob does not open under its parent's key: damaged, rolled back, or its parent is of another time.
    #[error("node {ordinal} does not open")]
    Sealed { ordinal: Ordinal },
}

/// Level of a node, 0 to 3.
pub fn level(ordinal: Ordinal) -> usize {
    LEVEL_START.iter().rposition(|start| ordinal.0 >= *start).expect("level 0 starts at 0")
}

/// The node above and the place of this node's key in it; `None` for the top, whose key is the root.
pub fn parent(ordinal: Ordinal) -> Option<(Ordinal, usize)> {
    let level = level(ordinal);
    if level == 0 {
        return None;
    }
    let index = ordinal.0 - LEVEL_START[level];
    let fan = FAN_OUT as u32;
    Some((Ordinal(LEVEL_START[level - 1] + index / fan), (index % fan) as usize))
}

/// Ordinal of the leaf with this number (0 to 1,727,999).
pub fn leaf(number: u32) -> Ordinal {
    Ordinal(LEVEL_START[3] + number)
}

/// Number of the first leaf that lies below a node, or that it is.
pub fn first_leaf_below(ordinal: Ordinal) -> u32 {
    let level = level(ordinal);
    (ordinal.0 - LEVEL_START[level]) * (FAN_OUT as u32).pow((LEVELS - 1 - level) as u32)
}

/// The leaf a slot lies in.
pub fn leaf_of(slot: Slot) -> Ordinal {
    leaf(slot.0 / FAN_OUT as u32)
}

/// A slot's place in its leaf.
pub fn index_in_leaf(slot: Slot) -> usize {
    slot.0 as usize % FAN_OUT
}

/// From the top to this node.
pub fn path(ordinal: Ordinal) -> Vec<Ordinal> {
    let mut path = vec![ordinal];
    let mut at = ordinal;
    while let Some((above, _)) = parent(at) {
        path.push(above);
        at = above;
    }
    path.reverse();
    path
}

/// All nodes on the paths of these slots, top first, each once; always with the top itself.
pub fn touched(slots: &[Slot]) -> Result<BTreeSet<Ordinal>, TreeError> {
    let mut all = BTreeSet::from([TOP]);
    for slot in slots {
        if slot.0 >= SLOTS {
            return Err(TreeError::NoSuchSlot { slot: *slot });
        }
        all.extend(path(leaf_of(*slot)));
    }
    Ok(all)
}

/// One node in clear, with the generation its blob was written in.
pub struct OpenNode {
    pub generation: Generation,
    pub keys: NodeKeys,
}

impl OpenNode {
    /// A copy for changing while others read this one.
    pub fn duplicate(&self) -> OpenNode {
        OpenNode { generation: self.generation, keys: self.keys.duplicate() }
    }
}

/// Whose tree: part of each node's AAD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tree {
    pub vault: VaultId,
    pub tenant: TenantNo,
}

impl Tree {
    fn aad(&self, ordinal: Ordinal, generation: Generation) -> Aad {
        Aad::node(self.vault, self.tenant, ordinal, generation)
    }

    /// Opens the top node.
    pub fn open_top(&self, root: &TenantRoot, row: &NodeRow) -> Result<OpenNode, TreeError> {
        let keys = root
            .open_node(&self.aad(TOP, row.generation), &row.blob)
            .map_err(|_| TreeError::Sealed { ordinal: TOP })?;
        Ok(OpenNode { generation: row.generation, keys })
    }

    /// Opens a node below `above`, its parent. A child younger than its parent means that the parent is of another time.
    pub fn open_child(&self, above: &OpenNode, row: &NodeRow) -> Result<OpenNode, TreeError> {
        let sealed = TreeError::Sealed { ordinal: row.ordinal };
        let (_, index) = parent(row.ordinal).ok_or(sealed)?;
        if row.generation > above.generation {
            return Err(sealed);
        }
        let key = above.keys.child(index);
        let keys = key.open_node(&self.aad(row.ordinal, row.generation), &row.blob).map_err(|_| sealed)?;
        Ok(OpenNode { generation: row.generation, keys })
    }

    /// Opens leaf 0 from the four rows above and of it; `None` where one is missing or does not open.
    pub(super) fn open_path(&self, root: &TenantRoot, rows: &[&NodeRow]) -> Option<OpenNode> {
        let (top, below) = rows.split_first()?;
        let mut node = self.open_top(root, top).ok()?;
        if below.len() != LEVELS - 1 {
            return None;
        }
        for row in below {
            node = self.open_child(&node, row).ok()?;
        }
        Some(node)
    }

    /// A new tree: top to leaf 0, four nodes of one generation.
    pub fn plant(&self, root: &TenantRoot, generation: Generation) -> Grown {
        let mut grown = Grown::default();
        let top = OpenNode { generation, keys: NodeKeys::generate() };
        grown.rows.push(self.row(TOP, generation, root.seal_node(&self.aad(TOP, generation), &top.keys)));
        grown.nodes.insert(TOP, top);
        for ordinal in path(leaf(0)).into_iter().skip(1) {
            let (above, index) = parent(ordinal).expect("the top was skipped");
            let key = grown.nodes[&above].keys.child(index);
            let node = OpenNode { generation, keys: NodeKeys::generate() };
            grown.rows.push(self.row(ordinal, generation, key.seal_node(&self.aad(ordinal, generation), &node.keys)));
            grown.nodes.insert(ordinal, node);
        }
        grown
    }

    /// Births the leaves with these numbers and the inner nodes above them that are missing. `nodes` has every born
    /// node on their paths; each new node takes its parent's generation.
    pub fn birth(&self, nodes: &BTreeMap<Ordinal, OpenNode>, leaves: std::ops::Range<u32>) -> Result<Grown, TreeError> {
        let mut wanted = BTreeSet::new();
        for number in leaves {
            if number >= LEAVES {
                return Err(TreeError::NoSuchSlot { slot: Slot(u32::MAX) });
            }
            wanted.extend(path(leaf(number)));
        }
        let mut grown = Grown::default();
        // Ascending ordinals put every parent before its children.
        for ordinal in wanted {
            if nodes.contains_key(&ordinal) {
                continue;
            }
            let (above, index) = parent(ordinal).ok_or(TreeError::NotBorn { ordinal })?;
            let above = nodes.get(&above).or_else(|| grown.nodes.get(&above)).ok_or(TreeError::NotBorn { ordinal })?;
            let generation = above.generation;
            let node = OpenNode { generation, keys: NodeKeys::generate() };
            let blob = above.keys.child(index).seal_node(&self.aad(ordinal, generation), &node.keys);
            grown.rows.push(self.row(ordinal, generation, blob));
            grown.nodes.insert(ordinal, node);
        }
        Ok(grown)
    }

    /// Drops a set of slots, perhaps empty: fresh random keys in them, a fresh key for each touched node and its
    /// ancestors, the top under `root`; the same for `leaves`, none of whose keys dies. `nodes` are duplicates of all nodes
    /// that this touches; they become the new ones. A batch writes a shared ancestor once.
    pub fn drop_slots(
        &self,
        mut nodes: BTreeMap<Ordinal, OpenNode>,
        (slots, leaves): (&[Slot], &[Ordinal]),
        root: &TenantRoot,
        generation: Generation,
    ) -> Result<Grown, TreeError> {
        let mut all = touched(slots)?;
        all.extend(leaves.iter().flat_map(|leaf| path(*leaf)));
        if let Some(ordinal) = all.iter().find(|ordinal| !nodes.contains_key(ordinal)) {
            return Err(TreeError::NotBorn { ordinal: *ordinal });
        }
        nodes.retain(|ordinal, _| all.contains(ordinal));
        for slot in slots {
            let leaf = nodes.get_mut(&leaf_of(*slot)).expect("every touched node is there");
            leaf.keys.refresh(index_in_leaf(*slot));
        }
        // Bottom up, each node's key is replaced in its parent before the parent itself is sealed.
        let mut rows = Vec::with_capacity(all.len());
        for ordinal in all.iter().rev() {
            let aad = self.aad(*ordinal, generation);
            let blob = match parent(*ordinal) {
                Some((above, index)) => {
                    let above = nodes.get_mut(&above).expect("a touched node's ancestors are touched");
                    above.keys.refresh(index);
                    let key = above.keys.child(index);
                    key.seal_node(&aad, &nodes[ordinal].keys)
                }
                None => root.seal_node(&aad, &nodes[ordinal].keys),
            };
            rows.push(self.row(*ordinal, generation, blob));
        }
        for node in nodes.values_mut() {
            node.generation = generation;
        }
        rows.reverse();
        Ok(Grown { rows, nodes })
    }

    fn row(&self, ordinal: Ordinal, generation: Generation, blob: Vec<u8>) -> NodeRow {
        NodeRow { tenant: self.tenant, ordinal, generation, blob }
    }
}

/// Nodes that were made or replaced: sealed for the store and in clear for memory.
#[derive(Default)]
pub struct Grown {
    /// By ordinal.
    pub rows: Vec<NodeRow>,
    pub nodes: BTreeMap<Ordinal, OpenNode>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::DekId;
    use proptest::prelude::*;

    const TREE: Tree = Tree { vault: VaultId([9; 16]), tenant: TenantNo(5) };

    /// Opens every row that opens from `root` down.
    fn open_all(root: &TenantRoot, rows: &BTreeMap<Ordinal, NodeRow>) -> BTreeMap<Ordinal, OpenNode> {
        let mut open = BTreeMap::new();
        if let Some(Ok(top)) = rows.get(&TOP).map(|row| TREE.open_top(root, row)) {
            open.insert(TOP, top);
        }
        for (ordinal, row) in rows.iter().skip(1) {
            let (above, _) = parent(*ordinal).unwrap();
            if let Some(Ok(node)) = open.get(&above).map(|above| TREE.open_child(above, row)) {
                open.insert(*ordinal, node);
            }
        }
        open
    }
    fn apply(rows: &mut BTreeMap<Ordinal, NodeRow>, grown: &Grown) {
        for row in &grown.rows {
            rows.insert(row.ordinal, row.clone());
        }
    }
    fn duplicates(nodes: &BTreeMap<Ordinal, OpenNode>) -> BTreeMap<Ordinal, OpenNode> {
        nodes.iter().map(|(ordinal, node)| (*ordinal, node.duplicate())).collect()
    }
    fn dek(nodes: &BTreeMap<Ordinal, OpenNode>, slot: Slot) -> Option<DekId> {
        Some(nodes.get(&leaf_of(slot))?.keys.dek(index_in_leaf(slot)).id())
    }

    #[test]
    fn ordinals_count_level_by_level() {
        assert_eq!(NODES, 1_742_521);
        const { assert!(NODES < 1 << 21) };
        assert_eq!(SLOTS, 207_360_000);
        assert_eq!(parent(TOP), None);
        for (ordinal, want) in [(1, (0, 0)), (120, (0, 119)), (121, (1, 0)), (14_520, (120, 119)), (14_521, (121, 0))] {
            assert_eq!(parent(Ordinal(ordinal)), Some((Ordinal(want.0), want.1)));
        }
        assert_eq!(parent(Ordinal(NODES - 1)), Some((Ordinal(14_520), 119)));
        assert_eq!(path(leaf_of(Slot(SLOTS - 1))), [0, 120, 14_520, 1_742_520].map(Ordinal));
        assert_eq!(path(leaf_of(Slot(0))), [0, 1, 121, 14_521].map(Ordinal));
        assert_eq!(path(leaf_of(Slot(120))), [0, 1, 121, 14_522].map(Ordinal));
        assert_eq!(touched(&[Slot(SLOTS)]), Err(TreeError::NoSuchSlot { slot: Slot(SLOTS) }));
    }

    #[test]
    fn a_batch_writes_a_shared_ancestor_once() {
        assert_eq!(touched(&[]).unwrap().len(), 1);
        assert_eq!(touched(&[Slot(3)]).unwrap().len(), 4);
        let spread: Vec<Slot> = (0..120).map(|n| Slot(n * 120)).collect();
        assert_eq!(touched(&spread).unwrap().len(), 120 + 3);
    }

    #[test]
    fn a_drop_changes_the_dropped_keys_and_no_other() {
        let root = TenantRoot::generate();
        let mut rows = BTreeMap::new();
        let planted = TREE.plant(&root, Generation(1));
        apply(&mut rows, &planted);
        let born = TREE.birth(&planted.nodes, 1..3).unwrap();
        assert_eq!(born.rows.len(), 2);
        apply(&mut rows, &born);
        let before = open_all(&root, &rows);
        assert_eq!(before.len(), 6);

        let next = TenantRoot::generate();
        let dropped = [Slot(17), Slot(130)];
        let paths = duplicates(&before).into_iter().filter(|(o, _)| touched(&dropped).unwrap().contains(o)).collect();
        let grown = TREE.drop_slots(paths, (&dropped, &[]), &next, Generation(2)).unwrap();
        assert_eq!(grown.rows.len(), 5);
        let old_rows = rows.clone();
        apply(&mut rows, &grown);
        let after = open_all(&next, &rows);
        assert_eq!(after.len(), 6, "the untouched leaf opens under its old key");
        for slot in (0..360).map(Slot) {
            assert_eq!(dek(&before, slot) == dek(&after, slot), !dropped.contains(&slot), "{slot}");
        }
        assert!(open_all(&root, &rows).is_empty(), "the old root opens nothing new");
        assert!(open_all(&next, &old_rows).is_empty(), "the new root opens nothing old");
        // An old leaf under the new parents: its key was replaced there.
        let mut mixed = rows.clone();
        mixed.insert(leaf(0), old_rows[&leaf(0)].clone());
        assert!(!open_all(&next, &mixed).contains_key(&leaf(0)));
    }

    #[test]
    fn an_empty_drop_is_a_root_rotation() {
        let root = TenantRoot::generate();
        let planted = TREE.plant(&root, Generation(1));
        let next = TenantRoot::generate();
        let top = BTreeMap::from([(TOP, planted.nodes[&TOP].duplicate())]);
        let grown = TREE.drop_slots(top, (&[], &[]), &next, Generation(2)).unwrap();
        assert_eq!(grown.rows.len(), 1);
        let mut rows = BTreeMap::new();
        apply(&mut rows, &planted);
        apply(&mut rows, &grown);
        let open = open_all(&next, &rows);
        assert_eq!(dek(&open, Slot(5)), dek(&planted.nodes, Slot(5)));
    }

    #[test]
    fn t15_a_node_of_another_time_place_tenant_or_vault_does_not_open() {
        let root = TenantRoot::generate();
        let planted = TREE.plant(&root, Generation(1));
        let row = planted.rows[3].clone();
        let above = &planted.nodes[&Ordinal(121)];
        assert!(TREE.open_child(above, &row).is_ok());
        let wrong = [
            NodeRow { generation: Generation(2), ..row.clone() },
            NodeRow { generation: Generation(0), ..row.clone() },
            NodeRow { ordinal: Ordinal(14_522), ..row.clone() },
            NodeRow { ordinal: TOP, ..row.clone() },
            NodeRow { blob: row.blob[..3868].to_vec(), ..row.clone() },
            NodeRow { blob: vec![], ..row.clone() },
        ];
        for row in wrong {
            assert!(TREE.open_child(above, &row).is_err());
        }
        for tree in [Tree { tenant: TenantNo(6), ..TREE }, Tree { vault: VaultId([8; 16]), ..TREE }] {
            assert!(tree.open_child(above, &row).is_err());
        }
        assert!(matches!(TREE.birth(&planted.nodes, 120..121), Ok(g) if g.rows.len() == 2));
        assert!(TREE.birth(&BTreeMap::new(), 1..2).is_err());
        let missing = TREE.drop_slots(BTreeMap::new(), (&[Slot(1)], &[]), &root, Generation(2));
        assert!(matches!(missing, Err(TreeError::NotBorn { .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// Against a plain map: after any births and drops the newest root opens exactly the keys that were not
        /// dropped since, and no old root opens any row that was ever written after it or any dropped key.
        #[test]
        fn random_births_and_drops_follow_a_map(steps in prop::collection::vec((any::<bool>(), prop::collection::vec(0u32..2400, 0..6)), 1..12)) {
            let mut root = TenantRoot::generate();
            let mut generation = Generation(1);
            let mut rows = BTreeMap::new();
            let mut history: Vec<NodeRow> = Vec::new();
            let planted = TREE.plant(&root, generation);
            apply(&mut rows, &planted);
            history.extend(planted.rows.clone());
            let mut leaves = 1u32;
            let mut model: BTreeMap<Slot, DekId> = BTreeMap::new();
            let mut dead: std::collections::HashSet<DekId> = Default::default();
            for (is_birth, numbers) in steps {
                let nodes = open_all(&root, &rows);
                if is_birth {
                    let more = numbers.len() as u32 + 1;
                    let grown = TREE.birth(&nodes, leaves..leaves + more).unwrap();
                    leaves += more;
                    apply(&mut rows, &grown);
                    history.extend(grown.rows.clone());
                } else {
                    let slots: Vec<Slot> = numbers.iter().map(|n| Slot(n % (leaves * 120))).collect();
                    let before: Vec<DekId> = slots.iter().filter_map(|slot| dek(&nodes, *slot)).collect();
                    let next = TenantRoot::generate();
                    generation = Generation(generation.0 + 1);
                    let grown = TREE.drop_slots(duplicates(&nodes), (&slots, &[]), &next, generation).unwrap();
                    dead.extend(before);
                    for slot in &slots {
                        model.remove(slot);
                    }
                    apply(&mut rows, &grown);
                    history.extend(grown.rows.clone());
                    root = next;
                }
                let nodes = open_all(&root, &rows);
                prop_assert_eq!(nodes.len(), rows.len());
                for slot in (0..leaves * 120).step_by(7).map(Slot) {
                    let id = dek(&nodes, slot).unwrap();
                    prop_assert!(!dead.contains(&id));
                    prop_assert_eq!(*model.entry(slot).or_insert(id), id);
                }
            }
            // Everything ever written, under the present root: every edge is tried until nothing new opens.
            let mut open: Vec<(Ordinal, OpenNode)> = Vec::new();
            open.extend(history.iter().filter(|r| r.ordinal == TOP).filter_map(|r| Some((TOP, TREE.open_top(&root, r).ok()?))));
            let mut left: Vec<&NodeRow> = history.iter().filter(|r| r.ordinal != TOP).collect();
            loop {
                let before = open.len();
                left.retain(|row| {
                    let (above, _) = parent(row.ordinal).unwrap();
                    let found = open.iter().filter(|(o, _)| *o == above).find_map(|(_, n)| TREE.open_child(n, row).ok());
                    let opened = found.is_some();
                    open.extend(found.map(|node| (row.ordinal, node)));
                    !opened
                });
                if open.len() == before {
                    break;
                }
            }
            prop_assert!(open.len() >= rows.len());
            for (_, node) in open.iter().filter(|(o, _)| level(*o) == 3) {
                for index in 0..FAN_OUT {
                    prop_assert!(!dead.contains(&node.keys.dek(index).id()));
                }
            }
        }
    }
}
