//! The processes of one container that its engine may have lost sight of, found in `/proc` and killed by handle.
//!
//! A CRIU that is killed leaves its task running under a conmon that podman does not know; a podman that is killed leaves
//! conmon, the runtime and CRIU. All of these belong to the container by their cgroup, by an argument that is its id or
//! lies in the restore's own folder, or by descent from one that does.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// Programs whose arguments say to which container they belong. Nobody else is killed for what it was told.
const PROGRAMS: [&str; 5] = ["podman", "conmon", "runc", "crun", "criu"];

/// How long killed processes may take to be gone.
const DYING: Duration = Duration::from_secs(10);

/// By what a process is known to belong to a container.
#[derive(Debug, Clone, Default)]
pub struct Marks {
    /// The id, as the last part of a cgroup's name and as an argument of an engine's program.
    pub id: Option<String>,
    /// The folder of the restore: an engine's program that was told of something in it works for that restore.
    pub folder: Option<PathBuf>,
    /// When the restore began: whatever is older is not its doing, whatever its cgroup is called.
    pub since: Ticks,
}

impl Marks {
    /// Marks that no process has.
    pub fn nothing() -> Self {
        Self { id: None, folder: None, since: Ticks(u64::MAX) }
    }
}

/// A time since boot, in the kernel's clock ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ticks(u64);

impl Ticks {
    /// When this process was started; zero if the kernel does not say.
    pub fn of_this_process() -> Self {
        read(std::process::id().cast_signed()).map(|process| process.started).unwrap_or_default()
    }
}

/// One process, as `/proc` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Process {
    parent: i32,
    started: Ticks,
    arguments: Vec<Vec<u8>>,
    cgroups: String,
}

/// Pids of all processes with these marks, and of their descendants. Never this one or one it descends from.
fn find(marks: &Marks) -> BTreeSet<i32> {
    select(&read_all(), marks, std::process::id().cast_signed())
}

/// Processes in a container's cgroup that do not descend from its first one, with their names: CRIU does not dump them. What
/// `podman exec` starts is such.
pub fn outsiders(id: &str, init: i32) -> Vec<(i32, String)> {
    let all = read_all();
    let found = outside(&all, id, init);
    let name = |pid: i32| fs::read(format!("/proc/{pid}/comm")).ok();
    // One that ends while it is looked at is none.
    let named = found.into_iter().filter_map(|pid| Some((pid, name(pid)?)));
    named.map(|(pid, name)| (pid, String::from_utf8_lossy(&name).trim_end().to_owned())).collect()
}

/// Of those that one of them started, only the first.
fn outside(all: &BTreeMap<i32, Process>, id: &str, init: i32) -> Vec<i32> {
    let within = |pid: i32| all.get(&pid).filter(|process| in_cgroup(&process.cgroups, id));
    let is_first = |pid: i32, process: &Process| pid != init && within(process.parent).is_none();
    all.keys().copied().filter(|pid| within(*pid).is_some_and(|process| is_first(*pid, process))).collect()
}

/// Kills all processes with these marks, also those that they make meanwhile, and waits until they are gone.
///
/// # Errors
/// Some do not go: stuck in the kernel, or not ours to kill.
pub fn kill(marks: &Marks) -> io::Result<()> {
    let until = Instant::now() + DYING;
    loop {
        let found = find(marks);
        if found.is_empty() {
            return Ok(());
        }
        for pid in &found {
            kill_one(*pid, marks)?;
        }
        if Instant::now() > until {
            let message = format!("{} processes do not go, the first is {:?}", found.len(), found.first());
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until no process has these marks any more; says whether it came to that in time.
pub fn wait_gone(marks: &Marks, limit: Duration) -> bool {
    let until = Instant::now() + limit;
    while !find(marks).is_empty() {
        if Instant::now() > until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// Kills a process through a handle, which is looked at again once it is held: the number may be another's by then.
fn kill_one(pid: i32, marks: &Marks) -> io::Result<()> {
    let Some(raw) = Pid::from_raw(pid) else { return Ok(()) };
    let handle = match pidfd_open(raw, PidfdFlags::empty()) {
        Ok(handle) => handle,
        Err(Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if !find(marks).contains(&pid) {
        return Ok(());
    }
    match pidfd_send_signal(handle, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn select(all: &BTreeMap<i32, Process>, marks: &Marks, own: i32) -> BTreeSet<i32> {
    let mut spared = BTreeSet::new();
    let mut next = Some(own);
    while let Some(pid) = next.filter(|pid| spared.insert(*pid)) {
        next = all.get(&pid).map(|process| process.parent);
    }
    let marked = all.iter().filter(|(pid, process)| !spared.contains(pid) && has_marks(process, marks));
    let mut found: BTreeSet<i32> = marked.map(|(pid, _)| *pid).collect();
    loop {
        let born = all
            .iter()
            .filter(|(pid, process)| found.contains(&process.parent) && !found.contains(pid) && !spared.contains(pid));
        let born: Vec<i32> = born.map(|(pid, _)| *pid).collect();
        if born.is_empty() {
            return found;
        }
        found.extend(born);
    }
}

fn has_marks(process: &Process, marks: &Marks) -> bool {
    if process.started < marks.since {
        return false;
    }
    let in_cgroup = marks.id.as_deref().is_some_and(|id| in_cgroup(&process.cgroups, id));
    in_cgroup || (is_engine(process) && process.arguments.iter().skip(1).any(|argument| is_about(argument, marks)))
}

/// Whether a cgroup of `/proc/PID/cgroup` is the container's: `libpod-ID`, `libpod-ID.scope`, or `ID` as runc names it.
/// (conmon has cgroups of its own, `libpod-conmon-ID`.)
fn in_cgroup(cgroups: &str, id: &str) -> bool {
    cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2)).flat_map(|path| path.split('/')).any(|part| {
        let part = part.strip_suffix(".scope").unwrap_or(part);
        let part = part.strip_prefix("libpod-").unwrap_or(part);
        part == id
    })
}

fn is_engine(process: &Process) -> bool {
    let Some(program) = process.arguments.first() else { return false };
    let name = Path::new(OsStr::from_bytes(program)).file_name().unwrap_or_default().as_bytes();
    PROGRAMS.iter().any(|program| name == program.as_bytes())
}

fn is_about(argument: &[u8], marks: &Marks) -> bool {
    let id = marks.id.as_deref().is_some_and(|id| argument == id.as_bytes());
    let path = Path::new(OsStr::from_bytes(argument));
    id || marks.folder.as_deref().is_some_and(|folder| path.starts_with(folder))
}

fn read_all() -> BTreeMap<i32, Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeMap::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, read(pid)?))).collect()
}

/// A process that is there and not dead; one that ends while it is read is none.
fn read(pid: i32) -> Option<Process> {
    let file = |name: &str| fs::read(format!("/proc/{pid}/{name}")).ok();
    let stat = String::from_utf8_lossy(&file("stat")?).into_owned();
    // The name in parentheses may hold blanks and parentheses itself.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    let parent = fields.next()?.parse().ok()?;
    // Field 22 of the file; the parent was field 4.
    let started = Ticks(fields.nth(17)?.parse().ok()?);
    let arguments = file("cmdline")?.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect();
    let cgroups = String::from_utf8_lossy(&file("cgroup")?).into_owned();
    Some(Process { parent, started, arguments, cgroups })
}

/// Whether a process runs. One that has ended does not, also while nobody has collected it.
pub fn is_alive(pid: i32) -> bool {
    let Some(pid) = Pid::from_raw(pid) else { return false };
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
    // A handle is readable from when its process has ended, also while nobody has collected it.
    poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&Timespec::default())) != Ok(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "241c6eb3ec1c535af78ba3a89229e217ea0ae9799f4a6d74cb3cbb741c25f0a6";

    fn process(parent: i32, arguments: &str, cgroup: &str) -> Process {
        let arguments = arguments.split(' ').map(|argument| argument.as_bytes().to_vec()).collect();
        Process { parent, started: Ticks(100), arguments, cgroups: format!("4:memory:/\n0::{cgroup}\n") }
    }

    #[test]
    fn what_was_started_from_outside() {
        let own = format!("/libpod_parent/libpod-{ID}");
        let all = BTreeMap::from([
            (90, process(1, &format!("/usr/bin/conmon -c {ID}"), &format!("/libpod_parent/libpod-conmon-{ID}"))),
            (102, process(90, "sh", &own)),
            (112, process(102, "sleep 1000", &own)),
            (123, process(1, &format!("/usr/bin/conmon -c {ID}"), &format!("/libpod_parent/libpod-conmon-{ID}"))),
            (134, process(123, "sh", &own)),
            (139, process(134, "sleep 1", &own)),
            (200, process(1, "sh", "/libpod_parent/libpod-other")),
        ]);
        assert_eq!(outside(&all, ID, 102), [134]);
        assert_eq!(outside(&all, "none", 102), [0; 0]);
    }

    #[test]
    fn what_belongs_to_a_container() {
        let folder = "/var/lib/syncpoint/restore-1";
        let all = BTreeMap::from([
            (1, process(0, "init", "/")),
            (10, process(1, "syncpoint restore x", "/")),
            (11, process(10, &format!("podman container restore --import {folder}/auditor.tar"), "/")),
            (12, process(10, "podman container restore --import /var/lib/syncpoint/restore-10/auditor.tar", "/")),
            (20, process(1, &format!("/usr/bin/conmon -c {ID} -n auditor"), "/")),
            (21, process(20, "/usr/bin/runc restore", "/")),
            (22, process(21, "criu: restore --rpc", "/")),
            (23, process(22, "/bin/ledger", &format!("/libpod_parent/libpod-{ID}"))),
            (30, process(1, "/bin/detached", &format!("/machine.slice/libpod-{ID}.scope"))),
            (31, process(1, "/bin/nested", &format!("/libpod_parent/libpod-{ID}/sub"))),
            (40, process(1, &format!("vim {ID}"), "/")),
            (41, process(1, &format!("podman logs {ID}0"), "/libpod_parent/libpod-0")),
        ]);
        let marks = |id: Option<&str>, folder: Option<&str>| Marks {
            id: id.map(str::to_owned),
            folder: folder.map(Into::into),
            since: Ticks(100),
        };
        let found = |marks: Marks| select(&all, &marks, 10).into_iter().collect::<Vec<_>>();
        assert_eq!(found(marks(Some(ID), Some(folder))), [11, 20, 21, 22, 23, 30, 31]);
        assert_eq!(found(marks(None, Some(folder))), [11]);
        assert_eq!(found(marks(Some(ID), None)), [20, 21, 22, 23, 30, 31]);
        assert_eq!(found(marks(None, None)), [0; 0]);
        let later = Marks { since: Ticks(101), ..marks(Some(ID), Some(folder)) };
        assert_eq!(found(later), [0; 0], "nothing older than the restore");
    }

    #[test]
    fn the_launcher_and_its_ancestors_are_spared() {
        let all =
            BTreeMap::from([(5, process(1, &format!("podman run {ID}"), "/")), (6, process(5, "syncpoint", "/"))]);
        let marks = Marks { id: Some(ID.to_owned()), ..Marks::default() };
        assert_eq!(select(&all, &marks, 6).len(), 0);
    }

    #[test]
    fn what_was_found_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let marks =
            Marks { folder: Some(folder.path().to_owned()), since: Ticks::of_this_process(), ..Marks::default() };
        let script = format!("exec -a podman sh -c 'sleep 100; :' {}/member.tar", folder.path().display());
        let mut child = std::process::Command::new("bash").args(["-c", &script]).spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        while find(&marks).len() < 2 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(find(&marks).len(), 2);
        assert!(!wait_gone(&marks, Duration::from_millis(10)));
        kill(&marks).unwrap();
        assert!(wait_gone(&marks, Duration::ZERO));
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn a_process_that_ended_is_not_alive_even_before_it_is_collected() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id().cast_signed();
        assert!(is_alive(pid));
        child.kill().unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while is_alive(pid) && std::time::Instant::now() < until {
            std::thread::yield_now();
        }
        assert!(!is_alive(pid));
        child.wait().unwrap();
        assert!(!is_alive(pid) && !is_alive(0));
    }
}
