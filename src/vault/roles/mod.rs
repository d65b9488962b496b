//! Roles: those of the policy file, those made by calls, and the one that is always there.

pub(super) mod compiled;
mod stored;

use crate::access::{Grant, Verb, VerbSet, View};
use crate::audit::{Action, Outcome};
use crate::auth::{Kind, Principal};
use crate::ids::*;
use crate::keyring::ledger::{LedgerEntry, LedgerKind};
use crate::storage::*;
use crate::vault::call::Call;
use crate::vault::error::{DenialKind, VaultError, Violation};
use crate::vault::request::Request;
use crate::vault::{Vault, to_json};
pub use compiled::ADMIN;
use compiled::{admin_name, compile, within, without_values};
use stored::{GrantBody, RoleBody, key_no, put_role, read_body, role_key};

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

impl Vault {
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

    /// A role that may be made or changed to: its grants as they are stored, and compiled.
    async fn allowed_role(
        &self,
        call: &Call,
        new: &NewRole,
        but: Option<RoleNo>,
    ) -> Result<(Vec<GrantBody>, Vec<Grant>), VaultError> {
        let grants = self.check_role(call, new).await?;
        self.name_is_free(call, &new.name, but).await?;
        let policy = call.tenant.policy.as_deref();
        let compiled: Vec<Grant> = grants.iter().map(|grant| compile(policy, grant).grant).collect();
        self.must_have_all(&call.principal, &compiled)?;
        Ok((grants, compiled))
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
        let (grants, _) = self.allowed_role(call, &new, None).await?;
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
            let row = put_role(tenant, no, Revision(0), &body, &mut change);
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
        let (grants, compiled) = self.allowed_role(call, &new, Some(no)).await?;
        let former: Vec<Grant> = before.grants.iter().map(|grant| grant.grant.clone()).collect();
        let narrowed = !within(&former, &compiled);
        let body = RoleBody { name: new.name, grants, ..read_body(&row)? };
        if validate_only {
            return self.read_role(call, &ObjectRow { body: to_json(&body), ..row }).await;
        }
        let mut change = ChangeSet::default();
        let row = put_role(tenant, no, row.revision, &body, &mut change);
        change.note(tenant, call.record(Action::UpdateRole, Outcome::Ok).to_bytes());
        self.remember(call, request.as_ref(), &no, &mut change);
        self.store.commit(change).await?;
        self.roles_changed(tenant);
        if narrowed {
            let narrowed = LedgerEntry::new(LedgerKind::RoleNarrowed, tenant, call.wall);
            self.ledger(vec![LedgerEntry { number: no.0, ..narrowed }]).await?;
        }
        self.read_role(call, &row).await
    }

    fn tenants_only(&self, call: &Call) -> Result<(), VaultError> {
        match call.tenant.no {
            TenantNo::VAULT => Err(VaultError::invalid("tenant", "is required from operator keys")),
            _ => Ok(()),
        }
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
