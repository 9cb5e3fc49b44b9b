//! Writes trees of files as the tar that podman's restore extracts.

use std::collections::HashMap;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

use rustix::fs::{FileType, fstat, major, minor, readlinkat};
use rustix::io::pread;

use super::node::{Folder, Node, Step, Walk, Xattrs, changed, failed, joined, open_file};
use super::sparse::stretches;
use super::{FilesError, Writers};
use crate::archive::{CHUNK, END, TarEntry, TarKind, padding, sparse_map};

/// Writes a plain tar of what a folder holds, in sorted order, the folder itself first.
///
/// It is what `containers/storage` writes of a volume or `/dev/shm`, and extracts again: names start with `./`; owners are
/// numbers; modes, modification times (to the nanosecond), hard links, symbolic links, devices and pipes are kept; sockets
/// are left out. Of the extended attributes it keeps `user.*`, `trusted.*`, `security.capability`, `security.ima` and
/// POSIX access control lists: others (SELinux labels) belong to the host.
///
/// Long stretches of zeros are left out, as holes of a sparse file (PAX format 1.0, which Go's `archive/tar` reads). What the
/// filesystem says of holes makes the reading of them quick and changes nothing: equal contents give equal bytes, whatever
/// they lie on.
///
/// The tree must be at rest, such as a copy made by [`clone_tree`](super::clone_tree).
///
/// # Errors
/// What cannot be read, with its path; what changes meanwhile; a writer that fails.
pub fn archive_folder(folder: &Path, out: &mut dyn Write) -> Result<(), FilesError> {
    let mut walk = Walk::new(Folder::open(folder)?, Writers::Frozen);
    let mut tar = Tar::new(out);
    while let Some(step) = walk.step()? {
        if let (Step::Enter(node) | Step::Leaf(node), Some(folder)) = (step, walk.folder()) {
            let xattrs = xattrs_of(folder, &node)?;
            tar.add(folder, &node, xattrs)?;
        }
    }
    tar.finish()
}

/// A tar that is being written.
pub(super) struct Tar<'a> {
    out: &'a mut dyn Write,
    /// Under which name a file that has further names was written.
    links: HashMap<(u64, u64), Vec<u8>>,
    buf: Vec<u8>,
}

impl<'a> Tar<'a> {
    pub fn new(out: &'a mut dyn Write) -> Self {
        Self { out, links: HashMap::new(), buf: vec![0; CHUNK] }
    }

    /// Writes something of a folder, with those of its extended attributes that archives keep.
    pub fn add(&mut self, folder: &Folder, node: &Node, mut xattrs: Xattrs) -> Result<(), FilesError> {
        if node.file_type() == FileType::Socket {
            return Ok(());
        }
        xattrs.retain(|name, _| is_content(name));
        if let Some(name) = xattrs.keys().find(|name| name.contains(&b'=')) {
            let name = String::from_utf8_lossy(name).into_owned();
            return Err(FilesError::AttributeName { path: node.path.clone(), name });
        }
        let name = if node.name.is_empty() { b".".to_vec() } else { joined(b".", &node.name) };
        if node.file_type() != FileType::Directory && node.is_linked() {
            if let Some(target) = self.links.get(&node.inode()) {
                return self.head(node, &name, TarKind::HardLink { target: &target.clone() }, &Xattrs::new());
            }
            self.links.insert(node.inode(), name.clone());
        }
        let device = (major(node.stat.st_rdev), minor(node.stat.st_rdev));
        match node.file_type() {
            FileType::RegularFile => self.file(folder, node, &name, &xattrs),
            FileType::Symlink => {
                let target =
                    readlinkat(&folder.fd, &*node.file_name, Vec::new()).map_err(failed("read", &node.path))?;
                self.head(node, &name, TarKind::Symlink { target: target.to_bytes() }, &xattrs)
            }
            FileType::CharacterDevice => {
                self.head(node, &name, TarKind::CharDevice { major: device.0, minor: device.1 }, &xattrs)
            }
            FileType::BlockDevice => {
                self.head(node, &name, TarKind::BlockDevice { major: device.0, minor: device.1 }, &xattrs)
            }
            FileType::Fifo => self.head(node, &name, TarKind::Fifo, &xattrs),
            _ => self.head(node, &name, TarKind::Directory, &xattrs),
        }
    }

    /// Ends the archive.
    pub fn finish(self) -> Result<(), FilesError> {
        self.out.write_all(&END).and_then(|()| self.out.flush()).map_err(FilesError::Write)
    }

    fn file(&mut self, folder: &Folder, node: &Node, name: &[u8], xattrs: &Xattrs) -> Result<(), FilesError> {
        let changed_meanwhile = || FilesError::Changed { path: node.path.clone() };
        let (file, before) = open_file(folder, node)?.ok_or_else(changed_meanwhile)?;
        let size = u64::try_from(before.st_size).unwrap_or(0);
        let stretches = stretches(&file, size, &mut self.buf).map_err(failed("read", &node.path))?;
        let mut stored = stretches.iter().map(|stretch| stretch.end - stretch.start).sum();
        if stored == size {
            self.head(node, name, TarKind::File { size }, xattrs)?;
        } else {
            let map = sparse_map(&stretches);
            stored += map.len() as u64;
            self.head(node, name, TarKind::Sparse { size, stored }, xattrs)?;
            self.out.write_all(&map).map_err(FilesError::Write)?;
        }
        for Range { start: mut at, end } in stretches {
            while at < end {
                let part = (end - at).min(self.buf.len() as u64) as usize;
                let read = pread(&file, &mut self.buf[..part], at).map_err(failed("read", &node.path))?;
                if read == 0 {
                    return Err(changed_meanwhile());
                }
                self.out.write_all(&self.buf[..read]).map_err(FilesError::Write)?;
                at += read as u64;
            }
        }
        let after = fstat(&file).map_err(failed("look at", &node.path))?;
        if changed(&node.stat, &after) {
            return Err(changed_meanwhile());
        }
        self.out.write_all(padding(stored)).map_err(FilesError::Write)
    }

    fn head(&mut self, node: &Node, name: &[u8], kind: TarKind<'_>, xattrs: &Xattrs) -> Result<(), FilesError> {
        let stat = &node.stat;
        let (uid, gid) = (u64::from(stat.st_uid), u64::from(stat.st_gid));
        let (mtime, mtime_nanos) = (stat.st_mtime, stat.st_mtime_nsec as u32);
        let entry = TarEntry { name, kind, mode: node.mode(), uid, gid, mtime, mtime_nanos, xattrs };
        entry.write(&mut &mut *self.out).map_err(FilesError::Write)
    }
}

/// The extended attributes of something in a tree at rest.
pub(super) fn xattrs_of(folder: &Folder, node: &Node) -> Result<Xattrs, FilesError> {
    folder.xattrs(node)?.ok_or_else(|| FilesError::Changed { path: node.path.clone() })
}

/// Whether an extended attribute is part of what a container wrote, rather than of its host's or its filesystem's.
pub(super) fn is_content(xattr: &[u8]) -> bool {
    const NAMED: [&[u8]; 4] =
        [b"security.capability", b"security.ima", b"system.posix_acl_access", b"system.posix_acl_default"];
    let is_free = xattr.starts_with(b"user.") || xattr.starts_with(b"trusted.");
    is_free && !is_of_overlay(xattr) || NAMED.contains(&xattr)
}

/// Whether overlay keeps a note of its own in an extended attribute.
pub(super) fn is_of_overlay(xattr: &[u8]) -> bool {
    xattr.starts_with(b"trusted.overlay.") || xattr.starts_with(b"user.overlay.")
}
