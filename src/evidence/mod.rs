//! A bundle of evidence: what an auditor takes away and checks on a machine of his own with the vault's public key alone.
//!
//! A folder of documents and a signed manifest that names each of them with its SHA-256. What the vault signs by itself
//! (receipts, records of rotations, the report, checkpoints, drills) keeps its own signature. [`Verifier`] checks all of it
//! and says what that does not prove; [`page`] is the same for reading.

mod page;
mod sbom;
mod verify;

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use crate::audit::{ChainHead, HeadProof};
use crate::clock::Timestamp;
use crate::crypto::document::{self, DocumentRefused, canonical};
use crate::crypto::merkle::Hash;
use crate::crypto::sign::{Domain, Signing};

pub use page::{Page, PageDrill, PageErasure, PageRotation, PageStep, SHOWN, page};
pub use sbom::sbom;
pub use verify::{Checked, Refused, Verdict, Why, verify};

const FORMAT: &str = "pii-vault evidence bundle v1";

/// Form of a report of a drill.
pub const DRILL_FORMAT: &str = "pii-vault drill report v1";

/// The signed list of all other files.
pub const MANIFEST: &str = "manifest.json";
/// For reading.
pub const PAGE: &str = "index.html";
pub const REPORT: &str = "report.json";
pub const POLICIES: &str = "policy/history.json";
pub const RECEIPTS: &str = "receipts.jsonl";
pub const ROTATIONS: &str = "rotations.jsonl";
pub const KEYS: &str = "keys.json";
pub const CHANGES: &str = "audit/changes.jsonl";
pub const READS: &str = "audit/reads.jsonl";
pub const SIGNERS: &str = "signing-keys.json";
pub const SBOM: &str = "sbom.cdx.json";
pub const CONFIGURATION: &str = "configuration.json";

/// Files that every bundle has.
pub const ALWAYS: [&str; 10] =
    [CHANGES, READS, CONFIGURATION, PAGE, KEYS, POLICIES, RECEIPTS, ROTATIONS, SBOM, SIGNERS];

/// Most bytes of a document that is read as a whole.
pub const MAX_DOCUMENT: u64 = 32 << 20;
/// Most bytes of a line of the files that have a document a line.
pub const MAX_LINE: usize = 1 << 20;
/// Most files of a bundle.
pub const MAX_FILES: usize = 20_000;

/// What a file of a bundle is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Page,
    Report,
    Policies,
    /// The text of a version.
    Policy(u32),
    Receipts,
    Rotations,
    Keys,
    Changes,
    Reads,
    Signers,
    Sbom,
    Configuration,
    Drill,
}

impl Part {
    /// The part of that path; `None` for a path that no bundle has.
    pub fn of(path: &str) -> Option<Part> {
        let number = |text: &str| -> Option<u32> {
            let number: u32 = text.parse().ok()?;
            // One spelling only.
            (number > 0 && number.to_string() == text).then_some(number)
        };
        Some(match path {
            PAGE => Part::Page,
            REPORT => Part::Report,
            POLICIES => Part::Policies,
            RECEIPTS => Part::Receipts,
            ROTATIONS => Part::Rotations,
            KEYS => Part::Keys,
            CHANGES => Part::Changes,
            READS => Part::Reads,
            SIGNERS => Part::Signers,
            SBOM => Part::Sbom,
            CONFIGURATION => Part::Configuration,
            other => match (other.strip_prefix("policy/v"), other.strip_prefix("drills/")) {
                (Some(rest), _) => Part::Policy(number(rest.strip_suffix(".toml")?)?),
                (_, Some(rest)) => number(rest.strip_suffix(".json")?).map(|_| Part::Drill)?,
                _ => return None,
            },
        })
    }

    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Part::Page => "this page: all of it for reading",
            Part::Report => "what the published text claims and what is true, signed",
            Part::Policies => "versions of the policy: when, by which access key, under which approval",
            Part::Policy(_) => "a version of the policy, as it was in force",
            Part::Receipts => "erasures that ended in the period, a signed receipt a line",
            Part::Rotations => "rotations of keys that ended in the period, a signed record a line",
            Part::Keys => "keys with their ages and periods; no key itself",
            Part::Changes => "checkpoints of the audit of changes, each proven to extend the one before",
            Part::Reads => "checkpoints of the audit of reads, likewise",
            Part::Signers => "public keys that the vault ever signed with, each signed by the one before",
            Part::Sbom => "software that the program was built from (CycloneDX)",
            Part::Configuration => "settings of the vault; no secret is among them",
            Part::Drill => "report of a restore that was tried, signed",
        }
    }
}

/// Path of a version of the policy.
pub fn policy_path(version: u32) -> String {
    format!("policy/v{version}.toml")
}

/// Path of the report of a drill; the first is 1.
pub fn drill_path(number: usize) -> String {
    format!("drills/{number}.json")
}

/// A file as the manifest names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    pub path: String,
    pub bytes: u64,
    pub sha256: String,
    /// Documents in it, one a line; 1 for others.
    pub items: u64,
}

/// What is not in a bundle, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeftOut {
    pub what: String,
    pub why: String,
}

/// What every part of a bundle is about. Times are RFC 3339.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// Hexadecimal id of the vault.
    pub vault: String,
    pub tenant: String,
    /// The tenant's number, as receipts and checkpoints have it.
    pub tenant_no: u32,
    /// The period: at or after this.
    pub from: String,
    /// Before this.
    pub to: String,
    /// When the bundle was made, by the machine's clock.
    pub made_at: String,
    /// The same by the tenant's clock; differs for a tenant of kind test alone.
    pub tenant_time: String,
    /// An operator asked for it: what is the vault's own is inside too.
    pub operator: bool,
    /// Name and version of the program that made it.
    pub program: String,
}

/// The signed list of what a bundle holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub about: About,
    /// By path.
    pub files: Vec<FileEntry>,
    pub left_out: Vec<LeftOut>,
}

impl Manifest {
    /// Signs; answers the manifest as it is handed out.
    pub fn sign(&self, key: &Signing) -> Vec<u8> {
        document::write(Domain::Evidence, FORMAT, self, Some(key))
    }

    /// Checks a manifest with public keys; answers the id of the one that signed.
    pub fn verify(json: &[u8], public_keys: &[[u8; 32]]) -> Result<(Manifest, String), DocumentRefused> {
        let (body, key_id) = document::verify(Domain::Evidence, FORMAT, json, public_keys)?;
        Ok((serde_json::from_value(body).map_err(|_| DocumentRefused::Form)?, key_id))
    }
}

/// A document that is signed by the manifest alone: it says itself what it is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sheet<T> {
    pub vault: String,
    pub tenant: String,
    pub made_at: String,
    pub content: T,
}

impl<T: Serialize> Sheet<T> {
    /// As it stands in the bundle.
    pub fn write(about: &About, content: T) -> Vec<u8> {
        let (vault, tenant, made_at) = (about.vault.clone(), about.tenant.clone(), about.made_at.clone());
        let sheet = Sheet { vault, tenant, made_at, content };
        let mut json = serde_json::to_vec_pretty(&sheet).expect("plain structs with string keys are JSON");
        json.push(b'\n');
        json
    }
}

/// A version of the policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyLine {
    pub version: u32,
    pub sha256: String,
    pub applied_at: String,
    /// Name of the access key; empty: the vault itself.
    pub applied_by: String,
    /// The second person's consent under which it was applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<String>,
    pub active: bool,
    /// Its text is in the bundle: it was in force in the period, or is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

/// A key, or all keys of a kind, as `keys status` has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyLine {
    pub kind: String,
    pub version: u64,
    /// `current`, or `retiring` until a rotation ends.
    pub state: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotate_by: Option<String>,
    pub period_days: u32,
    pub seals: u64,
    pub keys: u64,
    pub left: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

/// The inventory of keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inventory {
    pub tenant: Vec<KeyLine>,
    /// Empty where no operator asked.
    pub vault: Vec<KeyLine>,
}

/// A public key that the vault signed with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignerLine {
    pub key_id: String,
    pub public_key: String,
    pub since: String,
    /// When the next one came; none: it is the present one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// Signature of the key before over vault and this key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<String>,
}

/// Settings, as the configuration names them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Paths and addresses too; else only what a tenant is promised.
    pub whole: bool,
    pub settings: BTreeMap<String, serde_json::Value>,
}

/// A checkpoint of one chain: the signed head, its place in the chain's tree, and that the tree only added to the one of the
/// line before.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepLine {
    /// RFC 6962, section 2.1.2, from the line before; none in the first line, and where it cannot be shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    extends: Option<Vec<String>>,
    /// RFC 6962, section 2.1.1: the head is the last leaf of the tree.
    path: Vec<String>,
    proof: serde_json::Value,
}

/// What was found about one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extends {
    /// There is nothing before it.
    First,
    Proven,
    /// One of the two was signed by a version before there were trees.
    NoTree,
}

impl StepLine {
    /// Of a checkpoint's proof of a head, as [`HeadProof::to_json`] writes it.
    pub fn new(proof: &HeadProof, path: &[Hash], extends: Option<&[Hash]>) -> Self {
        let hex = |hashes: &[Hash]| hashes.iter().map(|hash| HEXLOWER.encode(hash)).collect();
        let proof = serde_json::from_slice(&proof.to_json()).expect("it was just written as JSON");
        StepLine { extends: extends.map(hex), path: hex(path), proof }
    }

    /// Canonical JSON and the end of the line.
    pub fn to_line(&self) -> Vec<u8> {
        let mut line = canonical(self);
        line.push(b'\n');
        line
    }

    /// Checks a line with public keys, against the one before.
    fn verify(
        line: &[u8],
        before: Option<&HeadProof>,
        public_keys: &[[u8; 32]],
    ) -> Result<(HeadProof, Extends), &'static str> {
        let read: StepLine = serde_json::from_slice(line).map_err(|_| "it has not the form of a checkpoint")?;
        if canonical(&read) != line {
            return Err("it is not in its one canonical form");
        }
        let proof = HeadProof::from_json(&canonical(&read.proof), public_keys)
            .map_err(|_| "its head was not signed by this vault")?;
        let hashes = |texts: &[String]| -> Option<Vec<Hash>> {
            texts.iter().map(|text| HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok()).collect()
        };
        let path = hashes(&read.path).ok_or("its path is no list of hashes")?;
        let ChainHead { head, tree, .. } = proof.head();
        match &tree {
            Some(tree) if !tree.ends_with(&head, &path) => return Err("its head is not the end of its tree"),
            None if !path.is_empty() => return Err("it has a path and no tree"),
            _ => {}
        }
        let extends = match (before, tree) {
            (None, _) if read.extends.is_some() => return Err("it extends nothing: it is the first"),
            (None, _) => Extends::First,
            (Some(before), Some(tree)) if before.head().tree.is_some() => {
                let former = before.head().tree.ok_or("it has no tree")?;
                let steps = read.extends.as_deref().ok_or("it does not prove that it extends the one before")?;
                let steps = hashes(steps).ok_or("its proof is no list of hashes")?;
                if !tree.extends(&former, &steps) || before.head().head.seq > head.seq {
                    return Err("it does not extend the one before");
                }
                Extends::Proven
            }
            (Some(_), _) if read.extends.is_some() => return Err("it has a proof and no tree"),
            (Some(before), _) if before.head().head.seq > head.seq => return Err("it ends before the one before it"),
            (Some(_), _) => Extends::NoTree,
        };
        Ok((proof, extends))
    }
}

/// A time as it is written in a bundle.
fn moment(text: &str) -> Option<Timestamp> {
    let at: jiff::Timestamp = text.parse().ok()?;
    Some(Timestamp(at.as_millisecond()))
}

/// What no check of a bundle shows.
pub const LIMITS: [&str; 7] = [
    "That nothing was left out: a vault that does not want to show a receipt or a record need not put it in. Compare the \
     counts with what you know from elsewhere, and checkpoints with copies that others kept.",
    "That the vault's machine was honest: whoever has its signing key and its disks can write another history. Checkpoints \
     that somebody else kept at the time show that; consistency proofs connect them with these.",
    "What the audit's entries say: a bundle holds the heads of the chains. `audit list` and `audit verify` show and check the \
     entries themselves, on the vault.",
    "That the public key is the vault's: get it from the operator by another way than the bundle.",
    "That inventory, settings, policies and list of software are true: they are what the vault said when it signed.",
    "That each line of the list of software is inside the program: the list is of all crates that its build locked, for every \
     target, feature, test and build step. It does not name the compiler or the C code that crates bring along.",
    "What a receipt or a report says itself that it does not reach.",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_one_spelling_and_stays_in_the_folder() {
        assert_eq!(Part::of("policy/v12.toml"), Some(Part::Policy(12)));
        assert_eq!(Part::of(&drill_path(3)), Some(Part::Drill));
        for path in ALWAYS {
            assert!(Part::of(path).is_some(), "{path}");
        }
        let bad = [
            "",
            ".",
            "..",
            "/",
            "../index.html",
            "policy/../index.html",
            "policy/v01.toml",
            "policy/v0.toml",
            "policy/v1.toml/",
            "policy/v+1.toml",
            "drills/../1.json",
            "drills/a.json",
            "/index.html",
            "index.html\0",
            "Index.html",
            "policy/v99999999999.toml",
            "manifest.json",
            "other.json",
        ];
        for path in bad {
            assert_eq!(Part::of(path), None, "{path:?}");
        }
    }
}
