//! `password`: passwords of the tenant's own users. They come from standard input or the terminal, never from arguments.

use crate::cli::args::{ContextArgs, KeyArgs, WriteArgs};
use crate::cli::error::{CliError, code_name, right};
use crate::cli::input;
use crate::cli::names::Names;
use crate::cli::output::{Col, Output, note};
use crate::cli::session::Session;
use crate::cli::values::wire;
use crate::clock::{Clock, SystemClock};
use crate::crypto::password::{Argon2Cost, Argon2Memory};
use crate::grpc::pb;
use clap::{Args, Subcommand, ValueEnum};
use futures_util::StreamExt as _;
use serde::Deserialize;
use serde_json::json;
use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal as _, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::Code;
use tonic_types::StatusExt as _;

/// Rows of one call.
const ROWS: usize = 1_000;
/// How often a call that was turned away for now is repeated.
const RETRIES: usize = 60;

const VERDICT: &[Col] =
    &[Col("VERDICT", "verdict"), Col("WHY", "detail"), Col("MUST CHANGE", "must_change"), Col("WAIT", "retry_after_s")];

/// `password`
#[derive(Debug, Subcommand)]
pub enum Password {
    /// Set a password without the old one; it is the first line of standard input
    #[command(after_help = "Example:
  pii-vault password set u-17 < password.txt")]
    Set {
        #[command(flatten)]
        key: KeyArgs,
        /// The next good check says that it must be changed
        #[arg(long)]
        must_change: bool,
        #[command(flatten)]
        context: ContextArgs,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// Check a password, the first line of standard input
    #[command(after_help = "Exit code 0 when it is right, 4 when it is not.

Example:
  pii-vault password verify u-17 --source 192.0.2.7 < password.txt")]
    Verify {
        #[command(flatten)]
        key: KeyArgs,
        /// Where the user is; tries are counted by it
        #[arg(long, default_value = "")]
        source: String,
        #[command(flatten)]
        context: ContextArgs,
    },
    /// Change a password: the old one is the first line of standard input, the new one the second
    #[command(after_help = "Exit code 0 when it was changed, 4 when the old one is not right.

Example:
  pii-vault password change u-17 < both.txt")]
    Change {
        #[command(flatten)]
        key: KeyArgs,
        /// Where the user is; tries are counted by it
        #[arg(long, default_value = "")]
        source: String,
        #[command(flatten)]
        context: ContextArgs,
    },
    /// Remove a password; there is none then
    #[command(after_help = "Example:
  pii-vault password remove u-17 --yes")]
    Remove {
        #[command(flatten)]
        key: KeyArgs,
        #[command(flatten)]
        context: ContextArgs,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// Forget the wrong tries of a subject
    #[command(after_help = "Example:
  pii-vault password unlock u-17")]
    Unlock {
        #[command(flatten)]
        key: KeyArgs,
        #[command(flatten)]
        context: ContextArgs,
    },
    /// Take over the password hashes of another system
    #[command(after_help = "CSV with a heading line `subject,hash` and perhaps `must_change`, or JSON Lines
{\"subject\": \"u-17\", \"hash\": \"$2b$12$...\", \"must_change\": false}. docs/CREDENTIALS.md lists the hashes.
A row whose subject has a password already is kept, so an import that was stopped is just started again;
--skip saves sending what is done. Exit code 8 when rows were refused; each is told with its number, and the
others go in.

Examples:
  pii-vault password import --file users.csv --create-subjects
  mysql -e 'select ...' | pii-vault password import --format csv")]
    Import(Import),
    /// Take over one hash of another system; it is the first line of standard input
    #[command(after_help = "Example:
  pii-vault password import-one u-17 < hash.txt")]
    ImportOne {
        #[command(flatten)]
        key: KeyArgs,
        /// The next good check says that it must be changed
        #[arg(long)]
        must_change: bool,
        /// Put it in the place of a password that is there
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        context: ContextArgs,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// How many credentials are kept in which way, counted now
    #[command(after_help = "Example:
  pii-vault password report --json")]
    Report,
    /// Propose parameters of Argon2id for this machine and a time
    #[command(after_help = "Needs no server: run it where the server runs, while nothing else does.

Example:
  pii-vault password calibrate --target 250ms")]
    Calibrate(Calibrate),
}

/// `password import`
#[derive(Debug, Args)]
pub struct Import {
    /// File to read [default: standard input]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Form of the input [default: by the file's name, else JSON Lines]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Rows to pass over: what an import that was stopped said
    #[arg(long, value_name = "N", default_value_t = 0)]
    skip: usize,
    /// Put the hashes in the place of passwords that are there
    #[arg(long)]
    replace: bool,
    /// Make subjects that are not there
    #[arg(long)]
    create_subjects: bool,
    /// Check everything, change nothing
    #[arg(long, visible_alias = "dry-run")]
    validate_only: bool,
}

/// Form of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Csv,
    Jsonl,
}

/// `password calibrate`
#[derive(Debug, Args)]
pub struct Calibrate {
    /// Time that one hash shall take, such as 250ms
    #[arg(long, value_name = "TIME", default_value = "250ms", value_parser = milliseconds)]
    target: Duration,
    /// Most memory of one hash, MiB; times the threads it is held all the time
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(19..=4_096))]
    max_memory: u32,
}

fn milliseconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix("ms").unwrap_or(text);
    match number.parse::<u64>() {
        Ok(n @ 10..=10_000) => Ok(Duration::from_millis(n)),
        _ => Err("from 10ms to 10000ms".into()),
    }
}

/// `password`
pub async fn password(s: &Session, yes: bool, command: Password) -> Result<(), CliError> {
    match command {
        Password::Set { key, must_change, context, write } => {
            let (key, context) = (key.key(s).await?, context.context(s).await?);
            let password = input::line("password")?.as_bytes().to_vec().into();
            let request = pb::SetPasswordRequest {
                key: Some(key),
                password,
                context,
                must_change,
                request_id: write.id(s),
                validate_only: write.validate_only,
            };
            let answer = s.credentials().set_password(request).await?.into_inner();
            s.out.record(&answer, &[Col("SET", "commit_time")], &Names::default())
        }
        Password::Verify { key, source, context } => {
            let (key, context) = (key.key(s).await?, context.context(s).await?);
            let password = input::line("password")?.as_bytes().to_vec().into();
            let source = source.into_bytes().into();
            let request = pb::VerifyPasswordRequest { key: Some(key), password, source, context };
            let answer = s.credentials().verify_password(request).await?.into_inner();
            s.out.record(&answer, VERDICT, &Names::default())?;
            right(answer.verdict)
        }
        Password::Change { key, source, context } => {
            let (key, context) = (key.key(s).await?, context.context(s).await?);
            let password = input::line("old password")?.as_bytes().to_vec().into();
            let new_password = input::line("new password")?.as_bytes().to_vec().into();
            let source = source.into_bytes().into();
            let request = pb::ChangePasswordRequest { key: Some(key), password, new_password, source, context };
            let answer = s.credentials().change_password(request).await?.into_inner();
            let cols = [VERDICT[0], VERDICT[1], VERDICT[3], Col("SET", "commit_time")];
            s.out.record(&answer, &cols, &Names::default())?;
            right(answer.verdict)
        }
        Password::Remove { key, context, write } => {
            input::confirm(yes || write.validate_only, "This removes a password; it can only be set anew")?;
            let (key, context) = (Some(key.key(s).await?), context.context(s).await?);
            let request = pb::RemovePasswordRequest { key, context, request_id: write.id(s) };
            let answer = s.credentials().remove_password(request).await?.into_inner();
            s.out.record(&answer, &[Col("REMOVED", "removed")], &Names::default())
        }
        Password::Unlock { key, context } => {
            let (key, context) = (Some(key.key(s).await?), context.context(s).await?);
            let answer =
                s.credentials().unlock_password(pb::UnlockPasswordRequest { key, context }).await?.into_inner();
            s.out.record(&answer, &[Col("WAS LOCKED", "unlocked")], &Names::default())
        }
        Password::Import(a) => import(s, a).await,
        Password::ImportOne { key, must_change, replace, context, write } => {
            let (key, context) = (Some(key.key(s).await?), context.context(s).await?);
            let request = pb::ImportPasswordRequest {
                key,
                hash: input::line("hash")?.to_string(),
                context,
                must_change,
                replace,
                request_id: write.id(s),
                validate_only: write.validate_only,
            };
            let answer = s.credentials().import_password(request).await?.into_inner();
            let cols = [Col("IMPORTED", "imported"), Col("ALGORITHM", "algorithm")];
            s.out.record(&answer, &cols, &Names::default())
        }
        Password::Report => {
            let answer =
                s.patient().credentials().report_credentials(pb::ReportCredentialsRequest {}).await?.into_inner();
            if s.out.json {
                return s.out.document(&wire(&answer));
            }
            let row = |count: &pb::CredentialCount| {
                let count = count.clone();
                vec![count.kind, count.algorithm, count.parameters, count.count.to_string()]
            };
            s.out.rows(&["KIND", "ALGORITHM", "PARAMETERS", "COUNT"], answer.counts.iter().map(row).collect())?;
            let (all, old, reset) = (answer.password_count, answer.outdated_count, answer.must_reset_count);
            s.out.line(&format!("{all} passwords; {old} are hashed anew at their next login, {reset} must be set anew"))
        }
        // Needs no server and was done before.
        Password::Calibrate(_) => Ok(()),
    }
}

/// A row of an import; `must_change` may be left out.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    subject: String,
    hash: String,
    #[serde(default)]
    must_change: Option<bool>,
}

/// What a row that cannot be sent lacks; its content is not shown.
const FORM: &str = "needs subject, hash and perhaps must_change";

/// A row by its number, from 1; `None`: it has not the form of one.
type Numbered = (usize, Option<Row>);

/// Rows of the input with their numbers.
///
/// # Errors
/// A CSV file whose heading is not that of such rows.
fn rows(
    input: impl Read + 'static,
    format: Format,
) -> Result<Box<dyn Iterator<Item = Result<Numbered, CliError>>>, CliError> {
    match format {
        Format::Csv => {
            let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::Headers).from_reader(input);
            let heading = reader.headers().map_err(|_| CliError::Usage("the CSV cannot be read".into()))?;
            let known = |name: &str| ["subject", "hash", "must_change"].contains(&name);
            if !heading.iter().all(known) || !["subject", "hash"].iter().all(|name| heading.iter().any(|h| h == *name))
            {
                return Err(CliError::Usage(
                    "the first line of the CSV must be `subject,hash` or `subject,hash,must_change`".into(),
                ));
            }
            let rows = reader.into_deserialize::<Row>().enumerate();
            Ok(Box::new(rows.map(move |(i, row)| match row {
                Ok(row) => Ok((i + 1, Some(row))),
                Err(error) if error.is_io_error() => Err(CliError::Usage(format!("row {}: cannot be read", i + 1))),
                Err(_) => Ok((i + 1, None)),
            })))
        }
        Format::Jsonl => {
            let lines = BufReader::new(input).lines().filter(|l| !l.as_ref().is_ok_and(|l| l.trim().is_empty()));
            Ok(Box::new(lines.enumerate().map(move |(i, line)| {
                let line = zeroize::Zeroizing::new(line.map_err(CliError::io("the rows"))?);
                Ok((i + 1, serde_json::from_str(&line).ok()))
            })))
        }
    }
}

/// What an import did so far.
#[derive(Default)]
struct Count {
    /// All rows up to this number are dealt with.
    upto: usize,
    imported: u64,
    kept: u64,
    failed: usize,
}

/// Rows with their numbers.
type Rows = Vec<(usize, pb::PasswordImport)>;

/// The subject of a row that the server refused, and why.
type Refused = (String, pb::ItemError);

/// What became of some rows.
struct Sent {
    /// Number of the last row that was dealt with; 0: none was.
    upto: usize,
    imported: u64,
    kept: u64,
    refused: Vec<(usize, Refused)>,
    /// Why the rest was not dealt with.
    error: Option<CliError>,
}

async fn import(s: &Session, a: Import) -> Result<(), CliError> {
    let by_name = |path: &Path| match path.extension().and_then(|e| e.to_str()) {
        Some("csv") => Format::Csv,
        _ => Format::Jsonl,
    };
    let format = a.format.or_else(|| a.file.as_deref().map(by_name)).unwrap_or(Format::Jsonl);
    let (input, total): (Box<dyn Read>, u64) = match &a.file {
        Some(path) => {
            let open = || File::open(path).map_err(CliError::io(path.display().to_string()));
            (Box::new(open()?), if io::stderr().is_terminal() { count_rows(open()?, format) } else { 0 })
        }
        None => (Box::new(io::stdin()), 0),
    };
    let bar = s.out.progress(total, "imported");
    bar.set_position(a.skip as u64);
    let mut count = Count { upto: a.skip, ..Count::default() };
    let mut rows = rows(input, format)?.skip(a.skip);
    let mut failed = None;
    // One batch is made ready while another is written. What replaces goes in the order of the rows.
    let side_by_side = if a.replace { 1 } else { 2 };
    let mut sending = futures_util::stream::FuturesOrdered::new();
    let mut ended = false;
    loop {
        while !ended && sending.len() < side_by_side {
            let mut batch = Rows::new();
            while batch.len() < ROWS && !ended {
                match rows.next() {
                    Some(Ok((number, None))) => count.refuse(s, number, None)?,
                    Some(Ok((number, Some(row)))) => {
                        let must_change = row.must_change.unwrap_or(false);
                        batch.push((number, pb::PasswordImport { subject: row.subject, hash: row.hash, must_change }));
                    }
                    Some(Err(error)) => (failed, ended) = (Some(error), true),
                    None => ended = true,
                }
            }
            if !batch.is_empty() {
                sending.push_back(send(s, &a, batch));
            }
        }
        let Some(sent) = sending.next().await else { break };
        count.add(s, &sent)?;
        bar.set_position(count.upto as u64);
        if let Some(error) = sent.error {
            failed = Some(error);
            break;
        }
    }
    bar.finish_and_clear();
    if let Some(error) = failed {
        note(&format!("{0} rows are dealt with; go on with --skip {0}", count.upto));
        return Err(error);
    }
    let total = count.imported + count.kept + count.failed as u64;
    match s.out.json {
        true => s.out.json_line(&json!({
            "rows": total, "imported": count.imported, "kept": count.kept, "failed": count.failed
        }))?,
        false => s.out.line(&format!(
            "{total} rows: {} imported, {} had a password already, {} refused",
            count.imported, count.kept, count.failed
        ))?,
    }
    match count.failed {
        0 => Ok(()),
        failed => Err(CliError::Partly { failed, total: total as usize }),
    }
}

/// How many rows a file has; for the bar only, so what is wrong in it is told later.
fn count_rows(input: impl Read + 'static, format: Format) -> u64 {
    match format {
        Format::Csv => csv::ReaderBuilder::new().flexible(true).from_reader(input).into_byte_records().count() as u64,
        Format::Jsonl => {
            BufReader::new(input).split(b'\n').filter(|l| l.as_ref().is_ok_and(|l| !l.is_empty())).count() as u64
        }
    }
}

impl Count {
    /// Adds what became of some rows, and tells of those that were refused.
    fn add(&mut self, s: &Session, sent: &Sent) -> Result<(), CliError> {
        self.upto = self.upto.max(sent.upto);
        self.imported += sent.imported;
        self.kept += sent.kept;
        sent.refused.iter().try_for_each(|(number, row)| self.refuse(s, *number, Some(row)))
    }

    /// Tells that a row was refused: by the server, or because it has not the form of one.
    fn refuse(&mut self, s: &Session, number: usize, by_server: Option<&Refused>) -> Result<(), CliError> {
        self.failed += 1;
        let (code, reason, why) = match by_server {
            Some((_, error)) => {
                let why: Vec<String> = error.violations.iter().map(|v| format!("{} {}", v.path, v.rule)).collect();
                (Code::from(error.code), error.reason.as_str(), why)
            }
            None => (Code::InvalidArgument, "FIELD_INVALID", vec![FORM.to_owned()]),
        };
        if !s.out.json {
            return s.out.line(&format!("row {number}: {reason}: {}", why.join("; ")));
        }
        s.out.json_line(&json!({
            "row": number, "subject": by_server.map(|(subject, _)| subject),
            "error": { "code": code_name(code), "reason": reason, "violations": why }
        }))
    }
}

/// Sends rows until the server has dealt with all of them.
async fn send(s: &Session, a: &Import, mut batch: Rows) -> Sent {
    let mut sent = Sent { upto: 0, imported: 0, kept: 0, refused: Vec::new(), error: None };
    let mut retries = 0;
    while !batch.is_empty() {
        let request = pb::BatchImportPasswordsRequest {
            rows: batch.iter().map(|(_, row)| row.clone()).collect(),
            replace: a.replace,
            create_subjects: a.create_subjects,
            validate_only: a.validate_only,
        };
        let answer = match s.patient().credentials().batch_import_passwords(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status)
                if matches!(status.code(), Code::ResourceExhausted | Code::Unavailable | Code::Aborted)
                    && retries < RETRIES =>
            {
                retries += 1;
                let asked = status.get_error_details().retry_info().and_then(|info| info.retry_delay);
                tokio::time::sleep(asked.unwrap_or(Duration::from_millis(500)).min(Duration::from_secs(30))).await;
                continue;
            }
            Err(status) => {
                sent.error = Some(status.into());
                return sent;
            }
        };
        let done = (answer.done_count as usize).min(batch.len());
        if done == 0 {
            sent.error = Some(CliError::Unexpected("the server dealt with no row".into()));
            return sent;
        }
        retries = 0;
        sent.imported += u64::from(answer.imported_count);
        sent.kept += u64::from(answer.kept_count);
        for refused in answer.errors {
            let Some((number, row)) = batch.get(refused.row as usize) else {
                sent.error = Some(CliError::Unexpected("no such row".into()));
                return sent;
            };
            sent.refused.push((*number, (row.subject.clone(), refused.error.unwrap_or_default())));
        }
        sent.upto = batch.drain(..done).next_back().map_or(sent.upto, |(number, _)| number);
    }
    sent
}

/// The least memory, MiB, and the most passes that the configuration takes.
const LEAST_MIB: u32 = Argon2Cost::DEFAULT.memory_kib >> 10;
const MOST_PASSES: u32 = 16;

/// Costs in ascending order: a MiB more each up to the limit, from there on a pass more each (RFC 9106, section 4).
fn step(n: u32, max_mib: u32) -> Argon2Cost {
    let passes = Argon2Cost::DEFAULT.passes + n.saturating_sub(max_mib);
    Argon2Cost { memory_kib: n.min(max_mib) << 10, passes, ..Argon2Cost::DEFAULT }
}

/// `password calibrate`: the highest step whose time is the target.
pub fn calibrate(out: Output, a: Calibrate) -> Result<(), CliError> {
    let clock = SystemClock::new();
    let limit_kib = a.max_memory << 10;
    let mut memory = Argon2Memory::new(limit_kib.max(Argon2Cost::DEFAULT.memory_kib));
    let mut time = |cost: Argon2Cost| -> Result<Duration, CliError> {
        let mut best = Duration::MAX;
        // The first run takes the memory; the least of the others is what an idle machine needs.
        for round in 0..4 {
            let from = clock.monotonic();
            memory.hash(cost, &[0; 32]).map_err(|e| CliError::Unexpected(e.to_string()))?;
            let took = clock.monotonic().saturating_sub(from);
            best = if round == 0 { best } else { best.min(took) };
        }
        Ok(best)
    };
    // One tenth over the target is the target.
    let fits = |took: Duration| took <= a.target.mul_f64(1.1);
    let last = a.max_memory + (MOST_PASSES - Argon2Cost::DEFAULT.passes);
    let (mut good, mut bad) = (LEAST_MIB, last + 1);
    let mut took = time(step(good, a.max_memory))?;
    let default_took = took;
    while took < a.target && bad - good > 1 + good / 20 {
        let guess = match bad > last {
            // Nothing was too much yet.
            true => (f64::from(good) * a.target.as_secs_f64() / took.as_secs_f64().max(1e-6)) as u32,
            false => good.midpoint(bad),
        };
        let guess = guess.clamp(good + 1, bad - 1);
        let its = time(step(guess, a.max_memory))?;
        if fits(its) {
            (good, took) = (guess, its);
        } else {
            bad = guess;
        }
    }
    let cost = step(good, a.max_memory);
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let per_second = 1.0 / took.as_secs_f64().max(1e-6);
    if out.json {
        return out.document(&json!({
            "memory_kib": cost.memory_kib, "iterations": cost.passes, "parallelism": cost.lanes,
            "milliseconds": took.as_secs_f64() * 1e3, "per_second_and_thread": per_second,
            "default_milliseconds": default_took.as_secs_f64() * 1e3, "cores": cores,
        }));
    }
    out.line(&format!(
        "[passwords]\nmemory_kib = {}\niterations = {}\nparallelism = {}",
        cost.memory_kib, cost.passes, cost.lanes
    ))?;
    note(&format!(
        "{:.0} ms a hash, {per_second:.1} a second and thread; the default takes {:.0} ms",
        took.as_secs_f64() * 1e3,
        default_took.as_secs_f64() * 1e3
    ));
    if default_took > a.target {
        note("the least that is allowed takes longer than the target here");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_as_csv_and_as_json_lines_and_a_bad_one_is_passed_over_by_its_number() {
        let all = |text: &'static str, format| {
            let rows = rows(text.as_bytes(), format).ok().unwrap().map(|row| row.ok().unwrap());
            rows.map(|(n, row)| (n, row.map(|r| (r.subject, r.must_change)))).collect::<Vec<_>>()
        };
        let csv = "subject,hash,must_change\nu-1,\"$argon2id$v=19$m=256,t=3,p=1$a$b\",true\nalone\nu-3,$2b$x,\n";
        let expected = [(1, Some(("u-1".into(), Some(true)))), (2, None), (3, Some(("u-3".into(), None)))];
        assert_eq!(all(csv, Format::Csv), expected);
        let jsonl = "{\"subject\":\"u-1\",\"hash\":\"h\"}\n\n{\"subject\":\"u-2\",\"hash\":\"h\",\"x\":1}\n";
        assert_eq!(all(jsonl, Format::Jsonl), [(1, Some(("u-1".into(), None))), (2, None)]);
        assert_eq!((count_rows(csv.as_bytes(), Format::Csv), count_rows(jsonl.as_bytes(), Format::Jsonl)), (3, 2));
        for heading in ["u-1,$2b$10$canary", "subject,password", "subject,hash,email"] {
            let told = rows(heading.as_bytes(), Format::Csv).err().unwrap().to_string();
            assert!(told.contains("subject,hash") && !told.contains("canary"), "{told}");
        }
    }

    #[test]
    fn steps_begin_at_the_default_and_grow_in_memory_and_then_in_passes() {
        let of = |n| (step(n, 64).memory_kib, step(n, 64).passes);
        assert_eq!(step(LEAST_MIB, 64), Argon2Cost::DEFAULT);
        assert_eq!((of(64), of(65), of(78)), ((65_536, 2), (65_536, 3), (65_536, 16)));
    }

    #[test]
    fn targets_are_milliseconds() {
        assert_eq!(milliseconds("250ms"), Ok(Duration::from_millis(250)));
        assert!(milliseconds("0ms").is_err() && milliseconds("1s").is_err() && milliseconds("x").is_err());
    }
}
