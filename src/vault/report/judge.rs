//! What is found about a claim: the rules in force are asked, what must be refused is tried, what is stored was counted.

use super::look::Seen;
use crate::access::{FieldSet, Grant, PurposeSet, Verb, VerbSet, View};
use crate::clock::Timestamp;
use crate::ids::*;
use crate::policy::claim::{ClaimKind, Kept};
use crate::policy::compiled::{Ask, Decision, Policy, SubjectFacts};
use crate::policy::facts::OfAge;
use crate::policy::file::{Claim, RecipientKind, RecipientView, RequestKind};
use crate::policy::value::{Value, check};
use crate::report::Status;

/// Status and evidence.
pub(super) struct Found {
    pub status: Status,
    pub evidence: Vec<String>,
    /// Of a broken one: since when, where that is known.
    pub since: Option<Timestamp>,
}

impl Found {
    fn of(status: Status, evidence: impl Into<String>) -> Found {
        Found { status, evidence: vec![evidence.into()], since: None }
    }

    fn held_if(held: bool, evidence: impl Into<String>) -> Found {
        Found::of(if held { Status::Held } else { Status::Broken }, evidence)
    }

    fn unchecked(why: impl Into<String>) -> Found {
        Found::of(Status::Unchecked, why)
    }

    fn and(mut self, evidence: impl Into<String>) -> Found {
        self.evidence.push(evidence.into());
        self
    }

    /// All of them: the worst status, all evidence, the earliest break.
    fn all(parts: impl IntoIterator<Item = Found>, nothing: &str) -> Found {
        let worst = |status: Status| match status {
            Status::Held => 0,
            Status::CanClaim => 1,
            Status::Outside => 2,
            Status::Unchecked => 3,
            Status::Waits => 4,
            Status::Broken => 5,
        };
        let mut all: Option<Found> = None;
        for part in parts {
            match &mut all {
                None => all = Some(part),
                Some(all) => {
                    if worst(part.status) > worst(all.status) {
                        all.status = part.status;
                    }
                    all.evidence.extend(part.evidence);
                    all.since = [all.since, part.since].into_iter().flatten().min();
                }
            }
        }
        all.unwrap_or_else(|| Found::unchecked(nothing))
    }
}

/// Status and evidence but for what the linter found.
pub(super) fn judge(policy: &Policy, claim: &Claim, seen: &Seen) -> Found {
    let about = claim.about.words();
    let value = claim.value.as_ref().map_or("", |value| value.value.as_str());
    let of_words = |one: &dyn Fn(&str) -> Found| Found::all(about.iter().map(|word| one(word)), "it is about nothing");
    match (claim.kind.value, claim.kind.value.kept()) {
        (ClaimKind::DeletionLeaves, _) => {
            Found::of(Status::Outside, "what others hold; receipts name who was given data")
        }
        (_, Kept::Outside) => Found::of(Status::Outside, "the vault does not see it"),
        (_, Kept::Application) => Found::of(Status::Outside, "kept by the application"),
        (ClaimKind::InTransit, _) => in_transit(seen, value),
        (ClaimKind::Passwords, _) => passwords(policy, seen, value),
        (ClaimKind::Backups, _) => backups(seen, value),
        (ClaimKind::Aggregated, _) => aggregated(policy),
        (ClaimKind::AtRest, _) if seen.records == 0 => Found::unchecked("nothing is stored"),
        (ClaimKind::AtRest, _) => Found::held_if(
            seen.unsealed == 0,
            format!(
                "{} of {} stored records of {} are sealed (AES-256-GCM)",
                seen.records - seen.unsealed,
                seen.records,
                seen.sample()
            ),
        ),
        (ClaimKind::KeysHashed, _) => keys_hashed(seen),
        (ClaimKind::NoCards, _) => {
            let open = &seen.open_to_cards;
            let closed = seen.texts - open.len();
            let found = Found::held_if(
                open.is_empty(),
                format!("a test card number was tried on {} text fields, and refused by {closed}", seen.texts),
            );
            if open.is_empty() { found } else { found.and(format!("taken by {}", open.join(", "))) }
        }
        (ClaimKind::Retention, _) => retention(policy, seen, &about, value),
        (ClaimKind::Answered, _) => answered(policy, seen, &about),
        (ClaimKind::Rights, _) => of_words(&|word| right(policy, seen, word)),
        (ClaimKind::Region, _) => region(policy, seen),
        (ClaimKind::Host, _) => Found::held_if(
            policy.storage_host().is_some_and(|host| host.to_lowercase().contains("sqlite")),
            "this node keeps its rows in SQLite on its own disk",
        ),
        (ClaimKind::WithoutIdentity, _) => Found::of(
            Status::Waits,
            "waits for tokens; until then a read for a recipient that may have tokens only is refused",
        ),
        (ClaimKind::Shares, _) => match &claim.recipient {
            Some(name) => shares(policy, seen, &name.value),
            None => Found::unchecked("it names nobody"),
        },
        (ClaimKind::Agreements, _) => Found::all(
            policy.recipients().filter(|r| r.kind == RecipientKind::Processor).map(|r| shares(policy, seen, &r.name)),
            "there are no processors",
        ),
        (ClaimKind::Uses | ClaimKind::OnlyFor | ClaimKind::Basis, _) => of_words(&|word| purpose(policy, seen, word)),
        (ClaimKind::Transfer, _) => transfer(policy),
        (ClaimKind::Consent, _) => of_words(&|word| consent(policy, seen, word)),
        (ClaimKind::Approval | ClaimKind::Authorities, _) => of_words(&|word| second_person(policy, seen, word)),
        (ClaimKind::Objection, _) => of_words(&|word| objection(policy, seen, word)),
        (ClaimKind::MaxLength, _) => of_words(&|word| max_length(policy, word, value)),
        (ClaimKind::Never, _) => of_words(&|word| never(policy, word)),
        (ClaimKind::Collects | ClaimKind::Handles | ClaimKind::DeletionCovers, _) => {
            of_words(&|word| data(policy, seen, word))
        }
        (ClaimKind::Age, _) => age(policy, seen),
        (ClaimKind::Restricted, _) => restricted(policy, seen),
        (ClaimKind::Controller | ClaimKind::SelfHosted, _) => {
            let who = policy.controller();
            Found::of(Status::Held, format!("receipts and exports name {} ({})", who.name, who.contact))
        }
        (ClaimKind::Officer, _) => named("officer", policy.controller().officer.as_deref()),
        (ClaimKind::Complaint, _) => named("authority", policy.controller().authority.as_deref()),
        (ClaimKind::Notice, _) => match policy.minimum_notice() {
            Some(least) => Found::of(
                Status::Held,
                format!("a version that takes effect sooner than {least} after its notice is refused"),
            ),
            None => Found::of(Status::Outside, "the file sets no minimum; who was told is known to the application"),
        },
        _ => Found::of(Status::Held, compared(policy)),
    }
}

fn compared(policy: &Policy) -> String {
    format!("compared with the rules in force (version {})", policy.version())
}

fn named(what: &str, who: Option<&str>) -> Found {
    match who {
        Some(who) => Found::of(Status::Held, format!("reports and exports name {who}")),
        None => Found::of(Status::Broken, format!("the file names no {what}")),
    }
}

/// What the rules say of a call by somebody who was granted everything.
fn decide(
    policy: &Policy,
    seen: &Seen,
    purpose: PurposeNo,
    field: FieldNo,
    change: impl FnOnce(&mut Ask<'_>),
) -> Decision {
    let grants = [Grant {
        fields: FieldSet::ALL,
        purposes: PurposeSet::ALL,
        verbs: VerbSet::from_iter(Verb::ALL.iter().copied()),
        max_view: View::Plain,
        groups: None,
    }];
    let mut ask = Ask {
        grants: &grants,
        verb: Verb::Read,
        purpose,
        group: None,
        view: None,
        approved: true,
        referenced: true,
        reasoned: true,
        recipient: None,
        facts: SubjectFacts::NONE,
        now: seen.now,
    };
    change(&mut ask);
    policy.decide(&ask, field, None)
}

/// In words: what was decided.
fn said(decision: &Decision) -> String {
    match decision {
        Decision::Allow { .. } => "allowed".into(),
        Decision::Deny(denial) if denial.line > 0 => format!("refused [{}, line {}]", denial.rule.name(), denial.line),
        Decision::Deny(denial) => format!("refused [{}]", denial.rule.name()),
    }
}

fn is_refused(decision: &Decision) -> bool {
    matches!(decision, Decision::Deny(_))
}

fn names(policy: &Policy, fields: &FieldSet) -> String {
    if policy.fields().all(|f| fields.has(f.no.0)) {
        return "every field".into();
    }
    let names: Vec<&str> = policy.fields().filter(|f| fields.has(f.no.0)).map(|f| f.name.as_str()).collect();
    if names.is_empty() { "nothing".into() } else { names.join(", ") }
}

/// Purposes that a word means: the one of that name, or those of that kind.
fn meant<'a>(policy: &'a Policy, word: &str) -> Vec<&'a crate::policy::compiled::PurposeRule> {
    let named: Vec<_> = policy.purposes().filter(|p| p.name.as_str() == word).collect();
    if !named.is_empty() {
        return named;
    }
    policy.purposes().filter(|p| p.kind.as_deref() == Some(word)).collect()
}

fn purpose(policy: &Policy, seen: &Seen, word: &str) -> Found {
    let of_purpose = |rule: &crate::policy::compiled::PurposeRule| {
        let allowed = format!("`{}` ({}): {}", rule.name, rule.basis.name(), names(policy, &rule.fields));
        let other = policy.fields().find(|f| !rule.fields.has(f.no.0));
        match other {
            None => Found::of(Status::Held, allowed),
            Some(field) => {
                let tried = decide(policy, seen, rule.no, field.no, |_| ());
                let what = format!("{allowed}; a read of {} for it is {}", field.name, said(&tried));
                Found::held_if(is_refused(&tried), what)
            }
        }
    };
    let rules = meant(policy, word);
    Found::all(rules.into_iter().map(of_purpose), &format!("`{word}` is no purpose of the file"))
}

fn consent(policy: &Policy, seen: &Seen, word: &str) -> Found {
    let of_purpose = |rule: &crate::policy::compiled::PurposeRule| match rule.consent.iter().next() {
        None => Found::of(Status::Broken, format!("`{}` is not based on consent", rule.name)),
        Some(field) => {
            let tried = decide(policy, seen, rule.no, FieldNo(field), |_| ());
            let what = format!("a read for `{}` of who gave no consent is {}", rule.name, said(&tried));
            Found::held_if(is_refused(&tried), what).and(format!(
                "decisions are on record for {} of {}",
                seen.decided,
                seen.sample()
            ))
        }
    };
    Found::all(meant(policy, word).into_iter().map(of_purpose), &format!("`{word}` is no purpose of the file"))
}

fn second_person(policy: &Policy, seen: &Seen, word: &str) -> Found {
    let of_purpose = |rule: &crate::policy::compiled::PurposeRule| {
        let Some(field) = rule.fields.iter().next().map(FieldNo) else {
            return Found::unchecked(format!("`{}` allows no field", rule.name));
        };
        let recipient = policy.recipients().find(|r| r.purposes.has(rule.no.0) && r.fields.has(field.0)).map(|r| r.no);
        let alone = decide(policy, seen, rule.no, field, |ask| {
            (ask.recipient, ask.approved, ask.referenced) = (recipient, false, false);
        });
        let full = decide(policy, seen, rule.no, field, |ask| ask.recipient = recipient);
        let what = format!(
            "a read for `{}` without approval and reference is {}, with {} it is {}",
            rule.name,
            said(&alone),
            if rule.needs_approval { "both" } else { "a reference" },
            said(&full)
        );
        Found::held_if(is_refused(&alone), what)
    };
    Found::all(meant(policy, word).into_iter().map(of_purpose), &format!("`{word}` is no purpose of the file"))
}

fn objection(policy: &Policy, seen: &Seen, word: &str) -> Found {
    let of_purpose = |rule: &crate::policy::compiled::PurposeRule| {
        let Some(field) = rule.fields.iter().next() else {
            return Found::unchecked(format!("`{}` allows no field", rule.name));
        };
        let tried = decide(policy, seen, rule.no, FieldNo(field), |ask| {
            ask.facts.objected.insert(rule.no.0);
        });
        let what = format!("a read for `{}` of who objected is {}", rule.name, said(&tried));
        Found::held_if(is_refused(&tried), what)
    };
    Found::all(meant(policy, word).into_iter().map(of_purpose), &format!("`{word}` is no purpose of the file"))
}

fn shares(policy: &Policy, seen: &Seen, name: &Name) -> Found {
    let Some(rule) = policy.recipient_by_name(name) else {
        return Found::of(Status::Broken, format!("the file has no recipient `{name}`"));
    };
    let given: Vec<String> = policy
        .purposes()
        .filter(|p| rule.purposes.has(p.no.0))
        .map(|p| format!("{} for `{}`", names(policy, &rule.fields.and(&p.fields)), p.name))
        .collect();
    let mut what = format!("`{name}` is given {}", if given.is_empty() { "nothing".into() } else { given.join("; ") });
    if let Some(dpa) = &rule.dpa {
        what += &format!("; agreement {dpa}");
        what += &rule.dpa_ends.map_or(String::new(), |ends| format!(" until {}", ends.rfc3339()));
    }
    what += &rule.region.as_ref().map_or(String::new(), |region| format!("; in {region}"));
    what += &rule.transfer.map_or(String::new(), |basis| format!(" by {}", basis.name()));
    if let Some(ends) = rule.dpa_ends.filter(|ends| *ends <= seen.now) {
        let found = Found::of(Status::Broken, what).and("the agreement is over, and reads for it are refused");
        return Found { since: Some(ends), ..found };
    }
    if rule.view == RecipientView::Tokens {
        return Found::of(Status::Waits, format!("waits for tokens, of which alone {what}"));
    }
    let inside = policy.purposes().find(|p| rule.purposes.has(p.no.0));
    let field = policy.fields().find(|f| !rule.fields.has(f.no.0));
    let purpose = inside.or_else(|| policy.purposes().find(|p| !p.fields.is_empty()));
    match (purpose, field) {
        (Some(purpose), Some(field)) => {
            // A field that the purpose itself allows says more, where there is one.
            let allowed = policy.fields().find(|f| purpose.fields.has(f.no.0) && !rule.fields.has(f.no.0));
            let field = allowed.unwrap_or(field);
            let tried = decide(policy, seen, purpose.no, field.no, |ask| ask.recipient = Some(rule.no));
            let tried_words = format!("a read of {} for it is {}", field.name, said(&tried));
            Found::held_if(is_refused(&tried), what).and(tried_words)
        }
        _ => Found::of(Status::Held, what),
    }
}

/// Recipients outside have a basis or the file is refused; of groups of customers nothing is looked at yet.
fn transfer(policy: &Policy) -> Found {
    let basis = |r: &crate::policy::compiled::RecipientRule| {
        let region = r.region.as_ref()?;
        Some(format!("{} in {region}{}", r.name, r.transfer.map_or(String::new(), |b| format!(" by {}", b.name()))))
    };
    let places: Vec<String> = policy.recipients().filter_map(basis).collect();
    if let Some(stranded) = policy.recipients().find(|r| r.stranded) {
        return Found::of(Status::Broken, format!("`{}` is outside and has no basis", stranded.name));
    }
    Found::of(Status::Waits, "waits for regions of groups: where customers are is not looked at by this version")
        .and(format!("recipients outside without a basis are refused: {}", places.join(", ")))
}

fn max_length(policy: &Policy, word: &str, value: &str) -> Found {
    let most: usize = value.parse().unwrap_or(0);
    let field = Name::parse("field", word).ok().and_then(|name| policy.field_by_name(&name));
    let Some(field) = field else { return Found::of(Status::Broken, format!("the file has no field `{word}`")) };
    let takes = |length: usize| check(field, &Value::text("a".repeat(length))).is_ok();
    let (at, over) = (takes(most), takes(most + 1));
    let word_of = |taken| if taken { "taken" } else { "refused" };
    let what = format!("{word}: {most} characters are {}, {} are {}", word_of(at), most + 1, word_of(over));
    Found::held_if(!over, what)
}

fn never(policy: &Policy, kind: &str) -> Found {
    let has = policy.purposes().find(|p| p.kind.as_deref() == Some(kind) || p.name.as_str() == kind);
    let forbidden = policy.forbidden().any(|word| word == kind);
    match has {
        Some(rule) => Found::of(Status::Broken, format!("`{}` is such a purpose (line {})", rule.name, rule.line)),
        None => Found::held_if(
            forbidden,
            format!(
                "none of {} purposes is of the kind `{kind}`, and {}",
                policy.purposes().count(),
                if forbidden { "a file with one is refused" } else { "the file does not forbid one" }
            ),
        ),
    }
}

fn data(policy: &Policy, seen: &Seen, word: &str) -> Found {
    let fields = policy.fields_meant(word);
    if fields.is_empty() {
        return Found::unchecked(format!("`{word}` is no category of the file"));
    }
    let classes = policy.classes().filter(|c| !c.fields.and(&fields).is_empty());
    let stored: Vec<String> = classes
        .map(|c| format!("class {} of {} people", c.name, seen.by_class.get(&c.no).copied().unwrap_or(0)))
        .collect();
    let what = format!("{word}: {}; nothing else is taken [unknown-field]", names(policy, &fields));
    Found::of(Status::Held, what).and(format!("{} has single values, of {}", stored.join(", "), seen.sample()))
}

fn retention(policy: &Policy, seen: &Seen, about: &[String], value: &str) -> Found {
    if let Some(first) = seen.expired.iter().min() {
        let what = format!("{} expiry keys that are over were not destroyed", seen.expired.len());
        let since = Some(Timestamp(0).plus_days(*first + 1));
        return Found { since, ..Found::of(Status::Broken, what) };
    }
    let all = about.iter().any(|word| word == "*");
    let fields = about.iter().fold(FieldSet::EMPTY, |set, word| set.or(&policy.fields_meant(word)));
    let classes: Vec<String> = policy
        .classes()
        .filter(|c| all || !c.fields.and(&fields).is_empty())
        .map(|c| format!("{} {}", c.name, c.retention.map_or("until erased".into(), |r| r.to_string())))
        .collect();
    let what = format!("kept: {}; the text says {value}", classes.join(", "));
    Found::of(Status::Held, what).and(format!("{} expiry keys live, none of them over", seen.expiry_keys))
}

fn answered(policy: &Policy, seen: &Seen, about: &[String]) -> Found {
    let of = |kind: RequestKind| about.is_empty() || about.iter().any(|word| word == kind.name());
    let overdue: Vec<_> = seen.overdue().filter(|r| of(r.kind)).collect();
    let late: Vec<_> = seen.late().filter(|r| of(r.kind)).collect();
    let asked = seen.requests.iter().filter(|r| of(r.kind)).count();
    let limits: Vec<String> = about
        .iter()
        .filter_map(|word| policy.clock(RequestKind::parse(word)?, None).map(|c| format!("{word} within {}", c.within)))
        .collect();
    let what = format!(
        "{}: {asked} were asked for, {} are overdue, {} were answered late",
        if limits.is_empty() { "no time limit".into() } else { limits.join(", ") },
        overdue.len(),
        late.len()
    );
    let since = overdue.iter().chain(&late).filter_map(|request| request.due).min();
    Found { since, ..Found::held_if(overdue.is_empty() && late.is_empty(), what) }
}

fn right(policy: &Policy, seen: &Seen, word: &str) -> Found {
    let Some(kind) = RequestKind::parse(word) else {
        return Found::unchecked(format!("`{word}` is no kind of request"));
    };
    let how = match kind {
        RequestKind::Access | RequestKind::Portability => "ExportSubject gives everything as JSON and CSV",
        RequestKind::Correct => "PutFields replaces, with `erase_former` for good",
        RequestKind::Erase => "EraseSubject answers a signed receipt",
        RequestKind::Restrict => "RestrictClass stops all use but legal duties",
        RequestKind::Object => "RecordObjection stops the purpose",
        RequestKind::Withdraw => "WithdrawConsent stops the purpose",
        RequestKind::Nominate => "SetNominee names who may ask in their place",
        RequestKind::Grievance | RequestKind::Dpa | RequestKind::Incident => "CreateRequest starts its time limit",
    };
    if kind == RequestKind::Nominate && policy.nominee().is_none() {
        return Found::of(Status::Broken, "the file has no [nominee]");
    }
    let limit = policy.clock(kind, None).map_or("no time limit".into(), |clock| format!("within {}", clock.within));
    let overdue: Vec<_> = seen.overdue().filter(|request| request.kind == kind).collect();
    let what = format!("{word}: {how}; {limit}; {} overdue", overdue.len());
    let since = overdue.iter().filter_map(|request| request.due).min();
    Found { since, ..Found::held_if(overdue.is_empty(), what) }
}

fn age(policy: &Policy, seen: &Seen) -> Found {
    let Some(rule) = policy.age() else { return Found::of(Status::Broken, "the file has no [age]") };
    let no = policy.age_of(None, Some(false), seen.now) == OfAge::No;
    Found::held_if(no, format!("who is younger than {} or says so is not written [too-young]", rule.limit))
        .and("who tells no age is not known to the vault")
}

fn restricted(policy: &Policy, seen: &Seen) -> Found {
    let roles: Vec<String> = policy
        .roles()
        .iter()
        .map(|role| {
            let reads = role.grants.iter().filter(|g| g.verbs.has(Verb::Read) || g.verbs.has(Verb::Export));
            let plain = reads.clone().filter(|g| g.max_view == View::Plain);
            let fields = plain.fold(FieldSet::EMPTY, |set, grant| set.or(&grant.fields));
            let masked = if fields.is_empty() && reads.count() > 0 { " (masked)" } else { "" };
            format!("{} reads {}{masked}", role.name, names(policy, &fields))
        })
        .collect();
    let what = format!("{} access keys; {}", seen.keys, roles.join("; "));
    Found::held_if(!policy.roles().is_empty(), what)
}

fn region(policy: &Policy, seen: &Seen) -> Found {
    let Some(said) = policy.region() else { return Found::of(Status::Broken, "the file names no region") };
    let node = &seen.node_region;
    match (node.as_str(), &seen.pinned) {
        ("", _) => Found::unchecked("this node's configuration does not say where it is (`region`)"),
        (node, _) if node != said.as_str() => Found::of(Status::Broken, format!("this node is in {node}")),
        (node, Some(pinned)) if pinned != said => {
            Found::of(Status::Broken, format!("this node is in {node}, the tenant is pinned to {pinned}"))
        }
        (node, Some(pinned)) => Found::of(
            Status::Held,
            format!(
                "this node says to be in {node}, and the tenant is pinned to {pinned}; where the machine stands is the operator's word"
            ),
        ),
        (node, None) => Found::of(
            Status::Held,
            format!(
                "this node says to be in {node}, as the file does; where the machine stands is the operator's word"
            ),
        ),
    }
}

fn in_transit(seen: &Seen, value: &str) -> Found {
    match seen.tls {
        None => Found::of(Status::Broken, "the connection that asked for this report is in plain text"),
        Some((version, oldest)) => {
            let enough = value != "tls1.3" || oldest == "1.3";
            let what = format!(
                "the connection that asked for this report is TLS {version}; its listener takes nothing older than TLS {oldest}"
            );
            Found::held_if(enough, what)
        }
    }
}

fn passwords(policy: &Policy, seen: &Seen, value: &str) -> Found {
    if policy.credentials().is_none() {
        return Found::unchecked("the vault keeps no passwords of this tenant: the file has no [credentials]");
    }
    let of: Vec<(&str, u64)> =
        seen.credentials.iter().filter(|((kind, _), _)| *kind == "password").map(|((_, a), n)| (*a, *n)).collect();
    let counts: Vec<String> = of.iter().map(|(algorithm, count)| format!("{count} {algorithm}")).collect();
    if of.is_empty() {
        return Found::unchecked(format!("no passwords were found among {}", seen.sample()));
    }
    let what = format!("passwords of {}: {}, sealed besides", seen.sample(), counts.join(", "));
    let known = of.iter().all(|(algorithm, _)| *algorithm != "unknown");
    let as_said = value == "hashed" || of.iter().all(|(algorithm, _)| *algorithm == value);
    let stronger = of.iter().all(|(algorithm, _)| *algorithm == value || *algorithm == "argon2id");
    match (known && as_said, known && stronger) {
        (true, _) => Found::of(Status::Held, what),
        (false, true) => Found::of(Status::CanClaim, what).and("Argon2id is the stronger one: the text could say so"),
        (false, false) => Found::of(Status::Broken, what),
    }
}

fn keys_hashed(seen: &Seen) -> Found {
    let api = seen.credentials.iter().filter(|((kind, _), _)| *kind == "api-key");
    let (all, good) = api.fold((0, 0), |(all, good), ((_, algorithm), count)| {
        (all + count, good + if *algorithm == "argon2id" { *count } else { 0 })
    });
    if seen.keys == 0 && all == 0 {
        return Found::unchecked("there are no keys");
    }
    let hashed = seen.keys - seen.unhashed;
    let what = format!("{hashed} of {} access keys are stored as Argon2id hashes", seen.keys);
    let found = Found::held_if(seen.unhashed == 0 && all == good, what);
    if all == 0 { found } else { found.and(format!("{good} of {all} API keys of {}, sealed besides", seen.sample())) }
}

fn backups(seen: &Seen, value: &str) -> Found {
    let days: Option<i64> = value.strip_suffix('d').and_then(|days| days.parse().ok());
    let (Some(archives), Some(days)) = (&seen.archives, days) else {
        return Found::unchecked("this server makes no archives; what others copy is not known to it");
    };
    let oldest = archives.made.first();
    let until = |made: &Timestamp| made.plus_days(days);
    // The job looks each minute; a day more is a failure.
    let over = oldest.is_some_and(|made| until(made).plus_days(1) <= seen.now);
    let what = format!(
        "{} archives in the catalogue, {}; they are deleted after {} days, the text says {days}",
        archives.made.len(),
        oldest.map_or("so none is older".into(), |made| format!("the oldest of {}", made.rfc3339())),
        archives.horizon_days
    );
    if archives.unreadable > 0 {
        return Found::of(Status::Broken, what).and(format!("{} cannot be read", archives.unreadable));
    }
    let held = archives.horizon_days <= days && !over;
    let since = oldest.filter(|_| over).map(until);
    Found { since, ..Found::held_if(held, what) }.and("copies made by others are not known to it")
}

fn aggregated(policy: &Policy) -> Found {
    match policy.analytics() {
        None => Found::of(Status::Broken, "the file has no [analytics]"),
        Some(rule) => Found::of(
            Status::Held,
            format!(
                "counts by {} leave the vault for fixed groups of at least {} people; smaller ones are not told",
                names(policy, &rule.fields),
                rule.threshold
            ),
        ),
    }
}
