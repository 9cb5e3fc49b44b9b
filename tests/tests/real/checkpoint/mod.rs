//! `syncpoint checkpoint` of applications that run: one instant of all of it, or none.

mod criu_config;
mod engines;
mod exchange;
mod frozen;
mod hosts;
pub mod instant;
mod line;
mod restorable;
mod room;
mod sparse;
mod store;

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

use syncpoint_tests::syncpoint;

use crate::setup::WorkFolder;

/// How often a test does what must never fail: `SYNCPOINT_ROUNDS`, or 20.
fn rounds() -> u64 {
    let rounds = std::env::var("SYNCPOINT_ROUNDS").ok();
    rounds.map_or(20, |rounds| rounds.parse().expect("SYNCPOINT_ROUNDS is a number"))
}

/// An OCI layout as the store, beside a work folder of its own.
#[derive(Debug)]
pub struct Layout(WorkFolder);

impl Layout {
    pub fn new() -> Self {
        Self(WorkFolder::new())
    }

    /// A path beside the store.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `oci:DIR`.
    pub fn store(&self) -> String {
        format!("oci:{}", self.path("store").display())
    }

    pub fn tag(&self, epoch: u64) -> String {
        format!("{}:epoch-{epoch}", self.store())
    }

    pub fn syncpoint<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = syncpoint(arguments);
        command.arg("--work-dir").arg(self.path("work"));
        command
    }

    /// `syncpoint checkpoint` of an application, unsigned and not compressed.
    pub fn checkpoint(&self, application: &str, more: &[&str]) -> Command {
        let mut command = self.syncpoint(["checkpoint", "--application", application, "--to", &self.store()]);
        command.args(["--unsigned", "--compression", "none"]).args(more);
        command
    }
}
