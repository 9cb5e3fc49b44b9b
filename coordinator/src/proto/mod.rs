//! The two-phase protocol as a state machine: no IO, no clock, no threads.
//!
//! A [`Session`] is told what happened through `handle_*` and asked what to do through `poll_*`. Time comes in as a
//! [`Moment`]. Members pass the barriers of [`SessionKind::barriers`] together, or not at all:
//!
//! ```text
//!             all arrived           all arrived           all arrived
//!  Waiting(0) ───────────▶ Waiting(1) ──────────▶ Waiting(2) ─────────▶ Released ──▶ Finished
//!      │  gather deadline      │   hold deadline      │                    all reported,
//!      │                       │   (one for both)     │                    failed, or silent too long
//!      └───────────────────────┴──────────────────────┘
//!                              │ a vote of no, a connection lost while waiting, a member failed,
//!                              ▼ a member out of step, a deadline, given up
//!                           Aborted
//! ```
//!
//! `Aborted` and `Finished` are terminal. `Waiting(2) -> Released` is the decision: before it every member can be
//! stopped, after it none is told to. Only `Waiting` can abort, so that nobody is released after an abort and nobody
//! is told to abort after the release.

mod hook;
mod message;
mod session;

pub use hook::{Attendance, Barrier, Duty, Hook, ParseHookError, SessionKind, Verdict};
pub use message::{
    Action, Cause, ConnectionId, Event, Finished, Message, Missing, Moment, Outcome, Passage, Refusal, Reply, Step,
    Timings, Vote,
};
pub use session::Session;
