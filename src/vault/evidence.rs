//! A bundle of evidence about a tenant and a period, written piece by piece: of receipts and records one is in memory at a
//! time, of the bundle one piece.
//!
//! The verb AUDIT is enough for a tenant's key: nothing in a bundle is a value, and what other verbs show of it (receipts,
//! policies, keys) an auditor is to see. What is about all tenants (the vault's own keys and settings, drills) only an
//! operator's key gets.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::access::Verb;
use crate::audit::{Action, Chain, Checkpoint, GrowingTree, HeadProof};
use crate::auth::{KeyId, Kind as PrincipalKind};
use crate::clock::Timestamp;
use crate::crypto::document;
use crate::crypto::sign::{Domain, key_id};
use crate::evidence::{Page as Shown, *};
use crate::ids::*;
use crate::receipt::Receipt;
use crate::receipt::rotation::RotationRecord;
use crate::report::Report;
use crate::storage::{ObjectKind, ObjectRow};
use crate::vault::Vault;
use crate::vault::audit_tree::day_no;
use crate::vault::call::Call;
use crate::vault::checkpoints::day_key;
use crate::vault::error::VaultError;
use crate::vault::keys::KeyInfo;
use crate::vault::policies::StoredPolicy;
use crate::vault::report::Surroundings;

/// Bundles that are made at the same time; more are refused as busy.
pub const AT_ONCE: usize = 2;
/// Bytes of one piece.
const PIECE: usize = 60 << 10;
/// Most bytes of a bundle.
const MAX_BUNDLE: u64 = 4 << 30;
/// Most reports of drills in a bundle, and bytes of one.
pub const MAX_DRILLS: usize = 64;
const MAX_DRILL: usize = 1 << 20;
/// Rows of a list that are looked at together.
const ROWS: u32 = 200;

/// The settings of this node, by their names with dots. They say where secrets are, and hold none.
#[derive(Debug, Clone, Default)]
pub struct Configuration {
    /// For the tenants' own bundles: nothing of the machine.
    pub told: BTreeMap<String, serde_json::Value>,
    /// For operators' bundles.
    pub whole: BTreeMap<String, serde_json::Value>,
}

/// What somebody asks for.
#[derive(Debug, Clone, Default)]
pub struct EvidenceAsk {
    /// Inclusive; `None`: since the tenant was made.
    pub from: Option<Timestamp>,
    /// Exclusive; `None`: until now.
    pub to: Option<Timestamp>,
    /// Signed reports of drills that the caller has.
    pub given: Vec<Vec<u8>>,
    /// Reports that this node keeps; those that are not of the vault and the period are left out. `None`: not asked for.
    pub stored: Option<Vec<Vec<u8>>>,
}

/// A piece of a bundle.
#[derive(Debug)]
pub enum Piece {
    /// A file begins; what follows is of it.
    File(String),
    Data(Vec<u8>),
    /// The last one.
    Manifest(Vec<u8>),
}

/// Where pieces go.
pub type Pieces = mpsc::Sender<Result<Piece, VaultError>>;

/// A bundle that may be written.
pub struct Evidence {
    call: Call,
    about: About,
    from: Timestamp,
    to: Timestamp,
    drills: Vec<(Vec<u8>, serde_json::Value)>,
    left_out: Vec<LeftOut>,
    around: Surroundings,
    /// Receipts and records that no key of the vault signed as they are now.
    unsigned: u64,
    _turn: OwnedSemaphorePermit,
}

struct Open {
    entry: FileEntry,
    hash: Sha256,
    waiting: Vec<u8>,
}

/// Cuts files into pieces and keeps their hashes.
struct Writer {
    to: Pieces,
    files: Vec<FileEntry>,
    open: Option<Open>,
    bytes: u64,
}

/// Nobody is there any more who could be told.
fn gone<T>(_: T) -> VaultError {
    VaultError::Busy { retry_ms: 0 }
}

impl Writer {
    async fn send(&self, piece: Piece) -> Result<(), VaultError> {
        self.to.send(Ok(piece)).await.map_err(gone)
    }

    async fn begin(&mut self, path: &str) -> Result<(), VaultError> {
        let entry = FileEntry { path: path.to_owned(), bytes: 0, sha256: String::new(), items: 0 };
        self.open = Some(Open { entry, hash: Sha256::new(), waiting: Vec::new() });
        self.send(Piece::File(path.to_owned())).await
    }

    /// Adds an item to the file that was begun.
    async fn item(&mut self, bytes: &[u8]) -> Result<(), VaultError> {
        self.bytes += bytes.len() as u64;
        let Some(open) = &mut self.open else { return Ok(()) };
        if self.bytes > MAX_BUNDLE {
            return Err(VaultError::WrongState("the period has too much for one bundle: ask for a shorter one"));
        }
        open.hash.update(bytes);
        open.entry.bytes += bytes.len() as u64;
        open.entry.items += 1;
        open.waiting.extend_from_slice(bytes);
        let mut full = Vec::new();
        while open.waiting.len() >= PIECE {
            let rest = open.waiting.split_off(PIECE);
            full.push(std::mem::replace(&mut open.waiting, rest));
        }
        for piece in full {
            self.send(Piece::Data(piece)).await?;
        }
        Ok(())
    }

    async fn line(&mut self, json: &[u8]) -> Result<(), VaultError> {
        self.item(&[json, b"\n"].concat()).await
    }

    async fn end(&mut self) -> Result<(), VaultError> {
        let Some(Open { mut entry, hash, waiting }) = self.open.take() else { return Ok(()) };
        entry.sha256 = HEXLOWER.encode(&hash.finalize());
        self.files.push(entry);
        if waiting.is_empty() { Ok(()) } else { self.send(Piece::Data(waiting)).await }
    }

    async fn file(&mut self, path: &str, bytes: &[u8]) -> Result<(), VaultError> {
        self.begin(path).await?;
        self.item(bytes).await?;
        self.end().await
    }
}

fn key_line(key: &KeyInfo) -> KeyLine {
    KeyLine {
        kind: key.kind.name().into(),
        version: key.version,
        state: if key.retiring { "retiring" } else { "current" }.into(),
        made_at: key.created.map(Timestamp::rfc3339),
        rotate_by: key.rotate_by.map(Timestamp::rfc3339),
        period_days: key.period_days,
        seals: key.seals,
        keys: key.count,
        left: key.left,
        id: key.id.clone(),
    }
}

fn left_out(what: &str, why: &str) -> LeftOut {
    LeftOut { what: what.into(), why: why.into() }
}

impl Vault {
    /// Whether a bundle may be made, and what it will be about; the audit has an entry of it before anything leaves.
    pub async fn begin_evidence(
        &self,
        call: Call,
        ask: EvidenceAsk,
        around: Surroundings,
    ) -> Result<Evidence, VaultError> {
        call.permit_for(Verb::Audit, None)?;
        let operator = call.principal.kind == PrincipalKind::Operator;
        let from = ask.from.unwrap_or(call.tenant.settings.created);
        // What happened in this very millisecond is in it too.
        let now = call.now.plus_ms(1);
        let to = ask.to.unwrap_or(now);
        if to > now {
            return Err(VaultError::invalid("end_time", "lies in the future"));
        }
        if from >= to {
            return Err(VaultError::invalid("start_time", "must be before the end of the period"));
        }
        let mut left =
            vec![left_out("entries of the audit", "`audit list` shows them; a bundle has the heads of the chains")];
        if ask.stored.is_some() && !operator {
            return Err(VaultError::invalid("stored_drills", "is for operators: drills name every tenant"));
        }
        if !operator {
            let what = "keys, rotations and paths of the vault itself, and drills that nobody gave";
            left.push(left_out(what, "a tenant's access key asked; an operator's gets them"));
        } else if ask.stored.is_none() && ask.given.is_empty() {
            left.push(left_out("drills", "nobody asked for them: they name every tenant"));
        }
        let drills = self.drills_of((from, to), ask, &mut left)?;
        let turn = self.evidence.clone().try_acquire_owned().map_err(|_| VaultError::Busy { retry_ms: 5_000 })?;
        self.note_listing(&call, Action::Evidence).await?;
        let about = About {
            vault: self.keyring.vault().to_string(),
            tenant: call.tenant.name.to_string(),
            tenant_no: call.tenant.no.0,
            from: from.rfc3339(),
            to: to.rfc3339(),
            made_at: call.wall.rfc3339(),
            tenant_time: call.now.rfc3339(),
            operator,
            program: concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")).into(),
        };
        Ok(Evidence { call, about, from, to, drills, left_out: left, around, unsigned: 0, _turn: turn })
    }

    /// Reports of drills that count: given ones must, stored ones may.
    fn drills_of(
        &self,
        (from, to): (Timestamp, Timestamp),
        ask: EvidenceAsk,
        left: &mut Vec<LeftOut>,
    ) -> Result<Vec<(Vec<u8>, serde_json::Value)>, VaultError> {
        let (keys, vault) = (self.receipt_keys(), self.keyring.vault().to_string());
        let read = |json: &[u8]| {
            let verified = document::verify(Domain::Drill, DRILL_FORMAT, json, &keys).ok();
            verified.map(|(body, _)| body).filter(|body| body["vault"] == vault.as_str() && json.len() <= MAX_DRILL)
        };
        let in_period =
            |body: &serde_json::Value| body["at"].as_i64().is_some_and(|at| (from..to).contains(&Timestamp(at)));
        let mut drills: Vec<(Vec<u8>, serde_json::Value)> = Vec::new();
        for json in ask.given {
            let bad = |rule: &'static str| VaultError::invalid("drills", rule);
            let body = read(&json).ok_or_else(|| bad("is no report of a drill that this vault signed"))?;
            if !in_period(&body) {
                return Err(bad("is of a drill outside the period"));
            }
            drills.push((json, body));
        }
        let mut unsigned = 0;
        for json in ask.stored.into_iter().flatten() {
            match read(&json) {
                Some(body) if in_period(&body) && drills.iter().all(|(known, _)| *known != json) => {
                    drills.push((json, body));
                }
                Some(_) => {}
                None => unsigned += 1,
            }
        }
        if unsigned > 0 {
            let why = "nobody signed them: they were tried away from the vault, or are not its own";
            left.push(left_out(&format!("{unsigned} reports of drills"), why));
        }
        match drills.len() <= MAX_DRILLS {
            true => Ok(drills),
            false => Err(VaultError::WrongState("there are too many drills in the period: ask for a shorter one")),
        }
    }
}

impl Evidence {
    /// Writes the bundle; ends early where nobody takes the pieces.
    pub async fn write(self, vault: &Vault, to: Pieces) {
        let mut writer = Writer { to: to.clone(), files: Vec::new(), open: None, bytes: 0 };
        if let Err(error) = self.write_to(vault, &mut writer).await {
            // A closed channel is a caller that went away.
            let _ = to.send(Err(error)).await;
        }
    }

    async fn write_to(mut self, vault: &Vault, out: &mut Writer) -> Result<(), VaultError> {
        let call = self.call.clone();
        let report = match &call.tenant.policy {
            Some(_) => {
                let json = vault.honesty_report(&call, &self.around).await?;
                out.file(REPORT, &json).await?;
                Some(Report::read(&json).ok_or(VaultError::DataLoss)?)
            }
            None => {
                self.left_out.push(left_out("the report", "no policy is in force"));
                None
            }
        };
        let policies = self.policies(vault, out).await?;
        let erasures = self.receipts(vault, out).await?;
        let rotations = self.rotations(vault, out).await?;
        if self.unsigned > 0 {
            let why = "their signature is not right, or is of a key that the vault no longer knows";
            self.left_out.push(left_out(&format!("{} receipts or records", self.unsigned), why));
        }
        let steps = self.checkpoints(vault, out).await?;
        let mut drills = Vec::new();
        for (i, (json, body)) in self.drills.iter().enumerate() {
            out.file(&drill_path(i + 1), json).await?;
            drills.push(PageDrill::new(body));
        }
        let inventory = self.inventory(vault).await?;
        out.file(KEYS, &Sheet::write(&self.about, inventory.clone())).await?;
        let signers = signer_lines(vault);
        out.file(SIGNERS, &Sheet::write(&self.about, signers.clone())).await?;
        let configuration = &vault.options.configuration;
        let settings = match self.about.operator {
            true => configuration.whole.clone(),
            false => configuration.told.clone(),
        };
        let settings = Settings { whole: self.about.operator, settings };
        out.file(CONFIGURATION, &Sheet::write(&self.about, settings.clone())).await?;
        let program = program_sha256().await;
        let (software, components) = sbom(program.as_deref());
        out.file(SBOM, &software).await?;
        if let Some(file) = out.files.last_mut() {
            file.items = components;
        }
        out.files.sort_by(|a, b| a.path.cmp(&b.path));
        let shown = page(&Shown {
            about: &self.about,
            controller: report.as_ref().map_or("", |report| &report.controller),
            files: &out.files,
            report: report.as_ref(),
            policies: &policies,
            erasures: &erasures,
            rotations: &rotations,
            inventory: &inventory,
            steps: &steps,
            signers: &signers,
            drills: &drills,
            settings: &settings,
            components,
            program: program.as_deref(),
            left_out: &self.left_out,
        });
        out.file(crate::evidence::PAGE, &shown).await?;
        out.files.sort_by(|a, b| a.path.cmp(&b.path));
        let manifest = Manifest { about: self.about, files: std::mem::take(&mut out.files), left_out: self.left_out };
        out.send(Piece::Manifest(manifest.sign(&vault.keyring.signing()))).await
    }

    /// All versions; the texts of those that were in force in the period or are now.
    async fn policies(&self, vault: &Vault, out: &mut Writer) -> Result<Vec<PolicyLine>, VaultError> {
        let (call, mut lines, mut after) = (&self.call, Vec::new(), PolicyVersion(0));
        let mut waiting: Option<StoredPolicy> = None;
        loop {
            let page = vault.policies_after(call, after, 20).await?;
            for next in page.rows {
                after = next.version;
                if let Some(one) = waiting.take() {
                    lines.push(self.policy(&one, Some(next.applied), out).await?);
                }
                waiting = Some(next);
            }
            if !page.more {
                break;
            }
        }
        if let Some(one) = waiting {
            lines.push(self.policy(&one, None, out).await?);
        }
        out.file(POLICIES, &Sheet::write(&self.about, lines.clone())).await?;
        Ok(lines)
    }

    async fn policy(
        &self,
        one: &StoredPolicy,
        until: Option<Timestamp>,
        out: &mut Writer,
    ) -> Result<PolicyLine, VaultError> {
        let in_force = one.applied < self.to && until.is_none_or(|until| until > self.from);
        let path = policy_path(one.version.0);
        let file = (in_force || one.active).then_some(path);
        if let Some(path) = &file {
            out.file(path, one.text.as_bytes()).await?;
        }
        Ok(PolicyLine {
            version: one.version.0,
            sha256: HEXLOWER.encode(&Sha256::digest(one.text.as_bytes())),
            applied_at: one.applied.rfc3339(),
            applied_by: if one.by.0 == 0 { String::new() } else { KeyId(one.by.0).to_string() },
            approval: one.approval.map(|id| id.to_string()),
            active: one.active,
            file,
        })
    }

    async fn receipts(&mut self, vault: &Vault, out: &mut Writer) -> Result<Vec<PageErasure>, VaultError> {
        let (keys, mut shown) = (vault.receipt_keys(), Vec::new());
        out.begin(RECEIPTS).await?;
        // Nothing that was asked for after the period ended in it.
        let mut after = Some((self.to, ObjectId(uuid::Uuid::max())));
        loop {
            let page = vault.operations_before(self.call.tenant.no, after, ROWS).await?;
            for operation in &page.rows {
                after = Some((operation.created, operation.id));
                if !operation.kind.is_erasure() || operation.erased_at.is_none() {
                    continue;
                }
                let Some(json) = vault.stored_receipt(self.call.tenant.no, operation.id).await? else { continue };
                let Ok(verified) = Receipt::verify(&json, &keys) else {
                    self.unsigned += 1;
                    continue;
                };
                let receipt = verified.receipt;
                if !(self.from..self.to).contains(&receipt.erased_at) {
                    continue;
                }
                out.line(&json).await?;
                if shown.len() < SHOWN {
                    shown.push(PageErasure::new(&receipt));
                }
            }
            if !page.more {
                break;
            }
        }
        out.end().await?;
        Ok(shown)
    }

    async fn rotations(&mut self, vault: &Vault, out: &mut Writer) -> Result<Vec<PageRotation>, VaultError> {
        let (keys, mut shown) = (vault.receipt_keys(), Vec::new());
        out.begin(ROTATIONS).await?;
        let own = self.about.operator.then_some(TenantNo::VAULT);
        for tenant in [Some(self.call.tenant.no), own].into_iter().flatten() {
            let mut after = Vec::new();
            loop {
                let page = vault.store.objects(tenant, ObjectKind::Rotation, Vec::new(), after, ROWS).await?;
                for row in &page.rows {
                    let Ok(verified) = RotationRecord::verify(&row.body, &keys) else {
                        self.unsigned += 1;
                        continue;
                    };
                    let record = verified.record;
                    if !(self.from..self.to).contains(&record.ended_at) {
                        continue;
                    }
                    out.line(&row.body).await?;
                    if shown.len() < SHOWN {
                        shown.push(PageRotation::new(&record));
                    }
                }
                match page.rows.last() {
                    Some(last) if page.more => after = last.key.clone(),
                    _ => break,
                }
            }
        }
        out.end().await?;
        Ok(shown)
    }

    async fn checkpoints(&self, vault: &Vault, out: &mut Writer) -> Result<Vec<PageStep>, VaultError> {
        let tenant = self.call.tenant.no;
        let (newest, trees) = vault.checkpoint_with_trees(tenant, self.call.wall).await?;
        let all = self.selected(vault, newest).await?;
        let mut shown = Vec::new();
        for (path, chain, last) in [(CHANGES, Chain::Change, &trees[0]), (READS, Chain::Read, &trees[1])] {
            out.begin(path).await?;
            let mut former: Option<Option<GrowingTree>> = None;
            for (place, (proofs, day)) in all.iter().enumerate() {
                let proof = if chain == Chain::Change { &proofs[0] } else { &proofs[1] };
                let kept = match day {
                    None => last.clone(),
                    Some(day) => vault.kept_tree(tenant, chain, Some(*day)).await?.map(|kept| kept.tree),
                };
                let empty = || (proof.head().head.seq == 0).then(GrowingTree::new);
                let tree = kept.or_else(empty).filter(|tree| proof.head().tree == Some(tree.tree()));
                let extends = match (&former, &tree) {
                    (Some(Some(former)), Some(tree)) => tree.extension(former),
                    _ => None,
                };
                let steps = tree.as_ref().map_or(Vec::new(), GrowingTree::path);
                out.item(&StepLine::new(proof, &steps, extends.as_deref()).to_line()).await?;
                if shown.len() < SHOWN {
                    shown.push(PageStep::new(proof, (place > 0).then_some(extends.is_some())));
                }
                former = Some(tree);
            }
            out.end().await?;
        }
        Ok(shown)
    }

    /// Both heads of the last checkpoint before the period, of each day in it, and of the first one after; with the day, or
    /// `None` for the one that was just made.
    async fn selected(
        &self,
        vault: &Vault,
        newest: Checkpoint,
    ) -> Result<Vec<([HeadProof; 2], Option<u32>)>, VaultError> {
        let tenant = self.call.tenant.no;
        let proofs = |checkpoint: &Checkpoint| {
            Some([checkpoint.proof(tenant, Chain::Change)?, checkpoint.proof(tenant, Chain::Read)?])
        };
        let (mut opening, mut all, mut after): (Option<ObjectRow>, Vec<_>, Vec<u8>) = (None, Vec::new(), Vec::new());
        let (today, first_day) = (day_key(newest.at()), day_key(self.from));
        'days: loop {
            let page = vault.checkpoints_of_days(&after, 16).await?;
            for row in page.rows {
                after = row.key.clone();
                if row.key >= today {
                    break 'days;
                }
                if row.key < first_day {
                    opening = Some(row);
                    continue;
                }
                let checkpoint = vault.read_checkpoint(&row)?;
                let Some(both) = proofs(&checkpoint) else { continue };
                let day = Some(day_no(checkpoint.at()));
                if checkpoint.at() < self.from {
                    all.clear();
                    opening = None;
                }
                all.push((both, day));
                if checkpoint.at() >= self.to {
                    break 'days;
                }
            }
            if !page.more {
                break;
            }
        }
        if let Some(row) = opening {
            let checkpoint = vault.read_checkpoint(&row)?;
            if let Some(both) = proofs(&checkpoint) {
                all.insert(0, (both, Some(day_no(checkpoint.at()))));
            }
        }
        if all.last().is_none_or(|(both, _)| both[0].at() < self.to) {
            all.push((proofs(&newest).ok_or(VaultError::NotFound)?, None));
        }
        Ok(all)
    }

    async fn inventory(&self, vault: &Vault) -> Result<Inventory, VaultError> {
        let tenant = vault.keys_of(&self.call).await?.iter().map(key_line).collect();
        let own = match self.about.operator {
            true => {
                let call = vault.call(self.call.principal.clone(), vault.tenant(TenantNo::VAULT)?);
                vault.keys_of(&call).await?.iter().map(key_line).collect()
            }
            false => Vec::new(),
        };
        Ok(Inventory { tenant, vault: own })
    }
}

/// SHA-256 of the program that runs, read once; `None` where it cannot be read.
async fn program_sha256() -> Option<String> {
    static KNOWN: OnceLock<Option<String>> = OnceLock::new();
    let read = || {
        let mut file = std::fs::File::open("/proc/self/exe").ok()?;
        let (mut hash, mut buffer) = (Sha256::new(), vec![0; 256 << 10]);
        loop {
            match std::io::Read::read(&mut file, &mut buffer).ok()? {
                0 => return Some(HEXLOWER.encode(&hash.finalize())),
                read => hash.update(&buffer[..read]),
            }
        }
    };
    let known = tokio::task::spawn_blocking(move || KNOWN.get_or_init(read).clone());
    known.await.ok().flatten()
}

fn signer_lines(vault: &Vault) -> Vec<SignerLine> {
    let line = |signer: &crate::vault::signers::SignerView| SignerLine {
        key_id: key_id(&signer.public),
        public_key: HEXLOWER.encode(&signer.public),
        since: signer.since.rfc3339(),
        until: signer.until.map(Timestamp::rfc3339),
        chain: signer.chain.map(|link| HEXLOWER.encode(&link)),
    };
    vault.signers().iter().map(line).collect()
}

/// For who has an [`Arc`]: writes in a task of its own.
pub fn stream(vault: Arc<Vault>, evidence: Evidence) -> mpsc::Receiver<Result<Piece, VaultError>> {
    let (to, from) = mpsc::channel(4);
    tokio::spawn(async move { evidence.write(&vault, to).await });
    from
}
