//! The tasks of a dump while they wait for the decision, held by more than CRIU.
//!
//! At post-dump CRIU holds the tasks as their tracer, and their connections in repair mode. A CRIU that is killed there lets
//! the tasks go before anybody can take the connections out of it, and a task that then sends finds an error that no program
//! expects. So the hook freezes the container's cgroup as well. It is thawed before CRIU goes on, which then resumes the tasks
//! itself; or, if CRIU is gone, once what it left was mended: its connections, and the lock of the network that it had put on.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::sockopt::TcpRepair;
use nix::sys::socket::{getsockopt, setsockopt};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// A container's cgroup, of version 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frozen {
    folder: PathBuf,
}

impl Frozen {
    /// Freezes the cgroup of a container's first task; `None` if there is none that could be frozen.
    pub(super) fn freeze(init: i32) -> Option<Self> {
        let cgroup = Self::of(init)?;
        fs::write(cgroup.file(), "1").is_ok().then_some(cgroup)
    }

    /// The cgroup of a process, if it can be frozen: not on hosts without version 2, not the root's, and not one that this
    /// process is in itself.
    fn of(pid: i32) -> Option<Self> {
        let mount = mount_point(&fs::read_to_string("/proc/self/mountinfo").ok()?)?;
        let path = path_in(&fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?)?;
        let own = path_in(&fs::read_to_string("/proc/self/cgroup").ok()?)?;
        if path == Path::new("") || own.starts_with(&path) {
            return None;
        }
        let cgroup = Self { folder: mount.join(path) };
        cgroup.file().exists().then_some(cgroup)
    }

    fn file(&self) -> PathBuf {
        self.folder.join("cgroup.freeze")
    }

    /// Lets the tasks go, as far as the cgroup holds them.
    fn thaw(&self) -> io::Result<()> {
        fs::write(self.file(), "0")
    }

    /// Every process in it and below it.
    fn processes(&self) -> BTreeSet<i32> {
        let mut found = BTreeSet::new();
        let mut folders = vec![self.folder.clone()];
        while let Some(folder) = folders.pop() {
            let listed = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            found.extend(listed.lines().filter_map(|line| line.parse::<i32>().ok()));
            let below = fs::read_dir(&folder).into_iter().flatten().flatten();
            folders.extend(
                below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
            );
        }
        found
    }
}

/// Lets the tasks of a dump go: those of a CRIU that is gone only after their connections were taken out of repair mode.
///
/// # Errors
/// Some connection cannot be, or the cgroup is not thawed; all others are.
pub(super) fn let_go(init: i32, criu_is_gone: bool) -> io::Result<()> {
    let Some(cgroup) = Frozen::of(init) else { return Ok(()) };
    let mended = match criu_is_gone {
        true => unlock_network(init).and(cgroup.processes().into_iter().try_for_each(end_repair)),
        false => Ok(()),
    };
    cgroup.thaw().and(mended)
}

/// Takes away what a CRIU that was killed in the middle of a dump left in the container of this task: connections in repair
/// mode, a locked network, a frozen cgroup. Nothing happens to a container that is as it should be, or that is being traced.
///
/// # Errors
/// Something of it cannot be taken away.
pub fn mend(init: i32) -> io::Result<()> {
    let status = fs::read_to_string(format!("/proc/{init}/status")).unwrap_or_default();
    if status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|pid| pid.trim() != "0")) {
        return Ok(());
    }
    let_go(init, true)
}

/// What CRIU itself gives to `iptables-restore` when it unlocks a network.
const UNLOCK: &str = "*filter\n:CRIU - [0:0]\n-D INPUT -j CRIU\n-D OUTPUT -j CRIU\n-X CRIU\nCOMMIT\n";

/// How CRIU names its tables where it uses nftables.
const TABLE: &str = "table inet CRIU-";

/// Takes away CRIU's lock of the network of this task, which is not the host's.
fn unlock_network(init: i32) -> io::Result<()> {
    let network = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net"));
    if network(&init.to_string())? == network("self")? {
        return Ok(());
    }
    let namespace = File::open(format!("/proc/{init}/ns/net"))?;
    // A thread of its own is in the container's network; this one stays where it is.
    let unlocked = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                setns(&namespace, CloneFlags::CLONE_NEWNET)?;
                for program in ["iptables-restore", "ip6tables-restore"] {
                    // It fails where there is no lock, and is not there where CRIU did not use it.
                    let _ = feed(program, &["-w", "--noflush"], UNLOCK);
                }
                let Ok(tables) = Command::new("nft").args(["list", "tables"]).stdin(Stdio::null()).output() else {
                    return Ok(());
                };
                for line in String::from_utf8_lossy(&tables.stdout).lines().filter(|line| line.starts_with(TABLE)) {
                    feed("nft", &["-f", "-"], &format!("delete {line}\n"))?;
                }
                Ok(())
            })
            .join()
    });
    unlocked.unwrap_or_else(|_| Err(io::Error::other("the thread that unlocks the network ended unexpectedly")))
}

/// Runs a program with this input.
fn feed(program: &str, arguments: &[&str], input: &str) -> io::Result<()> {
    let mut command = Command::new(program);
    let mut running =
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    if let Some(mut stdin) = running.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    running.wait().map(drop)
}

/// Takes every connection of a process out of repair mode.
fn end_repair(pid: i32) -> io::Result<()> {
    let Some(process) = Pid::from_raw(pid) else { return Ok(()) };
    let handle = match pidfd_open(process, PidfdFlags::empty()) {
        Ok(handle) => handle,
        Err(Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for number in sockets(pid)? {
        let socket = match pidfd_getfd(&handle, number, PidfdGetfdFlags::empty()) {
            Ok(socket) => socket,
            // Closed, or ended, in the meantime.
            Err(Errno::BADF | Errno::SRCH) => continue,
            Err(error) => return Err(error.into()),
        };
        // Other sockets than TCP's have no such mode.
        if getsockopt(&socket, TcpRepair).is_ok_and(|mode| mode != 0) {
            setsockopt(&socket, TcpRepair, &0)?;
        }
    }
    Ok(())
}

/// The numbers of a process's descriptors that are sockets.
fn sockets(pid: i32) -> io::Result<Vec<i32>> {
    let entries = match fs::read_dir(format!("/proc/{pid}/fd")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let is_socket = fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"));
        if let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()).filter(|_| is_socket) {
            found.push(number);
        }
    }
    Ok(found)
}

/// Where version 2 is mounted: beside version 1 on some hosts.
fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    let mut cgroup2 = mountinfo.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        after.starts_with("cgroup2 ").then(|| before.split(' ').nth(4))?
    });
    // What was mounted last is what is seen.
    cgroup2.next_back().map(PathBuf::from)
}

/// The path of a process in version 2, without its first slash.
fn path_in(cgroups: &str) -> Option<PathBuf> {
    cgroups.lines().find_map(|line| line.strip_prefix("0::/")).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_found_on_hosts_of_one_and_of_both_versions() {
        let one = "30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(mount_point(one), Some("/sys/fs/cgroup".into()));
        let both = "31 25 0:27 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
                    32 31 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                    33 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        assert_eq!(mount_point(both), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mount_point("33 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"), None);
        assert_eq!(path_in("12:cpu:/x\n0::/libpod_parent/libpod-1\n"), Some("libpod_parent/libpod-1".into()));
        assert_eq!(path_in("12:cpu:/x\n"), None);
    }

    #[test]
    fn this_process_is_not_frozen_by_itself() {
        assert_eq!(Frozen::freeze(std::process::id().cast_signed()), None);
    }
}
