//! What is written down about a checkpoint that is not permanent yet.

use std::path::PathBuf;
use std::time::Duration;

use coordinator::SessionId;
use image_format::{ApplicationId, Descriptor, Epoch, MemberId};
use serde::{Deserialize, Serialize};

use crate::EngineKind;

/// A checkpoint on its way, for whoever has to take away what is left of it, or finishes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tentative {
    pub(crate) session: SessionId,
    pub(crate) run_root: PathBuf,
    pub(crate) application: ApplicationId,
    /// The number that it began with. Resumed, it gets the next one that is free.
    pub(crate) epoch: Epoch,
    /// Where it was to go, in the words of the person who asked.
    pub(crate) to: String,
    pub(crate) members: Vec<TentativeMember>,
    /// Every member is packed: the tentative store has all of it.
    pub(crate) whole: bool,
}

/// One member of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TentativeMember {
    pub(crate) id: MemberId,
    pub(crate) depends_on: Vec<MemberId>,
    pub(crate) engine: EngineKind,
    pub(crate) container: String,
    /// The engine's id of the container.
    pub(crate) container_id: String,
    /// Its image in the tentative store, once it is packed.
    pub(crate) manifest: Option<Descriptor>,
    /// Bytes of its layers, as they are stored.
    pub(crate) bytes: u64,
    pub(crate) times: Times,
}

/// What a member's time went to, from the session's start. Spans are empty as long as they have not begun.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// It waited for the others, not frozen yet.
    pub waited: Stretch,
    /// Its tasks stood still.
    pub frozen: Stretch,
    /// CRIU wrote its memory.
    pub dumped: Stretch,
    /// It was packed.
    pub packed: Stretch,
    /// It was sent.
    pub sent: Stretch,
}

/// A stretch of time, both ends since the session's start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stretch {
    /// When it began.
    pub begin: Duration,
    /// When it was over.
    pub end: Duration,
}

impl Stretch {
    /// How long it was.
    #[must_use]
    pub fn length(self) -> Duration {
        self.end.saturating_sub(self.begin)
    }
}
