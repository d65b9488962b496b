//! The page of a bundle: everything in it for reading, in one file that runs nothing and loads nothing.

use std::fmt::Write as _;

use super::*;
use crate::receipt::rotation::{Fate, RotationRecord};
use crate::receipt::{Receipt, Scope};
use crate::report::{self, Report, text};

/// Rows of a table; the files have all of them.
pub const SHOWN: usize = 500;

/// What the page shows. Of long lists the first [`SHOWN`] are enough.
pub struct Page<'a> {
    pub about: &'a About,
    /// The controller's name, where there is a policy.
    pub controller: &'a str,
    /// All files but the page and the manifest.
    pub files: &'a [FileEntry],
    pub report: Option<&'a Report>,
    pub policies: &'a [PolicyLine],
    pub erasures: &'a [PageErasure],
    pub rotations: &'a [PageRotation],
    pub inventory: &'a Inventory,
    pub steps: &'a [PageStep],
    pub signers: &'a [SignerLine],
    pub drills: &'a [PageDrill],
    pub settings: &'a Settings,
    /// Crates in the list of software.
    pub components: u64,
    /// SHA-256 of the program's file, hexadecimal, where the server could read it.
    pub program: Option<&'a str>,
    pub left_out: &'a [LeftOut],
}

/// A row about an erasure.
pub struct PageErasure {
    at: String,
    what: String,
    erased: String,
    held: String,
    archives: String,
    operation: String,
}

impl PageErasure {
    /// Of a receipt.
    pub fn new(receipt: &Receipt) -> Self {
        let whom = match (&receipt.subject, &receipt.members) {
            (Some(person), _) => format!("subject number {}", person.uid),
            (None, Some(members)) => format!("{} subjects", members.count),
            (None, None) => String::new(),
        };
        let scope = match receipt.scope {
            Scope::Subject => "everything about",
            Scope::Classes => "classes of",
            Scope::Fields => "fields of",
            Scope::Items => "items of",
            Scope::Group => "several:",
            Scope::Tenant => "the tenant",
        };
        let held = receipt.held.iter().map(|held| {
            let until =
                held.until.map_or("until it is released".to_owned(), |at| format!("until {}", day(&at.rfc3339())));
            format!("{} ({}) {until}", held.name, held.basis)
        });
        let archives =
            receipt.archives_expire_at.map_or("none held these keys".to_owned(), |at| day(&at.rfc3339()).into());
        PageErasure {
            at: receipt.erased_at.rfc3339(),
            what: format!("{scope} {whom}"),
            erased: receipt.erased.iter().map(|class| class.name.clone()).collect::<Vec<_>>().join(", "),
            held: held.collect::<Vec<_>>().join("; "),
            archives,
            operation: receipt.operation.to_string(),
        }
    }
}

/// A row about a rotation.
pub struct PageRotation {
    at: String,
    whose: String,
    kind: &'static str,
    versions: String,
    moved: u64,
    fate: &'static str,
}

impl PageRotation {
    /// Of a record.
    pub fn new(record: &RotationRecord) -> Self {
        let scope = record.scope.as_ref().map_or(String::new(), |scope| format!(", only {scope}"));
        PageRotation {
            at: record.ended_at.rfc3339(),
            whose: format!("{}{scope}", record.tenant_name),
            kind: record.kind.name(),
            versions: format!("{} to {}", record.from.number, record.to.number),
            moved: record.moved,
            fate: match record.fate {
                Fate::Destroyed => "destroyed: overwritten in every replica of the keeper",
                Fate::Unused => "unused by the vault: to be destroyed where it comes from",
            },
        }
    }
}

/// A row about a checkpoint.
pub struct PageStep {
    pub at: String,
    pub chain: &'static str,
    /// Number of the last entry.
    pub last: u64,
    pub extends: &'static str,
}

impl PageStep {
    /// Of a proof of a head; `proven` says whether there is a proof from the one before, `None` for the first.
    pub fn new(proof: &HeadProof, proven: Option<bool>) -> Self {
        let head = proof.head();
        let extends = match (proven, head.tree) {
            (None, _) => "the first here",
            (Some(true), _) => "yes",
            (Some(false), None) => "not shown: signed before checkpoints had trees",
            (Some(false), Some(_)) => "NOT SHOWN",
        };
        PageStep { at: proof.at().rfc3339(), chain: head.chain.name(), last: head.head.seq, extends }
    }
}

/// A row about a drill.
pub struct PageDrill {
    at: String,
    archive: String,
    holds: bool,
}

impl PageDrill {
    /// Of what a report of a drill says.
    pub fn new(body: &serde_json::Value) -> Self {
        let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
        PageDrill { at: text("tried_at"), archive: text("archive_made_at"), holds: body["holds"] == true }
    }
}

fn day(rfc3339: &str) -> &str {
    rfc3339.get(..10).unwrap_or(rfc3339)
}

fn table(out: &mut String, heads: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
    *out += "<table><thead><tr>";
    for head in heads {
        let _ = write!(out, "<th>{}</th>", text(head));
    }
    *out += "</tr></thead><tbody>";
    for row in rows {
        *out += "<tr>";
        for cell in row {
            let _ = write!(out, "<td>{}</td>", text(&cell));
        }
        *out += "</tr>";
    }
    *out += "</tbody></table>";
}

fn paragraph(out: &mut String, words: &str) {
    let _ = write!(out, "<p>{}</p>", text(words));
}

fn items(files: &[FileEntry], path: &str) -> u64 {
    files.iter().find(|file| file.path == path).map_or(0, |file| file.items)
}

fn more(out: &mut String, shown: usize, all: u64, path: &str) {
    if all > shown as u64 {
        paragraph(out, &format!("{} more are in {path}.", all - shown as u64));
    }
}

fn keys(out: &mut String, lines: &[KeyLine]) {
    let heads = [
        "Key",
        "What it is for",
        "Version",
        "State",
        "Made",
        "Period (days)",
        "Rotate by",
        "Most seals",
        "Keys",
        "Left to move",
    ];
    let or = |text: &Option<String>| text.as_deref().map_or(String::new(), |text| day(text).to_owned());
    let number = |n: u64| if n == 0 { String::new() } else { n.to_string() };
    table(
        out,
        &heads,
        lines.iter().map(|key| {
            vec![
                key.kind.clone(),
                purpose(&key.kind).into(),
                number(key.version),
                key.state.clone(),
                or(&key.made_at),
                number(key.period_days.into()),
                or(&key.rotate_by),
                number(key.seals),
                key.keys.to_string(),
                number(key.left),
            ]
        }),
    );
}

/// What a key is for, in words of somebody who never saw the vault.
fn purpose(kind: &str) -> &'static str {
    match kind {
        "root" => "wraps every tenant's root; comes from outside the vault",
        "tenant-root" => "top of the tenant's tree; replaced and destroyed with every erasure",
        "tree" => "nodes between the root and the data keys",
        "data" => "one for each person and class: what values are encrypted with",
        "expiry" => "one for each class and day: dropped when what ends that day has ended",
        "index" => "finds equal values without storing them; replaced after an erasure of something searchable",
        "digest" => "names people in the database; lives as long as the tenant",
        "password-pepper" => "without it a password's hash cannot be tried",
        "access-key-pepper" => "the same for access keys",
        "page-token" => "seals where a list goes on",
        "signing" => "signs receipts, records, checkpoints and this folder",
        _ => "",
    }
}

/// The page.
pub fn page(p: &Page<'_>) -> Vec<u8> {
    let (about, name) = (p.about, text(if p.controller.is_empty() { &p.about.tenant } else { p.controller }));
    let mut out = format!("{}<title>Evidence: {name}</title></head><body><h1>Evidence about {name}</h1>", report::PAGE);
    paragraph(
        &mut out,
        "A vault keeps the personal data of a company's people under keys, and erases people by destroying their keys. This \
         folder shows how it was run in a period: what was promised, who was erased, how keys were looked after, and that \
         nobody rewrote the record of it. It holds no personal data: people are numbers, and their ids are sealed in \
         commitments that only a person's own receipt opens.",
    );
    let asked = match about.operator {
        true => "an operator of the vault: what is the vault's own is inside too",
        false => "the company itself",
    };
    let heads = [
        ("Tenant", format!("{} (number {})", about.tenant, about.tenant_no)),
        ("Vault", about.vault.clone()),
        ("Period", format!("from {} until before {}", about.from, about.to)),
        ("Made at", about.made_at.clone()),
        ("Asked for by", asked.to_owned()),
        ("Made by", about.program.clone()),
    ];
    out += "<table>";
    for (name, value) in heads {
        let _ = write!(out, "<tr><th>{name}</th><td>{}</td></tr>", text(&value));
    }
    out += "</table><h2>How to check it</h2>";
    paragraph(
        &mut out,
        "Do not believe this page: believe the check. It needs this folder, the program, and the vault's public key, which the \
         operator gives you by another way than this folder; no network.",
    );
    out += "<pre>pii-vault evidence verify . --public-key vault-keys.txt</pre>";
    paragraph(
        &mut out,
        "manifest.json is signed and names every file with its SHA-256. Receipts, records of rotations, the report, checkpoints \
         and drills carry a signature of their own (Ed25519 over canonical JSON, RFC 8785), so that each also counts alone: \
         receipt verify, keys verify, report verify, drill verify.",
    );
    table(
        &mut out,
        &["File", "What it is", "Documents", "Bytes", "SHA-256"],
        p.files.iter().map(|file| {
            let words = Part::of(&file.path).map_or("", Part::words);
            let (items, bytes) = (file.items.to_string(), file.bytes.to_string());
            vec![file.path.clone(), words.into(), items, bytes, file.sha256.clone()]
        }),
    );
    out += "<h2>What is not in it, and what it does not prove</h2><ul>";
    for one in p.left_out {
        let _ = write!(out, "<li>Not in it: {}, because {}</li>", text(&one.what), text(&one.why));
    }
    for limit in LIMITS {
        let _ = write!(out, "<li>Not proven: {}</li>", text(limit));
    }
    out += "</ul><h2>What was promised, and what is true</h2>";
    match p.report {
        Some(report) => out += &report.html_part(),
        None => paragraph(&mut out, "No policy was in force when this was made, so there is no report."),
    }
    out += "<h2>Versions of the policy</h2>";
    paragraph(
        &mut out,
        "The rules that every call is decided by. A version in force in the period, or now, is here as a file.",
    );
    table(
        &mut out,
        &["Version", "Applied", "By access key", "Approval of a second person", "In force now", "File"],
        p.policies.iter().map(|line| {
            vec![
                line.version.to_string(),
                line.applied_at.clone(),
                if line.applied_by.is_empty() { "the vault itself".into() } else { line.applied_by.clone() },
                line.approval.clone().unwrap_or_default(),
                if line.active { "yes".into() } else { String::new() },
                line.file.clone().unwrap_or_default(),
            ]
        }),
    );
    out += "<h2>Erasures</h2>";
    let receipts = items(p.files, RECEIPTS);
    paragraph(
        &mut out,
        &format!(
            "{receipts} ended in the period. A receipt is signed after the keys were overwritten. The number of a subject is the \
             vault's; only who has the salt of a receipt can tie it to a person (receipt verify --subject)."
        ),
    );
    let rows = p.erasures.iter().map(|one| {
        let PageErasure { at, what, erased, held, archives, operation } = one;
        [at, what, erased, held, archives, operation].map(String::clone).to_vec()
    });
    table(&mut out, &["At", "What", "Erased classes", "Held by law", "Key archives end", "Operation"], rows);
    more(&mut out, p.erasures.len(), receipts, RECEIPTS);
    out += "<h2>Keys</h2>";
    paragraph(
        &mut out,
        "Each wraps only the next: root, tenant root, tree, data. Left to move counts what is still under an old version while a \
         rotation runs.",
    );
    keys(&mut out, &p.inventory.tenant);
    if !p.inventory.vault.is_empty() {
        out += "<h3>The vault's own</h3>";
        keys(&mut out, &p.inventory.vault);
    }
    out += "<h2>Rotations of keys</h2>";
    paragraph(
        &mut out,
        "Those that ended in the period: counted to nothing left, and the old version destroyed or unused.",
    );
    let rows = p.rotations.iter().map(|one| {
        vec![
            one.at.clone(),
            one.whose.clone(),
            one.kind.into(),
            one.versions.clone(),
            one.moved.to_string(),
            one.fate.into(),
        ]
    });
    table(&mut out, &["Ended", "Whose", "Key", "Version", "Moved", "The old one is"], rows);
    more(&mut out, p.rotations.len(), items(p.files, ROTATIONS), ROTATIONS);
    out += "<h2>Checkpoints of the audit</h2>";
    paragraph(
        &mut out,
        "The audit is two chains of entries, one of changes and one of reads, in which every group of entries holds the hash of \
         the one before. Once a day at least the vault signs where both end. Each checkpoint here comes with a proof (RFC 6962, \
         section 2.1.2) that its chain only added to the chain of the one before: nothing of it was taken away or rewritten. One \
         from before the period and one from after it show where the period begins and ends.",
    );
    let rows =
        p.steps.iter().map(|step| vec![step.at.clone(), step.chain.into(), step.last.to_string(), step.extends.into()]);
    table(&mut out, &["Signed at", "Chain", "Last entry", "Extends the one before"], rows);
    more(&mut out, p.steps.len(), items(p.files, CHANGES) + items(p.files, READS), "audit/");
    out += "<h2>Signing keys</h2>";
    let rows = p.signers.iter().map(|key| {
        let chain = if key.chain.is_some() { "yes" } else { "no: the first, or its proof was lost" };
        let until = key.until.clone().unwrap_or_else(|| "now".into());
        vec![key.key_id.clone(), key.public_key.clone(), key.since.clone(), until, chain.into()]
    });
    table(&mut out, &["Name", "Public key", "From", "To", "Signed by the one before"], rows);
    if !p.drills.is_empty() {
        out += "<h2>Restores that were tried</h2>";
        let rows = p.drills.iter().map(|drill| {
            let holds = if drill.holds { "everyone came back and nobody erased did" } else { "NOT everyone came back" };
            vec![drill.at.clone(), drill.archive.clone(), holds.into()]
        });
        table(&mut out, &["Tried at", "Archive made at", "Result"], rows);
    }
    out += "<h2>Settings</h2>";
    paragraph(
        &mut out,
        match p.settings.whole {
            true => "All settings. They say where secrets are, and hold none.",
            false => "What a tenant is promised by; paths, addresses and names of the machine are left out.",
        },
    );
    table(
        &mut out,
        &["Setting", "Value"],
        p.settings.settings.iter().map(|(key, value)| {
            let value = match value {
                serde_json::Value::String(text) => text.clone(),
                serde_json::Value::Array(list) => {
                    list.iter().filter_map(|one| one.as_str()).collect::<Vec<_>>().join(", ")
                }
                other => other.to_string(),
            };
            vec![key.clone(), value]
        }),
    );
    out += "<h2>Software</h2>";
    paragraph(&mut out, &format!("{SBOM} names {} crates with their checksums (CycloneDX 1.5).", p.components));
    if let Some(sha256) = p.program {
        let words = "The program that made this folder has the SHA-256";
        paragraph(&mut out, &format!("{words} {sha256}; compare it with the file on the vault's machine."));
    }
    out += "</body></html>\n";
    out.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_shows_what_was_written_by_others_as_text() {
        let about = About {
            vault: "00".into(),
            tenant: "acme".into(),
            tenant_no: 3,
            from: "2026-01-01T00:00:00.000Z".into(),
            to: "2026-02-01T00:00:00.000Z".into(),
            made_at: "2026-02-02T00:00:00.000Z".into(),
            tenant_time: "2026-02-02T00:00:00.000Z".into(),
            operator: false,
            program: "pii-vault 0".into(),
        };
        let line = PolicyLine {
            version: 1,
            sha256: String::new(),
            applied_at: "then".into(),
            applied_by: "<script>a()</script>".into(),
            approval: None,
            active: true,
            file: None,
        };
        let page = page(&Page {
            about: &about,
            controller: "Acme <b>",
            files: &[],
            report: None,
            policies: &[line],
            erasures: &[],
            rotations: &[],
            inventory: &Inventory { tenant: vec![], vault: vec![] },
            steps: &[],
            signers: &[],
            drills: &[],
            settings: &Settings { whole: false, settings: BTreeMap::new() },
            components: 7,
            program: None,
            left_out: &[LeftOut { what: "drills & more".into(), why: "nobody asked".into() }],
        });
        let page = String::from_utf8(page).unwrap();
        assert!(!page.contains("<script") && !page.contains("Acme <b>") && page.contains("drills &amp; more"));
        assert!(!page.contains("http://") && !page.contains("https://"), "nothing from elsewhere");
        assert!(page.contains("from 2026-01-01T00:00:00.000Z until before 2026-02-01"));
    }
}
