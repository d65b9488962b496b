//! The connection of one command: TLS, credential, request id, deadline, and the names that the tenant's schema gives to
//! numbers.

use crate::causes::causes;
use crate::cli::error::{CliError, LastIds};
use crate::cli::names::{Names, Noun};
use crate::cli::output::Output;
use crate::cli::profile::Settings;
use crate::clock::{Clock, SystemClock, Timestamp};
use crate::grpc::pb;
use crate::grpc::pb::access_service_client::AccessServiceClient;
use crate::grpc::pb::audit_service_client::AuditServiceClient;
use crate::grpc::pb::backup_service_client::BackupServiceClient;
use crate::grpc::pb::credential_service_client::CredentialServiceClient;
use crate::grpc::pb::erasure_service_client::ErasureServiceClient;
use crate::grpc::pb::evidence_service_client::EvidenceServiceClient;
use crate::grpc::pb::keeper_service_client::KeeperServiceClient;
use crate::grpc::pb::key_service_client::KeyServiceClient;
use crate::grpc::pb::operation_service_client::OperationServiceClient;
use crate::grpc::pb::policy_service_client::PolicyServiceClient;
use crate::grpc::pb::record_service_client::RecordServiceClient;
use crate::grpc::pb::rights_service_client::RightsServiceClient;
use crate::grpc::pb::subject_service_client::SubjectServiceClient;
use crate::grpc::pb::tenant_service_client::TenantServiceClient;
use parking_lot::Mutex;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OnceCell;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};

/// Where systems keep the certificates they trust, for servers with a public certificate.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];
/// A page of 1,000 subjects with values is larger than tonic's own limit of 4 MiB would let through.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

type Transport = InterceptedService<Channel, Stamp>;

/// Puts credential, request id and deadline on each call.
#[derive(Clone)]
pub struct Stamp {
    credential: Option<MetadataValue<Ascii>>,
    timeout: Option<Duration>,
    last: Arc<Mutex<LastIds>>,
}

impl Interceptor for Stamp {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let id = uuid::Uuid::new_v4().to_string();
        if let Ok(value) = id.parse() {
            request.metadata_mut().insert("x-request-id", value);
        }
        self.last.lock().call = id;
        if let Some(credential) = &self.credential {
            request.metadata_mut().insert("authorization", credential.clone());
        }
        if let Some(timeout) = self.timeout {
            request.set_timeout(timeout);
        }
        Ok(request)
    }
}

/// What a command needs to talk to a vault.
pub struct Session {
    pub settings: Arc<Settings>,
    pub out: Output,
    channel: Channel,
    stamp: Stamp,
    names: OnceCell<Names>,
}

macro_rules! clients {
    ($($(#[$doc:meta])* $name:ident: $client:ident,)+) => {
        $($(#[$doc])*
        pub fn $name(&self) -> $client<Transport> {
            $client::with_interceptor(self.channel.clone(), self.stamp.clone()).max_decoding_message_size(MAX_ANSWER)
        })+
    };
}

impl Session {
    /// Reads credential and certificates; the connection itself is made by the first call.
    pub fn open(settings: Settings, out: Output, last: Arc<Mutex<LastIds>>) -> Result<Self, CliError> {
        let channel = endpoint(&settings)?.connect_lazy();
        let credential = settings.credential.read()?;
        let credential = credential
            .map(|key| {
                let text = zeroize::Zeroizing::new(format!("Bearer {}", key.expose()));
                let mut value: MetadataValue<Ascii> = text
                    .parse()
                    .map_err(|_| CliError::Usage("the access key has characters that no access key has".into()))?;
                value.set_sensitive(true);
                Ok::<_, CliError>(value)
            })
            .transpose()?;
        let stamp = Stamp { credential, timeout: Some(settings.timeout), last };
        Ok(Session { settings: Arc::new(settings), out, channel, stamp, names: OnceCell::new() })
    }

    /// The same connection for streams that may take long: a deadline only if somebody asked for one.
    pub fn patient(&self) -> Session {
        let mut stamp = self.stamp.clone();
        stamp.timeout = self.settings.timeout_asked.then_some(self.settings.timeout);
        Session {
            settings: self.settings.clone(),
            out: self.out,
            channel: self.channel.clone(),
            stamp,
            names: OnceCell::new(),
        }
    }

    clients! {
        records: RecordServiceClient,
        subjects: SubjectServiceClient,
        erasures: ErasureServiceClient,
        policies: PolicyServiceClient,
        access: AccessServiceClient,
        tenants: TenantServiceClient,
        audit: AuditServiceClient,
        operations: OperationServiceClient,
        keys: KeyServiceClient,
        backups: BackupServiceClient,
        keepers: KeeperServiceClient,
        credentials: CredentialServiceClient,
        rights: RightsServiceClient,
        evidence: EvidenceServiceClient,
    }

    /// `--tenant`, for requests of operator keys.
    pub fn tenant(&self) -> String {
        self.settings.tenant.clone()
    }

    /// Remembers the request id of a write.
    pub fn wrote(&self, id: &str) {
        self.stamp.last.lock().write = id.to_string();
    }

    /// Now, by this machine's clock.
    pub fn now(&self) -> Timestamp {
        SystemClock::new().now()
    }

    /// The tenant's names, asked for once.
    pub async fn names(&self) -> Result<&Names, CliError> {
        self.names
            .get_or_try_init(|| async {
                let request = pb::GetSchemaRequest { version: 0, tenant: self.tenant() };
                Ok(Names::new(self.policies().get_schema(request).await?.into_inner()))
            })
            .await
    }

    /// The tenant's names for people to read: without them the numbers are shown.
    pub async fn names_if_any(&self) -> Names {
        match self.names().await {
            Ok(names) => names.clone(),
            Err(_) => Names::default(),
        }
    }
}

impl Session {
    /// A number that was given as such or by name.
    pub async fn number(&self, noun: Noun, text: &str) -> Result<u32, CliError> {
        if let Ok(number) = text.parse() {
            return Ok(number);
        }
        let known = self.names().await?.number(noun, text);
        if noun != Noun::Role || known.is_ok() {
            return known;
        }
        // Roles are made by calls too, and those are not in the schema.
        let mut token = String::new();
        loop {
            let request = pb::ListRolesRequest { tenant: self.tenant(), page_size: 1_000, page_token: token };
            let page = self.access().list_roles(request).await?.into_inner();
            if let Some(role) = page.roles.iter().find(|r| r.name == text) {
                return Ok(role.role_id);
            }
            if page.next_page_token.is_empty() {
                return known;
            }
            token = page.next_page_token;
        }
    }

    /// Many of them.
    pub async fn numbers(&self, noun: Noun, texts: &[String]) -> Result<Vec<u32>, CliError> {
        let mut numbers = Vec::with_capacity(texts.len());
        for text in texts {
            numbers.push(self.number(noun, text).await?);
        }
        Ok(numbers)
    }

    /// One or none; 0 is none.
    pub async fn opt_number(&self, noun: Noun, text: &Option<String>) -> Result<u32, CliError> {
        match text {
            Some(text) => self.number(noun, text).await,
            None => Ok(0),
        }
    }
}

fn endpoint(settings: &Settings) -> Result<Endpoint, CliError> {
    let address = match settings.server.split_once("://") {
        Some(("https" | "http", _)) => settings.server.clone(),
        Some((scheme, _)) => return Err(CliError::Usage(format!("--server: {scheme}:// is not spoken here"))),
        None => format!("https://{}", settings.server),
    };
    let bad = || CliError::Usage(format!("--server: {address:?} is not an address such as https://vault.example:7443"));
    let endpoint = Endpoint::from_shared(address.clone()).map_err(|_| bad())?;
    let host = endpoint.uri().host().ok_or_else(bad)?.to_string();
    let endpoint = endpoint
        .connect_timeout(settings.timeout.min(Duration::from_secs(10)))
        .user_agent(concat!("pii-vault-cli/", env!("CARGO_PKG_VERSION")))
        .map_err(|e| CliError::Connect(e.to_string()))?
        .http2_keep_alive_interval(Duration::from_secs(30))
        .keep_alive_while_idle(true);
    if address.starts_with("http://") {
        if !is_loopback(&host) && !settings.plaintext {
            return Err(CliError::Usage(format!(
                "{address} would send the access key and personal data in clear; use https://, or --plaintext if you mean it"
            )));
        }
        return Ok(endpoint);
    }
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(roots(settings)?));
    if let Some(name) = &settings.server_name {
        tls = tls.domain_name(name);
    }
    match (&settings.client_cert, &settings.client_key) {
        (Some(cert), Some(key)) => tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?)),
        (None, None) => {}
        _ => return Err(CliError::Usage("--client-cert and --client-key belong together".into())),
    }
    endpoint.tls_config(tls).map_err(|e| CliError::Connect(format!("TLS: {}", causes(&e))))
}

fn roots(settings: &Settings) -> Result<Vec<u8>, CliError> {
    if let Some(path) = &settings.ca {
        return read(path);
    }
    let system = std::env::var("SSL_CERT_FILE").into_iter().chain(SYSTEM_ROOTS.map(String::from));
    for path in system {
        if let Ok(pem) = fs::read(path) {
            return Ok(pem);
        }
    }
    Err(CliError::Usage("no certificate authority to trust: give the server's with --ca".into()))
}

fn read(path: &Path) -> Result<Vec<u8>, CliError> {
    fs::read(path).map_err(CliError::io(path.display().to_string()))
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loopback() {
        assert!(is_loopback("127.0.0.1") && is_loopback("[::1]") && is_loopback("localhost"));
        assert!(!is_loopback("10.0.0.1") && !is_loopback("localhost.example") && !is_loopback("127.example"));
    }
}
