//! All roles of a tenant, compiled into [`Grant`]s against the policy in force and kept in memory.
//!
//! They carry a stamp: version of the policy and a counter that every change of a role or a new group moves on. Who uses
//! them compares the stamp first, so that a change is seen by the next call and nothing needs to be pushed anywhere.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use parking_lot::RwLock;

use crate::access::{FieldSet, Grant, PurposeSet, Verb, VerbSet, View};
use crate::auth::touches_values;
use crate::ids::*;
use crate::policy::compiled::Policy;
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::error::VaultError;
use crate::vault::roles::stored::{GrantBody, key_no, read_body};
use crate::vault::tenant::Tenant;

/// The role of a tenant's administrator: every verb that touches no value. It is there without a policy, so that a new
/// tenant can be set up.
pub const ADMIN: RoleNo = RoleNo(65_536);

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

/// A stored grant under the policy in force. Numbers that the policy has no more give nothing.
pub(super) fn compile(policy: Option<&Policy>, grant: &GrantBody) -> CompiledGrant {
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
    pub(super) async fn numbers_of_groups(
        &self,
        tenant: &Tenant,
        ids: &[SubjectId],
    ) -> Result<Vec<GroupNo>, VaultError> {
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
}

/// `admin`; `vault-admin` where the policy has a role of that name.
pub(super) fn admin_name(tenant: &Tenant) -> Name {
    let name = |text| Name::parse("role", text).expect("a constant of the right form");
    let usual = name("admin");
    match &tenant.policy {
        Some(policy) if policy.role_by_name(&usual).is_some() => name("vault-admin"),
        _ => usual,
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
