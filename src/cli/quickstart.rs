//! `pii-vault quickstart`: from nothing to a running vault with a thousand made-up people, one of them erased, and the
//! proof that yesterday's copy does not bring that one back.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use tokio::sync::watch;
use tonic::Request;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic_types::StatusExt as _;

use crate::cli::error::CliError;
use crate::cli::people::{Person, person};
use crate::cli::recovery::recovery_key_text;
use crate::cli::samples::{self, Credentials, SampleTenant};
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, RootKekSource, TlsConfig, TlsVersion};
use crate::crypto::recovery::RecoveryIdentity;
use crate::grpc::pb;
use crate::ids::SubjectId;
use crate::receipt::Receipt;
use crate::server::prove::{copy_database, prove};
use crate::server::run::{Ports, serve_node, tls};
use crate::server::{Node, init};

const PEOPLE: u64 = 1000;

/// A vault from nothing: certificates, policy, 1,000 made-up people, an erasure and its proof
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pii-vault quickstart
  pii-vault quickstart --exit
  pii-vault quickstart --tenant jiwa-ai --dir /tmp/jiwa
  pii-vault quickstart --dir /tmp/try --port 7443

The directory holds everything: data, keeper, root key, certificates, access keys. For a real vault keep them apart:
see `pii-vault init --help` and docs/OPERATIONS.md.")]
pub struct Quickstart {
    /// Directory to make the vault in; must not exist
    #[arg(long, value_name = "DIR", default_value = "pii-vault-quickstart")]
    dir: PathBuf,
    /// Whose policy and sample data: jina-connect, jiwa-ai, jenny-erp
    #[arg(long, value_name = "NAME", default_value = "jina-connect", value_parser = samples::NAMES)]
    tenant: String,
    /// Port of the server; 0: any free one
    #[arg(long, value_name = "PORT", default_value_t = 7443)]
    port: u16,
    /// End after the tour instead of staying up
    #[arg(long)]
    exit: bool,
}

type Client = InterceptedService<Channel, Bearer>;

/// Puts the access key on every call.
#[derive(Clone)]
pub struct Bearer(AsciiMetadataValue);

impl Bearer {
    pub fn new(key: &str) -> Result<Self, CliError> {
        let mut value: AsciiMetadataValue = format!("Bearer {key}")
            .parse()
            .map_err(|_| CliError::Usage("the access key has a character that no key has".into()))?;
        value.set_sensitive(true);
        Ok(Bearer(value))
    }
}

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, tonic::Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// Certificates of a new authority for localhost.
pub struct LocalCertificates {
    pub authority: String,
    pub certificate: String,
    pub private_key: String,
}

/// Makes an authority and a certificate for localhost and the loopback addresses; for trying out and for tests.
pub fn local_certificates() -> Result<LocalCertificates, rcgen::Error> {
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    ca.distinguished_name.push(DnType::CommonName, "pii-vault quickstart authority");
    let ca_key = KeyPair::generate()?;
    let authority = ca.self_signed(&ca_key)?;
    let issuer = Issuer::new(ca, ca_key);
    let mut params = CertificateParams::new(vec!["localhost".to_owned()])?;
    for ip in ["127.0.0.1", "::1"] {
        params.subject_alt_names.push(SanType::IpAddress(ip.parse().expect("a constant address")));
    }
    params.distinguished_name.push(DnType::CommonName, "localhost");
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?;
    Ok(LocalCertificates {
        authority: authority.pem(),
        certificate: certificate.pem(),
        private_key: key.serialize_pem(),
    })
}

fn failed(what: &str) -> impl FnOnce(&dyn std::fmt::Display) -> CliError + '_ {
    move |error| CliError::Unexpected(format!("{what}: {error}"))
}

pub fn write_private(path: &Path, text: &str) -> Result<(), CliError> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| failed(&path.display().to_string())(&e))?;
    file.write_all(text.as_bytes()).map_err(|e| failed(&path.display().to_string())(&e))
}

fn configuration(dir: &Path, port: u16) -> Config {
    let mut config = Config::default();
    config.data_dir = dir.join("data");
    config.keeper.paths = vec![dir.join("keeper")];
    config.root_kek = Some(RootKekSource::File { path: dir.join("secrets/root.key") });
    config.listen.address = ([127, 0, 0, 1], port).into();
    config.ops.address = ([127, 0, 0, 1], if port == 0 { 0 } else { config.ops.address.port() }).into();
    config.tls = Some(TlsConfig {
        certificate: dir.join("tls/server.pem"),
        private_key: dir.join("tls/server.key"),
        client_ca: None,
        require_client_certificate: false,
        minimum_version: TlsVersion::V13,
    });
    config
}

struct Step(u32);

impl Step {
    fn say(&mut self, what: &str) {
        self.0 += 1;
        println!("{:>2}  {what}", self.0);
    }
    fn note(&self, what: &str) {
        println!("    {what}");
    }
}

impl Quickstart {
    /// Runs the tour.
    pub async fn run(self) -> Result<(), CliError> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let began = clock.monotonic();
        if self.dir.exists() {
            return Err(CliError::Usage(format!(
                "{} exists already: remove it, or name another with --dir",
                self.dir.display()
            )));
        }
        let sample = SampleTenant::of(&self.tenant)
            .ok_or_else(|| CliError::Usage("--tenant: jina-connect, jiwa-ai or jenny-erp".into()))?;
        let mut step = Step(0);
        std::fs::create_dir_all(self.dir.join("tls")).map_err(|e| failed("cannot make the directory")(&e))?;
        let dir = self.dir.canonicalize().map_err(|e| failed("cannot find the directory")(&e))?;
        let certificates = local_certificates().map_err(|e| failed("cannot make certificates")(&e))?;
        write_private(&dir.join("tls/ca.pem"), &certificates.authority)?;
        write_private(&dir.join("tls/server.pem"), &certificates.certificate)?;
        write_private(&dir.join("tls/server.key"), &certificates.private_key)?;
        let mut config = configuration(&dir, self.port);
        config.region = sample.region.into();
        let recovery = RecoveryIdentity::generate();
        let recipients = [recovery.recipient()];
        let made = init(&config, &recipients, clock.clone()).await.map_err(|e| failed("cannot make the vault")(&e))?;
        let public = data_encoding::HEXLOWER.encode(&made.public_key);
        let key_file = dir.join("secrets/recovery.key");
        write_private(&key_file, &recovery_key_text(&recovery, 1, &made.vault.to_string(), &public))?;
        write_private(&dir.join("secrets/operator.key"), &made.operator_key)?;
        step.say(&format!("a new vault in {}: database, keeper, root key, certificates", dir.display()));
        step.note(
            "its recovery key is in secrets/recovery.key: a real one is kept offline, on no machine of the vault",
        );

        let (ports, free) = bind(&mut config).await?;
        if free {
            step.note("the usual port is taken: using a free one");
        }
        let address = ports.grpc.local_addr().map_err(|e| failed("no address")(&e))?;
        let ops = ports.ops.as_ref().and_then(|l| l.local_addr().ok());
        write_private(
            &dir.join("pii-vault.toml"),
            &toml::to_string(&config).map_err(|e| failed("cannot write the configuration")(&e))?,
        )?;
        let node = Node::open(&config, clock.clone()).await.map_err(|e| failed("cannot open the vault")(&e))?;
        let (stop, stopped) = watch::channel(false);
        let state = tls(&config).map_err(|e| failed("cannot use the certificates")(&e))?;
        let node = Arc::new(node);
        let serving = tokio::spawn({
            let (node, config) = (node.clone(), config.clone());
            async move { serve_node(&config, &node, ports, state, None, stopped).await }
        });
        step.say(&format!("a server on https://{address}, TLS 1.3"));

        let toured = tour(sample, &dir, &config, &node, address.port(), &certificates, &made, &mut step, &clock).await;
        let took = clock.monotonic().saturating_sub(began);
        match toured {
            Ok(()) if self.exit => println!("\ndone in {:.1} s", took.as_secs_f64()),
            Ok(()) => {
                println!("\nready after {:.1} s; Ctrl-C ends", took.as_secs_f64());
                what_next(sample, &dir, address.port(), ops);
                let _ = tokio::signal::ctrl_c().await;
            }
            Err(error) => {
                stop.send_replace(true);
                let _ = serving.await;
                return Err(error);
            }
        }
        stop.send_replace(true);
        let served = serving.await.map_err(|e| failed("the server")(&e))?;
        served.map_err(|e| failed("the server")(&e))?;
        if let Some(node) = Arc::into_inner(node) {
            node.close().await;
        }
        Ok(())
    }
}

/// Binds the ports of the configuration, or free ones where they are taken.
async fn bind(config: &mut Config) -> Result<(Ports, bool), CliError> {
    if let Ok(ports) = Ports::bind(config).await {
        return Ok((ports, false));
    }
    config.listen.address.set_port(0);
    config.ops.address.set_port(0);
    let ports = Ports::bind(config).await.map_err(|e| failed("cannot listen")(&e))?;
    if let Ok(address) = ports.grpc.local_addr() {
        config.listen.address = address;
    }
    Ok((ports, true))
}

/// A channel to a local server that trusts this authority.
pub async fn channel(port: u16, authority: &str) -> Result<Channel, CliError> {
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority)).domain_name("localhost");
    let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{port}")).map_err(|e| failed("address")(&e))?;
    let endpoint = endpoint.tls_config(tls).map_err(|e| failed("TLS")(&e))?.connect_timeout(Duration::from_secs(5));
    endpoint.connect().await.map_err(|e| failed("cannot connect")(&e))
}

/// The values of a person by field number.
pub fn values_of(schema: &pb::GetSchemaResponse, person: &Person) -> Vec<pb::Value> {
    let texts = [
        ("name", &person.name),
        ("email", &person.email),
        ("phone", &person.phone),
        ("organisation", &person.organisation),
        ("company", &person.organisation),
        ("ip", &person.ip),
        ("user_agent", &person.user_agent),
    ];
    texts
        .into_iter()
        .filter_map(|(name, text)| {
            let field = schema.fields.iter().find(|f| f.name == name)?;
            let kind = Some(pb::value::Kind::Text(text.clone()));
            Some(pb::Value { field_id: field.field_id, kind, ..Default::default() })
        })
        .collect()
}

#[allow(clippy::too_many_arguments)] // the tour uses everything that was made before it
async fn tour(
    sample: &SampleTenant,
    dir: &Path,
    config: &Config,
    node: &Node,
    port: u16,
    certificates: &LocalCertificates,
    made: &crate::server::node::Initialised,
    step: &mut Step,
    clock: &Arc<dyn Clock>,
) -> Result<(), CliError> {
    let channel = channel(port, &certificates.authority).await?;
    let operator = Bearer::new(&made.operator_key)?;
    let name = sample.name;
    let tenant = pb::Tenant { tenant: name.into(), kind: pb::TenantKind::Test.into(), ..Default::default() };
    pb::tenant_service_client::TenantServiceClient::with_interceptor(channel.clone(), operator.clone())
        .create_tenant(pb::CreateTenantRequest {
            tenant: Some(tenant),
            policy: sample.policy.as_bytes().to_vec().into(),
            ..Default::default()
        })
        .await?;
    step.say(&format!("the tenant {name} (TEST) with its policy, compiled in from examples/tenants/{name}.toml"));

    let mut access =
        pb::access_service_client::AccessServiceClient::with_interceptor(channel.clone(), operator.clone());
    let roles =
        access.list_roles(pb::ListRolesRequest { tenant: name.into(), ..Default::default() }).await?.into_inner().roles;
    let mut key_of = async |name: &str, wanted: &[&str]| -> Result<String, CliError> {
        let role_ids = roles.iter().filter(|r| wanted.contains(&r.name.as_str())).map(|r| r.role_id).collect();
        let tenant = sample.name.into();
        let request = pb::IssueAccessKeyRequest { name: name.into(), role_ids, tenant, ..Default::default() };
        let text = access.issue_access_key(request).await?.into_inner().text;
        write_private(&dir.join(format!("secrets/{name}.key")), &text)?;
        Ok(text)
    };
    let app = key_of("app", &["app"]).await?;
    let dpo = key_of("dpo", &["dpo"]).await?;
    let billing = key_of("billing", &["app", "billing"]).await?;
    step.say("three access keys: `app` reads and writes, `billing` payments too, `dpo` (data protection officer) exports and erases");

    let app = Bearer::new(&app)?;
    let mut records: pb::record_service_client::RecordServiceClient<Client> =
        pb::record_service_client::RecordServiceClient::with_interceptor(channel.clone(), app.clone());
    let schema = pb::policy_service_client::PolicyServiceClient::with_interceptor(channel.clone(), app.clone())
        .get_schema(pb::GetSchemaRequest::default())
        .await?
        .into_inner();
    let purpose = |name: &str| -> Result<u32, CliError> {
        let found = schema.purposes.iter().find(|p| p.name == name).map(|p| p.purpose_id);
        found.ok_or_else(|| CliError::Unexpected(format!("the policy has no purpose {name}")))
    };
    let service = Some(pb::AccessContext { purpose_id: purpose(sample.purpose)?, ..Default::default() });
    let allowed: Vec<u32> =
        schema.purposes.iter().filter(|p| p.name == sample.purpose).flat_map(|p| p.field_ids.clone()).collect();
    let people: Vec<Person> = (0..PEOPLE).map(person).collect();
    let before = clock.monotonic();
    for part in people.chunks(500) {
        let puts = part.iter().map(|p| pb::SubjectPut {
            subject: p.id.clone(),
            values: values_of(&schema, p).into_iter().filter(|v| allowed.contains(&v.field_id)).collect(),
            ..Default::default()
        });
        let request =
            pb::BatchPutFieldsRequest { puts: puts.collect(), context: service.clone(), ..Default::default() };
        for outcome in records.batch_put_fields(request).await?.into_inner().outcomes {
            if let Some(pb::put_outcome::Outcome::Error(error)) = outcome.outcome {
                return Err(CliError::Unexpected(format!("a put was refused: {}", error.reason)));
            }
        }
    }
    let took = clock.monotonic().saturating_sub(before);
    step.say(&format!("{PEOPLE} made-up people stored durably over TLS in {:.2} s", took.as_secs_f64()));

    let loaded = load(sample, &schema, channel.clone(), &billing, &dpo, &people[..samples::PEOPLE]).await?;
    step.say(&format!("{loaded} samples of {}: {}", samples::PEOPLE, kinds(sample)));
    if let Some(kind) = sample.credentials {
        let with = sign_in(kind, channel.clone(), &app, &people[..samples::PEOPLE]).await?;
        step.say(&format!("{} of them sign in with {with}", samples::PEOPLE));
    }

    let someone = &people[42];
    let key = |id: &str| Some(pb::SubjectKey { key: Some(pb::subject_key::Key::Subject(id.into())) });
    let read = |context: &Option<pb::AccessContext>| pb::GetFieldsRequest {
        key: key(&someone.id),
        context: context.clone(),
        ..Default::default()
    };
    let got = records.get_fields(read(&service)).await?.into_inner();
    let name = got.values.iter().find_map(|v| match &v.kind {
        Some(pb::value::Kind::Text(text)) if *text == someone.name => Some(text.clone()),
        _ => None,
    });
    let name = name.ok_or_else(|| CliError::Unexpected("the name did not come back".into()))?;
    step.say(&format!("{} reads back as {name}, {} fields", someone.id, got.values.len()));

    let marketing = Some(pb::AccessContext { purpose_id: purpose(sample.refused)?, ..Default::default() });
    let email_field = schema.fields.iter().find(|f| f.name == "email").map_or(0, |f| f.field_id);
    let mut wrong = read(&marketing);
    wrong.select = Some(pb::Selector { field_ids: vec![email_field], ..Default::default() });
    match records.get_fields(wrong).await {
        Ok(_) => return Err(CliError::Unexpected(format!("a read for {} was not refused", sample.refused))),
        Err(status) => step.say(&format!("the same for {} is refused: {}", sample.refused, rule_of(&status))),
    }

    let mut subjects = pb::subject_service_client::SubjectServiceClient::with_interceptor(channel.clone(), app.clone());
    let term = pb::Term {
        field_id: email_field,
        text: someone.email.to_uppercase(),
        kind: pb::TermKind::Exact.into(),
        ..Default::default()
    };
    let found = subjects
        .find_subjects(pb::FindSubjectsRequest { term: Some(term), context: service.clone(), ..Default::default() })
        .await?
        .into_inner();
    if found.subjects.len() != 1 {
        return Err(CliError::Unexpected(format!("{} subjects found by e-mail", found.subjects.len())));
    }
    step.say("found by e-mail, in another case, through a blind index");

    let copy = dir.join("copy-before-the-erasure");
    copy_database(&config.data_dir, &copy).map_err(|e| failed("cannot copy the database")(&e))?;
    step.say(&format!("the database files copied to {}: what a backup would hold", copy.display()));

    let mut erasures =
        pb::erasure_service_client::ErasureServiceClient::with_interceptor(channel.clone(), Bearer::new(&dpo)?);
    let erased = erasures
        .erase_subject(pb::EraseSubjectRequest {
            key: key(&someone.id),
            request_id: crate::ids::ObjectId::random().to_string(),
            wait_final: true,
            ..Default::default()
        })
        .await?
        .into_inner()
        .erasure
        .unwrap_or_default();
    let after = records.get_fields(read(&service)).await;
    match after {
        Ok(_) => return Err(CliError::Unexpected("the erased subject is still readable".into())),
        Err(status) => step.say(&format!("{} erased; a read now says: {}", someone.id, status.message())),
    }

    let keys = erasures.get_receipt_keys(pb::GetReceiptKeysRequest::default()).await?.into_inner().keys;
    let public: Vec<[u8; 32]> = keys.iter().filter_map(|k| k.public_key.as_ref().try_into().ok()).collect();
    let verified = Receipt::verify(&erased.receipt, &public).map_err(|e| failed("the receipt does not verify")(&e))?;
    let salt: [u8; 32] =
        erased.commitment_salt.as_ref().try_into().map_err(|_| CliError::Unexpected("no salt".into()))?;
    let id = SubjectId::parse("subject", &someone.id).map_err(|e| failed("subject")(&e))?;
    if !verified.receipt.is_about(&id, &salt) {
        return Err(CliError::Unexpected("the receipt is about somebody else".into()));
    }
    write_private(&dir.join("receipt.json"), &String::from_utf8_lossy(&erased.receipt))?;
    write_private(&dir.join("public-key.txt"), &data_encoding::HEXLOWER.encode(&made.public_key))?;
    step.say(&format!(
        "the signed receipt verifies offline (key {}): {}",
        verified.key_id,
        dir.join("receipt.json").display()
    ));

    let proof = prove(node, &copy).await.map_err(|e| failed("the proof")(&e))?;
    let tenant = proof.tenants.first().cloned().unwrap_or_default();
    step.say("a thief with that copy and every present key:");
    step.note(&format!(
        "the old key tree (generation {}) under the present root (generation {}): {}",
        tenant.copy_generation,
        tenant.present_generation,
        if tenant.old_tree_opens { "OPENS" } else { "does not open" }
    ));
    step.note(&format!(
        "the old rows under the present tree: {} of {} living people open, {} values",
        tenant.living_opened, tenant.living, tenant.values_opened
    ));
    step.note(&format!("the erased person: {} of {} classes open", tenant.erased_opened, tenant.erased));
    let expected = tenant.living == PEOPLE - 1 && tenant.erased > 0 && !tenant.old_tree_opens;
    if !proof.holds || !expected {
        return Err(CliError::Unexpected("the proof does not hold".into()));
    }
    Ok(())
}

/// Gives the first people what the tenant's samples say; answers how many values and items were stored.
async fn load(
    sample: &SampleTenant,
    schema: &pb::GetSchemaResponse,
    channel: Channel,
    key: &str,
    dpo: &str,
    people: &[Person],
) -> Result<u64, CliError> {
    let mut records =
        pb::record_service_client::RecordServiceClient::with_interceptor(channel.clone(), Bearer::new(key)?);
    let mut rights = pb::rights_service_client::RightsServiceClient::with_interceptor(channel, Bearer::new(dpo)?);
    let mut loaded = 0;
    for one in sample.samples {
        let missing = || CliError::Unexpected(format!("the policy has no {} for {}", one.field, one.purpose));
        let field = schema.fields.iter().find(|f| f.name == one.field).ok_or_else(missing)?;
        let purpose = schema.purposes.iter().find(|p| p.name == one.purpose).ok_or_else(missing)?;
        let context = Some(pb::AccessContext { purpose_id: purpose.purpose_id, ..Default::default() });
        let kind = match field.r#type() {
            pb::FieldType::Data => pb::value::Kind::Data(one.text.as_bytes().to_vec().into()),
            _ => pb::value::Kind::Text(one.text.into()),
        };
        for person in people {
            if one.consent {
                let consent = pb::ConsentGrant {
                    purpose_id: purpose.purpose_id,
                    evidence: "quickstart".into(),
                    ..Default::default()
                };
                let key = pb::SubjectKey { key: Some(pb::subject_key::Key::Subject(person.id.clone())) };
                let request = pb::GrantConsentRequest { key: Some(key), consent: Some(consent), ..Default::default() };
                rights.grant_consent(request).await?;
            }
            if field.many {
                let value = pb::Value { kind: Some(kind.clone()), ..Default::default() };
                let request = pb::AppendItemsRequest {
                    subject: person.id.clone(),
                    field_id: field.field_id,
                    items: vec![pb::NewItem { values: vec![value], origin_time: None }],
                    context: context.clone(),
                    ..Default::default()
                };
                records.append_items(request).await?;
            } else {
                let value = pb::Value { field_id: field.field_id, kind: Some(kind.clone()), ..Default::default() };
                let request = pb::PutFieldsRequest {
                    subject: person.id.clone(),
                    values: vec![value],
                    context: context.clone(),
                    ..Default::default()
                };
                records.put_fields(request).await?;
            }
            loaded += 1;
        }
    }
    Ok(loaded)
}

/// Gives people passwords or API keys; says which.
async fn sign_in(
    kind: Credentials,
    channel: Channel,
    app: &Bearer,
    people: &[Person],
) -> Result<&'static str, CliError> {
    let mut credentials =
        pb::credential_service_client::CredentialServiceClient::with_interceptor(channel, app.clone());
    for person in people {
        let key = Some(pb::SubjectKey { key: Some(pb::subject_key::Key::Subject(person.id.clone())) });
        match kind {
            Credentials::Passwords => {
                let password = format!("made up for {} in the quickstart", person.id).into_bytes().into();
                let request = pb::SetPasswordRequest { key, password, ..Default::default() };
                credentials.set_password(request).await?;
            }
            Credentials::ApiKeys => {
                let request = pb::IssueApiKeyRequest { key, label: "quickstart".into(), ..Default::default() };
                credentials.issue_api_key(request).await?;
            }
        }
    }
    Ok(match kind {
        Credentials::Passwords => "passwords, kept as Argon2id hashes",
        Credentials::ApiKeys => "API keys, shown once and kept as Argon2id hashes",
    })
}

/// The fields of a tenant's samples, for people.
fn kinds(sample: &SampleTenant) -> String {
    let mut fields: Vec<&str> = sample.samples.iter().map(|one| one.field).collect();
    fields.dedup();
    fields.join(", ")
}

/// The rule that refused a call, as the error's details name it.
fn rule_of(status: &tonic::Status) -> String {
    let details = status.get_error_details();
    let rule = details.error_info().and_then(|info| info.metadata.get("rule").cloned());
    rule.unwrap_or_else(|| status.message().to_owned())
}

fn what_next(sample: &SampleTenant, dir: &Path, port: u16, ops: Option<std::net::SocketAddr>) {
    let (d, purpose) = (dir.display(), sample.purpose);
    let program = std::env::current_exe().map_or("pii-vault".to_owned(), |path| path.display().to_string());
    println!(
        "
Paste next:

  export PII_VAULT_SERVER=https://localhost:{port} PII_VAULT_CA={d}/tls/ca.pem PII_VAULT_ACCESS_KEY_FILE={d}/secrets/app.key
  {program} schema
  {program} get {someone} -p {purpose}
  {program} receipt verify {d}/receipt.json --public-key {d}/public-key.txt
  PII_VAULT_ACCESS_KEY_FILE={d}/secrets/dpo.key {program} report",
        someone = person(43).id,
    );
    // The first programs are written for this tenant's fields.
    if sample.name == "jina-connect" {
        println!(
            "
Python (pip install grpcio grpcio-tools; see examples/python):
  python examples/python/first.py localhost:{port} {d}/tls/ca.pem {d}/secrets/app.key {d}/secrets/dpo.key

Rust:
  cargo run --release --example first -- https://localhost:{port} {d}/tls/ca.pem {d}/secrets/app.key {d}/secrets/dpo.key"
        );
    }
    println!(
        "
grpcurl:
  grpcurl -cacert {d}/tls/ca.pem -import-path proto -proto pii/vault/v1/access_service.proto \\
    -H \"authorization: Bearer $(cat {d}/secrets/app.key)\" localhost:{port} pii.vault.v1.AccessService/WhoAmI"
    );
    if let Some(ops) = ops {
        println!("\nOperations: http://{ops}/readyz  http://{ops}/metrics");
    }
}
