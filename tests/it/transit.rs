//! The root key in a transit engine: a stand-in that answers only what is asked exactly as OpenBao and Vault want it, and
//! that can be slow, sealed, throttling, garbled or gone.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use pii_vault::config::{Config, RootKekSource};
use pii_vault::grpc::pb;
use pii_vault::ids::*;
use pii_vault::receipt::rotation::{Fate, RotationRecord};
use pii_vault::server::Node;
use tonic::Code;

use crate::erase::person;
use crate::harness::*;
use crate::net::*;

const TOKEN: &str = "hvs.a-token-of-the-vault";

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mood {
    Well,
    /// So many requests fail with this status first.
    Fails(u16, u32),
    Slow,
    Garbled,
    /// Another key than the one that was encrypted.
    Lying,
    Cut,
}

struct Engine {
    address: SocketAddr,
    mood: Arc<Mutex<Mood>>,
    /// Requests that were not as the interface wants them.
    wrong: Arc<Mutex<Vec<String>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

#[derive(Default)]
struct Held(HashMap<String, String>);

impl Engine {
    async fn start() -> Engine {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mood, wrong, asked) = (Arc::new(Mutex::new(Mood::Well)), Arc::default(), Arc::default());
        let held = Arc::new(Mutex::new(Held::default()));
        let engine = Engine { address, mood, wrong, asked };
        let (mood, wrong, asked) = (engine.mood.clone(), engine.wrong.clone(), engine.asked.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (mood, wrong, asked, held) = (mood.clone(), wrong.clone(), asked.clone(), held.clone());
                let serve = hyper::service::service_fn(move |request| {
                    answer(request, mood.clone(), wrong.clone(), asked.clone(), held.clone())
                });
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), serve));
            }
        });
        engine
    }

    fn source(&self, config: &Config) -> RootKekSource {
        let dir = config.data_dir.parent().unwrap().join("secrets");
        std::fs::create_dir_all(&dir).unwrap();
        let token_file = dir.join("token");
        std::fs::write(&token_file, format!("{TOKEN}\n")).unwrap();
        std::fs::set_permissions(&token_file, std::fs::Permissions::from_mode(0o600)).unwrap();
        RootKekSource::Transit {
            address: format!("http://{}", self.address),
            key: "pii-vault".into(),
            token_file,
            mount: "transit".into(),
            ca: None,
            namespace: Some("team".into()),
            timeout_ms: 5_000,
            wait_s: 2,
            outage_h: 2,
            file: "transit.json".into(),
        }
    }

    fn is(&self, mood: Mood) {
        *self.mood.lock() = mood;
    }
}

/// The same configuration with other times.
fn waiting(config: &Config, timeout: u64, wait: u64) -> Config {
    let mut config = config.clone();
    if let Some(RootKekSource::Transit { timeout_ms, wait_s, .. }) = &mut config.root_kek {
        (*timeout_ms, *wait_s) = (timeout, wait);
    }
    config
}

async fn answer(
    request: Request<Incoming>,
    mood: Arc<Mutex<Mood>>,
    wrong: Arc<Mutex<Vec<String>>>,
    asked: Arc<Mutex<Vec<String>>>,
    held: Arc<Mutex<Held>>,
) -> Result<Response<Full<Bytes>>, std::io::Error> {
    let say = |status: u16, text: String| {
        let answer = Response::builder().status(StatusCode::from_u16(status).unwrap());
        Ok(answer.header("content-type", "application/json").body(Full::new(Bytes::from(text))).unwrap())
    };
    asked.lock().push(request.uri().path().to_owned());
    let now = *mood.lock();
    match now {
        Mood::Fails(status, times) => {
            *mood.lock() = if times > 1 { Mood::Fails(status, times - 1) } else { Mood::Well };
            return say(status, r#"{"errors":["Vault is sealed"]}"#.into());
        }
        Mood::Slow => tokio::time::sleep(Duration::from_secs(30)).await,
        Mood::Cut => return Err(std::io::Error::other("cut")),
        Mood::Garbled => return say(200, r#"{"data":{"plaintext":"!!"}}"#.into()),
        Mood::Well | Mood::Lying => {}
    }
    let (parts, body) = request.into_parts();
    let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    if header("x-vault-token") != TOKEN {
        return say(403, r#"{"errors":["permission denied"]}"#.into());
    }
    let body = body.collect().await.unwrap().to_bytes();
    let fields: HashMap<String, String> = serde_json::from_slice(&body).unwrap_or_default();
    let right = parts.method == Method::POST
        && header("x-vault-request") == "true"
        && header("x-vault-namespace") == "team"
        && header("content-type") == "application/json"
        && header("content-length") == body.len().to_string()
        && fields.len() == 1;
    if !right {
        wrong.lock().push(format!("{parts:?} {body:?}"));
        return say(400, r#"{"errors":["bad request"]}"#.into());
    }
    match (parts.uri.path(), fields.iter().next()) {
        ("/v1/transit/encrypt/pii-vault", Some((name, text))) if name == "plaintext" => {
            assert_eq!(BASE64.decode(text.as_bytes()).map(|raw| raw.len()), Ok(32));
            let ciphertext = format!("vault:v1:{}", held.lock().0.len());
            held.lock().0.insert(ciphertext.clone(), text.clone());
            say(200, format!(r#"{{"request_id":"1","data":{{"ciphertext":"{ciphertext}","key_version":1}}}}"#))
        }
        ("/v1/transit/decrypt/pii-vault", Some((name, text))) if name == "ciphertext" => {
            let plain = held.lock().0.get(text).cloned();
            match (plain, now) {
                (Some(_), Mood::Lying) => say(
                    200,
                    format!(r#"{{"data":{{"plaintext":"{}"}}}}"#, BASE64.encode(b"0123456789abcdef0123456789abcdef")),
                ),
                (Some(plain), _) => say(200, format!(r#"{{"data":{{"plaintext":"{plain}"}}}}"#)),
                (None, _) => say(400, r#"{"errors":["invalid ciphertext"]}"#.into()),
            }
        }
        other => {
            wrong.lock().push(format!("{other:?}"));
            say(404, r#"{"errors":[]}"#.into())
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_starts_from_a_transit_engine_and_waits_for_it_but_not_for_a_refusal() {
    let engine = Engine::start().await;
    let test = TestVault::with(|config| config.root_kek = Some(engine.source(config))).await;
    assert_eq!(test.node.vault.root_provider(), "transit");
    let test = {
        let tenant = test.tenant("jina", JINA).await;
        let call = test.call(tenant);
        person(&test, &call, "usr_1").await;
        let test = test.restart().await;
        let call = test.call(tenant);
        test.node.vault.get_subject(&call, &id("usr_1")).await.expect("there");
        test
    };
    assert_eq!(*engine.wrong.lock(), Vec::<String>::new());
    let TestVault { dir: _dir, config, clock, node, .. } = test;
    node.close().await;
    // Sealed, throttled, failing: it waits and tries again.
    for status in [503, 429, 500, 502] {
        engine.is(Mood::Fails(status, 2));
        let config = waiting(&config, 5_000, 60);
        Node::open(&config, clock.clone()).await.unwrap_or_else(|e| panic!("{status}: {e:#}")).close().await;
    }
    // What it refuses is not tried again; what stays away ends the start after its time.
    for (mood, tries) in [
        (Mood::Fails(403, 1), 1),
        (Mood::Garbled, 1),
        (Mood::Lying, 1),
        (Mood::Fails(503, 1_000), 3),
        (Mood::Slow, 2),
        (Mood::Cut, 3),
    ] {
        let config = waiting(&config, if mood == Mood::Slow { 300 } else { 5_000 }, 2);
        engine.is(mood);
        engine.asked.lock().clear();
        let Err(error) = Node::open(&config, clock.clone()).await else { panic!("{mood:?}") };
        let text = format!("{error:#}");
        assert!(!text.contains(TOKEN) && !text.contains("vault:v1"), "{text}");
        let asked = engine.asked.lock().len();
        assert!(if tries == 1 { asked == 1 } else { asked >= tries }, "{mood:?}: asked {asked} times");
    }
    engine.is(Mood::Well);
    Node::open(&config, clock.clone()).await.expect("well again").close().await;
    let mut far = config.clone();
    if let Some(RootKekSource::Transit { address, .. }) = &mut far.root_kek {
        *address = "ftp://127.0.0.1:1".into();
    }
    assert!(far.check().iter().any(|problem| problem.key == "root_kek.address"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_waits_until_k_of_n_shares_are_there() {
    let source = |file: std::path::PathBuf| RootKekSource::Passphrase {
        file: Some(file),
        env: None,
        credential: None,
        params: None,
    };
    let test = TestVault::with(|config| {
        let dir = config.data_dir.parent().unwrap().join("secrets");
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("passphrase");
        std::fs::write(&file, "correct horse battery\n").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        config.root_kek = Some(source(file));
    })
    .await;
    let TestVault { dir: _dir, mut config, clock, node, .. } = test;
    node.close().await;
    let directory = config.data_dir.parent().unwrap().join("shares");
    std::fs::create_dir(&directory).unwrap();
    config.root_kek = Some(RootKekSource::Shares { directory: directory.clone(), wait_s: 1, params: None });
    let shares = pii_vault::keyring::root::shares::split(b"correct horse battery", 2, 3).unwrap();
    let put = |n: usize| {
        let path = directory.join(format!("holder-{n}.share"));
        std::fs::write(&path, shares[n].as_bytes()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    put(2);
    let Err(error) = Node::open(&config, clock.clone()).await else { panic!("one share is not enough") };
    assert!(format!("{error:#}").contains("1 shares of the passphrase are there, 2 are needed"), "{error:#}");
    if let Some(RootKekSource::Shares { wait_s, .. }) = &mut config.root_kek {
        *wait_s = 30;
    }
    let (opened, ()) = tokio::join!(Node::open(&config, clock.clone()), async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        put(0);
    });
    let node = opened.expect("two are");
    assert_eq!(node.vault.root_provider(), "shares");
    node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_key_moves_to_an_engine_online_and_an_outage_is_survived_for_its_time() {
    let engine = Engine::start().await;
    let test = TestVault::with(|config| config.root_kek_next = Some(engine.source(config))).await;
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
    let other = keys.rotate_keys(with(&operator, go("file"))).await.unwrap_err();
    assert_eq!(reason(&other), "WRONG_STATE", "the next one is of another provider");
    keys.rotate_keys(with(&operator, go("transit"))).await.expect("move");
    let vault = running.test.node.vault.clone();
    let own = vault.job_call(vault.tenant(TenantNo::VAULT).unwrap());
    vault.go_on_rotations(&own, 10_000).await.expect("it ends");
    assert_eq!(vault.root_provider(), "transit");
    let list = pb::ListRotationsRequest::default();
    let records = keys.list_rotations(with(&operator, list)).await.expect("list").into_inner().rotations;
    let record = RotationRecord::verify(&records[0].record, &vault.receipt_keys()).expect("verifies").record;
    assert_eq!((record.from.provider.as_deref(), record.to.provider.as_deref()), (Some("file"), Some("transit")));
    assert_eq!(record.fate, Fate::Destroyed, "the old file");

    let put = async |subject: &str| {
        let mut records = pb::record_service_client::RecordServiceClient::new(running.channel.clone());
        let values = vec![text_value(NAME, "Jane Roe")];
        let context = for_purpose(SERVICE);
        let put = pb::PutFieldsRequest { subject: subject.into(), values, context, ..Default::default() };
        records.put_fields(with(&app, put)).await
    };
    assert!(vault.watch_root().await);
    engine.is(Mood::Fails(503, 1_000));
    assert!(vault.watch_root().await, "from memory");
    put("during").await.expect("served from memory");
    running.test.clock.advance_ms(2 * 3_600_000 - 1_000);
    assert!(vault.watch_root().await);
    running.test.clock.advance_ms(1_000);
    assert!(!vault.watch_root().await, "for two hours");
    let refused = put("too-late").await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "SEALED"));
    let status = keys.get_seal_status(with(&operator, pb::GetSealStatusRequest {})).await.expect("operators go on");
    let status = status.into_inner();
    assert!(status.sealed && status.root_provider == "transit");
    engine.is(Mood::Well);
    assert!(vault.watch_root().await);
    put("back").await.expect("served again");
    assert_eq!(*engine.wrong.lock(), Vec::<String>::new());
    drop((vault, own));
    let test = running.stop().await;
    test.node.close().await;
    let _kept = (test.dir, test.recovery);
}
