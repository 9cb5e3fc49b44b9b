//! The hook of this crate's tests, in which a script plays CRIU: all of it is in [`coordinator::hook`].

use std::process::ExitCode;

fn main() -> ExitCode {
    let say = |words: &str| eprintln!("{words}");
    let own = std::env::current_exe;
    ExitCode::from(coordinator::hook::main(std::env::args_os(), |name| std::env::var_os(name), say, own))
}
