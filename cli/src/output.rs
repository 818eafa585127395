//! What a command prints: text for people, JSON for programs, never both.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use clap::Args;
use serde::Serialize;

use crate::exit::Failure;

/// How results are printed.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Output {
    /// Print JSON; a list is one object per line
    #[arg(long)]
    pub(crate) json: bool,
}

impl Output {
    /// Prints one result: `value` as JSON, or `text`.
    ///
    /// # Errors
    ///
    /// When standard output cannot be written.
    pub(crate) fn print(self, value: &impl Serialize, text: impl Display) -> Result<(), Failure> {
        if self.json { line(serde_json::to_string(value).map_err(io::Error::other)?) } else { line(text) }
    }
}

/// Prints one line and hands it over at once, so that a program at the other end of a pipe sees it.
///
/// # Errors
///
/// When standard output cannot be written.
pub(crate) fn line(text: impl Display) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()?;
    Ok(())
}

/// Whether people watch standard error: progress bars are drawn there.
#[must_use]
pub(crate) fn watched() -> bool {
    io::stderr().is_terminal()
}

/// Columns of text, left-aligned and two spaces apart, numbers of `right` to the right.
#[must_use]
pub(crate) fn table(rows: &[Vec<String>], right: &[usize]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let lines = rows.iter().map(|row| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if right.contains(&column) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Unix milliseconds as a date in UTC; empty for zero.
#[must_use]
pub(crate) fn date(unix_ms: u64) -> String {
    if unix_ms == 0 {
        return String::new();
    }
    let time = std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_millis(unix_ms));
    // The formatter knows no year after 9999.
    let shown = time.filter(|_| unix_ms < 253_402_300_800_000).map(humantime::format_rfc3339_seconds);
    shown.map_or_else(|| format!("{unix_ms} ms"), |date| date.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["ID", "ADDRESS"], ["1", "127.0.0.1:8081"], ["12", "x"]].map(|row| row.map(String::from).to_vec());
        assert_eq!(table(&rows, &[0]), "ID  ADDRESS\n 1  127.0.0.1:8081\n12  x");
    }

    #[test]
    fn dates_are_rfc_3339_and_never_panic() {
        assert_eq!(date(1_700_000_000_123), "2023-11-14T22:13:20Z");
        assert_eq!(date(0), "");
        assert_eq!(date(u64::MAX), format!("{} ms", u64::MAX));
    }
}
