//! Counts over groups of people: how many have which value of a field that the policy declares for it, and nothing that
//! says of one person what theirs is.
//!
//! Two counts whose difference is one person tell of that person. So there is one fixed way to divide people: by one field,
//! without a filter, without a second field, not by a group of customers, not by purpose. A group below the threshold is not
//! told; where the people of all groups that are not told are fewer than the threshold, the smallest group that would be told
//! is not told either, so that the number of all people gives nothing away. And a table that was told stays as it is until at
//! least as many people as the threshold have come, gone or changed: two tables differ by so many or not at all.
//!
//! What is kept of a table holds no value: groups are named by a MAC, and changes are seen by a sketch, buckets of sums of
//! MACs over (person, value). A person changes one bucket, so as many people changed as buckets differ, or more.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::access::{FieldSet, Grant, PurposeSet, Verb, VerbSet, View};
use crate::audit::{Action, Fields, Outcome};
use crate::clock::Timestamp;
use crate::ids::*;
use crate::policy::compiled::{Ask, Decision};
use crate::policy::value::Value;
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::{Call, Context};
use crate::vault::error::{DenialKind, VaultError};
use crate::vault::read::{Select, plain_bytes, resolve};
use crate::vault::to_json;

const PAGE: u32 = 1_000;
/// Buckets of the sketch: at least so many, and four times the threshold.
const LEAST_BUCKETS: usize = 4_096;
/// Most groups of a table; the rest is not told.
const MOST_CELLS: usize = 1_000;
/// Kind of purposes for which people are counted.
const ANALYTICS: &str = "analytics";

/// One group that is large enough.
pub struct Cell {
    pub value: Value,
    pub count: u64,
}

/// Counts of one field.
pub struct Counts {
    /// The largest first.
    pub cells: Vec<Cell>,
    pub threshold: u32,
    /// When the counts were made.
    pub at: Timestamp,
}

/// A table as it was told.
#[derive(Serialize, Deserialize)]
struct Told {
    at: Timestamp,
    threshold: u32,
    /// MAC of the value in hexadecimal, and how many people have it.
    cells: Vec<(String, u64)>,
    /// Buckets, 8 bytes each.
    #[serde(with = "crate::vault::hex")]
    sketch: Vec<u8>,
}

/// What is counted now.
struct Counted {
    cells: HashMap<[u8; 16], (Value, u64)>,
    sketch: Vec<u64>,
}

impl Vault {
    /// How many people have which value of a field.
    ///
    /// # Errors
    /// `Invalid` for a field that the policy does not declare for it, `Denied` for callers who may not read it for the
    /// purpose, or of some groups of subjects only.
    pub async fn aggregate(&self, call: &Call, context: &Context, field: FieldNo) -> Result<Counts, VaultError> {
        let policy = call.tenant.policy()?;
        let rule = policy.analytics().filter(|rule| rule.fields.has(field.0));
        let threshold =
            rule.ok_or_else(|| VaultError::invalid("field_id", "the policy does not declare it in [analytics]"))?;
        let threshold = threshold.threshold;
        let purpose = context.purpose()?;
        let counted_for =
            |p: &&crate::policy::compiled::PurposeRule| p.kind.as_deref() == Some(ANALYTICS) && p.fields.has(field.0);
        let purposes: Vec<PurposeNo> = policy.purposes().filter(counted_for).map(|p| p.no).collect();
        if !purposes.contains(&purpose) {
            return Err(VaultError::denied(DenialKind::PurposeNotAllowed, "analytics"));
        }
        let granted = |g: &Grant| g.groups.is_none() && g.covers(field, purpose, Verb::Read, None);
        if !call.principal.grants.iter().any(granted) {
            return Err(VaultError::denied(DenialKind::PurposeNotGranted, "grant"));
        }
        let mut entry = call.record(Action::Aggregate, Outcome::Ok);
        (entry.fields, entry.purpose) = (Fields::new([field]), purpose);
        self.note_read(call, &entry).await?;
        let _one_at_a_time = self.counting.lock().await;
        let mut counted = self.count_values(call, field, &purposes, buckets(threshold)).await?;
        let told = self.told(call, field, threshold, &counted).await?;
        let value = |(mac, count): &(String, u64)| {
            let mac: [u8; 16] = data_encoding::HEXLOWER.decode(mac.as_bytes()).ok()?.try_into().ok()?;
            // Of a value that nobody has any more only the MAC is left.
            counted.cells.remove(&mac).map(|(value, _)| Cell { value, count: *count })
        };
        let mut cells: Vec<Cell> = told.cells.iter().filter_map(value).collect();
        cells.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| plain_bytes(&a.value).cmp(&plain_bytes(&b.value))));
        Ok(Counts { cells, threshold, at: told.at })
    }

    /// Looks at everybody who has a value and lets it be counted for all purposes of this kind.
    async fn count_values(
        &self,
        call: &Call,
        field: FieldNo,
        purposes: &[PurposeNo],
        buckets: usize,
    ) -> Result<Counted, VaultError> {
        let policy = call.tenant.policy()?;
        let class = policy.field(field).ok_or(VaultError::NotFound)?.class;
        let select = Select { fields: vec![field], partial: true, ..Select::default() };
        let wanted = resolve(policy, &select)?;
        // The vault looks, not the caller, who sees no single value.
        let own = self.job_call(call.tenant.clone());
        let grants = [Grant {
            fields: FieldSet::ALL,
            purposes: PurposeSet::ALL,
            verbs: VerbSet::from_iter([Verb::Read]),
            max_view: View::Plain,
            groups: None,
        }];
        let none = Context::default();
        let mut counted = Counted { cells: HashMap::new(), sketch: vec![0; buckets] };
        let mut after = SubjectUid(0);
        loop {
            let page = self.store.list_subjects(call.tenant.no, None, after, PAGE).await?;
            for snapshot in &page.rows {
                after = snapshot.subject.uid;
                let open = matches!(snapshot.subject.state, SubjectState::Live | SubjectState::Closed);
                if !open || snapshot.class(class).is_none_or(|row| row.state != ClassState::Live) {
                    continue;
                }
                let facts = self.facts(&own, snapshot).await?;
                let asks = |purpose: PurposeNo| {
                    let ask = none.ask(&own, Verb::Read, purpose, snapshot.subject.group, None, true);
                    Ask { grants: &grants, facts: facts.view(), ..ask }
                };
                let allowed = |p: &PurposeNo| matches!(policy.decide(&asks(*p), field, None), Decision::Allow { .. });
                if !purposes.iter().all(allowed) {
                    continue;
                }
                let ask = asks(purposes[0]);
                let got = match self.read_snapshot(&own, policy, &ask, snapshot, &wanted, &select).await {
                    // Gone since the page was read.
                    Err(VaultError::Conflict | VaultError::NotFound) => continue,
                    got => got?,
                };
                let Some(Ok((value, View::Plain))) = got.values.into_iter().next().map(|shown| shown.what) else {
                    continue;
                };
                counted.add(call, field, snapshot.subject.uid, value);
            }
            if !page.more {
                return Ok(counted);
            }
        }
    }

    /// The table that is told: the one before while fewer than the threshold have changed since, else a new one.
    async fn told(&self, call: &Call, field: FieldNo, threshold: u32, counted: &Counted) -> Result<Told, VaultError> {
        let (tenant, kind, key) = (call.tenant.no, ObjectKind::Counts, field.0.to_be_bytes().to_vec());
        let row = self.store.object(tenant, kind, key.clone()).await?;
        let revision = row.as_ref().map_or(Revision(0), |row| row.revision);
        if let Some(row) = row {
            let former: Told = serde_json::from_slice(&row.body).map_err(|_| VaultError::DataLoss)?;
            if former.threshold == threshold && former.changed(&counted.sketch) < threshold as usize {
                return Ok(former);
            }
        }
        let told = Told {
            at: call.now,
            threshold,
            cells: large_enough(counted, u64::from(threshold)),
            sketch: counted.sketch.iter().flat_map(|bucket| bucket.to_be_bytes()).collect(),
        };
        let mut change = ChangeSet::default();
        change.replace_object(tenant, kind, key, revision, to_json(&told));
        self.store.commit(change).await?;
        Ok(told)
    }
}

fn buckets(threshold: u32) -> usize {
    (4 * threshold as usize).next_power_of_two().max(LEAST_BUCKETS)
}

impl Counted {
    fn add(&mut self, call: &Call, field: FieldNo, uid: SubjectUid, value: Value) {
        let plain = plain_bytes(&value);
        let (field, who) = (field.0.to_be_bytes(), uid.0.to_be_bytes());
        let place = first_eight(&call.tenant.token_mac(&[b"count place", &field, &who])) as usize % self.sketch.len();
        let share = first_eight(&call.tenant.token_mac(&[b"count share", &field, &who, &plain]));
        self.sketch[place] = self.sketch[place].wrapping_add(share);
        let mac = call.tenant.token_mac(&[b"count cell", &field, &plain]);
        self.cells.entry(mac).or_insert((value, 0)).1 += 1;
    }
}

impl Told {
    /// At least so many people have come, gone or changed since.
    fn changed(&self, now: &[u64]) -> usize {
        let (former, _) = self.sketch.as_chunks::<8>();
        if former.len() != now.len() {
            return usize::MAX;
        }
        former.iter().zip(now).filter(|(former, now)| u64::from_be_bytes(**former) != **now).count()
    }
}

fn first_eight(mac: &[u8; 16]) -> u64 {
    mac.first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// The groups that are told.
fn large_enough(counted: &Counted, threshold: u64) -> Vec<(String, u64)> {
    let mut cells: Vec<(String, u64)> =
        counted.cells.iter().map(|(mac, (_, count))| (data_encoding::HEXLOWER.encode(mac), *count)).collect();
    cells.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let many = cells.iter().take(MOST_CELLS).take_while(|(_, count)| *count >= threshold).count();
    let hidden: u64 = cells[many..].iter().map(|(_, count)| *count).sum();
    let keep = if hidden > 0 && hidden < threshold { many.saturating_sub(1) } else { many };
    cells.truncate(keep);
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(counts: &[u64]) -> Counted {
        let cell = |(n, count): (usize, &u64)| ([n as u8; 16], (Value::Integer(n as i64), *count));
        Counted { cells: counts.iter().enumerate().map(cell).collect(), sketch: Vec::new() }
    }

    fn told(counts: &[u64]) -> Vec<u64> {
        large_enough(&counted(counts), 20).into_iter().map(|(_, count)| count).collect()
    }

    #[test]
    fn small_groups_are_not_told_and_are_never_fewer_than_the_threshold_together() {
        assert_eq!(told(&[25, 20, 30]), [30, 25, 20]);
        assert_eq!(told(&[25, 19, 30]), [30], "19 alone would follow from the number of all");
        assert_eq!(told(&[25, 10, 10, 30]), [30, 25]);
        assert_eq!(told(&[19]), [] as [u64; 0]);
        assert_eq!(told(&[40, 1]), [] as [u64; 0]);
        assert_eq!(told(&[]), [] as [u64; 0]);
    }

    #[test]
    fn as_many_people_changed_as_buckets_differ_or_more() {
        let sketch: Vec<u8> = [5u64, 6, 7].iter().flat_map(|n| n.to_be_bytes()).collect();
        let told = Told { at: Timestamp(0), threshold: 20, cells: Vec::new(), sketch };
        assert_eq!(told.changed(&[5, 6, 7]), 0);
        assert_eq!(told.changed(&[5, 1, 2]), 2);
        assert_eq!(told.changed(&[5, 6]), usize::MAX, "another size");
        assert_eq!((buckets(2), buckets(20_000)), (4_096, 131_072));
    }
}
