//! Texts that come in from people and go out to terminals.

use crate::clock::Timestamp;
use std::time::Duration;

/// The text with control characters (line ends, escapes, bidirectional overrides) shown instead of passed on: what a
/// server stores must not be able to steer the terminal of whoever looks at it.
pub fn printable(text: &str) -> String {
    let steers = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if steers(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// `250ms`, `30s`, `5m`, `2h`, `7d`; a number without a unit is refused, because nobody knows what it means.
pub fn duration(text: &str) -> Result<Duration, String> {
    const RULE: &str = "a whole number with a unit, such as 250ms, 30s, 5m, 2h or 7d";
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or(RULE)?;
    let number: u64 = text[..split].parse().map_err(|_| RULE)?;
    let ms = match &text[split..] {
        "ms" => Some(number),
        "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        "d" => number.checked_mul(86_400_000),
        _ => None,
    };
    // 36,500 days, the longest time the API knows.
    ms.filter(|ms| *ms <= 3_153_600_000_000).map(Duration::from_millis).ok_or_else(|| RULE.to_string())
}

/// A moment as people give it: RFC 3339, a day (its beginning in UTC), or `+30d` from now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    At(Timestamp),
    In(Duration),
}

impl Moment {
    /// For clap.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(rest) = text.strip_prefix('+') {
            return duration(rest).map(Moment::In);
        }
        if let Ok(day) = text.parse::<jiff::civil::Date>()
            && text.len() == 10
        {
            let start = day.to_zoned(jiff::tz::TimeZone::UTC).map_err(|e| e.to_string())?;
            return Ok(Moment::At(Timestamp(start.timestamp().as_millisecond())));
        }
        let time = text.parse::<jiff::Timestamp>();
        time.map(|t| Moment::At(Timestamp(t.as_millisecond())))
            .map_err(|_| "a time such as 2026-11-21T08:00:00Z, a day such as 2026-11-21, or +30d".to_string())
    }

    /// The time it is, counted from `now`.
    pub fn resolve(self, now: Timestamp) -> Timestamp {
        match self {
            Moment::At(time) => time,
            Moment::In(span) => now.plus_ms(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_the_terminal() {
        assert_eq!(printable("Zoë 山田"), "Zoë 山田");
        assert_eq!(printable("a\u{1b}[31m\nb\u{202e}"), "a\\u{1b}[31m\\nb\\u{202e}");
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("36500d"), Ok(Duration::from_secs(36_500 * 86_400)));
        for bad in ["", "30", "s", "1.5h", "-1s", "36501d", "99999999999999999999d", "1w"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn moments_are_times_days_or_spans() {
        let day = Moment::parse("1970-01-02").unwrap();
        assert_eq!(day, Moment::At(Timestamp(86_400_000)));
        assert_eq!(Moment::parse("1970-01-01T01:00:00+01:00"), Ok(Moment::At(Timestamp(0))));
        assert_eq!(Moment::parse("+1d").unwrap().resolve(Timestamp(5)), Timestamp(86_400_005));
        assert!(Moment::parse("tomorrow").is_err() && Moment::parse("2026-02-30").is_err());
    }
}
