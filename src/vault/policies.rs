//! Policies of a tenant: checking a file, putting it in force, versions and their history.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::access::{FieldSet, Verb, View};
use crate::audit::{Action, Outcome};
use crate::auth;
use crate::auth::ApprovalUse;
use crate::clock::Timestamp;
use crate::ids::*;
use crate::policy::compiled::{EarlyLoss, Policy};
use crate::policy::diff::{Change, diff};
use crate::policy::file::{File, Finding, Notice, Severity};
use crate::storage::*;
use crate::vault::call::Call;
use crate::vault::error::{DenialKind, VaultError, Violation};
use crate::vault::request::Request;
use crate::vault::{Vault, to_json};

/// A stored version of a policy.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyBody {
    text: String,
    applied: Timestamp,
    by: ActorId,
    /// The approval under which it was applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    approval: Option<ObjectId>,
}

/// A version of a tenant's policy.
#[derive(Debug, Clone)]
pub struct StoredPolicy {
    pub version: PolicyVersion,
    pub text: String,
    /// What the file says about its announcement.
    pub notice: Notice,
    pub applied: Timestamp,
    pub by: ActorId,
    /// The approval under which it was applied.
    pub approval: Option<ObjectId>,
    pub active: bool,
}

/// What differs between two versions of a policy.
#[derive(Debug, Clone)]
pub struct PolicyDiff {
    pub from: PolicyVersion,
    /// `None`: a file.
    pub to: Option<PolicyVersion>,
    pub changes: Vec<Change>,
    /// What the later one takes away earlier.
    pub losses: Vec<EarlyLoss>,
}

/// The errors among the findings about a file.
pub(crate) fn invalid(findings: Vec<Finding>) -> VaultError {
    let errors = findings.into_iter().filter(|f| f.severity == Severity::Error);
    VaultError::PolicyInvalid(
        errors.map(|f| Violation::new(format!("line {}: {}", f.line, f.key), f.message)).collect(),
    )
}

/// Whether a policy file may come into force; answers what is doubtful about it.
pub(crate) fn check_policy(
    text: &str,
    version: PolicyVersion,
    before: Option<&Policy>,
    pinned: Option<&Name>,
    now: Timestamp,
) -> Result<(Policy, Vec<Finding>), VaultError> {
    let (policy, findings) = Policy::compile(text, version, before).map_err(invalid)?;
    if policy.effective().is_some_and(|from| now < from) {
        return Err(VaultError::WrongState("the policy takes effect later: apply it on its `effective` day"));
    }
    match (pinned, policy.region()) {
        (Some(pinned), Some(said)) if pinned != said => {
            Err(VaultError::PolicyInvalid(vec![Violation::new("region", "is not the tenant's region")]))
        }
        _ => Ok((policy, findings)),
    }
}

pub(crate) fn put_policy(
    call: &Call,
    tenant: TenantNo,
    version: PolicyVersion,
    text: &str,
    approval: Option<ObjectId>,
    change: &mut ChangeSet,
) {
    let body = PolicyBody { text: text.to_owned(), applied: call.wall, by: call.principal.actor, approval };
    let (kind, key, body) = (ObjectKind::Policy, policy_key(version), to_json(&body));
    change.replace_object(tenant, kind, key, Revision(0), body);
}

/// What an approval of a policy file names as its reference: the SHA-256 of the file in hexadecimal.
pub(crate) fn policy_reference(policy: &Policy) -> String {
    data_encoding::HEXLOWER.encode(policy.sha256())
}

fn unapproved(next: &Policy, loss: &EarlyLoss) -> VaultError {
    let class = next.class(loss.class).map_or("?", |class| class.name.as_str());
    VaultError::denied(
        DenialKind::ApprovalNeeded,
        format!(
            "retention-shortened: class `{class}` has `{}` {}, was {} (line {} of the policy); stored data would go earlier, \
             so a second person must approve the file: verb policy, reference {}",
            loss.key,
            loss.after,
            loss.before,
            loss.line,
            policy_reference(next)
        ),
    )
}

pub(crate) fn policy_key(version: PolicyVersion) -> Vec<u8> {
    version.0.to_be_bytes().to_vec()
}

impl Vault {
    pub(crate) async fn compile_stored(&self, tenant: TenantNo, version: PolicyVersion) -> Result<Policy, VaultError> {
        let row = self.store.object(tenant, ObjectKind::Policy, policy_key(version)).await?;
        let row = row.ok_or(VaultError::DataLoss)?;
        let body: PolicyBody = serde_json::from_slice(&row.body).map_err(|_| VaultError::DataLoss)?;
        Policy::load(&body.text, version).map_err(|_| VaultError::DataLoss)
    }

    /// What a policy file says wrong or doubtful, compared with the version in force.
    pub fn lint_policy(&self, call: &Call, text: &str) -> Result<Vec<Finding>, VaultError> {
        self.may_set_policy(call)?;
        let next = PolicyVersion(call.tenant.settings.policy.map_or(1, |v| v.0 + 1));
        Ok(match Policy::compile(text, next, call.tenant.policy.as_deref()) {
            Ok((_, findings)) | Err(findings) => findings,
        })
    }

    /// A tenant without people has nothing to lose.
    pub(crate) async fn loses_data(&self, tenant: TenantNo) -> Result<bool, VaultError> {
        Ok(self.store.subject_count(tenant).await? > 0)
    }

    /// Adds to a change that an approval of this file is used up: by its requester, granted by another.
    async fn use_policy_approval(
        &self,
        call: &Call,
        id: ObjectId,
        next: &Policy,
        change: &mut ChangeSet,
    ) -> Result<(), VaultError> {
        let (approval, revision) = self.approval(call, id).await?;
        let wanted = ApprovalUse {
            by: call.principal.actor,
            subjects: Vec::new(),
            verb: Verb::Policy,
            fields: FieldSet::EMPTY,
            purpose: None,
            view: View::Masked,
            reference: Self::reference_digest(call, &policy_reference(next)),
        };
        let used = approval.use_for(&wanted, call.now)?;
        self.put_approval(call, &used, revision, change);
        let mut entry = call.record(Action::UseApproval, Outcome::Ok);
        entry.operation = Some(id);
        change.note(call.tenant.no, entry.to_bytes());
        Ok(())
    }

    pub(crate) fn may_set_policy(&self, call: &Call) -> Result<(), VaultError> {
        if call.principal.kind != auth::Kind::Operator {
            call.permit(Verb::Policy)?;
        }
        Ok(())
    }

    /// Makes a policy file the one in force. `expected` is the version that it was written against; `approval` the consent
    /// of a second person to this very file, needed where it takes stored data away earlier.
    pub async fn apply_policy(
        &self,
        call: &Call,
        text: &str,
        expected: Option<PolicyVersion>,
        approval: Option<ObjectId>,
        request: Option<Request>,
        validate_only: bool,
    ) -> Result<(PolicyVersion, Vec<Finding>), VaultError> {
        self.may_set_policy(call)?;
        if let Some(version) = self.repeated(call, request.as_ref()).await? {
            return Ok((version, Vec::new()));
        }
        let tenant = self.tenant(call.tenant.no)?;
        let current = tenant.settings.policy;
        if expected.is_some_and(|version| Some(version) != current) {
            return Err(VaultError::EtagStale);
        }
        let version = PolicyVersion(current.map_or(1, |v| v.0 + 1));
        let region = tenant.settings.region.as_ref();
        let (next, findings) = check_policy(text, version, tenant.policy.as_deref(), region, call.now)?;
        let losses = tenant.policy.as_deref().map_or(Vec::new(), |former| next.losses_since(former));
        if approval.is_none()
            && let Some(loss) = losses.first()
            && self.loses_data(tenant.no).await?
        {
            return Err(unapproved(&next, loss));
        }
        let mut change = ChangeSet::default();
        if let Some(id) = approval {
            self.use_policy_approval(call, id, &next, &mut change).await?;
        }
        if validate_only {
            return Ok((version, findings));
        }
        put_policy(call, tenant.no, version, text, approval, &mut change);
        self.remember(call, request.as_ref(), &version, &mut change);
        let record = call.record(Action::ApplyPolicy, Outcome::Ok);
        // In one commit: a version that is stored and never in force would be in the way of the next one.
        self.edit_settings_with(tenant.no, None, record, &change, |settings| {
            if settings.policy != current {
                return Err(VaultError::Conflict);
            }
            settings.policy = Some(version);
            Ok(())
        })
        .await?;
        Ok((version, findings))
    }

    /// A version of the policy; the one in force where none is named.
    pub async fn get_policy(&self, call: &Call, version: Option<PolicyVersion>) -> Result<StoredPolicy, VaultError> {
        self.may_set_policy(call)?;
        self.stored_policy(call, version).await
    }

    /// The same for callers whose permission was looked at before.
    pub(crate) async fn stored_policy(
        &self,
        call: &Call,
        version: Option<PolicyVersion>,
    ) -> Result<StoredPolicy, VaultError> {
        let active = call.tenant.settings.policy;
        let version = version.or(active).ok_or(VaultError::NotFound)?;
        let row = self.store.object(call.tenant.no, ObjectKind::Policy, policy_key(version)).await?;
        self.read_policy(&row.ok_or(VaultError::NotFound)?, active)
    }

    fn read_policy(&self, row: &ObjectRow, active: Option<PolicyVersion>) -> Result<StoredPolicy, VaultError> {
        let body: PolicyBody = serde_json::from_slice(&row.body).map_err(|_| VaultError::DataLoss)?;
        let version: [u8; 4] = row.key.as_slice().try_into().map_err(|_| VaultError::DataLoss)?;
        let version = PolicyVersion(u32::from_be_bytes(version));
        Ok(StoredPolicy {
            version,
            notice: File::parse(&body.text).map(|file| file.notice).unwrap_or_default(),
            text: body.text,
            applied: body.applied,
            by: body.by,
            approval: body.approval,
            active: active == Some(version),
        })
    }

    /// What differs between two versions, or between a version and a file; `None` is the version in force.
    pub async fn diff_policies(
        &self,
        call: &Call,
        from: Option<PolicyVersion>,
        to: Option<PolicyVersion>,
        file: Option<&str>,
    ) -> Result<PolicyDiff, VaultError> {
        let before = self.get_policy(call, from).await?;
        let (version, text) = match file {
            Some(text) => (None, text.to_owned()),
            None => {
                let after = self.get_policy(call, to).await?;
                (Some(after.version), after.text)
            }
        };
        let next = Policy::load(&text, version.unwrap_or(PolicyVersion(before.version.0 + 1))).map_err(invalid)?;
        let former = Policy::load(&before.text, before.version).map_err(|_| VaultError::DataLoss)?;
        let changes = diff(&before.text, &text).ok_or(VaultError::DataLoss)?;
        self.note_listing(call, Action::DiffPolicies).await?;
        Ok(PolicyDiff { from: before.version, to: version, changes, losses: next.losses_since(&former) })
    }

    /// The rules of a version of the policy; of the one in force where none is named. Everybody in the tenant may know.
    pub async fn rules(&self, call: &Call, version: Option<PolicyVersion>) -> Result<Arc<Policy>, VaultError> {
        let active = call.tenant.policy()?;
        let Some(version) = version.filter(|version| *version != active.version()) else { return Ok(active.clone()) };
        if self.store.object(call.tenant.no, ObjectKind::Policy, policy_key(version)).await?.is_none() {
            return Err(VaultError::NotFound);
        }
        self.compile_stored(call.tenant.no, version).await.map(Arc::new)
    }

    /// Versions of the policy, from the first.
    pub async fn list_policies(
        &self,
        call: &Call,
        after: PolicyVersion,
        limit: u32,
    ) -> Result<Page<StoredPolicy>, VaultError> {
        self.may_set_policy(call)?;
        self.policies_after(call, after, limit).await
    }

    /// The same for callers whose permission was looked at before.
    pub(crate) async fn policies_after(
        &self,
        call: &Call,
        after: PolicyVersion,
        limit: u32,
    ) -> Result<Page<StoredPolicy>, VaultError> {
        let active = call.tenant.settings.policy;
        let page = self.store.objects(call.tenant.no, ObjectKind::Policy, Vec::new(), policy_key(after), limit).await?;
        let rows = page.rows.iter().map(|row| self.read_policy(row, active)).collect::<Result<_, _>>()?;
        Ok(Page { rows, more: page.more })
    }
}
