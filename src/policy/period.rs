//! Periods of a policy, when they end, and into which expiry bucket that falls.
//!
//! A day is 24 h. Months and years are counted on the calendar of the tenant's time zone: the same time of the same
//! day of the month, or the month's last day where there is no such day (29 February + 1y ends on 28 February).

use crate::clock::{DAY_MS, Timestamp};
use crate::ids::Bucket;
use jiff::tz::TimeZone;
use jiff::{Span, ToSpan};
use std::fmt;

/// A length of time as a policy writes it: `90d`, `18mo`, `7y`; at least 1, at most 100 years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Period {
    /// 24 h each.
    Days(u32),
    /// Of the calendar.
    Months(u32),
    /// Of the calendar.
    Years(u32),
}

const MAX_YEARS: u32 = 100;
/// Above this a class's values share the bucket of a month, so that seven years are 84 slots and not 2,557.
const MONTHLY_FROM_DAYS: u64 = 2 * 366;

impl Period {
    /// Reads the form above and no other.
    pub fn parse(text: &str) -> Option<Period> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        if digits == 0 || digits > 5 || number.starts_with('0') {
            return None;
        }
        let n: u32 = number.parse().ok()?;
        let period = match unit {
            "d" if n <= MAX_YEARS * 366 => Period::Days(n),
            "mo" if n <= MAX_YEARS * 12 => Period::Months(n),
            "y" if n <= MAX_YEARS => Period::Years(n),
            _ => return None,
        };
        Some(period)
    }

    /// The fewest days it can take; for comparing two periods.
    pub fn shortest_days(self) -> u64 {
        match self {
            Period::Days(n) => n.into(),
            // 28 days a month would call 12mo shorter than 1y: whole years first.
            Period::Months(n) => {
                u64::from(n / 12) * 365 + [0, 28, 59, 89, 120, 150, 181, 211, 242, 272, 303, 333][(n % 12) as usize]
            }
            Period::Years(n) => u64::from(n) * 365,
        }
    }

    /// The most days it can take; for comparing two periods.
    pub fn longest_days(self) -> u64 {
        match self {
            Period::Days(n) => n.into(),
            Period::Months(n) => u64::from(n / 12) * 366 + u64::from(n % 12) * 31,
            Period::Years(n) => u64::from(n) * 366,
        }
    }

    /// Whether it is surely longer than the other, as 91d is longer than 90d; 12mo and 1y are equally long.
    pub fn longer_than(self, other: Period) -> bool {
        match (self.months(), other.months()) {
            (Some(a), Some(b)) => a > b,
            (None, None) => self.shortest_days() > other.shortest_days(),
            _ => self.shortest_days() > other.longest_days(),
        }
    }

    /// Whether it can be shorter than the other, as 1y can be shorter than 366d: whoever must not lose a day asks this.
    pub fn may_be_shorter_than(self, other: Period) -> bool {
        match (self.months(), other.months()) {
            (Some(a), Some(b)) => a < b,
            (None, None) => self.shortest_days() < other.shortest_days(),
            _ => self.shortest_days() < other.longest_days(),
        }
    }

    /// When it ends if it begins at `start`. Beyond the year 9999 it stops there.
    pub fn after(self, start: Timestamp, zone: &TimeZone) -> Timestamp {
        let span = match self {
            Period::Days(n) => return start.plus_days(n.into()),
            Period::Months(n) => (n as i32).months(),
            Period::Years(n) => (n as i32).years(),
        };
        on_calendar(start, span, zone).unwrap_or(LAST)
    }

    /// Whether values that are kept this long share a month's bucket.
    pub fn is_monthly(self) -> bool {
        match self.months() {
            Some(months) => months > 24,
            None => self.shortest_days() > MONTHLY_FROM_DAYS,
        }
    }

    fn months(self) -> Option<u32> {
        match self {
            Period::Days(_) => None,
            Period::Months(n) => Some(n),
            Period::Years(n) => Some(n * 12),
        }
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Period::Days(n) => write!(f, "{n}d"),
            Period::Months(n) => write!(f, "{n}mo"),
            Period::Years(n) => write!(f, "{n}y"),
        }
    }
}

/// 9999-12-30T22:00:00.999Z, the last time that calendars here can say.
const LAST: Timestamp = Timestamp(253_402_207_200_999);

fn on_calendar(start: Timestamp, span: Span, zone: &TimeZone) -> Option<Timestamp> {
    let civil = jiff::Timestamp::from_millisecond(start.0).ok()?.to_zoned(zone.clone());
    // A gap (clocks forward) moves to after it, a fold takes the first: the zone's own rule for that day.
    Some(Timestamp(civil.checked_add(span).ok()?.timestamp().as_millisecond()))
}

/// The end of a value: at `at` it is refused, when the bucket's last day is over its key is destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expiry {
    /// First moment at which the value is not given out any more.
    pub at: Timestamp,
    /// Bucket whose key seals it; never [`Bucket::NONE`].
    pub bucket: Bucket,
}

impl Expiry {
    /// The end of a value of that origin kept for that period.
    pub fn of(period: Period, origin: Timestamp, zone: &TimeZone) -> Expiry {
        let at = period.after(origin, zone);
        Expiry { at, bucket: bucket_of(at, period.is_monthly()) }
    }
}

/// The bucket of a moment: its UTC day, or the last day of its UTC month. A moment before 1970-01-02 is in bucket 1,
/// which is over, because 0 says "no end".
pub fn bucket_of(at: Timestamp, monthly: bool) -> Bucket {
    let at = Timestamp(at.0.clamp(DAY_MS, LAST.0));
    let mut day = at.day();
    if monthly {
        let date = jiff::Timestamp::from_millisecond(at.0).map(|t| TimeZone::UTC.to_datetime(t).date());
        if let Ok(date) = date {
            day += i64::from(date.days_in_month() - date.day());
        }
    }
    Bucket(u32::try_from(day).expect("between day 1 and the year 9999"))
}

/// The first moment at which the bucket is over and its key may be destroyed. `Bucket::NONE` has none.
pub fn bucket_end(bucket: Bucket) -> Option<Timestamp> {
    (bucket != Bucket::NONE).then(|| Timestamp((i64::from(bucket.0) + 1) * DAY_MS))
}

/// The time zone of that name in the bundled IANA data: no file is read, so every machine counts alike.
pub fn zone(name: &str) -> Option<TimeZone> {
    thread_local! {
        static ZONES: jiff::tz::TimeZoneDatabase = jiff::tz::TimeZoneDatabase::bundled();
    }
    ZONES.with(|zones| zones.get(name).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Timestamp {
        Timestamp(text.parse::<jiff::Timestamp>().unwrap().as_millisecond())
    }
    fn day(text: &str) -> u32 {
        at(&format!("{text}T00:00:00Z")).day() as u32
    }

    #[test]
    fn one_spelling_of_a_period() {
        assert_eq!(Period::parse("90d"), Some(Period::Days(90)));
        assert_eq!(Period::parse("7y"), Some(Period::Years(7)));
        assert_eq!(Period::parse("18mo"), Some(Period::Months(18)));
        for bad in ["", "d", "0d", "090d", "90", "90 d", "90D", "-1d", "101y", "1w", "100000d", "7 years", "٣d"] {
            assert_eq!(Period::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn days_are_24_hours_whatever_the_clocks_do() {
        // Clocks go forward on 29 March 2026 in Rome; 90 days are 90 * 24 h all the same.
        let rome = zone("Europe/Rome").unwrap();
        assert_eq!(Period::Days(90).after(at("2026-01-01T12:00:00Z"), &rome), at("2026-04-01T12:00:00Z"));
        // A year keeps the local time: 28 March 2026, 12:00 (+01:00) to 28 March 2027, 12:00 (+02:00).
        assert_eq!(Period::Years(1).after(at("2026-03-28T11:00:00Z"), &rome), at("2027-03-28T10:00:00Z"));
        assert_eq!(Period::Months(1).after(at("2026-03-01T11:00:00Z"), &rome), at("2026-04-01T10:00:00Z"));
    }

    #[test]
    fn years_follow_the_tenants_calendar() {
        let (kolkata, jakarta, utc) = (zone("Asia/Kolkata").unwrap(), zone("Asia/Jakarta").unwrap(), TimeZone::UTC);
        // In India it is already 1 March 2024 (a leap year) when it is still 29 February in UTC.
        let origin = at("2024-02-29T20:00:00Z");
        assert_eq!(Period::Years(7).after(origin, &kolkata), at("2031-02-28T20:00:00Z"));
        assert_eq!(Period::Years(7).after(origin, &jakarta), at("2031-02-28T20:00:00Z"));
        assert_eq!(Period::Years(1).after(at("2024-02-29T10:00:00Z"), &utc), at("2025-02-28T10:00:00Z"));
        assert_eq!(Period::Years(4).after(at("2024-02-29T10:00:00Z"), &utc), at("2028-02-29T10:00:00Z"));
        // Here the zone decides the day: 31 January in UTC, 1 February in India.
        assert_eq!(Period::Months(1).after(at("2026-01-31T20:00:00Z"), &utc), at("2026-02-28T20:00:00Z"));
        assert_eq!(Period::Months(1).after(at("2026-01-31T20:00:00Z"), &kolkata), at("2026-02-28T20:00:00Z"));
        assert_eq!(Period::Months(1).after(at("2026-01-30T20:00:00Z"), &kolkata), at("2026-02-27T20:00:00Z"));
    }

    #[test]
    fn buckets_end_with_their_day_or_month() {
        let utc = TimeZone::UTC;
        let end = Expiry::of(Period::Days(90), at("2026-01-01T12:00:00Z"), &utc);
        assert_eq!((end.at, end.bucket.0), (at("2026-04-01T12:00:00Z"), day("2026-04-01")));
        assert_eq!(bucket_end(end.bucket), Some(at("2026-04-02T00:00:00Z")));
        assert_eq!(Expiry::of(Period::Years(2), at("2026-01-10T00:00:00Z"), &utc).bucket.0, day("2028-01-10"));
        assert_eq!(Expiry::of(Period::Months(25), at("2026-01-10T00:00:00Z"), &utc).bucket.0, day("2028-02-29"));
        assert_eq!(Expiry::of(Period::Years(7), at("2026-02-10T00:00:00Z"), &utc).bucket.0, day("2033-02-28"));
        assert_eq!(bucket_end(Bucket::NONE), None);
    }

    #[test]
    fn the_ends_of_time_do_not_panic() {
        for start in [i64::MIN, -1, 0, DAY_MS - 1, i64::MAX] {
            for period in [Period::Days(36_600), Period::Months(1), Period::Years(100)] {
                let end = Expiry::of(period, Timestamp(start), &TimeZone::UTC);
                assert_ne!(end.bucket, Bucket::NONE);
            }
        }
    }

    #[test]
    fn periods_compare_only_when_sure() {
        let p = |t| Period::parse(t).unwrap();
        assert!(p("91d").longer_than(p("90d")) && !p("90d").longer_than(p("90d")));
        assert!(!p("12mo").longer_than(p("1y")) && !p("1y").longer_than(p("12mo")));
        assert!(p("13mo").longer_than(p("1y")) && p("7y").longer_than(p("90d")));
        assert!(!p("365d").longer_than(p("1y")) && !p("1y").longer_than(p("365d")));
        assert!(p("367d").longer_than(p("1y")));
    }

    #[test]
    fn unknown_zones_are_unknown() {
        assert!(zone("Asia/Jakarta").is_some() && zone("Mars/Olympus").is_none() && zone("").is_none());
    }

    proptest! {
        #[test]
        fn a_bucket_is_never_over_before_its_values(
            ms in 0i64..4_000_000_000_000, n in 1u32..60, unit in 0..3, zone_no in 0usize..5,
        ) {
            let zone = zone(["UTC", "Asia/Kolkata", "Asia/Jakarta", "Europe/Rome", "Pacific/Apia"][zone_no]).unwrap();
            let period = match unit { 0 => Period::Days(n * 20), 1 => Period::Months(n), _ => Period::Years(n) };
            let origin = Timestamp(ms);
            let end = Expiry::of(period, origin, &zone);
            let over = bucket_end(end.bucket).unwrap();
            prop_assert!(end.at > origin);
            prop_assert!(end.at < over, "the key must live as long as the value");
            let slack = if period.is_monthly() { 31 } else { 1 };
            prop_assert!(over.0 - end.at.0 <= slack * DAY_MS, "and not much longer");
            let kept = (end.at.0 - origin.0) as u64;
            // A zone may shift by hours (Apia: by a day) between the two ends.
            prop_assert!(kept + 25 * 3_600_000 >= period.shortest_days() * DAY_MS as u64);
            prop_assert!(kept <= period.longest_days() * DAY_MS as u64 + 25 * 3_600_000);
            if period.is_monthly() {
                let next = jiff::Timestamp::from_millisecond(over.0).unwrap().to_zoned(TimeZone::UTC);
                prop_assert_eq!(next.day(), 1, "a month's bucket ends with the month");
            }
        }

        #[test]
        fn later_values_have_later_buckets(ms in 0i64..4_000_000_000_000, more in 0i64..40_000_000_000, monthly: bool) {
            prop_assert!(bucket_of(Timestamp(ms), monthly) <= bucket_of(Timestamp(ms + more), monthly));
        }

        #[test]
        fn a_period_reads_as_it_is_written(n in 1u32..100, unit in 0..3) {
            let period = match unit { 0 => Period::Days(n), 1 => Period::Months(n), _ => Period::Years(n) };
            prop_assert_eq!(Period::parse(&period.to_string()), Some(period));
        }
    }
}
