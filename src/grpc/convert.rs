//! Wire to domain and back, for the words that all services share. A number or text of a request becomes a typed value
//! here or the call is refused with the path of the request field and the rule, never with what it held.

use crate::access::{Verb, VerbSet, View};
use crate::audit::Outcome;
use crate::clock::Timestamp;
use crate::grpc::pb;
use crate::grpc::status::{bad_field, not_supported};
use crate::ids::{ClassNo, FieldNo, IdError, Name, ObjectId, PurposeNo, RecipientNo, SubjectId};
use jiff::civil;
use tonic::Status;
use tonic_types::StatusExt;

/// Page size when the request says 0.
pub const PAGE_SIZE: u32 = 100;
/// Largest page; a larger wish is cut to it.
pub const MAX_PAGE_SIZE: u32 = 1_000;

/// A request field that cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bad {
    /// It breaks a rule.
    Rule {
        /// Path in the request, such as `values[2].time`.
        path: String,
        /// The rule, in words.
        rule: &'static str,
    },
    /// It asks for something that this version does not have.
    NotSupported {
        /// Path in the request.
        path: String,
    },
}

impl Bad {
    /// A broken rule.
    pub fn rule(path: &str, rule: &'static str) -> Self {
        Bad::Rule { path: path.to_string(), rule }
    }
    /// A capability that is not there.
    pub fn not_supported(path: &str) -> Self {
        Bad::NotSupported { path: path.to_string() }
    }
}

impl From<Bad> for Status {
    fn from(bad: Bad) -> Self {
        match bad {
            Bad::Rule { path, rule } => bad_field(path, rule),
            Bad::NotSupported { path } => not_supported(&path),
        }
    }
}

/// `Err(NotSupported)` when a field is set whose capability is not there: it is refused by name, never ignored.
pub fn refuse(is_set: bool, path: &str) -> Result<(), Bad> {
    if is_set { Err(Bad::not_supported(path)) } else { Ok(()) }
}

/// A message field that must be there.
pub fn required<'a, T>(path: &str, value: &'a Option<T>) -> Result<&'a T, Bad> {
    value.as_ref().ok_or_else(|| Bad::rule(path, "is required"))
}

/// 0001-01-01T00:00:00Z, the first second that `google.protobuf.Timestamp` allows.
const FIRST_SECOND: i64 = -62_135_596_800;
/// 9999-12-30T22:00:00Z: the last second that the calendar here can place in every time zone.
const LAST_SECOND: i64 = 253_402_207_200;

/// Milliseconds; what is finer is cut off. Refused outside the years 1 to 9999 and with nanoseconds outside a second.
pub fn time(path: &str, wire: &prost_types::Timestamp) -> Result<Timestamp, Bad> {
    if !(FIRST_SECOND..=LAST_SECOND).contains(&wire.seconds) {
        return Err(Bad::rule(path, "must be in the years 1 to 9999"));
    }
    if !(0..1_000_000_000).contains(&wire.nanos) {
        return Err(Bad::rule(path, "nanos must be 0 to 999,999,999"));
    }
    Ok(Timestamp(wire.seconds * 1_000 + i64::from(wire.nanos / 1_000_000)))
}

/// The same where it may be left out.
pub fn opt_time(path: &str, wire: &Option<prost_types::Timestamp>) -> Result<Option<Timestamp>, Bad> {
    wire.as_ref().map(|t| time(path, t)).transpose()
}

/// To the wire.
pub fn wire_time(time: Timestamp) -> prost_types::Timestamp {
    let nanos = (time.0.rem_euclid(1_000) * 1_000_000) as i32; // below 10^9
    prost_types::Timestamp { seconds: time.0.div_euclid(1_000), nanos }
}

/// A day that exists, in the years 1 to 9999.
pub fn date(path: &str, wire: &pb::Date) -> Result<civil::Date, Bad> {
    let rule = "must be a day of the calendar in the years 1 to 9999";
    let bad = || Bad::rule(path, rule);
    let year = i16::try_from(wire.year).map_err(|_| bad())?;
    let month = i8::try_from(wire.month).map_err(|_| bad())?;
    let day = i8::try_from(wire.day).map_err(|_| bad())?;
    if year < 1 {
        return Err(bad());
    }
    civil::Date::new(year, month, day).map_err(|_| bad())
}

/// To the wire.
pub fn wire_date(date: civil::Date) -> pb::Date {
    pb::Date { year: date.year().into(), month: date.month().into(), day: date.day().into() }
}

/// Milliseconds of a duration that is more than 0 and at most `max_ms`; what is finer is cut off.
pub fn duration_ms(path: &str, wire: &prost_types::Duration, max_ms: i64) -> Result<i64, Bad> {
    if !(0..1_000_000_000).contains(&wire.nanos) || wire.seconds < 0 {
        return Err(Bad::rule(path, "must be more than 0"));
    }
    let ms = wire.seconds.checked_mul(1_000).map(|ms| ms.saturating_add(i64::from(wire.nanos / 1_000_000)));
    match ms {
        Some(ms) if ms > max_ms => Err(Bad::rule(path, "is longer than allowed")),
        Some(ms) if ms > 0 => Ok(ms),
        Some(_) => Err(Bad::rule(path, "must be more than 0")),
        None => Err(Bad::rule(path, "is longer than allowed")),
    }
}

fn id<T>(path: &str, parsed: Result<T, IdError>) -> Result<T, Bad> {
    parsed.map_err(|e| Bad::rule(path, e.rule))
}

/// A subject's or a group's id.
pub fn subject_id(path: &str, text: &str) -> Result<SubjectId, Bad> {
    id(path, SubjectId::parse("subject", text))
}

/// The same where empty means that there is none.
pub fn opt_subject_id(path: &str, text: &str) -> Result<Option<SubjectId>, Bad> {
    if text.is_empty() { Ok(None) } else { subject_id(path, text).map(Some) }
}

/// The name of a tenant, role, key.
pub fn name(path: &str, text: &str) -> Result<Name, Bad> {
    id(path, Name::parse("name", text))
}

/// The name of something that the vault made: an erasure, a hold, an approval, an operation.
pub fn object_id(path: &str, text: &str) -> Result<ObjectId, Bad> {
    id(path, ObjectId::parse("name", text))
}

/// A `request_id`; empty: none.
pub fn request_id(text: &str) -> Result<Option<ObjectId>, Bad> {
    if text.is_empty() { Ok(None) } else { object_id("request_id", text).map(Some) }
}

/// A field's number, 1 to 1,023.
pub fn field_no(path: &str, number: u32) -> Result<FieldNo, Bad> {
    match u16::try_from(number) {
        Ok(n @ 1..=1_023) => Ok(FieldNo(n)),
        _ => Err(Bad::rule(path, "must be a field number, 1 to 1,023")),
    }
}

/// A class's number, 1 to 16.
pub fn class_no(path: &str, number: u32) -> Result<ClassNo, Bad> {
    match u8::try_from(number) {
        Ok(n @ 1..=16) => Ok(ClassNo(n)),
        _ => Err(Bad::rule(path, "must be a class number, 1 to 16")),
    }
}

/// Class numbers, each once, in ascending order.
pub fn class_nos(path: &str, numbers: &[u32]) -> Result<Vec<ClassNo>, Bad> {
    let mut classes = numbers.iter().map(|n| class_no(path, *n)).collect::<Result<Vec<_>, _>>()?;
    classes.sort_unstable();
    classes.dedup();
    Ok(classes)
}

/// A purpose's number, 1 to 255; 0 is none.
pub fn purpose_no(path: &str, number: u32) -> Result<Option<PurposeNo>, Bad> {
    match number {
        0 => Ok(None),
        1..=255 => Ok(Some(PurposeNo(number as u16))),
        _ => Err(Bad::rule(path, "must be a purpose number, 1 to 255")),
    }
}

/// The number of a recipient; 0: none.
pub fn recipient_no(path: &str, number: u32) -> Result<Option<RecipientNo>, Bad> {
    match number {
        0 => Ok(None),
        1..=255 => Ok(Some(RecipientNo(number as u16))),
        _ => Err(Bad::rule(path, "must be a recipient number, 1 to 255")),
    }
}

/// Free text of at most `max` bytes without NUL; empty: none.
pub fn opt_text<'a>(path: &str, text: &'a str, max: usize) -> Result<Option<&'a str>, Bad> {
    if text.len() > max {
        return Err(Bad::rule(path, "is longer than allowed"));
    }
    if text.contains('\0') {
        return Err(Bad::rule(path, "must not contain NUL"));
    }
    Ok((!text.is_empty()).then_some(text))
}

/// How to show values; `None`: what the policy gives. Tokens are refused by name.
pub fn view(path: &str, number: i32) -> Result<Option<View>, Bad> {
    match pb::View::try_from(number) {
        Ok(pb::View::Unspecified) => Ok(None),
        Ok(pb::View::Plain) => Ok(Some(View::Plain)),
        Ok(pb::View::Masked) => Ok(Some(View::Masked)),
        Ok(pb::View::Token) => Err(Bad::not_supported(path)),
        Err(_) => Err(Bad::rule(path, UNKNOWN)),
    }
}

/// To the wire.
pub fn wire_view(view: View) -> pb::View {
    match view {
        View::Masked => pb::View::Masked,
        View::Plain => pb::View::Plain,
    }
}

const UNKNOWN: &str = "is not a number of this enum";

/// A value of an enum of the API where any but the unspecified one may stand.
pub fn choice<E: TryFrom<i32> + Default + PartialEq>(path: &str, number: i32) -> Result<E, Bad> {
    match opt_choice(path, number)? {
        Some(choice) => Ok(choice),
        None => Err(Bad::rule(path, "is required")),
    }
}

/// The same where unspecified means `None`.
pub fn opt_choice<E: TryFrom<i32> + Default + PartialEq>(path: &str, number: i32) -> Result<Option<E>, Bad> {
    // The default of a generated enum is its unspecified value.
    let choice = E::try_from(number).map_err(|_| Bad::rule(path, UNKNOWN))?;
    Ok((choice != E::default()).then_some(choice))
}

/// A filter over an enum: each number known and specified; empty: no filter.
pub fn choices<E: TryFrom<i32> + Default + PartialEq>(path: &str, numbers: &[i32]) -> Result<Vec<E>, Bad> {
    numbers.iter().map(|n| choice(path, *n)).collect()
}

/// A verb.
pub fn verb(path: &str, number: i32) -> Result<Verb, Bad> {
    u8::try_from(number).ok().and_then(Verb::from_no).ok_or_else(|| Bad::rule(path, "is not a verb"))
}

/// Verbs of a grant; at least one.
pub fn verbs(path: &str, numbers: &[i32]) -> Result<VerbSet, Bad> {
    if numbers.is_empty() {
        return Err(Bad::rule(path, "must have at least one"));
    }
    numbers.iter().map(|n| verb(path, *n)).collect()
}

/// To the wire: the numbers are the same.
pub fn wire_verbs(verbs: VerbSet) -> Vec<i32> {
    verbs.iter().map(|v| i32::from(v as u8)).collect()
}

/// How many a page may hold: 0 is [`PAGE_SIZE`], more than [`MAX_PAGE_SIZE`] is that.
pub fn page_size(number: i32) -> Result<u32, Bad> {
    match u32::try_from(number) {
        Ok(0) => Ok(PAGE_SIZE),
        Ok(n) => Ok(n.min(MAX_PAGE_SIZE)),
        Err(_) => Err(Bad::rule("page_size", "must not be negative")),
    }
}

/// Outcome of an audit entry, to the wire: the names are the same.
pub fn wire_outcome(outcome: Outcome) -> pb::AuditOutcome {
    match outcome {
        Outcome::Ok => pb::AuditOutcome::Ok,
        Outcome::Partial => pb::AuditOutcome::Partial,
        Outcome::Denied => pb::AuditOutcome::Denied,
        Outcome::NotFound => pb::AuditOutcome::NotFound,
        Outcome::Erased => pb::AuditOutcome::Erased,
        Outcome::Held => pb::AuditOutcome::Held,
        Outcome::Invalid => pb::AuditOutcome::Invalid,
        Outcome::Conflict => pb::AuditOutcome::Conflict,
        Outcome::DataLoss => pb::AuditOutcome::DataLoss,
        Outcome::Failed => pb::AuditOutcome::Failed,
    }
}

/// What a call of its own would have answered, as one outcome of a batch.
pub fn item_error(status: &Status) -> pb::ItemError {
    let details = status.get_error_details();
    let violation = |path: &str, rule: &str| pb::FieldViolation { path: path.into(), rule: rule.into() };
    let mut violations = Vec::new();
    if let Some(bad) = details.bad_request() {
        violations.extend(bad.field_violations.iter().map(|v| violation(&v.field, &v.description)));
    }
    let mut reason = String::new();
    if let Some(info) = details.error_info() {
        reason.clone_from(&info.reason);
        // What is not supported is named in the metadata; an element of a batch has none.
        if let Some(path) = info.metadata.get("field") {
            violations.push(violation(path, status.message()));
        }
    }
    let delay = details.retry_info().and_then(|r| r.retry_delay);
    let retry_ms = delay.map_or(0, |d| u32::try_from(d.as_millis()).unwrap_or(u32::MAX));
    pb::ItemError { code: status.code() as i32, reason, violations, retry_ms }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::status::busy;
    use proptest::prelude::*;
    use std::time::Duration;

    proptest! {
        #[test]
        fn times_and_days_come_back_as_they_went(ms in FIRST_SECOND * 1_000..LAST_SECOND * 1_000) {
            prop_assert_eq!(time("t", &wire_time(Timestamp(ms))), Ok(Timestamp(ms)));
            let day = jiff::Timestamp::from_millisecond(ms).unwrap().to_zoned(jiff::tz::TimeZone::UTC).date();
            prop_assert_eq!(date("d", &wire_date(day)), Ok(day));
        }

        #[test]
        fn no_time_date_or_duration_of_a_stranger_panics(a: i64, b: i32, c: i32, d: i32) {
            let _ = time("t", &prost_types::Timestamp { seconds: a, nanos: b });
            let _ = duration_ms("d", &prost_types::Duration { seconds: a, nanos: b }, i64::MAX);
            let _ = date("d", &pb::Date { year: b, month: c, day: d });
        }
    }

    #[test]
    fn what_is_no_time_or_no_day_is_refused() {
        for (seconds, nanos) in
            [(FIRST_SECOND - 1, 0), (LAST_SECOND + 1, 0), (0, -1), (0, 1_000_000_000), (i64::MAX, 0)]
        {
            assert!(time("t", &prost_types::Timestamp { seconds, nanos }).is_err(), "{seconds} {nanos}");
        }
        assert_eq!(time("t", &prost_types::Timestamp { seconds: -1, nanos: 999_999_999 }), Ok(Timestamp(-1)));
        for (year, month, day) in
            [(2023, 2, 29), (0, 1, 1), (2024, 13, 1), (2024, 1, 0), (10_000, 1, 1), (65_560, 1, 1)]
        {
            assert!(date("d", &pb::Date { year, month, day }).is_err(), "{year}-{month}-{day}");
        }
        assert!(date("d", &pb::Date { year: 2024, month: 2, day: 29 }).is_ok());
        for (seconds, nanos) in [(0, 0), (-1, 0), (0, 1), (0, -5), (11, 0), (i64::MAX, 0)] {
            assert!(duration_ms("d", &prost_types::Duration { seconds, nanos }, 10_000).is_err(), "{seconds} {nanos}");
        }
        assert_eq!(duration_ms("d", &prost_types::Duration { seconds: 10, nanos: 0 }, 10_000), Ok(10_000));
    }

    #[test]
    fn the_verbs_of_the_wire_are_those_of_the_vault() {
        for verb in Verb::ALL {
            let wire = pb::Verb::try_from(i32::from(*verb as u8)).unwrap();
            assert_eq!(wire.as_str_name(), format!("VERB_{}", verb.name().to_uppercase()));
        }
        assert!(pb::Verb::try_from(Verb::ALL.len() as i32 + 1).is_err(), "a verb on the wire that the vault has not");
        assert!(verb("v", 0).is_err() && verb("v", 19).is_err() && verb("v", -1).is_err() && verb("v", 257).is_err());
        assert!(verbs("v", &[]).is_err() && verbs("v", &[1, 99]).is_err());
        assert_eq!(wire_verbs(verbs("v", &[6, 1, 1]).unwrap()), [1, 6]);
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        assert!(field_no("f", 0).is_err() && field_no("f", 1_024).is_err() && field_no("f", 65_537).is_err());
        assert!(class_no("c", 0).is_err() && class_no("c", 17).is_err() && class_no("c", 257).is_err());
        assert_eq!(class_nos("c", &[3, 1, 3]), Ok(vec![ClassNo(1), ClassNo(3)]));
        assert!(purpose_no("p", 256).is_err() && purpose_no("p", 0) == Ok(None));
        assert_eq!((page_size(0), page_size(5), page_size(5_000)), (Ok(PAGE_SIZE), Ok(5), Ok(MAX_PAGE_SIZE)));
        assert!(page_size(-1).is_err());
    }

    #[test]
    fn enums_are_known_and_tokens_are_refused_by_name() {
        assert_eq!(view("view", 3), Err(Bad::not_supported("view")));
        assert!(view("view", 9).is_err());
        assert_eq!(view("view", wire_view(View::Masked) as i32), Ok(Some(View::Masked)));
        assert_eq!(opt_choice::<pb::HoldState>("s", 0), Ok(None));
        assert_eq!(choice::<pb::HoldState>("s", 1), Ok(pb::HoldState::Active));
        assert!(choice::<pb::HoldState>("s", 0).is_err() && choice::<pb::HoldState>("s", 77).is_err());
        assert!(refuse(true, "consents").is_err() && refuse(false, "consents").is_ok());
    }

    #[test]
    fn one_of_a_batch_says_what_its_own_call_would_have_said() {
        let error = item_error(&Status::from(Bad::rule("values[1].date", "must be a day")));
        assert_eq!((error.code, error.reason.as_str(), error.retry_ms), (3, "FIELD_INVALID", 0));
        assert_eq!(error.violations[0].path, "values[1].date");
        let error = item_error(&busy("full", Duration::from_millis(40)));
        assert_eq!((error.code, error.reason.as_str(), error.retry_ms), (8, "BUSY", 40));
        let error = item_error(&Status::from(Bad::not_supported("consents")));
        assert_eq!((error.code, error.violations[0].path.as_str()), (12, "consents"));
    }

    #[test]
    fn outcomes_have_one_name() {
        for outcome in Outcome::ALL {
            let wire = wire_outcome(*outcome).as_str_name();
            assert_eq!(wire, format!("AUDIT_OUTCOME_{}", outcome.name().to_uppercase()));
        }
    }
}
