//! A table of plain text, and numbers as people read them.

use std::fmt;
use std::time::Duration;

/// The head of a column, and the side that its cells keep to.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    title: &'static str,
    right: bool,
}

impl Column {
    /// A column of words.
    pub fn left(title: &'static str) -> Column {
        Column { title, right: false }
    }

    /// A column of numbers.
    pub fn right(title: &'static str) -> Column {
        Column { title, right: true }
    }
}

/// A table with a line of titles, two spaces between its columns, and nothing at the ends of lines.
#[derive(Clone, Debug)]
pub struct Table<const N: usize> {
    columns: [Column; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// A table without rows.
    pub fn new(columns: [Column; N]) -> Table<N> {
        Table { columns, rows: Vec::new() }
    }

    /// Adds a row at the bottom.
    pub fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let titles = self.columns.map(|column| column.title.to_owned());
        let lines = || std::iter::once(&titles).chain(&self.rows);
        let widths: [usize; N] =
            std::array::from_fn(|i| lines().map(|cells| cells[i].chars().count()).max().unwrap_or(0));
        for cells in lines() {
            let mut line = String::new();
            for ((cell, column), width) in cells.iter().zip(&self.columns).zip(widths) {
                line.push_str(&if column.right {
                    format!("{cell:>width$}  ")
                } else {
                    format!("{cell:<width$}  ")
                });
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A number with a comma between thousands.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// An amount of bytes in the largest decimal unit that it reaches, to three digits: `1.50 GB`.
pub fn bytes(amount: u64) -> String {
    if amount < 1_000 {
        return format!("{amount} B");
    }
    let mut scaled = amount as f64;
    let mut unit = "B";
    for larger in ["kB", "MB", "GB", "TB", "PB", "EB"] {
        // What would be rounded up to 1000 belongs to the next unit.
        if scaled < 999.5 {
            break;
        }
        scaled /= 1_000.0;
        unit = larger;
    }
    let decimals = if scaled < 9.995 { 2 } else { usize::from(scaled < 99.95) };
    format!("{scaled:.decimals$} {unit}")
}

/// A span of time in its one to three largest units: `20 ms`, `1.5 s`, `1m 01s`, `1d 01h 01m`.
pub fn span(time: Duration) -> String {
    let (ms, seconds) = (time.as_millis(), time.as_secs());
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match seconds {
        _ if ms < 1_000 => format!("{ms} ms"),
        0..60 => format!("{}.{} s", seconds, ms % 1_000 / 100),
        60..3_600 => format!("{minutes}m {:02}s", seconds % 60),
        3_600..86_400 => format!("{hours}h {:02}m", minutes % 60),
        _ => format!("{}d {:02}h {:02}m", count(days), hours % 24, minutes % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cells keep to their side, the widest cell or title gives the width, and lines have no tail.
    #[test]
    fn a_table_lines_up() {
        let mut table = Table::new([Column::right("n"), Column::left("name"), Column::left("x")]);
        table.row(["1,000".into(), "a".into(), "".into()]);
        table.row(["2".into(), "größer".into(), "y".into()]);
        assert_eq!(table.to_string(), "    n  name    x\n1,000  a\n    2  größer  y\n");
    }

    /// Thousands are grouped from the right.
    #[test]
    fn counts_are_grouped() {
        for (number, text) in
            [(0, "0"), (999, "999"), (1_000, "1,000"), (u64::MAX, "18,446,744,073,709,551,615")]
        {
            assert_eq!(count(number), text);
        }
    }

    /// Amounts have three digits, also where rounding would make four of them.
    #[test]
    fn bytes_have_three_digits() {
        for (amount, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.00 kB"),
            (9_994, "9.99 kB"),
            (9_996, "10.0 kB"),
            (99_960, "100 kB"),
            (999_499, "999 kB"),
            (999_500, "1.00 MB"),
            (1_500_000_000, "1.50 GB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(bytes(amount), text, "{amount}");
        }
    }

    /// A span shows its largest units, and each bound belongs to the larger one.
    #[test]
    fn spans_show_their_largest_units() {
        for (ms, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1_000, "1.0 s"),
            (59_999, "59.9 s"),
            (60_000, "1m 00s"),
            (3_600_000, "1h 00m"),
            (90_061_000, "1d 01h 01m"),
        ] {
            assert_eq!(span(Duration::from_millis(ms)), text);
        }
    }
}
