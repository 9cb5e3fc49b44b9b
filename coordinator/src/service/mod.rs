//! A standing rendezvous: it forms sessions by itself of the members that come.
//!
//! Hooks that have no ticket say who they are, over mutual TLS, and whom they depend on. Once everybody who belongs together is
//! there a session begins, of the same state machine as any other, with an id and an epoch of its own. Nobody takes files at
//! its capture: whoever dumps by hooks alone leaves that to the engines.

mod gathering;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use image_format::{ApplicationId, Epoch, MemberId};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use self::gathering::{Broken, Complete, Gathering};
use crate::door::{Call, Door, Listen, ListenError, Told, Waiting, answer_all};
use crate::plan::{Deadlines, SessionId, SessionPlan};
use crate::proto::{Action, ConnectionId, Event, Finished, Message, Moment, Outcome, Reply, Session, SessionKind};
use crate::wire::control::CoordinatorMessage;
use crate::wire::{Invitation, Join};

/// How long a session that is over is kept, for hooks that were still on their way to it.
const KEPT: Duration = Duration::from_secs(60);

/// Room for the connections of this many members at once.
const MEMBERS: usize = 4096;

/// What a service does.
#[derive(Debug, Clone)]
pub struct ServicePlan {
    /// Where it is heard, and by whom.
    pub listen: Listen,
    /// The application that its sessions are of.
    pub application: ApplicationId,
    /// The number of its first session; each later one has the next.
    pub epoch: Epoch,
    /// Those of every session. Gathering begins with the first member that comes.
    pub deadlines: Deadlines,
}

/// A running service. Dropping it ends it: every hook that waits, or comes later, finds nobody and fails closed.
#[derive(Debug)]
pub struct Service {
    address: SocketAddr,
    news: Option<mpsc::UnboundedReceiver<ServiceEvent>>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

/// Something that happened in a service, for whoever watches.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServiceEvent {
    /// Everybody is there: a session begins.
    Begun {
        /// What it is.
        session: SessionPlan,
    },
    /// A member did something.
    Member {
        /// The session.
        session: SessionId,
        /// What it did.
        event: Event,
    },
    /// A session was decided.
    Decided {
        /// The session.
        session: SessionId,
        /// How.
        outcome: Outcome,
    },
    /// A session is over.
    Finished {
        /// The session.
        session: SessionId,
        /// What became of its members.
        finished: Finished,
    },
    /// Members came, but never all that belong together.
    NotBegun {
        /// A dump or a restore.
        kind: SessionKind,
        /// Why, as a fragment that names members.
        reason: String,
    },
}

impl Service {
    /// Begins to listen.
    ///
    /// # Errors
    /// The address cannot be bound or the certificates cannot be used.
    pub async fn start(plan: ServicePlan) -> Result<Self, ListenError> {
        let (call, calls) = mpsc::unbounded_channel();
        let mut door = Door::new(MEMBERS, call);
        let address = door.open_elsewhere(&plan.listen).await?;
        let (tell, news) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel();
        let host = Host {
            plan,
            start: Instant::now(),
            door,
            gathering: Gathering::default(),
            joining: HashMap::new(),
            invited: HashMap::new(),
            sessions: HashMap::new(),
            session_of: HashMap::new(),
            waiting: HashMap::new(),
            tell,
        };
        let task = tokio::spawn(host.run(calls, stopped));
        Ok(Self { address, news: Some(news), stop: Some(stop), task })
    }

    /// Where it is heard.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What happens, from the start. Only the first call gets it; later ones get a channel that has ended.
    pub fn events(&mut self) -> mpsc::UnboundedReceiver<ServiceEvent> {
        self.news.take().unwrap_or_else(|| mpsc::unbounded_channel().1)
    }

    /// Aborts every session that is undecided, and ends.
    pub async fn close(mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
            let _ = (&mut self.task).await;
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The task that owns everything.
#[derive(Debug)]
struct Host {
    plan: ServicePlan,
    start: Instant,
    door: Door,
    gathering: Gathering,
    /// Who waits to be told which session it is in.
    joining: HashMap<ConnectionId, mpsc::UnboundedSender<Told>>,
    /// Who was told, and has not spoken yet.
    invited: HashMap<ConnectionId, (SessionId, MemberId)>,
    sessions: HashMap<SessionId, Running>,
    /// The last session of each member.
    session_of: HashMap<MemberId, SessionId>,
    waiting: HashMap<ConnectionId, (SessionId, Waiting)>,
    tell: mpsc::UnboundedSender<ServiceEvent>,
}

#[derive(Debug)]
struct Running {
    session: Session,
    start: Instant,
    over: Option<Instant>,
}

impl Running {
    fn now(&self) -> Moment {
        Moment::after_start(self.start.elapsed())
    }
}

impl Host {
    async fn run(mut self, mut calls: mpsc::UnboundedReceiver<Call>, mut stopped: oneshot::Receiver<()>) {
        loop {
            let wake = self.wake();
            tokio::select! {
                _ = &mut stopped => break,
                Some(call) = calls.recv() => self.take(call),
                () = self.door.tend() => {}
                () = sleep_until(wake.unwrap_or(self.start)), if wake.is_some() => self.time_has_passed(),
            }
        }
        let reason = "the coordinator was stopped";
        for (_, told) in self.joining.drain() {
            let _ = told.send(Told::Refused { reason: reason.to_owned() });
        }
        let sessions: Vec<SessionId> = self.sessions.keys().copied().collect();
        for session in sessions {
            self.drive(session, |session, now| session.handle_cancel(now, reason.to_owned()));
        }
        drop(calls);
        self.waiting.clear();
        self.door.close().await;
    }

    fn now(&self) -> Moment {
        Moment::after_start(self.start.elapsed())
    }

    fn wake(&self) -> Option<Instant> {
        let gathering = self.gathering.poll_timeout().map(|moment| self.start + moment.since_start());
        let sessions = self.sessions.values();
        let sessions =
            sessions.filter_map(|running| Some(running.start + running.session.poll_timeout()?.since_start()));
        sessions.chain(gathering).min()
    }

    fn time_has_passed(&mut self) {
        let now = self.now();
        while let Some(broken) = self.gathering.handle_timeout(now) {
            self.refuse(broken);
        }
        let sessions: Vec<SessionId> = self.sessions.keys().copied().collect();
        for session in sessions {
            self.drive(session, Session::handle_timeout);
        }
    }

    fn take(&mut self, call: Call) {
        match call {
            Call::Join { from, join, told } => self.join(from, join, told),
            Call::Message { from, message, waiting } => self.hear(from, message, waiting),
            Call::Attend { words, .. } => {
                let reason = "this coordinator is for hooks alone; launchers meet at `syncpoint checkpoint --listen`";
                let _ = words.send(CoordinatorMessage::Reply(Reply::Abort { reason: reason.to_owned() }));
            }
            // Of a launcher that was refused.
            Call::Report { .. } => {}
            Call::Disconnect { connection } => {
                self.joining.remove(&connection);
                if let Some(broken) = self.gathering.leave(connection) {
                    self.refuse(broken);
                }
                if let Some((session, member)) = self.invited.remove(&connection) {
                    self.fail(session, &member, "it vanished when the session began");
                }
                if let Some((session, _)) = self.waiting.remove(&connection) {
                    self.drive(session, |session, now| session.handle_disconnect(now, connection));
                }
            }
        }
    }

    fn join(&mut self, from: ConnectionId, join: Join, told: mpsc::UnboundedSender<Told>) {
        // Whoever begins anew has left the session that it was in; obeying that one would mix two instants.
        if let Some(session) = self.session_of.remove(&join.member) {
            self.fail(session, &join.member, "it began again");
        }
        let within = self.plan.deadlines.gather;
        let _ = told.send(Told::Noted { within });
        self.joining.insert(from, told);
        if let Some(complete) = self.gathering.join(self.now(), within, from, join) {
            self.begin(complete);
        }
    }

    fn begin(&mut self, complete: Complete) {
        let Complete { kind, members, callers } = complete;
        let begun = SessionId::random().map_err(|error| error.to_string()).and_then(|id| {
            let plan = SessionPlan {
                kind,
                id,
                epoch: self.plan.epoch,
                application: self.plan.application.clone(),
                members,
                deadlines: self.plan.deadlines,
                fence: None,
            };
            Session::new(plan).map_err(|error| error.to_string())
        });
        let session = match begun {
            Ok(session) => session,
            Err(reason) => {
                let callers = callers.into_iter().map(|(caller, _)| caller).collect();
                return self.refuse(Broken { kind, callers, reason });
            }
        };
        let plan = session.plan().clone();
        self.plan.epoch = Epoch(plan.epoch.0.saturating_add(1));
        self.sessions.retain(|_, running| running.over.is_none_or(|over| over.elapsed() < KEPT));
        let sessions = &self.sessions;
        self.session_of.retain(|_, session| sessions.contains_key(session));
        for (caller, member) in callers {
            if let Some(told) = self.joining.remove(&caller) {
                let _ = told.send(Told::Invited(Invitation::to(&plan)));
                self.invited.insert(caller, (plan.id, member.clone()));
            }
            self.session_of.insert(member, plan.id);
        }
        self.sessions.insert(plan.id, Running { session, start: Instant::now(), over: None });
        self.news(ServiceEvent::Begun { session: plan });
    }

    fn hear(&mut self, from: ConnectionId, message: Message, waiting: Waiting) {
        self.invited.remove(&from);
        let id = message.session;
        if !self.sessions.contains_key(&id) {
            let reason = format!("there is no session {id} here, or no longer");
            waiting.answer(Reply::Abort { reason });
            return;
        }
        self.waiting.insert(from, (id, waiting));
        self.drive(id, |session, now| {
            // A refused message was answered by the session.
            let _ = session.handle_message(now, from, message);
        });
    }

    fn fail(&mut self, session: SessionId, member: &MemberId, reason: &str) {
        self.drive(session, |session, now| {
            // The member is one of the session's, who were all in the set that it began with.
            let _ = session.handle_member_failed(now, member, reason.to_owned());
        });
    }

    fn refuse(&mut self, broken: Broken) {
        for caller in broken.callers {
            if let Some(told) = self.joining.remove(&caller) {
                let _ = told.send(Told::Refused { reason: broken.reason.clone() });
            }
        }
        self.news(ServiceEvent::NotBegun { kind: broken.kind, reason: broken.reason });
    }

    /// Does something with a session, and then all that it asks for.
    fn drive(&mut self, id: SessionId, what: impl FnOnce(&mut Session, Moment)) {
        let Some(running) = self.sessions.get_mut(&id) else { return };
        let now = running.now();
        what(&mut running.session, now);
        let mut answers = Vec::new();
        while let Some(action) = running.session.poll_action() {
            let event = match action {
                Action::Reply { to, reply } => {
                    answers.extend(self.waiting.remove(&to).map(|(_, waiting)| (waiting, reply)));
                    continue;
                }
                Action::Capture => {
                    running.session.handle_captured(now);
                    continue;
                }
                Action::Tell(event) => ServiceEvent::Member { session: id, event },
                Action::Decide(outcome) => ServiceEvent::Decided { session: id, outcome },
                Action::Finish(finished) => {
                    running.over = Some(Instant::now());
                    ServiceEvent::Finished { session: id, finished }
                }
            };
            // Nobody need watch.
            let _ = self.tell.send(event);
        }
        answer_all(answers);
    }

    fn news(&self, event: ServiceEvent) {
        let _ = self.tell.send(event);
    }
}
