//! Tenants: operators make and see all of them, a tenant's own keys with the verb OPERATE see theirs.

use tonic::{Request, Response, Status};

use crate::access::Verb;
use crate::auth::Kind;
use crate::grpc::convert::{self, Bad, wire_time};
use crate::grpc::identity::{Api, Scope};
use crate::grpc::page::Pages;
use crate::grpc::pb;
use crate::grpc::policy_service::policy_text;
use crate::grpc::status::bad_field;
use crate::grpc::words;
use crate::ids::PolicyVersion;
use crate::keyring::TenantKeyState;
use crate::policy::compiled::Policy;
use crate::policy::file::Severity;
use crate::storage::TenantState;
use crate::vault::tenant::TenantKind;
use crate::vault::tenants::{NewTenant, TenantView};
use crate::vault::{Call, VaultError, Violation};

type Answer<T> = Result<Response<T>, Status>;

/// A tenant's state, for callers.
pub(crate) fn wire_state(view: &TenantView) -> pb::TenantState {
    match (view.state, view.keys) {
        (TenantState::Erased, _) => pb::TenantState::Erased,
        (TenantState::Erasing, _) => pb::TenantState::Erasing,
        (TenantState::Live, TenantKeyState::Ready) => pb::TenantState::Active,
        (TenantState::Live, TenantKeyState::DatabaseBehind) => pb::TenantState::DatabaseBehind,
        (TenantState::Live, TenantKeyState::KeeperBehind) => pb::TenantState::KeeperBehind,
        // The keeper's tombstone is there, the rows are about to follow.
        (TenantState::Live, TenantKeyState::TenantErased) => pb::TenantState::Erasing,
    }
}

impl Api {
    fn wire_tenant(&self, view: &TenantView) -> pb::Tenant {
        let kind = match view.settings.kind {
            TenantKind::Live => pb::TenantKind::Live,
            TenantKind::Test => pb::TenantKind::Test,
        };
        let now = self.vault.now().plus_ms(view.settings.clock_offset_ms);
        let policy = self.vault.tenant(view.no).ok().and_then(|tenant| tenant.policy.clone());
        pb::Tenant {
            tenant: view.name.to_string(),
            kind: kind as i32,
            region: view.settings.region.as_ref().map_or(String::new(), |region| region.to_string()),
            time_zone: policy.map_or("UTC".into(), |policy| policy.time_zone().to_owned()),
            state: wire_state(view) as i32,
            policy_version: view.settings.policy.map_or(0, |version| version.0),
            create_time: Some(wire_time(view.settings.created)),
            etag: format!("{:x}", view.revision.0),
            tenant_time: Some(wire_time(now)),
            display_name: view.settings.display_name.clone().unwrap_or_default(),
            quota_subjects: view.settings.quota_subjects,
            subject_count: view.subjects,
        }
    }

    async fn view_of(&self, call: &Call) -> Result<Option<pb::Tenant>, Status> {
        Ok(Some(self.wire_tenant(&self.vault.get_tenant(call).await?)))
    }
}

/// Operators may, a tenant's own key needs the verb.
fn may_operate(call: &Call) -> Result<(), Status> {
    if call.principal.kind == Kind::Tenant {
        call.permit(Verb::Operate)?;
    }
    Ok(())
}

#[tonic::async_trait]
impl pb::tenant_service_server::TenantService for Api {
    async fn create_tenant(&self, request: Request<pb::CreateTenantRequest>) -> Answer<pb::CreateTenantResponse> {
        let call = self.enter(&request, Scope::Vault).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "CreateTenant", &repeat_id, &message)?;
        let tenant = convert::required("tenant", &message.tenant)?;
        // The time zone is a word of the policy file.
        convert::refuse(!matches!(tenant.time_zone.as_str(), "" | "UTC"), "tenant.time_zone")?;
        if tenant.state != 0 || tenant.policy_version != 0 || tenant.create_time.is_some() || !tenant.etag.is_empty() {
            return Err(bad_field("tenant", "state, policy version, times and etag are the vault's to set"));
        }
        let kind = match convert::choice::<pb::TenantKind>("tenant.kind", tenant.kind)? {
            pb::TenantKind::Test => TenantKind::Test,
            _ => TenantKind::Live,
        };
        let region = match tenant.region.as_str() {
            "" => None,
            region => Some(convert::name("tenant.region", region)?),
        };
        let display_name = convert::opt_text("tenant.display_name", &tenant.display_name, 128)?.map(str::to_owned);
        let name = convert::name("tenant.tenant", &tenant.tenant)?;
        let text = policy_text(&message.policy)?;
        if !text.is_empty() {
            // Before the tenant is there: a file that is refused leaves nothing behind.
            Policy::compile(text, PolicyVersion(1), None).map_err(|findings| {
                let errors = findings.into_iter().filter(|f| f.severity == Severity::Error);
                let violation =
                    |f: crate::policy::file::Finding| Violation::new(format!("line {}: {}", f.line, f.key), f.message);
                VaultError::PolicyInvalid(errors.map(violation).collect())
            })?;
        }
        if message.validate_only {
            if self.vault.tenant_no(&name).is_some() {
                return Err(VaultError::AlreadyExists.into());
            }
            return Ok(Response::new(pb::CreateTenantResponse { tenant: Some(tenant.clone()) }));
        }
        let new = NewTenant { name, kind, region, display_name, quota_subjects: tenant.quota_subjects };
        let policy = (!text.is_empty()).then_some(text);
        let made = self.vault.create_tenant(&call, new, policy, repeat).await?;
        Ok(Response::new(pb::CreateTenantResponse { tenant: Some(self.wire_tenant(&made)) }))
    }

    async fn get_tenant(&self, request: Request<pb::GetTenantRequest>) -> Answer<pb::GetTenantResponse> {
        let call = self.enter(&request, Scope::Named(&request.get_ref().tenant)).await?;
        may_operate(&call)?;
        Ok(Response::new(pb::GetTenantResponse { tenant: self.view_of(&call).await? }))
    }

    async fn list_tenants(&self, request: Request<pb::ListTenantsRequest>) -> Answer<pb::ListTenantsResponse> {
        let call = self.enter(&request, Scope::Vault).await?;
        let mut message = request.into_inner();
        let limit = convert::page_size(std::mem::take(&mut message.page_size))? as usize;
        let token = std::mem::take(&mut message.page_token);
        let pages = Pages::new(&call, "ListTenants", &message);
        let states: Vec<pb::TenantState> = convert::choices("states", &message.states)?;
        let after = pages.number(&token)?;
        let wanted = |view: &TenantView| match states.is_empty() {
            true => wire_state(view) != pb::TenantState::Erased,
            false => states.contains(&wire_state(view)),
        };
        let mut views = self.vault.list_tenants(&call).await?;
        views.retain(|view| u64::from(view.no.0) > after && wanted(view));
        views.sort_by_key(|view| view.no);
        let more = views.len() > limit;
        views.truncate(limit);
        let next_page_token = pages.after(more, views.last().map(|view| view.no.0.into()));
        let tenants = views.iter().map(|view| self.wire_tenant(view)).collect();
        Ok(Response::new(pb::ListTenantsResponse { tenants, next_page_token }))
    }

    async fn update_tenant(&self, request: Request<pb::UpdateTenantRequest>) -> Answer<pb::UpdateTenantResponse> {
        let name = request.get_ref().tenant.as_ref().map_or("", |tenant| tenant.tenant.as_str());
        let call = self.enter(&request, Scope::Named(name)).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "UpdateTenant", &repeat_id, &message)?;
        let tenant = convert::required("tenant", &message.tenant)?;
        let mask = convert::required("update_mask", &message.update_mask)?;
        let (mut display_name, mut quota) = (None, None);
        for path in &mask.paths {
            match path.as_str() {
                "display_name" => {
                    let text = convert::opt_text("tenant.display_name", &tenant.display_name, 128)?;
                    display_name = Some(text.map(str::to_owned));
                }
                "quota_subjects" => quota = Some(tenant.quota_subjects),
                "state" => return Err(Bad::not_supported("tenant.state").into()),
                "time_zone" => return Err(Bad::not_supported("tenant.time_zone").into()),
                _ => return Err(bad_field("update_mask", "names what cannot be changed")),
            }
        }
        if mask.paths.is_empty() {
            return Err(bad_field("update_mask", "must name what to change"));
        }
        let etag = words::revision(&tenant.etag)?;
        let only = message.validate_only;
        let view = self.vault.update_tenant(&call, etag, display_name, quota, repeat, only).await?;
        Ok(Response::new(pb::UpdateTenantResponse { tenant: Some(self.wire_tenant(&view)) }))
    }

    async fn get_usage(&self, request: Request<pb::GetUsageRequest>) -> Answer<pb::GetUsageResponse> {
        let call = self.enter(&request, Scope::Named(&request.get_ref().tenant)).await?;
        let usage = self.vault.usage(&call).await?;
        Ok(Response::new(pb::GetUsageResponse {
            subject_count: usage.subjects,
            item_count: usage.items,
            class_count: usage.classes,
            term_count: usage.terms,
            tombstone_count: usage.tombstones,
            node_count: usage.nodes,
            count_time: Some(wire_time(call.wall)),
            quota_subjects: self.vault.get_tenant(&call).await?.settings.quota_subjects,
        }))
    }

    async fn erase_tenant(&self, request: Request<pb::EraseTenantRequest>) -> Answer<pb::EraseTenantResponse> {
        // A repeat comes when the tenant is gone, so the request is the vault's own.
        let call = self.enter(&request, Scope::Vault).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "EraseTenant", &repeat_id, &message)?;
        if message.confirm != message.tenant {
            return Err(bad_field("confirm", "must be the name of the tenant once more"));
        }
        let approvals = message.approvals.iter().map(|name| convert::object_id("approvals", name));
        let approvals = approvals.collect::<Result<Vec<_>, _>>()?;
        let name = convert::name("tenant", &message.tenant)?;
        let id = match self.vault.repeated(&call, repeat.as_ref()).await? {
            Some(id) => id,
            None => {
                let no = self.vault.tenant_no(&name).ok_or(VaultError::NotFound)?;
                let within = self.vault.call(call.principal.clone(), self.vault.tenant(no)?);
                match self.vault.erase_tenant(&within, &approvals, repeat, message.validate_only).await? {
                    Some(begun) => begun.operation.id,
                    None => {
                        let erasure = pb::Erasure { kind: pb::ErasureKind::Tenant as i32, ..Default::default() };
                        return Ok(Response::new(pb::EraseTenantResponse { erasure: Some(erasure) }));
                    }
                }
            }
        };
        let erasure = self.vault.get_erasure(&call, id).await?;
        Ok(Response::new(pb::EraseTenantResponse { erasure: Some(self.wire_erasure(&call, erasure)) }))
    }

    async fn advance_clock(&self, request: Request<pb::AdvanceClockRequest>) -> Answer<pb::AdvanceClockResponse> {
        let call = self.enter(&request, Scope::Named(&request.get_ref().tenant)).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "AdvanceClock", &repeat_id, &message)?;
        let by = convert::required("advance", &message.advance)?;
        let by = convert::duration_ms("advance", by, crate::clock::DAY_MS * 36_500)?;
        let now = self.vault.advance_clock(&call, by, repeat).await?;
        Ok(Response::new(pb::AdvanceClockResponse { tenant_time: Some(wire_time(now)) }))
    }
}
