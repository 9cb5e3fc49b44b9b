//! Why a restore failed: in which part, at which member and hook, and in whose words.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use coordinator::{Hook, RendezvousError};
use engine::{EngineError, open_files::OpenFilesError};
use image_format::{MemberId, UnpackError};
use registry::StoreError;
use registry::sign::Finding;
use tokio_util::sync::CancellationToken;

use crate::errors::{FileError, OfPhase};
use crate::memory::LazyError;
use crate::observer::Phase;
use crate::restore::preflight::Problem;
use crate::restore::set::LoadError;

/// A restore that failed. Nothing of the set runs, and everything that was made is removed, but for the `leftovers`.
#[derive(Debug)]
#[non_exhaustive]
pub struct RestoreError {
    /// The part that it failed in.
    pub phase: Phase,
    /// Why.
    pub kind: Box<RestoreErrorKind>,
    /// The member that it failed at, if it was one.
    pub member: Option<MemberId>,
    /// CRIU's hook that it failed at, if it was one.
    pub hook: Option<Hook>,
    /// The error lines of that member's CRIU log; few and short.
    pub log_lines: Vec<String>,
    /// What could not be taken away, in words. The next restore with the same folders tries again.
    pub leftovers: Vec<String>,
}

/// Why a restore failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreErrorKind {
    /// Nobody to believe: no key was given.
    #[error("no key was given to verify with")]
    NoKeys,
    /// No signature by a key that is believed, or something is wrong with what is signed.
    #[error("{}", listed("the checkpoint is not to be trusted", findings))]
    Untrusted {
        /// Everything that was found.
        findings: Vec<Finding>,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is no checkpoint, or a damaged one.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It has too many members for this process.
    #[error(transparent)]
    OpenFiles(#[from] OpenFilesError),
    /// A volume of a member cannot be made, or filled.
    #[error("the volume {volume} of member {member} cannot be made")]
    Volume {
        /// The member.
        member: MemberId,
        /// The volume's name.
        volume: String,
        /// Why.
        #[source]
        source: EngineError,
    },
    /// An image does not have what it says it has.
    #[error("the image of member {member} has no content of its volume {volume}")]
    NoContent {
        /// The member.
        member: MemberId,
        /// The volume's name.
        volume: String,
    },
    /// This machine is not fit for the set.
    #[error("{}", listed("the set cannot be restored here", problems))]
    Preflight {
        /// Everything that is in the way.
        problems: Vec<Problem>,
    },
    /// A dump could not be fetched whole.
    #[error("the dump of member {member} cannot be fetched")]
    Fetch {
        /// The member.
        member: MemberId,
        /// Why.
        #[source]
        source: Box<UnpackError>,
    },
    /// A base image could not be pulled.
    #[error("the base image {image} of member {member} cannot be pulled")]
    Pull {
        /// The member.
        member: MemberId,
        /// The image's name.
        image: String,
        /// Why.
        #[source]
        source: EngineError,
    },
    /// The name of a base image stands for another image by now.
    #[error("the base image {image} of member {member} is {found}, but the container was made from {expected}")]
    OtherImage {
        /// The member.
        member: MemberId,
        /// The image's name.
        image: String,
        /// The id that was pulled.
        found: String,
        /// The id that it must have.
        expected: String,
    },
    /// A file or folder of this program's own.
    #[error(transparent)]
    File(#[from] FileError),
    /// The bundle for a member of runc could not be made.
    #[error("the bundle of member {member} cannot be made")]
    Bundle {
        /// The member.
        member: MemberId,
        /// Why.
        #[source]
        source: engine::BundleError,
    },
    /// The memory of a member that ran did not follow.
    #[error("the memory of member {member} did not follow: no member runs any more")]
    Memory {
        /// The member.
        member: MemberId,
        /// Why.
        #[source]
        source: Arc<LazyError>,
    },
    /// What memory follows by cannot be made.
    #[error("the memory of member {member} cannot follow")]
    Lazy {
        /// The member.
        member: MemberId,
        /// Why.
        #[source]
        source: LazyError,
    },
    /// The session cannot be.
    #[error(transparent)]
    Session(#[from] RendezvousError),
    /// The system has no random numbers.
    #[error("the system has no random numbers")]
    Random,
    /// Every attempt failed. The last one's reason.
    #[error("the set was not restored{}: {reason}", after(*attempts))]
    Aborted {
        /// How many.
        attempts: u32,
        /// Why, as a fragment that names the member.
        reason: String,
    },
    /// It was cancelled.
    #[error("the restore was cancelled")]
    Cancelled,
}

impl OfPhase for RestoreError {
    type Kind = RestoreErrorKind;

    fn of(phase: Phase, kind: RestoreErrorKind) -> Self {
        Self::new(phase, kind)
    }
}

impl RestoreError {
    /// What went wrong in a phase, of which no member is known to be the cause.
    pub fn new(phase: Phase, kind: impl Into<RestoreErrorKind>) -> Self {
        Self {
            phase,
            kind: Box::new(kind.into()),
            member: None,
            hook: None,
            log_lines: Vec::new(),
            leftovers: Vec::new(),
        }
    }

    /// What a store said when it was not to be waited for any longer is that.
    pub(crate) fn or_cancelled(mut self, cancel: &CancellationToken) -> Self {
        let of_store = matches!(
            *self.kind,
            RestoreErrorKind::Store(_)
                | RestoreErrorKind::Load(_)
                | RestoreErrorKind::Untrusted { .. }
                | RestoreErrorKind::Fetch { .. }
        );
        if of_store && cancel.is_cancelled() {
            *self.kind = RestoreErrorKind::Cancelled;
        }
        self
    }

    /// What to do about it, where that can be said.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match &*self.kind {
            RestoreErrorKind::NoKeys => {
                Some("give the key that it was signed with; --insecure-no-verify runs whatever is there".to_owned())
            }
            RestoreErrorKind::Untrusted { findings } => {
                findings.iter().max_by_key(|finding| finding.severity()).map(|finding| finding.hint().to_owned())
            }
            RestoreErrorKind::Preflight { problems } => problems.first().map(Problem::hint),
            RestoreErrorKind::OpenFiles(_) => Some(OpenFilesError::HINT.to_owned()),
            RestoreErrorKind::Fetch { .. } => Some("`syncpoint verify` lists all that is damaged".to_owned()),
            RestoreErrorKind::Memory { .. } => Some(
                "restore it again once the store answers; without --lazy all memory is fetched before anything runs"
                    .to_owned(),
            ),
            RestoreErrorKind::Lazy { .. } => Some("restore it without --lazy".to_owned()),
            RestoreErrorKind::OtherImage { expected, .. } => Some(format!("load the image {expected}")),
            _ => None,
        }
    }
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)
    }
}

impl Error for RestoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.kind.source()
    }
}

/// A headline and everything below it.
pub(crate) fn listed(headline: &str, all: &[impl fmt::Display]) -> String {
    let lines: Vec<String> = all.iter().map(ToString::to_string).collect();
    format!("{headline}: {}", lines.join("; "))
}

/// ` in 3 attempts`, where that is worth telling.
fn after(attempts: u32) -> String {
    if attempts > 1 { format!(" in {attempts} attempts") } else { String::new() }
}
