//! What goes into a session and what comes out of it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use image_format::{Epoch, MemberId, one_line};
use serde::{Deserialize, Deserializer, Serialize};

use super::hook::Hook;
use crate::plan::SessionId;

/// A point in a session's time: how long after its start. The session has no clock; whoever drives it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(Duration);

impl Moment {
    /// The session's start.
    pub const START: Self = Self(Duration::ZERO);

    /// The moment this long after the start.
    #[must_use]
    pub const fn after_start(elapsed: Duration) -> Self {
        Self(elapsed)
    }

    /// How long after the start it is.
    #[must_use]
    pub const fn since_start(self) -> Duration {
        self.0
    }

    pub(super) fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(wait))
    }
}

/// The driver's name for one connection of a hook; never used again for another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// What a hook says: I am here, and I can or cannot go on. Who says it was proved before it comes here.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// The session it belongs to.
    pub session: SessionId,
    /// The attempt it belongs to.
    pub epoch: Epoch,
    /// Whose hook it is.
    pub member: MemberId,
    /// Which hook it is.
    pub hook: Hook,
    /// Whether the member can go on from here.
    pub vote: Vote,
}

/// The longest reason, in bytes.
pub(crate) const LONGEST_REASON: usize = 4096;

/// What a peer says in its own words, which are shown and logged: one line of them, whatever it sent.
pub(crate) fn said<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    String::deserialize(from).map(|text| one_line(&text, LONGEST_REASON))
}

/// A member's word at a hook.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Vote {
    /// It can go on if all others can.
    Yes,
    /// It cannot.
    No {
        /// Why, as a fragment.
        #[serde(deserialize_with = "said")]
        reason: String,
    },
}

/// What a hook is told.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// Everybody is here: go on.
    Proceed,
    /// It is over, for everybody.
    Abort {
        /// Why, as a fragment that names the member.
        #[serde(deserialize_with = "said")]
        reason: String,
    },
}

/// What the driver has to do for a session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// Answer a connection; it is not heard of again.
    Reply {
        /// Which one.
        to: ConnectionId,
        /// With what.
        reply: Reply,
    },
    /// Tell the launcher what a member did.
    Tell(Event),
    /// Tell the launcher to take the files now: every member stands at the last barrier of a dump, with a yes. Once a
    /// session; it is done when [`Session::handle_captured`](super::Session::handle_captured) says so.
    Capture,
    /// Tell the launcher what was decided. Once a session, never taken back.
    Decide(Outcome),
    /// Tell the launcher what became of the members after their release. Once a session, also after an abort.
    Finish(Finished),
}

/// A step of one member, for whoever watches.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Event {
    /// The member.
    pub member: MemberId,
    /// What happened.
    pub step: Step,
    /// When, since the session's start.
    pub at: Duration,
}

/// What happened to a member.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Step {
    /// It waits at this hook.
    Arrived(Hook),
    /// Everybody came, and what had to be taken was: it goes on from this hook.
    Passed(Hook),
    /// Its tasks run.
    Running,
    /// It will not come any further.
    Failed {
        /// Why, as a fragment.
        reason: String,
    },
}

/// What a session decided.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Every member came to the last barrier and was let through; at a dump, with its files taken.
    Released {
        /// When each of them came where.
        timings: Timings,
    },
    /// It is over; nobody is let through the last barrier.
    Aborted {
        /// The member that it failed at, if it was one.
        member: Option<MemberId>,
        /// The hook that it failed at, if it was one.
        hook: Option<Hook>,
        /// Why, as a fragment that names the member.
        reason: String,
    },
}

/// When the members came to each barrier and went on from it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Timings {
    /// For each member, in the order of the barriers.
    pub members: BTreeMap<MemberId, Vec<BarrierCrossing>>,
    /// At a dump, when the files were taken.
    pub capture: Option<CaptureTime>,
}

/// When the files of a dump were taken, both ends since the session's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CaptureTime {
    /// When it began.
    pub begin: Duration,
    /// When it was over.
    pub end: Duration,
}

/// One member at one barrier. Times are since the session's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BarrierCrossing {
    /// The barrier's hook.
    pub hook: Hook,
    /// When the member came.
    pub arrived: Duration,
    /// When it went on: everybody was there, and at the last barrier of a dump the files were taken.
    pub passed: Duration,
}

/// What became of the members once the session was decided.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Finished {
    /// Those whose tasks run.
    pub running: Vec<MemberId>,
    /// Those whose tasks do not, or of which nothing was heard.
    pub missing: Vec<Missing>,
}

impl Finished {
    /// Whether every member runs.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.missing.is_empty()
    }
}

/// A member that does not run.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Missing {
    /// Which one.
    pub member: MemberId,
    /// Why, as a fragment.
    pub reason: String,
}

/// Why a session was aborted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// A hook's connection ended while it waited.
    Vanished {
        /// Whose.
        member: MemberId,
        /// Which one.
        hook: Hook,
    },
    /// A member voted no.
    VotedNo {
        /// Which one.
        member: MemberId,
        /// Where.
        hook: Hook,
        /// Its words.
        reason: String,
    },
    /// The launcher saw a member's engine fail.
    Failed {
        /// Which one.
        member: MemberId,
        /// The launcher's words.
        reason: String,
    },
    /// A member came to a hook that it cannot have been let go to.
    OutOfStep {
        /// Which one.
        member: MemberId,
        /// Where it came to.
        hook: Hook,
        /// Where it should have waited.
        expected: Hook,
    },
    /// The time was up.
    Deadline {
        /// The barrier that was not complete.
        hook: Hook,
        /// Who was not there.
        missing: Vec<MemberId>,
    },
    /// The time was up while the files were taken.
    CaptureDeadline {
        /// The barrier at which the members stood.
        hook: Hook,
    },
    /// The launcher gave up.
    Cancelled {
        /// The launcher's words.
        reason: String,
    },
}

impl Cause {
    /// The member that it failed at, if it was one alone.
    #[must_use]
    pub fn member(&self) -> Option<&MemberId> {
        match self {
            Self::Vanished { member, .. }
            | Self::VotedNo { member, .. }
            | Self::Failed { member, .. }
            | Self::OutOfStep { member, .. } => Some(member),
            Self::Deadline { missing, .. } => match missing.as_slice() {
                [only] => Some(only),
                _ => None,
            },
            Self::CaptureDeadline { .. } | Self::Cancelled { .. } => None,
        }
    }

    /// The hook that it failed at, if it was one.
    #[must_use]
    pub fn hook(&self) -> Option<Hook> {
        match self {
            Self::Vanished { hook, .. }
            | Self::VotedNo { hook, .. }
            | Self::OutOfStep { hook, .. }
            | Self::Deadline { hook, .. }
            | Self::CaptureDeadline { hook } => Some(*hook),
            Self::Failed { .. } | Self::Cancelled { .. } => None,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vanished { member, hook } => write!(f, "member {member} vanished while it waited at {hook}"),
            Self::VotedNo { member, hook, reason } => write!(f, "member {member} voted no at {hook}: {reason}"),
            Self::Failed { member, reason } => write!(f, "member {member} failed: {reason}"),
            Self::OutOfStep { member, hook, expected } => {
                write!(f, "member {member} came to {hook} without having been let through {expected}")
            }
            Self::Deadline { hook, missing } => {
                write!(f, "the time was up at {hook}; missing: ")?;
                let named = missing.len().min(8);
                for (place, member) in missing.iter().take(named).enumerate() {
                    write!(f, "{}{member}", if place == 0 { "" } else { ", " })?;
                }
                match missing.len() - named {
                    0 => Ok(()),
                    more => write!(f, " and {more} more"),
                }
            }
            Self::CaptureDeadline { hook } => {
                write!(f, "the time was up at {hook}, while the files of the members were captured")
            }
            Self::Cancelled { reason } => write!(f, "given up: {reason}"),
        }
    }
}

/// Why a message was not taken. The connection that sent it has been told to abort.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It is for another session.
    #[error("the message is for session {found}, this is {expected}")]
    OtherSession {
        /// The message's session.
        found: SessionId,
        /// This one.
        expected: SessionId,
    },
    /// It is for another attempt.
    #[error("the message is of epoch {found}, this is epoch {expected}")]
    OtherEpoch {
        /// The message's epoch.
        found: Epoch,
        /// This one.
        expected: Epoch,
    },
    /// No member has this name.
    #[error("{member} is not a member of the session")]
    UnknownMember {
        /// The name.
        member: MemberId,
    },
    /// The session has no step at this hook.
    #[error("the session has no step at {hook}")]
    NoStep {
        /// The hook.
        hook: Hook,
    },
    /// The member cannot be there; the session was aborted for it.
    #[error("member {member} came to {hook} without having been let through {expected}")]
    OutOfStep {
        /// The member.
        member: MemberId,
        /// Where it came to.
        hook: Hook,
        /// Where it should have waited.
        expected: Hook,
    },
}
