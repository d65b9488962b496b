//! A whole server: opens the node, serves until told to stop, closes in order.

use std::net::SocketAddr;
use std::sync::Arc;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::clock::Clock;
use crate::config::Config;
use crate::grpc::listen::Security;
use crate::grpc::ops::Readiness;
use crate::grpc::pb;
use crate::grpc::tls::{TlsError, TlsState};
use crate::jobs::Jobs;
use crate::keyring::Keyring;
use crate::keyring::keeper::ReplicaStatus;
use crate::server::network::{Network, NetworkError, Ops, serve_network};
use crate::server::node::{Node, NodeError};
use crate::storage::Store;
use crate::storage::readlog::ReadLog;

/// Why a server does not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error("the certificate cannot be used")]
    Tls(#[from] TlsError),
    #[error("cannot listen on {address}")]
    Bind {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
}

/// Bound ports: the addresses are known before the vault is open.
pub struct Ports {
    pub grpc: TcpListener,
    pub ops: Option<TcpListener>,
}

impl Ports {
    /// Binds what the configuration names.
    pub async fn bind(config: &Config) -> Result<Ports, ServeError> {
        let bind = |address: SocketAddr| async move {
            TcpListener::bind(address).await.map_err(|source| ServeError::Bind { address, source })
        };
        let ops = match config.ops.enabled {
            true => Some(bind(config.ops.address).await?),
            false => None,
        };
        Ok(Ports { grpc: bind(config.listen.address).await?, ops })
    }
}

/// Certificates as configured; `None` for plain text.
pub fn tls(config: &Config) -> Result<Option<Arc<TlsState>>, ServeError> {
    Ok(match &config.tls {
        Some(tls) => Some(Arc::new(TlsState::load(tls.options())?)),
        None => None,
    })
}

/// Serves until `shutdown` turns true: health says NOT_SERVING, connections drain, jobs stop, files close.
pub async fn run(
    config: &Config,
    ports: Ports,
    tls: Option<Arc<TlsState>>,
    clock: Arc<dyn Clock>,
    metrics: Option<PrometheusHandle>,
    shutdown: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    let node = Node::open(config, clock.clone()).await?;
    let served = serve_node(config, &node, ports, tls, metrics, shutdown).await;
    node.close().await;
    served
}

/// The same over a node that is open already; it stays open.
pub async fn serve_node(
    config: &Config,
    node: &Node,
    ports: Ports,
    tls: Option<Arc<TlsState>>,
    metrics: Option<PrometheusHandle>,
    shutdown: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    let routes = crate::grpc::services::routes(node.vault.clone(), Some(node.backups.clone()));
    let network = Network {
        listener: ports.grpc,
        security: match tls {
            Some(state) => Security::Tls(state),
            None => Security::Plaintext { allow_non_loopback: config.listen.allow_plaintext_non_loopback },
        },
        options: config.network_options(),
        routes,
        descriptor_sets: vec![pb::DESCRIPTOR_SET],
        reflection: config.development.reflection,
        ops: ports.ops.map(|listener| Ops { listener, allow_non_loopback: config.ops.allow_non_loopback, metrics }),
        readiness: Arc::new(Health {
            store: node.store.clone(),
            log: node.read_log.clone(),
            recovery: node.vault.has_recovery(),
            keyring: node.keyring.clone(),
        }),
    };
    if !node.vault.has_recovery() {
        tracing::warn!("{NO_RECOVERY}");
    }
    tracing::info!(tenants = node.vault.live_tenants().len(), "serving");
    let (stop, stopped) = watch::channel(false);
    let jobs = Jobs::start(node.vault.clone(), node.backups.clone(), config.jobs_options(), stopped);
    let served = serve_network(network, shutdown).await;
    // Nobody listens only if every job has ended.
    let _ = stop.send(true);
    jobs.finish().await;
    // So that the next start sees a rollback to any moment of this run.
    if let Err(error) = node.vault.keep_anchor().await {
        tracing::warn!(%error, "the anchor was not written at the end");
    }
    Ok(served?)
}

const NO_RECOVERY: &str = "no recovery key: losing the keeper or the root key loses every subject";

/// What the operations port says.
struct Health {
    store: Arc<dyn Store>,
    log: Arc<ReadLog>,
    recovery: bool,
    keyring: Arc<Keyring>,
}

impl Readiness for Health {
    fn not_ready(&self) -> Vec<&'static str> {
        let mut missing = Vec::new();
        if self.store.health().is_err() {
            missing.push("store");
        }
        if !self.log.is_writable() {
            missing.push("read audit");
        }
        missing
    }

    fn warnings(&self) -> Vec<String> {
        let recovery = (!self.recovery).then(|| NO_RECOVERY.to_owned());
        let replicas = self.keyring.keeper().replicas();
        recovery.into_iter().chain(replicas.iter().filter_map(ReplicaStatus::away)).collect()
    }
}
