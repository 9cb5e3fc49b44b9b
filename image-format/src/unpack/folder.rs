//! Writes entries into a folder that nobody sees before it is complete.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, FileTimes};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{linkat, symlinkat};

use crate::archive::{Entry, EntryKind, parent};
use crate::files::remove_tree;

/// A folder that is being filled under a temporary name beside its own. Dropped before [`Folder::finish`], it is removed.
///
/// Every step down is an `openat` that follows no symbolic link, and every file, folder and link is made where nothing
/// was; so whatever the entries say, nothing outside is touched.
pub(super) struct Folder {
    place: Temporary,
    root: OwnedFd,
    modified: SystemTime,
}

const DOWN: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);
const CREATE: OFlag =
    OFlag::O_WRONLY.union(OFlag::O_CREAT).union(OFlag::O_EXCL).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

impl Folder {
    /// Begins a folder that does not exist yet or is empty. Its files will have been modified at a time in seconds since
    /// 1970.
    pub fn create(dir: &Path, modified: u64) -> io::Result<Self> {
        match fs::read_dir(dir).map(|mut entries| entries.next().is_some()) {
            Ok(true) => return Err(io::ErrorKind::DirectoryNotEmpty.into()),
            Ok(false) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let place = Temporary::beside(dir)?;
        let root = open(&place.path, DOWN, Mode::empty())?;
        let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(modified.min(i64::MAX.unsigned_abs()));
        Ok(Self { place, root, modified })
    }

    /// Makes an entry; of a file, the caller writes the content and gives it back to [`Folder::close`].
    pub fn add(&self, entry: &Entry) -> io::Result<Option<File>> {
        let (above, name) = self.above(&entry.name)?;
        let above = above.as_ref().unwrap_or(&self.root);
        match &entry.kind {
            EntryKind::Directory => match mkdirat(above, name, Mode::S_IRWXU) {
                // Something in it came first.
                Ok(()) | Err(Errno::EEXIST) => drop(openat(above, name, DOWN, Mode::empty())?),
                Err(error) => return Err(error.into()),
            },
            EntryKind::File { .. } => {
                let file = openat(above, name, CREATE, Mode::S_IRUSR | Mode::S_IWUSR)?;
                return Ok(Some(File::from(file)));
            }
            EntryKind::Symlink { target } => {
                symlinkat(OsStr::from_bytes(target), above, name)?;
            }
            EntryKind::HardLink { target } => {
                let (from, from_name) = self.above(target)?;
                linkat(from.as_ref().unwrap_or(&self.root), from_name, above, name, AtFlags::empty())?;
            }
        }
        Ok(None)
    }

    /// Sets a file's time once its content is written.
    pub fn close(&self, file: &File) -> io::Result<()> {
        file.set_times(FileTimes::new().set_modified(self.modified))
    }

    /// Gives the folder its name.
    pub fn finish(self) -> io::Result<()> {
        self.place.rename()
    }

    /// The folder that holds a name, made if need be, and the last component. `None`: the root.
    fn above<'n>(&self, name: &'n [u8]) -> io::Result<(Option<OwnedFd>, &'n OsStr)> {
        let Some(folder) = parent(name) else {
            return Ok((None, OsStr::from_bytes(name)));
        };
        let mut at: Option<OwnedFd> = None;
        for component in folder.split(|byte| *byte == b'/') {
            let component = OsStr::from_bytes(component);
            let above = at.as_ref().unwrap_or(&self.root).as_fd();
            match mkdirat(above, component, Mode::S_IRWXU) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(error) => return Err(error.into()),
            }
            at = Some(openat(above, component, DOWN, Mode::empty())?);
        }
        Ok((at, OsStr::from_bytes(&name[folder.len() + 1..])))
    }
}

/// A new folder of mode 0700 beside the one that it becomes; removed unless it does.
struct Temporary {
    path: PathBuf,
    becomes: PathBuf,
}

impl Temporary {
    fn beside(dir: &Path) -> io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = dir.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        loop {
            let mut temporary = std::ffi::OsString::from(".");
            temporary.push(name);
            temporary.push(format!(".{}-{}", process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)));
            let path = dir.with_file_name(temporary);
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self { path, becomes: dir.to_owned() }),
                // Left behind by a process of the same number that was killed.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn rename(mut self) -> io::Result<()> {
        fs::rename(&self.path, &self.becomes)?;
        self.path = PathBuf::new();
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            // Nothing more can be done about what cannot be removed.
            drop(remove_tree(&self.path));
        }
    }
}
