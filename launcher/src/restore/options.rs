//! How to restore.

use std::collections::BTreeMap;
use std::path::PathBuf;

use coordinator::{Deadlines, Fence};
use engine::EngineKind;
use image_format::MemberId;
use registry::Trust;
use tokio_util::sync::CancellationToken;

use crate::host::Host;

/// Where dumps are while they are restored, unless it is said otherwise: for root alone, and not in memory.
pub const WORK_DIR: &str = "/var/lib/syncpoint";

/// How to restore.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// The host that the members come to.
    pub host: Host,
    /// The engine, for all members; otherwise the one that each dump was made with.
    pub engine: Option<EngineKind>,
    /// The `syncpoint-hook` binary, which CRIU runs.
    pub hook_program: PathBuf,
    /// Where sessions have their sockets. A short path: a socket's is at most 107 bytes.
    pub run_root: PathBuf,
    /// Where dumps are unpacked to. Needs room for all of them, and survives a reboot, so that what a killed restore
    /// left can be taken away afterwards.
    pub work_dir: PathBuf,
    /// When an attempt gives up.
    pub deadlines: Deadlines,
    /// The right to act for the application, where that can be lost; hooks ask it.
    pub fence: Option<Fence>,
    /// How often to try, at least once.
    pub attempts: u32,
    /// Whom to believe.
    pub trust: Trust,
    /// Container names other than the dumps'.
    pub names: BTreeMap<MemberId, String>,
    /// The bundles of runc's members.
    pub bundles: BTreeMap<MemberId, PathBuf>,
    /// Tasks run as soon as the memory is there that has to be; the rest follows, what they ask for first. The restore ends when all is
    /// there.
    pub lazy: bool,
    /// The program that holds memory that follows, too: called with [`KEEP`](crate::KEEP), it is to call [`keep`](crate::keep).
    pub keeper_program: PathBuf,
    /// Transfers at the same time.
    pub jobs: usize,
    /// Cancelled, it ends the restore: everything that was made is taken away, unless the members were released already.
    pub cancel: CancellationToken,
}

impl RestoreOptions {
    /// Three attempts, four transfers at a time, `/run/syncpoint` and [`WORK_DIR`].
    #[must_use]
    pub fn new(hook_program: PathBuf, trust: Trust) -> Self {
        Self {
            host: Host::this(),
            engine: None,
            hook_program,
            run_root: PathBuf::from("/run/syncpoint"),
            work_dir: PathBuf::from(WORK_DIR),
            deadlines: Deadlines::default(),
            fence: None,
            attempts: 3,
            trust,
            names: BTreeMap::new(),
            bundles: BTreeMap::new(),
            lazy: false,
            keeper_program: PathBuf::from("/proc/self/exe"),
            jobs: 4,
            cancel: CancellationToken::new(),
        }
    }
}
