//! Who did what to whom, when, why and with which outcome: records, the hash chain over them, signed checkpoints.
//! Never a field value and never a text that a caller chose in clear. Pure: no I/O, no clock.
//!
//! Each tenant has two chains, one for changes and one for reads. The records of one group commit are one [`Group`];
//! each group names the hash of the one before, so that deleting, reordering or editing any of them shows. A
//! [`Checkpoint`] signs a Merkle root over the heads of all chains, which makes cutting off a tail show as well, and with each
//! head the root of a tree over the chain's groups, which lets a later checkpoint prove that it only added to an earlier one.

mod action;
mod chain;
mod checkpoint;
mod extension;
mod record;
mod tree;

pub use action::{Action, Outcome};
pub use chain::{Chain, Entries, Group, GroupBuilder, Head, Tamper, TamperKind, Verifier, genesis, verify};
pub use checkpoint::{ChainHead, Checkpoint, CheckpointError, HeadProof, heads_root};
pub use extension::goes_on_from;
pub use record::{AuditRecord, DecodeError, Fields, Filter, MAX_DETAIL};
pub use tree::{ChainTree, GrowingTree};
