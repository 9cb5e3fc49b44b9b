//! Files that were taken at the frozen instant and go into a dump in place of what the engine itself put there later.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::vec;

use super::{DumpError, open_file};
use crate::archive::{ArchiveError, Entries, Entry, EntryKind, EntryName, parent};

/// Which files take the place of a dump's own, by their names in the dump.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Captured(BTreeMap<String, PathBuf>);

impl Captured {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The file at `path` is the dump's `name`, such as `rootfs-diff.tar` or `volumes/data.tar`: relative, without `.` or
    /// `..`. A name that was there already is replaced.
    pub fn add(&mut self, name: impl Into<String>, path: impl Into<PathBuf>) {
        self.0.insert(name.into(), path.into());
    }

    /// The names and files, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.0.iter().map(|(name, path)| (name.as_str(), path.as_path()))
    }

    pub(super) fn open(&self) -> Result<Vec<AddedFile>, DumpError> {
        self.iter().map(|(name, path)| AddedFile::open(name, path)).collect()
    }
}

/// A file that is no part of the dump's own archive or folder, but of the dump.
#[derive(Debug)]
pub(super) struct AddedFile {
    name: Vec<u8>,
    file: File,
    size: u64,
    mtime: u64,
}

impl AddedFile {
    pub fn open(name: &str, path: &Path) -> Result<Self, DumpError> {
        let file = open_file(path)?;
        let metadata = file.metadata().map_err(|source| DumpError::Open { path: path.to_owned(), source })?;
        if !metadata.is_file() {
            return Err(DumpError::NotADump {
                path: path.to_owned(),
                problem: "no file, and cannot be part of a dump",
            });
        }
        let mtime = u64::try_from(metadata.mtime()).unwrap_or(0);
        Ok(Self { name: name.into(), file, size: metadata.len(), mtime })
    }

    /// Its name in the dump.
    pub fn name(&self) -> &[u8] {
        &self.name
    }
}

/// The entries of a dump, without those that are replaced, and with the added files last.
pub(crate) struct Replaced {
    inner: Box<dyn Entries>,
    names: BTreeSet<Vec<u8>>,
    /// Folders of the added files that have not come yet: what brings along no folder leaves its permissions to engines.
    folders: BTreeSet<Vec<u8>>,
    added: vec::IntoIter<AddedFile>,
    /// Whether the inner entries are through.
    through: bool,
    current: Option<AddedFile>,
}

impl Replaced {
    pub(super) fn new(inner: Box<dyn Entries>, added: Vec<AddedFile>) -> Self {
        let names: BTreeSet<_> = added.iter().map(|file| file.name.clone()).collect();
        let mut folders = BTreeSet::new();
        for name in &names {
            let mut name = &name[..];
            while let Some(above) = parent(name) {
                folders.insert(above.to_vec());
                name = above;
            }
        }
        Self { inner, names, folders, added: added.into_iter(), through: false, current: None }
    }

    fn next_inner(&mut self) -> Result<Option<Entry>, ArchiveError> {
        while let Some(entry) = self.inner.next_entry()? {
            let name = plain(&entry.name);
            if entry.kind == EntryKind::Directory {
                self.folders.remove(&name);
            } else if self.names.contains(&name) {
                continue;
            }
            return Ok(Some(entry));
        }
        self.through = true;
        Ok(None)
    }
}

impl Entries for Replaced {
    fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        if !self.through
            && let Some(entry) = self.next_inner()?
        {
            return Ok(Some(entry));
        }
        self.current = None;
        if let Some(name) = self.folders.pop_first() {
            return Ok(Some(Entry::plain(name, EntryKind::Directory)));
        }
        let Some(file) = self.added.next() else {
            return Ok(None);
        };
        let plain = Entry::plain(file.name.as_slice(), EntryKind::File { size: file.size });
        let entry = Entry { mtime: file.mtime, ..plain };
        self.current = Some(file);
        Ok(Some(entry))
    }
}

impl Read for Replaced {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some(current) = &mut self.current else {
            return if self.through { Ok(0) } else { self.inner.read(buf) };
        };
        let part = current.size.min(buf.len() as u64) as usize;
        let read = current.file.read(&mut buf[..part])?;
        if read == 0 && part > 0 {
            return Err(io::Error::other(ArchiveError::Changed { entry: EntryName::new(&current.name) }));
        }
        current.size -= read as u64;
        Ok(read)
    }
}

/// A name as engines write it (`./a`, `a/`) in the form in which names are compared. What is unsafe stays so, and is refused
/// where every name is looked at.
fn plain(name: &[u8]) -> Vec<u8> {
    let components = name.split(|byte| *byte == b'/').filter(|component| !matches!(*component, b"" | b"."));
    components.collect::<Vec<_>>().join(&b'/')
}
