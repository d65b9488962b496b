//! A policy in force: tables indexed by number, made once from a file that the linter passed. Decisions compare bits
//! and numbers; they neither allocate nor look at a name. Each answers with the rule that decided and its line.

use super::file::{
    Basis, Class, Controller, Field, FieldType, Fields, File, Finding, HoldFrom, Names, PublishedText, Severity,
    Validator,
};
use super::lint;
use super::mask::Mask;
use super::period::{self, Expiry, Period};
use crate::access::{ClassSet, FieldSet, Grant, PurposeSet, Verb, VerbSet, View};
use crate::clock::Timestamp;
use crate::ids::{ClassNo, FieldNo, GroupNo, Name, PolicyVersion, PurposeNo, RoleNo, SubjectId};
use jiff::tz::TimeZone;
use sha2::{Digest, Sha256};
use std::collections::HashMap;

/// One version of a tenant's policy.
pub struct Policy {
    version: PolicyVersion,
    sha256: [u8; 32],
    controller: Controller,
    text: PublishedText,
    region: Option<Name>,
    time_zone: String,
    zone: TimeZone,
    fields: Box<[Option<FieldRule>]>,
    names: HashMap<Name, FieldNo>,
    classes: [Option<ClassRule>; 17],
    purposes: Box<[Option<PurposeRule>]>,
    roles: Box<[RoleRule]>,
    plans: Box<[PlanRule]>,
    file: File,
}

/// Rules of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldRule {
    pub no: FieldNo,
    pub name: Name,
    pub title: Option<String>,
    pub class: ClassNo,
    pub kind: FieldType,
    /// Unicode scalar values of a text, bytes of data, 0 for other types.
    pub max_length: u32,
    pub validator: Validator,
    pub searchable: bool,
    pub unique: bool,
    /// A subject has items of it, not one value.
    pub many: bool,
    pub mask: Option<Mask>,
    /// Takes no writes any more.
    pub retired: bool,
    /// Line of the policy file.
    pub line: u32,
}

/// Rules of a class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassRule {
    pub no: ClassNo,
    pub name: Name,
    pub title: Option<String>,
    /// How long a value is kept from its origin; `None`: until it is erased.
    pub retention: Option<Period>,
    /// No override is longer.
    pub max_retention: Option<Period>,
    /// Between the closing of a subject and the erasure of this class.
    pub grace: Option<Period>,
    pub hold: Option<HoldRule>,
    /// Its single-valued and its many-valued fields.
    pub fields: FieldSet,
    pub line: u32,
}

/// Legal duty to keep a class when its subject is erased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldRule {
    pub name: Name,
    pub basis: String,
    pub keep: Period,
    pub from: HoldFrom,
    /// The only purpose for which the held class can be read.
    pub purpose: PurposeNo,
    pub line: u32,
}

/// Rules of a purpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PurposeRule {
    pub no: PurposeNo,
    pub name: Name,
    pub title: Option<String>,
    pub basis: Basis,
    /// Fields it allows.
    pub fields: FieldSet,
    /// The most telling view it justifies.
    pub max_view: View,
    pub needs_approval: bool,
    pub needs_reference: bool,
    pub needs_reason: bool,
    pub line: u32,
}

/// A role of the file. Its groups are ids of the tenant's application: whoever serves it finds their numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleRule {
    pub no: RoleNo,
    pub name: Name,
    pub title: Option<String>,
    pub grants: Box<[GrantRule]>,
    pub line: u32,
}

/// A grant of a role, spread out over the fields of this policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantRule {
    pub fields: FieldSet,
    pub purposes: PurposeSet,
    pub verbs: VerbSet,
    pub max_view: View,
    /// `None`: every subject.
    pub groups: Option<Box<[SubjectId]>>,
    pub line: u32,
}

/// A plan of the tenant's customers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanRule {
    pub no: u16,
    pub name: Name,
    pub title: Option<String>,
    pub overrides: Box<[OverrideRule]>,
    pub line: u32,
}

/// Bounds in which a group may set the retention of a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverrideRule {
    pub class: ClassNo,
    pub at_least: Period,
    pub at_most: Period,
    pub line: u32,
}

/// What is asked of the policy: everything but the field.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// The caller's grants, of all its roles.
    pub grants: &'a [Grant],
    pub verb: Verb,
    pub purpose: PurposeNo,
    /// Group of the subject.
    pub group: Option<GroupNo>,
    /// `None`: the most telling view there may be.
    pub view: Option<View>,
    /// An approval that fits the call was presented.
    pub approved: bool,
    /// The reference of a case was given.
    pub referenced: bool,
    /// A reason in words was given.
    pub reasoned: bool,
}

/// The answer for one field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It may be had in this view; `grant` is the index, in the ask, of the grant that gave it.
    Allow {
        view: View,
        grant: u16,
    },
    Deny(Denial),
}

/// Why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denial {
    pub rule: Rule,
    /// Line of the policy file; 0: the rule is not in the file.
    pub line: u32,
}

/// The rules that can deny, in the order in which they are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rule {
    /// The policy has no such field.
    UnknownField,
    /// The policy has no such purpose.
    UnknownPurpose,
    /// No grant has the verb.
    VerbNotGranted,
    /// No grant has the purpose.
    PurposeNotGranted,
    /// No grant that has verb and purpose has the field.
    FieldNotGranted,
    /// The grants that would allow it are for other groups of subjects.
    GroupNotGranted,
    /// The policy does not allow the field for the purpose.
    PurposeNotAllowed,
    /// The class is kept by a hold, for another purpose than this.
    HeldForAnotherPurpose,
    /// The purpose is based on consent, and there is none on record.
    ConsentMissing,
    /// The purpose needs the approval of a second person.
    ApprovalNeeded,
    /// The purpose needs a reference.
    ReferenceNeeded,
    /// The purpose needs a reason.
    ReasonNeeded,
    /// A plain view was asked for where only a masked one is granted.
    ViewNotGranted,
    /// Only a masked view may be had and the field has no mask.
    NoMask,
    /// The field takes no writes any more.
    FieldRetired,
}

impl Rule {
    /// Stable name, for explanations.
    pub const fn name(self) -> &'static str {
        match self {
            Rule::UnknownField => "unknown-field",
            Rule::UnknownPurpose => "unknown-purpose",
            Rule::VerbNotGranted => "verb-not-granted",
            Rule::PurposeNotGranted => "purpose-not-granted",
            Rule::FieldNotGranted => "field-not-granted",
            Rule::GroupNotGranted => "group-not-granted",
            Rule::PurposeNotAllowed => "purpose-not-allowed",
            Rule::HeldForAnotherPurpose => "held-for-another-purpose",
            Rule::ConsentMissing => "consent-missing",
            Rule::ApprovalNeeded => "approval-needed",
            Rule::ReferenceNeeded => "reference-needed",
            Rule::ReasonNeeded => "reason-needed",
            Rule::ViewNotGranted => "view-not-granted",
            Rule::NoMask => "no-mask",
            Rule::FieldRetired => "field-retired",
        }
    }
}

/// Why a retention override is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverrideRefusal {
    /// The group has no plan, or one that the policy does not have.
    NoPlan,
    /// The plan does not allow to override this class.
    NotInPlan { line: u32 },
    /// The plan allows another span of time.
    OutOfBounds { at_least: Period, at_most: Period, line: u32 },
}

impl Policy {
    /// Reads, lints and compiles a file. `previous` is the version it follows.
    ///
    /// # Errors
    /// All findings, if one of them is an error. Otherwise the warnings and notes come with the policy.
    pub fn compile(
        text: &str,
        version: PolicyVersion,
        previous: Option<&Policy>,
    ) -> Result<(Policy, Vec<Finding>), Vec<Finding>> {
        let file = File::parse(text)?;
        let findings = lint::lint(&file, previous.map(|p| &p.file));
        if findings.iter().any(|f| f.severity == Severity::Error) {
            return Err(findings);
        }
        Ok((Policy::from_linted(file, version, Sha256::digest(text.as_bytes()).into()), findings))
    }

    /// Reads a version that was applied before, when the linter of its time passed it: a rule that was added since must
    /// not keep a tenant from starting.
    ///
    /// # Errors
    /// What keeps it from being read at all.
    pub fn load(text: &str, version: PolicyVersion) -> Result<Policy, Vec<Finding>> {
        Ok(Policy::from_linted(File::parse(text)?, version, Sha256::digest(text.as_bytes()).into()))
    }

    /// Names that are not there were errors to the linter, so they are left out here.
    fn from_linted(file: File, version: PolicyVersion, sha256: [u8; 32]) -> Policy {
        let spread = Spread { file: &file };
        let mut fields: Vec<Option<FieldRule>> = Vec::new();
        for field in &file.fields {
            if let Some(class) = spread.class_no(&field.class) {
                put(&mut fields, field.head.number.value, field_rule(field, class));
            }
        }
        let names = fields.iter().flatten().map(|f| (f.name.clone(), f.no)).collect();
        let mut classes = [const { None }; 17];
        for class in &file.classes {
            classes[usize::from(class.head.number.value.min(16))] = Some(class_rule(class, &spread));
        }
        let mut purposes = Vec::new();
        for p in &file.purposes {
            let rule = PurposeRule {
                no: PurposeNo(p.head.number.value),
                name: p.head.name.value.clone(),
                title: p.head.title.clone(),
                basis: p.basis.value,
                fields: spread.fields(&p.allowed),
                max_view: p.view,
                needs_approval: p.approval,
                needs_reference: p.reference,
                needs_reason: p.reason,
                line: p.head.number.line,
            };
            put(&mut purposes, p.head.number.value, rule);
        }
        let grant_rule = |g: &super::file::RoleGrant| GrantRule {
            fields: spread.fields(&g.touches),
            purposes: spread.purposes(&g.purposes),
            verbs: g.verbs,
            max_view: g.view,
            groups: g.groups.as_ref().map(|list| list.clone().into_boxed_slice()),
            line: g.line,
        };
        let mut roles: Vec<RoleRule> = file
            .roles
            .iter()
            .map(|r| RoleRule {
                no: RoleNo(r.head.number.value.into()),
                name: r.head.name.value.clone(),
                title: r.head.title.clone(),
                grants: r.grants.iter().map(grant_rule).collect(),
                line: r.head.number.line,
            })
            .collect();
        roles.sort_by_key(|r| r.no);
        let plan_rule = |p: &super::file::Plan| PlanRule {
            no: p.head.number.value,
            name: p.head.name.value.clone(),
            title: p.head.title.clone(),
            overrides: p.retention.iter().filter_map(|r| override_rule(r, &file)).collect(),
            line: p.head.number.line,
        };
        let mut plans: Vec<PlanRule> = file.plans.iter().map(plan_rule).collect();
        plans.sort_by_key(|p| p.no);
        Policy {
            version,
            sha256,
            controller: file.controller.clone(),
            text: file.policy.clone(),
            region: file.region.as_ref().map(|r| r.value.clone()),
            time_zone: file.time_zone.value.clone(),
            zone: period::zone(&file.time_zone).unwrap_or(TimeZone::UTC),
            fields: fields.into(),
            names,
            classes,
            purposes: purposes.into(),
            roles: roles.into(),
            plans: plans.into(),
            file,
        }
    }

    /// Which version of the tenant's policy this is.
    pub fn version(&self) -> PolicyVersion {
        self.version
    }
    /// SHA-256 of the file's bytes.
    pub fn sha256(&self) -> &[u8; 32] {
        &self.sha256
    }
    /// Who answers for the data.
    pub fn controller(&self) -> &Controller {
        &self.controller
    }
    /// The published text that the file keeps.
    pub fn text(&self) -> &PublishedText {
        &self.text
    }
    /// Where the controller says the data is.
    pub fn region(&self) -> Option<&Name> {
        self.region.as_ref()
    }
    /// IANA name of the tenant's time zone.
    pub fn time_zone(&self) -> &str {
        &self.time_zone
    }
    /// The time zone in which years are counted.
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// A field by number.
    pub fn field(&self, no: FieldNo) -> Option<&FieldRule> {
        self.fields.get(usize::from(no.0))?.as_ref()
    }
    /// A field by name.
    pub fn field_by_name(&self, name: &Name) -> Option<&FieldRule> {
        self.field(*self.names.get(name)?)
    }
    /// All fields, by number.
    pub fn fields(&self) -> impl Iterator<Item = &FieldRule> {
        self.fields.iter().flatten()
    }
    /// A class by number.
    pub fn class(&self, no: ClassNo) -> Option<&ClassRule> {
        self.classes.get(usize::from(no.0))?.as_ref()
    }
    /// A class by name.
    pub fn class_by_name(&self, name: &Name) -> Option<&ClassRule> {
        self.classes().find(|c| c.name == *name)
    }
    /// All classes, by number.
    pub fn classes(&self) -> impl Iterator<Item = &ClassRule> {
        self.classes.iter().flatten()
    }
    /// A purpose by number.
    pub fn purpose(&self, no: PurposeNo) -> Option<&PurposeRule> {
        self.purposes.get(usize::from(no.0))?.as_ref()
    }
    /// A purpose by name.
    pub fn purpose_by_name(&self, name: &Name) -> Option<&PurposeRule> {
        self.purposes().find(|p| p.name == *name)
    }
    /// All purposes, by number.
    pub fn purposes(&self) -> impl Iterator<Item = &PurposeRule> {
        self.purposes.iter().flatten()
    }
    /// A role of the file by number.
    pub fn role(&self, no: RoleNo) -> Option<&RoleRule> {
        self.roles.iter().find(|r| r.no == no)
    }
    /// A role of the file by name.
    pub fn role_by_name(&self, name: &Name) -> Option<&RoleRule> {
        self.roles.iter().find(|r| r.name == *name)
    }
    /// All roles of the file, by number.
    pub fn roles(&self) -> &[RoleRule] {
        &self.roles
    }
    /// A plan by name.
    pub fn plan(&self, name: &Name) -> Option<&PlanRule> {
        self.plans.iter().find(|p| p.name == *name)
    }
    /// All plans, by number.
    pub fn plans(&self) -> &[PlanRule] {
        &self.plans
    }

    /// The fields of those classes and those single fields, for a grant. Numbers that are not there add nothing.
    pub fn field_set(
        &self,
        classes: impl IntoIterator<Item = ClassNo>,
        fields: impl IntoIterator<Item = FieldNo>,
    ) -> FieldSet {
        let mut set: FieldSet = fields.into_iter().filter(|no| self.field(*no).is_some()).map(|no| no.0).collect();
        for class in classes {
            if let Some(rule) = self.class(class) {
                set = set.or(&rule.fields);
            }
        }
        set
    }

    /// Classes to which those fields belong.
    pub fn classes_of(&self, fields: &FieldSet) -> ClassSet {
        self.classes().filter(|c| !c.fields.and(fields).is_empty()).map(|c| c.no.0.into()).collect()
    }

    /// Whether the ask may have that field. `held_for` is the purpose for which a hold keeps the field's class after
    /// an erasure; `None` when no erasure waits for a hold.
    pub fn decide(&self, ask: &Ask<'_>, field: FieldNo, held_for: Option<PurposeNo>) -> Decision {
        let Some(rule) = self.field(field) else { return deny(Rule::UnknownField, 0) };
        let Some(purpose) = self.purpose(ask.purpose) else { return deny(Rule::UnknownPurpose, 0) };
        let covering = |g: &Grant| g.covers(field, ask.purpose, ask.verb, ask.group);
        // The grant that shows most: roles add up.
        let mut best: Option<(u16, View)> = None;
        for (i, grant) in ask.grants.iter().enumerate() {
            if covering(grant) && best.is_none_or(|(_, view)| grant.max_view > view) {
                best = Some((i as u16, grant.max_view));
            }
        }
        let Some((grant, granted)) = best else { return deny(why_not_granted(ask, field), 0) };
        if !purpose.fields.has(field.0) {
            return deny(Rule::PurposeNotAllowed, purpose.line);
        }
        if held_for.is_some_and(|held| held != ask.purpose) {
            let hold = self.class(rule.class).and_then(|c| c.hold.as_ref());
            return deny(Rule::HeldForAnotherPurpose, hold.map_or(0, |h| h.line));
        }
        if purpose.basis == Basis::Consent {
            return deny(Rule::ConsentMissing, purpose.line);
        }
        if purpose.needs_approval && !ask.approved {
            return deny(Rule::ApprovalNeeded, purpose.line);
        }
        if purpose.needs_reference && !ask.referenced {
            return deny(Rule::ReferenceNeeded, purpose.line);
        }
        if purpose.needs_reason && !ask.reasoned {
            return deny(Rule::ReasonNeeded, purpose.line);
        }
        if ask.verb == Verb::Write && rule.retired {
            return deny(Rule::FieldRetired, rule.line);
        }
        let most = granted.min(purpose.max_view);
        let view = match ask.view {
            None => most,
            Some(asked) if asked <= most => asked,
            Some(_) => return deny(Rule::ViewNotGranted, if purpose.max_view < granted { purpose.line } else { 0 }),
        };
        // A mask is a way of showing: what is written or deleted is not shown.
        let shows = matches!(ask.verb, Verb::Read | Verb::Export);
        if shows && view == View::Masked && rule.mask.is_none() {
            return deny(Rule::NoMask, rule.line);
        }
        Decision::Allow { view, grant }
    }

    /// The decision in words, for `TestAccess`: names of the policy, never a value.
    pub fn explain(&self, ask: &Ask<'_>, field: FieldNo, decision: &Decision) -> String {
        let purpose = self.purpose(ask.purpose).map_or("of that number", |p| p.name.as_str());
        let (field_name, class) = match self.field(field) {
            Some(f) => (f.name.as_str(), self.class(f.class).map_or("of that number", |c| c.name.as_str())),
            None => ("of that number", "of that number"),
        };
        let verb = ask.verb.name();
        match decision {
            Decision::Allow { view, .. } => {
                format!("field {field_name}, class {class}: {verb} for purpose {purpose}, {} view", view.name())
            }
            Decision::Deny(denial) => match denial.rule {
                Rule::UnknownField => "the policy has no field of that number".into(),
                Rule::UnknownPurpose => "the policy has no purpose of that number".into(),
                Rule::VerbNotGranted => format!("no grant has the verb {verb}"),
                Rule::PurposeNotGranted => format!("no grant with the verb {verb} has purpose {purpose}"),
                Rule::FieldNotGranted => {
                    format!("no grant with the verb {verb} and purpose {purpose} has field {field_name}, class {class}")
                }
                Rule::GroupNotGranted => "the grants that would allow it are for other groups of subjects".into(),
                Rule::PurposeNotAllowed => {
                    format!("purpose {purpose} does not allow field {field_name}, class {class}")
                }
                Rule::HeldForAnotherPurpose => {
                    format!("class {class} is held after an erasure, not for purpose {purpose}")
                }
                Rule::ConsentMissing => format!("purpose {purpose} needs a consent, and none is on record"),
                Rule::ApprovalNeeded => format!("purpose {purpose} needs the approval of a second person"),
                Rule::ReferenceNeeded => format!("purpose {purpose} needs a reference"),
                Rule::ReasonNeeded => format!("purpose {purpose} needs a reason"),
                Rule::ViewNotGranted => format!("field {field_name} may be seen masked only, for purpose {purpose}"),
                Rule::NoMask => format!("field {field_name} may be seen masked only, and has no mask"),
                Rule::FieldRetired => format!("field {field_name} is retired and takes no writes"),
            },
        }
    }

    /// The end of a value of that class and origin; `None`: it is kept until it is erased. `group_override` is the
    /// retention that the subject's group set, which [`Policy::check_override`] allowed. Where the policy has changed
    /// since and the class has no retention or a smaller maximum now, the policy counts.
    pub fn expiry(&self, class: ClassNo, group_override: Option<Period>, origin: Timestamp) -> Option<Expiry> {
        let rule = self.class(class)?;
        let kept = match (rule.retention?, group_override, rule.max_retention) {
            (_, Some(wanted), Some(max)) if wanted.longer_than(max) => max,
            (_, Some(wanted), _) => wanted,
            (usual, None, _) => usual,
        };
        Some(Expiry::of(kept, origin, &self.zone))
    }

    /// Whether a group of that plan may set this retention for that class.
    ///
    /// # Errors
    /// The rule that refuses it.
    pub fn check_override(&self, plan: Option<&Name>, class: ClassNo, wanted: Period) -> Result<(), OverrideRefusal> {
        let plan = plan.and_then(|name| self.plan(name)).ok_or(OverrideRefusal::NoPlan)?;
        let bounds = plan.overrides.iter().find(|o| o.class == class);
        let bounds = bounds.ok_or(OverrideRefusal::NotInPlan { line: plan.line })?;
        if wanted.longer_than(bounds.at_most) || bounds.at_least.longer_than(wanted) {
            let OverrideRule { at_least, at_most, line, .. } = *bounds;
            return Err(OverrideRefusal::OutOfBounds { at_least, at_most, line });
        }
        Ok(())
    }

    /// Until when the class's own hold keeps a value of that origin if its subject is erased at `erased`; `None`: there
    /// is no hold, or it is over for this value.
    pub fn held_until(&self, class: ClassNo, origin: Timestamp, erased: Timestamp) -> Option<Timestamp> {
        let hold = self.class(class)?.hold.as_ref()?;
        let until = match hold.from {
            HoldFrom::Origin => hold.keep.after(origin, &self.zone),
            HoldFrom::Erase => hold.keep.after(erased, &self.zone),
        };
        (until > erased).then_some(until)
    }

    /// When a class of a subject closed at `closed` is erased; `None`: at once.
    pub fn grace_ends(&self, class: ClassNo, closed: Timestamp) -> Option<Timestamp> {
        Some(self.class(class)?.grace?.after(closed, &self.zone))
    }

    /// Classes whose stored values end at another time than under `previous`, so that they have to be resealed.
    pub fn retention_changed_since(&self, previous: &Policy) -> ClassSet {
        let calendar_moved = self.time_zone != previous.time_zone;
        let differs = |class: &&ClassRule| match previous.class(class.no) {
            Some(before) => {
                let on_calendar = !matches!(class.retention, None | Some(Period::Days(_)));
                before.retention != class.retention
                    || before.max_retention != class.max_retention
                    || (calendar_moved && on_calendar)
            }
            None => false,
        };
        self.classes().filter(differs).map(|c| c.no.0.into()).collect()
    }
}

fn deny(rule: Rule, line: u32) -> Decision {
    Decision::Deny(Denial { rule, line })
}

/// The first of verb, purpose, field, group that no grant has together with those before it.
fn why_not_granted(ask: &Ask<'_>, field: FieldNo) -> Rule {
    let mut grants = ask.grants.iter().filter(|g| g.verbs.has(ask.verb)).peekable();
    if grants.peek().is_none() {
        return Rule::VerbNotGranted;
    }
    let mut grants = grants.filter(|g| g.purposes.has(ask.purpose.0)).peekable();
    if grants.peek().is_none() {
        return Rule::PurposeNotGranted;
    }
    if grants.any(|g| g.fields.has(field.0)) { Rule::GroupNotGranted } else { Rule::FieldNotGranted }
}

fn put<T>(table: &mut Vec<Option<T>>, number: u16, rule: T) {
    let at = usize::from(number);
    if table.len() <= at {
        table.resize_with(at + 1, || None);
    }
    table[at] = Some(rule);
}

fn field_rule(field: &Field, class: ClassNo) -> FieldRule {
    FieldRule {
        no: FieldNo(field.head.number.value),
        name: field.head.name.value.clone(),
        title: field.head.title.clone(),
        class,
        kind: field.kind.value,
        max_length: lint::max_length(field).unwrap_or(0),
        validator: field.validator.value,
        searchable: field.searchable.value,
        unique: field.unique.value,
        many: field.many.value,
        mask: field.mask.map(|m| m.value),
        retired: field.retired,
        line: field.head.number.line,
    }
}

fn class_rule(class: &Class, spread: &Spread<'_>) -> ClassRule {
    ClassRule {
        no: ClassNo(class.head.number.value as u8),
        name: class.head.name.value.clone(),
        title: class.head.title.clone(),
        retention: class.retention.and_then(|r| r.value),
        max_retention: class.max_retention.map(|r| r.value),
        grace: class.grace.map(|g| g.value),
        hold: class.hold.as_ref().and_then(|h| {
            Some(HoldRule {
                name: h.name.clone(),
                basis: h.basis.clone(),
                keep: h.keep.value,
                from: h.from,
                purpose: spread.purpose_no(&h.purpose)?,
                line: h.keep.line,
            })
        }),
        fields: spread.of_class(&class.head.name),
        line: class.head.number.line,
    }
}

fn override_rule(rule: &super::file::PlanRetention, file: &File) -> Option<OverrideRule> {
    let class = file.classes.iter().find(|c| c.head.name.value == rule.class.value)?;
    let usual = class.retention.and_then(|r| r.value)?;
    let at_most = rule.at_most.or(class.max_retention).map_or(usual, |at| at.value);
    Some(OverrideRule {
        class: ClassNo(class.head.number.value as u8),
        at_least: rule.at_least.map_or(Period::Days(1), |at| at.value),
        at_most,
        line: rule.class.line,
    })
}

/// Names to numbers.
struct Spread<'a> {
    file: &'a File,
}

impl Spread<'_> {
    fn class_no(&self, name: &Name) -> Option<ClassNo> {
        let class = self.file.classes.iter().find(|c| c.head.name.value == *name)?;
        Some(ClassNo(class.head.number.value as u8))
    }
    fn purpose_no(&self, name: &Name) -> Option<PurposeNo> {
        let purpose = self.file.purposes.iter().find(|p| p.head.name.value == *name)?;
        Some(PurposeNo(purpose.head.number.value))
    }
    fn of_class(&self, class: &Name) -> FieldSet {
        self.file.fields.iter().filter(|f| f.class.value == *class).map(|f| f.head.number.value).collect()
    }
    fn fields(&self, said: &Fields) -> FieldSet {
        self.file.fields.iter().filter(|f| lint::names(said, f)).map(|f| f.head.number.value).collect()
    }
    fn purposes(&self, said: &Names) -> PurposeSet {
        self.file.purposes.iter().filter(|p| lint::among(said, &p.head.name)).map(|p| p.head.number.value).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FILE: &str = r#"format = 1
time_zone = "Asia/Kolkata"
[controller]
name = "Example"
contact = "privacy@example.com"

[[class]]
number = 1
name = "account"
retention = "none"
grace = "30d"
[[class]]
number = 2
name = "content"
retention = "90d"
max_retention = "3y"
[[class]]
number = 16
name = "billing"
retention = "none"
hold = { name = "tax", basis = "Tax act", keep = "7y", purpose = "legal" }

[[field]]
number = 1
name = "email"
class = "account"
type = "text"
validator = "email"
searchable = true
mask = "email"
[[field]]
number = 2
name = "age"
class = "account"
type = "integer"
[[field]]
number = 700
name = "message"
class = "content"
type = "text"
max_length = 100
many = true
[[field]]
number = 1023
name = "invoice"
class = "billing"
type = "data"
max_length = 100
many = true
retired = true

[[purpose]]
number = 1
name = "service"
basis = "contract"
classes = ["account", "content"]
[[purpose]]
number = 2
name = "legal"
basis = "legal_obligation"
classes = ["*"]
[[purpose]]
number = 3
name = "marketing"
basis = "consent"
fields = ["email"]
[[purpose]]
number = 255
name = "authority"
basis = "legal_obligation"
classes = ["*"]
except = ["age"]
approval = true
reference = true
reason = true
[[purpose]]
number = 5
name = "support"
basis = "contract"
classes = ["account"]
view = "masked"

[[role]]
number = 1
name = "app"
[[role.grant]]
verbs = ["read", "write"]
classes = ["account", "content"]
except = ["age"]
purposes = ["service"]
[[role.grant]]
verbs = ["erase"]

[[plan]]
number = 1
name = "enterprise"
[[plan.retention]]
class = "content"
at_least = "30d"
at_most = "3y"
[[plan]]
number = 2
name = "free"
"#;

    fn policy() -> Policy {
        match Policy::compile(FILE, PolicyVersion(1), None) {
            Ok((policy, _)) => policy,
            Err(findings) => panic!("{findings:?}"),
        }
    }
    fn name(text: &str) -> Name {
        Name::parse("name", text).unwrap()
    }
    fn grant(fields: FieldSet, max_view: View) -> Grant {
        Grant {
            fields,
            purposes: PurposeSet::ALL,
            verbs: [Verb::Read, Verb::Write, Verb::Export].into_iter().collect(),
            max_view,
            groups: None,
        }
    }
    fn ask(grants: &[Grant], purpose: u16) -> Ask<'_> {
        Ask {
            grants,
            verb: Verb::Read,
            purpose: PurposeNo(purpose),
            group: None,
            view: None,
            approved: false,
            referenced: false,
            reasoned: false,
        }
    }
    fn rule(decision: Decision) -> Rule {
        match decision {
            Decision::Deny(denial) => denial.rule,
            Decision::Allow { view, .. } => panic!("allowed, {}", view.name()),
        }
    }
    fn at(text: &str) -> Timestamp {
        Timestamp(text.parse::<jiff::Timestamp>().unwrap().as_millisecond())
    }

    #[test]
    fn tables_are_indexed_by_number() {
        let p = policy();
        assert_eq!(p.field(FieldNo(700)).unwrap().name, name("message"));
        assert!(p.field(FieldNo(0)).is_none() && p.field(FieldNo(3)).is_none() && p.field(FieldNo(u16::MAX)).is_none());
        assert_eq!(p.field_by_name(&name("invoice")).unwrap().no, FieldNo(1023));
        assert_eq!(p.class(ClassNo(16)).unwrap().fields.iter().collect::<Vec<_>>(), [1023]);
        assert!(p.class(ClassNo(0)).is_none() && p.class(ClassNo(17)).is_none() && p.class(ClassNo(255)).is_none());
        assert!(p.purpose(PurposeNo(255)).is_some() && p.purpose(PurposeNo(4)).is_none());
        assert_eq!(p.field(FieldNo(1)).unwrap().max_length, 254);
        let app = p.role_by_name(&name("app")).unwrap();
        assert_eq!(app.grants[0].fields.iter().collect::<Vec<_>>(), [1, 700]);
        assert!(app.grants[1].fields.is_empty() && app.grants[1].verbs.has(Verb::Erase));
        assert_eq!(p.field_set([ClassNo(1)], [FieldNo(1023), FieldNo(9)]).iter().collect::<Vec<_>>(), [1, 2, 1023]);
        assert_eq!(p.classes_of(&p.field_set([ClassNo(1)], [FieldNo(1023)])).iter().collect::<Vec<_>>(), [1, 16]);
    }

    #[test]
    fn a_refusal_names_its_rule_and_line() {
        let p = policy();
        let all = [grant(FieldSet::ALL, View::Plain)];
        let deny = |a: &Ask<'_>, f: u16| rule(p.decide(a, FieldNo(f), None));
        assert_eq!(p.decide(&ask(&all, 1), FieldNo(1), None), Decision::Allow { view: View::Plain, grant: 0 });
        assert_eq!(deny(&ask(&all, 1), 9), Rule::UnknownField);
        assert_eq!(deny(&ask(&all, 9), 1), Rule::UnknownPurpose);
        assert_eq!(deny(&ask(&[], 1), 1), Rule::VerbNotGranted);
        assert_eq!(deny(&Ask { verb: Verb::Erase, ..ask(&all, 1) }, 1), Rule::VerbNotGranted);
        let mut one = [grant([1u16].into_iter().collect(), View::Plain)];
        assert_eq!(deny(&ask(&one, 1), 2), Rule::FieldNotGranted);
        one[0].purposes = [2u16].into_iter().collect();
        assert_eq!(deny(&ask(&one, 1), 1), Rule::PurposeNotGranted);
        one[0].purposes = PurposeSet::ALL;
        one[0].groups = Some(Box::new([GroupNo(1)]));
        assert_eq!(deny(&ask(&one, 1), 1), Rule::GroupNotGranted);
        assert_eq!(deny(&Ask { group: Some(GroupNo(2)), ..ask(&one, 1) }, 1), Rule::GroupNotGranted);
        assert_eq!(
            p.decide(&Ask { group: Some(GroupNo(1)), ..ask(&one, 1) }, FieldNo(1), None),
            Decision::Allow { view: View::Plain, grant: 0 }
        );
        let denied = p.decide(&ask(&all, 1), FieldNo(1023), None);
        let line = p.purpose(PurposeNo(1)).unwrap().line;
        assert_eq!(denied, Decision::Deny(Denial { rule: Rule::PurposeNotAllowed, line }));
        assert!(FILE.lines().nth(line as usize - 1).unwrap().starts_with("number = 1"));
        assert_eq!(
            p.explain(&ask(&all, 1), FieldNo(1023), &denied),
            "purpose service does not allow field invoice, class billing"
        );
        assert_eq!(deny(&ask(&all, 3), 1), Rule::ConsentMissing);
        assert_eq!(deny(&Ask { verb: Verb::Write, ..ask(&all, 2) }, 1023), Rule::FieldRetired);
    }

    #[test]
    fn approval_reference_and_reason_are_all_needed() {
        let p = policy();
        let all = [grant(FieldSet::ALL, View::Plain)];
        let mut a = ask(&all, 255);
        assert_eq!(rule(p.decide(&a, FieldNo(1), None)), Rule::ApprovalNeeded);
        a.approved = true;
        assert_eq!(rule(p.decide(&a, FieldNo(1), None)), Rule::ReferenceNeeded);
        a.referenced = true;
        assert_eq!(rule(p.decide(&a, FieldNo(1), None)), Rule::ReasonNeeded);
        a.reasoned = true;
        assert_eq!(p.decide(&a, FieldNo(1), None), Decision::Allow { view: View::Plain, grant: 0 });
        assert_eq!(rule(p.decide(&a, FieldNo(2), None)), Rule::PurposeNotAllowed, "an exception");
    }

    #[test]
    fn the_most_careful_view_counts() {
        let p = policy();
        let masked = [grant(FieldSet::ALL, View::Masked)];
        let both = [grant(FieldSet::ALL, View::Masked), grant([1u16].into_iter().collect(), View::Plain)];
        let view = |a: &Ask<'_>, f: u16| p.decide(a, FieldNo(f), None);
        assert_eq!(view(&ask(&masked, 1), 1), Decision::Allow { view: View::Masked, grant: 0 });
        assert_eq!(rule(view(&Ask { view: Some(View::Plain), ..ask(&masked, 1) }, 1)), Rule::ViewNotGranted);
        assert_eq!(view(&ask(&both, 1), 1), Decision::Allow { view: View::Plain, grant: 1 });
        assert_eq!(
            view(&ask(&both, 5), 1),
            Decision::Allow { view: View::Masked, grant: 1 },
            "the purpose justifies no more"
        );
        assert_eq!(
            view(&Ask { view: Some(View::Masked), ..ask(&both, 1) }, 1),
            Decision::Allow { view: View::Masked, grant: 1 }
        );
        assert_eq!(rule(view(&ask(&masked, 1), 2)), Rule::NoMask);
        assert!(matches!(view(&Ask { verb: Verb::Write, ..ask(&masked, 1) }, 2), Decision::Allow { .. }));
    }

    #[test]
    fn a_held_class_is_read_for_the_holds_purpose_only() {
        let p = policy();
        let all = [grant(FieldSet::ALL, View::Plain)];
        let held_for = p.class(ClassNo(16)).unwrap().hold.as_ref().map(|h| h.purpose);
        assert_eq!(held_for, Some(PurposeNo(2)));
        assert!(matches!(p.decide(&ask(&all, 2), FieldNo(1023), held_for), Decision::Allow { .. }));
        let other = Ask { approved: true, referenced: true, reasoned: true, ..ask(&all, 255) };
        assert_eq!(rule(p.decide(&other, FieldNo(1023), held_for)), Rule::HeldForAnotherPurpose);
        assert!(matches!(p.decide(&other, FieldNo(1023), None), Decision::Allow { .. }));
    }

    #[test]
    fn retention_holds_and_grace_end() {
        let p = policy();
        let origin = at("2026-01-01T00:00:00Z");
        assert_eq!(p.expiry(ClassNo(1), None, origin), None);
        assert_eq!(p.expiry(ClassNo(1), Some(Period::Days(9)), origin), None, "nothing to override");
        assert_eq!(p.expiry(ClassNo(2), None, origin).unwrap().at, at("2026-04-01T00:00:00Z"));
        assert_eq!(p.expiry(ClassNo(2), Some(Period::Days(180)), origin).unwrap().at, at("2026-06-30T00:00:00Z"));
        let capped = p.expiry(ClassNo(2), Some(Period::Years(9)), origin).unwrap();
        assert_eq!(capped.at, at("2029-01-01T00:00:00Z"), "a maximum is not extended");
        assert_eq!(i64::from(capped.bucket.0), at("2029-01-31T00:00:00Z").day());
        assert_eq!(p.held_until(ClassNo(16), origin, at("2026-06-01T00:00:00Z")), Some(at("2033-01-01T00:00:00Z")));
        assert_eq!(p.held_until(ClassNo(16), origin, at("2033-01-01T00:00:00Z")), None, "over");
        assert_eq!(p.held_until(ClassNo(1), origin, origin), None);
        assert_eq!(p.grace_ends(ClassNo(1), origin), Some(at("2026-01-31T00:00:00Z")));
        assert_eq!(p.grace_ends(ClassNo(2), origin), None);
    }

    #[test]
    fn an_override_needs_a_plan_that_allows_it() {
        let p = policy();
        let (enterprise, free) = (name("enterprise"), name("free"));
        assert_eq!(p.check_override(None, ClassNo(2), Period::Days(60)), Err(OverrideRefusal::NoPlan));
        assert_eq!(p.check_override(Some(&name("gold")), ClassNo(2), Period::Days(60)), Err(OverrideRefusal::NoPlan));
        assert!(matches!(
            p.check_override(Some(&free), ClassNo(2), Period::Days(60)),
            Err(OverrideRefusal::NotInPlan { .. })
        ));
        assert!(matches!(
            p.check_override(Some(&enterprise), ClassNo(1), Period::Days(60)),
            Err(OverrideRefusal::NotInPlan { .. })
        ));
        for (wanted, good) in
            [("29d", false), ("30d", true), ("3y", true), ("36mo", true), ("37mo", false), ("4y", false)]
        {
            let wanted = Period::parse(wanted).unwrap();
            assert_eq!(p.check_override(Some(&enterprise), ClassNo(2), wanted).is_ok(), good, "{wanted}");
        }
    }

    #[test]
    fn a_changed_retention_is_seen() {
        let p = policy();
        let text = FILE.replace("retention = \"90d\"", "retention = \"80d\"");
        let (next, findings) = Policy::compile(&text, PolicyVersion(2), Some(&p)).unwrap_or_else(|f| panic!("{f:?}"));
        assert!(findings.iter().any(|f| f.rule == "retention-changed"));
        assert_eq!(next.retention_changed_since(&p).iter().collect::<Vec<_>>(), [2]);
        assert!(p.retention_changed_since(&p).is_empty());
        assert_ne!(next.sha256(), p.sha256());
        let loaded = Policy::load(&text, PolicyVersion(2)).unwrap_or_else(|f| panic!("{f:?}"));
        assert!(
            loaded.sha256() == next.sha256()
                && loaded.fields().eq(next.fields())
                && loaded.classes().eq(next.classes())
        );
        let reused = FILE.replace("type = \"integer\"", "type = \"flag\"");
        assert!(Policy::compile(&reused, PolicyVersion(2), Some(&p)).is_err());
    }

    proptest! {
        /// The decision against the same words said plainly, over random grants and asks.
        #[test]
        fn t23_a_decision_gives_no_more_than_grant_and_purpose(
            grants in prop::collection::vec((any::<u64>(), any::<u64>(), any::<bool>(), prop::option::of(1u32..3)), 0..4),
            purpose in prop::sample::select(vec![1u16, 2, 3, 4, 5, 255]),
            field in prop::sample::select(vec![0u16, 1, 2, 3, 700, 1023]),
            group in prop::option::of(1u32..3), plain: bool, extra: bool,
        ) {
            let p = policy();
            let pick = |bits: u64, of: &[u16]| of.iter().enumerate().filter(|(i, _)| bits >> i & 1 == 1).map(|(_, n)| *n).collect::<Vec<_>>();
            let list: Vec<Grant> = grants.iter().map(|(f, u, masked, g)| Grant {
                fields: pick(*f, &[1, 2, 700, 1023]).into_iter().collect(),
                purposes: pick(*u, &[1, 2, 3, 5, 255]).into_iter().collect(),
                verbs: VerbSet::from_iter([Verb::Read]),
                max_view: if *masked { View::Masked } else { View::Plain },
                groups: g.map(|g| vec![GroupNo(g)].into()),
            }).collect();
            let ask = Ask {
                view: plain.then_some(View::Plain), group: group.map(GroupNo),
                approved: extra, referenced: extra, reasoned: extra, ..ask(&list, purpose)
            };
            if let Decision::Allow { view, grant } = p.decide(&ask, FieldNo(field), None) {
                let rule = p.purpose(PurposeNo(purpose)).unwrap();
                prop_assert!(rule.fields.has(field) && rule.basis != Basis::Consent && (extra || !rule.needs_approval));
                let given = &list[usize::from(grant)];
                prop_assert!(given.fields.has(field) && given.purposes.has(purpose) && view <= given.max_view && view <= rule.max_view);
                prop_assert!(given.groups.is_none() || group.is_some_and(|g| given.groups.as_ref().unwrap().contains(&GroupNo(g))));
                prop_assert!(!plain || view == View::Plain);
                prop_assert!(view == View::Plain || p.field(FieldNo(field)).unwrap().mask.is_some());
            }
        }
    }
}
