//! Tenants: opening them at start, making, changing and looking at them.

use std::collections::HashMap;
use std::sync::Arc;

use crate::access::Verb;
use crate::audit::{Action, AuditRecord, Outcome};
use crate::auth;
use crate::clock::{Clock, Timestamp};
use crate::ids::*;
use crate::keyring::{Keyring, TenantKeyState};
use crate::storage::readlog::ReadLog;
use crate::storage::*;
use crate::vault::authenticate::Access;
use crate::vault::call::Call;
use crate::vault::credentials::Credentials;
use crate::vault::error::{DenialKind, VaultError};
use crate::vault::own_secrets::OwnSecrets;
use crate::vault::policies::{check_policy, put_policy};
use crate::vault::request::Request;
use crate::vault::tenant::{Tenant, TenantKind, TenantSettings};
use crate::vault::{Tenants, Vault, VaultOptions, to_json};
use arc_swap::ArcSwap;

/// A tenant as operators see it.
#[derive(Debug, Clone)]
pub struct TenantView {
    pub no: TenantNo,
    pub name: Name,
    pub state: TenantState,
    pub keys: TenantKeyState,
    pub settings: TenantSettings,
    pub generation: Generation,
    pub revision: Revision,
    /// Subjects that are there, those that only a hold keeps among them.
    pub subjects: u64,
}

/// What a new tenant is.
pub struct NewTenant {
    pub name: Name,
    pub kind: TenantKind,
    pub region: Option<Name>,
    pub display_name: Option<String>,
    pub quota_subjects: u64,
}

impl Vault {
    /// Opens every tenant whose keys are in order; the others are left out and say why when they are asked for.
    pub async fn open(
        store: Arc<dyn Store>,
        keyring: Arc<Keyring>,
        read_log: Arc<ReadLog>,
        clock: Arc<dyn Clock>,
        options: VaultOptions,
    ) -> Result<Arc<Vault>, VaultError> {
        let access = Access::new(clock.clone(), options.argon2.clone(), options.access_cache)?;
        let credentials = Credentials::new(options.passwords.clone(), options.access_cache, clock.clone())?;
        let vault = Vault {
            access,
            credentials,
            store,
            keyring,
            read_log,
            clock,
            options,
            tenants: ArcSwap::default(),
            settings: tokio::sync::Mutex::new(()),
            root_away: Default::default(),
            rotating: tokio::sync::Mutex::new(()),
            clock_guard: Default::default(),
            upkeep: Default::default(),
            checkpointing: Default::default(),
            evidence: std::sync::Arc::new(tokio::sync::Semaphore::new(crate::vault::evidence::AT_ONCE)),
            signers: ArcSwap::default(),
            known: Default::default(),
            decoys: Default::default(),
            disclosed: Default::default(),
            counting: Default::default(),
        };
        let mut tenants = Tenants::default();
        for row in vault.store.tenants().await? {
            tenants.by_name.insert(row.name.clone(), row.no);
            if row.state == TenantState::Live && vault.keyring.state(row.no) == TenantKeyState::Ready {
                tenants.by_no.insert(row.no, Arc::new(vault.load_tenant(row).await?));
            }
        }
        if let Some(own) = tenants.by_no.get(&TenantNo::VAULT) {
            vault.access.own.store(Arc::new(OwnSecrets::derive(&vault.keyring, &own.settings)));
        }
        vault.tenants.store(Arc::new(tenants));
        if vault.keyring.state(TenantNo::VAULT) == TenantKeyState::Ready {
            vault.note_signer().await?;
        }
        vault.load_keys().await?;
        for tenant in vault.live_tenants() {
            vault.load_decoys(&tenant).await?;
        }
        Ok(Arc::new(vault))
    }

    async fn load_tenant(&self, row: TenantRow) -> Result<Tenant, VaultError> {
        let settings: TenantSettings = serde_json::from_slice(&row.body).map_err(|_| VaultError::DataLoss)?;
        let policy = match settings.policy {
            Some(version) => Some(Arc::new(self.compile_stored(row.no, version).await?)),
            None => None,
        };
        let expiries = self.store.expiries(row.no).await?;
        Tenant::load(&self.keyring, row, policy, &expiries)
    }

    /// Puts a tenant, as it now is, in place of the one that calls see.
    pub(crate) async fn reload_tenant(&self, no: TenantNo) -> Result<Arc<Tenant>, VaultError> {
        let rows = self.store.tenants().await?;
        let row = rows.into_iter().find(|row| row.no == no).ok_or(VaultError::NotFound)?;
        let mut tenant = self.load_tenant(row).await?;
        if let Some(present) = self.tenants.load().by_no.get(&no) {
            // One map for all versions of a tenant: a bucket made by a call that holds the former version is in it.
            tenant.expiries = present.expiries.clone();
        }
        let tenant = Arc::new(tenant);
        self.tenants.rcu(|old| {
            let mut by_no: HashMap<_, _> = old.by_no.clone();
            let mut by_name = old.by_name.clone();
            by_name.insert(tenant.name.clone(), no);
            by_no.insert(no, tenant.clone());
            Tenants { by_no, by_name }
        });
        if no == TenantNo::VAULT {
            self.access.own.store(Arc::new(OwnSecrets::derive(&self.keyring, &tenant.settings)));
        }
        Ok(tenant)
    }

    /// Takes a tenant and its access keys out of the calls' sight.
    pub(crate) fn unload_tenant(&self, no: TenantNo) {
        self.forget_keys(no);
        self.tenants.rcu(|old| {
            let mut by_no = old.by_no.clone();
            by_no.remove(&no);
            Tenants { by_no, by_name: old.by_name.clone() }
        });
    }

    /// The tenant as calls see it now.
    ///
    /// # Errors
    /// `NotFound`, or why its keys are not in order.
    pub fn tenant(&self, no: TenantNo) -> Result<Arc<Tenant>, VaultError> {
        if let Some(tenant) = self.tenants.load().by_no.get(&no) {
            return Ok(tenant.clone());
        }
        match self.keyring.state(no) {
            TenantKeyState::Ready => Err(VaultError::NotFound),
            TenantKeyState::TenantErased => Err(VaultError::TenantErased),
            state => Err(VaultError::KeysNotReady(state)),
        }
    }

    /// The number of a tenant's name; for operators, who name the tenant they mean.
    pub fn tenant_no(&self, name: &Name) -> Option<TenantNo> {
        self.tenants.load().by_name.get(name).copied()
    }

    /// All tenants that calls can reach now.
    pub fn live_tenants(&self) -> Vec<Arc<Tenant>> {
        let mut all: Vec<_> = self.tenants.load().by_no.values().cloned().collect();
        all.sort_by_key(|tenant| tenant.no);
        all
    }

    /// The machine's time.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// A call of a principal in a tenant, now.
    pub fn call(&self, principal: Arc<auth::Principal>, tenant: Arc<Tenant>) -> Call {
        let wall = self.clock.now();
        let pages = self.access.own.load().pages.clone();
        Call { principal, now: tenant.time(wall), wall, tenant, pages }
    }

    async fn view(&self, row: TenantRow) -> Result<TenantView, VaultError> {
        Ok(TenantView {
            subjects: self.store.subject_count(row.no).await?,
            settings: serde_json::from_slice(&row.body).map_err(|_| VaultError::DataLoss)?,
            no: row.no,
            name: row.name,
            state: row.state,
            keys: self.keyring.state(row.no),
            generation: row.generation,
            revision: row.revision,
        })
    }

    /// Makes a tenant, with its first policy where one is given: its root is durable in every replica of the keeper
    /// before its row is.
    pub async fn create_tenant(
        &self,
        call: &Call,
        new: NewTenant,
        policy: Option<&str>,
        request: Option<Request>,
    ) -> Result<TenantView, VaultError> {
        self.operators_only(call)?;
        let _one_at_a_time = self.settings.lock().await;
        let known: Option<TenantNo> = self.repeated(call, request.as_ref()).await?;
        let rows = self.store.tenants().await?;
        if let Some(no) = known {
            let row = rows.into_iter().find(|row| row.no == no).ok_or(VaultError::NotFound)?;
            return self.view(row).await;
        }
        if rows.iter().any(|row| row.name == new.name) {
            return Err(VaultError::AlreadyExists);
        }
        let mut settings = TenantSettings::new(new.kind, call.wall);
        (settings.region, settings.display_name) = (new.region, new.display_name);
        settings.quota_subjects = new.quota_subjects;
        let no = self.keyring.next_tenant().await?;
        let mut change = ChangeSet::default();
        for tenant in [no, TenantNo::VAULT] {
            change.note(tenant, call.record(Action::CreateTenant, Outcome::Ok).to_bytes());
        }
        if let Some(text) = policy {
            let version = PolicyVersion(1);
            check_policy(text, version, None, settings.region.as_ref(), call.now)?;
            put_policy(call, no, version, text, None, &mut change);
            change.note(no, call.record(Action::ApplyPolicy, Outcome::Ok).to_bytes());
            settings.policy = Some(version);
        }
        self.remember(call, request.as_ref(), &no, &mut change);
        let row = TenantRow {
            no,
            name: new.name,
            state: TenantState::Live,
            generation: Generation(1),
            body: to_json(&settings),
            revision: Revision(1),
        };
        self.keyring.create_tenant(row.clone(), change).await?;
        self.reload_tenant(row.no).await?;
        self.view(row).await
    }

    /// Operators see every tenant; a tenant's own credential sees that one.
    pub async fn list_tenants(&self, call: &Call) -> Result<Vec<TenantView>, VaultError> {
        let rows = self.store.tenants().await?;
        let operator = call.principal.kind == auth::Kind::Operator;
        let seen = |row: &TenantRow| row.no != TenantNo::VAULT && (operator || row.no == call.principal.tenant);
        let mut views = Vec::with_capacity(rows.len());
        for row in rows.into_iter().filter(seen) {
            views.push(self.view(row).await?);
        }
        Ok(views)
    }

    /// The call's tenant.
    pub async fn get_tenant(&self, call: &Call) -> Result<TenantView, VaultError> {
        let rows = self.store.tenants().await?;
        let row = rows.into_iter().find(|row| row.no == call.tenant.no).ok_or(VaultError::NotFound)?;
        self.view(row).await
    }

    /// Counts of the call's tenant; may scan.
    pub async fn usage(&self, call: &Call) -> Result<TenantCounts, VaultError> {
        if call.principal.kind != auth::Kind::Operator {
            call.permit(Verb::Operate)?;
        }
        Ok(self.store.counts(call.tenant.no).await?)
    }

    /// Changes a tenant's settings; `edit` may run again.
    pub(crate) async fn edit_settings(
        &self,
        no: TenantNo,
        wanted: Option<Revision>,
        record: AuditRecord,
        edit: impl FnMut(&mut TenantSettings) -> Result<(), VaultError>,
    ) -> Result<Arc<Tenant>, VaultError> {
        self.edit_settings_with(no, wanted, record, &ChangeSet::default(), edit).await
    }

    /// The same together with another change, both or neither.
    pub(crate) async fn edit_settings_with(
        &self,
        no: TenantNo,
        wanted: Option<Revision>,
        record: AuditRecord,
        with: &ChangeSet,
        mut edit: impl FnMut(&mut TenantSettings) -> Result<(), VaultError>,
    ) -> Result<Arc<Tenant>, VaultError> {
        for _ in 0..6 {
            let rows = self.store.tenants().await?;
            let mut row = rows.into_iter().find(|row| row.no == no).ok_or(VaultError::NotFound)?;
            if wanted.is_some_and(|wanted| wanted != row.revision) {
                return Err(VaultError::EtagStale);
            }
            let mut settings: TenantSettings = serde_json::from_slice(&row.body).map_err(|_| VaultError::DataLoss)?;
            edit(&mut settings)?;
            let mut change = with.clone();
            // The row's generation moves with every swap: only the settings are compared and set.
            change.require(Precondition::TenantSettingsAt { tenant: no, revision: row.revision });
            row.revision = Revision(row.revision.0 + 1);
            let (body, revision) = (to_json(&settings), row.revision);
            change.change(Mutation::SetTenantSettings { tenant: no, body, revision });
            change.note(no, record.to_bytes());
            match self.store.commit(change).await {
                Ok(_) => return self.reload_tenant(no).await,
                // The same request beside this one: its repeat is answered.
                Err(StoreError::Conflict(Conflict::Request)) => return Err(VaultError::Conflict),
                Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(VaultError::Conflict)
    }

    /// Changes what may be changed of a tenant; with `validate_only` answers what would become of it.
    pub async fn update_tenant(
        &self,
        call: &Call,
        etag: Option<Revision>,
        display_name: Option<Option<String>>,
        quota_subjects: Option<u64>,
        request: Option<Request>,
        validate_only: bool,
    ) -> Result<TenantView, VaultError> {
        if quota_subjects.is_some() {
            self.operators_only(call)?;
        } else if call.principal.kind != auth::Kind::Operator {
            call.permit(Verb::Operate)?;
        }
        if self.repeated::<()>(call, request.as_ref()).await?.is_some() {
            return self.get_tenant(call).await;
        }
        let edit = |settings: &mut TenantSettings| {
            if let Some(name) = &display_name {
                settings.display_name = name.clone();
            }
            if let Some(quota) = quota_subjects {
                settings.quota_subjects = quota;
            }
        };
        if validate_only {
            let mut view = self.get_tenant(call).await?;
            if etag.is_some_and(|etag| etag != view.revision) {
                return Err(VaultError::EtagStale);
            }
            edit(&mut view.settings);
            return Ok(view);
        }
        let record = call.record(Action::UpdateTenant, Outcome::Ok);
        let mut change = ChangeSet::default();
        self.remember(call, request.as_ref(), &(), &mut change);
        let edited = self.edit_settings_with(call.tenant.no, etag, record, &change, |settings| {
            edit(settings);
            Ok(())
        });
        self.view(edited.await?.row.clone()).await
    }

    /// Moves a TEST tenant's clock on and does what became due. A LIVE one's never moves. A repeat goes on with the work,
    /// not with the clock.
    pub async fn advance_clock(
        &self,
        call: &Call,
        by_ms: i64,
        request: Option<Request>,
    ) -> Result<Timestamp, VaultError> {
        if call.principal.kind != auth::Kind::Operator {
            call.permit(Verb::Operate)?;
        }
        if call.tenant.settings.kind != TenantKind::Test {
            return Err(VaultError::denied(DenialKind::TestTenantOnly, "only a TEST tenant's clock can be advanced"));
        }
        if !(1..=crate::clock::DAY_MS * 36_500).contains(&by_ms) {
            return Err(VaultError::invalid("by", "must be more than zero and at most 36,500 days"));
        }
        let no = call.tenant.no;
        if self.repeated::<()>(call, request.as_ref()).await?.is_none() {
            let record = call.record(Action::AdvanceClock, Outcome::Ok);
            let mut change = ChangeSet::default();
            self.remember(call, request.as_ref(), &(), &mut change);
            self.edit_settings_with(no, None, record, &change, |settings| {
                settings.clock_offset_ms = settings.clock_offset_ms.saturating_add(by_ms);
                Ok(())
            })
            .await?;
        }
        self.run_due_work(no).await?;
        Ok(self.tenant(no)?.time(self.clock.now()))
    }

    /// Refuses all but operators and the vault's own jobs.
    pub(crate) fn for_operators(&self, call: &Call) -> Result<(), VaultError> {
        if call.principal.actor == ActorId(0) { Ok(()) } else { self.operators_only(call) }
    }

    pub(crate) fn operators_only(&self, call: &Call) -> Result<(), VaultError> {
        match call.principal.kind {
            auth::Kind::Operator => Ok(()),
            _ => Err(VaultError::denied(DenialKind::NotPermitted, "operator.only")),
        }
    }
}
