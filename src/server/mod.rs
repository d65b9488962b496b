//! Floor 8: the only place that knows every part. `hardening` is what the process asks of its machine, `network` is the ports and how they go down, `node` is the vault's parts
//! put together from a configuration, `run` is both.

pub mod doctor;
pub mod hardening;
pub mod network;
pub mod node;
pub mod prove;
pub mod restore;
pub mod run;

pub use network::{Network, NetworkError, Ops, serve_network, signals};
pub use node::{InitError, Node, NodeError, init};
