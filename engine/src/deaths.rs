//! In which order processes ended: whose peers ended with it, and not the other way round.

use std::io;
use std::os::fd::OwnedFd;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Handles of processes, by their places in the list that was given. The kernel keeps them in the order in which they become readable,
/// which is when their processes end.
#[derive(Debug)]
pub struct Deaths {
    ready: OwnedFd,
    handles: Vec<OwnedFd>,
    /// Who was gone from the start.
    before: Vec<usize>,
}

impl Deaths {
    /// Looks after these processes from now on.
    pub fn watch(pids: impl IntoIterator<Item = i32>) -> io::Result<Self> {
        let ready = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let (mut handles, mut before) = (Vec::new(), Vec::new());
        for (place, pid) in pids.into_iter().enumerate() {
            match Pid::from_raw(pid).map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
                Some(Ok(handle)) => {
                    epoll::add(&ready, &handle, epoll::EventData::new_u64(place as u64), epoll::EventFlags::IN)?;
                    handles.push(handle);
                }
                Some(Err(_)) | None => before.push(place),
            }
        }
        Ok(Self { ready, handles, before })
    }

    /// Who has ended, the first one first.
    pub fn so_far(&self) -> Vec<usize> {
        let mut ended = self.before.clone();
        let mut events = Vec::with_capacity(self.handles.len());
        if !self.handles.is_empty()
            && epoll::wait(&self.ready, spare_capacity(&mut events), Some(&Timespec::default())).is_ok()
        {
            ended.extend(events.iter().filter_map(|event| usize::try_from(event.data.u64()).ok()));
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn whoever_ended_first_comes_first() {
        let mut children: Vec<_> = (0..4).map(|_| Command::new("sleep").arg("60").spawn().unwrap()).collect();
        let pids = children.iter().map(|child| child.id().cast_signed()).chain([0]);
        let deaths = Deaths::watch(pids).unwrap();
        assert_eq!(deaths.so_far(), [4], "what is no process has ended");
        for place in [2, 0, 3] {
            children[place].kill().unwrap();
            children[place].wait().unwrap();
        }
        assert_eq!(deaths.so_far(), [4, 2, 0, 3]);
        children[1].kill().unwrap();
        children[1].wait().unwrap();
        assert!(Deaths::watch([]).unwrap().so_far().is_empty());
    }
}
