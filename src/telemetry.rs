//! Everything that the server emits about itself: names of metrics and spans, the log subscriber, the metrics recorder.
//! Labels are words of this program (a method's path, a code, a reason), never text from the network.

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Registry, fmt, reload};

/// Target of our own log lines.
const OWN_TARGET: &str = "pii_vault";

// ---- spans

/// One call, at debug level; fields `method` and `request_id`.
pub const SPAN_CALL: &str = "call";

// ---- metrics: network

/// Gauge: connections now.
pub const CONNECTIONS: &str = "pii_vault_connections";
/// Counter by `why`: connections turned away by a cap, or by a failing accept.
pub const CONNECTIONS_REFUSED: &str = "pii_vault_connections_refused_total";
/// Counter by `why`: how connections ended (`closed`, `cut`, a timeout's name).
pub const CONNECTIONS_ENDED: &str = "pii_vault_connections_ended_total";
/// Counter by `what`: connections ended for abuse of the protocol.
pub const ABUSE: &str = "pii_vault_abuse_total";
/// Counter by `method` and `code` (`Ok`, `NotFound`, ...): calls that ended.
pub const CALLS: &str = "pii_vault_calls_total";
/// Histogram by `method`, seconds: from the headers of the request to the last byte of the answer.
pub const CALL_SECONDS: &str = "pii_vault_call_seconds";
/// Counter: calls refused because too many were in flight.
pub const CALLS_SHED: &str = "pii_vault_calls_shed_total";
/// Counter by `what` (`request`, `response`): calls ended because the client stopped sending or reading.
pub const STALLED: &str = "pii_vault_stalled_total";
/// Counter by `outcome` (`ok`, `failed`): reads of the certificate files after the start.
pub const CERTIFICATE_RELOADS: &str = "pii_vault_certificate_reloads_total";

/// Counter: stored data that did not open or was not what was stored. An alarm: damage, or somebody changed rows.
pub const DAMAGED: &str = "pii_vault_damaged_total";

// ---- metrics: access keys

/// Counter by `why` (`form`, `forged`, `unknown`, `wrong`, `revoked`, ...; `known`: refused before): keys that opened nothing.
/// For operators; callers are not told.
pub const KEYS_REFUSED: &str = "pii_vault_access_keys_refused_total";
/// Counter: runs of Argon2id over an access key.
pub const KEYS_VERIFIED: &str = "pii_vault_access_keys_verified_total";
/// Counter: first uses of a key that found no room in time.
pub const KEYS_SHED: &str = "pii_vault_access_keys_shed_total";
/// Counter: calls that were stopped because their key had touched as many different subjects in an hour as it may. An alarm:
/// a program that does more than it was made for, or a stolen key.
pub const KEYS_TOO_BROAD: &str = "pii_vault_access_keys_too_broad_total";

/// Counter: reads of decoys, refused ones too. An alarm: nobody has a reason to read one.
pub const DECOYS_READ: &str = "pii_vault_decoys_read_total";

// ---- metrics: credentials of the tenants' users

/// Counter by `verdict` (`ok`, `no`; `forged`: no key of that tenant by its checksum): API keys that were checked.
pub const API_KEYS_CHECKED: &str = "pii_vault_api_keys_checked_total";
/// Counter by `outcome` (`ok`, `wrong`, `unknown`, `none`, `locked`, `source_locked`, `must_reset`): checks of passwords.
pub const PASSWORDS_CHECKED: &str = "pii_vault_passwords_checked_total";
/// Counter: hashes that found no room in time.
pub const PASSWORDS_SHED: &str = "pii_vault_passwords_shed_total";

// ---- metrics: jobs

/// Counter by `job`: units of work done by the vault's own jobs.
pub const JOB_DONE: &str = "pii_vault_job_done_total";
/// Counter by `job`: rounds that failed for at least one tenant.
pub const JOB_FAILED: &str = "pii_vault_job_failed_total";
/// Gauge: 1 while the clock is trusted, 0 after a jump that no operator confirmed: nothing ends by time then.
pub const CLOCK_TRUSTED: &str = "pii_vault_clock_trusted";
/// Gauge: requests of people and authorities that wait longer than the policy says, of all tenants.
pub const REQUESTS_OVERDUE: &str = "pii_vault_requests_overdue";
/// Counter by `outcome` (`ok`, `failed`): backups that ended.
pub const BACKUPS_ENDED: &str = "pii_vault_backups_ended_total";
/// Gauge, seconds: age of the newest data archive.
pub const BACKUP_AGE: &str = "pii_vault_backup_age_seconds";
/// Gauge: seconds since a restore was last tried (`pii-vault drill`) and brought everyone back; absent: never here.
pub const DRILL_AGE: &str = "pii_vault_drill_age_seconds";
/// Gauge: 1 where there is a recovery key; 0 where losing the keeper or the root key loses every subject.
pub const RECOVERY_KEY: &str = "pii_vault_recovery_key";
/// Gauge: replicas of the keeper that cannot be written; erasures wait while it is not 0.
pub const KEEPER_AWAY: &str = "pii_vault_keeper_replicas_away";
/// Gauge, seconds: since when the root key's provider does not answer; 0: it does, or is on this machine.
pub const ROOT_AWAY: &str = "pii_vault_root_provider_away_seconds";
/// Gauge by `place` (number in the configuration's list), seconds: age of the last checkpoint that an external anchor took
/// while it takes none; 0: it has all.
pub const AUDIT_ANCHOR_AGE: &str = "pii_vault_audit_anchor_age_seconds";
/// Gauge by `kind`, days: until the first key of that kind is at the end of its period; below 0: overdue. Absent: no period.
pub const KEY_DAYS_LEFT: &str = "pii_vault_key_days_left";
/// Gauge by `kind`: what running rotations of that kind still have to move.
pub const ROTATION_LEFT: &str = "pii_vault_rotation_left";
/// Histogram by `job`, seconds: one round.
pub const JOB_SECONDS: &str = "pii_vault_job_seconds";

/// Every metric above, with its help text.
pub const DESCRIBED: &[(&str, &str)] = &[
    (CONNECTIONS, "Connections now"),
    (CONNECTIONS_REFUSED, "Connections turned away"),
    (CONNECTIONS_ENDED, "Connections that ended, by cause"),
    (ABUSE, "Connections ended for abuse of the protocol"),
    (CALLS, "Calls that ended, by method and code"),
    (CALL_SECONDS, "Duration of calls in seconds"),
    (DAMAGED, "Stored data that did not open or was not what was stored: an alarm"),
    (CALLS_SHED, "Calls refused because too many were in flight"),
    (STALLED, "Calls ended because the client stopped sending or reading"),
    (JOB_DONE, "Units of work done by the vault's own jobs"),
    (JOB_FAILED, "Rounds of a job that failed for at least one tenant"),
    (CLOCK_TRUSTED, "1 while the clock is trusted, 0 after a jump that no operator confirmed"),
    (REQUESTS_OVERDUE, "Requests of people and authorities that wait longer than the policy says"),
    (BACKUPS_ENDED, "Backups that ended, by outcome"),
    (BACKUP_AGE, "Age of the newest data archive in seconds"),
    (DRILL_AGE, "Seconds since a drill last brought everyone back"),
    (RECOVERY_KEY, "1 where there is a recovery key, 0 where there is none"),
    (KEEPER_AWAY, "Replicas of the keeper that cannot be written; erasures wait while it is not 0"),
    (AUDIT_ANCHOR_AGE, "Age in seconds of the last checkpoint that an external anchor took, while it takes none"),
    (ROOT_AWAY, "Seconds since the root key's provider answered"),
    (KEY_DAYS_LEFT, "Days until the first key of a kind is at the end of its period"),
    (ROTATION_LEFT, "What running rotations still have to move, by kind"),
    (JOB_SECONDS, "Duration of a job's round in seconds"),
    (CERTIFICATE_RELOADS, "Reads of the certificate files after the start"),
    (KEYS_REFUSED, "Access keys that opened nothing, by cause"),
    (KEYS_VERIFIED, "Runs of Argon2id over an access key"),
    (KEYS_SHED, "First uses of a key that found no room in time"),
    (KEYS_TOO_BROAD, "Calls stopped at their key's limit of different subjects in an hour: an alarm"),
    (DECOYS_READ, "Reads of decoys: an alarm"),
    (API_KEYS_CHECKED, "API keys of the tenants' users that were checked, by verdict"),
    (PASSWORDS_CHECKED, "Checks of passwords, by outcome"),
    (PASSWORDS_SHED, "Hashes of passwords that found no room in time"),
];

/// Bounds of duration histograms, in seconds: 50 µs to 30 s.
const SECONDS: &[f64] = &[
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 30.0,
];

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// For a terminal.
    Human,
}

/// Logging or metrics cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error(
        "must be off, error, warn, info, debug, trace or a list with target=level; debug and trace are for pii_vault"
    )]
    Level,
    #[error("a log subscriber or metrics recorder is there already")]
    Twice,
}

/// Changes the log level while the server runs.
#[derive(Clone)]
pub struct LogLevel(reload::Handle<EnvFilter, Registry>);

impl LogLevel {
    /// A level (`info`) or a list (`warn,pii_vault=debug`).
    pub fn set(&self, level: &str) -> Result<(), TelemetryError> {
        self.0.reload(parse_level(level)?).map_err(|_| TelemetryError::Twice)
    }
}

/// Checks a level without using it. Stricter than the filter's own parser, which takes a misspelt level for a target; and
/// debug and trace reach our own lines only: the libraries' ones show headers and frames as they are.
pub fn parse_level(text: &str) -> Result<EnvFilter, TelemetryError> {
    const WORDS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |t: &str| WORDS.contains(&t);
    let is_loud = |t: &str| t == "debug" || t == "trace";
    let is_target = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':');
    let is_ours = |t: &str| t == OWN_TARGET || t.starts_with("pii_vault::");
    let mut parts = Vec::new();
    for part in text.split(',') {
        match part.split_once('=') {
            None if is_level(part) && is_loud(part) => parts.push(format!("info,{OWN_TARGET}={part}")),
            None if is_level(part) => parts.push(part.to_owned()),
            Some((target, level)) if is_target(target) && is_level(level) && (is_ours(target) || !is_loud(level)) => {
                parts.push(part.to_owned());
            }
            _ => return Err(TelemetryError::Level),
        }
    }
    EnvFilter::builder().parse(parts.join(",")).map_err(|_| TelemetryError::Level)
}

/// Starts logging to standard error, once per process.
pub fn init_logging(level: &str, format: LogFormat) -> Result<LogLevel, TelemetryError> {
    let (filter, handle) = reload::Layer::new(parse_level(level)?);
    let registry = tracing_subscriber::registry().with(filter);
    let out = fmt::layer().with_writer(std::io::stderr);
    let set = match format {
        LogFormat::Json => tracing::subscriber::set_global_default(registry.with(out.json().flatten_event(true))),
        LogFormat::Human => tracing::subscriber::set_global_default(registry.with(out)),
    };
    set.map_err(|_| TelemetryError::Twice)?;
    Ok(LogLevel(handle))
}

/// Starts counting, once per process. The handle renders the text of `/metrics`; nothing listens by itself.
pub fn init_metrics() -> Result<PrometheusHandle, TelemetryError> {
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS)
        .map_err(|_| TelemetryError::Twice)?
        .build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|_| TelemetryError::Twice)?;
    for (name, help) in DESCRIBED {
        if name.ends_with("_total") {
            metrics::describe_counter!(*name, *help);
        } else if [CALL_SECONDS, JOB_SECONDS].contains(name) {
            metrics::describe_histogram!(*name, *help);
        } else {
            metrics::describe_gauge!(*name, *help);
        }
    }
    // A counter that first appears as 1 has not increased for Prometheus: what alarms at the first one starts at 0.
    metrics::counter!(DAMAGED).increment(0);
    metrics::counter!(DECOYS_READ).increment(0);
    metrics::counter!(BACKUPS_ENDED, "outcome" => "failed").increment(0);
    metrics::counter!(CERTIFICATE_RELOADS, "outcome" => "failed").increment(0);
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_words_or_targets_with_words() {
        for good in ["info", "warn,pii_vault=debug", "off,pii_vault::grpc=trace"] {
            assert!(parse_level(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "loud",
            "pii_vault=loud",
            "=info",
            "info,,warn",
            "off, warn",
            "pii_vault[{x}]=info",
            "h2=trace",
            "info,pii_vaults=debug",
        ] {
            assert!(parse_level(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_libraries_never_get_below_info() {
        for text in ["trace", "debug", "warn,pii_vault=trace"] {
            let filter = parse_level(text).unwrap().to_string();
            for directive in filter.split(',').filter(|d| d.contains("trace") || d.contains("debug")) {
                assert!(directive.starts_with("pii_vault="), "{text} gave {filter}");
            }
        }
    }

    #[test]
    fn every_metric_is_described_and_named_by_the_rules() {
        let own = include_str!("telemetry.rs");
        let names = own.lines().filter(|l| l.starts_with("pub const") && l.contains("\"pii_vault_")).count();
        assert_eq!(names, DESCRIBED.len());
    }
}
