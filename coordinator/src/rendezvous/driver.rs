//! The one task that owns a session: it brings it messages and time, and does what it asks for.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use image_format::MemberId;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::connection::{Keys, serve};
use crate::proto::{Action, ConnectionId, Event, Finished, Message, Moment, Outcome, Reply, Session};

/// Connections beyond this many for each member, and some, wait in the socket's queue.
const CONNECTIONS_EACH: usize = 2;
const CONNECTIONS_MORE: usize = 64;

/// How long a closing session waits for its last answers to be taken.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// What the driver is told from outside.
#[derive(Debug)]
pub(super) enum Command {
    /// A connection brought a message of a member that proved who it is.
    Message { from: ConnectionId, message: Message, reply: oneshot::Sender<Reply> },
    /// A connection ended without an answer.
    Disconnect { connection: ConnectionId },
    /// The launcher saw a member's engine fail.
    MemberFailed { member: MemberId, reason: String, done: oneshot::Sender<()> },
    /// The launcher gives up.
    Cancel { reason: String, done: oneshot::Sender<()> },
    /// The launcher has taken the members' files.
    Captured { done: oneshot::Sender<()> },
    /// The session is over.
    Close,
}

#[derive(Debug)]
pub(super) struct Driver {
    session: Session,
    start: Instant,
    listener: UnixListener,
    keys: Arc<Keys>,
    commands: mpsc::UnboundedSender<Command>,
    connections: JoinSet<()>,
    next_connection: u64,
    replies: HashMap<ConnectionId, oneshot::Sender<Reply>>,
    tell: mpsc::UnboundedSender<Event>,
    news: News,
}

/// What the launcher waits for.
#[derive(Debug)]
pub(super) struct News {
    pub(super) capture: watch::Sender<bool>,
    pub(super) decide: watch::Sender<Option<Outcome>>,
    pub(super) finish: watch::Sender<Option<Finished>>,
}

impl Driver {
    pub(super) fn new(
        session: Session,
        listener: UnixListener,
        keys: Arc<Keys>,
        commands: mpsc::UnboundedSender<Command>,
        tell: mpsc::UnboundedSender<Event>,
        news: News,
    ) -> Self {
        Self {
            session,
            start: Instant::now(),
            listener,
            keys,
            commands,
            connections: JoinSet::new(),
            next_connection: 0,
            replies: HashMap::new(),
            tell,
            news,
        }
    }

    pub(super) async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Command>) {
        let most = self.keys.len() * CONNECTIONS_EACH + CONNECTIONS_MORE;
        loop {
            let wake = self.session.poll_timeout().map(|moment| self.start + moment.since_start());
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(Command::Close) | None => break,
                    Some(command) => self.obey(command),
                },
                accepted = self.listener.accept(), if self.connections.len() < most => match accepted {
                    Ok((stream, _)) => self.welcome(stream),
                    // Out of descriptors, say: the hooks in the queue wait, those that are here go on.
                    Err(_) => sleep(Duration::from_millis(20)).await,
                },
                Some(_) = self.connections.join_next() => {}
                () = sleep_until(wake.unwrap_or(self.start)), if wake.is_some() => {
                    self.session.handle_timeout(self.now());
                }
            }
            self.act();
        }
        // Whoever is still asking gets no answer, and takes that for an abort.
        drop(inbox);
        let all_answered = async { while self.connections.join_next().await.is_some() {} };
        let _ = timeout(LAST_ANSWERS, all_answered).await;
    }

    fn now(&self) -> Moment {
        Moment::after_start(self.start.elapsed())
    }

    fn welcome(&mut self, stream: UnixStream) {
        if !self.keys.admit_peer(&stream) {
            return;
        }
        let id = ConnectionId(self.next_connection);
        self.next_connection += 1;
        let (keys, commands) = (Arc::clone(&self.keys), self.commands.clone());
        self.connections.spawn(async move { serve(id, stream, &keys, &commands).await });
    }

    fn obey(&mut self, command: Command) {
        let now = self.now();
        match command {
            Command::Message { from, message, reply } => {
                self.replies.insert(from, reply);
                // A refused message was answered by the session, and if it is one for the launcher to know of, it
                // aborted the session with the same words.
                let _ = self.session.handle_message(now, from, message);
            }
            Command::Disconnect { connection } => {
                self.replies.remove(&connection);
                self.session.handle_disconnect(now, connection);
            }
            Command::MemberFailed { member, reason, done } => {
                let _ = self.session.handle_member_failed(now, &member, reason);
                self.act();
                let _ = done.send(());
            }
            Command::Cancel { reason, done } => {
                self.session.handle_cancel(now, reason);
                self.act();
                let _ = done.send(());
            }
            Command::Captured { done } => {
                self.session.handle_captured(now);
                self.act();
                let _ = done.send(());
            }
            Command::Close => {}
        }
    }

    /// Does all that the session asks for. Whoever no longer listens, on either side, does not stop the others.
    fn act(&mut self) {
        while let Some(action) = self.session.poll_action() {
            match action {
                Action::Reply { to, reply } => {
                    if let Some(waiting) = self.replies.remove(&to) {
                        let _ = waiting.send(reply);
                    }
                }
                Action::Tell(event) => {
                    let _ = self.tell.send(event);
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
    }
}
