//! Making and opening a keeper: who belongs to it, whose ledger counts, and bringing the others up to date.

use std::io;
use std::sync::Arc;

use super::block::{self, FIRST, RECORD, Record, RecordKind};
use super::file::{LEDGER, ROOTS};
use super::medium::{BlockFile, Medium};
use super::replica::*;
use super::replicas::{Files, Replica};
use super::*;
use crate::crypto::random;
use crate::keyring::ledger;

/// Most replicas.
const REPLICAS: usize = 3;

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

    fn copy_ledger(&mut self, source: &dyn BlockFile, index: usize, from: u64) -> io::Result<()> {
        let end = self.ledger_end;
        let Some(open) = &mut self.replicas[index].open else { return Ok(()) };
        let len = end.next_multiple_of(GROW_LEDGER);
        if open.ledger.size()? < len {
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
        for (index, medium) in media.iter().enumerate() {
            if !matches!(self.replicas[index].state, ReplicaState::Away { .. }) {
                continue;
            }
            self.replicas[index].open = None; // the lock of the former opening
            let it = match attempt(index, medium)? {
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
}
