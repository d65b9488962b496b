//! Floor 8: the only place that knows every part. `hardening` is what the process asks of its machine, `network` is the ports
//! and how they go down, `node` is the vault's parts put together from a configuration, `run` is both; `doctor` looks at the
//! machine and `promises` says what that means, `restore` and `drill` bring a vault back.

pub mod doctor;
pub mod drill;
pub mod hardening;
pub mod network;
pub mod node;
pub mod promises;
pub mod prove;
pub mod restore;
pub mod roots;
pub mod run;

pub use network::{Network, NetworkError, Ops, serve_network, signals};
pub use node::{InitError, Node, NodeError, init};
