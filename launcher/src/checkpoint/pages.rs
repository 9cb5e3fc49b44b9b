//! Pages over a socket: where the CRIU of each member sends its memory while the tasks stand frozen, so that no page touches a disk on
//! its way and those that are in the base are never written anywhere.
//!
//! ```text
//!  CRIU of a member ── 127.0.0.1, a port of its own ──▶ one of this session? ──▶ Receiving (image_format::page_server)
//!                                                          │ no: not heard           │ CLOSE ─▶ answered, tasks run on
//!                                                                                    ▼
//!                                                                 Received, beside the rest of the dump
//! ```
//!
//! Who speaks is told by the port and the kernel ([`peer`]): the other end is a socket of a process that descends from this one, as the CRIUs of the
//! engines that it started do. Loopback leaves the machine as little as CRIU's own files do, and only root can listen there. With TLS it is told by
//! the port and a certificate: every session makes an authority of its own, in memory, and a certificate for each member, whose files only
//! root can read and which are gone with the session. Nothing that is said counts. A stream that is torn, or
//! makes no sense, ends the connection: CRIU's dump fails by that, and the session with it. Where an engine's CRIU takes no notice of the
//! lines in its configuration, nobody comes, and the dump has its pages as ever.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use image_format::page_server::{CLOSED, ReceiveError, ReceiveLimits, Received, Receiving};
use image_format::{Base, ChainLimits, MemberId};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned, version};

use super::base::Bases;
use super::peer;

/// Bytes of pages of all members together that wait in memory; beyond, CRIU waits.
const WAITING: usize = 256 << 20;
/// Bytes of each member's pages that stay in memory; beyond, they go into a file without a name.
const IN_MEMORY: usize = 8 << 20;
/// Strangers whose handshakes are waited for at the same time, and how long.
const HANDSHAKES: usize = 16;
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes that are read at a time.
const READ: usize = 256 << 10;

/// Where the members' pages go to, by member.
pub(super) type PageServers = BTreeMap<MemberId, PageServer>;

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

/// The pages of one member on their way. Dropping it ends that.
#[derive(Debug)]
pub(super) struct PageServer {
    /// For the member's CRIU configuration.
    lines: String,
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

/// Listens for the pages of each member. `folder` is for root alone.
pub(super) fn listen(
    members: &[MemberId],
    tls: bool,
    folder: &Path,
    bases: &Bases,
    chain: &ChainLimits,
) -> Result<PageServers, PagesError> {
    if !tls && !peer::can_tell() {
        return Err(PagesError::Unknown);
    }
    let authority = tls.then(|| Authority::make(folder)).transpose()?;
    let limits = ReceiveLimits {
        waiting_bytes: WAITING / members.len().max(1),
        memory_bytes: IN_MEMORY,
        ..ReceiveLimits::default()
    };
    let server = |member: &MemberId| {
        let base = bases.get(member).filter(|base| base.refuses_stream(Some(member), chain).is_none());
        PageServer::start(member, folder, authority.as_ref(), base.cloned(), limits)
            .map(|server| (member.clone(), server))
    };
    members.iter().map(server).collect()
}

impl PageServer {
    fn start(
        member: &MemberId,
        folder: &Path,
        authority: Option<&Authority>,
        base: Option<Arc<Base>>,
        limits: ReceiveLimits,
    ) -> Result<Self, PagesError> {
        let at = |source| PagesError::Io { what: "127.0.0.1".to_owned(), source };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(at)?;
        let address = listener.local_addr().map_err(at)?;
        let mut lines = format!("page-server\naddress=127.0.0.1\nport={}\n", address.port());
        let tls = match authority {
            Some(authority) => {
                let (certificate, more) = authority.issue(member, folder)?;
                lines += &more;
                Some((certificate, Arc::clone(&authority.config)))
            }
            None => None,
        };
        let shared = Arc::new(Shared::default());
        let (tell, result) = mpsc::channel();
        let door = Door { tls, spool: folder.to_owned(), base, limits, shared: Arc::clone(&shared), tell };
        thread::spawn(move || door.listen(&listener));
        Ok(Self { lines, address, shared, result })
    }

    /// What the member's CRIU must be told.
    pub(super) fn lines(&self) -> &str {
        &self.lines
    }

    /// Waits until everything is kept; `None` if nobody came. The dump is over.
    pub(super) fn received(self) -> Result<Option<Received>, PagesError> {
        self.close();
        if !self.shared.claimed.load(Ordering::SeqCst) {
            return Ok(None);
        }
        let lost = || PagesError::Torn(io::ErrorKind::BrokenPipe.into());
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

/// Lets the member's CRIU in and nobody else.
struct Door {
    /// With TLS, the certificate of who is let in.
    tls: Option<(CertificateDer<'static>, Arc<ServerConfig>)>,
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

    /// The stream, if it is the member's CRIU that came.
    fn known(&self, mut connection: TcpStream) -> Option<Stream> {
        connection.set_write_timeout(Some(PATIENCE)).ok()?;
        connection.set_nodelay(true).ok()?;
        let Some((expected, config)) = &self.tls else {
            return peer::is_own(&connection).is_ok_and(|own| own).then_some(Stream::Plain(connection));
        };
        connection.set_read_timeout(Some(PATIENCE)).ok()?;
        let mut tls = ServerConnection::new(Arc::clone(config)).ok()?;
        while tls.is_handshaking() {
            tls.complete_io(&mut connection).ok()?;
        }
        let shown = tls.peer_certificates().and_then(<[_]>::first);
        (shown == Some(expected)).then(|| Stream::Tls(Box::new(StreamOwned::new(tls, connection))))
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

/// The authority of one session.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate, for CRIU.
    file: PathBuf,
    config: Arc<ServerConfig>,
}

impl Authority {
    fn make(folder: &Path) -> Result<Self, PagesError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, "syncpoint pages");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let own = params.self_signed(&key)?;
        let issuer = Issuer::new(params, key);

        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![Ipv4Addr::LOCALHOST.to_string()])?;
        params.distinguished_name.push(DnType::CommonName, Ipv4Addr::LOCALHOST.to_string());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let server = params.signed_by(&key, &issuer)?;

        let mut roots = RootCertStore::empty();
        roots.add(own.der().clone())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![server.der().clone()], key)?;
        // CRIU takes a ticket for a page server that does not answer (seen with GnuTLS and CRIU 4.2.1).
        config.send_tls13_tickets = 0;
        let file = folder.join("pages-ca.pem");
        write(&file, &own.pem())?;
        Ok(Self { issuer, file, config: Arc::new(config) })
    }

    /// Makes a certificate for the member. Gives it, and what its CRIU must be told.
    fn issue(&self, member: &MemberId, folder: &Path) -> Result<(CertificateDer<'static>, String), PagesError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        // A common name is short, and this one is for people: who it is is told by the whole certificate.
        params.distinguished_name.push(DnType::CommonName, member.as_str().chars().take(64).collect::<String>());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer)?;
        let files = [folder.join(format!("pages-{member}.crt")), folder.join(format!("pages-{member}.key"))];
        write(&files[0], &certificate.pem())?;
        write(&files[1], &key.serialize_pem())?;
        let [crt, key, ca] = [&files[0], &files[1], &self.file].map(|file| file.display());
        let lines = format!("tls\ntls-cacert={ca}\ntls-cert={crt}\ntls-key={key}\n");
        Ok((certificate.der().clone(), lines))
    }
}

fn write(path: &Path, text: &str) -> Result<(), PagesError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|source| PagesError::Io { what: path.display().to_string(), source })
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::ServerName;
    use rustls::pki_types::pem::PemObject;
    use rustls::{ClientConfig, ClientConnection};

    use super::*;

    /// A CRIU, as far as the door sees one.
    struct Criu {
        stream: StreamOwned<ClientConnection, TcpStream>,
    }

    impl Criu {
        /// Connects as that member's CRIU would to the port of another one, by the files in `folder`.
        fn connect(folder: &Path, member: &str, to: &PageServer) -> io::Result<Self> {
            let pem = |name: String| folder.join(name);
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(pem("pages-ca.pem".to_owned())).unwrap()).unwrap();
            let certificate = CertificateDer::from_pem_file(pem(format!("pages-{member}.crt"))).unwrap();
            let key = PrivateKeyDer::from_pem_file(pem(format!("pages-{member}.key"))).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
            let config = config.with_root_certificates(roots).with_client_auth_cert(vec![certificate], key).unwrap();
            let name = ServerName::try_from("127.0.0.1").unwrap();
            let connection = ClientConnection::new(Arc::new(config), name).unwrap();
            let mut stream = StreamOwned::new(connection, TcpStream::connect(to.address)?);
            stream.sock.set_read_timeout(Some(PATIENCE))?;
            while stream.conn.is_handshaking() {
                stream.conn.complete_io(&mut stream.sock)?;
            }
            Ok(Self { stream })
        }

        /// Sends all, takes the answers, and waits until it is let go.
        fn send(mut self, bytes: &[u8]) -> Vec<u8> {
            // Whoever is not heard may see it while he speaks.
            let _ = self.stream.write_all(bytes).and_then(|()| self.stream.flush());
            let mut answers = Vec::new();
            // However the other end goes.
            let _ = self.stream.read_to_end(&mut answers);
            answers
        }
    }

    /// What CRIU 4.2.1 sent once (fixtures/README.md).
    fn recorded() -> Vec<u8> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/dumps/page-stream.tar.zst");
        let file = zstd::Decoder::new(std::fs::File::open(path).unwrap()).unwrap();
        let mut archive = tar::Archive::new(file);
        let mut stream = Vec::new();
        let mut entries = archive.entries().unwrap();
        let found = entries.find(|entry| entry.as_ref().unwrap().path().unwrap().ends_with("stream"));
        found.unwrap().unwrap().read_to_end(&mut stream).unwrap();
        stream
    }

    fn servers(folder: &Path) -> PageServers {
        let members = ["a", "b"].map(|member| member.parse().unwrap());
        listen(&members, true, folder, &Bases::new(), &ChainLimits::default()).unwrap()
    }

    fn take(servers: &mut PageServers, member: &str) -> PageServer {
        servers.remove(&member.parse::<MemberId>().unwrap()).unwrap()
    }

    #[test]
    fn a_members_own_criu_is_heard_and_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let mut servers = servers(folder.path());
        let (a, b) = (take(&mut servers, "a"), take(&mut servers, "b"));
        assert!(a.lines().contains(&format!("port={}\ntls\n", a.address.port())), "{}", a.lines());
        // Another member's certificate, one of another session, words that are no TLS, and somebody who says nothing.
        let stranger = tempfile::tempdir().unwrap();
        super::listen(&["a".parse().unwrap()], true, stranger.path(), &Bases::new(), &ChainLimits::default()).unwrap();
        let silent = TcpStream::connect(a.address).unwrap();
        TcpStream::connect(a.address).unwrap().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert_eq!(Criu::connect(folder.path(), "b", &a).unwrap().send(&recorded()), b"");
        std::fs::copy(folder.path().join("pages-ca.pem"), stranger.path().join("pages-ca.pem")).unwrap();
        assert_eq!(Criu::connect(stranger.path(), "a", &a).map_or(Vec::new(), |criu| criu.send(&recorded())), b"");

        let answers = Criu::connect(folder.path(), "a", &a).unwrap().send(&recorded());
        assert!(answers.ends_with(&CLOSED), "{answers:?}");
        let received = a.received().unwrap().unwrap();
        assert!(received.pages() > 0 && received.changed() == received.pages());
        drop(silent);
        assert!(b.received().unwrap().is_none(), "nobody came");
    }

    #[test]
    fn in_the_open_only_processes_of_the_session_are_heard() {
        let folder = tempfile::tempdir().unwrap();
        let mut servers =
            listen(&["a".parse().unwrap()], false, folder.path(), &Bases::new(), &ChainLimits::default()).unwrap();
        let a = take(&mut servers, "a");
        assert_eq!(a.lines(), format!("page-server\naddress=127.0.0.1\nport={}\n", a.address.port()));
        let file = folder.path().join("stream");
        std::fs::write(&file, recorded()).unwrap();
        // Whether it is answered is seen by how long the answer is.
        let send = format!(
            "exec 3<>/dev/tcp/127.0.0.1/{}; cat {} >&3; head -c {} <&3 | wc -c > {}.told",
            a.address.port(),
            file.display(),
            CLOSED.len(),
            file.display()
        );
        let told = || std::fs::read_to_string(file.with_extension("told")).ok().filter(|told| told.ends_with('\n'));
        let run = |program: &str, arguments: &[&str]| {
            std::process::Command::new(program).args(arguments).arg(&send).status().unwrap();
            (0..500).find_map(|_| told().or_else(|| (thread::sleep(Duration::from_millis(20)), None).1)).unwrap()
        };
        assert_eq!(run("setsid", &["--fork", "bash", "-c"]).trim(), "0", "somebody whom nobody here started");
        std::fs::remove_file(file.with_extension("told")).unwrap();
        assert_eq!(run("bash", &["-c"]).trim(), CLOSED.len().to_string());
        assert!(a.received().unwrap().unwrap().pages() > 0);
    }

    #[test]
    fn a_stream_that_is_torn_or_makes_no_sense_is_no_memory() {
        let folder = tempfile::tempdir().unwrap();
        let mut servers = servers(folder.path());
        let (a, b) = (take(&mut servers, "a"), take(&mut servers, "b"));
        let stream = recorded();
        let criu = Criu::connect(folder.path(), "a", &a).unwrap();
        let mut torn = criu.stream;
        torn.write_all(&stream[..stream.len() / 2]).unwrap();
        torn.flush().unwrap();
        drop(torn);
        let wait = Duration::from_millis(200);
        thread::sleep(wait);
        assert!(matches!(a.received(), Err(PagesError::Torn(_))));
        assert_eq!(Criu::connect(folder.path(), "b", &b).unwrap().send(&[0xee; 4096]), b"", "it is not answered");
        assert!(matches!(b.received(), Err(PagesError::Stream(_))));
    }

    #[test]
    fn a_thousand_strangers_do_not_keep_criu_out() {
        let folder = tempfile::tempdir().unwrap();
        let mut servers = servers(folder.path());
        let a = take(&mut servers, "a");
        for _ in 0..1000 {
            drop(TcpStream::connect(a.address).unwrap());
        }
        let answers = (0..50).find_map(|_| {
            thread::sleep(Duration::from_millis(20));
            Criu::connect(folder.path(), "a", &a).ok()
        });
        assert!(answers.unwrap().send(&recorded()).ends_with(&CLOSED));
        assert!(a.received().unwrap().is_some());
    }
}
