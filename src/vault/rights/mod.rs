//! What a person decided about the use of their data: consents, objections, restrictions.
//!
//! A subject's decisions are one value of the vault's own, in the record of a class of the vault's own
//! ([`ClassNo::OWN`]), sealed like any value: they are read with the snapshot that they decide about, are erased with the
//! subject, and an older copy of the database does not bring a withdrawn consent back unseen. A subject about whom nothing
//! was recorded has no such class, and costs a read nothing.

pub mod disclosures;
mod history;
pub mod nominees;
pub mod requests;

use smallvec::SmallVec;
use zeroize::Zeroizing;

use crate::access::{ClassSet, PurposeSet, Verb};
use crate::audit::{Action, Fields};
use crate::clock::Timestamp;
use crate::ids::*;
use crate::keyring::ledger::{LedgerEntry, LedgerKind};
use crate::policy::compiled::{Policy, SubjectFacts};
use crate::policy::facts::{Consent, OfAge, Place};
use crate::storage::SubjectSnapshot;
use crate::vault::Vault;
use crate::vault::call::{Call, Context};
use crate::vault::credentials::{Draft, Edit, RIGHTS};
use crate::vault::error::VaultError;
use crate::vault::feed::{EventKind, FeedEvent};
use crate::vault::find::Key;
use crate::vault::ledger::ledger_entry;
use crate::vault::request::Request;
pub use history::{Event, How, What};

/// Most events of one subject; more than people decide in a life.
const MAX_EVENTS: usize = 500;

/// What counts now of what a subject decided, for decisions.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    consents: SmallVec<[Consent; 4]>,
    objected: PurposeSet,
    restricted: ClassSet,
}

impl Facts {
    /// Nothing is on record.
    pub const fn none() -> Facts {
        Facts { consents: SmallVec::new_const(), objected: PurposeSet::EMPTY, restricted: ClassSet::EMPTY }
    }

    /// As decisions take them.
    pub fn view(&self) -> SubjectFacts<'_> {
        SubjectFacts {
            consents: &self.consents,
            objected: self.objected,
            restricted: self.restricted,
            age: OfAge::Unknown,
            place: Place::Inside,
        }
    }

    /// `active` is the day of the subject's last activity, by which a consent that lasts so long after use is renewed.
    fn of(policy: &Policy, bytes: &[u8], active: Timestamp) -> Option<Facts> {
        let mut facts = Facts::none();
        for event in history::walk(bytes)? {
            let event = event?;
            match event.what {
                What::Granted(purpose) => {
                    facts.consents.retain(|c| c.purpose != purpose);
                    let until = policy.consent_ends(purpose, event.at.max(active));
                    facts.consents.push(Consent { purpose, policy: event.policy, given: event.at, until });
                }
                What::Withdrawn(purpose) => facts.consents.retain(|c| c.purpose != purpose),
                What::Objected(purpose) => {
                    facts.objected.insert(purpose.0);
                }
                What::ObjectionEnded(purpose) => facts.objected.remove(purpose.0),
                What::Restricted(class) => {
                    facts.restricted.insert(class.0.into());
                }
                What::RestrictionEnded(class) => facts.restricted.remove(class.0.into()),
            }
        }
        Some(facts)
    }
}

/// What a subject decided, and when.
#[derive(Debug, Clone)]
pub struct Rights {
    /// From the first to the last.
    pub events: Vec<Event>,
    /// Consents that count now.
    pub consented: Vec<PurposeNo>,
    pub objected: Vec<PurposeNo>,
    pub restricted: Vec<ClassNo>,
    pub nominees: Vec<nominees::Nominee>,
}

/// A decision of a subject, as the caller reports it.
pub struct Decided<'a> {
    pub what: What,
    /// When the person decided; `None`: now.
    pub at: Option<Timestamp>,
    pub how: How,
    /// How it came, such as the name of a form; at most 256 bytes.
    pub evidence: &'a str,
}

impl Vault {
    /// What is on record about a subject, for decisions about this snapshot of it.
    pub(crate) async fn facts(&self, call: &Call, snapshot: &SubjectSnapshot) -> Result<Facts, VaultError> {
        if snapshot.class(ClassNo::OWN).is_none_or(|row| row.slot.is_none()) {
            return Ok(Facts::none());
        }
        let Some(opened) = self.open_credential(call, snapshot, RIGHTS).await? else { return Ok(Facts::none()) };
        let policy = call.tenant.policy()?;
        Facts::of(policy, &opened.value, snapshot.subject.touched).ok_or(VaultError::DataLoss)
    }

    /// Records what a person decided. It counts for every call that begins after this has answered. Deciding the same
    /// again is recorded again.
    pub async fn decide_right(
        &self,
        call: &Call,
        context: &Context,
        key: &Key,
        decided: &Decided<'_>,
        request: Option<Request>,
    ) -> Result<Timestamp, VaultError> {
        let policy = call.tenant.policy()?;
        check(policy, decided.what)?;
        if decided.evidence.len() > 256 {
            return Err(VaultError::invalid("evidence", "at most 256 bytes"));
        }
        if decided.at.is_some_and(|at| at > call.now.plus_ms(self.options.future_tolerance_ms)) {
            return Err(VaultError::invalid("time", "must not be in the future"));
        }
        let event = Event {
            what: decided.what,
            how: decided.how,
            at: decided.at.unwrap_or(call.now),
            version: policy.version(),
            policy: *policy.sha256(),
            evidence: decided.evidence.to_owned(),
        };
        let mut uid = SubjectUid(0);
        let noted = |snapshot: &SubjectSnapshot, there: Option<&[u8]>, draft: &mut Draft| {
            uid = snapshot.subject.uid;
            let mut bytes = Zeroizing::new(there.unwrap_or_default().to_vec());
            if history::walk(&bytes).ok_or(VaultError::DataLoss)?.count() >= MAX_EVENTS {
                return Err(VaultError::Quota("the subject decided too often"));
            }
            history::append(&mut bytes, &event);
            match event.what {
                What::Restricted(class) | What::RestrictionEnded(class) => draft.entry.class = Some(class),
                What::Granted(p) | What::Withdrawn(p) | What::Objected(p) | What::ObjectionEnded(p) => {
                    draft.entry.class = None;
                    draft.entry.purpose = p;
                }
            }
            draft.entry.fields = Fields::new([]);
            let told = match event.what {
                What::Withdrawn(_) => Some((EventKind::ConsentWithdrawn, Vec::new())),
                What::Objected(_) => Some((EventKind::Objected, Vec::new())),
                What::Restricted(class) => Some((EventKind::Restricted, vec![class])),
                _ => None,
            };
            if let Some((kind, classes)) = told {
                FeedEvent::of_person(call, kind, uid, classes).put(call, &mut draft.change);
            }
            Ok((Edit::Put(bytes), call.now))
        };
        let action = action(decided.what);
        let at =
            self.edit_credential(call, context, key, Verb::Request, RIGHTS, action, request.as_ref(), noted).await?;
        // A repeated request decided nothing; the ledger has it.
        if let Some(entry) = ledger_of(call, uid, decided.what).filter(|_| uid != SubjectUid(0)) {
            self.ledger(vec![entry]).await?;
        }
        Ok(at)
    }

    /// What is on record about a subject.
    pub async fn rights_of(&self, call: &Call, context: &Context, key: &Key) -> Result<Rights, VaultError> {
        let permit = call.permit(Verb::Request)?;
        let snapshot = self.resolve(call, context, key).await?;
        permit.for_group(snapshot.subject.group)?;
        let mut events = Vec::new();
        let mut facts = Facts::none();
        if snapshot.class(ClassNo::OWN).is_some_and(|row| row.slot.is_some())
            && let Some(opened) = self.open_credential(call, &snapshot, RIGHTS).await?
        {
            let walked = history::walk(&opened.value).ok_or(VaultError::DataLoss)?;
            events = walked.collect::<Option<_>>().ok_or(VaultError::DataLoss)?;
            let policy = call.tenant.policy()?;
            facts = Facts::of(policy, &opened.value, snapshot.subject.touched).ok_or(VaultError::DataLoss)?;
        }
        let mut entry = call.record(Action::GetRights, crate::audit::Outcome::Ok);
        entry.subject = Some(snapshot.subject.uid);
        self.note_read(call, &entry).await?;
        let policy = call.tenant.policy()?;
        let counts = |purpose: PurposeNo| {
            let since = policy.purpose(purpose).and_then(|rule| rule.consent_since);
            facts.view().consent(purpose, since, call.now).is_some()
        };
        Ok(Rights {
            events,
            consented: facts.consents.iter().map(|c| c.purpose).filter(|purpose| counts(*purpose)).collect(),
            objected: facts.objected.iter().map(PurposeNo).collect(),
            restricted: facts.restricted.iter().map(|no| ClassNo(no as u8)).collect(),
            nominees: self.nominees_of(call, snapshot.subject.uid).await?,
        })
    }
}

impl Vault {
    /// Records again, after a restore, what a person said no to; `false` where it stands already or the person is gone.
    pub(crate) async fn decide_right_again(&self, call: &Call, entry: &LedgerEntry) -> Result<bool, VaultError> {
        let number = PurposeNo(entry.number as u16);
        let what = match entry.kind {
            LedgerKind::ConsentWithdrawn => What::Withdrawn(number),
            LedgerKind::Objected => What::Objected(number),
            LedgerKind::Restricted => What::Restricted(entry.class),
            _ => return Ok(false),
        };
        let policy = call.tenant.policy()?;
        let event = Event {
            what,
            how: How::Imported,
            at: entry.at,
            version: policy.version(),
            policy: *policy.sha256(),
            evidence: "restored".into(),
        };
        let again = |_: &SubjectSnapshot, there: Option<&[u8]>, draft: &mut Draft| {
            let bytes = there.unwrap_or_default();
            let facts = Facts::of(policy, bytes, call.now).ok_or(VaultError::DataLoss)?;
            let stands = match what {
                What::Withdrawn(no) => facts.consents.iter().all(|c| c.purpose != no),
                What::Objected(no) => facts.objected.has(no.0),
                What::Restricted(no) => facts.restricted.has(no.0.into()),
                _ => true,
            };
            if stands {
                return Ok((Edit::Keep, false));
            }
            draft.entry.class = None;
            let mut bytes = Zeroizing::new(bytes.to_vec());
            history::append(&mut bytes, &event);
            Ok((Edit::Put(bytes), true))
        };
        match self.edit_credential_of(call, entry.uid, RIGHTS, action(what), None, again).await {
            Err(VaultError::SubjectErased | VaultError::SubjectClosed | VaultError::WrongState(_)) => Ok(false),
            other => other,
        }
    }
}

/// Whether the policy knows such a decision.
fn check(policy: &Policy, what: What) -> Result<(), VaultError> {
    let purpose = |no: PurposeNo| {
        policy.purpose(no).ok_or_else(|| VaultError::invalid("purpose_id", "no purpose with this number in the policy"))
    };
    match what {
        What::Granted(no) => {
            let rule = purpose(no)?;
            let for_write = policy.fields().any(|field| field.consent == Some(no));
            if rule.consent.is_empty() && !for_write {
                return Err(VaultError::invalid("purpose_id", "the purpose is not based on consent"));
            }
        }
        What::Objected(no) => {
            if !purpose(no)?.objectable {
                return Err(VaultError::invalid("purpose_id", "the policy has no objection to this purpose"));
            }
        }
        What::Restricted(no) => {
            if policy.class(no).is_none() {
                return Err(VaultError::invalid("class_id", "no class with this number in the policy"));
            }
        }
        // What was recorded under an older version can always be taken back.
        What::Withdrawn(_) | What::ObjectionEnded(_) | What::RestrictionEnded(_) => {}
    }
    Ok(())
}

fn action(what: What) -> Action {
    match what {
        What::Granted(_) => Action::GrantConsent,
        What::Withdrawn(_) => Action::WithdrawConsent,
        What::Objected(_) => Action::RecordObjection,
        What::ObjectionEnded(_) => Action::EndObjection,
        What::Restricted(_) => Action::Restrict,
        What::RestrictionEnded(_) => Action::EndRestriction,
    }
}

/// What a restore must not undo: everything by which a person says no.
fn ledger_of(call: &Call, uid: SubjectUid, what: What) -> Option<LedgerEntry> {
    let entry = |kind| ledger_entry(call, kind, uid, ObjectId(uuid::Uuid::nil()));
    match what {
        What::Withdrawn(no) => Some(LedgerEntry { number: no.0.into(), ..entry(LedgerKind::ConsentWithdrawn) }),
        What::Objected(no) => Some(LedgerEntry { number: no.0.into(), ..entry(LedgerKind::Objected) }),
        What::Restricted(no) => Some(LedgerEntry { class: no, ..entry(LedgerKind::Restricted) }),
        What::Granted(_) | What::ObjectionEnded(_) | What::RestrictionEnded(_) => None,
    }
}
