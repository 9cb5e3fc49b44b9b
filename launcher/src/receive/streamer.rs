//! The socket over which CRIU gives its images away or asks for them (`criu --stream`), whose words are
//! [`image_format::image_streamer`]'s.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::descriptors::receive;
use image_format::image_streamer::{LENGTH, StreamerError, reply, request_len, requested};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::geteuid;
use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use tokio_util::sync::CancellationToken;

/// How long CRIU may take in the middle of a request.
const PATIENCE: Duration = Duration::from_secs(5);
/// CRIU connects once.
const BACKLOG: i32 = 16;
/// How often whoever waits looks whether to stop, in milliseconds.
const LOOK: u8 = 100;

/// Why a conversation with CRIU ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConversationError {
    /// The socket.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What it said.
    #[error(transparent)]
    Words(#[from] StreamerError),
    /// What came instead of a pipe.
    #[error("CRIU sent no pipe for {name}")]
    NoPipe { name: String },
    /// Somebody wants it to end.
    #[error("stopped")]
    Stopped,
}

/// A socket that waits for one CRIU, in its folder. Dropped, it is removed.
#[derive(Debug)]
pub(crate) struct Listener {
    listener: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Makes the socket; what a process that was killed left there goes.
    pub fn bind(folder: &Path, name: &str) -> io::Result<Self> {
        let path = folder.join(name);
        let is_socket = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.file_type().is_socket());
        if is_socket && UnixStream::connect(&path).is_err() {
            fs::remove_file(&path)?;
        }
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // The file gets the socket's mode when it is made. To change that of the file later would follow whatever somebody put in its place.
        fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        bind(&socket, &SocketAddrUnix::new(&path)?)?;
        let made = Self { listener: socket.into(), path };
        listen(&made.listener, BACKLOG)?;
        Ok(made)
    }

    /// Waits for CRIU: a process of this user or root. Others are not heard.
    pub fn accept(self, stop: &CancellationToken) -> Result<Conversation, ConversationError> {
        loop {
            wait(&mut [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)], stop)?;
            let (stream, _) = self.listener.accept()?;
            let peer = getsockopt(&stream, sockopt::PeerCredentials).map_err(io::Error::from)?;
            if peer.uid() == 0 || peer.uid() == geteuid().as_raw() {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                return Ok(Conversation(stream));
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Nothing more can be done about one that cannot be removed; the next one is told.
        let _ = fs::remove_file(&self.path);
    }
}

/// What one CRIU says.
#[derive(Debug)]
pub(crate) struct Conversation(UnixStream);

impl Conversation {
    /// The next file that it names; `None`: there is none any more. It has to be there already ([`wait`]).
    pub fn request(&mut self) -> Result<Option<String>, ConversationError> {
        let mut length = [0; LENGTH];
        match self.0.read(&mut length[..1])? {
            0 => return Ok(None),
            _ => self.0.read_exact(&mut length[1..])?,
        }
        let mut request = vec![0; request_len(length)?];
        self.0.read_exact(&mut request)?;
        Ok(Some(requested(&request)?))
    }

    /// The pipe of the file that was named.
    pub fn pipe(&self, name: &str) -> Result<OwnedFd, ConversationError> {
        let (_, pipe) = receive(self.0.as_fd(), &mut [0])?;
        pipe.ok_or_else(|| ConversationError::NoPipe { name: name.to_owned() })
    }

    /// Says whether there is the file that was named.
    pub fn reply(&mut self, exists: bool) -> io::Result<()> {
        self.0.write_all(&reply(exists))
    }
}

impl AsFd for Conversation {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until there is something at one of them.
pub(crate) fn wait(descriptors: &mut [PollFd<'_>], stop: &CancellationToken) -> Result<(), ConversationError> {
    loop {
        match poll(descriptors, PollTimeout::from(LOOK)) {
            _ if stop.is_cancelled() => return Err(ConversationError::Stopped),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(io::Error::from(error).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_socket_is_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let listener = Listener::bind(folder.path(), "socket").unwrap();
        let mode = || fs::metadata(folder.path().join("socket")).map(|facts| facts.permissions().mode() & 0o777);
        assert_eq!(mode().unwrap(), 0o600);
        assert!(UnixStream::connect(folder.path().join("socket")).is_ok());
        drop(listener);
        assert!(mode().is_err(), "it is gone");
    }
}
