//! Who is there, before a session begins: the members of other hosts say so by their launchers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use image_format::{ApplicationId, MemberId};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::door::{Call, Door, Listen, ListenError, Told};
use crate::proto::{ConnectionId, Reply};
use crate::wire::control::{Attend, CoordinatorMessage};
use crate::wire::millis;

/// An open port at which the members of other hosts are awaited. Dropped, it sends away everybody who came, without a word.
#[derive(Debug)]
pub struct RollCall {
    pub(crate) door: Door,
    pub(crate) calls: mpsc::UnboundedReceiver<Call>,
    pub(crate) address: SocketAddr,
    application: ApplicationId,
    members: BTreeMap<MemberId, Option<Attendee>>,
}

/// A member that came.
#[derive(Debug)]
pub(crate) struct Attendee {
    pub(crate) connection: ConnectionId,
    pub(crate) attend: Attend,
    pub(crate) words: mpsc::UnboundedSender<CoordinatorMessage>,
}

/// Members that did not come in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("nobody joined in time for {}", names(.members))]
pub struct Absent {
    /// Who they are.
    pub members: Vec<MemberId>,
}

fn names(members: &[MemberId]) -> String {
    members.iter().map(MemberId::as_str).collect::<Vec<_>>().join(", ")
}

impl RollCall {
    /// Opens the port for these members of an application.
    ///
    /// # Errors
    /// The address cannot be bound or the certificates cannot be used.
    pub async fn open(
        listen: &Listen,
        application: ApplicationId,
        members: impl IntoIterator<Item = MemberId>,
    ) -> Result<Self, ListenError> {
        let members: BTreeMap<_, _> = members.into_iter().map(|member| (member, None)).collect();
        let (call, calls) = mpsc::unbounded_channel();
        // Each has its launcher's connection beside those of its hooks.
        let mut door = Door::new(members.len() * 2, call);
        let address = door.open_elsewhere(listen).await?;
        Ok(Self { door, calls, address, application, members })
    }

    /// Where it is heard.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until all are there; `came` is told of each.
    ///
    /// # Errors
    /// The time was up before.
    pub async fn complete(&mut self, within: Duration, mut came: impl FnMut(&Attend)) -> Result<(), Absent> {
        let until = Instant::now() + within;
        while self.members.values().any(Option::is_none) {
            let call = timeout_at(until, async {
                tokio::select! {
                    call = self.calls.recv() => call,
                    () = self.door.tend() => None,
                }
            });
            match call.await {
                Ok(Some(call)) => self.take(call, until, &mut came),
                Ok(None) => {}
                Err(_) => {
                    let missing = self.members.iter().filter(|(_, attendee)| attendee.is_none());
                    return Err(Absent { members: missing.map(|(member, _)| member.clone()).collect() });
                }
            }
        }
        Ok(())
    }

    /// What those who came said, in the order of their ids.
    pub fn attended(&self) -> impl Iterator<Item = &Attend> {
        self.members.values().flatten().map(|attendee| &attendee.attend)
    }

    /// Sends everybody away who came, with a reason.
    pub async fn dismiss(self, reason: &str) {
        for attendee in self.members.into_values().flatten() {
            let _ = attendee.words.send(abort(reason.to_owned()));
        }
        drop(self.calls);
        self.door.close().await;
    }

    pub(crate) fn into_parts(self) -> (Door, mpsc::UnboundedReceiver<Call>, Vec<Attendee>) {
        (self.door, self.calls, self.members.into_values().flatten().collect())
    }

    fn take(&mut self, call: Call, until: Instant, came: &mut impl FnMut(&Attend)) {
        match call {
            Call::Attend { from, attend, words } => match self.check(&attend) {
                Ok(place) => {
                    let gather_ms = millis(until.saturating_duration_since(Instant::now()));
                    let _ = words.send(CoordinatorMessage::Noted { gather_ms });
                    came(&attend);
                    *place = Some(Attendee { connection: from, attend, words });
                }
                Err(reason) => {
                    let _ = words.send(abort(reason));
                }
            },
            Call::Disconnect { connection } => {
                let places = self.members.values_mut();
                for place in places {
                    if place.as_ref().is_some_and(|attendee| attendee.connection == connection) {
                        *place = None;
                    }
                }
            }
            Call::Message { waiting, .. } => {
                waiting.answer(Reply::Abort { reason: "the session has not begun yet".to_owned() });
            }
            Call::Join { told, .. } => {
                let reason = "here it is launchers that take part, by `syncpoint join`".to_owned();
                let _ = told.send(Told::Refused { reason });
            }
            // Whoever fails now goes.
            Call::Report { .. } => {}
        }
    }

    fn check(&mut self, attend: &Attend) -> Result<&mut Option<Attendee>, String> {
        let Attend { member, application, .. } = attend;
        if *application != self.application {
            return Err(format!("this is a checkpoint of {}, not of {application}", self.application));
        }
        match self.members.get_mut(member) {
            None => Err(format!("this checkpoint awaits no member {member} of another host")),
            Some(Some(_)) => Err(format!("somebody else has joined for {member} already")),
            Some(place) => Ok(place),
        }
    }
}

fn abort(reason: String) -> CoordinatorMessage {
    CoordinatorMessage::Reply(Reply::Abort { reason })
}
