//! Findings of the linter as SARIF 2.1.0 (OASIS), which code hosts and editors show at the line.

use crate::grpc::pb;
use crate::policy::file::Severity;
use crate::policy::lint::RULES;
use serde_json::{Value as Json, json};

const SCHEMA: &str = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json";

/// One run of the linter over a file. `file` is its path as it was given; relative paths stay relative.
pub fn document(file: &str, findings: &[pb::LintFinding]) -> Json {
    let level = |severity: Severity| match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Note => "note",
    };
    let rules: Vec<Json> = RULES
        .iter()
        .map(|(id, severity, says)| {
            json!({
                "id": id,
                "shortDescription": { "text": says },
                "defaultConfiguration": { "level": level(*severity) },
            })
        })
        .collect();
    let results: Vec<Json> = findings
        .iter()
        .map(|finding| {
            let level = match finding.severity() {
                pb::LintSeverity::Error => "error",
                pb::LintSeverity::Warning => "warning",
                pb::LintSeverity::Note | pb::LintSeverity::Unspecified => "note",
            };
            let key = if finding.key.is_empty() { String::new() } else { format!("{}: ", finding.key) };
            let mut place = json!({ "artifactLocation": { "uri": uri(file) } });
            if finding.line > 0 {
                place["region"] = json!({ "startLine": finding.line });
            }
            let mut result = json!({
                "ruleId": finding.rule,
                "level": level,
                "message": { "text": format!("{key}{}", finding.message) },
                "locations": [{ "physicalLocation": place }],
            });
            if let Some(index) = RULES.iter().position(|(id, _, _)| *id == finding.rule) {
                result["ruleIndex"] = json!(index);
            }
            result
        })
        .collect();
    json!({
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "pii-vault",
                "version": env!("CARGO_PKG_VERSION"),
                "rules": rules,
            }},
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    })
}

/// A path as a URI reference (RFC 3986): what is not unreserved is percent-encoded, slashes stay.
fn uri(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => out.push(char::from(byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_has_its_rule_level_and_line() {
        let finding = |severity: pb::LintSeverity, rule: &str, line| pb::LintFinding {
            severity: severity as i32,
            rule: rule.into(),
            line,
            key: "field.colour".into(),
            message: "no such key".into(),
        };
        let found = [
            finding(pb::LintSeverity::Error, "unknown-key", 7),
            finding(pb::LintSeverity::Warning, "retention-missing", 0),
            finding(pb::LintSeverity::Note, "of-a-newer-server", 1),
        ];
        let sarif = document("a dir/acmé.toml", &found);
        assert_eq!(sarif["version"], "2.1.0");
        let run = &sarif["runs"][0];
        for (result, level) in run["results"].as_array().unwrap().iter().zip(["error", "warning", "note"]) {
            assert_eq!(result["level"], level);
            assert_eq!(result["message"]["text"], "field.colour: no such key");
            let place = &result["locations"][0]["physicalLocation"];
            assert_eq!(place["artifactLocation"]["uri"], "a%20dir/acm%C3%A9.toml");
            if let Some(index) = result["ruleIndex"].as_u64() {
                assert_eq!(run["tool"]["driver"]["rules"][index as usize]["id"], result["ruleId"]);
            }
        }
        assert_eq!(run["results"][0]["locations"][0]["physicalLocation"]["region"]["startLine"], 7);
        assert!(run["results"][1]["locations"][0]["physicalLocation"]["region"].is_null(), "the file as a whole");
        assert!(run["results"][2]["ruleIndex"].is_null());
    }
}
