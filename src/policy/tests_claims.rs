//! What the linter must find in the three shipped texts, each finding by name and line, and gone when the sentence that
//! causes it is taken out.

use super::compiled::Policy;
use super::file::{File, Finding, Severity};
use super::lint::lint;
use super::tests::shipped;
use crate::ids::PolicyVersion;

fn found(text: &str) -> Vec<Finding> {
    lint(&File::parse(text).unwrap_or_else(|f| panic!("{f:?}")), None)
}

/// The file without the claims of that kind in whose lines all of these words occur.
fn without(text: &str, kind: &str, words: &[&str]) -> String {
    let kind = format!("kind = \"{kind}\"\n");
    let start = text.find("[[claim]]").unwrap();
    let blocks: Vec<&str> = text[start..].split_inclusive("\n\n").collect();
    let (gone, kept): (Vec<&str>, Vec<&str>) =
        blocks.into_iter().partition(|b| b.contains(&kind) && words.iter().all(|w| b.contains(w)));
    assert!(!gone.is_empty(), "no claim {kind} {words:?}");
    format!("{}{}", &text[..start], kept.concat())
}

/// The findings of a rule that name the word.
fn of<'a>(all: &'a [Finding], rule: &str, word: &str) -> Vec<&'a Finding> {
    all.iter().filter(|f| f.rule == rule && f.message.contains(word)).collect()
}

/// The finding is there, in the line of the claim, and not without the claim.
#[track_caller]
fn needs(tenant: &str, rule: &str, word: &str, line_says: &str, kind: &str, words: &[&str]) {
    let text = shipped(tenant);
    let all = found(text);
    let hits = of(&all, rule, word);
    assert!(!hits.is_empty(), "{tenant}: {rule} about {word} is not found");
    for hit in &hits {
        assert_ne!(hit.severity, Severity::Error, "{hit}");
        let claim = text.lines().skip(hit.line as usize - 1).take(5).collect::<Vec<_>>().join("\n");
        assert!(claim.contains(line_says), "{hit}: {claim}");
    }
    let less = without(text, kind, words);
    assert!(
        of(&found(&less), rule, word).is_empty(),
        "{tenant}: {rule} about {word} does not come from {kind} {words:?}"
    );
}

#[test]
fn je10_deletion_of_everything_contradicts_grace_backups_and_invoices() {
    for (word, kind, words) in [
        ("has grace for 30d", "grace", &["\"30d\""][..]),
        ("has backups for 90d", "backups", &["\"90d\""]),
        ("has retention of invoices for 7y", "retention", &["\"7y\""]),
    ] {
        needs("jenny-erp", "deletion-contradicted", word, "anytime", "deletion", &["anytime"]);
        needs("jenny-erp", "deletion-contradicted", word, "anytime", kind, words);
    }
    let text = shipped("jenny-erp").replace("value = \"anytime\"", "value = \"law\"");
    assert!(of(&found(&text), "deletion-contradicted", "").is_empty(), "an exception makes it consistent");
}

#[test]
fn jw13_retention_of_account_data_phone_and_tiktok_tokens_is_missing() {
    for (category, others) in [
        ("account_data", &["account_data"][..]),
        ("phone_number", &["phone_number"]),
        ("tiktok_access", &["tiktok_access"]),
    ] {
        needs("jiwa-ai", "claim-retention-missing", category, category, "collects", others);
        let said = format!(
            "{}\n[[claim]]\nsection = \"8\"\nkind = \"retention\"\nabout = [\"{category}\"]\nvalue = \"1y\"\n",
            shipped("jiwa-ai")
        );
        assert!(of(&found(&said), "claim-retention-missing", category).is_empty(), "{category}");
    }
}

#[test]
fn jw17_the_deletion_list_omits_account_phone_payment_and_tiktok_data() {
    for category in ["account_data", "phone_number", "payment_data", "tiktok_data", "tiktok_access"] {
        needs("jiwa-ai", "deletion-omits", category, "deletion_covers", "collects", &[category]);
        needs("jiwa-ai", "deletion-omits", category, "deletion_covers", "deletion_covers", &[]);
    }
    let all = found(shipped("jiwa-ai"));
    for category in ["business_data", "product_data", "instagram_access"] {
        assert!(of(&all, "deletion-omits", category).is_empty(), "{category} is removed");
    }
}

#[test]
fn jw07_website_content_goes_to_an_ai_processor_in_one_section_only() {
    let hits = "section 3 gives `website_text` to `anthropic`, section 4 does not";
    needs("jiwa-ai", "sharing-differs", hits, "website_text", "shares", &["website_text"]);
    needs("jiwa-ai", "sharing-differs", hits, "website_text", "shares", &["\"4\"", "anthropic"]);
}

#[test]
fn jc08_email_and_telegram_are_channels_without_a_processor() {
    needs("jina-connect", "channel-without-processor", "`email`", "email", "channel", &["\"email\""]);
    needs("jina-connect", "channel-without-processor", "`telegram`", "telegram", "channel", &["telegram"]);
    let all = found(shipped("jina-connect"));
    for carried in ["`whatsapp`", "`sms`"] {
        assert!(of(&all, "channel-without-processor", carried).is_empty(), "{carried}");
    }
}

#[test]
fn jc05_support_requests_belong_to_no_category() {
    needs(
        "jina-connect",
        "data-without-category",
        "support_requests",
        "support_requests",
        "handles",
        &["support_requests"],
    );
}

#[test]
fn je22_under_16_stands_beside_minors() {
    needs("jenny-erp", "age-differs", "says 16 years, section 9 says 18", "minors", "age", &["minors"]);
    needs("jenny-erp", "age-differs", "says 16 years, section 9 says 18", "minors", "age", &["\"16\""]);
}

#[test]
fn je01_the_bcrypt_claim_is_weaker_than_what_is_kept() {
    needs("jenny-erp", "weaker-than-kept", "bcrypt", "bcrypt", "passwords", &["bcrypt"]);
}

#[test]
fn je25_marketing_is_named_under_the_rights_and_is_no_purpose() {
    needs("jenny-erp", "objection-without-purpose", "`marketing`", "marketing", "objection", &["marketing"]);
    assert!(of(&found(shipped("jenny-erp")), "objection-without-purpose", "`analytics`").is_empty());
}

#[test]
fn jw12_a_text_without_a_claim_of_encryption_at_rest_could_make_one() {
    let text = shipped("jiwa-ai");
    assert_eq!(of(&found(text), "no-at-rest-claim", "AES-256").len(), 1);
    let said = format!("{text}\n[[claim]]\nsection = \"7\"\nkind = \"at_rest\"\nvalue = \"aes-256\"\n");
    assert!(of(&found(&said), "no-at-rest-claim", "").is_empty());
    for other in ["jina-connect", "jenny-erp"] {
        needs_none(other, "no-at-rest-claim");
    }
}

fn needs_none(tenant: &str, rule: &str) {
    assert!(of(&found(shipped(tenant)), rule, "").is_empty(), "{tenant}: {rule}");
}

#[test]
fn cookies_trackers_and_open_source_are_outside_the_vault() {
    for (tenant, kind) in [
        ("jina-connect", "cookies"),
        ("jina-connect", "trackers"),
        ("jina-connect", "open_source"),
        ("jiwa-ai", "cookies"),
        ("jiwa-ai", "trackers"),
        ("jenny-erp", "cookies"),
        ("jenny-erp", "trackers"),
    ] {
        let text = shipped(tenant);
        let at = |text: &str| -> usize {
            let lines: Vec<&str> = text.lines().collect();
            let of_kind =
                |f: &&Finding| lines[f.line as usize - 1..].iter().take(4).any(|l| l.contains(&format!("\"{kind}\"")));
            found(text).iter().filter(|f| f.rule == "outside-the-vault").filter(of_kind).count()
        };
        assert!(at(text) > 0, "{tenant}: {kind}");
        assert_eq!(at(&without(text, kind, &[])), 0, "{tenant}: {kind}");
    }
}

#[test]
fn jc03_device_data_has_no_rule_of_retention() {
    assert_eq!(of(&found(shipped("jina-connect")), "retention-missing", "`device`").len(), 1);
}

#[test]
fn what_breaks_the_structure_is_an_error_with_its_line() {
    let cases: &[(&str, &str, &str, &str)] = &[
        ("jina-connect", "retention = \"7y\"", "retention = \"6y\"", "retention-shorter-than-hold"),
        ("jina-connect", "dpa = \"DPA Meta 2026\"\n", "", "recipient-without-dpa"),
        (
            "jenny-erp",
            "transfer = \"scc\"\npurposes = [\"transactional_email\"]",
            "purposes = [\"transactional_email\"]",
            "recipient-without-transfer",
        ),
        (
            "jiwa-ai",
            "category = \"product_data\"\ntype = \"text\"\nmax_length",
            "type = \"text\"\nmax_length",
            "no-category",
        ),
        (
            "jina-connect",
            "kind = \"basis\"\nabout = [\"marketing\"]",
            "kind = \"basis\"\nabout = [\"support\"]",
            "purpose-without-basis",
        ),
        ("jina-connect", "retention = \"90d\"", "retention = \"91d\"", "retention-longer-than-promised"),
        ("jina-connect", "kind = \"marketing\"", "kind = \"advertising\"", "forbidden-purpose"),
        ("jiwa-ai", "kind = \"messaging\"", "kind = \"sale\"", "forbidden-recipient"),
        (
            "jina-connect",
            "\"legitimate_interests\", \"legal_obligation\"] # section 4",
            "\"legal_obligation\"] # section 4",
            "basis-not-allowed",
        ),
        ("jiwa-ai", "consent = \"notifications\"", "consent = \"payments\"", "consent-purpose"),
        ("jiwa-ai", "birth = \"date_of_birth\"", "birth = \"old_enough\"", "age-field"),
        ("jenny-erp", "fields = [\"device_kind\"]", "fields = [\"usage_event\"]", "analytics-field"),
        (
            "jenny-erp",
            "minimum_notice = \"30d\"",
            "minimum_notice = \"30d\"\nnotified = 2026-05-20\neffective = 2026-06-18",
            "notice-too-short",
        ),
        ("jenny-erp", "value = \"bcrypt\"", "value = \"rot13\"", "claim-form"),
        ("jenny-erp", "kind = \"grace\"\nvalue = \"30d\"", "kind = \"grace\"\nvalue = \"soon\"", "claim-form"),
        ("jiwa-ai", "about = [\"payment_data\"]\nvalue", "about = [\"payments\"]\nvalue", "unknown-name"),
    ];
    for (tenant, from, to, rule) in cases {
        let text = shipped(tenant).replacen(from, to, 1);
        assert_ne!(text, shipped(tenant), "{tenant}: {from}");
        let all = found(&text);
        let hit = all.iter().find(|f| f.rule == *rule).unwrap_or_else(|| panic!("{tenant}: {rule}: {all:#?}"));
        assert_eq!(hit.severity, Severity::Error, "{hit}");
        assert!(hit.line > 1, "{hit}");
        assert!(found(shipped(tenant)).iter().all(|f| f.rule != *rule), "{tenant}: {rule} is not in the shipped file");
        assert!(Policy::compile(&text, PolicyVersion(1), None).is_err());
    }
}

#[test]
fn a_claim_without_its_rule_is_found() {
    let cases: &[(&str, &str, &str, &str)] = &[
        ("jina-connect", "minimum_notice = \"15d\"", "minimum_notice = \"14d\"", "notice-differs"),
        ("jina-connect", "within = \"5bd\"", "within = \"30d\"", "clock-differs"),
        (
            "jina-connect",
            "forbidden = [\"sale\", \"advertising\"]",
            "forbidden = [\"advertising\"]",
            "forbidden-missing",
        ),
        ("jina-connect", "[nominee]", "[nominee]\nlasts = \"1y\"", ""),
        ("jina-connect", "\"nominate\", \"grievance\"]\nwithin", "\"nominate\"]\nwithin", "clock-missing"),
        (
            "jina-connect",
            "fields = [\"phone\", \"message\"]",
            "fields = [\"phone\", \"message\", \"call_transcript\"]",
            "sharing-unclaimed",
        ),
        (
            "jina-connect",
            "name = \"support\"\ntitle = \"Answering",
            "name = \"help\"\ntitle = \"Answering",
            "purpose-unclaimed",
        ),
        ("jiwa-ai", "host = \"Supabase PostgreSQL\"", "host = \"A laptop\"", "place-differs"),
        ("jiwa-ai", "max_length = 2000 #", "max_length = 2001 #", "rule-missing"),
        ("jenny-erp", "data = \"90d\"", "data = \"91d\"", "backups-differ"),
        ("jenny-erp", "data = \"90d\"\n", "", "backups-differ"),
        ("jenny-erp", "groups = [\"scc\"]", "groups = [\"bcr\"]", "rule-missing"),
        ("jenny-erp", "limit = 16", "limit = 13", "age-differs"),
        ("jenny-erp", "view = \"tokens\"", "view = \"masked\"", "rule-missing"),
        ("jenny-erp", "region = \"eu-central-1\" # section 6", "region = \"us-east-1\" # section 6", "place-differs"),
    ];
    for (tenant, from, to, rule) in cases {
        let text = shipped(tenant).replacen(from, to, 1);
        assert_ne!(text, shipped(tenant), "{tenant}: {from}");
        let count = |text: &str, rule: &str| found(text).iter().filter(|f| f.rule == rule).count();
        if rule.is_empty() {
            assert_eq!(found(&text).len(), found(shipped(tenant)).len());
            continue;
        }
        assert!(count(&text, rule) > count(shipped(tenant), rule), "{tenant}: {to}: {rule}: {:#?}", found(&text));
    }
}

#[test]
fn no_rule_knows_a_company() {
    for source in
        [include_str!("lint.rs"), include_str!("claims.rs"), include_str!("promises.rs"), include_str!("claim.rs")]
    {
        let code = source.split("#[cfg(test)]").next().unwrap().to_lowercase();
        for word in ["jina", "jiwa", "jenny", "anthropic", "telegram", "tiktok", "instagram", "support_requests"] {
            assert!(!code.contains(word), "{word}");
        }
    }
}
