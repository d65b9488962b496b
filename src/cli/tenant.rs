//! `tenant`: tenants and their policies.

use crate::cli::args::{self, ListArgs, WriteArgs};
use crate::cli::erase;
use crate::cli::error::CliError;
use crate::cli::input;
use crate::cli::names::Names;
use crate::cli::output::{Col, Output, note};
use crate::cli::policy::{self, Sides};
use crate::cli::sarif;
use crate::cli::session::Session;
use crate::cli::text::{duration, printable};
use crate::cli::values::wire;
use crate::grpc::pb;
use crate::policy::file::{File, Finding, Severity};
use crate::policy::lint::lint;
use clap::{Subcommand, ValueEnum};
use serde_json::{Value as Json, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const TENANT: &[Col] = &[
    Col("TENANT", "tenant"),
    Col("DISPLAY NAME", "display_name"),
    Col("KIND", "kind"),
    Col("STATE", "state"),
    Col("SUBJECTS", "subject_count"),
    Col("QUOTA SUBJECTS", "quota_subjects|nonzero"),
    Col("REGION", "region"),
    Col("TIME ZONE", "time_zone"),
    Col("POLICY VERSION", "policy_version"),
    Col("CREATED", "create_time"),
    Col("TENANT TIME", "tenant_time"),
    Col("ETAG", "etag"),
];
const TENANTS: &[Col] = &[
    Col("TENANT", "tenant"),
    Col("KIND", "kind"),
    Col("STATE", "state"),
    Col("REGION", "region"),
    Col("POLICY", "policy_version"),
    Col("SUBJECTS", "subject_count"),
    Col("QUOTA", "quota_subjects|nonzero"),
    Col("CREATED", "create_time"),
];
const USAGE: &[Col] = &[
    Col("SUBJECTS", "subject_count"),
    Col("QUOTA SUBJECTS", "quota_subjects|nonzero"),
    Col("DATA KEYS", "class_count"),
    Col("ITEMS", "item_count"),
    Col("SEARCH TAGS", "term_count"),
    Col("ERASED IDS", "tombstone_count"),
    Col("TREE NODES", "node_count"),
    Col("COUNTED", "count_time"),
];

/// What fails a lint besides errors.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Deny {
    /// Warnings
    Warnings,
    /// Warnings and notes
    Notes,
}

/// `tenant`
#[derive(Debug, Subcommand)]
pub enum Tenant {
    /// Create a tenant (operator key)
    #[command(after_help = "Examples:
  pii-vault tenant create acme --display-name 'Acme GmbH' --policy acme.toml
  pii-vault tenant create trial --kind test")]
    Create {
        /// Name: a-z, 0-9, _, -; never reused
        name: String,
        /// live, or test: its clock can be advanced
        #[arg(long, value_parser = args::tenant_kind, default_value = "live")]
        kind: i32,
        /// Region it is pinned to
        #[arg(long)]
        region: Option<String>,
        /// A name for people
        #[arg(long)]
        display_name: Option<String>,
        /// Most subjects [default: no limit]
        #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
        quota_subjects: u64,
        /// Policy file to apply at once
        #[arg(long, value_name = "FILE")]
        policy: Option<PathBuf>,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// List tenants (operator key)
    #[command(after_help = "Example:
  pii-vault tenant list --state suspended")]
    List {
        /// Only this state; may be repeated [default: all but erased]
        #[arg(long = "state", value_parser = args::tenant_state)]
        states: Vec<i32>,
        #[command(flatten)]
        list: ListArgs,
    },
    /// Show a tenant and what it holds
    #[command(after_help = "Examples:
  pii-vault tenant show
  pii-vault tenant show acme --usage")]
    Show {
        /// Name of the tenant [default: that of the key, or --tenant]
        name: Option<String>,
        /// Also count what it holds
        #[arg(long)]
        usage: bool,
    },
    /// Check a policy file, without a server unless --against-server
    #[command(
        after_help = "Findings are printed as FILE:LINE: SEVERITY[RULE]: KEY: MESSAGE. Exit code 7 when one is an error, or
when one is as bad as --deny says; 0 otherwise.

Examples:
  pii-vault tenant lint acme.toml
  pii-vault tenant lint acme.toml --deny warnings --sarif > acme.sarif
  pii-vault tenant lint acme.toml --against-server"
    )]
    Lint {
        /// Policy file
        file: PathBuf,
        /// Also compare it with the policy that the tenant has now
        #[arg(long)]
        against_server: bool,
        /// What also counts as an error
        #[arg(long, value_enum, value_name = "WHAT")]
        deny: Option<Deny>,
        /// Write SARIF 2.1.0, for code hosts and editors
        #[arg(long)]
        sarif: bool,
    },
    /// Tell what a policy file would do to what is stored and to who calls; changes nothing
    #[command(
        after_help = "Counts, by class and field, values that would end sooner, at once or later, those that a hold keeps and
those that nobody could read any more; and the calls of the last days that would be refused, with the rule
and its line.

Examples:
  pii-vault tenant plan acme.toml
  pii-vault tenant plan acme.toml --audit-days 30 --json"
    )]
    Plan {
        /// Policy file
        file: PathBuf,
        /// How many of the last days' audit to look at, at most 90
        #[arg(long, value_name = "DAYS", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=90))]
        audit_days: u32,
    },
    /// Compare two versions of the policy, or a file with one, key by key
    #[command(after_help = "Examples:
  pii-vault tenant diff acme.toml
  pii-vault tenant diff --from 2 --to 3")]
    Diff {
        /// Policy file to compare to [default: the version in force, or --to]
        file: Option<PathBuf>,
        /// Number of the version to compare from [default: the one in force]
        #[arg(long, value_name = "VERSION", default_value_t = 0, hide_default_value = true)]
        from: u32,
        /// Number of the version to compare to
        #[arg(long, value_name = "VERSION", conflicts_with = "file", default_value_t = 0, hide_default_value = true)]
        to: u32,
    },
    /// Make a policy file the tenant's next version, in force at once
    #[command(
        after_help = "A file that takes stored data away earlier than the version before (`tenant plan` says so) needs a second
person's approval of this very file: ask with --request-approval, and name it with --approval.

Examples:
  pii-vault tenant apply acme.toml --validate-only
  pii-vault --tenant acme tenant apply acme.toml
  pii-vault tenant apply shorter.toml --request-approval
  pii-vault tenant apply shorter.toml --approval 0b9c6c1e-53a5-4f8e-9a51-2b7d3a1f6a10"
    )]
    Apply {
        /// Policy file
        file: PathBuf,
        /// Etag of the version it follows
        #[arg(long)]
        etag: Option<String>,
        /// Ask for the approval instead
        #[arg(long, conflicts_with_all = ["approval", "etag", "validate_only"])]
        request_approval: bool,
        /// Name of the approval
        #[arg(long)]
        approval: Option<String>,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// Make the file of an older version the next version
    #[command(after_help = "Example:
  pii-vault tenant rollback 3 --validate-only")]
    Rollback {
        /// Number of the older version
        version: u32,
        /// Ask for the approval instead
        #[arg(long, conflicts_with_all = ["approval", "validate_only"])]
        request_approval: bool,
        /// Name of the approval
        #[arg(long)]
        approval: Option<String>,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// Show the policy file in force, or an older one
    #[command(after_help = "Examples:
  pii-vault tenant policy > now.toml
  pii-vault tenant policy --version 3
  pii-vault tenant policy --versions")]
    Policy {
        /// Number of the version
        #[arg(long, default_value_t = 0, hide_default_value = true)]
        version: u32,
        /// List the versions instead
        #[arg(long, conflicts_with = "version")]
        versions: bool,
    },
    /// Change a tenant: what is named is replaced, the rest stays
    #[command(after_help = "Example:
  pii-vault tenant update acme --quota-subjects 1000000")]
    Update {
        /// Name of the tenant [default: that of the key, or --tenant]
        name: Option<String>,
        /// A name for people
        #[arg(long)]
        display_name: Option<String>,
        /// Most subjects; 0: no limit (operator key)
        #[arg(long, value_name = "N")]
        quota_subjects: Option<u64>,
        /// Only if this is still the state that `tenant show` showed
        #[arg(long)]
        etag: Option<String>,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// What a tenant holds and takes; counts rows, so it may take a moment
    #[command(after_help = "Example:
  pii-vault tenant usage acme")]
    Usage {
        /// Name of the tenant [default: that of the key, or --tenant]
        name: Option<String>,
    },
    /// Erase a tenant with everything in it, by destroying its root key (operator key)
    #[command(after_help = "The name must be typed once more; without a terminal it is given with --confirm.

Example:
  pii-vault tenant erase acme --confirm acme")]
    Erase {
        /// Name of the tenant
        name: String,
        /// The name once more
        #[arg(long, value_name = "NAME")]
        confirm: Option<String>,
        /// Approval by another operator, to erase although holds are active; twice
        #[arg(long = "approval", value_name = "APPROVAL")]
        approvals: Vec<String>,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// Move the clock of a TEST tenant forward; everything that time ends in it ends
    #[command(after_help = "Example:
  pii-vault tenant advance-clock 90d --yes")]
    AdvanceClock {
        /// By how much, such as 90d
        #[arg(value_parser = duration)]
        by: Duration,
    },
}

/// `tenant lint` without `--against-server` needs no server.
pub fn needs_server(command: &Tenant) -> bool {
    !matches!(command, Tenant::Lint { against_server: false, .. })
}

/// `tenant lint` without a server.
pub fn lint_here(out: Output, command: Tenant) -> Result<(), CliError> {
    let Tenant::Lint { file, deny, sarif, .. } = command else {
        return Err(CliError::Unexpected("this command needs a server".into()));
    };
    let bytes = read(&file)?;
    let name = file.display().to_string();
    let text = String::from_utf8(bytes).map_err(|e| {
        let line = e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        CliError::CheckFailed(format!("{name}:{line}: not UTF-8"))
    })?;
    let findings = match File::parse(&text) {
        Ok(file) => lint(&file, None),
        Err(findings) => findings,
    };
    report(out, &name, &findings.iter().map(wire_finding).collect::<Vec<_>>(), deny, sarif)
}

fn wire_finding(finding: &Finding) -> pb::LintFinding {
    let severity = match finding.severity {
        Severity::Error => pb::LintSeverity::Error,
        Severity::Warning => pb::LintSeverity::Warning,
        Severity::Note => pb::LintSeverity::Note,
    };
    pb::LintFinding {
        severity: severity as i32,
        rule: finding.rule.to_string(),
        line: finding.line,
        key: finding.key.clone(),
        message: finding.message.clone(),
    }
}

fn severity(finding: &pb::LintFinding) -> &'static str {
    match finding.severity() {
        pb::LintSeverity::Error => "error",
        pb::LintSeverity::Warning => "warning",
        pb::LintSeverity::Note | pb::LintSeverity::Unspecified => "note",
    }
}

/// Findings like those of a compiler, so that editors can jump to them.
pub fn finding_line(file: &str, finding: &pb::LintFinding) -> String {
    let line = if finding.line == 0 { String::new() } else { format!(":{}", finding.line) };
    let key = if finding.key.is_empty() { String::new() } else { format!("{}: ", finding.key) };
    printable(&format!("{file}{line}: {}[{}]: {key}{}", severity(finding), finding.rule, finding.message))
}

fn report(
    out: Output,
    file: &str,
    findings: &[pb::LintFinding],
    deny: Option<Deny>,
    as_sarif: bool,
) -> Result<(), CliError> {
    let count = |s: pb::LintSeverity| findings.iter().filter(|f| f.severity() == s).count();
    let (errors, warnings) = (count(pb::LintSeverity::Error), count(pb::LintSeverity::Warning));
    if as_sarif {
        out.document(&sarif::document(file, findings))?;
    } else if out.json {
        let list: Vec<Json> = findings.iter().map(wire).collect();
        out.document(&json!({ "file": file, "findings": list, "errors": errors, "warnings": warnings }))?;
    } else {
        for finding in findings {
            out.line(&finding_line(file, finding))?;
        }
        note(&format!("{file}: {errors} errors, {warnings} warnings"));
    }
    let notes = findings.len() - errors - warnings;
    let denied = match deny {
        None => 0,
        Some(Deny::Warnings) => warnings,
        Some(Deny::Notes) => warnings + notes,
    };
    if errors + denied > 0 {
        return Err(CliError::CheckFailed(format!("{file} cannot be applied as it is")));
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, CliError> {
    fs::read(path).map_err(CliError::io(path.display().to_string()))
}

/// `tenant`
pub async fn tenant(s: &Session, yes: bool, command: Tenant) -> Result<(), CliError> {
    let none = Names::default();
    match command {
        Tenant::Create { name, kind, region, display_name, quota_subjects, policy, write } => {
            let tenant = pb::Tenant {
                tenant: name,
                kind,
                region: region.unwrap_or_default(),
                display_name: display_name.unwrap_or_default(),
                quota_subjects,
                ..Default::default()
            };
            let policy = policy.as_deref().map(read).transpose()?.unwrap_or_default();
            let request = pb::CreateTenantRequest {
                tenant: Some(tenant),
                policy: policy.into(),
                request_id: write.id(s),
                validate_only: write.validate_only,
            };
            let answer = s.tenants().create_tenant(request).await?.into_inner();
            s.out.record(&answer.tenant.unwrap_or_default(), TENANT, &none)
        }
        Tenant::List { states, list } => {
            let page = list
                .pages(|page_size, page_token| {
                    let mut client = s.tenants();
                    let request = pb::ListTenantsRequest { states: states.clone(), page_size, page_token };
                    async move {
                        let answer = client.list_tenants(request).await?.into_inner();
                        Ok((answer.tenants, answer.next_page_token))
                    }
                })
                .await?;
            s.out.list("tenants", &page, TENANTS, &none)
        }
        Tenant::Show { name, usage } => {
            let tenant = name.unwrap_or_else(|| s.tenant());
            let request = pb::GetTenantRequest { tenant: tenant.clone() };
            let found = s.tenants().get_tenant(request).await?.into_inner().tenant.unwrap_or_default();
            if !usage {
                return s.out.record(&found, TENANT, &none);
            }
            let usage = s.tenants().get_usage(pb::GetUsageRequest { tenant }).await?.into_inner();
            if s.out.json {
                return s.out.document(&json!({ "tenant": wire(&found), "usage": wire(&usage) }));
            }
            s.out.record(&found, TENANT, &none)?;
            s.out.line("")?;
            let cols = [
                Col("SUBJECTS", "subject_count"),
                Col("DATA KEYS", "class_count"),
                Col("ITEMS", "item_count"),
                Col("SEARCH TAGS", "term_count"),
                Col("ERASED IDS", "tombstone_count"),
                Col("TREE NODES", "node_count"),
                Col("COUNTED", "count_time"),
            ];
            s.out.record(&usage, &cols, &none)
        }
        Tenant::Lint { file, deny, sarif, .. } => {
            let request = pb::LintPolicyRequest { policy: read(&file)?.into(), tenant: s.tenant() };
            let answer = s.policies().lint_policy(request).await?.into_inner();
            report(s.out, &file.display().to_string(), &answer.findings, deny, sarif)
        }
        Tenant::Plan { file, audit_days } => {
            policy::plan(s, &file.display().to_string(), read(&file)?, audit_days).await
        }
        Tenant::Diff { file, from, to } => {
            if file.is_none() && (from, to) == (0, 0) {
                return Err(CliError::Usage("name a file, --from or --to".into()));
            }
            let file = match file {
                Some(path) => Some((path.display().to_string(), read(&path)?)),
                None => None,
            };
            policy::diff(s, Sides { from, to, file }).await
        }
        Tenant::Apply { file, request_approval: true, .. } => {
            policy::request_approval(s, &file.display().to_string(), &read(&file)?).await
        }
        Tenant::Apply { file, etag, approval, write, .. } => {
            let how = policy::Apply { etag, approval, write };
            policy::apply(s, &file.display().to_string(), read(&file)?.into(), how).await
        }
        Tenant::Rollback { version, request_approval, approval, write } => {
            let request = pb::GetPolicyRequest { version, tenant: s.tenant() };
            let old = s.policies().get_policy(request).await?.into_inner();
            let name = format!("version {version}");
            if request_approval {
                return policy::request_approval(s, &name, &old.policy).await;
            }
            policy::apply(s, &name, old.policy, policy::Apply { etag: None, approval, write }).await
        }
        Tenant::Policy { versions: true, .. } => {
            let list = ListArgs { limit: 0, page_size: 200 };
            let tenant = s.tenant();
            let page = list
                .pages(|page_size, page_token| {
                    let mut client = s.policies();
                    let request = pb::ListPolicyVersionsRequest { tenant: tenant.clone(), page_size, page_token };
                    async move {
                        let answer = client.list_policy_versions(request).await?.into_inner();
                        Ok((answer.versions, answer.next_page_token))
                    }
                })
                .await?;
            s.out.list("versions", &page, policy::VERSION, &none)
        }
        Tenant::Policy { version, .. } => {
            let request = pb::GetPolicyRequest { version, tenant: s.tenant() };
            let answer = s.policies().get_policy(request).await?.into_inner();
            if s.out.json { s.out.document(&wire(&answer)) } else { s.out.raw(&answer.policy) }
        }
        Tenant::Update { name, display_name, quota_subjects, etag, write } => {
            let named = [("display_name", display_name.is_some()), ("quota_subjects", quota_subjects.is_some())];
            let paths: Vec<String> = named.into_iter().filter(|(_, is)| *is).map(|(path, _)| path.into()).collect();
            if paths.is_empty() {
                return Err(CliError::Usage("name what to change: --display-name or --quota-subjects".into()));
            }
            let tenant = pb::Tenant {
                tenant: name.unwrap_or_else(|| s.tenant()),
                display_name: display_name.unwrap_or_default(),
                quota_subjects: quota_subjects.unwrap_or_default(),
                etag: etag.unwrap_or_default(),
                ..Default::default()
            };
            let request = pb::UpdateTenantRequest {
                tenant: Some(tenant),
                update_mask: Some(prost_types::FieldMask { paths }),
                request_id: write.id(s),
                validate_only: write.validate_only,
            };
            let answer = s.tenants().update_tenant(request).await?.into_inner();
            s.out.record(&answer.tenant.unwrap_or_default(), TENANT, &none)
        }
        Tenant::Usage { name } => {
            let request = pb::GetUsageRequest { tenant: name.unwrap_or_else(|| s.tenant()) };
            let answer = s.tenants().get_usage(request).await?.into_inner();
            s.out.record(&answer, USAGE, &none)
        }
        Tenant::Erase { name, confirm, approvals, write } => {
            let what = format!("This erases tenant {name} with everything in it for good");
            if !write.validate_only {
                input::confirm_name(confirm.as_deref(), &name, &what)?;
            }
            let request = pb::EraseTenantRequest {
                tenant: name.clone(),
                confirm: name,
                approvals,
                request_id: write.id(s),
                validate_only: write.validate_only,
            };
            let answer = s.tenants().erase_tenant(request).await?.into_inner();
            erase::show(s, answer.erasure.unwrap_or_default()).await
        }
        Tenant::AdvanceClock { by } => {
            input::confirm(yes, "This moves the tenant's clock forward for good; what time ends in it ends")?;
            let advance = prost_types::Duration {
                seconds: i64::try_from(by.as_secs()).unwrap_or(i64::MAX),
                nanos: by.subsec_nanos().cast_signed(),
            };
            let request =
                pb::AdvanceClockRequest { tenant: s.tenant(), advance: Some(advance), request_id: args::new_id() };
            let answer = s.tenants().advance_clock(request).await?.into_inner();
            s.out.record(&answer, &[Col("TENANT TIME", "tenant_time")], &none)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_read_like_those_of_a_compiler() {
        let finding = pb::LintFinding {
            severity: pb::LintSeverity::Error as i32,
            rule: "unknown-key".into(),
            line: 7,
            key: "field.colour".into(),
            message: "no such key".into(),
        };
        assert_eq!(finding_line("a.toml", &finding), "a.toml:7: error[unknown-key]: field.colour: no such key");
        let whole = pb::LintFinding { line: 0, key: String::new(), ..finding };
        assert_eq!(finding_line("a.toml", &whole), "a.toml: error[unknown-key]: no such key");
    }
}
