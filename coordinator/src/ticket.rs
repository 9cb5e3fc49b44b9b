//! `session.json`: what a hook must know to take part, beside the link that CRIU runs.

use std::io;
use std::path::PathBuf;

use image_format::{Epoch, MemberId};
use serde::{Deserialize, Serialize};

use crate::fence::Fence;
use crate::plan::SessionId;
use crate::proto::SessionKind;
use crate::secret::Secret;
use crate::tls::TlsFiles;
use crate::wire::{self, Invitation};

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
    /// Where the rendezvous listens: `"socket": "<path>"` or `"remote": {..}`.
    #[serde(flatten)]
    pub place: Place,
    /// Proves at a socket that a hook speaks for this member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret>,
    /// What the hook asks before it lets its member go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<Fence>,
    /// The session's deadlines, in milliseconds.
    pub gather_ms: u64,
    pub hold_ms: u64,
    /// Whether the launcher of this host is waited for too ([`life`](crate::life)).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub life: bool,
}

/// Where a rendezvous listens.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Place {
    /// On this host.
    Socket(PathBuf),
    /// On another one.
    Remote(Remote),
}

/// A rendezvous on another host, and how to prove to it who one is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remote {
    /// `HOST:PORT`; the host is one that the rendezvous' certificate names.
    pub address: String,
    /// Who this end is, and whom it trusts.
    #[serde(flatten)]
    pub tls: TlsFiles,
}

impl Ticket {
    pub(crate) fn new(invitation: &Invitation, place: Place, member: MemberId, secret: Option<Secret>) -> Self {
        let Invitation { kind, session, epoch, gather_ms, hold_ms } = *invitation;
        let (version, fence, life) = (wire::VERSION, None, false);
        Self { version, kind, session, epoch, member, place, secret, fence, gather_ms, hold_ms, life }
    }

    pub(crate) fn to_json(&self) -> io::Result<Vec<u8>> {
        Ok(serde_json::to_vec_pretty(self)?)
    }
}
