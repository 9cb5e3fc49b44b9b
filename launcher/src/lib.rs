//! The checkpoint run and the restore run.
//!
//! [`restore()`] takes a checkpoint from a store and starts every member of it, or none. It is one straight line:
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
mod errors;
mod host;
mod leaving;
mod memory;
mod observer;
mod pages;
mod receive;
mod restore;
mod session;
#[cfg(test)]
mod stuck;
mod workspace;

pub use checkpoint::{
    CheckpointError, CheckpointErrorKind, CheckpointOptions, CheckpointReport, CheckpointedMember, ContainerSpec,
    Destination, JoinReport, JoinTarget, MembersError, PageTransport, ParsePageTransportError, RemoteMembers,
    ResumableCheckpoint, Signer, Watcher, checkpoint, finish, join, resumable, tell_passed_over,
};
pub use errors::FileError;
pub use host::Host;
pub use leaving::{EvictError, Leaving, Volumes};
pub use memory::{KEEP, LazyError, keep};
pub use observer::{MemberStep, Observer, Phase};
pub use pages::PagesError;
pub use receive::serve::{ServeError, Served, Server};
pub use receive::{DumpTransport, ReceiveDumpError, ReceiveOptions, ReceivedDump, ReceivedSize, Receiver};
pub use restore::error::{RestoreError, RestoreErrorKind};
pub use restore::options::{RestoreOptions, WORK_DIR};
pub use restore::preflight::Problem;
pub use restore::set::LoadError;
pub use restore::{
    Prepared, RestoreReport, RestoredMember, check_rights, preflight, preflight_beside, prepare, restore,
};
pub use workspace::make_run_root;
