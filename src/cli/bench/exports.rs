//! The row of the audit's export: `audit forward` into a file, the program as it is, beside the engine that only decodes the
//! same entries.

use std::process::{Command, Stdio};

use serde_json::{Value as Json, json};

use super::error::BenchError;
use super::os;
use super::report::Row;
use super::rows::{Run, progress};
use super::served::{Served, failed};
use super::stats::{Bound, Figure};
use crate::audit::{Action, AuditRecord, Chain, Fields, Outcome};
use crate::ids::*;

/// Entries for each person of the run; a million at least where the run is not a small one.
const EACH: u64 = 2;
const MOST: u64 = 2_000_000;
/// Entries that one call leaves, as a batch of reads does.
const BATCH: u64 = 1_000;
/// Lengths of an export that are measured: each begins a program.
const TIMES: usize = 5;

impl Run {
    /// Exports the whole audit of reads, again and again; and has the engine decode it.
    pub async fn exports(&mut self) -> Result<(), BenchError> {
        progress("audit forward");
        // In a vault of its own: its audit is as long as this says.
        let dir = self.plan.dir.join("exports");
        super::prepare_dir(&dir, &self.plan.dir)?;
        let mut target = self.vault(&dir, None).await?;
        let ca = dir.join("ca.pem");
        std::fs::write(&ca, &self.authority).map_err(BenchError::io("certificates"))?;
        let entries = (self.plan.subjects * EACH).clamp(2 * BATCH, MOST);
        target.part.ask(json!({ "do": "entries", "count": entries })).await?;
        let mut pairs = Vec::new();
        for n in 0..self.plan.windows.min(TIMES) {
            let decoded = target.part.ask(json!({ "do": "decode" })).await?;
            let under = rate(&decoded)?;
            let (cursor, file) = (dir.join(format!("cursor-{n}")), dir.join("export.jsonl"));
            let program = std::env::current_exe().map_err(BenchError::io("this program"))?;
            let mut command = Command::new(program);
            command.args(["audit", "forward", "--once", "--chain", "reads", "--cursor"]).arg(&cursor);
            command.arg("--to").arg(format!("file:{}", file.display()));
            command.env("PII_VAULT_SERVER", format!("https://localhost:{}", target.part.port()?));
            command.env("PII_VAULT_CA", &ca).env("PII_VAULT_ACCESS_KEY_FILE", dir.join("officer.key"));
            command.stdin(Stdio::null()).stdout(Stdio::null());
            let began = self.clock.monotonic();
            let ended = os::unpinned(|| command.status()).map_err(BenchError::io("audit forward"))?;
            let seconds = (self.clock.monotonic() - began).as_secs_f64();
            let written = std::fs::read(&file).map_err(BenchError::io("the export"))?;
            let lines = written.iter().filter(|byte| **byte == b'\n').count() as u64;
            if !ended.success() || lines < entries {
                return Err(failed(format!("audit forward ended with {ended} after {lines} of {entries} entries")));
            }
            std::fs::remove_file(&file).map_err(BenchError::io("the export"))?;
            pairs.push((lines as f64 / seconds, under));
        }
        let rates = Figure::of(pairs.iter().map(|pair| pair.0)).ok_or_else(|| failed("no window"))?;
        let what = "audit export to a synced file";
        let row = Row::plain(format!("{what}, {entries} entries"), rates, "entries/s");
        self.rows.push(row.bound(Bound::AtLeast(200_000.0)));
        self.rows.extend(Row::against(format!("{what}, beside the engine"), "entries/s", "decoding alone", &pairs));
        target.part.end().await
    }
}

fn rate(answer: &Json) -> Result<f64, BenchError> {
    match (answer["rows"].as_f64(), answer["seconds"].as_f64()) {
        (Some(rows), Some(seconds)) if seconds > 0.0 => Ok(rows / seconds),
        _ => Err(failed("the engine decoded nothing")),
    }
}

impl Served {
    /// Entries of reads, as so many reads of five fields leave them.
    pub(super) async fn entries(&self, count: u64) -> Result<u64, BenchError> {
        let call = self.call()?;
        for batch in 0..count.div_ceil(BATCH) {
            let records: Vec<AuditRecord> = (0..BATCH)
                .map(|n| {
                    let mut record = call.record(Action::GetFields, Outcome::Ok);
                    record.subject = Some(SubjectUid((batch * BATCH + n) as i64 + 1));
                    record.fields = Fields::new((1..=5).map(FieldNo));
                    record.purpose = PurposeNo(1);
                    record
                })
                .collect();
            self.node.read_log.append_all(call.tenant.no, &records).await.map_err(failed)?;
        }
        Ok(count)
    }

    /// Reads the whole chain of reads without the network; answers how many entries.
    pub(super) async fn decode(&self) -> Result<u64, BenchError> {
        let call = self.call()?;
        let mut follower = self.node.vault.follow_entries(&call, Chain::Read, 1).await.map_err(failed)?;
        let mut count = 0;
        loop {
            let entries = self.node.vault.entries_since(&call, &mut follower, 2_000).await.map_err(failed)?;
            if entries.is_empty() {
                return Ok(count);
            }
            count += entries.len() as u64;
        }
    }
}
