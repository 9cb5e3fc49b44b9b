//! A hook's connection to the rendezvous: its requests, the answers, and an eye on everyone who could die meanwhile.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::process::Process;
use super::secure::{Secure, SecureError};
use super::tasks::Tasks;
use crate::ticket::Place;
use crate::wire::{self, HEADER, WireError};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Lost {
    #[error("nobody can be reached at the session's socket")]
    Connect(#[source] io::Error),
    #[error(transparent)]
    Secure(Box<SecureError>),
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
    #[error("the launcher of this host gave up, or has gone")]
    Launcher,
}

impl From<SecureError> for Lost {
    fn from(error: SecureError) -> Self {
        Self::Secure(Box::new(error))
    }
}

/// Whose death ends the waiting.
#[derive(Clone, Copy)]
pub(crate) struct Watch<'a> {
    pub(super) criu: Option<&'a Process>,
    pub(super) tasks: Option<&'a Tasks>,
    /// The launcher of this host, where the rendezvous is on another one.
    pub(super) launcher: Option<&'a File>,
}

impl Watch<'_> {
    pub(crate) const NOBODY: Self = Self { criu: None, tasks: None, launcher: None };
}

/// A connection that ends, at the latest, at its deadline.
pub(crate) struct Client {
    transport: Transport,
    deadline: Instant,
    /// What came and is not yet read.
    buffer: Vec<u8>,
}

enum Transport {
    Here(UnixStream),
    Elsewhere(Box<dyn Elsewhere>),
}

/// How a connection is made. A program that is given [`Client::near`] has nothing of TLS in it.
pub(crate) type Connect = fn(&Place, Instant) -> Result<Client, Lost>;

/// A connection to another host.
pub(super) trait Elsewhere {
    /// What becomes readable.
    fn handle(&self) -> BorrowedFd<'_>;
    fn send(&mut self, bytes: &[u8], deadline: Instant) -> Result<(), SecureError>;
    /// What can be read from a readable stream; `WouldBlock` where that is only part of a record.
    fn receive(&mut self, buffer: &mut Vec<u8>) -> Result<io::Result<usize>, SecureError>;
    /// What came with something else before, for which no stream becomes readable again.
    fn decrypted(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize>;
}

impl Client {
    /// Connects on this host or to another one.
    pub(crate) fn connect(place: &Place, deadline: Instant) -> Result<Self, Lost> {
        match place {
            Place::Socket(_) => Self::near(place, deadline),
            Place::Remote(remote) => {
                let transport = Transport::Elsewhere(Box::new(Secure::connect(remote, deadline)?));
                Ok(Self { transport, deadline, buffer: Vec::new() })
            }
        }
    }

    /// Connects on this host, and nowhere else.
    pub(crate) fn near(place: &Place, deadline: Instant) -> Result<Self, Lost> {
        match place {
            Place::Socket(path) => {
                let transport = Transport::Here(connect_here(path, deadline)?);
                Ok(Self { transport, deadline, buffer: Vec::new() })
            }
            Place::Remote(_) => Err(Lost::Connect(io::ErrorKind::Unsupported.into())),
        }
    }

    /// From here on the connection ends at this deadline instead.
    pub(crate) fn until(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    pub(crate) fn send(&mut self, request: &impl Serialize) -> Result<(), Lost> {
        let frame = wire::encode(request).map_err(|error| Lost::Broken(io::Error::other(error)))?;
        let left = left(self.deadline)?;
        match &mut self.transport {
            Transport::Here(stream) => {
                stream.set_write_timeout(Some(left)).and_then(|()| stream.write_all(&frame)).map_err(Lost::Broken)
            }
            Transport::Elsewhere(secure) => Ok(secure.send(&frame, self.deadline)?),
        }
    }

    /// Waits for the next answer, or for a death, or for the deadline.
    pub(crate) fn receive<T: DeserializeOwned>(&mut self, watch: Watch<'_>) -> Result<T, Lost> {
        loop {
            if let Transport::Elsewhere(secure) = &mut self.transport {
                // An end is found, and told, by the next read.
                let _ = secure.decrypted(&mut self.buffer);
            }
            if let Some(body) = self.next_body()? {
                return wire::decode(&body).map_err(Lost::BadAnswer);
            }
            self.sleep(watch)?;
            let read = match &mut self.transport {
                Transport::Here(stream) => read_some(stream, &mut self.buffer),
                Transport::Elsewhere(secure) => secure.receive(&mut self.buffer)?,
            };
            match read {
                Ok(0) => return Err(Lost::Gone),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => return Err(Lost::Broken(error)),
            }
        }
    }

    /// The body of the first frame in the buffer, once it is there as a whole.
    fn next_body(&mut self) -> Result<Option<Vec<u8>>, Lost> {
        let Some(header) = self.buffer.first_chunk::<HEADER>() else { return Ok(None) };
        let end = HEADER + wire::body_length(*header).map_err(Lost::BadAnswer)?;
        if self.buffer.len() < end {
            return Ok(None);
        }
        let body = self.buffer[HEADER..end].to_vec();
        self.buffer.drain(..end);
        Ok(Some(body))
    }

    /// Until there is something to read.
    fn sleep(&self, watch: Watch<'_>) -> Result<(), Lost> {
        let stream = match &self.transport {
            Transport::Here(stream) => stream.as_fd(),
            Transport::Elsewhere(secure) => secure.handle(),
        };
        let mut fds = vec![PollFd::from_borrowed_fd(stream, PollFlags::IN)];
        let criu = watch.criu.map(|criu| (criu.handle(), Lost::Criu));
        let tasks = watch.tasks.map(|tasks| (tasks.init.handle(), Lost::Tasks));
        let launcher = watch.launcher.map(|launcher| (launcher.as_fd(), Lost::Launcher));
        let (handles, mut deaths): (Vec<_>, Vec<_>) = criu.into_iter().chain(tasks).chain(launcher).unzip();
        fds.extend(handles.into_iter().map(|handle| PollFd::from_borrowed_fd(handle, PollFlags::IN)));
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
            let mut fired = fds.iter().map(|fd| !fd.revents().is_empty());
            let readable = fired.next().unwrap_or(false);
            if let Some(dead) = fired.position(|dead| dead) {
                return Err(deaths.swap_remove(dead));
            }
            if readable {
                return Ok(());
            }
        }
    }
}

fn connect_here(path: &Path, deadline: Instant) -> Result<UnixStream, Lost> {
    let failed = |error: Errno| Lost::Connect(error.into());
    let address = SocketAddrUnix::new(path).map_err(failed)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(failed)?;
    // Connecting to a full queue waits no longer than this.
    set_socket_timeout(&socket, Timeout::Send, Some(left(deadline)?)).map_err(failed)?;
    connect(&socket, &address).map_err(failed)?;
    Ok(UnixStream::from(socket))
}

/// Appends what one read of a readable stream gives.
pub(super) fn read_some(mut stream: impl io::Read, buffer: &mut Vec<u8>) -> io::Result<usize> {
    let mut some = [0; 4096];
    let length = stream.read(&mut some)?;
    buffer.extend_from_slice(&some[..length]);
    Ok(length)
}

/// The time until the deadline, never zero, which would mean "for ever" to a socket.
pub(super) fn left(deadline: Instant) -> Result<Duration, Lost> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(Lost::Deadline) } else { Ok(left) }
}
