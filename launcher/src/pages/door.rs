//! Where a CRIU comes that has to connect, and who of those that come is let in.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use coordinator::{Bounded, Strangers, member_of};
use image_format::MemberId;
use image_format::page_server::Receiving;
use rustls::pki_types::CertificateDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::{Buffered, Outcome, PagesError, Shared, Stream, Tasks, peer};

/// Strangers whose handshakes are waited for at the same time; one more pushes out the one who came first.
const STRANGERS: usize = 64;
/// How long a handshake may take, however it is cut into pieces.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// How long is waited where nobody can be let in.
const PAUSE: Duration = Duration::from_millis(20);

/// Who is let in.
#[derive(Debug, Clone)]
pub(crate) enum Admit {
    /// A process of this host and of this user: a CRIU of no session.
    SameUser,
    /// Whoever shows this very certificate, which was made for the CRIU of one member of a session.
    Certificate(CertificateDer<'static>, Arc<ServerConfig>),
    /// Whoever shows one of the authority; if a member is named, that member's: a CRIU of no session.
    Issued(Option<MemberId>, Arc<ServerConfig>),
}

/// Lets one CRIU in and nobody else.
pub(super) struct Door {
    admit: Admit,
    /// For the one that is let in.
    receiving: Mutex<Option<Receiving>>,
    shared: Arc<Shared>,
    tell: mpsc::Sender<Outcome>,
}

impl Door {
    pub fn new(admit: Admit, receiving: Receiving, shared: Arc<Shared>, tell: mpsc::Sender<Outcome>) -> Self {
        Self { admit, receiving: Mutex::new(Some(receiving)), shared, tell }
    }

    /// Until nobody is to be let in any more.
    pub fn listen(self, listener: &TcpListener) {
        let (door, strangers) = (Arc::new(self), Strangers::new(STRANGERS));
        while !door.shared.stop.load(Ordering::SeqCst) {
            let accepted = listener.accept().and_then(|(connection, _)| Ok((connection.try_clone()?, connection)));
            let Ok((end, connection)) = accepted else {
                // Out of descriptors, say, which strangers are not to hold.
                strangers.push_out_oldest();
                thread::sleep(PAUSE);
                continue;
            };
            let place = strangers.enter(move || {
                // Its thread sees the end at once.
                let _ = end.shutdown(Shutdown::Both);
            });
            let door = Arc::clone(&door);
            // Without a thread there is one stranger less.
            let _ = thread::Builder::new().spawn(move || {
                let known = door.known(connection).filter(|_| place.leave());
                if let Some(stream) = known.filter(|_| !door.shared.claimed.swap(true, Ordering::SeqCst)) {
                    // Whoever does not want it any more has gone.
                    let _ = door.tell.send(door.receive(stream));
                }
            });
        }
    }

    /// The stream, if who came is let in.
    fn known(&self, connection: TcpStream) -> Option<Stream> {
        connection.set_write_timeout(Some(PATIENCE)).ok()?;
        connection.set_nodelay(true).ok()?;
        let config = match &self.admit {
            Admit::SameUser => {
                return peer::is_same_user(&connection).is_ok_and(|same| same).then_some(Stream::Plain(connection));
            }
            Admit::Certificate(_, config) | Admit::Issued(_, config) => config,
        };
        let mut tls = ServerConnection::new(Arc::clone(config)).ok()?;
        let mut bounded = Bounded { stream: &connection, deadline: Instant::now() + PATIENCE };
        while tls.is_handshaking() {
            tls.complete_io(&mut bounded).ok()?;
        }
        let shown = tls.peer_certificates().and_then(<[_]>::first)?;
        let known = match &self.admit {
            Admit::Certificate(expected, _) => shown == expected,
            Admit::Issued(Some(member), _) => member_of(shown).as_ref() == Some(member),
            // The handshake has seen that it is of the authority.
            Admit::Issued(None, _) => true,
            Admit::SameUser => false,
        };
        // How long the rest may take is for the session to say, which ends CRIU.
        connection.set_read_timeout(None).ok()?;
        connection.set_write_timeout(Some(PATIENCE)).ok()?;
        known.then(|| Stream::Tls(Box::new(StreamOwned::new(tls, Buffered::new(connection)))))
    }

    fn receive(&self, stream: Stream) -> Outcome {
        self.shared.join(&stream).map_err(PagesError::Torn)?;
        let torn = || PagesError::Torn(io::ErrorKind::UnexpectedEof.into());
        let receiving = self.receiving.lock().unwrap_or_else(PoisonError::into_inner).take().ok_or_else(torn)?;
        let tasks = match &self.admit {
            Admit::Certificate(..) => Tasks::RunOn,
            Admit::SameUser | Admit::Issued(..) => Tasks::End,
        };
        // Whoever was let in and says nothing was to say something.
        self.shared.hear(stream, receiving, tasks)?.ok_or_else(torn).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::SocketAddr;

    use coordinator::TlsFiles;
    use image_format::page_server::ReceiveLimits;
    use rustls::ClientConnection;
    use rustls::pki_types::ServerName;

    use super::super::{Authority, PageServer};
    use super::*;

    /// A door for the CRIU of one member, and the certificates of that.
    fn open() -> (tempfile::TempDir, PageServer, TlsFiles) {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::make(folder.path()).unwrap();
        let (admit, _) = authority.issue(&"a".parse().unwrap(), folder.path()).unwrap();
        let limits = ReceiveLimits { memory_bytes: 0, ..ReceiveLimits::default() };
        let server = PageServer::listen(([127, 0, 0, 1], 0).into(), admit, folder.path(), None, limits).unwrap();
        let [ca, certificate, key] =
            ["pages-ca.pem", "pages-a.crt", "pages-a.key"].map(|file| folder.path().join(file));
        (folder, server, TlsFiles { ca, certificate, key })
    }

    fn shake_hands(address: SocketAddr, files: &TlsFiles) -> TcpStream {
        let mut socket = TcpStream::connect(address).unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let mut tls = ClientConnection::new(files.client().unwrap(), name).unwrap();
        while tls.is_handshaking() || tls.wants_write() {
            tls.complete_io(&mut socket).unwrap();
        }
        socket
    }

    #[test]
    fn idle_strangers_keep_nobody_out() {
        let (_folder, server, files) = open();
        let address = server.address().unwrap();
        let idle: Vec<_> = (0..300).map(|_| TcpStream::connect(address).unwrap()).collect();
        let since = Instant::now();
        let _criu = shake_hands(address, &files);
        while !server.shared.claimed.load(Ordering::SeqCst) {
            assert!(since.elapsed() < PATIENCE / 2, "strangers have to be waited for");
            thread::sleep(Duration::from_millis(10));
        }
        drop(idle);
    }

    #[test]
    fn a_handshake_byte_by_byte_is_ended() {
        let (_folder, server, _) = open();
        let mut slow = TcpStream::connect(server.address().unwrap()).unwrap();
        slow.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        // The beginning of a record of 16,000 bytes, and then one byte of it after the other.
        slow.write_all(&[0x16, 3, 1, 0x3e, 0x80]).unwrap();
        let since = Instant::now();
        loop {
            assert!(since.elapsed() < PATIENCE * 3, "it goes on");
            match slow.write_all(&[1]).and_then(|()| slow.read(&mut [0])) {
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
    }
}
