//! `syncpoint-hook`: what CRIU runs at its hooks. All of it is in [`coordinator::hook`].

use std::io::Write;
use std::process::ExitCode;

use coordinator::hook;

fn main() -> ExitCode {
    let exit = hook::main(std::env::args_os(), |name| std::env::var_os(name));
    if let Some(message) = exit.message {
        // CRIU's log; where it cannot be written the exit status still says it.
        let _ = writeln!(std::io::stderr(), "{message}");
    }
    ExitCode::from(exit.code)
}
