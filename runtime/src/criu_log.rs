//! What CRIU's log says about a failure: its error lines, few and short enough for a message.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use image_format::one_line;

/// How much is read of the log's beginning, and as much of its end. A CRIU that spins on a broken dump writes gigabytes in
/// between.
const READ: u64 = 512 << 10;
/// The most error lines that are kept, half of them the first ones (the cause), half the last ones.
const ERRORS: usize = 16;
/// The most warnings that are kept where there are no errors.
const WARNINGS: usize = 4;
/// What CRIU complains of and then does without: it asks for more open files than the system has, and takes what there is.
const HARMLESS: [&str; 1] = ["RLIMIT_NOFILE"];
/// The longest line, in bytes.
const LONGEST_LINE: usize = 300;

/// The error lines of the log at `path`; none when there is no log.
fn error_lines(path: &Path) -> io::Result<Vec<String>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    let mut bytes = Vec::new();
    (&mut file).take(READ).read_to_end(&mut bytes)?;
    if length > READ {
        // A line that is cut in two is shown as two.
        bytes.push(b'\n');
        file.seek(SeekFrom::Start(length.saturating_sub(READ).max(READ)))?;
        file.take(READ).read_to_end(&mut bytes)?;
    }
    Ok(select(&String::from_utf8_lossy(&bytes)))
}

/// CRIU writes `(00.123456) Error (criu/file.c:12): words` and `Warn  (...)`; after a fork the pid stands in between,
/// as in `(00.123456)     12: Error (...)`. Hooks speak in the same form.
fn select(log: &str) -> Vec<String> {
    let told = |line: &&str| !HARMLESS.iter().any(|words| line.contains(words));
    let shown = |line: &str| one_line(line, LONGEST_LINE);
    let kept = |word: &str| log.lines().filter(|line| line.contains(word)).filter(told).map(shown).collect::<Vec<_>>();
    let mut errors = kept("Error (");
    if errors.is_empty() {
        let mut warnings = kept("Warn  (");
        warnings.drain(..warnings.len().saturating_sub(WARNINGS));
        return warnings;
    }
    if errors.len() > ERRORS {
        errors.drain(ERRORS / 2..errors.len() - ERRORS / 2);
    }
    errors
}

/// CRIU's log of a restore.
pub const RESTORE_LOG: &str = "restore.log";

/// CRIU's words, or why they cannot be had: a failure is never without any.
pub fn log_lines(path: &Path) -> Vec<String> {
    error_lines(path).unwrap_or_else(|error| vec![format!("{} cannot be read: {error}", path.display())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_lines_and_only_if_there_are_none_warnings() {
        let log = "(00.000001) Version: 4.2.1\n(00.01) Warn  (criu/kerndat.c:1): old kernel\n\
                   (00.02)      1: Error (criu/files-reg.c:2): Can't open \x1b[1mfile\n(00.03) Error (criu/cr-restore.c:3): failed!\n";
        assert_eq!(
            select(log),
            [
                "(00.02)      1: Error (criu/files-reg.c:2): Can't open [1mfile",
                "(00.03) Error (criu/cr-restore.c:3): failed!"
            ]
        );
        assert_eq!(select(&log.replace("Error", "Info")), ["(00.01) Warn  (criu/kerndat.c:1): old kernel"]);
        assert_eq!(select("nothing\n"), [""; 0]);
        let limit = "(00.00) Error (criu/util.c:9): Can't raise RLIMIT_NOFILE\n";
        assert_eq!(select(&format!("{limit}{log}")).len(), 2);
        assert_eq!(select(limit), [""; 0]);
    }

    #[test]
    fn the_first_and_the_last_ones_are_kept() {
        let log: String = (0..100).map(|n| format!("(0) Error (x): {n} {}\n", "y".repeat(1000))).collect();
        let lines = select(&log);
        assert_eq!(lines.len(), ERRORS);
        assert!(lines[0].contains(": 0 ") && lines[7].contains(": 7 ") && lines[8].contains(": 92 "));
        assert!(lines.iter().all(|line| line.chars().count() <= LONGEST_LINE));
    }

    #[test]
    fn no_log_has_no_lines() {
        assert_eq!(error_lines(Path::new("/nonexistent/restore.log")).unwrap(), [""; 0]);
        let log = tempfile::NamedTempFile::new().unwrap();
        let long = "x".repeat(3 << 20);
        std::fs::write(log.path(), format!("(0) Error (a): first\n{long}\n(1) Error (a): last\n")).unwrap();
        assert_eq!(error_lines(log.path()).unwrap(), ["(0) Error (a): first", "(1) Error (a): last"]);
    }
}
