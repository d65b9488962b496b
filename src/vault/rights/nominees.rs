//! Nominees: who may ask in a person's place, for what, until when.
//!
//! A nominee is a subject of the tenant, named by the person. A row holds two numbers, kinds of requests and times, no
//! words. It counts while the policy lets nominees make such requests, and no longer than the policy and the person say.

use serde::{Deserialize, Serialize};

use crate::access::Verb;
use crate::audit::{Action, Outcome};
use crate::clock::Timestamp;
use crate::ids::*;
use crate::policy::file::RequestKind;
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::{Call, Context};
use crate::vault::error::{DenialKind, VaultError};
use crate::vault::find::Key;
use crate::vault::request::Request;
use crate::vault::to_json;

/// Most nominees of one person.
const MOST: usize = 8;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Body {
    /// Names of kinds of requests.
    scopes: Vec<String>,
    named: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
}

/// Who may ask in a person's place.
#[derive(Debug, Clone)]
pub struct Nominee {
    pub nominee: SubjectUid,
    pub scopes: Vec<RequestKind>,
    pub named: Timestamp,
    /// It counts no longer from this moment; `None`: until it is taken back.
    pub until: Option<Timestamp>,
    /// It counts now, for at least one kind.
    pub counts: bool,
}

fn key_of(uid: SubjectUid, nominee: SubjectUid) -> Vec<u8> {
    [uid.0.to_be_bytes(), nominee.0.to_be_bytes()].concat()
}

fn kinds(body: &Body) -> Vec<RequestKind> {
    body.scopes.iter().filter_map(|name| RequestKind::parse(name)).collect()
}

impl Vault {
    /// Records that a person named somebody who may make these requests in their place. Naming the same again replaces it.
    #[allow(clippy::too_many_arguments)] // the parts of one message
    pub async fn set_nominee(
        &self,
        call: &Call,
        context: &Context,
        person: &Key,
        nominee: &Key,
        scopes: &[RequestKind],
        until: Option<Timestamp>,
        request: Option<Request>,
    ) -> Result<Timestamp, VaultError> {
        let permit = call.permit(Verb::Request)?;
        let policy = call.tenant.policy()?;
        let rule = policy.nominee().ok_or(VaultError::WrongState("the policy has no [nominee]"))?;
        if scopes.is_empty() {
            return Err(VaultError::invalid("scopes", "at least one kind of request"));
        }
        if scopes.iter().any(|kind| !rule.scopes.contains(kind)) {
            return Err(VaultError::invalid("scopes", "the policy lets no nominee make such a request"));
        }
        if until.is_some_and(|until| until <= call.now) {
            return Err(VaultError::invalid("expire_time", "must be in the future"));
        }
        let longest = rule.lasts.map(|period| period.after(call.now, policy.zone()));
        let until = match (until, longest) {
            (Some(until), Some(longest)) if until > longest => {
                return Err(VaultError::invalid("expire_time", "later than the policy lets a nominee last"));
            }
            (until, longest) => until.or(longest),
        };
        for _ in 0..4 {
            if let Some(answer) = self.repeated(call, request.as_ref()).await? {
                return Ok(answer);
            }
            let person = self.resolve(call, context, person).await?;
            permit.for_group(person.subject.group)?;
            let nominee = self.resolve(call, context, nominee).await?;
            let (uid, other) = (person.subject.uid, nominee.subject.uid);
            if uid == other {
                return Err(VaultError::invalid("nominee", "must be somebody else"));
            }
            let there = self.nominee_rows(call, uid).await?;
            let known = there.iter().find(|row| row.key == key_of(uid, other));
            if known.is_none() && there.len() >= MOST {
                return Err(VaultError::Quota("the person has eight nominees"));
            }
            let body = Body { scopes: scopes.iter().map(|kind| kind.name().into()).collect(), named: call.now, until };
            let mut change = ChangeSet::default();
            change.require(Precondition::SubjectAt { uid, revision: person.subject.revision });
            let (tenant, kind, key) = (call.tenant.no, ObjectKind::Nominee, key_of(uid, other));
            let revision = known.map_or(Revision(0), |row| row.revision);
            change.replace_object(tenant, kind, key, revision, to_json(&body));
            let mut entry = call.record(Action::SetNominee, Outcome::Ok);
            entry.subject = Some(uid);
            self.attach_detail(call, context, &mut entry, &person.classes).await?;
            change.note(tenant, entry.to_bytes());
            self.remember(call, request.as_ref(), &call.now, &mut change);
            match self.store.commit(change).await {
                Ok(_) => return Ok(call.now),
                Err(error) => self.retry_or_answer(call, error, request.as_ref()).await?,
            }
        }
        Err(VaultError::Conflict)
    }

    /// Takes a nomination back; counts for every request that begins after the answer.
    pub async fn remove_nominee(
        &self,
        call: &Call,
        context: &Context,
        person: &Key,
        nominee: &Key,
        request: Option<Request>,
    ) -> Result<Timestamp, VaultError> {
        let permit = call.permit(Verb::Request)?;
        for _ in 0..4 {
            if let Some(answer) = self.repeated(call, request.as_ref()).await? {
                return Ok(answer);
            }
            let person = self.resolve(call, context, person).await?;
            permit.for_group(person.subject.group)?;
            let nominee = self.resolve(call, context, nominee).await?;
            let (uid, tenant, kind) = (person.subject.uid, call.tenant.no, ObjectKind::Nominee);
            let key = key_of(uid, nominee.subject.uid);
            let row = self.store.object(tenant, kind, key.clone()).await?.ok_or(VaultError::NotFound)?;
            let mut change = ChangeSet::default();
            change.require(Precondition::ObjectAt { tenant, kind, key: key.clone(), revision: row.revision });
            change.change(Mutation::DeleteObject { tenant, kind, key });
            let mut entry = call.record(Action::RemoveNominee, Outcome::Ok);
            entry.subject = Some(uid);
            change.note(tenant, entry.to_bytes());
            self.remember(call, request.as_ref(), &call.now, &mut change);
            match self.store.commit(change).await {
                Ok(_) => return Ok(call.now),
                Err(error) => self.retry_or_answer(call, error, request.as_ref()).await?,
            }
        }
        Err(VaultError::Conflict)
    }

    async fn nominee_rows(&self, call: &Call, uid: SubjectUid) -> Result<Vec<ObjectRow>, VaultError> {
        let prefix = uid.0.to_be_bytes().to_vec();
        Ok(self.store.objects(call.tenant.no, ObjectKind::Nominee, prefix, Vec::new(), 100).await?.rows)
    }

    /// Whom a person named.
    pub(crate) async fn nominees_of(&self, call: &Call, uid: SubjectUid) -> Result<Vec<Nominee>, VaultError> {
        let policy = call.tenant.policy()?;
        let mut all = Vec::new();
        for row in self.nominee_rows(call, uid).await? {
            let body: Body = serde_json::from_slice(&row.body).map_err(|_| VaultError::DataLoss)?;
            let other = row.key.last_chunk::<8>().ok_or(VaultError::DataLoss)?;
            let scopes = kinds(&body);
            let may = |kind: &RequestKind| policy.nominee_may(*kind, &scopes, body.named, call.now);
            let counts = body.until.is_none_or(|until| call.now < until) && scopes.iter().any(may);
            all.push(Nominee {
                nominee: SubjectUid(i64::from_be_bytes(*other)),
                named: body.named,
                until: body.until,
                counts,
                scopes,
            });
        }
        Ok(all)
    }

    /// The number of somebody who makes a request in a person's place.
    ///
    /// # Errors
    /// `Denied` for who is not, or no longer, or not for such requests, a nominee of the person; nobody's id is the same.
    pub(crate) async fn nominee_for(
        &self,
        call: &Call,
        uid: SubjectUid,
        acting: &SubjectId,
        kind: RequestKind,
    ) -> Result<SubjectUid, VaultError> {
        let denied = || VaultError::denied(DenialKind::NotPermitted, "nominee");
        let Ok(nominee) = self.resolve(call, &Context::default(), &Key::Subject(acting.clone())).await else {
            return Err(denied());
        };
        let policy = call.tenant.policy()?;
        let other = nominee.subject.uid;
        let found =
            self.nominees_of(call, uid).await?.into_iter().find(|one| one.nominee == other).ok_or_else(denied)?;
        let may = found.counts && policy.nominee_may(kind, &found.scopes, found.named, call.now);
        if may { Ok(other) } else { Err(denied()) }
    }

    /// Forgets whom a subject named, with its erasure.
    pub(crate) async fn forget_nominees(
        &self,
        call: &Call,
        uid: SubjectUid,
        change: &mut ChangeSet,
    ) -> Result<(), VaultError> {
        for row in self.nominee_rows(call, uid).await? {
            change.change(Mutation::DeleteObject { tenant: row.tenant, kind: row.kind, key: row.key });
        }
        Ok(())
    }
}
