//! The rows of the table: what is done in each window, and what is compared with what.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use super::error::BenchError;
use super::part::Part;
use super::report::Row;
use super::served::FIELDS;
use super::stats::{Bound, Figure};
use super::wire::{Load, Window, Wire, frame, trust};
use super::{echo, raw};
use crate::cli::people::{Person, person};
use crate::clock::Clock;
use crate::crypto::password::{Argon2Cost, Argon2Memory};
use crate::grpc::pb;

pub(super) const GET: &str = "/pii.vault.v1.RecordService/GetFields";
const GET_MANY: &str = "/pii.vault.v1.RecordService/BatchGetFields";
pub(super) const PUT: &str = "/pii.vault.v1.RecordService/PutFields";
/// Subjects that are read over and over by the hot row.
pub(super) const HOT: u64 = 1_000;
/// Reads before a row of reads is measured: of a million subjects six for each leaf of the key tree.
const WARM: u64 = 100_000;
const LONGEST_WARM: Duration = Duration::from_secs(120);
/// Subjects of a batch of reads.
const BATCH: u64 = 500;

/// How large a run is.
#[derive(Debug, Clone)]
pub struct Plan {
    pub dir: PathBuf,
    pub subjects: u64,
    /// Pairs of windows of each row.
    pub windows: usize,
    pub window: Duration,
    pub connections: usize,
    pub in_flight: usize,
    /// Only to see that everything works: nothing that takes its time by the clock is waited for.
    pub smoke: bool,
    /// Core of the server under test and of its floor; the client has the others. `None`: there is one core only.
    pub core: Option<usize>,
}

/// A run under way.
pub struct Run {
    pub plan: Plan,
    pub clock: Arc<dyn Clock>,
    pub authority: String,
    pub rows: Vec<Row>,
    /// Ids of people, by number.
    pub(super) ids: Arc<Vec<String>>,
    /// The next person that is not stored yet.
    pub(super) next: Arc<AtomicU64>,
}

/// A vault process and connections to it.
pub(super) struct Target {
    pub part: Part,
    pub wire: Arc<Wire>,
    pub fields: Vec<u32>,
    pub purpose: u32,
}

/// Ours and the floor's, window beside window.
pub(super) type Pairs = Vec<(f64, f64)>;

/// An echo process, and connections to it.
pub(super) struct Floor {
    pub part: Part,
    pub wire: Arc<Wire>,
    request: Bytes,
}

impl Floor {
    /// What is sent to it.
    pub fn next(&self) -> impl Fn(u64) -> Bytes + Send + Sync + 'static {
        let request = self.request.clone();
        move |_| request.clone()
    }
}

pub(super) fn progress(what: &str) {
    crate::cli::output::note(&format!("bench: {what}"));
}

impl Run {
    pub fn new(plan: Plan, clock: Arc<dyn Clock>, authority: String) -> Run {
        let ids = (0..plan.subjects).map(|n| person(n).id).collect();
        let next = Arc::new(AtomicU64::new(plan.subjects));
        Run { plan, clock, authority, rows: Vec::new(), ids: Arc::new(ids), next }
    }

    pub(super) fn vault_dir(&self) -> PathBuf {
        self.plan.dir.join("vault")
    }

    pub(super) async fn wire(&self, port: u16, credential: &str) -> Result<Arc<Wire>, BenchError> {
        let tls = trust(&self.authority)?;
        Wire::connect(port, &tls, self.plan.connections, credential, self.clock.clone()).await
    }

    pub(super) async fn vault(&self, dir: &Path, core: Option<usize>) -> Result<Target, BenchError> {
        let part = Part::start("vault", dir, core).await?;
        let wire = self.wire(part.port()?, part.ready["credential"].as_str().unwrap_or_default()).await?;
        let numbers = part.ready["fields"].as_array().into_iter().flatten();
        let fields = numbers.filter_map(|n| n.as_u64()).map(|n| n as u32).collect();
        let purpose = part.ready["purpose"].as_u64().unwrap_or(0) as u32;
        Ok(Target { part, wire, fields, purpose })
    }

    /// Fills the vault and measures how fast that went.
    pub async fn load(&mut self) -> Result<(), BenchError> {
        let target = self.vault(&self.vault_dir(), None).await?;
        let Target { mut part, .. } = target;
        let count = self.plan.subjects;
        progress(&format!("loading {count} subjects"));
        let done = part.ask(json!({ "do": "load", "from": 0, "count": count })).await?;
        let seconds = done["seconds"].as_f64().unwrap_or(f64::NAN);
        self.rows.push(Row::plain(
            format!("load of {count} subjects in process, durable"),
            Figure::one(count as f64 / seconds),
            "subjects/s",
        ));
        part.end().await
    }

    /// Reads: hot, at random, in batches; with the floor's rate and CPU.
    pub async fn reads(&mut self) -> Result<(), BenchError> {
        let mut target = self.vault(&self.vault_dir(), self.plan.core).await?;
        // Equal sizes: those of a real call.
        let request = get_request(&self.ids[0], &target);
        let answer = target.wire.ask::<pb::GetFieldsResponse>(GET, &request).await?;
        check_answer(&answer)?;
        let mut answer_bytes = 0;
        for id in self.ids.iter().take(100) {
            let answer = target.wire.ask::<pb::GetFieldsResponse>(GET, &get_request(id, &target)).await?;
            answer_bytes += prost::Message::encoded_len(&answer);
        }
        let sizes = (prost::Message::encoded_len(&request), answer_bytes / self.ids.len().min(100));
        let floor = self.echo(&target, sizes).await?;
        let load = |path| Load::new(path, self.plan.in_flight, self.plan.window);
        let echo_load = load(echo::PATH);

        progress("control: the echo against itself");
        let mut pairs = Vec::new();
        for _ in 0..self.plan.windows {
            let a = measured(&floor.part, &floor.wire, &echo_load, floor.next()).await?;
            let b = measured(&floor.part, &floor.wire, &echo_load, floor.next()).await?;
            pairs.push((a.0.rate(), b.0.rate()));
        }
        self.rows.extend(Row::against("control: echo against itself, rate", "calls/s", "echo", &pairs));

        let all = self.ids.len() as u64;
        for (name, subjects, at_least, aim) in
            [("hot GetFields", HOT.min(all), 0.70, 0.80), ("GetFields at random", all, 0.55, 0.65)]
        {
            progress(name);
            let frames = self.get_frames(&target, subjects);
            // So that caches hold what they can: everything is read once or, of many, enough to meet every leaf of the key
            // tree.
            let warm = Load { calls: subjects.min(WARM), ..Load::new(GET, self.plan.in_flight, LONGEST_WARM) };
            if subjects <= WARM {
                target.wire.drive(&warm, in_turn(frames.clone())).await?;
            } else {
                target.wire.drive(&warm, at_random(frames.clone())).await?;
            }
            let (rates, cpus) = self.beside_echo(&target, &load(GET), &frames, &floor).await?;
            let hot = name.starts_with("hot");
            let what = format!("{name} of {subjects} subjects");
            self.rows.extend(
                Row::against(format!("{what}, rate"), "calls/s", "echo", &rates)
                    .map(|row| row.bound(Bound::AtLeast(at_least)).aim(Bound::AtLeast(aim))),
            );
            let cpu = Row::against(format!("{what}, server CPU"), "us/call", "echo", &cpus);
            self.rows.extend(match hot {
                false => cpu,
                true => cpu.map(|row| row.bound(Bound::AtMost(1.5)).aim(Bound::AtMost(1.3))),
            });
        }
        self.idle(&target.part).await?;
        self.batches(&mut target).await?;
        floor.part.end().await?;
        target.part.end().await
    }

    /// The floor of calls whose requests and answers have so many bytes: an echo on the core of the server under test.
    pub(super) async fn echo(&self, target: &Target, sizes: (usize, usize)) -> Result<Floor, BenchError> {
        let part = Part::start("echo", &self.plan.dir, self.plan.core).await?;
        let wire = self.wire(part.port()?, target.part.ready["credential"].as_str().unwrap_or_default()).await?;
        Ok(Floor { part, wire, request: echo::request(sizes.0, sizes.1) })
    }

    /// Windows of random ones of `frames` and of echoes beside each other, by turns: calls a second, and the server's CPU
    /// time a call in microseconds.
    pub(super) async fn beside_echo(
        &self,
        target: &Target,
        load: &Load,
        frames: &Arc<Vec<Bytes>>,
        floor: &Floor,
    ) -> Result<(Pairs, Pairs), BenchError> {
        let echoes = Load { path: echo::PATH, ..load.clone() };
        let (mut rates, mut cpus) = (Vec::new(), Vec::new());
        for i in 0..self.plan.windows {
            let next = at_random(frames.clone());
            let (ours, under) = if i % 2 == 0 {
                let ours = measured(&target.part, &target.wire, load, next).await?;
                (ours, measured(&floor.part, &floor.wire, &echoes, floor.next()).await?)
            } else {
                let under = measured(&floor.part, &floor.wire, &echoes, floor.next()).await?;
                (measured(&target.part, &target.wire, load, next).await?, under)
            };
            rates.push((ours.0.rate(), under.0.rate()));
            cpus.push((ours.1, under.1));
        }
        Ok((rates, cpus))
    }

    /// What the server takes while nobody calls.
    async fn idle(&mut self, part: &Part) -> Result<(), BenchError> {
        let before = part.cpu()?;
        let time = self.plan.window * 2;
        tokio::time::sleep(time).await;
        let share = part.cpu()?.saturating_sub(before).as_secs_f64() / time.as_secs_f64() * 100.0;
        self.rows.push(Row::plain("control: CPU of the idle server", Figure::one(share), "%"));
        Ok(())
    }

    async fn batches(&mut self, target: &mut Target) -> Result<(), BenchError> {
        progress("BatchGetFields");
        let subjects = self.ids.len() as u64;
        let batch = BATCH.min(subjects);
        let tasks = 4;
        let ids = self.ids.clone();
        let message = |ids: &[String], fields: &[u32], purpose| pb::BatchGetFieldsRequest {
            keys: (0..batch).map(|_| key(&ids[rand::random_range(0..ids.len())])).collect(),
            select: Some(pb::Selector { field_ids: fields.to_vec(), ..Default::default() }),
            context: Some(pb::AccessContext { purpose_id: purpose, ..Default::default() }),
            ..Default::default()
        };
        let (mut rates, mut last) = (Vec::new(), 0.0);
        for _ in 0..self.plan.windows {
            let frames: Vec<Bytes> = (0..64).map(|_| frame(&message(&ids, &target.fields, target.purpose))).collect();
            let load = Load::new(GET_MANY, tasks as usize, self.plan.window);
            let ours = target.wire.drive(&load, in_turn(Arc::new(frames))).await?;
            let request = json!({
                "do": "read", "subjects": subjects, "batch": batch, "tasks": tasks,
                "seconds": self.plan.window.as_secs_f64(),
            });
            let engine = target.part.ask(request).await?;
            last = ours.rate() * (batch as usize * FIELDS.len()) as f64;
            rates.push((last, rate_of(&engine)));
        }
        let _ = last;
        let row = Row::against(
            format!("BatchGetFields, {batch} subjects a call of {subjects} at random"),
            "fields/s",
            "engine",
            &rates,
        );
        self.rows.extend(row.map(|row| row.bound(Bound::AtLeast(0.5)).aim(Bound::AtLeast(0.7))));
        let ours = Figure::of(rates.iter().map(|r| r.0));
        self.rows.extend(
            ours.map(|f| Row::plain("BatchGetFields, fields a second", f, "fields/s").bound(Bound::AtLeast(100_000.0))),
        );
        Ok(())
    }

    /// Durable puts of new subjects against plain SQL.
    pub async fn writes(&mut self) -> Result<(), BenchError> {
        progress("PutFields");
        let target = self.vault(&self.vault_dir(), None).await?;
        let mut floor = Part::start("sqlite", &self.plan.dir, None).await?;
        let in_flight = 256;
        let (mut rates, mut cpus) = (Vec::new(), Vec::new());
        for i in 0..self.plan.windows {
            let raw = json!({ "do": "put", "group": in_flight, "seconds": self.plan.window.as_secs_f64() });
            let mut under = 0.0;
            if i % 2 == 0 {
                under = rate_of(&floor.ask(raw.clone()).await?);
            }
            let load = Load::new(PUT, in_flight, self.plan.window);
            let (next, fields, purpose) = (self.next.clone(), target.fields.clone(), target.purpose);
            let next = move |_| frame(&put_request(&person(next.fetch_add(1, Ordering::Relaxed)), &fields, purpose));
            let ours = measured(&target.part, &target.wire, &load, next).await?;
            if i % 2 == 1 {
                under = rate_of(&floor.ask(raw).await?);
            }
            rates.push((ours.0.rate(), under));
            cpus.push(ours.1);
        }
        let row = Row::against("durable PutFields, 256 in flight", "subjects/s", "raw SQLite", &rates);
        self.rows.extend(row.map(|row| row.bound(Bound::AtLeast(0.6)).aim(Bound::AtLeast(0.8))));
        let cpu = Figure::of(cpus);
        self.rows.extend(cpu.map(|f| Row::plain("durable PutFields, server CPU", f, "us/call")));
        floor.end().await?;
        target.part.end().await
    }

    /// Memory and time of the start, empty and full.
    pub async fn start(&mut self) -> Result<(), BenchError> {
        progress("start and memory");
        let empty = self.plan.dir.join("empty");
        super::prepare_dir(&empty, &self.plan.dir)?;
        // Made first: what is measured is a start, not an init.
        Part::start("vault", &empty, None).await?.end().await?;
        let full = format!("with {} subjects", self.plan.subjects);
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        for (dir, what, memory, ready) in
            [(empty, "idle", 20.0, 100.0), (self.vault_dir(), full.as_str(), 300.0, 500.0)]
        {
            let (mut times, mut sizes) = (Vec::new(), Vec::new());
            for _ in 0..self.plan.windows.min(5) {
                let before = self.clock.monotonic();
                let target = self.vault(&dir, None).await?;
                times.push((self.clock.monotonic() - before).as_secs_f64() * 1e3);
                if what != "idle" {
                    // Memory of a vault at work: caches are filled first.
                    let frames = self.get_frames(&target, self.plan.subjects);
                    let load = Load::new(GET, self.plan.in_flight, self.plan.window * 2);
                    target.wire.drive(&load, at_random(frames)).await?;
                }
                sizes.push(megabytes(target.part.resident()?));
                target.part.end().await?;
            }
            let memory_row = Figure::of(sizes).map(|f| Row::plain(format!("memory {what}"), f, "MB"));
            self.rows.extend(memory_row.map(|row| row.bound(Bound::AtMost(memory))));
            let ready_row = Figure::of(times).map(|f| Row::plain(format!("ready after start, {what}"), f, "ms"));
            self.rows.extend(ready_row.map(|row| row.bound(Bound::AtMost(ready))));
        }
        Ok(())
    }

    /// Verifying a password hash against the bare crate with memory that it is given.
    pub fn argon2(&mut self) -> Result<(), BenchError> {
        progress("Argon2id");
        let cost = Argon2Cost::DEFAULT;
        let mut memory = Argon2Memory::new(cost.memory_kib);
        let stored = memory.hash(cost, b"correct horse").map_err(BenchError::other("Argon2id"))?;
        let params = argon2::Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32));
        let params = params.map_err(BenchError::other("Argon2id"))?;
        let mut blocks = vec![argon2::Block::new(); params.block_count()];
        let bare = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
        let (mut out, mut pairs) = ([0; 32], Vec::new());
        for _ in 0..self.plan.windows {
            let began = self.clock.monotonic();
            let right = memory.verify(&stored, b"correct horse").map_err(BenchError::other("Argon2id"))?;
            let between = self.clock.monotonic();
            let done =
                bare.hash_password_into_with_memory(b"correct horse", b"sixteen byte salt", &mut out, &mut blocks);
            done.map_err(BenchError::other("Argon2id"))?;
            let ended = self.clock.monotonic();
            if !right {
                return Err(BenchError::Other { what: "Argon2id", why: "a right password was refused".into() });
            }
            pairs.push((1.0 / (between - began).as_secs_f64(), 1.0 / (ended - between).as_secs_f64()));
        }
        let row = Row::against("Argon2id verify", "verifies/s", "bare crate", &pairs);
        self.rows.extend(row.map(|row| row.bound(Bound::AtLeast(0.9))));
        Ok(())
    }

    /// One sync of this disk: what durable rows are made of.
    pub fn disk(&mut self) -> Result<f64, BenchError> {
        let took = raw::fdatasync(&self.plan.dir, 200, &*self.clock)?;
        self.rows.push(Row::plain("fdatasync of 4 KiB overwritten", Figure::one(f64::from(took)), "us"));
        Ok(f64::from(took))
    }

    pub(super) fn get_frames(&self, target: &Target, subjects: u64) -> Arc<Vec<Bytes>> {
        let ids = self.ids.iter().take(subjects as usize);
        Arc::new(ids.map(|id| frame(&get_request(id, target))).collect())
    }
}

/// A window with the server's CPU time for each call in microseconds.
pub(super) async fn measured(
    part: &Part,
    wire: &Arc<Wire>,
    load: &Load,
    next: impl Fn(u64) -> Bytes + Send + Sync + 'static,
) -> Result<(Window, f64), BenchError> {
    let before = part.cpu()?;
    let window = wire.drive(load, next).await?;
    let took = part.cpu()?.saturating_sub(before);
    let cpu = took.as_secs_f64() * 1e6 / window.calls.max(1) as f64;
    Ok((window, cpu))
}

pub(super) fn rate_of(done: &serde_json::Value) -> f64 {
    done["rows"].as_f64().unwrap_or(0.0) / done["seconds"].as_f64().unwrap_or(f64::INFINITY)
}

pub(super) fn key(id: &str) -> pb::SubjectKey {
    pb::SubjectKey { key: Some(pb::subject_key::Key::Subject(id.to_owned())) }
}

fn get_request(id: &str, target: &Target) -> pb::GetFieldsRequest {
    pb::GetFieldsRequest {
        key: Some(key(id)),
        select: Some(pb::Selector { field_ids: target.fields.clone(), ..Default::default() }),
        context: Some(pb::AccessContext { purpose_id: target.purpose, ..Default::default() }),
        ..Default::default()
    }
}

pub(super) fn put_request(person: &Person, fields: &[u32], purpose: u32) -> pb::PutFieldsRequest {
    let texts = [&person.name, &person.email, &person.organisation, &person.ip, &person.user_agent];
    let value = |(field, text): (&u32, &String)| pb::Value {
        field_id: *field,
        kind: Some(pb::value::Kind::Text(text.clone())),
        ..Default::default()
    };
    pb::PutFieldsRequest {
        subject: person.id.clone(),
        values: fields.iter().zip(texts).map(value).collect(),
        context: Some(pb::AccessContext { purpose_id: purpose, ..Default::default() }),
        mode: pb::WriteMode::Create.into(),
        ..Default::default()
    }
}

/// A run that measures refusals would be fast and wrong.
fn check_answer(answer: &pb::GetFieldsResponse) -> Result<(), BenchError> {
    let shown = |v: &pb::Value| matches!(&v.kind, Some(pb::value::Kind::Text(text)) if !text.is_empty());
    match answer.values.len() == FIELDS.len() && answer.values.iter().all(shown) {
        true => Ok(()),
        false => Err(BenchError::Other { what: "GetFields", why: "an answer lacks values".into() }),
    }
}

pub(super) fn in_turn(frames: Arc<Vec<Bytes>>) -> impl Fn(u64) -> Bytes + Send + Sync + 'static {
    move |n| frames[n as usize % frames.len()].clone()
}

pub(super) fn at_random(frames: Arc<Vec<Bytes>>) -> impl Fn(u64) -> Bytes + Send + Sync + 'static {
    move |_| frames[rand::random_range(0..frames.len())].clone()
}
