//! What a look at a vault and its machine finds wrong, what to do about it, and which promise of the threat model it costs.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::causes::causes;
use crate::clock::{Clock, DAY_MS, Timestamp};
use crate::config::{Config, Profile, RootKekSource};
use crate::grpc::ops;
use crate::keyring::TenantKeyState;
use crate::keyring::keeper::{Finding as PlaceFinding, KeeperError, ReplicaStatus, inspect};
use crate::recovery::catalogue;
use crate::server::hardening::{Swapping, forbid_dumps, lock_memory};
use crate::server::node::{Node, NodeError};
use crate::server::promises::Adversary;
use crate::storage::StoreError;
use crate::storage::readlog::ReadLogError;
use crate::storage::sqlite::IN_USE;
use crate::telemetry::AUDIT_ANCHOR_AGE;
use crate::vault::VaultError;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Good,
    Doubtful,
    Bad,
}

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Good => "good",
            Verdict::Doubtful => "doubtful",
            Verdict::Bad => "bad",
        }
    }
}

/// One finding: because of what, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub verdict: Verdict,
    pub about: String,
    pub because: String,
    /// Empty where it is good.
    pub todo: String,
    /// Against whom the vault does not do what it promises while this is so.
    pub costs: &'static [Adversary],
}

impl Finding {
    fn new(verdict: Verdict, about: &str, because: impl Into<String>, todo: &str) -> Self {
        Finding { verdict, about: about.into(), because: because.into(), todo: todo.into(), costs: &[] }
    }

    fn costing(self, costs: &'static [Adversary]) -> Self {
        Finding { costs, ..self }
    }

    /// Both in a line.
    pub fn text(&self) -> String {
        if self.todo.is_empty() { self.because.clone() } else { format!("{}; {}", self.because, self.todo) }
    }
}

/// What the finding about an opened vault is about, and the one about a vault that could not be opened.
pub const OPENS: &str = "vault";
pub const NOT_OPEN: &str = "start";
/// What the finding about a vault that a server has open is about.
pub const SERVED: &str = "server";

const ANCHORS: &str = "audit.anchors";
/// A place that took nothing for so long is not reached; a checkpoint is made every ten minutes.
const ANCHOR_MS: i64 = 3_600_000;
const ANCHOR_TODO: &str = "see whether it can be written or reached; the server's log says why it takes none";

/// Without a new archive for so long the nightly job does not do its work.
const ARCHIVE_DAYS: i64 = 2;
/// A restore that was never tried does not count as one that works.
const DRILL_DAYS: i64 = 90;
/// A configuration of a backup tool is shorter.
const MOST_BYTES: u64 = 1 << 20;

/// Where tools that copy files are told what to copy: files, and folders whose files (two levels down) are read.
const TOOL_PLACES: &[&str] = &[
    "etc/borgmatic",
    "etc/borgmatic.d",
    "etc/restic",
    "etc/resticprofile",
    "etc/rsnapshot.conf",
    "etc/duply",
    "etc/duplicity",
    "etc/bacula",
    "etc/bareos",
    "etc/burp",
    "etc/snapper/configs",
    "etc/timeshift",
    "etc/amanda",
    "etc/kopia",
    "etc/crontab",
    "etc/cron.d",
    "etc/cron.daily",
    "etc/cron.weekly",
    "etc/systemd/system",
    "var/spool/cron/crontabs",
    "root/.config/borgmatic",
    "root/.config/resticprofile",
];
/// In files that are not only about backups (cron, units), a line counts if it names one of these.
const TOOLS: &[&str] =
    &["borg", "restic", "rsync", "rsnapshot", "duplicity", "tar ", "kopia", "rclone", "cp -a", "cp -r", "dump "];

/// What an operator says beside the look.
#[derive(Debug, Clone, Copy, Default)]
pub struct Answers {
    /// The machine's clock is right as it is now.
    pub confirm_clock: bool,
    /// The read audit is what it is now.
    pub accept_audit_loss: bool,
}

/// Looks at configuration, machine, archives and, unless a server has it open, the vault itself.
///
/// # Errors
/// That of the store, once the vault is open.
pub async fn examine(config: &Config, answers: Answers, clock: Arc<dyn Clock>) -> Result<Vec<Finding>, String> {
    let mut found = look(config, clock.now());
    found.extend(memory(config));
    found.extend(open(config, answers, clock).await?);
    Ok(found)
}

/// Everything that can be found in files and mounts.
fn look(config: &Config, now: Timestamp) -> Vec<Finding> {
    let mut found: Vec<Finding> =
        config.check().into_iter().map(|p| Finding::new(Verdict::Bad, &p.key, p.rule, "")).collect();
    for path in &config.keeper.paths {
        found.extend(inspect(path, &config.data_dir).into_iter().map(|place| {
            let verdict = if place.severe() { Verdict::Bad } else { Verdict::Doubtful };
            let costs = keeper_costs(&place);
            Finding::new(verdict, "keeper.paths", place.to_string(), keeper_todo(&place)).costing(costs)
        }));
        for tool in copied_by(Path::new("/"), path) {
            let because = format!("{tool} copies {}: each copy brings erased people back", path.display());
            let todo =
                "leave the keeper out there, delete the copies, then rotate the root key and destroy the old one";
            found.push(Finding::new(Verdict::Bad, "keeper.paths", because, todo).costing(&[Adversary::PresentKeys]));
        }
    }
    if config.keeper.paths.len() == 1 {
        let todo = "a second on another disk keeps the vault when that disk dies";
        found.push(Finding::new(Verdict::Doubtful, "keeper.paths", "there is one replica", todo));
    }
    if config.keeper.token.as_ref().is_some_and(|token| is_soft(&token.module)) {
        found.push(Finding::new(Verdict::Doubtful, "keeper.token", SOFT, "name the module of a real one"));
    }
    found.extend(root_key(config));
    found.extend(network(config));
    found.extend(archives(&config.backups_dir(), now, i64::from(config.backup.horizon_days)));
    found.extend(drills(&config.backups_dir().join(catalogue::DRILLS), now));
    if config.audit.anchors.is_empty() {
        let because = "nobody else keeps checkpoints: who has this machine and its keys could write another history";
        let todo = "name a file or an address of another party there";
        found.push(Finding::new(Verdict::Doubtful, ANCHORS, because, todo));
    }
    if !config.backup.nightly {
        let todo = "set it, or run `pii-vault backup all` from a timer of your own";
        found.push(Finding::new(Verdict::Doubtful, "backup.nightly", "the nightly backup is off", todo));
    }
    found
}

fn keeper_costs(place: &PlaceFinding) -> &'static [Adversary] {
    match place {
        PlaceFinding::UnderData | PlaceFinding::FileSystem { .. } | PlaceFinding::DataJournal => {
            &[Adversary::PresentKeys]
        }
        PlaceFinding::Volatile => &[Adversary::Faults],
        PlaceFinding::SameDevice
        | PlaceFinding::Exposed { .. }
        | PlaceFinding::NoCacheTag
        | PlaceFinding::Unreadable { .. } => &[],
    }
}

fn keeper_todo(place: &PlaceFinding) -> &'static str {
    match place {
        PlaceFinding::UnderData => "name a folder outside of data_dir",
        PlaceFinding::SameDevice => "name a folder on a disk of its own",
        PlaceFinding::FileSystem { .. } => "name a folder on ext4 or xfs, without snapshots below it",
        PlaceFinding::DataJournal => "mount it with data=ordered",
        PlaceFinding::Volatile => "name a folder on a disk",
        PlaceFinding::Exposed { .. } => "take the rights of others away with chmod",
        PlaceFinding::NoCacheTag => "start the server once: it writes the file",
        PlaceFinding::Unreadable { .. } => "see to its mode and its mount, or run `pii-vault init` first",
    }
}

/// Whether who takes the data away takes the root key along.
fn root_key(config: &Config) -> Option<Finding> {
    const TODO: &str = "use a systemd credential bound to the TPM, a passphrase, or a file on another disk";
    if let Some(RootKekSource::Pkcs11 { module, .. }) = &config.root_kek {
        let found = Finding::new(Verdict::Doubtful, "root_kek", SOFT, "name the module of a real one");
        return is_soft(module).then(|| found.costing(&[Adversary::DiskThief]));
    }
    let Some(RootKekSource::File { path }) = &config.root_kek else { return None };
    let device = |path: &Path| std::fs::metadata(path).map(|meta| meta.dev()).ok();
    let (verdict, because) = if path.starts_with(&config.data_dir) {
        (Verdict::Bad, "the root key lies with the data: a thief of one has both")
    } else if device(path).is_some() && device(path) == device(&config.data_dir) {
        (Verdict::Doubtful, "the root key's file is on the same file system as the data: a thief of that disk has both")
    } else {
        return None;
    };
    Some(Finding::new(verdict, "root_kek", because, TODO).costing(&[Adversary::DiskThief]))
}

const SOFT: &str = "SoftHSM keeps its keys in files of this machine: for trying out, not a hardware security module";

/// By its name: a module says of itself what it likes.
fn is_soft(module: &Path) -> bool {
    module.file_name().is_some_and(|name| name.to_string_lossy().contains("softhsm"))
}

fn network(config: &Config) -> Option<Finding> {
    let open = config.tls.is_none() && !config.listen.address.ip().is_loopback();
    let because = "values go over the network in clear, unless a proxy before this port does TLS";
    open.then(|| {
        Finding::new(Verdict::Doubtful, "listen", because, "add a [tls] section").costing(&[Adversary::Observer])
    })
}

/// Where keys in memory can go.
fn memory(config: &Config) -> Vec<Finding> {
    let swapping = lock_memory();
    let (verdict, todo) = match swapping {
        Swapping::Possible if config.profile == Profile::Strict => (Verdict::Bad, swapping.todo()),
        Swapping::Possible => (Verdict::Doubtful, swapping.todo()),
        Swapping::Locked | Swapping::Nowhere => (Verdict::Good, ""),
    };
    let swap = Finding::new(verdict, "memory", swapping.meaning(), todo);
    let dumps = match forbid_dumps() {
        Ok(()) => Finding::new(Verdict::Good, "core dumps", "switched off by the program", ""),
        Err(error) => {
            let because = format!("not switched off: {error}");
            Finding::new(Verdict::Bad, "core dumps", because, "set LimitCORE=0").costing(&[Adversary::Host])
        }
    };
    let swap = if verdict == Verdict::Good { swap } else { swap.costing(&[Adversary::Host]) };
    vec![swap, dumps]
}

/// Opens the vault as a start does, and looks at its tenants.
async fn open(config: &Config, answers: Answers, clock: Arc<dyn Clock>) -> Result<Vec<Finding>, String> {
    let opened = match answers.accept_audit_loss {
        true => Node::open_accepting_loss(config, clock).await,
        false => Node::open(config, clock).await,
    };
    let node = match opened {
        Ok(node) => node,
        Err(error @ NodeError::ReadLog(ReadLogError::Truncated { .. } | ReadLogError::Replaced { .. })) => {
            let todo = "if its files are gone for good, accept that with --accept-audit-loss";
            let costs = &[Adversary::Administrator, Adversary::Faults];
            return Ok(vec![Finding::new(Verdict::Bad, "audit", causes(&error), todo).costing(costs)]);
        }
        Err(NodeError::Store(StoreError::Refused { what: IN_USE }) | NodeError::Keeper(KeeperError::InUse)) => {
            let because = "a server has it open: `pii-vault keeper verify` asks that one, and a look at its keys here wants it stopped";
            let mut found = vec![Finding::new(Verdict::Good, SERVED, because, "")];
            if config.ops.enabled {
                found.extend(told_by_server(config));
            }
            return Ok(found);
        }
        Err(error) => return Ok(vec![Finding::new(Verdict::Bad, NOT_OPEN, causes(&error), "")]),
    };
    let found = tenants(&node, answers).await;
    let anchored = anchored(&node, config).await.map_err(|error| error.to_string());
    node.close().await;
    Ok([found?, anchored?].concat())
}

/// How far each external anchor has come.
async fn anchored(node: &Node, config: &Config) -> Result<Vec<Finding>, VaultError> {
    let mut found = Vec::new();
    for (i, place) in config.audit.anchors.iter().enumerate() {
        let taken = node.vault.published(place).await?;
        let waiting = node.vault.unpublished(taken.as_ref()).await?;
        let since = waiting.first().map(|checkpoint| checkpoint.at());
        let about = |verdict, because: String, todo| Finding::new(verdict, &anchor(i), because, todo);
        found.push(match (taken.map(|taken| taken.at().rfc3339()), since) {
            (Some(last), Some(since)) if node.vault.now().0 - since.0 > ANCHOR_MS => {
                let because = format!("it took the checkpoint of {last}, and none since although there are");
                about(Verdict::Doubtful, because, ANCHOR_TODO)
            }
            (Some(last), _) => about(Verdict::Good, format!("it took the checkpoint of {last}"), ""),
            (None, Some(_)) => about(Verdict::Doubtful, "it has not taken a checkpoint yet".into(), ANCHOR_TODO),
            (None, None) => about(Verdict::Good, "there is no checkpoint yet that it could take".into(), ""),
        });
    }
    Ok(found)
}

fn anchor(place: usize) -> String {
    format!("{ANCHORS}[{place}]")
}

/// What the server that has it open says of itself on its operations port.
fn told_by_server(config: &Config) -> Vec<Finding> {
    const TODO: &str = "see docs/OPERATIONS.md";
    let ask = |path| ops::probe(config.ops.address, path, Duration::from_secs(3));
    let Ok((code, told)) = ask("/readyz") else { return Vec::new() };
    let about = |verdict, because: &str| Finding::new(verdict, SERVED, because, TODO);
    let mut found: Vec<Finding> = match code {
        200 => {
            told.lines().filter_map(|line| Some(about(Verdict::Doubtful, line.strip_prefix(ops::WARNING)?))).collect()
        }
        _ => vec![about(Verdict::Bad, told.trim_end())],
    };
    let Ok((200, metrics)) = ask("/metrics") else { return found };
    for i in 0..config.audit.anchors.len() {
        let series = format!("{AUDIT_ANCHOR_AGE}{{place=\"{i}\"}} ");
        let age = metrics.lines().find_map(|line| line.strip_prefix(&series)?.parse::<f64>().ok());
        // Its age counts only while it takes none.
        found.extend(age.map(|age| match age > 0.0 {
            true => {
                let because = format!("it takes no checkpoint; the last one that it took is {age:.0} s old");
                Finding::new(Verdict::Doubtful, &anchor(i), because, ANCHOR_TODO)
            }
            false => Finding::new(Verdict::Good, &anchor(i), "it takes checkpoints", ""),
        }));
    }
    found
}

async fn tenants(node: &Node, answers: Answers) -> Result<Vec<Finding>, String> {
    let mut found = Vec::new();
    node.vault.watch_clock().await.map_err(|error| error.to_string())?;
    if answers.confirm_clock {
        node.vault.confirm_clock_here().await.map_err(|error| error.to_string())?;
    }
    if node.vault.clock_jump().is_some() {
        let todo = "set it, or confirm it with --confirm-clock";
        found.push(Finding::new(Verdict::Bad, "clock", "it jumped since the vault last saw it", todo));
    }
    found.extend(recovery(node).await.map_err(|error| error.to_string())?);
    for away in node.keyring.keeper().replicas().iter().filter_map(ReplicaStatus::away) {
        let todo = "bring its disk or token back, or give it up with `pii-vault keeper retire`";
        found.push(Finding::new(Verdict::Bad, "keeper", away, todo));
    }
    let states = node.keyring.states();
    for (tenant, state) in &states {
        if *state != TenantKeyState::Ready && *state != TenantKeyState::TenantErased {
            let about = format!("tenant {tenant}");
            let costs = &[Adversary::Administrator, Adversary::Faults];
            found.push(Finding::new(Verdict::Bad, &about, state.name(), state.advice()).costing(costs));
        }
    }
    let rows = node.store.tenants().await.map_err(|error| error.to_string())?;
    let known = node.keyring.keeper().tenants().await.map_err(|error| error.to_string())?;
    for orphan in known.iter().filter(|no| rows.iter().all(|row| row.no != **no)) {
        let because = "only the keeper knows it: its creation was never committed, or the database is older";
        found.push(Finding::new(Verdict::Doubtful, &format!("tenant {orphan}"), because, ""));
    }
    found.push(Finding::new(Verdict::Good, OPENS, format!("opens; {} tenants", states.len().saturating_sub(1)), ""));
    Ok(found)
}

/// Whether there is a recovery key, how old it is, and whether the key archives are such as a restore takes.
async fn recovery(node: &Node) -> Result<Vec<Finding>, VaultError> {
    let status = node.vault.recovery_status().await?;
    let doubt = |because: &str, todo| vec![Finding::new(Verdict::Doubtful, "recovery", because, todo)];
    if !status.active() {
        let because = "there is no recovery key: whoever loses keeper or root key loses everyone";
        return Ok(doubt(because, "run `pii-vault recovery add`"));
    }
    let mut found = match status.epoch_due {
        true => doubt("the recovery key is older than a year", "run `pii-vault recovery rotate`"),
        false => Vec::new(),
    };
    for (tenant, file) in status.files {
        let because = match file {
            None => "it has no key archive: whoever loses keeper or root key loses its people",
            Some(file) if file.latest_expiry <= node.vault.now() => {
                "its key archive is past its horizon: a restore refuses it"
            }
            Some(_) => continue,
        };
        if node.keyring.state(tenant) == TenantKeyState::Ready {
            let todo = "the server writes it anew within a minute of its start; its log says why it could not";
            found.push(Finding::new(Verdict::Bad, &format!("tenant {tenant}"), because, todo));
        }
    }
    Ok(found)
}

/// What keeps a vault of profile `strict` from being served: places where overwriting does not destroy, or where a copy
/// is made. Empty in other profiles.
pub fn strict_refusals(config: &Config) -> Vec<String> {
    if config.profile != Profile::Strict {
        return Vec::new();
    }
    let mut refused = Vec::new();
    for path in &config.keeper.paths {
        let severe = |finding: &PlaceFinding| finding.severe() || *finding == PlaceFinding::SameDevice;
        refused.extend(
            inspect(path, &config.data_dir)
                .into_iter()
                .filter(severe)
                .map(|finding| format!("{} {finding}", path.display())),
        );
        refused.extend(
            copied_by(Path::new("/"), path).into_iter().map(|tool| format!("{} is copied by {tool}", path.display())),
        );
    }
    refused
}

/// Configurations below `root` that tell a tool to copy `keeper` or a folder above it.
fn copied_by(root: &Path, keeper: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let tagged = keeper.join("CACHEDIR.TAG").exists();
    for place in TOOL_PLACES {
        let (mut files, path) = (Vec::new(), root.join(place));
        collect(&path, 2, &mut files);
        let only_backups = !["cron", "systemd"].iter().any(|word| place.contains(word));
        for file in files {
            let short = std::fs::metadata(&file).is_ok_and(|meta| meta.len() <= MOST_BYTES);
            let Some(text) = short.then(|| std::fs::read_to_string(&file).ok()).flatten() else { continue };
            // The keeper's own mark asks tools to leave it out; these words say that they heed it.
            if tagged && ["exclude-caches", "exclude_caches", "exclude-if-present"].iter().any(|w| text.contains(w)) {
                continue;
            }
            let line = text.lines().map(str::trim).find(|line| {
                !line.starts_with('#')
                    && !["exclude", "- !", "!"].iter().any(|word| line.starts_with(word))
                    && (only_backups || TOOLS.iter().any(|tool| line.contains(tool)))
                    && names(line, keeper, only_backups)
            });
            if line.is_some() {
                found.push(
                    file.strip_prefix(root).map_or(file.clone(), |p| Path::new("/").join(p)).display().to_string(),
                );
            }
        }
    }
    found
}

/// Whether a word of the line is the keeper's path or a folder above it. The root of everything counts only where the
/// whole file is about backups: elsewhere a lone `/` says little.
fn names(line: &str, keeper: &Path, root_counts: bool) -> bool {
    let words = line.split(|c: char| c.is_whitespace() || "\"'=,;:[]()".contains(c));
    words.filter(|word| word.starts_with('/')).any(|word| {
        let path = Path::new(word.trim_end_matches('*'));
        keeper.starts_with(path) && (root_counts || path.parent().is_some())
    })
}

fn collect(path: &Path, depth: u32, out: &mut Vec<PathBuf>) {
    let Ok(meta) = std::fs::metadata(path) else { return };
    if meta.is_file() {
        out.push(path.to_owned());
    } else if depth > 0 {
        let mut inside: Vec<PathBuf> =
            std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        inside.sort();
        inside.iter().for_each(|path| collect(path, depth - 1, out));
    }
}

fn archives(backups: &Path, now: Timestamp, horizon_days: i64) -> Vec<Finding> {
    const ABOUT: &str = "backups";
    let all = match catalogue::list(backups) {
        Ok(all) => all,
        Err(error) => {
            let because = format!("the folder of archives cannot be read: {error}");
            return vec![Finding::new(Verdict::Bad, ABOUT, because, "see to its mode and its mount")];
        }
    };
    let mut found = Vec::new();
    for archive in all.iter().filter(|archive| archive.expired(now, horizon_days)) {
        let because = format!("{} is past its horizon of {horizon_days} days", archive.name);
        let todo = "run `pii-vault backup prune`; the newest one stays until there is a newer";
        found.push(Finding::new(Verdict::Bad, ABOUT, because, todo).costing(&[Adversary::PresentKeys]));
    }
    for archive in &all {
        if let Err(error) = &archive.manifest {
            let because = format!("{} is no archive: {error}", archive.name);
            found.push(Finding::new(Verdict::Bad, ABOUT, because, "delete the folder, make a new one"));
        }
    }
    match all.iter().find_map(|archive| archive.made_at()) {
        Some(made) if now.0 - made.0 > ARCHIVE_DAYS * DAY_MS => found.push(Finding::new(
            Verdict::Bad,
            ABOUT,
            format!("the newest archive is of {}", made.rfc3339()),
            "the server's log says why there is none since; `pii-vault backup all --wait` makes one now",
        )),
        Some(made) => {
            found.push(Finding::new(Verdict::Good, ABOUT, format!("the newest archive is of {}", made.rfc3339()), ""));
        }
        None => found.push(Finding::new(
            Verdict::Doubtful,
            ABOUT,
            "there is no archive yet",
            "the server makes one within a minute of its start; `pii-vault backup all --wait` makes one now",
        )),
    }
    found
}

fn drills(dir: &Path, now: Timestamp) -> Vec<Finding> {
    const TODO: &str = "run `pii-vault drill`: it restores the newest archives into a folder of its own";
    let about = |verdict, because: String, todo| vec![Finding::new(verdict, "drill", because, todo)];
    match catalogue::drills(dir).into_iter().next() {
        None => about(Verdict::Doubtful, "no restore was ever tried".into(), TODO),
        Some(last) if !last.held => {
            let because = format!("{} says that not everyone came back", last.path.display());
            about(Verdict::Bad, because, "read it, make a new backup with `pii-vault backup all`, and try again")
        }
        Some(last) if now.0 - last.at.0 > DRILL_DAYS * DAY_MS => {
            let because = format!("overdue: the last restore was tried at {}", last.at.rfc3339());
            about(Verdict::Doubtful, because, TODO)
        }
        Some(last) => {
            let signed = if last.signed { "" } else { ", and nobody signed the report" };
            about(Verdict::Good, format!("a restore was tried at {}{signed}", last.at.rfc3339()), "")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: PathBuf, text: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn a_tool_that_copies_the_keeper_is_found_by_its_configuration() {
        let root = tempfile::tempdir().unwrap();
        let keeper = Path::new("/var/lib/pii-vault-keeper");
        let found = || copied_by(root.path(), keeper);
        assert_eq!(found(), Vec::<String>::new());
        let borg = root.path().join("etc/borgmatic/config.yaml");
        for (text, copies) in [
            ("source_directories:\n    - /var/lib\n", true),
            ("source_directories:\n    - /\n", true),
            ("source_directories:\n    - /home\n", false),
            ("# - /var/lib\n", false),
            ("source_directories: [\"/var/lib/pii-vault-keeper\"]\n", true),
            ("source_directories:\n    - /var/lib/pii-vault\n", false),
        ] {
            write(borg.clone(), text);
            assert_eq!(!found().is_empty(), copies, "{text}");
        }
        std::fs::remove_file(&borg).unwrap();
        write(root.path().join("etc/cron.d/night"), "0 1 * * * root rsync -a /var/lib backup:/x\n");
        assert_eq!(found(), ["/etc/cron.d/night"]);
        write(root.path().join("etc/cron.d/night"), "0 1 * * * root find /var/lib -name x\n");
        assert_eq!(found(), Vec::<String>::new());
    }

    #[test]
    fn a_tool_that_heeds_the_mark_is_none() {
        let root = tempfile::tempdir().unwrap();
        let keeper = root.path().join("var/keeper");
        write(keeper.join("CACHEDIR.TAG"), "Signature: 8a477f597d28d172789f06886806bc55\n");
        let line = format!("0 1 * * * root restic backup {}\n", root.path().join("var").display());
        write(root.path().join("etc/crontab"), &line);
        assert_eq!(copied_by(root.path(), &keeper).len(), 1);
        write(root.path().join("etc/crontab"), &line.replace("backup ", "backup --exclude-caches "));
        assert_eq!(copied_by(root.path(), &keeper).len(), 0);
    }

    #[test]
    fn missing_archives_and_drills_are_told_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let found = archives(&dir.path().join("none"), Timestamp(0), 30);
        assert_eq!((found.len(), found[0].verdict), (1, Verdict::Doubtful));
        std::fs::create_dir(dir.path().join("20261121T023000Z")).unwrap();
        let found = archives(dir.path(), Timestamp(0), 30);
        assert!(found.iter().any(|f| f.verdict == Verdict::Bad && f.text().contains("20261121T023000Z")), "{found:?}");
        assert!(found.iter().chain(&drills(dir.path(), Timestamp(0))).all(|f| !f.todo.is_empty()));
    }
    #[test]
    fn a_drill_is_overdue_after_90_days_and_bad_if_somebody_was_lost() {
        let dir = tempfile::tempdir().unwrap();
        let made = Timestamp(1_795_228_200_000); // 20261121T023000Z
        let keep = |holds: bool| {
            let body = serde_json::json!({ "holds": holds });
            let json = crate::crypto::document::write(
                crate::crypto::sign::Domain::Drill,
                catalogue::DRILL_FORMAT,
                &body,
                None,
            );
            write(dir.path().join("20261121T023000Z.json"), std::str::from_utf8(&json).unwrap());
        };
        let found = |days| drills(dir.path(), made.plus_days(days)).remove(0);
        keep(true);
        assert_eq!((found(90).verdict, found(91).verdict), (Verdict::Good, Verdict::Doubtful));
        assert!(found(91).text().contains("overdue"), "{:?}", found(91));
        keep(false);
        assert_eq!(found(1).verdict, Verdict::Bad);
        write(dir.path().join("20261121T023000Z.json"), "no report");
        assert!(found(1).text().contains("ever"), "{:?}", found(1));
    }
}
