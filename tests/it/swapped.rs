//! T14 and T16: an administrator of the database moves rows about by SQL, or a bit of the file flips. Whatever is read
//! then is refused or right, never something else.

use pii_vault::clock::{DAY_MS, Timestamp};
use pii_vault::ids::*;
use pii_vault::keyring::TenantKeyState;
use pii_vault::policy::value::Value;
use pii_vault::server::Node;
use pii_vault::telemetry;
use pii_vault::vault::find::Key;
use pii_vault::vault::item::NewItem;
use pii_vault::vault::read::Select;
use pii_vault::vault::{Call, VaultError};
use rusqlite::Connection;
use rusqlite::types::Value as Sql;
use tonic::{Code, Status};

use crate::harness::*;

const POLICY: &str = r#"
format = 1
time_zone = "UTC"
[controller]
name = "Example"
contact = "privacy@example.com"
[[category]]
name = "person"
[[class]]
number = 1
name = "account"
retention = "none"
[[class]]
number = 2
name = "content"
retention = "90d"
[[class]]
number = 3
name = "device"
retention = "none"
[[field]]
number = 1
name = "first"
class = "account"
category = "person"
type = "text"
max_length = 100
[[field]]
number = 2
name = "last"
class = "account"
category = "person"
type = "text"
max_length = 100
[[field]]
number = 3
name = "email"
class = "account"
category = "person"
type = "text"
validator = "email"
searchable = true
unique = true
[[field]]
number = 4
name = "nick"
class = "content"
category = "person"
type = "text"
max_length = 100
[[field]]
number = 5
name = "motto"
class = "content"
category = "person"
type = "text"
max_length = 100
[[field]]
number = 6
name = "ip"
class = "device"
category = "person"
type = "text"
max_length = 100
[[field]]
number = 7
name = "note"
class = "account"
category = "person"
type = "text"
max_length = 100
many = true
[[field]]
number = 8
name = "message"
class = "content"
category = "person"
type = "text"
max_length = 100
many = true
[[purpose]]
number = 1
name = "service"
basis = "contract"
classes = ["*"]
"#;

const TENANTS: [&str; 2] = ["alpha", "beta"];
const SINGLE: [&str; 6] = ["first", "last", "email", "nick", "motto", "ip"];
const CLASSES: [i64; 3] = [1, 2, 3];

/// One value that everybody can tell from every other.
fn word(tenant: usize, subject: usize, field: &str) -> String {
    match field {
        "email" => format!("{}-{subject}@example.com", TENANTS[tenant]),
        _ => format!("{} {subject} {field}", TENANTS[tenant]),
    }
}

fn subject(n: usize) -> String {
    format!("usr_{n}")
}

/// Two tenants with two people each, all classes, two items of each many-valued field.
struct World {
    t: TestVault,
    tenants: Vec<TenantNo>,
    /// Uids by tenant and subject.
    uids: Vec<Vec<i64>>,
    db: Connection,
}

impl World {
    async fn new() -> World {
        // No ciphertext is cached: every read meets the rows as they are.
        let t = TestVault::with(|config| config.cache.ciphertext_mib = 0).await;
        let mut tenants = Vec::new();
        for (n, name) in TENANTS.iter().enumerate() {
            let tenant = t.tenant(name, POLICY).await;
            let call = t.call(tenant);
            for s in 0..2 {
                let values: Vec<_> = SINGLE.iter().map(|field| (*field, word(n, s, field))).collect();
                let values: Vec<_> = values.iter().map(|(field, text)| (*field, text.as_str())).collect();
                let put = put(&call, &subject(s), &values);
                t.node.vault.put_fields(&call, &purpose(&call, "service"), put, None, false).await.expect("put");
                for many in ["note", "message"] {
                    let item = |i: i64| NewItem {
                        value: Value::text(format!("{} {i}", word(n, s, many))),
                        origin: Some(Timestamp(START.0 - i * DAY_MS)),
                    };
                    let (context, no) = (purpose(&call, "service"), field(&call, many));
                    let items = [item(0), item(1)];
                    let whose = id(&subject(s));
                    let done = t.node.vault.append_items(&call, &context, &whose, no, &items, None, false).await;
                    done.expect("append");
                }
            }
            tenants.push(tenant);
        }
        let db = database(&t);
        // Whoever owns the database owns its indexes.
        for index in ["subject_digest", "class_slot", "expiry_slot", "item_group_subject"] {
            db.execute(&format!("DROP INDEX {index}"), []).unwrap();
        }
        let uids = tenants.iter().map(|tenant| uids(&db, *tenant)).collect();
        World { t, tenants, uids, db }
    }

    fn call(&self, tenant: usize) -> Call {
        self.t.call(self.tenants[tenant])
    }

    /// A read of everything single-valued of a class.
    async fn fields(&self, tenant: usize, s: usize, class: i64) -> Result<Vec<String>, VaultError> {
        let call = self.call(tenant);
        let select = Select { classes: vec![ClassNo(class as u8)], ..Select::default() };
        let key = Key::Subject(id(&subject(s)));
        let got = self.t.node.vault.get_fields(&call, &purpose(&call, "service"), &key, &select).await?;
        Ok(got.values.iter().filter_map(|v| v.what.as_ref().ok()).map(|(value, _)| text(value).to_owned()).collect())
    }

    async fn unique(&self, tenant: usize, s: usize) -> Result<Vec<String>, VaultError> {
        let call = self.call(tenant);
        let key = Key::Unique { field: field(&call, "email"), text: zeroize::Zeroizing::new(word(tenant, s, "email")) };
        let select = Select { fields: vec![field(&call, "first")], ..Select::default() };
        let got = self.t.node.vault.get_fields(&call, &purpose(&call, "service"), &key, &select).await?;
        Ok(got.values.iter().filter_map(|v| v.what.as_ref().ok()).map(|(value, _)| text(value).to_owned()).collect())
    }

    async fn find(&self, tenant: usize, s: usize) -> Result<Vec<i64>, VaultError> {
        let call = self.call(tenant);
        let (context, email) = (purpose(&call, "service"), field(&call, "email"));
        let text = word(tenant, s, "email");
        let found = self.t.node.vault.find_subjects(&call, &context, email, &text, SubjectUid(0), 10).await?;
        Ok(found.subjects.iter().map(|snapshot| snapshot.subject.uid.0).collect())
    }

    async fn item(&self, tenant: usize, s: usize, many: i64, item: i64) -> Result<String, VaultError> {
        let call = self.call(tenant);
        let (context, key) = (purpose(&call, "service"), Key::Subject(id(&subject(s))));
        let got = self.t.node.vault.get_item(&call, &context, &key, FieldNo(many as u16), ItemNo(item), None).await?;
        Ok(text(&got.1.value).to_owned())
    }

    async fn list(&self, tenant: usize, s: usize, many: i64) -> Result<usize, VaultError> {
        let call = self.call(tenant);
        let (context, key) = (purpose(&call, "service"), Key::Subject(id(&subject(s))));
        let page =
            self.t.node.vault.list_items(&call, &context, &key, FieldNo(many as u16), None, None, None, None, 100);
        Ok(page.await?.items.len())
    }

    /// Everything is as it was written.
    async fn whole(&self) {
        for (tenant, word_of_tenant) in TENANTS.iter().enumerate() {
            for s in 0..2 {
                for class in CLASSES {
                    let got = self.fields(tenant, s, class).await.expect("whole again");
                    assert!(
                        !got.is_empty()
                            && got.iter().all(|t| t.starts_with(word_of_tenant) && t.contains(&format!("{s}")))
                    );
                }
                assert_eq!(self.unique(tenant, s).await.expect("whole"), [word(tenant, s, "first")]);
                assert_eq!(self.find(tenant, s).await.expect("whole"), [self.uids[tenant][s]]);
                for many in [7, 8] {
                    assert_eq!(self.list(tenant, s, many).await.expect("whole"), 2);
                }
            }
        }
    }
}

fn database(t: &TestVault) -> Connection {
    let db = Connection::open(t.config.data_dir.join("vault.db")).unwrap();
    db.busy_timeout(std::time::Duration::from_secs(5)).unwrap();
    db
}

fn uids(db: &Connection, tenant: TenantNo) -> Vec<i64> {
    let mut rows = db.prepare("SELECT uid FROM subject WHERE tenant = ?1 ORDER BY uid").unwrap();
    rows.query_map([tenant.0], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

/// Some columns of one row.
#[derive(Clone)]
struct Cells {
    table: &'static str,
    columns: &'static [&'static str],
    key: String,
}

impl Cells {
    fn read(&self, db: &Connection) -> Vec<Sql> {
        let sql = format!("SELECT {} FROM {} WHERE {}", self.columns.join(", "), self.table, self.key);
        db.query_row(&sql, [], |row| (0..self.columns.len()).map(|i| row.get(i)).collect()).unwrap()
    }
    fn write(&self, db: &Connection, values: &[Sql]) {
        let set: Vec<_> = self.columns.iter().enumerate().map(|(i, c)| format!("{c} = ?{}", i + 1)).collect();
        let sql = format!("UPDATE {} SET {} WHERE {}", self.table, set.join(", "), self.key);
        assert_eq!(db.execute(&sql, rusqlite::params_from_iter(values)).unwrap(), 1, "{sql}");
    }
}

/// Refusals of data that is not what was stored, each counted by the alarm.
#[derive(Default)]
struct Tally {
    refused: u64,
}

impl Tally {
    fn must_refuse<T: std::fmt::Debug>(&mut self, what: impl std::fmt::Display, answer: Result<T, VaultError>) {
        let error = answer.err().unwrap_or_else(|| panic!("{what} was not seen"));
        let status = Status::from(error);
        assert_eq!(status.code(), Code::DataLoss, "{what}: {status:?}");
        self.refused += 1;
    }
}

/// A number of the metrics page.
fn metric(page: &metrics_exporter_prometheus::PrometheusHandle, name: &str) -> u64 {
    page.render().lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t14_nothing_opens_in_another_place() {
    let page = metrics_page();
    let before = metric(page, telemetry::DAMAGED);
    let world = World::new().await;
    world.whole().await;
    let mut tally = Tally::default();

    // Records between all classes of all people of both tenants: alone, and together with the key that they name.
    let mut places = Vec::new();
    for tenant in 0..2 {
        for s in 0..2 {
            places.extend(CLASSES.map(|class| (tenant, s, class)));
        }
    }
    let shapes: [&[&str]; 2] = [&["record", "revision"], &["record", "revision", "version", "slot", "dek"]];
    for columns in shapes {
        let cells = |(tenant, s, class): (usize, usize, i64)| Cells {
            table: "subject_class",
            columns,
            key: format!("id = {}", world.uids[tenant][s] << 5 | class),
        };
        for from in &places {
            for to in places.iter().filter(|to| *to != from) {
                let (source, target) = (cells(*from), cells(*to));
                let own = target.read(&world.db);
                target.write(&world.db, &source.read(&world.db));
                let answer = world.fields(to.0, to.1, to.2).await;
                tally.must_refuse(format_args!("{columns:?} of {from:?} at {to:?}"), answer);
                target.write(&world.db, &own);
            }
        }
    }
    world.whole().await;

    // Inside a record: each byte of its head and of its first entry's head, and an older revision's number.
    for (tenant, s, class) in &places {
        let key = format!("id = {}", world.uids[*tenant][*s] << 5 | class);
        let cell = Cells { table: "subject_class", columns: &["record"], key: key.clone() };
        let own = cell.read(&world.db);
        let Sql::Blob(record) = &own[0] else { panic!("a blob") };
        // Format, revision, sections, bucket, digest, MAC, bucket, entries, field, revision, origin, expire, length,
        // nonce, ciphertext, tag.
        for at in [0, 8, 10, 14, 20, 40, 50, 52, 54, 62, 70, 78, 82, 90, record.len() - 1] {
            let mut changed = record.clone();
            changed[at] ^= 1;
            cell.write(&world.db, &[Sql::Blob(changed)]);
            tally.must_refuse(format_args!("byte {at} of a record"), world.fields(*tenant, *s, *class).await);
        }
        cell.write(&world.db, &own);
        let revision = Cells { table: "subject_class", columns: &["revision"], key };
        let own = revision.read(&world.db);
        revision.write(&world.db, &[Sql::Integer(7)]);
        tally.must_refuse("a record's revision", world.fields(*tenant, *s, *class).await);
        revision.write(&world.db, &own);
    }
    world.whole().await;

    // Items: envelopes between all items, and what stands beside them.
    let mut items = Vec::new();
    for tenant in 0..2 {
        for s in 0..2 {
            for many in [7, 8] {
                let sql = "SELECT item FROM item WHERE uid = ?1 AND field = ?2 ORDER BY item";
                let mut rows = world.db.prepare(sql).unwrap();
                let found = rows.query_map((world.uids[tenant][s], many), |row| row.get::<_, i64>(0)).unwrap();
                items.extend(found.map(|item| (tenant, s, many, item.unwrap())));
            }
        }
    }
    assert_eq!(items.len(), 16);
    let of = |(tenant, s, many, item): (usize, usize, i64, i64), columns| Cells {
        table: "item",
        columns,
        key: format!("uid = {} AND field = {many} AND item = {item}", world.uids[tenant][s]),
    };
    for from in &items {
        for to in items.iter().filter(|to| *to != from) {
            let (source, target) = (of(*from, &["envelope", "revision"]), of(*to, &["envelope", "revision"]));
            let own = target.read(&world.db);
            target.write(&world.db, &source.read(&world.db));
            let (tenant, s, many, item) = *to;
            tally.must_refuse(format_args!("item {from:?} at {to:?}"), world.item(tenant, s, many, item).await);
            target.write(&world.db, &own);
        }
        let (tenant, s, many, item) = *from;
        for (column, value) in [("revision", 9), ("origin", START.0 - 5), ("expire", START.0 + 80 * DAY_MS)] {
            let columns: &'static [&'static str] = match column {
                "revision" => &["revision"],
                "origin" => &["origin"],
                _ => &["expire"],
            };
            let cell = of(*from, columns);
            let own = cell.read(&world.db);
            cell.write(&world.db, &[Sql::Integer(value)]);
            tally.must_refuse(format_args!("{column} of an item, listed"), world.list(tenant, s, many).await);
            if column != "expire" {
                tally.must_refuse(format_args!("{column} of an item"), world.item(tenant, s, many, item).await);
            }
            cell.write(&world.db, &own);
        }
        if many == 8 {
            let cell = of(*from, &["bucket"]);
            let own = cell.read(&world.db);
            let Sql::Integer(bucket) = own[0] else { panic!("a number") };
            let sql = "SELECT bucket FROM item_group WHERE uid = ?1 AND field = 8 AND bucket <> ?2";
            let other: i64 = world.db.query_row(sql, (world.uids[tenant][s], bucket), |row| row.get(0)).unwrap();
            cell.write(&world.db, &[Sql::Integer(other)]);
            tally.must_refuse("an item in another bucket, listed", world.list(tenant, s, many).await);
            tally.must_refuse("an item in another bucket", world.item(tenant, s, many, item).await);
            cell.write(&world.db, &own);
        }
        let gone = of(*from, &["item"]);
        gone.write(&world.db, &[Sql::Integer(item + 1)]);
        tally.must_refuse("an item under another number", world.list(tenant, s, many).await);
        tally.must_refuse("an item under another number", world.item(tenant, s, many, item + 1).await);
        of((tenant, s, many, item + 1), &["item"]).write(&world.db, &[Sql::Integer(item)]);
    }
    for (tenant, s, many, _) in items.iter().step_by(2) {
        for (columns, value) in [
            (&["count"][..], Sql::Integer(7)),
            (&["revision"], Sql::Integer(7)),
            (&["sum"], Sql::Blob(vec![0; 16])),
            (&["mac"], Sql::Blob(vec![0; 16])),
        ] {
            let key = format!(
                "uid = {} AND field = {many} AND bucket = (SELECT min(bucket) FROM item_group WHERE uid = {0} AND field = {many})",
                world.uids[*tenant][*s]
            );
            let cell = Cells { table: "item_group", columns, key };
            let own = cell.read(&world.db);
            cell.write(&world.db, &[value]);
            tally.must_refuse(format_args!("{columns:?} of a group"), world.list(*tenant, *s, *many).await);
            cell.write(&world.db, &own);
        }
    }
    world.whole().await;

    // The ways to a person: the digest of the id, the sealed id, the index.
    for tenant in 0..2 {
        for (from, to) in [(0, 1), (1, 0)] {
            let of = |s: usize, columns| Cells {
                table: "subject",
                columns,
                key: format!("uid = {}", world.uids[tenant][s]),
            };
            let shapes: [&[&str]; 2] = [&["digest"], &["digest", "sealed_id"]];
            for columns in shapes {
                let (source, target) = (of(from, columns), of(to, columns));
                let (theirs, own) = (source.read(&world.db), target.read(&world.db));
                target.write(&world.db, &theirs);
                source.write(&world.db, &own);
                let what = format!("{columns:?} of {from} at {to}");
                tally.must_refuse(&what, world.fields(tenant, from, 1).await);
                let call = world.call(tenant);
                let select = Select { fields: vec![FieldNo(1)], ..Select::default() };
                let keys = [Key::Subject(id(&subject(from)))];
                let batch = world.t.node.vault.get_batch(&call, &purpose(&call, "service"), &keys, &select).await;
                tally.must_refuse(&what, batch.unwrap().remove(0).map(|_| ()));
                let one = put(&call, &subject(from), &[("first", "Somebody")]);
                let written = world.t.node.vault.put_fields(&call, &purpose(&call, "service"), one, None, false).await;
                tally.must_refuse(&what, written);
                target.write(&world.db, &own);
                source.write(&world.db, &theirs);
            }
            let (mine, other) = (world.uids[tenant][from], world.uids[tenant][to]);
            let tag: String =
                world.db.query_row("SELECT hex(tag) FROM term WHERE uid = ?1", [mine], |row| row.get(0)).unwrap();
            let lead = |uid: i64| {
                let sql = format!("UPDATE term SET uid = {uid} WHERE tag = x'{tag}'");
                assert_eq!(world.db.execute(&sql, []).unwrap(), 1);
            };
            lead(other);
            tally.must_refuse("an index row that leads to another", world.unique(tenant, from).await);
            tally.must_refuse("an index row that leads to another", world.find(tenant, from).await);
            lead(mine);
        }
    }
    world.whole().await;
    println!("{} swaps refused", tally.refused);
    assert!(tally.refused >= 448);
    // Other tests of this process count as well.
    assert!(metric(page, telemetry::DAMAGED) - before >= tally.refused, "the alarm counts each");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t14_no_node_and_no_expiry_key_opens_in_another_place() {
    let World { t, tenants, uids: _, db } = World::new().await;
    // The node is closed: what it holds in memory would hide the files.
    let TestVault { dir, config, clock, node, .. } = t;
    node.close().await;
    let t = Closed { _dir: dir, config, clock };
    let mut refused = 0;
    let ordinals = [0, 1, 121, 14_521];
    let node = |tenant: TenantNo, ordinal: i64, columns| Cells {
        table: "node",
        columns,
        key: format!("id = {}", i64::from(tenant.0) << 21 | ordinal),
    };
    let shapes: [&'static [&'static str]; 2] = [&["blob"], &["blob", "generation"]];
    for columns in shapes {
        for (n, tenant) in tenants.iter().enumerate() {
            let other = tenants[1 - n];
            for to in ordinals {
                let same = ordinals.iter().filter(|from| **from != to).map(|from| (*tenant, *from));
                for (whose, from) in same.chain([(other, to)]) {
                    let target = node(*tenant, to, columns);
                    let own = target.read(&db);
                    target.write(&db, &node(whose, from, columns).read(&db));
                    let seen = t.opened(*tenant, n).await;
                    assert_eq!(seen, None, "{columns:?} of node {from} of {whose} at {to} of {tenant}");
                    refused += 1;
                    target.write(&db, &own);
                }
            }
            assert!(t.opened(*tenant, n).await.is_some(), "whole again");
        }
    }
    println!("{refused} swaps of nodes refused");

    // Expiry keys: of another day, of another tenant.
    let days: Vec<(TenantNo, i64)> = tenants
        .iter()
        .flat_map(|tenant| {
            let mut rows = db.prepare("SELECT bucket FROM expiry WHERE tenant = ?1 ORDER BY bucket").unwrap();
            let found = rows.query_map([tenant.0], |row| row.get::<_, i64>(0)).unwrap();
            found.map(|bucket| (*tenant, bucket.unwrap())).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(days.len(), 4);
    let key = |(tenant, bucket): (TenantNo, i64)| Cells {
        table: "expiry",
        columns: &["slot", "dek"],
        key: format!("tenant = {} AND bucket = {bucket}", tenant.0),
    };
    for to in &days {
        for from in days.iter().filter(|from| *from != to) {
            let own = key(*to).read(&db);
            key(*to).write(&db, &key(*from).read(&db));
            let node = Node::open(&t.config, t.clock.clone()).await.expect("opens");
            let call = t.call(&node, to.0);
            let item: i64 = db
                .query_row("SELECT item FROM item WHERE tenant = ?1 AND bucket = ?2", (to.0.0, to.1), |row| row.get(0))
                .unwrap();
            for s in 0..2 {
                let key = Key::Subject(id(&subject(s)));
                let context = purpose(&call, "service");
                let got = node.vault.get_item(&call, &context, &key, FieldNo(8), ItemNo(item), None).await;
                match got {
                    Ok(_) => panic!("a value opened under the expiry key of another day"),
                    Err(VaultError::NotFound) => {}
                    Err(error) => assert_eq!(Status::from(error).code(), Code::DataLoss),
                }
            }
            node.close().await;
            key(*to).write(&db, &own);
        }
    }
}

/// A vault that nobody has open.
struct Closed {
    _dir: tempfile::TempDir,
    config: pii_vault::config::Config,
    clock: std::sync::Arc<pii_vault::clock::ManualClock>,
}

impl Closed {
    fn call(&self, node: &Node, tenant: TenantNo) -> Call {
        call_of(node, tenant, vec![everything()])
    }

    /// What somebody reads who opens it as it lies there; `None`: the tenant is refused, or nothing opens.
    async fn opened(&self, tenant: TenantNo, name: usize) -> Option<String> {
        let node = Node::open(&self.config, self.clock.clone()).await.ok()?;
        let mut seen = None;
        if node.keyring.state(tenant) == TenantKeyState::Ready && node.vault.tenant(tenant).is_ok() {
            let call = self.call(&node, tenant);
            for s in 0..2 {
                for class in [1, 2] {
                    let select = Select { classes: vec![ClassNo(class)], ..Select::default() };
                    let key = Key::Subject(id(&subject(s)));
                    let got = node.vault.get_fields(&call, &purpose(&call, "service"), &key, &select).await;
                    for shown in got.iter().flat_map(|got| &got.values).filter_map(|v| v.what.as_ref().ok()) {
                        assert!(text(&shown.0).starts_with(TENANTS[name]), "another tenant's value");
                        seen = Some(text(&shown.0).to_owned());
                    }
                }
            }
        }
        node.close().await;
        seen
    }
}

/// T16: one bit of one byte of the file at a time. What is read is right or refused; nothing panics.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t16_a_flipped_bit_of_the_file_shows_no_wrong_value() {
    let World { t, tenants, uids, db } = World::new().await;
    let TestVault { dir, config, clock, node, .. } = t;
    node.close().await;
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(db);
    let (path, keeper) = (config.data_dir.join("vault.db"), config.keeper.paths[0].join("roots.keeper"));
    let (whole, roots) = (std::fs::read(&path).unwrap(), std::fs::read(&keeper).unwrap());
    let t = Closed { _dir: dir, config, clock };
    let step = if std::env::var_os("PII_VAULT_TEST_FULL").is_some() { 1 } else { whole.len() / 100 };
    let (mut right, mut refused, mut closed) = (0, 0, 0);
    for at in (0..whole.len()).step_by(step.max(1)) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        std::fs::write(&path, &bytes).unwrap();
        let _ = std::fs::remove_file(t.config.data_dir.join("vault.db-wal"));
        std::fs::write(&keeper, &roots).unwrap();
        let Ok(node) = Node::open(&t.config, t.clock.clone()).await else {
            closed += 1;
            continue;
        };
        for (n, tenant) in tenants.iter().enumerate() {
            if node.vault.tenant(*tenant).is_err() {
                refused += 1;
                continue;
            }
            let call = t.call(&node, *tenant);
            // A policy that does not parse any more is refused too.
            let Ok(policy) = call.tenant.policy() else {
                refused += 1;
                continue;
            };
            let Some(rule) = policy.purpose_by_name(&Name::parse("purpose", "service").unwrap()) else { continue };
            let context = pii_vault::vault::Context { purpose: Some(rule.no), ..Default::default() };
            for s in 0..2 {
                let key = Key::Subject(id(&subject(s)));
                for (i, name) in SINGLE.iter().enumerate() {
                    let select = Select { fields: vec![FieldNo(i as u16 + 1)], ..Select::default() };
                    match node.vault.get_fields(&call, &context, &key, &select).await {
                        Ok(got) => match &got.values[0].what {
                            Ok((value, _)) => {
                                assert_eq!(text(value), word(n, s, name), "byte {at}");
                                right += 1;
                            }
                            Err(_) => refused += 1,
                        },
                        Err(_) => refused += 1,
                    }
                }
                let items = node.vault.list_items(&call, &context, &key, FieldNo(8), None, None, None, None, 100).await;
                for item in items.iter().flat_map(|page| &page.items) {
                    assert!(text(&item.value).starts_with(&word(n, s, "message")), "byte {at}");
                }
            }
            let found =
                node.vault.find_subjects(&call, &context, FieldNo(3), &word(n, 0, "email"), SubjectUid(0), 9).await;
            for snapshot in found.iter().flat_map(|found| &found.subjects) {
                assert_eq!(snapshot.subject.uid.0, uids[n][0], "byte {at}");
            }
        }
        node.close().await;
    }
    println!("{} bytes, every {step}th: {right} values right, {refused} refused, {closed} starts refused", whole.len());
    assert!(right > 0 && refused > 0);
}
