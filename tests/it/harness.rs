//! A vault of its own in a temporary directory, with a manual clock, one tenant and principals of each kind.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pii_vault::access::{FieldSet, Grant, PurposeSet, Verb, VerbSet, View};
use pii_vault::auth::{Kind, Principal};
use pii_vault::clock::{Clock, ManualClock, Timestamp};
use pii_vault::config::{Config, RootKekSource};
use pii_vault::crypto::recovery::RecoveryIdentity;
use pii_vault::ids::*;
use pii_vault::policy::value::Value;
use pii_vault::server::Node;
use pii_vault::vault::approval::ApprovalAsk;
use pii_vault::vault::tenant::TenantKind;
use pii_vault::vault::tenants::NewTenant;
use pii_vault::vault::value::NewValue;
use pii_vault::vault::write::{Put, WriteMode};
use pii_vault::vault::{Call, Context};

/// 2026-01-15T12:00:00Z, a Thursday.
pub const START: Timestamp = Timestamp(1_768_478_400_000);

/// Longest wait for what goes on by itself: far more than it takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const JINA: &str = include_str!("../../examples/tenants/jina-connect.toml");

/// CI's count of rounds, or the full one where `PII_VAULT_TEST_FULL` asks for it.
pub fn rounds<N>(few: N, all: N) -> N {
    if std::env::var_os("PII_VAULT_TEST_FULL").is_some() { all } else { few }
}

/// The same histories each time where every commit is tested, new ones where `PII_VAULT_TEST_FULL` asks for the full count.
pub fn seed() -> proptest::test_runner::RngSeed {
    use proptest::test_runner::RngSeed;
    rounds(RngSeed::Fixed(7), RngSeed::Random)
}

/// What this program counts: one recorder for all tests of it.
pub fn metrics_page() -> &'static metrics_exporter_prometheus::PrometheusHandle {
    static PAGE: std::sync::OnceLock<metrics_exporter_prometheus::PrometheusHandle> = std::sync::OnceLock::new();
    PAGE.get_or_init(|| pii_vault::telemetry::init_metrics().expect("the only recorder of this program"))
}

pub struct TestVault {
    pub dir: tempfile::TempDir,
    pub config: Config,
    pub clock: Arc<ManualClock>,
    pub node: Node,
    /// Opens the key archive.
    pub recovery: RecoveryIdentity,
}

/// Configuration of a vault under `dir`: everything beside each other. A call waits for its hash as long as it takes, for on
/// a busy machine the threads of low priority that make them get no turn for longer than a client should wait.
pub fn config(dir: &Path) -> Config {
    let mut config = Config::default();
    config.data_dir = dir.join("data");
    config.keeper.paths = vec![dir.join("keeper")];
    config.root_kek = Some(RootKekSource::File { path: dir.join("secrets/root.key") });
    config.listen.address = "127.0.0.1:0".parse().unwrap();
    config.ops.address = "127.0.0.1:0".parse().unwrap();
    (config.argon2.max_wait_ms, config.passwords.max_wait_ms) = (60_000, 60_000);
    config
}

impl TestVault {
    /// A new vault.
    pub async fn new() -> Self {
        Self::with(|_| ()).await
    }

    /// A new vault with something else in its configuration.
    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        change(&mut config);
        let clock = Arc::new(ManualClock::new(START));
        let recovery = RecoveryIdentity::generate();
        pii_vault::server::init(&config, &[recovery.recipient()], clock.clone()).await.expect("init");
        let node = Node::open(&config, clock.clone()).await.expect("open");
        TestVault { dir, config, clock, node, recovery }
    }

    /// Closes and opens it again, as a restart does.
    pub async fn restart(self) -> Self {
        let TestVault { dir, config, clock, node, recovery } = self;
        node.close().await;
        let node = Node::open(&config, clock.clone()).await.expect("open again");
        TestVault { dir, config, clock, node, recovery }
    }

    pub fn operator(&self) -> Arc<Principal> {
        Arc::new(Principal {
            actor: ActorId(1),
            tenant: TenantNo::VAULT,
            kind: Kind::Operator,
            grants: Arc::new([everything()]),
            certificate: None,
            expires: None,
            subjects_per_hour: None,
        })
    }

    /// A tenant under a policy.
    pub async fn tenant(&self, name: &str, policy: &str) -> TenantNo {
        let vault = &self.node.vault;
        let own = vault.tenant(TenantNo::VAULT).unwrap();
        let new = NewTenant {
            name: Name::parse("tenant", name).unwrap(),
            kind: TenantKind::Test,
            region: None,
            display_name: None,
            quota_subjects: 0,
        };
        let made =
            vault.create_tenant(&vault.call(self.operator(), own), new, None, None).await.expect("create tenant");
        let call = vault.call(self.operator(), vault.tenant(made.no).unwrap());
        vault.apply_policy(&call, policy, None, None, None, false).await.expect("apply policy");
        made.no
    }

    /// A call by somebody who may do everything in the tenant.
    pub fn call(&self, tenant: TenantNo) -> Call {
        self.call_with(tenant, vec![everything()])
    }

    pub fn call_with(&self, tenant: TenantNo, grants: Vec<Grant>) -> Call {
        call_of(&self.node, tenant, grants)
    }

    /// An approval of this policy file, asked for by whoever [`TestVault::call`] is and granted by another.
    pub async fn approved(&self, tenant: TenantNo, text: &str) -> Option<ObjectId> {
        use sha2::Digest;
        let (vault, call) = (&self.node.vault, self.call(tenant));
        let ask = ApprovalAsk {
            subjects: vec![],
            verbs: VerbSet::from_iter([Verb::Policy]),
            fields: FieldSet::EMPTY,
            purposes: PurposeSet::EMPTY,
            max_view: View::Plain,
            reference: data_encoding::HEXLOWER.encode(&sha2::Sha256::digest(text.as_bytes())).into(),
            expires: call.now.plus_days(1),
        };
        let asked = vault.request_approval(&call, ask, None, false).await.expect("ask").expect("made");
        let other = Principal { actor: ActorId(8), ..(*call.principal).clone() };
        let other = vault.call(Arc::new(other), vault.tenant(tenant).unwrap());
        vault.decide_approval(&other, asked.id, true, None).await.expect("approve");
        Some(asked.id)
    }

    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }
}

/// A call by somebody with these grants.
pub fn call_of(node: &Node, tenant: TenantNo, grants: Vec<Grant>) -> Call {
    let principal = Principal {
        actor: ActorId(7),
        tenant,
        kind: Kind::Tenant,
        grants: grants.into(),
        certificate: None,
        expires: None,
        subjects_per_hour: None,
    };
    node.vault.call(Arc::new(principal), node.vault.tenant(tenant).unwrap())
}

pub fn everything() -> Grant {
    Grant {
        fields: FieldSet::ALL,
        purposes: PurposeSet::ALL,
        verbs: VerbSet::from_iter(Verb::ALL.iter().copied()),
        max_view: View::Plain,
        groups: None,
    }
}

pub fn id(text: &str) -> SubjectId {
    SubjectId::parse("subject", text).unwrap()
}

/// A context with the purpose of that name in the tenant's policy.
pub fn purpose(call: &Call, name: &str) -> Context {
    let name = Name::parse("purpose", name).unwrap();
    let rule = call.tenant.policy().unwrap().purpose_by_name(&name).unwrap_or_else(|| panic!("no purpose {name}"));
    Context { purpose: Some(rule.no), ..Context::default() }
}

pub fn field(call: &Call, name: &str) -> FieldNo {
    let name = Name::parse("field", name).unwrap();
    call.tenant.policy().unwrap().field_by_name(&name).unwrap_or_else(|| panic!("no field {name}")).no
}

/// A put of text fields by name.
pub fn put(call: &Call, subject: &str, values: &[(&str, &str)]) -> Put {
    Put {
        subject: id(subject),
        values: values
            .iter()
            .map(|(name, text)| NewValue { field: field(call, name), value: Value::text((*text).into()), origin: None })
            .collect(),
        mode: WriteMode::Upsert,
        group: None,
        etag: None,
        erase_former: false,
    }
}

/// The text of a value.
pub fn text(value: &Value) -> &str {
    match value {
        Value::Text(text) => text.expose(),
        other => panic!("{other:?} is no text"),
    }
}
