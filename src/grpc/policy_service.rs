//! The tenant's policy: checking, applying and explaining it.

use std::pin::Pin;

use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::access::View;
use crate::clock::Timestamp;
use crate::grpc::convert::{self, wire_time};
use crate::grpc::identity::{Api, Scope};
use crate::grpc::page::Pages;
use crate::grpc::pb;
use crate::grpc::status::bad_field;
use crate::grpc::vault_status::limit_exceeded;
use crate::grpc::words;
use crate::ids::{ClassNo, FieldNo, PolicyVersion};
use crate::policy::compiled::{ClassRule, EarlyLoss, FieldRule, Policy, PurposeRule};
use crate::policy::diff::Change;
use crate::policy::file::{FieldType, Finding, Severity, Validator};
use crate::vault::VaultError;
use crate::vault::aggregate::Cell;
use crate::vault::plan::{Draft, FieldPlan, Plan, PlanProgress, RefusedCalls};
use crate::vault::policies::StoredPolicy;

type Answer<T> = Result<Response<T>, Status>;

/// Days of the audit that a plan looks at when the request does not say.
const PLAN_DAYS: u32 = 7;
/// The most.
const MAX_PLAN_DAYS: u32 = 90;
/// How often a plan says how far it is.
const PROGRESS_EVERY_MS: i64 = 250;

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
        notify_date: stored.notice.notified.map(|day| convert::wire_date(day.value)),
        effective_date: stored.notice.effective.map(|day| convert::wire_date(day.value)),
        minimum_notice: stored.notice.minimum.map_or(String::new(), |least| least.value.to_string()),
        approval: stored.approval.map_or(String::new(), |id| id.to_string()),
    }
}

fn wire_loss(loss: &EarlyLoss) -> pb::EarlyLoss {
    pb::EarlyLoss {
        class_id: loss.class.0.into(),
        key: loss.key.into(),
        before: loss.before.clone(),
        after: loss.after.clone(),
        policy_line: loss.line,
    }
}

fn wire_refused(refused: &RefusedCalls) -> pb::RefusedCalls {
    pb::RefusedCalls {
        actor_id: refused.actor.0,
        access_key: words::key_name(refused.actor),
        verb: refused.verb.name().into(),
        purpose_id: refused.purpose.0.into(),
        recipient_id: refused.recipient.0.into(),
        field_ids: refused.fields.iter().map(|field| field.0.into()).collect(),
        call_count: refused.calls,
        last_time: Some(wire_time(refused.last)),
        rule: refused.rule.clone(),
        policy_line: refused.line,
        roles: refused.roles.iter().map(|role| role.to_string()).collect(),
    }
}

fn wire_plan(from: Option<PolicyVersion>, draft: &Draft, plan: &Plan) -> pb::PolicyPlan {
    let field = |(&(class, field), counts): (&(ClassNo, FieldNo), &FieldPlan)| pb::FieldPlan {
        field_id: field.0.into(),
        class_id: class.0.into(),
        value_count: counts.stored,
        sooner_count: counts.sooner,
        later_count: counts.later,
        over_count: counts.over,
        held_count: counts.held,
        unreadable_count: counts.unreadable,
    };
    pb::PolicyPlan {
        from_version: from.map_or(0, |version| version.0),
        version: draft.policy.version().0,
        sha256: draft.policy.sha256().to_vec().into(),
        findings: draft.findings.iter().map(wire_finding).collect(),
        fields: plan.fields.iter().map(field).collect(),
        losses: plan.losses.iter().map(wire_loss).collect(),
        refused_calls: plan.refused.iter().map(wire_refused).collect(),
        audit_start_time: plan.audit_since.map(wire_time),
        audit_entry_count: plan.audit_entries,
        subject_count: plan.subjects,
        approval_needed: plan.approval_needed,
        plan_time: Some(wire_time(plan.at)),
    }
}

fn wire_change(change: &Change) -> pb::PolicyChange {
    pb::PolicyChange {
        table: change.table.clone(),
        number: change.number.into(),
        name: change.name.clone(),
        key: change.key.clone(),
        before: change.before.clone().unwrap_or_default(),
        after: change.after.clone().unwrap_or_default(),
        from_line: change.line_before,
        to_line: change.line_after,
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
        kind: rule.kind.clone().unwrap_or_default(),
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

    type PlanPolicyStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<pb::PlanPolicyResponse, Status>> + Send>>;

    async fn plan_policy(&self, request: Request<pb::PlanPolicyRequest>) -> Answer<Self::PlanPolicyStream> {
        let call = self.enter(&request, Scope::Named(&request.get_ref().tenant)).await?;
        let message = request.into_inner();
        let days = match message.audit_days {
            0 => PLAN_DAYS,
            days if days <= MAX_PLAN_DAYS => days,
            _ => return Err(bad_field("audit_days", "must be at most 90")),
        };
        let draft = self.vault.draft_policy(&call, policy_text(&message.policy)?)?;
        let vault = self.vault.clone();
        let (to, from) = mpsc::channel(4);
        tokio::spawn(async move {
            let mut said = None;
            let mut watch = |progress: PlanProgress| {
                let now = vault.now();
                let first = said.is_none_or(|(step, at): (&str, Timestamp)| {
                    step != progress.step || now.0 - at.0 >= PROGRESS_EVERY_MS
                });
                if first {
                    said = Some((progress.step, now));
                    // Who is slow to listen misses some; the plan itself waits.
                    let _ = to.try_send(Ok(pb::PlanPolicyResponse {
                        step: progress.step.into(),
                        done_count: progress.done,
                        total_count: progress.total,
                        plan: None,
                    }));
                }
                !to.is_closed()
            };
            let planned = vault.plan_policy(&call, &draft, days, &mut watch).await;
            let last = planned.map(|plan| pb::PlanPolicyResponse {
                plan: Some(wire_plan(call.tenant.settings.policy, &draft, &plan)),
                ..Default::default()
            });
            let _ = to.send(last.map_err(Status::from)).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(from))))
    }

    async fn diff_policies(&self, request: Request<pb::DiffPoliciesRequest>) -> Answer<pb::DiffPoliciesResponse> {
        let call = self.enter(&request, Scope::Named(&request.get_ref().tenant)).await?;
        let message = request.into_inner();
        if message.to_version != 0 && !message.policy.is_empty() {
            return Err(bad_field("to_version", "give a version or a file, not both"));
        }
        let file = if message.policy.is_empty() { None } else { Some(policy_text(&message.policy)?) };
        let (from, to) = (opt_version(message.from_version), opt_version(message.to_version));
        let differs = self.vault.diff_policies(&call, from, to, file).await?;
        Ok(Response::new(pb::DiffPoliciesResponse {
            from_version: differs.from.0,
            to_version: differs.to.map_or(0, |version| version.0),
            changes: differs.changes.iter().map(wire_change).collect(),
            losses: differs.losses.iter().map(wire_loss).collect(),
        }))
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
        let approval = match message.approval.as_str() {
            "" => None,
            id => Some(convert::object_id("approval", id)?),
        };
        if message.validate_only {
            let (version, findings) = self.vault.apply_policy(&call, text, expected, approval, None, true).await?;
            return Ok(Response::new(pb::ApplyPolicyResponse {
                version: Some(pb::PolicyVersion { version: version.0, ..Default::default() }),
                findings: findings.iter().map(wire_finding).collect(),
            }));
        }
        let (version, findings) = self.vault.apply_policy(&call, text, expected, approval, repeat, false).await?;
        // The call's tenant is the one from before; a version is read from the store.
        let stored = self.vault.get_policy(&call, Some(version)).await?;
        let active = self.vault.tenant(call.tenant.no)?.settings.policy == Some(version);
        Ok(Response::new(pb::ApplyPolicyResponse {
            version: Some(wire_version(&StoredPolicy { active, ..stored })),
            findings: findings.iter().map(wire_finding).collect(),
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
        let around = self.surroundings(&request).await?;
        let report = self.vault.honesty_report(&call, &around).await?;
        Ok(Response::new(pb::GetReportResponse { report: report.into() }))
    }

    async fn aggregate_fields(
        &self,
        request: Request<pb::AggregateFieldsRequest>,
    ) -> Answer<pb::AggregateFieldsResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let message = request.into_inner();
        let field = convert::field_no("field_id", message.field_id)?;
        let context = words::context(message.context)?;
        let counts = self.vault.aggregate(&call, &context, field).await?;
        let cell = |cell: Cell| pb::AggregateCell {
            value: Some(words::wire_value(field, cell.value, View::Plain)),
            count: cell.count,
        };
        Ok(Response::new(pb::AggregateFieldsResponse {
            cells: counts.cells.into_iter().map(cell).collect(),
            threshold: counts.threshold,
            count_time: Some(wire_time(counts.at)),
        }))
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
