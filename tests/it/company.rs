//! A company under one of the three shipped policies, and what tests do there, all of it over a socket.

use std::path::Path;

use pb::record_service_client::RecordServiceClient;
use pb::rights_service_client::RightsServiceClient;
use pii_vault::clock::Timestamp;
use pii_vault::grpc::pb;
use pii_vault::ids::{Name, TenantNo};
use pii_vault::receipt::Receipt;
use pii_vault::report::Report;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::harness::TestVault;
use crate::net::*;

pub const JIWA: &str = include_str!("../../examples/tenants/jiwa-ai.toml");
pub const JENNY: &str = include_str!("../../examples/tenants/jenny-erp.toml");

pub const HOUR: i64 = 3_600_000;
pub const DAY: i64 = 24 * HOUR;

/// The file of a company as it is shipped, or the one of that name in the directory that `PII_VAULT_POLICIES` names.
pub fn shipped(name: &str) -> String {
    let dir = std::env::var("PII_VAULT_POLICIES");
    let dir = dir.unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/tenants").into());
    std::fs::read_to_string(Path::new(&dir).join(name).with_extension("toml")).expect("a policy file")
}

pub fn seconds(at: Timestamp) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds: at.0.div_euclid(1_000), nanos: 0 })
}

/// A tenant of one of the three policies, and somebody with every right in it.
pub struct Tenant {
    pub running: Running,
    pub no: TenantNo,
    pub key: String,
    /// Its policy file.
    pub text: String,
}

impl Tenant {
    pub async fn of(name: &str, policy: &str) -> Tenant {
        let test = TestVault::with(|config| config.region = "eu-central-1".into()).await;
        let running = Running::over(test).await;
        let no = running.test.tenant(name, policy).await;
        let key = running.key(no, "all").await;
        Tenant { running, no, key, text: policy.to_owned() }
    }

    pub fn records(&self) -> RecordServiceClient<Channel> {
        RecordServiceClient::new(self.running.channel.clone())
    }

    fn name(text: &str) -> Name {
        Name::parse("name", text).unwrap()
    }

    pub fn field(&self, name: &str) -> u32 {
        let tenant = self.running.test.node.vault.tenant(self.no).unwrap();
        tenant.policy().unwrap().field_by_name(&Self::name(name)).unwrap_or_else(|| panic!("field {name}")).no.0.into()
    }

    /// Purpose and recipient by name.
    pub fn context(&self, purpose: &str, recipient: &str) -> pb::AccessContext {
        let tenant = self.running.test.node.vault.tenant(self.no).unwrap();
        let policy = tenant.policy().unwrap();
        let recipient = match recipient {
            "" => 0,
            name => policy.recipient_by_name(&Self::name(name)).unwrap_or_else(|| panic!("no {name}")).no.0.into(),
        };
        let purpose = policy.purpose_by_name(&Self::name(purpose)).unwrap_or_else(|| panic!("no {purpose}"));
        pb::AccessContext {
            purpose_id: purpose.no.0.into(),
            recipient_id: recipient,
            reference: if purpose.needs_reference { "post-17".into() } else { String::new() },
            ..Default::default()
        }
    }

    pub async fn put(&self, subject: &str, purpose: &str, values: &[(&str, &str)]) {
        let request = pb::PutFieldsRequest {
            subject: subject.into(),
            values: values.iter().map(|(field, text)| text_value(self.field(field), text)).collect(),
            context: Some(self.context(purpose, "")),
            ..Default::default()
        };
        self.records().put_fields(with(&self.key, request)).await.unwrap_or_else(|e| panic!("{values:?}: {e:?}"));
    }

    pub async fn append(&self, subject: &str, purpose: &str, field: &str, text: &str) {
        let request = pb::AppendItemsRequest {
            subject: subject.into(),
            field_id: self.field(field),
            items: vec![pb::NewItem { values: vec![text_value(0, text)], origin_time: None }],
            context: Some(self.context(purpose, "")),
            ..Default::default()
        };
        self.records().append_items(with(&self.key, request)).await.unwrap_or_else(|e| panic!("{field}: {e:?}"));
    }

    pub async fn read(
        &self,
        subject: &str,
        fields: &[&str],
        context: pb::AccessContext,
    ) -> Result<pb::GetFieldsResponse, Status> {
        let request = pb::GetFieldsRequest {
            key: by_id(subject),
            select: Some(pb::Selector {
                field_ids: fields.iter().map(|f| self.field(f)).collect(),
                ..Default::default()
            }),
            context: Some(context),
            ..Default::default()
        };
        Ok(self.records().get_fields(with(&self.key, request)).await?.into_inner())
    }

    pub async fn items(&self, subject: &str, field: &str, context: pb::AccessContext) -> Result<usize, Status> {
        let request = pb::ListItemsRequest {
            key: by_id(subject),
            field_id: self.field(field),
            context: Some(context),
            ..Default::default()
        };
        Ok(self.records().list_items(with(&self.key, request)).await?.into_inner().items.len())
    }

    pub fn rights(&self) -> RightsServiceClient<Channel> {
        RightsServiceClient::new(self.running.channel.clone())
    }

    pub fn purpose(&self, name: &str) -> u32 {
        self.context(name, "").purpose_id
    }

    pub async fn consent(&self, subject: &str, purpose: &str) -> Result<(), Status> {
        let consent =
            pb::ConsentGrant { purpose_id: self.purpose(purpose), evidence: "form 3".into(), ..Default::default() };
        let request = pb::GrantConsentRequest { key: by_id(subject), consent: Some(consent), ..Default::default() };
        self.rights().grant_consent(with(&self.key, request)).await.map(|_| ())
    }

    pub async fn withdraw(&self, subject: &str, purpose: &str) {
        let purpose_id = self.purpose(purpose);
        let request = pb::WithdrawConsentRequest { key: by_id(subject), purpose_id, ..Default::default() };
        self.rights().withdraw_consent(with(&self.key, request)).await.expect("withdraw");
    }

    pub async fn object(&self, subject: &str, purpose: &str, end: bool) -> Result<(), Status> {
        let purpose_id = self.purpose(purpose);
        let request = pb::RecordObjectionRequest { key: by_id(subject), purpose_id, end, ..Default::default() };
        self.rights().record_objection(with(&self.key, request)).await.map(|_| ())
    }

    pub async fn decided(&self, subject: &str) -> pb::GetRightsResponse {
        let request = pb::GetRightsRequest { key: by_id(subject), context: None };
        self.rights().get_rights(with(&self.key, request)).await.expect("rights").into_inner()
    }

    pub async fn ask(&self, kind: &str, subject: Option<&str>, region: &str) -> pb::RightsRequest {
        let request = pb::CreateRequestRequest {
            kind: kind.into(),
            key: subject.and_then(by_id),
            region: region.into(),
            ..Default::default()
        };
        let answer = self.rights().create_request(with(&self.key, request)).await.expect("request");
        answer.into_inner().request.unwrap()
    }

    pub async fn overdue(&self) -> Vec<String> {
        let request = pb::ListRequestsRequest { overdue: true, ..Default::default() };
        let list = self.rights().list_requests(with(&self.key, request)).await.expect("list").into_inner().requests;
        list.into_iter().map(|request| request.kind).collect()
    }

    pub async fn stop(self) {
        self.running.stop().await;
    }
}

pub fn refused(answer: &Status) -> (Code, String) {
    (answer.code(), reason(answer))
}

/// Clients of the services.
macro_rules! clients {
    ($($name:ident: $module:ident, $client:ident;)*) => {
        impl Tenant {
            $(pub fn $name(&self) -> pb::$module::$client<Channel> {
                pb::$module::$client::new(self.running.channel.clone())
            })*
        }
    };
}
clients! {
    policies: policy_service_client, PolicyServiceClient;
    erasures: erasure_service_client, ErasureServiceClient;
    subjects: subject_service_client, SubjectServiceClient;
    access: access_service_client, AccessServiceClient;
    audit: audit_service_client, AuditServiceClient;
    credentials: credential_service_client, CredentialServiceClient;
}

impl Tenant {
    /// The honesty report, after its signature was checked with nothing but the vault's public keys.
    pub async fn report(&self) -> Report {
        self.report_over(self.running.channel.clone()).await
    }

    /// The same, asked for over another connection.
    pub async fn report_over(&self, channel: Channel) -> Report {
        let mut policies = pb::policy_service_client::PolicyServiceClient::new(channel);
        let answer = policies.get_report(with(&self.key, pb::GetReportRequest::default())).await;
        let signed = answer.expect("report").into_inner().report;
        let keys = self.erasures().get_receipt_keys(with(&self.key, pb::GetReceiptKeysRequest {})).await;
        let keys = keys.expect("keys").into_inner().keys;
        let keys: Vec<[u8; 32]> = keys.iter().map(|key| key.public_key.as_ref().try_into().unwrap()).collect();
        Report::verify(&signed, &keys).expect("it verifies offline").0
    }

    /// Makes a file the next version.
    pub async fn apply(&self, text: &str) -> Result<u32, Status> {
        let request = pb::ApplyPolicyRequest { policy: text.as_bytes().to_vec().into(), ..Default::default() };
        let answer = self.policies().apply_policy(with(&self.key, request)).await?;
        Ok(answer.into_inner().version.unwrap().version)
    }

    /// Erases somebody; the erasure when it is final.
    pub async fn erase(&self, subject: &str) -> pb::Erasure {
        let request = pb::EraseSubjectRequest { key: by_id(subject), wait_final: true, ..Default::default() };
        self.erasures().erase_subject(with(&self.key, request)).await.expect("erase").into_inner().erasure.unwrap()
    }

    pub fn days(&self, days: i64) {
        self.running.test.clock.advance_days(days);
    }

    /// Everything that the vault does by itself when it is due.
    pub async fn due(&self) {
        self.running.test.node.vault.run_due_work(self.no).await.expect("due work");
    }
}

pub fn no_consent() -> (Code, String) {
    (Code::FailedPrecondition, "CONSENT_MISSING".into())
}

pub fn unlisted() -> (Code, String) {
    (Code::PermissionDenied, "RECIPIENT_UNLISTED".into())
}

impl Tenant {
    pub async fn disclosures(&self, subject: &str) -> pb::ListDisclosuresResponse {
        let request = pb::ListDisclosuresRequest { key: by_id(subject), ..Default::default() };
        self.rights().list_disclosures(with(&self.key, request)).await.expect("disclosures").into_inner()
    }

    /// Counts of a field for a purpose.
    pub async fn aggregate(&self, field: &str, purpose: &str) -> Result<pb::AggregateFieldsResponse, Status> {
        let request =
            pb::AggregateFieldsRequest { field_id: self.field(field), context: Some(self.context(purpose, "")) };
        Ok(self.policies().aggregate_fields(with(&self.key, request)).await?.into_inner())
    }

    /// Names somebody who may ask in a person's place.
    pub async fn nominate(
        &self,
        subject: &str,
        nominee: &str,
        scopes: &[&str],
        until: Option<Timestamp>,
    ) -> Result<(), Status> {
        let request = pb::SetNomineeRequest {
            key: by_id(subject),
            nominee: by_id(nominee),
            scopes: scopes.iter().map(|kind| (*kind).to_owned()).collect(),
            expire_time: until.and_then(seconds),
            ..Default::default()
        };
        self.rights().set_nominee(with(&self.key, request)).await.map(|_| ())
    }

    /// Asks in a person's place.
    pub async fn ask_as(&self, subject: &str, nominee: &str, kind: &str) -> Result<pb::RightsRequest, Status> {
        let context = pb::AccessContext { acting_for: nominee.into(), ..Default::default() };
        let request = pb::CreateRequestRequest {
            kind: kind.into(),
            key: by_id(subject),
            context: Some(context),
            ..Default::default()
        };
        Ok(self.rights().create_request(with(&self.key, request)).await?.into_inner().request.unwrap())
    }

    /// Erases somebody; the receipt, after it was checked with nothing but the vault's public keys.
    pub async fn receipt(&self, subject: &str) -> Receipt {
        let erasure = self.erase(subject).await;
        let keys = self.erasures().get_receipt_keys(with(&self.key, pb::GetReceiptKeysRequest {})).await;
        let keys = keys.expect("keys").into_inner().keys;
        let keys: Vec<[u8; 32]> = keys.iter().map(|key| key.public_key.as_ref().try_into().unwrap()).collect();
        Receipt::verify(&erasure.receipt, &keys).expect("it verifies offline").receipt
    }

    /// The text of a new access key with a role of the file.
    pub async fn key_of(&self, role: &str) -> String {
        let list = pb::ListRolesRequest::default();
        let roles = self.access().list_roles(with(&self.key, list)).await.expect("roles").into_inner().roles;
        let role = roles.iter().find(|r| r.name == role && r.from_policy).unwrap_or_else(|| panic!("role {role}"));
        let name = format!("of-{}", role.name);
        let issue = pb::IssueAccessKeyRequest { name, role_ids: vec![role.role_id], ..Default::default() };
        self.access().issue_access_key(with(&self.key, issue)).await.expect("issue").into_inner().text
    }

    /// What somebody reads of one text.
    pub async fn read_as(&self, key: &str, subject: &str, field: &str, purpose: &str) -> Result<String, Status> {
        let request = pb::GetFieldsRequest {
            key: by_id(subject),
            select: Some(pb::Selector { field_ids: vec![self.field(field)], ..Default::default() }),
            context: Some(self.context(purpose, "")),
            ..Default::default()
        };
        let got = self.records().get_fields(with(key, request)).await?.into_inner();
        match got.values.into_iter().next().and_then(|v| v.kind) {
            Some(pb::value::Kind::Text(text)) => Ok(text),
            other => Ok(format!("{other:?}")),
        }
    }
}
