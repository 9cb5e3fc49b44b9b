//! Unfinished checkpoints: those that can be finished are shown, the others are taken away.

use std::io;
use std::path::Path;

use coordinator::SessionId;
use engine::{Marks, Ticks};
use image_format::{ApplicationId, Epoch};

use super::record::Tentative;
use crate::observer::Observer;
use crate::restore::sweep::{end_engines, remove_folders};
use crate::workspace::{Purpose, Workspace};

/// A checkpoint that was taken and is not permanent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResumableCheckpoint {
    /// Its name.
    pub session: SessionId,
    /// The application.
    pub application: ApplicationId,
    /// The number that it began with.
    pub epoch: Epoch,
    /// Where it was to go.
    pub to: String,
}

/// Checkpoints below `work_dir` that are whole, and that nobody is working at: what [`finish`](super::finish) can finish.
///
/// # Errors
/// The folder cannot be read.
pub fn resumable(work_dir: &Path) -> io::Result<Vec<ResumableCheckpoint>> {
    let mut pending = Vec::new();
    for orphan in Workspace::orphans(work_dir, Purpose::Checkpoint)? {
        // One that is not to be read is told of by the next checkpoint.
        let read = orphan.read::<Tentative>().ok().flatten();
        if let Some(Tentative { session, application, epoch, to, packed: true, .. }) = read {
            pending.push(ResumableCheckpoint { session, application, epoch, to });
        }
    }
    Ok(pending)
}

/// Takes away what dead launchers left below `work_dir`. What can be resumed stays.
pub(super) async fn sweep(work_dir: &Path, observer: &dyn Observer) -> io::Result<()> {
    for orphan in Workspace::orphans(work_dir, Purpose::Checkpoint)? {
        let name = orphan.path().display().to_string();
        match orphan.read::<Tentative>() {
            Ok(None) => orphan.remove()?,
            Ok(Some(tentative)) if tentative.packed => observer.warning(&format!(
                "the checkpoint {} of {} was not finished; `syncpoint checkpoint --resume {}` can do it",
                tentative.epoch, tentative.application, tentative.session
            )),
            Ok(Some(tentative)) => sweep_one(orphan, &tentative, observer).await?,
            Err(error) => {
                observer.warning(&format!("what the killed checkpoint in {name} left cannot be known: {error}"))
            }
        }
    }
    Ok(())
}

async fn sweep_one(orphan: Workspace, tentative: &Tentative, observer: &dyn Observer) -> io::Result<()> {
    observer.warning(&format!("session {} was killed: what it left is removed", tentative.session));
    // podman's members write into a pipe that nobody reads, runc's into the folder: both end.
    let marks = Marks { id: None, folder: Some(orphan.path().to_owned()), since: Ticks::default() };
    end_engines(marks).await?;
    remove_folders(&tentative.run_root, tentative.session, orphan)
}
