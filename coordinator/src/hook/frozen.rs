//! The tasks of a dump while they wait for the decision, held by more than CRIU.
//!
//! At post-dump CRIU holds the tasks as their tracer, and their connections in repair mode. A CRIU that is killed there lets
//! the tasks go before anybody can take the connections out of it, and a task that then sends finds an error that no program
//! expects. So the hook freezes the container's cgroup as well. It is thawed before CRIU goes on, which then resumes the tasks
//! itself; or, if CRIU is gone, once what it left was mended: its connections, and the lock of the network that it had put on.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
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
        let mount = mount_point(&fs::read("/proc/self/mountinfo").ok()?)?;
        let path = path_in(&fs::read(format!("/proc/{pid}/cgroup")).ok()?)?;
        let own = path_in(&fs::read("/proc/self/cgroup").ok()?)?;
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
        let listed = tree(&self.folder).into_iter().map(|folder| fs::read_to_string(folder.join("cgroup.procs")));
        let listed: Vec<String> = listed.map(Result::unwrap_or_default).collect();
        listed.iter().flat_map(|listed| listed.lines()).filter_map(|line| line.parse().ok()).collect()
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
    let status = fs::read(format!("/proc/{init}/status")).unwrap_or_default();
    if is_traced(&status) {
        return Ok(());
    }
    let_go(init, true)
}

/// Whether a `/proc/PID/status` names a tracer. The name in it may be any bytes.
fn is_traced(status: &[u8]) -> bool {
    let mut lines = status.split(|byte| *byte == b'\n');
    lines.any(|line| line.strip_prefix(b"TracerPid:").is_some_and(|pid| pid.trim_ascii() != b"0"))
}

/// A control group that was found frozen after a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundFrozen {
    /// Its folder.
    pub folder: PathBuf,
    /// It is the container's own, and was thawed. One above it holds others too, and is left.
    pub thawed: bool,
}

/// How one version of control groups tells that a group is frozen, and is told to thaw it.
struct Freezer {
    /// The file that says `1` of a group that was frozen itself, not by one above it.
    says: &'static str,
    told: &'static str,
    thaw: &'static str,
}

const FREEZERS: [Freezer; 2] = [
    Freezer { says: "cgroup.freeze", told: "cgroup.freeze", thaw: "0" },
    Freezer { says: "freezer.self_freezing", told: "freezer.state", thaw: "THAWED" },
];

/// Lets the tasks of a container go that stand frozen after their checkpoint. A hook of somebody else's may have frozen their
/// control group; CRIU, which finds it frozen when it begins, freezes it again when it is through.
///
/// # Errors
/// A group of the container's own cannot be thawed.
pub fn thaw(init: i32) -> io::Result<Vec<FoundFrozen>> {
    let (Ok(mounts), Ok(cgroups)) = (fs::read("/proc/self/mountinfo"), fs::read(format!("/proc/{init}/cgroup"))) else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    let groups = [mount_point(&mounts).zip(path_in(&cgroups)), freezer_mount(&mounts).zip(freezer_path(&cgroups))];
    for ((mount, path), freezer) in
        groups.into_iter().zip(FREEZERS).filter_map(|(group, freezer)| Some((group?, freezer)))
    {
        if path == Path::new("") {
            continue;
        }
        let is_frozen = |folder: &Path| fs::read(folder.join(freezer.says)).is_ok_and(|says| says.trim_ascii() == b"1");
        let own = mount.join(&path);
        for folder in tree(&own).into_iter().filter(|folder| is_frozen(folder)) {
            fs::write(folder.join(freezer.told), freezer.thaw)?;
            found.push(FoundFrozen { folder, thawed: true });
        }
        let above = own.ancestors().skip(1).take_while(|folder| *folder != mount).filter(|folder| is_frozen(folder));
        found.extend(above.map(|folder| FoundFrozen { folder: folder.to_owned(), thawed: false }));
    }
    Ok(found)
}

/// A control group's folder, and all below it.
fn tree(top: &Path) -> Vec<PathBuf> {
    let mut found = vec![top.to_owned()];
    let mut next = 0;
    while let Some(folder) = found.get(next) {
        let below = fs::read_dir(folder).into_iter().flatten().flatten();
        let folders = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let folders: Vec<PathBuf> = folders.map(|entry| entry.path()).collect();
        found.extend(folders);
        next += 1;
    }
    found
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
fn mount_point(mountinfo: &[u8]) -> Option<PathBuf> {
    mounted(mountinfo, |filesystem| filesystem.starts_with("cgroup2 "))
}

/// Where the freezer of version 1 is mounted.
fn freezer_mount(mountinfo: &[u8]) -> Option<PathBuf> {
    mounted(mountinfo, |filesystem| {
        let options = filesystem.split(' ').nth(2).unwrap_or_default();
        filesystem.starts_with("cgroup ") && options.split(',').any(|option| option == "freezer")
    })
}

/// The mount point of such a filesystem: type, source and options. Other lines may hold paths of any bytes.
fn mounted(mountinfo: &[u8], is_it: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let mut points = mountinfo.split(|byte| *byte == b'\n').filter_map(|line| {
        let line = str::from_utf8(line).ok()?;
        let (before, filesystem) = line.split_once(" - ")?;
        is_it(filesystem).then(|| before.split(' ').nth(4))?
    });
    // What was mounted last is what is seen.
    points.next_back().map(PathBuf::from)
}

/// The path of a process in version 2, without its first slash.
fn path_in(cgroups: &[u8]) -> Option<PathBuf> {
    path_where(cgroups, |controllers| controllers.is_empty())
}

/// The same in the freezer of version 1.
fn freezer_path(cgroups: &[u8]) -> Option<PathBuf> {
    path_where(cgroups, |controllers| {
        controllers.split(|byte| *byte == b',').any(|controller| controller == b"freezer")
    })
}

/// The path in the hierarchy that has such controllers: each line is `NUMBER:CONTROLLERS:/PATH`.
fn path_where(cgroups: &[u8], is_it: impl Fn(&[u8]) -> bool) -> Option<PathBuf> {
    cgroups.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.splitn(3, |byte| *byte == b':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        is_it(controllers).then(|| path.strip_prefix(b"/"))?.map(|path| OsStr::from_bytes(path).into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_found_on_hosts_of_one_and_of_both_versions() {
        let one = b"30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(mount_point(one), Some("/sys/fs/cgroup".into()));
        let both = b"31 25 0:27 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
                    40 25 0:30 / /mnt/\xff ro - tmpfs tmpfs ro\n\
                    32 31 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                    33 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        assert_eq!(mount_point(both), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mount_point(b"33 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"), None);
        assert_eq!(path_in(b"12:cpu:/\xff\n0::/libpod_parent/libpod-1\n"), Some("libpod_parent/libpod-1".into()));
        assert_eq!(path_in(b"12:cpu:/x\n"), None);
        let first = b"34 31 0:31 / /sys/fs/cgroup/freezer rw,nosuid shared:9 - cgroup cgroup rw,freezer\n";
        assert_eq!(freezer_mount(&[&both[..], first].concat()), Some("/sys/fs/cgroup/freezer".into()));
        assert_eq!(freezer_mount(both), None);
        assert_eq!(freezer_path(b"7:cpu:/x\n6:devices,freezer:/a/b\n0::/c\n"), Some("a/b".into()));
    }

    #[test]
    fn a_tracer_is_seen_whatever_the_process_is_called() {
        assert!(is_traced(b"Name:\tcut \xc3\nTracerPid:\t12\n"));
        assert!(!is_traced(b"Name:\tcut \xc3\nTracerPid:\t0\n") && !is_traced(b""));
    }

    #[test]
    fn this_process_is_not_frozen_by_itself() {
        assert_eq!(Frozen::freeze(std::process::id().cast_signed()), None);
    }
}
