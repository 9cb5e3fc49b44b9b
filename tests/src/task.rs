//! A container's first process, looked at from outside: nothing of its engine is asked while it is watched.

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::Signal;

use crate::{command, run};

/// The first process of a container that runs.
#[derive(Debug, Clone)]
pub struct Task {
    /// The container's name.
    pub container: String,
    /// The process.
    pub pid: i32,
}

impl Task {
    /// Of a container of podman's.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn of(container: &str) -> Self {
        let pid = run(&mut command("podman", ["inspect", "--format", "{{.State.Pid}}", container]));
        let pid = pid.trim().parse().expect("podman gives a process id");
        assert_ne!(pid, 0, "{container} runs");
        Self { container: container.to_owned(), pid }
    }

    /// A file as the container sees it.
    #[must_use]
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root/{}", self.pid, inside.trim_start_matches('/')))
    }

    /// How far a member of the demo application is; `None` if it is gone.
    #[must_use]
    pub fn counter(&self) -> Option<u64> {
        self.counter_in("/data/state")
    }

    /// The same from another of its files.
    #[must_use]
    pub fn counter_in(&self, file: &str) -> Option<u64> {
        fs::read_to_string(self.path(file)).ok()?.trim().parse().ok()
    }

    /// Its established TCP connections, as `LOCAL -> PEER`, in order.
    #[must_use]
    pub fn connections(&self) -> Vec<String> {
        let namespace = format!("--net=/proc/{}/ns/net", self.pid);
        let list = ["ss", "--no-header", "--numeric", "--tcp", "state", "established"];
        let list = run(command("nsenter", [&namespace]).args(list));
        let ends = list.lines().filter_map(|line| {
            let mut fields = line.split_whitespace().skip(2);
            Some(format!("{} -> {}", fields.next()?, fields.next()?))
        });
        let mut ends: Vec<_> = ends.collect();
        ends.sort();
        ends
    }

    /// Is it there, and no zombie?
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    }

    /// Sends it a signal; a process that is gone by now is fine.
    pub fn signal(&self, signal: Signal) {
        crate::processes::send(self.pid, signal);
    }
}
