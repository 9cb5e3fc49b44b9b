//! Copies a tree of files with everything that a container can tell apart.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::slice::from_ref;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat,
    copy_file_range, fstat, ftruncate, ioctl_ficlone, linkat, lsetxattr, mkdirat, mknodat, openat, readlinkat, seek,
    symlinkat, utimensat,
};
use rustix::io::Errno;

use super::FilesError;
use super::archive::{is_content, is_of_overlay};
use super::node::{DOWN, Folder, Node, Step, Walk, Xattrs, changed, failed, file_xattrs, handle, open_file};

/// How often a name is looked at again that others replace all the time.
const TRIES: usize = 16;

/// Who may write to a tree while it is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writers {
    /// Nobody: all who can are frozen. Whatever changes or vanishes is an error, since the copy would not be of one
    /// instant.
    Frozen,
    /// Others too, as with a folder of the host that is mounted into the container. What vanishes meanwhile is left out,
    /// and what is written to is copied as it was read.
    Others,
}

/// Copies a folder and all below it to `to`, which must not exist yet.
///
/// Kept are contents (as reflinks where the filesystem has them), holes, owners, modes, modification and access times,
/// extended attributes (`trusted.*` too, and overlay's notes; not those that belong to the host, such as SELinux labels), hard links among the files of the tree, symbolic links, devices and pipes;
/// sockets are left out. No link below `from` is followed. It needs the privileges that the tree needs: an attribute or owner
/// that cannot be kept is an error.
///
/// # Errors
/// What cannot be read or made, with its path; with [`Writers::Frozen`], anything that changes meanwhile. What was copied by
/// then stays, for the caller to remove.
pub fn clone_tree(from: &Path, to: &Path, writers: Writers) -> Result<(), FilesError> {
    let root = Folder::open(from)?;
    rustix::fs::mkdir(to, Mode::RWXU).map_err(failed("make", to))?;
    let target = rustix::fs::open(to, DOWN, Mode::empty()).map_err(failed("open", to))?;
    let target_stat = fstat(&target).map_err(failed("look at", to))?;
    let mut copy = Copy {
        to: (target_stat.st_dev, target_stat.st_ino),
        top: Some(target),
        open: Vec::new(),
        links: HashMap::new(),
    };
    let mut walk = Walk::new(root, writers);
    while let Some(step) = walk.step()? {
        match step {
            Step::Enter(node) => copy.enter(&node, to)?,
            Step::Leaf(node) => copy.leaf(&walk, node)?,
            Step::Leave(folder, node) => copy.leave(&folder, &node)?,
        }
    }
    Ok(())
}

/// The tree that is made.
struct Copy {
    /// Device and inode of its folder.
    to: (u64, u64),
    /// Its folder, until it is entered.
    top: Option<OwnedFd>,
    /// Its folders on the way down.
    open: Vec<Made>,
    /// Where the files that have further names are.
    links: HashMap<(u64, u64), Place>,
}

/// A folder that was made.
struct Made {
    fd: OwnedFd,
    /// Its components, to find it again for a hard link.
    name: Vec<CString>,
}

/// Components below the tree's own folder.
type Place = Vec<CString>;

impl Copy {
    fn enter(&mut self, node: &Node, to: &Path) -> Result<(), FilesError> {
        if node.inode() == self.to {
            return Err(FilesError::CopyInside { path: to.to_owned() });
        }
        if let Some(fd) = self.top.take() {
            self.open.push(Made { fd, name: Vec::new() });
            return Ok(());
        }
        let Some(above) = self.open.last() else {
            return Ok(());
        };
        mkdirat(&above.fd, &*node.file_name, Mode::RWXU).map_err(failed("make a copy of", &node.path))?;
        let fd =
            openat(&above.fd, &*node.file_name, DOWN, Mode::empty()).map_err(failed("make a copy of", &node.path))?;
        let name = [&above.name[..], from_ref(&node.file_name)].concat();
        self.open.push(Made { fd, name });
        Ok(())
    }

    /// Copies something that is no folder. Where others write, a name may come to stand for something new at any time.
    fn leaf(&mut self, walk: &Walk, mut node: Node) -> Result<(), FilesError> {
        let Some(folder) = walk.folder() else {
            return Ok(());
        };
        for _ in 0..TRIES {
            if self.try_leaf(folder, &node, walk.writers())? {
                return Ok(());
            }
            match folder.look(&node.file_name)? {
                Some(stat) if walk.writers() == Writers::Others => node.stat = stat,
                _ => return walk.gone(node.path),
            }
        }
        Err(FilesError::Changed { path: node.path })
    }

    /// `false`: it was not there any more, or something else was.
    fn try_leaf(&mut self, folder: &Folder, node: &Node, writers: Writers) -> Result<bool, FilesError> {
        let Some(above) = self.open.last() else {
            return Ok(true);
        };
        let (into, name) = (above.fd.as_fd(), &*node.file_name);
        if let Some(first) = self.links.get(&node.inode()).filter(|_| node.is_linked()) {
            return self.link(first, into, node).map(|()| true);
        }
        let made = failed("make a copy of", &node.path);
        match node.file_type() {
            FileType::Socket => return Ok(true),
            // It was none when the folder was listed; what it holds came later.
            FileType::Directory => return Ok(false),
            FileType::RegularFile => {
                if !copy_file(folder, node, into, writers)? {
                    return Ok(false);
                }
            }
            kind => {
                let Some(xattrs) = folder.xattrs(node)? else {
                    return Ok(false);
                };
                if kind == FileType::Symlink {
                    match readlinkat(&folder.fd, name, Vec::new()) {
                        Ok(target) => symlinkat(&*target, into, name).map_err(made)?,
                        Err(Errno::NOENT | Errno::INVAL) => return Ok(false),
                        Err(error) => return Err(failed("read", &node.path)(error)),
                    }
                } else {
                    mknodat(into, name, kind, Mode::RUSR | Mode::WUSR, node.stat.st_rdev).map_err(made)?;
                }
                dress(node, xattrs, into, name)?;
            }
        }
        if node.is_linked() {
            let place = [&above.name[..], from_ref(&node.file_name)].concat();
            self.links.insert(node.inode(), place);
        }
        Ok(true)
    }

    fn link(&self, first: &[CString], into: BorrowedFd<'_>, node: &Node) -> Result<(), FilesError> {
        let failed = || failed("make a copy of the hard link", &node.path);
        let (Some(top), Some((last, folders))) = (self.open.first(), first.split_last()) else {
            return Ok(());
        };
        let mut at: Option<OwnedFd> = None;
        for folder in folders {
            let above = at.as_ref().unwrap_or(&top.fd);
            at = Some(openat(above, &**folder, DOWN, Mode::empty()).map_err(failed())?);
        }
        linkat(at.as_ref().unwrap_or(&top.fd), &**last, into, &*node.file_name, AtFlags::empty()).map_err(failed())
    }

    /// A folder gets its attributes last: what is made in it would change its times, and its default permissions.
    fn leave(&mut self, folder: &Folder, node: &Node) -> Result<(), FilesError> {
        match self.open.pop() {
            Some(made) => dress(node, folder.xattrs(node)?.unwrap_or_default(), made.fd.as_fd(), c"."),
            None => Ok(()),
        }
    }
}

fn copy_file(folder: &Folder, node: &Node, into: BorrowedFd<'_>, writers: Writers) -> Result<bool, FilesError> {
    let Some((from, before)) = open_file(folder, node)? else {
        return Ok(false);
    };
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let to = openat(into, &*node.file_name, flags, Mode::RUSR | Mode::WUSR);
    let to = to.map_err(failed("make a copy of", &node.path))?;
    copy_content(&from, &to, &before, node)?;
    let after = fstat(&from).map_err(failed("look at", &node.path))?;
    if writers == Writers::Frozen && (changed(&node.stat, &after) || changed(&before, &after)) {
        return Err(FilesError::Changed { path: node.path.clone() });
    }
    let xattrs = file_xattrs(&from, &node.path)?;
    dress(node, xattrs, into, &node.file_name)?;
    Ok(true)
}

/// Content and holes: as one reflink, or stretch by stretch.
fn copy_content(from: &OwnedFd, to: &OwnedFd, stat: &Stat, node: &Node) -> Result<(), FilesError> {
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if size == 0 || ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let failed = || failed("copy the content of", &node.path);
    ftruncate(to, size).map_err(failed())?;
    let mut at = 0;
    while at < size {
        let begin = match seek(from, SeekFrom::Data(at)) {
            Ok(begin) => begin,
            // A hole to the end.
            Err(Errno::NXIO) => return Ok(()),
            // No holes on this filesystem.
            Err(Errno::INVAL) => at,
            Err(error) => return Err(failed()(error)),
        };
        let end = match seek(from, SeekFrom::Hole(begin)) {
            Ok(end) => end.min(size),
            Err(Errno::INVAL | Errno::NXIO) => size,
            Err(error) => return Err(failed()(error)),
        };
        copy_stretch(from, to, begin, end).map_err(failed())?;
        at = end.max(begin + 1);
    }
    Ok(())
}

/// Copies bytes between two offsets; fewer, if the file ends before.
fn copy_stretch(from: &OwnedFd, to: &OwnedFd, begin: u64, end: u64) -> Result<(), Errno> {
    let (mut read_at, mut write_at) = (begin, begin);
    while read_at < end {
        let left = usize::try_from(end - read_at).unwrap_or(usize::MAX).min(1 << 30);
        match copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), left) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) => {
                return copy_by_hand(from, to, read_at, end);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Between filesystems that the kernel does not copy between.
fn copy_by_hand(from: &OwnedFd, to: &OwnedFd, begin: u64, end: u64) -> Result<(), Errno> {
    seek(from, SeekFrom::Start(begin))?;
    seek(to, SeekFrom::Start(begin))?;
    let (from, to) = (from.try_clone(), to.try_clone());
    let (Ok(from), Ok(to)) = (from, to) else {
        return Err(Errno::MFILE);
    };
    let (mut from, mut to) = (File::from(from).take(end.saturating_sub(begin)), File::from(to));
    let copied = std::io::copy(&mut from, &mut to).and_then(|_| to.flush());
    copied.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Gives a copy the attributes of what it is a copy of. The owner goes first, since a change of it takes away set-user-id
/// bits and capabilities.
fn dress(node: &Node, mut xattrs: Xattrs, into: BorrowedFd<'_>, name: &CStr) -> Result<(), FilesError> {
    let keep = |what| failed(what, &node.path);
    let (uid, gid) = (Uid::from_raw(node.stat.st_uid), Gid::from_raw(node.stat.st_gid));
    chownat(into, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(keep("keep the owner of"))?;
    if node.file_type() != FileType::Symlink {
        let mode = Mode::from_raw_mode(node.mode());
        chmodat(into, name, mode, AtFlags::empty()).map_err(keep("keep the permissions of"))?;
    }
    xattrs.retain(|name, _| is_content(name) || is_of_overlay(name));
    let handle = handle(into, name);
    for (key, value) in &xattrs {
        let set = lsetxattr(&*handle, &key[..], value, XattrFlags::empty());
        set.map_err(keep("keep the extended attributes of"))?;
    }
    let stat = &node.stat;
    let times = Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ },
    };
    utimensat(into, name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(keep("keep the times of"))
}
