//! A subject's decisions as bytes: a format byte, then events one after the other.
//!
//! ```text
//! event = what u8, how u8, number u16, policy version u32, SHA-256 of the policy 32 B, at i64 ms, length u16, evidence
//! ```
//! Numbers are big endian. Decisions read it at every call about the subject, without memory of its own.

use crate::clock::Timestamp;
use crate::ids::{ClassNo, PolicyVersion, PurposeNo};

const FORMAT: u8 = 1;
const HEAD: usize = 1 + 1 + 2 + 4 + 32 + 8 + 2;

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Granted(PurposeNo),
    Withdrawn(PurposeNo),
    Objected(PurposeNo),
    ObjectionEnded(PurposeNo),
    Restricted(ClassNo),
    RestrictionEnded(ClassNo),
}

/// How a decision came. The numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum How {
    /// The person was asked, or said so.
    Asked = 1,
    /// By going on to use the service after a notice.
    Use = 2,
    /// Taken over from another system.
    Imported = 3,
}

/// One decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub what: What,
    pub how: How,
    /// When the person decided.
    pub at: Timestamp,
    /// Version of the policy then in force, and the SHA-256 of its file.
    pub version: PolicyVersion,
    pub policy: [u8; 32],
    /// At most 256 bytes.
    pub evidence: String,
}

impl What {
    fn parts(self) -> (u8, u16) {
        match self {
            What::Granted(no) => (1, no.0),
            What::Withdrawn(no) => (2, no.0),
            What::Objected(no) => (3, no.0),
            What::ObjectionEnded(no) => (4, no.0),
            What::Restricted(no) => (5, no.0.into()),
            What::RestrictionEnded(no) => (6, no.0.into()),
        }
    }

    fn of(kind: u8, number: u16) -> Option<What> {
        let class = || u8::try_from(number).ok().map(ClassNo);
        Some(match kind {
            1 => What::Granted(PurposeNo(number)),
            2 => What::Withdrawn(PurposeNo(number)),
            3 => What::Objected(PurposeNo(number)),
            4 => What::ObjectionEnded(PurposeNo(number)),
            5 => What::Restricted(class()?),
            6 => What::RestrictionEnded(class()?),
            _ => return None,
        })
    }
}

impl How {
    fn of(number: u8) -> Option<How> {
        [How::Asked, How::Use, How::Imported].into_iter().find(|how| *how as u8 == number)
    }
}

/// Adds an event; of no bytes it makes the first.
pub fn append(bytes: &mut Vec<u8>, event: &Event) {
    if bytes.is_empty() {
        bytes.push(FORMAT);
    }
    let (kind, number) = event.what.parts();
    bytes.extend_from_slice(&[kind, event.how as u8]);
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes.extend_from_slice(&event.version.0.to_be_bytes());
    bytes.extend_from_slice(&event.policy);
    bytes.extend_from_slice(&event.at.0.to_be_bytes());
    bytes.extend_from_slice(&(event.evidence.len() as u16).to_be_bytes());
    bytes.extend_from_slice(event.evidence.as_bytes());
}

/// The events, in the order in which they were recorded; `None` in place of what is none. `None`: another format.
pub fn walk(bytes: &[u8]) -> Option<impl Iterator<Item = Option<Event>> + '_> {
    let mut rest = match bytes {
        [] => bytes,
        [FORMAT, rest @ ..] => rest,
        _ => return None,
    };
    Some(std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let event = one(&mut rest);
        if event.is_none() {
            rest = &[];
        }
        Some(event)
    }))
}

fn one(rest: &mut &[u8]) -> Option<Event> {
    let (head, tail) = rest.split_first_chunk::<HEAD>()?;
    let length = usize::from(u16::from_be_bytes([head[48], head[49]]));
    let evidence = std::str::from_utf8(tail.get(..length)?).ok()?.to_owned();
    let event = Event {
        what: What::of(head[0], u16::from_be_bytes([head[2], head[3]]))?,
        how: How::of(head[1])?,
        version: PolicyVersion(u32::from_be_bytes(head[4..8].try_into().ok()?)),
        policy: head[8..40].try_into().ok()?,
        at: Timestamp(i64::from_be_bytes(head[40..48].try_into().ok()?)),
        evidence,
    };
    *rest = &tail[length..];
    Some(event)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event() -> impl Strategy<Value = Event> {
        let what = (1u8..=6, 1u16..=255).prop_map(|(kind, number)| What::of(kind, number).unwrap());
        let how = (1u8..=3).prop_map(|n| How::of(n).unwrap());
        (what, how, any::<i64>(), any::<u32>(), any::<[u8; 32]>(), "[a-zé ]{0,40}").prop_map(
            |(what, how, at, version, policy, evidence)| Event {
                what,
                how,
                at: Timestamp(at),
                version: PolicyVersion(version),
                policy,
                evidence,
            },
        )
    }

    proptest! {
        #[test]
        fn events_read_back(events in prop::collection::vec(event(), 0..8)) {
            let mut bytes = Vec::new();
            events.iter().for_each(|event| append(&mut bytes, event));
            prop_assert_eq!(walk(&bytes).unwrap().collect::<Option<Vec<_>>>(), Some(events));
        }

        #[test]
        fn t40_no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(events) = walk(&bytes) {
                prop_assert!(events.count() <= bytes.len());
            }
        }
    }

    #[test]
    fn the_bytes_are_frozen() {
        let mut bytes = Vec::new();
        let event = Event {
            what: What::Granted(PurposeNo(0x0102)),
            how: How::Use,
            at: Timestamp(0x1122_3344_5566_7788),
            version: PolicyVersion(7),
            policy: [0xab; 32],
            evidence: "form".into(),
        };
        append(&mut bytes, &event);
        let want = format!("0101020102{}{}11223344556677880004666f726d", "00000007", "ab".repeat(32));
        assert_eq!(data_encoding::HEXLOWER.encode(&bytes), want);
        assert!(walk(&[2]).is_none(), "another format");
    }
}
