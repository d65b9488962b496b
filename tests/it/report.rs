//! The honesty report over a socket: what it says of the three texts, and that it says *broken* when something is.

use pii_vault::grpc::pb;
use pii_vault::report::{Promise, Report, Status};

use crate::company::{JENNY, JIWA, Tenant};
use crate::harness::JINA;
use crate::net::*;

fn of<'r>(report: &'r Report, claim: &str) -> Vec<&'r Promise> {
    report.promises.iter().filter(|promise| promise.claim == claim).collect()
}

#[tokio::test]
async fn each_text_gets_a_signed_report_with_evidence_and_nothing_left_out() {
    for (name, text) in [("jina", JINA), ("jiwa", JIWA), ("jenny", JENNY)] {
        let t = Tenant::of(name, text).await;
        let purpose = if name == "jiwa" { "sign_in" } else { "service" };
        t.put("p-1", purpose, &[("name", "Asha"), ("email", "asha@example.com")]).await;
        let report = t.report().await;
        assert_eq!(report.promises.len(), text.matches("[[claim]]").count(), "{name}");
        assert!(report.promises.iter().all(|promise| !promise.evidence.is_empty()), "{name}");
        assert!(report.count(Status::Held) > 10, "{name}: {}", report.markdown());
        for claim in ["cookies", "trackers", "open_source", "sessions"] {
            assert!(of(&report, claim).iter().all(|promise| promise.status == Status::Outside), "{name} {claim}");
        }
        for promise in of(&report, "no_cards") {
            assert_eq!(promise.status, Status::Held, "{name}: {:?}", promise.evidence);
        }
        for promise in of(&report, "in_transit") {
            assert_eq!(promise.status, Status::Broken, "{name}: these tests listen in plain text");
        }
        assert!(report.html().contains("<table>"));
        // Who looks after data protection may ask for it, and who runs the application may not.
        let (dpo, app) = (t.key_of("dpo").await, t.key_of("app").await);
        let ask = pb::GetReportRequest::default();
        t.policies().get_report(with(&dpo, ask.clone())).await.expect("the data protection officer");
        assert_eq!(reason(&t.policies().get_report(with(&app, ask)).await.unwrap_err()), "NOT_PERMITTED");
        t.stop().await;
    }
}

#[tokio::test]
async fn je10_a_text_that_contradicts_itself_is_called_broken() {
    let t = Tenant::of("jenny", JENNY).await;
    let report = t.report().await;
    let deletion = of(&report, "deletion");
    assert!(deletion.iter().any(|promise| promise.status == Status::Broken
        && promise.evidence.iter().any(|found| found.contains("deletion-contradicted"))));
    assert!(of(&report, "without_identity").iter().all(|promise| promise.status == Status::Waits), "JE06");
    t.stop().await;
}

#[tokio::test]
async fn jw12_jw21_what_is_kept_can_be_claimed_and_another_host_is_broken() {
    let t = Tenant::of("jiwa", JIWA).await;
    let report = t.report().await;
    assert!(
        report.can_claim.iter().any(|claim| claim.contains("AES-256-GCM") || claim.contains("encrypted")),
        "{:?}",
        report.can_claim
    );
    for promise in of(&report, "host") {
        assert_eq!(promise.status, Status::Broken, "{:?}", promise.evidence);
    }
    t.stop().await;
}

#[tokio::test]
async fn jw18_an_answer_that_is_late_breaks_the_promise() {
    let t = Tenant::of("jiwa", JIWA).await;
    let held = |report: &Report| of(report, "answered").iter().all(|promise| promise.status == Status::Held);
    assert!(!of(&t.report().await, "answered").is_empty() && held(&t.report().await));
    let mut rights = pb::rights_service_client::RightsServiceClient::new(t.running.channel.clone());
    let ask = pb::CreateRequestRequest { kind: "erase".into(), ..Default::default() };
    rights.create_request(with(&t.key, ask)).await.expect("request");
    t.running.test.clock.advance_days(29);
    assert!(held(&t.report().await));
    t.running.test.clock.advance_days(1);
    assert!(!held(&t.report().await), "day 30");
    t.stop().await;
}
