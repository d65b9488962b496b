//! The offline check of a bundle: signatures, hashes, proofs, and that all of it is about one vault, tenant and period.

use std::collections::BTreeSet;
use std::io::{self, BufRead, Read};

use data_encoding::HEXLOWER;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::*;
use crate::audit::{Chain, HeadProof};
use crate::crypto::sign::{follows, key_id};
use crate::receipt::rotation::RotationRecord;
use crate::receipt::{Receipt, ReceiptRefused};
use crate::report::Report;

/// Why a bundle does not count.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {why}")]
pub struct Refused {
    /// Path in the bundle.
    pub file: String,
    pub why: Why,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum Why {
    #[error("{0}")]
    Document(#[from] DocumentRefused),
    #[error("line {line}: {refused}")]
    Receipt { line: u64, refused: ReceiptRefused },
    #[error("line {line}: {refused}")]
    Rotation { line: u64, refused: DocumentRefused },
    #[error("line {line}: {what}")]
    Step { line: u64, what: &'static str },
    #[error("the manifest names it, and it is not there")]
    Missing,
    #[error("it is there, and the manifest does not name it")]
    TooMany,
    #[error("its bytes are not those that the manifest names")]
    Bytes,
    #[error("it does not have the form that it must have")]
    Form,
    #[error("it is larger than such a document can be")]
    TooLarge,
    #[error("line {line} is of another vault, tenant or time than the manifest says")]
    ForeignLine { line: u64 },
    #[error("it is of another vault, tenant or time than the manifest says")]
    Foreign,
    #[error("its key was not signed by the one before")]
    Chain,
    #[error("it does not agree with {0}")]
    Disagrees(&'static str),
    #[error("it cannot be read")]
    Unreadable(#[source] io::Error),
}

/// Something that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checked {
    pub what: &'static str,
    pub count: u64,
    /// What was checked about it.
    pub how: String,
}

/// A bundle that is right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub about: About,
    /// The key that signed the manifest.
    pub key_id: String,
    /// The given key from which the chain of signing keys leads to that one; `None`: it was given itself.
    pub by_chain_from: Option<String>,
    pub checked: Vec<Checked>,
    pub left_out: Vec<LeftOut>,
}

/// Checks a bundle with nothing but public keys. `names` are the files that are there, `open` reads one of them; of large
/// files only a line is in memory at a time.
pub fn verify<R: BufRead>(
    names: &BTreeSet<String>,
    mut open: impl FnMut(&str) -> io::Result<R>,
    trusted: &[[u8; 32]],
) -> Result<Verdict, Refused> {
    let bad = |why: Why| Refused { file: MANIFEST.into(), why };
    let mut read = |path: &str| -> Result<Vec<u8>, Refused> {
        let mut bytes = Vec::new();
        let read = open(path).and_then(|file| file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes));
        let why = match read {
            Ok(_) if bytes.len() as u64 <= MAX_DOCUMENT => return Ok(bytes),
            Ok(_) => Why::TooLarge,
            Err(error) => Why::Unreadable(error),
        };
        Err(Refused { file: path.into(), why })
    };
    for needed in [MANIFEST, SIGNERS] {
        if !names.contains(needed) {
            return Err(Refused { file: needed.into(), why: Why::Missing });
        }
    }
    // The list of keys counts for what it links to the given ones; what else it says counts once the manifest does.
    let signers: Sheet<Vec<SignerLine>> = form(SIGNERS, &read(SIGNERS)?)?;
    let keys = Keys::read(&signers)?;
    let reached = keys.reached(trusted);
    let all: Vec<[u8; 32]> = reached.iter().map(|(key, _)| *key).collect();
    let (manifest, signer) = Manifest::verify(&read(MANIFEST)?, &all).map_err(|refused| bad(refused.into()))?;
    let by_chain_from = reached.iter().find(|(key, _)| key_id(key) == signer).and_then(|(_, from)| from.clone());
    if keys.list.first().is_none_or(|first| key_id(first) != signer) {
        return Err(Refused { file: SIGNERS.into(), why: Why::Disagrees("the signature of the manifest") });
    }
    complete(&manifest, names)?;
    let times = Times::read(&manifest.about).ok_or_else(|| bad(Why::Form))?;
    let mut check = Check { open, manifest: &manifest, keys: &keys.list, times, checked: Vec::new() };
    check.note("manifest", 1, "signature; each file is there with the bytes that it names, and no other file".into());
    check.signers(&keys)?;
    check.policies()?;
    check.receipts()?;
    check.rotations()?;
    check.checkpoints()?;
    check.drills()?;
    check.sheets()?;
    let checked = check.checked;
    let Manifest { about, left_out, .. } = manifest;
    Ok(Verdict { about, key_id: signer, by_chain_from, checked, left_out })
}

fn form<T: DeserializeOwned>(file: &str, json: &[u8]) -> Result<T, Refused> {
    serde_json::from_slice(json).map_err(|_| Refused { file: file.into(), why: Why::Form })
}

/// Each file once, of a kind that is known, and none too few or too many.
fn complete(manifest: &Manifest, names: &BTreeSet<String>) -> Result<(), Refused> {
    let files = &manifest.files;
    let sorted = files.windows(2).all(|pair| pair[0].path < pair[1].path);
    if !sorted || files.len() > MAX_FILES || files.iter().any(|file| Part::of(&file.path).is_none()) {
        return Err(Refused { file: MANIFEST.into(), why: Why::Form });
    }
    let named: BTreeSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
    if ALWAYS.iter().any(|needed| !named.contains(needed)) {
        return Err(Refused { file: MANIFEST.into(), why: Why::Form });
    }
    if let Some(missing) = named.iter().find(|name| !names.contains(**name)) {
        return Err(Refused { file: (*missing).into(), why: Why::Missing });
    }
    let extra = names.iter().find(|name| name.as_str() != MANIFEST && !named.contains(name.as_str()));
    extra.map_or(Ok(()), |extra| Err(Refused { file: extra.clone(), why: Why::TooMany }))
}

/// The published keys, the present one first.
struct Keys {
    list: Vec<[u8; 32]>,
    vault: [u8; 16],
    /// By each key, the signature of the one that follows it in the list (which is older) over it.
    links: Vec<Option<[u8; 64]>>,
}

impl Keys {
    fn read(sheet: &Sheet<Vec<SignerLine>>) -> Result<Keys, Refused> {
        let bad = || Refused { file: SIGNERS.into(), why: Why::Form };
        let bytes = |text: &str| HEXLOWER.decode(text.as_bytes()).map_err(|_| bad());
        let vault = bytes(&sheet.vault)?.try_into().map_err(|_| bad())?;
        let mut keys = Keys { list: Vec::new(), vault, links: Vec::new() };
        for line in &sheet.content {
            let key: [u8; 32] = bytes(&line.public_key)?.try_into().map_err(|_| bad())?;
            let link = line.chain.as_ref().map(|text| bytes(text)?.try_into().map_err(|_| bad())).transpose()?;
            if key_id(&key) != line.key_id || keys.list.contains(&key) {
                return Err(bad());
            }
            keys.list.push(key);
            keys.links.push(link);
        }
        Ok(keys)
    }

    /// Whether a key, by its place, was signed by the one before it.
    fn linked(&self, place: usize) -> Option<bool> {
        let (link, former) = (self.links[place].as_ref()?, self.list.get(place + 1)?);
        Some(follows(former, &self.vault, &self.list[place], link))
    }

    /// The trusted keys, and those to which the chain leads from them, each with where it began.
    fn reached(&self, trusted: &[[u8; 32]]) -> Vec<([u8; 32], Option<String>)> {
        let mut reached: Vec<([u8; 32], Option<String>)> = trusted.iter().map(|key| (*key, None)).collect();
        for place in (0..self.list.len().saturating_sub(1)).rev() {
            let (key, former) = (self.list[place], self.list[place + 1]);
            let from = reached.iter().find(|(known, _)| *known == former).map(|(_, from)| from.clone());
            let new = reached.iter().all(|(known, _)| *known != key);
            if let (Some(from), true, Some(true)) = (from, new, self.linked(place)) {
                reached.push((key, Some(from.unwrap_or_else(|| key_id(&former)))));
            }
        }
        reached
    }
}

struct Times {
    from: Timestamp,
    to: Timestamp,
    made_at: Timestamp,
    /// The tenant has a clock of its own: its times are not those of the machine.
    apart: bool,
}

impl Times {
    fn read(about: &About) -> Option<Times> {
        let one = |text: &str| moment(text).filter(|at| at.rfc3339() == text);
        let times = Times {
            from: one(&about.from)?,
            to: one(&about.to)?,
            made_at: one(&about.made_at)?,
            apart: about.made_at != about.tenant_time,
        };
        (times.from < times.to && times.to <= one(&about.tenant_time)?.plus_ms(1)).then_some(times)
    }

    fn holds(&self, at: Timestamp) -> bool {
        (self.from..self.to).contains(&at)
    }
}

struct Check<'m, F> {
    open: F,
    manifest: &'m Manifest,
    keys: &'m [[u8; 32]],
    times: Times,
    checked: Vec<Checked>,
}

impl<R: BufRead, F: FnMut(&str) -> io::Result<R>> Check<'_, F> {
    fn note(&mut self, what: &'static str, count: u64, how: String) {
        self.checked.push(Checked { what, count, how });
    }

    fn entry(&self, path: &str) -> Option<&FileEntry> {
        self.manifest.files.iter().find(|file| file.path == path)
    }

    /// Reads a file piece by piece, ends of lines included; the bytes must be those that the manifest names, whatever
    /// `each` says of them.
    fn pieces(
        &mut self,
        path: &str,
        lines: bool,
        mut each: impl FnMut(u64, &[u8]) -> Result<(), Why>,
    ) -> Result<u64, Refused> {
        let bad = |why: Why| Refused { file: path.into(), why };
        let entry = self.entry(path).ok_or_else(|| bad(Why::Missing))?.clone();
        let mut file = (self.open)(path).map_err(|error| bad(Why::Unreadable(error)))?;
        let (mut hash, mut bytes, mut count, mut wrong) = (Sha256::new(), 0, 0, Ok(()));
        let most = if lines { MAX_LINE as u64 } else { MAX_DOCUMENT } + 1;
        let mut piece = Vec::new();
        loop {
            piece.clear();
            let mut limited = file.by_ref().take(most);
            let read = if lines { limited.read_until(b'\n', &mut piece) } else { limited.read_to_end(&mut piece) };
            if read.map_err(|error| bad(Why::Unreadable(error)))? == 0 {
                break;
            }
            if piece.len() as u64 == most {
                return Err(bad(Why::TooLarge));
            }
            hash.update(&piece);
            bytes += piece.len() as u64;
            count += 1;
            if wrong.is_ok() {
                wrong = match (lines, piece.split_last()) {
                    (true, Some((b'\n', line))) => each(count, line),
                    (true, _) => Err(Why::Form),
                    (false, _) => each(count, &piece),
                };
            }
        }
        if bytes != entry.bytes || HEXLOWER.encode(&hash.finalize()) != entry.sha256 {
            return Err(bad(Why::Bytes));
        }
        wrong.map_err(bad)?;
        if lines && count != entry.items {
            return Err(bad(Why::Form));
        }
        Ok(count)
    }

    fn whole(&mut self, path: &str) -> Result<Vec<u8>, Refused> {
        let mut whole = Vec::new();
        self.pieces(path, false, |_, bytes| {
            whole.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(whole)
    }

    /// A document that the manifest alone signs.
    fn sheet<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, Refused> {
        let sheet: Sheet<T> = form(path, &self.whole(path)?)?;
        let about = &self.manifest.about;
        let (own, said) =
            ((&sheet.vault, &sheet.tenant, &sheet.made_at), (&about.vault, &about.tenant, &about.made_at));
        if own != said {
            return Err(Refused { file: path.into(), why: Why::Foreign });
        }
        Ok(sheet.content)
    }

    fn signers(&mut self, keys: &Keys) -> Result<(), Refused> {
        let _: Vec<SignerLine> = self.sheet(SIGNERS)?;
        let (mut linked, count) = (0, keys.list.len() as u64);
        for place in 0..keys.list.len() {
            match keys.linked(place) {
                Some(true) => linked += 1,
                Some(false) => return Err(Refused { file: SIGNERS.into(), why: Why::Chain }),
                None => {}
            }
        }
        self.note("signing keys", count, format!("{linked} signed by the key before; the manifest's signer names all"));
        Ok(())
    }

    fn policies(&mut self) -> Result<(), Refused> {
        let lines: Vec<PolicyLine> = self.sheet(POLICIES)?;
        let bad = |why| Refused { file: POLICIES.into(), why };
        let mut texts = 0;
        for line in lines.iter().filter(|line| line.file.is_some()) {
            let path = policy_path(line.version);
            if line.file.as_ref() != Some(&path) || self.entry(&path).is_none_or(|file| file.sha256 != line.sha256) {
                return Err(bad(Why::Disagrees("the texts of the policies")));
            }
            self.whole(&path)?;
            texts += 1;
        }
        let files = self.manifest.files.iter().filter(|file| matches!(Part::of(&file.path), Some(Part::Policy(_))));
        let mut active = lines.iter().filter(|line| line.active);
        let (active, more) = (active.next(), active.next().is_some());
        if files.count() != texts || more || active.is_some_and(|line| line.file.is_none()) {
            return Err(bad(Why::Disagrees("the texts of the policies")));
        }
        self.note("policies", lines.len() as u64, format!("the texts of {texts} are those of their SHA-256"));
        if self.entry(REPORT).is_none() {
            return Ok(());
        }
        let bad = |why| Refused { file: REPORT.into(), why };
        let json = self.whole(REPORT)?;
        let (report, _) = Report::verify(&json, self.keys).map_err(|refused| bad(refused.into()))?;
        let about = &self.manifest.about;
        if (&report.vault, &report.tenant, &report.made_at) != (&about.vault, &about.tenant, &about.tenant_time) {
            return Err(bad(Why::Foreign));
        }
        if active.is_none_or(|line| (line.version, &line.sha256) != (report.policy_version, &report.policy_sha256)) {
            return Err(bad(Why::Disagrees("the policy in force")));
        }
        self.note("report", report.promises.len() as u64, "signature; it is about the policy in force".into());
        Ok(())
    }

    fn receipts(&mut self) -> Result<(), Refused> {
        let (about, keys) = (&self.manifest.about, self.keys);
        let (from, to) = (self.times.from, self.times.to);
        let count = self.pieces(RECEIPTS, true, |line, json| {
            let verified = Receipt::verify(json, keys).map_err(|refused| Why::Receipt { line, refused })?;
            let receipt = verified.receipt;
            let own = (HEXLOWER.encode(&receipt.vault.0), receipt.tenant.0, receipt.tenant_name);
            let said = own == (about.vault.clone(), about.tenant_no, about.tenant.clone());
            let fits = said && (from..to).contains(&receipt.erased_at);
            fits.then_some(()).ok_or(Why::ForeignLine { line })
        })?;
        self.note("receipts", count, "signature of each; vault, tenant and period".into());
        Ok(())
    }

    fn rotations(&mut self) -> Result<(), Refused> {
        let (about, keys) = (&self.manifest.about, self.keys);
        let (from, to) = (self.times.from, self.times.to);
        let count = self.pieces(ROTATIONS, true, |line, json| {
            let verified = RotationRecord::verify(json, keys).map_err(|refused| Why::Rotation { line, refused })?;
            let record = verified.record;
            let whose = record.tenant.0 == about.tenant_no && record.tenant_name == about.tenant
                || about.operator && record.tenant == crate::ids::TenantNo::VAULT;
            let fits = whose && HEXLOWER.encode(&record.vault.0) == about.vault;
            let fits = fits && (from..to).contains(&record.ended_at);
            fits.then_some(()).ok_or(Why::ForeignLine { line })
        })?;
        self.note("rotations", count, "signature of each; vault, tenant and period".into());
        Ok(())
    }

    fn checkpoints(&mut self) -> Result<(), Refused> {
        let mut times: Vec<Vec<Timestamp>> = Vec::new();
        for (path, chain, what) in
            [(CHANGES, Chain::Change, "checkpoints of changes"), (READS, Chain::Read, "checkpoints of reads")]
        {
            let (about, keys) = (&self.manifest.about, self.keys);
            let mut before: Option<HeadProof> = None;
            let (mut proven, mut without, mut at) = (0, 0, Vec::new());
            let count = self.pieces(path, true, |line, json| {
                let (proof, extends) =
                    StepLine::verify(json, before.as_ref(), keys).map_err(|what| Why::Step { line, what })?;
                let head = proof.head();
                let own = (proof.vault(), head.tenant.0, head.chain);
                if own != (about.vault.as_str(), about.tenant_no, chain)
                    || before.as_ref().is_some_and(|before| before.at() > proof.at())
                {
                    return Err(Why::ForeignLine { line });
                }
                at.push(proof.at());
                match extends {
                    Extends::First => {}
                    Extends::Proven => proven += 1,
                    Extends::NoTree => without += 1,
                }
                before = Some(proof);
                Ok(())
            })?;
            if !self.in_period(&at) {
                return Err(Refused { file: path.into(), why: Why::Foreign });
            }
            let mut how = format!("signature of each; {proven} proven to extend the one before");
            if without > 0 {
                how += &format!("; {without} NOT proven to: signed before checkpoints had trees");
            }
            self.note(what, count, how);
            times.push(at);
        }
        match times[0] == times[1] {
            true => Ok(()),
            false => Err(Refused { file: READS.into(), why: Why::Disagrees(CHANGES) }),
        }
    }

    /// All are of the period, but for the last one before it and the first one after.
    fn in_period(&self, at: &[Timestamp]) -> bool {
        let inner = at.get(1..at.len().saturating_sub(1)).unwrap_or_default();
        let made = at.last().is_none_or(|last| *last <= self.times.made_at);
        made && (self.times.apart || inner.iter().all(|at| self.times.holds(*at)))
    }

    fn drills(&mut self) -> Result<(), Refused> {
        let files = self.manifest.files.iter().filter(|file| Part::of(&file.path) == Some(Part::Drill));
        let paths: Vec<String> = files.map(|file| file.path.clone()).collect();
        for path in &paths {
            let bad = |why| Refused { file: path.clone(), why };
            let json = self.whole(path)?;
            let verified = document::verify(Domain::Drill, DRILL_FORMAT, &json, self.keys);
            let (body, _) = verified.map_err(|refused| bad(refused.into()))?;
            let at = body["at"].as_i64().map(Timestamp);
            if body["vault"] != self.manifest.about.vault.as_str() || !at.is_some_and(|at| self.times.holds(at)) {
                return Err(bad(Why::Foreign));
            }
        }
        self.note("drills", paths.len() as u64, "signature of each; vault and period".into());
        Ok(())
    }

    /// What the manifest alone signs.
    fn sheets(&mut self) -> Result<(), Refused> {
        let inventory: Inventory = self.sheet(KEYS)?;
        let settings: Settings = self.sheet(CONFIGURATION)?;
        let operator = self.manifest.about.operator;
        if settings.whole != operator || inventory.vault.is_empty() == operator {
            return Err(Refused { file: CONFIGURATION.into(), why: Why::Disagrees("who asked for the bundle") });
        }
        let keys = (inventory.tenant.len() + inventory.vault.len()) as u64;
        self.note("inventory of keys", keys, "as the vault stated it: vault, tenant, hash".into());
        self.note("settings", settings.settings.len() as u64, "as the vault stated them: vault, tenant, hash".into());
        let software: serde_json::Value = form(SBOM, &self.whole(SBOM)?)?;
        let components = software["components"].as_array().map_or(0, Vec::len) as u64;
        if software["bomFormat"] != "CycloneDX" || self.entry(SBOM).is_none_or(|file| file.items != components) {
            return Err(Refused { file: SBOM.into(), why: Why::Form });
        }
        self.note("software", components, "as the program states it: form, hash".into());
        self.whole(PAGE)?;
        self.note("page", 1, "hash: it is the page that the vault wrote".into());
        Ok(())
    }
}
