//! The replicas of a file keeper as its thread sees them: where blocks lie, what may be overwritten, who is up to date.

use std::io;
use std::sync::Arc;

use super::block::{self, BLOCK, FIRST, RECORD, Record, RecordKind};
use super::file::{LEDGER, ROOTS};
use super::medium::{BlockFile, Medium};
use super::*;
use crate::crypto::random;
use crate::keyring::ledger::{self, ReadAt};

/// Blocks by which the file of blocks grows.
const GROW_BLOCKS: u64 = 64;
/// Bytes by which the ledger grows.
const GROW_LEDGER: u64 = 256 * 1024;
/// Most replicas.
const REPLICAS: usize = 3;
/// Most retired replicas that a header can name.
const RETIRED: usize = 13;

/// What must be whole for a change to count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A tenant's slots: in every replica.
    Roots(TenantNo),
    /// Own blocks: in every replica that is left.
    Own,
}

/// What block 0 and 1 of a replica say.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Header {
    id: [u8; 16],
    /// Raised by those that are left, before they go on without one.
    epoch: u64,
    /// All replicas that count.
    members: Vec<[u8; 16]>,
    retired: Vec<([u8; 16], Timestamp)>,
}

impl Header {
    fn encode(&self) -> Vec<u8> {
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

    fn decode(bytes: &[u8]) -> Option<Self> {
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

/// An opened replica.
struct Open {
    roots: Arc<dyn BlockFile>,
    ledger: Arc<dyn BlockFile>,
    roots_dirty: bool,
    ledger_dirty: bool,
}

impl Open {
    fn write_record(&mut self, at: u64, record: &[u8; RECORD]) -> io::Result<()> {
        let mut block = [0; BLOCK as usize];
        block[..RECORD].copy_from_slice(record);
        self.roots_dirty = true;
        self.roots.write_at(at * BLOCK, &block)
    }

    fn read_record(&self, at: u64) -> io::Result<[u8; RECORD]> {
        let mut record = [0; RECORD];
        let n = self.roots.read_at(at * BLOCK, &mut record)?;
        record[n..].fill(0); // beyond the end nothing was ever written
        Ok(record)
    }

    /// The right own records of a pair, by place.
    fn own_pair(&self, vault: VaultId, kind: RecordKind) -> io::Result<[Option<(u64, Vec<u8>)>; 2]> {
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

    fn own_newest(&self, vault: VaultId, kind: RecordKind) -> io::Result<Option<(u64, Vec<u8>)>> {
        Ok(self.own_pair(vault, kind)?.into_iter().flatten().max_by_key(|(sequence, _)| *sequence))
    }

    /// Writes into the place that does not hold the newest.
    fn write_own(&mut self, vault: VaultId, kind: RecordKind, sequence: u64, bytes: &[u8]) -> io::Result<()> {
        let place = match self.own_pair(vault, kind)? {
            [Some((a, _)), Some((b, _))] => u64::from(a > b),
            [Some(_), None] => 1,
            [None, _] => 0,
        };
        let record = block::own(vault, kind, sequence, bytes).ok_or_else(|| io::Error::other("own block too large"))?;
        self.write_record(own_place(kind) + place, &record)
    }

    fn sync(&mut self) -> io::Result<()> {
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

fn own_place(kind: RecordKind) -> u64 {
    match kind {
        RecordKind::Signing => 2,
        RecordKind::Anchor => 4,
        _ => 0,
    }
}

fn kind_of(which: OwnBlock) -> RecordKind {
    match which {
        OwnBlock::Signing => RecordKind::Signing,
        OwnBlock::Anchor => RecordKind::Anchor,
    }
}

fn slot_place(tenant: TenantNo, slot: usize) -> u64 {
    FIRST + 2 * u64::from(tenant.0) + slot as u64
}

struct Replica {
    medium: Arc<dyn Medium>,
    /// Zeros while unknown.
    id: [u8; 16],
    state: ReplicaState,
    open: Option<Open>,
}

impl Replica {
    fn active(&self) -> bool {
        self.state == ReplicaState::Active
    }
}

/// All replicas, for one thread.
pub struct Files {
    vault: VaultId,
    replicas: Vec<Replica>,
    epoch: u64,
    header_sequence: u64,
    members: Vec<[u8; 16]>,
    retired: Vec<([u8; 16], Timestamp)>,
    head: LedgerHead,
    /// Where the next batch goes.
    ledger_end: u64,
    /// A batch that is written and not synced: its head and end.
    unfinished: Option<(LedgerHead, u64)>,
    /// How many were away when the epoch was raised last.
    noted: usize,
    signing: Option<Arc<Signing>>,
}

fn io_error(e: io::Error) -> KeeperError {
    match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => KeeperError::DiskFull,
        io::ErrorKind::WouldBlock => KeeperError::InUse,
        io::ErrorKind::AlreadyExists => KeeperError::Exists,
        _ => KeeperError::Io { what: e.to_string() },
    }
}

fn full(e: &io::Error) -> bool {
    io_error(io::Error::from(e.kind())) == KeeperError::DiskFull
}

/// The durable part of a ledger file.
struct Part {
    file: Arc<dyn BlockFile>,
    end: u64,
}

impl ReadAt for Part {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let n = (buf.len() as u64).min(self.end.saturating_sub(offset)) as usize;
        self.file.read_at(offset, &mut buf[..n])
    }
}

/// What opening one replica found.
struct Opened {
    index: usize,
    vault: VaultId,
    header: Header,
    sequence: u64,
    open: Open,
}

enum Attempt {
    Opened(Box<Opened>),
    /// There are no files of a keeper.
    Nothing,
    Away(String),
}

fn attempt(index: usize, medium: &Arc<dyn Medium>) -> Result<Attempt, KeeperError> {
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

fn make(medium: &Arc<dyn Medium>, vault: VaultId, header: &Header, sequence: u64) -> io::Result<Open> {
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

fn wipe(open: &mut Open) -> io::Result<()> {
    for file in [&open.roots, &open.ledger] {
        let zeros = vec![0; 64 * 1024];
        let (mut at, len) = (0, file.len()?);
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
fn copy(source: &dyn BlockFile, target: &dyn BlockFile, from: u64, to: u64) -> io::Result<()> {
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
fn clear_from(file: &dyn BlockFile, from: u64) -> io::Result<()> {
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
fn same(a: &dyn BlockFile, b: &dyn BlockFile, end: u64) -> io::Result<bool> {
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
struct Scan {
    head: LedgerHead,
    end: u64,
    last: u64,
}

fn scan(file: &Arc<dyn BlockFile>, vault: VaultId) -> Result<Scan, LedgerError> {
    let part = Part { file: file.clone(), end: u64::MAX };
    let mut reader = LedgerReader::new(Arc::new(part), vault)?;
    while reader.next_batch()?.is_some() {}
    Ok(Scan { head: reader.head(), end: reader.offset(), last: reader.last_batch().unwrap_or(ledger::START) })
}

impl Files {
    pub fn create(media: &[Arc<dyn Medium>], vault: VaultId) -> Result<(), KeeperError> {
        if media.is_empty() || media.len() > REPLICAS {
            return Err(KeeperError::Refused { rule: "a keeper has 1 to 3 replicas" });
        }
        for medium in media {
            for name in [ROOTS, LEDGER] {
                if medium.open(name).map_err(io_error)?.is_some() {
                    return Err(KeeperError::Exists);
                }
            }
        }
        let members: Vec<[u8; 16]> = media.iter().map(|_| random::bytes()).collect();
        for (medium, id) in media.iter().zip(&members) {
            let header = Header { id: *id, epoch: 1, members: members.clone(), retired: Vec::new() };
            make(medium, vault, &header, 1).map_err(io_error)?;
        }
        Ok(())
    }

    /// Opens all replicas. With `make_missing`, media without files get a copy.
    pub fn open(media: &[Arc<dyn Medium>], make_missing: bool) -> Result<Self, KeeperError> {
        if media.is_empty() || media.len() > REPLICAS {
            return Err(KeeperError::Refused { rule: "a keeper has 1 to 3 replicas" });
        }
        let mut opened = Vec::new();
        let mut absent = Vec::new();
        for (index, medium) in media.iter().enumerate() {
            match attempt(index, medium)? {
                Attempt::Opened(it) => opened.push(*it),
                Attempt::Nothing => absent.push((index, None)),
                Attempt::Away(reason) => absent.push((index, Some(reason))),
            }
        }
        let newest = opened.iter().max_by_key(|it| it.header.epoch).ok_or(KeeperError::NoReplica)?;
        let (vault, header, epoch) = (newest.vault, newest.header.clone(), newest.header.epoch);
        if opened.iter().any(|it| it.vault != vault) {
            return Err(KeeperError::Foreign { what: "a replica belongs to another vault" });
        }
        if (1..opened.len()).any(|i| opened[..i].iter().any(|it| it.header.id == opened[i].header.id)) {
            return Err(KeeperError::Foreign { what: "a replica is a copy of another one" });
        }
        let mut files = Files {
            vault,
            replicas: media
                .iter()
                .map(|medium| Replica { medium: medium.clone(), id: [0; 16], state: ReplicaState::Retired, open: None })
                .collect(),
            epoch,
            header_sequence: opened.iter().map(|it| it.sequence).max().unwrap_or(0),
            members: header.members,
            retired: header.retired,
            head: LedgerHead::default(),
            ledger_end: ledger::START,
            unfinished: None,
            noted: 0,
            signing: None,
        };
        let (mut old, mut made) = (Vec::new(), Vec::new());
        for it in opened {
            let member = files.members.contains(&it.header.id);
            if !member && it.header.epoch == 0 {
                // A join that was cut off before the others knew of it: finished by the next join, spare until then.
                if make_missing {
                    files.members.push(it.header.id);
                    made.push(it.index);
                    let replica = &mut files.replicas[it.index];
                    (replica.id, replica.open, replica.state) = (it.header.id, Some(it.open), ReplicaState::Active);
                }
                continue;
            }
            let replica = &mut files.replicas[it.index];
            replica.id = it.header.id;
            replica.open = Some(it.open);
            if files.retired.iter().any(|(id, _)| *id == it.header.id) {
                files.wipe_retired(it.index)?;
            } else if !member {
                return Err(KeeperError::Foreign { what: "a replica is not a member of this keeper" });
            } else {
                files.replicas[it.index].state = ReplicaState::Active;
                if it.header.epoch < epoch {
                    old.push(it.index);
                }
            }
        }
        made.extend(files.place_absent(absent, make_missing)?);
        old.extend(&made);
        let first = files.choose_ledger(&mut old)?;
        for index in &old {
            files.bring_up_to_date(*index, first, made.contains(index))?;
        }
        files.settle_own()?;
        files.sync();
        if !old.is_empty() {
            files.raise_epoch();
        }
        if files.active().next().is_none() { Err(KeeperError::NoReplica) } else { Ok(files) }
    }

    fn wipe_retired(&mut self, index: usize) -> Result<(), KeeperError> {
        let replica = &mut self.replicas[index];
        replica.state = ReplicaState::Retired;
        if let Some(open) = &mut replica.open {
            wipe(open).map_err(io_error)?;
        }
        Ok(())
    }

    /// Gives those that are not there the identities of the missing members; a place without a member is spare.
    fn place_absent(
        &mut self,
        absent: Vec<(usize, Option<String>)>,
        make_missing: bool,
    ) -> Result<Vec<usize>, KeeperError> {
        let missing: Vec<[u8; 16]> =
            self.members.iter().filter(|id| self.replicas.iter().all(|r| r.id != **id)).copied().collect();
        let made: Vec<usize> =
            absent.iter().filter(|(_, why)| make_missing && why.is_none()).map(|(index, _)| *index).collect();
        let away: Vec<_> = absent.into_iter().filter(|(index, _)| !made.contains(index)).collect();
        if missing.len() > away.len() {
            return Err(KeeperError::Foreign { what: "a replica is neither configured nor retired" });
        }
        if !missing.is_empty() {
            let certain = missing.len() == 1 && away.len() == 1;
            for (index, why) in away {
                let reason = why.unwrap_or_else(|| "no keeper is there".into());
                self.replicas[index].state = ReplicaState::Away { reason };
                if certain {
                    self.replicas[index].id = missing[0];
                }
            }
        }
        for index in &made {
            let id = random::bytes();
            self.members.push(id);
            self.header_sequence += 1;
            let header = Header { id, epoch: 0, members: self.members.clone(), retired: self.retired.clone() };
            let open =
                make(&self.replicas[*index].medium, self.vault, &header, self.header_sequence).map_err(io_error)?;
            let replica = &mut self.replicas[*index];
            (replica.id, replica.open, replica.state) = (id, Some(open), ReplicaState::Active);
        }
        Ok(made)
    }

    /// The longest ledger of those with the present epoch; others with that epoch must be a beginning of it, and what
    /// they lack is copied. Answers who has it. Damaged ones join `old`.
    fn choose_ledger(&mut self, old: &mut Vec<usize>) -> Result<usize, KeeperError> {
        let mut best: Option<(usize, Scan)> = None;
        let mut others = Vec::new();
        let mut error = None;
        for index in self.active().collect::<Vec<_>>() {
            let Some(open) = self.replicas[index].open.as_ref().filter(|_| !old.contains(&index)) else { continue };
            match scan(&open.ledger, self.vault) {
                Ok(found) => match &best {
                    Some((_, scan)) if scan.head.seq >= found.head.seq => others.push((index, found.end)),
                    _ => {
                        others.extend(best.take().map(|(index, scan)| (index, scan.end)));
                        best = Some((index, found));
                    }
                },
                Err(e) => {
                    old.push(index);
                    error = Some(e);
                }
            }
        }
        let Some((first, scan)) = best else {
            return Err(error.map_or(KeeperError::NoReplica, KeeperError::Ledger));
        };
        (self.head, self.ledger_end) = (scan.head, scan.end);
        let source = self.ledger_of(first)?;
        for (index, end) in others {
            let target = self.ledger_of(index)?;
            if !same(&*source, &*target, end).map_err(io_error)? {
                return Err(LedgerError::Fork.into());
            }
            self.copy_ledger(&*source, index, scan.last.min(end)).map_err(io_error)?;
        }
        // Also its own last batch again: a sync that failed may have left it in the cache alone.
        self.copy_ledger(&*source, first, scan.last).map_err(io_error)?;
        Ok(first)
    }

    fn ledger_of(&self, index: usize) -> Result<Arc<dyn BlockFile>, KeeperError> {
        self.replicas[index].open.as_ref().map(|open| open.ledger.clone()).ok_or(KeeperError::ReplicaAway { index })
    }

    fn copy_ledger(&mut self, source: &dyn BlockFile, index: usize, from: u64) -> io::Result<()> {
        let end = self.ledger_end;
        let Some(open) = &mut self.replicas[index].open else { return Ok(()) };
        let len = end.next_multiple_of(GROW_LEDGER);
        if open.ledger.len()? < len {
            open.ledger.grow(len)?;
        }
        open.ledger_dirty = true;
        copy(source, &*open.ledger, from, end)?;
        clear_from(&*open.ledger, end)
    }

    /// Gives a replica that was away, or is new, everything but roots; a new one the roots too.
    fn bring_up_to_date(&mut self, index: usize, from: usize, roots: bool) -> Result<(), KeeperError> {
        let source = self.ledger_of(from)?;
        self.copy_ledger(&*source, index, 0).map_err(io_error)?;
        let vault = self.vault;
        for kind in [RecordKind::Signing, RecordKind::Anchor] {
            let newest = match &self.replicas[from].open {
                Some(open) => open.own_newest(vault, kind).map_err(io_error)?,
                None => None,
            };
            if let Some(open) = &mut self.replicas[index].open {
                // What it has may be a later one that was never acknowledged.
                for place in 0..2 {
                    open.write_record(own_place(kind) + place, &[0; RECORD]).map_err(io_error)?;
                }
                if let Some((sequence, bytes)) = newest {
                    open.write_own(vault, kind, sequence, &bytes).map_err(io_error)?;
                }
            }
        }
        if roots {
            let blocks = self.blocks();
            self.ensure(blocks)?;
            for at in FIRST..blocks {
                let Some(open) = &self.replicas[from].open else { break };
                let record = open.read_record(at).map_err(io_error)?;
                if let (Some(target), false) =
                    (&mut self.replicas[index].open, block::decode(vault, &record) == Record::Empty)
                {
                    target.write_record(at, &record).map_err(io_error)?;
                }
            }
        }
        Ok(())
    }

    /// Every replica gets the newest own blocks, written again for the same reason as the ledger's last batch.
    fn settle_own(&mut self) -> Result<(), KeeperError> {
        let vault = self.vault;
        for kind in [RecordKind::Signing, RecordKind::Anchor] {
            let mut newest: Option<(u64, Vec<u8>)> = None;
            for index in self.active().collect::<Vec<_>>() {
                if let Some(open) = &self.replicas[index].open {
                    let found = open.own_newest(vault, kind).map_err(io_error)?;
                    if found.as_ref().map(|f| f.0) > newest.as_ref().map(|n| n.0) {
                        newest = found;
                    }
                }
            }
            let Some((sequence, bytes)) = newest else { continue };
            for index in self.active().collect::<Vec<_>>() {
                let Some(open) = &mut self.replicas[index].open else { continue };
                let place = open
                    .own_pair(vault, kind)
                    .map_err(io_error)?
                    .iter()
                    .position(|own| own.as_ref().is_some_and(|(s, _)| *s == sequence));
                match (place, block::own(vault, kind, sequence, &bytes)) {
                    (Some(place), Some(record)) => open.write_record(own_place(kind) + place as u64, &record),
                    _ => open.write_own(vault, kind, sequence, &bytes),
                }
                .map_err(io_error)?;
            }
        }
        Ok(())
    }

    pub fn vault(&self) -> VaultId {
        self.vault
    }
    pub fn head(&self) -> LedgerHead {
        self.head
    }
    pub fn retired(&self) -> &[([u8; 16], Timestamp)] {
        &self.retired
    }
    pub fn unlock(&mut self, signing: Arc<Signing>) {
        self.signing = Some(signing);
    }

    pub fn statuses(&self) -> Vec<ReplicaStatus> {
        self.replicas
            .iter()
            .enumerate()
            .map(|(index, r)| ReplicaStatus { index, id: r.id, place: r.medium.place(), state: r.state.clone() })
            .collect()
    }

    fn active(&self) -> impl Iterator<Item = usize> + '_ {
        self.replicas.iter().enumerate().filter(|(_, r)| r.active()).map(|(index, _)| index)
    }

    /// `Ok` if what the target needs took part to the end.
    pub fn whole(&self, target: Target) -> Result<(), KeeperError> {
        let away = self.replicas.iter().position(|r| matches!(r.state, ReplicaState::Away { .. }));
        match (target, away) {
            (Target::Roots(_), Some(index)) => Err(KeeperError::ReplicaAway { index }),
            (_, Some(index)) if self.active().next().is_none() => Err(KeeperError::ReplicaAway { index }),
            _ => Ok(()),
        }
    }

    /// From now on without this one, until `rejoin` or a restart. Its files stay open, so that they stay locked.
    fn lost(&mut self, index: usize, e: &io::Error) -> KeeperError {
        self.replicas[index].state = ReplicaState::Away { reason: e.to_string() };
        KeeperError::ReplicaAway { index }
    }

    /// Does something to a replica's files; a failure makes it away.
    fn with<T>(&mut self, index: usize, act: impl FnOnce(&mut Open) -> io::Result<T>) -> Result<T, KeeperError> {
        let Some(open) = &mut self.replicas[index].open else { return Err(KeeperError::ReplicaAway { index }) };
        act(open).map_err(|e| self.lost(index, &e))
    }

    /// Blocks of the longest file.
    fn blocks(&self) -> u64 {
        let len = |r: &Replica| r.open.as_ref().and_then(|open| open.roots.len().ok()).unwrap_or(0);
        self.replicas.iter().filter(|r| r.active()).map(len).max().unwrap_or(0) / BLOCK
    }

    /// Every file has at least so many blocks. On a full disk nothing is written and nobody is away.
    fn ensure(&mut self, blocks: u64) -> Result<(), KeeperError> {
        let len = blocks.next_multiple_of(GROW_BLOCKS) * BLOCK;
        self.grow(len, |open| &open.roots)
    }

    fn grow(&mut self, len: u64, file: fn(&Open) -> &Arc<dyn BlockFile>) -> Result<(), KeeperError> {
        for index in self.active().collect::<Vec<_>>() {
            let Some(open) = &self.replicas[index].open else { continue };
            match file(open).len().and_then(|now| if now < len { file(open).grow(len) } else { Ok(()) }) {
                Err(e) if full(&e) => return Err(KeeperError::DiskFull),
                Err(e) => drop(self.lost(index, &e)),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    fn slots_of(&mut self, index: usize, tenant: TenantNo) -> Result<[Record; 2], KeeperError> {
        let vault = self.vault;
        self.with(index, |open| {
            let mut out = [Record::Empty, Record::Empty];
            for (slot, found) in out.iter_mut().enumerate() {
                *found = match block::decode(vault, &open.read_record(slot_place(tenant, slot))?) {
                    Record::Root(block) if block.tenant == tenant => Record::Root(block),
                    Record::Tombstone(no) if no == tenant => Record::Tombstone(no),
                    Record::Empty => Record::Empty,
                    // Right bytes in a wrong place are as good as torn.
                    _ => Record::Torn,
                };
            }
            Ok(out)
        })
    }

    pub fn read(&mut self, tenant: TenantNo) -> Result<TenantSlots, KeeperError> {
        let mut out = TenantSlots::default();
        let mut seen = false;
        for replica in 0..self.replicas.len() {
            match self.replicas[replica].state {
                ReplicaState::Active => {}
                ReplicaState::Away { .. } => {
                    out.away += 1;
                    continue;
                }
                ReplicaState::Retired => continue,
            }
            let Ok(slots) = self.slots_of(replica, tenant) else {
                out.away += 1;
                continue;
            };
            seen = true;
            for (slot, record) in slots.into_iter().enumerate() {
                let slot = slot as u8;
                match record {
                    Record::Root(block) => out.found.push(FoundSlot { replica, slot, what: Found::Root(block) }),
                    Record::Tombstone(_) => out.found.push(FoundSlot { replica, slot, what: Found::Tombstone }),
                    Record::Empty => out.empty += 1,
                    _ => out.torn += 1,
                }
            }
        }
        if seen { Ok(out) } else { Err(KeeperError::NoReplica) }
    }

    pub fn tenants(&mut self) -> Result<Vec<TenantNo>, KeeperError> {
        let tenants = (self.blocks().saturating_sub(FIRST) / 2) as u32;
        let mut out = Vec::new();
        for tenant in (0..tenants).map(TenantNo) {
            if !self.read(tenant)?.found.is_empty() {
                out.push(tenant);
            }
        }
        Ok(out)
    }

    /// Reads the slots in every replica, lets `plan` decide for each, and writes only when all decided.
    fn roots(
        &mut self,
        tenant: TenantNo,
        plan: impl Fn(&[Record; 2]) -> Result<[Option<[u8; RECORD]>; 2], KeeperError>,
    ) -> Result<(), KeeperError> {
        self.whole(Target::Roots(tenant))?;
        let mut writes = Vec::new();
        for index in self.active().collect::<Vec<_>>() {
            writes.push((index, plan(&self.slots_of(index, tenant)?)?));
        }
        self.ensure(slot_place(tenant, 1) + 1)?;
        for (index, slots) in writes {
            for (slot, record) in slots.iter().enumerate() {
                if let Some(record) = record {
                    self.with(index, |open| open.write_record(slot_place(tenant, slot), record))?;
                }
            }
        }
        Ok(())
    }

    pub fn write_next(&mut self, block: &RootBlock) -> Result<(), KeeperError> {
        let record = encode(self.vault, block)?;
        self.roots(block.tenant, |slots| next_slot(slots, block).map(|slot| only(slot, record)))
    }

    pub fn rewrap(&mut self, block: &RootBlock) -> Result<(), KeeperError> {
        let record = encode(self.vault, block)?;
        self.roots(block.tenant, |slots| rewrap_slot(slots, block).map(|slot| only(slot, record)))
    }

    pub fn refresh(&mut self, tenant: TenantNo, generation: Generation, kek: [u8; 16]) -> Result<(), KeeperError> {
        let is = |block: &RootBlock| block.generation == generation && block.kek == kek;
        let slots = self.read(tenant)?;
        let source = slots.roots().find(|block| is(block)).cloned().ok_or(KeeperError::Unsure { tenant })?;
        let record = encode(self.vault, &source)?;
        self.roots(tenant, |slots| {
            if slots.iter().any(|slot| matches!(slot, Record::Root(block) if is(block))) {
                return Ok([None, None]);
            }
            refresh_slot(slots, &source).map(|slot| only(slot, record))
        })
    }

    pub fn destroy(&mut self, tenant: TenantNo, keep: Generation, kek: Option<[u8; 16]>) -> Result<(), KeeperError> {
        let kept = |block: &RootBlock| block.generation == keep && kek.is_none_or(|kek| block.kek == kek);
        self.roots(tenant, |slots| {
            if slots.iter().any(|slot| matches!(slot, Record::Tombstone(_))) {
                return Err(KeeperError::Tombstoned { tenant });
            }
            if !slots.iter().any(|slot| matches!(slot, Record::Root(block) if kept(block))) {
                return Err(KeeperError::Unsure { tenant });
            }
            Ok([0, 1].map(|slot| match &slots[slot] {
                Record::Root(block) if kept(block) || block.generation > keep => None,
                _ => Some([0; RECORD]),
            }))
        })
    }

    pub fn tombstone(&mut self, tenant: TenantNo) -> Result<(), KeeperError> {
        let record = block::tombstone(self.vault, tenant);
        self.roots(tenant, |_| Ok([Some(record), Some(record)]))
    }

    pub fn put_own(&mut self, which: OwnBlock, sequence: u64, bytes: &[u8]) -> Result<(), KeeperError> {
        self.whole(Target::Own)?;
        if bytes.len() > OWN_CAPACITY {
            return Err(KeeperError::Refused { rule: "an own block holds at most 400 bytes" });
        }
        if self.own(which)?.is_some_and(|(newest, _)| newest >= sequence) {
            return Err(KeeperError::Refused { rule: "the sequence of an own block must grow" });
        }
        let vault = self.vault;
        for index in self.active().collect::<Vec<_>>() {
            // Who fails is away from here on; `whole` decides whether enough are left.
            let _ = self.with(index, |open| open.write_own(vault, kind_of(which), sequence, bytes));
        }
        Ok(())
    }

    pub fn own(&mut self, which: OwnBlock) -> Result<Option<(u64, Vec<u8>)>, KeeperError> {
        let vault = self.vault;
        let mut newest: Option<(u64, Vec<u8>)> = None;
        for index in self.active().collect::<Vec<_>>() {
            let found = self.with(index, |open| open.own_newest(vault, kind_of(which))).ok().flatten();
            if found.as_ref().map(|f| f.0) > newest.as_ref().map(|n| n.0) {
                newest = found;
            }
        }
        if self.active().next().is_none() { Err(KeeperError::NoReplica) } else { Ok(newest) }
    }

    pub fn ledger(&mut self) -> Result<LedgerReader, KeeperError> {
        let index = self.active().next().ok_or(KeeperError::NoReplica)?;
        let part = Part { file: self.ledger_of(index)?, end: self.ledger_end };
        Ok(LedgerReader::new(Arc::new(part), self.vault)?)
    }

    /// Writes one signed batch everywhere; `sync` and `finish_batch` make it count.
    pub fn write_batch(&mut self, entries: &[LedgerEntry]) -> Result<(), KeeperError> {
        self.whole(Target::Own)?;
        let signing = self.signing.clone().ok_or(KeeperError::NoSigner)?;
        let (bytes, head) = ledger::encode_batch(self.vault, &self.head, entries, &signing);
        let (at, end) = (self.ledger_end, self.ledger_end + bytes.len() as u64);
        self.grow(end.next_multiple_of(GROW_LEDGER), |open| &open.ledger)?;
        for index in self.active().collect::<Vec<_>>() {
            // Who fails is away from here on; `finish_batch` decides whether enough are left.
            let _ = self.with(index, |open| {
                open.ledger_dirty = true;
                open.ledger.write_at(at, &bytes)
            });
        }
        self.unfinished = Some((head, end));
        Ok(())
    }

    /// After `sync`: the new head, if the batch is durable where it must be.
    pub fn finish_batch(&mut self, written: Result<(), KeeperError>) -> Result<LedgerHead, KeeperError> {
        let unfinished = self.unfinished.take();
        written?;
        self.whole(Target::Own)?;
        if let Some((head, end)) = unfinished {
            (self.head, self.ledger_end) = (head, end);
        }
        Ok(self.head)
    }

    /// Makes everything written so far durable. Who fails is away, and the rest note it before anything else counts.
    pub fn sync(&mut self) {
        for index in self.active().collect::<Vec<_>>() {
            // `lost` keeps the reason, `whole` tells the caller.
            let _ = self.with(index, Open::sync);
        }
        if self.count_away() != self.noted {
            self.raise_epoch();
        }
    }

    fn count_away(&self) -> usize {
        self.replicas.iter().filter(|r| matches!(r.state, ReplicaState::Away { .. })).count()
    }

    /// Writes a higher epoch, members and retired ones into the headers of all that take part, durably.
    fn raise_epoch(&mut self) {
        loop {
            let away = self.count_away();
            self.epoch += 1;
            self.header_sequence += 1;
            let (vault, epoch, sequence) = (self.vault, self.epoch, self.header_sequence);
            for index in self.active().collect::<Vec<_>>() {
                let (members, retired) = (self.members.clone(), self.retired.clone());
                let bytes = Header { id: self.replicas[index].id, epoch, members, retired }.encode();
                // Who fails here is away too, and the others go round once more.
                let _ = self.with(index, |open| {
                    open.write_own(vault, RecordKind::Header, sequence, &bytes)?;
                    open.sync()
                });
            }
            if self.count_away() == away {
                self.noted = away;
                return;
            }
        }
    }

    /// Opens those that are away once more.
    pub fn rejoin(&mut self) -> Result<(), KeeperError> {
        let media: Vec<_> = self.replicas.iter().map(|r| r.medium.clone()).collect();
        let Some(first) = self.active().next() else {
            self.replicas.iter_mut().for_each(|r| r.open = None);
            let signing = self.signing.take();
            let again = Files::open(&media, false);
            if let Ok(files) = again {
                *self = files;
                self.signing = signing;
                return Ok(());
            }
            self.signing = signing;
            return again.map(drop);
        };
        let mut back = false;
        for index in 0..self.replicas.len() {
            if !matches!(self.replicas[index].state, ReplicaState::Away { .. }) {
                continue;
            }
            self.replicas[index].open = None; // the lock of the former opening
            let it = match attempt(index, &media[index])? {
                Attempt::Opened(it) => *it,
                Attempt::Nothing => continue,
                Attempt::Away(reason) => {
                    self.replicas[index].state = ReplicaState::Away { reason };
                    continue;
                }
            };
            let known = self.replicas.iter().enumerate().any(|(i, r)| i != index && r.id == it.header.id);
            let retired = self.retired.iter().any(|(id, _)| *id == it.header.id);
            if it.vault != self.vault || known || !(retired || self.members.contains(&it.header.id)) {
                self.replicas[index].state = ReplicaState::Away { reason: "another keeper is there".into() };
                continue;
            }
            self.replicas[index].id = it.header.id;
            self.replicas[index].open = Some(it.open);
            if retired {
                self.wipe_retired(index)?;
            } else {
                self.bring_up_to_date(index, first, false)?;
                self.with(index, Open::sync)?;
                self.replicas[index].state = ReplicaState::Active;
                back = true;
            }
        }
        if back {
            self.raise_epoch();
        }
        Ok(())
    }

    /// Gives up one that is away.
    pub fn retire(&mut self, index: usize, at: Timestamp) -> Result<(), KeeperError> {
        let Some(replica) = self.replicas.get_mut(index) else {
            return Err(KeeperError::Refused { rule: "there is no such replica" });
        };
        if !matches!(replica.state, ReplicaState::Away { .. }) {
            return Err(KeeperError::Refused { rule: "only a replica that is away can be retired" });
        }
        if replica.id == [0; 16] {
            return Err(KeeperError::Refused { rule: "two replicas are away: it is not known which one this is" });
        }
        if self.retired.len() >= RETIRED {
            return Err(KeeperError::Refused { rule: "at most 13 replicas can be retired" });
        }
        let id = replica.id;
        replica.state = ReplicaState::Retired;
        if let Some(mut open) = replica.open.take() {
            // It is away: whatever can still be overwritten is, the rest when it returns.
            let _ = wipe(&mut open);
        }
        self.retired.push((id, at));
        self.members.retain(|member| *member != id);
        self.raise_epoch();
        self.whole(Target::Own)
    }
}

fn encode(vault: VaultId, block: &RootBlock) -> Result<[u8; RECORD], KeeperError> {
    block::root(vault, block).ok_or(KeeperError::Refused { rule: "a wrapped root has 60 bytes" })
}

fn only(slot: usize, record: [u8; RECORD]) -> [Option<[u8; RECORD]>; 2] {
    let mut out = [None, None];
    out[slot] = Some(record);
    out
}

fn not_tombstoned(slots: &[Record; 2], tenant: TenantNo) -> Result<(), KeeperError> {
    if slots.iter().any(|slot| matches!(slot, Record::Tombstone(_))) {
        return Err(KeeperError::Tombstoned { tenant });
    }
    Ok(())
}

fn roots(slots: &[Record; 2]) -> [Option<&RootBlock>; 2] {
    [0, 1].map(|slot| match &slots[slot] {
        Record::Root(block) => Some(block),
        _ => None,
    })
}

/// Where generation g goes: beside g - 1, over whatever is there unless that is higher than g.
fn next_slot(slots: &[Record; 2], block: &RootBlock) -> Result<usize, KeeperError> {
    let tenant = block.tenant;
    not_tombstoned(slots, tenant)?;
    let found = roots(slots);
    if let Some(higher) = found.iter().flatten().find(|b| b.generation > block.generation) {
        return Err(KeeperError::Newer { tenant, found: higher.generation });
    }
    let former = |b: &Option<&RootBlock>| b.is_some_and(|b| b.generation.0 + 1 == block.generation.0);
    match (former(&found[0]), former(&found[1])) {
        (true, false) => Ok(1),
        (false, true) => Ok(0),
        // A rewrap that was not finished: what stands under the KEK of this write stays.
        (true, true) => match found.iter().position(|b| b.is_some_and(|b| b.kek == block.kek)) {
            Some(kept) => Ok(1 - kept),
            None => Err(KeeperError::Unsure { tenant }),
        },
        // A new tenant, or a keeper that is being restored; never over another root.
        (false, false) if found == [None, None] => {
            let blank = slots.iter().all(|slot| *slot == Record::Empty);
            if blank || block.generation.0 == 1 { Ok(0) } else { Err(KeeperError::Unsure { tenant }) }
        }
        (false, false) => Err(KeeperError::Unsure { tenant }),
    }
}

/// Where the same generation goes under another KEK: beside the present one, never over a higher one but the orphan of
/// a swap that was not committed.
fn rewrap_slot(slots: &[Record; 2], block: &RootBlock) -> Result<usize, KeeperError> {
    let tenant = block.tenant;
    not_tombstoned(slots, tenant)?;
    let found = roots(slots);
    let present = |b: &Option<&RootBlock>| b.is_some_and(|b| b.generation == block.generation && b.kek != block.kek);
    let slot = match (present(&found[0]), present(&found[1])) {
        (true, false) => 1,
        (false, true) => 0,
        _ => return Err(KeeperError::Unsure { tenant }),
    };
    match found[slot] {
        Some(b) if b.generation.0 > block.generation.0 + 1 => Err(KeeperError::Newer { tenant, found: b.generation }),
        _ => Ok(slot),
    }
}

/// Where a root is copied to in a replica that lacks it: over nothing, or over what is older.
fn refresh_slot(slots: &[Record; 2], source: &RootBlock) -> Result<usize, KeeperError> {
    let tenant = source.tenant;
    not_tombstoned(slots, tenant)?;
    let found = roots(slots);
    if let Some(slot) = found.iter().position(Option::is_none) {
        return Ok(slot);
    }
    let age = |slot: &usize| found[*slot].map(|b| b.generation);
    let slot = [0, 1].into_iter().min_by_key(age).expect("there are two slots");
    match found[slot] {
        Some(b) if b.generation > source.generation => Err(KeeperError::Newer { tenant, found: b.generation }),
        _ => Ok(slot),
    }
}
