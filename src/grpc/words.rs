//! What requests say about values: subjects, fields, contexts, selections, resolved against the tenant's policy where a
//! name stands for a number. Values are moved, not copied, on both ways.

use prost::Message;
use tonic::Status;
use zeroize::Zeroizing;

use crate::access::View;
use crate::auth::KeyId;
use crate::grpc::convert::{self, Bad};
use crate::grpc::pb;
use crate::grpc::vault_status::limit_exceeded;
use crate::ids::{ActorId, FieldNo, ItemNo, Name, ObjectId, Revision, SubjectId, SubjectUid};
use crate::policy::compiled::Policy;
use crate::policy::value::{Date, Value};
use crate::storage::{SubjectRow, SubjectState};
use crate::vault::find::Key;
use crate::vault::read::{Absence, Got, Select, Shown};
use crate::vault::request::Request;
use crate::vault::value::NewValue;
use crate::vault::{Call, Context, VaultError, Violation};

/// Most values in one put, most fields in one selection.
pub const MAX_VALUES: usize = 256;
/// Most subjects in a batch, most items in a call.
pub const MAX_BATCH: usize = 1_000;
/// Most subjects in an atomic batch.
pub const MAX_ATOMIC: usize = 100;

/// A violation one level further out: `text` of `values[2]` becomes `values[2].text`.
fn within(outer: std::fmt::Arguments<'_>, bad: Bad) -> Bad {
    match bad {
        Bad::Rule { path, rule } => Bad::Rule { path: format!("{outer}.{path}"), rule },
        Bad::NotSupported { path } => Bad::NotSupported { path: format!("{outer}.{path}") },
    }
}

/// The number of elements a list must have.
pub fn count(path: &'static str, len: usize, max: usize) -> Result<(), Status> {
    match len {
        0 => Err(Bad::rule(path, "must not be empty").into()),
        n if n > max => Err(limit_exceeded(path, max)),
        _ => Ok(()),
    }
}

/// The caller's name for a write. `id` and `message` are parts of one request, from which the id was taken out.
pub fn request(call: &Call, method: &str, id: &str, message: &impl Message) -> Result<Option<Request>, Status> {
    let Some(id) = convert::request_id(id)? else { return Ok(None) };
    let mut body = Zeroizing::new(Vec::with_capacity(message.encoded_len()));
    message.encode_raw(&mut *body);
    Ok(Some(Request { id, fingerprint: call.tenant.fingerprint(method, &body) }))
}

/// The name of one element of a batch, made from the batch's.
pub fn part_of(call: &Call, batch: Request, i: usize) -> Request {
    let id = call.tenant.token_mac(&[b"batch", batch.id.0.as_bytes(), &(i as u32).to_be_bytes()]);
    Request { id: ObjectId(uuid::Builder::from_random_bytes(id).into_uuid()), ..batch }
}

/// Why values are touched; left out, it says nothing.
pub fn context(wire: Option<pb::AccessContext>) -> Result<Context, Status> {
    let Some(wire) = wire else { return Ok(Context::default()) };
    convert::refuse(!wire.acting_for.is_empty(), "context.acting_for")?;
    convert::opt_text("context.reason", &wire.reason, 256)?;
    convert::opt_text("context.reference", &wire.reference, 128)?;
    let approval = match wire.approval.as_str() {
        "" => None,
        name => Some(convert::object_id("context.approval", name)?),
    };
    Ok(Context {
        purpose: convert::purpose_no("context.purpose_id", wire.purpose_id)?,
        reason: Zeroizing::new(wire.reason),
        reference: Zeroizing::new(wire.reference),
        approval,
        recipient: convert::recipient_no("context.recipient_id", wire.recipient_id)?,
    })
}

/// Takes the nominee who makes a request in a person's place out of the context.
pub fn acting(wire: &mut Option<pb::AccessContext>) -> Result<Option<SubjectId>, Status> {
    let id = wire.as_mut().map(|wire| std::mem::take(&mut wire.acting_for)).filter(|id| !id.is_empty());
    id.map(|id| Ok(convert::subject_id("context.acting_for", &id)?)).transpose()
}

/// The reference by which a recipient knows a subject; empty where values stay with the caller.
pub fn recipient_ref(call: &Call, context: &Context, uid: SubjectUid) -> bytes::Bytes {
    match context.recipient {
        Some(recipient) => call.tenant.recipient_ref(recipient, uid).to_vec().into(),
        None => bytes::Bytes::new(),
    }
}

/// Refuses an approval in a call that needs none, rather than to leave it unused.
pub fn no_approval(context: &Context) -> Result<(), Status> {
    Ok(convert::refuse(context.approval.is_some(), "context.approval")?)
}

/// Which subject.
pub fn key(wire: Option<pb::SubjectKey>) -> Result<Key, Status> {
    subject_key(wire).map_err(Status::from)
}

fn subject_key(wire: Option<pb::SubjectKey>) -> Result<Key, Bad> {
    match wire.and_then(|wire| wire.key) {
        Some(pb::subject_key::Key::Subject(id)) => Ok(Key::Subject(convert::subject_id("key.subject", &id)?)),
        Some(pb::subject_key::Key::Unique(unique)) => {
            let text = Zeroizing::new(unique.text);
            convert::opt_text("key.unique.text", &text, 1_024)?
                .ok_or_else(|| Bad::rule("key.unique.text", "is required"))?;
            Ok(Key::Unique { field: convert::field_no("key.unique.field_id", unique.field_id)?, text })
        }
        None => Err(Bad::rule("key", "is required")),
    }
}

/// Which subjects.
pub fn keys(wire: Vec<pb::SubjectKey>) -> Result<Vec<Key>, Status> {
    count("keys", wire.len(), MAX_BATCH)?;
    let one = |(i, key)| subject_key(Some(key)).map_err(|bad| within(format_args!("keys[{i}]"), bad).into());
    wire.into_iter().enumerate().map(one).collect()
}

/// A field by number or by name, exactly one of which is given.
pub fn field(policy: &Policy, number: u32, name: &str) -> Result<FieldNo, Status> {
    match (number, name) {
        (0, "") => Err(Bad::rule("field_id", "is required").into()),
        (0, name) => by_name(policy, name, || "field".into()),
        (number, "") => Ok(convert::field_no("field_id", number)?),
        _ => Err(Bad::rule("field", "give the number or the name, not both").into()),
    }
}

fn by_name(policy: &Policy, name: &str, path: impl Fn() -> String) -> Result<FieldNo, Status> {
    let parsed = Name::parse("field", name).map_err(|e| Bad::Rule { path: path(), rule: e.rule })?;
    let found = policy.field_by_name(&parsed).map(|rule| rule.no);
    found.ok_or_else(|| {
        VaultError::UnknownField(vec![Violation::new(path(), "no field of this name in the schema")]).into()
    })
}

/// Which fields and how; left out, every single-valued field that the caller may see.
pub fn select(policy: &Policy, wire: Option<pb::Selector>, view: i32, partial: i32) -> Result<Select, Status> {
    let partial = match pb::Partial::try_from(partial) {
        Ok(pb::Partial::Unspecified) => false,
        Ok(pb::Partial::Allowed) => true,
        Err(_) => return Err(Bad::rule("partial", "is not a number of this enum").into()),
    };
    let view = convert::view("view", view)?;
    let Some(wire) = wire else { return Ok(Select { view, partial, ..Select::default() }) };
    let named = wire.fields.map_or(Vec::new(), |mask| mask.paths);
    let all = wire.field_ids.len() + named.len();
    if all > MAX_VALUES {
        return Err(limit_exceeded("select", MAX_VALUES));
    }
    let mut fields = Vec::with_capacity(all);
    for (i, number) in wire.field_ids.into_iter().enumerate() {
        match convert::field_no("field_ids", number) {
            Ok(field) => fields.push(field),
            Err(bad) => return Err(within(format_args!("select[{i}]"), bad).into()),
        }
    }
    for (i, name) in named.iter().enumerate() {
        fields.push(by_name(policy, name, || format!("select.fields[{i}]"))?);
    }
    Ok(Select { fields, classes: convert::class_nos("select.class_ids", &wire.class_ids)?, view, partial })
}

/// The fields of a selection that must name each of them.
pub fn named_fields(policy: &Policy, wire: Option<pb::Selector>) -> Result<Vec<FieldNo>, Status> {
    let select = select(policy, wire, 0, 0)?;
    if !select.classes.is_empty() {
        return Err(Bad::rule("select.class_ids", "whole classes are not taken here").into());
    }
    if select.fields.is_empty() {
        return Err(Bad::rule("select", "must name at least one field").into());
    }
    Ok(select.fields)
}

/// Values to be stored.
pub fn new_values(policy: &Policy, wire: Vec<pb::Value>) -> Result<Vec<NewValue>, Status> {
    if wire.len() > MAX_VALUES {
        return Err(limit_exceeded("values", MAX_VALUES));
    }
    let mut out = Vec::with_capacity(wire.len());
    for (i, mut value) in wire.into_iter().enumerate() {
        let field = match (value.field_id, value.field.as_str()) {
            (0, name) if !name.is_empty() => by_name(policy, name, || format!("values[{i}].field"))?,
            (number, "") => {
                convert::field_no("field_id", number).map_err(|bad| within(format_args!("values[{i}]"), bad))?
            }
            _ => {
                let bad = Bad::rule("field", "give the number or the name, not both");
                return Err(within(format_args!("values[{i}]"), bad).into());
            }
        };
        let parts = new_value(&mut value).map_err(|bad| within(format_args!("values[{i}]"), bad))?;
        out.push(NewValue { field, value: parts.0, origin: parts.1 });
    }
    Ok(out)
}

/// The one value of an item, whose field may be left out.
pub fn item_value(field: FieldNo, name: &str, i: usize, mut wire: Vec<pb::Value>) -> Result<Value, Status> {
    let at = |bad| Status::from(within(format_args!("items[{i}].values"), bad));
    let (Some(mut value), true) = (wire.pop(), wire.is_empty()) else {
        return Err(Bad::Rule { path: format!("items[{i}].values"), rule: "must have exactly one" }.into());
    };
    if (value.field_id != 0 && value.field_id != u32::from(field.0)) || (!value.field.is_empty() && value.field != name)
    {
        return Err(at(Bad::rule("field_id", "is another field than that of the request")));
    }
    match new_value(&mut value).map_err(at)? {
        (value, None) => Ok(value),
        (_, Some(_)) => Err(at(Bad::rule("origin_time", "belongs to the item, not to its value"))),
    }
}

fn new_value(wire: &mut pb::Value) -> Result<(Value, Option<crate::clock::Timestamp>), Bad> {
    let answers_only = "is for answers only";
    convert::refuse(wire.source_id != 0, "source_id")?;
    if wire.absence != 0 {
        return Err(Bad::rule("absence", answers_only));
    }
    if wire.view != 0 {
        return Err(Bad::rule("view", answers_only));
    }
    if wire.expire_time.is_some() {
        return Err(Bad::rule("expire_time", answers_only));
    }
    let origin = convert::opt_time("origin_time", &wire.origin_time)?;
    let value = match wire.kind.take() {
        Some(pb::value::Kind::Text(text)) => Value::text(text),
        Some(pb::value::Kind::Data(data)) => Value::data(data.into()),
        Some(pb::value::Kind::Integer(n)) => Value::Integer(n),
        Some(pb::value::Kind::Number(n)) => Value::Number(n),
        Some(pb::value::Kind::Flag(flag)) => Value::Flag(flag),
        Some(pb::value::Kind::Date(date)) => {
            let rule = "must be a day of the calendar in the years 1 to 9999";
            let found = Date::new(date.year, date.month, date.day);
            Value::Date(found.ok_or_else(|| Bad::rule("date", rule))?)
        }
        Some(pb::value::Kind::Time(time)) => Value::Time(convert::time("time", &time)?),
        None => return Err(Bad::rule("kind", "is required")),
    };
    Ok((value, origin))
}

fn wire_kind(value: Value) -> pb::value::Kind {
    match value {
        Value::Text(mut text) => pb::value::Kind::Text(std::mem::take(text.expose_mut())),
        Value::Data(mut data) => pb::value::Kind::Data(std::mem::take(data.expose_mut()).into()),
        Value::Integer(n) => pb::value::Kind::Integer(n),
        Value::Number(n) => pb::value::Kind::Number(n),
        Value::Flag(flag) => pb::value::Kind::Flag(flag),
        Value::Date(date) => {
            pb::value::Kind::Date(pb::Date { year: date.year(), month: date.month(), day: date.day() })
        }
        Value::Time(time) => pb::value::Kind::Time(convert::wire_time(time)),
    }
}

fn wire_absence(absence: Absence) -> pb::Absence {
    match absence {
        Absence::NeverSet => pb::Absence::NeverSet,
        Absence::Denied => pb::Absence::Denied,
        Absence::NoConsent => pb::Absence::NoConsent,
        Absence::Objected => pb::Absence::Objected,
        Absence::Restricted => pb::Absence::Restricted,
        Absence::Expired => pb::Absence::Expired,
        Absence::Erased => pb::Absence::Erased,
    }
}

/// A value as it goes out: how it is shown only where that is not plain, times only where it ends.
pub fn wire_value(field: FieldNo, value: Value, view: View) -> pb::Value {
    let view = if view == View::Plain { 0 } else { convert::wire_view(view) as i32 };
    pb::Value { field_id: field.0.into(), kind: Some(wire_kind(value)), view, ..Default::default() }
}

fn wire_shown(shown: Shown) -> pb::Value {
    let mut out = match shown.what {
        Ok((value, view)) => wire_value(shown.field, value, view),
        Err(absence) => {
            pb::Value { field_id: shown.field.0.into(), absence: wire_absence(absence) as i32, ..Default::default() }
        }
    };
    if let Some(expire) = shown.expire {
        out.expire_time = Some(convert::wire_time(expire));
        out.origin_time = shown.origin.map(convert::wire_time);
    }
    out
}

/// Values and absences of an answer.
pub fn wire_values(values: Vec<Shown>) -> Vec<pb::Value> {
    values.into_iter().map(wire_shown).collect()
}

/// The answer of a read. Where everything that may be seen was asked for (`open`), only what is set is in it.
pub fn wire_got(call: &Call, context: &Context, got: Got, open: bool) -> pb::GetFieldsResponse {
    let mut values = got.values;
    if open {
        values.retain(|shown| !matches!(shown.what, Err(Absence::NeverSet)));
    }
    pb::GetFieldsResponse {
        values: wire_values(values),
        etag: got.etag,
        state: state_unless_active(got.state),
        recipient_ref: recipient_ref(call, context, got.uid),
    }
}

/// To the wire.
pub fn wire_state(state: SubjectState) -> pb::SubjectState {
    match state {
        SubjectState::Live => pb::SubjectState::Active,
        SubjectState::Closed => pb::SubjectState::Closed,
        SubjectState::Frozen => pb::SubjectState::Frozen,
        SubjectState::Held => pb::SubjectState::Restricted,
    }
}

/// The state of a subject's row: one whose erasure has a date can still be had back.
pub fn wire_row_state(row: &SubjectRow) -> pb::SubjectState {
    match row.state {
        SubjectState::Frozen if row.due.is_none() => pb::SubjectState::Erasing,
        state => wire_state(state),
    }
}

/// 0 for a subject in use: the usual case costs no byte.
pub fn state_unless_active(state: SubjectState) -> i32 {
    if state == SubjectState::Live { 0 } else { wire_state(state) as i32 }
}

/// An item's name: 16 digits, so that names sort as the items do.
pub fn item_name(item: ItemNo) -> String {
    format!("{:016x}", item.0)
}

/// An item by its name.
pub fn item_no(path: &str, name: &str) -> Result<ItemNo, Bad> {
    let right = name.len() == 16 && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let number = i64::from_str_radix(name, 16).ok().filter(|n| right && *n >= 0);
    number.map(ItemNo).ok_or_else(|| Bad::rule(path, "is not the name of an item"))
}

/// A revision that an etag names; `None`: in any case.
///
/// # Errors
/// An etag that was never given is as stale as one that is no longer right.
pub fn revision(etag: &str) -> Result<Option<Revision>, Status> {
    if etag.is_empty() {
        return Ok(None);
    }
    let number = u64::from_str_radix(etag, 16).map_err(|_| VaultError::EtagStale)?;
    Ok(Some(Revision(number)))
}

/// The name of the access key that an actor is; empty for the vault itself.
pub fn key_name(actor: ActorId) -> String {
    if actor.0 == 0 { String::new() } else { KeyId(actor.0).to_string() }
}
