//! The restored tasks, and CRIU that holds them.
//!
//! A script that fails at pre-resume is only logged by CRIU, which then lets the tasks go; and a CRIU that dies lets
//! go of what it traces. So while a hook waits there CRIU is stopped, and to refuse is to kill the tasks and
//! CRIU with them. CRIU must go too: once its tasks are dead it waits for the first of them to be collected, which for
//! tasks of several threads or processes never happens as long as CRIU, their tracer, waits.

use std::io;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::process::Process;

/// How long to wait for killed tasks to be gone. None of them can run an instruction once the signal is sent; the wait
/// is so that whoever comes next finds them dead.
const DYING: Duration = Duration::from_secs(5);

/// The most descendants that are looked for, against a tree that grows faster than it is read.
const MOST_TASKS: usize = 100_000;

/// A container's tasks, known by the first of them.
#[derive(Debug)]
pub(super) struct Tasks {
    pub(super) init: Process,
}

impl Tasks {
    /// The tasks below the one of this pid.
    pub(super) fn of(pid: i32) -> io::Result<Self> {
        Ok(Self { init: Process::open(pid)? })
    }

    pub(super) fn are_gone(&self) -> bool {
        self.init.ends_within(Duration::ZERO)
    }

    /// Kills all of them, and waits until the first one is gone.
    pub(super) fn kill(&self) {
        self.signal();
        self.wait();
    }

    /// In a pid namespace of their own the first one's death is that of all; without one, each must be killed.
    fn signal(&self) {
        // Looked for before the first one dies: then they are somebody else's children.
        let others = if self.are_gone() { Vec::new() } else { descendants(self.init.pid()) };
        self.init.signal(Signal::KILL);
        for other in others {
            other.signal(Signal::KILL);
        }
    }

    fn wait(&self) {
        let until = Instant::now() + DYING;
        while !self.init.ends_within(Duration::from_millis(100)) && Instant::now() < until {}
    }
}

/// The tasks at the door, pre-resume, with CRIU stopped beside them where it is known.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) tasks: Tasks,
    pub(super) criu: Option<Process>,
}

impl Held {
    /// From here on CRIU does nothing, also if this process is killed.
    pub(super) fn stop_criu(&self) {
        if let Some(criu) = &self.criu {
            criu.signal(Signal::STOP);
        }
    }

    /// CRIU goes on, once this process has ended.
    pub(super) fn let_go(&self) {
        if let Some(criu) = &self.criu {
            criu.signal(Signal::CONT);
        }
    }

    /// Kills the tasks, then CRIU.
    pub(super) fn kill(&self) {
        self.tasks.signal();
        if let Some(criu) = &self.criu {
            criu.signal(Signal::KILL);
        }
        self.tasks.wait();
    }
}

/// Handles of all tasks below this one.
fn descendants(pid: i32) -> Vec<Process> {
    let mut found: Vec<Process> = Vec::new();
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop()
        && found.len() < MOST_TASKS
    {
        for child in children(parent).filter_map(|child| Process::open(child).ok()) {
            parents.push(child.pid());
            found.push(child);
        }
    }
    found
}

/// The processes that this one started, and those that it took over from who did, as far as the kernel tells (CONFIG_PROC_CHILDREN).
pub fn children(pid: i32) -> impl Iterator<Item = i32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.flat_map(|thread| {
        let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        children.split_ascii_whitespace().filter_map(|child| child.parse().ok()).collect::<Vec<i32>>()
    })
}
