//! `syncpoint-runtime`: an OCI runtime that restores. All of it is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(runtime::run(std::env::args_os(), |name| std::env::var_os(name)))
}
