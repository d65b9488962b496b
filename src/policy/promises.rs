//! What makes no sense in recipients, age, clocks, transfers, aggregates and notices, and in how they fit the rest.

use super::file::{Basis, Field, FieldType, File, Purpose, RecipientKind, RecipientView};
use super::lint::{Lint, among, basis_of, is_outside, names};
use super::period::Period;
use jiff::ToSpan;
use jiff::civil::Date;

impl<'a> Lint<'a> {
    pub(super) fn promises(&mut self) {
        self.recipients();
        self.bases();
        self.consents();
        self.age();
        self.analytics();
        let notice = self.file.notice;
        if let (Some(told), Some(from), Some(least)) = (notice.notified, notice.effective, notice.minimum)
            && from.value < after(told.value, least.value)
        {
            let message = format!("less than {} after the notice of {}", least.value, told.value);
            self.say(from.line, "policy.effective", "notice-too-short", message);
        }
    }

    fn recipients(&mut self) {
        let file = self.file;
        for recipient in &file.recipients {
            let (name, line) = (&*recipient.head.name, recipient.head.number.line);
            self.refer("recipient", &recipient.gets);
            for purpose in recipient.purposes.list() {
                if !file.purposes.iter().any(|p| p.head.name.value == purpose.value) {
                    self.unknown("recipient.purposes", "purpose", purpose);
                }
            }
            if recipient.kind == RecipientKind::Processor && recipient.dpa.is_none() {
                let message = format!("`{name}` processes data without an agreement: name its reference");
                self.say(line, "recipient.dpa", "recipient-without-dpa", message);
            }
            let region = recipient.region.as_ref().map(|at| &at.value);
            if let Some(rule) = file.transfer.as_ref().filter(|rule| is_outside(rule, region))
                && recipient.transfer.is_none()
            {
                let message =
                    format!("`{name}` is outside the regions of line {}: name what lets data go there", rule.line);
                self.say(line, "recipient.transfer", "recipient-without-transfer", message);
            }
            if let (Some(ends), Some(from)) = (recipient.dpa_expires, file.notice.effective)
                && ends.value < from.value
            {
                let message = format!("the agreement with `{name}` ends before this version takes effect");
                self.say(ends.line, "recipient.dpa_expires", "agreement-ends", message);
            }
            if recipient.view.value == RecipientView::Tokens {
                let message = format!("reads for `{name}` are refused until tokens are made");
                self.say(recipient.view.line, "recipient.view", "tokens-not-made", message);
            }
            let gets: Vec<&Field> = file.fields.iter().filter(|f| names(&recipient.gets, f)).collect();
            for purpose in file.purposes.iter().filter(|p| among(&recipient.purposes, &p.head.name)) {
                if let Some(rule) = forbidden(file, purpose) {
                    let message = format!("line {rule} forbids `{}`", *purpose.head.name);
                    self.say(line, "recipient.purposes", "forbidden-recipient", message);
                }
                if !gets.iter().any(|f| names(&purpose.allowed, f)) {
                    let message = format!("purpose `{}` allows none of the fields of `{name}`", *purpose.head.name);
                    self.say(line, "recipient.purposes", "recipient-in-vain", message);
                }
            }
        }
    }

    /// Categories that allow some bases only.
    fn bases(&mut self) {
        let file = self.file;
        for purpose in &file.purposes {
            for exception in &purpose.basis_for {
                if !file.categories.iter().any(|c| c.name.value == exception.category.value) {
                    self.unknown("purpose.basis_for.category", "category", &exception.category);
                }
            }
            for category in file.categories.iter().filter(|c| !c.bases.is_empty()) {
                let of_category = |f: &&Field| {
                    names(&purpose.allowed, f) && f.category.as_ref().is_some_and(|c| c.value == category.name.value)
                };
                let wrong = |f: &Field| category.bases.iter().all(|b| b.value != basis_of(purpose, f));
                if let Some(field) = file.fields.iter().filter(of_category).find(|f| wrong(f)) {
                    let message = format!(
                        "`{}` uses `{}` of category `{}` on a basis that line {} does not list",
                        *purpose.head.name, *field.head.name, *category.name, category.name.line
                    );
                    self.say(purpose.basis.line, "purpose.basis", "basis-not-allowed", message);
                }
            }
        }
    }

    fn consents(&mut self) {
        for field in &self.file.fields {
            let Some(needed) = &field.consent else { continue };
            match self.file.purposes.iter().find(|p| p.head.name.value == needed.value) {
                None => self.unknown("field.consent", "purpose", needed),
                Some(purpose) if purpose.basis.value != Basis::Consent => {
                    let message = format!("`{}` is not based on consent", needed.value);
                    self.say(needed.line, "field.consent", "consent-purpose", message);
                }
                Some(_) => {}
            }
        }
    }

    fn age(&mut self) {
        let Some(age) = &self.file.age else { return };
        let fields = [("age.birth", &age.birth, FieldType::Date), ("age.attested", &age.attested, FieldType::Flag)];
        for (key, said, kind) in fields {
            let Some(said) = said else { continue };
            match self.file.fields.iter().find(|f| f.head.name.value == said.value) {
                None => self.unknown(key, "field", said),
                Some(field) if field.kind.value != kind || field.many.value => {
                    let message = format!("`{}` must be one {}", said.value, kind.name());
                    self.say(said.line, key, "age-field", message);
                }
                Some(_) => {}
            }
        }
        if age.birth.is_none() && age.attested.is_none() {
            let message = "name the field of the date of birth or of the attestation".into();
            self.say(age.limit.line, "age", "age-field", message);
        }
    }

    fn analytics(&mut self) {
        let Some(analytics) = &self.file.analytics else { return };
        for said in &analytics.fields {
            let Some(field) = self.file.fields.iter().find(|f| f.head.name.value == said.value) else {
                self.unknown("analytics.fields", "field", said);
                continue;
            };
            let ends = self.class(&field.class).is_some_and(|c| c.retention.is_some_and(|r| r.value.is_some()));
            if field.many.value || ends || field.kind.value == FieldType::Data {
                let message = format!("people cannot be grouped by `{}`", said.value);
                self.say(said.line, "analytics.fields", "analytics-field", message);
            }
        }
    }

    /// A material change needs a notice where the version before promised one.
    pub(super) fn notice(&mut self, before: &File) {
        let now = self.file;
        let Some(least) = before.notice.minimum.or(now.notice.minimum) else { return };
        let told = now.notice.notified.zip(now.notice.effective);
        // What was announced for the version before is no notice of this one.
        let old = before.notice.effective.is_some_and(|e| Some(e.value) == now.notice.effective.map(|e| e.value));
        let enough = told.is_some_and(|(told, from)| from.value >= after(told.value, least.value));
        if (enough && !old) || before.notice.minimum.is_none() {
            return;
        }
        if let Some((line, what)) = material(before, now) {
            let message = format!(
                "{what}: people are told {} before, so say `notified` and a later `effective` in [policy]",
                least.value
            );
            self.say(line, "policy.notified", "notice-missing", message);
        }
    }
}

/// The line in which the purpose's kind or name is forbidden.
fn forbidden(file: &File, purpose: &Purpose) -> Option<u32> {
    let kind = purpose.kind.as_ref().map(|k| k.value.as_str());
    let rule = file.forbidden.iter().find(|f| Some(f.value.as_str()) == kind || f.value == purpose.head.name.as_str());
    rule.map(|rule| rule.line)
}

/// The first day that is a period later.
fn after(day: Date, period: Period) -> Date {
    let span = match period {
        Period::Days(n) => i64::from(n).days(),
        Period::Months(n) => i64::from(n).months(),
        Period::Years(n) => i64::from(n).years(),
    };
    day.checked_add(span).unwrap_or(Date::MAX)
}

/// The first change that is not in people's favour: data used for more, kept longer, given to more.
fn material(before: &File, now: &File) -> Option<(u32, String)> {
    for purpose in &now.purposes {
        let (name, line) = (&*purpose.head.name, purpose.head.number.line);
        let Some(was) = before.purposes.iter().find(|p| p.head.number.value == purpose.head.number.value) else {
            return Some((line, format!("purpose `{name}` is new")));
        };
        if was.basis.value != purpose.basis.value {
            return Some((purpose.basis.line, format!("purpose `{name}` has another basis")));
        }
        let known = |f: &&Field| before.fields.iter().any(|b| b.head.number.value == f.head.number.value);
        let more = now.fields.iter().filter(known).find(|f| {
            let old = before.fields.iter().find(|b| b.head.number.value == f.head.number.value);
            names(&purpose.allowed, f) && !old.is_some_and(|old| names(&was.allowed, old))
        });
        if let Some(field) = more {
            return Some((line, format!("purpose `{name}` allows `{}` now", *field.head.name)));
        }
    }
    for field in &now.fields {
        if !before.fields.iter().any(|f| f.head.number.value == field.head.number.value) {
            return Some((field.head.number.line, format!("field `{}` is new", *field.head.name)));
        }
    }
    for recipient in &now.recipients {
        let (name, line) = (&*recipient.head.name, recipient.head.number.line);
        let Some(was) = before.recipients.iter().find(|r| r.head.number.value == recipient.head.number.value) else {
            return Some((line, format!("recipient `{name}` is new")));
        };
        let more = now.fields.iter().any(|f| {
            let old = before.fields.iter().find(|b| b.head.number.value == f.head.number.value);
            names(&recipient.gets, f) && !old.is_some_and(|old| names(&was.gets, old))
        });
        let other = now
            .purposes
            .iter()
            .any(|p| among(&recipient.purposes, &p.head.name) && !among(&was.purposes, &p.head.name));
        if more || other {
            return Some((line, format!("recipient `{name}` is given more")));
        }
    }
    for class in &now.classes {
        let Some(was) = before.classes.iter().find(|c| c.head.number.value == class.head.number.value) else {
            continue;
        };
        let kept = |class: &super::file::Class| class.retention.and_then(|r| r.value);
        let longer = match (kept(was), kept(class)) {
            (Some(old), Some(new)) => new.longer_than(old),
            (Some(_), None) => true,
            (None, _) => false,
        };
        if longer {
            let line = class.retention.map_or(class.head.number.line, |r| r.line);
            return Some((line, format!("class `{}` is kept longer", *class.head.name)));
        }
    }
    if let Some(gone) = before.forbidden.iter().find(|f| now.forbidden.iter().all(|n| n.value != f.value)) {
        return Some((1, format!("`{}` is not forbidden any more", gone.value)));
    }
    None
}
