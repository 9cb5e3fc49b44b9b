//! Reads a dump that came file by file: as a folder with these files would be read.

use std::io::{self, Read};
use std::sync::Arc;
use std::vec;

use crate::archive::{ArchiveError, Entries, Entry, EntryKind};
use crate::image_streamer::ImageFiles;

/// Gives CRIU's folder and its files, sorted by name.
#[derive(Debug)]
pub(super) struct SpooledReader {
    files: Arc<ImageFiles>,
    modified: u64,
    /// Whether the folder came.
    begun: bool,
    rest: vec::IntoIter<(String, u64)>,
    /// The file that is read, and from where.
    open: Option<(String, u64)>,
}

impl SpooledReader {
    pub fn new(files: Arc<ImageFiles>, modified: u64) -> Self {
        let names: Vec<_> = files.sizes().map(|(name, size)| (name.to_owned(), size)).collect();
        Self { files, modified, begun: false, rest: names.into_iter(), open: None }
    }
}

impl Entries for SpooledReader {
    fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let entry = |name: &str, kind| Entry { mtime: self.modified, ..Entry::plain(name, kind) };
        if !self.begun {
            self.begun = true;
            return Ok(Some(entry("checkpoint", EntryKind::Directory)));
        }
        let Some((name, size)) = self.rest.next() else {
            self.open = None;
            return Ok(None);
        };
        let entry = entry(&format!("checkpoint/{name}"), EntryKind::File { size });
        self.open = Some((name, 0));
        Ok(Some(entry))
    }
}

impl Read for SpooledReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some((name, at)) = &mut self.open else {
            return Ok(0);
        };
        let read = self.files.read_at(name, *at, buf)?;
        *at += read as u64;
        Ok(read)
    }
}
