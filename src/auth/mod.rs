//! Who calls, what they may do, and the decision: [`authorize`] turns a [`Principal`] and an [`Ask`] into a [`Permit`],
//! which nothing else can make. What the vault does takes a permit, so no path forgets to ask. Pure: no I/O, no clock.

mod access_key;
mod api_key;
mod approval;
mod code;
mod key_text;
mod totp;

use std::sync::Arc;

use crate::access::{FieldSet, Grant, PurposeSet, Verb, View};
use crate::clock::Timestamp;
use crate::ids::{ActorId, FieldNo, GroupNo, PurposeNo, TenantNo};

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

/// What a call wants.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The tenant it is about.
    pub tenant: TenantNo,
    pub verb: Verb,
    /// The fields it names or, for whole classes, their fields; empty where no value is touched.
    pub fields: FieldSet,
    /// Needed for every verb that touches values.
    pub purpose: Option<PurposeNo>,
    /// At least this telling; `None`: as the grants give.
    pub view: Option<View>,
    /// The caller accepts to get only what is granted; otherwise one field too many refuses the call.
    pub partial: bool,
}

impl Ask {
    /// An ask that touches no value.
    pub fn plain(tenant: TenantNo, verb: Verb) -> Self {
        Ask { tenant, verb, fields: FieldSet::EMPTY, purpose: None, view: None, partial: false }
    }
}

/// Whether a verb shows, takes or removes values, so that it needs a purpose and is closed to operators.
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
    /// The ask is about another tenant: answered as if that did not exist.
    #[error("tenant.foreign")]
    TenantForeign,
    #[error("operator.no_values")]
    OperatorSeesNoValues,
    /// No grant has the verb.
    #[error("grant.verb")]
    VerbNotGranted,
    #[error("purpose.missing")]
    PurposeMissing,
    /// No grant with the verb has the purpose.
    #[error("grant.purpose")]
    PurposeNotGranted,
    /// No grant with both has so telling a view.
    #[error("grant.view")]
    ViewNotGranted,
    /// A field is in none of those grants, or with `partial` none is.
    #[error("grant.field")]
    FieldNotGranted,
    /// Those grants are for other groups of subjects.
    #[error("grant.group")]
    GroupNotGranted,
}

/// A refusal and its rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not permitted: {rule}")]
pub struct Denial {
    pub rule: Rule,
    /// The first field that was not granted, where that was the reason.
    pub field: Option<FieldNo>,
}

impl From<Rule> for Denial {
    fn from(rule: Rule) -> Self {
        Denial { rule, field: None }
    }
}

/// Fields that may be touched, and those of them that may be seen in plain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed {
    pub fields: FieldSet,
    pub plain: FieldSet,
}

impl Allowed {
    const NONE: Allowed = Allowed { fields: FieldSet::EMPTY, plain: FieldSet::EMPTY };

    fn add(&mut self, grant: &Grant, asked: &FieldSet) {
        let fields = grant.fields.and(asked);
        self.fields = self.fields.or(&fields);
        if grant.max_view == View::Plain {
            self.plain = self.plain.or(&fields);
        }
    }
}

/// Proof that a call was allowed. Only [`authorize`] makes one.
#[derive(Debug, Clone)]
pub struct Permit {
    actor: ActorId,
    tenant: TenantNo,
    verb: Verb,
    purpose: Option<PurposeNo>,
    asked: FieldSet,
    partial: bool,
    /// By grants for every subject.
    everywhere: Allowed,
    /// Whether a grant for every subject has the verb, so that no group matters where no field does.
    anybody: bool,
    /// Grants that fit but are for some groups only.
    limited: Vec<Grant>,
}

impl Permit {
    /// Who acts.
    pub fn actor(&self) -> ActorId {
        self.actor
    }
    /// On which tenant.
    pub fn tenant(&self) -> TenantNo {
        self.tenant
    }
    /// Doing what.
    pub fn verb(&self) -> Verb {
        self.verb
    }
    /// Why.
    pub fn purpose(&self) -> Option<PurposeNo> {
        self.purpose
    }
    /// What was asked for.
    pub fn asked(&self) -> &FieldSet {
        &self.asked
    }

    /// Whether the subject's group must be looked at before anything is done.
    pub fn depends_on_group(&self) -> bool {
        !(self.limited.is_empty() || self.anybody && self.asked.within(&self.everywhere.fields))
    }

    /// What may be touched of a subject in `group`. To be called for every subject once its group is known.
    pub fn for_group(&self, group: Option<GroupNo>) -> Result<Allowed, Denial> {
        let mut allowed = self.everywhere;
        let mut anybody = self.anybody;
        for grant in self.limited.iter().filter(|g| g.covers_group(group)) {
            allowed.add(grant, &self.asked);
            anybody = true;
        }
        if !anybody {
            return Err(Rule::GroupNotGranted.into());
        }
        missing(&self.asked, &allowed.fields, self.partial, Rule::GroupNotGranted).map_or(Ok(allowed), Err)
    }
}

/// Decides. Grants do not add up over purposes or verbs: each field must be covered by one grant that has the verb, the
/// purpose and the view.
///
/// # Errors
/// The rule that came furthest: who lacks the verb in every grant hears of the verb, not of a field.
pub fn authorize(who: &Principal, ask: &Ask) -> Result<Permit, Denial> {
    if who.kind == Kind::Operator {
        if touches_values(ask.verb) {
            return Err(Rule::OperatorSeesNoValues.into());
        }
    } else if who.tenant != ask.tenant {
        return Err(Rule::TenantForeign.into());
    }
    if ask.purpose.is_none() && touches_values(ask.verb) {
        return Err(Rule::PurposeMissing.into());
    }
    let mut permit = Permit {
        actor: who.actor,
        tenant: ask.tenant,
        verb: ask.verb,
        purpose: ask.purpose,
        asked: ask.fields,
        partial: ask.partial,
        everywhere: Allowed::NONE,
        anybody: false,
        limited: Vec::new(),
    };
    let mut anywhere = Allowed::NONE;
    let mut furthest = 0;
    for grant in who.grants.iter() {
        let passed = match () {
            _ if !grant.verbs.has(ask.verb) => 0,
            _ if ask.purpose.is_some_and(|p| !grant.purposes.has(p.0)) => 1,
            _ if ask.view.is_some_and(|v| grant.max_view < v) => 2,
            _ => 3,
        };
        furthest = furthest.max(passed);
        if passed < 3 {
            continue;
        }
        anywhere.add(grant, &ask.fields);
        match grant.groups {
            None => {
                permit.anybody = true;
                permit.everywhere.add(grant, &ask.fields);
            }
            Some(_) => permit.limited.push(grant.clone()),
        }
    }
    match furthest {
        0 => Err(Rule::VerbNotGranted.into()),
        1 => Err(Rule::PurposeNotGranted.into()),
        2 => Err(Rule::ViewNotGranted.into()),
        // What no group would give is refused before any subject is looked at.
        _ => missing(&ask.fields, &anywhere.fields, ask.partial, Rule::FieldNotGranted).map_or(Ok(permit), Err),
    }
}

fn missing(asked: &FieldSet, allowed: &FieldSet, partial: bool, rule: Rule) -> Option<Denial> {
    let missing = asked.minus(allowed);
    if missing.is_empty() || (partial && !allowed.is_empty()) {
        return None;
    }
    Some(Denial { rule, field: missing.iter().next().map(FieldNo) })
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

    /// Purposes that any grant with the verb has: for WhoAmI.
    pub fn purposes(&self, verb: Verb) -> PurposeSet {
        let with = self.grants.iter().filter(|g| g.verbs.has(verb));
        with.fold(PurposeSet::EMPTY, |all, g| all.or(&g.purposes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::VerbSet;
    use proptest::prelude::*;

    fn grant(verbs: &[Verb], fields: &[u16], purposes: &[u16]) -> Grant {
        Grant {
            fields: fields.iter().copied().collect(),
            purposes: purposes.iter().copied().collect(),
            verbs: verbs.iter().copied().collect(),
            max_view: View::Plain,
            groups: None,
        }
    }

    fn who(grants: Vec<Grant>) -> Principal {
        Principal {
            actor: ActorId(7),
            tenant: TenantNo(3),
            kind: Kind::Tenant,
            grants: grants.into(),
            certificate: None,
            expires: None,
            subjects_per_hour: None,
        }
    }

    fn read(fields: &[u16], purpose: u16) -> Ask {
        let fields = fields.iter().copied().collect();
        Ask { fields, purpose: Some(PurposeNo(purpose)), ..Ask::plain(TenantNo(3), Verb::Read) }
    }

    fn rule(who: &Principal, ask: &Ask) -> Rule {
        authorize(who, ask).unwrap_err().rule
    }

    #[test]
    fn each_rule_refuses_by_its_name() {
        let mut p = who(vec![grant(&[Verb::Read], &[1, 2], &[1])]);
        assert!(authorize(&p, &read(&[1, 2], 1)).is_ok());
        assert_eq!(rule(&p, &read(&[1], 2)), Rule::PurposeNotGranted);
        assert_eq!(
            authorize(&p, &read(&[1, 5, 9], 1)).unwrap_err(),
            Denial { rule: Rule::FieldNotGranted, field: Some(FieldNo(5)) }
        );
        assert_eq!(rule(&p, &Ask { verb: Verb::Write, ..read(&[1], 1) }), Rule::VerbNotGranted);
        assert_eq!(rule(&p, &Ask { tenant: TenantNo(4), ..read(&[1], 1) }), Rule::TenantForeign);
        assert_eq!(rule(&p, &Ask { purpose: None, ..read(&[1], 1) }), Rule::PurposeMissing);
        assert_eq!(rule(&who(vec![]), &read(&[1], 1)), Rule::VerbNotGranted);
        let masked = Grant { max_view: View::Masked, ..grant(&[Verb::Read], &[1], &[1]) };
        assert_eq!(rule(&who(vec![masked]), &Ask { view: Some(View::Plain), ..read(&[1], 1) }), Rule::ViewNotGranted);

        p.certificate = Some([1; 32]);
        p.expires = Some(Timestamp(10));
        assert!(p.admit(Timestamp(9), Some(&[1; 32])).is_ok());
        assert_eq!(p.admit(Timestamp(9), None).unwrap_err().rule, Rule::CertificateMismatch);
        assert_eq!(p.admit(Timestamp(9), Some(&[2; 32])).unwrap_err().rule, Rule::CertificateMismatch);
        assert_eq!(p.admit(Timestamp(10), Some(&[1; 32])).unwrap_err().rule, Rule::CredentialExpired);
    }

    #[test]
    fn operators_manage_every_tenant_and_see_no_value_of_any() {
        let all = Grant { fields: FieldSet::ALL, purposes: PurposeSet::ALL, ..grant(Verb::ALL, &[], &[]) };
        let p = Principal { tenant: TenantNo::VAULT, kind: Kind::Operator, ..who(vec![all]) };
        for &verb in Verb::ALL {
            let ask = Ask { verb, ..read(&[], 1) };
            assert_eq!(authorize(&p, &ask).is_err(), touches_values(verb), "{verb:?}");
        }
    }

    #[test]
    fn grants_do_not_add_up_over_purposes() {
        let p = who(vec![grant(&[Verb::Read], &[1], &[1]), grant(&[Verb::Read], &[2], &[2])]);
        assert_eq!(rule(&p, &read(&[1, 2], 1)), Rule::FieldNotGranted);
        let part = authorize(&p, &Ask { partial: true, ..read(&[1, 2], 1) }).unwrap();
        assert_eq!(part.for_group(None).unwrap().fields, [1].into_iter().collect());
        assert_eq!(rule(&p, &Ask { partial: true, ..read(&[2], 1) }), Rule::FieldNotGranted);
    }

    #[test]
    fn a_view_is_plain_only_where_a_grant_says_so() {
        let masked = Grant { max_view: View::Masked, ..grant(&[Verb::Read], &[1, 2], &[1]) };
        let p = who(vec![masked, grant(&[Verb::Read], &[2], &[1])]);
        let allowed = authorize(&p, &read(&[1, 2], 1)).unwrap().for_group(None).unwrap();
        assert_eq!((allowed.fields.len(), allowed.plain), (2, [2].into_iter().collect()));
    }

    #[test]
    fn groups_limit_what_a_grant_gives() {
        let of_five = Grant { groups: Some(Box::new([GroupNo(5)])), ..grant(&[Verb::Read], &[1, 2], &[1]) };
        let permit = authorize(&who(vec![of_five.clone()]), &read(&[1], 1)).unwrap();
        assert!(permit.depends_on_group());
        assert!(permit.for_group(Some(GroupNo(5))).is_ok());
        for other in [None, Some(GroupNo(6))] {
            assert_eq!(permit.for_group(other).unwrap_err().rule, Rule::GroupNotGranted);
        }
        let both = who(vec![of_five, grant(&[Verb::Read], &[1], &[1])]);
        let permit = authorize(&both, &read(&[1, 2], 1)).unwrap();
        assert!(permit.for_group(Some(GroupNo(5))).is_ok());
        assert_eq!(
            permit.for_group(None).unwrap_err(),
            Denial { rule: Rule::GroupNotGranted, field: Some(FieldNo(2)) }
        );
        assert!(!authorize(&both, &read(&[1], 1)).unwrap().depends_on_group());
    }

    proptest! {
        /// The permit gives a field exactly when one grant covers it: compared with the definition.
        #[test]
        fn a_permit_gives_what_some_grant_covers(
            grants in prop::collection::vec((0u32..8, 0u16..16, 0u16..4, prop::option::of(0u32..3)), 0..5),
            asked in 1u16..16, purpose in 0u16..2, group in prop::option::of(0u32..3),
        ) {
            let bits = |n: u16| (0..8u16).filter(move |i| n >> i & 1 == 1);
            let grants: Vec<Grant> = grants.into_iter().map(|(v, f, p, g)| Grant {
                fields: bits(f).collect(),
                purposes: bits(p).collect(),
                verbs: VerbSet(v),
                max_view: View::Plain,
                groups: g.map(|g| Box::from([GroupNo(g)])),
            }).collect();
            let p = who(grants.clone());
            let ask = Ask { partial: true, ..read(&bits(asked).collect::<Vec<_>>(), purpose) };
            let group = group.map(GroupNo);
            let got = authorize(&p, &ask).and_then(|permit| permit.for_group(group)).map(|a| a.fields);
            for f in bits(asked) {
                let covered = grants.iter().any(|g| g.covers(FieldNo(f), PurposeNo(purpose), Verb::Read, group));
                prop_assert_eq!(got.is_ok_and(|fields| fields.has(f)), covered);
            }
        }
    }
}
