//! Other processes: watched and signalled by handles, never by a number that another process may have got since.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, getppid, kill_process, pidfd_open, pidfd_send_signal};

/// A process, for as long as the handle lives.
#[derive(Debug)]
pub(super) struct Process {
    pid: i32,
    handle: OwnedFd,
}

impl Process {
    pub(super) fn open(pid: i32) -> io::Result<Self> {
        let raw = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self { pid, handle: pidfd_open(raw, PidfdFlags::empty())? })
    }

    /// The process behind a handle that another process opened.
    pub(super) fn from_handle(pid: i32, handle: OwnedFd) -> Self {
        Self { pid, handle }
    }

    /// Our parent. One that has gone before this is called leaves us to another, which is taken for it.
    pub(super) fn parent() -> io::Result<Self> {
        let parent = getppid().ok_or(io::ErrorKind::NotFound)?;
        Self::open(parent.as_raw_nonzero().get())
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// Becomes readable when the process has ended.
    pub(super) fn handle(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }

    /// Whether the process got it. One that has ended cannot.
    pub(super) fn signal(&self, signal: Signal) -> bool {
        pidfd_send_signal(&self.handle, signal).is_ok()
    }

    /// Whether it ends within this time, of less than a second.
    pub(super) fn ends_within(&self, time: Duration) -> bool {
        let mut fds = [PollFd::new(&self.handle, PollFlags::IN)];
        let time = Timespec { tv_sec: 0, tv_nsec: time.subsec_nanos().into() };
        matches!(poll(&mut fds, Some(&time)), Ok(count) if count > 0)
    }
}

/// Kills the process that has this number now.
pub(super) fn kill_number(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        // One that cannot be killed is gone.
        let _ = kill_process(pid, Signal::KILL);
    }
}
