//! A worked login: sign-up, e-mail code, login, lock and unlock, change, a bcrypt user upgraded at login, an API key checked
//! in the path of a request, and all of it gone with the person.
//!
//!     cargo run --release --example login -- https://localhost:7443 CA_PEM APP_KEY_FILE DPO_KEY_FILE
//!
//! `pii-vault quickstart` makes the server and the files.

use pii_vault::grpc::pb;
use pii_vault::grpc::pb::credential_service_client::CredentialServiceClient;
use pii_vault::grpc::pb::erasure_service_client::ErasureServiceClient;
use pii_vault::grpc::pb::policy_service_client::PolicyServiceClient;
use pii_vault::grpc::pb::record_service_client::RecordServiceClient;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig};
use tonic::{Request, Status};

type Error = Box<dyn std::error::Error>;

/// Of the password "correct horse battery staple", as another system kept it (bcrypt, Python).
const OLD_HASH: &str = "$2b$04$abcdefghijklmnopqrstuu7EJV7kdjBBQxyb0HjTh9KS7.Lah/6CG";

/// Adds the access key to each call.
#[derive(Clone)]
struct Bearer(AsciiMetadataValue);

impl Bearer {
    fn from_file(file: &str) -> Result<Self, Error> {
        Ok(Bearer(format!("Bearer {}", std::fs::read_to_string(file)?.trim()).parse()?))
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// What a login of a shop needs.
struct Login {
    credentials: CredentialServiceClient<InterceptedService<Channel, Bearer>>,
    records: RecordServiceClient<InterceptedService<Channel, Bearer>>,
    email: u32,
    context: Option<pb::AccessContext>,
}

fn key(subject: &str) -> Option<pb::SubjectKey> {
    Some(pb::SubjectKey { key: Some(pb::subject_key::Key::Subject(subject.into())) })
}

fn ok(verdict: i32) -> bool {
    verdict == pb::Verdict::Ok as i32
}

/// The example proves what it says: what is not so ends it.
fn must(holds: bool, what: &str) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(format!("it is not so that {what}").into()) }
}

impl Login {
    async fn sign_up(&mut self) -> Result<String, Error> {
        let subject = format!("usr_{}", uuid::Uuid::new_v4().simple());
        let email = pb::Value {
            field_id: self.email,
            kind: Some(pb::value::Kind::Text(format!("{subject}@example.com"))),
            ..Default::default()
        };
        let request = pb::PutFieldsRequest {
            subject: subject.clone(),
            values: vec![email],
            context: self.context.clone(),
            ..Default::default()
        };
        self.records.put_fields(request).await?;
        Ok(subject)
    }

    async fn verify(&mut self, who: &str, password: &str, from: &str) -> Result<pb::VerifyPasswordResponse, Error> {
        let request = pb::VerifyPasswordRequest {
            key: key(who),
            password: password.as_bytes().to_vec().into(),
            source: from.as_bytes().to_vec().into(),
            ..Default::default()
        };
        Ok(self.credentials.verify_password(request).await?.into_inner())
    }

    /// The path of a request that a user's program makes: 200, 401 or 403.
    async fn serve(&mut self, authorization: &str, owner: &str) -> Result<u16, Error> {
        let text = authorization.trim_start_matches("Bearer ").to_owned();
        let request = pb::VerifyApiKeyRequest { text, ..Default::default() };
        let found = self.credentials.verify_api_key(request).await?.into_inner();
        Ok(match ok(found.verdict) {
            true if found.scope_ids.contains(&3) && found.subject == owner => 200,
            true => 403,
            false => 401,
        })
    }
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
    let (app, dpo) = (Bearer::from_file(app_key)?, Bearer::from_file(dpo_key)?);
    let mut policy = PolicyServiceClient::with_interceptor(channel.clone(), app.clone());
    let schema = policy.get_schema(pb::GetSchemaRequest::default()).await?.into_inner();
    let purpose_id = schema.purposes.iter().find(|p| p.name == "service").map(|p| p.purpose_id).unwrap_or_default();
    let mut login = Login {
        credentials: CredentialServiceClient::with_interceptor(channel.clone(), app.clone()),
        records: RecordServiceClient::with_interceptor(channel.clone(), app),
        email: schema.fields.iter().find(|f| f.name == "email").map(|f| f.field_id).unwrap_or_default(),
        context: Some(pb::AccessContext { purpose_id, ..Default::default() }),
    };

    // Sign-up: the person, a password, and a code that proves the address.
    let jane = login.sign_up().await?;
    let password = "a quiet green harbour";
    let set = pb::SetPasswordRequest { key: key(&jane), password: password.into(), ..Default::default() };
    login.credentials.set_password(set).await?;
    let issue = pb::IssueCodeRequest { key: key(&jane), r#use: "confirm".into(), ..Default::default() };
    let text = login.credentials.issue_code(issue).await?.into_inner().text;
    let typed = pb::VerifyCodeRequest { key: key(&jane), r#use: "confirm".into(), text, ..Default::default() };
    let first = login.credentials.verify_code(typed.clone()).await?.into_inner();
    let second = login.credentials.verify_code(typed).await?.into_inner();
    must(ok(first.verdict) && !ok(second.verdict), "a code works once")?;
    println!("signed up; the code worked once");

    // Login. To a key without the verb `credential` all kinds of NO are one; this one is told which it was.
    let (home, stranger) = ("198.51.100.7", "203.0.113.9");
    must(ok(login.verify(&jane, password, home).await?.verdict), "the password is right")?;
    let mut no = pb::VerifyPasswordResponse::default();
    for _ in 0..9 {
        no = login.verify(&jane, "a guess", stranger).await?;
        if no.detail == pb::VerdictDetail::Locked as i32 {
            break;
        }
    }
    must(no.detail == pb::VerdictDetail::Locked as i32, "guesses lock")?;
    println!("after some guesses the next one waits {} s", no.retry_after_s);
    // Jane came in from her own address before, so a stranger's guesses do not lock her out there.
    must(ok(login.verify(&jane, password, home).await?.verdict), "strangers do not lock her out")?;
    let unlock = pb::UnlockPasswordRequest { key: key(&jane), ..Default::default() };
    login.credentials.unlock_password(unlock).await?;
    let change = pb::ChangePasswordRequest {
        key: key(&jane),
        password: password.into(),
        new_password: "a loud red mountain".into(),
        ..Default::default()
    };
    must(ok(login.credentials.change_password(change).await?.into_inner().verdict), "it was changed")?;
    println!("unlocked and changed");

    // Somebody who comes from the old system: nobody has to reset a password.
    let joe = login.sign_up().await?;
    let import = pb::ImportPasswordRequest { key: key(&joe), hash: OLD_HASH.into(), ..Default::default() };
    let taken = login.credentials.import_password(import).await?.into_inner();
    must(taken.imported && taken.algorithm == "bcrypt", "the hash was taken over")?;
    must(ok(login.verify(&joe, "correct horse battery staple", home).await?.verdict), "it is checked")?;
    let report = login.credentials.report_credentials(pb::ReportCredentialsRequest {}).await?.into_inner();
    let kept: Vec<&str> = report.counts.iter().filter(|c| c.kind == "password").map(|c| c.algorithm.as_str()).collect();
    must(kept == ["argon2id"], "all passwords are kept as Argon2id")?;
    println!("a bcrypt hash was upgraded at its login");

    // An API key, and the path of a request that checks it.
    let issue = pb::IssueApiKeyRequest {
        key: key(&jane),
        label: "nightly export".into(),
        scope_ids: vec![3],
        ..Default::default()
    };
    let header = format!("Bearer {}", login.credentials.issue_api_key(issue).await?.into_inner().text);
    must(login.serve(&header, &jane).await? == 200, "the key opens a request")?;
    must(login.serve(&header[..header.len() - 1], &jane).await? == 401, "a cut key opens none")?;

    // The person goes, and with her every way in.
    let erase = pb::EraseSubjectRequest {
        key: key(&jane),
        request_id: uuid::Uuid::new_v4().to_string(),
        wait_final: true,
        ..Default::default()
    };
    ErasureServiceClient::with_interceptor(channel, dpo).erase_subject(erase).await?;
    must(login.serve(&header, &jane).await? == 401, "her key is gone")?;
    let gone = login.verify(&jane, "a loud red mountain", home).await?;
    must(gone.detail == pb::VerdictDetail::Unknown as i32, "her password is gone")?;
    println!("erased: password and API key say NO");
    Ok(())
}
