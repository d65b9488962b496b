//! The honesty report of a tenant: every claim of its policy file, and what was found about it now.
//!
//! What the vault can look at, it looks at: it asks the rules that every call is decided by, tries what must be refused, and
//! counts what is stored. Of people it looks at a sample, so that the report costs the same at a million of them. The rest is
//! said not to be checked.

mod judge;
mod look;

use crate::access::Verb;
use crate::audit::{Action, Outcome};
use crate::clock::Timestamp;
use crate::policy::compiled::Policy;
use crate::policy::file::{Claim, Finding, Severity};
use crate::report::{Overdue, Promise, Report, Status};
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::error::VaultError;
use judge::Found;
use look::Seen;

/// What only the caller of the vault can see: the network and the folder of archives.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Version of TLS of the connection that asks, and the oldest that its listener takes; `None`: plain text.
    pub tls: Option<(&'static str, &'static str)>,
    /// `None`: this server makes no archives.
    pub archives: Option<ArchivesSeen>,
}

/// The catalogue of data archives.
#[derive(Debug, Clone)]
pub struct ArchivesSeen {
    /// When each whole archive was begun, the oldest first.
    pub made: Vec<Timestamp>,
    /// Archives whose manifest cannot be read.
    pub unreadable: usize,
    /// Days until an archive is deleted.
    pub horizon_days: i64,
}

impl Vault {
    /// Makes and signs the tenant's report.
    pub async fn honesty_report(&self, call: &Call, around: &Surroundings) -> Result<Vec<u8>, VaultError> {
        call.permit(Verb::Audit)?;
        let policy = call.tenant.policy()?.clone();
        let seen = self.look(call, &policy, around).await?;
        let findings = policy.findings();
        let subjects = self.store.subject_count(call.tenant.no).await?;
        let head = self.store.audit_head(call.tenant.no).await?;
        let applied = self.stored_policy(call, Some(policy.version())).await?.applied;
        let claims = policy.claims();
        let promises = claims.iter().enumerate().map(|(i, claim)| {
            let next = claims.get(i + 1).map_or(u32::MAX, |next| next.line);
            let here: Vec<&Finding> = findings.iter().filter(|f| (claim.line..next).contains(&f.line)).collect();
            promise(&policy, claim, &here, &seen, applied)
        });
        let controller = policy.controller();
        let text = policy.text();
        let report = Report {
            vault: data_encoding::HEXLOWER.encode(&self.keyring.vault().0),
            tenant: call.tenant.name.to_string(),
            controller: controller.name.clone(),
            contact: controller.contact.clone(),
            officer: controller.officer.clone(),
            authority: controller.authority.clone(),
            policy_title: text.title.clone(),
            policy_url: text.url.clone(),
            policy_version: policy.version().0,
            policy_sha256: data_encoding::HEXLOWER.encode(policy.sha256()),
            made_at: call.now.rfc3339(),
            audit_seq: head.map_or(0, |head| head.seq),
            subjects,
            promises: promises.collect(),
            overdue: overdue(&seen),
            can_claim: findings
                .iter()
                .filter(|f| matches!(f.rule, "weaker-than-kept" | "no-at-rest-claim"))
                .map(|f| f.message.clone())
                .collect(),
        };
        let entry = call.record(Action::ReportPromises, Outcome::Ok);
        self.note_read(call, &entry).await?;
        Ok(report.sign(&self.keyring.signing()))
    }
}

/// What waits longer than it may, by kind.
fn overdue(seen: &Seen) -> Vec<Overdue> {
    let mut all: Vec<Overdue> = Vec::new();
    let mut late: Vec<_> = seen.overdue().collect();
    late.sort_by_key(|request| (request.kind.name(), request.due));
    for request in late {
        match all.last_mut().filter(|last| last.kind == request.kind.name()) {
            Some(last) => last.count += 1,
            None => all.push(Overdue {
                kind: request.kind.name().into(),
                count: 1,
                since: request.due.unwrap_or(seen.now).rfc3339(),
            }),
        }
    }
    all
}

fn promise(policy: &Policy, claim: &Claim, findings: &[&Finding], seen: &Seen, applied: Timestamp) -> Promise {
    let mut found: Found = judge::judge(policy, claim, seen);
    for finding in findings.iter().filter(|f| f.severity == Severity::Warning) {
        match finding.rule {
            // More is kept than is claimed.
            "weaker-than-kept" => {
                found.status = if found.status == Status::Held { Status::CanClaim } else { found.status };
                found.evidence.push(finding.message.clone());
            }
            "no-at-rest-claim" => {}
            _ => {
                found.status = if found.status == Status::Waits { Status::Waits } else { Status::Broken };
                found.evidence.push(format!("{} [{}]", finding.message, finding.rule));
            }
        }
    }
    let broken = found.status == Status::Broken;
    Promise {
        section: claim.section.clone(),
        line: claim.line,
        claim: claim.kind.value.name().into(),
        about: claim.about.words(),
        value: claim.value.as_ref().map(|value| value.value.clone()),
        recipient: claim.recipient.as_ref().map(|name| name.value.to_string()),
        status: found.status,
        evidence: found.evidence,
        // What is broken by the file itself is so since the file counts.
        since: broken.then(|| found.since.unwrap_or(applied).rfc3339()),
    }
}
