//! What people decide and ask for, over a socket: consents, objections, restrictions, and requests with their clocks.

use pb::rights_service_client::RightsServiceClient;
use pii_vault::clock::Timestamp;
use pii_vault::grpc::pb;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::harness::{JINA, START};
use crate::net::*;
use crate::recipients::{JENNY, JIWA, Tenant, refused};

impl Tenant {
    fn rights(&self) -> RightsServiceClient<Channel> {
        RightsServiceClient::new(self.running.channel.clone())
    }

    fn purpose(&self, name: &str) -> u32 {
        self.context(name, "").purpose_id
    }

    async fn consent(&self, subject: &str, purpose: &str) -> Result<(), Status> {
        let consent =
            pb::ConsentGrant { purpose_id: self.purpose(purpose), evidence: "form 3".into(), ..Default::default() };
        let request = pb::GrantConsentRequest { key: by_id(subject), consent: Some(consent), ..Default::default() };
        self.rights().grant_consent(with(&self.key, request)).await.map(|_| ())
    }

    async fn withdraw(&self, subject: &str, purpose: &str) {
        let purpose_id = self.purpose(purpose);
        let request = pb::WithdrawConsentRequest { key: by_id(subject), purpose_id, ..Default::default() };
        self.rights().withdraw_consent(with(&self.key, request)).await.expect("withdraw");
    }

    async fn object(&self, subject: &str, purpose: &str, end: bool) -> Result<(), Status> {
        let purpose_id = self.purpose(purpose);
        let request = pb::RecordObjectionRequest { key: by_id(subject), purpose_id, end, ..Default::default() };
        self.rights().record_objection(with(&self.key, request)).await.map(|_| ())
    }

    async fn decided(&self, subject: &str) -> pb::GetRightsResponse {
        let request = pb::GetRightsRequest { key: by_id(subject), context: None };
        self.rights().get_rights(with(&self.key, request)).await.expect("rights").into_inner()
    }

    async fn ask(&self, kind: &str, subject: Option<&str>, region: &str) -> pb::RightsRequest {
        let request = pb::CreateRequestRequest {
            kind: kind.into(),
            key: subject.and_then(by_id),
            region: region.into(),
            ..Default::default()
        };
        let answer = self.rights().create_request(with(&self.key, request)).await.expect("request");
        answer.into_inner().request.unwrap()
    }

    async fn overdue(&self) -> Vec<String> {
        let request = pb::ListRequestsRequest { overdue: true, ..Default::default() };
        let list = self.rights().list_requests(with(&self.key, request)).await.expect("list").into_inner().requests;
        list.into_iter().map(|request| request.kind).collect()
    }
}

fn no_consent() -> (Code, String) {
    (Code::FailedPrecondition, "CONSENT_MISSING".into())
}

fn seconds(at: Timestamp) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds: at.0 / 1_000, nanos: 0 })
}

const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;

#[tokio::test]
async fn jc06_marketing_needs_a_consent_of_its_own() {
    let t = Tenant::of("jina", JINA).await;
    t.put("p-1", "service", &[("name", "Asha"), ("email", "asha@example.com")]).await;
    let read = async || t.read("p-1", &["email"], t.context("marketing", "")).await;
    assert_eq!(refused(&read().await.unwrap_err()), no_consent());
    t.consent("p-1", "marketing").await.expect("consent");
    assert_eq!(read().await.expect("with consent").values.len(), 1);
    t.withdraw("p-1", "marketing").await;
    assert_eq!(refused(&read().await.unwrap_err()), no_consent(), "withdrawn counts at once");
    t.read("p-1", &["email"], t.context("service", "")).await.expect("other purposes go on");

    // Only what is based on consent can be consented to, by people who are there.
    let other = t.consent("p-1", "service").await.unwrap_err();
    assert_eq!(refused(&other), (Code::InvalidArgument, "FIELD_INVALID".into()));
    assert_eq!(t.consent("p-2", "marketing").await.unwrap_err().code(), Code::NotFound);
    t.stop().await;
}

#[tokio::test]
async fn jw01_a_consent_names_the_policy_version_and_how_it_came() {
    let t = Tenant::of("jiwa", JIWA).await;
    t.put("p-1", "sign_in", &[("name", "Made")]).await;
    t.consent("p-1", "notifications").await.expect("consent");
    t.withdraw("p-1", "notifications").await;
    let rights = t.decided("p-1").await;
    use sha2::Digest;
    let first = &rights.decisions[0];
    assert_eq!(first.policy_sha256, sha2::Sha256::digest(JIWA.as_bytes()).to_vec());
    assert_eq!((first.policy_version, first.evidence.as_str()), (1, "form 3"));
    assert_eq!((first.kind, first.how), (pb::DecisionKind::ConsentGranted as i32, pb::DecisionHow::Asked as i32));
    assert_eq!(rights.decisions[1].kind, pb::DecisionKind::ConsentWithdrawn as i32);
    assert!(rights.consented_purpose_ids.is_empty());
    t.stop().await;
}

#[tokio::test]
async fn jw05_a_phone_number_is_taken_with_the_opt_in_only() {
    let t = Tenant::of("jiwa", JIWA).await;
    t.put("p-1", "sign_in", &[("name", "Made")]).await;
    let put = async |number: &str| {
        let request = pb::PutFieldsRequest {
            subject: "p-1".into(),
            values: vec![text_value(t.field("phone"), number)],
            context: Some(t.context("notifications", "")),
            ..Default::default()
        };
        t.records().put_fields(with(&t.key, request)).await
    };
    assert_eq!(refused(&put("+6281234567890").await.unwrap_err()), no_consent());
    t.consent("p-1", "notifications").await.expect("consent");
    let bad = put("081234567890").await.unwrap_err();
    assert_eq!(refused(&bad), (Code::InvalidArgument, "VALUE_INVALID".into()), "not the international form");
    put("+6281234567890").await.expect("put");
    t.read("p-1", &["phone"], t.context("notifications", "fonnte")).await.expect("the sender of messages");
    t.stop().await;
}

#[tokio::test]
async fn jw16_a_consent_ends_by_asking_and_by_ceasing_to_use() {
    let t = Tenant::of("jiwa", JIWA).await;
    t.put("p-1", "sign_in", &[("name", "Made")]).await;
    t.append("p-1", "brand_analysis", "post", "A caption").await;
    t.consent("p-1", "notifications").await.expect("consent");
    let read = async || t.items("p-1", "post", t.context("notifications", "")).await;
    read().await.expect("now");
    t.running.test.clock.advance_days(364);
    read().await.expect("a day less than a year");
    // Use in between counts from its day.
    let mut subjects = pb::subject_service_client::SubjectServiceClient::new(t.running.channel.clone());
    subjects.touch_subject(with(&t.key, pb::TouchSubjectRequest { subject: "p-1".into() })).await.expect("touch");
    t.running.test.clock.advance_days(364);
    read().await.expect("a year from the last use");
    t.running.test.clock.advance_days(2);
    assert_eq!(refused(&read().await.unwrap_err()), no_consent());
    assert!(t.decided("p-1").await.consented_purpose_ids.is_empty());
    t.consent("p-1", "notifications").await.expect("asked anew");
    read().await.expect("again");
    t.withdraw("p-1", "notifications").await;
    assert_eq!(refused(&read().await.unwrap_err()), no_consent());
    t.stop().await;
}

#[tokio::test]
async fn je11_an_objection_counts_from_the_next_read() {
    let t = Tenant::of("jenny", JENNY).await;
    t.put("p-1", "service", &[("name", "Lucia"), ("device_kind", "phone")]).await;
    t.put("p-2", "service", &[("name", "Anna"), ("device_kind", "phone")]).await;
    let read = async |subject: &str| t.read(subject, &["device_kind"], t.context("improvement", "")).await;
    read("p-1").await.expect("before");
    t.object("p-1", "improvement", false).await.expect("object");
    let refusal = read("p-1").await.unwrap_err();
    assert_eq!(refused(&refusal), (Code::PermissionDenied, "PURPOSE_NOT_ALLOWED".into()));
    read("p-2").await.expect("another person");
    // A partial answer says why.
    let request = pb::GetFieldsRequest {
        key: by_id("p-1"),
        select: Some(pb::Selector { field_ids: vec![t.field("device_kind")], ..Default::default() }),
        context: Some(t.context("improvement", "")),
        partial: pb::Partial::Allowed as i32,
        ..Default::default()
    };
    let got = t.records().get_fields(with(&t.key, request)).await.expect("partial").into_inner();
    assert_eq!(got.values[0].absence, pb::Absence::Objected as i32);
    // The contract needs no consent: it cannot be objected to.
    let other = t.object("p-1", "service", false).await.unwrap_err();
    assert_eq!(refused(&other), (Code::InvalidArgument, "FIELD_INVALID".into()));
    t.object("p-1", "improvement", true).await.expect("no longer");
    read("p-1").await.expect("after");
    t.stop().await;
}

#[tokio::test]
async fn a_restricted_class_is_used_for_legal_duties_only_and_can_be_erased() {
    let t = Tenant::of("jenny", JENNY).await;
    t.put("p-1", "service", &[("name", "Lucia"), ("device_kind", "phone")]).await;
    let restrict = async |end: bool| {
        let request = pb::RestrictClassRequest { key: by_id("p-1"), class_id: 1, end, ..Default::default() };
        t.rights().restrict_class(with(&t.key, request)).await.expect("restrict");
    };
    restrict(false).await;
    let refusal = t.read("p-1", &["name"], t.context("service", "")).await.unwrap_err();
    assert_eq!(refusal.code(), Code::PermissionDenied);
    t.read("p-1", &["device_kind"], t.context("service", "")).await.expect("another class");
    t.read("p-1", &["name"], t.context("legal_obligation", "")).await.expect("a legal duty");
    restrict(true).await;
    t.read("p-1", &["name"], t.context("service", "")).await.expect("no longer");
    restrict(false).await;
    let mut erasures = pb::erasure_service_client::ErasureServiceClient::new(t.running.channel.clone());
    let erase = pb::EraseSubjectRequest { key: by_id("p-1"), wait_final: true, ..Default::default() };
    erasures.erase_subject(with(&t.key, erase)).await.expect("erase");
    t.stop().await;
}

#[tokio::test]
async fn decisions_survive_a_restart_and_are_erased_with_the_person() {
    let t = Tenant::of("jina", JINA).await;
    t.put("p-1", "service", &[("name", "Asha"), ("email", "asha@example.com")]).await;
    t.consent("p-1", "marketing").await.expect("consent");
    t.object("p-1", "analytics", false).await.expect("object");
    let Tenant { running, no, key } = t;
    let test = running.stop().await.restart().await;
    let t = Tenant { running: Running::over(test).await, no, key };
    let rights = t.decided("p-1").await;
    assert_eq!((rights.consented_purpose_ids, rights.objected_purpose_ids), (vec![MARKETING], vec![ANALYTICS]));
    t.read("p-1", &["email"], t.context("marketing", "")).await.expect("still");

    let mut erasures = pb::erasure_service_client::ErasureServiceClient::new(t.running.channel.clone());
    let erase = pb::EraseSubjectRequest { key: by_id("p-1"), wait_final: true, ..Default::default() };
    let erasure = erasures.erase_subject(with(&t.key, erase)).await.expect("erase").into_inner().erasure.unwrap();
    assert_eq!(erasure.status, pb::ErasureStatus::Erased as i32);
    let receipt = String::from_utf8(erasure.receipt.to_vec()).unwrap();
    assert!(receipt.contains("rights"), "{receipt}");
    let again = pb::PutFieldsRequest {
        subject: "p-1".into(),
        values: vec![text_value(EMAIL, "asha@example.com")],
        context: for_purpose(SERVICE),
        mode: pb::WriteMode::Recreate as i32,
        ..Default::default()
    };
    t.records().put_fields(with(&t.key, again)).await.expect("a new life");
    assert!(t.decided("p-1").await.decisions.is_empty());
    let read = t.read("p-1", &["email"], t.context("marketing", "")).await.unwrap_err();
    assert_eq!(refused(&read), no_consent());
    t.stop().await;
}

#[tokio::test]
async fn jc11_jc23_requests_are_due_by_business_days_and_days() {
    let t = Tenant::of("jina", JINA).await;
    t.put("p-1", "service", &[("name", "Asha")]).await;
    let dpa = t.ask("dpa", None, "").await;
    // Thursday 17:30 in India; five business days end with Thursday the 22nd there.
    assert_eq!(dpa.due_time, seconds(START.plus_ms(7 * DAY + 6 * HOUR + HOUR / 2)));
    let grievance = t.ask("grievance", Some("p-1"), "").await;
    assert_eq!(grievance.due_time, seconds(START.plus_days(30)));
    assert!(grievance.subject_uid > 0 && dpa.subject_uid == 0);
    assert!(t.overdue().await.is_empty());
    t.running.test.clock.advance_ms(7 * DAY + 6 * HOUR + HOUR / 2 - 1);
    assert!(t.overdue().await.is_empty());
    t.running.test.clock.advance_ms(1);
    assert_eq!(t.overdue().await, ["dpa"]);
    t.running.test.clock.advance_days(30);
    assert_eq!(t.overdue().await, ["dpa", "grievance"]);

    let close = pb::UpdateRequestRequest {
        request: dpa.request.clone(),
        state: pb::RightsRequestState::Done as i32,
        ..Default::default()
    };
    t.rights().update_request(with(&t.key, close.clone())).await.expect("close");
    assert_eq!(t.overdue().await, ["grievance"]);
    let twice = t.rights().update_request(with(&t.key, close)).await.unwrap_err();
    assert_eq!(twice.code(), Code::FailedPrecondition);
    let open = pb::CreateRequestRequest { kind: "gossip".into(), ..Default::default() };
    assert_eq!(t.rights().create_request(with(&t.key, open)).await.unwrap_err().code(), Code::InvalidArgument);
    t.stop().await;
}

#[tokio::test]
async fn je20_je26_clocks_go_by_region_and_hour() {
    let t = Tenant::of("jenny", JENNY).await;
    t.put("p-1", "service", &[("name", "Lucia")]).await;
    let due = async |kind: &str, region: &str| t.ask(kind, Some("p-1"), region).await.due_time;
    assert_eq!(due("access", "").await, seconds(START.plus_days(31)), "15 February, a month");
    assert_eq!(due("access", "us-ca").await, seconds(START.plus_days(45)));
    assert_eq!(due("incident", "").await, seconds(START.plus_ms(24 * HOUR)));
    assert_eq!(due("grievance", "").await, None, "the text promises nothing");
    // Pages go on where they ended.
    let mut seen = Vec::new();
    let mut list = pb::ListRequestsRequest { page_size: 3, ..Default::default() };
    loop {
        let page = t.rights().list_requests(with(&t.key, list.clone())).await.expect("list").into_inner();
        seen.extend(page.requests.into_iter().map(|request| request.kind));
        if page.next_page_token.is_empty() {
            break;
        }
        list.page_token = page.next_page_token;
    }
    assert_eq!(seen, ["incident", "access", "access", "grievance"]);
    t.stop().await;
}

/// The file with these words of `[policy]` in place of its minimum notice.
fn noticed(minimum: &str, words: &str) -> String {
    let line = format!("minimum_notice = \"{minimum}\"");
    assert!(JINA.contains(&line) || JENNY.contains(&line));
    let text = if minimum == "15d" { JINA } else { JENNY };
    text.replacen(&line, &format!("{line}\n{words}"), 1)
}

async fn apply(t: &Tenant, text: &str) -> Result<u32, Status> {
    let mut policies = pb::policy_service_client::PolicyServiceClient::new(t.running.channel.clone());
    let request = pb::ApplyPolicyRequest { policy: text.as_bytes().to_vec().into(), ..Default::default() };
    Ok(policies.apply_policy(with(&t.key, request)).await?.into_inner().version.unwrap().version)
}

#[tokio::test]
async fn jc25_je23_a_change_waits_for_its_notice_and_its_day() {
    for (name, text, minimum, short, day, days) in
        [("jina", JINA, "15d", "2026-02-01", "2026-02-02", 17), ("jenny", JENNY, "30d", "2026-02-16", "2026-02-17", 32)]
    {
        let t = Tenant::of(name, text).await;
        let said = |effective: &str| noticed(minimum, &format!("notified = 2026-01-18\neffective = {effective}"));
        let early = apply(&t, &said(short)).await.unwrap_err();
        assert_eq!(refused(&early), (Code::InvalidArgument, "POLICY_INVALID".into()), "{name}: shorter than promised");
        let waits = apply(&t, &said(day)).await.unwrap_err();
        assert_eq!(waits.code(), Code::FailedPrecondition, "{name}: not before its day");
        t.running.test.clock.advance_days(days);
        assert_eq!(apply(&t, &said(day)).await.unwrap_err().code(), Code::FailedPrecondition, "{name}: the day before");
        t.running.test.clock.advance_days(1);
        assert_eq!(apply(&t, &said(day)).await.expect("on the day"), 2);
        t.stop().await;
    }
}

#[tokio::test]
async fn jc08_a_person_is_told_who_was_given_what() {
    let t = Tenant::of("jina", JINA).await;
    t.put("p-1", "service", &[("name", "Asha"), ("email", "asha@example.com"), ("phone", "+919876543210")]).await;
    t.put("p-2", "service", &[("phone", "+919876543211")]).await;
    t.append("p-1", "delivery", "message", "on its way").await;
    let got = t.read("p-1", &["phone"], t.context("delivery", "twilio")).await.expect("read");
    t.items("p-1", "message", t.context("delivery", "twilio")).await.expect("items");
    t.read("p-1", &["phone"], t.context("delivery", "meta")).await.expect("read");
    t.read("p-1", &["email"], t.context("service", "twilio")).await.expect_err("refused");
    t.read("p-1", &["email"], t.context("service", "")).await.expect("stays here");
    t.read("p-2", &["phone"], t.context("delivery", "gupshup")).await.expect("somebody else");
    let request = pb::ListDisclosuresRequest { key: by_id("p-1"), context: None };
    let answer = t.rights().list_disclosures(with(&t.key, request)).await.expect("disclosures").into_inner();
    let rows: Vec<_> = answer.disclosures.iter().map(|d| (d.name.as_str(), d.reads, d.field_ids.clone())).collect();
    let (phone, message) = (t.field("phone"), t.field("message"));
    assert_eq!(rows, [("meta", 1, vec![phone]), ("twilio", 2, vec![phone, message])]);
    let twilio = &answer.disclosures[1];
    assert_eq!((twilio.agreement.as_str(), answer.complete), ("DPA Twilio 2026", true));
    assert_eq!((&twilio.recipient_ref, &twilio.purpose_ids), (&got.recipient_ref, &vec![DELIVERY]));
    t.stop().await;
}

#[tokio::test]
async fn who_closed_the_account_can_still_say_no() {
    let t = Tenant::of("jina", JINA).await;
    t.put("p-1", "service", &[("email", "asha@example.com")]).await;
    t.consent("p-1", "marketing").await.expect("consent");
    let mut subjects = pb::subject_service_client::SubjectServiceClient::new(t.running.channel.clone());
    let close = pb::CloseSubjectRequest { subject: "p-1".into(), ..Default::default() };
    subjects.close_subject(with(&t.key, close)).await.expect("close");
    t.read("p-1", &["email"], t.context("marketing", "")).await.expect("closed is readable");
    t.withdraw("p-1", "marketing").await;
    let read = t.read("p-1", &["email"], t.context("marketing", "")).await.unwrap_err();
    assert_eq!(refused(&read), no_consent());
    t.stop().await;
}

#[tokio::test]
async fn a_restore_does_not_bring_a_withdrawn_consent_back() {
    use pii_vault::ids::{ClassNo, DekVersion, Generation, ObjectId};
    use pii_vault::keyring::ledger::{LedgerEntry, LedgerKind};
    let t = Tenant::of("jina", JINA).await;
    t.put("p-1", "service", &[("email", "asha@example.com")]).await;
    t.consent("p-1", "marketing").await.expect("consent");
    let vault = &t.running.test.node.vault;
    let call = t.running.test.call(t.no);
    let uid = vault.get_subject(&call, &crate::harness::id("p-1")).await.expect("subject").subject.uid;
    // What the ledger has and a restored database has not.
    let entry = |kind, number| LedgerEntry {
        kind,
        tenant: t.no,
        uid,
        class: ClassNo(0),
        version: DekVersion(0),
        generation: Generation(0),
        at: START,
        object: ObjectId::random(),
        until: Timestamp(0),
        number,
    };
    let entries = [entry(LedgerKind::ConsentWithdrawn, MARKETING), entry(LedgerKind::Objected, ANALYTICS)];
    assert_eq!(vault.decide_again(&entries).await.expect("again").refusals, 2);
    assert_eq!(vault.decide_again(&entries).await.expect("twice").refusals, 0, "they stand");
    let read = t.read("p-1", &["email"], t.context("marketing", "")).await.unwrap_err();
    assert_eq!(refused(&read), no_consent());
    assert_eq!(t.decided("p-1").await.objected_purpose_ids, [ANALYTICS]);
    t.stop().await;
}
