//! What a command prints: tables for people, JSON for programs, progress while it runs.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::exit::{Failure, Outcome};

/// Prints text to stdout, as it is.
pub(crate) fn print(text: &str) -> Outcome {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::stdout(&error))
}

/// Prints one line to stdout.
pub(crate) fn print_line(line: &str) -> Outcome {
    print(&format!("{line}\n"))
}

/// Prints one JSON document to stdout.
pub(crate) fn print_json(value: &impl Serialize) -> Outcome {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::internal(format_args!("cannot encode the answer: {error}")))?;
    print_line(&text)
}

/// Says something on stderr that is neither an error nor data. A stderr that nobody reads is no reason to stop.
pub(crate) fn notice(message: &str) {
    let _ = writeln!(io::stderr().lock(), "ringmain: {message}");
}

/// Colours, if the stream is a terminal and `NO_COLOR` is not set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style {
    colour: bool,
}

impl Style {
    /// For what goes to stdout.
    pub(crate) fn stdout() -> Self {
        Self { colour: colour_wanted() && io::stdout().is_terminal() }
    }

    /// For what goes to stderr.
    pub(crate) fn stderr() -> Self {
        Self { colour: colour_wanted() && io::stderr().is_terminal() }
    }

    /// No colours.
    #[cfg(test)]
    pub(crate) const fn plain() -> Self {
        Self { colour: false }
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    pub(crate) fn green(self, text: &str) -> String {
        self.paint("32", text)
    }

    pub(crate) fn red(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    pub(crate) fn cyan(self, text: &str) -> String {
        self.paint("36", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }
}

fn colour_wanted() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Columns of text. Numbers are aligned to the right.
#[derive(Debug)]
pub(crate) struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(header: &[&str]) -> Self {
        Self { header: header.iter().map(ToString::to_string).collect(), rows: Vec::new() }
    }

    /// Adds a row with as many cells as the header has.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.header.len());
        self.rows.push(cells);
    }

    /// The table, with a line break behind every line.
    pub(crate) fn render(&self, style: Style) -> String {
        let columns = self.header.len();
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].as_str());
            let header = self.header[column].as_str();
            cells.chain([header]).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let right: Vec<bool> =
            (0..columns).map(|c| self.rows.iter().all(|row| is_number(&row[c]))).collect();
        let line = |cells: &[String]| {
            let mut text = String::new();
            for (column, cell) in cells.iter().enumerate() {
                let padding = " ".repeat(widths[column] - cell.chars().count());
                let cell = if right[column] { padding + cell } else { cell.clone() + &padding };
                text.push_str(if column == 0 { "" } else { "  " });
                text.push_str(&cell);
            }
            text.trim_end().to_string()
        };
        let mut text = style.bold(&line(&self.header)) + "\n";
        for row in &self.rows {
            text.push_str(&line(row));
            text.push('\n');
        }
        text
    }
}

fn is_number(cell: &str) -> bool {
    cell == "-" || cell.starts_with(|c: char| c.is_ascii_digit())
}

/// Pairs of a name and a value, one a line.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    pairs: Vec<(String, String)>,
}

impl Facts {
    pub(crate) fn add(&mut self, name: &str, value: impl ToString) {
        self.pairs.push((name.to_string(), value.to_string()));
    }

    pub(crate) fn render(&self, style: Style) -> String {
        let width = self.pairs.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        let mut text = String::new();
        for (name, value) in &self.pairs {
            let padding = " ".repeat(width - name.chars().count());
            text.push_str(&format!("{}{padding}  {value}\n", style.dim(name)));
        }
        text
    }
}

/// One line on stderr that is written over and over while something takes time. Where stderr is not a terminal only
/// the last state of each stage is printed.
#[derive(Debug)]
pub(crate) struct Progress {
    terminal: bool,
    shown: Option<Instant>,
    style: Style,
}

impl Progress {
    const INTERVAL: Duration = Duration::from_millis(100);

    pub(crate) fn new() -> Self {
        Self { terminal: io::stderr().is_terminal(), shown: None, style: Style::stderr() }
    }

    /// Shows the state, at most ten times a second.
    pub(crate) fn show(&mut self, state: impl FnOnce() -> String) {
        if self.terminal && self.shown.is_none_or(|shown| shown.elapsed() >= Self::INTERVAL) {
            self.shown = Some(Instant::now());
            let _ = write!(io::stderr().lock(), "\r\x1b[K{}", self.style.dim(&state()));
        }
    }

    /// Ends a stage with this line.
    pub(crate) fn finish(&mut self, line: &str) {
        self.clear();
        let _ = writeln!(io::stderr().lock(), "{}", self.style.dim(line));
    }

    /// Removes the line.
    pub(crate) fn clear(&mut self) {
        if self.shown.take().is_some() {
            let _ = write!(io::stderr().lock(), "\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A bar of `width` characters, filled by this share.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)] // 0 to width
pub(crate) fn bar(share: f64, width: usize) -> String {
    let filled = (share.clamp(0.0, 1.0) * width as f64).round() as usize;
    format!("[{}{}]", "#".repeat(filled), "-".repeat(width - filled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_on_the_right() {
        let mut table = Table::new(&["NAME", "DEPTH"]);
        table.row(vec!["orders".into(), "7".into()]);
        table.row(vec!["a".into(), "1,024".into()]);
        assert_eq!(table.render(Style::plain()), "NAME    DEPTH\norders      7\na       1,024\n");
    }

    #[test]
    fn a_bar_never_overflows() {
        assert_eq!(bar(0.5, 4), "[##--]");
        assert_eq!(bar(7.0, 4), "[####]");
        assert_eq!(bar(-1.0, 4), "[----]");
    }
}
