//! What to checkpoint, how, and where to.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use coordinator::{Deadlines, Fence, Listen, TlsFiles};
use engine::EngineKind;
use image_format::{ApplicationId, ChainLimits, Compression, MemberId};
use registry::sign::PrivateKey;
use registry::{Store, Tag, Trust, cancellable};
use tokio_util::sync::CancellationToken;

use crate::host::Host;
use crate::restore::options::WORK_DIR;

/// Where a global checkpoint becomes permanent.
#[derive(Debug, Clone)]
pub struct Destination {
    /// The store.
    pub store: Arc<dyn Store>,
    /// The same in the words of the person who asked, for whoever resumes.
    pub reference: String,
    /// The tag; `epoch-<N>` if not given.
    pub tag: Option<Tag>,
    /// Who signs; without it the global checkpoint is unsigned, and restored by nobody who asks for a signature.
    pub signer: Option<Signer>,
    /// Who may have signed the checkpoints before. What others put into the store is no predecessor and no base.
    pub trust: Trust,
}

impl Destination {
    /// The same, whose store is waited for no longer than until this is cancelled.
    pub fn until(&self, cancel: &CancellationToken) -> Self {
        Self { store: cancellable(Arc::clone(&self.store), cancel.clone()), ..self.clone() }
    }
}

/// Who signs, and what signatures call the image.
#[derive(Debug, Clone)]
pub struct Signer {
    /// The key.
    pub key: Arc<PrivateKey>,
    /// `docker-reference`; the repository's name with the tag if not given.
    pub identity: Option<String>,
}

/// A container that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerSpec {
    /// The member that it is; what its labels say if not given, and otherwise its name.
    pub id: Option<MemberId>,
    /// Its name or id.
    pub container: String,
    /// What runs it; the first of podman, Docker and runc that knows it if not given.
    pub engine: Option<EngineKind>,
    /// The members that must exist before this one; what its labels say if not given.
    pub depends_on: Option<Vec<MemberId>>,
    /// runc: the bundle, whose `config.json` is packed along.
    pub bundle: Option<PathBuf>,
    /// runc: whoever asks knows that the root filesystem, which is its maker's, is not taken along; without it the container is
    /// refused.
    pub without_rootfs: bool,
}

impl ContainerSpec {
    /// A container of which only the name is known.
    #[must_use]
    pub fn named(container: impl Into<String>) -> Self {
        Self {
            id: None,
            container: container.into(),
            engine: None,
            depends_on: None,
            bundle: None,
            without_rootfs: false,
        }
    }
}

/// Members that run on other hosts, whose launchers come to this one.
#[derive(Debug, Clone)]
pub struct RemoteMembers {
    /// Where they are heard.
    pub listen: Listen,
    /// Who they are.
    pub members: Vec<MemberId>,
}

/// A checkpoint that another host coordinates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinTarget {
    /// `HOST:PORT` of the coordinating host; the host is one that its certificate names.
    pub address: String,
    /// Certificate and key of each member, `{id}` in the paths standing for the member. Absolute, since hooks read them too.
    pub tls: TlsFiles,
    /// To take part in the next checkpoint and be done, also if it fails or the coordinating host refuses; otherwise whatever keeps
    /// this host from taking part is told, and tried again.
    pub once: bool,
}

/// Which way memory takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PageTransport {
    /// CRIU sends it over a socket whose end it is handed, and only what is not in the base is kept. Tasks stand frozen for the least time.
    #[default]
    Stream,
    /// CRIU sends it over TLS on loopback: for who must not send memory in the open even between two processes of root.
    Tls,
    /// CRIU writes it into files, as it does by itself.
    Disk,
}

impl PageTransport {
    /// All of them.
    pub const ALL: &[Self] = &[Self::Stream, Self::Tls, Self::Disk];

    /// As a person writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Tls => "tls",
            Self::Disk => "disk",
        }
    }
}

/// A text that is neither `stream`, `tls` nor `disk`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is stream, tls or disk")]
pub struct ParsePageTransportError;

impl FromStr for PageTransport {
    type Err = ParsePageTransportError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.iter().copied().find(|pages| pages.as_str() == text).ok_or(ParsePageTransportError)
    }
}

/// How to checkpoint.
#[derive(Debug, Clone)]
pub struct CheckpointOptions {
    /// The host whose containers are taken.
    pub host: Host,
    /// The application.
    pub application: ApplicationId,
    /// Its containers on this host; with none, all that run and bear the application's label.
    pub members: Vec<ContainerSpec>,
    /// The engine whose containers bear the label, where no members are named; every engine that has labels if not given.
    pub engine: Option<EngineKind>,
    /// Its members on other hosts, if there are any.
    pub elsewhere: Option<RemoteMembers>,
    /// End the containers, once the checkpoint is permanent.
    pub stop: bool,
    /// The `syncpoint-hook` binary, which CRIU runs.
    pub hook_program: PathBuf,
    /// Where sessions have their sockets. A short path: a socket's is at most 107 bytes.
    pub run_root: PathBuf,
    /// Where the tentative checkpoint is until it is permanent. Needs room for all members, packed.
    pub work_dir: PathBuf,
    /// When the session gives up: `hold` is the longest time that tasks stand frozen. Where another host coordinates, its times count, but for a
    /// `hold` that is longer than this one.
    pub deadlines: Deadlines,
    /// The right to act for the application, where that can be lost; hooks ask it, and so does whoever is about to set the tag.
    pub fence: Option<Fence>,
    /// Which way the memory of this host's members takes.
    pub pages: PageTransport,
    /// How layers are compressed.
    pub compression: Compression,
    /// When a member's chain of generations ends, and a new one begins.
    pub chain: ChainLimits,
    /// Keep a checkpoint that was taken and could not be sent, for [`finish`](super::finish).
    pub keep_unsent: bool,
    /// Begin a new chain of every member now: all of its pages are stored.
    pub rebase: bool,
    /// Transfers, and members that are packed, at the same time.
    pub jobs: usize,
    /// Cancelled, it ends the checkpoint: the application runs on, and nothing is tagged.
    pub cancel: CancellationToken,
}

impl CheckpointOptions {
    /// The containers with the application's label, which run on; `/run/syncpoint`, [`WORK_DIR`], thirty seconds to gather, ten of
    /// standing frozen, four transfers at a time.
    #[must_use]
    pub fn new(application: ApplicationId, hook_program: PathBuf) -> Self {
        Self {
            host: Host::this(),
            application,
            members: Vec::new(),
            engine: None,
            elsewhere: None,
            stop: false,
            hook_program,
            run_root: PathBuf::from("/run/syncpoint"),
            work_dir: PathBuf::from(WORK_DIR),
            deadlines: Deadlines {
                gather: std::time::Duration::from_secs(30),
                hold: std::time::Duration::from_secs(10),
            },
            fence: None,
            pages: PageTransport::default(),
            compression: Compression::default(),
            chain: ChainLimits::default(),
            keep_unsent: true,
            rebase: false,
            jobs: 4,
            cancel: CancellationToken::new(),
        }
    }
}
