//! The restored tasks: watched and killed by handles, never by a number that another process may have got since.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How long to wait for killed tasks to be gone. None of them can run an instruction once the signal is sent; the wait
/// is so that CRIU finds them dead.
const DYING: Duration = Duration::from_secs(5);

/// The most descendants that are looked for, against a tree that grows faster than it is read.
const MOST_TASKS: usize = 100_000;

/// A container's tasks, known by the first of them.
#[derive(Debug)]
pub(super) struct Tasks {
    pid: i32,
    init: OwnedFd,
}

impl Tasks {
    /// The tasks below the one of this pid, which CRIU, our parent, still holds.
    pub(super) fn of(pid: i32) -> io::Result<Self> {
        let raw = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self { pid, init: pidfd_open(raw, PidfdFlags::empty())? })
    }

    /// The tasks behind a handle that another process opened.
    pub(super) fn from_handle(pid: i32, init: OwnedFd) -> Self {
        Self { pid, init }
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// Becomes readable when the first task has ended.
    pub(super) fn handle(&self) -> BorrowedFd<'_> {
        self.init.as_fd()
    }

    pub(super) fn are_gone(&self) -> bool {
        ended(&self.init, Duration::ZERO) || is_zombie(self.pid)
    }

    /// Kills all of them, and waits until the first one is gone. In a pid namespace of their own the first one's death is
    /// that of all; without one, each is killed.
    pub(super) fn kill(&self) {
        // Looked for before the first one dies: then they are somebody else's children.
        let others = if self.are_gone() { Vec::new() } else { descendants(self.pid) };
        // One that cannot be signalled is gone already.
        let _ = pidfd_send_signal(&self.init, Signal::KILL);
        for other in others {
            let _ = pidfd_send_signal(other, Signal::KILL);
        }
        let until = Instant::now() + DYING;
        while !ended(&self.init, Duration::from_millis(1)) && !is_zombie(self.pid) && Instant::now() < until {}
    }
}

/// Whether a process ends within this time.
fn ended(process: &OwnedFd, within: Duration) -> bool {
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    let within = Timespec { tv_sec: 0, tv_nsec: within.subsec_nanos().into() };
    matches!(poll(&mut fds, Some(&within)), Ok(count) if count > 0)
}

/// Whether the process has ended but for its record. A traced process of several threads is that for a while before its
/// handle says so: its tracer, CRIU, first collects the threads, and CRIU waits for us.
fn is_zombie(pid: i32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        // The name before the state may hold blanks and parentheses itself.
        Ok(stat) => stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X'])),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Handles of all tasks below this one.
fn descendants(pid: i32) -> Vec<OwnedFd> {
    let mut found = Vec::new();
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop()
        && found.len() < MOST_TASKS
    {
        let Ok(threads) = std::fs::read_dir(format!("/proc/{parent}/task")) else { continue };
        for thread in threads.flatten() {
            let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            for child in children.split_ascii_whitespace().filter_map(|child| child.parse::<i32>().ok()) {
                let handle = Pid::from_raw(child).map(|raw| pidfd_open(raw, PidfdFlags::empty()));
                if let Some(Ok(handle)) = handle {
                    found.push(handle);
                    parents.push(child);
                }
            }
        }
    }
    found
}
