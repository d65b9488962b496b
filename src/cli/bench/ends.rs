//! The rows of what ends: one subject, many at once, a group, a bucket of values whose time is over; each with what
//! readers notice of it.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use super::error::BenchError;
use super::part::Part;
use super::report::Row;
use super::rows::{GET, HOT, Pairs, Run, at_random, key, progress, rate_of};
use super::stats::{Bound, Figure, percentile};
use super::wire::{Load, Wire, frame};
use crate::cli::people::person;
use crate::grpc::pb;

const ERASE: &str = "/pii.vault.v1.ErasureService/EraseSubject";
const ERASE_MANY: &str = "/pii.vault.v1.ErasureService/BatchEraseSubjects";
const PACED: &str = "p99 of 800 paced reads a second";
/// Subjects of a batch of erasures: the most that a call takes.
const ERASE_BATCH: u64 = 1_000;
/// Items of one subject in the bucket that ends.
const ITEMS_EACH: u64 = 100;

/// 800 reads a second, by callers who do not wait for each other.
fn paced(window: Duration) -> Load {
    Load { pace: Duration::from_millis(10), ..Load::new(GET, 8, window) }
}

fn erase_request(id: &str) -> pb::EraseSubjectRequest {
    pb::EraseSubjectRequest { key: Some(key(id)), wait_final: true, ..Default::default() }
}

fn milliseconds(micros: u32) -> f64 {
    f64::from(micros) / 1e3
}

/// Who reads meanwhile, and what.
pub(super) struct Readers {
    pub wire: Arc<Wire>,
    pub frames: Arc<Vec<Bytes>>,
}

/// What readers notice of something: windows at rest, at rest again, and beside it, by turns.
#[derive(Default)]
pub(super) struct Turns {
    pairs: Pairs,
    control: Pairs,
}

impl Turns {
    /// One round; each part the slow reads of its windows.
    pub fn add(&mut self, idle: Vec<f64>, again: Vec<f64>, busy: Vec<f64>) {
        let median = |windows: Vec<f64>| Figure::of(windows).map_or(f64::NAN, |f| f.median);
        let idle = median(idle);
        self.control.push((median(again), idle));
        self.pairs.push((median(busy), idle));
    }

    /// The row, at most twice as slow as at rest, and its control.
    pub fn rows(self, beside: &str) -> impl Iterator<Item = Row> {
        let row = |measure, pairs: &Pairs| Row::against(measure, "ms", "at rest", pairs);
        let slow = row(format!("{PACED}, beside {beside}"), &self.pairs).map(|row| row.bound(Bound::AtMost(2.0)));
        slow.into_iter().chain(row(format!("{PACED}, control of {beside}: at rest again"), &self.control))
    }
}

impl Run {
    /// The 99th percentile of paced reads, window after window, until `work` is done; at least one window.
    pub(super) async fn reads_during<T>(
        &self,
        readers: &Readers,
        work: impl Future<Output = Result<T, BenchError>>,
    ) -> Result<(T, Vec<f64>), BenchError> {
        let reads = paced(self.plan.window);
        let mut slow = Vec::new();
        tokio::pin!(work);
        let mut done = None;
        while done.is_none() || slow.is_empty() {
            let window = readers.wire.drive(&reads, at_random(readers.frames.clone()));
            tokio::pin!(window);
            let window = loop {
                tokio::select! {
                    window = &mut window => break window?,
                    ended = &mut work, if done.is_none() => done = Some(ended?),
                }
            };
            let mut latencies = window.latencies;
            slow.push(milliseconds(percentile(&mut latencies, 0.99)));
        }
        Ok((done.expect("the loop ends when it is there"), slow))
    }

    /// One window of them beside nothing.
    pub(super) async fn window_at_rest(&self, readers: &Readers) -> Result<Vec<f64>, BenchError> {
        Ok(self.reads_during(readers, std::future::ready(Ok(()))).await?.1)
    }

    /// The same for as long as a row takes.
    pub(super) async fn reads_at_rest(&self, readers: &Readers) -> Result<Vec<f64>, BenchError> {
        let time = self.plan.window * self.plan.windows as u32;
        let rest = async {
            tokio::time::sleep(time).await;
            Ok(())
        };
        Ok(self.reads_during(readers, rest).await?.1)
    }

    /// A row of the slow reads beside `what`; at most so many times as slow as at rest.
    pub(super) fn meanwhile(&mut self, what: &str, idle: &[f64], busy: Vec<f64>, most: f64) {
        let (Some(idle), Some(busy)) = (Figure::of(idle.iter().copied()), Figure::of(busy)) else { return };
        let ratio =
            Figure { median: busy.median / idle.median, low: busy.low / idle.median, high: busy.high / idle.median };
        let row = Row::plain(format!("{PACED}, {what}"), busy, "ms").bound(Bound::AtMost(most));
        self.rows.push(Row { floor: Some(("at rest", idle)), ratio: Some(ratio), ..row });
    }

    /// Erasures: alone, many at a time, and a tenth of all while others read.
    pub async fn erasures(&mut self, fdatasync_us: f64) -> Result<(), BenchError> {
        progress("EraseSubject");
        let mut target = self.vault(&self.vault_dir(), None).await?;
        let officer = self.wire(target.part.port()?, target.part.ready["officer"].as_str().unwrap_or_default()).await?;
        let alone = (self.plan.windows as u64 * 20).clamp(20, 1_000);
        let beside = (self.plan.subjects / 20).clamp(64, 20_000);
        let mass = (self.plan.subjects / 10).max(ERASE_BATCH.min(self.plan.subjects));
        let all = alone + beside + mass;
        let first = self.next.fetch_add(all, Ordering::Relaxed);
        target.part.ask(json!({ "do": "load", "from": first, "count": all })).await?;
        let erase = |from: u64| move |n: u64| frame(&erase_request(&person(from + n).id));
        let long = Duration::from_secs(600);

        let load = Load { calls: alone, ..Load::new(ERASE, 1, long) };
        let mut latencies = officer.drive(&load, erase(first)).await?.latencies;
        let share = |latencies: &mut Vec<u32>, share| milliseconds(percentile(latencies, share));
        let figure = Figure {
            median: share(&mut latencies, 0.99),
            low: share(&mut latencies, 0.5),
            high: share(&mut latencies, 1.0),
        };
        let most = 4.0 * fdatasync_us / 1e3 + 20.0;
        self.rows.push(
            Row::plain(format!("EraseSubject alone, p99 of {alone} [p50 .. slowest]"), figure, "ms")
                .bound(Bound::AtMost(most)),
        );
        let load = Load { calls: beside, ..Load::new(ERASE, 64, long) };
        let window = officer.drive(&load, erase(first + alone)).await?;
        self.rows.push(
            Row::plain("EraseSubject, 64 in flight", Figure::one(window.rate()), "erasures/s")
                .bound(Bound::AtLeast(1_000.0))
                .aim(Bound::AtLeast(2_000.0)),
        );

        let frames = self.get_frames(&target, HOT.min(self.ids.len() as u64));
        let readers = Readers { wire: target.wire.clone(), frames };
        let idle = self.reads_at_rest(&readers).await?;
        let again = self.reads_at_rest(&readers).await?;
        self.meanwhile("control: at rest too", &idle, again, 3.0);

        progress(&format!("erasing {mass} subjects in batches while others read"));
        let begin = first + alone + beside;
        let batches = mass.div_ceil(ERASE_BATCH);
        let next = move |n: u64| {
            let from = begin + n * ERASE_BATCH;
            let ids = (from..(from + ERASE_BATCH).min(begin + mass)).map(|n| key(&person(n).id));
            frame(&pb::BatchEraseSubjectsRequest { keys: ids.collect(), wait_final: true, ..Default::default() })
        };
        let load = Load { calls: batches, ..Load::new(ERASE_MANY, 2, long) };
        let (erased, busy) = self.reads_during(&readers, officer.drive(&load, next)).await?;
        self.mass(&format!("erasing {mass} subjects in batches of {ERASE_BATCH}"), mass, erased.seconds);
        self.meanwhile("beside those batches", &idle, busy, 3.0);

        progress(&format!("erasing a group of {mass} subjects while others read"));
        let first = self.next.fetch_add(mass, Ordering::Relaxed);
        target.part.ask(json!({ "do": "load", "from": first, "count": mass, "group": "doomed" })).await?;
        let work = target.part.ask(json!({ "do": "erase group", "group": "doomed" }));
        let (done, busy) = self.reads_during(&readers, work).await?;
        self.mass(&format!("EraseGroup of {mass} subjects"), mass, done["seconds"].as_f64().unwrap_or(f64::NAN));
        self.meanwhile("beside the group's erasure", &idle, busy, 3.0);
        target.part.end().await
    }

    fn mass(&mut self, what: &str, count: u64, seconds: f64) {
        self.rows.push(
            Row::plain(what, Figure::one(seconds), "s")
                .bound(Bound::AtMost(60.0 * count as f64 / 100_000.0))
                .aim(Bound::AtMost(30.0 * count as f64 / 100_000.0)),
        );
        self.rows.push(Row::plain("the same, rate", Figure::one(count as f64 / seconds), "erasures/s"));
    }

    /// One bucket whose time is over: how long until its values are shredded, and how fast their rows go.
    pub async fn expiry(&mut self) -> Result<(), BenchError> {
        let values = self.plan.subjects;
        progress(&format!("a bucket of {values} values"));
        let mut vault = Part::start("vault", &self.vault_dir(), None).await?;
        let each = ITEMS_EACH.min(values);
        let first = self.next.fetch_add(values.div_ceil(each), Ordering::Relaxed);
        let filled = vault.ask(json!({ "do": "fill", "from": first, "values": values, "each": each })).await?;
        let mut floor = Part::start("sqlite", &self.plan.dir, None).await?;
        let bytes = filled["bytes"].as_u64().unwrap_or(0);
        floor.ask(json!({ "do": "fill", "values": values, "each": each, "bytes": bytes })).await?;
        let shred = vault.ask(json!({ "do": "shred" })).await?;
        let seconds = shred["seconds"].as_f64().unwrap_or(f64::NAN);
        self.rows.push(
            Row::plain(format!("shredding one bucket of {values} values"), Figure::one(seconds), "s")
                .bound(Bound::AtMost(1.0)),
        );
        let raw = floor.ask(json!({ "do": "delete", "limit": 5_000 })).await?;
        let swept = vault.ask(json!({ "do": "sweep" })).await?;
        let row = Row::against("deleting its rows", "rows/s", "raw SQLite", &[(rate_of(&swept), rate_of(&raw))]);
        self.rows.extend(row.map(|row| row.bound(Bound::AtLeast(0.5))));
        floor.end().await?;
        vault.end().await
    }
}
