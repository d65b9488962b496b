//! The tenant's policy: checking, applying and explaining it.

use sha2::{Digest, Sha256};
use tonic::{Request, Response, Status};

use crate::access::View;
use crate::grpc::convert::{self, wire_time};
use crate::grpc::identity::{Api, Scope};
use crate::grpc::page::Pages;
use crate::grpc::pb;
use crate::grpc::status::bad_field;
use crate::grpc::vault_status::limit_exceeded;
use crate::grpc::words;
use crate::ids::PolicyVersion;
use crate::policy::compiled::{ClassRule, FieldRule, Policy, PurposeRule};
use crate::policy::file::{FieldType, Finding, Severity, Validator};
use crate::vault::VaultError;
use crate::vault::tenants::StoredPolicy;

type Answer<T> = Result<Response<T>, Status>;

/// Largest policy file.
pub const MAX_POLICY: usize = 512 << 10;

/// The text of a policy file.
pub fn policy_text(bytes: &[u8]) -> Result<&str, Status> {
    if bytes.len() > MAX_POLICY {
        return Err(limit_exceeded("policy", MAX_POLICY));
    }
    std::str::from_utf8(bytes).map_err(|_| bad_field("policy", "must be UTF-8"))
}

fn wire_finding(finding: &Finding) -> pb::LintFinding {
    let severity = match finding.severity {
        Severity::Error => pb::LintSeverity::Error,
        Severity::Warning => pb::LintSeverity::Warning,
        Severity::Note => pb::LintSeverity::Note,
    };
    pb::LintFinding {
        severity: severity as i32,
        rule: finding.rule.into(),
        line: finding.line,
        key: finding.key.clone(),
        message: finding.message.clone(),
    }
}

fn wire_version(stored: &StoredPolicy) -> pb::PolicyVersion {
    pb::PolicyVersion {
        version: stored.version.0,
        sha256: Sha256::digest(stored.text.as_bytes()).to_vec().into(),
        apply_time: Some(wire_time(stored.applied)),
        applied_by: words::key_name(stored.by),
        active: stored.active,
        etag: stored.version.to_string(),
    }
}

fn opt_version(number: u32) -> Option<PolicyVersion> {
    (number != 0).then_some(PolicyVersion(number))
}

fn wire_field(rule: &FieldRule) -> pb::FieldSchema {
    let kind = match rule.kind {
        FieldType::Text => pb::FieldType::Text,
        FieldType::Data => pb::FieldType::Data,
        FieldType::Integer => pb::FieldType::Integer,
        FieldType::Number => pb::FieldType::Number,
        FieldType::Flag => pb::FieldType::Flag,
        FieldType::Date => pb::FieldType::Date,
        FieldType::Time => pb::FieldType::Time,
    };
    let validator = if rule.validator == Validator::None { "" } else { rule.validator.name() };
    pb::FieldSchema {
        field_id: rule.no.0.into(),
        name: rule.name.to_string(),
        r#type: kind as i32,
        class_id: rule.class.0.into(),
        max_length: rule.max_length,
        validator: validator.into(),
        searchable: rule.searchable,
        unique: rule.unique,
        many: rule.many,
        maskable: rule.mask.is_some(),
        retired: rule.retired,
    }
}

fn wire_class(rule: &ClassRule) -> pb::ClassSchema {
    let period = |period: Option<crate::policy::period::Period>| period.map_or(String::new(), |p| p.to_string());
    let hold = rule.hold.as_ref();
    pb::ClassSchema {
        class_id: rule.no.0.into(),
        name: rule.name.to_string(),
        retention: period(rule.retention),
        max_retention: period(rule.max_retention),
        grace: period(rule.grace),
        hold: hold.map_or(String::new(), |hold| hold.name.to_string()),
        hold_basis: hold.map_or(String::new(), |hold| hold.basis.clone()),
        hold_keep: hold.map_or(String::new(), |hold| hold.keep.to_string()),
        hold_purpose_id: hold.map_or(0, |hold| hold.purpose.0.into()),
    }
}

fn wire_purpose(rule: &PurposeRule) -> pb::PurposeSchema {
    let max_view = match rule.max_view {
        View::Plain => pb::View::Plain,
        View::Masked => pb::View::Masked,
    };
    pb::PurposeSchema {
        purpose_id: rule.no.0.into(),
        name: rule.name.to_string(),
        basis: rule.basis.name().into(),
        max_view: max_view as i32,
        reference_needed: rule.needs_reference,
        approval_needed: rule.needs_approval,
        field_ids: rule.fields.iter().map(u32::from).collect(),
    }
}

/// Numbers and names of a policy.
fn wire_schema(policy: &Policy) -> pb::GetSchemaResponse {
    let named = |id: u32, name: &crate::ids::Name| pb::NumberedName { id, name: name.to_string() };
    pb::GetSchemaResponse {
        policy_version: policy.version().0,
        fields: policy.fields().map(wire_field).collect(),
        classes: policy.classes().map(wire_class).collect(),
        purposes: policy.purposes().map(wire_purpose).collect(),
        recipients: policy.recipients().map(|r| named(r.no.0.into(), &r.name)).collect(),
        roles: policy.roles().iter().map(|role| named(role.no.0, &role.name)).collect(),
        plans: policy.plans().iter().map(|plan| named(plan.no.into(), &plan.name)).collect(),
        sources: Vec::new(),
        controller: policy.controller().name.clone(),
        time_zone: policy.time_zone().into(),
        region: policy.region().map_or(String::new(), |region| region.to_string()),
    }
}

#[tonic::async_trait]
impl pb::policy_service_server::PolicyService for Api {
    async fn lint_policy(&self, request: Request<pb::LintPolicyRequest>) -> Answer<pb::LintPolicyResponse> {
        let call = self.enter(&request, Scope::Named(&request.get_ref().tenant)).await?;
        let findings = self.vault.lint_policy(&call, policy_text(&request.get_ref().policy)?)?;
        Ok(Response::new(pb::LintPolicyResponse { findings: findings.iter().map(wire_finding).collect() }))
    }

    async fn apply_policy(&self, request: Request<pb::ApplyPolicyRequest>) -> Answer<pb::ApplyPolicyResponse> {
        let call = self.enter(&request, Scope::Named(&request.get_ref().tenant)).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "ApplyPolicy", &repeat_id, &message)?;
        let text = policy_text(&message.policy)?;
        let expected = match message.etag.as_str() {
            "" => None,
            etag => Some(PolicyVersion(etag.parse().map_err(|_| VaultError::EtagStale)?)),
        };
        if message.validate_only {
            let (version, findings) = self.vault.apply_policy(&call, text, expected, None, true).await?;
            return Ok(Response::new(pb::ApplyPolicyResponse {
                version: Some(pb::PolicyVersion { version: version.0, ..Default::default() }),
                findings: findings.iter().map(wire_finding).collect(),
                operation: String::new(),
            }));
        }
        let (version, findings) = self.vault.apply_policy(&call, text, expected, repeat, false).await?;
        // The call's tenant is the one from before; a version is read from the store.
        let stored = self.vault.get_policy(&call, Some(version)).await?;
        let active = self.vault.tenant(call.tenant.no)?.settings.policy == Some(version);
        Ok(Response::new(pb::ApplyPolicyResponse {
            version: Some(wire_version(&StoredPolicy { active, ..stored })),
            findings: findings.iter().map(wire_finding).collect(),
            operation: String::new(),
        }))
    }

    async fn get_policy(&self, request: Request<pb::GetPolicyRequest>) -> Answer<pb::GetPolicyResponse> {
        let call = self.enter(&request, Scope::Named(&request.get_ref().tenant)).await?;
        let stored = self.vault.get_policy(&call, opt_version(request.get_ref().version)).await?;
        let version = Some(wire_version(&stored));
        Ok(Response::new(pb::GetPolicyResponse { version, policy: stored.text.into() }))
    }

    async fn list_policy_versions(
        &self,
        request: Request<pb::ListPolicyVersionsRequest>,
    ) -> Answer<pb::ListPolicyVersionsResponse> {
        let call = self.enter(&request, Scope::Named(&request.get_ref().tenant)).await?;
        let mut message = request.into_inner();
        let limit = convert::page_size(std::mem::take(&mut message.page_size))?;
        let token = std::mem::take(&mut message.page_token);
        let pages = Pages::new(&call, "ListPolicyVersions", &message);
        let after = PolicyVersion(pages.number(&token)? as u32);
        let page = self.vault.list_policies(&call, after, limit).await?;
        let versions = page.rows.iter().map(wire_version).collect();
        let next_page_token = pages.after(page.more, page.rows.last().map(|stored| stored.version.0.into()));
        Ok(Response::new(pb::ListPolicyVersionsResponse { versions, next_page_token }))
    }

    async fn get_schema(&self, request: Request<pb::GetSchemaRequest>) -> Answer<pb::GetSchemaResponse> {
        let call = self.enter(&request, Scope::Named(&request.get_ref().tenant)).await?;
        let rules = self.vault.rules(&call, opt_version(request.get_ref().version)).await?;
        Ok(Response::new(wire_schema(&rules)))
    }

    async fn get_report(&self, request: Request<pb::GetReportRequest>) -> Answer<pb::GetReportResponse> {
        let call = self.enter(&request, Scope::Named(&request.get_ref().tenant)).await?;
        let report = self.vault.honesty_report(&call).await?;
        Ok(Response::new(pb::GetReportResponse { report: report.into() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_names_every_number_of_a_shipped_policy() {
        for text in [
            include_str!("../../examples/tenants/jina-connect.toml"),
            include_str!("../../examples/tenants/jiwa-ai.toml"),
            include_str!("../../examples/tenants/jenny-erp.toml"),
        ] {
            let (policy, _) = Policy::compile(text, PolicyVersion(3), None).expect("shipped policies are right");
            let schema = wire_schema(&policy);
            assert_eq!(schema.policy_version, 3);
            assert_eq!(schema.fields.len(), policy.fields().count());
            assert!(schema.fields.iter().all(|f| f.field_id > 0 && f.class_id > 0 && f.r#type > 0));
            assert!(schema.fields.windows(2).all(|w| w[0].field_id < w[1].field_id));
            assert_eq!(schema.recipients.len(), policy.recipients().count());
            assert!(!schema.controller.is_empty() && !schema.time_zone.is_empty());
            let held = schema.classes.iter().filter(|c| !c.hold.is_empty());
            held.for_each(|c| assert!(!c.hold_keep.is_empty() && c.hold_purpose_id > 0, "{}", c.name));
        }
    }

    #[test]
    fn a_file_that_is_too_large_or_no_text_is_refused() {
        assert!(policy_text(&vec![b' '; MAX_POLICY + 1]).is_err());
        assert!(policy_text(&[0xff]).is_err());
        assert_eq!(policy_text(b"format = 1").unwrap(), "format = 1");
    }
}
