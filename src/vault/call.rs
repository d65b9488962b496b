//! A call as the vault sees it: who, for which tenant, when, and why.

use std::sync::Arc;

use zeroize::Zeroizing;

use crate::access::{Verb, View};
use crate::audit::{Action, AuditRecord, Outcome};
use crate::auth::{Permit, Principal, authorize};
use crate::clock::Timestamp;
use crate::ids::{GroupNo, ObjectId, PurposeNo, RecipientNo};
use crate::policy::compiled::{Ask, SubjectFacts};
use crate::vault::error::VaultError;
use crate::vault::own_secrets::PageKeys;
use crate::vault::tenant::Tenant;

/// Who calls, in which tenant, at what time. Made once per call at the edge.
#[derive(Clone)]
pub struct Call {
    pub principal: Arc<Principal>,
    pub tenant: Arc<Tenant>,
    /// The tenant's time: what retention, schedules and approvals are measured by.
    pub now: Timestamp,
    /// The machine's time: what audit entries carry.
    pub wall: Timestamp,
    /// What page tokens are made and checked with.
    pub pages: Arc<PageKeys>,
}

impl Call {
    /// Whether the caller may do this in the tenant at all.
    pub fn permit(&self, verb: Verb) -> Result<Permit, VaultError> {
        authorize(&self.principal, self.tenant.no, verb).map_err(VaultError::from)
    }

    /// Whether the caller may do this with a subject of that group.
    pub fn permit_for(&self, verb: Verb, group: Option<GroupNo>) -> Result<Permit, VaultError> {
        let permit = self.permit(verb)?;
        permit.for_group(group)?;
        Ok(permit)
    }

    /// An audit record of this call with nothing but who, when, what and how it ended.
    pub fn record(&self, action: Action, outcome: Outcome) -> AuditRecord {
        AuditRecord::new(self.wall, self.principal.actor, action, outcome)
    }
}

/// Why values are touched; recorded with every access.
#[derive(Default)]
pub struct Context {
    pub purpose: Option<PurposeNo>,
    /// Break-glass reason, at most 256 bytes; sealed in the audit.
    pub reason: Zeroizing<String>,
    /// Case, ticket, post id, at most 256 bytes; sealed in the audit.
    pub reference: Zeroizing<String>,
    /// An approval to be used up.
    pub approval: Option<ObjectId>,
    /// Who gets the values; `None`: they stay with the caller.
    pub recipient: Option<RecipientNo>,
}

impl Context {
    /// The purpose, which every call that touches values must name.
    pub fn purpose(&self) -> Result<PurposeNo, VaultError> {
        self.purpose.ok_or_else(|| VaultError::invalid("context.purpose_id", "a purpose is needed to touch values"))
    }

    /// What the policy is asked for this call.
    pub fn ask<'a>(
        &self,
        call: &'a Call,
        verb: Verb,
        purpose: PurposeNo,
        group: Option<GroupNo>,
        view: Option<View>,
        approved: bool,
    ) -> Ask<'a> {
        Ask {
            grants: &call.principal.grants,
            verb,
            purpose,
            group,
            view,
            approved,
            referenced: !self.reference.is_empty(),
            reasoned: !self.reason.is_empty(),
            recipient: self.recipient,
            facts: SubjectFacts::NONE,
            now: call.now,
        }
    }

    /// Refuses a recipient where no value is given out.
    pub fn stays_here(&self) -> Result<(), VaultError> {
        match self.recipient {
            Some(_) => {
                Err(VaultError::invalid("context.recipient_id", "only reads and exports give values to a recipient"))
            }
            None => Ok(()),
        }
    }

    /// The recipient as the audit numbers it.
    pub fn recipient_no(&self) -> RecipientNo {
        self.recipient.unwrap_or(RecipientNo(0))
    }

    /// What the audit seals of this: empty where the caller gave nothing.
    pub fn detail(&self) -> Zeroizing<Vec<u8>> {
        let mut out = Zeroizing::new(Vec::new());
        if self.reason.is_empty() && self.reference.is_empty() {
            return out;
        }
        for text in [&self.reason, &self.reference] {
            out.extend_from_slice(&(text.len() as u16).to_be_bytes());
            out.extend_from_slice(text.as_bytes());
        }
        out
    }
}
