//! Where a session is: on this host, or on another one that coordinates the session.

use coordinator::wire::control::Failure;
use coordinator::{Delegation, Event, Missing, Outcome, Rendezvous};
use image_format::MemberId;
use tokio::sync::mpsc;

/// What a launcher holds of a session.
#[derive(Debug)]
pub(crate) enum SessionHandle<'a> {
    /// This host coordinates the session.
    Here(&'a mut Rendezvous),
    /// This host takes part with its own members.
    Elsewhere(&'a Delegation),
}

impl SessionHandle<'_> {
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

    /// After the release of a restore: who did not tell that it runs. Only the coordinating host is told.
    pub(crate) async fn missing(&mut self) -> Vec<Missing> {
        match self {
            Self::Here(rendezvous) => rendezvous.finished().await.missing,
            Self::Elsewhere(_) => Vec::new(),
        }
    }
}
