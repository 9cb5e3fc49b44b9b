//! How an engine learns what went wrong: on the standard error stream, and in the log that it named.

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use image_format::{one_line, rfc3339};
use serde_json::{Value, json};

use crate::args::Invocation;

/// The longest message, in bytes: engines show it in one piece.
const LONGEST: usize = 4000;
/// How much is read of the end of a runtime's log.
const LOG_END: u64 = 64 << 10;

/// Says what went wrong, as runc and crun do: the last error of the log is what an engine shows.
pub(crate) fn report(call: &Invocation, words: &str) {
    let words = one_line(words, LONGEST);
    if let Some(log) = &call.log {
        let line = log_line(call.log_json, &words);
        let file = OpenOptions::new().append(true).create(true).mode(0o644).open(log);
        // The standard error stream says it as well.
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
    let _ = writeln!(std::io::stderr(), "syncpoint-runtime: {words}");
}

fn log_line(as_json: bool, words: &str) -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let time = rfc3339(seconds);
    match as_json {
        true => format!("{}\n", json!({"level": "error", "msg": words, "time": time})),
        false => format!("time=\"{time}\" level=error msg={}\n", Value::from(words)),
    }
}

/// The last errors that a runtime wrote to a log of JSON objects; empty where there are none.
pub(crate) fn errors_of(log: &Path) -> String {
    let read = || {
        let mut file = std::fs::File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_END)))?;
        let mut bytes = Vec::new();
        file.take(LOG_END).read_to_end(&mut bytes)?;
        std::io::Result::Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let errors = String::from_utf8_lossy(&bytes).lines().filter_map(error_of).collect::<Vec<_>>();
    let first_kept = errors.len().saturating_sub(2);
    one_line(&errors[first_kept..].join("; "), LONGEST / 2)
}

fn error_of(line: &str) -> Option<String> {
    let entry: Value = serde_json::from_str(line).ok()?;
    let text = |key: &str| entry.get(key).and_then(Value::as_str);
    matches!(text("level"), Some("error" | "fatal")).then(|| text("msg").unwrap_or_default().replace('\n', ", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_in_the_form_that_was_asked_for() {
        let line = log_line(true, "no \"room\"");
        let entry: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((entry["level"].as_str(), entry["msg"].as_str()), (Some("error"), Some("no \"room\"")));
        assert!(entry["time"].as_str().unwrap().ends_with('Z'));
        assert!(log_line(false, "no \"room\"").ends_with(" level=error msg=\"no \\\"room\\\"\"\n"));
    }

    #[test]
    fn the_last_errors_of_a_runtime() {
        let log = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(errors_of(log.path()), "");
        let lines = [
            r#"{"level":"error","msg":"first"}"#,
            r#"{"level":"warning","msg":"careful"}"#,
            "no json",
            r#"{"level":"error","msg":"criu failed: type NOTIFY errno 0\nlog file: /w"}"#,
            r#"{"level":"error","msg":"last"}"#,
        ];
        std::fs::write(log.path(), lines.join("\n")).unwrap();
        assert_eq!(errors_of(log.path()), "criu failed: type NOTIFY errno 0, log file: /w; last");
        assert_eq!(errors_of(Path::new("/nonexistent")), "");
    }
}
