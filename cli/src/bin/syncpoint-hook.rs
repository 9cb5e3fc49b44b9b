//! `syncpoint-hook`: what CRIU runs at its hooks, for sessions of this host. All of it is in [`coordinator::hook`].

use std::io::Write;
use std::process::ExitCode;

use coordinator::hook;

fn main() -> ExitCode {
    let say = |words: &str| {
        // CRIU's log; where it cannot be written the exit status still says it.
        let _ = writeln!(std::io::stderr(), "{words}");
    };
    ExitCode::from(hook::main(std::env::args_os(), |name| std::env::var_os(name), say, std::env::current_exe))
}
