//! What a restore must not undo: the ledger, from wherever it is left, and receipts that were handed in.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use crate::clock::Timestamp;
use crate::ids::*;
use crate::keyring::ledger::{LedgerEntry, LedgerError, LedgerHead, LedgerKind, LedgerReader, WHOLE};
use crate::receipt::{Receipt, ReceiptRefused, Scope};

/// Why a ledger or a receipt is refused; the file is named.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error("{path}: {source}")]
    Ledger {
        path: PathBuf,
        #[source]
        source: LedgerError,
    },
    /// They went different ways from the same beginning.
    #[error("{path} is not the beginning of {longest}: one of them is not this vault's")]
    Fork { path: PathBuf, longest: PathBuf },
    /// The operator says that it is longer.
    #[error("the ledger ends at entry {there}, and --ledger-through says {wanted}: its end is missing")]
    Short { there: u64, wanted: u64 },
    #[error("{path}: {source}")]
    Receipt {
        path: PathBuf,
        #[source]
        source: ReceiptRefused,
    },
    #[error("{path}: a receipt of another vault")]
    OtherVault { path: PathBuf },
    #[error("{path}")]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// A class that is erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dead {
    /// This version and all below.
    pub through: DekVersion,
    /// The whole subject went, in that operation: a tombstone stands for it.
    pub whole: bool,
    pub operation: ObjectId,
    pub at: Timestamp,
}

/// Everything that was decided.
#[derive(Debug)]
pub struct Decisions {
    pub dead: HashMap<(TenantNo, SubjectUid, ClassNo), Dead>,
    pub tenants_erased: BTreeMap<TenantNo, Timestamp>,
    /// All other decisions, in order.
    pub other: Vec<LedgerEntry>,
    /// The highest number that any of them names.
    pub highest_uid: SubjectUid,
    pub highest_tenant: TenantNo,
    /// Where the ledger ends, and when its last entry was made.
    pub head: LedgerHead,
    pub last_at: Option<Timestamp>,
    /// Nothing was decided after its end: an anchor or the operator says so.
    pub tail_known: bool,
    /// Where that ledger is; `None`: there is none, and a data archive always has one, so that no archive was made.
    pub ledger: Option<PathBuf>,
    /// What receipts say and the ledger did not have: to be appended.
    pub from_receipts: Vec<LedgerEntry>,
    /// Receipts about several subjects: they prove and do not name them.
    pub receipts_of_many: u64,
}

/// Where a ledger can be, and what says where it ends.
pub struct Sources<'a> {
    pub vault: VaultId,
    pub public_keys: &'a [[u8; 32]],
    pub ledgers: &'a [PathBuf],
    pub anchor: Option<LedgerHead>,
    /// The operator's word.
    pub through: Option<u64>,
    /// Files, or folders of files.
    pub receipts: &'a [PathBuf],
}

impl Decisions {
    /// Reads everything; blocking.
    pub fn read(sources: &Sources<'_>) -> Result<Self, ReplayError> {
        let mut all = Decisions {
            dead: HashMap::new(),
            tenants_erased: BTreeMap::new(),
            other: Vec::new(),
            highest_uid: SubjectUid(0),
            highest_tenant: TenantNo(0),
            head: LedgerHead::default(),
            last_at: None,
            tail_known: false,
            ledger: None,
            from_receipts: Vec::new(),
            receipts_of_many: 0,
        };
        all.ledger = all.choose(sources)?;
        if let Some(longest) = all.ledger.clone() {
            let failed = |source| ReplayError::Ledger { path: longest.clone(), source };
            let mut reader = LedgerReader::open(&longest, sources.vault).map_err(failed)?;
            while let Some(batch) = reader.next_batch().map_err(failed)? {
                batch.entries.iter().for_each(|entry| all.take(entry));
            }
        }
        for path in sources.receipts {
            let files = if path.is_dir() { files_in(path)? } else { vec![path.clone()] };
            for file in files {
                all.take_receipt(&file, sources)?;
            }
        }
        Ok(all)
    }

    /// Checks every ledger, and answers the one that goes furthest.
    fn choose(&mut self, sources: &Sources<'_>) -> Result<Option<PathBuf>, ReplayError> {
        let mut longest: Option<(PathBuf, LedgerHead)> = None;
        let mut heads = Vec::new();
        for path in sources.ledgers {
            let failed = |source| ReplayError::Ledger { path: path.clone(), source };
            let reader = LedgerReader::open(path, sources.vault).map_err(failed)?;
            let head = reader.verify(sources.public_keys, None).map_err(failed)?;
            if longest.as_ref().is_none_or(|(_, at)| head.seq > at.seq) {
                longest = Some((path.clone(), head));
            }
            heads.push((path, head));
        }
        let Some((longest, head)) = longest else {
            return match sources.through.unwrap_or(0) {
                0 => Ok(None),
                wanted => Err(ReplayError::Short { there: 0, wanted }),
            };
        };
        for (path, at) in heads {
            let reader = LedgerReader::open(&longest, sources.vault);
            let there = reader.and_then(|reader| reader.verify(sources.public_keys, Some(at)));
            there.map_err(|_| ReplayError::Fork { path: path.clone(), longest: longest.clone() })?;
        }
        if let Some(anchor) = sources.anchor {
            let reader = LedgerReader::open(&longest, sources.vault);
            let checked = reader.and_then(|reader| reader.verify(sources.public_keys, Some(anchor)));
            checked.map_err(|source| ReplayError::Ledger { path: longest.clone(), source })?;
            self.tail_known = true;
        }
        if let Some(wanted) = sources.through {
            if head.seq < wanted {
                return Err(ReplayError::Short { there: head.seq, wanted });
            }
            self.tail_known = true;
        }
        self.head = head;
        Ok(Some(longest))
    }

    fn take(&mut self, entry: &LedgerEntry) {
        self.highest_uid = self.highest_uid.max(entry.uid);
        self.highest_tenant = self.highest_tenant.max(entry.tenant);
        self.last_at = self.last_at.max(Some(entry.at));
        match entry.kind {
            LedgerKind::Erased => {
                let dead = Dead {
                    through: entry.version,
                    whole: entry.number == WHOLE,
                    operation: entry.object,
                    at: entry.at,
                };
                self.bury((entry.tenant, entry.uid, entry.class), dead);
            }
            LedgerKind::TenantErased => {
                self.tenants_erased.insert(entry.tenant, entry.at);
            }
            _ => self.other.push(*entry),
        }
    }

    /// Answers whether it was not known.
    fn bury(&mut self, key: (TenantNo, SubjectUid, ClassNo), dead: Dead) -> bool {
        match self.dead.get_mut(&key) {
            Some(known) if known.through >= dead.through => {
                known.whole |= dead.whole;
                false
            }
            Some(known) => {
                *known = Dead { whole: known.whole || dead.whole, ..dead };
                true
            }
            None => {
                self.dead.insert(key, dead);
                true
            }
        }
    }

    fn take_receipt(&mut self, path: &Path, sources: &Sources<'_>) -> Result<(), ReplayError> {
        let io = |source| ReplayError::Io { path: path.to_owned(), source };
        let bytes = std::fs::read(path).map_err(io)?;
        let json = bytes.trim_ascii_end();
        let read = Receipt::verify(json, sources.public_keys);
        let receipt = read.map_err(|source| ReplayError::Receipt { path: path.to_owned(), source })?.receipt;
        if receipt.vault != sources.vault {
            return Err(ReplayError::OtherVault { path: path.to_owned() });
        }
        if receipt.scope == Scope::Tenant {
            if self.tenants_erased.insert(receipt.tenant, receipt.erased_at).is_none() {
                self.from_receipts.push(LedgerEntry::new(LedgerKind::TenantErased, receipt.tenant, receipt.erased_at));
            }
            return Ok(());
        }
        let Some(person) = receipt.subject else {
            self.receipts_of_many += 1;
            return Ok(());
        };
        for class in &receipt.erased {
            let dead = Dead {
                through: class.through_version,
                whole: receipt.scope == Scope::Subject && receipt.held.is_empty(),
                operation: receipt.operation,
                at: receipt.erased_at,
            };
            if self.bury((receipt.tenant, person.uid, class.class), dead) {
                self.from_receipts.push(LedgerEntry {
                    uid: person.uid,
                    class: class.class,
                    version: class.through_version,
                    generation: receipt.generation,
                    object: receipt.operation,
                    number: if dead.whole { WHOLE } else { 0 },
                    ..LedgerEntry::new(LedgerKind::Erased, receipt.tenant, receipt.erased_at)
                });
            }
        }
        self.highest_uid = self.highest_uid.max(person.uid);
        self.highest_tenant = self.highest_tenant.max(receipt.tenant);
        Ok(())
    }

    /// Whether a class of that version lives.
    pub fn lives(&self, tenant: TenantNo, uid: SubjectUid, class: ClassNo, version: DekVersion) -> bool {
        self.dead.get(&(tenant, uid, class)).is_none_or(|dead| dead.through < version)
    }
}

fn files_in(dir: &Path) -> Result<Vec<PathBuf>, ReplayError> {
    let io = |source| ReplayError::Io { path: dir.to_owned(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|e| e == "json") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
