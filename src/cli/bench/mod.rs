//! `pii-vault bench`: server, client and floor on one machine, interleaved, each in a process of its own.
//!
//! The floor of a row is the least that anybody would need for the same work: a bare tonic echo of the same bytes, plain
//! SQL of the same rows, the engine without the network. What counts is the ratio of windows that lie beside each other in
//! time; absolute figures of a shared machine drift by more than anything that is measured here.

mod echo;
mod ends;
mod error;
mod exports;
mod logins;
mod os;
mod part;
mod policies;
mod raw;
mod recover;
mod report;
mod rotations;
mod rows;
mod served;
mod stats;
mod wire;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use self::error::BenchError;
use self::report::HEADS;
use self::rows::{Plan, Run};
use crate::cli::error::CliError;
use crate::cli::output::{Output, note};
use crate::clock::{Clock, SystemClock};

/// How fast this build is on this machine, as ratios to bare floors
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pii-vault bench --smoke           a few seconds, figures mean nothing
  pii-vault bench                   100,000 subjects, some minutes
  pii-vault bench --full --json     1,000,000 subjects, as docs/PERFORMANCE.md

Everything runs on 127.0.0.1 and in a directory that is removed at the end. Build with --release, and leave the machine
alone meanwhile.")]
#[command(subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
pub struct Bench {
    #[command(subcommand)]
    part: Option<Hidden>,
    /// Subjects in the vault
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(100..=10_000_000))]
    subjects: u64,
    /// One million subjects and values
    #[arg(long, conflicts_with_all = ["subjects", "smoke"])]
    full: bool,
    /// Small counts and short windows, to see that everything works
    #[arg(long)]
    smoke: bool,
    /// Pairs of windows of each row
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    windows: u32,
    /// Length of a window in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(20..=60_000))]
    window: u32,
    /// Only rows of these groups
    #[arg(long, value_name = "GROUP", value_delimiter = ',')]
    only: Vec<Group>,
    /// Directory to work in; made, and removed at the end [default: one beside the system's temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Rows that are measured together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    Reads,
    Writes,
    Erasures,
    Expiry,
    Policies,
    Audit,
    Start,
    Recovery,
    Argon2,
    Credentials,
    Rotations,
}

#[derive(Debug, Subcommand)]
enum Hidden {
    /// A process of a run
    #[command(
        hide = true,
        after_help = "Started by `pii-vault bench`; it takes requests on standard input:
  pii-vault bench part echo --dir DIR"
    )]
    Part(PartArgs),
}

#[derive(Debug, Args)]
struct PartArgs {
    role: Role,
    #[arg(long)]
    dir: PathBuf,
    /// Stay on this core
    #[arg(long)]
    core: Option<usize>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Role {
    Vault,
    Echo,
    Sqlite,
    Restore,
    Hashes,
}

impl From<BenchError> for CliError {
    fn from(error: BenchError) -> CliError {
        CliError::Unexpected(error.to_string())
    }
}

/// Removes the directory of a run.
struct Cleanup(PathBuf);

impl Drop for Cleanup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Bench {
    /// Runs it, or the part of a run that this process is.
    pub fn run(self, out: Output) -> Result<(), CliError> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        match self.part {
            Some(Hidden::Part(args)) => Ok(part(args)?),
            None => self.measure(out),
        }
    }

    fn plan(&self, dir: &Path) -> Plan {
        let subjects = match () {
            _ if self.full => 1_000_000,
            _ if self.smoke => 500,
            _ => self.subjects,
        };
        let (windows, window) = if self.smoke { (2, 50) } else { (self.windows as usize, self.window) };
        Plan {
            dir: dir.to_owned(),
            subjects,
            windows,
            window: Duration::from_millis(window.into()),
            connections: 4,
            in_flight: 64,
            smoke: self.smoke,
            core: Some(os::cores()).filter(|cores| *cores > 1).map(|cores| cores - 1),
        }
    }

    fn measure(&self, out: Output) -> Result<(), CliError> {
        if cfg!(debug_assertions) {
            note("bench: this is a debug build; its figures mean nothing");
        }
        let dir = self
            .dir
            .clone()
            .unwrap_or_else(|| std::env::temp_dir().join(format!("pii-vault-bench-{:08x}", rand::random::<u32>())));
        std::fs::create_dir(&dir).map_err(BenchError::io("the directory of the run"))?;
        let _cleanup = Cleanup(dir.clone());
        let certificates = crate::cli::quickstart::local_certificates().map_err(BenchError::other("certificates"))?;
        let write =
            |name: &str, text: &str| std::fs::write(dir.join(name), text).map_err(BenchError::io("certificates"));
        write("server.pem", &certificates.certificate)?;
        write("server.key", &certificates.private_key)?;
        let plan = self.plan(&dir);
        prepare_dir(&dir.join("vault"), &dir)?;

        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let machine = os::machine(&dir);
        if plan.core.is_some() {
            // The client leaves the last core to servers.
            os::pin(0).map_err(BenchError::io("affinity"))?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(BenchError::io("tokio runtime"))?;
        let mut run = Run::new(plan.clone(), clock, certificates.authority);
        let measured = runtime.block_on(self.groups(&mut run));
        let about = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "commit": commit(),
            "debug_build": cfg!(debug_assertions),
            "machine": machine,
            "sqlite": "WAL, synchronous=FULL, secure_delete=ON",
            "read_audit": "fdatasync before each answer",
            "windows": plan.windows,
            "window_ms": plan.window.as_millis() as u64,
            "connections": plan.connections,
            "in_flight": plan.in_flight,
            "subjects": plan.subjects,
            "server_core": plan.core,
        });
        let rows = std::mem::take(&mut run.rows);
        if out.json {
            out.document(&json!({ "about": about, "rows": rows.iter().map(|r| r.json()).collect::<Vec<_>>() }))?;
        } else {
            out.rows(&HEADS, rows.iter().map(|row| row.cells()).collect())?;
            out.line(&format!("\n{about}"))?;
        }
        Ok(measured?)
    }

    async fn groups(&self, run: &mut Run) -> Result<(), BenchError> {
        let wanted = |group: Group| self.only.is_empty() || self.only.contains(&group);
        let fdatasync = run.disk()?;
        if wanted(Group::Argon2) {
            run.argon2()?;
        }
        let alone = |group: &Group| matches!(group, Group::Argon2 | Group::Audit);
        if !self.only.iter().all(alone) || self.only.is_empty() {
            run.load().await?;
        }
        if wanted(Group::Reads) {
            run.reads().await?;
        }
        if wanted(Group::Policies) {
            run.policies().await?;
        }
        if wanted(Group::Audit) {
            run.exports().await?;
        }
        if wanted(Group::Start) {
            run.start().await?;
        }
        // Before anything is erased: everyone must come back.
        if wanted(Group::Recovery) {
            run.recovery().await?;
        }
        if wanted(Group::Writes) {
            run.writes().await?;
        }
        // Not before the writes: their floor writes rows like those that came last.
        if wanted(Group::Credentials) {
            run.credentials().await?;
        }
        if wanted(Group::Rotations) {
            run.rotations().await?;
        }
        if wanted(Group::Erasures) {
            run.erasures(fdatasync).await?;
        }
        if wanted(Group::Expiry) {
            run.expiry().await?;
        }
        Ok(())
    }
}

/// A directory for a vault, with the certificates of the run.
fn prepare_dir(dir: &Path, run: &Path) -> Result<(), BenchError> {
    std::fs::create_dir(dir).map_err(BenchError::io("a vault's directory"))?;
    for name in ["server.pem", "server.key"] {
        std::fs::copy(run.join(name), dir.join(name)).map_err(BenchError::io("certificates"))?;
    }
    Ok(())
}

/// The commit that is checked out, where this runs in the source's directory.
fn commit() -> String {
    let git = std::process::Command::new("git").args(["describe", "--always", "--dirty"]).output();
    let text = git.ok().filter(|o| o.status.success()).map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
    text.unwrap_or_else(|| "unknown".into())
}

fn part(args: PartArgs) -> Result<(), BenchError> {
    if let Some(core) = args.core {
        os::pin(core).map_err(BenchError::io("affinity"))?;
    }
    let runtime = super::runtime().map_err(BenchError::io("tokio runtime"))?;
    let done = runtime.block_on(async {
        match args.role {
            Role::Vault => served::serve(&args.dir).await,
            Role::Echo => {
                let mut requests = part::requests();
                let ended = async { while requests.recv().await.is_some() {} };
                tokio::select! {
                    served = echo::serve(&args.dir, |at| part::say(&json!({ "port": at.port() }))) => served,
                    () = ended => Ok(()),
                }
            }
            Role::Sqlite => sqlite(&args.dir).await,
            Role::Restore => recover::serve(&args.dir).await,
            Role::Hashes => logins::hashes().await,
        }
    });
    if let Err(error) = &done {
        part::say(&json!({ "error": error.to_string() }));
    }
    done
}

async fn sqlite(dir: &Path) -> Result<(), BenchError> {
    let clock = SystemClock::new();
    let mut raw = raw::Raw::new(dir, &dir.join("vault/data/vault.db")).await?;
    part::say(&json!({}));
    let mut requests = part::requests();
    while let Some(request) = requests.recv().await {
        let answer = raw::answer(&mut raw, &request, &clock);
        part::say(&answer.unwrap_or_else(|error| json!({ "error": error.to_string() })));
    }
    Ok(())
}
