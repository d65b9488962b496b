//! Audit entries as JSON Lines: what [`wire`](crate::cli::values::wire) makes of one, byte for byte, without going through its
//! descriptor. An audit is exported by the million.

use serde::{Serialize, Serializer};
use serde_json::Value as Json;

use crate::cli::values::wire;
use crate::clock::Timestamp;
use crate::grpc::pb;

/// Fields in the order of their names, as a JSON object of this program has them.
#[derive(Serialize)]
struct Line<'a> {
    action: &'a str,
    #[serde(serialize_with = "wide")]
    actor_id: u64,
    chain: Name,
    class_id: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<Json>,
    field_ids: &'a [u32],
    object: &'a str,
    outcome: Name,
    #[serde(serialize_with = "wide")]
    position: u64,
    purpose_id: u32,
    recipient_id: u32,
    #[serde(serialize_with = "wide")]
    subject_uid: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<&'a str>,
}

/// 64-bit numbers are texts in the JSON of protobuf.
fn wide<N: std::fmt::Display, S: Serializer>(number: &N, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(number)
}

/// The name of a member of an enum, or the number of one that this program does not know.
#[derive(Serialize)]
#[serde(untagged)]
enum Name {
    Known(&'static str),
    Unknown(i32),
}

/// Writes entries; remembers the text of the last time, which the next entry mostly shares.
#[derive(Default)]
pub struct EntryLines {
    at: Option<Timestamp>,
    time: String,
}

impl EntryLines {
    /// Appends the JSON of one entry, without an end of line.
    pub fn entry(&mut self, entry: &pb::AuditEntry, to: &mut Vec<u8>) {
        let at = entry
            .time
            .as_ref()
            .map(|at| Timestamp(at.seconds.saturating_mul(1_000).saturating_add(i64::from(at.nanos / 1_000_000))));
        if let Some(at) = at
            && self.at != Some(at)
        {
            (self.at, self.time) = (Some(at), at.rfc3339());
        }
        let line = Line {
            action: &entry.action,
            actor_id: entry.actor_id,
            chain: match pb::AuditChain::try_from(entry.chain) {
                Ok(chain) => Name::Known(chain.as_str_name()),
                Err(_) => Name::Unknown(entry.chain),
            },
            class_id: entry.class_id,
            detail: entry.detail.as_ref().map(wire),
            field_ids: &entry.field_ids,
            object: &entry.object,
            outcome: match pb::AuditOutcome::try_from(entry.outcome) {
                Ok(outcome) => Name::Known(outcome.as_str_name()),
                Err(_) => Name::Unknown(entry.outcome),
            },
            position: entry.position,
            purpose_id: entry.purpose_id,
            recipient_id: entry.recipient_id,
            subject_uid: entry.subject_uid,
            time: at.map(|_| self.time.as_str()),
        };
        serde_json::to_writer(to, &line).expect("texts and numbers are JSON, and memory takes them");
    }

    /// Appends entries, a line each.
    pub fn lines(&mut self, entries: &[pb::AuditEntry], to: &mut Vec<u8>) {
        for entry in entries {
            self.entry(entry, to);
            to.push(b'\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_what_the_descriptor_makes() {
        let full = pb::AuditEntry {
            position: u64::MAX,
            chain: pb::AuditChain::Reads as i32,
            time: Some(prost_types::Timestamp { seconds: 1_768_478_400, nanos: 7_000_000 }),
            actor_id: 12,
            action: "fields.get".into(),
            subject_uid: i64::MIN,
            field_ids: vec![1, 70],
            class_id: 3,
            purpose_id: 4,
            recipient_id: 5,
            outcome: pb::AuditOutcome::Denied as i32,
            object: "4f1c\"\u{1}".into(),
            detail: Some(pb::AccessContext { reason: "why \"so\"\n".into(), ..Default::default() }),
        };
        let unknown = pb::AuditEntry { chain: 77, outcome: -3, ..full.clone() };
        let mut lines = EntryLines::default();
        for entry in [full.clone(), pb::AuditEntry::default(), unknown, full] {
            let mut bytes = Vec::new();
            lines.entry(&entry, &mut bytes);
            assert_eq!(String::from_utf8(bytes).unwrap(), wire(&entry).to_string());
        }
    }
}
