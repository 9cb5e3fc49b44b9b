//! The launcher of a member on another host, as the coordinating host sees it.

use image_format::MemberId;
use tokio::sync::mpsc;

use crate::wire::control::{Attend, CoordinatorMessage, Failure, ParticipantMessage, Permanent, Stored};

/// One member's launcher on another host, once its session has begun.
#[derive(Debug)]
pub struct Delegate {
    attend: Attend,
    words: mpsc::UnboundedSender<CoordinatorMessage>,
    reports: mpsc::UnboundedReceiver<ParticipantMessage>,
}

/// The session's side of it.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) member: MemberId,
    pub(crate) words: mpsc::UnboundedSender<CoordinatorMessage>,
    /// To the [`Delegate`]; dropped when the connection ends.
    pub(crate) reports: mpsc::UnboundedSender<ParticipantMessage>,
}

impl Delegate {
    pub(crate) fn new(attend: Attend, words: mpsc::UnboundedSender<CoordinatorMessage>) -> (Self, Seat) {
        let (tell, reports) = mpsc::unbounded_channel();
        let seat = Seat { member: attend.member.clone(), words: words.clone(), reports: tell };
        (Self { attend, words, reports }, seat)
    }

    /// What it said when it came.
    #[must_use]
    pub fn attend(&self) -> &Attend {
        &self.attend
    }

    /// Waits, after the release, until the member's image is in the store, by the word of its host.
    ///
    /// # Errors
    /// It failed there, or its host is gone.
    pub async fn stored(&mut self) -> Result<Stored, Failure> {
        loop {
            match self.reports.recv().await {
                Some(ParticipantMessage::Stored(stored)) => return Ok(stored),
                Some(ParticipantMessage::Failed(failure)) => return Err(failure),
                Some(ParticipantMessage::Captured | ParticipantMessage::Alive) => {}
                None => return Err(Failure::new("the connection to its host ended", &[])),
            }
        }
    }

    /// Tells it that the checkpoint is permanent.
    pub fn permanent(&self, permanent: Permanent) {
        // Whoever is gone finds out from the store.
        let _ = self.words.send(CoordinatorMessage::Permanent(permanent));
    }

    /// Tells it that the checkpoint came to nothing.
    pub fn not_permanent(&self, reason: &str) {
        let _ = self.words.send(CoordinatorMessage::NotPermanent { reason: reason.to_owned() });
    }

    /// Waits until it goes, which it does when it has done all that it was told, and gives what it could not do. Of several reasons
    /// the last one that has lines of a log.
    pub async fn last_words(&mut self) -> Option<Failure> {
        let mut last: Option<Failure> = None;
        while let Some(report) = self.reports.recv().await {
            if let ParticipantMessage::Failed(failure) = report
                && (last.is_none() || !failure.log_lines.is_empty())
            {
                last = Some(failure);
            }
        }
        last
    }
}
