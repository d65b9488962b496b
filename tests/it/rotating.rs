//! A vault over a socket whose keys rotate: what the tests of rotations ask of it.

use std::time::Instant;

use pii_vault::config::RootKekSource;
use pii_vault::grpc::pb;
use pii_vault::ids::*;
use pii_vault::receipt::rotation::RotationRecord;
use tonic::Code;

use crate::harness::*;
use crate::net::*;

pub type Keys = pb::key_service_client::KeyServiceClient<tonic::transport::Channel>;

pub struct Scene {
    pub running: Running,
    pub tenant: TenantNo,
    pub key: String,
    pub operator: String,
}

impl Scene {
    pub async fn new() -> Self {
        Self::over(Running::new().await).await
    }

    /// With a next root key in the configuration, which is a file that is not there yet.
    pub async fn with_next_root() -> Self {
        let test = TestVault::with(|config| {
            let next = config.data_dir.parent().unwrap().join("secrets/root-2.key");
            config.root_kek_next = Some(RootKekSource::File { path: next });
        });
        Self::over(Running::over(test.await).await).await
    }

    pub async fn over(running: Running) -> Self {
        let tenant = running.test.tenant("jina", JINA).await;
        let key = running.key(tenant, "app").await;
        let operator = running.operator_key("root").await;
        Scene { running, tenant, key, operator }
    }

    pub fn keys(&self) -> Keys {
        Keys::new(self.running.channel.clone())
    }

    pub async fn person(&self, subject: &str) {
        let mut records = pb::record_service_client::RecordServiceClient::new(self.running.channel.clone());
        let values = vec![text_value(NAME, "Jane Roe"), text_value(EMAIL, &format!("{subject}@example.com"))];
        let context = for_purpose(SERVICE);
        let put = pb::PutFieldsRequest { subject: subject.into(), values, context, ..Default::default() };
        records.put_fields(with(&self.key, put)).await.expect("put");
    }

    pub async fn name_of(&self, subject: &str) -> Result<String, tonic::Status> {
        let mut records = pb::record_service_client::RecordServiceClient::new(self.running.channel.clone());
        let get = pb::GetFieldsRequest { key: by_id(subject), context: for_purpose(SERVICE), ..Default::default() };
        let got = records.get_fields(with(&self.key, get)).await?.into_inner();
        let name = got.values.iter().find(|value| value.field_id == NAME).expect("a name");
        match &name.kind {
            Some(pb::value::Kind::Text(text)) => Ok(text.clone()),
            other => panic!("{other:?}"),
        }
    }

    pub async fn erase(&self, subject: &str) -> Vec<u8> {
        let mut erasures = pb::erasure_service_client::ErasureServiceClient::new(self.running.channel.clone());
        let erase = pb::EraseSubjectRequest { key: by_id(subject), wait_final: true, ..Default::default() };
        let done = erasures.erase_subject(with(&self.key, erase)).await.expect("erase").into_inner();
        let erasure = done.erasure.expect("an erasure").erasure;
        let get = pb::GetReceiptRequest { erasure };
        erasures.get_receipt(with(&self.key, get)).await.expect("receipt").into_inner().receipt.to_vec()
    }

    pub async fn rotate(&self, kind: pb::KeyKind, tenant: &str) -> Result<String, tonic::Status> {
        let request = pb::RotateKeysRequest { kind: kind as i32, tenant: tenant.into(), ..Default::default() };
        Ok(self.keys().rotate_keys(with(&self.operator, request)).await?.into_inner().operation)
    }

    /// What the jobs do.
    pub async fn go_on(&self, tenant: TenantNo) {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            let vault = &self.running.test.node.vault;
            let call = vault.job_call(vault.tenant(tenant).unwrap());
            if !vault.go_on_rotations(&call, 10_000).await.expect("it goes on").more {
                return;
            }
        }
        panic!("it does not end");
    }

    pub async fn operation(&self, operation: &str, tenant: &str) -> pb::Operation {
        let mut client = pb::operation_service_client::OperationServiceClient::new(self.running.channel.clone());
        let get = pb::GetOperationRequest { operation: operation.into(), tenant: tenant.into() };
        client.get_operation(with(&self.operator, get)).await.expect("operation").into_inner().operation.unwrap()
    }

    /// The newest record of a tenant, verified with the published keys.
    pub async fn record(&self, tenant: &str) -> RotationRecord {
        let list = pb::ListRotationsRequest { tenant: tenant.into(), ..Default::default() };
        let listed = self.keys().list_rotations(with(&self.operator, list)).await.expect("list").into_inner().rotations;
        let keys = self.running.test.node.vault.receipt_keys();
        RotationRecord::verify(&listed.first().expect("a record").record, &keys).expect("verifies").record
    }

    pub async fn listed(&self, tenant: &str, kind: pb::KeyKind) -> Vec<pb::KeyInfo> {
        let list = pb::ListKeysRequest { tenant: tenant.into(), kinds: vec![kind as i32] };
        self.keys().list_keys(with(&self.operator, list)).await.expect("keys").into_inner().keys
    }

    pub async fn restart(self) -> Self {
        let Scene { running, tenant, key, operator } = self;
        let running = Running::over(running.stop().await.restart().await).await;
        Scene { running, tenant, key, operator }
    }

    pub fn keeper_bytes(&self) -> Vec<u8> {
        std::fs::read(self.running.test.config.keeper.paths[0].join("roots.keeper")).unwrap()
    }

    /// A person who is made and erased beside what goes on.
    pub async fn erase_beside(&self, subject: &str) {
        self.person(subject).await;
        self.erase(subject).await;
        assert_eq!(self.name_of(subject).await.unwrap_err().code(), Code::NotFound);
    }
}
