//! A first program: who am I, what is the schema, put, get, erase, receipt.
//!
//!     cargo run --release --example first -- https://localhost:7443 CA_PEM APP_KEY_FILE DPO_KEY_FILE
//!
//! `pii-vault quickstart` makes the server and the files.

use pii_vault::grpc::pb;
use pii_vault::grpc::pb::access_service_client::AccessServiceClient;
use pii_vault::grpc::pb::erasure_service_client::ErasureServiceClient;
use pii_vault::grpc::pb::policy_service_client::PolicyServiceClient;
use pii_vault::grpc::pb::record_service_client::RecordServiceClient;
use pii_vault::receipt::Receipt;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig};
use tonic::{Request, Status};

type Error = Box<dyn std::error::Error>;

/// Adds the access key to each call.
fn bearer(file: &str) -> Result<impl FnMut(Request<()>) -> Result<Request<()>, Status> + Clone + use<>, Error> {
    let key: AsciiMetadataValue = format!("Bearer {}", std::fs::read_to_string(file)?.trim()).parse()?;
    Ok(move |mut request: Request<()>| {
        request.metadata_mut().insert("authorization", key.clone());
        Ok(request)
    })
}

fn subject(id: &str) -> Option<pb::SubjectKey> {
    Some(pb::SubjectKey { key: Some(pb::subject_key::Key::Subject(id.into())) })
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [server, ca, app_key, dpo_key] = args.as_slice() else {
        return Err("wanted: SERVER CA_PEM APP_KEY_FILE DPO_KEY_FILE".into());
    };
    let _ = rustls::crypto::ring::default_provider().install_default();
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(std::fs::read(ca)?)).domain_name("localhost");
    let channel = Channel::from_shared(server.clone())?.tls_config(tls)?.connect().await?;
    let (app, dpo) = (bearer(app_key)?, bearer(dpo_key)?);

    let me = AccessServiceClient::with_interceptor(channel.clone(), app.clone())
        .who_am_i(pb::WhoAmIRequest::default())
        .await?
        .into_inner();
    println!("I am an access key of tenant {}", me.tenant);

    // Requests carry numbers; the schema has their names.
    let schema = PolicyServiceClient::with_interceptor(channel.clone(), app.clone())
        .get_schema(pb::GetSchemaRequest::default())
        .await?
        .into_inner();
    let field = |name: &str| schema.fields.iter().find(|f| f.name == name).map(|f| f.field_id).unwrap_or_default();
    let service = schema.purposes.iter().find(|p| p.name == "service").map(|p| p.purpose_id).unwrap_or_default();
    let context = Some(pb::AccessContext { purpose_id: service, ..Default::default() });

    let id = format!("usr_{}", uuid::Uuid::new_v4().simple());
    let text = |name: &str, text: &str| pb::Value {
        field_id: field(name),
        kind: Some(pb::value::Kind::Text(text.into())),
        ..Default::default()
    };
    let mut records = RecordServiceClient::with_interceptor(channel.clone(), app);
    records
        .put_fields(pb::PutFieldsRequest {
            subject: id.clone(),
            values: vec![text("name", "Ana Öztürk"), text("email", &format!("{id}@example.com"))],
            context: context.clone(),
            ..Default::default()
        })
        .await?;

    let got = records
        .get_fields(pb::GetFieldsRequest { key: subject(&id), context: context.clone(), ..Default::default() })
        .await?
        .into_inner();
    println!("read back {} values", got.values.iter().filter(|v| v.kind.is_some()).count());

    let mut erasures = ErasureServiceClient::with_interceptor(channel, dpo);
    let erased = erasures
        .erase_subject(pb::EraseSubjectRequest {
            key: subject(&id),
            request_id: uuid::Uuid::new_v4().to_string(),
            wait_final: true,
            ..Default::default()
        })
        .await?
        .into_inner()
        .erasure
        .ok_or("no erasure in the answer")?;

    let keys = erasures.get_receipt_keys(pb::GetReceiptKeysRequest::default()).await?.into_inner().keys;
    let keys: Vec<[u8; 32]> = keys.iter().filter_map(|k| k.public_key.as_ref().try_into().ok()).collect();
    let verified = Receipt::verify(&erased.receipt, &keys)?;
    println!("erased {} classes, receipt signed by {}", verified.receipt.erased.len(), verified.key_id);

    let gone = records.get_fields(pb::GetFieldsRequest { key: subject(&id), context, ..Default::default() }).await;
    println!("a read now says {:?}", gone.err().map(|status| status.code()));
    Ok(())
}
