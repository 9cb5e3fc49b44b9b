//! Takes away what an attempt to restore leaves: by its own supervisor when it failed, by `delete` or the next `create` when
//! the supervisor was killed.
//!
//! A killed CRIU leaves the container's tasks, and the machine's control groups mounted in its work folder; a killed runtime
//! leaves CRIU, and a folder with a mount in it that it cannot read any more.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::mounts::unmount_all;
use crate::state::{Folder, Held, LOOK, Process, Record};

/// How long killed processes may take to be gone.
const DYING: Duration = Duration::from_secs(10);

/// Whether a container was released, and runs on by itself: then it is its engine's, whatever became of its supervisor.
pub(crate) fn runs(folder: &Folder) -> io::Result<bool> {
    let init = folder.init()?.is_some_and(Process::runs);
    Ok(folder.was_released() && init && workers(folder).is_empty())
}

/// Ends and takes away all that there is of an attempt, and its folder. A folder without a record made nothing.
pub(crate) fn take_away(folder: &Folder, held: &Held) -> io::Result<()> {
    if let Some(record) = folder.record()? {
        end(folder)?;
        unmount(&record)?;
        delete(&record)?;
        folder.put_config_back(&record.bundle)?;
    }
    folder.remove(held)
}

/// Kills the container's first process, and everybody who works for the attempt, until they are gone.
fn end(folder: &Folder) -> io::Result<()> {
    let start = Instant::now();
    loop {
        kill_all(folder)?;
        let init = folder.init()?.filter(|init| init.runs());
        if init.is_none() && workers(folder).is_empty() {
            return Ok(());
        }
        if start.elapsed() > DYING {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "killed processes are still there"));
        }
        std::thread::sleep(LOOK);
    }
}

/// Kills the tasks first: those of a CRIU that dies before them may run on.
pub(crate) fn kill_all(folder: &Folder) -> io::Result<()> {
    if let Some(init) = folder.init()? {
        kill(init)?;
    }
    workers(folder).into_iter().try_for_each(kill)
}

/// Kills exactly this process.
fn kill(process: Process) -> io::Result<()> {
    let Some(pid) = Pid::from_raw(process.pid) else { return Ok(()) };
    let handle = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(()),
        handle => handle?,
    };
    // The number may be another's since it was noted; what is held now stays the same.
    if !process.is_there() {
        return Ok(());
    }
    match pidfd_send_signal(&handle, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Everybody but this process who has the attempt's file open: the real runtime, CRIU, the gate and other hooks.
fn workers(folder: &Folder) -> BTreeSet<Process> {
    let (tree, me) = (folder.tree_path(), std::process::id().cast_signed());
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| *pid != me && has_open(*pid, &tree)).filter_map(Process::of).collect()
}

fn has_open(pid: i32, file: &Path) -> bool {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    open.filter_map(|entry| std::fs::read_link(entry.path()).ok()).any(|target| target == file)
}

fn unmount(record: &Record) -> io::Result<()> {
    let root = Path::new(&record.id).join("criu-root");
    let work = record.work.canonicalize().unwrap_or_else(|_| record.work.clone());
    unmount_all(|point| point.starts_with(&work) || point.ends_with(&root))
}

/// Makes the real runtime forget the container.
fn delete(record: &Record) -> io::Result<()> {
    let mut delete = Command::new(&record.real);
    delete.args(&record.globals).args(["delete", "--force", &record.id]);
    let deleted = delete.stdin(Stdio::null()).output()?;
    match deleted.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&deleted.stderr);
            Err(io::Error::other(format!("{} delete failed: {}", record.real, said.trim())))
        }
    }
}

/// A handle of a process, by which its end is seen.
pub(crate) fn handle(pid: u32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid.cast_signed()).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_works_for_an_attempt_is_found_and_ended() {
        let top = tempfile::tempdir().unwrap();
        let folder = Folder::at(top.path().canonicalize().unwrap().join("c"));
        let held = folder.make().unwrap().unwrap();
        let tree = folder.tree().unwrap();
        let mut worker = Command::new("sleep").arg("100").stdin(tree.try_clone().unwrap()).spawn().unwrap();
        let mut other = Command::new("sleep").arg("100").spawn().unwrap();
        let mut init = Command::new("sleep").arg("100").spawn().unwrap();
        folder.write_init(Process::of(init.id().cast_signed()).unwrap()).unwrap();
        assert_eq!(
            workers(&folder).into_iter().map(|found| found.pid.cast_unsigned()).collect::<Vec<_>>(),
            [worker.id()]
        );
        kill_all(&folder).unwrap();
        assert!(!worker.wait().unwrap().success() && !init.wait().unwrap().success());
        end(&folder).unwrap();
        assert!(!runs(&folder).unwrap());
        assert!(other.try_wait().unwrap().is_none());
        folder.write_init(Process::of(other.id().cast_signed()).unwrap()).unwrap();
        assert!(!runs(&folder).unwrap(), "it was never let go");
        folder.note_released().unwrap();
        assert!(runs(&folder).unwrap());
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(!runs(&folder).unwrap());
        take_away(&folder, &held).unwrap();
        assert!(!folder.is_there());
    }
}
