//! The demo application of `fixtures/demo`, for one test: three real containers that notice an inexact restore.

use std::path::{Path, PathBuf};

use crate::{bin, command, run, wait_until};

/// Its members; also the names of the containers.
pub const MEMBERS: [&str; 3] = ["consumer", "producer", "auditor"];

/// The base image, which is made by the first test that needs it.
const IMAGE: &str = "localhost/syncpoint-demo:1";

/// What a member depends on, comma-separated as `pack --depends-on` takes it.
#[must_use]
pub fn depends_on(member: &str) -> &'static str {
    match member {
        "producer" => "consumer",
        "auditor" => "consumer,producer",
        _ => "",
    }
}

/// The running application. Everything of podman's is removed when it is dropped.
#[derive(Debug)]
pub struct Ledger;

impl Ledger {
    /// Starts it, on an otherwise empty podman. `options` are those of `fixtures/demo/start`.
    ///
    /// # Panics
    /// When a member does not get to count.
    #[must_use]
    pub fn start(options: &[&str]) -> Self {
        let ledger = Self;
        ledger.wipe();
        let program = bin("demo/ledger");
        let program = program.to_str().expect("a path in UTF-8");
        run(&mut command("fixtures/demo/start", options.iter().copied().chain([program])));
        ledger
    }

    /// Starts one container more, of the base image, with options of podman's and the ledger's arguments.
    ///
    /// # Panics
    /// When it does not start.
    pub fn run(&self, name: &str, podman: &[&str], ledger: &[&str]) {
        start(name, podman, "/bin/ledger", ledger);
    }

    /// The same with a script of the shell's in place of the ledger.
    ///
    /// # Panics
    /// When it does not start.
    pub fn run_shell(&self, name: &str, podman: &[&str], script: &str) {
        start(name, podman, "/bin/sh", &["-c", script]);
    }

    /// Dumps all members at the same time and stops them. Gives the archives, in the order of [`MEMBERS`].
    #[must_use]
    pub fn dump(&self, dir: &Path) -> Vec<PathBuf> {
        run(&mut command("fixtures/demo/dump", [dir]));
        MEMBERS.iter().map(|member| dir.join(format!("{member}.tar.zst"))).collect()
    }

    /// How far each member is, once all are past `past`.
    ///
    /// # Panics
    /// When one ended, or does not get there within two minutes.
    pub fn counters_past(&self, past: u64) -> Vec<u64> {
        let lines = run(&mut command("fixtures/demo/counters", ["--past", &past.to_string()]));
        lines.lines().filter_map(|line| line.split(' ').nth(1)?.parse().ok()).collect()
    }

    /// How far each member was when it last said so, running or not.
    #[must_use]
    pub fn said(&self) -> Vec<u64> {
        let last = |member: &str| {
            let line = run(&mut command("podman", ["logs", "--tail", "1", member]));
            line.trim().split(' ').nth(1).and_then(|number| number.parse().ok())
        };
        let number = |member: &&str| {
            // One that was restored just now may not have said anything yet.
            let mut number = None;
            wait_until("a line `MEMBER N`", || {
                number = last(member);
                number.is_some()
            });
            number.unwrap_or_default()
        };
        MEMBERS.iter().map(number).collect()
    }

    /// Names of the containers that run.
    #[must_use]
    pub fn running() -> Vec<String> {
        let names = run(&mut command("podman", ["ps", "--format", "{{.Names}}"]));
        let mut names: Vec<_> = names.lines().map(str::to_owned).collect();
        names.sort();
        names
    }

    /// Names of all containers, running or not.
    #[must_use]
    pub fn containers() -> Vec<String> {
        let names = run(&mut command("podman", ["ps", "--all", "--format", "{{.Names}}"]));
        names.lines().map(str::to_owned).collect()
    }

    /// Removes every container and volume, as a failed machine would; base images stay.
    pub fn wipe(&self) {
        run(&mut command("podman", ["rm", "--force", "--all", "--time", "0", "--volumes"]));
        run(&mut command("podman", ["volume", "rm", "--all", "--force"]));
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.wipe();
        }
    }
}

/// Starts a container of the base image, which is made first if need be.
fn start(name: &str, podman: &[&str], program: &str, arguments: &[&str]) {
    if !command("podman", ["image", "exists", IMAGE]).status().is_ok_and(|status| status.success()) {
        run(command("fixtures/demo/base-image", [bin("demo/ledger")]).arg(IMAGE));
    }
    let mut command = command("podman", ["run", "--detach", "--name", name]);
    run(command.args(podman).args([IMAGE, program]).args(arguments));
}
