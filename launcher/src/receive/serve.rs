//! Gives CRIU the images of a dump, one by one as it asks for them (`criu restore --stream`).
//!
//! CRIU's tasks ask side by side while they come into being, and each reads its memory from a pipe of its own, so that each file has a
//! thread. A CRIU that does not want all of a file closes its pipe.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use image_format::image_streamer::SERVE_SOCKET;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags};
use tokio_util::sync::CancellationToken;

use crate::receive::streamer::{ConversationError, Listener, wait};

/// Bytes that a pipe holds.
const PIPE: i32 = 1 << 20;

/// Why CRIU did not get what it asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The socket for it.
    #[error("cannot listen at {}", path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What it said, or the socket.
    #[error("CRIU cannot be served")]
    Criu(#[source] io::Error),
    /// Told to stop.
    #[error("stopped")]
    Stopped,
}

impl From<ConversationError> for ServeError {
    fn from(error: ConversationError) -> Self {
        match error {
            ConversationError::Stopped => Self::Stopped,
            ConversationError::Io(error) => Self::Criu(error),
            other => Self::Criu(io::Error::new(io::ErrorKind::InvalidData, other)),
        }
    }
}

/// What CRIU asked for and got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served {
    /// Files that it asked for and that were there.
    pub files: u64,
    /// Their bytes, as far as it took them.
    pub bytes: u64,
}

/// Waits for CRIU.
#[derive(Debug)]
pub struct Server(Listener);

impl Server {
    /// Listens in CRIU's folder of images (`--images-dir`).
    ///
    /// # Errors
    /// There is no such folder, or somebody listens there.
    pub fn listen(images: &Path) -> Result<Self, ServeError> {
        let listener = Listener::bind(images, SERVE_SOCKET);
        listener.map(Self).map_err(|source| ServeError::Listen { path: images.join(SERVE_SOCKET), source })
    }

    /// Waits for CRIU, and serves it the files of `folder` until it asks for no more. Blocks.
    ///
    /// # Errors
    /// What it says makes no sense; told to stop.
    pub fn serve(self, folder: &Path, stop: &CancellationToken) -> Result<Served, ServeError> {
        let mut criu = self.0.accept(stop)?;
        let (mut files, bytes) = (0, AtomicU64::new(0));
        thread::scope(|scope| {
            loop {
                wait(&mut [PollFd::new(criu.as_fd(), PollFlags::POLLIN)], stop)?;
                let Some(name) = criu.request()? else { break };
                let file = match File::open(folder.join(&name)) {
                    Ok(file) => file,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        criu.reply(false).map_err(ServeError::Criu)?;
                        continue;
                    }
                    Err(error) => return Err(ServeError::Criu(error)),
                };
                criu.reply(true).map_err(ServeError::Criu)?;
                let pipe = criu.pipe(&name)?;
                files += 1;
                // A small one is slower and as good.
                let _ = fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(PIPE));
                let bytes = &bytes;
                scope.spawn(move || {
                    // Whoever has read enough closes the pipe.
                    let copied = io::copy(&mut &file, &mut File::from(pipe)).unwrap_or(0);
                    bytes.fetch_add(copied, Ordering::Relaxed);
                });
            }
            Ok::<(), ServeError>(())
        })?;
        Ok(Served { files, bytes: bytes.into_inner() })
    }
}
