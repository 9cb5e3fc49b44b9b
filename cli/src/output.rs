//! Standard output: what a command answers, for people or as JSON, and nothing else.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};

use image_format::is_format;
use serde::Serialize;

use crate::error::CommandError;
use crate::exit::Exit;

/// How much is said beside the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// The answer alone, in its shortest form; warnings and errors are still said.
    Quiet,
    /// Progress and notes.
    Normal,
    /// Everything.
    Verbose,
}

/// An answer. Its JSON form is part of the program's interface; its human form is not.
pub trait Report: Serialize {
    /// For a person: lines, each ended.
    fn human(&self, out: &mut dyn fmt::Write) -> fmt::Result;

    /// The same with `-v`: everything.
    fn detailed(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        self.human(out)
    }

    /// With `-q`: the one line a script wants, or nothing.
    fn brief(&self) -> Option<String> {
        None
    }
}

/// Whether a command answers in JSON.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Format {
    /// Print the answer as one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Where answers go.
#[derive(Debug)]
pub struct Output {
    verbosity: Verbosity,
}

impl Output {
    /// To standard output.
    pub fn new(verbosity: Verbosity) -> Self {
        Self { verbosity }
    }

    /// How much is to be said.
    pub fn verbosity(&self) -> Verbosity {
        self.verbosity
    }

    /// Prints an answer.
    ///
    /// What comes out of images and registries may hold anything: in the human form, control characters are shown instead
    /// of being obeyed by the terminal.
    pub fn print(&self, format: Format, report: &impl Report) -> Result<(), CommandError> {
        let text = if format.json {
            let mut text = serde_json::to_string_pretty(report)?;
            text.push('\n');
            text
        } else if self.verbosity == Verbosity::Quiet {
            report.brief().map(|line| line + "\n").map_or_else(String::new, |text| visible(&text))
        } else {
            let mut text = String::new();
            let told = match self.verbosity {
                Verbosity::Verbose => report.detailed(&mut text),
                Verbosity::Quiet | Verbosity::Normal => report.human(&mut text),
            };
            told.map_err(io::Error::other)?;
            visible(&text)
        };
        self.write(text.as_bytes())
    }

    /// Prints bytes as they are.
    pub fn write(&self, bytes: &[u8]) -> Result<(), CommandError> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => CommandError::new(Exit::BrokenPipe, error),
            _ => CommandError::new(Exit::Failure, error).context("standard output cannot be written"),
        })
    }
}

/// A text with its control characters escaped, line ends and tabs excepted.
pub fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if (c.is_control() && !matches!(c, '\n' | '\t')) || is_format(c) {
            let _ = write!(shown, "{}", c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// A count of bytes as people say it: `512 B`, `3.4 MiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `1 blob`, `2 blobs`.
pub fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// Columns that are as wide as their widest cell.
pub fn table(out: &mut dyn fmt::Write, head: &[&str], rows: &[Vec<String>]) -> fmt::Result {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(head.get(column).map(|cell| cell.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(out, "{}", padded.join("   ").trim_end())
    };
    line(&mut head.iter().copied())?;
    rows.iter().try_for_each(|row| line(&mut row.iter().map(String::as_str)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        let shown: Vec<_> = [0, 1023, 1024, 1536, 1 << 20, (1 << 30) - 1, u64::MAX].map(size).into();
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "1.0 GiB", "16384.0 PiB"]);
    }

    #[test]
    fn terminals_are_not_driven_by_images() {
        assert_eq!(visible("a\x1b[31mb\n\u{202e}c"), "a\\u{1b}[31mb\n\\u{202e}c");
    }

    #[test]
    fn columns_line_up() {
        let mut text = String::new();
        table(&mut text, &["TAG", "EPOCH"], &[vec!["epoch-4".into(), "4".into()]]).unwrap();
        assert_eq!(text, "TAG       EPOCH\nepoch-4   4\n");
    }
}
