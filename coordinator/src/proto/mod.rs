//! The two-phase protocol as a state machine: no IO, no clock, no threads.
//!
//! A [`Session`] is told what happened through `handle_*` and asked what to do through `poll_*`. Time comes in as a
//! [`Moment`]. Members pass the barriers of [`SessionKind::barriers`] together, or not at all:
//!
//! ```text
//!             all arrived           all arrived           all arrived: of a restore
//!  Waiting(0) ───────────▶ Waiting(1) ──────────▶ Waiting(2) ─────────────────────────▶ Released ──▶ Finished
//!      │  gather deadline      │                      │ all arrived: of a dump             ▲   all reported, failed,
//!      │                       │                      ▼                   captured         │   or silent too long
//!      │                       │                  Capturing ───────────────────────────────┘
//!      │                       │   hold deadline      │
//!      │                       │   (one for all)      │
//!      └───────────────────────┴──────────────────────┘
//!                              │ a vote of no, a connection lost while waiting, a member failed,
//!                              ▼ a member out of step, a deadline, given up
//!                           Aborted
//! ```
//!
//! `Aborted` and `Finished` are terminal. `-> Released` is the decision: before it every member can be stopped, after it
//! none is told to. Only `Waiting` and `Capturing` can abort, so that nobody is released after an abort and nobody is
//! told to abort after the release. In `Capturing` every member of a dump stands frozen with a yes, and the launcher takes
//! their files; nobody is let through before it says that it has them.

mod hook;
mod message;
mod session;

pub use hook::{Attendance, Barrier, Duty, Hook, ParseHookError, SessionKind, Verdict};
pub use message::{
    Action, BarrierCrossing, CaptureTime, Cause, ConnectionId, Event, Finished, Message, Missing, Moment, Outcome,
    Refusal, Reply, Step, Timings, Vote,
};
pub(crate) use message::{LONGEST_REASON, said};
pub use session::Session;
