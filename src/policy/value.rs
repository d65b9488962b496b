//! A value of a field: its types, what a rule demands of it, the bytes that are sealed, and the form under which it is
//! found again.
//!
//! # Sealed bytes
//!
//! ```text
//! value = type 1 B | body
//!   1 text     UTF-8
//!   2 data     the bytes
//!   3 integer  i64, big endian
//!   4 number   IEEE 754 double, big endian
//!   5 flag     0 or 1
//!   6 date     year u16, big endian | month u8 | day u8
//!   7 time     i64 milliseconds since 1970-01-01 UTC, big endian
//! ```
//!
//! # Normal form, for the blind index
//!
//! | Field | Normal form |
//! |---|---|
//! | `phone_e164` | the digits; spaces, hyphens, dots, parentheses of what is searched for do not count |
//! | other text | NFKC, lower case (`ς` as `σ`), NFKC again, white space at the ends cut off; for an e-mail address both sides |
//! | integer | decimal digits |
//! | date | `YYYY-MM-DD` |
//!
//! Lower case is not case folding: `ß` and `ss` differ, as `e` and `é` do. Two values with the same normal form are
//! equal for search and for uniqueness; what was written is stored unchanged. A text that is empty in its normal form
//! is not indexed.

use super::compiled::{AgeField, FieldRule, Policy};
pub use super::date::Date;
use super::facts::OfAge;
use super::file::{FieldType, Validator};
use super::{form, guard};
use crate::clock::Timestamp;
use crate::ids::FieldNo;
use crate::secret::Secret;
use std::fmt;
use unicode_normalization::UnicodeNormalization;
use zeroize::Zeroizing;

/// A plain value. Text and data are wiped on drop; `Debug` shows the type alone.
pub enum Value {
    Text(Secret<String>),
    Data(Secret<Vec<u8>>),
    Integer(i64),
    Number(f64),
    Flag(bool),
    Date(Date),
    Time(Timestamp),
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Value({})", self.kind().name())
    }
}

/// The bytes are not a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the opened bytes are not a value")]
pub struct Malformed;

/// First and last millisecond of the years 1 to 9999, as in a protobuf `Timestamp`.
const TIMES: std::ops::RangeInclusive<i64> = -62_135_596_800_000..=253_402_300_799_999;

impl Value {
    /// Takes a text over; it is wiped on drop.
    pub fn text(text: String) -> Value {
        Value::Text(Secret::new(text))
    }
    /// Takes bytes over; they are wiped on drop.
    pub fn data(data: Vec<u8>) -> Value {
        Value::Data(Secret::new(data))
    }

    /// Its type.
    pub fn kind(&self) -> FieldType {
        match self {
            Value::Text(_) => FieldType::Text,
            Value::Data(_) => FieldType::Data,
            Value::Integer(_) => FieldType::Integer,
            Value::Number(_) => FieldType::Number,
            Value::Flag(_) => FieldType::Flag,
            Value::Date(_) => FieldType::Date,
            Value::Time(_) => FieldType::Time,
        }
    }

    /// How many bytes [`Value::encode`] appends.
    pub fn encoded_len(&self) -> usize {
        1 + match self {
            Value::Text(text) => text.expose().len(),
            Value::Data(data) => data.expose().len(),
            Value::Integer(_) | Value::Number(_) | Value::Time(_) => 8,
            Value::Flag(_) => 1,
            Value::Date(_) => 4,
        }
    }

    /// Appends the bytes that are sealed. Reserve [`Value::encoded_len`] first: a buffer that grows leaves a copy behind.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Value::Text(text) => {
                out.push(1);
                out.extend_from_slice(text.expose().as_bytes());
            }
            Value::Data(data) => {
                out.push(2);
                out.extend_from_slice(data.expose());
            }
            Value::Integer(n) => {
                out.push(3);
                out.extend_from_slice(&n.to_be_bytes());
            }
            Value::Number(n) => {
                out.push(4);
                out.extend_from_slice(&n.to_bits().to_be_bytes());
            }
            Value::Flag(flag) => out.extend_from_slice(&[5, u8::from(*flag)]),
            Value::Date(date) => {
                let [high, low] = (date.year() as u16).to_be_bytes();
                out.extend_from_slice(&[6, high, low, date.month() as u8, date.day() as u8]);
            }
            Value::Time(time) => {
                out.push(7);
                out.extend_from_slice(&time.0.to_be_bytes());
            }
        }
    }

    /// Reads what `encode` wrote.
    ///
    /// # Errors
    /// `Malformed`: an unknown type, a wrong length, no UTF-8, a day that does not exist.
    pub fn decode(bytes: &[u8]) -> Result<Value, Malformed> {
        let (kind, body) = bytes.split_first().ok_or(Malformed)?;
        let eight = || <[u8; 8]>::try_from(body).map_err(|_| Malformed);
        Ok(match kind {
            1 => Value::text(std::str::from_utf8(body).map_err(|_| Malformed)?.to_owned()),
            2 => Value::data(body.to_vec()),
            3 => Value::Integer(i64::from_be_bytes(eight()?)),
            4 => Value::Number(f64::from_bits(u64::from_be_bytes(eight()?))),
            5 => match body {
                [0] => Value::Flag(false),
                [1] => Value::Flag(true),
                _ => return Err(Malformed),
            },
            6 => match body {
                [high, low, month, day] => {
                    let year = u16::from_be_bytes([*high, *low]);
                    Value::Date(Date::new(year.into(), (*month).into(), (*day).into()).ok_or(Malformed)?)
                }
                _ => return Err(Malformed),
            },
            7 => Value::Time(Timestamp(i64::from_be_bytes(eight()?))),
            _ => return Err(Malformed),
        })
    }

    /// What a masked view shows; `None` where the field has no mask.
    pub fn masked(&self, rule: &FieldRule) -> Option<Value> {
        match (self, rule.mask) {
            (Value::Text(text), Some(mask)) => Some(Value::text(std::mem::take(&mut *mask.apply(text.expose())))),
            _ => None,
        }
    }
}

/// Which demand of its field a value does not meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Violation {
    pub field: FieldNo,
    pub rule: Demand,
}

/// What a field demands of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Demand {
    Type,
    MaxLength,
    Nul,
    CardNumber,
    Form(Validator),
    Finite,
    Range,
    /// It makes the person younger than the age limit.
    Age,
}

impl Demand {
    /// Stable name, for field violations.
    pub const fn name(self) -> &'static str {
        match self {
            Demand::Type => "type",
            Demand::MaxLength => "max_length",
            Demand::Nul => "nul",
            Demand::CardNumber => "card_number",
            Demand::Form(validator) => validator.name(),
            Demand::Finite => "finite",
            Demand::Range => "range",
            Demand::Age => "age",
        }
    }

    /// The demand in words, for developers; never with a value.
    pub const fn words(self) -> &'static str {
        match self {
            Demand::Type => "must have the type that the policy gives the field",
            Demand::MaxLength => "must not be longer than the policy allows",
            Demand::Nul => "must not contain U+0000",
            Demand::CardNumber => "must not contain what could be a payment card number",
            Demand::Form(Validator::Email) => "must be an e-mail address",
            Demand::Form(Validator::PhoneE164) => "must be a phone number in the form +4915112345678 (E.164)",
            Demand::Form(Validator::Url) => "must be an http or https URL without a user name",
            Demand::Form(Validator::Name) => "must be a name: one line with a letter, not blank at its ends",
            Demand::Form(Validator::Ip) => "must be an IPv4 or IPv6 address",
            Demand::Form(Validator::None) => "must have its form",
            Demand::Finite => "must be a finite number",
            Demand::Range => "must lie in the years 1 to 9999",
            Demand::Age => "must make the person as old as the policy demands",
        }
    }
}

/// Whether a value may be written to the field of the policy at `now`.
///
/// # Errors
/// The first demand that it does not meet; never the value.
pub fn check_now(policy: &Policy, rule: &FieldRule, value: &Value, now: Timestamp) -> Result<(), Violation> {
    check(rule, value)?;
    let age = match (rule.age, value) {
        (Some(AgeField::Birth), Value::Date(birth)) => policy.age_of(Some(*birth), None, now),
        (Some(AgeField::Attested), Value::Flag(attested)) => policy.age_of(None, Some(*attested), now),
        _ => OfAge::Unknown,
    };
    if age == OfAge::No { Err(Violation { field: rule.no, rule: Demand::Age }) } else { Ok(()) }
}

/// Whether a value may be written to the field, the age limit apart.
///
/// # Errors
/// The first demand that it does not meet; never the value.
pub fn check(rule: &FieldRule, value: &Value) -> Result<(), Violation> {
    let broken = |demand| Err(Violation { field: rule.no, rule: demand });
    if value.kind() != rule.kind {
        return broken(Demand::Type);
    }
    match value {
        Value::Text(text) => {
            let text = text.expose();
            if longer_than(text, rule.max_length as usize) {
                return broken(Demand::MaxLength);
            }
            if text.contains('\0') {
                return broken(Demand::Nul);
            }
            if !form::fits(rule.validator, text) {
                return broken(Demand::Form(rule.validator));
            }
            // A phone number with its plus has at most 15 digits and may well be right by the formula of card numbers.
            if rule.validator != Validator::PhoneE164 && guard::has_card_number(text) {
                return broken(Demand::CardNumber);
            }
        }
        Value::Data(data) => {
            if data.expose().len() > rule.max_length as usize {
                return broken(Demand::MaxLength);
            }
            // Bytes that are a text are read as one: JSON, CSV, a note.
            if std::str::from_utf8(data.expose()).is_ok_and(guard::has_card_number) {
                return broken(Demand::CardNumber);
            }
        }
        Value::Number(n) if !n.is_finite() => return broken(Demand::Finite),
        Value::Time(time) if !TIMES.contains(&time.0) => return broken(Demand::Range),
        Value::Number(_) | Value::Time(_) | Value::Integer(_) | Value::Flag(_) | Value::Date(_) => {}
    }
    Ok(())
}

fn longer_than(text: &str, characters: usize) -> bool {
    // A character has 1 to 4 bytes: most texts need no count.
    text.len() > characters && (text.len() > 4 * characters || text.chars().count() > characters)
}

/// The normal form under which the value is found; `None` for types that cannot be searched for and for texts that are
/// empty in their normal form.
pub fn normalize(rule: &FieldRule, value: &Value) -> Option<Zeroizing<Vec<u8>>> {
    match value {
        Value::Text(text) => text_form(rule.validator, text.expose()),
        Value::Integer(n) => Some(Zeroizing::new(n.to_string().into_bytes())),
        Value::Date(date) => Some(Zeroizing::new(date.to_string().into_bytes())),
        Value::Data(_) | Value::Number(_) | Value::Flag(_) | Value::Time(_) => None,
    }
}

/// The normal form of what is searched for, given as text whatever the field's type; `None`: no value can match.
pub fn normalize_text(rule: &FieldRule, text: &str) -> Option<Zeroizing<Vec<u8>>> {
    match rule.kind {
        FieldType::Text => text_form(rule.validator, text),
        FieldType::Integer => normalize(rule, &Value::Integer(text.trim().parse().ok()?)),
        FieldType::Date => normalize(rule, &Value::Date(Date::parse(text.trim())?)),
        FieldType::Data | FieldType::Number | FieldType::Flag | FieldType::Time => None,
    }
}

fn text_form(validator: Validator, text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let form = if validator == Validator::PhoneE164 { phone_form(text)? } else { lower_form(text) };
    (!form.is_empty()).then_some(form)
}

fn phone_form(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mut out = Zeroizing::new(Vec::with_capacity(16));
    for c in text.trim().strip_prefix('+')?.chars() {
        match c {
            '0'..='9' if out.len() < 15 => out.push(c as u8),
            ' ' | '-' | '.' | '(' | ')' | '/' | '\u{a0}' => {}
            _ => return None,
        }
    }
    Some(out)
}

fn lower_form(text: &str) -> Zeroizing<Vec<u8>> {
    let mut form = one_pass(text);
    // Once is enough for nearly all texts; what changes again is settled after a second or third time.
    for _ in 0..3 {
        let again = one_pass(&form);
        if *again == *form {
            break;
        }
        form = again;
    }
    Zeroizing::new(std::mem::take(&mut *form).into_bytes())
}

fn one_pass(text: &str) -> Zeroizing<String> {
    let lower = |c: char| c.to_lowercase().map(|c| if c == 'ς' { 'σ' } else { c });
    let mut out = Zeroizing::new(String::with_capacity(text.len() + text.len() / 2 + 16));
    out.extend(text.nfkc().flat_map(lower).nfkc());
    let (start, end) = (out.len() - out.trim_start().len(), out.trim_end().len());
    if start >= end {
        out.clear();
    } else {
        out.truncate(end);
        out.drain(..start);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ClassNo, Name};
    use proptest::prelude::*;

    fn rule(kind: FieldType, max_length: u32, validator: Validator) -> FieldRule {
        FieldRule {
            no: FieldNo(7),
            name: Name::parse("name", "field").unwrap(),
            title: None,
            class: ClassNo(1),
            kind,
            max_length,
            validator,
            searchable: true,
            unique: false,
            many: false,
            mask: None,
            retired: false,
            consent: None,
            age: None,
            line: 1,
        }
    }
    fn text_rule(max_length: u32) -> FieldRule {
        rule(FieldType::Text, max_length, Validator::None)
    }
    fn broken(rule: &FieldRule, value: Value) -> Demand {
        check(rule, &value).expect_err("must be refused").rule
    }
    fn encoded(value: &Value) -> Vec<u8> {
        let mut out = Vec::with_capacity(value.encoded_len());
        value.encode(&mut out);
        assert_eq!(out.len(), value.encoded_len());
        out
    }
    fn form(validator: Validator, text: &str) -> Option<String> {
        let form = normalize_text(&rule(FieldType::Text, 100, validator), text)?;
        Some(String::from_utf8(form.to_vec()).unwrap())
    }

    #[test]
    fn the_sealed_bytes_are_frozen() {
        let cases: [(Value, &[u8]); 9] = [
            (Value::text("é".into()), &[1, 0xc3, 0xa9]),
            (Value::text(String::new()), &[1]),
            (Value::data(vec![0, 255]), &[2, 0, 255]),
            (Value::Integer(-2), &[3, 255, 255, 255, 255, 255, 255, 255, 254]),
            (Value::Number(1.5), &[4, 0x3f, 0xf8, 0, 0, 0, 0, 0, 0]),
            (Value::Flag(true), &[5, 1]),
            (Value::Flag(false), &[5, 0]),
            (Value::Date(Date::new(2024, 2, 29).unwrap()), &[6, 0x07, 0xe8, 2, 29]),
            (Value::Time(Timestamp(1_000)), &[7, 0, 0, 0, 0, 0, 0, 3, 232]),
        ];
        for (value, bytes) in cases {
            assert_eq!(encoded(&value), bytes, "{value:?}");
            assert_eq!(encoded(&Value::decode(bytes).unwrap()), bytes, "{value:?}");
        }
    }

    #[test]
    fn bytes_that_are_no_value_are_refused() {
        let bad: [&[u8]; 12] = [
            &[],
            &[0],
            &[8, 1],
            &[1, 0xff],
            &[3, 1],
            &[3, 1, 2, 3, 4, 5, 6, 7, 8, 9],
            &[4],
            &[5],
            &[5, 2],
            &[5, 1, 1],
            &[6, 7, 231, 2, 29],
            &[7, 0],
        ];
        for bytes in bad {
            assert_eq!(Value::decode(bytes).err(), Some(Malformed), "{bytes:?}");
        }
    }

    #[test]
    fn debug_shows_the_type_alone() {
        let shown = format!("{:?} {:?}", Value::text("jane".into()), Value::Date(Date::new(2000, 1, 2).unwrap()));
        assert_eq!(shown, "Value(text) Value(date)");
        assert_eq!(format!("{:?}", Date::new(2000, 1, 2).unwrap()), "Date(..)");
    }

    #[test]
    fn jw03_length_counts_characters_of_a_text_and_bytes_of_data() {
        let rule = text_rule(2000);
        for c in ["a", "é", "界", "😀"] {
            assert_eq!(check(&rule, &Value::text(c.repeat(2000))), Ok(()), "{c}");
            assert_eq!(broken(&rule, Value::text(c.repeat(2001))), Demand::MaxLength, "{c}");
        }
        let data = self::rule(FieldType::Data, 4, Validator::None);
        assert_eq!(check(&data, &Value::data(vec![0; 4])), Ok(()));
        assert_eq!(broken(&data, Value::data(vec![0; 5])), Demand::MaxLength);
    }

    #[test]
    fn every_demand_refuses() {
        assert_eq!(broken(&text_rule(9), Value::Integer(1)), Demand::Type);
        assert_eq!(broken(&text_rule(9), Value::text("a\0b".into())), Demand::Nul);
        assert_eq!(broken(&text_rule(99), Value::text("card 4111 1111 1111 1111".into())), Demand::CardNumber);
        let email = rule(FieldType::Text, 254, Validator::Email);
        assert_eq!(broken(&email, Value::text("jane".into())), Demand::Form(Validator::Email));
        assert_eq!(broken(&email, Value::text("4111111111111111@example.com".into())), Demand::CardNumber);
        let number = rule(FieldType::Number, 0, Validator::None);
        for n in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(broken(&number, Value::Number(n)), Demand::Finite);
        }
        let time = rule(FieldType::Time, 0, Validator::None);
        assert_eq!(broken(&time, Value::Time(Timestamp(i64::MAX))), Demand::Range);
        assert_eq!(check(&time, &Value::Time(Timestamp(0))), Ok(()));
    }

    #[test]
    fn jw05_a_phone_field_takes_what_looks_like_a_card() {
        // +4915123456787 has 13 digits that are right by the Luhn formula.
        let phone = rule(FieldType::Text, 16, Validator::PhoneE164);
        assert!(guard::has_card_number("4915123456787"));
        assert_eq!(check(&phone, &Value::text("+4915123456787".into())), Ok(()));
        assert_eq!(broken(&phone, Value::text("4915123456787".into())), Demand::Form(Validator::PhoneE164));
    }

    #[test]
    fn a_violation_never_shows_the_value() {
        let shown = format!("{:?}", check(&text_rule(3), &Value::text("jane doe".into())));
        assert!(!shown.contains("jane"));
    }

    #[test]
    fn days_that_do_not_exist_are_none() {
        for (y, m, d) in [
            (2023, 2, 29),
            (2100, 2, 29),
            (2024, 0, 1),
            (2024, 13, 1),
            (2024, 4, 31),
            (0, 1, 1),
            (10_000, 1, 1),
            (2024, 1, 257),
        ] {
            assert!(Date::new(y, m, d).is_none(), "{y}-{m}-{d}");
        }
        assert_eq!(Date::parse("2024-02-29"), Date::new(2024, 2, 29));
        for bad in ["2024-2-29", "2024-02-30", "+024-02-28", "2024/02/28", "2024-02-2９"] {
            assert!(Date::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn equal_values_have_one_normal_form() {
        let n = |t| form(Validator::None, t);
        assert_eq!(form(Validator::Email, " Jane.Doe+X@Example.COM "), Some("jane.doe+x@example.com".into()));
        assert_eq!(n("Müller"), n("MU\u{308}LLER"));
        assert_eq!(n("ＡＢＣ"), Some("abc".into()));
        assert_eq!(n("ΟΔΟΣ"), n("οδος"));
        assert_eq!(n("Straße"), Some("straße".into()));
        assert_ne!(n("e"), n("é"));
        assert_eq!(n(" \u{a0}\u{3000} "), None);
        assert_eq!(form(Validator::PhoneE164, "+49 (151) 123-456.78"), Some("4915112345678".into()));
        assert_eq!(form(Validator::PhoneE164, "0151 12345678"), None);
        assert_eq!(form(Validator::PhoneE164, "+1234567890123456"), None);
        let integer = rule(FieldType::Integer, 0, Validator::None);
        assert_eq!(normalize_text(&integer, "007"), normalize(&integer, &Value::Integer(7)));
        let date = rule(FieldType::Date, 0, Validator::None);
        assert_eq!(
            normalize_text(&date, "2024-02-29"),
            normalize(&date, &Value::Date(Date::new(2024, 2, 29).unwrap()))
        );
        assert_eq!(normalize(&date, &Value::Flag(true)), None);
    }

    proptest! {
        #[test]
        fn a_normal_form_is_its_own(text in any::<String>()) {
            let once = lower_form(&text);
            let twice = lower_form(std::str::from_utf8(&once).unwrap());
            prop_assert_eq!(&*once, &*twice);
        }

        #[test]
        fn a_stored_phone_number_is_found_by_itself(digits in "[1-9][0-9]{6,14}") {
            let phone = rule(FieldType::Text, 16, Validator::PhoneE164);
            let text = format!("+{digits}");
            let value = Value::text(text.clone());
            prop_assert!(check(&phone, &value).is_ok());
            prop_assert_eq!(normalize(&phone, &value), Some(Zeroizing::new(digits.into_bytes())));
            prop_assert_eq!(normalize_text(&phone, &text), normalize(&phone, &value));
        }

        #[test]
        fn encoding_keeps_a_value(text in any::<String>(), data: Vec<u8>, n: i64, f: f64, flag: bool, t: i64, y in 1i32..10_000, m in 1i32..13, d in 1i32..29) {
            for value in [
                Value::text(text), Value::data(data), Value::Integer(n), Value::Number(f), Value::Flag(flag),
                Value::Date(Date::new(y, m, d).unwrap()), Value::Time(Timestamp(t)),
            ] {
                let bytes = encoded(&value);
                let back = Value::decode(&bytes).unwrap();
                prop_assert_eq!(back.kind(), value.kind());
                prop_assert_eq!(encoded(&back), bytes);
            }
        }

        #[test]
        fn t40_what_decodes_is_what_was_encoded(bytes in prop::collection::vec(any::<u8>(), 0..40), kind in 0u8..9) {
            for bytes in [bytes.clone(), [vec![kind], bytes].concat()] {
                if let Ok(value) = Value::decode(&bytes) {
                    prop_assert_eq!(encoded(&value), bytes, "one value, one encoding");
                }
            }
        }
    }
}
