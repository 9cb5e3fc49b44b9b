//! Memory that follows when tasks run: CRIU's `lazy-pages`, without CRIU's daemon.
//!
//! ```text
//!  CRIU (restore, lazy-pages) ── lazy-pages.socket ──▶ pid and userfaultfd of each process; RESTORE_FINISHED
//!                                                         │
//!  tasks ── fault, fork, mremap, munmap ──▶ the kernel ──▶│ watcher: follows, and asks for parts that tasks wait for
//!                                                         │
//!  store ── parts, those first ──▶ readers: each page is checked, and put where it is lacking
//!                                                         │
//!                                        nothing lacking ─┴▶ closed: the memory is the tasks' own
//! ```
//!
//! Source: CRIU 4.2, `criu/uffd.c`: a task's number in its namespace as 32 bits (negative for a zombie, and that is all), then its
//! descriptor with one byte; after all of them `0x52535446`. CRIU looks for the socket in its working folder.
//!
//! CRIU's own daemon would do, and leave zeros in the tasks' memory if it came to an end before: nobody else holds the descriptors of children
//! that were forked meanwhile. Here they are held until the tasks are dead.

mod keeper;
mod queue;
mod space;
mod spaces;
mod uffd;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use engine::descriptors::receive;
use futures_util::stream::{FuturesUnordered, StreamExt};
use image_format::{BlobSource, Digest, LazyPages, MemberId, UnpackError, touched_pages};
use nix::sys::epoll::{EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use tokio::sync::watch;

pub(crate) use self::keeper::Keeper;
pub use self::keeper::{KEEP, keep};
use self::queue::{Job, Queue};
use self::spaces::{Asked, Memory};
use self::uffd::Uffd;

/// Where CRIU looks for whoever fills memory, in its working folder.
const SOCKET: &str = "lazy-pages.socket";
/// What CRIU says when all is restored.
const FINISHED: i32 = 0x5253_5446;
/// How long CRIU may take in the middle of a message.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a part is tried to be read, and how long is waited before the next time.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(2);
/// What the watcher is told by, beside the numbers of spaces.
const STOP: u64 = u64::MAX;
const CRIU: u64 = u64::MAX - 1;

/// Why a member's memory did not follow.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LazyError {
    /// A part cannot be read.
    #[error("its memory cannot be fetched")]
    Fetch(#[source] Arc<UnpackError>),
    /// The kernel does not take a page.
    #[error("the page at {address:#x} cannot be put")]
    Put {
        /// Where.
        address: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A part has not what the table says.
    #[error("the image lacks pages of process {process}")]
    Lacking {
        /// Counted from 0, in the order of the image's tables.
        process: usize,
    },
    /// CRIU or the kernel cannot be heard.
    #[error("its processes cannot be followed")]
    Io(#[from] io::Error),
    /// It says something that no CRIU says.
    #[error("what CRIU says of its processes is not understood")]
    Words,
}

/// How it stands.
#[derive(Debug, Clone, Default)]
enum Progress {
    #[default]
    Under,
    /// All memory is the tasks' own.
    Done,
    Failed(Arc<LazyError>),
}

/// The memory of one member that follows. Dropped, it is followed no longer: its tasks have all of it by then, or are dead.
pub(crate) struct Following {
    shared: Arc<Shared>,
    progress: watch::Receiver<Progress>,
    socket: PathBuf,
}

struct Shared {
    pages: Arc<LazyPages>,
    blobs: Box<dyn BlobSource + Send + Sync>,
    memory: Memory,
    queue: Queue,
    stop: EventFd,
    progress: watch::Sender<Progress>,
}

impl fmt::Debug for Following {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Following").field("socket", &self.socket).finish_non_exhaustive()
    }
}

/// Why no kernel like this one lets memory follow, if that is so.
pub(crate) fn unable() -> Option<&'static str> {
    let here = Path::new("/proc/sys/vm/unprivileged_userfaultfd").exists();
    (!here).then_some("this kernel has no userfaultfd (CONFIG_USERFAULTFD)")
}

/// The lines that make CRIU leave out what may follow, with `work` as its working folder.
pub(crate) fn criu_lines(work: &Path) -> String {
    format!("lazy-pages\nwork-dir={}\n", work.display())
}

impl Following {
    /// Listens in CRIU's working folder. The keeper knows the member by its number.
    pub(crate) fn start(
        work: &Path,
        (keeper, member): (Arc<Keeper>, usize),
        pages: Arc<LazyPages>,
        blobs: Box<dyn BlobSource + Send + Sync>,
    ) -> Result<Self, LazyError> {
        let socket = work.join(SOCKET);
        match std::fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
        let listener = listen(work)?;
        let memory = Memory::new(pages.processes(), keeper, member)?;
        let queue = Queue::new((0..pages.parts()).filter(|part| !pages.is_here(*part)));
        let stop = EventFd::new().map_err(io::Error::from)?;
        let (progress, seen) = watch::channel(Progress::Under);
        let shared = Arc::new(Shared { pages, blobs, memory, queue, stop, progress });
        let this = Self { shared: Arc::clone(&shared), progress: seen, socket };
        let epoll = &shared.memory.epoll;
        epoll.add(&shared.stop, EpollEvent::new(EpollFlags::EPOLLIN, STOP)).map_err(io::Error::from)?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, CRIU)).map_err(io::Error::from)?;
        let watching = Arc::clone(&shared);
        spawn("memory", move || {
            let watched = watching.watch(listener);
            watching.ended(watched);
        })?;
        for only_urgent in [false, true] {
            let reading = Arc::clone(&shared);
            spawn("memory, read", move || {
                let read = reading.read_all(only_urgent);
                reading.ended(read);
            })?;
        }
        Ok(this)
    }

    /// Bytes that are to be fetched, as they are stored.
    pub(crate) fn bytes(&self) -> u64 {
        let pages = &self.shared.pages;
        (0..pages.parts()).filter(|part| !pages.is_here(*part)).map(|part| pages.part_bytes(part)).sum()
    }

    /// The pages that its tasks asked for first, to be remembered with its image; nothing if they were before, or none asked.
    pub(crate) fn touched(&self) -> Option<(Digest, io::Result<Vec<u8>>)> {
        let pages = &self.shared.pages;
        let touched = self.shared.memory.touched();
        let pid = |process: usize| pages.processes().get(process).map(|process| process.pid);
        let touched =
            touched.into_iter().filter_map(|((process, address), page)| Some(((pid(process)?, address), page)));
        let touched: BTreeMap<_, _> = touched.collect();
        (pages.remembered() == 0 && !touched.is_empty()).then(|| (pages.image(), touched_pages(&touched)))
    }

    /// Waits until all memory is there.
    pub(crate) async fn done(&mut self) -> Result<(), Arc<LazyError>> {
        let ended = self.progress.wait_for(|progress| !matches!(progress, Progress::Under)).await;
        match ended.as_deref() {
            Ok(Progress::Done) => Ok(()),
            Ok(Progress::Failed(error)) => Err(Arc::clone(error)),
            Ok(Progress::Under) | Err(_) => Err(Arc::new(LazyError::Words)),
        }
    }
}

/// What becomes of each member's memory, as it comes.
pub(crate) fn ends(
    following: &mut [(MemberId, Following)],
) -> FuturesUnordered<impl Future<Output = (&MemberId, Result<(), Arc<LazyError>>)>> {
    following.iter_mut().map(async |(member, following)| (&*member, following.done().await)).collect()
}

/// The first member whose memory does not follow, and why. It may never be.
pub(crate) async fn lost(following: &mut [(MemberId, Following)]) -> (MemberId, Arc<LazyError>) {
    let mut ends = ends(following);
    while let Some((member, done)) = ends.next().await {
        if let Err(error) = done {
            return (member.clone(), error);
        }
    }
    std::future::pending().await
}

impl Drop for Following {
    fn drop(&mut self) {
        self.shared.queue.stop();
        // A counter that is full says it, too.
        let _ = self.shared.stop.write(1);
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Binds by way of the folder's descriptor: the path of a socket is at most 107 bytes.
fn listen(work: &Path) -> io::Result<UnixListener> {
    use std::os::fd::AsRawFd;
    let folder = std::fs::File::open(work)?;
    UnixListener::bind(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()))
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}

impl Shared {
    /// The first thing that ends it is what it ended with.
    fn ended(&self, how: Result<bool, LazyError>) {
        let progress = match how {
            Ok(false) => return,
            Ok(true) => Progress::Done,
            Err(_) if self.queue.is_stopped() => return,
            Err(error) => Progress::Failed(Arc::new(error)),
        };
        self.queue.stop();
        self.progress.send_if_modified(|before| {
            let first = matches!(before, Progress::Under);
            if first {
                *before = progress;
            }
            first
        });
    }

    /// Listens to CRIU, and follows what tasks do, until it is told to stop.
    fn watch(&self, listener: UnixListener) -> Result<bool, LazyError> {
        let epoll = &self.memory.epoll;
        let mut listener = Some(listener);
        let mut criu: Option<UnixStream> = None;
        let mut events = [EpollEvent::empty(); 16];
        loop {
            let count = match epoll.wait(&mut events, EpollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                waited => waited.map_err(io::Error::from)?,
            };
            for event in events.iter().take(count) {
                match (event.data(), &mut criu) {
                    (STOP, _) => return Ok(false),
                    (CRIU, None) => {
                        let Some(door) = listener.take() else { continue };
                        let (stream, _) = door.accept()?;
                        epoll.delete(&door).map_err(io::Error::from)?;
                        stream.set_read_timeout(Some(PATIENCE))?;
                        epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, CRIU)).map_err(io::Error::from)?;
                        criu = Some(stream);
                    }
                    (CRIU, Some(stream)) => match self.hear(stream)? {
                        Heard::Process => {}
                        Heard::Finished => {
                            self.memory.finish()?;
                            self.queue.open();
                        }
                        // CRIU is through, or gone: its engine says which.
                        Heard::End => epoll.delete(&*stream).map_err(io::Error::from)?,
                    },
                    (number, _) => self.ask(self.memory.follow(number)?)?,
                }
            }
        }
    }

    fn hear(&self, stream: &mut UnixStream) -> Result<Heard, LazyError> {
        let mut word = [0; 4];
        match stream.read_exact(&mut word) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Heard::End),
            read => read?,
        }
        match i32::from_ne_bytes(word) {
            FINISHED => return Ok(Heard::Finished),
            // A zombie has no memory.
            pid if pid < 0 => {}
            // It comes with one byte.
            pid => match receive(stream.as_fd(), &mut [0])? {
                (1, Some(descriptor)) => self.memory.add(pid, Uffd::new(descriptor), &self.pages)?,
                _ => return Err(LazyError::Words),
            },
        }
        Ok(Heard::Process)
    }

    /// Tasks wait for these: what is here is put at once, the parts of the others are asked for.
    fn ask(&self, mut asked: Vec<Asked>) -> Result<(), LazyError> {
        while let Some((process, origin)) = asked.pop() {
            match self.pages.page_here(process, origin).map_err(fetch)? {
                Some(page) => asked.extend(self.memory.put(process, origin, &page)?),
                None => self.pages.likely_part(process, origin).into_iter().for_each(|part| self.queue.ask(part)),
            }
        }
        Ok(())
    }

    /// Reads one part after the other. `true`: the last one of all, and nothing is lacking any more.
    fn read_all(&self, only_urgent: bool) -> Result<bool, LazyError> {
        while let Some(job) = self.queue.next(only_urgent) {
            let mut tries = 1;
            while let Err(error) = self.read(job) {
                let torn = matches!(error, LazyError::Fetch(_)) && matches!(job, Job::Part(_));
                if !torn || tries == TRIES || self.queue.is_stopped() {
                    return Err(error);
                }
                tries += 1;
                thread::sleep(PAUSE);
            }
            if self.queue.done() {
                self.memory.close()?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn read(&self, job: Job) -> Result<(), LazyError> {
        let mut failed = None;
        let mut put = |process: usize, origin: u64, bytes: &[u8]| {
            let put = self.memory.put(process, origin, bytes).and_then(|asked| self.ask(asked));
            put.map_err(|error| {
                failed = Some(error);
                io::Error::other("the pages cannot be put")
            })
        };
        let read = match job {
            Job::Here => self.pages.read_here(&mut put),
            Job::Part(part) => self.pages.read(part, self.blobs.as_ref(), &mut put),
        };
        match (failed, read) {
            (Some(error), _) => Err(error),
            (None, read) => read.map_err(fetch),
        }
    }
}

/// What CRIU said.
enum Heard {
    Process,
    Finished,
    End,
}

fn fetch(error: UnpackError) -> LazyError {
    LazyError::Fetch(Arc::new(error))
}
