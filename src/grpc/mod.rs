//! Floor 6, the network: connections, limits, deadlines, errors, and a file per service.

pub mod pb;
pub mod reason;
pub mod status;
