//! Who calls and what they may do: [`authorize`] turns a [`Principal`] and a verb into a [`Permit`], which nothing else can
//! make. What the vault does takes a permit, so no path forgets to ask; where values are touched the policy decides on each
//! field instead. Pure: no I/O, no clock.

mod access_key;
mod api_key;
mod approval;
mod code;
mod key_text;
mod totp;

use std::sync::Arc;

use crate::access::{Grant, Verb};
use crate::clock::Timestamp;
use crate::ids::{ActorId, GroupNo, TenantNo};

pub use access_key::AccessKey;
pub use api_key::{ApiKey, KeyPrefix};
pub use approval::{Approval, ApprovalError, ApprovalState, ApprovalUse};
pub use code::{Alphabet, CodePepper, grouped};
pub use key_text::{Environment, KeyId, KeyPepper, KeyRefused, MAX_TEXT};
pub use totp::{STEP_S, TotpSecret};

/// Whose key it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An operator of the vault (tenant 0): manages tenants and sees no values.
    Operator,
    /// A key of one tenant.
    Tenant,
}

/// An authenticated caller: the key, whose it is and what its roles allow.
#[derive(Debug, Clone)]
pub struct Principal {
    /// Who the audit says it was.
    pub actor: ActorId,
    /// The key's tenant; 0 for operators.
    pub tenant: TenantNo,
    pub kind: Kind,
    /// What the roles grant, spread out against the policy in force.
    pub grants: Arc<[Grant]>,
    /// SHA-256 of the client certificate that the key is bound to.
    pub certificate: Option<[u8; 32]>,
    /// From then on the key is refused.
    pub expires: Option<Timestamp>,
    /// Different subjects whose values the key may touch in an hour; counted by the vault.
    pub subjects_per_hour: Option<u32>,
}

/// Whether a verb shows, takes or removes values, so that it needs a purpose and is closed to operators. What such a verb
/// may touch is the policy's to decide, which looks at the same grants field by field.
pub const fn touches_values(verb: Verb) -> bool {
    matches!(verb, Verb::Read | Verb::Write | Verb::Delete | Verb::Find | Verb::Export)
}

/// The rule that refused. Names are answered to callers, so they never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Rule {
    #[error("credential.expired")]
    CredentialExpired,
    /// The key is bound to a client certificate, and the connection has none or another.
    #[error("credential.certificate")]
    CertificateMismatch,
    /// The call is about another tenant: answered as if that did not exist.
    #[error("tenant.foreign")]
    TenantForeign,
    #[error("operator.no_values")]
    OperatorSeesNoValues,
    /// No grant has the verb.
    #[error("grant.verb")]
    VerbNotGranted,
    /// The grants with the verb are for other groups of subjects.
    #[error("grant.group")]
    GroupNotGranted,
}

/// A refusal and its rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not permitted: {rule}")]
pub struct Denial {
    pub rule: Rule,
}

impl From<Rule> for Denial {
    fn from(rule: Rule) -> Self {
        Denial { rule }
    }
}

/// Proof that a call was allowed. Only [`authorize`] makes one.
#[derive(Debug, Clone)]
pub struct Permit {
    /// Groups that the grants with the verb are limited to; `None`: one of them is for every subject.
    groups: Option<Vec<GroupNo>>,
}

impl Permit {
    /// Whether that may be done with a subject in `group`. To be asked for every subject once its group is known.
    ///
    /// # Errors
    /// `GroupNotGranted`.
    pub fn for_group(&self, group: Option<GroupNo>) -> Result<(), Denial> {
        match &self.groups {
            None => Ok(()),
            Some(groups) if group.is_some_and(|group| groups.contains(&group)) => Ok(()),
            Some(_) => Err(Rule::GroupNotGranted.into()),
        }
    }
}

/// Decides whether `who` may do this in the tenant at all.
///
/// # Errors
/// The rule that refused.
pub fn authorize(who: &Principal, tenant: TenantNo, verb: Verb) -> Result<Permit, Denial> {
    if who.kind == Kind::Operator {
        if touches_values(verb) {
            return Err(Rule::OperatorSeesNoValues.into());
        }
    } else if who.tenant != tenant {
        return Err(Rule::TenantForeign.into());
    }
    let mut limited = None;
    for grant in who.grants.iter().filter(|grant| grant.verbs.has(verb)) {
        match &grant.groups {
            None => return Ok(Permit { groups: None }),
            Some(groups) => limited.get_or_insert_with(Vec::new).extend_from_slice(groups),
        }
    }
    match limited {
        Some(groups) => Ok(Permit { groups: Some(groups) }),
        None => Err(Rule::VerbNotGranted.into()),
    }
}

impl Principal {
    /// Checks what belongs to the connection rather than to a call: the key's end and its certificate.
    pub fn admit(&self, now: Timestamp, peer_certificate: Option<&[u8; 32]>) -> Result<(), Denial> {
        if self.expires.is_some_and(|t| now >= t) {
            return Err(Rule::CredentialExpired.into());
        }
        if self.certificate.is_some() && self.certificate.as_ref() != peer_certificate {
            return Err(Rule::CertificateMismatch.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{FieldSet, PurposeSet, VerbSet, View};
    use proptest::prelude::*;

    const TENANT: TenantNo = TenantNo(3);

    fn grant(verbs: &[Verb], groups: Option<&[u32]>) -> Grant {
        Grant {
            fields: FieldSet::EMPTY,
            purposes: PurposeSet::EMPTY,
            verbs: verbs.iter().copied().collect(),
            max_view: View::Masked,
            groups: groups.map(|groups| groups.iter().map(|no| GroupNo(*no)).collect()),
        }
    }

    fn who(grants: Vec<Grant>) -> Principal {
        Principal {
            actor: ActorId(7),
            tenant: TENANT,
            kind: Kind::Tenant,
            grants: grants.into(),
            certificate: None,
            expires: None,
            subjects_per_hour: None,
        }
    }

    #[test]
    fn each_rule_refuses_by_its_name() {
        let mut p = who(vec![grant(&[Verb::Erase], None)]);
        assert!(authorize(&p, TENANT, Verb::Erase).is_ok());
        let rule = |p: &Principal, tenant, verb| authorize(p, tenant, verb).unwrap_err().rule;
        assert_eq!(rule(&p, TENANT, Verb::Hold), Rule::VerbNotGranted);
        assert_eq!(rule(&p, TenantNo(4), Verb::Erase), Rule::TenantForeign);
        assert_eq!(rule(&who(vec![]), TENANT, Verb::Erase), Rule::VerbNotGranted);

        p.certificate = Some([1; 32]);
        p.expires = Some(Timestamp(10));
        assert!(p.admit(Timestamp(9), Some(&[1; 32])).is_ok());
        assert_eq!(p.admit(Timestamp(9), None).unwrap_err().rule, Rule::CertificateMismatch);
        assert_eq!(p.admit(Timestamp(9), Some(&[2; 32])).unwrap_err().rule, Rule::CertificateMismatch);
        assert_eq!(p.admit(Timestamp(10), Some(&[1; 32])).unwrap_err().rule, Rule::CredentialExpired);
    }

    #[test]
    fn operators_manage_every_tenant_and_see_no_value_of_any() {
        let p = Principal { tenant: TenantNo::VAULT, kind: Kind::Operator, ..who(vec![grant(Verb::ALL, None)]) };
        for &verb in Verb::ALL {
            assert_eq!(authorize(&p, TENANT, verb).is_err(), touches_values(verb), "{verb:?}");
        }
    }

    proptest! {
        /// A permit holds for a group exactly when one grant covers verb and group: compared with the definition.
        #[test]
        fn a_permit_gives_what_some_grant_covers(
            grants in prop::collection::vec((0u32..8, prop::option::of(0u32..3)), 0..5),
            group in prop::option::of(0u32..3),
        ) {
            let grants: Vec<Grant> = grants
                .into_iter()
                .map(|(verbs, group)| Grant {
                    verbs: VerbSet(verbs << Verb::Erase as u32),
                    ..grant(&[], group.as_ref().map(std::slice::from_ref))
                })
                .collect();
            let group = group.map(GroupNo);
            let covered = grants.iter().any(|g| g.verbs.has(Verb::Erase) && g.covers_group(group));
            let got = authorize(&who(grants), TENANT, Verb::Erase).and_then(|permit| permit.for_group(group));
            prop_assert_eq!(got.is_ok(), covered);
        }
    }
}
