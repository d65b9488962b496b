//! Medians with their spread, percentiles, and whether a bound is met. Pure.

use serde_json::{Value as Json, json};

/// A figure over several windows: the median, and the lowest and highest of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Figure {
    /// Of one value.
    pub fn one(value: f64) -> Self {
        Figure { median: value, low: value, high: value }
    }

    /// Of the windows' values; `None` without any.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = match values.len() {
            0 => return None,
            n if n % 2 == 1 => values[middle],
            _ => (values[middle - 1] + values[middle]) / 2.0,
        };
        Some(Figure { median, low: values[0], high: *values.last()? })
    }

    pub fn json(&self) -> Json {
        json!({ "median": round(self.median), "low": round(self.low), "high": round(self.high) })
    }
}

/// Four significant digits: more would be noise.
fn round(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let scale = 10f64.powi(3 - value.abs().log10().floor() as i32);
    (value * scale).round() / scale
}

/// The value below which a share of all lies; sorts. 0 without values.
pub fn percentile(values: &mut [u32], share: f64) -> u32 {
    values.sort_unstable();
    let at = (values.len() as f64 * share).ceil() as usize;
    values.get(at.saturating_sub(1)).or(values.last()).copied().unwrap_or(0)
}

/// What a figure must reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    pub fn holds(self, value: f64) -> bool {
        match self {
            Bound::AtLeast(bound) => value >= bound,
            Bound::AtMost(bound) => value <= bound,
        }
    }
    pub fn text(self, unit: &str) -> String {
        match self {
            Bound::AtLeast(bound) => format!(">= {}", number(bound, unit)),
            Bound::AtMost(bound) => format!("<= {}", number(bound, unit)),
        }
    }
}

/// A number with its unit, short.
pub fn number(value: f64, unit: &str) -> String {
    let text = match value.abs() {
        v if v >= 10_000.0 => thousands(value.round() as i64),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    };
    if unit.is_empty() { text } else { format!("{text} {unit}") }
}

fn thousands(value: i64) -> String {
    let digits = value.abs().to_string();
    let mut out = String::from(if value < 0 { "-" } else { "" });
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_percentiles_and_bounds() {
        assert_eq!(Figure::of([]), None);
        assert_eq!(Figure::of([3.0, 1.0, 2.0]), Some(Figure { median: 2.0, low: 1.0, high: 3.0 }));
        assert_eq!(Figure::of([4.0, 1.0]).map(|f| f.median), Some(2.5));
        let mut values: Vec<u32> = (1..=100).rev().collect();
        assert_eq!((percentile(&mut values, 0.5), percentile(&mut values, 0.99)), (50, 99));
        assert_eq!((percentile(&mut [], 0.5), percentile(&mut [7], 0.99)), (0, 7));
        assert!(Bound::AtLeast(0.7).holds(0.7) && !Bound::AtLeast(0.7).holds(0.69));
        assert!(Bound::AtMost(1.5).holds(1.5) && !Bound::AtMost(1.5).holds(1.51));
        assert_eq!(number(1_234_567.0, "calls/s"), "1,234,567 calls/s");
        assert_eq!((number(0.7, ""), round(123_456.0)), ("0.70".into(), 123_500.0));
    }
}
