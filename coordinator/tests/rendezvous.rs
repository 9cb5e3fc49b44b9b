//! The rendezvous over its real socket, with clients that are not what they should be.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coordinator::proto::{Message, Reply, Vote};
use coordinator::wire::{self, Answer, Request, Secret};
use coordinator::{
    Deadlines, Hook, ListenError, Outcome, Rendezvous, RendezvousError, SessionId, SessionKind, SessionPlan, Step,
};
use image_format::{Epoch, MemberId};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(20);

fn id(member: &str) -> MemberId {
    member.parse().expect("an id")
}

fn plan(gather: Duration) -> SessionPlan {
    SessionPlan {
        kind: SessionKind::Restore,
        id: SessionId::random().expect("random numbers"),
        epoch: Epoch(3),
        application: "app".parse().expect("an id"),
        members: vec![id("a"), id("b")],
        deadlines: Deadlines { gather, hold: LONG },
        fence: None,
    }
}

/// A session of `a` and `b`. Any program does for the hook where none is run.
async fn start(gather: Duration) -> (TempDir, Rendezvous) {
    let root = tempfile::tempdir().expect("a folder");
    let rendezvous = Rendezvous::start(root.path(), plan(gather), Path::new("/bin/true")).await.expect("a session");
    (root, rendezvous)
}

fn folder(rendezvous: &Rendezvous, member: &str) -> PathBuf {
    rendezvous.criu_config(&id(member)).parent().expect("a folder").to_owned()
}

/// What a hook of this member would send, as read from its ticket.
fn request(rendezvous: &Rendezvous, member: &str, hook: Hook) -> (PathBuf, Request) {
    let ticket = std::fs::read(folder(rendezvous, member).join("session.json")).expect("a ticket");
    let ticket: Value = serde_json::from_slice(&ticket).expect("a ticket");
    let text = |name: &str| ticket[name].as_str().expect("a text").to_owned();
    let message = Message {
        session: text("session").parse().expect("an id"),
        epoch: Epoch(ticket["epoch"].as_u64().expect("a number")),
        member: id(&text("member")),
        hook,
        vote: Vote::Yes,
    };
    let secret = Secret::try_from(text("secret")).expect("a secret");
    (text("socket").into(), Request { version: wire::VERSION, secret: Some(secret), message })
}

async fn send(socket: &Path, bytes: &[u8]) -> UnixStream {
    let mut stream = UnixStream::connect(socket).await.expect("a connection");
    stream.write_all(bytes).await.expect("room");
    stream
}

async fn call(rendezvous: &Rendezvous, member: &str, hook: Hook) -> UnixStream {
    let (socket, request) = request(rendezvous, member, hook);
    send(&socket, &wire::encode(&request).expect("short")).await
}

/// All that comes until the other side ends.
async fn rest(mut stream: UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset is an end too.
    let _ = timeout(LONG, stream.read_to_end(&mut bytes)).await.expect("an end");
    bytes
}

async fn answer(stream: UnixStream) -> Reply {
    wire::read::<Answer>(rest(stream).await.as_slice()).expect("an answer").reply
}

async fn aborted(rendezvous: &mut Rendezvous) -> (Option<MemberId>, String) {
    match rendezvous.outcome().await {
        Outcome::Aborted { member, reason, .. } => (member, reason),
        Outcome::Released { .. } => panic!("released"),
    }
}

#[tokio::test]
async fn the_folder_is_private_and_leads_from_criu_to_the_ticket() {
    let (root, rendezvous) = start(LONG).await;
    let mode = |path: &Path| path.symlink_metadata().expect("there").permissions().mode() & 0o777;
    let member = folder(&rendezvous, "a");
    let session = member.parent().expect("a folder");
    assert_eq!((mode(session), mode(&member)), (0o700, 0o700));
    assert_eq!((mode(&member.join("session.json")), mode(&member.join("criu.conf"))), (0o600, 0o600));
    let config = std::fs::read_to_string(member.join("criu.conf")).expect("a configuration");
    assert_eq!(config, format!("action-script={}/hook\n", member.display()));
    assert_eq!(member.join("hook").read_link().ok(), Path::new("/bin/true").canonicalize().ok());
    let ticket = |member| std::fs::read_to_string(folder(&rendezvous, member).join("session.json")).expect("a ticket");
    assert_ne!(ticket("a"), ticket("b"));
    assert!(!format!("{rendezvous:?}").contains("secret: \""));
    rendezvous.close().await.expect("gone");
    assert_eq!(root.path().read_dir().expect("the root").count(), 0);
}

#[tokio::test]
async fn a_session_that_cannot_be_leaves_nothing() {
    let root = tempfile::tempdir().expect("a folder");
    let hook = Path::new("/bin/true");
    let mut twice = plan(LONG);
    twice.members = vec![id("a"), id("a")];
    assert!(matches!(Rendezvous::start(root.path(), twice, hook).await, Err(RendezvousError::Plan(_))));
    let missing = Path::new("/nowhere/syncpoint-hook");
    let words = |error: RendezvousError| std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    let error = Rendezvous::start(root.path(), plan(LONG), missing).await.expect_err("no program");
    assert!(words(error).contains("cannot be found"));
    let blank = root.path().join("a blank");
    let error = Rendezvous::start(&blank, plan(LONG), hook).await.expect_err("two words to CRIU");
    assert!(words(error).contains("does not take"));
    let open = root.path().join("open");
    std::fs::create_dir(&open).expect("a folder");
    std::fs::set_permissions(&open, PermissionsExt::from_mode(0o777)).expect("a mode");
    let error = Rendezvous::start(&open, plan(LONG), hook).await.expect_err("anybody's");
    assert!(words(error).contains("can be written by others"));
    let far = root.path().join("x".repeat(100));
    assert!(matches!(
        Rendezvous::start(&far, plan(LONG), hook).await,
        Err(RendezvousError::Listen(ListenError::Socket { .. }))
    ));
    assert_eq!(far.read_dir().expect("the root").count(), 0);
    let same = plan(LONG);
    let first = Rendezvous::start(root.path(), same.clone(), hook).await.expect("a session");
    assert!(matches!(Rendezvous::start(root.path(), same, hook).await, Err(RendezvousError::Folder(_))));
    assert!(first.criu_config(&id("a")).exists(), "the first one's folder was not taken away");
}

#[tokio::test]
async fn nobody_speaks_for_another_member() {
    let (_root, mut rendezvous) = start(LONG).await;
    let (socket, of_a) = request(&rendezvous, "a", Hook::PreRestore);
    let (_, of_b) = request(&rendezvous, "b", Hook::PreRestore);
    let waiting = call(&rendezvous, "a", Hook::PreRestore).await;
    let forged = Request { secret: of_a.secret.clone(), ..of_b };
    let mut stranger = of_a.clone();
    stranger.message.member = id("c");
    let silent = Request { secret: None, ..of_a.clone() };
    for forged in [forged, stranger, silent] {
        let stream = send(&socket, &wire::encode(&forged).expect("short")).await;
        assert!(rest(stream).await.is_empty(), "no answer at all");
    }
    let other = call(&rendezvous, "b", Hook::PreRestore).await;
    assert_eq!((answer(waiting).await, answer(other).await), (Reply::Proceed, Reply::Proceed));
    rendezvous.cancel("enough".to_owned()).await;
    assert_eq!(aborted(&mut rendezvous).await, (None, "given up: enough".to_owned()));
}

#[tokio::test]
async fn noise_is_dropped_and_disturbs_nobody() {
    let (_root, rendezvous) = start(LONG).await;
    let (socket, good) = request(&rendezvous, "a", Hook::PreRestore);
    let waiting = call(&rendezvous, "a", Hook::PreRestore).await;
    let body = |text: &str| [&u32::try_from(text.len()).expect("short").to_be_bytes()[..], text.as_bytes()].concat();
    let deep = format!("{{\"version\":1,\"x\":{}", "[".repeat(60_000));
    for noise in [vec![0xff; 8], vec![0; 4], body("{}"), body("[1,2"), body(&deep), body("{\"version\":1}")] {
        assert!(rest(send(&socket, &noise).await).await.is_empty());
    }
    let newer = body(r#"{"version":2,"something":"else"}"#);
    assert_eq!(
        answer(send(&socket, &newer).await).await,
        Reply::Abort { reason: "protocol version 2; this is version 1".to_owned() }
    );
    let mut stale = good.clone();
    stale.message.epoch = Epoch(2);
    let stale = send(&socket, &wire::encode(&stale).expect("short")).await;
    assert!(matches!(answer(stale).await, Reply::Abort { reason } if reason.contains("epoch 2")));
    // Some that never say anything, and one that stops in the middle.
    let mut idle = vec![send(&socket, &wire::encode(&good).expect("short")[..50]).await];
    for _ in 0..20 {
        idle.push(send(&socket, &[]).await);
    }
    let other = call(&rendezvous, "b", Hook::PreRestore).await;
    assert_eq!((answer(waiting).await, answer(other).await), (Reply::Proceed, Reply::Proceed));
}

#[tokio::test]
async fn idle_connections_are_ended_and_make_room() {
    let (_root, rendezvous) = start(Duration::from_secs(60)).await;
    let (socket, _) = request(&rendezvous, "a", Hook::PreRestore);
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(send(&socket, &[]).await);
    }
    let waiting = call(&rendezvous, "a", Hook::PreRestore).await;
    let other = timeout(Duration::from_secs(50), async {
        let other = call(&rendezvous, "b", Hook::PreRestore).await;
        (answer(waiting).await, answer(other).await)
    });
    assert_eq!(other.await.expect("room"), (Reply::Proceed, Reply::Proceed));
}

#[tokio::test]
async fn a_connection_that_says_more_than_it_should_is_gone() {
    let (_root, mut rendezvous) = start(LONG).await;
    let mut waiting = call(&rendezvous, "a", Hook::PreRestore).await;
    waiting.write_all(b"!").await.expect("room");
    let (member, reason) = aborted(&mut rendezvous).await;
    assert_eq!(member, Some(id("a")));
    assert!(reason.contains("vanished"), "{reason}");
}

#[tokio::test]
async fn the_deadline_ends_it_and_names_who_is_missing() {
    let (_root, mut rendezvous) = start(Duration::from_millis(200)).await;
    let waiting = call(&rendezvous, "a", Hook::PreRestore).await;
    let (member, reason) = aborted(&mut rendezvous).await;
    assert_eq!((member, &*reason), (Some(id("b")), "the time was up at pre-restore; missing: b"));
    assert_eq!(answer(waiting).await, Reply::Abort { reason });
    let finished = rendezvous.finished().await;
    assert_eq!((finished.running.len(), finished.missing.len()), (0, 2));
}

#[tokio::test]
async fn a_member_that_failed_is_an_abort_in_the_launchers_words() {
    let (_root, mut rendezvous) = start(LONG).await;
    let mut events = rendezvous.events();
    let waiting = call(&rendezvous, "a", Hook::PreRestore).await;
    rendezvous.member_failed(&id("b"), "podman exited with 125".to_owned()).await;
    let words = "member b failed: podman exited with 125";
    assert_eq!(aborted(&mut rendezvous).await, (Some(id("b")), words.to_owned()));
    // Its message may still have been on the way; the answer is the same.
    assert_eq!(answer(waiting).await, Reply::Abort { reason: words.to_owned() });
    let failed = async {
        while let Some(event) = events.recv().await {
            if let Step::Failed { reason } = event.step {
                return Some((event.member, reason));
            }
        }
        None
    };
    assert_eq!(failed.await, Some((id("b"), words.to_owned())));
}

#[tokio::test]
async fn closing_answers_who_waits_and_dropping_leaves_the_folder() {
    let (root, rendezvous) = start(LONG).await;
    let waiting = call(&rendezvous, "a", Hook::PreRestore).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    rendezvous.close().await.expect("gone");
    assert_eq!(answer(waiting).await, Reply::Abort { reason: "given up: the session was closed".to_owned() });
    assert_eq!(root.path().read_dir().expect("the root").count(), 0);

    let (root, rendezvous) = start(LONG).await;
    let waiting = call(&rendezvous, "a", Hook::PreRestore).await;
    drop(rendezvous);
    assert!(rest(waiting).await.is_empty(), "the end without an answer");
    assert_eq!(root.path().read_dir().expect("the root").count(), 1, "hooks on their way must find that they have one");
}
