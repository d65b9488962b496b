//! `pii-vault bench` at its smallest: every row is still measured. What the figures are is not tested here.

use std::process::Command;

#[test]
fn every_row_of_the_bench_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let output = Command::new(env!("CARGO_BIN_EXE_pii-vault"))
        .args(["bench", "--smoke", "--json", "--dir"])
        .arg(&run)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert!(!run.exists(), "the directory of the run was left behind");
    let table: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = table["rows"].as_array().unwrap();
    for measure in [
        "fdatasync",
        "Argon2id verify",
        "control: echo against itself",
        "hot GetFields of 500 subjects, rate",
        "hot GetFields of 500 subjects, server CPU",
        "GetFields at random of 500 subjects, rate",
        "BatchGetFields",
        "hot GetFields, largest policy with consent and recipient, rate",
        "hot GetFields, largest policy with consent and recipient, server CPU",
        "PlanPolicy over 500 subjects",
        "GetReport over 500 subjects",
        "audit export to a synced file, 2000 entries",
        "audit export to a synced file, beside the engine",
        "memory idle",
        "memory with 500 subjects",
        "ready after start, idle",
        "ready after start, with 500 subjects",
        "covering rule: durable PutFields, 256 in flight",
        "covering rule: control, without against without",
        "key archive of 500 subjects",
        "the same, size of a slot",
        "backup data of 500 subjects",
        "p99 of 800 paced reads a second, beside backup data",
        "p99 of 800 paced reads a second, control of backup data: at rest again",
        "restore of 500 subjects with re-key and tags",
        "the same, most memory",
        "VerifyPassword, ",
        "VerifyApiKey of keys used before, rate",
        "1,000 forged API keys a second, server CPU",
        "p99 of 800 paced reads a second, beside logins",
        "logins that were answered in that storm",
        "memory in that storm",
        "import of ",
        "durable PutFields, 256 in flight",
        "root key rotation of 10 tenants",
        "index rotation: every tag of ",
        "tree rotation of ",
        "data key rotation of ",
        "p99 of 800 paced reads a second, beside a data key rotation",
        "p99 of 800 paced reads a second, control of a data key rotation: at rest again",
        "durable PutFields, 256 in flight, beside a data key rotation",
        "the rotation beside those puts",
        "EraseSubject alone",
        "EraseSubject, 64 in flight",
        "erasing 500 subjects in batches",
        "p99 of 800 paced reads a second, beside those batches",
        "EraseGroup of 500 subjects",
        "p99 of 800 paced reads a second, beside the group's erasure",
        "shredding one bucket of 500 values",
        "deleting its rows",
    ] {
        let found = rows.iter().find(|row| row["measure"].as_str().is_some_and(|name| name.starts_with(measure)));
        let row = found.unwrap_or_else(|| panic!("no row {measure:?} in {table:#}"));
        let figure = row["ours"]["median"].as_f64().unwrap_or_else(|| panic!("{measure} has no figure"));
        assert!(figure > 0.0, "{measure}: {row:#}");
    }
}
