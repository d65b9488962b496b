//! TLS for the listener: TLS 1.3 unless 1.2 is asked for, ALPN `h2`, optional client certificates, and a certificate
//! that can be read again while calls run.

use crate::telemetry;
use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;

/// Where the certificates are and what is asked of clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsOptions {
    /// PEM file with the server's certificate chain, leaf first.
    pub certificate: PathBuf,
    /// PEM file with its private key (PKCS#8, SEC1 or PKCS#1).
    pub private_key: PathBuf,
    /// PEM file with the authorities whose client certificates are accepted; none: no client is asked for one.
    pub client_ca: Option<PathBuf>,
    /// Refuse connections without a client certificate; needs `client_ca`.
    pub require_client_certificate: bool,
    /// Accept TLS 1.2 besides 1.3.
    pub allow_tls12: bool,
}

/// The certificate files cannot be used. Names the file, never its contents.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {path}")]
    Unreadable {
        path: PathBuf,
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    #[error("{path} has no certificate in it")]
    Empty { path: PathBuf },
    #[error("certificate and key cannot be used together")]
    Unusable(#[source] rustls::Error),
    #[error("the client authorities in {path} cannot be used")]
    ClientAuthority { path: PathBuf },
    #[error("require_client_certificate needs client_ca")]
    NoClientAuthority,
}

/// The present certificate. A connection keeps the one it began with; the next handshake takes the newest.
pub struct TlsState {
    options: TlsOptions,
    current: ArcSwap<ServerConfig>,
}

impl TlsState {
    /// Reads the files.
    pub fn load(options: TlsOptions) -> Result<Self, TlsError> {
        let config = server_config(&options)?;
        Ok(TlsState { options, current: ArcSwap::from_pointee(config) })
    }

    /// Reads the files again. If they cannot be used, the certificate in use stays. Sessions of the former
    /// configuration are not resumed, so a client authority that was taken out counts at once for new connections.
    pub fn reload(&self) -> Result<(), TlsError> {
        let config = server_config(&self.options);
        let outcome = if config.is_ok() { "ok" } else { "failed" };
        metrics::counter!(telemetry::CERTIFICATE_RELOADS, "outcome" => outcome).increment(1);
        self.current.store(Arc::new(config?));
        Ok(())
    }

    /// The oldest version that is taken.
    pub fn oldest(&self) -> &'static str {
        if self.options.allow_tls12 { "1.2" } else { "1.3" }
    }

    /// For one handshake.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current.load_full())
    }
}

/// SHA-256 over the DER bytes of a certificate: what a credential is bound to.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(certificate.as_ref()).into()
}

fn server_config(options: &TlsOptions) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions: &[&rustls::SupportedProtocolVersion] = if options.allow_tls12 {
        &[&rustls::version::TLS13, &rustls::version::TLS12]
    } else {
        &[&rustls::version::TLS13]
    };
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .map_err(TlsError::Unusable)?;
    let builder = match &options.client_ca {
        None if options.require_client_certificate => return Err(TlsError::NoClientAuthority),
        None => builder.with_no_client_auth(),
        Some(path) => {
            let bad = || TlsError::ClientAuthority { path: path.clone() };
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|_| bad())?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = if options.require_client_certificate { verifier } else { verifier.allow_unauthenticated() };
            builder.with_client_cert_verifier(verifier.build().map_err(|_| bad())?)
        }
    };
    let unreadable = |source| TlsError::Unreadable { path: options.private_key.clone(), source };
    let key = PrivateKeyDer::from_pem_file(&options.private_key).map_err(unreadable)?;
    let mut config = builder.with_single_cert(certificates(&options.certificate)?, key).map_err(TlsError::Unusable)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // One ticket is enough for a client that comes back, and early data could be replayed.
    config.send_tls13_tickets = 1;
    config.max_early_data_size = 0;
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unreadable = |source| TlsError::Unreadable { path: path.to_owned(), source };
    let list: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(unreadable)?.collect::<Result<_, _>>().map_err(unreadable)?;
    if list.is_empty() {
        return Err(TlsError::Empty { path: path.to_owned() });
    }
    Ok(list)
}
