//! Engines: what runs containers. One trait, a driver for each.
//!
//! An engine says what is here ([`Engine::survey`]) and what a dump needs to know of a container
//! ([`Engine::source`]). An engine dumps a container, restores a member, says whether the member runs,
//! and takes away whatever came of it. A container is known to be a restore's own by its annotation
//! [`MARK`], which names the session of that restore and no other: nothing else is ever removed.

mod answers;
pub mod attach;
mod beside;
pub mod claims;
mod container;
mod deaths;
pub mod descriptors;
mod docker;
mod driver;
mod engines;
mod error;
pub mod files;
mod kind;
pub mod open_files;
mod overlay;
mod podman;
mod processes;
mod program;
mod runc;
mod survey;
mod target;
mod ties;
mod volumes;

pub use self::container::{DumpInto, Files, Layers, Present, RunningContainer, criu_configs};
pub use self::deaths::Deaths;
pub use self::driver::{Engine, Labelled};
pub use self::engines::Engines;
pub use self::error::EngineError;
pub use self::kind::{EngineKind, ParseEngineError};
pub use self::processes::{Marks, Ticks, is_alive, kill, outsiders, wait_gone};
pub use self::program::{Program, ProgramError};
pub use self::runc::bundle;
pub use self::runc::bundle::BundleError;
pub use self::survey::{Container, Network, Subnet, Survey};
pub use self::target::{Found, MARK, RuncPaths, Target};
pub use self::ties::{Pod, PodTie, StartMount, Ties};
pub use self::volumes::{Volume, stored};
pub use runtime::criu_log::log_lines;
pub use runtime::mounts;
pub use runtime::words::chain;
pub use runtime::{CRIU_CONFIG, OWN_CONFIG};
