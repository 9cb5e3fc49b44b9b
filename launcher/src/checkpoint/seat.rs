//! Where the session is: on this host, or on another one that coordinates it.

use coordinator::wire::control::Failure;
use coordinator::{Delegation, Event, Outcome, Rendezvous};
use image_format::MemberId;
use tokio::sync::mpsc;

/// A launcher's place in a session.
#[derive(Debug)]
pub(crate) enum Seat<'a> {
    /// It coordinates it.
    Here(&'a mut Rendezvous),
    /// It takes part with the members of this host.
    Elsewhere(&'a Delegation),
}

impl Seat<'_> {
    /// What the members do; only the coordinating host is told.
    pub(crate) fn events(&mut self) -> mpsc::UnboundedReceiver<Event> {
        match self {
            Self::Here(rendezvous) => rendezvous.events(),
            Self::Elsewhere(_) => mpsc::unbounded_channel().1,
        }
    }

    pub(crate) async fn outcome(&self) -> Outcome {
        match self {
            Self::Here(rendezvous) => rendezvous.outcome().await,
            Self::Elsewhere(delegation) => delegation.outcome().await,
        }
    }

    pub(crate) async fn to_capture(&self) -> bool {
        match self {
            Self::Here(rendezvous) => rendezvous.to_capture().await,
            Self::Elsewhere(delegation) => delegation.to_capture().await,
        }
    }

    /// The files of this host's members are taken.
    pub(crate) async fn captured(&self) {
        match self {
            Self::Here(rendezvous) => rendezvous.captured().await,
            Self::Elsewhere(delegation) => delegation.captured(),
        }
    }

    /// A member of this host failed; `log_lines` are only asked for where they would not be found otherwise.
    pub(crate) async fn member_failed(
        &self,
        member: &MemberId,
        reason: String,
        log_lines: impl FnOnce() -> Vec<String>,
    ) {
        match self {
            Self::Here(rendezvous) => rendezvous.member_failed(member, reason).await,
            Self::Elsewhere(delegation) => delegation.failed(member, Failure::new(&reason, &log_lines())),
        }
    }

    pub(crate) async fn cancel(&self, reason: String) {
        match self {
            Self::Here(rendezvous) => rendezvous.cancel(reason).await,
            Self::Elsewhere(delegation) => delegation.cancel(&reason),
        }
    }
}
