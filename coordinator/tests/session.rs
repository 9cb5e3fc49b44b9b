//! The session, step by step, where a table says more than a search.

use std::time::Duration;

use coordinator::proto::{
    Action, CaptureTime, ConnectionId, Finished, Hook, Message, Moment, Outcome, Refusal, Reply, Session, SessionKind,
    Vote,
};
use coordinator::{Deadlines, PlanError, SessionId, SessionPlan};
use image_format::{Epoch, MemberId};

const NOW: Moment = Moment::START;

fn id(member: &str) -> MemberId {
    member.parse().expect("an id")
}

fn plan(kind: SessionKind, members: &[&str]) -> SessionPlan {
    SessionPlan {
        kind,
        id: SessionId::from_bytes([1; 16]),
        epoch: Epoch(5),
        application: "app".parse().expect("an id"),
        members: members.iter().map(|member| id(member)).collect(),
        deadlines: Deadlines { gather: Duration::from_secs(60), hold: Duration::from_secs(10) },
        fence: None,
    }
}

fn message(member: &str, hook: Hook) -> Message {
    Message { session: SessionId::from_bytes([1; 16]), epoch: Epoch(5), member: id(member), hook, vote: Vote::Yes }
}

/// A session with a running number for its connections.
struct Driven {
    session: Session,
    next: u64,
    answers: Vec<(u64, Reply)>,
    outcome: Option<Outcome>,
    finished: Option<Finished>,
    to_capture: bool,
}

impl Driven {
    fn new(kind: SessionKind, members: &[&str]) -> Self {
        let session = Session::new(plan(kind, members)).expect("a plan");
        Self { session, next: 0, answers: Vec::new(), outcome: None, finished: None, to_capture: false }
    }

    fn send(&mut self, message: Message) -> (u64, Result<(), Refusal>) {
        let connection = self.next;
        self.next += 1;
        let taken = self.session.handle_message(NOW, ConnectionId(connection), message);
        self.act();
        (connection, taken)
    }

    fn arrive(&mut self, member: &str, hook: Hook) -> u64 {
        let (connection, taken) = self.send(message(member, hook));
        assert_eq!(taken, Ok(()));
        connection
    }

    fn all_arrive(&mut self, members: &[&str], hook: Hook) {
        let connections: Vec<u64> = members.iter().map(|member| self.arrive(member, hook)).collect();
        for connection in connections {
            assert_eq!(self.answer(connection), Some(&Reply::Proceed));
        }
    }

    /// All are at post-dump; gives their connections.
    fn all_stand(&mut self, members: &[&str]) -> Vec<u64> {
        self.all_arrive(members, Hook::PreDump);
        members.iter().map(|member| self.arrive(member, Hook::PostDump)).collect()
    }

    fn captured(&mut self, at: Moment) {
        self.session.handle_captured(at);
        self.act();
    }

    fn answer(&self, connection: u64) -> Option<&Reply> {
        self.answers.iter().find(|(to, _)| *to == connection).map(|(_, reply)| reply)
    }

    fn refused(&self, connection: u64, words: &str) {
        match self.answer(connection) {
            Some(Reply::Abort { reason }) => assert!(reason.contains(words), "{reason:?} has no {words:?}"),
            other => panic!("{other:?}"),
        }
    }

    fn act(&mut self) {
        while let Some(action) = self.session.poll_action() {
            match action {
                Action::Reply { to, reply } => self.answers.push((to.0, reply)),
                Action::Tell(_) => {}
                Action::Capture => assert!(!std::mem::replace(&mut self.to_capture, true), "asked once"),
                Action::Decide(outcome) => assert_eq!(self.outcome.replace(outcome), None),
                Action::Finish(finished) => assert_eq!(self.finished.replace(finished), None),
            }
        }
    }
}

#[test]
fn a_plan_has_members_and_time() {
    let none = plan(SessionKind::Restore, &[]);
    assert_eq!(Session::new(none).err(), Some(PlanError::NoMembers));
    let twice = plan(SessionKind::Restore, &["a", "b", "a"]);
    assert_eq!(Session::new(twice).err(), Some(PlanError::TwiceTheSame { member: id("a") }));
    let mut hasty = plan(SessionKind::Restore, &["a"]);
    hasty.deadlines.hold = Duration::ZERO;
    assert_eq!(Session::new(hasty).err(), Some(PlanError::NoTime));
}

#[test]
fn two_connections_of_a_member_at_a_barrier_get_the_same_answer() {
    let mut driven = Driven::new(SessionKind::Restore, &["a", "b"]);
    let first = driven.arrive("a", Hook::PreRestore);
    let twin = driven.arrive("a", Hook::PreRestore);
    assert_eq!((driven.answer(first), driven.answer(twin)), (None, None), "a alone is not both");
    driven.arrive("b", Hook::PreRestore);
    assert_eq!((driven.answer(first), driven.answer(twin)), (Some(&Reply::Proceed), Some(&Reply::Proceed)));
    let late = driven.arrive("a", Hook::PreRestore);
    assert_eq!(driven.answer(late), Some(&Reply::Proceed));

    let first = driven.arrive("a", Hook::PostRestore);
    let twin = driven.arrive("a", Hook::PostRestore);
    driven.session.handle_disconnect(NOW, ConnectionId(twin));
    driven.act();
    driven.refused(first, "member a vanished while it waited at post-restore");
    let late = driven.arrive("b", Hook::PostRestore);
    driven.refused(late, "member a vanished");
}

#[test]
fn a_dump_waits_at_network_lock_only_for_those_who_come_there() {
    let mut driven = Driven::new(SessionKind::Dump, &["a", "b"]);
    driven.all_arrive(&["a", "b"], Hook::PreDump);
    let locked = driven.arrive("a", Hook::NetworkLock);
    assert_eq!(driven.answer(locked), None);
    let dumped = driven.arrive("b", Hook::PostDump);
    assert_eq!(driven.answer(locked), Some(&Reply::Proceed), "b has no network of its own");
    assert_eq!(driven.answer(dumped), None);
    let last = driven.arrive("a", Hook::PostDump);
    assert_eq!((driven.answer(dumped), driven.answer(last), driven.to_capture), (None, None, true));
    driven.captured(NOW);
    assert_eq!((driven.answer(dumped), driven.answer(last)), (Some(&Reply::Proceed), Some(&Reply::Proceed)));
    assert!(matches!(driven.outcome, Some(Outcome::Released { .. })));
    assert_eq!(driven.finished.map(|finished| finished.running), Some(vec![id("a"), id("b")]));
}

#[test]
fn a_dump_of_members_without_networks_skips_network_lock() {
    let mut driven = Driven::new(SessionKind::Dump, &["a", "b"]);
    driven.all_arrive(&["a", "b"], Hook::PreDump);
    driven.arrive("a", Hook::PostDump);
    driven.arrive("b", Hook::PostDump);
    driven.captured(NOW);
    assert!(matches!(driven.outcome, Some(Outcome::Released { .. })));
}

#[test]
fn nobody_leaves_post_dump_before_the_files_are_taken() {
    let at = |millis| Moment::after_start(Duration::from_millis(millis));
    let mut driven = Driven::new(SessionKind::Dump, &["a", "b"]);
    driven.captured(NOW);
    let waiting = driven.all_stand(&["a", "b"]);
    // Hooks that fire twice wait like the first, or are through what is open already.
    let again = driven.arrive("a", Hook::PostDump);
    driven.all_arrive(&["b"], Hook::NetworkLock);
    assert!(driven.to_capture && waiting.iter().chain([&again]).all(|waits| driven.answer(*waits).is_none()));
    assert_eq!(driven.session.poll_timeout(), Some(at(10_000)), "the time to hold bounds the capture too");
    driven.captured(at(700));
    assert!(waiting.iter().chain([&again]).all(|waits| driven.answer(*waits) == Some(&Reply::Proceed)));
    let Some(Outcome::Released { timings }) = &driven.outcome else { panic!("{:?}", driven.outcome) };
    assert_eq!(timings.capture, Some(CaptureTime { begin: Duration::ZERO, end: Duration::from_millis(700) }));
    for passages in timings.members.values() {
        let passed: Vec<Duration> = passages.iter().map(|passage| passage.passed).collect();
        assert_eq!(passed, [Duration::ZERO, Duration::ZERO, Duration::from_millis(700)]);
    }
    driven.captured(at(800));
    let late = driven.arrive("b", Hook::PostDump);
    assert_eq!(driven.answer(late), Some(&Reply::Proceed));
}

#[test]
fn whatever_fails_during_the_capture_aborts_everybody() {
    type Trouble = fn(&mut Driven, u64);
    let troubles: [(&str, Trouble); 5] = [
        ("member b vanished while it waited at post-dump", |driven, of_b| {
            driven.session.handle_disconnect(NOW, ConnectionId(of_b));
        }),
        ("member b failed: podman exited with 125", |driven, _| {
            let told = driven.session.handle_member_failed(NOW, &id("b"), "podman exited with 125".to_owned());
            assert_eq!(told, Ok(()));
        }),
        ("given up: the disk is full", |driven, _| driven.session.handle_cancel(NOW, "the disk is full".to_owned())),
        ("member b voted no at network-lock: it cannot", |driven, _| {
            let vote = Vote::No { reason: "it cannot".to_owned() };
            let (_, taken) = driven.send(Message { vote, ..message("b", Hook::NetworkLock) });
            assert_eq!(taken, Ok(()));
        }),
        ("the time was up at post-dump, while the files of the members were captured", |driven, _| {
            let deadline = driven.session.poll_timeout().expect("a deadline");
            driven.session.handle_timeout(deadline);
        }),
    ];
    for (words, trouble) in troubles {
        let mut driven = Driven::new(SessionKind::Dump, &["a", "b"]);
        let waiting = driven.all_stand(&["a", "b"]);
        trouble(&mut driven, waiting[1]);
        driven.act();
        driven.refused(waiting[0], words);
        driven.captured(NOW);
        assert!(matches!(&driven.outcome, Some(Outcome::Aborted { reason, .. }) if reason == words), "{words}");
        let late = driven.arrive("b", Hook::PostDump);
        driven.refused(late, words);
    }
}

#[test]
fn a_restore_has_nothing_to_capture() {
    let mut driven = Driven::new(SessionKind::Restore, &["a"]);
    for hook in [Hook::PreRestore, Hook::PostRestore, Hook::PreResume] {
        driven.captured(NOW);
        driven.all_arrive(&["a"], hook);
    }
    let Some(Outcome::Released { timings }) = driven.outcome else { panic!("not released") };
    assert_eq!((timings.capture, driven.to_capture), (None, false));
}

#[test]
fn deadlines_name_who_is_missing() {
    let members: Vec<String> = (0..12).map(|n| format!("m{n:02}")).collect();
    let members: Vec<&str> = members.iter().map(String::as_str).collect();
    let mut driven = Driven::new(SessionKind::Restore, &members);
    let waiting = driven.arrive("m00", Hook::PreRestore);
    let minute = Moment::after_start(Duration::from_secs(60));
    assert_eq!(driven.session.poll_timeout(), Some(minute));
    driven.session.handle_timeout(Moment::after_start(Duration::from_millis(59_999)));
    assert_eq!(driven.session.poll_action().map(|action| matches!(action, Action::Tell(_))), None);
    driven.session.handle_timeout(minute);
    driven.act();
    driven
        .refused(waiting, "the time was up at pre-restore; missing: m01, m02, m03, m04, m05, m06, m07, m08 and 3 more");
    assert_eq!(driven.session.poll_timeout(), None);
}

#[test]
fn one_deadline_holds_from_the_first_barrier_to_the_last() {
    let mut driven = Driven::new(SessionKind::Restore, &["a"]);
    driven.arrive("a", Hook::PreRestore);
    let hold = Some(Moment::after_start(Duration::from_secs(10)));
    assert_eq!(driven.session.poll_timeout(), hold);
    driven.arrive("a", Hook::PostRestore);
    assert_eq!(driven.session.poll_timeout(), hold);
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let mut driven = Driven::new(SessionKind::Restore, &["a", "b"]);
    let before = driven.session.clone();
    let other_session = Message { session: SessionId::from_bytes([2; 16]), ..message("a", Hook::PreRestore) };
    let (connection, taken) = driven.send(other_session);
    assert!(matches!(taken, Err(Refusal::OtherSession { .. })));
    driven.refused(connection, "the message is for session 0202");
    let (connection, taken) = driven.send(Message { epoch: Epoch(4), ..message("a", Hook::PreRestore) });
    assert_eq!(taken, Err(Refusal::OtherEpoch { found: Epoch(4), expected: Epoch(5) }));
    driven.refused(connection, "the message is of epoch 4, this is epoch 5");
    let (connection, taken) = driven.send(message("c", Hook::PreRestore));
    assert_eq!(taken, Err(Refusal::UnknownMember { member: id("c") }));
    driven.refused(connection, "c is not a member");
    let (connection, taken) = driven.send(message("a", Hook::PreDump));
    assert_eq!(taken, Err(Refusal::NoStep { hook: Hook::PreDump }));
    driven.refused(connection, "no step at pre-dump");
    assert_eq!(driven.session, before, "none of them counts");
    assert!(driven.session.handle_member_failed(NOW, &id("c"), String::new()).is_err());
}

#[test]
fn a_member_where_nobody_let_it_go_ends_the_session() {
    for hook in [Hook::PostRestore, Hook::PreResume, Hook::PostResume] {
        let mut driven = Driven::new(SessionKind::Restore, &["a", "b"]);
        let waiting = driven.arrive("b", Hook::PreRestore);
        let (ahead, taken) = driven.send(message("a", hook));
        assert_eq!(taken, Err(Refusal::OutOfStep { member: id("a"), hook, expected: Hook::PreRestore }));
        for connection in [waiting, ahead] {
            driven.refused(connection, &format!("member a came to {hook} without having been let through pre-restore"));
        }
        assert!(matches!(driven.outcome, Some(Outcome::Aborted { member: Some(_), hook: Some(at), .. }) if at == hook));
    }
}

#[test]
fn what_happens_after_the_release_is_told_and_undoes_nothing() {
    let members = ["a", "b", "c"];
    let mut driven = Driven::new(SessionKind::Restore, &members);
    for hook in [Hook::PreRestore, Hook::PostRestore, Hook::PreResume] {
        driven.all_arrive(&members, hook);
    }
    driven.session.handle_cancel(NOW, "too late".to_owned());
    driven.all_arrive(&["a"], Hook::PreResume);
    driven.all_arrive(&["a"], Hook::PostResume);
    driven.all_arrive(&["a"], Hook::PostResume);
    assert_eq!(driven.session.handle_member_failed(NOW, &id("b"), "podman exited with 125".to_owned()), Ok(()));
    driven.act();
    assert_eq!(driven.finished, None);
    let late = driven.session.poll_timeout().expect("a limit for reports");
    driven.session.handle_timeout(late);
    driven.act();
    let finished = driven.finished.expect("an end");
    assert_eq!(finished.running, [id("a")]);
    let missing: Vec<_> = finished.missing.iter().map(|missing| (missing.member.as_str(), &*missing.reason)).collect();
    assert_eq!(missing, [("b", "podman exited with 125"), ("c", "it did not tell that it runs")]);
}

#[test]
fn a_long_reason_is_cut_for_the_hooks_and_kept_for_the_launcher() {
    let mut driven = Driven::new(SessionKind::Restore, &["a", "b"]);
    let waiting = driven.arrive("a", Hook::PreRestore);
    let told = driven.session.handle_member_failed(NOW, &id("b"), "é".repeat(100_000));
    assert_eq!(told, Ok(()));
    driven.act();
    assert!(matches!(driven.answer(waiting), Some(Reply::Abort { reason }) if reason.len() <= 4096));
    assert!(matches!(driven.outcome, Some(Outcome::Aborted { reason, .. }) if reason.len() > 200_000));
}
