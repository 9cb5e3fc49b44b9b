//! Other processes, as /proc shows them: for killing exactly the right one at exactly the right moment.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::PATIENCE;

/// A process that was there when it was looked at.
#[derive(Debug, Clone)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Its parent's.
    pub parent: i32,
    /// Its arguments, separated by spaces.
    pub command: String,
    environment: Vec<u8>,
}

impl Process {
    /// All processes that are alive (no zombies).
    #[must_use]
    pub fn all() -> Vec<Self> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        entries.filter_map(|entry| Self::read(entry.file_name().to_str()?.parse().ok()?)).collect()
    }

    /// `None` for one that is gone.
    fn read(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let (state, parent) = (fields.next()?, fields.next()?.parse().ok()?);
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        (state != "Z").then_some(Self { pid, parent, command, environment })
    }

    /// Is it there still?
    #[must_use]
    pub fn is_still_there(&self) -> bool {
        Self::read(self.pid).is_some_and(|now| now.command == self.command)
    }

    /// Waits for a process for which `found` holds, looking about a thousand times a second.
    ///
    /// # Panics
    /// When none appears within [`PATIENCE`].
    pub fn wait_for(what: &str, found: impl Fn(&Self) -> bool) -> Self {
        let start = Instant::now();
        loop {
            if let Some(process) = Self::all().into_iter().find(&found) {
                return process;
            }
            assert!(start.elapsed() < PATIENCE, "{what} never appeared");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Is this the hook of `member` at `step` (a CRIU action such as `pre-restore`)?
    #[must_use]
    pub fn is_hook(&self, member: &str, step: &str) -> bool {
        let action = format!("CRTOOLS_SCRIPT_ACTION={step}");
        self.command.contains(&format!("/{member}/hook"))
            && self.environment.split(|byte| *byte == 0).any(|variable| variable == action.as_bytes())
    }

    /// Is this a runc that dumps a container? To hold one back there is better than to hold podman, which may stand still
    /// with locks that other podmans need.
    #[must_use]
    pub fn is_runc_checkpoint(&self) -> bool {
        self.command.contains("runc ") && self.command.contains(" checkpoint --image-path ")
    }

    /// Sends a signal; a process that is gone by now is fine.
    pub fn signal(&self, signal: Signal) {
        send(self.pid, signal);
    }

    /// Sends a signal to the parent: CRIU, for a hook.
    pub fn signal_parent(&self, signal: Signal) {
        send(self.parent, signal);
    }
}

/// Sends a signal; a process that is gone by now is fine.
///
/// # Panics
/// When it may not be sent.
pub fn send(pid: i32, signal: Signal) {
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
        Err(error) => panic!("signal {signal} to {pid}: {error}"),
    }
}
