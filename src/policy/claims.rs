//! Claims of a published text, compared with each other and with the rules. No rule knows a company: a finding comes from
//! what two sentences say, or from what a sentence says and no rule keeps.

use super::claim::{About, ClaimKind, Form, Kept};
use super::due::Within;
use super::file::{At, Basis, Claim, Class, Field, RequestKind, Transfer};
use super::lint::{Lint, among, names};
use super::period::Period;
use super::words::{PURPOSE_KINDS, REQUESTS};
use crate::ids::Name;

impl<'a> Lint<'a> {
    pub(super) fn claims(&mut self) {
        if self.file.claims.is_empty() {
            return;
        }
        for claim in &self.file.claims {
            self.claim_form(claim);
            self.against_rules(claim);
            if claim.kind.value.kept() == Kept::Outside {
                let message = format!("section {}: the vault sees nothing of it", claim.section);
                self.say(claim.line, "claim", "outside-the-vault", message);
            }
        }
        self.categories_claimed();
        self.deletion();
        self.sharing();
        self.channels();
        self.ages();
        self.uses();
        if self.of(ClaimKind::AtRest).next().is_none() {
            let line = self.of(ClaimKind::InTransit).next().map_or(1, |c| c.line);
            let message = "the text could claim AES-256-GCM for every stored value".into();
            self.say(line, "claim", "no-at-rest-claim", message);
        }
    }

    fn of(&self, kind: ClaimKind) -> impl Iterator<Item = &'a Claim> + use<'a> {
        self.file.claims.iter().filter(move |c| c.kind.value == kind)
    }

    fn is_category(&self, name: &Name) -> bool {
        self.file.categories.iter().any(|c| c.name.value == *name)
    }

    /// Whether the claim has what its kind demands and nothing else; names that must be in the file are.
    fn claim_form(&mut self, claim: &'a Claim) {
        let kind = claim.kind.value;
        let mut wrong = |line: u32, message: String| self.say(line, "claim", "claim-form", message);
        match (kind.form(), &claim.value) {
            (Form::Nothing, Some(value)) => wrong(value.line, format!("`{}` has no value", kind.name())),
            // A text may name a host or a region without saying which; the other kinds mean nothing without a value.
            (Form::Nothing, None) => {}
            (_, None) => wrong(claim.line, format!("`{}` needs a value", kind.name())),
            (form, Some(value)) => {
                if !fits(form, &value.value) {
                    wrong(value.line, format!("not a value of `{}`", kind.name()));
                }
            }
        }
        if (kind == ClaimKind::Shares) != claim.recipient.is_some() {
            wrong(claim.line, "`recipient` belongs to claims of kind `shares`, and to each of them".into());
        }
        if kind.about() == About::Nothing && !claim.about.is_nothing() {
            wrong(claim.line, format!("`{}` is about nothing in particular", kind.name()));
        }
        for name in claim.about.list() {
            let (known, what) = match kind.about() {
                About::Categories => (self.is_category(name), "category"),
                About::Fields => {
                    let field = self.file.fields.iter().any(|f| f.head.name.value == name.value);
                    (field || self.is_category(name), "category or field")
                }
                About::Requests => (REQUESTS.contains(&name.as_str()), "kind of request"),
                About::Kinds => (PURPOSE_KINDS.contains(&name.as_str()), "kind of purpose"),
                About::Nothing | About::Data | About::Purposes | About::Channels => (true, ""),
            };
            if !known {
                self.unknown("claim.about", what, name);
            }
        }
    }

    /// Data that is collected: in which category, how long, and whether a deletion removes it.
    fn categories_claimed(&mut self) {
        for claim in self.of(ClaimKind::Collects).chain(self.of(ClaimKind::Handles)) {
            let unknown: Vec<_> = claim.about.list().iter().filter(|n| !self.is_category(n)).collect();
            for name in unknown {
                let message =
                    format!("section {} handles `{}`, which belongs to no category", claim.section, name.value);
                self.say(name.line, "claim.about", "data-without-category", message);
            }
        }
        for (name, section) in self.collected() {
            if !self.of(ClaimKind::Retention).any(|c| among(&c.about, &name.value)) {
                let message =
                    format!("section {section} collects `{}`, and no section says how long it is kept", name.value);
                self.say(name.line, "claim.about", "claim-retention-missing", message);
            }
            let mut covers = self.of(ClaimKind::DeletionCovers).peekable();
            let Some(list) = covers.peek().map(|c| (c.line, c.section.as_str())) else { continue };
            if !covers.any(|c| among(&c.about, &name.value)) {
                let message = format!(
                    "what section {} removes leaves out `{}`, which section {section} collects",
                    list.1, name.value
                );
                self.say(list.0, "claim.about", "deletion-omits", message);
            }
        }
    }

    /// Categories that the text says are collected, with the section.
    fn collected(&self) -> Vec<(&'a At<Name>, &'a str)> {
        let all = self.of(ClaimKind::Collects);
        let names = all.flat_map(|c| c.about.list().iter().map(|n| (n, c.section.as_str())));
        names.filter(|(n, _)| self.is_category(n)).collect()
    }

    /// Deletion of everything at any time, beside what is kept.
    fn deletion(&mut self) {
        for all in self.of(ClaimKind::Deletion).filter(|c| value(c) == Some("anytime")) {
            let keeps = |c: &&Claim| match c.kind.value {
                ClaimKind::Grace | ClaimKind::Backups => true,
                ClaimKind::Retention => value(c).is_some_and(|v| Period::parse(v).is_some()),
                _ => false,
            };
            for other in self.file.claims.iter().filter(keeps) {
                let about: Vec<&str> = other.about.list().iter().map(|n| n.as_str()).collect();
                let what = if about.is_empty() { String::new() } else { format!(" of {}", about.join(", ")) };
                let message = format!(
                    "section {} promises deletion of everything at any time; section {} (line {}) has {}{what} for {}",
                    all.section,
                    other.section,
                    other.line,
                    other.kind.value.name(),
                    value(other).unwrap_or_default()
                );
                self.say(all.line, "claim", "deletion-contradicted", message);
            }
        }
    }

    /// Recipients: what the sections say of one another, and what the rules give.
    fn sharing(&mut self) {
        let claims: Vec<(&Claim, &Name)> =
            self.of(ClaimKind::Shares).filter_map(|c| Some((c, &c.recipient.as_ref()?.value))).collect();
        for (i, (claim, recipient)) in claims.iter().enumerate() {
            if !self.file.recipients.iter().any(|r| r.head.name.value == **recipient) {
                let message =
                    format!("section {} shares data with `{recipient}`, which is no recipient", claim.section);
                self.say(claim.line, "claim.recipient", "claim-without-recipient", message);
            }
            // A section speaks of a recipient in one or several sentences: compare what all of them name together.
            let sections: Vec<&str> =
                claims.iter().filter(|(_, r)| r == recipient).map(|(c, _)| c.section.as_str()).collect();
            let first_of_section = !claims[..i].iter().any(|(c, r)| r == recipient && c.section == claim.section);
            if !first_of_section || claim.about.is_nothing() {
                continue;
            }
            for other in sections.iter().filter(|s| **s != claim.section).collect::<std::collections::BTreeSet<_>>() {
                let told = |section: &str| {
                    let of = claims.iter().filter(move |(c, r)| r == recipient && c.section == section);
                    of.flat_map(|(c, _)| c.about.list().iter()).collect::<Vec<_>>()
                };
                let there = told(other);
                // A section that names no data says nothing about which.
                if there.is_empty() {
                    continue;
                }
                let says_it =
                    |n: &At<Name>| there.iter().any(|o| o.value == n.value || self.within(n, o) || self.within(o, n));
                let only_here: Vec<_> = told(&claim.section).into_iter().filter(|n| !says_it(n)).collect();
                for name in only_here {
                    let message = format!(
                        "section {} gives `{}` to `{recipient}`, section {other} does not",
                        claim.section, name.value
                    );
                    self.say(name.line, "claim.about", "sharing-differs", message);
                }
            }
        }
        let file = self.file;
        for recipient in &file.recipients {
            let (name, line) = (&recipient.head.name, recipient.head.number.line);
            let of: Vec<&Claim> = claims.iter().filter(|(_, r)| **r == name.value).map(|(c, _)| *c).collect();
            if of.is_empty() {
                let message = format!("the text does not name `{}`", **name);
                self.say(line, "recipient", "recipient-unclaimed", message);
                continue;
            }
            if of.iter().all(|c| c.about.is_nothing()) {
                continue;
            }
            let told = |f: &Field| {
                of.iter().any(|c| {
                    among(&c.about, &f.head.name) || f.category.as_ref().is_some_and(|cat| among(&c.about, cat))
                })
            };
            let untold = file.fields.iter().find(|f| names(&recipient.gets, f) && !told(f));
            if let Some(field) = untold {
                let message = format!("the text does not say that `{}` is given `{}`", **name, *field.head.name);
                self.say(line, "recipient.fields", "sharing-unclaimed", message);
            }
        }
    }

    /// Whether the first name is a field of the category of the second.
    fn within(&self, field: &Name, category: &Name) -> bool {
        let of = |f: &&Field| f.head.name.value == *field;
        self.file.fields.iter().find(of).is_some_and(|f| f.category.as_ref().is_some_and(|c| c.value == *category))
    }

    fn channels(&mut self) {
        for claim in self.of(ClaimKind::Channel) {
            for channel in claim.about.list() {
                if !self.file.recipients.iter().any(|r| r.channels.iter().any(|c| c.value == channel.value)) {
                    let message = format!(
                        "section {} communicates by `{}`, and nobody is named who carries it",
                        claim.section, channel.value
                    );
                    self.say(channel.line, "claim.about", "channel-without-processor", message);
                }
            }
        }
    }

    fn ages(&mut self) {
        let ages: Vec<(&Claim, u32)> = self.of(ClaimKind::Age).filter_map(|c| Some((c, age(value(c)?)?))).collect();
        for (i, (claim, years)) in ages.iter().enumerate() {
            for (other, others) in &ages[..i] {
                if years != others {
                    let message = format!(
                        "section {} (line {}) says {others} years, section {} says {years}",
                        other.section, other.line, claim.section
                    );
                    self.say(claim.line, "claim.value", "age-differs", message);
                }
            }
            match &self.file.age {
                None => self.no_rule(claim, "no [age] refuses who is younger"),
                Some(rule) if rule.limit.value < *years && !ages.iter().any(|(_, y)| *y == rule.limit.value) => {
                    let message = format!("the limit is {} years, the text says {years}", rule.limit.value);
                    self.say(rule.limit.line, "age.limit", "age-differs", message);
                }
                Some(_) => {}
            }
        }
    }

    /// Purposes by name, or by kind.
    fn is_use(&self, word: &Name) -> bool {
        let kind = |k: &At<String>| k.value == word.as_str();
        self.file.purposes.iter().any(|p| p.head.name.value == *word || p.kind.as_ref().is_some_and(kind))
    }

    fn no_uses(&self, claim: &'a Claim) -> Vec<&'a At<Name>> {
        claim.about.list().iter().filter(|n| !self.is_use(n)).collect()
    }

    fn uses(&mut self) {
        let named = [ClaimKind::Uses, ClaimKind::Authorities, ClaimKind::OnlyFor, ClaimKind::Consent];
        let file = self.file;
        if self.of(ClaimKind::Uses).next().is_some() {
            for purpose in &file.purposes {
                let told = |c: &&Claim| named.contains(&c.kind.value) && among(&c.about, &purpose.head.name);
                if !file.claims.iter().any(|c| told(&c)) {
                    let message = format!("the text does not name the use `{}`", *purpose.head.name);
                    self.say(purpose.head.number.line, "purpose", "purpose-unclaimed", message);
                }
            }
        }
        let bases: Vec<&Claim> = self.of(ClaimKind::Basis).collect();
        if bases.is_empty() {
            return;
        }
        for purpose in &file.purposes {
            let name = &purpose.head.name;
            let of: Vec<&&Claim> = bases.iter().filter(|c| among(&c.about, name)).collect();
            if of.is_empty() {
                let message = format!("none of the bases that the text claims is for `{}`", **name);
                self.say(purpose.head.number.line, "purpose.basis", "purpose-without-basis", message);
            } else if !of.iter().any(|c| value(c) == Some(purpose.basis.value.name())) {
                let message = format!("line {} claims {}", of[0].line, value(of[0]).unwrap_or_default());
                self.say(purpose.basis.line, "purpose.basis", "basis-differs", message);
            }
        }
    }

    fn no_rule(&mut self, claim: &Claim, what: &str) {
        let message = format!("section {}: {what}", claim.section);
        self.say(claim.line, "claim", "rule-missing", message);
    }

    /// One claim against the rules of the file, and against what the vault does anyway.
    fn against_rules(&mut self, claim: &'a Claim) {
        let file = self.file;
        let period = value(claim).and_then(Period::parse);
        match claim.kind.value {
            ClaimKind::Uses
            | ClaimKind::OnlyFor
            | ClaimKind::Consent
            | ClaimKind::Authorities
            | ClaimKind::Approval => {
                for word in self.no_uses(claim) {
                    let message = format!("`{}` is no purpose of the file", word.value);
                    self.say(word.line, "claim.about", "claim-without-purpose", message);
                }
                self.purposes_keep(claim);
            }
            ClaimKind::Objection => {
                for word in self.no_uses(claim) {
                    let message = format!("people may object to `{}`, which is no purpose", word.value);
                    self.say(word.line, "claim.about", "objection-without-purpose", message);
                }
            }
            ClaimKind::Never => {
                for word in claim.about.list().iter().filter(|n| file.forbidden.iter().all(|f| f.value != n.as_str())) {
                    let message = format!("`{}` is not in `forbidden`", word.value);
                    self.say(word.line, "claim.about", "forbidden-missing", message);
                }
            }
            ClaimKind::Retention => self.retention_claim(claim, period),
            ClaimKind::RetentionByPlan => {
                let by_plan = |c: &Class| {
                    file.plans.iter().any(|p| p.retention.iter().any(|r| r.class.value == c.head.name.value))
                };
                if !file.classes.iter().any(by_plan) {
                    self.no_rule(claim, "no plan overrides a retention");
                }
            }
            ClaimKind::Grace if !file.classes.iter().any(|c| c.grace.map(|g| g.value) == period) => {
                let message = "no class has this grace".into();
                self.say(claim.line, "claim.value", "grace-differs", message);
            }
            ClaimKind::Backups => {
                let kept = file.archives.as_ref().map(|a| [a.horizon, a.data]);
                let good = |p: Period| period.is_some_and(|said| !p.longer_than(said));
                if !kept.is_some_and(|kept| kept[1].is_some() && kept.iter().flatten().all(|p| good(p.value))) {
                    let message = "[archives] does not say that they end by then".into();
                    self.say(claim.line, "claim.value", "backups-differ", message);
                }
            }
            ClaimKind::Answered => self.answered(claim),
            ClaimKind::Rights => {
                for request in claim.about.list() {
                    let kind = RequestKind::parse(request.as_str());
                    let clock = |c: &super::file::Clock| c.requests.iter().any(|r| Some(r.value) == kind);
                    // Who withdraws or objects waits for nobody.
                    let waits = !matches!(kind, Some(RequestKind::Withdraw | RequestKind::Object));
                    if waits && !file.clocks.iter().any(clock) {
                        let message = format!("requests of kind `{}` have no time limit", request.value);
                        self.say(request.line, "claim.about", "clock-missing", message);
                    }
                    if kind == Some(RequestKind::Nominate) && file.nominee.is_none() {
                        self.no_rule(claim, "no [nominee] says what one may do");
                    }
                }
            }
            ClaimKind::Notice => {
                if let Some(said) = period
                    && file.notice.minimum.is_none_or(|least| said.longer_than(least.value))
                {
                    let message = "`minimum_notice` in [policy] is shorter or missing".into();
                    self.say(claim.line, "claim.value", "notice-differs", message);
                }
            }
            ClaimKind::Region if file.region.as_ref().map(|r| r.as_str()) != value(claim) => {
                self.say(claim.line, "claim.value", "place-differs", "`region` says something else or nothing".into());
            }
            ClaimKind::Host if file.storage.as_ref().map(|h| h.value.as_str()) != value(claim) => {
                self.say(claim.line, "claim.value", "place-differs", "[storage] says something else or nothing".into());
            }
            ClaimKind::Controller if Some(file.controller.name.as_str()) != value(claim) => {
                self.no_rule(claim, "[controller] has another name");
            }
            ClaimKind::Complaint if file.controller.authority.is_none() => {
                self.no_rule(claim, "[controller] names no authority")
            }
            ClaimKind::Officer if file.controller.officer.is_none() => {
                self.no_rule(claim, "[controller] names no officer")
            }
            ClaimKind::Aggregated if file.analytics.is_none() => {
                self.no_rule(claim, "no [analytics] sets a smallest group")
            }
            ClaimKind::Transfer => {
                let basis = value(claim).and_then(Transfer::parse);
                if !file.transfer.as_ref().is_some_and(|t| t.groups.iter().any(|b| Some(b.value) == basis)) {
                    self.no_rule(claim, "[transfer] does not list this basis for groups");
                }
            }
            ClaimKind::MaxLength => {
                let said: Option<u32> = value(claim).and_then(|v| v.parse().ok());
                for name in claim.about.list() {
                    let field = file.fields.iter().find(|f| f.head.name.value == name.value);
                    if field.is_some_and(|f| super::lint::max_length(f) > said) {
                        self.no_rule(claim, &format!("`{}` may be longer", name.value));
                    }
                }
            }
            ClaimKind::WithoutIdentity => {
                let tokens = |r: &super::file::Recipient| r.view.value == super::file::RecipientView::Tokens;
                if !file.recipients.iter().any(tokens) {
                    self.no_rule(claim, "no recipient has the view `tokens`");
                }
            }
            ClaimKind::Passwords => {
                if let Some(said) = value(claim).filter(|v| !matches!(*v, "argon2id" | "hashed")) {
                    let message = format!(
                        "the text says {said}; passwords are stored with Argon2id, imported ones from the next login on"
                    );
                    self.say(claim.line, "claim.value", "weaker-than-kept", message);
                }
            }
            ClaimKind::AtRest if value(claim) == Some("aes-128") => {
                self.say(claim.line, "claim.value", "weaker-than-kept", "values are sealed with AES-256-GCM".into());
            }
            _ => {}
        }
    }

    /// Consent and approval that the text promises for a purpose.
    fn purposes_keep(&mut self, claim: &'a Claim) {
        let file = self.file;
        for purpose in file.purposes.iter().filter(|p| among(&claim.about, &p.head.name)) {
            let name = &*purpose.head.name;
            match claim.kind.value {
                ClaimKind::Consent if purpose.basis.value != Basis::Consent => {
                    self.no_rule(claim, &format!("`{name}` is not based on consent"));
                }
                ClaimKind::Authorities if !purpose.approval => {
                    self.no_rule(claim, &format!("`{name}` needs no second person"));
                }
                ClaimKind::Approval if !purpose.reference && !purpose.approval => {
                    self.no_rule(claim, &format!("`{name}` needs neither approval nor reference"));
                }
                _ => {}
            }
        }
    }

    fn retention_claim(&mut self, claim: &'a Claim, period: Option<Period>) {
        let Some(said) = period else { return };
        let file = self.file;
        for category in claim.about.list() {
            let of = |f: &&Field| f.category.as_ref().is_some_and(|c| c.value == category.value);
            let longer = |c: &&Class| c.retention.and_then(|r| r.value).is_none_or(|kept| kept.longer_than(said));
            let class = file.fields.iter().filter(of).filter_map(|f| self.class(&f.class)).find(longer);
            if let Some(class) = class {
                let message = format!("class `{}` keeps `{}` longer than {said}", *class.head.name, category.value);
                self.say(claim.line, "claim.value", "retention-differs", message);
            }
        }
    }

    fn answered(&mut self, claim: &'a Claim) {
        let Some(said) = value(claim).and_then(Within::parse) else { return };
        for request in claim.about.list() {
            let kind = RequestKind::parse(request.as_str());
            let of: Vec<Within> = self
                .file
                .clocks
                .iter()
                .filter(|c| c.requests.iter().any(|r| Some(r.value) == kind))
                .map(|c| c.within.value)
                .collect();
            if of.is_empty() || of.iter().any(|w| w.longest_hours() > said.longest_hours()) {
                let message = format!("no [[clock]] ends requests of kind `{}` within {said}", request.value);
                self.say(claim.line, "claim.value", "clock-differs", message);
            }
        }
    }
}

fn value(claim: &Claim) -> Option<&str> {
    claim.value.as_ref().map(|v| v.value.as_str())
}

fn age(text: &str) -> Option<u32> {
    if text == "minors" { Some(18) } else { text.parse().ok().filter(|n| (1..=120).contains(n)) }
}

fn fits(form: Form, text: &str) -> bool {
    match form {
        Form::Nothing => false,
        Form::Period(words) => words.contains(&text) || Period::parse(text).is_some(),
        Form::Within => Within::parse(text).is_some(),
        Form::Choice(words) => words.contains(&text),
        Form::Basis => Basis::parse(text).is_some(),
        Form::Transfer => Transfer::parse(text).is_some(),
        Form::Age => age(text).is_some(),
        Form::Number => text.parse::<u32>().is_ok(),
        Form::Text => true,
    }
}
