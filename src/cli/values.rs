//! Values of fields between texts or JSON and the API, by the types of the tenant's schema.

use crate::cli::error::CliError;
use crate::cli::json::{self, Form};
use crate::cli::names::{Names, Noun};
use crate::clock::Timestamp;
use crate::grpc::convert::{wire_date, wire_time};
use crate::grpc::pb;
use crate::grpc::pb::value::Kind;
use data_encoding::BASE64;
use serde_json::{Map, Value as Json};

/// A value of a field from text: the field's type says how it is read. Fields that the schema does not know are sent as
/// text, so that the server can say what is wrong.
pub fn from_text(names: &Names, field_id: u32, text: &str) -> Result<pb::Value, CliError> {
    let type_ = names.field(field_id).map_or(pb::FieldType::Text, |f| f.r#type());
    let bad = |rule: &str| CliError::Usage(format!("field {}: {rule}", names.name(Noun::Field, field_id)));
    let kind = match type_ {
        pb::FieldType::Unspecified | pb::FieldType::Text => Kind::Text(text.to_string()),
        pb::FieldType::Data => {
            let bytes = BASE64.decode(text.trim().as_bytes()).map_err(|_| bad("needs base64"))?;
            Kind::Data(bytes.into())
        }
        pb::FieldType::Integer => Kind::Integer(text.trim().parse().map_err(|_| bad("needs a whole number"))?),
        pb::FieldType::Number => {
            let number: f64 = text.trim().parse().map_err(|_| bad("needs a number"))?;
            Kind::Number(Some(number).filter(|n| n.is_finite()).ok_or_else(|| bad("needs a finite number"))?)
        }
        pb::FieldType::Flag => match text.trim() {
            "true" | "yes" => Kind::Flag(true),
            "false" | "no" => Kind::Flag(false),
            _ => return Err(bad("needs true or false")),
        },
        pb::FieldType::Date => {
            Kind::Date(wire_date(text.trim().parse().map_err(|_| bad("needs a day such as 1990-12-31"))?))
        }
        pb::FieldType::Time => {
            let time: jiff::Timestamp =
                text.trim().parse().map_err(|_| bad("needs a time such as 2026-11-21T08:00:00Z"))?;
            Kind::Time(wire_time(Timestamp(time.as_millisecond())))
        }
    };
    Ok(pb::Value { field_id, kind: Some(kind), ..Default::default() })
}

/// The same from JSON: a string is read like text; numbers and truth values may stand for themselves.
pub fn from_json(names: &Names, field_id: u32, value: &Json) -> Result<pb::Value, CliError> {
    match value {
        Json::String(text) => from_text(names, field_id, text),
        Json::Number(number) => from_text(names, field_id, &number.to_string()),
        Json::Bool(flag) => from_text(names, field_id, if *flag { "true" } else { "false" }),
        _ => {
            let name = names.name(Noun::Field, field_id);
            Err(CliError::Usage(format!("field {name}: needs a string, a number, true or false")))
        }
    }
}

/// The values of `{"email": "...", ...}`; keys are names or numbers of fields.
pub fn from_object(names: &Names, object: &Map<String, Json>) -> Result<Vec<pb::Value>, CliError> {
    let value = |(key, value): (&String, &Json)| from_json(names, field_number(names, key)?, value);
    object.iter().map(value).collect()
}

/// The number of a field by name or number.
pub fn field_number(names: &Names, text: &str) -> Result<u32, CliError> {
    match text.parse() {
        Ok(number) => Ok(number),
        Err(_) => names.number(Noun::Field, text),
    }
}

/// A value as text, as `from_text` would read it; the name of the absence where there is none.
pub fn to_text(value: &pb::Value) -> String {
    match &value.kind {
        Some(Kind::Text(text)) => text.clone(),
        Some(Kind::Data(bytes)) => BASE64.encode(bytes),
        Some(Kind::Integer(number)) => number.to_string(),
        Some(Kind::Number(number)) => number.to_string(),
        Some(Kind::Flag(flag)) => flag.to_string(),
        Some(Kind::Date(d)) => format!("{:04}-{:02}-{:02}", d.year, d.month, d.day),
        Some(Kind::Time(t)) => time_text(t),
        None => {
            let name = value.absence().as_str_name();
            format!("({})", name.trim_start_matches("ABSENCE_").to_ascii_lowercase().replace('_', " "))
        }
    }
}

/// RFC 3339 for a time of the wire.
pub fn time_text(time: &prost_types::Timestamp) -> String {
    Timestamp(time.seconds.saturating_mul(1_000).saturating_add(i64::from(time.nanos / 1_000_000))).rfc3339()
}

/// Values in a message carry only numbers; this fills in the names, for JSON output.
pub fn name_values(names: &Names, values: &mut [pb::Value]) {
    for value in values.iter_mut().filter(|v| v.field.is_empty()) {
        if let Some(field) = names.field(value.field_id) {
            value.field = field.name.clone();
        }
    }
}

/// `{"email": "...", ...}` from values: what `put` reads. Absent ones are left out.
pub fn to_object(names: &Names, values: &[pb::Value]) -> Json {
    let present = values.iter().filter(|v| v.kind.is_some());
    let pair = |v: &pb::Value| {
        let value = match &v.kind {
            Some(Kind::Integer(number)) => Json::from(*number),
            Some(Kind::Number(number)) => Json::from(*number),
            Some(Kind::Flag(flag)) => Json::from(*flag),
            _ => Json::from(to_text(v)),
        };
        (names.name(Noun::Field, v.field_id), value)
    };
    Json::Object(present.map(pair).collect())
}

/// Messages with values as JSON for programs.
pub fn wire<M: prost::Message + prost::Name>(message: &M) -> Json {
    json::message(message, Form::Wire)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        let field = |field_id, name: &str, t: pb::FieldType| pb::FieldSchema {
            field_id,
            name: name.into(),
            r#type: t as i32,
            ..Default::default()
        };
        let fields = vec![
            field(1, "email", pb::FieldType::Text),
            field(2, "born", pb::FieldType::Date),
            field(3, "count", pb::FieldType::Integer),
            field(4, "ok", pb::FieldType::Flag),
            field(5, "photo", pb::FieldType::Data),
            field(6, "seen", pb::FieldType::Time),
            field(7, "score", pb::FieldType::Number),
        ];
        Names::new(pb::GetSchemaResponse { fields, ..Default::default() })
    }

    #[test]
    fn what_is_read_is_written_again() {
        let cases = [
            (1, "a b"),
            (2, "1990-12-31"),
            (3, "-9007199254740993"),
            (4, "true"),
            (5, "q80="),
            (6, "2026-11-21T08:00:00.500Z"),
            (7, "1.5"),
        ];
        for (field, text) in cases {
            assert_eq!(to_text(&from_text(&names(), field, text).unwrap()), text);
        }
    }

    #[test]
    fn wrong_types_are_refused_without_the_value() {
        for (field, text) in [(2, "canary-31"), (3, "canary"), (4, "canary"), (5, "canary!"), (6, "canary"), (7, "NaN")]
        {
            let error = from_text(&names(), field, text).unwrap_err();
            assert!(error.exit_code() == 2 && !error.to_string().contains("canary"), "{error}");
        }
        assert!(from_json(&names(), 1, &serde_json::json!(["canary"])).is_err());
    }

    #[test]
    fn an_object_names_its_fields() {
        let object = serde_json::json!({ "email": "x@y", "count": 3, "4": true });
        let values = from_object(&names(), object.as_object().unwrap()).unwrap();
        assert_eq!(values.iter().map(|v| v.field_id).collect::<Vec<_>>(), [4, 3, 1]);
        assert_eq!(to_object(&names(), &values), serde_json::json!({ "email": "x@y", "count": 3, "ok": true }));
        let unknown = serde_json::json!({ "emial": "x" });
        assert!(from_object(&names(), unknown.as_object().unwrap()).is_err());
    }
}
