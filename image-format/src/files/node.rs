//! Walks a tree of files by open folders: sorted, following no symbolic link, as deep as folders can be open.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::vec;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, fgetxattr, flistxattr, lgetxattr, llistxattr, open, openat, statat,
};
use rustix::io::Errno;

use super::{FilesError, LONGEST_PATH, Writers};

pub(super) const DOWN: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Extended attributes by name.
pub(super) type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// A folder that is open.
#[derive(Debug)]
pub(super) struct Folder {
    pub fd: OwnedFd,
    pub path: PathBuf,
}

/// Something in a folder, as it was found.
#[derive(Debug)]
pub(super) struct Node {
    /// The last component; of the tree's own folder, `.`.
    pub file_name: CString,
    /// Relative to the tree's own folder, which is empty here.
    pub name: Vec<u8>,
    /// For messages.
    pub path: PathBuf,
    pub stat: Stat,
}

impl Node {
    pub fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Permission bits.
    pub fn mode(&self) -> u32 {
        self.stat.st_mode & 0o7777
    }

    pub fn inode(&self) -> (u64, u64) {
        (self.stat.st_dev, self.stat.st_ino)
    }

    /// Whether it may have further names.
    pub fn is_linked(&self) -> bool {
        self.stat.st_nlink > 1
    }

    /// A character device of number 0:0, which is how overlay notes that a name was deleted.
    pub fn is_whiteout(&self) -> bool {
        self.file_type() == FileType::CharacterDevice && self.stat.st_rdev == 0
    }
}

impl Folder {
    /// Opens the folder of a tree. Its own path may lead through links; nothing below does.
    pub fn open(path: &Path) -> Result<Self, FilesError> {
        let fd = open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(failed("open", path))?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// A folder in this one; `None` if there is none of that name, or something else.
    pub fn find(&self, name: &CStr) -> Result<Option<Self>, FilesError> {
        let path = self.path.join(as_path(name));
        match openat(&self.fd, name, DOWN, Mode::empty()) {
            Ok(fd) => Ok(Some(Self { fd, path })),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(error) => Err(failed("open", &path)(error)),
        }
    }

    /// The names in it, sorted.
    pub fn names(&self) -> Result<Vec<CString>, FilesError> {
        let mut names = Vec::new();
        for child in Dir::read_from(&self.fd).map_err(failed("list", &self.path))? {
            let child = child.map_err(failed("list", &self.path))?;
            if !matches!(child.file_name().to_bytes(), b"." | b"..") {
                names.push(child.file_name().to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// What a name stands for; `None` if nothing.
    pub fn look(&self, name: &CStr) -> Result<Option<Stat>, FilesError> {
        match statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(failed("look at", &self.path.join(as_path(name)))(error)),
        }
    }

    /// All extended attributes that the caller may see; `None`: it is not there any more.
    pub fn xattrs(&self, node: &Node) -> Result<Option<Xattrs>, FilesError> {
        let name = if node.file_type() == FileType::Directory { c"." } else { &node.file_name };
        let handle = handle(self.fd.as_fd(), name);
        collect(&node.path, |list| llistxattr(&*handle, list), |key, value| lgetxattr(&*handle, key, value))
    }
}

/// All extended attributes of an open file.
pub(super) fn file_xattrs(file: &OwnedFd, path: &Path) -> Result<Xattrs, FilesError> {
    let xattrs = collect(path, |list| flistxattr(file, list), |key, value| fgetxattr(file, key, value))?;
    Ok(xattrs.unwrap_or_default())
}

fn collect(
    path: &Path,
    list: impl Fn(&mut [u8]) -> Result<usize, Errno>,
    get: impl Fn(&[u8], &mut [u8]) -> Result<usize, Errno>,
) -> Result<Option<Xattrs>, FilesError> {
    let list = match read_growing(list) {
        Ok(list) => list,
        Err(Errno::NOTSUP) => return Ok(Some(Xattrs::new())),
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(failed("list the extended attributes of", path)(error)),
    };
    let mut xattrs = Xattrs::new();
    for key in list.split(|byte| *byte == 0).filter(|key| !key.is_empty()) {
        match read_growing(|buf| get(key, buf)) {
            Ok(value) => drop(xattrs.insert(key.to_vec(), value)),
            // Gone since it was listed.
            Err(Errno::NODATA) => {}
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(failed("read the extended attributes of", path)(error)),
        }
    }
    Ok(Some(xattrs))
}

/// A path to something in an open folder (or to itself, as `.`) that follows no link on the way, for system calls that take no
/// open folder.
pub(super) fn handle(folder: BorrowedFd<'_>, name: &CStr) -> CString {
    let path = [format!("/proc/self/fd/{}/", folder.as_raw_fd()).as_bytes(), name.to_bytes()].concat();
    // Neither part holds a NUL.
    CString::new(path).unwrap_or_default()
}

/// Calls with a buffer that is large enough for any attribute of Linux.
fn read_growing(read: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buf = vec![0; 1 << 10];
    loop {
        match read(&mut buf) {
            Ok(len) => {
                buf.truncate(len);
                return Ok(buf);
            }
            Err(Errno::RANGE) if buf.len() < 1 << 20 => buf.resize(buf.len() * 8, 0),
            Err(error) => return Err(error),
        }
    }
}

/// What comes next in a walk.
#[derive(Debug)]
pub(super) enum Step {
    /// A folder; what is in it follows.
    Enter(Node),
    /// Anything else.
    Leaf(Node),
    /// All of the folder that is [`Walk::folder`] came; it is handed over.
    Leave(Folder, Node),
}

/// A walk through a tree, folders before what is in them.
#[derive(Debug)]
pub(super) struct Walk {
    start: Option<Folder>,
    levels: Vec<Level>,
    writers: Writers,
}

#[derive(Debug)]
struct Level {
    folder: Folder,
    name: Vec<u8>,
    names: vec::IntoIter<CString>,
    /// The folder as it was before anything in it was looked at.
    stat: Stat,
}

impl Walk {
    pub fn new(root: Folder, writers: Writers) -> Self {
        Self { start: Some(root), levels: Vec::new(), writers }
    }

    /// Who may write to the tree.
    pub fn writers(&self) -> Writers {
        self.writers
    }

    /// The folder that was entered last; of a leaf, the one that it is in.
    pub fn folder(&self) -> Option<&Folder> {
        self.levels.last().map(|level| &level.folder)
    }

    /// The next step; `None` when the tree's own folder was left.
    pub fn step(&mut self) -> Result<Option<Step>, FilesError> {
        if let Some(root) = self.start.take() {
            return self.enter(root, Vec::new()).map(Some);
        }
        while let Some(level) = self.levels.last_mut() {
            let Some(file_name) = level.names.next() else {
                break;
            };
            let path = level.folder.path.join(as_path(&file_name));
            let Some(stat) = level.folder.look(&file_name)? else {
                self.gone(path)?;
                continue;
            };
            let name = joined(&level.name, file_name.to_bytes());
            if name.len() > LONGEST_PATH {
                let beginning = String::from_utf8_lossy(&name).chars().take(80).collect();
                return Err(FilesError::PathTooLong { beginning, bytes: name.len() });
            }
            let node = Node { file_name, name, path, stat };
            if node.file_type() != FileType::Directory {
                return Ok(Some(Step::Leaf(node)));
            }
            match level.folder.find(&node.file_name)? {
                Some(folder) => return self.enter(folder, node.name).map(Some),
                None => self.gone(node.path)?,
            }
        }
        let Some(level) = self.levels.pop() else {
            return Ok(None);
        };
        let node = self.node(&level.folder, level.name)?;
        if self.writers == Writers::Frozen && changed(&level.stat, &node.stat) {
            return Err(FilesError::Changed { path: level.folder.path });
        }
        Ok(Some(Step::Leave(level.folder, node)))
    }

    /// Says whether it may be that something is not there any more.
    pub fn gone(&self, path: PathBuf) -> Result<(), FilesError> {
        match self.writers {
            Writers::Frozen => Err(FilesError::Changed { path }),
            Writers::Others => Ok(()),
        }
    }

    fn enter(&mut self, folder: Folder, name: Vec<u8>) -> Result<Step, FilesError> {
        let node = self.node(&folder, name.clone())?;
        let names = folder.names()?.into_iter();
        self.levels.push(Level { folder, name, names, stat: node.stat });
        Ok(Step::Enter(node))
    }

    fn node(&self, folder: &Folder, name: Vec<u8>) -> Result<Node, FilesError> {
        let stat = statat(&folder.fd, c".", AtFlags::SYMLINK_NOFOLLOW).map_err(failed("look at", &folder.path))?;
        let last = name.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let last = if last.is_empty() { &b"."[..] } else { last };
        // It came from the system without a NUL.
        let file_name = CString::new(last).unwrap_or_default();
        Ok(Node { file_name, name, path: folder.path.clone(), stat })
    }
}

/// Whether content or attributes were changed between two looks.
pub(super) fn changed(before: &Stat, after: &Stat) -> bool {
    let key = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec, stat.st_ctime, stat.st_ctime_nsec);
    key(before) != key(after)
}

pub(super) fn joined(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() { name.to_vec() } else { [folder, b"/", name].concat() }
}

pub(super) fn as_path(name: &CStr) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()))
}

/// Opens a regular file of a folder and looks at what was opened. `None`: there is something else by now, or nothing.
pub(super) fn open_file(folder: &Folder, node: &Node) -> Result<Option<(OwnedFd, Stat)>, FilesError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = match openat(&folder.fd, &*node.file_name, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => return Ok(None),
        Err(error) => return Err(failed("open", &node.path)(error)),
    };
    let stat = rustix::fs::fstat(fd.as_fd()).map_err(failed("look at", &node.path))?;
    let same = (stat.st_dev, stat.st_ino) == (node.stat.st_dev, node.stat.st_ino);
    Ok(Some((fd, stat)).filter(|_| same && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile))
}

pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(Errno) -> FilesError {
    move |error| FilesError::Failed { action, path: path.to_owned(), source: error.into() }
}
