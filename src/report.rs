//! The honesty report: what a tenant's published text claims, sentence by sentence, and what was found about it when the
//! report was made. Signed, so that whoever has it and the vault's public keys can check it without the vault.
//!
//! *Held* is said only of what was looked at for this report; what was looked at stands beside it. A report is a signed
//! document ([`crate::crypto::document`]).

use serde::{Deserialize, Serialize};
use std::fmt::Write as _;

use crate::crypto::document::{self, DocumentRefused};
use crate::crypto::sign::{Domain, Signing};

const FORMAT: &str = "pii-vault honesty report v1";

/// What became of a promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It was checked for this report and found kept.
    Held,
    /// It was checked and is not kept, or the text contradicts the rules or itself.
    Broken,
    /// Kept by the application, a website or nobody: the vault does not see it.
    Outside,
    /// This version of the vault does not have what it takes.
    Waits,
    /// It may be kept: this report did not check.
    Unchecked,
    /// More is kept than the text says: it could say so and does not.
    CanClaim,
}

impl Status {
    pub const ALL: [Status; 6] =
        [Status::Held, Status::Broken, Status::Waits, Status::CanClaim, Status::Unchecked, Status::Outside];

    /// For people.
    pub const fn words(self) -> &'static str {
        match self {
            Status::Held => "held",
            Status::Broken => "broken",
            Status::Outside => "outside the vault",
            Status::Waits => "waits",
            Status::Unchecked => "not checked",
            Status::CanClaim => "can claim but does not",
        }
    }
}

/// One sentence of the text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promise {
    /// Section of the published text.
    pub section: String,
    /// Line of the policy file.
    pub line: u32,
    /// Kind of the claim, as the file writes it.
    pub claim: String,
    pub about: Vec<String>,
    pub value: Option<String>,
    pub recipient: Option<String>,
    pub status: Status,
    /// What was looked at and what was found.
    pub evidence: Vec<String>,
    /// Of a broken one: since when, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
}

/// Requests of a kind that wait longer than they may.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overdue {
    pub kind: String,
    pub count: u64,
    /// When the first of them was due, RFC 3339.
    pub since: String,
}

/// Everything a report says. Times are RFC 3339.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Hexadecimal id of the vault.
    pub vault: String,
    pub tenant: String,
    pub controller: String,
    pub contact: String,
    pub officer: Option<String>,
    pub authority: Option<String>,
    pub policy_title: Option<String>,
    pub policy_url: Option<String>,
    pub policy_version: u32,
    /// SHA-256 of the file, hexadecimal.
    pub policy_sha256: String,
    pub made_at: String,
    /// Position of the tenant's change audit.
    pub audit_seq: u64,
    pub subjects: u64,
    pub promises: Vec<Promise>,
    /// Requests that nobody answered in time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overdue: Vec<Overdue>,
    /// What the vault keeps and the text does not claim.
    pub can_claim: Vec<String>,
}

impl Report {
    /// Signs; answers the report as it is handed out.
    pub fn sign(&self, key: &Signing) -> Vec<u8> {
        document::write(Domain::Report, FORMAT, self, Some(key))
    }

    /// The report without a check of its signature, for those who were just handed it by the vault.
    pub fn read(json: &[u8]) -> Option<Report> {
        serde_json::from_value(document::read(FORMAT, json).ok()?.0).ok()
    }

    /// Checks a report with nothing but public keys; answers the id of the one that signed.
    pub fn verify(json: &[u8], public_keys: &[[u8; 32]]) -> Result<(Report, String), DocumentRefused> {
        let (body, key_id) = document::verify(Domain::Report, FORMAT, json, public_keys)?;
        Ok((serde_json::from_value(body).map_err(|_| DocumentRefused::Form)?, key_id))
    }

    /// How many promises have that status.
    pub fn count(&self, status: Status) -> usize {
        self.promises.iter().filter(|promise| promise.status == status).count()
    }

    fn heads(&self) -> Vec<(&'static str, String)> {
        let mut heads =
            vec![("Tenant", self.tenant.clone()), ("Controller", format!("{} ({})", self.controller, self.contact))];
        heads.extend(self.officer.clone().map(|officer| ("Data protection officer", officer)));
        heads.extend(self.authority.clone().map(|authority| ("Authority", authority)));
        heads.extend(self.policy_title.clone().map(|title| ("Published text", title)));
        heads.extend(self.policy_url.clone().map(|url| ("Published at", url)));
        heads.push(("Policy", format!("version {}, SHA-256 {}", self.policy_version, self.policy_sha256)));
        heads.push(("Made at", self.made_at.clone()));
        heads.push(("People", self.subjects.to_string()));
        heads.push(("Vault", format!("{}, audit position {}", self.vault, self.audit_seq)));
        heads
    }

    /// For people, as Markdown.
    pub fn markdown(&self) -> String {
        let mut out = format!("# What {} promised, and what is true\n\n| | |\n|---|---|\n", cell(&self.controller));
        for (name, value) in self.heads() {
            let _ = writeln!(out, "| {name} | {} |", cell(&value));
        }
        out.push('\n');
        for status in Status::ALL {
            let _ = writeln!(out, "- {}: {}", status.words(), self.count(status));
        }
        out += "\n*Held* is said of what was looked at for this report, and of nothing else.\n\n";
        for late in &self.overdue {
            let _ = writeln!(out, "- **overdue**: {}", cell(&late.says()));
        }
        if !self.overdue.is_empty() {
            out.push('\n');
        }
        out += "| Section | Claim | Status | What was found |\n|---|---|---|---|\n";
        for promise in &self.promises {
            let found = promise.found();
            let _ = writeln!(
                out,
                "| {} | {} | **{}** | {} (line {}) |",
                cell(&promise.section),
                cell(&promise.says()),
                promise.status.words(),
                cell(&found),
                promise.line
            );
        }
        if !self.can_claim.is_empty() {
            out += "\n## Kept and not claimed\n\n";
            for claim in &self.can_claim {
                let _ = writeln!(out, "- {}", cell(claim));
            }
        }
        out
    }

    /// For people, as one page without anything from elsewhere; it prints.
    pub fn html(&self) -> String {
        let name = text(&self.controller);
        let head = format!("<title>{name}</title></head><body><h1>What {name} promised, and what is true</h1>");
        format!("{PAGE}{head}{}</body></html>\n", self.html_part())
    }

    /// The same as a part of another page.
    pub fn html_part(&self) -> String {
        let mut out = String::from("<table>");
        for (name, value) in self.heads() {
            let _ = write!(out, "<tr><th>{name}</th><td>{}</td></tr>", text(&value));
        }
        out += "</table><p>";
        for status in Status::ALL {
            let _ = write!(out, "<span class=\"s {0:?}\">{1}: {2}</span> ", status, status.words(), self.count(status));
        }
        out += "</p><p><i>Held</i> is said of what was looked at for this report, and of nothing else.</p>";
        for late in &self.overdue {
            let _ = write!(out, "<p class=\"Broken\">Overdue: {}</p>", text(&late.says()));
        }
        out += "<table><thead><tr><th>Section</th><th>Claim</th><th>Status</th><th>What was found</th></tr></thead><tbody>";
        for promise in &self.promises {
            let _ = write!(
                out,
                "<tr><td>{}</td><td>{}</td><td><span class=\"s {:?}\">{}</span></td><td>{} <small>line {}</small></td></tr>",
                text(&promise.section),
                text(&promise.says()),
                promise.status,
                promise.status.words(),
                text(&promise.found()),
                promise.line
            );
        }
        out += "</tbody></table>";
        if !self.can_claim.is_empty() {
            out += "<h2>Kept and not claimed</h2><ul>";
            for claim in &self.can_claim {
                let _ = write!(out, "<li>{}</li>", text(claim));
            }
            out += "</ul>";
        }
        out
    }
}

impl Overdue {
    fn says(&self) -> String {
        format!("{} of kind {}, the first since {}", self.count, self.kind, self.since)
    }
}

impl Promise {
    /// The evidence in one line.
    fn found(&self) -> String {
        let since = self.since.as_ref().map(|at| format!("since {at}"));
        self.evidence.iter().cloned().chain(since).collect::<Vec<_>>().join("; ")
    }

    /// The claim in one line.
    pub fn says(&self) -> String {
        let mut out = self.claim.clone();
        if !self.about.is_empty() {
            let _ = write!(out, " {}", self.about.join(", "));
        }
        if let Some(recipient) = &self.recipient {
            let _ = write!(out, " with {recipient}");
        }
        if let Some(value) = &self.value {
            let _ = write!(out, " = {value}");
        }
        out
    }
}

/// The beginning of a page that runs nothing and loads nothing, with its style; a title and the end of `head` follow.
pub const PAGE: &str = "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
    content=\"width=device-width\"><meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
    style-src 'unsafe-inline'\"><style>body{font:15px/1.45 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em}\
    table{border-collapse:collapse;width:100%;margin:1em 0}td,th{border:1px solid #bbb;padding:.3em .6em;text-align:left;\
    vertical-align:top}tr{break-inside:avoid}.s{padding:0 .4em;border:1px solid #888;border-radius:.3em;white-space:nowrap}\
    .Held{background:#dfd}.Broken{background:#fdd;font-weight:bold}.Waits{background:#ffd}\
    @media print{body{margin:0;font-size:11px}}</style>";

/// Text of a table's cell in Markdown.
fn cell(text: &str) -> String {
    text.replace('\\', "\\\\").replace('|', "\\|").replace(['\n', '\r'], " ").replace('<', "&lt;")
}

/// Text in HTML.
pub fn text(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let promise = |status, value: &str| Promise {
            section: "5".into(),
            line: 40,
            claim: "retention".into(),
            about: vec!["content".into()],
            value: Some(value.into()),
            recipient: None,
            status,
            evidence: vec!["one | two".into()],
            since: (status == Status::Broken).then(|| "2026-01-02T00:00:00Z".into()),
        };
        Report {
            vault: "00".into(),
            tenant: "acme".into(),
            controller: "Acme <script>alert(1)</script>".into(),
            contact: "privacy@example.com".into(),
            officer: None,
            authority: None,
            policy_title: None,
            policy_url: None,
            policy_version: 3,
            policy_sha256: "ab".repeat(32),
            made_at: "2026-01-15T12:00:00Z".into(),
            audit_seq: 7,
            subjects: 2,
            promises: vec![promise(Status::Held, "90d"), promise(Status::Broken, "1d")],
            overdue: vec![Overdue { kind: "dpa".into(), count: 2, since: "2026-01-03T00:00:00Z".into() }],
            can_claim: vec!["AES-256-GCM".into()],
        }
    }

    #[test]
    fn a_report_verifies_and_every_changed_byte_shows() {
        let key = Signing::from_seed(&[5; 32]);
        let json = report().sign(&key);
        let public = [key.public()];
        assert_eq!(Report::verify(&json, &public).unwrap().0, report());
        assert_eq!(Report::read(&json), Some(report()));
        assert_eq!(Report::verify(&json, &[[1; 32]]).unwrap_err(), DocumentRefused::UnknownKey);
        for at in (0..json.len()).step_by(7) {
            let mut changed = json.clone();
            changed[at] ^= 1;
            assert!(Report::verify(&changed, &public).is_err(), "byte {at}");
        }
    }

    #[test]
    fn pages_show_every_promise_and_run_nothing() {
        let (page, text) = (report().html(), report().markdown());
        assert!(!page.contains("<script") && page.contains("&lt;script&gt;"));
        assert!(!page.contains("http://") && !page.contains("https://"), "nothing from elsewhere");
        assert!(page.contains("retention content = 90d") && page.contains("class=\"s Broken\">broken"));
        assert!(
            text.contains(
                "| 5 | retention content = 1d | **broken** | one \\| two; since 2026-01-02T00:00:00Z (line 40) |"
            ),
            "{text}"
        );
        assert!(text.contains("- held: 1\n- broken: 1\n") && text.contains("AES-256-GCM"));
        assert!(text.contains("- **overdue**: 2 of kind dpa") && page.contains("Overdue: 2 of kind dpa"));
    }
}
