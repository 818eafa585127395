//! The results: rounds of every contestant, medians, ratios within one round, figures to reach.

use std::fmt;

use serde::Serialize;

/// A contestant's rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Column {
    /// `fio`, `raw`, or a backend.
    pub who: String,
    /// The value of each round, in order; the same round of all contestants ran within seconds.
    pub rounds: Vec<f64>,
    /// CPU of each round, in the row's unit of CPU.
    pub cpu: Vec<f64>,
}

/// What a row is to reach.
#[derive(Clone, Copy, Debug, Serialize)]
pub enum Target {
    /// Median of the ratios to fio at least this.
    OfFioAtLeast(f64),
    /// Median of the ratios to fio at most this.
    OfFioAtMost(f64),
    /// The value at least this.
    AtLeast(f64),
    /// The value at most this.
    AtMost(f64),
}

/// One thing that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What.
    pub name: String,
    /// Of the values.
    pub unit: &'static str,
    /// Of the CPU figures; empty when there are none.
    pub cpu_unit: &'static str,
    /// Everybody who did it.
    pub columns: Vec<Column>,
    /// What the engine is to reach.
    pub target: Option<Target>,
}

/// Middle, smallest and largest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "as said above")]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

/// `None` of nothing.
#[must_use]
pub fn spread(values: &[f64]) -> Option<Spread> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (min, max) = (*sorted.first()?, *sorted.last()?);
    let upper = sorted.len() / 2;
    let lower = (sorted.len() - 1) / 2;
    Some(Spread { median: f64::midpoint(sorted[lower], sorted[upper]), min, max })
}

impl Row {
    /// A row without rounds.
    #[must_use]
    pub fn new(name: &str, unit: &'static str, cpu_unit: &'static str, target: Option<Target>) -> Self {
        Self { name: name.to_owned(), unit, cpu_unit, columns: Vec::new(), target }
    }

    /// Adds a round of a contestant.
    pub fn add(&mut self, who: &str, value: f64, cpu: Option<f64>) {
        let at = self.columns.iter().position(|column| column.who == who).unwrap_or_else(|| {
            self.columns.push(Column { who: who.to_owned(), rounds: Vec::new(), cpu: Vec::new() });
            self.columns.len() - 1
        });
        self.columns[at].rounds.push(value);
        self.columns[at].cpu.extend(cpu);
    }

    /// The ratio to another contestant, round by round.
    #[must_use]
    pub fn ratio(&self, column: &Column, to: &str) -> Option<Spread> {
        let other = self.columns.iter().find(|other| other.who == to && other.who != column.who)?;
        let ratios: Vec<f64> =
            column.rounds.iter().zip(&other.rounds).filter(|(_, other)| **other > 0.0).map(|(a, b)| a / b).collect();
        spread(&ratios)
    }

    /// Whether a contestant reaches the target; `None` when there is none or nothing to compare with.
    #[must_use]
    pub fn reached(&self, column: &Column) -> Option<bool> {
        if is_rival(&column.who) {
            return None;
        }
        let of_fio = || self.ratio(column, "fio").map(|ratio| ratio.median);
        let value = || spread(&column.rounds).map(|spread| spread.median);
        Some(match self.target? {
            Target::OfFioAtLeast(least) => of_fio()? >= least,
            Target::OfFioAtMost(most) => of_fio()? <= most,
            Target::AtLeast(least) => value()? >= least,
            Target::AtMost(most) => value()? <= most,
        })
    }
}

/// Whether it is something that the engine is compared with.
#[must_use]
pub fn is_rival(who: &str) -> bool {
    matches!(who, "fio" | "raw")
}

/// Everything.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Where, and on what.
    pub about: Vec<String>,
    /// What was measured.
    pub rows: Vec<Row>,
    /// Counts, one line each.
    pub counts: Vec<String>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OfFioAtLeast(least) => write!(f, "at least {least} of fio"),
            Self::OfFioAtMost(most) => write!(f, "at most {most} of fio"),
            Self::AtLeast(least) => write!(f, "at least {}", figure(*least)),
            Self::AtMost(most) => write!(f, "at most {}", figure(*most)),
        }
    }
}

/// Three significant digits or the whole number.
#[must_use]
pub fn figure(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value if value >= 0.1 => format!("{value:.2}"),
        value => format!("{value:.4}"),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.about {
            writeln!(f, "{line}")?;
        }
        for row in &self.rows {
            let target = row.target.map(|target| format!(", to reach: {target}")).unwrap_or_default();
            writeln!(f, "\n{} ({}{target})", row.name, row.unit)?;
            writeln!(
                f,
                "  {:<13}{:>9}  {:<19}{:>7}  {:<13}{:>7}  {}",
                "", "median", "min-max", "/fio", "min-max", "/raw", row.cpu_unit
            )?;
            for column in &row.columns {
                writeln!(f, "{}", Line { row, column })?;
            }
        }
        if !self.counts.is_empty() {
            writeln!(f)?;
        }
        self.counts.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

struct Line<'a> {
    row: &'a Row,
    column: &'a Column,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(value) = spread(&self.column.rounds) else { return Ok(()) };
        let range = format!("{}-{}", figure(value.min), figure(value.max));
        write!(f, "  {:<13}{:>9}  {range:<19}", self.column.who, figure(value.median))?;
        match self.row.ratio(self.column, "fio") {
            Some(ratio) => {
                let range = format!("{:.2}-{:.2}", ratio.min, ratio.max);
                write!(f, "{:>7.2}  {range:<13}", ratio.median)?;
            }
            None => write!(f, "{:>7}  {:<13}", "", "")?,
        }
        match self.row.ratio(self.column, "raw") {
            Some(ratio) => write!(f, "{:>7.2}", ratio.median)?,
            None => write!(f, "{:>7}", "")?,
        }
        if let Some(cpu) = spread(&self.column.cpu) {
            write!(f, "  {:.3}", cpu.median)?;
        }
        match self.row.reached(self.column) {
            Some(true) => write!(f, "  reached"),
            Some(false) => write!(f, "  MISSED"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(target: Target) -> Row {
        let mut row = Row::new("read", "MiB/s", "CPU s/GiB", Some(target));
        for (fio, store) in [(100.0, 90.0), (1000.0, 800.0), (10.0, 20.0)] {
            row.add("fio", fio, None);
            row.add("glommio", store, Some(0.5));
        }
        row
    }

    #[test]
    fn a_ratio_is_taken_within_a_round_and_then_the_median() {
        let row = row(Target::OfFioAtLeast(0.9));
        let ratio = row.ratio(&row.columns[1], "fio").unwrap();
        assert_eq!((ratio.min, ratio.median, ratio.max), (0.8, 0.9, 2.0));
        assert_eq!(row.reached(&row.columns[1]), Some(true));
        assert_eq!(row.reached(&row.columns[0]), None, "fio is not a contestant of the engine");
        assert!(row.ratio(&row.columns[1], "raw").is_none());
    }

    #[test]
    fn a_missed_target_says_so() {
        for target in
            [Target::OfFioAtLeast(0.91), Target::OfFioAtMost(0.89), Target::AtLeast(91.0), Target::AtMost(89.0)]
        {
            let row = row(target);
            assert_eq!(row.reached(&row.columns[1]), Some(false), "{target}");
            let report = Report { rows: vec![row], ..Report::default() };
            assert!(report.to_string().contains("MISSED"), "{report}");
        }
    }

    #[test]
    fn the_median_of_an_even_number_is_between() {
        assert_eq!(spread(&[4.0, 1.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(spread(&[]), None);
    }
}
