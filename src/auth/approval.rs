//! An approval: one key asks, another decides, and what was approved happens once. Pure: each step takes the state and
//! answers the next; the vault commits it under a precondition on its revision, so that two uses cannot both win.

use serde::{Deserialize, Serialize};

use crate::access::{FieldSet, PurposeSet, Verb, VerbSet, View};
use crate::clock::Timestamp;
use crate::ids::{ActorId, ObjectId, PurposeNo, SubjectUid};

/// Where an approval stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApprovalState {
    Requested,
    Granted,
    Denied,
    Used,
    /// Its time ended before it was used.
    Expired,
}

/// Why a step is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ApprovalError {
    #[error("the time of the approval is over")]
    Expired,
    #[error("the approval was used")]
    Used,
    #[error("the approval was denied")]
    Denied,
    #[error("the approval was not decided")]
    NotDecided,
    #[error("the approval was decided")]
    Decided,
    #[error("nobody approves what they asked for themselves")]
    OwnRequest,
    #[error("an approval is used by the key that asked for it")]
    OtherRequester,
    #[error("the approval is for another subject")]
    OtherSubject,
    #[error("the approval does not cover what the call does")]
    NotCovered,
    #[error("the approval is for another reference")]
    OtherReference,
}

/// An approval, in any state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approval {
    pub id: ObjectId,
    /// Ascending; empty: for something that is about no subject in particular. A call may touch some of them.
    pub subjects: Vec<SubjectUid>,
    pub verbs: VerbSet,
    pub fields: FieldSet,
    pub purposes: PurposeSet,
    pub max_view: View,
    /// Keyed digest of the case or ticket, so that a call must name the same one.
    pub reference: [u8; 32],
    /// The case or ticket, sealed: for those who decide.
    pub sealed_reference: Vec<u8>,
    pub requester: ActorId,
    pub requested_at: Timestamp,
    pub expires_at: Timestamp,
    /// Who decided, when, and whether it was a yes.
    pub decision: Option<(ActorId, Timestamp, bool)>,
    pub used_at: Option<Timestamp>,
}

/// What a call is about to do under an approval.
#[derive(Debug, Clone)]
pub struct ApprovalUse {
    pub by: ActorId,
    pub subjects: Vec<SubjectUid>,
    pub verb: Verb,
    pub fields: FieldSet,
    pub purpose: Option<PurposeNo>,
    pub view: View,
    /// Keyed digest of the reference that the call names.
    pub reference: [u8; 32],
}

impl Approval {
    /// The state at `now`.
    pub fn state(&self, now: Timestamp) -> ApprovalState {
        match (self.used_at, self.decision) {
            (Some(_), _) => ApprovalState::Used,
            (None, Some((.., false))) => ApprovalState::Denied,
            _ if now >= self.expires_at => ApprovalState::Expired,
            (None, Some(_)) => ApprovalState::Granted,
            (None, None) => ApprovalState::Requested,
        }
    }

    /// The approval after `by` said yes or no.
    pub fn decide(&self, by: ActorId, yes: bool, now: Timestamp) -> Result<Approval, ApprovalError> {
        match self.state(now) {
            ApprovalState::Requested => {}
            ApprovalState::Expired => return Err(ApprovalError::Expired),
            _ => return Err(ApprovalError::Decided),
        }
        // A requester may take the request back; a yes needs another.
        if by == self.requester && yes {
            return Err(ApprovalError::OwnRequest);
        }
        Ok(Approval { decision: Some((by, now, yes)), ..self.clone() })
    }

    /// The approval after this use: to be committed together with what it allows.
    pub fn use_for(&self, call: &ApprovalUse, now: Timestamp) -> Result<Approval, ApprovalError> {
        match self.state(now) {
            ApprovalState::Granted => {}
            ApprovalState::Requested => return Err(ApprovalError::NotDecided),
            ApprovalState::Denied => return Err(ApprovalError::Denied),
            ApprovalState::Used => return Err(ApprovalError::Used),
            ApprovalState::Expired => return Err(ApprovalError::Expired),
        }
        if call.by != self.requester {
            return Err(ApprovalError::OtherRequester);
        }
        let all_named = call.subjects.iter().all(|uid| self.subjects.binary_search(uid).is_ok());
        if !all_named || call.subjects.is_empty() != self.subjects.is_empty() {
            return Err(ApprovalError::OtherSubject);
        }
        let purpose = call.purpose.is_none_or(|p| self.purposes.has(p.0));
        let covered = self.verbs.has(call.verb) && call.fields.within(&self.fields) && purpose;
        if !covered || call.view > self.max_view {
            return Err(ApprovalError::NotCovered);
        }
        if !crate::crypto::blind_index::equal(&call.reference, &self.reference) {
            return Err(ApprovalError::OtherReference);
        }
        Ok(Approval { used_at: Some(now), ..self.clone() })
    }

    /// The body of its stored object (JSON; numbers only).
    pub fn to_bytes(&self) -> Vec<u8> {
        let body = Body {
            id: self.id,
            subjects: self.subjects.clone(),
            verbs: self.verbs.0,
            fields: self.fields.iter().collect(),
            purposes: self.purposes.iter().collect(),
            max_view: self.max_view as u8,
            reference: data_encoding::HEXLOWER.encode(&self.reference),
            sealed_reference: data_encoding::BASE64.encode(&self.sealed_reference),
            requester: self.requester,
            requested_at: self.requested_at,
            expires_at: self.expires_at,
            decision: self.decision,
            used_at: self.used_at,
        };
        serde_json::to_vec(&body).expect("numbers and texts are JSON")
    }

    /// Reads the body of a stored object; `None` if it is not one.
    pub fn from_bytes(bytes: &[u8]) -> Option<Approval> {
        let body: Body = serde_json::from_slice(bytes).ok()?;
        let max_view = [View::Masked, View::Plain].into_iter().find(|v| *v as u8 == body.max_view)?;
        let reference = data_encoding::HEXLOWER.decode(body.reference.as_bytes()).ok()?;
        let (mut fields, mut purposes) = (FieldSet::EMPTY, PurposeSet::EMPTY);
        if !body.fields.iter().all(|n| fields.insert(*n)) || !body.purposes.iter().all(|n| purposes.insert(*n)) {
            return None;
        }
        Some(Approval {
            id: body.id,
            subjects: body.subjects,
            verbs: VerbSet(body.verbs),
            fields,
            purposes,
            max_view,
            reference: reference.try_into().ok()?,
            sealed_reference: data_encoding::BASE64.decode(body.sealed_reference.as_bytes()).ok()?,
            requester: body.requester,
            requested_at: body.requested_at,
            expires_at: body.expires_at,
            decision: body.decision,
            used_at: body.used_at,
        })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    id: ObjectId,
    subjects: Vec<SubjectUid>,
    verbs: u32,
    fields: Vec<u16>,
    purposes: Vec<u16>,
    max_view: u8,
    reference: String,
    sealed_reference: String,
    requester: ActorId,
    requested_at: Timestamp,
    expires_at: Timestamp,
    decision: Option<(ActorId, Timestamp, bool)>,
    used_at: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKS: ActorId = ActorId(1);
    const DECIDES: ActorId = ActorId(2);

    fn requested() -> Approval {
        Approval {
            id: ObjectId::random(),
            subjects: vec![SubjectUid(5), SubjectUid(8)],
            verbs: [Verb::Read].into_iter().collect(),
            fields: [1, 2].into_iter().collect(),
            purposes: [3].into_iter().collect(),
            max_view: View::Plain,
            reference: [9; 32],
            sealed_reference: vec![1, 2, 3],
            requester: ASKS,
            requested_at: Timestamp(0),
            expires_at: Timestamp(100),
            decision: None,
            used_at: None,
        }
    }

    fn call() -> ApprovalUse {
        ApprovalUse {
            by: ASKS,
            subjects: vec![SubjectUid(5)],
            verb: Verb::Read,
            fields: [2].into_iter().collect(),
            purpose: Some(PurposeNo(3)),
            view: View::Plain,
            reference: [9; 32],
        }
    }

    #[test]
    fn asked_granted_used_once() {
        let asked = requested();
        assert_eq!(asked.use_for(&call(), Timestamp(1)), Err(ApprovalError::NotDecided));
        assert_eq!(asked.decide(ASKS, true, Timestamp(1)), Err(ApprovalError::OwnRequest));
        let granted = asked.decide(DECIDES, true, Timestamp(1)).unwrap();
        assert_eq!(granted.state(Timestamp(2)), ApprovalState::Granted);
        assert_eq!(granted.decide(DECIDES, false, Timestamp(2)), Err(ApprovalError::Decided));
        let used = granted.use_for(&call(), Timestamp(3)).unwrap();
        assert_eq!(used.use_for(&call(), Timestamp(4)), Err(ApprovalError::Used));
        assert_eq!(Approval::from_bytes(&used.to_bytes()), Some(used));
    }

    #[test]
    fn every_binding_counts() {
        let granted = requested().decide(DECIDES, true, Timestamp(1)).unwrap();
        let refused = |call: ApprovalUse| granted.use_for(&call, Timestamp(2)).unwrap_err();
        assert_eq!(refused(ApprovalUse { by: DECIDES, ..call() }), ApprovalError::OtherRequester);
        for others in [vec![SubjectUid(6)], vec![SubjectUid(5), SubjectUid(6)], vec![]] {
            assert_eq!(refused(ApprovalUse { subjects: others, ..call() }), ApprovalError::OtherSubject);
        }
        let both = ApprovalUse { subjects: vec![SubjectUid(8), SubjectUid(5)], ..call() };
        assert!(granted.use_for(&both, Timestamp(2)).is_ok());
        let of_nobody = Approval { subjects: vec![], ..granted.clone() };
        assert_eq!(of_nobody.use_for(&call(), Timestamp(2)), Err(ApprovalError::OtherSubject));
        assert!(of_nobody.use_for(&ApprovalUse { subjects: vec![], ..call() }, Timestamp(2)).is_ok());
        assert_eq!(refused(ApprovalUse { verb: Verb::Export, ..call() }), ApprovalError::NotCovered);
        assert_eq!(refused(ApprovalUse { fields: [2, 4].into_iter().collect(), ..call() }), ApprovalError::NotCovered);
        assert_eq!(refused(ApprovalUse { purpose: Some(PurposeNo(1)), ..call() }), ApprovalError::NotCovered);
        assert_eq!(refused(ApprovalUse { reference: [8; 32], ..call() }), ApprovalError::OtherReference);
        assert_eq!(granted.use_for(&call(), Timestamp(100)), Err(ApprovalError::Expired));
        let masked = Approval { max_view: View::Masked, ..granted };
        assert_eq!(masked.use_for(&call(), Timestamp(2)), Err(ApprovalError::NotCovered));
    }

    #[test]
    fn a_no_is_final_and_the_requester_may_say_it() {
        let denied = requested().decide(ASKS, false, Timestamp(1)).unwrap();
        assert_eq!(denied.decide(DECIDES, true, Timestamp(2)), Err(ApprovalError::Decided));
        assert_eq!(denied.use_for(&call(), Timestamp(2)), Err(ApprovalError::Denied));
        assert_eq!(requested().decide(DECIDES, true, Timestamp(100)), Err(ApprovalError::Expired));
    }
}
