//! Checkpoints at another party's: a file, and an endpoint that checks each request strictly. Outages are caught up with,
//! and a history that was replaced together with its checkpoints is caught by the one that somebody else kept.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use pii_vault::audit::{Chain, ChainHead, Checkpoint, goes_on_from};
use pii_vault::clock::DAY_MS;
use pii_vault::grpc::pb;
use pii_vault::ids::TenantNo;
use pii_vault::jobs::{Job, run_once};
use pii_vault::server::Node;
use pii_vault::vault::read::Select;

use crate::erase::{key, person};
use crate::harness::*;

/// The gauges of places are of the whole program.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

const TOKEN: &str = "a-token-of-the-notary";

/// A head of a checkpoint as it is asked about.
pub fn head_of(checkpoint: &Checkpoint, tenant: TenantNo, chain: Chain) -> pb::AuditHead {
    let head = checkpoint.head(tenant, chain).expect("a head");
    let chain = match chain {
        Chain::Change => pb::AuditChain::Changes,
        Chain::Read => pb::AuditChain::Reads,
    };
    let (chain, hash) = (chain as i32, head.hash.to_vec().into());
    pb::AuditHead { tenant_number: tenant.0, chain, position: head.seq, hash }
}

/// Whether what the server proves shows, without its word, that it goes on from each head of these checkpoints.
async fn proven(t: &TestVault, kept: &[Checkpoint]) -> Vec<(ChainHead, bool)> {
    let call = t.node.vault.local_call(TenantNo::VAULT).unwrap();
    let mut heads: Vec<ChainHead> = kept.iter().flat_map(|one| one.heads().iter().copied()).collect();
    heads.retain(|one| one.head.seq > 0);
    heads.sort_by_key(|one| (one.tenant, one.chain, one.head.seq));
    heads.dedup();
    let chains = t.node.vault.prove_extensions(&call, &heads).await.expect("prove");
    let of = |head: &ChainHead| (head.tenant, head.chain);
    let mut all = Vec::new();
    for heads in heads.chunk_by(|a, b| of(a) == of(b)) {
        let chain = chains.iter().find(|one| of(&one.present.head()) == of(&heads[0])).expect("each is answered for");
        all.extend(heads.iter().copied().zip(goes_on_from(heads, &chain.present, &chain.steps)));
    }
    all
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mood {
    Well,
    Status(u16),
    Cut,
}

/// What the endpoint took, and what it was asked wrongly.
struct Notary {
    address: SocketAddr,
    mood: Arc<Mutex<Mood>>,
    taken: Arc<Mutex<Vec<Bytes>>>,
    wrong: Arc<Mutex<Vec<String>>>,
}

impl Notary {
    async fn start() -> Notary {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let notary =
            Notary { address, mood: Arc::new(Mutex::new(Mood::Well)), taken: Arc::default(), wrong: Arc::default() };
        let (mood, taken, wrong) = (notary.mood.clone(), notary.taken.clone(), notary.wrong.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (mood, taken, wrong) = (mood.clone(), taken.clone(), wrong.clone());
                let serve = hyper::service::service_fn(move |request| {
                    answer(request, *mood.lock(), taken.clone(), wrong.clone())
                });
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), serve));
            }
        });
        notary
    }

    fn is(&self, mood: Mood) {
        *self.mood.lock() = mood;
    }

    fn times(&self, public: [u8; 32]) -> Vec<i64> {
        let read = |bytes: &Bytes| Checkpoint::from_json(bytes, &[public]).expect("a signed checkpoint").at().0;
        self.taken.lock().iter().map(read).collect()
    }
}

async fn answer(
    request: Request<Incoming>,
    mood: Mood,
    taken: Arc<Mutex<Vec<Bytes>>>,
    wrong: Arc<Mutex<Vec<String>>>,
) -> Result<Response<Full<Bytes>>, std::io::Error> {
    let say = |status: u16| {
        let answer = Response::builder().status(StatusCode::from_u16(status).unwrap());
        Ok(answer.header("location", "/elsewhere").body(Full::new(Bytes::from("{}"))).unwrap())
    };
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    let right = parts.method == Method::POST
        && parts.uri.path() == "/pii/vault"
        && header("content-type") == "application/json"
        && header("content-length") == body.len().to_string()
        && header("authorization") == format!("Bearer {TOKEN}");
    if !right {
        wrong.lock().push(format!("{parts:?}"));
        return say(400);
    }
    match mood {
        Mood::Cut => Err(std::io::Error::other("cut")),
        Mood::Status(status) => say(status),
        Mood::Well => {
            taken.lock().push(body);
            say(201)
        }
    }
}

async fn read(t: &TestVault, tenant: TenantNo, times: usize) {
    let call = t.call(tenant);
    for _ in 0..times {
        let (service, select) = (purpose(&call, "service"), Select { partial: true, ..Select::default() });
        t.node.vault.get_fields(&call, &service, &key("usr_1"), &select).await.expect("read");
    }
}

fn lines(path: &Path) -> Vec<Vec<u8>> {
    let bytes = std::fs::read(path).unwrap_or_default();
    bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (path, kind) = (to.join(entry.file_name()), entry.file_type().unwrap());
        match kind.is_dir() {
            true => copy(&entry.path(), &path),
            false => drop(std::fs::copy(entry.path(), path).unwrap()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn anchors_get_every_day_in_order_through_outages_and_restarts() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let notary = Notary::start().await;
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join("mount/anchor.jsonl");
    let token = elsewhere.path().join("token");
    std::fs::write(&token, format!("{TOKEN}\n")).unwrap();
    let t = TestVault::with(|config| {
        let http = format!("http://{}/pii/vault", notary.address);
        config.audit.anchors = vec![http, format!("file:{}", file.display())];
        config.audit.anchor_token_file = token.clone();
    })
    .await;
    let tenant = t.tenant("jina-connect", JINA).await;
    person(&t, &t.call(tenant), "usr_1").await;
    let public = t.node.keyring.signing().public();
    let metrics = metrics_page();
    let age = |place: usize| -> f64 {
        let name = format!("{}{{place=\"{place}\"}}", pii_vault::telemetry::AUDIT_ANCHOR_AGE);
        let page = metrics.render();
        page.lines().find_map(|line| line.strip_prefix(&name)?.trim().parse().ok()).expect("the gauge")
    };
    let mut options = t.config.jobs_options();
    let day = async |t: &TestVault, options: &pii_vault::jobs::JobsOptions, times: usize| {
        read(t, tenant, times).await;
        for job in [Job::Checkpoint, Job::Publish] {
            run_once(job, &t.node.vault, &t.node.backups, options, 1_000).await.expect("a job never fails for a place");
        }
    };

    // The file's directory is not there; the endpoint takes its checkpoint all the same.
    day(&t, &options, 1).await;
    assert_eq!(notary.times(public), [START.0]);
    assert!(age(0) == 0.0 && !file.exists());
    // Outages of each kind, a day each. Nothing is taken, and nothing is lost.
    std::fs::create_dir(file.parent().unwrap()).unwrap();
    for (n, mood) in [Mood::Status(503), Mood::Cut, Mood::Status(302), Mood::Status(403)].into_iter().enumerate() {
        notary.is(mood);
        t.clock.advance_ms(DAY_MS);
        day(&t, &options, 1).await;
        assert_eq!(notary.times(public).len(), 1, "{mood:?}");
        assert_eq!(age(0), 86_400.0 * (n + 1) as f64, "the age of the last one that was taken");
        assert_eq!(age(1), 0.0);
    }
    assert_eq!(lines(&file).len(), 5, "the file caught up with the first day, and never waited for the other place");
    let t = t.restart().await;
    options = t.config.jobs_options();
    notary.is(Mood::Well);
    t.clock.advance_ms(DAY_MS);
    day(&t, &options, 1).await;
    let expected: Vec<i64> = (0..6).map(|n| START.0 + n * DAY_MS).collect();
    assert_eq!(notary.times(public), expected, "each day once, in order");
    assert_eq!(lines(&file).len(), 6);
    for line in lines(&file) {
        Checkpoint::from_json(&line, &[public]).expect("a line is a signed checkpoint");
    }
    assert_eq!((age(0), age(1)), (0.0, 0.0));
    // Where nothing happened there is nothing to send, and no alarm.
    let nothing = run_once(Job::Publish, &t.node.vault, &t.node.backups, &options, 1_000).await.expect("publish");
    assert_eq!(nothing.done, 0);
    assert_eq!(*notary.wrong.lock(), Vec::<String>::new());

    // Each day's, and those of one day that were superseded, are beginnings of what is signed later.
    let mut kept: Vec<Checkpoint> =
        lines(&file).iter().map(|line| Checkpoint::from_json(line, &[public]).expect("signed")).collect();
    for _ in 0..3 {
        t.clock.advance_ms(60_000);
        read(&t, tenant, 2).await;
        kept.push(t.node.vault.make_checkpoint(t.now()).await.expect("checkpoint"));
    }
    t.clock.advance_ms(DAY_MS);
    read(&t, tenant, 3).await;
    let all = proven(&t, &kept).await;
    assert!(all.len() > 9 && all.iter().all(|(_, goes_on)| *goes_on), "{all:?}");
    // One alone, of the middle of a day.
    let all = proven(&t, &kept[7..8]).await;
    assert!(!all.is_empty() && all.iter().all(|(_, goes_on)| *goes_on), "{all:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn t28_a_history_replaced_with_its_checkpoints_is_caught_by_an_anchored_one() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join("anchor.jsonl");
    let t = TestVault::with(|config| config.audit.anchors = vec![format!("file:{}", file.display())]).await;
    let tenant = t.tenant("jina-connect", JINA).await;
    person(&t, &t.call(tenant), "usr_1").await;
    read(&t, tenant, 3).await;
    let TestVault { dir, config, clock, node, recovery } = t;
    node.close().await;
    // Somebody with the machine keeps a whole copy: data, keeper, keys.
    let early = elsewhere.path().join("early");
    copy(dir.path(), &early);
    let open = async || Node::open(&config, clock.clone()).await.expect("open");
    let t = TestVault { dir, config: config.clone(), clock: clock.clone(), node: open().await, recovery };
    read(&t, tenant, 7).await;
    let options = t.config.jobs_options();
    for job in [Job::Checkpoint, Job::Publish] {
        run_once(job, &t.node.vault, &t.node.backups, &options, 1_000).await.expect("a job");
    }
    let public = t.node.keyring.signing().public();
    let anchored = Checkpoint::from_json(&lines(&file)[0], &[public]).expect("anchored");
    let all = proven(&t, std::slice::from_ref(&anchored)).await;
    assert!(!all.is_empty() && all.iter().all(|(_, goes_on)| *goes_on), "{all:?}");
    let vault = |t: &TestVault| t.node.vault.local_call(TenantNo::VAULT).unwrap();
    let verdicts = t.node.vault.verify_audit(&vault(&t), anchored.heads()).await.expect("verify");
    assert!(verdicts.iter().all(|verdict| verdict.bad.is_none()), "{verdicts:?}");
    assert!(verdicts.iter().any(|verdict| verdict.tenant == tenant && verdict.compared == 1));

    // The same vault with another history of those hours, longer than the true one, and its own signed checkpoints.
    let TestVault { dir, config, clock, node, recovery } = t;
    node.close().await;
    for part in ["data", "keeper"] {
        std::fs::remove_dir_all(dir.path().join(part)).unwrap();
        copy(&early.join(part), &dir.path().join(part));
    }
    let t = TestVault { dir, config: config.clone(), clock: clock.clone(), node: open().await, recovery };
    // The same reads at the same moment would be the same history.
    t.clock.advance_ms(1);
    read(&t, tenant, 40).await;
    t.node.vault.make_checkpoint(t.now()).await.expect("checkpoint");
    let blind = t.node.vault.verify_audit(&vault(&t), &[]).await.expect("verify");
    assert!(blind.iter().all(|verdict| verdict.bad.is_none()), "by itself it is whole: {blind:?}");
    let own = t.node.vault.verify_audit(&t.call(tenant), &[]).await.expect("verify");
    assert!(own.iter().all(|verdict| verdict.bad.is_none()), "{own:?}");
    let seen = t.node.vault.verify_audit(&vault(&t), anchored.heads()).await.expect("verify");
    let caught = seen.iter().find(|one| one.tenant == tenant && one.chain == Chain::Read).unwrap();
    assert!(caught.bad.is_some() && caught.compared == 0, "{seen:?}");
    // And it cannot be proven to go on, whatever that server says of itself.
    let all = proven(&t, std::slice::from_ref(&anchored)).await;
    let reads = all.iter().find(|(head, _)| head.tenant == tenant && head.chain == Chain::Read).unwrap();
    assert!(!reads.1, "{all:?}");
    // A tenant's own key compares its own chains alone, whatever else it names.
    let own = t.node.vault.verify_audit(&t.call(tenant), anchored.heads()).await.expect("verify");
    assert_eq!(own.len(), 2);
    assert!(own.iter().any(|verdict| verdict.bad.is_some()));
}
