//! `session.json`: what a hook must know to take part, beside the link that CRIU runs.

use std::path::PathBuf;

use image_format::{Epoch, MemberId};
use serde::{Deserialize, Serialize};

use crate::plan::SessionId;
use crate::proto::SessionKind;
use crate::secret::Secret;

/// The ticket's name in a member's folder.
pub(crate) const TICKET: &str = "session.json";

/// The link's name in a member's folder.
pub(crate) const HOOK: &str = "hook";

/// One member's ticket to one session; a file for its owner alone.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Ticket {
    /// The version of the ticket and of the protocol.
    pub version: u16,
    pub kind: SessionKind,
    pub session: SessionId,
    pub epoch: Epoch,
    pub member: MemberId,
    /// Where the rendezvous listens.
    pub socket: PathBuf,
    /// Proves that a hook speaks for this member.
    pub secret: Secret,
    /// The session's deadlines, in milliseconds.
    pub gather_ms: u64,
    pub hold_ms: u64,
}
