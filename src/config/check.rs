//! What keeps a configuration from serving: rules over all of its keys, files and their modes.

use std::path::{Component, Path, PathBuf};

use super::root_kek::pin;
use super::{Config, Profile, RootKekSource};
use crate::causes::causes;
use crate::grpc::tls::TlsState;
use crate::jobs::anchors::Place;
use crate::telemetry::parse_level;

/// One thing that keeps a configuration from serving.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key, e.g. `keeper.paths`.
    pub key: String,
    /// What is wrong with it and, where it helps, what to do.
    pub rule: String,
}

impl Config {
    /// All that would keep the server from starting or that the profile refuses; empty when it may start. Looks at files
    /// and their modes, starts nothing.
    pub fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut bad = |key: &str, rule: &str| problems.push(Problem { key: key.into(), rule: rule.into() });
        let strict = self.profile == Profile::Strict;

        if !self.data_dir.is_absolute() {
            bad("data_dir", "must be an absolute path");
        }
        match self.keeper.paths.len() {
            0 => bad("keeper.paths", "must name 1 to 3 directories"),
            1 if strict => bad("keeper.paths", "must name at least two replicas on different disks (profile strict)"),
            1..=3 => {}
            _ => bad("keeper.paths", "must not name more than 3 directories"),
        }
        for (i, path) in self.keeper.paths.iter().enumerate() {
            let key = format!("keeper.paths[{i}]");
            if !path.is_absolute() || path.components().any(|c| c == Component::ParentDir) {
                bad(&key, "must be an absolute path without ..");
            }
            // Whoever copies the data directory would copy the roots with it.
            if real(path).starts_with(real(&self.data_dir)) || real(&self.data_dir).starts_with(real(path)) {
                bad(&key, "must not lie under data_dir, nor data_dir under it");
            }
            if self.keeper.paths[..i].iter().any(|other| real(other) == real(path)) {
                bad(&key, "is named twice");
            }
        }

        if let Some(token) = &self.keeper.token {
            if !token.module.is_absolute() || !token.module.is_file() {
                bad("keeper.token.module", "is the absolute path of the module's library");
            }
            if token.token.is_empty() || token.token.len() > 32 || token.key.is_empty() || token.key.len() > 64 {
                bad("keeper.token", "has 1 to 32 bytes, the key's label 1 to 64");
            }
            if !(10..=600_000).contains(&token.timeout_ms) || token.wait_s > 86_400 {
                bad("keeper.token.timeout_ms", "is from 10 to 600000, wait_s at most 86400");
            }
            if let Some(rule) = pin(token.pin_file.as_deref(), token.pin_credential.as_deref()) {
                bad("keeper.token", &rule);
            }
        }

        match &self.root_kek {
            None => bad("root_kek", "must say where the root key is"),
            // After a rotation the former key is gone, and the next one is the key.
            Some(source) => match (source.problem(), self.root_kek_next.as_ref().map(RootKekSource::problem)) {
                (None, _) | (_, Some(None)) => {}
                (Some((key, rule)), _) => bad(key, &rule),
            },
        }
        if let (Some(one), Some(next)) = (&self.root_kek, &self.root_kek_next)
            && one.same_place(next)
        {
            bad("root_kek_next", "is in the same place as root_kek");
        }
        if self.rotation.tenant_root_days > 3_650 || self.rotation.warn_days > 3_650 {
            bad("rotation", "periods are in days, warn_days and tenant_root_days at most 3650");
        }

        let backups = self.backups_dir();
        if !backups.is_absolute() && self.data_dir.is_absolute() {
            bad("backup.directory", "must be an absolute path, or empty for backups in data_dir");
        }
        if strict && real(&backups).starts_with(real(&self.data_dir)) {
            bad("backup.directory", "must not lie under data_dir: one disk would take both (profile strict)");
        }
        if self.keeper.paths.iter().any(|path| real(&backups).starts_with(real(path))) {
            bad("backup.directory", "must not lie in a keeper, which is never copied");
        }
        if self.backup.hour > 23 {
            bad("backup.hour", "must be from 0 to 23");
        }
        if !(1..=3_650).contains(&self.backup.horizon_days) {
            bad("backup.horizon_days", "must be from 1 to 3650");
        }

        let exposed = !self.listen.address.ip().is_loopback();
        match &self.tls {
            None if exposed && !self.listen.allow_plaintext_non_loopback => {
                bad("tls", "is needed because listen.address is not a loopback address");
            }
            None if strict => bad("tls", "is needed (profile strict)"),
            None => {}
            Some(tls) => match TlsState::load(tls.options()) {
                Ok(_) => {}
                Err(error) => bad("tls", &causes(&error)),
            },
        }
        if self.ops.enabled && !self.ops.address.ip().is_loopback() && !self.ops.allow_non_loopback {
            bad("ops.address", "must be a loopback address, or set ops.allow_non_loopback");
        }
        if self.ops.enabled && self.ops.address == self.listen.address && self.ops.address.port() != 0 {
            bad("ops.address", "must differ from listen.address");
        }
        if strict && self.development.reflection {
            bad("development.reflection", "must be off (profile strict)");
        }

        let l = &self.limits;
        for (key, value) in [
            ("limits.max_connections", l.max_connections as u64),
            ("limits.max_connections_per_peer", l.max_connections_per_peer as u64),
            ("limits.max_calls", l.max_calls as u64),
            ("limits.max_streams", l.max_streams as u64),
            ("limits.max_request_mib", l.max_request_mib as u64),
            ("limits.max_call_s", l.max_call_s),
            ("limits.body_idle_s", l.body_idle_s),
            ("limits.stream_idle_s", l.stream_idle_s),
            ("limits.response_stall_s", l.response_stall_s),
            ("limits.connection_idle_s", l.connection_idle_s),
            ("limits.connection_age_s", l.connection_age_s),
            ("limits.drain_s", l.drain_s),
            ("limits.keepalive_s", l.keepalive_s),
            ("cache.data_keys", self.cache.data_keys as u64),
            ("cache.tree_nodes", self.cache.tree_nodes as u64),
            ("cache.access_keys", self.cache.access_keys as u64),
            ("cache.access_key_s", self.cache.access_key_s),
            ("storage.write_queue", self.storage.write_queue as u64),
            ("audit.segment_mib", self.audit.segment_mib),
            ("audit.retention_days", self.audit.retention_days.into()),
            ("jobs.retention_s", self.jobs.retention_s),
            ("jobs.sweep_s", self.jobs.sweep_s),
            ("jobs.rotation_s", self.jobs.rotation_s),
            ("jobs.checkpoint_s", self.jobs.checkpoint_s),
            ("argon2.queue", self.argon2.queue as u64),
            ("passwords.queue", self.passwords.queue as u64),
            ("passwords.max_wait_ms", self.passwords.max_wait_ms),
        ] {
            // The upper end is far beyond use and keeps sums of times and bytes from overflowing.
            if !(1..=1 << 31).contains(&value) {
                bad(key, "must be from 1 to 2^31");
            }
        }
        // RFC 9106 needs 8 KiB per lane; 7 MiB with 5 passes is the least that OWASP lists.
        let a = &self.argon2;
        if a.iterations == 0 || a.parallelism == 0 || a.parallelism > 16 {
            bad("argon2", "iterations must be at least 1, parallelism 1 to 16");
        }
        if a.memory_kib < 7 << 10 || u64::from(a.memory_kib) * u64::from(a.iterations) < 35 << 10 {
            bad("argon2.memory_kib", "must be at least 7168, and memory_kib times iterations at least 35840");
        }
        if a.memory_kib > 4 << 20 {
            bad("argon2.memory_kib", "must not be above 4 GiB");
        }
        // OWASP's second choice is the least: the cost of users' passwords goes upwards only.
        let p = &self.passwords;
        if p.iterations < 2 || !(1..=16).contains(&p.parallelism) {
            bad("passwords", "iterations must be at least 2, parallelism 1 to 16");
        }
        if !(19_456..=4 << 20).contains(&p.memory_kib) {
            bad("passwords.memory_kib", "must be from 19456 to 4194304");
        }
        if !(p.memory_kib..=4 << 20).contains(&p.import_memory_kib) {
            bad("passwords.import_memory_kib", "must be at least passwords.memory_kib and at most 4194304");
        }
        if self.audit.refuse_free_mib > self.audit.warn_free_mib {
            bad("audit.refuse_free_mib", "must not be above audit.warn_free_mib");
        }
        let ca = (!self.audit.anchor_ca.as_os_str().is_empty()).then(|| self.audit.anchor_ca.clone());
        for (i, place) in self.audit.anchors.iter().enumerate() {
            let key = format!("audit.anchors[{i}]");
            match Place::parse(place, ca.clone()) {
                Err(rule) => bad(&key, rule),
                Ok(Place::File(path)) if real(&path).starts_with(real(&self.data_dir)) => {
                    bad(&key, "must not lie under data_dir: who can replace the audit could replace it, too");
                }
                Ok(_) if self.audit.anchors[..i].contains(place) => bad(&key, "is named twice"),
                Ok(_) => {}
            }
        }
        if let Err(error) = parse_level(&self.log.level) {
            bad("log.level", &error.to_string());
        }
        problems
    }
}

/// The path with its links resolved as far as it exists.
fn real(path: &Path) -> PathBuf {
    path.ancestors()
        .find_map(|a| Some(a.canonicalize().ok()?.join(path.strip_prefix(a).ok()?)))
        .unwrap_or_else(|| path.to_owned())
}
