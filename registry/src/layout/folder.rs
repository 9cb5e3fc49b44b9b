//! The files of a layout: opened without following links, written by rename, guarded by locks.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use image_format::Digest;
use nix::fcntl::OFlag;
use serde::Deserialize;
use tempfile::NamedTempFile;

use crate::StoreError;
use crate::links::MAX_DOCUMENT;

/// `index.json` may list thousands of tags, so it may be larger than one manifest; it is parsed in memory.
const MAX_INDEX: u64 = 8 << 20;
/// The only content of `oci-layout` that the specification knows is some 30 bytes.
const MAX_MARKER: u64 = 4 << 10;
/// How long a writer waits for the others; each of them holds the lock for some milliseconds.
const LOCK_LIMIT: Duration = Duration::from_secs(60);
const PRIVATE: &str = ".syncpoint";
const TEMPORARY_PREFIX: &str = "blob-";
/// Files that were removed by a rename and are to be deleted.
const REMOVED_PREFIX: &str = "gone-";
const MARKER: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// One layout's folder.
#[derive(Debug)]
pub(super) struct Folder {
    dir: PathBuf,
    name: String,
    lock_limit: Duration,
    /// Whether [`Folder::prepare`] was through.
    prepared: Mutex<bool>,
}

/// What the lock of a layout is held for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lock {
    /// Blobs get their names, or become young.
    Shared,
    /// `index.json` changes, or files are removed.
    Exclusive,
}

#[derive(Deserialize)]
struct Marker {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

impl Folder {
    pub(super) fn open(dir: &Path) -> Result<Self, StoreError> {
        let folder = Self::at(dir)?;
        folder.check_marker()?.ok_or_else(|| folder.not_found("an OCI layout (oci-layout)".to_owned()))?;
        folder.check_folders()?;
        Ok(folder)
    }

    pub(super) fn create(dir: &Path, empty_index: &[u8]) -> Result<Self, StoreError> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| StoreError::Io {
            store: layout_name(dir),
            operation: "making the folder".to_owned(),
            source,
        })?;
        let folder = Self::at(dir)?;
        if folder.check_marker()?.is_some() {
            folder.check_folders()?;
            return Ok(folder);
        }
        folder.refuse_other_content()?;
        folder.check_folders()?;
        let _lock = folder.lock(Lock::Exclusive)?;
        if folder.check_marker()?.is_none() {
            if folder.read_file(&folder.dir.join("index.json"), "index.json", MAX_INDEX)?.is_none() {
                folder.replace_index(empty_index)?;
            }
            folder.write_file(&folder.dir.join("oci-layout"), MARKER)?;
            if let Some(parent) = folder.dir.canonicalize().ok().as_deref().and_then(Path::parent) {
                // The name of the layout itself. Where it cannot be synced, somebody else made that folder.
                drop(File::open(parent).and_then(|parent| parent.sync_all()));
            }
        }
        Ok(folder)
    }

    fn at(dir: &Path) -> Result<Self, StoreError> {
        let name = layout_name(dir);
        match fs::metadata(dir) {
            Ok(metadata) if metadata.is_dir() => {
                Ok(Self { dir: dir.to_owned(), name, lock_limit: LOCK_LIMIT, prepared: Mutex::new(false) })
            }
            Ok(_) => Err(StoreError::Refused {
                store: name,
                operation: "opening the layout".to_owned(),
                reason: "it is not a folder".to_owned(),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(StoreError::NotFound { store: name, what: "the folder".to_owned() })
            }
            Err(source) => Err(StoreError::Io { store: name, operation: "opening the layout".to_owned(), source }),
        }
    }

    /// What the layout is called in messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn blobs(&self) -> PathBuf {
        self.dir.join("blobs/sha256")
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    /// `Some` if the layout is marked as one of a version that is understood.
    fn check_marker(&self) -> Result<Option<()>, StoreError> {
        let Some(bytes) = self.read_file(&self.dir.join("oci-layout"), "oci-layout", MAX_MARKER)? else {
            return Ok(None);
        };
        let marker: Marker =
            serde_json::from_slice(&bytes).map_err(|error| self.corrupt("oci-layout", error.to_string()))?;
        if marker.version.starts_with("1.") {
            return Ok(Some(()));
        }
        let version: String = marker.version.chars().take(32).collect();
        Err(self.corrupt("oci-layout", format!("its version is {version:?}; 1.0.0 is understood")))
    }

    /// A folder of the layout that is really a link would make a writer write somewhere else.
    fn check_folders(&self) -> Result<(), StoreError> {
        for part in ["blobs", "blobs/sha256", PRIVATE] {
            match fs::symlink_metadata(self.dir.join(part)) {
                Ok(metadata) if metadata.is_dir() => {}
                Ok(_) => return Err(self.corrupt(part, "it is not a folder")),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(self.io_error("opening the layout", error)),
            }
        }
        Ok(())
    }

    /// Only what an interrupted `create` leaves may be there: a mistyped path must not fill somebody's home folder.
    fn refuse_other_content(&self) -> Result<(), StoreError> {
        let failed = |error| self.io_error("reading the folder", error);
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            // The marker itself may have come since it was looked for, from somebody who makes the same layout.
            if !["blobs", "index.json", "oci-layout", PRIVATE].iter().any(|known| name == *known) {
                return Err(StoreError::Refused {
                    store: self.name.clone(),
                    operation: "making a layout".to_owned(),
                    reason: format!("the folder has other things in it, such as {name:?}"),
                });
            }
        }
        Ok(())
    }

    /// Opens a blob and says how large it is.
    pub(super) fn open_blob(&self, digest: &Digest) -> Result<Option<(File, u64)>, StoreError> {
        self.open_file(&self.blob_path(digest), &format!("blob {digest}"))
    }

    pub(super) fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        match fs::symlink_metadata(self.blob_path(digest)) {
            Ok(metadata) if metadata.is_file() => Ok(Some(metadata.len())),
            Ok(_) => Err(self.corrupt(format!("blob {digest}"), NOT_A_FILE)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.io_error(&format!("looking for blob {digest}"), error)),
        }
    }

    /// A manifest's bytes, not yet checked.
    pub(super) fn read_document(&self, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        self.read_file(&self.blob_path(digest), &format!("manifest {digest}"), MAX_DOCUMENT)
    }

    pub(super) fn read_index(&self) -> Result<Vec<u8>, StoreError> {
        self.read_file(&self.dir.join("index.json"), "index.json", MAX_INDEX)?
            .ok_or_else(|| self.not_found("index.json".to_owned()))
    }

    /// Puts a new `index.json` in the place of the old one. To be called with the lock held.
    pub(super) fn replace_index(&self, bytes: &[u8]) -> Result<(), StoreError> {
        let size = bytes.len() as u64;
        if size > MAX_INDEX {
            return Err(self.too_large("the changed index.json".to_owned(), size, MAX_INDEX));
        }
        self.write_file(&self.dir.join("index.json"), bytes)
    }

    /// Writes a small blob whose digest was checked before.
    pub(super) fn write_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
        let file = self.filled(bytes)?;
        self.keep_blob(file, digest)
    }

    /// A file in the top folder. Its name is durable on return.
    fn write_file(&self, target: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        self.keep(self.filled(bytes)?, target)?;
        self.sync(&self.dir)
    }

    fn filled(&self, bytes: &[u8]) -> Result<NamedTempFile, StoreError> {
        let mut file = self.temporary()?;
        file.write_all(bytes).map_err(|error| self.io_error("writing a temporary file", error))?;
        Ok(file)
    }

    /// A new empty file on the layout's file system, 0600, locked for as long as it is being written.
    pub(super) fn temporary(&self) -> Result<NamedTempFile, StoreError> {
        let failed = |error| self.io_error("making a temporary file", error);
        self.prepare()?;
        let private = self.dir.join(PRIVATE);
        loop {
            let file = tempfile::Builder::new().prefix(TEMPORARY_PREFIX).tempfile_in(&private).map_err(failed)?;
            file.as_file().lock().map_err(failed)?;
            // A sweeping writer may have come between making the file and locking it.
            if file.as_file().metadata().map_err(failed)?.nlink() > 0 {
                return Ok(file);
            }
        }
    }

    /// Keeps a finished blob under its digest. Its name is durable after [`Folder::sync_blobs`].
    pub(super) fn keep_blob(&self, file: NamedTempFile, digest: &Digest) -> Result<(), StoreError> {
        let target = self.blob_path(digest);
        file.as_file().sync_all().map_err(|error| self.io_error(&format!("writing {}", target.display()), error))?;
        // Who removes files must not take the new one for the old one.
        let _lock = self.lock(Lock::Shared)?;
        self.name_file(file, &target)
    }

    /// Makes a blob young, so that it is not removed before something refers to it. `false` where it is not there in this size,
    /// or is somebody else's: then it is to be written again.
    pub(super) fn touch_blob(&self, digest: &Digest, size: Option<u64>) -> Result<bool, StoreError> {
        let _lock = self.lock(Lock::Shared)?;
        match self.open_blob(digest)? {
            Some((file, found)) if size.is_none_or(|size| size == found) => {
                Ok(file.set_modified(SystemTime::now()).is_ok())
            }
            Some(_) | None => Ok(false),
        }
    }

    /// When a blob was written or made young: the time of the last change of its inode, which nobody can set.
    pub(super) fn blob_time(&self, digest: &Digest) -> Result<Option<SystemTime>, StoreError> {
        match fs::symlink_metadata(self.blob_path(digest)) {
            Ok(metadata) => Ok(Some(changed(&metadata))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.io_error(&format!("looking for blob {digest}"), error)),
        }
    }

    /// All files that are named like blobs, with their sizes and times.
    pub(super) fn list_blobs(&self) -> Result<Vec<(Digest, u64, SystemTime)>, StoreError> {
        let failed = |error| self.io_error("listing the blobs", error);
        let entries = match fs::read_dir(self.blobs()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let digest = entry.file_name().to_str().and_then(|hex| format!("sha256:{hex}").parse().ok());
            let Some(digest) = digest else { continue };
            match entry.metadata() {
                Ok(metadata) if metadata.is_file() => found.push((digest, metadata.len(), changed(&metadata))),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(found)
    }

    /// Takes a blob out of the layout, quickly; [`Folder::delete_removed`] frees its space. To be called with the lock held.
    pub(super) fn remove_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        let target = self.dir.join(PRIVATE).join(format!("{REMOVED_PREFIX}{}", digest.hex()));
        fs::rename(self.blob_path(digest), target)
            .map_err(|error| self.io_error(&format!("removing blob {digest}"), error))
    }

    /// Deletes what was removed, which may take its time. Several may do so at once.
    pub(super) fn delete_removed(&self) -> Result<(), StoreError> {
        self.sync(&self.blobs())?;
        let failed = |error| self.io_error("deleting removed blobs", error);
        for entry in fs::read_dir(self.dir.join(PRIVATE)).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if !entry.file_name().to_str().is_some_and(|name| name.starts_with(REMOVED_PREFIX)) {
                continue;
            }
            match fs::remove_file(entry.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// To be called before anything is listed that refers to blobs: a crash must not show the list without them.
    pub(super) fn sync_blobs(&self) -> Result<(), StoreError> {
        self.sync(&self.blobs())
    }

    /// Content first, then the name: in this order a crash shows all or nothing.
    fn keep(&self, file: NamedTempFile, target: &Path) -> Result<(), StoreError> {
        file.as_file().sync_all().map_err(|error| self.io_error(&format!("writing {}", target.display()), error))?;
        self.name_file(file, target)
    }

    fn name_file(&self, file: NamedTempFile, target: &Path) -> Result<(), StoreError> {
        let named = file.persist(target);
        named.map_err(|error| self.io_error(&format!("writing {}", target.display()), error.error)).map(drop)
    }

    fn sync(&self, folder: &Path) -> Result<(), StoreError> {
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(|error| self.io_error(&format!("syncing {}", folder.display()), error))
    }

    /// Makes the folders that are missing, before the first write, and removes what writers that are gone left behind.
    fn prepare(&self) -> Result<(), StoreError> {
        let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if !*prepared {
            let private = self.dir.join(PRIVATE);
            for folder in [&private, &self.blobs()] {
                let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
                made.map_err(|error| self.io_error("making a folder of the layout", error))?;
            }
            self.sync(&self.dir.join("blobs"))?;
            self.sync(&self.dir)?;
            self.sweep(&private);
            *prepared = true;
        }
        Ok(())
    }

    /// A writer that lives holds the lock of its file.
    fn sweep(&self, private: &Path) {
        // Not being able to remove a leftover is no reason not to write.
        drop(self.delete_removed());
        for entry in fs::read_dir(private).into_iter().flatten().flatten() {
            let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(TEMPORARY_PREFIX));
            if !ours {
                continue;
            }
            let Ok(Some((file, _))) = self.open_file(&entry.path(), "a leftover") else {
                continue;
            };
            if file.try_lock().is_ok() {
                drop(fs::remove_file(entry.path()));
            }
        }
    }

    /// Waits for the right to change names; it ends with the returned file.
    pub(super) fn lock(&self, kind: Lock) -> Result<File, StoreError> {
        let path = self.dir.join(PRIVATE).join("lock");
        let failed = |error| self.io_error("locking the layout", error);
        self.prepare()?;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
            .open(&path)
            .map_err(failed)?;
        let end = Instant::now() + self.lock_limit;
        let mut pause = Duration::from_micros(500);
        loop {
            let locked = match kind {
                Lock::Exclusive => file.try_lock(),
                Lock::Shared => file.try_lock_shared(),
            };
            match locked {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(error)) => return Err(failed(error)),
                Err(TryLockError::WouldBlock) if Instant::now() < end => thread::sleep(pause),
                Err(TryLockError::WouldBlock) => {
                    return Err(StoreError::Refused {
                        store: self.name.clone(),
                        operation: "locking the layout".to_owned(),
                        reason: format!(
                            "another program has held {} for {} s",
                            path.display(),
                            self.lock_limit.as_secs()
                        ),
                    });
                }
            }
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// A small file's bytes, at most `limit`.
    fn read_file(&self, path: &Path, what: &str, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let Some((file, size)) = self.open_file(path, what)? else {
            return Ok(None);
        };
        if size > limit {
            return Err(self.too_large(what.to_owned(), size, limit));
        }
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes).map_err(|error| self.io_error(&format!("reading {what}"), error))?;
        Ok(Some(bytes))
    }

    /// Opens a regular file and nothing else: no link that leads out of the layout, no device, no pipe.
    fn open_file(&self, path: &Path, what: &str) -> Result<Option<(File, u64)>, StoreError> {
        let failed = |error| self.io_error(&format!("opening {what}"), error);
        match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_file() => {}
            Ok(_) => return Err(self.corrupt(what, NOT_A_FILE)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        }
        let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(self.corrupt(what, NOT_A_FILE));
        }
        Ok(Some((file, metadata.len())))
    }

    pub(super) fn not_found(&self, what: String) -> StoreError {
        StoreError::NotFound { store: self.name.clone(), what }
    }

    pub(super) fn corrupt(&self, what: impl Into<String>, reason: impl Into<String>) -> StoreError {
        StoreError::Corrupt { store: self.name.clone(), what: what.into(), reason: reason.into() }
    }

    pub(super) fn too_large(&self, what: String, size: u64, limit: u64) -> StoreError {
        StoreError::TooLarge { store: self.name.clone(), what, size, limit }
    }

    pub(super) fn io_error(&self, operation: &str, source: io::Error) -> StoreError {
        StoreError::Io { store: self.name.clone(), operation: operation.to_owned(), source }
    }
}

/// The time of the last change of an inode.
fn changed(metadata: &fs::Metadata) -> SystemTime {
    let seconds = Duration::from_secs(metadata.ctime().try_into().unwrap_or(0));
    UNIX_EPOCH + seconds + Duration::from_nanos(metadata.ctime_nsec().try_into().unwrap_or(0))
}

const NOT_A_FILE: &str = "it is not a regular file";

fn layout_name(dir: &Path) -> String {
    format!("oci:{}", dir.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(dir: &Path) -> Folder {
        Folder::create(dir, br#"{"schemaVersion":2,"manifests":[]}"#).unwrap()
    }

    #[test]
    fn leftovers_of_dead_writers_go_and_those_of_live_ones_stay() {
        let dir = tempfile::tempdir().unwrap();
        let first = folder(dir.path());
        let live = first.temporary().unwrap();
        let dead = dir.path().join(".syncpoint/blob-dead");
        fs::write(&dead, b"half a blo").unwrap();
        let second = folder(dir.path());
        drop(second.temporary().unwrap());
        assert!(!dead.exists());
        assert!(live.path().exists());
    }

    #[test]
    fn a_lock_that_never_comes_free_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut waiting = folder(dir.path());
        waiting.lock_limit = Duration::from_millis(30);
        let held = folder(dir.path()).lock(Lock::Exclusive).unwrap();
        let message = waiting.lock(Lock::Exclusive).unwrap_err().to_string();
        assert!(message.contains(".syncpoint/lock for 0 s"), "{message}");
        drop(held);
        waiting.lock(Lock::Exclusive).unwrap();
    }

    #[test]
    fn a_half_made_layout_is_completed_and_a_strange_folder_refused() {
        let dir = tempfile::tempdir().unwrap();
        folder(dir.path());
        fs::remove_file(dir.path().join("oci-layout")).unwrap();
        assert!(matches!(Folder::open(dir.path()), Err(StoreError::NotFound { .. })));
        folder(dir.path());
        Folder::open(dir.path()).unwrap();

        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("thesis.tex"), b"").unwrap();
        let message = Folder::create(home.path(), b"{}").unwrap_err().to_string();
        assert!(message.contains("thesis.tex"), "{message}");
    }

    #[test]
    fn everything_is_private() {
        let top = tempfile::tempdir().unwrap();
        let dir = top.path().join("new/layout");
        let folder = folder(&dir);
        folder.write_blob(&Digest::of(b"secret"), b"secret").unwrap();
        let mode = |part: &str| fs::metadata(dir.join(part)).unwrap().mode() & 0o777;
        for part in ["", "blobs", "blobs/sha256", ".syncpoint"] {
            assert_eq!(mode(part), 0o700, "{part:?}");
        }
        let blob = format!("blobs/sha256/{}", Digest::of(b"secret").hex());
        for part in ["oci-layout", "index.json", ".syncpoint/lock", &blob] {
            assert_eq!(mode(part), 0o600, "{part:?}");
        }
    }
}
