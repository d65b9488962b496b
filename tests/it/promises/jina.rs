//! jina-connect: a messaging platform from India.

use pii_vault::grpc::pb;
use pii_vault::report::Status::{Broken, Held, Outside};
use tonic::Code;

use crate::company::*;
use crate::harness::START;
use crate::net::*;

super::promises!("jina-connect":
    jc01_account_data_is_name_email_phone_and_organisation
    jc02_no_text_field_takes_a_card_number
    jc03_usage_and_device_data_are_declared_and_their_retention_is_told
    jc04_content_is_for_delivery_and_analytics
    jc05_there_are_the_listed_purposes_and_no_other
    jc06_marketing_needs_a_consent_of_its_own
    jc07_nothing_is_for_sale
    jc08_only_named_processors_get_values_and_each_read_is_recorded
    jc08_a_person_is_told_who_was_given_what
    jc09_authorities_need_a_case_and_a_second_person
    jc10_nothing_is_given_when_the_agreement_is_over
    jc11_a_dpa_is_due_within_five_business_days
    jc12_only_tls_carries_values
    jc13_nothing_is_stored_in_clear
    jc14_api_keys_are_hashed_and_shown_once
    jc15_roles_see_what_they_need
    jc16_data_stays_while_the_account_is_active
    jc17_messages_are_kept_90_days_unless_the_plan_says_otherwise
    jc18_billing_records_stay_seven_years_alone
    jc19_a_person_gets_everything_as_json_and_csv
    jc20_a_corrected_value_can_be_shredded
    jc21_an_erasure_answers_a_receipt_that_verifies_offline
    jc22_a_nominee_asks_in_a_persons_place
    jc23_grievances_have_a_clock
    jc24_the_file_names_who_answers
    jc25_a_change_is_announced_fifteen_days_before
);

const PROCESSORS: [(&str, &str); 7] = [
    ("meta", "delivery: phone message"),
    ("gupshup", "delivery: phone message"),
    ("twilio", "delivery: phone message"),
    ("msg91", "delivery: phone message"),
    ("fast2sms", "delivery: phone message"),
    ("razorpay", "payments: name email payment_method"),
    ("hosting", ""),
];
const AUTHORITIES: (&str, &str) = ("authorities", "legal_request: *; protect_rights: *");

async fn jc01_account_data_is_name_email_phone_and_organisation(t: &Tenant) {
    t.reports(&[("2", "collects account_information", Held)]).await;
    t.class("1 account").await;
    t.fields(
        "account",
        &[
            "1 name text 200 name maskable",
            "2 email text 254 email searchable unique maskable",
            "3 phone text 16 phone_e164 searchable maskable",
            "4 organisation text 200 maskable",
        ],
    )
    .await;
    assert_eq!(t.put_text("p-1", "service", 99, "Pisces").await, Err("SCHEMA_UNKNOWN_FIELD".into()));
    for (field, text) in
        [(1, "A\nB".into()), (1, "a".repeat(201)), (2, "asha@".into()), (3, "98765".into()), (4, "a".repeat(201))]
    {
        assert_eq!(t.put_text("p-1", "service", field, &text).await, Err("VALUE_INVALID".into()), "{field} {text}");
    }
    t.put("p-1", "service", &[("name", "Asha"), ("phone", "+919876543210"), ("organisation", "Acme")]).await;
    assert_eq!(t.text_of("p-1", "organisation", "service").await, Ok("Acme".into()));
}

async fn jc02_no_text_field_takes_a_card_number(t: &Tenant) {
    t.takes_no_cards(&[
        ("account", "service"),
        ("billing", "payments"),
        ("content", "delivery"),
        ("usage", "service"),
        ("device", "service"),
    ])
    .await;
    t.reports(&[("2", "no_cards", Held), ("2", "collects billing_information", Held)]).await;
    t.fields("billing", &["5 payment_method text 100 maskable", "6 invoice text 8192 many maskable"]).await;
}

async fn jc03_usage_and_device_data_are_declared_and_their_retention_is_told(t: &Tenant) {
    t.reports(&[("2", "collects usage_data", Held), ("2", "collects device_data", Held)]).await;
    t.reports(&[("11", "cookies", Outside), ("11", "trackers", Outside), ("7", "open_source", Outside)]).await;
    t.fields("usage", &["9 api_call text 2048 many maskable", "10 delivery_event text 1024 many maskable"]).await;
    t.fields("device", &["11 ip text 45 ip maskable", "12 user_agent text 512 maskable"]).await;
    t.class("4 usage kept 90d at most 2y").await;
    // Of device data no retention is stated: the linter says so, and the class is the only one without.
    let missing = t.lint(&t.text).await.iter().filter(|rule| *rule == "retention-missing").count();
    assert_eq!(missing, 1);
    t.class("5 device").await;
    t.put("p-1", "service", &[("name", "Asha")]).await;
    t.append("p-1", "service", "api_call", "POST /v1/messages 202").await;
    t.days(89);
    assert_eq!(t.count("p-1", "api_call", "analytics").await, Ok(1), "89 days");
    t.days(1);
    assert_eq!(t.count("p-1", "api_call", "analytics").await, Ok(0), "90 days");
}

async fn jc04_content_is_for_delivery_and_analytics(t: &Tenant) {
    t.reports(&[
        ("2", "collects content", Held),
        ("2", "only_for delivery, analytics = content", Held),
        ("2", "uses delivery, analytics", Held),
        ("2", "channel whatsapp, telegram, sms, rcs, voice", Broken),
        ("3", "channel email", Broken),
        ("2", "retention_by_plan content", Held),
    ])
    .await;
    let channels = t.evidence("2", "channel whatsapp, telegram, sms, rcs, voice").await;
    assert!(!channels.contains("`whatsapp`") && !channels.contains("`sms`"), "{channels}");
    t.fields("content", &["7 message text 65536 many maskable", "8 call_transcript text 65536 many maskable"]).await;
    t.put("p-1", "service", &[("name", "Asha")]).await;
    t.append("p-1", "delivery", "message", "on its way").await;
    assert_eq!(t.count("p-1", "message", "delivery").await, Ok(1));
    assert_eq!(t.count("p-1", "message", "analytics").await, Ok(1));
    for purpose in ["service", "support", "security", "payments"] {
        assert_eq!(t.count("p-1", "message", purpose).await, Err("PURPOSE_NOT_ALLOWED".into()), "{purpose}");
    }
    // No consent is asked for it, so no purpose that is based on one may use it.
    let marketing = t.lint_with(
        "basis = \"consent\"\nfields = [\"name\", \"email\"]",
        "basis = \"consent\"\nclasses = [\"content\"]",
    );
    assert!(marketing.await.contains(&"basis-not-allowed".into()));
}

async fn jc05_there_are_the_listed_purposes_and_no_other(t: &Tenant) {
    t.purposes(&[
        ("1 service service contract", "name email phone organisation api_call delivery_event ip user_agent"),
        ("2 authentication security contract", "email phone ip user_agent"),
        ("3 payments payment contract", "name email organisation payment_method invoice"),
        ("4 transactional_email messaging contract", "name email"),
        ("5 legal_obligation legal legal_obligation", "*"),
        ("6 support support contract", "name email phone organisation"),
        ("7 delivery service contract", "phone message call_transcript delivery_event"),
        ("8 analytics analytics legitimate_interests", "message call_transcript api_call delivery_event"),
        ("9 security security legitimate_interests", "api_call delivery_event ip user_agent"),
    ])
    .await;
    t.reports(&[
        ("3", "uses service", Held),
        ("3", "uses authentication", Held),
        ("3", "uses payments", Held),
        ("3", "uses transactional_email", Held),
        ("3", "uses legal_obligation", Held),
        ("3", "uses support", Held),
        ("3", "handles support_requests", Broken),
        ("4", "uses security, analytics", Held),
    ])
    .await;
    assert_eq!(t.schema().await.purposes.len(), 12);
    let unknown = pb::AccessContext { purpose_id: 13, ..Default::default() };
    assert!(t.read("p-1", &["name"], unknown).await.is_err());
}

async fn jc06_marketing_needs_a_consent_of_its_own(t: &Tenant) {
    t.reports(&[
        ("4", "basis service, authentication, payments, transactional_email, support, delivery = contract", Held),
        ("4", "basis security, analytics, protect_rights = legitimate_interests", Held),
        ("4", "basis legal_obligation, legal_request = legal_obligation", Held),
        ("4", "basis marketing = consent", Held),
        ("4", "consent marketing", Held),
    ])
    .await;
    t.purposes(&[("10 marketing marketing consent", "name email")]).await;
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
}

async fn jc07_nothing_is_for_sale(t: &Tenant) {
    t.reports(&[("5", "never sale", Held)]).await;
    t.forbids(&["sale", "advertising"]).await;
}

async fn jc08_only_named_processors_get_values_and_each_read_is_recorded(t: &Tenant) {
    let shares = |who: &str| format!("shares phone, message with {who}");
    for who in ["meta", "gupshup", "twilio", "msg91", "fast2sms"] {
        t.reports(&[("5", &shares(who), Held)]).await;
    }
    t.reports(&[
        ("5", "shares name, email, payment_method with razorpay", Held),
        ("5", "shares with hosting", Held),
        ("5", "shares with authorities", Held),
    ])
    .await;
    t.given(&[&PROCESSORS[..], &[AUTHORITIES]].concat()).await;
    t.put("p-1", "service", &[("name", "Asha"), ("email", "asha@example.com"), ("phone", "+919876543210")]).await;
    t.append("p-1", "delivery", "message", "on its way").await;
    let got = t.read("p-1", &["phone"], t.context("delivery", "twilio")).await.expect("listed");
    assert_eq!(got.recipient_ref.len(), 16);
    assert_eq!(t.items("p-1", "message", t.context("delivery", "twilio")).await.expect("listed"), 1);

    // Another field, another purpose, another recipient, nobody.
    let mail = t.read("p-1", &["email"], t.context("service", "twilio")).await.unwrap_err();
    assert_eq!(refused(&mail), unlisted());
    let paid = t.read("p-1", &["name"], t.context("payments", "twilio")).await.unwrap_err();
    assert_eq!(refused(&paid), unlisted());
    let hosting = t.read("p-1", &["phone"], t.context("delivery", "hosting")).await.unwrap_err();
    assert_eq!(refused(&hosting), unlisted());
    let nobody = pb::AccessContext { recipient_id: 200, ..t.context("delivery", "") };
    assert_eq!(refused(&t.read("p-1", &["phone"], nobody).await.unwrap_err()), unlisted());
    assert_eq!(refused(&t.items("p-1", "message", t.context("delivery", "razorpay")).await.unwrap_err()), unlisted());
    let far = pb::AccessContext { recipient_id: 4_000, ..t.context("delivery", "") };
    assert_eq!(t.read("p-1", &["phone"], far).await.unwrap_err().code(), Code::InvalidArgument);

    // The audit has every read with its recipient, the refused ones too.
    let twilio = t.context("delivery", "twilio").recipient_id;
    let list = pb::ListEntriesRequest {
        chain: pb::AuditChain::Reads as i32,
        recipient_ids: vec![twilio],
        ..Default::default()
    };
    let list = t.audit().list_entries(with(&t.key, list)).await.expect("audit").into_inner().entries;
    let shown = |outcome: pb::AuditOutcome| list.iter().filter(|e| e.outcome == outcome as i32).count();
    assert!(list.iter().all(|e| e.recipient_id == twilio), "{list:?}");
    assert_eq!((shown(pb::AuditOutcome::Ok), shown(pb::AuditOutcome::Denied)), (2, 2), "{list:?}");
}

async fn jc08_a_person_is_told_who_was_given_what(t: &Tenant) {
    t.put("p-1", "service", &[("name", "Asha"), ("email", "asha@example.com"), ("phone", "+919876543210")]).await;
    t.put("p-2", "service", &[("phone", "+919876543211")]).await;
    t.append("p-1", "delivery", "message", "on its way").await;
    let got = t.read("p-1", &["phone"], t.context("delivery", "twilio")).await.expect("read");
    t.items("p-1", "message", t.context("delivery", "twilio")).await.expect("items");
    t.read("p-1", &["phone"], t.context("delivery", "meta")).await.expect("read");
    t.read("p-1", &["email"], t.context("service", "twilio")).await.expect_err("refused");
    t.read("p-1", &["email"], t.context("service", "")).await.expect("stays here");
    t.read("p-2", &["phone"], t.context("delivery", "gupshup")).await.expect("somebody else");
    let answer = t.disclosures("p-1").await;
    let rows: Vec<_> = answer.disclosures.iter().map(|d| (d.name.as_str(), d.reads, d.field_ids.clone())).collect();
    let (phone, message) = (t.field("phone"), t.field("message"));
    assert_eq!(rows, [("meta", 1, vec![phone]), ("twilio", 2, vec![phone, message])]);
    let twilio = &answer.disclosures[1];
    assert_eq!((twilio.agreement.as_str(), answer.complete), ("DPA Twilio 2026", true));
    assert_eq!((&twilio.recipient_ref, &twilio.purpose_ids), (&got.recipient_ref, &vec![DELIVERY]));
}

async fn jc09_authorities_need_a_case_and_a_second_person(t: &Tenant) {
    t.reports(&[("5", "authorities legal_request, protect_rights", Held)]).await;
    t.purposes(&[
        ("11 legal_request legal legal_obligation approval reference", "*"),
        ("12 protect_rights legal legitimate_interests approval reference", "*"),
    ])
    .await;
    t.put("p-1", "service", &[("name", "Asha")]).await;
    let second = t.running.key(t.no, "second").await;
    for purpose in ["legal_request", "protect_rights"] {
        let context = |approval: &str, reference: &str| pb::AccessContext {
            approval: approval.into(),
            reference: reference.into(),
            ..t.context(purpose, "authorities")
        };
        let bare = t.read("p-1", &["name"], context("", "CASE-17")).await.unwrap_err();
        assert_eq!(reason(&bare), "APPROVAL_NEEDED", "{purpose}");
        let ask = pb::RequestApprovalRequest {
            subjects: vec!["p-1".into()],
            grant: Some(pb::Grant {
                field_ids: vec![NAME],
                purpose_ids: vec![t.purpose(purpose)],
                verbs: vec![pb::Verb::Read as i32],
                ..Default::default()
            }),
            reference: "CASE-17".into(),
            ..Default::default()
        };
        let asked = t.access().request_approval(with(&t.key, ask)).await.expect("ask").into_inner().approval.unwrap();
        let yes = pb::ApproveRequest { approval: asked.approval.clone(), ..Default::default() };
        assert!(t.access().approve(with(&t.key, yes.clone())).await.is_err(), "{purpose}: not the requester");
        t.access().approve(with(&second, yes)).await.expect("another one");
        let without = t.read("p-1", &["name"], context(&asked.approval, "")).await;
        assert!(without.is_err(), "{purpose}: no case");
        let ask_again = pb::RequestApprovalRequest {
            subjects: vec!["p-1".into()],
            grant: asked.grant.clone(),
            reference: "CASE-18".into(),
            ..Default::default()
        };
        let other = t.access().request_approval(with(&t.key, ask_again)).await.expect("ask").into_inner();
        let approval = other.approval.unwrap().approval;
        let yes = pb::ApproveRequest { approval: approval.clone(), ..Default::default() };
        t.access().approve(with(&second, yes)).await.expect("another one");
        t.read("p-1", &["name"], context(&approval, "CASE-18")).await.expect("with both");
        let twice = t.read("p-1", &["name"], context(&approval, "CASE-18")).await.unwrap_err();
        assert_eq!(reason(&twice), "APPROVAL_NEEDED", "{purpose}: one use");
    }
}

async fn jc10_nothing_is_given_when_the_agreement_is_over(t: &Tenant) {
    t.reports(&[("5", "agreements", Held)]).await;
    t.put("p-1", "service", &[("phone", "+919876543210")]).await;
    // The last day is 31 December 2027 in India; the test starts on 15 January 2026 at 12:00 UTC.
    t.days(715);
    t.running.test.clock.advance_ms(6 * HOUR + 29 * 60_000);
    t.read("p-1", &["phone"], t.context("delivery", "twilio")).await.expect("one minute before the new year in India");
    t.running.test.clock.advance_ms(60_000);
    let late = t.read("p-1", &["phone"], t.context("delivery", "twilio")).await.unwrap_err();
    assert_eq!(refused(&late), (Code::PermissionDenied, "DPA_EXPIRED".into()));
    t.read("p-1", &["phone"], t.context("delivery", "")).await.expect("the application itself goes on");
    let over = PROCESSORS.map(|(name, _)| (name, ""));
    t.given(&[&over[..], &[AUTHORITIES]].concat()).await;
    t.reports(&[("5", "agreements", Broken)]).await;
    let evidence = t.evidence("5", "agreements").await;
    assert_eq!(evidence.matches("the agreement is over").count(), 7, "{evidence}");
    // A processor without an agreement makes no file.
    for dpa in ["Meta", "Gupshup", "Twilio", "MSG91", "Fast2SMS", "Razorpay", "AWS"] {
        let rules = t.lint_with(&format!("dpa = \"DPA {dpa} 2026\"\n"), "").await;
        assert!(rules.contains(&"recipient-without-dpa".into()), "{dpa}");
    }
}

async fn jc11_a_dpa_is_due_within_five_business_days(t: &Tenant) {
    t.reports(&[("6", "answered dpa = 5bd", Held)]).await;
    // Thursday 17:30 in India; five business days end with Thursday the 22nd there.
    let week = 7 * DAY + 6 * HOUR + HOUR / 2;
    t.is_overdue("dpa", week).await;
    t.reports(&[("6", "answered dpa = 5bd", Broken)]).await;
    // Republic Day and Gandhi's birthday are no business days.
    let due = async |day: i64| {
        let arrived = START.plus_days(day);
        let request =
            pb::CreateRequestRequest { kind: "dpa".into(), arrive_time: seconds(arrived), ..Default::default() };
        let due = t.rights().create_request(with(&t.key, request)).await.expect("request").into_inner();
        (due.request.unwrap().due_time.unwrap().seconds * 1_000 - arrived.0 - 6 * HOUR - HOUR / 2) / DAY
    };
    t.days(300);
    assert_eq!(due(7).await, 8, "22 January to the end of the 30th: a weekend and the 26th");
    // 28 September is a Monday, 2 October its Friday.
    assert_eq!(due(256).await, 7 + 1, "28 September to the end of 6 October");
}

async fn jc12_only_tls_carries_values(t: &Tenant) {
    t.reports(&[("7", "in_transit = tls1.2", Broken)]).await;
    assert!(t.evidence("7", "in_transit = tls1.2").await.contains("plain text"), "these tests listen without TLS");
    t.reports_over_tls(("7", "in_transit = tls1.2", Held)).await;
}

async fn jc13_nothing_is_stored_in_clear(t: &Tenant) {
    t.put("p-canary-17", "service", &[("name", "Canary Nightingale"), ("email", "canary@nightingale.example")]).await;
    t.append("p-canary-17", "delivery", "message", "the canary sings at dawn").await;
    t.reports(&[("7", "at_rest = aes-256", Held)]).await;
    t.is_in_no_file(&["p-canary-17", "Canary Nightingale", "canary@nightingale", "the canary sings"]);
}

async fn jc14_api_keys_are_hashed_and_shown_once(t: &Tenant) {
    t.put("p-1", "service", &[("name", "Asha")]).await;
    let issue = pb::IssueApiKeyRequest { key: by_id("p-1"), label: "printer".into(), ..Default::default() };
    let issued = t.credentials().issue_api_key(with(&t.key, issue)).await.expect("issue").into_inner();
    assert!(issued.text.starts_with("jina_"), "the prefix of the file");
    let check = pb::VerifyApiKeyRequest { text: issued.text.clone(), ..Default::default() };
    let verdict = t.credentials().verify_api_key(with(&t.key, check)).await.expect("verify").into_inner().verdict;
    assert_eq!(verdict, pb::Verdict::Ok as i32);
    let secret: Vec<&str> = issued.text.split('_').collect();
    t.is_in_no_file(&[issued.text.as_str(), secret[3]]);
    t.reports(&[("7", "keys_hashed", Held)]).await;
    let evidence = t.evidence("7", "keys_hashed").await;
    assert!(evidence.contains("1 of 1 API keys"), "{evidence}");
    // They belong to the class that the file says, and go with it.
    t.erase("p-1").await;
    let check = pb::VerifyApiKeyRequest { text: issued.text, ..Default::default() };
    let verdict = t.credentials().verify_api_key(with(&t.key, check)).await.expect("verify").into_inner().verdict;
    assert_ne!(verdict, pb::Verdict::Ok as i32);
}

async fn jc15_roles_see_what_they_need(t: &Tenant) {
    t.reports(&[("7", "restricted", Held)]).await;
    t.role(
        "app",
        &[
            "read write delete find | for service authentication transactional_email | fields name email phone organisation ip user_agent",
            "verify credential",
            "read write delete | for delivery | fields phone message call_transcript delivery_event",
            "write | for service | fields api_call delivery_event",
            "subject group",
        ],
    )
    .await;
    t.role("billing", &["read write | for payments | fields name email organisation payment_method invoice"]).await;
    let support = "read find | for support | fields name email phone organisation | masked";
    t.role("support", &[support, "subject request"]).await;
    let dpo = "read write find export | for legal_obligation legal_request protect_rights | fields *";
    t.role("dpo", &[dpo, "erase hold release subject request approve audit"]).await;
    t.role("admin", &["subject group approve audit access policy operate"]).await;
    let analyst = "read | for analytics | fields message call_transcript api_call delivery_event";
    t.role("analyst", &[analyst]).await;
    // And one of them tries.
    t.put("p-1", "service", &[("name", "Asha"), ("email", "asha@example.com")]).await;
    let support = t.key_of("support").await;
    let shown = t.read_as(&support, "p-1", "email", "support").await.expect("masked");
    assert!(shown.contains('*') && !shown.contains("asha@"), "{shown}");
    for (field, purpose) in [("email", "service"), ("ip", "service"), ("email", "legal_obligation")] {
        assert!(t.read_as(&support, "p-1", field, purpose).await.is_err(), "{field} for {purpose}");
    }
}

async fn jc16_data_stays_while_the_account_is_active(t: &Tenant) {
    t.reports(&[("8", "retention * = active", Held)]).await;
    t.put("p-1", "service", &[("name", "Asha")]).await;
    t.put("p-2", "service", &[("name", "Ravi")]).await;
    t.days(3_000);
    t.due().await;
    assert_eq!(t.text_of("p-1", "name", "service").await, Ok("Asha".into()), "active for years");
    let close = pb::CloseSubjectRequest { subject: "p-1".into(), ..Default::default() };
    t.subjects().close_subject(with(&t.key, close)).await.expect("close");
    assert_eq!(t.put_text("p-1", "service", NAME, "Other").await, Err("SUBJECT_CLOSED".into()));
    t.erase("p-1").await;
    assert_eq!(t.text_of("p-1", "name", "service").await, Err("SUBJECT_ERASED".into()));
    assert_eq!(t.text_of("p-2", "name", "service").await, Ok("Ravi".into()));
    // A class without a stated retention would be another one than this.
    let missing = t.lint_with("retention = \"none\" # as long as the account is active\n", "").await;
    assert_eq!(missing.iter().filter(|rule| *rule == "retention-missing").count(), 2);
}

async fn jc17_messages_are_kept_90_days_unless_the_plan_says_otherwise(t: &Tenant) {
    t.reports(&[
        ("8", "retention usage_data, content = 90d", Held),
        ("8", "retention_by_plan usage_data, content", Held),
    ])
    .await;
    t.class("3 content kept 90d at most 2y").await;
    let group = async |id: &str, plan_id: u32, overrides: &[(u32, u32)]| {
        let retention =
            overrides.iter().map(|(class_id, days)| pb::RetentionOverride { class_id: *class_id, days: *days });
        let group = pb::Group { group: id.into(), plan_id, retention: retention.collect(), ..Default::default() };
        let request = pb::CreateGroupRequest { group: Some(group), ..Default::default() };
        t.subjects().create_group(with(&t.key, request)).await.map(|_| ())
    };
    let plans: Vec<String> = t.schema().await.plans.iter().map(|p| format!("{} {}", p.id, p.name)).collect();
    assert_eq!(plans, ["1 standard", "2 enterprise"]);
    assert!(group("standard", 1, &[(3, 365)]).await.is_err(), "another plan");
    assert!(group("long", 2, &[(3, 800)]).await.is_err() && group("long", 2, &[(4, 800)]).await.is_err(), "too long");
    group("short", 2, &[(3, 1), (4, 1)]).await.expect("a day");
    group("big", 2, &[(3, 365), (4, 365)]).await.expect("within the bounds");
    let put = pb::PutFieldsRequest {
        subject: "big-1".into(),
        group: "big".into(),
        values: vec![text_value(NAME, "Big")],
        context: Some(t.context("service", "")),
        ..Default::default()
    };
    t.records().put_fields(with(&t.key, put)).await.expect("put");
    t.put("p-1", "service", &[("name", "Asha")]).await;
    for who in ["p-1", "big-1"] {
        t.append(who, "delivery", "message", "on its way").await;
        t.append(who, "service", "api_call", "POST").await;
    }
    let count =
        async |who: &str| (t.count(who, "message", "delivery").await, t.count(who, "api_call", "analytics").await);
    t.days(89);
    assert_eq!((count("p-1").await, count("big-1").await), ((Ok(1), Ok(1)), (Ok(1), Ok(1))), "89 days");
    t.days(1);
    assert_eq!((count("p-1").await, count("big-1").await), ((Ok(0), Ok(0)), (Ok(1), Ok(1))), "90 days");
    t.days(1);
    t.due().await;
    assert_eq!((count("p-1").await, count("big-1").await), ((Ok(0), Ok(0)), (Ok(1), Ok(1))), "91 days");
    t.days(275);
    assert_eq!(count("big-1").await, (Ok(0), Ok(0)), "a year and a day");
    // What the text promises bounds the class, whoever edits it.
    for class in ["name = \"content\"\ntitle = \"Messages and calls\"\n", "name = \"usage\"\ntitle = \"Logs\"\n"] {
        let rules = t.lint_with(&format!("{class}retention = \"90d\""), &format!("{class}retention = \"91d\"")).await;
        assert!(rules.contains(&"retention-longer-than-promised".into()), "{class}");
    }
    t.reports(&[("8", "retention usage_data, content = 90d", Held)]).await;
}

async fn jc18_billing_records_stay_seven_years_alone(t: &Tenant) {
    t.reports(&[("8", "retention billing_information = 7y", Held)]).await;
    t.class("2 billing kept 7y hold tax-law-in 7y for legal_obligation").await;
    let longer = t.lint_with(
        "name = \"billing\"\ntitle = \"Billing records\"\nretention = \"7y\"",
        "name = \"billing\"\nretention = \"8y\"",
    );
    assert!(longer.await.contains(&"retention-longer-than-promised".into()));
    t.keeps_for_seven_years("billing", "invoice", "payments", "Indian tax law", ("name", "service")).await;
}

async fn jc19_a_person_gets_everything_as_json_and_csv(t: &Tenant) {
    t.reports(&[("9", "rights access", Held)]).await;
    t.is_due("access", "", Some(30 * DAY)).await;
    t.exports(
        &[
            ("service", "name", "Asha"),
            ("service", "email", "asha@example.com"),
            ("delivery", "message", "on its way"),
            ("payments", "invoice", "invoice 17"),
            ("service", "user_agent", "Firefox"),
        ],
        &["JINA CODE SYSTEMS", "privacy@jinacode.systems", "Data Protection Board of India"],
    )
    .await;
}

async fn jc20_a_corrected_value_can_be_shredded(t: &Tenant) {
    t.reports(&[("9", "rights correct", Held)]).await;
    t.is_due("correct", "", Some(30 * DAY)).await;
    t.put("p-1", "service", &[("name", "Asha"), ("organisation", "Acme")]).await;
    let put = pb::PutFieldsRequest {
        subject: "p-1".into(),
        values: vec![text_value(NAME, "Asha Rao")],
        context: Some(t.context("service", "")),
        erase_former: true,
        ..Default::default()
    };
    let answer = t.records().put_fields(with(&t.key, put)).await.expect("put").into_inner();
    assert!(!answer.erasure.is_empty(), "the former value was erased");
    assert_eq!(t.text_of("p-1", "name", "service").await, Ok("Asha Rao".into()));
    assert_eq!(t.text_of("p-1", "organisation", "service").await, Ok("Acme".into()));
}

async fn jc21_an_erasure_answers_a_receipt_that_verifies_offline(t: &Tenant) {
    t.reports(&[("9", "rights erase", Held), ("9", "deletion = law", Held)]).await;
    t.is_due("erase", "", Some(30 * DAY)).await;
    t.put("p-1", "service", &[("name", "Asha")]).await;
    t.append("p-1", "payments", "invoice", "invoice 17").await;
    let receipt = t.receipt("p-1").await;
    assert_eq!(receipt.erased.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["account"]);
    assert_eq!(receipt.held.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["billing"]);
    assert!(receipt.held[0].basis.contains("Indian tax law") && receipt.held[0].until.is_some(), "why, and until when");
}

async fn jc22_a_nominee_asks_in_a_persons_place(t: &Tenant) {
    t.reports(&[("9", "rights nominate", Held)]).await;
    t.is_due("nominate", "", Some(30 * DAY)).await;
    for subject in ["p-1", "p-2", "p-3"] {
        t.put(subject, "service", &[("name", "Asha")]).await;
    }
    let not_permitted = (Code::PermissionDenied, "NOT_PERMITTED".to_owned());
    for kind in ["access", "correct", "erase", "grievance"] {
        assert_eq!(refused(&t.ask_as("p-1", "p-2", kind).await.unwrap_err()), not_permitted, "nobody was named");
        t.nominate("p-1", "p-2", &[kind], None).await.unwrap_or_else(|e| panic!("{kind}: {e:?}"));
        let asked = t.ask_as("p-1", "p-2", kind).await.unwrap_or_else(|e| panic!("{kind}: {e:?}"));
        assert!(asked.nominee_uid > 0 && asked.nominee_uid != asked.subject_uid, "both are on record");
    }
    // Only what was named counts, for who was named, until the end; and only what the policy lets nominees do.
    for (who, kind) in [("p-2", "access"), ("p-3", "grievance"), ("nobody", "grievance")] {
        assert_eq!(refused(&t.ask_as("p-1", who, kind).await.unwrap_err()), not_permitted, "{who} {kind}");
    }
    assert_eq!(t.nominate("p-1", "p-3", &["portability"], None).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(t.nominate("p-1", "p-1", &["access"], None).await.unwrap_err().code(), Code::InvalidArgument);
    t.nominate("p-1", "p-3", &["access"], Some(START.plus_days(10))).await.expect("for ten days");
    t.ask_as("p-1", "p-3", "access").await.expect("within them");
    let nominees = t.decided("p-1").await.nominees;
    assert_eq!(nominees.iter().map(|n| n.active).collect::<Vec<_>>(), [true, true]);
    let uids: Vec<i64> = nominees.iter().map(|n| n.subject_uid).collect();
    t.days(10);
    assert_eq!(refused(&t.ask_as("p-1", "p-3", "access").await.unwrap_err()), not_permitted, "over");
    let remove = pb::RemoveNomineeRequest { key: by_id("p-1"), nominee: by_id("p-2"), ..Default::default() };
    t.rights().remove_nominee(with(&t.key, remove)).await.expect("taken back");
    assert_eq!(refused(&t.ask_as("p-1", "p-2", "grievance").await.unwrap_err()), not_permitted);
    // The audit has the person and the nominee of each.
    let list = pb::ListEntriesRequest { actions: vec!["nominee.acted".into()], ..Default::default() };
    let acted = t.audit().list_entries(with(&t.key, list)).await.expect("audit").into_inner().entries;
    let by: Vec<i64> = acted.iter().map(|entry| entry.subject_uid).collect();
    assert_eq!(by, [uids[0], uids[0], uids[0], uids[0], uids[1]]);
    let opened = pb::ListEntriesRequest { actions: vec!["request.opened".into()], ..Default::default() };
    let opened = t.audit().list_entries(with(&t.key, opened)).await.expect("audit").into_inner().entries;
    assert!(acted.iter().all(|one| opened.iter().any(|o| o.object == one.object && o.subject_uid != one.subject_uid)));
}

async fn jc23_grievances_have_a_clock(t: &Tenant) {
    t.reports(&[("9", "rights grievance", Held)]).await;
    t.is_overdue("grievance", 30 * DAY).await;
    t.reports(&[("9", "rights grievance", Broken)]).await;
    let evidence = t.evidence("9", "rights grievance").await;
    assert!(evidence.contains("1 overdue"), "{evidence}");
}

async fn jc24_the_file_names_who_answers(t: &Tenant) {
    t.reports(&[("1", "controller = JINA CODE SYSTEMS", Held), ("10", "self_hosted", Held)]).await;
    t.put("p-1", "service", &[("name", "Asha")]).await;
    assert_eq!(t.receipt("p-1").await.controller, "JINA CODE SYSTEMS");
    let report = t.report().await;
    assert_eq!(report.policy_title.as_deref(), Some("Privacy Policy of Jina Connect"));
    assert_eq!(report.policy_url.as_deref(), Some("https://jinaconnect.jinacode.systems"));
    assert_eq!(report.authority.as_deref(), Some("Data Protection Board of India"));
    assert!(
        t.lint_with("name = \"JINA CODE SYSTEMS\"", "name = \"Somebody Else Ltd\"")
            .await
            .contains(&"rule-missing".into())
    );
}

async fn jc25_a_change_is_announced_fifteen_days_before(t: &Tenant) {
    t.reports(&[("12", "notice = 15d", Held)]).await;
    t.announces(15).await;
}
