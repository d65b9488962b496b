//! What a run found: rows with their floor, their bound and whether it is met.

use serde_json::{Value as Json, json};

use super::stats::{Bound, Figure, number};

/// One line of the table.
#[derive(Debug, Clone)]
pub struct Row {
    pub measure: String,
    /// What was measured, in `unit`.
    pub ours: Figure,
    pub unit: &'static str,
    /// What it is compared with: its name and figure.
    pub floor: Option<(&'static str, Figure)>,
    /// Ours by the floor, pair by pair.
    pub ratio: Option<Figure>,
    /// What must be reached, by the ratio where there is one and by the figure otherwise.
    pub bound: Option<Bound>,
    pub aim: Option<Bound>,
}

impl Row {
    /// A figure without a floor.
    pub fn plain(measure: impl Into<String>, ours: Figure, unit: &'static str) -> Row {
        Row { measure: measure.into(), ours, unit, floor: None, ratio: None, bound: None, aim: None }
    }

    /// Ours and floor measured in pairs of windows.
    pub fn against(
        measure: impl Into<String>,
        unit: &'static str,
        floor: &'static str,
        pairs: &[(f64, f64)],
    ) -> Option<Row> {
        let ours = Figure::of(pairs.iter().map(|p| p.0))?;
        let under = Figure::of(pairs.iter().map(|p| p.1))?;
        let ratio = Figure::of(pairs.iter().filter(|p| p.1 > 0.0).map(|p| p.0 / p.1));
        Some(Row { floor: Some((floor, under)), ratio, ..Row::plain(measure, ours, unit) })
    }

    pub fn bound(mut self, bound: Bound) -> Row {
        self.bound = Some(bound);
        self
    }

    pub fn aim(mut self, aim: Bound) -> Row {
        self.aim = Some(aim);
        self
    }

    fn judged(&self) -> f64 {
        self.ratio.unwrap_or(self.ours).median
    }

    /// `None` where nothing is asked.
    pub fn passes(&self) -> Option<bool> {
        self.bound.map(|bound| bound.holds(self.judged()))
    }

    fn bound_text(&self) -> String {
        let unit = if self.ratio.is_some() { "" } else { self.unit };
        let text = |bound: Option<Bound>| bound.map_or(String::new(), |b| b.text(unit));
        match (self.bound, self.aim) {
            (Some(_), Some(_)) => format!("{} (aim {})", text(self.bound), text(self.aim)),
            (bound, _) => text(bound),
        }
    }

    pub fn json(&self) -> Json {
        json!({
            "measure": self.measure,
            "unit": self.unit,
            "ours": self.ours.json(),
            "floor": self.floor.map(|(name, figure)| json!({ "name": name, "figure": figure.json() })),
            "ratio": self.ratio.map(|r| r.json()),
            "bound": self.bound_text(),
            "pass": self.passes(),
            "aim_met": self.aim.map(|aim| aim.holds(self.judged())),
        })
    }

    /// Cells of the human table; see [`HEADS`].
    pub fn cells(&self) -> Vec<String> {
        let span = |f: &Figure, unit: &str| match f.low == f.high {
            true => number(f.median, unit),
            false => format!("{} [{} .. {}]", number(f.median, unit), number(f.low, ""), number(f.high, "")),
        };
        let verdict = match (self.passes(), self.aim.map(|aim| aim.holds(self.judged()))) {
            (None, _) => "",
            (Some(false), _) => "MISS",
            (Some(true), Some(true)) => "pass, aim met",
            (Some(true), _) => "pass",
        };
        vec![
            self.measure.clone(),
            span(&self.ours, self.unit),
            self.floor.map_or(String::new(), |(name, f)| format!("{name}: {}", number(f.median, self.unit))),
            self.ratio.map_or(String::new(), |r| span(&r, "")),
            self.bound_text(),
            verdict.to_owned(),
        ]
    }
}

/// Headings of [`Row::cells`].
pub const HEADS: [&str; 6] = ["MEASURE", "OURS [low .. high]", "FLOOR", "RATIO [low .. high]", "BOUND", "RESULT"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_judged_by_its_ratio_or_by_its_figure() {
        let pairs = [(70.0, 100.0), (90.0, 100.0), (80.0, 100.0)];
        let row = Row::against("get", "calls/s", "echo", &pairs).unwrap().bound(Bound::AtLeast(0.7));
        assert_eq!(row.ratio, Some(Figure { median: 0.8, low: 0.7, high: 0.9 }));
        assert_eq!(row.passes(), Some(true));
        assert_eq!(row.clone().bound(Bound::AtLeast(0.81)).passes(), Some(false));
        assert_eq!(row.aim(Bound::AtLeast(0.8)).cells()[5], "pass, aim met");
        let plain = Row::plain("memory", Figure::one(25.0), "MB").bound(Bound::AtMost(20.0));
        assert_eq!((plain.passes(), plain.cells()[5].as_str()), (Some(false), "MISS"));
        assert_eq!(Row::plain("x", Figure::one(1.0), "s").passes(), None);
    }
}
