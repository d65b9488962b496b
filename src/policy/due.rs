//! Clocks of requests: by when an answer is due. Hours and days are counted on the time line, business days and months
//! on the calendar of the tenant's time zone.

use crate::clock::Timestamp;
use jiff::ToSpan;
use jiff::civil::{Date, Weekday};
use jiff::tz::TimeZone;
use std::fmt;

const HOUR_MS: i64 = 3_600_000;
const MOST: u32 = 999;

/// A time limit as a policy writes it: `24h`, `30d`, `5bd`, `1mo`; 1 to 999 of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Within {
    Hours(u32),
    /// 24 h each.
    Days(u32),
    /// To the end of the last one; the day on which the request arrives does not count.
    BusinessDays(u32),
    /// To the same time of the same day of the month, or of the month's last day.
    Months(u32),
}

impl Within {
    /// Reads the form above and no other.
    pub fn parse(text: &str) -> Option<Within> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        if number.is_empty() || number.starts_with('0') || number.len() > 3 {
            return None;
        }
        let n: u32 = number.parse().ok().filter(|n| *n <= MOST)?;
        Some(match unit {
            "h" => Within::Hours(n),
            "d" => Within::Days(n),
            "bd" => Within::BusinessDays(n),
            "mo" => Within::Months(n),
            _ => return None,
        })
    }

    /// The most hours it can take, weekends but no holidays counted in; for comparing two limits.
    pub fn longest_hours(self) -> u32 {
        match self {
            Within::Hours(n) => n,
            Within::Days(n) => n * 24,
            Within::BusinessDays(n) => (n + 2 * n.div_ceil(5) + 1) * 24,
            Within::Months(n) => n * 31 * 24,
        }
    }
}

impl fmt::Display for Within {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Within::Hours(n) => write!(f, "{n}h"),
            Within::Days(n) => write!(f, "{n}d"),
            Within::BusinessDays(n) => write!(f, "{n}bd"),
            Within::Months(n) => write!(f, "{n}mo"),
        }
    }
}

/// Which days are business days.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calendar {
    /// Sorted.
    holidays: Box<[Date]>,
    weekend: Box<[Weekday]>,
}

impl Calendar {
    /// `weekend` may not have all seven days: then the weekend is empty, because a limit must end.
    pub fn new(mut holidays: Vec<Date>, weekend: Vec<Weekday>) -> Calendar {
        holidays.sort_unstable();
        holidays.dedup();
        let weekend = if weekend.len() >= 7 { Vec::new() } else { weekend };
        Calendar { holidays: holidays.into(), weekend: weekend.into() }
    }

    fn is_business(&self, day: Date) -> bool {
        !self.weekend.contains(&day.weekday()) && self.holidays.binary_search(&day).is_err()
    }

    /// When an answer to a request that arrived at `start` is due: it is overdue from that moment.
    pub fn due(&self, within: Within, start: Timestamp, zone: &TimeZone) -> Timestamp {
        match within {
            Within::Hours(n) => Timestamp(start.0 + i64::from(n) * HOUR_MS),
            Within::Days(n) => start.plus_days(n.into()),
            // Beyond the calendar's last year a limit of days is near enough.
            Within::BusinessDays(n) => self.business(n, start, zone).unwrap_or_else(|| start.plus_days((2 * n).into())),
            Within::Months(n) => super::period::Period::Months(n).after(start, zone),
        }
    }

    fn business(&self, n: u32, start: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut day = jiff::Timestamp::from_millisecond(start.0).ok()?.to_zoned(zone.clone()).date();
        let mut left = n;
        while left > 0 {
            day = day.tomorrow().ok()?;
            left -= u32::from(self.is_business(day));
        }
        let end = day.checked_add(1.day()).ok()?.to_zoned(zone.clone()).ok()?;
        Some(Timestamp(end.timestamp().as_millisecond()))
    }
}

/// The first moment of a day in a time zone; `None` beyond the calendar.
pub fn start_of(day: Date, zone: &TimeZone) -> Option<Timestamp> {
    Some(Timestamp(day.to_zoned(zone.clone()).ok()?.timestamp().as_millisecond()))
}

/// The day in a time zone.
pub fn day_of(at: Timestamp, zone: &TimeZone) -> Option<Date> {
    Some(zone.to_datetime(jiff::Timestamp::from_millisecond(at.0).ok()?).date())
}

#[cfg(test)]
mod tests {
    use super::super::period::zone;
    use super::super::testing::at;
    use super::*;
    use proptest::prelude::*;

    fn india() -> Calendar {
        let holidays = ["2026-01-26", "2026-08-15"].iter().map(|d| d.parse().unwrap()).collect();
        Calendar::new(holidays, vec![Weekday::Saturday, Weekday::Sunday])
    }

    #[test]
    fn one_spelling_of_a_time_limit() {
        for (text, limit) in [
            ("24h", Within::Hours(24)),
            ("30d", Within::Days(30)),
            ("5bd", Within::BusinessDays(5)),
            ("1mo", Within::Months(1)),
        ] {
            assert_eq!(Within::parse(text), Some(limit));
            assert_eq!(limit.to_string(), text);
        }
        for bad in ["", "h", "0d", "05bd", "1000d", "5 bd", "5w", "-1d", "1y", "٣d"] {
            assert_eq!(Within::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn jc11_business_days_skip_weekends_and_holidays() {
        let kolkata = zone("Asia/Kolkata").unwrap();
        let due = |start: &str, n| india().due(Within::BusinessDays(n), at(start), &kolkata);
        // Thursday 22 January 2026, noon in India; Monday the 26th is Republic Day.
        assert_eq!(due("2026-01-22T06:30:00Z", 1), at("2026-01-23T18:30:00Z"), "to the end of Friday");
        assert_eq!(due("2026-01-22T06:30:00Z", 5), at("2026-01-30T18:30:00Z"), "Fri, Tue, Wed, Thu, Fri");
        // It is Thursday in UTC and Friday in India already.
        assert_eq!(due("2026-01-22T20:00:00Z", 1), at("2026-01-27T18:30:00Z"), "Tuesday");
        // A request on a Saturday.
        assert_eq!(due("2026-01-17T06:30:00Z", 5), at("2026-01-23T18:30:00Z"));
    }

    #[test]
    fn je26_months_follow_the_calendar_and_days_do_not() {
        let rome = zone("Europe/Rome").unwrap();
        let due = |within, start: &str| india().due(within, at(start), &rome);
        assert_eq!(due(Within::Months(1), "2026-01-31T11:00:00Z"), at("2026-02-28T11:00:00Z"), "no 31 February");
        assert_eq!(due(Within::Months(1), "2028-01-31T11:00:00Z"), at("2028-02-29T11:00:00Z"), "a leap year");
        assert_eq!(due(Within::Months(1), "2026-03-20T11:00:00Z"), at("2026-04-20T10:00:00Z"), "summer time began");
        assert_eq!(due(Within::Days(45), "2026-03-01T11:00:00Z"), at("2026-04-15T11:00:00Z"));
        assert_eq!(due(Within::Hours(24), "2026-03-28T23:30:00Z"), at("2026-03-29T23:30:00Z"));
    }

    proptest! {
        #[test]
        fn a_limit_always_ends_and_longer_ones_end_later(start in 0i64..4_000_000_000_000, n in 1u32..200) {
            let rome = zone("Europe/Rome").unwrap();
            for (a, b) in [
                (Within::Hours(n), Within::Hours(n + 1)), (Within::Days(n), Within::Days(n + 1)),
                (Within::BusinessDays(n), Within::BusinessDays(n + 1)), (Within::Months(n), Within::Months(n + 1)),
            ] {
                let (x, y) = (india().due(a, Timestamp(start), &rome), india().due(b, Timestamp(start), &rome));
                prop_assert!(x.0 > start && y > x);
                prop_assert!(x.0 - start <= i64::from(a.longest_hours() + 24 * 4) * HOUR_MS, "{a}");
            }
        }
    }
}
