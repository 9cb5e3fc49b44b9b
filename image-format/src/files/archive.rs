//! Writes trees of files as the tar that podman's restore extracts.

use std::collections::HashMap;
use std::ffi::CString;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::path::Path;

use rustix::fs::{FileType, fstat, major, minor, readlinkat};
use rustix::io::pread;

use super::node::{Folder, Node, Step, Walk, Xattrs, changed, failed, joined, open_file};
use super::sparse::stretches;
use super::{FilesError, Writers};
use crate::Limits;
use crate::archive::{
    ArchiveError, ArchiveReader, CHUNK, DETOUR, END, Entries, EntryKind, TarEntry, TarKind, padding, sparse_map,
    write_removal,
};

/// Writes a plain tar of what a folder holds, in sorted order, the folder itself first.
///
/// It is what `containers/storage` writes of a volume or `/dev/shm`, and extracts again: names start with `./`; owners are
/// numbers; modes, modification times (to the nanosecond), hard links, symbolic links, devices and pipes are kept; sockets
/// are left out. Of the extended attributes it keeps `user.*`, `trusted.*`, `security.capability`, `security.ima` and
/// POSIX access control lists: others (SELinux labels) belong to the host. A symbolic link that leads out of the folder is
/// written in a way that podman takes.
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
    let root = Folder::open(folder)?;
    let mut tar = Tar::new(out, Detour::around([&root])?);
    let mut walk = Walk::new(root, Writers::Frozen);
    while let Some(step) = walk.step()? {
        if let (Step::Enter(node) | Step::Leaf(node), Some(folder)) = (step, walk.folder()) {
            let xattrs = xattrs_of(folder, &node)?;
            tar.add(folder, &node, xattrs)?;
        }
    }
    tar.finish()
}

/// What an archive says of the very folder that it was made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchivedFolder {
    /// Whose it is.
    pub uid: u32,
    /// Whose group it is.
    pub gid: u32,
    /// Its permissions, at most `07777`.
    pub mode: u32,
}

/// Reads what an archive, such as one of [`archive_folder`], says of the folder that it was made
/// of; `None` if its first entry is not that folder.
///
/// # Errors
/// What is not the beginning of an archive; an owner that no host knows.
pub fn archived_folder(archive: impl Read, limits: &Limits) -> Result<Option<ArchivedFolder>, ArchiveError> {
    let Some(entry) = ArchiveReader::new(archive, limits).next_entry()? else { return Ok(None) };
    let is_top = entry.kind == EntryKind::Directory && entry.name.strip_suffix(b"/").unwrap_or(&entry.name) == b".";
    let id = |id: u64| u32::try_from(id).map_err(|error| ArchiveError::read(io::Error::other(error)));
    if !is_top {
        return Ok(None);
    }
    Ok(Some(ArchivedFolder { uid: id(entry.uid)?, gid: id(entry.gid)?, mode: entry.mode & 0o7777 }))
}

/// A tar that is being written.
pub(super) struct Tar<'a> {
    out: &'a mut dyn Write,
    /// Under which name a file that has further names was written.
    links: HashMap<(u64, u64), Vec<u8>>,
    detour: Detour,
    buf: Vec<u8>,
}

impl<'a> Tar<'a> {
    pub fn new(out: &'a mut dyn Write, detour: Detour) -> Self {
        Self { out, links: HashMap::new(), detour, buf: vec![0; CHUNK] }
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
                let link = TarKind::Symlink { target: target.to_bytes() };
                if !leads_out(&node.name, target.to_bytes()) {
                    return self.head(node, &name, link, &xattrs);
                }
                let deep = self.detour.next(target.to_bytes());
                self.head(node, &deep, link, &xattrs)?;
                self.head(node, &name, TarKind::HardLink { target: &deep }, &Xattrs::new())
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
    pub fn finish(mut self) -> Result<(), FilesError> {
        if let Some(folder) = self.detour.used() {
            write_removal(folder, &mut self.out).map_err(FilesError::Write)?;
        }
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

/// The way of symbolic links that lead out of their tree, past podman's refusal of them (`containers/storage`, `pkg/archive`).
///
/// podman follows a link by its text alone, from the folder that the link is in, and refuses the archive when that leads out of
/// the folder it extracts to. So such a link is written first into a folder that lies as deep as the link has `..`; a hard link
/// gives it its own name; and the folder is removed again by the archive's last entry, see [`write_removal`].
///
/// ```text
/// symbolic link  ./.syncpoint-links/-/-/0 -> ../../etc/x
/// hard link      ./out                    to ./.syncpoint-links/-/-/0
/// ...
/// removal        ./.syncpoint-links
/// ```
pub(super) struct Detour {
    /// A name that nothing in the tree has.
    folder: Vec<u8>,
    count: u64,
}

impl Detour {
    /// Finds a name that is free in all of these folders.
    pub fn around<'a>(folders: impl IntoIterator<Item = &'a Folder> + Clone) -> Result<Self, FilesError> {
        let mut folder = DETOUR.to_vec();
        loop {
            // It has no NUL.
            let name = CString::new(folder.clone()).unwrap_or_default();
            let mut taken = false;
            for root in folders.clone() {
                taken |= root.look(&name)?.is_some();
            }
            if !taken {
                return Ok(Self { folder: joined(b".", &folder), count: 0 });
            }
            folder.push(b'-');
        }
    }

    /// Where a link with this target is written first.
    fn next(&mut self, target: &[u8]) -> Vec<u8> {
        let depth = target.split(|byte| *byte == b'/').filter(|part| *part == b"..").count();
        let number = self.count.to_string();
        self.count += 1;
        [&self.folder[..], &b"/-".repeat(depth), b"/", number.as_bytes()].concat()
    }

    fn used(&self) -> Option<&[u8]> {
        (self.count > 0).then_some(&self.folder)
    }
}

/// Whether a link, followed by its text alone, leaves the tree on its way. An absolute one does not: its first `/` counts for
/// nothing there.
fn leads_out(name: &[u8], target: &[u8]) -> bool {
    let mut depth = name.iter().filter(|byte| **byte == b'/').count();
    for part in target.split(|byte| *byte == b'/') {
        match (part, depth) {
            (b"" | b".", _) => {}
            (b"..", 0) => return true,
            (b"..", _) => depth -= 1,
            _ => depth += 1,
        }
    }
    false
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::{Entry, write_header};

    #[test]
    fn an_archive_says_of_its_own_folder_whose_it_is() {
        let read = |name: &[u8], kind, uid| {
            let mut tar = Vec::new();
            let entry = Entry { mode: 0o1701, uid, gid: 4, ..Entry::plain(name, kind) };
            write_header(&entry, 0, &mut tar).unwrap();
            tar.extend(END);
            archived_folder(tar.as_slice(), &Limits::default())
        };
        let folder = Some(ArchivedFolder { uid: 3, gid: 4, mode: 0o1701 });
        assert_eq!(read(b".", EntryKind::Directory, 3).unwrap(), folder);
        assert_eq!(read(b"./a", EntryKind::Directory, 3).unwrap(), None);
        assert_eq!(read(b".", EntryKind::File { size: 0 }, 3).unwrap(), None);
        read(b".", EntryKind::Directory, u64::from(u32::MAX) + 1).unwrap_err();
        assert_eq!(archived_folder(END.as_slice(), &Limits::default()).unwrap(), None);
        archived_folder(b"no archive".as_slice(), &Limits::default()).unwrap_err();
    }

    #[test]
    fn links_that_lead_out() {
        for (name, target, out) in [
            ("a", "b", false),
            ("a", "..", true),
            ("a", "../x", true),
            ("a/b", "../x", false),
            ("a/b", "..", false),
            ("a/b", "../../x", true),
            ("a/b", "x/../../y", false),
            ("a/b", "x/../../../y", true),
            ("a/b", ".//./../x", false),
            // It comes back by its folder's name, which is another one where it is extracted.
            ("a", "../_data/x", true),
            ("a", "/etc/x", false),
            ("a", "/../x", true),
            ("a", "...", false),
        ] {
            assert_eq!(leads_out(name.as_bytes(), target.as_bytes()), out, "{name} -> {target}");
        }
    }

    #[test]
    fn the_detour_lies_as_deep_as_a_link_leads_up() {
        let mut detour = Detour { folder: b"./.d".to_vec(), count: 0 };
        assert_eq!(detour.used(), None);
        for (number, target) in ["..", "../../../etc/x", "a/../../b"].into_iter().enumerate() {
            let at = detour.next(target.as_bytes());
            assert!(at.ends_with(format!("/{number}").as_bytes()));
            assert!(!leads_out(&at[b"./".len()..], target.as_bytes()), "{target}");
        }
        assert_eq!(detour.used(), Some(&b"./.d"[..]));
    }
}
