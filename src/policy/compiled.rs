//! A policy in force: tables indexed by number, made once from a file that the linter passed. `decide` and `retention`
//! answer from them.

use super::build::{self, Spread, class_rule, credential_rule, field_rule, override_rule, put};
pub use super::decide::{Ask, Decision, Denial, Rule, Withheld};
use super::due::Calendar;
pub use super::facts::SubjectFacts;
use super::file::{Claim, TransferRule};
use super::file::{Controller, File, Finding, Notice, PublishedText, Severity};
use super::lint;
use super::period::{self, Period};
pub use super::retention::{EarlyLoss, OverrideRefusal};
pub use super::rules::*;
use crate::access::{ClassSet, FieldSet};
use crate::clock::Timestamp;
use crate::ids::{ClassNo, FieldNo, Name, PolicyVersion, PurposeNo, RecipientNo, RoleNo};
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
    credentials: Option<CredentialRule>,
    recipients: Box<[Option<RecipientRule>]>,
    age: Option<AgeRule>,
    clocks: Box<[ClockRule]>,
    calendar: Calendar,
    nominee: Option<NomineeRule>,
    analytics: Option<AnalyticsRule>,
    file: File,
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
        let zone = period::zone(&file.time_zone).unwrap_or(TimeZone::UTC);
        let mut fields: Vec<Option<FieldRule>> = Vec::new();
        for field in &file.fields {
            if let Some(class) = spread.class_no(&field.class) {
                put(&mut fields, field.head.number.value, field_rule(field, class, &spread));
            }
        }
        let names = fields.iter().flatten().map(|f| (f.name.clone(), f.no)).collect();
        let mut classes = [const { None }; 17];
        for class in &file.classes {
            classes[usize::from(class.head.number.value.min(16))] = Some(class_rule(class, &spread));
        }
        let mut purposes = Vec::new();
        for p in &file.purposes {
            let rule = build::purpose_rule(p, &spread, &zone);
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
        let credentials = file.credentials.as_ref().and_then(|said| credential_rule(said, &spread));
        let mut recipients = Vec::new();
        for r in &file.recipients {
            put(&mut recipients, r.head.number.value, build::recipient_rule(r, &spread, &zone));
        }
        let nominee = file.nominee.as_ref().map(|n| NomineeRule {
            scopes: n.scopes.iter().map(|s| s.value).collect(),
            lasts: n.lasts.map(|l| l.value),
        });
        let analytics = file.analytics.as_ref().map(|a| AnalyticsRule {
            threshold: a.threshold.value,
            fields: a.fields.iter().filter_map(|n| spread.field_no(n)).map(|no| no.0).collect(),
            line: a.threshold.line,
        });
        Policy {
            version,
            sha256,
            recipients: recipients.into(),
            age: file.age.as_ref().map(|a| AgeRule { limit: a.limit.value, line: a.limit.line }),
            clocks: build::clock_rules(&file),
            calendar: build::calendar(&file),
            nominee,
            analytics,
            controller: file.controller.clone(),
            text: file.policy.clone(),
            region: file.region.as_ref().map(|r| r.value.clone()),
            time_zone: file.time_zone.value.clone(),
            zone,
            fields: fields.into(),
            names,
            classes,
            purposes: purposes.into(),
            roles: roles.into(),
            plans: plans.into(),
            credentials,
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
    /// When this version takes effect; `None`: at once.
    pub fn effective(&self) -> Option<Timestamp> {
        let day = self.file.notice.effective.as_ref()?.value;
        super::due::start_of(day, &self.zone)
    }
    /// What the file says about its announcement.
    pub fn notice(&self) -> Notice {
        self.file.notice
    }
    /// Line of what ends a class's values.
    pub(super) fn retention_line(&self, class: &ClassRule) -> u32 {
        let said = self.file.classes.iter().find(|c| c.head.name.value == class.name);
        said.and_then(|c| c.retention.map(|r| r.line)).unwrap_or(class.line)
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
    /// Rules of the users' credentials; `None`: the tenant keeps none here.
    pub fn credentials(&self) -> Option<&CredentialRule> {
        self.credentials.as_ref()
    }

    /// All plans, by number.
    pub fn plans(&self) -> &[PlanRule] {
        &self.plans
    }

    /// A recipient by number.
    pub fn recipient(&self, no: RecipientNo) -> Option<&RecipientRule> {
        self.recipients.get(usize::from(no.0))?.as_ref()
    }
    /// A recipient by name.
    pub fn recipient_by_name(&self, name: &Name) -> Option<&RecipientRule> {
        self.recipients().find(|r| r.name == *name)
    }
    /// All recipients, by number.
    pub fn recipients(&self) -> impl Iterator<Item = &RecipientRule> {
        self.recipients.iter().flatten()
    }
    /// The age limit.
    pub fn age(&self) -> Option<&AgeRule> {
        self.age.as_ref()
    }
    /// Time limits of requests, in the order of the file.
    pub fn clocks(&self) -> &[ClockRule] {
        &self.clocks
    }
    /// Business days.
    pub fn calendar(&self) -> &Calendar {
        &self.calendar
    }
    /// Who may exercise a person's rights in their place.
    pub fn nominee(&self) -> Option<&NomineeRule> {
        self.nominee.as_ref()
    }
    /// Counts over groups of people.
    pub fn analytics(&self) -> Option<&AnalyticsRule> {
        self.analytics.as_ref()
    }
    /// How long archives are kept.
    pub fn archives(&self) -> Option<ArchivesRule> {
        let archives = self.file.archives.as_ref()?;
        Some(ArchivesRule { horizon: archives.horizon.map(|p| p.value), data: archives.data.map(|p| p.value) })
    }
    /// The host on whose machines the controller says the data is.
    pub fn storage_host(&self) -> Option<&str> {
        self.file.storage.as_ref().map(|host| host.value.as_str())
    }
    /// What the linter finds in the file by itself, now.
    pub fn findings(&self) -> Vec<Finding> {
        lint::lint(&self.file, None)
    }
    /// What the published text claims.
    pub fn claims(&self) -> &[Claim] {
        &self.file.claims
    }
    /// Kinds of purposes that the file rules out.
    pub fn forbidden(&self) -> impl Iterator<Item = &str> {
        self.file.forbidden.iter().map(|kind| kind.value.as_str())
    }
    /// How long before they count changes are announced.
    pub fn minimum_notice(&self) -> Option<Period> {
        self.file.notice.minimum.map(|minimum| minimum.value)
    }
    /// Fields that a word of a claim means: those of a category, or the one of that name.
    pub fn fields_meant(&self, word: &str) -> FieldSet {
        let of = |f: &&super::file::Field| {
            f.head.name.value.as_str() == word || f.category.as_ref().is_some_and(|c| c.value.as_str() == word)
        };
        self.file.fields.iter().filter(of).map(|f| f.head.number.value).collect()
    }
    pub(super) fn transfer_rule(&self) -> Option<&TransferRule> {
        self.file.transfer.as_ref()
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
}

#[cfg(test)]
mod tests {
    use super::super::testing::{name, policy};
    use super::*;
    use crate::access::Verb;

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
}
