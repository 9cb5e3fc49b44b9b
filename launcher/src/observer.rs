//! What a restore or a checkpoint tells whoever watches it.

use std::fmt;

use coordinator::{Hook, Step};
use image_format::MemberId;

/// A part of a restore or of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// The signature and the digests of the manifests are checked.
    Verify,
    /// The members' facts are read.
    Load,
    /// What killed restores left is taken away.
    Sweep,
    /// The whole set is checked against this machine.
    Preflight,
    /// The members' dumps, and the base images that are missing, are fetched. Nothing is started before all are here.
    Fetch,
    /// The members are restored together, for the so-manieth time.
    Session {
        /// Counted from 1.
        attempt: u32,
    },
    /// The members run, and the rest of their memory follows.
    Memory,
    /// Everything that was made is taken away again.
    CleanUp,
    /// The members are found, and what the checkpoint's place in its line is.
    Examine,
    /// The launchers of other hosts are awaited, or the one that coordinates them.
    Await,
    /// CRIU dumps the members, which meet at its hooks.
    Dump,
    /// Every member stands frozen, and what it wrote to files is taken.
    Capture,
    /// The tasks run on; the dumps are packed and sent.
    Pack,
    /// The index is put, signed, and tagged: the checkpoint becomes permanent.
    Commit,
    /// The containers are ended.
    Stop,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verify => f.write_str("verify"),
            Self::Load => f.write_str("load"),
            Self::Sweep => f.write_str("sweep"),
            Self::Preflight => f.write_str("preflight"),
            Self::Fetch => f.write_str("fetch"),
            Self::Session { attempt: 1 } => f.write_str("restore"),
            Self::Session { attempt } => write!(f, "restore, attempt {attempt}"),
            Self::Memory => f.write_str("running, memory follows"),
            Self::CleanUp => f.write_str("clean up"),
            Self::Examine => f.write_str("examine"),
            Self::Await => f.write_str("wait for other hosts"),
            Self::Dump => f.write_str("dump"),
            Self::Capture => f.write_str("capture"),
            Self::Pack => f.write_str("pack"),
            Self::Commit => f.write_str("commit"),
            Self::Stop => f.write_str("stop"),
        }
    }
}

/// What one member does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberStep {
    /// Its dump is being fetched: so many bytes in all, as they are stored.
    Fetching {
        /// Bytes of all its blobs.
        bytes: u64,
    },
    /// So many further bytes came.
    Received {
        /// Bytes since the last time.
        bytes: u64,
    },
    /// Its dump is here, or the memory that followed, and every digest was right.
    Fetched,
    /// Its base image is being pulled.
    Pulling {
        /// The image's name.
        image: String,
    },
    /// Its host is here, and ready.
    Joined {
        /// Its container.
        container: String,
    },
    /// Its engine was started.
    Started,
    /// It waits at a barrier.
    Arrived {
        /// The barrier's hook.
        hook: Hook,
    },
    /// It goes on from a barrier, for everybody came.
    Passed {
        /// The barrier's hook.
        hook: Hook,
    },
    /// Its tasks run.
    Running,
    /// Its dump is packed: so many bytes, as they are stored.
    Packed {
        /// Bytes of all its blobs.
        bytes: u64,
    },
    /// It is in the store, for which so many bytes had to be sent.
    Sent {
        /// Bytes.
        bytes: u64,
    },
    /// It does not come any further.
    Failed {
        /// Why, as a fragment.
        reason: String,
    },
}

impl From<Step> for MemberStep {
    fn from(step: Step) -> Self {
        match step {
            Step::Arrived(hook) => Self::Arrived { hook },
            Step::Passed(hook) => Self::Passed { hook },
            Step::Running => Self::Running,
            Step::Failed { reason } => Self::Failed { reason },
        }
    }
}

/// Is told how a restore or a checkpoint goes. Called from its own task: to be quick about it.
pub trait Observer: Send + Sync {
    /// A part begins.
    fn phase(&self, phase: Phase);
    /// A member does something.
    fn member(&self, member: &MemberId, step: MemberStep);
    /// Something is worth a person's attention, and does not stop it.
    fn warning(&self, warning: &str);
    /// Something is as it should be, and may interest a person.
    fn note(&self, note: &str);
}

/// The silent one.
impl Observer for () {
    fn phase(&self, _: Phase) {}
    fn member(&self, _: &MemberId, _: MemberStep) {}
    fn warning(&self, _: &str) {}
    fn note(&self, _: &str) {}
}
