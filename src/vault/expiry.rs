//! The end of retention. A value is refused from its `expire_time` on; when its bucket is over, the bucket's key is
//! dropped: that one swap shreds every value of the bucket, of all subjects and in every backup. What a hold keeps is
//! moved to a later bucket first. Rows are deleted afterwards, in batches.

use crate::audit::{Action, Outcome};
use crate::clock::Timestamp;
use crate::ids::*;
use crate::keyring::{KeyRef, SwapError, SwapOp};
use crate::policy::period::{bucket_end, bucket_of};
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::carry::{Fate, Stored};
use crate::vault::error::VaultError;
use crate::vault::feed::{EventKind, FeedEvent};
use crate::vault::hold::holds_at;
use crate::vault::record;
use crate::vault::retry::ATTEMPTS;

/// How far ahead what a hold keeps is moved at a time: once the hold is released, it goes within so many days.
const KEPT_DAYS: i64 = 31;
/// Rows deleted in one change.
const ROWS_AT_ONCE: u32 = 5_000;
/// Class records read at a time.
const RECORDS_AT_ONCE: u32 = 200;

/// What is left to do and what was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    pub done: u64,
    /// It stopped at its limit.
    pub more: bool,
}

impl Progress {
    pub(crate) fn add(&mut self, other: Progress) {
        self.done += other.done;
        self.more |= other.more;
    }
}

impl Vault {
    /// Shreds the buckets of a tenant that are over, the oldest first, at most `limit`. A bucket that cannot be shredded
    /// stops its class, not the others.
    ///
    /// # Errors
    /// `ClockUnsafe` until the clock is confirmed; the first error of a class, after the others were tried.
    pub async fn shred_due(&self, call: &Call, limit: u32) -> Result<Progress, VaultError> {
        self.require_trusted_clock()?;
        let mut due: Vec<(Bucket, ClassNo)> =
            call.tenant.expiries.read().keys().map(|(class, bucket)| (*bucket, *class)).collect();
        due.retain(|(bucket, _)| is_over(*bucket, call.now));
        due.sort();
        let mut progress = Progress { done: 0, more: due.len() > limit as usize };
        let (mut failed, mut stopped) = (None, Vec::new());
        for (bucket, class) in due.into_iter().take(limit as usize) {
            if stopped.contains(&class) {
                continue;
            }
            match self.sweep_bucket(call, class, bucket).await {
                Ok(()) => progress.done += 1,
                Err(error) => {
                    tracing::warn!(tenant = call.tenant.no.0, class = class.0, %error, "a bucket could not be shredded");
                    stopped.push(class);
                    failed.get_or_insert(error);
                }
            }
        }
        failed.map_or(Ok(progress), Err)
    }

    /// Destroys the key of a bucket that is over, after moving out of it what a hold keeps. Holds count up to the commit:
    /// one that is placed meanwhile makes this decide again.
    pub(crate) async fn sweep_bucket(&self, call: &Call, class: ClassNo, bucket: Bucket) -> Result<(), VaultError> {
        if !is_over(bucket, call.now) {
            return Err(VaultError::WrongState("the bucket is not over yet"));
        }
        for _ in 0..ATTEMPTS {
            let Some(key) = self.bucket_key(call, class, bucket) else { return Ok(()) };
            if self.end_bucket(call, class, bucket, key).await? {
                return Ok(());
            }
        }
        Err(VaultError::Conflict)
    }

    /// `false`: something changed meanwhile.
    async fn end_bucket(&self, call: &Call, class: ClassNo, bucket: Bucket, key: KeyRef) -> Result<bool, VaultError> {
        let tenant = call.tenant.no;
        let placed = self.holds_placed(tenant).await?;
        let kept = self.kept_subjects(call, class).await?;
        let mut moved = 0;
        for uid in &kept {
            moved += self.keep_held(call, *uid, class, bucket).await?;
        }
        let mut change = ChangeSet::default();
        change.require(Precondition::ExpiryLive { tenant, class, bucket, dek: key.dek });
        change.require(holds_at(tenant, placed));
        change.change(Mutation::PutExpiry(ExpiryRow { tenant, class, bucket, slot: None, dek: key.dek }));
        if moved > 0 {
            let mut entry = call.record(Action::Resealed, Outcome::Ok);
            entry.class = Some(class);
            change.note(tenant, entry.to_bytes());
        }
        let mut entry = call.record(Action::BucketExpired, Outcome::Ok);
        entry.class = Some(class);
        change.note(tenant, entry.to_bytes());
        let event = FeedEvent {
            kind: EventKind::Expired,
            recipient_ref: Vec::new(),
            recipient: RecipientNo(0),
            classes: vec![class],
            at: call.now,
            erasure: None,
            through: bucket_end(bucket).map(|end| end.plus_ms(-1)),
        };
        event.put(call, &mut change);
        match self.keyring.swap(tenant, SwapOp { slots: vec![key.slot], change, ..SwapOp::default() }).await {
            // Committed is ended: the old root goes before the next swap.
            Ok(_) | Err(SwapError::Unfinished { .. }) => {}
            Err(SwapError::Conflict(_)) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        self.forget_bucket(call, class, bucket, key);
        Ok(true)
    }

    /// Takes a dropped bucket out of the map; one that was made anew since stays.
    fn forget_bucket(&self, call: &Call, class: ClassNo, bucket: Bucket, dropped: KeyRef) {
        let mut expiries = call.tenant.expiries.write();
        if expiries.get(&(class, bucket)) == Some(&dropped) {
            expiries.remove(&(class, bucket));
        }
    }

    /// Subjects of which a hold may keep values of the class, by number.
    async fn kept_subjects(&self, call: &Call, class: ClassNo) -> Result<Vec<SubjectUid>, VaultError> {
        let tenant = call.tenant.no;
        let marks = self.store.objects(tenant, ObjectKind::Hold, Vec::new(), Vec::new(), 1).await?;
        let by_law = call.tenant.policy()?.class(class).is_some_and(|rule| rule.hold.is_some());
        if marks.rows.is_empty() && !by_law {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for hold in self.all_holds(tenant).await? {
            if !hold.active(call.now) || !hold.covers(class) {
                continue;
            }
            found.extend(hold.subject);
            if let Some(group) = hold.group {
                self.each_subject(tenant, Some(group), |snapshot| found.push(snapshot.subject.uid)).await?;
            }
        }
        if by_law {
            // Erasures that are not ended: some wait for the class's own hold.
            let mut after = Vec::new();
            loop {
                let page = self.store.objects(tenant, ObjectKind::Job, Vec::new(), after, 1_000).await?;
                for row in &page.rows {
                    let uid: [u8; 8] = row.key.get(..8).and_then(|b| b.try_into().ok()).ok_or(VaultError::DataLoss)?;
                    found.push(SubjectUid(i64::from_be_bytes(uid)));
                }
                match page.rows.last() {
                    Some(last) if page.more => after = last.key.clone(),
                    _ => break,
                }
            }
        }
        found.sort();
        found.dedup();
        Ok(found)
    }

    /// All subjects of a tenant, or of a group, in order.
    pub(crate) async fn each_subject(
        &self,
        tenant: TenantNo,
        group: Option<GroupNo>,
        mut each: impl FnMut(&SubjectSnapshot) + Send,
    ) -> Result<(), VaultError> {
        let mut after = SubjectUid(0);
        loop {
            let page = self.store.list_subjects(tenant, group, after, 1_000).await?;
            page.rows.iter().for_each(|snapshot| each(snapshot));
            match page.rows.last() {
                Some(last) if page.more => after = last.subject.uid,
                _ => return Ok(()),
            }
        }
    }

    /// Moves what a hold keeps of a subject out of a bucket that is over. Its `expire_time` stays: it is read for the
    /// hold's purpose only.
    async fn keep_held(&self, call: &Call, uid: SubjectUid, class: ClassNo, bucket: Bucket) -> Result<u64, VaultError> {
        let Some(snapshot) = self.store.subject_by_uid(uid).await? else { return Ok(0) };
        let Some(row) = snapshot.class(class).filter(|row| row.tenant == call.tenant.no) else { return Ok(0) };
        let placed = self.placed_until(call, &snapshot.subject, class).await?;
        let policy = call.tenant.policy()?.clone();
        let restricted = row.state == ClassState::Restricted;
        let rule = |stored: &Stored| {
            let by_law = restricted.then(|| policy.held_until(class, stored.origin, call.now)).flatten();
            match placed.into_iter().chain(by_law).max() {
                Some(until) if until > call.now => {
                    let expire = stored.expire;
                    Fate::Move { bucket: bucket_of(until.min(call.now.plus_days(KEPT_DAYS)), false), expire }
                }
                _ => Fate::Keep,
            }
        };
        self.rebucket(call, uid, class, Some(bucket), &rule).await
    }

    /// Until when placed holds keep a class of a subject; the end of time for one without an end.
    pub(crate) async fn placed_until(
        &self,
        call: &Call,
        subject: &SubjectRow,
        class: ClassNo,
    ) -> Result<Option<Timestamp>, VaultError> {
        let placed = self.holds_on(subject).await?;
        let active = placed.iter().filter(|hold| hold.covers(class) && hold.active(call.now));
        Ok(active.map(|hold| hold.until.unwrap_or(Timestamp(i64::MAX))).max())
    }

    /// Deletes rows whose bucket's key is gone, about `limit` of them.
    pub async fn sweep_rows(&self, call: &Call, limit: u64) -> Result<Progress, VaultError> {
        let tenant = call.tenant.no;
        let mut progress = Progress::default();
        let mut dropped = self.store.expiries(tenant).await?;
        dropped.retain(|row| row.slot.is_none());
        dropped.sort_by_key(|row| (row.bucket, row.class));
        for row in dropped {
            if progress.done >= limit {
                progress.more = true;
                break;
            }
            progress.add(self.sweep_dropped(call, &row, limit - progress.done).await?);
        }
        // A write that was decided before a sweep and committed after it brings a dead section back.
        let policy = call.tenant.policy()?;
        for class in policy.classes().map(|rule| rule.no) {
            let living: Option<Bucket> =
                call.tenant.expiries.read().keys().filter(|(c, _)| *c == class).map(|(_, bucket)| *bucket).min();
            let today = u32::try_from(call.now.day()).unwrap_or(0);
            let until = Bucket(living.map_or(today, |bucket| bucket.0.min(today)).saturating_sub(1));
            if until != Bucket::NONE && progress.done < limit {
                let rows = self.store.classes_due(tenant, class, until, RECORDS_AT_ONCE).await?;
                if !rows.is_empty() {
                    progress.done += self.sweep_records(call, &rows, until).await?;
                    progress.more = true;
                }
            }
        }
        Ok(progress)
    }

    /// The rows of one dropped bucket, and at last the bucket's own.
    async fn sweep_dropped(&self, call: &Call, dropped: &ExpiryRow, limit: u64) -> Result<Progress, VaultError> {
        let ExpiryRow { tenant, class, bucket, .. } = *dropped;
        let mut done = 0;
        loop {
            let at_once = ROWS_AT_ONCE.min(u32::try_from(limit).unwrap_or(u32::MAX)).max(1);
            let mut change = ChangeSet::default();
            change.change(Mutation::DeleteBucket { tenant, class, bucket, limit: at_once });
            let removed = self.store.commit(change).await?.removed;
            done += removed;
            if removed == 0 {
                break;
            }
            if done >= limit {
                return Ok(Progress { done, more: true });
            }
        }
        loop {
            let rows = self.store.classes_due(tenant, class, bucket, RECORDS_AT_ONCE).await?;
            if rows.is_empty() {
                break;
            }
            done += self.sweep_records(call, &rows, bucket).await?;
            if done >= limit {
                return Ok(Progress { done, more: true });
            }
        }
        let mut change = ChangeSet::default();
        change.change(Mutation::DeleteExpiry { tenant, class, bucket });
        let mut entry = call.record(Action::RowsSwept, Outcome::Ok);
        entry.class = Some(class);
        change.note(tenant, entry.to_bytes());
        self.store.commit(change).await?;
        Ok(Progress { done: done + 1, more: false })
    }

    /// Takes the sections of a dropped bucket, and of those before it, out of records. No key is needed.
    async fn sweep_records(&self, call: &Call, rows: &[ClassRow], bucket: Bucket) -> Result<u64, VaultError> {
        let before = i64::from(bucket.0) + 1;
        let policy = call.tenant.policy()?;
        let searchable = |field: FieldNo| policy.field(field).is_none_or(|rule| rule.searchable);
        let mut each = Vec::with_capacity(rows.len());
        for row in rows {
            let (record, next_bucket) = record::sweep(&row.record, before).map_err(|_| VaultError::DataLoss)?;
            let outline = record::outline(&row.record).map_err(|_| VaultError::DataLoss)?;
            let gone = |value: &record::Outline| value.bucket != Bucket::NONE && i64::from(value.bucket.0) < before;
            let (tenant, uid) = (row.tenant, row.uid);
            let mut change = ChangeSet::default();
            let ClassRow { class, version, revision, .. } = *row;
            change.require(Precondition::ClassStill { uid, class, version, revision });
            for value in outline.iter().filter(|value| gone(value) && searchable(value.field)) {
                change.change(Mutation::DeleteTerms { tenant, uid, field: Some(value.field) });
            }
            // The revision stays: what is left is as it was, and a reader knows which sections may be missing.
            change.change(Mutation::PutClass(ClassRow { record, next_bucket, ..row.clone() }));
            each.push(change);
        }
        let owed = each.iter().any(|c| c.mutations.iter().any(|m| matches!(m, Mutation::DeleteTerms { .. })));
        if owed {
            // Old index tags name the values that were shredded, until the index secret goes too.
            self.owe_search(call).await?;
        }
        let mut whole = ChangeSet::default();
        for change in &each {
            whole.preconditions.extend(change.preconditions.iter().cloned());
            whole.mutations.extend(change.mutations.iter().cloned());
        }
        match self.store.commit(whole).await {
            Ok(_) => return Ok(rows.len() as u64),
            Err(StoreError::Conflict(_)) => {}
            Err(error) => return Err(error.into()),
        }
        // Somebody wrote to one of them: one by one, and that one again later.
        for change in each {
            match self.store.commit(change).await {
                Ok(_) | Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(rows.len() as u64)
    }
}

/// Whether the bucket's last day is over.
pub(crate) fn is_over(bucket: Bucket, now: Timestamp) -> bool {
    bucket_end(bucket).is_some_and(|end| end <= now)
}
