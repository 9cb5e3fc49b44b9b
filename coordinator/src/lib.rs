//! When members move: the two-phase protocol and the rendezvous of CRIU hooks.
//!
//! [`proto`] is the protocol as a state machine without IO or clock. Around it stand the [`Rendezvous`], one task that
//! owns a session and its local socket, and [`hook`], the program that CRIU runs at each of its hooks. [`wire`] is what
//! the two say to each other. Launchers of several hosts that checkpoint one application meet by a [`RollCall`] and a [`Delegation`]
//! each. `docs/protocol.md` is the specification.

mod bounded;
mod control;
mod door;
mod fence;
pub mod hook;
mod life;
mod plan;
pub mod proto;
mod rendezvous;
mod secret;
mod service;
mod strangers;
mod ticket;
mod tls;
pub mod wire;

pub use bounded::Bounded;
pub use control::{Absent, AttendError, CommitResult, Committed, Delegate, Delegation, RollCall};
pub use door::{Listen, ListenError};
pub use fence::{Fence, FenceError};
pub use plan::{Deadlines, ParseSessionIdError, PlanError, SessionId, SessionPlan};
pub use proto::{CaptureTime, Event, Finished, Hook, Missing, Outcome, SessionKind, Step, Timings};
pub use rendezvous::{CloseError, FolderError, Outpost, OutpostError, Rendezvous, RendezvousError};
pub use service::{Service, ServiceEvent, ServicePlan};
pub use strangers::{Place, Strangers};
pub use ticket::Remote;
pub use tls::{MEMBER_URI, TlsError, TlsFiles, is_open_to_others, member_of};
