//! Puts the archive of a container's files below a folder: the way back of `archive_folder` and `archive_upper`.
//!
//! An archive comes from elsewhere and may name anything. Each name is looked up by `openat2` with the folder as its root:
//! no `..`, no symbolic link and no mount leads out of it. What the archive has replaces what is there; folders are kept.

use std::collections::HashSet;
use std::ffi::CString;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, chmodat,
    chownat, linkat, lsetxattr, makedev, mkdirat, mknodat, openat, openat2, statat, symlinkat, utimensat,
};
use rustix::io::Errno;

use super::HoleWriter;
use super::archive::is_content;
use super::node::{handle, joined};
use super::remove::remove_in;
use crate::archive::{ArchiveError, ArchiveReader, CHUNK, EntryName, TreeEntry, TreeKind, parent};
use crate::{Digest, Limits};

/// A name that begins so removes what has the rest of it as its name (OCI image specification, layers).
const WHITEOUT: &[u8] = b".wh.";
/// A folder that has this shows nothing of what was in it before.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Notes of a filesystem.
const NOTES: &[u8] = b".wh..wh.";

/// Why an archive was not put into a folder. What came before is in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExtractError {
    /// The archive cannot be read, or has an entry that none may have.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A system call failed.
    #[error("cannot {action} {entry}")]
    Failed {
        /// What was tried, in words that go before the name.
        action: &'static str,
        /// The name, as the archive has it.
        entry: EntryName,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Extracts a plain tar below the folder that is open as `root`.
///
/// It takes what `archive_folder` and `archive_upper` write, what podman and CRI-O write as `rootfs-diff.tar`, and layers with
/// whiteouts, as containerd writes them. The folder itself keeps its owner and mode. Of the extended attributes those are set
/// that archives keep; one that the filesystem does not know is left out, but a file's capabilities are not.
///
/// # Errors
/// What the archive or the folder does not allow; on the way to a name, a link out of the folder ends at its top, and a mount
/// is refused.
pub fn extract(archive: impl Read, root: BorrowedFd<'_>, limits: &Limits) -> Result<(), ExtractError> {
    let mut reader = ArchiveReader::new(archive, limits).with_comments();
    let mut tree = Tree::new(root, limits);
    while let Some(entry) = reader.next_tree_entry()? {
        tree.put(&entry, &mut reader)?;
    }
    tree.set_times()
}

/// Whether an archive holds anything besides the very folder that it was made of.
///
/// # Errors
/// What is no archive.
pub fn has_content(archive: impl Read, limits: &Limits) -> Result<bool, ArchiveError> {
    let mut reader = ArchiveReader::new(archive, limits).with_comments();
    while let Some(entry) = reader.next_tree_entry()? {
        if entry.kind != TreeKind::Removal && !plain_name(&entry.name, limits)?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes what has these absolute paths below the folder that is open as `root`. What is not there is fine.
///
/// # Errors
/// A path that leads out; what cannot be removed, such as a folder with something mounted in it.
pub fn remove_paths<'p>(
    root: BorrowedFd<'_>,
    paths: impl IntoIterator<Item = &'p str>,
    limits: &Limits,
) -> Result<(), ExtractError> {
    let mut tree = Tree::new(root, limits);
    for path in paths {
        let shown = EntryName::new(path.as_bytes());
        let name = plain_name(path.trim_start_matches('/').as_bytes(), limits)?;
        if name.is_empty() {
            return Err(ArchiveError::BadName { entry: shown, problem: "is that of the whole root" }.into());
        }
        tree.remove(&name)?;
    }
    Ok(())
}

/// A folder into which an archive goes.
struct Tree<'r> {
    root: BorrowedFd<'r>,
    limits: &'r Limits,
    /// Names that came, and the folders on the way to them: an opaque folder keeps these.
    came: HashSet<Digest>,
    entries: u64,
    bytes: u64,
    /// Times of folders, which change as long as anything is put into them.
    times: Vec<(Vec<u8>, Timespec)>,
    /// The folder of the last name.
    folder: Option<(Vec<u8>, OwnedFd)>,
}

impl<'r> Tree<'r> {
    fn new(root: BorrowedFd<'r>, limits: &'r Limits) -> Self {
        Self { root, limits, came: HashSet::new(), entries: 0, bytes: 0, times: Vec::new(), folder: None }
    }

    fn put(&mut self, entry: &TreeEntry, content: &mut impl Read) -> Result<(), ExtractError> {
        let name = plain_name(&entry.name, self.limits)?;
        let file_name = last(&name);
        if entry.kind == TreeKind::Removal {
            return self.remove(&name);
        }
        self.count(entry)?;
        if name.is_empty() {
            let problem = "is that of the whole root, and is no folder's";
            let bad = ArchiveError::BadName { entry: EntryName::new(&entry.name), problem };
            return if entry.kind == TreeKind::Directory { Ok(()) } else { Err(bad.into()) };
        }
        if file_name == OPAQUE {
            return self.make_opaque(parent(&name).unwrap_or_default());
        }
        if name.split(|byte| *byte == b'/').any(|part| part.starts_with(NOTES)) {
            return Ok(());
        }
        if let Some(hidden) = file_name.strip_prefix(WHITEOUT) {
            return self.remove(&joined(parent(&name).unwrap_or_default(), hidden));
        }
        self.note(&name);
        self.make(&name, entry, content)
    }

    /// Makes what an entry says, in place of what is there.
    fn make(&mut self, name: &[u8], entry: &TreeEntry, content: &mut impl Read) -> Result<(), ExtractError> {
        let failed = |action| failed(action, &entry.name);
        let file_name = c_name(last(name));
        let link = match &entry.kind {
            TreeKind::HardLink { target } => {
                let target = plain_name(target, self.limits)?;
                if target == name {
                    return Ok(());
                }
                Some((self.open_parent(&target, &entry.name)?, c_name(last(&target))))
            }
            _ => None,
        };
        let is_folder = entry.kind == TreeKind::Directory;
        let parent = self.open_parent(name, &entry.name)?;
        let is_there = match statat(&parent, &*file_name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => is_folder && FileType::from_raw_mode(stat.st_mode) == FileType::Directory,
            Err(Errno::NOENT) => false,
            Err(error) => return Err(failed("look at")(error)),
        };
        if !is_there {
            remove_in(parent.as_fd(), &file_name).map_err(|error| failed_with("replace", &entry.name, error))?;
            self.folder = None;
        }
        match &entry.kind {
            TreeKind::File { .. } => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = openat(&parent, &*file_name, flags, Mode::RUSR | Mode::WUSR).map_err(failed("make"))?;
                let mut file = HoleWriter::new(file.into());
                copy(content, &mut file, &entry.name)?;
                file.finish().map_err(|error| failed_with("write", &entry.name, error))?;
            }
            TreeKind::Directory if is_there => {}
            TreeKind::Directory => mkdirat(&parent, &*file_name, Mode::RWXU).map_err(failed("make"))?,
            TreeKind::Symlink { target } => symlinkat(&**target, &parent, &*file_name).map_err(failed("make"))?,
            TreeKind::HardLink { .. } => {
                let Some((from, target)) = link else { return Ok(()) };
                // Owner, mode and attributes are those of the file that is there.
                return linkat(from, &*target, &parent, &*file_name, AtFlags::empty()).map_err(failed("link"));
            }
            TreeKind::CharDevice { major, minor } => {
                let device = makedev(*major, *minor);
                let made = mknodat(&parent, &*file_name, FileType::CharacterDevice, Mode::empty(), device);
                made.map_err(failed("make the device"))?;
            }
            TreeKind::BlockDevice { major, minor } => {
                let device = makedev(*major, *minor);
                let made = mknodat(&parent, &*file_name, FileType::BlockDevice, Mode::empty(), device);
                made.map_err(failed("make the device"))?;
            }
            TreeKind::Fifo => {
                mknodat(&parent, &*file_name, FileType::Fifo, Mode::empty(), 0).map_err(failed("make"))?
            }
            TreeKind::Removal => {}
        }
        self.set_attributes(parent.as_fd(), name, entry)
    }

    fn set_attributes(&mut self, parent: BorrowedFd<'_>, name: &[u8], entry: &TreeEntry) -> Result<(), ExtractError> {
        let failed = |action| failed(action, &entry.name);
        let file_name = c_name(last(name));
        let id = |id: u64| u32::try_from(id).map_err(|error| ArchiveError::read(io::Error::other(error)));
        let owner = (Some(Uid::from_raw(id(entry.uid)?)), Some(Gid::from_raw(id(entry.gid)?)));
        // The owner first: a change of it takes away set-user-id bits and a file's capabilities.
        chownat(parent, &*file_name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed("change the owner of"))?;
        if !matches!(entry.kind, TreeKind::Symlink { .. }) {
            let mode = Mode::from_raw_mode(entry.mode);
            chmodat(parent, &*file_name, mode, AtFlags::empty()).map_err(failed("change the mode of"))?;
        }
        let at = handle(parent, &file_name);
        for (key, value) in entry.xattrs.iter().filter(|(key, _)| is_content(key)) {
            match lsetxattr(&*at, &**key, value, XattrFlags::empty()) {
                Ok(()) => {}
                Err(Errno::NOTSUP) if key != b"security.capability" => {}
                Err(error) => return Err(failed("set an extended attribute of")(error)),
            }
        }
        let mtime = Timespec { tv_sec: entry.mtime, tv_nsec: entry.mtime_nanos.into() };
        if entry.kind == TreeKind::Directory {
            self.times.push((name.to_vec(), mtime));
            return Ok(());
        }
        utimensat(parent, &*file_name, &modified(mtime), AtFlags::SYMLINK_NOFOLLOW).map_err(failed("set the time of"))
    }

    /// The last step: nothing is put into a folder any more.
    fn set_times(mut self) -> Result<(), ExtractError> {
        for (name, mtime) in std::mem::take(&mut self.times).into_iter().rev() {
            // A later entry may have taken its place.
            let Some(parent) = self.find_parent(&name, &name)? else { continue };
            match utimensat(&parent, &*c_name(last(&name)), &modified(mtime), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(failed("set the time of", &name)(error)),
            }
        }
        Ok(())
    }

    fn remove(&mut self, name: &[u8]) -> Result<(), ExtractError> {
        self.folder = None;
        if last(name).is_empty() {
            let problem = "removes nothing";
            return Err(ArchiveError::BadName { entry: EntryName::new(name), problem }.into());
        }
        let Some(parent) = self.find_parent(name, name)? else { return Ok(()) };
        remove_in(parent.as_fd(), &c_name(last(name))).map_err(|error| failed_with("remove", name, error))
    }

    /// Removes from a folder all that did not come by this archive.
    fn make_opaque(&mut self, name: &[u8]) -> Result<(), ExtractError> {
        self.folder = None;
        let Some(folder) = self.find_parent(&joined(name, b"x"), name)? else { return Ok(()) };
        let folder = openat(&folder, c".", super::node::DOWN, Mode::empty()).map_err(failed("open", name))?;
        for entry in rustix::fs::Dir::read_from(&folder).map_err(failed("list", name))? {
            let entry = entry.map_err(failed("list", name))?;
            let below = entry.file_name();
            let is_own = matches!(below.to_bytes(), b"." | b"..");
            if !is_own && !self.came.contains(&Digest::of(&joined(name, below.to_bytes()))) {
                remove_in(folder.as_fd(), below).map_err(|error| failed_with("empty", name, error))?;
            }
        }
        Ok(())
    }

    /// The folder of a name, with the folders on the way to it, which are made where they are missing.
    fn open_parent(&mut self, name: &[u8], shown: &[u8]) -> Result<OwnedFd, ExtractError> {
        let folder = parent(name).unwrap_or_default();
        if let Some((_, fd)) = self.folder.as_ref().filter(|(known, _)| known == folder) {
            return fd.try_clone().map_err(|error| failed_with("open the folder of", shown, error));
        }
        let opened = match self.find_parent(name, shown)? {
            Some(opened) => opened,
            None => self.make_parents(folder, shown)?,
        };
        let kept = opened.try_clone().map_err(|error| failed_with("open the folder of", shown, error))?;
        self.folder = Some((folder.to_vec(), kept));
        Ok(opened)
    }

    fn find_parent(&self, name: &[u8], shown: &[u8]) -> Result<Option<OwnedFd>, ExtractError> {
        match self.open(parent(name).unwrap_or_default()) {
            Ok(folder) => Ok(Some(folder)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(failed("open the folder of", shown)(error)),
        }
    }

    fn make_parents(&self, folder: &[u8], shown: &[u8]) -> Result<OwnedFd, ExtractError> {
        let failed = |error| failed("make the folder of", shown)(error);
        let mut way = Vec::new();
        let mut opened = self.open(&way).map_err(failed)?;
        for part in folder.split(|byte| *byte == b'/') {
            way = joined(&way, part);
            opened = match self.open(&way) {
                Err(Errno::NOENT) => {
                    mkdirat(&opened, &*c_name(part), Mode::from_raw_mode(0o755)).map_err(failed)?;
                    self.open(&way).map_err(failed)?
                }
                opened => opened.map_err(failed)?,
            };
        }
        Ok(opened)
    }

    /// Opens a folder by its way from the root, as a process whose root it is would, on one mount.
    fn open(&self, folder: &[u8]) -> Result<OwnedFd, Errno> {
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let path = if folder.is_empty() { b"." } else { folder };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // A rename elsewhere on the filesystem can make the kernel give up for now.
        for _ in 0..8 {
            match openat2(self.root, path, flags, Mode::empty(), within) {
                Err(Errno::AGAIN) => {}
                opened => return opened,
            }
        }
        Err(Errno::AGAIN)
    }

    fn note(&mut self, name: &[u8]) {
        let mut way = Some(name);
        while let Some(name) = way {
            if !self.came.insert(Digest::of(name)) {
                break;
            }
            way = parent(name);
        }
    }

    fn count(&mut self, entry: &TreeEntry) -> Result<(), ExtractError> {
        let shown = || EntryName::new(&entry.name);
        self.entries += 1;
        if self.entries > self.limits.entries {
            let limit = self.limits.entries;
            return Err(ArchiveError::TooManyEntries { entry: shown(), limit }.into());
        }
        let TreeKind::File { size } = entry.kind else { return Ok(()) };
        let limit = self.limits.total_bytes;
        match self.bytes.checked_add(size).filter(|total| *total <= limit) {
            Some(total) => self.bytes = total,
            None => return Err(ArchiveError::TooLarge { entry: shown(), size, limit }.into()),
        }
        Ok(())
    }
}

fn modified(mtime: Timespec) -> Timestamps {
    Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, last_modification: mtime }
}

/// The content of a file; what cannot be read of the archive is told from what cannot be written.
fn copy(content: &mut impl Read, file: &mut HoleWriter, name: &[u8]) -> Result<(), ExtractError> {
    use std::io::Write;
    let mut buf = vec![0; CHUNK];
    loop {
        match content.read(&mut buf) {
            Ok(0) => return Ok(()),
            Ok(read) => file.write_all(&buf[..read]).map_err(|error| failed_with("write", name, error))?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(ArchiveError::read(error).into()),
        }
    }
}

/// A name without `.`, doubled or closing separators; empty for the folder itself.
fn plain_name(name: &[u8], limits: &Limits) -> Result<Vec<u8>, ArchiveError> {
    let entry = || EntryName::new(name);
    let (len, limit) = (name.len(), limits.name_bytes);
    if len > limit {
        return Err(ArchiveError::NameTooLong { entry: entry(), len, limit });
    }
    if name.starts_with(b"/") {
        return Err(ArchiveError::AbsoluteName { entry: entry() });
    }
    if name.contains(&0) {
        return Err(ArchiveError::BadName { entry: entry(), problem: "holds a NUL" });
    }
    let parts = name.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
    let parts: Vec<_> = parts.collect();
    if parts.contains(&&b".."[..]) {
        return Err(ArchiveError::NameLeaves { entry: entry() });
    }
    Ok(parts.join(&b'/'))
}

fn last(name: &[u8]) -> &[u8] {
    name.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

/// Names without a NUL, which `plain_name` gives.
fn c_name(name: &[u8]) -> CString {
    CString::new(name).unwrap_or_default()
}

fn failed(action: &'static str, name: &[u8]) -> impl FnOnce(Errno) -> ExtractError + Copy {
    move |error| failed_with(action, name, error.into())
}

fn failed_with(action: &'static str, name: &[u8], source: io::Error) -> ExtractError {
    ExtractError::Failed { action, entry: EntryName::new(name), source }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::Path;

    use rustix::fs::open;

    use super::*;
    use crate::archive::{END, TarEntry, TarKind, padding};
    use crate::files::{Writers, archive_folder, clone_tree};

    fn opened(folder: &Path) -> OwnedFd {
        open(folder, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    fn tar(entries: &[(&str, TarKind<'_>, &[u8])]) -> Vec<u8> {
        let mut tar = Vec::new();
        let me = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        for (name, kind, content) in entries {
            let (uid, gid, xattrs) = (me.0.into(), me.1.into(), &BTreeMap::new());
            let name = name.as_bytes();
            let entry = TarEntry { name, kind: *kind, mode: 0o640, uid, gid, mtime: 7, mtime_nanos: 5, xattrs };
            entry.write(&mut tar).unwrap();
            tar.extend_from_slice(content);
            tar.extend_from_slice(padding(content.len() as u64));
        }
        tar.extend_from_slice(&END);
        tar
    }

    fn file(content: &[u8]) -> TarKind<'static> {
        TarKind::File { size: content.len() as u64 }
    }

    fn put(tar: &[u8], folder: &Path) -> Result<(), ExtractError> {
        extract(tar, opened(folder).as_fd(), &Limits::default())
    }

    /// A folder with another one beside it, which nothing may touch.
    fn folders() -> (tempfile::TempDir, std::path::PathBuf, std::path::PathBuf) {
        let top = tempfile::tempdir().unwrap();
        let (root, outside) = (top.path().join("root"), top.path().join("outside"));
        fs::create_dir(&root).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "kept").unwrap();
        (top, root, outside)
    }

    #[test]
    fn what_was_archived_is_there_again() {
        let (top, root, _) = folders();
        let from = top.path().join("from");
        fs::create_dir_all(from.join("a/b")).unwrap();
        fs::write(from.join("a/b/file"), "content").unwrap();
        fs::set_permissions(from.join("a/b/file"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::set_permissions(from.join("a"), fs::Permissions::from_mode(0o1711)).unwrap();
        fs::hard_link(from.join("a/b/file"), from.join("second")).unwrap();
        symlink("../../../outside", from.join("a/out")).unwrap();
        symlink("b", from.join("a/in")).unwrap();
        nix::unistd::mkfifo(&from.join("pipe"), nix::sys::stat::Mode::from_bits_truncate(0o604)).unwrap();
        let holes = fs::File::create(from.join("holes")).unwrap();
        holes.set_len(8 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&holes, b"end", (8 << 20) - 3).unwrap();
        let mut before = Vec::new();
        archive_folder(&from, &mut before).unwrap();
        put(&before, &root).unwrap();
        let mut after = Vec::new();
        archive_folder(&root, &mut after).unwrap();
        // The folder itself is its owner's.
        let entries = |tar: &[u8]| {
            let mut reader = ArchiveReader::new(tar, &Limits::default()).with_comments();
            let mut entries = Vec::new();
            while let Some(entry) = reader.next_tree_entry().unwrap() {
                let mut content = Vec::new();
                reader.read_to_end(&mut content).unwrap();
                entries.push((entry, content));
            }
            entries
        };
        assert_eq!(entries(&before)[1..], entries(&after)[1..]);
        assert!(root.join("holes").metadata().unwrap().blocks() < 1024);
        assert_eq!(root.join("second").metadata().unwrap().nlink(), 2);
        let copy = top.path().join("copy");
        fs::create_dir(&copy).unwrap();
        clone_tree(&root, &copy.join("c"), Writers::Frozen).unwrap();
        // Once more over itself: nothing is in the way.
        put(&before, &root).unwrap();
        assert_eq!(entries(&before).len(), entries(&after).len());
    }

    #[test]
    fn no_name_and_no_link_leads_out() {
        let (_top, root, outside) = folders();
        for name in ["../outside/x", "/etc/x", "a/../../outside/x"] {
            assert!(put(&tar(&[(name, file(b"x"), b"x")]), &root).is_err(), "{name}");
        }
        let target = outside.to_str().unwrap().as_bytes();
        let link = TarKind::Symlink { target };
        // Below the root its path leads nowhere, and nothing is made there.
        assert!(put(&tar(&[("./link", link, b""), ("./link/x", file(b"x"), b"x")]), &root).is_err());
        let up = TarKind::Symlink { target: b"../../../../.." };
        put(&tar(&[("./up", up, b""), ("./up/y", file(b"y"), b"y")]), &root).unwrap();
        assert_eq!(fs::read(root.join("y")).unwrap(), b"y");
        let hard = TarKind::HardLink { target: b"../outside/kept" };
        assert!(put(&tar(&[("./h", hard, b"")]), &root).is_err());
        let hard = TarKind::HardLink { target: b"link/kept" };
        assert!(put(&tar(&[("./h", hard, b"")]), &root).is_err());
        // A file in the place of a link, not where the link leads.
        symlink(outside.join("kept"), root.join("f")).unwrap();
        put(&tar(&[("./f", file(b"new"), b"new")]), &root).unwrap();
        assert_eq!(fs::read(root.join("f")).unwrap(), b"new");
        symlink(&outside, root.join("d")).unwrap();
        put(&tar(&[("./d", TarKind::Directory, b"")]), &root).unwrap();
        assert!(root.join("d").symlink_metadata().unwrap().is_dir());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        assert_eq!(fs::read(outside.join("kept")).unwrap(), b"kept");
    }

    #[test]
    fn what_was_deleted_is_gone_and_nothing_else() {
        let (_top, root, outside) = folders();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/c"), "").unwrap();
        fs::write(root.join("a/d"), "").unwrap();
        symlink(&outside, root.join("out")).unwrap();
        let limits = Limits::default();
        let remove = |path: &str| remove_paths(opened(&root).as_fd(), [path], &limits);
        remove("/a/b").unwrap();
        assert!(!root.join("a/b").exists() && root.join("a/d").exists());
        remove("/a/b").unwrap();
        remove("/nothing/there").unwrap();
        remove("/out/kept").unwrap();
        remove("/out").unwrap();
        assert!(root.join("out").symlink_metadata().is_err() && outside.join("kept").exists());
        for path in ["", "/", "/..", "/a/../../outside", "a/../b"] {
            assert!(remove(path).is_err(), "{path}");
        }
        assert!(root.join("a/d").exists());
    }

    #[test]
    fn whiteouts_of_layers() {
        let (_top, root, _) = folders();
        for path in ["gone", "folder/old", "folder/deep/old", "kept"] {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "old").unwrap();
        }
        put(
            &tar(&[
                ("folder", TarKind::Directory, b""),
                ("folder/new", file(b"n"), b"n"),
                ("folder/deep/new", file(b"n"), b"n"),
                ("folder/.wh..wh..opq", file(b""), b""),
                (".wh.gone", file(b""), b""),
                ("not/there/.wh.x", file(b""), b""),
                (".wh..wh.plnk/1", file(b""), b""),
            ]),
            &root,
        )
        .unwrap();
        let there = |path: &str| root.join(path).exists();
        assert!(there("folder/new") && there("folder/deep/new") && there("kept"));
        assert!(!there("folder/old") && !there("gone") && !there("not") && !there(".wh..wh.plnk"));
        assert!(put(&tar(&[(".wh.", file(b""), b"")]), &root).is_err());
    }

    #[test]
    fn times_are_set_last_and_limits_hold() {
        let (_top, root, _) = folders();
        let entries = [("./d", TarKind::Directory, &b""[..]), ("./d/f", file(b"x"), b"x"), ("./n/f", file(b"y"), b"y")];
        put(&tar(&entries), &root).unwrap();
        for path in ["d", "d/f", "n/f"] {
            let facts = root.join(path).metadata().unwrap();
            assert_eq!((facts.mtime(), facts.mtime_nsec(), facts.mode() & 0o7777), (7, 5, 0o640), "{path}");
        }
        assert_eq!(root.join("n").metadata().unwrap().mode() & 0o7777, 0o755);
        for limits in [Limits { entries: 2, ..Limits::default() }, Limits { total_bytes: 1, ..Limits::default() }] {
            assert!(extract(&tar(&entries)[..], opened(&root).as_fd(), &limits).is_err(), "{limits:?}");
        }
        assert!(put(b"no archive", &root).is_err());
        assert!(put(&tar(&entries)[..1000], &root).is_err());
    }

    #[test]
    fn only_the_folder_itself_is_no_content() {
        let limits = Limits::default();
        let has = |entries| has_content(&tar(entries)[..], &limits).unwrap();
        assert!(!has(&[]) && !has(&[(".", TarKind::Directory, b"")]));
        assert!(has(&[(".", TarKind::Directory, b""), ("./f", file(b""), b"")]));
    }
}
