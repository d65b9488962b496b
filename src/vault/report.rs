//! The honesty report of a tenant: every claim of its policy file, and what was found about it now.
//!
//! A claim that a rule keeps is compared with the rules in force, which are those that every call is decided by. Where the
//! vault can look at the data, the audit or itself, it does, and says what it looked at. The rest is said not to be checked.

use crate::access::Verb;
use crate::audit::{Action, Outcome};
use crate::ids::*;
use crate::policy::claim::{ClaimKind, Kept};
use crate::policy::compiled::Policy;
use crate::policy::file::{Claim, FieldType, Finding, RecipientView, Severity};
use crate::policy::value::{Value, check};
use crate::report::{Promise, Report, Status};
use crate::storage::ObjectKind;
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::error::VaultError;
use crate::vault::record::RecordView;

/// Subjects whose stored records a report looks at.
const SAMPLE: u32 = 200;
/// A number that is right by the Luhn formula and was made for tests.
const TEST_CARD: &str = "4111 1111 1111 1111";

/// What was looked at once for the whole report.
struct Seen {
    /// Requests that are overdue, by the name of their kind, and how many were closed late.
    overdue: Vec<&'static str>,
    late: u64,
    requests: u64,
    /// Expiry keys that should be gone.
    expired: usize,
    expiry_keys: usize,
    /// Records of the sample, and those of them that are no sealed records.
    records: usize,
    unsealed: usize,
    /// Access keys, and those of them without an Argon2id hash.
    keys: usize,
    unhashed: usize,
    /// Text fields, and those that would take a card number.
    texts: usize,
    open_to_cards: Vec<String>,
    pinned: Option<Name>,
}

impl Vault {
    /// Makes and signs the tenant's report.
    pub async fn honesty_report(&self, call: &Call) -> Result<Vec<u8>, VaultError> {
        call.permit(Verb::Audit)?;
        let policy = call.tenant.policy()?.clone();
        let seen = self.look(call, &policy).await?;
        let findings = policy.findings();
        let counts = self.store.counts(call.tenant.no).await?;
        let head = self.store.audit_head(call.tenant.no).await?;
        let claims = policy.claims();
        let promises = claims.iter().enumerate().map(|(i, claim)| {
            let next = claims.get(i + 1).map_or(u32::MAX, |next| next.line);
            let here: Vec<&Finding> = findings.iter().filter(|f| (claim.line..next).contains(&f.line)).collect();
            promise(&policy, claim, &here, &seen)
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
            subjects: counts.subjects,
            promises: promises.collect(),
            can_claim: findings
                .iter()
                .filter(|f| matches!(f.rule, "weaker-than-kept" | "no-at-rest-claim"))
                .map(|f| f.message.clone())
                .collect(),
        };
        let entry = call.record(Action::ReportPromises, Outcome::Ok);
        self.read_log.append(call.tenant.no, &entry).await.map_err(|_| VaultError::AuditUnavailable)?;
        Ok(report.sign(&self.keyring.signing()))
    }

    /// Looks at what is stored.
    async fn look(&self, call: &Call, policy: &Policy) -> Result<Seen, VaultError> {
        let tenant = call.tenant.no;
        let requests = self.all_requests(call).await?;
        let late = requests.iter().filter(|r| r.closed.zip(r.due).is_some_and(|(closed, due)| closed >= due)).count();
        let expiries = self.store.expiries(tenant).await?;
        let live = expiries.iter().filter(|row| row.slot.is_some());
        // The job that drops them runs each hour; a day more is a failure.
        let over = |bucket: Bucket| i64::from(bucket.0) < call.now.day() - 1;
        let (mut records, mut unsealed) = (0, 0);
        for snapshot in self.store.list_subjects(tenant, None, SubjectUid(0), SAMPLE).await?.rows {
            for row in snapshot.classes.iter().filter(|row| row.slot.is_some() && !row.record.is_empty()) {
                records += 1;
                unsealed += usize::from(RecordView::parse(&row.record).is_err());
            }
        }
        let (mut keys, mut unhashed, mut after) = (0, 0, Vec::new());
        loop {
            let page = self.store.objects(tenant, ObjectKind::AccessKey, Vec::new(), after, 1_000).await?;
            for row in &page.rows {
                keys += 1;
                let hashed = row.body.windows(b"$argon2id$".len()).any(|part| part == b"$argon2id$");
                unhashed += usize::from(!hashed);
            }
            match page.rows.last() {
                Some(last) if page.more => after = last.key.clone(),
                _ => break,
            }
        }
        let texts: Vec<_> = policy.fields().filter(|f| f.kind == FieldType::Text).collect();
        let card = Value::text(TEST_CARD.into());
        Ok(Seen {
            overdue: requests.iter().filter(|r| r.overdue(call.now)).map(|r| r.kind.name()).collect(),
            late: late as u64,
            requests: requests.len() as u64,
            expired: live.clone().filter(|row| over(row.bucket)).count(),
            expiry_keys: live.count(),
            records,
            unsealed,
            keys,
            unhashed,
            texts: texts.len(),
            open_to_cards: texts
                .iter()
                .filter(|field| check(field, &card).is_ok())
                .map(|field| field.name.to_string())
                .collect(),
            pinned: call.tenant.settings.region.clone(),
        })
    }
}

fn promise(policy: &Policy, claim: &Claim, findings: &[&Finding], seen: &Seen) -> Promise {
    let kind = claim.kind.value;
    let (mut status, mut evidence) = judge(policy, claim, seen);
    for finding in findings.iter().filter(|f| f.severity == Severity::Warning) {
        match finding.rule {
            // More is kept than is claimed.
            "weaker-than-kept" | "no-at-rest-claim" => {}
            _ => {
                status = if status == Status::Waits { Status::Waits } else { Status::Broken };
                evidence.push(format!("{} [{}]", finding.message, finding.rule));
            }
        }
    }
    Promise {
        section: claim.section.clone(),
        line: claim.line,
        claim: kind.name().into(),
        about: claim.about.words(),
        value: claim.value.as_ref().map(|value| value.value.clone()),
        recipient: claim.recipient.as_ref().map(|name| name.value.to_string()),
        status,
        evidence,
    }
}

/// Status and evidence but for what the linter found.
fn judge(policy: &Policy, claim: &Claim, seen: &Seen) -> (Status, Vec<String>) {
    let held_if = |held: bool, what: String| (if held { Status::Held } else { Status::Broken }, vec![what]);
    let about = claim.about.words();
    match (claim.kind.value, claim.kind.value.kept()) {
        (_, Kept::Outside) => (Status::Outside, vec!["the vault does not see it".into()]),
        (_, Kept::Application) => (Status::Outside, vec!["kept by the application".into()]),
        (ClaimKind::InTransit, _) => (
            Status::Unchecked,
            vec!["what a listener speaks is in the server's configuration, not in the vault".into()],
        ),
        (ClaimKind::Passwords, _) => {
            (Status::Unchecked, vec!["hashes of people's passwords were not looked at for this report".into()])
        }
        (ClaimKind::Backups, _) => {
            (Status::Unchecked, vec!["the catalogue of archives was not looked at: `pii-vault backup list`".into()])
        }
        (ClaimKind::Aggregated, _) => (Status::Waits, vec!["waits for aggregates".into()]),
        (ClaimKind::AtRest, _) if seen.records == 0 => (Status::Unchecked, vec!["nothing is stored".into()]),
        (ClaimKind::AtRest, _) => held_if(
            seen.unsealed == 0,
            format!(
                "{} of {} stored records looked at are sealed (AES-256-GCM)",
                seen.records - seen.unsealed,
                seen.records
            ),
        ),
        (ClaimKind::KeysHashed, _) if seen.keys == 0 => (Status::Unchecked, vec!["there are no access keys".into()]),
        (ClaimKind::KeysHashed, _) => held_if(
            seen.unhashed == 0,
            format!("{} of {} access keys are stored as Argon2id hashes", seen.keys - seen.unhashed, seen.keys),
        ),
        (ClaimKind::NoCards, _) => {
            let phones = |name: &String| {
                let field = Name::parse("field", name).ok().and_then(|name| policy.field_by_name(&name));
                field.is_some_and(|f| f.validator == crate::policy::file::Validator::PhoneE164)
            };
            let open: Vec<&String> = seen.open_to_cards.iter().filter(|name| !phones(name)).collect();
            held_if(
                open.is_empty(),
                format!("a test card number was refused by {} of {} text fields", seen.texts - open.len(), seen.texts),
            )
        }
        (ClaimKind::Retention, _) if seen.expired > 0 => {
            held_if(false, format!("{} expiry keys that are over were not destroyed", seen.expired))
        }
        (ClaimKind::Retention, _) => {
            let keys = format!("{} expiry keys live, none of them over", seen.expiry_keys);
            (Status::Held, vec![compared(policy), keys])
        }
        (ClaimKind::Answered, _) => {
            let overdue =
                seen.overdue.iter().filter(|kind| about.is_empty() || about.iter().any(|a| a == *kind)).count();
            let what = format!("{overdue} overdue of {} requests; {} were answered late", seen.requests, seen.late);
            held_if(overdue == 0 && seen.late == 0, what)
        }
        (ClaimKind::Region, _) => match (&seen.pinned, policy.region()) {
            (Some(pinned), Some(said)) => held_if(pinned == said, format!("the tenant is pinned to {pinned}")),
            _ => (Status::Unchecked, vec!["the tenant is pinned to no region: `tenant create --region`".into()]),
        },
        (ClaimKind::Host, _) => held_if(
            policy.storage_host().is_some_and(|host| host.to_lowercase().contains("sqlite")),
            "this node keeps its rows in SQLite on its own disk".into(),
        ),
        (ClaimKind::WithoutIdentity, _) => {
            let tokens = policy.recipients().any(|r| r.view == RecipientView::Tokens);
            (
                Status::Waits,
                vec![if tokens {
                    "waits for tokens; until then reads for the recipient are refused".into()
                } else {
                    "waits for tokens".into()
                }],
            )
        }
        _ => (Status::Held, vec![compared(policy)]),
    }
}

fn compared(policy: &Policy) -> String {
    format!("compared with the rules in force (version {})", policy.version())
}
