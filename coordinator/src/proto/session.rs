//! The state machine itself; the diagram is at [`super`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use image_format::{Epoch, MemberId};

use super::hook::{Attendance, Duty, Hook};
use super::message::{
    Action, BarrierCrossing, CaptureTime, Cause, ConnectionId, Event, Finished, Message, Missing, Moment, Outcome,
    Refusal, Reply, Step, Timings, Vote,
};
use crate::plan::{PlanError, SessionId, SessionPlan};

/// How long after the release a member may take to tell that it runs; between the two CRIU only detaches.
const REPORT_WITHIN: Duration = Duration::from_secs(30);

/// One run of the protocol over its members.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Session {
    plan: Arc<SessionPlan>,
    members: BTreeMap<MemberId, Member>,
    waiting: BTreeMap<ConnectionId, Place>,
    state: State,
    actions: VecDeque<Action>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum State {
    /// Until `arrived` is everybody, or the deadline.
    Waiting { barrier: usize, arrived: usize, deadline: Moment },
    /// Of a dump: everybody is at the last barrier; until the launcher has taken the files, or the deadline.
    Capturing { since: Moment, deadline: Moment },
    /// Let through the last barrier; until all have told how they are, or the deadline.
    Released { untold: usize, deadline: Moment },
    /// Every member has told how it is, or is taken to be missing.
    Finished,
    /// Nobody is let through any more.
    Aborted { cause: Cause },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Member {
    /// When it came to each barrier so far; one that it skipped counts with the next one's time.
    arrivals: Vec<Moment>,
    /// When each barrier opened for it.
    passages: Vec<BarrierCrossing>,
    told: Told,
}

/// What a member told after its release.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
enum Told {
    #[default]
    Nothing,
    Running,
    Failed {
        reason: String,
    },
}

/// Where a connection waits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Place {
    member: MemberId,
    barrier: usize,
}

impl Session {
    /// Starts a session; its time starts at [`Moment::START`].
    ///
    /// # Errors
    /// The plan has no members, one twice, or no time.
    pub fn new(plan: SessionPlan) -> Result<Self, PlanError> {
        plan.check()?;
        let members = plan.members.iter().map(|id| (id.clone(), Member::default())).collect();
        let deadline = Moment::START.after(plan.deadlines.gather);
        let state = State::Waiting { barrier: 0, arrived: 0, deadline };
        Ok(Self { plan: Arc::new(plan), members, waiting: BTreeMap::new(), state, actions: VecDeque::new() })
    }

    /// What the session was started with.
    #[must_use]
    pub fn plan(&self) -> &SessionPlan {
        &self.plan
    }

    /// A hook of a member speaks, over a connection that waits for an answer. That the member is who it says was proved
    /// before.
    ///
    /// A message that was taken before is answered as the first one was.
    ///
    /// # Errors
    /// The message cannot be: its connection is told to abort. One that shows a member where nobody let it go to
    /// aborts the session as well.
    pub fn handle_message(&mut self, now: Moment, from: ConnectionId, message: Message) -> Result<(), Refusal> {
        let Message { session, epoch, member, hook, vote } = message;
        if let Err(refusal) = self.admit(session, epoch, &member) {
            self.reply(from, Reply::Abort { reason: refusal.to_string() });
            return Err(refusal);
        }
        match (self.plan.kind.duty(hook), &self.state) {
            (Duty::Pass, _) => {
                let refusal = Refusal::NoStep { hook };
                self.reply(from, Reply::Abort { reason: refusal.to_string() });
                Err(refusal)
            }
            (Duty::Wait(_) | Duty::Report, State::Aborted { cause }) => {
                let reply = abort_reply(cause);
                self.reply(from, reply);
                Ok(())
            }
            (Duty::Wait(place), State::Waiting { barrier, .. }) => {
                let barrier = *barrier;
                self.arrive(now, from, Place { member, barrier: place }, barrier, vote)
            }
            (Duty::Wait(place), State::Capturing { .. }) => {
                let barrier = self.last_barrier();
                self.arrive(now, from, Place { member, barrier: place }, barrier, vote)
            }
            (Duty::Report, State::Waiting { barrier, .. }) => {
                let barrier = *barrier;
                self.out_of_step(now, from, member, hook, barrier)
            }
            (Duty::Report, State::Capturing { .. }) => {
                let barrier = self.last_barrier();
                self.out_of_step(now, from, member, hook, barrier)
            }
            (Duty::Wait(_), State::Released { .. } | State::Finished) => {
                if let Vote::No { reason } = vote {
                    self.tell(now, &member, Told::Failed { reason });
                }
                self.reply(from, Reply::Proceed);
                Ok(())
            }
            (Duty::Report, State::Released { .. } | State::Finished) => {
                let told = match vote {
                    Vote::Yes => Told::Running,
                    Vote::No { reason } => Told::Failed { reason },
                };
                self.tell(now, &member, told);
                self.reply(from, Reply::Proceed);
                Ok(())
            }
        }
    }

    /// A connection that was not answered yet has ended. A member that waited on it is gone: that is an abort, never
    /// agreement.
    pub fn handle_disconnect(&mut self, now: Moment, connection: ConnectionId) {
        if let Some(Place { member, barrier }) = self.waiting.remove(&connection) {
            let hook = self.plan.kind.barriers()[barrier].hook;
            self.abort(now, Cause::Vanished { member, hook });
        }
    }

    /// Time has passed. Nothing happens before [`Session::poll_timeout`].
    pub fn handle_timeout(&mut self, now: Moment) {
        match &self.state {
            State::Waiting { barrier, deadline, .. } if now >= *deadline => {
                let barrier = *barrier;
                let missing = self.members.iter().filter(|(_, member)| member.arrivals.len() <= barrier);
                let missing = missing.map(|(id, _)| id.clone()).collect();
                self.abort(now, Cause::Deadline { hook: self.plan.kind.barriers()[barrier].hook, missing });
            }
            State::Capturing { deadline, .. } if now >= *deadline => {
                let hook = self.plan.kind.barriers()[self.last_barrier()].hook;
                self.abort(now, Cause::CaptureDeadline { hook });
            }
            State::Released { deadline, .. } if now >= *deadline => {
                for member in self.members.values_mut().filter(|member| member.told == Told::Nothing) {
                    member.told = Told::Failed { reason: "it did not tell that it runs".to_owned() };
                }
                self.finish();
            }
            State::Waiting { .. }
            | State::Capturing { .. }
            | State::Released { .. }
            | State::Finished
            | State::Aborted { .. } => {}
        }
    }

    /// The launcher has taken the files that [`Action::Capture`] asked it for: the members are released. When they are
    /// not being captured, because the session was aborted meanwhile, say, nothing happens.
    pub fn handle_captured(&mut self, now: Moment) {
        if let State::Capturing { since, .. } = self.state {
            self.release(now, Some(CaptureTime { begin: since.since_start(), end: now.since_start() }));
        }
    }

    /// The launcher saw a member's engine fail. Before the release this aborts; after it the member counts as missing.
    ///
    /// # Errors
    /// No member has this name.
    pub fn handle_member_failed(&mut self, now: Moment, member: &MemberId, reason: String) -> Result<(), Refusal> {
        if !self.members.contains_key(member) {
            return Err(Refusal::UnknownMember { member: member.clone() });
        }
        match self.state {
            State::Waiting { .. } | State::Capturing { .. } => {
                self.abort(now, Cause::Failed { member: member.clone(), reason });
            }
            State::Released { .. } | State::Finished => self.tell(now, member, Told::Failed { reason }),
            State::Aborted { .. } => {}
        }
        Ok(())
    }

    /// The launcher gives up. Once released it is too late, and nothing happens.
    pub fn handle_cancel(&mut self, now: Moment, reason: String) {
        self.abort(now, Cause::Cancelled { reason });
    }

    /// When [`Session::handle_timeout`] wants to be called, if ever.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Moment> {
        match &self.state {
            State::Waiting { deadline, .. } | State::Capturing { deadline, .. } | State::Released { deadline, .. } => {
                Some(*deadline)
            }
            State::Finished | State::Aborted { .. } => None,
        }
    }

    /// The next thing to do, in order.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn admit(&self, session: SessionId, epoch: Epoch, member: &MemberId) -> Result<(), Refusal> {
        if session != self.plan.id {
            return Err(Refusal::OtherSession { found: session, expected: self.plan.id });
        }
        if epoch != self.plan.epoch {
            return Err(Refusal::OtherEpoch { found: epoch, expected: self.plan.epoch });
        }
        if !self.members.contains_key(member) {
            return Err(Refusal::UnknownMember { member: member.clone() });
        }
        Ok(())
    }

    /// A member has come to `place`, while `barrier` is the one to complete.
    fn arrive(
        &mut self,
        now: Moment,
        from: ConnectionId,
        place: Place,
        barrier: usize,
        vote: Vote,
    ) -> Result<(), Refusal> {
        let barriers = self.plan.kind.barriers();
        let hook = barriers[place.barrier].hook;
        let mut skipped = barriers.iter().take(place.barrier).skip(barrier);
        if !skipped.all(|skipped| skipped.attendance == Attendance::MaySkip) {
            return self.out_of_step(now, from, place.member, hook, barrier);
        }
        if let Vote::No { reason } = vote {
            let member = place.member.clone();
            self.waiting.insert(from, place);
            self.abort(now, Cause::VotedNo { member, hook, reason });
            return Ok(());
        }
        if place.barrier < barrier {
            self.reply(from, Reply::Proceed);
            return Ok(());
        }
        let passed = self.members.get_mut(&place.member).map_or(0, |member| {
            let before = member.arrivals.len();
            member.arrivals.resize(before.max(place.barrier + 1), now);
            before
        });
        if passed <= place.barrier {
            self.event(now, place.member.clone(), Step::Arrived(hook));
        }
        if let State::Waiting { arrived, .. } = &mut self.state
            && passed <= barrier
        {
            *arrived += 1;
        }
        self.waiting.insert(from, place);
        self.advance(now);
        Ok(())
    }

    /// Opens every barrier that is complete, one after the other: members that skipped one may complete the next.
    fn advance(&mut self, now: Moment) {
        while let State::Waiting { barrier, arrived, deadline } = self.state
            && arrived == self.members.len()
        {
            let next = barrier + 1;
            if barrier == self.last_barrier() {
                if self.plan.kind.captures() {
                    self.state = State::Capturing { since: now, deadline };
                    self.actions.push_back(Action::Capture);
                } else {
                    self.release(now, None);
                }
            } else {
                self.pass(now, barrier);
                let deadline = if barrier == 0 { now.after(self.plan.deadlines.hold) } else { deadline };
                let arrived = self.members.values().filter(|member| member.arrivals.len() > next).count();
                self.state = State::Waiting { barrier: next, arrived, deadline };
                self.open(barrier);
            }
        }
    }

    /// Notes that every member goes on from `barrier`.
    fn pass(&mut self, now: Moment, barrier: usize) {
        let hook = self.plan.kind.barriers()[barrier].hook;
        let passed = now.since_start();
        for (id, member) in &mut self.members {
            member.passages.push(BarrierCrossing { hook, arrived: member.arrivals[barrier].since_start(), passed });
            let event = Event { member: id.clone(), step: Step::Passed(hook), at: passed };
            self.actions.push_back(Action::Tell(event));
        }
    }

    /// Lets every connection go that waits at `barrier` or before it.
    fn open(&mut self, barrier: usize) {
        let waiting = std::mem::take(&mut self.waiting);
        let (through, still): (BTreeMap<_, _>, _) =
            waiting.into_iter().partition(|(_, place)| place.barrier <= barrier);
        self.waiting = still;
        for to in through.into_keys() {
            self.reply(to, Reply::Proceed);
        }
    }

    fn release(&mut self, now: Moment, capture: Option<CaptureTime>) {
        self.pass(now, self.last_barrier());
        let members = self.members.iter().map(|(id, member)| (id.clone(), member.passages.clone()));
        let outcome = Outcome::Released { timings: Timings { members: members.collect(), capture } };
        self.state = State::Released { untold: self.members.len(), deadline: now.after(REPORT_WITHIN) };
        self.open(self.plan.kind.barriers().len());
        self.actions.push_back(Action::Decide(outcome));
        if !self.plan.kind.reports() {
            for member in self.members.values_mut() {
                member.told = Told::Running;
            }
            self.finish();
        }
    }

    /// Notes what a released member told. The first failure sticks: what runs and then fails is missing.
    fn tell(&mut self, now: Moment, id: &MemberId, told: Told) {
        let State::Released { .. } = self.state else { return };
        let Some(member) = self.members.get_mut(id) else { return };
        let step = match (&member.told, &told) {
            (Told::Nothing, Told::Running) => Step::Running,
            (Told::Nothing | Told::Running, Told::Failed { reason }) => Step::Failed { reason: reason.clone() },
            (Told::Running | Told::Failed { .. }, Told::Running)
            | (Told::Failed { .. }, Told::Failed { .. })
            | (_, Told::Nothing) => return,
        };
        let first = member.told == Told::Nothing;
        member.told = told;
        self.event(now, id.clone(), step);
        if let State::Released { untold, .. } = &mut self.state
            && first
        {
            *untold -= 1;
            if *untold == 0 {
                self.finish();
            }
        }
    }

    fn finish(&mut self) {
        self.state = State::Finished;
        let mut finished = Finished::default();
        for (id, member) in &self.members {
            match &member.told {
                Told::Running => finished.running.push(id.clone()),
                Told::Failed { reason } => {
                    finished.missing.push(Missing { member: id.clone(), reason: reason.clone() });
                }
                Told::Nothing => {
                    finished.missing.push(Missing { member: id.clone(), reason: "nothing was heard of it".to_owned() });
                }
            }
        }
        self.actions.push_back(Action::Finish(finished));
    }

    fn out_of_step(
        &mut self,
        now: Moment,
        from: ConnectionId,
        member: MemberId,
        hook: Hook,
        barrier: usize,
    ) -> Result<(), Refusal> {
        let expected = self.plan.kind.barriers()[barrier].hook;
        let cause = Cause::OutOfStep { member: member.clone(), hook, expected };
        self.reply(from, abort_reply(&cause));
        self.abort(now, cause);
        Err(Refusal::OutOfStep { member, hook, expected })
    }

    /// Ends the session, unless it is already decided.
    fn abort(&mut self, now: Moment, cause: Cause) {
        let (State::Waiting { .. } | State::Capturing { .. }) = self.state else { return };
        let reason = cause.to_string();
        if let Some(member) = cause.member() {
            self.event(now, member.clone(), Step::Failed { reason: reason.clone() });
        }
        for to in std::mem::take(&mut self.waiting).into_keys() {
            self.reply(to, abort_reply(&cause));
        }
        let (member, hook) = (cause.member().cloned(), cause.hook());
        self.actions.push_back(Action::Decide(Outcome::Aborted { member, hook, reason }));
        let missing = |id: &MemberId| Missing { member: id.clone(), reason: "the session was aborted".to_owned() };
        let missing = self.members.keys().map(missing).collect();
        self.actions.push_back(Action::Finish(Finished { running: Vec::new(), missing }));
        self.state = State::Aborted { cause };
    }

    fn last_barrier(&self) -> usize {
        self.plan.kind.barriers().len() - 1
    }

    fn reply(&mut self, to: ConnectionId, reply: Reply) {
        self.actions.push_back(Action::Reply { to, reply });
    }

    fn event(&mut self, now: Moment, member: MemberId, step: Step) {
        self.actions.push_back(Action::Tell(Event { member, step, at: now.since_start() }));
    }
}

/// The longest reason that goes over the wire, in bytes; the launcher gets it whole.
const LONGEST_REASON: usize = 4096;

fn abort_reply(cause: &Cause) -> Reply {
    let mut reason = cause.to_string();
    while reason.len() > LONGEST_REASON {
        reason.pop();
    }
    Reply::Abort { reason }
}
