//! Floor 6, the network: connections, limits, deadlines, errors, and a file per service.

pub mod access_service;
pub mod audit_service;
pub mod call;
pub mod convert;
pub mod deadline;
pub mod erasure_service;
pub mod export;
pub mod frames;
pub mod identity;
pub mod key_service;
pub mod limits;
pub mod listen;
pub mod operation_service;
pub mod ops;
pub mod page;
pub mod pb;
pub mod policy_service;
pub mod reason;
pub mod record_service;
pub mod services;
pub mod status;
pub mod subject_service;
pub mod tenant_service;
pub mod tls;
pub mod vault_status;
pub mod words;
