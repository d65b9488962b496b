//! `tenant plan`, `tenant diff`, `tenant apply`: what a policy file would do, what differs, and putting it in force.

use crate::cli::args::{self, WriteArgs};
use crate::cli::error::CliError;
use crate::cli::names::Names;
use crate::cli::output::{Col, note};
use crate::cli::session::Session;
use crate::cli::tenant::finding_line;
use crate::cli::text::printable;
use crate::cli::values::wire;
use crate::grpc::pb;
use sha2::{Digest, Sha256};

pub const VERSION: &[Col] = &[
    Col("VERSION", "version"),
    Col("IN FORCE", "active|mark"),
    Col("APPLIED", "apply_time"),
    Col("BY", "applied_by"),
    Col("NOTIFIED", "notify_date"),
    Col("EFFECTIVE", "effective_date"),
    Col("NOTICE", "minimum_notice"),
    Col("APPROVAL", "approval"),
    Col("SHA-256", "sha256"),
    Col("ETAG", "etag"),
];
const FIELDS: &[Col] = &[
    Col("CLASS", "class_id|class"),
    Col("FIELD", "field_id|field"),
    Col("STORED", "value_count"),
    Col("SOONER", "sooner_count|nonzero"),
    Col("OVER AT ONCE", "over_count|nonzero"),
    Col("LATER", "later_count|nonzero"),
    Col("KEPT BY A HOLD", "held_count|nonzero"),
    Col("UNREADABLE", "unreadable_count|nonzero"),
];
const REFUSED: &[Col] = &[
    Col("ACCESS KEY", "access_key"),
    Col("ROLES", "roles"),
    Col("VERB", "verb"),
    Col("PURPOSE", "purpose_id|purpose"),
    Col("RECIPIENT", "recipient_id|recipient"),
    Col("FIELDS", "field_ids|field"),
    Col("CALLS", "call_count"),
    Col("LAST", "last_time"),
    Col("RULE", "rule"),
    Col("POLICY LINE", "policy_line|nonzero"),
];

/// What `tenant diff` compares.
pub struct Sides {
    pub from: u32,
    pub to: u32,
    /// Name and content of a file.
    pub file: Option<(String, Vec<u8>)>,
}

/// `tenant plan`
pub async fn plan(s: &Session, file: &str, policy: Vec<u8>, audit_days: u32) -> Result<(), CliError> {
    let request = pb::PlanPolicyRequest { policy: policy.into(), tenant: s.tenant(), audit_days };
    let mut stream = s.patient().policies().plan_policy(request).await?.into_inner();
    let mut bar = s.out.progress(0, "plan");
    let (mut step, mut plan) = (String::new(), None);
    while let Some(answer) = stream.message().await? {
        if answer.plan.is_some() {
            plan = answer.plan;
            break;
        }
        if answer.step != step {
            bar.finish_and_clear();
            let word = match answer.step.as_str() {
                "records" => "subjects",
                "items" => "items",
                _ => "audit entries",
            };
            bar = s.out.progress(answer.total_count, word);
            step = answer.step;
        }
        bar.set_position(answer.done_count);
    }
    bar.finish_and_clear();
    let plan = plan.ok_or_else(|| CliError::Unexpected("the server ended the stream without a plan".into()))?;
    if s.out.json {
        return s.out.document(&wire(&plan));
    }
    show_plan(s, file, &plan, &s.names_if_any().await)
}

fn show_plan(s: &Session, file: &str, plan: &pb::PolicyPlan, names: &Names) -> Result<(), CliError> {
    for finding in &plan.findings {
        note(&finding_line(file, finding));
    }
    s.out.line(&format!("{file} would be version {} after {}.", plan.version, plan.from_version))?;
    if plan.fields.is_empty() {
        s.out.line("No stored value would end at another time or become unreadable.")?;
    } else {
        s.out.line(&format!("\nStored values that change, of {} subjects:", plan.subject_count))?;
        s.out.table(&plan.fields, FIELDS, names)?;
    }
    losses(s, &plan.losses, names)?;
    match (&plan.audit_start_time, plan.refused_calls.is_empty()) {
        (None, _) => s.out.line("\nWho would be refused is not known: this key may not read the audit.")?,
        (Some(_), true) => {
            let looked = plan.audit_entry_count;
            s.out.line(&format!("\nNo call of the {looked} audit entries looked at would be refused."))?;
        }
        (Some(_), false) => {
            s.out.line("\nCalls of the last days that would be refused:")?;
            s.out.table(&plan.refused_calls, REFUSED, names)?;
        }
    }
    if plan.approval_needed {
        note(&format!("a second person must approve it: `pii-vault tenant apply {file} --request-approval`"));
    }
    Ok(())
}

fn losses(s: &Session, losses: &[pb::EarlyLoss], names: &Names) -> Result<(), CliError> {
    if losses.is_empty() {
        return Ok(());
    }
    s.out.line("\nWhat goes earlier than now:")?;
    let cols = [
        Col("CLASS", "class_id|class"),
        Col("KEY", "key"),
        Col("WAS", "before"),
        Col("IS", "after"),
        Col("LINE", "policy_line"),
    ];
    s.out.table(losses, &cols, names)
}

/// `tenant diff`
pub async fn diff(s: &Session, sides: Sides) -> Result<(), CliError> {
    let (name, policy) = sides.file.unwrap_or_default();
    let request = pb::DiffPoliciesRequest {
        tenant: s.tenant(),
        from_version: sides.from,
        to_version: sides.to,
        policy: policy.into(),
    };
    let answer = s.policies().diff_policies(request).await?.into_inner();
    if s.out.json {
        return s.out.document(&wire(&answer));
    }
    let to = if name.is_empty() { format!("version {}", answer.to_version) } else { name };
    for change in &answer.changes {
        s.out.line(&change_line(change, answer.from_version, &to))?;
    }
    losses(s, &answer.losses, &s.names_if_any().await)?;
    note(&format!("version {} and {to}: {} differences", answer.from_version, answer.changes.len()));
    Ok(())
}

/// `~ class 2 content, retention: "90d" -> "30d" (version 3:40, a.toml:41)`
fn change_line(change: &pb::PolicyChange, from: u32, to: &str) -> String {
    let sign = match (change.before.is_empty(), change.after.is_empty()) {
        (true, _) => '+',
        (_, true) => '-',
        _ => '~',
    };
    let mut of: Vec<String> = vec![change.table.clone()];
    if change.number != 0 {
        of.push(change.number.to_string());
    }
    of.push(change.name.clone());
    of.retain(|part| !part.is_empty());
    let mut what = of.join(" ");
    if !change.key.is_empty() {
        what += &format!("{}{}", if what.is_empty() { "" } else { ", " }, change.key);
    }
    let content = match sign {
        '+' => change.after.clone(),
        '-' => change.before.clone(),
        _ => format!("{} -> {}", change.before, change.after),
    };
    let mut lines = Vec::new();
    if change.from_line != 0 {
        lines.push(format!("version {from}:{}", change.from_line));
    }
    if change.to_line != 0 {
        lines.push(format!("{to}:{}", change.to_line));
    }
    printable(&format!("{sign} {what}: {content} ({})", lines.join(", ")))
}

/// How a policy is applied.
pub struct Apply {
    pub etag: Option<String>,
    pub approval: Option<String>,
    pub write: WriteArgs,
}

/// `tenant apply`, `tenant rollback`
pub async fn apply(s: &Session, name: &str, policy: bytes::Bytes, how: Apply) -> Result<(), CliError> {
    let request = pb::ApplyPolicyRequest {
        policy,
        tenant: s.tenant(),
        etag: how.etag.unwrap_or_default(),
        request_id: how.write.id(s),
        validate_only: how.write.validate_only,
        approval: how.approval.unwrap_or_default(),
    };
    let answer = s.policies().apply_policy(request).await?.into_inner();
    if s.out.json {
        return s.out.document(&wire(&answer));
    }
    for finding in &answer.findings {
        note(&finding_line(name, finding));
    }
    s.out.record(&answer.version.unwrap_or_default(), VERSION, &Names::default())
}

/// `tenant apply --request-approval`: asks a second person to approve this very file.
pub async fn request_approval(s: &Session, name: &str, policy: &[u8]) -> Result<(), CliError> {
    let reference = data_encoding::HEXLOWER.encode(&Sha256::digest(policy));
    let request = pb::RequestApprovalRequest {
        grant: Some(pb::Grant { verbs: vec![pb::Verb::Policy as i32], ..Default::default() }),
        reference: reference.clone(),
        request_id: args::new_id(),
        tenant: s.tenant(),
        ..Default::default()
    };
    let asked = s.access().request_approval(request).await?.into_inner().approval.unwrap_or_default();
    if s.out.json {
        return s.out.document(&wire(&asked));
    }
    s.out.pairs([
        ("APPROVAL", printable(&asked.approval)),
        ("STATE", asked.state().as_str_name().trim_start_matches("APPROVAL_STATE_").to_lowercase()),
        ("REFERENCE", printable(&reference)),
    ])?;
    note(&format!(
        "a second person says yes with `pii-vault approval approve {0}`, after `sha256sum {name}` showed that reference;
then `pii-vault tenant apply {name} --approval {0}`",
        asked.approval
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_one_line() {
        let change = pb::PolicyChange {
            table: "class".into(),
            number: 2,
            name: "content".into(),
            key: "retention".into(),
            before: "\"90d\"".into(),
            after: "\"30d\"".into(),
            from_line: 40,
            to_line: 41,
        };
        let line = change_line(&change, 3, "a.toml");
        assert_eq!(line, "~ class 2 content, retention: \"90d\" -> \"30d\" (version 3:40, a.toml:41)");
        let new = pb::PolicyChange { before: String::new(), from_line: 0, key: String::new(), ..change.clone() };
        assert_eq!(change_line(&new, 3, "a.toml"), "+ class 2 content: \"30d\" (a.toml:41)");
        let gone = pb::PolicyChange {
            table: String::new(),
            number: 0,
            name: String::new(),
            key: "region".into(),
            after: String::new(),
            to_line: 0,
            ..change
        };
        assert_eq!(change_line(&gone, 3, "a.toml"), "- region: \"90d\" (version 3:40)");
    }
}
