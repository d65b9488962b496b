//! An encrypted vault for personal data. `ARCHITECTURE.md` draws the floors this crate is built in; a module uses
//! lower floors only, and `tests/floors.rs` reads the imports to keep that true.

// Floor 0: words everyone may use.
pub mod access;
pub mod causes;
pub mod clock;
pub mod ids;
pub mod outbound;
pub mod secret;
pub mod telemetry;
// Floor 1: bytes and keys.
pub mod crypto;
// Floor 2: pure decisions and records.
pub mod audit;
pub mod auth;
pub mod evidence;
pub mod policy;
pub mod receipt;
pub mod report;
// Floor 3: rows in, rows out.
pub mod storage;
// Floor 4: which key, in which state.
pub mod keyring;
// Floor 5: what the product does, and getting it back.
pub mod recovery;
pub mod vault;
// Floor 6: the network and the clock.
pub mod grpc;
pub mod jobs;
// Floor 7: files and environment.
pub mod config;
// Floor 8: everything together.
pub mod server;
// Floor 9: the command line.
pub mod cli;
