//! One audit record and its bytes.
//!
//! ```text
//! record = flags (2 B, little endian) | action (1 B) | zigzag varint (at - group time, ms) | varint actor
//!          [varint subject] [class 1 B] [fields] [varint purpose] [varint recipient] [operation 16 B]
//!          [varint length, detail]
//! flags  = bits 0..4 outcome | 4 subject | 5 class | 6 fields as bits | 7 fields as a list | 8 purpose
//!          | 9 recipient | 10 operation | 11 detail | 12..16 zero
//! fields as bits = varint, bit n = field n + 1 | as a list = varint count, then varint gaps of the sorted numbers
//! ```
//! There is exactly one encoding of a record; decoding refuses every other, so that a hash over the bytes is a hash over
//! the meaning.

use super::{Action, Outcome};
use crate::clock::Timestamp;
use crate::ids::{ActorId, ClassNo, FieldNo, ObjectId, PurposeNo, RecipientNo, SubjectUid};

/// Longest sealed detail of a record, in bytes.
pub const MAX_DETAIL: usize = 2048;
/// Most fields that one record can name: the most that a policy can declare.
const MAX_FIELDS: usize = 1024;

/// Bytes that are not the one encoding of a record or a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an audit {what}: {rule}")]
pub struct DecodeError {
    /// `record` or `group`.
    pub what: &'static str,
    /// The rule that was broken.
    pub rule: &'static str,
}

/// A set of field numbers, small where policies are small: numbers 1 to 64 are bits of one word, and only a set with a
/// higher number takes memory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fields(Repr);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Repr {
    /// Bit n stands for field n + 1.
    Bits(u64),
    /// Sorted, unique, with at least one number above 64.
    List(Box<[u16]>),
}

impl Fields {
    /// No field.
    pub const NONE: Fields = Fields(Repr::Bits(0));

    /// The set of these numbers, in any order. Number 0 names no field and is left out.
    pub fn new(fields: impl IntoIterator<Item = FieldNo>) -> Self {
        let (mut bits, mut list) = (0u64, Vec::new());
        for FieldNo(n) in fields {
            match n {
                0 => {}
                1..=64 => bits |= 1 << (n - 1),
                _ => list.push(n),
            }
        }
        if list.is_empty() {
            return Fields(Repr::Bits(bits));
        }
        list.extend((1..=64u16).filter(|n| bits >> (n - 1) & 1 == 1));
        list.sort_unstable();
        list.dedup();
        Fields(Repr::List(list.into_boxed_slice()))
    }

    /// The numbers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = FieldNo> + '_ {
        let (bits, list): (u64, &[u16]) = match &self.0 {
            Repr::Bits(bits) => (*bits, &[]),
            Repr::List(list) => (0, list),
        };
        (1..=64u16).filter(move |n| bits >> (n - 1) & 1 == 1).chain(list.iter().copied()).map(FieldNo)
    }

    /// Whether the set has no member.
    pub fn is_empty(&self) -> bool {
        self.0 == Repr::Bits(0)
    }

    /// Whether a field is in the set.
    pub fn contains(&self, FieldNo(n): FieldNo) -> bool {
        match &self.0 {
            Repr::Bits(bits) => (1..=64).contains(&n) && bits >> (n - 1) & 1 == 1,
            Repr::List(list) => list.binary_search(&n).is_ok(),
        }
    }
}

/// One line of the audit: ids, numbers and an outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRecord {
    /// When it was decided.
    pub at: Timestamp,
    /// Which access key acted; 0 is the vault itself.
    pub actor: ActorId,
    pub action: Action,
    pub outcome: Outcome,
    pub subject: Option<SubjectUid>,
    /// Set where the action is about one class.
    pub class: Option<ClassNo>,
    /// The fields that were looked at or changed.
    pub fields: Fields,
    /// 0 where no value was touched.
    pub purpose: PurposeNo,
    /// 0: stayed with the caller.
    pub recipient: RecipientNo,
    /// The operation, hold, approval or request concerned.
    pub operation: Option<ObjectId>,
    /// Reason and reference, *sealed* under the class's key; at most [`MAX_DETAIL`] bytes, and not empty.
    pub detail: Option<Box<[u8]>>,
}

impl AuditRecord {
    /// A record with only the three things that every record has; fill in the rest.
    pub fn new(at: Timestamp, actor: ActorId, action: Action, outcome: Outcome) -> Self {
        AuditRecord {
            at,
            actor,
            action,
            outcome,
            subject: None,
            class: None,
            fields: Fields::NONE,
            purpose: PurposeNo(0),
            recipient: RecipientNo(0),
            operation: None,
            detail: None,
        }
    }

    /// The record's bytes by themselves, as a change set carries them to the writer, who joins them to a group with
    /// [`super::GroupBuilder::push_bytes`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(32);
        self.encode(Timestamp(0), &mut out);
        out
    }

    /// Reads what [`AuditRecord::to_bytes`] gave.
    pub fn from_bytes(mut bytes: &[u8]) -> Result<Self, DecodeError> {
        let record = AuditRecord::decode(Timestamp(0), &mut bytes)?;
        if bytes.is_empty() { Ok(record) } else { Err(bad("bytes after the record")) }
    }

    /// Appends the record's bytes; `base` is the time of its group. A detail longer than [`MAX_DETAIL`] is cut off: the
    /// record itself must never be refused.
    pub(super) fn encode(&self, base: Timestamp, out: &mut Vec<u8>) {
        let detail = self.detail.as_deref().map(|d| &d[..d.len().min(MAX_DETAIL)]).filter(|d| !d.is_empty());
        let mut flags = u16::from(self.outcome.number());
        flags |= u16::from(self.subject.is_some()) << 4;
        flags |= u16::from(self.class.is_some()) << 5;
        flags |= match &self.fields.0 {
            Repr::Bits(0) => 0,
            Repr::Bits(_) => 1 << 6,
            Repr::List(_) => 1 << 7,
        };
        flags |= u16::from(self.purpose.0 != 0) << 8;
        flags |= u16::from(self.recipient.0 != 0) << 9;
        flags |= u16::from(self.operation.is_some()) << 10;
        flags |= u16::from(detail.is_some()) << 11;
        out.extend_from_slice(&flags.to_le_bytes());
        out.push(self.action.number());
        put_varint(out, zigzag(self.at.0.wrapping_sub(base.0)));
        put_varint(out, self.actor.0);
        if let Some(SubjectUid(uid)) = self.subject {
            put_varint(out, uid as u64);
        }
        if let Some(ClassNo(class)) = self.class {
            out.push(class);
        }
        match &self.fields.0 {
            Repr::Bits(0) => {}
            Repr::Bits(bits) => put_varint(out, *bits),
            Repr::List(list) => {
                let count = list.len().min(MAX_FIELDS);
                put_varint(out, count as u64);
                let mut last = 0;
                for &n in &list[..count] {
                    put_varint(out, u64::from(n - last));
                    last = n;
                }
            }
        }
        if self.purpose.0 != 0 {
            put_varint(out, u64::from(self.purpose.0));
        }
        if self.recipient.0 != 0 {
            put_varint(out, u64::from(self.recipient.0));
        }
        if let Some(ObjectId(id)) = self.operation {
            out.extend_from_slice(id.as_bytes());
        }
        if let Some(detail) = detail {
            put_varint(out, detail.len() as u64);
            out.extend_from_slice(detail);
        }
    }

    /// Reads one record from the front of `bytes`; safe on any bytes.
    pub(super) fn decode(base: Timestamp, bytes: &mut &[u8]) -> Result<Self, DecodeError> {
        let flags = u16::from_le_bytes(take(bytes, 2)?.try_into().expect("two bytes were taken"));
        if flags >> 12 != 0 || flags >> 6 & 3 == 3 {
            return Err(bad("unknown flags"));
        }
        let outcome = Outcome::from_number((flags & 15) as u8).ok_or(bad("unknown outcome"))?;
        let action = Action::from_number(take(bytes, 1)?[0]).ok_or(bad("unknown action"))?;
        let at = Timestamp(base.0.wrapping_add(unzigzag(get_varint(bytes)?)));
        let mut record = AuditRecord::new(at, ActorId(get_varint(bytes)?), action, outcome);
        if flags >> 4 & 1 == 1 {
            record.subject = Some(SubjectUid(get_varint(bytes)? as i64));
        }
        if flags >> 5 & 1 == 1 {
            record.class = Some(ClassNo(take(bytes, 1)?[0]));
        }
        if flags >> 6 & 1 == 1 {
            record.fields = Fields(Repr::Bits(get_varint(bytes)?));
            if record.fields.is_empty() {
                return Err(bad("an empty set of fields"));
            }
        }
        if flags >> 7 & 1 == 1 {
            record.fields = decode_list(bytes)?;
        }
        if flags >> 8 & 1 == 1 {
            record.purpose = PurposeNo(small(get_varint(bytes)?)?);
        }
        if flags >> 9 & 1 == 1 {
            record.recipient = RecipientNo(small(get_varint(bytes)?)?);
        }
        if flags >> 10 & 1 == 1 {
            let id: [u8; 16] = take(bytes, 16)?.try_into().expect("sixteen bytes were taken");
            record.operation = Some(ObjectId(uuid::Uuid::from_bytes(id)));
        }
        if flags >> 11 & 1 == 1 {
            let len = get_varint(bytes)?;
            if len == 0 || len > MAX_DETAIL as u64 {
                return Err(bad("length of the detail"));
            }
            record.detail = Some(take(bytes, len as usize)?.into());
        }
        Ok(record)
    }
}

fn decode_list(bytes: &mut &[u8]) -> Result<Fields, DecodeError> {
    let count = get_varint(bytes)?;
    if count == 0 || count > MAX_FIELDS as u64 {
        return Err(bad("number of fields"));
    }
    let (mut list, mut last) = (Vec::with_capacity(count as usize), 0u16);
    for _ in 0..count {
        last = last.checked_add(small(get_varint(bytes)?)?).ok_or(bad("field number"))?;
        list.push(last);
    }
    if last <= 64 {
        return Err(bad("a list where bits would do"));
    }
    Ok(Fields(Repr::List(list.into_boxed_slice())))
}

/// Which records a reader wants; an unset part matches all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub subject: Option<SubjectUid>,
    pub actor: Option<ActorId>,
    pub action: Option<Action>,
    pub outcome: Option<Outcome>,
    pub purpose: Option<PurposeNo>,
    pub recipient: Option<RecipientNo>,
    /// Inclusive.
    pub since: Option<Timestamp>,
    /// Exclusive.
    pub until: Option<Timestamp>,
}

impl Filter {
    /// Whether a record is wanted.
    pub fn matches(&self, r: &AuditRecord) -> bool {
        self.subject.is_none_or(|v| r.subject == Some(v))
            && self.actor.is_none_or(|v| r.actor == v)
            && self.action.is_none_or(|v| r.action == v)
            && self.outcome.is_none_or(|v| r.outcome == v)
            && self.purpose.is_none_or(|v| r.purpose == v)
            && self.recipient.is_none_or(|v| r.recipient == v)
            && self.since.is_none_or(|v| r.at >= v)
            && self.until.is_none_or(|v| r.at < v)
    }
}

fn bad(rule: &'static str) -> DecodeError {
    DecodeError { what: "record", rule }
}

/// A number of 1 to 65,535: 0 would be the second encoding of "not there".
fn small(v: u64) -> Result<u16, DecodeError> {
    u16::try_from(v).ok().filter(|n| *n != 0).ok_or(bad("number out of range"))
}

fn take<'a>(bytes: &mut &'a [u8], n: usize) -> Result<&'a [u8], DecodeError> {
    let (head, tail) = bytes.split_at_checked(n).ok_or(bad("too short"))?;
    *bytes = tail;
    Ok(head)
}

fn zigzag(v: i64) -> u64 {
    ((v << 1) ^ (v >> 63)) as u64
}

fn unzigzag(v: u64) -> i64 {
    (v >> 1) as i64 ^ -((v & 1) as i64)
}

fn put_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

fn get_varint(bytes: &mut &[u8]) -> Result<u64, DecodeError> {
    let mut v = 0u64;
    for shift in (0..64).step_by(7) {
        let b = take(bytes, 1)?[0];
        let part = u64::from(b & 0x7f);
        if shift == 63 && part > 1 {
            return Err(bad("number too long"));
        }
        v |= part << shift;
        if b < 0x80 {
            if b == 0 && shift > 0 {
                return Err(bad("number not in its shortest form"));
            }
            return Ok(v);
        }
    }
    Err(bad("number too long"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn any_record() -> impl Strategy<Value = AuditRecord> {
        let ids = (any::<i64>(), any::<u64>(), 0..Action::ALL.len(), 0..Outcome::ALL.len());
        let about = (any::<Option<i64>>(), any::<Option<u8>>(), prop::collection::vec(1u16..200, 0..8));
        let why = (any::<u16>(), any::<u16>(), any::<Option<u128>>());
        let detail = prop::option::of(prop::collection::vec(any::<u8>(), 1..40));
        (ids, about, why, detail).prop_map(|((at, actor, a, o), (subject, class, fields), (p, r, op), detail)| {
            AuditRecord {
                at: Timestamp(at),
                actor: ActorId(actor),
                action: Action::ALL[a],
                outcome: Outcome::ALL[o],
                subject: subject.map(SubjectUid),
                class: class.map(ClassNo),
                fields: Fields::new(fields.into_iter().map(FieldNo)),
                purpose: PurposeNo(p),
                recipient: RecipientNo(r),
                operation: op.map(|v| ObjectId(uuid::Uuid::from_u128(v))),
                detail: detail.map(Vec::into_boxed_slice),
            }
        })
    }

    #[test]
    fn a_typical_read_takes_at_most_24_bytes() {
        let mut r = AuditRecord::new(Timestamp(1_000_900), ActorId(70_000), Action::GetFields, Outcome::Ok);
        r.subject = Some(SubjectUid(5_000_000));
        r.fields = Fields::new([1, 2, 3, 7, 9].map(FieldNo));
        r.purpose = PurposeNo(3);
        let mut out = Vec::new();
        r.encode(Timestamp(1_000_000), &mut out);
        assert!(out.len() <= 16, "{}", out.len());
        r.class = Some(ClassNo(2));
        r.recipient = RecipientNo(4);
        r.fields = Fields::new([1, 2, 13, 40, 64].map(FieldNo));
        out.clear();
        r.encode(Timestamp(1_000_000), &mut out);
        assert!(out.len() <= 27, "{}", out.len());
    }

    proptest! {
        #[test]
        fn a_record_reads_back_and_has_one_encoding(r in any_record(), base in any::<i64>()) {
            let mut out = Vec::new();
            r.encode(Timestamp(base), &mut out);
            let mut rest = &out[..];
            prop_assert_eq!(AuditRecord::decode(Timestamp(base), &mut rest).unwrap(), r);
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let mut rest = &bytes[..];
            if let Ok(r) = AuditRecord::decode(Timestamp(0), &mut rest) {
                let mut again = Vec::new();
                r.encode(Timestamp(0), &mut again);
                prop_assert_eq!(&again[..], &bytes[..bytes.len() - rest.len()], "a second encoding of one record");
            }
        }
    }

    #[test]
    fn filter_parts_each_exclude() {
        let mut r = AuditRecord::new(Timestamp(5), ActorId(1), Action::GetFields, Outcome::Ok);
        r.subject = Some(SubjectUid(9));
        assert!(Filter::default().matches(&r));
        assert!(Filter { subject: Some(SubjectUid(9)), ..Default::default() }.matches(&r));
        assert!(!Filter { subject: Some(SubjectUid(8)), ..Default::default() }.matches(&r));
        assert!(!Filter { actor: Some(ActorId(2)), ..Default::default() }.matches(&r));
        assert!(!Filter { until: Some(Timestamp(5)), ..Default::default() }.matches(&r));
        assert!(!Filter { purpose: Some(PurposeNo(1)), ..Default::default() }.matches(&r));
    }
}
