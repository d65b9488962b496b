//! References of recipients, and what a recipient is not for, over a socket.

use pii_vault::grpc::pb;
use tonic::Code;

use crate::company::*;
use crate::harness::JINA;
use crate::net::*;

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
