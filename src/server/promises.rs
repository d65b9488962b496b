//! The promises of the threat model, and which of them this vault keeps on this machine as it is set up now.

use crate::config::{Config, TlsVersion};
use crate::server::doctor::{Finding, NOT_OPEN, SERVED};

/// Whom `docs/THREAT_MODEL.md` names, A1 to A10.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adversary {
    DiskThief,
    PresentKeys,
    Administrator,
    OtherTenant,
    Client,
    Observer,
    LogReader,
    StolenKey,
    Faults,
    Host,
}

impl Adversary {
    pub const ALL: [Adversary; 10] = [
        Adversary::DiskThief,
        Adversary::PresentKeys,
        Adversary::Administrator,
        Adversary::OtherTenant,
        Adversary::Client,
        Adversary::Observer,
        Adversary::LogReader,
        Adversary::StolenKey,
        Adversary::Faults,
        Adversary::Host,
    ];

    /// The number in the threat model.
    pub fn id(self) -> String {
        format!("A{}", self as u8 + 1)
    }

    /// The promise in a few words.
    pub fn promise(self) -> &'static str {
        match self {
            Adversary::DiskThief => "who steals disks or backups learns no value",
            Adversary::PresentKeys => "who has even the present keys learns nothing of the erased",
            Adversary::Administrator => "who changes rows cannot pass a wrong value as right",
            Adversary::OtherTenant => "a tenant gets nothing of another",
            Adversary::Client => "a client without a key costs little",
            Adversary::Observer => "who listens on the network learns no value",
            Adversary::LogReader => "logs, metrics and audit hold no value, key or id of a caller",
            Adversary::StolenKey => "a stolen access key is bounded, and revoked at once",
            Adversary::Faults => "a crash, a full disk or a failing one loses nothing that was answered",
            Adversary::Host => "root on the host is not defended against; keys reach no core file and no swap",
        }
    }

    /// Why it holds where nothing was found against it.
    fn why(self, config: &Config) -> String {
        let limits = &config.limits;
        match self {
            Adversary::DiskThief => "values are sealed, and the root key was not found beside the data".into(),
            Adversary::PresentKeys => "roots are overwritten in a keeper that nothing was found to copy".into(),
            Adversary::Administrator => "the trees and the audit open, and agree with the keeper".into(),
            Adversary::OtherTenant | Adversary::LogReader => "by construction: no setting weakens it".into(),
            Adversary::Client => format!(
                "at most {} connections, {} calls and {} MiB of requests at once",
                limits.max_connections, limits.max_calls, limits.max_request_mib
            ),
            Adversary::Observer => match &config.tls {
                Some(tls) if tls.minimum_version == TlsVersion::V12 => "TLS, 1.2 too for old clients".into(),
                Some(_) => "TLS 1.3".into(),
                None => format!("{} is reached from this machine only", config.listen.address),
            },
            Adversary::StolenKey => {
                format!(
                    "by roles, expiry and revocation; its reads stay in the audit {} days",
                    config.audit.retention_days
                )
            }
            Adversary::Faults => "answers wait for the disk, and what was answered opens".into(),
            Adversary::Host => "dumps are switched off, and there is no swap for keys".into(),
        }
    }

    /// Whether it is known only when the vault was opened.
    fn wants_the_vault(self) -> bool {
        matches!(self, Adversary::Administrator | Adversary::Faults)
    }
}

/// Whether a promise is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    Yes,
    No,
    /// The vault could not be opened, as while a server has it open.
    Unknown,
}

impl Kept {
    pub fn as_str(self) -> &'static str {
        match self {
            Kept::Yes => "yes",
            Kept::No => "no",
            Kept::Unknown => "unknown",
        }
    }
}

/// One promise, and why it is kept or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promise {
    pub adversary: Adversary,
    pub kept: Kept,
    pub because: String,
    /// The key of the configuration, or the command, that changes it; empty where it is kept.
    pub change: String,
}

/// What the findings mean for each promise.
pub fn promises(config: &Config, findings: &[Finding]) -> Vec<Promise> {
    let shut = findings.iter().find(|finding| [NOT_OPEN, SERVED].contains(&finding.about.as_str()));
    Adversary::ALL
        .map(|adversary| {
            let against: Vec<&Finding> = findings.iter().filter(|f| f.costs.contains(&adversary)).collect();
            if !against.is_empty() {
                let join =
                    |part: fn(&Finding) -> String| against.iter().map(|f| part(f)).collect::<Vec<_>>().join("; ");
                let (because, change) = (join(|f| f.because.clone()), join(|f| format!("{}: {}", f.about, f.todo)));
                return Promise { adversary, kept: Kept::No, because, change };
            }
            if let (Some(shut), true) = (shut, adversary.wants_the_vault()) {
                let change = "stop the server for this check".into();
                return Promise { adversary, kept: Kept::Unknown, because: shut.because.clone(), change };
            }
            Promise { adversary, kept: Kept::Yes, because: adversary.why(config), change: String::new() }
        })
        .to_vec()
}
