//! Removes trees of files, and never anything that is mounted in them.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, openat2, unlinkat};
use rustix::io::Errno;

/// Removes a folder with everything in it. No symbolic link is followed and no mount point is crossed: `.criu.cgyard.*` in the
/// work folder of a CRIU that was killed is the live tree of the machine's control groups.
///
/// # Errors
/// What cannot be removed, such as a folder on which something is mounted; all that could be is gone.
pub fn remove_tree(dir: &Path) -> io::Result<()> {
    let name = CString::new(dir.as_os_str().as_bytes())?;
    // The path to the folder may lead through links and over mounts; nothing below it does.
    let folder = rustix::fs::openat(CWD, &*name, DOWN, Mode::empty())?;
    remove_below(CWD, Level::read(name, folder)?)
}

/// Removes whatever has this name in a folder, as [`remove_tree`] does. Nothing of that name is fine.
pub(super) fn remove_in(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    match remove_one(parent, name, false)? {
        None => Ok(()),
        Some(level) => remove_below(parent, level),
    }
}

/// Empties a folder that is open, and removes it from its parent.
fn remove_below(parent: BorrowedFd<'_>, level: Level) -> io::Result<()> {
    let mut first_error = None;
    // The open folders on the way down, each with what is still to be removed in it.
    let mut open = vec![level];
    while let Some(level) = open.last_mut() {
        if let Some((name, is_folder)) = level.left.pop() {
            match remove_one(level.folder.as_fd(), &name, is_folder) {
                Ok(None) => {}
                Ok(Some(below)) => open.push(below),
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
        } else if let Some(Level { name, .. }) = open.pop() {
            let above = open.last().map_or(parent, |level| level.folder.as_fd());
            match unlinkat(above, &*name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => {
                    first_error.get_or_insert(error.into());
                }
            }
        }
    }
    first_error.map_or(Ok(()), Err)
}

const DOWN: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A folder that is being emptied.
struct Level {
    name: CString,
    folder: OwnedFd,
    /// Names, and whether they are those of folders.
    left: Vec<(CString, bool)>,
}

impl Level {
    fn read(name: CString, folder: OwnedFd) -> io::Result<Self> {
        let mut left = Vec::new();
        for entry in Dir::read_from(&folder)? {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                // Some filesystems do not say what an entry is; then unlinkat does.
                left.push((entry.file_name().to_owned(), entry.file_type() == FileType::Directory));
            }
        }
        Ok(Self { name, folder, left })
    }
}

/// Removes what is no folder; opens what is one.
fn remove_one(folder: BorrowedFd<'_>, name: &CStr, is_folder: bool) -> io::Result<Option<Level>> {
    if !is_folder {
        match unlinkat(folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(None),
            Err(Errno::ISDIR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    match openat2(folder, name, DOWN, Mode::empty(), within) {
        Ok(below) => Level::read(name.to_owned(), below).map(Some),
        Err(Errno::NOENT) => Ok(None),
        Err(Errno::XDEV) => {
            let words = format!("something is mounted at {:?} in it", String::from_utf8_lossy(name.to_bytes()));
            Err(io::Error::new(io::ErrorKind::ResourceBusy, words))
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_tree_goes_and_what_its_links_lead_to_stays() {
        let top = tempfile::tempdir().unwrap();
        let (tree, kept) = (top.path().join("tree"), top.path().join("kept"));
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::create_dir(&kept).unwrap();
        for file in [tree.join("a/b/c"), tree.join("d"), kept.join("file")] {
            fs::write(file, "x").unwrap();
        }
        symlink(&kept, tree.join("a/link")).unwrap();
        symlink("nowhere", tree.join("a/dangling")).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists() && kept.join("file").exists());
        assert_eq!(remove_tree(&tree).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
