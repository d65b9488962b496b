//! T36: wrong certificates, old TLS, reload under load.

use http::Request;
use pii_vault::grpc::call::{CallInfo, MethodTable};
use pii_vault::grpc::limits::NetworkOptions;
use pii_vault::grpc::listen::{ListenError, Security, serve};
use pii_vault::grpc::tls::{TlsError, TlsOptions, TlsState};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic_health::pb::health_client::HealthClient;

use crate::{PLAIN, Server, check, slow};

pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Writes `<name>.pem`, `<name>.key` and `ca.pem`; a certificate that is not valid was over in 2020.
    pub fn issue(&self, dir: &Path, name: &str, hosts: &[&str], valid: bool) {
        let mut params = CertificateParams::new(hosts.iter().map(|h| (*h).to_string()).collect::<Vec<_>>()).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        if !valid {
            params.not_before = rcgen::date_time_ymd(2019, 1, 1);
            params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        std::fs::write(dir.join(format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
        std::fs::write(dir.join("ca.pem"), self.pem()).unwrap();
    }

    fn pem(&self) -> String {
        self.0.pem()
    }
}

fn tls_options(dir: &Path, name: &str, clients: bool) -> TlsOptions {
    TlsOptions {
        certificate: dir.join(format!("{name}.pem")),
        private_key: dir.join(format!("{name}.key")),
        client_ca: clients.then(|| dir.join("ca.pem")),
        require_client_certificate: clients,
        allow_tls12: false,
    }
}

pub fn tls_state(dir: &Path, clients: bool) -> Arc<TlsState> {
    Arc::new(TlsState::load(tls_options(dir, "server", clients)).unwrap())
}

fn identity(dir: &Path, name: &str) -> Option<Identity> {
    let read = |ext: &str| std::fs::read(dir.join(format!("{name}.{ext}"))).unwrap();
    Some(Identity::from_pem(read("pem"), read("key")))
}

/// A client that has made one call: in TLS 1.3 the server judges the client's certificate after the client believes
/// that it is connected.
async fn connect(
    addr: SocketAddr,
    ca: &str,
    host: &str,
    identity: Option<Identity>,
) -> Result<HealthClient<Channel>, tonic::Status> {
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca)).domain_name(host);
    if let Some(identity) = identity {
        tls = tls.identity(identity);
    }
    let endpoint = Endpoint::from_shared(format!("https://{addr}")).unwrap().tls_config(tls).unwrap();
    let channel = endpoint.connect().await.map_err(|e| tonic::Status::unavailable(e.to_string()))?;
    let mut client = HealthClient::new(channel);
    check(&mut client).await?;
    Ok(client)
}

/// The server's certificate, if it completes the handshake and goes on.
async fn handshake(
    addr: SocketAddr,
    ca: &str,
    version: &'static rustls::SupportedProtocolVersion,
    alpn: &[u8],
) -> std::io::Result<Vec<u8>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("localhost").unwrap();
    let stream = connector.connect(name, TcpStream::connect(addr).await?).await?;
    Ok(stream.get_ref().1.peer_certificates().unwrap()[0].as_ref().to_vec())
}

#[tokio::test]
async fn t36_expired_foreign_and_missing_certificates_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let (ca, foreign) = (Authority::new(), Authority::new());
    foreign.issue(path, "foreign", &["localhost"], true);
    ca.issue(path, "expired", &["localhost"], false);
    ca.issue(path, "client", &["client"], true);
    ca.issue(path, "server", &["localhost"], true);
    let addr_server = Server::start(Security::Tls(tls_state(path, true)), NetworkOptions::default()).await;
    let addr = addr_server.addr;
    let pem = ca.pem();

    // What the server refuses.
    connect(addr, &pem, "localhost", identity(path, "client")).await.expect("a good certificate is served");
    assert!(connect(addr, &pem, "localhost", None).await.is_err(), "no client certificate");
    assert!(connect(addr, &pem, "localhost", identity(path, "expired")).await.is_err(), "expired");
    assert!(connect(addr, &pem, "localhost", identity(path, "foreign")).await.is_err(), "foreign authority");
    // What a client refuses of ours.
    let client = || identity(path, "client");
    assert!(connect(addr, &pem, "vault.example.org", client()).await.is_err(), "wrong name");
    assert!(connect(addr, &foreign.pem(), "localhost", client()).await.is_err(), "wrong authority");
    let expired = Arc::new(TlsState::load(tls_options(path, "expired", false)).unwrap());
    let expired_server = Server::start(Security::Tls(expired), NetworkOptions::default()).await;
    let expired = expired_server.addr;
    assert!(connect(expired, &pem, "localhost", None).await.is_err(), "an expired server certificate");
}

#[tokio::test]
async fn t36_old_tls_and_other_protocols_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::new();
    ca.issue(dir.path(), "server", &["localhost"], true);
    let addr_server = Server::start(Security::Tls(tls_state(dir.path(), false)), NetworkOptions::default()).await;
    let addr = addr_server.addr;
    let old = TlsOptions { allow_tls12: true, ..tls_options(dir.path(), "server", false) };
    let old_server =
        Server::start(Security::Tls(Arc::new(TlsState::load(old).unwrap())), NetworkOptions::default()).await;
    let old = old_server.addr;
    let (v12, v13) = (&rustls::version::TLS12, &rustls::version::TLS13);
    assert!(handshake(addr, &ca.pem(), v12, b"h2").await.is_err(), "TLS 1.2");
    handshake(addr, &ca.pem(), v13, b"h2").await.expect("TLS 1.3");
    handshake(old, &ca.pem(), v12, b"h2").await.expect("TLS 1.2 where it is asked for");
    assert!(handshake(addr, &ca.pem(), v13, b"http/1.1").await.is_err(), "not h2");
    let mismatch = TlsOptions { require_client_certificate: true, ..tls_options(dir.path(), "server", false) };
    assert!(matches!(TlsState::load(mismatch), Err(TlsError::NoClientAuthority)));
}

#[tokio::test]
async fn t36_plain_text_is_for_loopback_only() {
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let methods = MethodTable::from_descriptor_sets(&[]).unwrap();
    let (_stop, stopped) = watch::channel(false);
    let served = serve(listener, PLAIN, NetworkOptions::default(), methods, slow(0), stopped).await;
    assert!(matches!(served, Err(ListenError::PlaintextExposed { .. })));
}

#[tokio::test]
async fn t36_the_service_sees_the_fingerprint_of_the_client_certificate() {
    use sha2::{Digest, Sha256};
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::new();
    ca.issue(dir.path(), "server", &["localhost"], true);
    ca.issue(dir.path(), "client", &["client"], true);
    let (seen, heard) = watch::channel(None);
    let seen = Arc::new(seen);
    let service = tower::service_fn(move |request: Request<tonic::body::Body>| {
        let seen = seen.clone();
        async move {
            seen.send_replace(request.extensions().get::<CallInfo>().unwrap().peer.client_cert_sha256);
            Ok::<_, Infallible>(tonic::Status::ok("").into_http())
        }
    });
    let server = Server::with(Security::Tls(tls_state(dir.path(), true)), NetworkOptions::default(), service).await;
    let _ = connect(server.addr, &ca.pem(), "localhost", identity(dir.path(), "client")).await;
    let der = CertificateDer::from_pem_file(dir.path().join("client.pem")).unwrap();
    let expected: [u8; 32] = Sha256::digest(der.as_ref()).into();
    assert_eq!(*heard.borrow(), Some(expected));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t36_reloading_the_certificate_under_load_fails_no_call() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::new();
    ca.issue(dir.path(), "server", &["localhost"], true);
    let state = tls_state(dir.path(), false);
    let addr_server = Server::start(Security::Tls(state.clone()), NetworkOptions::default()).await;
    let addr = addr_server.addr;
    let first = handshake(addr, &ca.pem(), &rustls::version::TLS13, b"h2").await.unwrap();

    let done = Arc::new(AtomicBool::new(false));
    let (calls, failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut load = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (done, calls, failed, pem) = (done.clone(), calls.clone(), failed.clone(), ca.pem());
        load.spawn(async move {
            while !done.load(Ordering::Relaxed) {
                // A new connection, then several calls on it.
                let Ok(mut client) = connect(addr, &pem, "localhost", None).await else {
                    failed.fetch_add(1, Ordering::Relaxed);
                    continue;
                };
                for _ in 0..20 {
                    calls.fetch_add(1, Ordering::Relaxed);
                    if check(&mut client).await.is_err() {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
    }
    for _ in 0..10 {
        sleep(Duration::from_millis(100)).await;
        ca.issue(dir.path(), "server", &["localhost"], true);
        state.reload().unwrap();
    }
    // Files that cannot be used leave the last good certificate in place.
    std::fs::write(dir.path().join("server.pem"), "half a certifi").unwrap();
    assert!(matches!(state.reload(), Err(TlsError::Empty { .. } | TlsError::Unreadable { .. })));
    sleep(Duration::from_millis(100)).await;
    done.store(true, Ordering::Relaxed);
    while load.join_next().await.is_some() {}

    assert!(calls.load(Ordering::Relaxed) > 100);
    assert_eq!(failed.load(Ordering::Relaxed), 0);
    let last = handshake(addr, &ca.pem(), &rustls::version::TLS13, b"h2").await.unwrap();
    assert!(first != last, "the new certificate is served");
}
