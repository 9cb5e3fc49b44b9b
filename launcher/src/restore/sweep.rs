//! Takes away what restores left: this one's after a failure, those of launchers that were killed before the next begins.
//!
//! ```text
//!   restore-<session>/ whose lock nobody holds
//!     ├─ no record ─────────────────────────────▶ nothing was made: the folder goes
//!     ├─ record that says "released" ───────────▶ its containers are their user's: left as they are
//!     └─ record ─▶ its engines end (their hooks fail closed), or are killed after a while
//!                    ├─ every member runs, is this session's, and no memory follows ─▶ it was released: left running
//!                    └─ otherwise ─▶ all its containers, processes and volumes are removed: none of the set runs
//!                         then session folder and restore folder go
//! ```
//!
//! A launcher can die in the middle of the release, when some hooks were told to go on and others were not: these kill
//! their tasks. So as long as it has not written down that all of them run, it is what runs that tells.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::time::Duration;

use coordinator::SessionId;
use engine::{EngineKind, Engines, Marks, Target, Volume, chain, kill, mounts::remove_folder, wait_gone};

use crate::leaving::{Volumes, remove_volumes};
use crate::observer::Observer;
use crate::workspace::{Purpose, Record, Workspace};

/// How long the engines of a dead launcher may take to notice.
const NOTICE: Duration = Duration::from_secs(15);

/// Takes away what dead launchers left below `work_dir`.
pub(crate) async fn sweep(engines: &Engines, work_dir: &Path, observer: &dyn Observer) -> io::Result<()> {
    for orphan in Workspace::orphans(work_dir, Purpose::Restore)? {
        let name = orphan.path().display().to_string();
        match orphan.read() {
            Ok(None) => orphan.remove()?,
            Ok(Some(record)) => sweep_one(engines, orphan, record, observer).await?,
            Err(error) => observer.warning(&format!("what the killed restore in {name} left cannot be known: {error}")),
        }
    }
    Ok(())
}

async fn sweep_one(engines: &Engines, orphan: Workspace, record: Record, observer: &dyn Observer) -> io::Result<()> {
    let session = record.session;
    if let Some(since) = record.since() {
        let marks = Marks { id: None, folder: Some(orphan.path().to_owned()), since };
        end_engines(marks).await?;
    }
    // Whose memory followed lost it with the launcher.
    let follows = record.targets.iter().any(|target| target.follows.is_some());
    if record.released || !follows && all_run(engines, &record).await {
        observer.warning(&format!(
            "session {session} was released before its launcher was killed: its set is left running"
        ));
    } else {
        observer.warning(&format!("session {session} was killed before its set ran: what it left is removed"));
        let leftovers = remove_all(engines, &record).await;
        if !leftovers.is_empty() {
            observer.warning(&format!("not everything could be removed: {}", leftovers.join("; ")));
            return orphan.leave();
        }
    }
    remove_folders(&record.run_root, session, orphan)
}

/// Waits for the engines of a dead launcher to notice, and kills those that do not.
pub(crate) async fn end_engines(marks: Marks) -> io::Result<()> {
    let ended = tokio::task::spawn_blocking(move || if wait_gone(&marks, NOTICE) { Ok(()) } else { kill(&marks) });
    ended.await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Removes the folder of a dead session, and what its launcher had to work in.
pub(crate) fn remove_folders(run_root: &Path, session: SessionId, orphan: Workspace) -> io::Result<()> {
    match remove_folder(&run_root.join(session.to_string())) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => orphan.remove(),
    }
}

async fn all_run(engines: &Engines, record: &Record) -> bool {
    for target in &record.targets {
        match engines.get(target.engine).find(target).await {
            Ok(Some(found)) if found.ours && found.running => {}
            Ok(_) | Err(_) => return false,
        }
    }
    true
}

/// Removes everything that a restore made; gives what could not be, in words.
pub(crate) async fn remove_all(engines: &Engines, record: &Record) -> Vec<String> {
    let mut leftovers = Vec::new();
    // Nothing that this boot did not start can be meant when there was another boot since.
    let marks = record.since().map(|since| Marks { id: None, folder: None, since });
    let marks = marks.unwrap_or_else(Marks::nothing);
    let marks = &marks;
    let removals = record
        .targets
        .iter()
        .map(|target| async move { (target, engines.get(target.engine).remove(target, marks).await) });
    for (target, removed) in futures_util::future::join_all(removals).await {
        if let Err(error) = removed {
            leftovers.push(format!("container {} of member {}: {}", target.container, target.member, chain(&error)));
        }
    }
    // Only now: podman keeps a volume that a container has.
    let kinds: BTreeSet<EngineKind> = record.targets.iter().filter(has_volumes).map(|target| target.engine).collect();
    for engine in kinds {
        match engines.get(engine).volumes().await {
            Ok(known) => {
                let kept = remove_volumes(engines, &made(engine, &known, record.session)).await.into_iter();
                leftovers.extend(kept.map(|(volume, error)| format!("volume {volume}: {}", chain(&error))));
            }
            Err(error) => leftovers.push(format!("volumes of {engine}: {}", chain(&error))),
        }
    }
    leftovers
}

fn has_volumes(target: &&Target) -> bool {
    !target.volumes.is_empty()
}

/// The volumes that the restore of this session made. One of the same name that somebody else made
/// meanwhile has no such label.
fn made(engine: EngineKind, known: &[Volume], session: SessionId) -> Volumes {
    known.iter().filter(|volume| volume.made_by(session)).map(|volume| (engine, volume.name.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::MARK;

    #[test]
    fn only_volumes_of_this_very_restore_are_removed() {
        let session = |byte: u8| SessionId::from_bytes([byte; 16]);
        let marked = |name: &str, mark: &str| {
            let labels = [(MARK.to_owned(), mark.to_owned()), ("a".to_owned(), "b".to_owned())].into();
            Volume { labels, ..Volume::named(name) }
        };
        let (ours, another) = (session(7).to_string(), session(8).to_string());
        let known = [
            marked("ours", &ours),
            marked("of-another-restore", &another),
            marked("odd", ""),
            Volume::named("a-users"),
            Volume { options: [(MARK.to_owned(), ours.clone())].into(), ..Volume::named("option") },
        ];
        let ours = Volumes::from([(EngineKind::Podman, "ours".to_owned())]);
        assert_eq!(made(EngineKind::Podman, &known, session(7)), ours);
        assert_eq!(made(EngineKind::Podman, &known, session(9)), Volumes::new());
    }
}
