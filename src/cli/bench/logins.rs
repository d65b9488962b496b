//! The rows of credentials: logins against bare Argon2id, API keys against the echo, a storm of logins beside reads, and the
//! import of another system's hashes against plain SQL of the same rows.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value as Json, json};

use super::echo;
use super::ends::Readers;
use super::error::BenchError;
use super::part::{Part, requests, say};
use super::report::Row;
use super::rows::{HOT, Run, Target, at_random, key, measured, progress, rate_of};
use super::stats::{Bound, Figure};
use super::wire::{Load, frame};
use crate::clock::{Clock, SystemClock};
use crate::crypto::password::Argon2Cost;
use crate::grpc::pb;

const SET: &str = "/pii.vault.v1.CredentialService/SetPassword";
const VERIFY: &str = "/pii.vault.v1.CredentialService/VerifyPassword";
const IMPORT: &str = "/pii.vault.v1.CredentialService/BatchImportPasswords";
const ISSUE_KEY: &str = "/pii.vault.v1.CredentialService/IssueApiKey";
const VERIFY_KEY: &str = "/pii.vault.v1.CredentialService/VerifyApiKey";
/// People who have a password, and as many who have an API key.
const PEOPLE: usize = 32;
/// Rows of one call of an import: the most that a call takes.
const ROWS: u64 = 1_000;
/// Calls of an import at a time, as `password import` makes them.
const IMPORTS: usize = 2;
/// How many times more logins come in a storm than can be served.
const STORM: f64 = 10.0;
/// From `tests/vectors/passwords-v1.json`. All rows have it: only its form and length matter here.
const BCRYPT: &str = "$2b$04$abcdefghijklmnopqrstuu7EJV7kdjBBQxyb0HjTh9KS7.Lah/6CG";

fn password(n: usize) -> String {
    format!("correct horse battery staple {n}")
}

fn login(subject: &str, password: &str) -> pb::VerifyPasswordRequest {
    pb::VerifyPasswordRequest {
        key: Some(key(subject)),
        password: password.as_bytes().to_vec().into(),
        ..Default::default()
    }
}

/// A run that measures refusals would be fast and wrong.
fn must_be(right: bool, what: &'static str) -> Result<(), BenchError> {
    match right {
        true => Ok(()),
        false => Err(BenchError::Other { what, why: "a check answered otherwise than it must".into() }),
    }
}

/// A key's text with another last character: of the right form, and its checksum does not fit.
fn forged(text: &str) -> String {
    let mut text = text.to_owned();
    let last = text.pop();
    text.push(if last == Some('0') { '1' } else { '0' });
    text
}

impl Run {
    /// All rows of credentials.
    pub async fn credentials(&mut self) -> Result<(), BenchError> {
        self.api_keys().await?;
        self.logins().await?;
        self.imports().await
    }

    /// API keys that were used before, and forged ones, against an echo of the same sizes.
    async fn api_keys(&mut self) -> Result<(), BenchError> {
        progress("VerifyApiKey");
        let target = self.vault(&self.vault_dir(), self.plan.core).await?;
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        let mut sizes = (0, 0);
        for id in self.ids.iter().take(PEOPLE) {
            let new = pb::IssueApiKeyRequest { key: Some(key(id)), scope_ids: vec![1, 7], ..Default::default() };
            let text = target.wire.ask_until_answered::<pb::IssueApiKeyResponse>(ISSUE_KEY, &new).await?.text;
            let check = |text: String| pb::VerifyApiKeyRequest { text, source: "192.0.2.7".into() };
            let (right, wrong) = (check(text.clone()), check(forged(&text)));
            // The first use runs Argon2id.
            let answer = target.wire.ask_until_answered::<pb::VerifyApiKeyResponse>(VERIFY_KEY, &right).await?;
            must_be(answer.verdict == pb::Verdict::Ok as i32, "VerifyApiKey")?;
            sizes = (prost::Message::encoded_len(&right), prost::Message::encoded_len(&answer));
            let answer = target.wire.ask_until_answered::<pb::VerifyApiKeyResponse>(VERIFY_KEY, &wrong).await?;
            must_be(answer.verdict == pb::Verdict::No as i32, "VerifyApiKey")?;
            good.push(frame(&right));
            bad.push(frame(&wrong));
        }
        let floor = self.echo(&target, sizes).await?;
        let load = Load::new(VERIFY_KEY, self.plan.in_flight, self.plan.window);
        let (rates, cpus) = self.beside_echo(&target, &load, &Arc::new(good), &floor).await?;
        let row = Row::against("VerifyApiKey of keys used before, rate", "calls/s", "echo", &rates);
        self.rows.extend(row.map(|row| row.bound(Bound::AtLeast(0.8))));
        self.rows.extend(Row::against("VerifyApiKey of keys used before, server CPU", "us/call", "echo", &cpus));

        progress("1,000 forged API keys a second");
        let bad = Arc::new(bad);
        let mut costs = Vec::new();
        for _ in 0..self.plan.windows {
            // 8 callers, each every 8 ms.
            let a_thousand = |path| Load { pace: Duration::from_millis(8), ..Load::new(path, 8, self.plan.window) };
            let bad = at_random(bad.clone());
            let ours = measured(&target.part, &target.wire, &a_thousand(VERIFY_KEY), bad).await?;
            let under = measured(&floor.part, &floor.wire, &a_thousand(echo::PATH), floor.next()).await?;
            costs.push((ours.1, under.1));
        }
        let row = Row::against("1,000 forged API keys a second, server CPU", "us/call", "echo", &costs);
        self.rows.extend(row.map(|row| row.bound(Bound::AtMost(1.3))));
        floor.part.end().await?;
        target.part.end().await
    }

    /// Logins alone, and ten times more of them than can be served beside reads.
    async fn logins(&mut self) -> Result<(), BenchError> {
        progress("VerifyPassword");
        let target = self.vault(&self.vault_dir(), None).await?;
        let number = |name: &str| target.part.ready[name].as_u64().unwrap_or(0);
        let (threads, queue) = (number("login_threads").max(1), number("login_queue"));
        let mut right = Vec::new();
        for (n, id) in self.ids.iter().take(PEOPLE).enumerate() {
            let password = password(n);
            let set = pb::SetPasswordRequest {
                key: Some(key(id)),
                password: password.as_bytes().to_vec().into(),
                ..Default::default()
            };
            target.wire.ask_until_answered::<pb::SetPasswordResponse>(SET, &set).await?;
            let answer =
                target.wire.ask_until_answered::<pb::VerifyPasswordResponse>(VERIFY, &login(id, &password)).await?;
            must_be(answer.verdict == pb::Verdict::Ok as i32, "VerifyPassword")?;
            right.push(frame(&login(id, &password)));
        }
        let right = Arc::new(right);
        let mut bare = Part::start("hashes", &self.plan.dir, None).await?;
        let ask = json!({ "threads": threads, "seconds": self.plan.window.as_secs_f64() });
        // So many that every thread always has work, and fewer than have a place to wait: on a machine that does nothing
        // else, none is turned away.
        let in_flight = (threads as usize * 4).min(PEOPLE);
        let load = Load { may_be_shed: true, ..Load::new(VERIFY, in_flight, self.plan.window) };
        let mut rates = Vec::new();
        for i in 0..self.plan.windows {
            let mut under = 0.0;
            if i % 2 == 0 {
                under = rate_of(&bare.ask(ask.clone()).await?);
            }
            let right = right.clone();
            let each = move |n: u64| right[n as usize % right.len()].clone();
            let ours = target.wire.drive(&load, each).await?.rate();
            if i % 2 == 1 {
                under = rate_of(&bare.ask(ask.clone()).await?);
            }
            rates.push((ours, under));
        }
        bare.end().await?;
        let row = Row::against(format!("VerifyPassword, {threads} at a time"), "logins/s", "bare crate", &rates);
        self.rows.extend(row.map(|row| row.bound(Bound::AtLeast(0.9))));
        let fit = Figure::of(rates.iter().map(|r| r.0)).map_or(1.0, |figure| figure.median);
        self.storm(&target, fit, (threads + queue) as usize).await?;
        target.part.end().await
    }

    /// Wrong passwords of people at random, ten times more than `fit` a second and more at a time than the `places` of those
    /// who are served or wait.
    async fn storm(&mut self, target: &Target, fit: f64, places: usize) -> Result<(), BenchError> {
        progress("ten times more logins than fit");
        let frames = self.get_frames(target, HOT.min(self.ids.len() as u64));
        let readers = Readers { wire: target.wire.clone(), frames };
        let idle = self.reads_at_rest(&readers).await?;
        let before = target.part.resident()?;
        let callers = places * 2;
        let pace = Duration::from_secs_f64(callers as f64 / (STORM * fit));
        // At least two turns of every caller, so that some find no place.
        let time = (self.plan.window * self.plan.windows as u32).max(pace * 2);
        let load = Load { pace, may_be_shed: true, ..Load::new(VERIFY, callers, time) };
        let credential = target.part.ready["credential"].as_str().unwrap_or_default();
        let attackers = self.wire(target.part.port()?, credential).await?;
        let wrong: Vec<Bytes> = self.ids.iter().take(10_000).map(|id| frame(&login(id, "a wrong password"))).collect();
        let storm = attackers.drive(&load, at_random(Arc::new(wrong)));
        let (window, busy) = self.reads_during(&readers, storm).await?;
        let most = target.part.peak()?;
        must_be(window.shed > 0, "a storm of logins")?;
        let what = format!("beside logins, {:.0} a second", (window.calls + window.shed) as f64 / window.seconds);
        self.meanwhile(&what, &idle, busy, 2.0);
        let answered = Figure::one(window.rate());
        self.rows.push(Row::plain("logins that were answered in that storm", answered, "logins/s"));
        let megabytes = |bytes: u64| Figure::one(bytes as f64 / 1e6);
        // What is configured is held from the start, so the storm may add its calls and nothing else.
        let number = |name: &str| target.part.ready[name].as_u64().unwrap_or(0);
        let configured = number("login_threads") * number("login_kib") * 1_024;
        let bound = megabytes(before + configured).median;
        let row = Row::plain("memory in that storm", megabytes(most), "MB").bound(Bound::AtMost(bound));
        self.rows.push(Row { floor: Some(("at rest", megabytes(before))), ..row });
        Ok(())
    }

    /// Another system's hashes taken over, with new subjects, as `password import --create-subjects` does it.
    async fn imports(&mut self) -> Result<(), BenchError> {
        progress("BatchImportPasswords");
        let mut target = self.vault(&self.vault_dir(), None).await?;
        let each = ROWS.min(self.plan.subjects);
        let next = self.next.clone();
        let batch = move |_| {
            let from = next.fetch_add(each, Ordering::Relaxed);
            let row =
                |n| pb::PasswordImport { subject: format!("u-{n:014x}"), hash: BCRYPT.to_owned(), must_change: false };
            let rows = (from..from + each).map(row).collect();
            frame(&pb::BatchImportPasswordsRequest { rows, create_subjects: true, ..Default::default() })
        };
        // So that the floor writes rows like these.
        let one = Load { calls: 1, ..Load::new(IMPORT, 1, Duration::from_secs(60)) };
        target.wire.drive(&one, batch.clone()).await?;
        let before = subjects(&mut target.part).await?;
        let mut floor = Part::start("sqlite", &self.plan.dir, None).await?;
        let (mut rates, mut calls) = (Vec::new(), 0);
        for i in 0..self.plan.windows {
            let raw = json!({ "do": "put", "group": each, "seconds": self.plan.window.as_secs_f64() });
            let mut under = 0.0;
            if i % 2 == 0 {
                under = rate_of(&floor.ask(raw.clone()).await?);
            }
            let load = Load::new(IMPORT, IMPORTS, self.plan.window);
            let ours = target.wire.drive(&load, batch.clone()).await?;
            if i % 2 == 1 {
                under = rate_of(&floor.ask(raw).await?);
            }
            calls += ours.calls;
            rates.push((ours.rate() * each as f64, under));
        }
        let imported = subjects(&mut target.part).await? - before;
        must_be(imported == calls * each, "BatchImportPasswords")?;
        let what = format!("import of {imported} bcrypt hashes, {each} a call");
        let row = Row::against(what, "rows/s", "raw SQLite", &rates);
        self.rows.extend(row.map(|row| row.bound(Bound::AtLeast(0.5))));
        floor.end().await?;
        target.part.end().await
    }
}

/// Subjects in the vault, as it counts them.
async fn subjects(part: &mut Part) -> Result<u64, BenchError> {
    Ok(part.ask(json!({ "do": "count" })).await?["rows"].as_u64().unwrap_or(0))
}

/// The floor of logins: the bare crate with memory that it is given, on as many threads as it is told.
pub async fn hashes() -> Result<(), BenchError> {
    say(&json!({}));
    let mut requests = requests();
    while let Some(request) = requests.recv().await {
        say(&bare(&request)?);
    }
    Ok(())
}

fn bare(request: &Json) -> Result<Json, BenchError> {
    let failed = BenchError::other::<argon2::Error>;
    let cost = Argon2Cost::DEFAULT;
    let params = argon2::Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32)).map_err(failed("Argon2id"))?;
    let clock = SystemClock::new();
    let time = Duration::from_secs_f64(request["seconds"].as_f64().unwrap_or(1.0));
    let began = clock.monotonic();
    let one = || {
        let bare = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params.clone());
        let mut blocks = vec![argon2::Block::new(); params.block_count()];
        let (mut out, mut hashes) = ([0; 32], 0u64);
        while clock.monotonic() - began < time {
            bare.hash_password_into_with_memory(b"correct horse", b"sixteen byte salt", &mut out, &mut blocks)?;
            hashes += 1;
        }
        Ok::<_, argon2::Error>(hashes)
    };
    let hashes = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..request["threads"].as_u64().unwrap_or(1)).map(|_| scope.spawn(one)).collect();
        threads.into_iter().map(|t| t.join().unwrap_or(Err(argon2::Error::OutputTooShort))).sum::<Result<u64, _>>()
    });
    let seconds = (clock.monotonic() - began).as_secs_f64();
    Ok(json!({ "rows": hashes.map_err(failed("Argon2id"))?, "seconds": seconds }))
}
