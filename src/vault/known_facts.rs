//! What is on record about people who are read over and over. Finding it out opens a sealed value; it cannot change while the
//! snapshot that it came from is the one that the store hands out, because every commit that touches the subject makes the
//! store drop that snapshot. So facts are kept for exactly one snapshot, by its place in memory, and for one policy.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::ids::{PolicyVersion, SubjectUid};
use crate::storage::SubjectSnapshot;
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::error::VaultError;
use crate::vault::rights::Facts;

/// Parts, so that readers do not wait for each other.
const SHARDS: usize = 16;
/// People of one part: 8,192 in all, of about 400 bytes each.
const PEOPLE: usize = 512;

struct Known {
    /// While this is held no other snapshot can lie at the same place.
    of: Weak<SubjectSnapshot>,
    policy: PolicyVersion,
    facts: Facts,
}

/// Facts of the people who were read last.
#[derive(Default)]
pub(crate) struct KnownFacts {
    shards: [Mutex<HashMap<SubjectUid, Known>>; SHARDS],
}

impl KnownFacts {
    fn shard(&self, uid: SubjectUid) -> &Mutex<HashMap<SubjectUid, Known>> {
        &self.shards[uid.0 as usize % SHARDS]
    }

    fn get(&self, snapshot: &Arc<SubjectSnapshot>, policy: PolicyVersion) -> Option<Facts> {
        let shard = self.shard(snapshot.subject.uid).lock();
        let known = shard.get(&snapshot.subject.uid)?;
        let same = std::ptr::eq(known.of.as_ptr(), Arc::as_ptr(snapshot)) && known.policy == policy;
        same.then(|| known.facts.clone())
    }

    fn put(&self, snapshot: &Arc<SubjectSnapshot>, policy: PolicyVersion, facts: Facts) {
        let mut shard = self.shard(snapshot.subject.uid).lock();
        if shard.len() >= PEOPLE {
            shard.retain(|_, known| known.of.strong_count() > 0);
            if shard.len() >= PEOPLE {
                shard.clear();
            }
        }
        shard.insert(snapshot.subject.uid, Known { of: Arc::downgrade(snapshot), policy, facts });
    }
}

impl Vault {
    /// What is on record about a subject, for decisions about this snapshot of it; for reads.
    pub(crate) async fn known_facts(&self, call: &Call, snapshot: &Arc<SubjectSnapshot>) -> Result<Facts, VaultError> {
        // Most people decided nothing, which costs nothing to see.
        if snapshot.class(crate::ids::ClassNo::OWN).is_none_or(|row| row.slot.is_none()) {
            return self.facts(call, snapshot).await;
        }
        let policy = call.tenant.policy()?.version();
        if let Some(facts) = self.known.get(snapshot, policy) {
            return Ok(facts);
        }
        let facts = self.facts(call, snapshot).await?;
        self.known.put(snapshot, policy, facts.clone());
        Ok(facts)
    }
}
