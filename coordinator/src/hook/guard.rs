//! The guard: a second process that does what the hook would have done when the hook is killed while it holds tasks.
//!
//! It is this program again, in the member's folder. Its standard input is a pipe that ends with the hook. The other two are
//! not for writing: they are the handles of the first task and of CRIU, opened by the hook, so that no number can have
//! come to mean another process. When the hook ends, at pre-resume the note of the release decides: with it CRIU may go on,
//! without it the tasks are killed. At post-dump the tasks are let go, as [`frozen`](super::frozen) says.

use std::ffi::OsString;
use std::io::{self, PipeWriter, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::frozen;
use super::notes::Notes;
use super::process::Process;
use super::tasks::{Held, Tasks};
use crate::ticket::HOOK;

/// Of a restore, at pre-resume.
const DOOR: &str = "--guard";
/// Of a dump, at post-dump.
const DUMP: &str = "--guard-dump";

/// In the place of CRIU's pid, where CRIU is not known.
const NO_CRIU: i32 = 0;

/// A running guard, seen from the hook.
#[derive(Debug)]
pub(super) struct Guard {
    process: Child,
    leash: PipeWriter,
}

/// What a guard is told when it starts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Order {
    duty: Duty,
    init: i32,
    criu: i32,
}

/// What is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Duty {
    /// Restored tasks that must not run unless they are released.
    Door,
    /// Dumped tasks that must run on.
    Dump,
}

impl Guard {
    /// Starts one over these tasks, of the member with this folder.
    pub(super) fn start(duty: Duty, held: &Held, folder: &Path) -> io::Result<Self> {
        let flag = match duty {
            Duty::Door => DOOR,
            Duty::Dump => DUMP,
        };
        let (end, leash) = io::pipe()?;
        let init = held.tasks.init.handle().try_clone_to_owned()?;
        let (criu, criu_handle) = match &held.criu {
            Some(criu) => (criu.pid(), Stdio::from(criu.handle().try_clone_to_owned()?)),
            None => (NO_CRIU, Stdio::null()),
        };
        let process = Command::new("/proc/self/exe")
            .arg0(HOOK)
            .args([flag, &held.tasks.init.pid().to_string(), &criu.to_string()])
            .env_clear()
            // Where what CRIU locked a network with is found.
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .current_dir(folder)
            // What a terminal sends to the whole group must not reach both.
            .process_group(0)
            .stdin(end)
            .stdout(init)
            .stderr(criu_handle)
            .spawn()?;
        Ok(Self { process, leash })
    }

    /// Waits until the guard has done its part, as if this process had ended.
    pub(super) fn end(mut self) {
        drop(self.leash);
        // One that was killed has nothing left to do that this process has not done.
        let _ = self.process.wait();
    }
}

/// What to do, if this process was started as a guard.
pub(super) fn recognise(mut args: impl Iterator<Item = OsString>) -> Option<Order> {
    let duty = match args.next()?.to_str()? {
        DOOR => Duty::Door,
        DUMP => Duty::Dump,
        _ => return None,
    };
    let mut number = || args.next()?.to_str()?.parse().ok();
    Some(Order { duty, init: number()?, criu: number()? })
}

/// Waits for the hook's end, and sees to it that the tasks are released or dead.
pub(super) fn main(order: Order) {
    // Nothing is ever written to the pipe; whatever ends the reading ends the wait.
    let _ = io::stdin().read(&mut [0]);
    let (Ok(init), Ok(criu)) = (io::stdout().as_fd().try_clone_to_owned(), io::stderr().as_fd().try_clone_to_owned())
    else {
        return;
    };
    let held = Held {
        tasks: Tasks { init: Process::from_handle(order.init, init) },
        criu: (order.criu != NO_CRIU).then(|| Process::from_handle(order.criu, criu)),
    };
    match order.duty {
        Duty::Door if Notes::in_folder(Path::new("")).released() => held.let_go(),
        Duty::Door => held.kill(),
        Duty::Dump => {
            let criu_is_gone = held.criu.as_ref().is_none_or(|criu| criu.ends_within(Duration::ZERO));
            // Nobody is left to tell; the launcher looks again when its session was aborted.
            let _ = frozen::let_go(order.init, criu_is_gone);
        }
    }
}
