//! The one task that owns a session: it brings it messages and time, and does what it asks for.

use std::collections::{BTreeSet, HashMap};

use image_format::{MemberId, one_line};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use crate::control::Seat;
use crate::door::{Call, Door, Told, Waiting, answer_all};
use crate::proto::{Action, ConnectionId, Event, Finished, LONGEST_REASON, Moment, Outcome, Reply, Session};
use crate::wire::control::{CoordinatorMessage, ParticipantMessage};
use crate::wire::{Invitation, Join};

/// What the launcher tells.
#[derive(Debug)]
pub(super) enum Order {
    /// It saw a member's engine fail.
    MemberFailed { member: MemberId, reason: String, done: oneshot::Sender<()> },
    /// It gives up.
    Cancel { reason: String, done: oneshot::Sender<()> },
    /// It has taken the files of its host's members.
    Captured { done: oneshot::Sender<()> },
    /// The session is over.
    Close,
}

/// What the launcher waits for.
#[derive(Debug)]
pub(super) struct News {
    pub(super) tell: mpsc::UnboundedSender<Event>,
    pub(super) capture: watch::Sender<bool>,
    pub(super) decide: watch::Sender<Option<Outcome>>,
    pub(super) finish: watch::Sender<Option<Finished>>,
}

#[derive(Debug)]
pub(super) struct Driver {
    session: Session,
    start: Instant,
    door: Door,
    waiting: HashMap<ConnectionId, Waiting>,
    news: News,
    /// The launchers of other hosts.
    seats: HashMap<ConnectionId, Seat>,
    /// Whose files are still being taken: the members' of other hosts, and this host's launcher as `None`.
    capturing: BTreeSet<Option<MemberId>>,
}

impl Driver {
    pub(super) fn new(session: Session, door: Door, news: News, seats: HashMap<ConnectionId, Seat>) -> Self {
        let start = Instant::now();
        Self { session, start, door, waiting: HashMap::new(), news, seats, capturing: BTreeSet::new() }
    }

    pub(super) async fn run(
        mut self,
        mut calls: mpsc::UnboundedReceiver<Call>,
        mut orders: mpsc::UnboundedReceiver<Order>,
    ) {
        loop {
            let wake = self.session.poll_timeout().map(|moment| self.start + moment.since_start());
            tokio::select! {
                order = orders.recv() => match order {
                    Some(Order::Close) | None => break,
                    Some(order) => self.obey(order),
                },
                Some(call) = calls.recv() => self.take(call),
                () = self.door.tend() => {}
                () = sleep_until(wake.unwrap_or(self.start)), if wake.is_some() => {
                    self.session.handle_timeout(self.now());
                }
            }
            self.act();
        }
        // Whoever is still asking gets no answer, and takes that for an abort.
        drop((orders, calls));
        self.waiting.clear();
        self.seats.clear();
        self.door.close().await;
    }

    fn now(&self) -> Moment {
        Moment::after_start(self.start.elapsed())
    }

    fn take(&mut self, call: Call) {
        let now = self.now();
        match call {
            Call::Message { from, message, waiting } => {
                self.waiting.insert(from, waiting);
                // A refused message was answered by the session, and if it is one for the launcher to know of, it
                // aborted the session with the same words.
                let _ = self.session.handle_message(now, from, message);
            }
            Call::Join { join, told, .. } => {
                let _ = told.send(self.invite(&join));
            }
            Call::Attend { words, .. } => {
                let reason = "a checkpoint is on its way already, and nobody is awaited any more".to_owned();
                let _ = words.send(CoordinatorMessage::Reply(Reply::Abort { reason }));
            }
            Call::Report { from, report } => self.hear(now, from, report),
            Call::Disconnect { connection } => {
                self.waiting.remove(&connection);
                self.session.handle_disconnect(now, connection);
                if let Some(seat) = self.seats.remove(&connection) {
                    self.lose(now, &seat.member, "the connection to its host ended".to_owned());
                }
            }
        }
    }

    /// A launcher of another host says something. What follows the decision is for this host's launcher alone.
    fn hear(&mut self, now: Moment, from: ConnectionId, report: ParticipantMessage) {
        let Some(seat) = self.seats.get(&from) else { return };
        let member = seat.member.clone();
        match &report {
            ParticipantMessage::Captured => self.captured(now, Some(member)),
            ParticipantMessage::Failed(failure) => {
                let reason = failure.reason.clone();
                // Kept for whoever wants to know more of it.
                let _ = seat.reports.send(report);
                self.lose(now, &member, reason);
            }
            ParticipantMessage::Stored(_) | ParticipantMessage::Alive => {
                let _ = seat.reports.send(report);
            }
        }
    }

    fn lose(&mut self, now: Moment, member: &MemberId, reason: String) {
        // It is one of the session's, which began with it.
        let _ = self.session.handle_member_failed(now, member, reason);
    }

    /// Somebody has taken its files, having been asked to. The last one releases all.
    fn captured(&mut self, now: Moment, whose: Option<MemberId>) {
        if self.capturing.remove(&whose) && self.capturing.is_empty() {
            self.session.handle_captured(now);
        }
    }

    fn tell_seats(&self, word: &CoordinatorMessage) {
        for seat in self.seats.values() {
            let _ = seat.words.send(word.clone());
        }
    }

    /// The session's members were named when it started: whoever is one of them is told which session it is.
    fn invite(&self, join: &Join) -> Told {
        let plan = self.session.plan();
        if !plan.members.contains(&join.member) {
            return Told::Refused { reason: format!("{} is not a member of the session", join.member) };
        }
        if plan.kind != join.kind {
            return Told::Refused { reason: format!("the session is a {}, not a {}", plan.kind, join.kind) };
        }
        Told::Invited(Invitation::to(plan))
    }

    fn obey(&mut self, order: Order) {
        let now = self.now();
        let done = match order {
            Order::MemberFailed { member, reason, done } => {
                let _ = self.session.handle_member_failed(now, &member, reason);
                done
            }
            Order::Cancel { reason, done } => {
                self.session.handle_cancel(now, reason);
                done
            }
            Order::Captured { done } => {
                self.captured(now, None);
                done
            }
            Order::Close => return,
        };
        self.act();
        let _ = done.send(());
    }

    /// Does all that the session asks for. Whoever no longer listens, on either side, does not stop the others.
    fn act(&mut self) {
        let mut answers = Vec::new();
        while let Some(action) = self.session.poll_action() {
            match action {
                Action::Reply { to, reply } => answers.extend(self.waiting.remove(&to).map(|waiting| (waiting, reply))),
                Action::Tell(event) => {
                    let _ = self.news.tell.send(event);
                }
                Action::Capture => {
                    self.capturing = self.seats.values().map(|seat| Some(seat.member.clone())).chain([None]).collect();
                    self.tell_seats(&CoordinatorMessage::Capture);
                    self.news.capture.send_replace(true);
                }
                Action::Decide(outcome) => {
                    self.tell_seats(&CoordinatorMessage::Reply(decision(&outcome)));
                    self.news.decide.send_replace(Some(outcome));
                }
                Action::Finish(finished) => {
                    self.news.finish.send_replace(Some(finished));
                }
            }
        }
        answer_all(answers);
    }
}

/// What launchers of other hosts are told of a decision.
fn decision(outcome: &Outcome) -> Reply {
    match outcome {
        Outcome::Released { .. } => Reply::Proceed,
        Outcome::Aborted { reason, .. } => Reply::Abort { reason: one_line(reason, LONGEST_REASON) },
    }
}
