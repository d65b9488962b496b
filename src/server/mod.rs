//! Floor 8: the only place that knows every part. `network` is the ports and how they go down, `node` is the vault's parts
//! put together from a configuration, `run` is both.

pub mod network;
pub mod node;
pub mod prove;
pub mod restore;
pub mod run;

pub use network::{Network, NetworkError, Ops, serve_network, signals};
pub use node::{InitError, Node, NodeError, init};
