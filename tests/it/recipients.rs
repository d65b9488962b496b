//! Who else gets values, over a socket: the lists of the three policies, their agreements and views.

use pb::record_service_client::RecordServiceClient;
use pii_vault::grpc::pb;
use pii_vault::ids::{Name, TenantNo};
use tonic::{Code, Status};

use crate::harness::JINA;
use crate::net::*;

pub const JIWA: &str = include_str!("../../examples/tenants/jiwa-ai.toml");
pub const JENNY: &str = include_str!("../../examples/tenants/jenny-erp.toml");

/// A tenant of one of the three policies, and somebody with every right in it.
pub struct Tenant {
    pub running: Running,
    pub no: TenantNo,
    pub key: String,
}

impl Tenant {
    pub async fn of(name: &str, policy: &str) -> Tenant {
        let running = Running::new().await;
        let no = running.test.tenant(name, policy).await;
        let key = running.key(no, "all").await;
        Tenant { running, no, key }
    }

    pub fn records(&self) -> RecordServiceClient<tonic::transport::Channel> {
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

    pub async fn stop(self) {
        self.running.stop().await;
    }
}

pub fn refused(answer: &Status) -> (Code, String) {
    (answer.code(), reason(answer))
}

fn unlisted() -> (Code, String) {
    (Code::PermissionDenied, "RECIPIENT_UNLISTED".into())
}

#[tokio::test]
async fn jc08_only_named_processors_get_values_and_each_read_is_recorded() {
    let t = Tenant::of("jina", JINA).await;
    t.put("p-1", "service", &[("name", "Asha"), ("email", "asha@example.com"), ("phone", "+919876543210")]).await;
    t.append("p-1", "delivery", "message", "on its way").await;
    let got = t.read("p-1", &["phone"], t.context("delivery", "twilio")).await.expect("listed");
    assert_eq!(got.recipient_ref.len(), 16);
    assert_eq!(t.items("p-1", "message", t.context("delivery", "twilio")).await.expect("listed"), 1);

    // Another field, another purpose, another recipient, nobody.
    let mail = t.read("p-1", &["email"], t.context("service", "twilio")).await.unwrap_err();
    assert_eq!(refused(&mail), unlisted());
    let paid = t.read("p-1", &["name"], t.context("payments", "twilio")).await.unwrap_err();
    assert_eq!(refused(&paid), unlisted());
    let hosting = t.read("p-1", &["phone"], t.context("delivery", "hosting")).await.unwrap_err();
    assert_eq!(refused(&hosting), unlisted());
    let nobody = pb::AccessContext { recipient_id: 200, ..t.context("delivery", "") };
    assert_eq!(refused(&t.read("p-1", &["phone"], nobody).await.unwrap_err()), unlisted());
    assert_eq!(refused(&t.items("p-1", "message", t.context("delivery", "razorpay")).await.unwrap_err()), unlisted());
    let far = pb::AccessContext { recipient_id: 4_000, ..t.context("delivery", "") };
    assert_eq!(t.read("p-1", &["phone"], far).await.unwrap_err().code(), Code::InvalidArgument);

    // The audit has every read with its recipient, the refused ones too.
    let mut audit = pb::audit_service_client::AuditServiceClient::new(t.running.channel.clone());
    let twilio = t.context("delivery", "twilio").recipient_id;
    let list = pb::ListEntriesRequest {
        chain: pb::AuditChain::Reads as i32,
        recipient_ids: vec![twilio],
        ..Default::default()
    };
    let list = audit.list_entries(with(&t.key, list)).await.expect("audit").into_inner().entries;
    let shown = |outcome: pb::AuditOutcome| list.iter().filter(|e| e.outcome == outcome as i32).count();
    assert!(list.iter().all(|e| e.recipient_id == twilio), "{list:?}");
    assert_eq!((shown(pb::AuditOutcome::Ok), shown(pb::AuditOutcome::Denied)), (2, 2), "{list:?}");
    t.stop().await;
}

#[tokio::test]
async fn jc10_nothing_is_given_when_the_agreement_is_over() {
    let t = Tenant::of("jina", JINA).await;
    t.put("p-1", "service", &[("phone", "+919876543210")]).await;
    // The last day is 31 December 2027 in India; the test starts on 15 January 2026 at 12:00 UTC.
    t.running.test.clock.advance_days(715);
    t.running.test.clock.advance_ms(6 * 3_600_000 + 29 * 60_000);
    t.read("p-1", &["phone"], t.context("delivery", "twilio")).await.expect("one minute before the new year in India");
    t.running.test.clock.advance_ms(60_000);
    let late = t.read("p-1", &["phone"], t.context("delivery", "twilio")).await.unwrap_err();
    assert_eq!(refused(&late), (Code::PermissionDenied, "DPA_EXPIRED".into()));
    t.read("p-1", &["phone"], t.context("delivery", "")).await.expect("the application itself goes on");
    t.stop().await;
}

#[tokio::test]
async fn jw07_each_processor_gets_what_it_needs() {
    let t = Tenant::of("jiwa", JIWA).await;
    t.put("p-1", "sign_in", &[("name", "Made"), ("email", "made@example.com")]).await;
    t.put(
        "p-1",
        "brand_analysis",
        &[
            ("business_description", "Batik"),
            ("instagram_profile", "@batik"),
            ("website_text", "We sell batik"),
            ("influencer_style", "calm"),
        ],
    )
    .await;
    let policy = t.running.test.node.vault.tenant(t.no).unwrap();
    let policy = policy.policy().unwrap();
    let stored = ["name", "email", "business_description", "instagram_profile", "website_text", "influencer_style"];
    let (mut given, mut kept) = (0, 0);
    for recipient in policy.recipients() {
        for purpose in policy.purposes().filter(|p| p.consent.is_empty()) {
            for field in stored {
                let number = t.field(field);
                let want = recipient.purposes.has(purpose.no.0)
                    && recipient.fields.has(number as u16)
                    && purpose.fields.has(number as u16);
                let got = t.read("p-1", &[field], t.context(purpose.name.as_str(), recipient.name.as_str())).await;
                assert_eq!(got.is_ok(), want, "{field} for {}, {}: {:?}", recipient.name, purpose.name, got.err());
                if want { given += 1 } else { kept += 1 }
            }
        }
    }
    assert!(given >= 6 && kept > 100, "{given} {kept}");
    // The text's own words.
    let fal = t.read("p-1", &["email"], t.context("sign_in", "fal")).await.unwrap_err();
    assert_eq!(refused(&fal), unlisted());
    t.read("p-1", &["email"], t.context("sign_in", "google")).await.expect("sign-in");
    t.read("p-1", &["business_description"], t.context("content_generation", "anthropic")).await.expect("generation");
    t.stop().await;
}

#[tokio::test]
async fn jw04_publishing_names_the_approved_post_and_where_it_goes() {
    let t = Tenant::of("jiwa", JIWA).await;
    t.put("p-1", "brand_analysis", &[("business_name", "Batik")]).await;
    t.append("p-1", "brand_analysis", "post", "A caption").await;
    assert_eq!(t.items("p-1", "post", t.context("publish", "meta")).await.expect("publish"), 1);
    let bare = pb::AccessContext { reference: String::new(), ..t.context("publish", "meta") };
    assert_eq!(t.items("p-1", "post", bare).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(refused(&t.items("p-1", "post", t.context("publish", "")).await.unwrap_err()), unlisted());
    assert_eq!(refused(&t.items("p-1", "post", t.context("publish", "fal")).await.unwrap_err()), unlisted());
    t.stop().await;
}

#[tokio::test]
async fn jw09_instagram_tokens_are_for_meta_alone() {
    let t = Tenant::of("jiwa", JIWA).await;
    let field = t.field("instagram_token");
    let token = pb::Value {
        field_id: field,
        kind: Some(pb::value::Kind::Data(b"igt-1".to_vec().into())),
        ..Default::default()
    };
    let put = pb::PutFieldsRequest {
        subject: "p-1".into(),
        values: vec![token],
        context: Some(t.context("connect", "")),
        ..Default::default()
    };
    t.records().put_fields(with(&t.key, put)).await.expect("put");
    t.read("p-1", &["instagram_token"], t.context("publish", "meta")).await.expect("the Graph API");
    for other in ["tiktok", "anthropic", "fal", "google", "supabase", "airwallex", "fonnte"] {
        let answer = t.read("p-1", &["instagram_token"], t.context("publish", other)).await.unwrap_err();
        assert_eq!(refused(&answer), unlisted(), "{other}");
    }
    t.running.test.clock.advance_days(60);
    let got = t.read("p-1", &["instagram_token"], t.context("publish", "meta")).await;
    let there = got.map(|got| got.values.iter().any(|v| v.kind.is_some())).unwrap_or(false);
    assert!(!there, "day 60");
    t.stop().await;
}

#[tokio::test]
async fn je06_the_image_search_gets_no_plain_and_no_masked_value() {
    let t = Tenant::of("jenny", JENNY).await;
    t.put("p-1", "service", &[("name", "Lucia")]).await;
    t.append("p-1", "service", "fabric_sample", "twill").await;
    let refusal = t.items("p-1", "fabric_sample", t.context("service", "jenny_ai")).await.unwrap_err();
    assert_eq!(refused(&refusal), (Code::PermissionDenied, "VIEW_NOT_GRANTED".into()));
    t.items("p-1", "fabric_sample", t.context("service", "aliyun")).await.expect("who keeps the photos");
    t.stop().await;
}

#[tokio::test]
async fn je05_recipients_outside_the_region_have_a_basis() {
    let t = Tenant::of("jenny", JENNY).await;
    t.put("p-1", "service", &[("name", "Lucia"), ("email", "lucia@example.com")]).await;
    t.read("p-1", &["email"], t.context("transactional_email", "sendgrid")).await.expect("standard clauses");
    t.read("p-1", &["email"], t.context("payments", "stripe")).await.expect("inside");
    // A file in which that basis is missing is refused as a whole.
    let without = JENNY.replacen(
        "region = \"us\"\ndpa = \"DPA SendGrid 2026\"\ndpa_expires = 2027-12-31\ntransfer = \"scc\"",
        "region = \"us\"\ndpa = \"DPA SendGrid 2026\"\ndpa_expires = 2027-12-31",
        1,
    );
    assert_ne!(without, JENNY);
    let mut policies = pb::policy_service_client::PolicyServiceClient::new(t.running.channel.clone());
    let apply = pb::ApplyPolicyRequest { policy: without.into_bytes().into(), ..Default::default() };
    let refusal = policies.apply_policy(with(&t.key, apply)).await.unwrap_err();
    assert_eq!(refused(&refusal).1, "POLICY_INVALID");
    t.stop().await;
}

#[tokio::test]
async fn a_reference_of_a_recipient_is_its_own_and_stays() {
    let t = Tenant::of("jina", JINA).await;
    t.put("p-1", "service", &[("phone", "+919876543210")]).await;
    t.put("p-2", "service", &[("phone", "+919876543211")]).await;
    let of = async |subject: &str, recipient: &str| {
        t.read(subject, &["phone"], t.context("delivery", recipient)).await.expect("read").recipient_ref
    };
    let twilio = of("p-1", "twilio").await;
    assert_eq!(twilio, of("p-1", "twilio").await);
    assert_ne!(twilio, of("p-1", "meta").await, "two recipients cannot compare");
    assert_ne!(twilio, of("p-2", "twilio").await);
    assert!(t.read("p-1", &["phone"], t.context("delivery", "")).await.unwrap().recipient_ref.is_empty());
    t.stop().await;
}

#[tokio::test]
async fn a_recipient_is_for_reads_and_the_schema_names_it() {
    let t = Tenant::of("jina", JINA).await;
    let put = pb::PutFieldsRequest {
        subject: "p-1".into(),
        values: vec![text_value(t.field("phone"), "+919876543210")],
        context: Some(t.context("delivery", "twilio")),
        ..Default::default()
    };
    let refusal = t.records().put_fields(with(&t.key, put)).await.unwrap_err();
    assert_eq!(refused(&refusal), (Code::InvalidArgument, "FIELD_INVALID".into()));
    let mut policies = pb::policy_service_client::PolicyServiceClient::new(t.running.channel.clone());
    let schema = policies.get_schema(with(&t.key, pb::GetSchemaRequest::default())).await.expect("schema").into_inner();
    let names: Vec<&str> = schema.recipients.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names[..3], ["meta", "gupshup", "twilio"]);
    assert_eq!(schema.recipients.len(), 8);
    t.stop().await;
}
