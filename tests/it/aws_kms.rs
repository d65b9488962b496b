//! The root key in AWS KMS. With the feature `aws-kms` by `bash tests/aws-kms.sh`, which starts moto, a stand-in for KMS, and
//! gives credentials; one of our own is slow, garbled, throttling, denying. Without it: refused by name.

use pii_vault::config::{Config, RootKekSource};
use pii_vault::server::Node;

use crate::harness::*;

fn source(endpoint: &str, key: &str, vault: &str) -> RootKekSource {
    RootKekSource::AwsKms {
        key: key.into(),
        region: "eu-central-1".into(),
        vault: vault.into(),
        endpoint: Some(endpoint.into()),
        timeout_ms: 5_000,
        wait_s: 2,
        outage_h: 2,
        file: "aws-kms.json".into(),
    }
}

#[test]
fn its_configuration_is_read_as_it_is_documented() {
    let text =
        r#"root_kek = { provider = "aws-kms", region = "eu-central-1", key = "alias/pii-vault", vault = "prod-eu" }"#;
    let config: Config = toml::from_str(text).expect("it reads");
    let Some(RootKekSource::AwsKms { key, vault, wait_s, .. }) = config.root_kek else { panic!() };
    assert_eq!((key.as_str(), vault.as_str(), wait_s), ("alias/pii-vault", "prod-eu", 60));
}

#[cfg(not(feature = "aws-kms"))]
#[tokio::test(flavor = "multi_thread")]
async fn a_program_without_the_feature_refuses_and_names_it() {
    let test = TestVault::new().await;
    let TestVault { dir: _dir, mut config, clock, node, .. } = test;
    node.close().await;
    config.root_kek = Some(source("https://kms.example.com", "alias/pii-vault", "prod"));
    let told = config.check();
    let told = told.iter().find(|problem| problem.key == "root_kek.provider").expect("a finding");
    assert!(told.rule.contains("--features aws-kms"), "{}", told.rule);
    let Err(error) = Node::open(&config, clock).await else { panic!("it opened") };
    assert!(pii_vault::causes::causes(&error).contains("without the feature `aws-kms`"), "{error:#}");
}

#[cfg(feature = "aws-kms")]
mod with_it {
    use std::collections::HashMap;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use bytes::Bytes;
    use data_encoding::BASE64;
    use http::{Method, Request, Response, StatusCode};
    use http_body_util::{BodyExt, Full};
    use hyper::body::Incoming;
    use hyper_util::rt::TokioIo;
    use parking_lot::Mutex;
    use pii_vault::grpc::pb;
    use pii_vault::ids::*;
    use pii_vault::receipt::rotation::Fate;
    use tonic::Code;

    use super::*;
    use crate::net::*;
    use crate::rotating::Scene;

    const ARN: &str = "arn:aws:kms:eu-central-1:123456789012:key/0b9c6c1e-53a5-4f8e-9a51-2b7d3a1f6a10";

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Mood {
        Well,
        /// So many requests fail with this status and code first.
        Fails(u16, &'static str, u32),
        Slow,
        /// JSON that breaks off.
        Garbled,
        /// A key of another length.
        Short,
        /// Another key than the one that was encrypted.
        Lying,
        /// Another key of KMS opened it.
        OtherKey,
        Cut,
    }

    #[derive(Clone)]
    struct Kms {
        endpoint: String,
        mood: Arc<Mutex<Mood>>,
        /// Requests that were not as the interface wants them.
        wrong: Arc<Mutex<Vec<String>>>,
        asked: Arc<Mutex<u32>>,
        held: Arc<Mutex<HashMap<String, (String, String)>>>,
    }

    impl Kms {
        async fn start() -> Kms {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let endpoint = format!("http://{}", listener.local_addr().unwrap());
            let mood = Arc::new(Mutex::new(Mood::Well));
            let kms = Kms { endpoint, mood, wrong: Arc::default(), asked: Arc::default(), held: Arc::default() };
            let serving = kms.clone();
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let kms = serving.clone();
                    let serve = hyper::service::service_fn(move |request| kms.clone().answer(request));
                    let server = hyper::server::conn::http1::Builder::new();
                    tokio::spawn(server.serve_connection(TokioIo::new(stream), serve));
                }
            });
            kms
        }

        fn is(&self, mood: Mood) {
            *self.mood.lock() = mood;
        }

        async fn answer(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, std::io::Error> {
            let say = |status: u16, text: String| {
                let answer = Response::builder().status(StatusCode::from_u16(status).unwrap());
                Ok(answer.header("content-type", "application/x-amz-json-1.1").body(Full::new(text.into())).unwrap())
            };
            *self.asked.lock() += 1;
            let now = *self.mood.lock();
            match now {
                Mood::Fails(status, code, times) => {
                    self.is(if times > 1 { Mood::Fails(status, code, times - 1) } else { Mood::Well });
                    return say(status, format!(r#"{{"__type":"{code}","message":"no"}}"#));
                }
                Mood::Slow => tokio::time::sleep(Duration::from_secs(30)).await,
                Mood::Cut => return Err(std::io::Error::other("cut")),
                Mood::Garbled => return say(200, r#"{"Plaintext": "AAA"#.into()),
                _ => {}
            }
            let (parts, body) = request.into_parts();
            let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
            let body = body.collect().await.unwrap().to_bytes();
            let fields: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            let text = |name: &str| fields[name].as_str().unwrap_or_default().to_owned();
            let context = fields["EncryptionContext"]["pii-vault:vault"].as_str().unwrap_or_default().to_owned();
            let signed = header("authorization");
            let right = parts.method == Method::POST
                && parts.uri.path() == "/"
                && header("content-type") == "application/x-amz-json-1.1"
                && signed.starts_with("AWS4-HMAC-SHA256 Credential=")
                && signed.contains("/eu-central-1/kms/aws4_request")
                && fields["EncryptionContext"].as_object().is_some_and(|all| all.len() == 1)
                && !context.is_empty();
            if !right {
                self.wrong.lock().push(format!("{parts:?} {body:?}"));
                return say(400, r#"{"__type":"ValidationException"}"#.into());
            }
            let mut held = self.held.lock();
            match header("x-amz-target") {
                "TrentService.Encrypt" if text("KeyId") == "alias/pii-vault" => {
                    let sealed = BASE64.encode(format!("{:064}", held.len()).as_bytes());
                    held.insert(sealed.clone(), (context, text("Plaintext")));
                    say(200, format!(r#"{{"CiphertextBlob":"{sealed}","KeyId":"{ARN}"}}"#))
                }
                "TrentService.Decrypt" if text("KeyId") == ARN => match held.get(&text("CiphertextBlob")) {
                    Some((bound, plain)) if *bound == context => {
                        let plain = match now {
                            Mood::Lying => BASE64.encode(b"0123456789abcdef0123456789abcdef"),
                            Mood::Short => BASE64.encode(b"0123456789abcdef"),
                            _ => plain.clone(),
                        };
                        let key = if now == Mood::OtherKey { "arn:aws:kms:other" } else { ARN };
                        say(200, format!(r#"{{"Plaintext":"{plain}","KeyId":"{key}"}}"#))
                    }
                    _ => say(400, r#"{"__type":"InvalidCiphertextException"}"#.into()),
                },
                other => {
                    self.wrong.lock().push(format!("{other} {body:?}"));
                    say(400, r#"{"__type":"NotFoundException"}"#.into())
                }
            }
        }
    }

    /// Where moto listens.
    fn moto() -> String {
        std::env::var("PII_VAULT_KMS").expect("run `bash tests/aws-kms.sh`, which starts moto")
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_vault_begins_and_starts_again_with_a_key_of_kms_for_itself_alone() {
        let test = TestVault::with(|config| config.root_kek = Some(source(&moto(), "alias/pii-vault", "prod"))).await;
        assert_eq!(test.node.vault.root_provider(), "aws-kms");
        let test = test.restart().await;
        let file = test.config.keeper.paths[0].join("aws-kms.json");
        let stored: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        assert!(stored["arn"].as_str().unwrap().starts_with("arn:aws:kms:eu-central-1:"), "{stored}");
        let TestVault { dir: _dir, mut config, clock, node, .. } = test;
        node.close().await;
        for (key, vault, says) in
            [("alias/pii-vault", "another", "InvalidCiphertext"), ("alias/other", "prod", "another key of KMS")]
        {
            config.root_kek = Some(source(&moto(), key, vault));
            let Err(error) = Node::open(&config, clock.clone()).await else { panic!("{key} {vault}") };
            assert!(pii_vault::causes::causes(&error).contains(says), "{}", pii_vault::causes::causes(&error));
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_root_key_moves_to_kms_online() {
        let test = TestVault::with(|config| {
            config.root_kek_next = Some(source(&moto(), "alias/pii-vault", "prod"));
        });
        let s = Scene::over(Running::over(test.await).await).await;
        s.person("ana").await;
        let go = |to: &str| pb::RotateKeysRequest {
            kind: pb::KeyKind::Root as i32,
            provider: to.into(),
            ..Default::default()
        };
        let other = s.keys().rotate_keys(with(&s.operator, go("transit"))).await.unwrap_err();
        assert_eq!(reason(&other), "WRONG_STATE");
        s.keys().rotate_keys(with(&s.operator, go("aws-kms"))).await.expect("move");
        s.go_on(TenantNo::VAULT).await;
        let record = s.record("").await;
        assert_eq!((record.from.provider.as_deref(), record.to.provider.as_deref()), (Some("file"), Some("aws-kms")));
        assert_eq!(record.fate, Fate::Destroyed, "the old file");
        let s = s.restart().await;
        assert_eq!(s.name_of("ana").await.unwrap(), "Jane Roe");
        assert_eq!(s.running.test.node.vault.root_provider(), "aws-kms");
        s.running.stop().await;
    }

    /// The same configuration with other times.
    fn waiting(config: &Config, timeout: u64, wait: u64) -> Config {
        let mut config = config.clone();
        if let Some(RootKekSource::AwsKms { timeout_ms, wait_s, .. }) = &mut config.root_kek {
            (*timeout_ms, *wait_s) = (timeout, wait);
        }
        config
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_start_waits_for_kms_but_not_for_a_refusal() {
        let kms = Kms::start().await;
        let from = source(&kms.endpoint, "alias/pii-vault", "prod");
        let test = TestVault::with(|config| config.root_kek = Some(from)).await;
        assert_eq!(*kms.wrong.lock(), Vec::<String>::new());
        let TestVault { dir: _dir, config, clock, node, .. } = test;
        node.close().await;
        // Throttled, failing: it waits and tries again.
        for (status, code) in [
            (400, "ThrottlingException"),
            (429, "TooManyRequests"),
            (500, "KMSInternalException"),
            (503, "ServiceUnavailable"),
            (400, "KeyUnavailableException"),
        ] {
            kms.is(Mood::Fails(status, code, 2));
            *kms.asked.lock() = 0;
            let config = waiting(&config, 5_000, 60);
            Node::open(&config, clock.clone()).await.unwrap_or_else(|e| panic!("{code}: {e:#}")).close().await;
            assert_eq!(*kms.asked.lock(), 3, "{code}");
        }
        // What it refuses is not tried again; what stays away ends the start after its time.
        for (mood, tries) in [
            (Mood::Fails(400, "AccessDeniedException", 1), 1),
            (Mood::Fails(400, "DisabledException", 1), 1),
            (Mood::Fails(400, "NotFoundException", 1), 1),
            (Mood::Fails(403, "UnrecognizedClientException", 1), 1),
            (Mood::Garbled, 1),
            (Mood::Short, 1),
            (Mood::Lying, 1),
            (Mood::OtherKey, 1),
            (Mood::Fails(400, "ThrottlingException", 1_000), 3),
            (Mood::Slow, 2),
            (Mood::Cut, 3),
        ] {
            let config = waiting(&config, if mood == Mood::Slow { 400 } else { 5_000 }, 2);
            kms.is(mood);
            *kms.asked.lock() = 0;
            let begun = Instant::now();
            let Err(error) = Node::open(&config, clock.clone()).await else { panic!("{mood:?}") };
            let text = pii_vault::causes::causes(&error);
            assert!(!text.contains("AWS4") && !text.contains("alias/pii-vault"), "{text}");
            let asked = *kms.asked.lock();
            assert!(if tries == 1 { asked == 1 } else { asked >= tries }, "{mood:?}: asked {asked} times: {text}");
            assert!(begun.elapsed() < Duration::from_secs(10), "{mood:?} took {:?}", begun.elapsed());
        }
        kms.is(Mood::Well);
        Node::open(&config, clock.clone()).await.expect("well again").close().await;
        assert_eq!(*kms.wrong.lock(), Vec::<String>::new());
        let mut far = config.clone();
        far.root_kek = Some(source("http://kms.example.com", "alias/pii-vault", "prod"));
        assert!(far.check().iter().any(|problem| problem.key == "root_kek.endpoint"), "in clear to another machine");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_outage_of_kms_is_survived_for_its_time() {
        let kms = Kms::start().await;
        let from = source(&kms.endpoint, "alias/pii-vault", "prod");
        let test = TestVault::with(|config| config.root_kek = Some(from)).await;
        let s = Scene::over(Running::over(test).await).await;
        s.person("ana").await;
        let vault = s.running.test.node.vault.clone();
        assert!(vault.watch_root().await);
        kms.is(Mood::Fails(503, "ServiceUnavailable", 1_000));
        assert!(vault.watch_root().await, "from memory");
        assert_eq!(s.name_of("ana").await.unwrap(), "Jane Roe");
        s.running.test.clock.advance_ms(2 * 3_600_000);
        assert!(!vault.watch_root().await, "for two hours");
        let refused = s.name_of("ana").await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "SEALED"));
        kms.is(Mood::Well);
        assert!(vault.watch_root().await);
        assert_eq!(s.name_of("ana").await.unwrap(), "Jane Roe");
        drop(vault);
        s.running.stop().await;
    }
}
