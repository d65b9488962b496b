//! A vault of its own served by the real program, with keys to call it.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::{Duration, Instant};

use pb::access_service_client::AccessServiceClient;
use pii_vault::access::{Verb, VerbSet, View};
use pii_vault::clock::SystemClock;
use pii_vault::config::Config;
use pii_vault::grpc::pb;
use pii_vault::ids::*;
use pii_vault::server::Node;
use pii_vault::vault::access_keys::NewAccessKey;
use pii_vault::vault::roles::{NewGrant, NewRole};
use pii_vault::vault::tenant::TenantKind;
use pii_vault::vault::tenants::NewTenant;
use tonic::transport::{Channel, Endpoint};

use crate::harness::{JINA, config};
use crate::net::with;

/// Longest wait for a start before the test fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// Files of a vault with the tenant `jina`, not served yet.
pub struct Place {
    pub dir: tempfile::TempDir,
    pub config: Config,
    pub tenant: TenantNo,
    pub operator: String,
    role: RoleNo,
}

/// A key of the tenant: its text and the actor that the audit names.
#[derive(Clone)]
pub struct Key {
    pub text: String,
    pub actor: u64,
}

fn name(text: &str) -> Name {
    Name::parse("name", text).unwrap()
}

/// Addresses for the service and for its operation that no other test uses. A port of 127.0.0.1 that the kernel chose is
/// not ours: it goes to any connection of a neighbour while our server is down, and may be in TIME_WAIT for a minute then.
pub fn addresses_of_its_own() -> (SocketAddr, SocketAddr) {
    static PLACES: AtomicU8 = AtomicU8::new(1);
    let (process, place) = (std::process::id(), PLACES.fetch_add(1, Relaxed));
    assert_ne!(place, u8::MAX, "254 places of one process");
    let host = Ipv4Addr::new(127, 64 | (process >> 8) as u8 & 63, process as u8, place);
    ((host, 7711).into(), (host, 7712).into())
}

impl Place {
    /// Makes the vault under `dir`; `replicas` keeper directories. Its recovery key is in `recovery.key`.
    pub async fn new(dir: tempfile::TempDir, replicas: usize) -> Place {
        let recovery = dir.path().join("recovery.key").display().to_string();
        Self::with(dir, replicas, &["--recovery-out", &recovery]).await
    }

    /// The same, with what `init` is told about the recovery key.
    pub async fn with(dir: tempfile::TempDir, replicas: usize, recovery: &[&str]) -> Place {
        Self::changed(dir, replicas, recovery, |_| ()).await
    }

    /// The same with something else in the configuration.
    pub async fn changed(
        dir: tempfile::TempDir,
        replicas: usize,
        recovery: &[&str],
        change: impl FnOnce(&mut Config),
    ) -> Place {
        let mut config = config(dir.path());
        change(&mut config);
        config.keeper.paths = (0..replicas).map(|n| dir.path().join(format!("keeper-{n}"))).collect();
        (config.listen.address, config.ops.address) = addresses_of_its_own();
        let mut place = Place { dir, config, tenant: TenantNo::VAULT, operator: String::new(), role: RoleNo(0) };
        let operator = place.path("operator.key");
        place.program(&[&["init", "--operator-key-file", &operator], recovery].concat());
        place.operator = std::fs::read_to_string(operator).unwrap().trim().to_owned();
        let node = place.open().await;
        let vault = &node.vault;
        let new = NewTenant {
            name: name("jina"),
            kind: TenantKind::Test,
            region: None,
            display_name: None,
            quota_subjects: 0,
        };
        let tenant =
            vault.create_tenant(&vault.local_call(TenantNo::VAULT).unwrap(), new, None, None).await.expect("tenant").no;
        let call = vault.local_call(tenant).unwrap();
        vault.apply_policy(&call, JINA, None, None, None, false).await.expect("policy");
        let call = vault.local_call(tenant).unwrap();
        let grant = NewGrant {
            classes: vec![],
            fields: vec![],
            purposes: call.tenant.policy().unwrap().purposes().map(|p| p.no).collect(),
            verbs: VerbSet::from_iter(Verb::ALL.iter().copied()),
            max_view: View::Plain,
            groups: None,
            subjects_per_hour: 0,
        };
        let role = NewRole { name: name("everything"), grants: vec![grant] };
        let role = vault.create_role(&call, role, None, false).await.expect("role").unwrap().no;
        node.close().await;
        Place { tenant, role, ..place }
    }

    /// A path under the directory of everything, as text.
    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// Runs the program on the configuration, on this machine; what it printed. It must end well.
    pub fn program(&self, args: &[&str]) -> String {
        let (ended, told) = self.try_program(args);
        assert_eq!(ended, Some(0), "{args:?}: {told}");
        told
    }

    /// The same; its exit code, and what it printed.
    pub fn try_program(&self, args: &[&str]) -> (Option<i32>, String) {
        let done = self.command(args).stderr(Stdio::piped()).output().expect("the program");
        let told = [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (done.status.code(), told.concat())
    }

    /// Runs a line of a manual (without the program's name) where the configuration lies; its exit code, what it printed.
    pub fn line(&self, line: &str) -> (Option<i32>, String) {
        self.line_with(line, &[])
    }

    /// The same with these variables of the environment.
    pub fn line_with(&self, line: &str, variables: &[(&str, &str)]) -> (Option<i32>, String) {
        self.config_file();
        self.run(&line.split_whitespace().collect::<Vec<_>>(), variables)
    }

    /// Runs the program without a word about the configuration.
    pub fn alone(&self, args: &[&str]) -> (Option<i32>, String) {
        self.run(args, &[])
    }

    fn run(&self, args: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pii-vault"));
        command.envs(variables.iter().copied()).args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        let done = command.output().expect("the program");
        let told = [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (done.status.code(), told.concat())
    }

    /// The program on the configuration, not run yet.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pii-vault"));
        command.args(args).arg("--config").arg(self.config_file()).stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }

    /// Opens the files in this process; nobody may be serving them.
    pub async fn open(&self) -> Node {
        Node::open(&self.config, Arc::new(SystemClock::new())).await.expect("open")
    }

    /// So many keys that may do everything. Nobody may be serving.
    pub async fn keys(&self, n: usize) -> Vec<Key> {
        let node = self.open().await;
        let call = node.vault.local_call(self.tenant).unwrap();
        let mut keys = Vec::new();
        for i in 0..n {
            let new = NewAccessKey {
                name: name(&format!("key-{i}")),
                roles: vec![self.role],
                expires: None,
                certificate: None,
                subjects_per_hour: None,
            };
            let issued = node.vault.issue_access_key(&call, new, None, false).await.expect("issue").unwrap();
            keys.push(Key { text: issued.text.unwrap().to_string(), actor: issued.key.id.0 });
        }
        drop(call);
        node.close().await;
        keys
    }

    fn config_file(&self) -> PathBuf {
        let path = self.dir.path().join("pii-vault.toml");
        std::fs::write(&path, toml::to_string(&self.config).unwrap()).unwrap();
        path
    }

    /// Starts the program and waits until a call is answered; also how long that took.
    pub async fn serve(&self) -> (Server, Duration) {
        self.serve_as(&[], env!("CARGO_BIN_EXE_pii-vault")).await
    }

    /// The same with that file of the program, behind the words of another command that runs it.
    pub async fn serve_as(&self, before: &[String], program: &str) -> (Server, Duration) {
        let log = std::fs::File::options().create(true).append(true).open(self.dir.path().join("server.log")).unwrap();
        let mut words = before.iter().map(String::as_str).chain([program, "serve", "--config"]);
        let mut command = Command::new(words.next().expect("the program"));
        command.args(words).arg(self.config_file());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let from = Instant::now();
        let mut process = command.spawn().expect("the program");
        loop {
            if let Some(status) = process.try_wait().unwrap() {
                panic!("the server ended with {status}:\n{}", self.log());
            }
            if let Some(channel) = self.answered().await {
                return (Server { process, channel }, from.elapsed());
            }
            assert!(from.elapsed() < PATIENCE, "the server did not come up:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }

    async fn answered(&self) -> Option<Channel> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.config.listen.address)).unwrap();
        let channel = endpoint.connect().await.ok()?;
        let mut access = AccessServiceClient::new(channel.clone());
        access.who_am_i(with(&self.operator, pb::WhoAmIRequest {})).await.ok()?;
        Some(channel)
    }

    /// What the server has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("server.log")).unwrap_or_default()
    }

    /// `PRAGMA integrity_check` over a copy of the files as they lie there.
    pub fn integrity(&self) -> String {
        let copy = tempfile::tempdir().unwrap();
        for file in ["vault.db", "vault.db-wal"] {
            let from = self.config.data_dir.join(file);
            if from.exists() {
                std::fs::copy(from, copy.path().join(file)).unwrap();
            }
        }
        let conn = rusqlite::Connection::open(copy.path().join("vault.db")).unwrap();
        conn.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap()
    }
}

/// The running program. It is killed when this is dropped.
pub struct Server {
    process: Child,
    pub channel: Channel,
}

impl Server {
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// As a power switch does to a process: SIGKILL, and waits until it is gone.
    pub fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Waits until it has ended by itself, as it was told elsewhere.
    pub fn ended(mut self) {
        self.process.wait().unwrap();
    }

    /// Closes the connection of this side; the program goes on.
    pub fn hang_up(mut self) -> impl Sized {
        let nowhere = Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
        drop(std::mem::replace(&mut self.channel, nowhere));
        self
    }

    /// SIGTERM; ends well.
    pub fn stop(mut self) {
        let told = Command::new("kill").args(["-TERM", &self.pid().to_string()]).status().unwrap();
        assert!(told.success() && self.process.wait().unwrap().success(), "SIGTERM ends it well");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A small tmpfs over a directory.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one of `kib` KiB over `path`, which is made if it is not there.
    pub fn mount(path: PathBuf, kib: u64) -> SmallDisk {
        std::fs::create_dir_all(&path).unwrap();
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={kib}k"), "tmpfs"]).arg(&path));
        SmallDisk(path)
    }

    /// Another size.
    pub fn resize(&self, kib: u64) {
        run(Command::new("mount").args(["-o", &format!("remount,size={kib}k")]).arg(&self.0));
    }

    /// Fills what is left but for `bytes`.
    pub fn fill(&self, bytes: u64) {
        let mut file = std::fs::File::create(self.0.join("ballast")).unwrap();
        while file.write_all(&[7; 4096]).is_ok() {}
        let length = file.metadata().unwrap().len();
        file.set_len(length.saturating_sub(bytes)).unwrap();
    }

    /// Gives the space back.
    pub fn free(&self) {
        std::fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn run(command: &mut Command) {
    let done = command.output().expect("the command `mount`");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "mounting a tmpfs needs root or CAP_SYS_ADMIN: {said}");
}
