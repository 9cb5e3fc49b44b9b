//! Where a CRIU comes that has to connect, and who of those that come is let in.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use coordinator::member_of;
use image_format::MemberId;
use image_format::page_server::Receiving;
use rustls::pki_types::CertificateDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::{Buffered, Came, PagesError, Shared, Stream, Tasks, peer};

/// Strangers whose handshakes are waited for at the same time.
const HANDSHAKES: usize = 16;
/// How long a stranger may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

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
    handshakes: AtomicUsize,
    shared: Arc<Shared>,
    tell: mpsc::Sender<Came>,
}

impl Door {
    pub fn new(admit: Admit, receiving: Receiving, shared: Arc<Shared>, tell: mpsc::Sender<Came>) -> Self {
        Self { admit, receiving: Mutex::new(Some(receiving)), handshakes: AtomicUsize::new(0), shared, tell }
    }

    /// Until nobody is to be let in any more.
    pub fn listen(self, listener: &TcpListener) {
        let door = Arc::new(self);
        while let Ok((connection, _)) = listener.accept() {
            if door.shared.stop.load(Ordering::SeqCst) {
                return;
            }
            if door.handshakes.fetch_add(1, Ordering::SeqCst) >= HANDSHAKES {
                // Strangers; CRIU connects once.
                door.handshakes.fetch_sub(1, Ordering::SeqCst);
                continue;
            }
            let door = Arc::clone(&door);
            thread::spawn(move || {
                let known = door.known(connection);
                door.handshakes.fetch_sub(1, Ordering::SeqCst);
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
            Admit::SameUser => false,
        };
        // How long the rest may take is for the session to say, which ends CRIU.
        connection.set_read_timeout(None).ok()?;
        known.then(|| Stream::Tls(Box::new(StreamOwned::new(tls, Buffered::new(connection)))))
    }

    fn receive(&self, stream: Stream) -> Came {
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
