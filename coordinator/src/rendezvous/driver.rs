//! The one task that owns a session: it brings it messages and time, and does what it asks for.

use std::collections::HashMap;

use image_format::MemberId;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use crate::door::{Call, Door, Told, Waiting, answer_all};
use crate::proto::{Action, ConnectionId, Event, Finished, Moment, Outcome, Session};
use crate::wire::{Invitation, Join};

/// What the launcher tells.
#[derive(Debug)]
pub(super) enum Order {
    /// It saw a member's engine fail.
    MemberFailed { member: MemberId, reason: String, done: oneshot::Sender<()> },
    /// It gives up.
    Cancel { reason: String, done: oneshot::Sender<()> },
    /// It has taken the members' files.
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
}

impl Driver {
    pub(super) fn new(session: Session, door: Door, news: News) -> Self {
        Self { session, start: Instant::now(), door, waiting: HashMap::new(), news }
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
            Call::Disconnect { connection } => {
                self.waiting.remove(&connection);
                self.session.handle_disconnect(now, connection);
            }
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
                self.session.handle_captured(now);
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
                    self.news.capture.send_replace(true);
                }
                Action::Decide(outcome) => {
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
