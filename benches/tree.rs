//! The key tree over node bytes, without a store: `cargo bench --bench tree`.

use std::collections::BTreeMap;
use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use pii_vault::crypto::keys::TenantRoot;
use pii_vault::ids::*;
use pii_vault::keyring::tree::{OpenNode, Tree, touched};

const TREE: Tree = Tree { vault: VaultId([1; 16]), tenant: TenantNo(1) };

/// A tree of `leaves` leaves, every node of it open.
fn grown(root: &TenantRoot, leaves: u32) -> BTreeMap<Ordinal, OpenNode> {
    let mut nodes = TREE.plant(root, Generation(1)).nodes;
    let more = TREE.birth(&nodes, 1..leaves).expect("every parent is there or born with them").nodes;
    nodes.extend(more);
    nodes
}

fn duplicates(nodes: &BTreeMap<Ordinal, OpenNode>, slots: &[Slot]) -> BTreeMap<Ordinal, OpenNode> {
    let needed = touched(slots).expect("slots of the tree");
    needed.iter().map(|ordinal| (*ordinal, nodes[ordinal].duplicate())).collect()
}

fn tree(c: &mut Criterion) {
    let root = TenantRoot::generate();
    let planted = TREE.plant(&root, Generation(1));
    c.bench_function("open the four nodes of a path", |b| {
        b.iter(|| {
            let mut node = TREE.open_top(&root, &planted.rows[0]).expect("it was planted here");
            for row in &planted.rows[1..] {
                node = TREE.open_child(&node, black_box(row)).expect("it was planted here");
            }
            node.generation
        })
    });
    let nodes = grown(&root, 1_000);
    let next = TenantRoot::generate();
    for count in [1u32, 100, 1_000] {
        let slots: Vec<Slot> = (0..count).map(|i| Slot(16 + i * (119_900 / count))).collect();
        c.bench_function(&format!("drop {count} of 120,000 slots"), |b| {
            b.iter_batched(
                || duplicates(&nodes, &slots),
                |nodes| {
                    TREE.drop_slots(nodes, (&slots, &[]), &next, Generation(2)).expect("all nodes are there").rows.len()
                },
                BatchSize::SmallInput,
            )
        });
    }
}

criterion_group!(benches, tree);
criterion_main!(benches);
