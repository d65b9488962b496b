//! What `pii-vault doctor` says of the threat model, on machines set up well and badly.

use std::collections::BTreeMap;

use pii_vault::config::RootKekSource;
use pii_vault::server::promises::Adversary;
use serde_json::Value as Json;

use crate::server::Place;

/// Of each adversary whether the promise is kept, why, and what to change.
fn promises(place: &Place) -> BTreeMap<String, (String, String, String)> {
    let done = place.command(&["doctor", "--json"]).output().unwrap();
    let said: Json = serde_json::from_slice(&done.stdout).expect("JSON");
    let text = |promise: &Json, key: &str| promise[key].as_str().unwrap().to_owned();
    let list = said["promises"].as_array().unwrap().iter();
    list.map(|p| (text(p, "adversary"), (text(p, "kept"), text(p, "because"), text(p, "change")))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_tells_of_each_promise_whether_it_is_kept_and_what_to_change() {
    let mut place = Place::new(tempfile::tempdir().unwrap(), 2).await;
    let well = promises(&place);
    let model = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/THREAT_MODEL.md")).unwrap();
    let named = model.lines().filter(|line| line.starts_with("| A")).count();
    assert_eq!((well.len(), named), (Adversary::ALL.len(), Adversary::ALL.len()));
    for (id, (kept, because, change)) in &well {
        assert!(model.contains(&format!("| {id} |")), "{id}");
        assert!(!because.is_empty(), "{id}");
        assert_eq!(change.is_empty(), kept == "yes", "{id} {change}");
    }
    for id in ["A2", "A3", "A4", "A5", "A6", "A7", "A8", "A9"] {
        assert_eq!(well[id].0, "yes", "{id}: {}", well[id].1);
    }
    // The test's root key is a file on the disk of the data.
    assert_eq!(well["A1"].0, "no");
    assert!(well["A1"].2.starts_with("root_kek"), "{}", well["A1"].2);
    let secret = place.config.root_kek.take();
    let Some(RootKekSource::File { path }) = &secret else { panic!("a file") };
    let key = std::fs::read(path).unwrap();
    place.config.root_kek = Some(RootKekSource::Env { name: "TEST_ROOT_KEY".into() });
    let command = |place: &Place| {
        let mut command = place.command(&["doctor", "--json"]);
        command.env("TEST_ROOT_KEY", String::from_utf8(key.clone()).unwrap().trim());
        serde_json::from_slice::<Json>(&command.output().unwrap().stdout).unwrap()
    };
    assert_eq!(command(&place)["promises"][0]["kept"], "yes");
    place.config.root_kek = secret;

    let own = place.config.listen.address;
    place.config.listen.address.set_ip(std::net::Ipv4Addr::UNSPECIFIED.into());
    place.config.listen.allow_plaintext_non_loopback = true;
    assert_eq!(promises(&place)["A6"].0, "no");
    place.config.listen.address = own;

    let (server, _) = place.serve().await;
    let beside = promises(&place);
    for id in ["A3", "A9"] {
        assert_eq!(beside[id].0, "unknown", "a server has it open");
    }
    assert_eq!(beside["A2"].0, "yes");
    server.stop();

    std::fs::rename(&place.config.keeper.paths[0], place.config.data_dir.join("keeper")).unwrap();
    place.config.keeper.paths[0] = place.config.data_dir.join("keeper");
    assert_eq!(promises(&place)["A2"].0, "no");
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_tells_whether_somebody_else_keeps_checkpoints() {
    let mut place = Place::new(tempfile::tempdir().unwrap(), 1).await;
    let said = |place: &Place| {
        let done = place.command(&["doctor", "--json"]).output().unwrap();
        let said: Json = serde_json::from_slice(&done.stdout).expect("JSON");
        let all = said["findings"].as_array().unwrap().clone();
        let text = |one: &Json, key: &str| one[key].as_str().unwrap().to_owned();
        let mut about = all.iter().filter(|one| text(one, "about").starts_with("audit.anchors"));
        // Beside a server that has tried none yet nothing is said of them.
        let Some(one) = about.next() else { return Default::default() };
        (text(one, "about"), text(one, "verdict"), text(one, "finding"), text(one, "change"))
    };
    let (about, verdict, finding, change) = said(&place);
    assert_eq!((about.as_str(), verdict.as_str()), ("audit.anchors", "doubtful"));
    assert!(finding.starts_with("nobody else keeps checkpoints") && !change.is_empty(), "{finding} {change}");
    // Not there yet.
    let other = place.dir.path().join("other");
    place.config.audit.anchors = vec![format!("file:{}", other.join("anchor.jsonl").display())];
    place.config.jobs.checkpoint_s = 1;
    let (server, _) = place.serve().await;
    until("it is said that it takes none", || said(&place).1 == "doubtful").await;
    let (about, _, finding, change) = said(&place);
    assert_eq!(about, "audit.anchors[0]");
    assert!(finding.starts_with("it takes no checkpoint") && change.contains("log says why"), "{finding} {change}");
    server.stop();
    assert_eq!(said(&place).2, "it has not taken a checkpoint yet");
    std::fs::create_dir(&other).unwrap();
    let (server, _) = place.serve().await;
    until("it takes them", || said(&place).2 == "it takes checkpoints").await;
    server.stop();
    let (_, verdict, finding, _) = said(&place);
    assert!(verdict == "good" && finding.starts_with("it took the checkpoint of 20"), "{verdict} {finding}");
}

pub async fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !holds() {
        assert!(begun.elapsed().as_secs() < 60, "{what}");
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
}
