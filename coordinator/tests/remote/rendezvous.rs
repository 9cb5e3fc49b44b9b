//! The rendezvous over mutual TLS on a real socket, with peers that are who they say and peers that are not.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coordinator::proto::{Message, Reply, Vote};
use coordinator::wire::{self, Answer, Join, JoinRequest, Request};
use coordinator::{
    Deadlines, Hook, Listen, ListenError, Outcome, Outpost, OutpostError, Remote, Rendezvous, RendezvousError,
    SessionId, SessionKind, SessionPlan, TlsFiles,
};
use image_format::{Epoch, MemberId};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde::Serialize;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::Authority;

const LONG: Duration = Duration::from_secs(20);

fn id(member: &str) -> MemberId {
    member.parse().expect("an id")
}

/// A session of `a` and `b_.B` with a door to other hosts.
struct Set {
    root: TempDir,
    authority: Authority,
    rendezvous: Rendezvous,
    plan: SessionPlan,
}

const B: &str = "b_.B";

async fn start() -> Set {
    let plan = SessionPlan {
        kind: SessionKind::Restore,
        id: SessionId::random().expect("random numbers"),
        epoch: Epoch(3),
        application: "app".parse().expect("an id"),
        members: vec![id("a"), id(B)],
        deadlines: Deadlines { gather: LONG, hold: LONG },
        fence: None,
    };
    let root = tempfile::tempdir().expect("a folder");
    let authority = Authority::new();
    let tls = authority.coordinator(&["localhost", "127.0.0.1"]);
    let listen = Listen { address: "127.0.0.1:0".parse().expect("an address"), tls };
    let started = Rendezvous::start_with(root.path(), plan.clone(), Path::new("/bin/true"), Some(&listen)).await;
    Set { root, authority, rendezvous: started.expect("a session"), plan }
}

impl Set {
    fn message(&self, member: &str) -> Request {
        let message = Message {
            session: self.plan.id,
            epoch: self.plan.epoch,
            member: id(member),
            hook: Hook::PreRestore,
            vote: Vote::Yes,
        };
        Request { version: wire::VERSION, secret: None, message }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.rendezvous.address().expect("a port")).await.expect("a connection")
    }

    async fn shake_hands(&self, config: Arc<ClientConfig>) -> std::io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from("localhost").expect("a name");
        TlsConnector::from(config).connect(name, self.connect().await).await
    }

    /// Sends this as whoever these files say.
    async fn send(&self, files: &TlsFiles, what: &impl Serialize) -> TlsStream<TcpStream> {
        let mut stream = self.shake_hands(files.client().expect("files")).await.expect("a handshake");
        // Whoever is refused learns of it only now, in TLS 1.3; it may or may not still be able to send.
        let _ = stream.write_all(&wire::encode(what).expect("short")).await;
        let _ = stream.flush().await;
        stream
    }

    /// That both members still get through: nobody was counted for them.
    async fn assert_undisturbed(&self) {
        let a = self.send(&self.authority.member("a"), &self.message("a")).await;
        let b = self.send(&self.authority.member(B), &self.message(B)).await;
        assert_eq!((answer(a).await, answer(b).await), (Reply::Proceed, Reply::Proceed));
    }

    fn remote(&self, tls: TlsFiles) -> Remote {
        Remote { address: format!("localhost:{}", self.rendezvous.address().expect("a port").port()), tls }
    }
}

async fn rest(mut stream: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset or an alert is an end too.
    let _ = timeout(LONG, stream.read_to_end(&mut bytes)).await.expect("an end");
    bytes
}

async fn answer(stream: impl AsyncRead + Unpin) -> Reply {
    wire::read::<Answer>(rest(stream).await.as_slice()).expect("an answer").reply
}

async fn refusal(stream: impl AsyncRead + Unpin) -> String {
    match answer(stream).await {
        Reply::Abort { reason } => reason,
        Reply::Proceed => panic!("let through"),
    }
}

#[tokio::test]
async fn members_meet_over_tls_and_locally() {
    let set = start().await;
    set.assert_undisturbed().await;
    // A repeat, by another form of the same name.
    let again = set.send(&set.authority.common_name("a"), &set.message("a")).await;
    assert_eq!(answer(again).await, Reply::Proceed);
}

#[tokio::test]
async fn a_certificate_speaks_for_its_member_alone() {
    let set = start().await;
    let of_a = set.authority.member("a");
    let forged = set.send(&of_a, &set.message(B)).await;
    assert_eq!(refusal(forged).await, "the certificate is that of a, which does not speak for b_.B");
    let join = Join { kind: SessionKind::Restore, member: id(B), dependencies: Vec::new() };
    let forged = set.send(&of_a, &JoinRequest { version: wire::VERSION, join }).await;
    assert!(refusal(forged).await.contains("does not speak for b_.B"));
    let stranger = set.send(&set.authority.member("c"), &set.message("c")).await;
    assert_eq!(refusal(stranger).await, "c is not a member of the session");
    let nobody = set.send(&set.authority.common_name("two words"), &set.message("a")).await;
    assert_eq!(refusal(nobody).await, "the certificate names no member, or more than one");
    let mut newer = wire::encode(&set.message("a")).expect("short");
    let place = newer.windows(11).position(|part| part == b"\"version\":1").expect("a version") + 10;
    newer[place] = b'2';
    let mut stream = set.shake_hands(of_a.client().expect("files")).await.expect("a handshake");
    stream.write_all(&newer).await.expect("room");
    assert_eq!(refusal(stream).await, "protocol version 2; this is version 1");
    set.assert_undisturbed().await;
}

#[tokio::test]
async fn who_shows_no_certificate_of_the_authority_is_not_heard() {
    let set = start().await;
    let other = Authority::new();
    let foreign = TlsFiles { ca: set.authority.ca().to_owned(), ..other.member("a") };
    let of_the_coordinator = set.authority.coordinator(&["a"]);
    for files in [foreign, set.authority.expired("a"), of_the_coordinator] {
        let stream = set.send(&files, &set.message("a")).await;
        assert!(rest(stream).await.is_empty(), "{files:?}");
    }
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(set.authority.ca()).expect("an authority")).expect("an authority");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let nameless = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("TLS");
    let nameless = nameless.with_root_certificates(roots).with_no_client_auth();
    if let Ok(mut stream) = set.shake_hands(Arc::new(nameless)).await {
        let _ = stream.write_all(&wire::encode(&set.message("a")).expect("short")).await;
        assert!(rest(stream).await.is_empty());
    }
    set.assert_undisturbed().await;
}

#[tokio::test]
async fn plain_and_silent_peers_are_ended_and_disturb_nobody() {
    let set = start().await;
    let mut plain = set.connect().await;
    plain.write_all(&wire::encode(&set.message("a")).expect("short")).await.expect("room");
    assert!(wire::read::<Answer>(rest(plain).await.as_slice()).is_err(), "nothing in plain words");
    // Many more of them than there is room for, and some who have shown a certificate.
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(set.connect().await);
    }
    let since = Instant::now();
    let files = set.authority.common_name("c");
    for _ in 0..20 {
        silent.push(set.shake_hands(files.client().expect("files")).await.expect("a handshake").into_inner().0);
    }
    set.assert_undisturbed().await;
    assert!(since.elapsed() < Duration::from_secs(3), "strangers had to be waited for: {:?}", since.elapsed());
    for silent in silent {
        let _ = rest(silent).await;
    }
    assert!(since.elapsed() < Duration::from_secs(15), "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_member_that_vanishes_elsewhere_is_an_abort() {
    let set = start().await;
    drop(set.send(&set.authority.member("a"), &set.message("a")).await);
    match set.rendezvous.outcome().await {
        Outcome::Aborted { reason, .. } => assert_eq!(reason, "member a vanished while it waited at pre-restore"),
        Outcome::Released { .. } => panic!("released"),
    }
    let late = set.send(&set.authority.member(B), &set.message(B)).await;
    assert!(refusal(late).await.contains("member a vanished"));
}

#[tokio::test]
async fn another_host_is_told_its_session_and_makes_a_folder_for_it() {
    let set = start().await;
    let root = tempfile::tempdir().expect("a folder");
    let join = async |kind, member: &str, remote| {
        Outpost::join(root.path(), remote, kind, id(member), Path::new("/bin/true"), LONG).await
    };
    let of_b = || set.remote(set.authority.member(B));
    let outpost = join(SessionKind::Restore, B, of_b()).await.expect("joined");
    assert_eq!((outpost.session(), outpost.invitation().epoch), (set.plan.id, Epoch(3)));
    let ticket = outpost.criu_config(&id(B)).with_file_name("session.json");
    let ticket: serde_json::Value = serde_json::from_slice(&std::fs::read(ticket).expect("a ticket")).expect("JSON");
    assert_eq!(ticket["remote"]["address"], of_b().address);
    assert_eq!(ticket.get("secret"), None);
    outpost.close().expect("gone");
    let why = |refused: Result<Outpost, OutpostError>| match refused {
        Err(OutpostError::Refused { reason, .. }) => reason,
        Err(OutpostError::Lost { source, .. }) => {
            let mut words = source.to_string();
            let mut source = source.source();
            while let Some(cause) = source {
                words.push_str(&format!(": {cause}"));
                source = cause.source();
            }
            words
        }
        other => panic!("{other:?}"),
    };
    assert!(why(join(SessionKind::Dump, B, of_b()).await).contains("is a restore, not a dump"));
    assert!(why(join(SessionKind::Restore, "a", of_b()).await).contains("does not speak for a"));
    let other = Authority::new();
    let foreign = set.remote(TlsFiles { ca: other.ca().to_owned(), ..set.authority.member("a") });
    assert!(why(join(SessionKind::Restore, "a", foreign).await).contains("UnknownIssuer"));
    let misnamed = Remote { address: of_b().address.replace("localhost", "127.0.0.2"), ..of_b() };
    assert!(why(join(SessionKind::Restore, B, misnamed).await).contains("127.0.0.2"));
    assert_eq!(root.path().read_dir().expect("the root").count(), 0);
    drop(set.root);
}

#[tokio::test]
async fn a_door_that_cannot_be_opened_leaves_nothing() {
    let set = start().await;
    let taken = set.rendezvous.address().expect("a port");
    let tls = set.authority.coordinator(&["localhost"]);
    let root = tempfile::tempdir().expect("a folder");
    let mut files = tls.clone();
    files.key = set.authority.member("a").key;
    for (address, tls) in [(taken, tls), ("127.0.0.1:0".parse().expect("an address"), files)] {
        let listen = Listen { address, tls };
        let other = SessionPlan { id: SessionId::random().expect("random numbers"), ..set.plan.clone() };
        let failed = Rendezvous::start_with(root.path(), other, Path::new("/bin/true"), Some(&listen)).await;
        let Err(RendezvousError::Listen(error)) = failed else { panic!("{failed:?}") };
        assert!(matches!(error, ListenError::Bind { .. } | ListenError::Tls(_)), "{error}");
        assert_eq!(root.path().read_dir().expect("the root").count(), 0);
    }
}
