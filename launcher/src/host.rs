//! The host that a launcher works on: what of it a test can put something else in the place of.

use engine::Engines;

/// The host that a launcher works on.
#[derive(Debug, Clone)]
pub struct Host {
    /// The drivers of its engines.
    pub engines: Engines,
    /// Whether this process acts as root there.
    pub root: bool,
    /// The version of its CRIU. If it is not given, `criu` is asked.
    pub criu: Option<String>,
}

impl Host {
    /// The host that this process runs on.
    #[must_use]
    pub fn this() -> Self {
        Self { engines: Engines::here(), root: rustix::process::geteuid().is_root(), criu: None }
    }
}
