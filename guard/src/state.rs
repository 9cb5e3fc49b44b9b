//! What a guard knows beyond its own life: a file, so that one that was killed goes on where it was.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use image_format::{ApplicationId, Digest, Epoch, MemberId};
use serde::{Deserialize, Serialize};

/// Checkpoints and failures that are remembered.
const REMEMBERED: usize = 512;

/// The state of the guard of one application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardState {
    version: u32,
    /// The application.
    pub application: ApplicationId,
    /// When it was guarded first, in milliseconds since 1970.
    pub since: u64,
    /// The checkpoints that were taken, the newest last.
    pub checkpoints: Vec<Taken>,
    /// When a member was lost, in milliseconds since 1970, the newest last.
    pub losses: Vec<u64>,
    /// Rollbacks that succeeded.
    pub rollbacks: u64,
    /// The last failure told from outside for which it was rolled back.
    #[serde(default)]
    pub failure: Option<i64>,
    /// The containers that it is made of, by the members that they are.
    #[serde(default)]
    pub members: BTreeMap<MemberId, String>,
    /// The named volumes that these containers mounted when they ran last. A rollback replaces them, also where a container is gone.
    #[serde(default)]
    pub volumes: BTreeSet<String>,
}

/// One checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// Its number.
    pub epoch: Epoch,
    /// Its index.
    pub digest: Digest,
    /// When it was begun, in milliseconds since 1970: not later than the instant of which it is.
    pub begun: u64,
}

impl GuardState {
    fn new(application: ApplicationId, now: SystemTime) -> Self {
        let (checkpoints, losses) = (Vec::new(), Vec::new());
        Self {
            version: 1,
            application,
            since: millis(now),
            checkpoints,
            losses,
            rollbacks: 0,
            failure: None,
            members: BTreeMap::new(),
            volumes: BTreeSet::new(),
        }
    }

    /// Notes a permanent checkpoint.
    pub(super) fn taken(&mut self, epoch: Epoch, digest: Digest, begun: SystemTime) {
        self.checkpoints.push(Taken { epoch, digest, begun: millis(begun) });
        forget(&mut self.checkpoints);
    }

    /// Notes that a member was lost.
    pub(super) fn lost(&mut self, now: SystemTime) {
        self.losses.push(millis(now));
        forget(&mut self.losses);
    }

    /// The time between what a checkpoint holds and the last loss: what a rollback to it undoes. Nothing is known of
    /// checkpoints that this guard did not take.
    #[must_use]
    pub fn undone_by(&self, digest: &Digest) -> Option<Duration> {
        let taken = self.checkpoints.iter().find(|taken| taken.digest == *digest)?;
        Some(Duration::from_millis(self.losses.last()?.saturating_sub(taken.begun)))
    }

    /// The mean time between losses so far, once there were two.
    #[must_use]
    pub fn mean_time_between_losses(&self) -> Option<Duration> {
        let (first, last) = (self.losses.first()?, self.losses.last()?);
        let between = u64::try_from(self.losses.len()).ok()?.checked_sub(1).filter(|between| *between > 0)?;
        Some(Duration::from_millis(last.saturating_sub(*first) / between))
    }
}

fn forget<T>(list: &mut Vec<T>) {
    if list.len() > REMEMBERED {
        list.drain(..list.len() - REMEMBERED);
    }
}

fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The file that it is kept in.
#[derive(Debug)]
pub(super) struct StateFile {
    path: PathBuf,
}

impl StateFile {
    pub fn new(state_dir: &Path, application: &ApplicationId) -> Self {
        Self { path: state_dir.join(format!("{application}.json")) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is known from before, if the application was guarded before.
    pub fn read(&self) -> io::Result<Option<GuardState>> {
        match fs::read(&self.path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A first state.
    pub fn begin(&self, application: &ApplicationId) -> GuardState {
        GuardState::new(application.clone(), SystemTime::now())
    }

    /// Replaces the file at once.
    pub fn write(&self, state: &GuardState) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        DirBuilder::new().mode(0o700).recursive(true).create(folder)?;
        let next = self.path.with_extension("json.next");
        let mut file: File = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&next)?;
        file.write_all(&serde_json::to_vec_pretty(state)?)?;
        file.sync_all()?;
        fs::rename(&next, &self.path)
    }
}

/// What the guard of an application knows, if there was one.
///
/// # Errors
/// A file that cannot be read.
pub fn guard_state(state_dir: &Path, application: &ApplicationId) -> io::Result<Option<GuardState>> {
    StateFile::new(state_dir, application).read()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_was_written_and_remembers_only_so_much() {
        let folder = tempfile::tempdir().unwrap();
        let application: ApplicationId = "ledger".parse().unwrap();
        let file = StateFile::new(&folder.path().join("guard"), &application);
        assert_eq!(file.read().unwrap(), None);
        let mut state = file.begin(&application);
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        for second in 0..600 {
            state.taken(Epoch(second), Digest::of(&second.to_le_bytes()), at(second));
        }
        state.lost(at(601));
        file.write(&state).unwrap();
        assert_eq!(file.read().unwrap().as_ref(), Some(&state));
        assert_eq!((state.checkpoints.len(), state.checkpoints[0].epoch), (512, Epoch(88)));
        assert_eq!(state.undone_by(&Digest::of(&599_u64.to_le_bytes())), Some(Duration::from_secs(2)));
        assert_eq!(state.undone_by(&Digest::of(b"another's")), None);
        assert_eq!(state.mean_time_between_losses(), None);
        state.lost(at(701));
        state.lost(at(901));
        assert_eq!(state.mean_time_between_losses(), Some(Duration::from_secs(150)));
        std::fs::write(file.path(), b"{").unwrap();
        assert!(file.read().is_err());
    }
}
