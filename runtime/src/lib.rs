//! An OCI runtime that restores. For every container it is the real runtime (runc), but for those that are members to be
//! restored:
//!
//! ```text
//! create ─▶ ticket taken ─▶ bundle compared with what the member claims ─▶ files into its root filesystem
//!        ─▶ supervisor ── runc restore ── CRIU ── gate, at post-restore: "held" ─▶ create returns
//! start  ─▶ the gate opens ─▶ the session's own hooks ─▶ tasks run ─▶ start returns
//! kill, delete, a newer create, a deadline, or anybody's death while it is held ─▶ the gate says no; nothing of it runs
//! ```
//!
//! OCI's two steps are the two phases of a session: created is restored and held, started is released.

pub mod args;
pub mod claims;
mod config;
mod control;
mod create;
pub mod criu_log;
mod fill;
mod gate;
mod leftovers;
pub mod mounts;
mod report;
mod state;
mod supervise;
pub mod ticket;
mod wire;
pub mod words;

pub use self::config::{CRIU_CONFIG, OWN_CONFIG};
pub use self::control::run;
