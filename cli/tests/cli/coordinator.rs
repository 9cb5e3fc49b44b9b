//! `syncpoint coordinator`, with certificates that `syncpoint key` makes and the real hook.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{SYNCPOINT, World};

const HOOK: &str = env!("CARGO_BIN_EXE_syncpoint-hook");

/// A running coordinator; it goes with the test.
struct Coordinator {
    process: Child,
    port: String,
}

impl Coordinator {
    fn start(world: &World) -> Self {
        Self::start_with(world, None)
    }

    /// With a soft limit of open files.
    fn start_with(world: &World, limit: Option<u64>) -> Self {
        let files = ["--ca", "ca.crt", "--certificate", "here.crt", "--key", "here.key"];
        let rest = ["coordinator", "--listen", "127.0.0.1:0", "--application", "app", "--gather-timeout", "20s"];
        let arguments = [&rest[..], &files].concat();
        let mut command = match limit {
            None => world.command(&arguments),
            Some(limit) => {
                let script = format!("ulimit -S -n {limit} && exec \"$0\" \"$@\"");
                world.program("/bin/sh", &[&["-c", &script, SYNCPOINT][..], &arguments].concat())
            }
        };
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut first = String::new();
        BufReader::new(process.stderr.as_mut().unwrap()).read_line(&mut first).unwrap();
        let port = first.trim().rsplit(':').next().unwrap().to_owned();
        assert!(first.starts_with("listening on 127.0.0.1:"), "{first}");
        Self { process, port }
    }

    fn hook(&self, world: &World, member: &str, dependencies: &str, certificate: &str) -> Child {
        let mut command = world.program(HOOK, &[]);
        command.env("CRTOOLS_SCRIPT_ACTION", "pre-dump").env("SYNCPOINT_HOOK_ID", member);
        command.env("SYNCPOINT_HOOK_DEPENDENCIES", dependencies).env("SYNCPOINT_HOOK_PORT", &self.port);
        command.env("SYNCPOINT_HOOK_STATE_DIR", world.path("state")).env("SYNCPOINT_HOOK_CA", world.path("ca.crt"));
        command.env("SYNCPOINT_HOOK_CERTIFICATE", world.path(&format!("{certificate}.crt")));
        command.env("SYNCPOINT_HOOK_KEY", world.path(&format!("{certificate}.key")));
        command.stderr(Stdio::piped()).spawn().unwrap()
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_coordinator_takes_as_many_open_files_as_it_may() {
    let world = World::new();
    world.good(&["key", "ca", "--output-prefix", "ca"]);
    world.good(&["key", "issue", "--ca", "ca", "--coordinator", "127.0.0.1", "--output-prefix", "here"]);
    let limits = |process: &str| {
        let limits = std::fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        let [soft, hard, ..] = line["Max open files".len()..].split_whitespace().collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        (soft.to_owned(), hard.to_owned())
    };
    let coordinator = Coordinator::start_with(&world, Some(100));
    let (_, hard) = limits("self");
    assert_eq!(limits(&coordinator.process.id().to_string()), (hard.clone(), hard));
}

#[test]
fn hooks_meet_at_a_coordinator_and_only_under_their_own_names() {
    let world = World::new();
    world.good(&["key", "ca", "--output-prefix", "ca"]);
    world.good(&["key", "issue", "--ca", "ca", "--coordinator", "127.0.0.1", "--output-prefix", "here"]);
    for member in ["a", "b"] {
        world.good(&["key", "issue", "--ca", "ca", "--member", member, "--output-prefix", member]);
    }
    let mut coordinator = Coordinator::start(&world);

    let stranger = coordinator.hook(&world, "a", "b", "b").wait_with_output().unwrap();
    assert_eq!(stranger.status.code(), Some(1), "a certificate speaks for its own member");

    let both = [coordinator.hook(&world, "a", "b", "a"), coordinator.hook(&world, "b", "a", "b")];
    for hook in both {
        let ended = hook.wait_with_output().unwrap();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    }

    kill(Pid::from_raw(coordinator.process.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert!(coordinator.process.wait().unwrap().success());
    let late = coordinator.hook(&world, "a", "b", "a").wait_with_output().unwrap();
    assert_eq!(late.status.code(), Some(1), "without a coordinator it fails closed");
}
