//! The replicas of a file keeper as its thread sees them: reading and changing them together.

use std::io;
use std::sync::Arc;

use super::block::{self, BLOCK, FIRST, RECORD, Record, RecordKind};
use super::medium::{BlockFile, Medium};
use super::replica::*;
use super::turns::{next_slot, refresh_slot, rewrap_slot};
use super::*;
use crate::keyring::ledger;

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

pub struct Replica {
    pub(super) medium: Arc<dyn Medium>,
    /// Zeros while unknown.
    pub(super) id: [u8; 16],
    pub(super) state: ReplicaState,
    pub(super) open: Option<Open>,
}

impl Replica {
    pub(super) fn active(&self) -> bool {
        self.state == ReplicaState::Active
    }
}

/// All replicas, for one thread.
pub struct Files {
    pub(super) vault: VaultId,
    pub(super) replicas: Vec<Replica>,
    pub(super) epoch: u64,
    pub(super) header_sequence: u64,
    pub(super) members: Vec<[u8; 16]>,
    pub(super) retired: Vec<([u8; 16], Timestamp)>,
    pub(super) head: LedgerHead,
    /// Where the next batch goes.
    pub(super) ledger_end: u64,
    /// A batch that is written and not synced: its head and end.
    pub(super) unfinished: Option<(LedgerHead, u64)>,
    /// How many were away when the epoch was raised last.
    pub(super) noted: usize,
    pub(super) signing: Option<Arc<Signing>>,
}

impl Files {
    pub fn vault(&self) -> VaultId {
        self.vault
    }
    /// The roots of all replicas are guarded by a token.
    pub fn guarded(&self) -> bool {
        self.replicas.iter().all(|replica| replica.medium.guarded())
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

    pub(super) fn active(&self) -> impl Iterator<Item = usize> + '_ {
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
    pub(super) fn with<T>(
        &mut self,
        index: usize,
        act: impl FnOnce(&mut Open) -> io::Result<T>,
    ) -> Result<T, KeeperError> {
        let Some(open) = &mut self.replicas[index].open else { return Err(KeeperError::ReplicaAway { index }) };
        act(open).map_err(|e| self.lost(index, &e))
    }

    /// Blocks of the longest file.
    pub(super) fn blocks(&self) -> u64 {
        let len = |r: &Replica| r.open.as_ref().and_then(|open| open.roots.size().ok()).unwrap_or(0);
        self.replicas.iter().filter(|r| r.active()).map(len).max().unwrap_or(0) / BLOCK
    }

    /// Every file has at least so many blocks. On a full disk nothing is written and nobody is away.
    pub(super) fn ensure(&mut self, blocks: u64) -> Result<(), KeeperError> {
        let len = blocks.next_multiple_of(GROW_BLOCKS) * BLOCK;
        self.grow(len, |open| &open.roots)
    }

    fn grow(&mut self, len: u64, file: fn(&Open) -> &Arc<dyn BlockFile>) -> Result<(), KeeperError> {
        for index in self.active().collect::<Vec<_>>() {
            let Some(open) = &self.replicas[index].open else { continue };
            match file(open).size().and_then(|now| if now < len { file(open).grow(len) } else { Ok(()) }) {
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

    pub fn own(&mut self, which: OwnBlock) -> Result<Option<Own>, KeeperError> {
        let vault = self.vault;
        let mut newest: Option<Own> = None;
        for index in self.active().collect::<Vec<_>>() {
            let found = self.with(index, |open| open.own_newest(vault, kind_of(which))).ok().flatten();
            if found.as_ref().map(|f| f.0) > newest.as_ref().map(|n| n.0) {
                newest = found;
            }
        }
        if self.active().next().is_none() { Err(KeeperError::NoReplica) } else { Ok(newest) }
    }

    pub(super) fn ledger_of(&self, index: usize) -> Result<Arc<dyn BlockFile>, KeeperError> {
        self.replicas[index].open.as_ref().map(|open| open.ledger.clone()).ok_or(KeeperError::ReplicaAway { index })
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
    pub(super) fn raise_epoch(&mut self) {
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
