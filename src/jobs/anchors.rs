//! External anchors: each signed checkpoint goes to another party, in a file or to an HTTP endpoint, so that nobody can
//! replace the audit and its checkpoints together unseen. A place that is away is tried again and gets what it missed; the
//! vault never waits for one, and one place never waits for another.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Method;

use crate::audit::Checkpoint;
use crate::clock::Timestamp;
use crate::outbound::{Failed, Outbound};
use crate::telemetry::AUDIT_ANCHOR_AGE;
use crate::vault::publish::Taken;
use crate::vault::{Vault, VaultError};

/// Longest wait for one checkpoint to be taken.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where checkpoints go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Appended, a line each, synced.
    File(PathBuf),
    /// POSTed, one request each; any 2xx is a success.
    Http(Outbound),
}

impl Place {
    /// `file:/PATH`, `https://HOST[:PORT][/PATH]`, or `http://` on loopback.
    pub fn parse(text: &str, ca: Option<PathBuf>) -> Result<Self, &'static str> {
        if let Some(path) = text.strip_prefix("file:") {
            let path = PathBuf::from(path);
            return if path.is_absolute() {
                Ok(Place::File(path))
            } else {
                Err("must be an absolute path after file:")
            };
        }
        let uri: http::Uri = text.parse().map_err(|_| "must be file:/PATH or a URL")?;
        match uri.scheme_str() {
            Some("https") if ca.is_none() => Err("needs audit.anchor_ca: who signs the certificate of https"),
            Some("https" | "http") if uri.host().is_some() => {
                Ok(Place::Http(Outbound { address: text.to_owned(), ca }))
            }
            _ => Err("must be file:/PATH, https://HOST/PATH, or http:// on loopback"),
        }
    }
}

/// One place, and what the last try said.
#[derive(Debug)]
struct Anchor {
    place: Place,
    /// Names its cursor.
    name: String,
    failing: AtomicBool,
    /// A write of a file that hangs, as on a dead mount: no second one is begun.
    writing: Arc<AtomicBool>,
}

/// All places of the configuration.
#[derive(Debug, Default)]
pub struct Anchors {
    anchors: Vec<Anchor>,
    token_file: Option<PathBuf>,
}

impl Anchors {
    /// `places` as the configuration names them, with what each is.
    pub fn new(places: Vec<(String, Place)>, token_file: Option<PathBuf>) -> Self {
        let anchor = |(name, place)| Anchor { place, name, failing: AtomicBool::new(false), writing: Arc::default() };
        Anchors { anchors: places.into_iter().map(anchor).collect(), token_file }
    }

    /// Hands on what each place lacks; answers how many checkpoints were taken. A place that does not take them is said in
    /// the log, once, and in the metric.
    ///
    /// # Errors
    /// The vault's own store failed.
    pub async fn run_once(&self, vault: &Vault) -> Result<u64, VaultError> {
        let rounds = self.anchors.iter().enumerate().map(|(i, anchor)| self.serve(vault, i, anchor));
        let mut taken = 0;
        for round in futures_util::future::join_all(rounds).await {
            taken += round?;
        }
        Ok(taken)
    }

    async fn serve(&self, vault: &Vault, i: usize, anchor: &Anchor) -> Result<u64, VaultError> {
        let mut cursor = vault.published(&anchor.name).await?;
        let waiting = vault.unpublished(cursor.as_ref()).await?;
        let first = waiting.first().map(Checkpoint::at);
        let mut taken = 0;
        let mut why = None;
        for checkpoint in &waiting {
            let tried = tokio::time::timeout(PATIENCE, self.hand_on(anchor, checkpoint)).await;
            match tried.unwrap_or_else(|_| Err(Failed::Again("is too slow".into()))) {
                Ok(()) => {
                    let now = Taken::of(checkpoint);
                    vault.note_published(&anchor.name, &now).await?;
                    cursor = Some(now);
                    taken += 1;
                }
                Err(Failed::Again(what) | Failed::Refused(what)) => {
                    why = Some(what);
                    break;
                }
            }
        }
        match (&why, anchor.failing.swap(why.is_some(), Ordering::Relaxed)) {
            (Some(why), false) => {
                tracing::warn!(place = i, why, "an external anchor takes no checkpoint; trying again")
            }
            (None, true) => tracing::info!(place = i, "an external anchor takes checkpoints again"),
            _ => {}
        }
        let since: Option<Timestamp> = cursor.map(|one| one.at()).or(first).filter(|_| why.is_some());
        let age = since.map_or(0, |since| (vault.now().0 - since.0).max(0));
        metrics::gauge!(AUDIT_ANCHOR_AGE, "place" => i.to_string()).set(age as f64 / 1_000.0);
        Ok(taken)
    }

    async fn hand_on(&self, anchor: &Anchor, checkpoint: &Checkpoint) -> Result<(), Failed> {
        let mut line = checkpoint.to_json();
        match &anchor.place {
            Place::File(path) => {
                if anchor.writing.swap(true, Ordering::AcqRel) {
                    return Err(Failed::Again("still writes the one before".into()));
                }
                line.push(b'\n');
                let (path, writing) = (path.clone(), anchor.writing.clone());
                let written = tokio::task::spawn_blocking(move || {
                    let done = append(&path, &line);
                    writing.store(false, Ordering::Release);
                    done
                });
                let written = written.await.map_err(|_| Failed::Again("was not written".into()))?;
                written.map_err(|error| Failed::Again(format!("cannot be written ({})", error.kind())))
            }
            Place::Http(server) => {
                let token = match self.token_file.clone() {
                    Some(path) => Some(read_token(path).await?),
                    None => None,
                };
                let mut headers = vec![("content-type", "application/json")];
                headers.extend(token.as_ref().map(|token| ("authorization", token.as_str())));
                let (status, _) = server.send(Method::POST, "", &headers, Bytes::from(line)).await?;
                if status.is_success() { Ok(()) } else { Err(Failed::Again(format!("answers {status}"))) }
            }
        }
    }
}

/// Appends a line and syncs. A line that an earlier try left unfinished is ended first, so that it spoils no other.
fn append(path: &Path, line: &[u8]) -> std::io::Result<()> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let mut file = std::fs::File::options().create(true).append(true).read(true).open(path)?;
    let mut last = [b'\n'];
    if file.seek(SeekFrom::End(0))? > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    if last != [b'\n'] {
        file.write_all(b"\n")?;
    }
    file.write_all(line)?;
    file.sync_data()
}

/// `Bearer TOKEN`, read each time so that it may be replaced.
async fn read_token(path: PathBuf) -> Result<zeroize::Zeroizing<String>, Failed> {
    let text = tokio::task::spawn_blocking(move || std::fs::read_to_string(path)).await;
    match text {
        Ok(Ok(text)) => {
            let text = zeroize::Zeroizing::new(text);
            Ok(zeroize::Zeroizing::new(format!("Bearer {}", text.trim())))
        }
        _ => Err(Failed::Refused("has a token file that cannot be read".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_files_and_urls() {
        let ca = || Some(PathBuf::from("/ca.pem"));
        assert_eq!(Place::parse("file:/mnt/a.jsonl", None), Ok(Place::File("/mnt/a.jsonl".into())));
        assert!(Place::parse("https://notary.example/pii", ca()).is_ok());
        assert!(Place::parse("http://127.0.0.1:9/x", None).is_ok());
        for bad in ["", "file:relative", "https://notary.example/x", "ftp://x/y", "/just/a/path", "http://"] {
            assert!(Place::parse(bad, None).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_torn_line_spoils_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("anchor");
        append(&path, b"one\n").unwrap();
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"tor").unwrap();
        append(&path, b"two\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntor\ntwo\n");
    }
}
