//! TLS to a rendezvous on another host: blocking, with a bound on every step.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustls::ClientConnection;
use rustls_pki_types::{InvalidDnsNameError, ServerName};

use super::client::{Elsewhere, read_some};
use crate::bounded::Bounded;
use crate::door::keep_alive;
use crate::ticket::Remote;
use crate::tls::TlsError;

/// How long it may take to find the host, to connect to it, and to shake hands with it; each of them.
const STEP: Duration = Duration::from_secs(5);

/// Why there is no connection to another host, or no longer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecureError {
    #[error("{address:?} is not HOST:PORT")]
    Address { address: String },
    #[error("the name in {address:?} cannot stand in a certificate")]
    Name {
        address: String,
        #[source]
        source: InvalidDnsNameError,
    },
    #[error("the certificates cannot be used")]
    Files(#[from] TlsError),
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
    #[error("the host of {address:?} cannot be found")]
    Resolve {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("nobody can be reached at {address}")]
    Connect {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("the handshake with {address} failed")]
    Handshake {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("the connection to the rendezvous failed")]
    Send(#[source] io::Error),
    /// An alert, which is how the other end says what it has against this end's certificate.
    #[error("the rendezvous broke off")]
    Alert(#[source] rustls::Error),
}

/// An encrypted connection whose other end has proved who it is.
pub(super) struct Secure {
    stream: TcpStream,
    tls: ClientConnection,
}

impl Secure {
    /// Connects and shakes hands, before the deadline and within a few seconds.
    pub(super) fn connect(remote: &Remote, deadline: Instant) -> Result<Self, SecureError> {
        let address = || remote.address.clone();
        let name = server_name(&remote.address)?;
        // What is wrong with files is found before anybody is bothered.
        let config = remote.tls.client()?;
        let tls = ClientConnection::new(config, name).map_err(SecureError::Setup)?;
        let found =
            resolve(&remote.address, deadline).map_err(|source| SecureError::Resolve { address: address(), source })?;
        let stream = reach(&found, deadline).map_err(|source| SecureError::Connect { address: address(), source })?;
        // Without either it works as well, if more slowly.
        let _ = stream.set_nodelay(true);
        let _ = keep_alive(&stream);
        let mut secure = Self { stream, tls };
        let handshake = secure.shake_hands(deadline.min(Instant::now() + STEP));
        handshake.map_err(|source| SecureError::Handshake { address: address(), source })?;
        Ok(secure)
    }

    fn shake_hands(&mut self, deadline: Instant) -> io::Result<()> {
        let mut bounded = Bounded { stream: &self.stream, deadline };
        while self.tls.is_handshaking() || self.tls.wants_write() {
            self.tls.complete_io(&mut bounded)?;
        }
        Ok(())
    }
}

impl Elsewhere for Secure {
    fn handle(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    fn send(&mut self, bytes: &[u8], deadline: Instant) -> Result<(), SecureError> {
        self.tls.writer().write_all(bytes).map_err(SecureError::Send)?;
        while self.tls.wants_write() {
            let mut bounded = Bounded { stream: &self.stream, deadline };
            self.tls.write_tls(&mut bounded).map_err(SecureError::Send)?;
        }
        Ok(())
    }

    fn receive(&mut self, buffer: &mut Vec<u8>) -> Result<io::Result<usize>, SecureError> {
        if let Err(error) = self.tls.read_tls(&mut &self.stream) {
            return Ok(Err(error));
        }
        self.tls.process_new_packets().map_err(SecureError::Alert)?;
        Ok(self.decrypted(buffer))
    }

    fn decrypted(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let mut all = 0;
        loop {
            match read_some(self.tls.reader(), buffer) {
                Ok(0) => return Ok(all),
                Ok(some) => all += some,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && all > 0 => return Ok(all),
                // The end without a goodbye: the process at the other end was killed, say.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(all),
                Err(error) => return Err(error),
            }
        }
    }
}

/// The name in `HOST:PORT` that the certificate must be for.
pub(crate) fn server_name(address: &str) -> Result<ServerName<'static>, SecureError> {
    let (host, _) = address.rsplit_once(':').ok_or_else(|| SecureError::Address { address: address.to_owned() })?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let name = ServerName::try_from(host.to_owned());
    name.map_err(|source| SecureError::Name { address: address.to_owned(), source })
}

fn step(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now()).min(STEP);
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// The addresses of `HOST:PORT`. Names are looked for on a thread, since the system sets no bound to that.
fn resolve(address: &str, deadline: Instant) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = address.parse() {
        return Ok(vec![address]);
    }
    let (tell, told) = mpsc::channel();
    let name = address.to_owned();
    std::thread::Builder::new().spawn(move || {
        // Nobody listens any more when it took too long.
        let _ = tell.send(name.to_socket_addrs().map(Iterator::collect));
    })?;
    told.recv_timeout(step(deadline)?).map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// The first of them that answers.
fn reach(addresses: &[SocketAddr], deadline: Instant) -> io::Result<TcpStream> {
    let until = deadline.min(Instant::now() + STEP);
    let mut failed = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match step(until).and_then(|wait| TcpStream::connect_timeout(address, wait)) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}
