//! What parser and linter find in a file: rule, line and key, never a value.

use serde::Serialize;
use std::fmt;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    Note,
    /// The file can be applied, but says something that will surprise.
    Warning,
    /// The file cannot be applied.
    Error,
}

/// One thing that parser or linter found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub severity: Severity,
    /// Line of the file, from 1.
    pub line: u32,
    /// The key, with its table: `field.max_length`.
    pub key: String,
    /// Which rule found it, e.g. `unknown-key`; stable, for programs.
    pub rule: &'static str,
    /// For people. Names of the file may occur in it, texts do not.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, "line {}: {severity}: {}: {} [{}]", self.line, self.key, self.message, self.rule)
    }
}
