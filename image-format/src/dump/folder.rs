//! Reads a dump that lies in a folder: in sorted order, owned by nobody in particular, so that every copy of the folder
//! gives the same entries.

use std::ffi::OsString;
use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::vec;

use nix::fcntl::OFlag;

use crate::Limits;
use crate::archive::{ArchiveError, Entries, Entry, EntryKind, EntryName, stays_inside};

/// Gives the entries of a folder. Permissions, owners and extended attributes are those of the user who copied the folder
/// last, so they are not kept: folders become 0700, files 0600, all of them 0:0.
#[derive(Debug)]
pub(super) struct FolderReader {
    limits: Limits,
    /// What goes before every name: `checkpoint`, or nothing.
    prefix: &'static [u8],
    start: Option<PathBuf>,
    open: Vec<Level>,
    file: Option<OpenFile>,
}

/// A folder on the way down: what is still to come of it.
#[derive(Debug)]
struct Level {
    path: PathBuf,
    name: Vec<u8>,
    children: vec::IntoIter<OsString>,
}

#[derive(Debug)]
struct OpenFile {
    shown: EntryName,
    file: File,
    left: u64,
}

impl FolderReader {
    pub fn new(root: &Path, prefix: &'static [u8], limits: &Limits) -> Self {
        Self { limits: limits.clone(), prefix, start: Some(root.to_owned()), open: Vec::new(), file: None }
    }

    /// Begins a folder; its name is relative to the root.
    fn enter(&mut self, path: PathBuf, name: Vec<u8>) -> Result<(), ArchiveError> {
        if self.open.len() > self.limits.name_depth {
            return Err(ArchiveError::TooDeep { entry: EntryName::new(&name), limit: self.limits.name_depth });
        }
        let mut children = Vec::new();
        for child in fs::read_dir(&path).map_err(ArchiveError::Read)? {
            if children.len() as u64 >= self.limits.entries {
                return Err(ArchiveError::TooManyEntries { entry: EntryName::new(&name), limit: self.limits.entries });
            }
            children.push(child.map_err(ArchiveError::Read)?.file_name());
        }
        children.sort_unstable_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
        self.open.push(Level { path, name, children: children.into_iter() });
        Ok(())
    }

    fn entry(&mut self, path: PathBuf, name: Vec<u8>) -> Result<Entry, ArchiveError> {
        let shown = EntryName::new(&name);
        let metadata = fs::symlink_metadata(&path).map_err(ArchiveError::Read)?;
        let kind = metadata.file_type();
        let made = if kind.is_dir() {
            self.enter(path, name.clone())?;
            EntryKind::Directory
        } else if kind.is_symlink() {
            let target = fs::read_link(&path).map_err(ArchiveError::Read)?.into_os_string().into_vec();
            // Checked here as well, since below a prefix more of it would count as inside.
            if !stays_inside(&name, &target) {
                return Err(ArchiveError::LinkLeaves { entry: shown, target: EntryName::new(&target) });
            }
            EntryKind::Symlink { target }
        } else if kind.is_file() {
            let file = open_file(&path, &metadata).map_err(ArchiveError::Read)?;
            let file = file.ok_or_else(|| ArchiveError::Changed { entry: shown.clone() })?;
            self.file = Some(OpenFile { shown, file, left: metadata.len() });
            EntryKind::File { size: metadata.len() }
        } else {
            return Err(ArchiveError::UnsupportedType { entry: shown, kind: in_words(kind) });
        };
        Ok(plain_entry(&prefixed(self.prefix, &name), made, &metadata))
    }
}

impl Entries for FolderReader {
    fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        if let Some(root) = self.start.take() {
            let metadata = fs::metadata(&root).map_err(ArchiveError::Read)?;
            self.enter(root, Vec::new())?;
            return Ok(Some(plain_entry(&prefixed(self.prefix, b""), EntryKind::Directory, &metadata)));
        }
        if let Some(mut open) = self.file.take()
            && (open.left > 0 || open.file.read(&mut [0]).map_err(ArchiveError::Read)? > 0)
        {
            return Err(ArchiveError::Changed { entry: open.shown });
        }
        while let Some(level) = self.open.last_mut() {
            match level.children.next() {
                Some(child) => {
                    let path = level.path.join(&child);
                    let name = prefixed(&level.name, child.as_bytes());
                    return self.entry(path, name).map(Some);
                }
                None => drop(self.open.pop()),
            }
        }
        Ok(None)
    }
}

impl Read for FolderReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some(open) = &mut self.file else {
            return Ok(0);
        };
        let part = open.left.min(buf.len() as u64) as usize;
        let read = open.file.read(&mut buf[..part])?;
        if read == 0 && part > 0 {
            return Err(io::Error::other(ArchiveError::Changed { entry: open.shown.clone() }));
        }
        open.left -= read as u64;
        Ok(read)
    }
}

/// Opens what was looked at, or nothing if something else is there by now.
fn open_file(path: &Path, seen: &Metadata) -> io::Result<Option<File>> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    let metadata = file.metadata()?;
    let same = (metadata.dev(), metadata.ino(), metadata.len()) == (seen.dev(), seen.ino(), seen.len());
    Ok(Some(file).filter(|_| same))
}

fn plain_entry(name: &[u8], kind: EntryKind, metadata: &Metadata) -> Entry {
    let mtime = u64::try_from(metadata.mtime()).unwrap_or(0);
    Entry { mtime, ..Entry::plain(name, kind) }
}

fn prefixed(prefix: &[u8], name: &[u8]) -> Vec<u8> {
    match (prefix, name) {
        (b"", b"") => b".".to_vec(),
        (b"", name) => name.to_vec(),
        (prefix, b"") => prefix.to_vec(),
        (prefix, name) => [prefix, b"/", name].concat(),
    }
}

fn in_words(kind: FileType) -> &'static str {
    if kind.is_char_device() {
        "character device"
    } else if kind.is_block_device() {
        "block device"
    } else if kind.is_fifo() {
        "named pipe"
    } else {
        "socket"
    }
}
