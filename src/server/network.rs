//! The network of a server: which signals mean what, the gRPC port
//! with health and reflection, the operations port, and the order in which they go down.

use crate::grpc::call::{BadDescriptors, MethodTable};
use crate::grpc::direct::Services;
use crate::grpc::limits::NetworkOptions;
use crate::grpc::listen::{ListenError, Security, serve};
use crate::grpc::ops::{Readiness, serve_ops};
use metrics_exporter_prometheus::PrometheusHandle;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tonic::service::Routes;
use tonic_health::ServingStatus;

/// Everything that the network half needs. Listeners are bound already, by `serve` or by a test.
pub struct Network {
    /// The gRPC port.
    pub listener: TcpListener,
    pub security: Security,
    pub options: NetworkOptions,
    /// The vault's services; health and reflection are added here.
    pub routes: Services,
    /// Encoded descriptor sets of `routes`: they tell streams from unary calls, and an unlisted method is not served.
    pub descriptor_sets: Vec<&'static [u8]>,
    /// Answer reflection calls; for development.
    pub reflection: bool,
    /// The operations port.
    pub ops: Option<Ops>,
    /// What keeps us from serving; asked once a second for grpc.health.v1 and at each `/readyz`.
    pub readiness: Arc<dyn Readiness>,
}

/// The operations port.
pub struct Ops {
    pub listener: TcpListener,
    pub allow_non_loopback: bool,
    pub metrics: Option<PrometheusHandle>,
}

/// The server cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Descriptors(#[from] BadDescriptors),
    #[error("reflection cannot be built")]
    Reflection(#[source] tonic_reflection::server::Error),
}

/// What the operations port says, also while connections drain.
struct UntilClosing {
    readiness: Arc<dyn Readiness>,
    closing: watch::Receiver<bool>,
}

impl Readiness for UntilClosing {
    fn not_ready(&self) -> Vec<&'static str> {
        if *self.closing.borrow() { vec!["closing"] } else { self.readiness.not_ready() }
    }

    fn warnings(&self) -> Vec<String> {
        self.readiness.warnings()
    }
}

/// Serves until `shutdown` becomes true; then health says NOT_SERVING, every connection gets a GOAWAY, calls in flight
/// have `options.drain_timeout`, and the operations port closes last.
pub async fn serve_network(network: Network, shutdown: watch::Receiver<bool>) -> Result<(), NetworkError> {
    let Network { listener, security, options, mut routes, mut descriptor_sets, reflection, ops, readiness } = network;
    let (reporter, health) = tonic_health::server::health_reporter();
    descriptor_sets.push(tonic_health::pb::FILE_DESCRIPTOR_SET);
    routes = routes.map(|routes| routes.add_service(health));
    if reflection {
        let mut builder = tonic_reflection::server::Builder::configure();
        for set in &descriptor_sets {
            builder = builder.register_encoded_file_descriptor_set(set);
        }
        let reflection = builder.build_v1().map_err(NetworkError::Reflection)?;
        routes = routes.map(|routes| routes.add_service(reflection));
        descriptor_sets.push(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET);
    }
    let methods = MethodTable::from_descriptor_sets(&descriptor_sets)?;

    let mut names = methods.services();
    names.insert(""); // the server as a whole
    let state = |ready| if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
    let report = {
        let (readiness, mut shutdown) = (readiness.clone(), shutdown.clone());
        async move {
            let mut tick = tokio::time::interval(Duration::from_secs(1));
            let mut last = None;
            let mut closing = false;
            while !closing {
                tokio::select! {
                    _ = tick.tick() => {}
                    _ = shutdown.wait_for(|stop| *stop) => closing = true,
                }
                let ready = !closing && readiness.not_ready().is_empty();
                if last != Some(ready) {
                    for name in &names {
                        reporter.set_service_status(name, state(ready)).await;
                    }
                    last = Some(ready);
                }
            }
        }
    };
    // The operations port outlives the drain, so that `/readyz` can say what is going on.
    let (_ops_stop, ops_stopped) = watch::channel(false);
    let ops = {
        let readiness = Arc::new(UntilClosing { readiness, closing: shutdown.clone() });
        async move {
            match ops {
                None => std::future::pending().await,
                Some(ops) => serve_ops(ops.listener, ops.allow_non_loopback, readiness, ops.metrics, ops_stopped).await,
            }
        }
    };
    let grpc = serve(listener, security, options, methods, routes.map(Routes::prepare), shutdown.clone());
    let both = async { tokio::join!(grpc, report).0 };
    tokio::select! {
        served = both => served?,
        failed = ops => failed?,
    }
    Ok(())
}

/// SIGTERM and SIGINT turn the returned value true; SIGHUP calls `on_reload` (certificates, log level), which must not
/// block for long. Call inside a tokio runtime, once.
pub fn signals(on_reload: impl Fn() + Send + 'static) -> std::io::Result<watch::Receiver<bool>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => { stop.send_replace(true); }
                _ = interrupt.recv() => { stop.send_replace(true); }
                _ = hangup.recv() => on_reload(),
            }
        }
    });
    Ok(stopped)
}
