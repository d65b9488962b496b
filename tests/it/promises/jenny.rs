//! jenny-erp: an ERP for textile companies, from Italy.

use pii_vault::grpc::pb;
use pii_vault::report::Status::{Broken, CanClaim, Held, Outside, Unchecked, Waits};
use tonic::Code;

use crate::company::*;
use crate::harness::{PATIENCE, START};
use crate::net::*;

super::promises!("jenny-erp":
    je01_passwords_are_hashed_and_the_report_says_how
    je02_partners_of_customers_are_theirs_alone
    je03_usage_leaves_in_groups_of_twenty
    je04_no_text_field_takes_a_card_number
    je05_recipients_have_a_region_and_a_basis
    je06_the_image_search_gets_no_plain_and_no_masked_value
    je07_nothing_is_for_sale_or_advertising
    je08_a_person_gets_everything_as_json_and_csv
    je09_any_field_can_be_corrected
    je10_a_text_that_promises_deletion_of_everything_is_contradicted
    je11_an_objection_counts_from_the_next_read
    je12_an_authority_is_named
    je13_thirty_days_of_grace_with_a_way_back
    je14_backups_go_after_90_days
    je15_invoices_stay_seven_years_alone
    je16_only_tls_carries_values_and_nothing_is_stored_in_clear
    je17_the_tenant_is_where_the_node_is
    je18_roles_see_what_they_need
    je19_audits_by_others_are_outside
    je20_a_breach_is_answered_within_24_hours_with_what_a_key_read
    je21_data_crosses_borders_on_standard_clauses_only
    je22_nobody_under_16
    je23_a_change_is_announced_thirty_days_before
    je24_a_contact_is_named_and_the_agreement_can_be_asked_for
    je25_there_are_five_purposes_and_marketing_is_none
    je26_requests_have_the_clocks_of_gdpr_and_ccpa
);

const RECIPIENTS: [(&str, &str); 5] = [
    ("stripe", "payments: name email company"),
    ("aliyun", "service: fabric_sample"),
    ("netease", "transactional_email: name email"),
    ("sendgrid", "transactional_email: name email"),
    ("jenny_ai", ""),
];

async fn je01_passwords_are_hashed_and_the_report_says_how(t: &Tenant) {
    t.reports(&[("1", "passwords = hashed", Unchecked), ("6", "passwords = bcrypt", Unchecked)]).await;
    t.put("p-1", "service", &[("name", "Lucia")]).await;
    t.put("p-2", "service", &[("name", "Anna")]).await;
    let secret = "correct horse battery staple";
    let hash = "$2b$04$abcdefghijklmnopqrstuu7EJV7kdjBBQxyb0HjTh9KS7.Lah/6CG";
    let import = pb::ImportPasswordRequest { key: by_id("p-1"), hash: hash.into(), ..Default::default() };
    t.credentials().import_password(with(&t.key, import)).await.expect("import");
    t.reports(&[("1", "passwords = hashed", Held), ("6", "passwords = bcrypt", CanClaim)]).await;
    let set =
        pb::SetPasswordRequest { key: by_id("p-2"), password: secret.as_bytes().to_vec().into(), ..Default::default() };
    t.credentials().set_password(with(&t.key, set)).await.expect("set");
    t.reports(&[("1", "passwords = hashed", Held), ("6", "passwords = bcrypt", CanClaim)]).await;
    let evidence = t.evidence("6", "passwords = bcrypt").await;
    assert!(evidence.contains("1 argon2id, 1 bcrypt"), "{evidence}");
    t.is_in_no_file(&[secret, hash]);
    assert!(t.report().await.can_claim.iter().any(|claim| claim.contains("Argon2id")));
}

async fn je02_partners_of_customers_are_theirs_alone(t: &Tenant) {
    t.reports(&[("1", "collects business_data, invoices", Held), ("1", "collects account_info", Held)]).await;
    t.class("2 business grace 30d").await;
    t.fields("business", &["4 partner text 4000", "5 fabric_sample text 4000 many", "6 order text 8192 many"]).await;
    let account = [
        "1 name text 200 name maskable",
        "2 email text 254 email searchable unique maskable",
        "3 company text 200 searchable maskable",
        "10 date_of_birth date",
        "11 old_enough flag",
    ];
    t.fields("account", &account).await;
    t.put("p-1", "service", &[("partner", "Filatura Esempio, Prato")]).await;
    let other = t.running.test.tenant("other", &t.text).await;
    let stranger = t.running.key(other, "stranger").await;
    let request =
        pb::GetFieldsRequest { key: by_id("p-1"), context: Some(t.context("service", "")), ..Default::default() };
    let foreign = t.records().get_fields(with(&stranger, request)).await.unwrap_err();
    assert_eq!(foreign.code(), Code::NotFound, "another tenant's, and nobody");
    assert_eq!(t.text_of("p-1", "partner", "service").await, Ok("Filatura Esempio, Prato".into()));
    for field in [1, 4] {
        assert_eq!(t.put_text("p-1", "service", field, &"a\n".repeat(4_001)).await, Err("VALUE_INVALID".into()));
    }
}

async fn je03_usage_leaves_in_groups_of_twenty(t: &Tenant) {
    t.reports(&[
        ("1", "collects usage_data", Held),
        ("1", "aggregated improvement", Held),
        ("2", "aggregated improvement", Held),
    ])
    .await;
    t.fields("usage", &["8 usage_event text 1024 many", "9 device_kind text 40"]).await;
    t.class("3 usage grace 30d").await;
    for n in 0..58 {
        let kind = ["phone", "tablet", "computer"][if n < 20 { 0 } else { n % 2 + 1 }];
        t.put(&format!("p-{n}"), "service", &[("device_kind", kind)]).await;
    }
    let counts = t.aggregate("device_kind", "improvement").await.expect("counts");
    assert_eq!(counts.threshold, 20);
    let told: Vec<_> = counts.cells.iter().map(|c| (c.value.clone().and_then(|v| v.kind), c.count)).collect();
    assert_eq!(told, [(Some(pb::value::Kind::Text("phone".into())), 20)], "19 tablets and 19 computers are not told");
    assert_eq!(t.aggregate("company", "improvement").await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(t.aggregate("device_kind", "service").await.unwrap_err().code(), Code::PermissionDenied);
}

async fn je04_no_text_field_takes_a_card_number(t: &Tenant) {
    t.reports(&[("1", "no_cards", Held), ("3", "shares with stripe", Held)]).await;
    t.takes_no_cards(&[
        ("account", "service"),
        ("business", "service"),
        ("usage", "service"),
        ("invoices", "payments"),
    ])
    .await;
}

async fn je05_recipients_have_a_region_and_a_basis(t: &Tenant) {
    t.reports(&[
        ("3", "shares fabric_sample with aliyun", Held),
        ("3", "shares with netease", Held),
        ("3", "shares with sendgrid", Held),
        ("2", "channel email", Held),
    ])
    .await;
    t.given(&RECIPIENTS).await;
    for (says, place) in [
        ("shares with stripe", "; in ie;"),
        ("shares fabric_sample with aliyun", "; in eu-central-1;"),
        ("shares with netease", "; in cn by scc;"),
        ("shares with sendgrid", "; in us by scc;"),
        ("shares with jenny_ai", "; in eu-central-1"),
    ] {
        let evidence = t.evidence("3", says).await;
        assert!(evidence.contains(place), "{says}: {evidence}");
    }
    t.put("p-1", "service", &[("name", "Lucia"), ("email", "lucia@example.com")]).await;
    t.read("p-1", &["email"], t.context("transactional_email", "sendgrid")).await.expect("standard clauses");
    t.read("p-1", &["email"], t.context("payments", "stripe")).await.expect("inside");
    // A file in which a basis is missing is refused as a whole; without a channel's carrier the linter warns.
    for dpa in ["SendGrid", "NetEase"] {
        let line = format!("dpa = \"DPA {dpa} 2026\"\ndpa_expires = 2027-12-31\n");
        assert!(t.text.contains(&line));
        let rules = t.lint_with(&format!("{line}transfer = \"scc\"\n"), &line).await;
        assert!(rules.contains(&"recipient-without-transfer".into()), "{dpa}");
    }
    assert_eq!(t.text.matches("channels = [\"email\"]").count(), 2, "two carry mail");
    t.days(717);
    t.given(&RECIPIENTS.map(|(name, given)| (name, if name == "stripe" { given } else { "" }))).await;
    for who in
        ["shares fabric_sample with aliyun", "shares with netease", "shares with sendgrid", "shares with jenny_ai"]
    {
        t.reports(&[("3", who, Broken)]).await;
    }
    for dpa in ["Aliyun", "NetEase", "SendGrid", "jenny-ai"] {
        let rules = t.lint_with(&format!("dpa = \"DPA {dpa} 2026\"\n"), "").await;
        assert!(rules.contains(&"recipient-without-dpa".into()), "{dpa}");
    }
}

/// Waits for tokens; until then the refusal is what keeps it.
async fn je06_the_image_search_gets_no_plain_and_no_masked_value(t: &Tenant) {
    t.reports(&[("3", "shares with jenny_ai", Waits), ("3", "without_identity", Waits)]).await;
    t.put("p-1", "service", &[("name", "Lucia")]).await;
    t.append("p-1", "service", "fabric_sample", "twill").await;
    let evidence = t.evidence("3", "shares with jenny_ai").await;
    assert!(evidence.contains("fabric_sample for `service`"), "{evidence}");
    let refusal = t.items("p-1", "fabric_sample", t.context("service", "jenny_ai")).await.unwrap_err();
    assert_eq!(refused(&refusal), (Code::PermissionDenied, "VIEW_NOT_GRANTED".into()));
    for view in [pb::View::Plain, pb::View::Masked] {
        let request = pb::ListItemsRequest {
            key: by_id("p-1"),
            field_id: t.field("fabric_sample"),
            context: Some(t.context("service", "jenny_ai")),
            view: view as i32,
            ..Default::default()
        };
        let refusal = t.records().list_items(with(&t.key, request)).await.unwrap_err();
        assert_eq!(refusal.code(), Code::PermissionDenied, "{view:?}");
    }
    t.items("p-1", "fabric_sample", t.context("service", "aliyun")).await.expect("who keeps the photos");
}

async fn je07_nothing_is_for_sale_or_advertising(t: &Tenant) {
    t.reports(&[("3", "never sale, advertising", Held), ("1", "trackers", Outside), ("8", "trackers", Outside)]).await;
    t.forbids(&["sale", "advertising"]).await;
}

async fn je08_a_person_gets_everything_as_json_and_csv(t: &Tenant) {
    t.reports(&[("4", "rights access", Held), ("4", "rights portability", Held)]).await;
    t.exports(
        &[
            ("service", "name", "Lucia"),
            ("service", "partner", "Filatura Esempio"),
            ("service", "order", "twill-310"),
            ("payments", "invoice", "F-2026-17"),
            ("service", "device_kind", "tablet"),
            ("service", "usage_event", "opened the list"),
        ],
        &["JennyERP Inc.", "contact@jennycrm.com", "4 Via Alessandro Ferrarini, 59100 Prato, Italy"],
    )
    .await;
}

async fn je09_any_field_can_be_corrected(t: &Tenant) {
    t.reports(&[("4", "rights correct", Held)]).await;
    for (field, purpose) in
        [("name", "service"), ("company", "payments"), ("partner", "service"), ("device_kind", "service")]
    {
        t.put("p-1", purpose, &[(field, "Before")]).await;
        t.put("p-1", purpose, &[(field, "After")]).await;
        assert_eq!(t.text_of("p-1", field, "legal_obligation").await, Ok("After".into()), "{field}");
    }
}

async fn je10_a_text_that_promises_deletion_of_everything_is_contradicted(t: &Tenant) {
    t.reports(&[("4", "rights erase", Held), ("4", "deletion = anytime", Broken)]).await;
    let evidence = t.evidence("4", "deletion = anytime").await;
    assert_eq!(evidence.matches("deletion-contradicted").count(), 3, "grace, backups, invoices: {evidence}");
    t.put("p-1", "service", &[("name", "Lucia")]).await;
    t.append("p-1", "payments", "invoice", "F-2026-17").await;
    let receipt = t.receipt("p-1").await;
    assert_eq!(receipt.held.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["invoices"], "the exception is told");
}

async fn je11_an_objection_counts_from_the_next_read(t: &Tenant) {
    t.reports(&[("4", "rights object", Held), ("4", "objection analytics, marketing", Broken)]).await;
    let evidence = t.evidence("4", "objection analytics, marketing").await;
    assert!(evidence.contains("`improvement` of who objected is refused"), "{evidence}");
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
}

async fn je12_an_authority_is_named(t: &Tenant) {
    t.reports(&[("4", "complaint", Held)]).await;
    let authority = "Garante per la protezione dei dati personali";
    assert_eq!(t.report().await.authority.as_deref(), Some(authority));
    t.put("p-1", "service", &[("name", "Lucia")]).await;
    assert!(t.export("p-1", "legal_obligation", pb::ExportFormat::Json).await.contains(authority));
}

async fn je13_thirty_days_of_grace_with_a_way_back(t: &Tenant) {
    t.reports(&[("5", "grace = 30d", Held), ("5", "retention account_info, business_data, usage_data = active", Held)])
        .await;
    t.class("1 account grace 30d").await;
    let schedule = async |subject: &str| {
        t.put(subject, "service", &[("name", "Lucia"), ("partner", "Filatura"), ("device_kind", "phone")]).await;
        let target = by_id(subject).map(pb::schedule_erasure_request::Target::Key);
        let request = pb::ScheduleErasureRequest { target, ..Default::default() };
        t.erasures().schedule_erasure(with(&t.key, request)).await.expect("schedule").into_inner().erasure.unwrap()
    };
    let back = schedule("back").await;
    schedule("gone").await;
    assert!(t.text_of("back", "name", "service").await.is_err(), "frozen meanwhile");
    t.days(29);
    t.due().await;
    let cancel = pb::CancelErasureRequest { erasure: back.erasure.clone(), ..Default::default() };
    t.erasures().cancel_erasure(with(&t.key, cancel)).await.expect("day 29 is not too late");
    t.days(2);
    t.due().await;
    for field in ["name", "partner", "device_kind"] {
        assert!(t.text_of("back", field, "service").await.is_ok(), "{field}: reactivated");
        assert_eq!(t.text_of("gone", field, "service").await, Err("SUBJECT_ERASED".into()), "{field}");
    }
    // Three classes say that they have no end; none is left without a word.
    let missing = |rules: Vec<String>| rules.iter().filter(|rule| *rule == "retention-missing").count();
    assert_eq!(missing(t.lint(&t.text).await), 0);
    assert_eq!(t.text.matches("retention = \"none\"").count(), 3);
}

async fn je14_backups_go_after_90_days(t: &Tenant) {
    t.reports(&[("5", "backups = 90d", Held)]).await;
    let evidence = t.evidence("5", "backups = 90d").await;
    assert!(evidence.contains("0 archives in the catalogue") && !evidence.contains("backups-differ"), "{evidence}");
    t.put("p-1", "service", &[("name", "Lucia")]).await;
    t.running.test.node.backups.nightly().await.unwrap();
    let begun = std::time::Instant::now();
    while !t.evidence("5", "backups = 90d").await.contains("1 archives in the catalogue") {
        assert!(begun.elapsed() < PATIENCE, "the backup does not end");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    t.days(89);
    t.reports(&[("5", "backups = 90d", Held)]).await;
    // Nobody makes or deletes archives meanwhile: the oldest is too old, and the report says since when.
    t.days(2);
    t.reports(&[("5", "backups = 90d", Broken)]).await;
    assert!(t.lint_with("data = \"90d\"", "data = \"91d\"").await.contains(&"backups-differ".into()));
    assert!(t.lint_with("horizon = \"30d\"", "horizon = \"91d\"").await.contains(&"backups-differ".into()));
}

async fn je15_invoices_stay_seven_years_alone(t: &Tenant) {
    t.reports(&[("5", "retention invoices = 7y", Held)]).await;
    t.class("4 invoices kept 7y hold tax-law-it 7y for legal_obligation").await;
    t.fields("invoices", &["7 invoice text 8192 many"]).await;
    let longer =
        t.lint_with("name = \"invoices\"\nretention = \"7y\"", "name = \"invoices\"\nretention = \"8y\"").await;
    assert!(longer.contains(&"retention-longer-than-promised".into()));
    t.keeps_for_seven_years("invoices", "invoice", "payments", "Tax law", ("name", "service")).await;
}

async fn je16_only_tls_carries_values_and_nothing_is_stored_in_clear(t: &Tenant) {
    t.reports(&[("6", "in_transit = tls1.2", Broken)]).await;
    t.put("p-canary-17", "service", &[("name", "Canary Nightingale"), ("partner", "the canary sings")]).await;
    t.is_in_no_file(&["p-canary-17", "Canary Nightingale", "the canary sings"]);
    t.reports(&[("6", "at_rest = aes-256", Held)]).await;
    t.reports_over_tls(("6", "in_transit = tls1.2", Held)).await;
}

async fn je17_the_tenant_is_where_the_node_is(t: &Tenant) {
    t.reports(&[("6", "region = eu-central-1", Held), ("7", "region = eu-central-1", Held)]).await;
    assert!(t.evidence("6", "region = eu-central-1").await.contains("says to be in eu-central-1"));
    assert_eq!(t.schema().await.region, "eu-central-1");
    // A file that moves the data elsewhere than the text says is called so, and a node elsewhere refuses it.
    let moved = t.text.replacen("region = \"eu-central-1\" # section 6", "region = \"us\" # section 6", 1);
    assert!(t.lint(&moved).await.contains(&"place-differs".into()));
}

async fn je18_roles_see_what_they_need(t: &Tenant) {
    t.reports(&[("6", "restricted", Held)]).await;
    let app = "read write delete find | for service transactional_email | fields name email company partner \
               fabric_sample order date_of_birth old_enough";
    t.role("app", &[app, "write | for service | fields usage_event device_kind", "subject group", "verify credential"])
        .await;
    t.role("billing", &["read write | for payments | fields name email company invoice date_of_birth old_enough"])
        .await;
    let support = "read find | for service | fields name email company date_of_birth old_enough | masked";
    t.role("support", &[support, "subject request"]).await;
    let dpo = "read write find export | for legal_obligation | fields *";
    t.role("dpo", &[dpo, "erase hold release subject request approve audit"]).await;
    t.role("admin", &["subject group approve audit access policy operate"]).await;
    t.put("p-1", "service", &[("email", "lucia@example.com"), ("partner", "Filatura")]).await;
    let support = t.key_of("support").await;
    let shown = t.read_as(&support, "p-1", "email", "service").await.expect("masked");
    assert!(shown.contains('*') && !shown.contains("lucia@"), "{shown}");
    for (field, purpose) in [("partner", "service"), ("email", "payments"), ("email", "legal_obligation")] {
        assert!(t.read_as(&support, "p-1", field, purpose).await.is_err(), "{field} for {purpose}");
    }
}

/// Audits and penetration tests are made by others: the vault has no evidence of them and says so.
async fn je19_audits_by_others_are_outside(t: &Tenant) {
    t.reports(&[("6", "audited = 1y", Outside), ("1", "cookies", Outside), ("8", "cookies", Outside)]).await;
    // What the auditor gets: it verifies on his machine, and is about this company.
    t.put("p-1", "service", &[("name", "Lucia")]).await;
    t.erase("p-1").await;
    let (files, verdict) = t.bundle().await;
    assert_eq!((verdict.about.tenant.as_str(), verdict.about.operator), ("jenny-erp", false));
    for part in
        ["policies", "report", "receipts", "inventory of keys", "checkpoints of changes", "software", "settings"]
    {
        let found = verdict.checked.iter().find(|one| one.what == part).unwrap_or_else(|| panic!("{part}"));
        assert!(found.count > 0, "{part}: {}", found.how);
    }
    let page = String::from_utf8(files[pii_vault::evidence::PAGE].clone()).unwrap();
    assert!(page.contains("JennyERP Inc.") && page.contains("audited = 1y") && !page.contains("Lucia"), "{page}");
}

async fn je20_a_breach_is_answered_within_24_hours_with_what_a_key_read(t: &Tenant) {
    t.reports(&[("6", "answered incident = 24h", Held)]).await;
    t.put("p-1", "service", &[("name", "Lucia"), ("email", "lucia@example.com")]).await;
    t.put("p-2", "service", &[("name", "Anna")]).await;
    let stolen = t.key_of("support").await;
    t.read_as(&stolen, "p-1", "email", "service").await.expect("what the thief read");
    let request = pb::ListEntriesRequest { chain: pb::AuditChain::Reads as i32, ..Default::default() };
    let read = t.audit().list_entries(with(&t.key, request)).await.expect("audit").into_inner().entries;
    let thief = read.iter().find(|entry| !entry.field_ids.is_empty()).expect("a read").actor_id;
    let by_actor = pb::ListEntriesRequest {
        chain: pb::AuditChain::Reads as i32,
        actor_ids: vec![thief],
        start_time: seconds(START.plus_ms(-HOUR)),
        end_time: seconds(START.plus_ms(HOUR)),
        ..Default::default()
    };
    let read = t.audit().list_entries(with(&t.key, by_actor)).await.expect("audit").into_inner().entries;
    let what: Vec<_> = read.iter().map(|entry| (entry.subject_uid > 0, entry.field_ids.clone())).collect();
    assert_eq!(what, [(true, vec![t.field("email")])], "one field of one of two people");
    t.is_overdue("incident", 24 * HOUR).await;
    t.reports(&[("6", "answered incident = 24h", Broken)]).await;
    // An auditor reads in the bundle that nobody answered.
    let (files, _) = t.bundle().await;
    let page = String::from_utf8(files[pii_vault::evidence::PAGE].clone()).unwrap();
    assert!(page.contains("Overdue: 1 of kind incident"), "{page}");
}

async fn je21_data_crosses_borders_on_standard_clauses_only(t: &Tenant) {
    // Recipients are; where a group of customers is waits to be looked at.
    t.reports(&[("7", "transfer = scc", Waits)]).await;
    let evidence = t.evidence("7", "transfer = scc").await;
    assert!(evidence.contains("netease in cn by scc") && !evidence.contains("rule-missing"), "{evidence}");
    // A recipient in any region that counts as inside needs no basis.
    for region in ["eu", "it", "ie", "eu-central-1"] {
        let rules = t.lint_with("region = \"ie\"", &format!("region = \"{region}\"")).await;
        assert!(!rules.contains(&"recipient-without-transfer".into()), "{region}");
    }
    assert!(t.lint_with("region = \"ie\"", "region = \"us\"").await.contains(&"recipient-without-transfer".into()));
    t.given(&RECIPIENTS).await;
}

async fn je22_nobody_under_16(t: &Tenant) {
    t.reports(&[("9", "age = 16", Held), ("9", "age = minors", Broken)]).await;
    assert!(t.evidence("9", "age = minors").await.contains("age-differs"));
    t.is_for_people_of(16, "service").await;
}

async fn je23_a_change_is_announced_thirty_days_before(t: &Tenant) {
    t.reports(&[("10", "notice = 30d", Held)]).await;
    t.announces(30).await;
}

async fn je24_a_contact_is_named_and_the_agreement_can_be_asked_for(t: &Tenant) {
    t.reports(&[("11", "controller = JennyERP Inc.", Held), ("11", "officer", Held), ("11", "rights dpa", Held)]).await;
    t.is_due("dpa", "", Some(31 * DAY)).await;
    t.put("p-1", "service", &[("name", "Lucia")]).await;
    let export = t.export("p-1", "legal_obligation", pb::ExportFormat::Json).await;
    assert!(export.contains("\"officer\":\"contact@jennycrm.com\""), "{export}");
    let report = t.report().await;
    assert_eq!(
        (report.policy_title.as_deref(), report.contact.as_str()),
        (Some("Privacy Policy of JennyERP"), "contact@jennycrm.com")
    );
    assert_eq!(t.receipt("p-1").await.controller, "JennyERP Inc.");
}

async fn je25_there_are_five_purposes_and_marketing_is_none(t: &Tenant) {
    t.purposes(&[
        (
            "1 service service contract",
            "name email company partner fabric_sample order usage_event device_kind date_of_birth old_enough",
        ),
        ("2 payments payment contract", "name email company invoice date_of_birth old_enough"),
        ("3 transactional_email messaging contract", "name email"),
        ("4 improvement analytics legitimate_interests", "usage_event device_kind"),
        ("5 legal_obligation legal legal_obligation", "*"),
    ])
    .await;
    t.reports(&[
        ("2", "uses service", Held),
        ("2", "uses payments", Held),
        ("2", "uses transactional_email", Held),
        ("2", "uses improvement", Held),
        ("2", "uses legal_obligation", Held),
    ])
    .await;
    assert_eq!(t.schema().await.purposes.len(), 5);
    assert!(t.lint(&t.text).await.contains(&"objection-without-purpose".into()), "marketing");
    let unknown = pb::AccessContext { purpose_id: 6, ..Default::default() };
    assert!(t.read("p-1", &["name"], unknown).await.is_err());
}

async fn je26_requests_have_the_clocks_of_gdpr_and_ccpa(t: &Tenant) {
    // A month from 15 January; 45 days in California.
    for kind in ["access", "correct", "erase", "restrict", "object", "portability", "dpa"] {
        t.is_due(kind, "", Some(31 * DAY)).await;
    }
    for kind in ["access", "correct", "erase", "portability"] {
        t.is_due(kind, "us-ca", Some(45 * DAY)).await;
    }
    t.is_due("grievance", "", None).await;
    t.is_due("object", "us-ca", Some(31 * DAY)).await;
    t.days(31);
    let mut late = t.overdue().await;
    late.sort();
    assert_eq!(late, ["access", "correct", "dpa", "erase", "object", "object", "portability", "restrict"]);
    t.reports(&[("4", "rights access", Broken)]).await;
}
