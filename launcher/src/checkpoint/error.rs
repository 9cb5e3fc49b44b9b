//! Why a checkpoint failed: in which part, at which member and hook, and in whose words.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;

use coordinator::{Absent, AttendError, FenceError, FolderError, Hook, ListenError, RendezvousError, SessionId};
use engine::open_files::OpenFilesError;
use image_format::files::FilesError;
use image_format::{ApplicationId, Digest, Epoch, GlobalError, MemberId, PackError, TimelineError};
use registry::sign::SignError;
use registry::{CatalogueError, CopyError, ParseReferenceError, StoreError, Tag};
use tokio_util::sync::CancellationToken;

use super::members::MembersError;
use crate::errors::{FileError, OfPhase};
use crate::observer::Phase;
use crate::pages::PagesError;
use crate::restore::error::listed;
use crate::restore::preflight::Problem;

/// A checkpoint that failed. The application runs on as before, but for what [`CheckpointErrorKind::NotRunning`] says, and nothing
/// is tagged, but for what [`CheckpointErrorKind::Stop`] says.
#[derive(Debug)]
#[non_exhaustive]
pub struct CheckpointError {
    /// The part that it failed in.
    pub phase: Phase,
    /// Why.
    pub kind: Box<CheckpointErrorKind>,
    /// The member that it failed at, if it was one.
    pub member: Option<MemberId>,
    /// CRIU's hook that it failed at, if it was one.
    pub hook: Option<Hook>,
    /// The error lines of that member's CRIU log; few and short.
    pub log_lines: Vec<String>,
    /// The tentative checkpoint is whole, and [`finish`](super::finish) can make it permanent.
    pub resumable: Option<SessionId>,
}

/// Why a checkpoint failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointErrorKind {
    /// Dumping takes root.
    #[error("this is not root, and only root can freeze and read the processes of containers")]
    NotRoot,
    /// It is not known who the members are.
    #[error(transparent)]
    Members(#[from] MembersError),
    /// What would be checkpointed could not be restored.
    #[error("{}", listed("a checkpoint of it could not be restored", problems))]
    NotRestorable {
        /// Everything that stands in the way.
        problems: Vec<Problem>,
    },
    /// Another checkpoint or a restore is at it.
    #[error("{what} is being checkpointed or restored by another syncpoint at this moment")]
    Busy {
        /// What, in words.
        what: String,
    },
    /// There are too many of them.
    #[error(transparent)]
    OpenFiles(#[from] OpenFilesError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is in the store is not known.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// The tag names a checkpoint that this one must not replace.
    #[error("the tag {tag} names epoch {found} of {application}, and is not moved to {epoch}")]
    Newer {
        /// The tag.
        tag: Tag,
        /// The application there.
        application: ApplicationId,
        /// The epoch there.
        found: Epoch,
        /// The epoch of this checkpoint.
        epoch: Epoch,
    },
    /// What the tag names now is not known to be of the line.
    #[error("the tag {tag} is taken, and is not moved")]
    Taken {
        /// The tag.
        tag: Tag,
        /// What is there.
        #[source]
        source: Box<CatalogueError>,
    },
    /// No number comes after that of the newest checkpoint.
    #[error("the newest checkpoint of {application} has the last number there is, {}", u64::MAX)]
    LastEpoch {
        /// The application.
        application: ApplicationId,
    },
    /// The tag that follows from the epoch is none.
    #[error(transparent)]
    Tag(#[from] ParseReferenceError),
    /// A file or folder of this program's own.
    #[error(transparent)]
    File(#[from] FileError),
    /// CRIU's configuration for a container cannot be put into its place.
    #[error("the CRIU configuration {path:?} of member {member} cannot be used")]
    Attach {
        /// The member.
        member: MemberId,
        /// The file that its runtime reads.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The session cannot be.
    #[error(transparent)]
    Session(#[from] RendezvousError),
    /// The system has no random numbers.
    #[error("the system has no random numbers")]
    Random,
    /// The session was aborted.
    #[error("no checkpoint was taken, and the application runs on: {reason}")]
    Aborted {
        /// Why, as a fragment that names the member.
        reason: String,
    },
    /// The session was aborted before anything was frozen, since engines do not hand on to CRIU what its memory goes through.
    #[error("no checkpoint was taken, and the application runs on: {reason}")]
    NotHanded {
        /// Whose.
        members: Vec<MemberId>,
        /// As for [`CheckpointErrorKind::Aborted`].
        reason: String,
    },
    /// The session was aborted, and members do not run any more.
    #[error("no checkpoint was taken, and {} any more: {reason}", do_not_run(members))]
    NotRunning {
        /// The members; the first is the one that the reason begins with.
        members: Vec<MemberId>,
        /// Why it was aborted.
        reason: String,
    },
    /// A member's files could not be archived.
    #[error("the files of member {member} cannot be archived")]
    Files {
        /// The member.
        member: MemberId,
        /// Why.
        #[source]
        source: FilesError,
    },
    /// A member's dump could not be packed.
    #[error("the dump of member {member} cannot be packed")]
    Pack {
        /// The member.
        member: MemberId,
        /// Why.
        #[source]
        source: Box<PackError>,
    },
    /// A member's engine failed after its tasks ran on.
    #[error("the dump of member {member} is not whole: {reason}")]
    Engine {
        /// The member.
        member: MemberId,
        /// Why.
        reason: String,
    },
    /// A member could not be sent.
    #[error("member {member} cannot be sent")]
    Send {
        /// The member.
        member: MemberId,
        /// Why.
        #[source]
        source: CopyError,
    },
    /// The index cannot be made of the members.
    #[error("the members make no global checkpoint")]
    Global(#[from] GlobalError),
    /// Its timeline cannot be written.
    #[error("the timeline")]
    Timeline(#[from] TimelineError),
    /// It cannot be signed.
    #[error("the global checkpoint cannot be signed")]
    Sign(#[from] SignError),
    /// It is permanent, but a container that was to end did not.
    #[error("the checkpoint {digest} is permanent, but its containers were not all stopped")]
    Stop {
        /// The global checkpoint.
        digest: Digest,
        /// Why.
        #[source]
        source: engine::EngineError,
    },
    /// Members of other hosts cannot be heard.
    #[error("no other host can be heard")]
    Listen(#[from] ListenError),
    /// Members of other hosts did not come.
    #[error("nothing was touched")]
    Absent {
        /// Who.
        source: Absent,
    },
    /// A member of another host failed after the tasks ran on.
    #[error("member {member} failed on its own host: {reason}")]
    Elsewhere {
        /// The member.
        member: MemberId,
        /// Its host's words.
        reason: String,
    },
    /// What the host of a member says is in the store is not, or is not that member.
    #[error("the host of member {member} says that it is stored, but {reason}")]
    NotStored {
        /// The member.
        member: MemberId,
        /// What is wrong.
        reason: String,
    },
    /// The coordinating host cannot be joined, or refuses.
    #[error(transparent)]
    Join(#[from] AttendError),
    /// The coordinating host gave up before it began.
    #[error("the checkpoint did not begin: {reason}")]
    NotBegun {
        /// Its words.
        reason: String,
    },
    /// The coordinating host wants something that this one does not do.
    #[error("the checkpoint goes to {theirs}, but this host sends memory to {ours} and nowhere else")]
    OtherStore {
        /// Where the coordinating host wants it.
        theirs: String,
        /// What was said here.
        ours: String,
    },
    /// A container is another one than it was when its host joined.
    #[error("the container of member {member} changed while the others were awaited")]
    Changed {
        /// The member.
        member: MemberId,
    },
    /// The folder of the session cannot be made.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The tasks ran on, and the checkpoint did not become permanent.
    #[error("the checkpoint is not permanent, by the word of the coordinating host: {reason}")]
    NotPermanent {
        /// Its words.
        reason: String,
    },
    /// Somebody newer acts for the application.
    #[error(transparent)]
    Fenced(#[from] FenceError),
    /// Memory cannot come over a socket.
    #[error(transparent)]
    Pages(#[from] PagesError),
    /// The memory of a member did not come whole.
    #[error("the memory of member {member} did not come whole")]
    Stream {
        /// Which.
        member: MemberId,
        /// Why.
        #[source]
        source: PagesError,
    },
    /// There is no tentative checkpoint of this name.
    #[error("there is no unfinished checkpoint {session} in {path:?}, or another syncpoint is at it")]
    NothingToResume {
        /// The name.
        session: SessionId,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A checkpoint that was taken without a key is to be signed, and none of the keys signed its base.
    #[error(
        "the unfinished checkpoint shares pages with {base}, which no key vouches for ({reason}): a signature would vouch \
         for those pages too"
    )]
    UnsignedBase {
        /// The global checkpoint before it.
        base: Digest,
        /// What is wrong with its signatures.
        reason: String,
    },
    /// A task of this program ended unexpectedly.
    #[error("a task ended unexpectedly")]
    Task(#[from] tokio::task::JoinError),
    /// It was cancelled.
    #[error("the checkpoint was cancelled; the application runs on")]
    Cancelled,
}

impl OfPhase for CheckpointError {
    type Kind = CheckpointErrorKind;

    fn of(phase: Phase, kind: CheckpointErrorKind) -> Self {
        Self::new(phase, kind)
    }
}

impl CheckpointError {
    pub(crate) fn new(phase: Phase, kind: impl Into<CheckpointErrorKind>) -> Self {
        Self { phase, kind: Box::new(kind.into()), member: None, hook: None, log_lines: Vec::new(), resumable: None }
    }

    /// What a store said when it was not to be waited for any longer is that.
    pub(super) fn or_cancelled(mut self, cancel: &CancellationToken) -> Self {
        let of_store = matches!(
            *self.kind,
            CheckpointErrorKind::Store(_)
                | CheckpointErrorKind::Catalogue(_)
                | CheckpointErrorKind::Taken { .. }
                | CheckpointErrorKind::Pack { .. }
                | CheckpointErrorKind::Send { .. }
                | CheckpointErrorKind::Sign(_)
                | CheckpointErrorKind::NotStored { .. }
        );
        if of_store && cancel.is_cancelled() {
            *self.kind = CheckpointErrorKind::Cancelled;
        }
        self
    }

    /// What to do about it, where that can be said.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match &*self.kind {
            CheckpointErrorKind::NotRoot => Some("run it as root".to_owned()),
            CheckpointErrorKind::Members(MembersError::Nobody { .. }) => {
                Some("name the containers, or give them the label when they are made".to_owned())
            }
            CheckpointErrorKind::Members(MembersError::Root { .. }) => Some(
                "run it with podman; or, if it writes nothing there or its files are cared for elsewhere, say --without-rootfs \
                 MEMBER, in a plan without-rootfs = true"
                    .to_owned(),
            ),
            CheckpointErrorKind::NotRestorable { problems } => {
                let hint = |problem: &Problem| match problems.as_slice() {
                    [only] => only.hint(),
                    _ => format!("{problem}: {}", problem.hint()),
                };
                Some(problems.iter().map(hint).collect::<Vec<_>>().join("; "))
            }
            CheckpointErrorKind::OpenFiles(_) => Some(OpenFilesError::HINT.to_owned()),
            CheckpointErrorKind::Busy { .. } => Some("wait for it, or stop it".to_owned()),
            CheckpointErrorKind::Absent { .. } => Some("run `syncpoint join` on the hosts of these members".to_owned()),
            CheckpointErrorKind::OtherStore { .. } => {
                Some("name the same repository with --to on both hosts".to_owned())
            }
            CheckpointErrorKind::NotHanded { .. } => Some("--pages tls needs nothing of engines".to_owned()),
            CheckpointErrorKind::Newer { .. } => Some("name another tag".to_owned()),
            CheckpointErrorKind::Taken { .. } => {
                Some("name another tag, or give the public key of whoever signed it with --key".to_owned())
            }
            CheckpointErrorKind::UnsignedBase { .. } => {
                Some("resume it without --sign-by, or take a new checkpoint with the key".to_owned())
            }
            CheckpointErrorKind::LastEpoch { .. } => {
                Some("remove that checkpoint, or begin a new line in another repository".to_owned())
            }
            _ => None,
        }
    }
}

fn do_not_run(members: &[MemberId]) -> String {
    match members {
        [member] => format!("member {member} does not run"),
        members => {
            format!("members {} do not run", members.iter().map(MemberId::as_str).collect::<Vec<_>>().join(", "))
        }
    }
}

impl fmt::Display for CheckpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)
    }
}

impl Error for CheckpointError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.kind.source()
    }
}
