//! The images that came through pipes, until they are packed: the first bytes of all of them in memory, the rest in files without
//! names.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::StreamerError;
use crate::page_server::{Spool, save};

/// Files that are taken: CRIU has some ten for a process.
const MAX_FILES: usize = 500_000;

/// CRIU's images by name. Dropped, they leave nothing behind.
pub struct ImageFiles {
    folder: PathBuf,
    /// Bytes that may still stay in memory. Once there are none, there never are again.
    left: usize,
    files: BTreeMap<String, Spool>,
}

impl ImageFiles {
    /// None yet. Bytes beyond `memory_bytes` go into files without names in `folder`.
    #[must_use]
    pub fn new(folder: &Path, memory_bytes: usize) -> Self {
        Self { folder: folder.to_owned(), left: memory_bytes, files: BTreeMap::new() }
    }

    /// Begins a file. The name is one that [`super::requested`] gave.
    ///
    /// # Errors
    /// It was there before; there are too many.
    pub fn begin(&mut self, name: &str) -> Result<(), StreamerError> {
        if self.files.len() >= MAX_FILES {
            return Err(StreamerError::TooMany { limit: MAX_FILES });
        }
        if self.files.contains_key(name) {
            return Err(StreamerError::Twice { name: name.to_owned() });
        }
        self.files.insert(name.to_owned(), Spool::new(&self.folder, 0));
        Ok(())
    }

    /// Adds bytes to a file that was begun.
    ///
    /// # Errors
    /// It was not, or a file cannot be written.
    pub fn add(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let file = self.files.get_mut(name).ok_or(io::ErrorKind::NotFound)?;
        let in_memory = bytes.len().min(self.left);
        self.left -= in_memory;
        file.allow(in_memory);
        file.add(bytes)
    }

    /// Whether there is a file of that name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// Bytes of all files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.values().map(Spool::len).sum()
    }

    /// Writes all of them into a folder, for its owner alone.
    ///
    /// # Errors
    /// A file that is there already or cannot be written.
    pub fn save(&self, folder: &Path) -> io::Result<()> {
        self.files.iter().try_for_each(|(name, file)| save(&folder.join(name), &mut file.reader(0, file.len())))
    }

    /// Names and sizes, by name.
    pub(crate) fn sizes(&self) -> impl Iterator<Item = (&str, u64)> {
        self.files.iter().map(|(name, file)| (name.as_str(), file.len()))
    }

    /// Reads of a file what begins at a place in it.
    pub(crate) fn read_at(&self, name: &str, at: u64, buf: &mut [u8]) -> io::Result<usize> {
        let file = self.files.get(name).ok_or(io::ErrorKind::NotFound)?;
        file.reader(at, buf.len() as u64).read(buf)
    }
}

/// Without the bytes, which are somebody's memory.
impl fmt::Debug for ImageFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageFiles").field("files", &self.files.len()).field("bytes", &self.bytes()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_however_little_memory_there_is() {
        let folder = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n >> 7) as u8 ^ n as u8).collect();
        for memory in [0, 1, 500_000, 4_000_000, 40_000_000] {
            let mut files = ImageFiles::new(folder.path(), memory);
            files.begin("pages-1.img").unwrap();
            files.begin("core-1.img").unwrap();
            // Side by side, as CRIU writes them.
            for part in bytes.chunks(700_001) {
                files.add("pages-1.img", part).unwrap();
                files.add("core-1.img", &part[..9]).unwrap();
            }
            let out = tempfile::tempdir().unwrap();
            files.save(out.path()).unwrap();
            assert!(std::fs::read(out.path().join("pages-1.img")).unwrap() == bytes, "{memory}");
            let core: Vec<u8> = bytes.chunks(700_001).flat_map(|part| part[..9].to_vec()).collect();
            assert_eq!(std::fs::read(out.path().join("core-1.img")).unwrap(), core, "{memory}");
            assert_eq!(files.bytes(), 3_000_000 + core.len() as u64);
            assert!(files.save(out.path()).is_err(), "nothing is replaced");
            assert!(matches!(files.begin("core-1.img"), Err(StreamerError::Twice { .. })));
        }
    }
}
