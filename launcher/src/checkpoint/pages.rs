//! Pages of the members: where the CRIU of each sends its memory while the tasks stand frozen, so that no page touches a disk on
//! its way and those that are in the base are never written anywhere.
//!
//! ```text
//!            ┌─ one end here, the other one handed through the engine to CRIU, which has it open from the start
//!  a member ─┤
//!            └─ with TLS: a port of its own on 127.0.0.1, and a certificate of an authority that every session makes for itself
//! ```
//!
//! The end that is handed over is nowhere else, so nobody else can speak. With TLS it is told by the certificate who speaks. A torn
//! stream fails CRIU's dump, and the session with it. Where an engine's CRIU takes no notice of the lines in its configuration, nobody
//! comes, and the dump has its pages as ever.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use engine::attach::InheritedFd;
use image_format::page_server::{ReceiveLimits, Received};
use image_format::{ChainLimits, MemberId};

use super::base::Bases;
use crate::pages::{Authority, PageServer, PagesError};

/// Bytes of pages of all members together that wait in memory; beyond, CRIU waits.
const WAITING: u64 = 256 << 20;
/// Bytes of them for a member that is said to have less.
const WAITING_LEAST: u64 = 1 << 20;
/// Bytes of each member's pages that stay in memory; beyond, they go into a file without a name.
const IN_MEMORY: usize = 8 << 20;

/// Where the members' pages go to, by member.
pub(super) type PageServers = BTreeMap<MemberId, MemberPages>;

/// The pages of one member on their way. Dropping it ends that.
#[derive(Debug)]
pub(super) struct MemberPages {
    /// For the member's CRIU configuration.
    lines: String,
    /// CRIU's end.
    end: Option<InheritedFd>,
    server: PageServer,
}

impl MemberPages {
    /// What the member's CRIU must be told.
    pub(super) fn lines(&self) -> &str {
        &self.lines
    }

    /// What the member's CRIU must be handed, once.
    pub(super) fn hand_over(&mut self) -> Option<InheritedFd> {
        self.end.take()
    }

    /// Waits until everything is kept; `None` if nobody came. The dump is over.
    pub(super) fn received(self) -> Result<Option<Received>, PagesError> {
        drop(self.end);
        self.server.received()
    }
}

/// Makes a way for the pages of each member, which has about so many bytes of memory. `folder` is for root alone.
pub(super) fn open(
    members: Vec<(MemberId, u64)>,
    encrypted: bool,
    folder: &Path,
    bases: &Bases,
    chain: &ChainLimits,
) -> Result<PageServers, PagesError> {
    let authority = encrypted.then(|| Authority::make(folder)).transpose()?;
    let all = members.iter().map(|(_, bytes)| bytes).sum();
    let server = |(member, bytes): (MemberId, u64)| {
        let base = bases.get(&member).filter(|base| base.refuses_stream(Some(&member), chain).is_none()).cloned();
        let limits = limits(bytes, all);
        let pages = match &authority {
            Some(authority) => {
                let (admit, tls) = authority.issue(&member, folder)?;
                let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
                let server = PageServer::listen(any_port, admit, folder, base, limits)?;
                let port = server.address().map_or(0, |address| address.port());
                let lines = format!("page-server\naddress=127.0.0.1\nport={port}\n{tls}");
                MemberPages { lines, end: None, server }
            }
            None => {
                let (server, end) = PageServer::handed(folder, base, limits)?;
                let end = InheritedFd::new(end);
                MemberPages { lines: format!("page-server\nps-socket={}\n", end.number), end: Some(end), server }
            }
        };
        Ok((member, pages))
    };
    members.into_iter().map(server).collect()
}

/// How much of a member's pages waits, by its share of all memory; that much of what it has is made ready.
fn limits(bytes: u64, all: u64) -> ReceiveLimits {
    let share = u128::from(WAITING) * u128::from(bytes) / u128::from(all.max(1));
    let waiting = (share as u64).max(WAITING_LEAST);
    ReceiveLimits {
        waiting_bytes: waiting as usize,
        ready_bytes: bytes.min(waiting) as usize,
        memory_bytes: IN_MEMORY,
        ..ReceiveLimits::default()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read, Write};
    use std::net::TcpStream;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::thread;
    use std::time::Duration;

    use image_format::page_server::CLOSED;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

    use super::*;
    use crate::pages::{Admit, PATIENCE};

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
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
            let config = config.with_root_certificates(roots).with_client_auth_cert(vec![certificate], key).unwrap();
            let name = ServerName::try_from("127.0.0.1").unwrap();
            let connection = ClientConnection::new(Arc::new(config), name).unwrap();
            let mut stream = StreamOwned::new(connection, TcpStream::connect(to.server.address().unwrap())?);
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
        let members = ["a", "b"].map(|member| (member.parse().unwrap(), 1 << 20));
        open(members.to_vec(), true, folder, &Bases::new(), &ChainLimits::default()).unwrap()
    }

    fn take(servers: &mut PageServers, member: &str) -> MemberPages {
        servers.remove(&member.parse::<MemberId>().unwrap()).unwrap()
    }

    #[test]
    fn a_members_own_criu_is_heard_and_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let mut servers = servers(folder.path());
        let (a, b) = (take(&mut servers, "a"), take(&mut servers, "b"));
        assert!(a.lines().contains(&format!("port={}\ntls\n", a.server.address().unwrap().port())), "{}", a.lines());
        // Another member's certificate, one of another session, words that are no TLS, and somebody who says nothing.
        let stranger = tempfile::tempdir().unwrap();
        let of_another = vec![("a".parse().unwrap(), 0)];
        open(of_another, true, stranger.path(), &Bases::new(), &ChainLimits::default()).unwrap();
        let silent = TcpStream::connect(a.server.address().unwrap()).unwrap();
        TcpStream::connect(a.server.address().unwrap()).unwrap().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
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
    fn who_has_the_other_end_is_heard_and_the_bytes_are_those_that_were_sent() {
        let folder = tempfile::tempdir().unwrap();
        let members = ["a", "silent", "torn"].map(|member| (member.parse().unwrap(), 1 << 20));
        let mut servers = open(members.to_vec(), false, folder.path(), &Bases::new(), &ChainLimits::default()).unwrap();
        let mut a = take(&mut servers, "a");
        let handed = a.hand_over().unwrap();
        assert_eq!(a.lines(), format!("page-server\nps-socket={}\n", handed.number));
        let mut end = UnixStream::from(handed.descriptor);
        assert!(a.hand_over().is_none());
        send(&mut end, &recorded());
        let mut answers = Vec::new();
        end.read_to_end(&mut answers).unwrap();
        assert!(answers.ends_with(&CLOSED), "{answers:?}");
        assert!(a.received().unwrap().unwrap().pages() > 0);

        // An engine that still has it does not keep anybody waiting, and one that never was started neither.
        let mut silent = take(&mut servers, "silent");
        let held = silent.hand_over();
        assert!(silent.received().unwrap().is_none(), "nobody came");
        drop(held);
        let mut torn = take(&mut servers, "torn");
        let mut end = UnixStream::from(torn.hand_over().unwrap().descriptor);
        send(&mut end, &recorded()[..5000]);
        drop(end);
        assert!(matches!(torn.received(), Err(PagesError::Torn(_))));
    }

    /// In packets, as large as the kernel makes them of pages.
    fn send(end: &mut UnixStream, stream: &[u8]) {
        stream.chunks(64 << 10).for_each(|packet| assert_eq!(end.write(packet).unwrap(), packet.len()));
    }

    /// CRIU ends the tasks when it is answered.
    #[test]
    fn a_plain_dump_that_cannot_be_kept_is_not_answered() {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let folder = tempfile::tempdir().unwrap();
        let head = |command: u32, pages: u64| {
            let numbers = [pages, 0, 0x2a << 8 | 1].map(u64::to_ne_bytes);
            [command.to_ne_bytes().as_slice(), &[0; 4], numbers.as_flattened()].concat()
        };
        // More than any scratch file holds in memory.
        let stream = [head(4, 0), head(4 << 16 | 6, 512), vec![7; 512 * 4096], head(0x1023, 0)].concat();
        let answers = |spool: &Path| {
            let limits = ReceiveLimits { memory_bytes: 0, ..ReceiveLimits::default() };
            let server = PageServer::listen(address, Admit::SameUser, spool, None, limits).unwrap();
            let mut criu = TcpStream::connect(server.address().unwrap()).unwrap();
            criu.write_all(&stream).unwrap();
            let mut answers = Vec::new();
            criu.read_to_end(&mut answers).unwrap();
            (answers, server.received())
        };
        let (all, kept) = answers(folder.path());
        assert_eq!((&all[..], kept.unwrap().unwrap().pages()), (&[0; 5][..], 512));
        std::fs::write(folder.path().join("file"), "").unwrap();
        let (but_the_last, lost) = answers(&folder.path().join("file/nowhere"));
        assert!(matches!(lost, Err(PagesError::Stream(_))));
        assert_eq!(but_the_last, [0]);
    }

    #[test]
    fn memory_waits_by_its_share_of_all() {
        let (mib, both) = (1 << 20, |bytes, all| (limits(bytes, all).waiting_bytes, limits(bytes, all).ready_bytes));
        assert_eq!(both(0, 0), (1 << 20, 0));
        assert_eq!(both(10 * mib, 10 * mib), (256 << 20, 10 << 20));
        assert_eq!(both(2048 * mib, 4096 * mib), (128 << 20, 128 << 20));
        assert_eq!(both(mib, u64::MAX), (1 << 20, 1 << 20));
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
            drop(TcpStream::connect(a.server.address().unwrap()).unwrap());
        }
        let answers = (0..50).find_map(|_| {
            thread::sleep(Duration::from_millis(20));
            Criu::connect(folder.path(), "a", &a).ok()
        });
        assert!(answers.unwrap().send(&recorded()).ends_with(&CLOSED));
        assert!(a.received().unwrap().is_some());
    }
}
