//! The README as a stranger follows it: quickstart from an empty directory, then the first programs against it.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

fn binary() -> Command {
    Command::new(env!("CARGO_BIN_EXE_pii-vault"))
}

/// Stops the server also when a test fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn told(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn quickstart_erases_one_of_a_thousand_and_proves_it_from_an_old_copy() {
    let empty = tempfile::tempdir().unwrap();
    let output = binary().args(["quickstart", "--port", "0", "--exit"]).current_dir(empty.path()).output().unwrap();
    let text = told(&output);
    assert!(output.status.success(), "{text}");
    for line in [
        "1000 made-up people stored durably over TLS",
        "the same for marketing is refused",
        "the signed receipt verifies offline",
        "does not open",
        "999 of 999 living people open",
        "the erased person: 0 of 2 classes open",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }

    // The commands that the tour names work on what it left behind.
    let dir = empty.path().join("pii-vault-quickstart");
    let verified = binary()
        .args(["receipt", "verify"])
        .arg(dir.join("receipt.json"))
        .arg("--public-key")
        .arg(dir.join("public-key.txt"))
        .output()
        .unwrap();
    assert!(verified.status.success(), "{}", told(&verified));
    let proved = binary()
        .arg("prove")
        .arg("--config")
        .arg(dir.join("pii-vault.toml"))
        .arg("--copy")
        .arg(dir.join("copy-before-the-erasure"))
        .output()
        .unwrap();
    assert!(proved.status.success(), "{}", told(&proved));

    // It overwrites nothing.
    let again = binary().args(["quickstart", "--port", "0", "--exit"]).current_dir(empty.path()).output().unwrap();
    assert_eq!(again.status.code(), Some(2), "{}", told(&again));
}

#[test]
fn first_programs_in_python_and_rust_run_against_quickstart() {
    let empty = tempfile::tempdir().unwrap();
    let child = binary()
        .args(["quickstart", "--port", "0"])
        .current_dir(empty.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut running = Running(child);
    let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
    let (mut seen, mut server) = (String::new(), None);
    for line in lines.by_ref() {
        let line = line.unwrap();
        if let Some((_, rest)) = line.split_once("PII_VAULT_SERVER=https://") {
            server = rest.split_whitespace().next().map(str::to_owned);
        }
        seen.push_str(&line);
        seen.push('\n');
        if line.starts_with("Operations:") {
            break;
        }
    }
    let Some(server) = server else {
        let mut errors = String::new();
        running.0.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        panic!("quickstart did not come up:\n{seen}\n{errors}");
    };
    let dir = empty.path().join("pii-vault-quickstart");
    let files: Vec<PathBuf> =
        ["tls/ca.pem", "secrets/app.key", "secrets/dpo.key"].iter().map(|name| dir.join(name)).collect();

    let python = std::env::var("PII_VAULT_TEST_PYTHON")
        .expect("PII_VAULT_TEST_PYTHON names a Python with grpcio and grpcio-tools: run `bash tests/run.sh`");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let first =
        Command::new(python).arg(root.join("examples/python/first.py")).arg(&server).args(&files).output().unwrap();
    assert!(first.status.success(), "{}", told(&first));
    assert!(told(&first).contains("a read now says NOT_FOUND"), "{}", told(&first));

    // `cargo test` builds the examples beside the program.
    let example = Path::new(env!("CARGO_BIN_EXE_pii-vault")).parent().unwrap().join("examples/first");
    let first = Command::new(&example).arg(format!("https://{server}")).args(&files).output().unwrap();
    assert!(first.status.success(), "{}", told(&first));
    assert!(told(&first).contains("a read now says Some(NotFound)"), "{}", told(&first));

    // The worked login, in both languages.
    let python = std::env::var("PII_VAULT_TEST_PYTHON").expect("it was there above");
    let login =
        Command::new(python).arg(root.join("examples/python/login.py")).arg(&server).args(&files).output().unwrap();
    assert!(login.status.success(), "{}", told(&login));
    assert!(told(&login).contains("erased: password and API key say VERDICT_NO"), "{}", told(&login));
    let example = Path::new(env!("CARGO_BIN_EXE_pii-vault")).parent().unwrap().join("examples/login");
    let login = Command::new(&example).arg(format!("https://{server}")).args(&files).output().unwrap();
    assert!(login.status.success(), "{}", told(&login));
    assert!(told(&login).contains("erased: password and API key say NO"), "{}", told(&login));

    let stopped = Command::new("kill").args(["-INT", &running.0.id().to_string()]).status().unwrap();
    assert!(stopped.success());
    assert!(running.0.wait().unwrap().success(), "quickstart ends well when it is told to");
}

#[test]
fn quickstart_tours_the_other_tenants_with_samples_of_their_own() {
    for (tenant, samples, refused) in
        [("jiwa-ai", "instagram_token, phone", "brand_analysis"), ("jenny-erp", "order", "payments")]
    {
        let empty = tempfile::tempdir().unwrap();
        let args = ["quickstart", "--tenant", tenant, "--port", "0", "--exit"];
        let output = binary().args(args).current_dir(empty.path()).output().unwrap();
        let text = told(&output);
        assert!(output.status.success(), "{text}");
        let refusal = format!("the same for {refused} is refused");
        for line in [tenant, samples, &refusal, "does not open", "999 of 999 living people open"] {
            assert!(text.contains(line), "{line:?} is not in\n{text}");
        }
    }
    let output = binary().args(["quickstart", "--tenant", "acme"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", told(&output));
}
