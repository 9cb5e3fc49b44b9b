//! Pages over a socket: one CRIU is let in and nobody else, and sends all of its memory.
//!
//! ```text
//!  CRIU (page-server, address, port) ──▶ is it the one? ──▶ Receiving (image_format::page_server)
//!                                          │ no: not heard     │ CLOSE ─▶ answered, tasks run on
//!                                                              ▼
//!                                                           Received, beside the rest of the dump
//! ```
//!
//! Who it is ([`Admit`]) is told by the kernel or by a certificate. Nothing that is said counts. A stream that is torn, or makes no
//! sense, ends the connection: CRIU's dump fails by that.

mod authority;
mod peer;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use coordinator::member_of;
use image_format::page_server::{CLOSED, ReceiveError, ReceiveLimits, Received, Receiving};
use image_format::{Base, MemberId};
use rustls::pki_types::CertificateDer;
use rustls::server::VerifierBuilderError;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tokio_util::sync::CancellationToken;

pub(crate) use self::authority::Authority;
pub(crate) use self::peer::{can_tell, family};

/// Strangers whose handshakes are waited for at the same time, and how long.
const HANDSHAKES: usize = 16;
/// How long a stranger may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes that are read at a time.
const READ: usize = 256 << 10;
/// How often whoever waits looks whether to stop.
const LOOK: Duration = Duration::from_millis(100);

/// Who is let in.
#[derive(Debug, Clone)]
pub(crate) enum Admit {
    /// A process that this one started, or one that they did.
    Own,
    /// A process of this host and of this user.
    SameUser,
    /// Whoever shows this very certificate.
    Certificate(CertificateDer<'static>, Arc<ServerConfig>),
    /// Whoever shows one of the authority; if a member is named, that member's.
    Issued(Option<MemberId>, Arc<ServerConfig>),
}

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
    /// Nobody who comes could be told from a stranger.
    #[error("this kernel does not tell whose a socket is (CONFIG_PROC_CHILDREN); --pages tls needs nothing of it")]
    Unknown,
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

/// The pages of one dump on their way. Dropping it ends that.
#[derive(Debug)]
pub(crate) struct PageServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    result: mpsc::Receiver<Result<Received, PagesError>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Nobody is let in any more.
    stop: AtomicBool,
    /// Somebody was.
    claimed: AtomicBool,
    handshakes: AtomicUsize,
    connection: Mutex<Option<TcpStream>>,
}

impl PageServer {
    /// Lets one CRIU in that comes there. Pages that do not stay in memory go into a file without a name in `spool`.
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
        let door = Door { admit, spool: spool.to_owned(), base, limits, shared: Arc::clone(&shared), tell };
        thread::spawn(move || door.listen(&listener));
        Ok(Self { address, shared, result })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until CRIU has come and everything is kept; `None` if it was told to stop before. CRIU that has come is heard to its end:
    /// when it is answered it ends the tasks, and what came is all that there is of them.
    pub fn wait(self, stop: &CancellationToken) -> Result<Option<Received>, PagesError> {
        loop {
            match self.result.recv_timeout(LOOK) {
                Ok(received) => return received.map(Some),
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
    pub fn received(self) -> Result<Option<Received>, PagesError> {
        self.close();
        if !self.shared.claimed.load(Ordering::SeqCst) {
            return Ok(None);
        }
        self.result.recv().map_err(|_| lost())?.map(Some)
    }

    /// Lets nobody in any more.
    fn close(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Whoever waits for somebody to come sees it now.
        let _ = TcpStream::connect_timeout(&self.address, PATIENCE);
    }
}

impl Drop for PageServer {
    fn drop(&mut self) {
        self.close();
        if let Some(connection) = self.shared.connection.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // It may be over already.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

/// Lets one CRIU in and nobody else.
struct Door {
    admit: Admit,
    spool: PathBuf,
    base: Option<Arc<Base>>,
    limits: ReceiveLimits,
    shared: Arc<Shared>,
    tell: mpsc::Sender<Result<Received, PagesError>>,
}

impl Door {
    fn listen(self, listener: &TcpListener) {
        let door = Arc::new(self);
        while let Ok((connection, _)) = listener.accept() {
            if door.shared.stop.load(Ordering::SeqCst) {
                return;
            }
            if door.shared.handshakes.fetch_add(1, Ordering::SeqCst) >= HANDSHAKES {
                // Strangers; CRIU connects once.
                door.shared.handshakes.fetch_sub(1, Ordering::SeqCst);
                continue;
            }
            let door = Arc::clone(&door);
            thread::spawn(move || {
                let known = door.known(connection);
                door.shared.handshakes.fetch_sub(1, Ordering::SeqCst);
                if let Some(stream) = known.filter(|_| !door.shared.claimed.swap(true, Ordering::SeqCst)) {
                    // Whoever does not want it any more has gone.
                    let _ = door.tell.send(door.receive(stream));
                }
            });
        }
    }

    /// The stream, if who came is let in.
    fn known(&self, mut connection: TcpStream) -> Option<Stream> {
        connection.set_write_timeout(Some(PATIENCE)).ok()?;
        connection.set_nodelay(true).ok()?;
        let config = match &self.admit {
            Admit::Own => return peer::is_own(&connection).is_ok_and(|own| own).then_some(Stream::Plain(connection)),
            Admit::SameUser => {
                return peer::is_same_user(&connection).is_ok_and(|same| same).then_some(Stream::Plain(connection));
            }
            Admit::Certificate(_, config) | Admit::Issued(_, config) => config,
        };
        connection.set_read_timeout(Some(PATIENCE)).ok()?;
        let mut tls = ServerConnection::new(Arc::clone(config)).ok()?;
        while tls.is_handshaking() {
            tls.complete_io(&mut connection).ok()?;
        }
        let shown = tls.peer_certificates().and_then(<[_]>::first)?;
        let known = match &self.admit {
            Admit::Certificate(expected, _) => shown == expected,
            Admit::Issued(Some(member), _) => member_of(shown).as_ref() == Some(member),
            // The handshake has seen that it is of the authority.
            Admit::Issued(None, _) => true,
            Admit::Own | Admit::SameUser => false,
        };
        known.then(|| Stream::Tls(Box::new(StreamOwned::new(tls, connection))))
    }

    fn receive(&self, mut stream: Stream) -> Result<Received, PagesError> {
        // How long it may take is for the session to say, which ends CRIU.
        stream.socket().set_read_timeout(None).map_err(PagesError::Torn)?;
        let copy = stream.socket().try_clone().map_err(PagesError::Torn)?;
        *self.shared.connection.lock().unwrap_or_else(PoisonError::into_inner) = Some(copy);
        let mut receiving = Receiving::new(&self.spool, self.base.clone(), self.limits);
        let mut bytes = vec![0; READ];
        while !receiving.is_closed() {
            let read = stream.read(&mut bytes).map_err(PagesError::Torn)?;
            if read == 0 {
                return Err(PagesError::Torn(io::ErrorKind::UnexpectedEof.into()));
            }
            let answers = receiving.take(&bytes[..read])?;
            if !answers.is_empty() {
                stream.write_all(&answers).and_then(|()| stream.flush()).map_err(PagesError::Torn)?;
            }
        }
        stream.write_all(&CLOSED).map_err(PagesError::Torn)?;
        if let Stream::Tls(tls) = &mut stream {
            // GnuTLS stays, and its tasks frozen, until it is told that there is nothing more.
            tls.conn.send_close_notify();
        }
        stream.flush().map_err(PagesError::Torn)?;
        drop(stream);
        // The tasks run on now; what came is compared and kept meanwhile.
        Ok(receiving.finish()?)
    }
}

fn lost() -> PagesError {
    PagesError::Torn(io::ErrorKind::BrokenPipe.into())
}

/// What the pages come through.
enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ServerConnection, TcpStream>>),
}

impl Stream {
    fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => &stream.sock,
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buf),
            Self::Tls(stream) => stream.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(buf),
            Self::Tls(stream) => stream.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}
