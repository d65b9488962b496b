//! Who somebody is here and why they may or may not: decisions without doing anything.

use std::sync::Arc;

use crate::access::{Verb, View};
use crate::audit::{Action, Outcome};
use crate::auth::{KeyId, Kind, Principal, authorize, touches_values};
use crate::ids::*;
use crate::policy::compiled::{Ask, Decision};
use crate::storage::{ClassState, SubjectSnapshot};
use crate::vault::Vault;
use crate::vault::access_keys::AccessKeyView;
use crate::vault::authenticate::{Compiled, Origin};
use crate::vault::call::{Call, Context};
use crate::vault::error::{DenialKind, VaultError, Violation};
use crate::vault::find::Key;
use crate::vault::rights::Facts;
use crate::vault::roles::Role;

/// What is to be tried.
pub struct TestAsk {
    /// `None`: the caller's own key.
    pub key: Option<KeyId>,
    pub verb: Verb,
    /// With `classes` both empty: every field of the policy, if the verb touches values.
    pub fields: Vec<FieldNo>,
    pub classes: Vec<ClassNo>,
    pub view: Option<View>,
    /// Group of the subject.
    pub group: Option<SubjectId>,
    /// Whose group and facts count; `None`: somebody of `group` about whom nothing is on record.
    pub subject: Option<SubjectId>,
}

/// What was decided about one field, or about the verb.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessDecision {
    /// `None`: the verb as such.
    pub field: Option<FieldNo>,
    /// The most telling view that would be given; `None` where it is denied or nothing is shown.
    pub view: Option<View>,
    /// Why not; `None`: it is allowed.
    pub denied: Option<DenialKind>,
    /// The rule that decided, with an explanation by names.
    pub rule: String,
    /// Line of the policy file; 0: the rule is not from there.
    pub line: u32,
}

/// Who calls.
pub struct Me {
    /// `None`: the vault itself.
    pub key: Option<AccessKeyView>,
    pub roles: Vec<Role>,
}

fn by_grant(origin: &Origin) -> String {
    format!("role {}, grant {}", origin.name, origin.grant)
}

impl Vault {
    /// Who calls, with which roles. Needs no verb.
    pub async fn who_am_i(&self, call: &Call) -> Result<Me, VaultError> {
        let key = self.own_key(call)?;
        let mut roles = Vec::new();
        for no in key.iter().flat_map(|key| &key.roles) {
            match self.role(call, *no).await {
                Ok(role) => roles.push(role),
                // The policy has it no more: it gives nothing.
                Err(VaultError::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Me { key, roles })
    }

    /// Whether a call would be allowed and which rule decides, without doing it: one decision for each field, or one for
    /// the verb. An approval that is named counts as if it fitted. Needs no verb for the caller's own key, else `access`;
    /// for a subject the verb that is tested, or `access`, and leaves an entry in its audit.
    pub async fn test_access(
        &self,
        call: &Call,
        context: &Context,
        ask: &TestAsk,
    ) -> Result<Vec<AccessDecision>, VaultError> {
        let compiled = self.whose_access(call, ask.key).await?;
        let who: &Principal = compiled.as_ref().map_or(&call.principal, |c| &c.principal);
        let origins: &[Origin] = compiled.as_ref().map_or(&[], |c| &c.origins);
        let person = match &ask.subject {
            Some(id) => Some(self.tested_person(call, ask, id).await?),
            None => None,
        };
        let group = match (&person, &ask.group) {
            (Some(person), _) => person.subject.group,
            (None, Some(id)) => Some(self.group_no(call, id).await?),
            (None, None) => None,
        };
        let facts = match &person {
            Some(person) => self.facts(call, person).await?,
            None => Facts::none(),
        };
        let named = !(ask.fields.is_empty() && ask.classes.is_empty());
        if who.kind == Kind::Operator || !(touches_values(ask.verb) || named) {
            return Ok(vec![verb_decision(call, who, origins, ask.verb, group)]);
        }
        let policy = call.tenant.policy()?;
        let wrong = |path: &str, rule: &str| VaultError::UnknownField(vec![Violation::new(path, rule)]);
        if ask.fields.iter().any(|no| policy.field(*no).is_none()) {
            return Err(wrong("select.field_ids", "no field with this number in the schema"));
        }
        if ask.classes.iter().any(|no| policy.class(*no).is_none()) {
            return Err(wrong("select.class_ids", "no class with this number in the policy"));
        }
        let fields = match named {
            true => policy.field_set(ask.classes.iter().copied(), ask.fields.iter().copied()),
            false => policy.fields().map(|rule| rule.no.0).collect(),
        };
        let question = Ask {
            grants: &who.grants,
            verb: ask.verb,
            purpose: context.purpose()?,
            group,
            view: ask.view,
            approved: context.approval.is_some(),
            referenced: !context.reference.is_empty(),
            reasoned: !context.reason.is_empty(),
            recipient: context.recipient,
            facts: facts.view(),
            now: call.now,
        };
        let mut holds: Vec<(ClassNo, Option<PurposeNo>)> = Vec::new();
        if let Some(person) = &person {
            for row in person.classes.iter().filter(|row| row.state == ClassState::Restricted) {
                holds.push((row.class, self.held_for(call, &person.subject, row, question.purpose).await?));
            }
        }
        let decide = |no: u16| {
            let field = FieldNo(no);
            let class = policy.field(field).map(|rule| rule.class);
            let held = holds.iter().find(|(held, _)| Some(*held) == class).map(|(_, purpose)| *purpose);
            if held == Some(None) {
                return AccessDecision {
                    field: Some(field),
                    view: None,
                    denied: Some(DenialKind::PurposeNotAllowed),
                    rule: "restricted: the erasure of the class is under way".into(),
                    line: 0,
                };
            }
            let decision = policy.decide(&question, field, held.flatten());
            let explained = policy.explain(&question, field, &decision);
            match decision {
                Decision::Allow { view, grant } => {
                    let origin = origins.get(usize::from(grant));
                    let by = origin.map(|o| by_grant(o) + ": ").unwrap_or_default();
                    AccessDecision {
                        field: Some(field),
                        view: Some(view),
                        denied: None,
                        rule: format!("{by}{explained}"),
                        line: origin.map_or(0, |o| o.line),
                    }
                }
                Decision::Deny(denial) => AccessDecision {
                    field: Some(field),
                    view: None,
                    denied: Some(kind_of(VaultError::refused(policy, &question, field, &decision))),
                    rule: format!("{}: {explained}", denial.rule.name()),
                    line: denial.line,
                },
            }
        };
        Ok(fields.iter().map(decide).collect())
    }

    /// The subject whose facts count, for who may know them.
    async fn tested_person(
        &self,
        call: &Call,
        ask: &TestAsk,
        id: &SubjectId,
    ) -> Result<Arc<SubjectSnapshot>, VaultError> {
        if ask.group.is_some() {
            return Err(VaultError::invalid("group", "must be empty: the subject's own group counts"));
        }
        let permit = match call.permit(Verb::Access) {
            Ok(permit) => permit,
            Err(_) => call.permit(ask.verb)?,
        };
        let person = self.resolve(call, &Context::default(), &Key::Subject(id.clone())).await?;
        permit.for_group(person.subject.group)?;
        let mut entry = call.record(Action::TestAccess, Outcome::Ok);
        entry.subject = Some(person.subject.uid);
        self.note_read(call, &entry).await?;
        Ok(person)
    }

    /// The principal to be tested, as its next call would have it; `None`: the vault's own.
    async fn whose_access(&self, call: &Call, key: Option<KeyId>) -> Result<Option<Arc<Compiled>>, VaultError> {
        let own = KeyId(call.principal.actor.0);
        let id = key.unwrap_or(own);
        if id != own {
            call.permit(Verb::Access)?;
        }
        let operator = call.principal.kind == Kind::Operator;
        match self.access.by_id(id).filter(|slot| operator || slot.tenant == call.tenant.no) {
            Some(slot) => Ok(Some(self.compile_key(&slot).await?)),
            None if id == own => Ok(None),
            None => Err(VaultError::NotFound),
        }
    }
}

fn verb_decision(
    call: &Call,
    who: &Principal,
    origins: &[Origin],
    verb: Verb,
    group: Option<GroupNo>,
) -> AccessDecision {
    // A key of another tenant than the call's cannot be tested here, so the tenant is the key's own.
    let tenant = if who.kind == Kind::Operator { call.tenant.no } else { who.tenant };
    match authorize(who, tenant, verb).and_then(|permit| permit.for_group(group)) {
        Ok(_) => {
            let fits = |i: &usize| who.grants[*i].verbs.has(verb) && who.grants[*i].covers_group(group);
            let origin = (0..who.grants.len()).find(fits).and_then(|i| origins.get(i));
            AccessDecision {
                field: None,
                view: None,
                denied: None,
                rule: origin.map_or_else(|| verb.name().to_owned(), by_grant),
                line: origin.map_or(0, |o| o.line),
            }
        }
        Err(denial) => AccessDecision {
            field: None,
            view: None,
            denied: Some(kind_of(denial.into())),
            rule: denial.rule.to_string(),
            line: 0,
        },
    }
}

fn kind_of(error: VaultError) -> DenialKind {
    match error {
        VaultError::Denied { kind, .. } => kind,
        _ => DenialKind::NotPermitted,
    }
}
