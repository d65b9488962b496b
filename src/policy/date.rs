//! A calendar day of a value.

use std::fmt;

/// A day that exists, 0001-01-01 to 9999-12-31, proleptic Gregorian.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Date {
    year: u16,
    month: u8,
    day: u8,
}

impl Date {
    /// The day, if there is such a day.
    pub fn new(year: i32, month: i32, day: i32) -> Option<Date> {
        let year = i16::try_from(year).ok().filter(|y| (1..=9999).contains(y))?;
        let (month, day) = (i8::try_from(month).ok()?, i8::try_from(day).ok()?);
        jiff::civil::Date::new(year, month, day).ok()?;
        Some(Date { year: year as u16, month: month as u8, day: day as u8 })
    }
    /// Reads `YYYY-MM-DD` and no other form.
    pub fn parse(text: &str) -> Option<Date> {
        let b = text.as_bytes();
        if b.len() != 10 || b[4] != b'-' || b[7] != b'-' {
            return None;
        }
        let part = |range: std::ops::Range<usize>| -> Option<i32> {
            let digits = &b[range];
            digits.iter().all(u8::is_ascii_digit).then(|| digits.iter().fold(0, |n, d| n * 10 + i32::from(d - b'0')))
        };
        Date::new(part(0..4)?, part(5..7)?, part(8..10)?)
    }
    /// Whether somebody born on this day is `limit` years old on `today`. Who was born on 29 February gets older on
    /// 1 March where there is no such day.
    pub fn is_of_age(self, limit: u32, today: Date) -> bool {
        let years = today.year() - self.year();
        let had_birthday = (today.month, today.day) >= (self.month, self.day);
        years - i32::from(!had_birthday) >= limit as i32
    }
    pub fn year(self) -> i32 {
        self.year.into()
    }
    pub fn month(self) -> i32 {
        self.month.into()
    }
    pub fn day(self) -> i32 {
        self.day.into()
    }
}
impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}
impl fmt::Debug for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Date(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jw19_and_je22_an_age_is_reached_on_the_birthday() {
        let day = |text| Date::parse(text).unwrap();
        for (born, today, limit, enough) in [
            ("2013-03-22", "2026-03-21", 13, false),
            ("2013-03-22", "2026-03-22", 13, true),
            ("2012-02-29", "2025-02-28", 13, false),
            ("2012-02-29", "2025-03-01", 13, true),
            ("2008-02-29", "2024-02-29", 16, true),
            ("2026-01-01", "2025-12-31", 1, false),
        ] {
            assert_eq!(day(born).is_of_age(limit, day(today)), enough, "{born} on {today}");
        }
    }
}
