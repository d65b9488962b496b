//! Roles: those of the policy file, those made by calls, and the two that are always there; compiled into [`Grant`]s
//! against the policy in force.
//!
//! A tenant's compiled roles carry a stamp: version of the policy and a counter that every change of a role or a new
//! group moves on. Who uses them compares the stamp first, so that a change is seen by the next call and nothing needs to be
//! pushed anywhere.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use crate::access::{FieldSet, Grant, PurposeSet, Verb, VerbSet, View};
use crate::audit::{Action, Outcome};
use crate::auth::{Kind, Principal, touches_values};
use crate::clock::Timestamp;
use crate::ids::*;
use crate::keyring::ledger::{LedgerEntry, LedgerKind};
use crate::policy::compiled::Policy;
use crate::storage::*;
use crate::vault::call::Call;
use crate::vault::error::{DenialKind, VaultError, Violation};
use crate::vault::request::Request;
use crate::vault::tenant::Tenant;
use crate::vault::{Vault, to_json};

/// The role of a tenant's administrator: every verb that touches no value. It is there without a policy, so that a new
/// tenant can be set up.
pub const ADMIN: RoleNo = RoleNo(65_536);
/// Made roles have higher numbers than this; those of the policy file are below [`ADMIN`].
const MADE_ABOVE: u32 = 65_599;
/// Most grants of a role.
pub const MAX_GRANTS: usize = 64;
/// Most groups that a grant can name.
const MAX_GROUPS: usize = 256;
/// Most roles that can be made in a tenant.
const MAX_MADE: usize = 1_000;
/// Most subjects in an hour that can be counted exactly in bounded memory.
pub const MAX_SUBJECTS_PER_HOUR: u32 = 100_000;

/// A grant as it is asked for.
#[derive(Debug, Clone)]
pub struct NewGrant {
    /// With `fields` both empty: every field.
    pub classes: Vec<ClassNo>,
    pub fields: Vec<FieldNo>,
    pub purposes: Vec<PurposeNo>,
    pub verbs: VerbSet,
    pub max_view: View,
    /// `None`: every subject.
    pub groups: Option<Vec<SubjectId>>,
    /// 0: no limit.
    pub subjects_per_hour: u32,
}

/// A role as it is asked for.
#[derive(Debug, Clone)]
pub struct NewRole {
    pub name: Name,
    pub grants: Vec<NewGrant>,
}

/// A role as callers see it.
#[derive(Debug, Clone)]
pub struct Role {
    pub no: RoleNo,
    pub name: Name,
    pub grants: Vec<NewGrant>,
    /// It cannot be changed by a call: it comes from the policy file or is always there.
    pub fixed: bool,
    pub from_policy: bool,
    /// 0 for roles that have none of their own.
    pub revision: Revision,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct GrantBody {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    classes: Vec<ClassNo>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    fields: Vec<FieldNo>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    purposes: Vec<PurposeNo>,
    verbs: u32,
    masked: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    groups: Option<Vec<GroupNo>>,
    #[serde(default)]
    subjects_per_hour: u32,
}

/// What is stored of a made role.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RoleBody {
    name: Name,
    grants: Vec<GrantBody>,
    created: Timestamp,
    by: ActorId,
}

/// A grant, ready to be asked, and where it comes from.
#[derive(Debug, Clone)]
pub struct CompiledGrant {
    pub grant: Grant,
    /// Line of the policy file; 0: not from there.
    pub line: u32,
    /// 0: no limit.
    pub subjects_per_hour: u32,
}

/// A role, ready to be given to a principal.
#[derive(Debug)]
pub struct CompiledRole {
    pub no: RoleNo,
    pub name: Name,
    pub grants: Vec<CompiledGrant>,
}

/// All roles of a tenant under one policy.
#[derive(Debug)]
pub struct TenantRoles {
    pub policy: Option<PolicyVersion>,
    pub generation: u64,
    pub roles: BTreeMap<RoleNo, CompiledRole>,
}

impl TenantRoles {
    /// The grants of several roles, one after the other.
    pub fn grants(&self, roles: &[RoleNo]) -> Vec<Grant> {
        let of = |no: &RoleNo| self.roles.get(no).into_iter().flat_map(|role| &role.grants);
        roles.iter().flat_map(of).map(|grant| grant.grant.clone()).collect()
    }
}

/// A tenant's roles in memory; shared by its access keys.
#[derive(Default)]
pub struct RoleState {
    generation: AtomicU64,
    current: ArcSwapOption<TenantRoles>,
    compiling: tokio::sync::Mutex<()>,
}

impl RoleState {
    /// Moves on with every change: what carries another number is stale.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// To be called after a change is durable and before it is answered.
    fn changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }
}

/// The roles of all tenants in memory.
#[derive(Default)]
pub struct RoleTable(RwLock<HashMap<TenantNo, Arc<RoleState>>>);

impl RoleTable {
    /// The state of a tenant's roles; the same one for as long as the process lives.
    pub fn of(&self, tenant: TenantNo) -> Arc<RoleState> {
        if let Some(state) = self.0.read().get(&tenant) {
            return state.clone();
        }
        self.0.write().entry(tenant).or_default().clone()
    }
}

/// Every verb that touches no value, for every subject. The fields and purposes are for verbs such as `erase`, which may
/// be asked with them: a grant without a value verb shows nothing, whatever else is in it.
pub fn without_values() -> Grant {
    Grant {
        fields: FieldSet::ALL,
        purposes: PurposeSet::ALL,
        verbs: Verb::ALL.iter().copied().filter(|verb| !touches_values(*verb)).collect(),
        max_view: View::Masked,
        groups: None,
    }
}

/// Whether everything that `inner` allows is allowed by `outer` too. Each verb with each purpose is looked at by itself,
/// as decisions do; where that is not plain, the answer is no.
pub fn within(inner: &[Grant], outer: &[Grant]) -> bool {
    let groups_within = |a: &Grant, b: &Grant| match (&a.groups, &b.groups) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(a), Some(b)) => a.iter().all(|group| b.contains(group)),
    };
    inner.iter().all(|grant| {
        grant.verbs.iter().all(|verb| {
            let mut fitting = outer.iter().filter(|o| o.verbs.has(verb) && groups_within(grant, o)).peekable();
            if fitting.peek().is_none() {
                return false;
            }
            if !touches_values(verb) && grant.purposes.is_empty() {
                return true;
            }
            // Verbs that show nothing have no view to compare.
            let fitting: Vec<&Grant> =
                fitting.filter(|o| !touches_values(verb) || o.max_view >= grant.max_view).collect();
            grant.purposes.iter().all(|purpose| {
                let all = fitting.iter().filter(|o| o.purposes.has(purpose));
                let fields = all.fold(FieldSet::EMPTY, |fields, o| fields.or(&o.fields));
                grant.fields.within(&fields)
            })
        })
    })
}

fn role_key(no: RoleNo) -> Vec<u8> {
    no.0.to_be_bytes().to_vec()
}

fn key_no(row: &ObjectRow) -> Result<RoleNo, VaultError> {
    let bytes: [u8; 4] = row.key.as_slice().try_into().map_err(|_| VaultError::DataLoss)?;
    Ok(RoleNo(u32::from_be_bytes(bytes)))
}

fn read_body(row: &ObjectRow) -> Result<RoleBody, VaultError> {
    serde_json::from_slice(&row.body).map_err(|_| VaultError::DataLoss)
}

/// A stored grant under the policy in force. Numbers that the policy has no more give nothing.
fn compile(policy: Option<&Policy>, grant: &GrantBody) -> CompiledGrant {
    let fields = match (policy, grant.classes.is_empty() && grant.fields.is_empty()) {
        (_, true) => FieldSet::ALL,
        (Some(policy), false) => policy.field_set(grant.classes.iter().copied(), grant.fields.iter().copied()),
        (None, false) => FieldSet::EMPTY,
    };
    CompiledGrant {
        grant: Grant {
            fields,
            purposes: grant.purposes.iter().map(|no| no.0).collect(),
            verbs: VerbSet(grant.verbs),
            max_view: if grant.masked { View::Masked } else { View::Plain },
            groups: grant.groups.clone().map(Vec::into_boxed_slice),
        },
        line: 0,
        subjects_per_hour: grant.subjects_per_hour,
    }
}

impl Vault {
    /// The tenant's roles under the policy in force.
    pub(crate) async fn tenant_roles(&self, no: TenantNo) -> Result<Arc<TenantRoles>, VaultError> {
        let state = self.access.roles.of(no);
        let fresh = |tenant: &Tenant| {
            let current = state.current.load_full()?;
            (current.generation == state.generation() && current.policy == tenant.settings.policy).then_some(current)
        };
        if let Some(current) = fresh(&*self.tenant(no)?) {
            return Ok(current);
        }
        let _one_at_a_time = state.compiling.lock().await;
        let tenant = self.tenant(no)?;
        if let Some(current) = fresh(&tenant) {
            return Ok(current);
        }
        // The stamp is taken before anything is read: a change in between makes what is compiled here stale at once.
        let generation = state.generation();
        let roles = Arc::new(TenantRoles {
            policy: tenant.settings.policy,
            generation,
            roles: self.compile_roles(&tenant, tenant.policy.as_deref()).await?,
        });
        state.current.store(Some(roles.clone()));
        Ok(roles)
    }

    /// The tenant's roles as they would be under a policy.
    pub(crate) async fn compile_roles(
        &self,
        tenant: &Tenant,
        policy: Option<&Policy>,
    ) -> Result<BTreeMap<RoleNo, CompiledRole>, VaultError> {
        let mut roles = BTreeMap::new();
        if tenant.no != TenantNo::VAULT {
            let grants = vec![CompiledGrant { grant: without_values(), line: 0, subjects_per_hour: 0 }];
            roles.insert(ADMIN, CompiledRole { no: ADMIN, name: admin_name(tenant), grants });
        }
        for rule in policy.iter().flat_map(|policy| policy.roles()) {
            let mut grants = Vec::with_capacity(rule.grants.len());
            for grant in &rule.grants {
                let groups = match &grant.groups {
                    Some(ids) => Some(self.numbers_of_groups(tenant, ids).await?.into_boxed_slice()),
                    None => None,
                };
                grants.push(CompiledGrant {
                    grant: Grant {
                        fields: grant.fields,
                        purposes: grant.purposes,
                        verbs: grant.verbs,
                        max_view: grant.max_view,
                        groups,
                    },
                    line: grant.line,
                    subjects_per_hour: 0,
                });
            }
            roles.insert(rule.no, CompiledRole { no: rule.no, name: rule.name.clone(), grants });
        }
        let mut after = Vec::new();
        loop {
            let page = self.store.objects(tenant.no, ObjectKind::Role, Vec::new(), after, 1_000).await?;
            for row in &page.rows {
                let (no, body) = (key_no(row)?, read_body(row)?);
                let grants = body.grants.iter().map(|grant| compile(policy, grant)).collect();
                roles.insert(no, CompiledRole { no, name: body.name, grants });
            }
            match page.rows.last() {
                Some(last) if page.more => after = last.key.clone(),
                _ => return Ok(roles),
            }
        }
    }

    /// Numbers of the groups that there are; a group that was not made yet is nobody's.
    async fn numbers_of_groups(&self, tenant: &Tenant, ids: &[SubjectId]) -> Result<Vec<GroupNo>, VaultError> {
        let mut numbers = Vec::with_capacity(ids.len());
        for id in ids {
            let key = tenant.digest(id).0.to_vec();
            if let Some(row) = self.store.object(tenant.no, ObjectKind::GroupName, key).await? {
                let bytes: [u8; 4] = row.body.as_slice().try_into().map_err(|_| VaultError::DataLoss)?;
                numbers.push(GroupNo(u32::from_be_bytes(bytes)));
            }
        }
        Ok(numbers)
    }

    /// What the roles of a tenant allow may have changed (a role, a group that roles name): seen by the next call.
    pub(crate) fn roles_changed(&self, tenant: TenantNo) {
        self.access.roles.of(tenant).changed();
    }

    /// Checks a role against the policy and finds the numbers of its groups.
    async fn check_role(&self, call: &Call, new: &NewRole) -> Result<Vec<GrantBody>, VaultError> {
        let mut wrong = Vec::new();
        if new.grants.len() > MAX_GRANTS {
            wrong.push(Violation::new("role.grants", "must have at most 64"));
        }
        let mut bodies = Vec::with_capacity(new.grants.len().min(MAX_GRANTS));
        for (i, grant) in new.grants.iter().take(MAX_GRANTS).enumerate() {
            let mut say = |field: &str, rule: &str| {
                wrong.push(Violation::new(format!("role.grants[{i}].{field}"), rule));
            };
            if grant.verbs == VerbSet::EMPTY {
                say("verbs", "must have at least one");
            }
            if grant.subjects_per_hour > MAX_SUBJECTS_PER_HOUR {
                say("subjects_per_hour", "must be at most 100,000");
            }
            let named = !(grant.classes.is_empty() && grant.fields.is_empty() && grant.purposes.is_empty());
            match &call.tenant.policy {
                Some(policy) => {
                    if grant.classes.iter().any(|no| policy.class(*no).is_none()) {
                        say("class_ids", "a number that the policy does not have");
                    }
                    if grant.fields.iter().any(|no| policy.field(*no).is_none()) {
                        say("field_ids", "a number that the policy does not have");
                    }
                    if grant.purposes.iter().any(|no| policy.purpose(*no).is_none()) {
                        say("purpose_ids", "a number that the policy does not have");
                    }
                }
                None if named => return Err(VaultError::WrongState("the tenant has no policy yet")),
                None => {}
            }
            let ids = grant.groups.as_deref().unwrap_or_default();
            let groups = match ids.len() {
                n if n > MAX_GROUPS => {
                    say("groups", "must have at most 256");
                    Vec::new()
                }
                _ => self.numbers_of_groups(&call.tenant, ids).await?,
            };
            if groups.len() != ids.len() && ids.len() <= MAX_GROUPS {
                say("groups", "a group that is not there");
            }
            bodies.push(GrantBody {
                classes: grant.classes.clone(),
                fields: grant.fields.clone(),
                purposes: grant.purposes.clone(),
                verbs: grant.verbs.0,
                masked: grant.max_view == View::Masked,
                groups: grant.groups.is_some().then_some(groups),
                subjects_per_hour: grant.subjects_per_hour,
            });
        }
        if wrong.is_empty() { Ok(bodies) } else { Err(VaultError::Invalid(wrong)) }
    }

    /// Nobody gives what they do not have; operators, who see no values, set tenants up.
    pub(crate) fn must_have_all(&self, who: &Principal, grants: &[Grant]) -> Result<(), VaultError> {
        if who.kind == Kind::Operator || within(grants, &who.grants) {
            return Ok(());
        }
        Err(VaultError::denied(DenialKind::NotPermitted, "access.more_than_own"))
    }

    async fn name_is_free(&self, call: &Call, name: &Name, but: Option<RoleNo>) -> Result<(), VaultError> {
        let roles = self.tenant_roles(call.tenant.no).await?;
        match roles.roles.values().any(|role| role.name == *name && Some(role.no) != but) {
            true => Err(VaultError::AlreadyExists),
            false => Ok(()),
        }
    }

    /// Makes a role; the vault gives the number. `None` when it was only checked.
    ///
    /// # Errors
    /// `Denied` when it would allow more than the caller may; `AlreadyExists` for a name that is taken.
    pub async fn create_role(
        &self,
        call: &Call,
        new: NewRole,
        request: Option<Request>,
        validate_only: bool,
    ) -> Result<Option<Role>, VaultError> {
        call.permit(Verb::Access)?;
        self.tenants_only(call)?;
        if let Some(no) = self.repeated::<RoleNo>(call, request.as_ref()).await? {
            return self.role(call, no).await.map(Some);
        }
        let _one_at_a_time = self.access.changing.lock().await;
        let grants = self.check_role(call, &new).await?;
        self.name_is_free(call, &new.name, None).await?;
        let compiled: Vec<Grant> =
            grants.iter().map(|grant| compile(call.tenant.policy.as_deref(), grant).grant).collect();
        self.must_have_all(&call.principal, &compiled)?;
        if self.tenant_roles(call.tenant.no).await?.roles.keys().filter(|no| no.0 > MADE_ABOVE).count() >= MAX_MADE {
            return Err(VaultError::Quota("made roles of the tenant"));
        }
        if validate_only {
            return Ok(None);
        }
        let tenant = call.tenant.no;
        let body = RoleBody { name: new.name, grants, created: call.wall, by: call.principal.actor };
        for _ in 0..4 {
            let mut change = ChangeSet::default();
            let no = RoleNo(MADE_ABOVE + self.next_number(tenant, ObjectKind::Role, &mut change).await?);
            let row = self.put_role(tenant, no, Revision(0), &body, &mut change);
            change.note(tenant, call.record(Action::CreateRole, Outcome::Ok).to_bytes());
            self.remember(call, request.as_ref(), &no, &mut change);
            match self.store.commit(change).await {
                Ok(_) => {
                    self.roles_changed(tenant);
                    return self.read_role(call, &row).await.map(Some);
                }
                Err(error) => self.retry_or_answer(call, error, request.as_ref()).await?,
            }
        }
        Err(VaultError::Conflict)
    }

    fn put_role(
        &self,
        tenant: TenantNo,
        no: RoleNo,
        former: Revision,
        body: &RoleBody,
        change: &mut ChangeSet,
    ) -> ObjectRow {
        let (kind, key) = (ObjectKind::Role, role_key(no));
        let revision = Revision(former.0 + 1);
        let row = ObjectRow { tenant, kind, key: key.clone(), revision, body: to_json(body) };
        change.require(Precondition::TenantIs { tenant, state: TenantState::Live });
        change.require(Precondition::ObjectAt { tenant, kind, key, revision: former });
        change.change(Mutation::PutObject(row.clone()));
        row
    }

    /// Replaces name and grants of a made role; in force for every call that starts after the answer. A role that
    /// allows less than before is noted in the ledger, so that a restore does not widen it again.
    pub async fn update_role(
        &self,
        call: &Call,
        no: RoleNo,
        etag: Option<Revision>,
        new: NewRole,
        request: Option<Request>,
        validate_only: bool,
    ) -> Result<Role, VaultError> {
        call.permit(Verb::Access)?;
        self.tenants_only(call)?;
        if let Some(no) = self.repeated::<RoleNo>(call, request.as_ref()).await? {
            return self.role(call, no).await;
        }
        let _one_at_a_time = self.access.changing.lock().await;
        let tenant = call.tenant.no;
        let roles = self.tenant_roles(tenant).await?;
        let before = roles.roles.get(&no).ok_or(VaultError::NotFound)?;
        if no.0 <= MADE_ABOVE {
            return Err(VaultError::WrongState("the role comes from the policy file or is always there"));
        }
        let row = self.store.object(tenant, ObjectKind::Role, role_key(no)).await?.ok_or(VaultError::NotFound)?;
        if etag.is_some_and(|etag| etag != row.revision) {
            return Err(VaultError::EtagStale);
        }
        let grants = self.check_role(call, &new).await?;
        self.name_is_free(call, &new.name, Some(no)).await?;
        let compiled: Vec<Grant> =
            grants.iter().map(|grant| compile(call.tenant.policy.as_deref(), grant).grant).collect();
        self.must_have_all(&call.principal, &compiled)?;
        let former: Vec<Grant> = before.grants.iter().map(|grant| grant.grant.clone()).collect();
        let narrowed = !within(&former, &compiled);
        let body = RoleBody { name: new.name, grants, ..read_body(&row)? };
        if validate_only {
            return self.read_role(call, &ObjectRow { body: to_json(&body), ..row }).await;
        }
        let mut change = ChangeSet::default();
        let row = self.put_role(tenant, no, row.revision, &body, &mut change);
        change.note(tenant, call.record(Action::UpdateRole, Outcome::Ok).to_bytes());
        self.remember(call, request.as_ref(), &no, &mut change);
        self.store.commit(change).await?;
        self.roles_changed(tenant);
        if narrowed {
            self.note_in_ledger(LedgerEntry { number: no.0, ..decision(LedgerKind::RoleNarrowed, tenant, call.wall) })
                .await?;
        }
        self.read_role(call, &row).await
    }

    fn tenants_only(&self, call: &Call) -> Result<(), VaultError> {
        match call.tenant.no {
            TenantNo::VAULT => Err(VaultError::invalid("tenant", "is required from operator keys")),
            _ => Ok(()),
        }
    }

    /// Appends a decision that a restore must not undo. It is durable in the database already and in force: when the
    /// keeper is away, the caller hears so and repeats the call.
    pub(crate) async fn note_in_ledger(&self, entry: LedgerEntry) -> Result<(), VaultError> {
        self.keyring.keeper().append_ledger(vec![entry]).await.map_err(crate::keyring::KeyringError::from)?;
        Ok(())
    }

    /// A role by number.
    pub(crate) async fn role(&self, call: &Call, no: RoleNo) -> Result<Role, VaultError> {
        if no.0 > MADE_ABOVE {
            let row = self.store.object(call.tenant.no, ObjectKind::Role, role_key(no)).await?;
            return self.read_role(call, &row.ok_or(VaultError::NotFound)?).await;
        }
        let fixed = self.fixed_roles(call).into_iter().find(|role| role.no == no);
        fixed.ok_or(VaultError::NotFound)
    }

    async fn read_role(&self, call: &Call, row: &ObjectRow) -> Result<Role, VaultError> {
        let body = read_body(row)?;
        let mut grants = Vec::with_capacity(body.grants.len());
        for grant in body.grants {
            let groups = match grant.groups {
                Some(numbers) => {
                    let mut ids = Vec::with_capacity(numbers.len());
                    for no in numbers {
                        ids.push(self.group_by_no(call, no).await?.id);
                    }
                    Some(ids)
                }
                None => None,
            };
            grants.push(NewGrant {
                classes: grant.classes,
                fields: grant.fields,
                purposes: grant.purposes,
                verbs: VerbSet(grant.verbs),
                max_view: if grant.masked { View::Masked } else { View::Plain },
                groups,
                subjects_per_hour: grant.subjects_per_hour,
            });
        }
        Ok(Role { no: key_no(row)?, name: body.name, grants, fixed: false, from_policy: false, revision: row.revision })
    }

    /// Roles of the policy file, and the one that is always there.
    fn fixed_roles(&self, call: &Call) -> Vec<Role> {
        let of_policy = call.tenant.policy.iter().flat_map(|policy| policy.roles()).map(|rule| Role {
            no: rule.no,
            name: rule.name.clone(),
            grants: rule
                .grants
                .iter()
                .map(|grant| NewGrant {
                    classes: Vec::new(),
                    fields: grant.fields.iter().map(FieldNo).collect(),
                    purposes: grant.purposes.iter().map(PurposeNo).collect(),
                    verbs: grant.verbs,
                    max_view: grant.max_view,
                    groups: grant.groups.as_ref().map(|ids| ids.to_vec()),
                    subjects_per_hour: 0,
                })
                .collect(),
            fixed: true,
            from_policy: true,
            revision: Revision(0),
        });
        let mut roles: Vec<Role> = of_policy.collect();
        if call.tenant.no != TenantNo::VAULT {
            let grant = NewGrant {
                classes: Vec::new(),
                fields: Vec::new(),
                purposes: Vec::new(),
                verbs: without_values().verbs,
                max_view: View::Masked,
                groups: None,
                subjects_per_hour: 0,
            };
            roles.push(Role {
                no: ADMIN,
                name: admin_name(&call.tenant),
                grants: vec![grant],
                fixed: true,
                from_policy: false,
                revision: Revision(0),
            });
        }
        roles
    }

    /// Roles by number, after `after`.
    pub async fn list_roles(&self, call: &Call, after: RoleNo, limit: u32) -> Result<Page<Role>, VaultError> {
        call.permit(Verb::Access)?;
        let limit_rows = limit as usize;
        let mut rows: Vec<Role> = self.fixed_roles(call).into_iter().filter(|role| role.no > after).collect();
        if rows.len() > limit_rows {
            rows.truncate(limit_rows);
            return Ok(Page { rows, more: true });
        }
        let room = limit - rows.len() as u32;
        if room == 0 {
            let page = self.store.objects(call.tenant.no, ObjectKind::Role, Vec::new(), role_key(after), 1).await?;
            return Ok(Page { rows, more: !page.rows.is_empty() });
        }
        let page = self.store.objects(call.tenant.no, ObjectKind::Role, Vec::new(), role_key(after), room).await?;
        for row in &page.rows {
            rows.push(self.read_role(call, row).await?);
        }
        Ok(Page { rows, more: page.more })
    }
}

/// `admin`; `vault-admin` where the policy has a role of that name.
fn admin_name(tenant: &Tenant) -> Name {
    let name = |text| Name::parse("role", text).expect("a constant of the right form");
    let usual = name("admin");
    match &tenant.policy {
        Some(policy) if policy.role_by_name(&usual).is_some() => name("vault-admin"),
        _ => usual,
    }
}

/// A ledger entry with nothing but what, where and when.
pub(crate) fn decision(kind: LedgerKind, tenant: TenantNo, at: Timestamp) -> LedgerEntry {
    LedgerEntry {
        kind,
        tenant,
        uid: SubjectUid(0),
        class: ClassNo(0),
        version: DekVersion(0),
        generation: Generation(0),
        at,
        object: ObjectId(uuid::Uuid::nil()),
        until: Timestamp(0),
        number: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(verbs: &[Verb], fields: &[u16], purposes: &[u16]) -> Grant {
        Grant {
            fields: fields.iter().copied().collect(),
            purposes: purposes.iter().copied().collect(),
            verbs: verbs.iter().copied().collect(),
            max_view: View::Plain,
            groups: None,
        }
    }

    #[test]
    fn nobody_gives_more_than_they_have() {
        let own = [grant(&[Verb::Read, Verb::Write], &[1, 2], &[1]), grant(&[Verb::Read], &[3], &[1, 2])];
        let fits = |g: Grant| within(&[g], &own);
        assert!(fits(grant(&[Verb::Read], &[1, 3], &[1])), "two grants for the same purpose add up");
        assert!(!fits(grant(&[Verb::Read], &[1, 3], &[1, 2])));
        assert!(!fits(grant(&[Verb::Write], &[3], &[1])));
        assert!(!fits(grant(&[Verb::Access], &[], &[])));
        assert!(within(&[], &own) && !within(&own, &[]));

        let masked = Grant { max_view: View::Masked, ..grant(&[Verb::Read], &[1], &[1]) };
        assert!(within(std::slice::from_ref(&masked), &own));
        assert!(!within(&[grant(&[Verb::Read], &[1], &[1])], &[masked]));

        let of = |groups: &[u32]| Grant {
            groups: Some(groups.iter().map(|n| GroupNo(*n)).collect()),
            ..grant(&[Verb::Read], &[1], &[1])
        };
        assert!(within(&[of(&[1])], &[of(&[1, 2])]) && !within(&[of(&[1, 3])], &[of(&[1, 2])]));
        assert!(fits(of(&[7])) && !within(&[grant(&[Verb::Read], &[1], &[1])], &[of(&[1])]));
    }

    #[test]
    fn an_administrator_gives_only_what_shows_no_value() {
        let admin = [without_values()];
        assert!(within(&admin, &admin));
        for &verb in Verb::ALL {
            assert_eq!(within(&[grant(&[verb], &[1], &[1])], &admin), !touches_values(verb), "{verb:?}");
        }
    }
}
