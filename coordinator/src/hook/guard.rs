//! The guard: a second process that kills the tasks when the hook ends without having dismissed it.
//!
//! It is this program again. Its standard input is a pipe from the hook: one byte is the dismissal, an end without one is
//! the hook's death. Its standard output is not for writing: it is the handle of the first task, opened by the hook, so
//! that no number can have come to mean another process.

use std::ffi::OsString;
use std::io::{self, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use super::tasks::Tasks;
use super::{Exit, HOOK};

const FLAG: &str = "--guard";

/// A running guard, seen from the hook.
#[derive(Debug)]
pub(super) struct Guard {
    process: Child,
    leash: PipeWriter,
}

impl Guard {
    /// Starts one over these tasks.
    pub(super) fn start(tasks: &Tasks) -> io::Result<Self> {
        let (end, leash) = io::pipe()?;
        let process = Command::new("/proc/self/exe")
            .arg0(HOOK)
            .arg(FLAG)
            .arg(tasks.pid().to_string())
            .env_clear()
            .current_dir("/")
            // What a terminal sends to the whole group must not reach both.
            .process_group(0)
            .stdin(end)
            .stdout(tasks.handle().try_clone_to_owned()?)
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { process, leash })
    }

    /// Lets the guard go, for the tasks may run.
    pub(super) fn dismiss(mut self) {
        // A guard that is not there any more cannot hear it, and need not.
        let _ = self.leash.write_all(b"!");
        drop(self.leash);
        let _ = self.process.wait();
    }
}

/// The first task's pid, if this process was started as a guard.
pub(super) fn recognise(mut args: impl Iterator<Item = OsString>) -> Option<i32> {
    let flag = args.next()?;
    if flag != FLAG {
        return None;
    }
    args.next()?.to_str()?.parse().ok()
}

/// Waits for the dismissal, or for the hook's death.
pub(super) fn main(pid: i32) -> Exit {
    let mut byte = [0];
    match io::stdin().read(&mut byte) {
        Ok(1..) => Exit::SILENT,
        Ok(0) | Err(_) => {
            if let Ok(handle) = io::stdout().as_fd().try_clone_to_owned() {
                Tasks::from_handle(pid, handle).kill();
            }
            Exit { code: 1, message: None }
        }
    }
}
