//! `audit forward`: hands the entries of the audit on to where others keep them, as JSON Lines, as syslog (RFC 5424) or to
//! OpenTelemetry (OTLP). It is a client like any other, so a slow or absent receiver never holds the vault up; a file remembers how far it came, so
//! nothing is left out after a pause of either side. What was handed on and not yet remembered comes again.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use futures_util::StreamExt as _;
use futures_util::stream::select_all;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tonic::Code;

use crate::cli::args;
use crate::cli::entries::EntryLines;
use crate::cli::error::CliError;
use crate::cli::otlp::Otlp;
use crate::cli::output::{Output, note};
use crate::cli::profile::write_private;
use crate::cli::session::Session;
use crate::cli::values::wire;
use crate::clock::{Clock, SystemClock};
use crate::grpc::pb;

/// Waits before it tries again: the first and the longest.
const WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Longest wait for the receiver to answer a connection, or to take what is sent.
const PATIENCE: Duration = Duration::from_secs(30);
/// The cursor is written at most so often while entries stream; what came since comes again after a crash.
const REMEMBER: Duration = Duration::from_millis(200);
/// Bytes of a line, about.
const LINE: usize = 400;
/// Facility 13 of RFC 5424: log audit.
const FACILITY: u8 = 13;

/// `audit forward`
#[derive(Debug, Args)]
pub struct Forward {
    /// File that remembers how far it came; made when it is not there, and then all that is kept is handed on
    #[arg(long, value_name = "FILE")]
    cursor: PathBuf,
    /// Where to: `-` (standard output), file:PATH (appended), syslog://HOST:PORT (RFC 5424 over TCP),
    /// otlp://HOST:PORT (OTLP/gRPC in clear), otlps://HOST:PORT (over TLS)
    #[arg(long, value_name = "WHERE", default_value = "-", value_parser = Place::parse)]
    to: Place,
    /// PEM of the authority of the certificate of otlps://
    #[arg(long, value_name = "FILE")]
    to_ca: Option<PathBuf>,
    /// Only this chain: changes, or reads [default: both]
    #[arg(long, value_parser = args::audit_chain)]
    chain: Option<i32>,
    /// End with what is there now
    #[arg(long)]
    once: bool,
}

/// Where entries go.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Output,
    File(PathBuf),
    Syslog(String),
    /// The address as a URL.
    Otlp(String),
}

impl Place {
    fn parse(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "-" => Ok(Place::Output),
            Some(("file", path)) if !path.is_empty() => Ok(Place::File(path.into())),
            Some(("syslog", rest)) if rest.strip_prefix("//").is_some_and(|at| at.contains(':')) => {
                Ok(Place::Syslog(rest[2..].to_owned()))
            }
            Some((scheme @ ("otlp" | "otlps"), rest)) if rest.strip_prefix("//").is_some_and(|at| at.contains(':')) => {
                Ok(Place::Otlp(format!("{}:{rest}", if scheme == "otlp" { "http" } else { "https" })))
            }
            _ => Err("must be -, file:PATH, syslog://HOST:PORT, otlp://HOST:PORT or otlps://HOST:PORT".into()),
        }
    }
}

/// The last positions that were handed on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cursor {
    /// Whose chains; empty: the key's own.
    tenant: String,
    changes: u64,
    reads: u64,
}

impl Cursor {
    fn read(path: &Path, tenant: String) -> Result<Self, CliError> {
        let what = || path.display().to_string();
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Cursor { tenant, ..Cursor::default() }),
            text => text.map_err(CliError::io(what()))?,
        };
        let cursor: Cursor = serde_json::from_str(&text)
            .map_err(|_| CliError::Usage(format!("{}: is not a file of `audit forward`", what())))?;
        match cursor.tenant == tenant {
            true => Ok(cursor),
            false => Err(CliError::Usage(format!("{}: is of another tenant", what()))),
        }
    }

    fn write(&self, path: &Path) -> Result<(), CliError> {
        write_private(path, format!("{}\n", json!(self)).as_bytes())
    }

    fn of(&mut self, chain: pb::AuditChain) -> &mut u64 {
        if chain == pb::AuditChain::Reads { &mut self.reads } else { &mut self.changes }
    }
}

/// An open place.
enum Sink {
    Output(Output, EntryLines),
    File(File, String, EntryLines),
    Syslog { to: TcpStream, host: String, tenant: String },
    Otlp(Box<Otlp>),
}

impl Sink {
    fn open(a: &Forward, out: Output, tenant: &str) -> Result<Self, CliError> {
        Ok(match &a.to {
            Place::Output => Sink::Output(out, EntryLines::default()),
            Place::File(path) => {
                let what = path.display().to_string();
                let file = File::options().create(true).append(true).open(path);
                Sink::File(file.map_err(CliError::io(what.clone()))?, what, EntryLines::default())
            }
            Place::Otlp(url) => Sink::Otlp(Box::new(Otlp::open(url, a.to_ca.as_deref(), tenant, PATIENCE)?)),
            Place::Syslog(at) => {
                let connect = || -> io::Result<TcpStream> {
                    let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                    let to = TcpStream::connect_timeout(&at.to_socket_addrs()?.next().ok_or_else(none)?, PATIENCE)?;
                    to.set_write_timeout(Some(PATIENCE))?;
                    Ok(to)
                };
                let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
                let host = if name.trim().is_empty() { "-".to_owned() } else { name.trim().to_owned() };
                Sink::Syslog { to: connect().map_err(CliError::io(at.clone()))?, host, tenant: tenant.to_owned() }
            }
        })
    }

    /// Puts on the disk what was written to a file.
    fn settle(&mut self) -> Result<(), CliError> {
        match self {
            Sink::File(file, what, _) => file.sync_data().map_err(CliError::io(what.clone())),
            Sink::Output(..) | Sink::Syslog { .. } | Sink::Otlp(_) => Ok(()),
        }
    }

    /// Hands entries on; when this returns they are with the receiver's machine, or written.
    async fn take(&mut self, entries: &[pb::AuditEntry]) -> Result<(), CliError> {
        match self {
            Sink::Output(out, form) => {
                let mut bytes = Vec::with_capacity(entries.len() * LINE);
                form.lines(entries, &mut bytes);
                out.raw(&bytes)
            }
            Sink::File(file, what, form) => {
                let mut bytes = Vec::with_capacity(entries.len() * LINE);
                form.lines(entries, &mut bytes);
                file.write_all(&bytes).map_err(CliError::io(what.clone()))
            }
            Sink::Otlp(otlp) => otlp.take(entries).await,
            Sink::Syslog { to, host, tenant } => {
                let mut frames = Vec::new();
                for entry in entries {
                    let message = syslog(entry, host, tenant);
                    // Octet counting: RFC 6587, section 3.4.1.
                    frames.extend_from_slice(format!("{} {message}", message.len()).as_bytes());
                }
                to.write_all(&frames).map_err(CliError::io("the receiver of syslog"))
            }
        }
    }
}

/// `<PRI>1 TIME HOST pii-vault - ACTION - JSON`: RFC 5424, section 6, without structured data. The severity is *informational*,
/// *warning* for what a rule refused, *error* for what failed, *critical* for stored data that does not open.
fn syslog(entry: &pb::AuditEntry, host: &str, tenant: &str) -> String {
    use pb::AuditOutcome as O;
    let severity = match entry.outcome() {
        O::DataLoss => 2,
        O::Failed => 3,
        O::Denied | O::Held | O::Invalid => 4,
        _ => 6,
    };
    let mut content = wire(entry);
    if !tenant.is_empty() {
        content["tenant"] = tenant.into();
    }
    let time = content["time"].as_str().unwrap_or("-");
    format!("<{}>1 {time} {host} pii-vault - {} - {content}", FACILITY * 8 + severity, entry.action)
}

/// Whether the same may go well later.
fn passes(error: &CliError) -> bool {
    match error {
        CliError::Io { .. } | CliError::Connect(_) => true,
        CliError::Status(status) => !matches!(
            status.code(),
            Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument | Code::Unimplemented
        ),
        _ => false,
    }
}

/// `audit forward`
pub async fn forward(s: &Session, a: Forward) -> Result<(), CliError> {
    let mut cursor = Cursor::read(&a.cursor, s.tenant())?;
    let mut wait = WAITS.0;
    loop {
        let (changes, reads) = (cursor.changes, cursor.reads);
        match hand_on(s, &a, &mut cursor).await {
            Ok(()) if a.once => return Ok(()),
            // The server closes.
            Ok(()) => {}
            Err(error) if a.once || !passes(&error) => return Err(error),
            Err(error) => note(&format!("{error}; trying again in {} s", wait.as_secs())),
        }
        let moved = (changes, reads) != (cursor.changes, cursor.reads);
        wait = if moved { WAITS.0 } else { (wait * 2).min(WAITS.1) };
        tokio::time::sleep(wait).await;
    }
}

/// How far entries were handed on, and how far the file has it.
struct Progress<'a> {
    cursor: &'a mut Cursor,
    kept: Cursor,
    path: &'a Path,
}

impl Progress<'_> {
    fn is_kept(&self) -> bool {
        self.kept == *self.cursor
    }

    /// Writes the cursor, once what it covers is on the disk.
    fn keep(&mut self, sink: &mut Sink) -> Result<(), CliError> {
        if !self.is_kept() {
            sink.settle()?;
            self.cursor.write(self.path)?;
            self.kept.clone_from(self.cursor);
        }
        Ok(())
    }
}

/// Hands on what comes, until the streams end or something fails.
async fn hand_on(s: &Session, a: &Forward, cursor: &mut Cursor) -> Result<(), CliError> {
    let mut sink = Sink::open(a, s.out, &cursor.tenant)?;
    let mut progress = Progress { kept: cursor.clone(), cursor, path: &a.cursor };
    let handed = follow(s, a, &mut sink, &mut progress).await;
    // After an error, too: what was taken need not come again.
    progress.keep(&mut sink)?;
    handed
}

async fn follow(s: &Session, a: &Forward, sink: &mut Sink, progress: &mut Progress<'_>) -> Result<(), CliError> {
    let mut streams = Vec::new();
    for chain in [pb::AuditChain::Changes, pb::AuditChain::Reads] {
        if a.chain.is_some_and(|only| only != chain as i32) {
            continue;
        }
        let request = pb::FollowEntriesRequest {
            chain: chain as i32,
            start_position: *progress.cursor.of(chain) + 1,
            tenant: s.tenant(),
            until_now: a.once,
        };
        let stream = s.patient().audit().follow_entries(request).await?.into_inner();
        streams.push(stream.map(move |message| (chain, message)));
    }
    let mut entries = select_all(streams);
    let clock = SystemClock::new();
    let mut due = clock.monotonic();
    loop {
        let next = match progress.is_kept() {
            true => entries.next().await,
            false => match tokio::time::timeout(REMEMBER, entries.next()).await {
                Ok(next) => next,
                Err(_) => {
                    progress.keep(sink)?;
                    continue;
                }
            },
        };
        let Some((chain, message)) = next else { return Ok(()) };
        let message = message?;
        sink.take(&message.entries).await?;
        if let Some(last) = message.entries.last() {
            *progress.cursor.of(chain) = last.position;
        }
        if clock.monotonic() >= due {
            progress.keep(sink)?;
            due = clock.monotonic() + REMEMBER;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_have_three_forms() {
        assert_eq!(Place::parse("-"), Ok(Place::Output));
        assert_eq!(Place::parse("file:/var/log/audit.jsonl"), Ok(Place::File("/var/log/audit.jsonl".into())));
        assert_eq!(Place::parse("syslog://siem.example:601"), Ok(Place::Syslog("siem.example:601".into())));
        assert_eq!(Place::parse("otlp://collector:4317"), Ok(Place::Otlp("http://collector:4317".into())));
        assert_eq!(Place::parse("otlps://collector:4317"), Ok(Place::Otlp("https://collector:4317".into())));
        for bad in
            ["", "x", "otlp://host", "otlp:host:1", "file:", "syslog://host", "syslog:host:1", "http://siem.example:80"]
        {
            assert!(Place::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_cursor_is_read_again_for_its_tenant_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cursor");
        let mut cursor = Cursor::read(&path, "jina".into()).unwrap();
        *cursor.of(pb::AuditChain::Reads) = 7;
        cursor.write(&path).unwrap();
        assert_eq!(Cursor::read(&path, "jina".into()).unwrap(), Cursor { tenant: "jina".into(), changes: 0, reads: 7 });
        assert!(Cursor::read(&path, "other".into()).is_err());
        fs::write(&path, "{\"tenant\":\"jina\"}").unwrap();
        assert!(Cursor::read(&path, "jina".into()).is_err(), "damaged");
    }

    #[test]
    fn an_entry_is_one_syslog_message() {
        let entry = pb::AuditEntry {
            position: 9,
            action: "fields.get".into(),
            time: Some(prost_types::Timestamp { seconds: 1_768_478_400, nanos: 0 }),
            outcome: pb::AuditOutcome::Denied as i32,
            ..Default::default()
        };
        let text = syslog(&entry, "vault1", "jina");
        let (head, content) = text.split_at(text.find('{').unwrap());
        // 13 x 8 + 4.
        assert_eq!(head, "<108>1 2026-01-15T12:00:00.000Z vault1 pii-vault - fields.get - ");
        let content: serde_json::Value = serde_json::from_str(content).unwrap();
        assert_eq!((&content["tenant"], &content["position"]), (&"jina".into(), &"9".into()));
    }
}
