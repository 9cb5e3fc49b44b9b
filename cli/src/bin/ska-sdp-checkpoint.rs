//! `ska-sdp-checkpoint`: `syncpoint sdp checkpoint` with the options of SKA's console, where `-v` prints values, also with `-q`.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("syncpoint")));
    let program = beside.unwrap_or_else(|| "syncpoint".into());
    let arguments = std::env::args_os().skip(1).flat_map(translated);
    let error = Command::new(&program).args(["sdp", "checkpoint"]).args(arguments).exec();
    // Standard error may be closed; the exit code still says it.
    let _ = writeln!(std::io::stderr(), "error: {} cannot be run: {error}", program.display());
    ExitCode::from(1)
}

/// What the console calls it.
fn translated(argument: OsString) -> Vec<OsString> {
    match argument.to_str() {
        Some("-v") => vec!["--values".into()],
        Some("-qv" | "-vq") => vec!["--quiet".into(), "--values".into()],
        _ => vec![argument],
    }
}
