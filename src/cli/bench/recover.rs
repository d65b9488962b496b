//! The rows of recovery: what the covering rule costs a put, a backup beside readers, the key archive, and a restore of
//! everyone into an empty place.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value as Json, json};

use super::ends::{Readers, Turns};
use super::error::BenchError;
use super::part::{Part, requests, say};
use super::report::Row;
use super::rows::{HOT, PUT, Run, Target, measured, progress, put_request, rate_of};
use super::served::{RECOVERY, WITHOUT_RECOVERY, config};
use super::stats::{Bound, Figure};
use super::wire::{Load, frame};
use crate::cli::error::CliError;
use crate::cli::people::person;
use crate::cli::restore::{public_keys, read_key_file};
use crate::clock::{Clock, SystemClock};
use crate::server::restore::{RestoreRequest, restore};

/// What is asked of so many subjects.
const MANY: f64 = 1e6;
/// Slots of a leaf.
const FAN_OUT: u64 = crate::crypto::keys::FAN_OUT as u64;

/// A bound for a million subjects, for these; syncs and starts take their time with the smallest.
pub(super) fn scaled(seconds: f64, subjects: u64) -> Bound {
    Bound::AtMost((seconds * subjects as f64 / MANY).max(0.5))
}

impl Run {
    /// Recovery: puts with and without the covering rule, backup, key archive, restore.
    pub async fn recovery(&mut self) -> Result<(), BenchError> {
        self.covering().await?;
        let mut target = self.vault(&self.vault_dir(), None).await?;
        self.key_archive(&mut target).await?;
        let first = target.part.ask(json!({ "do": "backup", "keep": true })).await?;
        self.copies(&mut target, &first).await?;
        self.beside_backups(&mut target).await?;
        let key = target.part.ready["public_key"].clone();
        target.part.end().await?;
        self.restored(&first, &key).await
    }

    /// Two vaults that begin empty, one with a recovery key and one without, by turns; the one without twice, so that what
    /// the machine itself does is seen.
    async fn covering(&mut self) -> Result<(), BenchError> {
        progress("PutFields with the covering rule and without");
        let (with, without) = (self.plan.dir.join("covered"), self.plan.dir.join("uncovered"));
        for dir in [&with, &without] {
            super::prepare_dir(dir, &self.plan.dir)?;
        }
        std::fs::write(without.join(WITHOUT_RECOVERY), "").map_err(BenchError::io("a vault's directory"))?;
        let (with, without) = (self.vault(&with, None).await?, self.vault(&without, None).await?);
        let (mut pairs, mut control) = (Vec::new(), Vec::new());
        for i in 0..self.plan.windows {
            // The first and the last of three windows are the same vault: a drift of the machine falls out of the pair.
            let first = self.puts(&without).await?;
            let ours = self.puts(&with).await?;
            let last = self.puts(&without).await?;
            pairs.push((ours, (first + last) / 2.0));
            control.push(if i % 2 == 0 { (first, last) } else { (last, first) });
        }
        let what = "covering rule: durable PutFields, 256 in flight";
        let row = Row::against(what, "subjects/s", "without", &pairs);
        self.rows.extend(row.map(|row| row.bound(Bound::AtLeast(0.95))));
        self.rows.extend(Row::against(
            "covering rule: control, without against without",
            "subjects/s",
            "without",
            &control,
        ));
        with.part.end().await?;
        without.part.end().await
    }

    /// Rate of durable puts of new people.
    pub(super) async fn puts(&self, target: &Target) -> Result<f64, BenchError> {
        let load = Load::new(PUT, 256, self.plan.window);
        let (next, fields, purpose) = (self.next.clone(), target.fields.clone(), target.purpose);
        let next = move |_| frame(&put_request(&person(next.fetch_add(1, Ordering::Relaxed)), &fields, purpose));
        Ok(measured(&target.part, &target.wire, &load, next).await?.0.rate())
    }

    /// `backup keys`: every leaf opened, sealed to the recovery key, synced.
    async fn key_archive(&mut self, target: &mut Target) -> Result<(), BenchError> {
        progress("key archive");
        let (mut times, mut sizes) = (Vec::new(), Vec::new());
        for _ in 0..self.plan.windows.min(5) {
            let done = target.part.ask(json!({ "do": "key archive" })).await?;
            times.push(done["seconds"].as_f64().unwrap_or(f64::NAN));
            let slots = done["leaves"].as_u64().unwrap_or(0) * FAN_OUT;
            sizes.push(done["bytes"].as_f64().unwrap_or(f64::NAN) / slots.max(1) as f64);
        }
        let subjects = self.plan.subjects;
        let written = Figure::of(times).map(|f| Row::plain(format!("key archive of {subjects} subjects"), f, "s"));
        self.rows.extend(written.map(|row| row.bound(scaled(10.0, subjects))));
        let size = Figure::of(sizes).map(|f| Row::plain("the same, size of a slot", f, "B"));
        self.rows.extend(size.map(|row| row.bound(Bound::AtMost(50.0))));
        Ok(())
    }

    /// `backup data` against a plain copy of the same files, both synced.
    async fn copies(&mut self, target: &mut Target, first: &Json) -> Result<(), BenchError> {
        progress("backup data against a plain copy");
        let mut pairs = Vec::new();
        for i in 0..self.plan.windows {
            let plain = json!({ "do": "copy", "from": first["path"] });
            let mut under = 0.0;
            if i % 2 == 0 {
                under = rate_of(&target.part.ask(plain.clone()).await?);
            }
            let ours = rate_of(&target.part.ask(json!({ "do": "backup" })).await?);
            if i % 2 == 1 {
                under = rate_of(&target.part.ask(plain).await?);
            }
            pairs.push((ours / 1e6, under / 1e6));
        }
        let what = format!("backup data of {} subjects", self.plan.subjects);
        let row = Row::against(what, "MB/s", "plain copy", &pairs);
        self.rows.extend(row.map(|row| row.bound(Bound::AtLeast(0.7))));
        Ok(())
    }

    /// What paced readers notice of a backup: rest, rest again, and backups for as long, by turns.
    async fn beside_backups(&mut self, target: &mut Target) -> Result<(), BenchError> {
        progress("reads beside backups");
        let frames = self.get_frames(target, HOT.min(self.plan.subjects));
        let readers = Readers { wire: target.wire.clone(), frames };
        let mut turns = Turns::default();
        self.window_at_rest(&readers).await?;
        for _ in 0..self.plan.windows {
            let idle = self.window_at_rest(&readers).await?;
            let again = self.window_at_rest(&readers).await?;
            let work = target.part.ask(json!({ "do": "backup", "seconds": self.plan.window.as_secs_f64() }));
            turns.add(idle, again, self.reads_during(&readers, work).await?.1);
        }
        self.rows.extend(turns.rows("backup data"));
        Ok(())
    }

    /// A restore with the recovery key where nothing else is left: in a process of its own, whose memory is looked at.
    async fn restored(&mut self, archive: &Json, public_key: &Json) -> Result<(), BenchError> {
        let subjects = self.plan.subjects;
        progress(&format!("restoring {subjects} subjects"));
        let mut part = Part::start("restore", &self.plan.dir.join("restored"), None).await?;
        let recovery = self.vault_dir().join(RECOVERY).display().to_string();
        let request =
            json!({ "do": "restore", "from": archive["path"], "recovery": recovery, "public_key": public_key });
        let done = part.ask(request).await?;
        if [&done["rows"], &done["retagged"]].iter().any(|count| count.as_u64() != Some(subjects)) {
            return Err(BenchError::Other { what: "restore", why: format!("not everyone came back: {done}") });
        }
        let peak = part.peak()? as f64 / 1e6;
        part.end().await?;
        let seconds = done["seconds"].as_f64().unwrap_or(f64::NAN);
        let what = format!("restore of {subjects} subjects with re-key and tags");
        self.rows.push(Row::plain(what, Figure::one(seconds), "s").bound(scaled(300.0, subjects)));
        let memory = Row::plain("the same, most memory", Figure::one(peak), "MB");
        self.rows.push(memory.bound(Bound::AtMost(400.0)));
        Ok(())
    }
}

/// The process that restores into `dir`.
pub async fn serve(dir: &Path) -> Result<(), BenchError> {
    let config = config(dir);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    say(&json!({}));
    let mut requests = requests();
    while let Some(asked) = requests.recv().await {
        let path = |name: &str| PathBuf::from(asked[name].as_str().unwrap_or_default());
        let failed = |error: CliError| BenchError::Other { what: "restore", why: error.to_string() };
        let (identities, mut public) = read_key_file(&path("recovery")).map_err(failed)?;
        let key = asked["public_key"].as_str().unwrap_or_default();
        public.extend(public_keys(&[key.to_owned()]).map_err(failed)?);
        let request =
            RestoreRequest { from: path("from"), identities, public_keys: public, ..RestoreRequest::default() };
        let began = clock.monotonic();
        let report = restore(&config, request, clock.clone(), Box::new(|_| true)).await;
        let seconds = (clock.monotonic() - began).as_secs_f64();
        say(&match report {
            Ok(report) => json!({
                "rows": report.tenants.iter().map(|t| t.subjects).sum::<u64>(),
                "lost": report.tenants.iter().map(|t| t.lost).sum::<u64>(),
                "retagged": report.decided_again.retagged,
                "seconds": seconds,
            }),
            Err(error) => json!({ "error": crate::causes::causes(&error) }),
        });
    }
    Ok(())
}

/// Copies the files of a folder and of those in it, synced; answers the bytes.
pub fn plain_copy(from: &Path, to: &Path) -> std::io::Result<u64> {
    std::fs::create_dir_all(to)?;
    let mut bytes = 0;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let path = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            bytes += plain_copy(&entry.path(), &path)?;
        } else {
            bytes += std::fs::copy(entry.path(), &path)?;
            std::fs::File::open(&path)?.sync_all()?;
        }
    }
    std::fs::File::open(to)?.sync_all()?;
    Ok(bytes)
}

/// How long backups are repeated that are asked for so many seconds.
pub fn time(asked: &Json) -> Duration {
    Duration::from_secs_f64(asked["seconds"].as_f64().unwrap_or(0.0))
}
