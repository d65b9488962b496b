//! What operators are told: alarms, dashboard, and the commands of `docs/OPERATIONS.md`, each run as it stands there.

use std::process::Command;
use std::time::Duration;

use pii_vault::telemetry::DESCRIBED;
use serde_json::Value as Json;

use crate::doctor::until;
use crate::lost::{erase, nightly, put};
use crate::server::Place;

const RULES: &str = include_str!("../../packaging/prometheus/pii-vault.rules.yml");
const DASHBOARD: &str = include_str!("../../packaging/grafana/pii-vault.json");
/// The manual, read when the test runs.
fn page() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/OPERATIONS.md")).unwrap()
}
const PROMETHEUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/prometheus");

/// Names of metrics in a text, without the suffixes of a histogram's series.
fn metrics(text: &str) -> Vec<&str> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let names = text.match_indices("pii_vault_").map(|(at, _)| &text[at..]);
    names.map(|rest| rest[..rest.find(|c| !word(c)).unwrap_or(rest.len())].trim_end_matches("_bucket")).collect()
}

/// The commands of the page's blocks of one kind, in order, without the program's name.
fn commands(kind: &str) -> Vec<String> {
    let (head, page) = (format!("```console {kind}\n"), page());
    let blocks = page.split(head.as_str()).skip(1);
    let texts = blocks.map(|rest| rest.split("```").next().unwrap());
    texts
        .flat_map(|text| text.lines().map(|line| line.strip_prefix("$ pii-vault ").expect("a command").to_owned()))
        .collect()
}

#[test]
fn every_metric_is_on_the_dashboard_and_every_alarm_has_its_page() {
    let known: Vec<&str> = DESCRIBED.iter().map(|(name, _)| *name).collect();
    let dashboard: Json = serde_json::from_str(DASHBOARD).unwrap();
    let shown = metrics(DASHBOARD);
    assert!(dashboard["panels"].as_array().unwrap().len() > known.len());
    for name in &known {
        assert!(shown.contains(name), "{name} is on no panel");
    }
    for name in shown.iter().chain(&metrics(RULES)) {
        assert!(known.contains(name), "nobody emits {name}");
    }
    let alarms: Vec<&str> = RULES.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(!alarms.is_empty());
    for alarm in alarms {
        assert!(page().contains(&format!("\n### {alarm}\n")), "{alarm} has no page");
        let link = format!("docs/OPERATIONS.md#{}", alarm.to_lowercase());
        assert!(RULES.contains(&link), "{alarm} does not link its page");
    }
}

#[test]
fn every_alarm_fires_where_it_should_and_none_where_all_is_well() {
    for arguments in [["check", "rules", "pii-vault.rules.yml"], ["test", "rules", "pii-vault.test.yml"]] {
        let done = Command::new("promtool").args(arguments).current_dir(PROMETHEUS).output().expect("promtool");
        let told = [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert!(done.status.success(), "{arguments:?}: {told}");
    }
    let tried = std::fs::read_to_string(format!("{PROMETHEUS}/pii-vault.test.yml")).unwrap();
    for alarm in RULES.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(tried.matches(&format!("alertname: {alarm}\n")).count() >= 2, "{alarm} is not tried both ways");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_of_the_operations_manual_work_as_they_are_written() {
    let mut place = Place::new(tempfile::tempdir().unwrap(), 2).await;
    let anchor = place.dir.path().join("anchor.jsonl");
    place.config.audit.anchors = vec![format!("file:{}", anchor.display())];
    place.config.jobs.checkpoint_s = 1;
    let keys = place.keys(2).await;
    let (key, leaked) = (&keys[0], &keys[1]);
    let id = leaked.text.split('_').nth(2).expect("pv_live_ID_...");
    let (server, _) = place.serve().await;
    put(&server.channel, key, 0..6).await;
    erase(&server.channel, key, 0..2).await;
    nightly(&server.channel, &place.operator).await;
    let file = place.path("key");
    let run = |text: &str, line: &str| {
        std::fs::write(&file, text).unwrap();
        let address = format!("http://{}", place.config.listen.address);
        let with = [("PII_VAULT_SERVER", address.as_str()), ("PII_VAULT_ACCESS_KEY_FILE", &file)];
        let (ended, told) = place.line_with(line, &with);
        assert_eq!(ended, Some(0), "{line}: {told}");
        told
    };
    for line in commands("running") {
        run(&place.operator, &line.replace("TENANT", "jina"));
    }
    for line in commands("tenant") {
        run(&key.text, &line.replace("KEY", id).replace("ACTOR", &leaked.actor.to_string()));
    }
    let handed_on = || std::fs::read_to_string(&anchor).is_ok_and(|lines| lines.ends_with('\n'));
    until("others get a checkpoint", handed_on).await;
    let with_others = "audit verify --against anchor.jsonl --public-key vault-keys.txt";
    let told = run(&place.operator, &format!("{with_others} --json"));
    let told: Json = serde_json::from_str(&told).expect("JSON");
    assert!(told["checked_here"]["proven"].as_u64() > Some(0), "{told}");
    // Of a head that somebody else keeps and this vault never had.
    let kept = std::fs::read_to_string(&anchor).unwrap();
    let mut other: Json = serde_json::from_str(kept.lines().last().unwrap()).unwrap();
    other["heads"][0]["seq"] = 1_000_000.into();
    std::fs::write(place.path("other.jsonl"), format!("{kept}{other}\n")).unwrap();
    let address = format!("http://{}", place.config.listen.address);
    std::fs::write(&file, &place.operator).unwrap();
    let with = [("PII_VAULT_SERVER", address.as_str()), ("PII_VAULT_ACCESS_KEY_FILE", &file)];
    let (ended, told) = place.line_with(&with_others.replace("anchor", "other"), &with);
    assert_eq!(ended, Some(7), "{told}");
    server.stop();
    tokio::time::sleep(Duration::from_millis(100)).await;
    an_altered_folder_is_refused(&place);
    for line in commands("stopped") {
        let (ended, told) = place.line(&line);
        assert_eq!(ended, Some(0), "{line}: {told}");
    }
}

/// What the manual's auditor checks, on the disk: nothing but the folder's own files, and none of them elsewhere.
fn an_altered_folder_is_refused(place: &Place) {
    let check = |what: &str, right: bool| {
        let (ended, told) = place.line("evidence verify evidence --public-key vault-keys.txt");
        assert_eq!(ended, Some(if right { 0 } else { 7 }), "{what}: {told}");
    };
    let dir = place.dir.path().join("evidence");
    let (page, away) = (dir.join("index.html"), place.dir.path().join("away.html"));
    let bytes = std::fs::read(&page).unwrap();
    check("as it was made", true);
    std::fs::write(&page, [&bytes[..], b" "].concat()).unwrap();
    check("a byte more", false);
    std::fs::rename(&page, &away).unwrap();
    check("a file less", false);
    std::fs::write(&away, &bytes).unwrap();
    std::os::unix::fs::symlink(&away, &page).unwrap();
    check("the same bytes behind a link", false);
    std::fs::remove_file(&page).unwrap();
    std::fs::write(&page, &bytes).unwrap();
    check("back again", true);
    for extra in ["extra", "audit/extra", "policy/extra/deeper"] {
        let path = dir.join(extra);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, b"").unwrap();
        check(extra, false);
        std::fs::remove_file(&path).unwrap();
    }
    std::fs::remove_dir(dir.join("policy/extra")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, dir.join("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    check("something that is no file", false);
    std::fs::remove_file(dir.join("fifo")).unwrap();
    std::fs::create_dir(dir.join("empty")).unwrap();
    check("a folder that no bundle has", false);
    std::fs::remove_dir(dir.join("empty")).unwrap();
    // A second bundle into the same folder overwrites nothing.
    let (ended, told) = place.line("evidence --output evidence");
    assert_ne!(ended, Some(0), "{told}");
}
