//! What a run can fail with.

use std::fmt::Display;
use std::io;

/// Why a run did not end. Never holds a value: subjects of a run are made up, and still nothing of them is told.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error("{what}: {source}")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    /// A call that must succeed did not.
    #[error("{method} answered {code}: {message}")]
    Refused { method: String, code: String, message: String },
    #[error("{what}: {why}")]
    Other { what: &'static str, why: String },
    /// A process of this run ended or spoke nonsense.
    #[error("the {role} process: {why}")]
    Part { role: &'static str, why: String },
}

impl BenchError {
    pub fn io(what: &'static str) -> impl FnOnce(io::Error) -> BenchError {
        move |source| BenchError::Io { what, source }
    }
    pub fn other<E: Display>(what: &'static str) -> impl FnOnce(E) -> BenchError {
        move |error| BenchError::Other { what, why: error.to_string() }
    }
}
