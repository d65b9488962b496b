//! Messages as JSON by their descriptors, so that what is printed has the names of the proto files and cannot drift
//! from them.

use crate::cli::text::printable;
use crate::clock::Timestamp;
use crate::grpc::pb;
use data_encoding::{BASE64, HEXLOWER};
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, ReflectMessage as _, Value};
use serde_json::{Map, Value as Json, json};
use std::sync::LazyLock;

static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(pb::DESCRIPTOR_SET).expect("the build script wrote this set"));

/// For whom the JSON is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// For programs: the protobuf JSON mapping with proto field names. Fields without presence are always there,
    /// messages and members of a oneof only when they are set. 64-bit numbers are strings, bytes base64.
    Wire,
    /// For cells of a table: enum names without their prefix in lower case, bytes in hexadecimal, numbers as numbers,
    /// texts without control characters, the unstated value of an enum left empty.
    Human,
}

/// A message as JSON.
pub fn message<M: prost::Message + prost::Name>(message: &M, form: Form) -> Json {
    let descriptor = POOL.get_message_by_name(&M::full_name()).expect("every message of the API is in the set");
    let bytes = message.encode_to_vec();
    // It was just encoded from the type that the same proto file made.
    let dynamic = DynamicMessage::decode(descriptor, bytes.as_slice()).expect("a message decodes as itself");
    of_message(&dynamic, form)
}

/// Whether a message has what a path of field names leads to, through messages and lists.
pub fn has_path<M: prost::Name>(path: &str) -> bool {
    let mut message = POOL.get_message_by_name(&M::full_name());
    path.split('.').all(|step| {
        let field = message.as_ref().and_then(|m| m.get_field_by_name(step));
        message = field.as_ref().and_then(|f| f.kind().as_message().cloned());
        field.is_some()
    })
}

fn of_message(dynamic: &DynamicMessage, form: Form) -> Json {
    match dynamic.descriptor().full_name() {
        "google.protobuf.Timestamp" => return Json::String(time_text(dynamic)),
        "google.protobuf.Duration" => return Json::String(duration_text(dynamic)),
        _ => {}
    }
    let mut map = Map::new();
    for field in dynamic.descriptor().fields() {
        if field.supports_presence() && !dynamic.has_field(&field) {
            continue;
        }
        map.insert(field.name().to_string(), of_value(&field, dynamic.get_field(&field).as_ref(), form));
    }
    Json::Object(map)
}

fn of_value(field: &FieldDescriptor, value: &Value, form: Form) -> Json {
    let wide = |text: String, number: Json| if form == Form::Wire { Json::String(text) } else { number };
    match value {
        Value::Bool(v) => json!(v),
        Value::I32(v) => json!(v),
        Value::U32(v) => json!(v),
        Value::I64(v) => wide(v.to_string(), json!(v)),
        Value::U64(v) => wide(v.to_string(), json!(v)),
        Value::F32(v) => json!(v),
        Value::F64(v) => json!(v),
        Value::String(v) if form == Form::Human => Json::String(printable(v)),
        Value::String(v) => json!(v),
        Value::Bytes(v) if form == Form::Human => Json::String(HEXLOWER.encode(v)),
        Value::Bytes(v) => Json::String(BASE64.encode(v)),
        Value::EnumNumber(number) => of_enum(field, *number, form),
        Value::Message(v) => of_message(v, form),
        Value::List(list) => Json::Array(list.iter().map(|v| of_value(field, v, form)).collect()),
        Value::Map(map) => {
            let key = |k: &MapKey| match k {
                MapKey::String(s) => s.clone(),
                other => format!("{other:?}"),
            };
            Json::Object(map.iter().map(|(k, v)| (key(k), of_value(field, v, form))).collect())
        }
    }
}

fn of_enum(field: &FieldDescriptor, number: i32, form: Form) -> Json {
    let Kind::Enum(descriptor) = field.kind() else { return json!(number) };
    let Some(value) = descriptor.get_value(number) else {
        // A newer server knows more than this program.
        return if form == Form::Wire { json!(number) } else { json!(number.to_string()) };
    };
    match form {
        Form::Wire => json!(value.name()),
        Form::Human if number == 0 => json!(""),
        Form::Human => json!(short(value.name(), descriptor.get_value(0).map(|v| v.name().to_string()))),
    }
}

/// `SUBJECT_STATE_ACTIVE` to `active`: the prefix is that of the zero value, `SUBJECT_STATE_UNSPECIFIED`.
fn short(name: &str, zero: Option<String>) -> String {
    let prefix = zero.as_deref().and_then(|z| z.strip_suffix("UNSPECIFIED")).unwrap_or_default().to_string();
    name.strip_prefix(prefix.as_str()).unwrap_or(name).to_ascii_lowercase().replace('_', "-")
}

fn parts(dynamic: &DynamicMessage) -> (i64, i32) {
    let seconds = dynamic.get_field_by_name("seconds").and_then(|v| v.as_i64()).unwrap_or(0);
    let nanos = dynamic.get_field_by_name("nanos").and_then(|v| v.as_i32()).unwrap_or(0);
    (seconds, nanos)
}

fn time_text(dynamic: &DynamicMessage) -> String {
    let (seconds, nanos) = parts(dynamic);
    Timestamp(seconds.saturating_mul(1_000).saturating_add(i64::from(nanos / 1_000_000))).rfc3339()
}

fn duration_text(dynamic: &DynamicMessage) -> String {
    let (seconds, nanos) = parts(dynamic);
    if nanos == 0 { format!("{seconds}s") } else { format!("{seconds}.{nanos:09}s") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::convert::wire_time;

    #[test]
    fn names_are_those_of_the_proto_files() {
        let erasure = pb::Erasure {
            erasure: "e".into(),
            status: pb::ErasureStatus::PartlyHeld as i32,
            erased: vec![pb::ClassOutcome { class_id: 3, ..Default::default() }],
            erase_time: Some(wire_time(Timestamp(1_500))),
            receipt: vec![0xab, 0xcd].into(),
            subject_count: 2,
            ..Default::default()
        };
        let wire = message(&erasure, Form::Wire);
        assert_eq!(wire["status"], "ERASURE_STATUS_PARTLY_HELD");
        assert_eq!(wire["erased"][0]["class_id"], 3);
        assert_eq!(wire["erase_time"], "1970-01-01T00:00:01.500Z");
        assert_eq!(wire["receipt"], "q80=");
        assert_eq!(wire["subject_count"], "2");
        assert_eq!(wire["held"], json!([]), "what is empty is there");
        assert_eq!(wire.get("schedule_time"), None, "what is not set is not");
        let human = message(&erasure, Form::Human);
        assert_eq!(human["status"], "partly-held");
        assert_eq!((human["receipt"].as_str(), &human["subject_count"]), (Some("abcd"), &json!(2)));
        assert_eq!(human["kind"], "");
    }

    #[test]
    fn a_value_is_one_of_its_kinds() {
        let value = pb::Value { field_id: 1, kind: Some(pb::value::Kind::Integer(7)), ..Default::default() };
        let wire = message(&value, Form::Wire);
        assert_eq!((&wire["integer"], wire.get("text")), (&json!("7"), None));
        let unknown = pb::Subject { state: 99, ..Default::default() };
        assert_eq!(message(&unknown, Form::Wire)["state"], 99);
    }
}
