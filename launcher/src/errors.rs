//! What the errors of a checkpoint and of a restore have in common: the part that failed, and the file.

use std::io;
use std::path::{Path, PathBuf};

use crate::observer::{Observer, Phase};

/// A file or folder of this program's own cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path:?} cannot be used")]
pub struct FileError {
    /// Which.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Says of which file an error is.
pub(crate) trait At<T> {
    /// At this file or folder.
    fn at(self, path: &Path) -> Result<T, FileError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, path: &Path) -> Result<T, FileError> {
        self.map_err(|source| FileError { path: path.to_owned(), source })
    }
}

/// An error that says in which part it happened.
pub(crate) trait OfPhase {
    /// What happened.
    type Kind;

    /// It happened in this part.
    fn of(phase: Phase, kind: Self::Kind) -> Self;
}

/// Announces a part, and says of its errors that they are that part's.
pub(crate) async fn in_phase<T, E: OfPhase>(
    observer: &dyn Observer,
    phase: Phase,
    work: impl Future<Output = Result<T, E::Kind>>,
) -> Result<T, E> {
    observer.phase(phase);
    of_phase(phase, work).await
}

/// The same without a word.
pub(crate) async fn of_phase<T, E: OfPhase>(
    phase: Phase,
    work: impl Future<Output = Result<T, E::Kind>>,
) -> Result<T, E> {
    work.await.map_err(|kind| E::of(phase, kind))
}
