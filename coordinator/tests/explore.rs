//! Every way in which a session of three members can go, over the state machine that ships.
//!
//! The search knows every order of messages, answers and disconnects, every hook that fires twice, messages of other epochs,
//! votes of no, hooks and engines that die anywhere, answers that get lost, members that come where they cannot be, the
//! launcher giving up, a rendezvous that dies, and the time being up. In every state that it comes to, it checks the
//! invariants of `docs/protocol.md`; they are numbered there and named here.

use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::time::Duration;

use coordinator::proto::{
    Action, Attendance, ConnectionId, Finished, Hook, Message, Moment, Outcome, Refusal, Reply, Session, SessionKind,
    Verdict, Vote,
};
use coordinator::{Deadlines, SessionId, SessionPlan};
use image_format::{Epoch, MemberId};

const MEMBERS: usize = 3;
const SESSION: SessionId = SessionId::from_bytes([7; 16]);
const EPOCH: Epoch = Epoch(4);

/// How often each kind of trouble may happen in one run. Deaths need no bound: everybody dies only once.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Troubles {
    deaths: u8,
    repeats: u8,
    twins: u8,
    no_votes: u8,
    out_of_step: u8,
    cancels: u8,
    crashes: u8,
}

/// Everything: the session, the members and what is on the way between them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    session: Session,
    now: Moment,
    members: [Member; MEMBERS],
    decided: Decided,
    finished: bool,
    crashed: bool,
    capture: Capture,
    troubles: Troubles,
}

/// What the launcher knows of the files of a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Capture {
    NotAsked,
    Asked,
    /// It has them, and has told so.
    Told,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Member {
    life: Life,
    /// The hook that is running, if one is.
    running: Option<Call>,
    /// A second connection at the same hook.
    twin: Option<ConnectionId>,
    /// The barriers at which the session has a yes of it.
    voted: [bool; 3],
    /// The connections of its hooks so far: their names are never used twice.
    calls: u64,
    /// It died, and the launcher may still come to tell.
    failure_to_tell: bool,
    reported: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Life {
    /// On its way to the hook of this barrier.
    Before(usize),
    /// Let through the last barrier: its tasks run, or its dump stands.
    Through,
    /// Through, and told so where the kind of session has it.
    Told,
    /// Stopped by its own hook, or dead.
    Stopped,
}

/// One run of a hook and its connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Call {
    id: ConnectionId,
    hook: Hook,
    vote: Vote,
    stage: Stage,
    /// Nobody is left on the hook's side.
    dead: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Stage {
    Sent,
    Waiting,
    Answered(Reply),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Decided {
    No,
    Released,
    Aborted,
}

/// One thing that can happen next.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Move {
    Fire { member: usize, barrier: usize, vote: Vote },
    ParticipantMessage(usize),
    Deliver(usize),
    DeliverAnswer(usize),
    Repeat(usize),
    Twin(usize),
    LoseAnswer(usize),
    Kill(usize),
    DeliverDisconnect(usize),
    TellFailure(usize),
    Captured,
    OutOfStep { member: usize, hook: Hook },
    Cancel,
    Crash,
    TimeIsUp,
}

fn id(member: usize) -> MemberId {
    format!("m{member}").parse().expect("an id")
}

fn message(member: usize, hook: Hook, vote: Vote) -> Message {
    Message { session: SESSION, epoch: EPOCH, member: id(member), hook, vote }
}

impl World {
    fn new(kind: SessionKind, troubles: Troubles) -> Self {
        let deadlines = Deadlines { gather: Duration::from_secs(60), hold: Duration::from_secs(10) };
        let plan = SessionPlan {
            kind,
            id: SESSION,
            epoch: EPOCH,
            application: "app".parse().expect("an id"),
            members: (0..MEMBERS).map(id).collect(),
            deadlines,
            fence: None,
        };
        let member = Member {
            life: Life::Before(0),
            running: None,
            twin: None,
            voted: [false; 3],
            calls: 0,
            failure_to_tell: false,
            reported: false,
        };
        Self {
            session: Session::new(plan).expect("a plan"),
            now: Moment::START,
            members: [member.clone(), member.clone(), member],
            decided: Decided::No,
            finished: false,
            crashed: false,
            capture: Capture::NotAsked,
            troubles,
        }
    }

    fn kind(&self) -> SessionKind {
        self.session.plan().kind
    }

    fn moves(&self) -> Vec<Move> {
        let mut moves = Vec::new();
        let barriers = self.kind().barriers();
        for (place, member) in self.members.iter().enumerate() {
            let alive = member.life != Life::Stopped;
            match (&member.running, member.life) {
                (None, Life::Before(barrier)) => {
                    moves.push(Move::Fire { member: place, barrier, vote: Vote::Yes });
                    if self.troubles.no_votes > 0 {
                        moves.push(Move::Fire { member: place, barrier, vote: Vote::No { reason: String::new() } });
                    }
                    if barriers[barrier].attendance == Attendance::MaySkip {
                        moves.push(Move::Fire { member: place, barrier: barrier + 1, vote: Vote::Yes });
                    }
                    if self.troubles.out_of_step > 0 && !self.crashed {
                        let too_far = barriers
                            .iter()
                            .skip(barrier + 1)
                            .filter(|_| barriers[barrier].attendance == Attendance::Always);
                        moves.extend(too_far.map(|far| Move::OutOfStep { member: place, hook: far.hook }));
                        if self.kind().reports() {
                            moves.push(Move::OutOfStep { member: place, hook: Hook::PostResume });
                        }
                    }
                }
                (None, Life::Through) if self.kind().reports() => moves.push(Move::ParticipantMessage(place)),
                (None, Life::Through | Life::Told | Life::Stopped) => {}
                (Some(call), _) => match (&call.stage, call.dead) {
                    (Stage::Sent, _) => moves.push(Move::Deliver(place)),
                    (Stage::Waiting, true) => moves.push(Move::DeliverDisconnect(place)),
                    (Stage::Waiting, false) => {
                        if self.troubles.twins > 0 && member.twin.is_none() {
                            moves.push(Move::Twin(place));
                        }
                    }
                    (Stage::Answered(reply), false) => {
                        moves.push(Move::DeliverAnswer(place));
                        if self.troubles.repeats > 0 && *reply == Reply::Proceed && call.hook != Hook::PostResume {
                            moves.push(Move::Repeat(place));
                        }
                        if self.troubles.deaths > 0 {
                            moves.push(Move::LoseAnswer(place));
                        }
                    }
                    (Stage::Answered(_), true) => {}
                },
            }
            if alive && self.troubles.deaths > 0 {
                moves.push(Move::Kill(place));
            }
            if member.failure_to_tell && !self.crashed {
                moves.push(Move::TellFailure(place));
            }
        }
        if !self.crashed {
            if self.capture == Capture::Asked {
                moves.push(Move::Captured);
            }
            if self.troubles.cancels > 0 {
                moves.push(Move::Cancel);
            }
            if self.troubles.crashes > 0 {
                moves.push(Move::Crash);
            }
            if self.session.poll_timeout().is_some() {
                moves.push(Move::TimeIsUp);
            }
        }
        moves
    }

    fn make(&mut self, next: &Move) {
        match next {
            Move::Fire { member, barrier, vote } => {
                if *vote != Vote::Yes {
                    self.troubles.no_votes -= 1;
                }
                self.members[*member].life = Life::Before(*barrier);
                self.call(*member, self.kind().barriers()[*barrier].hook, vote.clone());
            }
            Move::ParticipantMessage(member) => self.call(*member, Hook::PostResume, Vote::Yes),
            Move::Deliver(member) => self.deliver(*member),
            Move::DeliverAnswer(member) => self.take_answer(*member),
            Move::Repeat(member) => {
                self.troubles.repeats -= 1;
                if let Some(call) = self.members[*member].running.take() {
                    self.call(*member, call.hook, call.vote);
                }
            }
            Move::Twin(member) => {
                self.troubles.twins -= 1;
                self.twin(*member);
            }
            Move::LoseAnswer(member) => {
                self.troubles.deaths -= 1;
                self.lose(*member);
            }
            Move::Kill(member) => {
                self.troubles.deaths -= 1;
                self.kill(*member);
            }
            Move::DeliverDisconnect(member) => self.disconnect(*member),
            Move::TellFailure(member) => {
                self.members[*member].failure_to_tell = false;
                let before = self.decided;
                let told = self.session.handle_member_failed(self.now, &id(*member), "its engine failed".to_owned());
                assert_eq!(told, Ok(()));
                self.act();
                assert!(before != Decided::No || self.decided == Decided::Aborted, "5: a failed member is an abort");
            }
            Move::Captured => self.captured(),
            Move::OutOfStep { member, hook } => {
                self.troubles.out_of_step -= 1;
                self.out_of_step(*member, *hook);
            }
            Move::Cancel => {
                self.troubles.cancels -= 1;
                self.session.handle_cancel(self.now, "given up".to_owned());
                self.act();
                assert_ne!(self.decided, Decided::No, "4: giving up decides");
            }
            Move::Crash => {
                self.troubles.crashes -= 1;
                self.crashed = true;
                for member in 0..MEMBERS {
                    self.members[member].twin = None;
                    if let Some(Call { stage: Stage::Sent | Stage::Waiting, .. }) = self.members[member].running {
                        self.lose(member);
                    }
                }
            }
            Move::TimeIsUp => {
                self.now = self.session.poll_timeout().unwrap_or(self.now);
                let before = self.decided;
                self.session.handle_timeout(self.now);
                self.act();
                assert!(before != Decided::No || self.decided == Decided::Aborted, "4: a deadline decides");
                assert!(before == Decided::No || self.finished, "4: a deadline finishes");
            }
        }
    }

    fn call(&mut self, place: usize, hook: Hook, vote: Vote) {
        let member = &mut self.members[place];
        let connection = ConnectionId(place as u64 * 100 + member.calls);
        member.calls += 1;
        member.running = Some(Call { id: connection, hook, vote, stage: Stage::Sent, dead: false });
        if self.crashed {
            self.lose(place);
        }
    }

    fn deliver(&mut self, place: usize) {
        let Some(call) = &mut self.members[place].running else { return };
        call.stage = Stage::Waiting;
        let (from, hook, vote) = (call.id, call.hook, call.vote.clone());
        let before = self.decided;
        if vote == Vote::Yes {
            // A yes at a later barrier stands for one that was skipped.
            let reached = self.kind().barriers().iter().position(|barrier| barrier.hook == hook);
            for barrier in 0..reached.map_or(0, |reached| reached + 1) {
                self.members[place].voted[barrier] = true;
            }
        }
        let taken = self.session.handle_message(self.now, from, message(place, hook, vote.clone()));
        assert_eq!(taken, Ok(()), "an honest member is never refused");
        if hook == Hook::PostResume && self.decided == Decided::Released {
            self.members[place].reported = true;
        }
        self.act();
        if vote != Vote::Yes && before == Decided::No {
            assert_eq!(self.decided, Decided::Aborted, "1: a no is an abort");
        }
    }

    /// The waiting hook's message comes again, on a connection of its own.
    fn twin(&mut self, place: usize) {
        let member = &mut self.members[place];
        let Some(call) = &member.running else { return };
        let twin = ConnectionId(place as u64 * 100 + 50);
        member.twin = Some(twin);
        let again = message(place, call.hook, call.vote.clone());
        assert_eq!(self.session.handle_message(self.now, twin, again), Ok(()));
        assert_eq!(self.session.poll_action(), None, "a repeat counts once and waits like the first");
    }

    fn take_answer(&mut self, place: usize) {
        let Some(Call { hook, stage: Stage::Answered(reply), .. }) = self.members[place].running.take() else { return };
        if hook == Hook::PostResume {
            self.members[place].life = Life::Told;
            return;
        }
        self.obey(place, hook, Some(&reply));
    }

    /// The shipped rule of what a hook does on an answer, or on none.
    fn obey(&mut self, place: usize, hook: Hook, reply: Option<&Reply>) {
        let verdict = self.kind().verdict(hook, reply);
        let barriers = self.kind().barriers();
        let last = barriers[barriers.len() - 1].hook;
        let life = &mut self.members[place].life;
        match (verdict, *life) {
            (Verdict::Continue, Life::Before(barrier)) if barrier + 1 < barriers.len() => {
                *life = Life::Before(barrier + 1);
            }
            (Verdict::Continue, _) => *life = Life::Through,
            (Verdict::KillAndRefuse, _) => *life = Life::Stopped,
            (Verdict::Refuse, _) => {
                // CRIU only logs what a script returns at pre-resume.
                *life = if hook == Hook::PreResume { Life::Through } else { Life::Stopped };
            }
        }
        if *life == Life::Through {
            assert_eq!(hook, last);
            assert_eq!(self.decided, Decided::Released, "2, 3: through the last barrier without a release");
            assert!(self.members.iter().all(|member| member.voted == [true; 3]), "2: through before all were there");
        }
        if self.members[place].life == Life::Stopped {
            self.members[place].failure_to_tell = true;
        }
    }

    /// The connection broke: the hook learns that, and so, where it was waiting, may the session.
    fn lose(&mut self, place: usize) {
        let Some(mut call) = self.members[place].running.take() else { return };
        if call.hook == Hook::PostResume {
            self.members[place].life = Life::Told;
        } else {
            self.obey(place, call.hook, None);
        }
        if call.stage == Stage::Waiting && !self.crashed {
            call.dead = true;
            self.members[place].running = Some(call);
        }
    }

    /// The hook and its tasks die, wherever they are; at pre-resume the guard sees to the tasks.
    fn kill(&mut self, place: usize) {
        let member = &mut self.members[place];
        member.life = Life::Stopped;
        member.failure_to_tell = true;
        if let Some(call) = &mut member.running {
            call.dead = true;
            if matches!(call.stage, Stage::Answered(_)) || self.crashed {
                member.running = None;
            }
        }
    }

    fn disconnect(&mut self, place: usize) {
        let Some(call) = self.members[place].running.take() else { return };
        let before = self.decided;
        self.session.handle_disconnect(self.now, call.id);
        self.act();
        if before == Decided::No {
            assert_eq!(self.decided, Decided::Aborted, "5: a vanished member is an abort");
        }
    }

    /// The launcher has the files. Nobody else can make it be so.
    fn captured(&mut self) {
        self.capture = Capture::Told;
        let before = self.decided;
        let stand = self.stand_at_the_last_barrier();
        self.session.handle_captured(self.now);
        self.act();
        match before {
            Decided::No => {
                assert!(stand, "6: captured, while somebody did not stand at the last barrier");
                assert_eq!(self.decided, Decided::Released, "captured is released");
            }
            Decided::Aborted => assert_eq!(self.decided, Decided::Aborted, "captured too late"),
            Decided::Released => panic!("6: released before it was captured"),
        }
    }

    /// Whether the session has every member waiting at the last barrier with a yes; what has not been heard of a hook that
    /// died, nobody can know.
    fn stand_at_the_last_barrier(&self) -> bool {
        let barriers = self.kind().barriers();
        let last = barriers[barriers.len() - 1].hook;
        self.members.iter().all(|member| {
            matches!(&member.running, Some(call) if call.hook == last && call.stage == Stage::Waiting)
                && member.voted == [true; 3]
        })
    }

    /// Being told that the files are taken when nobody asked for them, or asked before, changes nothing.
    fn check_uncalled_capture(&self) {
        if self.capture != Capture::Asked || self.decided != Decided::No {
            let mut session = self.session.clone();
            session.handle_captured(self.now);
            assert_eq!(session, self.session, "6: captured without having been asked");
        }
    }

    /// A message of an older epoch, whoever sends it and wherever the session is, is told to abort and changes nothing.
    fn check_stale(&self) {
        let mut session = self.session.clone();
        for (place, barrier) in self.kind().barriers().iter().enumerate() {
            let from = ConnectionId(9000);
            let mut old = message(place % MEMBERS, barrier.hook, Vote::Yes);
            old.epoch = Epoch(EPOCH.0 - 1);
            let refused = session.handle_message(self.now, from, old);
            assert_eq!(refused, Err(Refusal::OtherEpoch { found: Epoch(EPOCH.0 - 1), expected: EPOCH }));
            let answer = session.poll_action();
            assert!(matches!(answer, Some(Action::Reply { to, reply: Reply::Abort { .. } }) if to == from));
        }
        assert_eq!(session, self.session);
    }

    /// A member is where nobody let it go: its hook was lost without a trace, say.
    fn out_of_step(&mut self, place: usize, hook: Hook) {
        self.members[place].life = Life::Stopped;
        self.members[place].failure_to_tell = true;
        let expected_to_abort = self.decided == Decided::No && {
            let open = self.members.iter().map(|member| member.voted.iter().filter(|yes| **yes).count()).min();
            let place = self.kind().barriers().iter().position(|barrier| barrier.hook == hook);
            place.is_none_or(|place| place > open.unwrap_or(0))
        };
        let before = self.decided;
        let from = ConnectionId(9001);
        // It may look like a repeat of what was open already; then it is answered as that.
        let taken =
            self.session.handle_message(self.now, from, message(place, hook, Vote::No { reason: String::new() }));
        assert!(!expected_to_abort || self.kind() == SessionKind::Dump || taken.is_err(), "{taken:?}");
        let mut answered = false;
        while let Some(action) = self.session.poll_action() {
            match action {
                Action::Reply { to, .. } if to == from => answered = true,
                other => self.note(other),
            }
        }
        assert!(answered);
        assert!(before != Decided::No || self.decided == Decided::Aborted, "a member out of step is an abort");
    }

    fn act(&mut self) {
        while let Some(action) = self.session.poll_action() {
            self.note(action);
        }
    }

    fn note(&mut self, action: Action) {
        match action {
            Action::Tell(_) => {}
            Action::Capture => {
                assert_eq!((self.kind(), self.capture), (SessionKind::Dump, Capture::NotAsked), "6: asked once");
                assert_eq!(self.decided, Decided::No, "6: asked before the decision");
                assert!(self.stand_at_the_last_barrier(), "6: asked for files while somebody may run");
                self.capture = Capture::Asked;
            }
            Action::Decide(outcome) => {
                assert_eq!(self.decided, Decided::No, "a decision is made once");
                self.decided = match outcome {
                    Outcome::Released { timings } => {
                        assert_eq!(timings.members.len(), MEMBERS);
                        let everywhere = self.members.iter().all(|member| member.voted == [true; 3]);
                        assert!(everywhere, "1, 5: released without the yes of everybody");
                        let captured = self.kind() == SessionKind::Restore || self.capture == Capture::Told;
                        assert!(captured && timings.capture.is_some() == self.kind().captures(), "6: not captured");
                        Decided::Released
                    }
                    Outcome::Aborted { reason, .. } => {
                        assert!(!reason.is_empty());
                        Decided::Aborted
                    }
                };
            }
            Action::Finish(Finished { running, missing }) => {
                assert!(!self.finished && self.decided != Decided::No);
                assert_eq!(running.len() + missing.len(), MEMBERS);
                for (place, member) in self.members.iter().enumerate() {
                    let runs = running.contains(&id(place));
                    assert!(!runs || self.decided == Decided::Released, "5: nobody runs after an abort");
                    assert!(!runs || member.reported || !self.kind().reports(), "5: silence is not success");
                }
                self.finished = true;
            }
            Action::Reply { to, reply } => {
                if let Some(member) = self.members.iter_mut().find(|member| member.twin == Some(to)) {
                    member.twin = None;
                    let same = matches!(&reply, Reply::Proceed) == (self.decided != Decided::Aborted);
                    assert!(same || self.decided == Decided::No, "a twin is answered like the first");
                    return;
                }
                let place = self.members.iter().position(|m| m.running.as_ref().is_some_and(|call| call.id == to));
                let Some(place) = place else { panic!("an answer to nobody: {to:?}") };
                self.answer(place, reply);
            }
        }
    }

    fn answer(&mut self, place: usize, reply: Reply) {
        let Some(call) = &mut self.members[place].running else { return };
        assert_eq!(call.stage, Stage::Waiting, "one answer each");
        let hook = call.hook;
        call.stage = Stage::Answered(reply.clone());
        if call.dead {
            self.members[place].running = None;
        }
        let barrier = self.kind().barriers().iter().position(|barrier| barrier.hook == hook);
        match (reply, self.decided) {
            // The decision is announced right after the answers that it gives.
            (Reply::Proceed, Decided::No | Decided::Released) => {
                let all = barrier.is_none_or(|barrier| self.members.iter().all(|member| member.voted[barrier]));
                assert!(all, "1: let through {hook} without the yes of everybody");
                let captured = hook != Hook::PostDump || self.capture == Capture::Told;
                assert!(captured, "6: let through {hook} before the files were taken");
            }
            (Reply::Proceed, Decided::Aborted) => panic!("2: let through {hook} after an abort"),
            (Reply::Abort { .. }, Decided::Released) => panic!("told to abort at {hook} after the release"),
            (Reply::Abort { .. }, Decided::No | Decided::Aborted) => {}
        }
    }

    /// What must hold in every state, whatever led to it.
    fn check(&self) {
        let through = self.members.iter().filter(|member| matches!(member.life, Life::Through | Life::Told)).count();
        assert!(through == 0 || self.decided == Decided::Released, "2: something runs that was not released");
        if self.crashed {
            let waits = |member: &Member| matches!(&member.running, Some(call) if call.stage == Stage::Waiting);
            assert!(!self.members.iter().any(waits), "3: a hook waits for a rendezvous that is gone");
            return;
        }
        self.check_stale();
        self.check_uncalled_capture();
        for member in &self.members {
            let waits = matches!(&member.running, Some(call) if call.stage == Stage::Waiting);
            assert!(waits || member.twin.is_none(), "a twin is answered together with the first");
        }
        if self.decided == Decided::No {
            let mut later = self.clone();
            assert!(later.session.poll_timeout().is_some(), "4: undecided without a deadline");
            later.make(&Move::TimeIsUp);
            let waits = |member: &Member| matches!(&member.running, Some(call) if call.stage == Stage::Waiting);
            assert!(!later.members.iter().any(waits), "4: a hook still waits after the deadline");
        } else {
            let waits = |member: &Member| matches!(&member.running, Some(call) if call.stage == Stage::Waiting);
            assert!(!self.members.iter().any(waits), "4: a hook waits after the decision");
        }
    }
}

/// What a search came to.
#[derive(Debug, Default)]
struct Found {
    states: usize,
    /// States at which nothing more happens: after a release, after an abort, and with a rendezvous that died before.
    released: usize,
    aborted: usize,
    crashed: usize,
}

/// Goes everywhere from the start, depth first.
fn explore(kind: SessionKind, troubles: Troubles) -> Found {
    // Sixty-four bits: that two of a few million states are taken for one is as likely as one in ten million.
    let fingerprint = |world: &World| {
        let mut hasher = DefaultHasher::new();
        world.hash(&mut hasher);
        hasher.finish()
    };
    let start = World::new(kind, troubles);
    let mut seen = HashSet::from([fingerprint(&start)]);
    let mut open = vec![start];
    let mut found = Found::default();
    while let Some(world) = open.pop() {
        world.check();
        let moves = world.moves();
        if moves.is_empty() {
            assert!(world.crashed || world.finished, "4: stuck");
            match world.decided {
                Decided::Released => found.released += 1,
                Decided::Aborted => found.aborted += 1,
                Decided::No => found.crashed += 1,
            }
        }
        for next in moves {
            let mut world = world.clone();
            world.make(&next);
            if seen.insert(fingerprint(&world)) {
                open.push(world);
            }
        }
    }
    found.states = seen.len();
    found
}

const NONE: Troubles =
    Troubles { deaths: 0, repeats: 0, twins: 0, no_votes: 0, out_of_step: 0, cancels: 0, crashes: 0 };

/// Explores both kinds of session, and sees that the search was not empty.
fn explore_both(troubles: &Troubles) {
    for kind in [SessionKind::Restore, SessionKind::Dump] {
        let found = explore(kind, troubles.clone());
        println!("{kind} with {troubles:?}: {found:?}");
        assert!(found.states > 50_000 && found.released > 0 && found.aborted > 0, "{found:?}");
        assert_eq!(found.crashed > 0, troubles.crashes > 0, "{found:?}");
    }
}

#[test]
fn deaths_votes_of_no_and_giving_up() {
    explore_both(&Troubles { deaths: 3, no_votes: 1, cancels: 1, ..NONE });
}

#[test]
fn hooks_that_fire_twice() {
    explore_both(&Troubles { deaths: 1, repeats: 1, twins: 1, ..NONE });
}

#[test]
fn members_out_of_step() {
    explore_both(&Troubles { deaths: 1, repeats: 1, out_of_step: 1, ..NONE });
}

#[test]
fn a_rendezvous_that_dies() {
    explore_both(&Troubles { deaths: 2, repeats: 1, crashes: 1, ..NONE });
}
