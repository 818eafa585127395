//! The table as a picture: one group of bars for each row, lengths relative to the row's largest.

use std::fmt::Write as _;

use super::table::{Report, figure, is_rival, spread};

const BAR: u32 = 14;
const GAP: u32 = 10;
const TITLE: u32 = 20;
const NAMES: u32 = 110;
const LENGTH: f64 = 420.0;
const LABELS: u32 = 540;
const WIDTH: u32 = 720;

/// An SVG image without scripts or fonts of its own.
#[must_use]
pub fn svg(report: &Report) -> String {
    let bars: usize = report.rows.iter().map(|row| row.columns.len()).sum();
    let height =
        u32::try_from(report.rows.len()).unwrap_or(0) * (TITLE + GAP) + u32::try_from(bars).unwrap_or(0) * BAR + GAP;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let mut y = GAP;
    for row in &report.rows {
        let values: Vec<f64> =
            row.columns.iter().filter_map(|column| spread(&column.rounds)).map(|value| value.max).collect();
        let largest = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        text(&mut out, GAP, y + 12, &format!("{} ({})", row.name, row.unit), true);
        y += TITLE;
        for column in &row.columns {
            let Some(value) = spread(&column.rounds) else { continue };
            let colour = if is_rival(&column.who) { "#9aa5b1" } else { "#2f6db5" };
            let length = value.median / largest * LENGTH;
            text(&mut out, GAP, y + 10, &column.who, false);
            let _ = writeln!(
                out,
                "<rect x=\"{NAMES}\" y=\"{y}\" width=\"{length:.1}\" height=\"{}\" fill=\"{colour}\"/>",
                BAR - 3
            );
            // From the smallest round to the largest.
            let (from, to) = (value.min / largest * LENGTH, value.max / largest * LENGTH);
            let ends = [from, to].map(|end| f64::from(NAMES) + end);
            let middle = y + BAR / 2 - 1;
            let _ = writeln!(
                out,
                "<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle}\" y2=\"{middle}\" stroke=\"black\"/>",
                ends[0], ends[1],
            );
            let ratio = row.ratio(column, "fio").map(|ratio| format!(", {:.2} of fio", ratio.median));
            let label = format!("{}{}", figure(value.median), ratio.unwrap_or_default());
            text(&mut out, LABELS, y + 10, &label, false);
            y += BAR;
        }
        y += GAP;
    }
    out.push_str("</svg>\n");
    out
}

fn text(out: &mut String, x: u32, y: u32, words: &str, bold: bool) {
    let weight = if bold { " font-weight=\"bold\"" } else { "" };
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(out, "<text x=\"{x}\" y=\"{y}\"{weight}>{words}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::table::Row;

    #[test]
    fn every_contestant_has_a_bar_as_long_as_its_median() {
        let mut row = Row::new("reads < writes", "MiB/s", "", None);
        row.add("fio", 200.0, None);
        row.add("glommio", 100.0, None);
        let svg = svg(&Report { rows: vec![row], ..Report::default() });
        assert!(svg.contains("width=\"420.0\"") && svg.contains("width=\"210.0\""), "{svg}");
        assert!(svg.contains("reads &lt; writes") && svg.contains("0.50 of fio"), "{svg}");
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    }
}
