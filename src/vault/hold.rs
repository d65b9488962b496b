//! Legal holds: what keeps a class although its erasure was asked for.
//!
//! Two sources: a class's own hold in the policy (invoices for seven years), and holds placed on one subject or group by
//! a permission of its own. Both are looked at when an erasure is decided, and placed ones again at its commit: a change
//! set that erases requires that there is none, so a hold and an erasure race at the commit and the later one changes
//! nothing.
//!
//! `HoldBody` has the hold by its id. `Hold` marks what it keeps, by holder, class (0 for all) and id; the holder is the
//! subject's number, or the group's number below zero.

use serde::{Deserialize, Serialize};

use crate::access::Verb;
use crate::audit::{Action, Outcome};
use crate::clock::Timestamp;
use crate::ids::*;
use crate::keyring::ledger::{LedgerEntry, LedgerKind};
use crate::policy::file::HoldFrom;
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::{Call, Context};
use crate::vault::error::{VaultError, Violation};
use crate::vault::find::Key;
use crate::vault::ledger::ledger_entry;
use crate::vault::operation::HeldPart;
use crate::vault::record::origins;
use crate::vault::request::Request;
use crate::vault::to_json;

/// Whom a hold is on.
pub enum HoldTarget<'a> {
    Subject(&'a Key),
    /// A group: its present subjects and those to come.
    Group(&'a SubjectId),
}

/// What a new hold says.
pub struct NewHold {
    /// Empty: every class.
    pub classes: Vec<ClassNo>,
    /// A name; printed in receipts.
    pub basis: Name,
    /// The only purpose that a restricted class is read for.
    pub purpose: PurposeNo,
    /// `None`: until it is released.
    pub until: Option<Timestamp>,
}

/// A placed hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    pub id: ObjectId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<SubjectUid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupNo>,
    /// Empty: every class.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<ClassNo>,
    pub basis: String,
    pub purpose: PurposeNo,
    /// `None`: until it is released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    pub placed: Timestamp,
    pub by: ActorId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released: Option<Timestamp>,
}

impl Hold {
    /// Whether it keeps anything at that time.
    pub fn active(&self, now: Timestamp) -> bool {
        self.released.is_none() && self.until.is_none_or(|until| until > now)
    }

    fn holder(&self) -> i64 {
        holder(self.subject, self.group)
    }

    pub(crate) fn covers(&self, class: ClassNo) -> bool {
        self.classes.is_empty() || self.classes.contains(&class)
    }

    /// Keys of its marks.
    pub(crate) fn marks(&self) -> Vec<Vec<u8>> {
        let classes: Vec<u8> =
            if self.classes.is_empty() { vec![0] } else { self.classes.iter().map(|c| c.0).collect() };
        classes.into_iter().map(|class| [&prefix(self.holder(), class)[..], self.id.0.as_bytes()].concat()).collect()
    }
}

fn holder(subject: Option<SubjectUid>, group: Option<GroupNo>) -> i64 {
    subject.map_or_else(|| -group.map_or(0, |g| i64::from(g.0)), |uid| uid.0)
}

fn prefix(holder: i64, class: u8) -> Vec<u8> {
    [&holder.to_be_bytes()[..], &[class]].concat()
}

/// Adds to `change` that no hold keeps this class of the subject.
pub(crate) fn require_no_hold(subject: &SubjectRow, class: ClassNo, change: &mut ChangeSet) {
    let holders = [Some(subject.uid.0), subject.group.map(|g| -i64::from(g.0))];
    for holder in holders.into_iter().flatten() {
        for class in [0, class.0] {
            let (tenant, prefix) = (subject.tenant, prefix(holder, class));
            change.require(Precondition::NoObjectUnder { tenant, kind: ObjectKind::Hold, prefix });
        }
    }
}

/// Key of the setting that moves on with every hold that is placed.
const PLACED: &[u8] = b"holds-placed";

/// That no hold was placed since [`Vault::holds_placed`] answered `placed`.
pub(crate) fn holds_at(tenant: TenantNo, placed: Revision) -> Precondition {
    Precondition::ObjectAt { tenant, kind: ObjectKind::Setting, key: PLACED.to_vec(), revision: placed }
}

impl Vault {
    /// How often a hold was placed in the tenant.
    pub(crate) async fn holds_placed(&self, tenant: TenantNo) -> Result<Revision, VaultError> {
        let row = self.store.object(tenant, ObjectKind::Setting, PLACED.to_vec()).await?;
        Ok(row.map_or(Revision(0), |row| row.revision))
    }

    /// Holds that were placed on a subject or its group and are not released; some may have ended.
    pub(crate) async fn holds_on(&self, subject: &SubjectRow) -> Result<Vec<Hold>, VaultError> {
        let mut found = self.marked(subject.tenant, subject.uid.0).await?;
        if let Some(group) = subject.group {
            found.extend(self.marked(subject.tenant, -i64::from(group.0)).await?);
        }
        Ok(found)
    }

    async fn marked(&self, tenant: TenantNo, holder: i64) -> Result<Vec<Hold>, VaultError> {
        let prefix = holder.to_be_bytes().to_vec();
        let page = self.store.objects(tenant, ObjectKind::Hold, prefix.clone(), prefix, 1000).await?;
        let mut ids: Vec<ObjectId> = Vec::new();
        for row in &page.rows {
            let bytes: [u8; 16] = row.key.get(9..).and_then(|b| b.try_into().ok()).ok_or(VaultError::DataLoss)?;
            ids.push(ObjectId(uuid::Uuid::from_bytes(bytes)));
        }
        ids.sort();
        ids.dedup();
        let mut found = Vec::with_capacity(ids.len());
        for id in ids {
            // A hold that was released in between is gone.
            if let Ok((hold, _)) = self.hold(tenant, id).await
                && hold.released.is_none()
            {
                found.push(hold);
            }
        }
        Ok(found)
    }

    async fn hold(&self, tenant: TenantNo, id: ObjectId) -> Result<(Hold, Revision), VaultError> {
        let row = self.store.object(tenant, ObjectKind::HoldBody, id.0.as_bytes().to_vec()).await?;
        let row = row.ok_or(VaultError::NotFound)?;
        Ok((serde_json::from_slice(&row.body).map_err(|_| VaultError::DataLoss)?, row.revision))
    }

    /// What keeps a class of a subject now: of placed holds and the policy's the one that ends last. `asked` is when
    /// its erasure was asked for.
    pub(crate) async fn held(
        &self,
        call: &Call,
        row: &ClassRow,
        placed: &[Hold],
        asked: Timestamp,
    ) -> Result<Option<HeldPart>, VaultError> {
        let by_hand =
            placed.iter().filter(|hold| hold.covers(row.class) && hold.active(call.now)).map(|hold| HeldPart {
                class: row.class,
                basis: hold.basis.clone(),
                until: hold.until,
                hold: Some(hold.id),
                purpose: hold.purpose,
            });
        let end = |part: &HeldPart| part.until.map_or(i64::MAX, |t| t.0);
        let placed = by_hand.max_by_key(end);
        let by_law = self.held_by_policy(call, row, asked).await?;
        Ok(placed.into_iter().chain(by_law).max_by_key(end))
    }

    async fn held_by_policy(
        &self,
        call: &Call,
        row: &ClassRow,
        asked: Timestamp,
    ) -> Result<Option<HeldPart>, VaultError> {
        let policy = call.tenant.policy()?;
        let Some(rule) = policy.class(row.class).and_then(|class| class.hold.as_ref()) else { return Ok(None) };
        let Some(latest) = self.latest_origin(row).await? else { return Ok(None) };
        let start = match rule.from {
            HoldFrom::Origin => latest,
            HoldFrom::Erase => asked,
        };
        let until = rule.keep.after(start, policy.zone());
        Ok((until > call.now).then(|| HeldPart {
            class: row.class,
            basis: rule.basis.clone(),
            until: Some(until),
            hold: None,
            purpose: rule.purpose,
        }))
    }

    /// Latest origin of the class's values and items; `None` when it holds nothing.
    async fn latest_origin(&self, row: &ClassRow) -> Result<Option<Timestamp>, VaultError> {
        let mut latest = origins(&row.record).map_err(|_| VaultError::DataLoss)?.into_iter().max();
        for group in self.store.item_groups(row.uid, None).await? {
            if group.key.class != row.class {
                continue;
            }
            let mut after = ItemNo(-1);
            loop {
                let page = self.store.items(group.key, after, 1000).await?;
                let Some(last) = page.rows.last() else { break };
                // Item numbers sort by origin: the last of a page is its latest.
                after = last.item;
                latest = latest.max(Some(last.origin));
                if !page.more {
                    break;
                }
            }
        }
        Ok(latest)
    }

    /// The purpose that a restricted class is read for: the one asked with, if a hold names it.
    pub(crate) async fn held_for(
        &self,
        call: &Call,
        subject: &SubjectRow,
        row: &ClassRow,
        purpose: PurposeNo,
    ) -> Result<Option<PurposeNo>, VaultError> {
        if row.state != ClassState::Restricted {
            return Ok(None);
        }
        let by_law = call.tenant.policy()?.class(row.class).and_then(|class| class.hold.as_ref());
        let mut purposes: Vec<PurposeNo> = by_law.map(|hold| hold.purpose).into_iter().collect();
        if !purposes.contains(&purpose) {
            let placed = self.holds_on(subject).await?;
            let here = placed.iter().filter(|hold| hold.covers(row.class) && hold.active(call.now));
            purposes.extend(here.map(|hold| hold.purpose));
        }
        Ok(purposes.iter().find(|p| **p == purpose).or(purposes.first()).copied())
    }

    /// Places a hold; it counts from the moment this has answered.
    pub async fn place_hold(
        &self,
        call: &Call,
        context: &Context,
        target: HoldTarget<'_>,
        new: &NewHold,
        request: Option<Request>,
        validate_only: bool,
    ) -> Result<Hold, VaultError> {
        call.permit(Verb::Hold)?;
        if let Some(answer) = self.repeated(call, request.as_ref()).await? {
            return Ok(answer);
        }
        self.check_hold(call, new)?;
        let tenant = call.tenant.no;
        for _ in 0..4 {
            let mut change = ChangeSet::default();
            let (subject, group, classes) = match &target {
                HoldTarget::Subject(key) => {
                    let snapshot = self.resolve(call, context, key).await?;
                    call.permit_for(Verb::Hold, snapshot.subject.group)?;
                    let (uid, revision) = (snapshot.subject.uid, snapshot.subject.revision);
                    change.require(Precondition::SubjectAt { uid, revision });
                    (Some(uid), None, snapshot.classes.clone())
                }
                HoldTarget::Group(id) => {
                    let group = self.group_no(call, id).await?;
                    call.permit_for(Verb::Hold, Some(group))?;
                    (None, Some(group), Vec::new())
                }
            };
            let hold = Hold {
                id: ObjectId::random(),
                subject,
                group,
                classes: new.classes.clone(),
                basis: new.basis.to_string(),
                purpose: new.purpose,
                until: new.until,
                placed: call.now,
                by: call.principal.actor,
                released: None,
            };
            if validate_only {
                return Ok(hold);
            }
            for key in hold.marks() {
                let (kind, revision, body) = (ObjectKind::Hold, Revision(1), Vec::new());
                change.change(Mutation::PutObject(ObjectRow { tenant, kind, key, revision, body }));
            }
            // Who ends a bucket meanwhile decides again.
            let placed = self.holds_placed(tenant).await?;
            change.require(holds_at(tenant, placed));
            let (kind, key, revision) = (ObjectKind::Setting, PLACED.to_vec(), Revision(placed.0 + 1));
            change.change(Mutation::PutObject(ObjectRow { tenant, kind, key, revision, body: Vec::new() }));
            put_hold(tenant, &hold, Revision(0), &mut change);
            let mut entry = call.record(Action::PlaceHold, Outcome::Ok);
            entry.subject = subject;
            entry.operation = Some(hold.id);
            self.attach_detail(call, context, &mut entry, &classes).await?;
            change.note(tenant, entry.to_bytes());
            self.remember(call, request.as_ref(), &hold, &mut change);
            match self.store.commit(change).await {
                Ok(_) => {
                    self.ledger_hold(call, LedgerKind::HoldPlaced, &hold).await?;
                    return Ok(hold);
                }
                Err(error) => self.retry_or_answer(call, error, request.as_ref()).await?,
            }
        }
        Err(VaultError::Conflict)
    }

    fn check_hold(&self, call: &Call, new: &NewHold) -> Result<(), VaultError> {
        let policy = call.tenant.policy()?;
        let mut wrong = Vec::new();
        for (i, class) in new.classes.iter().enumerate() {
            if policy.class(*class).is_none() {
                wrong.push(Violation::new(format!("class_ids[{i}]"), "no class with this number in the policy"));
            }
        }
        if policy.purpose(new.purpose).is_none() {
            wrong.push(Violation::new("purpose_id", "no purpose with this number in the policy"));
        }
        if new.until.is_some_and(|until| until <= call.now) {
            wrong.push(Violation::new("end_time", "must be in the future"));
        }
        if wrong.is_empty() { Ok(()) } else { Err(VaultError::Invalid(wrong)) }
    }

    /// Releases a hold: erasures that waited for it go on, and are answered.
    pub async fn release_hold(
        &self,
        call: &Call,
        context: &Context,
        id: ObjectId,
        request: Option<Request>,
        validate_only: bool,
    ) -> Result<(Hold, Vec<ObjectId>), VaultError> {
        call.permit(Verb::Release)?;
        let tenant = call.tenant.no;
        let (hold, revision) = self.hold(tenant, id).await?;
        let mut classes = Vec::new();
        match (hold.subject, hold.group) {
            (Some(uid), _) => {
                let snapshot = self.store.subject_by_uid(uid).await?;
                call.permit_for(Verb::Release, snapshot.as_ref().and_then(|s| s.subject.group))?;
                classes = snapshot.map_or(classes, |s| s.classes.clone());
            }
            (None, group) => {
                call.permit_for(Verb::Release, group)?;
            }
        }
        // What waited is remembered with the release, and whether it still waits is looked at when it is answered: a
        // repeat goes on with what a crash left, and answers the same.
        let known: Option<Vec<ObjectId>> = self.repeated(call, request.as_ref()).await?;
        let (released, waited) = match known {
            Some(waited) => (hold, waited),
            None if hold.released.is_some() || validate_only => return Ok((hold, Vec::new())),
            None => {
                let waited = self.waiting_for(call, &hold).await?;
                let released = Hold { released: Some(call.now), ..hold };
                let mut change = ChangeSet::default();
                self.take_marks(tenant, &released, revision, &mut change);
                let mut entry = call.record(Action::ReleaseHold, Outcome::Ok);
                entry.subject = released.subject;
                entry.operation = Some(id);
                self.attach_detail(call, context, &mut entry, &classes).await?;
                change.note(tenant, entry.to_bytes());
                self.remember(call, request.as_ref(), &waited, &mut change);
                self.store.commit(change).await?;
                (released, waited)
            }
        };
        self.ledger_hold(call, LedgerKind::HoldReleased, &released).await?;
        match released.subject {
            Some(uid) => self.resume_held(call, uid).await?,
            None => self.resume_group(call, released.group).await?,
        };
        let mut resumed = Vec::new();
        for operation in waited {
            let (now, _) = self.operation(tenant, operation).await?;
            if !now.held.iter().any(|part| part.hold == Some(id)) {
                resumed.push(operation);
            }
        }
        Ok((released, resumed))
    }

    /// Erasures of single subjects that this hold keeps.
    async fn waiting_for(&self, call: &Call, hold: &Hold) -> Result<Vec<ObjectId>, VaultError> {
        let tenant = call.tenant.no;
        let mut uids: Vec<SubjectUid> = hold.subject.into_iter().collect();
        if hold.subject.is_none() {
            self.each_subject(tenant, hold.group, |snapshot| {
                if snapshot.classes.iter().any(|row| row.state == ClassState::Restricted) {
                    uids.push(snapshot.subject.uid);
                }
            })
            .await?;
        }
        let mut waiting = Vec::new();
        for uid in uids {
            let open = self.open_operations(tenant, uid).await?;
            let kept = open.iter().filter(|(one, _)| one.held.iter().any(|part| part.hold == Some(hold.id)));
            waiting.extend(kept.map(|(one, _)| one.id));
        }
        Ok(waiting)
    }

    /// Takes the marks of a hold that was released or has ended.
    fn take_marks(&self, tenant: TenantNo, hold: &Hold, revision: Revision, change: &mut ChangeSet) {
        put_hold(tenant, hold, revision, change);
        for key in hold.marks() {
            change.change(Mutation::DeleteObject { tenant, kind: ObjectKind::Hold, key });
        }
    }

    /// Takes the marks of holds whose end has come, so that erasures find none; answers the rest.
    pub(crate) async fn end_holds(&self, call: &Call, placed: Vec<Hold>) -> Result<Vec<Hold>, VaultError> {
        let (active, ended): (Vec<Hold>, Vec<Hold>) = placed.into_iter().partition(|hold| hold.active(call.now));
        for hold in ended {
            let tenant = call.tenant.no;
            let (hold, revision) = self.hold(tenant, hold.id).await?;
            let mut change = ChangeSet::default();
            let hold = Hold { released: hold.until, ..hold };
            self.take_marks(tenant, &hold, revision, &mut change);
            let mut entry = call.record(Action::ReleaseHold, Outcome::Ok);
            (entry.actor, entry.subject, entry.operation) = (ActorId(0), hold.subject, Some(hold.id));
            change.note(tenant, entry.to_bytes());
            match self.store.commit(change).await {
                // Another took them beside us.
                Ok(_) | Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(active)
    }

    /// Whether any placed hold of the tenant counts now.
    pub(crate) async fn any_hold(&self, call: &Call) -> Result<Option<Hold>, VaultError> {
        Ok(self.all_holds(call.tenant.no).await?.into_iter().find(|hold| hold.active(call.now)))
    }

    /// All holds ever placed in a tenant, newest first.
    pub(crate) async fn all_holds(&self, tenant: TenantNo) -> Result<Vec<Hold>, VaultError> {
        let (mut found, mut after) = (Vec::new(), Vec::new());
        loop {
            let page = self.store.objects(tenant, ObjectKind::HoldBody, Vec::new(), after, 1000).await?;
            for row in &page.rows {
                found.push(serde_json::from_slice::<Hold>(&row.body).map_err(|_| VaultError::DataLoss)?);
            }
            match page.rows.last() {
                Some(last) if page.more => after = last.key.clone(),
                _ => break,
            }
        }
        found.sort_by_key(|hold| std::cmp::Reverse((hold.placed, hold.id)));
        Ok(found)
    }

    /// Holds of a subject, of a group or of the tenant, newest first, after `after`.
    pub async fn list_holds(
        &self,
        call: &Call,
        context: &Context,
        target: Option<HoldTarget<'_>>,
        after: Option<ObjectId>,
        limit: u32,
    ) -> Result<Page<Hold>, VaultError> {
        if call.permit(Verb::Hold).is_err() {
            call.permit(Verb::Release)?;
        }
        let mut rows = self.all_holds(call.tenant.no).await?;
        match target {
            Some(HoldTarget::Subject(key)) => {
                let uid = self.resolve(call, context, key).await?.subject.uid;
                rows.retain(|hold| hold.subject == Some(uid));
            }
            Some(HoldTarget::Group(id)) => {
                let group = self.group_no(call, id).await?;
                rows.retain(|hold| hold.group == Some(group));
            }
            None => {}
        }
        if let Some(after) = after {
            let at = rows.iter().position(|hold| hold.id == after).map_or(rows.len(), |at| at + 1);
            rows.drain(..at);
        }
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        Ok(Page { rows, more })
    }

    async fn ledger_hold(&self, call: &Call, kind: LedgerKind, hold: &Hold) -> Result<(), VaultError> {
        let classes = if hold.classes.is_empty() { vec![ClassNo(0)] } else { hold.classes.clone() };
        let entry = |class: ClassNo| LedgerEntry {
            class,
            number: hold.group.map_or(0, |group| group.0),
            until: hold.until.unwrap_or(Timestamp(0)),
            ..ledger_entry(call, kind, hold.subject.unwrap_or(SubjectUid(0)), hold.id)
        };
        self.ledger(classes.into_iter().map(entry).collect()).await
    }
}

fn put_hold(tenant: TenantNo, hold: &Hold, revision: Revision, change: &mut ChangeSet) {
    let (kind, key) = (ObjectKind::HoldBody, hold.id.0.as_bytes().to_vec());
    change.replace_object(tenant, kind, key, revision, to_json(hold));
}
