//! The vault of a run: a process with a vault in a directory, served over TLS as `serve` does it, that is also told to load
//! people and to run its engine without the network.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::stream::{self, TryStreamExt};
use serde_json::{Value as Json, json};
use tokio::sync::watch;

use super::error::BenchError;
use super::part::say;
use super::rotations::Turn;
use crate::access::{FieldSet, Grant, PurposeSet, Verb, VerbSet, View};
use crate::audit::{Action, Outcome};
use crate::auth::{Kind, Principal};
use crate::cli::people::person;
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, RootKekSource, TlsConfig, TlsVersion};
use crate::crypto::recovery::RecoveryIdentity;
use crate::ids::*;
use crate::policy::value::Value;
use crate::recovery::data_archive::{self, Pace};
use crate::server::Node;
use crate::server::run::{Ports, serve_node, tls};
use crate::vault::access_keys::NewAccessKey;
use crate::vault::find::Key;
use crate::vault::item::NewItem;
use crate::vault::read::Select;
use crate::vault::report::Surroundings;
use crate::vault::tenant::TenantKind;
use crate::vault::tenants::NewTenant;
use crate::vault::value::NewValue;
use crate::vault::write::{Put, WriteMode};
use crate::vault::{Call, Context};

/// The policy of a run, and the tenant that is under it.
const POLICY: &str = include_str!("../../../examples/tenants/jina-connect.toml");
const TENANT: &str = "bench";
/// File beside a vault with the private recovery key.
pub const RECOVERY: &str = "recovery.key";
/// A vault in whose directory this file lies is made without a recovery key.
pub const WITHOUT_RECOVERY: &str = "without-recovery";
/// The bench subject: five fields in two classes, one of them searchable.
pub const FIELDS: [&str; 5] = ["name", "email", "organisation", "ip", "user_agent"];
/// What sealing adds to a value: format, algorithm, class, version, nonce, tag, and the value's own kind.
const SEALING: usize = 40;
/// Writes that wait for the disk at a time while people are loaded.
const LOADING: usize = 512;

pub(super) fn failed<E: std::fmt::Display>(error: E) -> BenchError {
    BenchError::other("vault")(error)
}

/// Everything beside each other under `dir`.
pub fn config(dir: &Path) -> Config {
    let mut config = Config::default();
    config.data_dir = dir.join("data");
    config.keeper.paths = vec![dir.join("keeper")];
    config.root_kek = Some(RootKekSource::File { path: dir.join("secrets/root.key") });
    config.root_kek_next = Some(RootKekSource::File { path: dir.join("secrets/root-next.key") });
    config.listen.address = ([127, 0, 0, 1], 0).into();
    config.ops.enabled = false;
    // The first use of an access key, which is never measured, has all the time that it needs on a busy machine.
    config.argon2.max_wait_ms = 60_000;
    // A copy that begins by itself would be measured with whatever runs then.
    config.backup.nightly = false;
    config.tls = Some(TlsConfig {
        certificate: dir.join("server.pem"),
        private_key: dir.join("server.key"),
        client_ca: None,
        require_client_certificate: false,
        minimum_version: TlsVersion::V13,
    });
    config
}

/// An open vault and what requests need of it.
pub(super) struct Served {
    pub(super) node: Arc<Node>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) tenant: TenantNo,
    turn: parking_lot::Mutex<Option<Turn>>,
    dir: std::path::PathBuf,
}

/// Serves until standard input ends.
pub async fn serve(dir: &Path) -> Result<(), BenchError> {
    let config = config(dir);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let new = !dir.join("data").exists();
    if new {
        // As a vault is made: new slots are recorded for a recovery key. Its private part is for the restore of this run.
        let recovery = RecoveryIdentity::generate();
        std::fs::write(dir.join(RECOVERY), recovery.text().as_bytes()).map_err(BenchError::io("recovery key"))?;
        let recipients = [recovery.recipient()];
        let recipients = if dir.join(WITHOUT_RECOVERY).exists() { &[][..] } else { &recipients[..] };
        crate::server::init(&config, recipients, clock.clone()).await.map_err(failed)?;
    }
    let node = Arc::new(Node::open(&config, clock.clone()).await.map_err(failed)?);
    let name = Name::parse("tenant", TENANT).map_err(failed)?;
    let tenant = match node.vault.tenant_no(&name) {
        Some(tenant) => tenant,
        None => make_tenant(&node, name, dir).await?,
    };
    let key = |file: &str| std::fs::read_to_string(dir.join(file)).map_err(BenchError::io("access key"));
    let (credential, officer) = (key("access.key")?, key("officer.key")?);
    let ports = Ports::bind(&config).await.map_err(failed)?;
    let port = ports.grpc.local_addr().map_err(BenchError::io("listen"))?.port();
    let (stop, stopped) = watch::channel(false);
    let state = tls(&config).map_err(failed)?;
    let serving = tokio::spawn({
        let (node, config) = (node.clone(), config.clone());
        async move { serve_node(&config, &node, ports, state, None, stopped).await }
    });
    let served = Served { node, clock, tenant, turn: Default::default(), dir: dir.to_owned() };
    let policy = served.call()?.tenant.policy().map_err(failed)?.clone();
    let fields: Vec<u16> = FIELDS
        .iter()
        .filter_map(|name| policy.field_by_name(&Name::parse("field", name).ok()?).map(|rule| rule.no.0))
        .collect();
    say(&json!({
        "port": port,
        "credential": credential,
        "officer": officer,
        "public_key": data_encoding::HEXLOWER.encode(&served.node.keyring.signing().public()),
        "fields": fields,
        "purpose": served.purpose("service")?.0,
        "login_threads": served.node.vault.options().passwords.threads,
        "login_queue": served.node.vault.options().passwords.queue,
        "login_kib": served.node.vault.options().passwords.cost.memory_kib,
    }));

    let mut requests = super::part::requests();
    while let Some(request) = requests.recv().await {
        let answer = match served.answer(&request).await {
            Ok(answer) => answer,
            Err(error) => json!({ "error": error.to_string() }),
        };
        say(&answer);
    }
    stop.send_replace(true);
    serving.await.map_err(failed)?.map_err(failed)?;
    if let Some(node) = Arc::into_inner(served.node) {
        node.close().await;
    }
    Ok(())
}

pub(super) fn operator() -> Arc<Principal> {
    principal(TenantNo::VAULT, Kind::Operator)
}

fn principal(tenant: TenantNo, kind: Kind) -> Arc<Principal> {
    let grant = Grant {
        fields: FieldSet::ALL,
        purposes: PurposeSet::ALL,
        verbs: VerbSet::from_iter(Verb::ALL.iter().copied()),
        max_view: View::Plain,
        groups: None,
    };
    Arc::new(Principal {
        actor: ActorId(1),
        tenant,
        kind,
        grants: Arc::new([grant]),
        certificate: None,
        expires: None,
        subjects_per_hour: None,
    })
}

impl Served {
    /// A call by somebody who may do everything, without the network.
    pub(super) fn call(&self) -> Result<Call, BenchError> {
        self.call_in(self.tenant)
    }

    /// The same in another tenant.
    pub(super) fn call_in(&self, tenant: TenantNo) -> Result<Call, BenchError> {
        let vault = &self.node.vault;
        Ok(vault.call(principal(tenant, Kind::Tenant), vault.tenant(tenant).map_err(failed)?))
    }

    fn purpose(&self, name: &str) -> Result<PurposeNo, BenchError> {
        let call = self.call()?;
        let name = Name::parse("purpose", name).map_err(failed)?;
        let policy = call.tenant.policy().map_err(failed)?;
        policy.purpose_by_name(&name).map(|rule| rule.no).ok_or_else(|| failed("the policy lacks a purpose"))
    }

    fn context(&self, purpose: &str) -> Result<Context, BenchError> {
        Ok(Context { purpose: Some(self.purpose(purpose)?), ..Context::default() })
    }

    fn field(&self, call: &Call, name: &str) -> Result<FieldNo, BenchError> {
        let name = Name::parse("field", name).map_err(failed)?;
        let policy = call.tenant.policy().map_err(failed)?;
        policy.field_by_name(&name).map(|rule| rule.no).ok_or_else(|| failed("the policy lacks a field"))
    }

    async fn answer(&self, request: &Json) -> Result<Json, BenchError> {
        let number = |name: &str| request[name].as_u64().unwrap_or(0);
        let began = self.clock.monotonic();
        let took = |clock: &Arc<dyn Clock>| (clock.monotonic() - began).as_secs_f64();
        match request["do"].as_str().unwrap_or_default() {
            "load" => {
                let group = match request["group"].as_str() {
                    Some(group) => Some(self.group(group).await?),
                    None => None,
                };
                self.load(number("from"), number("count"), group).await?;
                Ok(json!({ "rows": number("count"), "seconds": took(&self.clock) }))
            }
            "erase group" => {
                let group = request["group"].as_str().unwrap_or_default();
                let group = SubjectId::parse("group", group).map_err(failed)?;
                let call = self.call()?;
                self.node.vault.erase_group(&call, &Context::default(), &group, None, true).await.map_err(failed)?;
                Ok(json!({ "seconds": took(&self.clock) }))
            }
            "fill" => {
                let bytes = self.fill(number("from"), number("values"), number("each")).await?;
                Ok(json!({ "bytes": bytes, "seconds": took(&self.clock) }))
            }
            "shred" => {
                let ahead = 200 * crate::clock::DAY_MS;
                let record = self.call()?.record(Action::AdvanceClock, Outcome::Ok);
                let later = self.node.vault.edit_settings(self.tenant, None, record, |settings| {
                    settings.clock_offset_ms = settings.clock_offset_ms.saturating_add(ahead);
                    Ok(())
                });
                later.await.map_err(failed)?;
                let call = self.call()?;
                let began = self.clock.monotonic();
                let done = self.node.vault.shred_due(&call, 1_000).await.map_err(failed)?;
                let seconds = (self.clock.monotonic() - began).as_secs_f64();
                Ok(json!({ "rows": done.done, "seconds": seconds }))
            }
            "sweep" => {
                let (call, mut rows) = (self.call()?, 0);
                loop {
                    let done = self.node.vault.sweep_rows(&call, 100_000).await.map_err(failed)?;
                    rows += done.done;
                    if !done.more {
                        return Ok(json!({ "rows": rows, "seconds": took(&self.clock) }));
                    }
                }
            }
            "key archive" => {
                let written = self.node.keyring.rewrite_archive(self.tenant).await.map_err(failed)?;
                Ok(json!({ "leaves": written.leaves, "bytes": written.bytes, "seconds": took(&self.clock) }))
            }
            "backup" => self.back_up(super::recover::time(request), request["keep"] == true).await,
            "copy" => {
                let from = Path::new(request["from"].as_str().unwrap_or_default());
                let to = from.with_extension("copy");
                let copied = tokio::task::block_in_place(|| super::recover::plain_copy(from, &to));
                let seconds = took(&self.clock);
                std::fs::remove_dir_all(&to).map_err(BenchError::io("a copy"))?;
                Ok(json!({ "rows": copied.map_err(BenchError::io("a copy"))?, "seconds": seconds }))
            }
            "tenants" => {
                self.tenants(number("count")).await?;
                Ok(json!({ "seconds": took(&self.clock) }))
            }
            "rotate" => {
                self.rotate(request["kind"].as_str().unwrap_or_default(), request["first_pass_only"] == true).await
            }
            "rotate on" => {
                let turn = self.rotate_on().await?;
                *self.turn.lock() = Some(turn);
                Ok(json!({}))
            }
            "rotate off" => {
                let turn = self.turn.lock().take().ok_or_else(|| failed("no rotation goes on"))?;
                self.rotate_off(turn).await
            }
            "count" => {
                let subjects = self.node.vault.get_tenant(&self.call()?).await.map_err(failed)?.subjects;
                Ok(json!({ "rows": subjects }))
            }
            "entries" => {
                let rows = self.entries(number("count")).await?;
                Ok(json!({ "rows": rows, "seconds": took(&self.clock) }))
            }
            "decode" => {
                let rows = self.decode().await?;
                Ok(json!({ "rows": rows, "seconds": took(&self.clock) }))
            }
            "rules" => self.rules(&self.dir, number("count")).await,
            "plan" => {
                let values = self.plan().await?;
                Ok(json!({ "rows": values, "seconds": took(&self.clock) }))
            }
            "report" => {
                self.node.vault.honesty_report(&self.call()?, &Surroundings::default()).await.map_err(failed)?;
                Ok(json!({ "seconds": took(&self.clock) }))
            }
            "read" => {
                let time = Duration::from_secs_f64(request["seconds"].as_f64().unwrap_or(1.0));
                let fields = self.read(number("subjects"), number("batch"), number("tasks"), time).await?;
                Ok(json!({ "rows": fields, "seconds": took(&self.clock) }))
            }
            _ => Err(failed("no such request")),
        }
    }

    /// Data archives one after the other until the time is over, one at least; with `keep` they stay.
    async fn back_up(&self, time: Duration, keep: bool) -> Result<Json, BenchError> {
        let backups = &self.node.backups;
        let began = self.clock.monotonic();
        let (mut bytes, mut made) = (0, Vec::new());
        while made.is_empty() || self.clock.monotonic() - began < time {
            let pace = Pace::new(self.clock.clone(), 0);
            let (dir, now) = (&backups.options().dir, self.clock.now());
            let written = data_archive::write(backups.sources(), dir, now, 1, pace).await.map_err(failed)?;
            bytes += written.manifest.bytes();
            made.push(written.path);
        }
        let seconds = (self.clock.monotonic() - began).as_secs_f64();
        for path in made.iter().filter(|_| !keep) {
            std::fs::remove_dir_all(path).map_err(BenchError::io("an archive"))?;
        }
        Ok(json!({ "rows": bytes, "seconds": seconds, "path": made.last() }))
    }

    /// A group, made if it is not there.
    async fn group(&self, name: &str) -> Result<GroupNo, BenchError> {
        let (call, id) = (self.call()?, SubjectId::parse("group", name).map_err(failed)?);
        match self.node.vault.group_no(&call, &id).await {
            Ok(group) => Ok(group),
            Err(_) => self.node.vault.create_group(&call, &id, None, Vec::new(), None).await.map_err(failed),
        }
    }

    /// Values that end on one day, `each` a subject; answers the bytes of one as it is stored.
    async fn fill(&self, from: u64, values: u64, each: u64) -> Result<usize, BenchError> {
        let subjects = values.div_ceil(each);
        self.load(from, subjects, None).await?;
        let (call, context) = (self.call()?, self.context("delivery")?);
        let field = self.field(&call, "message")?;
        let text = |n: u64| format!("Your order {n} was sent to you today and arrives within three days.");
        stream::iter((0..subjects).map(Ok))
            .try_for_each_concurrent(64, |n| {
                let (call, context) = (&call, &context);
                async move {
                    let id = SubjectId::parse("subject", &person_id(from + n)).map_err(failed)?;
                    let items = n * each..((n + 1) * each).min(values);
                    let items = items.map(|i| NewItem { value: Value::text(text(i)), origin: None });
                    let items: Vec<_> = items.collect();
                    let vault = &self.node.vault;
                    vault.append_items(call, context, &id, field, &items, None, false).await.map_err(failed).map(drop)
                }
            })
            .await?;
        Ok(text(values).len() + SEALING)
    }

    /// Puts people, many at a time.
    async fn load(&self, from: u64, count: u64, group: Option<GroupNo>) -> Result<(), BenchError> {
        let (call, context) = (self.call()?, self.context("service")?);
        let fields = FIELDS.iter().map(|name| self.field(&call, name)).collect::<Result<Vec<_>, _>>()?;
        stream::iter((from..from + count).map(Ok))
            .try_for_each_concurrent(LOADING, |n| {
                let (call, context, fields) = (&call, &context, &fields);
                async move {
                    let person = person(n);
                    let texts = [person.name, person.email, person.organisation, person.ip, person.user_agent];
                    let value = |(field, text): (&FieldNo, String)| NewValue {
                        field: *field,
                        value: Value::text(text),
                        origin: None,
                    };
                    let put = Put {
                        subject: SubjectId::parse("subject", &person.id).map_err(failed)?,
                        values: fields.iter().zip(texts).map(value).collect(),
                        mode: WriteMode::Create,
                        group,
                        etag: None,
                        erase_former: false,
                    };
                    self.node.vault.put_fields(call, context, put, None, false).await.map_err(failed).map(drop)
                }
            })
            .await
    }

    /// Batches of random subjects through the vault without the network, `tasks` at a time; answers how many fields.
    async fn read(&self, subjects: u64, batch: u64, tasks: u64, time: Duration) -> Result<u64, BenchError> {
        let (call, context) = (self.call()?, self.context("service")?);
        let fields = FIELDS.iter().map(|name| self.field(&call, name)).collect::<Result<Vec<_>, _>>()?;
        let select = Select { fields, ..Select::default() };
        let end = self.clock.monotonic() + time;
        let (call, context, select) = (&call, &context, &select);
        let counted = AtomicU64::new(0);
        let each = (0..tasks).map(async |_| {
            while self.clock.monotonic() < end {
                let key = |_| {
                    let id = person_id(rand::random_range(0..subjects.max(1)));
                    SubjectId::parse("subject", &id).map(Key::Subject).map_err(failed)
                };
                let keys = (0..batch).map(key).collect::<Result<Vec<_>, _>>()?;
                for got in self.node.vault.get_batch(call, context, &keys, select).await.map_err(failed)? {
                    counted.fetch_add(got.map_err(failed)?.values.len() as u64, Ordering::Relaxed);
                }
            }
            Ok::<_, BenchError>(())
        });
        futures_util::future::try_join_all(each).await?;
        Ok(counted.into_inner())
    }
}

/// The subject id of person number `n`.
pub fn person_id(n: u64) -> String {
    person(n).id
}

async fn make_tenant(node: &Node, name: Name, dir: &Path) -> Result<TenantNo, BenchError> {
    let vault = &node.vault;
    let own = vault.tenant(TenantNo::VAULT).map_err(failed)?;
    let new = NewTenant { name, kind: TenantKind::Test, region: None, display_name: None, quota_subjects: 0 };
    let made = vault.create_tenant(&vault.call(operator(), own), new, None, None).await.map_err(failed)?;
    let call = vault.call(operator(), vault.tenant(made.no).map_err(failed)?);
    vault.apply_policy(&call, POLICY, None, None, None, false).await.map_err(failed)?;
    // Anew: what was looked at before has no roles yet.
    let call = vault.local_call(made.no).map_err(failed)?;
    let roles = vault.list_roles(&call, RoleNo(0), 100).await.map_err(failed)?.rows;
    for (file, role) in [("access.key", "app"), ("officer.key", "dpo")] {
        let roles = roles.iter().filter(|r| r.name.as_str() == role).map(|role| role.no).collect();
        let name = Name::parse("access key", role).map_err(failed)?;
        let new = NewAccessKey { name, roles, expires: None, certificate: None, subjects_per_hour: None };
        let issued = vault.issue_access_key(&call, new, None, false).await.map_err(failed)?;
        let text = issued.and_then(|key| key.text).ok_or_else(|| failed("no access key was issued"))?;
        std::fs::write(dir.join(file), text.as_bytes()).map_err(BenchError::io("access key"))?;
    }
    Ok(made.no)
}
