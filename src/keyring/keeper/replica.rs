//! One replica: its header, its own blocks, and the copying, comparing and wiping of its files.

use std::io;
use std::sync::Arc;

use super::block::{self, BLOCK, FIRST, RECORD, Record, RecordKind};
use super::file::{LEDGER, ROOTS};
use super::medium::{BlockFile, Medium};
use super::*;
use crate::keyring::ledger::{self, ReadAt};

/// Blocks by which the file of blocks grows.
pub const GROW_BLOCKS: u64 = 64;
/// Bytes by which the ledger grows.
pub const GROW_LEDGER: u64 = 256 * 1024;

/// What block 0 and 1 of a replica say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub id: [u8; 16],
    /// Raised by those that are left, before they go on without one.
    pub epoch: u64,
    /// All replicas that count.
    pub members: Vec<[u8; 16]>,
    pub retired: Vec<([u8; 16], Timestamp)>,
}

impl Header {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.id.to_vec();
        out.extend_from_slice(&self.epoch.to_be_bytes());
        out.push(self.members.len() as u8);
        self.members.iter().for_each(|id| out.extend_from_slice(id));
        out.push(self.retired.len() as u8);
        for (id, at) in &self.retired {
            out.extend_from_slice(id);
            out.extend_from_slice(&at.0.to_be_bytes());
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (id, rest) = bytes.split_first_chunk::<16>()?;
        let (epoch, rest) = rest.split_first_chunk::<8>()?;
        let (&count, rest) = rest.split_first()?;
        let (members, rest) = rest.split_at_checked(16 * count as usize)?;
        let (&count, rest) = rest.split_first()?;
        if rest.len() != 24 * count as usize {
            return None;
        }
        Some(Header {
            id: *id,
            epoch: u64::from_be_bytes(*epoch),
            members: members.as_chunks::<16>().0.to_vec(),
            retired: rest
                .as_chunks::<24>()
                .0
                .iter()
                .filter_map(|entry| {
                    let (id, at) = entry.split_first_chunk::<16>()?;
                    Some((*id, Timestamp(i64::from_be_bytes(at.try_into().ok()?))))
                })
                .collect(),
        })
    }
}

/// An own block's sequence and bytes.
pub type Own = (u64, Vec<u8>);

/// An opened replica.
pub struct Open {
    pub roots: Arc<dyn BlockFile>,
    pub ledger: Arc<dyn BlockFile>,
    pub roots_dirty: bool,
    pub ledger_dirty: bool,
}

impl Open {
    pub fn write_record(&mut self, at: u64, record: &[u8; RECORD]) -> io::Result<()> {
        let mut block = [0; BLOCK as usize];
        block[..RECORD].copy_from_slice(record);
        self.roots_dirty = true;
        self.roots.write_at(at * BLOCK, &block)
    }

    pub fn read_record(&self, at: u64) -> io::Result<[u8; RECORD]> {
        let mut record = [0; RECORD];
        let n = self.roots.read_at(at * BLOCK, &mut record)?;
        record[n..].fill(0); // beyond the end nothing was ever written
        Ok(record)
    }

    /// The right own records of a pair, by place.
    pub fn own_pair(&self, vault: VaultId, kind: RecordKind) -> io::Result<[Option<Own>; 2]> {
        let mut out = [None, None];
        for (place, found) in out.iter_mut().enumerate() {
            if let Record::Own { kind: k, sequence, bytes } =
                block::decode(vault, &self.read_record(own_place(kind) + place as u64)?)
                && k == kind
            {
                *found = Some((sequence, bytes));
            }
        }
        Ok(out)
    }

    pub fn own_newest(&self, vault: VaultId, kind: RecordKind) -> io::Result<Option<Own>> {
        Ok(self.own_pair(vault, kind)?.into_iter().flatten().max_by_key(|(sequence, _)| *sequence))
    }

    /// Writes into the place that does not hold the newest.
    pub fn write_own(&mut self, vault: VaultId, kind: RecordKind, sequence: u64, bytes: &[u8]) -> io::Result<()> {
        let place = match self.own_pair(vault, kind)? {
            [Some((a, _)), Some((b, _))] => u64::from(a > b),
            [Some(_), None] => 1,
            [None, _] => 0,
        };
        let record = block::own(vault, kind, sequence, bytes).ok_or_else(|| io::Error::other("own block too large"))?;
        self.write_record(own_place(kind) + place, &record)
    }

    pub fn sync(&mut self) -> io::Result<()> {
        // The ledger first: it says what the overwriting of a root belongs to.
        if self.ledger_dirty {
            self.ledger.sync()?;
            self.ledger_dirty = false;
        }
        if self.roots_dirty {
            self.roots.sync()?;
            self.roots_dirty = false;
        }
        Ok(())
    }
}

pub fn own_place(kind: RecordKind) -> u64 {
    match kind {
        RecordKind::Signing => 2,
        RecordKind::Anchor => 4,
        _ => 0,
    }
}

pub fn kind_of(which: OwnBlock) -> RecordKind {
    match which {
        OwnBlock::Signing => RecordKind::Signing,
        OwnBlock::Anchor => RecordKind::Anchor,
    }
}

pub fn slot_place(tenant: TenantNo, slot: usize) -> u64 {
    FIRST + 2 * u64::from(tenant.0) + slot as u64
}

/// The durable part of a ledger file.
pub struct Part {
    pub file: Arc<dyn BlockFile>,
    pub end: u64,
}

impl ReadAt for Part {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let n = (buf.len() as u64).min(self.end.saturating_sub(offset)) as usize;
        self.file.read_at(offset, &mut buf[..n])
    }
}

/// What opening one replica found.
pub struct Opened {
    pub index: usize,
    pub vault: VaultId,
    pub header: Header,
    pub sequence: u64,
    pub open: Open,
}

pub enum Attempt {
    Opened(Box<Opened>),
    /// There are no files of a keeper.
    Nothing,
    Away(String),
}

pub fn attempt(index: usize, medium: &Arc<dyn Medium>) -> Result<Attempt, KeeperError> {
    let both = medium.open(ROOTS).and_then(|roots| Ok((roots, medium.open(LEDGER)?)));
    let (roots, ledger) = match both {
        Ok((Some(roots), Some(ledger))) => (roots, ledger),
        Ok((None, None)) => return Ok(Attempt::Nothing),
        Ok(_) => return Ok(Attempt::Away("one of its files is missing".into())),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(KeeperError::InUse),
        Err(e) => return Ok(Attempt::Away(e.to_string())),
    };
    let open = Open { roots, ledger, roots_dirty: false, ledger_dirty: false };
    let found = (0..2u64).filter_map(|at| {
        let record = open.read_record(at).ok()?;
        let vault = block::vault_of(&record);
        match block::decode(vault, &record) {
            Record::Own { kind: RecordKind::Header, sequence, bytes } => {
                Some((sequence, vault, Header::decode(&bytes)?))
            }
            _ => None,
        }
    });
    let Some((sequence, vault, header)) = found.max_by_key(|(sequence, ..)| *sequence) else {
        return Ok(Attempt::Away("its header cannot be read".into()));
    };
    Ok(Attempt::Opened(Box::new(Opened { index, vault, header, sequence, open })))
}

pub fn make(medium: &Arc<dyn Medium>, vault: VaultId, header: &Header, sequence: u64) -> io::Result<Open> {
    let roots = medium.create(ROOTS)?;
    roots.grow(GROW_BLOCKS * BLOCK)?;
    let ledger = medium.create(LEDGER)?;
    ledger.grow(GROW_LEDGER)?;
    let mut open = Open { roots, ledger, roots_dirty: false, ledger_dirty: true };
    open.ledger.write_at(0, &ledger::file_header(vault))?;
    open.write_own(vault, RecordKind::Header, sequence, &header.encode())?;
    open.sync()?;
    medium.sync_names()?;
    Ok(open)
}

pub fn wipe(open: &mut Open) -> io::Result<()> {
    for file in [&open.roots, &open.ledger] {
        let zeros = vec![0; 64 * 1024];
        let (mut at, len) = (0, file.size()?);
        while at < len {
            let n = (len - at).min(zeros.len() as u64);
            file.write_at(at, &zeros[..n as usize])?;
            at += n;
        }
        file.sync()?;
    }
    Ok(())
}

/// Copies `from..to` of one file into another.
pub fn copy(source: &dyn BlockFile, target: &dyn BlockFile, from: u64, to: u64) -> io::Result<()> {
    let mut buf = vec![0; 64 * 1024];
    let mut at = from;
    while at < to {
        let n = (to - at).min(buf.len() as u64) as usize;
        let got = source.read_at(at, &mut buf[..n])?;
        buf[got..n].fill(0);
        target.write_at(at, &buf[..n])?;
        at += n as u64;
    }
    Ok(())
}

/// Overwrites with zeros what is not zero from `from` to the end.
pub fn clear_from(file: &dyn BlockFile, from: u64) -> io::Result<()> {
    let mut buf = vec![0; 64 * 1024];
    let mut at = from;
    loop {
        let n = file.read_at(at, &mut buf)?;
        if n == 0 {
            return Ok(());
        }
        if buf[..n].iter().any(|&b| b != 0) {
            file.write_at(at, &vec![0; n])?;
        }
        at += n as u64;
    }
}

/// The first `end` bytes are the same.
pub fn same(a: &dyn BlockFile, b: &dyn BlockFile, end: u64) -> io::Result<bool> {
    let (mut x, mut y) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let mut at = 0;
    while at < end {
        let n = (end - at).min(x.len() as u64) as usize;
        if a.read_at(at, &mut x[..n])? != n || b.read_at(at, &mut y[..n])? != n || x[..n] != y[..n] {
            return Ok(false);
        }
        at += n as u64;
    }
    Ok(true)
}

/// A ledger read to its end.
pub struct Scan {
    pub head: LedgerHead,
    pub end: u64,
    pub last: u64,
}

pub fn scan(file: &Arc<dyn BlockFile>, vault: VaultId) -> Result<Scan, LedgerError> {
    let part = Part { file: file.clone(), end: u64::MAX };
    let mut reader = LedgerReader::new(Arc::new(part), vault)?;
    while reader.next_batch()?.is_some() {}
    Ok(Scan { head: reader.head(), end: reader.offset(), last: reader.last_batch().unwrap_or(ledger::START) })
}

/// What the operating system's refusal means.
pub fn io_error(e: io::Error) -> KeeperError {
    match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => KeeperError::DiskFull,
        io::ErrorKind::WouldBlock => KeeperError::InUse,
        io::ErrorKind::AlreadyExists => KeeperError::Exists,
        _ => KeeperError::Io { what: e.to_string() },
    }
}

/// There is no space left.
pub fn full(e: &io::Error) -> bool {
    io_error(io::Error::from(e.kind())) == KeeperError::DiskFull
}
