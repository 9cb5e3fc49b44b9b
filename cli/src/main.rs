//! `syncpoint`: what a person types.
//!
//! One file a command under `commands/`: its arguments, and a `run` that asks the libraries and prints what they answer.
//! Everything that all commands share lies beside it: [`error`] and [`exit`] (what failing means), [`output`] (what goes
//! to standard output), [`progress`] (what goes to standard error meanwhile), [`environment`] and [`transport`] (what the
//! libraries, which read no environment, are told).

mod args;
mod cancel;
mod chain;
mod commands;
mod context;
mod environment;
mod error;
mod exit;
mod expected;
mod keys;
mod manual;
mod output;
mod plan;
mod progress;
#[cfg(test)]
mod reference;
mod state;
mod store;
mod terminal;
mod timeline;
mod transport;
mod tree;
mod values;

use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::args::Cli;
use crate::cancel::{Interrupted, Signals};
use crate::context::Context;
use crate::environment::Environment;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::output::Output;
use crate::progress::Reporter;

/// How long a command that was told to stop may take to remove what it left half-written.
const CLEAN_UP: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(help_or_error) => return usage(&help_or_error),
    };
    let reporter = Reporter::new(cli.verbosity());
    if let Err(error) = leave_no_core() {
        reporter.warn(&format!("a crash of this program may leave memory and keys in a core dump: {error}"));
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return reporter.failed(&CommandError::from(error).context("the asynchronous runtime does not start"));
        }
    };
    let context = Context::new(Environment::from_process(), Output::new(cli.verbosity()), reporter);
    let outcome = runtime.block_on(async {
        let signals = Signals::listen();
        let stops_by_itself = cli.command.stops_by_itself();
        let mut command = pin!(commands::run(cli.command, &context));
        tokio::select! {
            outcome = &mut command => outcome,
            signal = context.cancel.on(signals) => match stops_by_itself {
                true => command.await,
                false => Err(CommandError::new(Exit::Interrupted, Interrupted(signal))),
            },
        }
    });
    // Threads that were in the middle of writing see that they are cancelled, and remove what they had begun.
    runtime.shutdown_timeout(CLEAN_UP);
    match outcome {
        Ok(()) => Exit::Success.into(),
        Err(error) => context.reporter.failed(&error),
    }
}

/// Keeps memory of containers and keys out of core dumps of this process. A limit of their size would not: it does not bind
/// programs that the kernel pipes a dump to, and containers would inherit it. Other processes of the same user can then not look into this one either;
/// root can, and what is started is what it is by itself again.
fn leave_no_core() -> nix::Result<()> {
    nix::sys::prctl::set_dumpable(false)
}

/// Prints what clap has to say. Asked-for help that nobody reads any more is no failure.
fn usage(help_or_error: &clap::Error) -> ExitCode {
    let printed = help_or_error.print();
    if help_or_error.use_stderr() {
        return Exit::Usage.into();
    }
    match printed {
        Ok(()) => Exit::Success.into(),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Exit::BrokenPipe.into(),
        Err(_) => Exit::Failure.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_leaves_nothing() {
        leave_no_core().unwrap();
        assert!(!nix::sys::prctl::get_dumpable().unwrap());
        // What needs its own process goes on.
        assert!(std::env::current_exe().is_ok() && std::fs::read("/proc/self/maps").is_ok());
        assert!(std::process::Command::new("/proc/self/exe").arg("--help").output().unwrap().status.success());
    }
}
