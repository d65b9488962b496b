//! Root keys and keepers in a hardware security module: the real program against SoftHSM, a token of its own for each test, behind
//! a module of our own (`shim.c`) that counts calls, fails and kills. A missing SoftHSM is an error, never a skipped test.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pb::erasure_service_client::ErasureServiceClient;
use pii_vault::config::{Config, KeeperToken, RootKekSource};
use pii_vault::grpc::pb;
use pii_vault::ids::TenantNo;
use pii_vault::receipt::rotation::{Fate, RotationRecord};
use pii_vault::server::Node;
use serde_json::Value as Json;
use tonic::Code;

use crate::harness::*;
use crate::lost::{erase, name, person, put};
use crate::net::*;
use crate::server;

const PIN: &str = "5678";
const SESSION_COUNT: &str = "177";
const DEVICE_ERROR: &str = "48";
const DEVICE_REMOVED: &str = "50";

/// A directory with a token named `vault` and the module before it.
pub struct Hsm {
    dir: PathBuf,
}

impl Hsm {
    pub fn new(dir: &Path) -> Hsm {
        let hsm = Hsm { dir: dir.to_owned() };
        hsm.token("tokens");
        private(&hsm.path("pin"), PIN);
        private(&hsm.path("wrong-pin"), "0000");
        hsm.order("");
        let places = ["/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm2.so"];
        let softhsm = places.iter().find(|place| Path::new(place).exists());
        let softhsm = softhsm.unwrap_or_else(|| panic!("SoftHSM's module is in none of {places:?}: install softhsm2"));
        let made = Command::new("cc")
            .args(["-shared", "-fPIC", &format!("-DMODULE=\"{softhsm}\""), "-o"])
            .arg(hsm.path("module.so"))
            .args([concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/shim.c"), "-ldl"])
            .output()
            .expect("cc: install gcc");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        hsm
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A directory of tokens with one named `vault` in it.
    pub fn token(&self, name: &str) {
        let (tokens, conf) = (self.path(name), self.path(&format!("{name}.conf")));
        std::fs::create_dir(&tokens).unwrap();
        std::fs::write(&conf, format!("directories.tokendir = {}\nobjectstore.backend = file\n", tokens.display()))
            .unwrap();
        let made = Command::new("softhsm2-util")
            .args(["--init-token", "--free", "--label", "vault", "--so-pin", "12345678", "--pin", PIN])
            .env("SOFTHSM2_CONF", conf)
            .output()
            .expect("softhsm2-util: install softhsm2");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    /// What the module does from now on: `CALL NTH WHAT`, see `shim.c`.
    pub fn order(&self, orders: &str) {
        std::fs::write(self.path("orders"), orders).unwrap();
    }

    /// How often the module was called so since the last question.
    pub fn calls(&self, name: &str) -> usize {
        let log = std::fs::read_to_string(self.path("orders.log")).unwrap_or_default();
        log.lines().filter(|line| *line == name).count()
    }

    pub fn forget_calls(&self) {
        let _ = std::fs::remove_file(self.path("orders.log"));
    }

    /// What the module wants to find in the environment.
    pub fn variables(&self, tokens: &str) -> [(&'static str, PathBuf); 2] {
        [("SOFTHSM2_CONF", self.path(&format!("{tokens}.conf"))), ("HSM_ORDERS", self.path("orders"))]
    }

    pub fn source(&self, pin: &str, wait_s: u64) -> RootKekSource {
        RootKekSource::Pkcs11 {
            module: self.path("module.so"),
            token: "vault".into(),
            key: "pii-vault".into(),
            pin_file: Some(self.path(pin)),
            pin_credential: None,
            timeout_ms: 5_000,
            wait_s,
            outage_h: 2,
            file: "pkcs11.json".into(),
        }
    }
}

pub fn private(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// A vault whose program runs with a module.
struct Place {
    _dir: tempfile::TempDir,
    hsm: Hsm,
    config: Config,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let hsm = Hsm::new(dir.path());
        let mut config = config(dir.path());
        (config.listen.address, config.ops.address) = server::addresses_of_its_own();
        config.root_kek = Some(hsm.source("pin", 1));
        let place = Place { _dir: dir, hsm, config };
        let operator = place.hsm.path("operator.key").display().to_string();
        let (made, told) = place.run("tokens", &["init", "--without-recovery", "--operator-key-file", &operator]);
        assert!(made, "{told}");
        place
    }

    fn command(&self, tokens: &str, args: &[&str]) -> Command {
        let (path, next) = (self.hsm.path("pii-vault.toml"), self.hsm.path("next.toml"));
        // A program that is starting may be reading the one that is there.
        std::fs::write(&next, toml::to_string(&self.config).unwrap()).unwrap();
        std::fs::rename(&next, &path).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_pii-vault"));
        command.args(args).arg("--config").arg(path).envs(self.hsm.variables(tokens));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs on this machine, to its end; whether it ended well, and what it said.
    fn run(&self, tokens: &str, args: &[&str]) -> (bool, String) {
        let done = self.command(tokens, args).output().unwrap();
        let told = [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (done.status.success(), told.concat())
    }

    fn serve(&self) -> Served<'_> {
        let log = self.hsm.path("server.log");
        let written = std::fs::File::create(&log).unwrap();
        let child = self.command("tokens", &["serve"]).stdout(Stdio::null()).stderr(written).spawn().unwrap();
        let mut served = Served { place: self, child };
        let begun = Instant::now();
        let told = || std::fs::read_to_string(&log).unwrap_or_default();
        while !self.run("tokens", &["healthcheck"]).0 {
            assert_eq!(served.child.try_wait().unwrap(), None, "the server ended: {}", told());
            assert!(begun.elapsed() < Duration::from_secs(60), "it does not get ready: {}", told());
            std::thread::sleep(Duration::from_millis(50));
        }
        served
    }

    /// The start is refused; what is said.
    fn refused(&self, tokens: &str) -> String {
        let (ended, told) = self.run(tokens, &["serve"]);
        assert!(!ended, "{told}");
        told
    }
}

struct Served<'a> {
    place: &'a Place,
    child: Child,
}

impl Served<'_> {
    fn call(&self, args: &[&str]) -> Json {
        let hsm = &self.place.hsm;
        let server = format!("http://{}", self.place.config.listen.address);
        let key = hsm.path("operator.key").display().to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_pii-vault"));
        command.args(args).args(["--json", "--yes", "--server", &server, "--credential-file", &key]);
        let done = command.env("HOME", &hsm.dir).output().unwrap();
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
        serde_json::from_slice(&done.stdout).unwrap_or_else(|e| panic!("{args:?}: {e}"))
    }

    fn provider(&self) -> Json {
        self.call(&["keys", "status", "--seal"])["seal"]["root_provider"].clone()
    }
}

impl Drop for Served<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_root_key_lives_in_a_module_and_dies_with_its_object() {
    let mut place = Place::new();
    let keeper = place.config.keeper.paths[0].clone();
    let stored = std::fs::read_to_string(keeper.join("pkcs11.json")).expect("the ciphertext beside the keeper");
    assert!(stored.contains("pii-vault pkcs11 root key v1") && !stored.contains(PIN));
    // Another token of that name has no such object; no token at all is waited for.
    place.hsm.token("others");
    let told = place.refused("others");
    assert!(told.contains("key object is not in the token"), "{told}");
    std::fs::create_dir(place.hsm.path("none")).unwrap();
    let none = format!("directories.tokendir = {}\n", place.hsm.path("none").display());
    std::fs::write(place.hsm.path("none.conf"), none).unwrap();
    let told = place.refused("none");
    assert!(told.contains("no token of that label"), "{told}");

    let hardware = place.config.root_kek.clone();
    let file = RootKekSource::File { path: place.hsm.path("next.key") };
    {
        let served = place.serve();
        assert_eq!(served.provider(), "pkcs11");
        drop(served);
        place.config.root_kek_next = Some(file.clone());
        let mut served = place.serve();
        let moved = served.call(&["keys", "move", "--to", "file", "--wait"]);
        assert_eq!(moved["state"], "OPERATION_STATE_SUCCEEDED", "{moved}");
        let records = served.call(&["keys", "records"]);
        let record = &records["rotations"][0]["body"];
        assert_eq!((&record["kind"], &record["fate"]), (&"root".into(), &"destroyed".into()), "{record}");
        assert_eq!((&record["from"]["provider"], &record["to"]["provider"]), (&"pkcs11".into(), &"file".into()));
        assert_eq!(served.provider(), "file");
        let ended = Command::new("kill").args(["-TERM", &served.child.id().to_string()]).status().unwrap();
        assert!(ended.success());
        assert!(served.child.wait().unwrap().success(), "with the module's library in it");
    }
    // With a copy of the ciphertext from before the token has nothing that opens it.
    assert!(!keeper.join("pkcs11.json").exists());
    private(&keeper.join("pkcs11.json"), &stored);
    (place.config.root_kek, place.config.root_kek_next) = (hardware, None);
    let told = place.refused("tokens");
    assert!(told.contains("key object is not in the token"), "{told}");
    place.config.root_kek = Some(file);
    assert_eq!(place.serve().provider(), "file");
}

#[test]
fn a_start_waits_for_what_passes_and_never_tries_a_refused_pin_again() {
    let mut place = Place::new();
    // Once: a token locks itself after a few.
    place.config.root_kek = Some(place.hsm.source("wrong-pin", 3));
    place.hsm.forget_calls();
    let told = place.refused("tokens");
    assert!(told.contains("PIN is not right") && !told.contains("0000"), "{told}");
    assert_eq!(place.hsm.calls("Login"), 1);
    place.config.root_kek = Some(place.hsm.source("pin", 2));
    // What may pass is tried until the time is over, and named.
    for (order, says) in [
        (format!("OpenSession 0 {SESSION_COUNT}"), "no session free"),
        (format!("Login 0 {DEVICE_ERROR}"), "DeviceError"),
        (format!("Decrypt 0 {DEVICE_REMOVED}"), "not there any more"),
    ] {
        place.hsm.order(&order);
        place.hsm.forget_calls();
        let told = place.refused("tokens");
        assert!(told.contains(says), "{order}: {told}");
        assert!(place.hsm.calls("OpenSession") > 2, "{order}");
    }
    // One that does not return does not hold up the end.
    place.hsm.order("OpenSession 0 stall");
    if let Some(RootKekSource::Pkcs11 { timeout_ms, .. }) = &mut place.config.root_kek {
        *timeout_ms = 300;
    }
    let begun = Instant::now();
    let told = place.refused("tokens");
    assert!(told.contains("too slow") || told.contains("has not returned"), "{told}");
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    // What the module refuses is not tried again.
    place.config.root_kek = Some(place.hsm.source("pin", 30));
    place.hsm.order("Decrypt 0 64");
    place.hsm.forget_calls();
    let told = place.refused("tokens");
    assert!(told.contains("EncryptedDataInvalid") && place.hsm.calls("OpenSession") == 1, "{told}");
    // The first three find no session; then one is free.
    let three = (1..=3).map(|nth| format!("OpenSession {nth} {SESSION_COUNT}\n")).collect::<String>();
    place.hsm.order(&three);
    assert_eq!(place.serve().provider(), "pkcs11");
}

#[test]
fn a_root_key_moves_into_a_module_and_the_module_is_lost() {
    alone("hsm::moved_into_a_module_that_is_lost");
}

/// Runs one of the tests below in a process of its own, whose module finds its token by the environment.
fn alone(name: &str) {
    let dir = tempfile::tempdir().unwrap();
    let hsm = Hsm::new(dir.path());
    let done = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture"])
        .envs(hsm.variables("tokens"))
        .env("HSM_DIR", dir.path())
        .output()
        .unwrap();
    let told = [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(done.status.success() && told.contains("1 passed"), "{told}");
}

/// The module of such a process.
fn given() -> Hsm {
    Hsm { dir: std::env::var_os("HSM_DIR").expect("started by another test").into() }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a process that another test starts"]
async fn moved_into_a_module_that_is_lost() {
    let hsm = given();
    let test = TestVault::with(|config| config.root_kek_next = Some(hsm.source("pin", 0))).await;
    let running = Running::over(test).await;
    let tenant = running.test.tenant("jina", JINA).await;
    let app = running.key(tenant, "app").await;
    let operator = running.operator_key("root").await;
    let mut keys = pb::key_service_client::KeyServiceClient::new(running.channel.clone());
    let go = |provider: &str| pb::RotateKeysRequest {
        kind: pb::KeyKind::Root as i32,
        provider: provider.into(),
        ..Default::default()
    };
    let vault = running.test.node.vault.clone();
    let own = vault.job_call(vault.tenant(TenantNo::VAULT).unwrap());
    // Without a session there is no next key, and nothing begins.
    hsm.order(&format!("OpenSession 0 {SESSION_COUNT}"));
    let refused = keys.rotate_keys(with(&operator, go("pkcs11"))).await.unwrap_err();
    assert_eq!(reason(&refused), "ROOT_KEY_UNAVAILABLE", "{refused}");
    hsm.order("");
    keys.rotate_keys(with(&operator, go("pkcs11"))).await.expect("move");
    vault.go_on_rotations(&own, 10_000).await.expect("it ends");
    assert_eq!(vault.root_provider(), "pkcs11");
    let list = pb::ListRotationsRequest::default();
    let records = keys.list_rotations(with(&operator, list)).await.expect("list").into_inner().rotations;
    let record = RotationRecord::verify(&records[0].record, &vault.receipt_keys()).expect("verifies").record;
    assert_eq!((record.from.provider.as_deref(), record.to.provider.as_deref()), (Some("file"), Some("pkcs11")));
    assert_eq!(record.fate, Fate::Destroyed, "the old file");

    let put = async |subject: &str| {
        let mut records = pb::record_service_client::RecordServiceClient::new(running.channel.clone());
        let values = vec![text_value(NAME, "Jane Roe")];
        let put = pb::PutFieldsRequest {
            subject: subject.into(),
            values,
            context: for_purpose(SERVICE),
            ..Default::default()
        };
        records.put_fields(with(&app, put)).await
    };
    assert!(vault.watch_root().await);
    // Gone in the middle: from memory, for its time and not longer.
    hsm.order(&format!("OpenSession 0 {DEVICE_REMOVED}"));
    assert!(vault.watch_root().await);
    put("during").await.expect("served from memory");
    running.test.clock.advance_ms(2 * 3_600_000 - 1_000);
    assert!(vault.watch_root().await);
    running.test.clock.advance_ms(1_000);
    assert!(!vault.watch_root().await, "for two hours");
    let refused = put("too-late").await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "SEALED"));
    hsm.order("");
    assert!(vault.watch_root().await);
    put("back").await.expect("served again");
    // The PIN was changed on the token: asked for again and again, it is tried once.
    private(&hsm.path("pin"), "9999");
    hsm.forget_calls();
    for _ in 0..4 {
        assert!(vault.watch_root().await);
    }
    assert_eq!(hsm.calls("Login"), 1, "a token locks itself");
    private(&hsm.path("pin"), PIN);
    assert!(vault.watch_root().await);
    // For good: away to another provider, without it. Its key is said to be unused, not destroyed.
    let mut config = running.test.config.clone();
    drop((vault, own));
    let test = running.stop().await;
    let operator = test.operator();
    test.node.close().await;
    (config.root_kek, config.root_kek_next) =
        (config.root_kek_next, Some(RootKekSource::File { path: hsm.path("after.key") }));
    let node = Node::open(&config, test.clock.clone()).await.expect("open");
    let own = node.vault.call(operator, node.vault.tenant(TenantNo::VAULT).unwrap());
    hsm.order(&format!("OpenSession 0 {DEVICE_REMOVED}"));
    node.vault.rotate_kek(&own, Some("file"), None).await.expect("move");
    node.vault.go_on_rotations(&own, 10_000).await.expect("it ends");
    assert_eq!(node.vault.root_provider(), "file");
    let rotations = node.vault.list_rotations(&own, None, 10).await.expect("list");
    let record =
        RotationRecord::verify(&rotations.rows[0].record, &node.vault.receipt_keys()).expect("verifies").record;
    assert_eq!(record.fate, Fate::Unused, "nobody could destroy it");
    drop(own);
    node.close().await;
}

#[test]
fn a_keeper_in_a_token_is_killed_at_every_call_of_its_module() {
    alone("hsm::keeper_killed_at_every_call");
}

#[test]
fn a_module_that_hangs_delays_erasures_and_nothing_else() {
    alone("hsm::keeper_in_a_module_that_hangs");
}

#[test]
fn an_old_copy_beside_the_present_token_opens_nothing_that_was_erased() {
    alone("hsm::old_copy_beside_the_present_token");
}

/// Key objects of the keeper in the token.
fn objects(hsm: &Hsm) -> usize {
    let token = std::fs::read_dir(hsm.path("tokens")).unwrap().next().unwrap().unwrap().path();
    let names = std::fs::read_dir(token).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().ends_with(".object")).count()
}

/// A place whose keeper waits so long for its token.
async fn guarded_place(hsm: &Hsm, timeout_s: u64) -> server::Place {
    let dir = tempfile::tempdir().unwrap();
    let recovery = dir.path().join("recovery.key").display().to_string();
    let token = KeeperToken {
        module: hsm.path("module.so"),
        token: "vault".into(),
        key: "keeper".into(),
        pin_file: Some(hsm.path("pin")),
        pin_credential: None,
        timeout_ms: timeout_s * 1_000,
        wait_s: timeout_s,
    };
    server::Place::changed(dir, 2, &["--recovery-out", &recovery], |config| config.keeper.token = Some(token)).await
}

fn gone<T: std::fmt::Debug>(answer: &Result<T, tonic::Status>) -> bool {
    matches!(answer, Err(status) if reason(status) == "SUBJECT_ERASED")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a process that another test starts"]
async fn keeper_killed_at_every_call() {
    let hsm = given();
    let place = guarded_place(&hsm, 10).await;
    let key = place.keys(1).await.remove(0);
    let (server, _) = place.serve().await;
    put(&server.channel, &key, 0..40).await;
    let receipt = erase(&server.channel, &key, 0..1).await.remove(0);
    let receipt = String::from_utf8_lossy(&receipt).into_owned();
    assert!(receipt.contains("\"pkcs11\"") && receipt.contains("\"physical\""), "{receipt}");
    let all = objects(&hsm);
    server.stop();
    let mut n = 1;
    let erase_one = |n: usize| {
        let erase = pb::EraseSubjectRequest { key: by_id(&person(n)), wait_final: true, ..Default::default() };
        with(&key.text, erase)
    };
    for call in ["GenerateKey", "Encrypt", "FindObjectsInit", "Decrypt", "DestroyObject"] {
        for when in ["before", "after"] {
            let (server, _) = place.serve().await;
            hsm.order(&format!("{call} 0 {when}"));
            let mut erasures = ErasureServiceClient::new(server.channel.clone());
            erasures.erase_subject(erase_one(n)).await.expect_err("it was killed");
            server.ended();
            hsm.order("");
            let (server, _) = place.serve().await;
            // Erased, or not yet: never in between, and nobody else is touched.
            let found = name(&server.channel, &key, n).await;
            assert!(found.is_ok() || gone(&found), "{call} {when}: {found:?}");
            if found.is_ok() {
                erase(&server.channel, &key, n..n + 1).await;
            }
            assert!(gone(&name(&server.channel, &key, n).await), "{call} {when}");
            erase(&server.channel, &key, n + 1..n + 2).await;
            assert_eq!(objects(&hsm), all, "{call} {when}: none is left behind");
            assert!(name(&server.channel, &key, 39).await.is_ok(), "{call} {when}");
            server.stop();
            n += 2;
        }
    }
    // Gone in the middle: erasures wait, reads go on, and it ends by itself when the token is back.
    let (server, _) = place.serve().await;
    hsm.order(&format!("GenerateKey 0 {DEVICE_ERROR}"));
    let mut erasures = ErasureServiceClient::new(server.channel.clone());
    let mut request = erase_one(n);
    request.get_mut().wait_final = false;
    let asked = erasures.erase_subject(request).await.expect("noted").into_inner().erasure.unwrap();
    assert_eq!(asked.status(), pb::ErasureStatus::Pending);
    assert!(name(&server.channel, &key, 39).await.is_ok());
    assert!(name(&server.channel, &key, n).await.is_err(), "refused from then on");
    hsm.order("");
    let begun = Instant::now();
    let erasure = asked.erasure;
    loop {
        let get = pb::GetErasureRequest { erasure: erasure.clone() };
        let now = erasures.get_erasure(with(&key.text, get)).await.expect("there").into_inner().erasure.unwrap();
        if now.status() == pb::ErasureStatus::Erased {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "it ends: {}", place.log());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    server.stop();
    // No token at the start: it waits for it, and says so.
    hsm.order(&format!("OpenSession 0 {DEVICE_REMOVED}"));
    let (ended, told) = place.try_program(&["serve"]);
    assert!(ended != Some(0) && told.contains("keeper's token"), "{told}");
    hsm.order("");
    let (server, _) = place.serve().await;
    assert!(name(&server.channel, &key, 39).await.is_ok());
    server.stop();
}

/// Polls an erasure until its keys are gone.
async fn ends(place: &server::Place, server: &server::Server, key: &server::Key, erasure: &str) {
    let mut erasures = ErasureServiceClient::new(server.channel.clone());
    let begun = Instant::now();
    loop {
        let get = pb::GetErasureRequest { erasure: erasure.into() };
        let now = erasures.get_erasure(with(&key.text, get)).await.expect("there").into_inner().erasure.unwrap();
        if now.status() == pb::ErasureStatus::Erased {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "it ends: {}", place.log());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a process that another test starts"]
async fn keeper_in_a_module_that_hangs() {
    let hsm = given();
    let place = guarded_place(&hsm, 1).await;
    let key = place.keys(1).await.remove(0);
    let (server, _) = place.serve().await;
    put(&server.channel, &key, 0..20).await;
    let all = objects(&hsm);
    let mut erasures = ErasureServiceClient::new(server.channel.clone());
    let mut keys = pb::key_service_client::KeyServiceClient::new(server.channel.clone());
    let ask = |n: usize| {
        let erase = pb::EraseSubjectRequest { key: by_id(&person(n)), ..Default::default() };
        with(&key.text, erase)
    };
    for (n, call) in ["GenerateKey", "Encrypt", "FindObjectsInit", "DestroyObject"].into_iter().enumerate() {
        let n = 2 * n;
        hsm.order(&format!("{call} 0 stall"));
        let begun = Instant::now();
        let asked = erasures.erase_subject(ask(n)).await.expect("noted").into_inner().erasure.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(8), "{call}: {:?}", begun.elapsed());
        assert_eq!(asked.status(), pb::ErasureStatus::Pending, "{call}");
        assert!(gone(&name(&server.channel, &key, n).await) || name(&server.channel, &key, n).await.is_err(), "{call}");
        assert!(name(&server.channel, &key, 19).await.is_ok(), "{call}: reads go on");
        // Asked for again while the module has not returned: at once, and not done either.
        let begun = Instant::now();
        let next = erasures.erase_subject(ask(n + 1)).await.expect("noted").into_inner().erasure.unwrap();
        assert_eq!(next.status(), pb::ErasureStatus::Pending, "{call}");
        assert!(begun.elapsed() < Duration::from_secs(3), "{call}: {:?}", begun.elapsed());
        let status = keys.get_seal_status(with(&place.operator, pb::GetSealStatusRequest {})).await.expect("status");
        let away = status.into_inner().replicas.into_iter().find(|replica| !replica.available).expect("one is away");
        let stuck = ["has not answered within 1s", "has not returned from an earlier call"];
        assert!(stuck.iter().any(|text| away.reason.contains(text)), "{call}: {}", away.reason);
        for told in [place.program(&["healthcheck"]), place.try_program(&["doctor"]).1] {
            assert!(told.contains("is away, erasures wait: the keeper's token: the module has not"), "{call}: {told}");
        }
        // What was given up goes on in the module when it answers: neither lost nor done twice.
        hsm.order("");
        ends(&place, &server, &key, &asked.erasure).await;
        ends(&place, &server, &key, &next.erasure).await;
        for n in [n, n + 1] {
            assert!(gone(&name(&server.channel, &key, n).await), "{call}");
        }
        assert_eq!(objects(&hsm), all, "{call}: none is left behind");
        assert!(name(&server.channel, &key, 19).await.is_ok(), "{call}");
    }
    // It hangs at the end: the server stops all the same, and the next start finishes.
    hsm.order("DestroyObject 0 stall");
    let asked = erasures.erase_subject(ask(18)).await.expect("noted").into_inner().erasure.unwrap();
    assert_eq!(asked.status(), pb::ErasureStatus::Pending);
    server.stop();
    hsm.order("");
    let (server, _) = place.serve().await;
    ends(&place, &server, &key, &asked.erasure).await;
    assert!(gone(&name(&server.channel, &key, 18).await));
    assert!(name(&server.channel, &key, 19).await.is_ok());
    assert_eq!(objects(&hsm), all);
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a process that another test starts"]
async fn old_copy_beside_the_present_token() {
    let hsm = given();
    let place = guarded_place(&hsm, 10).await;
    let key = place.keys(1).await.remove(0);
    let (server, _) = place.serve().await;
    put(&server.channel, &key, 0..3).await;
    server.stop();
    let old = place.dir.path().join("old");
    let mut config = place.config.clone();
    let taken = |path: &Path| old.join(path.file_name().unwrap());
    std::fs::create_dir(&old).unwrap();
    for path in config.keeper.paths.iter().chain([&config.data_dir]) {
        assert!(Command::new("cp").arg("-a").arg(path).arg(&old).status().unwrap().success());
    }
    config.keeper.paths = config.keeper.paths.iter().map(|path| taken(path)).collect();
    config.data_dir = taken(&config.data_dir);
    let (server, _) = place.serve().await;
    erase(&server.channel, &key, 0..1).await;
    server.stop();
    let all = objects(&hsm);
    match Node::open(&config, std::sync::Arc::new(pii_vault::clock::SystemClock::new())).await {
        Ok(node) => {
            let state = node.keyring.state(place.tenant);
            assert_eq!(state, pii_vault::keyring::TenantKeyState::KeeperBehind);
            node.close().await;
        }
        Err(error) => panic!("only the tenant is stopped: {error:#}"),
    }
    assert_eq!(objects(&hsm), all, "nothing of the present keeper was destroyed");
    let (server, _) = place.serve().await;
    assert!(gone(&name(&server.channel, &key, 0).await));
    assert!(name(&server.channel, &key, 1).await.is_ok());
    server.stop();
}
