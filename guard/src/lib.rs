//! Keeping an application alive, on top of the checkpoint run and the restore run.
//!
//! [`guard()`] checkpoints an application every so often, and rolls the application back as a whole
//! when a member is gone. [`preempt()`] checkpoints an application and makes room. [`interval`] says
//! how often a checkpoint pays. [`sdp`] begins and ends guards as SKA's Configuration DB says.

mod decider;
pub mod interval;
mod members;
mod metrics;
mod preempt;
mod run;
pub mod sdp;
mod state;

pub use self::decider::{RollbackPolicy, Surrender};
pub use self::members::LookError;
pub use self::metrics::GuardMetrics;
pub use self::preempt::{PreemptError, halt, preempt};
pub use self::run::{GUARD_DIR, GuardError, GuardEvent, GuardOptions, GuardWatcher, Orders, RollbackError, guard};
pub use self::state::{GuardState, Taken, guard_state};
