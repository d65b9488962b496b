//! What keeps guessing slow: wrong tries are counted by subject and by source, durably, and tried again only after a wait
//! that grows.
//!
//! | Row (key) | Counts | Ends |
//! |---|---|---|
//! | 1, uid | wrong tries at a subject from sources that are not known there | with a right password, Unlock, Set, or a day |
//! | 2, day, digest of the source | wrong tries from a source over all subjects | with its day |
//! | 3, day, digest of source and uid | a source from which the subject's password was right: its own wrong tries | two days later |
//!
//! So a stranger who keeps guessing makes other strangers wait, not the person: who came in lately from his own source
//! is counted by himself. No wait is longer than `lock_seconds` of the policy. A source is kept only as a digest under a
//! key of the day (HKDF of the tenant's digest secret), so that rows of two days cannot be linked.
//!
//! A try at somebody who does not exist writes a row, too (one of a few, of nobody), so that it takes the same time.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{TURNS, Why};
use crate::clock::{DAY_MS, Timestamp};
use crate::crypto::blind_index;
use crate::ids::*;
use crate::policy::compiled::CredentialRule;
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::error::VaultError;
use crate::vault::to_json;

/// Wrong tries in a row that cost nothing.
const FREE_TRIES: u32 = 3;
/// Rows that stand for subjects that are not there.
const NOBODIES: u64 = 256;
/// Sources of a day that memory holds; the store has them all.
const SOURCES: usize = 65_536;
/// Rows removed in one change.
const PRUNED_AT_ONCE: u32 = 1_000;

const SUBJECT: u8 = 1;
const SOURCE: u8 = 2;
const KNOWN: u8 = 3;

/// Wrong tries of one row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Tries {
    /// In a row.
    #[serde(rename = "n")]
    wrong: u32,
    /// The last one; milliseconds since 1970.
    #[serde(rename = "t")]
    last: i64,
    /// Tries before this do not count: the subject was unlocked.
    #[serde(rename = "c", default)]
    cleared: i64,
}

impl Tries {
    fn counted(self, now: Timestamp) -> u32 {
        if now.0 - self.last >= DAY_MS { 0 } else { self.wrong }
    }

    /// Seconds until the next try is looked at; 0: now.
    fn wait(self, now: Timestamp, full: u32, longest_s: u32) -> u32 {
        let wrong = self.counted(now);
        let wait_s = match wrong {
            n if n >= full => longest_s,
            n if n < FREE_TRIES => 0,
            n => 1u32.checked_shl(n - FREE_TRIES).unwrap_or(u32::MAX).min(longest_s),
        };
        let left_ms = self.last.saturating_add(i64::from(wait_s) * 1_000).saturating_sub(now.0).max(0);
        // A clock that went back must not make a wait longer than it ever was.
        u32::try_from((left_ms as u64).div_ceil(1_000)).unwrap_or(u32::MAX).min(wait_s)
    }

    fn one_more(self, now: Timestamp) -> Self {
        Tries { wrong: self.counted(now).saturating_add(1), last: now.0, ..self }
    }
}

/// What memory holds of guessing.
#[derive(Default)]
pub(crate) struct Guesses {
    /// Of each source of the day, by the key of its row: several tries at once must not be counted as one.
    sources: Mutex<HashMap<(TenantNo, Vec<u8>), Tries>>,
}

/// The tries that a check is counted with.
pub(crate) struct Counted {
    /// Row of the subject, or of nobody.
    subject: Vec<u8>,
    tries: Tries,
    source: Option<Vec<u8>>,
    /// Row of a source that is known at the subject, and its tries.
    known: Option<(Vec<u8>, Tries)>,
    /// Row by which the source becomes known.
    to_know: Option<Vec<u8>>,
    /// Why nothing is checked now.
    pub wait: Option<Why>,
}

fn subject_row(uid: SubjectUid) -> Vec<u8> {
    [&[SUBJECT][..], &uid.0.to_be_bytes()].concat()
}

fn day_row(kind: u8, day: i64, digest: &[u8; 16]) -> Vec<u8> {
    [&[kind][..], &(day as u32).to_be_bytes(), digest].concat()
}

/// What removes the counted tries of a subject that is erased.
pub(crate) fn forget(tenant: TenantNo, uid: SubjectUid) -> Mutation {
    Mutation::DeleteObject { tenant, kind: ObjectKind::Credential, key: subject_row(uid) }
}

impl Vault {
    /// One check at a time of a subject: several at once would be several guesses for the price of one. Waits for its
    /// turn as long as it would wait for a thread.
    pub(crate) async fn check_turn(&self, uid: i64) -> Result<tokio::sync::MutexGuard<'_, ()>, VaultError> {
        let turn = self.credentials.checks[uid.rem_euclid(TURNS as i64) as usize].lock();
        let wait: Duration = self.options.passwords.wait;
        tokio::time::timeout(wait, turn).await.map_err(|_| VaultError::Busy { retry_ms: 250 })
    }

    async fn tries(&self, tenant: TenantNo, key: &[u8]) -> Result<Option<Tries>, VaultError> {
        let row = self.store.object(tenant, ObjectKind::Credential, key.to_vec()).await?;
        row.map(|row| serde_json::from_slice(&row.body)).transpose().map_err(|_| VaultError::DataLoss)
    }

    /// The row number that stands for a key that nobody has.
    pub(crate) fn nobody(&self, call: &Call, key: &[u8]) -> i64 {
        let digest = call.tenant.token_mac(&[b"nobody", key]);
        let n = u64::from_be_bytes(digest[..8].try_into().expect("8 of 16 bytes")) % NOBODIES;
        -1 - n as i64
    }

    /// What is counted so far, and whether a try is looked at now. `uid` below 0 stands for nobody.
    pub(crate) async fn counted(
        &self,
        call: &Call,
        rules: &CredentialRule,
        uid: i64,
        source: &[u8],
    ) -> Result<Counted, VaultError> {
        let (tenant, now) = (call.tenant.no, call.wall);
        let subject = subject_row(SubjectUid(uid));
        let tries = self.tries(tenant, &subject).await?.unwrap_or_default();
        let (full, longest) = (rules.lock_tries, rules.lock_seconds);
        let mut counted = Counted { subject, tries, source: None, known: None, to_know: None, wait: None };
        if source.is_empty() {
            counted.wait = Some(tries.wait(now, full, longest)).filter(|s| *s > 0).map(Why::Locked);
            return Ok(counted);
        }
        let today = now.day();
        let of_source = day_row(SOURCE, today, &blind_index::tag(&call.tenant.source_key(today), &[source]));
        let from_source = self.source_tries(tenant, &of_source).await?;
        let source_wait = from_source.wait(now, rules.source_tries, longest);
        // A source has no growing waits before its limit: a company behind one address has many users.
        let source_locked = from_source.counted(now) >= rules.source_tries && source_wait > 0;
        let pair = |day: i64| {
            let key = call.tenant.source_key(day);
            day_row(KNOWN, day, &blind_index::tag(&key, &[source, &uid.to_be_bytes()]))
        };
        for day in [today, today - 1] {
            if let Some(own) = self.tries(tenant, &pair(day)).await? {
                let own = if own.last <= tries.cleared { Tries::default() } else { own };
                counted.known = Some((pair(day), own));
                break;
            }
        }
        if counted.known.as_ref().is_none_or(|(row, _)| *row != pair(today)) {
            counted.to_know = Some(pair(today));
        }
        let own = counted.known.as_ref().map_or(tries, |(_, own)| *own);
        let wait = own.wait(now, full, longest);
        counted.wait = match (source_locked, wait) {
            (true, _) => Some(Why::SourceLocked(source_wait)),
            (false, 0) => None,
            (false, wait) => Some(Why::Locked(wait)),
        };
        counted.source = Some(of_source);
        Ok(counted)
    }

    async fn source_tries(&self, tenant: TenantNo, row: &[u8]) -> Result<Tries, VaultError> {
        let at = (tenant, row.to_vec());
        if let Some(tries) = self.credentials.guesses.sources.lock().get(&at) {
            return Ok(*tries);
        }
        let stored = self.tries(tenant, row).await?.unwrap_or_default();
        let mut sources = self.credentials.guesses.sources.lock();
        if sources.len() >= SOURCES {
            sources.clear();
        }
        Ok(*sources.entry(at).or_insert(stored))
    }

    /// Counts a wrong try, durably, before it is answered. A try that was not looked at is not counted: its row is of
    /// nobody, and only costs the same time.
    pub(crate) async fn count_wrong(&self, call: &Call, counted: &Counted) -> Result<(), VaultError> {
        let (tenant, now) = (call.tenant.no, call.wall);
        let mut change = ChangeSet::default();
        if counted.wait.is_some() {
            let row = subject_row(SubjectUid(self.nobody(call, &counted.subject)));
            put(tenant, row, Tries { last: now.0, ..Tries::default() }, &mut change);
            self.store.commit(change).await?;
            return Ok(());
        }
        match &counted.known {
            Some((row, own)) => put(tenant, row.clone(), own.one_more(now), &mut change),
            None => put(tenant, counted.subject.clone(), counted.tries.one_more(now), &mut change),
        }
        if let Some(row) = &counted.source {
            let tries = {
                let mut sources = self.credentials.guesses.sources.lock();
                let tries = sources.entry((tenant, row.clone())).or_default();
                *tries = tries.one_more(now);
                *tries
            };
            put(tenant, row.clone(), tries, &mut change);
        }
        self.store.commit(change).await?;
        Ok(())
    }

    /// Forgets the wrong tries after a right one, and knows its source from now on. Writes only what changes.
    pub(crate) async fn count_right(&self, call: &Call, counted: &Counted) -> Result<(), VaultError> {
        let (tenant, kind) = (call.tenant.no, ObjectKind::Credential);
        let mut change = ChangeSet::default();
        // From a known source strangers' tries stay counted: they are still there.
        if counted.known.is_none() && counted.tries != Tries::default() {
            change.change(Mutation::DeleteObject { tenant, kind, key: counted.subject.clone() });
        }
        if let Some((row, _)) = counted.known.as_ref().filter(|(_, own)| own.wrong > 0 && counted.to_know.is_none()) {
            put(tenant, row.clone(), Tries::default(), &mut change);
        }
        if let Some(row) = &counted.to_know {
            put(tenant, row.clone(), Tries::default(), &mut change);
        }
        if !change.mutations.is_empty() {
            self.store.commit(change).await?;
        }
        Ok(())
    }

    /// Whether the subject is locked for strangers now.
    pub(crate) async fn is_locked(&self, call: &Call, uid: SubjectUid) -> Result<bool, VaultError> {
        let rules = self.credential_rules(call)?;
        let tries = self.tries(call.tenant.no, &subject_row(uid)).await?.unwrap_or_default();
        Ok(tries.wait(call.wall, rules.lock_tries, rules.lock_seconds) > 0)
    }

    /// What lets the next try at a subject be looked at, from wherever.
    pub(crate) fn clear_tries(&self, call: &Call, uid: SubjectUid, change: &mut ChangeSet) {
        let tries = Tries { wrong: 0, last: 0, cleared: call.wall.0 };
        put(call.tenant.no, subject_row(uid), tries, change);
    }

    /// Removes the rows of days that are over; about `limit` of them. Answers how many.
    pub(crate) async fn prune_guesses(&self, call: &Call, limit: u64) -> Result<u64, VaultError> {
        let tenant = call.tenant.no;
        let first_kept = (call.wall.day() - 1) as u32;
        let mut done = 0;
        for kind in [SOURCE, KNOWN] {
            while done < limit {
                // The day comes first in a key, so the oldest rows come first.
                let page =
                    self.store.objects(tenant, ObjectKind::Credential, vec![kind], Vec::new(), PRUNED_AT_ONCE).await?;
                let over = |row: &&ObjectRow| {
                    let day = row.key.get(1..5).and_then(|day| day.try_into().ok()).map(u32::from_be_bytes);
                    day.is_some_and(|day| day < first_kept)
                };
                let mut change = ChangeSet::default();
                for row in page.rows.iter().filter(over) {
                    let key = row.key.clone();
                    change.change(Mutation::DeleteObject { tenant, kind: ObjectKind::Credential, key });
                }
                if change.mutations.is_empty() {
                    break;
                }
                done += change.mutations.len() as u64;
                self.store.commit(change).await?;
            }
        }
        if done > 0 {
            let mut sources = self.credentials.guesses.sources.lock();
            sources.retain(|(no, row), _| {
                *no != tenant || row.get(1..5).is_some_and(|day| day >= &first_kept.to_be_bytes()[..])
            });
        }
        Ok(done)
    }
}

fn put(tenant: TenantNo, key: Vec<u8>, tries: Tries, change: &mut ChangeSet) {
    let (kind, revision, body) = (ObjectKind::Credential, Revision(1), to_json(&tries));
    change.change(Mutation::PutObject(ObjectRow { tenant, kind, key, revision, body }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_end_and_are_forgotten_after_a_day() {
        let (full, longest) = (10, 900);
        let mut tries = Tries::default();
        let mut now = Timestamp(1_700_000_000_000);
        let mut waits = Vec::new();
        for _ in 0..12 {
            waits.push(tries.wait(now, full, longest));
            now = now.plus_ms(i64::from(*waits.last().unwrap()) * 1_000);
            assert_eq!(tries.wait(now, full, longest), 0, "it ends");
            tries = tries.one_more(now);
        }
        assert_eq!(waits, [0, 0, 0, 1, 2, 4, 8, 16, 32, 64, 900, 900]);
        assert_eq!(tries.wait(now.plus_ms(899_001), full, longest), 1, "a started second counts whole");
        assert_eq!(tries.wait(now.plus_days(1), full, longest), 0);
        assert_eq!(tries.one_more(now.plus_days(1)).wrong, 1);
    }

    #[test]
    fn a_clock_that_went_back_locks_nobody_out_longer_than_the_longest_wait() {
        let now = Timestamp(1_700_000_000_000);
        let tries = Tries { wrong: 50, last: now.0 + 10 * DAY_MS, cleared: 0 };
        assert!(tries.wait(now, 10, 900) <= 900);
    }
}
