//! What happens to containers: engines, preflight and the restore run.
//!
//! [`restore`] takes a checkpoint from a store and starts every member of it, or none. It is one straight line:
//!
//! ```text
//! verify ─▶ load ─▶ claim names ─▶ sweep ─▶ preflight ─▶ fetch all ─▶ session (again, if it failed) ─▶ running
//!    │        │          │           │          │            │             │
//!    └────────┴──────────┴───────────┴──────────┴────────────┘             └─▶ everything made is removed
//!                  fails: nothing was touched
//! ```
//!
//! What is made is written down before it is made (`workspace`), and bears the session's name (`engine`), so
//! that a launcher that is killed at any point leaves only what the next one finds and takes away (`sweep`). Hooks whose
//! launcher is dead fail closed, so nothing runs meanwhile.

mod checkpoint;
mod error;
mod fetch;
mod guard;
pub mod interval;
mod lazy;
mod leaving;
mod observer;
mod options;
mod pages;
mod plan;
mod preempt;
mod preflight;
mod receive;
mod restore;
pub mod sdp;
mod serve;
mod session;
mod set;
mod streamer;
#[cfg(test)]
mod stuck;
mod sweep;
mod workspace;

pub use checkpoint::{
    CheckpointError, CheckpointErrorKind, CheckpointOptions, CheckpointReport, CheckpointedMember, Destination,
    Elsewhere, JoinReport, Joining, MembersError, Pages, ParsePagesError, Pending, Signer, Wanted, Watcher, checkpoint,
    join, pending, resume,
};
pub use error::{RestoreError, RestoreErrorKind};
pub use guard::{
    GUARD_DIR, GuardError, GuardEvent, GuardMetrics, GuardOptions, GuardState, GuardWatcher, Limits, LookError, Orders,
    RollbackError, Surrender, Taken, guard, guard_state,
};
pub use lazy::{KEEP, LazyError, keep};
pub use leaving::EvictError;
pub use observer::{MemberStep, Observer, Phase};
pub use options::{RestoreOptions, WORK_DIR};
pub use pages::PagesError;
pub use preempt::{PreemptError, halt, preempt};
pub use preflight::Problem;
pub use receive::{Came, ReceiveDumpError, ReceiveOptions, ReceivedDump, Receiver, Way};
pub use registry::Trust;
pub use restore::{RestoreReport, RestoredMember, check_rights, preflight, restore};
pub use serve::{ServeError, Served, Server};
pub use set::LoadError;
