//! What the end-to-end tests and benchmarks share: running programs, a real registry, the demo application.
//!
//! All of it works inside `tests/testbed/run` only, where nothing needs to be tidied up for the machine's sake; it is
//! tidied up for the next test's. A helper that cannot do its work panics with what the program said: a test that cannot
//! run has failed.

mod docker;
mod etcd;
mod ledger;
mod processes;
mod registry;
mod task;

use std::ffi::OsStr;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

pub use docker::Docker;
pub use etcd::Etcd;
pub use ledger::{Ledger, MEMBERS, depends_on};
pub use processes::{Process, send};
pub use registry::Registry;
pub use task::Task;

/// The checkout's top folder.
#[must_use]
pub fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the checkout").to_owned()
}

/// The folder of the built binaries: `SYNCPOINT_BIN`, as `tests/tiers` sets it.
#[must_use]
pub fn bin(program: &str) -> PathBuf {
    let folder = std::env::var_os("SYNCPOINT_BIN").expect("SYNCPOINT_BIN is set: run this through tests/tiers real");
    let path = Path::new(&folder).join(program);
    assert!(path.exists(), "{} is built", path.display());
    path
}

/// A command of a script of this checkout, or of a program on the path.
#[must_use]
pub fn command<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> Command {
    let script = checkout().join(program);
    let mut command = if program.contains('/') { Command::new(script) } else { Command::new(program) };
    command.args(arguments);
    command
}

/// `syncpoint ARGUMENTS`, with nothing of the caller's configuration.
#[must_use]
pub fn syncpoint<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(bin("syncpoint"));
    command.args(arguments).env("COSIGN_PASSWORD", "test");
    command
}

/// Writes a script that can be run.
///
/// # Panics
/// When the file cannot be written.
pub fn write_script(path: &Path, text: &str) {
    std::fs::write(path, text).expect("a script");
    std::fs::set_permissions(path, Permissions::from_mode(0o755)).expect("a script's mode");
}

/// Runs to the end and gives what was printed on standard output.
///
/// # Panics
/// A program that fails; its words are in the panic.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} could not start: {error}"));
    assert!(output.status.success(), "{}", describe(command, &output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs to the end, must fail without a panic, and gives exit code and standard error.
///
/// # Panics
/// A program that succeeds, is killed or panics.
pub fn run_failing(command: &mut Command) -> (i32, String) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} could not start: {error}"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output.status.code().unwrap_or(-1);
    assert!(code > 0 && code != 101 && !said.contains("panicked"), "{}", describe(command, &output));
    (code, said)
}

fn describe(command: &Command, output: &Output) -> String {
    format!(
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// How long a test waits for what should come about soon. Far longer than it takes: a machine that is busy is no failure.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Waits, at most for [`PATIENCE`], until something is so.
///
/// # Panics
/// When it does not become so.
pub fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < PATIENCE, "it never came to this: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
