//! Which of a tenant's two slots may be overwritten: the decisions that keep the only present root from being lost. Pure.

use super::block::Record;
use super::{KeeperError, RootBlock};
use crate::ids::TenantNo;

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
pub fn next_slot(slots: &[Record; 2], block: &RootBlock) -> Result<usize, KeeperError> {
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
pub fn rewrap_slot(slots: &[Record; 2], block: &RootBlock) -> Result<usize, KeeperError> {
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
pub fn refresh_slot(slots: &[Record; 2], source: &RootBlock) -> Result<usize, KeeperError> {
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
