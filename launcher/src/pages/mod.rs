//! Pages over a socket: one CRIU sends all of its memory, and nobody else is heard.
//!
//! ```text
//!  an end of a socket that CRIU has from the start (page-server, ps-socket) ───────────┐
//!                                                                                      ▼
//!  CRIU (page-server, address, port) ──▶ is it the one? (door.rs) ───▶ Receiving (image_format::page_server)
//!                                          │ no: not heard                │ CLOSE ─▶ answered, tasks run on
//!                                                                         ▼
//!                                                                      Received, beside the rest of the dump
//! ```
//!
//! Nothing that is said counts for who it is: nobody else has that end, or the kernel or a certificate says it. A stream that is torn, or
//! makes no sense, ends the connection: CRIU's dump fails by that.

mod authority;
mod door;
mod peer;

use std::io::{self, BufReader, IoSliceMut, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use image_format::Base;
use image_format::page_server::{CLOSED, ReceiveError, ReceiveLimits, Received, Receiving};
use nix::sys::socket::{setsockopt, sockopt};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, ReturnFlags, SendFlags, Shutdown, SocketFlags, SocketType, recvmsg,
    send, shutdown, socketpair,
};
use rustls::server::VerifierBuilderError;
use rustls::{ServerConnection, StreamOwned};
use tokio_util::sync::CancellationToken;

pub(crate) use self::authority::Authority;
pub(crate) use self::door::{Admit, PATIENCE};

use self::door::Door;

/// How often whoever waits looks whether to stop.
const LOOK: Duration = Duration::from_millis(100);
/// Bytes of pages on their way through a socket that was handed over.
const ON_THEIR_WAY: usize = 8 << 20;

/// Why pages cannot be taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PagesError {
    /// The certificates of the session cannot be made.
    #[error("no certificates for the pages")]
    Certificate(#[from] rcgen::Error),
    /// Nor used.
    #[error("the certificates for the pages cannot be used")]
    Tls(#[from] rustls::Error),
    /// Nor checked.
    #[error("the certificates for the pages cannot be checked")]
    Verifier(#[from] VerifierBuilderError),
    /// A file or a socket.
    #[error("no way for the pages at {what}")]
    Io {
        /// Which.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection broke before all was said.
    #[error("the connection over which the pages came broke")]
    Torn(#[source] io::Error),
    /// What came makes no sense, or cannot be kept.
    #[error("the stream of pages")]
    Stream(#[from] ReceiveError),
}

/// What CRIU does with the tasks when it is told that nothing can be lost any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tasks {
    /// They stand frozen until then, and run on.
    RunOn,
    /// It may end them: what came is all that there is of them.
    End,
}

/// What came, or that nobody did.
type Outcome = Result<Option<Received>, PagesError>;

/// The pages of one dump on their way. Dropping it ends that.
#[derive(Debug)]
pub(crate) struct PageServer {
    /// Where it listens, if CRIU has to come.
    address: Option<SocketAddr>,
    shared: Arc<Shared>,
    result: mpsc::Receiver<Outcome>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Nobody is let in any more.
    stop: AtomicBool,
    /// Somebody was.
    claimed: AtomicBool,
    /// Another descriptor of the socket while somebody is heard, to end it by.
    connection: Mutex<Option<OwnedFd>>,
}

impl Shared {
    fn connection(&self) -> MutexGuard<'_, Option<OwnedFd>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on the stream can be ended from outside.
    fn join(&self, stream: &Stream) -> io::Result<()> {
        *self.connection() = Some(stream.as_fd().try_clone_to_owned()?);
        Ok(())
    }

    /// Takes what comes, until it is through or ended from outside.
    fn hear(&self, stream: Stream, receiving: Receiving, tasks: Tasks) -> Outcome {
        let came = take(stream, receiving, tasks);
        *self.connection() = None;
        came
    }
}

impl PageServer {
    /// Takes pages from the end of a socket that it gives. Pages that do not stay in memory go into a file without a name in `spool`.
    pub fn handed(spool: &Path, base: Option<Arc<Base>>, limits: ReceiveLimits) -> Result<(Self, OwnedFd), PagesError> {
        let at = |source| PagesError::Io { what: "a pair of sockets".to_owned(), source };
        let (own, its) = pair().map_err(at)?;
        let shared = Arc::new(Shared { claimed: AtomicBool::new(true), ..Shared::default() });
        let (hearing, stream) = (Arc::clone(&shared), Stream::InheritedFd(Packets(own)));
        shared.join(&stream).map_err(at)?;
        let (tell, result) = mpsc::channel();
        // Memory is made ready here, before anything is frozen.
        let receiving = Receiving::new(spool, base, limits);
        thread::spawn(move || {
            // Whoever does not want it any more has gone.
            let _ = tell.send(hearing.hear(stream, receiving, Tasks::RunOn));
        });
        Ok((Self { address: None, shared, result }, its))
    }

    /// Lets one CRIU in that comes there.
    pub fn listen(
        address: SocketAddr,
        admit: Admit,
        spool: &Path,
        base: Option<Arc<Base>>,
        limits: ReceiveLimits,
    ) -> Result<Self, PagesError> {
        let at = |source| PagesError::Io { what: address.to_string(), source };
        let listener = TcpListener::bind(address).map_err(at)?;
        let address = listener.local_addr().map_err(at)?;
        let shared = Arc::new(Shared::default());
        let (tell, result) = mpsc::channel();
        let door = Door::new(admit, Receiving::new(spool, base, limits), Arc::clone(&shared), tell);
        thread::spawn(move || door.listen(&listener));
        Ok(Self { address: Some(address), shared, result })
    }

    /// Where it listens, if CRIU has to come.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Waits until CRIU has come and everything is kept; `None` if it was told to stop before. CRIU that has come is heard to its end:
    /// when it is answered it ends the tasks, and what came is all that there is of them.
    pub fn wait(self, stop: &CancellationToken) -> Outcome {
        loop {
            match self.result.recv_timeout(LOOK) {
                Ok(came) => return came,
                // In place of CRIU, which is not let in from here on.
                Err(RecvTimeoutError::Timeout)
                    if stop.is_cancelled() && !self.shared.claimed.swap(true, Ordering::SeqCst) =>
                {
                    return Ok(None);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(lost()),
            }
        }
    }

    /// Waits until everything is kept; `None` if nobody came. The dump is over.
    pub fn received(self) -> Outcome {
        self.close();
        if !self.shared.claimed.load(Ordering::SeqCst) {
            return Ok(None);
        }
        if self.address.is_none() {
            // Whoever wrote was answered by now. Whoever did not may have its end still, in an engine that is not through.
            self.hang_up();
        }
        self.result.recv().map_err(|_| lost())?
    }

    /// Lets nobody in any more.
    fn close(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(address) = &self.address {
            // Whoever waits for somebody to come sees it now.
            let _ = TcpStream::connect_timeout(address, PATIENCE);
        }
    }

    fn hang_up(&self) {
        if let Some(connection) = self.shared.connection().take() {
            // It may be over already.
            let _ = shutdown(&connection, Shutdown::Both);
        }
    }
}

impl Drop for PageServer {
    fn drop(&mut self) {
        self.close();
        self.hang_up();
    }
}

/// The end from which pages are read, and the one for CRIU.
///
/// The socket is one of packets, since the kernel copies into these while CRIU waits. Through a stream, of whatever family, it would send the
/// tasks' own pages and copy them when they are read; and CRIU, which is through with a task by then, writes its own code over the
/// beginning of the mapping in which the task stands, and takes it away again (compel's remote calls). Seen: a vDSO without its ELF header.
fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (own, its) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    // With less CRIU waits more often, and all is as good.
    let _ = setsockopt(&its, sockopt::SndBufForce, &ON_THEIR_WAY);
    Ok((own, its))
}

/// Takes a whole stream; `None` if it ends before it begins.
fn take(mut stream: Stream, mut receiving: Receiving, tasks: Tasks) -> Outcome {
    let mut began = false;
    while !receiving.is_closed() {
        let read = match stream.read_vectored(&mut receiving.room()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read.map_err(PagesError::Torn)?,
        };
        match read {
            0 if !began => return Ok(None),
            0 => return Err(PagesError::Torn(io::ErrorKind::UnexpectedEof.into())),
            _ => began = true,
        }
        let answers = receiving.filled(read)?;
        if !answers.is_empty() {
            stream.write_all(&answers).and_then(|()| stream.flush()).map_err(PagesError::Torn)?;
        }
    }
    match tasks {
        Tasks::RunOn => {
            end(stream)?;
            // They run on now; what came is compared and kept meanwhile.
            Ok(Some(receiving.finish()?))
        }
        Tasks::End => {
            let received = receiving.finish()?;
            end(stream)?;
            Ok(Some(received))
        }
    }
}

/// Tells CRIU that nothing can be lost any more.
fn end(mut stream: Stream) -> Result<(), PagesError> {
    stream.write_all(&CLOSED).map_err(PagesError::Torn)?;
    if let Stream::Tls(tls) = &mut stream {
        // GnuTLS stays, and its tasks frozen, until it is told that there is nothing more.
        tls.conn.send_close_notify();
    }
    stream.flush().map_err(PagesError::Torn)
}

fn lost() -> PagesError {
    PagesError::Torn(io::ErrorKind::BrokenPipe.into())
}

/// What the pages come through.
enum Stream {
    InheritedFd(Packets),
    Plain(TcpStream),
    Tls(Box<StreamOwned<ServerConnection, Buffered>>),
}

/// A socket of packets: each is read at once, or what is behind the room for it is lost.
struct Packets(OwnedFd);

impl Read for Packets {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.read_vectored(&mut [IoSliceMut::new(buf)])
    }

    fn read_vectored(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let got = recvmsg(&self.0, bufs, &mut RecvAncillaryBuffer::default(), RecvFlags::empty())?;
        if got.flags.contains(ReturnFlags::TRUNC) {
            return Err(io::Error::other("a packet of the kernel is larger than any that is known"));
        }
        Ok(got.bytes)
    }
}

impl Write for Packets {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Ok(send(&self.0, buf, SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A socket that is read in large pieces, whoever asks for how little: rustls asks for 4 KiB at a time.
struct Buffered(BufReader<TcpStream>);

impl Buffered {
    const PIECE: usize = 256 << 10;

    fn new(socket: TcpStream) -> Self {
        Self(BufReader::with_capacity(Self::PIECE, socket))
    }
}

impl Read for Buffered {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl Write for Buffered {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.get_mut().write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.get_mut().flush()
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::InheritedFd(stream) => stream.read(buf),
            Self::Plain(stream) => stream.read(buf),
            Self::Tls(stream) => stream.read(buf),
        }
    }

    fn read_vectored(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self {
            Self::InheritedFd(stream) => stream.read_vectored(bufs),
            Self::Plain(stream) => stream.read_vectored(bufs),
            Self::Tls(stream) => stream.read_vectored(bufs),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::InheritedFd(stream) => stream.write(buf),
            Self::Plain(stream) => stream.write(buf),
            Self::Tls(stream) => stream.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::InheritedFd(stream) => stream.flush(),
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::InheritedFd(stream) => stream.0.as_fd(),
            Self::Plain(stream) => stream.as_fd(),
            Self::Tls(stream) => stream.sock.0.get_ref().as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use rustix::pipe::{SpliceFlags, splice};

    use super::*;

    /// As CRIU sends pages, from a pipe that has them without a copy.
    #[test]
    fn what_was_sent_is_what_it_was_then() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 4096], 0).unwrap();
        let ((own, its), (read, write)) = (pair().unwrap(), io::pipe().unwrap());
        assert_eq!(splice(&file, Some(&mut 0), &write, None, 4096, SpliceFlags::empty()).unwrap(), 4096);
        assert_eq!(splice(&read, None, &its, None, 4096, SpliceFlags::MOVE).unwrap(), 4096);
        file.write_all_at(&[2; 4096], 0).unwrap();
        let mut got = [0; 4096];
        Packets(own).read_exact(&mut got).unwrap();
        assert!(got == [1; 4096]);
    }

    #[test]
    fn a_packet_without_room_is_an_error() {
        let (own, its) = pair().unwrap();
        send(&its, &[1; 100], SendFlags::empty()).unwrap();
        assert!(Packets(own).read(&mut [0; 99]).is_err());
    }
}
