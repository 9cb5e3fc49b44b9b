//! Takes the dump of one plain `criu dump`, with no engine and no session: pages over a socket (`--page-server`), or every image
//! through a pipe (`--stream`).
//!
//! ```text
//!  criu dump ─┬─ --page-server ─▶ pages, held here     other images ─▶ CRIU's folder ─┐
//!             └─ --stream ──────▶ every image, held here ─────────────────────────────┤
//!                                                                                     ▼
//!          CRIU writes stats-dump: the dump succeeded ──────────────▶ packed into the store
//!          otherwise, or the store fails: what is held is written into CRIU's folder, and nothing is lost
//! ```
//!
//! When all has come CRIU goes on, and in most cases ends the tasks. From then on the dump is all that there is of them, so it is held
//! whole, whatever base it is packed over, until somebody has it.

mod capture;
pub(crate) mod serve;
mod streamer;

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use coordinator::{TlsError, TlsFiles};
use image_format::image_streamer::{CAPTURE_SOCKET, ImageFiles};
use image_format::page_server::{ReceiveLimits, Received};
use image_format::{Captured, DumpError, DumpSource, MemberId};
use tokio_util::sync::CancellationToken;

use crate::pages::{Admit, PageServer, PagesError};
use crate::receive::streamer::{ConversationError, Listener};

/// What CRIU writes last of all, if its dump succeeded.
const STATS: &str = "stats-dump";
/// Bytes of pages on their way to where they stay. CRIU is not answered before all of them are there, so that nothing is won by letting
/// more of them wait.
const WAITING: usize = 16 << 20;
/// How often whoever waits for it looks.
const LOOK: Duration = Duration::from_millis(20);

/// Where the dump comes from, and where it waits.
#[derive(Debug, Clone)]
pub struct ReceiveOptions {
    /// How it comes.
    pub way: DumpTransport,
    /// CRIU's folder of images (`--images-dir`).
    pub images: PathBuf,
    /// CRIU's working folder (`--work-dir`), where that is another one.
    pub criu_work_dir: Option<PathBuf>,
    /// Where files without names are made for what does not stay in memory.
    pub spool: PathBuf,
    /// Bytes of memory that stay in memory.
    pub memory_bytes: usize,
    /// How long CRIU may take to finish after it sent everything.
    pub patience: Duration,
}

/// How a dump comes.
#[derive(Debug, Clone)]
pub enum DumpTransport {
    /// CRIU's `--page-server` with `--address` and `--port`.
    Pages {
        /// Where it comes to.
        address: SocketAddr,
        /// With CRIU's `--tls`: the certificates of this end. Without, only a process of this host and user is heard.
        tls: Option<TlsFiles>,
        /// With TLS: the member that CRIU's certificate names. Without it, any certificate of the authority is good.
        member: Option<MemberId>,
    },
    /// CRIU's `--stream`.
    Streamer,
}

/// Why there is no dump.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveDumpError {
    /// Without TLS, from elsewhere.
    #[error("without TLS only 127.0.0.1 is listened at, not {address}")]
    Open {
        /// What was asked for.
        address: SocketAddr,
    },
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The pages.
    #[error(transparent)]
    Pages(#[from] PagesError),
    /// The images that came through pipes.
    #[error("the images of CRIU did not come")]
    Images(#[source] io::Error),
    /// The socket for them.
    #[error("cannot listen at {}", path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection ended and nothing that a dump has was there.
    #[error("CRIU left before it had written its inventory: its dump failed")]
    Failed,
    /// Everything came, and CRIU did not say that its dump succeeded.
    #[error("CRIU did not write {} within {} s: its dump failed, or it runs with another --work-dir", stats.display(), patience.as_secs())]
    NotWhole {
        /// What it writes last of all.
        stats: PathBuf,
        /// How long it was waited for.
        patience: Duration,
    },
    /// Told to stop.
    #[error("stopped")]
    Stopped,
}

impl From<ConversationError> for ReceiveDumpError {
    fn from(error: ConversationError) -> Self {
        match error {
            ConversationError::Stopped => Self::Stopped,
            ConversationError::Io(error) => Self::Images(error),
            other => Self::Images(io::Error::new(io::ErrorKind::InvalidData, other)),
        }
    }
}

/// Waits for CRIU.
#[derive(Debug)]
pub struct Receiver {
    options: ReceiveOptions,
    stats: Stats,
    door: Door,
}

#[derive(Debug)]
enum Door {
    Pages(PageServer),
    Streamer(Listener),
}

impl Receiver {
    /// Listens. What CRIU's folder had of an earlier dump counts for nothing from here on.
    ///
    /// # Errors
    /// Certificates or an address that cannot be used.
    pub fn listen(options: ReceiveOptions) -> Result<Self, ReceiveDumpError> {
        let door = match &options.way {
            DumpTransport::Pages { address, tls, member } => {
                let admit = match tls {
                    Some(files) => Admit::Issued(member.clone(), files.server()?),
                    None if address.is_ipv4() && address.ip().is_loopback() => Admit::SameUser,
                    None => return Err(ReceiveDumpError::Open { address: *address }),
                };
                let limits = ReceiveLimits {
                    waiting_bytes: WAITING,
                    memory_bytes: options.memory_bytes,
                    ..ReceiveLimits::default()
                };
                Door::Pages(PageServer::listen(*address, admit, &options.spool, None, limits)?)
            }
            DumpTransport::Streamer => {
                let listener = Listener::bind(&options.images, CAPTURE_SOCKET);
                let path = || options.images.join(CAPTURE_SOCKET);
                Door::Streamer(listener.map_err(|source| ReceiveDumpError::Listen { path: path(), source })?)
            }
        };
        let stats = Stats::look(options.criu_work_dir.as_deref().unwrap_or(&options.images));
        Ok(Self { options, stats, door })
    }

    /// Where pages are listened for.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.door {
            Door::Pages(server) => server.address(),
            Door::Streamer(_) => None,
        }
    }

    /// Waits for CRIU, and until all that it sends has come. Blocks. Told to stop, it ends if CRIU has not come yet.
    ///
    /// # Errors
    /// What came is no dump, or cannot be kept: CRIU's dump fails by that, and its tasks run on.
    pub fn receive(self, stop: &CancellationToken) -> Result<ReceivedDump, ReceiveDumpError> {
        let memory = match self.door {
            Door::Pages(server) => Memory::Pages(Arc::new(server.wait(stop)?.ok_or(ReceiveDumpError::Stopped)?)),
            Door::Streamer(listener) => {
                let files = ImageFiles::new(&self.options.spool, self.options.memory_bytes);
                let files = capture::capture(listener, files, stop)?;
                if !files.has("inventory.img") {
                    return Err(ReceiveDumpError::Failed);
                }
                Memory::Images(Arc::new(files))
            }
        };
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let came_at = since_1970.as_secs();
        let ReceiveOptions { images, patience, .. } = self.options;
        Ok(ReceivedDump { images, patience, stats: self.stats, memory, came_at })
    }
}

/// What came, which is all that there is of it.
#[derive(Debug, Clone)]
pub struct ReceivedDump {
    images: PathBuf,
    patience: Duration,
    stats: Stats,
    memory: Memory,
    /// When, in seconds since 1970.
    came_at: u64,
}

#[derive(Debug, Clone)]
enum Memory {
    Pages(Arc<Received>),
    Images(Arc<ImageFiles>),
}

/// How much came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceivedSize {
    /// Bytes of pages; the other images are in CRIU's folder.
    Pages(u64),
    /// Bytes of all images.
    Images(u64),
}

impl ReceivedDump {
    /// How much came.
    #[must_use]
    pub fn came(&self) -> ReceivedSize {
        match &self.memory {
            Memory::Pages(pages) => ReceivedSize::Pages(pages.spooled_bytes()),
            Memory::Images(images) => ReceivedSize::Images(images.bytes()),
        }
    }

    /// Waits until CRIU says that its dump succeeded. Blocks.
    ///
    /// # Errors
    /// It does not.
    pub fn wait_whole(&self, stop: &CancellationToken) -> Result<(), ReceiveDumpError> {
        let until = Instant::now() + self.patience;
        while !self.stats.is_new() {
            if stop.is_cancelled() {
                return Err(ReceiveDumpError::Stopped);
            }
            if Instant::now() >= until {
                return Err(ReceiveDumpError::NotWhole { stats: self.stats.path.clone(), patience: self.patience });
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// The dump, to be packed; as often as need be.
    ///
    /// # Errors
    /// CRIU's folder cannot be read.
    pub fn source(&self) -> Result<DumpSource, DumpError> {
        match &self.memory {
            Memory::Pages(pages) => Ok(DumpSource::open(&self.images, None)?.with_pages(Arc::clone(pages))),
            Memory::Images(files) => {
                let mut stats = Captured::new();
                stats.add(format!("checkpoint/{STATS}"), &self.stats.path);
                let name = self.images.display().to_string();
                DumpSource::images(&name, Arc::clone(files), self.came_at, &stats)
            }
        }
    }

    /// Writes what is held into CRIU's folder, as CRIU itself would have. Gives the folder, from which it can be packed or restored.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep(&self) -> io::Result<&Path> {
        match &self.memory {
            Memory::Pages(pages) => pages.save(&self.images)?,
            Memory::Images(files) => files.save(&self.images)?,
        }
        Ok(&self.images)
    }
}

/// What CRIU writes last of all, and what was there of an earlier dump.
#[derive(Debug, Clone)]
struct Stats {
    path: PathBuf,
    before: Option<(u64, u64, i64, i64)>,
}

impl Stats {
    fn look(folder: &Path) -> Self {
        let path = folder.join(STATS);
        Self { before: mark(&path), path }
    }

    /// Whether one of this dump is there.
    fn is_new(&self) -> bool {
        let now = mark(&self.path);
        now.is_some() && now != self.before
    }
}

/// What tells two versions of a file apart; none of one that is not there or empty.
fn mark(path: &Path) -> Option<(u64, u64, i64, i64)> {
    let metadata = fs::metadata(path).ok().filter(|metadata| metadata.len() > 0)?;
    Some((metadata.dev(), metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_earlier_dump_left_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let stats = Stats::look(folder.path());
        assert!(!stats.is_new());
        fs::write(folder.path().join(STATS), "").unwrap();
        assert!(!stats.is_new(), "it is being written");
        fs::write(folder.path().join(STATS), "one").unwrap();
        assert!(stats.is_new());
        let again = Stats::look(folder.path());
        assert!(!again.is_new());
        thread::sleep(LOOK);
        fs::write(folder.path().join(STATS), "two").unwrap();
        assert!(again.is_new());
    }

    #[test]
    fn without_tls_nobody_elsewhere_is_heard() {
        let folder = tempfile::tempdir().unwrap();
        for (address, good) in [("127.0.0.1:0", true), ("0.0.0.0:0", false), ("[::1]:0", false)] {
            let options = ReceiveOptions {
                way: DumpTransport::Pages { address: address.parse().unwrap(), tls: None, member: None },
                images: folder.path().to_owned(),
                criu_work_dir: None,
                spool: folder.path().to_owned(),
                memory_bytes: 1 << 20,
                patience: Duration::from_secs(1),
            };
            let listening = Receiver::listen(options);
            assert_eq!(listening.is_ok(), good, "{address}: {listening:?}");
        }
    }
}
