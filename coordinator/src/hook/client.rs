//! A hook's connection to the rendezvous: one request, one answer, and an eye on everyone who could die meanwhile.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::process::Process;
use super::tasks::Tasks;
use crate::proto::Reply;
use crate::wire::{self, Answer, Request, WireError};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    #[error("nobody can be reached at the session's socket")]
    Connect(#[source] io::Error),
    #[error("the connection to the rendezvous failed")]
    Broken(#[source] io::Error),
    #[error("the rendezvous has gone")]
    Gone,
    #[error("the answer of the rendezvous is none")]
    BadAnswer(#[source] WireError),
    #[error("the time was up")]
    Deadline,
    #[error("CRIU has gone")]
    Criu,
    #[error("the tasks have gone")]
    Tasks,
}

/// A connection that ends, at the latest, at its deadline.
pub(super) struct Client {
    stream: UnixStream,
    deadline: Instant,
}

impl Client {
    pub(super) fn connect(path: &Path, deadline: Instant) -> Result<Self, Lost> {
        let failed = |error: Errno| Lost::Connect(error.into());
        let address = SocketAddrUnix::new(path).map_err(failed)?;
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(failed)?;
        // Both connecting to a full queue and sending to a full buffer wait no longer than this.
        set_socket_timeout(&socket, Timeout::Send, Some(left(deadline)?)).map_err(failed)?;
        connect(&socket, &address).map_err(failed)?;
        Ok(Self { stream: UnixStream::from(socket), deadline })
    }

    pub(super) fn send(&mut self, request: &Request) -> Result<(), Lost> {
        let frame = wire::encode(request).map_err(|error| Lost::Broken(io::Error::other(error)))?;
        self.stream.write_all(&frame).map_err(Lost::Broken)
    }

    /// Waits for the answer, or for the death of CRIU or of the tasks, or for the deadline.
    pub(super) fn wait(&mut self, criu: &Process, tasks: Option<&Tasks>) -> Result<Reply, Lost> {
        let mut fds =
            vec![PollFd::new(&self.stream, PollFlags::IN), PollFd::from_borrowed_fd(criu.handle(), PollFlags::IN)];
        fds.extend(tasks.map(|tasks| PollFd::from_borrowed_fd(tasks.init.handle(), PollFlags::IN)));
        loop {
            let left = left(self.deadline)?;
            let timeout = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            match poll(&mut fds, Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(Lost::Broken(error.into())),
            }
            let fired = |place: usize| fds.get(place).is_some_and(|fd| !fd.revents().is_empty());
            if fired(1) {
                return Err(Lost::Criu);
            }
            if fired(2) {
                return Err(Lost::Tasks);
            }
            if fired(0) {
                break;
            }
        }
        self.stream.set_read_timeout(Some(left(self.deadline)?)).map_err(Lost::Broken)?;
        match wire::read::<Answer>(&self.stream) {
            Ok(answer) => Ok(answer.reply),
            Err(WireError::Read(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Lost::Gone),
            Err(WireError::Read(error)) => Err(Lost::Broken(error)),
            Err(error) => Err(Lost::BadAnswer(error)),
        }
    }
}

/// The time until the deadline, never zero, which would mean "for ever" to a socket.
fn left(deadline: Instant) -> Result<Duration, Lost> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(Lost::Deadline) } else { Ok(left) }
}
