//! Groups of subjects: the account of a tenant's customer, with its plan and the retention it chose.
//!
//! Two small records: `Group` by number, and `GroupName` by the keyed digest of the caller's id, so that the id itself
//! is stored sealed only.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::access::Verb;
use crate::audit::{Action, Outcome};
use crate::clock::Timestamp;
use crate::ids::*;
use crate::policy::period::Period;
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::error::{VaultError, Violation};
use crate::vault::request::Request;
use crate::vault::retention::regroup;

/// Whether a group's subjects may be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GroupState {
    Active,
    Closed,
    /// Every subject it owned was erased.
    Erased,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupBody {
    state: GroupState,
    #[serde(with = "crate::vault::hex")]
    sealed_id: Vec<u8>,
    created: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    plan: Option<Name>,
    /// Retention per class as the group chose it, as in a policy file (`"180d"`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    retention: BTreeMap<u8, String>,
}

/// A group as callers see it.
#[derive(Debug, Clone)]
pub struct Group {
    pub no: GroupNo,
    pub id: SubjectId,
    pub state: GroupState,
    pub plan: Option<Name>,
    pub retention: Vec<(ClassNo, Period)>,
    pub created: Timestamp,
    pub revision: Revision,
}

/// The retention that a group chose, by class; empty for subjects without a group.
#[derive(Debug, Default)]
pub struct GroupRetention(Vec<(ClassNo, Period)>);

impl GroupRetention {
    /// The override for a class.
    pub fn of(&self, class: ClassNo) -> Option<Period> {
        self.0.iter().find(|(c, _)| *c == class).map(|(_, period)| *period)
    }
}

/// What a change of a group sets; `None` leaves it as it is.
#[derive(Debug, Default)]
pub struct GroupChange {
    pub plan: Option<Option<Name>>,
    pub state: Option<GroupState>,
    /// Replaces all overrides.
    pub retention: Option<Vec<(ClassNo, String)>>,
}

fn number_key(group: GroupNo) -> Vec<u8> {
    group.0.to_be_bytes().to_vec()
}

impl Vault {
    /// The retention overrides of a subject's group.
    pub(crate) async fn group_retention(
        &self,
        call: &Call,
        group: Option<GroupNo>,
    ) -> Result<GroupRetention, VaultError> {
        let Some(group) = group else { return Ok(GroupRetention::default()) };
        if call.tenant.policy()?.plans().is_empty() {
            return Ok(GroupRetention::default());
        }
        Ok(GroupRetention(self.group_by_no(call, group).await?.retention))
    }

    /// Groups that chose a retention, with what they chose.
    pub(crate) async fn chosen_retentions(&self, call: &Call) -> Result<HashMap<GroupNo, GroupRetention>, VaultError> {
        let (mut found, mut after) = (HashMap::new(), Vec::new());
        loop {
            let page = self.store.objects(call.tenant.no, ObjectKind::Group, Vec::new(), after, 1_000).await?;
            for row in &page.rows {
                let group = self.read_group(call, row)?;
                if !group.retention.is_empty() {
                    found.insert(group.no, GroupRetention(group.retention));
                }
            }
            match page.rows.last() {
                Some(last) if page.more => after = last.key.clone(),
                _ => return Ok(found),
            }
        }
    }

    /// A group that new subjects may join.
    pub(crate) async fn must_be_open_group(&self, call: &Call, group: GroupNo) -> Result<(), VaultError> {
        match self.group_by_no(call, group).await?.state {
            GroupState::Active => Ok(()),
            GroupState::Closed | GroupState::Erased => Err(VaultError::WrongState("the group is closed")),
        }
    }

    /// The number of the group with this id.
    ///
    /// # Errors
    /// `NotFound`, also for another tenant's.
    pub async fn group_no(&self, call: &Call, id: &SubjectId) -> Result<GroupNo, VaultError> {
        let key = call.tenant.digest(id).0.to_vec();
        let row = self.store.object(call.tenant.no, ObjectKind::GroupName, key).await?.ok_or(VaultError::NotFound)?;
        let bytes: [u8; 4] = row.body.as_slice().try_into().map_err(|_| VaultError::DataLoss)?;
        Ok(GroupNo(u32::from_be_bytes(bytes)))
    }

    /// A group by number.
    pub async fn group_by_no(&self, call: &Call, group: GroupNo) -> Result<Group, VaultError> {
        let row = self.store.object(call.tenant.no, ObjectKind::Group, number_key(group)).await?;
        self.read_group(call, &row.ok_or(VaultError::NotFound)?)
    }

    fn read_group(&self, call: &Call, row: &ObjectRow) -> Result<Group, VaultError> {
        let body: GroupBody = serde_json::from_slice(&row.body).map_err(|_| VaultError::DataLoss)?;
        let id = call.tenant.open_object(ObjectKind::Group, &row.key, &body.sealed_id)?;
        let id = std::str::from_utf8(&id).map_err(|_| VaultError::DataLoss)?;
        let bytes: [u8; 4] = row.key.as_slice().try_into().map_err(|_| VaultError::DataLoss)?;
        Ok(Group {
            no: GroupNo(u32::from_be_bytes(bytes)),
            id: SubjectId::parse("group", id).map_err(|_| VaultError::DataLoss)?,
            state: body.state,
            plan: body.plan,
            retention: body
                .retention
                .iter()
                .filter_map(|(class, text)| Some((ClassNo(*class), Period::parse(text)?)))
                .collect(),
            created: body.created,
            revision: row.revision,
        })
    }

    /// Adds a group's new state to a change; answers the state it has now.
    pub(crate) async fn set_group_state(
        &self,
        call: &Call,
        group: GroupNo,
        state: GroupState,
        change: &mut ChangeSet,
    ) -> Result<GroupState, VaultError> {
        let (tenant, kind, key) = (call.tenant.no, ObjectKind::Group, number_key(group));
        let row = self.store.object(tenant, kind, key.clone()).await?.ok_or(VaultError::NotFound)?;
        let mut body: GroupBody = serde_json::from_slice(&row.body).map_err(|_| VaultError::DataLoss)?;
        let former = std::mem::replace(&mut body.state, state);
        change.replace_object(tenant, kind, key, row.revision, crate::vault::to_json(&body));
        Ok(former)
    }

    fn check_retention(
        &self,
        call: &Call,
        plan: Option<&Name>,
        retention: &[(ClassNo, String)],
    ) -> Result<(), VaultError> {
        let policy = call.tenant.policy()?;
        for (i, (class, text)) in retention.iter().enumerate() {
            let at = |rule: &str| VaultError::Invalid(vec![Violation::new(format!("retention[{i}]"), rule)]);
            let period = Period::parse(text).ok_or_else(|| at("must be a number and a unit, like 180d or 7y"))?;
            policy.check_override(plan, *class, period).map_err(|refusal| {
                use crate::policy::compiled::OverrideRefusal::*;
                match refusal {
                    NoPlan => at("the group has no plan that allows an override"),
                    NotInPlan { .. } => at("the group's plan does not allow an override of this class"),
                    OutOfBounds { .. } => at("outside the bounds that the group's plan sets"),
                }
            })?;
        }
        Ok(())
    }

    /// Whether such a group could be made now.
    pub async fn check_new_group(
        &self,
        call: &Call,
        id: &SubjectId,
        plan: Option<&Name>,
        retention: &[(ClassNo, String)],
    ) -> Result<(), VaultError> {
        call.permit(Verb::Group)?;
        if let Some(plan) = plan
            && call.tenant.policy()?.plan(plan).is_none()
        {
            return Err(VaultError::invalid("plan", "the policy has no plan of this name"));
        }
        self.check_retention(call, plan, retention)?;
        let name_key = call.tenant.digest(id).0.to_vec();
        match self.store.object(call.tenant.no, ObjectKind::GroupName, name_key).await? {
            Some(_) => Err(VaultError::AlreadyExists),
            None => Ok(()),
        }
    }

    /// Makes a group.
    pub async fn create_group(
        &self,
        call: &Call,
        id: &SubjectId,
        plan: Option<Name>,
        retention: Vec<(ClassNo, String)>,
        request: Option<Request>,
    ) -> Result<GroupNo, VaultError> {
        call.permit(Verb::Group)?;
        if let Some(answer) = self.repeated(call, request.as_ref()).await? {
            return Ok(answer);
        }
        let tenant = call.tenant.no;
        for _ in 0..4 {
            self.check_new_group(call, id, plan.as_ref(), &retention).await?;
            let mut change = ChangeSet::default();
            let no = GroupNo(self.next_number(tenant, ObjectKind::Group, &mut change).await?);
            let key = number_key(no);
            let body = GroupBody {
                state: GroupState::Active,
                sealed_id: call.tenant.seal_object(ObjectKind::Group, &key, id.as_str().as_bytes()),
                created: call.now,
                plan: plan.clone(),
                retention: retention.iter().map(|(c, p)| (c.0, p.clone())).collect(),
            };
            let name_key = call.tenant.digest(id).0.to_vec();
            for (kind, key, body) in [
                (ObjectKind::GroupName, name_key, no.0.to_be_bytes().to_vec()),
                (ObjectKind::Group, key, crate::vault::to_json(&body)),
            ] {
                change.replace_object(tenant, kind, key, Revision(0), body);
            }
            change.note(tenant, call.record(Action::CreateGroup, Outcome::Ok).to_bytes());
            self.remember(call, request.as_ref(), &no, &mut change);
            match self.store.commit(change).await {
                Ok(_) => {
                    // Roles of the policy may name a group before it is there.
                    self.roles_changed(tenant);
                    return Ok(no);
                }
                Err(error) => self.retry_or_answer(call, error, request.as_ref()).await?,
            }
        }
        Err(VaultError::Conflict)
    }

    /// What a change would make of a group: the stored record and the one in its stead.
    async fn changed_group(
        &self,
        call: &Call,
        group: GroupNo,
        etag: Option<Revision>,
        set: &GroupChange,
    ) -> Result<(ObjectRow, ObjectRow), VaultError> {
        let row = self.store.object(call.tenant.no, ObjectKind::Group, number_key(group)).await?;
        let row = row.ok_or(VaultError::NotFound)?;
        if etag.is_some_and(|etag| etag != row.revision) {
            return Err(VaultError::EtagStale);
        }
        let mut body: GroupBody = serde_json::from_slice(&row.body).map_err(|_| VaultError::DataLoss)?;
        if body.state == GroupState::Erased {
            return Err(VaultError::WrongState("the group is erased"));
        }
        if let Some(plan) = &set.plan {
            if let Some(plan) = plan
                && call.tenant.policy()?.plan(plan).is_none()
            {
                return Err(VaultError::invalid("plan", "the policy has no plan of this name"));
            }
            body.plan = plan.clone();
        }
        if let Some(state) = set.state {
            body.state = state;
        }
        if let Some(retention) = &set.retention {
            body.retention = retention.iter().map(|(c, p)| (c.0, p.clone())).collect();
        }
        let chosen: Vec<_> = body.retention.iter().map(|(c, p)| (ClassNo(*c), p.clone())).collect();
        self.check_retention(call, body.plan.as_ref(), &chosen)?;
        let new =
            ObjectRow { revision: Revision(row.revision.0 + 1), body: crate::vault::to_json(&body), ..row.clone() };
        Ok((row, new))
    }

    /// Changes a group's plan, state or retention. Values that are stored already follow a changed retention soon after.
    /// With `validate_only` answers what would become of it.
    pub async fn update_group(
        &self,
        call: &Call,
        group: GroupNo,
        etag: Option<Revision>,
        set: GroupChange,
        request: Option<Request>,
        validate_only: bool,
    ) -> Result<Group, VaultError> {
        call.permit(Verb::Group)?;
        if self.repeated::<()>(call, request.as_ref()).await?.is_some() {
            return self.group_by_no(call, group).await;
        }
        let tenant = call.tenant.no;
        for _ in 0..4 {
            let (row, new) = self.changed_group(call, group, etag, &set).await?;
            if validate_only {
                return self.read_group(call, &ObjectRow { revision: row.revision, ..new });
            }
            let mut change = ChangeSet::default();
            let (kind, key) = (ObjectKind::Group, row.key);
            change.require(Precondition::ObjectAt { tenant, kind, key, revision: row.revision });
            change.change(Mutation::PutObject(new.clone()));
            if set.retention.is_some() {
                regroup(tenant, group, new.revision, &mut change);
            }
            change.note(tenant, call.record(Action::UpdateGroup, Outcome::Ok).to_bytes());
            self.remember(call, request.as_ref(), &(), &mut change);
            match self.store.commit(change).await {
                Ok(_) => return self.read_group(call, &new),
                Err(error) => self.retry_or_answer(call, error, request.as_ref()).await?,
            }
        }
        Err(VaultError::Conflict)
    }

    /// Groups by number, after `after`.
    pub async fn list_groups(&self, call: &Call, after: GroupNo, limit: u32) -> Result<Page<Group>, VaultError> {
        call.permit(Verb::Group)?;
        let page = self.store.objects(call.tenant.no, ObjectKind::Group, Vec::new(), number_key(after), limit).await?;
        let rows = page.rows.iter().map(|row| self.read_group(call, row)).collect::<Result<_, _>>()?;
        Ok(Page { rows, more: page.more })
    }
}
