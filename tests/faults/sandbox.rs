//! The server under the restrictions of the unit in `packaging/`: it does its work there, and they bite.

use std::process::Command;

use pb::record_service_client::RecordServiceClient;
use pii_vault::grpc::pb;

use crate::lost::{erase, nightly, put};
use crate::net::*;
use crate::server::Place;

const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/pii-vault.service");
const SANDBOX: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/sandbox.py");

/// The words in front of a command that is to run as the unit's service, with `writable` for its state directories.
fn sandboxed(writable: &std::path::Path) -> Vec<String> {
    let python = std::env::var("PII_VAULT_TEST_PYTHON").expect("PII_VAULT_TEST_PYTHON, which tests/run.sh sets");
    let writable = writable.display().to_string();
    ["unshare", "--mount", "--propagation", "private", &python, SANDBOX, UNIT, &writable, "--"]
        .map(String::from)
        .to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_does_its_work_under_the_unit_s_own_restrictions() {
    let place = Place::new(tempfile::tempdir().unwrap(), 2).await;
    let key = place.keys(1).await.remove(0);
    // The unit's user can't reach a build directory below somebody's home.
    let program = place.path("pii-vault");
    std::fs::copy(env!("CARGO_BIN_EXE_pii-vault"), &program).unwrap();
    let (server, _) = place.serve_as(&sandboxed(place.dir.path()), &program).await;
    put(&server.channel, &key, 0..20).await;
    erase(&server.channel, &key, 0..5).await;
    let mut records = RecordServiceClient::new(server.channel.clone());
    for n in 0..20 {
        let key_of = by_id(&format!("usr_{n}"));
        let get = pb::GetFieldsRequest { key: key_of, context: for_purpose(SERVICE), ..Default::default() };
        assert_eq!(records.get_fields(with(&key.text, get)).await.is_ok(), n >= 5, "person {n}");
    }
    nightly(&server.channel, &place.operator).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let says = |line: &str| status.lines().any(|l| l.split_whitespace().eq(line.split(' ')));
    for line in ["Uid: 65534 65534 65534 65534", "NoNewPrivs: 1", "Seccomp: 2", "CapBnd: 0000000000000000"] {
        assert!(says(line), "{line} in\n{status}");
    }
    // The limit that the unit asks for is above what some machines allow.
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    let unlimited = limits.lines().any(|l| l.starts_with("Max locked memory") && l.contains("unlimited"));
    assert_eq!(says("VmLck: 0 kB"), !unlimited, "its pages are locked where they can be");
    server.stop();
    assert_eq!(place.integrity(), "ok");
}

#[test]
fn the_restrictions_of_the_unit_bite() {
    let dir = tempfile::tempdir().unwrap();
    let tries = "
import ctypes, mmap, os, socket
def refused(what, call):
    try: call()
    except OSError: return
    raise SystemExit(f'{what} is possible')
open(DIR + '/own', 'w').close()
refused('writing outside of the state directories', lambda: open('/usr/pii-vault-test', 'w'))
refused('a raw socket', lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
refused('writable code', lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC))
refused('a disk', lambda: open('/dev/mem', 'rb'))
refused('being root again', lambda: os.setuid(0))
libc = ctypes.CDLL(None, use_errno=True)
for name, arguments in (('unshare', (0x10000000,)), ('mount', (0, 0, 0, 0, 0)), ('ptrace', (0, 0, 0, 0))):
    if getattr(libc, name)(*arguments) == 0 or ctypes.get_errno() != 1: raise SystemExit(f'{name} is possible')
";
    let script = tries.replace("DIR", &format!("'{}'", dir.path().display()));
    let words = sandboxed(dir.path());
    let done = Command::new(&words[0]).args(&words[1..]).args(["/usr/bin/python3", "-c", &script]).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// The exposure that `systemd-analyze security` computes, of 10.
#[test]
fn the_unit_s_exposure_stays_low() {
    let done = Command::new("systemd-analyze")
        .args(["security", "--offline=yes", "--threshold=15", UNIT])
        .output()
        .expect("systemd-analyze, which tests/run.sh installs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
}
