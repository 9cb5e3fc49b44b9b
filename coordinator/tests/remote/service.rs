//! The standing service over its real port: sessions that form by themselves.

use std::time::Duration;

use coordinator::proto::{Message, Reply, Step, Vote};
use coordinator::wire::{self, Answer, Invitation, Join, JoinAnswer, JoinRequest, JoinWord, Request};
use coordinator::{Deadlines, Hook, Listen, Outcome, Service, ServiceEvent, ServicePlan, SessionKind};
use image_format::{Epoch, MemberId};
use rustls_pki_types::ServerName;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::Authority;

const LONG: Duration = Duration::from_secs(20);
const BARRIERS: [Hook; 3] = [Hook::PreDump, Hook::NetworkLock, Hook::PostDump];

fn id(member: &str) -> MemberId {
    member.parse().expect("an id")
}

struct Host {
    authority: Authority,
    service: Service,
    events: mpsc::UnboundedReceiver<ServiceEvent>,
}

/// One member's connection.
struct Hooked {
    member: MemberId,
    stream: TlsStream<TcpStream>,
}

impl Host {
    async fn new(gather: Duration) -> Self {
        let authority = Authority::new();
        let plan = ServicePlan {
            listen: Listen {
                address: "127.0.0.1:0".parse().expect("an address"),
                tls: authority.coordinator(&["localhost"]),
            },
            application: "app".parse().expect("an id"),
            epoch: Epoch(5),
            deadlines: Deadlines { gather, hold: LONG },
        };
        let mut service = Service::start(plan).await.expect("a service");
        let events = service.events();
        Self { authority, service, events }
    }

    async fn connect(&self, member: &str) -> Hooked {
        let config = self.authority.member(member).client().expect("files");
        let stream = TcpStream::connect(self.service.address()).await.expect("a connection");
        let name = ServerName::try_from("localhost").expect("a name");
        let stream = TlsConnector::from(config).connect(name, stream).await.expect("a handshake");
        Hooked { member: id(member), stream }
    }

    async fn join(&self, kind: SessionKind, member: &str, dependencies: &[&str]) -> Hooked {
        let mut hooked = self.connect(member).await;
        let dependencies = dependencies.iter().map(|member| id(member)).collect();
        let join = Join { kind, member: id(member), dependencies };
        hooked.send(&JoinRequest { version: wire::VERSION, join }).await;
        let JoinWord::Noted { .. } = hooked.word().await else { panic!("not noted") };
        hooked
    }

    async fn arrive(&self, session: &Invitation, member: &str, hook: Hook) -> Hooked {
        let mut hooked = self.connect(member).await;
        hooked.arrive(session, hook).await;
        hooked
    }

    async fn event(&mut self) -> ServiceEvent {
        timeout(LONG, self.events.recv()).await.expect("in time").expect("an event")
    }

    /// Waits until somebody has come to this hook.
    async fn arrived(&mut self, hook: Hook) {
        let here = |event: &ServiceEvent| matches!(event, ServiceEvent::Member { event, .. } if event.step == Step::Arrived(hook));
        while !here(&self.event().await) {}
    }

    async fn outcome(&mut self) -> Outcome {
        loop {
            if let ServiceEvent::Decided { outcome, .. } = self.event().await {
                return outcome;
            }
        }
    }
}

impl Hooked {
    async fn send(&mut self, what: &impl serde::Serialize) {
        self.stream.write_all(&wire::encode(what).expect("short")).await.expect("room");
    }

    async fn arrive(&mut self, session: &Invitation, hook: Hook) {
        let member = self.member.clone();
        let message = Message { session: session.session, epoch: session.epoch, member, hook, vote: Vote::Yes };
        self.send(&Request { version: wire::VERSION, secret: None, message }).await;
    }

    async fn read<T: DeserializeOwned>(&mut self) -> T {
        let reading = async {
            let length = self.stream.read_u32().await.expect("a header");
            let mut body = vec![0; usize::try_from(length).expect("short")];
            self.stream.read_exact(&mut body).await.expect("a body");
            wire::decode(&body).expect("a message")
        };
        timeout(LONG, reading).await.expect("in time")
    }

    async fn word(&mut self) -> JoinWord {
        self.read::<JoinAnswer>().await.word
    }

    async fn invited(&mut self) -> Invitation {
        match self.word().await {
            JoinWord::Invited(invitation) => invitation,
            other => panic!("{other:?}"),
        }
    }

    async fn refused(&mut self) -> String {
        match self.word().await {
            JoinWord::Reply(Reply::Abort { reason }) => reason,
            other => panic!("{other:?}"),
        }
    }

    async fn answer(mut self) -> Reply {
        self.read::<Answer>().await.reply
    }
}

#[tokio::test]
async fn sessions_form_one_after_the_other_each_with_an_epoch_of_its_own() {
    let mut host = Host::new(LONG).await;
    for epoch in [5, 6] {
        let mut a = host.join(SessionKind::Dump, "a", &["b"]).await;
        let mut b = host.join(SessionKind::Dump, "b", &["c"]).await;
        let mut c = host.join(SessionKind::Dump, "c", &[]).await;
        let (session, other) = (a.invited().await, b.invited().await);
        assert_eq!((&session, session.epoch), (&other, Epoch(epoch)));
        let ServiceEvent::Begun { session: plan } = host.event().await else { panic!("not begun") };
        assert_eq!(plan.members, [id("a"), id("b"), id("c")]);
        c.invited().await;
        for (first, hooked) in [("a", &mut a), ("b", &mut b), ("c", &mut c)] {
            assert_eq!(hooked.member, id(first));
            hooked.arrive(&session, Hook::PreDump).await;
        }
        for hooked in [a, b, c] {
            assert_eq!(hooked.answer().await, Reply::Proceed);
        }
        for hook in &BARRIERS[1..] {
            let mut waiting = Vec::new();
            for member in ["a", "b", "c"] {
                waiting.push(host.arrive(&session, member, *hook).await);
            }
            for hooked in waiting {
                assert_eq!(hooked.answer().await, Reply::Proceed);
            }
        }
        assert!(matches!(host.outcome().await, Outcome::Released { .. }));
        assert!(matches!(host.event().await, ServiceEvent::Finished { finished, .. } if finished.is_whole()));
        let repeat = host.arrive(&session, "a", Hook::PostDump).await;
        assert_eq!(repeat.answer().await, Reply::Proceed);
    }
}

#[tokio::test]
async fn a_member_that_begins_again_ends_the_session_that_it_left() {
    let mut host = Host::new(LONG).await;
    let mut a = host.join(SessionKind::Dump, "a", &["b"]).await;
    let mut b = host.join(SessionKind::Dump, "b", &["a"]).await;
    let session = a.invited().await;
    b.invited().await;
    a.arrive(&session, Hook::PreDump).await;
    b.arrive(&session, Hook::PreDump).await;
    assert_eq!((a.answer().await, b.answer().await), (Reply::Proceed, Reply::Proceed));
    let waiting = host.arrive(&session, "b", Hook::NetworkLock).await;
    let mut again = host.join(SessionKind::Dump, "a", &["b"]).await;
    let reason = "member a failed: it began again".to_owned();
    assert_eq!(waiting.answer().await, Reply::Abort { reason });
    assert!(matches!(host.outcome().await, Outcome::Aborted { .. }));
    let mut b = host.join(SessionKind::Dump, "b", &["a"]).await;
    let next = again.invited().await;
    assert_eq!((next.epoch, b.invited().await.epoch), (Epoch(6), Epoch(6)));
    let stale = host.arrive(&session, "b", Hook::PostDump).await;
    assert!(matches!(stale.answer().await, Reply::Abort { .. }), "nothing of an older epoch is obeyed");
}

#[tokio::test]
async fn one_that_vanishes_before_during_and_after_the_gathering_is_the_end_for_all() {
    let mut host = Host::new(LONG).await;
    let mut a = host.join(SessionKind::Dump, "a", &["b", "c"]).await;
    drop(host.join(SessionKind::Dump, "b", &[]).await);
    assert_eq!(a.refused().await, "member b vanished before all were there");
    assert!(matches!(host.event().await, ServiceEvent::NotBegun { .. }));

    let mut a = host.join(SessionKind::Dump, "a", &["b"]).await;
    let b = host.join(SessionKind::Dump, "b", &[]).await;
    let session = a.invited().await;
    a.arrive(&session, Hook::PreDump).await;
    drop(b);
    let Reply::Abort { reason } = a.answer().await else { panic!("let through") };
    assert!(reason.contains("member b"), "{reason}");

    let mut b = host.join(SessionKind::Restore, "b", &["a"]).await;
    let mut a = host.join(SessionKind::Restore, "a", &["b"]).await;
    let session = b.invited().await;
    a.invited().await;
    a.arrive(&session, Hook::PreRestore).await;
    b.arrive(&session, Hook::PreRestore).await;
    assert_eq!((a.answer().await, b.answer().await), (Reply::Proceed, Reply::Proceed));
    let waiting = host.arrive(&session, "a", Hook::PostRestore).await;
    host.arrived(Hook::PostRestore).await;
    host.service.close().await;
    let reason = "given up: the coordinator was stopped".to_owned();
    assert_eq!(waiting.answer().await, Reply::Abort { reason });
}

#[tokio::test]
async fn who_never_comes_is_named_when_the_time_is_up() {
    let mut host = Host::new(Duration::from_millis(300)).await;
    let mut a = host.join(SessionKind::Restore, "a", &["b", "c"]).await;
    let mut b = host.join(SessionKind::Restore, "b", &[]).await;
    let words = "the time was up before all were there; missing: c";
    assert_eq!((a.refused().await, b.refused().await), (words.to_owned(), words.to_owned()));
    // Alone is complete.
    let mut alone = host.join(SessionKind::Dump, "d", &[]).await;
    let session = alone.invited().await;
    alone.arrive(&session, Hook::PreDump).await;
    assert_eq!(alone.answer().await, Reply::Proceed);
    let arrived = |event: &ServiceEvent| matches!(event, ServiceEvent::Member { event, .. } if event.step == Step::Arrived(Hook::PreDump));
    while !arrived(&host.event().await) {}
}
