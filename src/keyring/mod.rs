//! Floor 4: which key, in which state, in memory for how long. The root KEK comes from a provider, the tenants' roots
//! live in the keeper, everything else hangs on the key tree.

pub mod keeper;
pub mod ledger;
pub mod root;

pub mod tree;
