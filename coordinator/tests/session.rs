//! The session, step by step, where a table says more than a search.

use std::time::Duration;

use coordinator::proto::{
    Action, ConnectionId, Finished, Hook, Message, Moment, Outcome, Refusal, Reply, Session, SessionKind, Vote,
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
}

impl Driven {
    fn new(kind: SessionKind, members: &[&str]) -> Self {
        let session = Session::new(plan(kind, members)).expect("a plan");
        Self { session, next: 0, answers: Vec::new(), outcome: None, finished: None }
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
    assert_eq!((driven.answer(dumped), driven.answer(last)), (Some(&Reply::Proceed), Some(&Reply::Proceed)));
    assert!(matches!(driven.outcome, Some(Outcome::Released { .. })));
    assert_eq!(driven.finished.map(|finished| finished.running), Some(vec![id("a"), id("b")]));
}

#[test]
fn a_dump_of_members_without_networks_skips_network_lock() {
    let mut driven = Driven::new(SessionKind::Dump, &["a", "b"]);
    driven.all_arrive(&["a", "b"], Hook::PreDump);
    driven.all_arrive(&["a", "b"], Hook::PostDump);
    assert!(matches!(driven.outcome, Some(Outcome::Released { .. })));
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
