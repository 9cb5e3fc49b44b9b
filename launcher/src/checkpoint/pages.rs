//! Pages of the members: where the CRIU of each sends its memory while the tasks stand frozen, so that no page touches a disk on
//! its way and those that are in the base are never written anywhere.
//!
//! Each member has a port of its own on 127.0.0.1. Who speaks there is told by the kernel: the other end is a socket of a process that
//! descends from this one, as the CRIUs of the engines that it started do. Loopback leaves the machine as little as CRIU's own files
//! do, and only root can listen there. With TLS it is told by a certificate: every session makes an authority of its own, in memory,
//! and a certificate for each member. A torn stream fails CRIU's dump, and the session with it. Where an engine's CRIU takes no notice of the
//! lines in its configuration, nobody comes, and the dump has its pages as ever.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use image_format::page_server::{ReceiveLimits, Received};
use image_format::{ChainLimits, MemberId};

use super::base::Bases;
use crate::pages::{Admit, Authority, PageServer, PagesError, can_tell};

/// Bytes of pages of all members together that wait in memory; beyond, CRIU waits.
const WAITING: usize = 256 << 20;
/// Bytes of each member's pages that stay in memory; beyond, they go into a file without a name.
const IN_MEMORY: usize = 8 << 20;

/// Where the members' pages go to, by member.
pub(super) type PageServers = BTreeMap<MemberId, MemberPages>;

/// The pages of one member on their way. Dropping it ends that.
#[derive(Debug)]
pub(super) struct MemberPages {
    /// For the member's CRIU configuration.
    lines: String,
    server: PageServer,
}

impl MemberPages {
    /// What the member's CRIU must be told.
    pub(super) fn lines(&self) -> &str {
        &self.lines
    }

    /// Waits until everything is kept; `None` if nobody came. The dump is over.
    pub(super) fn received(self) -> Result<Option<Received>, PagesError> {
        self.server.received()
    }
}

/// Listens for the pages of each member. `folder` is for root alone.
pub(super) fn listen(
    members: &[MemberId],
    tls: bool,
    folder: &Path,
    bases: &Bases,
    chain: &ChainLimits,
) -> Result<PageServers, PagesError> {
    if !tls && !can_tell() {
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
        let (admit, tls) = match &authority {
            Some(authority) => authority.issue(member, folder)?,
            None => (Admit::Own, String::new()),
        };
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let server = PageServer::listen(any_port, admit, folder, base.cloned(), limits)?;
        let lines = format!("page-server\naddress=127.0.0.1\nport={}\n{tls}", server.address().port());
        Ok((member.clone(), MemberPages { lines, server }))
    };
    members.iter().map(server).collect()
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read, Write};
    use std::net::TcpStream;
    use std::sync::Arc;
    use std::thread;
    use std::time::Duration;

    use image_format::page_server::CLOSED;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

    use super::*;
    use crate::pages::PATIENCE;

    /// A CRIU, as far as the door sees one.
    struct Criu {
        stream: StreamOwned<ClientConnection, TcpStream>,
    }

    impl Criu {
        /// Connects as that member's CRIU would to the port of another one, by the files in `folder`.
        fn connect(folder: &Path, member: &str, to: &MemberPages) -> io::Result<Self> {
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
            let mut stream = StreamOwned::new(connection, TcpStream::connect(to.server.address())?);
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

    fn take(servers: &mut PageServers, member: &str) -> MemberPages {
        servers.remove(&member.parse::<MemberId>().unwrap()).unwrap()
    }

    #[test]
    fn a_members_own_criu_is_heard_and_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let mut servers = servers(folder.path());
        let (a, b) = (take(&mut servers, "a"), take(&mut servers, "b"));
        assert!(a.lines().contains(&format!("port={}\ntls\n", a.server.address().port())), "{}", a.lines());
        // Another member's certificate, one of another session, words that are no TLS, and somebody who says nothing.
        let stranger = tempfile::tempdir().unwrap();
        super::listen(&["a".parse().unwrap()], true, stranger.path(), &Bases::new(), &ChainLimits::default()).unwrap();
        let silent = TcpStream::connect(a.server.address()).unwrap();
        TcpStream::connect(a.server.address()).unwrap().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
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
        assert_eq!(a.lines(), format!("page-server\naddress=127.0.0.1\nport={}\n", a.server.address().port()));
        let file = folder.path().join("stream");
        std::fs::write(&file, recorded()).unwrap();
        // Whether it is answered is seen by how long the answer is.
        let send = format!(
            "exec 3<>/dev/tcp/127.0.0.1/{}; cat {} >&3; head -c {} <&3 | wc -c > {}.told",
            a.server.address().port(),
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
            drop(TcpStream::connect(a.server.address()).unwrap());
        }
        let answers = (0..50).find_map(|_| {
            thread::sleep(Duration::from_millis(20));
            Criu::connect(folder.path(), "a", &a).ok()
        });
        assert!(answers.unwrap().send(&recorded()).ends_with(&CLOSED));
        assert!(a.received().unwrap().is_some());
    }
}
