//! A test vault behind a real socket, and callers of it.

use std::sync::Arc;
use std::time::Duration;

use pii_vault::access::{Verb, VerbSet, View};
use pii_vault::clock::Timestamp;
use pii_vault::grpc::limits::NetworkOptions;
use pii_vault::grpc::listen::Security;
use pii_vault::grpc::{pb, services};
use pii_vault::ids::*;
use pii_vault::server::{Network, serve_network};
use pii_vault::vault::access_keys::NewAccessKey;
use pii_vault::vault::roles::{NewGrant, NewRole};
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::harness::TestVault;

/// A vault that listens.
pub struct Running {
    pub test: TestVault,
    pub channel: Channel,
    stop: watch::Sender<bool>,
    served: tokio::task::JoinHandle<()>,
}

impl Running {
    pub async fn new() -> Self {
        Self::over(TestVault::new().await).await
    }

    /// The same over a vault that is there.
    pub async fn over(test: TestVault) -> Self {
        let (stop, port, served) = listen(&test, Security::Plaintext { allow_non_loopback: false }).await;
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
        let channel = endpoint.connect().await.expect("connect");
        Running { test, channel, stop, served }
    }

    /// One more port of the same vault: how to stop it, its number, its task.
    pub async fn listen(&self, security: Security) -> (watch::Sender<bool>, u16, tokio::task::JoinHandle<()>) {
        listen(&self.test, security).await
    }

    /// Stops serving and closes the vault.
    pub async fn stop(self) -> TestVault {
        self.stop.send_replace(true);
        drop(self.channel);
        self.served.await.unwrap();
        self.test
    }

    /// The text of a new key of the tenant with one role that may do everything for every purpose.
    pub async fn key(&self, tenant: TenantNo, name: &str) -> String {
        self.key_until(tenant, name, None).await.0
    }

    /// The text of a new key that may do just this, for every purpose and field.
    pub async fn key_for(&self, tenant: TenantNo, name: &str, verbs: &[Verb]) -> String {
        let vault = &self.test.node.vault;
        let call = vault.local_call(tenant).unwrap();
        let grant = NewGrant {
            classes: vec![],
            fields: vec![],
            purposes: call.tenant.policy().unwrap().purposes().map(|p| p.no).collect(),
            verbs: VerbSet::from_iter(verbs.iter().copied()),
            max_view: View::Plain,
            groups: None,
            subjects_per_hour: 0,
        };
        let new = NewRole { name: Name::parse("role", name).unwrap(), grants: vec![grant] };
        let role = vault.create_role(&call, new, None, false).await.expect("create role").unwrap().no;
        let new = NewAccessKey {
            name: Name::parse("name", name).unwrap(),
            roles: vec![role],
            expires: None,
            certificate: None,
            subjects_per_hour: None,
        };
        let issued = vault.issue_access_key(&call, new, None, false).await.expect("issue key").unwrap();
        issued.text.unwrap().to_string()
    }

    /// The same with an end; the text and the key's name.
    pub async fn key_until(&self, tenant: TenantNo, name: &str, expires: Option<Timestamp>) -> (String, String) {
        let vault = &self.test.node.vault;
        let call = vault.local_call(tenant).unwrap();
        let role = Name::parse("role", "everything").unwrap();
        let found = vault.list_roles(&call, RoleNo(0), 1_000).await.unwrap();
        let no = match found.rows.iter().find(|known| known.name == role) {
            Some(known) => known.no,
            None => {
                let purposes = call.tenant.policy().unwrap().purposes().map(|p| p.no).collect();
                let grant = NewGrant {
                    classes: vec![],
                    fields: vec![],
                    purposes,
                    verbs: VerbSet::from_iter(Verb::ALL.iter().copied()),
                    max_view: View::Plain,
                    groups: None,
                    subjects_per_hour: 0,
                };
                let new = NewRole { name: role, grants: vec![grant] };
                vault.create_role(&call, new, None, false).await.expect("create role").unwrap().no
            }
        };
        let new = NewAccessKey {
            name: Name::parse("name", name).unwrap(),
            roles: vec![no],
            expires,
            certificate: None,
            subjects_per_hour: None,
        };
        let issued = vault.issue_access_key(&call, new, None, false).await.expect("issue key").unwrap();
        (issued.text.unwrap().to_string(), issued.key.id.to_string())
    }

    /// The text of a new operator's key.
    pub async fn operator_key(&self, name: &str) -> String {
        let issued = self.test.node.vault.issue_first_key(Name::parse("name", name).unwrap()).await.expect("issue");
        issued.text.unwrap().to_string()
    }
}

async fn listen(test: &TestVault, security: Security) -> (watch::Sender<bool>, u16, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (stop, stopped) = watch::channel(false);
    let network = Network {
        listener,
        security,
        options: NetworkOptions { drain_timeout: Duration::from_millis(200), ..NetworkOptions::default() },
        routes: services::routes(test.node.vault.clone(), Some(test.node.backups.clone())),
        descriptor_sets: vec![pb::DESCRIPTOR_SET],
        reflection: false,
        ops: None,
        readiness: Arc::new(Vec::new),
    };
    let served = tokio::spawn(async move { serve_network(network, stopped).await.expect("serve") });
    (stop, port, served)
}

/// A request by the owner of a key.
pub fn with<T>(key: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    request
}

/// The reason in an error.
pub fn reason(status: &Status) -> String {
    pii_vault::grpc::status::reason_of(status).unwrap_or_default()
}

pub fn by_id(subject: &str) -> Option<pb::SubjectKey> {
    Some(pb::SubjectKey { key: Some(pb::subject_key::Key::Subject(subject.into())) })
}

pub fn for_purpose(number: u32) -> Option<pb::AccessContext> {
    Some(pb::AccessContext { purpose_id: number, ..Default::default() })
}

pub fn text_value(field: u32, text: &str) -> pb::Value {
    pb::Value { field_id: field, kind: Some(pb::value::Kind::Text(text.into())), ..Default::default() }
}

/// Numbers of jina-connect's policy.
pub const NAME: u32 = 1;
pub const EMAIL: u32 = 2;
pub const MESSAGE: u32 = 7;
pub const SERVICE: u32 = 1;
pub const DELIVERY: u32 = 7;
pub const ANALYTICS: u32 = 8;
pub const MARKETING: u32 = 10;
