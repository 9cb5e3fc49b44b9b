//! What a CRIU that was killed in the middle of a dump leaves behind in a container, taken away so that it runs on.
//!
//! A CRIU that ends by itself, also one whose hook refused, undoes what it did. One that is killed does not: the kernel lets its
//! tasks go, but the connections that were being dumped stay in repair mode, in which they neither send nor receive.

use std::fs;
use std::io;

use nix::sys::socket::sockopt::TcpRepair;
use nix::sys::socket::{getsockopt, setsockopt};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::members::Member;
use crate::engine::{Marks, Ticks, processes};

/// Sees to it that a member runs on; says whether it does.
pub(crate) fn mend(member: &Member) -> io::Result<bool> {
    let pid = member.source.pid;
    let Some(init) = Pid::from_raw(pid) else { return Ok(false) };
    if rustix::process::test_kill_process(init).is_err() {
        return Ok(false);
    }
    let marks = Marks { id: Some(member.source.id.clone()), folder: None, since: Ticks::default() };
    for process in processes(&marks) {
        end_repair(process)?;
    }
    Ok(true)
}

/// Takes every socket of a process out of repair mode.
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

/// The numbers of the descriptors of a process that are sockets.
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
