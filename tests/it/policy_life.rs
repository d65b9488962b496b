//! The life of a policy over a socket: planned on live data, compared, approved, applied; and what it says about one person.

use std::collections::BTreeMap;

use pb::access_service_client::AccessServiceClient;
use pb::audit_service_client::AuditServiceClient;
use pb::rights_service_client::RightsServiceClient;
use pb::subject_service_client::SubjectServiceClient;
use pii_vault::access::Verb;
use pii_vault::grpc::pb;
use pii_vault::ids::{ClassNo, GroupNo, Name};
use pii_vault::policy::value::Value;
use pii_vault::vault::Context;
use pii_vault::vault::group::GroupChange;
use pii_vault::vault::hold::{HoldTarget, NewHold};
use pii_vault::vault::item::NewItem;
use pii_vault::vault::value::NewValue;
use sha2::{Digest, Sha256};
use tonic::{Code, Status};

use crate::company::{Tenant, refused};
use crate::erase::key;
use crate::harness::*;
use crate::net::*;

const SOUND: &str = include_str!("../policies/sound.toml");

impl Tenant {
    async fn plan_with(&self, key: &str, text: &str) -> Result<(Vec<pb::PlanPolicyResponse>, pb::PolicyPlan), Status> {
        let request = pb::PlanPolicyRequest { policy: text.as_bytes().to_vec().into(), ..Default::default() };
        let mut stream = self.policies().plan_policy(with(key, request)).await?.into_inner();
        let mut progress = Vec::new();
        while let Some(message) = stream.message().await? {
            match message.plan {
                Some(plan) => return Ok((progress, plan)),
                None => progress.push(message),
            }
        }
        panic!("no plan at the end of the stream");
    }

    async fn plan(&self, text: &str) -> pb::PolicyPlan {
        self.plan_with(&self.key, text).await.expect("plan").1
    }

    async fn apply_with(&self, key: &str, text: &str, approval: &str) -> Result<pb::PolicyVersion, Status> {
        let (policy, approval) = (text.as_bytes().to_vec().into(), approval.into());
        let request = pb::ApplyPolicyRequest { policy, approval, ..Default::default() };
        Ok(self.policies().apply_policy(with(key, request)).await?.into_inner().version.unwrap())
    }

    async fn ask_for(&self, key: &str, reference: &str) -> String {
        let request = pb::RequestApprovalRequest {
            grant: Some(pb::Grant { verbs: vec![pb::Verb::Policy as i32], ..Default::default() }),
            reference: reference.into(),
            ..Default::default()
        };
        let mut access = AccessServiceClient::new(self.running.channel.clone());
        access.request_approval(with(key, request)).await.expect("ask").into_inner().approval.unwrap().approval
    }

    async fn approve(&self, key: &str, approval: &str) -> Result<(), Status> {
        let request = pb::ApproveRequest { approval: approval.into(), ..Default::default() };
        let mut access = AccessServiceClient::new(self.running.channel.clone());
        access.approve(with(key, request)).await.map(|_| ())
    }

    async fn versions(&self) -> Vec<pb::PolicyVersion> {
        let request = pb::ListPolicyVersionsRequest::default();
        self.policies().list_policy_versions(with(&self.key, request)).await.expect("versions").into_inner().versions
    }

    /// Times at which stored messages and nicks end, by subject; what is over is left out.
    async fn ends(&self) -> BTreeMap<(String, &'static str), Vec<i64>> {
        let vault = &self.running.test.node.vault;
        vault.run_due_work(self.no).await.expect("due work");
        let call = self.running.test.call(self.no);
        let mut ends = BTreeMap::new();
        for subject in ["one", "two", "held", "chose"] {
            let why = purpose(&call, "service");
            let no = field(&call, "message");
            let page = vault.list_items(&call, &why, &key(subject), no, None, None, None, None, 100).await.unwrap();
            let all: Vec<i64> = page.items.iter().map(|item| item.expire.map_or(i64::MAX, |t| t.0)).collect();
            ends.insert((subject.to_owned(), "message"), all);
            let select = pii_vault::vault::read::Select {
                fields: vec![field(&call, "nick")],
                partial: true,
                ..Default::default()
            };
            let got = vault.get_fields(&call, &why, &key(subject), &select).await.unwrap();
            let nick = got.values.iter().filter(|shown| shown.what.is_ok());
            ends.insert(
                (subject.to_owned(), "nick"),
                nick.map(|shown| shown.expire.map_or(i64::MAX, |t| t.0)).collect(),
            );
        }
        ends
    }

    /// Somebody with a message and a nick of that many days ago each.
    async fn person(&self, subject: &str, ages: &[i64]) {
        self.person_of(subject, ages, None).await;
    }

    async fn person_of(&self, subject: &str, ages: &[i64], group: Option<GroupNo>) {
        let (vault, call) = (&self.running.test.node.vault, self.running.test.call(self.no));
        let why = purpose(&call, "service");
        let mut one = put(&call, subject, &[("email", &format!("{subject}@example.com"))]);
        one.group = group;
        let origin = |days: i64| Some(call.now.plus_days(-days));
        one.values.push(NewValue {
            field: field(&call, "nick"),
            value: Value::text("n".into()),
            origin: origin(ages[0]),
        });
        vault.put_fields(&call, &why, one, None, false).await.expect("put");
        for days in ages {
            let item = NewItem { value: Value::text("m".into()), origin: origin(*days) };
            let done =
                vault.append_items(&call, &why, &id(subject), field(&call, "message"), &[item], None, false).await;
            done.expect("append");
        }
    }
}

fn reference(text: &str) -> String {
    data_encoding::HEXLOWER.encode(&Sha256::digest(text.as_bytes()))
}

fn counts(plan: &pb::PolicyPlan, field: u32) -> [u64; 6] {
    let found = plan.fields.iter().find(|one| one.field_id == field);
    found.map_or([0; 6], |f| {
        [f.value_count, f.sooner_count, f.over_count, f.later_count, f.held_count, f.unreadable_count]
    })
}

#[tokio::test]
async fn what_a_plan_says_of_a_retention_is_what_then_happens() {
    let t = Tenant::of("example", SOUND).await;
    let second = t.running.key(t.no, "second").await;
    let vault = &t.running.test.node.vault;
    t.person("one", &[60, 10]).await;
    t.person("two", &[10]).await;
    t.person("held", &[60]).await;
    let call = t.running.test.call(t.no);
    let plan = Some(Name::parse("plan", "enterprise").unwrap());
    let group = vault.create_group(&call, &id("acme"), plan, vec![], None).await.expect("group");
    let chosen = GroupChange { retention: Some(vec![(ClassNo(2), "180d".into())]), ..GroupChange::default() };
    vault.update_group(&call, group, None, chosen, None, false).await.expect("choose");
    t.person_of("chose", &[60], Some(group)).await;
    let hold = NewHold {
        classes: vec![],
        basis: Name::parse("basis", "lawsuit").unwrap(),
        purpose: purpose(&call, "legal").purpose.unwrap(),
        until: None,
    };
    vault
        .place_hold(&call, &Context::default(), HoldTarget::Subject(&key("held")), &hold, None, false)
        .await
        .expect("hold");
    let before = t.ends().await;

    let shorter = SOUND.replacen("retention = \"90d\"", "retention = \"30d\"", 1);
    let (progress, plan) = t.plan_with(&t.key, &shorter).await.expect("plan");
    let steps: Vec<&str> = progress.iter().map(|one| one.step.as_str()).collect();
    assert!(steps.starts_with(&["records"]) && steps.contains(&"audit"), "{steps:?}");
    let last = progress.iter().rfind(|one| one.step == "records").unwrap();
    assert!(last.total_count == 4 && plan.subject_count == 4);
    // Stored, sooner, over at once, later, held, unreadable.
    assert_eq!(counts(&plan, 2), [5, 3, 1, 0, 1, 0], "messages");
    assert_eq!(counts(&plan, 4), [4, 2, 1, 0, 1, 0], "nicks");
    assert_eq!((plan.from_version, plan.version, plan.approval_needed), (1, 2, true));
    assert_eq!(plan.sha256, Sha256::digest(shorter.as_bytes()).to_vec());
    let loss = &plan.losses[0];
    assert_eq!(
        (loss.class_id, loss.key.as_str(), loss.before.as_str(), loss.after.as_str()),
        (2, "retention", "90d", "30d")
    );
    assert_eq!(shorter.lines().nth(loss.policy_line as usize - 1).unwrap(), "retention = \"30d\"");
    assert_eq!(t.ends().await, before, "a plan changes nothing");

    let approval = t.ask_for(&t.key, &reference(&shorter)).await;
    t.approve(&second, &approval).await.expect("approve");
    t.apply_with(&t.key, &shorter, &approval).await.expect("apply");
    t.running.test.clock.advance_ms(200_000);
    let after = t.ends().await;
    for (name, number) in [("message", 2), ("nick", 4)] {
        let of = |ends: &BTreeMap<(String, &'static str), Vec<i64>>| -> Vec<Vec<i64>> {
            ends.iter().filter(|((_, what), _)| *what == name).map(|(_, all)| all.clone()).collect()
        };
        let (old, new) = (of(&before), of(&after));
        let count = |all: &[Vec<i64>]| all.iter().map(Vec::len).sum::<usize>() as u64;
        let [stored, sooner, over, ..] = counts(&plan, number);
        assert_eq!((count(&old), count(&new)), (stored, stored - over), "{name}");
        let still: Vec<i64> = old.iter().flatten().copied().collect();
        let changed = new.iter().flatten().filter(|end| !still.contains(end)).count() as u64;
        assert_eq!(changed, sooner - over, "{name}");
    }
    assert_eq!(after[&("held".to_owned(), "message")], before[&("held".to_owned(), "message")]);
    assert_eq!(after[&("chose".to_owned(), "message")], before[&("chose".to_owned(), "message")]);

    // Longer again needs nobody's consent, and brings back nothing.
    let plan = t.plan(SOUND).await;
    assert_eq!((counts(&plan, 2), plan.losses.len()), ([4, 0, 0, 2, 0, 0], 0));
    assert!(!plan.approval_needed);
    t.apply_with(&t.key, SOUND, "").await.expect("longer");
    t.running.test.clock.advance_ms(200_000);
    assert_eq!(t.ends().await[&("two".to_owned(), "message")], before[&("two".to_owned(), "message")]);
    t.stop().await;
}

#[tokio::test]
async fn a_plan_names_who_would_be_refused_and_what_nobody_could_read() {
    let t = Tenant::of("example", SOUND).await;
    t.put("p-1", "service", &[("nick", "ash"), ("email", "asha@example.com")]).await;
    for _ in 0..3 {
        t.read("p-1", &["nick"], t.context("service", "")).await.expect("read");
    }
    t.read("p-1", &["email"], t.context("legal", "")).await.expect_err("not for this purpose");
    let (nick, service) = (t.field("nick"), t.context("service", "").purpose_id);
    // The field leaves the file: no purpose has it any more.
    let start = SOUND.find("[[field]]\nnumber = 4").unwrap();
    let end = start + 1 + SOUND[start + 1..].find("[[field]]").unwrap();
    let without = SOUND.replacen(&SOUND[start..end], "", 1);
    let without = without.replacen("[controller]", "[reserved]\nfields = [4]\n[controller]", 1);
    let (_, plan) = t.plan_with(&t.key, &without).await.expect("plan");
    assert_eq!(counts(&plan, nick), [1, 0, 0, 0, 0, 1]);
    let seen = |verb: &str| -> Vec<_> {
        let of = plan.refused_calls.iter().filter(|one| one.verb == verb);
        of.map(|one| (one.roles.join(","), one.purpose_id, one.field_ids.clone(), one.call_count)).collect()
    };
    assert_eq!(seen("read"), [("everything".to_owned(), service, vec![nick], 3)]);
    assert_eq!(seen("write"), [("everything".to_owned(), service, vec![nick], 1)]);
    assert!(plan.refused_calls.iter().all(|one| one.rule.starts_with("unknown-field")));
    assert!(plan.audit_entry_count > 4 && plan.audit_start_time.is_some());
    assert!(t.plan(SOUND).await.refused_calls.is_empty(), "the same file refuses nobody");

    // A purpose that asks for a reference from now on refuses who gave none.
    let head = "name = \"service\"";
    let stricter = SOUND.replacen(head, &format!("{head}\nreference = true"), 1);
    let (_, plan) = t.plan_with(&t.key, &stricter).await.expect("plan");
    let read = plan.refused_calls.iter().find(|one| one.verb == "read").expect("reads are refused");
    assert!(read.rule.starts_with("reference-needed") && read.policy_line > 0, "{read:?}");

    // Who may not read the audit is not told who calls; who may not set policies is told nothing.
    let only_policy = t.running.key_for(t.no, "policy", &[Verb::Policy]).await;
    let (_, plan) = t.plan_with(&only_policy, &stricter).await.expect("plan");
    assert!(plan.refused_calls.is_empty() && plan.audit_start_time.is_none());
    let reader = t.running.key_for(t.no, "reader", &[Verb::Read, Verb::Audit]).await;
    assert_eq!(t.plan_with(&reader, SOUND).await.unwrap_err().code(), Code::PermissionDenied);
    t.stop().await;
}

#[tokio::test]
async fn data_goes_earlier_only_with_a_second_persons_yes_to_this_very_file() {
    let t = Tenant::of("example", SOUND).await;
    let second = t.running.key(t.no, "second").await;
    let shorter = |days: u32| SOUND.replacen("retention = \"90d\"", &format!("retention = \"{days}d\""), 1);
    // Nobody is stored: nothing can be lost.
    t.apply_with(&t.key, &shorter(80), "").await.expect("an empty tenant");
    t.person("one", &[10]).await;
    let bare = t.apply_with(&t.key, &shorter(70), "").await.unwrap_err();
    assert_eq!(refused(&bare), (Code::PermissionDenied, "APPROVAL_NEEDED".into()));
    let own = t.ask_for(&t.key, &reference(&shorter(70))).await;
    assert_eq!(reason(&t.approve(&t.key, &own).await.unwrap_err()), "APPROVAL_NEEDED", "not one's own");
    assert_eq!(reason(&t.apply_with(&t.key, &shorter(70), &own).await.unwrap_err()), "APPROVAL_NEEDED", "undecided");
    t.approve(&second, &own).await.expect("approve");
    let other = t.apply_with(&t.key, &shorter(60), &own).await.unwrap_err();
    assert_eq!(reason(&other), "APPROVAL_NEEDED", "another file");
    let another = t.apply_with(&second, &shorter(70), &own).await.unwrap_err();
    assert_eq!(reason(&another), "APPROVAL_NEEDED", "asked for by another");
    let version = t.apply_with(&t.key, &shorter(70), &own).await.expect("approved");
    assert_eq!((version.version, version.approval.as_str()), (3, own.as_str()));
    t.apply_with(&t.key, &shorter(90), "").await.expect("longer");
    assert_eq!(reason(&t.apply_with(&t.key, &shorter(70), &own).await.unwrap_err()), "APPROVAL_NEEDED", "one use");

    // What else goes earlier: a hold, and the longest time that a customer may choose.
    let hold = SOUND.replacen("keep = \"7y\"", "keep = \"6y\"", 1);
    let most = SOUND
        .replace("max_retention = \"1y\"", "max_retention = \"11mo\"")
        .replace("at_most = \"1y\"", "at_most = \"11mo\"");
    for text in [hold, most] {
        assert_eq!(reason(&t.apply_with(&t.key, &text, "").await.unwrap_err()), "APPROVAL_NEEDED");
    }
    let versions = t.versions().await;
    let approvals: Vec<bool> = versions.iter().map(|one| !one.approval.is_empty()).collect();
    assert_eq!(approvals, [false, false, true, false]);
    let mut audit = AuditServiceClient::new(t.running.channel.clone());
    let list = pb::ListEntriesRequest { actions: vec!["approval.used".into()], ..Default::default() };
    let entries = audit.list_entries(with(&t.key, list)).await.expect("audit").into_inner().entries;
    assert_eq!(entries.iter().map(|entry| entry.object.as_str()).collect::<Vec<_>>(), [own.as_str()]);
    t.stop().await;
}

#[tokio::test]
async fn versions_are_compared_key_by_key_and_keep_their_notice() {
    let t = Tenant::of("example", SOUND).await;
    let longer = SOUND.replacen("promised = \"90d\"", "promised = \"120d\"", 1);
    let next = longer.replacen("retention = \"90d\"", "retention = \"120d\"", 1).replacen(
        "format = 1",
        "format = 1\n[policy]\nminimum_notice = \"15d\"\nnotified = 2026-01-01\neffective = 2026-01-16",
        1,
    );
    let next = next.replace("time_zone = \"UTC\"\nforbidden = [\"sale\"]\n", "");
    let next = next.replacen("format = 1\n", "format = 1\ntime_zone = \"UTC\"\nforbidden = [\"sale\"]\n", 1);
    let early = t.apply_with(&t.key, &next, "").await.unwrap_err();
    assert_eq!(early.code(), Code::FailedPrecondition, "a day too early: {early:?}");
    t.running.test.clock.advance_days(1);
    let applied = t.apply_with(&t.key, &next, "").await.expect("on its day");
    let date = |day| Some(pb::Date { year: 2026, month: 1, day });
    assert_eq!((applied.notify_date, applied.effective_date), (date(1), date(16)));
    assert_eq!(t.versions().await[1].minimum_notice, "15d");

    let diff = |from, to, file: &str| {
        let policy = file.as_bytes().to_vec().into();
        pb::DiffPoliciesRequest { from_version: from, to_version: to, policy, ..Default::default() }
    };
    let asked = t.policies().diff_policies(with(&t.key, diff(1, 2, ""))).await.expect("diff").into_inner();
    let changes: Vec<String> = asked
        .changes
        .iter()
        .map(|c| format!("{} {} {} {} {} {}", c.table, c.number, c.name, c.key, c.before, c.after))
        .collect();
    assert!(changes.contains(&"class 2 content retention \"90d\" \"120d\"".to_owned()), "{changes:?}");
    assert!(asked.losses.is_empty());
    let back = t.policies().diff_policies(with(&t.key, diff(0, 0, SOUND))).await.expect("diff").into_inner();
    assert_eq!((back.from_version, back.to_version, back.losses.len()), (2, 0, 1));
    let one = back.changes.iter().find(|c| c.key == "retention").unwrap();
    assert_eq!(SOUND.lines().nth(one.to_line as usize - 1).unwrap(), "retention = \"90d\"");
    let wrong = t.policies().diff_policies(with(&t.key, diff(0, 0, "format = 1\ncolour = 2"))).await.unwrap_err();
    assert_eq!(reason(&wrong), "POLICY_INVALID");
    let none = t.policies().diff_policies(with(&t.key, diff(9, 0, ""))).await.unwrap_err();
    assert_eq!(none.code(), Code::NotFound);
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_activations_at_once_one_wins_and_nothing_is_half_applied() {
    let t = Tenant::of("example", SOUND).await;
    for round in 0..5u32 {
        let before = t.versions().await.len();
        let texts: Vec<String> = (0..6)
            .map(|i| SOUND.replacen("max_length = 100\n", &format!("max_length = {}\n", 1_000 + round * 10 + i), 1))
            .collect();
        let tries: Vec<_> = texts
            .iter()
            .map(|text| {
                let (mut policies, key, text) = (t.policies(), t.key.clone(), text.clone());
                tokio::spawn(async move {
                    let policy = text.as_bytes().to_vec().into();
                    let request = pb::ApplyPolicyRequest { policy, etag: before.to_string(), ..Default::default() };
                    policies.apply_policy(with(&key, request)).await.map(|answer| answer.into_inner().version.unwrap())
                })
            })
            .collect();
        let mut won = Vec::new();
        for (i, one) in tries.into_iter().enumerate() {
            match one.await.unwrap() {
                Ok(version) => won.push((i, version)),
                Err(lost) => assert_eq!(lost.code(), Code::Aborted, "{lost:?}"),
            }
        }
        let [(winner, version)] = &won[..] else { panic!("{won:?}") };
        assert_eq!(version.sha256, Sha256::digest(texts[*winner].as_bytes()).to_vec());
        let versions = t.versions().await;
        assert_eq!(versions.len(), before + 1);
        assert_eq!(
            versions.iter().filter(|one| one.active).map(|one| &one.sha256).collect::<Vec<_>>(),
            [&version.sha256]
        );
        let schema = t.policies().get_schema(with(&t.key, pb::GetSchemaRequest::default())).await.unwrap().into_inner();
        let nick = schema.fields.iter().find(|field| field.name == "nick").unwrap();
        assert_eq!(nick.max_length, 1_000 + round * 10 + *winner as u32, "the rules are the winner's");
    }
    t.stop().await;
}

/// What `TestAccess` says about one field of a person.
async fn why(t: &Tenant, key: &str, subject: &str, purpose: &str, field: u32) -> pb::AccessDecision {
    let request = pb::TestAccessRequest {
        verb: pb::Verb::Read as i32,
        select: Some(pb::Selector { field_ids: vec![field], ..Default::default() }),
        context: Some(t.context(purpose, "")),
        subject: subject.into(),
        ..Default::default()
    };
    let mut access = AccessServiceClient::new(t.running.channel.clone());
    let answer = access.test_access(with(key, request)).await.expect("test access").into_inner();
    assert_eq!(answer.policy_version, 1);
    answer.decisions[0].clone()
}

#[tokio::test]
async fn a_decision_knows_the_person_and_names_rule_version_and_line() {
    let t = Tenant::of("jina", JINA).await;
    t.put("p-1", "service", &[("name", "Asha"), ("email", "asha@example.com")]).await;
    let mut rights = RightsServiceClient::new(t.running.channel.clone());
    let purpose_no = |name: &str| t.context(name, "").purpose_id;
    let says = async |purpose: &str| {
        let said = why(&t, &t.key, "p-1", purpose, EMAIL).await;
        let mut context = t.context(purpose, "");
        context.reference = "CASE-1".into();
        let read = t.read("p-1", &["email"], t.context(purpose, "")).await;
        assert_eq!(read.is_ok(), said.allowed, "{purpose}: a read agrees with what was said");
        if let Err(status) = read {
            assert_eq!(reason(&status), said.reason, "{purpose}");
        }
        (said.allowed, said.rule.split(':').next().unwrap().to_owned(), said.policy_line)
    };
    let (allowed, rule, line) = says("marketing").await;
    assert_eq!((allowed, rule.as_str()), (false, "consent-missing"));
    assert!(JINA.lines().nth(line as usize - 1).unwrap().starts_with("number = "), "line {line}");
    let consent =
        pb::ConsentGrant { purpose_id: purpose_no("marketing"), evidence: "form".into(), ..Default::default() };
    let grant = pb::GrantConsentRequest { key: by_id("p-1"), consent: Some(consent), ..Default::default() };
    rights.grant_consent(with(&t.key, grant)).await.expect("consent");
    assert!(says("marketing").await.0, "with the consent");
    let object =
        pb::RecordObjectionRequest { key: by_id("p-1"), purpose_id: purpose_no("marketing"), ..Default::default() };
    if rights.record_objection(with(&t.key, object)).await.is_ok() {
        assert_eq!(says("marketing").await.1, "objected");
    }
    let class_id = 1;
    let restrict = pb::RestrictClassRequest { key: by_id("p-1"), class_id, ..Default::default() };
    rights.restrict_class(with(&t.key, restrict)).await.expect("restrict");
    assert_eq!(says("service").await.1, "restricted");

    // Who may do nothing learns nothing of people, and somebody who is not there is not there.
    let stranger = t.running.key_for(t.no, "stranger", &[Verb::Audit]).await;
    let ask = |subject: &str| pb::TestAccessRequest {
        verb: pb::Verb::Read as i32,
        context: Some(t.context("service", "")),
        subject: subject.into(),
        ..Default::default()
    };
    let mut access = AccessServiceClient::new(t.running.channel.clone());
    for subject in ["p-1", "nobody"] {
        let refusal = access.test_access(with(&stranger, ask(subject))).await.unwrap_err();
        assert_eq!(refusal.code(), Code::PermissionDenied, "{subject}");
    }
    assert_eq!(access.test_access(with(&t.key, ask("nobody"))).await.unwrap_err().code(), Code::NotFound);
    t.stop().await;
}

#[tokio::test]
async fn a_search_for_consent_finds_who_consented_and_tells_of_nobody_else() {
    let text = JINA.to_owned();
    let t = Tenant::of("jina", &text).await;
    let people: Vec<String> = (0..8).map(|i| format!("p-{i}")).collect();
    for (i, subject) in people.iter().enumerate() {
        t.put(subject, "service", &[("name", "Asha"), ("email", &format!("a{i}@example.com"))]).await;
    }
    let mut rights = RightsServiceClient::new(t.running.channel.clone());
    let marketing = t.context("marketing", "").purpose_id;
    let consent = async |subject: &str, rights: &mut RightsServiceClient<tonic::transport::Channel>| {
        let consent = pb::ConsentGrant { purpose_id: marketing, evidence: "form".into(), ..Default::default() };
        let grant = pb::GrantConsentRequest { key: by_id(subject), consent: Some(consent), ..Default::default() };
        rights.grant_consent(with(&t.key, grant)).await.expect("consent");
    };
    let mut subjects = SubjectServiceClient::new(t.running.channel.clone());
    let mut find = async |i: usize| {
        let request = pb::FindSubjectsRequest {
            term: Some(pb::Term { field_id: EMAIL, text: format!("a{i}@example.com"), ..Default::default() }),
            context: for_purpose(marketing),
            ..Default::default()
        };
        let found = subjects.find_subjects(with(&t.key, request)).await.expect("find").into_inner();
        assert!(found.next_page_token.is_empty());
        found.subjects.iter().map(|one| one.subject.clone()).collect::<Vec<_>>()
    };
    assert!(find(1).await.is_empty());
    consent("p-1", &mut rights).await;
    assert_eq!(find(1).await, ["p-1"]);
    assert_eq!(find(2).await, find(99).await, "no consent and nobody are one answer");
    let withdraw = pb::WithdrawConsentRequest { key: by_id("p-1"), purpose_id: marketing, ..Default::default() };
    rights.withdraw_consent(with(&t.key, withdraw)).await.expect("withdraw");
    assert!(find(1).await.is_empty(), "withdrawn counts at once");
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_starts_after_the_answer_to_a_withdrawal_is_refused() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    let t = Tenant::of("jina", JINA).await;
    t.put("p-1", "service", &[("name", "Asha"), ("email", "asha@example.com")]).await;
    let marketing = t.context("marketing", "").purpose_id;
    let mut rights = RightsServiceClient::new(t.running.channel.clone());
    let (allowed, refused) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    for _ in 0..rounds(10, 300) {
        let consent = pb::ConsentGrant { purpose_id: marketing, evidence: "form".into(), ..Default::default() };
        let grant = pb::GrantConsentRequest { key: by_id("p-1"), consent: Some(consent), ..Default::default() };
        rights.grant_consent(with(&t.key, grant)).await.expect("consent");
        let answered = Arc::new(AtomicBool::new(false));
        let readers: Vec<_> = (0..6)
            .map(|_| {
                let (mut records, key, answered) = (t.records(), t.key.clone(), answered.clone());
                let (allowed, refused) = (allowed.clone(), refused.clone());
                tokio::spawn(async move {
                    loop {
                        let late = answered.load(Ordering::SeqCst);
                        let request = pb::GetFieldsRequest {
                            key: by_id("p-1"),
                            select: Some(pb::Selector { field_ids: vec![EMAIL], ..Default::default() }),
                            context: for_purpose(marketing),
                            ..Default::default()
                        };
                        match records.get_fields(with(&key, request)).await {
                            Ok(_) => {
                                assert!(!late, "this read began after the withdrawal was answered");
                                allowed.fetch_add(1, Ordering::SeqCst);
                            }
                            Err(status) => {
                                assert_eq!(reason(&status), "CONSENT_MISSING");
                                refused.fetch_add(1, Ordering::SeqCst);
                            }
                        }
                        if late {
                            return;
                        }
                    }
                })
            })
            .collect();
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        let withdraw = pb::WithdrawConsentRequest { key: by_id("p-1"), purpose_id: marketing, ..Default::default() };
        rights.withdraw_consent(with(&t.key, withdraw)).await.expect("withdraw");
        answered.store(true, Ordering::SeqCst);
        for reader in readers {
            reader.await.expect("a reader");
        }
    }
    assert!(allowed.load(Ordering::SeqCst) > 0 && refused.load(Ordering::SeqCst) > 0);
    t.stop().await;
}

#[tokio::test]
async fn another_time_zone_moves_no_clock_that_runs_and_needs_two() {
    let t = Tenant::of("jina", JINA).await;
    let second = t.running.key(t.no, "second").await;
    t.put("p-1", "service", &[("name", "Asha")]).await;
    let mut rights = RightsServiceClient::new(t.running.channel.clone());
    let ask = |kind: &str| pb::CreateRequestRequest { kind: kind.into(), key: by_id("p-1"), ..Default::default() };
    let made = rights.create_request(with(&t.key, ask("dpa"))).await.expect("request").into_inner().request.unwrap();
    let zone =
        t.policies().get_schema(with(&t.key, pb::GetSchemaRequest::default())).await.unwrap().into_inner().time_zone;
    let moved = JINA.replacen(&format!("time_zone = \"{zone}\""), "time_zone = \"America/New_York\"", 1);
    assert_ne!(moved, JINA);
    // Invoices are kept for years of the calendar, which end at another hour now.
    assert_eq!(reason(&t.apply_with(&t.key, &moved, "").await.unwrap_err()), "APPROVAL_NEEDED");
    let losses = t.plan(&moved).await.losses;
    assert!(losses.iter().all(|loss| loss.key == "time_zone") && !losses.is_empty(), "{losses:?}");
    let approval = t.ask_for(&t.key, &reference(&moved)).await;
    t.approve(&second, &approval).await.expect("approve");
    t.apply_with(&t.key, &moved, &approval).await.expect("apply");
    let next = rights.create_request(with(&t.key, ask("dpa"))).await.expect("request").into_inner().request.unwrap();
    let list = rights.list_requests(with(&t.key, pb::ListRequestsRequest::default())).await.expect("list").into_inner();
    let due = |id: &str| list.requests.iter().find(|one| one.request == id).unwrap().due_time;
    assert_eq!(due(&made.request), made.due_time, "promised is promised");
    assert_ne!(due(&next.request), made.due_time);
    t.stop().await;
}

#[tokio::test]
async fn a_bad_file_changes_nothing_names_its_line_and_shows_no_value() {
    let t = Tenant::of("example", SOUND).await;
    let canary = "canary-7f3a";
    for (from, to, line_says, before) in [
        // Twice the same number, a number for another field, a day that is not, a name that is nothing, a contradiction.
        ("number = 4\nname = \"nick\"", "number = 2\nname = \"nick\"", "name = \"nick\"", 1),
        ("type = \"data\"", "type = \"text\"", "type = \"text\"", 0),
        ("[controller]", "[policy]\neffective = 2026-02-30\n[controller]", "effective = 2026-02-30", 0),
        ("class = \"billing\"", "class = \"canary-7f3a\"", "class = \"canary-7f3a\"", 0),
        ("retention = \"90d\"", "retention = \"2y\"", "retention = \"2y\"", 0),
        ("format = 1", "format = 1\ncontact = \"canary-7f3a\"", "contact = \"canary-7f3a\"", 0),
    ] {
        let text = SOUND.replacen(from, to, 1);
        assert_ne!(text, SOUND, "{from}");
        let refusal = t.apply_with(&t.key, &text, "").await.unwrap_err();
        assert_eq!(refused(&refusal), (Code::InvalidArgument, "POLICY_INVALID".into()), "{to}");
        let said = format!("{} {}", refusal.message(), String::from_utf8_lossy(refusal.details()));
        let lines: Vec<&str> = text.lines().collect();
        let line = 1 + lines.iter().rposition(|line| *line == line_says).unwrap() - before;
        assert!(said.contains(&format!("line {line}")), "{to}: {said}");
        assert!(!said.contains(canary) || from.starts_with("class"), "{said}");
        let plan = t.plan_with(&t.key, &text).await.unwrap_err();
        assert_eq!(reason(&plan), "POLICY_INVALID");
    }
    assert_eq!(t.versions().await.len(), 1);
    t.stop().await;
}
