//! Launchers of two hosts that checkpoint one application, over mutual TLS on a real socket.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use coordinator::proto::{Message, Reply, Vote};
use coordinator::wire::control::{Attend, Failure, Permanent, Stored, Summons};
use coordinator::wire::{self, Answer, Request};
use coordinator::{
    AttendError, Deadlines, Delegation, Hook, Listen, Outcome, Outpost, Remote, Rendezvous, RollCall, SessionId,
    SessionKind, SessionPlan, TlsFiles,
};
use image_format::annotation::MEDIA_MANIFEST;
use image_format::{Descriptor, Digest, Epoch, MemberId, MemberTimeline};
use rustls_pki_types::ServerName;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::support::Authority;

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(300);

fn id(member: &str) -> MemberId {
    member.parse().expect("an id")
}

fn attend(member: &str) -> Attend {
    Attend {
        member: id(member),
        application: "app".parse().expect("an id"),
        engine: "podman".to_owned(),
        container: format!("{member}-1"),
        depends_on: Vec::new(),
        strict_dependencies: true,
    }
}

/// A host that awaits `b` and `c` of others.
struct Here {
    authority: Authority,
    root: TempDir,
    roll_call: RollCall,
}

impl Here {
    async fn open() -> Self {
        let authority = Authority::new();
        let listen =
            Listen { address: "127.0.0.1:0".parse().expect("an address"), tls: authority.coordinator(&["localhost"]) };
        let roll_call = RollCall::open(&listen, "app".parse().expect("an id"), [id("b"), id("c")]).await;
        Self { authority, root: tempfile::tempdir().expect("a folder"), roll_call: roll_call.expect("a port") }
    }

    fn remote(&self, tls: TlsFiles) -> Remote {
        Remote { address: format!("localhost:{}", self.roll_call.address().port()), tls }
    }

    fn of(&self, member: &str) -> (Attend, Remote) {
        (attend(member), self.remote(self.authority.member(member)))
    }

    /// Lets others try something, while it calls the roll in vain.
    async fn while_calling<T>(&mut self, other: impl Future<Output = T>) -> T {
        tokio::select! {
            _ = self.roll_call.complete(LONG, |_| {}) => panic!("all are there"),
            other = other => other,
        }
    }
}

/// All of a session: `a` is here, `b` and `c` are there.
struct Session {
    rendezvous: Rendezvous,
    delegation: Delegation,
    outpost: Outpost,
    plan: SessionPlan,
    authority: Authority,
    _roots: [TempDir; 2],
}

async fn begin() -> Session {
    let mut here = Here::open().await;
    let members = vec![here.of("b"), here.of("c")];
    let remotes: BTreeMap<MemberId, Remote> =
        members.iter().map(|(attend, remote)| (attend.member.clone(), remote.clone())).collect();
    let (complete, joined) = tokio::join!(here.roll_call.complete(LONG, |_| {}), Delegation::attend(members));
    complete.expect("all are there");
    let delegation = joined.expect("noted");
    let said: Vec<_> = here.roll_call.attended().map(|attend| attend.container.clone()).collect();
    assert_eq!(said, ["b-1", "c-1"]);
    let plan = SessionPlan {
        kind: SessionKind::Dump,
        id: SessionId::random().expect("random numbers"),
        epoch: Epoch(3),
        application: "app".parse().expect("an id"),
        members: ["a", "b", "c"].map(id).to_vec(),
        deadlines: Deadlines { gather: LONG, hold: LONG },
        fence: None,
    };
    let Here { authority, root, roll_call } = here;
    let summons = |attend: &Attend, session| {
        let depends_on = if attend.member == id("c") { vec![id("b")] } else { Vec::new() };
        let base = (attend.member == id("b")).then(|| Digest::of(b"before"));
        Summons { session, to: "oci:/x".to_owned(), stop: true, depends_on, base }
    };
    let program = Path::new("/bin/true");
    let rendezvous = Rendezvous::start_attended(root.path(), plan.clone(), program, roll_call, summons).await;
    let rendezvous = rendezvous.expect("a session");
    let summoned = timeout(LONG, delegation.invited()).await.expect("in time").expect("invited");
    assert_eq!(summoned[&id("c")].depends_on, [id("b")]);
    assert_eq!(["b", "c"].map(|member| summoned[&id(member)].base), [Some(Digest::of(b"before")), None]);
    let invitation = summoned[&id("b")].session.clone();
    assert_eq!((invitation.session, invitation.epoch), (plan.id, Epoch(3)));
    let there = tempfile::tempdir().expect("a folder");
    let outpost = Outpost::make(there.path(), invitation, remotes, program).await.expect("a folder");
    assert!(outpost.criu_config(&id("c")).exists() && !rendezvous.criu_config(&id("c")).exists());
    assert!(rendezvous.criu_config(&id("a")).exists());
    Session { rendezvous, delegation, outpost, plan, authority, _roots: [root, there] }
}

impl Session {
    /// A hook of this member, from wherever.
    async fn hook(&self, member: &str, hook: Hook) -> Reply {
        let config = self.authority.member(member).client().expect("files");
        let stream = TcpStream::connect(self.rendezvous.address().expect("a port")).await.expect("a connection");
        let name = ServerName::try_from("localhost").expect("a name");
        let mut stream = TlsConnector::from(config).connect(name, stream).await.expect("a handshake");
        let (session, epoch) = (self.plan.id, self.plan.epoch);
        let message = Message { session, epoch, member: id(member), hook, vote: Vote::Yes };
        let request = Request { version: wire::VERSION, secret: None, message };
        stream.write_all(&wire::encode(&request).expect("short")).await.expect("room");
        stream.flush().await.expect("room");
        let mut bytes = Vec::new();
        let _ = timeout(LONG, stream.read_to_end(&mut bytes)).await.expect("an end");
        wire::read::<Answer>(bytes.as_slice()).expect("an answer").reply
    }

    async fn all_at(&self, hook: Hook) -> [Reply; 3] {
        tokio::join!(self.hook("a", hook), self.hook("b", hook), self.hook("c", hook)).into()
    }
}

#[tokio::test]
async fn one_instant_on_two_hosts_and_one_checkpoint() {
    let mut session = begin().await;
    let mut delegates = session.rendezvous.delegates();
    assert_eq!(session.all_at(Hook::PreDump).await, [const { Reply::Proceed }; 3]);
    let captures = async {
        assert!(session.rendezvous.to_capture().await && session.delegation.to_capture().await);
        // Neither of the two is enough.
        session.rendezvous.captured().await;
        session.rendezvous.captured().await;
        assert!(timeout(SHORT, session.rendezvous.outcome()).await.is_err());
        session.delegation.captured();
    };
    let (replies, ()) = tokio::join!(session.all_at(Hook::PostDump), captures);
    assert_eq!(replies, [const { Reply::Proceed }; 3]);
    let Outcome::Released { timings } = session.rendezvous.outcome().await else { panic!("aborted") };
    assert_eq!(timings.members.len(), 3);
    assert!(matches!(session.delegation.outcome().await, Outcome::Released { .. }));

    let manifest = Descriptor { media_type: MEDIA_MANIFEST.to_owned(), digest: Digest::of(b"x"), size: 1 };
    let stored = Stored { manifest, bytes: 5, sent: 4, packed: None, sending: None };
    session.delegation.stored(&id("b"), stored.clone());
    session.delegation.stored(&id("c"), stored.clone());
    for delegate in &mut delegates {
        assert_eq!(delegate.stored().await, Ok(stored.clone()));
        let timeline = MemberTimeline::new(delegate.attend().member.clone());
        let (digest, tag) = (Digest::of(b"index"), "epoch-3".to_owned());
        delegate.permanent(Permanent { digest, tag, epoch: Epoch(3), timeline });
    }
    let (_, ended) = tokio::join!(session.rendezvous.close(), async {
        let ended = session.delegation.ending().await.expect("permanent");
        session.delegation.close().await;
        ended
    });
    assert_eq!((ended.epoch, &ended.timelines[&id("c")].id), (Epoch(3), &id("c")));
    session.outpost.close().expect("gone");
}

#[tokio::test]
async fn a_launcher_that_is_gone_before_the_release_aborts_for_all() {
    let Session { rendezvous, delegation, .. } = begin().await;
    drop(delegation);
    let Outcome::Aborted { member, reason, .. } = rendezvous.outcome().await else { panic!("released") };
    assert!(member.is_some_and(|member| member != id("a")), "{reason}");
    assert!(reason.ends_with("failed: the connection to its host ended"), "{reason}");
}

#[tokio::test]
async fn a_launcher_that_is_gone_while_all_stand_frozen_aborts_for_all() {
    let session = begin().await;
    assert_eq!(session.all_at(Hook::PreDump).await, [const { Reply::Proceed }; 3]);
    let Session { rendezvous, delegation, .. } = &session;
    let gives_up = async {
        assert!(rendezvous.to_capture().await);
        rendezvous.captured().await;
        delegation.failed(&id("c"), Failure::new("no room", &["Error".to_owned()]));
    };
    let (replies, ()) = tokio::join!(session.all_at(Hook::PostDump), gives_up);
    let reason = "member c failed: no room".to_owned();
    assert_eq!(
        replies,
        [const { Reply::Abort { reason: String::new() } }; 3].map(|_| Reply::Abort { reason: reason.clone() })
    );
    assert!(matches!(delegation.outcome().await, Outcome::Aborted { reason: told, .. } if told == reason));
    assert_eq!(delegation.ending().await, Err(reason));
    let Session { mut rendezvous, delegation, .. } = session;
    let mut delegates = rendezvous.delegates();
    delegation.cancel("words without a log");
    delegation.close().await;
    assert_eq!(delegates[0].last_words().await.map(|failure| failure.reason), Some("words without a log".to_owned()));
    let words = delegates[1].last_words().await.expect("words");
    assert_eq!((words.reason.as_str(), words.log_lines), ("no room", vec!["Error".to_owned()]));
}

#[tokio::test]
async fn a_launcher_that_is_gone_after_the_release_has_not_stored_anything() {
    let mut session = begin().await;
    let mut delegates = session.rendezvous.delegates();
    session.all_at(Hook::PreDump).await;
    let captures = async {
        assert!(session.rendezvous.to_capture().await && session.delegation.to_capture().await);
        session.rendezvous.captured().await;
        session.delegation.captured();
    };
    tokio::join!(session.all_at(Hook::PostDump), captures);
    session.delegation.outcome().await;
    drop(session.delegation);
    let failed = delegates[0].stored().await.expect_err("gone");
    assert_eq!(failed.reason, "the connection to its host ended");
    assert!(matches!(session.rendezvous.outcome().await, Outcome::Released { .. }), "decided once");
}

#[tokio::test]
async fn the_end_of_the_coordinating_host_is_an_abort_there() {
    let Session { rendezvous, delegation, .. } = begin().await;
    drop(rendezvous);
    let Outcome::Aborted { reason, .. } = delegation.outcome().await else { panic!("released") };
    assert_eq!(reason, "the connection to the coordinating host ended");
    assert!(!delegation.to_capture().await && delegation.ending().await.is_err());
}

#[tokio::test]
async fn who_gives_up_or_fails_does_not_depend_on_the_other_host_to_say_so() {
    for cancels in [true, false] {
        let mut here = Here::open().await;
        let member = vec![here.of("b")];
        let delegation = here.while_calling(Delegation::attend(member)).await.expect("noted");
        // From here on the coordinating host hears nothing, and says no more than that it is alive.
        match cancels {
            true => delegation.cancel("it was stopped"),
            false => delegation.failed(&id("b"), Failure::new("it was stopped", &[])),
        }
        let outcome = timeout(Duration::from_secs(5), delegation.outcome()).await.expect("decided without it");
        assert!(matches!(&outcome, Outcome::Aborted { reason, .. } if reason == "it was stopped"), "{outcome:?}");
        assert_eq!(delegation.ending().await, Err("it was stopped".to_owned()));
    }
}

#[tokio::test]
async fn who_is_not_awaited_or_not_who_it_says_is_refused() {
    let mut here = Here::open().await;
    let why = |refused: Result<Delegation, AttendError>| match refused {
        Err(AttendError::Refused { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    let stranger = vec![here.of("x")];
    let reason = why(here.while_calling(Delegation::attend(stranger)).await);
    assert_eq!(reason, "this checkpoint awaits no member x of another host");
    let forged = vec![(attend("b"), here.of("c").1)];
    let reason = why(here.while_calling(Delegation::attend(forged)).await);
    assert_eq!(reason, "the certificate is that of c, which does not speak for b");
    let (mut other, remote) = here.of("b");
    other.application = "other".parse().expect("an id");
    let reason = why(here.while_calling(Delegation::attend(vec![(other, remote)])).await);
    assert_eq!(reason, "this is a checkpoint of app, not of other");
    let twice = vec![here.of("b"), here.of("b")];
    let reason = why(here.while_calling(Delegation::attend(twice)).await);
    assert_eq!(reason, "somebody else has joined for b already");
    let foreign = Authority::new();
    let foreign = TlsFiles { ca: here.authority.ca().to_owned(), ..foreign.member("b") };
    let foreign = vec![(attend("b"), here.remote(foreign))];
    let lost = here.while_calling(Delegation::attend(foreign)).await;
    assert!(matches!(lost, Err(AttendError::Lost { .. })), "{lost:?}");

    // Who went again is not there.
    let gone = vec![here.of("b")];
    drop(here.while_calling(Delegation::attend(gone)).await.expect("noted"));
    let member = vec![here.of("c")];
    let stays = here.while_calling(Delegation::attend(member)).await.expect("noted");
    let absent = here.roll_call.complete(SHORT, |_| {}).await.expect_err("b is not there");
    assert_eq!(absent.to_string(), "nobody joined in time for b");
    here.roll_call.dismiss("b never came").await;
    assert_eq!(stays.invited().await, Err("b never came".to_owned()));
}
