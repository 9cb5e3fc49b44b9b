//! The folder of one restore or checkpoint: its files while they are needed, and the record by which its leftovers can be
//! taken away, or the work be finished.
//!
//! ```text
//! <work_dir>/restores.lock            held while a folder is made or looked for
//! <work_dir>/restore-<session>/       0700
//!   lock                              held as long as its launcher lives
//!   record.json                       written before the first container is made
//!   <member>.tar                      podman: the archive, 0600
//!   <member>.d/{images,bundle,work}   runc; podman has only the last, if memory follows
//! <work_dir>/checkpoint-<session>/    0700
//!   lock, record.json                 the same
//!   <member>.conf                     CRIU's configuration while the member is dumped
//!   <member>.d/{images,work}          runc
//!   <member>.files/                   what was captured while the members stood frozen
//!   store/                            an OCI layout: the tentative checkpoint
//! ```
//!
//! A folder without a record made nothing. One whose lock nobody holds belongs to a launcher that is dead.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use coordinator::SessionId;
use engine::{Target, Ticks, mounts::remove_folder};
use image_format::MemberId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Makes the folder for sockets and claims. Gives its absolute path without links, since that path
/// stands in CRIU's configuration.
pub fn make_run_root(path: &Path) -> io::Result<PathBuf> {
    let made = DirBuilder::new().mode(0o700).recursive(true).create(path);
    made.and_then(|()| path.canonicalize())
}

/// What a folder is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Restore,
    Checkpoint,
}

impl Purpose {
    fn prefix(self) -> &'static str {
        match self {
            Self::Restore => "restore-",
            Self::Checkpoint => "checkpoint-",
        }
    }
}

const LOCK: &str = "lock";
const ALL: &str = "restores.lock";
const RECORD: &str = "record.json";
const VERSION: u32 = 1;
/// Far more than a record of some thousand members has.
const LARGEST_RECORD: u64 = 64 << 20;

/// A record as it is on disk.
#[derive(Debug, Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    #[serde(flatten)]
    record: T,
}

/// What a restore may have made, for whoever has to take it away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) session: SessionId,
    pub(crate) run_root: PathBuf,
    /// The boot that `since` counts from.
    boot: String,
    since: Ticks,
    pub(crate) targets: Vec<Target>,
    /// Every member was seen to run: from here on its containers are its user's, whatever becomes of them.
    pub(crate) released: bool,
}

impl Record {
    pub(crate) fn new(session: SessionId, run_root: &Path, targets: Vec<Target>) -> Self {
        Self {
            session,
            run_root: run_root.to_owned(),
            boot: boot_id(),
            since: Ticks::of_this_process(),
            targets,
            released: false,
        }
    }

    /// Since when processes can be this restore's; `None` if none of them can be there, for the machine was started again.
    pub(crate) fn since(&self) -> Option<Ticks> {
        (self.boot == boot_id()).then_some(self.since)
    }
}

/// A folder that its process holds.
#[derive(Debug)]
pub(crate) struct Workspace {
    dir: PathBuf,
    _lock: File,
    /// With a record the folder must outlive a launcher that could not clean up.
    recorded: bool,
}

impl Workspace {
    /// Makes one.
    pub(crate) fn create(work_dir: &Path, purpose: Purpose, session: SessionId) -> io::Result<Self> {
        DirBuilder::new().mode(0o700).recursive(true).create(work_dir)?;
        // CRIU and the engines run elsewhere: every path that they get is absolute.
        let work_dir = work_dir.canonicalize()?;
        let _making = hold(&work_dir)?;
        let dir = work_dir.join(format!("{}{session}", purpose.prefix()));
        DirBuilder::new().mode(0o700).create(&dir)?;
        let lock = OpenOptions::new().write(true).create_new(true).mode(0o600).open(dir.join(LOCK))?;
        lock.try_lock().map_err(io::Error::from)?;
        Ok(Self { dir, _lock: lock, recorded: false })
    }

    /// Takes over those of dead launchers.
    pub(crate) fn orphans(work_dir: &Path, purpose: Purpose) -> io::Result<Vec<Self>> {
        let work_dir = match work_dir.canonicalize() {
            Ok(work_dir) => work_dir,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let _looking = hold(&work_dir)?;
        let mut orphans = Vec::new();
        for entry in std::fs::read_dir(&work_dir)? {
            let name = entry?.file_name();
            let session = name.to_str().and_then(|name| name.strip_prefix(purpose.prefix()));
            if session.is_none_or(|session| session.parse::<SessionId>().is_err()) {
                continue;
            }
            let dir = work_dir.join(&name);
            // The folder above may be everybody's, as /var/tmp is; what another user puts there is not for us to believe.
            if !is_private(&dir)? {
                continue;
            }
            // A launcher can have died before it made the file.
            let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(dir.join(LOCK))?;
            match lock.try_lock() {
                Ok(()) => orphans.push(Self { recorded: dir.join(RECORD).exists(), dir, _lock: lock }),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        Ok(orphans)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    /// Where a member's files are.
    pub(crate) fn archive(&self, member: &MemberId) -> PathBuf {
        self.dir.join(format!("{member}.tar"))
    }

    pub(crate) fn folder(&self, member: &MemberId) -> PathBuf {
        self.dir.join(format!("{member}.d"))
    }

    /// Where CRIU works when a member's memory follows; made if need be.
    pub(crate) fn make_work(&self, member: &MemberId) -> io::Result<PathBuf> {
        let work = self.folder(member).join("work");
        DirBuilder::new().mode(0o700).recursive(true).create(&work)?;
        Ok(work)
    }

    /// What a checkpoint captures of a member's files.
    pub(crate) fn files(&self, member: &MemberId) -> PathBuf {
        self.dir.join(format!("{member}.files"))
    }

    /// What CRIU reads while a member is dumped.
    pub(crate) fn criu_config(&self, member: &MemberId) -> PathBuf {
        self.dir.join(format!("{member}.conf"))
    }

    /// The layout of a tentative checkpoint.
    pub(crate) fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    /// Notes what is going to be made, or was; on disk once this returns.
    pub(crate) fn write<T: Serialize>(&mut self, record: &T) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
        file.write_all(&serde_json::to_vec(&Versioned { version: VERSION, record })?)?;
        file.as_file().sync_all()?;
        file.persist(self.dir.join(RECORD)).map_err(|error| error.error)?;
        File::open(&self.dir)?.sync_all()?;
        self.recorded = true;
        Ok(())
    }

    /// What was noted; `None` if nothing was, and so nothing was made.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> io::Result<Option<T>> {
        let path = self.dir.join(RECORD);
        match std::fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
            Ok(facts) if facts.len() > LARGEST_RECORD => return Err(io::Error::other("the record is too large")),
            Ok(_) => {}
        }
        let Versioned { version, record } = serde_json::from_slice(&std::fs::read(path)?)?;
        if version != VERSION {
            return Err(io::Error::other(format!("the record is of version {version}")));
        }
        Ok(Some(record))
    }

    /// Removes it, for nothing of what was noted is left.
    pub(crate) fn remove(mut self) -> io::Result<()> {
        remove_folder(&self.dir)?;
        // Not to be removed once more.
        self.recorded = true;
        Ok(())
    }

    /// Leaves it for the next restore to take away what this one could not; only the dumps go.
    pub(crate) fn leave(self) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                remove_folder(&path)?;
            } else if entry.file_name() != LOCK && entry.file_name() != RECORD {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if !self.recorded {
            // It is a failure that led here, and that one is told.
            let _ = remove_folder(&self.dir);
        }
    }
}

/// Keeps others from making or taking over folders until it is dropped.
fn hold(work_dir: &Path) -> io::Result<File> {
    let path = work_dir.join(ALL);
    let no_links = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).custom_flags(no_links).open(&path)?;
    if file.metadata()?.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{} is another user's", path.display())));
    }
    file.lock()?;
    Ok(file)
}

/// Whether this is a folder, not a link, of this user alone.
fn is_private(path: &Path) -> io::Result<bool> {
    let facts = std::fs::symlink_metadata(path)?;
    Ok(facts.is_dir() && facts.uid() == rustix::process::geteuid().as_raw() && facts.mode() & 0o077 == 0)
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: SessionId = SessionId::from_bytes([7; 16]);

    #[test]
    fn a_folder_without_a_record_goes_with_its_owner() {
        let work = tempfile::tempdir().unwrap();
        let workspace = Workspace::create(&work.path().join("a/b"), Purpose::Restore, SESSION).unwrap();
        let dir = workspace.path().to_owned();
        for made in [&dir, &work.path().join("a/b"), &work.path().join("a")] {
            assert_eq!(made.metadata().unwrap().mode() & 0o777, 0o700, "{}", made.display());
        }
        std::fs::write(workspace.archive(&"m".parse().unwrap()), "memory").unwrap();
        assert!(
            Workspace::create(&work.path().join("a/b"), Purpose::Restore, SESSION).is_err(),
            "a session is one restore's"
        );
        drop(workspace);
        assert!(!dir.exists());
    }

    #[test]
    fn orphans_are_those_whose_lock_nobody_holds() {
        let work = tempfile::tempdir().unwrap();
        std::fs::create_dir(work.path().join("restore-other")).unwrap();
        assert!(Workspace::orphans(&work.path().join("none"), Purpose::Restore).unwrap().is_empty());
        let mut workspace = Workspace::create(work.path(), Purpose::Restore, SESSION).unwrap();
        let record = Record::new(SESSION, Path::new("/run/syncpoint"), Vec::new());
        assert_eq!(workspace.read::<Record>().unwrap(), None);
        workspace.write(&record).unwrap();
        assert!(Workspace::orphans(work.path(), Purpose::Restore).unwrap().is_empty(), "its launcher lives");
        drop(workspace);
        let mut orphans = Workspace::orphans(work.path(), Purpose::Restore).unwrap();
        assert_eq!(orphans.len(), 1);
        let orphan = orphans.remove(0);
        let read: Record = orphan.read().unwrap().unwrap();
        assert_eq!(read, record);
        assert_eq!(read.since(), Some(Ticks::of_this_process()));
        orphan.leave().unwrap();
        Workspace::orphans(work.path(), Purpose::Restore).unwrap().remove(0).remove().unwrap();
        assert!(Workspace::orphans(work.path(), Purpose::Restore).unwrap().is_empty());
    }
}
